package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
			_, err := readConfig("x.yaml", []byte("gateway: {id: a}\nbroker:\n  "+c.broker+"\n  url: http://x\n"))
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
		side, err := c.Broker.TLS.client(time.Now, nil)
		if err != nil {
			t.Fatal(err)
		}
		a, err := c.Broker.Auth.owner(dir, "broker", side, nil)
		if err != nil || (a == nil) != (name == "none" || name == "pin") {
			t.Errorf("%s: %v %v", name, a, err)
		}
		if a != nil {
			a.Close()
		}
	}
}
