package sim

import (
	"encoding/hex"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// lectureTime is a Monday morning.
var lectureTime = time.Date(2026, 3, 9, 9, 0, 0, 0, settat)

// still is air that never changes.
func still(c Conditions) Air { return func(time.Time) Conditions { return c } }

// ramp is air that is warmer by 1 °C, brighter by 100 lx and richer by 10 ppm
// each second from now on: it shows when a chip took its sample.
func ramp() Air {
	began := time.Now()
	return func(real time.Time) Conditions {
		s := real.Sub(began).Seconds()
		return Conditions{Temperature: 20 + s, Humidity: 50, Pressure: 101325, CO2: 500 + 10*s, Illuminance: 100 + 100*s}
	}
}

func within(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance) {
		t.Errorf("%s: %v, want %v within %v", what, got, want, tolerance)
	}
}

// bmeIntegers is the compensation in integers as the datasheets print it
// (BST-BME280-DS002 §4.2.3: 32 bit temperature and humidity, 64 bit pressure),
// independent of the chip's own in floating point: °C, Pa, %.
func bmeIntegers(calib00, calib26, data []byte) (celsius, pascal, percent float64) {
	u := func(i int) int64 { return int64(calib00[i]) | int64(calib00[i+1])<<8 }
	s := func(i int) int64 { return int64(int16(u(i))) }
	adc := int64(u20(data[3:]))
	v1 := ((adc>>3 - u(0)<<1) * s(2)) >> 11
	v2 := (((adc>>4 - u(0)) * (adc>>4 - u(0))) >> 12 * s(4)) >> 14
	fine := v1 + v2
	celsius = float64((fine*5+128)>>8) / 100

	a := fine - 128000
	b := a*a*s(16) + a*s(14)<<17 + s(12)<<35
	a = (a*a*s(10))>>8 + (a*s(8))<<12
	a = ((1<<47 + a) * u(6)) >> 33
	p := int64(1048576 - u20(data))
	p = ((p<<31 - b) * 3125) / a
	a = (s(22) * (p >> 13) * (p >> 13)) >> 25
	b = (s(20) * p) >> 19
	pascal = float64((p+a+b)>>8+s(18)<<4) / 256

	if len(data) < 8 {
		return celsius, pascal, 0
	}
	e := calib26
	h1, h2, h3 := int64(calib00[25]), int64(int16(uint16(e[0])|uint16(e[1])<<8)), int64(e[2])
	h4 := int64(int8(e[3]))<<4 | int64(e[4]&15)
	h5 := int64(int8(e[5]))<<4 | int64(e[4]>>4)
	h6 := int64(int8(e[6]))
	h := fine - 76800
	h = ((int64(u16(data[6:]))<<14 - h4<<20 - h5*h + 16384) >> 15) *
		(((((((h*h6)>>10)*(((h*h3)>>11)+32768))>>10)+2097152)*h2 + 8192) >> 14)
	h -= ((((h >> 15) * (h >> 15)) >> 7) * h1) >> 4
	return celsius, pascal, float64(max(0, min(h, 419430400))>>12) / 1024
}

// The compensated value is the room's, within the chip's resolution, hour by
// hour through a week.
func TestBME280GivesTheRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room := NewRoom(lectureTime, 1)
		for _, humidity := range []bool{true, false} {
			x := newBME280(room.Air(1), humidity)
			calib00, calib26 := ask(t, x, "88", 26), ask(t, x, "e1", 7)
			n := 6
			if humidity {
				n = 8
			}
			for _, osrs := range []struct {
				hum, meas string
				p         float64 // Pa the word resolves
			}{{"01", "25", 2.62}, {"05", "b5", 0.17}} { // BST-BMP280-DS001 §3.3.1
				for range 7 * 24 {
					time.Sleep(time.Hour)
					ask(t, x, "f2"+osrs.hum, 0)
					ask(t, x, "f4"+osrs.meas, 0)
					time.Sleep(x.took())
					want := x.air(time.Now())
					c, p, h := bmeIntegers(calib00, calib26, ask(t, x, "f7", n))
					within(t, "temperature", c, want.Temperature, 0.011)
					within(t, "pressure", p, want.Pressure, osrs.p/2+0.7)
					if humidity {
						within(t, "humidity", h, want.Humidity, 0.03)
					}
				}
			}
		}
	})
}

