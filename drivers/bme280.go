package drivers

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"campus-gateway"
)

func init() {
	registerI2C(Spec{
		Name:       "bme280",
		Doc:        "temperature, humidity and air pressure (many boards sold as BME280 carry a BMP280: then use bmp280)",
		Datasheet:  "Bosch BME280, BST-BME280-DS002",
		Quantities: []gateway.Quantity{gateway.Temperature, gateway.Humidity, gateway.Pressure},
		Addresses:  []uint16{0x76, 0x77}, // §6.2: SDO low, SDO high
	}, BME280{Temperature: 2, Pressure: 4, Humidity: 1}, openBME280)
	registerI2C(Spec{
		Name:       "bmp280",
		Doc:        "temperature and air pressure",
		Datasheet:  "Bosch BMP280, BST-BMP280-DS001",
		Quantities: []gateway.Quantity{gateway.Temperature, gateway.Pressure},
		Addresses:  []uint16{0x76, 0x77}, // §5.2
	}, BMP280{Temperature: 2, Pressure: 4}, openBMP280)
}

// BME280 are the options of a bme280.
type BME280 struct {
	Temperature int `yaml:"temperature_oversampling" doc:"1, 2, 4, 8 or 16 measurements averaged by the chip"`
	Pressure    int `yaml:"pressure_oversampling" doc:"the same for pressure: 16 for the least noise"`
	Humidity    int `yaml:"humidity_oversampling" doc:"the same for humidity"`
	Filter      int `yaml:"filter" doc:"smoothing over the last readings, against slamming doors: 0 (none), 2, 4, 8 or 16"`
}

// BMP280 are the options of a bmp280.
type BMP280 struct {
	Temperature int `yaml:"temperature_oversampling" doc:"1, 2, 4, 8 or 16 measurements averaged by the chip"`
	Pressure    int `yaml:"pressure_oversampling" doc:"the same for pressure: 16 for the least noise"`
	Filter      int `yaml:"filter" doc:"smoothing over the last readings, against slamming doors: 0 (none), 2, 4, 8 or 16"`
}

// What the fields osrs_t, osrs_p, osrs_h (BME280 §5.4.3, §5.4.5) and filter
// (§5.4.6) mean, by their value.
var (
	bmx280Oversampling = []int{0, 1, 2, 4, 8, 16}
	bmx280Filter       = []int{0, 2, 4, 8, 16}
)

func (o *BME280) check() []error {
	faults := (&BMP280{o.Temperature, o.Pressure, o.Filter}).check()
	return append(faults, checkOneOf("humidity_oversampling", o.Humidity, bmx280Oversampling[1:])...)
}

func (o *BMP280) check() (faults []error) {
	faults = append(faults, checkOneOf("temperature_oversampling", o.Temperature, bmx280Oversampling[1:])...)
	faults = append(faults, checkOneOf("pressure_oversampling", o.Pressure, bmx280Oversampling[1:])...)
	return append(faults, checkOneOf("filter", o.Filter, bmx280Filter)...)
}

func checkOneOf(field string, v int, allowed []int) []error {
	if slices.Contains(allowed, v) {
		return nil
	}
	return []error{&OptionError{field, fmt.Sprintf("%d is not one of the chip's: write one of %v", v, allowed)}}
}

// Registers, BME280 §5.3, table 18; BMP280 §4.2, table 18.
const (
	bmx280Calibration = 0x88 // to A1
	bmx280ID          = 0xd0
	bmx280Reset       = 0xe0
	bmx280HumCalib    = 0xe1 // to E7
	bmx280CtrlHum     = 0xf2
	bmx280Status      = 0xf3
	bmx280CtrlMeas    = 0xf4
	bmx280Config      = 0xf5
	bmx280Data        = 0xf7 // pressure, temperature, humidity

	bmx280Measuring = 1 << 3 // status
	bmx280Copying   = 1 << 0 // status: calibration is being copied after a reset
	bmx280Forced    = 1      // mode: one measurement, then asleep
	bmx280Mode      = 3      // its bits in ctrl_meas
	bmx280ResetWord = 0xb6   // BME280 §5.4.2, BMP280 §4.3.2

	// A measurement that was not made reads as this, §4.3 and the reset values
	// of table 18.
	bmx280NoMeasurement = 0x80000
	bmx280NoHumidity    = 0x8000
)

// Names of what answers at these addresses, by [D0]: the wrong chip is the most
// frequent surprise with these boards.
var bmx280Chips = map[byte]string{0x55: "BMP180", 0x56: "BMP280 (sample)", 0x57: "BMP280 (sample)", 0x58: "BMP280", 0x60: "BME280", 0x61: "BME680"}

type bmx280 struct {
	*chip
	humidity bool
	ctrlMeas byte          // that starts a measurement
	setUp    byte          // what it reads as while the chip sleeps and remembers
	takes    time.Duration // a measurement, at most

	t1                             float64
	t2, t3                         float64
	p1                             float64
	p2, p3, p4, p5, p6, p7, p8, p9 float64
	h1, h2, h3, h4, h5, h6         float64
}

