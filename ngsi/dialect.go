package ngsi

import "net/http"

// dialect is all that tells one broker API from another.
type dialect struct {
	path       string
	override   string // added to path so that what we noted before and do not now is gone
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
		path: "/v2/op/update?options=forcedUpdate", override: ",overrideMetadata", head: v2Head, tail: v2Tail, entity: appendV2,
		repeats: true,
		done:    map[int]verdict{http.StatusNoContent: accepted},
		page:    500, most: 500_000, ask: askV2, read: readV2,
	},
	// options=update: without it the entity is replaced, and what other sensors
	// feed into it is gone. One id twice in a request is applied, refused or
	// thinned out depending on the broker and its version, so it never is.
	"ngsi-ld": {
		path: "/ngsi-ld/v1/entityOperations/upsert?options=update", head: ldHead, tail: ldTail, entity: appendLD,
		byContext: true,
		done:      map[int]verdict{http.StatusCreated: accepted, http.StatusNoContent: accepted, http.StatusMultiStatus: listed},
		// Stellio gives no more than 100 (stellio-context-broker issue 1137); Quarkus
		// and Netty, under Scorpio and Stellio, take a first line of 4,096 bytes.
		page: 100, most: 3_500, ask: askLD, read: readLD,
	},
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
