package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// recorded is how many exchanges the recording has.
const recorded = 582

// notReplayed are the exchanges of the recording that are not in the test, and
// why. With those in testdata they must make up the whole recording.
var notReplayed = []struct {
	from, to int // places in the recording, both included
	why      string
}{
	{242, 242, "invalid UTF-8 read back as U+FFFD: the doing of one stand-in store; with the other (x.utf8) bytes come back as sent, and so here"},
	{244, 244, "as 242"},
	{246, 246, "as 242"},
	{248, 248, "as 242"},
	{250, 250, "as 242"},
	{330, 330, "POST /v2/op/notify: the gateway does not use it"},
	{333, 333, "Orion has no NGSI-LD and says so; the sandbox has"},
	{346, 346, "Content-Length beside chunked: net/http drops the length, so 411; Orion takes it and closes (204)"},
	{349, 349, "a list of entities made before the recording began, its answer cut"},
	{351, 351, "Expect: 200-maybe: net/http answers 417 by itself; Orion ignores it (204)"},
	{357, 357, "HTTP/2 by prior knowledge: net/http answers 400, Orion 505"},
	{445, 464, "h: database or broker stopped, killed or frozen"},
	{465, 487, "iota: the IoT Agent, not Orion"},
	{546, 546, "/version: the sandbox says of itself that it is not Orion"},
	{547, 547, "connections above 1020: see TestServeLimits"},
	{548, 548, "as 546"},
	{567, 567, "Orion's threads swapped two notifications; the sandbox keeps the order"},
	{569, 569, "as 567"},
	{579, 581, "z: errors put into the database"},
}

// onlyStatus are exchanges whose refusal net/http writes itself: same status,
// same closing, but a line of text where Orion's body is empty.
var onlyStatus = []string{"d.lengthNeg", "d.lengthText", "d.noHost", "d.hugeHeader"}

type fill struct {
	Before, Char, After string
	Size                int
}

type series struct {
	Before, Item, After string
	First, Count        int
}

type exchange struct {
	N                  int
	Name, Method, Path string
	Headers            map[string]any
	Body               string
	Body64, Raw64      []byte
	Fill, RawFill      *fill
	Series             *series
	Raw, Wire, End     string

	Status        int
	Answer        string
	Answer64      []byte
	AnswerSeries  *series
	AnswerHeaders map[string]string

	Notifications []json.RawMessage
	Values        []json.Number
	Length        int64
}

func (f *fill) text() string {
	return f.Before + strings.Repeat(f.Char, f.Size-len(f.Before)-len(f.After)) + f.After
}

func (s *series) text() string {
	var items []string
	for i := s.First; i < s.First+s.Count; i++ {
		items = append(items, strings.NewReplacer("#d", strconv.Itoa(i), "#04d", fmt.Sprintf("%04d", i)).Replace(s.Item))
	}
	return s.Before + strings.Join(items, ", ") + s.After
}

func (e *exchange) request() string {
	switch {
	case e.Fill != nil:
		return e.Fill.text()
	case e.Series != nil:
		return e.Series.text()
	case e.Body64 != nil:
		return string(e.Body64)
	}
	return e.Body
}

// wireText is what goes over the connection.
func (e *exchange) wireText() string {
	switch {
	case e.RawFill != nil:
		return e.RawFill.text()
	case e.Raw64 != nil:
		return string(e.Raw64)
	case e.Method == "":
		return e.Raw
	}
	body := e.request()
	var w strings.Builder
	fmt.Fprintf(&w, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:1026\r\n", e.Method, e.Path)
	for name, value := range e.Headers {
		values, several := value.([]any)
		if !several {
			values = []any{value}
		}
		for _, v := range values {
			fmt.Fprintf(&w, "%s: %s\r\n", name, v)
		}
	}
	if body != "" || e.Method == "POST" {
		fmt.Fprintf(&w, "Content-Length: %d\r\n", len(body))
	}
	return w.String() + "\r\n" + body
}

// want is the recorded answer: status, headers that matter, body.
func (e *exchange) want(t *testing.T) (int, map[string]string, string) {
	if e.Method != "" {
		body := e.Answer
		if e.Answer64 != nil {
			body = string(e.Answer64)
		} else if e.AnswerSeries != nil {
			body = e.AnswerSeries.text()
		}
		return e.Status, e.AnswerHeaders, body
	}
	r := bufio.NewReader(strings.NewReader(e.Wire))
	resp, err := http.ReadResponse(r, nil)
	if err == nil && resp.StatusCode == 100 {
		resp, err = http.ReadResponse(r, nil)
	}
	if err != nil {
		t.Fatalf("the recording of %s: %v", e.Name, err)
	}
	body, _ := io.ReadAll(resp.Body)
	headers := map[string]string{}
	for _, name := range []string{"Content-Type", "Content-Length"} {
		if v := resp.Header.Get(name); v != "" {
			headers[name] = v
		}
	}
	if resp.Close {
		headers["Connection"] = "close"
	}
	if strings.Contains(e.Wire, "my-corr-1") {
		headers["Fiware-Correlator"] = "my-corr-1"
	}
	return resp.StatusCode, headers, string(body)
}

func readExchanges(t *testing.T) []*exchange {
	f, err := os.Open("testdata/exchanges.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []*exchange
	for d := json.NewDecoder(f); ; {
		e := &exchange{}
		if err := d.Decode(e); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
}

// subscriber is what the recorded subscriptions notify.
type subscriber struct {
	*httptest.Server
	mu      sync.Mutex
	bodies  []string
	headers []http.Header
	length  []int64
}

func newSubscriber(t *testing.T) *subscriber {
	s := &subscriber{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.bodies = append(s.bodies, string(body))
		s.headers, s.length = append(s.headers, r.Header), append(s.length, r.ContentLength)
	}))
	t.Cleanup(s.Close)
	return s
}

// take returns what has come when all is delivered.
func (s *subscriber) take(t *testing.T, b *Broker) (bodies []string, headers []http.Header, lengths []int64) {
	t.Helper()
	waitFor(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		n := 0
		for _, tn := range b.tenants {
			for _, sub := range tn.subs {
				n += sub.sent
			}
		}
		return uint64(n) == b.stats.Sent+b.stats.Failed+b.stats.Dropped
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	bodies, headers, lengths = s.bodies, s.headers, s.length
	s.bodies, s.headers, s.length = nil, nil, nil
	return bodies, headers, lengths
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited 10 s")
		}
	}
}