func TestBME280(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		air := ramp()
		x := NewBME280(air)
		words := append(ask(t, x, "88", 26), ask(t, x, "e1", 7)...)
		sample := func() float64 { // seconds after the beginning
			c, _, _ := bmeIntegers(words[:26], words[26:], ask(t, x, "f7", 8))
			return c - 20
		}
		bytes := func(w string, n int, want string) {
			t.Helper()
			if got := hex.EncodeToString(ask(t, x, w, n)); got != want {
				t.Errorf("read of %s: %s, want %s", w, got, want)
			}
		}
		bytes("d0", 1, "60")
		bytes("f2", 13, "00000000008000008000008000") // §5.3 reset values
		// ctrl_hum alone changes nothing; ctrl_meas alone skips humidity.
		ask(t, x, "f425", 0)
		bytes("f3", 1, "08")
		time.Sleep(6424 * time.Microsecond) // §9.1: 1.25+2.3+2.3+0.575 = 6.425 ms
		bytes("f3", 1, "08")
		bytes("f7", 3, "800000")
		time.Sleep(time.Microsecond)
		bytes("f3", 2, "0024") // back to sleep
		bytes("fd", 2, "8000")
		ask(t, x, "f201", 0)
		ask(t, x, "f425", 0)
		time.Sleep(9300 * time.Microsecond) // 1.25+2.3+2.3+0.575+2.3+0.575
		if got := ask(t, x, "fd", 2); hex.EncodeToString(got) == "8000" {
			t.Errorf("humidity skipped although ctrl_hum was set before ctrl_meas")
		}
		taken := sample()
		time.Sleep(time.Second)
		within(t, "a sleeping chip's sample", sample(), taken, 0)
		// Skipped pressure.
		ask(t, x, "f421", 0)
		time.Sleep(10 * time.Millisecond)
		bytes("f7", 3, "800000")

		// Normal mode: 9.3 ms and 500 ms (t_sb 100), again and again.
		ask(t, x, "f580f427", 0)
		began := time.Now()
		at := func(d time.Duration) { time.Sleep(time.Until(began.Add(d))) }
		offset := began.Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).Seconds()
		at(10 * time.Millisecond)
		within(t, "first of normal mode", sample()-offset, 0.0093, 0.012)
		bytes("f3", 1, "00")
		at(511 * time.Millisecond)
		bytes("f3", 1, "08")
		within(t, "first, while the second runs", sample()-offset, 0.0093, 0.012)
		at(5200 * time.Millisecond)
		within(t, "eleventh of normal mode", sample()-offset, 0.0093+10*0.5093, 0.012)
		// A change of mode during a measurement waits for its end (§3.3.1), and a
		// second one is ignored.
		at(11*509300*time.Microsecond + time.Millisecond)
		ask(t, x, "f424", 0)
		ask(t, x, "f427", 0)
		bytes("f3", 2, "0827")
		time.Sleep(10 * time.Millisecond)
		bytes("f3", 2, "0024")
		within(t, "last of normal mode", sample()-offset, 0.0093+11*0.5093, 0.012)

		// Reset: only B6; the calibration comes 2 ms later.
		ask(t, x, "e000", 0)
		bytes("f4", 1, "24")
		ask(t, x, "e0b6", 0)
		bytes("f3", 2, "0100")
		bytes("88", 2, "0000")
		time.Sleep(2 * time.Millisecond)
		bytes("f3", 1, "00")
		bytes("88", 2, "706b")
		bytes("f7", 8, "8000008000008000")
		ask(t, x, "d000f7ff88ff", 0) // read only
		bytes("d0", 1, "60")
		bytes("f7", 1, "80")

		// The filter widens the words to 20 bits.
		y := NewBME280(still(Conditions{Temperature: 21.2345, Humidity: 40, Pressure: 97123}))
		ask(t, y, "f425", 0)
		time.Sleep(10 * time.Millisecond)
		if r := ask(t, y, "f7", 6); r[2]&0xf0 != 0 || r[5]&0xf0 != 0 {
			t.Errorf("unfiltered words have more than 16 bits: %x", r)
		}
		ask(t, y, "f504f425", 0)
		time.Sleep(10 * time.Millisecond)
		if r := ask(t, y, "f7", 6); r[2] == 0 && r[5] == 0 {
			t.Errorf("filtered words have 16 bits: %x", r)
		}

		z := NewBMP280(air)
		if got := hex.EncodeToString(append(ask(t, z, "d0", 1), ask(t, z, "fd", 2)...)); got != "580000" {
			t.Errorf("BMP280: %s", got)
		}
	})
}

