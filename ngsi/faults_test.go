package ngsi

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"campus-gateway"
	"campus-gateway/ngsi/sandbox"
)

// The fault table of broker and network: TestD1 to TestD14 run the real Forwarder and
// Sink against a broker with that fault, over connections in memory, and hold what
// the broker was told against a ledger of what was sensed. Some numbers have more
// tests, of the Sink alone:
//
//	D2  TestTooLarge, TestReset, TestHistoryLarge
//	D3  TestRetryAfter
//	D4  TestPoison, TestPartly, TestHistoryPoison
//	D5  TestD5…, in token_test.go
//	D6  TestSlow, TestHuge
//	D9  TestD9…, in token_test.go
//	D10 TestD10…, in tls_test.go

// ledger is what was sensed, and what a broker was told of it.
type ledger struct {
	mu      sync.Mutex
	sensed  map[string]map[int64]float64 // value by time in milliseconds, by entity
	total   int
	applied map[string][]told // what became an entity's state, in this order

}

type told struct {
	at   int64
	v    float64
	when time.Time
}

func newLedger() *ledger {
	return &ledger{sensed: map[string]map[int64]float64{}, applied: map[string][]told{}}
}

// sense notes a reading of an entity.
func (l *ledger) sense(id string, r gateway.Reading) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sensed[id] == nil {
		l.sensed[id] = map[int64]float64{}
	}
	l.sensed[id][r.At.Wall.UnixMilli()] = r.Values[0].V.(float64)
	l.total++
}

// update is a sandbox's OnUpdate.
func (l *ledger) update(u sandbox.Update) {
	for _, a := range u.Attrs {
		if a.Name != "temperature" {
			continue
		}
		var s told
		at, err := time.Parse(time.RFC3339Nano, a.Time)
		if err != nil || json.Unmarshal([]byte(a.Value), &s.v) != nil {
			s.v = -1 // wrong
		}
		s.at, s.when = at.UnixMilli(), time.Now()
		l.mu.Lock()
		l.applied[u.ID] = append(l.applied[u.ID], s)
		l.mu.Unlock()
	}
}

// tally is a ledger held against a broker.
type tally struct{ total, lost, twice, back, wrong int }

func (c tally) String() string {
	return fmt.Sprintf("of %d readings %d lost, %d duplicated, %d out of order, %d wrong", c.total, c.lost, c.twice, c.back, c.wrong)
}

// count holds the ledger against the states, and against the history if there is one.
func (l *ledger) count(history map[string][]told) tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := tally{total: l.total}
	seen := map[string]map[int64]int{}
	note := func(id string, s told) {
		if seen[id] == nil {
			seen[id] = map[int64]int{}
		}
		seen[id][s.at]++
		if v, ok := l.sensed[id][s.at]; !ok || v != s.v {
			c.wrong++
		}
	}
	for id, states := range l.applied {
		newest, twice := int64(0), map[int64]bool{}
		for _, s := range states {
			if s.at < newest {
				c.back++
			}
			newest = max(newest, s.at)
			if history == nil || twice[s.at] {
				note(id, s)
			}
			twice[s.at] = true
		}
	}
	for id, states := range history { // in which each state is
		for _, s := range states {
			note(id, s)
		}
	}
	for id, all := range l.sensed {
		for at := range all {
			switch n := seen[id][at]; {
			case n == 0:
				c.lost++
			case n > 1:
				c.twice += n - 1
			}
		}
	}
	return c
}

// historyOf asks the broker for its history of temperatures.
func historyOf(t *testing.T, h http.Handler) map[string][]told {
	t.Helper()
	all := map[string][]told{}
	for offset := 0; ; offset += 100 {
		r, _ := http.NewRequest("GET", fmt.Sprintf("/ngsi-ld/v1/temporal/entities?attrs=temperature&timerel=after&timeAt=1970-01-01T00:00:00Z&limit=100&offset=%d", offset), nil)
		w := &record{header: http.Header{}}
		h.ServeHTTP(w, r)
		var es []struct {
			ID          string
			Temperature []struct {
				Value      float64
				ObservedAt time.Time
			}
		}
		if err := json.Unmarshal(w.body, &es); err != nil {
			t.Fatalf("%.200s: %v", w.body, err)
		}
		for _, e := range es {
			for _, in := range e.Temperature {
				all[e.ID] = append(all[e.ID], told{at: in.ObservedAt.UnixMilli(), v: in.Value})
			}
		}
		if len(es) < 100 {
			return all
		}
	}
}

// ram is a queue in memory.
type ram struct {
	mu       sync.Mutex
	rs, gone []gateway.Reading // not acknowledged, and acknowledged
	first    uint64
	rejected []string // sensor: why
	ready    chan struct{}
}

func (q *ram) Put(rs ...gateway.Reading) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rs = append(q.rs, rs...)
	select {
	case q.ready <- struct{}{}:
	default:
	}
	return nil
}
func (q *ram) Bounds() (first, end uint64, anew bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.first, q.first + uint64(len(q.rs)), false
}
func (q *ram) Read(from uint64, max int) ([]gateway.Reading, uint64, uint64, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	rs := q.rs[from-q.first:]
	n := min(max, len(rs))
	return rs[:n:n], from, from + uint64(n), nil
}
func (q *ram) Hold(before, from, to uint64) {}
func (q *ram) Ack(end uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gone = append(q.gone, q.rs[:end-q.first]...)
	q.rs, q.first = q.rs[end-q.first:], end
}

// forget forgets the last n acknowledgements, as a crash before a commit does.
func (q *ram) forget(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = min(n, len(q.gone))
	q.rs = append(slices.Clone(q.gone[len(q.gone)-n:]), q.rs...)
	q.gone = q.gone[:len(q.gone)-n]
	q.first -= uint64(n)
}
func (q *ram) Reject(rs []gateway.Reading, why string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, r := range rs {
		q.rejected = append(q.rejected, r.Sensor+": "+why)
	}
	return nil
}
func (q *ram) Ready() <-chan struct{} { return q.ready }
func (q *ram) Depth() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.rs)
}

// lan is a network in memory, with one server on it that can be away.
type lan struct {
	pipes
	cut func(net.Conn) net.Conn // what a client's connection goes through; nil: nothing

	mu       sync.Mutex
	away     bool
	open     map[net.Conn]bool // the server's ends
	accepted []time.Time
}

