package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// machine is a root folder with a systemd that does what it is told, and keeps
// what that was.
type machine struct {
	t    *testing.T
	root string

	enabled bool
	state   string // ActiveState
	starts  int
	runs    string // the program that runs
	fails   map[string]error
	calls   []string // that change something
	facts   string   // further properties
	journal string
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, root: t.TempDir(), state: "inactive", fails: map[string]error{}}
	if err := os.Chmod(m.root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/usr/bin", "/usr/local/bin", "/proc/4711"} {
		if err := os.MkdirAll(filepath.Join(m.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644)
	m.write("/etc/group", "root:x:0:\ni2c:x:994:\n", 0o644)
	m.write("/usr/local/bin/gateway", "by hand", 0o755)
	return m
}

func (m *machine) write(path, text string, mode fs.FileMode) {
	m.t.Helper()
	path = filepath.Join(m.root, path)
	_ = os.Remove(path) // as install(1) does: what runs keeps its file
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) read(path string) string {
	b, err := os.ReadFile(filepath.Join(m.root, path))
	if err != nil {
		return "(none)"
	}
	return string(b)
}

// service is the gateway of this machine, as the program at that path sees it.
func (m *machine) service(executable string) (*Service, *bytes.Buffer) {
	var out bytes.Buffer
	return &Service{
		Executable: executable, Starter: "# the first\n", Out: &out, Undelivered: func() string { return "7 readings" },
		root: m.root, owner: os.Geteuid(), run: m.run, unit: func(text string) (actions, error) { return kardianos{m, text}, nil },
	}, &out
}

func (m *machine) run(_ context.Context, stdin, command string, args ...string) (string, error) {
	line := strings.Join(append([]string{command}, args...), " ")
	if args[0] == "show" {
		enabled := map[bool]string{true: "enabled", false: "disabled"}[m.enabled]
		return fmt.Sprintf("ActiveState=%s\nUnitFileState=%s\nMainPID=4711\nStatusText=3 sensors\nInvocationID=abc\n%s", m.state, enabled, m.facts), nil
	}
	if command == "journalctl" {
		return m.journal, nil
	}
	m.calls = append(m.calls, line)
	if err := m.fails[line]; err != nil {
		return "", err
	}
	switch line {
	case "systemd-sysusers -":
		if stdin != sysusers {
			m.t.Errorf("systemd-sysusers is told %q", stdin)
		}
		m.write("/etc/passwd", m.read("/etc/passwd")+"gateway:x:993:993::/:/sbin/nologin\n", 0o644)
		m.write("/etc/group", m.read("/etc/group")+fmt.Sprintf("gpio:x:992:\nspi:x:991:\ngateway:x:%d:\n", os.Getegid()), 0o644)
	case "systemctl --quiet enable gateway.service":
		m.enabled = true
	}
	return "", nil
}

// kardianos does what kardianos/service v1.3.0 does.
type kardianos struct {
	*machine
	text string
}

func (k kardianos) act(verb string) error {
	k.calls = append(k.calls, "systemctl "+verb)
	return k.fails[verb]
}

func (k kardianos) Install() error {
	if _, err := os.Stat(filepath.Join(k.root, handUnit)); err == nil {
		return errors.New("Init already exists")
	}
	k.write(handUnit, k.text, 0o644)
	if err := k.act("enable"); err != nil {
		return err
	}
	k.enabled = true
	return k.act("daemon-reload")
}

func (k kardianos) Uninstall() error {
	if err := k.act("disable"); err != nil {
		return err
	}
	k.enabled = false
	if err := os.Remove(filepath.Join(k.root, handUnit)); err != nil {
		return err
	}
	return k.act("daemon-reload")
}

func (k kardianos) Start() error {
	if err := k.act("start"); err != nil || k.state == "active" { // which does not start anew what runs
		return err
	}
	return k.started()
}

func (k kardianos) started() error {
	k.state = "active"
	k.starts++
	// What runs keeps its file, even when another one gets the name.
	k.runs = installed(k.root).Program
	exe := filepath.Join(k.root, "/proc/4711/exe")
	_ = os.Remove(exe)
	return os.Link(filepath.Join(k.root, k.runs), exe)
}

func (k kardianos) Stop() error {
	err := k.act("stop")
	if err == nil {
		k.state = "inactive"
	}
	return err
}

func (k kardianos) Restart() error {
	if err := k.act("restart"); err != nil {
		return err
	}
	return k.started()
}

// tree is every file below the root, with mode and content.
func (m *machine) tree() string {
	var b strings.Builder
	err := filepath.WalkDir(m.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v %v", strings.TrimPrefix(path, m.root), i.Mode(), i.ModTime())
		if i.Mode().IsRegular() {
			text, _ := os.ReadFile(path)
			b.Write(text)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return b.String()
}

func (m *machine) mode(path string) fs.FileMode {
	i, err := os.Stat(filepath.Join(m.root, path))
	if err != nil {
		m.t.Fatal(err)
	}
	return i.Mode().Perm()
}

func (m *machine) install(executable string) string {
	m.t.Helper()
	s, out := m.service(executable)
	if err := s.Install(m.t.Context()); err != nil {
		m.t.Fatalf("%v\n%s", err, out)
	}
	return out.String()
}

const byHand = "/usr/local/bin/gateway"

func TestInstall(t *testing.T) {
	m := newMachine(t)
	said := m.install(byHand)
	want, _ := Unit(byHand)
	if m.read(handUnit) != want || m.read(configFile) != "# the first\n" || m.read(modulesTo) != modules || m.read(rulesTo) != rules {
		t.Errorf("the files are not what they must be:\n%s", m.tree())
	}
	for path, mode := range map[string]fs.FileMode{configDir: 0o750, secretsDir: 0o700, configFile: 0o640, handUnit: 0o644, rulesTo: 0o644, modulesTo: 0o644} {
		if got := m.mode(path); got != mode {
			t.Errorf("%s has mode %#o, want %#o", path, got, mode)
		}
	}
	if !m.enabled || m.state != "active" || m.runs != byHand {
		t.Errorf("enabled %v, %s, runs %q", m.enabled, m.state, m.runs)
	}
	if strings.Contains(said, "group i2c") || !strings.Contains(said, "made the group gpio, the group spi, the user gateway\n") || !strings.Contains(said, "started it (3 sensors)\n") {
		t.Errorf("it said %s", said)
	}
	if i, u := slices.Index(m.calls, "modprobe i2c-dev"), slices.Index(m.calls, "systemctl start"); i < 0 || u < i {
		t.Errorf("the unit's device names are looked up when it starts: %q", m.calls)
	}
	if got := installed(m.root); got != (Installation{Hand, handUnit, byHand}) {
		t.Errorf("%+v", got)
	}

	before := m.tree()
	m.calls = nil
	if said := m.install(byHand); said != "already installed, and it runs\n" || len(m.calls) > 0 {
		t.Errorf("the second time it said %q and did %q", said, m.calls)
	}
	if after := m.tree(); after != before {
		t.Errorf("the second time changed\n%s\nto\n%s", before, after)
	}

	m.write(configFile, "mine", 0o640)
	m.write(byHand, "a new version", 0o755)
	if said := m.install(byHand); said != "restarted it: what ran was started before this (3 sensors)\n" || m.starts != 2 {
		t.Errorf("a new program at the same place: %q, %d starts", said, m.starts)
	}
	m.write("/opt/gw/gateway", "elsewhere", 0o755)
	if said := m.install("/opt/gw/gateway"); !strings.Contains(said, "wrote "+handUnit+" anew") || m.runs != "/opt/gw/gateway" || !slices.Contains(m.calls, "systemctl daemon-reload") {
		t.Errorf("from elsewhere: %q, runs %s, %q", said, m.runs, m.calls)
	}
	starts := m.starts
	m.write(handUnit, m.read(handUnit)+"# of an older version\n", 0o644)
	if said := m.install("/opt/gw/gateway"); !strings.HasPrefix(said, "wrote "+handUnit+" anew\nrestarted it") || m.starts != starts+1 {
		t.Errorf("an older unit of the same program: %q, %d starts", said, m.starts-starts)
	}
	if m.read(configFile) != "mine" {
		t.Errorf("the configuration was touched: %q", m.read(configFile))
	}
}

// An install that was cut short at any point is made whole by the next.
func TestInstallCutShort(t *testing.T) {
	for _, at := range []string{"systemd-sysusers -", "enable", "daemon-reload", "start"} {
		m := newMachine(t)
		m.fails[at] = errors.New("cut")
		s, _ := m.service(byHand)
		if err := s.Install(t.Context()); err == nil || !strings.Contains(err.Error(), "cut") {
			t.Errorf("%s: %v", at, err)
		}
		delete(m.fails, at)
		m.install(byHand)
		if want, _ := Unit(byHand); !m.enabled || m.state != "active" || m.read(handUnit) != want {
			t.Errorf("%s: enabled %v, %s", at, m.enabled, m.state)
		}
	}
	m := newMachine(t)
	m.write(handUnit, "", 0o644) // a power cut while it was written
	if m.install(byHand); m.runs != byHand {
		t.Errorf("an empty unit: runs %q", m.runs)
	}
}

// That there is no I2C must not stop the rest.
func TestInstallWithoutBuses(t *testing.T) {
	m := newMachine(t)
	for _, c := range []string{"modprobe i2c-dev", "udevadm control --reload"} {
		m.fails[c] = errors.New(c + ": not here")
	}
	if said := m.install(byHand); m.state != "active" || !strings.Contains(said, "(not done: modprobe i2c-dev: not here)") {
		t.Errorf("%s: %s", m.state, said)
	}
}

func TestInstallSetsModes(t *testing.T) {
	m := newMachine(t)
	m.install(byHand)
	if err := os.Chmod(filepath.Join(m.root, secretsDir), 0o755); err != nil {
		t.Fatal(err)
	}
	if said := m.install(byHand); said != "set /etc/gateway/secrets to 0700 root:root\n" || m.mode(secretsDir) != 0o700 {
		t.Errorf("%q, %#o", said, m.mode(secretsDir))
	}
}

// Beside the package nothing is written that would hide its unit.
func TestInstallBesideThePackage(t *testing.T) {
	m := newMachine(t)
	m.write(packageUnit, unit, 0o644)
	m.write("/usr/bin/gateway", "packaged", 0o755)
	before := m.tree()
	said := m.install(byHand)
	if got := m.read(handUnit); got != "(none)" {
		t.Errorf("it hides the package's unit: %s", got)
	}
	if !m.enabled || m.runs != packaged || !strings.Contains(said, "its program is run, /usr/bin/gateway, not /usr/local/bin/gateway") {
		t.Errorf("enabled %v, runs %q: %s", m.enabled, m.runs, said)
	}
	if err := os.Remove(filepath.Join(m.root, "/proc/4711/exe")); err != nil { // that alone is new: it runs
		t.Fatal(err)
	}
	if cut := func(tree string) string { // but for the time of the folder it was in
		lines := strings.Split(tree, "\n")
		return strings.Join(slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "/proc/4711 ") }), "\n")
	}; cut(m.tree()) != cut(before) {
		t.Errorf("it changed\n%s\nto\n%s", before, m.tree())
	}
	s, _ := m.service(packaged)
	if err := s.Uninstall(t.Context()); err == nil || !strings.Contains(err.Error(), "sudo apt remove gateway") || m.state != "active" {
		t.Errorf("%v, %s", err, m.state)
	}
	if got := installed(m.root); got != (Installation{Package, packageUnit, packaged}) {
		t.Errorf("%+v", got)
	}
}

