package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"campus-gateway/ngsi"

	"go.yaml.in/yaml/v3"
)

// authConfig says where an uplink's secret is kept, or how tokens are got. Secrets
// are never written here.
type authConfig struct {
	TokenFile string        `yaml:"token_file"`
	TokenEnv  string        `yaml:"token_env"`
	Header    string        `yaml:"header"` // bearer, x-auth-token, or a header's name
	OAuth2    *oauth2Config `yaml:"oauth2"`
}

type oauth2Config struct {
	TokenURL         string `yaml:"token_url"`
	Grant            string `yaml:"grant"` // client-credentials (default), password or refresh-token
	ClientID         string `yaml:"client_id"`
	ClientSecretFile string `yaml:"client_secret_file"`
	ClientSecretEnv  string `yaml:"client_secret_env"`
	Username         string `yaml:"username"`
	PasswordFile     string `yaml:"password_file"`
	PasswordEnv      string `yaml:"password_env"`
	RefreshTokenFile string `yaml:"refresh_token_file"`
	Scope            string `yaml:"scope"`
}

// tlsConfig is an uplink's side of TLS. Its keys stand among the uplink's.
type tlsConfig struct {
	CAFile   string   `yaml:"ca_file"`
	CertFile string   `yaml:"cert_file"`
	KeyFile  string   `yaml:"key_file"`
	Pins     []string `yaml:"pin"`
}

// owner makes the owner of the secret; nil: there is none to send. A refresh token
// that the server replaces is kept in dir, under the uplink's name.
func (a *authConfig) owner(dir, uplink string, tls *ngsi.TLS, warn func(error)) (*ngsi.Auth, error) {
	c := ngsi.AuthConfig{TLS: tls, Warn: warn}
	switch o := a.OAuth2; {
	case o != nil:
		c.OAuth2 = &ngsi.OAuth2{
			TokenURL: o.TokenURL, Grant: o.Grant, ClientID: o.ClientID, Scope: o.Scope,
			ClientSecret: ngsi.Secret{File: o.ClientSecretFile, Env: o.ClientSecretEnv},
			Username:     o.Username,
			Password:     ngsi.Secret{File: o.PasswordFile, Env: o.PasswordEnv},
			Refresh:      ngsi.Secret{File: o.RefreshTokenFile},
			State:        filepath.Join(dir, "refresh-token-"+uplink+".json"),
		}
	case a.TokenFile == "" && a.TokenEnv == "":
		return nil, nil
	default:
		c.Token = ngsi.Secret{File: a.TokenFile, Env: a.TokenEnv}
	}
	return ngsi.NewAuth(c)
}

// client makes the side of TLS. now is the time that certificates are held to.
func (t *tlsConfig) client(now func() time.Time, warn func(error)) (*ngsi.TLS, error) {
	return ngsi.NewTLS(ngsi.TLSConfig{CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile, Pins: t.Pins, Time: now, Warn: warn})
}

// inline are the keys that would hold a secret, and what to write instead. Where
// one is found, no line of the file is shown.
var inline = map[string]string{
	"token": "token_file", "access_token": "token_file", "api_key": "token_file", "apikey": "token_file", "bearer": "token_file", "secret": "token_file",
	"client_secret": "client_secret_file", "password": "password_file", "refresh_token": "refresh_token_file",
}

// inlineLine is a line with a secret in it, of a file that is not even YAML.
var inlineLine = regexp.MustCompile(`(?i)\b(token|access_token|api_?key|bearer|secret|client_secret|password|refresh_token)["']?\s*:|\bauth["']?\s*:\s*[^\s{]`)

