package sandbox

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// moment is an instance of an attribute at a second of a minute.
func moment(value, second int) string {
	return fmt.Sprintf(`{"type":"Property","value":%d,"observedAt":"2026-11-23T09:15:%02d.000Z"}`, value, second)
}

var instanceID = regexp.MustCompile(`,"instanceId":"urn:ngsi-ld:Instance:[0-9a-f]{24}"`)

// past is what a call for the history answers, without the ids of instances.
func past(t *testing.T, b *Broker, query string) string {
	t.Helper()
	w := do(b, "GET", "/ngsi-ld/v1/temporal/entities"+query, "")
	if w.Code != 200 {
		t.Errorf("%s: %d %s", query, w.Code, w.Body)
	}
	return instanceID.ReplaceAllString(w.Body.String(), "")
}

func TestHistory(t *testing.T) {
	b := New(Options{})
	post := func(body string, status int) {
		t.Helper()
		if w := do(b, "POST", "/ngsi-ld/v1/temporal/entities", body); w.Code != status {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
	post(`{"id":"urn:x:1","type":"T","a":[`+moment(2, 20)+`,`+moment(1, 10)+`],"b":`+moment(7, 10)+`}`, 201)
	post(`{"id":"urn:x:1","type":"T","a":[`+moment(3, 30)+`]}`, 204)
	post(`{"id":"urn:x:2","type":"U","a":[`+moment(9, 20)+`],"c":{"type":"Property","value":1}}`, 201)
	// It leaves the entity alone, and an ordinary write is history as well.
	want(t, b, "GET /ngsi-ld/v1/entities/urn:x:1", 404, `{"type":"https://uri.etsi.org/ngsi-ld/errors/ResourceNotFound","title":"Not found","detail":"no entity urn:x:1","status":404}`)
	do(b, "POST", "/ngsi-ld/v1/entityOperations/upsert", `[{"id":"urn:x:1","type":"T","a":`+moment(4, 40)+`}]`)

	one := `"id":"urn:x:1","type":"T"`
	const span = "&timerel=between&timeAt=2026-11-23T09:15:10Z&endTimeAt=2026-11-23T09:15:40Z"
	for query, answer := range map[string]string{
		"/urn:x:1":         `{` + one + `,"a":[` + moment(1, 10) + `,` + moment(2, 20) + `,` + moment(3, 30) + `,` + moment(4, 40) + `],"b":[` + moment(7, 10) + `]}`,
		"/urn:x:1?lastN=1": `{` + one + `,"a":[` + moment(4, 40) + `],"b":[` + moment(7, 10) + `]}`,
		"/urn:x:1?attrs=b": `{` + one + `,"b":[` + moment(7, 10) + `]}`,
		"/urn:x:1?attrs=a&lastN=2&options=temporalValues": `{` + one + `,"a":{"type":"Property","values":[[3,"2026-11-23T09:15:30.000Z"],[4,"2026-11-23T09:15:40.000Z"]]}}`,

		"?type=T" + span:                                     `[{` + one + `,"a":[` + moment(2, 20) + `,` + moment(3, 30) + `]}]`,
		"?attrs=a&limit=1" + span:                            `[{` + one + `,"a":[` + moment(2, 20) + `,` + moment(3, 30) + `]}]`,
		"?attrs=a&offset=1" + span:                           `[{"id":"urn:x:2","type":"U","a":[` + moment(9, 20) + `]}]`,
		"?attrs=b" + span:                                    `[]`,
		"?id=urn:x:2&attrs=a" + span:                         `[{"id":"urn:x:2","type":"U","a":[` + moment(9, 20) + `]}]`,
		"?type=T&timerel=before&timeAt=2026-11-23T09:15:20Z": `[{` + one + `,"a":[` + moment(1, 10) + `],"b":[` + moment(7, 10) + `]}]`,
		"?type=T&timerel=after&timeAt=2026-11-23T09:15:30Z":  `[{` + one + `,"a":[` + moment(4, 40) + `]}]`,
	} {
		if got := past(t, b, query); got != answer {
			t.Errorf("%s\n got %s\nwant %s", query, got, answer)
		}
	}
	for query, status := range map[string]int{
		"?type=T": 400, // no timerel
		"?timerel=after&timeAt=2026-11-23T09:15:30Z":                               400, // neither type nor attrs
		"?type=T&timerel=after":                                                    400,
		"?type=T&timerel=soon&timeAt=2026-11-23T09:15:30Z":                         400,
		"?type=T&timerel=between&timeAt=2026-11-23T09:15:30Z":                      400,
		"?type=T&timeproperty=createdAt&timerel=after&timeAt=2026-11-23T09:15:30Z": 501,
		"?type=T&q=a>1&timerel=after&timeAt=2026-11-23T09:15:30Z":                  501,
		"/urn:x:3":         404,
		"/urn:x:1?lastN=0": 400,
	} {
		if w := do(b, "GET", "/ngsi-ld/v1/temporal/entities"+query, ""); w.Code != status {
			t.Errorf("%s: %d %s, want %d", query, w.Code, w.Body, status)
		}
	}
	for _, body := range []string{`[]`, `{"id":"x","type":"T"}`, `{"id":"urn:x:1"}`, `{"id":"urn:x:1","type":"T","a":[5]}`, `{"id":"urn:x:1","type":"T","a":1,"a":2}`,
		`{"id":"urn:x:1","type":"T","a":[{"type":"Property","value":1,"observedAt":"yesterday"}]}`} {
		post(body, 400)
	}
	sound(t, b)
}

// TestHistoryIsBounded: the oldest goes first, and ids alone fill nothing.
func TestHistoryIsBounded(t *testing.T) {
	b := New(Options{MaxBytes: 3000, MaxEntities: 3})
	for i := range 40 {
		if w := do(b, "POST", "/ngsi-ld/v1/temporal/entities", fmt.Sprintf(`{"id":"urn:x:%d","type":"T","a":[%s]}`, i%2, moment(i, i))); w.Code >= 300 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		sound(t, b)
	}
	if got := past(t, b, "?type=T&timerel=after&timeAt=1970-01-01T00:00:00Z&options=temporalValues"); !strings.Contains(got, "[39,") || strings.Contains(got, "[0,") {
		t.Errorf("%s", got)
	}
	for i := range 5 {
		w := do(b, "POST", "/ngsi-ld/v1/temporal/entities", fmt.Sprintf(`{"id":"urn:y:%d","type":"T","a":[%s]}`, i, moment(i, i)))
		if full := w.Code == 500 && strings.Contains(w.Body.String(), "at most 3 entities"); full != (i > 0) {
			t.Errorf("%d: %d %s", i, w.Code, w.Body)
		}
	}
	sound(t, b)
}

func TestLDQuery(t *testing.T) {
	b := New(Options{})
	do(b, "POST", "/ngsi-ld/v1/entityOperations/upsert", `[{"id":"urn:x:1","type":"T","a":`+moment(1, 1)+`},{"id":"urn:x:2","type":"U","a":`+moment(2, 2)+`,"b":`+moment(3, 3)+`}]`)
	for body, answer := range map[string]string{
		`{"type":"Query","entities":[{"type":"T"}]}`:                              `[{"id":"urn:x:1","type":"T","a":` + moment(1, 1) + `}]`,
		`{"type":"Query","entities":[{"id":"urn:x:2","type":"U"}],"attrs":["b"]}`: `[{"id":"urn:x:2","type":"U","b":` + moment(3, 3) + `}]`,
		`{"type":"Query","entities":[{"id":"urn:x:2","type":"T"}]}`:               `[]`,
		`{"type":"Query","attrs":["a"],"q":"a>1"}`:                                `[{"id":"urn:x:2","type":"U","a":` + moment(2, 2) + `}]`,
	} {
		want(t, b, "POST /ngsi-ld/v1/entityOperations/query "+body, 200, answer)
	}
	for _, body := range []string{`[]`, `{}`, `{"type":"Thing"}`, `{"type":"Query","entities":[{}]}`, `{"type":"Query","geoQ":{}}`, `{"type":"Query","attrs":5}`} {
		if w := do(b, "POST", "/ngsi-ld/v1/entityOperations/query", body); w.Code != 400 {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
}

// TestLike: what is peculiar about each broker.
func TestLike(t *testing.T) {
	const up = "POST /ngsi-ld/v1/entityOperations/upsert?options=update "
	twice := `[{"id":"urn:x:1","type":"T","a":` + moment(1, 1) + `},{"id":"urn:x:1","type":"T","b":` + moment(2, 2) + `}]`

	b := New(Options{Like: OrionLD})
	want(t, b, up+twice, 201, `["urn:x:1"]`)
	want(t, b, "GET /ngsi-ld/v1/entities/urn:x:1?options=keyValues", 200, `{"id":"urn:x:1","type":"T","b":2}`)
	many := make([]string, 1001)
	for i := range many {
		many[i] = fmt.Sprintf(`{"id":"urn:y:%d","type":"Y"}`, i)
	}
	if w := do(b, "POST", "/ngsi-ld/v1/entityOperations/upsert", "["+strings.Join(many, ",")+"]"); w.Code != 201 || b.Stats().Entities != 1001 {
		t.Errorf("%d, %d entities", w.Code, b.Stats().Entities)
	}
	if w := do(b, "GET", "/version", ""); !strings.Contains(w.Body.String(), `"orionld version":"`) || !strings.Contains(w.Body.String(), forDemo) {
		t.Errorf("%s", w.Body)
	}
	if w := do(b, "GET", "/v2/entities", ""); w.Code != 200 {
		t.Errorf("Orion-LD has NGSIv2: %d", w.Code)
	}

	b = New(Options{Like: Scorpio})
	if w := do(b, "POST", "/ngsi-ld/v1/entityOperations/upsert", twice); w.Code != 207 || !strings.HasPrefix(w.Body.String(), `[{"success":[{"attributes":[]}],"id":"urn:x:1","type":"Upsert"},{"failure":[{`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	want(t, b, up+`[{"id":"urn:x:1","type":"T"},{"id":"urn:x:2","type":"T"}]`, 207, "")
	if w := do(b, "GET", "/version", ""); w.Code != 404 {
		t.Errorf("%d", w.Code)
	}

	b = New(Options{Like: Stellio})
	want(t, b, "GET /actuator/health", 200, `{"status":"UP"}`)
	if w := do(b, "GET", "/ngsi-ld/v1/entities?type=T&limit=101", ""); w.Code != 400 {
		t.Errorf("%d", w.Code)
	}
	if w := do(b, "POST", "/ngsi-ld/v1/temporal/entities", `{"id":"urn:x:1","type":"T","a":[{"type":"Property","value":1}]}`); w.Code != 400 {
		t.Errorf("%d", w.Code)
	}
	for i := range 2 {
		do(b, "POST", "/ngsi-ld/v1/temporal/entities", `{"id":"urn:x:1","type":"T","a":[`+moment(i, 1)+`]}`)
	}
	if got := past(t, b, "/urn:x:1"); got != `{"id":"urn:x:1","type":"T","a":[`+moment(1, 1)+`]}` {
		t.Errorf("%s", got)
	}
	sound(t, b)

	for like, status := range map[string]int{"": 501, OrionLD: 503, Scorpio: 501} {
		b := New(Options{Like: like, NoHistory: true})
		if w := do(b, "POST", "/ngsi-ld/v1/temporal/entities", `{"id":"urn:x:1","type":"T","a":[`+moment(1, 1)+`]}`); w.Code != status {
			t.Errorf("%s: POST %d", like, w.Code)
		}
		if w := do(b, "GET", "/ngsi-ld/v1/temporal/entities?type=T&timerel=before&timeAt=2026-11-23T09:15:30Z", ""); w.Code != 501 {
			t.Errorf("%s: GET %d", like, w.Code)
		}
	}
}
