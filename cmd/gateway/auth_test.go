package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"campus-gateway/drivers/sim"
)

// A secret has many ways into the file. Each is refused with what to write instead,
// and neither it nor its line is ever shown, whatever else is wrong there.
func TestConfigSecretsNotShown(t *testing.T) {
	dir := t.TempDir()
	blanks := filepath.Join(dir, "blanks")
	if err := os.WriteFile(blanks, []byte("geheim one\ngeheim two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		broker string // what follows the URL
		want   string
	}{
		"token":             {"auth: {token: geheim}", "x.yaml:2:24: broker.auth.token: a secret is never written here: write it into a file that only root can read, and that file's name as token_file"},
		"token as auth":     {"auth: geheim", "broker.auth: want keys and values, such as `token_file:"},
		"list as auth":      {"auth: [geheim]", "broker.auth: want keys and values"},
		"oauth2 text":       {"auth: {oauth2: geheim}", "broker.auth.oauth2: want keys and values"},
		"client secret":     {"auth: {oauth2: {client_secret: geheim}}", "that file's name as client_secret_file"},
		"password":          {"auth: {oauth2: {password: geheim}}", "that file's name as password_file"},
		"refresh token":     {"auth: {oauth2: {refresh_token: geheim}}", "that file's name as refresh_token_file"},
		"at the broker":     {"token: geheim", "broker.token: a secret is never written here"},
		"other fault":       {"api: nonsense, auth: {token: geheim}", `"nonsense" is not one of`},
		"on the next line":  {"auth: {token:\n  geheim, foo: 1}", "broker.auth.foo: unknown key"},
		"secret as file":    {"auth: {token_file: geheim0123456789}", "broker.auth.token_file: want the path of a file, such as /etc/gateway/secrets/token"},
		"secret as env":     {"auth: {token_env: geheim0123456789}", "broker.auth.token_env: want the name of an environment variable in capitals, such as GATEWAY_TOKEN"},
		"secret in header":  {"auth: {header: \"Bearer geheim\"}", "broker.auth.header: want bearer, x-auth-token, or"},
		"secret in the URL": {"auth: {oauth2: {token_url: \"https://u:geheim@h/token\"}}", "token_url: want http:// or https://, a host and a path, without a user"},
		"not YAML":          {"auth: {token: geheim]", "not YAML"},
		"file's contents":   {"auth: {token_file: " + blanks + "}", "has blanks"},
		"twice":             {"auth: {token: geheim, token: geheim}", "a secret is never written here"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readConfig("x.yaml", []byte("gateway: {id: a}\nbroker: {url: x://, "+c.broker+"}\n"))
			if err == nil || strings.Contains(err.Error(), "geheim") {
				t.Fatalf("accepted, or shown:\n%v", err)
			}
			want := strings.TrimPrefix(c.want, "x.yaml:2:24: ")
			if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "x.yaml:") {
				t.Errorf("%q is not in:\n%v", want, err)
			}
		})
	}
}

