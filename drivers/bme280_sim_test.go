package drivers

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"campus-gateway"
	"campus-gateway/drivers/sim"
)

// The chips simulated at register level by somebody else from the same
// datasheets give what the air is. After a moment without power, or swapped for
// another one while nobody looked, they give no value until opened anew: their
// set-up is gone, and what is known of their calibration is another chip's.
func TestAirChipsOnBoard(t *testing.T) {
	air := func(celsius float64) sim.Air {
		return func(time.Time) sim.Conditions {
			return sim.Conditions{Temperature: celsius, Humidity: 43.5, Pressure: 97350}
		}
	}
	for _, c := range []struct {
		driver, opts string
		chip         func(sim.Air) sim.Chip
		resolves     float64 // °C
		takes        float64 // ms, a Sense: its first look must find the chip ready
		forgets      bool    // its set-up, with its power, and cannot do without
	}{
		{"bme280", `{}`, func(a sim.Air) sim.Chip { return sim.NewBME280(a) }, 0.01, 18.5, true},
		{"bme280", `{temperature_oversampling: 16, pressure_oversampling: 16, humidity_oversampling: 16, filter: 16}`, func(a sim.Air) sim.Chip { return sim.NewBME280(a) }, 0.01, 112.8, true},
		{"bmp280", `{}`, func(a sim.Air) sim.Chip { return sim.NewBMP280(a) }, 0.01, 16.2, true},
		{"bmp280", `{temperature_oversampling: 1, pressure_oversampling: 1}`, func(a sim.Air) sim.Chip { return sim.NewBMP280(a) }, 0.01, 7, true},
		{"dps310", `{}`, func(a sim.Air) sim.Chip { return sim.NewDPS310(a) }, 0.01, 31.2, true},
		{"dps310", `{pressure_oversampling: 1}`, func(a sim.Air) sim.Chip { return sim.NewDPS310(a) }, 0.01, 7.2, true},
		{"dps310", `{pressure_oversampling: 128, temperature_oversampling: 128}`, func(a sim.Air) sim.Chip { return sim.NewDPS310(a) }, 0.01, 413.6, true},
		{"tmp102", `{}`, func(a sim.Air) sim.Chip { return sim.NewTMP102(a) }, 1. / 16, 0, false},
		{"tmp102", `{variant: tmp105}`, func(a sim.Air) sim.Chip { return sim.NewTMP105(a) }, 1. / 16, 0, true},
		{"tmp102", `{variant: lm75}`, func(a sim.Air) sim.Chip { return sim.NewLM75(a) }, 0.5, 0, false},
	} {
		for _, celsius := range []float64{-17.3, 0, 21.46, 38.9} {
			t.Run(fmt.Sprint(c.driver, c.opts, celsius), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d, _ := Lookup(c.driver)
					b := sim.NewBus("i2c-1")
					addr := d.Addresses[0]
					b.Attach(addr, c.chip(air(celsius)))
					open := func() gateway.Sensor {
						s, err := (&Opener{Host: bench{bus: b}}).Open(t.Context(), d, Place{Bus: "i2c-1"}, options(t, d, c.opts))
						if err != nil {
							t.Fatal(err)
						}
						return s.(gateway.Sensor)
					}
					want := map[gateway.Quantity][2]float64{gateway.Temperature: {celsius, c.resolves}, gateway.Humidity: {43.5, 0.1}, gateway.Pressure: {97350, 3}}
					right := func(values []gateway.Value, err error) {
						t.Helper()
						if err != nil || len(values) != len(d.Quantities) {
							t.Fatalf("got %v, %v", values, err)
						}
						for _, v := range values {
							if w := want[v.Quantity]; math.Abs(v.V.(float64)-w[0]) > w[1] {
								t.Errorf("got %v, the air has %v", v, w[0])
							}
						}
					}
					s := open()
					for range 3 {
						start := time.Now()
						right(s.Sense(t.Context()))
						if took := float64(time.Since(start)) / 1e6; took != c.takes {
							t.Errorf("took %v ms, want %v", took, c.takes)
						}
						time.Sleep(10 * time.Second)
					}
					for what, fault := range map[string]func(){
						"without power for a moment": func() { b.Unplug(addr); b.Plug(addr) },
						"swapped":                    func() { b.Attach(addr, c.chip(air(celsius))) },
					} {
						fault()
						time.Sleep(10 * time.Second)
						values, err := s.Sense(t.Context())
						if c.forgets && !errors.Is(err, ErrNotReady) {
							t.Errorf("%s: got %v, %v", what, values, err)
						}
						s = open()
						right(s.Sense(t.Context()))
					}
					if err := errors.Join(s.Halt(), s.Halt()); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}
