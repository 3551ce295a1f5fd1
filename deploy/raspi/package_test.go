//go:build lifecycle

package raspi_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// edited is a configuration as somebody has left it, in whatever way: it is his.
const edited = configuration + "\n# Ne touchez pas!   \t\r\n\n"

// waitingSaid is that readings are kept, and how many.
var waitingSaid = regexp.MustCompile(`/var/lib/gateway (stays|is kept).* [1-9][0-9]* readings`)

// runs fails a step in which another program runs than path, or another version.
func (g *guest) runs(path, version string) {
	g.t.Helper()
	if !g.active() {
		g.t.Errorf("it is %s", g.property("ActiveState"))
	}
	if got := g.run(fmt.Sprintf("readlink /proc/%d/exe", g.mainPID())); got != path { // "… (deleted)": the one before
		g.t.Errorf("%s runs, want %s", got, path)
	}
	if got := g.run(path + " version"); !strings.Contains(got, version) {
		g.t.Errorf("%s is %s, want %s", path, got, version)
	}
}

// Readings cannot be had again. What the daemon has accepted arrives after
// whatever happens to the machine and to the package, once, in order.
func TestPackage(t *testing.T) {
	t.Parallel()
	p := made(t)
	g, b := installed(t, p.older)
	g.write(configFile, 0o640, edited)
	b.next()

	g.step("a reboot with readings that wait", func() {
		ledger := b.waits()
		g.reboot()
		b.up()
		b.next()
		g.figure("first new reading at the broker %s after the machine's start", seconds(time.Since(g.born)))
		b.arrive(ledger)
	})
	g.step("power cuts with readings that wait", func() {
		const cuts = 3
		ledger := b.waits()
		for range cuts {
			g.cut()
			g.boot()
			ledger = append(ledger, b.waits()...)
		}
		b.up()
		b.arrive(ledger)
		g.figure("%d cuts, %d accepted, all arrived %s after the machine's last start", cuts, len(unique(ledger)), seconds(time.Since(g.born)))
	})
	g.step("an upgrade with readings that wait", func() {
		ledger, old := b.waits(), g.mainPID()
		took, _ := g.install(p.newer)
		g.runs(program, p.newerVersion)
		if g.mainPID() == old {
			g.t.Error("the old process runs")
		}
		b.up()
		g.figure("dpkg -i: %s, %d accepted, all arrived %s later", seconds(took), len(ledger), seconds(b.arrive(ledger)))
	})
	g.step("its configuration is as it was", func() { // the packaged one is another now
		if got := g.read(configFile); got != edited {
			g.t.Errorf("it is now:\n%q", got)
		}
	})
	g.step("a downgrade with readings that wait", func() {
		ledger := b.waits()
		g.install(p.older)
		g.runs(program, p.olderVersion)
		b.up()
		b.arrive(ledger)
	})
	g.step("disabled by an admin, it stays so over an upgrade", func() {
		g.run("systemctl disable --now " + unit)
		g.install(p.newer)
		if state := g.property("UnitFileState"); state != "disabled" || g.active() {
			g.t.Errorf("it is %s and %s", state, g.property("ActiveState"))
		}
		g.run("systemctl enable --now " + unit)
		b.next()
	})
	var ledger []accepted
	g.step("removed: it stops, and keeps its configuration and its readings", func() {
		ledger = b.waits()
		said := g.run("dpkg -r gateway")
		if g.active() || g.mainPID() != 0 {
			g.t.Error("it runs on")
		}
		g.run("! test -e /usr/lib/systemd/system/" + unit + " && ! test -e " + program)
		if g.read(configFile) != edited {
			g.t.Error("its configuration is another")
		}
		if !waitingSaid.MatchString(said) {
			g.t.Errorf("it does not say what is kept:\n%s", said)
		}
	})
	g.step("installed again: they are delivered", func() {
		g.install(p.newer)
		b.up()
		b.arrive(ledger)
	})
	g.step("purged: secrets and configuration are gone, readings are kept, which is said", func() {
		g.write("/etc/gateway/secrets/token", 0o600, "secret")
		ledger = b.waits()
		said := g.run("dpkg -P gateway")
		g.run("! test -e /etc/gateway && test -d " + logDir)
		if !waitingSaid.MatchString(said) {
			g.t.Errorf("it does not say how many are kept:\n%s", said)
		}
		if left := g.run("systemctl list-unit-files --no-legend 'gateway*'; find /etc/systemd /usr/lib/systemd -name 'gateway*' ! -name '*.d'; true"); left != "" {
			g.t.Errorf("left behind:\n%s", left)
		}
	})
	g.step("and are delivered when the package comes back", func() {
		g.simulate()
		g.install(p.newer)
		b.up()
		b.arrive(ledger)
		g.figure("%d", len(ledger))
	})
	b.sound()
}

