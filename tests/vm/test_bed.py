# SPDX-License-Identifier: Apache-2.0
"""The VM bed itself: what every other VM test takes for granted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.payload import builder, image
from tests.vm import modules, registry
from tests.vm.disk import RELEASES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.kernels import Kernel, Kernels
    from tests.vm.machine import Machine

pytestmark = pytest.mark.vm

DRIVER = "535.309.01"


def put_modules(vm: Machine, kernel: Kernel) -> None:
    """The stand-ins of a kernel, in the guest's /tmp."""
    for name, path in modules.build(kernel, DRIVER).items():
        vm.put(path.read_bytes(), f"/tmp/{name}.ko")


def identity(vm: Machine) -> list[str]:
    """The kernel that runs and the OS version that says it is there."""
    return vm.output("uname -r; . /etc/os-release; echo $VERSION_ID").split()


def test_stand_in_loads_and_binds_the_card(vm: Machine, bed_kernels: Kernels) -> None:
    put_modules(vm, bed_kernels.a)
    vm.run("insmod /tmp/nvidia.ko && insmod /tmp/nvidia-uvm.ko && insmod /tmp/nvidia-modeset.ko", check=True)
    assert vm.output("cat /sys/module/nvidia/version /sys/module/nvidia/initstate") == f"{DRIVER}\nlive"
    assert f"Open Kernel Module for x86_64  {DRIVER}" in vm.output("cat /proc/driver/nvidia/version")
    assert "Device Minor: \t 0" in vm.output("cat /proc/driver/nvidia/gpus/*/information")
    assert vm.output("ls /sys/module/nvidia/holders | sort") == "nvidia_modeset\nnvidia_uvm"
    card = "/sys/bus/pci/devices/0000:01:00.0"
    seen = vm.output(f"cat {card}/vendor {card}/class; basename $(readlink {card}/driver)")
    assert seen.split() == ["0x10de", "0x030200", "nvidia"]
    devices = vm.output("sed -n '/^Character/,/^$/p' /proc/devices | grep nvidia")
    names = {line.split()[1] for line in devices.splitlines()}
    assert names == {"nvidia", "nvidiactl", "nvidia-modeset", "nvidia-uvm"}


def test_open_device_holds_the_module(vm: Machine, bed_kernels: Kernels) -> None:
    put_modules(vm, bed_kernels.a)
    vm.run("insmod /tmp/nvidia.ko && mknod /dev/nvidia0 c 195 0 && mknod /dev/nvidia7 c 195 7", check=True)
    vm.run("mknod /dev/nvidiactl c 195 255 && true </dev/nvidia0", check=True)
    vm.start("exec sleep 1000 </dev/nvidiactl")
    vm.wait_for("fuser -s /dev/nvidiactl")
    assert int(vm.output("cat /sys/module/nvidia/refcnt")) >= 1
    assert "is in use" in vm.run("rmmod nvidia").err
    assert vm.run("cat </dev/nvidia7").rc != 0
    vm.run("fuser -k /dev/nvidiactl; until rmmod nvidia; do sleep 0.2; done", check=True)
    assert vm.run("test -e /proc/driver/nvidia || test -e /sys/module/nvidia").rc == 1


def test_module_of_the_other_kernel_is_refused(vm: Machine, bed_kernels: Kernels) -> None:
    put_modules(vm, bed_kernels.b)
    refused = vm.run("insmod /tmp/nvidia.ko")
    assert refused.rc == 1 and "Invalid module format" in refused.err
    assert vm.run("test -e /sys/module/nvidia").rc == 1


def test_module_of_a_neighbour_kernel_would_load(vm: Machine, bed_kernels: Kernels) -> None:
    """Equal symbol CRCs: why nvidiad compares kernel releases itself."""
    if bed_kernels.neighbour is None:
        pytest.skip("the archive has no second 6.1 release with headers")
    put_modules(vm, bed_kernels.neighbour)
    assert bed_kernels.neighbour.release in vm.output("modinfo -F vermagic /tmp/nvidia.ko")
    vm.run("insmod /tmp/nvidia.ko", check=True)


def test_without_a_card_there_is_no_device(vm: Machine, bed_kernels: Kernels) -> None:
    vm.unplug()
    put_modules(vm, bed_kernels.a)
    refused = vm.run("insmod /tmp/nvidia.ko")
    assert refused.rc == 1 and "No such device" in refused.err
    assert "NVRM: No NVIDIA GPU found." in vm.output("dmesg | tail -5")
    assert vm.run("test -e /sys/module/nvidia || test -e /proc/driver/nvidia").rc == 1


