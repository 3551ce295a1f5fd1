//go:build lifecycle

package raspi_test

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// installed is a machine that is on, with the package and its configuration for
// this test, and with a broker that something has arrived at.
func installed(t *testing.T, deb string) (*guest, *broker) {
	t.Helper()
	g := newGuest(t)
	g.simulate()
	b := newBroker(g)
	g.boot()
	b.up()
	g.install(deb)
	g.await("a first reading", func() bool { return b.count() > 0 })
	return g, b
}

// What nobody has configured yet must run, so that `gateway status` and the live
// view answer somebody who installs it before the chips and the broker are there.
func TestFreshInstall(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	g.boot()
	took, _ := g.install(made(t).newer)
	g.figure("dpkg -i: %s", seconds(took))

	g.step("it runs, and does so after the next boot", func() {
		if !g.active() || g.property("UnitFileState") != "enabled" {
			g.t.Errorf("it is %s and %s", g.property("ActiveState"), g.property("UnitFileState"))
		}
	})
	g.step("everybody on the machine may ask how it does", func() {
		out := g.run("setpriv --reuid=nobody --regid=nogroup --clear-groups gateway status")
		if !strings.Contains(out, "no sensor configured, 0 waiting, no broker configured") {
			g.t.Error(out)
		}
		if line := g.property("StatusText"); !strings.Contains(line, "no broker configured") {
			g.t.Errorf("systemd has been told %q", line)
		}
	})
	g.step("its user, its groups and its folders are there, and closed to others", func() {
		// Without one of the groups the unit fails with 216/GROUP, without the folder of
		// secrets with 243/CREDENTIALS.
		g.run("getent passwd gateway && getent group gateway i2c gpio spi")
		for path, want := range map[string]string{
			"/etc/gateway":         "root:gateway 750",
			configFile:             "root:gateway 640",
			"/etc/gateway/secrets": "root:root 700",
			"/var/lib/gateway":     "gateway:gateway 700",
			logDir:                 "gateway:gateway 700",
			"/run/gateway":         "gateway:gateway 755",
			program:                "root:root 755",
		} {
			if got := g.run("stat -c '%U:%G %a' " + path); got != want {
				g.t.Errorf("%s is %s, want %s", path, got, want)
			}
		}
	})
	g.step("it listens where it is configured to, and nowhere else", func() {
		lines := strings.Split(g.run("ss -Hlntup"), "\n")
		if len(lines) != 1 || !strings.Contains(lines[0], "*:8080 ") || !strings.Contains(lines[0], `"gateway"`) {
			g.t.Errorf("want the live view at port 8080 alone:\n%s", strings.Join(lines, "\n"))
		}
	})
	g.step("exposure of the running unit", func() {
		out := g.run("systemd-analyze security --no-pager " + unit + " | tail -n 1")
		x := regexp.MustCompile(`: ([0-9.]+) `).FindStringSubmatch(out)
		if x == nil {
			g.t.Fatalf("what is %q?", out)
		}
		exposure, err := strconv.ParseFloat(x[1], 64)
		if err != nil {
			g.t.Fatal(err)
		}
		g.figure("%.1f (bar: 1.5)", exposure)
		if exposure > 1.5 {
			g.t.Error(out)
		}
	})
	g.step("what the process may do", func() {
		status := g.run(fmt.Sprintf("cat /proc/%d/status /proc/%[1]d/limits", g.mainPID()))
		uid := g.run("id -u gateway")
		for _, want := range []string{`Seccomp:\s+2`, `NoNewPrivs:\s+1`, `CapEff:\s+0+`, `CapPrm:\s+0+`, `CapBnd:\s+0+`, `CapAmb:\s+0+`, fmt.Sprintf(`Uid:\s+%s\s+%[1]s\s+%[1]s\s+%[1]s`, uid), `Max core file size\s+0\s+0\s`} {
			if !regexp.MustCompile(`(?m)^` + want).MatchString(status) {
				g.t.Errorf("no %q in:\n%s", want, status)
			}
		}
	})
	g.step("what is denied in its sandbox", func() { sandboxed(g) })
}

