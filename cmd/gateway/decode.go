package main

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// faults collects everything that is wrong with one file, so that a maker mends
// it in one go. It is an error when there is at least one.
type faults struct {
	file  string
	lines []string
	list  []fault
}

// fault is one thing wrong: where, what, and what to write instead.
type fault struct {
	line, column int // from 1; 0: of the file as a whole
	path         string
	text         string
	secret       bool // there is one, perhaps: no line of the file may be shown
	absent       bool // what is named cannot be read; it may come, and the rest can begin
}

// addf records a fault at a node of the document.
func (f *faults) addf(n *yaml.Node, path, format string, args ...any) {
	f.list = append(f.list, fault{line: n.Line, column: n.Column, path: path, text: fmt.Sprintf(format, args...)})
}

func (f *faults) err() error {
	if len(f.list) == 0 {
		return nil
	}
	return f
}

// secretField is where what is wrong may be a secret under a name of somebody's own.
var secretField = regexp.MustCompile(`(?i)\bauth\b|(pass\w*|pwd?|token|secret|key|psk|credentials?)$`)

// Error is every fault with its place and an excerpt, in the file's order.
func (f *faults) Error() string {
	sort.SliceStable(f.list, func(i, j int) bool {
		a, b := f.list[i], f.list[j]
		return a.line < b.line || a.line == b.line && a.column < b.column
	})
	secret := slices.ContainsFunc(f.list, func(x fault) bool { return x.secret || secretField.MatchString(x.path) })
	var b strings.Builder
	for i, x := range f.list {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(f.file)
		if x.line > 0 {
			fmt.Fprintf(&b, ":%d:%d", x.line, x.column)
		}
		b.WriteString(": ")
		if x.path != "" {
			b.WriteString(x.path + ": ")
		}
		b.WriteString(x.text)
		if x.line > 0 && x.line <= len(f.lines) && !secret && !inlineLine.MatchString(f.lines[x.line-1]) {
			text, caret := excerpt(f.lines[x.line-1], x.column)
			fmt.Fprintf(&b, "\n%6d | %s\n       | %s^", x.line, text, caret)
		}
	}
	return b.String()
}

// excerpt is a line made safe to print, and the blanks before the column's
// mark. A long line is cut around the column.
func excerpt(line string, column int) (text, caret string) {
	const width = 100
	runes := []rune(strings.ToValidUTF8(line, "\uFFFD"))
	at := min(max(column-1, 0), len(runes))
	from := max(0, at-width/2)
	cut := runes[from:min(len(runes), from+width)]
	for i, r := range cut {
		if r < ' ' || r == 0x7f {
			cut[i] = ' ' // tabs too: one column each
		}
	}
	return string(cut), strings.Repeat(" ", at-from)
}

// A document is small and shallow: these only stop what was made to hurt.
const (
	maxFile  = 1 << 20 // bytes
	maxNodes = 50_000  // visited, aliases followed
)

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

// parse reads one YAML document into nodes. What is wrong is added to f; then
// there is no node. An empty document is an empty mapping.
func (f *faults) parse(src []byte) *yaml.Node {
	f.lines = strings.Split(string(src), "\n")
	if !utf8.Valid(src) {
		f.list = append(f.list, fault{text: "the file is not UTF-8 text: save it as UTF-8"})
		return nil
	}
	for i, l := range f.lines {
		if indent := l[:len(l)-len(strings.TrimLeft(l, " \t"))]; strings.Contains(indent, "\t") {
			f.list = append(f.list, fault{line: i + 1, column: strings.Index(indent, "\t") + 1, text: "a tab indents this line: YAML takes spaces only, two for each level"})
		}
	}
	if len(f.list) > 0 {
		return nil
	}
	dec := yaml.NewDecoder(strings.NewReader(string(src)))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if err.Error() == "EOF" {
			return &yaml.Node{Kind: yaml.MappingNode, Line: 1, Column: 1}
		}
		f.syntax(err)
		return nil
	}
	if err := dec.Decode(&second); err == nil {
		f.addf(&second, "", "a second document begins here: a configuration is one document, remove the `---`")
		return nil
	} else if err.Error() != "EOF" {
		f.syntax(err)
		return nil
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return &yaml.Node{Kind: yaml.MappingNode, Line: 1, Column: 1}
	}
	return root
}

