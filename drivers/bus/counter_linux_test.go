package bus

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"
	"unsafe"
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
