package ngsi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"slices"
	"sync"
	"time"

	"campus-gateway"
)

// Config is how a broker is reached. Zero values mean the defaults.
type Config struct {
	URL         string // http://host:1026, without the API's path
	API         string // ngsi-v2 (default) or ngsi-ld
	Service     string // Fiware-Service, NGSIv2
	ServicePath string // Fiware-ServicePath, NGSIv2
	Tenant      string // NGSILD-Tenant, NGSI-LD

	// Auth has the token of each request; nil: there is none. The Sink closes it.
	// AuthHeader is bearer (default), or the name of the header it goes in.
	Auth       *Auth
	AuthHeader string

	// Contexts has the @context's URL for a subject (dataModel.Environment);
	// default: the official one.
	Contexts map[string]string

	TLS         *TLS          // default: NewTLS(TLSConfig{})
	Timeout     time.Duration // of one request; default 30 s
	MaxBody     int           // bytes of one request; default 500,000
	MaxEntities int           // of one request; default 500

	// Warn is told what concerns no reading: that the broker refuses a Device.
	Warn func(error)
}

// deviceEvery is how often the Device of a sensor that is heard of is sent.
const deviceEvery = time.Hour

// Sink sends readings to a broker. Send may be called by several goroutines;
// the order of an entity's readings is the caller's care then.
type Sink struct {
	cfg     Config
	dialect *dialect
	mapper  *Mapper
	client  *http.Client

	mu      sync.Mutex
	opened  bool                 // the broker has taken something: the tenant is there
	maxBody int                  // shrinks when the broker says 413
	devices map[string]time.Time // when each was last sent
	settled map[string]bool      // entities that the broker holds without a timeUncertain
}

var _ gateway.Sink = (*Sink)(nil)

// Request is what goes to the broker.
type Request struct {
	Method, URL string
	Header      http.Header
	Body        []byte
}

var (
	servicePattern = regexp.MustCompile(`^[A-Za-z0-9_]{0,50}$`)
	pathPattern    = regexp.MustCompile(`^/?$|^(/[A-Za-z0-9_]{1,50}){1,10}$`)
	tenantPattern  = regexp.MustCompile(`^[!-~]{0,128}$`)
)

// New is a Sink for what m maps. It connects to nothing yet.
func New(cfg Config, m *Mapper) (*Sink, error) {
	if cfg.API == "" {
		cfg.API = "ngsi-v2"
	}
	d := dialects[cfg.API]
	u, err := url.Parse(cfg.URL)
	switch {
	case d == nil:
		return nil, fmt.Errorf("broker: there is no API %q: want %v", cfg.API, slices.Sorted(maps.Keys(dialects)))
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("broker: this is not its URL: want http://host:1026")
	case u.User != nil:
		return nil, errors.New("broker: a user or password does not belong in the URL")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("broker: leave out what comes after ? or # in the URL")
	case !servicePattern.MatchString(cfg.Service):
		return nil, fmt.Errorf("broker: service %q: want up to 50 letters, digits and _", cfg.Service)
	case !pathPattern.MatchString(cfg.ServicePath):
		return nil, fmt.Errorf("broker: service path %q: want / or up to ten levels of letters, digits and _", cfg.ServicePath)
	case !tenantPattern.MatchString(cfg.Tenant):
		return nil, fmt.Errorf("broker: tenant %q does not fit into a header", cfg.Tenant)
	case CheckHeader(cfg.AuthHeader) != nil:
		return nil, fmt.Errorf("broker: %w", CheckHeader(cfg.AuthHeader))
	case len(m.gateway) > maxGateway:
		return nil, fmt.Errorf("gateway: the id takes %d characters in an entity id, %d at most: write a shorter one", len(m.gateway), maxGateway)
	}
	for len(u.Path) > 0 && u.Path[len(u.Path)-1] == '/' {
		u.Path = u.Path[:len(u.Path)-1]
	}
	cfg.URL = u.String()
	if cfg.TLS == nil {
		if cfg.TLS, err = NewTLS(TLSConfig{}); err != nil {
			return nil, err
		}
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 500_000
	}
	if cfg.MaxEntities == 0 {
		cfg.MaxEntities = 500
	}
	if cfg.Warn == nil {
		cfg.Warn = func(error) {}
	}
	return &Sink{cfg: cfg, dialect: d, mapper: m, client: newClient(cfg.Timeout, cfg.TLS), maxBody: cfg.MaxBody,
		devices: map[string]time.Time{}, settled: map[string]bool{}}, nil
}

