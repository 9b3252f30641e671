# SPDX-License-Identifier: Apache-2.0
"""The layer of logind against a real one: delay locks, reboots that wait for them, and logind's limit."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from nvidiad.thought import inhibition
from nvidiad.world.units import GATE
from tests.beds.common import SUITES
from tests.host import road
from tests.unit.test_inhibition import BROKEN, FILES, SPANS, says

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

pytestmark = pytest.mark.host

LOGIND = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
UNIT = "systemd-logind.service"
CONFIGURATION = "/etc/systemd/logind.conf.d"
KUBELET = f"{CONFIGURATION}/99-kubelet.conf"
OURS = f"{CONFIGURATION}/{inhibition.DROP_IN}"
COORDINATOR = "/run/update-engine/coordinator.conf"
WHY = "driver 535.309.01 for 4081.2.0 is not on disk yet"
# A process of its own on the host, which is asked over a socket. It is a unit: what a test starts from
# outside would be stopped by a shutdown in the middle of it, and keep the host's namespaces from ending.
PORTS = """\
import json, socket
from pathlib import Path
from nvidiad.nouns.errors import Failure
from nvidiad.world.bus import Connection
from nvidiad.world.logind import Logind
from nvidiad.world.units import SystemdUnits

bus = Connection()
server = socket.create_server("/run/gate", family=socket.AF_UNIX)
while True:
    asked, _ = server.accept()
    with asked, asked.makefile("rw") as stream:
        port, name, *arguments = json.loads(stream.readline())
        # Made anew for each call, as the daemon does with every configuration.
        units = SystemdUnits(bus, configuration=Path("/etc/systemd/system"))
        made = {"logind": Logind(bus, Path("/")), "units": units}
        named = {"tell": lambda progress: None} if name == "stop" else {}
        try:
            answer = getattr(made[port], name)(*arguments, **named)
            if name == "facts" and answer is not None:
                answer = {field: getattr(answer, field) for field in answer.__match_args__}
        except Failure as failure:
            answer = {"code": failure.code, "sentence": failure.sentence, "retry": failure.retry}
        stream.write(json.dumps(answer))
"""
# A locksmithd as far as its file goes: written beside, locked there, and renamed.
LOCKSMITH = """\
import fcntl, os, time
os.makedirs("/run/update-engine", exist_ok=True)
file = open("/run/update-engine/.coordinator.conf1", "w")
file.write("NAME=locksmithd\\nSTRATEGY=reboot\\nSTATE=reboot-planned")
file.flush()
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.rename(file.name, "/run/update-engine/coordinator.conf")
time.sleep(3600)
"""


class Gate:
    """A host with a process in it that has the adapters of nvidiad."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.install_nvidiad(road.configuration(), enable=False)
        host.write("/etc/bed/gate.py", PORTS)
        self.start()

    def start(self) -> None:
        self.host.run("rm -f /run/gate", check=True)
        self.service("gate", "/opt/nvidiad/bin/python3", "/etc/bed/gate.py")
        self.host.wait(lambda: self.host.exists("/run/gate"), "the adapters listen")

    def service(self, name: str, *command: str) -> None:
        self.host.run("systemd-run", "-q", "--collect", f"--unit={name}", *command, check=True)

    def ask(self, port: str, name: str, *arguments: object) -> Any:
        return json.loads(self._ask(port, name, *arguments))

    def do(self, name: str, *arguments: object) -> None:
        assert self.ask("logind", name, *arguments) is None

    def go(self, name: str) -> None:
        """Do what makes the host reboot at once, which may be quicker than the answer."""
        assert self._ask("logind", name) in (b"null", b"")

    def _ask(self, *asked: object) -> bytes:
        answer = b""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(self.host.path("/run/gate")))
            connection.sendall(json.dumps(asked).encode() + b"\n")
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    answer += part
        return answer

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.ask("logind", "facts")
        return facts

    def listed(self) -> list[list[Any]]:
        """What logind lists of us: what, who, why, mode, uid, pid."""
        said = self.host.run(f"busctl -j call {LOGIND} ListInhibitors", check=True).json()
        return [entry for entry in said["data"][0] if entry[1] == "nvidiad"]

    def wait_unlisted(self) -> None:
        # A lock is given back by closing it, of which logind hears after the calls that wait for it.
        self.host.wait(lambda: self.listed() == [], "logind lists no lock of ours")

    def limit(self) -> float:
        said = self.host.run(f"busctl -j get-property {LOGIND} InhibitDelayMaxUSec", check=True).json()
        return float(said["data"] / 1e6)

    def read_again(self) -> float:
        """Let logind read its configuration; the limit that comes of it."""
        # Its signal handler says so in no way: of two files read one after the other the second one shows.
        for seconds in (7, None):
            if seconds:
                self.host.write("/run/systemd/logind.conf.d/zzzz.conf", says(str(seconds)))
            else:
                self.host.run("rm /run/systemd/logind.conf.d/zzzz.conf", check=True)
            self.host.kill(UNIT, 1)
            if seconds:
                self.host.wait(lambda: self.limit() == seconds, "logind has read its files")  # noqa: B023
        self.host.wait(lambda: self.limit() != 7, "logind has read its files again")
        return self.limit()

    def reset(self) -> None:
        """A logind as it comes from the OS."""
        # It may be started five times in ten seconds.
        self.host.systemctl("reset-failed", UNIT)
        self.do("release")
        self.host.run(f"rm -rf {CONFIGURATION} /run/systemd/logind.conf.d", check=True)
        assert self.read_again() == inhibition.DEFAULT_SECONDS


