# SPDX-License-Identifier: Apache-2.0
"""Disks that are full, read-only or dead, at each step that writes: told, nothing half done, healed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import ahead, road
from tests.host.aftermath import GATE, HEALED, KUBELET, assert_healed, assert_held, begin, stage_tree
from tests.host.broken import Fault, broken
from tests.host.machine import RELEASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

FIRMWARE = "/sys/module/firmware_class/parameters"
LINKER = "# Written by nvidiad; see nvidiad(8).\n/opt/nvidia/current/lib64\n"


@dataclass(frozen=True)
class Case:
    """A step whose place is broken, and the code by which that is told."""

    step: str
    place: str
    fault: Fault
    code: str

    def __str__(self) -> str:
        return f"{self.step}-{self.fault}"


def cases(step: str, place: str, **codes: str) -> tuple[Case, ...]:
    """One for each fault, by the kernel's names."""
    return tuple(Case(step, place, Fault(name), code) for name, code in codes.items())


ACTIVATION = (
    *cases("select-tree", "/opt/nvidia", ENOSPC="disk-full", EROFS="read-only", EIO="image-failed"),
    *cases(
        "configure-linker", "/etc/ld.so.conf.d", ENOSPC="disk-full", EROFS="read-only", EIO="exposure-failed"
    ),
    *cases("refresh-linker-cache", "/etc", ENOSPC="exposure-failed", EROFS="exposure-failed"),
    *cases("set-firmware-path", FIRMWARE, EROFS="exposure-failed"),
    *cases("make-nodes", "/dev", ENOSPC="exposure-failed", EROFS="exposure-failed"),
)
DAEMON = (
    *cases("pull-image", "/var/lib/docker/tmp", ENOSPC="disk-full", EROFS="read-only", EIO="pull-failed"),
    *cases("install-tree", "/opt/nvidia", ENOSPC="disk-full", EROFS="read-only", EIO="image-failed"),
)
GATES = cases("write-gates", "/etc/systemd/system", ENOSPC="disk-full", EROFS="read-only", EIO="unit-failed")
DEACTIVATION = (
    *cases("remove-nodes", "/dev", EROFS="exposure-failed"),
    *cases("set-firmware-path", FIRMWARE, EROFS="exposure-failed"),
    *cases("configure-linker", "/etc/ld.so.conf.d", EROFS="read-only", EIO="exposure-failed"),
)
AHEAD = (
    *cases(
        "raise-delay",
        "/etc/systemd/logind.conf.d",
        ENOSPC="logind-refused",
        EROFS="logind-refused",
        EIO="logind-refused",
    ),
    *cases("renew-tree", "/opt/nvidia", ENOSPC="disk-full", EROFS="read-only", EIO="image-failed"),
    *cases("remove-tree", "/opt/nvidia", ENOSPC="", EROFS="read-only", EIO="image-failed"),
)
MEMORY = cases("remember", "/var/lib/nvidiad", ENOSPC="", EROFS="", EIO="")
REBOOT = cases("reboot-host", "/var/lib/nvidiad", ENOSPC="", EROFS="", EIO="")


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    with road.booted(engine_settings={"max-download-attempts": 1}) as host:
        road.install(host)
        road.publish(host)
        yield host


@pytest.fixture(scope="module")
def ahead_of() -> Iterator[Host]:
    """A host in force that looks ahead."""
    with road.booted() as host:
        road.install(host, ahead.configuration())
        road.publish(host)
        host.systemctl("start", "nvidiad.socket", "nvidiad.service")
        road.wait_ready(host)
        yield host


def assert_told(host: Host, code: str) -> None:
    """Status names the cause and what helps, and the kubelet waits."""
    said = lambda d: (d["problem"] or {}).get("code") == code and d["next_try"]  # noqa: E731
    document = road.wait_status(host, said, f"status says {code}", HEALED)
    assert document["problem"]["remedy"], document["problem"]
    assert document["phase"] == "waiting", document
    assert_held(host)


def attempt(document: dict[str, Any], code: str) -> bool:
    return any(each["problem"]["code"] == code for each in document["attempts"])


@pytest.mark.parametrize("case", ACTIVATION, ids=str)
def test_activation_on_a_broken_disk(shared: Host, case: Case) -> None:
    host = shared
    stage_tree(host)
    if case.step == "refresh-linker-cache":
        # What comes before it writes nothing then.
        host.write("/etc/ld.so.conf.d/nvidiad.conf", LINKER)
    with broken(host, case.place, case.fault):
        begin(host)
        assert_told(host, case.code)
    assert_healed(host)


@pytest.mark.parametrize("case", DAEMON, ids=str)
def test_the_road_from_nothing_on_a_broken_disk(shared: Host, case: Case) -> None:
    host = shared
    road.rewind(host, trees=False)
    with broken(host, case.place, case.fault):
        begin(host)
        assert_told(host, case.code)
    assert_healed(host)


@pytest.mark.parametrize("case", GATES, ids=str)
def test_a_gate_that_cannot_be_written_is_told_and_the_driver_comes_all_the_same(
    shared: Host, case: Case
) -> None:
    host = shared
    road.rewind(host, trees=False)
    with broken(host, case.place, case.fault):
        begin(host)
        # Nothing holds the kubelet but that nvidiad does not start it before the driver is in force.
        road.wait_ready(host, HEALED)
        said = lambda d: attempt(d, case.code) and any(case.place in warning for warning in d["warnings"])  # noqa: E731
        road.wait_status(host, said, f"{case.code} is told", HEALED)
    host.wait(lambda: host.exists(GATE), "the gate is written", HEALED)
    road.wait_status(host, lambda d: not d["warnings"], "nothing is told any more", HEALED)
    assert_healed(host)


