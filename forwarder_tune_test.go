package gateway

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
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
	if len(ds) == 0 {
		return math.MaxInt64
	}
	ds = slices.Sorted(slices.Values(ds))
	return ds[min(len(ds)-1, int(q*float64(len(ds))))]
}

func TestTunerFindsTheCapacity(t *testing.T) {
	for _, b := range brokers {
		t.Run(fmt.Sprintf("%.0fx%d,%v", b.perSec, b.workers, b.overhead), func(t *testing.T) {
			if raceEnabled && b.perSec > 1000 {
				t.Skip("slow with -race")
			}
			synctest.Test(t, func(t *testing.T) {
				m := newModel(1)
				m.perSec, m.workers, m.overhead = b.perSec, b.workers, b.overhead
				capacity := capacity(b.perSec, b.workers, b.overhead)
				s := backlogged(int(capacity * 85))
				f := &Forwarder{Queue: s.q, Sink: m}
				begun := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 80*time.Second)
				defer cancel()
				f.Run(ctx)
				reached := 0
				for reached < 70 && m.between(begun.Add(time.Duration(reached)*time.Second), begun.Add(time.Duration(reached+5)*time.Second)) < 0.9*capacity {
					reached++
				}
				rate := m.between(begun.Add(30*time.Second), begun.Add(80*time.Second)) / capacity
				p99, most := m.latency(begun, 0.99)
				st := f.Stats()
				t.Logf("90 %% from %d s on; %.1f %% after 30 s; request p99 %v, most %v; %+v", reached, 100*rate, p99, most, st.Tuned)
				if reached > 30 || rate < 0.9 || p99 > time.Second {
					t.Error("want 90 % within 30 s, and then, and a p99 of at most 1 s")
				}
				if b.workers == 1 && st.Lanes > 3 { // two for a far one, and one on trial
					t.Errorf("%d lanes do not make it faster", st.Lanes)
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
				s := backlogged(int(capacity * 55))
				f := &Forwarder{Queue: s.q, Sink: m}
				begun := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 130*time.Second)
				defer cancel()
				time.AfterFunc(40*time.Second, func() {
					m.mu.Lock()
					m.perSec /= 10
					m.mu.Unlock()
				})
				f.Run(ctx)
				slow := begun.Add(40 * time.Second)
				rate := m.between(slow.Add(30*time.Second), slow.Add(90*time.Second)) / (capacity / 10)
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

// aging notes how old readings are when the broker has them; their Since is when they
// were put.
type aging struct {
	*model
	begun  time.Time
	only   string // the entities that count
	delays []time.Duration
	sent   uint64 // bytes
}

func (a *aging) Bytes() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sent
}

func (a *aging) Send(ctx context.Context, rs []Reading) error {
	return a.note(rs, a.model.Send(ctx, rs))
}

func (a *aging) note(rs []Reading, err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent += uint64(300 + 540*len(rs))
	for _, r := range rs {
		if err == nil && strings.Contains(a.only, r.Sensor) {
			a.delays = append(a.delays, time.Since(a.begun)-r.At.Since)
		}
	}
	return err
}

// live puts readings of these entities in turn.
func (a *aging) live(ctx context.Context, s *sensing, every time.Duration) {
	for i := 0; ; i++ {
		pause(ctx, every)
		if ctx.Err() != nil {
			return
		}
		s.putAt(string(a.only[i%len(a.only)]), time.Since(a.begun))
	}
}

// With 50 readings a second a reading is at the broker within linger and 1.2 times what
// the broker takes for a request of what comes within linger, when it is idle.
func TestLiveReadingIsFresh(t *testing.T) {
	for _, b := range brokers {
		t.Run(fmt.Sprintf("%.0fx%d,%v", b.perSec, b.workers, b.overhead), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newModel(1)
				m.perSec, m.workers, m.overhead = b.perSec, b.workers, b.overhead
				a := &aging{model: m, begun: time.Now(), only: letters[:10]}
				s := backlogged(0)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				go a.live(ctx, s, time.Second/50)
				(&Forwarder{Queue: s.q, Sink: a}).Run(ctx)
				own := b.overhead + time.Duration(50*0.2/b.perSec*float64(time.Second))
				p99 := quantile(a.delays, 0.99)
				t.Logf("p99 %v, the broker's own %v", p99, own)
				if limit := 200*time.Millisecond + own*12/10; p99 > limit || len(a.delays) < 50*58 {
					t.Errorf("p99 %v of %d, want at most %v", p99, len(a.delays), limit)
				}
			})
		})
	}
}

// A reading of an entity without a backlog does not wait for the backlog of others,
// where all goes in order.
func TestLiveReadingDuringADrain(t *testing.T) {
	for _, b := range brokers {
		t.Run(fmt.Sprintf("%.0fx%d,%v", b.perSec, b.workers, b.overhead), func(t *testing.T) {
			if raceEnabled && b.perSec > 1000 {
				t.Skip("slow with -race")
			}
			synctest.Test(t, func(t *testing.T) {
				m := newModel(1)
				m.perSec, m.workers, m.overhead = b.perSec, b.workers, b.overhead
				a := &aging{model: m, begun: time.Now(), only: "YZ"}
				s := backlogged(int(capacity(b.perSec, b.workers, b.overhead) * 60))
				f := &Forwarder{Queue: s.q, Sink: a}
				ctx, cancel := context.WithTimeout(t.Context(), 80*time.Second)
				defer cancel()
				time.AfterFunc(5*time.Second, func() { a.live(ctx, s, 70*time.Millisecond) }) // by then it has looked at the backlog
				f.Run(ctx)
				p99, most := quantile(a.delays, 0.99), quantile(a.delays, 1)
				rate := m.between(a.begun.Add(30*time.Second), a.begun.Add(55*time.Second)) / capacity(b.perSec, b.workers, b.overhead)
				t.Logf("p50 %v, p99 %v, most %v, of %d; broker %.1f %% busy; %v left", quantile(a.delays, .5), p99, most, len(a.delays), 100*rate, s.q.Depth())
				if p99 > 1200*time.Millisecond+b.overhead || most > 2*time.Second {
					t.Error("want a p99 of at most linger, twice the target and the way, and never 2 s")
				}
				s.once(t, m)
				m.rising(t)
			})
		})
	}
}

// agingHistorian has a place for the past.
type agingHistorian struct{ *aging }

func (a agingHistorian) History() (Sink, bool) { return agingPast{past{a.model}, a.aging}, true }

type agingPast struct {
	past
	a *aging
}

func (p agingPast) Send(ctx context.Context, rs []Reading) error {
	return p.a.note(rs, p.past.Send(ctx, rs))
}

// A cap on bytes holds in every minute, is used, and what is live goes first; also if
// that alone is more.
func TestRateIsKept(t *testing.T) {
	for _, c := range []struct {
		rate      int
		every     time.Duration
		historian bool
		oldest    time.Duration
		least     float64
	}{
		{2000, time.Second, false, 500 * time.Millisecond, 0.95},
		{20_000, time.Second, false, 500 * time.Millisecond, 0.95},
		{200_000, time.Second, false, 500 * time.Millisecond, 0.95},
		{20_000, time.Second, true, 500 * time.Millisecond, 0.95},
		{2000, 200 * time.Millisecond, true, time.Hour, 0.93}, // of two sizes of batches, up to the rate of a second
	} {
		t.Run(fmt.Sprint(c.rate, c.every, c.historian), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newModel(1)
				m.perSec, m.overhead = 4000, 20*time.Millisecond
				a := &aging{model: m, begun: time.Now(), only: "YZ"}
				s := backlogged(c.rate / 540 * 300)
				ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
				defer cancel()
				time.AfterFunc(5*time.Second, func() { a.live(ctx, s, c.every) })
				bytes := make([]uint64, 0, 240) // by the second
				var counting sync.WaitGroup
				counting.Go(func() {
					for ; ctx.Err() == nil; time.Sleep(time.Second) {
						bytes = append(bytes, a.Bytes())
					}
				})
				var sink Sink = a
				if c.historian {
					sink = agingHistorian{a}
				}
				(&Forwarder{Queue: s.q, Sink: sink, Rate: c.rate}).Run(ctx)
				counting.Wait()
				least, most := 1., 0.
				for i := 60; i < len(bytes); i++ {
					share := float64(bytes[i]-bytes[i-60]) / 60 / float64(c.rate)
					least, most = min(least, share), max(most, share)
				}
				oldest := quantile(a.delays, 1)
				t.Logf("%.1f to %.1f %% of the cap in a minute; live p50 %v, most %v", 100*least, 100*most, quantile(a.delays, 0.5), oldest)
				if least < c.least || most > 1 {
					t.Errorf("want %.0f to 100 %%", 100*c.least)
				}
				if oldest > c.oldest {
					t.Errorf("what is live came after up to %v", oldest)
				}
			})
		})
	}
}

