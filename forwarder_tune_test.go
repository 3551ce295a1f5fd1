package gateway

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// brokers are what the tuner must suit with one set of constants: the measured rates
// of an Orion with a slow and a fast database, near and far, and one that is faster
// with more connections (-reqMutexPolicy none, slow database).
var brokers = []struct {
	perSec   float64
	workers  int
	overhead time.Duration
}{
	{300, 1, time.Millisecond},
	{300, 1, 20 * time.Millisecond},
	{300, 1, 100 * time.Millisecond},
	{4000, 1, time.Millisecond},
	{4000, 1, 20 * time.Millisecond},
	{4000, 1, 100 * time.Millisecond},
	{2297. / 8, 8, time.Millisecond},
	{2297. / 8, 8, 20 * time.Millisecond},
	{2297. / 8, 8, 100 * time.Millisecond},
	{500, 4, 20 * time.Millisecond},
}

// capacity is what a broker serves a second; of one that is far and has as many
// workers as there are lanes, what it serves of requests of 500 ms.
func capacity(perSec float64, workers int, overhead time.Duration) float64 {
	const target = 500 * time.Millisecond
	served := float64(target-overhead) / float64(target) * mostLanes // lanes of which a request is being served
	return perSec * min(float64(workers), served)
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUV" // as many for each of eight lanes

// backlogged is a queue with n readings of 48 entities.
func backlogged(n int) *sensing {
	s := &sensing{newFakeQueue(0), map[string]int{}}
	for i := range n {
		s.put(letters[i%len(letters):][:1])
	}
	return s
}

// between is how many readings a second were taken then.
func (m *model) between(from, to time.Time) float64 {
	n := 0
	for i, at := range m.at {
		if !at.Before(from) && at.Before(to) {
			n += m.sends[i]
		}
	}
	return float64(n) / to.Sub(from).Seconds()
}

// latency is that of the requests that ended from then on: the quantile, and the most.
func (m *model) latency(from time.Time, q float64) (time.Duration, time.Duration) {
	i, _ := slices.BinarySearchFunc(m.at, from, time.Time.Compare)
	return quantile(m.took[i:], q), quantile(m.took[i:], 1)
}

func quantile(ds []time.Duration, q float64) time.Duration {
	ds = slices.Sorted(slices.Values(ds))
	return ds[min(len(ds)-1, int(q*float64(len(ds))))]
}

func TestTunerFindsTheCapacity(t *testing.T) {
	for _, b := range brokers {
		t.Run(fmt.Sprintf("%.0fx%d,%v", b.perSec, b.workers, b.overhead), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newModel(1)
				m.perSec, m.workers, m.overhead = b.perSec, b.workers, b.overhead
				capacity := capacity(b.perSec, b.workers, b.overhead)
				s := backlogged(int(capacity * 130))
				f := &Forwarder{Queue: s.q, Sink: m}
				begun := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				f.Run(ctx)
				reached := 0
				for reached < 110 && m.between(begun.Add(time.Duration(reached)*time.Second), begun.Add(time.Duration(reached+5)*time.Second)) < 0.9*capacity {
					reached++
				}
				rate := m.between(begun.Add(30*time.Second), begun.Add(2*time.Minute)) / capacity
				p99, most := m.latency(begun, 0.99)
				st := f.Stats()
				t.Logf("90 %% from %d s on; %.1f %% after 30 s; request p99 %v, most %v; %+v", reached, 100*rate, p99, most, st.Tuned)
				if reached > 30 || rate < 0.9 || p99 > time.Second {
					t.Error("want 90 % within 30 s, and then, and a p99 of at most 1 s")
				}
			})
		})
	}
}

func TestTunerFollowsABrokerThatSlowsDown(t *testing.T) {
	for _, b := range brokers {
		t.Run(fmt.Sprintf("%.0fx%d,%v", b.perSec, b.workers, b.overhead), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newModel(1)
				m.perSec, m.workers, m.overhead = b.perSec, b.workers, b.overhead
				capacity := capacity(b.perSec, b.workers, b.overhead)
				s := backlogged(int(capacity * 80))
				f := &Forwarder{Queue: s.q, Sink: m}
				begun := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
				defer cancel()
				time.AfterFunc(time.Minute, func() {
					m.mu.Lock()
					m.perSec /= 10
					m.mu.Unlock()
				})
				f.Run(ctx)
				slow := begun.Add(time.Minute)
				rate := m.between(slow.Add(30*time.Second), slow.Add(2*time.Minute)) / (capacity / 10)
				_, most := m.latency(begun, 0.99)
				p99, _ := m.latency(slow.Add(30*time.Second), 0.99)
				st := f.Stats()
				t.Logf("%.1f %% of a tenth after 30 s; request p99 then %v, most ever %v; %+v", 100*rate, p99, most, st.Tuned)
				if rate < 0.9 || p99 > time.Second || most >= 30*time.Second {
					t.Error("want 90 %, a p99 of at most 1 s, and no timeout")
				}
			})
		})
	}
}
