package bus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"periph.io/x/conn/v3/i2c/i2creg"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fakeI2C(t *testing.T, do func(uint16, []byte, []byte) error) *I2C {
	b := newI2C(1, t.TempDir(), i2cDeadline, do, func() {})
	t.Cleanup(func() {
		b.Close()
		<-b.worker.done
	})
	return b
}

// Sixteen at a time: one transaction at a time, and each its own data.
func TestTxIsExclusive(t *testing.T) {
	var inside sync.Mutex
	b := fakeI2C(t, func(addr uint16, w, r []byte) error {
		if !inside.TryLock() {
			t.Error("two transactions at once")
		}
		defer inside.Unlock()
		for i := range r {
			r[i] = byte(addr) ^ w[0]
		}
		return nil
	})
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 500 {
				var r [3]byte
				if err := b.Tx(uint16(g), []byte{byte(i)}, r[:]); err != nil {
					t.Error(err)
					return
				}
				if want := byte(g) ^ byte(i); r != [3]byte{want, want, want} {
					t.Errorf("got % x, want %02x", r, want)
				}
			}
		})
	}
	wg.Wait()
}

func TestTxHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		b := newI2C(1, t.TempDir(), i2cDeadline, func(_ uint16, _, r []byte) error {
			calls++
			if calls == 2 {
				time.Sleep(30 * time.Second)
			}
			for i := range r {
				r[i] = 0xaa
			}
			return nil
		}, func() {})
		defer func() { b.Close(); <-b.worker.done }()
		var r [1]byte
		if err := b.Tx(1, nil, r[:]); err != nil || r[0] != 0xaa {
			t.Fatal(err)
		}
		r[0] = 0
		begun := time.Now()
		if err := b.Tx(2, nil, r[:]); !errors.Is(err, ErrHung) || time.Since(begun) != i2cDeadline {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		begun = time.Now()
		for range 100 { // refused at once, and none of them reaches the kernel
			if err := b.Tx(3, nil, r[:]); !errors.Is(err, ErrHung) || time.Since(begun) > 0 {
				t.Errorf("%v after %v", err, time.Since(begun))
			}
		}
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if r[0] != 0 {
			t.Error("a transaction that was given up has written to its caller's buffer")
		}
		if err := b.Tx(4, nil, r[:]); err != nil || r[0] != 0xaa || calls != 3 {
			t.Errorf("it has not come back: %v, %d calls", err, calls)
		}
	})
}

// Those who wait behind a transaction that hangs are let go with it, and a bus
// that hangs can be closed.
func TestTxQueueBehindHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		released := false
		b := newI2C(1, "", i2cDeadline, func(uint16, []byte, []byte) error { <-release; return nil }, func() { released = true })
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				begun := time.Now()
				if err := b.Tx(1, []byte{0}, nil); !errors.Is(err, ErrHung) || time.Since(begun) != i2cDeadline {
					t.Errorf("%v after %v", err, time.Since(begun))
				}
			})
		}
		wg.Wait()
		b.Close()
		synctest.Wait()
		if released {
			t.Error("the device was closed under the kernel's hands")
		}
		close(release)
		<-b.worker.done
		if err := b.Tx(1, []byte{0}, nil); !errors.Is(err, errClosed) || !released {
			t.Errorf("%v, released %v", err, released)
		}
	})
}

