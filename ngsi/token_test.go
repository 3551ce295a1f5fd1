package ngsi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"campus-gateway"
	"campus-gateway/ngsi/sandbox"
)

// write makes a file with text in it.
func write(t *testing.T, name, text string) string {
	t.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(t.TempDir(), name)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// static is the owner of a token in a file.
func static(t *testing.T, token string) *Auth {
	t.Helper()
	a, err := NewAuth(AuthConfig{Token: Secret{File: write(t, "token", token+"\n")}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// The canaries: none of them may ever be in an error, a line or a dump.
const (
	canarySecret   = "canary-client-secret+/=0123456789"
	canaryPassword = "canary-password-ü&%0123456789"
	canaryFirst    = "canary-refresh-first-0123456789"
)

// keyrock is a token server: each answer is another token, and each refresh token
// is good once. ask, if set, answers instead where it says so.
type keyrock struct {
	expires string // as JSON; empty: nothing is said
	ask     func(w http.ResponseWriter, n int, form url.Values) bool

	mu      sync.Mutex
	asked   []url.Values
	valid   map[string]bool // access tokens
	refresh map[string]bool
}

func (k *keyrock) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	k.mu.Lock()
	k.asked = append(k.asked, r.PostForm)
	n := len(k.asked)
	k.mu.Unlock()
	if k.ask != nil && k.ask(w, n, r.PostForm) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	refuse := func(code string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(400)
		// It quotes all that it was asked with.
		_ = json.NewEncoder(w).Encode(map[string]string{"error": code, "error_description": fmt.Sprint(r.Header, r.PostForm)})
	}
	if r.Method != "POST" || r.URL.RawQuery != "" || r.Header.Get("Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte("gw-1:"+canarySecret)) {
		refuse("invalid_client")
		return
	}
	answer := map[string]any{"access_token": fmt.Sprintf("canary-access-%d-0123456789", n), "token_type": "Bearer"}
	switch r.PostForm.Get("grant_type") {
	case "client_credentials":
	case "password":
		if r.PostForm.Get("username") != "joe" || r.PostForm.Get("password") != canaryPassword {
			refuse("invalid_grant")
			return
		}
	case "refresh_token":
		old := r.PostForm.Get("refresh_token")
		if !k.refresh[old] {
			refuse("invalid_grant")
			return
		}
		delete(k.refresh, old)
		next := fmt.Sprintf("canary-refresh-%d-0123456789", n)
		k.refresh[next] = true
		answer["refresh_token"] = next
	}
	if k.expires != "" {
		answer["expires_in"] = json.RawMessage(k.expires)
	}
	if k.valid == nil {
		k.valid = map[string]bool{}
	}
	k.valid[answer["access_token"].(string)] = true
	_ = json.NewEncoder(w).Encode(answer)
}

// withdraw makes all tokens given so far bad ones.
func (k *keyrock) withdraw() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.valid)
}

func (k *keyrock) good(token string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.valid[token]
}

func (k *keyrock) times() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.asked)
}

// grants are the kinds that were asked for.
func (k *keyrock) grants() (kinds []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.asked {
		kinds = append(kinds, f.Get("grant_type"))
	}
	return kinds
}

