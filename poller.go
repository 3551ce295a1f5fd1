package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Poller keeps one sensor going: it opens it, reads it at its interval (or lets
// it push), stamps what comes and hands it on. A sensor that fails is halted,
// left alone for a while and opened anew, so that a chip that was swapped is
// identified and its calibration read again. It never gives up and never
// disturbs another sensor. The zero values of Timeout and Log serve.
type Poller struct {
	Name  string                                      // the sensor's, in the configuration
	Every time.Duration                               // between the starts of two measurements; a Watcher has none of its own
	Open  func(context.Context) (Resource, error)     // a Sensor or a Watcher
	Stamp func() Stamp                                // the Clock's
	Put   func(Reading)                               // to the log and to whoever looks on; called from Run's goroutine
	State func(sensor string, state State, why error) // told each change of state; may be nil

	Timeout time.Duration // of one measurement; default 1 min
	Log     *slog.Logger  // default: none

	Heart // a bus that hangs does not stop it: the driver is answered in time

	state    State
	failures int // in a row
}

// State is how a sensor is doing.
type State string

// A sensor's states. A lone failed measurement is not a change of state: on a
// long cable one in a hundred fails.
const (
	Starting State = "starting" // not opened yet
	OK       State = "ok"       // the last measurement, or the one before, succeeded
	Gone     State = "gone"     // it cannot be opened, or failed goneAfter times in a row
)

const (
	goneAfter      = 3 // failures in a row: the sensor is reported, halted and opened anew
	firstBackOff   = time.Second
	longestBackOff = time.Minute
	defaultTimeout = time.Minute
)

// String names the task.
func (p *Poller) String() string { return fmt.Sprintf("sensor %q", p.Name) }

// Run polls until ctx ends, halts the sensor and returns nil.
func (p *Poller) Run(ctx context.Context) error {
	if p.Timeout == 0 {
		p.Timeout = defaultTimeout
	}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	p.change(Starting, nil)
	defer p.Rest()
	for ctx.Err() == nil {
		if err := p.once(ctx); err != nil && ctx.Err() == nil {
			p.failed(err)
		}
		p.pause(ctx, p.backOff())
	}
	return nil
}

// once opens the sensor and keeps it going until it must be opened anew.
func (p *Poller) once(ctx context.Context) (err error) {
	p.Beat(p.Timeout + grace)
	opening, cancel := context.WithTimeout(ctx, p.Timeout)
	r, err := p.Open(opening)
	cancel()
	if err != nil {
		p.failures = max(p.failures, goneAfter-1) // a sensor that is not there need not fail three times
		return err
	}
	defer func() {
		if haltErr := r.Halt(); haltErr != nil && err == nil && ctx.Err() != nil {
			p.Log.Warn("sensor could not be halted", "sensor", p.Name, "why", haltErr)
		}
	}()
	switch s := r.(type) {
	case Sensor:
		return p.poll(ctx, s)
	case Watcher:
		p.Rest()
		var refused error // the first value that must not go on
		err := s.Watch(ctx, func(vs []Value) { refused = cmp.Or(refused, p.took(vs)) })
		return errors.Join(err, refused)
	default:
		return fmt.Errorf("%s: a %T can neither be polled nor watched", r, r)
	}
}

// poll measures at a steady pace. A measurement that takes longer than the
// interval makes the next ones late, never bunched.
func (p *Poller) poll(ctx context.Context, s Sensor) error {
	due := time.Now()
	for {
		err := p.sense(ctx, s)
		if ctx.Err() != nil {
			return nil
		}
		due = due.Add(p.Every)
		if err != nil {
			if p.failures+1 >= goneAfter {
				return err
			}
			p.failed(err)
			due = time.Now().Add(min(p.Every, p.backOff())) // a lone failure need not cost a whole interval
		}
		if late := time.Since(due); late > 0 {
			due = due.Add(late.Truncate(p.Every)) // the instants missed meanwhile are skipped
		}
		p.pause(ctx, time.Until(due))
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (p *Poller) sense(ctx context.Context, s Sensor) error {
	p.Beat(p.Timeout + grace)
	measuring, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	vs, err := s.Sense(measuring)
	if err != nil {
		return err
	}
	return p.took(vs)
}

// took stamps values and hands them on. What it refuses is a failure of the
// sensor.
func (p *Poller) took(vs []Value) error {
	if len(vs) == 0 {
		return fmt.Errorf("%s: measured nothing", p.Name)
	}
	for _, v := range vs {
		if err := v.Check(); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	p.failures = 0
	p.change(OK, nil)
	p.Put(Reading{Sensor: p.Name, At: p.Stamp(), Values: vs})
	return nil
}

func (p *Poller) failed(err error) {
	p.failures++
	if p.failures >= goneAfter {
		p.change(Gone, err)
	}
}

func (p *Poller) change(s State, why error) {
	if s == p.state {
		return
	}
	switch {
	case s == Gone && p.state == Starting:
		p.Log.Warn("sensor not there: it is tried again", "sensor", p.Name, "why", why)
	case s == Gone:
		p.Log.Warn("sensor gone", "sensor", p.Name, "why", why)
	case s == OK && p.state == Gone:
		p.Log.Info("sensor back", "sensor", p.Name)
	}
	p.state = s
	if p.State != nil {
		p.State(p.Name, s, why)
	}
}

// backOff doubles from a second to a minute with the failures in a row.
func (p *Poller) backOff() time.Duration {
	return min(longestBackOff, firstBackOff<<min(max(p.failures-1, 0), 10))
}

func (p *Poller) pause(ctx context.Context, d time.Duration) {
	p.Beat(d + grace)
	pause(ctx, d)
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
