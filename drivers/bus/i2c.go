// Package bus opens the hardware of the machine it runs on: I2C buses, GPIO
// lines, and counters of a line's edges.
//
// The I2C bus is our own implementation of periph's i2c.BusCloser. That of
// periph's host (v3.8.5) takes the address of variables on a goroutine's stack
// before it waits for its lock: when the stack moves meanwhile, the kernel is
// handed stale memory, and reads return wrong data without an error. It has no
// deadline either.
package bus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"periph.io/x/conn/v3/i2c"
	"periph.io/x/conn/v3/i2c/i2creg"
	"periph.io/x/conn/v3/physic"
)

// i2cDeadline is far above any transaction: 8192 bytes at 100 kHz take 0.8 s.
const i2cDeadline = 2 * time.Second

// maxTransfer is the kernel's limit of one message, in bytes.
const maxTransfer = 8192

// I2C is one /dev/i2c-N. It is safe for concurrent use: transactions are done
// one at a time, in one goroutine of its own.
type I2C struct {
	number  int
	sys     string // /sys/bus/i2c/devices
	worker  *worker
	suspect suspect
}

func newI2C(number int, sys string, deadline time.Duration, do func(uint16, []byte, []byte) error, release func()) *I2C {
	return &I2C{number: number, sys: sys, worker: startWorker(deadline, do, release)}
}

// String is the bus's name, i2c-1.
func (b *I2C) String() string { return fmt.Sprintf("i2c-%d", b.number) }

// Tx writes w and then reads len(r) bytes, either of which may be empty but not
// both, without a stop in between. Errors keep the kernel's number: errors.Is
// (err, syscall.EREMOTEIO) where nobody has acknowledged. It returns within
// 2 s (ErrHung), whatever the kernel does.
func (b *I2C) Tx(addr uint16, w, r []byte) error {
	switch {
	case addr > 0x7f:
		return fmt.Errorf("address %#x: only 7-bit addresses are supported", addr)
	case len(w) == 0 && len(r) == 0:
		return errors.New("an empty transaction: nothing to write, nothing to read")
	case len(w) > maxTransfer || len(r) > maxTransfer:
		return fmt.Errorf("%d bytes out, %d in: the kernel takes %d at most", len(w), len(r), maxTransfer)
	}
	err := b.worker.tx(addr, w, r)
	if b.suspect.stuck(addr, err) {
		return fmt.Errorf("the bus is stuck, no address answers (is SDA or SCL held low? pull the chips off one by one, or switch the power off and on): %w", err)
	}
	return err
}

// suspect watches for a bus on which nothing works any more.
type suspect struct {
	mu    sync.Mutex
	fails int             // in a row
	addrs map[uint16]bool // that failed in a row
}

// Transactions in a row, and different addresses among them, that fail before
// the bus is called stuck. One chip that is not there is no stuck bus, though on
// some adapters it times out too.
const (
	stuckFails = 6
	stuckAddrs = 2
)

// stuck takes the outcome of a transaction. An answer, or an address that nobody
// acknowledges, shows a bus that works.
func (s *suspect) stuck(addr uint16, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !errors.Is(err, syscall.ETIMEDOUT) && !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EBUSY) {
		s.fails, s.addrs = 0, nil
		return false
	}
	if s.addrs == nil {
		s.addrs = map[uint16]bool{}
	}
	s.addrs[addr] = true
	s.fails++
	return s.fails >= stuckFails && len(s.addrs) >= stuckAddrs
}

// Owner is the kernel driver that is bound to an address of this bus, empty if
// there is none. The kernel lets us talk over its head (I2C_RDWR does not ask);
// whoever opens a sensor should not.
func (b *I2C) Owner(addr uint16) string {
	link, err := os.Readlink(filepath.Join(b.sys, fmt.Sprintf("%d-%04x", b.number, addr), "driver"))
	if err != nil {
		return ""
	}
	return filepath.Base(link)
}

// SetSpeed is not supported: on Linux the device tree sets the speed.
func (b *I2C) SetSpeed(physic.Frequency) error {
	return fmt.Errorf("%s: the speed is set by the system: on a Raspberry Pi write dtparam=i2c_arm_baudrate=50000 into /boot/firmware/config.txt and restart it", b)
}

// Close ends the bus. A transaction that hangs keeps the device until it ends.
func (b *I2C) Close() error {
	b.worker.close()
	return nil
}

var busName = regexp.MustCompile(`^(?:/dev/)?(?:i2c-)?(\d{1,4})$`)

// busNumber accepts i2c-1, /dev/i2c-1 and 1.
func busNumber(name string) (int, error) {
	m := busName.FindStringSubmatch(name)
	if m == nil {
		return 0, fmt.Errorf("%q is no I2C bus: want i2c-1", name)
	}
	return strconv.Atoi(m[1])
}

// explainI2C says what to do about a bus that cannot be opened.
func explainI2C(dev, name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w: let this user use it with `sudo usermod -aG i2c $USER`, and log in again", name, err)
	case errors.Is(err, fs.ErrNotExist):
		there, _ := filepath.Glob(filepath.Join(dev, "i2c-*"))
		if len(there) == 0 {
			return fmt.Errorf("%s: there is no I2C bus here: on a Raspberry Pi switch it on with `sudo raspi-config nonint do_i2c 0`, elsewhere load it with `sudo modprobe i2c-dev`", name)
		}
		for i, d := range there {
			there[i] = filepath.Base(d)
		}
		slices.Sort(there)
		return fmt.Errorf("%s: there is no such bus: here are %s", name, strings.Join(there, ", "))
	}
	return fmt.Errorf("%s: %w", name, err)
}

// Register lets periph's i2creg.Open give our buses, one for each /dev/i2c-N
// there is now, to other programs on the same machine that use periph.
func Register() error {
	devs, err := filepath.Glob("/dev/i2c-*")
	if err != nil {
		return err
	}
	return register(devs)
}

func register(devs []string) error {
	var errs []error
	for _, dev := range devs {
		n, err := busNumber(dev)
		if err != nil {
			continue // /dev/i2c-something else
		}
		open := func() (i2c.BusCloser, error) { return openI2C(n) }
		if err := i2creg.Register(dev, []string{fmt.Sprintf("I2C%d", n)}, n, open); err != nil {
			errs = append(errs, fmt.Errorf("register i2c-%d: %w", n, err))
		}
	}
	return errors.Join(errs...)
}