func TestUninstall(t *testing.T) {
	m := newMachine(t)
	m.install(byHand)
	m.write(secretsDir+"/token", "geheim", 0o600)
	m.write(stateDir+"/log/log-1", "readings", 0o600)
	m.calls = nil
	s, out := m.service(byHand)
	asked := ""
	s.Undelivered = func() string { asked = m.state; return "7 readings" }
	if err := s.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(m.calls) < 2 || m.calls[0] != "systemctl stop" || m.calls[1] != "systemctl disable" || m.state != "inactive" || asked != "inactive" {
		t.Errorf("it must be stopped before anything else: %q, asked for readings while %s", m.calls, asked)
	}
	for _, p := range []string{handUnit, modulesTo, rulesTo} {
		if m.read(p) != "(none)" {
			t.Errorf("%s is still there", p)
		}
	}
	if m.read(configFile) == "(none)" || m.read(secretsDir+"/token") != "geheim" || m.read(stateDir+"/log/log-1") != "readings" {
		t.Errorf("something that must stay is gone:\n%s", m.tree())
	}
	if !strings.Contains(out.String(), "/var/lib/gateway (the log: 7 readings)") || !strings.Contains(out.String(), "sudo rm -r /etc/gateway /var/lib/gateway && sudo userdel gateway") {
		t.Errorf("it said %s", out)
	}
	m.calls = nil
	s, out = m.service(byHand)
	if err := s.Uninstall(t.Context()); err != nil || out.String() != "not installed: there was nothing to do\n" || len(m.calls) > 0 {
		t.Errorf("the second time: %v, %q, %q", err, out, m.calls)
	}
	m.install(byHand)
	m.fails["stop"] = errors.New("it does not")
	if err := s.Uninstall(t.Context()); err == nil || m.read(handUnit) == "(none)" {
		t.Errorf("it could not be stopped, and yet: %v\n%s", err, m.tree())
	}
}

