package ngsi

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"campus-gateway"
	"campus-gateway/ngsi/sandbox"
)

func digits(n int) *int { return &n }

// TestAttributes: what a person wants otherwise than the table.
func TestAttributes(t *testing.T) {
	v := newValidator(t)
	const (
		temperature = gateway.Temperature
		humidity    = gateway.Humidity
		pressure    = gateway.Pressure
	)
	readings := []gateway.Value{num(temperature, 22.46), num(humidity, 48.26), num(pressure, 97530)}
	type as = map[gateway.Quantity]Attribute
	for name, c := range map[string]struct {
		typ    string
		as     as
		values []gateway.Value
		want   []string // each in the key-values of all entities
		never  string
	}{
		"renamed": {"", as{temperature: {Name: "airTemperature"}}, readings,
			[]string{`"type":"IndoorEnvironmentObserved"`, `"airTemperature":22.46,"relativeHumidity":0.4826,`}, `"temperature"`},
		"below zero under another name": {"", as{temperature: {Name: "airTemperature"}}, []gateway.Value{num(temperature, -0.5)}, []string{`"airTemperature":-0.5`}, "numValue"},
		"the model's own bound":         {"", as{temperature: {Name: "temperature", Decimals: digits(1)}}, []gateway.Value{num(temperature, -0.5)}, []string{`"numValue":-0.5`}, `"temperature":-`},
		"decimals":                      {"", as{temperature: {Decimals: digits(0)}}, readings, []string{`"temperature":22,`}, ""},
		"another unit":                  {"", as{pressure: {Name: "pressureInside", Unit: "KPA", Scale: 1000}}, readings, []string{`"pressureInside":97.53}`}, ""},
		"skipped":                       {"", as{pressure: {Skip: true}}, readings, []string{`"temperature":22.46`}, "ressure"},
		"skipped, so another model":     {"", as{gateway.CO2: {Skip: true}}, []gateway.Value{num(gateway.CO2, 652), num(temperature, 22)}, []string{`"type":"IndoorEnvironmentObserved"`}, "652"},
		"all skipped":                   {"", as{temperature: {Skip: true}}, []gateway.Value{num(temperature, 22)}, nil, "22"},
		"another type": {"AgriGreenhouse", as{temperature: {Name: "temperature"}, humidity: {Name: "relativeHumidity", Unit: "P1", Scale: 1, Decimals: digits(1)}, pressure: {Skip: true}},
			append(slices.Clone(readings), num(gateway.BatteryLevel, 50)),
			[]string{`{"id":"urn:ngsi-ld:AgriGreenhouse:gw:s","type":"AgriGreenhouse","dateObserved":"2026-11-23T09:15:00.123Z","location":{"type":"Point","coordinates":[-7.62,33]},` +
				`"refDevice":"urn:ngsi-ld:Device:gw:s","temperature":22.46,"relativeHumidity":48.3}`, `"batteryLevel":0.5`}, "975"},
		"a switch": {"Door", as{gateway.Contact: {Name: "open"}}, []gateway.Value{{Quantity: gateway.Contact, V: true}}, []string{`"open":true}`}, ""},
		"the home of another": {"AirQualityObserved", as{gateway.WaterTemperature: {Name: "temperature"}, gateway.CO2: {}}, []gateway.Value{num(gateway.WaterTemperature, 17.25), num(gateway.CO2, 652)},
			[]string{`"temperature":17.25,"co2":652}`}, ""},
		"a spare attribute, whole":        {"AirQualityObserved", as{gateway.IAQ: {Name: "airQualityIndex"}}, []gateway.Value{num(gateway.IAQ, 53.6), num(gateway.CO2, 652)}, []string{`"airQualityIndex":54,`}, ""},
		"a spare attribute, out of bound": {"AirQualityObserved", as{gateway.IAQ: {Name: "airQualityIndex"}}, []gateway.Value{num(gateway.IAQ, -3)}, []string{`"numValue":-3`}, "airQualityIndex"},
		"two meters in one entity": {"", as{gateway.WaterVolume: {Name: "waterTotal"}}, []gateway.Value{num(gateway.WaterVolume, 5), num(gateway.Energy, 1000)},
			[]string{`"waterTotal":5,"meterType":"Electricity","totalConsumption":1}`}, "Water\""},
	} {
		thing := Thing{Name: "s", EntityType: c.typ, Location: &settat, Attributes: c.as}
		for _, v := range c.values {
			thing.Quantities = append(thing.Quantities, v.Quantity)
		}
		if err := Check(thing); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var all []byte
		for _, e := range NewMapper("gw", []Thing{thing}).Entities(reading("s", c.values...)) {
			if !Foreign(e.Type) {
				v.check(t, &e)
			}
			all = AppendKeyValues(all, &e)
		}
		for _, want := range c.want {
			if !strings.Contains(string(all), want) {
				t.Errorf("%s: %s\nhas no %s", name, all, want)
			}
		}
		if c.never != "" && strings.Contains(string(all), c.never) {
			t.Errorf("%s: %s\nhas %s", name, all, c.never)
		}
	}
	es := NewMapper("gw", []Thing{{Name: "d", EntityType: "Door", Quantities: []gateway.Quantity{gateway.Contact}, Attributes: as{gateway.Contact: {Name: "open"}}}}).
		Entities(reading("d", gateway.Value{Quantity: gateway.Contact, V: false}))
	for body, want := range map[string]string{
		string(AppendV2(nil, es)): `"open":{"type":"Boolean","value":false,"metadata":{"TimeInstant":`,
		string(AppendLD(nil, es)): `"open":{"type":"Property","value":false,"observedAt":`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%s has no %s", body, want)
		}
	}
}

