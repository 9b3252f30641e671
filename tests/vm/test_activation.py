# SPDX-License-Identifier: Apache-2.0
"""Activation on a real kernel: what it makes, what it refuses before insmod, how it is undone."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from tests.vm import road
from tests.vm.disk import RELEASES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.kernels import Kernel, Kernels
    from tests.vm.machine import Machine

pytestmark = pytest.mark.vm

TREE = f"/opt/nvidia/{road.DRIVER}/{RELEASES['A']}"
CURRENT = "/opt/nvidia/current"
FIRMWARE_PATH = "/sys/module/firmware_class/parameters/path"
LINKER_CONFIGURATION = "/etc/ld.so.conf.d/nvidiad.conf"
# A program that asks the dynamic linker, and says which file it was given.
WHICH_CUDA = """
import ctypes
ctypes.CDLL("libcuda.so.1")
print(next(line.split()[-1] for line in open("/proc/self/maps") if "libcuda" in line))
"""
LDCONFIG, OVERLAY = '[install]\nexposure = "ldconfig"\n', '[install]\nexposure = "overlay"\n'


def activate(vm: Machine, folder: Path, kernel: Kernel, more: str = "") -> None:
    """The road without the daemon: install by hand, then start the unit."""
    road.configure(vm, more)
    road.install(vm, road.payload(folder, "A", kernel))
    vm.run("systemctl start nvidia", check=True)


def refused(vm: Machine) -> str:
    """What a refused start of nvidia.service wrote into the journal; the kernel was not asked."""
    heard = vm.output("dmesg | wc -l")
    assert vm.run("systemctl start nvidia").rc != 0
    assert vm.output("systemctl is-active nvidia; true") == "failed"
    assert "nvidia" not in vm.output(f"dmesg | tail -n +{int(heard) + 1}").lower()
    assert vm.run("test -e /sys/module/nvidia").rc == 1
    # Refused before anything is exposed.
    assert vm.run(f"test -e {LINKER_CONFIGURATION} || test -e {CURRENT} || ls /dev/nvidia*").rc != 0
    return road.told(vm, "nvidia")


def cached_cuda(vm: Machine) -> list[str]:
    """Where the linker cache says that libcuda.so.1 is."""
    lines = vm.output("ldconfig -p").splitlines()
    return [line.split(" => ")[1] for line in lines if line.split()[0] == "libcuda.so.1"]


def found_cuda(vm: Machine) -> str:
    """The file that a program gets that loads libcuda.so.1."""
    return vm.output(f"/opt/nvidiad/bin/python3 -c {shlex.quote(WHICH_CUDA)}")


def overlays(vm: Machine) -> int:
    """How many overlays of ours are mounted on /usr/lib64."""
    return int(vm.output("grep -c ' /usr/lib64 .* - overlay nvidia ' /proc/self/mountinfo; true"))


def test_ldconfig_exposes_by_the_cache(vm: Machine, bed_kernels: Kernels, tmp_path: Path) -> None:
    activate(vm, tmp_path, bed_kernels.a, LDCONFIG)
    assert cached_cuda(vm) == [f"{CURRENT}/lib64/libcuda.so.1"]
    assert found_cuda(vm) == f"{TREE}/lib64/libcuda.so.{road.DRIVER}"
    assert overlays(vm) == 0
    assert f"{CURRENT}/lib64" in vm.output(f"cat {LINKER_CONFIGURATION}").splitlines()
    assert vm.output(f"readlink -f {CURRENT}") == TREE
    assert vm.output(f"cat {FIRMWARE_PATH}") == f"{TREE}/lib/firmware"


def test_overlay_exposes_in_usr_lib64(vm: Machine, bed_kernels: Kernels, tmp_path: Path) -> None:
    before = vm.output("find /usr/lib64 | sort")
    activate(vm, tmp_path, bed_kernels.a, OVERLAY)
    assert overlays(vm) == 1
    assert all(path in ("/usr/lib64/libcuda.so.1", "/lib64/libcuda.so.1") for path in cached_cuda(vm))
    assert cached_cuda(vm)
    # An overlay's files are mapped under the overlay's own names.
    assert found_cuda(vm).endswith(f"/lib64/libcuda.so.{road.DRIVER}")
    assert set(before.splitlines()) < set(vm.output("find /usr/lib64 | sort").splitlines())
    assert "Read-only file system" in vm.run("touch /usr/lib64/x").err
    assert "Read-only file system" in vm.run("touch /usr/x").err
    # The slot itself has not changed: what is below the overlay is what was there.
    vm.run("mkdir -p /tmp/usr && mount --bind /usr /tmp/usr", check=True)
    assert vm.output("cd /tmp/usr && find lib64 | sort | sed 's|^|/usr/|'") == before
    vm.run("umount /tmp/usr && systemctl start nvidiad", check=True)
    assert road.wait_phase(vm, "ready")["exposure"]["way"] == "overlay"
    vm.run("umount /usr/lib64", check=True)
    vm.wait_for("grep -q ' /usr/lib64 .* - overlay nvidia ' /proc/self/mountinfo", 120)
    road.wait_phase(vm, "ready")
    assert overlays(vm) == 1
    assert found_cuda(vm).endswith(f"/lib64/libcuda.so.{road.DRIVER}")


def test_nodes_have_the_kernels_numbers(driven: Machine) -> None:
    listed = driven.output("sed -n '/^Character/,/^$/p' /proc/devices").splitlines()
    majors = {name: int(major) for major, name in (line.split() for line in listed[1:] if line.split())}
    wanted = {
        "/dev/nvidiactl": (majors["nvidiactl"], 255),
        "/dev/nvidia0": (majors["nvidia"], 0),
        "/dev/nvidia-modeset": (majors["nvidia-modeset"], 254),
        "/dev/nvidia-uvm": (majors["nvidia-uvm"], 0),
        "/dev/nvidia-uvm-tools": (majors["nvidia-uvm"], 1),
    }
    found = driven.output("stat -c '%n %Hr %Lr %a %F' /dev/nvidia*").splitlines()
    nodes = {}
    for line in found:
        name, *numbers, mode, kind = line.split(" ", 4)
        nodes[name] = (int(numbers[0]), int(numbers[1]))
        assert (mode, kind) == ("666", "character special file"), line
    assert nodes == wanted
    for name, (major, minor) in wanted.items():
        assert driven.output(f"readlink -f /dev/char/{major}:{minor}") == name
    # A node that opens is a node with a driver behind it; uvm's stand-in has no open of its own.
    driven.run("true </dev/nvidiactl && true </dev/nvidia0 && true </dev/nvidia-uvm", check=True)


def test_module_of_the_other_kernel_is_refused_before_insmod(
    vm: Machine, bed_kernels: Kernels, tmp_path: Path
) -> None:
    road.configure(vm)
    road.install(vm, road.payload(tmp_path, "A", bed_kernels.a, compiled_for=bed_kernels.b))
    told = refused(vm)
    assert f"has vermagic '{bed_kernels.b.release} " in told
    assert f"this host runs kernel '{bed_kernels.a.release}'" in told
    assert '"vermagic-mismatch"' in road.told(vm, "nvidia", "json")
    checked = vm.run(f"{road.NVIDIAD} check")
    assert checked.rc == 1 and "vermagic-mismatch" in checked.out
    # The right modules under the same name put it in order.
    road.install(vm, road.payload(tmp_path / "right", "A", bed_kernels.a))
    vm.run("systemctl start nvidia", check=True)
    assert vm.output("cat /sys/module/nvidia/version") == road.DRIVER


def test_module_of_a_neighbour_kernel_is_refused_before_insmod(
    vm: Machine, bed_kernels: Kernels, tmp_path: Path
) -> None:
    """insmod would take it (test_bed shows that): nvidiad compares the releases itself."""
    if bed_kernels.neighbour is None:
        pytest.skip("the archive has no second 6.1 release with headers")
    road.configure(vm)
    road.install(vm, road.payload(tmp_path, "A", bed_kernels.a, compiled_for=bed_kernels.neighbour))
    told = refused(vm)
    assert f"has vermagic '{bed_kernels.neighbour.release} " in told
    assert f"this host runs kernel '{bed_kernels.a.release}'" in told


def test_parameters_arrive_and_absent_host_modules_do_no_harm(
    vm: Machine, bed_kernels: Kernels, tmp_path: Path
) -> None:
    # CONFIGURATION ends in another table, so both keys stand in a fragment.
    more = (
        '[driver]\nhost-modules = ["i2c_core", "no_such_module", "dummy"]\n'
        '[driver.parameters]\nnvidia = ["NVreg_ModifyDeviceFiles=0"]\n'
    )
    assert vm.run("test -e /sys/module/dummy").rc == 1
    activate(vm, tmp_path, bed_kernels.a, more)
    assert "ModifyDeviceFiles: 0" in vm.output("cat /proc/driver/nvidia/params")
    # The parameter is for the driver's own node making; nvidiad makes them in any case.
    assert "/dev/nvidia0" in vm.output("ls /dev/nvidia0")
    assert vm.run("test -e /sys/module/dummy").rc == 0
    assert vm.output("systemctl is-active nvidia") == "active"


@pytest.mark.parametrize("exposure", [LDCONFIG, OVERLAY], ids=["ldconfig", "overlay"])
def test_deactivation_undoes_everything(
    vm: Machine, bed_kernels: Kernels, tmp_path: Path, exposure: str
) -> None:
    vm.run("ldconfig -X", check=True)  # the bed's own cache is older than its configuration
    untouched = state_outside(vm)
    activate(vm, tmp_path, bed_kernels.a, exposure)
    in_force = shown(state_outside(vm))
    vm.run("systemctl stop nvidia", check=True)
    assert vm.output("systemctl is-active nvidia; true") == "inactive"
    assert state_outside(vm) == untouched
    # `current` and the tree stay: the next activation needs no network.
    assert vm.output(f"readlink -f {CURRENT}") == TREE
    vm.run("systemctl start nvidia", check=True)
    assert shown(state_outside(vm)) == in_force
    assert vm.output("cat /sys/module/nvidia/version") == road.DRIVER
    assert found_cuda(vm).endswith(f"/lib64/libcuda.so.{road.DRIVER}")
    vm.run("true </dev/nvidia0", check=True)


def state_outside(vm: Machine) -> str:
    """All that activation changes on the host outside the install root."""
    looks = (
        "grep -c ^nvidia /proc/modules",
        "ls -d /dev/nvidia* /sys/module/nvidia* /proc/driver/nvidia",
        "ls -l /dev/char | grep nvidia",
        "grep nvidia /proc/devices /proc/self/mountinfo",
        f"cat -A {FIRMWARE_PATH}",
        "ls /etc/ld.so.conf.d",
        "ldconfig -p",
        "find /usr/lib64",
        "readlink /sys/bus/pci/devices/0000:01:00.0/driver",
    )
    return vm.output("; ".join(f"{look} 2>&1" for look in looks) + "; true")


def shown(state: str) -> list[str]:
    """A state without what is numbered anew each time: mounts, and links' times."""
    return [line for line in state.splitlines() if " overlay nvidia " not in line and " -> ../" not in line]


