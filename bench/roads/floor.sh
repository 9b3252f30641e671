#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The least that brings a driver into force: floor.sh EXPOSURE TREE, with EXPOSURE overlay, ldconfig, or cached (ldconfig
# whose cache is still right, as on every boot but a release's first).
set -eu
tree=$2 kernel=$(cat /proc/sys/kernel/osrelease)
case $1 in
  overlay) mount -t overlay nvidia -o "ro,lowerdir=$tree/lib64:/usr/lib64" /usr/lib64 ;;
  ldconfig) echo /opt/nvidia/current/lib64 >/etc/ld.so.conf.d/nvidiad.conf ;;
esac
[ "$1" = cached ] || ldconfig -X
for module in nvidia nvidia-uvm nvidia-modeset; do
  insmod "$tree/lib/modules/$kernel/$module.ko"
done
while read -r major name; do
  [ "$name" != nvidia-uvm ] || uvm=$major
done </proc/devices
mknod -m 666 /dev/nvidiactl c 195 255
mknod -m 666 /dev/nvidia0 c 195 0
mknod -m 666 /dev/nvidia-modeset c 195 254
mknod -m 666 /dev/nvidia-uvm c "$uvm" 0
mknod -m 666 /dev/nvidia-uvm-tools c "$uvm" 1
