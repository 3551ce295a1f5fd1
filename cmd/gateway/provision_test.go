package main

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const exampleKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBS8zqJiVTIkVzam/wEqwBoptJCnnEKtlNJuS9H9J7YU maker@example"

// text writes a file for a flag to name.
func text(t testing.TB, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// provisionExample is the command of the documentation, with a key for everybody.
func provisionExample(t testing.TB) []string {
	return []string{"provision", "--id", "gw-a101", "--broker", "http://orion.campus.example:1026", "--location", "-7.62,33.00",
		"--timezone", "Africa/Casablanca", "--ssh-key", text(t, exampleKey+"\n")}
}

// provisionings are command lines with everything in them, for tests of all of it.
func provisionings(t testing.TB) map[string][]string {
	all := provisionExample(t)
	hostileKey := text(t, "# two\n"+exampleKey+"\nssh-rsa "+strings.Repeat("A", 64)+" it's \"$(reboot)\" `x` \\n $HOME: - {é} 'GATEWAY_YAML'\n")
	m := map[string][]string{
		"example": all,
		"least":   {"provision", "--id", "gw-1", "--broker", "http://b"},
		"all": {"provision", "--id", "GW-1", "--broker", "https://b:1/a'b\"%20$(x)`", "--api", "orion", "--service", "campus", "--service-path", "/a/b", "--tenant", "t.1",
			"--location", "1e1, -0.000001", "--user", "maker-1", "--ssh-key", hostileKey, "--embed-token-file", text(t, "it's$(a)`\"\\\n")},
		"token file": append(all[:len(all):len(all)], "--token-file", "/etc/gateway/secrets/orion"),
	}
	for name, args := range maps.Clone(m) {
		m[name+", bookworm"] = append(args[:len(args):len(args)], "--bookworm")
	}
	m["by URL"] = append(all[:len(all):len(all)], "--deb", "https://files.campus.example/it's?a=$(reboot)&b=1", "--sha256", strings.Repeat("aB", 32))
	return m
}

// cloudConfig is what of cloud-init's user-data is of interest.
type cloudConfig struct {
	Hostname string
	Timezone string
	Hosts    bool  `yaml:"manage_etc_hosts"`
	SSH      *bool `yaml:"ssh_pwauth"`
	Users    []struct {
		Name, Groups, Shell, Sudo string
		Locked                    bool     `yaml:"lock_passwd"`
		Keys                      []string `yaml:"ssh_authorized_keys"`
	}
	Files []struct{ Path, Permissions, Content string } `yaml:"write_files"`
	Early [][]string                                    `yaml:"bootcmd"`
	Run   [][]string                                    `yaml:"runcmd"`
	Power struct{ Mode, Message string }                `yaml:"power_state"`
}

func (c cloudConfig) file(path string) string {
	for _, f := range c.Files {
		if f.Path == path {
			return f.Content
		}
	}
	return ""
}

func readCloudConfig(t testing.TB, data string) (c cloudConfig) {
	t.Helper()
	d := yaml.NewDecoder(strings.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	if !strings.HasPrefix(data, "#cloud-config\n") {
		t.Errorf("cloud-init does not take this as its own: %.40q", data)
	}
	return c
}

func provisioned(t testing.TB, args []string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	if status := execute(t.Context(), args, &out, &errs); status != 0 {
		t.Fatalf("status %d: %s", status, &errs)
	}
	return out.String(), errs.String()
}

func TestProvisionUserData(t *testing.T) {
	out, _ := provisioned(t, provisionings(t)["all"])
	c := readCloudConfig(t, out)
	if c.Hostname != "GW-1" || c.Timezone != "Etc/UTC" || !c.Hosts || c.SSH == nil || *c.SSH || c.Power.Mode != "reboot" || len(c.Early) != 1 || len(c.Run) != 1 {
		t.Errorf("%+v", c)
	}
	if len(c.Users) != 1 || c.Users[0].Name != "maker-1" || !c.Users[0].Locked || len(c.Users[0].Keys) != 2 || c.Users[0].Keys[0] != exampleKey ||
		!strings.HasSuffix(c.Users[0].Keys[1], " it's \"$(reboot)\" `x` \\n $HOME: - {é} 'GATEWAY_YAML'") {
		t.Errorf("%+v", c.Users)
	}
	if len(c.Files) != 3 || c.Files[0].Path != "/etc/gateway/gateway.yaml" || c.Files[0].Permissions != "0640" ||
		c.Files[1].Path != "/etc/gateway/secrets/token" || c.Files[1].Permissions != "0600" || c.Files[1].Content != "it's$(a)`\"\\\n" ||
		c.Files[2].Path != c.Run[0][0] || c.Files[2].Permissions != "0755" {
		t.Errorf("%+v", c.Files)
	}
	if strings.Contains(c.file("/etc/gateway/gateway.yaml"), "it's$") {
		t.Error("the token is in the configuration")
	}
	conf := configOf(t, c.file("/etc/gateway/gateway.yaml"))
	b := conf.Broker
	if conf.Gateway.ID != "GW-1" || conf.Gateway.Location.Longitude != 10 || conf.Gateway.Location.Latitude != -0.000001 || conf.Live.HTTP.Listen != ":8080" ||
		b.URL != "https://b:1/a'b\"%20$(x)`" || b.API != "orion" || b.Service != "campus" || b.ServicePath != "/a/b" || b.Tenant != "t.1" || !strings.Contains(c.file("/etc/gateway/gateway.yaml"), `token_file: "/etc/gateway/secrets/token"`) {
		t.Errorf("%+v %+v", conf, b)
	}
}

var tokenLine = regexp.MustCompile(`token_file: "/etc/gateway/secrets/[a-z]+"`)

// configOf reads a configuration as the daemon does; the token's file, which is on
// the Pi, is lent.
func configOf(t testing.TB, src string) *config {
	t.Helper()
	lent := tokenLine.ReplaceAllLiteralString(src, "token_file: "+yamlString(text(t, "token\n")))
	c, err := readConfig("gateway.yaml", []byte(lent))
	if err != nil {
		t.Fatalf("%v\n%s", err, src)
	}
	return c
}

// What is printed satisfies the tools that will read it.
func TestProvisionTools(t *testing.T) {
	for name, args := range provisionings(t) {
		t.Run(name, func(t *testing.T) {
			out, stderr := provisioned(t, args)
			if strings.Contains(stderr, "it's$") {
				t.Errorf("the token is shown: %s", stderr)
			}
			script := out
			if !strings.Contains(name, "bookworm") {
				c := readCloudConfig(t, out)
				configOf(t, c.file("/etc/gateway/gateway.yaml"))
				script = c.file("/usr/local/sbin/gateway-first-boot")
				t.Run("cloud-init", func(t *testing.T) { accepts(t, "cloud-init", "schema", "--config-file", text(t, out)) })
			}
			// A value may look like an expansion (SC2016) or a slip (SC1003).
			t.Run("shellcheck", func(t *testing.T) { accepts(t, "shellcheck", "--exclude=SC2016,SC1003", text(t, script)) })
		})
	}
}

func accepts(t *testing.T, tool string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skipf("%s is not installed", tool)
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", tool, err, out)
	}
}

// The example in the repository is what the command prints.
func TestProvisionExample(t *testing.T) {
	const file = "../../deploy/raspi/user-data.example"
	want, stderr := provisioned(t, provisionExample(t))
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what `gateway provision` prints: go test ./cmd/gateway -run TestProvisionExample -update", file)
	}
	for _, words := range []string{"as user-data", "gateway_…_arm64.deb", "http://gw-a101.local:8080/api/v1/sensors"} {
		if !strings.Contains(stderr, words) {
			t.Errorf("%q is not told: %s", words, stderr)
		}
	}
}

