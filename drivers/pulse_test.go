package drivers

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"campus-gateway"
	"campus-gateway/drivers/bus"

	"periph.io/x/conn/v3/gpio"
)

// fakeCounter counts edges at set times after it was made. The kernel keeps the
// last queue of them with their time; 0 is no limit.
type fakeCounter struct {
	start  time.Time
	edges  []time.Duration // by rising time
	taken  int
	lost   uint64
	queue  int
	err    error
	closed int
}

const kernelStart = 1000 * time.Hour // its monotonic clock is not ours

func (c *fakeCounter) String() string { return "GPIO22" }
func (c *fakeCounter) Close() error   { c.closed++; return c.err }

func (c *fakeCounter) Read() (bus.Count, error) {
	if c.err != nil {
		return bus.Count{}, c.err
	}
	from := c.taken
	for c.taken < len(c.edges) && c.edges[c.taken] <= time.Since(c.start) {
		c.taken++
	}
	if lost := c.taken - from - c.queue; c.queue > 0 && lost > 0 {
		c.lost += uint64(lost)
		from += lost
	}
	count := bus.Count{Edges: uint64(c.taken), Lost: c.lost}
	if c.taken > from {
		count.First, count.Last = kernelStart+c.edges[from], kernelStart+c.edges[c.taken-1]
	}
	return count, nil
}

// steady are n edges at a frequency, the first after some time.
func steady(first time.Duration, hz float64, n int) (edges []time.Duration) {
	for i := range n {
		edges = append(edges, first+time.Duration(float64(i)/hz*float64(time.Second)))
	}
	return edges
}

// openPulses opens a pulse on a counter under fake time and hands it on.
func openPulses(t *testing.T, opts string, c *fakeCounter, then func(t *testing.T, s gateway.Sensor)) {
	t.Helper()
	d, _ := Lookup("pulse")
	synctest.Test(t, func(t *testing.T) {
		c.start = time.Now()
		r, err := (&Opener{Host: bench{counter: c}}).Open(t.Context(), d, Place{Pin: "GPIO22"}, options(t, d, opts))
		if err != nil {
			t.Fatal(err)
		}
		then(t, r.(gateway.Sensor))
	})
}

