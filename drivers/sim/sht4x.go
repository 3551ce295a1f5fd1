package sim

import "time"

// SHT4x is Sensirion's humidity and temperature sensor (SHT4x datasheet,
// version 6).
type SHT4x struct {
	sensirion
	air Air
}

// NewSHT4x returns an SHT4x in this air.
func NewSHT4x(air Air) *SHT4x { return &SHT4x{air: air} }

// PowerUp forgets a measurement; 1 ms later the chip answers (§3.1).
func (c *SHT4x) PowerUp() { c.sensirion = sensirion{busy: time.Now().Add(time.Millisecond)} }

// Tx is a transaction of the chip.
func (c *SHT4x) Tx(w, r []byte) error { return c.tx(w, r, c.command) }

// sht4xMeasure are the measuring commands (§4.5), with their longest times
// (§3.1) and what the heater (§4.9), if it is used, adds to the temperature.
var sht4xMeasure = map[byte]struct {
	takes  time.Duration
	heater float64 // °C
}{
	0xfd: {8300 * time.Microsecond, 0},
	0xf6: {4500 * time.Microsecond, 0},
	0xe0: {1600 * time.Microsecond, 0},
	0x39: {1100 * time.Millisecond, 60}, // 200 mW
	0x32: {110 * time.Millisecond, 20},
	0x2f: {1100 * time.Millisecond, 33}, // 110 mW
	0x24: {110 * time.Millisecond, 11},
	0x1e: {1100 * time.Millisecond, 6}, // 20 mW
	0x15: {110 * time.Millisecond, 2},
}

func (c *SHT4x) command(w []byte, now time.Time) error {
	if len(w) != 1 {
		return ErrNACK
	}
	if m, ok := sht4xMeasure[w[0]]; ok {
		c.busy = now.Add(m.takes)
		air := c.air(c.busy)
		// §4.6, the other way round.
		c.reply = crcWords(word((air.Temperature+m.heater+45)/175*65535), word((warmer(air, m.heater)+6)/125*65535))
		return nil
	}
	switch w[0] {
	case 0x89: // serial number
		c.reply = crcWords(0x0f4e, 0x51a7)
	case 0x94: // soft reset
		c.PowerUp()
	default:
		return ErrNACK
	}
	return nil
}
