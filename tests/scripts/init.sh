#!/bin/busybox sh
# The guest's first process: mounts what programs expect, then gives the console a shell. Leaving it powers off.
/bin/busybox mkdir -p /bin /sbin /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/guests HOME=/tmp TERM=dumb PS1='bulkhead# ' PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
hostname bulkhead
ip link set lo up 2>/dev/null
dmesg -n 1
for module in $(cat /modules/order 2>/dev/null); do insmod "/modules/$module"; done
cd /tmp
echo "init reached after $(cut -d' ' -f1 /proc/uptime) s: $(uname -srm)"
setsid cttyhack sh
poweroff -f
