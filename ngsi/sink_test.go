package ngsi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"campus-gateway"
	"campus-gateway/ngsi/sandbox"

	"go.uber.org/goleak"
)

// TestMain is also the broker that TestBrokerKills kills.
func TestMain(m *testing.M) {
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0") // for children: the race detector rests a second before each exit
	if life := os.Getenv("NGSI_TEST_BROKER"); life != "" {
		if err := beBroker(life); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// broker is a scripted one that remembers what it was asked.
type broker struct {
	answer func(r *http.Request, body string) (status int, contentType, text string)

	mu       sync.Mutex
	requests []recorded
}

type recorded struct {
	header http.Header
	path   string
	body   string
	status int
	ids    []string
}

func (b *broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	status, contentType, text := b.answer(r, string(body))
	b.mu.Lock()
	b.requests = append(b.requests, recorded{r.Header, r.URL.String(), string(body), status, ids(body)})
	b.mu.Unlock()
	if r.ContentLength != int64(len(body)) {
		status = http.StatusLengthRequired
	}
	if contentType != "" {
		w.Header().Set("Content-Type", contentType)
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
}

func ids(body []byte) []string {
	var list []struct{ ID string }
	if json.Unmarshal(body, &list) != nil {
		var v2 struct{ Entities []struct{ ID string } }
		_ = json.Unmarshal(body, &v2)
		list = v2.Entities
	}
	var names []string
	for _, e := range list {
		names = append(names, e.ID)
	}
	return names
}

// open says yes to Devices and leaves the rest to f.
func (b *broker) open(f func(r *http.Request, body string) (int, string, string)) {
	b.answer = func(r *http.Request, body string) (int, string, string) {
		if !strings.Contains(body, "Observed") && !strings.Contains(body, "Measurement") {
			return http.StatusNoContent, "", ""
		}
		return f(r, body)
	}
}

func (b *broker) all() []recorded {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.requests)
}

const jsonType = "application/json"

// newSink is a Sink before h, over connections in memory: it works in a bubble.
func newSink(t *testing.T, h http.Handler, cfg Config, m *Mapper) *Sink {
	t.Helper()
	ln := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	if cfg.URL == "" {
		cfg.URL = "http://broker.test:1026"
	}
	s, err := New(cfg, m)
	if err != nil {
		t.Fatal(err)
	}
	s.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		a, z := net.Pipe()
		select {
		case ln.conns <- z:
			return a, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	t.Cleanup(func() { s.Close(); srv.Close(); <-done })
	return s
}

type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// many is a mapper of n temperature sensors and one reading of each, a second
// apart.
func many(n int) (*Mapper, []gateway.Reading) {
	var things []Thing
	var rs []gateway.Reading
	for i := range n {
		name := fmt.Sprintf("s%04d", i)
		things = append(things, Thing{Name: name, Location: &settat, Quantities: []gateway.Quantity{gateway.Temperature}})
		r := reading(name, num(gateway.Temperature, float64(i)))
		r.At.Wall = r.At.Wall.Add(time.Duration(i) * time.Second)
		rs = append(rs, r)
	}
	return NewMapper("gw", things), rs
}

func rejections(t *testing.T, err error) map[int]string {
	t.Helper()
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*gateway.RejectError](err)
	if !ok {
		t.Fatalf("not a rejection: %v", err)
	}
	m := map[int]string{}
	last := -1
	for _, r := range e.Rejected {
		if r.Index <= last {
			t.Errorf("rejections out of order: %v", e.Rejected)
		}
		last = r.Index
		m[r.Index] = r.Reason
	}
	return m
}

// TestAnswers is the table of what each answer to a reading means.
func TestAnswers(t *testing.T) {
	const yes, reject, retry = "yes", "reject", "retry"
	problem := func(typ, title string) string {
		return fmt.Sprintf(`{"type":"https://uri.etsi.org/ngsi-ld/errors/%s","title":%q,"status":400}`, typ, title)
	}
	for _, c := range []struct {
		api     string
		status  int
		ctype   string
		body    string
		headers map[string]string
		want    string
		words   string
		after   time.Duration
	}{
		{"ngsi-v2", 204, "", "", nil, yes, "", 0},
		{"ngsi-v2", 200, "text/html", "<html>Log in to the campus Wi-Fi", nil, retry, "is it a login page", 0},
		{"ngsi-v2", 200, jsonType, "{}", nil, retry, "is it a login page", 0},
		{"ngsi-v2", 201, jsonType, "", nil, retry, "not how a broker says yes in ngsi-v2", 0},
		{"ngsi-v2", 202, jsonType, "", nil, retry, "is it a login page", 0},
		{"ngsi-v2", 302, "text/html", "", map[string]string{"Location": "https://login.test/portal?token=x"}, retry, "it sends us to https://login.test, where we do not go", 0},
		{"ngsi-v2", 307, "", "", map[string]string{"Location": "/other"}, retry, "where we do not go", 0},
		{"ngsi-v2", 400, jsonType, `{"error":"BadRequest","description":"Invalid characters in attribute value"}`, nil, reject, "BadRequest: Invalid characters in attribute value", 0},
		{"ngsi-v2", 422, jsonType, `{"error":"Unprocessable","description":"no"}`, nil, reject, "Unprocessable: no", 0},
		{"ngsi-v2", 413, jsonType, `{"error":"NoResourcesAvailable","description":"one location"}`, nil, reject, "NoResourcesAvailable: one location", 0},
		{"ngsi-v2", 413, jsonType, `{"error":"RequestEntityTooLarge","description":"payload size"}`, nil, reject, "too large for the broker", 0},
		{"ngsi-v2", 413, "text/html", `<html>nginx`, nil, reject, "too large for the broker", 0},
		{"ngsi-v2", 400, "text/html", "<h1>400 The plain HTTP request was sent to HTTPS port", nil, retry, "not an answer of an NGSI broker", 0},
		{"ngsi-v2", 400, jsonType, `{"message":"no route"}`, nil, retry, "not an answer of an NGSI broker", 0},
		{"ngsi-v2", 400, jsonType, `{"error":`, nil, retry, "not an answer of an NGSI broker", 0},
		{"ngsi-v2", 401, jsonType, `{"error":"invalid_token"}`, nil, retry, "the broker refuses our token: check its auth (it says: invalid_token)", 0},
		{"ngsi-v2", 403, "text/plain", "urn:dx:as:ExpiredAuthenticationToken", nil, retry, "the broker refuses: policy", 0},
		{"ngsi-v2", 404, jsonType, `{"error":"NotFound","description":"x"}`, nil, retry, "check its url and api", 0},
		{"ngsi-v2", 405, jsonType, `{"error":"MethodNotAllowed"}`, nil, retry, "check its url and api", 0},
		{"ngsi-v2", 409, jsonType, `{"error":"TooManyResults"}`, nil, retry, "TooManyResults", 0},
		{"ngsi-v2", 411, jsonType, `{"error":"ContentLengthRequired"}`, nil, retry, "a proxy on the way", 0},
		{"ngsi-v2", 415, jsonType, `{"error":"UnsupportedMediaType"}`, nil, retry, "check its api", 0},
		{"ngsi-v2", 429, "", "", map[string]string{"Retry-After": "7"}, retry, "asks for a pause", 7 * time.Second},
		{"ngsi-v2", 503, "", "", map[string]string{"Retry-After": "86400"}, retry, "not ready", 10 * time.Minute},
		{"ngsi-v2", 503, "", "", map[string]string{"Retry-After": "Mon, 23 Nov 2026 09:15:30 GMT", "Date": "Mon, 23 Nov 2026 09:15:00 GMT"}, retry, "not ready", 30 * time.Second},
		{"ngsi-v2", 500, jsonType, `{"error":"InternalServerError","description":"Database Error"}`, nil, retry, "a fault of its own (it says: InternalServerError: Database Error)", 0},
		{"ngsi-v2", 502, "text/html", "<html>", nil, retry, "is the broker running?", 0},
		{"ngsi-ld", 201, jsonType, `["urn:x"]`, nil, yes, "", 0},
		{"ngsi-ld", 204, "", "", nil, yes, "", 0},
		{"ngsi-ld", 200, jsonType, "[]", nil, retry, "not how a broker says yes in ngsi-ld", 0},
		{"ngsi-ld", 400, "application/problem+json", problem("BadRequestData", "bad"), nil, reject, "bad", 0},
		{"ngsi-ld", 400, jsonType, problem("LdContextNotAvailable", "no context"), nil, retry, "no context", 0},
		{"ngsi-ld", 404, jsonType, problem("NonexistentTenant", "no such tenant"), nil, retry, "no such tenant", 0},
		{"ngsi-ld", 503, jsonType, problem("LdContextNotAvailable", "no context"), nil, retry, "no context", 0},
		{"ngsi-ld", 207, jsonType, `{"success":[],"errors":[{"entityId":"ID","error":` + problem("BadRequestData", "bad value") + `}]}`, nil, reject, "bad value", 0},
		{"ngsi-ld", 207, jsonType, `{"success":[],"errors":[{"entityId":"ID","error":{"type":"https://uri.etsi.org/ngsi-ld/errors/BadRequestData","title":"short"}}]}`, nil, reject, "short", 0},
		{"ngsi-ld", 207, jsonType, `{"success":[],"errors":[{"entityId":"ID","error":{"type":"x/InternalError","title":"db","status":500}}]}`, nil, retry, "did not take ID: db", 0},
		{"ngsi-ld", 207, jsonType, `{"success":[],"errors":[{"entityId":"ID","error":{"title":"conflict","status":409}}]}`, nil, retry, "conflict", 0},
		{"ngsi-ld", 207, jsonType, `{"success":[],"errors":[{"entityId":"ID","error":` + problem("LdContextNotAvailable", "no context") + `}]}`, nil, retry, "no context", 0},
		{"ngsi-ld", 207, jsonType, `{"success":["ID"],"errors":[]}`, nil, yes, "", 0},
		// Scorpio's words for the same: ScorpioBroker issues 466 and 18.
		{"ngsi-ld", 207, jsonType, `[{"success":[{"attributes":[]}],"id":"ID","type":"Upsert"}]`, nil, yes, "", 0},
		{"ngsi-ld", 207, jsonType, `[{"failure":[{"type":"https://uri.etsi.org/ngsi-ld/errors/BadRequestData","title":"Bad Request Data.","detail":{"message":"an invalid entry"},"errorCode":400}],"id":"ID","type":"Upsert"}]`, nil, reject, `Bad Request Data.: {"message":"an invalid entry"}`, 0},
		{"ngsi-ld", 207, jsonType, `[{"failure":[{"type":"https://uri.etsi.org/ngsi-ld/errors/InternalError","title":"db","errorCode":500}],"id":"ID","type":"Upsert"}]`, nil, retry, "did not take ID: db", 0},
		{"ngsi-ld", 207, jsonType, `[]`, nil, retry, "did not say which", 0},
		{"ngsi-ld", 400, jsonType, `{"type":"https://uri.etsi.org/ngsi-ld/errors/BadRequestData","title":"Invalid request.","detail":["id is required"],"status":400}`, nil, reject, `Invalid request.: ["id is required"]`, 0},
		{"ngsi-ld", 207, jsonType, ``, nil, retry, "did not say which", 0},
		{"ngsi-ld", 207, jsonType, `{"success":["urn:other"]}`, nil, retry, "did not say which", 0},
		{"ngsi-ld", 207, "text/html", `<html>`, nil, retry, "did not say which", 0},
	} {
		t.Run(fmt.Sprintf("%s %d %.40s", c.api, c.status, c.body), func(t *testing.T) {
			const id = "urn:ngsi-ld:IndoorEnvironmentObserved:gw:s0000"
			b := &broker{}
			b.open(func(*http.Request, string) (int, string, string) {
				return c.status, c.ctype, strings.ReplaceAll(c.body, "ID", id)
			})
			m, rs := many(1)
			s := newSink(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for k, v := range c.headers {
					w.Header().Set(k, v)
				}
				b.ServeHTTP(w, r)
			}), Config{API: c.api}, m)
			err := s.Send(t.Context(), rs)
			words := strings.ReplaceAll(c.words, "ID", id)
			switch c.want {
			case yes:
				if err != nil {
					t.Error(err)
				}
			case reject:
				if why := rejections(t, err)[0]; !strings.Contains(why, words) {
					t.Errorf("%q, want %q", why, words)
				}
			case retry:
				e, ok := errors.AsType[*gateway.RetryError](err)
				if !ok || !strings.Contains(err.Error(), words) || e.After != c.after {
					t.Errorf("%v (%+v), want %q after %v", err, e, words, c.after)
				}
				if err != nil && (strings.ContainsAny(err.Error(), "\n<") || strings.Contains(err.Error(), "token=x")) {
					t.Errorf("unfit for a log: %q", err)
				}
			}
		})
	}
}

