package sandbox

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// The temporal part of NGSI-LD. Everything with an observedAt that comes through
// either API is kept as long as there is room; the oldest goes first.

// ldHistory is the temporal representation of an entity (4.5.6).
type ldHistory struct {
	id     string
	types  []string
	tracks []*track // in the order in which the attributes came
	told   time.Time
}

// track is the instances of one attribute, in the order in which they came.
type track struct {
	name      string
	instances []instance
}

type instance struct {
	at    time.Time
	value object
}

func (i *instance) size() int { return 100 + sizeOf(i.value) }

func (h *ldHistory) find(name string) *track {
	for _, s := range h.tracks {
		if s.name == name {
			return s
		}
	}
	return nil
}

// record keeps instances of an attribute, those with a time. Called with mu held.
func (b *Broker) record(tenantName string, e *ldEntity, name string, instances []any) {
	if b.opts.NoHistory {
		return
	}
	for _, v := range instances {
		o, _ := v.(object)
		at, err := time.Parse(time.RFC3339Nano, o.str("observedAt"))
		if err != nil {
			continue
		}
		t := b.tenant(tenantName)
		h := t.past[e.id]
		if h == nil {
			if b.pastEntities == b.opts.MaxEntities {
				return
			}
			h = &ldHistory{id: e.id}
			t.past[e.id] = h
			t.pastIDs = append(t.pastIDs, e.id)
			b.pastEntities++
		}
		h.told = b.opts.Now()
		for _, typ := range e.types {
			if !slices.Contains(h.types, typ) && len(h.types) < 10 {
				h.types = append(h.types, typ)
			}
		}
		s := h.find(name)
		if s == nil {
			if len(h.tracks) == maxAttrs {
				return
			}
			s = &track{name: name}
			h.tracks = append(h.tracks, s)
		}
		i := instance{at, append(slices.Clip(o), member{"instanceId", "urn:ngsi-ld:Instance:" + newID(12)})}
		same := slices.IndexFunc(s.instances, func(old instance) bool {
			return old.at.Equal(at) && old.value.str("datasetId") == o.str("datasetId")
		})
		if b.opts.Like == Stellio && same >= 0 {
			b.pastBytes += i.size() - s.instances[same].size()
			s.instances[same] = i
		} else {
			b.pastBytes += i.size()
			s.instances = append(s.instances, i)
			b.pastQueue = append(b.pastQueue, s)
		}
		for b.pastBytes > b.opts.MaxBytes {
			oldest := b.pastQueue[0]
			b.pastQueue = b.pastQueue[1:]
			b.pastBytes -= oldest.instances[0].size()
			oldest.instances = oldest.instances[1:]
		}
	}
}

// noHistory is how a broker without a temporal API says so.
func (b *Broker) noHistory(r *ldRequest) *problem {
	switch {
	case !b.opts.NoHistory:
		return nil
	case b.opts.Like == OrionLD && r.method == "POST":
		return &problem{http.StatusServiceUnavailable, "ResourceNotFound", "TRoE Not Enabled", "/ngsi-ld/v1/temporal/entities"}
	}
	return &problem{http.StatusNotImplemented, "OperationNotSupported", "Not supported", "there is no temporal API here"}
}

