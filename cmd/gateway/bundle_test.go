//go:build linux

package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// unpack reads a bundle.
func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil || h.Mode != 0o600 {
			t.Fatalf("%s: %v, mode %o", h.Name, err, h.Mode)
		}
		dir, name, _ := strings.Cut(h.Name, "/")
		if dir != strings.TrimSuffix(filepath.Base(path), ".tar.gz") && !strings.Contains(path, "other") {
			t.Errorf("%s in %s", h.Name, path)
		}
		files[name] = string(text)
	}
}

// A canary in each place that a secret can be in, and each written in all ways into
// each text that a bundle takes up: none of them gets through.
func TestBundleCanaries(t *testing.T) {
	c := newClinic(t)
	c.daemon(logState{Dir: c.log(), Durable: "durable"})
	write := func(name, text string) string {
		path := filepath.Join(c.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	known := map[string]string{ // where it is kept: a canary with characters that encodings change
		"token file":    `canary-1+token/with="odd" & <chars>`,
		"client secret": "canary2secretOfTheClient",
		"password":      "canary-3?pass word%",
		"variable":      "canary4FromTheEnvironment",
		"folder":        "canary5InTheFolder",
		"refresh":       "canary6RefreshTokenKept",
		"key":           "canary7canary7canary7canary7canary7lineOfAKey",
		"credentials":   "canary8HandedOverBySystemd",
	}
	t.Setenv("GATEWAY_TEST_TOKEN", known["variable"])
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(write("credentials/secrets_token", known["credentials"]+"\n")))
	write("log/refresh-token-campus.json", `{"token_url":"https://k","client_id":"c","refresh_token":"`+known["refresh"]+`"}`)
	c.file("/etc/gateway/secrets/other", known["folder"])
	c.config = fmt.Sprintf(`gateway: {id: gw-1, location: {longitude: -7.6, latitude: 33}}
uplinks:
  - {name: campus, url: %q, auth: {oauth2: {token_url: "http://127.0.0.1:1/token", grant: password, username: u, client_id: gw, client_secret_file: %q, password_file: %q}}}
  - {name: second, url: %q, auth: {token_env: GATEWAY_TEST_TOKEN}}
  # token_file: %s
  # key_file: %s
  # token: canary9InAComment
log: {dir: %q}
live: {http: {listen: off}}
`, c.broker.URL, write("client", known["client secret"]), write("password", known["password"]), c.broker.URL, write("token", known["token file"]+"\n"), write("key.pem", known["key"]+"\n"), c.log())

	guessed := []string{
		"Authorization: Bearer canaryA.b-c", `{"Authorization":["Basic canaryB=="]}`, "X-Auth-Token: canaryC", "token=canaryD&x=1", `"access_token":"canaryE canaryE"`,
		`{\"refresh_token\":\"canaryF\"}`, "mqtt://user:canaryG@host/x", "https://canaryH@host", "-----BEGIN EC PRIVATE KEY-----\ncanaryI\ncanaryI==\n-----END EC PRIVATE KEY-----",
		"eyJjYW5hcnlK.canaryK.canaryL", "password: canaryM canaryN", "  client_secret: |\n    canaryO\n\n    canaryP\nother: 1", "Environment=A=1 CAMPUS=canaryQ\\\n  canaryR", "SetCredential=x:canaryS",
		"mosquitto_pub --password canaryT", "//server/share /mnt cifs rw,username=u,password=canaryU,vers=3", "auth: canaryV", "token password=canaryW", "token_url=https://h/?token=canaryX",
		"token_file: canaryY", "api-key = 'canaryZ canaryZ'", "GET /x?sig=canary10 HTTP/1.1", "psk=canary11", "-----BEGIN PRIVATE KEY-----\ncanary12 cut off",
	}
	poison := "harmless before\n"
	for _, k := range known {
		quoted, _ := jsonText(k)
		for _, form := range append(forms(k), hex.EncodeToString([]byte(k)), strings.ToUpper(hex.EncodeToString([]byte(k))), url.QueryEscape(k), quoted) {
			poison += "text " + form + " text\n"
		}
		for _, before := range []string{"", "u:", "us:", "use:"} {
			poison += "Basic\t" + base64.StdEncoding.EncodeToString([]byte(before+k)) + "\nx" + base64.StdEncoding.EncodeToString([]byte(before+k)) + "\n"
		}
		poison += "a=" + k + "\nhttp://h/?q=" + url.QueryEscape(k) + "\n" + fmt.Sprintf("%q", k) + "\n"
	}
	poison += strings.Join(guessed, "\n") + "\n"
	c.config += "# " + strings.ReplaceAll(poison, "\n", "\n# ") + "\n"
	c.view2(t, poison)
	for _, name := range []string{"/etc/os-release", "/etc/rpi-issue", "/proc/version", "/proc/cmdline", "/boot/firmware/config.txt", "/proc/meminfo", "/proc/self/mountinfo", "/var/lib/gateway/last-good.yaml", "/etc/timezone", "/sys/class/net/eth0/operstate"} {
		c.file(name, poison)
	}
	write("log/boots.json", poison)
	write("log/tuned.json", poison)
	c.self = "gateway"
	c.command = func(_ context.Context, name string, args ...string) (string, error) {
		if name == "timedatectl" {
			return poison, errors.New("exit status 1: " + known["folder"])
		}
		return poison, nil
	}
	file := write("gateway.yaml", c.config)
	path, n, err := bundle(t.Context(), c.computer, file, filepath.Join(c.dir, "other.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, path)
	if n != len(files) || n < 25 {
		t.Errorf("%d files said, %d found", n, len(files))
	}
	var needles []string
	for _, k := range known { // not by forms, which is to be tested
		needles = append(needles, k, url.QueryEscape(k), url.PathEscape(k), hex.EncodeToString([]byte(k)), strings.Trim(strconv.Quote(k), `"`))
		for shift := range 3 {
			b := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("u", shift) + k))
			needles = append(needles, b[4:len(b)-4])
		}
	}
	for name, text := range files {
		for _, needle := range append(needles, "canary") {
			if needle = strings.TrimSpace(needle); len(needle) > 5 && strings.Contains(strings.ToLower(text), strings.ToLower(needle)) {
				at := strings.Index(strings.ToLower(text), strings.ToLower(needle))
				t.Errorf("%s: %q got through: …%s…", name, needle, text[max(0, at-60):min(len(text), at+60)])
				break
			}
		}
	}
	for _, name := range []string{"gateway.yaml", "journal.txt", "metrics.txt", "mounts.txt", "boots.json", "unit.txt"} {
		if text := files[name]; !strings.Contains(text, "harmless before") || !strings.Contains(text, removedMark) {
			t.Errorf("%s: nothing was removed, or everything:\n%.300s", name, text)
		}
	}
	readme := files["README.txt"]
	for _, want := range []string{"journal.txt ", "clock.txt                timedatectl: exit status 1", "$GATEWAY_TEST_TOKEN\n", "/etc/gateway/secrets/other\n", "refresh-token-campus.json\n", "secrets_token\n", "client\n", "key.pem\n"} {
		if !strings.Contains(readme, want) {
			t.Errorf("%q is not in\n%s", want, readme)
		}
	}
}

// view2 is a daemon whose pages all say one thing.
func (c *clinic) view2(t *testing.T, text string) {
	ln := freeAddress(t)
	srv := &http.Server{Addr: ln, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })}
	t.Cleanup(func() { srv.Close() })
	go srv.ListenAndServe()
	await(t, "the page", func() bool { _, err := fetchText(t.Context(), "", "http://"+ln+"/"); return err == nil })
	c.set("listen: off", "listen: "+ln)
}

