# SPDX-License-Identifier: Apache-2.0
"""The daemon's loop with a worker of straw: what wakes it, what it survives and how it ends."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import statistics
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.model import Phase, Progress
from nvidiad.nouns.plan import Plan, Status
from nvidiad.nouns.value import replace
from nvidiad.rim import daemon as rim
from nvidiad.rim.daemon import Daemon, Source, Surroundings
from nvidiad.thought import planner
from nvidiad.thought.settings import Settings
from tests.unit import facts
from tests.unit.world import Quiet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

SETTINGS = facts.settings()
BROKEN = Permanent(
    Code.CONFIG_INVALID, "nvidiad.toml:2: driver.version: expected a driver version", "Correct it."
)


def status(plan: Plan | None = None, settings: Settings = SETTINGS) -> Status:
    return planner.assess(facts.host(), settings, plan or Plan("in force"), now=0.0)


class Worker:
    """What looks: notes each look and does what the test wants in it."""

    def __init__(self) -> None:
        self.looks: list[tuple[Settings, bool]] = []
        self.answers: list[Status | Exception] = []
        self.publish: Callable[[Status], None] = lambda _: None
        self.tell: Callable[[Progress], None] = lambda _: None
        self.stopping: Callable[[], bool] = lambda: False
        self.inside = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.meanwhile: Callable[[], object] = lambda: None

    def look(self, settings: Settings, *, forced: bool = False) -> Status:
        self.looks.append((settings, forced))
        self.inside.set()
        self.meanwhile()
        assert self.go.wait(60)
        answer = self.answers.pop(0) if self.answers else status(settings=settings)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Systemd:
    """The service manager: what it was told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.answered: list[float] = []
        """When the watchdog was answered, by the clock of the loop."""
        self.watchdog: float | None = None

    def ready(self, status: str) -> None:
        self.told.append(f"ready: {status}")

    def status(self, status: str) -> None:
        self.told.append(f"status: {status}")

    def reloading(self, monotonic_microseconds: int) -> None:
        self.told.append(f"reloading at {monotonic_microseconds}")

    def stopping(self) -> None:
        self.told.append("stopping")

    def alive(self) -> None:
        self.told.append("alive")
        self.answered.append(asyncio.get_running_loop().time())

    def watchdog_seconds(self) -> float | None:
        return self.watchdog


class Bell:
    """A source of reasons to look: a byte on a socket."""

    def __init__(self) -> None:
        self.inner, self.outer = socket.socketpair()
        self.inner.settimeout(0)
        self.failure: Failure | None = None
        self.closed = False

    def ring(self, count: int = 1) -> None:
        self.outer.send(b"." * count)

    def fileno(self) -> int:
        return self.inner.fileno()

    def drain(self) -> tuple[str, ...]:
        rung = self.inner.recv(4096)
        if self.failure:
            raise self.failure
        return tuple(f"ring {number}" for number in range(len(rung)))

    def close(self) -> None:
        self.closed = True
        self.inner.close()


@dataclass
class Stage:
    """A daemon and everything that it is given."""

    worker: Worker = field(default_factory=Worker)
    systemd: Systemd = field(default_factory=Systemd)
    log: Quiet = field(default_factory=Quiet)
    bells: list[Bell] = field(default_factory=list)
    readings: list[Settings | Failure] = field(default_factory=lambda: [SETTINGS])
    remembered: Settings = field(default_factory=Settings)
    """The last good configuration of an earlier daemon."""
    shown: list[tuple[Status | None, Progress | None]] = field(default_factory=list)
    subscribed: list[Settings] = field(default_factory=list)
    exit_status: int | None = None

    def publish(self, status: Status | None, progress: Progress | None) -> None:
        self.shown.append((status, progress))

    def read(self) -> Settings:
        found = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        if isinstance(found, Failure):
            raise found
        return found

    def open(self, settings: Settings) -> Sequence[Source]:
        assert self.systemd.told == [] or self.subscribed, "it said READY before it subscribed"
        self.subscribed.append(settings)
        self.bells.append(Bell())
        return (self.bells[-1],)

    def make_worker(
        self,
        publish: Callable[[Status], None],
        tell: Callable[[Progress], None],
        stopping: Callable[[], bool],
    ) -> Worker:
        self.worker.publish, self.worker.tell, self.worker.stopping = publish, tell, stopping
        return self.worker

    def perform(self, play: Callable[[Daemon], Awaitable[None]]) -> None:
        """Run the daemon while the test plays; at the end of the play it is told to stop."""

        async def run() -> None:
            daemon = Daemon(
                Surroundings(
                    log=self.log,
                    manager=self.systemd,
                    publisher=self,
                    read_settings=self.read,
                    last_good=lambda before: before if before.configured else self.remembered,
                    make_looker=self.make_worker,
                    open_sources=self.open,
                    status_line=lambda status: status.summary,
                    jitter=lambda: 0.5,
                    microseconds=lambda: 42,
                )
            )
            running = asyncio.create_task(daemon.run())
            try:
                async with asyncio.timeout(60):
                    await play(daemon)
                    if not running.done():
                        os.kill(os.getpid(), signal.SIGTERM)
                    self.exit_status = await running
            finally:
                self.worker.go.set()
                running.cancel()

        asyncio.run(run())

    async def looked(self, count: int) -> None:
        """Wait until that many looks have begun."""
        await until(lambda: len(self.worker.looks) >= count)

    async def idle(self, daemon: Daemon) -> None:
        """Wait until the daemon waits for something to happen."""
        await until(lambda: daemon._next is not None and not daemon._wake.is_set() and self.shown != [])


