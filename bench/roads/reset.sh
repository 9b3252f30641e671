#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# No driver in force, whoever brought it there: reset.sh later (as a reboot leaves a host) or first (as before the first
# activation).
set -u
for module in nvidia-modeset nvidia-uvm nvidia; do
  [ ! -d "/sys/module/$(echo $module | tr - _)" ] || rmmod $module || exit 1
done
rm -f /dev/nvidia*
for link in /dev/char/*; do
  case $(readlink "$link") in ../nvidia*) rm "$link" ;; esac
done
for top in /usr/lib64 /usr/lib; do
  while grep -q "^nvidia $top overlay " /proc/mounts; do umount -l $top || exit 1; done
done
rm -rf /run/bench/layers
printf '\0' >/sys/module/firmware_class/parameters/path
case $1 in
  later) echo '# Written by nvidiad; see nvidiad(8).
/opt/nvidia/current/lib64' >/etc/ld.so.conf.d/nvidiad.conf ;;
  first) rm -f /etc/ld.so.conf.d/nvidiad.conf ;;
esac
ldconfig -X
