package drivers

import (
	"context"
	"fmt"
	"time"

	"campus-gateway"
)

func init() {
	registerI2C(Spec{
		Name:       "sht4x",
		Doc:        "temperature and humidity sensor (SHT40, SHT41, SHT45)",
		Datasheet:  "Sensirion SHT4x, Version 6 (February 2023)",
		Quantities: []gateway.Quantity{gateway.Temperature, gateway.Humidity},
		Addresses:  []uint16{0x44, 0x45, 0x46}, // p. 1: SHT4x-A…, -B…, -C…
	}, SHT4x{Precision: "high"}, openSHT4x)
}

// SHT4x are the options of a sht4x.
type SHT4x struct {
	Precision string `yaml:"precision" doc:"high, medium or low: less takes less time and current and is noisier"`
}

func (o *SHT4x) check() []error {
	if _, ok := sht4xMeasure[o.Precision]; !ok {
		return []error{&OptionError{"precision", fmt.Sprintf("%q is unknown: write high, medium or low", o.Precision)}}
	}
	return nil
}

// Commands, §4.5. The chip knows no others that measure without its heater:
// 0x24, a SHT3x's first byte of a measurement, is a heater pulse here.
const sht4xSerial = 0x89

// sht4xMeasure is the command of each precision and the longest it takes, §3.2.
var sht4xMeasure = map[string]struct {
	command byte
	takes   time.Duration
}{
	"high":   {0xfd, 8300 * time.Microsecond},
	"medium": {0xf6, 4500 * time.Microsecond},
	"low":    {0xe0, 1600 * time.Microsecond},
}

type sht4x struct {
	*chip
	precision string
}

func openSHT4x(ctx context.Context, c *chip, o SHT4x) (gateway.Sensor, error) {
	// §4.7: a serial number of two words with right checksums is the chip's only
	// mark. The datasheet names no time for it; Sensirion's own driver waits 10 ms.
	if _, err := c.words(ctx, "read serial number", []byte{sht4xSerial}, 10*time.Millisecond, 2); err != nil {
		return nil, err
	}
	return &sht4x{c, o.Precision}, nil
}

// Sense measures once. A chip that is not ready does not acknowledge, which is
// the bus's error.
func (s *sht4x) Sense(ctx context.Context) ([]gateway.Value, error) {
	m := sht4xMeasure[s.precision]
	w, err := s.words(ctx, "measure", []byte{m.command}, m.takes, 2)
	if err != nil {
		return nil, err
	}
	// §4.6. Humidity may come out a little outside 0..100 % near its ends: the
	// datasheet has it cropped. §2: 0.01 °C and 0.01 % are what it resolves.
	humidity := -6 + 125*float64(w[1])/65535
	return []gateway.Value{
		{Quantity: gateway.Temperature, V: round(-45+175*float64(w[0])/65535, 2)},
		{Quantity: gateway.Humidity, V: round(min(max(humidity, 0), 100), 2)},
	}, nil
}

// Halt has nothing to do: the chip sleeps after each measurement.
func (s *sht4x) Halt() error { return nil }
