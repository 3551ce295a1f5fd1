package drivers

import (
	"testing"

	"campus-gateway"

	"periph.io/x/conn/v3/i2c/i2ctest"
)

func TestBH1750(t *testing.T) {
	// Datasheet p. 7: 0x8390 is 28,067 lx at the default measurement time.
	play(t, "bh1750", `{}`, []i2ctest.IO{
		{Addr: 0x23, W: []byte{0x01}}, {Addr: 0x23, W: []byte{0x42}}, {Addr: 0x23, W: []byte{0x65}},
		{Addr: 0x23, W: []byte{0x20}}, {Addr: 0x23, R: []byte{0x83, 0x90}},
		{Addr: 0x23, W: []byte{0x00}},
	}, gateway.Value{Quantity: gateway.Illuminance, V: 33680 / 1.2})
	// p. 11: twice the measurement time, half the light a count.
	play(t, "bh1750", `{mtreg: 138}`, []i2ctest.IO{
		{Addr: 0x5c, W: []byte{0x01}}, {Addr: 0x5c, W: []byte{0x44}}, {Addr: 0x5c, W: []byte{0x6a}},
		{Addr: 0x5c, W: []byte{0x20}}, {Addr: 0x5c, R: []byte{0x01, 0x10}},
		{Addr: 0x5c, W: []byte{0x00}},
	}, gateway.Value{Quantity: gateway.Illuminance, V: 272 / 1.2 / 2})
}
