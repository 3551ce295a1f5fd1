package bus

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"periph.io/x/conn/v3/gpio"
	"periph.io/x/host/v3/gpioioctl"
)

// The sizes are part of the request numbers: a wrong one reads past our memory.
func TestLayouts(t *testing.T) {
	for name, sizes := range map[string][2]uintptr{
		"gpiochip_info":         {unsafe.Sizeof(gpioChipInfo{}), 68},
		"gpio_v2_line_info":     {unsafe.Sizeof(gpioLineInfo{}), 256},
		"gpio_v2_line_config":   {unsafe.Sizeof(gpioConfig{}), 272},
		"gpio_v2_line_request":  {unsafe.Sizeof(gpioLineRequest{}), 592},
		"its fd":                {unsafe.Offsetof(gpioLineRequest{}.fd), 588},
		"its number of lines":   {unsafe.Offsetof(gpioLineRequest{}.numLines), 560},
		"i2c_msg":               {unsafe.Sizeof(i2cMsg{}), 8 + unsafe.Sizeof(uintptr(0))},
		"i2c_rdwr_ioctl_data's": {unsafe.Offsetof(i2cRdwrData{}.n), unsafe.Sizeof(uintptr(0))},
	} {
		if sizes[0] != sizes[1] {
			t.Errorf("%s: %d bytes, the kernel's has %d", name, sizes[0], sizes[1])
		}
	}
}

func event(at time.Duration, seq uint32) []byte {
	b := make([]byte, eventSize)
	binary.NativeEndian.PutUint64(b, uint64(at))
	binary.NativeEndian.PutUint32(b[20:], seq)
	return b
}

func TestTally(t *testing.T) {
	var c tally
	for _, s := range []struct {
		events []byte
		want   Count
	}{
		{nil, Count{}},
		{append(event(10, 1), event(20, 2)...), Count{Edges: 2, First: 10, Last: 20}},
		{event(90, 9), Count{Edges: 9, Lost: 6, First: 10, Last: 90}}, // 3..8 were lost from the queue, not from the count
	} {
		if err := c.add(s.events); err != nil || c.count != s.want {
			t.Errorf("%v: %+v, want %+v", err, c.count, s.want)
		}
	}
	for name, events := range map[string][]byte{"half an event": make([]byte, 24), "the same edge": event(1, 9), "an edge before": event(1, 3)} {
		if err := c.add(events); err == nil {
			t.Errorf("took %s", name)
		}
	}
}

func TestTallyWraps(t *testing.T) {
	c := tally{seq: 1<<32 - 2}
	if err := c.add(append(event(1, 1<<32-1), event(2, 1)...)); err != nil || c.count.Edges != 3 || c.count.Lost != 1 {
		t.Errorf("%v: %+v", err, c.count)
	}
}

func FuzzTally(f *testing.F) {
	f.Add(append(event(1, 1), event(2, 5)...), uint32(0))
	f.Fuzz(func(t *testing.T, events []byte, seq uint32) {
		c := tally{seq: seq}
		if err := c.add(events); err == nil && c.count.Edges-c.count.Lost != uint64(len(events)/eventSize) {
			t.Fatalf("%+v from %d events", c.count, len(events)/eventSize)
		}
	})
}

func TestNoLine(t *testing.T) {
	names := []string{"", "GPIO2", "GPIO17", "ID_SDA"}
	for name, want := range map[string]string{"gpio17": "did you mean GPIO17?", "17": "did you mean GPIO17?", "P17": "did you mean GPIO17?", "GPIO99": "here are GPIO2"} {
		if err := noLine(name, append([]string(nil), names...)); !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %q is not in it", err, want)
		}
	}
}

// A pipe stands for the kernel's queue of events.
func TestCounterReads(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	queue := os.NewFile(uintptr(fds[1]), "queue")
	c := &lineCounter{name: "GPIO5", file: os.NewFile(uintptr(fds[0]), "GPIO5")}
	read := func(want Count) {
		t.Helper()
		if got, err := c.Read(); err != nil || got != want {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
	read(Count{})
	var events []byte
	for i := range uint32(1000) { // many more than are read at a time
		events = append(events, event(time.Duration(i+1)*time.Second, i+2)...)
	}
	if _, err := queue.Write(events); err != nil {
		t.Fatal(err)
	}
	read(Count{Edges: 1001, Lost: 1, First: time.Second, Last: 1000 * time.Second})
	read(Count{Edges: 1001, Lost: 1})
	queue.Write(event(time.Hour, 1002))
	read(Count{Edges: 1002, Lost: 1, First: time.Hour, Last: time.Hour})
	queue.Close()
	if got, err := c.Read(); err == nil || got != (Count{}) || err.Error() != "GPIO5: the line is gone" {
		t.Errorf("%+v, %v", got, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(); err == nil {
		t.Error("read after Close")
	}
}

// A Read ends though edges come as fast as it takes them. A file never has too
// few of them.
func TestCounterStorm(t *testing.T) {
	var events []byte
	for i := range uint32(3 * eventBuffer) {
		events = append(events, event(1, i+1)...)
	}
	path := filepath.Join(t.TempDir(), "events")
	if err := os.WriteFile(path, events, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	c := &lineCounter{file: f}
	defer c.Close()
	if got, err := c.Read(); err != nil || got.Edges != 2*eventBuffer {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestCounterRequest(t *testing.T) {
	for _, c := range []struct {
		opts  CounterOpts
		flags uint64 // as numbers, from linux/gpio.h
	}{
		{CounterOpts{Edge: gpio.RisingEdge}, 0x14},
		{CounterOpts{Edge: gpio.FallingEdge, Pull: gpio.PullUp}, 0x124},
		{CounterOpts{Edge: gpio.BothEdges, Pull: gpio.PullDown}, 0x234},
		{CounterOpts{Edge: gpio.BothEdges, Pull: gpio.Float}, 0x434},
	} {
		r, err := counterRequest(c.opts)
		if err != nil || r.config.flags != c.flags || r.config.numAttrs != 0 || r.numLines != 1 || r.bufferSize != 1024 {
			t.Errorf("%+v: %+v, %v", c.opts, r, err)
		}
	}
	r, err := counterRequest(CounterOpts{Edge: gpio.RisingEdge, Debounce: 1500 * time.Microsecond})
	if err != nil || r.config.numAttrs != 1 || r.config.attrs[0].mask != 1 || r.config.attrs[0].attr.id != 3 ||
		*(*uint32)(unsafe.Pointer(&r.config.attrs[0].attr.value)) != 1500 {
		t.Errorf("%+v, %v", r.config, err)
	}
	for _, o := range []CounterOpts{
		{}, {Edge: 4}, {Edge: -1},
		{Edge: gpio.RisingEdge, Debounce: -1}, {Edge: gpio.RisingEdge, Debounce: 2 * time.Hour}, // more than its 32 bits hold
	} {
		if _, err := openCounter("GPIO5", o); err == nil || !strings.HasPrefix(err.Error(), "GPIO5: ") || strings.Contains(err.Error(), "line") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// gpioioctl closes file 0 where a chip has two names. Without remedy the line
// that is taken next becomes file 0, which gpioioctl thinks is none.
func TestHoldFile0(t *testing.T) {
	(&gpioioctl.GPIOChip{}).Close()
	holdFile0()
	holdFile0()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Fd() == 0 {
		t.Error("file 0 is free to be taken")
	}
}