// TestPoison finds one and several readings at fault in few requests, and
// nothing else is rejected, lost or put out of order.
func TestPoison(t *testing.T) {
	for _, c := range []struct {
		n, maxRequests int
		guilty         []int
	}{
		{1, 5, []int{0}},
		{2, 7, []int{1}},
		{64, 20, []int{17}},
		{500, 26, []int{0}},
		{500, 26, []int{499}},
		{500, 26, []int{250}},
		{500, 60, []int{3, 200, 499}},
	} {
		for _, api := range []string{"ngsi-v2", "ngsi-ld"} {
			m, rs := many(c.n)
			var got []string
			b := &broker{}
			b.open(func(_ *http.Request, body string) (int, string, string) {
				for _, g := range c.guilty {
					if strings.Contains(body, fmt.Sprintf("Observed:gw:s%04d", g)) {
						return 400, jsonType, fmt.Sprintf(`{"error":"BadRequest","title":"bad","description":"s%04d"}`, g)
					}
				}
				got = append(got, ids([]byte(body))...)
				return 204, "", ""
			})
			s := newSink(t, b, Config{API: api, MaxEntities: 2000}, m)
			// The Devices first, so that only the readings are counted.
			for i := range rs {
				s.devices[m.things[rs[i].Sensor].deviceID] = time.Now()
			}
			why := rejections(t, s.Send(t.Context(), rs))
			if len(why) != len(c.guilty) {
				t.Errorf("%s %v: rejected %v", api, c.guilty, why)
			}
			for _, g := range c.guilty {
				if !strings.Contains(why[g], fmt.Sprintf("s%04d", g)) {
					t.Errorf("%s: %d is rejected because %q", api, g, why[g])
				}
			}
			var want []string
			for i := range rs {
				if !slices.Contains(c.guilty, i) {
					want = append(want, m.Entities(rs[i])[0].ID)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s %v: the others arrive as %d entities of %d, or out of order", api, c.guilty, len(got), len(want))
			}
			if n := len(b.all()); n > c.maxRequests {
				t.Errorf("%s: %d requests for %d readings, %v at fault", api, n, c.n, c.guilty)
			}
		}
	}
}

// TestRefusesEverything: a broker that refuses whatever we send (Orion answers
// 400 to a wrong address) makes no reading poison, and is not asked 500 times.
func TestRefusesEverything(t *testing.T) {
	for api, answer := range map[string]string{
		"ngsi-v2": `{"error":"BadRequest","description":"Service not found. Check your URL as probably it is wrong."}`,
		"ngsi-ld": `{"type":"https://uri.etsi.org/ngsi-ld/errors/BadRequestData","title":"Service not found."}`,
	} {
		for _, status := range []int{400, 422, 413} {
			m, rs := many(100)
			b := &broker{answer: func(*http.Request, string) (int, string, string) { return status, jsonType, answer }}
			s := newSink(t, b, Config{API: api, Warn: func(error) {}}, m)
			err := s.Send(t.Context(), rs)
			if _, ok := errors.AsType[*gateway.RetryError](err); !ok || !strings.Contains(err.Error(), "refuses everything") || !strings.Contains(err.Error(), "Service not found") {
				t.Errorf("%s %d: %v", api, status, err)
			}
			if n := len(b.all()); n > 20 {
				t.Errorf("%s %d: %d requests", api, status, n)
			}
		}
	}
}

// TestDeviceRefused: a Device that the broker does not want is reported, holds
// up nothing, and is not tried again before it is due.
func TestDeviceRefused(t *testing.T) {
	m, rs := many(3)
	b := &broker{answer: func(_ *http.Request, body string) (int, string, string) {
		if strings.Contains(body, `"type":"Device"`) {
			return 400, jsonType, `{"error":"BadRequest","description":"no Devices"}`
		}
		return 204, "", ""
	}}
	warned := 0
	s := newSink(t, b, Config{Warn: func(err error) {
		warned++
		if !strings.Contains(err.Error(), "no Devices") {
			t.Error(err)
		}
	}}, m)
	// As nothing but readings is taken, the first Send has to find out by itself.
	s.opened = true
	for _, id := range []string{"", ":s0000", ":s0001"} {
		s.devices["urn:ngsi-ld:Device:gw"+id] = time.Now()
	}
	b.answer = func(_ *http.Request, body string) (int, string, string) {
		if strings.Contains(body, "Device:gw:s0002\",\"type") {
			return 400, jsonType, `{"error":"BadRequest","description":"no Devices"}`
		}
		return 204, "", ""
	}
	if err := s.Send(t.Context(), rs); err != nil {
		t.Fatal(err)
	}
	before := len(b.all())
	if err := s.Send(t.Context(), rs); err != nil {
		t.Fatal(err)
	}
	if n := len(b.all()) - before; warned != 1 || n != 1 {
		t.Errorf("%d warnings, %d requests in the second Send", warned, n)
	}
}

// TestOpeningRefused: the gateway's own Device is not wanted, readings are.
func TestOpeningRefused(t *testing.T) {
	m, rs := many(1)
	b := &broker{answer: func(_ *http.Request, body string) (int, string, string) {
		if strings.Contains(body, `Device:gw","type"`) {
			return 400, jsonType, `{"error":"BadRequest","description":"no gateways"}`
		}
		return 204, "", ""
	}}
	var warned error
	s := newSink(t, b, Config{Warn: func(err error) { warned = err }}, m)
	if err := s.Send(t.Context(), rs); err != nil || warned == nil {
		t.Error(err, warned)
	}
	if n := len(b.all()); n != 2 {
		t.Errorf("%d requests", n)
	}
}

// TestTooLarge halves what the broker or a proxy finds too large, and remembers.
func TestTooLarge(t *testing.T) {
	m, rs := many(300)
	b := &broker{}
	b.answer = func(_ *http.Request, body string) (int, string, string) {
		if len(body) > 60_000 {
			return 413, "text/html", "<html>413 Request Entity Too Large</html>"
		}
		return 204, "", ""
	}
	s := newSink(t, b, Config{}, m)
	if err := s.Send(t.Context(), rs); err != nil {
		t.Fatal(err)
	}
	first := b.all()
	if n := count(first, 204); n != 1+300+300 {
		t.Errorf("%d entities taken", n)
	}
	if err := s.Send(t.Context(), rs); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.all()[len(first):] {
		if r.status != 204 {
			t.Errorf("tried %d bytes again", len(r.body))
		}
	}
}

func count(rs []recorded, status int) (n int) {
	for _, r := range rs {
		if r.status == status {
			n += len(r.ids)
		}
	}
	return n
}

// TestReset: a broker that closes the connection on a large body, as Orion does
// past its limit, is given smaller ones; on a small body it means what it says.
func TestReset(t *testing.T) {
	for limit, ok := range map[int64]bool{150_000: true, 0: false} {
		m, rs := many(800)
		var taken int
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength > limit && limit > 0 || limit == 0 && r.ContentLength > 5000 {
				c, _, _ := w.(http.Hijacker).Hijack()
				_ = c.(*net.TCPConn).SetLinger(0)
				c.Close()
				return
			}
			body, _ := io.ReadAll(r.Body)
			taken += len(ids(body))
			w.WriteHeader(204)
		}))
		defer srv.Close()
		s, err := New(Config{URL: srv.URL, MaxEntities: 2000}, m)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		err = s.Send(t.Context(), rs)
		if ok && (err != nil || taken != 1+800+800) {
			t.Errorf("%d taken, %v", taken, err)
		}
		if _, retry := errors.AsType[*gateway.RetryError](err); !ok && (!retry || !strings.Contains(err.Error(), "closed too early")) {
			t.Errorf("%v", err)
		}
		if s.maxBody != s.cfg.MaxBody {
			t.Errorf("a guess was remembered: %d", s.maxBody)
		}
	}
}

