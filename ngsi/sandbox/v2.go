package sandbox

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// entity is an entity of NGSIv2. Its key is id, type and service path.
type entity struct {
	id, typ, path     string
	attrs             []attr // by name: so Orion answers them
	created, modified time.Time
}

func (e *entity) find(name string) (int, bool) {
	return slices.BinarySearchFunc(e.attrs, name, func(a attr, name string) int { return strings.Compare(a.name, name) })
}

// request is one call of NGSIv2 after its headers have been read.
type request struct {
	tenant     string
	paths      []string // one for a write
	correlator string
	query      map[string]string
	options    map[string]bool
	body       []byte
	plain      bool // the body is text/plain: only for a value
	acceptText bool
	method     string
}

// knownOptions are the words that Orion takes in ?options=; on a call where they
// mean nothing they do nothing.
var knownOptions = strings.Fields("append count upsert noAttrDetail unique values keyValues forcedUpdate flowControl overrideMetadata " +
	"dateCreated dateModified fullCounters skipForwarding skipInitialNotification")

// route is one address of the API: what it does by method.
type route struct {
	pattern string // "*" takes any part
	methods map[string]func(b *Broker, r *request, parts []string) (*reply, error)
}

// reply is a good answer.
type reply struct {
	status  int
	body    []byte // nil: none
	text    bool   // body is text/plain
	headers map[string]string
}

type call = func(b *Broker, r *request, parts []string) (*reply, error)

var v2Routes = []route{
	{"version", map[string]call{"GET": (*Broker).version}},
	{"v2", map[string]call{"GET": (*Broker).entryPoint}},
	{"v2/op/update", map[string]call{"POST": (*Broker).opUpdate}},
	{"v2/op/query", map[string]call{"POST": (*Broker).opQuery}},
	{"v2/entities", map[string]call{"GET": (*Broker).listEntities, "POST": (*Broker).createEntity}},
	{"v2/entities/*", map[string]call{"GET": (*Broker).getEntity, "DELETE": (*Broker).deleteEntity}},
	{"v2/entities/*/attrs", map[string]call{
		"GET": (*Broker).getEntity, "POST": (*Broker).writeAttrs, "PATCH": (*Broker).writeAttrs, "PUT": (*Broker).writeAttrs}},
	{"v2/entities/*/attrs/*", map[string]call{"GET": (*Broker).getAttr, "PUT": (*Broker).putAttr, "DELETE": (*Broker).deleteAttr}},
	{"v2/entities/*/attrs/*/value", map[string]call{"GET": (*Broker).getAttr, "PUT": (*Broker).putAttr}},
	{"v2/subscriptions", map[string]call{"GET": (*Broker).listSubscriptions, "POST": (*Broker).createSubscription}},
	{"v2/subscriptions/*", map[string]call{
		"GET": (*Broker).getSubscription, "PATCH": (*Broker).patchSubscription, "DELETE": (*Broker).deleteSubscription}},
}

func (rt *route) matches(parts []string) bool {
	pattern := strings.Split(rt.pattern, "/")
	return slices.EqualFunc(pattern, parts, func(p, part string) bool { return p == "*" || p == part })
}

// serveV2 answers one call of NGSIv2, or of /version.
func (b *Broker) serveV2(w http.ResponseWriter, hr *http.Request, parts []string) {
	correlator := hr.Header.Get("Fiware-Correlator")
	if correlator == "" {
		correlator = newCorrelator()
	}
	w.Header().Set("Fiware-Correlator", correlator)
	rep, err := b.callV2(w, hr, parts, correlator)
	if err != nil {
		no := &refusal{http.StatusInternalServerError, "InternalServerError", err.Error()}
		errors.As(err, &no)
		body := append([]byte(`{"error":`), appendString(nil, no.name)...)
		body = append(appendString(append(body, `,"description":`...), no.description), '}')
		contentType := "application/json"
		if no == notText {
			contentType = "text/plain" // what was asked for
		}
		answer(w, no.status, contentType, body)
		return
	}
	for name, value := range rep.headers {
		w.Header().Set(name, value)
	}
	contentType := "application/json"
	if rep.text {
		contentType = "text/plain"
	}
	answer(w, rep.status, contentType, rep.body)
}

