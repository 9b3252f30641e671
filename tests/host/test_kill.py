# SPDX-License-Identifier: Apache-2.0
"""Killed at any step, by SIGKILL or by the power: the next look finishes the job, to the same end."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import pytest

from nvidiad.nouns.steps import Step
from tests.host import road
from tests.host.machine import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.host.bed import Host

KUBELET = "kubelet.service"
_SECONDS = 60.0


@dataclass(frozen=True)
class Kill:
    """A death: of the process of this verb, at its nth step of this name; see standin/nvidiad_killer.py."""

    verb: str
    step: str
    at: str | float
    nth: int = 1

    def __str__(self) -> str:
        at = self.at if isinstance(self.at, str) else f"{self.at} s into"
        return f"{self.verb}: {at} {self.step}{f' no. {self.nth}' if self.nth > 1 else ''}".replace(" ", "_")


# The road from nothing, and what the daemon does on it.
DAEMON = (
    *(Kill("run", "write-gates", at) for at in ("before", "change 1", "change 2", "after")),
    *(Kill("run", "pull-image", at) for at in ("before", 0.1, "after")),
    *(Kill("run", "install-tree", at) for at in ("before", 0.05, 0.3, "after")),
    *(Kill("run", "start-unit", at) for at in ("before", 0.1, "after")),
    *(Kill("run", "start-unit", at, 2) for at in ("before", "after")),
)
# The tree is on disk, nothing else is. After one step is before the next.
ACTIVATION = (
    *(Kill("activate", "select-tree", at) for at in ("before", "change 1", "change 2", "after")),
    *(Kill("activate", "configure-linker", at) for at in ("change 1", "change 2", "after")),
    *(Kill("activate", "refresh-linker-cache", at) for at in ("change 1", 0.002, "after")),
    *(Kill("activate", "set-firmware-path", at) for at in ("change 1", "after")),
    *(Kill("activate", "load-host-modules", at) for at in ("after",)),
    *(Kill("activate", "load-module", at) for at in ("change 1", "after")),
    *(Kill("activate", "load-module", "after", nth) for nth in (2, 3)),
    *(Kill("activate", "make-nodes", at) for at in ("change 2", "change 7", "after")),
    *(Kill("activate", "check-driver", at) for at in ("after",)),
)
# Everything is in force, and somebody stops nvidia.service.
DEACTIVATION = (
    *(Kill("deactivate", "unload-module", "before", nth) for nth in (1, 2, 3)),
    *(Kill("deactivate", "remove-nodes", at) for at in ("before", "change 4", "after")),
    *(Kill("deactivate", "set-firmware-path", at) for at in ("change 1", "after")),
    *(Kill("deactivate", "configure-linker", at) for at in ("before", "after")),
    # With this step the process ends, so a time within it might come too late.
    *(Kill("deactivate", "refresh-linker-cache", at) for at in ("before", "change 1", "after")),
)
# Everything is in force, and a node is gone.
RELOAD = tuple(Kill("run", "reload-unit", at) for at in ("before", 0.1, "after"))
OVERLAY = (
    *(Kill("activate", "mount-overlay", at) for at in ("before", "change 1", "after")),
    *(Kill("deactivate", "unmount-overlay", at) for at in ("before", "after")),
)
# The driver is in force, and an update comes whose driver is in the registry.
AHEAD = (
    *(Kill("run", "raise-delay", at) for at in ("before", "change 1", "after")),
    *(Kill("run", "hold-reboot", at) for at in ("before", "after")),
    *(Kill("run", "pull-image", at) for at in ("before", "after")),
    *(Kill("run", "install-tree", at) for at in ("before", 0.1, "after")),
    *(Kill("run", "release-reboot", at) for at in ("before", "after")),
)
RENEWAL = tuple(Kill("run", "renew-tree", at) for at in (0.2, "after"))
REMOVAL = tuple(Kill("run", "remove-tree", at) for at in ("before", "change 1", "after"))
DRAIN = tuple(Kill("run", "stop-unit", at) for at in ("before", "after"))
REBOOT = tuple(Kill("run", "reboot-host", at) for at in ("before", "after"))
POWER = (
    Kill("run", "write-gates", "change 2"),
    Kill("run", "pull-image", 0.1),
    Kill("run", "install-tree", 0.2),
    Kill("run", "install-tree", "after"),
    Kill("run", "start-unit", "before"),
    Kill("activate", "select-tree", "change 2"),
    Kill("activate", "configure-linker", "change 2"),
    Kill("activate", "refresh-linker-cache", 0.002),
    Kill("activate", "set-firmware-path", "change 1"),
    Kill("activate", "load-host-modules", "after"),
    Kill("activate", "load-module", "after", 2),
    Kill("activate", "make-nodes", "change 4"),
    Kill("activate", "check-driver", "after"),
)
POWER_IN_FORCE = (
    Kill("run", "reload-unit", "before"),
    Kill("deactivate", "unload-module", "before", 2),
    Kill("deactivate", "remove-nodes", "after"),
)
POWER_OVERLAY = (Kill("activate", "mount-overlay", "after"), Kill("deactivate", "unmount-overlay", "before"))
POWER_AHEAD = (
    *(Kill("run", step, "change 1") for step in ("raise-delay", "remove-tree")),
    *(Kill("run", step, "after") for step in ("hold-reboot", "release-reboot", "renew-tree", "stop-unit")),
    Kill("run", "reboot-host", "before"),
)


def test_the_tables_have_every_step_there_is() -> None:
    from nvidiad.nouns.steps import step_name

    ahead = (*AHEAD, *RENEWAL, *REMOVAL, *DRAIN, *REBOOT)
    killed = {kill.step for kill in (*DAEMON, *ACTIVATION, *DEACTIVATION, *RELOAD, *OVERLAY, *ahead)}
    cut = {kill.step for kill in (*POWER, *POWER_IN_FORCE, *POWER_OVERLAY, *POWER_AHEAD)}
    assert killed == cut == {step_name(kind.__new__(kind)) for kind in get_args(Step)}


# -- the victim ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Victim:
    """A host whose nvidiad can be killed at a step, and how it looks when nobody kills it."""

    host: Host
    whole: dict[str, object]

    def arm(self, kill: Kill, *, power: bool = False) -> None:
        wish = {"verb": kill.verb, "step": kill.step, "nth": kill.nth, "at": kill.at, "power": power}
        self.host.write("/run/kill-at.tmp", json.dumps(wish))
        self.host.path("/run/kill-at.tmp").rename(self.host.path("/run/kill-at"))

    def wait_hit(self) -> None:
        try:
            self.host.wait(lambda: self.host.exists("/run/kill-hit"), "the process was killed", _SECONDS)
        except CommandError as error:
            pytest.fail(f"{error}\n{road.story(self.host)}", pytrace=False)

    def _look(self) -> dict[str, object]:
        try:
            return road.end_state(self.host)
        except FileNotFoundError as error:
            # It changes while it is looked at.
            return {"missing": str(error)}

    def wait_whole(self, *, gated: bool = True) -> None:
        """Wait until the host is as an undisturbed one; no gated unit was early on the way."""
        deadline = time.monotonic() + _SECONDS
        while (now := self._look()) != self.whole:
            if time.monotonic() > deadline:
                print(road.story(self.host))
                assert now == self.whole
            time.sleep(0.1)
        road.wait_phase(self.host, "ready")
        if gated:
            road.assert_never_early(self.host)


def prepare(host: Host, config: str, *, bulk: int = 0) -> Victim:
    """A host on which nvidiad can be killed at a step."""
    road.install(host, config)
    road.killable(host)
    road.publish(host, bulk=bulk)
    road.rewind(host, trees=False)
    host.systemctl("start", "nvidiad.socket", "nvidiad.service")
    road.wait_ready(host)
    looks = [road.end_state(host)]

    def rests() -> bool:
        looks.append(road.end_state(host))
        return looks[-1] == looks[-2]

    host.wait(rests, "nothing moves any more")
    return Victim(host, looks[-1])


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with road.booted() as host:
        yield prepare(host, road.configuration())


@pytest.fixture(scope="module")
def layered() -> Iterator[Victim]:
    with road.booted() as host:
        yield prepare(host, road.configuration(install={"exposure": "overlay"}))


@pytest.fixture(scope="module")
def large() -> Iterator[Victim]:
    """One with a driver that takes its time to be installed."""
    with road.booted() as host:
        yield prepare(host, road.configuration(), bulk=64 << 20)


# -- the tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", DAEMON, ids=str)
def test_the_daemon_is_killed_on_the_road_from_nothing(victim: Victim, kill: Kill) -> None:
    road.rewind(victim.host, trees=False)
    victim.arm(kill)
    victim.host.systemctl("start", "--no-block", "nvidiad.socket", "nvidiad.service")
    victim.wait_hit()
    victim.wait_whole()
    assert int(victim.host.show("nvidiad.service", "NRestarts")) == 1


@pytest.mark.parametrize("kill", ACTIVATION, ids=str)
def test_activation_is_killed(victim: Victim, kill: Kill) -> None:
    road.rewind(victim.host, trees=True)
    victim.arm(kill)
    victim.host.systemctl("start", "--no-block", "nvidiad.socket", "nvidiad.service")
    victim.wait_hit()
    victim.wait_whole()
    assert victim.host.show("nvidiad.service", "NRestarts") == "0"


@pytest.mark.parametrize("kill", DEACTIVATION, ids=str)
def test_deactivation_is_killed(victim: Victim, kill: Kill) -> None:
    stop_and_kill(victim, kill)


@pytest.mark.parametrize("kill", RELOAD, ids=str)
def test_the_daemon_is_killed_while_it_puts_a_node_back(victim: Victim, kill: Kill) -> None:
    host = victim.host
    # A new one: the steps of a process are counted from its start.
    host.systemctl("restart", "nvidiad.service")
    road.wait_ready(host)
    host.run("rm -f /run/kill-*", check=True)
    pid = road.main_pid(host, KUBELET)
    # Before there is anything to do: whatever comes makes it look.
    victim.arm(kill)
    host.run("rm /dev/nvidia0", check=True)
    host.nvidiad("reconcile")
    victim.wait_hit()
    victim.wait_whole()
    assert road.main_pid(host, KUBELET) == pid


@pytest.mark.parametrize("kill", OVERLAY, ids=str)
def test_the_overlay_is_mounted_and_taken_off_all_the_same(layered: Victim, kill: Kill) -> None:
    if kill.verb == "deactivate":
        stop_and_kill(layered, kill)
    else:
        road.rewind(layered.host, trees=True)
        layered.arm(kill)
        layered.host.systemctl("start", "--no-block", "nvidiad.socket", "nvidiad.service")
        layered.wait_hit()
        layered.wait_whole()


def stop_and_kill(victim: Victim, kill: Kill) -> None:
    stop_and_wait_for_the_hit(victim, kill, power=False)
    victim.wait_whole()


def stop_and_wait_for_the_hit(victim: Victim, kill: Kill, *, power: bool) -> None:
    host = victim.host
    host.systemctl("start", "nvidiad.socket", "nvidiad.service")
    road.wait_ready(host)
    host.run("rm -f /run/kill-*", check=True)
    victim.arm(kill, power=power)
    host.systemctl("stop", "--no-block", "nvidia.service")
    victim.wait_hit()


# As soon as the installer has begun to lay the tree down; `ls` would take longer than a small tree does.
# It stands still then until it is killed, which needs two starts of a slow program.
_AT_WORK = """
end=$((SECONDS + 30))
until [ $SECONDS -gt $end ]; do for p in /opt/nvidia/*/.*.partial; do [ ! -e "$p" ] || break 2; done; done
for f in $(find /sys/fs/cgroup -path '*docker-*.scope/cgroup.freeze'); do echo 1 >$f; done
"""


@pytest.mark.parametrize("both", [False, True], ids=["alone", "with nvidiad"])
def test_the_installers_container_is_killed(large: Victim, both: bool) -> None:  # noqa: FBT001
    host = large.host
    road.rewind(host, trees=False)
    host.systemctl("start", "--no-block", "nvidiad.socket", "nvidiad.service")
    nvidiad = "systemctl kill --signal=KILL nvidiad.service" if both else "true"
    killed = host.run(f"{_AT_WORK} {nvidiad}; docker ps -q | xargs docker kill", check=True)
    assert killed.out.strip(), "no installer was at work"
    large.wait_whole()


@pytest.mark.parametrize("kill", POWER, ids=str)
def test_the_power_is_cut(victim: Victim, kill: Kill) -> None:
    host = victim.host
    road.rewind(host, trees=kill.verb == "activate")
    victim.arm(kill, power=True)
    host.systemctl("start", "--no-block", "nvidiad.socket", "nvidiad.service")
    victim.wait_hit()
    host.power_cut()
    # A gate that was not yet written cannot hold anything at the next boot.
    victim.wait_whole(gated=kill.step != "write-gates")
    assert len(road.wait_witnessed(host, 1)) == 1


@pytest.mark.parametrize("kill", POWER_IN_FORCE, ids=str)
def test_the_power_is_cut_where_the_driver_is_in_force(victim: Victim, kill: Kill) -> None:
    if kill.verb == "deactivate":
        stop_and_wait_for_the_hit(victim, kill, power=True)
    else:
        host = victim.host
        host.systemctl("start", "nvidiad.socket")
        host.systemctl("restart", "nvidiad.service")
        road.wait_ready(host)
        host.run("rm -f /run/kill-*", check=True)
        victim.arm(kill, power=True)
        host.run("rm /dev/nvidia0", check=True)
        host.nvidiad("reconcile")
        victim.wait_hit()
    victim.host.power_cut()
    victim.wait_whole()


@pytest.mark.parametrize("kill", POWER_OVERLAY, ids=str)
def test_the_power_is_cut_at_the_overlay(layered: Victim, kill: Kill) -> None:
    if kill.verb == "deactivate":
        stop_and_wait_for_the_hit(layered, kill, power=True)
    else:
        road.rewind(layered.host, trees=True)
        layered.arm(kill, power=True)
        layered.host.systemctl("start", "--no-block", "nvidiad.socket", "nvidiad.service")
        layered.wait_hit()
    layered.host.power_cut()
    layered.wait_whole()


# -- what comes next -------------------------------------------------------------------------------

_NEXT = "/run/nextos"
_STAGE: Mapping[str, object] = {"spread": 0, "next-file": _NEXT}


@dataclass(frozen=True)
class Ahead:
    """A host in force that looks ahead; every case begins with no update in sight."""

    victim: Victim

    def begin(self, *, automatic: bool = False) -> None:
        """Back to where no update is known, with a new daemon."""
        host = self.victim.host
        host.update_engine("IDLE")
        host.run(f"rm -f /run/kill-* {_NEXT} /etc/systemd/logind.conf.d/99-nvidiad.conf", check=True)
        host.run("systemctl stop nvidiad; systemctl kill -s HUP systemd-logind", check=True)
        host.run(f"rm -rf /opt/nvidia/*/{road.NEXT[0]} /opt/nvidia/{road.OTHER_DRIVER}", check=True)
        host.run("docker images -q | xargs -r docker rmi -f")
        # That it has rebooted for this system before, for one.
        host.run("rm -rf /var/lib/nvidiad/*", check=True)
        made = road.configuration(stage=_STAGE, reboot={"automatic": automatic})
        host.write("/etc/nvidiad/nvidiad.toml", made)
        host.systemctl("start", "nvidiad.socket", "nvidiad.service")
        road.wait_ready(host)

    def wait_stage(self, state: str) -> dict[str, object]:
        def holds(said: dict[str, list[dict[str, str]]]) -> bool:
            return bool(said["stages"]) and said["stages"][0]["state"] == state

        return road.wait_status(self.victim.host, holds, f"the stage is {state}")


