#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# How the ancestor brought its driver up: ancestor.sh IMAGE TREE. The image is in the engine already and its tree on disk.
# One overlay, as where /usr/lib64 is /usr/lib; it is writable because depmod writes into it.
set -eu
tree=$2 layers=/run/bench/layers
docker run --rm --privileged --network host -v /:/rootfs "$1"
mkdir -p $layers/upper $layers/work
mount -t overlay nvidia -o "lowerdir=$tree/lib64:$tree/lib:/usr/lib,upperdir=$layers/upper,workdir=$layers/work" /usr/lib
ldconfig
depmod -a
modprobe nvidia
modprobe nvidia-uvm
modprobe nvidia-modeset
"$tree/bin/nvidia-smi"
