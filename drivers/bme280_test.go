package drivers

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"campus-gateway"

	"periph.io/x/conn/v3/i2c/i2ctest"
)

// The calibration of the datasheet's worked example (BMP280 §3.12): 25.08 °C,
// 100,653.27 Pa.
var (
	bmx280Example = []byte{
		0x70, 0x6b, 0x43, 0x67, 0x18, 0xfc, 0x7d, 0x8e, 0x43, 0xd6, 0xd0, 0x0b, 0x27, 0x0b, 0x8c, 0x00,
		0xf9, 0xff, 0x8c, 0x3c, 0xf8, 0xc6, 0x70, 0x17, 0x00, 0x4b,
	}
	bmx280ExampleHumidity = []byte{0x6a, 0x01, 0x00, 0x13, 0x29, 0x03, 0x1e}
	bmx280ExampleData     = []byte{0x65, 0x5a, 0xc0, 0x7e, 0xed, 0x00}
)

func TestBMP280(t *testing.T) {
	play(t, "bmp280", `{}`, []i2ctest.IO{
		{Addr: 0x76, W: []byte{0xd0}, R: []byte{0x58}},
		{Addr: 0x76, W: []byte{0xe0, 0xb6}},
		{Addr: 0x76, W: []byte{0xf3}, R: []byte{0x01}}, // still copying its calibration
		{Addr: 0x76, W: []byte{0xf3}, R: []byte{0x00}},
		{Addr: 0x76, W: []byte{0x88}, R: bmx280Example},
		{Addr: 0x76, W: []byte{0xf5, 0x00}},
		{Addr: 0x76, W: []byte{0xf4, 0x4c}}, // ×2, ×4, asleep
		{Addr: 0x76, W: []byte{0xf4}, R: []byte{0x4c}},
		{Addr: 0x76, W: []byte{0xf4}, R: []byte{0x4c}},
		{Addr: 0x76, W: []byte{0xf4, 0x4d}},            // forced
		{Addr: 0x76, W: []byte{0xf3}, R: []byte{0x08}}, // still measuring
		{Addr: 0x76, W: []byte{0xf3}, R: []byte{0x00}},
		{Addr: 0x76, W: []byte{0xf7}, R: bmx280ExampleData},
		{Addr: 0x76, W: []byte{0xf4, 0x4c}},
	}, gateway.Value{Quantity: gateway.Temperature, V: 25.08}, gateway.Value{Quantity: gateway.Pressure, V: 100653.3})
}

func TestBME280(t *testing.T) {
	play(t, "bme280", `{temperature_oversampling: 1, pressure_oversampling: 16, humidity_oversampling: 8, filter: 4}`, []i2ctest.IO{
		{Addr: 0x77, W: []byte{0xd0}, R: []byte{0x60}},
		{Addr: 0x77, W: []byte{0xe0, 0xb6}},
		{Addr: 0x77, W: []byte{0xf3}, R: []byte{0x00}},
		{Addr: 0x77, W: []byte{0x88}, R: bmx280Example},
		{Addr: 0x77, W: []byte{0xe1}, R: bmx280ExampleHumidity},
		{Addr: 0x77, W: []byte{0xf2, 0x04}}, // before ctrl_meas, or it has no effect
		{Addr: 0x77, W: []byte{0xf5, 0x08}},
		{Addr: 0x77, W: []byte{0xf4, 0x34}},
		{Addr: 0x77, W: []byte{0xf4}, R: []byte{0x34}},
		{Addr: 0x77, W: []byte{0xf4}, R: []byte{0x35}}, // the last Sense was given up while it measured
		{Addr: 0x77, W: []byte{0xf4, 0x35}},
		{Addr: 0x77, W: []byte{0xf3}, R: []byte{0x00}},
		{Addr: 0x77, W: []byte{0xf7}, R: append(bmx280ExampleData[:6:6], 0x75, 0x30)},
		{Addr: 0x77, W: []byte{0xf4, 0x34}},
	}, gateway.Value{Quantity: gateway.Temperature, V: 25.08}, gateway.Value{Quantity: gateway.Humidity, V: 55.0}, gateway.Value{Quantity: gateway.Pressure, V: 100653.3})
}

// What is found instead is named: it is the most frequent surprise.
func TestBMx280Identifies(t *testing.T) {
	for _, c := range []struct {
		driver string
		id     byte
		want   string
	}{
		{"bme280", 0x58, "this is a BMP280, which has no humidity: use the driver bmp280"},
		{"bmp280", 0x60, "this is a BME280, which has humidity too: use the driver bme280"},
		{"bme280", 0x61, "its id 61 is a BME680's"},
		{"bmp280", 0x55, "its id 55 is a BMP180's"},
		{"bme280", 0xff, "its id is ff, want 60"},
	} {
		d, _ := Lookup(c.driver)
		tape := &tape{ops: []i2ctest.IO{{Addr: 0x76, W: []byte{0xd0}, R: []byte{c.id}}}, failAt: -1}
		_, err := (&Opener{Host: bench{bus: tape}}).Open(t.Context(), d, Place{Bus: "i2c-1"}, d.Options())
		if !errors.Is(err, ErrWrongID) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %02x: %v", c.driver, c.id, err)
		}
	}
}

