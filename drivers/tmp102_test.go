package drivers

import (
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"

	"campus-gateway"

	"periph.io/x/conn/v3/i2c/i2ctest"
)

func celsius(v float64) gateway.Value { return gateway.Value{Quantity: gateway.Temperature, V: v} }

func TestTMP102(t *testing.T) {
	// SBOS397 table 8: 0001 1001 0000 is 25 °C; asleep, it is woken.
	play(t, "tmp102", `{}`, []i2ctest.IO{
		{Addr: 0x48, W: []byte{0x01}, R: []byte{0x61, 0xa0}}, {Addr: 0x48, W: []byte{0x01, 0x60, 0xa0}},
		{Addr: 0x48, W: []byte{0x01}, R: []byte{0x60, 0xa0}}, {Addr: 0x48, W: []byte{0x00}, R: []byte{0x19, 0x00}},
	}, celsius(25))
	// SBOS397B table 6: in the extended mode, 1 1100 1001 0000 is -55 °C; bit 0 of
	// the register says that it is that mode.
	play(t, "tmp102", `{}`, []i2ctest.IO{
		{Addr: 0x49, W: []byte{0x01}, R: []byte{0x60, 0xb0}},
		{Addr: 0x49, W: []byte{0x01}, R: []byte{0x60, 0xb0}}, {Addr: 0x49, W: []byte{0x00}, R: []byte{0xe4, 0x81}},
	}, celsius(-55))
}

func TestTMP105(t *testing.T) {
	// SLLS648D table 5; it begins with 9 bits and is set to 12.
	play(t, "tmp102", `{variant: tmp105}`, []i2ctest.IO{
		{Addr: 0x4a, W: []byte{0x01}, R: []byte{0x00}}, {Addr: 0x4a, W: []byte{0x01, 0x60}},
		{Addr: 0x4a, W: []byte{0x01}, R: []byte{0x60}}, {Addr: 0x4a, W: []byte{0x00}, R: []byte{0xff, 0xf0}},
	}, celsius(-0.0625))
}

func TestLM75(t *testing.T) {
	play(t, "tmp102", `{variant: lm75}`, []i2ctest.IO{
		{Addr: 0x4f, W: []byte{0x01}, R: []byte{0x00}},
		{Addr: 0x4f, W: []byte{0x01}, R: []byte{0x00}}, {Addr: 0x4f, W: []byte{0x00}, R: []byte{0xe7, 0x00}},
	}, celsius(-25))
	// Asleep, it is woken; the bits below its last are undefined.
	play(t, "tmp102", `{variant: lm75}`, []i2ctest.IO{
		{Addr: 0x48, W: []byte{0x01}, R: []byte{0x07}}, {Addr: 0x48, W: []byte{0x01, 0x06}},
		{Addr: 0x48, W: []byte{0x01}, R: []byte{0x06}}, {Addr: 0x48, W: []byte{0x00}, R: []byte{0xff, 0xff}},
	}, celsius(-0.125))
}

// A chip that has lost its configuration (power dip, swap) is not believed.
func TestTMP105Reset(t *testing.T) {
	d, _ := Lookup("tmp102")
	_, err := senseVector(t, d, "{variant: tmp105}", 0x48, newVectorBus(t, vectorChip{words: true}, vectorCase{Registers: map[string]string{"0x00": "1900", "0x01": "00"}}))
	if !errors.Is(err, ErrNotReady) {
		t.Errorf("%v", err)
	}
}

// What else may answer at these addresses is not written to.
func TestTMP102Identifies(t *testing.T) {
	for opts, configs := range map[string][]string{
		"{}":                {"8583", "0220", "0000", "ffff", "60ff"}, // an ADS1115, a TMP117, an LM75, no bus, a TMP105 of 12 bits
		"{variant: tmp105}": {"85", "ff", "e0"},
		"{variant: lm75}":   {"85", "ff", "60", "20"},
	} {
		for _, config := range configs {
			raw, _ := hex.DecodeString(config)
			d, _ := Lookup("tmp102")
			tape := &tape{ops: []i2ctest.IO{{Addr: 0x48, W: []byte{0x01}, R: raw}}, failAt: -1}
			_, err := (&Opener{Host: bench{bus: tape}}).Open(t.Context(), d, Place{Bus: "i2c-1"}, options(t, d, opts))
			if !errors.Is(err, ErrWrongID) || !strings.Contains(err.Error(), config) {
				t.Errorf("%s with %s: %v", opts, config, err)
			}
		}
	}
}

// Every word of the temperature register is one that the chip can measure, and
// the negative ones mirror the positive.
func TestTMP102AnyTemperature(t *testing.T) {
	for variant, c := range map[string]struct {
		config   string
		step, lo float64
	}{"tmp102": {"60a0", 1. / 16, -128}, "tmp102 extended": {"60b0", 1. / 16, -256}, "tmp105": {"60", 1. / 16, -128}, "lm75": {"00", 1. / 8, -128}} {
		d, _ := Lookup("tmp102")
		b := newVectorBus(t, vectorChip{words: true}, vectorCase{Registers: map[string]string{"0x01": c.config}})
		synctest.Test(t, func(t *testing.T) {
			r, err := (&Opener{Host: bench{bus: b}}).Open(t.Context(), d, Place{Bus: "i2c-1"}, options(t, d, "{variant: "+strings.Fields(variant)[0]+"}"))
			if err != nil {
				t.Fatal(err)
			}
			for raw := range 1 << 16 {
				b.starts[0] = []byte{byte(raw >> 8), byte(raw)}
				values, err := r.(gateway.Sensor).Sense(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				x := values[0].V.(float64)
				if want := math.Floor(float64(int16(raw))*-c.lo/32768/c.step) * c.step; math.Abs(x-want) > 0.07 || x != math.Trunc(x/c.step)*c.step || x < c.lo || x >= -c.lo {
					t.Fatalf("%s, %04x: %v, want %v", variant, raw, x, want)
				}
			}
		})
	}
}

func TestTMP102Options(t *testing.T) {
	checkOptions(t, "tmp102", map[string]any{"variant": &TMP102{"tmp117"}})
}
