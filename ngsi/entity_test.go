package ngsi

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"campus-gateway"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

var (
	settat = [2]float64{-7.62, 33}
	noon   = time.Date(2026, 11, 23, 9, 15, 0, 123_456_789, time.UTC)
)

func reading(sensor string, values ...gateway.Value) gateway.Reading {
	return gateway.Reading{Sensor: sensor, At: gateway.Stamp{Wall: noon}, Values: values}
}

func num(q gateway.Quantity, v float64) gateway.Value { return gateway.Value{Quantity: q, V: v} }

// mirror finds the official schemas under testdata, under each of the names
// that the schemas themselves call them.
type mirror struct{}

func (mirror) Load(url string) (any, error) {
	url = strings.TrimSuffix(url, "/") // some references have one too many
	path, ok := strings.CutPrefix(url, "https://smart-data-models.github.io/")
	if raw, isRaw := strings.CutPrefix(url, "https://raw.githubusercontent.com/smart-data-models/"); isRaw {
		path, ok = strings.Replace(raw, "/master/", "/", 1), true
	}
	if !ok {
		return nil, fmt.Errorf("%s: not one of the official schemas", url)
	}
	f, err := os.Open(filepath.Join("testdata/schemas", filepath.FromSlash(path)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return jsonschema.UnmarshalJSON(f)
}

// unshipped are the types whose official schema is not in testdata: they are
// held to what it requires, written out here, and to bounds.
var unshipped = map[string]struct {
	required []string
	max      map[string]float64
	min      map[string]float64
}{
	"AgriParcelRecord": {
		required: []string{"id", "type", "hasAgriParcel", "location"},
		max:      map[string]float64{"soilMoistureVwc": 1, "relativeHumidity": 1},
		min:      map[string]float64{"soilMoistureVwc": 0, "relativeHumidity": 0},
	},
	"WaterQualityObserved": {
		required: []string{"id", "type", "dateObserved", "location"},
		max:      map[string]float64{"pH": 14},
		min:      map[string]float64{"pH": 0, "tds": 0, "turbidity": 0, "orp": 0, "flow": 0, "conductivity": 0},
	},
	"ACMeasurement": {
		required: []string{"id", "type", "dateObserved", "location", "phaseType"},
		min:      map[string]float64{"frequency": 0, "totalActiveEnergyImport": 0},
	},
	"ParkingSpot":        {required: []string{"id", "type", "location", "status", "category", "refParkingSite"}},
	"VibrationsObserved": {required: []string{"id", "dateObserved", "accelerationMeasured"}},
	"CrowdFlowObserved": {
		required: []string{"id", "type", "dateObserved"},
		min:      map[string]float64{"peopleCount": 0},
	},
}

type validator map[string]*jsonschema.Schema

func newValidator(t testing.TB) validator {
	c := jsonschema.NewCompiler()
	c.UseLoader(mirror{})
	c.AssertFormat()
	v := validator{}
	for _, typ := range append(Types(), deviceType) {
		if _, ok := unshipped[typ]; ok {
			continue
		}
		schema, err := c.Compile("https://smart-data-models.github.io/" + models[typ].subject + "/" + typ + "/schema.json")
		if err != nil {
			t.Fatal(err)
		}
		v[typ] = schema
	}
	return v
}

func (v validator) check(t testing.TB, e *Entity) map[string]any {
	t.Helper()
	body := string(AppendKeyValues(nil, e))
	parsed, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
	if err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	var plain map[string]any
	if err := json.Unmarshal([]byte(body), &plain); err != nil {
		t.Fatal(err)
	}
	if schema := v[e.Type]; schema != nil {
		if err := schema.Validate(parsed); err != nil {
			t.Errorf("%v\n%s", err, body)
		}
	} else if u, ok := unshipped[e.Type]; ok {
		for _, name := range u.required {
			if plain[name] == nil {
				t.Errorf("%s is missing: %s", name, body)
			}
		}
		for name, limit := range u.max {
			if x, ok := plain[name].(float64); ok && x > limit {
				t.Errorf("%s %v > %v", name, x, limit)
			}
		}
		for name, limit := range u.min {
			if x, ok := plain[name].(float64); ok && x < limit {
				t.Errorf("%s %v < %v", name, x, limit)
			}
		}
	} else {
		t.Errorf("%s: no schema", e.Type)
	}
	if len(e.ID) > maxID || checkID(e.ID[:min(len(e.ID), 200)]) != nil || !strings.HasPrefix(e.ID, "urn:ngsi-ld:"+e.Type+":") {
		t.Errorf("id %q", e.ID)
	}
	if len(slices.Compact(slices.Sorted(func(yield func(string) bool) {
		for _, a := range e.Attrs {
			if !yield(a.Name) {
				return
			}
		}
	}))) != len(e.Attrs) {
		t.Errorf("an attribute stands twice: %s", body)
	}
	return plain
}

// TestModels holds the tables to the closed list of quantities and to the
// official schemas: a name that a schema does not have is a name misspelt.
func TestModels(t *testing.T) {
	v := newValidator(t)
	for _, q := range gateway.Quantities() {
		if kinds[q].closed == "" {
			t.Errorf("%s has no row", q)
		}
		if len(q) >= longestSuffix {
			t.Errorf("%s is longer than ids leave room for", q)
		}
	}
	if len(kinds) != len(gateway.Quantities()) {
		t.Errorf("%d rows for %d quantities", len(kinds), len(gateway.Quantities()))
	}
	for typ, m := range models {
		for q, h := range m.homes {
			if !q.Known() || q.Kind() != gateway.Number || h.kind == Text && !m.parking || h.per <= 0 || h.attr == "" {
				t.Errorf("%s: %s: %+v", typ, q, h)
			}
			if v[typ] != nil && !declares(v[typ], h.attr) {
				t.Errorf("%s has no attribute %s", typ, h.attr)
			}
		}
	}
}

func declares(s *jsonschema.Schema, name string) bool {
	if s == nil {
		return false
	}
	if s.Properties[name] != nil || declares(s.Ref, name) {
		return true
	}
	return slices.ContainsFunc(s.AllOf, func(s *jsonschema.Schema) bool { return declares(s, name) })
}

// TestEveryQuantity sends every quantity, alone and with every other, from every
// kind of site and as every data model, with ordinary, extreme and random
// values: all of it is valid, and each value is told exactly once.
func TestEveryQuantity(t *testing.T) {
	v := newValidator(t)
	rng := rand.New(rand.NewPCG(1, 2))
	extremes := []float64{0, -1, 1e9, -1e9, math.Copysign(0, -1), -0.5, 0.1, 1, 21.35, 100, 100.01, 14.2, 190, 360, 1013.25, 97530, -273.15, 1e6, 1e12 + 0.3, 1e-9, math.MaxFloat64, -math.MaxFloat64, math.SmallestNonzeroFloat64}
	seen := map[string]bool{}
	all := gateway.Quantities()
	try := func(thing Thing) {
		thing.Name, thing.Interval = "s", time.Minute
		m := NewMapper("gw", []Thing{thing})
		for n := range len(extremes) + 10 {
			r := reading("s")
			for _, q := range thing.Quantities {
				switch {
				case q.Kind() == gateway.Switch:
					r.Values = append(r.Values, gateway.Value{Quantity: q, V: n%2 == 0})
				case n < len(extremes):
					r.Values = append(r.Values, num(q, extremes[n]))
				default:
					r.Values = append(r.Values, num(q, rng.NormFloat64()*math.Pow(10, rng.Float64()*6)))
				}
			}
			told := 0
			ids := map[string]bool{}
			for _, e := range m.Entities(r) {
				v.check(t, &e)
				seen[e.Type] = true
				if ids[e.ID] {
					t.Errorf("%s twice", e.ID)
				}
				ids[e.ID] = true
				for _, a := range e.Attrs {
					if (a.Kind == Number || a.Kind == Phase) && !a.At.IsZero() {
						told++
					}
				}
			}
			if told != len(r.Values) {
				t.Fatalf("%+v: %d of %d values told", thing, told, len(r.Values))
			}
		}
	}
	for _, outdoor := range []bool{false, true} {
		for _, where := range []*[2]float64{nil, &settat} {
			for _, parcel := range []string{"", "field 1"} {
				site := Thing{Outdoor: outdoor, Location: where, Parcel: parcel, Placement: "ceiling"}
				for _, q := range all {
					site.Quantities = []gateway.Quantity{q}
					try(site)
				}
				site.Quantities = all
				try(site)
				if (where == nil) != (parcel == "") {
					continue
				}
				for _, typ := range Types() {
					site.EntityType, site.Quantities = typ, all
					if Check(site) == nil {
						try(site)
					}
					for _, q := range all { // alone: of two in one attribute, the second is never in it
						if site.Quantities = []gateway.Quantity{q}; models[typ].homes[q].attr != "" && Check(site) == nil {
							try(site)
						}
					}
				}
			}
		}
	}
	for typ := range models {
		if !seen[typ] && typ != "ParkingSpot" { // see TestParkingSpot

			t.Errorf("no %s was ever made", typ)
		}
	}
}

func TestChoice(t *testing.T) {
	const (
		temperature = gateway.Temperature
		humidity    = gateway.Humidity
	)
	for _, c := range []struct {
		quantities []gateway.Quantity
		thing      Thing
		want       string
	}{
		{[]gateway.Quantity{temperature, humidity, gateway.Pressure}, Thing{Location: &settat}, "IndoorEnvironmentObserved"},
		{[]gateway.Quantity{temperature, humidity, gateway.Pressure}, Thing{Location: &settat, Outdoor: true}, "WeatherObserved"},
		{[]gateway.Quantity{temperature}, Thing{}, "DeviceMeasurement"}, // every model wants a location
		{[]gateway.Quantity{gateway.CO2, temperature, humidity}, Thing{Location: &settat}, "AirQualityObserved"},
		{[]gateway.Quantity{gateway.PM25}, Thing{Location: &settat, Outdoor: true}, "AirQualityObserved"},
		{[]gateway.Quantity{gateway.Illuminance}, Thing{Location: &settat}, "IndoorEnvironmentObserved"},
		{[]gateway.Quantity{gateway.UVIndex}, Thing{Location: &settat}, "DeviceMeasurement"},
		{[]gateway.Quantity{gateway.UVIndex}, Thing{Location: &settat, Outdoor: true}, "WeatherObserved"},
		{[]gateway.Quantity{gateway.Precipitation}, Thing{Location: &settat}, "WeatherObserved"},
		{[]gateway.Quantity{gateway.SoilMoisture}, Thing{Location: &settat}, "DeviceMeasurement"},
		{[]gateway.Quantity{gateway.SoilMoisture}, Thing{Location: &settat, Parcel: "f"}, "AgriParcelRecord"},
		{[]gateway.Quantity{gateway.WaterFlow, gateway.WaterVolume}, Thing{Location: &settat}, "SmartMeteringObservation"},
		{[]gateway.Quantity{gateway.WaterFlow}, Thing{Location: &settat}, "WaterObserved"},
		{[]gateway.Quantity{gateway.PH, gateway.WaterFlow}, Thing{Location: &settat}, "WaterQualityObserved"},
		{[]gateway.Quantity{gateway.NoiseLevel}, Thing{Location: &settat}, "NoiseLevelObserved"},
		{[]gateway.Quantity{gateway.Energy, gateway.Power}, Thing{}, "SmartMeteringObservation"},
		{[]gateway.Quantity{gateway.Contact}, Thing{Location: &settat}, "DeviceMeasurement"},
		{[]gateway.Quantity{gateway.Voltage}, Thing{Location: &settat, Outdoor: true}, "DeviceMeasurement"},
		{[]gateway.Quantity{gateway.NoiseLevelMax}, Thing{Location: &settat, Outdoor: true}, "NoiseLevelObserved"},
		{[]gateway.Quantity{gateway.NO2}, Thing{Location: &settat}, "AirQualityObserved"},
		{[]gateway.Quantity{gateway.VOCIndex, gateway.NOxIndex}, Thing{Location: &settat}, "DeviceMeasurement"},
		{[]gateway.Quantity{gateway.VOCIndex, temperature}, Thing{Location: &settat}, "IndoorEnvironmentObserved"},
		{[]gateway.Quantity{gateway.PeopleCount}, Thing{Location: &settat}, "IndoorEnvironmentObserved"},
		{[]gateway.Quantity{gateway.PeopleCount}, Thing{Location: &settat, Outdoor: true}, "CrowdFlowObserved"},
		{[]gateway.Quantity{gateway.PeopleCount}, Thing{Location: &settat, EntityType: "CrowdFlowObserved"}, "CrowdFlowObserved"},
		{[]gateway.Quantity{gateway.ACVoltage, gateway.ACEnergy}, Thing{Location: &settat}, "ACMeasurement"},
		{[]gateway.Quantity{gateway.ACVoltage}, Thing{}, "DeviceMeasurement"},
		{[]gateway.Quantity{gateway.GasVolume}, Thing{}, "SmartMeteringObservation"},
		{[]gateway.Quantity{gateway.Acceleration}, Thing{}, "VibrationsObserved"},
		{[]gateway.Quantity{gateway.WaterConductivity}, Thing{Location: &settat}, "WaterQualityObserved"},
		{[]gateway.Quantity{gateway.Distance}, Thing{Location: &settat}, "DeviceMeasurement"},
		{[]gateway.Quantity{gateway.Distance}, Thing{Location: &settat, EntityType: "PhreaticObserved"}, "PhreaticObserved"},
		{[]gateway.Quantity{gateway.CPUTemperature}, Thing{Location: &settat, Outdoor: true}, "DeviceMeasurement"},
		{[]gateway.Quantity{temperature}, Thing{Location: &settat, EntityType: "AirQualityObserved"}, "AirQualityObserved"},
	} {
		c.thing.Quantities = c.quantities
		if got := c.thing.model(); got != c.want {
			t.Errorf("%v %+v: %s, want %s", c.quantities, c.thing, got, c.want)
		}
		if err := Check(c.thing); err != nil {
			t.Errorf("%v: %v", c.quantities, err)
		}
	}
}

// TestValues holds conversions to decimal results, free of float dirt.
func TestValues(t *testing.T) {
	for _, c := range []struct {
		typ  string
		in   gateway.Value
		want string // as in key-values; empty: a DeviceMeasurement instead
	}{
		{"IndoorEnvironmentObserved", num(gateway.Pressure, 97530), `"atmosphericPressure":975.3,`},
		{"IndoorEnvironmentObserved", num(gateway.Humidity, 48.2), `"relativeHumidity":0.482,`},
		{"IndoorEnvironmentObserved", num(gateway.Humidity, 28.999999999999996), `"relativeHumidity":0.29,`},
		{"IndoorEnvironmentObserved", num(gateway.Humidity, 100), `"relativeHumidity":1,`},
		{"IndoorEnvironmentObserved", num(gateway.Humidity, 100.0001), `"relativeHumidity":1,`},
		{"IndoorEnvironmentObserved", num(gateway.Humidity, 101), ""},
		{"IndoorEnvironmentObserved", num(gateway.Temperature, 0), `"temperature":0,`},
		{"IndoorEnvironmentObserved", num(gateway.Temperature, -0.00001), `"temperature":0,`},
		{"IndoorEnvironmentObserved", num(gateway.Temperature, -0.5), ""},
		{"IndoorEnvironmentObserved", num(gateway.Temperature, 25.0625), `"temperature":25.0625,`},
		{"IndoorEnvironmentObserved", num(gateway.Illuminance, 33680/1.2), `"illuminance":28066.667,`},
		{"AirQualityObserved", num(gateway.Temperature, -0.5), `"temperature":-0.5,`},
		{"AirQualityObserved", num(gateway.Pressure, 101325), `"pressure":1013.25,`},
		{"AirQualityObserved", num(gateway.WindDirection, 310), `"windDirection":-50,`},
		{"AirQualityObserved", num(gateway.WindDirection, 310.12), `"windDirection":-49.88,`},
		{"AirQualityObserved", num(gateway.WindDirection, 180), `"windDirection":180,`},
		{"AirQualityObserved", num(gateway.WindDirection, 361), ""},
		{"AirQualityObserved", num(gateway.CO2, 652), `"co2":652,`},
		{"AirQualityObserved", num(gateway.PM1, -1), ""},
		{"WeatherObserved", num(gateway.WindDirection, 310), `"windDirection":310,`},
		{"WaterObserved", num(gateway.WaterLevel, 1120), `"waterLevel":1.12,`},
		{"WaterQualityObserved", num(gateway.WaterFlow, 10), `"flow":0.6,`},
		{"WaterQualityObserved", num(gateway.ORP, -120), ""},
		{"WaterQualityObserved", num(gateway.PH, 14.1), ""},
		{"AgriParcelRecord", num(gateway.SoilConductivity, 1234.5), `"soilMoistureEc":0.12345,`},
		{"AgriParcelRecord", num(gateway.SoilMoisture, 33.3), `"soilMoistureVwc":0.333,`},
		{"AgriParcelRecord", num(gateway.SolarIrradiance, 812.5), `"solarRadiation":0.8125,`},
		{"WaterQualityObserved", num(gateway.WaterConductivity, 1413), `"conductivity":0.1413,`},
		{"AirQualityObserved", num(gateway.CO, 1.25), `"co":1.25,`},
		{"NoiseLevelObserved", num(gateway.NoiseLevelMax, 71.4), `"LAmax":71.4,`},
		{"IndoorEnvironmentObserved", num(gateway.PeopleCount, 7), `"peopleCount":7,`},
		{"CrowdFlowObserved", num(gateway.PeopleCount, 6.9), `"peopleCount":7,`},
		{"CrowdFlowObserved", num(gateway.PeopleCount, -2), ""},
		{"ACMeasurement", num(gateway.ACVoltage, 230.14), `"phaseType":"singlePhase","refDevice":["urn:ngsi-ld:Device:gw:s"],"phaseVoltage":{"L1":230.14},`},
		{"ACMeasurement", num(gateway.ACCurrent, 0.5), `"current":{"L1":0.5},`},
		{"ACMeasurement", num(gateway.ACPower, -115), ""},
		{"ACMeasurement", num(gateway.ACPowerFactor, -0.93), `"powerFactor":{"L1":-0.93},`},
		{"ACMeasurement", num(gateway.ACPowerFactor, 1.2), ""},
		{"ACMeasurement", num(gateway.ACFrequency, 49.98), `"frequency":49.98,`},
		{"ACMeasurement", num(gateway.ACEnergy, 12804), `"totalActiveEnergyImport":12.804,`},
		{"VibrationsObserved", num(gateway.Acceleration, 9.80665), `"accelerationMeasured":9.80665,`},
		{"PhreaticObserved", num(gateway.Distance, 4120), `"measurementType":["depth"],"refDevice":["urn:ngsi-ld:Device:gw:s"],"waterTable":4.12,`},
		{"SmartMeteringObservation", num(gateway.GasVolume, 12804), `"meterType":"Gas","totalConsumption":12.804,`},
		{"SmartMeteringObservation", num(gateway.Energy, 12804), `"totalConsumption":12.804,`},
		{"SmartMeteringObservation", num(gateway.Energy, 123456789012), `"totalConsumption":123456789.012,`},
		{"SmartMeteringObservation", num(gateway.WaterVolume, 12804), `"totalConsumption":12.804,`},
	} {
		m := NewMapper("gw", []Thing{{Name: "s", EntityType: c.typ, Location: &settat, Parcel: "p", Quantities: []gateway.Quantity{c.in.Quantity}}})
		es := m.Entities(reading("s", c.in))
		if len(es) != 1 {
			t.Fatalf("%s %v: %d entities", c.typ, c.in, len(es))
		}
		got := string(AppendKeyValues(nil, &es[0]))
		got = strings.TrimSuffix(got, "}") + ","
		if c.want == "" {
			want := "urn:ngsi-ld:DeviceMeasurement:gw:s:" + string(c.in.Quantity)
			if es[0].ID != want || !strings.Contains(got, fmt.Sprintf(`"numValue":%v,`, c.in.V)) {
				t.Errorf("%s %v: %s", c.typ, c.in, got)
			}
		} else if es[0].Type != c.typ || !strings.Contains(got, c.want) {
			t.Errorf("%s %v: %s, want %s", c.typ, c.in, got, c.want)
		}
	}
}

func TestEntityIDs(t *testing.T) {
	for _, c := range []struct {
		typ, id string
		values  []gateway.Value
		want    []string
	}{
		{"", "", []gateway.Value{num(gateway.Temperature, 20)}, []string{"urn:ngsi-ld:IndoorEnvironmentObserved:gw-1:Salle~20B"}},
		{"", "room-a101", []gateway.Value{num(gateway.Temperature, 20), num(gateway.Voltage, 3)}, []string{"urn:ngsi-ld:IndoorEnvironmentObserved:room-a101", "urn:ngsi-ld:DeviceMeasurement:gw-1:Salle~20B:voltage"}},
		{"AirQualityObserved", "urn:ngsi-ld:AirQualityObserved:x", []gateway.Value{num(gateway.Temperature, 20)}, []string{"urn:ngsi-ld:AirQualityObserved:x"}},
		{"", "settat:salle é", []gateway.Value{num(gateway.Temperature, 20)}, []string{"urn:ngsi-ld:IndoorEnvironmentObserved:settat:salle~20~C3~A9"}},
		{"DeviceMeasurement", "door", []gateway.Value{{Quantity: gateway.Contact, V: true}}, []string{"urn:ngsi-ld:DeviceMeasurement:door"}},
		{"DeviceMeasurement", "plug", []gateway.Value{num(gateway.Voltage, 3), num(gateway.Current, 1)}, []string{"urn:ngsi-ld:DeviceMeasurement:plug:voltage", "urn:ngsi-ld:DeviceMeasurement:plug:current"}},
		{"", "", []gateway.Value{num(gateway.BatteryLevel, 83), num(gateway.RSSI, -61)}, []string{"urn:ngsi-ld:Device:gw-1:Salle~20B"}},
		{"", "", []gateway.Value{num(gateway.BatteryLevel, -1)}, []string{"urn:ngsi-ld:Device:gw-1:Salle~20B"}},
		{"", "", []gateway.Value{num(gateway.BatteryLevel, 101)}, []string{"urn:ngsi-ld:DeviceMeasurement:gw-1:Salle~20B:batteryLevel"}},
	} {
		thing := Thing{Name: "Salle B", EntityType: c.typ, EntityID: c.id, Location: &settat}
		for _, v := range c.values {
			thing.Quantities = append(thing.Quantities, v.Quantity)
		}
		if err := Check(thing); err != nil {
			t.Errorf("%+v: %v", thing, err)
		}
		var got []string
		for _, e := range NewMapper("gw-1", []Thing{thing}).Entities(reading("Salle B", c.values...)) {
			got = append(got, e.ID)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q, want %q", thing, got, c.want)
		}
	}
	// A sensor that is configured no more, in the log from before.
	es := NewMapper("gw", nil).Entities(reading("gone", num(gateway.Temperature, 20)))
	if len(es) != 1 || es[0].ID != "urn:ngsi-ld:DeviceMeasurement:gw:gone:temperature" {
		t.Errorf("%+v", es)
	}
	// A value that is none makes no entity; Send rejects its reading.
	if es := NewMapper("gw", nil).Entities(reading("s", num(gateway.Temperature, math.NaN()))); len(es) != 0 {
		t.Errorf("%+v", es)
	}
}

func TestCheck(t *testing.T) {
	temperature := []gateway.Quantity{gateway.Temperature}
	for _, c := range []struct {
		thing Thing
		want  string // in the error; empty: none
	}{
		{Thing{Name: "s", Quantities: temperature}, ""},
		{Thing{Name: strings.Repeat("é", 64), Quantities: temperature}, "takes 384 characters"},
		{Thing{EntityType: "Foo", Quantities: temperature}, `no "Foo": want one of ACMeasurement, AgriParcelRecord, `},
		{Thing{EntityType: "Device", Quantities: temperature}, `no "Device"`},
		{Thing{EntityType: "WeatherObserved", Quantities: temperature}, "requires a location"},
		{Thing{EntityType: "AgriParcelRecord", Quantities: temperature, Location: &settat}, "requires a parcel"},
		{Thing{EntityType: "WaterObserved", Quantities: temperature, Location: &settat}, "no attribute for anything"},
		{Thing{EntityID: "urn:a b", Quantities: temperature}, `" " cannot stand`},
		{Thing{EntityID: strings.Repeat("x", 250), Quantities: temperature}, "238 at most"},
		{Thing{EntityID: "a b", Quantities: temperature}, ""},
		{Thing{Parcel: "urn:x;y", Quantities: temperature}, `parcel: "urn:x;y"`},
	} {
		err := Check(c.thing)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.thing, err, c.want)
		}
	}
}

