package sim

import (
	"fmt"
	"sync"
	"time"

	"periph.io/x/conn/v3/gpio"
)

// Pin is an input line that follows the room. Edges wait to be fetched, as in
// the kernel's queue. Safe for concurrent use; one WaitForEdge at a time.
type Pin struct {
	room   *Room
	name   string
	number int
	line   spells

	mu   sync.Mutex
	edge gpio.Edge
	seen int64         // room time up to which edges have been reported
	next int64         // room time of the next edge to report; 0 if not yet looked for
	stop chan struct{} // closed to end a pending wait; nil before In and after Halt
}

var _ gpio.PinIn = (*Pin)(nil)

// In makes the pin report edges from now on. The sensor drives the line: pull
// makes no difference. A pending WaitForEdge ends.
func (p *Pin) In(_ gpio.Pull, edge gpio.Edge) error {
	if edge < gpio.NoEdge || edge > gpio.BothEdges {
		return fmt.Errorf("sim: %s: no such edge: %d", p.name, edge)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.halt()
	p.edge, p.seen, p.next = edge, p.room.Now().UnixMilli(), 0
	p.stop = make(chan struct{})
	return nil
}

// Read is the line's level now.
func (p *Pin) Read() gpio.Level { return gpio.Level(p.line.active(p.room.Now().UnixMilli())) }

// WaitForEdge waits for the next edge of the kind given to In, or takes the
// first of those that have passed since. It says false when timeout is over (a
// negative one is never over), and at once after Halt or without edges to wait
// for.
func (p *Pin) WaitForEdge(timeout time.Duration) bool {
	p.mu.Lock()
	stop, at := p.stop, p.lookAhead()
	p.mu.Unlock()
	if stop == nil || at == 0 {
		return false
	}
	var expired <-chan time.Time
	if timeout >= 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		expired = t.C
	}
	// Round after round: the room's clock is coarser than ours when it runs fast.
	for {
		d := p.room.Until(time.UnixMilli(at))
		if d <= 0 {
			break
		}
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-expired:
			t.Stop()
			return false
		case <-stop:
			t.Stop()
			return false
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stop != stop {
		return false
	}
	p.seen, p.next = at, 0
	return true
}

// lookAhead finds the next edge to report, 0 for none.
func (p *Pin) lookAhead() int64 {
	if p.edge == gpio.NoEdge || p.next != 0 {
		return p.next
	}
	p.next = p.line.next(p.seen)
	if rises := p.line.active(p.next); p.edge == gpio.RisingEdge && !rises || p.edge == gpio.FallingEdge && rises {
		p.next = p.line.next(p.next)
	}
	return p.next
}

// Halt ends a pending WaitForEdge, and those to come until the next In.
func (p *Pin) Halt() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.halt()
	return nil
}

func (p *Pin) halt() {
	if p.stop != nil {
		close(p.stop)
		p.stop = nil
	}
}

// String is the pin's name.
func (p *Pin) String() string { return p.name }

// Name is the line's name, GPIO17.
func (p *Pin) Name() string { return p.name }

// Number is that of the line on its chip.
func (p *Pin) Number() int { return p.number }

// Function is "In/High" or "In/Low".
func (p *Pin) Function() string { return "In/" + p.Read().String() }

// Pull is not known.
func (p *Pin) Pull() gpio.Pull { return gpio.PullNoChange }

// DefaultPull is not known.
func (p *Pin) DefaultPull() gpio.Pull { return gpio.PullNoChange }
