# SPDX-License-Identifier: Apache-2.0
"""The watch: while a step takes its time, what concerns the reboot is looked at all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Failure
from nvidiad.nouns.model import Memory
from nvidiad.nouns.steps import HoldReboot, RaiseDelay, ReleaseReboot, step_name
from nvidiad.nouns.value import replace
from nvidiad.thought import planner, staging
from nvidiad.verbs.observer import look_ahead

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvidiad.nouns.facts import HostFacts
    from nvidiad.nouns.model import Progress, UpdateStatus
    from nvidiad.nouns.plan import Plan, Status
    from nvidiad.nouns.steps import Step
    from nvidiad.thought.settings import Settings
    from nvidiad.verbs.ports import Log, Ports

_SECONDS = 2.0
"""Between two such looks."""
_AFTER_FAILURE = 30.0


class Watch:
    """Called with every piece of progress, on the one thread that writes to the host.

    An update may begin and be complete while an image is pulled: the lock is taken and given back, and who
    asks whether a reboot may go is told, as if nothing else were going on.
    """

    def __init__(
        self,
        ports: Ports,
        settings: Settings,
        log: Log,
        *,
        now: Callable[[], float],
        seconds: Callable[[], float],
        publish: Callable[[Status], None],
        write: Callable[[Memory, Memory], Memory],
    ) -> None:
        self.memory = Memory()
        self._ports, self._settings, self._log = ports, settings, log
        self._now, self._seconds, self._publish, self._write = now, seconds, publish, write
        self._status: Status | None = None
        self._due = seconds() + _SECONDS

    def begin(self, status: Status, memory: Memory) -> None:
        """The steps of this status's plan are begun."""
        self._status, self.memory = status, memory

    def over(self, tell: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """What tells progress, and watches meanwhile."""

        def told(progress: Progress) -> None:
            tell(progress)
            if self._seconds() >= self._due:
                self._due = self._seconds() + _SECONDS
                self._look()

        return told

    def _look(self) -> None:
        status = self._status
        if status is None or status.plan is None:
            return
        try:
            facts = self._fresh(status.facts)
            # Of the units these facts are old: what a drain has stopped since still runs there.
            self.memory = self._write(self.memory, staging.notice(self.memory, facts))
            seen = planner.look_on(status.plan, facts, self._settings, self.memory, self._now())
            self._tell(status, status.plan, facts, seen)
            for step in seen.steps:
                self._do(step)
        except Failure as failure:
            # What is pulled is not to suffer from it; the next look tells of what still is so.
            self._log.debug("the reboot is not watched for a moment", error=failure.sentence)
            self._due = self._seconds() + _AFTER_FAILURE

    def _fresh(self, facts: HostFacts) -> HostFacts:
        known = facts.next
        update, required = self._ports.updates.status(), self._ports.next.reboot_required()
        news = (_said(update), required) != (_said(known.update), known.reboot_required)
        if not news and not self._settings.stage.next_command:
            # What cannot be read is told as a problem, once.
            try:
                news = self._ports.next.announced() != known.announced
            except Failure:
                news = known.problem is None
        following = known
        if news:
            # Not each time: the slot is mounted for it, and a command is run.
            following = look_ahead(self._ports, self._settings, facts, self.memory)
        uptime, reboot = self._ports.driver.host.uptime(), self._ports.shutdowns.facts()
        return replace(facts, next=following, reboot=reboot, uptime=uptime)

    def _tell(self, status: Status, before: Plan, facts: HostFacts, seen: Plan) -> None:
        plan = replace(before, stages=seen.stages, verdict=seen.verdict)
        self._status = replace(status, facts=facts, plan=plan)
        if _told(plan, facts) != _told(before, status.facts):
            self._publish(self._status)

    def _do(self, step: Step) -> None:
        shutdowns = self._ports.shutdowns
        match step:
            case HoldReboot(why=why):
                shutdowns.hold(why)
            case RaiseDelay(seconds=seconds):
                shutdowns.raise_limit(seconds)
            case ReleaseReboot():
                shutdowns.release()
            case _:
                # nvidiad's own reboot waits until what is under way has come to its end.
                return
        self._log.info("done", what=f"{step.describe()} (meanwhile)", step=step_name(step))


def _told(plan: Plan, facts: HostFacts) -> tuple[object, ...]:
    """What is worth to be published; not what only counts down."""
    stages = tuple((stage.state, stage.next, stage.tree, stage.problem) for stage in plan.stages)
    return plan.verdict.go, plan.verdict.reason, stages, facts.reboot and facts.reboot.held


def _said(update: UpdateStatus | None) -> tuple[str, str] | None:
    """What an updater says, without how far it is."""
    return (update.operation, update.version) if update else None