// attempts are what a program that has been taken over would try. Where the files'
// own modes would forbid it, they are opened to everybody first: it is the
// sandbox that is asked.
const attempts = `attempt() { name=$1; shift; if "$@" > /dev/null 2>&1; then echo "$name: done"; else echo "$name: denied"; fi; }
attempt 'read /etc/shadow' cat /etc/shadow
attempt 'read the secrets' cat /etc/gateway/secrets/token
attempt 'change its configuration' touch /etc/gateway/gateway.yaml
attempt 'write below /usr' touch /usr/local/open/x
attempt 'write below /etc' touch /etc/open/x
attempt 'read /home' cat /home/maker/notes
attempt 'read /root' cat /root/notes
attempt 'read /var/log' cat /var/log/open
attempt 'read what others have in /tmp' cat /tmp/open
attempt 'write to /dev/kmsg' sh -c 'echo probe > /dev/kmsg'
attempt 'see other processes' test -e /proc/1/status
attempt 'use netlink' ip link
attempt 'make a namespace' unshare --mount true
attempt 'write to a cgroup' mkdir /sys/fs/cgroup/probe
attempt 'make a program that runs as another' sh -c 'f=$(mktemp) && chmod u+s $f'
`

// sandboxed makes the attempts in a unit that is the packaged one but for its
// program, and, so that none is denied for another reason, as root outside.
func sandboxed(g *guest) {
	g.write("/etc/gateway/secrets/token", 0o600, "secret")
	g.write("/home/maker/notes", 0o644, "notes")
	g.write("/root/notes", 0o644, "notes")
	g.write("/var/log/open", 0o644, "log")
	g.write("/usr/local/lib/attempts.sh", 0o755, attempts)
	g.run("mkdir -m 0777 /usr/local/open /etc/open; chmod 0777 /root; echo open > /tmp/open; chmod 0644 /tmp/open")
	kmsg := fmt.Sprintf("/proc/%d/root/dev/kmsg", g.pid)
	if err := syscall.Mknod(kmsg, syscall.S_IFCHR|0o666, int(unix.Mkdev(1, 11))); err != nil && err != syscall.EEXIST {
		g.t.Fatal(err)
	}
	g.run("chmod 0666 /dev/kmsg")
	free := g.run("sh /usr/local/lib/attempts.sh; rmdir /sys/fs/cgroup/probe")
	if strings.Contains(free, "denied") {
		g.t.Errorf("outside, as root:\n%s", free)
	}
	g.run(`sed -e 's/^Type=.*/Type=oneshot/' -e '/^\(Restart\|Watchdog\|RuntimeDirectory\|ExecReload\)/d' \
		-e 's,^ExecStart=.*,ExecStart=/bin/sh /usr/local/lib/attempts.sh\nStandardOutput=file:/run/attempts,' \
		"$(systemctl show --value -p FragmentPath gateway)" > /run/systemd/system/attempts.service
		systemctl daemon-reload && systemctl start attempts`)
	caught := g.run("cat /run/attempts")
	if strings.Contains(caught, "done") || strings.Count(caught, "denied") != strings.Count(free, "done") {
		g.t.Errorf("in the sandbox:\n%s", caught)
	}
	g.figure("%d of %d attempts are denied, which outside succeed", strings.Count(caught, "denied"), strings.Count(free, "done"))
}

// A program that dies, is killed, or is gone comes back: nobody stands beside a
// gateway in a ceiling.
func TestHeals(t *testing.T) {
	t.Parallel()
	g, b := installed(t, made(t).newer)

	g.step("kill -9", func() {
		old := g.mainPID()
		begun := time.Now()
		g.run(fmt.Sprint("kill -9 ", old))
		g.replaced(old)
		g.bar("ready again", time.Since(begun), 3*time.Second)
		b.next()
	})
	g.step("eight kills in a row", func() { // systemd's own default gives up after five
		for range 8 {
			old := g.mainPID()
			g.run(fmt.Sprint("kill -9 ", old))
			g.await("a new process", func() bool { p := g.mainPID(); return p != 0 && p != old })
		}
		took := g.await("it is ready", g.active)
		b.next()
		g.figure("ready %s after the last start; NRestarts %s", seconds(took), g.property("NRestarts"))
	})
	g.step("its program is gone, and comes back", func() { // an upgrade that broke off
		g.run("mv " + program + " " + program + ".away; kill -9 $(systemctl show --value -p MainPID gateway)")
		g.await("a failed start", func() bool { return g.property("ExecMainStatus") == "203" })
		g.run("mv " + program + ".away " + program)
		took := g.await("it is ready", g.active)
		g.figure("ready %s after the program is back", seconds(took))
		b.next()
	})
	g.step("its folder of secrets is gone, and comes back", func() {
		g.run("mv /etc/gateway/secrets /etc/gateway/secrets.away")
		g.try("systemctl restart " + unit) // says that it failed
		g.await("243/CREDENTIALS", func() bool { return g.property("ExecMainStatus") == "243" })
		g.run("mv /etc/gateway/secrets.away /etc/gateway/secrets")
		took := g.await("it is ready", g.active)
		g.figure("ready %s after the folder is back", seconds(took))
		b.next()
	})

	faulty := strings.Replace(configuration, "driver: bme280", "driver: bme289", 1)
	g.step("a configuration that has become faulty: the old one goes on", func() {
		old := g.mainPID()
		g.write(configFile, 0o640, faulty)
		g.await("the daemon to say so", func() bool {
			_, ok := g.try("journalctl -u gateway --no-pager | grep -F 'new configuration refused'")
			return ok
		})
		b.next()
		if p := g.mainPID(); p != old {
			g.t.Errorf("pid %d, and it was %d", p, old)
		}
	})
	g.step("and after a restart the last one that worked, which is said", func() {
		g.run("systemctl restart " + unit)
		b.next()
		for command, want := range map[string]string{
			"gateway status":                configFile + " is refused, an earlier one runs",
			"gateway status --json":         "1 fault: `sudo gateway check",
			"systemctl status " + unit:      "the configuration is faulty",
			"! gateway check " + configFile: "bme289",
		} {
			if text := g.run(command + " 2>&1"); !strings.Contains(text, want) {
				g.t.Errorf("`%s` does not say %q:\n%s", command, want, text)
			}
		}
	})
	g.step("with none that worked: it ends with 78 and is not restarted for nothing", func() {
		g.run("systemctl stop gateway; rm /var/lib/gateway/last-good.yaml; systemctl start gateway; true")
		g.await("failed", func() bool { return g.property("ActiveState") == "failed" })
		if got := g.property("ExecMainStatus"); got != "78" {
			g.t.Errorf("exit status %s", got)
		}
		g.write(configFile, 0o640, configuration)
		g.run("systemctl start " + unit)
		b.next()
	})
	b.sound()
}

