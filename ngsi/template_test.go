package ngsi

import (
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"testing"
	"time"

	"campus-gateway"
)

// sites are things of every model, with what each senses in one reading.
func sites() []Thing {
	var things []Thing
	add := func(t Thing) {
		t.Name = "s" + string(rune('a'+len(things)%26)) + string(rune('a'+len(things)/26))
		t.Interval = time.Minute
		things = append(things, t)
	}
	for _, outdoor := range []bool{false, true} {
		for _, where := range []*[2]float64{nil, &settat} {
			for _, q := range gateway.Quantities() {
				add(Thing{Outdoor: outdoor, Location: where, Parcel: "1111-11-11", Placement: "ceiling", Doc: "1000 <2000>", Quantities: []gateway.Quantity{q, gateway.BatteryLevel}})
			}
			add(Thing{Outdoor: outdoor, Location: where, Parcel: "p", Quantities: gateway.Quantities()})
		}
	}
	return things
}

// sameAsPlain fails where what is planned is not, to the byte, what the plain
// mapping and the plain writer of the dialect give. It returns how many of the
// entities come from templates.
func sameAsPlain(t *testing.T, s *Sink, rs []gateway.Reading) (filled int) {
	t.Helper()
	try := s.try(rs)
	defer try.end()
	items := try.items
	begin := 0
	for len(items) > 0 && items[0].reading == none {
		begin, items = items[0].end, items[1:]
	}
	for i, r := range rs {
		if check(r) != nil {
			if try.rejected[i] == "" {
				t.Errorf("not rejected: %v", r)
			}
			continue
		}
		for k, e := range s.mapper.Entities(r) {
			for items[0].reading == none {
				begin, items = items[0].end, items[1:]
			}
			it := items[0]
			if want, got := ","+string(s.dialect.entity(nil, &e)), string(try.text[begin:it.end]); got != want || it.reading != i || it.nth != k || it.ID != e.ID || it.state != s.state(&e) {
				t.Fatalf("%v\n%d.%d %s\n%.900s, want\n%.900s", r, it.reading, it.nth, it.ID, got, want)
			}
			if it.Entity.At != e.At {
				filled++
			}
			begin, items = it.end, items[1:]
		}
	}
	if len(items) != 0 {
		t.Errorf("%d entities more than there are", len(items))
	}
	return filled
}