// serve begins to answer by h, until the test ends.
func serve(t *testing.T, h http.Handler) *lan {
	w := &lan{pipes: pipes{conns: make(chan net.Conn), closed: make(chan struct{})}, open: map[net.Conn]bool{}}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(w) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
		time.Sleep(2 * time.Second) // in a bubble: until all who answer have seen it
	})
	return w
}

func (w *lan) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	a, z := net.Pipe()
	select {
	case w.conns <- z:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	w.open[z] = true
	w.accepted = append(w.accepted, time.Now())
	if w.cut != nil {
		return w.cut(a), nil
	}
	return a, nil
}

// leave has the server go, with all connections cut, and be back or not.
func (w *lan) leave(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.open {
		c.Close()
	}
	clear(w.open)
	w.away = away
}

func (w *lan) back() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away = false
}

// front stands before a broker and has its faults.
type front struct {
	broker http.Handler

	mu    sync.Mutex
	fault func(w http.ResponseWriter, r *http.Request, body []byte) (done bool) // answers itself, or not
	asked []asking
}

type asking struct {
	at     time.Time
	method string
	size   int
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	f.mu.Lock()
	f.asked = append(f.asked, asking{time.Now(), r.Method, len(body)})
	fault := f.fault
	f.mu.Unlock()
	if err != nil || fault != nil && fault(w, r, body) {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	f.broker.ServeHTTP(w, r)
}

func (f *front) set(fault func(w http.ResponseWriter, r *http.Request, body []byte) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// writes are when readings were sent.
func (f *front) writes() (at []time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.asked {
		if a.method == http.MethodPost {
			at = append(at, a.at)
		}
	}
	return at
}

// world is a gateway with some sensors, and a broker.
type world struct {
	*ledger
	t       *testing.T
	cfg     Config
	broker  *sandbox.Broker
	front   *front
	lan     *lan
	m       *Mapper
	sensors []string
	sink    *Sink
	queue   interface {
		gateway.Queue
		Put(...gateway.Reading) error
	}
	f    *gateway.Forwarder
	stop func()
	n    int
}

func newWorld(t *testing.T, cfg Config, sensors int, o sandbox.Options) *world {
	t.Helper()
	w := newBroker(t, cfg, sensors, o)
	w.lan = serve(t, w.front)
	w.connect()
	return w
}

// newBroker is a world without a network.
func newBroker(t *testing.T, cfg Config, sensors int, o sandbox.Options) *world {
	w := &world{t: t, ledger: newLedger(), cfg: cfg, queue: &ram{ready: make(chan struct{}, 1), first: 1}, stop: func() {}}
	o.OnUpdate = w.update
	w.broker = sandbox.New(o)
	w.front = &front{broker: w.broker}
	m, rs := many(sensors)
	w.m = m
	for _, r := range rs {
		w.sensors = append(w.sensors, r.Sensor)
	}
	return w
}

// connect makes the Sink, as a process that starts does.
func (w *world) connect() {
	w.t.Helper()
	if w.cfg.URL == "" {
		w.cfg.URL = "http://broker.test:1026"
	}
	var err error
	if w.sink, err = New(w.cfg, w.m); err != nil {
		w.t.Fatal(err)
	}
	w.sink.client.Transport.(*http.Transport).DialContext = (&line{dial: w.lan.dial}).connect
	w.t.Cleanup(w.sink.client.CloseIdleConnections)
}

// start begins to forward, until stop is called.
func (w *world) start() {
	w.begin()
	synctest.Wait() // it has seen what there is
}

// begin is start outside of a bubble.
func (w *world) begin() {
	if w.f == nil {
		w.f = &gateway.Forwarder{}
	}
	f := w.f
	f.Queue, f.Sink = w.queue, w.sink
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	w.stop = func() { cancel(); <-done }
}

// sense has sensors tell something now.
func (w *world) sense(sensors ...string) {
	w.t.Helper()
	var rs []gateway.Reading
	for _, s := range sensors {
		w.n++
		r := reading(s, num(gateway.Temperature, float64(w.n%1000)/10))
		r.At.Wall = time.Now()
		rs = append(rs, r)
	}
	if err := w.queue.Put(rs...); err != nil {
		w.t.Error(err)
	}
	for _, r := range rs {
		w.ledger.sense(w.sink.Key(r.Sensor), r)
	}
}

// sensing has all sensors tell something every so often, for so long.
func (w *world) sensing(every, long time.Duration) {
	for begun := time.Now(); time.Since(begun) < long; time.Sleep(every) {
		w.sense(w.sensors...)
	}
}

// end waits until everything has been sent, for so long, and holds the ledger
// against the broker.
func (w *world) end(long time.Duration) tally {
	w.t.Helper()
	for begun := time.Now(); w.queue.Depth() > 0; time.Sleep(100 * time.Millisecond) {
		if time.Since(begun) > long {
			w.t.Errorf("after %v, %d readings wait: %s", long, w.queue.Depth(), w.f.Stats().Why)
			break
		}
	}
	w.stop()
	var history map[string][]told
	if _, ok := w.sink.History(); ok {
		history = historyOf(w.t, w.broker)
	}
	w.sink.Close()
	return w.count(history)
}

// clean wants nothing lost, duplicated, out of order or wrong.
func (w *world) clean(long time.Duration) {
	w.t.Helper()
	if c := w.end(long); c != (tally{total: c.total}) || c.total == 0 {
		w.t.Errorf("%v", c)
	}
}

// bubbles runs f in a bubble for each API.
func bubbles(t *testing.T, name string, f func(t *testing.T, api string)) {
	for _, api := range apis {
		t.Run(strings.TrimSpace(api+" "+name), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, api) })
		})
	}
}

// says is a fault of a broker that answers so to all, or to all that is written.
func says(status int, contentType, text string, reads bool) func(http.ResponseWriter, *http.Request, []byte) bool {
	return func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.Method == http.MethodGet && !reads {
			return false
		}
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
		return true
	}
}

