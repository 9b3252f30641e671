# SPDX-License-Identifier: Apache-2.0
"""Looking ahead on a real host: real logind, a stand-in update_engine on the real bus, real reboots."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import road

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

pytestmark = pytest.mark.host

VERSION, KERNEL = road.NEXT
TREE = f"/opt/nvidia/{road.DRIVER}/{VERSION}"
NEXT = "/run/nextos"
LOGIND = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
REBOOT = f"busctl call {LOGIND} Reboot b false"
INHIBITED = "systemd-inhibit --list --no-legend --no-pager"


def configuration(maximum: float = 60, **more: Any) -> str:
    sections: dict[str, dict[str, object]] = {
        "stage": {"spread": 0, "next-file": NEXT},
        "reboot": {"maximum": maximum},
    }
    return road.configuration(**{**sections, **more})


@pytest.fixture
def host() -> Iterator[Host]:
    """A host with its driver in force that looks ahead."""
    with road.booted() as made:
        road.install(made, configuration())
        road.publish(made)
        made.systemctl("start", "nvidiad.service")
        road.wait_ready(made)
        yield made


def finish_update(host: Host) -> None:
    """The update is on disk: the next boot takes it."""
    host.write(NEXT, f"VERSION_ID={VERSION}\nKERNEL={KERNEL}\n")
    host.update(VERSION, KERNEL)
    host.update_engine("UPDATED_NEED_REBOOT", VERSION)


def stage(document: dict[str, Any]) -> dict[str, Any]:
    return document["stages"][0] if document["stages"] else {}


def wait_stage(host: Host, state: str) -> dict[str, Any]:
    return road.wait_status(host, lambda said: stage(said).get("state") == state, f"the stage is {state}")


def test_the_next_driver_is_on_disk_before_the_reboot_and_the_boot_needs_no_network(host: Host) -> None:
    road.publish(host, VERSION, KERNEL)
    host.update_engine("UPDATE_AVAILABLE", VERSION)
    document = wait_stage(host, "staged")
    assert stage(document)["tree"] == TREE
    assert document["phase"] == "ready"
    finish_update(host)
    document = wait_stage(host, "proven")
    assert document["reboot"]["go"]
    assert not document["reboot"]["held"]
    check = host.nvidiad("reboot-check")
    assert (check.rc, "is on disk and fits its kernel" in check.out) == (0, True), check
    assert road.metric(host, "nvidiad_staged_trees") == 1
    labels = {"driver": road.DRIVER, "os": VERSION, "state": "proven"}
    assert road.metric(host, "nvidiad_stage", **labels) == 1
    assert road.metric(host, "nvidiad_reboot_may_go") == 1
    (row,) = [line for line in host.nvidiad("list", check=True).out.splitlines() if VERSION in line]
    assert "staged" in row
    assert "driver 535.309.01 proven" in host.nvidiad("status").out
    # The image has done its work.
    assert VERSION not in host.run("docker", "images", "--digests", check=True).out
    host.registry_stop()
    before = host.boots
    host.run(REBOOT)  # the host may be gone before its answer is here
    host.wait_up(after=before)
    host.registry_stop()
    host.engine_stop()
    document = road.wait_ready(host)
    assert document["os"]["version"] == VERSION
    assert document["driver"]["current"] == TREE
    road.assert_never_early(host)


def test_a_reboot_at_the_very_moment_waits_until_the_driver_is_there(host: Host) -> None:
    host.update_engine("DOWNLOADING", VERSION, progress=0.5)
    road.wait_status(host, lambda said: said["reboot"]["held"], "the delay lock is taken")
    listed = host.run(INHIBITED, check=True).out
    assert "nvidiad" in listed
    assert "delay" in listed
    finish_update(host)
    before = host.boots
    host.run(REBOOT)  # the host may be gone before its answer is here
    document = road.wait_status(
        host, lambda said: not said["reboot"]["go"] and stage(said)["problem"], "the reboot waits"
    )
    assert stage(document)["problem"]["code"] == "image-missing"
    check = host.nvidiad("reboot-check")
    assert check.rc == 75
    assert "is not in the registry" in check.out or "no image" in check.out, check
    assert host.boots == before
    road.publish(host, VERSION, KERNEL)
    host.wait_up(after=before)
    host.registry_stop()
    document = road.wait_ready(host)
    assert document["driver"]["current"] == TREE


def test_without_the_daemon_the_answer_is_the_same(host: Host) -> None:
    finish_update(host)
    road.wait_status(host, lambda said: not said["reboot"]["go"], "the reboot waits")
    host.systemctl("stop", "nvidiad.service", "nvidiad.socket")
    check = host.nvidiad("reboot-check")
    assert (check.rc, f"driver {road.DRIVER} for {VERSION}" in check.out) == (75, True), check
    host.run(f"rm {NEXT}", check=True)
    host.update_engine("IDLE")
    check = host.nvidiad("reboot-check")
    assert (check.rc, check.out) == (0, "no other OS is about to be booted\n")


def test_a_reboot_is_held_no_longer_than_configured(host: Host) -> None:
    road.configure(host, configuration(maximum=6))
    host.update_engine("DOWNLOADING", VERSION, progress=0.5)
    road.wait_status(host, lambda said: said["reboot"]["held"], "the delay lock is taken")
    before = host.boots
    finish_update(host)
    asked = time.monotonic()
    host.run(REBOOT)  # the host may be gone before its answer is here
    host.wait_up(after=before)
    held = time.monotonic() - asked
    assert 4 < held < 20, held
    document = road.wait_phase(host, "waiting", code="image-missing")
    assert document["os"]["version"] == VERSION


def test_the_limit_of_logind_is_raised_and_never_lowered(host: Host) -> None:
    def limit() -> int:
        said = host.run(f"busctl get-property {LOGIND} InhibitDelayMaxUSec", check=True)
        return int(said.out.split()[1])

    host.write("/etc/systemd/logind.conf.d/99-kubelet.conf", "[Login]\nInhibitDelayMaxSec=2min\n")
    host.update_engine("DOWNLOADING", VERSION, progress=0.5)
    road.wait_status(host, lambda said: said["reboot"]["held"], "the delay lock is taken")
    assert limit() == 120_000_000
    host.update_engine("IDLE")
    road.wait_status(host, lambda said: not said["reboot"]["held"], "the delay lock is given back")
