//go:build hil

package bus_test

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"campus-gateway/drivers/bus"

	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/i2c"
)

// TestTwoGoroutines runs on a board with a TMP105 at 0x49 (see hil/). It gives
// the chip's two limit registers (TMP105 datasheet, "High and low limit
// registers") different contents and reads them from two goroutines at a time:
// what one reads must never be the other's, and never fail. Each read has a
// fresh goroutine and its own depth of stack, as stacks that grow during a
// transaction are what periph's own bus comes to grief over.
func TestTwoGoroutines(t *testing.T) {
	host := &bus.Host{}
	defer host.Close()
	b, err := host.I2C("i2c-1")
	if err != nil {
		t.Fatal(err)
	}
	want := map[byte][2]byte{2: {0x12, 0x30}, 3: {0x45, 0x60}}
	for register, v := range want {
		if err := b.Tx(0x49, []byte{register, v[0], v[1]}, nil); err != nil {
			t.Fatal(err)
		}
	}
	const reads = 2000
	var both sync.WaitGroup
	for register, v := range want {
		both.Go(func() {
			for i := range reads {
				wrong := make(chan error)
				go func() { wrong <- deep(i%32, b, register, v) }()
				if err := <-wrong; err != nil {
					t.Errorf("read %d of register %d: %v", i, register, err)
				}
			}
		})
	}
	both.Wait()
}

// deep reads a register from a stack that is n frames of 256 bytes deeper.
func deep(n int, b i2c.Bus, register byte, want [2]byte) error {
	var frame [256]byte
	frame[n] = register
	if n > 0 {
		return deep(n-1, b, frame[n], want)
	}
	var got [2]byte
	if err := b.Tx(0x49, []byte{frame[0]}, got[:]); err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("got % x, want % x", got, want)
	}
	return nil
}

// TestPin runs on a board with a quiet line GPIO7 (see hil/).
func TestPin(t *testing.T) {
	var logged bytes.Buffer
	log.SetOutput(&logged)
	defer func() {
		log.SetOutput(os.Stderr)
		if logged.Len() > 0 {
			t.Errorf("on the standard log: %s", &logged)
		}
	}()
	host := &bus.Host{}
	defer host.Close()
	p, err := host.Pin("GPIO7")
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := host.Pin("GPIO7"); again != p {
		t.Error("two pins of one line")
	}
	interrupts := map[string]func() error{
		"Halt": p.Halt,
		"In":   func() error { return p.In(gpio.PullNoChange, gpio.RisingEdge) },
	}
	for name, interrupt := range interrupts {
		if err := p.In(gpio.PullNoChange, gpio.BothEdges); err != nil {
			t.Fatal(err)
		}
		for _, timeout := range []time.Duration{0, 30 * time.Millisecond, 300 * time.Millisecond} {
			begun := time.Now()
			if p.WaitForEdge(timeout) || time.Since(begun) < timeout || time.Since(begun) > timeout+10*time.Second { // the board may stand still for a second
				t.Errorf("WaitForEdge(%v) took %v", timeout, time.Since(begun))
			}
		}
		for _, at := range []time.Duration{0, time.Millisecond, 300 * time.Millisecond} {
			if err := p.In(gpio.PullNoChange, gpio.BothEdges); err != nil {
				t.Fatal(err)
			}
			ended := make(chan bool)
			go func() { ended <- p.WaitForEdge(-1) }()
			time.Sleep(at)
			begun := time.Now()
			err := interrupt()
			edge := false
			select {
			case edge = <-ended:
			case <-time.After(10 * time.Second):
				t.Fatalf("%s after %v does not end a wait", name, at)
			}
			t.Logf("%s after %v ended a wait in %v", name, at, time.Since(begun))
			if err != nil || edge {
				t.Errorf("%s: %v, %v", name, err, edge)
			}
		}
	}
	if err := p.In(gpio.PullNoChange, gpio.BothEdges); err != nil {
		t.Fatal(err)
	}
	counted := bus.CounterOpts{Edge: gpio.BothEdges, Debounce: time.Millisecond}
	if c, err := host.Counter("GPIO7", counted); !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "bus.test@") {
		t.Errorf("a line that is taken: %v, %v", c, err)
	} else {
		t.Log(err)
	}
	if err := p.Halt(); err != nil {
		t.Error(err)
	}
	c, err := host.Counter("GPIO7", counted)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(); err != nil || n != (bus.Count{}) {
		t.Errorf("%+v, %v", n, err)
	}
	if err := p.In(gpio.PullNoChange, gpio.BothEdges); err == nil || !strings.HasPrefix(err.Error(), "gateway uses the line") {
		t.Errorf("a line that is taken: %v", err)
	} else {
		t.Log(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := p.In(gpio.PullNoChange, gpio.NoEdge); err != nil {
		t.Error(err)
	}
	if _, err := host.Pin("gpio7"); err == nil || !strings.Contains(err.Error(), "did you mean GPIO7?") {
		t.Errorf("%v", err)
	}
}
