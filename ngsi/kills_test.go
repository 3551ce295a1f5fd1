package ngsi

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"campus-gateway"
	"campus-gateway/buffer"
	"campus-gateway/ngsi/sandbox"
)

// keptWrite is a write as the broker that is killed keeps it.
type keptWrite struct {
	URL    string
	Header http.Header
	Body   []byte
}

// replay tells b all that is in a journal, and returns the length of what is whole.
func replay(b *sandbox.Broker, journal []byte) (whole int64) {
	for {
		rest := journal[whole:]
		if len(rest) < 4 || len(rest) < 4+int(binary.BigEndian.Uint32(rest)) {
			return whole
		}
		n := 4 + int(binary.BigEndian.Uint32(rest))
		var k keptWrite
		if json.Unmarshal(rest[4:n], &k) != nil {
			return whole
		}
		r, _ := http.NewRequest(http.MethodPost, k.URL, bytes.NewReader(k.Body))
		r.Header = k.Header
		b.ServeHTTP(&record{header: http.Header{}}, r)
		whole += int64(n)
	}
}

// The moments in a request at which a broker is killed.
var moments = []string{"read", "before", "applied", "torn", "kept", "answer"}

// answerOf is what a broker answers.
type answerOf struct {
	record
	status int
}

func (a *answerOf) WriteHeader(status int) { a.status = status }

// beBroker is a broker that keeps what it has taken in a file before it says so, and
// that kills itself in mid-request: life is its address, its file, after how many
// writes and at which moment.
func beBroker(life string) error {
	var address, file, moment string
	var left int
	if _, err := fmt.Sscan(life, &address, &file, &left, &moment); err != nil {
		return err
	}
	b := sandbox.New(sandbox.Options{})
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	journal, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	end := replay(b, old)
	if err := journal.Truncate(end); err != nil {
		return err
	}
	if _, err := journal.Seek(end, io.SeekStart); err != nil {
		return err
	}
	die := func(at string) {
		if left == 0 && at == moment {
			if self, err := os.FindProcess(os.Getpid()); err == nil {
				_ = self.Kill()
			}
			select {}
		}
	}
	var mu sync.Mutex
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || strings.Contains(r.URL.Path, "query") {
			b.ServeHTTP(w, r)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		left--
		half := make([]byte, r.ContentLength/2)
		_, _ = io.ReadFull(r.Body, half)
		die("read")
		rest, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		k := keptWrite{r.URL.String(), r.Header, append(half, rest...)}
		die("before")
		r.Body = io.NopCloser(bytes.NewReader(k.Body))
		a := &answerOf{record: record{header: http.Header{}}, status: 200}
		b.ServeHTTP(a, r)
		die("applied")
		text, _ := json.Marshal(k)
		text = append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
		if moment == "torn" && left == 0 {
			_, _ = journal.Write(text[:len(text)/2])
		}
		die("torn")
		if _, err := journal.Write(text); err != nil {
			return
		}
		die("kept")
		if moment == "answer" && left == 0 {
			c, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Con")
		}
		die("answer")
		for name, values := range a.header {
			w.Header()[name] = values
		}
		w.WriteHeader(a.status)
		_, _ = w.Write(a.body)
	}))
}

// durable is one uplink's queue in a log on disk.
type durable struct {
	*buffer.Cursor[gateway.Reading]
	log *buffer.Log[gateway.Reading]
	end func()
}

func (d *durable) Put(rs ...gateway.Reading) error { return d.log.Put(rs...) }

func openDurable(t *testing.T, dir string) *durable {
	t.Helper()
	l, err := buffer.Open(dir, gateway.Codec{}, buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Cursor("broker")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = l.Run(ctx) }()
	return &durable{c, l, func() { cancel(); <-done; _ = l.Close() }}
}

// wireTap counts the readings that go over the wire.
type wireTap struct {
	http.RoundTripper
	mu  sync.Mutex
	all map[[2]string]int // by entity and time
}

func (s *wireTap) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPost && r.GetBody != nil && !strings.Contains(r.URL.Path, "query") {
		body, err := r.GetBody()
		if err != nil {
			return nil, err
		}
		text, _ := io.ReadAll(body)
		body.Close()
		s.note(text)
	}
	return s.RoundTripper.RoundTrip(r)
}

