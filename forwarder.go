package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

// Forwarder moves readings from a Queue to a Sink until told to stop: in order for
// each key, and in effect once. It obeys what the Sink's errors say: rejected
// readings are set aside, everything else is kept and sent again. An unknown error
// never loses data; after an outcome nobody knows, a Reconciler is asked before a
// reading is sent again.
//
// As long as the broker keeps up, one Send after the other takes what has come
// within Linger. A backlog is drained, by several lanes if that makes the broker
// faster, while new readings go beside it: to a Historian the newest state at once,
// and the backlog as history; otherwise, since old values would overwrite new ones,
// those whose key has no backlog.
type Forwarder struct {
	Queue Queue
	Sink  Sink  // what it can do beside sending is asked of it: Reconciler, Historian, Asker, Keyer, Meter
	Dater Dater // default: readings go out dated as they are

	Batch  int           // readings a Send, at most; default 500
	Lanes  int           // Sends at a time while draining, at most; default 8
	Target time.Duration // of a Send's duration, to which the two are tuned; default 500 ms; negative: they are fixed
	Tuned  Tuned         // what was found out before
	Linger time.Duration // how long a first reading waits for company; default 200 ms
	Flush  time.Duration // how long it may go on after ctx has ended; default 3 s
	Spread time.Duration // over which the first try after a lost connection is spread; default 60 s, see wait
	Rate   int           // bytes a second, at most, over a minute, of a Meter: by one lane; 0: as fast as can be
	Latest bool          // only the newest state matters: a backlog is passed over
	Log    *slog.Logger  // default: none

	mu   sync.Mutex
	stat ForwarderStats
}

// Dater dates readings just before they are sent: a Clock.
type Dater interface {
	// Mend puts a stamp right. Not ok: it cannot be dated yet.
	Mend(Stamp) (mended Stamp, ok bool)
	// Changed is closed when Mend may have another answer than before.
	Changed() <-chan struct{}
}

var _ Dater = (*Clock)(nil)

// ForwarderStats is how an uplink is doing. What is counted is counted since start.
type ForwarderStats struct {
	Sent     uint64        // readings accepted
	Rejected uint64        // readings set aside
	Held     uint64        // readings not sent again: the broker held them
	Skipped  uint64        // readings passed over: only the newest matter
	Failures uint64        // tries that failed
	Down     time.Time     // since when nothing gets through; zero: it does, or nothing was tried
	Why      string        // why not
	Last     time.Time     // of the last success
	Tuned                  // what is used now
	Draining bool          // there is a backlog
	Latency  time.Duration // of a Send, smoothed
}

// Stats may be called at any time from any goroutine.
func (f *Forwarder) Stats() ForwarderStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stat
}

// String names the task.
func (f *Forwarder) String() string { return fmt.Sprintf("uplink %s", f.Sink) }

// Run forwards until ctx ends, then for at most Flush as long as all goes well:
// what is left is safe in the log. It returns nil.
func (f *Forwarder) Run(ctx context.Context) error {
	f.Batch = cmp.Or(f.Batch, 500)
	f.Lanes = min(cmp.Or(f.Lanes, mostLanes), mostLanes)
	f.Target = cmp.Or(f.Target, 500*time.Millisecond)
	f.Linger = cmp.Or(f.Linger, 200*time.Millisecond)
	f.Flush = cmp.Or(f.Flush, 3*time.Second)
	f.Spread = cmp.Or(f.Spread, longestBackOff)
	if _, ok := f.Sink.(Meter); !ok {
		f.Rate = 0
	}
	if f.Rate > 0 {
		f.Lanes = 1
	}
	if f.Log == nil {
		f.Log = slog.New(slog.DiscardHandler)
	}
	// A batch under way is not torn when ctx ends: nobody would know what of it
	// has arrived. It has until Flush is over, as what follows it.
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(f.Flush, cancel) })()
	newForwarding(f, sending).run(ctx.Done())
	return nil
}

const (
	mostLanes = 8
	lookSize  = 16384 // readings of a look at what has come while draining

	// To know the newest of a backlog, so many are looked at before anything is sent:
	// some seconds on a small Pi.
	longestLook = 1_000_000

	readSize = 500
)

// none stands for the number of a reading that is sent and has none.
const none = math.MaxUint64

