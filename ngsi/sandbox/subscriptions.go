package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// subscription is one of either API.
type subscription struct {
	id     string
	ld     bool
	source object // NGSI-LD: as it was sent
	link   string // NGSI-LD: URL of the @context to name in notifications

	description string
	status      string // active or inactive
	expires     *instant
	throttling  time.Duration
	paths       []string // NGSIv2

	entities  any // as they were sent
	selectors []selector
	watched   []string // attributes that set it off; none: any
	q         string
	filter    filter
	metadata  bool // NGSIv2: a change of metadata alone sets it off

	url         string
	ldJSON      bool // NGSI-LD: endpoint.accept is application/ld+json
	attrs       []string
	except      []string
	format      string // normalized, keyValues, values
	onlyChanged bool

	sent, failed                       int // failed: since the last success
	lastSent, lastSuccess, lastFailure time.Time
	lastSuccessCode                    int
	lastFailureReason                  string
}

// queue holds the notifications that wait for the one worker, oldest first.
type queue struct {
	waiting []notification
	bytes   int
}

type notification struct {
	sub     *subscription
	url     string
	headers map[string]string
	body    []byte
}

// maxQueueBytes bounds the bodies of the waiting notifications.
const maxQueueBytes = 32 << 20

// Run delivers notifications, one after the other in the order of the updates,
// until ctx ends; then it returns nil. A subscriber that does not answer delays
// the others by the timeout of the client, but never an update.
func (b *Broker) Run(ctx context.Context) error {
	defer b.opts.Client.CloseIdleConnections()
	for {
		b.mu.Lock()
		var n notification
		q := &b.queue
		if len(q.waiting) > 0 {
			n = q.waiting[0]
			q.waiting = slices.Delete(q.waiting, 0, 1)
			q.bytes -= len(n.body)
		}
		b.mu.Unlock()
		if n.sub == nil {
			select {
			case <-ctx.Done():
				return nil
			case <-b.wake:
			}
			continue
		}
		code, err := b.post(ctx, n)
		if ctx.Err() != nil {
			return nil
		}
		b.mu.Lock()
		now := b.opts.Now()
		if err != nil {
			b.stats.Failed++
			n.sub.failed++
			n.sub.lastFailure, n.sub.lastFailureReason = now, err.Error()
		} else {
			b.stats.Sent++
			n.sub.failed = 0
			n.sub.lastSuccess, n.sub.lastSuccessCode = now, code
		}
		b.mu.Unlock()
	}
}

// post sends one notification. As for Orion, any answer is a success.
func (b *Broker) post(ctx context.Context, n notification) (int, error) {
	req, err := http.NewRequestWithContext(ctx, "POST", n.url, bytes.NewReader(n.body))
	if err != nil {
		return 0, err
	}
	for name, value := range n.headers {
		req.Header.Set(name, value)
	}
	req.Header.Set("User-Agent", "campus-gateway-sandbox")
	resp, err := b.opts.Client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	return resp.StatusCode, nil
}

