package drivers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"campus-gateway"

	"periph.io/x/conn/v3/gpio"
)

// fakePin is a line whose level changes at set times after it was made, with a
// queue of edges like the kernel's.
type fakePin struct {
	gpio.PinIn
	t      *testing.T
	start  time.Time
	first  gpio.Level
	edges  []time.Duration // by rising time
	next   int             // not yet taken from the queue
	deaf   bool            // edges are never told
	halted chan struct{}
	broken error // from In, when the line is gone
	goneAt time.Duration
	ins    []string
	reads  int // of a line that is gone
}

func newFakePin(t *testing.T, first gpio.Level, edges ...time.Duration) *fakePin {
	return &fakePin{t: t, start: time.Now(), first: first, edges: edges, halted: make(chan struct{}, 1)}
}

func (p *fakePin) Name() string   { return "GPIO17" }
func (p *fakePin) String() string { return `{"Line": 17}` } // as gpioioctl's

func (p *fakePin) gone() bool { return p.goneAt != 0 && time.Since(p.start) >= p.goneAt }

func (p *fakePin) In(pull gpio.Pull, edge gpio.Edge) error {
	p.ins = append(p.ins, fmt.Sprintf("%v %v", pull, edge))
	if p.gone() {
		return p.broken
	}
	return nil
}

func (p *fakePin) Read() gpio.Level {
	if p.gone() {
		p.reads++
		return gpio.Low // gpioioctl logs and says so
	}
	past := 0
	for past < len(p.edges) && p.edges[past] <= time.Since(p.start) {
		past++
	}
	return p.first != (past%2 == 1)
}

func (p *fakePin) WaitForEdge(timeout time.Duration) bool {
	if timeout <= 0 {
		p.t.Errorf("WaitForEdge(%v): gpioioctl waits for ever, or not at all", timeout)
		return false
	}
	if p.gone() {
		return false
	}
	wait, edge := timeout, false
	if !p.deaf && p.next < len(p.edges) {
		if until := p.edges[p.next] - time.Since(p.start); until <= timeout {
			wait, edge = until, true
			p.next++
		}
	}
	if until := p.goneAt - time.Since(p.start); p.goneAt != 0 && until < wait {
		wait, edge = until, false // the kernel wakes whoever waits
	}
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-p.halted:
			return false
		}
	}
	return edge
}

func (p *fakePin) Halt() error {
	select {
	case p.halted <- struct{}{}:
	default:
	}
	return nil
}

// told is what a contact said and when.
type told struct {
	at    time.Duration
	state bool
}

// watch runs a contact on a pin for so long of fake time.
func watch(t *testing.T, opts string, runs time.Duration, pin func() *fakePin) (all []told, p *fakePin, err error) {
	t.Helper()
	d, _ := Lookup("contact")
	synctest.Test(t, func(t *testing.T) {
		p = pin()
		o := options(t, d, opts)
		r, openErr := (&Opener{Host: bench{pin: p}}).Open(t.Context(), d, Place{Pin: "GPIO17"}, o)
		if openErr != nil {
			t.Fatal(openErr)
		}
		ctx, cancel := context.WithTimeout(t.Context(), runs)
		defer cancel()
		err = r.(gateway.Watcher).Watch(ctx, func(vs []gateway.Value) {
			if len(vs) != 1 || vs[0].Check() != nil || vs[0].Quantity != d.Senses(o)[0] {
				t.Errorf("told %v", vs)
			}
			all = append(all, told{time.Since(p.start), vs[0].V.(bool)})
		})
		if late := time.Since(p.start) - runs; ctx.Err() != nil && late > 250*time.Millisecond {
			t.Errorf("noticed the end of ctx %v late", late)
		}
		if err := r.Halt(); err != nil {
			t.Error(err)
		}
	})
	return all, p, err
}

const ms = time.Millisecond

