package ngsi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"campus-gateway"
)

var _ gateway.Reconciler = (*Sink)(nil)

// maxHeld is how much of an answer is read that says what the broker holds.
const maxHeld = 4 << 20

// fact is one measured attribute of one entity.
type fact struct {
	id, typ string // typ is empty in NGSI-LD, where the id alone names an entity
	attr    string
}

// claim is what a reading wants to be known at the broker: a fact, and when it was
// observed, in milliseconds, which is all that brokers keep of a time.
type claim struct {
	fact
	at int64
}

// asked is an entity that the broker is asked for.
type asked struct {
	id, typ, subject string
	attrs            []string
}

// Held asks the broker which of rs it has: gateway.Reconciler. It has a reading when
// each attribute that the reading measures is there and is not older. It relies on
// an entity's readings being sent in their order: so of those in rs that feed one
// attribute, all up to the one that is there have arrived, and what comes after it
// has not, whatever the clock showed. A batch may have been taken in part.
//
// Without an answer that can be believed there is an error, and nothing is known.
func (s *Sink) Held(ctx context.Context, rs []gateway.Reading) ([]bool, error) {
	q := s.inquiry()
	claims := q.readings(rs)
	known, err := s.known(ctx, q)
	if err != nil {
		return nil, err
	}
	last := map[fact]int{} // the newest reading that is what the broker shows now
	for i, cs := range claims {
		for _, c := range cs {
			if at, ok := known[c.fact]; ok && at == c.at {
				last[c.fact] = i
			}
		}
	}
	held := make([]bool, len(rs))
	for i, cs := range claims {
		held[i] = len(cs) > 0 && !slices.ContainsFunc(cs, func(c claim) bool {
			at, ok := known[c.fact]
			n, shown := last[c.fact]
			return !ok || shown && i > n || !shown && c.at > at
		})
	}
	return held, nil
}

// Key names what must stay in order: readings of sensors with one key feed one
// entity.
func (s *Sink) Key(sensor string) string {
	if site := s.mapper.things[sensor]; site != nil {
		return site.id
	}
	return s.mapper.site(Thing{Name: sensor}).id
}

// inquiry collects entities that the broker is asked for.
type inquiry struct {
	*Sink
	es     []asked // in order of appearance
	places map[[2]string]int
}

func (s *Sink) inquiry() *inquiry { return &inquiry{Sink: s, places: map[[2]string]int{}} }

// readings are the claims of each of rs: none of one that is never sent.
func (q *inquiry) readings(rs []gateway.Reading) [][]claim {
	claims := make([][]claim, len(rs))
	for i, r := range rs {
		if check(r) != nil {
			continue
		}
		for _, e := range q.mapper.Entities(r) {
			claims[i] = append(claims[i], q.entity(&e)...)
		}
	}
	return claims
}

// entity asks for e, and returns what e claims: of what it measures, or, where it
// measures nothing, to be there.
func (q *inquiry) entity(e *Entity) []claim {
	key := [2]string{e.ID, e.Type}
	f := fact{id: e.ID, typ: e.Type}
	if q.dialect.byContext { // the @context says what a name means
		key[1], f.typ = e.Subject, ""
	}
	n, ok := q.places[key]
	if !ok {
		n = len(q.es)
		q.places[key] = n
		q.es = append(q.es, asked{id: e.ID, typ: e.Type, subject: e.Subject})
	}
	want := func(name string) {
		if !slices.Contains(q.es[n].attrs, name) {
			q.es[n].attrs = append(q.es[n].attrs, name)
		}
	}
	var claims []claim
	for _, a := range e.Attrs {
		if !a.At.IsZero() && a.Kind != Time {
			f.attr = a.Name
			claims = append(claims, claim{f, a.At.UnixMilli()})
			want(a.Name)
		}
	}
	if claims == nil && len(e.Attrs) > 0 {
		want(e.Attrs[0].Name)
		claims = []claim{{f, there}}
	}
	return claims
}

// there is the time of a fact without an attribute: the entity exists.
const there = 0

// known asks the broker for all of q: when it has each attribute from.
func (s *Sink) known(ctx context.Context, q *inquiry) (map[fact]int64, error) {
	known := map[fact]int64{}
	for _, part := range s.parts(q.es) {
		if err := s.look(ctx, part, known); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, fmt.Errorf("ask the broker what it holds: %w", err)
		}
	}
	return known, nil
}

