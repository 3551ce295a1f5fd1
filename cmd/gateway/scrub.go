package main

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"html"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"campus-gateway/ngsi"
)

// scrubber takes secrets out of texts that leave the machine: those it knows, in every
// form they travel in, and whatever looks like one. It rather takes too much.
type scrubber struct {
	known   map[string]bool // what is replaced as it is
	sources []string        // where secrets were read, for the README
	words   *strings.Replacer
	removed int
}

// removedMark stands where something was.
const removedMark = "[removed]"

// shortestSecret: fewer characters keep nothing secret, and would be found everywhere.
const shortestSecret = 4

// know adds a secret: its whole, its long lines (a key's), and their encodings.
func (s *scrubber) know(source, secret string) {
	if s.known == nil {
		s.known = map[string]bool{}
	}
	s.words = nil
	found := false
	for i, text := range append([]string{strings.TrimSpace(secret)}, strings.Split(secret, "\n")...) {
		text = strings.TrimSpace(text)
		if len(text) < shortestSecret || i > 0 && len(text) < 8 {
			continue
		}
		found = true
		for _, form := range forms(text) {
			if len(form) >= shortestSecret {
				s.known[form] = true
			}
		}
	}
	if found {
		s.sources = append(s.sources, source)
	}
}

// forms are the ways in which a text may be written, also as a string of a JSON
// document, and of one in a string of another.
func forms(text string) []string {
	list := []string{
		text, url.QueryEscape(text), url.PathEscape(text), html.EscapeString(text),
		hex.EncodeToString([]byte(text)), strings.ToUpper(hex.EncodeToString([]byte(text))),
	}
	// Base64 of it alone, and of it within something longer ("user:password"): what is
	// before shifts it by 0 to 2 bytes; the characters at the ends depend on the
	// neighbours, those between do not.
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		list = append(list, enc.EncodeToString([]byte(text)))
		for shift := range 3 {
			b := enc.EncodeToString(append(make([]byte, shift), text...))
			from, to := (shift*8+5)/6, (shift+len(text))*8/6
			if to-from >= 6 {
				list = append(list, b[from:to])
			}
		}
	}
	for range 2 {
		for _, form := range slices.Clone(list) {
			quoted, _ := json.Marshal(form) // a string: no error
			plain := strconv.Quote(form)
			list = append(list, string(quoted[1:len(quoted)-1]), plain[1:len(plain)-1])
		}
		slices.Sort(list)
		list = slices.Compact(list)
	}
	return list
}

// secretKey is the end of a name whose value is a secret.
const secretKey = `(?:pass(?:w(?:or)?d|phrase)?|pwd?|secret|token|key|credentials?|psk|signature|sig)`

// secretWords are in every name that secretKey takes: without one of them in a text,
// the patterns need not be tried, which costs a Pi seconds a megabyte.
var secretWords = []string{"pass", "pw", "secret", "token", "key", "credential", "psk", "sig"}

// look is a pattern of what looks like a secret, and words of which a text has one
// where it matches, in lower case. What the pattern's first group has stays.
type look struct {
	words   []string
	pattern *regexp.Regexp
}

var looks = []look{
	{[]string{"-----begin"}, regexp.MustCompile(`()(?s:-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z))`)},
	{[]string{"authorization", "x-auth-token", "x-subject-token", "x-api-key", "cookie"}, regexp.MustCompile(`(?im)(\b(?:proxy-)?authorization["']?\s*[:=]\s*|\b(?:x-auth-token|x-subject-token|x-api-key|set-cookie|cookie)["']?\s*[:=]\s*)[^\r\n]+`)},
	{[]string{"bearer", "basic", "digest", "negotiate"}, regexp.MustCompile(`(?i)(\b(?:bearer|basic|digest|negotiate)\s+)[^\s"',;]{4,}`)},
	{[]string{"eyj"}, regexp.MustCompile(`()\beyJ[A-Za-z0-9_=-]{8,}(?:\.[A-Za-z0-9_=-]*)*`)},
	{[]string{"@"}, regexp.MustCompile(`(?i)(\b[a-z][a-z0-9+.-]*://)[^\s"'<>]*@`)},
	// A block of YAML: all lines that are further in, or empty.
	{secretWords, regexp.MustCompile(`(?im)(^[ \t#-]*["']?[a-z0-9_.-]*` + secretKey + `["']?[ \t]*:[ \t]*)[|>][^\n]*(?:\n[ \t#]+[^\n]*|\n[ \t]*$)+`)},
	// systemd's: a whole line, whatever the variable is called, and its continuations.
	{[]string{"environment", "setcredential"}, regexp.MustCompile(`(?im)(^[ \t]*(?:Environment|SetCredential|SetCredentialEncrypted)[ \t]*=)(?:[^\n]*\\\n)*[^\n]*`)},
	{[]string{"auth"}, regexp.MustCompile(`(?im)(\bauth["']?[ \t]*:[ \t]*)[^\s{][^\n]*`)},
	// A line of YAML, and an option of a program.
	{secretWords, regexp.MustCompile(`(?im)(^[ \t#-]*["']?[a-z0-9_.-]*` + secretKey + `["']?[ \t]*:[ \t]*)\S[^\n]*`)},
	{secretWords, regexp.MustCompile(`(?i)(--[a-z0-9-]*` + secretKey + `[ \t]+)\S+`)},
}

