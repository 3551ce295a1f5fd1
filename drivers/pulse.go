package drivers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"campus-gateway"
	"campus-gateway/drivers/bus"

	"periph.io/x/conn/v3/gpio"
)

func init() {
	registerCounter(Spec{
		Name:       "pulse",
		Doc:        "pulse counter: water flow (YF-S201), rain gauge, anemometer, energy meter (S0, LED)",
		Datasheet:  "none: any pulsing GPIO line",
		Quantities: slices.Sorted(maps.Keys(pulseMeters)),
	}, Pulse{Quantity: gateway.Pulses, Edge: "falling", Pull: "up"}, countPulses, openPulse)
}

// Pulse are the options of a pulse.
type Pulse struct {
	Quantity gateway.Quantity `yaml:"quantity" doc:"pulses, frequency, waterFlow, waterVolume, precipitation, windSpeed, power or energy"`
	PerUnit  float64          `yaml:"per_unit" doc:"pulses for a litre (YF-S201: 450), a kWh, a mm of rain"`
	Factor   float64          `yaml:"factor" doc:"instead: litres, kWh or mm for a pulse (rain gauge: 0.2794), m/s of wind for a pulse a second (0.6667)"`
	Total    bool             `yaml:"total" doc:"with waterFlow, power or frequency: the running total too (waterVolume, energy, pulses)"`
	Start    float64          `yaml:"start" doc:"where a running total begins whenever the gateway starts: L, Wh or pulses"`
	Edge     string           `yaml:"edge" doc:"what counts: falling, rising or both (two for each pulse)"`
	Pull     string           `yaml:"pull" doc:"resistor of the line: up, down or none"`
	Debounce time.Duration    `yaml:"debounce" doc:"shorter pulses are ignored; a reed contact needs about 5ms"`
	Max      float64          `yaml:"max" doc:"most pulses a second that can be true: more is interference and refused; 0: no limit"`
}

// meter is what becomes of a quantity's pulses.
type meter struct {
	kind  meterKind
	scale float64          // quantity's unit for the unit of per_unit and factor; for a rate, for that unit a second
	bare  bool             // counts pulses as they are unless told otherwise
	total gateway.Quantity // of a rate: the running total that belongs to it
}

type meterKind int

const (
	rateMeter  meterKind = iota // by time
	totalMeter                  // since the start
	stepMeter                   // since the reading before
)

var pulseMeters = map[gateway.Quantity]meter{
	gateway.Pulses:        {kind: totalMeter, scale: 1, bare: true},
	gateway.Frequency:     {kind: rateMeter, scale: 1, bare: true, total: gateway.Pulses},
	gateway.WaterVolume:   {kind: totalMeter, scale: 1},
	gateway.WaterFlow:     {kind: rateMeter, scale: 60, total: gateway.WaterVolume}, // L/s to L/min
	gateway.Energy:        {kind: totalMeter, scale: 1000},                          // kWh to Wh
	gateway.Power:         {kind: rateMeter, scale: 3.6e6, total: gateway.Energy},   // kWh/s to W
	gateway.Precipitation: {kind: stepMeter, scale: 1},
	gateway.WindSpeed:     {kind: rateMeter, scale: 1},
}

var pulseEdges = map[string]gpio.Edge{"rising": gpio.RisingEdge, "falling": gpio.FallingEdge, "both": gpio.BothEdges}

func (o *Pulse) check() (faults []error) {
	fault := func(field, format string, args ...any) {
		faults = append(faults, &OptionError{field, fmt.Sprintf(format, args...)})
	}
	m, known := pulseMeters[o.Quantity]
	if !known {
		fault("quantity", "%q is not one that pulses measure: write pulses, frequency, waterFlow, waterVolume, precipitation, windSpeed, power or energy", o.Quantity)
	}
	for _, n := range []struct {
		field string
		value float64
	}{{"per_unit", o.PerUnit}, {"factor", o.Factor}, {"start", o.Start}, {"max", o.Max}} {
		if n.value != 0 && !(n.value >= 1/largestValue && n.value <= largestValue) {
			fault(n.field, "%v is not a positive number that can be reckoned with", n.value)
		}
	}
	if o.PerUnit != 0 && o.Factor != 0 {
		fault("factor", "one is the other's inverse: write per_unit or factor")
	}
	if known && o.PerUnit == 0 && o.Factor == 0 && !m.bare {
		fault("quantity", "%s needs per_unit or factor: what a pulse of this meter stands for", o.Quantity)
	}
	if known && o.Total && m.total == "" {
		fault("total", "%s has no running total beside it", o.Quantity)
	}
	if known && o.Start != 0 && m.kind != totalMeter && !o.Total {
		fault("start", "%s is not a running total", o.Quantity)
	}
	if _, ok := pulseEdges[o.Edge]; !ok {
		fault("edge", "%q is unknown: write falling, rising or both", o.Edge)
	}
	if _, ok := linePulls[o.Pull]; !ok {
		fault("pull", "%q is unknown: write up, down or none", o.Pull)
	}
	if o.Debounce < 0 || o.Debounce > time.Second {
		fault("debounce", "%v is outside 0s..1s", o.Debounce)
	}
	return faults
}

