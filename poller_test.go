package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeSensor answers from a script; when it is used up, the last line goes on.
type fakeSensor struct {
	script []any // float64: a temperature; error: a failure; time.Duration: hang that long or until ctx ends
	n      int
	halts  int
}

func (f *fakeSensor) String() string { return "fake" }
func (f *fakeSensor) Halt() error    { f.halts++; return nil }
func (f *fakeSensor) Sense(ctx context.Context) ([]Value, error) {
	step := f.script[min(f.n, len(f.script)-1)]
	f.n++
	switch s := step.(type) {
	case float64:
		return []Value{{Temperature, s}}, nil
	case time.Duration:
		pause(ctx, s)
		return nil, cause(ctx)
	}
	return nil, step.(error)
}

func cause(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return errors.New("hung")
}

// watched runs a Poller for d of synthetic time and tells what came of it.
type watched struct {
	at     []time.Duration // of each reading since the start
	states []string
	logs   strings.Builder
}

func watch(t *testing.T, d, every time.Duration, open func(context.Context) (Resource, error)) *watched {
	w := &watched{}
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		p := &Poller{
			Name: "room", Every: every, Open: open, Stamp: func() Stamp { return Stamp{Wall: time.Now()} },
			Put:   func(r Reading) { w.at = append(w.at, time.Since(start)) },
			State: func(_ string, s State, why error) { w.states = append(w.states, fmt.Sprint(s, " ", why)) },
			Log:   slog.New(slog.NewTextHandler(&w.logs, nil)),
		}
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		if err := p.Run(ctx); err != nil {
			t.Errorf("told to stop, Run returned %v", err)
		}
	})
	return w
}

var errPulled = errors.New("remote I/O error")

func TestPollerKeepsPace(t *testing.T) {
	s := &fakeSensor{script: []any{21.0}}
	w := watch(t, 35*time.Second, 10*time.Second, func(context.Context) (Resource, error) { return s, nil })
	if want := []time.Duration{0, 10 * time.Second, 20 * time.Second, 30 * time.Second}; !slices.Equal(w.at, want) {
		t.Errorf("readings at %v, want %v", w.at, want)
	}
	if s.halts != 1 {
		t.Errorf("halted %d times, want once", s.halts)
	}
	if want := []string{"starting <nil>", "ok <nil>"}; !slices.Equal(w.states, want) {
		t.Errorf("states %q, want %q", w.states, want)
	}
}

func TestPollerForgivesALoneFailure(t *testing.T) {
	s := &fakeSensor{script: []any{21.0, errPulled, errPulled, 21.0}}
	w := watch(t, 25*time.Second, 10*time.Second, func(context.Context) (Resource, error) { return s, nil })
	// The retries come after one and two seconds, not after an interval.
	if want := []time.Duration{0, 13 * time.Second, 23 * time.Second}; !slices.Equal(w.at, want) {
		t.Errorf("readings at %v, want %v", w.at, want)
	}
	if slices.Contains(w.states, "gone remote I/O error") || w.logs.Len() > 0 {
		t.Errorf("made a fuss: %q %s", w.states, w.logs.String())
	}
}

func TestPollerReopensAfterThree(t *testing.T) {
	pulled := &fakeSensor{script: []any{21.0, errPulled}}
	back := &fakeSensor{script: []any{22.0}}
	opened := 0
	w := watch(t, 10*time.Minute, time.Second, func(context.Context) (Resource, error) {
		opened++
		switch {
		case opened == 1:
			return pulled, nil
		case opened < 6:
			return nil, errPulled
		}
		return back, nil
	})
	if pulled.n != 4 || pulled.halts != 1 {
		t.Errorf("sensed %d times, halted %d: want 4 and 1", pulled.n, pulled.halts)
	}
	if want := []string{"starting <nil>", "ok <nil>", "gone remote I/O error", "ok <nil>"}; !slices.Equal(w.states, want) {
		t.Errorf("states %q, want %q", w.states, want)
	}
	if n := strings.Count(w.logs.String(), "\n"); n != 2 {
		t.Errorf("want two lines of log (gone, back), got %d:\n%s", n, w.logs.String())
	}
}

func TestPollerBacksOff(t *testing.T) {
	var tries []time.Duration
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		p := &Poller{Name: "x", Every: time.Second, Open: func(context.Context) (Resource, error) {
			tries = append(tries, time.Since(start))
			return nil, errPulled
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_ = p.Run(ctx)
	})
	if n := len(tries); n < 59 || n > 66 {
		t.Errorf("tried %d times in an hour, want once a minute or a little more", n)
	}
	if tries[1]-tries[0] > 5*time.Second {
		t.Errorf("the second try came after %v", tries[1]-tries[0])
	}
}

func TestPollerHangIsAFailure(t *testing.T) {
	s := &fakeSensor{script: []any{time.Hour, 21.0}}
	w := watch(t, 70*time.Second, time.Second, func(context.Context) (Resource, error) { return s, nil })
	if len(w.at) == 0 || w.at[0] < time.Minute || w.at[0] > 62*time.Second {
		t.Errorf("readings at %v, want the first after the deadline of a minute", w.at)
	}
}

func TestPollerRefusesNonsense(t *testing.T) {
	for _, v := range []float64{math.NaN(), math.Inf(-1)} {
		w := watch(t, time.Minute, time.Second, func(context.Context) (Resource, error) { return &fakeSensor{script: []any{v}}, nil })
		if len(w.at) != 0 || !strings.Contains(strings.Join(w.states, "\n"), "not a measurement") {
			t.Errorf("%v: %d readings, states %q", v, len(w.at), w.states)
		}
	}
}

// fakeWatcher emits every ten seconds and breaks after three.
type fakeWatcher struct{ fakeSensor }

func (f *fakeWatcher) Watch(ctx context.Context, emit func([]Value)) error {
	for range 3 {
		emit([]Value{{Contact, true}})
		pause(ctx, 10*time.Second)
		if ctx.Err() != nil {
			return nil
		}
	}
	return errPulled
}

type onlyWatcher struct{ Watcher }

func TestPollerWatches(t *testing.T) {
	w := watch(t, 61*time.Second, time.Second, func(context.Context) (Resource, error) { return onlyWatcher{&fakeWatcher{}}, nil })
	if len(w.at) != 6 {
		t.Errorf("readings at %v, want six: two lives of a watcher that breaks after three", w.at)
	}
}
