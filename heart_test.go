package gateway

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestHeart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h Heart
		time.Sleep(time.Hour)
		if h.Overdue() != 0 {
			t.Error("one that has never beaten is overdue")
		}
		h.Beat(time.Minute)
		time.Sleep(time.Minute)
		if h.Overdue() != 0 {
			t.Error("overdue too early")
		}
		time.Sleep(time.Second)
		if got := h.Overdue(); got != time.Second {
			t.Errorf("overdue %v", got)
		}
		h.Rest()
		if h.Overdue() != 0 {
			t.Error("one at rest is overdue")
		}
	})
}

// A driver that does not come back is a hung loop; a chip, a bus or a broker that
// does not answer is none.
func TestWhatIsAHungLoop(t *testing.T) {
	for name, x := range map[string]struct {
		sense func(ctx context.Context, stop <-chan struct{}) ([]Value, error)
		open  error
		hung  bool
	}{
		"all is well":   {sense: func(context.Context, <-chan struct{}) ([]Value, error) { return []Value{{Temperature, 20.}}, nil }},
		"a silent bus":  {sense: func(ctx context.Context, _ <-chan struct{}) ([]Value, error) { <-ctx.Done(); return nil, ctx.Err() }},
		"a closed door": {},
		"no chip":       {open: errors.New("remote I/O error")},
		"a driver's fault": {sense: func(_ context.Context, stop <-chan struct{}) ([]Value, error) {
			<-stop
			return nil, errors.New("stopped")
		}, hung: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				stop := make(chan struct{})
				p := &Poller{
					Name: "x", Every: 10 * time.Minute, Stamp: func() Stamp { return Stamp{} }, Put: func(Reading) {},
					Open: func(context.Context) (Resource, error) {
						if x.sense == nil && x.open == nil {
							return silent{}, nil
						}
						return senses{x.sense, stop}, x.open
					},
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- p.Run(ctx) }()
				hung := false
				for range 3 * 60 * 60 {
					time.Sleep(time.Second)
					hung = hung || p.Overdue() > 0
				}
				if hung != x.hung {
					t.Errorf("hung: %v", hung)
				}
				close(stop)
				cancel()
				<-done
				time.Sleep(time.Hour)
				if p.Overdue() > 0 {
					t.Error("one that has ended is hung")
				}
			})
		})
	}
}

type senses struct {
	sense func(context.Context, <-chan struct{}) ([]Value, error)
	stop  chan struct{}
}

func (s senses) Sense(ctx context.Context) ([]Value, error) { return s.sense(ctx, s.stop) }
func (senses) Halt() error                                  { return nil }
func (senses) String() string                               { return "x" }

// silent is a Watcher that never sees anything.
type silent struct{}

func (silent) Watch(ctx context.Context, _ func([]Value)) error { <-ctx.Done(); return nil }
func (silent) Halt() error                                      { return nil }
func (silent) String() string                                   { return "silent" }

// A source of time that does not come back hangs the clock; one that is silent
// does not.
func TestClockTurns(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			free := make(chan struct{})
			c := NewClock()
			c.Log = slog.New(slog.DiscardHandler)
			c.Sources = []Source{{Name: "x", Ask: func(ctx context.Context) (time.Time, time.Duration, error) {
				if stuck {
					<-free
				}
				<-ctx.Done()
				return time.Time{}, 0, ctx.Err()
			}}, {Name: "y", Ask: func(ctx context.Context) (time.Time, time.Duration, error) { return time.Time{}, 0, errors.New("no") }}}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- c.Run(ctx) }()
			hung := false
			for range 3 * 60 * 60 {
				time.Sleep(time.Second)
				hung = hung || c.Overdue() > 0
			}
			if hung != stuck {
				t.Errorf("stuck: %v, hung: %v", stuck, hung)
			}
			close(free)
			cancel()
			<-done
			if c.Overdue() > 0 {
				t.Error("one that has ended is hung")
			}
		})
	}
}

// stuckQueue does not answer any more once it is stuck: a deadlock in the log.
type stuckQueue struct {
	*fakeQueue
	stuck atomic.Bool
	free  chan struct{}
}

func (q *stuckQueue) Bounds() (uint64, uint64, bool) {
	if q.stuck.Load() {
		<-q.free
	}
	return q.fakeQueue.Bounds()
}

// deafSink never answers.
type deafSink struct{}

func (deafSink) Send(ctx context.Context, _ []Reading) error { <-ctx.Done(); return ctx.Err() }
func (deafSink) String() string                              { return "slow" }

func TestForwarderTurns(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			q := &stuckQueue{fakeQueue: newFakeQueue(3), free: make(chan struct{})}
			f := &Forwarder{Queue: q, Sink: deafSink{}}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- f.Run(ctx) }()
			time.Sleep(time.Hour)
			if f.Overdue() > 0 {
				t.Error("a broker that does not answer is a hung loop")
			}
			q.stuck.Store(stuck)
			time.Sleep(10 * time.Minute)
			if (f.Overdue() > 0) != stuck {
				t.Errorf("the log is stuck: %v, overdue %v", stuck, f.Overdue())
			}
			close(q.free)
			cancel()
			<-done
			if f.Overdue() > 0 {
				t.Error("one that has ended is hung")
			}
		})
	}
}
