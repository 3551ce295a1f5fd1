package main

import (
	"fmt"
	"strings"
)

// firstRunHook makes systemd run firstrun.sh instead of a boot, and reboot after it.
const firstRunHook = "systemd.run=/boot/firmware/firstrun.sh systemd.run_success_action=reboot systemd.unit=kernel-command-line.target"

// firstBoot are the steps that both files share, as functions of sh. They may be
// taken a second time. Interfaces are switched on here and not by cloud-init's
// `rpi:`, as newer versions of that reboot in the middle of cloud-init: what was
// interrupted is not repeated, and that may be the user or the package.
const firstBoot = `failed=0
run() {
	echo "+ $*"
	"$@" || { echo "this failed: $*"; failed=1; }
}

boot=/boot/firmware
log=$boot/gateway-first-boot.log
touch "$log" || log=/var/log/gateway-first-boot.log

# I2C works at once, 1-Wire from the next boot on.
interfaces() {
	run raspi-config nonint do_i2c 0
	run raspi-config nonint do_onewire 0
}

package() {
@DEB@
	# A first try may have been cut short, and apt's daily run may be at work: it is
	# waited for. Nothing is asked, the configuration that is there is kept, and what is
	# only recommended stays out: there may be no network.
	tries=0
	until env DEBIAN_FRONTEND=noninteractive dpkg --force-confold --configure -a || [ "$tries" = 30 ]; do
		tries=$((tries + 1))
		sleep 10
	done
	run env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
		-o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold "$deb"
	run chown root:gateway /etc/gateway /etc/gateway/gateway.yaml
	run chmod 0750 /etc/gateway
	run chmod 0640 /etc/gateway/gateway.yaml
	run install -d -m 0700 -o root -g root /etc/gateway/secrets
}
`

const debOnCard = `	arch=$(dpkg --print-architecture)
	deb=$(find "$boot" -maxdepth 1 -name "gateway_*_$arch.deb" | sort -V | tail -n 1)
	if [ -z "$deb" ]; then
		echo "this failed: there is no gateway_..._$arch.deb on the boot partition"
		failed=1
		return
	fi`

// apt's own helper follows, retries, and refuses a file with another sum.
const debByURL = `	deb=/var/cache/apt/archives/gateway-first-boot.deb
	if ! /usr/lib/apt/apt-helper -o Acquire::Retries=5 download-file @URL@ "$deb" SHA256:@SUM@; then
		echo "this failed: the package cannot be had from" @URL@
		failed=1
		return
	fi`

func (p provisioning) steps() string {
	deb := debOnCard
	if p.Deb != "" {
		deb = strings.NewReplacer("@URL@", shString(p.Deb), "@SUM@", strings.ToLower(p.SHA256)).Replace(debByURL)
	}
	return strings.Replace(firstBoot, "@DEB@", deb, 1)
}

