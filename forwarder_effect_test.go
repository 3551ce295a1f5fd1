package gateway

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// model is a broker: it serves so many readings a second, one request after the
// other, fails now and then after it has taken some, and can be away.
type model struct {
	mu       sync.Mutex
	perSec   float64 // 0: at once
	workers  int     // requests served at a time, each so fast; 0: one
	overhead time.Duration
	flaws    int // one request in so many fails; 0: none
	away     bool
	rnd      *rand.Rand
	free     []time.Time // when each worker has served what it has

	state   map[string][]int // by key, what became the state, in this order
	history map[string][]int
	sends   []int // readings
	took    []time.Duration
	at      []time.Time // when they ended
	asked   int
	inside  int // at a time
	most    int
}

func newModel(seed uint64) *model {
	return &model{rnd: rand.New(rand.NewPCG(seed, 1)), state: map[string][]int{}, history: map[string][]int{}}
}

func (m *model) String() string           { return "model" }
func (m *model) Key(sensor string) string { return sensor[:1] }

// serve waits for a request's turn. An error comes after keep of n are taken.
func (m *model) serve(ctx context.Context, n int) (keep int, err error) {
	m.mu.Lock()
	if m.away {
		m.mu.Unlock()
		return 0, &RetryError{Err: errors.New("connection refused"), Lost: true}
	}
	m.inside++
	m.most = max(m.most, m.inside)
	keep = n
	if m.flaws > 0 && m.rnd.IntN(m.flaws) == 0 {
		keep, err = m.rnd.IntN(n+1), &RetryError{Err: errors.New("connection reset"), Lost: true}
	}
	begun := time.Now()
	if m.free == nil {
		m.free = make([]time.Time, max(1, m.workers))
	}
	w := 0
	for i, free := range m.free {
		if free.Before(m.free[w]) {
			w = i
		}
	}
	if m.free[w].Before(begun) {
		m.free[w] = begun
	}
	if m.perSec > 0 {
		m.free[w] = m.free[w].Add(time.Duration(float64(n) / m.perSec * float64(time.Second)))
	}
	until := m.free[w].Add(m.overhead)
	m.mu.Unlock()
	pause(ctx, time.Until(until))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inside--
	m.sends, m.took, m.at = append(m.sends, n), append(m.took, time.Since(begun)), append(m.at, time.Now())
	return keep, err
}

func (m *model) Send(ctx context.Context, rs []Reading) error {
	keep, err := m.serve(ctx, len(rs))
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range rs[:keep] {
		m.state[m.Key(r.Sensor)] = append(m.state[m.Key(r.Sensor)], int(r.Values[0].V.(float64)))
	}
	return err
}

func (m *model) Held(ctx context.Context, rs []Reading) ([]bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	if m.away {
		return nil, errors.New("connection refused")
	}
	held := make([]bool, len(rs))
	for i, r := range rs {
		for _, n := range m.state[m.Key(r.Sensor)] {
			held[i] = held[i] || n >= int(r.Values[0].V.(float64))
		}
	}
	return held, nil
}

// historian is a model with a place for the past.
type historian struct{ *model }

func (h historian) History() (Sink, bool) { return past(h), true }

// forgetful is a model that could have one, and has none.
type forgetful struct{ *model }

func (h forgetful) History() (Sink, bool) { return past(h), false }

type past struct{ *model }

func (p past) String() string { return "past" }

func (p past) Send(ctx context.Context, rs []Reading) error {
	keep, err := p.serve(ctx, len(rs))
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range rs[:keep] {
		p.history[p.Key(r.Sensor)] = append(p.history[p.Key(r.Sensor)], int(r.Values[0].V.(float64)))
	}
	return err
}

func (p past) Held(ctx context.Context, rs []Reading) ([]bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.away {
		return nil, errors.New("connection refused")
	}
	held := make([]bool, len(rs))
	for i, r := range rs {
		n := int(r.Values[0].V.(float64))
		for _, x := range append(p.history[p.Key(r.Sensor)], p.state[p.Key(r.Sensor)]...) { // such brokers keep each state
			held[i] = held[i] || n == x
		}
	}
	return held, nil
}

// sensing puts readings of these sensors, each numbered by its key.
type sensing struct {
	q      *fakeQueue
	counts map[string]int
}

func (s *sensing) put(sensor string) {
	s.putAt(sensor, time.Duration(s.counts[sensor[:1]])*time.Second)
}

func (s *sensing) putAt(sensor string, since time.Duration) {
	n := s.counts[sensor[:1]]
	s.counts[sensor[:1]]++
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	s.q.rs = append(s.q.rs, Reading{Sensor: sensor, At: Stamp{Boot: "b", Since: since},
		Values: []Value{{Temperature, float64(n)}}})
	select {
	case s.q.ready <- struct{}{}:
	default:
	}
}

