package drivers

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"testing/synctest"

	"campus-gateway"
	"campus-gateway/drivers/bus"

	"go.yaml.in/yaml/v3"
	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/i2c"
	"periph.io/x/conn/v3/i2c/i2ctest"
	"periph.io/x/conn/v3/physic"
)

// bench is a Host with one of each, for tests.
type bench struct {
	bus     i2c.BusCloser
	pin     gpio.PinIn
	counter bus.Counter
}

func (b bench) I2C(string) (i2c.BusCloser, error)                    { return b.bus, nil }
func (b bench) Pin(string) (gpio.PinIn, error)                       { return b.pin, nil }
func (b bench) Counter(string, bus.CounterOpts) (bus.Counter, error) { return b.counter, nil }

// options decodes a driver's options as the configuration does: strictly, over
// the defaults.
func options(t *testing.T, d *Driver, text string) any {
	t.Helper()
	opts := d.Options()
	dec := yaml.NewDecoder(strings.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(opts); err != nil && err != io.EOF {
		t.Fatalf("options of %s: %v", d.Name, err)
	}
	if faults := d.Check(opts); len(faults) > 0 {
		t.Fatalf("options of %s: %v", d.Name, faults)
	}
	return opts
}

// play opens, senses and halts a driver against recorded bus traffic, which it
// must use up exactly, and demands these values. Then it plays again with each
// transaction failing in turn (and all after it: the chip was pulled out) and
// demands the bus's own error, wrapped under the chip's name, and no values.
// It runs under synctest: conversions take no time, and a driver that waits
// for ever fails.
func play(t *testing.T, driver, opts string, ops []i2ctest.IO, want ...gateway.Value) {
	t.Helper()
	d, ok := Lookup(driver)
	if !ok {
		t.Fatalf("no driver %s", driver)
	}
	t.Run("recorded", func(t *testing.T) {
		tape := &tape{ops: ops, failAt: -1}
		var got []gateway.Value
		synctest.Test(t, func(t *testing.T) {
			s, err := (&Opener{Host: bench{bus: tape}}).Open(t.Context(), d, place(ops), options(t, d, opts))
			if err != nil {
				t.Fatalf("open: %v", err)
			}
			if got, err = s.(gateway.Sensor).Sense(t.Context()); err != nil {
				t.Fatalf("sense: %v", err)
			}
			if err := s.Halt(); err != nil {
				t.Fatalf("halt: %v", err)
			}
		})
		if tape.at != len(ops) {
			t.Errorf("used %d of %d recorded transactions", tape.at, len(ops))
		}
		same(t, got, want)
	})
	for n := range ops {
		t.Run(fmt.Sprintf("fails at %d", n), func(t *testing.T) {
			tape := &tape{ops: ops, failAt: n}
			synctest.Test(t, func(t *testing.T) {
				s, err := (&Opener{Host: bench{bus: tape}}).Open(t.Context(), d, place(ops), options(t, d, opts))
				if err != nil {
					if s != nil {
						t.Errorf("open returned an error and a sensor")
					}
					named(t, d, err)
					return
				}
				values, err := s.(gateway.Sensor).Sense(t.Context())
				if err != nil {
					if values != nil {
						t.Errorf("sense returned an error and %v", values)
					}
					named(t, d, err)
					return
				}
				if err := s.Halt(); err != nil {
					named(t, d, err)
					return
				}
				t.Errorf("transaction %d failed and nobody was told", n)
			})
		})
	}
}

// place takes the address from the recording, so that it is played at any.
func place(ops []i2ctest.IO) Place {
	if len(ops) == 0 {
		return Place{Bus: "i2c-1"}
	}
	return Place{Bus: "i2c-1", Address: ops[0].Addr}
}

// named checks that an error is the tape's own, wrapped, and begins with the chip.
func named(t *testing.T, d *Driver, err error) {
	t.Helper()
	if !errors.Is(err, errPulled) {
		t.Errorf("the bus's error is lost in %q", err)
	}
	if !strings.HasPrefix(err.Error(), d.Name+"{i2c-1(") {
		t.Errorf("%q does not begin with the chip and its place", err)
	}
}

func same(t *testing.T, got, want []gateway.Value) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i, v := range got {
		if err := v.Check(); err != nil {
			t.Errorf("bad value: %v", err)
		}
		if a, ok := v.V.(float64); ok && v.Quantity == want[i].Quantity {
			if b := want[i].V.(float64); math.Abs(a-b) <= 1e-9*math.Max(1, math.Abs(b)) {
				continue
			}
		}
		if v != want[i] {
			t.Errorf("got %v, want %v", v, want[i])
		}
	}
}

var errPulled = errors.New("remote I/O error")

// tape is a bus that answers as recorded. Unlike i2ctest.Playback it can fail
// from a transaction on, and never panics.
type tape struct {
	ops    []i2ctest.IO
	at     int
	failAt int // -1: never
}

func (p *tape) String() string                    { return "i2c-1" }
func (p *tape) Close() error                      { return nil }
func (p *tape) SetSpeed(f physic.Frequency) error { return nil }

func (p *tape) Tx(addr uint16, w, r []byte) error {
	if p.failAt >= 0 && p.at >= p.failAt {
		return errPulled
	}
	if p.at >= len(p.ops) {
		return fmt.Errorf("transaction %d (write %x, read %d) is not in the recording", p.at, w, len(r))
	}
	op := p.ops[p.at]
	if op.Addr != addr || !bytes.Equal(op.W, w) || len(op.R) != len(r) {
		return fmt.Errorf("transaction %d: got %02x: write %x, read %d; recorded %02x: write %x, read %d", p.at, addr, w, len(r), op.Addr, op.W, len(op.R))
	}
	copy(r, op.R)
	p.at++
	return nil
}