func TestBMx280Refuses(t *testing.T) {
	const calibration = "706b436718fc7d8e43d6d00b270b8c00f9ff8c3cf8c67017"
	for name, c := range map[string]struct {
		driver    string
		registers map[string]string
		want      error
		words     string
	}{
		"never has its calibration": {"bmp280", map[string]string{"0xd0": "58", "0x88": calibration, "0xf3": "01"}, ErrNotReady, "load calibration"},
		"never measures":            {"bmp280", map[string]string{"0xd0": "58", "0x88": calibration, "0xf3": "08"}, ErrNotReady, "wait"},
		"no calibration":            {"bmp280", map[string]string{"0xd0": "58"}, nil, "the chip has none"},
		"no bus":                    {"bmp280", map[string]string{"0xd0": "58", "0x88": strings.Repeat("ff", 26)}, nil, "the chip has none"},
		"skips humidity":            {"bme280", map[string]string{"0xd0": "60", "0x88": calibration, "0xe1": "6a01001329031e", "0xf7": "655ac07eed008000"}, ErrSkipped, "read"},
		"skips pressure":            {"bme280", map[string]string{"0xd0": "60", "0x88": calibration, "0xe1": "6a01001329031e", "0xf7": "8000007eed007530"}, ErrSkipped, "read"},
		"too cold":                  {"bmp280", map[string]string{"0xd0": "58", "0x88": calibration, "0xf7": "655ac0400000"}, ErrRange, "°C"},
	} {
		d, _ := Lookup(c.driver)
		_, err := senseVector(t, d, "{}", 0x76, newVectorBus(t, vectorChip{}, vectorCase{Registers: c.registers}))
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// H4 and H5 are signed and share a byte; H6 is signed.
func TestBME280SignedCalibration(t *testing.T) {
	b := &bmx280{chip: &chip{}, humidity: true}
	b.dev.Bus = &vectorBus{regs: map[byte]byte{0x88: 1, 0x8e: 1, 0xa1: 0xff, 0xe1: 0xfe, 0xe2: 0xff, 0xe3: 0xff, 0xe4: 0xfe, 0xe5: 0x3c, 0xe6: 0x80, 0xe7: 0xf6}, starts: map[byte][]byte{0: nil}}
	if err := b.calibrate(); err != nil {
		t.Fatal(err)
	}
	if got, want := []float64{b.h1, b.h2, b.h3, b.h4, b.h5, b.h6}, []float64{255, -2, 255, -20, -2045, -10}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Whatever is read, a value is one that the chip can measure, or refused.
func TestBMx280AnyRegisters(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	synctest.Test(t, func(t *testing.T) {
		for _, name := range []string{"bme280", "bmp280"} {
			d, _ := Lookup(name)
			id := map[string]byte{"bme280": 0x60, "bmp280": 0x58}[name]
			for range 3000 {
				b := &vectorBus{regs: map[byte]byte{}, starts: map[byte][]byte{0: nil}}
				for r := range 256 {
					b.regs[byte(r)] = byte(rng.Uint32())
				}
				b.regs[0xd0], b.regs[0xf3] = id, 0
				s, err := (&Opener{Host: bench{bus: b}}).Open(t.Context(), d, Place{Bus: "i2c-1"}, d.Options())
				if err != nil {
					continue
				}
				values, err := s.(gateway.Sensor).Sense(t.Context())
				if (values == nil) == (err == nil) {
					t.Fatalf("%v, %v", values, err)
				}
				for _, v := range values {
					x := v.V.(float64)
					limits := map[gateway.Quantity][2]float64{gateway.Temperature: {-40, 85}, gateway.Humidity: {0, 100}, gateway.Pressure: {30000, 110000}}[v.Quantity]
					if v.Check() != nil || x < limits[0] || x > limits[1] {
						t.Fatalf("%s: %v", name, v)
					}
				}
			}
		}
	})
}

// checkOptions demands a fault of each of these options, at its field.
func checkOptions(t *testing.T, driver string, faults map[string]any) {
	t.Helper()
	d, ok := Lookup(driver)
	if !ok {
		t.Fatalf("no driver %s", driver)
	}
	if errs := d.Check(d.Options()); len(errs) > 0 {
		t.Errorf("%s refuses its own defaults: %v", driver, errs)
	}
	for field, opts := range faults {
		errs := d.Check(opts)
		if len(errs) != 1 {
			t.Errorf("%+v: %v, want one fault", opts, errs)
			continue
		}
		if o, ok := errors.AsType[*OptionError](errs[0]); !ok || o.Field != field {
			t.Errorf("%+v: %v, want a fault of %s", opts, errs[0], field)
		}
	}
}

func TestBMx280Options(t *testing.T) {
	checkOptions(t, "bme280", map[string]any{
		"temperature_oversampling": &BME280{3, 1, 1, 0}, "pressure_oversampling": &BME280{1, 0, 1, 0},
		"humidity_oversampling": &BME280{1, 1, 32, 0}, "filter": &BME280{1, 1, 1, 3},
	})
	checkOptions(t, "bmp280", map[string]any{"filter": &BMP280{1, 1, -2}})
}