// userData is cloud-init's, for Raspberry Pi OS 13.
//
// The configuration is written before the package comes, which keeps it
// (--force-confold); cloud-init's `defer` with the owner root:gateway would come too
// early, since runcmd, which installs the package and so makes the group, is later.
func (p provisioning) userData(conf string, keys []string, token string) string {
	var b strings.Builder
	b.WriteString(`#cloud-config
# Made by ` + "`gateway provision`" + ` for Raspberry Pi OS 13 (Trixie): the file user-data on
# the card's boot partition, read at the first boot, and only then.
# What it did: gateway-first-boot.log on the boot partition. Was it cut short?
# sudo gateway-first-boot
`)
	if p.Deb == "" {
		b.WriteString("# The package lies beside it: gateway_..._arm64.deb, or gateway_..._armhf.deb.\n")
	}
	b.WriteString("# The network is not its business: network-config, which Raspberry Pi Imager writes.\n")
	fmt.Fprintf(&b, "hostname: %s\nmanage_etc_hosts: true\ntimezone: %s\n", yamlString(p.ID), yamlString(p.Timezone))
	script := "#!/bin/sh\n# The gateway's first boot; safe to run again.\n" + p.steps() + "\nmain() {\n\tinterfaces\n\tpackage\n"
	wizard := "stop" // it comes again with the next boot, and is the only way to have a user
	if len(keys) > 0 {
		fmt.Fprintf(&b, `ssh_pwauth: false
users:
  - name: %s
    groups: adm, sudo, dialout, i2c, gpio, spi
    shell: /bin/bash
    lock_passwd: true
    sudo: "ALL=(ALL) NOPASSWD:ALL"
    ssh_authorized_keys:
`, yamlString(p.User))
		for _, k := range keys {
			fmt.Fprintf(&b, "      - %s\n", yamlString(k))
		}
		wizard = "disable --now"
		script += "\trun systemctl enable ssh\n" +
			"\t# The console has its login instead of the wizard.\n\tif command -v cancel-rename >/dev/null; then run cancel-rename \"$(id -nu 1000)\"; fi\n"
	}
	script += "\tif [ \"$failed\" = 0 ]; then echo 'All is done.'; else echo 'After the cause is mended: sudo gateway-first-boot'; fi\n}\n\nmain >>\"$log\" 2>&1\ntail -n 4 \"$log\"\nexit \"$failed\"\n"
	fmt.Fprintf(&b, "write_files:\n  - path: /etc/gateway/gateway.yaml\n    permissions: \"0640\"\n    content: |\n%s", indented(conf, "      "))
	if token != "" {
		fmt.Fprintf(&b, `  # The broker's token. Whoever holds this card can read it: remove these lines
  # when the gateway runs, and give the token to no other gateway.
  - path: %s
    permissions: "0600"
    content: %s
`, tokenPath, yamlString(token+"\n"))
	}
	fmt.Fprintf(&b, "  - path: /usr/local/sbin/gateway-first-boot\n    permissions: \"0755\"\n    content: |\n%s", indented(script, "      "))
	// runcmd waits for multi-user.target, that for the wizard, and that for somebody at
	// the console. Not to wait for systemctl here: systemd waits for this command.
	fmt.Fprintf(&b, `bootcmd:   # the wizard that asks for a first user would hold up what follows
  - [cloud-init-per, once, gateway-wizard, sh, -c, systemctl %s --no-block userconfig.service || true]
runcmd:
  - [/usr/local/sbin/gateway-first-boot]
power_state:   # for 1-Wire
  mode: reboot
  message: the gateway is set up
`, wizard)
	return b.String()
}

// firstRun is firstrun.sh, for Raspberry Pi OS 12. It is run before there is a
// network, and must end well: otherwise the Pi would stay where it is.
func (p provisioning) firstRun(conf string, keys []string, token string) string {
	var b strings.Builder
	if token != "" {
		token = "\tinstall -d -m 0700 /etc/gateway/secrets &&\n" +
			"\t\t(umask 0077 && printf '%s\\n' " + shString(token) + " >" + tokenPath + ") # whoever holds this card can read it\n"
	}
	fmt.Fprintf(&b, `#!/bin/sh
# Made by `+"`gateway provision`"+` for Raspberry Pi OS 12 (Bookworm): the file firstrun.sh on
# the card's boot partition. It is run once if the one line of cmdline.txt ends in
#  %s
# and removes itself and that. The package lies beside it: gateway_..._arm64.deb, or
# gateway_..._armhf.deb. What it did: gateway-first-boot.log there.
%s
configuration() {
	install -d -m 0755 /etc/gateway &&
		(umask 0027 && cat >/etc/gateway/gateway.yaml) <<'GATEWAY_YAML' || return 1
%sGATEWAY_YAML
%s}

main() {
	configuration || failed=1
	interfaces
	package
	run raspi-config nonint do_hostname %s
	run raspi-config nonint do_change_timezone %s
`, firstRunHook, p.steps(), conf, token, shString(p.ID), shString(p.Timezone))
	if len(keys) > 0 {
		fmt.Fprintf(&b, `	# The first user (1000) gets this name, and no password; the setup wizard is off.
	run /usr/lib/userconf-pi/userconf %s '!'
	home=$(getent passwd 1000 | cut -d: -f6)
	run install -d -m 0700 -o 1000 -g 1000 "$home/.ssh"
	printf '%%s\n'`, shString(p.User))
		for _, k := range keys {
			b.WriteString(" \\\n\t\t" + shString(k))
		}
		b.WriteString(` >"$home/.ssh/authorized_keys"
	run chown 1000:1000 "$home/.ssh/authorized_keys"
	run chmod 0600 "$home/.ssh/authorized_keys"
	echo 'PasswordAuthentication no' >/etc/ssh/sshd_config.d/gateway.conf
	run systemctl enable ssh
`)
	}
	b.WriteString(`	sed -i 's/ systemd\.run[^ ]*//g; s/ systemd\.unit=kernel-command-line\.target//' "$boot/cmdline.txt"
	if [ "$failed" = 0 ]; then
		rm -f "$boot/firstrun.sh"
		echo 'All is done.'
	else
		echo "After the cause is mended: sudo sh $boot/firstrun.sh"
	fi
	sync
}

main >>"$log" 2>&1
tail -n 4 "$log"
exit 0
`)
	return b.String()
}
