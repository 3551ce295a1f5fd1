package sandbox

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A JSON value is nil, bool, number, string, []any, object, or instant (a
// DateTime of NGSIv2, kept as a time). encoding/json does not serve here: Orion
// looks at the order and the repetition of names, refuses half a surrogate pair,
// ends a string at \u0000, and hands on bytes that are not UTF-8.

// number is a JSON number as it was written.
type number string

// object is a JSON object as it was written: in order, with repetitions.
type object []member

type member struct {
	name  string
	value any
}

// get returns the value under a name and whether there is one.
func (o object) get(name string) (any, bool) {
	for _, m := range o {
		if m.name == name {
			return m.value, true
		}
	}
	return nil, false
}

// str returns the string under a name, or "".
func (o object) str(name string) string {
	v, _ := o.get(name)
	s, _ := v.(string)
	return s
}

// repeated returns the first name that occurs twice, or "".
func (o object) repeated() string {
	seen := make(map[string]bool, len(o))
	for _, m := range o {
		if seen[m.name] {
			return m.name
		}
		seen[m.name] = true
	}
	return ""
}

var (
	errJSON  = errors.New("errors in JSON")
	errDepth = errors.New("JSON nested too deep")
)

// maxDepth bounds the recursion of the parser. Values are held to maxValueDepth.
const maxDepth = 200

// parseJSON reads one JSON text of RFC 8259, and nothing after it.
func parseJSON(text []byte) (any, error) {
	p := parser{s: text}
	v, err := p.value(0)
	if err != nil {
		return nil, err
	}
	if p.space(); p.i != len(p.s) {
		return nil, errJSON
	}
	return v, nil
}

type parser struct {
	s []byte
	i int
}

func (p *parser) space() {
	for p.i < len(p.s) && strings.IndexByte(" \t\r\n", p.s[p.i]) >= 0 {
		p.i++
	}
}

// peek returns the next byte that is not space, 0 at the end.
func (p *parser) peek() byte {
	p.space()
	if p.i == len(p.s) {
		return 0
	}
	return p.s[p.i]
}

func (p *parser) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, errDepth
	}
	switch c := p.peek(); c {
	case '{':
		p.i++
		o := object{}
		err := p.list('}', func() error {
			if p.peek() != '"' {
				return errJSON
			}
			name, err := p.string()
			if err != nil || p.peek() != ':' {
				return errJSON
			}
			p.i++
			v, err := p.value(depth + 1)
			o = append(o, member{name, v})
			return err
		})
		return o, err
	case '[':
		p.i++
		a := []any{}
		err := p.list(']', func() error {
			v, err := p.value(depth + 1)
			a = append(a, v)
			return err
		})
		return a, err
	case '"':
		return p.string()
	case 't':
		return true, p.word("true")
	case 'f':
		return false, p.word("false")
	case 'n':
		return nil, p.word("null")
	default:
		return p.number()
	}
}

func (p *parser) word(w string) error {
	if !bytes.HasPrefix(p.s[p.i:], []byte(w)) {
		return errJSON
	}
	p.i += len(w)
	return nil
}

// list reads what stands between commas until the closing bracket.
func (p *parser) list(closing byte, item func() error) error {
	if p.peek() == closing {
		p.i++
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		switch p.peek() {
		case ',':
			p.i++
		case closing:
			p.i++
			return nil
		default:
			return errJSON
		}
	}
}

func (p *parser) number() (any, error) {
	start := p.i
	digits := func() bool {
		from := p.i
		for p.i < len(p.s) && '0' <= p.s[p.i] && p.s[p.i] <= '9' {
			p.i++
		}
		return p.i > from
	}
	next := func(set string) bool {
		if p.i < len(p.s) && strings.IndexByte(set, p.s[p.i]) >= 0 {
			p.i++
			return true
		}
		return false
	}
	next("-")
	if !next("0") && !digits() {
		return nil, errJSON
	}
	if next(".") && !digits() {
		return nil, errJSON
	}
	if next("eE") {
		next("+-")
		if !digits() {
			return nil, errJSON
		}
	}
	n := number(p.s[start:p.i])
	if math.IsInf(n.float(), 0) {
		return nil, errJSON
	}
	return n, nil
}

func (n number) float() float64 {
	f, _ := strconv.ParseFloat(string(n), 64) // the only error is out of range: then ±Inf or 0
	return f
}