// forwarding is one Run. All of it but a flight's do is of one goroutine, so that
// nothing here needs a lock.
//
// The log is one line of numbers. The lanes are fed with all readings in that order;
// what is settled, in whatever order, is noted in done, and acknowledged up to the
// first that is not. After a failure the lanes are emptied and fed anew from there.
// While there is a backlog, what comes is looked at past it (scan), and express sends
// beside the lanes what need not wait: it claims readings, and the lanes pass those over.
type forwarding struct {
	*Forwarder
	ctx     context.Context // of what is sent
	tuner   tuner
	sensors map[string]*source
	keys    map[string]*source
	order   []*source

	done    ledger // which readings are settled
	acked   uint64
	end     uint64 // of the log
	at      uint64 // the lanes have all before
	lanes   []*lane
	express lane            // past the backlog
	claimed map[uint64]bool // what express has and has not sent yet

	draining bool
	past     Sink   // where the backlog goes; nil: where all goes, so in order
	mark     uint64 // what comes from here on is live
	scan     uint64 // while draining or down: what has come before it was looked at
	blind    uint64 // not all before it was
	from, to uint64 // express has taken only numbers from here until before there

	restarted uint64          // what comes before may have been sent by a process before
	doubts    map[uint64]bool // these may have been sent, though nobody has said so
	seen      time.Time       // since when something unread waits; zero: nothing does
	undated   bool            // the next reading for the lanes cannot be dated until changed
	changed   <-chan struct{}
	asked     bool      // the Sink, since the start or the outage
	open      bool      // the circuit: nothing gets through, one try at a time
	failures  int       // in a row
	losses    int       // of the connection, in a row
	alone     time.Time // one Send at a time until then, so on one connection
	retry     time.Time
	reset     bool // as soon as nothing is under way, the lanes begin anew at what is not settled
	stale     bool // what is under way has numbers that mean nothing now
	flying    int
	landed    chan *flight
	bytes     uint64    // of the Sink, as last seen
	spent     float64   // bytes, and
	carried   float64   // readings with them
	clear     time.Time // when Rate allows more

	rate   float64 // readings put a second, smoothed
	rated  time.Time
	ratedN uint64
}

// source is all that feeds one entity.
type source struct {
	lane    int
	last    uint64 // the number after its newest reading that is left to the lanes; 0: none
	newest  Reading
	number  uint64 // of newest, plus one; 0: none
	stated  uint64 // the number after the newest reading that was sent as the state
	doubted bool   // it is not known yet which of its readings a process before has sent
}

// lane sends one batch at a time.
type lane struct {
	rs      []Reading // dated
	numbers []uint64
	flying  int       // of them, the first so many are under way
	until   time.Time // not before
}

func (l *lane) add(r Reading, number uint64) {
	l.rs, l.numbers = append(l.rs, r), append(l.numbers, number)
}

// drop forgets the first n, which have been settled.
func (l *lane) drop(n int) {
	l.rs = l.rs[:copy(l.rs, l.rs[n:])]
	l.numbers = l.numbers[:copy(l.numbers, l.numbers[n:])]
	l.flying = 0
}

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

func newForwarding(f *Forwarder, ctx context.Context) *forwarding {
	g := &forwarding{
		Forwarder: f, ctx: ctx, tuner: newTuner(f.Target, f.Batch, f.Lanes, f.Tuned),
		sensors: map[string]*source{}, keys: map[string]*source{}, claimed: map[uint64]bool{}, doubts: map[uint64]bool{},
		landed: make(chan *flight, mostLanes+1), spent: usualReading, carried: 1,
	}
	if m, ok := f.Sink.(Meter); ok {
		g.bytes = m.Bytes()
	}
	first, end, _ := f.Queue.Bounds()
	g.begin(first, end)
	return g
}

// begin takes the log as it is: nothing is known of what was sent of it.
func (f *forwarding) begin(first, end uint64) {
	f.done, f.acked = ledger{base: first}, first
	f.end, f.at, f.scan, f.restarted = end, first, first, end
	f.lanes, f.express, f.draining = nil, lane{}, false
	f.from, f.to, f.blind = none, 0, 0
	clear(f.claimed)
	clear(f.doubts)
	for _, s := range f.order {
		s.last, s.number, s.stated, s.doubted = 0, 0, 0, true
	}
}

func (f *forwarding) run(stop <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for stopping := false; ; {
		if f.Dater != nil && !f.undated {
			f.changed = f.Dater.Changed() // before it is asked: no change is missed
		}
		now := time.Now()
		f.look(now)
		if f.may(now) && !f.reset {
			f.feed(now, stopping)
			f.launch(now)
		}
		f.tell()
		if stopping && f.flying == 0 && (f.open || f.ctx.Err() != nil || f.undated || f.done.base >= f.end) {
			return
		}
		var ready <-chan struct{}
		if f.seen.IsZero() && !stopping {
			ready = f.Queue.Ready()
		}
		var changed <-chan struct{}
		if f.undated {
			changed = f.changed
		}
		timer.Reset(f.pause(now))
		select {
		case fl := <-f.landed:
			f.land(fl)
		case <-ready:
		case <-changed:
			f.undated = false
		case <-timer.C:
		case <-stop:
			stop, stopping = nil, true
		}
	}
}

