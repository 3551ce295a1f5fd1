package ngsi

import (
	"bytes"
	"encoding/json"
	"flag"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"campus-gateway"
)

var update = flag.Bool("update", false, "write the golden bodies")

func room() (*Mapper, []gateway.Reading) {
	m := NewMapper("gw-a101", []Thing{
		{Name: "room", Driver: "bme280", Doc: "air temperature, humidity, pressure (Bosch)", Location: &settat, Placement: "northWall",
			Quantities: []gateway.Quantity{gateway.Temperature, gateway.Humidity, gateway.Pressure}},
		{Name: "air", Driver: "scd4x", Location: &settat, Quantities: []gateway.Quantity{gateway.CO2, gateway.Temperature, gateway.Humidity}},
		{Name: "noise", Location: &settat, Interval: time.Minute, Quantities: []gateway.Quantity{gateway.NoiseLevel}},
		{Name: "bed 1", Location: &settat, Outdoor: true, Parcel: "field-1", Quantities: []gateway.Quantity{gateway.SoilMoisture}},
		{Name: "door", Quantities: []gateway.Quantity{gateway.Contact, gateway.BatteryLevel}},
	})
	return m, []gateway.Reading{
		reading("room", num(gateway.Temperature, 22.4), num(gateway.Humidity, 48.2), num(gateway.Pressure, 97530)),
		reading("air", num(gateway.CO2, 652), num(gateway.Temperature, 22.9), num(gateway.Humidity, 104)),
		reading("noise", num(gateway.NoiseLevel, 48.2)),
		reading("bed 1", num(gateway.SoilMoisture, 31.5)),
		reading("door", gateway.Value{Quantity: gateway.Contact, V: true}, num(gateway.BatteryLevel, 83)),
	}
}

func entities(m *Mapper, rs []gateway.Reading) []Entity {
	var es []Entity
	for _, r := range rs {
		es = append(es, m.Entities(r)...)
	}
	return es
}

