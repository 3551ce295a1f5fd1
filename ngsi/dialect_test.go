package ngsi

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"campus-gateway"
	"campus-gateway/ngsi/sandbox"
)

// TestAsk: what each broker says of itself, and what follows from it.
func TestAsk(t *testing.T) {
	for _, c := range []struct {
		api     string
		opts    sandbox.Options
		broker  string // before asking, after
		after   string
		history bool
	}{
		{"", sandbox.Options{}, "an NGSIv2 broker", "Orion 4.7.0", false},
		{"ngsi-v2", sandbox.Options{Like: sandbox.OrionLD}, "an NGSIv2 broker", "Orion-LD 1.10.0", false},
		{"orion", sandbox.Options{}, "Orion", "Orion", false},
		{"ngsi-ld", sandbox.Options{Like: sandbox.OrionLD}, "an NGSI-LD broker", "Orion-LD 1.10.0", true},
		{"ngsi-ld", sandbox.Options{Like: sandbox.OrionLD, NoHistory: true}, "an NGSI-LD broker", "Orion-LD 1.10.0", false},
		{"ngsi-ld", sandbox.Options{Like: sandbox.Scorpio}, "an NGSI-LD broker", "Scorpio 5.0.9", true},
		{"ngsi-ld", sandbox.Options{Like: sandbox.Stellio}, "an NGSI-LD broker", "Stellio", true},
		{"ngsi-ld", sandbox.Options{}, "an NGSI-LD broker", "an NGSI-LD broker", true}, // /version is another's
		{"orion-ld", sandbox.Options{Like: sandbox.OrionLD}, "Orion-LD", "Orion-LD", true},
		{"orion-ld", sandbox.Options{Like: sandbox.OrionLD, NoHistory: true}, "Orion-LD", "Orion-LD", false},
		{"scorpio", sandbox.Options{}, "Scorpio", "Scorpio", true},
		{"stellio", sandbox.Options{}, "Stellio", "Stellio", true},
	} {
		t.Run(c.api+" "+c.after, func(t *testing.T) {
			s := newSink(t, sandbox.New(c.opts), Config{API: c.api}, NewMapper("gw", nil))
			if s.Broker() != c.broker {
				t.Errorf("before: %q", s.Broker())
			}
			for range 2 {
				if err := s.Ask(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if _, ok := s.History(); s.Broker() != c.after || ok != c.history {
				t.Errorf("%q, history %v; want %q, %v", s.Broker(), ok, c.after, c.history)
			}
		})
	}
}

// TestAskHostile: answers that are no broker's, and none at all.
func TestAskHostile(t *testing.T) {
	for _, c := range []struct {
		status      int
		ctype, body string
		err         string // empty: an answer, and the broker is not known
		history     bool
	}{
		{200, jsonType, `{"orion":{"version":""}}`, "", true},
		{200, jsonType, `[]`, "", true},
		{404, jsonType, `{"error":"Not Found"}`, "", false},
		{404, "text/html", `<html>`, "", false},
		{400, jsonType, `{"title":"no"}`, "", false},
		{501, jsonType, `{}`, "", false},
		{401, jsonType, `{}`, "", false}, // Send will say it
		{200, "text/html", `<html>log in`, "", false},
		{302, "text/html", ``, "", false},
		{500, jsonType, `{}`, "a fault of its own", false},
		{503, "text/html", `{}`, "not ready", false},
		{429, "text/html", `{}`, "a pause", false},
		{404, jsonType, `{"type":"https://uri.etsi.org/ngsi-ld/errors/NonexistentTenant","title":"no tenant"}`, "", false},
	} {
		t.Run(fmt.Sprint(c.status, c.ctype, c.body), func(t *testing.T) {
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", c.ctype)
				w.Header().Set("Location", "https://login.test")
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			s := newSink(t, h, Config{API: "ngsi-ld"}, NewMapper("gw", nil))
			err := s.Ask(t.Context())
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, want %q", err, c.err)
			}
			if _, ok := s.History(); s.Broker() != "an NGSI-LD broker" || ok != c.history {
				t.Errorf("%q, %v", s.Broker(), ok)
			}
		})
	}
}

// TestAskAgain: an outage changes nothing that is known, another broker does.
func TestAskAgain(t *testing.T) {
	var now atomic.Pointer[http.Handler]
	use := func(h http.Handler) { now.Store(&h) }
	use(sandbox.New(sandbox.Options{Like: sandbox.Scorpio}))
	var n atomic.Int32
	s := newSink(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		(*now.Load()).ServeHTTP(w, r)
	}), Config{API: "ngsi-ld"}, NewMapper("gw", nil))
	want := func(broker string, history, answers bool) {
		t.Helper()
		err := s.Ask(t.Context())
		if _, ok := s.History(); (err == nil) != answers || s.Broker() != broker || ok != history {
			t.Errorf("%q, %v, %v", s.Broker(), ok, err)
		}
	}
	want("Scorpio 5.0.9", true, true)
	use(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	want("Scorpio 5.0.9", true, false)
	// Proxies that let the API pass alone, and answer all else with nothing but trouble.
	for _, h := range []http.HandlerFunc{
		http.NotFound,
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		broker := sandbox.New(sandbox.Options{Like: sandbox.Scorpio})
		n.Store(0)
		use(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/ngsi-ld/v1/") {
				broker.ServeHTTP(w, r)
				return
			}
			h(w, r)
		}))
		want("Scorpio 5.0.9", true, true)
		if n.Load() > 6 {
			t.Errorf("%d questions", n.Load())
		}
	}
	n.Store(0)
	use(sandbox.New(sandbox.Options{Like: sandbox.Scorpio}))
	if want("Scorpio 5.0.9", true, true); n.Load() != 1 {
		t.Errorf("%d questions about what was known", n.Load())
	}
	use(sandbox.New(sandbox.Options{Like: sandbox.OrionLD, NoHistory: true}))
	want("Orion-LD 1.10.0", false, true)
	broker := sandbox.New(sandbox.Options{Like: sandbox.OrionLD})
	use(broker)
	want("Orion-LD 1.10.0", true, true)
	use(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // says nothing of its history
		if strings.Contains(r.URL.Path, "temporal") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		broker.ServeHTTP(w, r)
	}))
	want("Orion-LD 1.10.0", true, true)
}

