package drivers

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"campus-gateway"

	"periph.io/x/conn/v3/physic"
)

// vectorSet is one file of testdata/vectors.
type vectorSet struct {
	Chip      string
	Address   string
	Tolerance map[string]json.RawMessage // a number, or {abs, rel}
	Cases     []vectorCase
}

type vectorCase struct {
	Name      string
	Config    map[string]any
	Registers map[string]string
	Script    []struct {
		Write string
		Read  string
		NACK  bool
	}
	Expect      map[string]struct{ Value float64 }
	ExpectError string `json:"expect_error"`
}

// vectorChip says how a file's cases are put to our driver.
type vectorChip struct {
	driver  string
	options func(config map[string]any) string // of the driver, as YAML
	replies map[string]string                  // to commands that the cases do not show (identification), by command
	words   bool                               // registers are 16 bit wide: no running on from one to the next
}

// vectorChips has one row for every file.
var vectorChips = map[string]vectorChip{
	"ads1115": {driver: "ads1115", words: true, options: func(c map[string]any) string { return fmt.Sprintf("{range: %v}", c["range_v"]) }},
	"scd4x":   {driver: "scd4x", replies: map[string]string{"3682": "f896319f07c23bbe89"}},
	"sht4x":   {driver: "sht4x", replies: map[string]string{"89": "beef92beef92"}},
	"bme280":  {driver: "bme280"},
	"bmp280":  {driver: "bmp280"},
	"dps310": {driver: "dps310", options: func(c map[string]any) string {
		samples := func(code any) int { return 1 << int(code.(float64)) }
		return fmt.Sprintf("{pressure_oversampling: %d, temperature_oversampling: %d}", samples(c["osr_code"]), samples(c["tosr_code"]))
	}},
	"tmp102": {driver: "tmp102", words: true},
	"bh1750": {driver: "bh1750", options: func(c map[string]any) string { return fmt.Sprintf("{mtreg: %v}", c["mtreg"]) }},
}

// TestVectors puts every case of every file to the driver of its chip: raw
// bytes in, the vendor's value out within the file's tolerance, or a refusal.
func TestVectors(t *testing.T) {
	files, err := filepath.Glob("testdata/vectors/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	cases := 0
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var set vectorSet
		if err := json.Unmarshal(raw, &set); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		vc, ok := vectorChips[set.Chip]
		if !ok {
			t.Errorf("%s: no row in vectorChips", file)
			continue
		}
		d, ok := Lookup(vc.driver)
		if !ok {
			t.Errorf("no driver %s", vc.driver)
			continue
		}
		addr, err := strconv.ParseUint(set.Address, 0, 7)
		if err != nil {
			t.Fatalf("%s: address: %v", file, err)
		}
		for _, c := range set.Cases {
			cases++
			t.Run(set.Chip+"/"+c.Name, func(t *testing.T) {
				opts := "{}"
				if vc.options != nil {
					opts = vc.options(c.Config)
				}
				values, err := senseVector(t, d, opts, uint16(addr), newVectorBus(t, vc, c))
				if c.ExpectError != "" {
					if err == nil {
						t.Errorf("accepted %v, must be refused (%s)", values, c.ExpectError)
					}
					return
				}
				if ready, ok := c.Expect["data_ready"]; ok && ready.Value == 0 {
					if !errors.Is(err, ErrNotReady) {
						t.Errorf("got %v, %v, want ErrNotReady", values, err)
					}
					return
				}
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				compareVector(t, set, c, values)
			})
		}
	}
	t.Logf("%d cases", cases)
}

func senseVector(t *testing.T, d *Driver, opts string, addr uint16, b *vectorBus) (values []gateway.Value, err error) {
	synctest.Test(t, func(t *testing.T) {
		var r gateway.Resource
		r, err = (&Opener{Host: bench{bus: b}}).Open(t.Context(), d, Place{Bus: "i2c-1", Address: addr}, options(t, d, opts))
		if err == nil {
			values, err = r.(gateway.Sensor).Sense(t.Context())
		}
	})
	return values, err
}

func compareVector(t *testing.T, set vectorSet, c vectorCase, values []gateway.Value) {
	t.Helper()
	for name, want := range c.Expect {
		if name == "data_ready" {
			continue // a step of the driver's own: not ready is an error of Sense
		}
		if name == string(gateway.Humidity) {
			// The notes of sht4x.json: the vendor's code leaves out the cropping
			// that its datasheet demands.
			want.Value = min(max(want.Value, 0), 100)
		}
		got := math.NaN()
		for _, v := range values {
			if string(v.Quantity) == name {
				got = v.V.(float64)
			}
		}
		tol := struct{ Abs, Rel float64 }{}
		if json.Unmarshal(set.Tolerance[name], &tol.Abs) != nil {
			if err := json.Unmarshal(set.Tolerance[name], &tol); err != nil {
				t.Fatalf("tolerance of %s: %v", name, err)
			}
		}
		if allowed := tol.Abs + tol.Rel*math.Abs(want.Value); !(math.Abs(got-want.Value) <= allowed+1e-12) {
			t.Errorf("%s: got %v, want %v within %v", name, got, want.Value, allowed)
		}
	}
}

// vectorBus answers with a case's registers or replies, whatever the order in
// which the driver asks. Writes are acknowledged and change nothing.
type vectorBus struct {
	words   bool
	regs    map[byte]byte   // 8 bit registers
	starts  map[byte][]byte // the case's own runs of bytes
	replies map[string][]byte
	nack    map[string]bool
	pointer byte
	command string
}

func newVectorBus(t *testing.T, vc vectorChip, c vectorCase) *vectorBus {
	b := &vectorBus{words: vc.words, regs: map[byte]byte{}, starts: map[byte][]byte{}, replies: map[string][]byte{}, nack: map[string]bool{}}
	unhex := func(s string) []byte {
		v, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for at, bytes := range c.Registers {
		start, err := strconv.ParseUint(at, 0, 8)
		if err != nil {
			t.Fatal(err)
		}
		b.starts[byte(start)] = unhex(bytes)
		for i, v := range unhex(bytes) {
			b.regs[byte(start)+byte(i)] = v
		}
	}
	for w, r := range vc.replies {
		b.replies[w] = unhex(r)
	}
	for _, s := range c.Script {
		b.replies[strings.ToLower(s.Write)] = unhex(s.Read)
		b.nack[strings.ToLower(s.Write)] = s.NACK
	}
	return b
}

func (b *vectorBus) String() string                  { return "i2c-1" }
func (b *vectorBus) Close() error                    { return nil }
func (b *vectorBus) SetSpeed(physic.Frequency) error { return nil }

func (b *vectorBus) Tx(_ uint16, w, r []byte) error {
	if len(w) > 0 {
		b.pointer, b.command = w[0], hex.EncodeToString(w)
	}
	if len(r) == 0 {
		return nil
	}
	if len(b.starts) == 0 {
		reply, ok := b.replies[b.command]
		if !ok || b.nack[b.command] || len(reply) < len(r) {
			return errPulled
		}
		copy(r, reply)
		return nil
	}
	if b.words {
		if len(b.starts[b.pointer]) < len(r) {
			return errPulled
		}
		copy(r, b.starts[b.pointer])
		return nil
	}
	for i := range r {
		r[i] = b.regs[b.pointer+byte(i)]
	}
	return nil
}
