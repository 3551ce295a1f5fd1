package ngsi

import (
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	v2Head = `{"actionType":"append","entities":[`
	v2Tail = `]}`
)

// AppendV2 appends the body of POST /v2/op/update: NGSIv2, normalized form.
func AppendV2(dst []byte, es []Entity) []byte {
	return appendAll(dst, es, v2Head, v2Tail, appendV2)
}

func appendAll(dst []byte, es []Entity, head, tail string, one func([]byte, *Entity) []byte) []byte {
	dst = append(dst, head...)
	for i := range es {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = one(dst, &es[i])
	}
	return append(dst, tail...)
}

func appendV2(dst []byte, e *Entity) []byte {
	dst = appendHead(dst, e)
	for i := range e.Attrs {
		a := &e.Attrs[i]
		dst = append(dst, ',')
		dst = appendString(dst, a.Name)
		dst = append(dst, `:{"type":"`...)
		dst = append(dst, v2Type(a)...)
		dst = append(dst, `","value":`...)
		dst = appendValue(dst, a)
		switch {
		case a.Kind == Time:
			dst = appendUncertainV2(dst, `,"metadata":{`, a.Uncertain, `}`)
		case !a.At.IsZero():
			dst = append(dst, `,"metadata":{`...)
			if a.Unit != "" {
				dst = append(dst, `"unitCode":{"type":"Text","value":`...)
				dst = appendString(dst, a.Unit)
				dst = append(dst, `},`...)
			}
			dst = append(dst, `"TimeInstant":{"type":"DateTime","value":`...)
			dst = appendTime(dst, a.At)
			dst = append(dst, '}')
			dst = appendUncertainV2(dst, `,`, a.Uncertain, ``)
			dst = append(dst, '}')
		}
		dst = append(dst, '}')
	}
	if !e.At.IsZero() {
		dst = append(dst, `,"TimeInstant":{"type":"DateTime","value":`...)
		dst = appendTime(dst, e.At)
		dst = appendUncertainV2(dst, `,"metadata":{`, e.Uncertain, `}`)
		dst = append(dst, '}')
	}
	return append(dst, '}')
}

// appendUncertainV2 appends the metadata that says how uncertain a time is; of a
// certain one, nothing.
func appendUncertainV2(dst []byte, before, uncertain, after string) []byte {
	if uncertain == "" {
		return dst
	}
	dst = append(dst, before...)
	dst = append(dst, `"timeUncertain":{"type":"Text","value":`...)
	dst = appendString(dst, uncertain)
	dst = append(dst, '}')
	return append(dst, after...)
}

// forbidden is what Orion refuses in values of any type but TextUnrestricted.
const forbidden = `<>"'=;()`

func v2Type(a *Attr) string {
	switch a.Kind {
	case Number:
		return "Number"
	case Bool:
		return "Boolean"
	case Time:
		return "DateTime"
	case Point:
		return "geo:json"
	case Texts, Refs, Phase:
		return "StructuredValue"
	}
	if strings.ContainsAny(a.Text, forbidden) {
		return "TextUnrestricted"
	}
	return "Text"
}

// AppendKeyValues appends e as names and bare values: the form that the schemas
// of the data models describe.
func AppendKeyValues(dst []byte, e *Entity) []byte {
	dst = appendHead(dst, e)
	for i := range e.Attrs {
		dst = append(dst, ',')
		dst = appendString(dst, e.Attrs[i].Name)
		dst = append(dst, ':')
		dst = appendValue(dst, &e.Attrs[i])
	}
	return append(dst, '}')
}

func appendHead(dst []byte, e *Entity) []byte {
	dst = append(dst, `{"id":`...)
	dst = appendString(dst, e.ID)
	dst = append(dst, `,"type":`...)
	return appendString(dst, e.Type)
}

func appendValue(dst []byte, a *Attr) []byte {
	switch a.Kind {
	case Number:
		return appendNumber(dst, a.Num)
	case Bool:
		return strconv.AppendBool(dst, a.Num != 0)
	case Phase:
		dst = append(dst, `{"L1":`...)
		dst = appendNumber(dst, a.Num)
		return append(dst, '}')
	case Time:
		return appendTime(dst, a.At)
	case Point:
		dst = append(dst, `{"type":"Point","coordinates":[`...)
		dst = appendNumber(dst, a.Point[0])
		dst = append(dst, ',')
		dst = appendNumber(dst, a.Point[1])
		return append(dst, `]}`...)
	case Refs:
		dst = append(dst, '[')
		dst = appendString(dst, a.Text)
		return append(dst, ']')
	case Texts:
		dst = append(dst, '[')
		for i, s := range a.List {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendString(dst, s)
		}
		return append(dst, ']')
	}
	return appendString(dst, a.Text)
}

// appendNumber writes the shortest decimal that reads back as v, without an
// exponent within reason. What is not a number has no place in JSON: null.
func appendNumber(dst []byte, v float64) []byte {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return append(dst, "null"...)
	}
	format := byte('f')
	if abs := math.Abs(v); abs != 0 && (abs < 1e-9 || abs >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(dst, v, format, -1, 64)
}

// timeForm is the one form that every broker takes: UTC, three digits, Z.
const timeForm = "2006-01-02T15:04:05.000Z"

func appendTime(dst []byte, t time.Time) []byte {
	dst = append(dst, '"')
	dst = t.UTC().AppendFormat(dst, timeForm)
	return append(dst, '"')
}

// appendString writes s as a JSON string. Bytes that are not UTF-8, and NUL,
// which would cut the text short at Orion, become U+FFFD.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == 0:
			dst = append(dst, "\uFFFD"...)
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:]) // RuneError for what is not UTF-8
			dst = utf8.AppendRune(dst, r)
			i += n
			continue
		}
		i++
	}
	return append(dst, '"')
}