// enqueue hands a notification to the worker; if too many wait the oldest are
// dropped. Called with mu held.
func (b *Broker) enqueue(n notification) {
	n.sub.sent++
	n.sub.lastSent = b.opts.Now()
	q := &b.queue
	q.waiting = append(q.waiting, n)
	q.bytes += len(n.body)
	for len(q.waiting) > b.opts.MaxQueue || q.bytes > maxQueueBytes && len(q.waiting) > 1 {
		q.bytes -= len(q.waiting[0].body)
		q.waiting = slices.Delete(q.waiting, 0, 1)
		b.stats.Dropped++
	}
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// due says whether a change of these attributes sets the subscription off now.
func (s *subscription) due(now time.Time, id, typ string, changed []string, valueOf func(string) (any, bool)) bool {
	return s.status == "active" && (s.expires == nil || now.UnixMilli() < int64(*s.expires)) &&
		(s.throttling == 0 || now.Sub(s.lastSent) >= s.throttling) &&
		(len(s.watched) == 0 || slices.ContainsFunc(changed, func(name string) bool { return slices.Contains(s.watched, name) })) &&
		slices.ContainsFunc(s.selectors, func(sel selector) bool { return sel.matches(id, typ) }) &&
		s.filter.passes(valueOf)
}

// notifyV2 sets off the subscriptions to an entity that has just changed. Called
// with mu held.
func (b *Broker) notifyV2(r *request, e *entity, changed []string, onlyMeta bool) {
	now := b.opts.Now()
	for _, s := range b.look(r.tenant).subs {
		if s.ld || !onPath(e.path, s.paths) || onlyMeta && !s.metadata || !s.due(now, e.id, e.typ, changed, e.valueOf) {
			continue
		}
		names := s.attrs
		if len(names) == 0 && (len(s.except) > 0 || s.onlyChanged) {
			for i := range e.attrs {
				names = append(names, e.attrs[i].name)
			}
		}
		if s.onlyChanged || len(s.except) > 0 {
			names = slices.DeleteFunc(slices.Clone(names), func(name string) bool {
				return slices.Contains(s.except, name) || s.onlyChanged && !slices.Contains(changed, name)
			})
			if len(names) == 0 {
				continue
			}
		}
		body := appendString([]byte(`{"subscriptionId":`), s.id)
		body = e.render(append(body, `,"data":[`...), names, map[string]bool{s.format: true}, true)
		headers := map[string]string{
			"Content-Type":       "application/json; charset=utf-8",
			"Accept":             "application/json",
			"Fiware-ServicePath": e.path,
			"Fiware-Correlator":  nextCorrelator(r.correlator),
			"Ngsiv2-AttrsFormat": s.format,
		}
		if r.tenant != "" {
			headers["Fiware-Service"] = r.tenant
		}
		b.enqueue(notification{s, s.url, headers, append(body, `]}`...)})
	}
}

// nextCorrelator marks a notification: "; cbnotif=1" on an update from outside,
// one more on an update that was itself caused by a notification.
func nextCorrelator(correlator string) string {
	origin, count, _ := strings.Cut(correlator, "; cbnotif=")
	n, _ := strconv.Atoi(count) // 0 if there is none
	return fmt.Sprintf("%s; cbnotif=%d", origin, n+1)
}

// --- the calls of NGSIv2 ---

var noSubscription = &refusal{http.StatusNotFound, "NotFound", "The requested subscription has not been found. Check id"}

func newID(n int) string {
	id := make([]byte, n)
	rand.Read(id) // never fails
	return hex.EncodeToString(id)
}

func (b *Broker) createSubscription(r *request, _ []string) (*reply, error) {
	body, err := parseBody(r.body)
	if err != nil {
		return nil, err
	}
	s := subscription{id: newID(12), status: "active", format: "normalized", metadata: true, paths: r.paths}
	if err := s.read(body); err != nil {
		return nil, err
	}
	if len(s.selectors) == 0 {
		return nil, bad("no subject for subscription specified")
	}
	if s.url == "" {
		return nil, bad("no notification for subscription specified")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if why := b.addSubscription(r.tenant, &s, len(r.body)); why != "" {
		return nil, &refusal{http.StatusInternalServerError, "InternalServerError", why}
	}
	return &reply{status: 201, headers: map[string]string{"Location": "/v2/subscriptions/" + s.id}}, nil
}

// addSubscription keeps a new subscription, or says why not. Its text is bounded
// together with its number. Called with mu held.
func (b *Broker) addSubscription(tenantName string, s *subscription, size int) (why string) {
	if b.stats.Subscriptions >= b.opts.MaxSubscriptions {
		return fmt.Sprintf("the sandbox is full: it holds at most %d subscriptions", b.opts.MaxSubscriptions)
	}
	if size > maxSubscription {
		return fmt.Sprintf("the sandbox takes subscriptions of at most %d bytes", maxSubscription)
	}
	t := b.tenant(tenantName)
	t.subs = append(t.subs, s)
	b.stats.Subscriptions++
	return ""
}

const maxSubscription = 64 << 10

// subscription finds one by its id. Called with mu held.
func (b *Broker) subscription(tenantName, id string, ld bool) *subscription {
	for _, s := range b.look(tenantName).subs {
		if s.id == id && s.ld == ld {
			return s
		}
	}
	return nil
}

func (b *Broker) removeSubscription(tenantName string, s *subscription) {
	t := b.tenant(tenantName)
	t.subs = slices.DeleteFunc(t.subs, func(other *subscription) bool { return other == s })
	b.stats.Subscriptions--
}

func (b *Broker) listSubscriptions(r *request, _ []string) (*reply, error) {
	limit, offset, err := r.paging()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	list := []any{}
	for _, s := range b.look(r.tenant).subs {
		if !s.ld {
			list = append(list, s.renderV2(b.opts.Now()))
		}
	}
	rep := &reply{status: 200}
	if r.options["count"] {
		rep.headers = map[string]string{"Fiware-Total-Count": strconv.Itoa(len(list))}
	}
	rep.body = appendJSON(nil, append([]any{}, page(list, offset, limit)...), true)
	return rep, nil
}

func (b *Broker) getSubscription(r *request, parts []string) (*reply, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.subscription(r.tenant, parts[2], false)
	if s == nil {
		return nil, noSubscription
	}
	return &reply{status: 200, body: appendJSON(nil, s.renderV2(b.opts.Now()), true)}, nil
}

func (b *Broker) patchSubscription(r *request, parts []string) (*reply, error) {
	body, err := parseBody(r.body)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.subscription(r.tenant, parts[2], false)
	if s == nil {
		return nil, noSubscription
	}
	next := *s
	if err := next.read(body); err != nil {
		return nil, err
	}
	if len(r.body) > maxSubscription {
		return nil, bad("the sandbox takes subscriptions of at most %d bytes", maxSubscription)
	}
	*s = next
	return &reply{status: 204}, nil
}

func (b *Broker) deleteSubscription(r *request, parts []string) (*reply, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.subscription(r.tenant, parts[2], false)
	if s == nil {
		return nil, noSubscription
	}
	b.removeSubscription(r.tenant, s)
	return &reply{status: 204}, nil
}

// read takes over the fields of a body.
func (s *subscription) read(body object) (err error) {
	for _, m := range body {
		o, isObject := m.value.(object)
		switch m.name {
		case "description":
			s.description, _ = m.value.(string)
		case "status":
			if s.status, _ = m.value.(string); s.status != "active" && s.status != "inactive" {
				return unsupported("a status other than active and inactive")
			}
		case "expires":
			s.expires, err = readExpires(m.value)
		case "throttling":
			s.throttling, err = readThrottling(m.value)
		case "subject":
			if !isObject {
				return bad("subject is not a JSON object")
			}
			err = s.readSubject(o)
		case "notification":
			if !isObject {
				return bad("notification is not a JSON object")
			}
			err = s.readNotification(o)
		default:
			err = unsupported("/" + m.name + "/ in a subscription")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func readExpires(v any) (*instant, error) {
	s, _ := v.(string)
	if s == "" {
		return nil, nil // for ever
	}
	at, ok := parseInstant(s)
	if !ok {
		return nil, bad("expires has an invalid format")
	}
	return &at, nil
}

func readThrottling(v any) (time.Duration, error) {
	n, ok := v.(number)
	if seconds := n.float(); ok && seconds >= 0 && seconds <= 1e9 {
		return time.Duration(seconds * float64(time.Second)), nil
	}
	return 0, bad("throttling must be an integer")
}

func readURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", bad("Invalid URL")
	}
	return s, nil
}

func (s *subscription) readSubject(o object) (err error) {
	for _, m := range o {
		switch m.name {
		case "entities":
			s.entities = m.value
			s.selectors, err = parseSelectors(m.value, maxSelectors)
		case "condition":
			condition, ok := m.value.(object)
			if !ok {
				return bad("condition is not a JSON object")
			}
			s.watched, s.q, s.filter, s.metadata = nil, "", nil, true
			for _, c := range condition {
				switch c.name {
				case "attrs":
					s.watched, err = stringList(c)
				case "expression":
					if s.q, err = onlyQ(c.value); err == nil {
						s.filter, err = parseFilter(s.q)
					}
				case "notifyOnMetadataChange":
					s.metadata, _ = c.value.(bool)
				default:
					err = unsupported("/" + c.name + "/ in a condition")
				}
				if err != nil {
					return err
				}
			}
		default:
			err = unsupported("/" + m.name + "/ in a subject")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *subscription) readNotification(o object) (err error) {
	for _, m := range o {
		switch m.name {
		case "http":
			endpoint, _ := m.value.(object)
			if len(endpoint) != 1 {
				return bad("http must have the field /url/ and, in the sandbox, no other")
			}
			s.url, err = readURL(endpoint.str("url"))
		case "attrs":
			s.attrs, err = stringList(m)
		case "exceptAttrs":
			s.except, err = stringList(m)
		case "attrsFormat":
			s.format, _ = m.value.(string)
			if !slices.Contains([]string{"normalized", "keyValues", "values"}, s.format) {
				err = unsupported("an attrsFormat other than normalized, keyValues and values")
			}
		case "onlyChangedAttrs":
			s.onlyChanged, _ = m.value.(bool)
		default:
			err = unsupported("/" + m.name + "/ in a notification")
		}
		if err != nil {
			return err
		}
	}
	if len(s.attrs) > 0 && len(s.except) > 0 {
		return bad("fields attrs and exceptAttrs are exclusive")
	}
	return nil
}

// renderV2 writes the subscription as Orion does. Times are whole seconds there.
func (s *subscription) renderV2(now time.Time) object {
	second := func(t time.Time) instant { return instant(t.Unix() * 1000) }
	o := object{{"id", s.id}}
	if s.description != "" {
		o = append(o, member{"description", s.description})
	}
	status := s.status
	if s.expires != nil {
		o = append(o, member{"expires", *s.expires})
		if now.UnixMilli() >= int64(*s.expires) {
			status = "expired"
		}
	}
	condition := object{{"attrs", anyList(s.watched)}}
	if s.q != "" {
		condition = append(condition, member{"expression", object{{"q", s.q}}})
	}
	condition = append(condition, member{"notifyOnMetadataChange", s.metadata})
	o = append(o, member{"status", status},
		member{"subject", object{{"entities", s.entities}, {"condition", condition}}})
	n := object{}
	if s.sent > 0 {
		n = append(n, member{"timesSent", s.sent}, member{"lastNotification", second(s.lastSent)})
	}
	if len(s.except) > 0 {
		n = append(n, member{"exceptAttrs", anyList(s.except)})
	} else {
		n = append(n, member{"attrs", anyList(s.attrs)})
	}
	n = append(n, member{"onlyChangedAttrs", s.onlyChanged}, member{"attrsFormat", s.format},
		member{"http", object{{"url", s.url}}})
	if !s.lastFailure.IsZero() {
		n = append(n, member{"lastFailure", second(s.lastFailure)}, member{"lastFailureReason", s.lastFailureReason})
	}
	if s.failed > 0 {
		n = append(n, member{"failsCounter", s.failed})
	}
	if !s.lastSuccess.IsZero() {
		n = append(n, member{"lastSuccess", second(s.lastSuccess)}, member{"lastSuccessCode", s.lastSuccessCode})
	}
	n = append(n, member{"covered", false})
	o = append(o, member{"notification", n})
	if s.throttling > 0 {
		o = append(o, member{"throttling", int(s.throttling / time.Second)})
	}
	return o
}

func anyList(names []string) []any {
	list := []any{}
	for _, name := range names {
		list = append(list, name)
	}
	return list
}
