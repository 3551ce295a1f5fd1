package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// Codec packs readings into the body of a log block and back. Readings of one
// shape (sensor, boot, quantities) are laid out in columns: times and decimal
// values as varints of their change, which a general compressor packs well.
//
// A block's body, version 1: a table of strings; a table of shapes; the shape
// of each reading in order; then for each shape its times and its columns.
// Times are kept to the millisecond, all a broker keeps. Values come back bit
// for bit. It holds no state; use it from any goroutine.
type Codec struct{}

const codecVersion = 1

// How a column's values are written.
const (
	columnRaw    = 15 // float64 bits, little endian
	columnSwitch = 14 // a byte each
	columnText   = 13 // indexes into the strings
	maxDecimals  = 9  // 0..9: value × 10^n as the varint of its change
)

// Limits of what Decode believes. Blocks hold 1,000 readings; these only keep a
// damaged length from being allocated.
const (
	maxStrings = 1 << 16
	maxColumns = 256
	maxString  = 1 << 16
)

// pow10 is exact: float64 holds powers of ten up to 10^22.
var pow10 = [maxDecimals + 1]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9}

type shape struct {
	sensor, boot int // strings
	synced       bool
	columns      []column
	readings     []int // indexes into the block
}

type column struct {
	quantity int // string
	mode     byte
}

// Append appends the body of a block of rs, which have passed Check, to dst.
func (Codec) Append(dst []byte, rs []Reading) ([]byte, error) {
	e := encoder{strings: map[string]int{}, shapes: map[string]int{}}
	order := make([]int, len(rs))
	for i, r := range rs {
		var err error
		if order[i], err = e.shapeOf(r); err != nil {
			return dst, fmt.Errorf("%s: %w", r.Sensor, err)
		}
		s := &e.list[order[i]]
		s.readings = append(s.readings, i)
	}
	for i := range e.list {
		s := &e.list[i]
		for c := range s.columns {
			s.columns[c].mode = e.mode(rs, s.readings, c)
		}
	}
	dst = append(dst, codecVersion)
	dst = binary.AppendUvarint(dst, uint64(len(e.names)))
	for _, n := range e.names {
		dst = binary.AppendUvarint(dst, uint64(len(n)))
		dst = append(dst, n...)
	}
	dst = binary.AppendUvarint(dst, uint64(len(e.list)))
	for _, s := range e.list {
		dst = binary.AppendUvarint(dst, uint64(s.sensor))
		dst = binary.AppendUvarint(dst, uint64(s.boot))
		dst = append(dst, truth(s.synced))
		dst = binary.AppendUvarint(dst, uint64(len(s.columns)))
		for _, c := range s.columns {
			dst = binary.AppendUvarint(dst, uint64(c.quantity))
			dst = append(dst, c.mode)
		}
	}
	for _, s := range order {
		dst = binary.AppendUvarint(dst, uint64(s))
	}
	for _, s := range e.list {
		var wall, pace, offset int64
		for k, i := range s.readings {
			w := rs[i].At.Wall.UnixMilli()
			o := w - rs[i].At.Since.Milliseconds() // changes only when the clock is set
			step := w - wall
			dst = binary.AppendVarint(dst, step-pace)
			dst = binary.AppendVarint(dst, o-offset)
			wall, offset = w, o
			if k > 0 { // the first step is the whole of the time
				pace = step
			}
		}
		for c, col := range s.columns {
			var last int64
			for _, i := range s.readings {
				switch v := rs[i].Values[c].V.(type) {
				case bool:
					dst = append(dst, truth(v))
				case string:
					dst = binary.AppendUvarint(dst, uint64(e.strings[v]))
				case float64:
					if col.mode == columnRaw {
						dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
						continue
					}
					n := int64(math.Round(v * pow10[col.mode]))
					dst = binary.AppendVarint(dst, n-last)
					last = n
				}
			}
		}
	}
	return dst, nil
}

type encoder struct {
	names   []string
	strings map[string]int
	shapes  map[string]int
	list    []shape
	key     []byte
}

func (e *encoder) string(s string) int {
	i, ok := e.strings[s]
	if !ok {
		i = len(e.names)
		e.strings[s] = i
		e.names = append(e.names, s)
	}
	return i
}

func (e *encoder) shapeOf(r Reading) (int, error) {
	sensor, boot := e.string(r.Sensor), e.string(string(r.At.Boot))
	e.key = binary.AppendUvarint(e.key[:0], uint64(sensor))
	e.key = binary.AppendUvarint(e.key, uint64(boot))
	e.key = append(e.key, truth(r.At.Synced))
	for _, v := range r.Values {
		e.key = binary.AppendUvarint(e.key, uint64(e.string(string(v.Quantity))))
		switch x := v.V.(type) {
		case float64:
			e.key = append(e.key, 0)
		case bool:
			e.key = append(e.key, columnSwitch)
		case string:
			e.key = append(e.key, columnText)
			e.string(x)
		default:
			return 0, fmt.Errorf("%s: a value cannot be a %T", v.Quantity, v.V)
		}
	}
	i, ok := e.shapes[string(e.key)]
	if !ok {
		i = len(e.list)
		e.shapes[string(e.key)] = i
		s := shape{sensor: sensor, boot: boot, synced: r.At.Synced}
		for _, v := range r.Values {
			s.columns = append(s.columns, column{quantity: e.string(string(v.Quantity))})
		}
		e.list = append(e.list, s)
	}
	return i, nil
}

