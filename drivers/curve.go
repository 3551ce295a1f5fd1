package drivers

import (
	"fmt"
	"math"
	"slices"
)

// Curve turns the voltage of an analog probe into what it stands for. It has
// one of three forms; with none of them, volts stay volts (behind a divider).
type Curve struct {
	Divider    float64      `yaml:"divider" doc:"volts at the probe for each volt at the converter (two equal resistors: 2); 0: none"`
	Points     [][2]float64 `yaml:"points" doc:"[[volts, value], …], rising or falling in volts: straight lines between calibrated points"`
	Polynomial []float64    `yaml:"polynomial" doc:"[c0, c1, c2, …]: c0 + c1·V + c2·V² + …"`
	Scale      float64      `yaml:"scale" doc:"a straight line: scale·V + offset"`
	Offset     float64      `yaml:"offset" doc:"the value at 0 V, with scale"`
	Min        *float64     `yaml:"min" doc:"least possible value"`
	Max        *float64     `yaml:"max" doc:"greatest possible value"`
	Outside    string       `yaml:"outside" doc:"what becomes of a voltage outside the points and a value outside min..max: refuse (default) or clamp"`
}

// longestCurve bounds the work of a value; no sensor's datasheet comes near it.
const longestCurve = 1000

// check returns every fault, told at the option that holds the curve.
func (c *Curve) check(field string) (faults []error) {
	fault := func(format string, args ...any) {
		faults = append(faults, &OptionError{field, fmt.Sprintf(format, args...)})
	}
	numbers := append([]float64{c.Divider, c.Scale, c.Offset}, c.Polynomial...)
	for _, p := range c.Points {
		numbers = append(numbers, p[:]...)
	}
	for _, bound := range []*float64{c.Min, c.Max} {
		if bound != nil {
			numbers = append(numbers, *bound)
		}
	}
	for _, n := range numbers {
		if !(math.Abs(n) <= largestValue) {
			fault("%v is not a number that can be reckoned with", n)
			return faults
		}
	}
	forms := 0
	for _, given := range []bool{len(c.Points) > 0, len(c.Polynomial) > 0, c.Scale != 0} {
		if given {
			forms++
		}
	}
	if forms > 1 {
		fault("write one of points, polynomial and scale")
	}
	if forms == 0 && c.Divider == 0 {
		fault("it has none of points, polynomial, scale and divider: write one")
	}
	if c.Offset != 0 && c.Scale == 0 {
		fault("offset goes with scale: write scale")
	}
	if c.Divider < 0 {
		fault("divider: %v is negative", c.Divider)
	}
	if len(c.Points) == 1 {
		fault("points: one point makes no line: write two or more")
	}
	if len(c.Points) > longestCurve || len(c.Polynomial) > longestCurve {
		fault("it is longer than %d", longestCurve)
	}
	for i := 1; i < len(c.Points); i++ {
		rises := c.Points[i][0] > c.Points[i-1][0]
		if c.Points[i][0] == c.Points[i-1][0] || rises != (c.Points[1][0] > c.Points[0][0]) {
			fault("points: the volts must rise, or fall, from each point to the next: point %d (%v V) does not follow %v V", i+1, c.Points[i][0], c.Points[i-1][0])
			break
		}
	}
	if c.Min != nil && c.Max != nil && *c.Min >= *c.Max {
		fault("min %v is not below max %v", *c.Min, *c.Max)
	}
	if c.Outside != "" && c.Outside != "refuse" && c.Outside != "clamp" {
		fault("outside: %q is unknown: write refuse or clamp", c.Outside)
	}
	return faults
}

// largestValue is beyond every quantity in its unit.
const largestValue = 1e12

// At is the value at a voltage, or ErrRange.
func (c *Curve) At(volts float64) (float64, error) {
	if c.Divider != 0 {
		volts *= c.Divider
	}
	if !(math.Abs(volts) <= largestValue) {
		return 0, fmt.Errorf("%w: %g V", ErrRange, volts)
	}
	v := volts
	switch {
	case len(c.Points) > 0:
		first, last := c.Points[0], c.Points[len(c.Points)-1]
		within := min(max(volts, min(first[0], last[0])), max(first[0], last[0]))
		if within != volts && c.Outside != "clamp" {
			return 0, fmt.Errorf("%w: %.6g V is outside the curve's points, %g..%g V", ErrRange, volts, first[0], last[0])
		}
		v = c.between(within)
	case len(c.Polynomial) > 0:
		v = 0
		for i := len(c.Polynomial) - 1; i >= 0; i-- {
			v = v*volts + c.Polynomial[i]
		}
	case c.Scale != 0:
		v = c.Scale*volts + c.Offset
	}
	if !(math.Abs(v) <= largestValue) { // NaN too, which no clamping mends
		return 0, fmt.Errorf("%w: the curve gives %g at %.6g V", ErrRange, v, volts)
	}
	clamped := v
	if c.Min != nil {
		clamped = max(clamped, *c.Min)
	}
	if c.Max != nil {
		clamped = min(clamped, *c.Max)
	}
	if clamped != v && c.Outside != "clamp" {
		return 0, fmt.Errorf("%w: the curve gives %.6g at %.6g V, outside its min..max", ErrRange, v, volts)
	}
	return clamped, nil
}

// between is the value at a voltage within the points.
func (c *Curve) between(volts float64) float64 {
	rising := c.Points[1][0] > c.Points[0][0]
	i := slices.IndexFunc(c.Points[1:], func(p [2]float64) bool { return p[0] == volts || p[0] > volts == rising })
	a, b := c.Points[i], c.Points[i+1]
	t := (volts - a[0]) / (b[0] - a[0])
	return a[1]*(1-t) + b[1]*t // exact at both ends
}