func TestAttributeFaults(t *testing.T) {
	type as = map[gateway.Quantity]Attribute
	all := []gateway.Quantity{gateway.Temperature, gateway.Humidity, gateway.Pressure, gateway.Contact}
	for _, c := range []struct {
		typ   string
		as    as
		field string
		want  string
	}{
		{"", as{"temprature": {Skip: true}}, "", `no quantity "temprature"`},
		{"", as{gateway.CO2: {Skip: true}}, "", "does not sense co2: it senses temperature, humidity"},
		{"", as{gateway.Temperature: {Skip: true, Name: "x"}}, "skip", "needs no other key"},
		{"", as{gateway.Temperature: {Name: "value"}}, "name", "a meaning of its own"},
		{"", as{gateway.Temperature: {Name: "dateObserved"}}, "name", "a meaning of its own"},
		{"", as{gateway.Temperature: {Name: "refDevice"}}, "name", "a meaning of its own"},
		{"", as{gateway.Temperature: {Name: "@context"}}, "name", "a meaning of its own"},
		{"", as{gateway.Temperature: {Name: strings.Repeat("x", 257)}}, "name", "257 characters: 256 at most"},
		{"", as{gateway.Temperature: {Name: "sensorPlacement"}}, "name", "a meaning of its own"},
		{"", as{gateway.Temperature: {Unit: "celsius"}}, "unit", "is not a unit code"},
		{"", as{gateway.Temperature: {Unit: "C"}}, "unit", "is not a unit code"},
		{"", as{gateway.Temperature: {Unit: "KEL", Scale: math.Inf(1)}}, "scale", "outside"},
		{"", as{gateway.Temperature: {Unit: "KEL", Scale: -1}}, "scale", "outside"},
		{"", as{gateway.Pressure: {Scale: 100}}, "scale", "write its code too"},
		{"", as{gateway.Temperature: {Decimals: digits(9)}}, "decimals", "9 is outside 0..8"},
		{"", as{gateway.Contact: {Name: "open", Unit: "C62"}}, "", "contact is a bool: it takes a name only"},
		{"", as{gateway.Contact: {}}, "name", "IndoorEnvironmentObserved has no attribute for contact"},
		{"", as{gateway.Contact: {Name: "peopleCount"}}, "name", "peopleCount is a number, and contact is not"},
		{"", as{gateway.Contact: {Name: "sensorHeight"}}, "name", "sensorHeight is a number, and contact is not"},
		{"", as{gateway.Temperature: {Name: "illuminance"}}, "scale", "in other units than temperature"},
		{"", as{gateway.Temperature: {Name: "x"}, gateway.Pressure: {Name: "x"}}, "name", `is called "x" too`},
		{"", as{gateway.Temperature: {Name: "relativeHumidity", Unit: "C62", Scale: 1}}, "name", `humidity is called "relativeHumidity" too`},
		{"AirQualityObserved", as{gateway.Temperature: {Name: "airQualityLevel"}}, "name", "is not for a measured number"},
		{"DeviceMeasurement", as{gateway.Temperature: {Name: "x"}}, "", "write entity.type"},
	} {
		thing := Thing{Name: "s", EntityType: c.typ, Location: &settat, Quantities: all, Attributes: c.as}
		faults := CheckAttributes(thing)
		if len(faults) != 1 {
			t.Errorf("%v: %d faults: %v", c.as, len(faults), faults)
			continue
		}
		f, ok := errors.AsType[*AttributeError](faults[0])
		if !ok || f.Field != c.field || !strings.Contains(f.Reason, c.want) || c.as[f.Quantity] == (Attribute{}) && c.want[:2] != "In" {
			t.Errorf("%+v: %+v, want %s: %s", c.as, faults[0], c.field, c.want)
		}
		if err := Check(thing); err == nil || err.Error() != faults[0].Error() {
			t.Errorf("%+v: Check says %v", c.as, err)
		}
	}
	for _, c := range "<>\"'=;()&#/? \t\n\x00é.:@%" {
		for _, name := range []string{"a" + string(c), string(c), string(c) + "a"} {
			if len(CheckAttributes(Thing{Quantities: all, Location: &settat, Attributes: as{gateway.Temperature: {Name: name}}})) != 1 {
				t.Errorf("%q is accepted", name)
			}
		}
	}
	for _, c := range []struct {
		thing Thing
		want  string
	}{
		{Thing{EntityType: "AgriGreenhouse", Quantities: all, Attributes: as{gateway.Temperature: {Name: "temperature"}}}, "(humidity, pressure, contact)"},
		{Thing{EntityType: "Agri Greenhouse", Quantities: all[:1], Attributes: as{gateway.Temperature: {Name: "temperature"}}}, "want up to 48 letters"},
		{Thing{EntityType: "Device", Quantities: all[:1], Attributes: as{gateway.Temperature: {Name: "temperature"}}}, `no "Device"`},
		{Thing{EntityType: "VibrationsObserved", Quantities: []gateway.Quantity{gateway.Acceleration, gateway.Temperature},
			Attributes: as{gateway.Temperature: {Name: "temperature"}, gateway.Acceleration: {Skip: true}}}, "requires accelerationMeasured"},
		{Thing{EntityType: "VibrationsObserved", Quantities: []gateway.Quantity{gateway.Acceleration}, Attributes: as{gateway.Acceleration: {Name: "shake"}}}, "requires accelerationMeasured"},
	} {
		if err := Check(c.thing); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %s", c.thing, err, c.want)
		}
	}
}