func TestBodies(t *testing.T) {
	m, rs := room()
	es := []Entity{m.self, m.things["room"].device(noon)}
	es = append(es, entities(m, rs)...)
	for name, body := range map[string][]byte{"v2.json": AppendV2(nil, es), "ld.json": AppendLD(nil, es)} {
		var got bytes.Buffer
		if err := json.Indent(&got, body, "", " "); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got.WriteByte('\n')
		file := "testdata/golden/" + name
		if *update {
			if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s is not what is written now (-update accepts it):\n%s", file, &got)
		}
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 1: "1", -1: "-1", 652: "652", 975.3: "975.3", 1e15: "1000000000000000", 0.000001: "0.000001", 0.0000001: "0.0000001",
		1e300: "1e+300", 5e-324: "5e-324", math.Inf(1): "null", math.NaN(): "null",
	} {
		if got := string(appendNumber(nil, v)); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}

// FuzzBodies: whatever the text and the number, both bodies are JSON and UTF-8,
// and the NGSIv2 one has no character that Orion refuses for its type.
func FuzzBodies(f *testing.F) {
	f.Add("room", "bme280 (Bosch)", 21.5, int64(0))
	f.Add("a\x00b\xff", `<>"'=;()\`, math.Inf(-1), int64(math.MaxInt64))
	f.Add("\u2028\x7f", "\xed\xa0\x80", 5e-324, int64(-1))
	f.Fuzz(func(t *testing.T, name, doc string, v float64, nano int64) {
		m := NewMapper(name, []Thing{{Name: name, Doc: doc, Driver: doc, Placement: doc, Location: &[2]float64{v, v}, Quantities: gateway.Quantities()}})
		r := reading(name, num(gateway.Temperature, v), num(gateway.CO2, v), num(gateway.ORP, v))
		r.At.Wall = time.Unix(0, nano)
		es := append(m.Entities(r), m.self, m.things[name].device(r.At.Wall))
		v2 := AppendV2(nil, es)
		for _, body := range [][]byte{v2, AppendLD(nil, es), AppendKeyValues(nil, &es[0])} {
			if !json.Valid(body) || !utf8.Valid(body) {
				t.Fatalf("%q", body)
			}
		}
		var parsed struct {
			Entities []map[string]any
		}
		if err := json.Unmarshal(v2, &parsed); err != nil {
			t.Fatal(err)
		}
		for _, e := range parsed.Entities {
			for key, a := range e {
				attr, ok := a.(map[string]any)
				if !ok {
					checkText(t, a)
					continue
				}
				checkText(t, key)
				checkText(t, attr["metadata"])
				if attr["type"] != "TextUnrestricted" {
					checkText(t, attr["value"])
				}
			}
		}
	})
}

func checkText(t *testing.T, v any) {
	switch v := v.(type) {
	case string:
		if strings.ContainsAny(v, forbidden+"\x00") || !utf8.ValidString(v) {
			t.Errorf("%q", v)
		}
	case []any:
		for _, v := range v {
			checkText(t, v)
		}
	case map[string]any:
		for _, v := range v {
			checkText(t, v)
		}
	}
}

// normal is an entity as encoding/json would be given it.
func normal(e *Entity) map[string]any {
	type object = map[string]any
	o := object{"id": e.ID, "type": e.Type, "TimeInstant": object{"type": "DateTime", "value": e.At.UTC().Format(timeForm)}}
	for i := range e.Attrs {
		a := &e.Attrs[i]
		n := object{"type": v2Type(a)}
		switch a.Kind {
		case Number:
			n["value"] = a.Num
		case Time:
			n["value"] = a.At.UTC().Format(timeForm)
		case Point:
			n["value"] = object{"type": "Point", "coordinates": a.Point[:]}
		case Refs:
			n["value"] = []string{a.Text}
		case Texts:
			n["value"] = a.List
		default:
			n["value"] = a.Text
		}
		if a.Kind != Time && !a.At.IsZero() {
			meta := object{"TimeInstant": object{"type": "DateTime", "value": a.At.UTC().Format(timeForm)}}
			if a.Unit != "" {
				meta["unitCode"] = object{"type": "Text", "value": a.Unit}
			}
			n["metadata"] = meta
		}
		o[a.Name] = n
	}
	return o
}

// BenchmarkEncode encodes the entities of 1,000 readings, with the writer of this
// package and with encoding/json, which gives the same entities.
func BenchmarkEncode(b *testing.B) {
	m, few := room()
	var rs []gateway.Reading
	for len(rs) < 1000 {
		rs = append(rs, few[len(rs)%len(few)])
	}
	es := entities(m, rs)
	objects := make([]map[string]any, len(es))
	for i := range es {
		objects[i] = normal(&es[i])
	}
	var ours, theirs any
	dst := AppendV2(nil, es)
	reference, err := json.Marshal(map[string]any{"actionType": "append", "entities": objects})
	if err != nil || json.Unmarshal(dst, &ours) != nil || json.Unmarshal(reference, &theirs) != nil {
		b.Fatal(err)
	}
	if a, z := canonical(ours), canonical(theirs); a != z {
		b.Fatalf("not the same entities:\n%.2000s\n%.2000s", a, z)
	}
	var per [2]float64
	for i, c := range []struct {
		name string
		run  func()
	}{
		{"ours", func() { dst = AppendV2(dst[:0], es) }},
		{"encoding-json", func() { _, _ = json.Marshal(map[string]any{"actionType": "append", "entities": objects}) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(dst)))
			for b.Loop() {
				c.run()
			}
			per[i] = b.Elapsed().Seconds() / float64(b.N)
			if i == 1 {
				b.ReportMetric(per[1]/per[0], "x-slower")
			}
		})
	}
	b.Run("map", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			entities(m, rs)
		}
	})
}

func canonical(v any) string {
	b, _ := json.Marshal(v)
	return strconv.Itoa(len(b)) + string(b)
}