func TestContact(t *testing.T) {
	bounce := []time.Duration{1000 * ms, 1001 * ms, 1003 * ms, 1008 * ms, 1020 * ms} // ends away from where it began
	for name, c := range map[string]struct {
		opts  string
		runs  time.Duration
		first gpio.Level
		edges []time.Duration
		deaf  bool
		want  []told
		in    string
	}{
		"closed door":            {`{}`, time.Minute, gpio.Low, nil, false, []told{{0, false}}, "PullUp BothEdges"},
		"open door":              {`{}`, time.Minute, gpio.High, nil, false, []told{{0, true}}, "PullUp BothEdges"},
		"pressed button":         {`{quantity: button}`, time.Minute, gpio.Low, nil, false, []told{{0, true}}, "PullUp BothEdges"},
		"still room":             {`{quantity: occupancy}`, time.Minute, gpio.Low, nil, false, []told{{0, false}}, "PullDown BothEdges"},
		"wired the other way":    {`{active: low, pull: none}`, time.Minute, gpio.Low, nil, false, []told{{0, true}}, "Float BothEdges"},
		"opens with bounces":     {`{}`, time.Minute, gpio.Low, bounce, false, []told{{0, false}, {1070 * ms, true}}, ""},
		"glitch":                 {`{}`, time.Minute, gpio.Low, []time.Duration{1000 * ms, 1049 * ms}, false, []told{{0, false}}, ""},
		"glitches":               {`{}`, time.Minute, gpio.Low, []time.Duration{1000 * ms, 1040 * ms, 1045 * ms, 1085 * ms}, false, []told{{0, false}}, ""},
		"a dip too short to see": {`{}`, time.Minute, gpio.Low, []time.Duration{1000 * ms, 1030 * ms, 1030 * ms}, false, []told{{0, false}, {1080 * ms, true}}, ""},
		"no debounce":            {`{debounce: 0s}`, time.Minute, gpio.Low, []time.Duration{1000 * ms, 1004 * ms}, false, []told{{0, false}, {1000 * ms, true}, {1004 * ms, false}}, ""},
		"edges lost":             {`{}`, 2 * time.Second, gpio.Low, []time.Duration{1010 * ms}, true, []told{{0, false}, {1250 * ms, true}}, ""},
		"steady, told again":     {`{repeat: 10s}`, 35 * time.Second, gpio.High, nil, false, []told{{0, true}, {10 * time.Second, true}, {20 * time.Second, true}, {30 * time.Second, true}}, ""},
		"a change delays it":     {`{repeat: 10s}`, 16 * time.Second, gpio.High, []time.Duration{5 * time.Second}, false, []told{{0, true}, {5050 * ms, false}, {15050 * ms, false}}, ""},
		"motion":                 {`{quantity: occupancy, hold: 30s}`, time.Minute, gpio.Low, []time.Duration{1 * time.Second, 4 * time.Second}, false, []told{{0, false}, {1050 * ms, true}, {34 * time.Second, false}}, ""},
		"motion again":           {`{quantity: occupancy, hold: 30s}`, 2 * time.Minute, gpio.Low, []time.Duration{1 * time.Second, 4 * time.Second, 20 * time.Second, 23 * time.Second}, false, []told{{0, false}, {1050 * ms, true}, {53 * time.Second, false}}, ""},
		"a glitch holds not":     {`{quantity: occupancy, hold: 30s}`, 2 * time.Minute, gpio.Low, []time.Duration{1 * time.Second, 4 * time.Second, 20 * time.Second, 20020 * ms}, false, []told{{0, false}, {1050 * ms, true}, {34 * time.Second, false}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, p, err := watch(t, c.opts, c.runs, func() *fakePin {
				p := newFakePin(t, c.first, c.edges...)
				p.deaf = c.deaf
				return p
			})
			if err != nil {
				t.Fatalf("stopped: %v", err)
			}
			if len(got) != len(c.want) {
				t.Fatalf("got %v, want %v", got, c.want)
			}
			for i, w := range c.want {
				tolerance := ms // a wait is never shorter
				if c.deaf || strings.Contains(c.opts, "hold") {
					tolerance = contactWait // by looking, not by an edge
				}
				if off := got[i].at - w.at; got[i].state != w.state || off < -tolerance || off > tolerance {
					t.Errorf("got %v, want %v", got, c.want)
					break
				}
			}
			if c.in != "" && !slices.Equal(p.ins, []string{c.in}) {
				t.Errorf("set up as %q, want %q", p.ins, c.in)
			}
		})
	}
}