func (b *Broker) callV2(w http.ResponseWriter, hr *http.Request, parts []string, correlator string) (*reply, error) {
	r := &request{correlator: correlator, method: hr.Method}
	writes := hr.Method == "POST" || hr.Method == "PUT" || hr.Method == "PATCH"
	if hr.ContentLength > b.opts.MaxBody {
		w.Header().Set("Connection", "close") // the body is not read
		return nil, &refusal{http.StatusRequestEntityTooLarge, "RequestEntityTooLarge",
			fmt.Sprintf("payload size: %d, max size supported: %d", hr.ContentLength, b.opts.MaxBody)}
	}
	if writes && hr.ContentLength <= 0 { // -1: chunked
		return nil, &refusal{http.StatusLengthRequired, "ContentLengthRequired", "Zero/No Content-Length in PUT/POST/PATCH request"}
	}
	rt := slices.IndexFunc(v2Routes, func(rt route) bool { return rt.matches(parts) })
	isValue := rt >= 0 && strings.HasSuffix(v2Routes[rt].pattern, "/value")
	if err := r.readAccept(hr.Header, isValue); err != nil {
		return nil, err
	}
	if writes {
		contentType, _, _ := strings.Cut(hr.Header.Get("Content-Type"), ";")
		switch r.plain = contentType == "text/plain" && isValue; {
		case contentType == "":
			return nil, &refusal{http.StatusUnsupportedMediaType, "UnsupportedMediaType", "Content-Type header not used, default application/octet-stream is not supported"}
		case contentType != "application/json" && !r.plain:
			return nil, &refusal{http.StatusUnsupportedMediaType, "UnsupportedMediaType", "not supported content type: " + contentType}
		}
	}
	var why string
	if r.tenant, why = tenantName(hr.Header.Get("Fiware-Service")); why != "" {
		return nil, bad("%s", why)
	}
	isRead := hr.Method == "GET" || len(parts) > 1 && (parts[1] == "subscriptions" || strings.HasSuffix(hr.URL.Path, "/query"))
	var err error
	if r.paths, err = servicePaths(hr.Header.Get("Fiware-ServicePath"), isRead); err != nil {
		return nil, err
	}
	if err := r.readQuery(hr.URL.RawQuery); err != nil {
		return nil, err
	}
	if rt < 0 {
		return nil, bad("Service not found. Check your URL as probably it is wrong.")
	}
	do := v2Routes[rt].methods[hr.Method]
	if do == nil {
		var allow []string
		for _, m := range []string{"POST", "PUT", "PATCH", "GET", "DELETE"} {
			if v2Routes[rt].methods[m] != nil {
				allow = append(allow, m)
			}
		}
		w.Header().Set("Allow", strings.Join(allow, ", "))
		return nil, &refusal{http.StatusMethodNotAllowed, "MethodNotAllowed", "method not allowed"}
	}
	if writes {
		if r.body, err = io.ReadAll(hr.Body); err != nil { // as long as Content-Length says, which is bounded above
			return nil, bad("the body ended early: %s", err)
		}
	}
	return do(b, r, parts)
}