// No word a measurement gives says that it was skipped.
func TestBME280NeverLooksSkipped(t *testing.T) {
	x := NewBME280(nil)
	for _, n := range []int{1, 2, 4, 8, 16} {
		for raw := 0x80000 - 40; raw < 0x80000+40; raw++ {
			if got := x.resolve(raw, n); got == 0x80000 || got < raw-16 || got > raw+16 {
				t.Errorf("%#x at %d samples: %#x", raw, n, got)
			}
		}
		if got := x.resolve(1<<20-1, n); got >= 1<<20 {
			t.Errorf("the top overflows to %#x", got)
		}
	}
}

func TestSHT4x(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room := NewRoom(lectureTime, 1)
		x := NewSHT4x(room.Air(2))
		refuse(t, x, "", 6) // nothing measured
		for w, takes := range map[string]time.Duration{"fd": 8300, "f6": 4500, "e0": 1600} {
			refuse(t, x, w, 6) // no time in between
			time.Sleep(takes*time.Microsecond - time.Nanosecond)
			refuse(t, x, "", 6)
			refuse(t, x, "89", 0)
			time.Sleep(time.Nanosecond)
			want := x.air(time.Now())
			r := ask(t, x, "", 6)
			within(t, "temperature", 175*float64(u16(r))/65535-45, want.Temperature, 0.0014)
			within(t, "humidity", 125*float64(u16(r[3:]))/65535-6, want.Humidity, 0.001)
			refuse(t, x, "", 6) // once
		}
		if got := ask(t, x, "89", 6); crc8(got[:2]) != got[2] || crc8(got[3:5]) != got[5] {
			t.Errorf("serial %x", got)
		}
		refuse(t, x, "24", 1)
		time.Sleep(time.Second / 9)
		r := ask(t, x, "", 6)
		if c := 175*float64(u16(r))/65535 - 45; c < room.At(room.Now()).Temperature+5 {
			t.Errorf("the heater did not heat: %v °C", c)
		}
		refuse(t, x, "42", 0)
		refuse(t, x, "fd00", 0)
		ask(t, x, "fd", 0)
		time.Sleep(10 * time.Millisecond)
		ask(t, x, "94", 0) // soft reset
		refuse(t, x, "fd", 0)
		time.Sleep(time.Millisecond)
		refuse(t, x, "", 6)
	})
}

