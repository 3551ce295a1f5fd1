package ngsi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"campus-gateway"
	"campus-gateway/ngsi/sandbox"
)

// later is when the broker is told what is past.
func later() time.Time { return noon.AddDate(0, 0, 3) }

// pastOf is a Sink for the history of what h is before.
func pastOf(t *testing.T, h http.Handler, cfg Config, m *Mapper) (*Sink, *history) {
	t.Helper()
	if cfg.API == "" {
		cfg.API = "ngsi-ld"
	}
	s := newSink(t, h, cfg, m)
	if err := s.Ask(t.Context()); err != nil {
		t.Fatal(err)
	}
	past, ok := s.History()
	if !ok {
		t.Fatal("it keeps no history")
	}
	return s, past.(*history)
}

// timesOf asks the broker itself for an attribute's times, by entity.
func timesOf(t *testing.T, h http.Handler, attr string) map[string][]string {
	t.Helper()
	times := map[string][]string{}
	for offset := 0; ; offset += 100 {
		r, _ := http.NewRequest("GET", fmt.Sprintf("/ngsi-ld/v1/temporal/entities?attrs=%s&timerel=after&timeAt=1970-01-01T00:00:00Z&limit=100&offset=%d", attr, offset), nil)
		w := &record{header: http.Header{}}
		h.ServeHTTP(w, r)
		var es []map[string]any
		if err := json.Unmarshal(w.body, &es); err != nil {
			t.Fatalf("%s: %v", w.body, err)
		}
		for _, e := range es {
			for _, in := range e[attr].([]any) {
				times[e["id"].(string)] = append(times[e["id"].(string)], in.(map[string]any)["observedAt"].(string))
			}
		}
		if len(es) < 100 {
			return times
		}
	}
}

type record struct {
	header http.Header
	body   []byte
}

func (r *record) Header() http.Header         { return r.header }
func (r *record) Write(b []byte) (int, error) { r.body = append(r.body, b...); return len(b), nil }
func (r *record) WriteHeader(int)             {}

// series is n readings of each of some sensors, a minute apart.
func series(sensors, n int) (*Mapper, []gateway.Reading) {
	m, first := many(sensors)
	var rs []gateway.Reading
	for k := range n {
		for _, r := range first {
			r.Values = []gateway.Value{num(gateway.Temperature, float64(k)), num(gateway.Humidity, 50)}
			rs = append(rs, at(r, time.Duration(k)*time.Minute))
		}
	}
	return m, rs
}

// whole wants each reading in the history once, in order.
func whole(t *testing.T, b http.Handler, m *Mapper, rs []gateway.Reading) {
	t.Helper()
	want := map[string][]string{}
	for _, r := range rs {
		id := m.things[r.Sensor].id
		want[id] = append(want[id], r.At.Wall.UTC().Format(timeForm))
	}
	for _, attr := range []string{"temperature", "relativeHumidity", "dateObserved"} {
		got := timesOf(t, b, attr)
		for id, times := range want {
			if !slices.Equal(got[id], times) {
				t.Errorf("%s of %s: %d instances, want %d: %.200s", attr, id, len(got[id]), len(times), fmt.Sprint(got[id]))
				return
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d entities, want %d", attr, len(got), len(want))
		}
	}
}

// TestHistory: what is past arrives once and in order, in one request an entity, and
// leaves the newest state alone; sent again after Held has been asked, it stays so.
func TestHistory(t *testing.T) {
	for _, like := range likes {
		t.Run(like, func(t *testing.T) {
			m, rs := series(5, 40)
			var updates int
			b := sandbox.New(sandbox.Options{Now: later, Like: like, OnUpdate: func(sandbox.Update) { updates++ }})
			posts := 0
			s, past := pastOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					posts++
				}
				b.ServeHTTP(w, r)
			}), Config{Tenant: ""}, m)
			if err := past.Send(t.Context(), rs[:100]); err != nil {
				t.Fatal(err)
			}
			if posts != 5 {
				t.Errorf("%d requests for 5 entities", posts)
			}
			for range 2 { // as after an outcome nobody knows
				var rest []gateway.Reading
				got, err := past.Held(t.Context(), rs)
				if err != nil {
					t.Fatal(err)
				}
				for i, yes := range got {
					if !yes {
						rest = append(rest, rs[i])
					}
				}
				if want := len(rs) - 100; len(rest) != want && len(rest) != 0 {
					t.Fatalf("%d are missing, want %d", len(rest), want)
				}
				if err := past.Send(t.Context(), rest); err != nil {
					t.Fatal(err)
				}
			}
			whole(t, b, m, rs)
			if got := timesOf(t, b, "location"); len(got) != 5 || len(got[m.things["s0000"].id]) != 2 { // once a Send
				t.Errorf("locations: %v", got)
			}
			if updates != 0 {
				t.Errorf("%d updates of the newest state", updates)
			}
			if got, err := s.Held(t.Context(), rs[:5]); err != nil || slices.Contains(got, true) {
				t.Errorf("the newest state: %v %v", got, err)
			}
			// What comes the ordinary way is history as well.
			live := at(rs[len(rs)-1], time.Hour)
			if err := s.Send(t.Context(), []gateway.Reading{live}); err != nil {
				t.Fatal(err)
			}
			if got, err := past.Held(t.Context(), []gateway.Reading{live, at(live, time.Second), at(live, -time.Second)}); err != nil || !slices.Equal(got, []bool{true, false, false}) {
				t.Errorf("live: %v %v", got, err)
			}
		})
	}
}

