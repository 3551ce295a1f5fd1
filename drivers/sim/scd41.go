package sim

import (
	"encoding/binary"
	"math"
	"time"
)

// SCD41 is Sensirion's carbon dioxide sensor (SCD4x datasheet; the sections are
// those of version 1.3, September 2022, to which later versions added commands).
type SCD41 struct {
	sensirion
	air Air

	settings, stored scd41Settings // in use, and in the EEPROM
	pressure         float64       // Pa, given by E000; 0: the altitude's
	measuring        bool          // periodically
	asleep           bool
	began            time.Time     // of the periodic measurement
	every            time.Duration // 5 s or 30 s
	taken            time.Time     // the periodic sample that was read last
	sample           []byte        // of a single shot, waiting to be read
	used             bool          // has measured since power-up
	shift            float64       // ppm, by forced recalibration; kept by the chip itself
}

type scd41Settings struct {
	offset   uint16 // °C · 65535/175
	altitude uint16 // m
	asc      uint16
	initial  uint16 // hours, of ASC
	standard uint16
	target   uint16 // ppm, of ASC
}

// scd41Defaults are the factory settings: 4 °C, 0 m, ASC on, 44 h, 156 h, 400 ppm.
var scd41Defaults = scd41Settings{1498, 0, 1, 44, 156, 400}

// NewSCD41 returns an idle SCD41 in this air. It warms itself by as much as its
// temperature offset takes off by default, 4 °C.
func NewSCD41(air Air) *SCD41 {
	return &SCD41{air: air, settings: scd41Defaults, stored: scd41Defaults}
}

// PowerUp makes the chip idle with the settings of its EEPROM; it answers 30 ms
// later, the longest time any version gives.
func (c *SCD41) PowerUp() {
	*c = SCD41{air: c.air, settings: c.stored, stored: c.stored, shift: c.shift}
	c.busy = time.Now().Add(30 * time.Millisecond)
}

// Tx is a transaction of the chip.
func (c *SCD41) Tx(w, r []byte) error { return c.tx(w, r, c.command) }

// Commands (§3.4, table 9).
const (
	scd41Start       = 0x21b1
	scd41StartLow    = 0x21ac
	scd41Read        = 0xec05
	scd41Stop        = 0x3f86
	scd41SetOffset   = 0x241d
	scd41Offset      = 0x2318
	scd41SetAltitude = 0x2427
	scd41Altitude    = 0x2322
	scd41Pressure    = 0xe000 // set with a word, get without
	scd41FRC         = 0x362f
	scd41SetASC      = 0x2416
	scd41ASC         = 0x2313
	scd41SetTarget   = 0x243a
	scd41Target      = 0x233f
	scd41SetInitial  = 0x2445
	scd41Initial     = 0x2340
	scd41SetStandard = 0x244e
	scd41Standard    = 0x234b
	scd41Ready       = 0xe4b8
	scd41Persist     = 0x3615
	scd41Serial      = 0x3682
	scd41SelfTest    = 0x3639
	scd41Factory     = 0x3632
	scd41Reinit      = 0x3646
	scd41Variant     = 0x202f
	scd41Shot        = 0x219d
	scd41ShotRHT     = 0x2196
	scd41Sleep       = 0x36e0
	scd41Wake        = 0x36f6
)

