package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"campus-gateway"
	"campus-gateway/drivers"
	"campus-gateway/drivers/bus"
	"campus-gateway/systemd"
)

// computer is what doctor and bundle look at. All that a check asks of the outside
// goes through it, so that a test can make each one fail.
type computer struct {
	root string // the system's files are read below it
	self string // this program, to be started; empty: not to be
	os   string
	uid  int
	now  func() time.Time

	limit time.Duration // of all checks together

	command func(ctx context.Context, name string, args ...string) (string, error) // its output, also with an error
	open    func(path string) error                                                // a device, to read and write; nothing is done with it
	space   func(path string) (free, size int64, err error)                        // for an ordinary user, bytes
	write   func(ctx context.Context, dir string) (rate float64, flush time.Duration, err error)
	host    func() (drivers.Host, func())
	synced  []clockSource
	zone    func(name string) (*time.Location, error)

	resolve func(ctx context.Context, host string) ([]string, error)
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	proxy   func(*http.Request) (*url.URL, error)
}

// clockSource says whether the clock is right.
type clockSource struct {
	name string
	ask  func(context.Context) error
}

func thisPi() *computer {
	self, _ := os.Executable()
	return &computer{
		root: "/", self: self, os: runtime.GOOS, uid: os.Getuid(), now: time.Now, limit: checkLimit,
		command: func(ctx context.Context, name string, args ...string) (string, error) {
			var out bytes.Buffer
			c := exec.CommandContext(ctx, name, args...)
			c.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0")
			c.Stdout, c.Stderr, c.WaitDelay = &out, &out, 200*time.Millisecond
			err := c.Run()
			return out.String(), err
		},
		open: func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err == nil {
				err = f.Close()
			}
			return err
		},
		space: diskSpace, write: writeSpeed,
		host: func() (drivers.Host, func()) {
			bus.PrepareGPIO()
			h := &bus.Host{}
			return h, func() { _ = h.Close() }
		},
		synced:  []clockSource{{"systemd-timesyncd", systemd.Timesyncd}, {"timedated", systemd.Timedate}},
		zone:    time.LoadLocation,
		resolve: net.DefaultResolver.LookupHost,
		dial:    (&net.Dialer{}).DialContext,
		proxy:   http.ProxyFromEnvironment,
	}
}

func (m *computer) path(name string) string { return filepath.Join(m.root, name) }

func (m *computer) exists(name string) bool {
	_, err := os.Stat(m.path(name))
	return err == nil
}

// first is the first of these files that is there, else empty.
func (m *computer) first(names ...string) string {
	for _, n := range names {
		if m.exists(n) {
			return n
		}
	}
	return ""
}

// read is a small file's text without its end of line; empty if it cannot be read.
func (m *computer) read(name string) string {
	b, err := os.ReadFile(m.path(name))
	if err != nil {
		return ""
	}
	return strings.Trim(string(b), "\x00\n ")
}

func (m *computer) glob(pattern string) []string {
	found, _ := filepath.Glob(m.path(pattern)) // a bad pattern is our own
	return found
}

// logDir is the folder of the log, as configured or by default.
func (m *computer) logDir(c *config) string {
	if c != nil {
		return c.Log.Dir
	}
	return m.path(stateDir())
}

// describe is the machine in a line.
func (m *computer) describe() string {
	system := cmp.Or(osName(m.read("/etc/os-release")), m.os)
	if model := m.read("/proc/device-tree/model"); model != "" {
		return model + ", " + system
	}
	return system + " (" + runtime.GOARCH + ")"
}

// Files that are in one of two places: Raspberry Pi OS 12 moved /boot to
// /boot/firmware.
func (m *computer) boot(name string) string {
	return cmp.Or(m.first("/boot/firmware/"+name, "/boot/"+name), "/boot/firmware/"+name)
}

// The unit's places. What is in /etc is used, whatever the package brings.
const ownUnit = "/etc/systemd/system/gateway.service"

func (m *computer) packagedUnit() string {
	return m.first("/usr/lib/systemd/system/gateway.service", "/lib/systemd/system/gateway.service")
}

// unit is what systemd says of the service; nil where it does not run.
func (m *computer) unit(ctx context.Context) map[string]string {
	out, err := m.command(ctx, "systemctl", "show", "gateway.service", "--no-pager",
		"--property=LoadState,ActiveState,SubState,UnitFileState,FragmentPath,DropInPaths,NeedDaemonReload,NRestarts,Result,ExecMainStatus,StatusText")
	if err != nil {
		return nil
	}
	u := map[string]string{}
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			u[k] = v
		}
	}
	return u
}

