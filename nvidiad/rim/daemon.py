# SPDX-License-Identifier: Apache-2.0
"""The daemon: an event loop that owns descriptors, signals and timers, and one worker that looks."""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from nvidiad.nouns.errors import Code, Failure, Transient
from nvidiad.nouns.model import Phase, Problem
from nvidiad.nouns.value import Value, replace
from nvidiad.thought.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nvidiad.nouns.model import Progress
    from nvidiad.nouns.plan import Status
    from nvidiad.verbs.ports import Log

# After a failure that no plan accounts for (a bug, an unreadable host): look again, but not at once.
_RECOVER_SECONDS = 30.0
_STATUS_SECONDS = 1.0


class Source(Protocol):
    """Something that tells by a descriptor that it is time to look again."""

    def fileno(self) -> int: ...
    def drain(self) -> tuple[str, ...]: ...
    def close(self) -> None: ...


class Looker(Protocol):
    """What the worker runs: verbs.reconcile.Reconciler."""

    def look(self, settings: Settings, *, forced: bool = False) -> Status: ...


class Manager(Protocol):
    """The service manager that started us."""

    def ready(self, status: str) -> None: ...
    def status(self, status: str) -> None: ...
    def reloading(self, monotonic_microseconds: int) -> None: ...
    def stopping(self) -> None: ...
    def alive(self) -> None: ...
    def watchdog_seconds(self) -> float | None: ...


class Publisher(Protocol):
    """Where a status goes: the socket server."""

    def publish(self, status: Status | None, progress: Progress | None) -> None: ...


class Surroundings(Value):
    """All that the daemon is given by app."""

    log: Log
    manager: Manager
    publisher: Publisher
    read_settings: Callable[[], Settings]
    last_good: Callable[[Settings], Settings]
    """What is in force while the configuration is at fault, after the settings before."""
    make_looker: Callable[[Callable[[Status], None], Callable[[Progress], None], Callable[[], bool]], Looker]
    open_sources: Callable[[Settings], Sequence[Source]]
    status_line: Callable[[Status], str]
    jitter: Callable[[], float]
    """A random number in [0, 1): spreads the polls of a fleet."""
    microseconds: Callable[[], int]
    """The monotonic clock."""