func TestSCD41(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := NewSCD41(ramp())
		command := func(w string, takes time.Duration, n int) []byte {
			t.Helper()
			ask(t, x, w, 0)
			if takes > 0 {
				time.Sleep(takes*time.Millisecond - time.Nanosecond)
				refuse(t, x, "e4b8", 0)
				time.Sleep(time.Nanosecond)
			}
			if n == 0 {
				return nil
			}
			return ask(t, x, "", n)
		}
		ready := func() bool { t.Helper(); return u16(command("e4b8", 1, 3))&0x7ff != 0 }
		nothing := func() { t.Helper(); command("ec05", 1, 0); refuse(t, x, "", 9) }

		if got := hex.EncodeToString(command("3682", 1, 9)); got != "f896319f07c23bbe89" { // §3.9.2
			t.Errorf("serial %s", got)
		}
		if got := u16(command("202f", 1, 3)); got>>12 != 1 {
			t.Errorf("variant %x", got)
		}
		refuse(t, x, "3682", 9) // the reply needs its millisecond
		time.Sleep(time.Millisecond)
		if ready() {
			t.Errorf("ready without a measurement")
		}
		nothing()

		// Periodic measurement: every 5 s, each sample once.
		began := time.Now()
		command("21b1", 0, 0)
		time.Sleep(5*time.Second - 2*time.Millisecond)
		if ready() {
			t.Errorf("ready before 5 s")
		}
		time.Sleep(time.Millisecond)
		if !ready() {
			t.Errorf("not ready after 5 s")
		}
		base := 500 + 10*began.Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).Seconds()
		near(t, "first CO2", u16(command("ec05", 1, 9)), int(math.Round(base+50)), 1)
		if ready() {
			t.Errorf("ready although the sample was read")
		}
		nothing()
		for _, w := range []string{"3682", "21b1", "219d", "241d0000" + "81", "2318", "3646", "36e0", "202f", "3615"} {
			refuse(t, x, w, 0)
		}
		time.Sleep(23 * time.Second) // 28 s
		r := command("ec05", 1, 9)
		near(t, "fifth CO2", u16(r), int(math.Round(base+250)), 1)
		within(t, "temperature", 175*float64(u16(r[3:]))/65535-45, 20+(base-500)/10+25, 0.003)
		command("3f86", 500, 0)
		nothing()

		// The pressure: without it, the reading is off by its ratio.
		y := NewSCD41(still(Conditions{Temperature: 22, Humidity: 45, Pressure: 96950, CO2: 800}))
		x = y
		shot := func() []byte { t.Helper(); command("219d", 5000, 0); return command("ec05", 1, 9) }
		near(t, "CO2 at sea level", u16(shot()), 765, 0)
		command("24270172"+hex.EncodeToString([]byte{crc8([]byte{1, 0x72})}), 1, 0) // 370 m
		near(t, "CO2 at 370 m", u16(shot()), 800, 1)
		command("e00003ca"+hex.EncodeToString([]byte{crc8([]byte{3, 0xca})}), 1, 0) // 970 hPa
		near(t, "CO2 at 970 hPa", u16(shot()), 800, 1)
		refuse(t, x, "e00003ca00", 0) // checksum
		refuse(t, x, "e0000001b0", 0) // 1 hPa
		if got := u16(command("e000", 1, 3)); got != 970 {
			t.Errorf("pressure %d", got)
		}
		r = shot()
		within(t, "temperature", 175*float64(u16(r[3:]))/65535-45, 22, 0.0015)
		within(t, "humidity", 100*float64(u16(r[6:]))/65535, 45, 0.001)
		command("241d000081", 1, 0) // no offset: the chip's own warmth shows
		r = shot()
		within(t, "temperature", 175*float64(u16(r[3:]))/65535-45, 26, 0.003)
		if h := 100 * float64(u16(r[6:])) / 65535; h > 37 || h < 34 {
			t.Errorf("humidity at 4 °C more: %v", h)
		}
		command("2196", 50, 0)
		if r := command("ec05", 1, 9); u16(r) != 0 || u16(r[3:]) == 0 {
			t.Errorf("without CO2: %x", r)
		}
		// Settings live in RAM until persisted.
		command("3646", 30, 0)
		if got := u16(command("2318", 1, 3)); got != 1498 {
			t.Errorf("offset after reinit: %d", got)
		}
		command("2416000081", 1, 0)
		command("3615", 800, 0)
		y.PowerUp()
		refuse(t, x, "2313", 0)
		time.Sleep(30 * time.Millisecond)
		if got := u16(command("2313", 1, 3)); got != 0 {
			t.Errorf("ASC after power-up: %d", got)
		}
		command("3632", 1200, 0)
		for w, want := range map[string]int{"2313": 1, "2322": 0, "2318": 1498, "233f": 400, "2340": 44, "234b": 156} {
			if got := u16(command(w, 1, 3)); got != want {
				t.Errorf("%s after factory reset: %d, want %d", w, got, want)
			}
		}
		if got := u16(command("3639", 10000, 3)); got != 0 {
			t.Errorf("self test %x", got)
		}
		if got := u16(command("362f01a4"+hex.EncodeToString([]byte{crc8([]byte{1, 0xa4})}), 400, 3)); got != 0xffff {
			t.Errorf("recalibrated without a measurement: %x", got)
		}
		shot()
		if got := u16(command("362f01a4"+hex.EncodeToString([]byte{crc8([]byte{1, 0xa4})}), 400, 3)); got != 0x8000-346 && got != 0x8000-345 {
			t.Errorf("recalibration %x", got)
		}
		near(t, "CO2 after recalibration", u16(shot()), 420, 1)
		// Asleep: nothing is acknowledged, the call that wakes it neither.
		command("36e0", 0, 0)
		time.Sleep(time.Millisecond)
		refuse(t, x, "e4b8", 0)
		refuse(t, x, "36f6", 0)
		refuse(t, x, "e4b8", 0)
		time.Sleep(30 * time.Millisecond)
		ready()
		// Low power: every 30 s.
		command("21ac", 0, 0)
		time.Sleep(29 * time.Second)
		if ready() {
			t.Errorf("low power sample before 30 s")
		}
		time.Sleep(time.Second)
		if !ready() {
			t.Errorf("no low power sample after 30 s")
		}
	})
}

