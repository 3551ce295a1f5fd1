package ngsi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// dialect is all that tells one broker API from another.
type dialect struct {
	root       string // an address that every broker of the API has
	path       string
	override   string // added to path so that what we noted before and do not now is gone
	flow       string // added to path where the broker is to hold us back
	head, tail string // of a body, around entities parted by commas
	entity     func([]byte, *Entity) []byte
	repeats    bool // one id may stand several times in a request: applied in order, each notified
	byContext  bool // a request has one @context, so one subject
	done       map[int]verdict

	// How the broker is asked what it holds (held.go): at most page entities at a
	// time, in a request of most bytes, URL included.
	page, most int
	ask        func(s *Sink, es []asked) Request
	read       func(body []byte, known map[fact]int64) error
}

var dialects = map[string]*dialect{
	// forcedUpdate: a value equal to the last one notifies as well, or a steady
	// temperature leaves holes in the history. Not overrideMetadata: what others
	// have noted on our attributes stays, and ours has the same names each time. But
	// for timeUncertain: an entity's first certain reading, and the first after one
	// that was not, overrides, or the mark would stay for ever.
	"ngsi-v2": {
		root: "/v2",
		path: "/v2/op/update?options=forcedUpdate", override: ",overrideMetadata", flow: ",flowControl", head: v2Head, tail: v2Tail, entity: appendV2,
		repeats: true,
		done:    map[int]verdict{http.StatusNoContent: accepted},
		page:    500, most: 500_000, ask: askV2, read: readV2,
	},
	// options=update: without it the entity is replaced, and what other sensors
	// feed into it is gone. One id twice in a request is applied, refused or
	// thinned out depending on the broker and its version, so it never is.
	"ngsi-ld": {
		root: "/ngsi-ld/v1/types?limit=1",
		path: "/ngsi-ld/v1/entityOperations/upsert?options=update", head: ldHead, tail: ldTail, entity: appendLD,
		byContext: true,
		done:      map[int]verdict{http.StatusCreated: accepted, http.StatusNoContent: accepted, http.StatusMultiStatus: listed},
		// Stellio gives no more than 100 (stellio-context-broker issue 1137); Quarkus
		// and Netty, under Scorpio and Stellio, take a first line of 4,096 bytes.
		page: 100, most: 3_500, ask: askLD, read: readLD,
	},
}

// brand is what tells one broker from the others that speak its API. The sources
// are the brokers' own: repositories and issues, read in November 2026.
type brand struct {
	name string // for people
	api  string // its dialect
	past past   // what is known of its temporal API before it is tried
	// upserts: in its history an instance takes the place of the one that has its
	// time, so that sending it again does no harm.
	upserts bool
	// toNow: a time in a question is compared with when the broker was told as well, so
	// a span that ends in the past would find nothing of what came late.
	toNow bool
}

// past says whether a broker keeps a history that can be written.
type past int

const (
	unknownPast past = iota // until it is asked
	noPast
	hasPast
)

var brands = map[string]*brand{
	// What api says until the broker has told more: any broker of the API.
	"ngsi-v2": {name: "an NGSIv2 broker", api: "ngsi-v2", past: noPast},
	"ngsi-ld": {name: "an NGSI-LD broker", api: "ngsi-ld"},
	// Orion's API has no history.
	"orion": {name: "Orion", api: "ngsi-v2", past: noPast},
	// With -troe only: else GET answers 501, and POST 503 "TRoE Not Enabled"
	// (orionldGetTemporalEntities.cpp, orionldPostTemporalEntities.cpp). The same time
	// twice is kept twice (context.Orion-LD issue 1518). Questions came with pull request
	// 1929 in 2026, and at first looked at when an entity's row was written
	// (pgTemporalEntityQuery.cpp).
	"orion-ld": {name: "Orion-LD", api: "ngsi-ld", toNow: true},
	// The same time twice is kept twice, under ids of their own (HistoryDAO.java).
	"scorpio": {name: "Scorpio", api: "ngsi-ld", past: hasPast},
	// ON CONFLICT (time, temporal_entity_attribute) DO UPDATE. It wants an observedAt
	// in every instance (TemporalEntityHandler.kt), so the history has one in each.
	"stellio": {name: "Stellio", api: "ngsi-ld", past: hasPast, upserts: true},
}

// questions are the addresses where brokers of an API say what they are.
var questions = map[string][]string{
	"ngsi-v2": {"/version"},
	"ngsi-ld": {
		"/ngsi-ld/ex/v1/version", // Orion-LD; beside the API, so that proxies pass it
		"/version",               // Orion-LD
		"/q/info",                // Scorpio since 3, on Quarkus (ScorpioBroker issue 525)
		"/actuator/info",         // Scorpio before, Stellio where it is switched on: on Spring
		"/actuator/health",       // Stellio, which has the others switched off (api-gateway/application.yml)
	},
}

