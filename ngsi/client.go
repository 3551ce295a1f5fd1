package ngsi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"campus-gateway"
)

// dialect is all that tells one broker API from another.
type dialect struct {
	path       string
	override   string // added to path so that what we noted before and do not now is gone
	head, tail string // of a body, around entities parted by commas
	entity     func([]byte, *Entity) []byte
	repeats    bool // one id may stand several times in a request: applied in order, each notified
	byContext  bool // a request has one @context, so one subject
	done       map[int]verdict
}

var dialects = map[string]*dialect{
	// forcedUpdate: a value equal to the last one notifies as well, or a steady
	// temperature leaves holes in the history. Not overrideMetadata: what others
	// have noted on our attributes stays, and ours has the same names each time. But
	// for timeUncertain: an entity's first certain reading, and the first after one
	// that was not, overrides, or the mark would stay for ever.
	"ngsi-v2": {
		path: "/v2/op/update?options=forcedUpdate", override: ",overrideMetadata", head: v2Head, tail: v2Tail, entity: appendV2,
		repeats: true,
		done:    map[int]verdict{http.StatusNoContent: accepted},
	},
	// options=update: without it the entity is replaced, and what other sensors
	// feed into it is gone. One id twice in a request is applied, refused or
	// thinned out depending on the broker and its version, so it never is.
	"ngsi-ld": {
		path: "/ngsi-ld/v1/entityOperations/upsert?options=update", head: ldHead, tail: ldTail, entity: appendLD,
		byContext: true,
		done:      map[int]verdict{http.StatusCreated: accepted, http.StatusNoContent: accepted, http.StatusMultiStatus: listed},
	},
}

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
	after   time.Duration
	body    []byte
}

// failure is a for the Forwarder.
func (a answer) failure() error {
	return &gateway.RetryError{Err: &failure{a.words, a.cause}, After: a.after}
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

// TLS is the client's side of TLS. caFile names a private authority's
// certificates (PEM), trusted beside the system's; empty: there is none.
func TLS(caFile string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return c, nil
	}
	f, err := os.Open(caFile)
	if err != nil {
		return nil, fmt.Errorf("read the authority's certificates: %w", err)
	}
	defer f.Close()
	pem, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read the authority's certificates: %w", err)
	}
	if c.RootCAs, err = x509.SystemCertPool(); err != nil {
		c.RootCAs = x509.NewCertPool()
	}
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: there is no certificate in it: want PEM, beginning with -----BEGIN CERTIFICATE-----", caFile)
	}
	return c, nil
}

func newClient(cfg *Config) *http.Client {
	return &http.Client{
		Timeout: cfg.Timeout, // of a whole exchange, to the last byte of the answer
		// A redirect would take token and readings to a host nobody configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:        cfg.TLS,
			TLSHandshakeTimeout:    10 * time.Second,
			ForceAttemptHTTP2:      true,
			MaxIdleConnsPerHost:    8,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: maxAnswer,
			DisableCompression:     true, // answers are small; none may unfold to gigabytes
		},
	}
}

// post sends one request and judges the answer. Only the end of ctx is an error.
func (s *Sink) post(ctx context.Context, r Request) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, bytes.NewReader(r.Body)) // sets Content-Length: Orion wants it
	if err != nil {
		return s.noAnswer(err), nil
	}
	req.Header = r.Header
	token := ""
	if s.cfg.Token != nil {
		if token, err = s.cfg.Token(); err != nil {
			return answer{words: fmt.Sprintf("no token for %s: %v", s.cfg.URL, err), cause: err}, nil
		}
		setToken(req.Header, s.cfg.AuthHeader, token)
	}
	resp, err := s.client.Do(req)
	var body []byte
	if err == nil {
		limit := int64(maxAnswer)
		if resp.StatusCode == http.StatusMultiStatus {
			limit = maxList
		}
		body, err = io.ReadAll(io.LimitReader(resp.Body, limit))
		resp.Body.Close()
	}
	switch {
	case ctx.Err() != nil && err != nil:
		return answer{}, ctx.Err()
	case err != nil && len(r.Body) >= suspectBody && cut(err):
		return answer{verdict: tooLarge, words: "it closed the connection", cause: err}, nil
	case err != nil:
		return s.noAnswer(err), nil
	}
	if token != "" { // an answer may quote the request
		body = bytes.ReplaceAll(body, []byte(token), []byte("(token)"))
		resp.Status = strings.ReplaceAll(resp.Status, token, "(token)")
	}
	return s.judge(resp, body), nil
}

