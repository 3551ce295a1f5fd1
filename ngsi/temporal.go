package ngsi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"campus-gateway"
)

const temporalPath = "/ngsi-ld/v1/temporal/entities"

// History writes what is past to the broker's temporal API and leaves the newest
// state alone: a Sink, and a gateway.Reconciler. It is not ok while the broker is not
// known to keep a history.
func (s *Sink) History() (h gateway.Sink, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &s.history, s.past == hasPast
}

// history is the Sink of what is past. Its methods may be called concurrently.
type history struct {
	s *Sink

	mu     sync.Mutex
	taken  bool            // it has taken something: what it refuses is at fault
	unsure map[string]bool // ids of entities of which it may have taken a part
	limit  int             // bytes of a request, where it seems to take less than the other API; 0: it does not
}

var _ interface {
	gateway.Sink
	gateway.Reconciler
} = (*history)(nil)

func (h *history) String() string { return "history of " + h.s.String() }

// moment is an entity as one reading saw it.
type moment struct {
	Entity
	reading int
}

// Send takes rs, oldest first, into the history: gateway.Sink. There is a request for
// each entity, or several where one would be too large.
//
// Most brokers keep twice what they are sent twice. So what may have been taken
// already, by a Send that has failed, is asked for before.
func (h *history) Send(ctx context.Context, rs []gateway.Reading) error {
	rejected := map[int]string{}
	var keys [][2]string
	moments := map[[2]string][]moment{}
	for i, r := range rs {
		if err := check(r); err != nil {
			rejected[i] = err.Error()
			continue
		}
		for _, e := range h.s.mapper.Entities(r) {
			key := [2]string{e.ID, e.Subject}
			if _, ok := moments[key]; !ok {
				keys = append(keys, key)
			}
			moments[key] = append(moments[key], moment{e, i})
		}
	}
	if err := h.sift(ctx, moments); err != nil {
		return err
	}
	for n, key := range keys {
		if len(moments[key]) == 0 {
			continue
		}
		if err := h.send(ctx, moments[key], rejected); err != nil {
			h.doubt(keys[:n+1])
			return err
		}
	}
	h.mu.Lock()
	for _, key := range keys {
		delete(h.unsure, key[0])
	}
	h.mu.Unlock()
	if len(rejected) == 0 {
		return nil
	}
	e := &gateway.RejectError{}
	for _, i := range slices.Sorted(maps.Keys(rejected)) {
		e.Rejected = append(e.Rejected, gateway.Rejection{Index: i, Reason: rejected[i]})
	}
	return e
}

// doubt remembers entities of which the history may have a part.
func (h *history) doubt(keys [][2]string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.unsure == nil {
		h.unsure = map[string]bool{}
	}
	for _, key := range keys {
		h.unsure[key[0]] = true
	}
}

// sift takes out of moments what the history has already, as far as that is in doubt.
func (h *history) sift(ctx context.Context, moments map[[2]string][]moment) error {
	h.s.mu.Lock()
	upserts := h.s.brand.upserts
	h.s.mu.Unlock()
	if upserts {
		return nil
	}
	q := h.s.inquiry()
	claims := map[[2]string][][]claim{}
	h.mu.Lock()
	for key, ms := range moments {
		for i := range ms {
			if h.unsure[key[0]] {
				claims[key] = append(claims[key], q.entity(&ms[i].Entity))
			}
		}
	}
	h.mu.Unlock()
	known, err := h.known(ctx, q, slices.Concat(slices.Collect(maps.Values(claims))...))
	if err != nil {
		return err
	}
	for key, all := range claims {
		var rest []moment
		for i, cs := range all {
			if slices.ContainsFunc(cs, func(c claim) bool { return !known[c] }) {
				rest = append(rest, moments[key][i])
			}
		}
		moments[key] = rest
	}
	return nil
}

