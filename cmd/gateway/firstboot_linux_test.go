package main

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// machine makes the copy of this machine in which a first boot is tried: a mount
// namespace of its own, where everything a first boot writes to lies in memory, and
// commands that are a Pi's or would end the machine are stubs that tell of
// themselves. dpkg, apt-get, useradd and cloud-init are the real ones.
const machine = `set -eu
work=$1
mount -t tmpfs -o mode=0755 none /mnt
cp -a /etc /mnt/etc
cp -a /var/lib/dpkg /mnt/dpkg
mount --bind /mnt/etc /etc
mount --bind /mnt/dpkg /var/lib/dpkg
for d in /boot /home /root /run /var/log /var/lib/apt /var/cache/apt /usr/local/sbin /var/lib/cloud; do
	[ ! -d "$d" ] || mount -t tmpfs -o mode=0755 none "$d"
done
mkdir -p /boot/firmware /run/lock /var/lib/apt/lists/partial /var/cache/apt/archives/partial /etc/ssh/sshd_config.d
cp "$work"/boot/* /boot/firmware/
PATH=$work/stubs:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
export calls=/run/calls
: >"$calls"
`

// whole tells what the first boot has come to.
const whole = `
echo "== calls"; cat "$calls"
echo "== modes"; stat -c '%n %a %U:%G' /etc/gateway /etc/gateway/* /etc/gateway/secrets/* "/home/$2/.ssh" "/home/$2/.ssh/"* 2>/dev/null || true
echo "== yaml"; cat /etc/gateway/gateway.yaml
echo "== token"; cat /etc/gateway/secrets/token 2>/dev/null || true
echo "== package"; dpkg-query -W -f '${db:Status-Status} ${Version}\n' gateway || true
echo "== keys"; cat "/home/$2/.ssh/authorized_keys" 2>/dev/null || true
echo "== boot"; ls /boot/firmware; cat /boot/firmware/cmdline.txt
echo "== log"; cat /boot/firmware/gateway-first-boot.log
`

// asOnPi is cloud-init's configuration on Raspberry Pi OS, as far as it is used here:
// none of the modules that touch disks.
const asOnPi = `sed -i /:x:1000:/d /etc/passwd /etc/group
cat >/etc/cloud/cloud.cfg <<'CFG'
datasource_list: [NoCloud, None]
datasource: {NoCloud: {seedfrom: /boot/firmware/}}
network: {config: disabled}
users: [default]
cloud_init_modules: [bootcmd, write-files, set_hostname, update_hostname, update_etc_hosts, users-groups]
cloud_config_modules: [set-passwords, timezone, runcmd]
cloud_final_modules: [package-update-upgrade-install, write-files-deferred, scripts-user, final-message, power-state-change]
system_info: {distro: debian, default_user: {name: pi, lock_passwd: true}, paths: {cloud_dir: /var/lib/cloud/, templates_dir: /etc/cloud/templates/}, ssh_svcname: ssh}
CFG
find /etc/cloud/cloud.cfg.d -type f -not -name 05_logging.cfg -delete
cloud-init init --local >/run/out 2>&1
cloud-init init >>/run/out 2>&1
cloud-init modules --mode=config >>/run/out 2>&1
cloud-init modules --mode=final >>/run/out 2>&1
for i in 1 2 3 4 5 6 7 8 9 10; do grep -q '^shutdown' "$calls" && break; sleep 0.3; done
echo "== host"; cat /etc/hostname; cat /etc/timezone; cat /etc/hosts; id pi || true; cat /etc/sudoers.d/* || true
echo "== cloud-init"; cat /run/out; grep -E 'WARNING|ERROR|Traceback' /var/log/cloud-init.log || true
`