// What helps is in it; a second one has another name; and nobody else can read it.
func TestBundle(t *testing.T) {
	c := newClinic(t)
	t.Chdir(c.dir)
	c.set("{url:", "{auth: {token_file: "+c.path("/etc/gateway/secrets/token")+"}, url:")
	if err := os.WriteFile("gateway.yaml", []byte(c.config), 0o600); err != nil {
		t.Fatal(err)
	}
	first, _, err := bundle(t.Context(), c.computer, "gateway.yaml", "")
	if err != nil || first != "gateway-bundle-gw-1-20261126-120000.tar.gz" {
		t.Fatalf("%s, %v", first, err)
	}
	second, _, err := bundle(t.Context(), c.computer, "gateway.yaml", "")
	if err != nil || second != "gateway-bundle-gw-1-20261126-120000-2.tar.gz" {
		t.Fatalf("%s, %v", second, err)
	}
	if i, err := os.Stat(first); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", i.Mode(), err)
	}
	before, _ := os.ReadFile(first)
	if _, _, err := bundle(t.Context(), c.computer, "gateway.yaml", first); err == nil || !strings.Contains(err.Error(), "is there already: choose another name with -o") {
		t.Errorf("written over: %v", err)
	}
	if after, _ := os.ReadFile(first); string(after) != string(before) {
		t.Error("the first one has changed")
	}
	files := unpack(t, first)
	for name, want := range map[string]string{
		"README.txt":   "Raspberry Pi 4 Model B Rev 1.4",
		"doctor.txt":   "ok       climate        bme280 at i2c-1",
		"doctor.json":  `"check": "climate"`,
		"gateway.yaml": "token_file: " + c.path("/etc/gateway/secrets/token"), // a place is no secret
		"machine.txt":  "trixie",
		"mounts.txt":   "/dev/mmcblk0p2",
		"state.txt":    "root/var/lib/gateway",
		"devices.txt":  "group i2c i2c-1",
		"network.txt":  "name servers: 0",
		"version.txt":  "gateway ",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s: %q is not in\n%s", name, want, files[name])
		}
	}
	for name := range files {
		if strings.Contains(files[name], "geheim") {
			t.Errorf("%s has the token", name)
		}
	}
	for _, want := range []string{"sensors.json             the live view is off", "boots.json               open "} {
		if !strings.Contains(files["README.txt"], want) {
			t.Errorf("%q is not in\n%s", want, files["README.txt"])
		}
	}
}

