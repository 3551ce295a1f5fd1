package bus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"periph.io/x/conn/v3/gpio"
)

// linux/gpio.h, the character device's second ABI (kernel 5.10).
const (
	gpioGetChipInfo = 0x8044b401 // _IOR(0xb4, 1, struct gpiochip_info)
	gpioGetLineInfo = 0xc100b405 // _IOWR(0xb4, 5, struct gpio_v2_line_info)
	gpioGetLine     = 0xc250b407 // _IOWR(0xb4, 7, struct gpio_v2_line_request)

	lineInput    = 1 << 2
	lineRising   = 1 << 4
	lineFalling  = 1 << 5
	linePullUp   = 1 << 8
	linePullDown = 1 << 9
	lineNoPull   = 1 << 10

	attrDebounce = 3

	// What the kernel keeps of a line's edges until they are read; it takes no
	// more than this for one line.
	eventBuffer = 1024
	eventSize   = 48

	longestDebounce = time.Minute
)

type gpioChipInfo struct {
	_     [64]byte // name, label
	lines uint32
}

type gpioLineInfo struct {
	name, consumer [32]byte
	offset         uint32
	_              uint32       // number of attributes
	_              uint64       // flags
	_              [10]gpioAttr // attributes
	_              [4]uint32
}

type gpioAttr struct {
	id    uint32
	_     uint32
	value uint64 // a union: for the debounce period its first 4 bytes, in µs
}

type gpioConfig struct {
	flags    uint64
	numAttrs uint32
	_        [5]uint32
	attrs    [10]struct {
		attr gpioAttr
		mask uint64
	}
}

type gpioLineRequest struct {
	offsets    [64]uint32
	consumer   [32]byte
	config     gpioConfig
	numLines   uint32
	bufferSize uint32
	_          [5]uint32
	fd         int32
}

// ioctl gives the kernel a structure. Nothing is called between its address
// becoming a number and the kernel having it: then no stack can move.
func ioctl[T any](f *os.File, request uintptr, arg *T) error {
	fd := f.Fd()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(arg)))
	runtime.KeepAlive(arg)
	runtime.KeepAlive(f)
	if errno != 0 {
		return errno
	}
	return nil
}

// findLine looks for a line by its name on every chip, in the chips' order.
func findLine(name string) (line, error) {
	chips, err := filepath.Glob("/dev/gpiochip*")
	if err != nil {
		return line{}, err
	}
	slices.Sort(chips)
	var names []string
	var denied error
	for _, path := range chips {
		if l, err := os.Lstat(path); err == nil && l.Mode()&fs.ModeSymlink != 0 {
			continue // a Pi 5 has two names for one chip
		}
		lines, err := linesOf(path)
		if err != nil {
			denied = err
			continue
		}
		for offset, n := range lines {
			if n == name {
				return line{path, uint32(offset)}, nil
			}
			names = append(names, n)
		}
	}
	switch {
	case errors.Is(denied, fs.ErrPermission):
		return line{}, fmt.Errorf("%s: %w: let this user use GPIO with `sudo usermod -aG gpio $USER`, and log in again", name, denied)
	case denied != nil:
		return line{}, fmt.Errorf("%s: %w", name, denied)
	}
	return line{}, noLine(name, names)
}

func linesOf(chip string) ([]string, error) {
	f, err := os.Open(chip)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info := &gpioChipInfo{}
	if err := ioctl(f, gpioGetChipInfo, info); err != nil {
		return nil, fmt.Errorf("%s: %w", chip, err)
	}
	names := make([]string, info.lines)
	for i := range names {
		l := &gpioLineInfo{offset: uint32(i)}
		if err := ioctl(f, gpioGetLineInfo, l); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", chip, i, err)
		}
		names[i] = text(l.name)
	}
	return names, nil
}

func text(b [32]byte) string {
	s, _, _ := bytes.Cut(b[:], []byte{0})
	return string(s)
}

// lineUser says who has taken a line, as far as the kernel tells.
func lineUser(at line) string {
	user := "another program"
	if f, err := os.Open(at.chip); err == nil {
		defer f.Close()
		if l := (&gpioLineInfo{offset: at.offset}); ioctl(f, gpioGetLineInfo, l) == nil && l.consumer[0] != 0 {
			user = text(l.consumer)
		}
	}
	return user + " uses the line"
}

// noLine names lines that are alike.
func noLine(name string, names []string) error {
	names = slices.DeleteFunc(names, func(n string) bool { return n == "" })
	if len(names) == 0 {
		return fmt.Errorf("%s: there are no named GPIO lines here", name)
	}
	upper := strings.ToUpper(name)
	if slices.Contains(names, upper) {
		return fmt.Errorf("%s: there is no such line: did you mean %s?", name, upper)
	}
	if digits := strings.TrimLeft(upper, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_- "); slices.Contains(names, "GPIO"+digits) {
		return fmt.Errorf("%s: there is no such line: did you mean GPIO%s?", name, digits)
	}
	return fmt.Errorf("%s: there is no such line (`gpioinfo` lists them): here are %s …", name, strings.Join(names[:min(5, len(names))], ", "))
}

