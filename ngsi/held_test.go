package ngsi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"campus-gateway"
	"campus-gateway/ngsi/sandbox"
)

var apis = []string{"ngsi-v2", "ngsi-ld"}

func at(r gateway.Reading, after time.Duration) gateway.Reading {
	r.At.Wall = r.At.Wall.Add(after)
	return r
}

// held asks s, and writes what it says as a row of + and -.
func held(t *testing.T, s *Sink, rs []gateway.Reading) string {
	t.Helper()
	got, err := s.Held(t.Context(), rs)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(rs) {
		t.Fatalf("%d answers for %d readings", len(got), len(rs))
	}
	row := make([]byte, len(got))
	for i, yes := range got {
		row[i] = '-'
		if yes {
			row[i] = '+'
		}
	}
	return string(row)
}

// TestHeld is the table of what a broker is said to hold after some readings have
// been sent.
func TestHeld(t *testing.T) {
	m := NewMapper("gw", []Thing{
		{Name: "a", Location: &settat, Quantities: []gateway.Quantity{gateway.Temperature, gateway.Humidity}},
		{Name: "b", Location: &settat, Quantities: []gateway.Quantity{gateway.Temperature}},
		// two sensors feed one entity, in part the same attribute
		{Name: "left", Location: &settat, EntityID: "wall", Quantities: []gateway.Quantity{gateway.Temperature}},
		{Name: "right", Location: &settat, EntityID: "wall", Quantities: []gateway.Quantity{gateway.Humidity, gateway.Temperature}},
		{Name: "node", Quantities: []gateway.Quantity{gateway.Contact, gateway.BatteryLevel}},
	})
	temp := func(sensor string, after time.Duration) gateway.Reading {
		return at(reading(sensor, num(gateway.Temperature, 20)), after)
	}
	humid := func(sensor string, after time.Duration) gateway.Reading {
		return at(reading(sensor, num(gateway.Humidity, 50)), after)
	}
	both := func(sensor string, celsius float64, after time.Duration) gateway.Reading {
		return at(reading(sensor, num(gateway.Temperature, celsius), num(gateway.Humidity, 50)), after)
	}
	node := func(after time.Duration) gateway.Reading {
		return at(reading("node", gateway.Value{Quantity: gateway.Contact, V: true}, num(gateway.BatteryLevel, 80)), after)
	}
	const s, ms = time.Second, time.Millisecond
	type list = []gateway.Reading
	for name, c := range map[string]struct {
		sent, asked list
		want        string
	}{
		"none asked":               {list{temp("a", 0)}, nil, ""},
		"none sent":                {nil, list{temp("a", 0), temp("b", 0)}, "--"},
		"all":                      {list{temp("a", 0), temp("b", 0)}, list{temp("a", 0), temp("b", 0)}, "++"},
		"part":                     {list{temp("a", 0)}, list{temp("a", 0), temp("b", 0), temp("a", s)}, "+--"},
		"entity missing":           {list{temp("a", 0)}, list{temp("b", 0)}, "-"},
		"attribute missing":        {list{temp("a", 0)}, list{humid("a", 0)}, "-"},
		"older there":              {list{temp("a", 0)}, list{temp("a", ms)}, "-"},
		"newer there":              {list{temp("a", s)}, list{temp("a", 0), temp("a", s-ms)}, "++"},
		"below a millisecond":      {list{temp("a", 0)}, list{temp("a", ms/10)}, "+"},
		"one attribute older":      {list{both("a", 20, 0), humid("a", s)}, list{both("a", 20, s)}, "-"},
		"up to what is there":      {list{temp("a", 0), temp("a", s)}, list{temp("a", 0), temp("a", s), temp("a", 2*s)}, "++-"},
		"clock stepped back":       {list{temp("a", time.Hour)}, list{temp("a", time.Hour), temp("a", 0), temp("a", s)}, "+--"},
		"clock stepped, all there": {list{temp("a", time.Hour), temp("a", 0)}, list{temp("a", time.Hour), temp("a", 0)}, "++"},

		"the other sensor's":    {list{humid("right", s)}, list{temp("left", 0), humid("right", s)}, "-+"},
		"both sensors'":         {list{temp("left", 0), humid("right", s)}, list{temp("left", 0), humid("right", s)}, "++"},
		"one attribute of both": {list{temp("left", 5*ms)}, list{temp("left", 5*ms), temp("right", 0)}, "+-"},

		// below zero the temperature goes to a DeviceMeasurement of its own
		"several entities":         {list{both("a", -3, 0)}, list{both("a", -3, 0)}, "+"},
		"one of several entities":  {list{both("a", 20, 0)}, list{both("a", -3, 0)}, "-"},
		"with what a Device says":  {list{node(0)}, list{node(0), node(s)}, "+-"},
		"only the Device's":        {list{at(reading("node", num(gateway.BatteryLevel, 80)), s)}, list{node(s)}, "-"},
		"no longer configured":     {list{temp("gone", 0)}, list{temp("gone", 0), temp("gone", s)}, "+-"},
		"what is never sent":       {list{temp("a", s)}, list{reading("a", num("nonsense", 1)), reading("a"), temp("a", s)}, "--+"},
		"nothing but what is not":  {list{temp("a", s)}, list{at(temp("a", 0), -100*365*24*time.Hour)}, "-"},
		"a name with odd letters":  {list{temp("é (1)", 0)}, list{temp("é (1)", 0)}, "+"},
		"the same sensor in parts": {list{temp("a", 0), humid("a", s)}, list{temp("a", 0), humid("a", s), temp("a", 2*s)}, "++-"},
	} {
		for _, api := range apis {
			t.Run(name+" "+api, func(t *testing.T) {
				sink := newSink(t, sandbox.New(sandbox.Options{}), Config{API: api, Service: "campus", ServicePath: "/settat", Tenant: "campus"}, m)
				if len(c.sent) > 0 {
					if err := sink.Send(t.Context(), c.sent); err != nil {
						t.Fatal(err)
					}
				}
				if got := held(t, sink, c.asked); got != c.want {
					t.Errorf("%q, want %q", got, c.want)
				}
			})
		}
	}
}