// A broker that is slow whatever little we send is loaded: one lane, and no trial.
func TestTunerSparesALoadedBroker(t *testing.T) {
	u, now := newTuner(500*time.Millisecond, 500, 8, Tuned{leastBatch, 8}), time.Unix(0, 0)
	for range 100 {
		u.landed(leastBatch, 3*time.Second)
		now = now.Add(time.Second)
		was := u.lanes
		if u.drained(leastBatch, now); u.lanes > was {
			t.Fatalf("%d lanes, then %d", was, u.lanes)
		}
	}
	if u.lanes != 1 || !u.loaded || u.size() != leastBatch {
		t.Errorf("%+v", u)
	}
	if u.landed(leastBatch, 100*time.Millisecond); u.loaded {
		t.Error("it is loaded for ever")
	}
}

// Fixed sizes are what is sent, however long it takes.
func TestFixedSizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(1)
		m.perSec = 50
		s := backlogged(48 * 70)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		f := &Forwarder{Queue: s.q, Sink: m, Batch: 70, Lanes: 3, Target: -1, Tuned: Tuned{5, 1}}
		f.Run(ctx)
		for _, n := range m.sends[:len(m.sends)-6] {
			if n != 70 {
				t.Fatalf("sent %v", m.sends)
			}
		}
		if m.most != 3 || f.Stats().Tuned != (Tuned{70, 3}) || s.q.Depth() != 0 {
			t.Errorf("%d at a time, %+v, %d left", m.most, f.Stats().Tuned, s.q.Depth())
		}
	})
}

