package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"campus-gateway"
	"campus-gateway/ngsi"
)

const placedGood = `gateway: {id: gw-1, location: {longitude: -7.62, latitude: 33}}
broker: {url: "http://localhost:1026", api: ngsi-ld}
`

// What is wrong with attributes, shared entities and contexts is told at its line.
func TestAttributeConfigFaults(t *testing.T) {
	sensors := func(s string) string { return placedGood + "sensors:\n" + s }
	attributes := func(s string) string {
		return sensors("  - name: a\n    driver: bme280\n    attributes:\n" + s)
	}
	for name, c := range map[string]struct {
		yaml string
		want []string
	}{
		"unknown quantity":  {attributes("      temprature: {name: x}\n"), []string{`x.yaml:7:7: sensors[0].attributes.temprature: unknown quantity: did you mean "temperature"?`, "^"}},
		"not sensed":        {attributes("      co2: {name: x}\n"), []string{"x.yaml:7:7: sensors[0].attributes.co2: this sensor does not sense co2: it senses temperature, humidity, pressure"}},
		"unknown key":       {attributes("      temperature: {nme: x}\n"), []string{`x.yaml:7:21: sensors[0].attributes.temperature.nme: unknown key: did you mean "name"?`}},
		"null":              {attributes("      temperature:\n"), []string{"x.yaml:7:", "sensors[0].attributes.temperature: there is no value"}},
		"not a mapping":     {attributes("      temperature: airTemperature\n"), []string{"x.yaml:7:20: sensors[0].attributes.temperature: want keys and values"}},
		"a list":            {sensors("  - {name: a, driver: bme280, attributes: [1]}\n"), []string{"x.yaml:4:43: sensors[0].attributes: want keys and values"}},
		"twice":             {attributes("      temperature: {name: x}\n      temperature: {name: y}\n"), []string{"x.yaml:8:7: sensors[0].attributes.temperature: the key is here a second time"}},
		"reserved":          {attributes("      temperature: {name: value}\n"), []string{"x.yaml:7:27: sensors[0].attributes.temperature.name:", "meaning of its own"}},
		"forbidden":         {attributes("      temperature: {name: \"t(air)\"}\n"), []string{"x.yaml:7:27: sensors[0].attributes.temperature.name:", "such as airTemperature"}},
		"unit":              {attributes("      temperature: {unit: celsius}\n"), []string{"x.yaml:7:27: sensors[0].attributes.temperature.unit:", "such as CEL"}},
		"scale 0":           {attributes("      temperature: {unit: KEL, scale: 0}\n"), []string{"x.yaml:7:39: sensors[0].attributes.temperature.scale: 0 makes nothing of a value: write how many °C make one"}},
		"scale":             {attributes("      pressure: {scale: 100}\n"), []string{"x.yaml:7:25: sensors[0].attributes.pressure.scale: a scale gives another unit: write its code too"}},
		"decimals":          {attributes("      pressure: {decimals: 12}\n"), []string{"x.yaml:7:28: sensors[0].attributes.pressure.decimals: 12 is outside 0..8"}},
		"one name twice":    {attributes("      temperature: {name: x}\n      pressure: {name: x}\n"), []string{`x.yaml:8:24: sensors[0].attributes.pressure.name: temperature is called "x" too`}},
		"a type unmapped":   {sensors("  - {name: a, driver: bme280, entity: {type: AgriGreenhouse}, attributes: {temperature: {name: temperature}}}\n"), []string{"x.yaml:4:39: sensors[0]: entity.type: there is no \"AgriGreenhouse\"", "(humidity, pressure)"}},
		"no context":        {sensors("  - {name: a, driver: bh1750, entity: {type: AgriGreenhouse}, attributes: {illuminance: {name: light}}}\n"), []string{"x.yaml:4:46: sensors[0].entity.type: NGSI-LD needs the @context of AgriGreenhouse", "types: {AgriGreenhouse: https://…}"}},
		"contexts base":     {placedGood + "contexts: {base: gw-1/contexts}\n", []string{"x.yaml:3:18: contexts.base:", "such as http://gw-a101.campus.example:8080/contexts"}},
		"contexts type":     {placedGood + "contexts: {types: {Door: \"http://u:geheim@x/y\"}}\n", []string{"x.yaml:3:26: contexts.types.Door: want a plain URL"}},
		"contexts bracket":  {placedGood + "contexts: {base: \"http://x/>;rel=evil\"}\n", []string{"x.yaml:3:18: contexts.base: want a plain URL"}},
		"parking":           {sensors("  - {name: a, driver: ads1115, quantity: distance, curve: {scale: 1}, entity: {type: ParkingSpot}, parking: {site: x, category: offstreet, occupied_below: 1}}\n"), []string{"sensors[0]: parking.category: \"offstreet\": want onStreet or offStreet"}},
		"parking unasked":   {sensors("  - {name: a, driver: bh1750, parking: {site: x}}\n"), []string{"sensors[0]: parking: it goes with entity.type ParkingSpot"}},
		"contexts header":   {placedGood + "contexts: {base: \"http://x/>; rel=evil\"}\n", []string{"x.yaml:3:18: contexts.base:"}},
		"contexts nonsense": {placedGood + "contexts: {types: [1]}\n", []string{"x.yaml:3:19: contexts.types: want keys and values"}},
		"one attribute of two": {sensors("  - {name: a, driver: bme280, entity: {id: room}}\n  - {name: b, driver: sht4x, entity: {id: room}}\n"),
			[]string{"x.yaml:5:38: sensors[1].entity: this sensor and the one on line 4 (a) both feed urn:ngsi-ld:IndoorEnvironmentObserved:room: both write relativeHumidity", "another name"}},
		"two places": {sensors("  - {name: a, driver: bme280, entity: {id: room}}\n  - {name: b, driver: bh1750, entity: {id: room}, location: {longitude: 1, latitude: 2}}\n"),
			[]string{"x.yaml:5:39: sensors[1].entity: this sensor and the one on line 4 (a) both feed", "their location differ"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readConfig("x.yaml", []byte(c.yaml))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in:\n%v", want, err)
				}
			}
			if strings.Contains(err.Error(), "geheim") {
				t.Errorf("the password is shown:\n%v", err)
			}
		})
	}
}

