package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeQueue is a queue in RAM.
type fakeQueue struct {
	mu       sync.Mutex
	rs       []Reading
	first    uint64
	rejected []string
	ready    chan struct{}
	broken   error // of Reject
	anew     bool
	gone     []Reading // acknowledged
}

func newFakeQueue(n int) *fakeQueue {
	q := &fakeQueue{ready: make(chan struct{}, 1)}
	for i := range n {
		q.put(fmt.Sprint(i))
	}
	return q
}

func (q *fakeQueue) put(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rs = append(q.rs, Reading{Sensor: name, Values: []Value{{Temperature, 21.0}}})
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

func (q *fakeQueue) Bounds() (first, end uint64, anew bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	anew, q.anew = q.anew, false
	return q.first, q.first + uint64(len(q.rs)), anew
}
func (q *fakeQueue) Read(from uint64, max int) ([]Reading, uint64, uint64, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	from = min(from, q.first+uint64(len(q.rs)))
	if from < q.first {
		panic("read what was acknowledged")
	}
	rs := q.rs[from-q.first:]
	n := min(max, len(rs))
	return rs[:n:n], from, from + uint64(n), nil
}
func (q *fakeQueue) Hold(before, from, to uint64) {}
func (q *fakeQueue) Ack(end uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gone = append(q.gone, q.rs[:end-q.first]...)
	q.rs, q.first = q.rs[end-q.first:], end
}

// forget has the last n acknowledgements forgotten, as a crash before a commit does.
func (q *fakeQueue) forget(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = min(n, len(q.gone))
	q.rs = append(slices.Clone(q.gone[len(q.gone)-n:]), q.rs...)
	q.gone = q.gone[:len(q.gone)-n]
	q.first -= uint64(n)
}
func (q *fakeQueue) Reject(rs []Reading, why string) error {
	if q.broken != nil {
		return q.broken
	}
	for _, r := range rs {
		q.rejected = append(q.rejected, r.Sensor+": "+why)
	}
	return nil
}
func (q *fakeQueue) Ready() <-chan struct{} { return q.ready }
func (q *fakeQueue) Depth() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.rs)
}

// fakeSink gives the errors of a list, one a Send, then accepts.
type fakeSink struct {
	inject []error
	got    []string
	tries  []time.Time
}

func (s *fakeSink) String() string { return "fake" }
func (s *fakeSink) Send(ctx context.Context, rs []Reading) error {
	s.tries = append(s.tries, time.Now())
	if len(s.inject) > 0 {
		err := s.inject[0]
		s.inject = s.inject[1:]
		if r, ok := errors.AsType[*RejectError](err); ok {
			for i, x := range rs {
				if !slices.ContainsFunc(r.Rejected, func(j Rejection) bool { return j.Index == i }) {
					s.got = append(s.got, x.Sensor)
				}
			}
		}
		if err != nil {
			return err
		}
	}
	for _, r := range rs {
		s.got = append(s.got, r.Sensor)
	}
	return nil
}

func forward(t *testing.T, d time.Duration, f *Forwarder) {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := f.Run(ctx); err != nil {
		t.Errorf("told to stop, Run returned %v", err)
	}
}

func TestForwarderKeepsOrderOverFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, s := newFakeQueue(7), &fakeSink{}
		s.inject = []error{errors.New("unknown"), &RetryError{Err: errors.New("busy")}, nil, errors.New("again")}
		f := &Forwarder{Queue: q, Sink: s, Batch: 3}
		forward(t, 10*time.Minute, f)
		if want := []string{"0", "1", "2", "3", "4", "5", "6"}; !slices.Equal(s.got, want) {
			t.Errorf("got %v, want %v", s.got, want)
		}
		if st := f.Stats(); st.Sent != 7 || st.Failures != 3 || !st.Down.IsZero() {
			t.Errorf("stats %+v", st)
		}
	})
}

func TestForwarderSetsRejectedAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(4)
		s := &fakeSink{inject: []error{&RejectError{[]Rejection{{1, "Invalid characters"}}}}}
		f := &Forwarder{Queue: q, Sink: s}
		forward(t, time.Minute, f)
		if want := []string{"0", "2", "3"}; !slices.Equal(s.got, want) {
			t.Errorf("got %v, want %v", s.got, want)
		}
		if want := []string{"1: Invalid characters"}; !slices.Equal(q.rejected, want) {
			t.Errorf("rejected %q, want %q", q.rejected, want)
		}
		if st := f.Stats(); st.Sent != 3 || st.Rejected != 1 || q.Depth() != 0 {
			t.Errorf("stats %+v, %d waiting", st, q.Depth())
		}
	})
}

// A reading that can be neither sent nor set aside is kept.
func TestForwarderKeepsWhatItCannotSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(1)
		q.broken = errors.New("no space left on device")
		s := &fakeSink{}
		for range 1000 {
			s.inject = append(s.inject, &RejectError{[]Rejection{{0, "bad"}}})
		}
		forward(t, time.Minute, &Forwarder{Queue: q, Sink: s})
		if q.Depth() != 1 {
			t.Errorf("the reading is gone")
		}
	})
}

func TestForwarderBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs strings.Builder
		s := &fakeSink{}
		for range 10_000 {
			s.inject = append(s.inject, errors.New("connection refused"))
		}
		q := newFakeQueue(1)
		f := &Forwarder{Queue: q, Sink: s, Log: slog.New(slog.NewTextHandler(&logs, nil))}
		forward(t, time.Hour, f)
		if n := len(s.tries); n < 60 || n > 90 {
			t.Errorf("tried %d times in an hour: every 45 to 60 s in the end makes about 75", n)
		}
		if n := strings.Count(logs.String(), "\n"); n != 1 {
			t.Errorf("want one line of log for one change of state, got %d:\n%s", n, logs.String())
		}
		if st := f.Stats(); st.Down.IsZero() || st.Why != "connection refused" || q.Depth() != 1 {
			t.Errorf("stats %+v, %d waiting", st, q.Depth())
		}
	})
}

func TestForwarderObeysRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeSink{inject: []error{&RetryError{Err: errors.New("429"), After: 5 * time.Minute}}}
		forward(t, 10*time.Minute, &Forwarder{Queue: newFakeQueue(1), Sink: s})
		if len(s.tries) != 2 {
			t.Fatalf("%d tries", len(s.tries))
		}
		if gap := s.tries[1].Sub(s.tries[0]); gap < 5*time.Minute || gap > 5*time.Minute+10*time.Second {
			t.Errorf("came back after %v, asked for 5m", gap)
		}
	})
}

// slowSink takes a minute, or until it is cut off.
type slowSink struct {
	takes    time.Duration
	accepted int
	cut      bool
}

func (s *slowSink) String() string { return "slow" }
func (s *slowSink) Send(ctx context.Context, rs []Reading) error {
	pause(ctx, s.takes)
	if ctx.Err() != nil {
		s.cut = true
		return ctx.Err()
	}
	s.accepted += len(rs)
	return nil
}

// A batch under way when the end comes is let arrive, but not for ever; and being
// told to stop is no failure of the broker.
func TestForwarderStopsGently(t *testing.T) {
	for takes, whole := range map[time.Duration]bool{2 * time.Second: true, time.Minute: false} {
		synctest.Test(t, func(t *testing.T) {
			var logs strings.Builder
			s := &slowSink{takes: takes}
			f := &Forwarder{Queue: newFakeQueue(3), Sink: s, Log: slog.New(slog.NewTextHandler(&logs, nil))}
			begun := time.Now()
			forward(t, time.Second, f)
			if took := time.Since(begun); took > 4*time.Second+time.Millisecond {
				t.Errorf("it ended after %v: a second, and 3 s to flush", took)
			}
			if s.cut == whole || (s.accepted == 3) != whole || logs.Len() > 0 || !f.Stats().Down.IsZero() {
				t.Errorf("%v: %+v, log %q", takes, s, logs.String())
			}
		})
	}
}

func TestForwarderGathersAndFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, s := newFakeQueue(0), &fakeSink{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- (&Forwarder{Queue: q, Sink: s}).Run(ctx) }()
		synctest.Wait()
		for i := range 5 { // within the linger: one request
			q.put(fmt.Sprint(i))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if len(s.tries) != 1 || len(s.got) != 5 {
			t.Errorf("%d readings in %d requests, want 5 in 1", len(s.got), len(s.tries))
		}
		q.put("last")
		cancel()
		if err := <-done; err != nil || len(s.got) != 6 {
			t.Errorf("%v: %v", err, s.got)
		}
	})
}

// fakeDater dates readings whose names do not begin with a question mark, until
// it is told.
type fakeDater struct {
	mu      sync.Mutex
	changed chan struct{}
	known   bool
	asked   int
}

func (d *fakeDater) Mend(s Stamp) (Stamp, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	if !d.known && s.Boot == "?" {
		return s, false
	}
	s.Wall = time.Unix(1, 0)
	return s, true
}

func (d *fakeDater) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

func (d *fakeDater) tell(known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known = known
	close(d.changed)
	d.changed = make(chan struct{})
}

// What cannot be dated waits, with all that comes after it, without being asked
// again and again; what comes before it is sent.
func TestForwarderWaitsForTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs strings.Builder
		q, s, d := newFakeQueue(6), &fakeSink{}, &fakeDater{changed: make(chan struct{})}
		q.rs[2].At.Boot, q.rs[4].At.Boot = "?", "?"
		f := &Forwarder{Queue: q, Sink: s, Dater: d, Log: slog.New(slog.NewTextHandler(&logs, nil))}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		own := q.rs
		go func() { done <- f.Run(ctx) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if want := []string{"0", "1"}; !slices.Equal(s.got, want) || q.Depth() != 4 {
			t.Errorf("got %v, want %v; %d wait", s.got, want, q.Depth())
		}
		if !own[0].At.Wall.IsZero() {
			t.Error("the log's own reading was changed")
		}
		asked := d.asked
		for range 10 {
			q.put("new")
			time.Sleep(time.Minute)
		}
		synctest.Wait()
		if d.asked != asked || f.Stats().Failures != 0 || logs.Len() > 0 {
			t.Errorf("asked %d times more, %+v, log %q", d.asked-asked, f.Stats(), logs.String())
		}
		d.tell(false) // it may have been so
		synctest.Wait()
		if len(s.got) != 2 {
			t.Errorf("got %v", s.got)
		}
		d.tell(true)
		synctest.Wait()
		if len(s.got) != 16 || s.got[2] != "2" || s.got[5] != "5" || q.Depth() != 0 {
			t.Errorf("got %v", s.got)
		}
		d.tell(false)
		q.mu.Lock()
		q.rs = append(q.rs, Reading{Sensor: "last", At: Stamp{Boot: "?"}})
		q.mu.Unlock()
		q.ready <- struct{}{}
		time.Sleep(time.Second)
		begun := time.Now()
		cancel()
		if err := <-done; err != nil || time.Since(begun) != 0 || q.Depth() != 1 {
			t.Errorf("%v after %v, %d wait", err, time.Since(begun), q.Depth())
		}
	})
}

