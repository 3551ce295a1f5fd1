package ngsi

import (
	"math"
	"slices"
	"strconv"
	"time"

	"campus-gateway"
)

// template is the text of the entities that readings of one sensor become, but for
// their times and numbers: nothing else differs between two readings that have the
// same quantities in the same order, all of them within their models' bounds.
//
// It knows neither the models nor the dialect: a reading is mapped and written as
// any, twice, with marks for its times and numbers, and where the two texts differ
// is where times and numbers stand.
type template struct {
	takes    []take
	shifts   []time.Duration // of the times that are told, from the reading's
	entities []pattern
}

// take is how one of the values becomes a number.
type take struct {
	quantity gateway.Quantity
	kind     gateway.Kind
	home     home
}

// pattern is one entity of a template.
type pattern struct {
	*Entity // of the reading that the template was made of: only its times and numbers are others
	state   *state
	holes   []hole
	tail    []byte
}

// hole is where a number or a time stands.
type hole struct {
	before []byte
	isTime bool
	index  int // in the values or shifts
}

const (
	numberMark = 1000 // and 2000, and the index of the value
	timeMark   = 3000 // and 4000, and the index of the shift: a year
	maxMarks   = 1000
)

// newTemplate makes the template that r fits, which passes its checks. It is nil if
// r is not such a reading as has one.
func newTemplate(d *dialect, m *Mapper, s *site, r gateway.Reading) *template {
	if !r.At.Earliest.IsZero() || len(r.Values) > maxMarks {
		return nil
	}
	t := &template{takes: make([]take, len(r.Values))}
	for i, v := range r.Values {
		t.takes[i] = take{quantity: v.Quantity, kind: v.Quantity.Kind()}
		if t.takes[i].kind == gateway.Text {
			return nil
		}
		for _, model := range []*model{s.model, models[deviceType]} {
			x, _ := v.V.(float64)
			if h, ok := model.homes[v.Quantity]; ok && !h.within(x) {
				return nil // the next value may be, and go elsewhere
			}
		}
	}
	es := m.Entities(r)
	told := 0
	for i := range es {
		e := &es[i]
		for j := range e.Attrs {
			if a := &e.Attrs[j]; a.home != nil {
				t.takes[a.value].home = *a.home
				told++
			}
		}
		p := pattern{Entity: e}
		a := d.entity([]byte{','}, t.marked(e, r.At.Wall, 0))
		b := d.entity([]byte{','}, t.marked(e, r.At.Wall, maxMarks))
		done := 0
		for k := 0; k < len(a); k++ {
			if a[k] == b[k] {
				continue
			}
			h := hole{before: a[done:k:k], isTime: a[k] == '0'+timeMark/maxMarks}
			h.index, _ = strconv.Atoi(string(a[k+1 : k+4])) // what follows a mark's first digit
			p.holes = append(p.holes, h)
			k += 3
			if h.isTime {
				k = k - 3 + len(timeForm) - 1
			}
			done = k + 1
		}
		p.tail = a[done:]
		t.entities = append(t.entities, p)
	}
	if told != len(t.takes) {
		return nil
	}
	return t
}

// marked is e, of a reading of that time, with marks.
func (t *template) marked(e *Entity, at time.Time, more int) *Entity {
	mark := func(told time.Time) time.Time {
		if told.IsZero() {
			return told
		}
		shift := told.Sub(at)
		i := slices.Index(t.shifts, shift)
		if i < 0 {
			i = len(t.shifts)
			t.shifts = append(t.shifts, shift)
		}
		return time.Date(timeMark+more+i, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	marked := *e
	marked.At = mark(e.At)
	marked.Attrs = slices.Clone(e.Attrs)
	for i := range marked.Attrs {
		a := &marked.Attrs[i]
		a.At = mark(a.At)
		if a.home != nil {
			a.Num = float64(numberMark + more + a.value)
		}
	}
	return &marked
}

// filler holds what a template is filled with.
type filler struct {
	numbers []float64
	times   [][len(timeForm)]byte
	day     int64 // since 1970, of date
	date    [len("2006-01-02T")]byte
}

// take takes r's numbers and times. It is not ok if r does not fit t.
func (f *filler) take(t *template, r *gateway.Reading) bool {
	if len(r.Values) != len(t.takes) || !r.At.Earliest.IsZero() {
		return false
	}
	f.numbers, f.times = f.numbers[:0], f.times[:0]
	for i := range r.Values {
		v, k := &r.Values[i], &t.takes[i]
		if v.Quantity != k.quantity {
			return false
		}
		var x float64
		switch got := v.V.(type) {
		case float64:
			if k.kind != gateway.Number || got-got != 0 { // not a finite number
				return false
			}
			x = got
		case bool:
			if k.kind != gateway.Switch {
				return false
			}
			if got {
				x = 1
			}
		default:
			return false
		}
		x, within := k.home.take(x)
		if !within {
			return false
		}
		f.numbers = append(f.numbers, x)
	}
	for _, shift := range t.shifts {
		at := r.At.Wall
		if shift != 0 {
			at = at.Add(shift)
		}
		if !f.time(at) {
			return false
		}
	}
	return true
}

// time adds a time. It is not ok before 1970 and after 9999.
func (f *filler) time(t time.Time) bool {
	seconds := t.Unix()
	if seconds < 0 || seconds >= 253402300800 {
		return false
	}
	if day := seconds / 86400; day != f.day || f.date[0] == 0 {
		f.day = day
		t.UTC().AppendFormat(f.date[:0], "2006-01-02T")
	}
	s, ms := uint32(seconds%86400), uint32(t.Nanosecond())/1e6
	h, m := s/3600, s/60%60
	s %= 60
	text := [len(timeForm)]byte{11: '0' + byte(h/10), '0' + byte(h%10), ':', '0' + byte(m/10), '0' + byte(m%10), ':', '0' + byte(s/10), '0' + byte(s%10),
		'.', '0' + byte(ms/100), '0' + byte(ms/10%10), '0' + byte(ms%10), 'Z'}
	copy(text[:], f.date[:])
	f.times = append(f.times, text)
	return true
}

// fill appends p, filled, with a comma before it.
func (f *filler) fill(dst []byte, t *template, p *pattern) []byte {
	for i := range p.holes {
		h := &p.holes[i]
		dst = append(dst, h.before...)
		if h.isTime {
			dst = append(dst, f.times[h.index][:]...)
		} else {
			dst = appendDecimal(dst, f.numbers[h.index], t.takes[h.index].home.decimals)
		}
	}
	return append(dst, p.tail...)
}

// appendDecimal writes what appendNumber does, faster if v has no more than so many
// decimals.
func appendDecimal(dst []byte, v float64, decimals int) []byte {
	scaled := math.Round(v * powers[decimals])
	// Up to fifteen digits no two decimals are the same float64: this is the shortest
	// that v is.
	if math.Abs(scaled) >= 1e15 || scaled/powers[decimals] != v {
		return appendNumber(dst, v)
	}
	n := int64(scaled)
	if n < 0 {
		dst = append(dst, '-')
		n = -n
	}
	for decimals > 0 && n%10 == 0 {
		n /= 10
		decimals--
	}
	if decimals == 0 {
		return strconv.AppendInt(dst, n, 10)
	}
	var text [17]byte // a point among sixteen digits
	i := len(text)
	for ; n > 0 || decimals >= 0; decimals-- {
		i--
		text[i] = '0' + byte(n%10)
		n /= 10
		if decimals == 1 {
			i--
			text[i] = '.'
		}
	}
	return append(dst, text[i:]...)
}