func TestPulse(t *testing.T) {
	every10s := []time.Duration{10 * time.Second, 20 * time.Second, 30 * time.Second}
	for name, c := range map[string]struct {
		opts  string
		edges []time.Duration
		queue int
		at    []time.Duration
		want  [][]float64
	}{
		// YF-S201: 450 pulses a litre, 10 L/min is 75 Hz.
		"flow":                {`{quantity: waterFlow, per_unit: 450}`, steady(5*ms, 75, 3000), 0, every10s, [][]float64{{10}, {10}, {10}}},
		"flow and volume":     {`{quantity: waterFlow, per_unit: 450, total: true, start: 100}`, steady(0, 75, 1500), 0, every10s, [][]float64{{10, 101.668889}, {10, 103.333333}, {0, 103.333333}}},
		"one read, the first": {`{quantity: waterFlow, per_unit: 450}`, steady(5*ms, 7.5, 3000), 0, []time.Duration{0}, [][]float64{{1}}},
		"no flow":             {`{quantity: waterFlow, per_unit: 450}`, nil, 0, every10s, [][]float64{{0}, {0}, {0}}},
		"flow ends":           {`{quantity: waterFlow, per_unit: 450}`, steady(5*ms, 75, 800), 0, every10s, [][]float64{{10}, {0.6667}, {0}}},
		// Few edges are exact from edge to edge: 0.23 Hz, read each 10 s.
		"light wind":         {`{quantity: windSpeed, factor: 0.6667}`, steady(ms, 0.23, 100), 0, every10s, [][]float64{{0.1533}, {0.1533}, {0.1533}}},
		"a splash":           {`{quantity: frequency}`, []time.Duration{15 * time.Second, 15100 * ms}, 0, every10s, [][]float64{{0}, {0.2}, {0}}},
		"a pause":            {`{quantity: frequency}`, []time.Duration{5 * time.Second, 22 * time.Second}, 0, every10s, [][]float64{{0.1}, {0}, {0.1}}},
		"the fast ones lost": {`{quantity: frequency}`, append(steady(ms, 100, 100), steady(1500*ms, 2, 17)...), 16, []time.Duration{10 * time.Second}, [][]float64{{11.7}}},
		"queue overrun":      {`{quantity: frequency, total: true}`, steady(5*ms, 500, 15000), 16, every10s, [][]float64{{499.8, 4998}, {500, 9998}, {500, 14998}}},
		"rain":               {`{quantity: precipitation, factor: 0.2794}`, []time.Duration{time.Second, 11 * time.Second, 12 * time.Second, 13 * time.Second}, 0, every10s, [][]float64{{0.2794}, {0.8382}, {0}}},
		"energy":             {`{quantity: energy, per_unit: 1000, start: 5000}`, steady(ms, 1, 25), 0, every10s, [][]float64{{5010}, {5020}, {5025}}},
		"power":              {`{quantity: power, per_unit: 1000, total: true}`, steady(ms, 0.5, 25), 0, every10s, [][]float64{{1800, 5}, {1800, 10}, {1800, 15}}},
		"pulses":             {`{}`, steady(ms, 3, 25), 0, every10s, [][]float64{{25}, {25}, {25}}},
		"volume":             {`{quantity: waterVolume, factor: 0.5}`, steady(ms, 1, 15), 0, every10s, [][]float64{{5}, {7.5}, {7.5}}},
		"pulses, at once":    {`{quantity: pulses, start: 7}`, nil, 0, []time.Duration{0, 0}, [][]float64{{7}, {7}}},
		"a rate, too often":  {`{quantity: frequency}`, steady(ms, 10, 100), 0, []time.Duration{0, 0, 0}, [][]float64{{10}, {10}, {10}}},
	} {
		t.Run(name, func(t *testing.T) {
			openPulses(t, c.opts, &fakeCounter{edges: c.edges, queue: c.queue}, func(t *testing.T, s gateway.Sensor) {
				start := time.Now()
				d, _ := Lookup("pulse")
				senses := d.Senses(options(t, d, c.opts))
				for i, at := range c.at {
					time.Sleep(time.Until(start.Add(at)))
					before := time.Now()
					vs, err := s.Sense(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if took := time.Since(before); took > time.Second {
						t.Errorf("took %v", took)
					}
					if len(vs) != len(c.want[i]) || len(vs) != len(senses) {
						t.Fatalf("reading %d: got %v, want %v of %v", i, vs, c.want[i], senses)
					}
					for j, want := range c.want[i] {
						// Rates are rounded to 4 decimals, and edges to ns.
						if vs[j].Quantity != senses[j] || math.Abs(vs[j].V.(float64)-want) > 2e-4*max(1, want) && j == 0 || j == 1 && math.Abs(vs[j].V.(float64)-want) > 1e-6 {
							t.Errorf("reading %d: got %v, want %v", i, vs, c.want[i])
						}
						if err := vs[j].Check(); err != nil {
							t.Error(err)
						}
					}
				}
			})
		})
	}
}

// Interference is refused, and kept out of the total.
func TestPulseMax(t *testing.T) {
	edges := append(steady(ms, 10, 100), steady(10*time.Second, 5000, 5000)...)
	edges = append(edges, steady(21*time.Second, 10, 50)...)
	openPulses(t, `{max: 100}`, &fakeCounter{edges: edges}, func(t *testing.T, s gateway.Sensor) {
		var got []float64
		for i := range 3 {
			time.Sleep(9900 * ms)
			vs, err := s.Sense(t.Context())
			if i == 1 {
				if vs != nil || !errors.Is(err, ErrRange) || !strings.HasPrefix(err.Error(), "pulse{GPIO22}: read: ") {
					t.Errorf("got %v, %v, want ErrRange", vs, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, vs[0].V.(float64))
		}
		if got[0] != 99 || got[1] != 149 {
			t.Errorf("got totals %v, want 99 and 149", got)
		}
	})
}

func TestPulseFaulty(t *testing.T) {
	openPulses(t, `{}`, &fakeCounter{err: errPulled}, func(t *testing.T, s gateway.Sensor) {
		if vs, err := s.Sense(t.Context()); vs != nil || !errors.Is(err, errPulled) || !strings.HasPrefix(err.Error(), "pulse{GPIO22}: read: ") {
			t.Errorf("got %v, %v", vs, err)
		}
		if err := s.Halt(); !errors.Is(err, errPulled) || !strings.HasPrefix(err.Error(), "pulse{GPIO22}: close: ") {
			t.Errorf("got %v", err)
		}
	})
	c := &fakeCounter{edges: steady(ms, 10, 1000)}
	openPulses(t, `{}`, c, func(t *testing.T, s gateway.Sensor) {
		time.Sleep(10 * time.Second)
		s.Sense(t.Context())
		c.taken, c.edges = 0, nil // the count falls
		if vs, err := s.Sense(t.Context()); err == nil {
			t.Errorf("a count that fell gave %v", vs)
		}
		c.edges = steady(ms, 10, 105)
		if vs, err := s.Sense(t.Context()); err != nil || vs[0].V != 100.0+100 {
			t.Errorf("got %v, %v, want the total to go on", vs, err)
		}
		for range 2 {
			if err := s.Halt(); err != nil {
				t.Error(err)
			}
		}
		if c.closed != 1 {
			t.Errorf("closed %d times", c.closed)
		}
	})
}

func TestPulseCancel(t *testing.T) {
	openPulses(t, `{quantity: frequency}`, &fakeCounter{}, func(t *testing.T, s gateway.Sensor) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*ms)
		defer cancel()
		start := time.Now()
		if vs, err := s.Sense(ctx); vs != nil || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 300*ms {
			t.Errorf("got %v, %v after %v", vs, err, time.Since(start))
		}
	})
}

// Whatever the edges do and however many are lost, rates are numbers near the
// count over the interval, and add up to the count; totals never fall.
func TestPulseAddsUp(t *testing.T) {
	sum, counted := 0.0, 0.0
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 4))
		var edges []time.Duration
		at := time.Duration(0)
		for at < 10*time.Minute {
			at += time.Duration(r.ExpFloat64() * float64([]time.Duration{2 * ms, 300 * ms, 20 * time.Second}[r.IntN(3)]))
			edges = append(edges, at)
		}
		c := &fakeCounter{edges: edges, queue: r.IntN(3) * 16}
		openPulses(t, `{quantity: frequency, total: true}`, c, func(t *testing.T, s gateway.Sensor) {
			before, from := 0.0, time.Now()
			for time.Since(c.start) < 10*time.Minute {
				time.Sleep(time.Duration(1+r.IntN(20)) * time.Second)
				vs, err := s.Sense(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				hz, total := vs[0].V.(float64), vs[1].V.(float64)
				n, passed := total-before, time.Since(from).Seconds()
				if vs[0].Check() != nil || n < 0 || hz*passed < n/2-0.01 || hz*passed > 2*n+0.01 {
					t.Fatalf("seed %d: %v edges in %v s are %v", seed, n, passed, vs)
				}
				sum += hz * passed
				before, from = total, time.Now()
			}
			counted += before
		})
	}
	if math.Abs(sum/counted-1) > 0.05 {
		t.Errorf("the rates add up to %.1f, counted were %v", sum, counted)
	}
}