// The real Clock and the real Forwarder: held, learnt, sent in order and dated.
func TestForwarderAndClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := power("b", -year)
		defer runClock(t, c)()
		q := newFakeQueue(0)
		var sent []Reading
		f := &Forwarder{Queue: q, Dater: c, Sink: sinkFunc(func(rs []Reading) { sent = append(sent, rs...) })}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		for i := range 60 {
			q.mu.Lock()
			q.rs = append(q.rs, Reading{Sensor: fmt.Sprint(i), At: c.Stamp()})
			q.mu.Unlock()
			select {
			case q.ready <- struct{}{}:
			default:
			}
			if i == 30 {
				synctest.Wait()
				if len(sent) > 0 {
					t.Errorf("%d were sent before the time was known", len(sent))
				}
				m.set(0, true)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for i, r := range sent {
			if want := m.on.Add(era + 20*time.Second + time.Duration(i)*time.Second); r.Sensor != fmt.Sprint(i) || !r.At.Wall.Equal(want) {
				t.Errorf("%d: %s at %v, want %v", i, r.Sensor, r.At.Wall, want)
			}
		}
		if len(sent) != 60 {
			t.Errorf("%d were sent", len(sent))
		}
	})
}

type sinkFunc func([]Reading)

func (sinkFunc) String() string { return "sink" }
func (f sinkFunc) Send(_ context.Context, rs []Reading) error {
	f(rs)
	return nil
}

// A log whose first number has no reading, as one that is new, is waited on as any.
func TestForwarderBeginsWithNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, s := newFakeQueue(0), &fakeSink{}
		q.first = 1
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- (&Forwarder{Queue: newLog{q}, Sink: s}).Run(ctx) }()
		for i := range 3 {
			time.Sleep(time.Minute)
			q.put("next")
			time.Sleep(time.Second)
			synctest.Wait()
			if len(s.got) != i+1 {
				t.Errorf("got %v after %d", s.got, i+1)
			}
		}
		cancel()
		<-done
	})
}

// newLog is a queue that begins at 1, and nothing is acknowledged of it: not even 0.
type newLog struct{ *fakeQueue }

func (q newLog) Bounds() (first, end uint64, anew bool) {
	first, end, anew = q.fakeQueue.Bounds()
	if first == 1 {
		first = 0
	}
	return first, end, anew
}

func (q newLog) Read(from uint64, max int) ([]Reading, uint64, uint64, error) {
	rs, first, next, err := q.fakeQueue.Read(cmp.Or(from, 1), max)
	if len(rs) == 0 {
		return nil, from, from, err
	}
	return rs, first, next, err
}

// Where only the newest matters a backlog is passed over, and counted; what comes then is
// sent as ever.
func TestForwarderLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(1)
		q := newFakeQueue(0)
		s := &sensing{q, map[string]int{}}
		for i := range 1000 {
			s.put([]string{"a", "b", "c"}[i%3])
		}
		s.put("rare")
		m.away = true
		ctx, cancel := context.WithCancel(t.Context())
		f := &Forwarder{Queue: q, Sink: m, Latest: true, Spread: time.Second}
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		for range 30 {
			s.put("a")
			time.Sleep(time.Second)
		}
		m.mu.Lock()
		m.away = false
		m.mu.Unlock()
		time.Sleep(2 * time.Minute)
		state := func(key string) []int {
			m.mu.Lock()
			defer m.mu.Unlock()
			return slices.Clone(m.state[key])
		}
		want := map[string]int{"a": 363, "b": 332, "c": 332, "r": 0}
		for key, n := range want {
			if got := state(key); len(got) != 1 || got[0] != n {
				t.Errorf("%s: %v, want only %d", key, got, n)
			}
		}
		if st := f.Stats(); q.Depth() != 0 || st.Sent != 4 || st.Skipped != 1027 || st.Draining {
			t.Errorf("%+v, %d wait", st, q.Depth())
		}
		s.put("b")
		time.Sleep(time.Second)
		if got := state("b"); len(got) != 2 {
			t.Errorf("b: %v", got)
		}
		cancel()
		<-done
	})
}