func TestBH1750(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := NewBH1750(ramp())
		lux := func() float64 { return float64(u16(ask(t, x, "", 2))) / 1.2 }
		within(t, "before any measurement", lux(), 0, 0)
		ask(t, x, "01", 0)
		ask(t, x, "20", 0)
		time.Sleep(180*time.Millisecond - time.Nanosecond)
		within(t, "too early", lux(), 0, 0)
		time.Sleep(time.Nanosecond)
		within(t, "after 180 ms", lux(), 118, 0.5)
		time.Sleep(820 * time.Millisecond)
		within(t, "one time", lux(), 118, 0.5)
		ask(t, x, "07", 0) // powered down by itself: the reset is not taken
		within(t, "reset while powered down", lux(), 118, 0.5)
		ask(t, x, "01", 0)
		ask(t, x, "07", 0)
		within(t, "reset", lux(), 0, 0)
		ask(t, x, "20", 0)
		time.Sleep(180 * time.Millisecond)
		last := lux()
		ask(t, x, "10", 0)
		time.Sleep(100 * time.Millisecond)
		within(t, "the one before", lux(), last, 0)
		time.Sleep(500 * time.Millisecond) // three of 180 ms
		within(t, "continuous", lux(), 100+100*(1+0.18+0.54), 0.5)
		ask(t, x, "07", 0)
		within(t, "reset", float64(x.result), 0, 0)
		ask(t, x, "00", 0)
		// 138: twice the time, twice the counts.
		ask(t, x, "44", 0)
		ask(t, x, "6a", 0)
		if x.mtreg != 138 {
			t.Errorf("MTreg %d", x.mtreg)
		}
		ask(t, x, "21", 0)
		time.Sleep(180 * time.Millisecond)
		before := lux()
		time.Sleep(180 * time.Millisecond)
		within(t, "H-resolution mode 2 at MTreg 138", lux()/4, 100+100*2.14, 0.2)
		if lux() == before {
			t.Errorf("MTreg did not lengthen the measurement")
		}
		ask(t, x, "23", 0)
		time.Sleep(48 * time.Millisecond)
		if got := u16(ask(t, x, "", 2)); got%4 != 0 || got == 0 {
			t.Errorf("low resolution: %d", got)
		}
		for _, w := range []string{"0102", "02", "12", "ff"} {
			refuse(t, x, w, 0)
		}
	})
}

