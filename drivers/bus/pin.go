package bus

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"periph.io/x/conn/v3/gpio"
)

// line is where a named GPIO line is.
type line struct {
	chip   string // /dev/gpiochip0, never a link
	offset uint32
}

// periphLine is what pin needs of a gpioioctl.GPIOLine.
type periphLine interface {
	gpio.PinIn
	Close()
}

// pin is a gpioioctl line that keeps periph's contract where gpioioctl (v3.8.5)
// does not: there a timeout of 0 waits for ever and -1 not at all, In does not
// end a wait nor Halt one that is about to begin, Read makes an input with a
// pull-up of a line that is not one, wrong use is told to the standard log, and
// no two methods may be called at once. Here Halt also gives the line back.
//
// One gap is left: gpio.Float leaves the resistor as it is.
type pin struct {
	line periphLine
	at   line
	turn chan struct{} // of capacity 1; whoever waits or sets up holds it

	mu      sync.Mutex // never held for long; guards the line against Read, too
	waiting bool
	input   bool // In has succeeded
	edge    gpio.Edge
}

func newPin(l periphLine, at line) *pin { return &pin{line: l, at: at, turn: make(chan struct{}, 1)} }

const (
	// haltAgain is when a wait is halted again that was only about to begin.
	haltAgain = 10 * time.Millisecond
	// waitLeast is enough to see an edge that is there already.
	waitLeast = time.Millisecond
	// eventQueue is how many edges the kernel keeps for gpioioctl.
	eventQueue = 16
)

func (p *pin) String() string   { return p.line.Name() }
func (p *pin) Name() string     { return p.line.Name() }
func (p *pin) Number() int      { return p.line.Number() }
func (p *pin) Function() string { return "In" } // the line's own would set the line up

func (p *pin) DefaultPull() gpio.Pull { return p.line.DefaultPull() }

func (p *pin) Pull() gpio.Pull {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.line.Pull()
}

// takeTurn ends the wait there is.
func (p *pin) takeTurn() {
	for {
		p.mu.Lock()
		if p.waiting {
			_ = p.line.Halt()
		}
		p.mu.Unlock()
		select {
		case p.turn <- struct{}{}:
			return
		case <-time.After(haltAgain):
		}
	}
}

// In takes the line and drops the edges that were seen before.
func (p *pin) In(pull gpio.Pull, edge gpio.Edge) error {
	p.takeTurn()
	defer func() { <-p.turn }()
	if err := p.in(pull, edge); err != nil {
		if strings.Contains(err.Error(), "busy") { // gpioioctl keeps the text only
			return fmt.Errorf("%s: %w", lineUser(p.at), err)
		}
		return err
	}
	// The first wait sets the line's file up, which Halt must not meet halfway.
	for i := 0; i < eventQueue && edge != gpio.NoEdge && p.line.WaitForEdge(waitLeast); i++ {
	}
	return nil
}

func (p *pin) in(pull gpio.Pull, edge gpio.Edge) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.line.In(pull, edge); err != nil {
		p.release()
		return err
	}
	p.input, p.edge = true, edge
	return nil
}

func (p *pin) release() {
	p.line.Close()
	p.input, p.edge = false, gpio.NoEdge
}

// Read is Low where In has not set the line up.
func (p *pin) Read() gpio.Level {
	p.mu.Lock()
	defer p.mu.Unlock()
	return gpio.Level(p.input) && p.line.Read()
}

// WaitForEdge returns false before its time when In or Halt is called, when In
// has not asked for edges, when the line is gone, or somebody else waits.
func (p *pin) WaitForEdge(timeout time.Duration) bool {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	default:
		return false
	}
	if !p.wait(true) {
		return false
	}
	defer p.wait(false)
	if timeout < 0 {
		return p.line.WaitForEdge(0)
	}
	return p.line.WaitForEdge(max(timeout, waitLeast))
}

// wait says that somebody waits from now on, if that can be.
func (p *pin) wait(waiting bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = waiting && p.edge != gpio.NoEdge
	return p.waiting
}

func (p *pin) Halt() error {
	p.takeTurn()
	defer func() { <-p.turn }()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.release()
	return nil
}
