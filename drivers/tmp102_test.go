package drivers

import (
	"errors"
	"testing"

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
	// Table 9: in the extended mode, 1 1100 1001 0000 is -55 °C.
	play(t, "tmp102", `{}`, []i2ctest.IO{
		{Addr: 0x49, W: []byte{0x01}, R: []byte{0x60, 0xb0}},
		{Addr: 0x49, W: []byte{0x01}, R: []byte{0x60, 0xb0}}, {Addr: 0x49, W: []byte{0x00}, R: []byte{0xe4, 0x80}},
	}, celsius(-55))
}

func TestTMP105(t *testing.T) {
	// SBOS648 table 5; it begins with 9 bits and is set to 12.
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
}

// A chip that has lost its configuration (power dip, swap) is not believed.
func TestTMP105Reset(t *testing.T) {
	d, _ := Lookup("tmp102")
	_, err := senseVector(t, d, "{variant: tmp105}", 0x48, newVectorBus(t, vectorChip{words: true}, vectorCase{Registers: map[string]string{"0x00": "1900", "0x01": "00"}}))
	if !errors.Is(err, ErrNotReady) {
		t.Errorf("%v", err)
	}
}

func TestTMP102Options(t *testing.T) {
	checkOptions(t, "tmp102", map[string]any{"variant": &TMP102{"tmp117"}})
}
