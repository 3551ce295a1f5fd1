package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Forwarder moves readings from a Queue to a Sink, in order, until told to
// stop. It obeys what the Sink's errors say: rejected readings are set aside,
// everything else is kept and sent again, with full jitter between one second
// and a minute, or when the broker said. An unknown error never loses data.
type Forwarder struct {
	Queue Queue
	Sink  Sink
	Dater Dater // default: readings go out dated as they are

	Batch  int           // readings a Send, at most; default 500
	Linger time.Duration // how long a first reading waits for company; default 200 ms
	Flush  time.Duration // how long it may go on after ctx has ended; default 3 s
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

// errUndated is that the oldest reading waits until its time is known. Those after
// it wait too: the order of sending is the log's.
var errUndated = errors.New("the time of the oldest reading is not known yet")

// ForwarderStats is how an uplink is doing.
type ForwarderStats struct {
	Sent     uint64    // readings accepted since start
	Rejected uint64    // readings set aside since start
	Failures uint64    // tries that failed since start
	Down     time.Time // since when nothing gets through; zero: it does, or nothing was tried
	Why      string    // why not
	Last     time.Time // of the last success
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
	if f.Batch == 0 {
		f.Batch = 500
	}
	if f.Linger == 0 {
		f.Linger = 200 * time.Millisecond
	}
	if f.Flush == 0 {
		f.Flush = 3 * time.Second
	}
	if f.Log == nil {
		f.Log = slog.New(slog.DiscardHandler)
	}
	// A batch under way is not torn when ctx ends: nobody would know what of it
	// has arrived. It has until Flush is over, as what follows it.
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(f.Flush, cancel) })()
	for failures := 0; ctx.Err() == nil; {
		if f.Queue.Depth() == 0 {
			select {
			case <-f.Queue.Ready():
				pause(ctx, f.Linger)
			case <-ctx.Done():
			}
			continue
		}
		var changed <-chan struct{}
		if f.Dater != nil {
			changed = f.Dater.Changed() // before it is asked: no change is missed
		}
		err := f.send(sending)
		if err == nil {
			failures = 0
			continue
		}
		if errors.Is(err, errUndated) {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		failures++
		pause(ctx, wait(err, failures))
	}
	for f.Queue.Depth() > 0 && sending.Err() == nil {
		if f.send(sending) != nil {
			break
		}
	}
	return nil
}

// send sends one batch and settles its readings. An error leaves them all.
func (f *Forwarder) send(ctx context.Context) error {
	rs, end, err := f.next()
	if errors.Is(err, errUndated) {
		return err
	}
	if err != nil {
		f.failed(fmt.Errorf("read the log: %w", err))
		return err
	}
	if len(rs) == 0 {
		f.Queue.Ack(end) // a stretch that was lost to damage: pass it
		return nil
	}
	err = f.Sink.Send(ctx, rs)
	var rejected *RejectError
	if errors.As(err, &rejected) {
		for _, r := range rejected.Rejected {
			if err := f.Queue.Reject(rs[r.Index:r.Index+1], r.Reason); err != nil {
				f.failed(fmt.Errorf("set a rejected reading aside: %w", err))
				return err // not acknowledged: it is sent, and rejected, again
			}
			f.Log.Warn("the broker rejects a reading: it is set aside", "sensor", rs[r.Index].Sensor, "why", r.Reason)
		}
		err = nil
	}
	if err != nil {
		if ctx.Err() == nil { // told to stop is not down
			f.failed(err)
		}
		return err
	}
	f.Queue.Ack(end)
	f.succeeded(len(rs), rejected)
	return nil
}

// next is the next batch, dated: as many of the oldest readings as can be.
func (f *Forwarder) next() (rs []Reading, end uint64, err error) {
	if f.Dater == nil {
		return f.Queue.Peek(f.Batch)
	}
	for n := f.Batch; n > 0; {
		kept, end, err := f.Queue.Peek(n)
		if err != nil {
			return nil, 0, err
		}
		dated := slices.Clone(kept) // the log's own stay as they were taken
		n = len(dated)
		for i := range dated {
			var ok bool
			if dated[i].At, ok = f.Dater.Mend(dated[i].At); !ok {
				n = i
				break
			}
		}
		if n == len(dated) {
			return dated, end, nil
		}
	} // fewer: where they end, the log says
	return nil, 0, errUndated
}

func (f *Forwarder) succeeded(n int, rejected *RejectError) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if rejected != nil {
		n -= len(rejected.Rejected)
		f.stat.Rejected += uint64(len(rejected.Rejected))
	}
	f.stat.Sent += uint64(n)
	f.stat.Last = time.Now()
	if !f.stat.Down.IsZero() {
		f.Log.Info("broker back", "uplink", f.Sink.String(), "away", time.Since(f.stat.Down).Round(time.Second).String(), "waiting", f.Queue.Depth())
		f.stat.Down, f.stat.Why = time.Time{}, ""
	}
}

// failed counts, and logs only that the uplink has gone down or why has changed.
func (f *Forwarder) failed(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stat.Failures++
	if why := err.Error(); why != f.stat.Why {
		f.stat.Why = why
		f.Log.Warn("nothing gets through: readings are kept", "uplink", f.Sink.String(), "why", err, "waiting", f.Queue.Depth())
	}
	if f.stat.Down.IsZero() {
		f.stat.Down = time.Now()
	}
}

// wait is how long to wait after the n-th failure in a row: what the broker
// asked for, or full jitter (any instant up to a limit that doubles from 1 s to
// 60 s), so that a campus of gateways does not come back in step. At least
// 100 ms, so that a run of small draws is not a storm.
func wait(err error, n int) time.Duration {
	limit := min(longestBackOff, firstBackOff<<min(n-1, 10))
	jittered := max(100*time.Millisecond, rand.N(limit))
	var retry *RetryError
	if errors.As(err, &retry) && retry.After > 0 {
		return retry.After + jittered/10
	}
	return jittered
}
