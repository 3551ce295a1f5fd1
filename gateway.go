// Package gateway holds the words and the loops of the campus gateway: what a
// reading is, what senses it (Sensor, Watcher), what keeps it (Queue), what
// takes it (Sink), and the two loops that move it along (Poller, Forwarder).
//
// It imports the standard library only. Drivers, the log, the broker's
// dialects and the live view all speak these words and never each other's.
package gateway

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"
)

// Reading is what one sensor observed at one instant.
type Reading struct {
	Sensor string  // its name in the configuration, never the chip's
	At     Stamp   // when the measurement ended
	Values []Value // at least one; no quantity twice
}

// Value is one observed quantity in that quantity's unit.
type Value struct {
	Quantity Quantity // fixes the unit and the kind of V
	V        any      // float64, bool or string, as Quantity.Kind says
}

func (v Value) String() string {
	switch x := v.V.(type) {
	case float64:
		return strings.TrimRight(fmt.Sprintf("%s %.6g %s", v.Quantity, x, v.Quantity.Unit()), " ")
	default:
		return fmt.Sprintf("%s %v", v.Quantity, x)
	}
}

// Check refuses a value that must never reach a broker: of a quantity outside
// the closed list, of another kind than its quantity's, or not a finite number.
func (v Value) Check() error {
	if !v.Quantity.Known() {
		return fmt.Errorf("%q is not a quantity", v.Quantity)
	}
	kind := v.Quantity.Kind()
	switch x := v.V.(type) {
	case float64:
		if kind != Number {
			return fmt.Errorf("%s: got a number, want a %s", v.Quantity, kind)
		}
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return fmt.Errorf("%s: %v is not a measurement", v.Quantity, x)
		}
	case bool:
		if kind != Switch {
			return fmt.Errorf("%s: got a bool, want a %s", v.Quantity, kind)
		}
	case string:
		if kind != Text {
			return fmt.Errorf("%s: got a text, want a %s", v.Quantity, kind)
		}
	default:
		return fmt.Errorf("%s: a value cannot be a %T", v.Quantity, v.V)
	}
	return nil
}

// Resource is anything opened on the hardware. It is periph's conn.Resource in
// our words: a name for errors, and a way back to an inert state.
type Resource interface {
	Halt() error    // back to an inert state (asleep, output off); it may be called twice
	String() string // chip and place: bh1750{i2c-1(23)}
}

// Sensor is a Resource that is polled. One call at a time; it starts no
// goroutine and keeps no reading back.
type Sensor interface {
	Resource
	// Sense measures once. It returns values or an error, never both, and
	// gives up when ctx ends.
	Sense(ctx context.Context) ([]Value, error)
}

// Watcher is a Resource that pushes: a door contact, an MQTT node.
type Watcher interface {
	Resource
	// Watch calls emit, from this goroutine, for the present state at once and
	// for every change. It returns nil when ctx ends, or what broke.
	Watch(ctx context.Context, emit func([]Value)) error
}

// Sink takes readings to where they are wanted: a broker.
type Sink interface {
	// Send delivers a batch, oldest first. nil: all accepted. *RejectError:
	// those named never will be, the rest are accepted. Anything else: nothing
	// may be assumed, keep all and send again later; a *RetryError says when.
	Send(ctx context.Context, rs []Reading) error
	String() string
}

// Reconciler is a Sink that can be asked, after an outcome nobody knows
// (timeout, lost connection, restart), which readings it holds already.
type Reconciler interface {
	Held(ctx context.Context, rs []Reading) (held []bool, err error)
}

// Historian is a Sink that may be able to write what is past without touching the
// newest state.
type Historian interface {
	// History is where the past goes; not ok: there is no such place.
	History() (past Sink, ok bool)
}

// Asker is a Sink that finds out what it talks to. Ask is called before the first
// Send and after an outage. An error is that there was no answer.
type Asker interface {
	Ask(ctx context.Context) error
}

// Keyer is a Sink to which only the order of readings with the same key matters:
// those that feed one entity.
type Keyer interface {
	Key(sensor string) string
}

// Meter is a Sink that counts the bytes it has sent.
type Meter interface {
	Bytes() uint64
}

// Queue is one uplink's view of the log, as the Forwarder needs it. Readings have
// sequence numbers, in the order they were put. Its methods may be called while
// other goroutines put readings; all but Ready and Depth by one goroutine only.
type Queue interface {
	// Bounds are the numbers of the oldest reading not yet acknowledged and of the
	// next one to be put. Anew: the log has numbered its readings anew, and what
	// was said in numbers before means nothing now.
	Bounds() (first, end uint64, anew bool)
	// Read returns up to max readings from a number on, the number of the first of
	// them, the others following without a gap, and where to read on: numbers in
	// between have no reading. It never blocks. The readings must not be changed.
	Read(from uint64, max int) (rs []Reading, first, next uint64, err error)
	// Hold has the numbers before one, and between two others, keep their meaning: a
	// log that is full thins out only elsewhere. Until the next call.
	Hold(before, from, to uint64)
	// Ack forgets every reading before end, for this uplink.
	Ack(end uint64)
	// Reject sets readings aside that the broker will never take, with its words.
	Reject(rs []Reading, why string) error
	// Ready receives after something new has come to read.
	Ready() <-chan struct{}
	// Depth is the number of readings waiting.
	Depth() int
}

// RejectError says which readings of a batch the broker will never take. All
// others of the batch were accepted.
type RejectError struct {
	Rejected []Rejection // by rising Index
}

// Rejection is one refused reading of a batch.
type Rejection struct {
	Index  int    // in the batch given to Send
	Reason string // the broker's own words
}

func (e *RejectError) Error() string {
	if len(e.Rejected) == 0 {
		return "nothing rejected"
	}
	return fmt.Sprintf("%d readings rejected, the first because: %s", len(e.Rejected), e.Rejected[0].Reason)
}

// RetryError is an outcome that another try may change, no earlier than After
// from now (0: the sender's own back-off).
type RetryError struct {
	Err   error
	After time.Duration
	Lost  bool // the connection was lost, or could not be made: others may see the same
}

func (e *RetryError) Error() string { return e.Err.Error() }
func (e *RetryError) Unwrap() error { return e.Err }