// send sends the moments of one entity, in ever smaller parts until those at fault
// are alone.
func (h *history) send(ctx context.Context, ms []moment, rejected map[int]string) error {
	r := h.request(ms)
	h.s.mu.Lock()
	limit := h.s.maxBody
	h.s.mu.Unlock()
	h.mu.Lock()
	if h.limit > 0 {
		limit = min(limit, h.limit)
	}
	h.mu.Unlock()
	a := answer{verdict: tooLarge}
	if len(ms) == 1 || len(r.Body) <= limit {
		var err error
		if a, err = h.post(ctx, r); err != nil {
			return err
		}
	}
	switch {
	case a.verdict == accepted:
		h.mu.Lock()
		h.taken = true
		h.mu.Unlock()
		return nil
	case a.verdict == tooLarge && a.cause != nil:
		// A connection cut under a large body: too large perhaps, taken perhaps. What it
		// has is asked before it is sent again, in smaller parts.
		h.mu.Lock()
		h.limit = max(len(r.Body)/2, suspectBody/2)
		h.mu.Unlock()
		return h.s.noAnswer(a.cause).failure()
	case a.verdict != tooLarge && a.verdict != refused:
		return a.failure()
	case len(ms) > 1:
		for _, half := range [][]moment{ms[:len(ms)/2], ms[len(ms)/2:]} {
			if err := h.send(ctx, half, rejected); err != nil {
				return err
			}
		}
		return nil
	}
	if err := h.prove(ctx, ms[0]); err != nil {
		return err
	}
	if _, twice := rejected[ms[0].reading]; !twice {
		rejected[ms[0].reading] = a.words
	}
	return nil
}

// prove lets nothing be rejected by a broker that has taken nothing yet: it must take
// a moment of the gateway's own Device, which has no fault.
func (h *history) prove(ctx context.Context, m moment) error {
	h.mu.Lock()
	taken := h.taken
	h.mu.Unlock()
	if taken {
		return nil
	}
	e := h.s.mapper.self
	e.At = m.At
	a, err := h.post(ctx, h.request([]moment{{Entity: e}}))
	switch {
	case err != nil:
		return err
	case a.verdict == accepted:
		h.mu.Lock()
		h.taken = true
		h.mu.Unlock()
		return nil
	case a.verdict != keep:
		a.words = fmt.Sprintf("%s takes nothing into its history, not even this gateway's own Device (it says: %s)", h.s.cfg.URL, a.words)
	}
	return a.failure()
}

// post sends one request and judges the answer. Where it says that there is no
// temporal API, History is not ok from then on.
func (h *history) post(ctx context.Context, r Request) (answer, error) {
	resp, body, none, err := h.s.exchange(ctx, r, func(*http.Response) int64 { return maxAnswer })
	switch {
	case err != nil || resp == nil:
		return none, err
	case resp.StatusCode == http.StatusCreated || resp.StatusCode == http.StatusNoContent:
		return answer{verdict: accepted}, nil
	case hasNoPast(resp, body):
		h.s.mu.Lock()
		h.s.past = noPast
		h.s.mu.Unlock()
		return answer{words: fmt.Sprintf("%s answered %s: it keeps no history that can be written", h.s.cfg.URL, clean(resp.Status))}, nil
	}
	a := h.s.judge(resp, body)
	if a.verdict == listed || a.verdict == accepted {
		a = answer{words: fmt.Sprintf("%s answered %s: this is not how a broker takes a history", h.s.cfg.URL, clean(resp.Status))}
	}
	return a, nil
}

// hasNoPast reports whether an answer of the temporal API says that there is none.
// Orion-LD without -troe says 501 to a question and 503 to a write.
func hasNoPast(resp *http.Response, body []byte) bool {
	p := parseProblem(resp.Header.Get("Content-Type"), body)
	switch resp.StatusCode {
	case http.StatusNotFound:
		return !p.passing() // no such tenant: it comes with the first write
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	case http.StatusServiceUnavailable:
		return strings.EqualFold(p.Title, "TRoE Not Enabled")
	}
	return false
}

// request is POST /temporal/entities: one entity, each attribute with an instance for
// each moment that saw it. What was not observed stands once. All instances have an
// observedAt: Stellio takes no others.
func (h *history) request(ms []moment) Request {
	first := &ms[0]
	r := Request{Method: http.MethodPost, URL: h.s.cfg.URL + temporalPath, Header: h.s.headers(http.MethodPost, first.Subject)}
	type instance struct {
		*Attr
		at time.Time
	}
	var order []string
	seen := map[string][]instance{}
	for i := range ms {
		for k := range ms[i].Attrs {
			a := &ms[i].Attrs[k]
			at := a.At
			switch all, known := seen[a.Name]; {
			case known && at.IsZero():
				continue
			case !known:
				order = append(order, a.Name)
				fallthrough
			default:
				if at.IsZero() || a.Kind == Time {
					at = ms[i].At
				}
				seen[a.Name] = append(all, instance{a, at})
			}
		}
	}
	r.Body = appendHead(r.Body, &first.Entity)
	for _, name := range order {
		r.Body = append(r.Body, ',')
		r.Body = appendString(r.Body, name)
		r.Body = append(r.Body, `:[`...)
		for i, in := range seen[name] {
			if i > 0 {
				r.Body = append(r.Body, ',')
			}
			r.Body = appendInstance(r.Body, in.Attr, in.at)
		}
		r.Body = append(r.Body, ']')
	}
	r.Body = append(r.Body, '}')
	return r
}