// Date asks the broker for the time, by the Date of an answer, whatever it is, and
// says how far that may be off: a second, of which Date gives no parts, and the
// exchange. The error is gateway.ErrNoTime where the broker answers without one. It
// is what Ask of a gateway.Source is. No secret is sent.
func (s *Sink) Date(ctx context.Context) (now time.Time, within time.Duration, err error) {
	begun := time.Now()
	// Not the time that a connection takes to be made: the broker dates what comes after.
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { begun = time.Now() }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.cfg.URL+"/version", nil)
	if err != nil {
		return time.Time{}, 0, fmt.Errorf("ask the broker for the time: %w", err)
	}
	req.Header.Set("User-Agent", "campus-gateway")
	req.Header.Set("Cache-Control", "no-cache") // a kept answer has an old Date
	resp, err := s.client.Do(req)
	took := time.Since(begun)
	if err != nil {
		return time.Time{}, 0, fmt.Errorf("ask the broker for the time: %w", s.noAnswer(err).failure())
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // so that the connection can be used again
	resp.Body.Close()
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil || resp.Header.Get("Age") != "" {
		return time.Time{}, 0, fmt.Errorf("ask the broker for the time: %w", gateway.ErrNoTime)
	}
	// Dated after the request went, by a clock that shows the second begun.
	now = date.Add(time.Second/2 + took/2 + time.Since(begun) - took)
	return now, time.Second + took, nil
}

// Close lets go of idle connections, and ends Config.Auth.
func (s *Sink) Close() {
	s.client.CloseIdleConnections()
	if s.cfg.Auth != nil {
		s.cfg.Auth.Close()
	}
}

func (s *Sink) String() string { return s.cfg.API + " " + s.cfg.URL }

// none stands for a Device's reading: it has none.
const none = -1

// item is an entity and the reading it comes from.
type item struct {
	Entity
	reading int
}

// slot is one element of a request: several items of one id where the dialect
// takes an id only once, and they say different things.
type slot struct {
	items []item
	body  []byte
}

// Requests are those that Send would send if all went well. As with Send, each
// Device is among them once an hour. Secrets are not in them.
func (s *Sink) Requests(rs []gateway.Reading) []Request {
	t, rounds := s.try(rs)
	var requests []Request
	for _, slots := range rounds {
		for len(slots) > 0 {
			n := t.fit(slots)
			r := s.request(slots[:n])
			if s.cfg.Auth != nil {
				setToken(r.Header, s.cfg.AuthHeader, "(hidden)")
			}
			requests = append(requests, r)
			t.accept(slots[:n])
			slots = slots[n:]
		}
	}
	return requests
}

// Send takes rs, oldest first, to the broker: gateway.Sink. To send again what
// the broker has already is harmless: the same attributes at the same times.
func (s *Sink) Send(ctx context.Context, rs []gateway.Reading) error {
	t, rounds := s.try(rs)
	for _, slots := range rounds {
		for len(slots) > 0 {
			n := t.fit(slots)
			if err := t.send(ctx, slots[:n]); err != nil {
				return err
			}
			slots = slots[n:]
		}
	}
	if len(t.rejected) == 0 {
		return nil
	}
	e := &gateway.RejectError{}
	for _, i := range slices.Sorted(maps.Keys(t.rejected)) {
		e.Rejected = append(e.Rejected, gateway.Rejection{Index: i, Reason: t.rejected[i]})
	}
	return e
}

// try is one Send.
type try struct {
	*Sink
	taken    int            // entities that the broker has taken
	rejected map[int]string // why, by reading
}

