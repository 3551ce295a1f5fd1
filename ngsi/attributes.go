package ngsi

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"campus-gateway"
)

// This file is about what a person wants otherwise than the table in models.go:
// quantities under other names, in other units, in types that the table does
// not have, or not sent at all.

// Attribute is how a quantity of a sensor is sent. Zero values mean the data
// model's own.
type Attribute struct {
	Name     string  // of the attribute
	Unit     string  // unit code (UN/CEFACT Recommendation 20)
	Scale    float64 // how many of the gateway's units make one of the attribute's: 100 makes hPa of Pa
	Decimals *int    // kept of what the scale gives
	Skip     bool    // not sent: kept and shown here only
}

// AttributeError is what is wrong with one of Thing.Attributes, and what to
// write instead.
type AttributeError struct {
	Quantity gateway.Quantity
	Field    string // name, unit, scale, decimals, skip; empty: the whole
	Reason   string
}

func (e *AttributeError) Error() string {
	return strings.TrimSuffix("attributes."+string(e.Quantity)+"."+e.Field, ".") + ": " + e.Reason
}

const longestName = 256 // Orion's limit

var (
	// Letters, digits, _ and - pass every broker. A dot would be a path in queries, a
	// colon a compact IRI.
	namePattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]*$`)
	codePattern = regexp.MustCompile(`^[A-Z0-9]{2,3}$`)
)

// reserved are names that are not a measured value's: the brokers' own, those of
// all data models, and those that this package writes. In NGSI-LD, value is
// expanded to hasValue by three official contexts, and so is the value itself.
var reserved = []string{
	"id", "type", "@context", "scope", "value", "object", "unitCode", "observedAt", "datasetId", "createdAt", "modifiedAt", "TimeInstant", "timeUncertain",
	"address", "alternateName", "areaServed", "category", "configuration", "dataProvider", "dateCreated", "dateModified", "dateObserved", "dateObservedFrom",
	"dateObservedTo", "description", "location", "name", "owner", "seeAlso", "source", "status",
	"hasAgriParcel", "hasDevice", "refDevice", "refPointOfInterest", "refWeatherObserved",
	"controlledProperty", "measurementType", "numValue", "textValue", "unit", "meterType", "phaseType", "sensorPlacement", "typeofLocation",
}

// bounds are what a schema allows a number.
type bounds struct {
	min, max float64
	whole    bool // an integer
}

var (
	anyNumber  = bounds{-anything, anything, false}
	notBelow0  = bounds{0, anything, false}
	fraction   = bounds{0, 1, false}
	wholeCount = bounds{0, anything, true}
	noNumber   = bounds{anything, -anything, false} // a text, a list or an object
)

// spare are the attributes of the models that take no quantity of the table, but
// that a person can name: the schema's bounds hold for them too.
var spare = map[string]map[string]bounds{
	"IndoorEnvironmentObserved": {"sensorHeight": notBelow0, "co2": anyNumber},
	"AirQualityObserved": {
		"airQualityIndex": wholeCount, "tpc": wholeCount, "tsp": wholeCount, "reliability": fraction, "charge": notBelow0,
		"as": notBelow0, "c6h6": notBelow0, "cd": notBelow0, "ni": notBelow0, "no": notBelow0, "nox": notBelow0, "pb": notBelow0, "sh2": notBelow0,
		"airQualityLevel": noNumber, "coLevel": noNumber,
	},
	"WeatherObserved": {
		"dewPoint": anyNumber, "feelsLikeTemperature": anyNumber, "gustSpeed": anyNumber, "visibility": notBelow0, "pressureTendency": anyNumber,
		"directIrradiation": notBelow0, "diffuseIrradiation": notBelow0, "snowHeight": notBelow0, "streamGauge": notBelow0, "airQualityIndex": anyNumber,
		"weatherType": noNumber, "aqiMajorPollutant": noNumber, "aqiMajorPollutantForecast": noNumber, "airTemperatureTSA": noNumber,
	},
	"AgriParcelRecord": {
		"depth": notBelow0, "leafTemperature": anyNumber, "leafWetness": fraction, "leafRelativeHumidity": fraction, "soilSalinity": anyNumber,
	},
	"WaterQualityObserved": {
		"bod": notBelow0, "cod": notBelow0, "conductance": notBelow0, "tss": notBelow0, "salinity": notBelow0, "O2": notBelow0, "Chla": notBelow0,
		"PE": notBelow0, "PC": notBelow0, "NH4": notBelow0, "NH3": notBelow0, "Cl-": notBelow0, "NO3": notBelow0, "PO4": notBelow0, "measurand": noNumber,
	},
	"WaterObserved": {
		"height": notBelow0, "waterDischarge": notBelow0, "swellHeight": notBelow0, "swellPeriod": notBelow0, "swellDirection": {0, 360, false},
		"waveLength": notBelow0, "measuredArea": notBelow0, "objectArea": notBelow0, "objectHeightAverage": notBelow0, "objectHeightMax": notBelow0, "objectVolume": notBelow0,
	},
	"NoiseLevelObserved": {
		"LAS": anyNumber, "LAeq_d": anyNumber, "sonometerClass": noNumber, "obstacles": noNumber, "heightAverage": noNumber, "distanceAverage": noNumber,
	},
	"SmartMeteringObservation": {
		"peakConsumption": anyNumber, "offPeakConsumption": anyNumber, "powerFactor": anyNumber, "entityVersion": noNumber, "image": noNumber,
	},
	"ACMeasurement": {
		"totalActivePower": anyNumber, "totalReactivePower": anyNumber, "totalApparentPower": notBelow0, "totalPowerFactor": {-1, 1, false},
		"totalDisplacementPowerFactor": {-1, 1, false}, "totalReactiveEnergyImport": notBelow0, "totalApparentEnergyImport": notBelow0,
		"totalActiveEnergyExport": notBelow0, "totalReactiveEnergyExport": notBelow0, "totalApparentEnergyExport": notBelow0,
		"dateEnergyMeteringStarted": noNumber, "refTargetDevice": noNumber, "phaseToPhaseVoltage": noNumber, "thdVoltage": noNumber, "thdCurrent": noNumber,
		"reactivePower": noNumber, "apparentPower": noNumber, "displacementPowerFactor": noNumber, "activeEnergyImport": noNumber, "reactiveEnergyImport": noNumber,
		"apparentEnergyImport": noNumber, "activeEnergyExport": noNumber, "reactiveEnergyExport": noNumber, "apparentEnergyExport": noNumber,
	},
	"CrowdFlowObserved": {
		"peopleCountTowards": wholeCount, "peopleCountAway": wholeCount, "occupancy": fraction, "averageCrowdSpeed": notBelow0, "averageHeadwayTime": notBelow0,
		"congested": noNumber, "direction": noNumber, "refRoadSegment": noNumber,
	},
	"PhreaticObserved": {
		"investigationDepth": anyNumber, "pressure": notBelow0, "pollutionRate": anyNumber, "residueLevel": anyNumber, "isMobile": noNumber,
	},
}

// sent are the quantities that t sends.
func (t *Thing) sent() []gateway.Quantity {
	if len(t.Attributes) == 0 {
		return t.Quantities
	}
	return slices.DeleteFunc(slices.Clone(t.Quantities), func(q gateway.Quantity) bool { return t.Attributes[q].Skip })
}

// foreign is the model of a type that the table does not have: what its
// attributes are called is all that is known of it, and it is a subject of its own.
func foreign(typ string) *model { return &model{subject: typ, device: "refDevice"} }

// Foreign reports whether typ is no data model of the table, so that its
// @context has to be configured (Config.Contexts, under the type's name).
func Foreign(typ string) bool { return typ != "" && models[typ] == nil }

// adapted is m as t's attributes want it, and what is wrong with them.
func (t *Thing) adapted(typ string, m *model) (*model, []error) {
	if len(t.Attributes) == 0 && t.Parking == nil {
		return m, nil
	}
	var faults []error
	own := *m
	own.homes = maps.Clone(m.homes)
	if own.homes == nil {
		own.homes = map[gateway.Quantity]home{}
	}
	if h, ok := own.homes[gateway.Distance]; ok && m.parking && t.Parking != nil {
		h.below = t.Parking.Below
		own.homes[gateway.Distance] = h
	}
	for _, q := range slices.Sorted(maps.Keys(t.Attributes)) {
		a := t.Attributes[q]
		fault := func(field, format string, args ...any) {
			faults = append(faults, &AttributeError{q, field, fmt.Sprintf(format, args...)})
		}
		before := len(faults)
		switch {
		case !q.Known():
			fault("", "there is no quantity %q", q)
		case !slices.Contains(t.Quantities, q):
			fault("", "this sensor does not sense %s: it senses %s", q, join(t.Quantities))
		case a.Skip && (a.Name != "" || a.Unit != "" || a.Scale != 0 || a.Decimals != nil):
			fault("skip", "what is not sent needs no other key: keep skip alone, or remove it")
		case a.Skip:
			delete(own.homes, q)
		case typ == measurementType:
			fault("", "a DeviceMeasurement has no attribute of its own for %s: write entity.type (and a location, where that asks for one), or skip: true", q)
		}
		if len(faults) > before || a.Skip {
			continue
		}
		if a.Name != "" {
			checkName(a.Name, fault)
		}
		if a.Unit != "" && !codePattern.MatchString(a.Unit) {
			fault("unit", "%q is not a unit code: want two or three capitals and digits of UN/CEFACT Recommendation 20, such as CEL, P1 or A97", a.Unit)
		}
		if a.Scale != 0 && !(a.Scale >= 1e-9 && a.Scale <= 1e9) {
			fault("scale", "%v is outside 1e-9..1e9: write how many %s make one of the attribute's unit", a.Scale, cmp.Or(q.Unit(), "ones"))
		}
		if a.Scale != 0 && a.Unit == "" {
			fault("scale", "a scale gives another unit: write its code too, such as unit: A97")
		}
		if a.Decimals != nil && (*a.Decimals < 0 || *a.Decimals >= len(powers)) {
			fault("decimals", "%d is outside 0..%d", *a.Decimals, len(powers)-1)
		}
		if q.Kind() != gateway.Number && (a.Unit != "" || a.Scale != 0 || a.Decimals != nil) {
			fault("", "%s is a %s: it takes a name only", q, q.Kind())
		}
		if len(faults) > before {
			continue
		}
		h, ok := a.home(q, typ, m, fault)
		if ok {
			own.homes[q] = h
		}
	}
	// No two under one name, as far as a person has had a hand in it: the table's
	// own are told apart reading by reading.
	first := map[string]gateway.Quantity{}
	for _, q := range t.sent() {
		h, ok := own.homes[q]
		if !ok {
			continue
		}
		other, taken := first[h.attr]
		if !taken {
			first[h.attr] = q
			continue
		}
		if t.Attributes[q].Name == "" {
			q, other = other, q
		}
		if t.Attributes[q].Name != "" {
			faults = append(faults, &AttributeError{q, "name", fmt.Sprintf("%s is called %q too: write another name for one of them", other, h.attr)})
		}
	}
	if _, ok := first[m.needs]; m.needs != "" && !ok {
		faults = append(faults, fmt.Errorf("entity.type: %s requires %s: keep the quantity that gives it, or write another type", typ, m.needs))
	}
	return &own, faults
}

func join(qs []gateway.Quantity) string {
	words := make([]string, len(qs))
	for i, q := range qs {
		words[i] = string(q)
	}
	return strings.Join(words, ", ")
}

func checkName(name string, fault func(field, format string, args ...any)) {
	switch {
	case len(name) > longestName:
		fault("name", "it has %d characters: %d at most", len(name), longestName)
	case slices.Contains(reserved, name):
		fault("name", "%q has a meaning of its own in NGSI or in the data models: write another", name)
	case !namePattern.MatchString(name):
		fault("name", "%q: want a letter, then letters, digits, _ and - (brokers and their queries take nothing else), such as airTemperature", name)
	}
}

// home is where a takes q in a model of that type.
func (a *Attribute) home(q gateway.Quantity, typ string, m *model, fault func(field, format string, args ...any)) (home, bool) {
	h, own := m.homes[q]
	if a.Name != "" && a.Name != h.attr {
		h, own = home{attr: a.Name, per: 1, decimals: kinds[q].decimals, unit: kinds[q].unit, min: -anything, max: anything}, false
	} else if !own {
		fault("name", "%s has no attribute for %s: write a name for it", typ, q)
		return h, false
	}
	whole := false
	if b, ok := spare[typ][h.attr]; ok && !own {
		h.min, h.max, whole = b.min, b.max, b.whole
		if b == noNumber {
			fault("name", "%s.%s is not for a measured number: write another name", typ, h.attr)
			return h, false
		}
		if q.Kind() != gateway.Number {
			fault("name", "%s.%s is a number, and %s is not: write another name", typ, h.attr, q)
			return h, false
		}
	}
	if !own {
		for _, other := range slices.Sorted(maps.Keys(m.homes)) { // under the name of another quantity's home: as that
			o := m.homes[other]
			if o.attr != h.attr {
				continue
			}
			if q.Kind() != gateway.Number {
				fault("name", "%s.%s is a number, and %s is not: write another name", typ, h.attr, q)
				return h, false
			}
			if a.Scale == 0 && q.Unit() != other.Unit() {
				fault("scale", "%s.%s is in other units than %s: write scale, how many %s make one of it, and unit", typ, h.attr, q, cmp.Or(q.Unit(), "ones"))
				return h, false
			}
			h = o
			break
		}
	}
	if a.Scale != 0 {
		h.per = a.Scale
		h.decimals = min(max(kinds[q].decimals+int(math.Ceil(math.Log10(a.Scale))), 0), len(powers)-1)
	}
	if a.Unit != "" {
		h.unit = a.Unit
	}
	if a.Decimals != nil {
		h.decimals = *a.Decimals
	}
	if whole || h.attr == "peopleCount" {
		h.decimals = 0 // an integer
	}
	switch q.Kind() {
	case gateway.Switch:
		h.kind, h.unit = Bool, ""
	case gateway.Text:
		h.kind, h.unit = Text, ""
	}
	return h, true
}

// CheckAttributes is everything that is wrong with t.Attributes: an
// *AttributeError each, but for what concerns none alone.
func CheckAttributes(t Thing) []error {
	typ := t.model()
	m := models[typ]
	if m == nil {
		m = foreign(typ)
	}
	_, faults := t.adapted(typ, m)
	return faults
}

// checkForeign says why t cannot be of a type that the table does not have: each
// quantity needs a name, but for what its Device takes.
func checkForeign(t *Thing, typ string) error {
	if !namePattern.MatchString(typ) || len(typ) > maxForeign {
		return fmt.Errorf("entity.type: %q: want up to %d letters, digits, _ and -, such as AgriGreenhouse", typ, maxForeign)
	}
	named := false
	var missing []gateway.Quantity
	for _, q := range t.sent() {
		_, ofDevice := models[deviceType].homes[q]
		switch {
		case t.Attributes[q].Name != "":
			named = true
		case !ofDevice:
			missing = append(missing, q)
		}
	}
	if named && len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("entity.type: there is no %q: want one of %s; or name every quantity that it is to have under attributes (%s)", typ, strings.Join(Types(), ", "), join(missing))
}

const maxForeign = 48 // of the name of a type: with it, every id stays below maxID

// checkContexts refuses types of which no @context is configured, where the
// dialect needs one: no official one can be guessed.
func (m *Mapper) checkContexts(cfg *Config) error {
	for _, name := range slices.Sorted(maps.Keys(m.things)) {
		if typ := m.things[name].typ; Foreign(typ) && cfg.Contexts[typ] == "" {
			return fmt.Errorf("broker: %s is of no data model that this gateway knows: its @context's URL has to be configured for NGSI-LD", typ)
		}
	}
	return nil
}

// share gives an entity that several sensors feed one refDevice, the gateway's
// own: their own would replace each other with every reading.
func (m *Mapper) share() {
	feeders := map[string]int{}
	for _, s := range m.things {
		feeders[s.id]++
	}
	for _, s := range m.things {
		if feeders[s.id] > 1 && s.typ != measurementType {
			s.refDevice = urn(deviceType, m.gateway)
		}
	}
}

// Conflict is two sensors that feed one entity and would undo each other's work.
type Conflict struct {
	First, Second int // which things
	Reason        string
}

// Conflicts are those among things that have passed Check. Several sensors may
// feed one entity as long as each has its own attributes.
func Conflicts(things []Thing) []Conflict {
	type part struct {
		thing int
		*site
		says map[string]string // attribute: what makes it a conflict
	}
	var found []Conflict
	seen := map[string][]part{}
	m := NewMapper("gateway", things)
	for i := range things {
		s := m.site(things[i])
		for id, says := range s.claims() {
			p := part{i, s, says}
			for _, before := range seen[id] {
				if why := clash(before.typ, p.typ, before.says, says); why != "" {
					found = append(found, Conflict{before.thing, i, fmt.Sprintf("both feed %s: %s", id, why)})
					break
				}
			}
			seen[id] = append(seen[id], p)
		}
	}
	slices.SortFunc(found, func(a, b Conflict) int { return (a.Second-b.Second)*len(things) + a.First - b.First })
	return found
}

// measured marks an attribute that a sensor measures: nobody else may.
const measured = "\x00"

// claims are the entities that s feeds and a person can name, and what s says in
// them.
func (s *site) claims() map[string]map[string]string {
	all := map[string]map[string]string{}
	if s.typ == measurementType {
		for _, q := range s.sent() {
			all[s.measurementID(q)] = map[string]string{"numValue": measured}
		}
		return all
	}
	says := map[string]string{}
	for _, a := range s.observed(time.Time{}) {
		if a.Kind != Time && a.Name != s.model.device {
			says[a.Name] = string(appendValue(nil, &a))
		}
	}
	for _, q := range s.sent() {
		if h, ok := s.model.homes[q]; ok {
			says[h.attr] = measured
		}
	}
	all[s.id] = says
	return all
}

// clash says why two that feed one entity cannot.
func clash(typ1, typ2 string, a, b map[string]string) string {
	if typ1 != typ2 {
		return fmt.Sprintf("one as %s, one as %s: write one entity.type, or another entity.id", typ1, typ2)
	}
	for _, name := range slices.Sorted(maps.Keys(a)) {
		other, ok := b[name]
		switch {
		case !ok:
		case a[name] == measured || other == measured:
			return fmt.Sprintf("both write %s: write another name for it under attributes, skip it at one of them, or write another entity.id", name)
		case a[name] != other:
			return fmt.Sprintf("their %s differ, and an entity has one: write the same at both, or another entity.id", name)
		}
	}
	return ""
}