// TestNoGuess: nothing is refused for good because of a lost connection, however
// large it is.
func TestNoGuess(t *testing.T) {
	m := NewMapper("gw", []Thing{{Name: "s", Doc: strings.Repeat("x", suspectBody), Quantities: []gateway.Quantity{gateway.Contact}}})
	s, err := New(Config{URL: "http://broker.test", Warn: func(err error) { t.Errorf("%.100v", err) }}, m)
	if err != nil {
		t.Fatal(err)
	}
	s.client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.ContentLength > suspectBody {
			return nil, syscall.ECONNRESET
		}
		return &http.Response{StatusCode: 204, Body: http.NoBody}, nil
	})
	err = s.Send(t.Context(), []gateway.Reading{reading("s", gateway.Value{Quantity: gateway.Contact, V: true})})
	if _, ok := errors.AsType[*gateway.RetryError](err); !ok {
		t.Errorf("%v", err)
	}
}

// TestSplit keeps each request within the limits, in order.
func TestSplit(t *testing.T) {
	for _, api := range []string{"ngsi-v2", "ngsi-ld"} {
		m, rs := many(100)
		b := &broker{answer: func(*http.Request, string) (int, string, string) { return 204, "", "" }}
		s := newSink(t, b, Config{API: api, MaxBody: 4000, MaxEntities: 7}, m)
		if err := s.Send(t.Context(), rs); err != nil {
			t.Fatal(err)
		}
		all := b.all()
		var got []string
		for i, r := range all {
			if len(r.body) > 4000 || len(r.ids) > 7 || i == 0 && len(r.ids) != 1 {
				t.Errorf("%s: request %d: %d bytes, %d entities", api, i, len(r.body), len(r.ids))
			}
			for _, id := range r.ids {
				if strings.Contains(id, "Observed") {
					got = append(got, id)
				}
			}
		}
		if all[0].ids[0] != "urn:ngsi-ld:Device:gw" || len(got) != 100 || !slices.IsSorted(got) {
			t.Errorf("%s: first %v, %d readings", api, all[0].ids, len(got))
		}
	}
}

