package sim

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/i2c"
)

func TestBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBus("i2c-1")
		x := NewBME280(still(Conditions{}))
		b.Attach(0x76, x)
		id := func() (byte, error) {
			var r [1]byte
			err := (&i2c.Dev{Bus: b, Addr: 0x76}).Tx([]byte{0xd0}, r[:])
			return r[0], err
		}
		if v, err := id(); v != 0x60 || err != nil {
			t.Fatalf("id %x, %v", v, err)
		}
		if err := b.Tx(0x77, []byte{0xd0}, make([]byte, 1)); !errors.Is(err, ErrNACK) || err.Error() != "remote I/O error" {
			t.Errorf("an empty address: %v", err)
		}
		if err := b.Tx(0x77, nil, nil); err != nil {
			t.Errorf("an empty transaction: %v", err)
		}

		if err := b.Tx(0x76, []byte{0xf4, 0x24}, nil); err != nil {
			t.Fatal(err)
		}
		b.Unplug(0x76)
		if _, err := id(); err != ErrNACK {
			t.Errorf("unplugged: %v", err)
		}
		b.Plug(0x76)
		if v, err := id(); v != 0x60 || err != nil {
			t.Errorf("plugged again: id %x, %v", v, err)
		}
		if x.regs.Bytes[bmeCtrlMeas] != 0 {
			t.Errorf("the chip came back with its settings")
		}
		b.Unplug(0x12) // nobody
		b.Plug(0x12)
		b.Corrupt(0x12, 1)

		lost := errors.New("lost arbitration")
		b.FailNext(2, lost)
		for i, want := range []error{lost, lost, nil} {
			if _, err := id(); err != want {
				t.Errorf("transaction %d: %v, want %v", i, err, want)
			}
		}
		b.Corrupt(0x76, 1)
		if err := b.Tx(0x76, []byte{0xd0}, nil); err != nil {
			t.Fatal(err)
		}
		if v, _ := id(); v != 0x61 {
			t.Errorf("corrupted id %x", v)
		}
		if v, _ := id(); v != 0x60 {
			t.Errorf("corrupted twice: id %x", v)
		}

		b.Hang()
		b.Hang()
		done := make(chan error, 2)
		for range 2 {
			go func() { _, err := id(); done <- err }()
		}
		time.Sleep(time.Hour)
		select {
		case err := <-done:
			t.Errorf("a hanging bus answered: %v", err)
		default:
		}
		b.Release()
		b.Release()
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("after release: %v", err)
			}
		}
	})
}

func TestRegisters(t *testing.T) {
	x := &Registers{}
	ask(t, x, "fe010203", 0)
	if got := fmt.Sprintf("%x", ask(t, x, "fe", 3)); got != "010203" { // around the end
		t.Errorf("got %s", got)
	}
	ask(t, x, "fe", 0)
	if got := fmt.Sprintf("%x", append(ask(t, x, "", 1), ask(t, x, "", 1)...)); got != "0102" {
		t.Errorf("the pointer stays behind: %s", got)
	}
	x = &Registers{Pairs: true}
	ask(t, x, "100120023003", 0)
	if x.Bytes[0x10] != 1 || x.Bytes[0x20] != 2 || x.Bytes[0x30] != 3 || x.Bytes[0x11] != 0 {
		t.Errorf("pairs: %x", x.Bytes[0x10:0x31])
	}
}

