# SPDX-License-Identifier: Apache-2.0
"""Power cuts at random instants: whatever was half done, the next boot comes to the same end."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.vm import demo, road, updater
from tests.vm.disk import RELEASES
from tests.vm.machine import Frozen, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.vm.kernels import Kernels

pytestmark = pytest.mark.vm

# Instants of each test, and where those of the two that look ahead come from.
CUTS = range(int(os.environ.get("NVIDIAD_VM_CUTS", "1")))
SEED = os.environ.get("NVIDIAD_VM_SEED", "") or str(random.getrandbits(32))
PARTIALS = "find /opt/nvidia -name '*.partial' 2>/dev/null; true"
TREE = f"/opt/nvidia/{road.DRIVER}/{RELEASES['A']}"
NEXT = f"/opt/nvidia/{road.DRIVER}/{RELEASES['B']}"
# Every directory that has the place of a tree, and every complete tree, verified.
TREES = """
from pathlib import Path
from nvidiad.world.trees import Trees
trees = Trees(Path("/opt"))
# First: what comes into its place meanwhile is complete, and no other place's tree.
for place in Path("/opt/nvidia").glob("[0-9]*/*"):
    if not place.name.endswith(".partial"):
        print("place", place)
for tree in trees.list():
    trees.verify(tree.path, tree.build)
    print("complete", tree.path)
"""
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
    assert codes["tree"] == ("ok" if there else "skipped"), found
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
    for _ in CUTS:
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
    for _ in CUTS:
        vm.boot("A", target=EARLY)
        print(check_nothing_half(vm))
        cut_after(vm, "true", 3 * duration)  # activation is under way by itself
    vm.boot("A")
    check_converged(vm)


def complete_trees(vm: Machine) -> set[str]:
    """The trees on disk, each verified file by file; fails where something else lies in a tree's place."""
    vm.put(TREES.encode(), "/tmp/trees.py")
    found: dict[str, set[str]] = {"complete": set(), "place": set()}
    for line in vm.output("/opt/nvidiad/bin/python3 /tmp/trees.py").splitlines():
        kind, _, path = line.partition(" ")
        found[kind].add(path)
    assert found["place"] <= found["complete"], found
    return found["complete"]


def check_in_force(vm: Machine) -> None:
    """Ready with the driver of the slot that runs, and nothing half done left."""
    road.wait_phase(vm, "ready")
    demo.check(vm, vm.slot)
    assert vm.run(f"{road.NVIDIAD} check").rc == 0
    assert f"/opt/nvidia/{road.DRIVER}/{RELEASES[vm.slot]}" in complete_trees(vm)


@dataclass(frozen=True)
class Staged:
    """A host that is off, with the seconds that its staging took, and that activation may take at boot."""

    host: Frozen
    staging: float
    activation: float


@pytest.fixture(scope="module")
def written(
    driven_host: Frozen, bed_kernels: Kernels, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Frozen]:
    """The release of B is in its slot, its driver in the registry; nobody has said so yet."""
    folder = tmp_path_factory.mktemp("written")
    with Machine(folder / "work", frozen=driven_host) as vm:
        vm.resume()
        updater.install(vm)
        vm.put(b"[stage]\nspread = 0\n", "/etc/nvidiad/conf.d/50-ahead.toml")
        vm.run("systemctl reload nvidiad", check=True)
        # Big enough that pull, copy, hashes and syncs take their time.
        road.publish(vm, [road.payload(folder / "payload", "B", bed_kernels.b, bulk=24 << 20)])
        updater.write_slot(vm, "B")
        updater.write_kernel(vm, "B")
        frozen = vm.freeze(folder / "frozen")
    shutil.rmtree(folder / "payload")
    yield frozen
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def staged(written: Frozen, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staged]:
    """A host that is off, whose next boot is B's first, without network, and how long its parts took."""
    folder = tmp_path_factory.mktemp("staged")
    with Machine(folder / "work", frozen=written) as vm:
        vm.resume()
        updater.finalize(vm)
        began = time.monotonic()
        road.wait_stage(vm, "proven")
        staging = time.monotonic() - began
        activation = vm.active_since("nvidia") - vm.started("nvidia")
        updater.go_offline(vm)
        vm.start(updater.REBOOT)
        assert vm.wait_end() == "guest-reset"
        (folder / "off").mkdir()
        shutil.copy(vm.overlay, folder / "off/disk.qcow2")
    # At a boot everything else starts at the same time.
    yield Staged(Frozen(folder / "off"), staging, 3 * activation)
    shutil.rmtree(folder)


@pytest.mark.parametrize("number", CUTS)
def test_power_cuts_during_staging(written: Frozen, staged: Staged, tmp_path: Path, number: int) -> None:
    instants = random.Random(f"staging {SEED} {number}")  # noqa: S311
    finished, instant = instants.random() < 0.5, instants.uniform(0, staged.staging)
    with Machine(tmp_path / "vm", frozen=written) as vm:
        vm.resume()
        (updater.finalize if finished else updater.offer)(vm)
        time.sleep(instant)
        vm.power_cut()
        vm.boot(target=EARLY)
        found = complete_trees(vm)
        when = f"{instant:.2f} s after the update was {'finished' if finished else 'offered'}"
        print(f"seed {SEED}: cut {when}; slot {vm.slot}, staged: {NEXT in found}")
        assert vm.slot == ("B" if finished else "A")
        assert TREE in found
        check_in_force(vm)
        if NEXT in found and finished:
            # It was complete: the network was not needed.
            assert vm.run("journalctl -b -u nvidiad -o cat | grep -q 'done: pull'").rc != 0
    shutil.rmtree(tmp_path / "vm")


@pytest.mark.parametrize("number", CUTS)
def test_power_cuts_during_the_activation_of_a_staged_tree(
    staged: Staged, tmp_path: Path, number: int
) -> None:
    instant = random.Random(f"activation {SEED} {number}").uniform(0, staged.activation)  # noqa: S311
    with Machine(tmp_path / "vm", frozen=staged.host) as vm:
        vm.boot(target=EARLY)
        assert vm.slot == "B"
        vm.wait_for("[ $(systemctl show -P ActiveState nvidia) != inactive ]")
        time.sleep(instant)
        vm.power_cut()
        print(f"seed {SEED}: cut {instant:.2f} s after activation began")
        vm.boot()
        assert vm.slot == "B"
        assert complete_trees(vm) == {TREE, NEXT}
        check_in_force(vm)
    shutil.rmtree(tmp_path / "vm")
