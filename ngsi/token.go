package ngsi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Secret is where a secret is kept: in a file, or in an environment variable. It
// is read anew each time, so that a rotated one is used at once.
type Secret struct {
	File string
	Env  string // the variable's name; where there is no File
}

// Read is the secret, without blanks around it. No error has a part of it.
func (s Secret) Read() (string, error) {
	if s.File == "" {
		text := strings.TrimSpace(os.Getenv(s.Env))
		if text == "" {
			return "", fmt.Errorf("the environment variable %s is empty or not set", s.Env)
		}
		return text, nil
	}
	f, err := os.Open(s.File)
	if err != nil {
		return "", fmt.Errorf("the secret's file cannot be read: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAnswer))
	if err != nil {
		return "", fmt.Errorf("the secret's file cannot be read: %w", err)
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return "", fmt.Errorf("the secret's file %s is empty", s.File)
	}
	return text, nil
}

// Token is a secret that is a token: it fits into a header.
func (s Secret) Token() (string, error) {
	text, err := s.Read()
	if err == nil && !fits(text) {
		return "", errors.New("the token has blanks or characters that no header takes: is this the right file, with the token alone in it?")
	}
	return text, err
}

func fits(token string) bool {
	return token != "" && !strings.ContainsFunc(token, func(r rune) bool { return r > '~' || r <= ' ' })
}

// What OAuth2 is asked with.
const (
	ClientCredentials = "client-credentials"
	Password          = "password"
	RefreshToken      = "refresh-token"
)

// OAuth2 says how tokens are got from a token server, such as Keyrock.
type OAuth2 struct {
	TokenURL     string // https://keyrock.campus.example/oauth2/token
	Grant        string // ClientCredentials (default), Password or RefreshToken
	ClientID     string
	ClientSecret Secret
	Username     string // Password
	Password     Secret // Password
	Refresh      Secret // RefreshToken: the first one
	Scope        string
	// State is the file for the refresh token that the server has given instead of
	// the one it was asked with. Only the Auth writes it.
	State string
}

// AuthConfig is where an uplink's token comes from: Token, or OAuth2.
type AuthConfig struct {
	Token  Secret
	OAuth2 *OAuth2
	TLS    *TLS        // to the token server; default: NewTLS(TLSConfig{})
	Warn   func(error) // is told what does not keep a token from being got
}

// Auth is the one owner of an uplink's secret. It may be used by several
// goroutines; a new token is asked for by one of its own, once for all of them.
// Times are measured on the monotonic clock: a Pi's wall clock jumps by years.
type Auth struct {
	cfg    AuthConfig
	client *http.Client
	ctx    context.Context // of the refresh under way
	cancel context.CancelFunc

	latest string // refresh token, of this process, also if the disk did not take it; used by run alone

	mu       sync.Mutex
	token    string
	refused  bool          // by the broker
	got      time.Time     // when token was asked for
	life     time.Duration // from got; 0: not known
	renew    time.Duration // from got
	running  chan struct{} // closed at the end of the refresh under way; nil: there is none
	failures int           // in a row
	next     time.Time     // not to be asked before
	err      error         // why not
	closed   bool
}

const (
	refreshTimeout = 20 * time.Second // of one refresh, fallbacks included
	closeGrace     = 3 * time.Second  // for the refresh under way: it may have changed the refresh token
	shortestLife   = time.Minute      // of a token, whatever the server says
	longestLife    = 366 * 24 * time.Hour
	young          = time.Minute // a token refused before it is that old: another hardly helps
	longestPause   = 5 * time.Minute
)

var (
	errClosed  = errors.New("no token is asked for any more: the uplink is closed")
	errFutile  = errors.New("the broker refuses each token as soon as the token server has given it: do the two belong together?")
	errNoToken = errors.New("there is no token in its answer: is token_url right?")
)

// NewAuth asks nobody for anything yet.
func NewAuth(cfg AuthConfig) (*Auth, error) {
	if cfg.Warn == nil {
		cfg.Warn = func(error) {}
	}
	if cfg.OAuth2 == nil {
		return &Auth{cfg: cfg}, nil
	}
	o := *cfg.OAuth2
	cfg.OAuth2 = &o
	if o.Grant == "" {
		o.Grant = ClientCredentials
	}
	u, err := url.Parse(o.TokenURL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("oauth2: this is not the token server's URL: want https://host/oauth2/token")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("oauth2: the token server's URL has no user, and nothing after ? or #")
	case !slices.Contains([]string{ClientCredentials, Password, RefreshToken}, o.Grant):
		return nil, fmt.Errorf("oauth2: there is no grant %q", o.Grant)
	case o.ClientID == "" || strings.Contains(o.ClientID, ":"):
		return nil, errors.New("oauth2: want a client id, without a colon")
	}
	if cfg.TLS == nil {
		if cfg.TLS, err = NewTLS(TLSConfig{}); err != nil {
			return nil, err
		}
	}
	a := &Auth{cfg: cfg, client: newClient(refreshTimeout, cfg.TLS)}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a, nil
}

// String tells no secret, nor does %#v.
func (a *Auth) String() string {
	if o := a.cfg.OAuth2; o != nil {
		return fmt.Sprintf("tokens of %s by %s", o.TokenURL, o.Grant)
	}
	return "a token from " + a.cfg.Token.File + a.cfg.Token.Env
}

// GoString is String.
func (a *Auth) GoString() string { return a.String() }

// Close ends the refresh under way, if any.
func (a *Auth) Close() {
	if a.client == nil {
		return
	}
	a.mu.Lock()
	a.closed = true
	running := a.running
	a.mu.Unlock()
	if running != nil {
		defer time.AfterFunc(closeGrace, a.cancel).Stop()
		<-running
	}
	a.cancel()
	a.client.CloseIdleConnections()
}

// Token is the secret to send now. Where there is none that is good it waits for
// a refresh, never longer than ctx; while the token server is left alone after a
// failure it returns that failure at once.
func (a *Auth) Token(ctx context.Context) (string, error) {
	if a.cfg.OAuth2 == nil {
		return a.cfg.Token.Token()
	}
	for {
		a.mu.Lock()
		age := time.Since(a.got)
		token := a.token
		good := token != "" && !a.refused && (a.life == 0 || age < a.life)
		var running chan struct{}
		var err error
		if !good || age >= a.renew {
			running, err = a.refresh()
		}
		a.mu.Unlock()
		switch {
		case good: // renewed meanwhile, if it is time
			return token, nil
		case err != nil:
			return "", err
		}
		select {
		case <-running:
		case <-ctx.Done():
			return "", fmt.Errorf("wait for the token server: %w", ctx.Err())
		}
	}
}

// Refused says that the broker answered 401 to a request with token. However many
// say so at once, one refresh is started, and none if token has been replaced
// already. It reports whether trying once more makes sense: there is another.
func (a *Auth) Refused(ctx context.Context, token string) (again bool) {
	if a.cfg.OAuth2 != nil {
		a.mu.Lock()
		a.refused = a.refused || token == a.token
		a.mu.Unlock()
	}
	now, err := a.Token(ctx)
	return err == nil && now != token
}

// refresh starts one, or says why not now. The mutex is held.
func (a *Auth) refresh() (running chan struct{}, err error) {
	switch {
	case a.running != nil:
		return a.running, nil
	case a.closed:
		return nil, errClosed
	case time.Until(a.next) > 0:
		return nil, a.err
	}
	a.running = make(chan struct{})
	go a.run(a.refused && min(time.Since(a.got), time.Since(a.next)) < young)
	return a.running, nil
}

// run is one refresh. futile: the broker has refused a token that was just got.
func (a *Auth) run(futile bool) {
	ctx, cancel := context.WithTimeout(a.ctx, refreshTimeout)
	defer cancel()
	begun := time.Now()
	g, err := a.fetch(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { close(a.running); a.running = nil }()
	if err == nil {
		a.token, a.refused, a.got, a.life = g.token, false, begun, g.life
		a.renew = time.Duration(float64(max(g.life, shortestLife)) * 0.8 * (0.95 + 0.1*rand.Float64()))
		if !futile {
			a.failures, a.next, a.err = 0, time.Time{}, nil
			return
		}
		err = errFutile
	}
	a.err = err
	a.next = time.Now().Add(tokenPause(a.failures))
	a.failures++
}

// tokenPause is how long the token server is left alone after n failures and one
// more: a second, then ever longer, and not the same for all gateways of a campus.
func tokenPause(n int) time.Duration {
	limit := min(longestPause, time.Second<<min(n, 10))
	return max(time.Second, limit/2+rand.N(limit/2))
}

// grant is what a token server gives.
type grant struct {
	token   string
	life    time.Duration // 0: it does not say
	refresh string        // empty: the one it was asked with goes on
}

// refusal is a token server's no to what it was asked with: something else may help.
type refusal struct{ words string }

func (r *refusal) Error() string { return r.words }

// fetch gets a token. Of a refresh token it tries what it has in turn: a power cut
// between the server's change of it and ours loses the one that is good.
func (a *Auth) fetch(ctx context.Context) (grant, error) {
	o := a.cfg.OAuth2
	secret, err := o.ClientSecret.Read()
	if err != nil {
		return grant{}, fmt.Errorf("the client's secret: %w", err)
	}
	clientOnly := url.Values{"grant_type": {"client_credentials"}}
	switch o.Grant {
	case Password:
		password, err := o.Password.Read()
		if err != nil {
			return grant{}, fmt.Errorf("the user's password: %w", err)
		}
		return a.ask(ctx, secret, url.Values{"grant_type": {"password"}, "username": {o.Username}, "password": {password}})
	case ClientCredentials:
		return a.ask(ctx, secret, clientOnly)
	}
	first, firstErr := o.Refresh.Read()
	stored := a.load()
	var tried []string
	for _, token := range []string{a.latest, stored, first} {
		if token == "" || slices.Contains(tried, token) {
			continue
		}
		tried = append(tried, token)
		g, err := a.ask(ctx, secret, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}})
		if _, no := errors.AsType[*refusal](err); no {
			continue
		}
		if err != nil {
			return grant{}, err
		}
		if g.refresh == "" {
			g.refresh = token
		}
		a.latest = g.refresh
		if g.refresh != stored && (stored != "" || g.refresh != first) {
			if err := a.store(g.refresh); err != nil {
				a.cfg.Warn(fmt.Errorf("the refresh token cannot be kept: after a restart the client's own token serves: %w", err))
			}
		}
		return g, nil
	}
	why := errors.New("the token server refuses the refresh token")
	if len(tried) == 0 {
		why = firstErr
	}
	g, err := a.ask(ctx, secret, clientOnly)
	if err == nil {
		a.cfg.Warn(fmt.Errorf("the client's own token serves instead of the user's: %w", why))
	}
	return g, err
}

// rotation is the state file: a refresh token, and whose it is. It never goes to
// another server.
type rotation struct {
	TokenURL string `json:"token_url"`
	ClientID string `json:"client_id"`
	Refresh  string `json:"refresh_token"`
}

// load is the refresh token kept, if there is one.
func (a *Auth) load() string {
	b, err := os.ReadFile(a.cfg.OAuth2.State)
	var r rotation
	if err != nil || json.Unmarshal(b, &r) != nil || r.TokenURL != a.cfg.OAuth2.TokenURL || r.ClientID != a.cfg.OAuth2.ClientID {
		return ""
	}
	return r.Refresh
}

// store keeps a refresh token, durably when it returns: the old or the new one is
// there whenever the power fails.
func (a *Auth) store(token string) error {
	o := a.cfg.OAuth2
	b, err := json.Marshal(rotation{o.TokenURL, o.ClientID, token})
	if err != nil {
		return err
	}
	dir := filepath.Dir(o.State)
	f, err := os.OpenFile(o.State+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(o.State+".tmp", o.State); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// ask is one request to the token server. Nothing of its words is in an error:
// they may quote what it was asked with.
func (a *Auth) ask(ctx context.Context, secret string, form url.Values) (grant, error) {
	o := a.cfg.OAuth2
	if o.Scope != "" {
		form.Set("scope", o.Scope)
	}
	fail := func(format string, args ...any) (grant, error) {
		return grant{}, fmt.Errorf("token server %s: "+format, append([]any{o.TokenURL}, args...)...)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return fail("%w", err)
	}
	req.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(o.ClientID+":"+secret)))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "campus-gateway")
	resp, err := a.client.Do(req)
	var body []byte
	if err == nil {
		a.cfg.TLS.answered()
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
		resp.Body.Close()
	}
	if err != nil {
		words, cause := why(err, "token server", a.cfg.TLS)
		return fail("%w", &failure{words, cause})
	}
	switch code := resp.StatusCode; {
	case code == http.StatusOK && len(body) > maxAnswer:
		return fail("its answer is larger than %d KiB: is token_url right?", maxAnswer>>10)
	case code == http.StatusOK:
		g, err := parseGrant(body)
		if err != nil {
			return fail("%w", err)
		}
		return g, nil
	case code == http.StatusBadRequest || code == http.StatusUnauthorized || code == http.StatusForbidden:
		return fail("%w", &refusal{fmt.Sprintf("it answered %d: %s", code, refusalWords(body))})
	case code >= 300 && code < 400:
		return fail("it sends us elsewhere, where we do not go: write the final address as token_url")
	case code == http.StatusNotFound || code == http.StatusMethodNotAllowed:
		return fail("it answered %d: there are no tokens at this address: check token_url", code)
	default:
		return fail("it answered %d %s", code, http.StatusText(code))
	}
}