func (f *faults) syntax(err error) {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		f.list = append(f.list, fault{text: "not YAML: " + err.Error()})
		return
	}
	line, _ := strconv.Atoi(m[1]) // absent: of the file as a whole
	text := m[2]
	if strings.Contains(text, "did not find expected") || strings.Contains(text, "mapping values are not allowed") {
		text += " (is a line indented wrongly, or a quote missing, here or just before?)"
	}
	f.list = append(f.list, fault{line: line, column: 1, text: "not YAML: " + text})
}

// decoder fills structs from nodes, strictly: unknown and repeated keys, wrong
// kinds and null values are faults. Field names come from yaml tags. It follows
// aliases within a budget and knows no merge keys.
type decoder struct {
	*faults
	visited int
	nodes   map[any]*yaml.Node // where the value behind a pointer to a field was written
}

// at is the node that a field was read from, or where its absence is told.
func (d *decoder) at(field any, otherwise *yaml.Node) *yaml.Node {
	if n := d.nodes[field]; n != nil {
		return n
	}
	return otherwise
}

// key is a mapping's value by its key, nil if it is not there.
func key(n *yaml.Node, name string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1]
		}
	}
	return nil
}

func (d *decoder) resolve(n *yaml.Node, path string) (*yaml.Node, bool) {
	for n.Kind == yaml.AliasNode {
		d.visited++
		if d.visited > maxNodes {
			break
		}
		n = n.Alias
	}
	d.visited++
	if d.visited == maxNodes+1 {
		d.addf(n, path, "the aliases of this document unfold into more than %d values: write them out", maxNodes)
	}
	return n, d.visited <= maxNodes
}

// mapping decodes a mapping into one or several structs that share its keys.
// With open set, keys that none of them knows are let pass.
func (d *decoder) mapping(n *yaml.Node, path string, open bool, targets ...any) {
	n, ok := d.resolve(n, path)
	if !ok {
		return
	}
	if n.Kind != yaml.MappingNode {
		if strings.HasSuffix(path, "auth") || strings.HasSuffix(path, "oauth2") { // a secret, perhaps
			d.addf(n, path, "want keys and values, such as `token_file: /etc/gateway/secrets/token`: a secret itself is never written here")
			d.last().secret = true
			return
		}
		d.addf(n, path, "want keys and values, `key: value` on a line each, got %s", kindOf(n))
		return
	}
	fields := d.fields(targets...)
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		at := join(path, k.Value)
		if line, twice := seen[k.Value]; twice {
			d.addf(k, at, "the key is here a second time (first on line %d): keep one", line)
			continue
		}
		seen[k.Value] = k.Line
		field, known := fields[k.Value]
		switch {
		case known:
			d.value(v, at, field)
		case open:
		case k.Value == "<<":
			d.addf(k, at, "merge keys are not supported: write the keys out")
		case inline[k.Value] != "":
			d.addf(k, at, "a secret is never written here: write it into a file that only root can read, and that file's name as %s", inline[k.Value])
			d.last().secret = true
		default:
			d.addf(k, at, "unknown key%s", suggest(k.Value, sortedKeys(fields)))
		}
	}
}

// fields are the fields of structs by their keys.
func (d *decoder) fields(targets ...any) map[string]reflect.Value {
	fields := map[string]reflect.Value{}
	for _, t := range targets {
		v := reflect.ValueOf(t).Elem()
		for i := range v.NumField() {
			switch name := v.Type().Field(i).Tag.Get("yaml"); name {
			case "", "-":
			case ",inline": // its keys stand among these
				maps.Copy(fields, d.fields(v.Field(i).Addr().Interface()))
			default:
				fields[name] = v.Field(i)
			}
		}
	}
	return fields
}