func newCorrelator() string {
	var u [16]byte
	rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

var notText = &refusal{http.StatusNotAcceptable, "NotAcceptable", "acceptable MIME types: application/json"}

func (r *request) readAccept(h http.Header, isValue bool) error {
	values, given := h["Accept"]
	if !given {
		r.acceptText = true
		return nil
	}
	accept := strings.Join(values, ",")
	if accept == "" {
		return bad("empty accept header")
	}
	json := false
	for kind := range strings.SplitSeq(accept, ",") {
		kind, _, _ = strings.Cut(kind, ";")
		switch strings.TrimSpace(kind) {
		case "*/*":
			json, r.acceptText = true, true
		case "application/json", "application/*":
			json = true
		case "text/plain", "text/*":
			r.acceptText = true
		}
	}
	switch {
	case json || r.acceptText && isValue:
		return nil
	case r.acceptText:
		return notText
	}
	return &refusal{http.StatusNotAcceptable, "NotAcceptable", "no acceptable mime-type in accept header"}
}

// unescape decodes %XX; what cannot be decoded stays as it is.
func unescape(s string) string {
	if u, err := url.PathUnescape(s); err == nil {
		return u
	}
	return s
}

func parseQuery(raw string) map[string]string {
	q := map[string]string{}
	for pair := range strings.SplitSeq(raw, "&") {
		if name, value, _ := strings.Cut(pair, "="); name != "" {
			q[unescape(name)] = unescape(value)
		}
	}
	return q
}

// readQuery takes what stands after the question mark. A name that Orion has and
// the sandbox has not is refused: to ignore it would answer another question.
func (r *request) readQuery(raw string) error {
	r.query, r.options = parseQuery(raw), map[string]bool{}
	for _, name := range []string{"georel", "geometry", "coords", "mq", "orderBy", "metadata"} {
		if r.query[name] != "" {
			return unsupported("?" + name)
		}
	}
	if options, given := r.query["options"]; given {
		for option := range strings.SplitSeq(options, ",") {
			if !slices.Contains(knownOptions, option) {
				return bad("Invalid value for URI param /options/")
			}
			r.options[option] = true
		}
	}
	return nil
}

// --- the calls ---

func (b *Broker) version(*request, []string) (*reply, error) {
	up := int(b.opts.Now().Sub(b.started).Seconds())
	body := appendJSON(nil, object{{"orion", object{
		{"version", "4.7.0"},
		{"uptime", fmt.Sprintf("%d d, %d h, %d m, %d s", up/86400, up/3600%24, up/60%60, up%60)},
		{"doc", forDemo + ": it answers like Orion 4.7.0 on the part that the gateway uses, and is not Orion"},
	}}}, true)
	return &reply{status: 200, body: append(body, '\n')}, nil
}

func (b *Broker) entryPoint(*request, []string) (*reply, error) {
	return &reply{status: 200, body: []byte(`{"entities_url":"/v2/entities","types_url":"/v2/types","subscriptions_url":"/v2/subscriptions","registrations_url":"/v2/registrations"}`)}, nil
}

func (b *Broker) opUpdate(r *request, _ []string) (*reply, error) {
	action, ws, err := parseUpdate(r.body, r.options["keyValues"])
	if err != nil {
		return nil, err
	}
	if err := b.apply(r, action, ws); err != nil {
		return nil, err
	}
	return &reply{status: 204}, nil
}

func (b *Broker) createEntity(r *request, _ []string) (*reply, error) {
	body, err := parseBody(r.body)
	if err != nil {
		return nil, err
	}
	w, err := parseEntity(body, r.options["keyValues"])
	if err != nil {
		return nil, err
	}
	if w.typ == "" {
		w.typ = "Thing"
	}
	rep := &reply{status: 201, headers: map[string]string{
		"Location": "/v2/entities/" + url.PathEscape(w.id) + "?type=" + url.QueryEscape(w.typ)}}
	action := "create"
	if r.options["upsert"] {
		action = "append"
		b.mu.Lock()
		if len(b.look(r.tenant).match(r.paths, w.id, w.typ)) > 0 {
			rep.status = 204
		}
		b.mu.Unlock()
	}
	return rep, b.apply(r, action, []write{w})
}

// apply carries out the elements of an update one after the other. What is wrong
// with one of them does not stop the others; the answer is made of all.
func (b *Broker) apply(r *request, action string, ws []write) error {
	var updates []Update
	defer func() { b.tell(updates) }()
	b.mu.Lock()
	defer b.mu.Unlock()
	var missing, existing []string
	var no *refusal
	applied := false
	onlyEntities := true // what is missing is entities only
	for i := range ws {
		w := &ws[i]
		out := b.applyOne(r, action, w)
		applied = applied || out.applied
		if out.applied && action != "delete" {
			updates = append(updates, w.update(r, out.typ, b.opts.Now()))
			b.stats.Updates++
		}
		name := w.id
		if w.typ != "" {
			name += "/" + w.typ
		}
		switch {
		case out.refused != nil:
			no = out.refused
		case out.noEntity && len(missing) == 0:
			missing = append(missing, name+" - [entity itself]")
		case out.noEntity: // Orion leaves out the dash here
			missing = append(missing, name+" [entity itself]")
		case len(out.missing) > 0:
			onlyEntities = false
			missing = append(missing, name+" - [ "+strings.Join(out.missing, ", ")+" ]")
		case len(out.existing) > 0:
			existing = append(existing, name+" - [ "+strings.Join(out.existing, ", ")+" ]")
		}
	}
	partly := func(otherwise string) string {
		if applied {
			return "PartialUpdate"
		}
		return otherwise
	}
	switch {
	case len(missing) > 0 && onlyEntities && !applied:
		return &refusal{http.StatusNotFound, "NotFound", "do not exist: " + strings.Join(missing, ", ")}
	case len(missing) > 0:
		return &refusal{http.StatusUnprocessableEntity, partly("Unprocessable"), "do not exist: " + strings.Join(missing, ", ")}
	case len(existing) > 0:
		return &refusal{http.StatusUnprocessableEntity, partly("Unprocessable"),
			"one or more of the attributes in the request already exist: " + strings.Join(existing, ", ")}
	case no != nil:
		return no
	}
	return nil
}

// outcome is what became of one element.
type outcome struct {
	typ               string // of the entity
	applied           bool
	noEntity          bool
	missing, existing []string // attributes
	refused           *refusal
}

// match returns the entities of a key; any type if typ is "".
func (t *tenant) match(paths []string, id, typ string) []*entity {
	var found []*entity
	for _, e := range t.byID[id] {
		if (typ == "" || e.typ == typ) && onPath(e.path, paths) {
			found = append(found, e)
		}
	}
	return found
}

var tooMany = &refusal{http.StatusConflict, "TooManyResults", "More than one matching entity. Please refine your query"}

func (b *Broker) applyOne(r *request, action string, w *write) outcome {
	now := b.opts.Now()
	found := b.look(r.tenant).match(r.paths, w.id, w.typ)
	creates := action == "append" || action == "appendstrict" || action == "create"
	switch {
	case len(found) > 1:
		return outcome{refused: tooMany}
	case len(found) == 0 && !creates:
		return outcome{noEntity: true}
	case len(found) == 1 && action == "create":
		return outcome{refused: &refusal{http.StatusUnprocessableEntity, "Unprocessable", "Already Exists"}}
	}
	if action == "delete" && len(w.attrs) == 0 {
		b.remove(r.tenant, found[0])
		return outcome{applied: true}
	}

	// The new state is made aside, so that a refusal leaves the old one.
	var old, e entity
	if len(found) == 1 {
		old = *found[0]
		e = old
		e.attrs = slices.Clone(old.attrs)
	} else {
		e = entity{id: w.id, typ: w.typ, path: r.paths[0], created: now}
		if e.typ == "" {
			e.typ = "Thing"
		}
	}
	if action == "replace" {
		e.attrs = nil
	}
	out := outcome{typ: e.typ}
	var changed []string // attributes, for the subscriptions
	onlyMeta := true     // nothing but metadata changed
	for _, a := range w.attrs {
		i, exists := e.find(a.name)
		switch {
		case !exists && (action == "update" || action == "delete"):
			out.missing = append(out.missing, a.name)
			continue
		case exists && action == "appendstrict":
			out.existing = append(out.existing, a.name)
			continue
		case action == "delete":
			e.attrs = slices.Delete(e.attrs, i, i+1)
			continue
		}
		a.created, a.modified = now, now
		value, meta := true, true // what changes
		if exists {
			before := &e.attrs[i]
			a.created = before.created
			if !r.options["overrideMetadata"] { // metadata that is not sent stays
				a.metadata = merged(before.metadata, a.metadata)
			}
			value = a.typ != before.typ || !equalJSON(a.value, before.value)
			meta = !equalMetadata(a.metadata, before.metadata)
		}
		if value || meta || r.options["forcedUpdate"] {
			changed = append(changed, a.name)
			onlyMeta = onlyMeta && meta && !value
		}
		if exists {
			e.attrs[i] = a
		} else {
			e.attrs = slices.Insert(e.attrs, i, a)
		}
	}
	out.applied = len(out.missing)+len(out.existing) < len(w.attrs) || len(w.attrs) == 0
	if !out.applied {
		return out
	}
	e.modified = now
	if out.refused = b.keep(r.tenant, found, &old, &e); out.refused != nil {
		out.applied = false
		return out
	}
	if action != "delete" && (len(changed) > 0 || len(found) == 0) {
		b.notifyV2(r, &e, changed, onlyMeta && len(changed) > 0)
	}
	return out
}

// keep puts the new state of an entity in the place of the old one.
func (b *Broker) keep(tenantName string, found []*entity, old, e *entity) *refusal {
	locations := 0
	for i := range e.attrs {
		if e.attrs[i].isLocation() {
			locations++
		}
	}
	if locations > 1 {
		return &refusal{http.StatusRequestEntityTooLarge, "NoResourcesAvailable",
			"You cannot use more than one geo location attribute when creating an entity. Use ignoreType metadata if you want to add additional informative locations."}
	}
	if len(e.attrs) > maxAttrs {
		return bad("%s", tooManyAttrs)
	}
	bytes := e.size()
	if len(found) == 1 {
		bytes -= old.size()
	}
	if why := b.full(1-len(found), bytes); why != "" {
		return &refusal{http.StatusInternalServerError, "InternalServerError", why}
	}
	b.bytes += bytes
	if len(found) == 1 {
		*found[0] = *e
		return nil
	}
	t := b.tenant(tenantName)
	kept := *e
	t.entities = append(t.entities, &kept)
	t.byID[e.id] = append(t.byID[e.id], &kept)
	b.stats.Entities++
	return nil
}

func (e *entity) size() int {
	n := 200 + len(e.id) + len(e.typ) + len(e.path)
	for i := range e.attrs {
		n += e.attrs[i].size()
	}
	return n
}

func (b *Broker) remove(tenantName string, e *entity) {
	t := b.tenant(tenantName)
	same := func(other *entity) bool { return other == e }
	t.entities = slices.DeleteFunc(t.entities, same)
	if t.byID[e.id] = slices.DeleteFunc(t.byID[e.id], same); len(t.byID[e.id]) == 0 {
		delete(t.byID, e.id)
	}
	b.bytes -= e.size()
	b.stats.Entities--
}

// update is what the hook is told.
func (w *write) update(r *request, typ string, now time.Time) Update {
	u := Update{API: "ngsi-v2", Tenant: r.tenant, ServicePath: r.paths[0], ID: w.id, Type: typ, At: now}
	for i := range w.attrs {
		a := &w.attrs[i]
		out := Attr{Name: a.name, Value: string(appendJSON(nil, a.value, true))}
		if unit, ok := a.meta("unitCode"); ok {
			out.Unit, _ = unit.(string)
		}
		if at, ok := a.meta("TimeInstant"); ok {
			if t, ok := at.(instant); ok {
				out.Time = t.String()
			}
		}
		u.Attrs = append(u.Attrs, out)
	}
	return u
}

func merged(old, sent []datum) []datum {
	data := slices.Clone(sent)
	for _, d := range old {
		if !slices.ContainsFunc(sent, func(s datum) bool { return s.name == d.name }) {
			data = append(data, d)
		}
	}
	slices.SortFunc(data, func(x, y datum) int { return strings.Compare(x.name, y.name) })
	return data
}

func equalJSON(x, y any) bool {
	return bytes.Equal(appendJSON(nil, x, true), appendJSON(nil, y, true))
}

func equalMetadata(x, y []datum) bool {
	return slices.EqualFunc(x, y, func(a, b datum) bool { return a.name == b.name && a.typ == b.typ && equalJSON(a.value, b.value) })
}

// --- one entity ---

var (
	noEntity    = &refusal{http.StatusNotFound, "NotFound", "The requested entity has not been found. Check type and id"}
	noAttribute = &refusal{http.StatusNotFound, "NotFound", "The entity does not have such an attribute"}
)

// one returns a copy of the entity that a URL names.
func (b *Broker) one(r *request, id string) (entity, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := b.look(r.tenant).match(r.paths, id, r.query["type"])
	switch len(found) {
	case 0:
		return entity{}, noEntity
	case 1:
		return *found[0], nil // attrs are never changed in place
	}
	return entity{}, tooMany
}

func (b *Broker) getEntity(r *request, parts []string) (*reply, error) {
	e, err := b.one(r, parts[2])
	if err != nil {
		return nil, err
	}
	return &reply{status: 200, body: e.render(nil, splitList(r.query["attrs"]), r.options, len(parts) == 3)}, nil
}

func (b *Broker) deleteEntity(r *request, parts []string) (*reply, error) {
	err := b.apply(r, "delete", []write{{id: parts[2], typ: r.query["type"]}})
	return &reply{status: 204}, plainNotFound(err)
}

// plainNotFound gives the words that Orion has where a URL names the entity.
func plainNotFound(err error) error {
	var no *refusal
	if errors.As(err, &no) && no.status == http.StatusNotFound {
		return noEntity
	}
	return err
}

// writeAttrs adds (POST), changes (PATCH) or replaces (PUT) attributes.
func (b *Broker) writeAttrs(r *request, parts []string) (*reply, error) {
	body, err := parseBody(r.body)
	if err != nil {
		return nil, err
	}
	attrs, err := parseAttrs(body, r.options["keyValues"])
	if err != nil {
		return nil, err
	}
	if _, err := b.one(r, parts[2]); err != nil {
		return nil, err
	}
	action := map[string]string{"POST": "append", "PATCH": "update", "PUT": "replace"}[r.method]
	if r.method == "POST" && r.options["append"] {
		action = "appendstrict"
	}
	err = b.apply(r, action, []write{{id: parts[2], typ: r.query["type"], attrs: attrs}})
	return &reply{status: 204}, plainNotFound(err)
}

func (b *Broker) getAttr(r *request, parts []string) (*reply, error) {
	e, err := b.one(r, parts[2])
	if err != nil {
		return nil, err
	}
	i, ok := e.find(parts[4])
	if !ok {
		return nil, noAttribute
	}
	a := &e.attrs[i]
	if len(parts) == 5 {
		return &reply{status: 200, body: a.render(nil)}, nil
	}
	body := appendJSON(nil, a.value, true)
	switch a.value.(type) {
	case object, []any:
		return &reply{status: 200, body: body}, nil
	}
	if !r.acceptText {
		return nil, &refusal{http.StatusNotAcceptable, "NotAcceptable", "acceptable MIME types: text/plain"}
	}
	return &reply{status: 200, body: body, text: true}, nil
}

// putAttr changes one attribute, or its value alone.
func (b *Broker) putAttr(r *request, parts []string) (*reply, error) {
	e, err := b.one(r, parts[2])
	if err != nil {
		return nil, err
	}
	i, ok := e.find(parts[4])
	if !ok {
		return nil, noAttribute
	}
	v, err := parseJSON(r.body)
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, "ParseError", "Errors found in incoming JSON buffer"}
	}
	var a attr
	if len(parts) == 6 {
		a = attr{typ: e.attrs[i].typ, value: v}
		if _, isObject := v.(object); !r.plain && !isObject {
			if _, isArray := v.([]any); !isArray {
				return nil, bad("not a JSON object or array: send a number, a string or a boolean as text/plain")
			}
		}
		err = a.check()
	} else {
		a, err = parseAttr(v, false)
	}
	if err != nil {
		return nil, err
	}
	a.name = parts[4]
	err = b.apply(r, "update", []write{{id: e.id, typ: e.typ, attrs: []attr{a}}})
	return &reply{status: 204}, plainNotFound(err)
}