def booted(suite: str) -> Any:
    return road.booted(suite, docker=False, gpu=False, registries=(), update_engine=False)


@pytest.fixture(scope="module", params=SUITES)
def shared(request: pytest.FixtureRequest) -> Iterator[Gate]:
    with booted(request.param) as host:
        yield Gate(host)


@pytest.fixture
def gate(shared: Gate) -> Gate:
    """One for tests that do not reboot it."""
    shared.reset()
    return shared


@pytest.fixture(params=SUITES)
def fresh(request: pytest.FixtureRequest) -> Iterator[Gate]:
    """One for tests that reboot it."""
    with booted(request.param) as host:
        yield Gate(host)


def test_the_lock_is_a_delay_lock_of_one_name_that_is_taken_once_and_given_back(gate: Gate) -> None:
    assert not gate.facts()["held"]
    gate.do("hold", WHY)
    gate.do("hold", "another reason")
    (entry,) = gate.listed()
    assert entry[:5] == ["shutdown", "nvidiad", WHY, "delay", 0]
    assert entry[5] == int(gate.host.show("gate.service", "MainPID"))
    assert gate.facts()["held"]
    assert not gate.facts()["preparing"]
    gate.do("release")
    gate.do("release")
    gate.wait_unlisted()
    assert not gate.facts()["held"]


def test_programs_that_are_started_do_not_inherit_the_lock(gate: Gate) -> None:
    gate.do("hold", WHY)
    pid = gate.host.show("gate.service", "MainPID")
    links = gate.host.run(f"ls -l /proc/{pid}/fd", check=True).out.splitlines()
    (number,) = [line.split()[-3] for line in links if "/run/systemd/inhibit/" in line]
    flags = gate.host.read(f"/proc/{pid}/fdinfo/{number}").split("flags:")[1].split()[0]
    assert int(flags, 8) & 0o2000000, flags  # O_CLOEXEC


def test_a_reboot_waits_for_the_lock_and_goes_with_it(fresh: Gate) -> None:
    host, before = fresh.host, fresh.host.boots
    fresh.do("raise_limit", 300)
    fresh.do("hold", WHY)
    host.run(f"busctl call {LOGIND} Reboot b false", check=True)
    facts = fresh.facts()
    assert facts["held"]
    assert facts["preparing"]
    assert facts["kind"] == ("reboot" if host.suite == "trixie" else "")
    # Others may ask for the same meanwhile and are refused, which changes nothing.
    again = fresh.ask("logind", "reboot")
    assert (again["code"], again["retry"]) == ("logind-refused", True), again
    assert host.boots == before
    let_go = time.monotonic()
    fresh.go("release")
    host.wait_up(after=before)
    assert time.monotonic() - let_go < 60


def test_logind_ends_the_wait_at_its_limit(fresh: Gate) -> None:
    host, before = fresh.host, fresh.host.boots
    fresh.do("raise_limit", 8)
    fresh.do("hold", WHY)
    asked = time.monotonic()
    host.run("systemctl reboot", check=True)
    host.wait_up(after=before)
    assert 8 <= time.monotonic() - asked < 60


def test_who_holds_the_reboot_and_dies_does_not_hold_it_any_more(fresh: Gate) -> None:
    host, before = fresh.host, fresh.host.boots
    fresh.do("raise_limit", 300)
    fresh.do("hold", WHY)
    host.run(f"busctl call {LOGIND} Reboot b false", check=True)
    assert fresh.facts()["preparing"]
    host.kill("gate.service")
    host.wait_up(after=before, timeout=60)
    # What was raised stays raised.
    assert fresh.limit() == 300


