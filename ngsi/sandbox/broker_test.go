package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// do makes one call. Headers are "Name: value"; a body has Content-Type
// application/json unless they say otherwise.
func do(b *Broker, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	return w
}

// want makes a call and demands status and body.
func want(t *testing.T, b *Broker, call string, status int, body string) *httptest.ResponseRecorder {
	t.Helper()
	words := strings.SplitN(call, " ", 3)
	sent, headers := "", []string(nil)
	if len(words) == 3 {
		sent = words[2]
		if head, rest, ok := strings.Cut(sent, " | "); ok {
			headers, sent = strings.Split(head, ", "), rest
		}
	}
	w := do(b, words[0], words[1], sent, headers...)
	if w.Code != status || strings.TrimSuffix(w.Body.String(), "\n") != body {
		t.Errorf("%s\n got %d %s\nwant %d %s", call, w.Code, w.Body, status, body)
	}
	return w
}

// sound checks the broker's own books.
func sound(t *testing.T, b *Broker) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	bytes, entities, subs, queued := 0, 0, 0, 0
	for _, tn := range b.tenants {
		byID := 0
		for _, found := range tn.byID {
			byID += len(found)
		}
		if byID != len(tn.entities) || len(tn.ldByID) != len(tn.ld) {
			t.Errorf("%d entities, %d by id; NGSI-LD: %d, %d", len(tn.entities), byID, len(tn.ld), len(tn.ldByID))
		}
		for _, e := range tn.entities {
			bytes += e.size()
			if !slices.IsSortedFunc(e.attrs, func(x, y attr) int { return strings.Compare(x.name, y.name) }) {
				t.Errorf("attributes of %s out of order", e.id)
			}
		}
		for _, e := range tn.ld {
			bytes += e.size()
		}
		entities += len(tn.entities) + len(tn.ld)
		subs += len(tn.subs)
	}
	for _, n := range b.queue.waiting {
		queued += len(n.body)
	}
	pastBytes, instances, pastEntities := 0, 0, 0
	for _, tn := range b.tenants {
		pastEntities += len(tn.past)
		if len(tn.past) != len(tn.pastIDs) {
			t.Errorf("%d histories, %d in order", len(tn.past), len(tn.pastIDs))
		}
		for _, h := range tn.past {
			for _, track := range h.tracks {
				instances += len(track.instances)
				for i := range track.instances {
					pastBytes += track.instances[i].size()
				}
			}
		}
	}
	if pastBytes != b.pastBytes || pastBytes > b.opts.MaxBytes || instances != len(b.pastQueue) || pastEntities != b.pastEntities {
		t.Errorf("books of the history: %d bytes, %d instances, %d entities; found %d, %d, %d",
			b.pastBytes, len(b.pastQueue), b.pastEntities, pastBytes, instances, pastEntities)
	}
	if bytes != b.bytes || entities != b.stats.Entities || subs != b.stats.Subscriptions || queued != b.queue.bytes {
		t.Errorf("books: %d bytes, %d entities, %d subscriptions, %d queued; found %d, %d, %d, %d",
			b.bytes, b.stats.Entities, b.stats.Subscriptions, b.queue.bytes, bytes, entities, subs, queued)
	}
}

func TestSaysWhatItIs(t *testing.T) {
	b := New(Options{})
	w := do(b, "GET", "/version", "")
	if !strings.Contains(w.Body.String(), forDemo) || !strings.Contains(w.Header().Get("Server"), "demo and test only") || !json.Valid(w.Body.Bytes()) {
		t.Errorf("GET /version: %v %s", w.Header(), w.Body)
	}
}