// guard is Wilma: it lets only those through that have a good token, in one header.
func (k *keyrock) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || !k.good(token) || r.Header.Get("X-Auth-Token") != "" {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(401)
			_ = json.NewEncoder(w).Encode(map[string]string{"type": "urn:dx:as:ExpiredAuthenticationToken", "title": "Unauthorized", "detail": "not " + r.Header.Get("Authorization")})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// memory is a listener in memory, and how it is reached: it works in a bubble.
func memory(t *testing.T, h http.Handler) func(ctx context.Context, _, _ string) (net.Conn, error) {
	ln := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		a, z := net.Pipe()
		select {
		case ln.conns <- z:
			return a, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// newAuth is the owner of tokens of k, over connections in memory.
func newAuth(t *testing.T, k http.Handler, o OAuth2) *Auth {
	t.Helper()
	o.TokenURL, o.ClientID = "http://keyrock.test/oauth2/token", "gw-1"
	o.ClientSecret = Secret{File: write(t, "secret", canarySecret+"\n")}
	a, err := NewAuth(AuthConfig{OAuth2: &o, Warn: func(err error) { noCanary(t, err) }})
	if err != nil {
		t.Fatal(err)
	}
	a.client.Transport.(*http.Transport).DialContext = memory(t, k)
	t.Cleanup(a.Close)
	return a
}

// noCanary looks for secrets in all that err and its causes say.
func noCanary(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, text := range []string{err.Error(), fmt.Sprintf("%v %+v %#v", err, err, err)} {
		lower := strings.ToLower(text)
		if un, e := url.QueryUnescape(lower); e == nil {
			lower += un
		}
		if strings.Contains(lower, "canary") || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte("gw-1:canary"))[:16]) {
			t.Errorf("a secret is in an error: %s", text)
		}
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		noCanary(t, e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, e := range e.Unwrap() {
			noCanary(t, e)
		}
	}
}

func must(t *testing.T, a *Auth) string {
	t.Helper()
	token, err := a.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Ten requests that are refused at once cost one refresh, in each expiry, also
// while the token server is slow.
func TestD5TenRefusedOneRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keyrock{expires: "3600", ask: func(http.ResponseWriter, int, url.Values) bool { time.Sleep(3 * time.Second); return false }}
		a := newAuth(t, k, OAuth2{})
		for range 3 {
			token := must(t, a)
			before := k.times()
			k.withdraw()
			var again atomic.Int32
			var wg sync.WaitGroup
			for i := range 10 {
				wg.Go(func() {
					time.Sleep(time.Duration(i) * 500 * time.Millisecond) // some after it has been replaced
					if a.Refused(t.Context(), token) {
						again.Add(1)
					}
					if now := must(t, a); !k.good(now) {
						t.Error("a token that is withdrawn")
					}
				})
			}
			wg.Wait()
			if again.Load() != 10 || k.times() != before+1 {
				t.Fatalf("asked %d times, again for %d", k.times()-before, again.Load())
			}
			time.Sleep(2 * time.Minute)
		}
		a.Close()
	})
}

// A batch on several lanes goes through a broker that demands the token while
// tokens expire again and again: nothing is lost, one refresh for each expiry.
func TestD5NothingLost(t *testing.T) {
	for _, api := range []string{"ngsi-v2", "ngsi-ld"} {
		t.Run(api, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := &keyrock{expires: "3600"}
				var mu sync.Mutex
				states := map[string]bool{}
				b := sandbox.New(sandbox.Options{OnUpdate: func(u sandbox.Update) {
					mu.Lock()
					defer mu.Unlock()
					for _, a := range u.Attrs {
						if a.Name == "temperature" {
							states[u.ID+a.Value] = true
						}
					}
				}})
				m, rs := many(100)
				s := newSink(t, k.guard(b), Config{API: api, Auth: newAuth(t, k, OAuth2{})}, m)
				for range 5 {
					k.withdraw()
					before := k.times()
					var lanes sync.WaitGroup
					for lane := range 10 {
						lanes.Go(func() {
							if err := s.Send(t.Context(), rs[lane*10:lane*10+10]); err != nil {
								t.Error(err)
							}
						})
					}
					lanes.Wait()
					if k.times() != before+1 {
						t.Errorf("%d refreshes for one expiry", k.times()-before)
					}
					time.Sleep(10 * time.Minute)
				}
				if len(states) != 100 {
					t.Errorf("%d of 100 readings at the broker", len(states))
				}
				s.Close()
			})
		})
	}
}