// Random trains of edges, each gap clearly shorter or longer than the debounce
// time: told is each level that lasted, when it had lasted, and nothing else.
func TestContactTrains(t *testing.T) {
	const debounce = 50 * ms
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		var edges []time.Duration
		at := time.Duration(0)
		level, state := false, false
		want := []told{{0, false}}
		for range 200 {
			gap := time.Duration(1+r.IntN(45)) * ms
			if r.IntN(3) == 0 {
				gap = time.Duration(55+r.IntN(2000)) * ms
			}
			if gap > debounce && level != state {
				state = level
				want = append(want, told{at + debounce, state})
			}
			at += gap
			edges = append(edges, at)
			level = !level
		}
		if level != state {
			want = append(want, told{at + debounce, level})
		}
		got, _, err := watch(t, `{repeat: 24h}`, at+time.Second, func() *fakePin { return newFakePin(t, gpio.Low, edges...) })
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: got %v, want %v", seed, got, want)
		}
	}
}

func TestContactBroken(t *testing.T) {
	errGone := errors.New("no such device")
	for name, c := range map[string]struct {
		pin   func() *fakePin
		want  string
		is    error
		after time.Duration
	}{
		"not there": {func() *fakePin {
			p := newFakePin(t, gpio.High)
			p.start, p.goneAt, p.broken = p.start.Add(-time.Second), time.Second, errGone
			return p
		}, "contact{GPIO17}: set up: no such device", errGone, 0},
		"disappears": {func() *fakePin {
			p := newFakePin(t, gpio.High)
			p.goneAt, p.broken = 3010*ms, errGone
			return p
		}, "contact{GPIO17}: wait: no such device", errGone, 3 * time.Second},
		"cannot be waited on": {func() *fakePin {
			p := newFakePin(t, gpio.High)
			p.goneAt = 3010 * ms
			return p
		}, "contact{GPIO17}: wait: the line cannot be waited on", nil, 3 * time.Second},
		"hums": {func() *fakePin { // a floating input picks up 50 Hz
			p := newFakePin(t, gpio.High)
			for at := 20 * time.Second; at < time.Minute; at += 10 * ms {
				p.edges = append(p.edges, at)
			}
			return p
		}, "contact{GPIO17}: wait: the line has not been stable", nil, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			var last time.Duration
			got, p, err := watch(t, `{}`, time.Hour, c.pin)
			if err == nil || !strings.HasPrefix(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if p.reads > 0 {
				t.Errorf("the level of a line that is gone was taken for one")
			}
			for _, g := range got {
				last = g.at
				if !g.state {
					t.Errorf("told a false state: %v", got)
				}
			}
			if last > c.after {
				t.Errorf("told a state after the line had broken: %v", got)
			}
		})
	}
}

// Whenever ctx ends, on a quiet and on a busy line, Watch returns nil soon; the
// check stands in watch.
func TestContactCancel(t *testing.T) {
	for _, runs := range []time.Duration{0, ms, 199 * ms, 200 * ms, 1234 * ms, 5 * time.Second} {
		for name, edges := range map[string][]time.Duration{"quiet": nil, "busy": everyMS(6000)} {
			if _, _, err := watch(t, `{}`, runs, func() *fakePin { return newFakePin(t, gpio.High, edges...) }); err != nil {
				t.Errorf("%s, %v: %v", name, runs, err)
			}
		}
	}
}

func everyMS(n int) (edges []time.Duration) {
	for i := range n {
		edges = append(edges, time.Duration(i+1)*ms)
	}
	return edges
}

// A Halt from elsewhere ends the wait, and is no fault of the line.
func TestContactHalt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newFakePin(t, gpio.Low, 3*time.Second)
		w, err := openContact(p, Contact{Quantity: gateway.Contact, Debounce: 50 * ms, Repeat: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		states, done := 0, make(chan error, 1)
		go func() { done <- w.Watch(ctx, func([]gateway.Value) { states++ }) }()
		time.Sleep(1010 * ms)
		if err := w.Halt(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil || states != 2 {
			t.Errorf("got %v after %d states, want both states and no error", err, states)
		}
	})
}

func TestContactOptions(t *testing.T) {
	wantFaults(t, "contact", map[string]string{
		`{}`:                           "",
		`{quantity: temperature}`:      "quantity",
		`{active: on, pull: floating}`: "active pull",
		`{debounce: -1ms}`:             "debounce",
		`{debounce: 11s}`:              "debounce",
		`{hold: -1s}`:                  "hold",
		`{hold: 25h}`:                  "hold",
		`{repeat: 0s}`:                 "repeat",
		`{repeat: 25h}`:                "repeat",
	})
}
