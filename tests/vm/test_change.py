# SPDX-License-Identifier: Apache-2.0
"""Another driver while one is loaded: real processes hold its devices, and each policy does what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.vm import road
from tests.vm.disk import RELEASES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.kernels import Kernels
    from tests.vm.machine import Machine

pytestmark = pytest.mark.vm

OTHER = "550.163.01"
TREE = f"/opt/nvidia/{OTHER}/{RELEASES['A']}"
PERSISTENCED = "nvidia-persistenced"
# What a kubelet and its container runtime call the cgroup of a pod's container.
POD, CONTAINER = "0b6b2ed6-7ea9-4d6d-a3b1-0a3f0f8a6f21", "5f" * 32
IN_A_POD = f"kubepods-besteffort-pod{POD.replace('-', '_')}.slice", f"cri-containerd-{CONTAINER}.scope"
# A unit that has the device open, whoever runs it.
HOLDING = "StandardInput=file:/dev/nvidia0"


def want(vm: Machine, folder: Path, kernels: Kernels, change: str) -> None:
    """Another driver is on disk and configured, and is to come like this."""
    road.install(vm, road.payload(folder, "A", kernels.a, driver=OTHER))
    more = f'[driver]\nversion = "{OTHER}"\nchange = "{change}"\n'
    vm.put(more.encode(), "/etc/nvidiad/conf.d/50-test.toml")
    vm.run("systemctl reload nvidiad", check=True)


def hold(vm: Machine, unit: str) -> int:
    """A job of somebody that has the device open; gives its process."""
    vm.run(f"systemd-run -q --unit={unit} -p {HOLDING} sleep 4000", check=True)
    return int(road.main_pids(vm, unit)[0])


def hold_in_a_pod(vm: Machine) -> int:
    """A pod's process that has the device open."""
    where, scope = IN_A_POD
    vm.start(f"exec systemd-run -q --scope --slice={where} --unit={scope} sleep 5000 </dev/nvidia0")
    vm.wait_for("pgrep -x sleep -a | grep -q 5000")
    return int(vm.output("pgrep -f '^(/usr/bin/)?sleep 5000'"))


def holders(document: dict[str, Any]) -> dict[int, tuple[str, str]]:
    """The processes that hold the driver: command, and unit or pod."""
    return {held["pid"]: (held["command"], held["unit"]) for held in document["driver"]["holders"]}


def wait_named(vm: Machine, *pids: int) -> dict[str, Any]:
    """Until exactly these processes are named as what is in the way."""
    return road.wait_status(vm, lambda said: set(holders(said)) == set(pids), f"the holders are {pids}")


def wait_changed(vm: Machine) -> None:
    """Until the other driver is in force, and everything of it."""
    document = road.wait_status(
        vm, lambda said: said["phase"] == "ready" and said["driver"]["loaded"] == OTHER, "changed"
    )
    assert (document["driver"]["current"], document["problem"]) == (TREE, None)
    assert vm.output("cat /sys/module/nvidia/version") == OTHER
    vm.run("true </dev/nvidia0", check=True)


def test_reboot_names_who_is_in_the_way_and_changes_at_once_where_nobody_is(
    driven: Machine, bed_kernels: Kernels, tmp_path: Path
) -> None:
    job, pod = hold(driven, "training.service"), hold_in_a_pod(driven)
    (persistenced,) = map(int, road.main_pids(driven, PERSISTENCED))
    want(driven, tmp_path, bed_kernels, "reboot")
    document = wait_named(driven, job, pod, persistenced)
    assert document["phase"] == "pending-reboot"
    found = holders(document)
    assert found[job] == ("sleep", "training.service")
    assert found[pod] == ("sleep", f"pod {POD}, container {CONTAINER[:12]}")
    assert found[persistenced][1] == f"{PERSISTENCED}.service"
    summary = document["summary"]
    assert f"sleep (pid {job}, training.service)" in summary and f"sleep (pid {pod}, pod {POD}" in summary
    assert document["driver"]["loaded"] == road.DRIVER
    # Once nobody has it open, there is nothing to wait for.
    kept = road.main_pids(driven, "kubelet")
    driven.run(f"kill {pod} && systemctl stop training {PERSISTENCED}", check=True)
    driven.run(f"{road.NVIDIAD} reconcile", check=True)
    wait_changed(driven)
    assert road.main_pids(driven, "kubelet") == kept


def test_wait_changes_as_soon_as_the_last_stranger_has_gone(
    driven: Machine, bed_kernels: Kernels, tmp_path: Path
) -> None:
    job = hold(driven, "training.service")
    kept = road.main_pids(driven)
    want(driven, tmp_path, bed_kernels, "wait")
    (persistenced,) = map(int, road.main_pids(driven, PERSISTENCED))
    document = wait_named(driven, job, persistenced)
    assert document["phase"] == "waiting"
    assert document["problem"]["code"] == "module-in-use"
    assert f"sleep (pid {job}, training.service)" in document["problem"]["sentence"]
    # Nothing was stopped for a change that could not come.
    assert road.main_pids(driven) == kept
    driven.run("systemctl stop training", check=True)
    wait_changed(driven)
    driven.wait_unit(f"{PERSISTENCED}.service")
    assert road.main_pids(driven, "kubelet") == kept[:1]
    assert road.main_pids(driven, PERSISTENCED) != kept[1:]


def test_drain_stops_the_gated_units_waits_for_the_rest_and_starts_them_again(
    driven: Machine, bed_kernels: Kernels, tmp_path: Path
) -> None:
    driven.run("mkdir -p /etc/systemd/system/kubelet.service.d", check=True)
    driven.put(f"[Service]\n{HOLDING}\n".encode(), "/etc/systemd/system/kubelet.service.d/50-test.conf")
    driven.run("systemctl daemon-reload && systemctl restart kubelet", check=True)
    pod, kept = hold_in_a_pod(driven), road.main_pids(driven)
    want(driven, tmp_path, bed_kernels, "drain")
    # The kubelet and persistenced are stopped for it; a pod's process outlives its kubelet.
    document = wait_named(driven, pod)
    assert document["phase"] == "waiting"
    assert document["driver"]["loaded"] == road.DRIVER
    assert driven.output(f"systemctl is-active kubelet {PERSISTENCED}; true").split() == ["inactive"] * 2
    driven.run(f"kill {pod}", check=True)
    wait_changed(driven)
    for unit in ("kubelet", PERSISTENCED):
        driven.wait_unit(f"{unit}.service")
    assert not set(road.main_pids(driven)) & set(kept)