@pytest.mark.parametrize("case", DEACTIVATION, ids=str)
def test_deactivation_on_a_broken_disk(shared: Host, case: Case) -> None:
    """Somebody stops nvidia.service: what could not be undone is said, and the driver comes back."""
    host = shared
    stage_tree(host)
    begin(host)
    assert_healed(host)
    with broken(host, case.place, case.fault):
        since = time.monotonic()

        def logged() -> list[tuple[object, object]]:
            # Not by the unit: of a process that is gone when journald hears of it, that is not known.
            later = [e for e in host.journal() if int(e["__MONOTONIC_TIMESTAMP"]) / 1e6 > since]
            return [(e.get("NVIDIAD_STEP"), e["NVIDIAD_CODE"]) for e in later if "NVIDIAD_CODE" in e]

        host.systemctl("stop", "nvidia.service", check=False)
        if case.fault is Fault.DEAD:
            # What cannot be read is not there to be undone; the driver cannot come back for it.
            host.wait(lambda: (case.step, case.code) in logged(), f"{case.code} is told", HEALED)
        else:
            said = logged()
            assert (case.step, case.code) in said, said
    assert_healed(host, starts=2)


@pytest.mark.parametrize("case", MEMORY, ids=str)
def test_what_cannot_be_remembered_stops_nothing(shared: Host, case: Case) -> None:
    host = shared
    road.rewind(host, trees=False)
    with broken(host, case.place, case.fault):
        begin(host)
        assert_healed(host)
        unsaid = lambda d: any("not written down" in warning for warning in d["warnings"])  # noqa: E731
        road.wait_status(host, unsaid, "what is not remembered is said", HEALED)
    host.nvidiad("reconcile", check=True)
    road.wait_status(host, lambda d: not d["warnings"], "all is written down", HEALED)
    assert_healed(host)


@pytest.mark.parametrize("case", AHEAD, ids=str)
def test_looking_ahead_on_a_broken_disk(ahead_of: Host, case: Case) -> None:
    host = ahead_of
    ahead.again(host, ahead.configuration())
    host.run("rm -f /etc/systemd/logind.conf.d/99-nvidiad.conf; systemctl kill -s HUP systemd-logind")
    road.publish(host)
    pid = road.main_pid(host, KUBELET)
    old = road.put_tree(host, "1000.0.0", "5.0.0")
    if case.step == "renew-tree":
        road.publish(host, road.NEXT[0], "6.6.1-other")
        host.update_engine("UPDATE_AVAILABLE", road.NEXT[0])
        ahead.wait_stage(host, "staged")
        road.publish(host, *road.NEXT)
    with broken(host, case.place, case.fault):
        if case.step == "remove-tree":
            road.configure(host, ahead.configuration(retention={"trees": 1}))
        elif case.step == "renew-tree":
            ahead.finish(host)
        else:
            host.update_engine("UPDATE_AVAILABLE", road.NEXT[0])
            ahead.wait_held(host)
        if case.code:
            road.wait_status(host, lambda d: attempt(d, case.code), f"{case.code} is told", HEALED)
        else:
            host.wait(lambda: not host.exists(old), "the old tree is gone", HEALED)
        # Of a disk that is dead no program gets a library.
        assert road.status(host)["usable"] or (case.place == "/opt/nvidia" and case.fault is Fault.DEAD)
    match case.step:
        case "remove-tree":
            if not case.code:
                # It was gone from the full disk; now there is the other one again.
                host.nvidiad("reconcile", check=True)
            host.wait(lambda: not host.exists(old), "the old tree is gone", HEALED)
        case "renew-tree":
            road.wait_status(host, lambda d: ahead.stage(d).get("state") == "proven", "proven", HEALED)
        case _:
            limit = f"busctl get-property {ahead.LOGIND} InhibitDelayMaxUSec"
            host.wait(lambda: int(host.run(limit).out.split()[1]) >= 60e6, "logind waits", HEALED)
            host.update_engine("IDLE")
            ahead.wait_held(host, held=False)
    road.wait_status(host, lambda d: not (case.code and attempt(d, case.code)), "it is forgotten", HEALED)
    road.wait_ready(host)
    assert road.main_pid(host, KUBELET) == pid
    road.assert_nothing_half(host)


# Each takes half a minute, after which a look that failed is repeated.
@pytest.mark.parametrize(
    "case", REBOOT if os.environ.get("NVIDIAD_FAULTS") == "all" else REBOOT[1:2], ids=str
)
def test_a_reboot_that_cannot_be_remembered_is_not_begun(ahead_of: Host, case: Case) -> None:
    """Else a host whose update does not boot would reboot for ever."""
    host = ahead_of
    config = ahead.configuration(reboot={"automatic": True})
    ahead.again(host, config)
    road.publish(host, *road.NEXT)
    boots = host.boots
    with broken(host, case.place, case.fault):
        ahead.finish(host)
        ahead.wait_stage(host, "proven")
        unsaid = lambda d: any("not written down" in warning for warning in d["warnings"])  # noqa: E731
        road.wait_status(host, unsaid, "what is not remembered is said", HEALED)
        assert host.boots == boots
    host.wait_up(after=boots, timeout=90)
    road.wait_ready(host)
    road.assert_nothing_half(host)
    host.update(*RELEASE)
    host.run(f"rm -f {ahead.NEXT} /run/reboot-required", check=True)
    host.reboot()
    road.wait_ready(host)
