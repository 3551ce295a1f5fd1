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

// The coefficients and raw values of the vectors' cal1_osr0 and cal1_osr4, as a
// whole conversation.
func TestDPS310(t *testing.T) {
	coefficients := []byte{0x0d, 0x2f, 0x01, 0x13, 0xc6, 0x8f, 0x2f, 0x04, 0xf5, 0x74, 0x05, 0x78, 0xdc, 0xd8, 0xff, 0xce, 0xfb, 0xb4}
	// One of the chips must have its temperature corrected.
	start := func(addr uint16, setUp [4]byte, correct ...[]byte) []i2ctest.IO {
		ops := []i2ctest.IO{
			{Addr: addr, W: []byte{0x0d}, R: []byte{0x10}},
			{Addr: addr, W: []byte{0x08}, R: []byte{0x40}}, // the coefficients are not ready yet
			{Addr: addr, W: []byte{0x08}, R: []byte{0xc0}},
			{Addr: addr, W: []byte{0x10}, R: coefficients},
			{Addr: addr, W: []byte{0x32}, R: []byte{map[bool]byte{true: 0x02, false: 0x60}[len(correct) == 0]}},
		}
		for _, w := range correct {
			ops = append(ops, i2ctest.IO{Addr: addr, W: w})
		}
		return append(ops, []i2ctest.IO{
			{Addr: addr, W: []byte{0x28}, R: []byte{0x80}},
			{Addr: addr, W: []byte{0x08}, R: []byte{0xc7}}, // it was left measuring by itself
			{Addr: addr, W: []byte{0x08, 0xc0}},
			{Addr: addr, W: []byte{0x06, setUp[0]}}, {Addr: addr, W: []byte{0x07, setUp[1]}}, {Addr: addr, W: []byte{0x09, setUp[3]}},
			{Addr: addr, W: []byte{0x06}, R: setUp[:]},
			{Addr: addr, W: []byte{0x06}, R: []byte{setUp[0], setUp[1], setUp[2] | 0x32, setUp[3]}}, // the last Sense was given up while it measured
		}...)
	}
	play(t, "dps310", `{pressure_oversampling: 1}`, append(start(0x76, [4]byte{0x00, 0x80, 0xc0, 0x00}), []i2ctest.IO{
		{Addr: 0x76, W: []byte{0x08}, R: []byte{0xc0}}, {Addr: 0x76, W: []byte{0x08, 0xc2}}, {Addr: 0x76, W: []byte{0x08}, R: []byte{0xc0}}, {Addr: 0x76, W: []byte{0x08}, R: []byte{0xe0}},
		{Addr: 0x76, W: []byte{0x03}, R: []byte{0x02, 0xa0, 0xce}},
		{Addr: 0x76, W: []byte{0x08}, R: []byte{0xc0}}, {Addr: 0x76, W: []byte{0x08, 0xc1}}, {Addr: 0x76, W: []byte{0x08}, R: []byte{0xd0}},
		{Addr: 0x76, W: []byte{0x00}, R: []byte{0xfc, 0xa8, 0x2f}},
		{Addr: 0x76, W: []byte{0x08}, R: []byte{0xd0}}, {Addr: 0x76, W: []byte{0x08, 0xd0}},
	}...), celsius(21.23), gateway.Value{Quantity: gateway.Pressure, V: 100783.1})
	correct := [][]byte{{0x0e, 0xa5}, {0x0f, 0x96}, {0x62, 0x02}, {0x0e, 0x00}, {0x0f, 0x00}}
	play(t, "dps310", `{temperature_oversampling: 16}`, append(start(0x77, [4]byte{0x04, 0x84, 0xc0, 0x0c}, correct...), []i2ctest.IO{
		{Addr: 0x77, W: []byte{0x08}, R: []byte{0xc0}}, {Addr: 0x77, W: []byte{0x08, 0xc2}}, {Addr: 0x77, W: []byte{0x08}, R: []byte{0xe0}},
		{Addr: 0x77, W: []byte{0x03}, R: []byte{0x01, 0x44, 0x53}},
		{Addr: 0x77, W: []byte{0x08}, R: []byte{0xc0}}, {Addr: 0x77, W: []byte{0x08, 0xc1}}, {Addr: 0x77, W: []byte{0x08}, R: []byte{0xd0}},
		{Addr: 0x77, W: []byte{0x00}, R: []byte{0xfe, 0x63, 0xb4}},
		{Addr: 0x77, W: []byte{0x08}, R: []byte{0xd0}}, {Addr: 0x77, W: []byte{0x08, 0xd0}},
	}...), celsius(21.63), gateway.Value{Quantity: gateway.Pressure, V: 100684.3})
}