func TestPulseOptions(t *testing.T) {
	wantFaults(t, "pulse", map[string]string{
		`{}`:                                   "",
		`{quantity: temperature}`:              "quantity",
		`{quantity: waterFlow}`:                "quantity",
		`{quantity: waterFlow, per_unit: 450}`: "",
		`{quantity: waterFlow, per_unit: 450, factor: 0.1}`:  "factor",
		`{quantity: frequency, total: true, start: 3}`:       "",
		`{quantity: windSpeed, factor: 0.6667, total: true}`: "total",
		`{quantity: precipitation, factor: 0.2, start: 3}`:   "start",
		`{per_unit: -1}`:     "per_unit",
		`{per_unit: 1e-300}`: "per_unit",
		`{factor: .nan}`:     "factor",
		`{max: .inf}`:        "max",
		`{edge: up}`:         "edge",
		`{pull: strong}`:     "pull",
		`{debounce: 2s}`:     "debounce",
		`{debounce: -1ms}`:   "debounce",
	})
}

func TestPulseCounts(t *testing.T) {
	want := bus.CounterOpts{Edge: gpio.BothEdges, Pull: gpio.Float, Debounce: 5 * ms}
	if got := countPulses(Pulse{Edge: "both", Pull: "none", Debounce: 5 * ms}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
