package drivers

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"campus-gateway"

	"periph.io/x/conn/v3/i2c/i2ctest"
	"periph.io/x/conn/v3/physic"
)

func TestADS1115(t *testing.T) {
	// §8.1.3: A0 at ±4.096 V and 128 a second is C383, and C383 read back is done.
	done := i2ctest.IO{Addr: 0x48, W: []byte{0x01}, R: []byte{0xc3, 0x83}}
	play(t, "ads1115", `{}`, []i2ctest.IO{
		done, done, {Addr: 0x48, W: []byte{0x01, 0xc3, 0x83}}, done, {Addr: 0x48, W: []byte{0x00}, R: []byte{0x20, 0x00}}, done,
	}, gateway.Value{Quantity: gateway.Voltage, V: 1.024})
	// Not done at the first look; a difference below zero, the finest range.
	done = i2ctest.IO{Addr: 0x4b, W: []byte{0x01}, R: []byte{0xbb, 0x03}}
	play(t, "ads1115", `{channel: A2-A3, range: 0.256, rate: 8}`, []i2ctest.IO{
		{Addr: 0x4b, W: []byte{0x01}, R: []byte{0x85, 0x83}}, {Addr: 0x4b, W: []byte{0x01}, R: []byte{0x85, 0x83}},
		{Addr: 0x4b, W: []byte{0x01, 0xbb, 0x03}}, {Addr: 0x4b, W: []byte{0x01}, R: []byte{0x3b, 0x03}}, done,
		{Addr: 0x4b, W: []byte{0x00}, R: []byte{0xff, 0xff}}, done,
	}, gateway.Value{Quantity: gateway.Voltage, V: -7.8125e-6})
	// A soil probe on A3, by its curve.
	done = i2ctest.IO{Addr: 0x48, W: []byte{0x01}, R: []byte{0xf3, 0x83}}
	play(t, "ads1115", `{channel: A3, quantity: soilMoisture, curve: {points: [[2.6, 0], [1.2, 100]], outside: clamp}}`, []i2ctest.IO{
		done, done, {Addr: 0x48, W: []byte{0x01, 0xf3, 0x83}}, done, {Addr: 0x48, W: []byte{0x00}, R: []byte{0x3b, 0x60}}, done,
	}, gateway.Value{Quantity: gateway.SoilMoisture, V: 50.0})
}

// adsChip behaves as the datasheet says, with one voltage on each input.
type adsChip struct {
	inputs     [4]float64
	config     uint16
	conversion int16
	pending    int16
	done       time.Time // end of the conversion under way
	continuous bool
	stuck      bool // never ends a conversion
	meddle     func(*adsChip)
	mu         sync.Mutex
}

func newADSChip() *adsChip {
	return &adsChip{inputs: [4]float64{0.5, 1, 1.5, 2}, config: 0x0583}
}

func (b *adsChip) String() string                  { return "i2c-1" }
func (b *adsChip) Close() error                    { return nil }
func (b *adsChip) SetSpeed(physic.Frequency) error { return nil }

func (b *adsChip) start() {
	mux := b.config >> 12 & 7
	v := 0.0
	if mux >= 4 {
		v = b.inputs[mux-4]
	} else {
		pair := [4][2]int{{0, 1}, {0, 3}, {1, 3}, {2, 3}}[mux]
		v = b.inputs[pair[0]] - b.inputs[pair[1]]
	}
	b.pending = int16(max(math.MinInt16, min(math.MaxInt16, math.Round(v/ads1115Ranges[b.config>>9&7]*32768))))
	b.done = time.Now().Add(time.Second / time.Duration(ads1115Rates[b.config>>5&7]))
}

func (b *adsChip) Tx(_ uint16, w, r []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.meddle != nil {
		b.meddle(b)
	}
	idle := b.done.IsZero()
	if !idle && !b.stuck && !time.Now().Before(b.done) {
		b.conversion, b.done, idle = b.pending, time.Time{}, true
	}
	if idle && b.continuous {
		b.start()
		idle = false
	}
	switch {
	case len(w) == 3: // write config: a start is heard when no conversion is under way
		c := uint16(w[1])<<8 | uint16(w[2])
		b.config, b.continuous = c&^0x8000, c&0x0100 == 0
		if idle && c&0x8000 != 0 {
			b.start()
		}
	case w[0] == 0:
		r[0], r[1] = byte(uint16(b.conversion)>>8), byte(b.conversion)
	default:
		c := b.config
		if idle {
			c |= 0x8000
		}
		r[0], r[1] = byte(c>>8), byte(c)
	}
	return nil
}

func openADS(t *testing.T, o *Opener, opts string) gateway.Sensor {
	t.Helper()
	d, _ := Lookup("ads1115")
	r, err := o.Open(t.Context(), d, Place{Bus: "i2c-1"}, options(t, d, opts))
	if err != nil {
		t.Fatal(err)
	}
	return r.(gateway.Sensor)
}