// auth checks an uplink's auth. n is where its absence is told.
func (d *decoder) auth(n *yaml.Node, path string, a *authConfig) {
	if err := ngsi.CheckHeader(a.Header); err != nil || a.Header == "" {
		d.addf(d.at(&a.Header, n), path+".header", "want bearer, x-auth-token, or the name of another header, such as X-Api-Key, that carries nothing else")
		d.last().secret = true // perhaps it is here
	}
	o := a.OAuth2
	if o == nil {
		d.secret(n, path, "token", &a.TokenFile, &a.TokenEnv, ngsi.Secret.Token)
		return
	}
	if a.TokenFile != "" || a.TokenEnv != "" {
		d.addf(d.at(&a.OAuth2, n), path+".oauth2", "there is a token_file or token_env too: keep one of the two ways")
	}
	path += ".oauth2"
	at := d.at(&a.OAuth2, n)
	u, err := url.Parse(o.TokenURL)
	switch {
	case o.TokenURL == "":
		d.addf(at, path+".token_url", "there is no token server: write its URL, such as https://keyrock.campus.example/oauth2/token")
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		d.addf(d.at(&o.TokenURL, at), path+".token_url", "want http:// or https://, a host and a path, without a user and without ? or #, such as https://keyrock.campus.example/oauth2/token")
		d.last().secret = true
	}
	if o.ClientID == "" || strings.Contains(o.ClientID, ":") {
		d.addf(d.at(&o.ClientID, at), path+".client_id", "write the client's id, as the token server shows it, without a colon")
	}
	d.secret(at, path, "client_secret", &o.ClientSecretFile, &o.ClientSecretEnv, ngsi.Secret.Read)
	d.need(at, path+".client_secret_file", "the client's secret is missing: write the name of its file", o.ClientSecretFile != "" || o.ClientSecretEnv != "")
	if o.Grant == "" {
		o.Grant = ngsi.ClientCredentials
	}
	d.oneOf(&o.Grant, at, path+".grant", ngsi.ClientCredentials, ngsi.Password, ngsi.RefreshToken)
	password, refresh := o.PasswordFile != "" || o.PasswordEnv != "", o.RefreshTokenFile != ""
	switch o.Grant {
	case ngsi.Password:
		d.need(at, path+".username", "the grant password wants a user: write its name", o.Username != "")
		d.need(at, path+".password_file", "the grant password wants the user's password: write the name of its file", password)
		d.secret(at, path, "password", &o.PasswordFile, &o.PasswordEnv, ngsi.Secret.Read)
	case ngsi.RefreshToken:
		d.need(at, path+".refresh_token_file", "the grant refresh-token wants a first one: write the name of its file", refresh)
		d.secret(at, path, "refresh_token", &o.RefreshTokenFile, new(string), ngsi.Secret.Read)
	}
	if o.Grant != ngsi.Password && (password || o.Username != "") {
		d.addf(at, path, "username and password belong to `grant: password`: write that, or remove them")
	}
	if o.Grant != ngsi.RefreshToken && refresh {
		d.addf(at, path, "refresh_token_file belongs to `grant: refresh-token`: write that, or remove it")
	}
}

// need adds a fault unless ok.
func (d *decoder) need(n *yaml.Node, path, text string, ok bool) {
	if !ok {
		d.addf(n, path, "%s", text)
	}
}

func (d *decoder) last() *fault { return &d.list[len(d.list)-1] }

var (
	plainPath     = regexp.MustCompile(`^\.{0,2}/`)
	plainVariable = regexp.MustCompile(`^[A-Z_][A-Z0-9_]{0,63}$`)
)

// secretsDir holds root's secret files. The unit hands copies of them to the daemon
// (LoadCredential=secrets:), which cannot read them there.
const secretsDir = "/etc/gateway/secrets"

// named are the files that an uplink cannot do without.
func (u *uplinkConfig) named() (files []string) {
	candidates := []string{u.Auth.TokenFile, u.TLS.CAFile, u.TLS.CertFile, u.TLS.KeyFile, u.Agent.APIKeyFile, u.Agent.PasswordFile}
	if o := u.Auth.OAuth2; o != nil {
		candidates = append(candidates, o.ClientSecretFile, o.PasswordFile, o.RefreshTokenFile)
	}
	return slices.DeleteFunc(candidates, func(f string) bool { return f == "" })
}

