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
	claims, es := s.claims(rs)
	known := map[fact]int64{}
	for _, part := range s.parts(es) {
		if err := s.look(ctx, part, known); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, fmt.Errorf("ask the broker what it holds: %w", err)
		}
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

// claims are those of each reading, none of one that is never sent; and the entities
// they are about, in order of appearance.
func (s *Sink) claims(rs []gateway.Reading) ([][]claim, []asked) {
	claims := make([][]claim, len(rs))
	var es []asked
	places := map[fact]int{} // of an entity (attr is empty) in es
	for i, r := range rs {
		if check(r) != nil {
			continue
		}
		for _, e := range s.mapper.Entities(r) {
			key := fact{id: e.ID, typ: e.Type}
			if s.dialect.byContext {
				key.typ = ""
			}
			n, ok := places[key]
			if !ok {
				n = len(es)
				places[key] = n
				es = append(es, asked{id: e.ID, typ: e.Type, subject: e.Subject})
			}
			for _, a := range e.Attrs {
				if a.At.IsZero() || a.Kind == Time {
					continue
				}
				claims[i] = append(claims[i], claim{fact{key.id, key.typ, a.Name}, a.At.UnixMilli()})
				if !slices.Contains(es[n].attrs, a.Name) {
					es[n].attrs = append(es[n].attrs, a.Name)
				}
			}
		}
	}
	return claims, es
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
	resp, body, none, err := s.exchange(ctx, r, func(status int) int64 {
		if status == http.StatusOK {
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
		a.words = fmt.Sprintf("%s answered %s: this is not how a broker says what it holds (it says: %s)", s.cfg.URL, clean(resp.Status), a.words)
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
		var a struct {
			Metadata map[string]struct{ Value any }
		}
		if json.Unmarshal(raw, &a) == nil {
			note(known, fact{id, typ, name}, a.Metadata["TimeInstant"].Value)
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
		for _, a := range instances(raw) {
			if a.DatasetID == nil {
				note(known, fact{id, "", name}, a.ObservedAt)
			}
		}
	})
}

// instance is what is of interest in one instance of an attribute of NGSI-LD.
type instance struct{ ObservedAt, DatasetID any }

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
func note(known map[fact]int64, f fact, when any) {
	text, _ := when.(string)
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return
	}
	if old, ok := known[f]; !ok || t.UnixMilli() < old {
		known[f] = t.UnixMilli()
	}
}