// ldPostTemporal creates the temporal representation of an entity or adds to it
// (5.6.11). The entity itself is left alone.
func (b *Broker) ldPostTemporal(r *ldRequest, _ []string) (*ldReply, *problem) {
	if no := b.noHistory(r); no != nil {
		return nil, no
	}
	v, no := r.parse()
	if no != nil {
		return nil, no
	}
	o, ok := v.(object)
	if !ok {
		return nil, badData("the body is not a JSON object")
	}
	// The attributes apart: here they may have several instances of one datasetId.
	var head, attrs object
	for _, m := range o {
		switch m.name {
		case "id", "type", "@context", "scope", "createdAt", "modifiedAt":
			head = append(head, m)
		default:
			attrs = append(attrs, m)
		}
	}
	e, no := r.parseEntity(head, true)
	if no != nil {
		return nil, no
	}
	if name := attrs.repeated(); name != "" {
		return nil, badData("duplicated name %q", name)
	}
	if len(attrs) > maxAttrs {
		return nil, badData("%s", tooManyAttrs)
	}
	for i, m := range attrs {
		list, isArray := m.value.([]any)
		if !isArray {
			list = []any{m.value}
		}
		for _, v := range list {
			if _, no := parseLDAttr(member{m.name, v}); no != nil {
				return nil, no
			}
			if o, _ := v.(object); b.opts.Like == Stellio && o.str("observedAt") == "" {
				return nil, badData("attribute %q: every instance needs an observedAt", m.name)
			}
		}
		attrs[i].value = list
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.look(r.tenant).past[e.id]
	isNew := h == nil
	if isNew && b.pastEntities == b.opts.MaxEntities {
		return nil, fullUp(fmt.Sprintf("the sandbox keeps the history of at most %d entities", b.opts.MaxEntities))
	}
	for _, m := range attrs {
		if !isNew && h.find(m.name) == nil && len(h.tracks)+len(attrs) > maxAttrs {
			return nil, badData("%s", tooManyAttrs)
		}
	}
	for _, m := range attrs {
		b.record(r.tenant, e, m.name, m.value.([]any))
	}
	if isNew {
		return &ldReply{status: http.StatusCreated, headers: map[string]string{"Location": "/ngsi-ld/v1/temporal/entities/" + url.PathEscape(e.id)}}, nil
	}
	return &ldReply{status: http.StatusNoContent}, nil
}

// window is the time that is asked for (4.11), the ends not included.
type window struct {
	from, to time.Time // zero: open
	last     int       // so many instances of each attribute, from the end; 0: all
}

func (w window) holds(t time.Time) bool {
	return (w.from.IsZero() || t.After(w.from)) && (w.to.IsZero() || t.Before(w.to))
}

func (r *ldRequest) window(needed bool) (w window, no *problem) {
	when := func(name string) (t time.Time) {
		t, err := time.Parse(time.RFC3339Nano, r.query[name])
		if err != nil && no == nil {
			no = badData("%s must be a date-time", name)
		}
		return t
	}
	switch p := r.query["timeproperty"]; p {
	case "", "observedAt":
	default:
		return w, &problem{http.StatusNotImplemented, "OperationNotSupported", "Not supported", "the sandbox broker does not do timeproperty=" + p}
	}
	switch rel := r.query["timerel"]; rel {
	case "":
		if needed {
			return w, badData("timerel is needed")
		}
	case "before":
		w.to = when("timeAt")
	case "after":
		w.from = when("timeAt")
	case "between":
		w.from, w.to = when("timeAt"), when("endTimeAt")
	default:
		return w, badData("timerel must be before, after or between")
	}
	if text := r.query["lastN"]; text != "" && no == nil {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil || n == 0 {
			return w, badData("lastN must be a positive number")
		}
		w.last = int(n)
	}
	return w, no
}

// render is the part of h that was asked for, or nil: normalized, or as temporalValues.
func (h *ldHistory) render(names []string, w window, options map[string]bool) object {
	o := object{{"id", h.id}, {"type", h.types[0]}}
	if len(h.types) > 1 {
		o[1].value = anyList(h.types)
	}
	found := false
	for _, s := range h.tracks {
		if len(names) > 0 && !slices.Contains(names, s.name) {
			continue
		}
		var in []instance
		for _, i := range s.instances {
			if w.holds(i.at) {
				in = append(in, i)
			}
		}
		if len(in) == 0 {
			continue
		}
		found = true
		slices.SortStableFunc(in, func(a, b instance) int { return a.at.Compare(b.at) })
		if w.last > 0 && len(in) > w.last {
			in = in[len(in)-w.last:]
		}
		list := make([]any, len(in))
		for n, i := range in {
			list[n] = i.value
			if options["temporalValues"] {
				list[n] = []any{content(i.value), i.value.str("observedAt")}
			}
		}
		if options["temporalValues"] {
			o = append(o, member{s.name, object{{"type", in[0].value.str("type")}, {"values", list}}})
		} else {
			o = append(o, member{s.name, list})
		}
	}
	if !found {
		return nil
	}
	return o
}

// ldListTemporal is GET /temporal/entities (5.7.4).
func (b *Broker) ldListTemporal(r *ldRequest, _ []string) (*ldReply, *problem) {
	if no := b.noHistory(r); no != nil {
		return nil, no
	}
	limit, offset, no := r.paging()
	if no != nil {
		return nil, no
	}
	w, no := r.window(true)
	if no != nil {
		return nil, no
	}
	if r.query["type"]+r.query["attrs"] == "" {
		return nil, badData("type or attrs is needed")
	}
	if r.query["q"]+r.query["idPattern"] != "" {
		return nil, &problem{http.StatusNotImplemented, "OperationNotSupported", "Not supported", "the sandbox broker does not do ?q and ?idPattern here"}
	}
	ids, types, names := splitList(r.query["id"]), splitList(r.query["type"]), splitList(r.query["attrs"])
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.look(r.tenant)
	list := []any{}
	for _, id := range t.pastIDs {
		h := t.past[id]
		if len(ids) > 0 && !slices.Contains(ids, id) ||
			len(types) > 0 && !slices.ContainsFunc(types, func(typ string) bool { return slices.Contains(h.types, typ) }) {
			continue
		}
		if b.opts.Like == OrionLD && !w.holds(h.told) { // as it came with context.Orion-LD pull request 1929
			continue
		}
		if o := h.render(names, w, r.options); o != nil {
			list = append(list, o)
		}
	}
	rep := &ldReply{status: http.StatusOK, context: r.replyContext(nil), headers: map[string]string{}}
	if r.query["count"] == "true" {
		rep.headers["NGSILD-Results-Count"] = strconv.Itoa(len(list))
	}
	rep.body = append([]any{}, page(list, offset, limit)...)
	return rep, nil
}

// ldGetTemporal is GET /temporal/entities/{id} (5.7.3).
func (b *Broker) ldGetTemporal(r *ldRequest, parts []string) (*ldReply, *problem) {
	if no := b.noHistory(r); no != nil {
		return nil, no
	}
	w, no := r.window(false)
	if no != nil {
		return nil, no
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.look(r.tenant).past[parts[2]]
	if h == nil {
		return nil, notFound("no history of " + parts[2])
	}
	o := h.render(splitList(r.query["attrs"]), w, r.options)
	if o == nil {
		o = object{{"id", h.id}, {"type", h.types[0]}}
	}
	return &ldReply{status: http.StatusOK, body: o, context: r.replyContext(nil)}, nil
}

// ldQuery is POST /entityOperations/query (5.7.2, with a body).
func (b *Broker) ldQuery(r *ldRequest, _ []string) (*ldReply, *problem) {
	o, _, no := r.parseObject()
	if no != nil {
		return nil, no
	}
	limit, offset, no := r.paging()
	if no != nil {
		return nil, no
	}
	selectors := []selector{{}}
	var names []string
	var filter filter
	var err error
	for _, m := range o {
		switch m.name {
		case "type":
			if m.value != "Query" {
				return nil, badData("type must be Query")
			}
		case "entities":
			selectors, err = parseLDSelectors(m.value, 1000)
		case "attrs":
			names, err = stringList(m)
		case "q":
			q, _ := m.value.(string)
			filter, err = parseFilter(q)
		default:
			return nil, badData("the sandbox broker does not do %q in a query", m.name)
		}
		if err != nil {
			return nil, badData("%s", err)
		}
	}
	if o.str("type") == "" {
		return nil, badData("type must be Query")
	}
	return b.ldFound(r, limit, offset, names, func(e *ldEntity) bool {
		return filter.passes(e.valueOf) && slices.ContainsFunc(selectors, func(s selector) bool {
			return slices.ContainsFunc(e.types, func(typ string) bool { return s.matches(e.id, typ) })
		})
	})
}

// --- what tells one broker from another ---

// Brokers that the sandbox can be Like.
const (
	OrionLD = "orion-ld"
	Scorpio = "scorpio"
	Stellio = "stellio"
)

// selves are the addresses where these brokers say what they are.
var selves = map[string]map[string]object{
	OrionLD: {
		"/version":               {{"orionld version", "1.10.0"}, {"orion version", "1.15.0-next"}, {"doc", forDemo}},
		"/ngsi-ld/ex/v1/version": {{"Orion-LD version", "1.10.0"}, {"based on orion", "1.15.0-next"}, {"branch", forDemo}},
	},
	Scorpio: {"/q/info": {
		{"os", object{{"name", "Linux"}}},
		{"build", object{{"group", "eu.neclab.ngsildbroker"}, {"artifact", "aio-runner"}, {"version", "5.0.9"}, {"note", forDemo}}}}},
	Stellio: {"/actuator/health": {{"status", "UP"}}},
}

// serveSelf answers what only the broker that the sandbox is like has, and says
// whether it has.
func (b *Broker) serveSelf(w http.ResponseWriter, hr *http.Request, parts []string) bool {
	if b.opts.Like == "" {
		return false
	}
	if self, ok := selves[b.opts.Like][hr.URL.Path]; ok && hr.Method == "GET" {
		answer(w, http.StatusOK, "application/json", appendJSON(nil, self, false))
		return true
	}
	if len(parts) > 0 && parts[0] == "ngsi-ld" || b.opts.Like == OrionLD && hr.URL.Path != "/version" { // it has NGSIv2 as well
		return false
	}
	answer(w, http.StatusNotFound, "application/json", []byte(fmt.Sprintf(`{"status":404,"error":"Not Found","path":%q}`, hr.URL.Path)))
	return true
}

// peculiar is what becomes of the entities of a batch at the broker that the sandbox
// is like, before it is carried out: those that are left, and those that fail.
func (b *Broker) peculiar(list []any) (rest, failures []any) {
	place := map[string]int{}
	switch b.opts.Like {
	case OrionLD:
		// Without -experimental: of one id only the last is taken (context.Orion-LD issue
		// 658), and of more than 1,000 entities the first 1,000 (issue 1951).
		for _, v := range list[:min(len(list), 1000)] {
			id := idOf(v)
			if n, twice := place[id]; twice {
				rest[n] = v
				continue
			}
			place[id] = len(rest)
			rest = append(rest, v)
		}
		return rest, nil
	case Scorpio: // an id twice hits a unique key (ScorpioBroker issue 376)
		for _, v := range list {
			id := idOf(v)
			if _, twice := place[id]; twice {
				no := &problem{http.StatusInternalServerError, "InternalError", "Internal error", "duplicate key value violates unique constraint"}
				failures = append(failures, object{{"entityId", id}, {"error", no.object()}})
				continue
			}
			place[id] = 0
			rest = append(rest, v)
		}
		return rest, failures
	}
	return list, nil
}

// scorpioResult is a 207 as Scorpio 4 writes it (ScorpioBroker issue 466).
func scorpioResult(success, failures []any) []any {
	list := []any{}
	for _, id := range success {
		list = append(list, object{{"success", []any{object{{"attributes", []any{}}}}}, {"id", id}, {"type", "Upsert"}})
	}
	for _, f := range failures {
		id, _ := f.(object).get("entityId")
		no, _ := f.(object).get("error")
		status, _ := no.(object).get("status")
		list = append(list, object{{"failure", []any{object{{"type", no.(object).str("type")}, {"title", no.(object).str("title")},
			{"detail", object{{"message", no.(object).str("detail")}}}, {"errorCode", status}}}}, {"id", id}, {"type", "Upsert"}})
	}
	return list
}

func idOf(v any) string {
	o, _ := v.(object)
	return o.str("id")
}