func (c *SCD41) command(w []byte, now time.Time) error {
	if len(w) != 2 && len(w) != 5 {
		return ErrNACK
	}
	cmd := int(binary.BigEndian.Uint16(w))
	if c.asleep {
		if cmd == scd41Wake {
			c.asleep, c.busy = false, now.Add(30*time.Millisecond)
		}
		return ErrNACK // §3.10.4: not even wake_up is acknowledged
	}
	if c.measuring { // what table 9 allows then
		switch cmd {
		case scd41Read, scd41Stop, scd41Pressure, scd41Ready:
		default:
			return ErrNACK
		}
	}
	takes := time.Millisecond
	if len(w) == 5 {
		if crc8(w[2:4]) != w[4] {
			return ErrNACK
		}
		v := binary.BigEndian.Uint16(w[2:])
		switch cmd {
		case scd41SetOffset:
			c.settings.offset = v
		case scd41SetAltitude:
			c.settings.altitude = v
		case scd41SetASC:
			c.settings.asc = v
		case scd41SetTarget:
			c.settings.target = v
		case scd41SetInitial:
			c.settings.initial = v
		case scd41SetStandard:
			c.settings.standard = v
		case scd41Pressure: // in hPa; 700 to 1200 are allowed (§3.6.5)
			if v < 700 || v > 1200 {
				return ErrNACK
			}
			c.pressure = float64(v) * 100
		case scd41FRC: // §3.7.1: FFFF is refusal
			takes = 400 * time.Millisecond
			c.reply = crcWords(0xffff)
			if c.used {
				by := float64(v) - c.ppm(c.air(now))
				c.shift += by
				c.reply = crcWords(word(by + 0x8000))
			}
		default:
			return ErrNACK
		}
		c.busy = now.Add(takes)
		return nil
	}
	switch cmd {
	case scd41Start, scd41StartLow:
		c.measuring, c.began, c.every, takes = true, now, 5*time.Second, 0
		if cmd == scd41StartLow {
			c.every = 30 * time.Second
		}
		c.taken, c.sample, c.used = time.Time{}, nil, true
	case scd41Stop:
		c.measuring, takes = false, 500*time.Millisecond
	case scd41Read: // once; nothing to read is not acknowledged (§3.5.2)
		if c.measuring {
			if end, ok := c.fresh(now); ok {
				c.sample, c.taken = c.measure(end, true), end
			}
		}
		c.reply, c.sample = c.sample, nil
	case scd41Ready: // the 11 low bits are 0 while there is nothing (§3.8.2)
		_, ok := c.fresh(now)
		if c.measuring && ok || c.sample != nil {
			c.reply = crcWords(0x8006)
		} else {
			c.reply = crcWords(0x8000)
		}
	case scd41Shot, scd41ShotRHT:
		takes = 5 * time.Second
		if cmd == scd41ShotRHT {
			takes = 50 * time.Millisecond
		}
		c.sample, c.used = c.measure(now.Add(takes), cmd == scd41Shot), true
	case scd41Offset:
		c.reply = crcWords(c.settings.offset)
	case scd41Altitude:
		c.reply = crcWords(c.settings.altitude)
	case scd41ASC:
		c.reply = crcWords(c.settings.asc)
	case scd41Target:
		c.reply = crcWords(c.settings.target)
	case scd41Initial:
		c.reply = crcWords(c.settings.initial)
	case scd41Standard:
		c.reply = crcWords(c.settings.standard)
	case scd41Pressure:
		c.reply = crcWords(word(c.assumed() / 100))
	case scd41Serial:
		c.reply = crcWords(0xf896, 0x9f07, 0x3bbe) // the datasheet's example (§3.9.2)
	case scd41Variant: // bits 15..12 = 1: SCD41
		c.reply = crcWords(0x1440)
	case scd41SelfTest: // 0: no fault
		c.reply, takes = crcWords(0), 10*time.Second
	case scd41Persist:
		c.stored, takes = c.settings, 800*time.Millisecond
	case scd41Factory:
		c.settings, c.stored, c.shift, takes = scd41Defaults, scd41Defaults, 0, 1200*time.Millisecond
	case scd41Reinit:
		c.settings, c.pressure, takes = c.stored, 0, 30*time.Millisecond
	case scd41Sleep:
		c.asleep = true
	case scd41Wake: // awake already
	default:
		return ErrNACK
	}
	c.busy = now.Add(takes)
	return nil
}

// fresh is the end of the last periodic sample, if it was not read yet.
func (c *SCD41) fresh(now time.Time) (end time.Time, ok bool) {
	if !c.measuring {
		return time.Time{}, false
	}
	end, ok = latest(c.began, c.every, c.every, now)
	return end, ok && end.After(c.taken)
}

// measure is the reply of a measurement that ends then (§3.5.2, the other way
// round).
func (c *SCD41) measure(end time.Time, co2 bool) []byte {
	air := c.air(end)
	degrees := 4 - float64(c.settings.offset)*175/65535
	ppm := uint16(0)
	if co2 {
		ppm = word(c.ppm(air))
	}
	return crcWords(ppm, word((air.Temperature+degrees+45)/175*65535), word(warmer(air, degrees)/100*65535))
}

// ppm is what the chip makes of the carbon dioxide: it sees molecules, so a
// pressure it does not know shifts the ratio.
func (c *SCD41) ppm(air Conditions) float64 {
	return air.CO2*air.Pressure/c.assumed() + c.shift
}

// assumed is the pressure the chip reckons with, in Pa: the one it was told, or
// that of the standard atmosphere at its altitude.
func (c *SCD41) assumed() float64 {
	if c.pressure > 0 {
		return c.pressure
	}
	return 101325 * math.Pow(1-2.25577e-5*min(float64(c.settings.altitude), 3000), 5.25588)
}