// likes are the brokers of NGSI-LD that the sandbox can be.
var likes = []string{"", sandbox.OrionLD, sandbox.Scorpio, sandbox.Stellio}

// TestBrokers takes several readings of each of many sensors to each broker, some of
// them to entities that are there already: all arrive, in order, once, whatever is
// peculiar about it.
func TestBrokers(t *testing.T) {
	m, first := many(1100)
	var rs []gateway.Reading
	for i, r := range first {
		for k := range 1 + i%3 {
			rs = append(rs, at(r, time.Duration(k)*time.Hour))
		}
	}
	for _, like := range append([]string{"ngsi-v2"}, likes...) {
		t.Run(like, func(t *testing.T) {
			api := "ngsi-ld"
			if like == "ngsi-v2" {
				api, like = like, ""
			}
			times := map[string][]string{}
			b := sandbox.New(sandbox.Options{Like: like, OnUpdate: func(u sandbox.Update) {
				for _, a := range u.Attrs {
					if a.Name == "temperature" {
						times[u.ID] = append(times[u.ID], a.Time)
					}
				}
			}})
			s := newSink(t, b, Config{API: api, MaxEntities: 5000, MaxBody: 1 << 30, Warn: func(err error) { t.Error(err) }}, m)
			if err := s.Ask(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := s.Send(t.Context(), rs[:100]); err != nil {
				t.Fatal(err)
			}
			if err := s.Send(t.Context(), rs[100:]); err != nil {
				t.Fatal(err)
			}
			got, err := s.Held(t.Context(), rs)
			for i, yes := range got {
				if !yes || err != nil {
					t.Fatalf("reading %d is not there: %v", i, err)
				}
			}
			for i, r := range first {
				var want []string
				for k := range 1 + i%3 {
					want = append(want, at(r, time.Duration(k)*time.Hour).At.Wall.Format(timeForm))
				}
				if got := times[m.things[r.Sensor].id]; fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("%s: %v, want %v", r.Sensor, got, want)
				}
			}
		})
	}
}