func checkService(ctx context.Context, p *patient) []finding {
	var found []finding
	own, packaged := "", p.packagedUnit()
	if i, err := os.Lstat(p.path(ownUnit)); err == nil {
		own = ownUnit
		if to, err := os.Readlink(p.path(ownUnit)); i.Mode()&fs.ModeSymlink != 0 && err == nil && to == "/dev/null" {
			return []finding{fail("unit", "sudo systemctl unmask gateway", "the service is masked: it never starts")}
		}
	}
	switch {
	case own == "" && packaged == "" && p.daemon.runs:
		return []finding{warn("unit", "sudo gateway install", "a gateway runs, but not as a service: after a restart of the machine it does not")}
	case own == "" && packaged == "":
		return []finding{warn("unit", "sudo gateway install", "the service is not installed")}
	case own != "" && packaged != "":
		found = append(found, warn("unit", "sudo rm "+ownUnit+" && sudo systemctl daemon-reload && sudo systemctl restart gateway",
			"%s shadows the package's %s: an upgrade changes nothing", own, packaged))
	default:
		found = append(found, ok("unit", "%s", own+packaged))
	}
	u := p.unit(ctx)
	enabled := p.first("/etc/systemd/system/multi-user.target.wants/gateway.service") != "" || isLink(p.path("/etc/systemd/system/multi-user.target.wants/gateway.service"))
	if s := u["UnitFileState"]; s != "" {
		enabled = s == "enabled"
	}
	if !enabled {
		found = append(found, warn("enabled", "sudo systemctl enable gateway", "the service does not start with the machine"))
	}
	if u["NeedDaemonReload"] == "yes" {
		found = append(found, warn("reload", "sudo systemctl daemon-reload && sudo systemctl restart gateway", "the unit file has changed since systemd read it"))
	}
	if drops := u["DropInPaths"]; drops != "" {
		found = append(found, ok("drop-ins", "%s", drops))
	}
	found = append(found, active(p, u))
	if packaged != "" {
		out, _ := p.command(ctx, "dpkg", "--verify", "gateway") // its status only repeats the output
		var changed []string
		for line := range strings.Lines(out) {
			// "??5?????? c /etc/gateway/gateway.yaml": c is a configuration file
			if w := strings.Fields(line); len(w) == 2 && strings.HasPrefix(w[1], "/") {
				changed = append(changed, w[1])
			}
		}
		if len(changed) > 0 {
			found = append(found, warn("package", "sudo apt-get install --reinstall ./gateway_*.deb", "not as the package brought them: %s", strings.Join(changed, ", ")))
		}
	}
	return found
}

func isLink(path string) bool {
	i, err := os.Lstat(path)
	return err == nil && i.Mode()&fs.ModeSymlink != 0
}

// active tells whether the service is at work.
func active(p *patient, u map[string]string) finding {
	const journal = "journalctl -u gateway -n 50 --no-pager"
	restarts, _ := strconv.Atoi(u["NRestarts"])
	again := ""
	if restarts > 0 {
		again = fmt.Sprintf("; restarted %d times since it was started", restarts)
	}
	reason, mend := systemd.Reason(u["ExecMainStatus"])
	switch state := u["ActiveState"]; {
	case p.daemon.hangs != "":
		return fail("running", "sudo systemctl restart gateway", "the daemon runs, but does not answer%s", again)
	case len(p.daemon.hung) > 0:
		return fail("running", "sudo systemctl restart gateway", "a part of the daemon does not turn: %s%s", strings.Join(p.daemon.hung, ", "), again)
	case state == "active" && restarts >= 5:
		return warn("running", journal, "active%s: it keeps ending", again)
	case state == "active" || state == "reloading":
		return ok("running", "active%s%s", strings.TrimRight(": "+u["StatusText"], ": "), again)
	case state == "failed" || state == "activating" && u["SubState"] == "auto-restart":
		return fail("running", cmp.Or(mend, journal), "%s: %s%s", state, cmp.Or(reason, "it ended with "+u["Result"]+", status "+u["ExecMainStatus"]), again)
	case state == "activating":
		return ok("running", "it is starting%s", again)
	case p.daemon.runs:
		return ok("running", "a daemon answers")
	case state == "":
		return skipped("running", "systemd does not answer, and no daemon does")
	}
	return warn("running", "sudo systemctl start gateway", "the service is stopped")
}

// checkSecrets looks at who may read the secrets. What is in them is no matter here.
func checkSecrets(_ context.Context, p *patient) []finding {
	const dir = secretsDir
	installed := p.exists(ownUnit) || p.packagedUnit() != ""
	i, err := os.Stat(p.path(dir))
	switch {
	case errors.Is(err, fs.ErrNotExist) && installed:
		return []finding{fail("secrets", "sudo install -d -m 0700 "+dir, "%s is missing: the service does not start without it (243/CREDENTIALS)", dir)}
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return []finding{skipped("secrets", "%s is not for this user", dir)}
	}
	if i.Mode().Perm()&0o077 != 0 {
		return []finding{warn("secrets", "sudo chmod 0700 "+dir, "%s may be looked into by others (%v)", dir, i.Mode().Perm())}
	}
	entries, err := os.ReadDir(p.path(dir))
	if err != nil {
		return []finding{skipped("secrets", "%s is not for this user", dir)}
	}
	var open []string
	for _, e := range entries {
		if i, err := os.Stat(filepath.Join(p.path(dir), e.Name())); err == nil && i.Mode().Perm()&0o077 != 0 {
			open = append(open, filepath.Join(dir, e.Name()))
		}
	}
	if len(open) > 0 {
		return []finding{warn("secrets", "sudo chmod 0600 "+strings.Join(open, " "), "others may read %s", strings.Join(open, ", "))}
	}
	return []finding{ok("secrets", "%d files, for root alone", len(entries))}
}