func (b *Broker) deleteAttr(r *request, parts []string) (*reply, error) {
	e, err := b.one(r, parts[2])
	if err != nil {
		return nil, err
	}
	if _, ok := e.find(parts[4]); !ok {
		return nil, noAttribute
	}
	err = b.apply(r, "delete", []write{{id: e.id, typ: e.typ, attrs: []attr{{name: parts[4]}}}})
	return &reply{status: 204}, plainNotFound(err)
}

// --- many entities ---

// selector is which entities a query or a subscription means.
type selector struct {
	ids, types             []string
	idPattern, typePattern *regexp.Regexp
}

func (s *selector) matches(id, typ string) bool {
	return (len(s.ids) == 0 || slices.Contains(s.ids, id)) && (len(s.types) == 0 || slices.Contains(s.types, typ)) &&
		(s.idPattern == nil || s.idPattern.MatchString(id)) && (s.typePattern == nil || s.typePattern.MatchString(typ))
}

func newSelector(id, idPattern, typ, typePattern string) (s selector, err error) {
	if id != "" && idPattern != "" {
		return s, bad("Incompatible parameters: id, IdPattern")
	}
	if typ != "" && typePattern != "" {
		return s, bad("Incompatible parameters: type, typePattern")
	}
	s.ids, s.types = splitList(id), splitList(typ)
	if idPattern != "" {
		if s.idPattern, err = regexp.Compile(idPattern); err != nil {
			return s, bad("Invalid regex for entity id pattern")
		}
	}
	if typePattern != "" {
		if s.typePattern, err = regexp.Compile(typePattern); err != nil {
			return s, bad("Invalid regex for entity type pattern")
		}
	}
	return s, nil
}

