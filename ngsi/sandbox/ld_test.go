package sandbox

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

const (
	smart = "https://raw.githubusercontent.com/smart-data-models/dataModel.Environment/master/context.jsonld"
	link  = `Link: <` + smart + `>; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json"`
	ldCT  = "Content-Type: application/ld+json"
)

func ldEntityText(id, co2 string) string {
	return `{"id":"` + id + `","type":"AirQualityObserved","co2":{"type":"Property","value":` + co2 + `,"unitCode":"59","observedAt":"2026-11-23T09:15:00.000Z"},` +
		`"location":{"type":"GeoProperty","value":{"type":"Point","coordinates":[-7.62,33.0]}},"refDevice":{"type":"Relationship","object":"urn:ngsi-ld:Device:pi"}}`
}

const (
	a1 = "urn:ngsi-ld:AirQualityObserved:a1"
	a2 = "urn:ngsi-ld:AirQualityObserved:a2"
)

func TestLDBatches(t *testing.T) {
	b := New(Options{})
	up := "/ngsi-ld/v1/entityOperations/"
	check := func(operation, body string, status int, answer string, headers ...string) {
		t.Helper()
		w := do(b, "POST", up+operation, body, headers...)
		if w.Code != status || !strings.Contains(w.Body.String(), answer) || answer == "" && w.Body.Len() > 0 {
			t.Errorf("%s %s\n got %d %s\nwant %d %s", operation, body, w.Code, w.Body, status, answer)
		}
	}
	check("upsert?options=update", "["+ldEntityText(a1, "650")+"]", 201, `["`+a1+`"]`, link)
	check("upsert?options=update", "["+ldEntityText(a1, "651")+","+ldEntityText(a2, "400.10")+"]", 201, `["`+a2+`"]`, link)
	check("upsert?options=update", "["+ldEntityText(a1, "652")+"]", 204, "", link)
	check("upsert?options=update", `[{"id":"`+a1+`","type":"AirQualityObserved","pm25":{"type":"Property","value":7}},{"id":"not a uri","type":"T"}]`, 207,
		`{"success":["`+a1+`"],"errors":[{"entityId":"not a uri","error":{"type":"https://uri.etsi.org/ngsi-ld/errors/BadRequestData","title":"Invalid payload","detail":"entity id must be a URI","status":400}}]}`, link)
	want(t, b, "GET /ngsi-ld/v1/entities/"+a1+"?options=keyValues", 200, `{"id":"`+a1+`","type":"AirQualityObserved","co2":652,`+
		`"location":{"type":"Point","coordinates":[-7.62,33.0]},"refDevice":"urn:ngsi-ld:Device:pi","pm25":7}`)
	check("create", "["+ldEntityText(a1, "1")+"]", 207, "AlreadyExists", link)
	check("update", "["+ldEntityText("urn:x:none", "1")+"]", 207, "ResourceNotFound", link)
	check("update?options=noOverwrite", "["+ldEntityText(a1, "1")+"]", 204, "", link)
	check("upsert", `[{"id":"`+a1+`","type":"AirQualityObserved","pm10":{"type":"Property","value":1}}]`, 204, "", link)
	want(t, b, "GET /ngsi-ld/v1/entities/"+a1, 200, `{"id":"`+a1+`","type":"AirQualityObserved","pm10":{"type":"Property","value":1}}`)
	want(t, b, "GET /ngsi-ld/v1/entities/"+a2+"?attrs=co2", 200, `{"id":"`+a2+`","type":"AirQualityObserved","co2":{"type":"Property","value":400.10,"unitCode":"59","observedAt":"2026-11-23T09:15:00.000Z"}}`)
	check("delete", `["`+a1+`","`+a1+`"]`, 207, `{"success":["`+a1+`"],"errors":[{"entityId":"`+a1+`"`)
	check("delete", `["`+a2+`"]`, 204, "")
	if sound(t, b); b.bytes != 0 {
		t.Errorf("%d bytes are kept of nothing", b.bytes)
	}
}