// once checks that of each key every number below its count was taken, once.
func (s *sensing) once(t *testing.T, m *model) {
	t.Helper()
	for key, count := range s.counts {
		seen := make([]int, count)
		for _, n := range append(m.history[key], m.state[key]...) {
			seen[n]++
		}
		for n, times := range seen {
			if times != 1 {
				t.Errorf("%s: reading %d of %d was taken %d times", key, n, count, times)
				return
			}
		}
	}
}

// rising checks that no state was older than the one before.
func (m *model) rising(t *testing.T) {
	t.Helper()
	for key, ns := range m.state {
		for i := 1; i < len(ns); i++ {
			if ns[i] <= ns[i-1] {
				t.Errorf("%s: %d after %d", key, ns[i], ns[i-1])
				return
			}
		}
	}
}

// Whatever fails in between, and however often the forwarder is restarted with
// acknowledgements that did not reach the disk: every reading once, in order.
func TestForwarderInEffectOnce(t *testing.T) {
	for _, kind := range []string{"in order", "historian", "forgetful"} {
		for seed := range uint64(30) {
			t.Run(fmt.Sprint(kind, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := newModel(seed)
					m.perSec, m.overhead, m.flaws = 100+400*m.rnd.Float64(), 5*time.Millisecond, 3+m.rnd.IntN(20)
					var sink Sink = m
					switch kind {
					case "historian":
						sink = historian{m}
					case "forgetful":
						sink = forgetful{m}
					}
					q := newFakeQueue(0)
					s := &sensing{q, map[string]int{}}
					sensors := []string{"a", "b", "c1", "c2", "d", "e", "f1", "f2"}
					stop := make(chan struct{})
					var putting sync.WaitGroup
					putting.Go(func() {
						rnd := rand.New(rand.NewPCG(seed, 2))
						for range 4000 {
							s.put(sensors[rnd.IntN(len(sensors))])
							pause(t.Context(), time.Duration(rnd.IntN(40))*time.Millisecond)
						}
						close(stop)
					})
					for running := true; running; {
						select {
						case <-stop:
							running = false
						default:
						}
						f := &Forwarder{Queue: q, Sink: sink, Spread: time.Second, Flush: time.Millisecond}
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+m.rnd.IntN(30))*time.Second)
						if !running {
							cancel()
							ctx, cancel = context.WithTimeout(t.Context(), time.Hour)
							m.flaws = 0
						}
						if err := f.Run(ctx); err != nil {
							t.Error(err)
						}
						cancel()
						m.mu.Lock()
						m.away = m.rnd.IntN(4) == 0
						m.mu.Unlock()
						if running && m.rnd.IntN(2) == 0 {
							q.forget(m.rnd.IntN(300)) // the last acknowledgements were not committed
						}
						if running {
							pause(t.Context(), time.Duration(m.rnd.IntN(10))*time.Second)
						}
						m.mu.Lock()
						m.away = false
						m.mu.Unlock()
					}
					putting.Wait()
					if q.Depth() != 0 {
						t.Errorf("%d wait", q.Depth())
					}
					s.once(t, m)
					m.rising(t)
					if len(m.history) > 0 && kind != "historian" {
						t.Error("a history was written that is not there")
					}
				})
			})
		}
	}
}

// hanging is a historian whose first Send hangs for a minute, and fails.
type hanging struct {
	historian
	hung *bool
}

func (h hanging) Send(ctx context.Context, rs []Reading) error {
	if !*h.hung {
		*h.hung = true
		pause(ctx, time.Minute)
		return &RetryError{Err: errors.New("it takes too long"), Lost: true}
	}
	return h.historian.Send(ctx, rs)
}

// What the lanes had read when the broker hung is a backlog after that, and the newest
// of it is a state, never history.
func TestForwarderKnowsTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(1)
		q := newFakeQueue(0)
		s := &sensing{q, map[string]int{}}
		f := &Forwarder{Queue: q, Sink: hanging{historian{m}, new(bool)}, Spread: time.Millisecond}
		go func() {
			for range 60 {
				pause(t.Context(), time.Second)
				s.put("a")
				s.put("b")
			}
		}()
		forward(t, 2*time.Minute, f)
		s.once(t, m)
		m.rising(t)
		for _, key := range []string{"a", "b"} {
			if len(m.state[key]) == 0 || len(m.history[key]) == 0 || m.history[key][len(m.history[key])-1] == 59 {
				t.Errorf("%s: states %v, history %v", key, m.state[key], m.history[key])
			}
		}
	})
}