def test_the_host_reboots_when_it_is_asked_to(fresh: Gate) -> None:
    host, before = fresh.host, fresh.host.boots
    fresh.service("stubborn", "systemd-inhibit", "--what=shutdown", "--mode=block", "sleep", "3600")
    host.wait(lambda: "block" in host.run("systemd-inhibit --list --no-pager").out, "somebody blocks")
    if host.suite == "trixie":
        # Since version 257 a block lock binds root, too.
        refused = fresh.ask("logind", "reboot")
        assert (refused["code"], refused["retry"]) == ("logind-refused", True), refused
        assert not fresh.facts()["preparing"]
        host.systemctl("stop", "stubborn.service")
    fresh.go("reboot")
    host.wait_up(after=before)


def test_a_power_off_is_told_from_a_reboot_where_logind_tells(fresh: Gate) -> None:
    host = fresh.host
    fresh.do("raise_limit", 300)
    fresh.do("hold", WHY)
    host.run(f"busctl call {LOGIND} PowerOff b false", check=True)
    facts = fresh.facts()
    assert (facts["preparing"], facts["kind"]) == (True, "poweroff" if host.suite == "trixie" else "")


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_the_lock_is_still_there_after_a_restart_of_logind(gate: Gate, how: str) -> None:
    host = gate.host
    gate.do("hold", WHY)
    before = gate.listed()
    if how == "restart":
        host.systemctl("restart", UNIT)
    else:
        pid = road.main_pid(host, UNIT)
        host.kill(UNIT)
        road.wait_another(host, pid, UNIT)
    # On the bus it is a moment later; a call would wait for it, and facts() only asks who owns the name.
    assert gate.listed() == before
    assert gate.facts()["held"]
    gate.do("hold", WHY)
    assert gate.listed() == before


def test_a_lock_that_logind_has_forgotten_is_not_held_and_taken_again(gate: Gate) -> None:
    gate.do("hold", WHY)
    gate.host.run(f"systemctl stop {UNIT}; rm -r /run/systemd/inhibit; systemctl start {UNIT}", check=True)
    assert gate.listed() == []
    assert not gate.facts()["held"]
    gate.do("hold", WHY)
    assert gate.facts()["held"]
    assert len(gate.listed()) == 1
    gate.do("release")
    gate.wait_unlisted()


def test_a_host_without_logind_has_no_facts_and_none_is_started(gate: Gate) -> None:
    host = gate.host
    try:
        host.systemctl("stop", UNIT)
        assert gate.ask("logind", "facts") is None
        assert host.state(UNIT) == "inactive"
        host.systemctl("mask", "--runtime", UNIT)
        refused = gate.ask("logind", "hold", WHY)
        assert (refused["code"], refused["retry"]) == ("logind-refused", True), refused
    finally:
        host.systemctl("unmask", "--runtime", UNIT)
        host.systemctl("start", UNIT)


# -- the limit ---------------------------------------------------------------------------------------


def test_the_limit_is_raised_and_logind_has_read_it_when_that_is_done(gate: Gate) -> None:
    gate.do("raise_limit", 900)
    assert gate.limit() == 900
    assert gate.host.read(OURS).endswith("[Login]\nInhibitDelayMaxSec=900\n")
    assert oct(gate.host.path(OURS).stat().st_mode & 0o777) == "0o644"
    facts = gate.facts()
    assert (facts["limit"], facts["others"], facts["fixed"]) == (900, 5, False)


def test_a_limit_is_raised_only_when_logind_says_so(gate: Gate) -> None:
    host, answers = gate.host, list[object]()
    host.kill(UNIT, signal.SIGSTOP)
    raising = threading.Thread(target=lambda: answers.append(gate.ask("logind", "raise_limit", 900)))
    try:
        raising.start()
        host.wait(lambda: host.exists(OURS), "the file is written")
        # Well below the time that a call may take.
        raising.join(0.3)
        assert raising.is_alive()
    finally:
        host.kill(UNIT, signal.SIGCONT)
        raising.join(20)
    assert answers == [None]
    assert gate.limit() == 900


