package ngsi

import (
	"strings"
	"testing"
	"time"

	"campus-gateway"
)

// TestPhase: what is of one phase is an object that names it, in both dialects.
func TestPhase(t *testing.T) {
	m := NewMapper("gw", []Thing{{Name: "plug", Location: &settat, Quantities: []gateway.Quantity{gateway.ACVoltage}}})
	es := m.Entities(reading("plug", num(gateway.ACVoltage, 230.5)))
	for form, want := range map[string]string{
		string(AppendV2(nil, es)): `"phaseVoltage":{"type":"StructuredValue","value":{"L1":230.5},"metadata":{"unitCode":{"type":"Text","value":"VLT"},"TimeInstant":{`,
		string(AppendLD(nil, es)): `"phaseVoltage":{"type":"Property","value":{"L1":230.5},"unitCode":"VLT","observedAt":"2026-11-23T09:15:00.123Z"}`,
	} {
		if !strings.Contains(form, want) {
			t.Errorf("%s\nhas no %s", form, want)
		}
	}
}

// TestIndoorCO2: in mg/L where the reading has what that takes, else in ppm as a
// DeviceMeasurement; AirQualityObserved takes ppm.
func TestIndoorCO2(t *testing.T) {
	v := newValidator(t)
	t22, p975 := num(gateway.Temperature, 22.4), num(gateway.Pressure, 97530)
	for _, c := range []struct {
		typ    string
		values []gateway.Value
		want   string
	}{
		{"IndoorEnvironmentObserved", []gateway.Value{num(gateway.CO2, 652), t22, p975}, `"co2":1.13886,`},
		{"IndoorEnvironmentObserved", []gateway.Value{p975, t22, num(gateway.CO2, 652)}, `"co2":1.13886}`},
		{"IndoorEnvironmentObserved", []gateway.Value{num(gateway.CO2, 652), t22}, `"numValue":652}`},
		{"IndoorEnvironmentObserved", []gateway.Value{num(gateway.CO2, 652), p975}, `"numValue":652}`},
		{"IndoorEnvironmentObserved", []gateway.Value{num(gateway.CO2, 652), num(gateway.Temperature, -300), p975}, `"numValue":652}`},
		{"IndoorEnvironmentObserved", []gateway.Value{num(gateway.CO2, -1), t22, p975}, `"numValue":-1}`},
		{"AirQualityObserved", []gateway.Value{num(gateway.CO2, 652), t22, p975}, `"co2":652,`},
	} {
		thing := Thing{Name: "s", EntityType: c.typ, Location: &settat}
		for _, v := range c.values {
			thing.Quantities = append(thing.Quantities, v.Quantity)
		}
		var all []byte
		for _, e := range NewMapper("gw", []Thing{thing}).Entities(reading("s", c.values...)) {
			v.check(t, &e)
			all = AppendKeyValues(all, &e)
		}
		if !strings.Contains(string(all), c.want) {
			t.Errorf("%s %v: %s, want %s", c.typ, c.values, all, c.want)
		}
	}
}

// TestBelowZero: what the broker holds of a room after it has frozen. The old
// temperature is not sent again, so that its own time says how old it is; the
// humidity goes on; the true temperature is in a DeviceMeasurement.
func TestBelowZero(t *testing.T) {
	m := NewMapper("gw", []Thing{{Name: "store", Location: &settat, Quantities: []gateway.Quantity{gateway.Temperature, gateway.Humidity}}})
	at := func(minute int, celsius float64) gateway.Reading {
		r := reading("store", num(gateway.Temperature, celsius), num(gateway.Humidity, 80))
		r.At.Wall = noon.Add(time.Duration(minute) * time.Minute)
		return r
	}
	type held struct {
		num float64
		at  time.Time
	}
	broker := map[string]held{} // by entity and attribute
	for _, r := range []gateway.Reading{at(0, 0.5), at(1, -0.5), at(2, -2)} {
		for _, e := range m.Entities(r) {
			for _, a := range e.Attrs {
				if a.Kind == Number {
					broker[e.Type+" "+a.Name] = held{a.Num, a.At}
				}
			}
		}
	}
	for name, want := range map[string]held{
		"IndoorEnvironmentObserved temperature":      {0.5, noon},
		"IndoorEnvironmentObserved relativeHumidity": {0.8, noon.Add(2 * time.Minute)},
		"DeviceMeasurement numValue":                 {-2, noon.Add(2 * time.Minute)},
	} {
		if got := broker[name]; got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}
