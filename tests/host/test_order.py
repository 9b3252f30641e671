# SPDX-License-Identifier: Apache-2.0
"""The order of things: nothing that needs the driver comes before it, and nvidiad may come and go."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.beds.common import SUITES
from tests.host import ahead, road
from tests.host.machine import RELEASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

BOTH = pytest.mark.parametrize("suite", SUITES, indirect=True)
KUBELET = "kubelet.service"
PERSISTENCED = "nvidia-persistenced.service"


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    """One host with everything in force, for the tests that leave it so."""
    with road.in_force() as host:
        yield host


@pytest.fixture
def ready(shared: Host) -> Host:
    road.wait_ready(shared)
    return shared


def assert_order(host: Host) -> None:
    """By the clocks of systemd, of the journal and of the stand-in kmod, everything came in its turn."""
    loaded = [
        call["t"] + call["seconds"]
        for call in host.kmod_log()
        if call["argv"][0] == "insmod" and call["rc"] == 0
    ]
    assert len(loaded) == 3, host.kmod_log()
    nodes = road.journal_time(host, "nvidia.service", "done: make the device nodes")
    checked = road.journal_time(host, "nvidia.service", "done: check that driver")
    up = int(host.show("nvidia.service", "ActiveEnterTimestampMonotonic")) / 1e6
    # Of its first command: its main process is guessed by systemd, and not always.
    persistenced = int(host.show(PERSISTENCED, "InactiveExitTimestampMonotonic")) / 1e6
    persistent = int(host.show(PERSISTENCED, "ActiveEnterTimestampMonotonic")) / 1e6
    kubelet = road.started_at(host, KUBELET)
    times = [*loaded, nodes, checked, up, persistenced, persistent, kubelet]
    assert times == sorted(times), times
    road.assert_never_early(host, starts=1)


# -- boots -----------------------------------------------------------------------------------------


@BOTH
def test_the_kubelet_starts_after_the_driver_at_the_first_boot_and_at_later_ones(host: Host) -> None:
    road.install(host)
    road.publish(host)
    host.reboot()
    road.wait_ready(host)
    assert_order(host)
    # The first time systemd started nvidia.service itself, and in vain; then nvidiad did.
    assert road.journal_time(host, "nvidiad.service", "done: install") < road.started_at(host, KUBELET)
    host.reboot()
    road.wait_ready(host)
    assert_order(host)
    # And this time nvidiad had nothing to do, so nothing waited for it.
    said = [entry["MESSAGE"] for entry in host.journal("nvidiad.service") if "done:" in entry["MESSAGE"]]
    assert said == []


def test_a_module_that_loads_slowly_holds_the_kubelet(host: Host) -> None:
    road.install(host)
    road.put_tree(host)
    # /run is new at every boot: what the stand-in is told must come from the boot itself.
    host.write("/etc/tmpfiles.d/bed.conf", "f /run/kmod.delay 0644 root root - insmod 0.7\n")
    host.reboot()
    road.wait_ready(host)
    slow = [call for call in host.kmod_log() if call["argv"][0] == "insmod"]
    assert all(call["seconds"] >= 0.7 for call in slow)
    assert_order(host)


def test_a_slow_download_holds_the_kubelet_and_status_is_answered_meanwhile(host: Host) -> None:
    road.install(host)
    road.publish(host)
    host.run("systemctl disable registry@5000.service", check=True)
    host.reboot()
    # A dockerd that is not up yet is another problem, and a passing one.
    document = road.wait_phase(host, "waiting", code="registry-unreachable")
    assert host.state(KUBELET) == "inactive"
    # No try comes between the two: it might pull the whole image.
    host.kill("nvidiad.service", signal.SIGSTOP)
    host.registry_start("plain")
    host.registry_freeze("plain")
    host.kill("nvidiad.service", signal.SIGCONT)
    host.nvidiad("reconcile", check=True)
    document = road.wait_status(
        host, lambda d: d["phase"] == "converging" and d["plan"]["steps"], "the pull is under way"
    )
    assert document["plan"]["steps"][0]["step"] == "pull-image"
    asked = [host.nvidiad("status") for _ in range(3)]
    assert [each.rc for each in asked] == [4] * 3
    # What a busy machine holds up is not all of them.
    assert min(each.seconds for each in asked) < 2
    assert host.state(KUBELET) == "inactive"
    host.registry_thaw("plain")
    road.wait_ready(host)
    assert_order(host)


def test_the_kubelet_does_not_start_while_the_module_is_refused(host: Host) -> None:
    road.install(host)
    road.put_tree(host)
    host.kmod_fail(("insmod", "nvidia_uvm", "Unknown symbol in module"))
    host.systemctl("start", "--no-block", "nvidiad.service", KUBELET)
    document = road.wait_status(
        host, lambda d: (d["problem"] or {}).get("code") == "symbol-unknown" and d["attempts"], "refused"
    )
    assert document["phase"] == "waiting"
    assert "nvidia_uvm" in document["problem"]["sentence"]
    assert host.state(KUBELET) == "inactive"
    assert road.witnessed(host) == []
    # What was loaded before it stays: the next attempt goes on from there.
    assert host.modules() == ["nvidia"]
    host.kmod_fail()
    road.wait_ready(host)
    road.assert_never_early(host, starts=1)


# -- nvidiad comes and goes ------------------------------------------------------------------------


def untouched(host: Host) -> dict[str, object]:
    """What no restart of nvidiad may change."""
    return {
        "pids": {unit: road.main_pid(host, unit) for unit in (KUBELET, PERSISTENCED)},
        "restarts": {unit: host.show(unit, "NRestarts") for unit in (KUBELET, PERSISTENCED)},
        "activated": host.show("nvidia.service", "StateChangeTimestampMonotonic"),
        "modules": road.modules(host),
        "nodes": road.nodes(host),
        "inodes": host.run("stat -c '%n %i %Z' /dev/nvidia* /opt/nvidia/current /etc/ld.so.cache").out,
        "calls": host.kmod_log(),
    }


def test_a_restart_of_nvidiad_touches_nothing(ready: Host) -> None:
    host = ready
    before = untouched(host)
    for command in ("restart", "stop", "kill"):
        pid = road.main_pid(host, "nvidiad.service")
        if command == "kill":
            host.kill("nvidiad.service")
        else:
            host.systemctl(command, "nvidiad.service")
        if command == "stop":
            assert untouched(host) == before
            host.systemctl("start", "nvidiad.service")
        road.wait_another(host, pid)
        road.wait_phase(host, "ready")
        assert untouched(host) == before


def test_nvidiad_that_hangs_is_shot_by_the_watchdog_and_nothing_else_is_touched(ready: Host) -> None:
    host = ready
    place = "/etc/systemd/system/nvidiad.service.d/bed.conf"
    host.write(place, "[Service]\nWatchdogSec=8\nRestartSec=100ms\n")
    host.systemctl("daemon-reload")
    host.systemctl("restart", "nvidiad.service")
    road.wait_phase(host, "ready")
    before = untouched(host)
    pid = road.main_pid(host, "nvidiad.service")
    # As long as it runs it tells the watchdog so, whatever happens.
    host.kill("nvidiad.service", signal.SIGSTOP)
    road.wait_another(host, pid)
    road.wait_phase(host, "ready")
    road.journal_time(host, "nvidiad.service", "Watchdog timeout", last=True)
    assert host.show("nvidiad.service", "NRestarts") == "1"
    assert untouched(host) == before
    host.run("rm", place, check=True)
    host.systemctl("daemon-reload")
    host.systemctl("restart", "nvidiad.service")


@pytest.mark.parametrize("command", ["daemon-reload", "daemon-reexec"])
def test_systemd_may_reload_and_reexecute_itself(ready: Host, command: str) -> None:
    host = ready
    before = untouched(host)
    pid = road.main_pid(host, "nvidiad.service")
    host.systemctl(command)
    assert host.systemctl("is-system-running").out.strip() == "running"
    # It still hears what systemd says: a kubelet that goes is in the next status.
    host.systemctl("stop", KUBELET)
    road.wait_status(
        host, lambda d: unit(d, KUBELET)["active"] == "inactive", "the kubelet is seen to be down"
    )
    host.systemctl("start", KUBELET)
    road.wait_status(host, lambda d: unit(d, KUBELET)["active"] == "active", "the kubelet is seen to be up")
    assert road.main_pid(host, "nvidiad.service") == pid
    after = untouched(host)
    del before["pids"], after["pids"]
    assert after == before


def unit(document: dict[str, object], name: str) -> dict[str, object]:
    units = document["units"]
    assert isinstance(units, list)
    found: dict[str, object] = next(unit for unit in units if unit["name"] == name)
    return found


def test_nvidiad_comes_back_by_itself_after_the_bus_was_away(host: Host) -> None:
    road.install(host)
    road.publish(host)
    host.systemctl("start", "nvidiad.service")
    road.wait_ready(host)
    before, pid = untouched(host), road.main_pid(host, "nvidiad.service")
    host.systemctl("restart", "dbus.service")
    road.wait_another(host, pid)
    road.wait_status(
        host, lambda d: d["phase"] == "ready" and unit(d, KUBELET)["active"] == "active", "ready again"
    )
    # It hears again: a node that goes comes back after the next word of systemd.
    host.systemctl("stop", KUBELET)
    road.wait_status(
        host, lambda d: unit(d, KUBELET)["active"] == "inactive", "the kubelet is seen to be down"
    )
    host.systemctl("start", KUBELET)
    after = untouched(host)
    del before["pids"], after["pids"]
    assert after == before


def test_systemd_never_gives_nvidiad_up(ready: Host) -> None:
    host = ready
    before = untouched(host)
    place = "/etc/systemd/system/nvidiad.service.d/bed.conf"
    host.write(place, "[Service]\nRestartSec=100ms\n")
    host.systemctl("daemon-reload")
    # More often than the five times in ten seconds after which it usually would.
    for _ in range(8):
        pid = road.main_pid(host, "nvidiad.service")
        host.kill("nvidiad.service")
        road.wait_another(host, pid)
    road.wait_phase(host, "ready")
    assert untouched(host) == before
    host.run("rm", place, check=True)
    host.systemctl("daemon-reload")
    host.systemctl("restart", "nvidiad.service")


# -- what nvidiad hears ----------------------------------------------------------------------------


def test_what_the_update_engine_says_is_in_status_and_metrics(ready: Host) -> None:
    host = ready

    def said(operation: str, version: str) -> None:
        def holds(document: dict[str, object]) -> bool:
            update = document["update"]
            assert isinstance(update, dict)
            return (update["operation"], update["version"]) == (f"UPDATE_STATUS_{operation}", version)

        road.wait_status(host, holds, f"{operation} {version}")

    host.update_engine("DOWNLOADING", road.NEXT[0], progress=0.5)
    said("DOWNLOADING", road.NEXT[0])
    assert road.metric(host, "nvidiad_staged_trees") == 0
    road.put_tree(host, *road.NEXT)
    host.update_engine("UPDATED_NEED_REBOOT", road.NEXT[0])
    said("UPDATED_NEED_REBOOT", road.NEXT[0])
    # The tree and the word of it came one after the other, and a look may have seen only one of them.
    host.wait(lambda: road.metric(host, "nvidiad_staged_trees") == 1, "the tree is counted")
    assert road.NEXT[0] in host.nvidiad("status", check=True).out
    # Started anew it knows that something is on disk, and not what.
    host.systemctl("restart", "update-engine.service")
    road.wait_status(host, lambda d: (d["update"] or {}).get("version") == "", "the version is forgotten")
    host.update_engine("IDLE")
    road.wait_status(host, lambda d: (d["update"] or {}).get("operation") == "UPDATE_STATUS_IDLE", "idle")
    host.systemctl("stop", "update-engine.service")
    road.wait_status(host, lambda d: d["update"] is None, "no update engine")
    host.systemctl("start", "update-engine.service")
    road.wait_status(host, lambda d: d["update"] is not None, "an update engine")
    host.run("rm", "-r", f"/opt/nvidia/{road.DRIVER}/{road.NEXT[0]}", check=True)


def looks(host: Host) -> float:
    return road.metric(host, "nvidiad_looks_total") or 0


def reasons(host: Host) -> list[str]:
    """Why nvidiad has looked, each time."""
    return [
        str(entry["NVIDIAD_REASONS"])
        for entry in host.journal("nvidiad.service")
        if "NVIDIAD_REASONS" in entry
    ]


def settle(host: Host) -> float:
    """The number of looks once the last event's look is over."""
    before = looks(host)
    deadline = time.monotonic() + road.PATIENCE
    since, same = time.monotonic(), 0
    # On a busy machine one question may take as long as that.
    while time.monotonic() - since < 0.5 or same < 10:
        now = looks(host)
        same += 1
        if now != before:
            before, since, same = now, time.monotonic(), 0
        assert time.monotonic() < deadline, "nvidiad never comes to rest"
        time.sleep(0.05)
    return before


