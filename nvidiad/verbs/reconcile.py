# SPDX-License-Identifier: Apache-2.0
"""Reconcile: observe, decide, act, and again, until the plan is empty, waits or failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Attempt, Kind, Memory, Origin, Phase, Problem, problem_of
from nvidiad.nouns.steps import InstallTree, PullImage, RenewTree, StartUnit
from nvidiad.nouns.value import replace
from nvidiad.thought import backoff, companions, cuda, gate, planner, retention, surroundings
from nvidiad.verbs.engine import Engine
from nvidiad.verbs.observer import last_activation, observe
from nvidiad.verbs.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvidiad.nouns.facts import HostFacts
    from nvidiad.nouns.model import Progress
    from nvidiad.nouns.plan import Plan, Report, Status
    from nvidiad.thought.settings import Settings
    from nvidiad.verbs.ports import Log, Ports

# A look that leads to a plan leads to another look. The bound is for bugs: the road of a first install is
# gates, fetch, driver unit, companions.
_ROUNDS = 10


# Failures that keep nobody from the GPU: a gate that is not written, a tree that is not removed, logind's.
_BESIDE = ("gates", "remove ", gate.RETRY_KEY, gate.REBOOT_KEY)
# Failures that a driver in force does not end.
_LASTING = ("start ", "stop ", "reload ", "gates", "again ", "remove ", gate.RETRY_KEY, gate.REBOOT_KEY)
# What puts the CDI specification right; whether it did, the next look says.
_DESCRIBING = (f"start {companions.CDI_UNIT}", f"reload {companions.CDI_UNIT}")
_UNHELPED = Problem(
    Code.CDI_FAILED,
    f"{companions.CDI_UNIT} ended well, and the CDI specification is still another",
    "systemctl reload nvidiad",
    retry=True,
)


class Reconciler:
    """One writer to the host: the daemon's worker calls `look`, one call at a time."""

    def __init__(
        self,
        ports: Callable[[Settings], Ports],
        log: Log,
        *,
        now: Callable[[], float],
        seconds: Callable[[], float],
        tell: Callable[[Progress], None],
        publish: Callable[[Status], None],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._ports_for = ports
        self._log = log
        self._seconds = seconds
        self._report_progress = tell
        self._now = now
        self._publish = publish
        self._stopping = stopping
        self._ports: Ports
        self._report: Report | None = None
        self._told: tuple[str, str] | None = None
        self._unwritten: tuple[Memory, Problem] | None = None
        """What could not be written down, and why: without it, nobody would know how long a reboot waits."""

    def look(self, settings: Settings, *, forced: bool = False) -> Status:
        """Look and act until nothing is left to do now; `forced` makes due what waits for a later try."""
        ports = self._ports = self._ports_for(settings)
        watch = Watch(
            ports,
            settings,
            self._log,
            now=self._now,
            seconds=self._seconds,
            publish=self._publish,
            write=self._write,
        )
        engine = Engine(
            ports,
            self._log,
            seconds=self._seconds,
            tell=watch.over(self._report_progress),
            modules=settings.driver.modules,
        )
        memory = self._unwritten[0] if self._unwritten else ports.driver.memories.read()
        if forced:
            memory = backoff.forgive(memory)
        for _ in range(_ROUNDS):
            facts = observe(ports, settings, memory)
            memory = self._write(memory, _due(planner.notice(memory, facts, settings), facts, settings))
            plan = planner.decide(facts, settings, memory, self._now())
            status = self._assess(facts, settings, plan, memory)
            # First: who publishes tells beside a status what is remembered, and looks for that once.
            memory = self._learn(memory, status)
            self._publish(status)
            self._tell(plan, status)
            if not plan.steps or self._stopping():
                return status
            memory = self._intend(memory, planner.intend(memory, facts, plan.steps))
            watch.begin(status, memory)
            self._report = engine.execute(plan, stopping=self._stopping)
            memory = self._remember(watch.memory, facts, settings, self._report, engine)
        self._log.warning("the plan does not come to an end, looking again later", rounds=_ROUNDS)
        return status

    def _assess(self, facts: HostFacts, settings: Settings, plan: Plan, memory: Memory) -> Status:
        status = replace(planner.assess(facts, settings, plan, now=self._now()), report=self._report)
        said = [*status.warnings, *_beside(memory)]
        if self._unwritten is not None:
            said.append(f"what nvidiad has to remember is not written down: {self._unwritten[1].sentence}")
        return replace(status, warnings=tuple(said))

    def _tell(self, plan: Plan, status: Status) -> None:
        """One line per plan with its reason; the same news twice is no news."""
        news = (plan.reason, status.summary)
        if news == self._told and not plan.steps:
            return
        self._told = news
        fields = {"phase": str(status.phase), "steps": len(plan.steps)}
        if plan.steps:
            self._log.info("plan", what=plan.reason, **fields)
        elif plan.problem:
            remedy = plan.problem.remedy
            self._log.warning(plan.problem.sentence, code=str(plan.problem.code), remedy=remedy, **fields)
        else:
            self._log.info(status.summary, **fields)

    def _learn(self, memory: Memory, status: Status) -> Memory:
        """Remember the tree that was seen ready, and forget what failed on the way to it."""
        if status.phase is not Phase.READY or status.facts.driver.current is None:
            return memory
        still = cuda.retry_key(status.cuda.reference) if status.cuda and status.cuda.problem else None
        ahead = {stage.reference for stage in status.plan.stages} if status.plan else set()
        kept = tuple(
            a
            for a in memory.attempts
            if a.reference.startswith(_LASTING) or a.reference == still or a.reference in ahead
        )
        return self._write(memory, replace(good(memory, status.facts.driver.current), attempts=kept))

    def _remember(
        self, memory: Memory, facts: HostFacts, settings: Settings, report: Report, engine: Engine
    ) -> Memory:
        """Count what failed and forget the failures of what worked."""
        if self._stopping():
            return memory
        after = memory
        for result in report.results:
            key = planner.retry_key(result.step, facts, settings)
            if key is None:
                continue
            # An activation may fail and let its unit come up all the same: `when-missing = "start"`.
            told = last_activation(self._ports.activations) if key.startswith("activate ") else None
            if key in _DESCRIBING and not result.problem:
                # It goes by the configuration on disk, which may be another: `_due` forgets what helped.
                told = _UNHELPED
            if problem := told or result.problem:
                after = backoff.failed(after, Attempt(key, 1, self._now(), problem))
            elif not isinstance(result.step, PullImage):
                # A pull alone is half the way: the same key counts until the tree is there.
                after = backoff.succeeded(after, key)
            if isinstance(result.step, InstallTree | RenewTree) and not result.problem:
                tree = str(naming.tree_path(settings.install.root, result.step.build))
                after = _installed(after, tree, engine.digest(result.step.reference))
            if (
                isinstance(result.step, InstallTree)
                and result.step.build.kind is Kind.DRIVER
                and not result.problem
            ):
                # What activation failed of without this tree is over.
                start = planner.retry_key(StartUnit(planner.DRIVER_UNIT), facts, settings)
                after = backoff.succeeded(after, start or "")
        return self._write(memory, after)

    def _write(self, before: Memory, after: Memory) -> Memory:
        """Write down what changed; a disk that is full or read-only ends no look, which may make room."""
        if after == before and self._unwritten is None:
            return after
        try:
            self._ports.driver.memories.write(after)
        except Failure as failure:
            if self._unwritten is None:
                self._log.warning("nothing is remembered, proceeding anyway", error=failure.sentence)
            self._unwritten = after, problem_of(failure)
        else:
            self._unwritten = None
        return after

    def _intend(self, before: Memory, after: Memory) -> Memory:
        """Write down what is begun, without which it is not begun."""
        if after != before:
            self._ports.driver.memories.write(after)
        return after


def _due(memory: Memory, facts: HostFacts, settings: Settings) -> Memory:
    """Memory without the failures of what nobody wants any more: no attempt would ever make up for them."""
    if not memory.attempts:
        return memory
    over = {"gates"} if set(facts.gates) == set(settings.gates) else set()
    if surroundings.described(facts.surroundings, settings):
        over |= set(_DESCRIBING)
    wanted = {f"remove {tree.path}" for tree in retention.surplus(facts, settings, memory)}
    left = tuple(
        a
        for a in memory.attempts
        if a.reference not in over and (not a.reference.startswith("remove ") or a.reference in wanted)
    )
    return replace(memory, attempts=left) if left != memory.attempts else memory


def _beside(memory: Memory) -> tuple[str, ...]:
    """What failed beside the driver and is tried again, which is no problem of a host that is ready."""
    return tuple(
        a.problem.sentence
        for a in memory.attempts
        if a.reference.startswith(_BESIDE) or a.problem == _UNHELPED
    )


def good(memory: Memory, tree: str) -> Memory:
    """Memory with `tree` as the last one known good; that of another OS release is kept beside it."""
    release, last = tree.rpartition("/")[2], memory.last_good
    if not last or last.rpartition("/")[2] == release:
        return replace(memory, last_good=tree)
    return replace(memory, last_good=tree, former_good=last)


def _installed(memory: Memory, tree: str, digest: str) -> Memory:
    """Memory with the image that a tree comes from."""
    others = tuple(known for known in memory.origins if known.tree != tree)
    return replace(memory, origins=(*others[-31:], Origin(tree, digest)))
