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
	"cmp"
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
// (err, syscall.EREMOTEIO) where nobody has acknowledged; see NoAck and Fault.
// It waits 2 s at most for its turn, and then 2 s for the kernel (ErrHung). r
// holds what was read after success only, else what it held before.
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
		return fmt.Errorf("bus stuck (SDA low?): nothing on it answers: pull the chips off one by one, look at the pull-up resistors, or switch the power off and on: %w", err)
	}
	return err
}

// suspect watches for a bus on which nothing works any more.
type suspect struct {
	mu    sync.Mutex
	fails int             // in a row
	addrs map[uint16]bool // that failed in a row
}

// Faults in a row, or different addresses among them, that make the bus be
// called stuck. On a bus with one chip there are no other addresses to go by.
const (
	stuckFails = 8
	stuckAddrs = 3
)

// stuck takes the outcome of a transaction. An answer, or an address that nobody
// acknowledges, shows a bus that works; what else there is shows nothing.
func (s *suspect) stuck(addr uint16, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil || NoAck(err):
		s.fails, s.addrs = 0, nil
		return false
	case !Fault(err):
		return false
	}
	if s.addrs == nil {
		s.addrs = map[uint16]bool{}
	}
	s.addrs[addr] = true
	s.fails++
	return s.fails >= stuckFails || len(s.addrs) >= stuckAddrs
}

// eremoteio is Linux's number, which package syscall has on Linux only.
const eremoteio = syscall.Errno(121)

// NoAck reports that nobody acknowledged the address, on a bus that works: no
// chip is there, or the chip is busy.
func NoAck(err error) bool { return errors.Is(err, eremoteio) || errors.Is(err, syscall.ENXIO) }

// Fault reports that the bus failed, by a time-out or a lost arbitration: a wire
// is held low, or a chip holds the clock. To a few adapters an address without
// a chip looks the same.
func Fault(err error) bool {
	return errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EBUSY)
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

// explainI2C says what to do about a bus that cannot be opened. dev is /dev, sys
// /sys/bus/i2c/devices.
func explainI2C(dev, sys, name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w: let this user use it with `sudo usermod -aG i2c $USER`, and log in again", name, err)
	case errors.Is(err, fs.ErrNotExist):
		if _, missing := os.Stat(filepath.Join(sys, name)); missing == nil {
			return fmt.Errorf("%s: there is no device file for this bus: make it with `sudo modprobe i2c-dev`: %w", name, err)
		}
		there, _ := filepath.Glob(filepath.Join(dev, "i2c-*"))
		for i, d := range there {
			there[i] = filepath.Base(d)
		}
		slices.Sort(there)
		return fmt.Errorf("%s: there is no such bus (here: %s): on a Raspberry Pi switch I2C on with `sudo raspi-config nonint do_i2c 0`: %w", name, cmp.Or(strings.Join(there, ", "), "none"), err)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// registered are the buses that i2creg has from us. It is as global as i2creg.
var registered struct {
	sync.Mutex
	names map[string]bool
}

// Register lets periph's i2creg.Open give our buses, one for each /dev/i2c-N
// there is now, to other code in this program that uses periph. Each Open is a
// bus of its own, to be closed by who opened it. Done again it adds the buses
// that have come since. It is an error if another driver has registered one
// already (periph's sysfs-i2c: then host.Init was called).
func Register() error {
	devs, err := filepath.Glob("/dev/i2c-*")
	if err != nil {
		return err
	}
	return register(devs, openI2C)
}

func register(devs []string, open func(number int) (*I2C, error)) error {
	registered.Lock()
	defer registered.Unlock()
	var errs []error
	for _, dev := range devs {
		n, err := busNumber(dev)
		if err != nil || registered.names[dev] {
			continue // /dev/i2c-something else, or done before
		}
		err = i2creg.Register(dev, []string{fmt.Sprintf("I2C%d", n)}, n, func() (i2c.BusCloser, error) {
			b, err := open(n)
			if err != nil {
				return nil, err // not b: a nil *I2C in it would be a non-nil bus
			}
			return b, nil
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("i2c-%d: register: %w", n, err))
			continue
		}
		if registered.names == nil {
			registered.names = map[string]bool{}
		}
		registered.names[dev] = true
	}
	return errors.Join(errs...)
}