// maxSelectors is how many elements the list of entities of a subscription has.
const maxSelectors = 100

// parseSelectors reads the list of entities of a query or a subscription.
func parseSelectors(v any, most int) ([]selector, error) {
	list, ok := v.([]any)
	if !ok || len(list) == 0 || len(list) > most {
		return nil, bad("entities is not a list of 1 to %d elements", most)
	}
	var all []selector
	for _, x := range list {
		o, ok := x.(object)
		if !ok {
			return nil, bad("element of entities is not a JSON object")
		}
		for _, m := range o {
			if _, ok := m.value.(string); !ok || !slices.Contains([]string{"id", "idPattern", "type", "typePattern"}, m.name) {
				return nil, bad("bad field in element of entities: /%s/", m.name)
			}
		}
		if o.str("id") == "" && o.str("idPattern") == "" {
			return nil, bad("nor /id/ nor /idPattern/ present")
		}
		s, err := newSelector("", o.str("idPattern"), "", o.str("typePattern"))
		if err != nil {
			return nil, err
		}
		if id := o.str("id"); id != "" {
			s.ids = []string{id}
		}
		if typ := o.str("type"); typ != "" {
			s.types = []string{typ}
		}
		all = append(all, s)
	}
	return all, nil
}

func splitList(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func (r *request) paging() (limit, offset int, err error) {
	limit = 20
	for name, p := range map[string]*int{"limit": &limit, "offset": &offset} {
		s, given := r.query[name]
		if !given {
			continue
		}
		n, err := strconv.ParseUint(s, 10, 31)
		if err != nil {
			return 0, 0, bad("Bad pagination %s: /%s/ [must be a decimal number]", name, s)
		}
		*p = int(n)
	}
	if limit > 1000 {
		return 0, 0, bad("Bad pagination limit: /%d/ [max: 1000]", limit)
	}
	if limit == 0 {
		return 0, 0, bad("Bad pagination limit: /0/ [a value of ZERO is unacceptable]")
	}
	return limit, offset, nil
}

func (b *Broker) listEntities(r *request, _ []string) (*reply, error) {
	s, err := newSelector(r.query["id"], r.query["idPattern"], r.query["type"], r.query["typePattern"])
	if err != nil {
		return nil, err
	}
	return b.list(r, []selector{s}, r.query["q"], splitList(r.query["attrs"]))
}

func (b *Broker) opQuery(r *request, _ []string) (*reply, error) {
	body, err := parseBody(r.body)
	if err != nil {
		return nil, err
	}
	selectors, attrs, q := []selector{{}}, []string(nil), ""
	for _, m := range body {
		switch m.name {
		case "entities":
			selectors, err = parseSelectors(m.value, 1000)
		case "attrs":
			attrs, err = stringList(m)
		case "expression":
			q, err = onlyQ(m.value)
		default:
			err = unsupported("/" + m.name + "/ in a query")
		}
		if err != nil {
			return nil, err
		}
	}
	return b.list(r, selectors, q, attrs)
}

func stringList(m member) ([]string, error) {
	list, ok := m.value.([]any)
	if !ok {
		return nil, bad("/%s/ is not a JSON array", m.name)
	}
	names := []string{}
	for _, v := range list {
		s, ok := v.(string)
		if !ok {
			return nil, bad("/%s/ has an element that is not a string", m.name)
		}
		names = append(names, s)
	}
	return names, nil
}

// onlyQ reads an expression, of which the sandbox does q alone.
func onlyQ(v any) (string, error) {
	o, ok := v.(object)
	if !ok {
		return "", bad("expression is not a JSON object")
	}
	for _, m := range o {
		if _, ok := m.value.(string); m.name != "q" || !ok {
			return "", unsupported("/" + m.name + "/ in an expression")
		}
	}
	return o.str("q"), nil
}

func (b *Broker) list(r *request, selectors []selector, q string, attrs []string) (*reply, error) {
	limit, offset, err := r.paging()
	if err != nil {
		return nil, err
	}
	filter, err := parseFilter(q)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []*entity
	for _, e := range b.look(r.tenant).entities {
		if onPath(e.path, r.paths) && filter.passes(e.valueOf) &&
			slices.ContainsFunc(selectors, func(s selector) bool { return s.matches(e.id, e.typ) }) {
			found = append(found, e)
		}
	}
	rep := &reply{status: 200, body: []byte{'['}}
	if r.options["count"] {
		rep.headers = map[string]string{"Fiware-Total-Count": strconv.Itoa(len(found))}
	}
	for i, e := range page(found, offset, limit) {
		if i > 0 {
			rep.body = append(rep.body, ',')
		}
		rep.body = e.render(rep.body, attrs, r.options, true)
	}
	rep.body = append(rep.body, ']')
	return rep, nil
}

// valueOf gives a filter the value of an attribute.
func (e *entity) valueOf(name string) (any, bool) {
	if a, ok := e.pick(name); ok {
		return a.value, true
	}
	return nil, false
}

// pick returns an attribute, or one of the two that the broker itself knows.
func (e *entity) pick(name string) (*attr, bool) {
	switch name {
	case "dateCreated":
		return &attr{name: name, typ: "DateTime", value: instant(e.created.UnixMilli())}, true
	case "dateModified":
		return &attr{name: name, typ: "DateTime", value: instant(e.modified.UnixMilli())}, true
	}
	if i, ok := e.find(name); ok {
		return &e.attrs[i], true
	}
	return nil, false
}

// render writes the entity: all attributes, or those asked for in that order.
func (e *entity) render(dst []byte, names []string, options map[string]bool, withID bool) []byte {
	var attrs []*attr
	for _, name := range names {
		if a, ok := e.pick(name); ok && name != "*" {
			attrs = append(attrs, a)
		}
	}
	if len(names) == 0 || slices.Contains(names, "*") {
		for i := range e.attrs {
			if !slices.Contains(names, e.attrs[i].name) {
				attrs = append(attrs, &e.attrs[i])
			}
		}
	}
	if options["values"] || options["unique"] {
		values := []any{}
		for _, a := range attrs {
			values = append(values, a.value)
		}
		if options["unique"] {
			seen := map[string]bool{}
			values = slices.DeleteFunc(values, func(v any) bool {
				text := string(appendJSON(nil, v, true))
				defer func() { seen[text] = true }()
				return seen[text]
			})
		}
		return appendJSON(dst, values, true)
	}
	dst = append(dst, '{')
	if withID {
		dst = appendString(append(dst, `"id":`...), e.id)
		dst = appendString(append(dst, `,"type":`...), e.typ)
	}
	for i, a := range attrs {
		if withID || i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendString(dst, a.name), ':')
		if options["keyValues"] {
			dst = appendJSON(dst, a.value, true)
		} else {
			dst = a.render(dst)
		}
	}
	return append(dst, '}')
}

func (a *attr) render(dst []byte) []byte {
	dst = appendString(append(dst, `{"type":`...), a.typ)
	dst = appendJSON(append(dst, `,"value":`...), a.value, true)
	dst = append(dst, `,"metadata":{`...)
	for i, d := range a.metadata {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendString(dst, d.name), `:{"type":`...)
		dst = appendString(dst, d.typ)
		dst = append(appendJSON(append(dst, `,"value":`...), d.value, true), '}')
	}
	return append(dst, `}}`...)
}
