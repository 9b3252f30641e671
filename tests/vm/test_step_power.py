# SPDX-License-Identifier: Apache-2.0
"""The power goes in the middle of each step, and all that was not synced: the next boot finishes the job."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import pytest

from nvidiad.nouns.steps import Step, step_name
from tests.beds.common import CHECKOUT
from tests.reliability import faults
from tests.vm import road, updater
from tests.vm.disk import RELEASES
from tests.vm.machine import Machine
from tests.vm.test_power import PARTIALS, complete_trees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.vm.kernels import Kernels
    from tests.vm.machine import Frozen

pytestmark = pytest.mark.vm

KILLER = CHECKOUT / "tests/host/standin/nvidiad_killer.py"
SITE = "/opt/nvidiad/lib/python3.11/site-packages"
OTHER = "550.163.01"
TREE, NEXT = (f"/opt/nvidia/{road.DRIVER}/{RELEASES[slot]}" for slot in "AB")
CONFIG = "/etc/nvidiad/conf.d/60-power.toml"
AHEAD = '[stage]\nspread = 0\n[driver]\nhost-modules = ["i2c_core"]\n'


@dataclass(frozen=True)
class Cut:
    """The process of this verb stands still at its nth step of this name, and the power goes."""

    verb: str
    step: str
    at: str | float
    begin: Callable[[Machine], object]
    """What leads to the step, on a host in force."""
    nth: int = 1
    slot: str = "A"
    """What the next boot takes."""

    def __str__(self) -> str:
        return self.step


def anew(vm: Machine) -> None:
    """Nothing of nvidiad's is there but its image in the registry."""
    gone = "/opt/nvidia/* /var/lib/nvidiad/* /etc/systemd/system/kubelet.service.d/10-nvidia.conf"
    vm.run(f"{DOWN}; rm -rf {gone}; systemctl daemon-reload; docker system prune -af; sync", check=True)
    vm.run("systemctl start --no-block nvidiad", check=True)


DOWN = "systemctl stop kubelet nvidiad nvidia-persistenced nvidia"


def activate(vm: Machine) -> None:
    """The tree is on disk and nothing else."""
    vm.run(f"{DOWN}; rm -f /opt/nvidia/current; sync; systemctl start --no-block nvidiad", check=True)


def deactivate(vm: Machine) -> None:
    vm.run("systemctl stop kubelet nvidiad nvidia-persistenced", check=True)
    vm.run("systemctl stop --no-block nvidia", check=True)


def overlay(vm: Machine) -> None:
    vm.run(DOWN, check=True)
    configure(vm, '[install]\nexposure = "overlay"\n')
    vm.run("systemctl start --no-block nvidiad", check=True)


def overlay_off(vm: Machine) -> None:
    vm.run("mv /run/kill-at /run/kill-later", check=True)
    overlay(vm)
    road.wait_phase(vm, "ready")
    vm.run("mv /run/kill-later /run/kill-at", check=True)
    deactivate(vm)


def node_gone(vm: Machine) -> None:
    vm.run(f"rm /dev/nvidia0 && {road.NVIDIAD} reconcile", check=True)


def drain(vm: Machine) -> None:
    vm.run("systemd-run -q --unit=training -p StandardInput=file:/dev/nvidia0 sleep 4000", check=True)
    configure(vm, f'[driver]\nversion = "{OTHER}"\nchange = "drain"\n')
    vm.run("systemctl reload nvidiad", check=True)


def retention(vm: Machine) -> None:
    configure(vm, "[retention]\ntrees = 1\n")
    vm.run("systemctl reload nvidiad", check=True)


def offered(vm: Machine) -> None:
    updater.tell(vm, "UPDATE_AVAILABLE", RELEASES["B"])


def automatic(vm: Machine) -> None:
    configure(vm, "[reboot]\nautomatic = true\n")
    vm.run("systemctl reload nvidiad", check=True)
    updater.update(vm)


def configure(vm: Machine, more: str) -> None:
    """A configuration that is on disk when the power goes."""
    vm.put(more.encode(), CONFIG)
    vm.run(f"sync {CONFIG} {CONFIG.rpartition('/')[0]}", check=True)