// Every fault of the way to a token, and of TLS, is told with its line.
func TestConfigAuthFaults(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("geheim\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	oauth := func(more string) string {
		return "auth: {oauth2: {token_url: \"https://h/token\", client_id: gw, client_secret_file: " + secret + more + "}}"
	}
	for name, c := range map[string]struct{ broker, want string }{
		"nothing":            {"auth: {oauth2: {}}", "x.yaml:3:18: broker.auth.oauth2.token_url: there is no token server"},
		"no client":          {"auth: {oauth2: {token_url: \"https://h/t\"}}", "client_id: write the client's id"},
		"no client secret":   {"auth: {oauth2: {token_url: \"https://h/t\", client_id: a}}", "client_secret_file: the client's secret is missing"},
		"secret not there":   {"auth: {oauth2: {token_url: \"https://h/t\", client_id: a, client_secret_file: /nonexistent}}", "client_secret_file: the secret's file cannot be read"},
		"two client secrets": {oauth(", client_secret_env: X"), "client_secret_env: there is a client_secret_file too"},
		"two ways":           {"auth: {token_file: " + secret + ", oauth2: {}}", "keep one of the two ways"},
		"two tokens":         {"auth: {token_file: " + secret + ", token_env: X}", "token_env: there is a token_file too"},
		"grant":              {oauth(", grant: implicit"), `"implicit" is not one of client-credentials, password, refresh-token`},
		"no user":            {oauth(", grant: password, password_file: " + secret), "username: the grant password wants a user"},
		"no password":        {oauth(", grant: password, username: joe"), "password_file: the grant password wants"},
		"no refresh token":   {oauth(", grant: refresh-token"), "refresh_token_file: the grant refresh-token wants a first one"},
		"password unused":    {oauth(", username: joe"), "username and password belong to `grant: password`"},
		"refresh unused":     {oauth(", refresh_token_file: " + secret), "refresh_token_file belongs to `grant: refresh-token`"},
		"unknown":            {oauth(", client: x"), "broker.auth.oauth2.client: unknown key: did you mean \"client_id\"?"},
		"header":             {"auth: {header: Content-Type}", "broker.auth.header: want bearer"},
		"ca":                 {"ca_file: /nonexistent", "x.yaml:3:12: broker.ca_file: read the authority's certificates"},
		"cert alone":         {"cert_file: " + secret, "cert_file: the certificate's key is missing"},
		"key alone":          {"key_file: " + secret, "key_file: the key's certificate is missing"},
		"not a pair":         {"cert_file: " + secret + "\n  key_file: " + secret, "cert_file: the certificate and its key cannot be used"},
		"pin":                {"pin: [sha256/abc]", "x.yaml:3:9: broker.pin[0]: want sha256/ and the 44 characters"},
		"pin text":           {"pin: sha256/abc", "broker.pin: want a list"},
	} {
		t.Run(name, func(t *testing.T) {
			err := faultsOf([]byte("gateway: {id: a}\nbroker:\n  " + c.broker + "\n  url: http://x\n"))
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "geheim") {
				t.Errorf("%q is not in:\n%v", c.want, err)
			}
		})
	}
	for name, yaml := range map[string]string{
		"client": oauth(""), "password": oauth(", grant: password, username: joe, password_file: " + secret),
		"refresh": oauth(", grant: refresh-token, refresh_token_file: " + secret + ", scope: permanent"),
		"api key": "auth: {token_file: " + secret + ", header: X-Api-Key}", "none": "timeout: 5s",
		"pin": "pin: [sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=]",
	} {
		c, err := readConfig("x.yaml", []byte("gateway: {id: a}\nbroker:\n  url: http://x\n  "+yaml+"\n"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		side, err := c.Uplinks[0].TLS.client(time.Now, nil)
		if err != nil {
			t.Fatal(err)
		}
		a, err := c.Uplinks[0].Auth.owner(dir, "broker", side, nil)
		if err != nil || (a == nil) != (name == "none" || name == "pin") {
			t.Errorf("%s: %v %v", name, a, err)
		}
		if a != nil {
			a.Close()
		}
	}
}

// The whole daemon, with a broker and a token server that quote every secret they
// are sent: none of them is in the log, on the page, in the metrics or in a file
// but the one for the rotated refresh token, which is its owner's alone.
func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"secret", "refresh"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("canary-"+name+"-0123456789\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var asked, sent atomic.Int32
	quote := func(w http.ResponseWriter, status int, r *http.Request, body string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":"invalid_grant","description":"%s %s"}`, r.Header.Get("Authorization"), body)
	}
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		n := asked.Add(1)
		if n == 1 || strings.Contains(string(body), "client_credentials") {
			fmt.Fprintf(w, `{"access_token":"canary-access-%d","refresh_token":"canary-rotated-%d"}`, n, n)
			return
		}
		quote(w, 400, r, string(body))
	}))
	defer tokens.Close()
	broker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch {
		case !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer canary-access-"): // the asking for the time
			w.WriteHeader(404)
		case sent.Add(1) == 1:
			quote(w, 401, r, "")
		case strings.Contains(string(body), "illuminance") && sent.Load() < 20:
			quote(w, 400, r, "")
		default:
			w.WriteHeader(204)
		}
	}))
	defer broker.Close()
	view, logDir := freeAddress(t), filepath.Join(dir, "log")
	c, err := readConfig("x.yaml", fmt.Appendf(nil, `gateway: {id: gw-1, location: {longitude: -7.6, latitude: 33}}
broker:
  url: %s
  auth: {oauth2: {token_url: "%s/oauth2/token", grant: refresh-token, client_id: gw-1, client_secret_file: %[3]s/secret, refresh_token_file: %[3]s/refresh}}
log: {dir: %[4]q, window: 0s}
clock: {hold: 0s}
live: {http: {listen: %[5]q}}
sensors:
  - {name: light, driver: bh1750, interval: 200ms}
`, broker.URL, tokens.URL, dir, logDir, view))
	if err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, "x.yaml", c, nil, simulated{sim.NewBoard(sim.NewRoom(demoMorning(time.Now()), 1))}, newLogger(&log))
	}()
	for _, line := range []string{"the client's own token serves", "the broker rejects a reading"} {
		await(t, line, func() bool { return strings.Contains(log.String(), line) })
	}
	clean := func(what, text string) {
		if strings.Contains(strings.ToLower(text), "canary") {
			t.Errorf("a secret is in %s:\n%s", what, text)
		}
	}
	for _, path := range []string{"/", "/metrics", "/api/v1/readings"} {
		r, err := http.Get("http://" + view + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		clean(path, string(body))
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	clean("the log", log.String())
	state := filepath.Join(logDir, "refresh-token-broker.json")
	if i, err := os.Stat(state); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("%v: %v", err, i)
	}
	err = filepath.WalkDir(logDir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && name != state {
			b, err := os.ReadFile(name)
			clean(name, string(b))
			return err
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
