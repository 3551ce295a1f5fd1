package gateway

import (
	"cmp"
	"math"
	"time"
)

// Tuned is what a Forwarder has found out about its broker: how many readings it
// takes at once, and how many Sends side by side make it faster. Zero: nothing.
type Tuned struct {
	Batch int `json:"batch"`
	Lanes int `json:"lanes"` // while draining
}

const (
	firstBatch = 50 // where tuning begins
	leastBatch = 5  // so many of each of 10,000 gateways queue at a broker; of 1 Orion takes 1,700 a second, of 10 2,600
	batchStep  = 10 // additive increase, a full Send in time; of a small batch a quarter: from 80 % of target to all of it

	trialWindow = 2 * time.Second // at least, to compare one number of lanes with another
	trialGain   = 1.1             // by which the broker has to be faster with one more
	firstHold   = 30 * time.Second
	longestHold = 10 * time.Minute
)

// tuner finds the size of a batch by additive increase and multiplicative
// decrease, so that a Send takes no longer than target; and while draining the
// number of lanes, by trying one more. One set of constants suits all brokers: see
// TestTunerFindsTheCapacity.
type tuner struct {
	target    time.Duration // negative: nothing is tuned
	most      int           // of batch
	mostLanes int
	batch     float64
	lanes     int
	latency   time.Duration // of a Send, smoothed
	loaded    bool          // by others: it is slow, however little we send
	since     time.Time     // of the window; zero: none
	sent      int           // in the window
	sends     int
	began     float64 // batch, then
	trying    bool    // the last lane
	before    float64 // readings per second, without it
	hold      time.Duration
	notBefore time.Time // no trial
}

func newTuner(target time.Duration, most, lanes int, t Tuned) tuner {
	u := tuner{target: target, most: most, mostLanes: lanes, batch: float64(most), lanes: lanes, hold: firstHold}
	if target > 0 {
		u.batch = math.Min(math.Max(float64(cmp.Or(t.Batch, firstBatch)), u.least()), float64(most))
		u.lanes = min(lanes, max(t.Lanes, 1))
	}
	return u
}

// least is how small a batch is made.
func (t *tuner) least() float64 { return float64(min(leastBatch, t.most)) }

// size is how many readings a Send takes.
func (t *tuner) size() int { return max(1, int(t.batch)) }

// landed learns from a Send of n readings that went well.
func (t *tuner) landed(n int, took time.Duration) {
	if t.latency == 0 {
		t.latency = took
	}
	t.latency += (took - t.latency) / 8
	if t.target < 0 {
		return
	}
	switch {
	case took > t.target:
		t.loaded = n <= leastBatch
		shrunk := math.Max(float64(n), t.batch) * 0.9 * float64(t.target) / float64(took) // n: it began before the last decrease
		t.batch = math.Max(math.Min(t.batch, math.Max(shrunk, t.batch/4)), t.least())
	case n >= t.size():
		t.loaded = false
		if took < t.target*8/10 {
			t.batch = math.Min(t.batch+math.Min(batchStep, t.batch/4), float64(t.most))
		}
	default:
		t.loaded = false
	}
}

// failed learns from a Send that took so long and failed, or of which the broker said
// that it cannot or asks for a pause.
func (t *tuner) failed(took time.Duration, asked bool) {
	if t.target < 0 || !asked && took < 2*t.target {
		return
	}
	t.loaded = asked
	t.batch = math.Max(t.batch/2, t.least())
	t.restart()
}

// restart begins a new window: what was measured says nothing any more.
func (t *tuner) restart() {
	if t.trying {
		t.trying = false
		t.lanes--
	}
	t.since = time.Time{}
}

// drained counts readings sent while draining, and reports whether the number of
// lanes is to change: to more lanes if one more has not been tried for a while, back
// if it did not help.
func (t *tuner) drained(n int, now time.Time) (changed bool) {
	if t.target < 0 || t.mostLanes == 1 {
		return false
	}
	if t.since.IsZero() {
		t.since, t.sent, t.sends, t.began = now, 0, 0, t.batch // the first one began before
		return false
	}
	t.sent += n
	t.sends++
	passed := now.Sub(t.since)
	if passed < trialWindow || t.sends < 4*t.lanes {
		return false
	}
	rate := float64(t.sent) / passed.Seconds()
	steady := math.Abs(t.batch-t.began) <= 0.2*t.began
	t.since = time.Time{}
	switch {
	case t.loaded: // the decrease goes on with the lanes
		t.trying = false
		if t.lanes == 1 {
			return false
		}
		t.lanes /= 2
		t.notBefore = now.Add(t.hold)
		return true
	case t.trying && rate < t.before*trialGain:
		t.trying = false
		t.share(t.lanes, t.lanes-1)
		t.notBefore = now.Add(t.hold)
		t.hold = min(2*t.hold, longestHold)
		return true
	case t.trying:
		t.trying, t.hold = false, firstHold
		fallthrough
	case steady && t.lanes < t.mostLanes && !now.Before(t.notBefore):
		if t.lanes == t.mostLanes {
			return false
		}
		t.trying, t.before = true, rate
		t.share(t.lanes, t.lanes+1)
		return true
	}
	return false
}

// share has the lanes share what one had at the broker at a time.
func (t *tuner) share(was, lanes int) {
	t.lanes = lanes
	t.batch = math.Max(math.Min(t.batch*float64(was)/float64(lanes), float64(t.most)), t.least())
}