async def until(holds: Callable[[], object]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    yield made
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for bell in made.bells:
        bell.inner.close()
        bell.outer.close()


# -- looking ----------------------------------------------------------------------------------------


def test_it_subscribes_says_ready_and_looks(stage: Stage) -> None:
    async def play(daemon: Daemon) -> None:
        await stage.idle(daemon)

    stage.perform(play)
    assert stage.exit_status == 0
    assert stage.worker.looks == [(SETTINGS, False)]
    assert stage.systemd.told == [
        "ready: looking at the host",
        "status: driver 535.309.01 is in force on 3975.2.0",
        "stopping",
    ]
    assert [shown.phase for shown, _ in stage.shown if shown] == [Phase.READY]
    assert [bell.closed for bell in stage.bells] == [True]


def test_ready_is_said_before_the_first_look_ends(stage: Stage) -> None:
    async def play(daemon: Daemon) -> None:
        stage.worker.go.clear()
        await stage.looked(1)
        assert stage.systemd.told == ["ready: looking at the host"]

    stage.perform(play)


def test_ten_events_while_it_is_busy_make_one_more_look(stage: Stage) -> None:
    async def play(daemon: Daemon) -> None:
        stage.worker.go.clear()
        await stage.looked(1)
        for number in range(10):
            daemon.poke(f"reason {number}")
        stage.bells[0].ring(10)
        await until(lambda: len(daemon._reasons) == 20)
        stage.worker.go.set()
        await stage.looked(2)
        await stage.idle(daemon)

    stage.perform(play)
    assert len(stage.worker.looks) == 2
    reasons = [str(fields["reasons"]) for _, event, fields in stage.log.lines if event == "looking"]
    assert reasons[0] == "start"
    assert len(reasons[1].split(", ")) == 20


def test_an_event_of_a_source_makes_a_look_and_is_not_forced(stage: Stage) -> None:
    async def play(daemon: Daemon) -> None:
        await stage.idle(daemon)
        stage.bells[0].ring()
        await stage.looked(2)

    stage.perform(play)
    assert stage.worker.looks == [(SETTINGS, False)] * 2


def test_one_who_asks_among_many_events_makes_the_look_forced_once(stage: Stage) -> None:
    async def play(daemon: Daemon) -> None:
        await stage.idle(daemon)
        daemon.poke("an event")
        daemon.poke("asked by uid 0", forced=True)
        daemon.poke("another event")
        await stage.looked(2)
        await stage.idle(daemon)
        daemon.poke("an event")
        await stage.looked(3)

    stage.perform(play)
    assert [forced for _, forced in stage.worker.looks] == [False, True, False]


@pytest.mark.parametrize(
    ("wait", "pause"),
    # 300 s is the poll, in the middle of its spread.
    [(None, 300.0), (17.0, 17.0), (0.001, 1.0), (5000.0, 300.0)],
    ids=["idle", "retry", "at once", "far away"],
)
def test_the_next_look_without_an_event(stage: Stage, wait: float | None, pause: float) -> None:
    # It may have looked again by the time that this is looked at.
    stage.worker.answers = [status(Plan("later", wait=wait)) for _ in range(100)]

    async def play(daemon: Daemon) -> None:
        now = asyncio.get_running_loop().time
        begun = now()
        await stage.idle(daemon)
        assert daemon._next is not None
        assert begun + pause <= daemon._next.when() <= now() + pause

    stage.perform(play)


def test_time_alone_makes_it_look_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rim, "_RECOVER_SECONDS", 0.01)
    stage.worker.answers = [Transient(Code.COMMAND_FAILED, "try again")]

    async def play(daemon: Daemon) -> None:
        await stage.looked(2)

    stage.perform(play)


# -- failing ----------------------------------------------------------------------------------------