// TestLaterFailure: what fails after something was taken is sent again as a
// whole, which the broker takes as the same.
func TestLaterFailure(t *testing.T) {
	m, rs := many(20)
	requests := 0
	b := &broker{answer: func(*http.Request, string) (int, string, string) {
		if requests++; requests == 3 {
			return 503, "", ""
		}
		return 204, "", ""
	}}
	s := newSink(t, b, Config{MaxEntities: 10}, m)
	err := s.Send(t.Context(), rs)
	if _, ok := errors.AsType[*gateway.RetryError](err); !ok || requests != 3 {
		t.Fatalf("%v after %d requests", err, requests)
	}
	if err := s.Send(t.Context(), rs); err != nil {
		t.Fatal(err)
	}
}

// TestRounds: in NGSI-LD a request has one @context and no id twice; all states
// of an entity arrive, in order; two sensors that feed one share a request.
func TestRounds(t *testing.T) {
	m := NewMapper("gw", []Thing{
		{Name: "a", EntityType: "AirQualityObserved", EntityID: "room", Location: &settat, Quantities: []gateway.Quantity{gateway.CO2}},
		{Name: "b", EntityType: "AirQualityObserved", EntityID: "room", Location: &settat, Quantities: []gateway.Quantity{gateway.PM25}},
		{Name: "roof", Location: &settat, Outdoor: true, Quantities: []gateway.Quantity{gateway.Temperature}},
		{Name: "door", Quantities: []gateway.Quantity{gateway.Contact, gateway.BatteryLevel}},
	})
	var rs []gateway.Reading
	for i := range 4 {
		at := func(r gateway.Reading) gateway.Reading {
			r.At.Wall = r.At.Wall.Add(time.Duration(i) * time.Second)
			return r
		}
		rs = append(rs,
			at(reading("a", num(gateway.CO2, float64(400+i)))),
			at(reading("b", num(gateway.PM25, float64(i)))),
			at(reading("roof", num(gateway.Temperature, float64(-i)))),
			at(reading("door", gateway.Value{Quantity: gateway.Contact, V: i%2 == 0}, num(gateway.BatteryLevel, 50))))
	}
	b := &broker{answer: func(*http.Request, string) (int, string, string) { return 204, "", "" }}
	s := newSink(t, b, Config{API: "ngsi-ld", Tenant: "campus", Contexts: map[string]string{"dataModel.Weather": "http://gw.test/weather.jsonld"}}, m)
	if err := s.Send(t.Context(), rs); err != nil {
		t.Fatal(err)
	}
	states := map[string][]string{}
	for _, r := range b.all() {
		link := r.header.Get("Link")
		var es []map[string]any
		if err := json.Unmarshal([]byte(r.body), &es); err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, e := range es {
			id := e["id"].(string)
			if seen[id] {
				t.Errorf("%s twice in %s", id, r.body)
			}
			seen[id] = true
			context := "https://raw.githubusercontent.com/smart-data-models/" + models[e["type"].(string)].subject + "/master/context.jsonld"
			if e["type"] == "WeatherObserved" {
				context = "http://gw.test/weather.jsonld"
			}
			if link != `<`+context+`>; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json"` {
				t.Errorf("%s under %s", id, link)
			}
			for _, name := range []string{"co2", "pm25", "temperature", "numValue", "batteryLevel"} {
				if a, ok := e[name].(map[string]any); ok {
					states[id+" "+name] = append(states[id+" "+name], fmt.Sprint(a["value"], a["observedAt"]))
				}
			}
		}
		if r.path != "/ngsi-ld/v1/entityOperations/upsert?options=update" || r.header.Get("NGSILD-Tenant") != "campus" || r.header.Get("Fiware-Service") != "" {
			t.Errorf("%s %v", r.path, r.header)
		}
	}
	for name, got := range map[string]string{
		"urn:ngsi-ld:AirQualityObserved:room co2":                    "400 401 402 403",
		"urn:ngsi-ld:AirQualityObserved:room pm25":                   "0 1 2 3",
		"urn:ngsi-ld:WeatherObserved:gw:roof temperature":            "0 -1 -2 -3",
		"urn:ngsi-ld:DeviceMeasurement:gw:door:contact numValue":     "1 0 1 0",
		"urn:ngsi-ld:Device:gw:door batteryLevel":                    "0.5 0.5 0.5 0.5",
		"urn:ngsi-ld:DeviceMeasurement:gw:door:batteryLevel nothing": "",
	} {
		want := strings.Fields(got)
		for i := range want {
			want[i] += noon.Add(time.Duration(i) * time.Second).Format(timeForm)
		}
		if !slices.Equal(states[name], want) && len(want)+len(states[name]) > 0 {
			t.Errorf("%s: %v, want %v", name, states[name], want)
		}
	}
	// gateway; devices and door in 4 rounds; rooms in 4; roof in 4
	if n := len(b.all()); n != 13 {
		t.Errorf("%d requests", n)
	}
}

