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
	"sync/atomic"
	"time"

	"campus-gateway"
)

// Config is how a broker is reached. Zero values mean the defaults.
type Config struct {
	URL         string // http://host:1026, without the API's path
	API         string // ngsi-v2 (default) or ngsi-ld; or the broker: orion, orion-ld, scorpio, stellio
	Service     string // Fiware-Service, NGSIv2
	ServicePath string // Fiware-ServicePath, NGSIv2
	Tenant      string // NGSILD-Tenant, NGSI-LD

	// Auth has the token of each request; nil: there is none. The Sink closes it.
	// AuthHeader is bearer (default), or the name of the header it goes in.
	Auth       *Auth
	AuthHeader string

	// Contexts has the @context's URL for a subject (dataModel.Environment;
	// default: the official one), and for a type that is of none (see Foreign).
	Contexts map[string]string

	TLS         *TLS          // default: NewTLS(TLSConfig{})
	Timeout     time.Duration // of one request; default 30 s
	MaxBody     int           // bytes of one request; default 500,000, at most what brokers take: 1 MiB
	MaxEntities int           // of one request; default and most 500: half of what brokers take

	// FlowControl asks an Orion that runs with -notifFlowControl to answer when its
	// queue of notifications has room; NGSIv2.
	FlowControl bool

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
	sent    atomic.Uint64 // bytes

	mu       sync.Mutex
	opened   bool                 // the broker has taken something: the tenant is there
	maxBody  int                  // shrinks when the broker says 413
	devices  map[string]time.Time // when each was last sent
	entities map[entityKey]*state
	sources  map[string]*source // by the sensor's name
	brand    *brand             // what the broker is, as far as it is known
	version  string             // its own word
	told     string             // where it has said so
	past     past               // whether it keeps a history
	history  history

	plans uint64    // so many tries were planned
	spare *try      // one that has ended, for its memory: as a rule there is one at a time
	tries sync.Pool // of others that have ended
}

// entityKey is an entity's id, and its subject where the dialect parts those.
type entityKey struct{ subject, id string }

// state is what a Sink knows of an entity, guarded by its mu.
type state struct {
	settled bool   // the broker holds it without a timeUncertain
	plan    uint64 // in which it stood last
	slot    int    // there: its last one
}

// source is a configured sensor whose readings come.
type source struct {
	*site
	templates []*template
	told      time.Time // when its Device was last sent, or before
}

// maxTemplates is how many a sensor has: most always tell the same quantities.
const maxTemplates = 8

var (
	_ gateway.Sink  = (*Sink)(nil)
	_ gateway.Meter = (*Sink)(nil)
)

