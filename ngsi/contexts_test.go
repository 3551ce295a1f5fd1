package ngsi

import (
	"encoding/json"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"campus-gateway"
)

// TestContexts: each subject has its file, and what is sent has a term in it. A
// name without one would become a name of no vocabulary at the broker.
func TestContexts(t *testing.T) {
	// The official context has no term for these, though the model has use for them:
	// the broker's own default takes them, as it does for whoever asks.
	without := map[string][]string{
		"dataModel.Agrifood":     {"airTemperature"},
		"dataModel.Building":     {"refDevice"},
		"dataModel.WaterQuality": {"refDevice"},
	}
	terms := map[string]map[string]any{}
	for _, subject := range Subjects() {
		b, err := fs.ReadFile(Contexts(), subject+".jsonld")
		if err != nil {
			t.Fatal(err)
		}
		var file struct {
			Context map[string]any `json:"@context"`
		}
		if err := json.Unmarshal(b, &file); err != nil {
			t.Fatalf("%s: %v", subject, err)
		}
		terms[subject] = file.Context
		if file.Context["location"] != "https://uri.etsi.org/ngsi-ld/location" {
			t.Errorf("%s: %v", subject, file.Context["location"])
		}
	}
	files, err := fs.Glob(Contexts(), "*.jsonld")
	if err != nil || len(files) != len(Subjects()) {
		t.Errorf("%v, %v", files, err)
	}
	missing := map[string][]string{}
	check := func(e *Entity) {
		names := []string{e.Type}
		for _, a := range e.Attrs {
			names = append(names, a.Name)
		}
		for _, name := range names {
			iri, _ := terms[e.Subject][name].(string)
			if !strings.HasPrefix(iri, "http") && !slices.Contains(missing[e.Subject], name) {
				missing[e.Subject] = append(missing[e.Subject], name)
			}
		}
	}
	for _, typ := range Types() {
		for _, q := range gateway.Quantities() {
			thing := Thing{Name: "s", EntityType: typ, Location: &settat, Parcel: "p", Placement: "floor", Interval: time.Minute, Quantities: []gateway.Quantity{q},
				Driver: "x", Doc: "x", Firmware: "1", Serial: "1"}
			if typ == "ParkingSpot" {
				thing.Parking = &Parking{Site: "lot", Category: "onStreet", Below: 1000}
			}
			if q.Kind() != gateway.Number || Check(thing) != nil {
				continue
			}
			m := NewMapper("gw", []Thing{thing}).On(Host{"1", "1", "1"})
			for _, e := range append(m.Entities(reading("s", num(q, 1))), m.self, m.things["s"].device(noon)) {
				check(&e)
			}
		}
	}
	for subject, names := range missing {
		for _, name := range names {
			if !slices.Contains(without[subject], name) {
				t.Errorf("%s has no term %s", subject, name)
			}
		}
	}
}

func TestContextsAt(t *testing.T) {
	if at := ContextsAt("http://gw:8080/contexts/"); at["dataModel.Weather"] != "http://gw:8080/contexts/dataModel.Weather.jsonld" || len(at) != len(Subjects()) {
		t.Errorf("%v", at)
	}
	if at := ContextsAt(""); len(at) != 0 {
		t.Errorf("%v", at)
	}
}