// may reports whether something may be sent now.
func (f *forwarding) may(now time.Time) bool {
	return f.ctx.Err() == nil && (!f.open || f.flying == 0 && !now.Before(f.retry))
}

// pause is how long nothing needs doing unless something happens.
func (f *forwarding) pause(now time.Time) time.Duration {
	next := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if t.After(now) && t.Before(next) {
			next = t
		}
	}
	switch {
	case f.open: // until then nothing can be done with what comes
		sooner(f.retry)
	case !f.seen.IsZero():
		sooner(f.seen.Add(f.Linger))
	}
	if f.Rate > 0 {
		sooner(f.clear)
		sooner(f.clear.Add(-rateBatch))
	}
	for _, l := range f.lanes {
		sooner(l.until)
	}
	return next.Sub(now)
}

// look takes in what the log has, and whether there is a backlog.
func (f *forwarding) look(now time.Time) {
	first, end, anew := f.Queue.Bounds()
	f.stale = f.stale || anew
	if f.stale {
		if f.flying > 0 {
			return
		}
		f.stale = false
		f.begin(first, end)
	}
	f.end = end
	f.settled(first)
	if f.flying == 0 && f.reset {
		f.restart()
	}
	if passed := now.Sub(f.rated); passed >= time.Second {
		if !f.rated.IsZero() {
			f.rate += (float64(end-min(end, f.ratedN))/passed.Seconds() - f.rate) / 8
		}
		f.rated, f.ratedN = now, end
	}
	ahead := f.at
	if f.open || f.draining {
		ahead = f.scan
	}
	switch {
	case ahead >= end:
		f.seen = time.Time{}
	case f.seen.IsZero():
		f.seen = now
	}
	lingered := !f.seen.IsZero() && now.Sub(f.seen) >= f.Linger
	if (f.open || f.draining) && lingered {
		f.follow()
		f.seen = time.Time{}
	}
}

// settled acknowledges what is settled, at least everything before first.
func (f *forwarding) settled(first uint64) {
	if base := f.done.advance(first); base > f.acked {
		f.acked = base
		f.at, f.scan = max(f.at, base), max(f.scan, base)
		f.Queue.Ack(base)
	}
}

// restart has the lanes begin anew, after a failure or with other lanes: nothing is
// under way, and what was read and not settled is read again. The log remembers.
func (f *forwarding) restart() {
	f.reset = false
	f.at, f.undated = f.done.base, false // undated: it is asked again
	n := 1
	if f.draining {
		n = f.tuner.lanes
	}
	f.lanes = f.lanes[:0]
	for range n {
		f.lanes = append(f.lanes, &lane{})
	}
	if f.open { // what express could not send is backlog now
		for i, n := range f.express.numbers {
			s := f.source(f.express.rs[i].Sensor, n)
			s.stated = 0
			if n != none {
				s.last = max(s.last, n+1)
			}
		}
		f.express = lane{}
		clear(f.claimed)
	}
}

// source is that of a sensor, of which a reading has this number.
func (f *forwarding) source(sensor string, number uint64) *source {
	s := f.sensors[sensor]
	if s != nil {
		return s
	}
	key := sensor
	if k, ok := f.Sink.(Keyer); ok {
		key = k.Key(sensor)
	}
	if s = f.keys[key]; s == nil {
		s = &source{lane: len(f.order), doubted: number < f.restarted}
		f.keys[key] = s
		f.order = append(f.order, s)
	}
	f.sensors[sensor] = s
	return s
}

// window is how many readings the lanes may have.
func (f *forwarding) window() int { return max(3*f.tuner.size()*max(1, len(f.lanes)), 100) }

// late reports whether so many readings are a backlog.
func (f *forwarding) late(behind uint64) bool {
	if f.done.base < f.restarted && behind > 0 {
		if _, ok := f.history(); ok { // of the state it cannot be told which of the past is there
			return true
		}
	}
	return behind > uint64(f.tuner.size()) && (f.open || f.done.base < f.restarted || behind > uint64(f.window()))
}