// TestMerged: of two readings that went as one entity, only the guilty one is
// rejected.
func TestMerged(t *testing.T) {
	m := NewMapper("gw", []Thing{
		{Name: "a", EntityType: "AirQualityObserved", EntityID: "room", Location: &settat, Quantities: []gateway.Quantity{gateway.CO2}},
		{Name: "b", EntityType: "AirQualityObserved", EntityID: "room", Location: &settat, Quantities: []gateway.Quantity{gateway.PM25}},
	})
	for _, multi := range []bool{false, true} {
		b := &broker{}
		b.open(func(_ *http.Request, body string) (int, string, string) {
			switch {
			case !strings.Contains(body, "pm25"):
				return 201, jsonType, `[]`
			case multi:
				return 207, jsonType, `{"errors":[{"entityId":"urn:ngsi-ld:AirQualityObserved:room","error":{"type":"/BadRequestData","title":"no dust"}}]}`
			}
			return 400, jsonType, `{"type":"/BadRequestData","title":"no dust"}`
		})
		s := newSink(t, b, Config{API: "ngsi-ld"}, m)
		why := rejections(t, s.Send(t.Context(), []gateway.Reading{reading("a", num(gateway.CO2, 400)), reading("b", num(gateway.PM25, 4))}))
		if len(why) != 1 || why[1] != "no dust" {
			t.Errorf("%v", why)
		}
	}
}