// TestSaysNothing: where a 207 says nothing of any entity, the broker is asked which
// it has, and only the others are sent again.
func TestSaysNothing(t *testing.T) {
	m, rs := many(10)
	for _, taken := range []int{0, 1, 9, 10} {
		b := sandbox.New(sandbox.Options{})
		posts := 0
		s := newSink(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(strings.NewReader(string(body)))
			if posts++; r.Method == http.MethodGet || !strings.Contains(string(body), "Observed") || posts > 3 {
				b.ServeHTTP(w, r)
				return
			}
			part := strings.Split(strings.Trim(string(body), "[]"), `,{"id":`)
			if taken > 0 {
				sub := "[" + strings.Join(part[:taken], `,{"id":`) + "]"
				again, _ := http.NewRequest(r.Method, r.URL.String(), strings.NewReader(sub))
				again.Header = r.Header
				b.ServeHTTP(drop{http.Header{}}, again)
			}
			w.WriteHeader(http.StatusMultiStatus)
		}), Config{API: "ngsi-ld"}, m)
		err := s.Send(t.Context(), rs)
		if taken == 0 {
			if err == nil || !strings.Contains(err.Error(), "did not say which") {
				t.Errorf("%d taken: %v", taken, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%d taken: %v", taken, err)
		}
		if got := held(t, s, rs); got != "++++++++++" {
			t.Errorf("%d taken: %s", taken, got)
		}
	}
}

// drop is where an answer goes that nobody gets.
type drop struct{ h http.Header }

func (d drop) Header() http.Header       { return d.h }
func (drop) Write(b []byte) (int, error) { return len(b), nil }
func (drop) WriteHeader(int)             {}

// TestFlowControl: only Orion knows the option.
func TestFlowControl(t *testing.T) {
	m, rs := many(1)
	for api, want := range map[string]string{
		"ngsi-v2": "/v2/op/update?options=forcedUpdate,flowControl",
		"ngsi-ld": "/ngsi-ld/v1/entityOperations/upsert?options=update",
	} {
		s, err := New(Config{URL: "http://h", API: api, FlowControl: true}, m)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range s.Requests(rs) {
			if !strings.HasPrefix(strings.TrimPrefix(r.URL, "http://h"), want) {
				t.Errorf("%s: %s", api, r.URL)
			}
		}
	}
}

// FuzzVersion: whatever a broker says of itself, it is one we know or none.
func FuzzVersion(f *testing.F) {
	f.Add("/version", []byte(`{"orion":{"version":"4.7.0"}}`))
	f.Add("/version", []byte(`{"orionld version":"1.4.0","orion version":"1.15.0-next"}`))
	f.Add("/ngsi-ld/ex/v1/version", []byte(`{"Orion-LD version":"post-v1.5.1"}`))
	f.Add("/q/info", []byte(`{"build":{"group":"eu.neclab.ngsildbroker","version":"5.0.9"}}`))
	f.Add("/actuator/info", []byte(`{"build":{"group":"com.egm.stellio","version":"2.12.1"}}`))
	f.Add("/actuator/health", []byte(`{"status":"UP","groups":["liveness"]}`))
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		b, version := recognise(path, body)
		if b == nil && version != "" || b != nil && (b.name == "" || dialects[b.api] == nil) {
			t.Errorf("%v %q", b, version)
		}
	})
}