// checkNamedSecrets looks at who may read the secrets that a configuration has put
// elsewhere.
func checkNamedSecrets(_ context.Context, p *patient) []finding {
	if p.c == nil {
		return nil
	}
	var open []string
	for _, u := range p.c.Uplinks {
		for _, file := range u.named() {
			i, err := os.Stat(file)
			if elsewhere := filepath.Dir(file) != secretsDir && file != u.TLS.CAFile && file != u.TLS.CertFile; elsewhere && err == nil && i.Mode().Perm()&0o007 != 0 {
				open = append(open, file)
			}
		}
	}
	if len(open) > 0 {
		return []finding{warn("secrets", "sudo chmod o= "+strings.Join(open, " "), "everybody on this machine may read %s: better lay it into %s", strings.Join(open, ", "), secretsDir)}
	}
	return nil
}

// groupName is a group by its number.
func (m *computer) groupName(gid uint32) string {
	for line := range strings.Lines(m.read("/etc/group")) {
		if w := strings.Split(line, ":"); len(w) > 2 && w[2] == fmt.Sprint(gid) {
			return w[0]
		}
	}
	return fmt.Sprint(gid)
}

func checkGroups(_ context.Context, p *patient) []finding {
	has := func(file, name string) bool {
		return strings.Contains("\n"+p.read(file), "\n"+name+":")
	}
	var missing []string
	for _, g := range []string{"i2c", "gpio", "spi"} {
		if !has("/etc/group", g) {
			missing = append(missing, g)
		}
	}
	installed := p.exists(ownUnit) || p.packagedUnit() != ""
	mend := "for g in " + strings.Join(missing, " ") + "; do sudo groupadd --system $g; done"
	switch {
	case !installed && len(missing) > 0:
		return []finding{warn("groups", mend, "missing: %s, who may use the buses and lines", strings.Join(missing, ", "))}
	case len(missing) > 0:
		return []finding{fail("groups", mend, "missing: %s: the service does not start without (216/GROUP)", strings.Join(missing, ", "))}
	case installed && !has("/etc/passwd", "gateway"):
		return []finding{fail("groups", "sudo useradd --system --home-dir /var/lib/gateway --shell /usr/sbin/nologin gateway", "the user gateway is missing: the service does not start (217/USER)")}
	}
	return []finding{ok("groups", "i2c, gpio and spi are there")}
}

// buses are the I2C buses that are configured, or the usual one.
func (p *patient) buses() (names []string, wanted bool) {
	if p.c != nil {
		for _, s := range p.c.Sensors {
			if s.driver.Kind == drivers.I2C && !slices.Contains(names, s.Bus) {
				names = append(names, s.Bus)
			}
		}
	}
	if len(names) == 0 {
		return []string{"i2c-1"}, false
	}
	return names, true
}

func checkI2C(_ context.Context, p *patient) []finding {
	names, wanted := p.buses()
	if p.c != nil && !wanted {
		return []finding{skipped("I2C", "no configured sensor is on an I2C bus")}
	}
	var found []finding
	for _, name := range names {
		if p.exists("/dev/" + name) {
			found = append(found, p.access("/dev/"+name, "i2c", "i2c-dev"))
			continue
		}
		if wanted && p.simulated(func(s *sensorConfig) bool { return s.driver.Kind == drivers.I2C && s.Bus == name }) {
			found = append(found, skipped(name, "there is no such bus: the daemon simulates its sensors"))
			continue
		}
		f := p.noBus(name)
		if !wanted {
			f.Status = isWarning
		}
		found = append(found, f)
	}
	return found
}

// noBus says why there is no device file for a bus.
func (p *patient) noBus(name string) finding {
	if p.exists("/sys/bus/i2c/devices/" + name) {
		return fail(name, "echo i2c-dev | sudo tee /etc/modules-load.d/i2c.conf && sudo modprobe i2c-dev", "the bus is there, its device file /dev/%s is not: the module i2c-dev is not loaded", name)
	}
	var there []string
	for _, f := range p.glob("/dev/i2c-*") {
		there = append(there, filepath.Base(f))
	}
	file := p.boot("config.txt")
	on := regexp.MustCompile(`(?m)^\s*dtparam=(.*,)?i2c(_arm)?=on`).MatchString(p.read(file))
	switch {
	case name != "i2c-1":
		return fail(name, "ls /dev/i2c-*", "there is no such bus; those here: %s. A further one wants an overlay in %s", cmp.Or(strings.Join(there, ", "), "none"), file)
	case p.first("/usr/bin/raspi-config") != "":
		return fail(name, "sudo raspi-config nonint do_i2c 0", "I2C is switched off")
	case on:
		return fail(name, "sudo reboot", "I2C is switched on in %s, but not yet at work", file)
	case p.exists(file):
		return fail(name, "echo 'dtparam=i2c_arm=on' | sudo tee -a "+file+" && sudo reboot", "I2C is switched off")
	}
	return fail(name, "sudo modprobe i2c-dev && ls /dev/i2c-*", "there is no such bus; those here: %s", cmp.Or(strings.Join(there, ", "), "none"))
}

