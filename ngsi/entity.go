// Package ngsi turns readings into NGSI entities of the Smart Data Models and
// takes them to a broker, in NGSIv2 or NGSI-LD. What fits which model is the
// table in models.go; Mapper is pure; Sink is the HTTP client and the judge of
// the broker's answers. What a Sink sends it writes by templates, which it makes
// of what the Mapper and the plain writers give.
package ngsi

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"campus-gateway"
)

// Thing is what is known of a configured sensor.
type Thing struct {
	Name       string             // as readings name it
	Quantities []gateway.Quantity // all that it senses
	Driver     string             // optional
	Doc        string             // the driver's, in one line; optional
	Firmware   string             // version of the chip's own; optional
	Serial     string             // number of the chip; optional

	// Attributes are sent otherwise than the data model would have it.
	Attributes map[gateway.Quantity]Attribute

	// EntityType is a data model of Types(), or any other type where Attributes name
	// every quantity; empty: chosen by quantities and site.
	EntityType string
	EntityID   string // a whole URN, or what stands after urn:ngsi-ld:<Type>: ; empty: <gateway>:<name>

	Outdoor   bool
	Location  *[2]float64   // longitude, latitude (WGS 84, the order of GeoJSON)
	Placement string        // where in the room: northWall, ceiling …
	Parcel    string        // the AgriParcel that a soil probe belongs to: a URN or a name
	Parking   *Parking      // of a ParkingSpot
	Interval  time.Duration // what a value is the mean of (noise); 0: an instant
}

// Kind is the form of an attribute.
type Kind uint8

// The kinds of attributes.
const (
	Number Kind = iota // Num
	Text               // Text
	Time               // At
	Point              // Point: longitude, latitude
	Ref                // Text: the id of another entity
	Texts              // List
	Refs               // Text, where the model wants a list of ids
	Phase              // Num, of the one phase that is measured: {"L1": Num}
	Bool               // Num: 0 is false
)

// Attr is an attribute of an entity.
type Attr struct {
	Name  string
	Kind  Kind
	Num   float64
	Text  string
	List  []string
	Point [2]float64
	At    time.Time // when it was observed; zero: it was not, it is known
	Unit  string    // unit code

	// Uncertain is between when and when it was observed, where At is only the best
	// guess: an ISO 8601 interval of two instants, the second ".." if not known.
	Uncertain string

	value int   // which of the reading's values it tells
	home  *home // how it tells it; nil: it tells none
}

// Entity is what a broker keeps.
type Entity struct {
	ID, Type string
	Subject  string    // of its data model, such as dataModel.Environment: it names the @context
	At       time.Time // of the newest observation in it; zero: none
	Attrs    []Attr

	Uncertain string // as of an Attr
}

// Mapper maps the readings of one gateway. It never changes, so it may be used
// by several goroutines.
type Mapper struct {
	gateway string
	things  map[string]*site
	self    Entity // the gateway's own Device
}

// site is a thing with what does not change from reading to reading.
type site struct {
	Thing
	typ      string
	model    *model
	id       string // of the entity
	deviceID string
	fixed    []Attr // that every observation has
	self     Entity // its Device

	refDevice string // of its observations: deviceID, unless others feed the entity too
}

// NewMapper maps the readings of things that have passed Check.
func NewMapper(gatewayID string, things []Thing) *Mapper {
	m := &Mapper{gateway: IDEscape(gatewayID), things: make(map[string]*site, len(things))}
	var properties []string
	for i := range things {
		s := m.site(things[i])
		m.things[s.Name] = s
		for _, p := range controlled(s.Quantities) {
			if !slices.Contains(properties, p) {
				properties = append(properties, p)
			}
		}
	}
	m.share()
	slices.Sort(properties)
	m.self = Entity{
		ID: urn(deviceType, m.gateway), Type: deviceType, Subject: deviceSubject,
		Attrs: []Attr{
			{Name: "category", Kind: Texts, List: []string{"network"}},
			{Name: "controlledProperty", Kind: Texts, List: properties},
			{Name: "name", Kind: Text, Text: gatewayID},
			{Name: "description", Kind: Text, Text: "campus gateway: reads sensors and forwards what they sense"},
		},
	}
	return m
}

