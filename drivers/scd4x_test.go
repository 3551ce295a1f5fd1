package drivers

import (
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"campus-gateway"

	"periph.io/x/conn/v3/i2c/i2ctest"
	"periph.io/x/conn/v3/physic"
)

// scd4xTape writes and reads in turn: "e4b8" is written, "<8000a2" read.
func scd4xTape(t *testing.T, steps ...string) (ops []i2ctest.IO) {
	t.Helper()
	for _, s := range steps {
		b, err := hex.DecodeString(strings.TrimPrefix(s, "<"))
		if err != nil {
			t.Fatal(err)
		}
		if s[0] == '<' {
			ops = append(ops, i2ctest.IO{Addr: 0x62, R: b})
		} else {
			ops = append(ops, i2ctest.IO{Addr: 0x62, W: b})
		}
	}
	return ops
}

func TestSCD4x(t *testing.T) {
	want := []gateway.Value{
		{Quantity: gateway.CO2, V: 500.0}, {Quantity: gateway.Temperature, V: 25.0}, {Quantity: gateway.Humidity, V: 37.0},
	}
	// An idle chip, not ready at first.
	play(t, "scd4x", `{}`, scd4xTape(t,
		"e4b8", "<8000a2", "3682", "<f896319f07c23bbe89",
		"241d05da29", "2427000081", "24160001b0", "21b1",
		"e4b8", "<8000a2", "e4b8", "<800604", "ec05", "<01f4336667a25eb93c",
		"3f86"), want...)
	// The datasheet's examples of settings, §3.6; 0 ppm right after the start.
	play(t, "scd4x", `{mode: low_power, altitude: 1950, temperature_offset: 5.4, asc: false}`, scd4xTape(t,
		"e4b8", "<8000a2", "3682", "<f896319f07c23bbe89",
		"241d07e648", "2427079e09", "2416000081", "21ac",
		"e4b8", "<800604", "ec05", "<0000816667a25eb93c", "e4b8", "<800604", "ec05", "<01f4336667a25eb93c",
		"3f86"), want...)
	play(t, "scd4x", `{pressure: 98700}`, scd4xTape(t,
		"e4b8", "<8000a2", "3682", "<f896319f07c23bbe89",
		"241d05da29", "e00003db42", "24160001b0", "21b1",
		"e4b8", "<800604", "ec05", "<01f4336667a25eb93c",
		"3f86"), want...)
}

// scd4xChip behaves as the datasheet says, measuring or idle.
type scd4xChip struct {
	running bool
	period  time.Duration
	started time.Time
	read    int // measurements taken out
	deaf    time.Time
	last    string
	told    []string // commands
}

func (b *scd4xChip) String() string                  { return "i2c-1" }
func (b *scd4xChip) Close() error                    { return nil }
func (b *scd4xChip) SetSpeed(physic.Frequency) error { return nil }

func (b *scd4xChip) Tx(_ uint16, w, r []byte) error {
	if time.Now().Before(b.deaf) {
		return errPulled
	}
	if len(w) > 0 {
		b.last = hex.EncodeToString(w[:2])
		b.told = append(b.told, hex.EncodeToString(w))
		switch b.last {
		case "3f86":
			b.running, b.deaf = false, time.Now().Add(scd4xStopTakes)
			return nil
		case "e4b8", "ec05", "e000":
			return nil
		}
		if b.running {
			return errPulled
		}
		if b.last == "21b1" || b.last == "21ac" {
			b.running, b.started, b.read = true, time.Now(), 0
		}
		return nil
	}
	ready := b.running && int(time.Since(b.started)/b.period) > b.read
	reply := map[string]string{"e4b8": "8000a2", "3682": "f896319f07c23bbe89", "ec05": "01f4336667a25eb93c"}[b.last]
	if b.last == "e4b8" && ready {
		reply = "800604"
	}
	if b.last == "ec05" {
		if !ready {
			return errPulled
		}
		b.read = int(time.Since(b.started) / b.period)
	}
	v, _ := hex.DecodeString(reply)
	copy(r, v)
	return nil
}