// start runs a broker on loopback until the test ends.
func start(t *testing.T, opts Options) (b *Broker, address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b = New(opts)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := b.Serve(ctx, ln); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return b, ln.Addr().String()
}

var stamp = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`)

// TestReplay sends every recorded request that concerns the part we use, and
// demands the recorded answer word by word.
func TestReplay(t *testing.T) {
	all := readExchanges(t)
	seen := make([]int, recorded)
	for _, e := range all {
		seen[e.N]++
	}
	listed := 0
	for _, gap := range notReplayed {
		for n := gap.from; n <= gap.to; n++ {
			seen[n]++
			listed++
		}
	}
	for n, times := range seen {
		if times != 1 {
			t.Errorf("exchange %d of the recording is replayed or listed %d times, want once", n, times)
		}
	}
	groups := map[string][]*exchange{}
	var order []string
	for _, e := range all {
		g, _, _ := strings.Cut(e.Name, ".")
		if len(g) == 1 && g[0] <= 'f' {
			g = "a-f"
		}
		if groups[g] == nil {
			order = append(order, g)
		}
		groups[g] = append(groups[g], e)
	}
	equal := 0
	for _, g := range order {
		t.Run(g, func(t *testing.T) { equal += replay(t, g, groups[g]) })
	}
	t.Logf("%d exchanges replayed equal, %d of them in status only; %d of %d listed as not replayed", equal, len(onlyStatus), listed, recorded)
	if equal+listed != recorded {
		t.Errorf("%d replayed equal + %d listed, want %d", equal, listed, recorded)
	}
}

func replay(t *testing.T, group string, exchanges []*exchange) (equal int) {
	opts := Options{}
	if group == "x" {
		opts.MaxBody = 5000000
	}
	b, address := start(t, opts)
	sub := newSubscriber(t)
	release := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(slow.Close)
	t.Cleanup(func() { close(release) })
	listener := strings.TrimPrefix(sub.URL, "http://")
	places := strings.NewReplacer("127.0.0.1:9977", listener, "127.0.0.1:9971", listener, "127.0.0.1:9979", strings.TrimPrefix(slow.URL, "http://"))
	ids := map[string]string{} // of subscriptions: theirs to ours

	for _, e := range exchanges {
		name := fmt.Sprintf("%d %s", e.N, e.Name)
		if e.Method == "" && e.Wire == "" && e.End == "" {
			bodies, headers, lengths := sub.take(t, b)
			if compareNotifications(t, name, e, bodies, headers, lengths, ids) {
				equal++
			}
			continue
		}
		e.Body = places.Replace(e.Body)
		got := exchangeOnWire(t, address, e)
		if e.Method == "" && e.Wire == "" { // no answer: the broker waits for more
			if got.resp != nil || got.end != e.End {
				t.Errorf("%s: answered %+v, %s; want silence, %s", name, got.resp, got.end, e.End)
			} else {
				equal++
			}
			continue
		}
		if got.resp == nil {
			t.Errorf("%s: no answer: %v", name, got.err)
			continue
		}
		status, headers, body := e.want(t)
		if location := got.resp.Header.Get("Location"); strings.HasPrefix(location, "/v2/subscriptions/") {
			theirs := strings.TrimPrefix(headers["Location"], "/v2/subscriptions/")
			ours := strings.TrimPrefix(location, "/v2/subscriptions/")
			ids[theirs] = ours
			headers["Location"] = location
		}
		for theirs, ours := range ids {
			body = strings.ReplaceAll(body, theirs, ours)
		}
		body = stamp.ReplaceAllString(places.Replace(body), "TIME")
		gotBody := stamp.ReplaceAllString(got.body, "TIME")
		ok := true
		fail := func(what string, got, want any) {
			ok = false
			t.Errorf("%s: %s\n got %.600s\nwant %.600s", name, what, fmt.Sprint(got), fmt.Sprint(want))
		}
		if got.resp.StatusCode != status {
			fail("status", got.resp.StatusCode, status)
		}
		if slices.Contains(onlyStatus, e.Name) {
			delete(headers, "Content-Length")
		} else if gotBody != body {
			fail("body", gotBody, body)
		}
		if closes := headers["Connection"] == "close"; got.resp.Close != closes {
			fail("connection will close", got.resp.Close, closes)
		}
		delete(headers, "Connection") // net/http takes it away
		for name, want := range headers {
			if got := got.resp.Header.Get(name); got != want && !(name == "Content-Length" && strings.Contains(body, listener)) {
				fail("header "+name, got, want)
			}
		}
		if e.End != "" && got.end != e.End {
			fail("connection", got.end, e.End)
		}
		if got.pipelined != strings.Count(e.Wire, "HTTP/1.1 204") {
			fail("answers", got.pipelined, strings.Count(e.Wire, "HTTP/1.1 204"))
		}
		if ok {
			equal++
		}
	}
	return equal
}

func compareNotifications(t *testing.T, name string, e *exchange, got []string, headers []http.Header, lengths []int64, ids map[string]string) bool {
	if e.Values != nil {
		var values []json.Number
		for _, body := range got {
			var n struct {
				Data []struct{ Temperature struct{ Value json.Number } }
			}
			if err := json.Unmarshal([]byte(body), &n); err != nil || len(n.Data) != 1 {
				t.Errorf("%s: %v: %s", name, err, body)
				return false
			}
			values = append(values, n.Data[0].Temperature.Value)
		}
		if !slices.Equal(values, e.Values) {
			t.Errorf("%s:\n got %v\nwant %v", name, values, e.Values)
			return false
		}
		return true
	}
	var want []string
	for _, n := range e.Notifications {
		var b bytes.Buffer
		if err := json.Compact(&b, n); err != nil {
			t.Fatal(err)
		}
		text := b.String()
		for theirs, ours := range ids {
			text = strings.ReplaceAll(text, theirs, ours)
		}
		want = append(want, text)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", name, got, want)
		return false
	}
	for header, value := range e.Headers {
		if headers[0].Get(header) != value {
			t.Errorf("%s: header %s: %q, want %q", name, header, headers[0].Get(header), value)
			return false
		}
	}
	if len(want) > 0 && lengths[0] != e.Length {
		t.Errorf("%s: Content-Length %d, want %d", name, lengths[0], e.Length)
		return false
	}
	return true
}

type wireAnswer struct {
	resp      *http.Response
	body      string
	pipelined int // good answers of a raw exchange
	end       string
	err       error
}

// pause in the recorded bytes: "<2.0>", or "<READ>" for an answer to come.
var pause = regexp.MustCompile(`<(READ|\d\.\d)>`)

// exchangeOnWire sends the bytes of an exchange and reads what comes back.
func exchangeOnWire(t *testing.T, address string, e *exchange) (a wireAnswer) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	text := e.wireText()
	method := e.Method
	if method == "" {
		method = "POST"
	}
	proceed := make(chan struct{}, 1)
	written := make(chan struct{})
	go func() { // beside the reader: a refusal comes before a large body is written
		defer close(written)
		at := 0
		for _, m := range pause.FindAllStringIndex(e.Raw, -1) { // large bodies have none
			io.WriteString(conn, text[at:m[0]])
			if at = m[1]; text[m[0]:m[1]] == "<READ>" {
				<-proceed
			} else {
				time.Sleep(5 * time.Millisecond)
			}
		}
		io.WriteString(conn, text[at:])
	}()
	r := bufio.NewReader(conn)
	if e.Wire == "" && e.Method == "" {
		conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	}
	for n := max(1, strings.Count(e.Wire, "HTTP/1.1 ")); n > 0; n-- {
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			a.err = err
			break
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			a.err = err
			break
		}
		a.resp, a.body = resp, string(body)
		if resp.StatusCode == http.StatusNoContent && e.Method == "" {
			a.pipelined++
		}
		select {
		case proceed <- struct{}{}:
		default:
		}
	}
	if e.End != "" {
		conn.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
		if e.End == "closed" {
			conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		}
		a.end = "closed"
		if _, err := r.ReadByte(); errors.Is(err, os.ErrDeadlineExceeded) {
			a.end = "open"
		}
	}
	conn.Close()
	<-written
	return a
}