// TestHeldWhere: what another tenant or service path holds is not ours.
func TestHeldWhere(t *testing.T) {
	m, rs := many(2)
	b := sandbox.New(sandbox.Options{})
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Service: "campus", ServicePath: "/a"}, "++"},
		{Config{Service: "campus", ServicePath: "/b"}, "--"},
		{Config{Service: "campus"}, "--"}, // a write without a path goes to /
		{Config{Service: "other", ServicePath: "/a"}, "--"},
		{Config{API: "ngsi-ld", Tenant: "campus"}, "++"},
		{Config{API: "ngsi-ld"}, "--"},
	} {
		s := newSink(t, b, c.cfg, m)
		if c.want == "++" {
			if err := s.Send(t.Context(), rs); err != nil {
				t.Fatal(err)
			}
		}
		if got := held(t, s, rs); got != c.want {
			t.Errorf("%+v: %q, want %q", c.cfg, got, c.want)
		}
	}
}

// TestHeldMany: one question is enough for a batch where it fits, and a large batch
// takes as few as the broker's limits allow.
func TestHeldMany(t *testing.T) {
	for _, c := range []struct {
		api       string
		n, limit  int
		questions int // at most
	}{
		{"ngsi-v2", 500, 0, 1},
		{"ngsi-v2", 2345, 0, 5},
		{"ngsi-v2", 400, 9_000, 8},
		{"ngsi-ld", 50, 0, 1},
		{"ngsi-ld", 1234, 0, 32},
	} {
		t.Run(fmt.Sprint(c.api, " ", c.n, " ", c.limit), func(t *testing.T) {
			m, rs := many(c.n)
			broker := sandbox.New(sandbox.Options{})
			questions := 0
			s := newSink(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "query") || r.Method == http.MethodGet {
					questions++
					if c.limit > 0 && r.ContentLength > int64(c.limit) { // as a proxy says it
						questions--
						_, _ = io.Copy(io.Discard, r.Body)
						w.WriteHeader(http.StatusRequestEntityTooLarge)
						return
					}
				}
				if len(r.RequestURI) > 4000 {
					t.Errorf("a first line of %d bytes", len(r.RequestURI))
				}
				broker.ServeHTTP(w, r)
			}), Config{API: c.api}, m)
			odd := slices.DeleteFunc(slices.Clone(rs), func(r gateway.Reading) bool { return r.At.Wall.Second()%2 == 0 })
			if err := s.Send(t.Context(), odd); err != nil {
				t.Fatal(err)
			}
			got, err := s.Held(t.Context(), rs)
			if err != nil {
				t.Fatal(err)
			}
			for i, yes := range got {
				if want := rs[i].At.Wall.Second()%2 != 0; yes != want {
					t.Fatalf("reading %d: %v, want %v", i, yes, want)
				}
			}
			if questions > c.questions {
				t.Errorf("%d questions, want %d", questions, c.questions)
			}
		})
	}
}