// A 401 costs one refresh and one more try; 403, and Wilma's 401 about policy, none.
// All keep the readings, none rejects any.
func TestD5Refusals(t *testing.T) {
	for name, c := range map[string]struct {
		status          int
		body            string
		requests, asked int
		words           string
	}{
		"401": {401, `{"error":"x"}`, 2, 2, "the broker refuses our token"},
		"403": {403, `{"error":"x"}`, 1, 1, "the broker refuses: policy"},
		"401 of Wilma's policy": {401, `{"type":"urn:dx:as:InvalidRole","title":"Unauthorized","detail":"User access-token not authorized"}`,
			1, 1, "the broker refuses: policy"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := &keyrock{expires: "3600"}
				b := &broker{answer: func(*http.Request, string) (int, string, string) { return c.status, jsonType, c.body }}
				m, rs := many(1)
				s := newSink(t, b, Config{Auth: newAuth(t, k, OAuth2{})}, m)
				err := s.Send(t.Context(), rs)
				if _, ok := errors.AsType[*gateway.RetryError](err); !ok || !strings.Contains(err.Error(), c.words) {
					t.Errorf("%v", err)
				}
				if len(b.all()) != c.requests || k.times() != c.asked {
					t.Errorf("%d requests, %d tokens", len(b.all()), k.times())
				}
				// However often the readings are tried, the token server is left alone more and more.
				for range 3600 {
					time.Sleep(time.Second)
					_ = s.Send(t.Context(), rs)
				}
				if k.times() > 30 {
					t.Errorf("%d tokens in an hour", k.times())
				}
				s.Close()
			})
		})
	}
}

// While the token server is down a good token goes on; without one each asking
// fails at once, and the server is asked after 1 s … 5 min, not more often.
func TestD5ServerDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		k := &keyrock{expires: "3600", ask: func(w http.ResponseWriter, _ int, _ url.Values) bool {
			if down.Load() {
				w.WriteHeader(503)
				return true
			}
			return false
		}}
		a := newAuth(t, k, OAuth2{})
		token := must(t, a)
		down.Store(true)
		for range 3599 { // also past four fifths
			time.Sleep(time.Second)
			if now := must(t, a); now != token {
				t.Fatal("another token")
			}
		}
		if n := k.times(); n < 3 || n > 20 {
			t.Errorf("asked %d times within the last fifth", n)
		}
		time.Sleep(2 * time.Second) // expired
		if _, err := a.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "it answered 503") {
			t.Fatalf("%v", err)
		}
		before, begun, asked := k.times(), time.Now(), 0
		for time.Since(begun) < time.Hour {
			start := time.Now()
			if _, err := a.Token(t.Context()); err == nil {
				t.Fatal("a token of a server that is down")
			}
			if k.times() == before+asked && time.Since(start) > 0 {
				t.Fatal("it waits while the server is left alone")
			}
			asked = k.times() - before
			time.Sleep(time.Second)
		}
		if asked < 12 || asked > 30 {
			t.Errorf("asked %d times in an hour", asked)
		}
		down.Store(false)
		time.Sleep(5 * time.Minute)
		if now := must(t, a); now == token {
			t.Error("the old token")
		}
		a.Close()
	})
	for n := range 100 {
		if p := tokenPause(n); p < time.Second || p > 5*time.Minute || n > 20 && p < 150*time.Second {
			t.Errorf("%v after %d failures", p, n+1)
		}
	}
}

// A slow token server holds nobody longer than the context, and 20 s at most; what
// is collected meanwhile is not its matter. Close does not wait for it either.
func TestD5ServerSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuth(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.ReadAll(r.Body)
			<-r.Context().Done()
		}), OAuth2{})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		begun := time.Now()
		if _, err := a.Token(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		if _, err := a.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "it takes too long") || time.Since(begun) != refreshTimeout {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		time.Sleep(time.Second)
		go func() { _, _ = a.Token(t.Context()) }()
		synctest.Wait()
		begun = time.Now()
		a.Close()
		if d := time.Since(begun); d != closeGrace {
			t.Errorf("closed after %v", d)
		}
		if _, err := a.Token(t.Context()); err == nil {
			t.Error("a token after the end")
		}
	})
}

// A renewal that takes long holds nobody while the token is good.
func TestD5RenewalSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keyrock{expires: "3600", ask: func(_ http.ResponseWriter, n int, _ url.Values) bool {
			if n > 1 {
				time.Sleep(10 * time.Second)
			}
			return false
		}}
		a := newAuth(t, k, OAuth2{})
		token := must(t, a)
		time.Sleep(55 * time.Minute)
		for range 9 {
			begun := time.Now()
			if must(t, a) != token || time.Since(begun) != 0 {
				t.Errorf("another token, or after %v", time.Since(begun))
			}
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Second)
		if must(t, a) == token || k.times() != 2 {
			t.Errorf("asked %d times", k.times())
		}
		a.Close()
	})
}