// TestPartly: entities that a 207 does not speak of are sent again, alone.
func TestPartly(t *testing.T) {
	m, rs := many(6)
	b := &broker{}
	b.open(func(_ *http.Request, body string) (int, string, string) {
		sent := ids([]byte(body))
		if len(sent) == 1 {
			return 204, "", ""
		}
		success, _ := json.Marshal(sent[:len(sent)/2])
		return 207, jsonType, fmt.Sprintf(`{"success":%s,"errors":[]}`, success)
	})
	s := newSink(t, b, Config{API: "ngsi-ld"}, m)
	if err := s.Send(t.Context(), rs); err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for _, r := range b.all() {
		sizes = append(sizes, len(r.ids))
	}
	if !slices.Equal(sizes, []int{1, 6, 6, 3, 2, 1}) { // gateway, Devices, readings …
		t.Errorf("%v", sizes)
	}
}

// TestUnsendable readings, which no sensor gives, are rejected with a reason; the
// others go.
func TestUnsendable(t *testing.T) {
	b := &broker{answer: func(*http.Request, string) (int, string, string) { return 204, "", "" }}
	m, _ := many(1)
	s := newSink(t, b, Config{}, m)
	old, far := reading("s0000", num(gateway.Temperature, 1)), reading("s0000", num(gateway.Temperature, 1))
	old.At.Wall, far.At.Wall = time.Time{}, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	why := rejections(t, s.Send(t.Context(), []gateway.Reading{
		reading("s0000", num(gateway.Temperature, math.NaN())), old, reading("s0000", num(gateway.Temperature, 20)), far,
		reading("s0000", num(gateway.Temperature, math.Inf(1))), reading("s0000", num("foo", 1)),
	}))
	if len(why) != 5 || why[2] != "" || !strings.Contains(why[0], "NaN is not a measurement") || !strings.Contains(why[1], "the year 1") {
		t.Errorf("%v", why)
	}
	if n := count(b.all(), 204); n != 3 {
		t.Errorf("%d entities", n)
	}
}

// TestDevicesHourly: the Devices go with the first reading, and again when an
// hour has passed.
func TestDevicesHourly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &broker{answer: func(*http.Request, string) (int, string, string) { return 204, "", "" }}
		m, rs := many(2)
		s := newSink(t, b, Config{}, m)
		var got []int
		for _, pause := range []time.Duration{0, time.Second, 58 * time.Minute, time.Minute, time.Minute} {
			time.Sleep(pause)
			before := len(b.all())
			if err := s.Send(t.Context(), rs); err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, r := range b.all()[before:] {
				n += strings.Count(r.body, `"type":"Device"`)
			}
			got = append(got, n)
		}
		if !slices.Equal(got, []int{3, 0, 0, 0, 3}) {
			t.Errorf("%v", got)
		}
		s.Close()
	})
}

// TestSlow: neither a broker that never answers, nor one that answers byte by
// byte without end, holds us longer than the time-out.
func TestSlow(t *testing.T) {
	for name, drip := range map[string]func(http.ResponseWriter, <-chan struct{}){
		"silent": func(_ http.ResponseWriter, done <-chan struct{}) { <-done },
		"dripping": func(w http.ResponseWriter, done <-chan struct{}) {
			w.WriteHeader(200)
			for {
				select {
				case <-done:
					return
				case <-time.After(time.Second):
					_, _ = io.WriteString(w, " ")
					_ = http.NewResponseController(w).Flush()
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, rs := many(1)
				s := newSink(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.ReadAll(r.Body)
					drip(w, r.Context().Done())
				}), Config{}, m)
				start := time.Now()
				err := s.Send(t.Context(), rs)
				if e, ok := errors.AsType[*gateway.RetryError](err); !ok || !strings.Contains(e.Error(), "it takes too long") || time.Since(start) != 30*time.Second {
					t.Errorf("%v after %v", err, time.Since(start))
				}
				s.Close()
			})
		})
	}
}

