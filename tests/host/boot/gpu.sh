#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# gpu.sh ROOT add SLOT DEVICE [CLASS] | ROOT remove SLOT: a stand-in NVIDIA GPU in the host's sysfs, as files that every process sees.
set -eu
class=${5:-030200}
bus=$1/sys/bus/pci/devices slot=$3 directory=$1/sys/devices/pci0000:00/$3
case $2 in
  add)
    upper=$(echo "$4" | tr a-f A-F)
    alias=pci:v000010DEd0000${upper}sv000010DEsd00001533bc03sc02i00
    mkdir "$directory"
    printf 'PCI_CLASS=30200\nPCI_ID=10DE:%s\nPCI_SUBSYS_ID=10DE:1533\nPCI_SLOT_NAME=%s\nMODALIAS=%s\n' "$upper" "$slot" "$alias" \
      >"$directory/uevent"
    while read -r name value; do echo "$value" >"$directory/$name"; done <<F
vendor 0x10de
device 0x$4
class 0x$class
subsystem_vendor 0x10de
subsystem_device 0x1533
revision 0xa1
modalias $alias
enable 1
numa_node 0
F
    ln -s ../../../bus/pci "$directory/subsystem"
    ln -s "../../../devices/pci0000:00/$slot" "$bus/$slot"
    ;;
  remove)
    rm -f "$bus/$slot"
    rm -rf "$directory" "$1/proc/driver/nvidia/gpus/$slot" "$1/sys/bus/pci/drivers/nvidia/$slot"
    ;;
esac
