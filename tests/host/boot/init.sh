#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# PID 1 of the new namespaces: makes the root from this boot's parts, then becomes systemd.
set -eu
read -r pid _ </proc/self/stat # this machine's /proc still: the number by which the outside knows us
exec 9>>"$BED_DIR/pid"
T=$BED_DIR/root
mount -t overlay overlay -o "lowerdir=$BED_ROOT,upperdir=$BED_DIR/upper,workdir=$BED_DIR/work" "$T"
# /usr is read-only, as on an immutable OS, where nobody wants to install packages; what must be an overlay's upper layer later is not itself on an overlay.
if [ -z "$BED_PACKAGES" ]; then
  mount --bind "$BED_ROOT/usr" "$T/usr"
  mount -o remount,bind,ro "$T/usr"
fi
for d in opt var/lib/docker var/lib/containerd; do
  mkdir -p "$T/$d"
  mount --bind "$BED_DIR/disk/${d##*/}" "$T/$d"
done
[ -z "$BED_VENV" ] || mkdir -p "$T/opt/nvidiad"
[ -z "$BED_VENV" ] || mount -t overlay overlay -o "lowerdir=$BED_VENV,upperdir=$BED_DIR/venv-upper,workdir=$BED_DIR/venv-work" "$T/opt/nvidiad"
mount -t proc -o nosuid,nodev,noexec proc "$T/proc"
mount --bind "$T/proc/sys" "$T/proc/sys"
mount --bind "$T/proc/sys/net" "$T/proc/sys/net"
mount -o remount,bind,ro "$T/proc/sys"
mount -t sysfs -o nosuid,nodev,noexec sysfs "$T/sys" # read-write: udevd does not start otherwise
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$T/sys/fs/cgroup"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$T/run"
mkdir "$T/run/bed"
cat /proc/sys/kernel/random/uuid >"$T/run/bed/boot_id"
mount --bind "$T/run/bed/boot_id" "$T/proc/sys/kernel/random/boot_id"
mount -t tmpfs -o mode=755 dev "$T/dev"
mkdir "$T/dev/pts" "$T/dev/shm"
while read -r name major minor; do
  mknod -m 666 "$T/dev/$name" c "$major" "$minor"
done <<<$'null 1 3\nzero 1 5\nfull 1 7\nrandom 1 8\nurandom 1 9\ntty 5 0\nfuse 10 229'
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$T/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$T/dev/shm"
ln -s pts/ptmx "$T/dev/ptmx"
ln -s /proc/self/fd "$T/dev/fd"
ln -s fd/0 "$T/dev/stdin"
ln -s fd/1 "$T/dev/stdout"
ln -s fd/2 "$T/dev/stderr"
[ ! -e "$T/proc/sysrq-trigger" ] || mount --bind "$T/dev/null" "$T/proc/sysrq-trigger"
"$(dirname "$0")/stand-ins.sh" "$T"
hostname nvhost
chroot "$T" ip address add 10.99.0.1/32 dev lo # where the registries with TLS listen: not 127/8, which Docker trusts blindly
cd "$T"
mkdir -p oldroot
pivot_root . oldroot
umount -l /oldroot
rmdir /oldroot
mount --make-rshared /
echo "$pid" >&9
exec 9>&-
exec env -i container=nvhost SYSTEMD_DEVICE_VERIFY_SYSFS=0 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --system --log-target=journal-or-kmsg