// firstBoot runs a script in the copy, and returns the parts of what was told.
func firstBootOf(t *testing.T, user string, boot map[string]string, script string) map[string]string {
	t.Helper()
	for _, tool := range []string{"unshare", "apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("a copy of the machine needs root")
	}
	if testing.Short() {
		t.Skip("seconds long")
	}
	if out, err := exec.Command("unshare", "--mount", "--uts", "mount", "-t", "tmpfs", "none", "/mnt").CombinedOutput(); err != nil {
		t.Skipf("no mount namespace can be had here: %s", out)
	}
	work := t.TempDir()
	write := func(name, content string, mode os.FileMode) {
		t.Helper()
		file := filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"raspi-config", "systemctl", "shutdown", "userconf", "cancel-rename", "sync"} {
		write("stubs/"+name, fmt.Sprintf("#!/bin/sh\necho %s \"$@\" >>\"$calls\"\n", name), 0o755)
	}
	for name, content := range boot {
		write("boot/"+name, content, 0o755)
	}
	write("boot/cmdline.txt", "console=tty1 root=PARTUUID=1 rootwait "+firstRunHook+" quiet\n", 0o755)
	arch, err := exec.Command("dpkg", "--print-architecture").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"0.9.0", "0.10.0"} {
		deb := standIn(t, version, strings.TrimSpace(string(arch)))
		content, err := os.ReadFile(deb)
		if err != nil {
			t.Fatal(err)
		}
		write("boot/"+filepath.Base(deb), string(content), 0o755)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--uts", "sh", "-c", machine+script+whole, "sh", work, user)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	told := map[string]string{}
	for part := range strings.SplitSeq("\n"+string(out), "\n== ") {
		name, rest, _ := strings.Cut(part, "\n")
		told[name] = rest + "\n"
	}
	return told
}

// standIn builds what matters here of the package: the group, the folder of secrets,
// and a conffile.
func standIn(t *testing.T, version, arch string) (deb string) {
	t.Helper()
	dir := t.TempDir()
	for _, f := range []struct {
		name, content string
		mode          os.FileMode
	}{
		{"DEBIAN/control", fmt.Sprintf("Package: gateway\nVersion: %s\nArchitecture: %s\nMaintainer: test <test@example>\nDescription: a stand-in\n", version, arch), 0o644},
		{"DEBIAN/conffiles", "/etc/gateway/gateway.yaml\n", 0o644},
		{"DEBIAN/postinst", "#!/bin/sh\nset -e\ngetent group gateway >/dev/null || groupadd --system gateway\n", 0o755},
		{"etc/gateway/gateway.yaml", "packaged: yes\n", 0o640},
		{"etc/gateway/secrets/README", "\n", 0o600},
	} {
		file := filepath.Join(dir, "root", f.name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(f.content), f.mode); err != nil {
			t.Fatal(err)
		}
	}
	deb = filepath.Join(dir, fmt.Sprintf("gateway_%s_%s.deb", version, arch))
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-b", filepath.Join(dir, "root"), deb).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return deb
}

func holds(t *testing.T, told map[string]string, part string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(told[part], w) {
			t.Errorf("%s: no %q in:\n%s", part, w, told[part])
		}
	}
}

// endState is what both forms come to.
func endState(t *testing.T, told map[string]string, id string) {
	t.Helper()
	holds(t, told, "calls", "raspi-config nonint do_i2c 0\n", "raspi-config nonint do_onewire 0\n", "systemctl enable ssh\n")
	holds(t, told, "modes", "/etc/gateway 750 root:gateway\n", "/etc/gateway/gateway.yaml 640 root:gateway\n", "/etc/gateway/secrets 700 root:root\n", "/etc/gateway/secrets/token 600 root:root\n",
		"/home/pi/.ssh 700 pi:pi\n", "/home/pi/.ssh/authorized_keys 600 pi:pi\n")
	if got := configOf(t, told["yaml"]); got.Gateway.ID != id || got.Broker.URL != "http://orion.campus.example:1026" {
		t.Errorf("%+v", got)
	}
	if told["token"] != "it's$(a)\n" || strings.Contains(told["log"], "it's$(a)") {
		t.Errorf("the token: %q; the log: %s", told["token"], told["log"])
	}
	holds(t, told, "package", "installed 0.10.0") // the newest, not the last by name
	holds(t, told, "keys", exampleKey)
	if strings.Contains(told["log"], "failed") {
		t.Error(told["log"])
	}
	if t.Failed() {
		t.Logf("%s\n%s", told["log"], told["cloud-init"])
	}
}

func firstBootArgs(t *testing.T, more ...string) []string {
	return append(append(provisionExample(t), "--embed-token-file", text(t, "it's$(a)\n")), more...)
}

func TestFirstBootCloudInit(t *testing.T) {
	if _, err := exec.LookPath("cloud-init"); err != nil {
		t.Skip("cloud-init is not installed")
	}
	out, _ := provisioned(t, firstBootArgs(t))
	told := firstBootOf(t, "pi", map[string]string{"user-data": out, "meta-data": "instance_id: gw-a101\n"}, asOnPi)
	endState(t, told, "gw-a101")
	holds(t, told, "host", "gw-a101\nAfrica/Casablanca\n", "127.0.1.1 gw-a101", "sudo", "i2c", "pi ALL=(ALL) NOPASSWD:ALL")
	holds(t, told, "calls", "systemctl disable --now --no-block userconfig.service\n", "cancel-rename pi\n", "shutdown -r now the gateway is set up\n")
	if strings.Contains(told["cloud-init"], "WARNING") || strings.Contains(told["cloud-init"], "ERROR") || strings.Contains(told["cloud-init"], "Traceback") {
		t.Error(told["cloud-init"])
	}
}

