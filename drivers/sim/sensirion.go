package sim

import (
	"encoding/binary"
	"math"
	"time"
)

// sensirion is what the chips of that maker have in common: a command, the time
// it takes, in which nothing is acknowledged, and then, for once, its reply.
type sensirion struct {
	busy  time.Time // not acknowledged before
	reply []byte    // nil: nothing to read
}

// tx does a transaction; command acts on what was written.
func (s *sensirion) tx(w, r []byte, command func(w []byte, now time.Time) error) error {
	now := time.Now()
	if now.Before(s.busy) {
		return ErrNACK
	}
	if len(w) > 0 {
		s.reply = nil // of the command before
		if err := command(w, now); err != nil {
			return err
		}
	}
	if len(r) == 0 {
		return nil
	}
	if now.Before(s.busy) || s.reply == nil {
		return ErrNACK
	}
	for n := copy(r, s.reply); n < len(r); n++ {
		r[n] = 0xff // nobody drives the line
	}
	s.reply = nil
	return nil
}

// crcWords puts each word's checksum after it, as all of them send it.
func crcWords(words ...uint16) []byte {
	b := make([]byte, 0, 3*len(words))
	for _, w := range words {
		b = binary.BigEndian.AppendUint16(b, w)
		b = append(b, crc8(b[len(b)-2:]))
	}
	return b
}

// crc8 is that of SHT4x §4.4 and SCD4x §3.12: polynomial 31, from FF.
func crc8(b []byte) byte {
	crc := byte(0xff)
	for _, v := range b {
		crc ^= v
		for range 8 {
			if crc&0x80 != 0 {
				crc = crc<<1 ^ 0x31
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}

// word is x as a 16 bit word, at the ends of its range if it is beyond.
func word(x float64) uint16 { return uint16(max(0, min(65535, math.Round(x)))) }

// warmer is the air's relative humidity, in %, at a place that is by degrees
// warmer: its vapour is the same.
func warmer(air Conditions, degrees float64) float64 {
	return air.Humidity * saturation(air.Temperature) / saturation(air.Temperature+degrees)
}
