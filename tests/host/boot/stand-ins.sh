#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# stand-ins.sh ROOT: this boot's OS version and kernel release, and writable layers where the stand-in for kmod makes what
# real modules would make.  $BED_DIR/os holds "VERSION KERNEL" and $BED_DIR/gpus one "SLOT DEVICE" a line, for the next boot.
set -eu
T=$1
W=$T/run/bed
read -r version kernel <"$BED_DIR/os"
cat >"$W/os-release" <<O
NAME="Flatcar Container Linux by Kinvolk"
ID=flatcar
ID_LIKE=coreos
VERSION=$version
VERSION_ID=$version
BUILD_ID=2026-01-01-0000
PRETTY_NAME="Flatcar Container Linux by Kinvolk $version"
FLATCAR_BOARD="amd64-usr"
O
mount --bind "$W/os-release" "$T/usr/lib/os-release"
mount -o remount,bind,ro "$T/usr/lib/os-release"
echo "$kernel" >"$W/osrelease"
mount --bind "$W/osrelease" "$T/proc/sys/kernel/osrelease"
cp "$BED_STANDINS/uname.so" "$BED_STANDINS/kmod" "$W/"
echo /run/bed/uname.so >"$T/etc/ld.so.preload"
mount --bind "$W/kmod" "$T/usr/bin/kmod"
mount -o remount,bind,ro "$T/usr/bin/kmod"
ln -s kmod "$W/uevent"
printf '%s\n' i2c_core ipmi_msghandler ipmi_devintf drm video >"$T/run/kmod.known"

layer() { # layer DIR NAME: a writable layer over a directory of sysfs, gone with this boot
  mkdir -p "$W/layers/$2/upper" "$W/layers/$2/work"
  mount -t overlay overlay -o "lowerdir=${1//:/\\:},upperdir=$W/layers/$2/upper,workdir=$W/layers/$2/work" "$1"
}
mkdir "$W/layers"
mount -t tmpfs -o mode=755 layers "$W/layers"
layer "$T/sys/module" module
layer "$T/sys/bus/pci" pci
layer "$T/sys/devices/pci0000:00" devices
mkdir -p "$T/sys/module/firmware_class/parameters"
rm -f "$T/sys/module/firmware_class/parameters/path"
echo >"$T/sys/module/firmware_class/parameters/path"
mount -t tmpfs -o mode=555 driver "$T/proc/driver"
cp "$T/proc/devices" "$W/devices"
mount --bind "$W/devices" "$T/proc/devices"
while read -r slot device; do
  "$(dirname "$0")/gpu.sh" "$T" add "$slot" "$device"
done <"$BED_DIR/gpus"