def test_a_logind_that_does_not_see_our_file_is_told_of(gate: Gate) -> None:
    host, place = gate.host, f"/run/systemd/system/{UNIT}.d/blind.conf"
    host.run(f"mkdir -p {CONFIGURATION}", check=True)
    host.write(place, f"[Service]\nInaccessiblePaths={CONFIGURATION}\n")
    try:
        host.run(f"systemctl daemon-reload && systemctl restart {UNIT}", check=True)
        refused = gate.ask("logind", "raise_limit", 900)
        assert (refused["code"], refused["retry"]) == ("logind-refused", True), refused
        assert "waits for 5 s, not for 900 s" in refused["sentence"]
    finally:
        host.run(f"rm {place} && systemctl daemon-reload && systemctl restart {UNIT}", check=True)


def test_what_kubelet_wants_less_of_it_gets_too_and_what_it_wants_more_of_it_keeps(gate: Gate) -> None:
    host = gate.host
    host.write(KUBELET, says("30"))
    gate.do("raise_limit", 900)
    assert gate.limit() == 900
    # A kubelet that is configured anew finds less than it wants, and writes its file again.
    host.write(KUBELET, says("20min"))
    assert gate.read_again() == 900
    facts = gate.facts()
    assert (facts["limit"], facts["others"], facts["fixed"]) == (900, 1200, False)
    gate.do("raise_limit", 900)
    assert gate.limit() == 1200
    assert host.read(KUBELET) == says("20min")
    host.run("rm", OURS, check=True)
    assert gate.read_again() == 1200


@pytest.mark.parametrize("value", ["infinity", "1y", "1h 500ms"])
def test_a_limit_that_is_higher_already_is_not_lowered(gate: Gate, value: str) -> None:
    gate.host.write(KUBELET, says(value))
    before = gate.read_again()
    assert gate.facts()["limit"] == gate.facts()["others"] == before
    gate.do("raise_limit", 900)
    assert gate.limit() >= before


def test_a_file_that_is_read_after_ours_has_the_last_word(gate: Gate) -> None:
    gate.host.write(f"{CONFIGURATION}/zz-site.conf", says("20"))
    assert gate.read_again() == 20
    gate.do("raise_limit", 900)
    assert gate.limit() == 20
    facts = gate.facts()
    assert (facts["limit"], facts["others"], facts["fixed"]) == (20, 20, True)


def agrees(gate: Gate) -> None:
    """What we read in logind's files is what logind reads."""
    limit = gate.read_again()
    facts = gate.facts()
    assert facts["others"] == pytest.approx(limit, rel=1e-15)


def test_logind_reads_time_spans_and_files_as_we_do(gate: Gate) -> None:
    # One host for all of them: each is a table's row, and its own test in tests/unit/test_inhibition.py.
    first, second = f"{CONFIGURATION}/10-first.conf", f"{CONFIGURATION}/50-file.conf"
    gate.host.write(first, says("77"))
    for text in SPANS:
        gate.host.write(second, says(text))
        agrees(gate)
        assert gate.limit() == pytest.approx(77 if SPANS[text] is None else SPANS[text], rel=1e-15), text
    for name, (text, limit) in FILES.items():
        gate.host.write(second, text)
        agrees(gate)
        assert gate.limit() == limit, name


def test_logind_takes_the_files_in_the_same_order_as_we_do(gate: Gate) -> None:
    host = gate.host
    main = host.read("/etc/systemd/logind.conf")
    run, etc = "/run/systemd/logind.conf.d", CONFIGURATION
    try:
        for seconds, path in enumerate(
            (
                "/etc/systemd/logind.conf",
                f"{run}/50-a.conf",
                f"{etc}/20-b.conf",
                f"{etc}/50-a.conf",
                f"{run}/60-c.conf",
                # These three are none.
                f"{etc}/.70-d.conf",
                f"{etc}/70-d.conf~",
                f"{etc}/70-d.txt",
            ),
            10,
        ):
            host.write(path, says(str(seconds)))
            agrees(gate)
        assert gate.limit() == 14
        host.run(f"ln -s /dev/null {etc}/60-c.conf", check=True)
        agrees(gate)
        assert gate.limit() == 13
        host.write(f"{etc}/50-a.conf", "")
        agrees(gate)
        assert gate.limit() == 12
        host.write(f"{etc}/15-broken.conf", BROKEN)
        # After that nothing is read: nothing tells that logind has read it, but that it differs.
        host.kill(UNIT, 1)
        host.wait(lambda: gate.limit() == 10, "logind has read its files")
        facts = gate.facts()
        assert (facts["others"], facts["fixed"]) == (10, True)
    finally:
        host.write("/etc/systemd/logind.conf", main)
        host.run(f"rm -r {etc} {run}", check=True)


# -- who else reboots --------------------------------------------------------------------------------