func TestReads(t *testing.T) {
	b := New(Options{})
	for i, temperature := range []string{"21.123456789123", "9007199254740993", "-0.5"} {
		want(t, b, fmt.Sprintf(`POST /v2/op/update {"actionType":"append","entities":[{"id":"r%d","type":"Room","temperature":{"type":"Number","value":%s,`+
			`"metadata":{"unitCode":{"value":"CEL"},"accuracy":{"value":0.5}}},"at":{"type":"DateTime","value":"2026-01-0%dT00:00:00+01:00"},"o":{"value":{"k":[true,null]}}}]}`,
			i, temperature, i+1), 204, "")
	}
	want(t, b, `POST /v2/op/update {"actionType":"append","entities":[{"id":"d","type":"Door","open":{"value":"yes\u0000no"}}]}`, 204, "")

	want(t, b, `GET /v2/entities/r0`, 200, `{"id":"r0","type":"Room","at":{"type":"DateTime","value":"2025-12-31T23:00:00.000Z","metadata":{}},`+
		`"o":{"type":"StructuredValue","value":{"k":[true,null]},"metadata":{}},"temperature":{"type":"Number","value":21.123456789,`+
		`"metadata":{"accuracy":{"type":"Number","value":0.5},"unitCode":{"type":"Text","value":"CEL"}}}}`)
	want(t, b, `GET /v2/entities?options=keyValues&attrs=temperature&type=Room`, 200,
		`[{"id":"r0","type":"Room","temperature":21.123456789},{"id":"r1","type":"Room","temperature":9007199254740992},{"id":"r2","type":"Room","temperature":-0.5}]`)
	if w := want(t, b, `GET /v2/entities?options=count,values&attrs=temperature,open&limit=2&offset=2`, 200, `[[-0.5],["yes"]]`); w.Header().Get("Fiware-Total-Count") != "4" {
		t.Errorf("count: %v", w.Header())
	}
	for q, ids := range map[string]string{
		"idPattern=^r[01]$": "r0 r1", "id=r2,d": "r2 d", "type=Door,Room&limit=1": "r0", "typePattern=oo": "r0 r1 r2 d",
		"q=temperature>0": "r0 r1", "q=temperature<=-0.5": "r2", "q=open": "d", "q=!open;temperature==-1..30": "r0 r2",
		"q=open==yes,no": "d", "q=open!=yes": "", "q=open~=^y": "d", "q=at>=2026-01-01T00:00:00Z": "r1 r2", "q=o.k": "r0 r1 r2", "q=o.x": "",
		"q=temperature==abc": "", "offset=9": "",
	} {
		w := do(b, "GET", "/v2/entities?"+q, "")
		var got []struct{ ID string }
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Errorf("?%s: %d %s", q, w.Code, w.Body)
		}
		var found []string
		for _, e := range got {
			found = append(found, e.ID)
		}
		if strings.Join(found, " ") != ids {
			t.Errorf("?%s: %v, want %s", q, found, ids)
		}
	}
	for _, q := range []string{"limit=0", "limit=1001", "limit=x", "offset=-1", "id=a&idPattern=b", "idPattern=(", "q=a==", "q==1", "q=!a==1", "q=a~=(", "q=;", "options="} {
		if w := do(b, "GET", "/v2/entities?"+q, ""); w.Code != 400 {
			t.Errorf("?%s: %d %s", q, w.Code, w.Body)
		}
	}
	want(t, b, `GET /v2/entities?georel=near`, 501, `{"error":"NotImplemented","description":"the sandbox broker does not do ?georel"}`)
	want(t, b, `POST /v2/op/query?options=keyValues {"entities":[{"idPattern":"r.","type":"Room"}],"attrs":["temperature"],"expression":{"q":"temperature<0"}}`, 200,
		`[{"id":"r2","type":"Room","temperature":-0.5}]`)
	sound(t, b)
}

