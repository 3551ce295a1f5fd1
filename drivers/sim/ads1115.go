package sim

import (
	"math"
	"time"
)

// Volts is the voltage at an analog input by our time.
type Volts func(real time.Time) float64

// ADS1115 is TI's 16 bit converter of four inputs (SBAS444). Its comparator is
// not simulated: the thresholds are kept and nothing more.
type ADS1115 struct {
	words  words
	inputs [4]Volts
	began  time.Time // of the single conversion, or of the continuous mode
	single bool      // a single conversion is running
}

// Registers (§9.6).
const (
	adsConversion = iota
	adsConfig
	adsLow
	adsHigh
)

// NewADS1115 returns an ADS1115 with these inputs; nil is ground.
func NewADS1115(inputs [4]Volts) *ADS1115 {
	c := &ADS1115{inputs: inputs}
	c.PowerUp()
	return c
}

// PowerUp is the reset state (§9.6): powered down, AIN0 against AIN1, ±2.048 V,
// 128 samples a second.
func (c *ADS1115) PowerUp() {
	c.words = words{regs: [4]uint16{0, 0x8583, 0x8000, 0x7fff}}
	c.single = false
}

// Tx is a transaction of the chip.
func (c *ADS1115) Tx(w, r []byte) error {
	now := time.Now()
	c.convert(now)
	return c.words.tx(w, r, func(at byte, v, mask uint16) {
		if at == adsConversion { // read only
			return
		}
		c.words.set(at, v, mask)
		if at != adsConfig {
			return
		}
		switch {
		case !c.powerDown():
			c.began, c.single = now, false
		case v&mask&0x8000 != 0 && !c.single: // OS; has no effect during a conversion
			c.began, c.single = now, true
		}
		c.os()
	})
}

func (c *ADS1115) powerDown() bool { return c.words.regs[adsConfig]&0x0100 != 0 }

// os sets the bit that says 0 during a conversion.
func (c *ADS1115) os() {
	c.words.regs[adsConfig] |= 0x8000
	if c.single || !c.powerDown() {
		c.words.regs[adsConfig] &^= 0x8000
	}
}

// convert shows the last conversion that is complete. One takes as long as the
// data rate says, by a clock that is off by 10 % at most (§7.5).
func (c *ADS1115) convert(now time.Time) {
	if !c.single && c.powerDown() {
		return
	}
	config := c.words.regs[adsConfig]
	rate := [8]time.Duration{8, 16, 32, 64, 128, 250, 475, 860}[config>>5&7]
	took := time.Second * 11 / 10 / rate
	end, ok := latest(c.began, took, took, now)
	if !ok {
		return
	}
	if c.single {
		end = c.began.Add(took)
		c.single = false
		c.os()
	}
	at := func(i int) float64 {
		if c.inputs[i] == nil {
			return 0
		}
		return c.inputs[i](end)
	}
	mux := [8][2]int{{0, 1}, {0, 3}, {1, 3}, {2, 3}, {0, -1}, {1, -1}, {2, -1}, {3, -1}}[config>>12&7]
	v := at(mux[0])
	if mux[1] >= 0 {
		v -= at(mux[1])
	}
	scale := [8]float64{6.144, 4.096, 2.048, 1.024, 0.512, 0.256, 0.256, 0.256}[config>>9&7]
	c.words.regs[adsConversion] = uint16(int16(max(-32768, min(32767, math.Round(v/scale*32768)))))
}

// words are four 16 bit registers behind a pointer of two bits, as TI's
// converters and thermometers have them.
type words struct {
	regs    [4]uint16
	pointer byte
	bytes   [4]bool // registers that are one byte wide
}

// tx does a transaction; store takes what is written to a register, in the bits
// of mask: a write may end after the first byte.
func (x *words) tx(w, r []byte, store func(at byte, v, mask uint16)) error {
	if len(w) > 0 {
		x.pointer = w[0] & 3
	}
	if n := len(w) - 1; n == 1 || n > 0 && x.bytes[x.pointer] {
		store(x.pointer, uint16(w[1])<<8, 0xff00)
	} else if n > 1 {
		store(x.pointer, uint16(w[1])<<8|uint16(w[2]), 0xffff)
	}
	v := x.regs[x.pointer]
	for i := range r {
		switch {
		case i == 0:
			r[i] = byte(v >> 8)
		case i == 1 && !x.bytes[x.pointer]:
			r[i] = byte(v)
		default:
			r[i] = 0xff // nobody drives the line
		}
	}
	return nil
}

func (x *words) set(at byte, v, mask uint16) { x.regs[at] = x.regs[at]&^mask | v&mask }
