package ngsi

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"campus-gateway"
)

// verdict is what an answer means for the entities that were sent.
type verdict int

const (
	keep     verdict = iota // nothing is known: keep all, send again later
	accepted                // all
	listed                  // the answer says for each
	refused                 // at least one is at fault, and nothing says which
	tooLarge                // send less at a time
)

// answer is a judged HTTP response, or why there is none.
type answer struct {
	verdict verdict
	words   string // the broker's own; for keep: why, for people. The same trouble has the same words
	cause   error
	lost    bool // there is no connection, or none any more
	after   time.Duration
	body    []byte
}

// failure is a for the Forwarder.
func (a answer) failure() error {
	return &gateway.RetryError{Err: &failure{a.words, a.cause}, After: a.after, Lost: a.lost}
}

type failure struct {
	words string
	cause error
}

func (f *failure) Error() string { return f.words }
func (f *failure) Unwrap() error { return f.cause }

const (
	maxAnswer     = 64 << 10 // of a response body that is read
	maxList       = 1 << 20  // of a 207
	maxRetryAfter = 10 * time.Minute
	maxWords      = 300
	// A body over a broker's limit often shows as a connection reset instead of
	// 413: Orion answers on the headers and closes. Smaller ones are not suspect.
	suspectBody = 100_000
)

// newClient is for the servers of one uplink. timeout is of a whole exchange, to
// the last byte of the answer.
func newClient(timeout time.Duration, t *TLS) *http.Client {
	return &http.Client{
		Timeout: timeout,
		// A redirect would take token and readings to a host nobody configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     t.transport(),
	}
}

// It speaks HTTP/1.1 alone: a connection that a server lets go of after so many requests
// is then told apart from one that was lost (see line), and eight are enough for us.
func newTransport(c *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&line{dial: (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext}).connect,
		TLSClientConfig:        c,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: maxAnswer,
		DisableCompression:     true, // answers are small; none may unfold to gigabytes
	}
}

// post sends one request and judges the answer. Only the end of ctx is an error.
func (s *Sink) post(ctx context.Context, r Request) (answer, error) {
	resp, body, none, err := s.exchange(ctx, r, func(resp *http.Response) int64 {
		if resp.StatusCode == http.StatusMultiStatus {
			return maxList
		}
		return maxAnswer
	})
	if err != nil || resp == nil {
		return none, err
	}
	return s.judge(resp, body), nil
}

// exchange sends one request, with the token on it, and reads the answer as far as
// limit says of its head. After 401 it does so once more, if there is another
// token. Without a response there is an answer that says why; only the end of ctx
// is an error. No token is in what it returns.
func (s *Sink) exchange(ctx context.Context, r Request, limit func(*http.Response) int64) (*http.Response, []byte, answer, error) {
	if s.cfg.Auth == nil {
		return s.once(ctx, r, "", limit)
	}
	for again := false; ; again = true {
		token, err := s.cfg.Auth.Token(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, nil, answer{}, ctx.Err()
		case err != nil:
			return nil, nil, answer{words: fmt.Sprintf("no token for %s: %v", s.cfg.URL, err), cause: err}, nil
		}
		resp, body, none, err := s.once(ctx, r, token, limit)
		if resp == nil || resp.StatusCode != http.StatusUnauthorized || againstPolicy(body) || again || !s.cfg.Auth.Refused(ctx, token) {
			return resp, body, none, err
		}
	}
}

// againstPolicy reports whether a 401 is about what the token is for, not about the
// token: Wilma has no 403.
func againstPolicy(body []byte) bool { return bytes.Contains(body, []byte("urn:dx:as:InvalidRole")) }

// once is one exchange.
func (s *Sink) once(ctx context.Context, r Request, token string, limit func(*http.Response) int64) (*http.Response, []byte, answer, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, bytes.NewReader(r.Body)) // sets Content-Length: Orion wants it
	if err != nil {
		return nil, nil, s.noAnswer(err), nil
	}
	if r.text != nil {
		req.ContentLength = int64(r.text.size)
		req.GetBody = r.text.reader
		req.Body, _ = r.text.reader()
	}
	req.Header = r.Header.Clone()
	if token != "" {
		setToken(req.Header, s.cfg.AuthHeader, token)
	}
	s.sent.Add(uint64(max(0, req.ContentLength)) + headerBytes)
	resp, err := s.client.Do(req)
	var body []byte
	if err == nil {
		s.cfg.TLS.answered()
		body, err = io.ReadAll(io.LimitReader(resp.Body, limit(resp)))
		resp.Body.Close()
	}
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, nil, answer{}, ctx.Err()
	case err != nil && req.ContentLength >= suspectBody && cut(err):
		return nil, nil, answer{verdict: tooLarge, words: "it closed the connection", cause: err}, nil
	case err != nil:
		return nil, nil, s.noAnswer(err), nil
	}
	if token != "" { // an answer may quote the request
		body = []byte(hide(string(body), token))
		resp.Status = hide(resp.Status, token)
		resp.Header.Set("Location", hide(resp.Header.Get("Location"), token))
	}
	return resp, body, answer{}, nil
}