// refusalWords says what to do about an error code of RFC 6749, section 5.2.
func refusalWords(body []byte) string {
	var e struct {
		Error json.RawMessage `json:"error"`
	}
	_ = json.Unmarshal(body, &e) // another shape has no code that we know
	switch string(e.Error) {
	case `"invalid_client"`:
		return "it does not know this client, or the secret is another: check client_id and the client's secret"
	case `"invalid_grant"`:
		return "it refuses the user, the password or the refresh token: is it withdrawn or expired?"
	case `"unauthorized_client"`, `"unsupported_grant_type"`:
		return "this client may not ask in this way: allow the grant there, or write another one"
	case `"invalid_scope"`:
		return "it does not know the scope"
	}
	return "it refuses: check client_id, the client's secret and the grant"
}

// parseGrant reads a token server's yes. No error has a part of it.
func parseGrant(body []byte) (grant, error) {
	var t struct {
		Token   string          `json:"access_token"`
		Type    *string         `json:"token_type"`
		Expires json.RawMessage `json:"expires_in"`
		Refresh string          `json:"refresh_token"`
	}
	if json.Unmarshal(body, &t) != nil || !fits(t.Token) {
		return grant{}, errNoToken
	}
	if t.Type != nil && !strings.EqualFold(*t.Type, "bearer") {
		return grant{}, errors.New("it gives a kind of token that is not bearer")
	}
	g := grant{token: t.Token, refresh: t.Refresh}
	// Seconds, of which some servers make a text.
	s, err := strconv.ParseFloat(strings.Trim(string(t.Expires), `"`), 64)
	if err == nil && !math.IsNaN(s) && s > 0 && s <= longestLife.Seconds() {
		g.life = max(shortestLife, time.Duration(s*float64(time.Second)))
	}
	return g, nil
}