def test_a_fault_of_its_own_is_told_with_its_traceback_and_does_not_stop_it(stage: Stage) -> None:
    stage.worker.answers = [ZeroDivisionError("a bug")]

    async def play(daemon: Daemon) -> None:
        now = asyncio.get_running_loop().time
        begun, pause = now(), rim._RECOVER_SECONDS
        await until(lambda: daemon._next)
        assert daemon._next is not None
        assert begun + pause <= daemon._next.when() <= now() + pause, "it looks again at once, for ever"
        daemon.poke("an event")
        await stage.looked(2)
        await stage.idle(daemon)

    stage.perform(play)
    assert stage.exit_status == 0
    (told,) = [fields for level, event, fields in stage.log.lines if event == "internal error"]
    assert told["code"] == "internal"
    assert "a bug" in str(told["error"])
    assert told["exc_info"]
    assert stage.shown[-1][0] is not None


def test_a_look_that_fails_is_told_and_repeated_later(stage: Stage) -> None:
    stage.worker.answers = [Permanent(Code.READ_ONLY, "'/var/lib/nvidiad' cannot be written")]

    async def play(daemon: Daemon) -> None:
        await until(lambda: daemon._next)
        daemon.poke("an event")
        await stage.idle(daemon)

    stage.perform(play)
    assert stage.exit_status == 0
    assert [fields["code"] for level, _, fields in stage.log.lines if level == "error"] == ["read-only"]


@pytest.mark.parametrize("where", ["source", "worker"])
def test_without_the_bus_it_ends_so_that_systemd_starts_it_anew(stage: Stage, where: str) -> None:
    lost = Transient(Code.BUS_LOST, "the system bus went away")

    async def play(daemon: Daemon) -> None:
        await stage.idle(daemon)
        if where == "source":
            stage.bells[0].failure = lost
            stage.bells[0].ring()
        else:
            stage.worker.answers = [lost]
            daemon.poke("an event")
        await until(lambda: "stopping" in stage.systemd.told)

    stage.perform(play)
    assert stage.exit_status == 1
    assert stage.log.events("error") == ["the system bus went away"]


def test_a_bus_that_is_lost_while_it_works_ends_it_too(stage: Stage) -> None:
    async def play(daemon: Daemon) -> None:
        stage.worker.go.clear()
        await stage.looked(1)
        stage.bells[0].failure = Transient(Code.BUS_LOST, "the system bus went away")
        stage.bells[0].ring()
        await until(lambda: "stopping" in stage.systemd.told)

    stage.perform(play)
    assert stage.exit_status == 1


# -- ending -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_in_the_middle_of_a_look(stage: Stage, number: signal.Signals) -> None:
    async def play(daemon: Daemon) -> None:
        stage.worker.go.clear()
        await stage.looked(1)
        os.kill(os.getpid(), number)
        await until(lambda: "stopping" in stage.systemd.told)
        assert stage.worker.stopping()
        with pytest.raises(Transient):
            stage.worker.tell(Progress("pull-image", "0 of 1 layers"))

    stage.perform(play)
    assert stage.exit_status == 0
    assert len(stage.worker.looks) == 1


def test_nothing_is_looked_at_any_more_when_it_was_asked_to_stop_first(stage: Stage) -> None:
    async def play(daemon: Daemon) -> None:
        await stage.idle(daemon)
        daemon.poke("an event")
        os.kill(os.getpid(), signal.SIGTERM)
        daemon._on_stop()
        await until(lambda: "stopping" in stage.systemd.told)

    stage.perform(play)
    assert len(stage.worker.looks) == 1


def test_the_watchdog_is_answered_twice_in_its_time_and_also_while_the_worker_is_busy(stage: Stage) -> None:
    stage.systemd.watchdog = 0.1

    async def play(daemon: Daemon) -> None:
        stage.worker.go.clear()
        await stage.looked(1)
        await until(lambda: len(stage.systemd.answered) >= 10)

    stage.perform(play)
    # Half the time, and as much for a machine that is busy; one that stands still makes one pause long.
    pauses = [later - earlier for earlier, later in itertools.pairwise(stage.systemd.answered)]
    assert statistics.median(pauses) <= stage.systemd.watchdog
    assert "alive" not in stage.systemd.told[stage.systemd.told.index("stopping") :]


def test_without_a_watchdog_there_are_no_answers(stage: Stage) -> None:
    async def play(daemon: Daemon) -> None:
        await stage.idle(daemon)

    stage.perform(play)
    assert "alive" not in stage.systemd.told


# -- the configuration ------------------------------------------------------------------------------


