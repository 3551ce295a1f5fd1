package drivers

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"campus-gateway"
)

func init() {
	registerI2C(Spec{
		Name:       "ads1115",
		Doc:        "16-bit converter with 4 inputs, for analog probes: soil moisture, pH, light, any quantity by a calibration curve",
		Datasheet:  "Texas Instruments ADS111x, SBAS444E (December 2024)",
		Quantities: []gateway.Quantity{gateway.Voltage},
		Addresses:  []uint16{0x48, 0x49, 0x4a, 0x4b}, // §7.5.1.1: ADDR to GND, VDD, SDA, SCL
	}, ADS1115{Channel: "A0", Range: 4.096, Rate: 128, Quantity: gateway.Voltage}, openADS1115)
}

// ADS1115 are the options of one input of an ads1115. Several sensors may share
// the chip, each on its own input.
type ADS1115 struct {
	Channel  string           `yaml:"channel" doc:"A0, A1, A2 or A3 against ground, or a difference: A0-A1, A0-A3, A1-A3, A2-A3"`
	Range    float64          `yaml:"range" doc:"± V measured: 6.144, 4.096, 2.048, 1.024, 0.512 or 0.256 (whatever it is, no input may go above the chip's supply)"`
	Rate     int              `yaml:"rate" doc:"measurements a second: 8, 16, 32, 64, 128, 250, 475 or 860; slower is quieter, 8 averages out mains hum"`
	Quantity gateway.Quantity `yaml:"quantity" doc:"what the voltage stands for; any but voltage needs a curve"`
	Curve    *Curve           `yaml:"curve" doc:"volts to value: {points: [[V, value], …]}, {polynomial: [c0, c1, …]} or {scale, offset}; also divider, min, max, outside"`
}

// The fields of the config register and what their values mean, §8.1.3.
var (
	ads1115Channels = []string{"A0-A1", "A0-A3", "A1-A3", "A2-A3", "A0", "A1", "A2", "A3"} // MUX, bits 14..12
	ads1115Ranges   = []float64{6.144, 4.096, 2.048, 1.024, 0.512, 0.256}                  // PGA, bits 11..9
	ads1115Rates    = []int{8, 16, 32, 64, 128, 250, 475, 860}                             // DR, bits 7..5
)

const (
	ads1115Conversion = 0x00    // registers, §8.1.1
	ads1115Config     = 0x01    //
	ads1115OS         = 1 << 15 // written 1: start; read 0: converting
	ads1115SingleShot = 1 << 8  // MODE
	ads1115NoCompare  = 3       // COMP_QUE: the comparator is off, the ALERT pin is left alone
)

func (o *ADS1115) check() (faults []error) {
	fault := func(field, format string, args ...any) {
		faults = append(faults, &OptionError{field, fmt.Sprintf(format, args...)})
	}
	if !slices.Contains(ads1115Channels, o.Channel) {
		fault("channel", "%q is unknown: write one of A0, A1, A2, A3, A0-A1, A0-A3, A1-A3, A2-A3", o.Channel)
	}
	if !slices.Contains(ads1115Ranges, o.Range) {
		fault("range", "%v is not one of the chip's: write 6.144, 4.096, 2.048, 1.024, 0.512 or 0.256", o.Range)
	}
	if !slices.Contains(ads1115Rates, o.Rate) {
		fault("rate", "%d is not one of the chip's: write 8, 16, 32, 64, 128, 250, 475 or 860", o.Rate)
	}
	switch {
	case !o.Quantity.Known():
		fault("quantity", "%q is not a quantity", o.Quantity)
	case o.Quantity.Kind() != gateway.Number:
		fault("quantity", "%s is not a number: a voltage cannot stand for it", o.Quantity)
	case o.Quantity != gateway.Voltage && o.Curve == nil:
		fault("quantity", "%s needs a curve that says which voltage is how much", o.Quantity)
	}
	if o.Curve != nil {
		faults = append(faults, o.Curve.check("curve")...)
	}
	return faults
}

func (o *ADS1115) part() string               { return o.Channel }
func (o *ADS1115) senses() []gateway.Quantity { return []gateway.Quantity{o.Quantity} }