// statuses is what people can do about an answer that is neither yes nor no.
var statuses = map[int]string{
	http.StatusUnauthorized:         "the broker refuses our token: check its auth",
	http.StatusForbidden:            "the broker refuses: policy. This client may not write there: have it allowed, or check service and path",
	http.StatusProxyAuthRequired:    "the proxy on the way wants a password: check HTTPS_PROXY",
	http.StatusNotFound:             "there is no NGSI API at this address: check its url and api",
	http.StatusMethodNotAllowed:     "there is no NGSI API at this address: check its url and api",
	http.StatusNotAcceptable:        "there is no NGSI API at this address: check its url and api",
	http.StatusGone:                 "there is no NGSI API at this address: check its url and api",
	http.StatusLengthRequired:       "a proxy on the way changes our requests: check HTTP_PROXY",
	http.StatusUnsupportedMediaType: "the broker takes another API: check its api",
	http.StatusTooManyRequests:      "the broker asks for a pause",
	http.StatusServiceUnavailable:   "the broker is not ready",
	http.StatusBadGateway:           "the proxy before the broker gets no answer from it: is the broker running?",
	http.StatusGatewayTimeout:       "the proxy before the broker gets no answer from it: is the broker running?",
}

// judge says what a response means. What is not listed here is keep.
func (s *Sink) judge(resp *http.Response, body []byte) answer {
	code := resp.StatusCode
	if v, ok := s.dialect.done[code]; ok {
		return answer{verdict: v, body: body}
	}
	p := parseProblem(resp.Header.Get("Content-Type"), body)
	own := p.words()
	switch {
	case code == http.StatusRequestEntityTooLarge && p.Error != "NoResourcesAvailable":
		return answer{verdict: tooLarge, words: fmt.Sprintf("%d %s", code, own)}
	case code == http.StatusRequestEntityTooLarge, // Orion: one entity is at fault, the others are applied
		(code == http.StatusBadRequest || code == http.StatusUnprocessableEntity) && p.ngsi() && !p.passing():
		return answer{verdict: refused, words: own}
	}
	why := statuses[code]
	switch {
	case code == http.StatusUnauthorized && againstPolicy(body):
		why = statuses[http.StatusForbidden]
	case code >= 200 && code < 300:
		why = fmt.Sprintf("this is not how a broker says yes in %s: is it a login page of the network, or another service?", s.cfg.API)
	case code >= 300 && code < 400:
		why = "it sends us elsewhere, where we do not go: write the final address as its url"
		if to, err := resp.Location(); err == nil {
			why = fmt.Sprintf("it sends us to %s://%s, where we do not go: write the final address as its url", to.Scheme, to.Host)
		}
	case why == "" && code >= 500:
		why = "the broker has a fault of its own"
	case why == "":
		why = "this is not an answer of an NGSI broker: check its url"
	}
	words := fmt.Sprintf("%s answered %s: %s", s.cfg.URL, clean(strings.TrimSpace(resp.Status)), why)
	if own != "" {
		words += " (it says: " + own + ")"
	}
	return answer{words: words, after: retryAfter(resp.Header)}
}

// problem is an error body of either API: {"error","description"} in NGSIv2,
// {"type","title","detail","status"} in NGSI-LD.
type problem struct {
	Error, Description string
	Type, Title        string
	Detail             anyText
	Status             int
	ErrorCode          int    // Scorpio 4's word for status (ScorpioBroker issue 466)
	plain              string // the body, where it is not JSON
}

// anyText is a JSON string, or whatever stands in its place: Scorpio's detail may be an
// object or a list.
type anyText string

func (t *anyText) UnmarshalJSON(raw []byte) error {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		s = string(raw)
	}
	*t = anyText(s)
	return nil
}

func (p *problem) status() int { return cmp.Or(p.Status, p.ErrorCode) }

func parseProblem(contentType string, body []byte) problem {
	var p problem
	media, _, _ := mime.ParseMediaType(contentType)
	if media == "application/json" || media == "application/problem+json" || media == "application/ld+json" {
		if json.Unmarshal(body, &p) == nil {
			return p
		}
	}
	if media != "text/html" {
		p = problem{plain: string(body)}
	}
	return p
}

// ngsi reports whether the words are those of an NGSI broker, not of a proxy.
func (p *problem) ngsi() bool { return p.Error != "" || p.Title != "" || p.Type != "" }