// TestDevices holds the Device of the gateway and of a sensor with everything to
// the schema.
func TestDevices(t *testing.T) {
	v := newValidator(t)
	m := NewMapper("gw 7", []Thing{
		{Name: "all", Driver: "bme280", Doc: "air <(\x00\xff)>", Quantities: gateway.Quantities(), Location: &settat, Placement: "shelf 3"},
		{Name: "bare"},
	})
	if self := v.check(t, &m.self); self["controlledProperty"] == nil || self["name"] != "gw 7" {
		t.Errorf("%v", self)
	}
	for _, name := range []string{"all", "bare"} {
		e := m.things[name].device(noon)
		v.check(t, &e)
	}
}

func FuzzIDEscape(f *testing.F) {
	for _, s := range []string{"", "room-1", "Salle B", "a~b", "~", "~4", "~41", "غرفة", "a:b/c?d#e&f=g;h('i')<\"j\">", "\xff\x00", "%41"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		escaped := IDEscape(s)
		if strings.ContainsAny(escaped, forbidden+"&#/?%: \t\n") || strings.ContainsFunc(escaped, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("%q escapes to %q", s, escaped)
		}
		back, err := IDUnescape(escaped)
		if err != nil || back != s {
			t.Errorf("%q comes back as %q, %v", s, back, err)
		}
		// Whatever else unescapes is what escapes to it: no two names share an id.
		if other, err := IDUnescape(s); err == nil && IDEscape(other) != s {
			t.Errorf("%q unescapes to %q, which escapes to %q", s, other, IDEscape(other))
		}
	})
}

// TestLongestIDs: names at their limits keep every id within Orion's.
func TestLongestIDs(t *testing.T) {
	v := newValidator(t)
	thing := Thing{Name: strings.Repeat("x", maxName), Quantities: gateway.Quantities(), Location: &settat}
	if err := Check(thing); err != nil {
		t.Fatal(err)
	}
	m := NewMapper(strings.Repeat("g", maxGateway), []Thing{thing})
	r := reading(thing.Name)
	for _, q := range thing.Quantities {
		if q.Kind() == gateway.Number {
			r.Values = append(r.Values, num(q, 1))
		}
	}
	longest := 0
	for _, e := range m.Entities(r) {
		v.check(t, &e)
		longest = max(longest, len(e.ID))
	}
	if longest < 200 || longest > maxID {
		t.Errorf("the longest id has %d characters", longest)
	}
}
