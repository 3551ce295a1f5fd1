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
		Datasheet:  "Texas Instruments TMP102, SBOS397; TMP105, SBOS648; LM75B, SNOS808",
		Quantities: []gateway.Quantity{gateway.Temperature},
		Addresses:  []uint16{0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f}, // TMP102 and TMP105: the first four
	}, TMP102{Variant: "tmp102"}, openTMP102)
}

// TMP102 are the options of a tmp102.
type TMP102 struct {
	Variant string `yaml:"variant" doc:"tmp102, tmp105 (set to 12 bits), or lm75 (also LM75A, LM75B, PCT2075: as they are)"`
}

// tmp102Takes is a conversion at most, by variant: TMP102 §6.5, 35 ms; TMP105
// §6.5, 12 bits, 320 ms; LM75B, 300 ms. Before the first one after power-on the
// chips answer 0 °C.
var tmp102Takes = map[string]time.Duration{"tmp102": 35 * time.Millisecond, "tmp105": 320 * time.Millisecond, "lm75": 300 * time.Millisecond}

func (o *TMP102) check() []error {
	if tmp102Takes[o.Variant] == 0 {
		return []error{&OptionError{"variant", fmt.Sprintf("%q is unknown: write tmp102, tmp105 or lm75", o.Variant)}}
	}
	return nil
}

const (
	tmp102Temperature = 0x00 // TMP102 §7.5.2, table 7
	tmp102Config      = 0x01
	tmp102Shutdown    = 1 << 8 // TMP102 §7.5.3, SD; byte 1 comes first
	tmp102Extended    = 1 << 4 // EM: 13 bits, up to 150 °C. The Linux driver sets it and leaves it
	tmp105Shutdown    = 1 << 0 // TMP105 §7.5.3, SD: one byte
	tmp105Bits12      = 3 << 5 // R1, R0
)

type tmp102 struct {
	*chip
	TMP102
}

func openTMP102(ctx context.Context, c *chip, o TMP102) (gateway.Sensor, error) {
	s := &tmp102{c, o}
	// These chips have no id: that there is a configuration is all that can be
	// asked. It is changed where the chip would not measure as it should, and
	// otherwise left alone.
	ready, config, err := s.config()
	if err != nil {
		return nil, err
	}
	if !ready {
		if err := c.tx("set up", append([]byte{tmp102Config}, config...), nil); err != nil {
			return nil, err
		}
	}
	if err := sleep(ctx, tmp102Takes[o.Variant]); err != nil {
		return nil, c.errorf("wait", err)
	}
	return s, nil
}

// config reads the configuration: whether the chip measures as it should, and
// what to write if it does not.
func (s *tmp102) config() (ready bool, want []byte, err error) {
	switch s.Variant {
	case "tmp102":
		c, err := s.word("read configuration", tmp102Config)
		return c&tmp102Shutdown == 0, binary.BigEndian.AppendUint16(nil, c&^tmp102Shutdown), err
	case "tmp105":
		var c [1]byte
		err := s.register("read configuration", tmp102Config, c[:])
		return c[0]&(tmp105Shutdown|tmp105Bits12) == tmp105Bits12, []byte{c[0]&^tmp105Shutdown | tmp105Bits12}, err
	default:
		var c [1]byte
		err := s.register("read configuration", tmp102Config, c[:])
		return c[0]&tmp105Shutdown == 0, []byte{c[0] &^ tmp105Shutdown}, err
	}
}

// Sense reads the newest of the conversions that the chip makes by itself:
// 12 bits of 0.0625 °C, or 13 in the extended mode of a TMP102 (§7.5.2), left
// justified; an LM75's 9 to 11 bits stand in the same place.
func (s *tmp102) Sense(context.Context) ([]gateway.Value, error) {
	ready, config, err := s.config()
	if err != nil {
		return nil, err
	}
	if !ready {
		return nil, s.errorf("read", fmt.Errorf("%w: its configuration was lost (was its power interrupted?)", ErrNotReady))
	}
	raw, err := s.word("read", tmp102Temperature)
	if err != nil {
		return nil, err
	}
	celsius := float64(int16(raw)) / 256
	if s.Variant == "tmp102" && config[1]&tmp102Extended != 0 {
		celsius *= 2
	}
	return []gateway.Value{{Quantity: gateway.Temperature, V: celsius}}, nil
}

func (s *tmp102) word(step string, reg byte) (uint16, error) {
	var r [2]byte
	err := s.register(step, reg, r[:])
	return binary.BigEndian.Uint16(r[:]), err
}

// Halt leaves the chip as it is: it draws 10 µA, and a kernel driver may share it.
func (s *tmp102) Halt() error { return nil }