func TestRefusals(t *testing.T) {
	hand, _ := Unit(byHand)
	for _, c := range []struct {
		name, verb, executable, want string
		prepare                      func(*machine, *Service)
	}{
		{"not root", "install", byHand, "install: only root may: sudo gateway install", func(_ *machine, s *Service) { s.owner = 1 + os.Geteuid() }},
		{"not root, elsewhere", "restart", "/opt/my gw/gateway", "restart: only root may: sudo '/opt/my gw/gateway' restart", func(_ *machine, s *Service) { s.owner = 1 + os.Geteuid() }},
		{"no systemd", "install", byHand, "not run by systemd", func(m *machine, _ *Service) { _ = os.Remove(filepath.Join(m.root, "/run/systemd/system")) }},
		{"home", "install", "/home/pi/gateway", "sudo install -m 0755 /home/pi/gateway /usr/local/bin/gateway && sudo gateway install", nil},
		{"tmp", "install", "/tmp/gw/gateway", "the service sees nothing of", nil},
		{"root's home", "install", "/root/gateway", "the service sees nothing of", nil},
		{"not for all", "install", "/opt/gateway", "the mode of /opt/gateway is 0700", func(m *machine, _ *Service) { m.write("/opt/gateway", "", 0o700) }},
		{"folder not for all", "install", "/opt/gw/gateway", "the mode of /opt/gw is 0750", func(m *machine, _ *Service) {
			m.write("/opt/gw/gateway", "", 0o755)
			_ = os.Chmod(filepath.Join(m.root, "/opt/gw"), 0o750)
		}},
		{"a path that no unit can name", "install", "/opt/$x/gateway", `with '$' in its path`, func(m *machine, _ *Service) { m.write("/opt/$x/gateway", "", 0o755) }},
		{"foreign unit", "install", byHand, "is not the gateway's: move it away", func(m *machine, _ *Service) { m.write(handUnit, "[Service]\nExecStart=/bin/x\n", 0o644) }},
		{"foreign unit stays", "uninstall", byHand, "is not the gateway's: it is left alone", func(m *machine, _ *Service) { m.write(handUnit, "[Service]\nExecStart=/bin/x\n", 0o644) }},
		{"masked", "install", byHand, "sudo systemctl unmask gateway.service", func(m *machine, _ *Service) { _ = os.Symlink("/dev/null", filepath.Join(m.root, handUnit)) }},
		{"by hand, then the package", "install", byHand, "hides the package's unit: sudo gateway uninstall && sudo gateway install", func(m *machine, _ *Service) {
			m.write(handUnit, hand, 0o644)
			m.write(packageUnit, unit, 0o644)
		}},
		{"start", "start", byHand, "start: the service is not installed: sudo gateway install", nil},
		{"stop", "stop", byHand, "stop: the service is not installed: sudo gateway install", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t)
			s, _ := m.service(c.executable)
			if c.prepare != nil {
				c.prepare(m, s)
			}
			before := m.tree()
			err := map[string]func(context.Context) error{
				"install": s.Install, "uninstall": s.Uninstall, "start": s.Start, "stop": s.Stop, "restart": s.Restart,
			}[c.verb](t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want %s", err, c.want)
			}
			if len(m.calls) > 0 || m.tree() != before {
				t.Errorf("refused, and yet it did %q\n%s", m.calls, m.tree())
			}
		})
	}
}

