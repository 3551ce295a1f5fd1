#!/bin/bash
# A shell on a virtual ARM board with a real Linux kernel, real I2C and GPIO.
#
#   hil/board.sh sabrelite [FILE...]   i.MX6, 32 bit: I2C, GPIO inputs, network
#   hil/board.sh raspi3b   [FILE...]   Raspberry Pi 3B, 64 bit: the Pi's own I2C
#
# A FILE that is a Debian package of the gateway is installed in a small Debian that
# systemd runs, to which the other FILEs are given in /hil.
#
# Prepares the board (Debian packages, kernel, device tree, initramfs; all kept
# under build/hil/) and boots it with the FILEs in /hil. The board's serial line
# is standard input and output; Ctrl-C or `reboot -f` ends it. QEMU's control
# sockets are build/hil/BOARD/qmp.sock and qtest.sock.
#
# Exit status 77: this machine cannot have the board; the last line says why.
# Root is needed only to install missing packages on the host.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
board=${1:?sabrelite or raspi3b}
shift
files=()
for f; do files+=("$(realpath "$f")"); done
work=$here/../build/hil/$board
mkdir -p "$work"
work=$(realpath "$work")
cd "$work"

say() { echo "hil: $*" >&2; }
cannot() { say "$*"; exit 77; }
why() { grep -m 1 '^[EW]:' "$1" || tail -n 1 "$1"; } # of an apt-get that did not work

case $board in
  sabrelite) arch=armhf console=ttymxc1 kernel=linux-image-armmp modules="i2c-imx i2c-dev gpio-mxc lm75 dps310 fec imx2_wdt" ;;
  raspi3b) arch=arm64 console=ttyS1 kernel=linux-image-arm64 modules="i2c-bcm2835 i2c-dev lm75 dps310 bcm2835_wdt" ;;
  *) say "no board is called $board"; exit 2 ;;
esac

# --- The host's packages ------------------------------------------------------
command -v apt-get dpkg-deb > /dev/null || cannot "this is not Debian: no apt-get"
missing=()
for p in qemu-system-arm device-tree-compiler cpio kmod xz-utils; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' $p 2> /dev/null)" = installed ] || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || cannot "missing ${missing[*]}: install them, or run this as root"
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get -qq -o DPkg::Lock::Timeout=600 update &&
    apt-get -qq -y -o DPkg::Lock::Timeout=600 install --no-install-recommends "${missing[@]}"; } > apt.log 2>&1; then
    cannot "apt-get install ${missing[*]}: $(why apt.log)"
  fi
fi

# --- The board's packages, without touching the host's dpkg and apt -----------
# archive_of DIR ARCH SUITES: an apt root of its own in DIR (signatures are checked as
# usual), with the archive that the host is set up with. APT_CONFIG=DIR/conf uses it.
archive_of() {
  local dir=$1 arch=$2 suites=$3 mirror s
  rm -rf "$dir"
  mkdir -p "$dir"/{lists/partial,cache/archives/partial,etc/preferences.d,etc/none}
  mirror=${DEBIAN_MIRROR:-$(sed -nE 's#^[^\#]*(https?://[^ ]+/debian)/?( .*)?$#\1#p' /etc/apt/sources.list \
    /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2> /dev/null | head -n 1 || true)}
  [ -n "$mirror" ] || cannot "no Debian archive in this host's apt sources: set DEBIAN_MIRROR"
  : > "$dir/status"
  for s in $suites; do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $s main"
  done > "$dir/sources.list"
  cat > "$dir/conf" << CONF
APT::Architecture "$arch"; APT::Architectures { "$arch"; };
APT::Sandbox::User ""; Acquire::Languages "none"; Acquire::Retries "3";
Dir::State "$dir"; Dir::State::lists "$dir/lists"; Dir::State::status "$dir/status";
Dir::Cache "$dir/cache"; Dir::Etc "$dir/etc"; Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "none"; Dir::Etc::parts "none";
CONF
  APT_CONFIG=$dir/conf apt-get -qq --error-on=any update > "$dir/log" 2>&1 || cannot "apt-get update: $(why "$dir/log")"
}