// TestHistoryBody: every instance has its time, its unit, and what is not observed
// stands once.
func TestHistoryBody(t *testing.T) {
	m, rs := room()
	b := &broker{answer: func(*http.Request, string) (int, string, string) { return 201, "", "" }}
	s := newSink(t, b, Config{API: "stellio", Tenant: "campus"}, m)
	past, _ := s.History()
	if err := past.Send(t.Context(), []gateway.Reading{rs[0], at(rs[0], time.Minute)}); err != nil {
		t.Fatal(err)
	}
	r := b.all()[0]
	if r.path != "/ngsi-ld/v1/temporal/entities" || r.header.Get("NGSILD-Tenant") != "campus" || !strings.Contains(r.header.Get("Link"), "dataModel.Environment") {
		t.Errorf("%s %v", r.path, r.header)
	}
	const t0, t1 = `"2026-11-23T09:15:00.123Z"`, `"2026-11-23T09:16:00.123Z"`
	for _, want := range []string{
		`{"id":"urn:ngsi-ld:IndoorEnvironmentObserved:gw-a101:room","type":"IndoorEnvironmentObserved","dateObserved":[` +
			`{"type":"Property","value":{"@type":"DateTime","@value":` + t0 + `},"observedAt":` + t0 + `},` +
			`{"type":"Property","value":{"@type":"DateTime","@value":` + t1 + `},"observedAt":` + t1 + `}]`,
		`"temperature":[{"type":"Property","value":22.4,"unitCode":"CEL","observedAt":` + t0 + `},{"type":"Property","value":22.4,"unitCode":"CEL","observedAt":` + t1 + `}]`,
		`"refDevice":[{"type":"Relationship","object":"urn:ngsi-ld:Device:gw-a101:room","observedAt":` + t0 + `}]`,
	} {
		if !strings.Contains(r.body, want) {
			t.Errorf("no %s in\n%s", want, r.body)
		}
	}
	if !json.Valid([]byte(r.body)) || strings.Count(r.body, `"location"`) != 1 {
		t.Errorf("%s", r.body)
	}
}

