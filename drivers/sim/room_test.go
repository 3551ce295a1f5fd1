package sim

import (
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// Through a year, every 31 minutes: each value is one a room could have.
func TestRoomBounds(t *testing.T) {
	room := NewRoom(lectureTime, 1)
	low := Conditions{Temperature: 99, Humidity: 99, Pressure: 1e6, CO2: 1e6, Illuminance: 1e6, Soil: 99}
	var high Conditions
	for at := lectureTime; at.Before(lectureTime.AddDate(1, 0, 0)); at = at.Add(31 * time.Minute) {
		c := room.At(at)
		if c != room.At(at) {
			t.Fatalf("%v: two answers", at)
		}
		for _, v := range []struct {
			what           string
			v              float64
			low, high      *float64
			atLeast, limit float64
		}{
			{"temperature", c.Temperature, &low.Temperature, &high.Temperature, 19, 27},
			{"humidity", c.Humidity, &low.Humidity, &high.Humidity, 35, 65},
			{"pressure", c.Pressure, &low.Pressure, &high.Pressure, 96500, 97500},
			{"CO2", c.CO2, &low.CO2, &high.CO2, 400, 1300},
			{"illuminance", c.Illuminance, &low.Illuminance, &high.Illuminance, 0, 600},
			{"soil", c.Soil, &low.Soil, &high.Soil, 20, 45},
			{"flow", c.Flow, &low.Flow, &high.Flow, 0, 8},
		} {
			if !(v.v >= v.atLeast && v.v <= v.limit) {
				t.Fatalf("%v: %s %v", at, v.what, v.v)
			}
			*v.low, *v.high = min(*v.low, v.v), max(*v.high, v.v)
		}
		if c.People < 0 || c.People > 27 {
			t.Fatalf("%v: %d people", at, c.People)
		}
		high.People = max(high.People, c.People)
	}
	// The year makes use of the ranges.
	if low.Temperature > 20.5 || high.Temperature < 26 || low.Humidity > 38 || high.Humidity < 58 || high.CO2 < 1100 || high.Pressure-low.Pressure < 600 || high.Illuminance < 500 || low.Soil > 26 || high.Soil < 43 || high.People < 20 {
		t.Errorf("a dull year: from %+v to %+v", low, high)
	}
}

// From one second to the next nothing jumps but the tap, the door and the PIR;
// within minutes everything that has no reason to stand still moves by what a
// chip resolves.
func TestRoomMoves(t *testing.T) {
	room := NewRoom(lectureTime, 1)
	for day := range 28 {
		begin := lectureTime.AddDate(0, 0, 13*day).Add(time.Duration(day) * 51 * time.Minute)
		last := room.At(begin)
		low, high := last, last
		for s := 1; s <= 20*60; s++ {
			c := room.At(begin.Add(time.Duration(s) * time.Second))
			for _, v := range []struct {
				what              string
				was, is, a_second float64
				low, high         *float64
			}{
				{"temperature", last.Temperature, c.Temperature, 0.01, &low.Temperature, &high.Temperature},
				{"humidity", last.Humidity, c.Humidity, 0.05, &low.Humidity, &high.Humidity},
				{"pressure", last.Pressure, c.Pressure, 1, &low.Pressure, &high.Pressure},
				{"CO2", last.CO2, c.CO2, 0.6, &low.CO2, &high.CO2},
				{"illuminance", last.Illuminance, c.Illuminance, 12, &low.Illuminance, &high.Illuminance},
				{"soil", last.Soil, c.Soil, 0.12, &low.Soil, &high.Soil},
			} {
				if d := math.Abs(v.is - v.was); d > v.a_second {
					t.Errorf("%v + %d s: %s jumps by %v", begin, s, v.what, d)
				}
				*v.low, *v.high = min(*v.low, v.is), max(*v.high, v.is)
			}
			last = c
		}
		if high.Temperature-low.Temperature < 0.05 || high.Humidity-low.Humidity < 0.1 || high.Pressure-low.Pressure < 3 || high.CO2-low.CO2 < 3 || high.Soil-low.Soil < 0.01 || high.Illuminance > 0 && high.Illuminance == low.Illuminance {
			t.Errorf("%v: nothing moves for 20 minutes: from %+v to %+v", begin, low, high)
		}
	}
}

// People bring carbon dioxide, warmth, vapour, light and motion; nobody comes at
// night, on Sundays and in August but the guard.
func TestRoomCorrelations(t *testing.T) {
	room := NewRoom(lectureTime, 1)
	// Both sums are over the same days, so season and weather cancel.
	var full, before struct{ n, co2, temperature, vapour float64 }
	vapour := func(c Conditions) float64 { return c.Humidity / 100 * saturation(c.Temperature) }
	nights, lit, darkDays, motions, emptyMotions := 0, 0, 0, 0, 0
	midnight := time.Date(2026, 3, 9, 0, 0, 0, 0, settat)
	for day := range 365 {
		midnight := midnight.AddDate(0, 0, day)
		at := func(d time.Duration) Conditions { return room.At(midnight.Add(d)) }
		if c := at(10*time.Hour + 5*time.Minute); c.People >= 10 {
			b := at(7 * time.Hour)
			full.n++
			full.co2 += c.CO2
			full.temperature += c.Temperature
			full.vapour += vapour(c)
			before.co2 += b.CO2
			before.temperature += b.Temperature
			before.vapour += vapour(b)
			if c.Illuminance < 250 {
				t.Errorf("%v: a lecture at %v lx", midnight, c.Illuminance)
			}
			if c.CO2 < 600 {
				t.Errorf("%v: a lecture of %d at %v ppm", midnight, c.People, c.CO2)
			}
		}
		for m := 0; m < 24*60; m += 15 {
			c := at(time.Duration(m) * time.Minute)
			if m < 5*60 {
				nights++
				if c.Illuminance > 0 || c.People > 0 || c.CO2 > 450 || c.Flow > 0 {
					t.Errorf("%v: %d min after midnight: %+v", midnight, m, c)
				}
			}
			if m == 12*60 && c.Illuminance == 0 {
				darkDays++
			}
			if c.Illuminance > 0 && m > 21*60 && occupancy(midnight.UnixMilli()+int64(m)*minute) == 0 {
				lit++
			}
			if c.Motion {
				motions++
				if c.People == 0 {
					emptyMotions++
				}
			}
			if (midnight.Weekday() == time.Sunday || midnight.Month() == time.August) && c.People > 1 {
				t.Errorf("%v: %d people", midnight, c.People)
			}
		}
	}
	if full.n < 100 || full.n > 250 {
		t.Errorf("%v mornings with lectures", full.n)
	}
	if d := (full.co2 - before.co2) / full.n; d < 300 {
		t.Errorf("lectures bring %v ppm", d)
	}
	if d := (full.temperature - before.temperature) / full.n; d < 0.4 {
		t.Errorf("lectures bring %v °C", d)
	}
	if d := (full.vapour - before.vapour) / full.n; d < 1 {
		t.Errorf("lectures bring %v hPa of vapour", d)
	}
	if lit > 0 || darkDays > 0 {
		t.Errorf("light with nobody in at night %d times, none at noon %d times", lit, darkDays)
	}
	if motions < 200 || emptyMotions*50 > motions { // the PIR's 20 s after the last has gone
		t.Errorf("motion %d times, %d of them in an empty room", motions, emptyMotions)
	}
}

// The soil is wetted when the tap waters, twice a week, and dries in between.
func TestRoomSoil(t *testing.T) {
	for day := div(lectureTime.UnixMilli(), dayms); day < div(lectureTime.UnixMilli(), dayms)+70; day++ {
		w, ok := watering(day)
		if weekday := time.UnixMilli(w).In(settat).Weekday(); ok != (weekday == time.Monday || weekday == time.Thursday) {
			t.Fatalf("watering on %v: %v", weekday, ok)
		}
		if !ok {
			continue
		}
		if d := soil(w+pouring) - soil(w); d < 8 {
			t.Errorf("water makes %v %%", d)
		}
		if d := soil(w+1) - soil(w-1); math.Abs(d) > 0.01 {
			t.Errorf("jumps by %v as the water begins", d)
		}
		if conditions(w).Flow != 2 || conditions(w+pouring).Flow == 2 || conditions(w+minute).People == 0 {
			t.Errorf("watering without water or a hand: %+v", conditions(w))
		}
		for h := int64(1); h < 60; h++ {
			if soil(w+pouring+h*hour) >= soil(w+pouring+h*hour-hour) {
				t.Errorf("wetter without water")
			}
		}
	}
}

// The closed form of the lag is that of its differential equation.
func TestLagged(t *testing.T) {
	const tau = 45 * minute
	begin := div(lectureTime.UnixMilli()+zone, dayms)*dayms - zone
	y := 0.0 // the room is aired: since the last evening, ten time constants
	for at := begin; at < begin+dayms; at += second {
		if (at-begin)%(10*minute) == 0 {
			within(t, time.UnixMilli(at).In(settat).Format("15:04"), lagged(at, tau), y, 0.02)
		}
		y += (occupancy(at) - y) * second / tau
	}
	if y == 0 {
		t.Errorf("nobody came")
	}
}

func TestRoomClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, speed := range []float64{0.5, 1, 60, 3600, 1e6} {
			room := NewRoom(lectureTime, speed)
			if d := room.Now().Sub(lectureTime); d != 0 {
				t.Errorf("starts %v late", d)
			}
			time.Sleep(30 * time.Minute)
			want := time.Duration(float64(30*time.Minute) * speed)
			within(t, "elapsed", room.Now().Sub(lectureTime).Seconds(), want.Seconds(), 1e-6)
			at := room.Now().Add(12345 * time.Second)
			d := room.Until(at)
			within(t, "until", d.Seconds(), 12345/speed, 2e-9)
			time.Sleep(d)
			if late := room.Now().Sub(at); late < -time.Millisecond || late > time.Millisecond {
				t.Errorf("speed %v: after Until it is %v late", speed, late)
			}
			if d := room.Until(at.Add(-time.Hour)); d > 0 {
				t.Errorf("until the past: %v", d)
			}
		}
		for _, speed := range []float64{0, -3, math.NaN()} {
			room := NewRoom(lectureTime, speed)
			time.Sleep(time.Hour)
			if d := room.Now().Sub(lectureTime); d != time.Hour {
				t.Errorf("speed %v: an hour is %v", speed, d)
			}
		}
		room := NewRoom(lectureTime, math.Inf(1))
		time.Sleep(30 * 24 * time.Hour) // 82,000 years
		if room.Now().Before(lectureTime) || room.At(room.Now()).CO2 < 400 {
			t.Errorf("overflow: %v", room.Now())
		}
	})
}

// A place has noise of its own around the room's air, no more than it says.
func TestRoomAir(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room := NewRoom(lectureTime, 1)
		differ := 0
		for range 200 {
			time.Sleep(time.Second)
			now := time.Now()
			a, b, c := room.Air(1)(now), room.Air(2)(now), room.At(room.Now())
			if a != room.Air(1)(now) {
				t.Fatalf("two answers")
			}
			within(t, "temperature", a.Temperature, c.Temperature, 0.02)
			within(t, "humidity", a.Humidity, c.Humidity, 0.05)
			within(t, "pressure", a.Pressure, c.Pressure, 1.5)
			within(t, "CO2", a.CO2, c.CO2, 3)
			if a.Temperature != b.Temperature && a.Temperature != c.Temperature {
				differ++
			}
		}
		if differ < 190 {
			t.Errorf("noise in %d of 200 samples", differ)
		}
	})
}
