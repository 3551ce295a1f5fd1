package gateway

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// flight is one Send.
type flight struct {
	lane    *lane
	sink    Sink
	past    bool // of the Sink's History
	rs      []Reading
	numbers []uint64
	ask     bool   // who the broker is; nothing is sent
	doubt   bool   // what it holds, first
	held    []bool // nil: none
	err     error
	begun   time.Time
	took    time.Duration // of the Send
}

// launch sends what can be sent.
func (f *forwarding) launch(now time.Time) {
	if _, ok := f.Sink.(Asker); ok && !f.asked {
		if f.flying == 0 && f.end > f.done.base {
			f.fly(&flight{sink: f.Sink, ask: true})
		}
		return
	}
	if f.express.flying == 0 && !f.busy(now) && now.After(f.clear.Add(-rateBatch)) {
		f.send(&f.express, nil)
	}
	for _, l := range f.lanes {
		if l.flying == 0 && !f.busy(now) && !now.Before(l.until) && !now.Before(f.clear) {
			f.send(l, f.past)
		}
	}
}

// busy reports whether what is under way is all that may be.
func (f *forwarding) busy(now time.Time) bool { return f.flying > 0 && now.Before(f.alone) }

// send sends the next batch of a lane, to where the past goes if that is a place of
// its own; unless another try is under way while the circuit is open.
func (f *forwarding) send(l *lane, past Sink) {
	if len(l.rs) == 0 || f.reset || f.open && f.flying > 0 {
		return
	}
	n := min(len(l.rs), f.tuner.size())
	if f.open {
		n = min(n, firstBatch)
	}
	if f.Rate > 0 {
		n = min(n, max(1, int(float64(f.Rate)*rateBatch.Seconds()*f.carried/f.spent)))
	}
	fl := &flight{lane: l, sink: f.Sink, past: past != nil, rs: l.rs[:n], numbers: l.numbers[:n]}
	if fl.past {
		fl.sink = past
	}
	if _, ok := fl.sink.(Reconciler); ok {
		for i, number := range fl.numbers {
			fl.doubt = fl.doubt || f.doubts[number] || number < f.restarted && (fl.past || f.sensors[fl.rs[i].Sensor].doubted)
		}
	}
	l.flying = n
	f.fly(fl)
}

func (f *forwarding) fly(fl *flight) {
	f.flying++
	fl.begun = time.Now()
	go func() {
		fl.do(f.ctx)
		f.landed <- fl
	}()
}

// do sends, without what the broker holds.
func (fl *flight) do(ctx context.Context) {
	if fl.ask {
		fl.err = fl.sink.(Asker).Ask(ctx)
		return
	}
	rs := fl.rs
	var places []int // in fl.rs
	if fl.doubt && planted != "send-unasked" {
		if fl.held, fl.err = fl.sink.(Reconciler).Held(ctx, rs); fl.err != nil {
			return
		}
		rs = make([]Reading, 0, len(fl.rs))
		for i, held := range fl.held {
			if !held {
				rs, places = append(rs, fl.rs[i]), append(places, i)
			}
		}
	}
	if len(rs) == 0 {
		return
	}
	begun := time.Now()
	fl.err = fl.sink.Send(ctx, rs)
	fl.took = time.Since(begun)
	if r, ok := errors.AsType[*RejectError](fl.err); ok && places != nil {
		moved := &RejectError{}
		for _, x := range r.Rejected {
			moved.Rejected = append(moved.Rejected, Rejection{places[x.Index], x.Reason})
		}
		fl.err = moved
	}
}

// land settles what a flight has brought.
func (f *forwarding) land(fl *flight) {
	f.flying--
	if f.Rate > 0 {
		f.metered(len(fl.rs), fl.begun)
	}
	if fl.ask {
		if fl.err != nil {
			f.failed(fl.err, fl.took)
		}
		f.asked = fl.err == nil
		return
	}
	rejected, _ := errors.AsType[*RejectError](fl.err)
	if rejected != nil {
		fl.err = nil
		for _, r := range rejected.Rejected {
			if err := f.Queue.Reject(fl.rs[r.Index:r.Index+1], r.Reason); err != nil {
				fl.err = fmt.Errorf("set a rejected reading aside: %w", err)
				break // it is sent, and rejected, again
			}
			f.Log.Warn("the broker rejects a reading: it is set aside", "to", f.Sink.String(), "sensor", fl.rs[r.Index].Sensor, "why", r.Reason)
		}
	}
	if fl.err != nil || f.stale {
		for _, number := range fl.numbers {
			f.doubts[number] = true
		}
		fl.lane.flying = 0
		if fl.err != nil {
			f.failed(fl.err, fl.took)
		}
		return
	}
	f.succeeded(fl, rejected)
}

