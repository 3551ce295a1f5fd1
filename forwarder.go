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

	Heart

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
	defer f.Rest()
	newForwarding(f, sending).run(ctx.Done())
	return nil
}

const leastBackOff = 100 * time.Millisecond

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