def test_a_held_device_is_not_torn_down(driven: Machine) -> None:
    driven.run("systemctl stop nvidiad.socket nvidiad", check=True)
    before = state_outside(driven)
    driven.start("exec sleep 4000 </dev/nvidiactl")
    driven.wait_for("fuser -s /dev/nvidiactl && pgrep -f '^sleep 4000'")
    pid = driven.output("pgrep -f '^sleep 4000'")
    # The stand-in persistenced holds it too, and goes by itself: its unit requires this one.
    driven.run("systemctl stop nvidia")
    told = road.told(driven, "nvidia")
    assert f"module 'nvidia' is in use by sleep (pid {pid}, " in told, told
    assert "module-in-use" in road.told(driven, "nvidia", "json")
    assert state_outside(driven) == before
    assert driven.output("grep -c ^nvidia /proc/modules") == "3"
    driven.run(f"kill {pid}; until systemctl start nvidia; do sleep 1; done", check=True)
    driven.run("systemctl stop nvidia", check=True)
    assert driven.run("test -e /sys/module/nvidia").rc == 1


def test_another_driver_waits_for_the_reboot(driven: Machine, bed_kernels: Kernels, tmp_path: Path) -> None:
    other = "550.163.01"
    driven.start("exec sleep 4000 </dev/nvidia0")
    driven.wait_for("fuser -s /dev/nvidia0")
    kept = road.main_pids(driven)
    driven.run(f"sed -i s/{road.DRIVER}/{other}/ /etc/nvidiad/nvidiad.toml", check=True)
    road.install(driven, road.payload(tmp_path, "A", bed_kernels.a, driver=other))
    driven.run("systemctl reload nvidiad", check=True)
    document = road.wait_phase(driven, "pending-reboot")
    assert document["problem"]["code"] == "driver-mismatch"
    assert "sleep" in document["summary"]
    assert other in document["summary"] and road.DRIVER in document["summary"]
    assert [holder["command"] for holder in document["driver"]["holders"]].count("sleep") == 1
    assert document["driver"]["current"] == TREE
    assert {tree["driver"] for tree in document["driver"]["installed"]} == {road.DRIVER, other}
    assert road.text(driven).exit_status == 4
    assert driven.output("cat /sys/module/nvidia/version") == road.DRIVER
    assert road.main_pids(driven) == kept
    driven.reboot()
    document = road.wait_phase(driven, "ready")
    assert document["driver"]["loaded"] == other
    assert document["driver"]["current"] == TREE.replace(road.DRIVER, other)
    assert {tree["driver"] for tree in document["driver"]["installed"]} == {road.DRIVER, other}
    assert found_cuda(driven).endswith(f"/lib64/libcuda.so.{other}")
    driven.wait_unit("kubelet.service")