func TestLDRefusals(t *testing.T) {
	b := New(Options{})
	attr := func(a string) string { return `[{"id":"urn:x:1","type":"T","a":` + a + `}]` }
	context := `"@context":"` + smart + `"`
	for name, c := range map[string]struct {
		body    string
		headers []string
		status  int
	}{
		"json without Link":        {`[{"id":"urn:x:0","type":"T"}]`, nil, 201},
		"json with Link":           {`[{"id":"urn:x:1","type":"T"}]`, []string{link}, 201},
		"ld+json":                  {`[{"id":"urn:x:2","type":"T",` + context + `}]`, []string{ldCT}, 201},
		"ld+json with Link":        {`[{"id":"urn:x:3","type":"T",` + context + `}]`, []string{ldCT, link}, 400},
		"ld+json without @context": {`[{"id":"urn:x:3","type":"T"}]`, []string{ldCT}, 207},
		"json with @context":       {`[{"id":"urn:x:3","type":"T",` + context + `}]`, nil, 207},
		"text":                     {`[]`, []string{"Content-Type: text/plain"}, 415},
		"empty":                    {`[]`, nil, 400},
		"no array":                 {`{}`, nil, 400},
		"no JSON":                  {`[`, nil, 400},
		"bad Link":                 {`[{"id":"urn:x:1","type":"T"}]`, []string{"Link: x"}, 400},
		"Link to a file":           {`[{"id":"urn:x:1","type":"T"}]`, []string{strings.Replace(link, "https", "file", 1)}, 400},
		"bad tenant":               {`[{"id":"urn:x:1","type":"T"}]`, []string{"NGSILD-Tenant: a-b"}, 400},
		"no type":                  {`[{"id":"urn:x:9"}]`, nil, 207},
		"id twice":                 {`[{"id":"urn:x:1","id":"urn:x:2","type":"T"}]`, nil, 207},
		"bare value":               {attr(`5`), nil, 207},
		"unknown type":             {attr(`{"type":"Number","value":1}`), nil, 207},
		"no value":                 {attr(`{"type":"Property"}`), nil, 207},
		"null value":               {attr(`{"type":"Property","value":null}`), nil, 207},
		"observedAt without zone":  {attr(`{"type":"Property","value":1,"observedAt":"2026-01-01T00:00:00"}`), nil, 207},
		"observedAt not UTC":       {attr(`{"type":"Property","value":1,"observedAt":"2026-01-01T00:00:00+01:00"}`), nil, 207},
		"object no URI":            {attr(`{"type":"Relationship","object":"pi"}`), nil, 207},
		"geometry":                 {attr(`{"type":"GeoProperty","value":{"type":"Point"}}`), nil, 207},
		"sub-attribute":            {attr(`{"type":"Property","value":1,"accuracy":0.1}`), nil, 207},
		"sub-attribute good":       {attr(`{"type":"Property","value":1,"accuracy":{"type":"Property","value":0.1}}`), nil, 204},
		"datasetId":                {attr(`[{"type":"Property","value":1},{"type":"Property","value":1,"datasetId":"urn:d:1"}]`), nil, 204},
		"one datasetId twice":      {attr(`[{"type":"Property","value":1},{"type":"Property","value":2}]`), nil, 207},
	} {
		do(b, "POST", "/ngsi-ld/v1/entities", `{"id":"urn:x:1","type":"T"}`)
		if strings.HasSuffix(name, "Link") && c.status == 201 {
			do(b, "DELETE", "/ngsi-ld/v1/entities/urn:x:1", "")
		}
		if w := do(b, "POST", "/ngsi-ld/v1/entityOperations/upsert?options=update", c.body, c.headers...); w.Code != c.status || w.Code >= 400 && !strings.Contains(w.Body.String(), `"type":"https://uri.etsi.org/ngsi-ld/errors/`) {
			t.Errorf("%s: %d %s, want %d", name, w.Code, w.Body, c.status)
		}
	}
	for call, status := range map[string]int{
		"GET /ngsi-ld/v1/entities": 400, "GET /ngsi-ld/v1/entities?type=T&limit=0": 400, "GET /ngsi-ld/v1/entities?type=T&georel=near": 501,
		"GET /ngsi-ld/v1/nothing": 404, "PUT /ngsi-ld/v1/entities": 405, "GET /ngsi-ld/v1/entities/urn:x:none": 404, "DELETE /ngsi-ld/v1/entities/urn:x:none": 404,
		"POST /ngsi-ld/v1/entities": 411, "GET /ngsi-ld/v1/entities?local=true&offset=99": 200,
	} {
		method, target, _ := strings.Cut(call, " ")
		if w := do(b, method, target, ""); w.Code != status {
			t.Errorf("%s: %d %s, want %d", call, w.Code, w.Body, status)
		}
	}
	if w := do(New(Options{MaxBody: 10}), "POST", "/ngsi-ld/v1/entities", `{"id":"urn:x:1"}`); w.Code != 413 {
		t.Errorf("large body: %d", w.Code)
	}
}

