#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The initrd's init: like Container Linux's, it mounts ROOT writable and, read-only over its /usr, the slot that the
# kernel command line names by its id (mount.usr=PARTUUID=...).
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
load() {
    while read -r module; do
        $b insmod "$module" || echo "insmod $module failed"
    done < "$1"
}
load /modules
for word in $($b cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        mount.usr=*) usr=${word#mount.usr=} ;;
    esac
done
# What these kernels tell of a partition is its label.
case $usr in
    *7130c94a-213a-4e5a-8e26-6cce9662f132) usr=USR-A ;;
    *e03dd35c-7c2d-4a47-b3fe-27f15780a57c) usr=USR-B ;;
esac

# Prints the device of a partition label; the disk's driver may still be probing.
device() {
    label=${1#LABEL=}
    for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        for event in /sys/class/block/*/uevent; do
            if $b grep -qx "PARTNAME=$label" "$event"; then
                folder=${event%/uevent}
                echo "/dev/${folder##*/}"
                return
            fi
        done
        $b usleep 100000
    done
}

$b mount -o rw,noatime "$(device "$root")" /sysroot || exec $b sh
usr=$(device "$usr")
magic=$($b dd if="$usr" bs=8 skip=8200 count=1 2>/dev/null)
[ "$magic" != _BHRfS_M ] || load /modules.btrfs
$b mount -o ro "$usr" /sysroot/usr || exec $b sh
$b umount /proc
$b umount /sys
$b mount --move /dev /sysroot/dev
exec $b switch_root /sysroot /usr/lib/systemd/systemd