// Renewal is at 80 % of the life, 5 % of that earlier or later, whatever the server
// says of it.
func TestD5Renewal(t *testing.T) {
	for expires, want := range map[string]time.Duration{
		"": time.Minute, "0": time.Minute, "-5": time.Minute, "null": time.Minute, "1e300": time.Minute, `"soon"`: time.Minute, "[1]": time.Minute,
		"7": time.Minute, "99999999999": time.Minute, "3599": 3599 * time.Second, `"1800"`: 30 * time.Minute, "600.5": 600500 * time.Millisecond,
	} {
		synctest.Test(t, func(t *testing.T) {
			k := &keyrock{expires: expires}
			a := newAuth(t, k, OAuth2{})
			must(t, a)
			begun := time.Now()
			for k.times() == 1 && time.Since(begun) < 2*time.Hour {
				time.Sleep(want / 200)
				must(t, a)
				synctest.Wait()
			}
			if part := float64(time.Since(begun)) / float64(want); part < 0.755 || part > 0.85 {
				t.Errorf("expires %s: renewed after %.3f of it", expires, part)
			}
			a.Close()
		})
	}
}

// A wall clock that jumps by years, in either way, neither renews a token nor keeps
// it: the monotonic clock counts. (A bubble has none: this is in real time.)
func TestD5WallClock(t *testing.T) {
	for _, years := range []int{-20, 20} {
		k := &keyrock{expires: "3600"}
		a := newAuth(t, k, OAuth2{})
		token := must(t, a)
		age := func(by time.Duration) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.got = a.got.Add(-by)
		}
		jumpWall(&a.got, years)
		age(40 * time.Minute)
		if must(t, a) != token || a.running != nil {
			t.Errorf("%d years: renewed", years)
		}
		age(30 * time.Minute) // past its life
		if must(t, a) == token {
			t.Errorf("%d years: an expired token", years)
		}
		// A pause after a failure is not longer or shorter either.
		a.mu.Lock()
		a.err, a.next, a.refused = errFutile, time.Now().Add(time.Minute), true
		jumpWall(&a.next, years)
		a.mu.Unlock()
		if _, err := a.Token(t.Context()); err == nil {
			t.Errorf("%d years: the token server is asked in its pause", years)
		}
		a.mu.Lock()
		a.next = a.next.Add(-2 * time.Minute)
		a.mu.Unlock()
		must(t, a)
	}
}

// jumpWall makes t look as if the wall clock had jumped by years since it was
// read: only the time's wall part changes. The layout is that of package time:
// a word with the seconds in bits 30 to 62, then the monotonic reading.
func jumpWall(t *time.Time, years int) {
	before := *t
	word := (*uint64)(unsafe.Pointer(t))
	*word -= uint64(years*365*86400) << 30
	if d := t.Sub(before); d != 0 || t.Round(0).Sub(before.Round(0)) != -time.Duration(years)*365*24*time.Hour {
		panic("package time has changed its layout")
	}
}

// A rotated refresh token is durable before the token that came with it is used,
// and goes on after a restart; it never goes to another server.
func TestD5Rotation(t *testing.T) {
	state := filepath.Join(t.TempDir(), "refresh.json")
	kept := func() string {
		b, _ := os.ReadFile(state)
		return string(b)
	}
	k := &keyrock{expires: "3600", refresh: map[string]bool{canaryFirst: true}}
	config := OAuth2{Grant: RefreshToken, Refresh: Secret{File: write(t, "first", canaryFirst)}, State: state}
	a := newAuth(t, k, config)
	for round := 1; round <= 3; round++ {
		for waiting := true; waiting; { // until the token is there to be seen, the file must be as well
			a.mu.Lock()
			waiting = a.token == "" || a.refused
			a.mu.Unlock()
			if !waiting {
				break
			}
			go func() { _, _ = a.Token(t.Context()) }()
			time.Sleep(time.Millisecond)
		}
		if want := fmt.Sprintf("canary-refresh-%d-", round); !strings.Contains(kept(), want) {
			t.Fatalf("the token is there to be used, the refresh token %s is not in the file: %s", want, kept())
		}
		a.mu.Lock()
		a.refused, a.got = true, a.got.Add(-young)
		a.mu.Unlock()
	}
	i, err := os.Stat(state)
	if err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", i.Mode(), err)
	}
	if slices.Contains(k.grants(), "client_credentials") {
		t.Errorf("%v", k.grants())
	}
	a.Close()
	before := k.times()
	a = newAuth(t, k, config) // a restart
	must(t, a)
	if k.asked[before].Get("refresh_token") == canaryFirst || k.times() != before+1 {
		t.Error("the one from before the restart is not used")
	}
	b := newAuth(t, k, config)
	b.cfg.OAuth2.ClientID = "another"
	if b.load() != "" {
		t.Error("it goes to another client")
	}
}