// Without a configuration, without rights, without systemd there is a bundle all the same.
func TestBundleOfNothing(t *testing.T) {
	c := newClinic(t)
	c.command = func(_ context.Context, name string, _ ...string) (string, error) { return "", errors.New("not found") }
	c.gone("/")
	path, n, err := bundle(t.Context(), c.computer, filepath.Join(c.dir, "none.yaml"), filepath.Join(c.dir, "other.tar.gz"))
	if err != nil || n < 5 {
		t.Fatalf("%d files, %v", n, err)
	}
	if readme := unpack(t, path)["README.txt"]; !strings.Contains(readme, "gateway.yaml             open ") || !strings.Contains(readme, "journal.txt              journalctl: not found") {
		t.Error(readme)
	}
	if _, _, err := bundle(t.Context(), c.computer, "", filepath.Join(c.dir, "no", "folder", "x.tar.gz")); err == nil {
		t.Error("written where there is no folder")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := bundle(ctx, c.computer, "", filepath.Join(c.dir, "ended.tar.gz")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(c.dir, "ended.tar.gz")); err == nil {
		t.Error("half a bundle was left")
	}
}

// However much there is, 20 MiB are not exceeded, and the newest is what stays.
func TestBundleSize(t *testing.T) {
	c := newClinic(t)
	noise := make([]byte, 5<<20)
	for i, r := 0, rand.New(rand.NewPCG(1, 2)); i < len(noise); i++ { // does not compress much
		noise[i] = byte('0' + r.IntN(10))
		if i%100 == 99 {
			noise[i] = '\n'
		}
	}
	c.command = func(context.Context, string, ...string) (string, error) {
		return string(noise) + "\nthe newest line\n", nil
	}
	path, _, err := bundle(t.Context(), c.computer, filepath.Join(c.dir, "none.yaml"), filepath.Join(c.dir, "other.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	if i, err := os.Stat(path); err != nil || i.Size() > 20<<20 {
		t.Errorf("%d bytes, %v", i.Size(), err)
	}
	files := unpack(t, path)
	if !strings.HasSuffix(files["unit.txt"], "\nthe newest line\n") || !strings.Contains(files["README.txt"], "(its last ") || !strings.Contains(files["README.txt"], "there is no room left") {
		t.Errorf("%s", files["README.txt"])
	}
}

// What is cut has been cleaned before: half a secret is none that is known.
func TestBundleCut(t *testing.T) {
	c := newClinic(t)
	c.file("/etc/gateway/secrets/token", "0123456789abcdefghij")
	c.command = func(_ context.Context, name string, _ ...string) (string, error) {
		if name != "df" {
			return "", errors.New("none")
		}
		return strings.Repeat("0123456789abcdefghij\n", 10<<20/21), nil
	}
	path, _, err := bundle(t.Context(), c.computer, filepath.Join(c.dir, "none.yaml"), filepath.Join(c.dir, "other.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	if df := unpack(t, path)["df.txt"]; len(df) != partSize || strings.Contains(df, "hij") {
		t.Errorf("%d bytes, beginning with %.50q", len(df), df)
	}
}

// What is no secret stays readable.
func TestScrubLeaves(t *testing.T) {
	var s scrubber
	s.know("x", "abc") // too short to be one
	for _, text := range []string{
		"token_file: /etc/gateway/secrets/token", "password_env: GATEWAY_PASSWORD", `token_url: "https://keyrock.campus.example/oauth2/token"`,
		"ts=2026-11-26T12:00:00Z level=warn why=\"connection refused\"", "http://orion.campus.example:1026", "abcdef",
		`{"sensor":"climate","values":{"temperature":21.5}}`, "pin: [sha256/AAAA]", "auth: {header: bearer}",
	} {
		if got := s.clean(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// Whatever is around a secret that is known, and however it is written, it goes.
func FuzzScrub(f *testing.F) {
	f.Add("canary-1+token", "Basic ", "\n")
	f.Add("päss wörd", "token=", "&x=\"y\"")
	f.Add("a\\\"b'c%20", "-----BEGIN PRIVATE KEY-----", "password: |")
	f.Fuzz(func(t *testing.T, secret, before, after string) {
		secret = strings.TrimSpace(secret)
		if len(secret) < shortestSecret || strings.ContainsAny(secret, "[]\n") || strings.Contains(removedMark, secret) {
			t.Skip() // what the mark itself can make up is not told apart
		}
		var s scrubber
		s.know("x", secret)
		for _, form := range forms(secret) {
			if len(form) < shortestSecret || strings.Contains(removedMark, form) {
				continue
			}
			if got := s.clean(before + form + after); strings.Contains(got, form) && !strings.ContainsAny(form, "[]") {
				t.Fatalf("%q is in %q", form, got)
			}
		}
		begun := time.Now()
		s.clean(strings.Repeat(before+secret+after, 20))
		if time.Since(begun) > 10*time.Second {
			t.Fatal("too slow")
		}
	})
}