# fetch DIR ARCH SUITES PACKAGE...: downloads and unpacks into DIR/root. A PACKAGE that
# begins with "linux-image-" is the metapackage of the kernel that is meant.
fetch() {
  local dir=$work/$1 arch=$2 suites=$3 p packages=()
  shift 3
  if [ -e "$dir/done" ]; then return; fi
  say "downloading $* for $arch"
  archive_of "$dir" "$arch" "$suites"
  for p; do
    case $p in linux-image-*) p=$(APT_CONFIG=$dir/conf apt-cache depends "$p" | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1) ;; esac
    packages+=("$p")
  done
  (cd "$dir" && APT_CONFIG=$dir/conf apt-get -qq download "${packages[@]}" > log 2>&1) || cannot "apt-get download: $(why "$dir/log")"
  for p in "$dir"/*.deb; do dpkg-deb -x "$p" "$dir/root"; done
  rm -rf "$dir"/*.deb "$dir/lists" "$dir/cache"
  touch "$dir/done"
}
fetch deb $arch "bookworm bookworm-updates" $kernel busybox-static
root=$work/deb/root
version=$(basename "$root"/lib/modules/*)

qemu=(qemu-system-aarch64)
if [ "$board" = raspi3b ] && qemu-system-aarch64 --version | grep -q 'version [78]'; then
  # This QEMU has no I2C controller in its Pi: a newer one, unpacked here.
  fetch qemu "$(dpkg --print-architecture)" bookworm-backports qemu-system-arm qemu-system-common qemu-system-data
  QEMU_MODULE_DIR=$(echo "$work"/qemu/root/usr/lib/*/qemu) # not the modules of the host's own QEMU
  export QEMU_MODULE_DIR
  qemu=("$work/qemu/root/usr/bin/qemu-system-aarch64" -L "$work/qemu/root/usr/share/qemu")
fi

# stale FILE: it must be made (again): it is not there, or this script is newer.
stale() { [ ! -e "$1" ] || [ "$here/board.sh" -nt "$1" ] || [ "$here/guest-init.sh" -nt "$1" ]; }

# --- The kernel ---------------------------------------------------------------
if [ "$board" = raspi3b ]; then
  ln -sf "$root/boot/vmlinuz-$version" kernel # a plain Image already
elif stale kernel; then
  # Unpacked here, because emulated decompression costs seconds, behind a legacy
  # u-boot header: magic, crc, time, size, load, entry, crc, os/arch/type/compression.
  # Load address: RAM base + TEXT_OFFSET, 0x208000 as armmp has CONFIG_ARCH_MESON.
  size=0
  while [ "$size" -lt 8000000 ] && IFS=: read -r at _; do # the magic may occur by chance
    tail -c +$((at + 1)) "$root/boot/vmlinuz-$version" | xz -dc --single-stream > image 2> /dev/null || true
    size=$(stat -c %s image)
  done < <(LC_ALL=C grep -abo -P '\xfd7zXZ\x00' "$root/boot/vmlinuz-$version")
  [ "$size" -ge 8000000 ] || { say "no kernel found in vmlinuz-$version"; exit 1; }
  bytes=$(printf '\\x%02x' $((size >> 24)) $((size >> 16 & 255)) $((size >> 8 & 255)) $((size & 255)))
  {
    printf '%b' '\x27\x05\x19\x56\0\0\0\0\0\0\0\0' "$bytes" '\x10\x20\x80\0\x10\x20\x80\0\0\0\0\0\x5\x2\x2\0'
    head -c 32 /dev/zero
    cat image
  } > kernel.new
  rm image
  mv kernel.new kernel
fi

# --- The device tree ----------------------------------------------------------
if stale board.dtb; then
  trees=$root/usr/lib/linux-image-$version
  if [ "$board" = sabrelite ]; then # one I2C bus, as /dev/i2c-1; GPIO lines named as on a Pi
    cp "$trees/imx6q-sabrelite.dtb" new.dtb
    fdtput -t s new.dtb /soc/bus@2100000/i2c@21a4000 status disabled
    fdtput -t s new.dtb /soc/bus@2100000/i2c@21a8000 status disabled
    fdtput -t s new.dtb /aliases i2c0 /soc/bus@2100000/i2c@21a4000
    fdtput -t s new.dtb /aliases i2c1 /soc/bus@2100000/i2c@21a0000
    fdtput -t s new.dtb /gpio-keys status disabled
    names=()
    for i in {0..27}; do names+=("GPIO$i"); done
    fdtput -t s new.dtb /soc/bus@2000000/gpio@20ac000 gpio-line-names "${names[@]}" '' '' '' ''
  else # what the Pi's firmware adds
    cp "$trees/broadcom/bcm2837-rpi-3-b.dtb" new.dtb
    fdtput -c new.dtb /system
    fdtput -t x new.dtb /system linux,revision a02082
  fi
  mv new.dtb board.dtb
fi