// Request is what goes to the broker.
type Request struct {
	Method, URL string
	Header      http.Header
	Body        []byte

	text *text // in place of Body
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
	b := brands[cfg.API]
	u, err := url.Parse(cfg.URL)
	switch {
	case b == nil:
		return nil, fmt.Errorf("broker: there is no API %q: want %v", cfg.API, slices.Sorted(maps.Keys(brands)))
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
	d := *dialects[b.api]
	if d.byContext {
		if err := m.checkContexts(&cfg); err != nil {
			return nil, err
		}
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
	cfg.MaxBody = min(cfg.MaxBody, 1<<20)
	if cfg.MaxEntities == 0 {
		cfg.MaxEntities = 500
	}
	cfg.MaxEntities = min(cfg.MaxEntities, 500)
	if cfg.Warn == nil {
		cfg.Warn = func(error) {}
	}
	if cfg.FlowControl {
		d.path += d.flow
	}
	s := &Sink{cfg: cfg, dialect: &d, mapper: m, client: newClient(cfg.Timeout, cfg.TLS), maxBody: cfg.MaxBody, brand: b, past: b.past,
		devices: map[string]time.Time{}, entities: map[entityKey]*state{}, sources: make(map[string]*source, len(m.things))}
	s.history.s = s
	for name, site := range m.things {
		s.sources[name] = &source{site: site}
	}
	return s, nil
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

// headerBytes is about what the head of a request takes.
const headerBytes = 400

// Bytes is how many bytes were sent, about: bodies as they are, heads by their usual
// size. It is gateway.Meter.
func (s *Sink) Bytes() uint64 { return s.sent.Load() }

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
	*Entity // as of try.entity, but for times and numbers, which may be those of another reading
	state   *state
	reading int
	nth     int // of the entities of that reading
	end     int // in try.text
}

// slot is one element of a request: several items of one id where the dialect
// takes an id only once, and they say different things.
type slot struct {
	items []item
	body  []byte // with a comma before it
	round uint64 // of those that may share requests: its number, above that the subject's
}

// Requests are those that Send would send if all went well. As with Send, each
// Device is among them once an hour. Secrets are not in them.
func (s *Sink) Requests(rs []gateway.Reading) []Request {
	t := s.try(rs)
	defer t.end()
	var requests []Request
	for slots := t.slots; len(slots) > 0; {
		n := t.fit(slots)
		r := t.request(slots[:n])
		r.Body, r.text = slices.Concat(r.text.parts()...), nil
		if s.cfg.Auth != nil {
			setToken(r.Header, s.cfg.AuthHeader, "(hidden)")
		}
		requests = append(requests, r)
		t.accept(slots[:n])
		slots = slots[n:]
	}
	return requests
}

// Send takes rs, oldest first, to the broker: gateway.Sink. To send again what
// the broker has already is harmless: the same attributes at the same times.
func (s *Sink) Send(ctx context.Context, rs []gateway.Reading) error {
	t := s.try(rs)
	defer t.end()
	for slots := t.slots; len(slots) > 0; {
		n := t.fit(slots)
		if err := t.send(ctx, slots[:n]); err != nil {
			return err
		}
		slots = slots[n:]
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

// try is one Send. Its memory is that of one before.
type try struct {
	*Sink
	rs       []gateway.Reading
	taken    int            // entities that the broker has taken
	rejected map[int]string // why, by reading

	items    []item
	placed   []slot   // in the order of items
	order    []uint64 // of placed: round and index
	slots    []slot   // in the order in which they go
	text     []byte   // of all slots
	subjects []string
	filler   filler
	due      map[string]bool // Devices among the items
	open     atomic.Int32    // requests whose text is still read
}

// try plans a Send: what goes, in which order, and what may share a request.
func (s *Sink) try(rs []gateway.Reading) *try {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.spare
	s.spare = nil
	if t == nil {
		t, _ = s.tries.Get().(*try)
	}
	if t == nil {
		t = &try{Sink: s, rejected: map[int]string{}, due: map[string]bool{}}
	}
	t.rs = rs
	now := time.Now()
	self := s.fresh(s.mapper.self.ID, now)
	for i := range rs {
		r := &rs[i]
		source := s.sources[r.Sensor]
		fits := t.fitting(source, r)
		if fits == nil {
			if err := check(*r); err != nil {
				t.rejected[i] = err.Error()
				continue
			}
			fits = t.learn(source, r)
		}
		if !self {
			t.device(s.mapper.self)
			self = true
		}
		if source != nil && now.Sub(source.told) >= deviceEvery {
			if s.fresh(source.deviceID, now) {
				source.told = s.devices[source.deviceID]
			} else if !t.due[source.deviceID] {
				e := source.device(r.At.Wall)
				e.mark(r.At)
				t.device(e)
			}
		}
		if fits == nil {
			es := s.mapper.Entities(*r)
			for k := range es {
				t.write(&es[k], i, k)
			}
			continue
		}
		for k := range fits.entities {
			p := &fits.entities[k]
			t.text = t.filler.fill(t.text, fits, p)
			t.items = append(t.items, item{Entity: p.Entity, state: p.state, reading: i, nth: k, end: len(t.text)})
		}
	}
	t.arrange()
	return t
}

// fresh reports whether the Device of that id has been sent lately.
func (s *Sink) fresh(id string, now time.Time) bool {
	last, sent := s.devices[id]
	return sent && now.Sub(last) < deviceEvery
}

func (s *Sink) state(e *Entity) *state {
	key := entityKey{id: e.ID}
	if s.dialect.byContext {
		key.subject = e.Subject
	}
	known := s.entities[key]
	if known == nil {
		known = &state{}
		s.entities[key] = known
	}
	return known
}

// fitting is the template that r fits, with the filler holding r; nil: there is none.
func (t *try) fitting(s *source, r *gateway.Reading) *template {
	if s == nil {
		return nil
	}
	for _, made := range s.templates {
		if t.filler.take(made, r) {
			return made
		}
	}
	return nil
}

// learn makes the template that r fits, as fitting; nil: r can have none.
func (t *try) learn(s *source, r *gateway.Reading) *template {
	if s == nil || len(s.templates) == maxTemplates {
		return nil
	}
	made := newTemplate(t.dialect, t.mapper, s.site, *r)
	if made == nil || !t.filler.take(made, r) {
		return nil
	}
	for k := range made.entities {
		made.entities[k].state = t.state(made.entities[k].Entity)
	}
	s.templates = append(s.templates, made)
	return made
}

func (t *try) device(e Entity) {
	t.due[e.ID] = true
	t.write(&e, none, 0)
}

// write writes an entity for which there is no template.
func (t *try) write(e *Entity, reading, nth int) {
	t.text = t.dialect.entity(append(t.text, ','), e)
	t.items = append(t.items, item{Entity: e, state: t.state(e), reading: reading, nth: nth, end: len(t.text)})
}

// entity is what it says.
func (t *try) entity(it item) Entity {
	if it.reading == none {
		return *it.Entity
	}
	return t.mapper.Entities(t.rs[it.reading])[it.nth]
}

// end gives t's memory to the next, unless a request that has failed is still read.
func (t *try) end() {
	if t.open.Load() != 0 {
		return
	}
	clear(t.items)
	clear(t.placed)
	clear(t.slots)
	clear(t.due)
	clear(t.rejected)
	t.rs, t.taken = nil, 0
	t.items, t.placed, t.order, t.slots, t.text = t.items[:0], t.placed[:0], t.order[:0], t.slots[:0], t.text[:0]
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.spare == nil {
		t.spare = t
	} else {
		t.tries.Put(t)
	}
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

// A round has indexBits bits for its number; an order, for the index.
const indexBits = 24

// arrange parts items into what may share a request: one subject where the
// dialect wants that; and where it takes an id only once, the k-th entity of
// each id in the k-th round, so that each is a state of its own in the history.
// Of two sensors that feed one entity, what touches no measured attribute of the
// other's goes into one.
func (t *try) arrange() {
	t.plans++
	subjects := t.subjects[:0]
	begin := 0
	for i, it := range t.items {
		sl := slot{items: t.items[i : i+1 : i+1], body: t.text[begin:it.end]}
		begin = it.end
		// A tenant's first request has one entity: brokers have failed at more. As
		// a rule it is the gateway's own Device.
		alone := i == 0 && !t.opened
		if !alone {
			subject := 0
			if t.dialect.byContext {
				if subject = slices.Index(subjects, it.Subject); subject < 0 {
					subject = len(subjects)
					subjects = append(subjects, it.Subject)
				}
			}
			sl.round = uint64(1+subject) << indexBits
		}
		if !t.dialect.repeats && !alone {
			if it.state.plan == t.plans {
				last := &t.placed[it.state.slot]
				if last.items[0].Entity != it.Entity && apart(last.items, it) { // one template says the same
					last.items = append(last.items, it)
					last.body = t.together(last.items)
					continue
				}
				sl.round = last.round + 1
			}
			it.state.plan, it.state.slot = t.plans, len(t.placed)
		}
		t.order = append(t.order, sl.round<<indexBits|uint64(len(t.placed)))
		t.placed = append(t.placed, sl)
	}
	t.subjects = subjects
	slices.Sort(t.order) // one round as a rule: that is nothing to sort
	for _, o := range t.order {
		t.slots = append(t.slots, t.placed[o&(1<<indexBits-1)])
	}
}

// apart reports whether it says nothing anew that items say.
func apart(items []item, it item) bool {
	for i := range it.Attrs {
		a := &it.Attrs[i]
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

// together writes items of one id as one entity: of an attribute, the last one counts.
func (t *try) together(items []item) []byte {
	e := t.entity(items[0])
	for _, it := range items[1:] {
		next := t.entity(it)
		e.At, e.Uncertain = next.At, next.Uncertain
		attrs := slices.DeleteFunc(slices.Clone(e.Attrs), func(a Attr) bool {
			return slices.ContainsFunc(next.Attrs, func(b Attr) bool { return a.Name == b.Name })
		})
		e.Attrs = append(attrs, next.Attrs...)
	}
	return t.dialect.entity([]byte{','}, &e)
}

// fit is how many of slots go into one request: at least one.
func (t *try) fit(slots []slot) int {
	t.mu.Lock()
	limit := t.maxBody
	t.mu.Unlock()
	size := len(t.dialect.head) + len(t.dialect.tail)
	for n := range slots {
		sl := &slots[n]
		size += len(sl.body)
		if n > 0 && (size > limit || n == t.cfg.MaxEntities || sl.round != slots[0].round) {
			return n
		}
	}
	return len(slots)
}

func (t *try) request(slots []slot) Request {
	r := Request{Method: http.MethodPost, URL: t.cfg.URL + t.dialect.path, Header: t.headers(http.MethodPost, slots[0].items[0].Subject)}
	if t.dialect.override != "" && t.unsettled(slots) {
		r.URL += t.dialect.override
	}
	r.text = newText(t.dialect, slots, &t.open)
	return r
}

// unsettled reports whether slots have to take a timeUncertain off that the broker
// may hold: of this process's, or of one before it.
func (t *try) unsettled(slots []slot) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	var marked map[*state]bool
	for i := range slots {
		for j := range slots[i].items {
			it := &slots[i].items[j]
			switch {
			case it.At.IsZero():
			case it.Uncertain == "":
				if !it.state.settled || marked[it.state] {
					return true
				}
			default:
				if marked == nil {
					marked = map[*state]bool{}
				}
				marked[it.state] = true
			}
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
func (t *try) send(ctx context.Context, slots []slot) error {
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
			t.shrink(r.text.size / 2)
		case len(slots) > 1: // a guess: not for ever
		case a.cause != nil:
			return t.noAnswer(a.cause).failure()
		default:
			if err := t.prove(ctx, slots); err != nil {
				return err
			}
		}
		return t.halve(ctx, slots, fmt.Sprintf("%d bytes are too large for the broker: %s", r.text.size, a.words))
	}
	return a.failure()
}

// halve sends slots, refused together, in ever smaller parts, in order, until
// those at fault are alone.
func (t *try) halve(ctx context.Context, slots []slot, words string) error {
	if len(slots) == 1 {
		items := slots[0].items
		if len(items) == 1 {
			t.reject(items[0], words)
			return nil
		}
		for i := range items {
			if err := t.send(ctx, []slot{{items: items[i : i+1], body: t.together(items[i : i+1])}}); err != nil {
				return err
			}
		}
		return nil
	}
	for _, half := range [][]slot{slots[:len(slots)/2], slots[len(slots)/2:]} {
		if err := t.send(ctx, half); err != nil {
			return err
		}
	}
	return nil
}

// settle reads the answer 207.
func (t *try) settle(ctx context.Context, slots []slot, body []byte) error {
	success, errs := parseList(body)
	var unknown, poison []slot
	for _, sl := range slots {
		id := sl.items[0].ID
		p, wrong := errs[id]
		switch {
		case wrong && p.poison():
			poison = append(poison, sl)
		case wrong:
			return answer{words: fmt.Sprintf("%s did not take %s: %s", t.cfg.URL, id, p.words())}.failure()
		case success[id]:
			t.accept([]slot{sl})
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
		if err := t.halve(ctx, []slot{sl}, p.words()); err != nil {
			return err
		}
	}
	if len(unknown) == len(slots) {
		// Scorpio has answered 207 with nothing in it (ScorpioBroker issue 329).
		es := make([]Entity, len(slots))
		for i, sl := range slots {
			es[i] = t.entity(sl.items[len(sl.items)-1])
		}
		missing, err := t.missing(ctx, es)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return answer{words: fmt.Sprintf("%s answered 207 and did not say which entities it took; %v", t.cfg.URL, err), cause: err}.failure()
		}
		unknown = nil
		for i, sl := range slots {
			if missing[i] {
				unknown = append(unknown, sl)
			} else {
				t.accept([]slot{sl})
			}
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
func (t *try) prove(ctx context.Context, slots []slot) error {
	self := &t.mapper.self
	if t.taken > 0 || len(slots) == 1 && slots[0].items[0].ID == self.ID {
		return nil
	}
	t.mu.Lock()
	items := []item{{Entity: self, state: t.state(self), reading: none}}
	t.mu.Unlock()
	proof := []slot{{items: items, body: t.together(items)}}
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
		p := errs[self.ID]
		a.words = p.words()
	}
	a.words = fmt.Sprintf("%s refuses everything, this gateway's own Device as well: check its url, api and tenant (it says: %s)", t.cfg.URL, a.words)
	return a.failure()
}

func (t *try) accept(slots []slot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken += len(slots)
	t.opened = true
	for i := range slots {
		for j := range slots[i].items {
			it := &slots[i].items[j]
			if it.reading == none {
				t.devices[it.ID] = time.Now()
			}
			if !it.At.IsZero() {
				it.state.settled = it.Uncertain == ""
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