// recognise reads what a broker says of itself. Without a brand it has said nothing
// that we know.
func recognise(path string, body []byte) (b *brand, version string) {
	var says struct {
		Orion   struct{ Version string }
		Legacy  string                          `json:"orionld version"`  // of /version
		OrionLD string                          `json:"Orion-LD version"` // of /ngsi-ld/ex/v1/version
		Build   struct{ Group, Version string } // of Quarkus and Spring
		Status  string
	}
	if json.Unmarshal(body, &says) != nil {
		return nil, ""
	}
	switch {
	case says.Orion.Version != "":
		return brands["orion"], says.Orion.Version
	case says.OrionLD+says.Legacy != "":
		return brands["orion-ld"], strings.TrimPrefix(says.OrionLD+says.Legacy, "post-v")
	case says.Build.Group == "eu.neclab.ngsildbroker":
		return brands["scorpio"], says.Build.Version
	case says.Build.Group == "com.egm.stellio":
		return brands["stellio"], says.Build.Version
	case path == "/actuator/health" && says.Status != "":
		return brands["stellio"], "" // the one that is left on Spring
	}
	return nil, ""
}

// Ask finds out what the broker is, and whether it keeps a history, as far as the
// configuration does not say so. It is for before the first Send, and for after an
// outage: the broker may have been exchanged. What it does not say stays as it was. An
// error means that there is no answer, and changes nothing.
func (s *Sink) Ask(ctx context.Context) error {
	b, version, path, err := s.who(ctx)
	if err != nil {
		return fmt.Errorf("ask the broker what it is: %w", err)
	}
	kept := b.past
	switch {
	case b.api != brands[s.cfg.API].api: // Orion-LD by its other API
		kept = noPast
	case kept == unknownPast:
		if kept, err = s.remembers(ctx); err != nil {
			return fmt.Errorf("ask the broker whether it keeps a history: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if kept == unknownPast && b == s.brand {
		kept = s.past
	}
	s.brand, s.version, s.told, s.past = b, version, path, kept
	return nil
}

// Broker is what the broker is, for people.
func (s *Sink) Broker() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimSpace(s.brand.name + " " + s.version)
}

// who asks all questions until one is answered, first the one that was before. Where
// none is, the broker is what it was: a proxy may let only the API pass.
func (s *Sink) who(ctx context.Context) (b *brand, version, path string, err error) {
	s.mu.Lock()
	b, version, path = s.brand, s.version, s.told
	s.mu.Unlock()
	api := brands[s.cfg.API].api
	paths := questions[s.cfg.API] // none where the configuration says it
	if path != "" {
		paths = slices.Concat([]string{path}, paths)
	}
	for _, path := range paths {
		resp, body, err := s.inquire(ctx, path)
		if err != nil {
			return nil, "", "", err
		}
		if resp == nil {
			break
		}
		// Orion alone has no NGSI-LD: then something else answers there.
		if is, v := recognise(path, body); resp.StatusCode == http.StatusOK && is != nil && (is.api == api || api == "ngsi-v2") {
			return is, clean(v), path, nil
		}
	}
	return b, version, path, nil
}

// remembers asks whether there is a temporal API, of the default tenant, which is
// always there. It names nothing that has to be expanded by a @context.
func (s *Sink) remembers(ctx context.Context) (past, error) {
	resp, body, err := s.inquire(ctx, temporalPath+"?type=Device&timerel=before&timeAt=1970-01-02T00:00:00.000Z&limit=1")
	switch {
	case err != nil:
		return unknownPast, err
	case resp == nil:
		return unknownPast, nil
	case resp.StatusCode == http.StatusOK && isJSON(resp.Header):
		return hasPast, nil
	case hasNoPast(resp, body), resp.StatusCode == http.StatusBadRequest:
		return noPast, nil
	}
	return unknownPast, nil
}

// inquire asks a question that the broker need not know. Where that brings nothing but
// trouble, which may be a proxy's that knows the API alone, there is no response; it
// is an error if the API has none either.
func (s *Sink) inquire(ctx context.Context, path string) (*http.Response, []byte, error) {
	var err error
	for i, path := range []string{path, s.dialect.root} {
		resp, body, none, gone := s.exchange(ctx, s.get(path), func(*http.Response) int64 { return maxAnswer })
		switch {
		case gone != nil:
			return nil, nil, gone
		case resp == nil:
			err = none.failure()
		case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode >= http.StatusInternalServerError && resp.StatusCode != http.StatusNotImplemented:
			err = s.judge(resp, body).failure()
		case i == 0:
			return resp, body, nil
		default:
			return nil, nil, nil
		}
	}
	return nil, nil, err
}

// get is a question that concerns no entity.
func (s *Sink) get(path string) Request {
	return Request{Method: http.MethodGet, URL: s.cfg.URL + path, Header: http.Header{"Accept": {"application/json"}, "User-Agent": {"campus-gateway"}}}
}

// headers are those of a request about entities of one subject.
func (s *Sink) headers(method, subject string) http.Header {
	h := http.Header{}
	if method == http.MethodPost {
		h.Set("Content-Type", "application/json")
	}
	h.Set("Accept", "application/json")
	h.Set("User-Agent", "campus-gateway")
	set := func(name, value string) {
		if value != "" {
			h.Set(name, value)
		}
	}
	if s.dialect.byContext {
		set("NGSILD-Tenant", s.cfg.Tenant)
		set("Link", `<`+s.contextURL(subject)+`>; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json"`)
	} else {
		set("Fiware-Service", s.cfg.Service)
		set("Fiware-ServicePath", s.cfg.ServicePath)
	}
	return h
}