func openBME280(ctx context.Context, c *chip, o BME280) (gateway.Sensor, error) {
	return openBMx280(ctx, c, true, o)
}

func openBMP280(ctx context.Context, c *chip, o BMP280) (gateway.Sensor, error) {
	return openBMx280(ctx, c, false, BME280{o.Temperature, o.Pressure, 0, o.Filter})
}

func openBMx280(ctx context.Context, c *chip, humidity bool, o BME280) (gateway.Sensor, error) {
	var id [1]byte
	if err := c.register("read id", bmx280ID, id[:]); err != nil {
		return nil, err
	}
	if err := bmx280Accepts(humidity, id[0]); err != nil {
		return nil, c.errorf("identify", err)
	}
	b := &bmx280{chip: c, humidity: humidity}
	// A reset first: another program may have left the chip measuring, when config
	// may not be written (BME280 §5.4.6), and a chip whose power had only dipped
	// has been seen 300 hPa off until its calibration was loaded anew (esphome/issues
	// issue 3383).
	if err := c.tx("reset", []byte{bmx280Reset, bmx280ResetWord}, nil); err != nil {
		return nil, err
	}
	if err := sleep(ctx, 2*time.Millisecond); err != nil { // §1.1, table 1: start-up time
		return nil, c.errorf("reset", err)
	}
	if err := b.await(ctx, "load calibration", bmx280Status, bmx280Copying, 0, 2*time.Millisecond); err != nil {
		return nil, err
	}
	if err := b.calibrate(); err != nil {
		return nil, err
	}
	index := func(v int) byte { return byte(slices.Index(bmx280Oversampling, v)) }
	b.ctrlMeas = index(o.Temperature)<<5 | index(o.Pressure)<<2 | bmx280Forced
	// §9.1: 1.25 ms, 2.3 ms a measurement, 0.575 ms for pressure and for humidity.
	b.takes = 1250*time.Microsecond + time.Duration(o.Temperature+o.Pressure+o.Humidity)*2300*time.Microsecond + 2*575*time.Microsecond
	set := [][]byte{
		{bmx280Config, byte(slices.Index(bmx280Filter, o.Filter)) << 2},
		{bmx280CtrlMeas, b.ctrlMeas &^ bmx280Mode},
	}
	if humidity { // §5.4.3: it takes effect with the next write of ctrl_meas
		set = append([][]byte{{bmx280CtrlHum, index(o.Humidity)}}, set...)
	}
	for _, w := range set {
		if err := c.tx("set up", w, nil); err != nil {
			return nil, err
		}
	}
	var err error
	b.setUp, err = b.readSetUp()
	if err != nil {
		return nil, err
	}
	return b, nil
}

// readSetUp reads back the oversampling, which is 0 after every reset (table 18)
// and never so when the chip is set up.
func (b *bmx280) readSetUp() (byte, error) {
	var r [1]byte
	err := b.register("read set-up", bmx280CtrlMeas, r[:])
	return r[0] &^ bmx280Mode, err
}

func bmx280Accepts(humidity bool, id byte) error {
	isBMP := id >= 0x56 && id <= 0x58
	switch {
	case humidity && id == 0x60, !humidity && isBMP:
		return nil
	case humidity && isBMP:
		return fmt.Errorf("%w: this is a BMP280, which has no humidity: use the driver bmp280", ErrWrongID)
	case !humidity && id == 0x60:
		return fmt.Errorf("%w: this is a BME280, which has humidity too: use the driver bme280", ErrWrongID)
	case bmx280Chips[id] != "":
		return fmt.Errorf("%w: its id %02x is a %s's", ErrWrongID, id, bmx280Chips[id])
	}
	return fmt.Errorf("%w: its id is %02x, want %s", ErrWrongID, id, map[bool]string{true: "60", false: "58"}[humidity])
}

// calibrate reads the trimming values, BME280 §4.2.2, BMP280 §3.11.2.
func (b *bmx280) calibrate() error {
	var r [26]byte // 88..A1
	if err := b.register("read calibration", bmx280Calibration, r[:]); err != nil {
		return err
	}
	unsigned := func(i int) float64 { return float64(binary.LittleEndian.Uint16(r[i:])) }
	signed := func(i int) float64 { return float64(int16(binary.LittleEndian.Uint16(r[i:]))) }
	b.t1, b.t2, b.t3 = unsigned(0), signed(2), signed(4)
	b.p1, b.p2, b.p3, b.p4, b.p5 = unsigned(6), signed(8), signed(10), signed(12), signed(14)
	b.p6, b.p7, b.p8, b.p9 = signed(16), signed(18), signed(20), signed(22)
	if b.t1 == 0 || b.p1 == 0 || b.t1 == 0xffff && b.p1 == 0xffff {
		return b.errorf("read calibration", errors.New("the chip has none: it is damaged, or a fake"))
	}
	if !b.humidity {
		return nil
	}
	b.h1 = float64(r[25])
	var h [7]byte // E1..E7
	if err := b.register("read calibration", bmx280HumCalib, h[:]); err != nil {
		return err
	}
	b.h2 = float64(int16(binary.LittleEndian.Uint16(h[:])))
	b.h3 = float64(h[2])
	b.h4 = float64(int16(int8(h[3]))<<4 | int16(h[4]&0x0f))
	b.h5 = float64(int16(int8(h[5]))<<4 | int16(h[4]>>4))
	b.h6 = float64(int8(h[6]))
	return nil
}