// mode is the fewest decimals that bring every value of a column back bit for
// bit, or raw.
func (e *encoder) mode(rs []Reading, readings []int, c int) byte {
	switch rs[readings[0]].Values[c].V.(type) {
	case bool:
		return columnSwitch
	case string:
		return columnText
	}
	decimals := 0
	for _, i := range readings {
		v := rs[i].Values[c].V.(float64)
		for ; decimals <= maxDecimals; decimals++ {
			n := math.Round(v * pow10[decimals])
			if math.Abs(n) < 1<<53 && math.Float64bits(float64(int64(n))/pow10[decimals]) == math.Float64bits(v) {
				break
			}
		}
		if decimals > maxDecimals {
			return columnRaw
		}
	}
	// More decimals for a later value must not have spoilt an earlier one.
	for _, i := range readings {
		v := rs[i].Values[c].V.(float64)
		n := math.Round(v * pow10[decimals])
		if math.Abs(n) >= 1<<53 || math.Float64bits(float64(int64(n))/pow10[decimals]) != math.Float64bits(v) {
			return columnRaw
		}
	}
	return byte(decimals)
}

func truth(b bool) byte {
	if b {
		return 1
	}
	return 0
}

var errBlock = errors.New("not a block of readings")

// Decode unpacks n readings. It refuses what Append cannot have written.
func (Codec) Decode(src []byte, n int) ([]Reading, error) {
	d := decoder{src: src}
	if v := d.byte(); v != codecVersion {
		return nil, fmt.Errorf("%w of version %d: this program reads version %d", errBlock, v, codecVersion)
	}
	names := make([]string, d.count(maxStrings, 1))
	for i := range names {
		names[i] = string(d.bytes(d.count(maxString, 1)))
	}
	list := make([]shape, d.count(n, 4))
	for i := range list {
		s := &list[i]
		s.sensor, s.boot, s.synced = d.index(len(names)), d.index(len(names)), d.byte() == 1
		s.columns = make([]column, d.count(maxColumns, 2))
		for c := range s.columns {
			s.columns[c] = column{d.index(len(names)), d.byte()}
		}
	}
	if d.bad || n > len(d.src) {
		return nil, errBlock
	}
	rs := make([]Reading, n)
	for i := range rs {
		s := d.index(len(list))
		if d.bad {
			return nil, errBlock
		}
		list[s].readings = append(list[s].readings, i)
	}
	for _, s := range list {
		values := make([]Value, len(s.columns)*len(s.readings))
		var wall, pace, offset int64
		for k, i := range s.readings {
			step := pace + d.varint()
			wall, offset = wall+step, offset+d.varint()
			if k > 0 {
				pace = step
			}
			const longest = math.MaxInt64 / int64(time.Millisecond)
			if since := wall - offset; since > longest || since < -longest {
				return nil, errBlock
			}
			rs[i] = Reading{
				Sensor: names[s.sensor],
				At: Stamp{
					Wall: time.UnixMilli(wall).UTC(), Boot: BootID(names[s.boot]),
					Since: time.Duration(wall-offset) * time.Millisecond, Synced: s.synced,
				},
				Values: values[k*len(s.columns) : (k+1)*len(s.columns) : (k+1)*len(s.columns)],
			}
		}
		for c, col := range s.columns {
			var last int64
			quantity := Quantity(names[col.quantity])
			for k, i := range s.readings {
				v := &rs[i].Values[c]
				v.Quantity = quantity
				number := 0.0
				switch {
				case col.mode == columnRaw:
					number = math.Float64frombits(d.uint64())
					v.V = number
				case col.mode == columnSwitch:
					v.V = d.byte() == 1
				case col.mode == columnText:
					v.V = names[d.index(len(names))]
				case col.mode <= maxDecimals:
					last += d.varint()
					number = float64(last) / pow10[col.mode]
					v.V = number
				default:
					return nil, errBlock
				}
				// The first says for all of a column whether quantity and kind go together.
				if d.bad || number-number != 0 || k == 0 && v.Check() != nil {
					return nil, errBlock
				}
			}
		}
	}
	if d.bad || len(d.src) != 0 {
		return nil, errBlock
	}
	return rs, nil
}

// decoder reads src; the first thing amiss makes it bad for good, and what it
// returns from then on is zero.
type decoder struct {
	src []byte
	bad bool
}

func (d *decoder) bytes(n int) []byte {
	if n > len(d.src) {
		d.bad, n = true, 0
	}
	b := d.src[:n]
	d.src = d.src[n:]
	return b
}

func (d *decoder) byte() byte {
	if b := d.bytes(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if b := d.bytes(8); len(b) == 8 {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.src)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.src = d.src[n:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.src)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.src = d.src[n:]
	return v
}

// count is a length of at most max, of things that take at least size bytes each.
func (d *decoder) count(max, size int) int {
	v := d.uvarint()
	if v > uint64(max) || v > uint64(len(d.src)/size) {
		d.bad = true
		return 0
	}
	return int(v)
}

// index is below n. Where there is nothing to point at it is 0 and bad.
func (d *decoder) index(n int) int {
	v := d.uvarint()
	if v >= uint64(n) {
		d.bad = true
		return 0
	}
	return int(v)
}