// ownHeaders are those that say something else: a secret in one of them would
// break each request.
var ownHeaders = []string{
	"Accept", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Expect", "Fiware-Service", "Fiware-Servicepath", "Host",
	"Link", "Ngsild-Tenant", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "User-Agent",
}

var headerPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{0,64}$`)

// CheckHeader refuses what cannot be the header of a token.
func CheckHeader(name string) error {
	if !headerPattern.MatchString(name) {
		return fmt.Errorf("%q is not the name of a header: want bearer, x-auth-token, or such as X-Api-Key", name)
	}
	if slices.Contains(ownHeaders, http.CanonicalHeaderKey(name)) {
		return fmt.Errorf("the header %s has another use: want bearer, x-auth-token, or such as X-Api-Key", name)
	}
	return nil
}

// setToken puts the secret into exactly one header: Wilma does not look at
// X-Auth-Token where there is an Authorization.
func setToken(h http.Header, name, token string) {
	if name == "" || strings.EqualFold(name, "bearer") {
		h.Set("Authorization", "Bearer "+token)
		return
	}
	h.Set(name, token)
}

// hide takes a secret out of foreign text, also where JSON or a URL has escaped
// some of it.
func hide(text, secret string) string {
	if secret == "" || !strings.Contains(text, secret) && !strings.ContainsAny(text, `\%&`) {
		return text
	}
	var p strings.Builder
	for i := range len(secret) {
		c := secret[i]
		fmt.Fprintf(&p, `(?:\\?%s|(?i:\\u00%02x|%%%02x|&#%d;|&#x%x;))`, regexp.QuoteMeta(string(rune(c))), c, c, c, c)
	}
	return regexp.MustCompile(p.String()).ReplaceAllLiteralString(text, "(token)")
}
