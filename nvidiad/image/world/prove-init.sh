#!/nvidiad/busybox sh
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=dash
# The first process of a proof's machine: inserts the modules that /nvidiad/list names, says on the console what came
# of each (nvidiad/image/thought/boot.py reads it), and powers off.
b=/nvidiad/busybox
$b mkdir -p /proc /sys /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b printf '\n@nvidiad kernel %s\n' "$($b uname -r)"
while read -r name; do
    $b dmesg -c >/dev/null
    $b printf '@nvidiad insert %s\n' "$name"
    said=$($b insmod "/nvidiad/modules/$name.ko" 2>&1)
    $b printf '@nvidiad status %s %s\n' "$?" "$said"
    $b dmesg | $b tail -n 100 | while read -r line; do
        $b printf '@nvidiad log %s\n' "$line"
    done
done </nvidiad/list
$b printf '@nvidiad end\n'
$b poweroff -f
# Where the machine cannot be switched off: QEMU ends at a reset, too.
$b reboot -f
