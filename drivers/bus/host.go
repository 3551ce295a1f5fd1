package bus

import (
	"errors"
	"sync"

	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/i2c"
)

// Host is the hardware of this machine. The zero value is ready to use; all
// methods may be called concurrently.
type Host struct {
	mu    sync.Mutex
	buses map[int]*I2C
	pins  map[line]*pin
}

// I2C opens a bus by its name, i2c-1. Asked for again it is the same bus, to be
// left open for the others: Close closes it. One that could not be opened, or
// was closed, is opened anew.
func (h *Host) I2C(name string) (i2c.BusCloser, error) {
	n, err := busNumber(name)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.buses[n]; b != nil && !b.worker.isClosed() {
		return b, nil
	}
	b, err := openI2C(n)
	if err != nil {
		return nil, err
	}
	if h.buses == nil {
		h.buses = map[int]*I2C{}
	}
	h.buses[n] = b
	return b, nil
}

// Pin is a GPIO line by its name, GPIO17. Asked for again it is the same pin.
// The line is taken by its In and given back by its Halt.
func (h *Host) Pin(name string) (gpio.PinIn, error) {
	at, err := findLine(name)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.pins[at]; p != nil {
		return p, nil
	}
	p, err := openPin(name, at)
	if err != nil {
		return nil, err
	}
	if h.pins == nil {
		h.pins = map[line]*pin{}
	}
	h.pins[at] = p
	return p, nil
}

// Counter counts the edges of a GPIO line from now on, until it is closed.
func (h *Host) Counter(name string, o CounterOpts) (Counter, error) { return openCounter(name, o) }

// Close closes the buses and gives the pins' lines back.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var err error
	for _, b := range h.buses {
		err = errors.Join(err, b.Close())
	}
	for _, p := range h.pins {
		err = errors.Join(err, p.Halt())
	}
	h.buses, h.pins = nil, nil
	return err
}