// TestEveryName maps quantities onto every attribute of every model: what is
// accepted is valid, whatever the value, and each value is told exactly once.
func TestEveryName(t *testing.T) {
	v := newValidator(t)
	values := []float64{0, -1, 0.5, 1.5, 21.35, 101, 1e9, -1e9}
	accepted := 0
	for _, typ := range Types() {
		if typ == measurementType || typ == "ParkingSpot" {
			continue
		}
		names := map[string]bool{"somethingElse": true}
		for name := range spare[typ] {
			names[name] = true
			if v[typ] != nil && !declares(v[typ], name) {
				t.Errorf("%s has no attribute %s", typ, name)
			}
		}
		var own gateway.Quantity
		for q, h := range models[typ].homes {
			names[h.attr] = true
			if own == "" || q < own {
				own = q
			}
		}
		for _, q := range []gateway.Quantity{gateway.Temperature, gateway.Humidity, gateway.ORP, gateway.Contact, own} {
			for name := range names {
				for _, a := range []Attribute{{Name: name}, {Name: name, Unit: "C62", Scale: 0.001}, {Name: name, Unit: "C62", Scale: 100, Decimals: digits(3)}} {
					thing := Thing{Name: "s", EntityType: typ, Location: &settat, Parcel: "p", Quantities: []gateway.Quantity{q}, Attributes: map[gateway.Quantity]Attribute{q: a}}
					if Check(thing) != nil {
						continue
					}
					accepted++
					m := NewMapper("gw", []Thing{thing})
					for _, x := range values {
						value := num(q, x)
						if q.Kind() == gateway.Switch {
							value.V = x > 0
						}
						es := m.Entities(reading("s", value))
						if len(es) != 1 {
							t.Fatalf("%s %+v: %d entities of %v", typ, thing.Attributes, len(es), value)
						}
						v.check(t, &es[0])
					}
				}
			}
		}
	}
	if accepted < 200 {
		t.Errorf("only %d mappings were accepted", accepted)
	}
}

