#!/bin/bash
# A Debian that boots in a container: systemd is PID 1, with the journal, D-Bus
# and udev of a real one.
#
#   deploy/raspi/guest.sh root        makes its root file system, build/lifecycle/root.tar (once)
#   deploy/raspi/guest.sh boot DIR    boots the root file system that is unpacked in DIR
#
# boot takes its console and its end from its caller: with a terminal it is a
# machine to try things in (log in as root). The guest has a network of its own,
# with a loopback and nothing else. It ends with `poweroff`, or with this script.
#
# Exit status 77: this machine cannot have the guest; the last line says why.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
say() { echo "guest: $*" >&2; }
cannot() { say "$*"; exit 77; }

[ "$(id -u)" = 0 ] || cannot "root is needed to boot a guest"
work=$here/../../build/lifecycle
mkdir -p "$work"
work=$(realpath "$work")

# What the gateway's Debian has that the smallest one has not: udev and kmod for
# devices, dbus for timedate1, the authorities that its package wants, iproute2 and
# procps to look at it.
packages=systemd,systemd-sysv,dbus,udev,kmod,iproute2,procps,ca-certificates,sudo,curl,openssh-client

root() {
  local missing=() p mirror
  exec 9> "$work/lock"
  flock 9 # two runs at once: one makes it, the other waits
  command -v apt-get > /dev/null || cannot "this is not Debian: no apt-get"
  for p in mmdebstrap systemd-container; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' $p 2> /dev/null)" = installed ] || missing+=("$p")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    if ! { apt-get -qq -o DPkg::Lock::Timeout=600 update &&
      apt-get -qq -y -o DPkg::Lock::Timeout=600 install --no-install-recommends "${missing[@]}"; } > "$work/apt.log" 2>&1; then
      cannot "apt-get install ${missing[*]}: $(grep -m 1 '^[EW]:' "$work/apt.log" || tail -n 1 "$work/apt.log")"
    fi
  fi
  [ ! -e "$work/root.tar" ] || [ "$here/guest.sh" -nt "$work/root.tar" ] || return 0
  mirror=${DEBIAN_MIRROR:-$(sed -nE 's#^[^\#]*(https?://[^ ]+/debian)/?( .*)?$#\1#p' /etc/apt/sources.list \
    /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2> /dev/null | head -n 1 || true)}
  say "making a Debian 12 root file system, which takes a minute"
  # shellcheck disable=SC2016 # $1 is the hook's
  # Masked: what would take the console or the network from us, or run by itself
  # in the middle of a test.
  mmdebstrap --quiet --variant=minbase --include=$packages \
    --customize-hook='systemctl --root "$1" --quiet mask console-getty.service systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer' \
    --customize-hook='rm -f "$1/etc/machine-id" && : > "$1/etc/machine-id"' \
    bookworm "$work/root.new.tar" ${mirror:+"$mirror"} > "$work/root.log" 2>&1 ||
    cannot "mmdebstrap: $(grep -m 1 '^E:' "$work/root.log" || tail -n 1 "$work/root.log")"
  mv "$work/root.new.tar" "$work/root.tar"
}

# boot needs a version 2 cgroup tree that is ours to write. Where the host has
# the old one or a mixture, or a tree without systemd's delegation, the guest gets
# a mount of version 2 of its own, in a mount namespace of its own.
boot() {
  local dir=$1
  if [ "${GUEST_CONSOLE:-}" = interactive ]; then # somebody wants to log in
    rm -f "$dir/etc/systemd/system/console-getty.service"
    sed -i 's/^root:[^:]*/root:/' "$dir/etc/shadow"
  fi
  unshare -m true 2> /dev/null || cannot "no mount namespace can be made here"
  [ "${GUEST_NAMESPACE:-}" ] || GUEST_NAMESPACE=1 exec unshare -m --propagation private "$here/guest.sh" boot "$dir"
  umount -R /sys/fs/cgroup 2> /dev/null || true
  mount -t cgroup2 none /sys/fs/cgroup || cannot "no cgroup version 2 can be mounted here"
  mount -t tmpfs none /run/systemd || cannot "nothing can be mounted here" # nspawn leaves folders there
  # $$ keeps two guests apart.
  mkdir "/sys/fs/cgroup/guest-$$" || cannot "no cgroup can be made here"
  local guest status=133
  # Who gave us our standard error may be gone already: bash tells there of the kill.
  trap 'trap "" PIPE; kill -KILL "$guest"' TERM INT
  while [ "$status" = 133 ]; do # it has rebooted: nspawn leaves the next start to its caller
    ( echo "$BASHPID" > "/sys/fs/cgroup/guest-$$/cgroup.procs"
      exec systemd-nspawn --quiet --directory="$dir" --machine="guest-$$" --register=no --keep-unit --private-network \
        --notify-ready=yes --link-journal=no --resolv-conf=off --timezone=off --console="${GUEST_CONSOLE:-passive}" --boot \
        systemd.show_status=0 ) &
    guest=$!
    status=0
    wait "$guest" || status=$?
  done
  # Nothing of it outlives it, also where nspawn was killed.
  for _ in {1..200}; do
    echo 1 > "/sys/fs/cgroup/guest-$$/cgroup.kill"
    find "/sys/fs/cgroup/guest-$$" -depth -type d -exec rmdir {} \; 2> /dev/null || true
    [ -d "/sys/fs/cgroup/guest-$$" ] || break
    sleep 0.05
  done
}

case ${1:-} in
  root) root ;;
  boot) boot "$(realpath "${2:?the folder}")" ;;
  *) say "root, or boot DIR"; exit 2 ;;
esac