func TestADS1115(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		x := NewADS1115([4]Volts{
			func(at time.Time) float64 { return 1 + at.Sub(began).Seconds() },
			func(time.Time) float64 { return 3 }, nil, func(time.Time) float64 { return -9 },
		})
		reg := func(w string, want int) {
			t.Helper()
			if got := u16(ask(t, x, w, 2)); got != want {
				t.Errorf("register %s: %04x, want %04x", w, got, want)
			}
		}
		reg("00", 0)
		reg("01", 0x8583)
		reg("02", 0x8000)
		reg("03", 0x7fff)
		ask(t, x, "01c3e3", 0) // A0, ±4.096 V, 860 a second: 1.28 ms at the slowest
		reg("01", 0x43e3)
		time.Sleep(1279 * time.Microsecond)
		reg("01", 0x43e3)
		reg("00", 0)
		time.Sleep(time.Microsecond)
		reg("01", 0xc3e3)
		reg("00", 8010) // 1.00128 V
		time.Sleep(time.Second)
		reg("00", 8010) // single
		for config, want := range map[string]int{
			"a1e3": 0x7fff, // A1 - A3 = 12 V at ±6.144 V: the end of the range
			"b3e3": 0x7fff, // A2 - A3 = 9 V at ±4.096 V
			"d3e3": 24000,  // A1 at ±4.096 V
			"d5e3": 0x7fff, // A1 at ±2.048 V
			"e3e3": 0,      // A2: ground
			"f3e3": 0x8000, // A3
		} {
			ask(t, x, "01"+config, 0)
			time.Sleep(2 * time.Millisecond)
			near(t, config, u16(ask(t, x, "00", 2)), want, 0)
		}
		ask(t, x, "0181e3", 0) // A0 - A1 at ±6.144 V: negative
		time.Sleep(2 * time.Millisecond)
		within(t, "difference", float64(int16(u16(ask(t, x, "00", 2))))*6.144/32768, 1+time.Since(began).Seconds()-3, 0.001)
		ask(t, x, "01c283", 0) // continuous, 128 a second
		for range 3 {
			time.Sleep(time.Second / 2)
			within(t, "continuous", float64(u16(ask(t, x, "00", 2)))*4.096/32768, 1+time.Since(began).Seconds(), 0.01)
		}
		reg("01", 0x4283)
		ask(t, x, "0112", 0) // the first byte alone
		reg("01", 0x1283)
		ask(t, x, "001234", 0) // read only
		x.PowerUp()
		reg("00", 0)
		reg("01", 0x8583)
		if got := hex.EncodeToString(ask(t, x, "01", 4)); got != "8583ffff" {
			t.Errorf("beyond the register: %s", got)
		}
	})
}

func TestTMP102(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := NewTMP102(ramp())
		celsius := func(x *TMP102) float64 { return float64(int16(u16(ask(t, x, "00", 2)))) / 256 }
		config := func(x *TMP102, want string) {
			t.Helper()
			if got := hex.EncodeToString(ask(t, x, "01", len(want)/2)); got != want {
				t.Errorf("configuration %s, want %s", got, want)
			}
		}
		config(x, "60a0")
		time.Sleep(10 * time.Second)
		within(t, "12 bits", celsius(x), 30, 0.29) // four a second
		if got := u16(ask(t, x, "00", 2)); got&0xf != 0 {
			t.Errorf("12 bits: %04x", got)
		}
		ask(t, x, "0161b0", 0) // shutdown, extended
		time.Sleep(time.Second)
		config(x, "e1b0")
		got := u16(ask(t, x, "00", 2))
		if got&7 != 1 {
			t.Errorf("13 bits: %04x", got)
		}
		within(t, "13 bits", float64(got>>3)/16, 30.035, 0.04)
		ask(t, x, "01e1b0", 0) // one shot
		config(x, "61b0")
		time.Sleep(34 * time.Millisecond)
		config(x, "61b0")
		time.Sleep(time.Millisecond)
		config(x, "e1b0")
		within(t, "one shot", float64(u16(ask(t, x, "00", 2))>>3)/16, 31.035, 0.04)
		// The alert, with its two limits.
		y := NewTMP102(ramp())
		ask(t, y, "0300c0", 0) // 0.75 above 0: below the air in any case
		ask(t, y, "020080", 0)
		time.Sleep(time.Second)
		config(y, "6080")
		y.PowerUp()
		if got := u16(ask(t, y, "00", 2)); got != 0 {
			t.Errorf("after power-up: %04x, want 0 until the first conversion", got)
		}

		z := NewTMP105(still(Conditions{Temperature: 21.8125}))
		config(z, "00")
		within(t, "9 bits", celsius(z), 22, 0)
		ask(t, z, "0160", 0) // 12 bits: 220 ms
		time.Sleep(219 * time.Millisecond)
		within(t, "9 bits still", celsius(z), 22, 0)
		time.Sleep(time.Millisecond)
		within(t, "12 bits", celsius(z), 21.8125, 0)
		ask(t, z, "0161", 0)
		time.Sleep(time.Second)
		config(z, "61")

		lm := NewLM75(still(Conditions{Temperature: -21.6}))
		ask(t, lm, "0160", 0)
		config(lm, "00")
		within(t, "LM75", celsius(lm), -21.5, 0)
	})
}

