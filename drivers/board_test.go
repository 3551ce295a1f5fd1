package drivers

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"campus-gateway"
	"campus-gateway/drivers/bus"
	"campus-gateway/drivers/sim"
)

// simHost is a Host of simulated chips, for tests.
type simHost struct{ *sim.Board }

func (h simHost) Counter(name string, _ bus.CounterOpts) (bus.Counter, error) {
	p, err := h.Pulses(name)
	return simCounter{p}, err
}

type simCounter struct{ *sim.Pulses }

func (c simCounter) Read() (n bus.Count, err error) {
	n.Edges, n.Lost, n.First, n.Last, err = c.Pulses.Read()
	return n, err
}

// onBoard opens a driver on the simulated board, on a Monday at ten.
func onBoard(t *testing.T, driver, opts string, at Place, then func(*testing.T, *sim.Room, *sim.Board, gateway.Resource)) {
	t.Helper()
	d, _ := Lookup(driver)
	t.Run(driver+opts, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			room := sim.NewRoom(time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC), 1)
			board := sim.NewBoard(room)
			r, err := (&Opener{Host: simHost{board}}).Open(t.Context(), d, at, options(t, d, opts))
			if err != nil {
				t.Fatal(err)
			}
			then(t, room, board, r)
			if err := r.Halt(); err != nil {
				t.Error(err)
			}
		})
	})
}

// The chips, simulated at register level by somebody else from the same
// datasheets, read what the room holds; garbled and pulled out, they give errors.
func TestSHT4xSCD4xADS1115OnBoard(t *testing.T) {
	for _, c := range []struct {
		driver, opts string
		of           map[gateway.Quantity]func(sim.Conditions) float64
		crc          bool
	}{
		{"sht4x", `{}`, map[gateway.Quantity]func(sim.Conditions) float64{
			gateway.Temperature: func(c sim.Conditions) float64 { return c.Temperature },
			gateway.Humidity:    func(c sim.Conditions) float64 { return c.Humidity },
		}, true},
		{"scd4x", `{altitude: 370}`, map[gateway.Quantity]func(sim.Conditions) float64{
			gateway.CO2:         func(c sim.Conditions) float64 { return c.CO2 },
			gateway.Temperature: func(c sim.Conditions) float64 { return c.Temperature },
			gateway.Humidity:    func(c sim.Conditions) float64 { return c.Humidity },
		}, true},
		{"ads1115", `{quantity: soilMoisture, curve: {points: [[2.8, 0], [1.2, 100]]}}`, map[gateway.Quantity]func(sim.Conditions) float64{
			gateway.SoilMoisture: func(c sim.Conditions) float64 { return c.Soil },
		}, false},
		{"ads1115", `{channel: A1, range: 6.144, rate: 8, curve: {divider: 2}}`, map[gateway.Quantity]func(sim.Conditions) float64{
			gateway.Voltage: func(sim.Conditions) float64 { return 5 },
		}, false},
	} {
		onBoard(t, c.driver, c.opts, Place{Bus: "i2c-1"}, func(t *testing.T, room *sim.Room, board *sim.Board, r gateway.Resource) {
			d, _ := Lookup(c.driver)
			s, addr := r.(gateway.Sensor), d.Addresses[0]
			for range 3 {
				vs, err := s.Sense(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if len(vs) != len(c.of) {
					t.Errorf("got %v", vs)
				}
				for _, v := range vs {
					within := 0.1
					if v.Quantity == gateway.CO2 {
						within = 15 // the weather's pressure is not the altitude's
					}
					if want := c.of[v.Quantity](room.At(room.Now())); math.Abs(v.V.(float64)-want) > within {
						t.Errorf("got %v, the room has %v", v, want)
					}
				}
				time.Sleep(time.Minute)
			}
			if c.crc {
				board.Bus.Corrupt(addr, 1)
				if vs, err := s.Sense(t.Context()); !errors.Is(err, ErrCRC) {
					t.Errorf("garbled: got %v, %v", vs, err)
				}
			}
			board.Bus.Unplug(addr)
			if vs, err := s.Sense(t.Context()); !errors.Is(err, sim.ErrNACK) || vs != nil {
				t.Errorf("pulled out: got %v, %v", vs, err)
			}
			board.Bus.Plug(addr)
			time.Sleep(time.Second)
			r, err := (&Opener{Host: simHost{board}}).Open(t.Context(), d, Place{Bus: "i2c-1"}, options(t, d, c.opts))
			if err != nil {
				t.Fatalf("opened anew: %v", err)
			}
			if vs, err := r.(gateway.Sensor).Sense(t.Context()); err != nil || len(vs) != len(c.of) {
				t.Errorf("opened anew: got %v, %v", vs, err)
			}
		})
	}
}

// A gateway that was killed leaves the chip measuring; the next one takes over.
func TestSCD4xOnBoardTakesOver(t *testing.T) {
	onBoard(t, "scd4x", `{}`, Place{Bus: "i2c-1"}, func(t *testing.T, _ *sim.Room, board *sim.Board, _ gateway.Resource) {
		time.Sleep(17 * time.Second)
		d, _ := Lookup("scd4x")
		r, err := (&Opener{Host: simHost{board}}).Open(t.Context(), d, Place{Bus: "i2c-1"}, options(t, d, `{mode: low_power, pressure: 97000}`))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if vs, err := r.(gateway.Sensor).Sense(t.Context()); err != nil || len(vs) != 3 {
			t.Errorf("got %v, %v", vs, err)
		}
		if took := time.Since(start); took < 30*time.Second || took > 32*time.Second {
			t.Errorf("the first low-power measurement came after %v", took)
		}
	})
}

func TestContactOnBoard(t *testing.T) {
	for pin, opts := range map[string]string{"GPIO17": `{quantity: occupancy}`, "GPIO27": `{}`} {
		onBoard(t, "contact", opts, Place{Pin: pin}, func(t *testing.T, room *sim.Room, _ *sim.Board, r gateway.Resource) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
			defer cancel()
			told := 0
			err := r.(gateway.Watcher).Watch(ctx, func(vs []gateway.Value) {
				told++
				now := room.At(room.Now())
				if want := map[string]bool{"GPIO17": now.Motion, "GPIO27": now.DoorOpen}[pin]; vs[0].V != want {
					t.Errorf("%s at %v: got %v, the room has %v", pin, room.Now(), vs, want)
				}
			})
			if err != nil || told < 20 {
				t.Errorf("told %d states, %v", told, err)
			}
		})
	}
}