func join(path, key string) string {
	if len(key) > 40 {
		key = key[:40] + "…"
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

var (
	durationType    = reflect.TypeFor[time.Duration]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// value decodes any node into a settable value.
func (d *decoder) value(n *yaml.Node, path string, v reflect.Value) {
	n, ok := d.resolve(n, path)
	if !ok {
		return
	}
	d.nodes[v.Addr().Interface()] = n
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		d.addf(n, path, "there is no value: write one, or remove the key to have the default")
		return
	}
	switch {
	case v.Type() == durationType:
		d.duration(n, path, v)
		return
	case v.Addr().Type().Implements(textUnmarshaler):
		if n.Kind != yaml.ScalarNode {
			d.addf(n, path, "want one value, got %s", kindOf(n))
		} else if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.Value)); err != nil {
			d.addf(n, path, "%v", err)
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, path, v.Elem())
	case reflect.Struct:
		d.mapping(n, path, false, v.Addr().Interface())
	case reflect.Map: // of texts, or of pointers to structs
		if n.Kind != yaml.MappingNode {
			d.addf(n, path, "want keys and values, `key: value` on a line each, got %s", kindOf(n))
			return
		}
		v.Set(reflect.MakeMap(v.Type()))
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, at := n.Content[i], join(path, n.Content[i].Value)
			if v.MapIndex(reflect.ValueOf(k.Value)).IsValid() {
				d.addf(k, at, "the key is here a second time: keep one")
				continue
			}
			e := reflect.New(v.Type().Elem()).Elem()
			d.value(n.Content[i+1], at, e)
			v.SetMapIndex(reflect.ValueOf(k.Value), e)
		}
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.addf(n, path, "want a list, each entry behind a `-`, got %s", kindOf(n))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
		for i, c := range n.Content {
			d.value(c, fmt.Sprintf("%s[%d]", path, i), v.Index(i))
		}
	case reflect.Array:
		if n.Kind != yaml.SequenceNode || len(n.Content) != v.Len() {
			d.addf(n, path, "want a list of %d, got %s", v.Len(), kindOf(n))
			return
		}
		for i, c := range n.Content {
			d.value(c, fmt.Sprintf("%s[%d]", path, i), v.Index(i))
		}
	case reflect.String:
		if n.Kind != yaml.ScalarNode {
			d.addf(n, path, "want a text, got %s", kindOf(n))
			return
		}
		v.SetString(n.Value)
	case reflect.Bool:
		var b bool
		if n.Tag != "!!bool" || n.Decode(&b) != nil {
			d.addf(n, path, "want true or false, got %s", kindOf(n))
			return
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		var i int64
		if n.Tag != "!!int" || n.Decode(&i) != nil || v.OverflowInt(i) {
			d.addf(n, path, "want a whole number, got %s", kindOf(n))
			return
		}
		v.SetInt(i)
	case reflect.Uint8, reflect.Uint16:
		var i uint64
		if n.Tag != "!!int" || n.Decode(&i) != nil || v.OverflowUint(i) {
			d.addf(n, path, "want a whole number from 0 to %d, got %s", uint64(1)<<v.Type().Bits()-1, kindOf(n))
			return
		}
		v.SetUint(i)
	case reflect.Float64:
		var x float64
		if n.Tag != "!!int" && n.Tag != "!!float" || n.Decode(&x) != nil || math.IsNaN(x) || math.IsInf(x, 0) {
			d.addf(n, path, "want a number, got %s", kindOf(n))
			return
		}
		v.SetFloat(x)
	default:
		panic("configuration: a field of type " + v.Type().String()) // a mistake in our structs, found by any test that decodes one
	}
}

func (d *decoder) duration(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind == yaml.ScalarNode {
		t, err := time.ParseDuration(n.Value)
		if err == nil {
			v.SetInt(int64(t))
			return
		}
	}
	d.addf(n, path, "want a time with its unit, such as 500ms, 10s or 5m, got %s", kindOf(n))
}

// kindOf describes a node to a person.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return fmt.Sprintf("a list of %d", len(n.Content))
	case yaml.AliasNode:
		return "an alias"
	}
	v := n.Value
	if len(v) > 40 {
		v = v[:40] + "…"
	}
	return strconv.Quote(v)
}

// suggest names the nearest known word, or all of them if none is near.
func suggest(word string, known []string) string {
	best, distance := "", max(3, len(word)/2+1)
	for _, k := range known {
		if d := edits(word, k); d < distance {
			best, distance = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf(": did you mean %q?", best)
	}
	return ": known are " + strings.Join(known, ", ")
}

// edits is the number of letters to change, add or leave out between two words.
func edits(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0]++
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(row[j+1]+1, row[j]+1, cost)
		}
	}
	return row[len(b)]
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// byteSize is a size in bytes, written as 64MiB or as a number of bytes.
type byteSize int64

// UnmarshalText takes a whole number of B, KiB, MiB or GiB (and kB, MB, GB).
func (s *byteSize) UnmarshalText(text []byte) error {
	t := strings.TrimSpace(string(text))
	digits := t[:len(t)-len(strings.TrimLeft(t, "0123456789"))]
	unit, ok := map[string]int64{
		"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 1e3, "MB": 1e6, "GB": 1e9,
	}[strings.TrimSpace(t[len(digits):])]
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || n > math.MaxInt64/unit {
		return errors.New("want a size such as 64MiB or 1GiB")
	}
	*s = byteSize(n * unit)
	return nil
}
