package ngsi

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"campus-gateway"
	"campus-gateway/ngsi/sandbox"
)

// What is not certain of a reading's time stands at the broker as long as it is
// true: the next certain reading takes it off, also after a restart.
func TestTimeUncertain(t *testing.T) {
	for api, path := range map[string]string{"ngsi-v2": "/v2/entities/", "ngsi-ld": "/ngsi-ld/v1/entities/"} {
		t.Run(api, func(t *testing.T) {
			m, rs := room()
			broker := sandbox.New(sandbox.Options{})
			s := newSink(t, broker, Config{API: api}, m)
			send := func(rs ...gateway.Reading) {
				t.Helper()
				if err := s.Send(t.Context(), rs); err != nil {
					t.Fatal(err)
				}
			}
			at := func(i int, after time.Duration, uncertain bool) gateway.Reading {
				r := rs[i]
				r.At.Wall = noon.Truncate(time.Second).Add(after)
				if uncertain {
					r.At.Earliest, r.At.Latest = r.At.Wall.Add(-time.Hour), r.At.Wall.Add(time.Minute)
				}
				return r
			}
			get := func(id string) string {
				t.Helper()
				w := httptest.NewRecorder()
				broker.ServeHTTP(w, httptest.NewRequest("GET", path+id, nil))
				if w.Code != 200 {
					t.Fatalf("%s: %d %s", id, w.Code, w.Body)
				}
				return w.Body.String()
			}
			const temperature = "urn:ngsi-ld:IndoorEnvironmentObserved:gw-a101:room"
			marks := func(want int) string {
				t.Helper()
				text := get(temperature)
				if n := strings.Count(text, "timeUncertain"); n != want {
					t.Errorf("timeUncertain is there %d times, want %d:\n%s", n, want, text)
				}
				return text
			}
			all := 4 // dateObserved and three values; in NGSIv2 TimeInstant as well
			if api == "ngsi-v2" {
				all++
			}
			send(at(0, 0, false))
			marks(0)
			send(at(0, time.Second, true))
			if text := marks(all); strings.Count(text, "2026-11-23T08:15:01.000Z/2026-11-23T09:16:01.000Z") != all {
				t.Error(text)
			}
			send(at(0, 2*time.Second, false))
			marks(0)
			send(at(0, 3*time.Second, true), at(0, 4*time.Second, false)) // in one batch
			marks(0)
			send(at(0, 5*time.Second, true))
			open := at(0, 6*time.Second, true)
			open.At.Latest = time.Time{}
			send(open)
			if text := marks(all); strings.Count(text, "2026-11-23T08:15:06.000Z/..") != all {
				t.Error(text)
			}
			s = newSink(t, broker, Config{API: api}, m) // a restart
			send(at(0, 7*time.Second, false))
			marks(0)
			send(at(2, 0, true)) // the mean of a minute: both its ends are off by the same
			if text := get("urn:ngsi-ld:NoiseLevelObserved:gw-a101:noise"); strings.Count(text, "2026-11-23T08:14:00.000Z/2026-11-23T09:15:00.000Z") != 1 ||
				strings.Count(text, "2026-11-23T08:15:00.000Z/2026-11-23T09:16:00.000Z") != all-3+1 {
				t.Error(text)
			}
		})
	}
}

// What others note on our attributes stays but for the first certain reading.
func TestOverridesOnce(t *testing.T) {
	m, rs := many(1)
	b := &broker{answer: func(*http.Request, string) (int, string, string) { return 204, "", "" }}
	s := newSink(t, b, Config{}, m)
	for range 3 {
		if err := s.Send(t.Context(), rs); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for _, r := range b.all() {
		if strings.Contains(r.path, "overrideMetadata") {
			n++
		}
	}
	if last := b.all()[len(b.all())-1]; n < 1 || n > 2 || last.path != "/v2/op/update?options=forcedUpdate" {
		t.Errorf("%d override; the last: %s", n, last.path)
	}
}

func TestDate(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter)
		noTime bool
	}{
		"yes":          {func(w http.ResponseWriter) {}, false},
		"unauthorized": {func(w http.ResponseWriter) { w.WriteHeader(401) }, false},
		"not there":    {func(w http.ResponseWriter) { w.WriteHeader(404) }, false},
		"elsewhere":    {func(w http.ResponseWriter) { w.Header().Set("Location", "http://evil.test/"); w.WriteHeader(302) }, false},
		"slow":         {func(w http.ResponseWriter) { time.Sleep(2500 * time.Millisecond) }, false},
		"slow at first": {func(w http.ResponseWriter) {
			w.WriteHeader(200)
			time.Sleep(2500 * time.Millisecond)
			_, _ = w.Write([]byte("x"))
		}, false},
		"no date":       {func(w http.ResponseWriter) { w.Header()["Date"] = nil }, true},
		"nonsense":      {func(w http.ResponseWriter) { w.Header().Set("Date", "yesterday") }, true},
		"a kept answer": {func(w http.ResponseWriter) { w.Header().Set("Age", "4000") }, true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, fraction := range []time.Duration{0, 1, 500, 999} {
				synctest.Test(t, func(t *testing.T) {
					time.Sleep(fraction * time.Millisecond)
					s := newSink(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if r.Header.Get("Authorization") != "" || r.Method != "GET" {
							t.Errorf("%s with %v", r.Method, r.Header)
						}
						c.answer(w)
					}), Config{Auth: static(t, "geheim")}, NewMapper("gw", nil))
					now, within, err := s.Date(t.Context())
					switch {
					case c.noTime && !errors.Is(err, gateway.ErrNoTime):
						t.Errorf("%v, %v", now, err)
					case !c.noTime && (err != nil || time.Until(now).Abs() > within || within > 4*time.Second):
						t.Errorf("%v give or take %v, truly %v: %v", now, within, time.Now().UTC(), err)
					}
				})
			}
		})
	}
	s := newSink(t, nil, Config{}, NewMapper("gw", nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.Date(ctx); err == nil || errors.Is(err, gateway.ErrNoTime) {
		t.Errorf("nobody answers: %v", err)
	}
}