func TestEntityCalls(t *testing.T) {
	b := New(Options{})
	for _, step := range []struct {
		call   string
		status int
		body   string
	}{
		{`POST /v2/entities?options=keyValues {"id":"e","type":"T","a":1,"b":"x"}`, 201, ""},
		{`POST /v2/entities/e/attrs {"c":{"value":true}}`, 204, ""},
		{`POST /v2/entities/e/attrs?options=append {"c":{"value":false}}`, 422,
			`{"error":"Unprocessable","description":"one or more of the attributes in the request already exist: e - [ c ]"}`},
		{`GET /v2/entities/e/attrs?options=keyValues`, 200, `{"a":1,"b":"x","c":true}`},
		{`PUT /v2/entities/e/attrs/a {"type":"Number","value":2,"metadata":{"m":{"value":1}}}`, 204, ""},
		{`GET /v2/entities/e/attrs/a`, 200, `{"type":"Number","value":2,"metadata":{"m":{"type":"Number","value":1}}}`},
		{`PUT /v2/entities/e/attrs/a/value Content-Type: text/plain | 3.5`, 204, ""},
		{`GET /v2/entities/e/attrs/a/value`, 200, `3.5`},
		{`PUT /v2/entities/e/attrs/b/value {"k":1}`, 204, ""},
		{`GET /v2/entities/e/attrs/b/value`, 200, `{"k":1}`},
		{`PUT /v2/entities/e/attrs/b/value 3`, 400,
			`{"error":"BadRequest","description":"not a JSON object or array: send a number, a string or a boolean as text/plain"}`},
		{`DELETE /v2/entities/e/attrs/c`, 204, ""},
		{`DELETE /v2/entities/e/attrs/c`, 404, `{"error":"NotFound","description":"The entity does not have such an attribute"}`},
		{`PUT /v2/entities/e/attrs {"z":{"value":null}}`, 204, ""},
		{`GET /v2/entities/e?type=T`, 200, `{"id":"e","type":"T","z":{"type":"None","value":null,"metadata":{}}}`},
		{`GET /v2/entities/e?type=U`, 404, `{"error":"NotFound","description":"The requested entity has not been found. Check type and id"}`},
		{`DELETE /v2/entities/e`, 204, ""},
		{`DELETE /v2/entities/e`, 404, `{"error":"NotFound","description":"The requested entity has not been found. Check type and id"}`},
		{`POST /v2/op/update {"actionType":"append","entities":[{"id":"f","type":"T","a":{"value":1},"b":{"value":2}}]}`, 204, ""},
		{`POST /v2/op/update {"actionType":"delete","entities":[{"id":"f","type":"T","a":{},"c":{}}]}`, 422,
			`{"error":"PartialUpdate","description":"do not exist: f/T - [ c ]"}`},
		{`GET /v2/entities?options=keyValues`, 200, `[{"id":"f","type":"T","b":2}]`},
	} {
		want(t, b, step.call, step.status, step.body)
	}
	sound(t, b)
}

// A batch with one bad character is refused whole; an unknown entity among others
// is not in the others' way.
func TestWhatIsApplied(t *testing.T) {
	b := New(Options{})
	one := `{"id":"good","type":"T","v":{"value":%d}}`
	for i, other := range []string{`{"id":"x","type":"T","v":{"value":"a(b"}}`, `{"id":"x","type":"T","v":{"type":"DateTime","value":"soon"}}`, `{"id":"","type":"T"}`} {
		w := do(b, "POST", "/v2/op/update", `{"actionType":"append","entities":[`+fmt.Sprintf(one, i)+`,`+other+`]}`)
		if got := do(b, "GET", "/v2/entities", "").Body.String(); w.Code != 400 || got != "[]" {
			t.Errorf("%s: %d, and then there is %s", other, w.Code, got)
		}
	}
	do(b, "POST", "/v2/op/update", `{"actionType":"append","entities":[`+fmt.Sprintf(one, 1)+`]}`)
	two := `{"id":"l","type":"T","a":{"type":"geo:point","value":"1,2"},"b":{"type":"geo:point","value":"1,2"}}`
	if w := do(b, "POST", "/v2/op/update", `{"actionType":"append","entities":[`+two+`,`+fmt.Sprintf(one, 2)+`]}`); w.Code != 413 {
		t.Errorf("two locations: %d %s", w.Code, w.Body)
	}
	want(t, b, "GET /v2/entities?options=keyValues", 200, `[{"id":"good","type":"T","v":2}]`)
	do(b, "POST", "/v2/op/update", `{"actionType":"update","entities":[{"id":"none","type":"T"},`+fmt.Sprintf(one, 3)+`]}`)
	want(t, b, "GET /v2/entities?options=keyValues", 200, `[{"id":"good","type":"T","v":3}]`)
}

func TestTenantsAndPaths(t *testing.T) {
	b := New(Options{})
	for _, where := range [][2]string{{"", ""}, {"lab", "/a"}, {"lab", "/a/b"}, {"lab", "/c"}, {"other", "/a"}} {
		headers := []string{"Fiware-Service: " + where[0], "Fiware-ServicePath: " + where[1]}
		id := strings.ReplaceAll(where[0]+where[1], "/", ".")
		if w := do(b, "POST", "/v2/entities", `{"id":"e`+id+`","type":"T"}`, headers...); w.Code != 201 {
			t.Fatal(w.Body)
		}
	}
	for _, c := range []struct{ tenant, path, ids string }{
		{"", "", "e"}, {"lab", "", "elab.a elab.a.b elab.c"}, {"LAB", "/#", "elab.a elab.a.b elab.c"}, {"lab", "/", ""}, {"lab", "/a", "elab.a"},
		{"lab", "/a/#", "elab.a elab.a.b"}, {"lab", "/c,/a/b", "elab.a.b elab.c"}, {"other", "/#", "eother.a"}, {"nobody", "", ""},
	} {
		var got []struct{ ID string }
		w := do(b, "GET", "/v2/entities", "", "Fiware-Service: "+c.tenant, "Fiware-ServicePath: "+c.path)
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(w.Body)
		}
		var ids []string
		for _, e := range got {
			ids = append(ids, e.ID)
		}
		if strings.Join(ids, " ") != c.ids {
			t.Errorf("%s %s: %v, want %s", c.tenant, c.path, ids, c.ids)
		}
	}
	if len(b.tenants) != 3 {
		t.Errorf("%d tenants, want 3: reading makes none", len(b.tenants))
	}
}