// history is where a backlog goes, if that is a place of its own.
func (f *forwarding) history() (Sink, bool) {
	if f.Latest {
		return skipper{}, true
	}
	if h, ok := f.Sink.(Historian); ok {
		if past, ok := h.History(); ok {
			return past, true
		}
	}
	return nil, false
}

// drain begins to treat what is in the log as a backlog.
func (f *forwarding) drain() {
	f.past, _ = f.history()
	if f.past != nil && f.end-f.scan > longestLook { // of what comes now the newest is known at once, of the rest in the end
		f.scan, f.blind = f.end, f.end
	}
	f.scan = max(f.scan, f.done.base)
	f.draining, f.mark = true, f.end
	f.restart()
}

// drained leaves the draining: the lanes have nothing before at, and all goes
// through them again.
func (f *forwarding) drained() {
	for _, s := range f.order { // known as history only
		if f.past == nil || s.number <= s.stated {
			continue
		}
		if r, ok := f.dated(s.newest); ok {
			s.stated = s.number
			f.express.add(r, none)
		}
	}
	f.draining, f.past = false, nil
	f.from, f.to = none, 0
	f.restart()
}

// feed reads for the lanes.
func (f *forwarding) feed(now time.Time, stopping bool) {
	if _, ok := f.Sink.(Asker); ok && !f.asked {
		return // it may be a Historian
	}
	if len(f.lanes) == 0 {
		f.restart()
	}
	behind := f.end - f.done.base
	switch {
	case f.draining && f.done.base >= f.scan && f.end-min(f.end, f.scan) <= uint64(f.tuner.size()) && len(f.claimed) == 0 && f.flying == 0:
		f.drained()
	case !f.draining && f.flying == 0 && f.late(behind):
		f.drain()
		f.follow()
	}
	end := f.end
	if f.draining {
		if f.at >= max(f.mark, f.scan) && f.end-f.scan > lookSize && len(f.claimed) == 0 {
			f.mark = f.end // more comes than can be looked at
		}
		end = max(f.mark, f.scan)
		if f.past != nil {
			f.state()
			end = f.scan
		}
	} else if unread := f.end - min(f.end, f.at); !stopping && !f.open && unread < uint64(f.tuner.size()) && now.Sub(f.seen) < f.Linger {
		return // for company
	}
	if f.undated {
		return
	}
	f.Queue.Hold(end, f.from, f.to) // what is read keeps its number
	f.read(end)
	f.settled(0)
	f.Queue.Hold(f.at, f.from, f.to)
	if f.at >= f.end && !f.draining {
		f.seen = time.Time{}
	}
}

// read fills the lanes with what comes before end.
func (f *forwarding) read(end uint64) {
	free := f.window()
	for _, l := range f.lanes {
		free -= len(l.rs)
	}
	for free > 0 && f.at < end {
		rs, first, next, err := f.Queue.Read(f.at, min(free, readSize, int(end-f.at)))
		if err != nil {
			f.failed(fmt.Errorf("read the log: %w", err), 0)
			return
		}
		if next == f.at { // no readings have these numbers
			f.done.settle(f.at, end)
			f.at = end
			return
		}
		f.done.settle(f.at, first) // what has no reading
		for i, r := range rs {
			n := first + uint64(i)
			if f.done.settled(n) || f.claimed[n] {
				continue
			}
			s := f.source(r.Sensor, n)
			if f.past != nil && n+1 == s.number && n >= f.blind {
				f.at = n // express will take it, as the state
				return
			}
			dated, ok := f.dated(r)
			if !ok {
				f.at, f.undated = n, true
				return
			}
			s.last = max(s.last, n+1)
			if n+1 > s.number { // also where all goes in order: it may not get through
				s.newest, s.number = r, n+1
			}
			f.lanes[s.lane%len(f.lanes)].add(dated, n)
		}
		f.done.settle(first+uint64(len(rs)), next)
		f.at = next
		free -= len(rs)
	}
}

func (f *forwarding) dated(r Reading) (Reading, bool) {
	if f.Dater == nil {
		return r, true
	}
	var ok bool
	r.At, ok = f.Dater.Mend(r.At)
	return r, ok
}

