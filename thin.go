package gateway

import "fmt"

// Check refuses a reading that Append cannot pack.
func (Codec) Check(r Reading) error {
	if len(r.Values) > maxColumns {
		return fmt.Errorf("%s: %d values in one reading", r.Sensor, len(r.Values))
	}
	for _, v := range r.Values {
		if err := v.Check(); err != nil {
			return fmt.Errorf("%s: %w", r.Sensor, err)
		}
		if s, ok := v.V.(string); ok && len(s) > maxString {
			return fmt.Errorf("%s: %s: a text of %d bytes is too long to keep", r.Sensor, v.Quantity, len(s))
		}
	}
	if len(r.Sensor) > maxString || len(r.At.Boot) > maxString {
		return fmt.Errorf("a name of %d bytes is too long to keep", max(len(r.Sensor), len(r.At.Boot)))
	}
	return nil
}

// Name is whose a reading is: its sensor's.
func (Codec) Name(r Reading) string { return r.Sensor }

// Thin chooses which readings of a stretch stay when a full log keeps half. Of
// each sensor it merges some in a row and keeps the first, the last, and the
// lowest and the highest of each quantity: what a graph would show. Readings
// with a switch or a text in them, such as a door's, are events: they all stay,
// unless events is set; then of four in a row the first and the last.
func (Codec) Thin(rs []Reading, events bool) []Reading {
	keep := make([]bool, len(rs))
	of := map[string][]int{} // sensor → its numbers; its events apart
	for i, r := range rs {
		switch {
		case !isEvent(r):
			of[r.Sensor] = append(of[r.Sensor], i)
		case events:
			of[r.Sensor+"\x00"] = append(of[r.Sensor+"\x00"], i)
		default:
			keep[i] = true
		}
	}
	for _, in := range of {
		for len(in) > 0 {
			n := 4
			if r := rs[in[0]]; !isEvent(r) {
				n = 2 * (2 + 2*len(r.Values))
			}
			n = min(n, len(in))
			merge(rs, in[:n], keep)
			in = in[n:]
		}
	}
	kept := make([]Reading, 0, len(rs)/2+1)
	for i, r := range rs {
		if keep[i] {
			kept = append(kept, r)
		}
	}
	return kept
}

// merge marks what stays of readings in a row.
func merge(rs []Reading, in []int, keep []bool) {
	keep[in[0]], keep[in[len(in)-1]] = true, true
	type extremes struct{ low, high int }
	found := map[Quantity]extremes{}
	number := func(i int, q Quantity) float64 {
		for _, v := range rs[i].Values {
			if n, ok := v.V.(float64); ok && v.Quantity == q {
				return n
			}
		}
		return 0
	}
	for _, i := range in {
		for _, v := range rs[i].Values {
			n, ok := v.V.(float64)
			if !ok {
				continue
			}
			e, seen := found[v.Quantity]
			if !seen {
				e = extremes{i, i}
			}
			if n < number(e.low, v.Quantity) {
				e.low = i
			}
			if n > number(e.high, v.Quantity) {
				e.high = i
			}
			found[v.Quantity] = e
		}
	}
	for _, e := range found {
		keep[e.low], keep[e.high] = true, true
	}
}

func isEvent(r Reading) bool {
	for _, v := range r.Values {
		if _, number := v.V.(float64); !number {
			return true
		}
	}
	return false
}