// The power fails between the server's change of the refresh token and ours, or
// ours is lost: the configured one, or else the client's own token, goes on. A disk
// that takes nothing does not end the uplink either.
func TestD5RotationCrash(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "refresh.json")
	old := `{"token_url":"http://keyrock.test/oauth2/token","client_id":"gw-1","refresh_token":"canary-refresh-old"}`
	first := Secret{File: write(t, "first", canaryFirst)}
	const refresh, client = "refresh_token", "client_credentials"
	for name, c := range map[string]struct {
		file  string
		valid []string
		want  []string
	}{
		"file not yet renamed":   {old, []string{"canary-refresh-old"}, []string{refresh}},
		"used up, first good":    {old, []string{canaryFirst}, []string{refresh, refresh}},
		"used up, first as well": {old, nil, []string{refresh, refresh, client}},
		"torn file":              {old[:70], []string{canaryFirst}, []string{refresh}},
		"another server's":       {strings.ReplaceAll(old, "keyrock", "rogue"), []string{canaryFirst}, []string{refresh}},
		"nothing, all refused":   {"", nil, []string{refresh, client}},
	} {
		t.Run(name, func(t *testing.T) {
			k := &keyrock{refresh: map[string]bool{}}
			for _, v := range c.valid {
				k.refresh[v] = true
			}
			write(t, state, c.file)
			write(t, state+".tmp", "half of a")
			a := newAuth(t, k, OAuth2{Grant: RefreshToken, Refresh: first, State: state})
			if token := must(t, a); !k.good(token) || !slices.Equal(k.grants(), c.want) {
				t.Errorf("asked by %v", k.grants())
			}
		})
	}
	t.Run("disk", func(t *testing.T) {
		k := &keyrock{refresh: map[string]bool{canaryFirst: true}}
		missing := filepath.Join(dir, "missing")
		a := newAuth(t, k, OAuth2{Grant: RefreshToken, Refresh: first, State: filepath.Join(missing, "refresh.json")})
		warned := 0
		a.cfg.Warn = func(err error) { noCanary(t, err); warned++ }
		for range 3 {
			if err := os.RemoveAll(missing); err != nil {
				t.Fatal(err)
			}
			token := must(t, a)
			a.mu.Lock()
			a.got = a.got.Add(-time.Hour)
			a.mu.Unlock()
			if !a.Refused(t.Context(), token) {
				t.Fatal("no other token")
			}
			if err := os.MkdirAll(missing, 0o700); err != nil {
				t.Fatal(err)
			}
			a.mu.Lock()
			a.refused, a.got = true, a.got.Add(-time.Hour)
			a.mu.Unlock()
			must(t, a)
			if a.load() == "" {
				t.Fatal("not kept when the disk is back")
			}
		}
		if warned == 0 || slices.Contains(k.grants(), client) {
			t.Errorf("%d warnings, %v", warned, k.grants())
		}
	})
}

func TestD5Password(t *testing.T) {
	t.Setenv("GATEWAY_TEST_PASSWORD", canaryPassword)
	k := &keyrock{}
	a := newAuth(t, k, OAuth2{Grant: Password, Username: "joe", Password: Secret{Env: "GATEWAY_TEST_PASSWORD"}, Scope: "permanent"})
	if !k.good(must(t, a)) || k.asked[0].Get("scope") != "permanent" || !slices.Equal(k.grants(), []string{"password"}) {
		t.Errorf("%v", k.asked)
	}
}