// D1: a broker that fails for an hour is tried 90 times at most, and nothing is lost.
func TestD1(t *testing.T) {
	hours, tries := 0, 0
	for _, status := range []int{500, 502, 503} {
		for _, reads := range []bool{true, false} { // Orion without its database answers questions
			bubbles(t, fmt.Sprint(status, " ", reads), func(t *testing.T, api string) {
				w := newWorld(t, Config{API: api}, 3, sandbox.Options{})
				w.front.set(says(status, "text/html", "<html>Bad Gateway</html>", reads))
				w.start()
				w.sensing(10*time.Second, time.Hour)
				n := int(w.f.Stats().Failures)
				hours, tries = hours+1, tries+n
				// Each wait is drawn: an hour has 75 ± 2.
				if n > 90 || n < 60 {
					t.Errorf("%d tries in an hour", n)
				}
				w.front.set(nil)
				w.clean(5 * time.Minute)
			})
		}
	}
	t.Logf("%d tries in %d hours", tries, hours)
}

// D2: a broker that takes 100 KB at a time is found out in three tries; a reading that
// is larger than that by itself is set aside.
func TestD2(t *testing.T) {
	const limit = 100_000 // the most that goes in one request here is 200 KB
	bubbles(t, "", func(t *testing.T, api string) {
		w := newWorld(t, Config{API: api}, 1500, sandbox.Options{})
		w.m.things["s0700"] = NewMapper("gw", []Thing{{Name: "s0700", Location: &settat, EntityID: strings.Repeat("x", 200),
			Quantities: []gateway.Quantity{gateway.Temperature}}}).things["s0700"]
		huge := w.sink.Key("s0700")
		w.front.set(func(rw http.ResponseWriter, r *http.Request, body []byte) bool {
			if alone := strings.Contains(string(body), huge); !alone && len(body) <= limit || strings.Contains(r.URL.Path, "query") {
				return false
			}
			return says(413, jsonType, `{"error":"RequestEntityTooLarge","description":"payload size: too much"}`, true)(rw, r, nil)
		})
		w.f = &gateway.Forwarder{Target: -1, Batch: 1500, Lanes: 1}
		w.start()
		for range 3 {
			w.sense(w.sensors...)
			time.Sleep(time.Minute)
		}
		c := w.end(time.Minute)
		q := w.queue.(*ram)
		if c != (tally{total: 4500, lost: 3}) || len(q.rejected) != 3 || !strings.Contains(q.rejected[0], "s0700: ") || !strings.Contains(q.rejected[0], "payload size") {
			t.Errorf("%v; %d rejects: %.300q", c, len(q.rejected), q.rejected)
		}
		large := 0
		for _, a := range w.front.asked {
			if a.size > limit {
				large++
			}
		}
		if large > 3 || large == 0 {
			t.Errorf("%d requests were too large", large)
		}
	})
}

// D3: a broker that asks for a pause is given it, in seconds and until a date, and ten
// minutes at most.
func TestD3(t *testing.T) {
	for name, c := range map[string]struct {
		header func() string
		want   time.Duration
	}{
		"seconds": {func() string { return "77" }, 77 * time.Second},
		"date":    {func() string { return time.Now().Add(90 * time.Second).UTC().Format(http.TimeFormat) }, 90 * time.Second},
		"absurd":  {func() string { return "99999999999999" }, 10 * time.Minute},
		"2099":    {func() string { return "Sat, 01 Jan 2099 00:00:00 GMT" }, 10 * time.Minute},
	} {
		for _, reads := range []bool{true, false} {
			bubbles(t, fmt.Sprint(name, " ", reads), func(t *testing.T, api string) {
				w := newWorld(t, Config{API: api}, 2, sandbox.Options{})
				var tries []time.Time
				w.front.set(func(rw http.ResponseWriter, r *http.Request, body []byte) bool {
					if r.Method == http.MethodGet && !reads {
						return false
					}
					if n := len(tries); n == 0 || !tries[n-1].Equal(time.Now()) {
						tries = append(tries, time.Now())
					}
					if len(tries) >= 4 {
						return false
					}
					rw.Header().Set("Retry-After", c.header())
					return says(429, "text/plain", "slow down", true)(rw, r, body)
				})
				w.start()
				w.sensing(30*time.Second, 5*c.want)
				w.clean(time.Minute)
				if len(tries) < 4 {
					t.Fatalf("%d tries", len(tries))
				}
				for i := 1; i < 4; i++ {
					// A date has no parts of a second, and the pause is stretched by up to 6 s.
					if gap := tries[i].Sub(tries[i-1]); gap < c.want-time.Second || gap > c.want+7*time.Second {
						t.Errorf("%v between tries, want %v", gap, c.want)
					}
				}
			})
		}
	}
}

// D4: of 200 entities one is refused for ever, in words of the broker: it alone is set
// aside, and the others arrive in order.
func TestD4(t *testing.T) {
	const words = "attribute value of Tuesday"
	for _, status := range []int{400, 422, 207} {
		bubbles(t, fmt.Sprint(status), func(t *testing.T, api string) {
			if status == 207 && api == "ngsi-v2" {
				t.Skip("it has no such answer")
			}
			w := newWorld(t, Config{API: api}, 200, sandbox.Options{})
			guilty := w.sink.Key("s0123")
			requests := 0
			w.front.set(func(rw http.ResponseWriter, r *http.Request, body []byte) bool {
				requests++
				if !strings.Contains(string(body), `"`+guilty+`"`) || strings.Contains(r.URL.Path, "query") {
					return false
				}
				if status != 207 {
					return says(status, jsonType, `{"type":"https://uri.etsi.org/ngsi-ld/errors/BadRequestData","title":"no","error":"BadRequest","description":"`+words+`","detail":"`+words+`"}`, true)(rw, r, body)
				}
				var es, rest []json.RawMessage
				_ = json.Unmarshal(body, &es)
				var taken []string
				for i, id := range ids(body) {
					if id != guilty {
						rest, taken = append(rest, es[i]), append(taken, id)
					}
				}
				if len(rest) > 0 {
					text, _ := json.Marshal(rest)
					apply, _ := http.NewRequest(r.Method, r.URL.String(), bytes.NewReader(text))
					apply.Header = r.Header
					w.broker.ServeHTTP(&record{header: http.Header{}}, apply)
				}
				success, _ := json.Marshal(taken)
				return says(207, jsonType, fmt.Sprintf(`{"success":%s,"errors":[{"entityId":%q,"error":{"status":400,"title":"no","detail":%q}}]}`, success, guilty, words), true)(rw, r, body)
			})
			w.f = &gateway.Forwarder{Target: -1}
			w.start()
			for range 5 {
				w.sense(w.sensors...)
				time.Sleep(time.Minute)
			}
			c := w.end(time.Minute)
			q := w.queue.(*ram)
			if c != (tally{total: 1000, lost: 5}) || len(q.rejected) != 5 {
				t.Errorf("%v; rejects: %q", c, q.rejected)
			}
			for _, r := range q.rejected {
				if !strings.HasPrefix(r, "s0123: ") || !strings.Contains(r, words) {
					t.Errorf("reject %q", r)
				}
			}
			if requests > 5*20+10 { // 2 log2 of 200 for each, the Devices, what it is
				t.Errorf("%d requests", requests)
			}
			if s := w.f.Stats(); s.Failures > 0 {
				t.Errorf("%d failures: %s", s.Failures, s.Why)
			}
		})
	}
}