def test_ten_events_while_a_look_is_under_way_make_one_more_look(ready: Host) -> None:
    host, debug = ready, "/etc/systemd/system/nvidiad.service.d/bed.conf"
    # Why it looks is in the journal then.
    host.write(debug, "[Service]\nEnvironment=SYSTEMD_LOG_LEVEL=debug\n")
    # A look that takes long: a node is missing, and the reload waits until it may go on.
    host.write(
        "/etc/systemd/system/nvidia.service.d/bed.conf",
        "[Service]\nExecReload=\nExecReload=/bin/sh -c 'until [ -e /run/go ]; do sleep .1; done'\n"
        "ExecReload=/opt/nvidiad/bin/nvidiad activate\n",
    )
    host.systemctl("daemon-reload")
    host.systemctl("restart", "nvidiad.service")
    # One that is under way is not counted before it has seen the host.
    ahead.look(host)
    before = settle(host)
    told = len(reasons(host))
    host.run("rm", "/dev/nvidia0", check=True)
    host.nvidiad("reconcile", check=True)
    host.wait(lambda: host.state("nvidia.service") == "reloading", "the reload has begun")
    during = looks(host)
    for number in range(10):
        host.update_engine("CHECKING_FOR_UPDATE", progress=number / 10)
    status = f"busctl call {ahead.ENGINE} GetStatus"
    host.wait(lambda: " 0.9 " in host.run(status).out, "update_engine has said all of them")
    for _ in range(10):
        host.uevent("change", "/devices/pci0000:00/0000:01:00.0", PCI_ID="10DE:20B5")
    assert host.state("nvidia.service") == "reloading"
    assert looks(host) == during
    host.write("/run/go", "")
    host.wait(lambda: host.exists("/dev/nvidia0"), "the node is back")
    after = settle(host)
    # There is one for all that was heard since, and the last may be heard only when that has begun.
    heard = reasons(host)[told:]
    for word in ("update_engine has news", "0000:01:00.0"):
        assert 1 <= sum(word in reason for reason in heard) <= 2, heard
    # The one under way is published again after its step; others are for the end of the reload's job, and
    # for the units to which the reload is passed on, which begin and end with theirs.
    assert 1 <= after - during < 20, (before, during, after)
    host.run("rm", "/run/go", debug, "/etc/systemd/system/nvidia.service.d/bed.conf", check=True)
    host.systemctl("daemon-reload")
    host.systemctl("restart", "nvidiad.service")
    host.update_engine("IDLE")
    road.wait_ready(host)


