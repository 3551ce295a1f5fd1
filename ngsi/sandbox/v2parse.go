package sandbox

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The rules by which Orion reads a request: what is refused while parsing refuses
// the whole request, and nothing of it is applied.

// refusal is an answer that says no.
type refusal struct {
	status            int
	name, description string
}

func (r *refusal) Error() string { return r.name + ": " + r.description }

func bad(format string, args ...any) *refusal {
	return &refusal{http.StatusBadRequest, "BadRequest", fmt.Sprintf(format, args...)}
}

func unsupported(what string) *refusal {
	return &refusal{http.StatusNotImplemented, "NotImplemented", "the sandbox broker does not do " + what}
}

const (
	maxName       = 256 // bytes of an id, a type, an attribute's name
	maxValueDepth = 50  // brackets in a value; Orion takes 50 and refuses 60
)

// write is one element of an update: what shall become of one entity.
type write struct {
	id, typ string // typ "": not given
	attrs   []attr // in the order of the request
}

// attr is an attribute of NGSIv2.
type attr struct {
	name, typ         string
	value             any
	metadata          []datum // by name
	created, modified time.Time
}

// datum is one element of metadata.
type datum struct {
	name, typ string
	value     any
}

func (a *attr) meta(name string) (any, bool) {
	for _, d := range a.metadata {
		if d.name == name {
			return d.value, true
		}
	}
	return nil, false
}

func (a *attr) size() int {
	n := 100 + len(a.name) + len(a.typ) + sizeOf(a.value)
	for _, d := range a.metadata {
		n += 50 + len(d.name) + len(d.typ) + sizeOf(d.value)
	}
	return n
}

// parseBody reads the JSON text of a request, which must be an object.
func parseBody(text []byte) (object, error) {
	v, err := parseJSON(text)
	if err == errDepth {
		return nil, bad("max deep reached")
	} else if err != nil {
		return nil, &refusal{http.StatusBadRequest, "ParseError", "Errors found in incoming JSON buffer"}
	}
	o, ok := v.(object)
	if !ok {
		return nil, bad("not a JSON object")
	}
	return o, nil
}

// parseUpdate reads the body of POST /v2/op/update.
func parseUpdate(text []byte, keyValues bool) (action string, ws []write, err error) {
	body, err := parseBody(text)
	if err != nil {
		return "", nil, err
	}
	entities, found := any(nil), false
	for _, m := range body {
		switch m.name {
		case "actionType":
			s, _ := m.value.(string)
			action = strings.ToLower(s)
			if !slices.Contains([]string{"append", "appendstrict", "delete", "replace", "update"}, action) {
				return "", nil, bad("invalid update action type: right ones are: append, appendStric, delete, replace, update")
			}
		case "entities":
			entities, found = m.value, true
		default:
			return "", nil, bad("Unrecognized field in JSON payload: /%s/", m.name)
		}
	}
	if action == "" {
		return "", nil, bad("Invalid JSON payload, mandatory field /actionType/ not found")
	}
	if !found {
		return "", nil, bad("Invalid JSON payload, mandatory field /entities/ not found")
	}
	list, ok := entities.([]any)
	if !ok {
		return "", nil, bad("not a JSON array")
	}
	if len(list) == 0 {
		return "", nil, bad("empty entities vector")
	}
	for _, v := range list {
		o, ok := v.(object)
		if !ok {
			return "", nil, bad("not a JSON object")
		}
		w, err := parseEntity(o, keyValues)
		if err != nil {
			return "", nil, err
		}
		ws = append(ws, w)
	}
	return action, ws, nil
}

// parseEntity reads an entity with its id and, if given, its type.
func parseEntity(o object, keyValues bool) (write, error) {
	w, rest, hasID := write{}, object{}, false
	for _, m := range o {
		if m.name != "id" && m.name != "type" {
			rest = append(rest, m)
			continue
		}
		s, ok := m.value.(string)
		if !ok {
			return w, bad("Invalid JSON type for entity %s", m.name)
		}
		if len(s) > maxName {
			return w, bad("entity %s length: %d, max length supported: %d", m.name, len(s), maxName)
		}
		if !goodID(s) {
			return w, bad("Invalid characters in entity %s", m.name)
		}
		if m.name == "id" {
			w.id, hasID = s, true
		} else if w.typ = s; s == "" {
			return w, bad("entity type length: 0, min length supported: 1")
		}
	}
	if !hasID {
		return w, bad("nor /id/ nor /idPattern/ present")
	}
	if w.id == "" {
		return w, bad("id and idPattern cannot be both empty at the same time")
	}
	var err error
	w.attrs, err = parseAttrs(rest, keyValues)
	return w, err
}