func (m *Mapper) site(t Thing) *site {
	own := m.gateway + ":" + IDEscape(t.Name)
	s := &site{Thing: t, typ: t.model(), deviceID: urn(deviceType, own)}
	s.refDevice = s.deviceID
	s.model = models[s.typ]
	if s.model == nil {
		s.model = foreign(s.typ)
	}
	s.model, _ = t.adapted(s.typ, s.model) // its faults are Check's to tell
	s.id = urn(s.typ, own)
	if t.EntityID != "" {
		s.id = entityID(s.typ, t.EntityID)
	}
	if t.Location != nil {
		s.fixed = append(s.fixed, Attr{Name: "location", Kind: Point, Point: *t.Location})
	}
	s.self = Entity{ID: s.deviceID, Type: deviceType, Subject: deviceSubject}
	s.self.Attrs = append(s.self.Attrs,
		Attr{Name: "category", Kind: Texts, List: []string{"sensor"}},
		Attr{Name: "controlledProperty", Kind: Texts, List: controlled(t.Quantities)},
		Attr{Name: "name", Kind: Text, Text: t.Name})
	if about := strings.TrimPrefix(t.Driver+": "+t.Doc, ": "); t.Driver+t.Doc != "" {
		s.self.Attrs = append(s.self.Attrs, Attr{Name: "description", Kind: Text, Text: strings.TrimSuffix(about, ": ")})
	}
	if t.Placement != "" {
		s.self.Attrs = append(s.self.Attrs, Attr{Name: "relativePosition", Kind: Text, Text: t.Placement})
	}
	s.self.Attrs = known(s.self.Attrs, "firmwareVersion", t.Firmware, "serialNumber", t.Serial)
	s.self.Attrs = append(s.self.Attrs, s.fixed...)
	return s
}

