package gateway

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// A graph of what stays shows what a graph of all did: each sensor's ends, its
// extremes, and every event.
func TestThin(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	var rs []Reading
	for i := range 3000 {
		at := Stamp{Wall: time.Unix(int64(i), 0).UTC()}
		switch i % 10 {
		case 0:
			rs = append(rs, Reading{"door", at, []Value{{Contact, i%20 == 0}}})
		case 1, 2, 3:
			rs = append(rs, Reading{"room", at, []Value{{Temperature, rng.NormFloat64()}, {Humidity, rng.Float64() * 100}, {Pressure, 97000 + rng.NormFloat64()}}})
		default:
			rs = append(rs, Reading{"sun", at, []Value{{Illuminance, rng.Float64() * 1000}}})
		}
	}
	for pass := range 6 {
		kept := Codec{}.Thin(rs, false)
		if n, was := numeric(kept), numeric(rs); n > was*6/10 || n < was/20 {
			t.Errorf("pass %d: %d of %d stay", pass, n, was)
		}
		at := 0
		for _, r := range kept { // some of them, in order
			for at < len(rs) && !sameReadings([]Reading{rs[at]}, []Reading{r}) {
				at++
			}
			if at == len(rs) {
				t.Fatalf("pass %d: %v was not there, or not in this order", pass, r)
			}
		}
		for _, sensor := range []string{"room", "sun", "door"} {
			a, b := profile(rs, sensor), profile(kept, sensor)
			if a != b {
				t.Errorf("pass %d: %s: %v, was %v", pass, sensor, b, a)
			}
		}
		if a, b := len(rs)-numeric(rs), len(kept)-numeric(kept); a != b {
			t.Errorf("pass %d: %d events of %d stay", pass, b, a)
		}
		rs = kept
	}
	events := len(rs) - numeric(rs)
	if kept := (Codec{}).Thin(rs, true); len(kept)-numeric(kept) != events/2 {
		t.Errorf("%d events of %d stay", len(kept)-numeric(kept), events)
	}
}

func numeric(rs []Reading) (n int) {
	for _, r := range rs {
		if !isEvent(r) {
			n++
		}
	}
	return n
}

// profile is a sensor's first and last time, and its lowest and highest first value.
func profile(rs []Reading, sensor string) (p struct {
	first, last time.Time
	low, high   float64
}) {
	p.low, p.high = math.Inf(1), math.Inf(-1)
	for _, r := range rs {
		if r.Sensor != sensor {
			continue
		}
		if p.first.IsZero() {
			p.first = r.At.Wall
		}
		p.last = r.At.Wall
		if v, ok := r.Values[0].V.(float64); ok {
			p.low, p.high = min(p.low, v), max(p.high, v)
		}
	}
	return p
}