# --- A small Debian with systemd, for a FILE that is a Debian package ----------
# Its packages are unpacked and not configured, since nothing of this architecture
# runs here: systemd makes users and folders itself when it starts.
# debian_with DEB: puts it with the package into own/hil/debian.tar.gz. What else is in
# FILEs for it, the guest puts there.
debian_with() {
  local dir=$work/debian p
  if [ ! -e "$dir/done" ] || [ "$here/board.sh" -nt "$dir/done" ]; then
    say "downloading systemd for $arch"
    archive_of "$dir" "$arch" "bookworm bookworm-updates"
    APT_CONFIG=$dir/conf apt-get -qq -y --no-install-recommends --download-only install systemd systemd-sysv udev kmod busybox-static > "$dir/log" 2>&1 ||
      cannot "apt-get install --download-only: $(why "$dir/log")"
    mkdir -p "$dir/root"/{usr/bin,usr/sbin,usr/lib,dev,proc,sys,run,tmp,root,hil,var/log,etc/systemd/system}
    for p in bin sbin lib; do ln -s "usr/$p" "$dir/root/$p"; done # merged /usr, which the packages take for granted
    for p in "$dir"/cache/archives/*.deb; do
      dpkg-deb --fsys-tarfile "$p" | tar -x --keep-directory-symlink -C "$dir/root" \
        --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' --exclude='./usr/share/perl*' --exclude='./usr/lib/*/perl*' \
        --exclude='./usr/lib/udev/hwdb.d/*' --exclude='./usr/share/i18n/*' --exclude='./usr/share/bash-completion/*' --exclude='./usr/share/zsh/*'
    done
    rm -rf "$dir/cache" "$dir/lists"
    printf 'root:x:0:0:root:/root:/bin/sh\n' > "$dir/root/etc/passwd"
    printf 'root:x:0:\n' > "$dir/root/etc/group"
    ln -sf busybox "$dir/root/usr/bin/sh"
    tr -d - < /proc/sys/kernel/random/uuid > "$dir/root/etc/machine-id"
    echo board > "$dir/root/etc/hostname"
    mkdir -p "$dir/root/etc/systemd/system/multi-user.target.wants"
    ln -s ../shell.service "$dir/root/etc/systemd/system/multi-user.target.wants/"
    ln -sf /usr/lib/systemd/system/multi-user.target "$dir/root/etc/systemd/system/default.target"
    for p in getty.target "serial-getty@$console.service"; do ln -s /dev/null "$dir/root/etc/systemd/system/$p"; done
    touch "$dir/done"
  fi
  rm -rf debian-now
  cp -a "$dir/root" debian-now
  dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C debian-now
  cp "$here/shell.service" debian-now/etc/systemd/system/
  ln -s /usr/lib/systemd/system/gateway.service debian-now/etc/systemd/system/multi-user.target.wants/
  tar -C debian-now --numeric-owner -cf - . | gzip -1 > own/hil/debian.tar.gz
  rm -rf debian-now
}

# --- The initramfs: a part that stays, and one with the FILEs ------------------
archive() { (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc --quiet -R 0:0 | gzip -1); }
if stale base.gz; then
  rm -rf base
  mkdir -p base/{bin,dev,proc,sys,tmp,etc,hil,lib/modules}
  cp "$root/bin/busybox" base/bin/
  ln -s busybox base/bin/sh
  cp "$here/guest-init.sh" base/init
  chmod +x base/init
  PATH=$PATH:/sbin
  depmod -b "$root" "$version"
  for m in $modules; do
    modprobe -d "$root" -S "$version" --show-depends "$m" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
  done | awk '!seen[$0]++' | while read -r f; do
    cp "$f" base/lib/modules/
    basename "$f" >> base/lib/modules/order
  done
  archive base > base.new
  mv base.new base.gz
  rm -rf base
fi
rm -rf own
mkdir -p own/hil
for f in "${files[@]}"; do
  case $f in
    *.deb) debian_with "$f" ;; # a Debian with it, that systemd runs
    *) cp "$f" own/hil/ ;;
  esac
done
archive own | cat base.gz - > initrd.gz # the kernel unpacks both

# --- Boot ---------------------------------------------------------------------
# The first TMP105 and the DPS310 are for the kernel's drivers too; the second
# TMP105 is ours alone. The third is unplugged by switching the mux before it,
# as QEMU refuses device_del on an I2C bus; on the Pi it has a bus of its own.
if [ "$board" = sabrelite ]; then
  machine="-M sabrelite -smp 1 -m 512 -nic user
    -device tmp105,bus=i2c-bus.0,address=0x48,id=kernel
    -device tmp105,bus=i2c-bus.0,address=0x49,id=own
    -device dps310,bus=i2c-bus.0,address=0x77,id=pressure
    -device pca9548,bus=i2c-bus.0,address=0x70,id=mux
    -device tmp105,bus=i2c.0,address=0x4a,id=plug"
else # one thread for the four CPUs: waiting ones would eat the host
  machine="-M raspi3b -accel tcg,thread=single
    -device tmp105,bus=i2c-bus.1,address=0x48,id=kernel
    -device tmp105,bus=i2c-bus.2,address=0x4a,id=other"
fi
rm -f qmp.sock qtest.sock
plain=hil.plain
if [ -t 0 ]; then plain=; fi
# shellcheck disable=SC2086 # machine is words
exec "${qemu[@]}" $machine -no-reboot -display none -monitor none \
  -kernel kernel -dtb board.dtb -initrd initrd.gz \
  -append "console=$console,115200 quiet loglevel=1 panic=-1 hil.now=$(date +%s) $plain" \
  -serial null -serial stdio \
  -qmp unix:qmp.sock,server=on,wait=off \
  -qtest unix:qtest.sock,server=on,wait=off -qtest-log none