func TestLDEntities(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	b := New(Options{Now: func() time.Time { return now }})
	if w := do(b, "POST", "/ngsi-ld/v1/entities", ldEntityText(a1, "650"), link, "NGSILD-Tenant: Lab"); w.Code != 201 || w.Header().Get("Location") != "/ngsi-ld/v1/entities/"+a1 || w.Header().Get("NGSILD-Tenant") != "lab" {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if w := do(b, "GET", "/ngsi-ld/v1/entities/"+a1, ""); w.Code != 404 {
		t.Errorf("another tenant: %d", w.Code)
	}
	if w := do(b, "GET", "/v2/entities/"+a1, "", "Fiware-Service: lab"); w.Code != 404 {
		t.Errorf("NGSIv2 sees the NGSI-LD store: %d", w.Code)
	}
	do(b, "POST", "/ngsi-ld/v1/entities", ldEntityText(a1, "650"), link)
	if w := do(b, "POST", "/ngsi-ld/v1/entities", ldEntityText(a1, "650"), link); w.Code != 409 {
		t.Errorf("again: %d", w.Code)
	}
	do(b, "POST", "/ngsi-ld/v1/entities", `{"id":"urn:x:1","type":["Other","More"],"@context":["`+smart+`"]}`, ldCT)
	now = now.Add(time.Second)
	for _, step := range []struct {
		call   string
		status int
		body   string
	}{
		{`PATCH /ngsi-ld/v1/entities/` + a1 + `/attrs {"co2":{"type":"Property","value":700},"no":{"type":"Property","value":1}}`, 207,
			`{"updated":["co2"],"notUpdated":[{"attributeName":"no","reason":"the entity has no such attribute"}]}`},
		{`POST /ngsi-ld/v1/entities/` + a1 + `/attrs {"pm1":{"type":"Property","value":1}}`, 204, ""},
		{`DELETE /ngsi-ld/v1/entities/` + a1 + `/attrs/location`, 204, ""},
		{`DELETE /ngsi-ld/v1/entities/` + a1 + `/attrs/refDevice`, 204, ""},
		{`DELETE /ngsi-ld/v1/entities/` + a1 + `/attrs/refDevice`, 404, `{"type":"https://uri.etsi.org/ngsi-ld/errors/ResourceNotFound","title":"Not found","detail":"the entity has no attribute refDevice","status":404}`},
		{`GET /ngsi-ld/v1/entities?type=AirQualityObserved&options=sysAttrs`, 200, `[{"id":"` + a1 + `","type":"AirQualityObserved","createdAt":"2026-01-01T00:00:00.000Z","modifiedAt":"2026-01-01T00:00:01.000Z",` +
			`"co2":{"type":"Property","value":700,"createdAt":"2026-01-01T00:00:00.000Z","modifiedAt":"2026-01-01T00:00:01.000Z"},` +
			`"pm1":{"type":"Property","value":1,"createdAt":"2026-01-01T00:00:01.000Z","modifiedAt":"2026-01-01T00:00:01.000Z"}}]`},
		{`GET /ngsi-ld/v1/entities?q=co2==700&attrs=pm1&format=simplified`, 200, `[{"id":"` + a1 + `","type":"AirQualityObserved","pm1":1}]`},
		{`GET /ngsi-ld/v1/entities?type=More&options=keyValues`, 200, `[{"id":"urn:x:1","type":["Other","More"]}]`},
		{`GET /ngsi-ld/v1/entities?idPattern=^urn:x&type=Nothing`, 200, `[]`},
	} {
		want(t, b, step.call, step.status, step.body)
	}
	w := do(b, "GET", "/ngsi-ld/v1/entities?local=true&count=true&limit=1", "", link)
	if w.Header().Get("NGSILD-Results-Count") != "2" || "Link: "+w.Header().Get("Link") != link {
		t.Errorf("%v", w.Header())
	}
	w = do(b, "GET", "/ngsi-ld/v1/entities/urn:x:1", "", "Accept: application/ld+json")
	if w.Body.String() != `{"id":"urn:x:1","type":["Other","More"],"@context":["`+smart+`"]}` || w.Header().Get("Content-Type") != "application/ld+json" {
		t.Errorf("%v %s", w.Header(), w.Body)
	}
	sound(t, b)
}

func TestLDSubscriptions(t *testing.T) {
	b, _ := start(t, Options{})
	sub := newSubscriber(t)
	body := `{"id":"urn:ngsi-ld:Subscription:1","type":"Subscription","entities":[{"type":"AirQualityObserved"}],"watchedAttributes":["co2"],"q":"co2>600",` +
		`"notification":{"attributes":["co2"],"format":"keyValues","endpoint":{"uri":"` + sub.URL + `","accept":"application/json"}}}`
	if w := do(b, "POST", "/ngsi-ld/v1/subscriptions", body, link); w.Code != 201 || w.Header().Get("Location") != "/ngsi-ld/v1/subscriptions/urn:ngsi-ld:Subscription:1" {
		t.Fatal(w.Code, w.Body)
	}
	if w := do(b, "POST", "/ngsi-ld/v1/subscriptions", body, link); w.Code != 409 {
		t.Errorf("again: %d", w.Code)
	}
	for co2, notified := range map[string]int{"700": 1, "500": 0} {
		do(b, "POST", "/ngsi-ld/v1/entityOperations/upsert", "["+ldEntityText(a1, co2)+"]", link)
		got, headers, _ := sub.take(t, b)
		if len(got) != notified {
			t.Fatalf("%s ppm: %v", co2, got)
		}
		if notified == 0 {
			continue
		}
		var n struct {
			ID, Type, SubscriptionID, NotifiedAt string
			Data                                 []json.RawMessage
		}
		if err := json.Unmarshal([]byte(got[0]), &n); err != nil || n.Type != "Notification" || n.SubscriptionID != "urn:ngsi-ld:Subscription:1" ||
			len(n.Data) != 1 || string(n.Data[0]) != `{"id":"`+a1+`","type":"AirQualityObserved","co2":700}` || "Link: "+headers[0].Get("Link") != link {
			t.Errorf("%v: %s", err, got[0])
		}
	}
	if w := do(b, "PATCH", "/ngsi-ld/v1/subscriptions/urn:ngsi-ld:Subscription:1", `{"isActive":false}`); w.Code != 204 {
		t.Error(w.Body)
	}
	do(b, "POST", "/ngsi-ld/v1/entityOperations/upsert", "["+ldEntityText(a1, "800")+"]", link)
	if got, _, _ := sub.take(t, b); len(got) > 0 {
		t.Errorf("inactive, and yet %v", got)
	}
	w := do(b, "GET", "/ngsi-ld/v1/subscriptions/urn:ngsi-ld:Subscription:1", "")
	if !strings.Contains(w.Body.String(), `"timesSent":1`) || !strings.Contains(w.Body.String(), `"isActive":false`) {
		t.Errorf("%s", w.Body)
	}
	for _, bad := range []string{`[]`, `{}`, `{"type":"Subscription"}`, `{"type":"Subscription","entities":[{"id":"urn:x:1"}],"notification":{"endpoint":{"uri":"` + sub.URL + `"}}}`,
		`{"type":"Subscription","entities":[{"type":"T"}],"notification":{"endpoint":{"uri":"gopher://x"}}}`,
		`{"type":"Subscription","entities":[{"type":"T"}],"geoQ":{},"notification":{"endpoint":{"uri":"` + sub.URL + `"}}}`} {
		if w := do(b, "POST", "/ngsi-ld/v1/subscriptions", bad); w.Code != 400 {
			t.Errorf("%s: %d", bad, w.Code)
		}
	}
	if w := do(b, "GET", "/v2/subscriptions", ""); w.Body.String() != "[]" {
		t.Errorf("NGSIv2 sees %s", w.Body)
	}
	want(t, b, "DELETE /ngsi-ld/v1/subscriptions/urn:ngsi-ld:Subscription:1", 204, "")
	want(t, b, "GET /ngsi-ld/v1/subscriptions", 200, "[]")
}