// metered keeps the lanes back until what was sent is no more than Rate allows. What is
// live may run ahead of that by rateBatch, which the lanes then wait for.
func (f *forwarding) metered(n int, begun time.Time) {
	bytes := f.Sink.(Meter).Bytes()
	sent := float64(bytes - f.bytes)
	f.bytes = bytes
	f.spent, f.carried = f.spent+sent, f.carried+float64(n)
	if f.clear.Before(begun) {
		f.clear = begun
	}
	f.clear = f.clear.Add(time.Duration(sent / rateShare / float64(f.Rate) * float64(time.Second)))
}

const (
	rateBatch    = time.Second // what a batch takes of Rate, at most
	rateShare    = 0.97        // of Rate, so that no minute with one batch more is above it
	usualReading = 540         // bytes: Orion's form of three quantities
)

// succeeded settles the readings of a flight.
func (f *forwarding) succeeded(fl *flight, rejected *RejectError) {
	n, held := len(fl.rs), 0
	for i, r := range fl.rs {
		number := fl.numbers[i]
		s := f.source(r.Sensor, number)
		if fl.held != nil {
			s.doubted = s.doubted && (fl.held[i] || fl.past) // in order: what follows is not there either
			if fl.held[i] {
				held++
			}
		}
		if number == none {
			continue
		}
		if !fl.past {
			s.stated = max(s.stated, number+1)
		}
		f.done.settle(number, number+1)
		if len(f.claimed) > 0 {
			delete(f.claimed, number)
		}
		if len(f.doubts) > 0 {
			delete(f.doubts, number)
		}
	}
	fl.lane.drop(n)
	defer f.settled(0) // once it is told
	now := time.Now()
	if !f.reset { // another try may have failed meanwhile
		if f.losses > 0 { // a campus is coming back, and nobody takes a second connection before all have one
			f.alone = now.Add(f.Spread + rand.N(f.Spread))
		}
		f.open, f.failures, f.losses = false, 0, 0
	}
	_, skipped := fl.sink.(skipper)
	if fl.took > 0 && !skipped {
		f.tuner.landed(n-held, fl.took)
		if f.draining && fl.lane != &f.express {
			if f.tuner.loaded && f.rate > 0 {
				fl.lane.until = now.Add(min(rest*fl.took, time.Duration(float64(n)/f.rate*float64(time.Second))-fl.took))
			}
			if f.end-f.at > uint64(f.window()) && !now.Before(f.alone) && f.tuner.drained(n-held, now) {
				f.reset = true
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	st := &f.stat
	if skipped {
		st.Skipped += uint64(n)
		return
	}
	if rejected != nil {
		n -= len(rejected.Rejected)
		st.Rejected += uint64(len(rejected.Rejected))
	}
	st.Sent += uint64(n - held)
	st.Held += uint64(held)
	st.Last = now
	if !st.Down.IsZero() {
		f.Log.Info("broker back", "to", f.Sink.String(), "away", time.Since(st.Down).Round(time.Second).String(), "waiting", f.Queue.Depth())
		st.Down, st.Why = time.Time{}, ""
	}
}

// A loaded broker is given so many times as long as it took to rest from catching up,
// unless that is less than the live rate: then what is fresh does not queue behind what
// is old, and the broker still always has something to do.
const rest = 2

// failed opens the circuit, and logs only that the uplink has gone down or why has
// changed.
func (f *forwarding) failed(err error, took time.Duration) {
	if f.ctx.Err() != nil { // told to stop is not down
		f.open = true
		return
	}
	retry, ok := errors.AsType[*RetryError](err)
	answered := ok && !retry.Lost // perhaps 503; of what lasts, as an outage of its database, the first says all
	f.tuner.failed(took, ok && retry.After > 0 || answered && f.failures == 0)
	f.failures++
	if f.losses++; !ok || !retry.Lost {
		f.losses = 0
	}
	f.open, f.reset, f.asked = true, true, false
	f.scan = max(f.scan, f.at)
	f.retry = time.Now().Add(f.wait(err, f.failures, f.losses))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stat.Failures++
	if why := err.Error(); why != f.stat.Why {
		f.stat.Why = why
		f.Log.Warn("nothing gets through: readings are kept", "to", f.Sink.String(), "why", err, "waiting", f.Queue.Depth())
	}
	if f.stat.Down.IsZero() {
		f.stat.Down = time.Now()
	}
}

// skipper takes a backlog that nobody wants.
type skipper struct{}

func (skipper) Send(context.Context, []Reading) error { return nil }
func (skipper) String() string                        { return "nowhere" }
