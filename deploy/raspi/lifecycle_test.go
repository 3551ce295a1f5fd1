//go:build lifecycle

package raspi_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// What a gateway must stand, by its life: each test is a machine of its own, each
// step says why it is demanded.

const (
	unit       = "gateway.service"
	program    = "/usr/bin/gateway"
	configFile = "/etc/gateway/gateway.yaml"
	logDir     = "/var/lib/gateway/log"
)

// configuration has the board of the demo, a broker that is asked again soon, and
// a log that is on the disk before a reading counts as kept.
const configuration = `gateway: {id: gw-a101, location: {longitude: -7.62, latitude: 33.00}}
broker: {url: "` + brokerURL + `", spread: 1s}
log: {window: 0s}
sensors:
  - {name: climate,  driver: bme280,  address: 0x76, interval: 1s}
  - {name: window,   driver: sht4x,   address: 0x44, interval: 1s}
  - {name: air,      driver: scd4x,   address: 0x62, interval: 5s, altitude: 370}
  - {name: daylight, driver: bh1750,  address: 0x23, interval: 1s}
  - {name: soil,     driver: ads1115, address: 0x48, channel: A0, quantity: soilMoisture, curve: {points: [[2.8, 0], [1.2, 100]]}, interval: 1s}
  - {name: motion,   driver: contact, pin: GPIO17, quantity: occupancy}
  - {name: door,     driver: contact, pin: GPIO27, repeat: 30s}
  - {name: tap,      driver: pulse,   pin: GPIO22, quantity: waterFlow, per_unit: 450, interval: 1s}
`

// simulated has the packaged unit read simulated chips: a container has no I2C.
// Everything else of the unit stays as it is.
const simulated = `[Service]
ExecStart=
ExecStart=` + program + ` run --simulate --config ` + configFile + `
`

const simulatedFile = "/etc/systemd/system/gateway.service.d/simulated.conf"

// figures are what was measured, told again at the end.
var figures struct {
	sync.Mutex
	lines []string
}

func TestMain(m *testing.M) {
	code := m.Run()
	if packagesDir != "" {
		_ = os.RemoveAll(packagesDir)
	}
	if len(figures.lines) > 0 {
		fmt.Println("=== measured")
		for _, l := range figures.lines {
			fmt.Println(l)
		}
	}
	os.Exit(code)
}

// figure keeps what a step has measured.
func (g *guest) figure(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	g.t.Log(text)
	figures.Lock()
	defer figures.Unlock()
	_, name, _ := strings.Cut(g.t.Name(), "Test")
	figures.lines = append(figures.lines, fmt.Sprintf("%-52s %s", strings.ReplaceAll(name, "_", " "), text))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// bar fails a step that took too long.
func (g *guest) bar(what string, took, limit time.Duration) {
	g.t.Helper()
	g.figure("%s after %s (bar: %s)", what, seconds(took), seconds(limit))
	if took > limit {
		g.t.Errorf("%s after %s: more than %s", what, seconds(took), seconds(limit))
	}
}

// newer is the package that `make package` has left in build/.
func newer() (deb, version string, err error) {
	arch, err := exec.Command("dpkg", "--print-architecture").Output()
	if err != nil {
		return "", "", err
	}
	built, err := filepath.Glob(filepath.Join("..", "..", "build", "gateway_*_"+strings.TrimSpace(string(arch))+".deb"))
	if err != nil || len(built) != 1 {
		return "", "", fmt.Errorf("build/ has %d packages for %s, want one: `make package` makes it", len(built), bytes.TrimSpace(arch))
	}
	v, err := exec.Command("dpkg-deb", "-f", built[0], "Version").Output()
	return built[0], strings.TrimSpace(string(v)), err
}

// packages are two versions of the package: that one, and an older one with
// another program and another packaged configuration; and programs.
type packages struct {
	newer, newerVersion string
	older, olderVersion string
	program, faulty     string // of newer, and one that goes wrong on demand (build tag faults)
}

var packagesDir string // theirs, until all tests have ended

var makePackages = sync.OnceValues(func() (p packages, err error) {
	if p.newer, p.newerVersion, err = newer(); err != nil {
		return p, err
	}
	p.olderVersion = p.newerVersion + "~older" // a tilde comes before the end
	if packagesDir, err = os.MkdirTemp("", "packages-"); err != nil {
		return p, err
	}
	dir := packagesDir
	here, err := os.Getwd()
	if err != nil {
		return p, err
	}
	deb := filepath.Join(here, p.newer)
	p.older, p.program, p.faulty = filepath.Join(dir, "older.deb"), filepath.Join(dir, "gateway"), filepath.Join(dir, "gateway-faults")
	cmd := exec.Command("sh", "-ec", `rm -rf older && dpkg-deb -R "$NEWER" older
		cp older`+program+` gateway
		sed -i "s/^Version: .*/Version: $OLDER/" older/DEBIAN/control
		echo '# This line is no more.' >> older`+configFile+`
		go build -C "$HERE" -trimpath -ldflags "-s -w -X main.version=$OLDER" -o "$PWD/older`+program+`" campus-gateway/cmd/gateway
		dpkg-deb --root-owner-group -Zgzip -z1 -b older older.deb
		rm -rf older
		go build -C "$HERE" -trimpath -tags faults -ldflags "-X main.version=faults" -o "$PWD/gateway-faults" campus-gateway/cmd/gateway`)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "HERE="+here, "NEWER="+deb, "OLDER="+p.olderVersion)
	if out, err := cmd.CombinedOutput(); err != nil {
		return p, fmt.Errorf("the packages for the test: %w\n%s", err, out)
	}
	return p, nil
})

