package sim

import (
	"encoding/hex"
	"time"
)

// DPS310 is Infineon's pressure and temperature sensor (DPS310 datasheet, V1.2).
// Its FIFO and interrupts are not simulated: they stay empty.
type DPS310 struct {
	regs Registers
	air  Air

	coefficients [18]byte
	powered      time.Time // last power-up or reset; zero: long ago
	began        time.Time // of the measurement or mode
	shown        time.Time // end of the last one in the registers
	ctrl         byte      // MEAS_CTRL
	ready        byte      // TMP_RDY, PRS_RDY
}

// dps310Coefficients are those of a real chip's kind: 12, 12, 20, 20 and five
// times 16 bits (§7.11).
const dps310Coefficients = "0d2f0113c68f2f04f5740578dcd8ffcefbb4"

// Registers (§7).
const (
	dpsPressure    = 0x00
	dpsTemperature = 0x03
	dpsPrsCfg      = 0x06
	dpsTmpCfg      = 0x07
	dpsMeasCfg     = 0x08
	dpsCfgReg      = 0x09
	dpsFIFOStatus  = 0x0b
	dpsReset       = 0x0c
	dpsID          = 0x0d
	dpsCoef        = 0x10
	dpsCoefSource  = 0x28

	dpsCoefReady, dpsSensorReady, dpsTmpReady, dpsPrsReady = 1 << 7, 1 << 6, 1 << 5, 1 << 4 // MEAS_CFG
	dpsTShift, dpsPShift                                   = 1 << 3, 1 << 2                 // CFG_REG
)

// NewDPS310 returns a DPS310 in this air.
func NewDPS310(air Air) *DPS310 {
	c := &DPS310{air: air}
	hex.Decode(c.coefficients[:], []byte(dps310Coefficients))
	c.regs.Before = func() { c.advance(time.Now()) }
	c.regs.Write = c.write
	c.regs.After = c.read
	c.PowerUp()
	c.powered = time.Time{}
	return c
}

// PowerUp resets the registers. The sensor is ready after 12 ms, the
// coefficients can be read after 40 ms (§3.5, table 5).
func (c *DPS310) PowerUp() {
	c.powered = time.Now()
	c.ctrl, c.ready, c.shown = 0, 0, time.Time{}
	c.regs.Bytes = [256]byte{
		dpsPressure: 0x80, dpsTemperature: 0x80,
		dpsFIFOStatus: 1, // empty
		dpsID:         0x10,
		dpsCoefSource: 0x80, // the coefficients are for the external sensor
	}
}

// Tx is a transaction of the chip.
func (c *DPS310) Tx(w, r []byte) error { return c.regs.Tx(w, r) }

func (c *DPS310) write(at, v byte) {
	switch at {
	case dpsPrsCfg:
		c.regs.Bytes[at] = v & 0x7f
	case dpsTmpCfg, dpsCfgReg:
		c.regs.Bytes[at] = v
	case dpsMeasCfg:
		c.ctrl, c.began, c.shown = v&7, time.Now(), time.Time{}
	case dpsReset:
		if v&0xf == 9 {
			c.PowerUp()
		}
	}
}

// read clears a ready flag when the last byte of its result was read.
func (c *DPS310) read(at byte) {
	switch at {
	case dpsPressure + 2:
		c.ready &^= dpsPrsReady
	case dpsTemperature + 2:
		c.ready &^= dpsTmpReady
	}
}

// dpsTook is the time of a measurement of 2^code samples (§7.3, table 16).
func dpsTook(code byte) time.Duration {
	us := [8]time.Duration{3600, 5200, 8400, 14800, 27600, 53200, 104400, 206800}
	return us[code&7] * time.Microsecond
}

// advance brings the registers up to now.
func (c *DPS310) advance(now time.Time) {
	p, t := c.regs.Bytes[dpsPrsCfg], c.regs.Bytes[dpsTmpCfg]
	var took, every time.Duration
	pressure, temperature := c.ctrl&1 != 0, c.ctrl&2 != 0
	if pressure {
		took += dpsTook(p)
		every = max(every, time.Second>>(p>>4&7)) // measurements a second (§7.3)
	}
	if temperature {
		took += dpsTook(t)
		every = max(every, time.Second>>(t>>4&7))
	}
	if c.ctrl&3 == 3 && c.ctrl < 4 || !pressure && !temperature {
		took = 0 // 3 is reserved; 0 and 4 are standby
	}
	if end, ok := latest(c.began, took, max(every, took, 1), now); ok && took > 0 {
		if c.ctrl < 4 { // one measurement, then standby (§4.2)
			end, c.ctrl = c.began.Add(took), 0
		}
		if end.After(c.shown) {
			c.shown = end
			c.show(end, pressure, temperature)
		}
	}
	c.status(now)
}