// config is the config register for one conversion of the channel.
func (o *ADS1115) config() uint16 {
	return uint16(slices.Index(ads1115Channels, o.Channel)<<12 |
		slices.Index(ads1115Ranges, o.Range)<<9 |
		slices.Index(ads1115Rates, o.Rate)<<5 |
		ads1115SingleShot | ads1115NoCompare)
}

type ads1115 struct {
	*chip
	ADS1115
}

func openADS1115(_ context.Context, c *chip, o ADS1115) (gateway.Sensor, error) {
	a := &ads1115{c, o}
	// The chip has no id: that the config register keeps what is written is
	// what Sense asks of it each time. Here it must only be there.
	if _, err := a.get("look for the chip", ads1115Config); err != nil {
		return nil, err
	}
	return a, nil
}

// Sense converts the channel once (§7.4.2.1); the chip then sleeps by itself.
func (a *ads1115) Sense(ctx context.Context) ([]gateway.Value, error) {
	config := a.config()
	// A conversion that is under way (another program's continuous ones, or our
	// own, given up) would make the start below go unheard, and its result
	// would be taken for this channel's. It is let end first.
	busy, err := a.get("read state", ads1115Config)
	if err != nil {
		return nil, err
	}
	if busy&ads1115OS == 0 {
		if err := a.convert(ctx, "end a conversion", config, 8); err != nil {
			return nil, err
		}
	}
	if err := a.convert(ctx, "convert", config|ads1115OS, a.Rate); err != nil {
		return nil, err
	}
	raw, err := a.get("read", ads1115Conversion)
	if err != nil {
		return nil, err
	}
	if now, err := a.get("verify", ads1115Config); err != nil {
		return nil, err
	} else if now&^ads1115OS != config {
		return nil, a.errorf("verify", fmt.Errorf("%w, or another program uses it: the configuration is %04x, %04x was written", ErrWrongID, now&^ads1115OS, config))
	}
	v, err := a.value(int16(raw))
	if err != nil {
		return nil, a.errorf("read", err)
	}
	return []gateway.Value{{Quantity: a.Quantity, V: v}}, nil
}

// convert writes the config register and waits until no conversion is under
// way, at most twice the time that one takes at this rate.
func (a *ads1115) convert(ctx context.Context, step string, config uint16, rate int) error {
	if err := a.tx(step, []byte{ads1115Config, byte(config >> 8), byte(config)}, nil); err != nil {
		return err
	}
	takes := time.Second * 11 / 10 / time.Duration(rate) // §5.5: the rate is right within 10 %
	for _, wait := range []time.Duration{takes + 50*time.Microsecond, takes / 4, takes / 4, takes / 2} {
		if err := sleep(ctx, wait); err != nil {
			return a.errorf(step, err)
		}
		now, err := a.get(step, ads1115Config)
		if err != nil {
			return err
		}
		if now&ads1115OS != 0 {
			return nil
		}
	}
	return a.errorf(step, ErrNotReady)
}

// value is what a conversion stands for. One at either end of the range may be
// of anything beyond, so no curve is followed from there; as a bare voltage it
// is passed on.
func (a *ads1115) value(raw int16) (float64, error) {
	volts := float64(raw) * a.Range / 32768 // §7.3.3
	if a.Curve == nil {
		return round(volts, 10), nil // whole counts of 7.8125 µV or a multiple
	}
	if raw == math.MaxInt16 || raw == math.MinInt16 {
		return 0, fmt.Errorf("%w: the input is at the end of the range ±%v V: write a greater range, or look at the wiring", ErrRange, a.Range)
	}
	v, err := a.Curve.At(volts)
	if err != nil {
		return 0, err
	}
	return round(v, 6), nil
}

// get reads a register.
func (a *ads1115) get(step string, reg byte) (uint16, error) {
	var r [2]byte
	err := a.register(step, reg, r[:])
	return binary.BigEndian.Uint16(r[:]), err
}

// Halt has nothing to do: the chip sleeps after each conversion.
func (a *ads1115) Halt() error { return nil }