// What a configuration says of attributes, contexts and shared entities is in the
// requests.
func TestAttributeConfig(t *testing.T) {
	c, err := readConfig("x.yaml", []byte(placedGood+`
contexts:
  base: http://gw-1.campus.example:8080/contexts/
  types: {AgriGreenhouse: "http://gw-1.campus.example:8080/contexts/dataModel.Agrifood.jsonld"}
sensors:
  - name: greenhouse
    driver: bme280
    address: 0x77
    attributes: &a
      temperature: {name: airTemperature, unit: CEL}
      humidity: {name: relativeHumidity, unit: P1, scale: 1, decimals: 1}
      pressure: {skip: true}
    entity: {type: AgriGreenhouse, id: one}
  - {name: air, driver: bme280, entity: {id: room}, attributes: {pressure: {unit: KPA, scale: 1000}}}
  - {name: light, driver: bh1750, entity: {id: room}}
  - {name: bay, driver: ads1115, quantity: distance, curve: {scale: 1000}, entity: {type: ParkingSpot}, parking: {site: north-lot, category: offStreet, occupied_below: 1500}}
`))
	if err != nil {
		t.Fatal(err)
	}
	sink, err := newBroker(c, c.Uplinks[0], gateway.NewClock(), newLogger(io.Discard), ngsi.Host{Software: "v9"})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	var rs []gateway.Reading
	for _, name := range []string{"greenhouse", "air", "light"} {
		r := gateway.Reading{Sensor: name, At: gateway.Stamp{Wall: time.Date(2026, 11, 23, 9, 15, 0, 0, time.UTC)}}
		for q, v := range map[gateway.Quantity]float64{gateway.Temperature: 21.5, gateway.Humidity: 48.26, gateway.Pressure: 97530} {
			if name != "light" {
				r.Values = append(r.Values, gateway.Value{Quantity: q, V: v})
			}
		}
		if name == "light" {
			r.Values = []gateway.Value{{Quantity: gateway.Illuminance, V: 300.}}
		}
		rs = append(rs, r)
	}
	rs = append(rs, gateway.Reading{Sensor: "bay", At: rs[0].At, Values: []gateway.Value{{Quantity: gateway.Distance, V: 400.}}})
	var all strings.Builder
	for _, r := range sink.Requests(rs) {
		fmt.Fprintf(&all, "%s %s\n", r.Header.Get("Link"), r.Body)
	}
	for _, want := range []string{
		`<http://gw-1.campus.example:8080/contexts/dataModel.Agrifood.jsonld>; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json" [{"id":"urn:ngsi-ld:AgriGreenhouse:one"`,
		`<http://gw-1.campus.example:8080/contexts/dataModel.Environment.jsonld>; rel=`,
		`"airTemperature":{"type":"Property","value":21.5,"unitCode":"CEL"`,
		`"relativeHumidity":{"type":"Property","value":48.3,"unitCode":"P1"`,
		`"relativeHumidity":{"type":"Property","value":0.4826,"unitCode":"C62"`,
		`"atmosphericPressure":{"type":"Property","value":97.53,"unitCode":"KPA"`,
		`"status":{"type":"Property","value":"occupied"`,
		`"softwareVersion":{"type":"Property","value":"v9"}`,
	} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("%s is not in\n%s", want, all.String())
		}
	}
	if n := strings.Count(all.String(), `"urn:ngsi-ld:IndoorEnvironmentObserved:room"`); n != 1 {
		t.Errorf("the room is in %d entities, want both its sensors in one:\n%s", n, all.String())
	}
}

