# SPDX-License-Identifier: Apache-2.0
"""A new driver that does not come up on a real kernel: the good one is back until a new image comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.vm import road
from tests.vm.disk import RELEASES
from tests.vm.machine import BOOT_TIMEOUT
from tests.vm.modules import Fault

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.kernels import Kernels
    from tests.vm.machine import Machine

pytestmark = pytest.mark.vm

OTHER = "550.163.01"
TREE = f"/opt/nvidia/{road.DRIVER}/{RELEASES['A']}"


def want(vm: Machine, driver: dict[str, object], retry: float) -> None:
    """Configure another driver; what fails is tried again after so many seconds, or at the next boot."""
    keys = "".join(f"{key} = {value!r}\n" for key, value in {"version": OTHER, **driver}.items())
    text = f"[driver]\n{keys}\n[daemon]\nretry-initial = {retry}\nretry-maximum = {retry}\n"
    vm.put(text.encode(), "/etc/nvidiad/conf.d/50-test.toml")
    vm.run("systemctl reload nvidiad", check=True)


def check_fallen_back(vm: Machine, attempts: int) -> dict[str, Any]:
    """The old driver is in force and used, and the status says why it is not the configured one."""
    document = road.wait_status(vm, is_fallen_back, "fallen back")
    assert (document["driver"]["loaded"], document["driver"]["current"]) == (road.DRIVER, TREE)
    why = f"driver {OTHER} did not come up {attempts} times, driver {road.DRIVER} is back"
    assert why in told(document)
    assert why in road.text(vm).text
    assert vm.output("cat /sys/module/nvidia/version") == road.DRIVER
    vm.wait_unit("kubelet.service")
    return document


def told(document: dict[str, Any]) -> str:
    return str(document["problem"]["sentence"])


def is_fallen_back(document: dict[str, Any]) -> bool:
    problem = document["problem"]
    return document["phase"] == "ready" and bool(problem and problem["code"] == "driver-fallback")


def test_a_driver_that_refuses_gives_way_and_another_image_is_taken(
    driven: Machine, bed_kernels: Kernels, tmp_path: Path
) -> None:
    kernel = bed_kernels.a
    road.publish(driven, [road.payload(tmp_path, "A", kernel, driver=OTHER, fault=Fault.REFUSES)])
    want(driven, {"attempts": 2, "change": "wait"}, retry=3600)
    document = road.wait_status(
        driven,
        lambda said: bool(said["problem"] and said["problem"]["code"] == "module-refused"),
        "refused",
    )
    assert document["driver"]["loaded"] is None
    assert f"the kernel says: NVRM: The NVIDIA GPU is not supported by driver {OTHER}" in told(document)
    # Attempts are counted across boots.
    driven.reboot()
    check_fallen_back(driven, attempts=2)
    # The image under its tag is still the bad one; then there is a mended one.
    driven.run(f"{road.NVIDIAD} reconcile", check=True)
    driven.wait_for("journalctl -b -u nvidiad -o cat | grep -q 'still is the image'")
    assert is_fallen_back(road.status(driven))
    road.publish(driven, [road.payload(tmp_path, "A", kernel, driver=OTHER)])
    driven.run(f"{road.NVIDIAD} reconcile", check=True)
    document = road.wait_status(driven, lambda said: said["driver"]["loaded"] == OTHER, "forward again")
    document = road.wait_phase(driven, "ready")
    assert document["problem"] is None
    assert document["driver"]["current"] == TREE.replace(road.DRIVER, OTHER)
    driven.wait_unit("nvidia-persistenced.service")
    assert road.main_pids(driven)


def test_a_driver_that_takes_the_host_down_is_not_tried_for_ever(
    driven: Machine, bed_kernels: Kernels, tmp_path: Path
) -> None:
    road.publish(driven, [road.payload(tmp_path, "A", bed_kernels.a, driver=OTHER, fault=Fault.PANICS)])
    want(driven, {"attempts": 1}, retry=2)
    # Something has the device open: the change waits for the reboot.
    road.wait_phase(driven, "pending-reboot")
    driven.start("systemctl reboot")
    assert driven.wait_end() == "guest-reset"
    driven.boot(target=None)
    assert driven.wait_end(BOOT_TIMEOUT) == "guest-reset"
    assert f"driver {OTHER} takes the host down" in driven.console()
    driven.boot()
    assert "was cut off" in told(check_fallen_back(driven, attempts=1))
