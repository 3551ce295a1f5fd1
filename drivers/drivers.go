// Package drivers reads the chips and lines that makers plug in: one file a
// chip, each from its datasheet. A driver registers a Spec, its default options
// and an open function; strict decoding of its options, the sample
// configuration, `gateway drivers` and the table in the docs come from these.
//
// Drivers speak periph's conn/v3 interfaces, start no goroutine, hold no
// channel, do not log, and borrow their bus: they never close it.
package drivers

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"campus-gateway"
	"campus-gateway/drivers/bus"

	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/i2c"
)

// Spec is what the world is told of a driver.
type Spec struct {
	Name         string             // the chip's, lower case, never a board's
	Doc          string             // one line
	Datasheet    string             // title and revision of the document the driver was written from
	Quantities   []gateway.Quantity // what it can sense
	Addresses    []uint16           // I2C only, 7 bit; the first is the default
	Experimental bool               // not yet seen working on a real chip or an independent model of one
}

// Driver is a registered Spec that can be opened.
type Driver struct {
	Spec
	Kind     Kind
	defaults reflect.Value // a struct
	open     func(ctx context.Context, h Host, at Place, opts any) (gateway.Resource, error)
}

// Kind is how a driver's hardware is attached.
type Kind string

// The kinds of attachment.
const (
	I2C  Kind = "i2c"
	GPIO Kind = "gpio"
)

// Place is where a sensor is attached.
type Place struct {
	Bus     string // I2C: "i2c-1"
	Address uint16 // I2C: 7 bit; 0 means the driver's default
	Shared  bool   // I2C: talk to the chip although a kernel driver owns its address
	Pin     string // GPIO: the line's name, "GPIO17"
}

// Host opens the hardware of a machine: the real one (*bus.Host) or a simulated
// one. A bus asked for twice is the same bus. Safe for concurrent use.
type Host interface {
	I2C(name string) (i2c.BusCloser, error)
	Pin(name string) (gpio.PinIn, error)
	Counter(name string, o bus.CounterOpts) (bus.Counter, error)
}

var registry = map[string]*Driver{} // written by init functions only

func register[O any](s Spec, k Kind, defaults O, open func(context.Context, Host, Place, O) (gateway.Resource, error)) {
	if registry[s.Name] != nil {
		panic("drivers: two drivers named " + s.Name)
	}
	registry[s.Name] = &Driver{
		Spec: s, Kind: k, defaults: reflect.ValueOf(defaults),
		open: func(ctx context.Context, h Host, at Place, opts any) (gateway.Resource, error) {
			return open(ctx, h, at, *opts.(*O))
		},
	}
}

// registerI2C registers a polled chip on an I2C bus. open identifies the chip,
// configures it and reads its calibration: it is called again after every
// failure, since what answers then may be another chip.
func registerI2C[O any](s Spec, defaults O, open func(context.Context, *chip, O) (gateway.Sensor, error)) {
	register(s, I2C, defaults, func(ctx context.Context, h Host, at Place, o O) (gateway.Resource, error) {
		if at.Address == 0 {
			at.Address = s.Addresses[0]
		}
		b, err := h.I2C(at.Bus)
		if err != nil {
			return nil, err
		}
		c := &chip{name: s.Name, dev: i2c.Dev{Bus: b, Addr: at.Address}}
		if k, ok := b.(interface{ Owner(addr uint16) string }); ok && !at.Shared {
			if owner := k.Owner(at.Address); owner != "" {
				return nil, fmt.Errorf("%s: the kernel's driver %s owns this address: remove it, or set `shared: true` if both may talk to the chip", c, owner)
			}
		}
		sensor, err := open(ctx, c, o)
		if err != nil {
			return nil, err // not sensor: a nil *T in it would be a non-nil Resource
		}
		return sensor, nil
	})
}

// registerPin registers a watcher of a GPIO line's level.
func registerPin[O any](s Spec, defaults O, open func(gpio.PinIn, O) (gateway.Watcher, error)) {
	register(s, GPIO, defaults, func(_ context.Context, h Host, at Place, o O) (gateway.Resource, error) {
		p, err := h.Pin(at.Pin)
		if err != nil {
			return nil, err
		}
		w, err := open(p, o)
		if err != nil {
			return nil, err
		}
		return w, nil
	})
}

// registerCounter registers a polled counter of a GPIO line's edges. count says
// from the options which edges.
func registerCounter[O any](s Spec, defaults O, count func(O) bus.CounterOpts, open func(bus.Counter, O) (gateway.Sensor, error)) {
	register(s, GPIO, defaults, func(_ context.Context, h Host, at Place, o O) (gateway.Resource, error) {
		c, err := h.Counter(at.Pin, count(o))
		if err != nil {
			return nil, err
		}
		sensor, err := open(c, o)
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return sensor, nil
	})
}

// Lookup finds a driver by its name.
func Lookup(name string) (*Driver, bool) { d, ok := registry[name]; return d, ok }