func TestSCD4xMeasuringAlready(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chip := &scd4xChip{running: true, period: 5 * time.Second, started: time.Now()}
		d, _ := Lookup("scd4x")
		r, err := (&Opener{Host: bench{bus: chip}}).Open(t.Context(), d, Place{Bus: "i2c-1"}, options(t, d, `{altitude: 370}`))
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"e4b8", "3682", "3f86", "3682", "241d05da29", "24270172ef", "24160001b0", "21b1"}; !slices.Equal(chip.told, want) {
			t.Errorf("told the chip %v, want %v", chip.told, want)
		}
		start := time.Now()
		for i := range 3 { // each waits for a measurement of its own
			if vs, err := r.(gateway.Sensor).Sense(t.Context()); err != nil || vs[0].V != 500.0 {
				t.Fatalf("got %v, %v", vs, err)
			}
			if took, due := time.Since(start), time.Duration(i+1)*5*time.Second; took < due || took > due+300*time.Millisecond {
				t.Errorf("measurement %d came after %v", i+1, took)
			}
		}
		for range 2 { // twice, and the chip answers right after
			if err := r.Halt(); err != nil {
				t.Error(err)
			}
		}
		if chip.running {
			t.Error("it measures on")
		}
	})
}

func TestSCD4xLeavesOthersAlone(t *testing.T) {
	for name, identity := range map[string][]string{
		"another chip": {"e4b8", "<000000"},
		"noise":        {"e4b8", "<8000a2", "3682", "<f896319f07c23bbe88"},
	} {
		d, _ := Lookup("scd4x")
		tape := &tape{ops: scd4xTape(t, identity...), failAt: -1}
		synctest.Test(t, func(t *testing.T) {
			if _, err := (&Opener{Host: bench{bus: tape}}).Open(t.Context(), d, Place{Bus: "i2c-1"}, options(t, d, `{}`)); !errors.Is(err, ErrCRC) {
				t.Errorf("%s: got %v, want ErrCRC and nothing written", name, err)
			}
		})
	}
}

func TestSCD4xNeverReady(t *testing.T) {
	for mode, period := range map[string]time.Duration{"periodic": 5 * time.Second, "low_power": 30 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			chip := &scd4xChip{period: time.Hour}
			d, _ := Lookup("scd4x")
			r, err := (&Opener{Host: bench{bus: chip}}).Open(t.Context(), d, Place{Bus: "i2c-1"}, options(t, d, "{mode: "+mode+"}"))
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			vs, err := r.(gateway.Sensor).Sense(t.Context())
			if vs != nil || !errors.Is(err, ErrNotReady) {
				t.Errorf("got %v, %v", vs, err)
			}
			if took := time.Since(start); took < period*3/2 || took > period*8/5 {
				t.Errorf("%s: gave up after %v", mode, took)
			}
		})
	}
}

func TestSCD4xCancel(t *testing.T) {
	expectCancel(t, "scd4x", `{}`, 3*time.Second, bench{bus: &scd4xChip{period: time.Hour}})
}

func TestSCD4xOptions(t *testing.T) {
	wantFaults(t, "scd4x", map[string]string{
		`{}`:                                     "",
		`{altitude: 3000}`:                       "",
		`{altitude: 3001}`:                       "altitude",
		`{altitude: -1}`:                         "altitude",
		`{pressure: 955}`:                        "pressure",
		`{pressure: 120000}`:                     "",
		`{pressure: 95500, altitude: 370}`:       "pressure",
		`{mode: single, temperature_offset: 21}`: "mode temperature_offset",
		`{temperature_offset: -0.1}`:             "temperature_offset",
		`{temperature_offset: .nan}`:             "temperature_offset",
	})
}

func TestSCD4xNoise(t *testing.T) {
	bounds := map[gateway.Quantity][2]float64{gateway.CO2: {0, 65535}, gateway.Temperature: {-45, 130}, gateway.Humidity: {0, 100}}
	withstandNoise(t, "scd4x", `{}`, false, bounds)
	withstandNoise(t, "scd4x", `{}`, true, bounds)
}
