package drivers

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func curveOf(t testing.TB, text string) *Curve {
	t.Helper()
	c := &Curve{}
	dec := yaml.NewDecoder(strings.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCurve(t *testing.T) {
	outside := math.NaN() // marks ErrRange
	for text, at := range map[string]map[float64]float64{
		// A capacitive soil probe: falling, refused outside.
		`{points: [[2.6, 0], [1.9, 40], [1.2, 100]]}`:                   {2.6: 0, 2.25: 20, 1.9: 40, 1.55: 70, 1.2: 100, 2.61: outside, 1.1: outside},
		`{points: [[1, 10], [2, 30], [4, 20]]}`:                         {1: 10, 1.5: 20, 2: 30, 3: 25, 4: 20, 0.999: outside, 5: outside, -1: outside},
		`{points: [[1.2, 100], [2.6, 0]], outside: clamp}`:              {0: 100, 1.9: 50, 3.3: 0},
		`{points: [[2.6, 0], [1.2, 100]], outside: clamp}`:              {0: 100, 1.9: 50, 3.3: 0},
		`{scale: -5.7, offset: 21.34, min: 0, max: 14}`:                 {2.5: 7.09, 1: outside, 3.8: outside},
		`{scale: -5.7, offset: 21.34, min: 0, max: 14, outside: clamp}`: {2.5: 7.09, 1: 14, 3.8: 0},
		`{polynomial: [1, -2, 3]}`:                                      {0: 1, 1: 2, 2: 9, -1: 6},
		`{polynomial: [5]}`:                                             {0: 5, 3: 5},
		`{polynomial: [0, 857.39, -255.86, 133.42], min: 0}`:            {1: 734.95, -1: outside},
		`{divider: 11}`:                         {1.1: 12.1},
		`{divider: 2, scale: 10}`:               {1: 20},
		`{scale: 1e12}`:                         {1: 1e12, 1.1: outside},
		`{scale: 1e12, max: 5, outside: clamp}`: {6: outside},
	} {
		c := curveOf(t, text)
		if faults := c.check("curve"); len(faults) > 0 {
			t.Errorf("%s: %v", text, faults)
			continue
		}
		for volts, want := range at {
			got, err := c.At(volts)
			switch {
			case math.IsNaN(want):
				if !errors.Is(err, ErrRange) || got != 0 {
					t.Errorf("%s at %v V: got %v, %v, want ErrRange", text, volts, got, err)
				}
			case err != nil || math.Abs(got-want) > 1e-9*max(1, math.Abs(want)):
				t.Errorf("%s at %v V: got %v, %v, want %v", text, volts, got, err, want)
			}
		}
		for _, volts := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e13} {
			if got, err := c.At(volts); !errors.Is(err, ErrRange) {
				t.Errorf("%s at %v V: got %v, %v, want ErrRange", text, volts, got, err)
			}
		}
	}
}

func TestCurveFaults(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                                   "none of",
		`{min: 0}`:                             "none of",
		`{offset: 3}`:                          "goes with scale",
		`{points: [[1, 2]]}`:                   "two or more",
		`{points: [[1, 2], [1, 3]]}`:           "must rise, or fall",
		`{points: [[1, 2], [2, 3], [1.5, 4]]}`: "point 3 (1.5 V)",
		`{points: [[3, 2], [2, 3], [2.5, 4]]}`: "point 3 (2.5 V)",
		`{points: [[1, 2], [2, 3]], scale: 2}`: "one of",
		`{polynomial: [1], scale: 2}`:          "one of",
		`{polynomial: [1, .nan]}`:              "NaN",
		`{points: [[1, .inf], [2, 3]]}`:        "+Inf",
		`{scale: 1e300}`:                       "1e+300",
		`{scale: 1, min: .nan}`:                "NaN",
		`{scale: 1, min: 5, max: 5}`:           "not below",
		`{scale: 1, divider: -2}`:              "negative",
		`{scale: 1, outside: wrap}`:            "refuse or clamp",
	} {
		faults := curveOf(t, text).check("curve")
		if !slices.ContainsFunc(faults, func(err error) bool {
			return strings.HasPrefix(err.Error(), "curve: ") && strings.Contains(err.Error(), want)
		}) {
			t.Errorf("%s: got %v, want a fault with %q", text, faults, want)
		}
	}
}

// A curve through points meets each of them exactly, stays between its
// neighbours' values, and runs the same way as they do.
func TestCurveProperties(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 2))
		c := &Curve{Points: make([][2]float64, 2+r.IntN(10))}
		volts, value := r.NormFloat64(), r.NormFloat64()
		for i := range c.Points {
			volts += 1e-6 + math.Abs(r.NormFloat64())
			value += math.Abs(100 * r.NormFloat64()) // rising
			c.Points[i] = [2]float64{volts, value}
		}
		if seed%2 == 1 {
			slices.Reverse(c.Points)
		}
		if faults := c.check("curve"); len(faults) > 0 {
			t.Fatal(faults)
		}
		for _, p := range c.Points {
			if v, err := c.At(p[0]); err != nil || v != p[1] {
				t.Fatalf("seed %d: at point %v: got %v, %v", seed, p, v, err)
			}
		}
		low, high := c.Points[0], c.Points[len(c.Points)-1]
		if seed%2 == 1 {
			low, high = high, low
		}
		before := low[1]
		for i := range 100 {
			at := low[0] + (high[0]-low[0])*float64(i)/100
			v, err := c.At(at)
			if err != nil || v < before-1e-9 || v > high[1] {
				t.Fatalf("seed %d: at %v V: got %v, %v after %v", seed, at, v, err, before)
			}
			before = v
		}
		for _, at := range []float64{math.Nextafter(low[0], -10), math.Nextafter(high[0], 100)} {
			if _, err := c.At(at); !errors.Is(err, ErrRange) {
				t.Fatalf("seed %d: %v V is outside and was taken: %v", seed, at, err)
			}
		}
	}
}

// Whatever a configuration holds, a curve without faults never panics and gives
// numbers or ErrRange.
func FuzzCurve(f *testing.F) {
	for _, s := range []string{
		`{points: [[2.6, 0], [1.2, 100]], outside: clamp}`, `{polynomial: [1, 2, 3], min: 0, max: 5}`,
		`{scale: 2, offset: -1, divider: 3}`, `{points: [[1e12, -1e12], [-1e12, 1e12]]}`, `{points: [[0, 1], [5e-324, 2]]}`,
	} {
		f.Add(s, 1.5)
	}
	f.Fuzz(func(t *testing.T, text string, volts float64) {
		c := &Curve{}
		if yaml.Unmarshal([]byte(text), c) != nil || len(c.check("curve")) > 0 {
			return
		}
		v, err := c.At(volts)
		if err != nil && !errors.Is(err, ErrRange) || !(math.Abs(v) <= largestValue) {
			t.Errorf("%s at %v V: got %v, %v", text, volts, v, err)
		}
	})
}