class Daemon:
    """Subscribe, look, converge, serve."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._with = surroundings
        self._log = surroundings.log
        self._settings = Settings()
        self._config_problem: Problem | None = None
        self._wake = asyncio.Event()
        self._reasons: list[str] = []
        self._forced = False
        self._stopped = asyncio.Event()
        self._failure: Failure | None = None
        self._status: Status | None = None
        self._progress: Progress | None = None
        self._told = ""
        # One worker: the host has one writer, so there are no locks.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker")
        self._sources: Sequence[Source] = ()
        self._next: asyncio.TimerHandle | None = None
        self._refresh: asyncio.TimerHandle | None = None

    # -- what others may do from the loop's thread

    def poke(self, reason: str, *, forced: bool = False) -> None:
        """Look again; ten pokes while a look is under way make one more look."""
        if reason not in self._reasons:
            self._reasons.append(reason)
        self._forced = self._forced or forced
        self._wake.set()

    async def run(self) -> int:
        """Run until SIGTERM; the exit status. Nonzero when the bus is lost: systemd then starts us anew."""
        loop = self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        self._read_settings()
        # Subscribe first, then look: nothing can happen unseen between the two.
        self._open_sources()
        looker = self._with.make_looker(self._on_status, self._on_progress, self._is_stopping)
        watchdog = loop.create_task(self._keep_alive())
        # Before the first look: it may start a unit that is ordered after us.
        self._with.manager.ready("looking at the host")
        self.poke("start")
        try:
            await self._look_for_ever(looker)
        finally:
            self._with.manager.stopping()
            watchdog.cancel()
            self._close_sources()
        if self._failure:
            self._log.error(self._failure.sentence, code=str(self._failure.code))
            return 1
        return 0

    async def _look_for_ever(self, looker: Looker) -> None:
        while not self._is_stopping():
            await self._wake.wait()
            self._wake.clear()
            reasons, self._reasons = self._reasons, []
            forced, self._forced = self._forced, False
            self._log.debug("looking", reasons=", ".join(reasons))
            if self._is_stopping():
                return
            pause = await self._look(looker, forced=forced)
            if self._next:
                self._next.cancel()
            self._next = self._loop.call_later(pause, self.poke, "time")

    def _is_stopping(self) -> bool:
        return self._stopped.is_set()

    async def _look(self, looker: Looker, *, forced: bool) -> float:
        """One look on the worker; the seconds until the next one without an event."""
        try:
            status = await self._work(lambda: looker.look(self._settings, forced=forced))
        except asyncio.CancelledError:
            return 0.0
        except Failure as failure:
            if failure.code is Code.BUS_LOST:
                self._fail(failure)
            else:
                self._log.error("the look failed", code=str(failure.code), error=failure.sentence)
            return _RECOVER_SECONDS
        except Exception as error:
            # The one place that survives a bug: told with its traceback, and the host is looked at again.
            self._log.error("internal error", code=str(Code.INTERNAL), error=repr(error), exc_info=True)
            return _RECOVER_SECONDS
        self._progress = None
        self._show(status)
        poll = self._settings.daemon.poll * (0.9 + 0.2 * self._with.jitter())
        due = (status.plan.wait, status.plan.look) if status.plan else ()
        return min([poll, *(max(1.0, seconds) for seconds in due if seconds is not None)])

    async def _work(self, do: Callable[[], Status]) -> Status:
        """Run on the worker; raises CancelledError when the daemon stops before the worker does.

        The worker's step is cut off then: every step survives a kill, so a stop need not wait for a pull.
        """
        future = self._loop.run_in_executor(self._worker, do)
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait((future, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if not future.done():
            future.cancel()
        return await future

    # -- events, each of which says no more than: look again

    def _open_sources(self) -> None:
        self._sources = self._with.open_sources(self._settings)
        for source in self._sources:
            self._loop.add_reader(source.fileno(), self._on_source, source)

    def _close_sources(self) -> None:
        for source in self._sources:
            # A bus that is gone has no descriptor any more, and then the process ends anyway.
            if self._failure is None:
                self._loop.remove_reader(source.fileno())
            source.close()
        self._sources = ()

    def _on_source(self, source: Source) -> None:
        try:
            reasons = source.drain()
        except Failure as failure:
            self._fail(failure)
            return
        for reason in reasons:
            self.poke(reason)

    def _on_reload(self) -> None:
        self._with.manager.reloading(self._with.microseconds())
        self._read_settings()
        try:
            # Other units may be watched now.
            self._close_sources()
            self._open_sources()
        except Failure as failure:
            self._fail(failure)
        self._with.manager.ready(self._told or "looking at the host")
        self.poke("configuration read", forced=True)

    def _on_stop(self) -> None:
        self._log.info("stopping")
        self._stopped.set()
        self._wake.set()

    def _fail(self, failure: Failure) -> None:
        """Nothing more can be done in this process."""
        self._failure = failure
        self._stopped.set()
        self._wake.set()

    async def _keep_alive(self) -> None:
        """Answer the watchdog as long as the loop runs; a worker in a long pull is no reason to be shot."""
        seconds = self._with.manager.watchdog_seconds()
        while seconds:
            self._with.manager.alive()
            await asyncio.sleep(seconds / 2)

    # -- configuration

    def _read_settings(self) -> None:
        """Take the configuration, or keep the last good one and say what is wrong with the new."""
        try:
            self._settings = self._with.read_settings()
            self._config_problem = None
        except Failure as failure:
            self._config_problem = Problem(failure.code, failure.sentence, failure.remedy)
            self._settings = self._with.last_good(self._settings)
            self._log.error("the configuration is not used", code=str(failure.code), error=failure.sentence)

    # -- what is shown

    def _on_status(self, status: Status) -> None:
        """From the worker: a new status."""
        self._loop_call(lambda: self._show(status))

    def _on_progress(self, progress: Progress) -> None:
        """From the worker: where a long step stands. Raises when the daemon is stopping."""
        if self._is_stopping():
            raise Transient(Code.INTERNAL, "nvidiad is stopping")
        self._progress = progress
        self._loop_call(self._show_soon)

    def _loop_call(self, what: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(what)

    def _show_soon(self) -> None:
        """Progress comes many times a second; readers get it once."""
        if self._refresh is None:
            self._refresh = self._loop.call_later(_STATUS_SECONDS, self._show_progress)

    def _show_progress(self) -> None:
        self._refresh = None
        self._show(self._status)

    def _show(self, status: Status | None) -> None:
        self._status = self._with_config_problem(status)
        self._with.publisher.publish(self._status, self._progress)
        if self._status is None:
            return
        line = self._with.status_line(self._status)
        if line != self._told:
            self._told = line
            self._with.manager.status(line)

    def _with_config_problem(self, status: Status | None) -> Status | None:
        problem = self._config_problem
        if status is None or problem is None or problem.sentence in status.warnings:
            return status
        warned = replace(status, warnings=(*status.warnings, problem.sentence))
        if self._settings.configured:
            return warned
        return replace(warned, phase=Phase.BLOCKED, summary=problem.sentence, problem=problem)
