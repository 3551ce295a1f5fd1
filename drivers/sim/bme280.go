package sim

import (
	"encoding/hex"
	"math"
	"time"
)

// BME280 is Bosch's humidity, pressure and temperature sensor
// (BST-BME280-DS002), or its sister without humidity, the BMP280
// (BST-BMP280-DS001).
//
// The IIR filter only widens the result to 20 bits here: the room changes more
// slowly than it could smooth.
type BME280 struct {
	regs     Registers
	air      Air
	humidity bool     // BME280
	calib00  [26]byte // 88..A1
	calib26  [7]byte  // E1..E7

	powered  time.Time // last power-up or reset; zero: long ago
	began    time.Time // of the mode, or of the forced measurement
	active   [3]byte   // osrs_t, osrs_p, osrs_h: those that ctrl_meas made effective
	mode     byte
	pending  bool // a write to ctrl_meas that waits for the running measurement
	next     byte
	nextFrom time.Time
}

// Calibration words as such chips hold them: those of the datasheet's example
// (BST-BMP280-DS001 §3.12) with the humidity words of a real one. §4.2.2 says
// what stands where.
const (
	bme280Calib00 = "706b436718fc7d8e43d6d00b270b8c00f9ff8c3cf8c67017004b" // 88..A1
	bme280Calib26 = "6a01001329031e"                                       // E1..E7
)

// Registers (§5.3).
const (
	bmeCalib00  = 0x88
	bmeH1       = 0xa1
	bmeID       = 0xd0
	bmeReset    = 0xe0
	bmeCalib26  = 0xe1
	bmeCtrlHum  = 0xf2
	bmeStatus   = 0xf3
	bmeCtrlMeas = 0xf4
	bmeConfig   = 0xf5
	bmePress    = 0xf7
	bmeTemp     = 0xfa
	bmeHum      = 0xfd

	bmeSleep, bmeForced, bmeNormal = 0, 1, 3 // §3.3; 2 is forced too
)

// NewBME280 returns a BME280 in this air.
func NewBME280(air Air) *BME280 { return newBME280(air, true) }

// NewBMP280 returns a BMP280 in this air: id 58, no humidity.
func NewBMP280(air Air) *BME280 { return newBME280(air, false) }

func newBME280(air Air, humidity bool) *BME280 {
	c := &BME280{air: air, humidity: humidity}
	c.regs.Pairs = true // §6.2.1
	c.regs.Before = func() { c.advance(time.Now()) }
	c.regs.Write = c.write
	c.calibrate(bme280Calib00, bme280Calib26)
	c.PowerUp()
	c.powered = time.Time{}
	return c
}

// calibrate sets the words of 88..A1 and E1..E7, given in hexadecimal.
func (c *BME280) calibrate(calib00, calib26 string) {
	hex.Decode(c.calib00[:], []byte(calib00))
	hex.Decode(c.calib26[:], []byte(calib26))
}

// Tx is a transaction of the chip.
func (c *BME280) Tx(w, r []byte) error { return c.regs.Tx(w, r) }

// PowerUp resets the registers (§5.3, table 18). For 2 ms (§1, t_startup) the
// chip copies its calibration and says so by im_update.
func (c *BME280) PowerUp() {
	c.powered = time.Now()
	c.mode, c.pending, c.active = bmeSleep, false, [3]byte{}
	c.regs.Bytes = [256]byte{bmeID: 0x58}
	copy(c.regs.Bytes[bmePress:], []byte{0x80, 0, 0, 0x80, 0, 0})
	if c.humidity {
		c.regs.Bytes[bmeID] = 0x60
		c.regs.Bytes[bmeHum] = 0x80
	}
}

func (c *BME280) write(at, v byte) {
	switch {
	case at == bmeReset && v == 0xb6: // §5.4.2; other values do nothing
		c.PowerUp()
	case at == bmeCtrlHum && c.humidity:
		c.regs.Bytes[at] = v & 7
	case at == bmeConfig:
		c.regs.Bytes[at] = v
	case at == bmeCtrlMeas && c.pending:
		// §3.3.1: ignored until the change that waits has been made.
	case at == bmeCtrlMeas:
		now := time.Now()
		if end := c.measuringUntil(now); now.Before(end) {
			c.pending, c.next, c.nextFrom = true, v, end
			return
		}
		c.start(v, now)
	}
}

