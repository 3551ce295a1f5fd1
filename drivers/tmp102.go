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
		Name:       "tmp102",
		Doc:        "temperature: TMP102, and TMP105, LM75 and their like by `variant`",
		Datasheet:  "Texas Instruments TMP102, SBOS397; TMP105, SLLS648; LM75B, SNIS153",
		Quantities: []gateway.Quantity{gateway.Temperature},
		Addresses:  []uint16{0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f}, // TMP102 and TMP105: the first four
	}, TMP102{Variant: "tmp102"}, openTMP102)
}

// TMP102 are the options of a tmp102.
type TMP102 struct {
	Variant string `yaml:"variant" doc:"tmp102, tmp105 (set to 12 bits), or lm75 (also LM75A, LM75B, PCT2075: as they are)"`
}

func (o *TMP102) check() []error {
	if _, ok := tmp102Variants[o.Variant]; !ok {
		return []error{&OptionError{"variant", fmt.Sprintf("%q is unknown: write tmp102, tmp105 or lm75", o.Variant)}}
	}
	return nil
}

// Registers: TMP102 §7.5.1, the same in all.
const (
	tmp102Temperature = 0x00
	tmp102Config      = 0x01
)

// Bits of the configuration, of which byte 1 is the upper one here: TMP102
// §7.5.3, and table 7 of SBOS397B. A TMP105 and an LM75 have byte 1 alone.
const (
	tmp102OneShot    = 1 << 15
	tmp102Resolution = 3 << 13 // R1, R0: a TMP102's always read 1, an LM75's 0; 12 bits in a TMP105
	tmp102Shutdown   = 1 << 8  // SD
	tmp102Extended   = 1 << 4  // EM: 13 bits, up to 150 °C. The Linux driver sets it and leaves it
	tmp102Zero       = 0x000f
)

// tmp102Variants says of each variant what tells it from other chips, since none
// has an id, and how it is read.
var tmp102Variants = map[string]struct {
	bytes     int           // of the configuration
	fixed, as uint16        // its bits that cannot be otherwise, and how they read
	set       uint16        // its bits that must be 1; SD must be 0
	bits      uint16        // of the temperature register: those that mean something
	takes     time.Duration // a conversion, at most; before the first one after power-on 0 °C is read
}{
	// §6.5: 26 ms, 35 at most.
	"tmp102": {2, tmp102Resolution | tmp102Zero, tmp102Resolution, 0, 0xfff0, 35 * time.Millisecond},
	// Electrical characteristics: 220 ms with 12 bits, and a margin. OS always reads 0.
	"tmp105": {1, tmp102OneShot, 0, tmp102Resolution, 0xfff0, 320 * time.Millisecond},
	// SNIS153 p. 11: D7..D5 are 0, and the bits of the temperature below the last
	// undefined. An LM75 has 9 bits, an LM75A (NXP) 11.
	"lm75": {1, tmp102OneShot | tmp102Resolution, 0, 0, 0xffe0, 300 * time.Millisecond},
}

type tmp102 struct {
	*chip
	variant string
}

func openTMP102(ctx context.Context, c *chip, o TMP102) (gateway.Sensor, error) {
	s := &tmp102{c, o.Variant}
	config, want, err := s.config()
	if err != nil {
		return nil, err
	}
	// It is changed where the chip would not measure as it should, and otherwise
	// left alone.
	v := tmp102Variants[s.variant]
	if config != want {
		w := binary.BigEndian.AppendUint16([]byte{tmp102Config}, want)
		if err := c.tx("set up", w[:1+v.bytes], nil); err != nil {
			return nil, err
		}
	}
	if err := sleep(ctx, v.takes); err != nil {
		return nil, c.errorf("wait", err)
	}
	return s, nil
}

// config reads the configuration, and says what it must be for the chip to
// measure as it should.
func (s *tmp102) config() (is, want uint16, err error) {
	v := tmp102Variants[s.variant]
	var r [2]byte
	if err := s.register("read configuration", tmp102Config, r[:v.bytes]); err != nil {
		return 0, 0, err
	}
	is = binary.BigEndian.Uint16(r[:])
	if is&v.fixed != v.as {
		return 0, 0, s.errorf("identify", fmt.Errorf("%w: no %s's configuration reads %x: is it of another variant, or another chip?", ErrWrongID, s.variant, r[:v.bytes]))
	}
	return is, is&^tmp102Shutdown | v.set, nil
}

// Sense reads the newest of the conversions that the chip makes by itself:
// 12 bits of 0.0625 °C, or 13 in the extended mode of a TMP102 (§7.5.2), left
// justified; an LM75's 9 to 11 bits stand in the same place.
func (s *tmp102) Sense(context.Context) ([]gateway.Value, error) {
	config, want, err := s.config()
	if err != nil {
		return nil, err
	}
	if config != want {
		return nil, s.errorf("read", fmt.Errorf("%w: its set-up was lost (was its power interrupted?)", ErrNotReady))
	}
	var r [2]byte
	if err := s.register("read", tmp102Temperature, r[:]); err != nil {
		return nil, err
	}
	v := tmp102Variants[s.variant]
	bits, steps := v.bits, 256.
	if v.bytes == 2 && config&tmp102Extended != 0 {
		bits, steps = 0xfff8, 128 // bit 0 only says again that it is this mode
	}
	celsius := float64(int16(binary.BigEndian.Uint16(r[:])&bits)) / steps
	return []gateway.Value{{Quantity: gateway.Temperature, V: celsius}}, nil
}

// Halt leaves the chip as it is: it draws 10 µA, and a kernel driver may share it.
func (s *tmp102) Halt() error { return nil }