// What was found out before is where tuning begins, and what nobody can have found out
// does no harm.
func TestTunedIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var found Tuned
		for range 2 {
			m := newModel(1)
			m.perSec, m.workers, m.overhead = 1000, 4, 20*time.Millisecond
			s := backlogged(100_000)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			f := &Forwarder{Queue: s.q, Sink: m, Tuned: found}
			f.Run(ctx)
			cancel()
			if found.Batch > 0 {
				for _, n := range m.sends[:found.Lanes] {
					if n != found.Batch {
						t.Errorf("after %+v it sent %v", found, m.sends[:10])
					}
				}
			}
			found = f.Stats().Tuned
		}
		if found.Batch < 100 || found.Lanes < 4 {
			t.Errorf("it found %+v", found)
		}
	})
	for _, x := range []Tuned{{-5, -5}, {math.MaxInt, math.MaxInt}, {math.MinInt, 0}} {
		u := newTuner(time.Second, 500, 8, x)
		for range 200 {
			u.landed(u.size(), time.Millisecond)
		}
		if u.size() != 500 || u.lanes < 1 || u.lanes > 8 {
			t.Errorf("%+v: %d, %d lanes", x, u.size(), u.lanes)
		}
	}
}

// A broker that answers that it cannot, or asks for a pause, gets half; in an outage
// only once, but each time that it asks.
func TestTunerHalves(t *testing.T) {
	busy := errors.New("503 Service Unavailable")
	for _, c := range []struct {
		inject []error
		want   int
	}{
		{[]error{&RetryError{Err: busy}}, 100},
		{[]error{&RetryError{Err: busy}, &RetryError{Err: busy}, &RetryError{Err: busy}}, 100},
		{[]error{&RetryError{Err: busy, After: time.Second}, &RetryError{Err: busy, After: time.Second}}, 50},
		{[]error{&RetryError{Err: busy, Lost: true}}, 200},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &fakeSink{inject: c.inject}
			f := &Forwarder{Queue: newFakeQueue(150), Sink: s, Tuned: Tuned{200, 1}}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- f.Run(ctx) }()
			for f.Stats().Failures < uint64(len(c.inject)) {
				time.Sleep(10 * time.Millisecond)
			}
			if got := f.Stats().Batch; got != c.want {
				t.Errorf("after %v it sends %d, want %d", c.inject, got, c.want)
			}
			cancel()
			<-done
		})
	}
}