// TestHistoryCut: the connection is lost after the broker has taken a request, at each
// of them in turn; sent again without a question, nothing is there twice.
func TestHistoryCut(t *testing.T) {
	for _, like := range likes {
		for cut := 1; cut <= 4; cut++ {
			t.Run(fmt.Sprint(like, cut), func(t *testing.T) {
				m, rs := series(4, 10)
				b := sandbox.New(sandbox.Options{Now: later, Like: like})
				posts, questions := 0, 0
				_, past := pastOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodGet {
						questions++
					} else {
						if posts++; posts == cut {
							b.ServeHTTP(&record{header: http.Header{}}, r)
							panic(http.ErrAbortHandler)
						}
					}
					b.ServeHTTP(w, r)
				}), Config{}, m)
				if _, ok := errors.AsType[*gateway.RetryError](past.Send(t.Context(), rs)); !ok {
					t.Fatal("no error")
				}
				if err := past.Send(t.Context(), rs); err != nil {
					t.Fatal(err)
				}
				whole(t, b, m, rs)
				before := questions // nothing is in doubt any more
				if err := past.Send(t.Context(), []gateway.Reading{at(rs[0], time.Hour)}); err != nil || questions != before {
					t.Errorf("%v, %d questions", err, questions-before)
				}
			})
		}
	}
}

// TestHistoryInPart: a reading that fills several entities, of which the history has
// some: after Held, Send adds the others only.
func TestHistoryInPart(t *testing.T) {
	m := NewMapper("gw", []Thing{{Name: "a", Location: &settat, Quantities: []gateway.Quantity{gateway.Temperature, gateway.Humidity}}})
	b := sandbox.New(sandbox.Options{Now: later, Like: sandbox.OrionLD})
	posts := 0
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			if posts++; posts == 2 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
		}
		b.ServeHTTP(w, r)
	})
	rs := []gateway.Reading{reading("a", num(gateway.Temperature, -3), num(gateway.Humidity, 50))}
	_, before := pastOf(t, h, Config{}, m)
	if err := before.Send(t.Context(), rs); err == nil {
		t.Fatal("no error")
	}
	_, past := pastOf(t, h, Config{}, m) // after a restart
	if got, err := past.Held(t.Context(), rs); err != nil || got[0] {
		t.Fatalf("%v %v", got, err)
	}
	if err := past.Send(t.Context(), rs); err != nil {
		t.Fatal(err)
	}
	if got, err := past.Held(t.Context(), rs); err != nil || !got[0] {
		t.Fatalf("%v %v", got, err)
	}
	for _, attr := range []string{"numValue", "relativeHumidity"} {
		for id, times := range timesOf(t, b, attr) {
			if len(times) != 1 {
				t.Errorf("%s: %v", id, times)
			}
		}
	}
}

// TestHistoryPoison: the readings at fault are found, in few requests, and only they
// are set aside; one that takes nothing at all sets nothing aside.
func TestHistoryPoison(t *testing.T) {
	m, rs := series(3, 64)
	bad := map[int]bool{7: true, 100: true, 101: true}
	for i := range bad {
		rs[i].Values[0].V = 666.0
	}
	rs[50].Values[0].V = "not a number" // never sent
	const no = `{"type":"https://uri.etsi.org/ngsi-ld/errors/BadRequestData","title":"a bad number","status":400}`
	b := sandbox.New(sandbox.Options{Now: later})
	posts := 0
	_, past := pastOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		if r.Method == http.MethodPost {
			posts++
		}
		if strings.Contains(string(body), "666") {
			w.Header().Set("Content-Type", jsonType)
			w.WriteHeader(400)
			_, _ = io.WriteString(w, no)
			return
		}
		b.ServeHTTP(w, r)
	}), Config{}, m)
	why := rejections(t, past.Send(t.Context(), rs))
	if len(why) != 4 || why[7] != "a bad number" || why[100] == "" || why[101] == "" || !strings.HasPrefix(why[50], "not sent: ") {
		t.Errorf("%v", why)
	}
	if posts > 3+3*2*7+1 {
		t.Errorf("%d requests", posts)
	}
	got, err := past.Held(t.Context(), rs)
	for i, yes := range got {
		if _, rejected := why[i]; yes == rejected {
			t.Fatalf("reading %d: %v, rejected %v: %v", i, yes, rejected, err)
		}
	}
	s, past := pastOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", jsonType)
		w.WriteHeader(400)
		_, _ = io.WriteString(w, no)
	}), Config{API: "scorpio"}, m)
	err = past.Send(t.Context(), rs[:3])
	if _, ok := errors.AsType[*gateway.RetryError](err); !ok || !strings.Contains(err.Error(), "takes nothing into its history") {
		t.Errorf("%v", err)
	}
	if _, ok := s.History(); !ok {
		t.Error("switched off")
	}
}