// start makes ctrl_meas, and with it ctrl_hum (§5.4.3), effective.
func (c *BME280) start(v byte, from time.Time) {
	c.regs.Bytes[bmeCtrlMeas] = v
	c.active = [3]byte{v >> 5, v >> 2 & 7, c.regs.Bytes[bmeCtrlHum]}
	c.mode, c.began = v&3, from
	if c.mode == 2 {
		c.mode = bmeForced
	}
}

// took is the longest time of a measurement (§9.1).
func (c *BME280) took() time.Duration {
	us := 1250
	for i, osrs := range c.active {
		if n := oversampling(osrs); n > 0 {
			us += 2300 * n
			if i > 0 {
				us += 575
			}
		}
	}
	return time.Duration(us) * time.Microsecond
}

// oversampling decodes osrs_x (§5.4.3): 0 means skipped.
func oversampling(osrs byte) int { return [8]int{0, 1, 2, 4, 8, 16, 16, 16}[osrs] }

// every is the period of normal mode: a measurement and the standby time
// (§5.4.6; BMP280 §4.3.6, where the last two differ).
func (c *BME280) every() time.Duration {
	standby := [8]time.Duration{500, 62500, 125000, 250000, 500000, 1000000, 10000, 20000}
	if !c.humidity {
		standby[6], standby[7] = 2000000, 4000000
	}
	return c.took() + standby[c.regs.Bytes[bmeConfig]>>5]*time.Microsecond
}

// measuringUntil is the end of the running measurement: not after now if none runs.
func (c *BME280) measuringUntil(now time.Time) time.Time {
	switch c.mode {
	case bmeForced:
		return c.began.Add(c.took())
	case bmeNormal:
		return c.began.Add(now.Sub(c.began) / c.every() * c.every()).Add(c.took())
	}
	return time.Time{}
}

// advance brings the registers up to now.
func (c *BME280) advance(now time.Time) {
	if c.pending && !now.Before(c.nextFrom) {
		c.measure(c.nextFrom)
		c.pending = false
		c.start(c.next, c.nextFrom)
	}
	c.measure(now)
	c.regs.Bytes[bmeStatus] = 0
	if now.Before(c.measuringUntil(now)) {
		c.regs.Bytes[bmeStatus] = 1 << 3
	}
	if now.Sub(c.powered) < 2*time.Millisecond {
		c.regs.Bytes[bmeStatus] |= 1
		return
	}
	copy(c.regs.Bytes[bmeCalib00:], c.calib00[:])
	if c.humidity {
		copy(c.regs.Bytes[bmeCalib26:], c.calib26[:])
	} else {
		c.regs.Bytes[bmeH1] = 0
	}
}

// measure shows the last measurement that is complete by now.
func (c *BME280) measure(now time.Time) {
	switch c.mode {
	case bmeForced:
		if end := c.began.Add(c.took()); !now.Before(end) {
			c.show(end)
			c.mode = bmeSleep
			c.regs.Bytes[bmeCtrlMeas] &^= 3
		}
	case bmeNormal:
		if end, ok := latest(c.began, c.took(), c.every(), now); ok {
			c.show(end)
		}
	}
}

// show puts a measurement's words into the data registers: those from which the
// compensation of §4.2.3 gives the air's values back.
func (c *BME280) show(end time.Time) {
	air, k := c.air(end), c.words()
	raw := [3]int{0x80000, 0x80000, 0x8000} // skipped (§5.4.7 to 5.4.9)
	if n := oversampling(c.active[0]); n > 0 {
		raw[0] = c.resolve(invert(func(x int) float64 { return k.fine(x) / 5120 }, air.Temperature, 0, 1<<20-1), n)
	}
	fine := k.fine(raw[0])
	if n := oversampling(c.active[1]); n > 0 {
		raw[1] = c.resolve(invert(func(x int) float64 { return k.pressure(x, fine) }, air.Pressure, 0, 1<<20-1), n)
	}
	if c.active[2] > 0 {
		raw[2] = invert(func(x int) float64 { return k.moisture(x, fine) }, air.Humidity, 0, 1<<16-1)
	}
	for i, v := range raw[:2] {
		at := [2]int{bmeTemp, bmePress}[i]
		c.regs.Bytes[at], c.regs.Bytes[at+1], c.regs.Bytes[at+2] = byte(v>>12), byte(v>>4), byte(v<<4)
	}
	if c.humidity {
		c.regs.Bytes[bmeHum], c.regs.Bytes[bmeHum+1] = byte(raw[2]>>8), byte(raw[2])
	}
}