// Sensors on all inputs, all at once, and now and then one that gives up in the
// middle of a conversion: each gets the voltage of its own input.
func TestADS1115Turns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chip := newADSChip()
		o := &Opener{Host: bench{bus: chip}}
		var wg sync.WaitGroup
		for channel, want := range map[string]float64{"A0": 0.5, "A1": 1, "A2": 1.5, "A3": 2, "A0-A3": -1.5, "A2-A3": -0.5} {
			s := openADS(t, o, fmt.Sprintf("{channel: %s, rate: 64}", channel))
			wg.Go(func() {
				for i := range 50 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+i%17*10)*time.Millisecond)
					vs, err := s.Sense(ctx)
					cancel()
					if err != nil {
						if !errors.Is(err, context.DeadlineExceeded) {
							t.Error(err)
						}
						continue
					}
					if vs[0].V != want {
						t.Errorf("%s: got %v, want %v V", channel, vs[0].V, want)
					}
				}
			})
		}
		wg.Wait()
	})
}

// Another program has left the chip converting without end.
func TestADS1115Continuous(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chip := newADSChip()
		chip.config, chip.continuous = 0x4403, true
		vs, err := openADS(t, &Opener{Host: bench{bus: chip}}, `{channel: A3}`).Sense(t.Context())
		if err != nil || vs[0].V != 2.0 {
			t.Errorf("got %v, %v, want 2 V", vs, err)
		}
	})
}

func TestADS1115Refuses(t *testing.T) {
	for name, c := range map[string]struct {
		opts string
		set  func(*adsChip)
		want error
	}{
		"never done":          {`{}`, func(b *adsChip) { b.stuck = true }, ErrNotReady},
		"another's channel":   {`{}`, func(b *adsChip) { b.meddle = func(b *adsChip) { b.config = 0x5383 } }, ErrWrongID},
		"end of range, curve": {`{range: 0.256, curve: {scale: 1}}`, func(*adsChip) {}, ErrRange},
		"low end of range":    {`{channel: A0-A3, range: 0.512, curve: {scale: 1}}`, func(*adsChip) {}, ErrRange},
		"outside the curve":   {`{quantity: ph, curve: {points: [[1, 4], [2, 10]]}}`, func(*adsChip) {}, ErrRange},
	} {
		synctest.Test(t, func(t *testing.T) {
			chip := newADSChip()
			s := openADS(t, &Opener{Host: bench{bus: chip}}, c.opts)
			c.set(chip)
			start := time.Now()
			vs, err := s.Sense(t.Context())
			if vs != nil || !errors.Is(err, c.want) || !strings.HasPrefix(err.Error(), "ads1115{i2c-1(48)}: ") {
				t.Errorf("%s: got %v, %v, want %v", name, vs, err, c.want)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("%s: took %v", name, took)
			}
		})
	}
}

func TestADS1115Cancel(t *testing.T) {
	expectCancel(t, "ads1115", `{rate: 8}`, 30*time.Millisecond, bench{bus: newADSChip()})
}

func TestADS1115Options(t *testing.T) {
	wantFaults(t, "ads1115", map[string]string{
		`{}`:                                     "",
		`{channel: A4}`:                          "channel",
		`{channel: A1-A0}`:                       "channel",
		`{range: 5}`:                             "range",
		`{rate: 100}`:                            "rate",
		`{quantity: weight}`:                     "quantity",
		`{quantity: contact}`:                    "quantity",
		`{quantity: ph}`:                         "quantity",
		`{quantity: contact, curve: {scale: 1}}`: "quantity",
		`{quantity: ph, curve: {scale: 1}}`:      "",
		`{quantity: ph, curve: {points: [[1, 1]], outside: wrap}}`: "curve curve",
	})
	d, _ := Lookup("ads1115")
	opts := options(t, d, `{channel: A2, quantity: tds, curve: {scale: 500}}`)
	if got := d.Senses(opts); len(got) != 1 || got[0] != gateway.TDS {
		t.Errorf("senses %v", got)
	}
	if got := d.Part(opts); got != "A2" {
		t.Errorf("part %q", got)
	}
}

func TestADS1115Noise(t *testing.T) {
	withstandNoise(t, "ads1115", `{}`, false, map[gateway.Quantity][2]float64{gateway.Voltage: {-4.096, 4.096}})
	// Registers of noise never read back as written: every conversion by itself.
	a := &ads1115{ADS1115: ADS1115{Range: 6.144, Curve: &Curve{Polynomial: []float64{1, 2, 3, 4}}}}
	for raw := math.MinInt16; raw <= math.MaxInt16; raw++ {
		if v, err := a.value(int16(raw)); (err != nil) != (raw == math.MinInt16 || raw == math.MaxInt16) || !(math.Abs(v) < 2000) {
			t.Fatalf("%04x: got %v, %v", uint16(raw), v, err)
		}
	}
}
