package sim

import (
	"math"
	"time"
)

// TMP102 is TI's thermometer (SBOS397), or one of its kin with the same
// registers: TMP105 (SLLS648), LM75.
type TMP102 struct {
	kind  tmpKind
	words words
	air   Air
	began time.Time // of the single conversion, or of the continuous mode
	shot  bool      // a single conversion is running
	alert bool
}

type tmpKind int

const (
	tmp102 tmpKind = iota
	tmp105
	lm75
)

// Registers (§7.5.1).
const (
	tmpTemperature = iota
	tmpConfig
	tmpLow
	tmpHigh
)

// NewTMP102 returns a TMP102 in this air.
func NewTMP102(air Air) *TMP102 { return newTMP(tmp102, air) }

// NewTMP105 returns a TMP105, which begins with 9 bits.
func NewTMP105(air Air) *TMP102 { return newTMP(tmp105, air) }

// NewLM75 returns an LM75: always 9 bits, and no one-shot.
func NewLM75(air Air) *TMP102 { return newTMP(lm75, air) }

func newTMP(kind tmpKind, air Air) *TMP102 {
	c := &TMP102{kind: kind, air: air}
	c.PowerUp()
	c.began = c.began.Add(-time.Minute) // long ago
	return c
}

// PowerUp is the reset state (§7.5.3): converting, 0 °C until the first
// conversion is complete, limits at 75 and 80 °C.
func (c *TMP102) PowerUp() {
	c.words = words{regs: [4]uint16{0, 0, 0x4b00, 0x5000}}
	if c.kind == tmp102 {
		c.words.regs[tmpConfig] = 0x60a0
	}
	c.words.bytes[tmpConfig] = c.kind != tmp102
	c.began, c.shot, c.alert = time.Now(), false, false
}

// Configuration bits (§7.5.3).
const (
	tmpOS       = 0x8000
	tmpR        = 0x6000 // TMP102: always 1s
	tmpPOL      = 0x0400
	tmpShutdown = 0x0100
	tmpCR       = 0x00c0
	tmpAL       = 0x0020
	tmpEM       = 0x0010
)

// Tx is a transaction of the chip.
func (c *TMP102) Tx(w, r []byte) error {
	now := time.Now()
	c.convert(now)
	return c.words.tx(w, r, func(at byte, v, mask uint16) {
		switch at {
		case tmpTemperature: // read only
		case tmpConfig:
			c.configure(v, mask, now)
		default:
			c.words.set(at, v, mask)
		}
	})
}

func (c *TMP102) configure(v, mask uint16, now time.Time) {
	was := c.words.regs[tmpConfig]
	writable := uint16(0x1f00) // LM75: fault queue, polarity, mode, shutdown
	switch c.kind {
	case tmp102:
		writable |= tmpCR | tmpEM
	case tmp105:
		writable |= tmpR
	}
	c.words.set(tmpConfig, v, mask&writable)
	is := c.words.regs[tmpConfig]
	switch {
	case is&tmpShutdown == 0 && (was^is)&(tmpShutdown|tmpR|tmpEM) != 0:
		c.began, c.shot = now, false // the register keeps the old result until the next
	case is&tmpShutdown != 0 && was&tmpShutdown == 0:
		c.began, c.shot = now, true // the running conversion is completed (§7.4.3)
	case is&tmpShutdown != 0 && v&mask&tmpOS != 0 && c.kind != lm75 && !c.shot:
		c.began, c.shot = now, true
	}
	c.flags()
}

// flags sets the read-only bits of the TMP102's configuration: OS, which is 1
// when a single conversion is complete, and AL. The TMP105's OS reads 0.
func (c *TMP102) flags() {
	if c.kind != tmp102 {
		return
	}
	config := c.words.regs[tmpConfig] &^ (tmpOS | tmpAL)
	if config&tmpShutdown != 0 && !c.shot {
		config |= tmpOS
	}
	if c.alert == (config&tmpPOL != 0) {
		config |= tmpAL
	}
	c.words.regs[tmpConfig] = config
}

// convert shows the last conversion that is complete.
func (c *TMP102) convert(now time.Time) {
	config := c.words.regs[tmpConfig]
	if config&tmpShutdown != 0 && !c.shot {
		return
	}
	var took, every time.Duration
	bits := 9
	switch c.kind {
	case tmp102: // §6.5: 35 ms at most; §7.5.3.9
		bits = 12
		took = 35 * time.Millisecond
		every = [4]time.Duration{4 * time.Second, time.Second, time.Second / 4, time.Second / 8}[config&tmpCR>>6]
	case tmp105: // 27.5 ms at 9 bits, twice that for each further one (typical)
		n := int(config & tmpR >> 13)
		bits += n
		took = 27500 * time.Microsecond << n
		every = took
	case lm75:
		took = 100 * time.Millisecond
		every = took
	}
	end, ok := latest(c.began, took, every, now)
	if !ok {
		return
	}
	if c.shot {
		end, c.shot = c.began.Add(took), false
	}
	celsius := c.air(end).Temperature
	// All of them count from 2^-8 °C down; those that resolve less leave 0s. The
	// extended format of the TMP102 has half the scale and says so by bit 0
	// (§7.5.2).
	limit := func(at int) float64 { return float64(int16(c.words.regs[at])) / 256 }
	scale, low := 256.0, uint16(0)
	if c.kind == tmp102 && config&tmpEM != 0 {
		bits, scale, low = 13, 128, 1
		limit = func(at int) float64 { return float64(int16(c.words.regs[at])) / 128 }
	}
	step := float64(int(1) << (16 - bits))
	x := max(-32768/step, min(32767/step, math.Round(celsius*scale/step)))
	c.words.regs[tmpTemperature] = uint16(int16(math.Floor(x)*step)) | low
	c.alert = celsius >= limit(tmpHigh) || c.alert && celsius >= limit(tmpLow)
	c.flags()
}
