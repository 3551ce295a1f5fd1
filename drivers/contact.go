package drivers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"campus-gateway"

	"periph.io/x/conn/v3/gpio"
)

func init() {
	registerPin(Spec{
		Name:       "contact",
		Doc:        "on-off line: door or window contact, motion sensor (HC-SR501, RCWL-0516), button",
		Datasheet:  "none: any GPIO level",
		Quantities: []gateway.Quantity{gateway.Contact, gateway.Occupancy, gateway.Button},
	}, Contact{Quantity: gateway.Contact, Debounce: 50 * time.Millisecond, Repeat: 10 * time.Minute}, openContact)
}

// Contact are the options of a contact.
type Contact struct {
	Quantity gateway.Quantity `yaml:"quantity" doc:"contact (true: open), occupancy (true: someone moves) or button (true: pressed)"`
	Active   string           `yaml:"active" doc:"the level that means true: high or low (default: high, for a button low)"`
	Pull     string           `yaml:"pull" doc:"resistor of the line: up, down or none (default: up, for occupancy down)"`
	Debounce time.Duration    `yaml:"debounce" doc:"how long a level must last to count"`
	Hold     time.Duration    `yaml:"hold" doc:"stay true at least so long after the last activity: for motion sensors"`
	Repeat   time.Duration    `yaml:"repeat" doc:"tell an unchanged state again after so long"`
}

// contactWiring is how each quantity is wired most often: a reed contact that
// an open door opens, against ground; a motion sensor that drives its output
// high; a button against ground.
var contactWiring = map[gateway.Quantity]struct{ active, pull string }{
	gateway.Contact:   {"high", "up"},
	gateway.Occupancy: {"high", "down"},
	gateway.Button:    {"low", "up"},
}

// linePulls are the words for a line's resistor.
var linePulls = map[string]gpio.Pull{"up": gpio.PullUp, "down": gpio.PullDown, "none": gpio.Float}

func (o *Contact) check() (faults []error) {
	fault := func(field, format string, args ...any) {
		faults = append(faults, &OptionError{field, fmt.Sprintf(format, args...)})
	}
	if _, ok := contactWiring[o.Quantity]; !ok {
		fault("quantity", "%q is not one of a contact's: write contact, occupancy or button", o.Quantity)
	}
	if o.Active != "" && o.Active != "high" && o.Active != "low" {
		fault("active", "%q is unknown: write high or low", o.Active)
	}
	if _, ok := linePulls[o.Pull]; o.Pull != "" && !ok {
		fault("pull", "%q is unknown: write up, down or none", o.Pull)
	}
	if o.Debounce < 0 || o.Debounce > 10*time.Second {
		fault("debounce", "%v is outside 0s..10s", o.Debounce)
	}
	if o.Hold < 0 || o.Hold > 24*time.Hour {
		fault("hold", "%v is outside 0s..24h", o.Hold)
	}
	if o.Repeat < time.Second || o.Repeat > 24*time.Hour {
		fault("repeat", "%v is outside 1s..24h", o.Repeat)
	}
	return faults
}

func (o *Contact) senses() []gateway.Quantity { return []gateway.Quantity{o.Quantity} }

const (
	// contactWait bounds one wait for an edge, and so how late the end of the
	// context is noticed.
	contactWait = 200 * time.Millisecond
	// contactChatter is how long a line may go without ever being stable.
	contactChatter = 10 * time.Second
)

type contact struct {
	Contact
	pin    gpio.PinIn
	active gpio.Level
	pull   gpio.Pull
}

func openContact(p gpio.PinIn, o Contact) (gateway.Watcher, error) {
	wiring := contactWiring[o.Quantity]
	if o.Active != "" {
		wiring.active = o.Active
	}
	if o.Pull != "" {
		wiring.pull = o.Pull
	}
	return &contact{o, p, wiring.active == "high", linePulls[wiring.pull]}, nil
}

// Watch tells the level that it finds as it is, later ones once they have
// lasted. It does not trust edges alone: of a bouncing contact the kernel drops
// some, so the level is looked at after each wait.
func (c *contact) Watch(ctx context.Context, emit func([]gateway.Value)) error {
	if err := c.pin.In(c.pull, gpio.BothEdges); err != nil {
		return c.errorf("set up", err)
	}
	now := time.Now()
	level := c.pin.Read() == c.active // as last seen
	settled, stable := level, now     // the last level that lasted, and when the line was last at rest
	changed := now                    // the last edge
	state, told := level, now         // as told, and when
	active := now                     // the last activity
	tell := func() { emit([]gateway.Value{{Quantity: c.Quantity, V: state}}) }
	tell()
	for broken := 0; ; {
		wait := min(contactWait, told.Add(c.Repeat).Sub(now))
		if settled != level {
			wait = min(wait, changed.Add(c.Debounce).Sub(now))
		} else if state && !settled {
			wait = min(wait, active.Add(c.Hold).Sub(now))
		}
		// Positive always: to periph's character device driver 0 is for ever
		// and -1 not at all.
		wait = max(wait, time.Millisecond)
		from := time.Now()
		edge := c.pin.WaitForEdge(wait)
		if ctx.Err() != nil {
			return nil
		}
		now = time.Now()
		if !edge && now.Sub(from) < wait/2 {
			// Neither an edge nor the time waited for: the line is gone, and
			// what Read returned would be no level.
			if broken++; broken == 3 {
				return c.errorf("wait", errors.New("the line cannot be waited on"))
			}
			if err := c.pin.In(c.pull, gpio.BothEdges); err != nil {
				return c.errorf("wait", err)
			}
			continue
		}
		broken = 0
		if seen := c.pin.Read() == c.active; edge || seen != level {
			level, changed = seen, now
		}
		if now.Sub(changed) >= c.Debounce {
			settled, stable = level, now
		} else if now.Sub(stable) > contactChatter+c.Debounce {
			return c.errorf("wait", fmt.Errorf("the line has not been stable for %v in the last %v: is it connected, and its pull right?", c.Debounce, contactChatter))
		}
		if settled {
			active = now
		}
		if want := settled || state && now.Sub(active) < c.Hold; want != state || now.Sub(told) >= c.Repeat {
			state, told = want, now
			tell()
		}
	}
}

// Halt ends a wait for an edge.
func (c *contact) Halt() error {
	if err := c.pin.Halt(); err != nil {
		return c.errorf("halt", err)
	}
	return nil
}

// String is contact{GPIO17}: the line by its name, since its String may be more.
func (c *contact) String() string { return fmt.Sprintf("contact{%s}", c.pin.Name()) }

func (c *contact) errorf(step string, err error) error { return fmt.Errorf("%s: %s: %w", c, step, err) }