// D5: while readings are drained in lanes, tokens are withdrawn again and again, and
// the token server is slow, then down, then talks nonsense, then refuses: each expiry
// costs one refresh, and nothing is lost.
func TestD5(t *testing.T) {
	bubbles(t, "", func(t *testing.T, api string) {
		var trouble atomic.Value
		trouble.Store("")
		var asked atomic.Int32
		k := &keyrock{expires: "3600", ask: func(rw http.ResponseWriter, n int, _ url.Values) bool {
			asked.Add(1)
			switch trouble.Load() {
			case "slow":
				time.Sleep(5 * time.Second)
			case "down":
				rw.WriteHeader(503)
				return true
			case "garbage":
				_, _ = io.WriteString(rw, "<html>")
				return true
			case "refuses":
				rw.WriteHeader(401)
				return true
			}
			return false
		}}
		auth := newAuth(t, k, OAuth2{})
		w := newWorld(t, Config{API: api, Auth: auth}, 20, sandbox.Options{NoHistory: true})
		w.front.broker = k.guard(w.front.broker)
		slow := w.front.broker
		w.front.broker = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			time.Sleep(100 * time.Millisecond)
			slow.ServeHTTP(rw, r)
		})
		for range 200 {
			w.sense(w.sensors...)
			time.Sleep(time.Second)
		}
		w.f = &gateway.Forwarder{Target: -1, Batch: 20, Lanes: 8}
		w.start()
		for i := range 10 {
			time.Sleep(time.Second)
			k.withdraw()
			time.Sleep(200 * time.Millisecond)
			if n := int(asked.Load()); n > i+2 {
				t.Errorf("%d tokens asked for in %d expiries", n, i+1)
			}
		}
		for _, what := range []string{"slow", "down", "garbage", "refuses"} {
			trouble.Store(what)
			k.withdraw()
			w.sensing(time.Second, 5*time.Minute)
			n := asked.Load()
			trouble.Store("")
			w.sensing(time.Second, 2*time.Minute)
			t.Logf("%d tokens asked for so far", n)
		}
		w.clean(10 * time.Minute)
		if n := asked.Load(); n > 100 {
			t.Errorf("%d tokens asked for", n)
		}
	})
}

// counted counts what a client reads of an answer.
type counted struct {
	net.Conn
	n, most *atomic.Int64 // since the last request; of any
}

func (c counted) Write(b []byte) (int, error) {
	if bytes.HasPrefix(b, []byte("POST /")) || bytes.HasPrefix(b, []byte("GET /")) {
		c.n.Store(0)
	}
	return c.Conn.Write(b)
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.most.Store(max(c.most.Load(), c.n.Add(int64(n))))
	return n, err
}

// D6: answers that drip, do not end, have a gigabyte or unfold to one are given up
// after 30 s and 1 MiB, and are no acknowledgement; only what the broker is asked for
// may have 4 MiB.
func TestD6(t *testing.T) {
	var folded bytes.Buffer
	z := gzip.NewWriter(&folded)
	_, _ = z.Write(make([]byte, 64<<20))
	z.Close()
	endless := func(w http.ResponseWriter, text []byte) {
		for {
			if _, err := w.Write(text); err != nil {
				return
			}
		}
	}
	blanks := bytes.Repeat([]byte(" "), 32<<10)
	for name, answers := range map[string]func(w http.ResponseWriter, r *http.Request){
		"drips": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = io.WriteString(w, " ")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(time.Second)
			}
		},
		"drips its head": func(w http.ResponseWriter, _ *http.Request) {
			c, _, _ := w.(http.Hijacker).Hijack()
			defer c.Close()
			for _, b := range []byte("HTTP/1.1 204 No Content\r\nX: " + strings.Repeat("x", 100)) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
		"endless head": func(w http.ResponseWriter, _ *http.Request) {
			c, _, _ := w.(http.Hijacker).Hijack()
			defer c.Close()
			_, err := c.Write([]byte("HTTP/1.1 204 No Content\r\nX: "))
			for err == nil {
				_, err = c.Write(blanks)
			}
		},
		"endless": func(w http.ResponseWriter, _ *http.Request) { endless(w, blanks) },
		"a gigabyte": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1073741824")
			endless(w, blanks)
		},
		"unfolds": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(folded.Bytes())
		},
		"a list": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(207); endless(w, blanks) },
		"JSON": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", jsonType)
			_, _ = io.WriteString(w, "[")
			endless(w, blanks)
		},
	} {
		bubbles(t, name, func(t *testing.T, api string) {
			w := newWorld(t, Config{API: api}, 5, sandbox.Options{})
			var most atomic.Int64
			w.lan.cut = func(c net.Conn) net.Conn {
				return counted{c, new(atomic.Int64), &most}
			}
			w.start()
			w.sensing(10*time.Second, time.Minute)
			var longest atomic.Int64
			var questions atomic.Bool // of what the broker holds
			w.front.set(func(rw http.ResponseWriter, r *http.Request, _ []byte) bool {
				begun := time.Now()
				if strings.Contains(r.URL.Path, "query") || strings.HasSuffix(r.URL.Path, "/entities") {
					questions.Store(true)
				}
				took := func() { longest.Store(max(longest.Load(), int64(time.Since(begun)))) }
				gone := context.AfterFunc(r.Context(), took)
				defer gone()
				answers(rw, r)
				took()
				return true
			})
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			w.sensing(10*time.Second, 10*time.Minute)
			synctest.Wait()
			runtime.ReadMemStats(&after)
			failures := int64(w.f.Stats().Failures)
			grown := int64(after.TotalAlloc-before.TotalAlloc) / max(1, failures)
			runtime.GC()
			runtime.ReadMemStats(&after)
			held := int64(after.HeapAlloc) - int64(before.HeapAlloc)
			limit := int64(1<<20 + 64<<10)
			if name == "JSON" && questions.Load() {
				limit += 3 << 20
			}
			t.Logf("%d failures, at most %d bytes read, %v long, %d KB allocated in a try, %d KB kept", failures, most.Load(), time.Duration(longest.Load()), grown>>10, held>>10)
			if failures < 5 || longest.Load() > int64(31*time.Second) || most.Load() > limit || held > 1<<20 {
				t.Errorf("%d failures, %d bytes read, %v long, %d bytes kept", failures, most.Load(), time.Duration(longest.Load()), held)
			}
			if w.f.Stats().Down.IsZero() {
				t.Error("it is taken for an acknowledgement")
			}
			w.front.set(nil)
			w.clean(5 * time.Minute)
		})
	}
}

