package sim

import (
	"math"
	"time"
)

// BH1750 is ROHM's ambient light sensor (BH1750FVI, Rev. D).
type BH1750 struct {
	air    Air
	on     bool
	mode   byte // the measuring instruction at work, 0 for none
	mtreg  int
	began  time.Time
	result uint16
}

// NewBH1750 returns a BH1750 in this light, powered down.
func NewBH1750(air Air) *BH1750 { return &BH1750{air: air, mtreg: 69} }

// PowerUp is the initial state: power down, 0000 in the data register (p. 5, p. 6).
func (c *BH1750) PowerUp() { *c = *NewBH1750(c.air) }

// Tx is a transaction of the chip. It takes one instruction in each write
// (p. 6), and none but those of p. 5.
func (c *BH1750) Tx(w, r []byte) error {
	now := time.Now()
	c.measure(now)
	if len(w) > 1 || len(w) == 1 && !c.instruct(w[0], now) {
		return ErrNACK
	}
	for n := copy(r, []byte{byte(c.result >> 8), byte(c.result)}); n < len(r); n++ {
		r[n] = 0xff // nobody drives the line
	}
	return nil
}

func (c *BH1750) instruct(op byte, now time.Time) bool {
	switch {
	case op == 0x00:
		c.on, c.mode = false, 0
	case op == 0x01:
		c.on = true
	case op == 0x07: // clears the data register; not while powered down
		if c.on {
			c.result = 0
		}
	case op == 0x10, op == 0x11, op == 0x13, op == 0x20, op == 0x21, op == 0x23:
		c.on, c.mode, c.began = true, op, now
	case op>>3 == 0x08: // MTreg bits 7..5
		c.mtreg = c.mtreg&0x1f | int(op&7)<<5
	case op>>5 == 0x03: // MTreg bits 4..0
		c.mtreg = c.mtreg&^0x1f | int(op&0x1f)
	default:
		return false
	}
	return true
}

// measure shows the last measurement that is complete: until then a read gives
// the one before.
func (c *BH1750) measure(now time.Time) {
	mode := c.mode
	if mode == 0 {
		return
	}
	mtreg := max(31, min(254, c.mtreg))     // p. 11
	took, fine := 180*time.Millisecond, 1.0 // longest time (p. 2)
	switch mode & 3 {
	case 1:
		fine = 2 // H-resolution mode 2: half the lux a count (p. 11)
	case 3:
		took = 24 * time.Millisecond
	}
	took = took * time.Duration(mtreg) / 69
	end, ok := latest(c.began, took, took, now)
	if !ok {
		return
	}
	if mode&0x20 != 0 { // one time: then powered down
		end = c.began.Add(took)
		c.on, c.mode = false, 0
	}
	counts := c.air(end).Illuminance * 1.2 * float64(mtreg) / 69 * fine
	if mode&3 == 3 {
		counts = math.Floor(counts/4) * 4 // about 4 lx (p. 5)
	}
	c.result = word(counts)
}
