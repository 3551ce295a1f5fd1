package ngsi

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"campus-gateway"
)

var update = flag.Bool("update", false, "write the golden bodies")

// room has a sensor of each kind, and a reading of each.
func room() (*Mapper, []gateway.Reading) {
	things, rs := lab("")
	return NewMapper("gw-a101", things), rs
}

func lab(suffix string) ([]Thing, []gateway.Reading) {
	return []Thing{
			{Name: "room" + suffix, Driver: "bme280", Doc: "air temperature, humidity, pressure (Bosch)", Location: &settat, Placement: "northWall",
				Quantities: []gateway.Quantity{gateway.Temperature, gateway.Humidity, gateway.Pressure}},
			{Name: "air" + suffix, Driver: "scd4x", Location: &settat, Quantities: []gateway.Quantity{gateway.CO2, gateway.Temperature, gateway.Humidity}},
			{Name: "noise" + suffix, Location: &settat, Interval: time.Minute, Quantities: []gateway.Quantity{gateway.NoiseLevel}},
			{Name: "bed 1" + suffix, Location: &settat, Outdoor: true, Parcel: "field-1", Quantities: []gateway.Quantity{gateway.SoilMoisture}},
			{Name: "door" + suffix, Quantities: []gateway.Quantity{gateway.Contact, gateway.BatteryLevel}},
		}, []gateway.Reading{
			reading("room"+suffix, num(gateway.Temperature, 22.4), num(gateway.Humidity, 48.2), num(gateway.Pressure, 97530)),
			reading("air"+suffix, num(gateway.CO2, 652), num(gateway.Temperature, 22.9), num(gateway.Humidity, 104)),
			reading("noise"+suffix, num(gateway.NoiseLevel, 48.2)),
			reading("bed 1"+suffix, num(gateway.SoilMoisture, 31.5)),
			reading("door"+suffix, gateway.Value{Quantity: gateway.Contact, V: true}, num(gateway.BatteryLevel, 83)),
		}
}

// ordinary are n readings of that many sensors, oldest first, as a lab has them.
func ordinary(n, sensors int) (*Mapper, []gateway.Reading) {
	var things []Thing
	var once, rs []gateway.Reading
	for i := 0; len(things) < sensors; i++ {
		more, few := lab(fmt.Sprint(i))
		few[1].Values[2].V = 48.0 // within the model's bounds
		things, once = append(things, more...), append(once, few...)
	}
	for i := range n {
		r := once[i%sensors]
		r.At.Wall = r.At.Wall.Add(time.Duration(i) * 7 * time.Millisecond)
		r.Values = slices.Clone(r.Values)
		if x, ok := r.Values[0].V.(float64); ok {
			r.Values[0].V = x + float64(i%100)/10
		}
		rs = append(rs, r)
	}
	return NewMapper("gw-a101", things), rs
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

type object = map[string]any

// normalV2 is an entity as encoding/json would be given it.
func normalV2(e *Entity) object {
	o := object{"id": e.ID, "type": e.Type, "TimeInstant": object{"type": "DateTime", "value": e.At.UTC().Format(timeForm)}}
	for i := range e.Attrs {
		a := &e.Attrs[i]
		n := object{"type": v2Type(a), "value": normalValue(a)}
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

func normalLD(e *Entity) object {
	o := object{"id": e.ID, "type": e.Type}
	for i := range e.Attrs {
		a := &e.Attrs[i]
		n := object{"type": "Property", "value": normalValue(a)}
		switch a.Kind {
		case Point:
			n["type"] = "GeoProperty"
		case Ref, Refs:
			n = object{"type": "Relationship", "object": a.Text}
		case Time:
			n["value"] = object{"@type": "DateTime", "@value": a.At.UTC().Format(timeForm)}
		}
		if a.Kind != Time && !a.At.IsZero() {
			n["observedAt"] = a.At.UTC().Format(timeForm)
			if a.Unit != "" {
				n["unitCode"] = a.Unit
			}
		}
		o[a.Name] = n
	}
	return o
}

func normalValue(a *Attr) any {
	switch a.Kind {
	case Number:
		return a.Num
	case Time:
		return a.At.UTC().Format(timeForm)
	case Point:
		return object{"type": "Point", "coordinates": a.Point[:]}
	case Refs:
		return []string{a.Text}
	case Texts:
		return a.List
	}
	return a.Text
}

// structured is v with a struct, of a type of its own, for each object: what
// encoding/json is fastest with.
func structured(v any) any {
	o, ok := v.(object)
	if !ok {
		return v
	}
	var fields []reflect.StructField
	var values []any
	for i, name := range slices.Sorted(maps.Keys(o)) {
		value := structured(o[name])
		values = append(values, value)
		fields = append(fields, reflect.StructField{Name: fmt.Sprintf("F%d", i), Type: reflect.TypeOf(value), Tag: reflect.StructTag(fmt.Sprintf("json:%q", name))})
	}
	s := reflect.New(reflect.StructOf(fields)).Elem()
	for i, value := range values {
		s.Field(i).Set(reflect.ValueOf(value))
	}
	return s.Interface()
}

// BenchmarkEncode writes the entities of 1,000 readings: by template, of readings
// that are yet to be mapped; with the plain writer; and with encoding/json, given
// the same entities as structs and as maps. x is how much faster than the structs, of
// the best rounds each, which other programs disturb least; the bar is five.
func BenchmarkEncode(b *testing.B) {
	for _, api := range []string{"ngsi-v2", "ngsi-ld"} {
		normal := normalV2
		if api == "ngsi-ld" {
			normal = normalLD
		}
		m, rs := ordinary(1000, 100)
		s := bare(b, api, m)
		s.Requests(rs) // the Devices are sent
		es := entities(m, rs)
		var asMaps, asStructs []any
		for i := range es {
			o := normal(&es[i])
			asMaps, asStructs = append(asMaps, o), append(asStructs, structured(o))
		}
		var dst []byte
		plain := func() {
			dst = dst[:0]
			for i := range es {
				dst = s.dialect.entity(append(dst, ','), &es[i])
			}
		}
		plain()
		dst[0] = '['
		ours := append(slices.Clone(dst), ']')
		for _, theirs := range []any{asMaps, asStructs} {
			var a, z any
			text, err := json.Marshal(theirs)
			if err != nil || json.Unmarshal(ours, &a) != nil || json.Unmarshal(text, &z) != nil || !reflect.DeepEqual(a, z) {
				b.Fatalf("not the same entities: %v\n%.2000s\n%.2000s", err, ours, text)
			}
		}
		var best [4]time.Duration
		for i, c := range []struct {
			name string
			run  func()
		}{
			{"json-structs", func() { _, _ = json.Marshal(asStructs) }},
			{"json-maps", func() { _, _ = json.Marshal(asMaps) }},
			{"plain", plain},
			{"template", func() { s.try(rs).end() }},
		} {
			b.Run(api+"/"+c.name, func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(ours)))
				best[i] = time.Hour
				for b.Loop() {
					start := time.Now()
					c.run()
					best[i] = min(best[i], time.Since(start))
				}
				x := float64(best[0]) / float64(best[i])
				b.ReportMetric(float64(best[i].Nanoseconds())/float64(len(rs)), "best-ns/reading")
				b.ReportMetric(x, "x")
				if c.name == "template" && best[0] > 0 && x < 5 && os.Getenv("BENCH_REPORT") != "1" {
					b.Errorf("only %.1f times as fast as encoding/json", x)
				}
			})
		}
	}
}