// broken is a client's connection that breaks when so many bytes of requests, or of
// answers, have passed since the first reading was sent.
type broken struct {
	net.Conn
	request, silent bool // which way; whether nobody is told

	mu     sync.Mutex
	armed  bool
	left   int
	broken chan struct{}
}

func (c *broken) pass(b []byte, request bool) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = c.armed || request && (bytes.HasPrefix(b, []byte("POST /v2/op/update")) || bytes.HasPrefix(b, []byte("POST /ngsi-ld/v1/entityOp")))
	if !c.armed || c.request != request {
		return b
	}
	n := min(c.left, len(b))
	if c.left -= n; n < len(b) {
		select {
		case <-c.broken:
		default:
			close(c.broken)
			if !c.silent && !request {
				c.Conn.Close()
			}
		}
	}
	return b[:n]
}

func (c *broken) over() bool {
	select {
	case <-c.broken:
		return true
	default:
		return false
	}
}

var errReset = &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}

func (c *broken) Write(b []byte) (int, error) {
	part := c.pass(b, true)
	var n int
	if len(part) > 0 {
		var err error
		if n, err = c.Conn.Write(part); err != nil && !c.over() {
			return n, err
		}
	}
	if c.over() && !c.silent {
		if c.request {
			c.Conn.Close()
		}
		return n, errReset
	}
	return len(b), nil
}

func (c *broken) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		part := c.pass(b[:n], false)
		if len(part) > 0 || !c.over() {
			return len(part), err
		}
		if !c.silent {
			return 0, errReset
		}
		if err != nil {
			return 0, err
		}
	}
}

// D7: a connection that breaks at any byte of a request or of an answer, told by a
// reset or never told, is noticed within 30 s; nothing is lost or taken twice.
func TestD7(t *testing.T) {
	wire, twice, readings := 0, 0, 0
	for _, silent := range []bool{false, true} {
		for _, request := range []bool{true, false} {
			bubbles(t, fmt.Sprint("request ", request, " silent ", silent), func(t *testing.T, api string) {
				step := 50
				if raceDetector {
					step = 500
				}
				for at := 0; at <= 2000; at += step {
					w := newWorld(t, Config{API: api}, 4, sandbox.Options{})
					var first atomic.Pointer[broken]
					w.lan.cut = func(c net.Conn) net.Conn {
						if first.Load() != nil {
							return c
						}
						first.Store(&broken{Conn: c, request: request, silent: silent, left: at, broken: make(chan struct{})})
						return first.Load()
					}
					w.start()
					var broke, noticed time.Time
					for range 100 {
						w.sense(w.sensors...)
						time.Sleep(time.Second)
						if b := first.Load(); broke.IsZero() && b != nil && b.over() {
							broke = time.Now()
						}
						if noticed.IsZero() && w.f.Stats().Failures > 0 {
							noticed = time.Now()
						}
					}
					if broke.IsZero() || noticed.IsZero() && at > 0 || // of a request of which nothing has gone, net/http makes another
						!noticed.IsZero() && noticed.Sub(broke) > 31*time.Second {
						t.Errorf("byte %d: broken %v, noticed %v", at, broke, noticed)
					}
					c := w.end(5 * time.Minute)
					if c != (tally{total: c.total}) {
						t.Errorf("byte %d: %v", at, c)
					}
					wire, twice, readings = wire+1, twice+c.twice, readings+c.total
				}
			})
		}
	}
	t.Logf("%d connections broken under %d readings: %d duplicated", wire, readings, twice)
}

// zone is a name server, over TCP in memory, for one name.
type zone struct {
	mu      sync.Mutex
	address netip.Addr // none: there is no such name
	delay   time.Duration
	flaps   time.Duration // it knows the name for so long, and then does not for so long; 0: always
	sixth   netip.Addr
}

func (z *zone) set(address netip.Addr, delay, flaps time.Duration) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.address, z.delay, z.flaps = address, delay, flaps
}

func (z *zone) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		a, b := net.Pipe()
		go z.answer(b)
		return a, nil
	}}
}

// answer answers one question (RFC 1035).
func (z *zone) answer(c net.Conn) {
	defer c.Close()
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	q := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, q); err != nil {
		return
	}
	z.mu.Lock()
	address, sixth, delay := z.address, z.sixth, z.delay
	if z.flaps > 0 && time.Now().Unix()/int64(z.flaps/time.Second)%2 == 1 {
		address = netip.Addr{}
	}
	z.mu.Unlock()
	time.Sleep(delay)
	end := 12
	for q[end] != 0 {
		end += 1 + int(q[end])
	}
	kind := q[end+2]
	reply := slices.Clone(q[:end+5])
	copy(reply[2:], []byte{0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0})
	var data []byte
	switch known := address.IsValid() && bytes.HasPrefix(q[12:], []byte("\x06broker\x04test\x00")); {
	case !known:
		reply[3] |= 3
	case kind == 1:
		data = address.AsSlice()
	case kind == 28 && sixth.IsValid():
		data = sixth.AsSlice()
	}
	if data != nil {
		reply[7] = 1
		reply = append(reply, 0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 5, 0, byte(len(data)))
		reply = append(reply, data...)
	}
	_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
}