def test_a_hangup_reads_the_configuration_subscribes_anew_and_looks_at_once(stage: Stage) -> None:
    other = facts.settings('[driver]\nversion = "550.1"')
    stage.readings = [SETTINGS, other]

    async def play(daemon: Daemon) -> None:
        await stage.idle(daemon)
        os.kill(os.getpid(), signal.SIGHUP)
        await stage.looked(2)
        stage.bells[1].ring()
        await stage.looked(3)

    stage.perform(play)
    assert stage.worker.looks == [(SETTINGS, False), (other, True), (other, False)]
    assert stage.subscribed == [SETTINGS, other]
    assert [bell.closed for bell in stage.bells] == [True, True]
    told = stage.systemd.told
    assert told[told.index("reloading at 42") + 1] == "ready: driver 535.309.01 is in force on 3975.2.0"


def test_a_broken_configuration_leaves_the_last_good_one_in_force_and_is_told(stage: Stage) -> None:
    other = facts.settings('[driver]\nversion = "550.1"')
    stage.readings = [SETTINGS, BROKEN, other]

    async def play(daemon: Daemon) -> None:
        await stage.idle(daemon)
        os.kill(os.getpid(), signal.SIGHUP)
        await stage.looked(2)
        await until(lambda: stage.shown[-1][0] and stage.shown[-1][0].warnings)
        last = stage.shown[-1][0]
        assert last is not None
        assert last.phase is Phase.READY
        assert last.warnings == (BROKEN.sentence,)
        os.kill(os.getpid(), signal.SIGHUP)
        await stage.looked(3)
        await until(lambda: stage.shown[-1][0] and not stage.shown[-1][0].warnings)

    stage.perform(play)
    assert [settings for settings, _ in stage.worker.looks] == [SETTINGS, SETTINGS, other]
    assert [fields["error"] for level, _, fields in stage.log.lines if level == "error"] == [BROKEN.sentence]


def test_a_broken_configuration_at_the_start_blocks_and_names_its_faults(stage: Stage) -> None:
    stage.readings = [BROKEN]

    async def play(daemon: Daemon) -> None:
        await stage.idle(daemon)

    stage.perform(play)
    assert stage.exit_status == 0
    assert stage.worker.looks == [(Settings(), False)]
    last = stage.shown[-1][0]
    assert last is not None
    assert last.phase is Phase.BLOCKED
    assert last.problem is not None
    assert (last.problem.code, last.problem.remedy) == (Code.CONFIG_INVALID, "Correct it.")
    assert last.summary == BROKEN.sentence


def test_a_broken_configuration_at_the_start_leaves_that_of_the_last_daemon_in_force(stage: Stage) -> None:
    stage.readings, stage.remembered = [BROKEN], SETTINGS

    async def play(daemon: Daemon) -> None:
        await stage.idle(daemon)

    stage.perform(play)
    assert stage.worker.looks == [(SETTINGS, False)]
    last = stage.shown[-1][0]
    assert last is not None
    assert (last.phase, last.warnings) == (Phase.READY, (BROKEN.sentence,))


def test_a_bus_that_is_lost_at_the_reload_ends_it(stage: Stage) -> None:
    def lost(_settings: Settings) -> Sequence[Source]:
        raise Transient(Code.BUS_LOST, "the system bus cannot be reached")

    async def play(daemon: Daemon) -> None:
        await stage.idle(daemon)
        daemon._with = replace(daemon._with, open_sources=lost)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: "stopping" in stage.systemd.told)

    stage.perform(play)
    assert stage.exit_status == 1


# -- what is shown ----------------------------------------------------------------------------------


def test_progress_is_shown_while_the_worker_works_and_gone_when_it_is_done(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rim, "_STATUS_SECONDS", 0.01)
    begun = status(Plan("'x' is wanted and not on disk"))

    def work() -> None:
        stage.worker.publish(begun)
        for done in range(1000):
            stage.worker.tell(Progress("pull-image", "0 of 1 layers", done, 1000))

    stage.worker.meanwhile = work

    async def play(daemon: Daemon) -> None:
        stage.worker.go.clear()
        last = Progress("pull-image", "0 of 1 layers", 999, 1000)
        await until(lambda: stage.shown and stage.shown[-1] == (begun, last))
        stage.worker.go.set()
        await until(lambda: stage.shown[-1][1] is None)

    stage.perform(play)
    assert len(stage.shown) < 100, "every one of a thousand steps was shown"


def test_systemd_is_told_a_status_once(stage: Stage) -> None:
    async def play(daemon: Daemon) -> None:
        for count in (1, 2, 3):
            daemon.poke("an event")
            await stage.looked(count)
            await stage.idle(daemon)

    stage.perform(play)
    assert len([line for line in stage.systemd.told if line.startswith("status:")]) == 1