// Whatever the token server answers but a token: an error for people, soon, that
// holds nothing of what was sent or answered.
func TestD5ServerGarbage(t *testing.T) {
	raw := func(text string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			c, _, _ := w.(http.Hijacker).Hijack()
			_, _ = io.WriteString(c, text)
			c.Close()
		}
	}
	says := func(status int, text string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { w.WriteHeader(status); _, _ = io.WriteString(w, text) }
	}
	all := canarySecret + " " + canaryPassword + " " + canaryFirst
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter)
		want   string
	}{
		"login page":   {says(200, "<html>log in to the campus "+all), "there is no token in its answer"},
		"empty":        {says(200, ""), "there is no token in its answer"},
		"no token":     {says(200, `{"access_token":""}`), "there is no token in its answer"},
		"not a header": {says(200, `{"access_token":"canary\r\nX: y"}`), "there is no token in its answer"},
		"another kind": {says(200, `{"access_token":"canary","token_type":"canary-mac"}`), "not bearer"},
		"huge":         {says(200, `{"access_token":"`+strings.Repeat("canary", 1<<20)+`"}`), "larger than 64 KiB"},
		"refused":      {says(400, `{"error":"invalid_grant","error_description":"`+all+`"}`), "withdrawn or expired"},
		"its secret":   {says(401, `{"error":"invalid_client","message":"`+all+`"}`), "check client_id"},
		"not allowed":  {says(400, `{"error":"unauthorized_client"}`), "allow the grant"},
		"scope":        {says(400, `{"error":"invalid_scope"}`), "scope"},
		"odd error":    {says(400, `{"error":{"canary":1}}`), "it refuses"},
		"canary error": {says(400, `{"error":"canary"}`), "it refuses"},
		"not found":    {says(404, all), "check token_url"},
		"down":         {says(502, all), "it answered 502 Bad Gateway"},
		"odd status":   {says(599, all), "it answered 599"},
		"not HTTP":     {raw("220 canary ESMTP " + all + "\r\n"), "its answer is not HTTP"},
		"bad header":   {raw("HTTP/1.1 200 OK\r\n" + all + "\r\n\r\n"), "its answer is not HTTP"},
		"bad length":   {raw("HTTP/1.1 200 OK\r\nContent-Length: " + canarySecret + "\r\n\r\n"), "token server"},
		"bad coding":   {raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: " + canarySecret + "\r\n\r\n"), "its answer is not HTTP"},
		"bad status":   {raw("HTTP/1.1 " + canarySecret + " OK\r\n\r\n"), "its answer is not HTTP"},
		"cut":          {raw("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"), "closed too early"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAuth(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.ReadAll(r.Body)
				c.answer(w)
			}), OAuth2{Grant: RefreshToken, Refresh: Secret{File: write(t, "first", canaryFirst)}, State: filepath.Join(t.TempDir(), "s")})
			_, err := a.Token(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.ContainsAny(err.Error(), "\r\n<") {
				t.Errorf("%v", err)
			}
			noCanary(t, err)
			b := &broker{answer: func(*http.Request, string) (int, string, string) { t.Error("sent without a token"); return 204, "", "" }}
			m, rs := many(1)
			s := newSink(t, b, Config{Auth: a}, m)
			err = s.Send(t.Context(), rs)
			if _, ok := errors.AsType[*gateway.RetryError](err); !ok {
				t.Errorf("%v", err)
			}
			noCanary(t, err)
		})
	}
}

