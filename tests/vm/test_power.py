# SPDX-License-Identifier: Apache-2.0
"""Power cuts at random instants: whatever was half done, the next boot comes to the same end."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.vm import road
from tests.vm.disk import RELEASES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.kernels import Kernels
    from tests.vm.machine import Machine

pytestmark = pytest.mark.vm

PARTIALS = "find /opt/nvidia -name '*.partial' 2>/dev/null; true"
TREE = f"/opt/nvidia/{road.DRIVER}/{RELEASES['A']}"
# The earliest that a booting guest's agent answers; activation comes after it.
EARLY = "sysinit.target"


def cut_after(vm: Machine, command: str, seconds: float) -> None:
    """Start a command in the guest, and take its power away at a random instant of the first `seconds`."""
    instant = random.uniform(0.0, seconds)  # noqa: S311
    vm.start(command)
    time.sleep(instant)
    vm.power_cut()
    print(f"cut {instant:.2f} s after {command!r}")


def seconds_of(vm: Machine, command: str) -> float:
    """How long a command takes in the guest on this machine today."""
    began = time.monotonic()
    vm.run(command, road.READY_SECONDS, check=True)
    return time.monotonic() - began


def check_nothing_half(vm: Machine) -> str:
    """A tree is complete and verified, or it is not there; says which, and whether a partial one is."""
    found = json.loads(vm.run(f"{road.NVIDIAD} check --json=short").out)
    codes = {row["check"]: row["code"] for row in found}
    there = vm.run(f"test -e {TREE}").rc == 0
    assert codes.get("tree") == ("ok" if there else None), found
    assert vm.run("test -L /opt/nvidia/current && ! test -e /opt/nvidia/current/manifest.json").rc != 0
    return f"tree {'complete' if there else 'absent'}, partial: {vm.output(PARTIALS) or 'none'}"


def check_converged(vm: Machine) -> None:
    """The end that every road has: driver in force, its tree verified, nothing half done left."""
    document = road.wait_phase(vm, "ready")
    assert document["driver"]["current"] == TREE
    assert document["driver"]["loaded"] == road.DRIVER
    vm.wait_unit("kubelet.service")
    checked = vm.run(f"{road.NVIDIAD} check")
    assert checked.rc == 0, checked.out
    assert vm.output(PARTIALS) == ""
    assert vm.output("cat /sys/module/firmware_class/parameters/path") == f"{TREE}/lib/firmware"
    assert f" => {TREE.rpartition('/')[0]}" not in vm.output("ldconfig -p")
    assert "libcuda.so.1 " in vm.output("ldconfig -p")


def test_power_cuts_during_an_installation_by_hand(
    vm: Machine, bed_kernels: Kernels, tmp_path: Path
) -> None:
    road.configure(vm)
    # Big enough that copying, hashing and syncing take longer than Python's start.
    tree = road.payload(tmp_path, "A", bed_kernels.a, bulk=24 << 20)
    road.upload(vm, tree, "/opt/payload")
    install = f"{road.NVIDIAD} install /opt/payload"
    duration = seconds_of(vm, install)
    vm.run("rm -rf /opt/nvidia", check=True)
    for _ in range(2):
        vm.run("sync", check=True)
        cut_after(vm, install, duration)
        vm.boot("A", target=EARLY)
        print(check_nothing_half(vm))
    vm.run(install, road.READY_SECONDS, check=True)
    vm.run("systemctl enable -q kubelet nvidiad && systemctl start nvidiad", check=True)
    check_converged(vm)


def test_power_cuts_during_activation(vm: Machine, bed_kernels: Kernels, tmp_path: Path) -> None:
    road.configure(vm)
    road.install(vm, road.payload(tmp_path, "A", bed_kernels.a))
    duration = seconds_of(vm, "systemctl start nvidia")
    vm.run("systemctl stop nvidia && rm /opt/nvidia/current", check=True)
    vm.run("systemctl enable -q kubelet nvidiad; sync", check=True)
    cut_after(vm, "systemctl start nvidia", duration)
    for _ in range(2):
        vm.boot("A", target=EARLY)
        print(check_nothing_half(vm))
        cut_after(vm, "true", 3 * duration)  # activation is under way by itself
    vm.boot("A")
    check_converged(vm)
