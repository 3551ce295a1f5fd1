package gateway

import (
	"context"
	"fmt"
	"math"
	"time"
)

const (
	mostLanes = 8
	lookSize  = 16384 // readings of a look at what has come while draining

	// To know the newest of a backlog, so many are looked at before anything is sent:
	// some seconds on a small Pi.
	longestLook = 1_000_000

	readSize = 500

	// It turns once a minute at least; the look at a long backlog may take some more,
	// from a slow card.
	longestTurn = 5 * time.Minute
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
		f.Beat(longestTurn)
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
	next := now.Add(time.Minute)
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

// tell shows the state.
func (f *forwarding) tell() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stat.Tuned = Tuned{f.tuner.size(), f.tuner.lanes}
	f.stat.Draining, f.stat.Latency = f.draining, f.tuner.latency
}