func (s *wireTap) note(text []byte) {
	type attr struct {
		ObservedAt string
		Metadata   struct{ TimeInstant struct{ Value string } }
	}
	type entity struct {
		ID          string
		Temperature json.RawMessage
	}
	var es []entity
	if json.Unmarshal(text, &es) != nil {
		var v2 struct {
			entity
			Entities []entity
		}
		_ = json.Unmarshal(text, &v2)
		es = append(v2.Entities, v2.entity)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range es {
		var all []attr
		if json.Unmarshal(e.Temperature, &all) != nil {
			all = make([]attr, 1)
			if json.Unmarshal(e.Temperature, &all[0]) != nil {
				continue
			}
		}
		for _, a := range all {
			s.all[[2]string{e.ID, a.ObservedAt + a.Metadata.TimeInstant.Value}]++
		}
	}
}

// A real broker process is killed in mid-request, again and again, under 200 readings
// a second from a log with a window of 0: all of them are at the broker in the end,
// once, in order.
func TestBrokerKills(t *testing.T) {
	t.Parallel()
	kills := 100
	if testing.Short() || raceDetector {
		kills = 10
	}
	for _, api := range apis {
		t.Run(api, func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(4, uint64(len(api))))
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			address, journal := ln.Addr().String(), filepath.Join(t.TempDir(), "journal")
			ln.Close()
			broker := func(left int, moment string) *exec.Cmd {
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), fmt.Sprintf("NGSI_TEST_BROKER=%s %s %d %s", address, journal, left, moment))
				cmd.Stderr = os.Stderr
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				return cmd
			}
			w := newBroker(t, Config{API: api, URL: "http://" + address}, 16, sandbox.Options{})
			d := openDurable(t, t.TempDir())
			defer d.end()
			w.queue = d
			if w.sink, err = New(w.cfg, w.m); err != nil {
				t.Fatal(err)
			}
			wire := &wireTap{RoundTripper: w.sink.client.Transport, all: map[[2]string]int{}}
			w.sink.client.Transport = wire
			w.f = &gateway.Forwarder{Spread: time.Millisecond, Linger: 20 * time.Millisecond}
			w.begin()
			stop, begun := make(chan struct{}), time.Now()
			var sensing sync.WaitGroup
			sensing.Go(func() {
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for i := 0; ; i = (i + 4) % 16 {
					select {
					case <-stop:
						return
					case <-tick.C:
						w.sense(w.sensors[i : i+4]...)
					}
				}
			})
			at := map[string]int{}
			for range kills {
				moment := moments[rnd.IntN(len(moments))]
				cmd := broker(1+rnd.IntN(8), moment)
				limit := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
				_ = cmd.Wait()
				if !limit.Stop() {
					t.Fatalf("nothing came to the broker: %s", w.f.Stats().Why)
				}
				if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
					t.Fatalf("the broker ended by itself: %v", cmd.ProcessState)
				}
				at[moment]++
			}
			close(stop)
			sensing.Wait()
			passed := time.Since(begun)
			cmd := broker(-1, "never")
			for begun := time.Now(); w.queue.Depth() > 0 && time.Since(begun) < 30*time.Second; time.Sleep(10 * time.Millisecond) {
			}
			w.stop()
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // killed
			stats := w.f.Stats()
			w.sink.Close()
			text, err := os.ReadFile(journal)
			if err != nil {
				t.Fatal(err)
			}
			replay(w.broker, text)
			var history map[string][]told
			if api == "ngsi-ld" {
				history = historyOf(t, w.broker)
			}
			c := w.count(history)
			wired, twice := 0, 0
			for _, n := range wire.all {
				wired, twice = wired+n, twice+n-1
			}
			t.Logf("%s: %d kills in mid-request %v, %v; %d sent on the wire, %d of them again; %d times the broker held what was in doubt (%.0f readings/s, %d failures)",
				api, kills, at, c, wired, twice, stats.Held, float64(c.total)/passed.Seconds(), stats.Failures)
			if c != (tally{total: c.total}) {
				t.Error(c)
			}
			if rate := float64(c.total) / passed.Seconds(); rate < 100 || stats.Held == 0 && kills >= 100 {
				t.Errorf("%.0f readings/s, %d held: that proves little", rate, stats.Held)
			}
		})
	}
}

// The broker is away for 30 s and for ten minutes under 50 readings a second, and
// the gateway is killed for 5 s while it is away and again while it drains: its log
// has a window of 0, and what it has acknowledged since the last commit is forgotten.
func TestAway(t *testing.T) {
	t.Parallel()
	// What the log's compression makes at its first block is of no bubble then.
	_, first := many(10)
	outside := openDurable(t, t.TempDir())
	if err := outside.Put(first...); err != nil {
		t.Fatal(err)
	}
	outside.end()
	for _, away := range []time.Duration{30 * time.Second, 10 * time.Minute} {
		if raceDetector && away > time.Minute {
			break // it takes long
		}
		bubbles(t, away.String(), func(t *testing.T, api string) {
			w := newWorld(t, Config{API: api}, 10, sandbox.Options{})
			w.front.set(serves())
			dir := t.TempDir()
			d := openDurable(t, dir)
			w.queue = d
			w.start()
			held := uint64(0)
			kill := func() {
				after := filepath.Join(t.TempDir(), "log")
				if err := os.CopyFS(after, os.DirFS(dir)); err != nil { // the disk as it is now
					t.Fatal(err)
				}
				w.f.Flush = time.Nanosecond
				w.stop()
				held += w.f.Stats().Held
				d.end() // on the old disk
				w.sink.client.CloseIdleConnections()
				time.Sleep(5 * time.Second)
				dir = after
				d = openDurable(t, dir)
				w.queue, w.f = d, nil
				w.connect()
				w.start()
			}
			w.sensing(200*time.Millisecond, time.Minute)
			w.lan.leave(true)
			w.sensing(200*time.Millisecond, away/2)
			kill()
			w.sensing(200*time.Millisecond, away/2)
			w.lan.back()
			for sent := w.f.Stats().Sent; w.f.Stats().Sent < sent+100; {
				w.sensing(200*time.Millisecond, 200*time.Millisecond)
			}
			kill()
			w.sensing(200*time.Millisecond, 20*time.Second)
			kill() // while all is well
			w.sensing(200*time.Millisecond, time.Minute)
			c := w.end(5 * time.Minute)
			t.Logf("%s, away %v: %v; %d held", api, away, c, held+w.f.Stats().Held)
			d.end()
			if c != (tally{total: c.total}) {
				t.Error(c)
			}
		})
	}
}