func TestProvisionSays(t *testing.T) {
	all := provisionings(t)
	for name, words := range map[string]string{
		"least":             "without --ssh-key nobody can log in",
		"all":               "the token is in this file",
		"all, bookworm":     firstRunHook,
		"token file":        "< token",
		"example, bookworm": "as firstrun.sh",
	} {
		if _, stderr := provisioned(t, all[name]); !strings.Contains(stderr, words) {
			t.Errorf("%s: %q is not told: %s", name, words, stderr)
		}
	}
	if out, _ := provisioned(t, all["all"]); !strings.Contains(out, "Whoever holds this card can read it") {
		t.Errorf("the file does not warn of the token: %s", out)
	}
	if out, stderr := provisioned(t, all["by URL"]); strings.Contains(out, "lies beside it") || strings.Contains(stderr, "beside it") {
		t.Errorf("a package by URL need not lie on the card: %s %s", stderr, out)
	}
}

func TestProvisionRefuses(t *testing.T) {
	key, token := text(t, exampleKey), text(t, "two words\n")
	private := text(t, "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n")
	id, broker := []string{"--id", "gw-1"}, []string{"--broker", "http://b"}
	both := append(id, broker...)
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "--id is missing: the gateway's name, such as --id gw-a101"},
		{id, "--broker is missing: the broker's URL"},
		{broker, "--id is missing"},
		{append(both, "more"), "one argument too many"},
		{append(broker, "--id", "gw_1"), "--id"},
		{append(broker, "--id", "-gw"), "--id"},
		{append(broker, "--id", "a\nb"), "--id"},
		{append(broker, "--id", strings.Repeat("a", 64)), "--id"},
		{append(id, "--broker", "orion"), "--broker: "},
		{append(id, "--broker", "http://user:geheim@b"), "--broker: a user or password does not belong"},
		{append(id, "--broker", "http://b\nsensors: []"), "--broker: "},
		{append(both, "--api", "ngsi-v3"), "--api: "},
		{append(both, "--api", "iota-json"), "--api iota-json: "},
		{append(both, "--service", "Two Words"), "--service: "},
		{append(both, "--service-path", "a"), "--service-path: "},
		{append(both, "--tenant", "a b"), "--tenant: "},
		{append(both, "--location", "33"), "--location"},
		{append(both, "--location", "NaN,1"), "--location"},
		{append(both, "--location", "181,1"), "--location: 181 is outside"},
		{append(both, "--location", "1,2,3"), "--location"},
		{append(both, "--user", "root"), "--user"},
		{append(both, "--user", "gateway"), "--user"},
		{append(both, "--user", "a b"), "--user"},
		{append(both, "--timezone", "Africa/Casablanca; reboot"), "--timezone"},
		{append(both, "--timezone", "../../etc/passwd"), "--timezone"},
		{append(both, "--ssh-key", private), "is a private key, which stays here"},
		{append(both, "--ssh-key", text(t, "command=\"reboot\" "+exampleKey)), "no public key"},
		{append(both, "--ssh-key", text(t, exampleKey+"\x1b[2J")), "no public key"},
		{append(both, "--ssh-key", text(t, exampleKey+"\xff")), "no public key"},
		{append(both, "--ssh-key", text(t, "# none\n")), "there is no public key"},
		{append(both, "--ssh-key", key+".gone"), "no such file"},
		{append(both, "--token-file", "geheim"), "--token-file: want the path"},
		{append(both, "--token-file", "/etc/gateway/secrets/../gateway.yaml"), "--token-file: want the path"},
		{append(both, "--token-file", "/home/pi/token"), "--token-file: want the path"},
		{append(both, "--token-file", tokenPath, "--embed-token-file", token), "keep one"},
		{append(both, "--embed-token-file", token), "--embed-token-file: the token has blanks"},
		{append(both, "--embed-token-file", token+".gone"), "--embed-token-file: "},
		{append(both, "--deb", "http://x/y.deb"), "belong together"},
		{append(both, "--sha256", strings.Repeat("a", 64)), "belong together"},
		{append(both, "--deb", "http://x/y.deb", "--sha256", "abc"), "--sha256: want"},
		{append(both, "--deb", "ftp://x/y.deb", "--sha256", strings.Repeat("a", 64)), "--deb: want"},
		{append(both, "--deb", "http://u:geheim@x/y.deb", "--sha256", strings.Repeat("a", 64)), "--deb: want"},
		{append(both, "--deb", "http://x/y.deb", "--sha256", strings.Repeat("a", 64), "--bookworm"), "--deb with --bookworm"},
	} {
		status, stdout, stderr := command(t, append([]string{"provision"}, c.args...)...)
		if status != 2 || stdout != "" || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 || strings.Contains(stderr, "geheim") || strings.Contains(stderr, "two words") {
			t.Errorf("%q: status %d, want %q\nstdout: %s\nstderr: %s", c.args, status, c.want, stdout, stderr)
		}
	}
}

