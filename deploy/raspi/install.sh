#!/bin/sh
# Puts the gateway on a Raspberry Pi, or another Debian machine, that already runs:
#
#   sudo sh install.sh [--dry-run] [--no-i2c] [gateway_VERSION_ARCHITECTURE.deb]
#
# Without a file it takes the one beside it that fits the machine. It shows each
# command before it runs it, refuses what it does not know, asks nothing, and may be
# run again. --dry-run only shows the commands; --no-i2c leaves I2C as it is.
# Exit status: 0 installed, 1 refused or failed, 2 a mistake on the command line.
set -eu

refuse() {
	echo "install.sh: $1" >&2
	exit "${2:-1}"
}

run() {
	echo "+ $*"
	if [ -z "$dry" ]; then "$@"; fi
}

dry='' i2c=yes deb=''
for arg; do
	case $arg in
	--dry-run) dry=yes ;;
	--no-i2c) i2c='' ;;
	-h | --help)
		sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
		exit 0
		;;
	-*) refuse "$arg: this option is not known (\`sh install.sh --help\` shows all)" 2 ;;
	*)
		[ -z "$deb" ] || refuse "$arg: one package is enough, and $deb is named already" 2
		deb=$arg
		;;
	esac
done

# What machine is this?
# shellcheck source=/dev/null # not here when this file is checked
os=$(. /etc/os-release 2>/dev/null && echo "${ID:-} ${VERSION_ID:-}") || os=''
case $os in
'debian 12' | 'debian 13' | 'raspbian 12' | 'raspbian 13') ;;
*) refuse "this system says it is '$os': want Debian or Raspberry Pi OS, 12 or 13" ;;
esac
arch=$(dpkg --print-architecture) || refuse 'dpkg does not tell the architecture of this system'
case $arch in
arm64 | armhf | amd64) ;;
*) refuse "there is no package for $arch: only for arm64, armhf and amd64" ;;
esac
[ -d /run/systemd/system ] || refuse 'systemd does not run here (a container?): the gateway would not be started'
[ -n "$dry" ] || [ "$(id -u)" = 0 ] || refuse "root is needed: sudo sh install.sh (or look first: sh install.sh --dry-run)"

# Which package?
if [ -z "$deb" ]; then
	dir=$(dirname "$0")
	for f in "$dir"/gateway_*_"$arch".deb; do
		[ -e "$f" ] || refuse "there is no gateway_..._$arch.deb in $dir: copy it there, or name it"
		[ -z "$deb" ] || refuse "there are several packages in $dir: name one, such as sudo sh install.sh $f"
		deb=$f
	done
fi
[ -f "$deb" ] || refuse "$deb: there is no such file"
deb=$(cd "$(dirname "$deb")" && pwd)/$(basename "$deb") # apt-get takes a path for a file only with a / in it
what=$(dpkg-deb -f "$deb" Package) || refuse "$deb is no Debian package, or not all of it is here"
for_arch=$(dpkg-deb -f "$deb" Architecture)
[ "$what" = gateway ] || refuse "$deb is the package $what, not gateway"
[ "$for_arch" = "$arch" ] || refuse "$deb is for $for_arch, and this system is $arch: take gateway_..._$arch.deb"
sums=$(dirname "$deb")/SHA256SUMS
if [ -f "$sums" ]; then
	want=$(awk -v name="$(basename "$deb")" '$2 == name || $2 == "*" name { print $1 }' "$sums")
	[ -n "$want" ] || refuse "$sums does not list $(basename "$deb"): are both from one release?"
	[ "$(sha256sum <"$deb" | cut -d ' ' -f 1)" = "$want" ] || refuse "$deb has another sum than $sums says: copy or download it again"
	echo "$(basename "$deb"): its sum is as SHA256SUMS says"
else
	echo "There is no SHA256SUMS beside the package: it is taken as it is."
fi

if [ -n "$i2c" ]; then
	if command -v raspi-config >/dev/null; then
		run raspi-config nonint do_i2c 0
	else
		echo 'I2C: there is no raspi-config here. On a Pi, add the line dtparam=i2c_arm=on to /boot/firmware/config.txt, and reboot.'
	fi
fi
# The configuration that is there is kept, and nothing is asked.
run env DEBIAN_FRONTEND=noninteractive apt-get install -y -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold "$deb" ||
	refuse 'apt-get did not install it: see above. After the cause is mended, run this again.'
status=0
run gateway doctor || status=$?
[ -n "$dry" ] && exit 0
echo
echo "The gateway is installed, and starts with the system."
[ "$status" = 0 ] || echo "Its doctor found something (exit status $status): above stand the commands that mend it."
cat <<'NEXT'
Next:
  sudo nano /etc/gateway/gateway.yaml             the broker, and the sensors (gateway init shows every key)
  sudo gateway check /etc/gateway/gateway.yaml    what is wrong with it
  sudo systemctl reload gateway                   takes it over
  gateway status                                  what it does
NEXT