// A process that stands still is no better than one that is dead, and systemd
// cannot see it: the main loop must ping the watchdog, itself.
func TestHangs(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]struct{ signal, dump string }{
		"the process stands still": {"STOP", ""},
		"the main loop hangs":      {"USR1", "main.hang"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, b := installed(t, made(t).newer)
			g.put(made(t).faulty, program, 0o755)
			g.run("systemctl restart " + unit)
			b.next()
			old := g.mainPID()
			begun := time.Now()
			g.run(fmt.Sprintf("kill -%s %d", how.signal, old))
			g.await("a new process", func() bool { p := g.mainPID(); return p != 0 && p != old })
			g.bar("a new process", time.Since(begun), 35*time.Second)
			b.next()
			journal := g.run("journalctl -u gateway --no-pager -o cat")
			if !strings.Contains(journal, "Watchdog timeout") {
				g.t.Errorf("it was not the watchdog:\n%s", journal)
			}
			if n := strings.Count(journal, "\ngoroutine "); n < 5 || !strings.Contains(journal, how.dump) {
				g.t.Errorf("%d goroutines are in the journal, and with them where it hung:\n%s", n, journal)
			} else {
				g.figure("%d goroutines in the journal", n)
			}
			b.sound()
		})
	}
}

// What others do is no hang of ours: a broker that takes a request and never
// answers. A restart would help nobody.
func TestSilentBroker(t *testing.T) {
	t.Parallel()
	g, b := installed(t, made(t).newer)
	old := g.mainPID()
	b.answer(false)
	const silence = 40 * time.Second // the watchdog has 30 s
	time.Sleep(silence)
	if p := g.mainPID(); p != old || g.property("NRestarts") != "0" {
		t.Errorf("pid %d, and it was %d; %s restarts", p, old, g.property("NRestarts"))
	}
	ledger := g.exported()
	if len(ledger) < int(silence/time.Second) {
		t.Errorf("%d readings wait after %v: sensing does not go on", len(ledger), silence)
	}
	b.answer(true)
	took := b.arrive(ledger)
	g.figure("the same process after %s of silence; %d readings arrived within %s", seconds(silence), len(ledger), seconds(took))
	b.sound()
}

// A leak: Raspberry Pi OS has the memory cgroup off, so the daemon watches itself.
// This container has none either.
func TestLeaks(t *testing.T) {
	t.Parallel()
	g, b := installed(t, made(t).newer)
	g.put(made(t).faulty, program, 0o755)
	g.run("systemctl restart " + unit)
	b.next()
	old := g.mainPID()
	begun := time.Now()
	g.run(fmt.Sprint("kill -USR2 ", old))
	g.await("a new process", func() bool { p := g.mainPID(); return p != 0 && p != old })
	g.figure("10 MiB each 100 ms: a new process after %s", seconds(time.Since(begun)))
	b.next()
	if said := g.run("journalctl -u gateway --no-pager -o cat"); !strings.Contains(said, "MiB") || !strings.Contains(said, "memory") {
		g.t.Errorf("it does not say why it ended:\n%s", said)
	}
	b.sound()
}
