//go:build lifecycle

package raspi_test

import (
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
)

// A secret is where it was put, in what systemd hands to the daemon, and in the
// requests to the broker. Whoever helps is sent journals, bundles and copies of
// the state: it must not travel with them.
func TestSecrets(t *testing.T) {
	t.Parallel()
	const token = "/etc/gateway/secrets/token"
	canary := "CANARY-" + rand.Text()
	g := newGuest(t)
	g.simulate()
	g.write(token, 0o600, canary+"\n")
	g.write(configFile, 0o640, strings.Replace(configuration, "spread: 1s}", "spread: 1s, auth: {token_file: "+token+"}}", 1))
	b := newBroker(g)
	b.admit("Bearer somebody else")
	g.boot()
	b.up()
	g.install(made(t).newer)

	g.step("the broker is sent it, refuses it, and then takes it", func() {
		g.await("the token", func() bool { return b.saw("Bearer "+canary) > 0 })
		g.await("the daemon to say that it is refused", func() bool {
			_, ok := g.try("journalctl -u gateway --no-pager | grep -i -e 401 -e 'refuses our token'")
			return ok
		})
		b.admit("Bearer " + canary)
		g.await("a reading", func() bool { return b.count() > 0 })
	})
	g.step("the daemon has a copy, and cannot read the file", func() {
		out, ok := g.try("setpriv --reuid=gateway --regid=gateway --init-groups cat " + token)
		if ok || !strings.Contains(out, "Permission denied") {
			g.t.Errorf("%q", out)
		}
	})
	g.step("it ends with all that it was doing in the journal", func() {
		old := g.mainPID()
		g.run(fmt.Sprint("kill -ABRT ", old))
		g.replaced(old)
		if n := strings.Count(g.run("journalctl -u gateway --no-pager -o cat"), "\ngoroutine "); n < 5 {
			g.t.Errorf("%d goroutines", n)
		}
		b.next()
	})
	g.step("it is nowhere else", func() {
		b.waits() // readings are on the disk, and why they wait is told
		if found := g.findings(canary); found != "" {
			g.t.Errorf("it is in:\n%s", found)
		}
	})
	g.step("the search finds what is there", func() {
		planted := map[string]string{
			"journal":       "logger ",
			"state":         "cat > /var/lib/gateway/planted <<< ",
			"configuration": "echo >> " + configFile + " '# '",
			"/tmp":          "cat > /tmp/planted <<< ",
			"/run":          "cat > /run/gateway/planted <<< ",
		}
		for _, command := range planted {
			g.run("bash -c '" + strings.ReplaceAll(command, "'", `'\''`) + canary + "'")
		}
		found := g.findings(canary)
		if n := len(strings.Split(found, "\n")); n < len(planted) {
			g.t.Errorf("of %d planted ones it found %d:\n%s", len(planted), n, found)
		}
		if strings.Contains(found, bundle) { // it has journal and configuration in it
			g.t.Errorf("the bundle has it, too:\n%s", found)
		}
		g.figure("%d planted ones found", len(strings.Split(found, "\n")))
	})
}

// bundle is what `gateway bundle` writes for whoever is to help.
const bundle = "/root/bundle"

// findings says where a text is, of all that others may be shown or sent: a line
// for each place.
func (g *guest) findings(text string) string {
	g.t.Helper()
	pid := g.mainPID()
	var found []string
	add := func(where, what string) {
		if strings.Contains(what, text) {
			found = append(found, where)
		}
	}
	add("the journal", g.run("journalctl --no-pager -a -o export"))
	for _, name := range []string{"environ", "cmdline", "status", "mountinfo"} {
		add("/proc/PID/"+name, g.run(fmt.Sprintf("cat /proc/%d/%s", pid, name)))
	}
	// All files of the machine, cores too, wherever the kernel was told to put them.
	if files, ok := g.try("grep -rlaF --exclude-dir=proc --exclude-dir=sys --exclude-dir=credentials --exclude-dir=secrets --exclude-dir=journal " + text + " / 2> /dev/null"); ok {
		found = append(found, strings.Split(files, "\n")...)
	}
	add("gateway status", g.run("gateway status"))
	add("gateway status --json", g.run("gateway status --json"))
	add("gateway check", g.run("gateway check "+configFile+" 2>&1; true"))
	add("gateway doctor", g.run("gateway doctor 2>&1; gateway doctor --json 2>&1; true"))
	for _, path := range []string{"/metrics", "/healthz", "/readyz", "/api/v1/sensors", "/api/v1/uplinks", "/api/v1/readings"} {
		add(path, g.get("http://127.0.0.1:8080"+path))
	}
	if _, ok := g.try("gateway help bundle"); ok {
		g.run("rm -rf " + bundle + " && mkdir " + bundle + " && gateway bundle -o " + bundle + ".tar.gz && tar -C " + bundle + " -xzf " + bundle + ".tar.gz && rm " + bundle + ".tar.gz && find " + bundle + " -name README.txt | grep -q .")
		if files, ok := g.try("grep -rlaF " + text + " " + bundle); ok {
			found = append(found, strings.Split(files, "\n")...)
		}
	}
	return strings.Join(found, "\n")
}