// TestHuge: an answer without end is read no further than 64 KiB.
func TestHuge(t *testing.T) {
	for _, status := range []int{200, 500, 207} {
		m, rs := many(1)
		written := 0
		done := make(chan struct{})
		s := newSink(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet { // which of it the broker has, after 207
				w.WriteHeader(http.StatusNotFound)
				return
			}
			defer close(done)
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(status)
			for block := make([]byte, 32<<10); ; {
				n, err := w.Write(block)
				if written += n; err != nil {
					return
				}
			}
		}), Config{API: "ngsi-ld"}, m)
		if _, ok := errors.AsType[*gateway.RetryError](s.Send(t.Context(), rs)); !ok {
			t.Error("accepted")
		}
		<-done
		if limit := map[bool]int{true: maxList, false: maxAnswer}[status == 207]; written > limit+128<<10 {
			t.Errorf("%d: read %d bytes", status, written)
		}
	}
}

// TestNoAnswer: each way of not being there has its own words, the same each
// time, and keeps its cause.
func TestNoAnswer(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "connection refused: is the broker running there?"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "broker.test", IsNotFound: true}}, "the name broker.test cannot be resolved: is it right, and the network up?"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "read udp 10.0.0.1:4711->10.0.0.2:53: i/o timeout", Name: "broker.test", IsTimeout: true}}, "the name broker.test cannot be resolved: is it right, and the network up?"},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}, "connect: network is unreachable: is the network up?"},
		{&net.OpError{Op: "read", Source: &net.TCPAddr{Port: 4711}, Addr: &net.TCPAddr{Port: 1026}, Err: os.NewSyscallError("read", syscall.ECONNRESET)}, "the connection was closed too early"},
		{io.EOF, "the connection was closed too early"},
	} {
		m, rs := many(1)
		s, err := New(Config{URL: "http://broker.test:1026/"}, m)
		if err != nil {
			t.Fatal(err)
		}
		s.client.Transport = roundTrip(func(*http.Request) (*http.Response, error) { return nil, c.err })
		err = s.Send(t.Context(), rs)
		if _, ok := errors.AsType[*gateway.RetryError](err); !ok || err.Error() != "no answer from http://broker.test:1026: "+c.want || !errors.Is(err, c.err) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
	// The real thing, and a Send that was told to stop.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	m, rs := many(1)
	s, err := New(Config{URL: "http://" + ln.Addr().String()}, m)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(t.Context(), rs); err == nil || !strings.Contains(err.Error(), "is the broker running there?") {
		t.Errorf("%v", err)
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := s.Send(stopped, rs); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestNew(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{URL: "http://h:1026"}, ""},
		{Config{URL: "https://h/orion/", API: "ngsi-ld", Tenant: "campus"}, ""},
		{Config{URL: "http://h", API: "ngsi-v3"}, `no API "ngsi-v3": want [ngsi-ld ngsi-v2 orion orion-ld scorpio stellio]`},
		{Config{URL: ""}, "not its URL"},
		{Config{URL: "h:1026"}, "not its URL"},
		{Config{URL: "ftp://h"}, "not its URL"},
		{Config{URL: "http://joe:hunter2@h"}, "does not belong in the URL"},
		{Config{URL: "http://joe:hunter2@h:port"}, "not its URL"},
		{Config{URL: "http://h?x=1"}, "leave out"},
		{Config{URL: "http://h", Service: "a b"}, "service"},
		{Config{URL: "http://h", ServicePath: "a"}, "service path"},
		{Config{URL: "http://h", ServicePath: "/a,/b"}, "service path"},
		{Config{URL: "http://h", Tenant: "a\nb"}, "tenant"},
		{Config{URL: "http://h", AuthHeader: "x: y"}, "header"},
		{Config{URL: "http://h", AuthHeader: "content-type"}, "has another use"},
	} {
		_, err := New(c.cfg, NewMapper("gw", nil))
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
	}
	if _, err := New(Config{URL: "http://h"}, NewMapper(strings.Repeat("é", 20), nil)); err == nil {
		t.Error("an id too long is accepted")
	}
}

// TestSandbox takes readings of every quantity through a broker that answers as
// Orion does, and one that follows the NGSI-LD specification.
func TestSandbox(t *testing.T) {
	for _, api := range []string{"ngsi-v2", "ngsi-ld"} {
		var updates []sandbox.Update
		b := sandbox.New(sandbox.Options{OnUpdate: func(u sandbox.Update) { updates = append(updates, u) }})
		m := NewMapper("gw", []Thing{
			{Name: "all (of it)", Doc: `"quotes" & <angles>`, Location: &settat, Parcel: "p", Quantities: gateway.Quantities()},
			{Name: "room", Location: &settat, Quantities: []gateway.Quantity{gateway.Temperature}},
		})
		s := newSink(t, b, Config{API: api, Service: "campus", ServicePath: "/settat", Tenant: "campus", Warn: func(err error) { t.Error(err) }}, m)
		everything := reading("all (of it)")
		for _, q := range gateway.Quantities() {
			v := num(q, 42)
			if q.Kind() == gateway.Switch {
				v.V = true
			}
			everything.Values = append(everything.Values, v)
		}
		rs := []gateway.Reading{everything}
		for i := range 10 {
			r := reading("room", num(gateway.Temperature, 20.5)) // unchanged: notified all the same
			r.At.Wall = r.At.Wall.Add(time.Duration(i) * time.Second)
			rs = append(rs, r)
		}
		if err := s.Send(t.Context(), rs); err != nil {
			t.Fatalf("%s: %v", api, err)
		}
		room, types := 0, map[string]bool{}
		for _, u := range updates {
			types[u.Type] = true
			if u.ID == "urn:ngsi-ld:IndoorEnvironmentObserved:gw:room" {
				room++
			}
			if u.Tenant != "campus" {
				t.Errorf("%s: tenant %q", api, u.Tenant)
			}
		}
		if room != 10 || len(types) != 4 {
			t.Errorf("%s: %d of 10 states, types %v", api, room, types)
		}
	}
}