// parseAttrs reads an object of attributes.
func parseAttrs(o object, keyValues bool) ([]attr, error) {
	if name := o.repeated(); name != "" {
		return nil, bad("duplicated attribute /%s/", name)
	}
	if len(o) > maxAttrs {
		return nil, bad("%s", tooManyAttrs)
	}
	attrs := make([]attr, 0, len(o))
	for _, m := range o {
		if err := goodName("attribute name", m.name); err != nil {
			return nil, err
		}
		a, err := parseAttr(m.value, keyValues)
		if err != nil {
			return nil, err
		}
		a.name = m.name
		attrs = append(attrs, a)
	}
	return attrs, nil
}

// parseAttr reads {"type", "value", "metadata"}, or a bare value with keyValues.
func parseAttr(v any, keyValues bool) (attr, error) {
	if keyValues {
		a := attr{typ: defaultType(v), value: v}
		return a, a.check()
	}
	o, ok := v.(object)
	if !ok {
		return attr{}, bad("attribute must be a JSON object, unless keyValues option is used")
	}
	a, hasType := attr{}, false
	for _, m := range o {
		switch m.name {
		case "value":
			a.value = m.value
		case "type":
			if a.typ, hasType = m.value.(string); !hasType {
				return a, bad("invalid JSON type for attribute type")
			}
			if err := goodName("attribute type", a.typ); err != nil {
				return a, err
			}
		case "metadata":
			metadata, ok := m.value.(object)
			if !ok {
				return a, bad("metadata must be a JSON object")
			}
			var err error
			if a.metadata, err = parseMetadata(metadata); err != nil {
				return a, err
			}
		default:
			return a, bad("unrecognized property for context attribute")
		}
	}
	if !hasType {
		a.typ = defaultType(a.value)
	}
	return a, a.check()
}

func parseMetadata(o object) ([]datum, error) {
	if name := o.repeated(); name != "" {
		return nil, bad("duplicated metadata /%s/", name)
	}
	var data []datum
	for _, m := range o {
		if err := goodName("metadata name", m.name); err != nil {
			return nil, err
		}
		fields, ok := m.value.(object)
		if !ok {
			return nil, bad("metadata must be a JSON object")
		}
		d, hasType := datum{name: m.name}, false
		for _, f := range fields {
			switch f.name {
			case "value":
				d.value = f.value
			case "type":
				if d.typ, hasType = f.value.(string); !hasType {
					return nil, bad("invalid JSON type for metadata type")
				}
				if err := goodName("metadata type", d.typ); err != nil {
					return nil, err
				}
			default:
				return nil, bad("unrecognized property for metadata")
			}
		}
		if !hasType {
			d.typ = defaultType(d.value)
		}
		var err error
		if d.value, err = checkValue(d.typ, d.value, "metadata value"); err != nil {
			return nil, err
		}
		data = append(data, d)
	}
	// Orion answers metadata and attributes sorted by name.
	slices.SortFunc(data, func(x, y datum) int { return strings.Compare(x.name, y.name) })
	return data, nil
}

// check refuses a value that may not be, and turns a DateTime into a time.
func (a *attr) check() (err error) {
	if a.value, err = checkValue(a.typ, a.value, "attribute value"); err != nil {
		return err
	}
	return a.checkLocation()
}

func checkValue(typ string, v any, where string) (any, error) {
	if depthOf(v) > maxValueDepth {
		return nil, bad("max deep reached")
	}
	if typ != "TextUnrestricted" && !goodValue(v) {
		return nil, bad("Invalid characters in %s", where)
	}
	if (typ == "DateTime" || typ == "ISO8601") && v != nil {
		s, _ := v.(string)
		at, ok := parseInstant(s)
		if !ok {
			return nil, bad("date has invalid format in %s", where)
		}
		return at, nil
	}
	return v, nil
}

func defaultType(v any) string {
	switch v.(type) {
	case nil:
		return "None"
	case bool:
		return "Boolean"
	case number:
		return "Number"
	case string:
		return "Text"
	}
	return "StructuredValue"
}

// isLocation says whether the attribute is where its entity is: there can be
// only one such.
func (a *attr) isLocation() bool {
	ignored, _ := a.meta("ignoreType")
	return strings.HasPrefix(a.typ, "geo:") && a.typ != "geo:distance" && a.value != nil && ignored != true
}

func (a *attr) checkLocation() error {
	if !a.isLocation() {
		return nil
	}
	switch a.typ {
	case "geo:json":
		o, ok := a.value.(object)
		if !ok {
			return bad("geo:json needs an object or null as value")
		}
		if features, ok := o.get("features"); ok && o.str("type") == "FeatureCollection" {
			if list, _ := features.([]any); len(list) != 1 {
				return bad("error parsing location attribute: features in FeatureCollection has %d items", len(list))
			}
		}
	case "geo:point":
		s, _ := a.value.(string)
		lat, lon, _ := strings.Cut(s, ",")
		if !within(lat, 90) || !within(lon, 180) {
			return bad("error parsing location attribute: geo coordinates format error [see Orion user manual]: %s", s)
		}
	}
	return nil
}