// Secrets that are not there, or are no secrets, and settings that cannot be.
func TestNewAuth(t *testing.T) {
	good := OAuth2{TokenURL: "https://h/oauth2/token", ClientID: "gw"}
	for want, change := range map[string]func(*OAuth2){
		"want https://host":     func(o *OAuth2) { o.TokenURL = "h/token" },
		"has no user":           func(o *OAuth2) { o.TokenURL = "https://canary:x@h/token" },
		"nothing after":         func(o *OAuth2) { o.TokenURL = "https://h/token?secret=canary" },
		`there is no grant "x"`: func(o *OAuth2) { o.Grant = "x" },
		"want a client id":      func(o *OAuth2) { o.ClientID = "" },
	} {
		o := good
		change(&o)
		_, err := NewAuth(AuthConfig{OAuth2: &o})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
		noCanary(t, err)
	}
	for want, s := range map[string]Secret{
		"is empty or not set": {Env: "GATEWAY_TEST_NOT_THERE"},
		"no such file":        {File: "/nonexistent/token"},
		"is empty":            {File: write(t, "empty", " \n")},
		"no header takes":     {File: write(t, "two", "canary one\ncanary two")},
		"cannot be read":      {File: t.TempDir()},
	} {
		a, err := NewAuth(AuthConfig{Token: s})
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.Token(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
		noCanary(t, err)
		a.Close()
	}
	k := &keyrock{}
	a := newAuth(t, k, OAuth2{})
	must(t, a)
	noCanary(t, fmt.Errorf("%v %+v %#v %s", a, a, a, a))
	noCanary(t, fmt.Errorf("%+v", Config{Auth: a}))
}

// TestToken: the secret goes into exactly one header, is read anew each time and
// again after 401, and stands in no error, whatever the broker says and however it
// writes it, nor in a dry run.
func TestToken(t *testing.T) {
	escapes := map[string]func(string) string{
		"plain": func(s string) string { return s },
		"json":  func(s string) string { return strings.NewReplacer("/", `\/`, "c", `\u0063`, "y", `\u0079`).Replace(s) },
		"url":   func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "a", "%61") },
	}
	for header, want := range map[string]string{"": "Authorization", "bearer": "Authorization", "x-auth-token": "X-Auth-Token", "apikey": "Apikey"} {
		for name, escape := range escapes {
			file := write(t, "token", "canary/+=&0123456789-1")
			a, err := NewAuth(AuthConfig{Token: Secret{File: file}})
			if err != nil {
				t.Fatal(err)
			}
			n := 1
			b := &broker{answer: func(r *http.Request, body string) (int, string, string) {
				n++
				write(t, file, fmt.Sprintf("canary/+=&0123456789-%d", n)) // rotated in mid-request
				if n == 2 || n > 10 {
					return 204, "", ""
				}
				return 401, jsonType, `{"error":"bad token","description":"` + strings.Repeat("x", maxWords-30) + escape(r.Header.Get(want)) + `"}`
			}}
			m, rs := many(1)
			s := newSink(t, b, Config{AuthHeader: header, Auth: a}, m)
			err = s.Send(t.Context(), rs)
			if err == nil || !strings.Contains(err.Error(), "refuses our token") {
				t.Errorf("%v", err)
			}
			noCanary(t, err)
			if len(b.all()) != 3 { // accepted, refused, refused again with the file's new one: no more
				t.Errorf("%s %s: %d requests", header, name, len(b.all()))
			}
			for i, r := range b.all() {
				value := fmt.Sprintf("canary/+=&0123456789-%d", i+1)
				if want == "Authorization" {
					value = "Bearer " + value
				}
				carriers := 0
				for _, v := range r.header {
					if strings.Contains(fmt.Sprint(v), "canary") {
						carriers++
					}
				}
				if r.header.Get(want) != value || carriers != 1 {
					t.Errorf("%v", r.header)
				}
			}
			for _, r := range s.Requests(rs) {
				if strings.Contains(fmt.Sprint(r), "canary") || !strings.HasSuffix(r.Header.Get(want), "(hidden)") {
					t.Errorf("%v", r.Header)
				}
			}
		}
	}
}

// The broker's own words are in rejections and errors, the token that it quotes is
// not: in no place of an answer.
func TestBrokerQuotesToken(t *testing.T) {
	const token = "canary-0123456789"
	for name, answer := range map[string]func(w http.ResponseWriter){
		"rejection": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", jsonType)
			w.WriteHeader(400)
			_, _ = io.WriteString(w, `{"error":"BadRequest","description":"`+token+`"}`)
		},
		"redirect": func(w http.ResponseWriter) {
			w.Header().Set("Location", "http://"+token+".rogue.test/")
			w.WriteHeader(302)
		},
		"list": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", jsonType)
			w.WriteHeader(207)
			_, _ = io.WriteString(w, `{"success":[],"errors":[{"entityId":"urn:ngsi-ld:IndoorEnvironmentObserved:gw:s0000","error":{"title":"`+token+`","status":409}}]}`)
		},
		"status": func(w http.ResponseWriter) {
			c, _, _ := w.(http.Hijacker).Hijack()
			_, _ = io.WriteString(c, "HTTP/1.1 500 "+token+"\r\n\r\n")
			c.Close()
		},
		"not HTTP": func(w http.ResponseWriter) {
			c, _, _ := w.(http.Hijacker).Hijack()
			_, _ = io.WriteString(c, token+"\r\n\r\n")
			c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, rs := many(1)
			s := newSink(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if body, _ := io.ReadAll(r.Body); !strings.Contains(string(body), "Observed") {
					w.WriteHeader(204)
					return
				}
				answer(w)
			}), Config{API: "ngsi-ld", Auth: static(t, token)}, m)
			err := s.Send(t.Context(), rs)
			if err == nil {
				t.Error("accepted")
			}
			noCanary(t, err)
			if e, ok := errors.AsType[*gateway.RejectError](err); ok {
				noCanary(t, errors.New(e.Rejected[0].Reason))
			}
		})
	}
}

