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
	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/i2c"
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
			for i := range 1000 {
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
		b := newI2C(1, t.TempDir(), i2cDeadline, func(_ uint16, w, r []byte) error {
			calls++
			if calls == 2 {
				time.Sleep(30 * time.Second)
				if w[0] != 0x33 {
					t.Error("a transaction that was given up reads its caller's buffer")
				}
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
		w := []byte{0x33}
		if err := b.Tx(2, w, r[:]); !errors.Is(err, ErrHung) || time.Since(begun) != i2cDeadline {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		w[0] = 0
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

// A failed transaction, of which the kernel may have read a part, leaves its
// caller's buffer as it was.
func TestTxFailsCleanly(t *testing.T) {
	b := fakeI2C(t, func(_ uint16, _, r []byte) error { r[0] = 0xaa; return syscall.EIO })
	r := []byte{0x55}
	if err := b.Tx(1, nil, r); !errors.Is(err, syscall.EIO) || r[0] != 0x55 {
		t.Errorf("%v, % x", err, r)
	}
}

// Nobody waits for ever behind others that are slow but do not hang, and their
// transactions are not called hung for the time others took.
func TestTxTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		b := fakeI2C(t, func(uint16, []byte, []byte) error { calls++; time.Sleep(1900 * time.Millisecond); return nil })
		var wg sync.WaitGroup
		var got [4]error
		for i := range got {
			time.Sleep(time.Millisecond)
			wg.Go(func() { got[i] = b.Tx(1, []byte{0}, nil) })
		}
		wg.Wait()
		if got[0] != nil || got[1] != nil || calls != 2 {
			t.Errorf("%v, %d calls", got, calls)
		}
		for _, err := range got[2:] {
			if err == nil || errors.Is(err, ErrHung) || !strings.Contains(err.Error(), "no turn in 2s") {
				t.Errorf("%v", err)
			}
		}
		b.Close() // here, as the cleanup is outside of the bubble
		<-b.worker.done
	})
}

// A transaction that ends at its very deadline is either: the bus is free again.
func TestTxEndsAtDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took := i2cDeadline
		b := newI2C(1, "", i2cDeadline, func(uint16, []byte, []byte) error { time.Sleep(took); return nil }, func() {})
		defer func() { b.Close(); <-b.worker.done }()
		for range 100 {
			took = i2cDeadline
			if err := b.Tx(1, []byte{0}, nil); err != nil && !errors.Is(err, ErrHung) {
				t.Error(err)
			}
			synctest.Wait()
			took = 0
			if err := b.Tx(1, []byte{0}, nil); err != nil {
				t.Fatal(err)
			}
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
		begun := time.Now()
		for range 5 {
			wg.Go(func() {
				if err := b.Tx(1, []byte{0}, nil); !errors.Is(err, ErrHung) || time.Since(begun) != i2cDeadline {
					t.Errorf("%v after %v", err, time.Since(begun))
				}
			})
			time.Sleep(time.Millisecond)
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
	for _, works := range []error{nil, eremoteio, syscall.ENXIO} { // a refused address shows a bus that works
		for _, fault := range []error{syscall.ETIMEDOUT, syscall.EAGAIN, syscall.EBUSY} {
			answer = fault
			if stuck(0x20) || stuck(0x21) || stuck(0x20) {
				t.Errorf("two silent chips are no stuck bus (%v)", fault)
			}
			answer = syscall.EIO // shows nothing
			if stuck(0x23) {
				t.Error("stuck with EIO")
			}
			answer = fault
			if !stuck(0x22) || !stuck(0x20) {
				t.Errorf("no address answers any more, and nobody says so (%v)", fault)
			}
			answer = works
			if stuck(0x22) {
				t.Errorf("stuck with %v", works)
			}
			answer = fault
			for range stuckFails - 1 {
				if stuck(0x20) {
					t.Errorf("still stuck after %v", works)
				}
			}
			if !stuck(0x20) {
				t.Error("the only chip does not answer any more, and nobody says so")
			}
			answer = works
			stuck(0x20)
		}
	}
}

func TestClassify(t *testing.T) {
	for err, want := range map[error][2]bool{
		nil: {}, syscall.EIO: {}, errClosed: {}, ErrHung: {},
		eremoteio: {true, false}, syscall.ENXIO: {true, false},
		syscall.ETIMEDOUT: {false, true}, syscall.EAGAIN: {false, true}, syscall.EBUSY: {false, true},
	} {
		if err != nil {
			err = fmt.Errorf("sht4x{i2c-1(44)}: %w", err)
		}
		if got := [2]bool{NoAck(err), Fault(err)}; got != want {
			t.Errorf("%v: no acknowledge, fault: %v", err, got)
		}
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
	for _, c := range []struct {
		err      error
		dev, sys []string
		want     []string
	}{
		{fs.ErrPermission, nil, nil, []string{"`sudo usermod -aG i2c $USER`"}},
		{fs.ErrNotExist, nil, nil, []string{"there is no such bus (here: none)", "`sudo raspi-config nonint do_i2c 0`"}},
		// A Pi with I2C switched off has the buses of its HDMI sockets.
		{fs.ErrNotExist, []string{"i2c-21", "i2c-20"}, []string{"i2c-21", "i2c-20"}, []string{"(here: i2c-20, i2c-21)", "`sudo raspi-config nonint do_i2c 0`"}},
		{fs.ErrNotExist, nil, []string{"i2c-7", "7-0068"}, []string{"`sudo modprobe i2c-dev`"}},
		{syscall.EIO, nil, nil, []string{"i2c-7: input/output error"}},
	} {
		dev, sys := t.TempDir(), t.TempDir()
		for dir, files := range map[string][]string{dev: c.dev, sys: c.sys} {
			for _, f := range files {
				if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		err := explainI2C(dev, sys, "i2c-7", c.err)
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) || !errors.Is(err, c.err) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v: want %q", err, want)
			}
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
	var opened []*I2C
	open := func(number int) (*I2C, error) {
		if number == 62 {
			return nil, syscall.EIO
		}
		b := newI2C(number, "", time.Second, func(_ uint16, _, r []byte) error { r[0] = 0xaa; return nil }, func() {})
		opened = append(opened, b)
		return b, nil
	}
	devs := []string{"/dev/i2c-61", "/dev/i2c-unnumbered"}
	for range 2 {
		if err := register(devs, open); err != nil {
			t.Fatal(err)
		}
	}
	if err := register(append(devs, "/dev/i2c-62"), open); err != nil { // one has come
		t.Fatal(err)
	}
	for _, name := range []string{"/dev/i2c-61", "I2C61", "61"} {
		b, err := i2creg.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		r := []byte{0}
		if err := b.Tx(1, nil, r); err != nil || r[0] != 0xaa || b != opened[len(opened)-1] {
			t.Errorf("%s: not ours: %v, %v", name, b, err)
		}
		b.Close()
		<-b.(*I2C).worker.done
	}
	if b, err := i2creg.Open("62"); !errors.Is(err, syscall.EIO) || b != nil {
		t.Errorf("%v, %v", b, err)
	}

	if err := i2creg.Register("/dev/i2c-63", []string{"I2C63"}, 63, func() (i2c.BusCloser, error) { return nil, nil }); err != nil {
		t.Fatal(err)
	}
	if err := register([]string{"/dev/i2c-63"}, open); err == nil || !strings.HasPrefix(err.Error(), "i2c-63: register: ") {
		t.Errorf("another driver has it: %v", err)
	}
	for _, name := range []string{"/dev/i2c-61", "/dev/i2c-62", "/dev/i2c-63"} {
		if err := i2creg.Unregister(name); err != nil {
			t.Error(err)
		}
		delete(registered.names, name)
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
	if _, err := h.Counter("GPIO987", CounterOpts{Edge: gpio.RisingEdge}); err == nil || !strings.Contains(err.Error(), "GPIO987") {
		t.Errorf("%v", err)
	}
}

// One bus is shared; one that somebody has closed is opened anew.
func TestHostShares(t *testing.T) {
	h := &Host{buses: map[int]*I2C{987: newI2C(987, "", time.Second, nil, func() {})}}
	a, err := h.I2C("i2c-987")
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := h.I2C("/dev/i2c-987"); b != a {
		t.Error("two of one bus")
	}
	if fmt.Sprint(a) != "i2c-987" {
		t.Errorf("%v", a)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	<-a.(*I2C).worker.done
	if _, err := h.I2C("i2c-987"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a closed bus is handed out: %v", err)
	}

	b := newI2C(4, "", time.Second, nil, func() {})
	h = &Host{buses: map[int]*I2C{4: b}}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	<-b.worker.done
}
