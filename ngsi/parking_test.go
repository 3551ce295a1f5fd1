package ngsi

import (
	"strings"
	"testing"

	"campus-gateway"
)

func TestParkingSpot(t *testing.T) {
	thing := Thing{Name: "bay 7", EntityType: "ParkingSpot", EntityID: "bay-7", Location: &settat, Quantities: []gateway.Quantity{gateway.Distance},
		Parking: &Parking{Site: "north-lot", Category: "offStreet", Below: 1500}}
	if err := Check(thing); err != nil {
		t.Fatal(err)
	}
	v := newValidator(t)
	m := NewMapper("gw", []Thing{thing})
	for mm, want := range map[float64]string{0: "occupied", 400: "occupied", 1499.9: "occupied", 1500: "free", 2600: "free", 1e9: "free", -1: ""} {
		es := m.Entities(reading("bay 7", num(gateway.Distance, mm)))
		if len(es) != 1 {
			t.Fatalf("%v: %d entities", mm, len(es))
		}
		got := v.check(t, &es[0])
		if want == "" {
			if got["type"] != measurementType || got["numValue"] != mm {
				t.Errorf("%v: %v", mm, got)
			}
			continue
		}
		if got["status"] != want || got["refParkingSite"] != "urn:ngsi-ld:OffStreetParking:north-lot" || es[0].ID != "urn:ngsi-ld:ParkingSpot:bay-7" {
			t.Errorf("%v: %v, want %s", mm, got, want)
		}
		if ld := string(AppendLD(nil, es)); !strings.Contains(ld, `"status":{"type":"Property","value":"`+want+`","observedAt":"`) {
			t.Error(ld)
		}
	}
	for want, change := range map[string]func(*Thing){
		"parking: it goes with": func(t *Thing) { t.Parking = nil },
		"parking: it goes with ": func(t *Thing) {
			t.EntityType, t.Attributes = "Bay", map[gateway.Quantity]Attribute{gateway.Distance: {Name: "free"}}
		},
		"parking: it goes":        func(t *Thing) { t.EntityType = "DeviceMeasurement" },
		"parking.category":        func(t *Thing) { t.Parking = &Parking{Site: "x", Category: "offstreet", Below: 1} },
		"parking.occupied_below":  func(t *Thing) { t.Parking = &Parking{Site: "x", Category: "onStreet"} },
		"parking.site: there is":  func(t *Thing) { t.Parking = &Parking{Category: "onStreet", Below: 1} },
		"parking.site: \"urn:a b": func(t *Thing) { t.Parking = &Parking{Site: "urn:a b", Category: "onStreet", Below: 1} },
		"requires status":         func(t *Thing) { t.Attributes = map[gateway.Quantity]Attribute{gateway.Distance: {Skip: true}} },
		"requires a location":     func(t *Thing) { t.Location = nil },
		"has no attribute":        func(t *Thing) { t.Quantities = []gateway.Quantity{gateway.Temperature} },
	} {
		other := thing
		change(&other)
		if err := Check(other); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
