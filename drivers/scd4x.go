package drivers

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"campus-gateway"
)

func init() {
	registerI2C(Spec{
		Name:       "scd4x",
		Doc:        "CO₂, temperature and humidity sensor (SCD40, SCD41)",
		Datasheet:  "Sensirion SCD4x, Version 1.3 (September 2022)",
		Quantities: []gateway.Quantity{gateway.CO2, gateway.Temperature, gateway.Humidity},
		Addresses:  []uint16{0x62},
	}, SCD4x{Mode: "periodic", TemperatureOffset: 4, ASC: true}, openSCD4x)
}

// SCD4x are the options of a scd4x. They are written at each opening and live
// in the chip's RAM: its EEPROM, good for 2000 writes, is left alone.
type SCD4x struct {
	Mode              string  `yaml:"mode" doc:"periodic (a measurement every 5 s) or low_power (every 30 s)"`
	Altitude          int     `yaml:"altitude" doc:"of the place, m above the sea, 0..3000: left out at 370 m, CO₂ reads about 4 % low"`
	Pressure          int     `yaml:"pressure" doc:"usual pressure of the air at the place, Pa, 70000..120000, in place of the altitude; 0: none"`
	TemperatureOffset float64 `yaml:"temperature_offset" doc:"by how much the chip is warmer than its surroundings, °C, 0..20; this is taken off"`
	ASC               bool    `yaml:"asc" doc:"automatic self-calibration; write false in a room that is not aired to 400 ppm once a week"`
}

func (o *SCD4x) check() (faults []error) {
	fault := func(field, format string, args ...any) {
		faults = append(faults, &OptionError{field, fmt.Sprintf(format, args...)})
	}
	if _, ok := scd4xStart[o.Mode]; !ok {
		fault("mode", "%q is unknown: write periodic or low_power", o.Mode)
	}
	if o.Altitude < 0 || o.Altitude > 3000 { // §3.6.3
		fault("altitude", "%d is outside 0..3000 m", o.Altitude)
	}
	if o.Pressure != 0 && (o.Pressure < 70000 || o.Pressure > 120000) { // §3.6.5
		fault("pressure", "%d is outside 70000..120000 Pa (1 hPa is 100 Pa)", o.Pressure)
	}
	if o.Pressure != 0 && o.Altitude != 0 {
		fault("pressure", "the chip takes an altitude or a pressure: write one of them")
	}
	if !(o.TemperatureOffset >= 0 && o.TemperatureOffset <= 20) { // §3.6.1
		fault("temperature_offset", "%v is outside 0..20 °C (4 is the chip's default)", o.TemperatureOffset)
	}
	return faults
}

// Commands, §3.4. Those marked * are legal while the chip measures; it does
// not acknowledge the others then.
const (
	scd4xStop      = 0x3f86 // *
	scd4xReady     = 0xe4b8 // *
	scd4xRead      = 0xec05 // *
	scd4xPressure  = 0xe000 // *
	scd4xAltitude  = 0x2427
	scd4xOffset    = 0x241d
	scd4xASC       = 0x2416
	scd4xSerial    = 0x3682
	scd4xTakes     = time.Millisecond       // each of them but stop, §3.4
	scd4xStopTakes = 500 * time.Millisecond // §3.5.3: it answers nothing before
)

// scd4xStart is the command that starts each mode and the mode's period, §3.5.1, §3.8.1.
var scd4xStart = map[string]struct {
	command uint16
	period  time.Duration
}{
	"periodic":  {0x21b1, 5 * time.Second},
	"low_power": {0x21ac, 30 * time.Second},
}

type scd4x struct {
	*chip
	period time.Duration
	first  bool // no measurement has been read since the start
}