def test_locksmith_is_told_of_for_as_long_as_it_is_alive(gate: Gate) -> None:
    host = gate.host
    assert gate.facts()["locksmith"] == ""
    host.write("/run/locksmith.py", LOCKSMITH)
    gate.service("locksmith", "/usr/bin/python3", "/run/locksmith.py")
    host.wait(lambda: host.exists(COORDINATOR), "locksmith has written its file")
    assert gate.facts()["locksmith"] == "reboot-planned"
    host.systemctl("kill", "--signal=KILL", "locksmith.service")
    host.wait(lambda: host.state("locksmith.service") != "active", "locksmith is dead")
    assert "reboot-planned" in host.read(COORDINATOR)
    assert gate.facts()["locksmith"] == ""


# -- units -------------------------------------------------------------------------------------------


def test_a_unit_is_down_when_its_stop_is_done(gate: Gate) -> None:
    host = gate.host
    host.write(
        "/run/systemd/system/slow.service",
        "[Service]\nExecStart=/bin/sleep 3600\nExecStop=/bin/sleep 1\nRestart=always\n",
    )
    host.run("systemctl daemon-reload && systemctl start slow.service", check=True)
    assert gate.ask("units", "stop", "slow.service") is None
    assert host.state("slow.service") == "inactive"
    assert gate.ask("units", "stop", "slow.service") is None
    refused = gate.ask("units", "stop", "absent.service")
    assert (refused["code"], refused["retry"]) == ("unit-failed", True)
    assert "absent.service" in refused["sentence"]
    assert "stop" in refused["sentence"]


def test_the_bus_bears_any_number_of_configurations(gate: Gate) -> None:
    # Each has adapters of its own on the same connection, of which the bus daemon takes 512 matches.
    for _ in range(520):
        assert gate.ask("units", "stop", "kubelet.service") is None


def test_gates_are_written_without_a_start_of_their_units_and_leave_what_others_have(gate: Gate) -> None:
    host, place = gate.host, "/etc/systemd/system"
    unit, kubelet = "update-engine.service", "kubelet.service"
    host.run(f"systemctl stop {unit}; rm -rf {place}/{unit}.d {place}/{kubelet}.d", check=True)
    host.write(f"{place}/{kubelet}.d/50-other.conf", "[Service]\nNice=1\n")
    gate.ask("units", "write_gates", [kubelet, unit])
    assert gate.ask("units", "gates") == [kubelet, unit]
    assert host.read(f"{place}/{unit}.d/10-nvidia.conf") == GATE
    assert oct(host.path(f"{place}/{unit}.d").stat().st_mode & 0o777) == "0o755"
    assert host.state(unit) == "inactive"
    assert "nvidia.service" in host.show(unit, "Requires").split()
    assert "nvidia.service" in host.show(unit, "After").split()
    gate.ask("units", "write_gates", [])
    assert gate.ask("units", "gates") == []
    assert not host.exists(f"{place}/{unit}.d")
    assert road.listing(host.path(f"{place}/{kubelet}.d")).keys() == {"50-other.conf"}
    assert "nvidia.service" not in host.show(unit, "Requires").split()
    assert host.state(unit) == "inactive"


# -- the daemon --------------------------------------------------------------------------------------


def test_another_configuration_neither_drops_nor_doubles_the_lock_of_the_daemon() -> None:
    def listed() -> int:
        lines = host.run("systemd-inhibit --list --no-legend --no-pager", check=True).out.splitlines()
        return len([line for line in lines if line.startswith("nvidiad ")])

    def text(poll: int) -> str:
        return road.configuration(daemon={"poll": poll}, stage={"spread": 0})

    with road.booted() as host:
        road.install(host, text(3600))
        road.publish(host)
        host.systemctl("start", "nvidiad.service")
        road.wait_ready(host)
        host.update_engine("DOWNLOADING", road.NEXT[0], progress=0.5)
        road.wait_status(host, lambda said: said["reboot"]["held"], "the delay lock is taken")
        pid = road.main_pid(host, "nvidiad.service")
        for poll in (3601, 3602):
            before = road.status(host)["looked"]
            road.configure(host, text(poll))
            road.wait_status(host, lambda said: said["looked"] > before, "nvidiad looks again")  # noqa: B023
            assert listed() == 1
        host.update_engine("IDLE")
        road.wait_status(host, lambda said: not said["reboot"]["held"], "the delay lock is given back")
        assert road.main_pid(host, "nvidiad.service") == pid
        host.wait(lambda: listed() == 0, "logind lists it no more")