func TestBoard(t *testing.T) {
	b := NewBoard(NewRoom(lectureTime, 1))
	bus, err := b.I2C("i2c-1")
	if err != nil || bus != i2c.BusCloser(b.Bus) {
		t.Fatalf("i2c-1: %v, %v", bus, err)
	}
	if err := bus.Close(); err != nil {
		t.Fatal(err)
	}
	for addr, w := range map[uint16][]byte{0x23: {0x01}, 0x44: {0x89}, 0x48: {0x01}, 0x62: {0xe4, 0xb8}, 0x76: {0xd0}} {
		if err := bus.Tx(addr, w, nil); err != nil {
			t.Errorf("%02x: %v", addr, err)
		}
	}
	for _, name := range []string{"GPIO17", "GPIO27"} {
		if p, err := b.Pin(name); err != nil || p.Name() != name || fmt.Sprintf("GPIO%d", p.Number()) != name || !strings.HasPrefix(p.(*Pin).Function(), "In/") {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
	if c, err := b.Pulses("GPIO22"); err != nil || c.String() != "GPIO22" || c.Close() != nil {
		t.Errorf("GPIO22: %v, %v", c, err)
	}
	_, err1 := b.I2C("i2c-10")
	_, err2 := b.Pin("GPIO22")
	_, err3 := b.Pulses("GPIO17")
	for _, e := range []struct {
		err  error
		want string
	}{
		{err1, "sim: no bus i2c-10: the simulated board has i2c-0 to i2c-9"},
		{err2, "sim: no line GPIO22 to read: the simulated board has GPIO17 (motion) and GPIO27 (door)"},
		{err3, "sim: no pulses on line GPIO17: the simulated board has them on GPIO22 (water)"},
	} {
		if e.err == nil || e.err.Error() != e.want {
			t.Errorf("got %v, want %s", e.err, e.want)
		}
	}
}

// The analog inputs follow the room, and the soil probe's curve reads back.
func TestBoardAnalog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room := NewRoom(lectureTime, 1)
		b := NewBoard(room)
		for range 48 {
			time.Sleep(time.Hour)
			var v [4]float64
			for i := range v {
				if err := b.Bus.Tx(0x48, []byte{1, 0xc3 | byte(i)<<4, 0x83}, nil); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond)
				var r [2]byte
				if err := b.Bus.Tx(0x48, []byte{0}, r[:]); err != nil {
					t.Fatal(err)
				}
				v[i] = float64(int16(u16(r[:]))) * 4.096 / 32768
			}
			air := room.At(room.Now())
			within(t, "soil", (2.8-v[0])/1.6*100, air.Soil, 0.05)
			within(t, "supply", v[1], 2.5, 0.0011)
			if dark := air.Illuminance == 0; dark != (v[2] < 0.04) || v[2] > 3.3 {
				t.Errorf("photoresistor %v V at %v lx", v[2], air.Illuminance)
			}
			within(t, "ground", v[3], 0, 0)
		}
	})
}

// Everything at once, for the race detector.
func TestBoardTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBoard(NewRoom(lectureTime, 100))
		var wg sync.WaitGroup
		for i := range 4 {
			for addr, w := range map[uint16][]byte{0x23: {0x20}, 0x44: {0xfd}, 0x48: {0x01, 0xc3, 0x83}, 0x62: {0xe4, 0xb8}, 0x76: {0xf4, 0x25}} {
				wg.Go(func() {
					for range 50 {
						b.Bus.Tx(addr, w, nil)
						time.Sleep(10 * time.Millisecond)
						b.Bus.Tx(addr, nil, make([]byte, 6))
					}
				})
			}
			wg.Go(func() {
				p, _ := b.Pin([]string{"GPIO17", "GPIO27"}[i%2])
				for range 20 {
					p.In(gpio.PullUp, gpio.BothEdges)
					p.WaitForEdge(time.Second)
					p.Read()
					p.Halt()
				}
			})
			wg.Go(func() {
				for range 20 {
					b.Bus.Unplug(0x76)
					b.Bus.Corrupt(0x62, 1)
					b.Bus.FailNext(1, ErrNACK)
					time.Sleep(7 * time.Millisecond)
					b.Bus.Plug(0x76)
				}
			})
		}
		wg.Wait()
	})
}

// FuzzChips puts transactions made from random bytes, with random waits, to
// every chip: no panic, and only the bytes asked for are touched.
func FuzzChips(f *testing.F) {
	f.Add([]byte("\x02\x06\xf4\x25\x10\x01\x08\xf7"))
	f.Add([]byte("\x02\x00\x21\xb1\xff\x02\x00\xec\x05\x01\x00\x09"))
	f.Add([]byte("\x03\x00\x01\xc3\x83\x20\x01\x02\x00\x02"))
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			air := NewRoom(lectureTime, 1e6).Air(1)
			chips := []Chip{NewBME280(air), NewBMP280(air), NewSHT4x(air), NewSCD41(air), NewBH1750(air),
				NewADS1115([4]Volts{func(t time.Time) float64 { return air(t).Soil - 30 }}),
				NewTMP102(air), NewTMP105(air), NewLM75(air), NewDPS310(air), &Registers{}}
			for len(data) >= 3 {
				nw, nr, wait := int(data[0]&7), int(data[1]&15), data[2]
				data = data[3:]
				w := data[:min(nw, len(data))]
				data = data[len(w):]
				for _, c := range chips {
					r := []byte("................")
					err := c.Tx(w, r[:nr:nr])
					if err != nil && err != ErrNACK {
						t.Errorf("%T: %v", c, err)
					}
					if string(r[nr:]) != "................"[nr:] {
						t.Errorf("%T wrote beyond the %d bytes", c, nr)
					}
				}
				time.Sleep(time.Duration(wait) * time.Duration(wait) * time.Millisecond / 8)
				if wait == 255 {
					for _, c := range chips {
						if p, ok := c.(interface{ PowerUp() }); ok {
							p.PowerUp()
						}
					}
				}
			}
		})
	})
}