func TestOnUpdate(t *testing.T) {
	var got []Update
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var b *Broker
	b = New(Options{Now: func() time.Time { return now }, OnUpdate: func(u Update) {
		b.Stats() // may be asked from within
		got = append(got, u)
	}})
	do(b, "POST", "/v2/op/update", `{"actionType":"append","entities":[{"id":"e","t":{"type":"Number","value":21.50,"metadata":{`+
		`"unitCode":{"value":"CEL"},"TimeInstant":{"type":"DateTime","value":"2026-01-02T00:00:00Z"}}}}]}`, "Fiware-Service: Lab", "Fiware-ServicePath: /a")
	do(b, "POST", "/v2/op/update", `{"actionType":"update","entities":[{"id":"none","t":{"value":1}}]}`)
	do(b, "POST", "/ngsi-ld/v1/entities", `{"id":"urn:ngsi-ld:T:1","type":"T","t":{"type":"Property","value":1.0,"unitCode":"CEL","observedAt":"2026-01-02T00:00:00.000Z"}}`)
	want := []Update{
		{API: "ngsi-v2", Tenant: "lab", ServicePath: "/a", ID: "e", Type: "Thing", At: now, Attrs: []Attr{{"t", "21.5", "CEL", "2026-01-02T00:00:00.000Z"}}},
		{API: "ngsi-ld", ID: "urn:ngsi-ld:T:1", Type: "T", At: now, Attrs: []Attr{{"t", "1.0", "CEL", "2026-01-02T00:00:00.000Z"}}},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
	if s := b.Stats(); s.Updates != 2 || s.Entities != 2 {
		t.Errorf("%+v", s)
	}
}

func TestFull(t *testing.T) {
	b := New(Options{MaxEntities: 3, MaxBytes: 20000, MaxSubscriptions: 1})
	for i := range 5 {
		w := do(b, "POST", "/v2/entities", fmt.Sprintf(`{"id":"e%d","type":"T"}`, i), fmt.Sprint("Fiware-Service: t", i))
		if full := i >= 3; (w.Code == 500) != full {
			t.Errorf("entity %d: %d %s", i, w.Code, w.Body)
		}
	}
	if w := do(b, "POST", "/ngsi-ld/v1/entities", `{"id":"urn:x:1","type":"T"}`); w.Code != 500 {
		t.Errorf("NGSI-LD entity: %d %s", w.Code, w.Body)
	}
	if len(b.tenants) != 3 {
		t.Errorf("%d tenants, want 3: a refused write makes none", len(b.tenants))
	}
	// An entity may not grow for ever either.
	for i := 0; ; i++ {
		w := do(b, "POST", "/v2/entities/e0/attrs", fmt.Sprintf(`{"a%d":{"value":"%s"}}`, i, strings.Repeat("x", 1000)), "Fiware-Service: t0")
		if w.Code == 500 {
			break
		}
		if i > 20 {
			t.Fatal("21 kB are in")
		}
	}
	if w := do(b, "PUT", "/v2/entities/e0/attrs", `{"a0":{"value":"small"}}`, "Fiware-Service: t0"); w.Code != 204 {
		t.Errorf("making it smaller: %d %s", w.Code, w.Body)
	}
	sub := `{"subject":{"entities":[{"idPattern":".*"}]},"notification":{"http":{"url":"http://127.0.0.1:9/"}}}`
	if w := do(b, "POST", "/v2/subscriptions", sub); w.Code != 201 {
		t.Fatal(w.Body)
	}
	if w := do(b, "POST", "/v2/subscriptions", sub); w.Code != 500 {
		t.Errorf("second subscription: %d", w.Code)
	}
	sound(t, b)
	for i := range 3 {
		do(b, "DELETE", fmt.Sprint("/v2/entities/e", i), "", fmt.Sprint("Fiware-Service: t", i))
	}
	if sound(t, b); b.bytes != 0 {
		t.Errorf("%d bytes are kept of nothing", b.bytes)
	}
}

// Bodies made to cost much are refused at once.
func TestHostileBodies(t *testing.T) {
	b := New(Options{})
	manyAttrs := func(attr string) string {
		var s strings.Builder
		for i := range 10000 {
			fmt.Fprintf(&s, `,"a%d":%s`, i, attr)
		}
		return s.String()
	}
	for name, c := range map[string]struct{ target, body, answer string }{
		"brackets":       {"/v2/op/update", strings.Repeat("[", 1000000), "max deep reached"},
		"objects":        {"/v2/op/update", strings.Repeat(`{"a":`, 200000), "max deep reached"},
		"LD brackets":    {"/ngsi-ld/v1/entityOperations/upsert", strings.Repeat("[", 1000000), "nested too deep"},
		"attributes":     {"/v2/entities", `{"id":"e","type":"T"` + manyAttrs(`{}`) + `}`, "at most 1000 attributes"},
		"LD attributes":  {"/ngsi-ld/v1/entities", `{"id":"urn:x:1","type":"T"` + manyAttrs(`{"type":"Property","value":1}`) + `}`, "at most 1000 attributes"},
		"repeated key":   {"/v2/entities", `{"id":"e","type":"T"` + strings.Repeat(`,"a":{}`, 100000) + `}`, ""},
		"unknown action": {"/v2/op/update", `{"actionType":"` + strings.Repeat("x", 1000000) + `"}`, "right ones are"},
		"large pattern":  {"/v2/op/query", `{"entities":[{"idPattern":"((a{100}){100}){100}"}]}`, "Invalid regex"},
	} {
		began := time.Now()
		w := do(b, "POST", c.target, c.body)
		if w.Code != 400 || !strings.Contains(w.Body.String(), c.answer) || time.Since(began) > 5*time.Second {
			t.Errorf("%s: %d %.200s after %v", name, w.Code, w.Body, time.Since(began))
		}
	}
	// Nor does an entity grow without bound by many small requests.
	for i := range 3 {
		attrs := strings.ReplaceAll(manyAttrs(`{}`)[1:9000], `"a`, fmt.Sprintf(`"a%d_`, i))
		do(b, "POST", "/v2/op/update", `{"actionType":"append","entities":[{"id":"g","type":"T",`+attrs[:strings.LastIndex(attrs, ",")]+`}]}`)
	}
	if n := len(b.tenants[""].entities[0].attrs); n > maxAttrs || n < 500 {
		t.Errorf("%d attributes", n)
	}
	if w := do(b, "GET", "/v2/entities?q="+strings.Repeat("a;", 100)+"a", ""); w.Code != 400 {
		t.Errorf("100 terms: %d", w.Code)
	}
	sound(t, b)
}

// pipeListener is a listener in RAM, so that a server can run on a fake clock.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestSlowClientsAreCutOff(t *testing.T) {
	for name, sent := range map[string]string{
		"no header":   "",
		"half header": "POST /v2/op/update HTTP/1.1\r\nHost: x\r\nX",
		"half body":   "POST /v2/op/update HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
				ctx, cancel := context.WithCancel(t.Context())
				served := make(chan error, 1)
				b := New(Options{})
				go func() { served <- b.Serve(ctx, l) }()
				client, server := net.Pipe()
				l.conns <- server
				began := time.Now()
				io.WriteString(client, sent)
				rest, _ := io.ReadAll(client) // ends when the server hangs up
				if took := time.Since(began); took > 35*time.Second {
					t.Errorf("held for %v; answer %q", took, rest)
				}
				if b.Stats().Entities != 0 {
					t.Error("half a body was applied")
				}
				cancel()
				if err := <-served; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestServeLimits(t *testing.T) {
	b, address := start(t, Options{MaxConns: 2})
	ask := func(c net.Conn) error {
		io.WriteString(c, "GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	var conns []net.Conn
	for i := range 3 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
		if err := ask(c); (err != nil) != (i == 2) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	conns[0].Close()
	waitFor(t, func() bool {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return false
		}
		defer c.Close()
		return ask(c) == nil
	})
	_ = b
}

func TestServeReportsALostListener(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := New(Options{}).Serve(t.Context(), ln); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
}

// Many clients at once: meant for the race detector.
func TestConcurrent(t *testing.T) {
	b, address := start(t, Options{MaxQueue: 10})
	sub := newSubscriber(t)
	do(b, "POST", "/v2/subscriptions", `{"subject":{"entities":[{"idPattern":".*"}]},"notification":{"http":{"url":"`+sub.URL+`"}}}`)
	var wg sync.WaitGroup
	for client := range 4 {
		wg.Go(func() {
			c := &http.Client{Transport: &http.Transport{}}
			defer c.CloseIdleConnections()
			for i := range 20 {
				body := fmt.Sprintf(`{"actionType":"append","entities":[{"id":"e%d","type":"T","v":{"value":%d}}]}`, client%2, i)
				resp, err := c.Post("http://"+address+"/v2/op/update", "application/json", strings.NewReader(body))
				if err != nil || resp.StatusCode != 204 {
					t.Errorf("%v %v", resp, err)
					return
				}
				resp.Body.Close()
				for _, path := range []string{"/v2/entities", "/v2/subscriptions", "/version"} {
					if resp, err = c.Get("http://" + address + path); err != nil {
						t.Error(err)
						return
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}
		})
	}
	wg.Wait()
	sub.take(t, b)
	sound(t, b)
}

func TestJSON(t *testing.T) {
	for text, want := range map[string]string{
		`"\ud83d\ude00\u00e9\/\b\f\n\r\t\"\\"`:       `"😀é/\b\f\n\r\t\"\\"`,
		`"\u001f` + "\x7f\xff" + `"`:                 `"\u001f` + "\x7f\xff" + `"`,
		` { "b" : 1.50 , "a" : [ ] , "b" : -0e-1 } `: `{"b":1.50,"a":[],"b":-0e-1}`,
		`"\ud83d"`: "", `"\ude00\ude00"`: "", `"\ud83d\u0041"`: "", `"\ud83dx"`: "", `"\u12g4"`: "", `"\x"`: "", `"\`: "", `"`: "",
		"\"\x01\"": "", "\"\n\"": "", "01": "", "1.": "", ".5": "", "-": "", "1e": "", "1e400": "", "+1": "", "NaN": "", "tru": "", "nul": "",
		"[1,]": "", "[1 2]": "", `{"a"}`: "", `{"a":1,}`: "", `{a:1}`: "", "": "", "1 1": "", "\ufeff1": "", "\v1": "",
	} {
		v, err := parseJSON([]byte(text))
		if got := ""; err == nil {
			if got = string(appendJSON(nil, v, false)); got != want {
				t.Errorf("%q: %q, want %q", text, got, want)
			}
		} else if want != "" {
			t.Errorf("%q: %v", text, err)
		}
	}
	for text, want := range map[string]string{"1.0": "1", "-0.0": "0", "21.1": "21.1", "21.100000381469727": "21.100000381", "9007199254740993": "9007199254740992", "1e-10": "0", "1e2": "100"} {
		if got := string(appendJSON(nil, number(text), true)); got != want {
			t.Errorf("%s as Orion: %s, want %s", text, got, want)
		}
	}
}

// What the parser takes is JSON, and what it writes of it reads the same again.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{`{"a":[1,-0.5e3,true,null,"x\u00e9\ud83d\ude00\n"]}`, `"\ud800"`, `1e400`, "\"\xff\"", `[[[]]]`, `{"a":1,"a":2}`, `01`, `1.`, `+1`, `NaN`, `"a\u0000b"`, ` [ ] `, `{"a":}`, `tru`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		v, err := parseJSON(text)
		if err != nil {
			return
		}
		if !json.Valid(text) {
			t.Fatalf("taken though it is not JSON: %q", text)
		}
		out := appendJSON(nil, v, false)
		again, err := parseJSON(out)
		if err != nil || string(appendJSON(nil, again, false)) != string(out) {
			t.Fatalf("%q became %q: %v", text, out, err)
		}
		if orion := appendJSON(nil, v, true); !json.Valid(orion) {
			t.Fatalf("%q became %q for NGSIv2", text, orion)
		}
	})
}

// No body makes the broker panic, lose count, or answer what is not JSON.
func FuzzUpdate(f *testing.F) {
	f.Add([]byte(`{"actionType":"append","entities":[{"id":"a","type":"T","x":{"type":"DateTime","value":"2026-01-02T03:04:05.1Z","metadata":{"m":{"value":1}}},"l":{"type":"geo:point","value":"1,2"}}]}`), false)
	f.Add([]byte(`{"actionType":"update","entities":[{"id":"a","type":"T","x":{}}]}`), false)
	f.Add([]byte(`{"actionType":"delete","entities":[{"id":"a","type":"T","x":{}},{"id":"a"}]}`), false)
	f.Add([]byte(`{"actionType":"replace","entities":[{"id":"a","l":{"type":"geo:json","value":{"type":"FeatureCollection","features":3}}}]}`), false)
	f.Add([]byte(`{"actionType":"appendStrict","entities":[{"id":"a","x":1,"y":{"a":[]}}]}`), true)
	f.Fuzz(func(t *testing.T, text []byte, keyValues bool) {
		b := New(Options{})
		do(b, "POST", "/v2/op/update", `{"actionType":"append","entities":[{"id":"a","type":"T","x":{"value":1}}]}`)
		target := "/v2/op/update"
		if keyValues {
			target += "?options=keyValues"
		}
		w := do(b, "POST", target, string(text))
		if w.Code != 204 && (w.Code < 400 || w.Code >= 500 || utf8.Valid(text) && !json.Valid(w.Body.Bytes())) {
			t.Fatalf("%q: %d %s", text, w.Code, w.Body)
		}
		if w := do(b, "GET", "/v2/entities?limit=1000", ""); w.Code != 200 || !json.Valid(w.Body.Bytes()) {
			t.Fatalf("after %q: %d %s", text, w.Code, w.Body)
		}
		sound(t, b)
	})
}

func FuzzLD(f *testing.F) {
	f.Add([]byte(`[{"id":"urn:a:1","type":"T","x":{"type":"Property","value":1,"observedAt":"2026-01-02T03:04:05Z"},"l":{"type":"GeoProperty","value":{"type":"Point","coordinates":[1,2]}}}]`), "upsert")
	f.Add([]byte(`["urn:a:1",2]`), "delete")
	f.Add([]byte(`[{"id":"urn:a:1","type":["T",3],"x":[{"type":"Relationship","object":["urn:x:1"],"datasetId":"urn:d:1"}]}]`), "create")
	f.Add([]byte(`{"type":"Subscription","entities":[{"type":"T"}],"notification":{"endpoint":{"uri":"http://127.0.0.1:9"}}}`), "subscription")
	f.Add([]byte(`{"id":"urn:a:1","type":"T","x":[{"type":"Property","value":1,"observedAt":"2026-01-02T03:04:05Z"},{"type":"Property","value":1}]}`), "temporal")
	f.Add([]byte(`{"type":"Query","entities":[{"type":"T","idPattern":"a"}],"attrs":["y"],"q":"y>0"}`), "query")
	f.Fuzz(func(t *testing.T, text []byte, operation string) {
		b := New(Options{})
		do(b, "POST", "/ngsi-ld/v1/entities", `{"id":"urn:a:1","type":"T","y":{"type":"Property","value":1}}`)
		target := "/ngsi-ld/v1/entityOperations/upsert?options=update"
		switch operation {
		case "create", "update", "delete":
			target = "/ngsi-ld/v1/entityOperations/" + operation
		case "subscription":
			target = "/ngsi-ld/v1/subscriptions"
		case "temporal":
			target = "/ngsi-ld/v1/temporal/entities"
		case "query":
			target = "/ngsi-ld/v1/entityOperations/query"
		}
		w := do(b, "POST", target, string(text))
		if w.Code < 200 || w.Code >= 500 {
			t.Fatalf("%q: %d %s", text, w.Code, w.Body)
		}
		for _, path := range []string{"entities?local=true&options=sysAttrs", "entities?type=T&options=keyValues", "subscriptions",
			"temporal/entities?type=T&timerel=after&timeAt=1970-01-01T00:00:00Z"} {
			if w := do(b, "GET", "/ngsi-ld/v1/"+path, ""); w.Code != 200 || !json.Valid(w.Body.Bytes()) {
				t.Fatalf("after %q: %d %s", text, w.Code, w.Body)
			}
		}
		sound(t, b)
	})
}
