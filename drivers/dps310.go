package drivers

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"campus-gateway"
)

func init() {
	registerI2C(Spec{
		Name:       "dps310",
		Doc:        "precise air pressure, and temperature",
		Datasheet:  "Infineon DPS310, v1.2",
		Quantities: []gateway.Quantity{gateway.Temperature, gateway.Pressure},
		Addresses:  []uint16{0x77, 0x76}, // §5.2: SDO open or high, SDO low
	}, DPS310{Pressure: 16, Temperature: 1}, openDPS310)
}

// DPS310 are the options of a dps310.
type DPS310 struct {
	Pressure    int `yaml:"pressure_oversampling" doc:"1, 2, 4, 8, 16, 32, 64 or 128 measurements averaged by the chip; 64: 0.2 Pa of noise, 104 ms"`
	Temperature int `yaml:"temperature_oversampling" doc:"the same for temperature"`
}

// By the value of PM_PRC and TMP_PRC, §7.3 and §7.4: measurements averaged, the
// scale factor of the raw value (§4.9.3, table 9), and how long it takes (table
// 16).
var (
	dps310Samples = []int{1, 2, 4, 8, 16, 32, 64, 128}
	dps310Scale   = []float64{524288, 1572864, 3670016, 7864320, 253952, 516096, 1040384, 2088960}
	dps310Takes   = []time.Duration{3600, 5200, 8400, 14800, 27600, 53200, 104400, 206800} // µs
)

func (o *DPS310) check() []error {
	return append(checkOneOf("pressure_oversampling", o.Pressure, dps310Samples),
		checkOneOf("temperature_oversampling", o.Temperature, dps310Samples)...)
}

// Registers, §7, table 13.
const (
	dps310PressureData    = 0x00
	dps310TemperatureData = 0x03
	dps310PressureConfig  = 0x06
	dps310TempConfig      = 0x07
	dps310MeasConfig      = 0x08
	dps310Config          = 0x09
	dps310ID              = 0x0d
	dps310Coefficients    = 0x10 // to 21
	dps310CoefSource      = 0x28
	dps310Gain            = 0x32 // in no datasheet: see correct

	// MEAS_CFG, §7.5
	dps310CoefReady        = 1 << 7
	dps310SensorReady      = 1 << 6
	dps310TemperatureReady = 1 << 5
	dps310PressureReady    = 1 << 4
	dps310MeasurePressure  = 1
	dps310MeasureTemp      = 2

	// CFG_REG, §7.6: the result must be shifted above 8 measurements
	dps310ShiftTemp     = 1 << 3
	dps310ShiftPressure = 1 << 2
)

type dps310 struct {
	*chip
	setUp                             [4]byte // see readSetUp
	pressure, temperature             int     // PM_PRC, TMP_PRC
	c0, c1                            float64 // temperature
	c00, c10, c01, c11, c20, c21, c30 float64 // pressure
}

func openDPS310(ctx context.Context, c *chip, o DPS310) (gateway.Sensor, error) {
	d := &dps310{chip: c, pressure: slices.Index(dps310Samples, o.Pressure), temperature: slices.Index(dps310Samples, o.Temperature)}
	id, err := d.get("read id", dps310ID)
	if err != nil {
		return nil, err
	}
	// 10 is a DPS310's id, §7.10. FF is what a register that is not there reads
	// as: a chip without an id passes if it is none of Bosch's, says that it is
	// ready and has coefficients, which no other chip at these addresses does.
	if id != 0x10 {
		if other, otherErr := d.get("identify", bmx280ID); otherErr == nil && bmx280Chips[other] != "" {
			return nil, c.errorf("identify", fmt.Errorf("%w: it is a %s", ErrWrongID, bmx280Chips[other]))
		}
		if id != 0xff {
			return nil, c.errorf("identify", fmt.Errorf("%w: its id is %02x, want 10", ErrWrongID, id))
		}
	}
	// §3.6: coefficients 40 ms after power-on, sensor 12 ms.
	if err := d.await(ctx, "start up", dps310MeasConfig, dps310CoefReady|dps310SensorReady, dps310CoefReady|dps310SensorReady, 10*time.Millisecond); err != nil {
		return nil, err
	}
	if err := d.calibrate(); err != nil {
		return nil, err
	}
	if id == 0x10 {
		if err := d.correct(); err != nil {
			return nil, err
		}
	}
	source, err := d.get("read calibration", dps310CoefSource)
	if err != nil {
		return nil, err
	}
	shift := byte(0)
	if d.temperature > 3 {
		shift |= dps310ShiftTemp
	}
	if d.pressure > 3 {
		shift |= dps310ShiftPressure
	}
	if err := d.command("set up", 0); err != nil { // idle: another program may have left it measuring
		return nil, err
	}
	for _, w := range [][]byte{
		{dps310PressureConfig, byte(d.pressure)},
		{dps310TempConfig, source&0x80 | byte(d.temperature)}, // §7.4: the sensor that the coefficients are for, §7.11
		{dps310Config, shift},
	} {
		if err := c.tx("set up", w, nil); err != nil {
			return nil, err
		}
	}
	d.setUp, err = d.readSetUp()
	if err != nil {
		return nil, err
	}
	return d, nil
}