// span is an entity that the history is asked for, and the time that its claims take.
type span struct {
	asked
	from, to int64 // milliseconds, both included
	cut      bool  // it is a part of a longer one, of which the answer was too long
}

// Held asks the history which of rs it has: gateway.Reconciler. It has a reading when
// each attribute that the reading measures has an instance of exactly its time.
func (h *history) Held(ctx context.Context, rs []gateway.Reading) ([]bool, error) {
	q := h.s.inquiry()
	claims := q.readings(rs)
	known, err := h.known(ctx, q, claims)
	if err != nil {
		return nil, err
	}
	held := make([]bool, len(rs))
	for i, cs := range claims {
		n := 0
		for _, c := range cs {
			if known[c] {
				n++
			}
		}
		if held[i] = n > 0 && n == len(cs); !held[i] && n > 0 { // in part: Send sends the rest
			for _, c := range cs {
				h.doubt([][2]string{{c.id}})
			}
		}
	}
	return held, nil
}

// known asks the history for all of q, at the times of claims.
func (h *history) known(ctx context.Context, q *inquiry, claims [][]claim) (map[claim]bool, error) {
	spans := map[string]*span{}
	for _, cs := range claims {
		for _, c := range cs {
			sp := spans[c.id]
			if sp == nil {
				sp = &span{from: c.at, to: c.at}
				spans[c.id] = sp
			}
			sp.from, sp.to = min(sp.from, c.at), max(sp.to, c.at)
		}
	}
	known := map[claim]bool{}
	for _, part := range h.s.parts(q.es) {
		all := make([]span, len(part))
		for i, e := range part {
			all[i] = *spans[e.id]
			all[i].asked = e
		}
		if err := h.look(ctx, all, known); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, fmt.Errorf("ask the broker's history what it holds: %w", err)
		}
	}
	return known, nil
}

// look asks for all, in parts where one answer or question would be too long: by
// entity, and of a single entity by time.
func (h *history) look(ctx context.Context, all []span, known map[claim]bool) error {
	r := h.ask(all)
	err := errLong
	var body []byte
	if len(all) == 1 || len(r.URL) <= h.s.dialect.most {
		body, err = h.s.query(ctx, r)
	}
	if errors.Is(err, errLong) {
		var halves [][]span
		if n := len(all) / 2; n > 0 {
			halves = [][]span{all[:n], all[n:]}
		} else if one := all[0]; one.from < one.to {
			one.cut = true
			early, late := one, one
			early.to = one.from + (one.to-one.from)/2
			late.from = early.to + 1
			halves = [][]span{{early}, {late}}
		}
		for _, half := range halves {
			if err := h.look(ctx, half, known); err != nil {
				return err
			}
		}
		if halves != nil {
			return nil
		}
	}
	if err != nil {
		return err
	}
	err = eachEntity(body, func(id, _, name string, raw json.RawMessage) {
		for _, in := range instances(raw) {
			if t, err := time.Parse(time.RFC3339Nano, in.observed()); err == nil && in.DatasetID == nil {
				known[claim{fact{id, "", name}, t.UnixMilli()}] = true
			}
		}
	})
	if err != nil {
		return answer{words: fmt.Sprintf("%s says what cannot be understood: %v", h.s.cfg.URL, err), cause: err}.failure()
	}
	return nil
}

// farAway is the year 9999.
var farAway = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()

// ask is GET /temporal/entities. Whether a broker counts the ends of "between" in
// does not matter: they are a millisecond away.
func (h *history) ask(all []span) Request {
	h.s.mu.Lock()
	toNow := h.s.brand.toNow
	h.s.mu.Unlock()
	from, to := all[0].from, all[0].to
	es := make([]asked, len(all))
	ids := make([]string, len(all))
	for i, sp := range all {
		from, to = min(from, sp.from), max(to, sp.to)
		es[i], ids[i] = sp.asked, sp.id
	}
	if toNow && !all[0].cut {
		to = farAway
	}
	text := func(ms int64) string { return time.UnixMilli(ms).UTC().Format(timeForm) }
	return Request{Method: http.MethodGet, Header: h.s.headers(http.MethodGet, es[0].subject),
		URL: h.s.cfg.URL + temporalPath + "?id=" + strings.Join(ids, ",") + "&attrs=" + strings.Join(names(es), ",") +
			"&timeproperty=observedAt&timerel=between&timeAt=" + text(from-1) + "&endTimeAt=" + text(to+1) + "&limit=" + strconv.Itoa(len(all))}
}