func bare(t testing.TB, api string, m *Mapper) *Sink {
	s, err := New(Config{URL: "http://broker.test", API: api}, m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestTemplates: a reading that goes through a template comes out as one that does
// not, whatever its sensor, its quantities and their order, its values and times.
func TestTemplates(t *testing.T) {
	things := sites()
	m := NewMapper("gw", things)
	rng := rand.New(rand.NewPCG(3, 4))
	for api := range dialects {
		s := bare(t, api, m)
		filled, n := 0, 0
		for range 60 {
			var rs []gateway.Reading
			for _, thing := range things {
				r := reading(thing.Name)
				r.At.Wall = time.UnixMilli(rng.Int64N(253402300800_000)).Add(time.Duration(rng.Int64N(1e6)))
				if rng.IntN(9) == 0 {
					r.At.Earliest = r.At.Wall.Add(-time.Hour)
				}
				qs := slices.Clone(thing.Quantities)
				switch rng.IntN(6) {
				case 0:
					rng.Shuffle(len(qs), func(i, j int) { qs[i], qs[j] = qs[j], qs[i] })
				case 1:
					qs = qs[:1]
				}
				for _, q := range qs {
					r.Values = append(r.Values, anyValue(rng, q))
				}
				rs = append(rs, r)
			}
			filled += sameAsPlain(t, s, rs)
			n += len(rs)
		}
		if filled < n/3 {
			t.Errorf("%s: templates gave only %d of %d entities", api, filled, n)
		}
	}
}

// anyValue is mostly one that q's sensors give.
func anyValue(rng *rand.Rand, q gateway.Quantity) gateway.Value {
	v := gateway.Value{Quantity: q}
	switch n := rng.IntN(40); {
	case n == 0:
		v.V = "text"
	case (n == 1) != (q.Kind() == gateway.Switch):
		v.V = rng.IntN(2) == 0
	case n == 2:
		v.V = math.Float64frombits(rng.Uint64()) // also one that is none
	case n == 3:
		v.V = rng.NormFloat64() * 1e3
	case n < 12:
		v.V = float64(rng.IntN(15))
	default:
		v.V = rng.Float64() * 14
	}
	return v
}

func FuzzTemplates(f *testing.F) {
	things := sites()
	m := NewMapper("gw", things)
	for which := range things {
		f.Add(uint8(which), 21.5, 48.2, 97530.0, int64(1_700_000_000_123_456_789))
		f.Add(uint8(which), -0.5, 101.0, math.Inf(1), int64(-1))
		f.Add(uint8(which), 1e15, 0.000004, 9007199254740993.0, int64(math.MaxInt64))
	}
	f.Fuzz(func(t *testing.T, which uint8, a, b, c float64, nano int64) {
		thing := things[int(which)%len(things)]
		for api := range dialects {
			s := bare(t, api, m)
			var rs []gateway.Reading
			for _, values := range [][]float64{{1, 1, 1}, {a, b, c}, {c, a, b}, {b, c, a}} {
				r := reading(thing.Name)
				r.At.Wall = time.Unix(0, nano)
				for i, q := range thing.Quantities {
					v := num(q, values[i%3])
					if q.Kind() == gateway.Switch {
						v.V = values[i%3] > 0
					}
					r.Values = append(r.Values, v)
				}
				rs = append(rs, r)
			}
			sameAsPlain(t, s, rs)
		}
	})
}

// FuzzDecimal: a rounded number is written as appendNumber, which is slower, writes it.
func FuzzDecimal(f *testing.F) {
	for _, v := range []float64{0, 0.05, -0.05, 1.25, 999999999999999, 99999999.9999999, 1e15, 9007199254740991, 0.00000001, 1e300, -49.88} {
		f.Add(v, 4)
	}
	f.Add(68866042462.36681, 5) // is as well …668
	f.Add(682119848.8548549, 7)
	f.Fuzz(func(t *testing.T, v float64, decimals int) {
		decimals = int(uint(decimals) % uint(len(powers)))
		for _, x := range []float64{v, round(v, decimals), round(v, min(decimals+2, len(powers)-1))} {
			if got, want := string(appendDecimal(nil, x, decimals)), string(appendNumber(nil, x)); got != want && !(x == 0 && math.Signbit(x)) {
				t.Errorf("%v with %d decimals: %s, want %s", x, decimals, got, want)
			}
		}
	})
}

var raceDetector bool // set in race_test.go

// TestNoAllocations: once a sensor has sent, mapping and writing take no memory.
func TestNoAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("SKIPPED: the race detector allocates")
	}
	for api := range dialects {
		m, rs := ordinary(500, 100)
		s := bare(t, api, m)
		s.Requests(rs)
		if n := testing.AllocsPerRun(20, func() { s.try(rs).end() }); n >= 5 {
			t.Errorf("%s: %v allocations for 500 readings", api, n)
		}
	}
}

// BenchmarkSend sends batches to a broker that says yes without a network.
func BenchmarkSend(b *testing.B) {
	one := func(r gateway.Reading) bool { return len(r.Values) != 1 }
	three := func(r gateway.Reading) bool { return len(r.Values) != 3 }
	for _, c := range []struct {
		name, api string
		but       func(gateway.Reading) bool
	}{
		{"v2", "ngsi-v2", func(gateway.Reading) bool { return false }},
		{"v2, one value", "ngsi-v2", one},
		{"v2, three values", "ngsi-v2", three},
		{"ld", "ngsi-ld", func(gateway.Reading) bool { return false }},
		{"ld, one value", "ngsi-ld", one},
		{"ld, three values", "ngsi-ld", three},
	} {
		b.Run(c.name, func(b *testing.B) {
			m, rs := ordinary(2000, 1000)
			rs = slices.DeleteFunc(rs, c.but)[:500]
			s := bare(b, c.api, m)
			var size, requests int
			s.client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
				n, err := io.Copy(io.Discard, r.Body)
				size += int(n)
				requests++
				return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody}, errors.Join(err, r.Body.Close())
			})
			if err := s.Send(context.Background(), rs); err != nil {
				b.Fatal(err)
			}
			size, requests = 0, 0
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for b.Loop() {
				if err := s.Send(context.Background(), rs); err != nil {
					b.Fatal(err)
				}
			}
			runtime.ReadMemStats(&after)
			readings := float64(b.N * len(rs))
			b.ReportMetric(readings/b.Elapsed().Seconds(), "readings/s")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/readings, "ns/reading")
			b.ReportMetric(float64(after.Mallocs-before.Mallocs)/readings, "allocs/reading")
			b.ReportMetric(float64(size)/readings, "B/reading")
			b.ReportMetric(float64(requests)/float64(b.N), "requests")
		})
	}
}
