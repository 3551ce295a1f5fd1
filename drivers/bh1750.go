package drivers

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"campus-gateway"
)

func init() {
	registerI2C(Spec{
		Name:       "bh1750",
		Doc:        "ambient light sensor (GY-302, GY-30)",
		Datasheet:  "ROHM BH1750FVI, Rev. D (2011.11)",
		Quantities: []gateway.Quantity{gateway.Illuminance},
		Addresses:  []uint16{0x23, 0x5c}, // p. 10: ADDR low, ADDR high
	}, BH1750{MTreg: 69}, openBH1750)
}

// BH1750 are the options of a bh1750.
type BH1750 struct {
	MTreg int `yaml:"mtreg" doc:"measurement time register, 31..254: raise it for a dark window, lower it above 54,612 lx"`
}

func (o *BH1750) check() []error {
	if o.MTreg < 31 || o.MTreg > 254 { // p. 11
		return []error{&OptionError{"mtreg", fmt.Sprintf("%d is outside 31..254 (69 is the chip's default)", o.MTreg)}}
	}
	return nil
}

// Instructions, p. 5.
const (
	bh1750PowerDown = 0x00
	bh1750PowerOn   = 0x01
	bh1750OneTimeH  = 0x20 // one measurement at 1 lx resolution, then power down by itself
	bh1750MTHigh    = 0x40 // | MTreg bits 7..5
	bh1750MTLow     = 0x60 // | MTreg bits 4..0
)

type bh1750 struct {
	*chip
	mtreg int
}

func openBH1750(_ context.Context, c *chip, o BH1750) (gateway.Sensor, error) {
	b := &bh1750{c, o.MTreg}
	// The chip has no id. Power-on is the first thing it must acknowledge; the
	// measurement time is set always, since the last user may have changed it.
	for _, w := range []byte{bh1750PowerOn, bh1750MTHigh | byte(o.MTreg>>5), bh1750MTLow | byte(o.MTreg&0x1f)} {
		if err := c.tx("set up", []byte{w}, nil); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Sense measures once in high resolution, 0..65535 counts of 1/1.2 lx at the
// default measurement time (p. 7, p. 11). It takes 180 ms at most, in
// proportion to mtreg.
func (b *bh1750) Sense(ctx context.Context) ([]gateway.Value, error) {
	if err := b.tx("start measurement", []byte{bh1750OneTimeH}, nil); err != nil {
		return nil, err
	}
	if err := sleep(ctx, 180*time.Millisecond*time.Duration(b.mtreg)/69); err != nil {
		return nil, b.errorf("wait", err)
	}
	var r [2]byte
	if err := b.tx("read", nil, r[:]); err != nil {
		return nil, err
	}
	raw := binary.BigEndian.Uint16(r[:])
	return []gateway.Value{{Quantity: gateway.Illuminance, V: float64(raw) / 1.2 * 69 / float64(b.mtreg)}}, nil
}

func (b *bh1750) Halt() error { return b.tx("power down", []byte{bh1750PowerDown}, nil) }