func TestPulseOnBoard(t *testing.T) {
	onBoard(t, "pulse", `{quantity: waterFlow, per_unit: 450, total: true}`, Place{Pin: "GPIO22"}, func(t *testing.T, room *sim.Room, _ *sim.Board, r gateway.Resource) {
		litres, flowing, total := 0.0, 0, 0.0
		for range 8 * 60 * 12 { // eight hours, each 5 s
			for range 5 {
				time.Sleep(time.Second)
				litres += room.At(room.Now()).Flow / 60
			}
			vs, err := r.(gateway.Sensor).Sense(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if now, before := room.At(room.Now()).Flow, room.At(room.Now().Add(-5*time.Second)).Flow; now > 0 && now == before {
				flowing++
				if got := vs[0].V.(float64); math.Abs(got-now) > 0.01 {
					t.Errorf("got %v, the tap runs at %v L/min", vs, now)
				}
			}
			total = vs[1].V.(float64)
		}
		if flowing < 20 || math.Abs(total-litres) > 0.05*litres {
			t.Errorf("%d readings of a running tap; counted %v L, %v L have run", flowing, total, litres)
		}
	})
}

func TestBoschOnBoard(t *testing.T) {
	onBoard(t, "bme280", `{}`, Place{Bus: "i2c-1", Address: 0x76}, func(t *testing.T, room *sim.Room, board *sim.Board, r gateway.Resource) {
		for range 20 {
			time.Sleep(7 * time.Minute)
			values, err := r.(gateway.Sensor).Sense(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			now := room.At(room.Now())
			for i, want := range []float64{now.Temperature, now.Humidity, now.Pressure} {
				within := []float64{0.5, 2, 20}[i] // its place in the room is not the room's middle
				if got := values[i].V.(float64); math.Abs(got-want) > within {
					t.Errorf("%v, the room has %v", values[i], want)
				}
			}
		}
		board.Bus.Unplug(0x76)
		if values, err := r.(gateway.Sensor).Sense(t.Context()); err == nil || values != nil {
			t.Errorf("pulled out, it gives %v, %v", values, err)
		}
		board.Bus.Plug(0x76)
	})
}