// follow looks at what has come while there is a backlog, and claims what need not
// wait for it.
func (f *forwarding) follow() {
	may := f.draining && (!f.open || f.may(time.Now()))
	room := max(0, 2*f.tuner.size()-len(f.express.rs))
	live := may && f.past == nil && f.done.base >= f.blind && f.end-f.scan <= lookSize
	if live && f.scan >= f.mark {
		f.keep(f.scan, f.end)
	} else if !f.open && f.past == nil && len(f.claimed) > 0 {
		return // the lanes would overtake what express has
	}
	left := lookSize
	if f.past != nil {
		left = longestLook
	}
	for left > 0 && f.scan < f.end {
		rs, first, next, err := f.Queue.Read(f.scan, min(left, readSize, int(f.end-f.scan)))
		if err != nil {
			break // the lanes will say so
		}
		if next == f.scan {
			f.scan = f.end
			break
		}
		for i, r := range rs {
			n := first + uint64(i)
			s := f.source(r.Sensor, n)
			if live && n >= f.mark && (s.last == 0 || f.done.settled(s.last-1) || planted == "overtake") {
				r, ok := f.dated(r)
				if !ok || room == 0 { // later, or the lanes would overtake what express has of it
					f.scan = n
					return
				}
				f.claim(r, n)
				room--
				continue
			}
			s.last = max(s.last, n+1)
			if n+1 > s.number {
				s.newest, s.number = r, n+1
			}
		}
		f.scan = next
		left -= max(1, len(rs))
	}
}

// state claims the newest reading of each source, before the lanes can take it for
// history.
func (f *forwarding) state() {
	room := 2*f.tuner.size() - len(f.express.rs)
	for _, s := range f.order {
		n := s.number - 1
		if s.number <= s.stated || n < f.at || room <= 0 || f.done.settled(n) {
			continue
		}
		if !f.still(s.newest, n) {
			f.blind = f.end // what was known of these numbers is so no more
			return
		}
		r, ok := f.dated(s.newest)
		if f.undated = !ok; f.undated {
			return
		}
		s.stated = s.number
		f.claim(r, n)
		room--
	}
}

// still has a reading keep its number from now on, and reports whether it has it
// yet: a full log may have been thinned out.
func (f *forwarding) still(r Reading, n uint64) bool {
	f.keep(n, n+1)
	rs, first, _, err := f.Queue.Read(n, 1)
	return err == nil && len(rs) == 1 && first == n && rs[0].Sensor == r.Sensor && rs[0].At.Boot == r.At.Boot &&
		(rs[0].At.Since-r.At.Since).Abs() < 2*time.Millisecond
}

// keep has the numbers from first until before end keep their meaning.
func (f *forwarding) keep(first, end uint64) {
	f.from, f.to = min(f.from, first), max(f.to, end)
	f.Queue.Hold(f.at, f.from, f.to)
}

func (f *forwarding) claim(r Reading, n uint64) {
	f.claimed[n] = true
	f.express.add(r, n)
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

const leastBackOff = 100 * time.Millisecond

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

// tell shows the state.
func (f *forwarding) tell() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stat.Tuned = Tuned{f.tuner.size(), f.tuner.lanes}
	f.stat.Draining, f.stat.Latency = f.draining, f.tuner.latency
}

// wait is how long to wait after so many failures in a row, the last of them losses of
// the connection: what the broker asked for, or full jitter (any instant up to a limit
// that doubles from 1 s to 60 s), and in the end 45 to 60 s.
//
// A lost or refused connection is what a whole campus sees in the same moment, also if
// the broker is back at once. Gateways that have tried every 45 to 60 s for long come
// one after the other: 300 of them make 5.7 connections a second, and in one of 2,000
// outages of a minute more than 20 in some second. So after a loss each begins as if it had always
// done so: it waits for what is left of such an interval at a moment that knows nothing
// of it (the longer an interval, the likelier the moment is within it). That leaves no
// wave, however long the broker is away. Spread scales it down: then the intervals
// double to 45 to 60 s.
//
// At least 100 ms, so that a run of small draws is not a storm.
func (f *Forwarder) wait(err error, failures, losses int) time.Duration {
	const regular = 0.75 // of the limit, at least
	limit, part := min(longestBackOff, firstBackOff<<min(failures-1, 10)), rand.Float64()
	if losses > 0 {
		limit = min(longestBackOff, f.Spread<<min(losses-1, 10))
	}
	switch {
	case losses == 1:
		part *= math.Sqrt(regular*regular + (1-regular*regular)*rand.Float64())
	case losses > 1 || limit == longestBackOff:
		part = regular + (1-regular)*part
	}
	jittered := max(leastBackOff, time.Duration(part*float64(limit)))
	if retry, ok := errors.AsType[*RetryError](err); ok && retry.After > 0 {
		return retry.After + jittered/10
	}
	return jittered
}

// skipper takes a backlog that nobody wants.
type skipper struct{}

func (skipper) Send(context.Context, []Reading) error { return nil }
func (skipper) String() string                        { return "nowhere" }
