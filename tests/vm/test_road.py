# SPDX-License-Identifier: Apache-2.0
"""The daemon on a real kernel: cards come and go, restarts touch nothing, and the whole main job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vm import demo, road

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.kernels import Kernels
    from tests.vm.machine import Machine

pytestmark = pytest.mark.vm

CARD = "0000:01:00.0"


def test_a_card_comes_and_goes_while_nvidiad_runs(vm: Machine, bed_kernels: Kernels, tmp_path: Path) -> None:
    vm.unplug()
    road.configure(vm)
    road.install(vm, road.payload(tmp_path, "A", bed_kernels.a))
    vm.run("systemctl enable -q kubelet nvidiad && systemctl start nvidiad", check=True)
    document = road.wait_phase(vm, "no-gpu")
    assert document["gpus"] == []
    assert document["problem"] is None
    vm.wait_unit("kubelet.service")
    assert road.text(vm).exit_status == 0  # a normal state
    assert vm.output("systemctl is-active nvidia") == "active"
    assert vm.run("test -e /sys/module/nvidia").rc == 1
    kubelet = road.main_pids(vm, "kubelet")

    vm.plug()
    document = road.wait_phase(vm, "ready")
    assert [(gpu["address"], gpu["bound"]) for gpu in document["gpus"]] == [(CARD, "nvidia")]
    vm.run("true </dev/nvidia0", check=True)
    vm.wait_unit("nvidia-persistenced.service")
    # The kubelet has been running all the while.
    assert road.main_pids(vm, "kubelet") == kubelet

    vm.unplug()
    document = road.wait_phase(vm, "no-gpu")
    assert document["gpus"] == []
    assert "no NVIDIA GPU" in road.text(vm).text
    assert vm.output("cat /sys/module/nvidia/initstate") == "live"

    vm.plug()
    document = road.wait_phase(vm, "ready")
    assert document["gpus"][0]["bound"] == "nvidia"
    assert road.main_pids(vm, "kubelet") == kubelet


@pytest.mark.parametrize("how", ["systemctl restart nvidiad", "systemctl kill -s KILL nvidiad"])
def test_the_daemon_may_go_and_come(driven: Machine, how: str) -> None:
    def in_force() -> str:
        return driven.output(
            "cut -d' ' -f1-3,5 /proc/modules | grep nvidia; stat -c '%n %i %Z' /dev/nvidia* /dev/char/195:*;"
            "systemctl show -p ActiveEnterTimestampMonotonic --value nvidia;"
            "cat /proc/self/mountinfo /sys/module/firmware_class/parameters/path"
        )

    before, kept = in_force(), road.main_pids(driven)
    daemon = road.main_pids(driven, "nvidiad")
    driven.run(how, check=True)
    driven.wait_for(f"test $(systemctl show -p MainPID --value nvidiad) -gt {daemon[0]}")
    document = road.wait_phase(driven, "ready")
    assert document["report"] is None  # there was nothing to do
    assert road.main_pids(driven) == kept
    assert in_force() == before


def test_exposure_changes_while_the_driver_is_in_use(driven: Machine) -> None:
    """Libraries move without a module being unloaded, and move back."""
    kept = road.main_pids(driven)
    assert road.status(driven)["exposure"]["way"] == "ldconfig"
    for way, place in (("overlay", "/usr/lib64"), ("ldconfig", "/opt/nvidia/current/lib64")):
        driven.put(f'[install]\nexposure = "{way}"\n'.encode(), "/etc/nvidiad/conf.d/50-test.toml")
        driven.run("systemctl reload nvidiad", check=True)
        driven.wait_for(f"ldconfig -p | grep -q 'libcuda.so.1 .* {place}/libcuda.so.1$'")
        assert road.wait_phase(driven, "ready")["exposure"]["way"] == way
        count = driven.output("grep -c ' /usr/lib64 .* - overlay nvidia ' /proc/self/mountinfo; true")
        assert count == ("1" if way == "overlay" else "0")
    assert road.main_pids(driven) == kept


def test_what_the_demo_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unattended update whose driver is there before the reboot, which needs no network, all in one."""
    demo.show(demo.Timeline(), tmp_path)
    told = capsys.readouterr().out
    assert told.count("$ nvidiad status") == 3
    assert told.count("● ready - driver") == 3
    assert told.count("(exit status 0)") == 3
