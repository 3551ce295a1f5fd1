//go:build hil

package bus_test

import (
	"fmt"
	"sync"
	"testing"

	"campus-gateway/drivers/bus"

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