// controlled is Device.controlledProperty.
func controlled(qs []gateway.Quantity) []string {
	var names []string
	for _, q := range qs {
		if k := kinds[q]; k.closed != "" {
			names = append(names, k.closed)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Check says why a sensor cannot be mapped as configured. Its words name the
// keys of the configuration.
func Check(t Thing) error {
	if n := len(IDEscape(t.Name)); n > maxName {
		return fmt.Errorf("the name takes %d characters in an entity id, %d at most (a character beyond a-z takes three a byte): write a shorter one", n, maxName)
	}
	typ := t.model()
	m, known := models[typ]
	switch {
	case typ == deviceType:
		return fmt.Errorf("entity.type: there is no %q of a sensor's values: want one of %s", typ, strings.Join(Types(), ", "))
	case !known:
		if err := checkForeign(&t, typ); err != nil {
			return err
		}
		m = foreign(typ)
	case m.located && t.Location == nil:
		return fmt.Errorf("entity.type: %s requires a location: write one, here or at the gateway", typ)
	case m.parcel && t.Parcel == "":
		return fmt.Errorf("entity.type: %s requires a parcel: write the AgriParcel that the soil belongs to", typ)
	case typ != measurementType && !slices.ContainsFunc(t.Quantities, func(q gateway.Quantity) bool {
		_, ok := m.homes[q]
		return ok || t.Attributes[q].Name != ""
	}):
		return fmt.Errorf("entity.type: %s has no attribute for anything that this sensor senses: leave it out, or write %s", typ, measurementType)
	}
	if m.parking != (t.Parking != nil) {
		return errors.New("parking: it goes with entity.type ParkingSpot: write both, or none")
	}
	if _, faults := t.adapted(typ, m); len(faults) > 0 {
		return faults[0]
	}
	if t.EntityID != "" {
		if err := checkID(entityID(typ, t.EntityID)); err != nil {
			return fmt.Errorf("entity.id: %w", err)
		}
	}
	if err := t.Parking.check(); err != nil {
		return fmt.Errorf("parking.%w", err)
	}
	if t.Parcel != "" {
		if err := checkID(entityID("AgriParcel", t.Parcel)); err != nil {
			return fmt.Errorf("parcel: %w", err)
		}
	}
	return nil
}

func checkValue(v gateway.Value) error {
	if !v.Quantity.Known() {
		return fmt.Errorf("%q is not a quantity", v.Quantity)
	}
	return v.Check()
}

// Entities are what a reading says, in one entity of the sensor's model if that
// takes it, in one DeviceMeasurement a quantity otherwise, and in the sensor's
// Device what it says of itself. A value that fails its Check is left out; Send
// rejects such a reading.
func (m *Mapper) Entities(r gateway.Reading) []Entity {
	s := m.things[r.Sensor]
	if s == nil { // no longer configured, but still in the log
		t := Thing{Name: r.Sensor}
		for _, v := range r.Values {
			t.Quantities = append(t.Quantities, v.Quantity)
		}
		s = m.site(t)
	}
	at := r.At.Wall
	main := Entity{ID: s.id, Type: s.typ, Subject: s.model.subject, At: at}
	var self Entity
	var others []Entity
	for i, v := range r.Values {
		if checkValue(v) != nil || s.Attributes[v.Quantity].Skip {
			continue
		}
		a, ok := attr(s.model, v, at, main.Attrs)
		if !ok && v.Quantity == gateway.CO2 {
			a, ok = s.indoorCO2(v, r.Values, at)
		}
		if ok {
			if main.Attrs == nil {
				main.Attrs = s.observed(at)
			}
			if kind, ok := meters[v.Quantity]; ok && a.Name == "totalConsumption" {
				main.Attrs = append(main.Attrs, Attr{Name: "meterType", Kind: Text, Text: kind})
			}
			a.value = i
			main.Attrs = append(main.Attrs, a)
		} else if a, ok := attr(models[deviceType], v, at, nil); ok {
			if self.Attrs == nil {
				self = s.device(at)
			}
			a.value = i
			self.Attrs = append(self.Attrs, a)
		} else {
			e := m.measurement(s, v, at)
			e.Attrs[len(e.Attrs)-1].value = i
			others = append(others, e)
		}
	}
	var es []Entity
	if main.Attrs != nil {
		es = append(es, main)
	}
	es = append(es, others...)
	if self.Attrs != nil {
		es = append(es, self)
	}
	for i := range es {
		es[i].mark(r.At)
	}
	return es
}

// mark says of all that e has observed that its time is uncertain, if it is.
func (e *Entity) mark(s gateway.Stamp) {
	if s.Earliest.IsZero() {
		return
	}
	between := func(at time.Time) string {
		shift := at.Sub(s.Wall) // where an observation began lies before where it ended
		text := s.Earliest.Add(shift).UTC().Format(timeForm) + "/"
		if s.Latest.IsZero() {
			return text + ".."
		}
		return text + s.Latest.Add(shift).UTC().Format(timeForm)
	}
	e.Uncertain = between(e.At)
	for i := range e.Attrs {
		if a := &e.Attrs[i]; !a.At.IsZero() {
			a.Uncertain = between(a.At)
		}
	}
}

// attr is v as an attribute of m. It is not ok when m has no home for it, when v
// is out of bounds, and when the attribute is taken.
func attr(m *model, v gateway.Value, at time.Time, taken []Attr) (Attr, bool) {
	h, ok := m.homes[v.Quantity]
	if !ok || slices.ContainsFunc(taken, func(a Attr) bool { return a.Name == h.attr }) {
		return Attr{}, false
	}
	a := Attr{Name: h.attr, Kind: h.kind, At: at, Unit: h.unit}
	switch x := v.V.(type) {
	case float64:
		a.Num, ok = h.take(x)
		if h.below > 0 {
			a.Text = occupied(a.Num < h.below)
		} else if h.kind != Bool {
			a.home = &h
		}
	case bool:
		if x {
			a.Num = 1
		}
	case string:
		a.Text = x
	}
	return a, ok
}

// observed is what an observation of s has beside its values.
func (s *site) observed(at time.Time) []Attr {
	as := make([]Attr, 0, len(s.Quantities)+8)
	switch s.model.dated {
	case dateObserved:
		as = append(as, Attr{Name: "dateObserved", Kind: Time, At: at})
	case dateFromTo:
		as = append(as,
			Attr{Name: "dateObservedFrom", Kind: Time, At: at.Add(-s.Interval)},
			Attr{Name: "dateObservedTo", Kind: Time, At: at})
	}
	as = append(as, s.fixed...)
	switch s.typ {
	case "AirQualityObserved":
		where := "indoor"
		if s.Outdoor {
			where = "outdoor"
		}
		as = append(as, Attr{Name: "typeofLocation", Kind: Text, Text: where})
	case "IndoorEnvironmentObserved":
		if slices.Contains(placements, s.Placement) {
			as = append(as, Attr{Name: "sensorPlacement", Kind: Text, Text: s.Placement})
		}
	case "AgriParcelRecord":
		as = append(as, Attr{Name: "hasAgriParcel", Kind: Ref, Text: entityID("AgriParcel", s.Parcel)})
	case "ParkingSpot":
		as = append(as,
			Attr{Name: "category", Kind: Texts, List: []string{s.Parking.Category}},
			Attr{Name: "refParkingSite", Kind: Ref, Text: entityID(s.Parking.siteType(), s.Parking.Site)})
	case "ACMeasurement":
		as = append(as, Attr{Name: "phaseType", Kind: Text, Text: "singlePhase"})
	case "PhreaticObserved":
		as = append(as, Attr{Name: "measurementType", Kind: Texts, List: []string{"depth"}})
	}
	kind := Ref
	if s.model.listed {
		kind = Refs
	}
	return append(as, Attr{Name: s.model.device, Kind: kind, Text: s.refDevice})
}

// measurement is a value that no model of its sensor takes.
func (m *Mapper) measurement(s *site, v gateway.Value, at time.Time) Entity {
	k := kinds[v.Quantity]
	id := s.measurementID(v.Quantity)
	name, unit := k.free, k.unit
	if name == "" {
		name = string(v.Quantity)
	}
	if unit == "" {
		unit = v.Quantity.Unit()
	}
	e := Entity{ID: id, Type: measurementType, Subject: deviceSubject, At: at, Attrs: make([]Attr, 0, 8)}
	e.Attrs = append(e.Attrs, Attr{Name: "dateObserved", Kind: Time, At: at})
	e.Attrs = append(e.Attrs, s.fixed...)
	e.Attrs = append(e.Attrs,
		Attr{Name: "refDevice", Kind: Ref, Text: s.deviceID},
		Attr{Name: "controlledProperty", Kind: Text, Text: name},
		Attr{Name: "measurementType", Kind: Text, Text: string(v.Quantity)},
		Attr{Name: "unit", Kind: Text, Text: unit})
	a := Attr{Name: "numValue", At: at, Unit: k.unit, home: &home{per: 1, decimals: k.decimals, min: -anything, max: anything}}
	switch x := v.V.(type) {
	case float64:
		a.Num, _ = a.home.take(x)
	case bool:
		if x {
			a.Num = 1
		}
	case string:
		a = Attr{Name: "textValue", Kind: Text, Text: x, At: at}
	}
	e.Attrs = append(e.Attrs, a)
	return e
}

// measurementID is the DeviceMeasurement that takes q where no model does.
func (s *site) measurementID(q gateway.Quantity) string {
	of := ":" + IDEscape(string(q))
	if s.typ != measurementType || s.EntityID == "" {
		return urn(measurementType, strings.TrimPrefix(s.deviceID, urn(deviceType, ""))) + of
	}
	if len(s.Quantities) > 1 {
		return s.id + of
	}
	return s.id
}

// device is s's own Device, last heard of at that time.
func (s *site) device(at time.Time) Entity {
	e := s.self
	e.At = at
	e.Attrs = append(slices.Clip(e.Attrs), Attr{Name: "dateLastValueReported", Kind: Time, At: at})
	return e
}

const (
	maxID      = 256 // Orion's and the schemas' limit
	maxName    = 120 // of an escaped sensor name
	maxGateway = 64  // of an escaped gateway id: with both, every id stays below maxID

	longestSuffix = len(":waterConductivity") // what may come behind an id that a person wrote
)

func urn(typ, rest string) string { return "urn:ngsi-ld:" + typ + ":" + rest }

// entityID is the id that a person wrote: a whole URN, or the end of one.
func entityID(typ, id string) string {
	if strings.HasPrefix(id, "urn:") {
		return id
	}
	parts := strings.Split(id, ":")
	for i := range parts {
		parts[i] = IDEscape(parts[i])
	}
	return urn(typ, strings.Join(parts, ":"))
}

func checkID(id string) error {
	for i := range len(id) {
		if c := id[i]; !plain(c) && c != ':' && c != '~' {
			return fmt.Errorf("%q: %q cannot stand in a URN here: want letters, digits and : - _ . ~", id, id[i:i+1])
		}
	}
	if len(id)+longestSuffix > maxID {
		return fmt.Errorf("%q has %d characters: want %d at most", id, len(id), maxID-longestSuffix)
	}
	return nil
}

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
}

const hex = "0123456789ABCDEF"

// IDEscape makes any name fit to be part of an entity id: letters, digits and
// - _ . stay, every other byte becomes ~ and its two hexadecimal digits. So it
// has none of the characters that Orion refuses in ids, no colon (which parts
// gateway, sensor and quantity), and no percent sign, which would be decoded on
// its way through a URL.
func IDEscape(name string) string {
	if strings.IndexFunc(name, func(r rune) bool { return r >= 0x80 || !plain(byte(r)) }) < 0 {
		return name
	}
	out := make([]byte, 0, 3*len(name))
	for i := range len(name) {
		if c := name[i]; plain(c) {
			out = append(out, c)
		} else {
			out = append(out, '~', hex[c>>4], hex[c&15])
		}
	}
	return string(out)
}

var errEscape = errors.New("not an escaped name")

// IDUnescape is the name that IDEscape escaped. It refuses what IDEscape does
// not write.
func IDUnescape(s string) (string, error) {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '~' && i+2 < len(s) {
			c = byte(strings.IndexByte(hex, s[i+1])<<4 | strings.IndexByte(hex, s[i+2])&15)
			i += 2
		}
		out = append(out, c)
	}
	if IDEscape(string(out)) != s {
		return "", fmt.Errorf("%q: %w", s, errEscape)
	}
	return string(out), nil
}