// missing are those of es that the broker does not have, or has an older state of.
func (s *Sink) missing(ctx context.Context, es []Entity) ([]bool, error) {
	q := s.inquiry()
	claims := make([][]claim, len(es))
	for i := range es {
		claims[i] = q.entity(&es[i])
	}
	known, err := s.known(ctx, q)
	if err != nil {
		return nil, err
	}
	missing := make([]bool, len(es))
	for i, cs := range claims {
		missing[i] = slices.ContainsFunc(cs, func(c claim) bool { at, ok := known[c.fact]; return !ok || at < c.at })
	}
	return missing, nil
}

// parts are es as they may be asked for together.
func (s *Sink) parts(es []asked) [][]asked {
	var subjects []string
	bySubject := map[string][]asked{}
	for _, e := range es {
		subject := ""
		if s.dialect.byContext { // the @context says what a name means
			subject = e.subject
		}
		if _, ok := bySubject[subject]; !ok {
			subjects = append(subjects, subject)
		}
		bySubject[subject] = append(bySubject[subject], e)
	}
	var parts [][]asked
	for _, subject := range subjects {
		parts = slices.AppendSeq(parts, slices.Chunk(bySubject[subject], s.dialect.page))
	}
	return parts
}

// errLong is an answer, or a question, that is too long.
var errLong = errors.New("it is too long")