func (o *Pulse) senses() []gateway.Quantity {
	if o.Total {
		return []gateway.Quantity{o.Quantity, pulseMeters[o.Quantity].total}
	}
	return []gateway.Quantity{o.Quantity}
}

// factor is what a pulse stands for in the unit of the meter.
func (o *Pulse) factor() float64 {
	switch {
	case o.PerUnit != 0:
		return 1 / o.PerUnit
	case o.Factor != 0:
		return o.Factor
	}
	return 1
}

func countPulses(o Pulse) bus.CounterOpts {
	return bus.CounterOpts{Edge: pulseEdges[o.Edge], Pull: linePulls[o.Pull], Debounce: o.Debounce}
}

type pulse struct {
	Pulse
	counter bus.Counter
	closed  bool
	at      time.Time     // of the last look at the counter
	before  bus.Count     // what it said
	last    time.Duration // the kernel's time of the last edge, if there was one between the last two looks
	pulses  uint64        // accepted since the start
}

func openPulse(c bus.Counter, o Pulse) (gateway.Sensor, error) {
	return &pulse{Pulse: o, counter: c, at: time.Now()}, nil
}

// shortestRate is the least interval that a rate is taken over. The first Sense
// waits for it to pass.
const shortestRate = time.Second

// Sense reads the counter. A rate is the mean since the Sense before; without
// an edge it is 0. Lost edges lack their time, not their count.
func (p *pulse) Sense(ctx context.Context) ([]gateway.Value, error) {
	m := pulseMeters[p.Quantity]
	if m.kind == rateMeter {
		if err := sleep(ctx, shortestRate-time.Since(p.at)); err != nil {
			return nil, p.errorf("wait", err)
		}
	}
	c, err := p.counter.Read()
	if err != nil {
		return nil, p.errorf("read", err)
	}
	now := time.Now()
	n, lost, interval := c.Edges-p.before.Edges, c.Lost-p.before.Lost, now.Sub(p.at)
	fell := c.Edges < p.before.Edges || c.Lost < p.before.Lost
	hz := 0.0
	if m.kind == rateMeter {
		hz = p.hz(c, n, lost, interval)
	}
	p.before, p.at, p.last = c, now, c.Last
	if fell {
		return nil, p.errorf("read", errors.New("the count fell: the line was opened anew"))
	}
	if most := p.Max * max(interval, shortestRate).Seconds(); p.Max != 0 && float64(n) > most {
		return nil, p.errorf("read", fmt.Errorf("%w: %d pulses in %v, at most %.6g can be true", ErrRange, n, interval, most))
	}
	p.pulses += n
	running := round(p.Start+float64(p.pulses)*p.factor()*pulseMeters[cmp.Or(m.total, p.Quantity)].scale, 6)
	switch m.kind {
	case totalMeter:
		return []gateway.Value{{Quantity: p.Quantity, V: running}}, nil
	case stepMeter:
		return []gateway.Value{{Quantity: p.Quantity, V: round(float64(n)*p.factor()*m.scale, 6)}}, nil
	}
	values := []gateway.Value{{Quantity: p.Quantity, V: round(hz*p.factor()*m.scale, 4)}}
	if p.Total {
		values = append(values, gateway.Value{Quantity: m.total, V: running})
	}
	return values, nil
}

// hz is the frequency of n edges, of which lost have no time stamp. From edge to
// edge it is exact however few they are. Where they are bunched, which tells
// nothing of the rest of the interval, they are spread over all of it.
func (p *pulse) hz(c bus.Count, n, lost uint64, interval time.Duration) float64 {
	if n == 0 {
		return 0
	}
	from, periods := p.last, n
	if from == 0 && lost == 0 {
		from, periods = c.First, n-1
	}
	span := c.Last - from
	if from == 0 || span < interval/2 || span > interval*2 {
		periods, span = n, interval
	}
	return float64(periods) / span.Seconds()
}

// Halt lets go of the line.
func (p *pulse) Halt() error {
	if p.closed {
		return nil
	}
	p.closed = true
	if err := p.counter.Close(); err != nil {
		return p.errorf("close", err)
	}
	return nil
}

// String is pulse{GPIO22}.
func (p *pulse) String() string { return fmt.Sprintf("pulse{%s}", p.counter) }

func (p *pulse) errorf(step string, err error) error { return fmt.Errorf("%s: %s: %w", p, step, err) }