CUTS = (
    Cut("run", "write-gates", "change 2", anew),
    Cut("run", "pull-image", "after", anew),
    Cut("run", "install-tree", "after", anew),
    Cut("run", "start-unit", "before", anew),
    Cut("run", "reload-unit", "before", node_gone),
    Cut("run", "stop-unit", "after", drain),
    Cut("run", "remove-tree", "change 1", retention),
    Cut("run", "raise-delay", "change 1", offered),
    Cut("run", "hold-reboot", "after", offered),
    Cut("run", "release-reboot", "after", offered),
    Cut("run", "renew-tree", "after", automatic, slot="B"),
    Cut("run", "reboot-host", "before", automatic, slot="B"),
    Cut("activate", "select-tree", "change 2", activate),
    Cut("activate", "configure-linker", "change 2", activate),
    Cut("activate", "refresh-linker-cache", "after", activate),
    Cut("activate", "set-firmware-path", "change 1", activate),
    Cut("activate", "load-host-modules", "after", activate),
    Cut("activate", "load-module", "after", activate, nth=2),
    Cut("activate", "make-nodes", "after", activate),
    Cut("activate", "check-driver", "after", activate),
    Cut("activate", "mount-overlay", "after", overlay),
    Cut("deactivate", "unmount-overlay", "before", overlay_off),
    Cut("deactivate", "unload-module", "before", deactivate, nth=2),
    Cut("deactivate", "remove-nodes", "after", deactivate),
)
# Each takes a boot of an emulated machine; all of them with NVIDIAD_FAULTS=all.
EVERY_TIME = ("install-tree",)
CHOSEN = [cut for cut in CUTS if os.environ.get("NVIDIAD_FAULTS") == "all" or cut.step in EVERY_TIME]


def test_the_table_has_every_step_there_is() -> None:
    assert {cut.step for cut in CUTS} == {step_name(kind.__new__(kind)) for kind in get_args(Step)}


@pytest.fixture(scope="module")
def victim(
    driven_host: Frozen, bed_kernels: Kernels, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Frozen]:
    """A host in force that can lose its power at a step; images are in its registry, an update may come."""
    folder = tmp_path_factory.mktemp("victim")
    with Machine(folder / "work", frozen=driven_host) as vm:
        vm.resume()
        vm.put(KILLER.read_bytes(), f"{SITE}/nvidiad_killer.py")
        vm.put(b"import nvidiad_killer; nvidiad_killer.arm()\n", f"{SITE}/nvidiad_killer.pth")
        updater.install(vm)
        vm.put(AHEAD.encode(), "/etc/nvidiad/conf.d/50-ahead.toml")
        road.publish(vm, [road.payload(folder / slot, slot, k) for slot, k in bed_kernels.slots.items()])
        vm.run("systemctl restart nvidiad", check=True)
        road.wait_phase(vm, "ready")
        frozen = vm.freeze(folder / "frozen")
    yield frozen
    shutil.rmtree(folder)


def chosen(cut: Cut) -> object:
    """A case; one that cannot be survived every time says why, as the page does."""
    why = faults.KNOWN.get((cut.step, faults.POWER))
    return pytest.param(cut, id=str(cut), marks=[pytest.mark.xfail(reason=why, strict=False)] if why else [])


@pytest.mark.parametrize("cut", [chosen(cut) for cut in CHOSEN])
def test_the_power_is_cut_in_the_middle_of_a_step(
    victim: Frozen, bed_kernels: Kernels, tmp_path: Path, cut: Cut
) -> None:
    with Machine(tmp_path / "vm", frozen=victim) as vm:
        vm.resume()
        prepare(vm, cut, bed_kernels, tmp_path)
        arm(vm, cut)
        cut.begin(vm)
        vm.wait_for("[ -e /run/kill-hit ]", road.READY_SECONDS)
        vm.power_cut()
        vm.boot()
        assert vm.slot == cut.slot
        document = road.wait_phase(vm, "ready")
        driver = OTHER if cut.step == "stop-unit" else road.DRIVER
        assert document["driver"]["loaded"] == driver
        vm.wait_unit("kubelet.service")
        assert f"/opt/nvidia/{driver}/{RELEASES[vm.slot]}" in complete_trees(vm)
        vm.wait_for(f'[ -z "$({PARTIALS})" ]', 60)
        checked = vm.run(f"{road.NVIDIAD} check")
        assert checked.rc == 0, checked.out
    shutil.rmtree(tmp_path / "vm")


def prepare(vm: Machine, cut: Cut, kernels: Kernels, folder: Path) -> None:
    """What must be on disk before the step is led to."""
    match cut.step:
        case "stop-unit":
            road.install(vm, road.payload(folder / "other", "A", kernels.a, driver=OTHER))
        case "remove-tree":
            road.install(vm, road.payload(folder / "next", "B", kernels.b))
        case "renew-tree":
            # What is staged under B's tag is for A's kernel, and it is mended meanwhile.
            road.install(vm, road.payload(folder / "wrong", "B", kernels.a))
    vm.run("sync", check=True)


def arm(vm: Machine, cut: Cut) -> None:
    wish = {"verb": cut.verb, "step": cut.step, "nth": cut.nth, "at": cut.at, "power": True}
    # The steps of a process are counted from its start.
    vm.run("systemctl restart nvidiad", check=True)
    road.wait_phase(vm, "ready")
    vm.put(json.dumps(wish).encode(), "/run/kill-at.tmp")
    vm.run("mv /run/kill-at.tmp /run/kill-at", check=True)