func TestStartStopRestart(t *testing.T) {
	m := newMachine(t)
	m.install(byHand)
	said := func(do func(*Service) error) string {
		s, out := m.service(byHand)
		if err := do(s); err != nil {
			return err.Error()
		}
		return out.String()
	}
	start := func(s *Service) error { return s.Start(t.Context()) }
	stop := func(s *Service) error { return s.Stop(t.Context()) }
	restart := func(s *Service) error { return s.Restart(t.Context()) }
	for _, c := range []struct {
		do   func(*Service) error
		want string
	}{{start, "it runs already\n"}, {stop, "stopped it\n"}, {stop, "it does not run\n"}, {start, "started it (3 sensors)\n"}, {restart, "restarted it (3 sensors)\n"}} {
		if got := said(c.do); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	m.state, m.fails["start"] = "failed", errors.New("exit status 1")
	m.facts = "Result=exit-code\nExecMainStatus=78\n"
	m.journal = "gateway runs\ngateway.yaml:3:1: x: unknown key\n   3 | x: 1\n     | ^\n"
	want := "the service does not run: its configuration is refused, and no earlier one worked, see: sudo gateway check /etc/gateway/gateway.yaml: gateway.yaml:3:1: x: unknown key; more: sudo journalctl -u gateway -n 50 (systemctl: exit status 1)"
	if got := said(start); got != want {
		t.Errorf("%q", got)
	}
	m.state, m.journal = "activating", ""
	m.facts = "Result=signal\nExecMainStatus=9\nSubState=auto-restart\n"
	want = "the service does not run: signal, status 9; it is tried again every 2 s; more: sudo journalctl -u gateway -n 50 (systemctl: exit status 1)"
	if got := said(start); got != want {
		t.Errorf("%q", got)
	}
}

func TestRun(t *testing.T) {
	out, err := run(t.Context(), "in", "sh", "-c", "cat; echo because >&2; exit 3")
	if out != "in" || err == nil || !strings.HasSuffix(err.Error(), ": because") {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := run(t.Context(), "", "there-is-no-such-program"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("%v", err)
	}
}