func TestDPS310GivesTheRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room := NewRoom(lectureTime, 1)
		x := NewDPS310(room.Air(6))
		// §7.11, §4.9 with the coefficients written out: 0d2 f01 13c68 f2f04 f574 0578 dcd8 ffce fbb4.
		const c0, c1, c00, c10, c01, c11, c20, c21, c30 = 0x0d2, 0xf01 - 4096, 0x13c68, 0xf2f04 - 1<<20, 0xf574 - 65536, 0x0578, 0xdcd8 - 65536, 0xffce - 65536, 0xfbb4 - 65536
		if got := hex.EncodeToString(ask(t, x, "10", 18)); got != "0d2f0113c68f2f04f5740578dcd8ffcefbb4" {
			t.Fatalf("coefficients %s", got)
		}
		for code, k := range []float64{524288, 1572864, 3670016, 7864320, 253952, 516096, 1040384, 2088960} {
			shift := byte(0)
			if code > 3 {
				shift = 0xc
			}
			ask(t, x, "06"+hex.EncodeToString([]byte{byte(code), 0x80 | byte(code), 0, shift}), 0)
			for range 24 {
				time.Sleep(time.Hour)
				ask(t, x, "0802", 0)
				time.Sleep(dpsTook(byte(code)))
				ask(t, x, "0801", 0)
				time.Sleep(dpsTook(byte(code)))
				r := ask(t, x, "00", 6)
				p, tr := float64(s24(r))/k, float64(s24(r[3:]))/k
				want := x.air(time.Now())
				within(t, "temperature", c0*0.5+c1*tr, want.Temperature, 0.05) // noise of the two instants
				// The air's noise between the two measurements: 0.04 °C is a few Pa here.
				within(t, "pressure", c00+p*(c10+p*(c20+p*c30))+tr*c01+tr*p*(c11+p*c21), want.Pressure, 3)
			}
		}
	})
}

func TestDPS310(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		air := ramp()
		x := NewDPS310(air)
		bytes := func(w string, n int, want string) {
			t.Helper()
			if got := hex.EncodeToString(ask(t, x, w, n)); got != want {
				t.Errorf("read of %s: %s, want %s", w, got, want)
			}
		}
		bytes("06", 4, "0000c000")
		bytes("0b", 3, "010010")
		bytes("28", 1, "80")
		ask(t, x, "0780", 0)
		ask(t, x, "0802", 0)
		bytes("08", 1, "c2")
		time.Sleep(3600*time.Microsecond - time.Nanosecond)
		bytes("08", 1, "c2")
		bytes("03", 3, "800000")
		time.Sleep(time.Nanosecond)
		bytes("08", 1, "e0")
		celsius := func() float64 { return 105 - 255*float64(s24(ask(t, x, "03", 3)))/524288 }
		within(t, "temperature", celsius(), 20, 0.005)
		bytes("08", 1, "c0") // read
		ask(t, x, "0700", 0) // the sensor that the coefficients are not for
		ask(t, x, "0802", 0)
		time.Sleep(4 * time.Millisecond)
		if c := celsius(); math.Abs(c-20) < 5 {
			t.Errorf("the wrong sensor gives %v", c)
		}
		// 16 samples without the shift: the result overflows.
		ask(t, x, "0784", 0)
		ask(t, x, "0802", 0)
		time.Sleep(28 * time.Millisecond)
		if c := 105 - 255*float64(s24(ask(t, x, "03", 3)))/253952; math.Abs(c-20) < 1 {
			t.Errorf("without the shift bit: %v", c)
		}
		// Continuous, four a second.
		ask(t, x, "06208000", 0)
		ask(t, x, "07a0", 0)
		ask(t, x, "0807", 0)
		time.Sleep(7 * time.Millisecond)
		bytes("08", 1, "c7")
		time.Sleep(time.Millisecond)
		bytes("08", 1, "f7")
		ask(t, x, "00", 6)
		bytes("08", 1, "c7")
		time.Sleep(240 * time.Millisecond)
		bytes("08", 1, "c7")
		time.Sleep(10 * time.Millisecond)
		bytes("08", 1, "f7")
		ask(t, x, "0800", 0)
		// Reset.
		ask(t, x, "0c09", 0)
		bytes("06", 4, "00000000")
		bytes("10", 2, "0000")
		time.Sleep(12 * time.Millisecond)
		bytes("08", 1, "40")
		bytes("10", 2, "0000")
		time.Sleep(28 * time.Millisecond)
		bytes("08", 1, "c0")
		bytes("10", 2, "0d2f")
	})
}