// handed is where a secret file is to be read: what lies in secretsDir, where the
// service manager has handed it over.
func handed(file string) string {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" || filepath.Dir(file) != secretsDir {
		return file
	}
	return filepath.Join(dir, "secrets_"+filepath.Base(file))
}

// unhanded says what to do where one was not handed over.
func unhanded(file string, err error) error {
	switch path, isPath := errors.AsType[*fs.PathError](err); {
	case handed(file) == file:
		return err
	case isPath && errors.Is(err, fs.ErrNotExist):
		file = filepath.Join(secretsDir, strings.TrimPrefix(filepath.Base(path.Path), "secrets_"))
		return fmt.Errorf("%s was not there when the service began, which alone may read it: put it there, then `sudo systemctl restart gateway`", file)
	}
	return fmt.Errorf("%s, as the service was handed it when it began: %w: mend it, then `sudo systemctl restart gateway`", file, err)
}

// absent reports whether a file is missing, or this user may not read it, rather
// than wrong.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)
}

// secret checks what is named by the keys <key>_file and <key>_env, if anything:
// one of them, and the secret is there. What could be the secret itself, in the
// place of the name, is not shown.
func (d *decoder) secret(n *yaml.Node, path, key string, file, env *string, read func(ngsi.Secret) (string, error)) {
	at, path := d.at(file, n), path+"."+key
	switch {
	case *file != "" && *env != "":
		d.addf(d.at(env, n), path+"_env", "there is a %s_file too: keep one of the two", key)
	case *file != "" && !plainPath.MatchString(*file):
		d.addf(at, path+"_file", "want the path of a file, such as /etc/gateway/secrets/%s; the secret itself is never written here", key)
		d.last().secret = true
	case *env != "" && !plainVariable.MatchString(*env):
		d.addf(d.at(env, n), path+"_env", "want the name of an environment variable in capitals, such as GATEWAY_%s; the secret itself is never written here", strings.ToUpper(key))
		d.last().secret = true
	case *file != "" || *env != "":
		if *file == "" {
			at, path = d.at(env, n), path+"_env"
		} else {
			path += "_file"
		}
		if _, err := read(ngsi.Secret{File: handed(*file), Env: *env}); err != nil {
			d.addf(at, path, "%v", unhanded(*file, err))
			d.last().absent = true
		}
		*file = handed(*file)
	}
}

// tls checks an uplink's side of TLS.
func (d *decoder) tls(n *yaml.Node, path string, t *tlsConfig) {
	if t.CAFile != "" {
		if _, err := ngsi.NewTLS(ngsi.TLSConfig{CAFile: handed(t.CAFile)}); err != nil {
			d.addf(d.at(&t.CAFile, n), path+".ca_file", "%v", unhanded(t.CAFile, err))
			d.last().absent = absent(err)
		}
		t.CAFile = handed(t.CAFile)
	}
	switch {
	case t.CertFile == "" && t.KeyFile == "":
	case t.CertFile == "":
		d.addf(d.at(&t.KeyFile, n), path+".key_file", "the key's certificate is missing: write cert_file too")
	case t.KeyFile == "":
		d.addf(d.at(&t.CertFile, n), path+".cert_file", "the certificate's key is missing: write key_file too")
	default:
		if _, err := tls.LoadX509KeyPair(handed(t.CertFile), handed(t.KeyFile)); err != nil {
			d.addf(d.at(&t.CertFile, n), path+".cert_file", "the certificate and its key cannot be used: %v", unhanded(t.KeyFile, err))
			d.last().absent = absent(err)
		}
		t.CertFile, t.KeyFile = handed(t.CertFile), handed(t.KeyFile)
	}
	for i := range t.Pins {
		if err := ngsi.CheckPin(t.Pins[i]); err != nil {
			d.addf(d.at(&t.Pins[i], n), fmt.Sprintf("%s.pin[%d]", path, i), "%v", err)
		}
	}
}