// TestHistoryNone: a broker that turns out to have no temporal API switches the
// history off; that is no fault of the readings.
func TestHistoryNone(t *testing.T) {
	for _, c := range []struct {
		like  string
		h     http.Handler
		is    bool // none from then on
		words string
	}{
		{"orion-ld", sandbox.New(sandbox.Options{Now: later, Like: sandbox.OrionLD, NoHistory: true}), true, "keeps no history"},
		{"scorpio", sandbox.New(sandbox.Options{Now: later, Like: sandbox.Scorpio, NoHistory: true}), true, "keeps no history"},
		{"", http.NotFoundHandler(), true, "keeps no history"},
		{"", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(405) }), true, "keeps no history"},
		{"", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }), false, "not ready"},
		{"", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }), false, "is it a login page"},
		{"", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(207) }), false, "not how a broker takes a history"},
		{"", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", jsonType)
			w.WriteHeader(404)
			_, _ = io.WriteString(w, `{"type":"https://uri.etsi.org/ngsi-ld/errors/NonexistentTenant","title":"no such tenant"}`)
		}), false, "no such tenant"},
	} {
		m, rs := series(1, 2)
		s := newSink(t, c.h, Config{API: "scorpio"}, m)
		past, ok := s.History()
		if !ok {
			t.Fatal("none")
		}
		err := past.Send(t.Context(), rs)
		if _, retry := errors.AsType[*gateway.RetryError](err); !retry || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s %v, want %q", c.like, err, c.words)
		}
		if _, ok := s.History(); ok == c.is {
			t.Errorf("%s %s: history %v", c.like, c.words, ok)
		}
	}
}

// TestHistoryUnknown: without an answer there is no history.
func TestHistoryUnknown(t *testing.T) {
	for api, want := range map[string]bool{"ngsi-v2": false, "ngsi-ld": false, "orion": false, "orion-ld": false, "scorpio": true, "stellio": true} {
		s, err := New(Config{URL: "http://h", API: api}, NewMapper("gw", nil))
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := s.History(); ok != want || h.String() != "history of "+api+" http://h" {
			t.Errorf("%s: %v %s", api, ok, h)
		}
	}
}

// TestHistoryLarge: requests keep to the limit, and to what the broker takes.
func TestHistoryLarge(t *testing.T) {
	for _, limit := range []int{100_000, 20_000} { // of the broker: it cuts, it says 413
		m, rs := series(1, 2000)
		b := sandbox.New(sandbox.Options{Now: later, Like: sandbox.OrionLD})
		largest := 0
		_, past := pastOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(strings.NewReader(string(body)))
			switch {
			case len(body) > limit && limit >= suspectBody:
				panic(http.ErrAbortHandler)
			case len(body) > limit:
				w.WriteHeader(413)
				return
			}
			largest = max(largest, len(body))
			b.ServeHTTP(w, r)
		}), Config{MaxBody: 300_000}, m)
		tries := 0
		for err := past.Send(t.Context(), rs); err != nil; err = past.Send(t.Context(), rs) {
			if tries++; tries > 3 {
				t.Fatal(err)
			}
		}
		whole(t, b, m, rs)
		if largest < limit/3 {
			t.Errorf("%d bytes at most, of %d", largest, limit)
		}
	}
}

