//go:build linux

// Package raspi holds what makes a Raspberry Pi a gateway; its Go files are tests.
package raspi

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// pi is a machine as install.sh finds it. Everything but the fields' own words is the
// real one's: sh, sed, awk, sha256sum.
type pi struct {
	release string            // of /etc/os-release
	arch    string            // that dpkg tells
	uid     string            // who runs it
	systemd bool              // it runs
	absent  []string          // commands of the stubs that are not there
	status  map[string]int    // how stubs end
	files   map[string]string // beside install.sh
}

const (
	trixie   = "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nID=debian\nVERSION_ID=\"13\"\n"
	bookworm = "ID=debian\nVERSION_ID=\"12\"\n"
	raspbian = "PRETTY_NAME=\"Raspbian GNU/Linux 12 (bookworm)\"\nID=raspbian\nID_LIKE=debian\nVERSION_ID=\"12\"\n"
	arm64    = "gateway_1.2.3_arm64.deb"
)

func newPi() pi {
	return pi{release: trixie, arch: "arm64", uid: "0", systemd: true, status: map[string]int{}, files: map[string]string{arm64: "Package: gateway\nArchitecture: arm64\n"}}
}

// install runs install.sh there. calls are the stubs' that change something.
func (p pi) install(t *testing.T, args ...string) (status int, output string, calls []string) {
	t.Helper()
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Skip("unshare is not installed")
	}
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	script, err := os.ReadFile("install.sh")
	if err != nil {
		t.Fatal(err)
	}
	write("here/install.sh", string(script), 0o755)
	for name, content := range p.files {
		write("here/"+name, content, 0o644)
	}
	write("os-release", p.release, 0o644)
	write("calls", "", 0o644)
	stubs := map[string]string{
		"dpkg":         fmt.Sprintf(`[ "$*" = --print-architecture ] && echo %q`, p.arch),
		"dpkg-deb":     `[ "$1" = -f ] || exit 9; grep -q "^$3:" "$2" && sed -n "s/^$3: //p" "$2"`,
		"id":           `[ "$*" = -u ] && echo ` + p.uid,
		"raspi-config": "", "apt-get": "", "gateway": "",
	}
	for _, name := range p.absent {
		delete(stubs, name)
	}
	for name, body := range stubs {
		if body == "" {
			body = fmt.Sprintf("echo %s \"$@\" >>%q\necho \"(%s speaks)\"\nexit %d", name, filepath.Join(dir, "calls"), name, p.status[name])
		}
		write("stubs/"+name, "#!/bin/sh\n"+body+"\n", 0o755)
	}
	for _, tool := range []string{"sh", "sed", "awk", "cat", "dirname", "basename", "sha256sum", "cut", "env", "grep"} {
		real, err := exec.LookPath(tool)
		if err != nil {
			t.Skipf("%s is not installed", tool)
		}
		if err := os.Symlink(real, filepath.Join(dir, "stubs", tool)); err != nil {
			t.Fatal(err)
		}
	}
	setUp := `mount --bind "$0/os-release" /etc/os-release && mount -t tmpfs none /run || { echo "no namespace"; exit 99; }
if [ -n "$1" ]; then mkdir -p /run/systemd/system; fi
shift
cd "$0" && PATH=$0/stubs exec sh here/install.sh "$@"`
	systemd := ""
	if p.systemd {
		systemd = "yes"
	}
	cmd := exec.CommandContext(t.Context(), "unshare", append([]string{"--mount", "--map-root-user", "sh", "-c", setUp, dir, systemd}, args...)...)
	out, err := cmd.CombinedOutput()
	if e, failed := errors.AsType[*exec.ExitError](err); failed {
		status = e.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if status == 99 || strings.Contains(string(out), "unshare: ") {
		t.Skipf("no mount namespace can be had here: %s", out)
	}
	log, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	return status, strings.ReplaceAll(string(out), dir, "DIR"), strings.FieldsFunc(strings.ReplaceAll(string(log), dir, "DIR"), func(r rune) bool { return r == '\n' })
}

var allCalls = []string{
	"raspi-config nonint do_i2c 0",
	"apt-get install -y -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold DIR/here/" + arm64,
	"gateway doctor",
}

