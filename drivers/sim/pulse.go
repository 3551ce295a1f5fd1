package sim

import (
	"math"
	"time"
)

// pulsesPerLitre is that of a YF-S201 flow meter (7.5 Hz at 1 L/min).
const pulsesPerLitre = 450

// Pulses counts the pulses of the flow meter at the room's tap. A meter is a
// thing of our time, as a chip's conversion is: it gives the pulses of the
// room's flow of the moment, however fast the room's clock runs, so that the
// rate read from it stays the tap's. One call at a time.
type Pulses struct {
	room  *Room
	at    int64   // room time up to which it has counted
	count float64 // pulses since it was opened, the part of the next included
}

// Read is the number of pulses since the counter was opened, each one edge of a
// kind; none is ever lost. first and last are when, after the room began, the
// first and the last of those since the Read before came; both 0 if none did.
func (p *Pulses) Read() (edges, lost uint64, first, last time.Duration, err error) {
	now := p.room.Now().UnixMilli()
	for slot := div(p.at, tapSlot); slot <= div(now, tapSlot); slot++ {
		from, to, rate := tap(slot)
		from, to = max(from, p.at), min(to, now)
		if from >= to {
			continue
		}
		perMilli := rate / minute * pulsesPerLitre / p.room.speed // of the room's time
		was := p.count
		p.count += perMilli * float64(to-from)
		if math.Floor(p.count) == math.Floor(was) {
			continue
		}
		when := func(pulse float64) time.Duration {
			room := float64(from-p.room.start.UnixMilli()) + (pulse-was)/perMilli
			return time.Duration(room / p.room.speed * float64(time.Millisecond))
		}
		if first == 0 {
			first = when(math.Floor(was) + 1)
		}
		last = when(math.Floor(p.count))
	}
	p.at = max(p.at, now)
	return uint64(p.count), 0, first, last, nil
}

// Close ends the counting.
func (p *Pulses) Close() error { return nil }

// String is the line's name.
func (p *Pulses) String() string { return waterMeter }