// Whatever happens: at least one reading and one lane, no more than allowed, never more
// after what was slow or failed, never less after what was fast.
func TestTunerProperty(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		most, lanes := 1+rnd.IntN(600), 1+rnd.IntN(mostLanes)
		target := 500 * time.Millisecond
		if seed%10 == 0 {
			target = -1
		}
		u := newTuner(target, most, lanes, Tuned{rnd.IntN(2000) - 500, rnd.IntN(20) - 5})
		now := time.Unix(0, 0)
		for range 2000 {
			was := u
			n, took := 1+rnd.IntN(u.size()), time.Duration(rnd.ExpFloat64()*float64(400*time.Millisecond))
			if rnd.IntN(2) == 0 {
				n = u.size()
			}
			now = now.Add(took / 4)
			what := ""
			switch rnd.IntN(20) {
			case 0:
				what = "failed"
				u.failed(took, rnd.IntN(2) == 0)
				if u.batch > was.batch || u.lanes > was.lanes {
					t.Errorf("%d: more after a failure: %+v, %+v", seed, was, u)
				}
			default:
				what = "landed"
				u.landed(n, took)
				if took > 500*time.Millisecond && u.batch > was.batch || took <= 500*time.Millisecond && u.batch < was.batch {
					t.Errorf("%d: %v for %d: %v, then %v", seed, took, n, was.batch, u.batch)
				}
				was := u
				if changed := u.drained(n, now); changed != (u.lanes != was.lanes) {
					t.Errorf("%d: changed %v: %+v, %+v", seed, changed, was, u)
				}
			}
			if u.size() < 1 || u.size() > most || u.lanes < 1 || u.lanes > lanes {
				t.Fatalf("%d: %s: %+v", seed, what, u)
			}
			if target < 0 && (u.size() != most || u.lanes != lanes) {
				t.Fatalf("%d: fixed, and yet %+v", seed, u)
			}
		}
	}
}

// How long each wait may be, and that it is anything in between.
func TestWaitProperty(t *testing.T) {
	f := &Forwarder{Spread: time.Minute}
	quick := &Forwarder{Spread: time.Second}
	none, lost := errors.New("?"), &RetryError{Err: errors.New("refused"), Lost: true}
	for _, c := range []struct {
		f                *Forwarder
		err              error
		failures, losses int
		least, most      time.Duration
	}{
		{f, none, 1, 0, leastBackOff, time.Second},
		{f, none, 2, 0, leastBackOff, 2 * time.Second},
		{f, none, 6, 0, leastBackOff, 32 * time.Second},
		{f, none, 7, 0, 45 * time.Second, time.Minute},
		{f, none, math.MaxInt, 0, 45 * time.Second, time.Minute},
		{f, lost, 1, 1, leastBackOff, time.Minute},
		{f, lost, 9, 1, leastBackOff, time.Minute},
		{f, lost, 2, 2, 45 * time.Second, time.Minute},
		{f, lost, math.MaxInt, math.MaxInt, 45 * time.Second, time.Minute},
		{quick, lost, 1, 1, leastBackOff, time.Second},
		{quick, lost, 3, 3, 3 * time.Second, 4 * time.Second},
		{quick, lost, 9, 9, 45 * time.Second, time.Minute},
		{f, &RetryError{Err: none, After: time.Minute}, 1, 0, time.Minute + leastBackOff/10, time.Minute + time.Second/10},
		{f, &RetryError{Err: none, After: 10 * time.Minute}, 9, 0, 10*time.Minute + 4500*time.Millisecond, 10*time.Minute + 6*time.Second},
	} {
		least, most := time.Duration(math.MaxInt64), time.Duration(0)
		for range 3000 {
			d := c.f.wait(c.err, c.failures, c.losses)
			least, most = min(least, d), max(most, d)
		}
		span := c.most - c.least
		if least < c.least || least > c.least+span/20 || most > c.most || most < c.most-span/10 {
			t.Errorf("%v after %d failures, %d losses: %v to %v, want %v to %v", c.err, c.failures, c.losses, least, most, c.least, c.most)
		}
	}
}