// access tells whether the service, which has the group, and this user may use a device.
func (p *patient) access(dev, group, subsystem string) finding {
	name := filepath.Base(dev)
	i, err := os.Stat(p.path(dev))
	if err != nil {
		return fail(name, "ls -l "+dev, "%v", err)
	}
	mode := i.Mode().Perm()
	gid, known := groupOf(i)
	if owner := p.groupName(gid); known && mode&0o006 != 0o006 && (mode&0o060 != 0o060 || owner != group) {
		mend := "sudo udevadm trigger --subsystem-match=" + subsystem
		if p.first("/usr/lib/udev/rules.d/60-gateway.rules", "/lib/udev/rules.d/60-gateway.rules", "/etc/udev/rules.d/60-gateway.rules") == "" {
			mend = fmt.Sprintf(`echo 'SUBSYSTEM=="%s", GROUP="%s", MODE="0660"' | sudo tee -a /etc/udev/rules.d/61-gateway-local.rules && sudo udevadm control --reload && %s`, subsystem, group, mend)
		}
		return fail(name, mend, "%s belongs to the group %s (%v): the service, which has the group %s, may not use it", dev, owner, mode, group)
	}
	if err := p.open(p.path(dev)); errors.Is(err, fs.ErrPermission) {
		return warn(name, "sudo usermod -aG "+group+" $USER && newgrp "+group, "the service may use it, this user may not: `gateway read` needs the group %s", group)
	} else if err != nil {
		return fail(name, "sudo dmesg | tail -n 20", "%v", err)
	}
	return ok(name, "%s, group %s", dev, group)
}

func checkGPIO(_ context.Context, p *patient) []finding {
	onLine := func(s sensorConfig) bool { return s.driver.Kind == drivers.GPIO }
	if p.c == nil || !slices.ContainsFunc(p.c.Sensors, onLine) {
		return nil
	}
	chips := p.glob("/dev/gpiochip*")
	if len(chips) == 0 && p.simulated(func(s *sensorConfig) bool { return onLine(*s) }) {
		return []finding{skipped("GPIO", "there is no /dev/gpiochip*: the daemon simulates its sensors")}
	}
	if len(chips) == 0 {
		return []finding{fail("GPIO", "sudo dmesg | grep -i gpio", "there is no /dev/gpiochip*, and a configured sensor is on a GPIO line")}
	}
	return []finding{p.access("/dev/"+filepath.Base(chips[0]), "gpio", "gpio")}
}

// sensorLimit is how long the sensors are asked: one that hangs costs 2 s.
const sensorLimit = 5 * time.Second

// checkSensors tells how each sensor is: by the daemon's word if one runs, or may run;
// else each is opened, once.
func checkSensors(ctx context.Context, p *patient) []finding {
	if p.c == nil {
		return nil
	}
	if len(p.c.Sensors) == 0 {
		return []finding{skipped("sensors", "none is configured: `gateway drivers` lists what can be")}
	}
	d := p.daemon
	if !d.runs && d.unsure {
		return []finding{skipped("sensors", "a daemon may be at them: `sudo gateway doctor` sees it")}
	}
	ctx, cancel := context.WithTimeout(ctx, sensorLimit)
	defer cancel()
	host, done := p.host()
	defer done()
	opener := &drivers.Opener{Host: host}
	var found []finding
	tried, faulty := map[string]int{}, map[string]int{} // by bus
	for i := range p.c.Sensors {
		s := &p.c.Sensors[i]
		if owner := p.kernelOwner(s); owner != "" {
			chip := fmt.Sprintf("%s-%04x", strings.TrimPrefix(s.Bus, "i2c-"), s.Address)
			found = append(found, fail(s.Name, fmt.Sprintf("echo %s | sudo tee /sys/bus/i2c/drivers/%s/unbind", chip, owner),
				"the kernel's driver %s has taken %s: take it away, or write `shared: true` if both may talk to the chip", owner, s.spot()))
			continue
		}
		if noBus := s.driver.Kind == drivers.I2C && !p.exists("/dev/"+s.Bus); noBus && !d.reads(s) {
			found = append(found, skipped(s.Name, "%s at %s: there is no such bus, see below", s.Driver, s.spot()))
			continue
		}
		if d.runs {
			found = append(found, d.sensor(s))
			continue
		}
		if ctx.Err() != nil {
			found = append(found, skipped(s.Name, "%s at %s: no time was left, the others took it", s.Driver, s.spot()))
			continue
		}
		r, err := opener.Open(ctx, s.driver, s.place(), s.options)
		if err == nil {
			err = r.Halt()
		}
		tried[s.Bus]++
		if bus.Fault(err) || errors.Is(err, bus.ErrHung) {
			faulty[s.Bus]++
		}
		found = append(found, opened(s, err))
	}
	for _, name := range sortedKeys(faulty) {
		if name != "" && faulty[name] == tried[name] {
			found = slices.Insert(found, 0, fail(name, "sudo poweroff", "the bus is stuck: nothing on it answers in time. A wire (SDA or SCL) is held low: take the power away, pull the chips off one by one, look at the pull-up resistors"))
		}
	}
	return found
}