// Sense measures once in forced mode, and the chip sleeps again: 19 ms with the
// default options, 113 ms with everything averaged over 16.
func (b *bmx280) Sense(ctx context.Context) ([]gateway.Value, error) {
	// A chip that was without power meanwhile may be another chip now, with
	// another calibration.
	if now, err := b.readSetUp(); err != nil {
		return nil, err
	} else if now != b.setUp {
		return nil, b.errorf("read set-up", fmt.Errorf("%w: its set-up was lost (was its power interrupted?)", ErrNotReady))
	}
	if err := b.tx("start measurement", []byte{bmx280CtrlMeas, b.ctrlMeas}, nil); err != nil {
		return nil, err
	}
	if err := sleep(ctx, b.takes); err != nil {
		return nil, b.errorf("wait", err)
	}
	if err := b.await(ctx, "wait", bmx280Status, bmx280Measuring, 0, b.takes/4); err != nil {
		return nil, err
	}
	r := make([]byte, 6, 8)
	if b.humidity {
		r = r[:8]
	}
	// In one transaction: the chip keeps the values of one measurement together
	// while it lasts, BME280 §4.1.
	if err := b.register("read", bmx280Data, r); err != nil {
		return nil, err
	}
	values, err := b.values(r)
	if err != nil {
		return nil, b.errorf("read", err)
	}
	return values, nil
}

// values compensates raw values in floating point, BME280 §4.2.3 and §8.1,
// BMP280 §3.11.3 and §8.1.
func (b *bmx280) values(r []byte) ([]gateway.Value, error) {
	rawP := int(r[0])<<12 | int(r[1])<<4 | int(r[2])>>4
	rawT := int(r[3])<<12 | int(r[4])<<4 | int(r[5])>>4
	if rawT == bmx280NoMeasurement || rawP == bmx280NoMeasurement {
		return nil, fmt.Errorf("%w (was its power interrupted?)", ErrSkipped)
	}
	fine := b.fine(float64(rawT))
	temperature, pressure := fine/5120, b.pascal(fine, float64(rawP))
	if !b.humidity {
		if temperature < -40 || temperature > 85 || !(pressure >= 30000 && pressure <= 110000) { // BMP280 §1, table 2
			return nil, fmt.Errorf("%w: %.1f °C, %.0f Pa", ErrRange, temperature, pressure)
		}
		return []gateway.Value{
			{Quantity: gateway.Temperature, V: round(temperature, 2)},
			{Quantity: gateway.Pressure, V: round(pressure, 1)},
		}, nil
	}
	rawH := int(r[6])<<8 | int(r[7])
	if rawH == bmx280NoHumidity {
		return nil, fmt.Errorf("%w (was its power interrupted?)", ErrSkipped)
	}
	// Bosch's own code for the BME280 keeps values at the ends of the chip's
	// ranges (§1), where the BMP280's reports them.
	return []gateway.Value{
		{Quantity: gateway.Temperature, V: round(min(max(temperature, -40), 85), 2)},
		{Quantity: gateway.Humidity, V: round(min(max(b.percent(fine, float64(rawH)), 0), 100), 2)},
		{Quantity: gateway.Pressure, V: round(min(max(pressure, 30000), 110000), 1)},
	}, nil
}

// fine is t_fine, the temperature in 1/5120 °C.
func (b *bmx280) fine(raw float64) float64 {
	d := raw/131072 - b.t1/8192
	return (raw/16384-b.t1/1024)*b.t2 + d*d*b.t3
}

func (b *bmx280) pascal(fine, raw float64) float64 {
	v := fine/2 - 64000
	offset := (v*v*b.p6/32768+v*b.p5*2)/4 + b.p4*65536
	slope := (1 + (b.p3*v*v/524288+b.p2*v)/524288/32768) * b.p1
	if slope <= 0 { // a calibration that no chip has
		return 0
	}
	p := (1048576 - raw - offset/4096) * 6250 / slope
	return p + (b.p9*p*p/2147483648+p*b.p8/32768+b.p7)/16
}

// percent follows Bosch's own code, which counts the factor k twice where the
// datasheet's §8.1 counts it once. k is 1 where H3 is 0, as it often is;
// elsewhere the two part by H3·(T - 15 °C)/131 % of the value.
func (b *bmx280) percent(fine, raw float64) float64 {
	h := fine - 76800
	k := 1 + b.h3/67108864*h
	h = (raw - (b.h4*64 + b.h5/16384*h)) * (b.h2 / 65536) * (k * (1 + b.h6/67108864*h*k))
	return h * (1 - b.h1*h/524288)
}

// Halt puts the chip to sleep, where it is already after each measurement.
func (b *bmx280) Halt() error {
	return b.tx("sleep", []byte{bmx280CtrlMeas, b.ctrlMeas &^ bmx280Mode}, nil)
}
