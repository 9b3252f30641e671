# SPDX-License-Identifier: Apache-2.0
"""Looking ahead on a real disk: slot B is written while A runs, the reboot waits, and B needs no network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vm import demo, road, updater
from tests.vm.disk import RELEASES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.kernels import Kernels
    from tests.vm.machine import Machine

pytestmark = pytest.mark.vm

TREE = f"/opt/nvidia/{road.DRIVER}/{RELEASES['B']}"
CHECK = f"{road.NVIDIAD} reboot-check"


def look_ahead(vm: Machine) -> None:
    """An update_engine for a host whose driver is in force, and no fleet to spread over."""
    updater.install(vm)
    vm.put(b"[stage]\nspread = 0\n", "/etc/nvidiad/conf.d/50-ahead.toml")
    vm.run("systemctl reload nvidiad", check=True)


def publish(vm: Machine, folder: Path, kernels: Kernels) -> None:
    """The image for the release of slot B is there."""
    road.publish(vm, [road.payload(folder, "B", kernels.b)])


def test_the_kernel_of_the_next_slot_is_learned_before_the_reboot(
    driven: Machine, bed_kernels: Kernels, tmp_path: Path
) -> None:
    look_ahead(driven)
    publish(driven, tmp_path, bed_kernels)
    updater.offer(driven)
    stage = road.wait_stage(driven, "staged")
    assert (stage["version"], stage["kernel"], stage["tree"]) == (RELEASES["B"], "", TREE)
    updater.download(driven)
    # What is half written is not looked at.
    driven.run(f"{road.NVIDIAD} reconcile", check=True)
    assert road.stage(road.status(driven))["source"] == "update_engine"
    updater.finalize(driven)
    # Where the slot takes its time, the kernel is learned of its image first.
    document = road.wait_status(
        driven, lambda said: road.stage(said).get("source") == "the slot USR-B", "the slot is read"
    )
    stage = road.stage(document)
    assert (stage["kernel"], stage["state"]) == (bed_kernels.b.release, "proven")
    check = driven.run(CHECK)
    assert check.rc == 0 and "fits its kernel" in check.out, check
    # After a restart update_engine knows no version; the slot does.
    driven.run("systemctl restart update-engine nvidiad", check=True)
    stage = road.wait_stage(driven, "proven")
    assert (stage["version"], stage["source"]) == (RELEASES["B"], "the slot USR-B")
    # A slot that cannot be mounted still has a kernel, and the update's name was heard.
    updater.blank(driven, "B")
    driven.run(f"{road.NVIDIAD} reconcile", check=True)
    source = "'/boot/flatcar/vmlinuz-b'"
    document = road.wait_status(driven, lambda said: road.stage(said).get("source") == source, source)
    stage = road.stage(document)
    assert (stage["state"], stage["kernel"]) == ("proven", bed_kernels.b.release)
    assert document["phase"] == "ready"


def test_a_reboot_waits_for_the_driver_and_the_boot_needs_no_network(
    driven: Machine, bed_kernels: Kernels, tmp_path: Path
) -> None:
    look_ahead(driven)
    updater.offer(driven)
    updater.download(driven)
    road.wait_status(driven, lambda said: said["reboot"]["held"], "the delay lock is taken")
    assert "nvidiad" in driven.output("systemd-inhibit --list --no-legend --no-pager")
    updater.finalize(driven)
    driven.run(updater.REBOOT, check=True)
    document = road.wait_status(
        driven,
        lambda said: not said["reboot"]["go"] and bool(road.stage(said)["problem"]),
        "the reboot waits, and why",
    )
    assert road.stage(document)["problem"]["code"] == "image-missing"
    check = driven.run(CHECK)
    assert check.rc == 75 and "is not in the registry" in check.out, check
    # The rest of the journey in one command: the machine goes as soon as the driver is there.
    driven.run("systemctl disable -q docker.socket docker docker-registry", check=True)
    publish(driven, tmp_path, bed_kernels)
    # A pull, an installation and the way down.
    assert driven.wait_end(road.READY_SECONDS + 120) == "guest-reset"
    driven.boot()
    assert driven.slot == "B"
    document = road.wait_phase(driven, "ready")
    assert document["driver"]["current"] == TREE
    assert driven.run("systemctl -q is-active docker docker.socket docker-registry").rc != 0
    demo.check(driven, "B")
    # What the release before ran on stays for a rollback.
    assert driven.output(f"ls /opt/nvidia/{road.DRIVER}").split() == sorted(RELEASES.values())