// The files that are written are the files that are served, at the places that
// contexts.base promises.
func TestContexts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	status, out, stderr := command(t, "contexts", "--out", dir)
	if status != 0 {
		t.Fatal(stderr)
	}
	if _, list, _ := command(t, "contexts"); strings.Count(list, "\n") != strings.Count(out, "\n") || !strings.Contains(list, "dataModel.Weather.jsonld\n") {
		t.Errorf("%s\n%s", list, out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "README.md")); err != nil || !strings.Contains(string(b), "CC BY 4.0") {
		t.Errorf("no licence beside the files: %v", err)
	}
	c, err := readConfig("x.yaml", []byte(placedGood+"log: {dir: "+t.TempDir()+"}\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, closeLog, err := newParts(c, simulated{}, newLogger(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	defer closeLog()
	plan, err := buildTasks(c, p)
	if err != nil {
		t.Fatal(err)
	}
	for subject, at := range ngsi.ContextsAt("http://gw-1.campus.example:8080/contexts") {
		w := httptest.NewRecorder()
		plan.view.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, at, nil))
		b, err := os.ReadFile(filepath.Join(dir, subject+".jsonld"))
		if err != nil || w.Code != http.StatusOK || w.Body.String() != string(b) {
			t.Errorf("%s: %d, %v", at, w.Code, err)
		}
	}
}

func TestOSName(t *testing.T) {
	for release, want := range map[string]string{
		"NAME=Debian\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n": "Debian GNU/Linux 13 (trixie)",
		"PRETTY_NAME=Alpine": "Alpine",
		"":                   "",
	} {
		if got := osName(release); got != want {
			t.Errorf("%q: %q, want %q", release, got, want)
		}
	}
}

// The README's example is accepted.
func TestREADMEAttributes(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "## Names, units and types of your own\n\n```yaml\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("no example")
	}
	c, err := readConfig("README.md", []byte(placedGood+example))
	if err != nil {
		t.Fatal(err)
	}
	if a := c.Sensors[0].thing(c).Attributes[gateway.Humidity]; a.Name != "relativeHumidity" || a.Scale != 1 {
		t.Errorf("%+v", a)
	}
}