// kernelOwner is the kernel's driver that is bound to a sensor's address.
func (p *patient) kernelOwner(s *sensorConfig) string {
	if s.driver.Kind != drivers.I2C || s.Shared {
		return ""
	}
	link, err := os.Readlink(p.path(fmt.Sprintf("/sys/bus/i2c/devices/%s-%04x/driver", strings.TrimPrefix(s.Bus, "i2c-"), s.Address)))
	if err != nil {
		return ""
	}
	return filepath.Base(link)
}

// reads reports whether the daemon says that it reads a sensor.
func (d daemon) reads(s *sensorConfig) bool { return d.sensors[s.Name].State == gateway.OK }

// simulated reports whether the daemon reads a sensor for which there is no hardware.
func (p *patient) simulated(needs func(*sensorConfig) bool) bool {
	return slices.ContainsFunc(p.c.Sensors, func(s sensorConfig) bool { return needs(&s) && p.daemon.reads(&s) })
}

// sensor is the daemon's word about a sensor.
func (d daemon) sensor(s *sensorConfig) finding {
	w, told := d.sensors[s.Name]
	switch {
	case d.sensors == nil:
		return skipped(s.Name, "the daemon has it, and shows it to nobody: see `gateway status`")
	case !told:
		return warn(s.Name, "sudo systemctl reload gateway", "the daemon that runs does not know this sensor: it has another configuration")
	case w.State == gateway.OK:
		return ok(s.Name, "%s at %s is read", s.Driver, s.spot())
	case w.State == gateway.Starting:
		return ok(s.Name, "%s at %s: the daemon is starting it", s.Driver, s.spot())
	}
	f := troubled(s, w.Why)
	f.Why = "the daemon says: " + f.Why
	return f
}

// opened is what opening a sensor has shown.
func opened(s *sensorConfig, err error) finding {
	switch {
	case err == nil:
		return ok(s.Name, "%s at %s answers", s.Driver, s.spot())
	case bus.NoAck(err):
		return fail(s.Name, "sudo apt-get install -y i2c-tools && sudo i2cdetect -y "+strings.TrimPrefix(s.Bus, "i2c-"),
			"the chip is silent: nothing answers at %s. Power, ground, SDA and SCL connected? A %s answers at %s", s.spot(), s.Driver, hexList(s.driver.Addresses))
	case bus.Fault(err), errors.Is(err, bus.ErrHung):
		return fail(s.Name, "sudo dmesg | grep -i i2c | tail", "no answer in time at %s: %v", s.spot(), err)
	}
	return troubled(s, err.Error())
}

// troubled is a sensor's trouble by its words, and what to try.
func troubled(s *sensorConfig, why string) finding {
	mend := fmt.Sprintf("gateway read %s --pin %s", s.Driver, s.Pin)
	if s.driver.Kind == drivers.I2C {
		mend = fmt.Sprintf("gateway read %s --bus %s --address %#02x", s.Driver, s.Bus, s.Address)
	}
	if strings.Contains(why, drivers.ErrWrongID.Error()) { // the driver that fits, if we have it
		for _, name := range driverNames() {
			if name != s.Driver && strings.Contains(strings.ToLower(why), "driver "+name) {
				mend = fmt.Sprintf("gateway read %s --bus %s --address %#02x", name, s.Bus, s.Address)
			}
		}
	}
	return fail(s.Name, mend, "%s", why)
}

func checkOneWire(_ context.Context, p *patient) []finding {
	file := p.boot("config.txt")
	overlay := regexp.MustCompile(`(?m)^\s*dtoverlay=w1-gpio`).MatchString(p.read(file))
	switch there := p.exists("/sys/bus/w1/devices"); {
	case there:
		return []finding{ok("1-Wire", "on, %d chips", len(p.glob("/sys/bus/w1/devices/[0-9][0-9a-f]-*")))}
	case overlay:
		return []finding{warn("1-Wire", "sudo reboot", "switched on in %s, but not yet at work", file)}
	}
	return []finding{skipped("1-Wire", "off, and no sensor wants it")}
}

// The bits of get_throttled (raspberrypi.com/documentation, vcgencmd): what is now,
// and 16 bits above, what has been since the start.
const (
	underVoltage = 1 << 0
	throttled    = 1 << 2
	tooHot       = 1 << 3
	sinceStart   = 16
)