def test_what_is_logged_reaches_a_journal_that_was_restarted(ready: Host) -> None:
    host = ready
    host.systemctl("restart", "systemd-journald.service")
    host.run("rm", "/dev/nvidia0", check=True)
    host.nvidiad("reconcile", check=True)
    host.wait(lambda: host.exists("/dev/nvidia0"), "the node is back")
    plans = "journalctl -b -u nvidiad.service -o cat | grep -c 'missing: make the device nodes'"
    host.wait(lambda: int(host.run(plans).out) >= 1, "nvidiad's word is in the journal")
    road.wait_ready(host)


def test_an_idle_nvidiad_does_not_look(ready: Host) -> None:
    host = ready
    ahead.look(host)
    before = settle(host)
    # Mounts of pods, other people's units and devices are no concern of ours.
    host.run("mkdir -p /run/pod && mount -t tmpfs pod /run/pod && umount /run/pod", check=True)
    host.run("systemd-run", "-q", "--wait", "/bin/true", check=True)
    host.uevent("change", "/devices/virtual/net/lo", subsystem="net")
    host.run("docker", "images", check=True)
    assert settle(host) == before


def test_the_driver_in_force_is_the_one_of_this_boot(ready: Host) -> None:
    host = ready
    document = road.status(host)
    assert document["kernel"]["boot_id"] == host.read("/proc/sys/kernel/random/boot_id").strip()
    assert road.metric(host, "nvidiad_ready") == 1
    assert road.metric(host, "nvidiad_phase", phase="ready") == 1
    assert road.metric(host, "nvidiad_phase", phase="no-gpu") == 0
    host.wait(
        lambda: road.metric(host, "nvidiad_unit_active", unit=KUBELET) == 1, "the kubelet is seen to be up"
    )
    assert document["os"]["version"] == RELEASE[0]
