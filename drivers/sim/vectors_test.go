package sim

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// vectorCase is a case of ../testdata/vectors: raw bytes and the values that
// the vendors' code makes of them. Here they are put the other way round: a
// chip in air of those values must show those bytes.
type vectorCase struct {
	Name        string
	Config      map[string]any
	Registers   map[string]string
	Script      []struct{ Write, Read string }
	Expect      map[string]struct{ Value float64 }
	ExpectError string `json:"expect_error"`
}

func (c vectorCase) air() Air {
	return func(time.Time) Conditions {
		return Conditions{
			Temperature: c.Expect["temperature"].Value, Humidity: c.Expect["humidity"].Value,
			Pressure: c.Expect["pressure"].Value, CO2: c.Expect["co2"].Value, Illuminance: c.Expect["illuminance"].Value,
		}
	}
}

func (c vectorCase) config(name string) byte { return byte(c.Config[name].(float64)) }

// vectors runs test in a bubble for every case of a file that is not refused.
func vectors(t *testing.T, file string, test func(t *testing.T, c vectorCase)) {
	raw, err := os.ReadFile("../testdata/vectors/" + file + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var set struct{ Cases []vectorCase }
	if err := json.Unmarshal(raw, &set); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, c := range set.Cases {
		if c.ExpectError != "" {
			continue
		}
		n++
		t.Run(c.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, c) })
		})
	}
	if n < 6 {
		t.Errorf("only %d cases", n)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ask writes, in hexadecimal, and reads n bytes.
func ask(t *testing.T, c Chip, w string, n int) []byte {
	t.Helper()
	r := make([]byte, n)
	if err := c.Tx(unhex(t, w), r); err != nil {
		t.Fatalf("write %s, read %d: %v", w, n, err)
	}
	return r
}

// refuse demands that a transaction is not acknowledged.
func refuse(t *testing.T, c Chip, w string, n int) {
	t.Helper()
	if err := c.Tx(unhex(t, w), make([]byte, n)); err != ErrNACK {
		t.Errorf("write %s, read %d: %v, want no acknowledge", w, n, err)
	}
}

// near demands two words that differ by no more than tolerance.
func near(t *testing.T, what string, got, want, tolerance int) {
	t.Helper()
	if got < want-tolerance || got > want+tolerance {
		t.Errorf("%s: %#x, want %#x within %d", what, got, want, tolerance)
	}
}

func u16(b []byte) int { return int(binary.BigEndian.Uint16(b)) }
func u20(b []byte) int { return int(b[0])<<12 | int(b[1])<<4 | int(b[2])>>4 }
func s24(b []byte) int { return int(int32(b[0])<<24|int32(b[1])<<16|int32(b[2])<<8) >> 8 }

func TestVectorsBME280(t *testing.T) {
	for _, chip := range []string{"bme280", "bmp280"} {
		vectors(t, chip, func(t *testing.T, c vectorCase) {
			if strings.HasPrefix(c.Name, "clamp") {
				t.Skip("no word gives the vendor's value: it was clamped")
			}
			x := newBME280(c.air(), chip == "bme280")
			x.calibrate(c.Registers["0x88"]+"00"+c.Registers["0xA1"], c.Registers["0xE1"])
			ask(t, x, "f205f4b5", 0) // all sixteenfold, forced
			time.Sleep(x.took())
			for _, at := range []string{"0xD0", "0x88", "0xA1", "0xE1"} {
				if want := c.Registers[at]; want != "" {
					if got := hex.EncodeToString(ask(t, x, at[2:], len(want)/2)); got != want {
						t.Errorf("registers %s: %s, want %s", at, got, want)
					}
				}
			}
			got, want := ask(t, x, "f7", 8), unhex(t, c.Registers["0xF7"])
			near(t, "temperature", u20(got[3:]), u20(want[3:]), 1)
			if p := c.Expect["pressure"].Value; p > 30000 && p < 110000 {
				near(t, "pressure", u20(got), u20(want), 1)
			}
			if h, ok := c.Expect["humidity"]; ok && h.Value > 0 && h.Value < 100 {
				near(t, "humidity", u16(got[6:]), u16(want[6:]), 1)
			}
		})
	}
}

func TestVectorsSHT4x(t *testing.T) {
	vectors(t, "sht4x", func(t *testing.T, c vectorCase) {
		x := NewSHT4x(c.air())
		ask(t, x, c.Script[0].Write, 0)
		time.Sleep(9 * time.Millisecond)
		sameWords(t, ask(t, x, "", 6), unhex(t, c.Script[0].Read))
	})
}

func TestVectorsSCD4x(t *testing.T) {
	vectors(t, "scd4x", func(t *testing.T, c vectorCase) {
		x := NewSCD41(func(at time.Time) Conditions { a := c.air()(at); a.Pressure = 101325; return a })
		ask(t, x, "21b1", 0)
		if c.Expect["data_ready"].Value == 1 {
			time.Sleep(5 * time.Second)
		}
		for _, s := range c.Script {
			ask(t, x, s.Write, 0)
			time.Sleep(time.Millisecond)
			got, want := ask(t, x, "", len(s.Read)/2), unhex(t, s.Read)
			if s.Write == "e4b8" { // which of the low bits say so is the chip's business
				got, want = crcWords(word(float64(min(1, u16(got)&0x7ff)))), crcWords(word(c.Expect["data_ready"].Value))
			}
			sameWords(t, got, want)
		}
	})
}

// sameWords compares words with checksums. The expected values are rounded: a
// word may be off by one.
func sameWords(t *testing.T, got, want []byte) {
	t.Helper()
	for i := 0; i < len(want); i += 3 {
		near(t, "word", u16(got[i:]), u16(want[i:]), 1)
		if got[i] == want[i] && got[i+1] == want[i+1] && got[i+2] != want[i+2] {
			t.Errorf("checksum %x, want %x", got[i:i+3], want[i:i+3])
		}
	}
}

func TestVectorsBH1750(t *testing.T) {
	vectors(t, "bh1750", func(t *testing.T, c vectorCase) {
		x := NewBH1750(c.air())
		ask(t, x, c.Script[0].Write, 0)
		time.Sleep(180 * time.Millisecond)
		near(t, "counts", u16(ask(t, x, "", 2)), u16(unhex(t, c.Script[0].Read)), 0)
	})
}

func TestVectorsADS1115(t *testing.T) {
	vectors(t, "ads1115", func(t *testing.T, c vectorCase) {
		var inputs [4]Volts
		inputs[c.config("channel")] = func(time.Time) float64 { return c.Expect["voltage"].Value }
		x := NewADS1115(inputs)
		ask(t, x, "01"+c.Registers["0x01"], 0)
		time.Sleep(time.Second / 7)
		if got := hex.EncodeToString(ask(t, x, "01", 2)); got != c.Registers["0x01"] {
			t.Errorf("config %s, want %s", got, c.Registers["0x01"])
		}
		near(t, "counts", u16(ask(t, x, "00", 2)), u16(unhex(t, c.Registers["0x00"])), 0)
	})
}

func TestVectorsTMP102(t *testing.T) {
	vectors(t, "tmp102", func(t *testing.T, c vectorCase) {
		x := NewTMP102(c.air())
		ask(t, x, "01"+c.Registers["0x01"], 0)
		time.Sleep(time.Second)
		// Bit 0 says that the format is the extended one, which the file leaves out.
		near(t, "temperature", u16(ask(t, x, "00", 2))&^1, u16(unhex(t, c.Registers["0x00"])), 0)
	})
}

func TestVectorsDPS310(t *testing.T) {
	vectors(t, "dps310", func(t *testing.T, c vectorCase) {
		x := NewDPS310(c.air())
		copy(x.coefficients[:], unhex(t, c.Registers["0x10"]))
		p, tmp := c.config("osr_code"), c.config("tosr_code")
		shift := byte(0)
		if p > 3 {
			shift |= dpsPShift
		}
		if tmp > 3 {
			shift |= dpsTShift
		}
		ask(t, x, "06"+hex.EncodeToString([]byte{p, 0x80 | tmp, 0, shift}), 0)
		ask(t, x, "0802", 0)
		time.Sleep(dpsTook(tmp))
		ask(t, x, "0801", 0)
		time.Sleep(dpsTook(p))
		if got := hex.EncodeToString(ask(t, x, "08", 1)); got != c.Registers["0x08"] {
			t.Errorf("MEAS_CFG %s, want %s", got, c.Registers["0x08"])
		}
		for _, at := range []string{"0x0D", "0x10", "0x28"} {
			if got := hex.EncodeToString(ask(t, x, at[2:], len(c.Registers[at])/2)); got != c.Registers[at] {
				t.Errorf("registers %s: %s, want %s", at, got, c.Registers[at])
			}
		}
		got, want := ask(t, x, "00", 6), unhex(t, c.Registers["0x00"])
		near(t, "pressure", s24(got), s24(want), 2)
		near(t, "temperature", s24(got[3:]), s24(want[3:]), 1)
	})
}

func TestInvert(t *testing.T) {
	for _, f := range []func(int) float64{func(x int) float64 { return float64(x*x) + 0.2 }, func(x int) float64 { return -3 * float64(x) }} {
		for want := 0; want <= 1000; want++ {
			if got := invert(f, f(want), 0, 1000); got != want {
				t.Errorf("got %d, want %d", got, want)
			}
		}
		if got := invert(f, 1e9, 0, 1000); got != 1000 && got != 0 {
			t.Errorf("beyond the range: %d", got)
		}
	}
}

func TestCRC8(t *testing.T) {
	b, _ := strconv.ParseUint("beef", 16, 16)
	if got := hex.EncodeToString(crcWords(uint16(b))); got != "beef92" { // SCD4x §3.12
		t.Errorf("got %s", got)
	}
}