// look asks for es, in several requests where one would be too large, and adds what
// the broker knows of them.
func (s *Sink) look(ctx context.Context, es []asked, known map[fact]int64) error {
	r := s.dialect.ask(s, es)
	err := errLong
	var body []byte
	if len(es) == 1 || len(r.URL)+len(r.Body) <= s.dialect.most {
		body, err = s.query(ctx, r)
	}
	if errors.Is(err, errLong) && len(es) > 1 {
		for _, half := range [][]asked{es[:len(es)/2], es[len(es)/2:]} {
			if err := s.look(ctx, half, known); err != nil {
				return err
			}
		}
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.dialect.read(body, known); err != nil {
		return answer{words: fmt.Sprintf("%s says what cannot be understood: %v", s.cfg.URL, err), cause: err}.failure()
	}
	return nil
}

// query sends a question and returns the answer's body: JSON, with status 200, whole.
func (s *Sink) query(ctx context.Context, r Request) ([]byte, error) {
	resp, body, none, err := s.exchange(ctx, r, func(resp *http.Response) int64 {
		if resp.StatusCode == http.StatusOK && isJSON(resp.Header) {
			return maxHeld + 1
		}
		return maxAnswer
	})
	switch {
	case err != nil:
		return nil, err
	case resp == nil && none.verdict == tooLarge:
		return nil, errLong
	case resp == nil:
		return nil, none.failure()
	case resp.StatusCode == http.StatusPartialContent && isJSON(resp.Header): // Stellio: over 10,000 instances
		return nil, fmt.Errorf("%s: the answer: %w: it is only a part", s.cfg.URL, errLong)
	case resp.StatusCode == http.StatusOK && isJSON(resp.Header) && len(body) > maxHeld:
		return nil, fmt.Errorf("%s: the answer: %w: over %d bytes", s.cfg.URL, errLong, maxHeld)
	case resp.StatusCode == http.StatusOK && isJSON(resp.Header):
		return body, nil
	}
	a := s.judge(resp, body)
	switch a.verdict {
	case tooLarge:
		return nil, errLong
	case refused, accepted, listed:
		own := a.words
		a.words = fmt.Sprintf("%s answered %s: this is not how a broker says what it holds", s.cfg.URL, clean(resp.Status))
		if own != "" {
			a.words += " (it says: " + own + ")"
		}
	}
	return nil, a.failure()
}

func isJSON(h http.Header) bool {
	media, _, _ := mime.ParseMediaType(h.Get("Content-Type"))
	return media == "application/json" || media == "application/ld+json"
}

// names are the attributes of es, each once.
func names(es []asked) []string {
	var all []string
	for _, e := range es {
		for _, name := range e.attrs {
			if !slices.Contains(all, name) {
				all = append(all, name)
			}
		}
	}
	return all
}

// askV2 is POST /v2/op/query. Without a service path Orion would look in all.
func askV2(s *Sink, es []asked) Request {
	r := Request{Method: http.MethodPost, URL: s.cfg.URL + "/v2/op/query?limit=" + strconv.Itoa(len(es)), Header: s.headers(http.MethodPost, "")}
	if s.cfg.ServicePath == "" {
		r.Header.Set("Fiware-ServicePath", "/")
	}
	r.Body = append(r.Body, `{"entities":[`...)
	for i, e := range es {
		if i > 0 {
			r.Body = append(r.Body, ',')
		}
		r.Body = append(appendHead(r.Body, &Entity{ID: e.id, Type: e.typ}), '}')
	}
	r.Body = append(r.Body, `],"attrs":[`...)
	for i, name := range names(es) {
		if i > 0 {
			r.Body = append(r.Body, ',')
		}
		r.Body = appendString(r.Body, name)
	}
	r.Body = append(r.Body, `]}`...)
	return r
}

// readV2 takes each attribute's own TimeInstant: the entity's is of whichever sensor
// fed it last.
func readV2(body []byte, known map[fact]int64) error {
	return eachEntity(body, func(id, typ, name string, raw json.RawMessage) {
		known[fact{id: id, typ: typ}] = there
		var a struct {
			Metadata map[string]struct{ Value any }
		}
		if json.Unmarshal(raw, &a) == nil {
			when, _ := a.Metadata["TimeInstant"].Value.(string)
			note(known, fact{id, typ, name}, when)
		}
	})
}

// askLD is GET /ngsi-ld/v1/entities, which every broker has. The ids need no
// escaping: see IDEscape.
func askLD(s *Sink, es []asked) Request {
	ids := make([]string, len(es))
	for i, e := range es {
		ids[i] = e.id
	}
	return Request{Method: http.MethodGet, Header: s.headers(http.MethodGet, es[0].subject),
		URL: s.cfg.URL + "/ngsi-ld/v1/entities?id=" + strings.Join(ids, ",") + "&attrs=" + strings.Join(names(es), ",") + "&limit=" + strconv.Itoa(len(es))}
}

// readLD takes each attribute's observedAt, of several instances the one that is
// ours: it has no datasetId.
func readLD(body []byte, known map[fact]int64) error {
	return eachEntity(body, func(id, _, name string, raw json.RawMessage) {
		known[fact{id: id}] = there
		for _, a := range instances(raw) {
			if a.DatasetID == nil {
				note(known, fact{id, "", name}, a.observed())
			}
		}
	})
}

// instance is what is of interest in one instance of an attribute of NGSI-LD.
type instance struct{ ObservedAt, DatasetID any }

func (in instance) observed() string {
	text, _ := in.ObservedAt.(string)
	return text
}

func instances(raw json.RawMessage) []instance {
	var all []instance
	if json.Unmarshal(raw, &all) == nil {
		return all
	}
	var one instance
	if json.Unmarshal(raw, &one) == nil {
		return []instance{one}
	}
	return nil // id, type, @context
}

// eachEntity calls f for every member of every entity of a list.
func eachEntity(body []byte, f func(id, typ, name string, raw json.RawMessage)) error {
	var es []map[string]json.RawMessage
	if err := json.Unmarshal(body, &es); err != nil {
		return err
	}
	if es == nil {
		return errors.New("it is not a list")
	}
	for _, e := range es {
		var id, typ string
		if err := json.Unmarshal(e["id"], &id); err != nil || id == "" {
			return errors.New("it is not a list of entities")
		}
		_ = json.Unmarshal(e["type"], &typ) // in NGSI-LD it may be a list
		for name, raw := range e {
			f(id, typ, name, raw)
		}
	}
	return nil
}

// note writes down when f was observed. Of two times the older one counts: what is
// sent again does no harm, what is not sent is lost.
func note(known map[fact]int64, f fact, when string) {
	t, err := time.Parse(time.RFC3339Nano, when)
	if err != nil {
		return
	}
	if old, ok := known[f]; !ok || t.UnixMilli() < old {
		known[f] = t.UnixMilli()
	}
}