// correct cures the early chips that read about 60 °C in a room. No datasheet
// has it: it is what Infineon told IBM (openbmc/openbmc issue 2003) and what its
// own library does (DPS310-Pressure-Sensor, correctTemp). Bit 1 of the register
// 32, a gain, must be 1; where it is not, it is set behind a lock until the next
// power-up. The Linux driver does so with every chip.
func (d *dps310) correct() error {
	gain, err := d.get("correct temperature", dps310Gain)
	if err != nil || gain&2 != 0 {
		return err
	}
	for _, w := range [][]byte{{0x0e, 0xa5}, {0x0f, 0x96}, {0x62, 0x02}, {0x0e, 0x00}, {0x0f, 0x00}} {
		if err := d.tx("correct temperature", w, nil); err != nil {
			return err
		}
	}
	return nil
}

// readSetUp reads PRS_CFG, TMP_CFG, CFG_REG and, of MEAS_CFG between them, that
// the chip has started up.
func (d *dps310) readSetUp() (r [4]byte, err error) {
	err = d.register("read set-up", dps310PressureConfig, r[:])
	r[2] &= dps310CoefReady | dps310SensorReady
	return r, err
}

// calibrate reads the coefficients, §8.11, table 18: two's complement, of 12, 20
// and 16 bits.
func (d *dps310) calibrate() error {
	var r [18]byte
	if err := d.register("read calibration", dps310Coefficients, r[:]); err != nil {
		return err
	}
	if r == [18]byte{} || !slices.ContainsFunc(r[:], func(b byte) bool { return b != 0xff }) {
		return d.errorf("read calibration", fmt.Errorf("%w: it has no coefficients", ErrWrongID))
	}
	signed := func(v uint32, bits int) float64 { return float64(int32(v<<(32-bits)) >> (32 - bits)) }
	word := func(i int) float64 { return float64(int16(binary.BigEndian.Uint16(r[i:]))) }
	b := func(i int) uint32 { return uint32(r[i]) }
	d.c0, d.c1 = signed(b(0)<<4|b(1)>>4, 12), signed(b(1)<<8|b(2), 12)
	d.c00, d.c10 = signed(b(3)<<12|b(4)<<4|b(5)>>4, 20), signed(b(5)<<16|b(6)<<8|b(7), 20)
	d.c01, d.c11, d.c20, d.c21, d.c30 = word(8), word(10), word(12), word(14), word(16)
	return nil
}

// Sense measures temperature, then pressure, once each (command mode, §4.3): 31
// ms with the default options.
func (d *dps310) Sense(ctx context.Context) ([]gateway.Value, error) {
	// A chip that was without power meanwhile scales its results otherwise, and
	// may be another chip, with other coefficients.
	if now, err := d.readSetUp(); err != nil {
		return nil, err
	} else if now != d.setUp {
		return nil, d.errorf("read set-up", fmt.Errorf("%w: its set-up was lost (was its power interrupted?)", ErrNotReady))
	}
	t, err := d.measure(ctx, "temperature", dps310MeasureTemp, dps310TemperatureReady, dps310TemperatureData, d.temperature)
	if err != nil {
		return nil, err
	}
	p, err := d.measure(ctx, "pressure", dps310MeasurePressure, dps310PressureReady, dps310PressureData, d.pressure)
	if err != nil {
		return nil, err
	}
	// §4.9.1, §4.9.2. In floating point: with integers an odd c0 loses half a
	// degree, and c30·p³ the upper bits.
	celsius := d.c0*0.5 + d.c1*t
	pascal := d.c00 + p*(d.c10+p*(d.c20+p*d.c30)) + t*(d.c01+p*(d.c11+p*d.c21))
	// The chip's pressure range, §3.1; far beyond its temperature range the
	// values are those of no chip at all.
	if !(pascal >= 30000 && pascal <= 120000 && celsius >= -60 && celsius <= 150) {
		return nil, d.errorf("read", fmt.Errorf("%w: %.1f °C, %.0f Pa", ErrRange, celsius, pascal))
	}
	return []gateway.Value{
		{Quantity: gateway.Temperature, V: round(celsius, 2)},
		{Quantity: gateway.Pressure, V: round(pascal, 1)},
	}, nil
}

// measure does one measurement and returns the scaled raw value.
func (d *dps310) measure(ctx context.Context, what string, command, ready, data byte, precision int) (float64, error) {
	if err := d.command("start "+what, command); err != nil {
		return 0, err
	}
	takes := dps310Takes[precision] * time.Microsecond
	if err := sleep(ctx, takes); err != nil {
		return 0, d.errorf("wait for "+what, err)
	}
	if err := d.await(ctx, "wait for "+what, dps310MeasConfig, ready, ready, takes/4); err != nil {
		return 0, err
	}
	var r [3]byte
	if err := d.register("read "+what, data, r[:]); err != nil {
		return 0, err
	}
	raw := int32(uint32(r[0])<<24|uint32(r[1])<<16|uint32(r[2])<<8) >> 8
	if raw == -1<<23 { // 800000 until the first measurement, §7.1
		return 0, d.errorf("read "+what, ErrSkipped)
	}
	return float64(raw) / dps310Scale[precision], nil
}

// command sets what the chip is to do, the lowest three bits of MEAS_CFG. The
// others are the chip's to say; they are written back as they are, which the chip
// ignores and models of it may not.
func (d *dps310) command(step string, bits byte) error {
	now, err := d.get(step, dps310MeasConfig)
	if err != nil {
		return err
	}
	return d.tx(step, []byte{dps310MeasConfig, now&^7 | bits}, nil)
}

func (d *dps310) get(step string, reg byte) (byte, error) {
	var r [1]byte
	err := d.register(step, reg, r[:])
	return r[0], err
}

// Halt puts the chip into its idle mode.
func (d *dps310) Halt() error { return d.command("sleep", 0) }