// resolve rounds a 20 bit word to what the chip resolves: 16 bits and one more
// for each doubling of the oversampling n, all of them with the filter on
// (§5.4.4, §5.4.5). It avoids the word that means skipped, for which a real
// chip has no other.
func (c *BME280) resolve(raw, n int) int {
	step := 1
	if c.regs.Bytes[bmeConfig]>>2&7 == 0 {
		step = 16 / n
	}
	x := min((raw+step/2)/step*step, 1<<20-step)
	switch {
	case x != 0x80000:
		return x
	case raw < x:
		return x - step
	default:
		return x + step
	}
}

// bmeWords are the calibration words as numbers (§4.2.2).
type bmeWords struct {
	t                      [4]float64 // from 1
	p                      [10]float64
	h1, h2, h3, h4, h5, h6 float64
}

func (c *BME280) words() (k bmeWords) {
	word := func(i int) float64 { return float64(int16(c.calib00[i]) | int16(c.calib00[i+1])<<8) }
	for i := 1; i <= 3; i++ {
		k.t[i] = word(2 * (i - 1))
	}
	for i := 1; i <= 9; i++ {
		k.p[i] = word(6 + 2*(i-1))
	}
	unsigned := func(v float64) float64 { return float64(uint16(int16(v))) }
	k.t[1], k.p[1] = unsigned(k.t[1]), unsigned(k.p[1])
	e := c.calib26
	k.h1 = float64(c.calib00[25])
	k.h2 = float64(int16(e[0]) | int16(e[1])<<8)
	k.h3 = float64(e[2])
	k.h4 = float64(int16(int8(e[3]))<<4 | int16(e[4]&0xf))
	k.h5 = float64(int16(int8(e[5]))<<4 | int16(e[4]>>4))
	k.h6 = float64(int8(e[6]))
	return k
}

// fine is t_fine, 5120 to the °C, of a temperature word (§4.2.3, appendix §8.1).
func (k *bmeWords) fine(raw int) float64 {
	x := float64(raw)
	d := x/131072 - k.t[1]/8192
	return (x/16384-k.t[1]/1024)*k.t[2] + d*d*k.t[3]
}

// pressure is that of a pressure word, in Pa.
func (k *bmeWords) pressure(raw int, fine float64) float64 {
	a := fine/2 - 64000
	b := a*a*k.p[6]/32768 + a*k.p[5]*2
	b = b/4 + k.p[4]*65536
	a = (k.p[3]*a*a/524288 + k.p[2]*a) / 524288
	a = (1 + a/32768) * k.p[1]
	p := (float64(1<<20-raw) - b/4096) * 6250 / a
	return p + (k.p[9]*p*p/2147483648+p*k.p[8]/32768+k.p[7])/16
}

// moisture is that of a humidity word, in %.
func (k *bmeWords) moisture(raw int, fine float64) float64 {
	h := fine - 76800
	h = (float64(raw) - (k.h4*64 + k.h5/16384*h)) * (k.h2 / 65536 * (1 + k.h6/67108864*h*(1+k.h3/67108864*h)))
	return h * (1 - k.h1*h/524288)
}

// invert finds the word of lo to hi for which f, which only falls or only
// rises, is nearest to want.
func invert(f func(raw int) float64, want float64, lo, hi int) int {
	rises := f(hi) > f(lo)
	for hi-lo > 1 {
		if mid := lo + (hi-lo)/2; f(mid) < want == rises {
			lo = mid
		} else {
			hi = mid
		}
	}
	if math.Abs(f(lo)-want) <= math.Abs(f(hi)-want) {
		return lo
	}
	return hi
}
