package ngsi

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/iotest"

	"campus-gateway"
)

// TestText: what is read is what a dry run shows, also when it is read again.
func TestText(t *testing.T) {
	m, rs := ordinary(50, 10)
	for api := range dialects {
		s, dry := bare(t, api, m), bare(t, api, m)
		var got [][]byte
		s.client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			again, err := r.GetBody()
			if err != nil {
				t.Fatal(err)
			}
			body := read(t, again)
			if err := iotest.TestReader(r.Body, body); err != nil {
				t.Error(err)
			}
			if int64(len(body)) != r.ContentLength {
				t.Errorf("%d bytes are announced, %d read", r.ContentLength, len(body))
			}
			got = append(got, body)
			return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody}, nil
		})
		if err := s.Send(t.Context(), rs); err != nil {
			t.Fatal(err)
		}
		want := dry.Requests(rs)
		for i := range want {
			if !bytes.Equal(got[i], want[i].Body) {
				t.Errorf("%s, request %d:\n%.300s, want\n%.300s", api, i, got[i], want[i].Body)
			}
		}
	}
}

func read(t *testing.T, r io.Reader) []byte {
	t.Helper()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return text
}

// TestLateReader: net/http may read the text of a request that has failed for some
// time yet. It sees no other Send's.
func TestLateReader(t *testing.T) {
	m, rs := ordinary(100, 10)
	s := bare(t, "ngsi-v2", m)
	var late, closed io.ReadCloser
	s.client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		late = r.Body
		closed, _ = r.GetBody()
		return nil, errors.New("lost")
	})
	s.Requests(rs[:50]) // the Devices
	want := s.Requests(rs[:50])
	if err := s.Send(t.Context(), rs[:50]); err == nil {
		t.Fatal("it was sent")
	}
	for range 20 {
		s.Requests(rs[50:])
	}
	if got := read(t, late); !bytes.Equal(got, want[0].Body) {
		t.Errorf("%.300s, want\n%.300s", got, want[0].Body)
	}
	if err := errors.Join(late.Close(), late.Close(), closed.Close()); err != nil {
		t.Error(err)
	}
	if n, err := closed.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("read %d bytes after it was closed", n)
	}
}

// TestReuse: nothing of one Send is left in the next.
func TestReuse(t *testing.T) {
	m, rs := ordinary(100, 10)
	s := bare(t, "ngsi-ld", m)
	refused, all := 0, false
	s.client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		if body := read(t, r.Body); bytes.Contains(body, []byte(`"LAeq"`)) || all {
			refused++
			return &http.Response{StatusCode: http.StatusBadRequest, Header: http.Header{"Content-Type": {jsonType}},
				Body: io.NopCloser(bytes.NewReader([]byte(`{"type":"/BadRequestData","title":"too loud"}`)))}, r.Body.Close()
		}
		return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody}, r.Body.Close()
	})
	for range 3 {
		if n := len(rejections(t, s.Send(t.Context(), rs))); n != 20 {
			t.Errorf("%d rejected", n)
		}
		if err := s.Send(t.Context(), []gateway.Reading{rs[0], rs[1]}); err != nil {
			t.Error(err)
		}
	}
	if refused < 60 {
		t.Errorf("only %d refused", refused)
	}
	all = true // what was taken before proves nothing now
	if _, ok := errors.AsType[*gateway.RetryError](s.Send(t.Context(), rs[:2])); !ok {
		t.Error("rejected by a broker that refuses everything")
	}
}