// TestHistoryPartial: an answer that is only a part is asked for in smaller spans of
// time; what cannot be had is an error, not a no.
func TestHistoryPartial(t *testing.T) {
	m, rs := series(2, 50)
	b := sandbox.New(sandbox.Options{Now: later, Like: sandbox.Stellio})
	most := 0
	_, past := pastOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.RawQuery, "id=") {
			b.ServeHTTP(w, r)
			return
		}
		got := &record{header: w.Header()}
		b.ServeHTTP(got, r)
		if strings.Count(string(got.body), "observedAt") > most {
			w.Header().Del("Content-Length")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, "[]")
			return
		}
		_, _ = w.Write(got.body)
	}), Config{}, m)
	if err := past.Send(t.Context(), rs); err != nil {
		t.Fatal(err)
	}
	most = 20
	got, err := past.Held(t.Context(), append(rs, at(rs[0], time.Hour)))
	if err != nil || slices.Index(got, false) != len(rs) {
		t.Errorf("%v %v", got, err)
	}
	most = 1
	if got, err := past.Held(t.Context(), rs); err == nil || got != nil {
		t.Errorf("%v %v", got, err)
	}
	var dense []gateway.Reading // a millisecond apart: none falls between two spans
	for k := range 33 {
		dense = append(dense, at(rs[0], time.Hour+time.Duration(k)*time.Millisecond))
	}
	if err := past.Send(t.Context(), dense); err != nil {
		t.Fatal(err)
	}
	most = 2 // one reading's attributes
	if got, err := past.Held(t.Context(), dense); err != nil || slices.Contains(got, false) {
		t.Errorf("%v %v", got, err)
	}
}

// TestHistoryTooLong: of a broker that is asked up to the present, an answer that is too
// long is asked for without that; it may then say less, but does not hold us up.
func TestHistoryTooLong(t *testing.T) {
	m, rs := series(1, 8)
	asked := 0
	s := newSink(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", jsonType)
		if asked++; strings.Contains(r.URL.RawQuery, "endTimeAt=9999") {
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = io.WriteString(w, "[]")
	}), Config{API: "orion-ld"}, m)
	if got, err := s.history.Held(t.Context(), rs); err != nil || slices.Contains(got, true) || asked != 3 {
		t.Errorf("%v %v, %d questions", got, err, asked)
	}
}

// TestHistoryOthers: an instance of another data set is not ours, nor is one without
// a time, or at another time.
func TestHistoryOthers(t *testing.T) {
	m, rs := many(1)
	const ours = `{"type":"Property","value":0,"observedAt":"2026-11-23T09:15:00.123456Z"}`
	for body, want := range map[string]string{
		`[` + ours + `]`: "+",
		ours:             "+",
		`[{"observedAt":"2026-11-23T09:15:00.123Z","datasetId":"urn:x:1"}]`: "-",
		`[{"value":0},{"observedAt":5},7,null]`:                             "-",
		`[{"observedAt":"2026-11-23T09:15:00.124Z"}]`:                       "-",
		`[{"observedAt":"2026-11-23T10:15:00.123+01:00"}]`:                  "+",
	} {
		s := newSink(t, &broker{answer: func(*http.Request, string) (int, string, string) {
			return 200, jsonType, `[{"id":"urn:ngsi-ld:IndoorEnvironmentObserved:gw:s0000","type":"IndoorEnvironmentObserved","temperature":` + body + `}]`
		}}, Config{API: "scorpio"}, m)
		if got, err := s.history.Held(t.Context(), rs); err != nil || got[0] != (want == "+") {
			t.Errorf("%s: %v %v", body, got, err)
		}
	}
}

// TestHistoryLanes: several lanes may send at once, each its own entities.
func TestHistoryLanes(t *testing.T) {
	m, rs := series(8, 20)
	b := sandbox.New(sandbox.Options{Now: later, Like: sandbox.OrionLD})
	var mu sync.Mutex
	n := 0
	_, past := pastOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n++
		lost := n%7 == 0 && r.Method == http.MethodPost
		mu.Unlock()
		if lost {
			b.ServeHTTP(&record{header: http.Header{}}, r)
			panic(http.ErrAbortHandler)
		}
		b.ServeHTTP(w, r)
	}), Config{}, m)
	var lanes sync.WaitGroup
	for lane := range 4 {
		lanes.Go(func() {
			for k := range 20 {
				mine := rs[k*8+lane*2 : k*8+lane*2+2]
				for try := 0; past.Send(t.Context(), mine) != nil; try++ {
					if try > 5 {
						t.Error("never taken")
						return
					}
				}
			}
		})
	}
	lanes.Wait()
	whole(t, b, m, rs)
}