func TestDPS310Refuses(t *testing.T) {
	d, _ := Lookup("dps310")
	ready := map[string]string{"0x0D": "10", "0x10": "0cbefb13490f3068f4e104e7d8450068fad6", "0x28": "80", "0x00": "fca3d802a3d7", "0x08": "f0"}
	with := func(at, bytes string) map[string]string {
		m := map[string]string{at: bytes}
		for k, v := range ready {
			if m[k] == "" {
				m[k] = v
			}
		}
		return m
	}
	for name, c := range map[string]struct {
		registers map[string]string
		want      error
		words     string
	}{
		"a BME280":            {map[string]string{"0x0D": "00", "0xd0": "60"}, ErrWrongID, "it is a BME280"},
		"a BMP280 without 0D": {map[string]string{"0x0D": "ff", "0xd0": "58"}, ErrWrongID, "it is a BMP280"},
		"nothing known":       {with("0x0D", "42"), ErrWrongID, "its id is 42"},
		"no coefficients":     {with("0x10", strings.Repeat("00", 18)), ErrWrongID, "no coefficients"},
		"an open bus":         {with("0x10", strings.Repeat("ff", 18)), ErrWrongID, "no coefficients"},
		"never starts":        {with("0x08", "00"), ErrNotReady, "start up"},
		"never measures":      {with("0x08", "c0"), ErrNotReady, "wait for temperature"},
		"skips pressure":      {with("0x00", "80000002a3d7"), ErrSkipped, "read pressure"},
		"skips temperature":   {with("0x00", "fca3d8800000"), ErrSkipped, "read temperature"},
		"measures impossible": {with("0x00", "7fffff7fffff"), ErrRange, "Pa"},
	} {
		_, err := senseVector(t, d, "{pressure_oversampling: 1}", 0x77, newVectorBus(t, vectorChip{}, vectorCase{Registers: c.registers}))
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// wrote is a bus that remembers to which registers something was written.
type wrote struct {
	*vectorBus
	to []byte
}

func (w *wrote) Tx(addr uint16, b, r []byte) error {
	if len(b) > 1 {
		w.to = append(w.to, b[0])
	}
	return w.vectorBus.Tx(addr, b, r)
}

// A chip without an id is one if it has all that a DPS310 has. Nothing is written
// to it that a DPS310's datasheet does not name.
func TestDPS310WithoutID(t *testing.T) {
	d, _ := Lookup("dps310")
	b := &wrote{vectorBus: newVectorBus(t, vectorChip{}, vectorCase{Registers: map[string]string{"0x0D": "ff", "0x10": "0cbefb13490f3068f4e104e7d8450068fad6", "0x28": "80", "0x00": "fca3d802a3d7", "0x08": "f0"}})}
	var values []gateway.Value
	synctest.Test(t, func(t *testing.T) {
		r, err := (&Opener{Host: bench{bus: b}}).Open(t.Context(), d, Place{Bus: "i2c-1"}, options(t, d, "{pressure_oversampling: 1}"))
		if err != nil {
			t.Fatal(err)
		}
		if values, err = r.(gateway.Sensor).Sense(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	if want := []byte{0x08, 0x06, 0x07, 0x09, 0x08, 0x08}; !slices.Equal(b.to, want) {
		t.Errorf("wrote to the registers %x, want %x", b.to, want)
	}
	same(t, values, []gateway.Value{celsius(15.37), {Quantity: gateway.Pressure, V: 98508.8}})
}

func TestDPS310AnyRegisters(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	d, _ := Lookup("dps310")
	synctest.Test(t, func(t *testing.T) {
		for range 3000 {
			b := &vectorBus{regs: map[byte]byte{}, starts: map[byte][]byte{0: nil}}
			for r := range 256 {
				b.regs[byte(r)] = byte(rng.Uint32())
			}
			b.regs[0x0d], b.regs[0x08] = 0x10, 0xf0
			s, err := (&Opener{Host: bench{bus: b}}).Open(t.Context(), d, Place{Bus: "i2c-1"}, d.Options())
			if err != nil {
				t.Fatal(err)
			}
			values, err := s.(gateway.Sensor).Sense(t.Context())
			if (values == nil) == (err == nil) {
				t.Fatalf("%v, %v", values, err)
			}
			for _, v := range values {
				x := v.V.(float64)
				limits := map[gateway.Quantity][2]float64{gateway.Temperature: {-60, 150}, gateway.Pressure: {30000, 120000}}[v.Quantity]
				if v.Check() != nil || x < limits[0] || x > limits[1] {
					t.Fatalf("%v", v)
				}
			}
		}
	})
}

func TestDPS310Options(t *testing.T) {
	checkOptions(t, "dps310", map[string]any{"pressure_oversampling": &DPS310{3, 1}, "temperature_oversampling": &DPS310{1, 256}})
}