// Whatever the values are: they are refused, or come out of the file as they went in.
func FuzzProvision(f *testing.F) {
	f.Add("gw-a101", "http://b:1026", "campus", "/a", "t", " maker@example", "tok", "Etc/UTC", "https://x/y.deb")
	f.Add("a", "http://b/\"", "a\"\nb: c", "/", "'", " 'it\"s", "a'b\"c\\", "a/b", "http://x/'$(x)")
	f.Add("a", "http://b/\u0085\u2028\ufeff", "\xff", "\\x", "#", " \u00a0\t\x00", "`a`", "a", "http://x/ #")
	f.Fuzz(func(t *testing.T, id, broker, service, path, tenant, comment, token, zone, deb string) {
		args := []string{"provision", "--id=" + id, "--broker=" + broker, "--service=" + service, "--service-path=" + path, "--tenant=" + tenant,
			"--timezone=" + zone, "--ssh-key=" + text(t, strings.TrimSuffix(exampleKey, " maker@example")+comment), "--embed-token-file=" + text(t, token)}
		for _, more := range [][]string{{"--deb=" + deb, "--sha256=" + strings.Repeat("a", 64)}, {"--bookworm"}} {
			status, out, stderr := command(t, append(args, more...)...)
			if status == 2 && out == "" && strings.Count(stderr, "\n") == 1 {
				continue
			}
			if status != 0 {
				t.Fatalf("status %d: %q %q", status, out, stderr)
			}
			if more[0] == "--bookworm" {
				if !strings.Contains(out, shString(strings.TrimSpace(token))) {
					t.Errorf("the token is not there as it is: %s", out)
				}
				continue
			}
			c := readCloudConfig(t, out)
			b := configOf(t, c.file("/etc/gateway/gateway.yaml")).Broker
			key := strings.TrimSpace(strings.TrimSuffix(exampleKey, " maker@example") + comment)
			if c.Hostname != id || c.Timezone != zone || len(c.Files) != 3 || len(c.Run) != 1 || b.URL != broker || b.Service != service || b.Tenant != tenant ||
				path != "" && b.ServicePath != path || c.file(tokenPath) != strings.TrimSpace(token)+"\n" ||
				!strings.Contains(key, "\n") && !strings.Contains(key, "\r") && (len(c.Users) != 1 || len(c.Users[0].Keys) != 1 || c.Users[0].Keys[0] != key) ||
				!strings.Contains(c.file("/usr/local/sbin/gateway-first-boot"), shString(deb)) {
				t.Errorf("%q came out as %+v, %+v", args, c, b)
			}
		}
	})
}

// A quoted string is one word to sh, the same.
func TestShString(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("there is no sh")
	}
	random := rand.New(rand.NewPCG(1, 2))
	var script, want strings.Builder
	for range 500 {
		b := make([]byte, random.IntN(30))
		for i := range b {
			b[i] = "'\"\\$`(){}*?~!#;&|<> \t\nab"[random.IntN(24)]
		}
		fmt.Fprintf(&script, "printf '%%s\\0' %s\n", shString(string(b)))
		want.Write(append(b, 0))
	}
	out, err := exec.Command("sh", "-c", script.String()).Output()
	if err != nil || string(out) != want.String() {
		t.Errorf("%v: sh read %q", err, out)
	}
}