func checkPower(_ context.Context, p *patient) []finding {
	const mend = "vcgencmd get_throttled"
	seen := false
	for _, name := range p.glob("/sys/class/hwmon/hwmon*/name") {
		b, _ := os.ReadFile(name)
		if strings.TrimSpace(string(b)) != "rpi_volt" {
			continue
		}
		seen = true
		if b, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "in0_lcrit_alarm")); strings.TrimSpace(string(b)) == "1" {
			return []finding{fail("power", mend, "undervoltage now: below 4.63 V. Use the official power supply and a short cable; cards are damaged this way")}
		}
	}
	if text := p.read("/sys/devices/platform/soc/soc:firmware/get_throttled"); text != "" {
		bits, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, 32)
		seen = seen || err == nil
		switch {
		case err != nil:
		case bits&underVoltage != 0:
			return []finding{fail("power", mend, "undervoltage now: below 4.63 V. Use the official power supply and a short cable; cards are damaged this way")}
		case bits&(underVoltage<<sinceStart) != 0:
			return []finding{warn("power", mend, "undervoltage since the machine started: use the official power supply and a short cable")}
		case bits&(throttled|tooHot) != 0:
			return []finding{warn("power", "vcgencmd measure_temp", "too hot: the processor is slowed down")}
		}
	}
	if !seen {
		return []finding{skipped("power", "this machine does not tell of its voltage")}
	}
	return []finding{ok("power", "no undervoltage")}
}

func checkCgroup(_ context.Context, p *patient) []finding {
	const name = "memory cgroup"
	controllers := p.read("/sys/fs/cgroup/cgroup.controllers")
	switch file := p.boot("cmdline.txt"); {
	case controllers == "":
		return []finding{skipped(name, "there is no cgroup v2 here")}
	case slices.Contains(strings.Fields(controllers), "memory"):
		return []finding{ok(name, "on: MemoryMax= of the unit holds")}
	case strings.Contains(p.read("/proc/cmdline"), "cgroup_enable=memory"):
		return []finding{warn(name, "sudo apt-get update && sudo apt-get full-upgrade && sudo reboot", "off although the kernel was asked for it: kernels of summer 2025 could not. The gateway watches its own memory")}
	case strings.Contains(p.read(file), "cgroup_enable=memory"):
		return []finding{warn(name, "sudo reboot", "switched on in %s, but not yet at work", file)}
	default:
		return []finding{warn(name, "sudo sed -i '1s/$/ cgroup_enable=memory/' "+file+" && sudo reboot", "off: MemoryMax= of the unit does nothing. The gateway watches its own memory")}
	}
}

// ntpServices keep the clock.
var ntpServices = []string{"systemd-timesyncd", "chrony", "ntpsec", "ntp", "openntpd"}

func checkClock(ctx context.Context, p *patient) []finding {
	now := p.now()
	for _, s := range p.synced {
		if s.ask(ctx) == nil {
			return []finding{ok("clock", "synchronized, says %s: %s", s.name, now.UTC().Format("2006-01-02 15:04 UTC"))}
		}
	}
	out, _ := p.command(ctx, "systemctl", append([]string{"is-active"}, ntpServices...)...) // its status says only that not all are
	service := ""
	for i, state := range strings.Fields(out) {
		if state == "active" && i < len(ntpServices) {
			service = ntpServices[i]
		}
	}
	mend := "sudo timedatectl set-ntp true"
	switch {
	case service != "":
		mend = "timedatectl timesync-status"
		if service == "chrony" {
			mend = "chronyc tracking"
		}
	case p.first("/usr/lib/systemd/systemd-timesyncd", "/lib/systemd/systemd-timesyncd") == "":
		mend = "sudo apt-get install -y systemd-timesyncd && sudo timedatectl set-ntp true"
	}
	why := "it is not synchronized: no NTP service runs"
	if service != "" {
		why = fmt.Sprintf("it is not synchronized: %s runs, but has reached no server. Does the campus block NTP (UDP 123)? Then name its own server in /etc/systemd/timesyncd.conf", service)
	}
	if now.Year() < 2026 {
		return []finding{fail("clock", mend, "it shows %s, which is past; %s", now.UTC().Format("2006-01-02 15:04 UTC"), why)}
	}
	return []finding{warn("clock", mend, "%s. It shows %s", why, now.UTC().Format("2006-01-02 15:04 UTC"))}
}

// checkZones: Morocco is on UTC+0 for good since 2026-09-20 (tz 2026c).
func checkZones(_ context.Context, p *patient) []finding {
	name := p.read("/etc/timezone")
	if to, err := os.Readlink(p.path("/etc/localtime")); err == nil {
		_, name, _ = strings.Cut(filepath.ToSlash(to), "zoneinfo/")
	}
	if name != "Africa/Casablanca" && name != "Africa/El_Aaiun" {
		return []finding{ok("time zone", "%s (readings are sent in UTC)", cmp.Or(name, "UTC"))}
	}
	const mend = "sudo apt-get update && sudo apt-get install -y tzdata"
	zone, err := p.zone(name)
	if err != nil {
		return []finding{warn("time zone", mend, "%v", err)}
	}
	if _, offset := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC).In(zone).Zone(); offset != 0 {
		return []finding{warn("time zone", mend, "%s: the zone data are older than 2026c: Morocco is on UTC+0 since 2026-09-20, this machine says UTC+%d. Readings are sent in UTC and are right", name, offset/3600)}
	}
	return []finding{ok("time zone", "%s, as of 2026-09-20: UTC+0", name)}
}