// TestD9Redirect: neither readings nor token nor the client's secret go to a host
// nobody configured, and a login page is no acknowledgement.
func TestD9Redirect(t *testing.T) {
	visited := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { visited = true }))
	defer other.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		srv := httptest.NewServer(http.RedirectHandler(other.URL+"/portal", status))
		m, rs := many(1)
		s, err := New(Config{URL: srv.URL, Auth: static(t, "canary")}, m)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Send(t.Context(), rs)
		if _, ok := errors.AsType[*gateway.RetryError](err); visited || !ok || !strings.Contains(err.Error(), "it sends us to "+other.URL) {
			t.Errorf("visited %v, %v", visited, err)
		}
		s.Close()
		a, err := NewAuth(AuthConfig{OAuth2: &OAuth2{TokenURL: srv.URL, ClientID: "gw-1", ClientSecret: Secret{File: write(t, "s", canarySecret)}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Token(t.Context()); visited || err == nil || !strings.Contains(err.Error(), "where we do not go: write the final address as token_url") {
			t.Errorf("visited %v, %v", visited, err)
		}
		a.Close()
		srv.Close()
	}
}

// TestD9LoginPage: a captive portal answers 200 to all. It gets the token of plain
// http, as every host on the way does; it acknowledges nothing.
func TestD9LoginPage(t *testing.T) {
	b := &broker{answer: func(*http.Request, string) (int, string, string) { return 200, "text/html", "<html>log in: canary" }}
	m, rs := many(3)
	s := newSink(t, b, Config{Auth: static(t, "canary")}, m)
	err := s.Send(t.Context(), rs)
	if _, ok := errors.AsType[*gateway.RetryError](err); !ok || !strings.Contains(err.Error(), "login page") {
		t.Errorf("%v", err)
	}
	noCanary(t, err)
}

// FuzzToken: whatever a token server answers, what is taken for a token fits into
// a header and lives between a minute and a year; no error quotes the answer.
func FuzzToken(f *testing.F) {
	for _, s := range []string{
		`{"access_token":"a","token_type":"Bearer","expires_in":3599,"refresh_token":"b","scope":["bearer"]}`,
		`{"access_token":"a","expires_in":"3599"}`, `{"access_token":"a","expires_in":-1e308}`, `{"access_token":"a\r\nb"}`,
		`{"access_token":1}`, `{"expires_in":NaN}`, `[]`, `null`, `<html>`, ``, `{"ACCESS_TOKEN":"a","access_token":"b","expires_in":"Inf"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		g, err := parseGrant(body)
		switch {
		case err != nil && (g != grant{} || err.Error() != errNoToken.Error() && err.Error() != "it gives a kind of token that is not bearer"):
			t.Errorf("%+v %v", g, err)
		case err == nil && (!fits(g.token) || g.life != 0 && (g.life < time.Minute || g.life > longestLife)):
			t.Errorf("%q: %+v", body, g)
		}
		_ = refusalWords(body)
		h := http.Header{}
		if err == nil {
			setToken(h, "", g.token)
			if quoted := hide(strings.Repeat("x", rand.IntN(3))+h.Get("Authorization"), g.token); len(g.token) > 12 && strings.Contains(quoted, g.token) {
				t.Errorf("%q is not hidden", g.token)
			}
		}
	})
}