// status fills in MEAS_CFG and, as soon as they can be read, the coefficients.
func (c *DPS310) status(now time.Time) {
	v := c.ctrl | c.ready
	if now.Sub(c.powered) >= 12*time.Millisecond {
		v |= dpsSensorReady
	}
	if now.Sub(c.powered) >= 40*time.Millisecond {
		v |= dpsCoefReady
		copy(c.regs.Bytes[dpsCoef:], c.coefficients[:])
	}
	c.regs.Bytes[dpsMeasCfg] = v
}

// dpsScale is kP or kT by the code of the oversampling (§4.9.1, table 9).
var dpsScale = [8]int{524288, 1572864, 3670016, 7864320, 253952, 516096, 1040384, 2088960}

// show puts a measurement's words into the data registers: those from which the
// formulas of §4.9 give the air's values back.
func (c *DPS310) show(end time.Time, pressure, temperature bool) {
	air, k := c.air(end), c.polynomial()
	code := c.regs.Bytes[dpsTmpCfg] & 7
	// The scaled temperature enters the pressure too, as the driver will know it.
	raw := invert(func(x int) float64 { return k.celsius(float64(x) / float64(dpsScale[code])) }, air.Temperature, -dpsScale[code], dpsScale[code])
	scaled := float64(raw) / float64(dpsScale[code])
	if temperature {
		if (c.regs.Bytes[dpsTmpCfg]^c.regs.Bytes[dpsCoefSource])&0x80 != 0 {
			raw -= dpsScale[code] / 20 // the other sensor, for which these coefficients are wrong (§7.4)
		}
		c.put(dpsTemperature, raw, code, dpsTShift)
		c.ready |= dpsTmpReady
	}
	if pressure {
		code := c.regs.Bytes[dpsPrsCfg] & 7
		raw := invert(func(x int) float64 { return k.pascal(float64(x)/float64(dpsScale[code]), scaled) }, air.Pressure, -dpsScale[code], dpsScale[code])
		c.put(dpsPressure, raw, code, dpsPShift)
		c.ready |= dpsPrsReady
	}
}

// put stores a result of 24 bits. Above eight samples the sum has more, and
// must be shifted (§7.7): without that bit the top is lost.
func (c *DPS310) put(at, raw int, code, shift byte) {
	switch shifted := c.regs.Bytes[dpsCfgReg]&shift != 0; {
	case code > 3 && !shifted:
		raw <<= 5
	case code <= 3 && shifted:
		raw >>= 5
	}
	b := c.regs.Bytes[at:]
	b[0], b[1], b[2] = byte(raw>>16), byte(raw>>8), byte(raw)
}

// dpsPolynomial are the coefficients as numbers.
type dpsPolynomial struct {
	c0, c1, c00, c10, c01, c11, c20, c21, c30 float64
}

func (c *DPS310) polynomial() dpsPolynomial {
	at := 0 // in half bytes
	next := func(bits int) float64 {
		v := 0
		for range bits / 4 {
			v = v<<4 | int(c.coefficients[at/2]>>(4-at%2*4)&0xf)
			at++
		}
		if v >= 1<<(bits-1) {
			v -= 1 << bits
		}
		return float64(v)
	}
	return dpsPolynomial{c0: next(12), c1: next(12), c00: next(20), c10: next(20), c01: next(16), c11: next(16), c20: next(16), c21: next(16), c30: next(16)}
}

// celsius is §4.9.2, pascal §4.9.1, of scaled results.
func (k *dpsPolynomial) celsius(t float64) float64 { return k.c0/2 + k.c1*t }

func (k *dpsPolynomial) pascal(p, t float64) float64 {
	return k.c00 + p*(k.c10+p*(k.c20+p*k.c30)) + t*k.c01 + t*p*(k.c11+p*k.c21)
}