func TestInstall(t *testing.T) {
	p := newPi()
	p.files["SHA256SUMS"] = fmt.Sprintf("%x  gateway_1.2.3_armhf.deb\n%x  %s\n", sha256.Sum256(nil), sha256.Sum256([]byte(p.files[arm64])), arm64)
	for _, c := range []struct {
		name  string
		args  []string
		with  func(*pi)
		calls []string
		said  []string
	}{
		{"the one beside it", nil, nil, allCalls, []string{"+ raspi-config nonint do_i2c 0\n", "+ gateway doctor\n", "its sum is as SHA256SUMS says", "The gateway is installed", "sudo gateway check"}},
		{"a named one", []string{"here/" + arm64}, nil, allCalls, nil},
		{"no I2C", []string{"--no-i2c"}, nil, allCalls[1:], nil},
		{"no raspi-config", nil, func(p *pi) { p.absent = []string{"raspi-config"} }, allCalls[1:], []string{"dtparam=i2c_arm=on"}},
		{"no sums", nil, func(p *pi) { p.files = map[string]string{arm64: p.files[arm64]} }, allCalls, []string{"taken as it is"}},
		{"Bookworm", nil, func(p *pi) { p.release = bookworm }, allCalls, nil},
		{"Raspbian", nil, func(p *pi) { p.release = raspbian }, allCalls, nil},
		{"the doctor warns", nil, func(p *pi) { p.status = map[string]int{"gateway": 1} }, allCalls, []string{"The gateway is installed", "exit status 1"}},
		{"the doctor fails", nil, func(p *pi) { p.status = map[string]int{"gateway": 2} }, allCalls, []string{"The gateway is installed", "exit status 2"}},
		{"only shown", []string{"--dry-run"}, func(p *pi) { p.uid = "1000" }, nil, []string{"+ raspi-config nonint do_i2c 0\n", "+ env DEBIAN_FRONTEND=noninteractive apt-get install -y", "+ gateway doctor\n"}},
		{"help", []string{"--help"}, func(p *pi) { *p = pi{} }, nil, []string{"sudo sh install.sh [--dry-run]", "Exit status:"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := p
			if c.with != nil {
				c.with(&p)
			}
			status, out, calls := p.install(t, c.args...)
			if status != 0 || strings.Join(calls, "\n") != strings.Join(c.calls, "\n") {
				t.Errorf("status %d, calls %q, want %q\n%s", status, calls, c.calls, out)
			}
			for _, words := range c.said {
				if !strings.Contains(out, words) {
					t.Errorf("no %q in: %s", words, out)
				}
			}
			if c.name == "only shown" && strings.Contains(out, "is installed") {
				t.Errorf("it says that it has: %s", out)
			}
		})
	}
}

func TestInstallRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		args   []string
		with   func(*pi)
		status int
		said   string
	}{
		{"another system", nil, func(p *pi) { p.release = "ID=ubuntu\nVERSION_ID=\"24.04\"\n" }, 1, "'ubuntu 24.04': want Debian"},
		{"an older one", nil, func(p *pi) { p.release = "ID=raspbian\nVERSION_ID=\"11\"\n" }, 1, "'raspbian 11': want"},
		{"testing", nil, func(p *pi) { p.release = "ID=debian\n" }, 1, "'debian ': want"},
		{"no release", nil, func(p *pi) { p.release = "" }, 1, "want Debian"},
		{"another architecture", nil, func(p *pi) { p.arch = "riscv64" }, 1, "no package for riscv64"},
		{"no dpkg", nil, func(p *pi) { p.absent = []string{"dpkg"} }, 1, "dpkg does not tell"},
		{"no systemd", nil, func(p *pi) { p.systemd = false }, 1, "systemd does not run here"},
		{"not root", nil, func(p *pi) { p.uid = "1000" }, 1, "root is needed: sudo sh install.sh"},
		{"unknown option", []string{"--force"}, nil, 2, "--force: this option is not known"},
		{"two files", []string{"here/" + arm64, "x.deb"}, nil, 2, "one package is enough"},
		{"no package", nil, func(p *pi) { p.files = nil }, 1, "there is no gateway_..._arm64.deb in here"},
		{"only another's", nil, func(p *pi) { p.arch = "armhf" }, 1, "there is no gateway_..._armhf.deb in here"},
		{"several", nil, func(p *pi) { p.files["gateway_1.3.0_arm64.deb"] = "x" }, 1, "several packages in here: name one"},
		{"no such file", []string{"gone.deb"}, nil, 1, "gone.deb: there is no such file"},
		{"a folder", []string{"here"}, nil, 1, "here: there is no such file"},
		{"no Debian package", nil, func(p *pi) { p.files[arm64] = "<html>" }, 1, "is no Debian package"},
		{"another package", nil, func(p *pi) { p.files[arm64] = "Package: gateway-tools\nArchitecture: arm64\n" }, 1, "is the package gateway-tools, not gateway"},
		{"of another architecture", []string{"here/" + arm64}, func(p *pi) { p.arch = "armhf" }, 1, "is for arm64, and this system is armhf"},
		{"another sum", nil, func(p *pi) { p.files["SHA256SUMS"] = strings.Repeat("0", 64) + "  " + arm64 + "\n" }, 1, "has another sum"},
		{"not in the sums", nil, func(p *pi) {
			p.files["SHA256SUMS"] = fmt.Sprintf("%x  x%s\n", sha256.Sum256([]byte(p.files[arm64])), arm64)
		}, 1, "does not list " + arm64},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPi()
			if c.with != nil {
				c.with(&p)
			}
			status, out, calls := p.install(t, c.args...)
			if status != c.status || len(calls) != 0 || !strings.Contains(out, "install.sh: ") || !strings.Contains(out, c.said) {
				t.Errorf("status %d (want %d), calls %q, no %q in:\n%s", status, c.status, calls, c.said, out)
			}
		})
	}
	t.Run("apt-get fails", func(t *testing.T) {
		p := newPi()
		p.status["apt-get"] = 100
		status, out, calls := p.install(t)
		if status != 1 || len(calls) != 2 || strings.Contains(out, "is installed") || !strings.Contains(out, "run this again") {
			t.Errorf("status %d, calls %q\n%s", status, calls, out)
		}
	})
}