// mount is one line of mountinfo (proc_pid_mountinfo(5)).
type mount struct{ point, kind, source, options string }

// mountOf is the mount that a path is on.
func (m *computer) mountOf(path string) (best mount) {
	for line := range strings.Lines(m.read("/proc/self/mountinfo")) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 {
			continue
		}
		point := strings.ReplaceAll(l[4], `\040`, " ")
		if inside := path == point || point == "/" || strings.HasPrefix(path, point+"/"); inside && len(point) >= len(best.point) {
			best = mount{point, r[0], r[1], l[5] + "," + r[2]}
		}
	}
	return best
}

func checkPlace(_ context.Context, p *patient) []finding {
	dir := p.logDir(p.c)
	at := p.mountOf(dir)
	readOnly := slices.Contains(strings.Split(at.options, ","), "ro")
	switch {
	case at.point == "":
		return []finding{skipped("place", "the kernel does not say what %s is on", dir)}
	case at.kind == "overlay":
		return []finding{fail("place", "sudo raspi-config nonint do_overlayfs 1 && sudo reboot", "%s is on an overlay, that is in memory: what waits there is lost at each restart. Or give /var/lib/gateway a partition of its own, with overlayroot=tmpfs:recurse=0", dir)}
	case at.kind == "tmpfs" || at.kind == "ramfs":
		return []finding{fail("place", "findmnt --target "+dir, "%s is in memory (%s at %s): what waits there is lost at each restart. Name a folder on the card as log.dir", dir, at.kind, at.point)}
	case readOnly:
		return []finding{fail("place", "sudo mount -o remount,rw "+at.point+"; sudo dmesg | grep -i -e ext4 -e mmc | tail", "%s is read-only: after errors the kernel mounts a card so. Copy it and replace it", at.point)}
	}
	return []finding{ok("place", "%s on %s (%s)", dir, at.source, at.kind)}
}

// existing is a folder, or the first above it that can be looked at.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return dir
		}
		dir = up
	}
}

func checkSpace(_ context.Context, p *patient) []finding {
	l := defaultConfig().Log
	if p.c != nil {
		l = p.c.Log
	}
	dir := existing(p.logDir(p.c))
	free, size, err := p.space(dir)
	if err != nil {
		return []finding{skipped("space", "%s: %v", dir, err)}
	}
	const mend = "sudo apt-get clean && sudo journalctl --vacuum-size=50M && df -h"
	has := int64(0)
	if p.daemon.log != nil {
		has = p.daemon.log.Bytes
	}
	switch need := int64(l.MinFree) + int64(l.MaxSize) - has; {
	case free < int64(l.MinFree):
		return []finding{fail("space", mend, "%d of %d MiB are free, and the log leaves %d free: it takes no room for new readings", free>>20, size>>20, l.MinFree>>20)}
	case free < need:
		return []finding{warn("space", mend, "%d of %d MiB are free: the log cannot grow to its %d MiB and leave %d free", free>>20, size>>20, l.MaxSize>>20, l.MinFree>>20)}
	}
	return []finding{ok("space", "%d of %d MiB are free", free>>20, size>>20)}
}

func checkHealth(_ context.Context, p *patient) []finding {
	var found []finding
	seen := ""
	for _, dev := range p.glob("/sys/block/mmcblk*/device") {
		card := filepath.Base(filepath.Dir(dev))
		// JESD84-B51: 0x01 is up to 10 % of its life used, 0x0a up to 100 %, 0x0b more.
		worst := uint64(0)
		life, _ := os.ReadFile(filepath.Join(dev, "life_time"))
		for _, w := range strings.Fields(string(life)) {
			if n, err := strconv.ParseUint(strings.TrimPrefix(w, "0x"), 16, 8); err == nil {
				worst = max(worst, n)
			}
		}
		eol, _ := os.ReadFile(filepath.Join(dev, "pre_eol_info"))
		reserve, _ := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(string(eol)), "0x"), 16, 8) // 0: not told
		mend := "sudo gateway buffer export --format csv > readings.csv"
		switch {
		case worst >= 0x0b || reserve >= 3:
			found = append(found, fail("card", mend, "%s is worn out: save what waits, copy it and replace it", card))
		case worst >= 0x09 || reserve == 2:
			found = append(found, warn("card", mend, "%s is nearly worn out (%d0 %% of its life): copy it and replace it", card, worst))
		case worst > 0:
			seen = fmt.Sprintf("%s has used up to %d0 %% of its life", card, worst)
		}
	}
	for _, file := range p.glob("/sys/fs/ext4/*/errors_count") {
		b, _ := os.ReadFile(file)
		if n, _ := strconv.Atoi(strings.TrimSpace(string(b))); n > 0 {
			dev := filepath.Base(filepath.Dir(file))
			found = append(found, warn("card", "sudo dmesg | grep -i -e ext4 -e mmc | tail -n 20", "%d errors on the file system of %s: copy the card and replace it", n, dev))
		} else if seen == "" {
			seen = "no errors on the file system; an SD card does not tell its age"
		}
	}
	switch {
	case len(found) > 0:
		return found
	case seen == "":
		return []finding{skipped("card", "this machine does not tell of its card's health")}
	}
	return []finding{ok("card", "%s", seen)}
}