func TestTxRefuses(t *testing.T) {
	b := fakeI2C(t, func(uint16, []byte, []byte) error { t.Error("reached the bus"); return nil })
	for name, tx := range map[string]func() error{
		"10 bits":  func() error { return b.Tx(0x80, []byte{1}, nil) },
		"empty":    func() error { return b.Tx(0x20, nil, nil) },
		"too long": func() error { return b.Tx(0x20, make([]byte, maxTransfer+1), nil) },
	} {
		if tx() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := b.SetSpeed(1); err == nil || !strings.Contains(err.Error(), "i2c_arm_baudrate") {
		t.Errorf("%v", err)
	}
}

func TestErrorsKeepTheirNumber(t *testing.T) {
	b := fakeI2C(t, func(uint16, []byte, []byte) error { return syscall.ENXIO })
	if err := b.Tx(0x20, []byte{0}, nil); !errors.Is(err, syscall.ENXIO) || err.Error() != "no such device or address" {
		t.Errorf("%v", err)
	}
}

func TestStuck(t *testing.T) {
	var answer error
	b := fakeI2C(t, func(uint16, []byte, []byte) error { return answer })
	stuck := func(addr uint16) bool {
		err := b.Tx(addr, []byte{0}, nil)
		if !errors.Is(err, answer) {
			t.Errorf("%v", err)
		}
		return err != nil && strings.Contains(err.Error(), "SDA")
	}
	answer = syscall.ETIMEDOUT
	for range 50 {
		if stuck(0x20) {
			t.Fatal("one silent chip is no stuck bus")
		}
	}
	for range stuckFails {
		stuck(0x21)
	}
	if !stuck(0x20) {
		t.Error("nothing answers any more, and nobody says so")
	}
	answer = syscall.ENXIO // an address that is refused shows a bus that works
	if stuck(0x22) {
		t.Error("stuck with ENXIO")
	}
	answer = syscall.ETIMEDOUT
	if stuck(0x21) {
		t.Error("still stuck after it has worked")
	}
}

func TestOwner(t *testing.T) {
	sys := t.TempDir()
	dev := filepath.Join(sys, "1-0068")
	if err := errors.Join(os.Mkdir(dev, 0o755), os.Symlink("../../../../bus/i2c/drivers/rtc-ds1307", filepath.Join(dev, "driver")), os.Mkdir(filepath.Join(sys, "1-0050"), 0o755)); err != nil {
		t.Fatal(err)
	}
	b := newI2C(1, sys, time.Second, nil, func() {})
	defer func() { b.Close(); <-b.worker.done }()
	for addr, want := range map[uint16]string{0x68: "rtc-ds1307", 0x50: "", 0x20: ""} {
		if got := b.Owner(addr); got != want {
			t.Errorf("%#x: %q, want %q", addr, got, want)
		}
	}
}

func TestExplain(t *testing.T) {
	dev := t.TempDir()
	for _, c := range []struct {
		err   error
		there []string
		want  string
	}{
		{fs.ErrPermission, nil, "usermod -aG i2c"},
		{fs.ErrNotExist, nil, "raspi-config nonint do_i2c 0"},
		{fs.ErrNotExist, []string{"i2c-20", "i2c-1"}, "here are i2c-1, i2c-20"},
		{syscall.EIO, nil, "i2c-7: input/output error"},
	} {
		for _, f := range c.there {
			if err := os.WriteFile(filepath.Join(dev, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := explainI2C(dev, "i2c-7", c.err); !strings.Contains(err.Error(), c.want) || !errors.Is(err, c.err) && len(c.there) == 0 && c.err != fs.ErrNotExist {
			t.Errorf("%v: %q is not in it", err, c.want)
		}
	}
}

func TestBusNumber(t *testing.T) {
	for name, want := range map[string]int{"i2c-1": 1, "/dev/i2c-10": 10, "3": 3} {
		if n, err := busNumber(name); err != nil || n != want {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	for _, name := range []string{"", "i2c", "i2c-", "spi-1", "i2c-1/../x", "-1", "99999"} {
		if n, err := busNumber(name); err == nil {
			t.Errorf("%q: %d", name, n)
		}
	}
}

func TestRegister(t *testing.T) {
	if err := register([]string{"/dev/i2c-61", "/dev/i2c-unnumbered"}); err != nil {
		t.Fatal(err)
	}
	defer i2creg.Unregister("/dev/i2c-61")
	for _, name := range []string{"/dev/i2c-61", "I2C61", "61"} {
		_, err := i2creg.Open(name) // there is no such device: the words are ours
		if err == nil || !strings.HasPrefix(err.Error(), "i2c-61: there is no") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := register([]string{"/dev/i2c-61"}); err == nil {
		t.Error("registered twice, and nobody was told")
	}
}

// On a machine without the hardware every request is an error that says why.
func TestHostWithout(t *testing.T) {
	h := &Host{}
	defer h.Close()
	if _, err := h.I2C("i2c-987"); err == nil || !strings.HasPrefix(err.Error(), "i2c-987: ") {
		t.Errorf("%v", err)
	}
	if _, err := h.I2C("nonsense"); err == nil {
		t.Error("opened nonsense")
	}
	if _, err := h.Pin("GPIO987"); err == nil || !strings.Contains(err.Error(), "GPIO987") {
		t.Errorf("%v", err)
	}
	if _, err := h.Counter("GPIO987", CounterOpts{}); err == nil || !strings.Contains(err.Error(), "GPIO987") {
		t.Errorf("%v", err)
	}
}

// What is closed is opened anew, and one bus is shared.
func TestHostShares(t *testing.T) {
	h := &Host{buses: map[int]*I2C{4: newI2C(4, "", time.Second, nil, func() {})}}
	a, err := h.I2C("i2c-4")
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := h.I2C("/dev/i2c-4"); b != a {
		t.Error("two of one bus")
	}
	if fmt.Sprint(a) != "i2c-4" {
		t.Errorf("%v", a)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	<-a.(*I2C).worker.done
}