@pytest.fixture(scope="module")
def ahead() -> Iterator[Ahead]:
    with road.booted() as host:
        victim = prepare(host, road.configuration(stage=_STAGE))
        road.publish(host, *road.NEXT)
        yield Ahead(victim)


@pytest.mark.parametrize("kill", AHEAD, ids=str)
def test_the_daemon_is_killed_while_it_stages(ahead: Ahead, kill: Kill) -> None:
    host = ahead.victim.host
    ahead.begin()
    ahead.victim.arm(kill)
    host.update_engine("UPDATE_AVAILABLE", road.NEXT[0])
    ahead.victim.wait_hit()
    ahead.wait_stage("staged")
    road.wait_status(host, lambda said: not said["reboot"]["held"], "it holds no lock")
    shown = "systemd-inhibit --list --no-legend --no-pager"
    # systemd and logind see a moment later that it was let go.
    host.wait(lambda: "nvidiad" not in host.run(shown, check=True).out, "no lock is left behind")
    assert host.run("find /opt/nvidia -name '*.partial'").out == ""


@pytest.mark.parametrize("kill", RENEWAL, ids=str)
def test_the_daemon_is_killed_while_it_renews_a_tree(ahead: Ahead, kill: Kill) -> None:
    host = ahead.victim.host
    ahead.begin()
    road.publish(host, road.NEXT[0], "6.6.1-other")
    host.update_engine("UPDATE_AVAILABLE", road.NEXT[0])
    ahead.wait_stage("staged")
    road.publish(host, *road.NEXT)
    ahead.victim.arm(kill)
    host.write(_NEXT, f"VERSION_ID={road.NEXT[0]}\nKERNEL={road.NEXT[1]}\n")
    host.update_engine("UPDATED_NEED_REBOOT", road.NEXT[0])
    ahead.victim.wait_hit()
    ahead.wait_stage("proven")