def test_card_comes_and_goes_with_events(vm: Machine, bed_kernels: Kernels) -> None:
    vm.unplug()
    vm.start("exec udevadm monitor --udev --property --subsystem-match=pci >/tmp/events")
    vm.wait_for("grep -q UDEV /tmp/events")
    vm.plug()
    vm.wait_for("grep -q '^ACTION=add' /tmp/events && grep -q '^PCI_ID=10DE:' /tmp/events")
    put_modules(vm, bed_kernels.a)
    vm.run("insmod /tmp/nvidia.ko", check=True)
    assert vm.output("ls /proc/driver/nvidia/gpus") == "0000:01:00.0"
    vm.unplug()
    vm.wait_for("grep -q '^ACTION=remove' /tmp/events")
    assert vm.output("ls /proc/driver/nvidia/gpus") == ""
    vm.plug()
    vm.wait_for("test -e /proc/driver/nvidia/gpus/0000:01:00.0")


def test_update_and_reboot_into_the_other_slot(vm: Machine, bed_kernels: Kernels) -> None:
    assert identity(vm) == [bed_kernels.a.release, RELEASES["A"]]
    vm.run("echo kept >/opt/kept", check=True)
    vm.set_next_slot("B")
    vm.reboot()
    assert vm.slot == "B"
    assert identity(vm) == [bed_kernels.b.release, RELEASES["B"]]
    assert vm.output("cat /opt/kept") == "kept"
    assert len(vm.output("journalctl --list-boots --no-pager -q").splitlines()) == 2
    vm.set_next_slot("A")
    vm.start("systemctl poweroff")
    assert vm.wait_end() == "guest-shutdown"
    assert vm.next_slot() == "A"


def test_power_cut_keeps_what_was_synced(vm: Machine) -> None:
    vm.run("echo synced >/opt/synced; sync /opt/synced; echo lost >/opt/lost", check=True)
    vm.power_cut()
    vm.boot(card=False)
    assert vm.output("cat /opt/synced") == "synced"
    assert vm.run("lspci -d 10de:").out == ""


def test_usr_is_read_only_and_has_lib64(vm: Machine) -> None:
    assert "Read-only file system" in vm.run("touch /usr/x").err
    vm.run("mkdir -p /opt/nvidia/lib64 && touch /opt/nvidia/lib64/libcuda.so.1", check=True)
    vm.run("mount -t overlay nvidia -o lowerdir=/opt/nvidia/lib64:/usr/lib64 /usr/lib64", check=True)
    assert "libcuda.so.1" in vm.output("ls /usr/lib64")


def test_every_clone_is_fresh(vm: Machine) -> None:
    assert vm.run("test -e /opt/kept || test -e /opt/nvidia").rc == 1
    before = time.time()
    assert before - 5 < float(vm.output("date +%s")) < time.time() + 5


def test_docker_pushes_pulls_and_runs(vm: Machine) -> None:
    image = "127.0.0.1:5000/bed/hello:1"
    entry = """-c 'ENTRYPOINT ["/bin/ld", "--version"]'"""
    vm.run("mkdir -p /tmp/i/bin && cp /usr/lib64/ld-linux-x86-64.so.2 /tmp/i/bin/ld", check=True)
    vm.run(f"tar -C /tmp/i -c . | docker import {entry} - {image}", check=True)
    vm.run(f"docker push -q {image} && docker rmi {image} && docker pull -q {image}", 180, check=True)
    assert "ld.so" in vm.output(f"docker run --rm --privileged --network host -v /:/rootfs {image}", 180)


def test_registry_is_stocked_without_a_push(vm: Machine, bed_kernels: Kernels, tmp_path: Path) -> None:
    kernel, release = bed_kernels.a, ("flatcar", RELEASES["A"])
    built = modules.build(kernel, DRIVER)
    tree = builder.payload(tmp_path, driver=DRIVER, release=release, kernel=kernel.release, modules=built)
    packed = image.image(tree)
    registry.stock(vm, "nvidia-driver", {"one": packed})
    name = f"{registry.ADDRESS}/nvidia-driver:one"
    vm.run(f"docker pull -q {name}", 180, check=True)
    assert packed.digest in vm.output(f"docker inspect -f '{{{{.RepoDigests}}}}' {name}")
    assert vm.output("systemctl is-enabled docker.socket docker-registry").split() == ["enabled", "enabled"]


def test_files_travel(vm: Machine, bed_kernels: Kernels) -> None:
    data = bytes(range(256)) * 8192
    vm.put(data, "/tmp/data")
    assert vm.get("/tmp/data") == data
    device = vm.attach(bed_kernels.a.image)
    size = bed_kernels.a.image.stat().st_size
    assert vm.output(f"head -c {size // 512 * 512} {device} | wc -c") == str(size // 512 * 512)
    vm.detach()
    assert vm.run("cat", stdin=b"words").out == "words"
