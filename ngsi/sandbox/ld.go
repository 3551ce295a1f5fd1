package sandbox

import (
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

// The NGSI-LD part. Section numbers are those of ETSI GS CIM 009 V1.8.1.

const coreContext = "https://uri.etsi.org/ngsi-ld/v1/ngsi-ld-core-context.jsonld"

// ldEntity is an entity of NGSI-LD, with the short names it was sent with.
type ldEntity struct {
	id                string
	types             []string
	attrs             []ldAttr // in the order in which they came
	context           any      // its @context: a URL, or what stood in the body
	created, modified time.Time
}

// ldAttr is an attribute: an object, or an array of objects with a datasetId
// each, which is kept and replaced as a whole.
type ldAttr struct {
	name              string
	value             any
	created, modified time.Time
}

// problem is an error answer (5.5.2).
type problem struct {
	status              int
	kind, title, detail string
}

func (p *problem) object() object {
	return object{{"type", "https://uri.etsi.org/ngsi-ld/errors/" + p.kind}, {"title", p.title}, {"detail", p.detail}, {"status", p.status}}
}

func badData(format string, args ...any) *problem {
	return &problem{http.StatusBadRequest, "BadRequestData", "Invalid payload", fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) *problem {
	return &problem{http.StatusBadRequest, "InvalidRequest", "Invalid request", fmt.Sprintf(format, args...)}
}

func notFound(what string) *problem {
	return &problem{http.StatusNotFound, "ResourceNotFound", "Not found", what}
}

func fullUp(why string) *problem {
	return &problem{http.StatusInternalServerError, "InternalError", "Full", why}
}

// ldRequest is one call of NGSI-LD after its headers have been read.
type ldRequest struct {
	tenant  string
	link    string // URL of the Link header's @context, or ""
	ldJSON  bool   // the body is application/ld+json
	wantsLD bool   // so shall the answer be
	query   map[string]string
	options map[string]bool
	body    []byte
	method  string
	most    int // of a page
}

// ldReply is a good answer.
type ldReply struct {
	status  int
	body    any // a JSON value; nil: none
	context any // of the entities in it; nil: none
	headers map[string]string
}

type ldCall = func(b *Broker, r *ldRequest, parts []string) (*ldReply, *problem)

// ldRoutes has a narrower pattern after a wider one.
var ldRoutes = []struct {
	pattern string
	methods map[string]ldCall
}{
	{"v1/entityOperations/*", map[string]ldCall{"POST": (*Broker).ldBatch}},
	{"v1/entityOperations/query", map[string]ldCall{"POST": (*Broker).ldQuery}},
	{"v1/temporal/entities", map[string]ldCall{"GET": (*Broker).ldListTemporal, "POST": (*Broker).ldPostTemporal}},
	{"v1/temporal/entities/*", map[string]ldCall{"GET": (*Broker).ldGetTemporal}},
	{"v1/entities", map[string]ldCall{"GET": (*Broker).ldList, "POST": (*Broker).ldCreate}},
	{"v1/entities/*", map[string]ldCall{"GET": (*Broker).ldGet, "DELETE": (*Broker).ldDelete}},
	{"v1/entities/*/attrs", map[string]ldCall{"POST": (*Broker).ldWriteAttrs, "PATCH": (*Broker).ldWriteAttrs}},
	{"v1/entities/*/attrs/*", map[string]ldCall{"DELETE": (*Broker).ldDeleteAttr}},
	{"v1/subscriptions", map[string]ldCall{"GET": (*Broker).ldListSubscriptions, "POST": (*Broker).ldCreateSubscription}},
	{"v1/subscriptions/*", map[string]ldCall{
		"GET": (*Broker).ldGetSubscription, "PATCH": (*Broker).ldPatchSubscription, "DELETE": (*Broker).ldDeleteSubscription}},
}

// serveLD answers one call of NGSI-LD.
func (b *Broker) serveLD(w http.ResponseWriter, hr *http.Request, parts []string) {
	r := &ldRequest{method: hr.Method, most: 1000}
	if b.opts.Like == Stellio {
		r.most = 100 // stellio-context-broker issue 1137
	}
	rep, no := b.callLD(w, hr, r, parts)
	if no != nil {
		answer(w, no.status, "application/json", appendJSON(nil, no.object(), false))
		return
	}
	for name, value := range rep.headers {
		w.Header().Set(name, value)
	}
	if r.tenant != "" && rep.status != http.StatusNoContent {
		w.Header().Set("NGSILD-Tenant", r.tenant)
	}
	if rep.body == nil {
		answer(w, rep.status, "", nil)
		return
	}
	contentType := "application/json"
	if rep.context != nil && r.wantsLD {
		contentType = "application/ld+json"
		switch body := rep.body.(type) {
		case object:
			rep.body = append(slices.Clip(body), member{"@context", rep.context})
		case []any:
			for i := range body {
				body[i] = append(slices.Clip(body[i].(object)), member{"@context", rep.context})
			}
		}
	} else if rep.context != nil {
		w.Header().Set("Link", linkHeader(rep.context))
	}
	answer(w, rep.status, contentType, appendJSON(nil, rep.body, false))
}

// linkHeader names a @context; one that stood in a body has no URL to name.
func linkHeader(context any) string {
	target, _ := context.(string)
	if !uriForm.MatchString(target) {
		target = coreContext
	}
	return `<` + target + `>; rel="http://www.w3.org/ns/json-ld#context"; type="application/ld+json"`
}

var linkForm = regexp.MustCompile(`^\s*<([^<>\s]+)>\s*;.*rel\s*=\s*"?http://www\.w3\.org/ns/json-ld#context"?`)

func (b *Broker) callLD(w http.ResponseWriter, hr *http.Request, r *ldRequest, parts []string) (*ldReply, *problem) {
	rt := -1
	for i := range ldRoutes {
		if (&route{pattern: ldRoutes[i].pattern}).matches(parts) {
			rt = i
		}
	}
	if rt < 0 {
		return nil, notFound("no such address")
	}
	do := ldRoutes[rt].methods[hr.Method]
	if do == nil {
		var allow []string
		for m := range ldRoutes[rt].methods {
			allow = append(allow, m)
		}
		slices.Sort(allow)
		w.Header().Set("Allow", strings.Join(allow, ", "))
		return nil, &problem{http.StatusMethodNotAllowed, "InvalidRequest", "Method not allowed", hr.Method + " is not allowed here"}
	}
	if accept := hr.Header.Get("Accept"); accept != "" && !strings.Contains(accept, "json") && !strings.Contains(accept, "*/*") && !strings.Contains(accept, "application/*") {
		return nil, &problem{http.StatusNotAcceptable, "InvalidRequest", "Not acceptable", "application/json or application/ld+json"}
	} else if strings.HasPrefix(accept, "application/ld+json") {
		r.wantsLD = true
	}
	tenant := hr.Header.Get("NGSILD-Tenant")
	if tenant == "" {
		tenant = hr.Header.Get("Fiware-Service") // as Orion-LD
	}
	var why string
	if r.tenant, why = tenantName(tenant); why != "" {
		return nil, badRequest("%s", why)
	}
	if link := hr.Header.Get("Link"); link != "" {
		m := linkForm.FindStringSubmatch(link)
		if m == nil {
			return nil, badRequest("the Link header does not name a @context")
		}
		if u, err := url.Parse(m[1]); err != nil || u.Scheme != "http" && u.Scheme != "https" {
			return nil, badRequest("the Link header does not name an http URL")
		}
		r.link = m[1]
	}
	r.query, r.options = parseQuery(hr.URL.RawQuery), map[string]bool{}
	for _, option := range append(splitList(r.query["options"]), splitList(r.query["format"])...) {
		r.options[option] = true
	}
	for _, name := range []string{"georel", "geometry", "coordinates", "scopeQ", "csf", "lang"} {
		if _, given := r.query[name]; given {
			return nil, &problem{http.StatusNotImplemented, "OperationNotSupported", "Not supported", "the sandbox broker does not do ?" + name}
		}
	}
	if hr.ContentLength > b.opts.MaxBody {
		w.Header().Set("Connection", "close") // the body is not read
		return nil, &problem{http.StatusRequestEntityTooLarge, "InvalidRequest", "Payload too large",
			fmt.Sprintf("payload size: %d, max size supported: %d", hr.ContentLength, b.opts.MaxBody)}
	}
	if hr.Method == "POST" || hr.Method == "PATCH" {
		if hr.ContentLength <= 0 { // -1: chunked
			return nil, &problem{http.StatusLengthRequired, "InvalidRequest", "Length required", "Zero/No Content-Length in PUT/POST/PATCH request"}
		}
		switch contentType, _, _ := strings.Cut(hr.Header.Get("Content-Type"), ";"); strings.TrimSpace(contentType) {
		case "application/json":
		case "application/ld+json":
			r.ldJSON = true
			if r.link != "" { // 6.3.5
				return nil, badRequest("a Link header and a body of application/ld+json exclude each other")
			}
		default:
			return nil, &problem{http.StatusUnsupportedMediaType, "InvalidRequest", "Unsupported media type", "application/json or application/ld+json"}
		}
		var err error
		if r.body, err = io.ReadAll(hr.Body); err != nil { // as long as Content-Length says, which is bounded above
			return nil, badRequest("the body ended early: %s", err)
		}
	}
	return do(b, r, parts[1:])
}

// --- reading entities ---

var uriForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:[^\s<>"{}|\\^` + "`" + `]+$`)

// takeContext takes the @context out of a body, by the rule of 6.3.5.
func (r *ldRequest) takeContext(o object) (object, any, *problem) {
	context, given := o.get("@context")
	if given != r.ldJSON {
		if given {
			return nil, nil, badData("@context in a body of application/json: send application/ld+json, or a Link header")
		}
		return nil, nil, badData("no @context in a body of application/ld+json")
	}
	if given {
		return slices.DeleteFunc(slices.Clone(o), func(m member) bool { return m.name == "@context" }), context, nil
	}
	if r.link != "" {
		return o, r.link, nil
	}
	return o, coreContext, nil
}

// parseEntity reads one entity; if it is bad the problem comes with its id as
// far as it is known.
func (r *ldRequest) parseEntity(v any, needsType bool) (*ldEntity, *problem) {
	e := &ldEntity{}
	o, ok := v.(object)
	if !ok {
		return e, badData("an entity is not a JSON object")
	}
	e.id = o.str("id")
	if name := o.repeated(); name != "" {
		return e, badData("duplicated name %q", name)
	}
	o, context, no := r.takeContext(o)
	if no != nil {
		return e, no
	}
	e.context = context
	if len(o) > maxAttrs {
		return e, badData("%s", tooManyAttrs)
	}
	if !uriForm.MatchString(e.id) {
		return e, badData("entity id must be a URI")
	}
	for _, m := range o {
		switch m.name {
		case "id", "createdAt", "modifiedAt":
		case "type":
			switch typ := m.value.(type) {
			case string:
				e.types = []string{typ}
			case []any:
				var err error
				if e.types, err = stringList(m); err != nil {
					return e, badData("%s", err)
				}
			}
			if len(e.types) == 0 || len(e.types) > 10 || slices.Contains(e.types, "") {
				return e, badData("entity type must be a string or an array of 1 to 10 strings")
			}
		case "scope":
			return e, badData("the sandbox broker does not do scopes")
		default:
			a, no := parseLDAttr(m)
			if no != nil {
				return e, no
			}
			e.attrs = append(e.attrs, a)
		}
	}
	if needsType && len(e.types) == 0 {
		return e, badData("entity type is missing")
	}
	return e, nil
}

func parseLDAttr(m member) (ldAttr, *problem) {
	a := ldAttr{name: m.name, value: m.value}
	if m.name == "" || strings.ContainsAny(m.name, " \t\r\n<>\"'=;()") {
		return a, badData("attribute name %q has a forbidden character", m.name)
	}
	instances, isArray := m.value.([]any)
	if !isArray {
		return a, checkLDAttr(m.name, m.value)
	}
	if len(instances) == 0 {
		return a, badData("attribute %q is an empty array", m.name)
	}
	seen := map[string]bool{}
	for _, v := range instances {
		if no := checkLDAttr(m.name, v); no != nil {
			return a, no
		}
		id := v.(object).str("datasetId")
		if seen[id] {
			return a, badData("attribute %q has two instances with one datasetId", m.name)
		}
		seen[id] = true
	}
	return a, nil
}

var geometries = []string{"Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon"}

// checkLDAttr checks one instance of an attribute, and its sub-attributes (4.5).
func checkLDAttr(name string, v any) *problem {
	o, ok := v.(object)
	if !ok {
		return badData("attribute %q must be an object with type (the sandbox broker does not take the concise form)", name)
	}
	if twice := o.repeated(); twice != "" {
		return badData("duplicated name %q in attribute %q", twice, name)
	}
	content := ""
	switch kind := o.str("type"); kind {
	case "Property", "GeoProperty":
		content = "value"
	case "Relationship":
		content = "object"
	case "LanguageProperty":
		content = "languageMap"
	case "JsonProperty":
		content = "json"
	default:
		return badData("attribute %q has the unknown type %q", name, kind)
	}
	is, given := o.get(content)
	if !given || is == nil {
		return badData("attribute %q has no %s", name, content)
	}
	for _, m := range o {
		text, isString := m.value.(string)
		sub, isObject := m.value.(object)
		switch m.name {
		case "type", "createdAt", "modifiedAt":
		case "value":
			if o.str("type") == "GeoProperty" {
				coordinates, _ := sub.get("coordinates")
				if _, isArray := coordinates.([]any); !isArray || !slices.Contains(geometries, sub.str("type")) {
					return badData("attribute %q is not a GeoJSON geometry", name)
				}
			}
		case "object":
			targets, isArray := m.value.([]any)
			if !isArray {
				targets = []any{m.value}
			}
			for _, target := range targets {
				if s, _ := target.(string); !uriForm.MatchString(s) {
					return badData("attribute %q: the object of a relationship must be a URI", name)
				}
			}
		case "languageMap", "json":
			if m.name == "languageMap" && !isObject {
				return badData("attribute %q: languageMap is not an object", name)
			}
		case "observedAt":
			if _, err := time.Parse(time.RFC3339Nano, text); err != nil || !strings.HasSuffix(text, "Z") {
				return badData("attribute %q: observedAt must be a date-time in UTC (2006-01-02T15:04:05.000Z)", name)
			}
		case "unitCode":
			if !isString || text == "" {
				return badData("attribute %q: unitCode must be a string", name)
			}
		case "datasetId":
			if !uriForm.MatchString(text) {
				return badData("attribute %q: datasetId must be a URI", name)
			}
		default:
			if no := checkLDAttr(name+"."+m.name, m.value); no != nil {
				return no
			}
		}
	}
	return nil
}

func (r *ldRequest) parseArray() ([]any, *problem) {
	v, no := r.parse()
	if no != nil {
		return nil, no
	}
	list, ok := v.([]any)
	if !ok {
		return nil, badData("the body is not a JSON array")
	}
	if len(list) == 0 {
		return nil, badData("the array is empty")
	}
	return list, nil
}

func (r *ldRequest) parse() (any, *problem) {
	v, err := parseJSON(r.body)
	if err != nil {
		return nil, badRequest("the body is not JSON: %s", err)
	}
	if depthOf(v) > maxValueDepth+10 {
		return nil, badData("nested too deep")
	}
	return v, nil
}

// --- writing ---

// how an entity is written where one is there already.
type ldMode int

const (
	ldKeepOld ldMode = iota // add what is new, leave what is there
	ldMerge                 // add and overwrite attributes
	ldReplace               // drop the old attributes
)

func (e *ldEntity) find(name string) int {
	return slices.IndexFunc(e.attrs, func(a ldAttr) bool { return a.name == name })
}

// ldPut makes or changes an entity. Called with mu held.
func (b *Broker) ldPut(tenantName string, sent *ldEntity, mode ldMode) (created bool, no *problem) {
	now := b.opts.Now()
	old := b.look(tenantName).ldByID[sent.id]
	e := &ldEntity{id: sent.id, types: sent.types, created: now, context: sent.context}
	if old != nil {
		*e = *old
		e.context = sent.context
		e.attrs = slices.Clone(old.attrs)
		if mode == ldReplace {
			e.attrs, e.types = nil, sent.types
		}
		for _, typ := range sent.types {
			if !slices.Contains(e.types, typ) {
				e.types = append(slices.Clip(e.types), typ)
			}
		}
	}
	e.modified = now
	var changed []string
	for _, a := range sent.attrs {
		a.created, a.modified = now, now
		i := e.find(a.name)
		switch {
		case i < 0:
			e.attrs = append(e.attrs, a)
		case mode == ldKeepOld:
			continue
		default:
			a.created = e.attrs[i].created
			e.attrs[i] = a
		}
		changed = append(changed, a.name)
	}
	if len(e.attrs) > maxAttrs || len(e.types) > 10 {
		return false, badData("%s, and 10 types", tooManyAttrs)
	}
	bytes, more := e.size(), 1
	if old != nil {
		bytes, more = bytes-old.size(), 0
	}
	if why := b.full(more, bytes); why != "" {
		return false, fullUp(why)
	}
	b.bytes += bytes
	b.stats.Updates++
	if old != nil {
		*old = *e
	} else {
		t := b.tenant(tenantName)
		t.ld = append(t.ld, e)
		t.ldByID[e.id] = e
		b.stats.Entities++
	}
	for _, a := range sent.attrs {
		if slices.Contains(changed, a.name) {
			instances, isArray := a.value.([]any)
			if !isArray {
				instances = []any{a.value}
			}
			b.record(tenantName, e, a.name, instances)
		}
	}
	if len(changed) > 0 || old == nil {
		b.notifyLD(tenantName, e, changed)
	}
	return old == nil, nil
}

func (e *ldEntity) size() int {
	n := 300 + len(e.id) + sizeOf(e.context)
	for _, typ := range e.types {
		n += 16 + len(typ)
	}
	for _, a := range e.attrs {
		n += 100 + len(a.name) + sizeOf(a.value)
	}
	return n
}

// ldRemove deletes an entity. Called with mu held.
func (b *Broker) ldRemove(tenantName, id string) *problem {
	e := b.look(tenantName).ldByID[id]
	if e == nil {
		return notFound("no entity " + id)
	}
	t := b.tenant(tenantName)
	delete(t.ldByID, id)
	t.ld = slices.DeleteFunc(t.ld, func(other *ldEntity) bool { return other == e })
	b.bytes -= e.size()
	b.stats.Entities--
	return nil
}

func (e *ldEntity) update(tenantName string, now time.Time) Update {
	u := Update{API: "ngsi-ld", Tenant: tenantName, ID: e.id, Type: strings.Join(e.types, ","), At: now}
	for _, a := range e.attrs {
		out := Attr{Name: a.name, Value: string(appendJSON(nil, content(a.value), false))}
		if o, ok := a.value.(object); ok {
			out.Unit, out.Time = o.str("unitCode"), o.str("observedAt")
		}
		u.Attrs = append(u.Attrs, out)
	}
	return u
}

// ldBatch is POST /entityOperations/{create,upsert,update,delete} (5.6.7 to
// 5.6.10). One id may come several times: in order.
func (b *Broker) ldBatch(r *ldRequest, parts []string) (*ldReply, *problem) {
	operation := parts[1]
	if !slices.Contains([]string{"create", "upsert", "update", "delete"}, operation) {
		return nil, notFound("the sandbox broker does not do /entityOperations/" + operation)
	}
	mode := ldReplace
	switch {
	case operation == "update" && r.options["noOverwrite"]:
		mode = ldKeepOld
	case operation == "update", r.options["update"]:
		mode = ldMerge
	}
	list, no := r.parseArray()
	if no != nil {
		return nil, no
	}
	var updates []Update
	defer func() { b.tell(updates) }()
	b.mu.Lock()
	defer b.mu.Unlock()
	success, created := []any{}, []any{}
	list, failures := b.peculiar(list)
	for _, v := range list {
		id, isNew, no := "", false, (*problem)(nil)
		if operation == "delete" {
			id, _ = v.(string)
			no = b.ldRemove(r.tenant, id)
		} else {
			var e *ldEntity
			e, no = r.parseEntity(v, operation != "update")
			exists := b.look(r.tenant).ldByID[e.id] != nil
			switch id = e.id; {
			case no != nil:
			case operation == "create" && exists:
				no = &problem{http.StatusConflict, "AlreadyExists", "Already exists", "there is an entity " + id}
			case operation == "update" && !exists:
				no = notFound("no entity " + id)
			default:
				if isNew, no = b.ldPut(r.tenant, e, mode); no == nil {
					updates = append(updates, e.update(r.tenant, b.opts.Now()))
				}
			}
		}
		if no != nil {
			failures = append(failures, object{{"entityId", id}, {"error", no.object()}})
			continue
		}
		success = append(success, id)
		if isNew {
			created = append(created, id)
		}
	}
	switch {
	case len(failures) > 0 && b.opts.Like == Scorpio:
		return &ldReply{status: http.StatusMultiStatus, body: scorpioResult(success, failures)}, nil
	case len(failures) > 0:
		return &ldReply{status: http.StatusMultiStatus, body: object{{"success", success}, {"errors", failures}}}, nil
	case b.opts.Like == Scorpio && len(created) > 0 && len(created) < len(success): // ScorpioBroker issue 329
		return &ldReply{status: http.StatusMultiStatus}, nil
	case len(created) > 0:
		return &ldReply{status: http.StatusCreated, body: created}, nil
	}
	return &ldReply{status: http.StatusNoContent}, nil
}

func (b *Broker) ldCreate(r *ldRequest, _ []string) (*ldReply, *problem) {
	v, no := r.parse()
	if no != nil {
		return nil, no
	}
	e, no := r.parseEntity(v, true)
	if no != nil {
		return nil, no
	}
	var updates []Update
	defer func() { b.tell(updates) }()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.look(r.tenant).ldByID[e.id] != nil {
		return nil, &problem{http.StatusConflict, "AlreadyExists", "Already exists", "there is an entity " + e.id}
	}
	if _, no := b.ldPut(r.tenant, e, ldReplace); no != nil {
		return nil, no
	}
	updates = append(updates, e.update(r.tenant, b.opts.Now()))
	return &ldReply{status: http.StatusCreated, headers: map[string]string{"Location": "/ngsi-ld/v1/entities/" + url.PathEscape(e.id)}}, nil
}

// ldWriteAttrs adds (POST, 5.6.3) or changes (PATCH, 5.6.2) attributes.
func (b *Broker) ldWriteAttrs(r *ldRequest, parts []string) (*ldReply, *problem) {
	v, no := r.parse()
	if no != nil {
		return nil, no
	}
	o, ok := v.(object)
	if !ok {
		return nil, badData("the body is not a JSON object")
	}
	id := parts[1]
	o = slices.DeleteFunc(slices.Clone(o), func(m member) bool { return m.name == "id" })
	e, no := r.parseEntity(append(object{{"id", id}}, o...), false)
	if no != nil {
		return nil, no
	}
	mode := ldMerge
	if r.method == "POST" && r.options["noOverwrite"] {
		mode = ldKeepOld
	}
	var updates []Update
	defer func() { b.tell(updates) }()
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.look(r.tenant).ldByID[id]
	if old == nil {
		return nil, notFound("no entity " + id)
	}
	var done, not []any
	e.attrs = slices.DeleteFunc(e.attrs, func(a ldAttr) bool {
		exists := old.find(a.name) >= 0
		refused := r.method == "PATCH" && !exists || mode == ldKeepOld && exists
		if refused {
			reason := "the entity has no such attribute"
			if exists {
				reason = "the attribute exists, and noOverwrite is set"
			}
			not = append(not, object{{"attributeName", a.name}, {"reason", reason}})
		} else {
			done = append(done, a.name)
		}
		return refused
	})
	if len(done) > 0 {
		if _, no := b.ldPut(r.tenant, e, mode); no != nil {
			return nil, no
		}
		e.types = old.types
		updates = append(updates, e.update(r.tenant, b.opts.Now()))
	}
	if len(not) > 0 {
		return &ldReply{status: http.StatusMultiStatus, body: object{{"updated", append([]any{}, done...)}, {"notUpdated", not}}}, nil
	}
	return &ldReply{status: http.StatusNoContent}, nil
}

func (b *Broker) ldDelete(r *ldRequest, parts []string) (*ldReply, *problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &ldReply{status: http.StatusNoContent}, b.ldRemove(r.tenant, parts[1])
}

func (b *Broker) ldDeleteAttr(r *ldRequest, parts []string) (*ldReply, *problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.look(r.tenant).ldByID[parts[1]]
	if e == nil {
		return nil, notFound("no entity " + parts[1])
	}
	i := e.find(parts[3])
	if i < 0 {
		return nil, notFound("the entity has no attribute " + parts[3])
	}
	b.bytes -= e.size()
	e.attrs = append(slices.Clone(e.attrs[:i]), e.attrs[i+1:]...)
	b.bytes += e.size()
	return &ldReply{status: http.StatusNoContent}, nil
}

// --- reading ---

// content is what an attribute says: its value, object, map, or JSON.
func content(v any) any {
	switch v := v.(type) {
	case []any:
		all := []any{}
		for _, x := range v {
			all = append(all, content(x))
		}
		return all
	case object:
		for _, name := range []string{"value", "object", "languageMap", "json"} {
			if is, ok := v.get(name); ok {
				return is
			}
		}
	}
	return nil
}

func (e *ldEntity) valueOf(name string) (any, bool) {
	i := e.find(name)
	if i < 0 {
		return nil, false
	}
	return content(e.attrs[i].value), true
}

func (e *ldEntity) render(names []string, options map[string]bool) object {
	o := object{{"id", e.id}, {"type", e.types[0]}}
	if len(e.types) > 1 {
		o[1].value = anyList(e.types)
	}
	stamps := func(created, modified time.Time) object {
		form := "2006-01-02T15:04:05.000Z"
		return object{{"createdAt", created.UTC().Format(form)}, {"modifiedAt", modified.UTC().Format(form)}}
	}
	sys := options["sysAttrs"]
	if sys {
		o = append(o, stamps(e.created, e.modified)...)
	}
	for _, a := range e.attrs {
		if len(names) > 0 && !slices.Contains(names, a.name) {
			continue
		}
		v := a.value
		if options["keyValues"] || options["simplified"] {
			v = content(v)
		} else if inner, ok := v.(object); ok && sys {
			v = append(slices.Clip(inner), stamps(a.created, a.modified)...)
		}
		o = append(o, member{a.name, v})
	}
	return o
}

func (r *ldRequest) replyContext(e *ldEntity) any {
	if r.link != "" {
		return r.link
	}
	if e != nil {
		return e.context
	}
	return coreContext
}

func (b *Broker) ldGet(r *ldRequest, parts []string) (*ldReply, *problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.look(r.tenant).ldByID[parts[1]]
	if e == nil {
		return nil, notFound("no entity " + parts[1])
	}
	names := splitList(r.query["attrs"])
	o := e.render(names, r.options)
	if len(names) > 0 && !slices.ContainsFunc(names, func(n string) bool { return e.find(n) >= 0 }) {
		return nil, notFound("the entity has none of these attributes")
	}
	return &ldReply{status: http.StatusOK, body: o, context: r.replyContext(e)}, nil
}

// ldPaging reads limit and offset; limit may be 0 if only the count is wanted.
func (r *ldRequest) paging() (limit, offset int, no *problem) {
	limit = 20
	for name, p := range map[string]*int{"limit": &limit, "offset": &offset} {
		s, given := r.query[name]
		if !given {
			continue
		}
		n, err := strconv.ParseUint(s, 10, 31)
		if err != nil || name == "limit" && (n > uint64(r.most) || n == 0 && r.query["count"] != "true") {
			return 0, 0, badRequest("bad %s: %q (limit is 1 to %d, or 0 with count=true)", name, s, r.most)
		}
		*p = int(n)
	}
	return limit, offset, nil
}

func (b *Broker) ldList(r *ldRequest, _ []string) (*ldReply, *problem) {
	limit, offset, no := r.paging()
	if no != nil {
		return nil, no
	}
	q := r.query
	if q["id"]+q["type"]+q["attrs"]+q["q"] == "" && q["local"] != "true" { // 5.7.2
		return nil, badRequest("one of type, attrs, q and id is needed, or local=true")
	}
	s, err := newSelector("", q["idPattern"], "", "")
	if err != nil {
		return nil, badRequest("%s", err)
	}
	s.ids = splitList(q["id"])
	filter, err := parseFilter(q["q"])
	if err != nil {
		return nil, badRequest("%s", err)
	}
	types, names := splitList(q["type"]), splitList(q["attrs"])
	return b.ldFound(r, limit, offset, names, func(e *ldEntity) bool {
		return s.matches(e.id, "") && filter.passes(e.valueOf) &&
			(len(types) == 0 || slices.ContainsFunc(types, func(t string) bool { return slices.Contains(e.types, t) }))
	})
}

// ldFound answers with the entities that match, and have one of the attributes named,
// if any are.
func (b *Broker) ldFound(r *ldRequest, limit, offset int, names []string, matches func(*ldEntity) bool) (*ldReply, *problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []*ldEntity
	for _, e := range b.look(r.tenant).ld {
		if matches(e) && (len(names) == 0 || slices.ContainsFunc(names, func(n string) bool { return e.find(n) >= 0 })) {
			found = append(found, e)
		}
	}
	rep := &ldReply{status: http.StatusOK, context: r.replyContext(nil), headers: map[string]string{}}
	if r.query["count"] == "true" {
		rep.headers["NGSILD-Results-Count"] = strconv.Itoa(len(found))
	}
	list := []any{}
	for _, e := range page(found, offset, limit) {
		list = append(list, e.render(names, r.options))
		if r.link == "" {
			rep.context = e.context // that of the last one: they need not be of one context
		}
	}
	rep.body = list
	return rep, nil
}

// --- subscriptions ---

// notifyLD sets off the subscriptions to an entity that has just been written:
// NGSI-LD notifies of a write that repeats a value, too. Called with mu held.
func (b *Broker) notifyLD(tenantName string, e *ldEntity, changed []string) {
	now := b.opts.Now()
	for _, s := range b.look(tenantName).subs {
		if !s.ld || !slices.ContainsFunc(e.types, func(typ string) bool { return s.due(now, e.id, typ, changed, e.valueOf) }) {
			continue
		}
		o := e.render(s.attrs, map[string]bool{s.format: true})
		body := object{
			{"id", "urn:ngsi-ld:Notification:" + newID(12)}, {"type", "Notification"},
			{"subscriptionId", s.id}, {"notifiedAt", instant(now.UnixMilli())}, {"data", []any{o}},
		}
		headers := map[string]string{"Content-Type": "application/json", "Accept": "application/json"}
		if s.ldJSON {
			headers["Content-Type"] = "application/ld+json"
			body = append(body, member{"@context", s.link})
		} else {
			headers["Link"] = linkHeader(s.link)
		}
		if tenantName != "" {
			headers["NGSILD-Tenant"] = tenantName
		}
		b.enqueue(notification{s, s.url, headers, appendJSON(nil, body, false)})
	}
}

// readLD takes over the fields of a body (5.2.12).
func (s *subscription) readLD(o object) *problem {
	var err error
	for _, m := range o {
		text, isString := m.value.(string)
		inner, isObject := m.value.(object)
		switch m.name {
		case "id":
			if s.id = text; !uriForm.MatchString(text) {
				return badData("subscription id must be a URI")
			}
		case "type":
			if text != "Subscription" {
				return badData("type must be Subscription")
			}
		case "subscriptionName", "description":
			if !isString {
				return badData("%s must be a string", m.name)
			}
		case "entities":
			s.entities = m.value
			s.selectors, err = parseLDSelectors(m.value, maxSelectors)
		case "watchedAttributes":
			s.watched, err = stringList(m)
		case "q":
			s.q = text
			s.filter, err = parseFilter(text)
		case "isActive":
			if s.status = "inactive"; m.value == true {
				s.status = "active"
			}
		case "expiresAt":
			s.expires, err = readExpires(m.value)
		case "throttling":
			s.throttling, err = readThrottling(m.value)
		case "notification":
			if !isObject {
				return badData("notification is not a JSON object")
			}
			err = s.readLDNotification(inner)
		default:
			return badData("the sandbox broker does not do %q in a subscription", m.name)
		}
		if err != nil {
			return badData("%s", err)
		}
	}
	switch {
	case o.str("type") == "":
		return badData("type must be Subscription")
	case s.url == "":
		return badData("notification is missing")
	case len(s.selectors) == 0 && len(s.watched) == 0:
		return badData("entities or watchedAttributes is needed")
	case len(s.selectors) == 0:
		s.selectors = []selector{{}} // any entity
	}
	return nil
}

func parseLDSelectors(v any, most int) ([]selector, error) {
	list, _ := v.([]any)
	with := []any{}
	for _, x := range list {
		o, _ := x.(object)
		if o.str("type") == "" {
			return nil, bad("an element of entities has no type")
		}
		if o.str("id") == "" && o.str("idPattern") == "" { // allowed here, not in NGSIv2
			o = append(slices.Clip(o), member{"idPattern", ".*"})
		}
		with = append(with, o)
	}
	return parseSelectors(with, most)
}

func (s *subscription) readLDNotification(o object) (err error) {
	s.attrs, s.format, s.url, s.ldJSON = nil, "normalized", "", false
	for _, m := range o {
		switch m.name {
		case "attributes":
			s.attrs, err = stringList(m)
		case "format":
			s.format, _ = m.value.(string)
			if !slices.Contains([]string{"normalized", "keyValues", "simplified"}, s.format) {
				err = bad("format must be normalized, keyValues or simplified")
			}
		case "endpoint":
			endpoint, _ := m.value.(object)
			if accept := endpoint.str("accept"); accept == "application/ld+json" {
				s.ldJSON = true
			} else if accept != "" && accept != "application/json" {
				return bad("endpoint.accept must be application/json or application/ld+json")
			}
			s.url, err = readURL(endpoint.str("uri"))
		default:
			err = bad("the sandbox broker does not do %q in a notification", m.name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *ldRequest) parseObject() (object, any, *problem) {
	v, no := r.parse()
	if no != nil {
		return nil, nil, no
	}
	o, ok := v.(object)
	if !ok {
		return nil, nil, badData("the body is not a JSON object")
	}
	if name := o.repeated(); name != "" {
		return nil, nil, badData("duplicated name %q", name)
	}
	return r.takeContext(o)
}

func (b *Broker) ldCreateSubscription(r *ldRequest, _ []string) (*ldReply, *problem) {
	o, context, no := r.parseObject()
	if no != nil {
		return nil, no
	}
	s := subscription{ld: true, id: "urn:ngsi-ld:Subscription:" + newID(12), status: "active", format: "normalized", source: o, link: coreContext}
	if link, ok := context.(string); ok {
		s.link = link
	}
	if no := s.readLD(o); no != nil {
		return nil, no
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subscription(r.tenant, s.id, true) != nil {
		return nil, &problem{http.StatusConflict, "AlreadyExists", "Already exists", "there is a subscription " + s.id}
	}
	if why := b.addSubscription(r.tenant, &s, len(r.body)); why != "" {
		return nil, fullUp(why)
	}
	return &ldReply{status: http.StatusCreated, headers: map[string]string{"Location": "/ngsi-ld/v1/subscriptions/" + url.PathEscape(s.id)}}, nil
}

func (b *Broker) ldPatchSubscription(r *ldRequest, parts []string) (*ldReply, *problem) {
	o, context, no := r.parseObject()
	if no != nil {
		return nil, no
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.subscription(r.tenant, parts[1], true)
	if s == nil {
		return nil, notFound("no subscription " + parts[1])
	}
	source := slices.Clone(s.source)
	for _, m := range o {
		if m.name == "id" {
			continue
		}
		if i := slices.IndexFunc(source, func(old member) bool { return old.name == m.name }); i >= 0 {
			source[i] = m
		} else {
			source = append(source, m)
		}
	}
	next := subscription{ld: true, id: s.id, status: "active", format: "normalized", source: source, link: s.link,
		sent: s.sent, failed: s.failed, lastSent: s.lastSent, lastSuccess: s.lastSuccess, lastFailure: s.lastFailure,
		lastSuccessCode: s.lastSuccessCode, lastFailureReason: s.lastFailureReason}
	if link, ok := context.(string); ok && (r.link != "" || r.ldJSON) {
		next.link = link
	}
	if no := next.readLD(source); no != nil {
		return nil, no
	}
	if sizeOf(source) > 4*maxSubscription {
		return nil, fullUp("the subscription is too large")
	}
	*s = next
	return &ldReply{status: http.StatusNoContent}, nil
}

func (s *subscription) renderLD() object {
	o := slices.Clone(s.source)
	if o.str("id") == "" {
		o = append(object{{"id", s.id}}, o...)
	}
	stamp := func(t time.Time) instant { return instant(t.UnixMilli()) }
	status := "ok"
	if s.failed > 0 {
		status = "failed"
	}
	counters := object{{"status", status}, {"timesSent", s.sent}, {"timesFailed", s.failed}}
	if s.sent > 0 {
		counters = append(counters, member{"lastNotification", stamp(s.lastSent)})
	}
	if !s.lastSuccess.IsZero() {
		counters = append(counters, member{"lastSuccess", stamp(s.lastSuccess)})
	}
	if !s.lastFailure.IsZero() {
		counters = append(counters, member{"lastFailure", stamp(s.lastFailure)})
	}
	for i, m := range o {
		if n, ok := m.value.(object); ok && m.name == "notification" {
			o[i].value = append(slices.Clip(n), counters...)
		}
	}
	return o
}

func (b *Broker) ldListSubscriptions(r *ldRequest, _ []string) (*ldReply, *problem) {
	limit, offset, no := r.paging()
	if no != nil {
		return nil, no
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	list := []any{}
	for _, s := range b.look(r.tenant).subs {
		if s.ld {
			list = append(list, s.renderLD())
		}
	}
	return &ldReply{status: http.StatusOK, body: append([]any{}, page(list, offset, limit)...)}, nil
}

func (b *Broker) ldGetSubscription(r *ldRequest, parts []string) (*ldReply, *problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.subscription(r.tenant, parts[1], true)
	if s == nil {
		return nil, notFound("no subscription " + parts[1])
	}
	return &ldReply{status: http.StatusOK, body: s.renderLD(), context: s.link}, nil
}

func (b *Broker) ldDeleteSubscription(r *ldRequest, parts []string) (*ldReply, *problem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.subscription(r.tenant, parts[1], true)
	if s == nil {
		return nil, notFound("no subscription " + parts[1])
	}
	b.removeSubscription(r.tenant, s)
	return &ldReply{status: http.StatusNoContent}, nil
}
