# SPDX-License-Identifier: Apache-2.0
"""Looking ahead on a real host: real logind, a stand-in update_engine on the real bus, real reboots."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import ahead, road
from tests.host.machine import RELEASE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.host.bed import Host

pytestmark = pytest.mark.host

VERSION, KERNEL = road.NEXT
TREE = ahead.tree()
FILE = "/etc/nvidiad/nvidiad.toml"
UPDATED = "UPDATED_NEED_REBOOT"


@pytest.fixture
def host() -> Iterator[Host]:
    """A host with its driver in force that looks ahead, and may be rebooted."""
    with road.booted() as made:
        ahead.prepare(made)
        road.install(made, ahead.configuration())
        road.publish(made)
        made.systemctl("start", "nvidiad.service")
        road.wait_ready(made)
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    with road.booted() as made:
        road.install(made, ahead.configuration())
        road.put_tree(made)
        # Why it looks is in the journal then.
        debug = "[Service]\nEnvironment=SYSTEMD_LOG_LEVEL=debug\n"
        made.write("/etc/systemd/system/nvidiad.service.d/bed.conf", debug)
        made.systemctl("daemon-reload")
        yield made


@pytest.fixture
def still(shared: Host) -> Host:
    """The same for tests that do not reboot it."""
    ahead.again(shared, ahead.configuration())
    return shared


# -- an update from its beginning to the boot -------------------------------------------------------


def test_the_next_driver_is_on_disk_before_the_reboot_and_the_boot_needs_no_network(host: Host) -> None:
    road.publish(host, VERSION, KERNEL)
    host.update_engine("UPDATE_AVAILABLE", VERSION)
    document = ahead.wait_stage(host, "staged")
    assert ahead.stage(document)["tree"] == TREE
    assert document["phase"] == "ready"
    ahead.finish(host)
    document = ahead.wait_stage(host, "proven")
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
    host.run("systemctl start locksmithd.service")  # the host may be gone before its answer is here
    host.wait_up(after=before)
    assert ahead.held_for(host) < 5
    host.registry_stop()
    host.engine_stop()
    document = road.wait_ready(host)
    assert document["os"]["version"] == VERSION
    assert document["driver"]["current"] == TREE
    road.assert_never_early(host)


def test_a_reboot_at_the_very_moment_waits_until_the_driver_is_there(host: Host) -> None:
    host.systemctl("start", "locksmithd.service")
    host.update_engine("DOWNLOADING", VERSION, progress=0.5)
    ahead.wait_held(host)
    (why,) = ahead.locks(host)
    assert f"driver {road.DRIVER} for {VERSION}" in why
    before = host.boots
    ahead.finish(host)
    ahead.wait_stage(host, "awaited", "image-missing")
    road.wait_status(host, lambda said: not said["reboot"]["go"], "the reboot waits")
    check = host.nvidiad("reboot-check")
    assert check.rc == 75
    assert "is not in the registry" in check.out, check
    assert host.boots == before
    road.publish(host, VERSION, KERNEL)
    host.wait_up(after=before)
    host.registry_stop()
    document = road.wait_ready(host)
    assert document["driver"]["current"] == TREE


def test_a_kill_lets_no_waiting_reboot_go(host: Host) -> None:
    host.systemctl("start", "locksmithd.service")
    host.update_engine("DOWNLOADING", VERSION, progress=0.5)
    ahead.wait_held(host)
    before = host.boots
    ahead.finish(host)
    for _ in range(3):
        pid = road.main_pid(host, "nvidiad.service")
        ahead.wait_stage(host, "awaited", "image-missing")
        host.kill("nvidiad.service")
        road.wait_another(host, pid)
        document = ahead.look(host)
        assert document["reboot"]["held"]
        assert len(ahead.locks(host)) == 1
    assert host.boots == before
    road.publish(host, VERSION, KERNEL)
    host.wait_up(after=before)
    host.registry_stop()
    assert road.wait_ready(host)["driver"]["current"] == TREE


def test_a_daemon_that_is_stopped_lets_the_reboot_go(host: Host) -> None:
    host.systemctl("start", "locksmithd.service")
    host.update_engine("DOWNLOADING", VERSION, progress=0.5)
    ahead.wait_held(host)
    before = host.boots
    ahead.finish(host)
    ahead.wait_stage(host, "awaited", "image-missing")
    host.run("systemctl stop nvidiad.service")  # the host may be gone before its answer is here
    host.wait_up(after=before)
    assert ahead.held_for(host) < 20


def test_a_reboot_is_held_no_longer_than_configured(host: Host) -> None:
    road.configure(host, ahead.configuration(maximum=6))
    host.systemctl("start", "locksmithd.service")
    host.update_engine("DOWNLOADING", VERSION, progress=0.5)
    ahead.wait_held(host)
    before, finished = host.boots, time.time()
    ahead.finish(host)
    # Who waits is told for how long, and what for.
    document = road.wait_status(host, lambda said: said["reboot"]["until"], "the reboot waits")
    assert 0 < document["reboot"]["until"] - document["looked"] <= 6
    host.wait_up(after=before)
    # What is counted from is seen a moment after it was.
    assert ahead.gone_at(host) >= finished + 5.9
    assert ahead.held_for(host) < 10
    document = road.wait_phase(host, "waiting", code="image-missing")
    assert document["os"]["version"] == VERSION


def test_a_reboot_that_somebody_asks_for_cuts_the_turn_of_a_fleet_short(host: Host) -> None:
    road.configure(host, ahead.configuration(maximum=60, stage={"spread": 86400}))
    road.publish(host, VERSION, KERNEL)
    host.update_engine("UPDATE_AVAILABLE", VERSION)
    document = ahead.wait_stage(host, "awaited")
    assert ahead.stage(document)["due"] > 60, "one of a thousand hosts has its turn at once"
    ahead.wait_held(host)
    ahead.finish(host)
    # At most a third of what a reboot may be held, once somebody might wait.
    document = road.wait_status(host, lambda said: (ahead.stage(said)["due"] or 0) <= 20, "its turn is near")
    before = host.boots
    host.run("systemctl start locksmithd.service")
    host.wait_up(after=before)
    # Its turn is at most 20 s away, and then there is a pull; without a turn it would be held for 60.
    assert ahead.held_for(host) < 40
    host.registry_stop()
    assert road.wait_ready(host)["driver"]["current"] == TREE


def test_a_host_without_a_gpu_holds_no_reboot() -> None:
    with road.booted(gpu=False) as host:
        ahead.prepare(host)
        road.install(host, ahead.configuration())
        host.systemctl("start", "nvidiad.service")
        road.wait_phase(host, "no-gpu")
        host.update_engine("UPDATE_AVAILABLE", VERSION)
        ahead.finish(host)
        road.wait_status(
            host, lambda said: "no driver is to be staged" in said["reboot"]["reason"], "it knows"
        )
        assert ahead.locks(host) == []
        assert host.nvidiad("reboot-check").rc == 0
        before = host.boots
        host.run("systemctl start locksmithd.service")
        host.wait_up(after=before)
        # Less than logind would wait by itself.
        assert ahead.held_for(host) < 4
        road.wait_phase(host, "no-gpu")
        road.wait_units(host, "kubelet.service")


# -- what update_engine does on bad days, and what others do in its name ------------------------------


def wait_for_driver(host: Host) -> dict[str, Any]:
    """An update waits for the reboot, and the reboot for a driver that nobody has published."""
    host.update_engine("UPDATE_AVAILABLE", VERSION)
    ahead.wait_held(host)
    ahead.finish(host, named=False)
    road.wait_status(host, lambda said: not said["reboot"]["go"], "the reboot waits")
    return ahead.look(host)


def waits_until(host: Host) -> float:
    """When the reboot goes without its driver; what a busy machine adds to that, it adds to some looks."""
    return min(float(ahead.look(host)["reboot"]["until"]) for _ in range(3))


def restarted(host: Host) -> None:
    """From then on it knows that a reboot is due, and not for what."""
    host.systemctl("restart", "update-engine.service")


def killed(host: Host) -> None:
    pid = road.main_pid(host, "update-engine.service")
    host.kill("update-engine.service")
    road.wait_another(host, pid, "update-engine.service")


def repeated(host: Host) -> None:
    """Each of its checks says it once more."""
    for _ in range(20):
        host.update_engine(UPDATED, VERSION)


def empty(host: Host) -> None:
    host.update_engine(UPDATED, "")


def zeros(host: Host) -> None:
    host.update_engine(UPDATED, "0.0.0")
    host.update_engine(UPDATED, "0.0.0.0")


def mute(host: Host) -> None:
    """It gives signals and answers nobody."""
    ahead.spoil(host, "mute")
    host.update_engine(UPDATED, VERSION)
    # That takes so long that the pull, which fails, is due again each time: no such look comes to an end.
    ahead.look(host, over=False)
    ahead.spoil(host, "speak")


def frozen(host: Host) -> None:
    host.kill("update-engine.service", signal.SIGSTOP)
    ahead.look(host, over=False)
    host.kill("update-engine.service", signal.SIGCONT)


def refused(host: Host) -> None:
    """The policy of the bus refuses us."""
    ahead.refuse(host)
    ahead.look(host)
    ahead.refuse(host, everybody=False)


def absent(host: Host) -> None:
    host.systemctl("stop", "update-engine.service")
    ahead.look(host)
    host.systemctl("start", "update-engine.service")


def nameless(host: Host) -> None:
    """It loses its name on the bus and takes it again."""
    ahead.spoil(host, "leave")
    road.wait_status(host, lambda said: said["update"] is None, "the name is gone")
    ahead.look(host)
    ahead.spoil(host, "return")


FAULTS = (restarted, killed, repeated, empty, zeros, mute, frozen, refused, absent, nameless)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_of_update_engine_neither_ends_nor_renews_the_hold(
    still: Host, fault: Callable[[Host], None]
) -> None:
    host = still
    # A look at an update_engine that answers nobody takes long, and the hold is not to end meanwhile. What
    # the limit of logind is raised to for it stays, below the one of another test.
    road.configure(host, ahead.configuration(maximum=110))
    wait_for_driver(host)
    before, given_back, locks = waits_until(host), ahead.released(host), ahead.locks(host)
    assert len(locks) == 1
    fault(host)
    host.wait(lambda: ahead.look(host)["update"], "update_engine answers")
    after = ahead.look(host)
    assert ahead.released(host) == given_back, road.story(host)
    assert ahead.locks(host) == locks
    assert ahead.stage(after)["version"] == VERSION
    assert waits_until(host) == pytest.approx(before, abs=0.5)
    assert after["phase"] == "ready"
    assert host.show("nvidiad.service", "NRestarts") == "0"
    road.publish(host, VERSION, KERNEL)
    document = ahead.wait_stage(host, "staged")
    assert document["reboot"]["go"]
    ahead.wait_held(host, held=False)


def test_a_hold_ends_at_its_maximum_when_update_engine_never_comes_back(still: Host) -> None:
    host = still
    road.configure(host, ahead.configuration(maximum=8))
    wait_for_driver(host)
    host.systemctl("stop", "update-engine.service")
    road.wait_status(host, lambda said: said["update"] is None, "update_engine is gone")
    document = ahead.wait_held(host, held=False)
    assert "as long as is configured" in document["reboot"]["reason"], document["reboot"]
    assert host.nvidiad("reboot-check").rc == 0


def test_an_update_that_is_reset_without_a_signal_is_forgotten_with_the_next_look(still: Host) -> None:
    host = still
    wait_for_driver(host)
    host.run(f"busctl call {ahead.ENGINE} ResetStatus", check=True)
    document = ahead.look(host)
    assert document["stages"] == []
    ahead.wait_held(host, held=False)
    assert host.nvidiad("reboot-check").out == "no other OS is about to be booted\n"


@pytest.mark.parametrize("who", ["", ahead.UNPRIVILEGED], ids=["root", "nobody"])
def test_what_somebody_else_says_in_the_name_of_update_engine_is_not_heard(still: Host, who: str) -> None:
    host = still

    def heard() -> int:
        said = (str(entry.get("NVIDIAD_REASONS")) for entry in host.journal("nvidiad.service"))
        return sum("update_engine has news" in reasons for reasons in said)

    before = heard()
    for _ in range(3):
        host.run(f"{who} {ahead.FAKE}", check=True)
    host.update_engine("CHECKING_FOR_UPDATE")
    operation = "UPDATE_STATUS_CHECKING_FOR_UPDATE"
    document = road.wait_status(host, lambda said: said["update"]["operation"] == operation, operation)
    assert heard() == before + 1
    assert document["stages"] == []
    assert ahead.locks(host) == []


def test_a_fake_does_not_shorten_what_is_known_of_the_real_update(still: Host) -> None:
    host = still
    road.configure(host, ahead.configuration(maximum=110))
    wait_for_driver(host)
    before, given_back = waits_until(host), ahead.released(host)
    host.run(ahead.FAKE, check=True)
    after = ahead.look(host)
    assert (ahead.stage(after)["version"], ahead.released(host)) == (VERSION, given_back)
    assert waits_until(host) == pytest.approx(before, abs=0.5)


def test_an_update_whose_version_nobody_tells_holds_the_reboot_and_says_why(still: Host) -> None:
    host = still
    host.update_engine(UPDATED, "")
    ahead.wait_stage(host, "unknown", "next-unknown")
    ahead.wait_held(host)
    check = host.nvidiad("reboot-check")
    assert check.rc == 75
    assert "does not say which OS it is" in check.out
    # Somebody tells it.
    road.publish(host, VERSION, KERNEL)
    host.write(ahead.NEXT, f"VERSION_ID={VERSION}\nKERNEL={KERNEL}\n")
    ahead.look(host)
    ahead.wait_stage(host, "proven")
    ahead.wait_held(host, held=False)


def test_what_cannot_be_read_is_said_and_holds_no_longer_than_configured(still: Host) -> None:
    host = still
    host.write(ahead.NEXT, "VERSION_ID=../../etc\n")
    host.update_engine(UPDATED, "")
    document = ahead.wait_stage(host, "unknown", "next-unreadable")
    assert ahead.NEXT in ahead.stage(document)["problem"]["sentence"]
    assert document["phase"] == "ready"
    ahead.wait_held(host)
    assert host.nvidiad("reboot-check").rc == 75


def test_the_hold_of_a_second_update_is_counted_anew(still: Host) -> None:
    """Of a host without update_engine, where a file names what comes next."""
    host = still
    host.systemctl("stop", "update-engine.service")
    road.configure(host, ahead.configuration(maximum=8))
    host.write(ahead.NEXT, f"VERSION_ID={VERSION}\nKERNEL={KERNEL}\n")
    first = road.wait_status(host, lambda said: not said["reboot"]["go"], "the reboot waits")["reboot"]
    road.wait_status(host, lambda said: said["reboot"]["go"], "it was held as long as it may be")
    host.run("rm", ahead.NEXT, check=True)
    document = ahead.look(host)
    assert document["stages"] == []
    host.write(ahead.NEXT, f"VERSION_ID={VERSION}\nKERNEL={KERNEL}\n")
    second = road.wait_status(host, lambda said: not said["reboot"]["go"], "it waits again")["reboot"]
    assert second["until"] > first["until"] + 5


def test_a_driver_that_does_not_fit_is_taken_again_when_its_image_is_mended(still: Host) -> None:
    host = still
    road.publish(host, VERSION, "6.6.1-other")
    host.update_engine("UPDATE_AVAILABLE", VERSION)
    ahead.wait_stage(host, "staged")
    ahead.finish(host)
    document = ahead.wait_stage(host, "unfit", "vermagic-mismatch")
    assert not document["reboot"]["go"]
    assert "6.6.1-other" in document["reboot"]["reason"]
    ahead.wait_held(host)
    road.publish(host, VERSION, KERNEL)
    document = ahead.wait_stage(host, "proven")
    assert document["reboot"]["go"]
    ahead.wait_held(host, held=False)


# -- reboot-check -----------------------------------------------------------------------------------


def test_without_the_daemon_the_answer_is_the_same(still: Host) -> None:
    host = still
    ahead.finish(host)
    road.wait_status(host, lambda said: not said["reboot"]["go"], "the reboot waits")
    host.systemctl("stop", "nvidiad.service", "nvidiad.socket")
    check = host.nvidiad("reboot-check")
    assert (check.rc, f"driver {road.DRIVER} for {VERSION}" in check.out) == (75, True), check
    host.run(f"rm {ahead.NEXT}", check=True)
    host.update_engine("IDLE")
    host.wait(lambda: host.nvidiad("reboot-check").rc == 0, "update_engine says that nothing is on disk")
    check = host.nvidiad("reboot-check")
    assert (check.rc, check.out) == (0, "no other OS is about to be booted\n")


def test_a_daemon_that_is_stopped_holds_no_reboot_for_ever(still: Host) -> None:
    host = still
    road.configure(host, ahead.configuration(maximum=4))
    host.systemctl("stop", "nvidiad.service", "nvidiad.socket")
    ahead.finish(host)
    assert host.nvidiad("reboot-check").rc == 75
    host.wait(lambda: host.nvidiad("reboot-check").rc == 0, "the reboot may go", 30)


def test_the_limit_of_logind_is_raised_and_never_lowered(still: Host) -> None:
    host = still

    def limit() -> int:
        said = host.run(f"busctl get-property {ahead.LOGIND} InhibitDelayMaxUSec", check=True)
        return int(said.out.split()[1])

    host.write("/etc/systemd/logind.conf.d/99-kubelet.conf", "[Login]\nInhibitDelayMaxSec=2min\n")
    try:
        host.update_engine("DOWNLOADING", VERSION, progress=0.5)
        ahead.wait_held(host)
        assert limit() == 120_000_000
        host.update_engine("IDLE")
        ahead.wait_held(host, held=False)
    finally:
        host.run("rm", "/etc/systemd/logind.conf.d/99-kubelet.conf", check=True)


# -- which trees stay -------------------------------------------------------------------------------


def trees(host: Host) -> set[str]:
    listed = json.loads(host.nvidiad("list", "--json=short", check=True).out)
    return {str(row["path"]) for row in listed}


OLD = ("3510.2.0", "3602.2.0", "3760.2.0", "3815.2.0")


def test_trees_that_nothing_needs_go_by_number_the_oldest_first(still: Host) -> None:
    host = still
    road.configure(host, ahead.configuration(retention={"automatic": False, "trees": 3}))
    for version in OLD:
        road.put_tree(host, version, "5.15.1-flatcar")
    everything = {ahead.tree(version) for version in (*OLD, RELEASE[0])}
    ahead.look(host)
    assert trees(host) == everything
    road.configure(host, ahead.configuration(retention={"trees": 3}))
    kept = {ahead.tree(version) for version in (*OLD[2:], RELEASE[0])}
    host.wait(lambda: trees(host) == kept, "two are gone")
    ahead.look(host)
    assert trees(host) == kept
    road.configure(host, ahead.configuration(retention={"bytes": "1 kB"}))
    host.wait(lambda: trees(host) == {ahead.tree(RELEASE[0])}, "only what is needed is left")


def test_what_is_needed_now_next_or_after_a_rollback_is_never_removed(host: Host) -> None:
    """By the running OS, by the one that comes, and by the one in the other slot."""
    third = ("4152.1.0", "6.6.60-flatcar")
    needed = {ahead.tree(RELEASE[0]), TREE}
    few = ahead.configuration(retention={"trees": 1})
    road.configure(host, few)
    road.publish(host, VERSION, KERNEL)
    road.publish(host, *third)
    host.update_engine("UPDATE_AVAILABLE", VERSION)
    ahead.wait_stage(host, "staged")
    ahead.look(host)
    assert trees(host) == needed
    ahead.finish(host)
    host.reboot()
    road.wait_ready(host)
    ahead.look(host)
    assert trees(host) == needed, "the OS may go back"
    host.update_engine("UPDATE_AVAILABLE", third[0])
    ahead.wait_stage(host, "staged")
    ahead.look(host)
    # Where the OS goes back to until that update is on disk, its tree stays.
    assert trees(host) == {*needed, ahead.tree(third[0])}
    said = host.nvidiad("gc", check=True).out
    assert said == ""


# -- another driver on the same OS --------------------------------------------------------------------


def changing(host: Host, change: str, **more: object) -> None:
    """Another driver is configured and on disk, and the one that is loaded is in use."""
    road.publish(host, driver=road.OTHER_DRIVER)
    host.kmod_busy("nvidia")
    driver = {"version": road.OTHER_DRIVER, "change": change, **more}
    road.configure(host, ahead.configuration(driver=driver))
    host.wait(lambda: host.exists(ahead.tree(RELEASE[0], road.OTHER_DRIVER)), "it is on disk")


def test_policy_reboot_leaves_everything_as_it_is_until_the_boot(still: Host) -> None:
    host = still
    pid = road.main_pid(host, "kubelet.service")
    changing(host, "reboot")
    document = road.wait_phase(host, "pending-reboot", code="driver-mismatch")
    assert document["driver"]["loaded"] == road.DRIVER
    assert document["driver"]["current"] == ahead.tree(RELEASE[0])
    assert road.main_pid(host, "kubelet.service") == pid
    host.kmod_busy()
    ahead.look(host)
    road.wait_status(host, lambda said: said["driver"]["loaded"] == road.OTHER_DRIVER, "it is swapped")
    road.wait_ready(host)


def test_policy_wait_changes_as_soon_as_nothing_uses_it(still: Host) -> None:
    host = still
    pid = road.main_pid(host, "kubelet.service")
    changing(host, "wait")
    document = road.wait_phase(host, "waiting", code="module-in-use")
    assert document["driver"]["loaded"] == road.DRIVER
    host.kmod_busy()
    # Nothing tells that a device was closed.
    road.wait_status(host, lambda said: said["driver"]["loaded"] == road.OTHER_DRIVER, "it is swapped")
    road.wait_ready(host)
    assert road.main_pid(host, "kubelet.service") == pid


def test_policy_drain_stops_the_gated_units_and_starts_them_again(still: Host) -> None:
    host = still
    changing(host, "drain")
    road.wait_phase(host, "waiting", code="module-in-use")
    road.wait_units(host, "kubelet.service", active="inactive")
    host.kmod_busy()
    road.wait_status(host, lambda said: said["driver"]["loaded"] == road.OTHER_DRIVER, "it is swapped")
    road.wait_ready(host)
    # The kubelet is up a moment before its witness has written.
    host.wait(lambda: road.witnessed(host)[-1]["driver"] == road.OTHER_DRIVER, "it found the other driver")
    road.assert_never_early(host)


def test_a_drain_ends_after_its_time_and_the_change_waits_for_the_boot(still: Host) -> None:
    host = still
    pid = road.main_pid(host, "kubelet.service")
    changing(host, "drain", **{"drain-timeout": 5})
    # It is down for those five seconds only.
    host.wait(lambda: road.main_pid(host, "kubelet.service") != pid, "the kubelet was stopped")
    road.wait_phase(host, "pending-reboot", code="driver-mismatch")
    road.wait_units(host, "kubelet.service")
    assert road.status(host)["driver"]["loaded"] == road.DRIVER