// lineCounter counts by the numbers that the kernel gives to a line's edges:
// an edge that the kernel has seen is counted even if its event was lost from
// the queue because nobody read in time.
type lineCounter struct {
	name  string
	file  *os.File
	tally tally
}

func openCounter(name string, o CounterOpts) (Counter, error) {
	r, err := counterRequest(o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	at, err := findLine(name)
	if err != nil {
		return nil, err
	}
	chip, err := os.Open(at.chip)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer chip.Close()
	r.offsets[0] = at.offset
	err = ioctl(chip, gpioGetLine, r)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%s: %s: %w", name, lineUser(at), err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := unix.SetNonblock(int(r.fd), true); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), unix.Close(int(r.fd)))
	}
	return &lineCounter{name: name, file: os.NewFile(uintptr(r.fd), name)}, nil
}

// counterRequest is what the kernel is asked for, but for the line's offset.
func counterRequest(o CounterOpts) (*gpioLineRequest, error) {
	edges, ok := map[gpio.Edge]uint64{
		gpio.RisingEdge: lineRising, gpio.FallingEdge: lineFalling, gpio.BothEdges: lineRising | lineFalling,
	}[o.Edge]
	if !ok {
		return nil, fmt.Errorf("count %v: only RisingEdge, FallingEdge or BothEdges can be counted", o.Edge)
	}
	if o.Debounce < 0 || o.Debounce > longestDebounce {
		return nil, fmt.Errorf("debounce of %v: it is from 0s to %v", o.Debounce, longestDebounce)
	}
	r := &gpioLineRequest{numLines: 1, bufferSize: eventBuffer}
	copy(r.consumer[:], "gateway")
	r.config.flags = lineInput | edges | map[gpio.Pull]uint64{gpio.PullUp: linePullUp, gpio.PullDown: linePullDown, gpio.Float: lineNoPull}[o.Pull]
	if o.Debounce > 0 {
		r.config.numAttrs = 1
		r.config.attrs[0].mask = 1
		r.config.attrs[0].attr.id = attrDebounce
		binary.NativeEndian.PutUint32((*[8]byte)(unsafe.Pointer(&r.config.attrs[0].attr.value))[:], uint32(o.Debounce.Microseconds()))
	}
	return r, nil
}

// Read collects the edges since the Read before, without waiting for any.
func (c *lineCounter) Read() (Count, error) {
	c.tally.count.First, c.tally.count.Last = 0, 0
	raw, err := c.file.SyscallConn()
	if err != nil {
		return Count{}, fmt.Errorf("%s: %w", c.name, err)
	}
	buf := make([]byte, 64*eventSize)
	for range 2 * eventBuffer / 64 { // so that a storm of edges does not keep us: the rest is for the next Read
		var n int
		var readErr error
		if err := raw.Read(func(fd uintptr) bool { n, readErr = unix.Read(int(fd), buf); return true }); err != nil {
			return Count{}, fmt.Errorf("%s: %w", c.name, err)
		}
		switch {
		case errors.Is(readErr, unix.EAGAIN):
			return c.tally.count, nil
		case errors.Is(readErr, unix.EINTR):
			continue
		case readErr != nil:
			return Count{}, fmt.Errorf("%s: %w", c.name, readErr)
		case n == 0:
			return Count{}, fmt.Errorf("%s: the line is gone", c.name)
		}
		if err := c.tally.add(buf[:n]); err != nil {
			return Count{}, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return c.tally.count, nil
}

func (c *lineCounter) Close() error   { return c.file.Close() }
func (c *lineCounter) String() string { return c.name }

// tally adds up events.
type tally struct {
	count Count
	seq   uint32 // of the line's last edge; the kernel begins with 1 and wraps around
}

// add takes a whole number of struct gpio_v2_line_event.
func (t *tally) add(events []byte) error {
	if len(events)%eventSize != 0 {
		return fmt.Errorf("%d bytes are not whole events of %d", len(events), eventSize)
	}
	for ; len(events) > 0; events = events[eventSize:] {
		at := time.Duration(binary.NativeEndian.Uint64(events))
		seq := binary.NativeEndian.Uint32(events[20:])
		step := seq - t.seq
		if step == 0 || step > 1<<31 {
			return fmt.Errorf("edge %d comes after edge %d", seq, t.seq)
		}
		t.seq = seq
		t.count.Edges += uint64(step)
		t.count.Lost += uint64(step - 1)
		if t.count.First == 0 {
			t.count.First = at
		}
		t.count.Last = at
	}
	return nil
}