func within(s string, limit float64) bool {
	f, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	return err == nil && -limit <= f && f <= limit
}

// goodValue says whether no string in v has a character that Orion refuses. The
// names in an object are free.
func goodValue(v any) bool {
	switch v := v.(type) {
	case string:
		return !strings.ContainsAny(v, `<>"'=;()`)
	case []any:
		for _, x := range v {
			if !goodValue(x) {
				return false
			}
		}
	case object:
		for _, m := range v {
			if !goodValue(m.value) {
				return false
			}
		}
	}
	return true
}

// goodID says whether s may be an id, a type or a name: printable ASCII without
// space and without what has a meaning in a URL or a script.
func goodID(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`<>"'=;()&#/?`, c) >= 0 {
			return false
		}
	}
	return true
}

func goodName(what, s string) error {
	switch {
	case s == "":
		return bad("%s length: 0, min length supported: 1", what)
	case len(s) > maxName:
		return bad("%s length: %d, max length supported: %d", what, len(s), maxName)
	case !goodID(s):
		return bad("Invalid characters in %s", what)
	}
	return nil
}

// instant is the value of a DateTime: milliseconds since 1970, UTC.
type instant int64

func (t instant) String() string {
	return time.UnixMilli(int64(t)).UTC().Format("2006-01-02T15:04:05.000Z")
}

var instantForm = regexp.MustCompile(`^(\d{1,4})-(\d{1,2})-(\d{1,2})(?:T(\d{1,2})(?::(\d{1,2})(?::(\d{1,2})(\.\d*)?)?)?\s*(?:Z|([+-])(\d{2}):?(\d{2})?)?)?$`)

// parseInstant reads the date-times that Orion takes. Its buffer is short: a text
// of more than 29 characters is refused, so nine decimals with Z are, and four
// with an offset.
func parseInstant(s string) (instant, bool) {
	m := instantForm.FindStringSubmatch(s)
	if m == nil || len(s) > 29 {
		return 0, false
	}
	n := func(i int) int { v, _ := strconv.Atoi(m[i]); return v }      // "" is 0
	ms, _ := strconv.Atoi((strings.TrimPrefix(m[7], ".") + "000")[:3]) // the rest is cut off
	t := time.Date(n(1), time.Month(n(2)), n(3), n(4), n(5), n(6), 0, time.UTC)
	if t.Month() != time.Month(n(2)) || t.Day() != n(3) || t.Hour() != n(4) || t.Minute() != n(5) || t.Second() != n(6) {
		return 0, false // such a date there is not
	}
	offset := time.Duration(n(9))*time.Hour + time.Duration(n(10))*time.Minute
	if m[8] == "+" {
		offset = -offset
	}
	at := instant(t.Add(offset).UnixMilli() + int64(ms))
	return at, at >= 0
}

// servicePaths checks Fiware-ServicePath. A write goes to one path; a read may
// look at several, and below one with "/#". A missing header is "/" for a write and
// "/#" for a read.
func servicePaths(header string, read bool) ([]string, error) {
	if header == "" {
		if read {
			return []string{"/#"}, nil
		}
		return []string{"/"}, nil
	}
	paths := strings.Split(header, ",")
	if len(paths) > 1 && !read {
		return nil, bad("more than one service path in context update request")
	}
	if len(paths) > 10 {
		return nil, bad("too many service paths - a maximum of ten service paths is allowed")
	}
	for i, path := range paths {
		path = strings.TrimSpace(path)
		if !strings.HasPrefix(path, "/") {
			return nil, bad("Only /absolute/ Service Paths allowed [a service path must begin with /]")
		}
		if path != "/" {
			path = strings.TrimSuffix(path, "/")
		}
		paths[i] = path
		levels := strings.Split(path[1:], "/")
		if levels[len(levels)-1] == "#" {
			if !read {
				return nil, bad("Bad Character in Service-Path")
			}
			levels = levels[:len(levels)-1]
		}
		if path == "/" {
			continue
		}
		if len(levels) > 10 {
			return nil, bad("too many components in ServicePath")
		}
		for _, level := range levels {
			switch {
			case level == "":
				return nil, bad("empty component in ServicePath")
			case len(level) > 50:
				return nil, bad("component-name too long in ServicePath")
			case strings.ContainsFunc(level, func(r rune) bool { return r > 127 || !isWordByte(byte(r)) }):
				return nil, bad("a component of ServicePath contains an illegal character")
			}
		}
	}
	return paths, nil
}

// onPath says whether an entity's path is one of those looked at.
func onPath(path string, paths []string) bool {
	for _, p := range paths {
		if p == path {
			return true
		}
		if above, all := strings.CutSuffix(p, "/#"); all && (above == "" || path == above || strings.HasPrefix(path, above+"/")) {
			return true
		}
	}
	return false
}