// D8: a name that is not there, comes late, or comes and goes piles nothing up, and
// the gateway is back within a minute of the name; it follows to another address
// within a minute of noticing.
func TestD8(t *testing.T) {
	// What package net makes at its first question is of no bubble then.
	_, _ = (&zone{}).resolver().LookupHost(t.Context(), "broker.test")
	bubbles(t, "", func(t *testing.T, api string) {
		old, next := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		z := &zone{address: old}
		resolver := z.resolver()
		w := newWorld(t, Config{API: api}, 3, sandbox.Options{})
		hosts := map[string]*lan{old.String(): w.lan, next.String(): serve(t, w.front)}
		w.sink.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // newTransport's
			defer cancel()
			host, port, _ := net.SplitHostPort(address)
			found, err := resolver.LookupHost(ctx, host)
			if err != nil {
				return nil, &net.OpError{Op: "dial", Net: network, Err: err}
			}
			return hosts[found[0]].dial(ctx, network, net.JoinHostPort(found[0], port))
		}
		w.start()
		w.sensing(5*time.Second, time.Minute)
		base := runtime.NumGoroutine()
		back := func(what string, limit time.Duration) {
			t.Helper()
			begun, n := time.Now(), len(w.front.writes())
			for len(w.front.writes()) == n && time.Since(begun) < 10*time.Minute {
				w.sensing(time.Second, time.Second)
			}
			if passed := time.Since(begun); passed > limit {
				t.Errorf("%s: back after %v", what, passed)
			}
			w.sensing(5*time.Second, time.Minute)
		}
		for what, trouble := range map[string]func(){
			"no such name": func() { z.set(netip.Addr{}, 0, 0) },
			"late":         func() { z.set(old, 30*time.Second, 0) },
			"flapping":     func() { z.set(old, 0, 7*time.Second) },
		} {
			trouble()
			w.lan.leave(false)
			most := 0
			for range 200 {
				w.sensing(5*time.Second, 5*time.Second)
				most = max(most, runtime.NumGoroutine())
			}
			if most > base+30 { // of those that answer, some wait as long as the name server
				t.Errorf("%s: %d goroutines, %d before", what, most, base)
			}
			if what != "flapping" && !strings.Contains(w.f.Stats().Why, "broker.test cannot be resolved") && !strings.Contains(w.f.Stats().Why, "takes too long") {
				t.Errorf("%s: %s", what, w.f.Stats().Why)
			}
			z.set(old, 0, 0)
			back(what, 62*time.Second)
		}
		z.set(next, 0, 0)
		w.lan.leave(true)
		back("another address", time.Minute)
		// Now back to the old one, and nobody says that the new one is gone.
		hosts[next.String()].leave(false)
		var all []*broken
		hosts[next.String()].cut = func(c net.Conn) net.Conn {
			b := &broken{Conn: c, request: true, silent: true, left: 1 << 30, broken: make(chan struct{})}
			all = append(all, b)
			return b
		}
		back("connections cut", time.Minute)
		w.lan.back()
		z.set(old, 0, 0)
		for _, b := range all {
			b.mu.Lock()
			b.armed, b.left = true, 0
			b.mu.Unlock()
		}
		back("another address in silence", 30*time.Second+time.Minute)
		w.clean(5 * time.Minute)
		if n := runtime.NumGoroutine(); n > base+3 {
			t.Errorf("%d goroutines, %d before", n, base)
		}
	})
	// Where the network has IPv6 that leads nowhere, IPv4 is tried beside it.
	t.Run("IPv6 leads nowhere", func(t *testing.T) {
		w := newBroker(t, Config{}, 1, sandbox.Options{})
		srv := httptest.NewServer(w.front)
		defer srv.Close()
		z := &zone{address: netip.MustParseAddr("127.0.0.1"), sixth: netip.MustParseAddr("100::1")}
		_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
		m, rs := many(1)
		s, err := New(Config{URL: "http://broker.test:" + port}, m)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		s.client.Transport.(*http.Transport).DialContext = (&net.Dialer{Timeout: 10 * time.Second, Resolver: z.resolver()}).DialContext
		begun := time.Now()
		if err := s.Send(t.Context(), rs); err != nil || time.Since(begun) > 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

// D9: for an hour a captive portal answers everything, or sends it elsewhere: nothing
// is taken for an acknowledgement, and no connection is made to another host.
func TestD9(t *testing.T) {
	for name, portal := range map[string]func(http.ResponseWriter, *http.Request, []byte) bool{
		"page": says(200, "text/html", "<html><form>log in", true),
		"JSON": says(200, jsonType, "{}", true),
		"list": says(200, jsonType, "[]", true),
		"302": func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			http.Redirect(w, r, "http://portal.test/", http.StatusFound)
			return true
		},
		"307": func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
			http.Redirect(w, r, "http://portal.test"+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		},
	} {
		bubbles(t, name, func(t *testing.T, api string) {
			w := newWorld(t, Config{API: api, Auth: static(t, "canary")}, 3, sandbox.Options{})
			w.sink.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				if address != "broker.test:1026" {
					t.Errorf("it goes to %s", address)
				}
				return w.lan.dial(ctx, network, address)
			}
			w.start()
			w.sensing(10*time.Second, time.Minute)
			w.front.set(portal)
			w.sensing(10*time.Second, time.Hour)
			if s := w.f.Stats(); s.Sent > 18 || s.Held > 0 || s.Down.IsZero() || s.Rejected > 0 {
				t.Errorf("%+v", s)
			}
			w.front.set(nil)
			w.clean(5 * time.Minute)
		})
	}
}