// A program that was copied to a machine without the package.
func TestInstalledByHand(t *testing.T) {
	t.Parallel()
	p := made(t)
	g := newGuest(t)
	b := newBroker(g)
	g.boot()
	b.up()
	const hand = "/opt/gateway/gateway"
	g.put(p.program, hand, 0o755)

	g.step("gateway install", func() {
		g.t.Log(g.run(hand + " install"))
		g.runs(hand, p.newerVersion)
		if g.property("UnitFileState") != "enabled" {
			g.t.Errorf("it is %s", g.property("UnitFileState"))
		}
		for path, want := range map[string]string{
			"/etc/gateway": "root:gateway 750", configFile: "root:gateway 640", "/etc/gateway/secrets": "root:root 700", "/var/lib/gateway": "gateway:gateway 700",
		} {
			if got := g.run("stat -c '%U:%G %a' " + path); got != want {
				g.t.Errorf("%s is %s, want %s", path, got, want)
			}
		}
	})
	g.write(configFile, 0o640, configuration)
	g.write(simulatedFile, 0o644, strings.ReplaceAll(simulated, program, hand))
	g.run("systemctl daemon-reload; systemctl restart " + unit)
	b.next()
	g.step("a second time it changes nothing", func() {
		state := "find /etc /usr -newer /root/before; systemctl show -p MainPID -p NRestarts " + unit
		g.run("touch /root/before")
		before := g.run(state)
		g.t.Log(g.run(hand + " install"))
		if after := g.run(state); after != before {
			g.t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
	g.step("stop, start, restart, status", func() {
		g.run(hand + " stop")
		if g.active() {
			g.t.Error("it runs on")
		}
		g.run(hand + " start")
		b.next()
		old := g.mainPID()
		g.run(hand + " restart")
		if p := g.mainPID(); p == old || p == 0 {
			g.t.Errorf("pid %d, and it was %d", p, old)
		}
		g.run(hand + " status")
	})
	g.step("it starts with the machine", func() {
		g.reboot()
		b.up()
		b.next()
		g.runs(hand, p.newerVersion)
	})
	g.step("the package over it: the packaged unit and program are used", func() {
		ledger := b.waits()
		g.write(simulatedFile, 0o644, simulated)
		g.install(p.newer)
		if f := g.property("FragmentPath"); !strings.HasSuffix(f, "/lib/systemd/system/"+unit) || strings.HasPrefix(f, "/etc") {
			g.t.Errorf("the unit is %s", f)
		}
		g.runs(program, p.newerVersion)
		if g.property("UnitFileState") != "enabled" || g.read(configFile) != configuration {
			g.t.Errorf("%s, and its configuration is\n%s", g.property("UnitFileState"), g.read(configFile))
		}
		b.up()
		b.arrive(ledger)
	})
	g.step("the package gone, by hand again: uninstall stops it and keeps readings", func() {
		g.run("dpkg -r gateway")
		g.write(simulatedFile, 0o644, strings.ReplaceAll(simulated, program, hand))
		g.run(hand + " install")
		g.runs(hand, p.newerVersion)
		b.next()
		b.waits()
		pid := g.mainPID()
		g.t.Log(g.run(hand + " uninstall"))
		g.run(fmt.Sprintf("! test -e /proc/%d && ! test -e /etc/systemd/system/%s && test -e %s", pid, unit, configFile))
		if kept := len(g.exportedBy(hand)); kept < 10 {
			g.t.Errorf("%d readings are kept", kept)
		}
	})
	b.sound()
}

// exported is what the log holds, in its order: it has been accepted.
func (g *guest) exported() []accepted {
	g.t.Helper()
	running := g.run(fmt.Sprintf("readlink /proc/%d/exe", g.mainPID()))
	return g.exportedBy(running)
}

// exportedBy is the same, asked with a program where none runs.
func (g *guest) exportedBy(program string) []accepted {
	g.t.Helper()
	var list []accepted
	for _, line := range strings.Split(g.run(program+" buffer export --format csv --dir "+logDir+" | tail -n +2"), "\n") {
		f := strings.Split(line, ",")
		if len(f) < 2 {
			continue
		}
		at, err := time.Parse(time.RFC3339, f[0])
		if err != nil {
			g.t.Fatalf("%s: %v", line, err)
		}
		list = append(list, accepted{f[1], at.UTC()})
	}
	return list
}

// accepted is a reading that the daemon has answered for.
type accepted struct {
	sensor string
	at     time.Time
}

func unique(ledger []accepted) map[accepted]bool {
	set := map[accepted]bool{}
	for _, a := range ledger {
		set[a] = true
	}
	return set
}

// waits has readings wait for a broker that is away, some seconds' worth, and
// returns what the log holds: with its window of 0 s that is on the disk.
func (b *broker) waits() []accepted {
	b.guest.t.Helper()
	b.down()
	begun := time.Now()
	var list []accepted
	b.guest.await("readings to wait", func() bool {
		list = b.guest.exported()
		n := 0
		for _, a := range list {
			if a.at.After(begun) {
				n++
			}
		}
		return n >= 10
	})
	return list
}

// arrive waits until all of a ledger has come.
func (b *broker) arrive(ledger []accepted) time.Duration {
	b.guest.t.Helper()
	return b.guest.await(fmt.Sprintf("%d readings that were accepted", len(ledger)), func() bool {
		came := map[accepted]bool{}
		for _, a := range b.all() {
			came[accepted{a.sensor, a.at}] = true
		}
		for _, a := range ledger {
			if !came[a] {
				return false
			}
		}
		return true
	})
}

// sound fails a test to whose broker something came twice, or an entity's values
// out of order.
func (b *broker) sound() {
	b.guest.t.Helper()
	type once struct {
		entity, attrs string
		at            int64
	}
	seen, newest := map[once]bool{}, map[string]time.Time{}
	for _, a := range b.all() {
		key := once{a.entity, a.attrs, a.at.UnixMilli()}
		if seen[key] {
			b.guest.t.Errorf("%s of %v came twice", a.entity, a.at)
		}
		seen[key] = true
		if a.at.Before(newest[a.entity]) {
			b.guest.t.Errorf("%s: %v came after %v", a.entity, a.at, newest[a.entity])
		}
		newest[a.entity] = a.at
	}
	b.guest.figure("%d updates at the broker: none twice, each entity's in order", len(seen))
}