// What a card must do. The log commits once a second (log.window), each time with a
// flush or two.
const (
	slowFlush = 50 * time.Millisecond // 20 in a second
	stallsAt  = 200 * time.Millisecond
	slowRate  = 1.0 // MB/s
	speedSize = 4 << 20
)

func checkSpeed(ctx context.Context, p *patient) []finding {
	dir := existing(p.logDir(p.c))
	if free, _, err := p.space(dir); err != nil || free < 64<<20 {
		return []finding{skipped("speed", "not tried: there is too little room")}
	}
	rate, flush, err := p.write(ctx, dir)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return []finding{skipped("speed", "%s is not for this user: `sudo gateway doctor` tries it", dir)}
	case err != nil:
		return []finding{fail("speed", "sudo dmesg | grep -i -e ext4 -e mmc | tail -n 20", "%s cannot be written: %v", dir, err)}
	}
	words := fmt.Sprintf("%.1f MB/s, a flush of 4 KiB takes %.1f ms", rate, float64(flush.Microseconds())/1000)
	if flush > slowFlush || rate < slowRate {
		if flush > stallsAt {
			words += ": the card stalls"
		}
		return []finding{warn("speed", "sudo fstrim -v /", "%s: slow. If it stays so, take a card of class A1 or A2, or a larger log.window", words)}
	}
	return []finding{ok("speed", "%s", words)}
}

// writeSpeed writes speedSize bytes and flushes them, then flushes 4 KiB a few times.
// The file has no name by then, so that nothing stays, whatever ends us.
func writeSpeed(ctx context.Context, dir string) (rate float64, flush time.Duration, err error) {
	f, err := os.CreateTemp(dir, ".gateway-doctor-*")
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		defer os.Remove(f.Name()) // Windows
	}
	block := make([]byte, 64<<10)
	for i := range block { // not zeros, which a card may keep without writing
		block[i] = byte(i*7 + i>>8)
	}
	begun := time.Now()
	for range speedSize / len(block) {
		if _, err := f.Write(block); err != nil {
			return 0, 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, 0, err
	}
	rate = speedSize / 1e6 / max(time.Since(begun).Seconds(), 1e-6)
	begun = time.Now()
	n := 0
	for ; n < 10 && ctx.Err() == nil && (n == 0 || time.Since(begun) < 2*time.Second); n++ {
		if _, err := f.WriteAt(block[:4<<10], int64(n)*4<<10); err != nil {
			return 0, 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, 0, err
		}
	}
	return rate, time.Since(begun) / time.Duration(max(1, n)), nil
}

func checkJournal(_ context.Context, p *patient) []finding {
	if p.first("/usr/lib/systemd/systemd-journald", "/lib/systemd/systemd-journald") == "" {
		return []finding{skipped("journal", "there is no systemd-journald")}
	}
	storage, from := p.journalStorage()
	const mend = `printf '[Journal]\nStorage=persistent\nSystemMaxUse=50M\n' | sudo install -D -m 0644 /dev/stdin /etc/systemd/journald.conf.d/99-gateway.conf && sudo systemctl restart systemd-journald`
	switch {
	case storage == "volatile" || storage == "none":
		return []finding{warn("journal", mend, "Storage=%s in %s: what happened before a restart is not kept", storage, from)}
	case storage != "persistent" && !p.exists("/var/log/journal"):
		return []finding{warn("journal", mend, "it is kept in memory: /var/log/journal is missing, so what happened before a restart is not kept")}
	}
	return []finding{ok("journal", "it is kept over restarts")}
}

// journalStorage is Storage= of journald.conf(5): of files with one name that in /etc
// counts, then in /run; among names the last.
func (m *computer) journalStorage() (storage, from string) {
	files := map[string]string{}
	for _, dir := range []string{"/usr/lib", "/run", "/etc"} {
		for _, f := range m.glob(dir + "/systemd/journald.conf.d/*.conf") {
			files[filepath.Base(f)] = dir + "/systemd/journald.conf.d/" + filepath.Base(f)
		}
	}
	order := []string{"/etc/systemd/journald.conf"}
	for _, name := range sortedKeys(files) {
		order = append(order, files[name])
	}
	storage = "auto"
	for _, file := range order {
		for line := range strings.Lines(m.read(file)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "Storage="); ok {
				storage, from = strings.ToLower(strings.TrimSpace(v)), file
			}
		}
	}
	return storage, from
}