@pytest.mark.parametrize("kill", REMOVAL, ids=str)
def test_the_daemon_is_killed_while_it_removes_a_tree(ahead: Ahead, kill: Kill) -> None:
    host = ahead.victim.host
    ahead.begin()
    old = road.put_tree(host, "1000.0.0", "5.0.0")
    ahead.victim.arm(kill)
    road.configure(host, road.configuration(stage=_STAGE, retention={"trees": 1}))
    ahead.victim.wait_hit()
    host.wait(lambda: not host.exists(old), "the old tree is gone")
    road.wait_ready(host)
    # It loses its name first.
    host.wait(lambda: host.run("find /opt/nvidia -name '*.partial'").out == "", "nothing of it is left")


def wait_loaded(host: Host, driver: str) -> None:
    def holds(said: dict[str, dict[str, str]]) -> bool:
        return bool(said["driver"]) and said["driver"]["loaded"] == driver

    road.wait_status(host, holds, f"driver {driver} is loaded")


@pytest.mark.parametrize("kill", DRAIN, ids=str)
def test_the_daemon_is_killed_while_it_drains(ahead: Ahead, kill: Kill) -> None:
    host = ahead.victim.host
    ahead.begin()
    road.publish(host, driver=road.OTHER_DRIVER)
    host.kmod_busy("nvidia")
    try:
        ahead.victim.arm(kill)
        changed = road.configuration(driver=road.OTHER_DRIVER, stage=_STAGE).replace(
            "[driver]\n", '[driver]\nchange = "drain"\n'
        )
        road.configure(host, changed)
        ahead.victim.wait_hit()
        host.wait(lambda: host.state(KUBELET) == "inactive", "the kubelet is stopped")
    finally:
        host.kmod_busy()
    wait_loaded(host, road.OTHER_DRIVER)
    road.wait_ready(host)
    road.configure(host, road.configuration(stage=_STAGE))
    wait_loaded(host, road.DRIVER)