// TestConflicts: sensors that feed one entity each have attributes of their own.
func TestConflicts(t *testing.T) {
	const id = "room-a101"
	elsewhere := [2]float64{1, 2}
	thing := func(name string, f func(*Thing), qs ...gateway.Quantity) Thing {
		th := Thing{Name: name, EntityID: id, Location: &settat, Quantities: qs}
		if f != nil {
			f(&th)
		}
		return th
	}
	light := thing("light", nil, gateway.Illuminance)
	for name, c := range map[string]struct {
		things []Thing
		want   string // empty: none
	}{
		"apart":          {[]Thing{thing("air", nil, gateway.Temperature, gateway.Humidity), light}, ""},
		"other entities": {[]Thing{thing("air", nil, gateway.Temperature), thing("b", func(t *Thing) { t.EntityID = "" }, gateway.Temperature)}, ""},
		"same attribute": {[]Thing{light, thing("air", nil, gateway.Temperature), thing("b", nil, gateway.Temperature)}, "both write temperature"},
		"mapped apart": {[]Thing{thing("air", nil, gateway.Temperature), thing("b", func(t *Thing) {
			t.Attributes = map[gateway.Quantity]Attribute{gateway.Temperature: {Name: "floorTemperature"}}
		}, gateway.Temperature)}, ""},
		"mapped together": {[]Thing{thing("air", nil, gateway.Temperature), thing("b", func(t *Thing) {
			t.Attributes = map[gateway.Quantity]Attribute{gateway.Pressure: {Name: "temperature", Unit: "CEL", Scale: 1}}
		}, gateway.Pressure)}, "both write temperature"},
		"skipped":         {[]Thing{thing("air", nil, gateway.Temperature), thing("b", func(t *Thing) { t.Attributes = map[gateway.Quantity]Attribute{gateway.Temperature: {Skip: true}} }, gateway.Temperature, gateway.Humidity)}, ""},
		"two places":      {[]Thing{light, thing("b", func(t *Thing) { t.Location = &elsewhere }, gateway.Temperature)}, "their location differ"},
		"two walls":       {[]Thing{thing("a", func(t *Thing) { t.Placement = "floor" }, gateway.Illuminance), thing("b", func(t *Thing) { t.Placement = "roof" }, gateway.Temperature)}, "their sensorPlacement differ"},
		"two types":       {[]Thing{thing("a", func(t *Thing) { t.EntityType, t.EntityID = "AirQualityObserved", "urn:x:1" }, gateway.Temperature), thing("b", func(t *Thing) { t.EntityType, t.EntityID = "WeatherObserved", "urn:x:1" }, gateway.Humidity)}, "one as AirQualityObserved, one as WeatherObserved"},
		"two meters":      {[]Thing{thing("a", nil, gateway.Energy), thing("b", nil, gateway.WaterVolume)}, "both write totalConsumption"},
		"one measurement": {[]Thing{thing("a", nil, gateway.Contact), thing("b", nil, gateway.Occupancy)}, "both write numValue"},
		"measurements":    {[]Thing{thing("a", nil, gateway.Voltage, gateway.Current), thing("b", nil, gateway.Power, gateway.Contact)}, ""},
	} {
		for _, th := range c.things {
			if err := Check(th); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		found := Conflicts(c.things)
		if c.want == "" && len(found) > 0 || c.want != "" && (len(found) != 1 || !strings.Contains(found[0].Reason, c.want) || found[0].Second != len(c.things)-1) {
			t.Errorf("%s: %+v, want %q", name, found, c.want)
		}
	}
}

// TestSharedEntity: what several sensors say of one entity is valid from each,
// and in nothing do they contradict each other.
func TestSharedEntity(t *testing.T) {
	v := newValidator(t)
	m := NewMapper("gw", []Thing{
		{Name: "air", EntityID: "a101", Location: &settat, Placement: "ceiling", Quantities: []gateway.Quantity{gateway.Temperature, gateway.Humidity}},
		{Name: "light", EntityID: "a101", Location: &settat, Placement: "ceiling", Quantities: []gateway.Quantity{gateway.Illuminance}},
		{Name: "alone", Location: &settat, Quantities: []gateway.Quantity{gateway.Illuminance}},
	})
	broker := map[string]any{}
	for _, r := range []gateway.Reading{reading("air", num(gateway.Temperature, 21), num(gateway.Humidity, 40)), reading("light", num(gateway.Illuminance, 300))} {
		es := m.Entities(r)
		if len(es) != 1 || es[0].ID != "urn:ngsi-ld:IndoorEnvironmentObserved:a101" {
			t.Fatalf("%+v", es)
		}
		for name, x := range v.check(t, &es[0]) {
			if old, ok := broker[name].(string); ok && old != x {
				t.Errorf("%s: %v, then %v", name, old, x)
			}
			broker[name] = x
		}
	}
	if broker["temperature"] != 21. || broker["illuminance"] != 300. || broker["refDevice"] != "urn:ngsi-ld:Device:gw" {
		t.Errorf("%v", broker)
	}
	if es := m.Entities(reading("alone", num(gateway.Illuminance, 3))); v.check(t, &es[0])["refDevice"] != "urn:ngsi-ld:Device:gw:alone" {
		t.Errorf("%+v", es)
	}
	if got := slices.Sorted(maps.Keys(m.things)); len(got) != 3 {
		t.Error(got)
	}
}

// TestForeignContext: NGSI-LD needs the @context of a type that no official one
// has, and NGSIv2 does not.
func TestForeignContext(t *testing.T) {
	m := NewMapper("gw", []Thing{{Name: "s", EntityType: "AgriGreenhouse", Quantities: []gateway.Quantity{gateway.Temperature},
		Attributes: map[gateway.Quantity]Attribute{gateway.Temperature: {Name: "temperature"}}}})
	if _, err := New(Config{URL: "http://h", API: "ngsi-ld"}, m); err == nil || !strings.Contains(err.Error(), "AgriGreenhouse") {
		t.Errorf("%v", err)
	}
	if _, err := New(Config{URL: "http://h"}, m); err != nil {
		t.Error(err)
	}
	s, err := New(Config{URL: "http://h", API: "ngsi-ld", Contexts: map[string]string{"AgriGreenhouse": "http://gw/contexts/dataModel.Agrifood.jsonld"}}, m)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, r := range s.Requests([]gateway.Reading{reading("s", num(gateway.Temperature, 20))}) {
		if strings.Contains(string(r.Body), `"type":"AgriGreenhouse"`) {
			found = r.Header.Get("Link") == `<http://gw/contexts/dataModel.Agrifood.jsonld>; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json"`
		}
	}
	if !found {
		t.Error("the greenhouse goes without its @context")
	}
}

// TestAtTheBroker: an entity that two sensors feed, one of them below the
// schema's bound in the end, and one of a type of its own, as a broker holds them
// after a backlog in one batch.
func TestAtTheBroker(t *testing.T) {
	m := NewMapper("gw", []Thing{
		{Name: "air", EntityID: "store", Location: &settat, Quantities: []gateway.Quantity{gateway.Temperature, gateway.Humidity}},
		{Name: "light", EntityID: "store", Location: &settat, Quantities: []gateway.Quantity{gateway.Illuminance}},
		{Name: "plug", EntityType: "Plug", Location: &settat, Quantities: []gateway.Quantity{gateway.ACVoltage, gateway.Contact},
			Attributes: map[gateway.Quantity]Attribute{gateway.ACVoltage: {Name: "volts"}, gateway.Contact: {Name: "on"}}},
		{Name: "mains", Location: &settat, Quantities: []gateway.Quantity{gateway.ACVoltage}},
	})
	var rs []gateway.Reading
	for i := range 3 {
		for _, r := range []gateway.Reading{
			reading("air", num(gateway.Temperature, 1.5-float64(i)), num(gateway.Humidity, 80+float64(i))),
			reading("light", num(gateway.Illuminance, 300+float64(i))),
			reading("plug", num(gateway.ACVoltage, 230), gateway.Value{Quantity: gateway.Contact, V: i > 0}),
			reading("mains", num(gateway.ACVoltage, 229.5)),
		} {
			r.At.Wall = noon.Truncate(time.Minute).Add(time.Duration(i) * time.Minute)
			rs = append(rs, r)
		}
	}
	for api, path := range map[string]string{"ngsi-v2": "/v2/entities/", "ngsi-ld": "/ngsi-ld/v1/entities/"} {
		broker := sandbox.New(sandbox.Options{})
		s := newSink(t, broker, Config{API: api, Contexts: map[string]string{"Plug": "http://gw.test/plug.jsonld"}}, m)
		if err := s.Send(t.Context(), rs); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ id, attr, value, at string }{
			{"IndoorEnvironmentObserved:store", "temperature", "0.5", "09:16"}, // the last within bounds, and when that was
			{"IndoorEnvironmentObserved:store", "relativeHumidity", "0.82", "09:17"},
			{"IndoorEnvironmentObserved:store", "illuminance", "302", "09:17"},
			{"DeviceMeasurement:gw:air:temperature", "numValue", "-0.5", "09:17"},
			{"Plug:gw:plug", "on", "true", "09:17"},
			{"Plug:gw:plug", "volts", "230", "09:17"},
			{"ACMeasurement:gw:mains", "phaseVoltage", "map[L1:229.5]", "09:17"},
		} {
			w := httptest.NewRecorder()
			broker.ServeHTTP(w, httptest.NewRequest("GET", path+"urn:ngsi-ld:"+c.id, nil))
			var e map[string]struct {
				Value      any
				ObservedAt string
				Metadata   struct{ TimeInstant struct{ Value string } }
			}
			var raw map[string]json.RawMessage
			if err := json.Unmarshal(w.Body.Bytes(), &raw); err != nil {
				t.Fatal(err)
			}
			delete(raw, "id")
			delete(raw, "type")
			delete(raw, "@context")
			body, err := json.Marshal(raw)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(body, &e); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			a := e[c.attr]
			if fmt.Sprint(a.Value) != c.value || !strings.Contains(a.ObservedAt+a.Metadata.TimeInstant.Value, "T"+c.at+":00") {
				t.Errorf("%s: %s %s is %v, want %s at %s: %s", api, c.id, c.attr, a, c.value, c.at, w.Body)
			}
		}
	}
}