// string reads a string whose quote is next. Control characters may stand in it
// only escaped; other bytes are taken as they are.
func (p *parser) string() (string, error) {
	p.i++
	var out []byte
	for p.i < len(p.s) {
		c := p.s[p.i]
		p.i++
		switch {
		case c == '"':
			if i := slices.Index(out, 0); i >= 0 {
				out = out[:i]
			}
			return string(out), nil
		case c < 0x20:
			return "", errJSON
		case c != '\\':
			out = append(out, c)
			continue
		case p.i == len(p.s):
			return "", errJSON
		}
		c = p.s[p.i]
		p.i++
		if c == 'u' {
			r, ok := p.rune()
			if !ok {
				return "", errJSON
			}
			out = utf8.AppendRune(out, r)
		} else if i := strings.IndexByte(`"\/bfnrt`, c); i >= 0 {
			out = append(out, "\"\\/\b\f\n\r\t"[i])
		} else {
			return "", errJSON
		}
	}
	return "", errJSON
}

// rune reads the digits after \u, and the second half of a surrogate pair.
func (p *parser) rune() (rune, bool) {
	hex := func() (rune, bool) {
		if len(p.s)-p.i < 4 {
			return 0, false
		}
		n, err := strconv.ParseUint(string(p.s[p.i:p.i+4]), 16, 16)
		p.i += 4
		return rune(n), err == nil
	}
	r, ok := hex()
	if !ok || r < 0xd800 || r > 0xdfff {
		return r, ok
	}
	if r > 0xdbff || len(p.s)-p.i < 6 || p.s[p.i] != '\\' || p.s[p.i+1] != 'u' {
		return 0, false
	}
	p.i += 2
	low, ok := hex()
	if !ok || low < 0xdc00 || low > 0xdfff {
		return 0, false
	}
	return 0x10000 + (r-0xd800)<<10 + (low - 0xdc00), true
}

// appendJSON writes a value without spaces. As Orion does, numbers come with at
// most nine decimals if asOrion is set; otherwise as they were sent.
func appendJSON(dst []byte, v any, asOrion bool) []byte {
	switch v := v.(type) {
	case nil:
		return append(dst, "null"...)
	case bool:
		return strconv.AppendBool(dst, v)
	case int:
		return strconv.AppendInt(dst, int64(v), 10)
	case number:
		if asOrion {
			return appendOrionNumber(dst, v.float())
		}
		return append(dst, v...)
	case string:
		return appendString(dst, v)
	case instant:
		return appendString(dst, v.String())
	case []any:
		dst = append(dst, '[')
		for i, x := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendJSON(dst, x, asOrion)
		}
		return append(dst, ']')
	case object:
		dst = append(dst, '{')
		for i, m := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendString(dst, m.name), ':')
			dst = appendJSON(dst, m.value, asOrion)
		}
		return append(dst, '}')
	}
	panic("sandbox: not a JSON value") // only values of this package come here
}

func appendOrionNumber(dst []byte, f float64) []byte {
	if f == math.Trunc(f) && math.Abs(f) < 1<<63 {
		return strconv.AppendInt(dst, int64(f), 10)
	}
	s := strconv.FormatFloat(f, 'f', 9, 64)
	return append(dst, strings.TrimSuffix(strings.TrimRight(s, "0"), ".")...)
}

const hexDigits = "0123456789abcdef"

// appendString quotes a string; bytes that are not UTF-8 pass as they are.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for _, c := range []byte(s) {
		switch i := strings.IndexByte("\"\\\b\f\n\r\t", c); {
		case i >= 0:
			dst = append(dst, '\\', `"\bfnrt`[i])
		case c < 0x20:
			dst = append(dst, `\u00`...)
			dst = append(dst, hexDigits[c>>4], hexDigits[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}

// sizeOf is about what a value takes in memory, in bytes.
func sizeOf(v any) int {
	n := 32
	switch v := v.(type) {
	case string:
		n += len(v)
	case number:
		n += len(v)
	case []any:
		for _, x := range v {
			n += sizeOf(x)
		}
	case object:
		for _, m := range v {
			n += len(m.name) + sizeOf(m.value)
		}
	}
	return n
}

// depthOf is how many brackets of a value stand around its innermost one.
func depthOf(v any) int {
	deepest := 0
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			deepest = max(deepest, depthOf(x))
		}
		return deepest + 1
	case object:
		for _, m := range v {
			deepest = max(deepest, depthOf(m.value))
		}
		return deepest + 1
	}
	return 0
}