// TestHeldLong: an answer that is too long is asked for in parts; a single entity's
// is refused.
func TestHeldLong(t *testing.T) {
	m, rs := many(8)
	b := &broker{answer: func(r *http.Request, body string) (int, string, string) {
		n := strings.Count(body, "IndoorEnvironmentObserved:gw")
		if strings.Contains(body, "s0007") {
			n = 8
		}
		return 200, jsonType, "[" + strings.Repeat(" ", n*maxHeld/4) + "]"
	}}
	s := newSink(t, b, Config{}, m)
	if got := held(t, s, rs[:7]); got != "-------" {
		t.Errorf("%q", got)
	}
	if _, err := s.Held(t.Context(), rs); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Error(err)
	}
}

// TestHeldHostile: what is no broker's answer says nothing: an error, never yes.
func TestHeldHostile(t *testing.T) {
	const (
		v2 = `[{"id":"urn:ngsi-ld:IndoorEnvironmentObserved:gw:s0000","type":"IndoorEnvironmentObserved","temperature":{"type":"Number","value":0,"metadata":{"TimeInstant":{"type":"DateTime","value":"2030-01-01T00:00:00.000Z"}}}}]`
		ld = `[{"id":"urn:ngsi-ld:IndoorEnvironmentObserved:gw:s0000","type":"IndoorEnvironmentObserved","temperature":{"type":"Property","value":0,"observedAt":"2030-01-01T00:00:00.000Z"}}]`
	)
	for _, c := range []struct {
		status      int
		ctype, body string // BODY: what would be believed
		want        string // in the error; empty: the answer -, + what is believed
	}{
		{200, jsonType, "BODY", "+"},
		{200, "application/json; charset=utf-8", "BODY", "+"},
		{200, "application/ld+json", "BODY", "+"},
		{200, jsonType, "[]", "-"},
		{200, jsonType, "TWICE", "-"}, // at two times: the older one counts
		{200, "text/html", "BODY", "is it a login page"},
		{200, "", "BODY", "is it a login page"},
		{200, jsonType, "<html>", "cannot be understood"},
		{200, jsonType, "", "cannot be understood"},
		{200, jsonType, "null", "cannot be understood"},
		{200, jsonType, "{}", "cannot be understood"},
		{200, jsonType, `["x"]`, "cannot be understood"},
		{200, jsonType, `[{}]`, "cannot be understood"},
		{200, jsonType, `[{"id":5}]`, "cannot be understood"},
		{200, jsonType, `BODY and more`, "cannot be understood"},
		{201, jsonType, "BODY", "not how a broker"},
		{204, "", "", "not how a broker says what it holds"},
		{206, jsonType, "BODY", "only a part"},
		{207, jsonType, "BODY", "not how a broker"},
		{302, "text/html", "BODY", "where we do not go"},
		{400, jsonType, `{"error":"BadRequest","description":"no"}`, "BadRequest: no"},
		{401, jsonType, "BODY", "refuses our token"},
		{404, jsonType, "BODY", "no NGSI API"},
		{413, jsonType, "BODY", "too long"},
		{429, "", "", "asks for a pause"},
		{500, jsonType, "BODY", "a fault of its own"},
		{503, "text/html", "BODY", "not ready"},
	} {
		for i, api := range apis {
			t.Run(fmt.Sprintf("%s %d %s %.20s", api, c.status, c.ctype, c.body), func(t *testing.T) {
				m, rs := many(1)
				body := strings.ReplaceAll(c.body, "BODY", []string{v2, ld}[i])
				if c.body == "TWICE" {
					one := strings.Trim([]string{v2, ld}[i], "[]")
					body = "[" + one + "," + strings.ReplaceAll(one, "2030", "2020") + "," + one + "]"
				}
				s := newSink(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Location", "https://login.test/")
					w.Header()["Content-Type"] = []string{c.ctype}
					w.WriteHeader(c.status)
					_, _ = io.WriteString(w, body)
				}), Config{API: api}, m)
				if len(c.want) == 1 {
					if got := held(t, s, rs); got != c.want {
						t.Errorf("%q, want %q", got, c.want)
					}
					return
				}
				if got, err := s.Held(t.Context(), rs); err == nil || got != nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v %v, want %q", got, err, c.want)
				}
			})
		}
	}
}