@pytest.mark.parametrize("kill", REBOOT, ids=str)
def test_the_daemon_is_killed_while_it_reboots_the_host(ahead: Ahead, kill: Kill) -> None:
    host = ahead.victim.host
    ahead.begin(automatic=True)
    before = host.boots
    host.write(_NEXT, f"VERSION_ID={road.NEXT[0]}\nKERNEL={road.NEXT[1]}\n")
    ahead.victim.arm(kill)
    host.update_engine("UPDATED_NEED_REBOOT", road.NEXT[0])
    host.wait_up(after=before)
    road.wait_ready(host)


@pytest.mark.parametrize("kill", POWER_AHEAD, ids=str)
def test_the_power_is_cut_while_it_looks_ahead(ahead: Ahead, kill: Kill) -> None:
    host = ahead.victim.host
    ahead.begin(automatic=kill.step == "reboot-host")
    lead_to(ahead, kill)
    ahead.victim.wait_hit()
    host.power_cut()
    road.wait_ready(host)
    if kill.step == "remove-tree":
        # Which begins when it is said that the driver is ready.
        host.wait(lambda: not host.exists(f"/opt/nvidia/{road.DRIVER}/1000.0.0"), "the old tree is gone")
    host.wait(lambda: host.run("find /opt/nvidia -name '*.partial'").out == "", "nothing half done is left")
    road.assert_nothing_half(host)