func setToken(h http.Header, name, token string) {
	if name == "" || strings.EqualFold(name, "bearer") {
		h.Set("Authorization", "Bearer "+token)
		return
	}
	h.Set(name, token)
}

// statuses is what people can do about an answer that is neither yes nor no.
var statuses = map[int]string{
	http.StatusUnauthorized:         "the broker refuses our token: check broker.auth",
	http.StatusForbidden:            "the broker refuses our token: it may not write there. Check broker.auth, and the broker's policy",
	http.StatusProxyAuthRequired:    "the proxy on the way wants a password: check HTTPS_PROXY",
	http.StatusNotFound:             "there is no NGSI API at this address: check broker.url and broker.api",
	http.StatusMethodNotAllowed:     "there is no NGSI API at this address: check broker.url and broker.api",
	http.StatusNotAcceptable:        "there is no NGSI API at this address: check broker.url and broker.api",
	http.StatusGone:                 "there is no NGSI API at this address: check broker.url and broker.api",
	http.StatusLengthRequired:       "a proxy on the way changes our requests: check HTTP_PROXY",
	http.StatusUnsupportedMediaType: "the broker takes another API: check broker.api",
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
	case code >= 200 && code < 300:
		why = fmt.Sprintf("this is not how a broker says yes in %s: is it a login page of the network, or another service?", s.cfg.API)
	case code >= 300 && code < 400:
		why = "it sends us elsewhere, where we do not go: write the final address as broker.url"
		if to, err := resp.Location(); err == nil {
			why = fmt.Sprintf("it sends us to %s://%s, where we do not go: write the final address as broker.url", to.Scheme, to.Host)
		}
	case why == "" && code >= 500:
		why = "the broker has a fault of its own"
	case why == "":
		why = "this is not an answer of an NGSI broker: check broker.url"
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
	Error, Description  string
	Type, Title, Detail string
	Status              int
	plain               string // the body, where it is not JSON
}

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
	return p.Status == http.StatusBadRequest || p.Status == http.StatusUnprocessableEntity ||
		p.Status == 0 && (strings.HasSuffix(p.Type, "/BadRequestData") || strings.HasSuffix(p.Type, "/InvalidRequest"))
}

func (p *problem) words() string {
	var parts []string
	for _, s := range []string{p.Error, p.Description, p.Title, p.Detail, p.plain} {
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
	success, errs = map[string]bool{}, map[string]problem{}
	if json.Unmarshal(body, &list) != nil {
		return success, errs
	}
	for _, id := range list.Success {
		success[id] = true
	}
	for _, e := range list.Errors {
		errs[e.EntityID] = e.Error
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

func (s *Sink) noAnswer(err error) answer { return noAnswer(s.cfg.URL, err) }

// noAnswer says why there is none from that URL, and what to look at. Its words
// have no port or time that changes from try to try.
func noAnswer(broker string, err error) answer {
	cause := err
	if e, ok := errors.AsType[*url.Error](err); ok { // repeats the method and the URL
		cause = e.Err
	}
	why := cause
	for e, ok := errors.AsType[*net.OpError](why); ok; e, ok = errors.AsType[*net.OpError](why) {
		why = e.Err // an OpError names our own port
	}
	words := clean(why.Error())
	name, isName := errors.AsType[*net.DNSError](err)
	network, isNetwork := errors.AsType[net.Error](err)
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
	_, unknownCA := errors.AsType[x509.UnknownAuthorityError](err)
	switch {
	case isName:
		words = fmt.Sprintf("the name %s cannot be resolved: is it right, and the network up?", name.Name)
	case isNetwork && network.Timeout():
		words = "it takes too long: is the network up, and the broker well?"
	case errors.Is(err, syscall.ECONNREFUSED):
		words = "connection refused: is the broker running there?"
	case errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH):
		words += ": is the network up?"
	case cut(err):
		words = "the connection was closed too early"
	case unknownCA:
		words += ": write the authority's file as broker.ca_file"
	case isInvalid && invalid.Reason == x509.Expired:
		words += ": is this machine's clock right?"
	}
	return answer{words: fmt.Sprintf("no answer from %s: %s", broker, words), cause: cause}
}