// TestHeldNoAnswer: silence, a slow drip, a lost connection and the end of our own
// time are errors.
func TestHeldNoAnswer(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter, <-chan struct{}){
		"silent": func(_ http.ResponseWriter, done <-chan struct{}) { <-done },
		"dripping": func(w http.ResponseWriter, done <-chan struct{}) {
			w.Header().Set("Content-Type", jsonType)
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
		"cut": func(http.ResponseWriter, <-chan struct{}) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, rs := many(1)
				s := newSink(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.ReadAll(r.Body)
					answer(w, r.Context().Done())
				}), Config{}, m)
				start := time.Now()
				got, err := s.Held(t.Context(), rs)
				if _, ok := errors.AsType[*gateway.RetryError](err); !ok || got != nil || time.Since(start) > 30*time.Second {
					t.Errorf("%v %v after %v", got, err, time.Since(start))
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				if _, err := s.Held(ctx, rs); err != context.Canceled {
					t.Errorf("cancelled: %v", err)
				}
				s.Close()
			})
		})
	}
}

// TestHeldToken: a question carries the token, and no error does.
func TestHeldToken(t *testing.T) {
	m, rs := many(1)
	b := &broker{answer: func(r *http.Request, _ string) (int, string, string) {
		return 401, jsonType, `{"error":"` + r.Header.Get("X-Auth-Token") + `"}`
	}}
	a, err := NewAuth(AuthConfig{Token: Secret{File: write(t, "token", "s3cr3t-0123456789")}})
	if err != nil {
		t.Fatal(err)
	}
	s := newSink(t, b, Config{AuthHeader: "X-Auth-Token", Auth: a}, m)
	_, err = s.Held(t.Context(), rs)
	if err == nil || strings.Contains(err.Error(), "s3cr3t") || b.all()[0].header.Get("X-Auth-Token") != "s3cr3t-0123456789" {
		t.Errorf("%v %v", err, b.all()[0].header)
	}
}

func TestKey(t *testing.T) {
	m := NewMapper("gw", []Thing{
		{Name: "left", Location: &settat, EntityID: "wall", Quantities: []gateway.Quantity{gateway.Temperature}},
		{Name: "right", Location: &settat, EntityID: "wall", Quantities: []gateway.Quantity{gateway.Humidity}},
		{Name: "b", Location: &settat, Quantities: []gateway.Quantity{gateway.Temperature}},
	})
	s, err := New(Config{URL: "http://h"}, m)
	if err != nil {
		t.Fatal(err)
	}
	for sensor, want := range map[string]string{
		"left":  "urn:ngsi-ld:IndoorEnvironmentObserved:wall",
		"right": "urn:ngsi-ld:IndoorEnvironmentObserved:wall",
		"b":     "urn:ngsi-ld:IndoorEnvironmentObserved:gw:b",
		"gone!": "urn:ngsi-ld:DeviceMeasurement:gw:gone~21",
	} {
		if got := s.Key(sensor); got != want {
			t.Errorf("%s: %s, want %s", sensor, got, want)
		}
	}
}

// FuzzHeld: no answer makes a reading held that it does not name at its time or
// later, and none brings us down.
func FuzzHeld(f *testing.F) {
	f.Add([]byte(`[{"id":"urn:ngsi-ld:IndoorEnvironmentObserved:gw:s0000","type":"IndoorEnvironmentObserved","temperature":{"type":"Number","value":0,"metadata":{"TimeInstant":{"type":"DateTime","value":"2030-01-01T00:00:00.000Z"}}}}]`), true)
	f.Add([]byte(`[{"id":"urn:ngsi-ld:IndoorEnvironmentObserved:gw:s0000","temperature":[{"observedAt":"2030-01-01T00:00:00Z"},{"observedAt":7,"datasetId":"x"}]}]`), false)
	f.Add([]byte(`[{"id":"x","type":["a","b"],"temperature":{"observedAt":null}}]`), false)
	m, rs := many(1)
	f.Fuzz(func(t *testing.T, body []byte, v2 bool) {
		api, read := "ngsi-ld", readLD
		if v2 {
			api, read = "ngsi-v2", readV2
		}
		s := &Sink{cfg: Config{URL: "http://broker.test", API: api, TLS: &TLS{}}, dialect: dialects[api], mapper: m}
		s.client = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {jsonType}}, Body: io.NopCloser(strings.NewReader(string(body)))}, nil
		})}
		known := map[fact]int64{}
		wrong := read(body, known)
		got, err := s.Held(t.Context(), rs)
		if (err == nil) != (wrong == nil) {
			t.Fatalf("%v, %v", err, wrong)
		}
		if err == nil && got[0] {
			ok := false
			for f, ms := range known {
				ok = ok || f.id == m.things["s0000"].id && f.attr == "temperature" && ms >= rs[0].At.Wall.UnixMilli()
			}
			if !ok || !strings.Contains(string(body), "T") && !strings.Contains(string(body), `\u`) {
				t.Errorf("held, by %q", body)
			}
		}
	})
}
