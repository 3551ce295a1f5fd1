package bus

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"periph.io/x/conn/v3/driver/driverreg"
	"periph.io/x/conn/v3/gpio"
	"periph.io/x/host/v3/gpioioctl"
)

// initPeriph lets gpioioctl look for the GPIO chips, once in the program's life.
// The other drivers of periph's host are not linked in: those for the Pi guess
// addresses on a Pi 5, and register pins over the kernel's own lines.
var initPeriph = sync.OnceValue(func() error {
	_, err := driverreg.Init()
	return err
})

// openPin takes the line from gpioioctl's chips, not from gpioreg, where another
// driver may have registered a pin of that name. Who only looks up a name takes
// nothing; In does.
func (h *Host) openPin(name string) (gpio.PinIn, error) {
	if err := initPeriph(); err != nil {
		return nil, fmt.Errorf("%s: look for GPIO chips: %w", name, err)
	}
	var names []string
	for _, c := range gpioioctl.Chips {
		for _, l := range c.Lines() {
			if l.Name() == name {
				return &pin{GPIOLine: l}, nil
			}
			names = append(names, l.Name())
		}
	}
	if len(gpioioctl.Chips) == 0 {
		// gpioioctl looks only once, and what it has met it does not tell.
		if _, err := findLine(name); err != nil {
			return nil, fmt.Errorf("%w (GPIO is looked for once, at start: when it is there, start this program again)", err)
		}
		return nil, fmt.Errorf("%s: GPIO is looked for once, at start: start this program again", name)
	}
	return nil, noLine(name, names)
}

// pin is a gpioioctl line that keeps periph's contract where gpioioctl does not:
// a negative timeout waits for ever and 0 not at all (there it is 0, and -1 not
// at all); Halt gives the line back, so that another use of it can begin; Read
// does not configure a line behind the caller's back.
type pin struct {
	*gpioioctl.GPIOLine
	mu      sync.Mutex // held while waiting
	input   bool       // In has succeeded
	halting bool       // guarded by state
	state   sync.Mutex
}

func (p *pin) String() string { return p.Name() }

func (p *pin) In(pull gpio.Pull, edge gpio.Edge) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.Lock()
	p.halting = false
	p.state.Unlock()
	if err := p.GPIOLine.In(pull, edge); err != nil {
		p.GPIOLine.Close()
		p.input = false
		if strings.Contains(err.Error(), "busy") {
			return fmt.Errorf("another program uses the line (`gpioinfo` shows which): %w", err)
		}
		return err
	}
	p.input = true
	return nil
}

func (p *pin) Read() gpio.Level {
	p.mu.Lock()
	defer p.mu.Unlock()
	return gpio.Level(p.input) && p.GPIOLine.Read()
}

// slice is how long Halt may take to end a wait.
const slice = 250 * time.Millisecond

func (p *pin) WaitForEdge(timeout time.Duration) bool {
	end := time.Now().Add(timeout)
	for {
		p.mu.Lock()
		p.state.Lock()
		stop := p.halting || !p.input
		p.state.Unlock()
		left := slice
		if timeout >= 0 {
			left = min(slice, time.Until(end))
		}
		if stop || left <= 0 {
			p.mu.Unlock()
			return false
		}
		edge := p.GPIOLine.WaitForEdge(left)
		p.mu.Unlock()
		if edge {
			return true
		}
	}
}

func (p *pin) Halt() error {
	p.state.Lock()
	p.halting = true
	p.state.Unlock()
	err := p.GPIOLine.Halt()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.input {
		p.GPIOLine.Close()
		p.input = false
	}
	return err
}