func made(t *testing.T) packages {
	t.Helper()
	able(t)
	p, err := makePackages()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// install puts a version of the package on the machine and installs it, as
// cloud-init does: a configuration that is there already stays.
func (g *guest) install(deb string) (took time.Duration, said string) {
	g.t.Helper()
	g.put(deb, "/root/gateway.deb", 0o644)
	begun := time.Now()
	said = g.run("dpkg --force-confold -i /root/gateway.deb")
	return time.Since(begun), said
}

// property is one of the unit.
func (g *guest) property(name string) string {
	g.t.Helper()
	return g.run("systemctl show --value -p " + name + " " + unit)
}

func (g *guest) active() bool { return g.property("ActiveState") == "active" }

// pidOf is the daemon's pid in the guest, 0 if it does not run.
func (g *guest) mainPID() int {
	g.t.Helper()
	pid, err := strconv.Atoi(g.property("MainPID"))
	if err != nil {
		g.t.Fatal(err)
	}
	return pid
}

// replaced waits until another process runs and is ready.
func (g *guest) replaced(old int) time.Duration {
	g.t.Helper()
	return g.await("a new process that is ready", func() bool {
		p := g.mainPID()
		return p != 0 && p != old && g.active()
	})
}

// simulate has the gateway read simulated chips and send to our broker from its
// next start on.
func (g *guest) simulate() {
	g.t.Helper()
	g.write(simulatedFile, 0o644, simulated)
	g.write(configFile, 0o640, configuration)
	if g.pid != 0 && g.on() {
		g.run("systemctl daemon-reload")
	}
}

// The shortest way to see that a package is good: a new machine with its
// configuration on it, as provisioning leaves it, gets the package.
func TestSmoke(t *testing.T) {
	g := newGuest(t)
	deb, _, err := newer()
	if err != nil {
		t.Fatal(err)
	}
	g.simulate()
	b := newBroker(g)
	begun := time.Now()
	g.boot()
	g.figure("boot: %s", seconds(time.Since(begun)))
	b.up()
	g.step("from dpkg -i to the first reading at the broker", func() {
		begun := time.Now()
		took, _ := g.install(deb)
		active := took + g.await("active", g.active)
		g.await("a reading", func() bool { return b.count() > 0 })
		g.figure("dpkg -i: %s, active after %s", seconds(took), seconds(active))
		g.bar("first reading", b.all()[0].came.Sub(begun), 5*time.Second)
	})
	g.step("the configuration that was there is kept, and is the gateway's", func() {
		if got := g.read(configFile); got != configuration {
			g.t.Errorf("it is now:\n%s", got)
		}
		if got := g.run("stat -c '%U:%G %a' " + configFile); got != "root:gateway 640" {
			g.t.Errorf("it is %s, and may hold what is nobody's business", got)
		}
	})
	g.step("poweroff", func() {
		begun := time.Now()
		g.poweroff()
		g.figure("off after %s", seconds(time.Since(begun)))
	})
}
