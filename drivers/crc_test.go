package drivers

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"campus-gateway"

	"go.yaml.in/yaml/v3"
	"periph.io/x/conn/v3/physic"
)

func TestSensirionCRC(t *testing.T) {
	for word, want := range map[uint16]byte{ // examples in the datasheets of SHT4x, SCD4x and SGP30
		0xbeef: 0x92, 0x0190: 0x4c, 0x03db: 0x42, 0x07e6: 0x48, 0x079e: 0x09, 0x0000: 0x81, 0xffff: 0xac,
	} {
		if got := sensirionCRC(word); got != want {
			t.Errorf("%04x: got %02x, want %02x", word, got, want)
		}
	}
	// A CRC of 8 bits finds every single wrong bit, and every burst up to 8.
	for bit := range 16 {
		if sensirionCRC(0x6667) == sensirionCRC(0x6667^1<<bit) {
			t.Errorf("bit %d may be wrong unseen", bit)
		}
	}
}

// noisyBus answers anything with random bytes, now and then not at all, and
// with right Sensirion checksums if asked to.
type noisyBus struct {
	*rand.Rand
	crc bool
}

func (b noisyBus) String() string                  { return "i2c-1" }
func (b noisyBus) Close() error                    { return nil }
func (b noisyBus) SetSpeed(physic.Frequency) error { return nil }
func (b noisyBus) Tx(_ uint16, _, r []byte) error {
	if b.IntN(20) == 0 {
		return errPulled
	}
	for i := range r {
		r[i] = byte(b.Uint32())
		if extremes := []byte{0x00, 0x7f, 0x80, 0xff}; b.IntN(2) == 0 {
			r[i] = extremes[b.IntN(len(extremes))]
		}
		if b.crc && i%3 == 2 {
			r[i] = sensirionCRC(uint16(r[i-2])<<8 | uint16(r[i-1]))
		}
	}
	return nil
}

// withstandNoise puts random replies to a driver: whatever comes, it gives
// values that may go on and lie within bounds, or an error with its name.
func withstandNoise(t *testing.T, driver, opts string, crc bool, bounds map[gateway.Quantity][2]float64) {
	t.Helper()
	d, _ := Lookup(driver)
	values := 0
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) {
			b := noisyBus{rand.New(rand.NewPCG(seed, 1)), crc}
			r, err := (&Opener{Host: bench{bus: b}}).Open(t.Context(), d, Place{Bus: "i2c-1"}, options(t, d, opts))
			if err != nil {
				checkNoise(t, d, nil, err)
				return
			}
			for range 5 {
				vs, err := r.(gateway.Sensor).Sense(t.Context())
				checkNoise(t, d, vs, err)
				for _, v := range vs {
					values++
					if at := bounds[v.Quantity]; !(v.V.(float64) >= at[0] && v.V.(float64) <= at[1]) {
						t.Errorf("%v is outside %v", v, at)
					}
				}
			}
			r.Halt()
		})
	}
	if values == 0 && crc {
		t.Error("the noise never made a value: nothing was tested")
	}
}

func checkNoise(t *testing.T, d *Driver, vs []gateway.Value, err error) {
	t.Helper()
	if (err == nil) != (len(vs) > 0) && vs != nil {
		t.Errorf("got %v and %v", vs, err)
	}
	if err != nil && !strings.HasPrefix(err.Error(), d.Name+"{i2c-1(") {
		t.Errorf("%q does not begin with the chip and its place", err)
	}
	for _, v := range vs {
		if err := v.Check(); err != nil {
			t.Error(err)
		}
	}
}

// faultsOf lists the options that Check finds at fault.
func faultsOf(t *testing.T, driver, text string) []string {
	t.Helper()
	d, _ := Lookup(driver)
	opts := d.Options()
	dec := yaml.NewDecoder(strings.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(opts); err != nil {
		t.Fatal(err)
	}
	var fields []string
	for _, err := range d.Check(opts) {
		var o *OptionError
		if !errors.As(err, &o) || o.Reason == "" {
			t.Errorf("%v is not an OptionError with a reason", err)
			continue
		}
		fields = append(fields, o.Field)
	}
	return fields
}

// wantFaults holds a table of options against the fields at fault, "" for none.
func wantFaults(t *testing.T, driver string, table map[string]string) {
	t.Helper()
	for text, want := range table {
		if got := faultsOf(t, driver, text); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: faults of %v, want [%s]", text, got, want)
		}
	}
}

// expectCancel opens a driver on a bus, and demands that its Sense, when ctx
// ends after some time, returns then and says why.
func expectCancel(t *testing.T, driver, opts string, after time.Duration, host Host) {
	t.Helper()
	d, _ := Lookup(driver)
	synctest.Test(t, func(t *testing.T) {
		r, err := (&Opener{Host: host}).Open(t.Context(), d, Place{Bus: "i2c-1", Pin: "GPIO22"}, options(t, d, opts))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), after)
		defer cancel()
		start := time.Now()
		vs, err := r.(gateway.Sensor).Sense(ctx)
		if vs != nil || !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), r.String()) {
			t.Errorf("got %v, %v", vs, err)
		}
		if took := time.Since(start); took > after+10*time.Millisecond {
			t.Errorf("returned %v after ctx ended", took-after)
		}
	})
}