// named is a name and a value: "token":"x", access_token=x; escaped quotes too.
var named = regexp.MustCompile(`(?i)([a-z0-9_.-]*` + secretKey + `[a-z0-9_-]*)([\\"']*\s*[:=]\s*\\*)("(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?|[^\s,;&}\]"']+)`)

// place is what may stand behind a name that ends so: it names where a secret is.
var places = map[string]*regexp.Regexp{
	"_file": plainPath,
	"_env":  plainVariable,
	"_url":  regexp.MustCompile(`^https?://`),
}

// clean returns text without secrets.
func (s *scrubber) clean(text string) string {
	if s.words == nil {
		list := make([]string, 0, len(s.known))
		for w := range s.known {
			list = append(list, w)
		}
		slices.SortFunc(list, func(a, b string) int { return len(b) - len(a) }) // a longer one first: the shorter may be in it
		var pairs []string
		for _, w := range list {
			pairs = append(pairs, w, removedMark)
		}
		s.words = strings.NewReplacer(pairs...)
	}
	before := strings.Count(text, removedMark)
	text = s.words.Replace(text)
	lower := strings.ToLower(text)
	has := func(words []string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(lower, w) })
	}
	for _, l := range looks {
		if has(l.words) {
			text = l.pattern.ReplaceAllString(text, "${1}"+removedMark)
		}
	}
	if has(secretWords) {
		text = withoutNamed(text)
	}
	s.removed += strings.Count(text, removedMark) - before
	return text
}

// withoutNamed takes the values of secrets' names away.
func withoutNamed(text string) string {
	return named.ReplaceAllStringFunc(text, func(all string) string {
		m := named.FindStringSubmatch(all)
		for end, place := range places {
			if strings.HasSuffix(strings.ToLower(m[1]), end) && place.MatchString(strings.Trim(m[3], `"'`)) {
				return m[1] + m[2] + withoutNamed(m[3])
			}
		}
		return m[1] + m[2] + removedMark
	})
}

// Files and variables that a configuration names, whether or not it is valid.
var (
	namedFile = regexp.MustCompile(`([a-z_]*)_file["']?\s*:\s*["']?(\.{0,2}/[^\s"',}\]]+)`)
	namedEnv  = regexp.MustCompile(`_env["']?\s*:\s*["']?([A-Za-z_][A-Za-z0-9_]*)`)
)

// learn reads every secret of this machine that it may read. m.root is above the
// system's own files; those that a configuration names are where it says.
func (s *scrubber) learn(m *computer, configuration, logDir string) {
	read := func(path string) {
		if b, err := os.ReadFile(path); err == nil {
			s.know(path, string(b))
		}
	}
	for _, f := range namedFile.FindAllStringSubmatch(configuration, -1) {
		if f[1] != "ca" && f[1] != "cert" { // public
			read(f[2])
		}
	}
	for _, v := range namedEnv.FindAllStringSubmatch(configuration, -1) {
		s.know("$"+v[1], os.Getenv(v[1]))
	}
	files := m.glob("/etc/gateway/secrets/*")
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		more, _ := filepath.Glob(filepath.Join(dir, "*")) // the pattern is good
		files = append(files, more...)
	}
	for _, f := range files {
		read(f)
	}
	tokens, _ := filepath.Glob(filepath.Join(logDir, "refresh-token-*.json"))
	for _, f := range tokens {
		var kept struct {
			Refresh string `json:"refresh_token"`
		}
		if b, err := os.ReadFile(f); err == nil && json.Unmarshal(b, &kept) == nil {
			s.know(f, kept.Refresh)
		}
	}
}

// learnUplink also knows the secrets of a valid configuration as the daemon reads them.
func (s *scrubber) learnUplink(u *uplinkConfig) {
	secrets := []ngsi.Secret{
		{File: u.Auth.TokenFile, Env: u.Auth.TokenEnv}, {File: u.Agent.APIKeyFile, Env: u.Agent.APIKeyEnv},
		{File: u.Agent.PasswordFile, Env: u.Agent.PasswordEnv}, {File: u.TLS.KeyFile},
	}
	if o := u.Auth.OAuth2; o != nil {
		secrets = append(secrets, ngsi.Secret{File: o.ClientSecretFile, Env: o.ClientSecretEnv},
			ngsi.Secret{File: o.PasswordFile, Env: o.PasswordEnv}, ngsi.Secret{File: o.RefreshTokenFile})
	}
	for _, x := range secrets {
		if x == (ngsi.Secret{}) {
			continue
		}
		if text, err := x.Read(); err == nil {
			s.know(x.File+x.Env, text)
		}
	}
}