func TestFirstBootBookworm(t *testing.T) {
	out, _ := provisioned(t, firstBootArgs(t, "--bookworm"))
	const run = "sed -i /:x:1000:/d /etc/passwd /etc/group\nuseradd -u 1000 -m pi\n" +
		"sed -i 's,/usr/lib/userconf-pi/,,' /boot/firmware/firstrun.sh\n" // where the stub is
	const once = "/boot/firmware/firstrun.sh || echo '== status'\n"
	t.Run("once", func(t *testing.T) {
		told := firstBootOf(t, "pi", map[string]string{"firstrun.sh": out}, run+once)
		endState(t, told, "gw-a101")
		holds(t, told, "calls", "raspi-config nonint do_hostname gw-a101\n", "raspi-config nonint do_change_timezone Africa/Casablanca\n", "userconf pi !\n")
		holds(t, told, "boot", "console=tty1 root=PARTUUID=1 rootwait quiet\n")
		holds(t, told, "log", "All is done.")
		if strings.Contains(told["boot"], "firstrun.sh\n") {
			t.Error("firstrun.sh, with the token in it, is still on the card")
		}
	})
	t.Run("twice", func(t *testing.T) { // the plug was pulled before it had unhooked itself
		told := firstBootOf(t, "pi", map[string]string{"firstrun.sh": out}, run+"cp /boot/firmware/firstrun.sh /run/again\n"+once+": >/var/lib/dpkg/updates/0000\nsh /run/again\n")
		endState(t, told, "gw-a101")
		if strings.Count(told["keys"], exampleKey) != 1 {
			t.Error(told["keys"])
		}
	})
	t.Run("no package", func(t *testing.T) {
		told := firstBootOf(t, "pi", map[string]string{"firstrun.sh": out}, run+"rm /boot/firmware/*.deb\n"+once)
		holds(t, told, "log", "this failed: there is no gateway_", "After the cause is mended: sudo sh /boot/firmware/firstrun.sh")
		holds(t, told, "boot", "firstrun.sh\n")
		holds(t, told, "token", "it's$(a)\n")
		holds(t, told, "boot", "console=tty1 root=PARTUUID=1 rootwait quiet\n") // the next boot is an ordinary one
		holds(t, told, "keys", exampleKey)
		if _, failed := told["status"]; failed {
			t.Error("the Pi would stay where it is")
		}
	})
}

// The package comes from a server, and only the one whose sum was given.
func TestFirstBootByURL(t *testing.T) {
	arch, err := exec.Command("dpkg", "--print-architecture").Output()
	if err != nil {
		t.Skip("dpkg is not installed")
	}
	deb := standIn(t, "1.2.3", strings.TrimSpace(string(arch)))
	content, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(deb))))
	defer server.Close()
	sum := fmt.Sprintf("%x", sha256.Sum256(content))
	for _, c := range []struct{ name, sum, installed, log, end string }{
		{"right", strings.ToUpper(sum), "installed 1.2.3\n", "+ env", "All is done."},
		{"another", strings.Repeat("0", 64), "", "this failed: the package cannot be had from " + server.URL, "sudo gateway-first-boot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, _ := provisioned(t, append(provisionExample(t), "--deb", server.URL+"/"+filepath.Base(deb), "--sha256", c.sum))
			script := readCloudConfig(t, out)
			told := firstBootOf(t, "pi", map[string]string{"script": script.file(script.Run[0][0])},
				"mkdir -p /etc/gateway; : >/etc/gateway/gateway.yaml; sh /boot/firmware/script || echo '== status'\n")
			if got := strings.TrimLeft(told["package"], "\n"); !strings.HasPrefix(got, c.installed) || c.installed == "" && strings.Contains(got, "installed") && !strings.Contains(got, "not-installed") {
				t.Errorf("package: %q", got)
			}
			holds(t, told, "log", c.log, c.end)
			if _, failed := told["status"]; failed != (c.installed == "") {
				t.Errorf("failed: %v\n%s", failed, told["log"])
			}
		})
	}
}