// TestConcurrent: several lanes may send at once.
func TestConcurrent(t *testing.T) {
	b := &broker{answer: func(_ *http.Request, body string) (int, string, string) {
		if len(body) > 20_000 {
			return 413, "", ""
		}
		return 204, "", ""
	}}
	m, rs := many(200)
	s := newSink(t, b, Config{}, m)
	var lanes sync.WaitGroup
	for lane := range 4 {
		lanes.Go(func() {
			for range 3 {
				if err := s.Send(t.Context(), rs[lane*50:lane*50+50]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	lanes.Wait()
	readings := 0
	for _, r := range b.all() {
		if r.status == 204 {
			readings += strings.Count(r.body, `"type":"IndoorEnvironmentObserved"`)
		}
	}
	if readings != 600 {
		t.Errorf("%d readings taken, want 600", readings)
	}
}

// TestRequests: a dry run shows what Send sends.
func TestRequests(t *testing.T) {
	for _, api := range []string{"ngsi-v2", "ngsi-ld"} {
		b := &broker{answer: func(*http.Request, string) (int, string, string) { return 204, "", "" }}
		m, rs := room()
		cfg := Config{API: api, Service: "campus", Tenant: "campus"}
		s := newSink(t, b, cfg, m)
		dry := newSink(t, b, cfg, m)
		for range 2 {
			before := len(b.all())
			if err := s.Send(t.Context(), rs); err != nil {
				t.Fatal(err)
			}
			sent := b.all()[before:]
			would := dry.Requests(rs)
			if len(would) != len(sent) {
				t.Fatalf("%s: %d requests, %d sent", api, len(would), len(sent))
			}
			for i, r := range would {
				if string(r.Body) != sent[i].body || r.URL != "http://broker.test:1026"+sent[i].path {
					t.Errorf("%s: %s", r.URL, r.Body)
				}
				for name := range r.Header {
					if r.Header.Get(name) != sent[i].header.Get(name) {
						t.Errorf("%s: %q, sent %q", name, r.Header.Get(name), sent[i].header.Get(name))
					}
				}
			}
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "0", "7", " 120 ", "-5", "1e9", "99999999999999999999", "Mon, 23 Nov 2026 09:15:30 GMT", "Mon, 23 Nov 2020 09:15:30 GMT", "Monday, 23-Nov-26 09:15:30 GMT", "soon"} {
		f.Add(s, "Mon, 23 Nov 2026 09:15:00 GMT")
	}
	f.Fuzz(func(t *testing.T, after, date string) {
		h := http.Header{"Retry-After": {after}, "Date": {date}}
		if d := retryAfter(h); d < 0 || d > maxRetryAfter {
			t.Errorf("%q: %v", after, d)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-5": 0, "soon": 0, "601": 10 * time.Minute, "18446744073": 10 * time.Minute,
		"Mon, 23 Nov 2026 09:15:30 GMT": 30 * time.Second, "Mon, 23 Nov 2026 09:14:30 GMT": 0, "Tue, 24 Nov 2026 09:15:30 GMT": 10 * time.Minute,
	} {
		if got := retryAfter(http.Header{"Retry-After": {s}, "Date": {"Mon, 23 Nov 2026 09:15:00 GMT"}}); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
	synctest.Test(t, func(t *testing.T) { // without a Date, our own clock
		if got := retryAfter(http.Header{"Retry-After": {time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)}}); got != time.Minute {
			t.Errorf("%v", got)
		}
	})
}

// FuzzAnswer: whatever a broker answers, only the exact codes are a yes, and a
// rejection has the words of a broker.
func FuzzAnswer(f *testing.F) {
	f.Add(207, jsonType, `{"success":["a"],"errors":[{"entityId":"b","error":{"status":400}}]}`)
	f.Add(207, jsonType, `{"errors":[{"error":{"type":1}}]}`)
	f.Add(400, jsonType, `{"error":"BadRequest","description":"x"}`)
	f.Add(413, "text/html", `<html>`)
	f.Add(999, "", "\xff\x00")
	s, err := New(Config{URL: "http://h", API: "ngsi-ld"}, NewMapper("gw", nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status int, contentType, body string) {
		a := s.judge(&http.Response{StatusCode: status, Status: body, Header: http.Header{"Content-Type": {contentType}}}, []byte(body))
		switch {
		case a.verdict == accepted && status != 201 && status != 204, a.verdict == listed && status != 207,
			a.verdict == refused && (status != 400 && status != 413 && status != 422 || a.words == ""):
			t.Errorf("%d %q: %+v", status, body, a)
		case strings.ContainsFunc(a.words, func(r rune) bool { return r < ' ' || r == '\x7f' }):
			t.Errorf("%q", a.words)
		}
		success, errs := parseList([]byte(body))
		for id := range errs {
			p := errs[id]
			_ = p.poison() && success[id]
		}
	})
}