// The option --dry-run shows the very commands that are run without it.
func TestInstallShowsWhatItRuns(t *testing.T) {
	shown := func(args ...string) (lines []string) {
		_, out, _ := newPi().install(t, args...)
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "+ ") {
				lines = append(lines, line)
			}
		}
		return lines
	}
	if dry, wet := shown("--dry-run"), shown(); len(dry) != 3 || strings.Join(dry, "") != strings.Join(wet, "") {
		t.Errorf("%q are shown, and %q run", dry, wet)
	}
}

func TestShellcheck(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("shellcheck is not installed")
	}
	if out, err := exec.Command("shellcheck", "install.sh").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// With the real apt-get and dpkg, in a copy of what they write to: the second run
// changes nothing, and the configuration that somebody has edited stays.
func TestInstallTwice(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a copy of the machine needs root")
	}
	for _, tool := range []string{"unshare", "apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	if out, err := exec.Command("unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt").CombinedOutput(); err != nil {
		t.Skipf("no mount namespace can be had here: %s", out)
	}
	const script = `set -eu
mount -t tmpfs -o mode=0755 none /mnt
cp -a /etc /mnt/etc
cp -a /var/lib/dpkg /mnt/dpkg
mount --bind /mnt/etc /etc
mount --bind /mnt/dpkg /var/lib/dpkg
for d in /run /var/log /var/lib/apt /var/cache/apt; do mount -t tmpfs -o mode=0755 none "$d"; done
mkdir -p /run/lock /run/systemd/system /run/stubs /run/here /run/deb/DEBIAN /run/deb/etc/gateway /var/lib/apt/lists/partial /var/cache/apt/archives/partial
printf 'ID=debian\nVERSION_ID="13"\n' >/run/os-release
mount --bind /run/os-release /etc/os-release
cp install.sh /run/here
cd /run
printf '#!/bin/sh\n' >stubs/gateway
chmod 0755 stubs/gateway
for version in 1.0.0 1.1.0; do
	printf 'Package: gateway\nVersion: %s\nArchitecture: %s\nMaintainer: test <test@example>\nDescription: a stand-in\n' $version "$(dpkg --print-architecture)" >deb/DEBIAN/control
	echo /etc/gateway/gateway.yaml >deb/DEBIAN/conffiles
	echo "packaged: $version" >deb/etc/gateway/gateway.yaml
	dpkg-deb --root-owner-group -b deb "gateway_${version}_$(dpkg --print-architecture).deb" >/dev/null
done
PATH=/run/stubs:$PATH
told() { echo "$1: $(dpkg-query -W -f '${db:Status-Status} ${Version}' gateway) $(cat /etc/gateway/gateway.yaml)"; }
cp gateway_1.0.0_* here
sh here/install.sh --no-i2c && told first
echo 'edited: yes' >/etc/gateway/gateway.yaml
sh here/install.sh --no-i2c && told second
sh here/install.sh --no-i2c gateway_1.1.0_*.deb && told upgrade
if sh here/install.sh --no-i2c; then echo 'downgraded'; else told refused; fi
`
	out, err := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, line := range []string{
		"first: installed 1.0.0 packaged: 1.0.0",
		"second: installed 1.0.0 edited: yes",
		"upgrade: installed 1.1.0 edited: yes",
		"refused: installed 1.1.0 edited: yes", // a downgrade is asked of apt-get itself
	} {
		if !strings.Contains(string(out), "\n"+line+"\n") {
			t.Errorf("no %q in:\n%s", line, out)
		}
	}
}
