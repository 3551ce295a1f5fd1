package bus

import (
	"time"

	"periph.io/x/conn/v3/gpio"
)

// Counter counts the edges of one GPIO line. It starts no goroutine: the kernel
// numbers the edges, Read collects. One call at a time.
type Counter interface {
	Read() (Count, error)
	Close() error
	String() string
}

// CounterOpts says which edges are counted.
type CounterOpts struct {
	Edge     gpio.Edge     // RisingEdge, FallingEdge or BothEdges
	Pull     gpio.Pull     // PullNoChange leaves the line as it is
	Debounce time.Duration // 0: none; shorter pulses are ignored by the kernel
}

// Count is the state of a Counter at one Read.
type Count struct {
	Edges       uint64        // since it was opened, those lost from the queue included
	Lost        uint64        // of these, counted by the kernel but without a time stamp
	First, Last time.Duration // kernel's monotonic time of the first and last edge since the Read before; both 0 if there was none
}