// openSCD4x finds the chip idle, or measuring for a gateway that was killed or
// for another program. What it measures with cannot be asked then, so it is
// stopped, which costs one period, and set up as configured. Nothing is written
// before a reply with a right checksum has told the chip.
func openSCD4x(ctx context.Context, c *chip, o SCD4x) (gateway.Sensor, error) {
	if _, err := c.words(ctx, "identify", scd4xCommand(scd4xReady), scd4xTakes, 1); err != nil {
		return nil, err
	}
	serial := func() error {
		_, err := c.words(ctx, "read serial number", scd4xCommand(scd4xSerial), scd4xTakes, 3)
		return err
	}
	if err := serial(); err != nil {
		if errors.Is(err, ErrCRC) || ctx.Err() != nil {
			return nil, err
		}
		if err := c.tx("stop measurement", scd4xCommand(scd4xStop), nil); err != nil {
			return nil, err
		}
		if err := sleep(ctx, scd4xStopTakes); err != nil {
			return nil, c.errorf("stop measurement", err)
		}
		if err := serial(); err != nil {
			return nil, err
		}
	}
	// §3.6.5: of altitude and pressure the one set last counts, so either
	// replaces what another program has left.
	place, word := uint16(scd4xAltitude), uint16(o.Altitude)
	if o.Pressure != 0 {
		place, word = scd4xPressure, uint16((o.Pressure+50)/100)
	}
	var asc uint16
	if o.ASC {
		asc = 1
	}
	for _, w := range [][]byte{
		scd4xCommand(scd4xOffset, uint16(math.Round(o.TemperatureOffset*65535/175))), // §3.6.1
		scd4xCommand(place, word),
		scd4xCommand(scd4xASC, asc), // §3.7.2
	} {
		if err := c.tx("set up", w, nil); err != nil {
			return nil, err
		}
		if err := sleep(ctx, scd4xTakes); err != nil {
			return nil, c.errorf("set up", err)
		}
	}
	start := scd4xStart[o.Mode]
	if err := c.tx("start measurement", scd4xCommand(start.command), nil); err != nil {
		return nil, err
	}
	return &scd4x{c, start.period, true}, nil
}

// scd4xCommand is a command as sent, with its argument if it has one, §3.3.
func scd4xCommand(command uint16, arg ...uint16) []byte {
	w := []byte{byte(command >> 8), byte(command)}
	for _, a := range arg {
		w = append(w, byte(a>>8), byte(a), sensirionCRC(a))
	}
	return w
}

// Sense returns the newest measurement not yet read: it waits for one up to a
// period and a half. CO₂ of 0 ppm in the first one after the start is not a
// measurement; the next is waited for.
func (s *scd4x) Sense(ctx context.Context) ([]gateway.Value, error) {
	for {
		if err := s.ready(ctx); err != nil {
			return nil, err
		}
		w, err := s.words(ctx, "read", scd4xCommand(scd4xRead), scd4xTakes, 3)
		if err != nil {
			return nil, err
		}
		first := s.first
		s.first = false
		if first && w[0] == 0 {
			continue
		}
		return []gateway.Value{ // §3.5.2
			{Quantity: gateway.CO2, V: float64(w[0])},
			{Quantity: gateway.Temperature, V: round(-45+175*float64(w[1])/65535, 2)},
			{Quantity: gateway.Humidity, V: round(100*float64(w[2])/65535, 2)},
		}, nil
	}
}

// ready waits for a measurement, §3.8.2: the low 11 bits say whether there is one.
func (s *scd4x) ready(ctx context.Context) error {
	const polls = 25 // a period
	for range polls*3/2 + 1 {
		w, err := s.words(ctx, "wait", scd4xCommand(scd4xReady), scd4xTakes, 1)
		if err != nil {
			return err
		}
		if w[0]&0x07ff != 0 {
			return nil
		}
		if err := sleep(ctx, s.period/polls); err != nil {
			return s.errorf("wait", err)
		}
	}
	return s.errorf("wait", ErrNotReady)
}

// Halt stops the measurements, and returns when the chip answers again.
func (s *scd4x) Halt() error {
	if err := s.tx("stop measurement", scd4xCommand(scd4xStop), nil); err != nil {
		return err
	}
	time.Sleep(scd4xStopTakes)
	return nil
}