// try plans a Send: what goes into requests of its own, in this order.
func (s *Sink) try(rs []gateway.Reading) (*try, [][]*slot) {
	t := &try{Sink: s, rejected: map[int]string{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	items := make([]item, 0, len(rs)+8)
	due := map[string]bool{}
	device := func(e Entity) {
		last, sent := s.devices[e.ID]
		if !due[e.ID] && (!sent || time.Since(last) >= deviceEvery) {
			due[e.ID] = true
			items = append(items, item{e, none})
		}
	}
	for i, r := range rs {
		if err := check(r); err != nil {
			t.rejected[i] = err.Error()
			continue
		}
		device(s.mapper.self)
		if site := s.mapper.things[r.Sensor]; site != nil {
			e := site.device(r.At.Wall)
			e.mark(r.At)
			device(e)
		}
		for _, e := range s.mapper.Entities(r) {
			items = append(items, item{e, i})
		}
	}
	var rounds [][]*slot
	if !s.opened && len(items) > 0 {
		// A tenant's first request has one entity: brokers have failed at more. As
		// a rule it is the gateway's own Device.
		rounds, items = s.rounds(items[:1]), items[1:]
	}
	return t, append(rounds, s.rounds(items)...)
}

// check refuses what must not reach a broker. None of it comes from a sensor.
func check(r gateway.Reading) error {
	if y := r.At.Wall.UTC().Year(); y < 1970 || y > 9999 {
		return fmt.Errorf("not sent: brokers take no time of the year %d", y)
	}
	for _, v := range r.Values {
		if err := checkValue(v); err != nil {
			return fmt.Errorf("not sent: %w", err)
		}
	}
	return nil
}

// rounds parts items into what may share a request: one subject where the
// dialect wants that; and where it takes an id only once, the k-th entity of
// each id in the k-th round, so that each is a state of its own in the history.
// Of two sensors that feed one entity, what touches no measured attribute of the
// other's goes into one.
func (s *Sink) rounds(items []item) [][]*slot {
	var subjects []string
	bySubject := map[string][]item{}
	for _, it := range items {
		subject := ""
		if s.dialect.byContext {
			subject = it.Subject
		}
		if _, ok := bySubject[subject]; !ok {
			subjects = append(subjects, subject)
		}
		bySubject[subject] = append(bySubject[subject], it)
	}
	var all [][]*slot
	for _, subject := range subjects {
		var rounds [][]*slot
		put := func(k int, sl *slot) {
			if k == len(rounds) {
				rounds = append(rounds, nil)
			}
			rounds[k] = append(rounds[k], sl)
		}
		type place struct {
			next int
			last *slot
		}
		places := map[string]*place{}
		for _, it := range bySubject[subject] {
			if s.dialect.repeats {
				put(0, s.slot(it))
				continue
			}
			p := places[it.ID]
			switch {
			case p == nil:
				p = &place{}
				places[it.ID] = p
			case apart(p.last.items, it):
				*p.last = *s.slot(append(p.last.items, it)...)
				continue
			}
			p.last = s.slot(it)
			put(p.next, p.last)
			p.next++
		}
		all = append(all, rounds...)
	}
	return all
}

// apart reports whether it says nothing anew that items say.
func apart(items []item, it item) bool {
	for _, a := range it.Attrs {
		if a.At.IsZero() || a.Kind == Time {
			continue
		}
		for _, other := range items {
			if slices.ContainsFunc(other.Attrs, func(o Attr) bool { return o.Name == a.Name }) {
				return false
			}
		}
	}
	return true
}

// slot puts items of one id together: of an attribute, the last one counts.
func (s *Sink) slot(items ...item) *slot {
	e := items[0].Entity
	for _, it := range items[1:] {
		e.At, e.Uncertain = it.At, it.Uncertain
		attrs := slices.DeleteFunc(slices.Clone(e.Attrs), func(a Attr) bool {
			return slices.ContainsFunc(it.Attrs, func(b Attr) bool { return a.Name == b.Name })
		})
		e.Attrs = append(attrs, it.Attrs...)
	}
	return &slot{items: items, body: s.dialect.entity(make([]byte, 0, 1024), &e)}
}

// fit is how many of slots go into one request: at least one.
func (s *Sink) fit(slots []*slot) int {
	s.mu.Lock()
	limit := s.maxBody
	s.mu.Unlock()
	size := len(s.dialect.head) + len(s.dialect.tail)
	for n, sl := range slots {
		size += len(sl.body) + 1
		if n > 0 && (size > limit || n == s.cfg.MaxEntities) {
			return n
		}
	}
	return len(slots)
}

func (s *Sink) request(slots []*slot) Request {
	r := Request{Method: http.MethodPost, URL: s.cfg.URL + s.dialect.path, Header: http.Header{}}
	if s.unsettled(slots) {
		r.URL += s.dialect.override
	}
	r.Body = append(r.Body, s.dialect.head...)
	for i, sl := range slots {
		if i > 0 {
			r.Body = append(r.Body, ',')
		}
		r.Body = append(r.Body, sl.body...)
	}
	r.Body = append(r.Body, s.dialect.tail...)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "campus-gateway")
	set := func(name, value string) {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	if s.dialect.byContext {
		subject := slots[0].items[0].Subject
		set("NGSILD-Tenant", s.cfg.Tenant)
		set("Link", `<`+s.contextURL(subject)+`>; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json"`)
	} else {
		set("Fiware-Service", s.cfg.Service)
		set("Fiware-ServicePath", s.cfg.ServicePath)
	}
	return r
}

// unsettled reports whether slots have to take a timeUncertain off that the broker
// may hold: of this process's, or of one before it.
func (s *Sink) unsettled(slots []*slot) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	marked := map[string]bool{}
	for _, sl := range slots {
		for _, it := range sl.items {
			if it.At.IsZero() {
				continue
			}
			if it.Uncertain == "" && (marked[it.ID] || !s.settled[it.ID]) {
				return true
			}
			marked[it.ID] = it.Uncertain != ""
		}
	}
	return false
}

// contextURL is where the official @context of a subject is, unless configured.
func (s *Sink) contextURL(subject string) string {
	if u := s.cfg.Contexts[subject]; u != "" {
		return u
	}
	return "https://raw.githubusercontent.com/smart-data-models/" + subject + "/master/context.jsonld"
}

// send sends slots in one request and does what the answer asks for, with
// further requests if need be. An error means that the Send has failed.
func (t *try) send(ctx context.Context, slots []*slot) error {
	r := t.request(slots)
	a, err := t.post(ctx, r)
	if err != nil {
		return err
	}
	switch a.verdict {
	case accepted:
		t.accept(slots)
		return nil
	case listed:
		return t.settle(ctx, slots, a.body)
	case refused:
		if err := t.prove(ctx, slots); err != nil {
			return err
		}
		return t.halve(ctx, slots, a.words)
	case tooLarge:
		switch {
		case len(slots) > 1 && a.cause == nil:
			t.shrink(len(r.Body) / 2)
		case len(slots) > 1: // a guess: not for ever
		case a.cause != nil:
			return t.noAnswer(a.cause).failure()
		default:
			if err := t.prove(ctx, slots); err != nil {
				return err
			}
		}
		return t.halve(ctx, slots, fmt.Sprintf("%d bytes are too large for the broker: %s", len(r.Body), a.words))
	}
	return a.failure()
}

// halve sends slots, refused together, in ever smaller parts, in order, until
// those at fault are alone.
func (t *try) halve(ctx context.Context, slots []*slot, words string) error {
	if len(slots) == 1 {
		items := slots[0].items
		if len(items) == 1 {
			t.reject(items[0], words)
			return nil
		}
		for _, it := range items {
			if err := t.send(ctx, []*slot{t.slot(it)}); err != nil {
				return err
			}
		}
		return nil
	}
	for _, half := range [][]*slot{slots[:len(slots)/2], slots[len(slots)/2:]} {
		if err := t.send(ctx, half); err != nil {
			return err
		}
	}
	return nil
}

// settle reads the answer 207.
func (t *try) settle(ctx context.Context, slots []*slot, body []byte) error {
	success, errs := parseList(body)
	var unknown, poison []*slot
	for _, sl := range slots {
		id := sl.items[0].ID
		p, wrong := errs[id]
		switch {
		case wrong && p.poison():
			poison = append(poison, sl)
		case wrong:
			return answer{words: fmt.Sprintf("%s did not take %s: %s", t.cfg.URL, id, p.words())}.failure()
		case success[id]:
			t.accept([]*slot{sl})
		default:
			unknown = append(unknown, sl)
		}
	}
	if len(poison) > 0 {
		if err := t.prove(ctx, slots); err != nil {
			return err
		}
	}
	for _, sl := range poison {
		p := errs[sl.items[0].ID]
		if err := t.halve(ctx, []*slot{sl}, p.words()); err != nil {
			return err
		}
	}
	switch {
	case len(unknown) == 0:
		return nil
	case len(unknown) == len(slots):
		return answer{words: fmt.Sprintf("%s answered 207 and did not say which entities it took", t.cfg.URL)}.failure()
	}
	return t.send(ctx, unknown)
}

// prove lets nothing be rejected by a broker that refuses everything: Orion
// answers 400 to a wrong address as well. If nothing has been taken in this
// Send, the gateway's own Device, which has no fault, must be.
func (t *try) prove(ctx context.Context, slots []*slot) error {
	proof := []*slot{t.slot(item{t.mapper.self, none})}
	if t.taken > 0 || len(slots) == 1 && slots[0].items[0].ID == t.mapper.self.ID {
		return nil
	}
	a, err := t.post(ctx, t.request(proof))
	switch {
	case err != nil:
		return err
	case a.verdict == accepted:
		t.accept(proof)
		return nil
	case a.verdict == keep:
		return a.failure()
	}
	if a.verdict == listed {
		_, errs := parseList(a.body)
		p := errs[t.mapper.self.ID]
		a.words = p.words()
	}
	a.words = fmt.Sprintf("%s refuses everything, this gateway's own Device as well: check broker.url, broker.api and the tenant (it says: %s)", t.cfg.URL, a.words)
	return a.failure()
}

func (t *try) accept(slots []*slot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken += len(slots)
	t.opened = true
	for _, sl := range slots {
		for _, it := range sl.items {
			if it.reading == none {
				t.devices[it.ID] = time.Now()
			}
			if !it.At.IsZero() {
				t.settled[it.ID] = it.Uncertain == ""
			}
		}
	}
}

func (t *try) reject(it item, words string) {
	if it.reading == none {
		t.cfg.Warn(fmt.Errorf("the broker refuses %s: %s", it.ID, words))
		t.mu.Lock()
		t.devices[it.ID] = time.Now() // again when it is due again
		t.mu.Unlock()
		return
	}
	if _, twice := t.rejected[it.reading]; !twice {
		t.rejected[it.reading] = words
	}
}

// shrink remembers what the broker finds too large.
func (s *Sink) shrink(limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maxBody = min(s.maxBody, limit)
}
