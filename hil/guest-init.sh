#!/bin/sh
# PID 1 of the virtual board: loads the modules, sets the clock and the network,
# and gives a shell on the serial line: one for people, or, with hil.plain, one
# without prompt and echo for a program. What is in the file `start` is done before.
# `reboot -f` switches the board off.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/hil
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
exec < /dev/console > /dev/console 2>&1
echo 1 > /proc/sys/kernel/printk # kernel messages must not mix with the shell's output
date -s "@$(sed 's/.*hil\.now=\([0-9]*\).*/\1/' /proc/cmdline)" > /dev/null
while read -r module; do
  insmod "/lib/modules/$module" || echo "no module $module"
done < /lib/modules/order
hostname board
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then # QEMU's user network: the host is 10.0.2.2
  ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up && ip route add default via 10.0.2.2
fi
cd /hil || exit
if [ -e debian.tar.gz ]; then # systemd goes on from here
  mkdir /debian
  mount -t tmpfs -o mode=755 debian /debian
  gunzip -c debian.tar.gz | tar -x -C /debian
  rm debian.tar.gz
  cp -a /hil /debian/
  /bin/busybox --install -s /debian/usr/local/bin 2> /dev/null
  # shellcheck source=/dev/null
  if [ -e put ]; then . ./put; fi
  umount /proc /sys /tmp
  mount -o move /dev /debian/dev
  exec switch_root /debian /sbin/init
fi
# shellcheck source=/dev/null
if [ -e start ]; then . ./start; fi
if grep -q hil.plain /proc/cmdline; then stty -echo; fi
echo "board is up: $(uname -rm), kernel clock $(cut -d' ' -f1 /proc/uptime) s"
if grep -q hil.plain /proc/cmdline; then
  while read -r line; do eval "$line"; done
else
  setsid cttyhack sh
fi
reboot -f