// D10: while a certificate is not good, or ours is not, readings are kept; when it is
// mended, on the server or on our disk, they go without a restart.
func TestD10(t *testing.T) {
	ca, other := newAuthority(t, "campus"), newAuthority(t, "other")
	good := ca.pair(t, -time.Hour, time.Hour, "127.0.0.1")
	for name, c := range map[string]struct {
		bad   *tls.Certificate
		words string
	}{
		"expired":     {ca.pair(t, -2*time.Hour, -time.Hour, "127.0.0.1"), "has expired"},
		"not yet":     {ca.pair(t, time.Hour, 2*time.Hour, "127.0.0.1"), "is not valid before"},
		"wrong name":  {ca.pair(t, -time.Hour, time.Hour, "elsewhere.test"), "is for elsewhere.test"},
		"rotated":     {other.pair(t, -time.Hour, time.Hour, "127.0.0.1"), "write the authority's file as ca_file"},
		"certificate": {good, "refuses our certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newBroker(t, Config{}, 3, sandbox.Options{})
			var shows atomic.Pointer[tls.Certificate]
			shows.Store(c.bad)
			srv := httptest.NewUnstartedServer(w.front)
			srv.Config.ErrorLog = log.New(io.Discard, "", 0)
			clients := x509.NewCertPool()
			clients.AddCert(ca.cert)
			srv.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
				return &tls.Config{Certificates: []tls.Certificate{*shows.Load()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}, nil
			}}
			srv.StartTLS()
			defer srv.Close()
			dir := t.TempDir()
			files := TLSConfig{CAFile: filepath.Join(dir, "ca.pem"), CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
			write(t, files.CAFile, ca.pem())
			mine := func(a *authority) {
				cert, key := a.issue(t, -time.Hour, time.Hour, "gw")
				write(t, files.CertFile, cert)
				write(t, files.KeyFile, key)
			}
			if mine(ca); name == "certificate" {
				mine(other)
			}
			tls, err := NewTLS(files)
			if err != nil {
				t.Fatal(err)
			}
			w.cfg.URL, w.cfg.TLS = srv.URL, tls
			if w.sink, err = New(w.cfg, w.m); err != nil {
				t.Fatal(err)
			}
			w.f = &gateway.Forwarder{Spread: time.Millisecond, Linger: time.Millisecond}
			w.begin()
			w.sensing(5*time.Millisecond, 100*time.Millisecond)
			for begun := time.Now(); w.f.Stats().Failures < 3 && time.Since(begun) < 10*time.Second; time.Sleep(time.Millisecond) {
			}
			if s := w.f.Stats(); s.Sent > 0 || s.Failures < 3 || !strings.Contains(s.Why, c.words) || len(w.front.writes()) > 0 {
				t.Errorf("%d sent: %s", s.Sent, s.Why)
			}
			switch name {
			case "certificate":
				mine(ca)
			case "rotated":
				write(t, files.CAFile, ca.pem()+other.pem())
			default:
				shows.Store(good)
			}
			w.clean(10 * time.Second)
		})
	}
}

// serves is a broker that serves one request after the other, as a small Orion does:
// 2 ms and a microsecond for each byte, which is some 2,000 readings a second.
func serves() func(http.ResponseWriter, *http.Request, []byte) bool {
	var mu sync.Mutex
	var free time.Time
	return func(_ http.ResponseWriter, _ *http.Request, body []byte) bool {
		mu.Lock()
		if now := time.Now(); free.Before(now) {
			free = now
		}
		free = free.Add(2*time.Millisecond + time.Duration(len(body))*time.Microsecond)
		until := free
		mu.Unlock()
		time.Sleep(time.Until(until))
		return false
	}
}

// D11: after 24 hours away, with 20,000 readings waiting, they are drained at 500 a
// second or more, and meanwhile what is new is at the broker in 5 s: of sensors
// without a backlog, and where the broker keeps a history, of all. No state goes back.
func TestD11(t *testing.T) {
	bubbles(t, "", func(t *testing.T, api string) {
		w := newWorld(t, Config{API: api}, 22, sandbox.Options{})
		old, fresh := w.sensors[:20], w.sensors[20:]
		w.front.set(serves())
		w.start()
		w.sense(old...)
		time.Sleep(time.Minute)
		w.lan.leave(true)
		for range 1000 {
			w.sense(old...)
			time.Sleep(24 * time.Hour / 1000)
		}
		backlog := w.queue.Depth()
		w.lan.back()
		q := w.queue.(*ram)
		first, _, _ := q.Bounds()
		for sent := w.f.Stats().Sent; w.f.Stats().Sent == sent; {
			time.Sleep(10 * time.Millisecond)
		}
		begun := time.Now()
		var drained time.Duration
		for range 120 {
			w.sense(w.sensors...)
			for range 10 {
				time.Sleep(100 * time.Millisecond)
				if done, _, _ := q.Bounds(); drained == 0 && done >= first+uint64(backlog) {
					drained = time.Since(begun)
				}
			}
		}
		rate := float64(backlog) / drained.Seconds()
		c := w.end(time.Minute)
		latest := time.Duration(0)
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, sensor := range w.sensors {
			if api == "ngsi-v2" && slices.Contains(old, sensor) {
				continue
			}
			states := w.applied[w.sink.Key(sensor)]
			for at := range w.sensed[w.sink.Key(sensor)] {
				if at < begun.UnixMilli() {
					continue
				}
				i := slices.IndexFunc(states, func(s told) bool { return s.at >= at })
				if i < 0 {
					t.Errorf("%s: never told", sensor)
					continue
				}
				latest = max(latest, states[i].when.Sub(time.UnixMilli(at)))
			}
		}
		t.Logf("%d readings drained at %.0f/s; what was new came %v late at most; %d sensors had no backlog", backlog, rate, latest, len(fresh))
		if c != (tally{total: c.total}) || backlog < 20_000 || drained == 0 || rate < 500 || latest > 5*time.Second {
			t.Errorf("%v; %d readings drained at %.0f/s, what was new came %v late", c, backlog, rate, latest)
		}
	})
}

