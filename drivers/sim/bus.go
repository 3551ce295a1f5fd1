package sim

import (
	"errors"
	"sync"
	"time"

	"periph.io/x/conn/v3/i2c"
	"periph.io/x/conn/v3/physic"
)

// ErrNACK is what a transaction gives that nobody acknowledges. Its text is the
// kernel's for EREMOTEIO, which is what the Pi's controllers report then.
var ErrNACK = errors.New("remote I/O error")

// Chip answers the transactions of one address: write w, then, after a repeated
// start, fill r. Errors stand for a missing acknowledge. The bus calls it once
// at a time.
type Chip interface {
	Tx(w, r []byte) error
}

// Bus is an I2C bus with simulated chips and, on demand, its faults. Transfers
// take no time; the chips' conversions take what they take. Safe for concurrent
// use.
type Bus struct {
	name string

	mu    sync.Mutex
	ports map[uint16]*port
	hung  chan struct{} // closed by Release; nil unless the bus hangs
	fails int
	fault error
}

type port struct {
	chip      Chip
	unplugged bool
	corrupt   int // replies still to be damaged
}

var _ i2c.BusCloser = (*Bus)(nil)

// NewBus returns a bus without chips.
func NewBus(name string) *Bus { return &Bus{name: name, ports: map[uint16]*port{}} }

// Attach puts a chip at an address, in the place of the one that was there.
func (b *Bus) Attach(addr uint16, c Chip) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ports[addr] = &port{chip: c}
}

// Unplug pulls the chip at an address off the bus.
func (b *Bus) Unplug(addr uint16) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.ports[addr]; p != nil {
		p.unplugged = true
	}
}

// Plug puts an unplugged chip back. It comes back as from power-up: its
// settings are gone.
func (b *Bus) Plug(addr uint16) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.ports[addr]
	if p == nil || !p.unplugged {
		return
	}
	p.unplugged = false
	if c, ok := p.chip.(interface{ PowerUp() }); ok {
		c.PowerUp()
	}
}

// FailNext makes the next n transactions, whoever they are for, fail with err.
func (b *Bus) FailNext(n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fails, b.fault = n, err
}

// Corrupt flips a bit in the last byte of the next n replies from an address:
// the checksum, where the chip sends one.
func (b *Bus) Corrupt(addr uint16, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.ports[addr]; p != nil {
		p.corrupt = n
	}
}

// Hang makes every transaction block, as behind a chip that holds the clock
// low, until Release.
func (b *Bus) Hang() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hung == nil {
		b.hung = make(chan struct{})
	}
}

// Release ends Hang: blocked transactions go on.
func (b *Bus) Release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hung != nil {
		close(b.hung)
		b.hung = nil
	}
}

// Tx does one transaction. An empty one does nothing, as in the kernel.
func (b *Bus) Tx(addr uint16, w, r []byte) error {
	b.mu.Lock()
	for b.hung != nil {
		hung := b.hung
		b.mu.Unlock() // never wait with the lock: Release needs it
		<-hung
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	if len(w) == 0 && len(r) == 0 {
		return nil
	}
	if b.fails > 0 {
		b.fails--
		return b.fault
	}
	p := b.ports[addr]
	if p == nil || p.unplugged {
		return ErrNACK
	}
	if err := p.chip.Tx(w, r); err != nil {
		return err
	}
	if p.corrupt > 0 && len(r) > 0 {
		p.corrupt--
		r[len(r)-1] ^= 1
	}
	return nil
}

// String is the bus's name.
func (b *Bus) String() string { return b.name }

// SetSpeed accepts any speed: transfers take no time.
func (b *Bus) SetSpeed(physic.Frequency) error { return nil }

// Close does nothing: the bus belongs to the board, as the wires do, and can be
// opened again.
func (b *Bus) Close() error { return nil }

// latest is the end of the last conversion that is complete now, of a chip that
// since began converts every so often, each conversion taking took.
func latest(began time.Time, took, every time.Duration, now time.Time) (end time.Time, ok bool) {
	first := began.Add(took)
	if now.Before(first) {
		return time.Time{}, false
	}
	return first.Add(now.Sub(first) / every * every), true
}