def lead_to(ahead: Ahead, kill: Kill) -> None:
    """What makes nvidiad come to a step, at which its power will be cut."""
    host = ahead.victim.host

    def arm() -> None:
        ahead.victim.arm(kill, power=True)

    match kill.step:
        case "remove-tree":
            road.put_tree(host, "1000.0.0", "5.0.0")
            arm()
            road.configure(host, road.configuration(stage=_STAGE, retention={"trees": 1}))
        case "stop-unit":
            road.publish(host, driver=road.OTHER_DRIVER)
            host.kmod_busy("nvidia")
            arm()
            changed = road.configuration(driver=road.OTHER_DRIVER, stage=_STAGE)
            road.configure(host, changed.replace("[driver]\n", '[driver]\nchange = "drain"\n'))
        case "renew-tree":
            road.publish(host, road.NEXT[0], "6.6.1-other")
            host.update_engine("UPDATE_AVAILABLE", road.NEXT[0])
            ahead.wait_stage("staged")
            road.publish(host, *road.NEXT)
            arm()
            host.write(_NEXT, f"VERSION_ID={road.NEXT[0]}\nKERNEL={road.NEXT[1]}\n")
            host.update_engine("UPDATED_NEED_REBOOT", road.NEXT[0])
        case "reboot-host":
            arm()
            host.write(_NEXT, f"VERSION_ID={road.NEXT[0]}\nKERNEL={road.NEXT[1]}\n")
            host.update_engine("UPDATED_NEED_REBOOT", road.NEXT[0])
        case _:
            arm()
            host.update_engine("UPDATE_AVAILABLE", road.NEXT[0])