// D13: a broker that crashes. Before it has answered, nothing is lost and nothing
// taken twice, whether it had kept what it was told or not, and though the gateway is
// restarted with the outcome unknown. After it has answered, an acknowledgement is
// all there is: what it said yes to and did not keep is lost, and nothing else; its
// newest state is right again with each sensor's next reading.
func TestD13(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		for _, keeps := range []bool{false, true} {
			bubbles(t, fmt.Sprintf("unanswered, keeps %v, restart %v", keeps, restarts), func(t *testing.T, api string) {
				w := newWorld(t, Config{API: api}, 4, sandbox.Options{})
				var crashes, n atomic.Int32
				w.front.set(func(rw http.ResponseWriter, r *http.Request, body []byte) bool {
					if n.Add(1)%7 != 0 || r.Method == http.MethodGet || strings.Contains(r.URL.Path, "query") {
						return false
					}
					crashes.Add(1)
					if keeps {
						apply, _ := http.NewRequest(r.Method, r.URL.String(), bytes.NewReader(body))
						apply.Header = r.Header
						w.broker.ServeHTTP(&record{header: http.Header{}}, apply)
					}
					w.lan.leave(true)
					go func() { time.Sleep(5 * time.Second); w.lan.back() }()
					panic(http.ErrAbortHandler)
				})
				w.start()
				for range 10 {
					w.sensing(time.Second, time.Minute)
					if restarts {
						w.f.Flush = time.Nanosecond
						w.stop()
						w.queue.(*ram).forget(10)
						w.connect()
						w.f = nil
						w.start()
					}
				}
				w.front.set(nil)
				c := w.end(5 * time.Minute)
				if c != (tally{total: c.total}) || crashes.Load() < 5 {
					t.Errorf("%v over %d crashes", c, crashes.Load())
				}
			})
		}
	}
	bubbles(t, "answered", func(t *testing.T, api string) {
		w := newWorld(t, Config{API: api}, 4, sandbox.Options{NoHistory: true})
		var lost atomic.Int32
		w.front.set(func(rw http.ResponseWriter, r *http.Request, body []byte) bool {
			if r.Method == http.MethodGet || strings.Contains(r.URL.Path, "query") || lost.Load() > 0 || w.f.Stats().Sent < 40 {
				return false
			}
			lost.Store(int32(strings.Count(string(body), `"temperature":`))) // its page cache, with the power
			rw.WriteHeader(204)
			time.AfterFunc(time.Millisecond, func() { w.lan.leave(false) })
			return true
		})
		w.start()
		w.sensing(time.Second, 5*time.Minute)
		c := w.end(5 * time.Minute)
		gone := int(lost.Load())
		if c != (tally{total: c.total, lost: gone}) || gone == 0 {
			t.Errorf("%v, %d forgotten by the broker", c, gone)
		}
		for id, states := range w.applied {
			newest := int64(0)
			for at := range w.sensed[id] {
				newest = max(newest, at)
			}
			if last := states[len(states)-1].at; last != newest {
				t.Errorf("%s: the last state is of %d, want %d", id, last, newest)
			}
		}
	})
}

// D14: Orion-LD takes 1,000 entities of a batch and drops the rest without a word: no
// batch has so many.
func TestD14(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, asked := range []string{"ngsi-ld", "orion-ld"} {
			w := newWorld(t, Config{API: asked, MaxEntities: 5000, MaxBody: 1 << 20}, 2500, sandbox.Options{Like: sandbox.OrionLD})
			w.f = &gateway.Forwarder{Target: -1, Batch: 5000}
			w.start()
			for range 2 {
				w.sense(w.sensors...)
				time.Sleep(time.Minute)
			}
			w.clean(time.Minute)
		}
	})
}

// D12: behind a broker that restarts are 300 gateways: however long it is away, and
// however often they send, no more than 20 of them connect in one second.
func TestD12(t *testing.T) {
	for _, c := range []struct{ away, every time.Duration }{
		{0, time.Second}, {0, 10 * time.Second}, {0, time.Minute}, {5 * time.Second, 10 * time.Second},
		{20 * time.Second, 10 * time.Second}, {40 * time.Second, time.Minute}, {2 * time.Minute, 10 * time.Second},
	} {
		restart := func(t *testing.T) (most int) {
			synctest.Test(t, func(t *testing.T) {
				const gateways = 300
				campus := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					w.WriteHeader(204)
				}))
				var all sync.WaitGroup
				ctx, cancel := context.WithCancel(t.Context())
				for i := range gateways {
					m, rs := many(1)
					s, err := New(Config{API: "orion", URL: "http://broker.test:1026"}, m)
					if err != nil {
						t.Fatal(err)
					}
					s.client.Transport.(*http.Transport).DialContext = (&line{dial: campus.dial}).connect
					q := &ram{ready: make(chan struct{}, 1), first: 1}
					all.Go(func() {
						_ = (&gateway.Forwarder{Queue: q, Sink: s}).Run(ctx)
						s.Close()
					})
					all.Go(func() {
						time.Sleep(time.Duration(i) * c.every / gateways) // they were not begun all at once
						for ctx.Err() == nil {
							rs[0].At.Wall = time.Now()
							_ = q.Put(rs[0])
							time.Sleep(c.every)
						}
					})
				}
				time.Sleep(3*c.every + c.every/3)
				campus.leave(true)
				time.Sleep(c.away)
				campus.mu.Lock()
				before := len(campus.accepted)
				campus.mu.Unlock()
				campus.back()
				time.Sleep(c.every + 90*time.Second)
				cancel()
				all.Wait()
				accepted := campus.accepted[before:]
				seen := 0
				for i := range accepted {
					for accepted[i].Sub(accepted[seen]) >= time.Second {
						seen++
					}
					most = max(most, i-seen+1)
				}
				t.Logf("%d connections, at most %d in a second", len(accepted), most)
				if len(accepted) < gateways {
					t.Errorf("%d of %d gateways are back", len(accepted), gateways)
				}
			})
			return most
		}
		t.Run(fmt.Sprint(c.away, " every ", c.every), func(t *testing.T) {
			// Each waits a time that is drawn: one restart in some thousand has more.
			if most := restart(t); most > 20 && restart(t) > 20 {
				t.Errorf("%d connections in a second", most)
			}
		})
	}
}

// A connection that is closed while nothing goes over it is a loss only where one has
// lived as long: a server may let go of idle ones.
func TestLostWhileIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{API: "orion"}, 1, sandbox.Options{})
		_, rs := many(1)
		send := func(after time.Duration, lost bool) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			err := w.sink.Send(t.Context(), rs)
			if e, ok := errors.AsType[*gateway.RetryError](err); lost != ok || ok && (!e.Lost || !strings.Contains(err.Error(), "was lost")) {
				t.Errorf("%v", err)
			}
		}
		send(0, false)
		time.Sleep(75 * time.Second)
		w.lan.leave(false)
		send(0, false) // as proxies do
		for range handshakes {
			send(time.Second, false)
		}
		send(time.Minute, false)
		send(time.Second, false)
		time.Sleep(59 * time.Second)
		w.lan.leave(false)
		send(0, true) // it lived a minute before
		send(0, false)
		send(time.Second, false)
		w.lan.leave(false)
		send(longestLoss, false) // long ago
		if n := len(w.lan.accepted); n != 4 {
			t.Errorf("%d connections", n)
		}
		w.sink.Close()
	})
}