// passing reports whether the trouble is not in the entity.
func (p *problem) passing() bool {
	return strings.HasSuffix(p.Type, "/LdContextNotAvailable") || strings.HasSuffix(p.Type, "/InternalError") ||
		strings.HasSuffix(p.Type, "/NonexistentTenant") || strings.HasSuffix(p.Type, "/NoMultiTenantSupport")
}

// poison reports whether an entity's own error in a 207 can never pass.
func (p *problem) poison() bool {
	if p.passing() {
		return false
	}
	return p.status() == http.StatusBadRequest || p.status() == http.StatusUnprocessableEntity ||
		p.status() == 0 && (strings.HasSuffix(p.Type, "/BadRequestData") || strings.HasSuffix(p.Type, "/InvalidRequest"))
}

func (p *problem) words() string {
	var parts []string
	for _, s := range []string{p.Error, p.Description, p.Title, string(p.Detail), p.plain} {
		if s = clean(s); s != "" {
			parts = append(parts, s)
		}
	}
	if len(parts) == 0 {
		return clean(p.Type)
	}
	return clean(strings.Join(parts, ": "))
}

// clean makes foreign words fit for one line of a log.
func clean(s string) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "�"), func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if len(s) > maxWords {
		s = strings.ToValidUTF8(s[:maxWords], "") + "…"
	}
	return s
}

// parseList reads a 207: which ids the broker took, and what is wrong with
// which others. An id in neither is unknown.
func parseList(body []byte) (success map[string]bool, errs map[string]problem) {
	var list struct {
		Success []string
		Errors  []struct {
			EntityID string `json:"entityId"`
			Error    problem
		}
	}
	var scorpio []struct { // 4 and later: ScorpioBroker issue 466
		ID      string
		Success json.RawMessage
		Failure []problem
	}
	success, errs = map[string]bool{}, map[string]problem{}
	switch {
	case json.Unmarshal(body, &list) == nil:
		for _, id := range list.Success {
			success[id] = true
		}
		for _, e := range list.Errors {
			errs[e.EntityID] = e.Error
		}
	case json.Unmarshal(body, &scorpio) == nil:
		for _, r := range scorpio {
			switch {
			case len(r.Failure) > 0:
				errs[r.ID] = r.Failure[0]
			case r.Success != nil:
				success[r.ID] = true
			}
		}
	}
	return success, errs
}

// retryAfter is how long the broker wants us away: in seconds, or until a date,
// which is counted from the broker's own Date, since a Pi's clock may be years
// behind. At most ten minutes.
func retryAfter(h http.Header) time.Duration {
	text := strings.TrimSpace(h.Get("Retry-After"))
	if seconds, err := strconv.ParseUint(text, 10, 63); err == nil {
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	until, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	from, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		from = time.Now()
	}
	return min(max(until.Sub(from), 0), maxRetryAfter)
}

// cut reports whether the other side closed the connection. Go shows that in
// all these ways, depending on who notices first.
func cut(err error) bool {
	return slices.ContainsFunc([]error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE}, func(e error) bool { return errors.Is(err, e) })
}

func (s *Sink) noAnswer(err error) answer { return noAnswer(s.cfg.URL, s.cfg.TLS, err) }

// noAnswer says why there is none from that URL, and what to look at.
func noAnswer(broker string, t *TLS, err error) answer {
	words, cause := why(err, "broker", t)
	return answer{words: fmt.Sprintf("no answer from %s: %s", broker, words), cause: cause, lost: true}
}

// why says why a server gives no answer. The words have no port or time that
// changes from try to try, and none of the server's own: it may quote a secret.
func why(err error, server string, t *TLS) (words string, cause error) {
	cause = err
	if e, ok := errors.AsType[*url.Error](err); ok { // repeats the method and the URL
		cause = e.Err
	}
	inner := cause
	for e, ok := errors.AsType[*net.OpError](inner); ok; e, ok = errors.AsType[*net.OpError](inner) {
		inner = e.Err // an OpError names our own port
	}
	words = clean(inner.Error())
	name, isName := errors.AsType[*net.DNSError](err)
	network, isNetwork := errors.AsType[net.Error](err)
	secure := clean(t.words(err))
	if secure == "" && !isName && (strings.Contains(words, `"`) || strings.Contains(words, "malformed")) {
		words = "its answer is not HTTP" // what it is, the error quotes
		cause = errors.New(words)
	}
	switch {
	case secure != "":
		words = secure
	case isName:
		words = fmt.Sprintf("the name %s cannot be resolved: is it right, and the network up?", name.Name)
	case isNetwork && network.Timeout():
		words = fmt.Sprintf("it takes too long: is the network up, and the %s well?", server)
	case errors.Is(err, syscall.ECONNREFUSED):
		words = fmt.Sprintf("connection refused: is the %s running there?", server)
	case errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH):
		words += ": is the network up?"
	case cut(err):
		words = "the connection was closed too early"
	}
	return words, cause
}
