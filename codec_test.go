package gateway

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

func TestCodecRoundTrip(t *testing.T) {
	t0 := time.Date(2026, 11, 25, 9, 15, 0, 0, time.UTC)
	at := func(ms int64, boot BootID) Stamp {
		d := time.Duration(ms) * time.Millisecond
		return Stamp{Wall: t0.Add(d), Boot: boot, Since: time.Hour + d, Synced: true}
	}
	for name, rs := range map[string][]Reading{
		"none": {},
		"one":  {{"room", at(0, "b"), []Value{{Temperature, 21.5}}}},
		"mixed": {
			{"room", at(0, "b"), []Value{{Temperature, 21.53}, {Humidity, 40.0}, {Pressure, 97530.25}}},
			{"door", at(5, "b"), []Value{{Contact, true}}},
			{"room", at(1000, "b"), []Value{{Temperature, -0.01}, {Humidity, 100.0}, {Pressure, 97531.0}}},
			{"door", at(1006, "c"), []Value{{Contact, false}}},
			{"room", at(-86400000, "b"), []Value{{Temperature, 1.0 / 3}, {Humidity, 0.0}, {Pressure, 1e300}}}, // the clock went back
		},
		"awkward numbers": {
			{"x", at(0, ""), []Value{{Voltage, math.Copysign(0, -1)}}},
			{"x", at(1, ""), []Value{{Voltage, math.SmallestNonzeroFloat64}}},
			{"x", at(2, ""), []Value{{Voltage, -math.MaxFloat64}}},
			{"x", at(3, ""), []Value{{Voltage, 9007199254740993.0}}},
		},
		"unsynced, before 1970": {{"x", Stamp{Wall: time.UnixMilli(-5).UTC(), Boot: "q", Since: 7 * time.Second}, []Value{{Voltage, 1.0}}}},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := Codec{}.Append(nil, rs)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Codec{}.Decode(b, len(rs))
			if err != nil {
				t.Fatal(err)
			}
			if !sameReadings(got, rs) {
				t.Errorf("got  %v\nwant %v", got, rs)
			}
		})
	}
}

// sameReadings is equality that tells -0 from 0.
func sameReadings(a, b []Reading) bool {
	return len(a) == len(b) && (len(a) == 0 || reflect.DeepEqual(a, b)) && fmt.Sprint(a) == fmt.Sprint(b)
}

func TestCodecRefuses(t *testing.T) {
	for _, v := range []Value{{Temperature, math.NaN()}, {Temperature, math.Inf(1)}, {Temperature, true}, {Contact, 1.0}, {"nonsense", "x"}, {Temperature, 5}} {
		if err := (Codec{}).Check(Reading{Sensor: "x", Values: []Value{v}}); err == nil {
			t.Errorf("took %v", v)
		}
	}
}

// The figure the log's disk budget rests on (design: at most 16 bytes a reading
// of three values on disk, before the block is compressed further).
func TestCodecSize(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	round := func(v, p float64) float64 { return math.Round(v*p) / p }
	var rs []Reading
	t0 := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	for i := range 50 {
		for s := range 20 {
			at := t0.Add(time.Duration(i)*10*time.Second + time.Duration(s*37+rng.IntN(3))*time.Millisecond)
			rs = append(rs, Reading{fmt.Sprintf("room-%d", s), Stamp{Wall: at, Boot: "0b1c6f0e-5d0f-4c53-9a51-3c1de8f7a001", Since: at.Sub(t0), Synced: true}, []Value{
				{Temperature, round(21+rng.NormFloat64()*0.02, 100)},
				{Humidity, round(45+rng.NormFloat64()*0.1, 100)},
				{Pressure, round(97000+rng.NormFloat64()*2, 10)},
			}})
		}
	}
	b, err := Codec{}.Append(nil, rs)
	if err != nil {
		t.Fatal(err)
	}
	per := float64(len(b)) / float64(len(rs))
	t.Logf("%.1f bytes a reading of three values, uncompressed", per)
	if per > 9 {
		t.Errorf("%.1f bytes a reading", per)
	}
}

func FuzzCodecDecode(f *testing.F) {
	b, err := Codec{}.Append(nil, []Reading{
		{"room", Stamp{Wall: time.UnixMilli(1).UTC(), Boot: "b"}, []Value{{Temperature, 21.5}, {Humidity, 1.0 / 3}}},
		{"door", Stamp{Wall: time.UnixMilli(2).UTC(), Boot: "b"}, []Value{{Contact, true}}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, 2)
	f.Add([]byte{1, 0, 0}, 0)
	f.Fuzz(func(t *testing.T, src []byte, n int) {
		if n < 0 || n > 1000 {
			return
		}
		rs, err := Codec{}.Decode(src, n)
		if err != nil {
			return
		}
		again, err := Codec{}.Append(nil, rs)
		if err != nil {
			t.Fatalf("unpacked what cannot be packed: %v", err)
		}
		back, err := Codec{}.Decode(again, n)
		if err != nil || !sameReadings(back, rs) {
			t.Fatalf("%v: got %v, want %v", err, back, rs)
		}
	})
}
