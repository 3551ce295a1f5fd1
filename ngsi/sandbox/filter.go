package sandbox

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// filter is the q of both APIs, in its simple form: terms joined by ";", all of
// which must hold. A term is a name (it exists), !name (it does not), or a name,
// an operator == != < > <= >= ~= and a value; == and != take a,b,c and a..b too.
// Dots in a name lead into a structured value.
type filter []term

type term struct {
	path   []string
	op     string // "", "!" or an operator
	values []string
	rng    bool // values are the two ends of a range
	re     *regexp.Regexp
}

// operators in the order in which they are looked for at one place.
var operators = []string{"==", "!=", "<=", ">=", "~=", "<", ">"}

func parseFilter(q string) (filter, error) {
	if q == "" {
		return nil, nil
	}
	if strings.Count(q, ";") >= 50 || strings.Count(q, ",") >= 100 {
		return nil, bad("invalid query expression: the sandbox takes at most 50 terms and 100 values")
	}
	var f filter
	for text := range strings.SplitSeq(q, ";") {
		t := term{}
		at := strings.IndexAny(text, "=!<>~")
		if at == 0 && text[0] == '!' {
			t.op, text = "!", text[1:]
			at = strings.IndexAny(text, "=!<>~")
			if at >= 0 {
				return nil, bad("invalid query expression")
			}
		}
		name := text
		if at >= 0 {
			i := slices.IndexFunc(operators, func(op string) bool { return strings.HasPrefix(text[at:], op) })
			if i < 0 {
				return nil, bad("invalid query expression")
			}
			name, t.op = text[:at], operators[i]
			value := text[at+len(t.op):]
			lo, hi, isRange := strings.Cut(value, "..")
			switch {
			case value == "":
				return nil, bad("invalid query expression")
			case t.op == "~=":
				var err error
				if t.re, err = regexp.Compile(value); err != nil {
					return nil, bad("invalid query expression: not a regular expression")
				}
			case (t.op == "==" || t.op == "!=") && isRange:
				t.rng, t.values = true, []string{lo, hi}
			case t.op == "==" || t.op == "!=":
				t.values = strings.Split(value, ",")
			default:
				t.values = []string{value}
			}
		}
		if name == "" {
			return nil, bad("invalid query expression")
		}
		t.path = strings.Split(name, ".")
		f = append(f, t)
	}
	return f, nil
}

// passes says whether all terms hold for the values that valueOf finds.
func (f filter) passes(valueOf func(name string) (any, bool)) bool {
	for _, t := range f {
		v, ok := valueOf(t.path[0])
		for _, name := range t.path[1:] {
			o, _ := v.(object)
			v, ok = o.get(name)
		}
		if !t.holds(v, ok) {
			return false
		}
	}
	return true
}

func (t *term) holds(v any, exists bool) bool {
	switch {
	case t.op == "":
		return exists
	case t.op == "!":
		return !exists
	case !exists:
		return false
	}
	any := func() bool {
		if t.rng {
			lo, ok1 := compare(v, t.values[0])
			hi, ok2 := compare(v, t.values[1])
			return ok1 && ok2 && lo >= 0 && hi <= 0
		}
		return slices.ContainsFunc(t.values, func(text string) bool { c, ok := compare(v, text); return ok && c == 0 })
	}
	switch t.op {
	case "==":
		return any()
	case "!=":
		return !any()
	case "~=":
		s, ok := v.(string)
		return ok && t.re.MatchString(s)
	}
	c, ok := compare(v, t.values[0])
	return ok && (t.op == "<" && c < 0 || t.op == ">" && c > 0 || t.op == "<=" && c <= 0 || t.op == ">=" && c >= 0)
}

// compare orders a value and a text of its kind. A text in quotes is a string.
func compare(v any, text string) (int, bool) {
	bare := strings.Trim(text, `'"`)
	switch v := v.(type) {
	case number:
		f, err := strconv.ParseFloat(text, 64)
		return cmp.Compare(v.float(), f), err == nil
	case bool:
		if strconv.FormatBool(v) == text {
			return 0, true
		}
		return 1, text == "true" || text == "false"
	case instant:
		at, ok := parseInstant(bare)
		return cmp.Compare(v, at), ok
	case string:
		return cmp.Compare(v, bare), true
	}
	return 0, false
}