// All lists the drivers by name.
func All() []*Driver {
	all := make([]*Driver, 0, len(registry))
	for _, d := range registry {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b *Driver) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Options returns a pointer to a fresh copy of the driver's default options, a
// struct with yaml and doc tags, to be decoded into and given to Opener.Open.
func (d *Driver) Options() any {
	p := reflect.New(d.defaults.Type())
	p.Elem().Set(d.defaults)
	return p.Interface()
}

// Check reports every fault of options made by Options, each an *OptionError.
// It never touches hardware.
func (d *Driver) Check(opts any) []error {
	c, ok := opts.(interface{ check() []error })
	if !ok {
		return nil
	}
	return c.check()
}

// Part names the part of the chip that options select, where several sensors
// may share one chip (a converter's channel); empty where they may not.
func (d *Driver) Part(opts any) string {
	if p, ok := opts.(interface{ part() string }); ok {
		return p.part()
	}
	return ""
}

// Quantities is what a sensor with these options senses.
func (d *Driver) Senses(opts any) []gateway.Quantity {
	if s, ok := opts.(interface{ senses() []gateway.Quantity }); ok {
		return s.senses()
	}
	return d.Spec.Quantities
}

// OptionError is a fault of one option.
type OptionError struct {
	Field  string // its key in the configuration
	Reason string // what is wrong and what to write instead
}

func (e *OptionError) Error() string { return e.Field + ": " + e.Reason }

// Opener opens sensors on a host. Sensors that share one chip take turns: one
// Sense at a time on an address, whoever asks. Safe for concurrent use.
type Opener struct {
	Host Host

	mu    sync.Mutex
	chips map[string]chan struct{} // by bus and address; holding the token is holding the chip
}

// Open opens a sensor: a gateway.Sensor or a gateway.Watcher. opts comes from
// d.Options.
func (o *Opener) Open(ctx context.Context, d *Driver, at Place, opts any) (gateway.Resource, error) {
	if d.Part(opts) == "" {
		return d.open(ctx, o.Host, at, opts)
	}
	if at.Address == 0 {
		at.Address = d.Addresses[0]
	}
	turn := o.turn(fmt.Sprintf("%s/%#x", at.Bus, at.Address))
	if err := take(ctx, turn); err != nil {
		return nil, err
	}
	r, err := d.open(ctx, o.Host, at, opts)
	<-turn
	if s, ok := r.(gateway.Sensor); ok {
		return &turnTaker{s, turn}, err
	}
	return r, err
}

func (o *Opener) turn(key string) chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.chips == nil {
		o.chips = map[string]chan struct{}{}
	}
	if o.chips[key] == nil {
		o.chips[key] = make(chan struct{}, 1)
	}
	return o.chips[key]
}

// turnTaker is a sensor on a shared chip.
type turnTaker struct {
	gateway.Sensor
	turn chan struct{}
}

func (t *turnTaker) Sense(ctx context.Context) ([]gateway.Value, error) {
	if err := take(ctx, t.turn); err != nil {
		return nil, fmt.Errorf("%s: wait for the chip: %w", t, err)
	}
	defer func() { <-t.turn }()
	return t.Sensor.Sense(ctx)
}

func take(ctx context.Context, turn chan struct{}) error {
	select {
	case turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// chip is the conversation with one I2C device. It puts the chip's name, its
// place and the step into every error.
type chip struct {
	name string
	dev  i2c.Dev
}

// String is the chip and its place: bh1750{i2c-1(23)}, the address in hexadecimal.
func (c *chip) String() string { return fmt.Sprintf("%s{%s(%02x)}", c.name, c.dev.Bus, c.dev.Addr) }

// tx writes w, then reads len(r) bytes, as one bus transaction. step says what
// for: "read", "start measurement".
func (c *chip) tx(step string, w, r []byte) error {
	if err := c.dev.Tx(w, r); err != nil {
		return c.errorf(step, err)
	}
	return nil
}

// register reads len(r) bytes from a register on.
func (c *chip) register(step string, reg byte, r []byte) error { return c.tx(step, []byte{reg}, r) }

// await waits until the bits of an 8-bit register that mask names read as want.
// It looks six times, so it waits for five times every, and ErrNotReady is after
// that.
func (c *chip) await(ctx context.Context, step string, reg, mask, want byte, every time.Duration) error {
	for look := 0; ; look++ {
		var r [1]byte
		if err := c.register(step, reg, r[:]); err != nil {
			return err
		}
		if r[0]&mask == want {
			return nil
		}
		if look == 5 {
			return c.errorf(step, ErrNotReady)
		}
		if err := sleep(ctx, every); err != nil {
			return c.errorf(step, err)
		}
	}
}

// errorf wraps an error of this chip.
func (c *chip) errorf(step string, err error) error { return fmt.Errorf("%s: %s: %w", c, step, err) }

// sleep waits for a conversion, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Errors of a chip that answers, but not with a measurement. They are told
// apart by errors.Is.
var (
	ErrCRC      = errors.New("checksum mismatch")
	ErrNotReady = errors.New("measurement not ready")
	ErrSkipped  = errors.New("the chip has skipped this measurement")
	ErrRange    = errors.New("outside what the chip can measure")
	ErrWrongID  = errors.New("another chip answers here")
)
