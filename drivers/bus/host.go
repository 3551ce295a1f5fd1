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
}

// I2C opens a bus by its name, i2c-1. Asked for again it is the same bus, which
// lives until Close; one that could not be opened is tried again.
func (h *Host) I2C(name string) (i2c.BusCloser, error) {
	n, err := busNumber(name)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.buses[n]; b != nil {
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

// Pin is a GPIO line by its name, GPIO17.
func (h *Host) Pin(name string) (gpio.PinIn, error) { return h.openPin(name) }

// Counter counts the edges of a GPIO line from now on.
func (h *Host) Counter(name string, o CounterOpts) (Counter, error) { return openCounter(name, o) }

// Close closes the buses.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var err error
	for _, b := range h.buses {
		err = errors.Join(err, b.Close())
	}
	h.buses = nil
	return err
}
