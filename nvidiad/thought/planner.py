# SPDX-License-Identifier: Apache-2.0
"""The planner: from the facts of one look to the plan of the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Change, Kind, Phase, Problem
from nvidiad.nouns.plan import CudaStatus, Plan, Status
from nvidiad.nouns.steps import (
    HoldReboot,
    InstallTree,
    PullImage,
    RaiseDelay,
    RebootHost,
    ReloadUnit,
    RemoveTree,
    RenewTree,
    SelectTree,
    StartUnit,
    StopUnit,
    WriteGates,
)
from nvidiad.nouns.value import replace
from nvidiad.thought import (
    backoff,
    change,
    choice,
    companions,
    cuda,
    gate,
    preflight,
    retention,
    staging,
    surroundings,
)
from nvidiad.thought.activation import FREEING, activate, choose_exposure, is_pending
from nvidiad.thought.choice import find_tree, wanted

if TYPE_CHECKING:
    from nvidiad.nouns.facts import HostFacts
    from nvidiad.nouns.model import Memory
    from nvidiad.nouns.steps import Step
    from nvidiad.nouns.upcoming import NextSystem, Stage, Verdict
    from nvidiad.thought.settings import Settings

DRIVER_UNIT = companions.DRIVER_UNIT
# What a person cannot hurry: the change is there and waits for the next boot.
_AFTER_REBOOT = frozenset({Code.DRIVER_MISMATCH, Code.MODULE_IN_USE})


def reference(facts: HostFacts, settings: Settings) -> str:
    """The image of the wanted build."""
    return staging.reference(wanted(facts.driver, settings), settings)


def decide(facts: HostFacts, settings: Settings, memory: Memory, now: float) -> Plan:
    """What to do now, and why. `now` is wall clock, in seconds since 1970.

    A pure function: the same facts give the same plan, whoever woke the daemon.
    """
    plan = _driver_plan(facts, settings, memory, now)
    if plan.problem and not plan.steps and not settings.units.hold:
        # The unit's own activation comes to the same end and, by configuration, lets the gated units go.
        plan = replace(plan, steps=_start_steps(facts, settings, memory))
    steps = (*_gate_steps(facts, settings), *plan.steps)
    waits = {step: _wait(step, facts, settings, memory, now) for step in steps}
    # What comes later must not have to wait for an event: the unit that failed may not give another one.
    due = [plan.wait, *(seconds for seconds in waits.values() if seconds > 0)]
    plan = replace(
        plan,
        steps=tuple(step for step in steps if waits[step] <= 0),
        wait=min((seconds for seconds in due if seconds is not None), default=None),
    )
    plan = _with_next(plan, facts, settings, memory, now)
    plan = _with_surroundings(plan, facts, settings, memory, now)
    plan = _with_cuda(plan, facts, settings, memory, now)
    return _with_retention(plan, facts, settings, memory, now)


def notice(memory: Memory, facts: HostFacts, settings: Settings) -> Memory:
    """Memory with what this look sees for the first time, without what is over."""
    return change.notice(staging.notice(memory, facts), facts, settings)


def intend(memory: Memory, facts: HostFacts, steps: tuple[Step, ...]) -> Memory:
    """Memory with what is about to be begun, and what nobody sees afterwards who is killed in between."""
    found = staging.next_system(facts, memory)
    if found and any(isinstance(step, RebootHost) for step in steps):
        memory = staging.intend_reboot(memory, facts, found)
    return change.intend(memory, steps)


def look_on(plan: Plan, facts: HostFacts, settings: Settings, memory: Memory, now: float) -> Plan:
    """A plan that is under way with what is known by now of the reboot, and its steps at logind."""
    _, stages, said, guard = _ahead(facts, settings, memory, now)
    return replace(plan, stages=stages, verdict=said, steps=guard)


def retry_key(step: Step, facts: HostFacts, settings: Settings) -> str | None:
    """What a failure of this step is remembered under; None for steps that no plan of the daemon repeats."""
    match step:
        case PullImage(build=build) | InstallTree(build=build) if build.kind is Kind.CUDA:
            return cuda.retry_key(step.reference)
        case SelectTree():
            # The daemon selects no other tree: a driver's is selected by its activation.
            chosen = cuda.wanted(settings)
            return cuda.retry_key(cuda.reference(chosen, settings)) if chosen else None
        case PullImage(reference=image) | InstallTree(reference=image):
            return image
        case StartUnit(name=name) | ReloadUnit(name=name) if name == DRIVER_UNIT:
            return f"activate {wanted(facts.driver, settings)}"
        case StartUnit(name=name):
            return f"start {name}"
        case ReloadUnit(name=name):
            return f"reload {name}"
        case WriteGates():
            return "gates"
        case RenewTree(reference=image):
            return f"again {image}"
        case StopUnit(name=name):
            return f"stop {name}"
        case RemoveTree(tree=tree):
            return f"remove {tree}"
        case HoldReboot():
            return gate.RETRY_KEY
        case RaiseDelay():
            return gate.LIMIT_KEY
        case RebootHost():
            return gate.REBOOT_KEY
        case _:
            return None


def assess(facts: HostFacts, settings: Settings, plan: Plan, *, now: float) -> Status:
    """The state of the host in one word and one sentence, from the plan that is still to be done."""
    build, problem = cuda.wanted(settings), plan.cuda_problem
    exposure, why = choose_exposure(settings.install.exposure, facts.driver.mounts)
    phase, summary = _phase(facts, settings, plan)
    unit, meanwhile = facts.unit(DRIVER_UNIT), activate(facts.driver, settings)
    other = not meanwhile.steps and is_pending(meanwhile, facts.driver, settings)
    active = unit is not None and unit.active == "active"
    since = unit.active_since / 1e6 if phase is Phase.READY and unit and unit.active_since else None
    return Status(
        phase=phase,
        summary=summary,
        since=since,
        facts=facts,
        wanted=wanted(facts.driver, settings),
        reference=reference(facts, settings) if settings.configured else "",
        exposure=exposure,
        exposure_reason=why,
        problem=plan.problem,
        plan=plan,
        next_try=now + plan.wait if plan.wait is not None else None,
        looked=now,
        warnings=tuple(
            f"{unit.name} is {unit.load if unit.load == 'masked' else unit.active}"
            for unit in facts.units
            if unit.load == "masked" or (unit.active == "failed" and unit.name != DRIVER_UNIT)
        )
        + ((cuda.warning(facts.cuda, build, problem),) if build and problem else ())
        + preflight.warnings(facts.driver, choice.target(facts.driver, settings))
        + surroundings.warnings(facts, settings),
        usable=phase is Phase.READY or (active and other),
        cuda=CudaStatus(build, cuda.reference(build, settings), problem) if build else None,
    )


def _driver_plan(facts: HostFacts, settings: Settings, memory: Memory, now: float) -> Plan:
    bring_up = activate(facts.driver, settings)
    if not facts.driver.gpus or (bring_up.problem and bring_up.problem.code in FREEING):
        return replace(bring_up, steps=_start_steps(facts, settings, memory))
    if bring_up.problem and bring_up.problem.code is Code.NOT_CONFIGURED:
        return bring_up
    if find_tree(facts.driver, settings) is None:
        return _stand_in(facts, settings, memory, now, bring_up) or _fetch_plan(facts, settings, memory, now)
    if bring_up.problem and bring_up.problem.code is Code.VERMAGIC_MISMATCH:
        # A tree that says it fits and does not, left by a kill between its installation and the check: the
        # image may have been mended since.
        return replace(_fetch_plan(facts, settings, memory, now), problem=bring_up.problem)
    target = choice.target(facts.driver, settings)
    if bring_up.problem and target and target.build != wanted(facts.driver, settings):
        # What is missing of the driver in use is mended; the other one waits.
        mending = _bring_up_plan(facts, settings, memory, now, replace(bring_up, problem=None))
        waiting = change.plan(facts, settings, memory, bring_up.problem)
        unit = facts.unit(DRIVER_UNIT)
        if bring_up.steps or unit is None or unit.active != "active":
            return replace(mending, problem=waiting.problem)
        # What the change has stopped starts after it; what the driver was late for starts now.
        late = _start_steps(facts, settings, memory) if settings.driver.change is Change.REBOOT else ()
        late = tuple(step for step in late if _wait(step, facts, settings, memory, now) <= 0)
        return replace(waiting, steps=waiting.steps or late)
    if bring_up.problem:
        return replace(bring_up, steps=(), problem=_with_holders(bring_up.problem, facts))
    plan = _bring_up_plan(facts, settings, memory, now, bring_up)
    return _fallen_back(plan, facts, settings, memory)


def _stand_in(
    facts: HostFacts, settings: Settings, memory: Memory, now: float, bring_up: Plan
) -> Plan | None:
    """What another driver needs, which is in force until the wanted one is on disk; None where nothing."""
    waits = bring_up.problem is not None and bring_up.problem.code is Code.TREE_MISSING
    if not waits or choice.target(facts.driver, settings) is None:
        return None
    plan = _bring_up_plan(facts, settings, memory, now, replace(bring_up, problem=None))
    return plan if any(_wait(step, facts, settings, memory, now) <= 0 for step in plan.steps) else None


def _fallen_back(plan: Plan, facts: HostFacts, settings: Settings, memory: Memory) -> Plan:
    """A driver that does not come up: its tag may name another image by now."""
    build = choice.configured(facts.driver, settings)
    tree = choice.tree_of(facts.driver, build)
    if tree is None or choice.given_up(facts.driver, settings) is None:
        return plan
    image = staging.reference(build, settings)
    again = RenewTree(image, build, tree.path, staging.origin(memory, tree.path))
    problem = plan.problem or choice.fallback_problem(facts.driver, settings)
    return replace(plan, steps=(*plan.steps, again), problem=problem)


def _with_next(plan: Plan, facts: HostFacts, settings: Settings, memory: Memory, now: float) -> Plan:
    """What concerns the next OS: the lock first, its driver where nothing of this one is left to do now."""
    found, stages, said, guard = _ahead(facts, settings, memory, now)
    look = gate.look_again(facts, memory, settings, found, stages) if found else None
    plan = replace(plan, stages=stages, verdict=said, look=look, steps=(*guard, *plan.steps))
    phase, _ = _phase(facts, settings, plan)
    if plan.steps or phase is Phase.CONVERGING:
        return plan
    due = next((steps for stage in stages if (steps := staging.steps(stage, facts, memory))), ())
    if not due:
        return plan
    return replace(plan, reason=f"{stages[0].next.version or 'the next OS'} comes next", steps=due)


def _ahead(
    facts: HostFacts, settings: Settings, memory: Memory, now: float
) -> tuple[NextSystem | None, tuple[Stage, ...], Verdict, tuple[Step, ...]]:
    """What comes next, how far its drivers are, whether a reboot may go, and the steps that see to that."""
    found = staging.next_system(facts, memory)
    stages = staging.stages(facts, settings, memory, now, found)
    said = gate.verdict(facts, settings, memory, now, found, stages)
    guard = gate.steps(facts, settings, found, stages, said)
    due = tuple(step for step in guard if _wait(step, facts, settings, memory, now) <= 0)
    return found, stages, said, due


def _with_surroundings(plan: Plan, facts: HostFacts, settings: Settings, memory: Memory, now: float) -> Plan:
    """What containers are told of a driver in force is put right, which no unit waits for."""
    steps = surroundings.steps(facts, settings)
    if plan.steps or not steps:
        return plan
    seconds = _wait(steps[0], facts, settings, memory, now)
    if seconds > 0:
        return _looked_again(plan, seconds)
    return replace(plan, reason="the CDI specification is not that of the driver in force", steps=steps)


def _with_retention(plan: Plan, facts: HostFacts, settings: Settings, memory: Memory, now: float) -> Plan:
    """Room is made when everything else is in order: only then it is sure what is needed."""
    phase, _ = _phase(facts, settings, plan)
    if plan.steps or phase is not Phase.READY:
        return plan
    gone = tuple(RemoveTree(tree.path) for tree in retention.surplus(facts, settings, memory))
    waits = {step: _wait(step, facts, settings, memory, now) for step in gone}
    if due := tuple(step for step, seconds in waits.items() if seconds <= 0):
        return replace(plan, reason="more trees are on disk than are to be kept", steps=due)
    return replace(
        plan, wait=min((*waits.values(), *([] if plan.wait is None else [plan.wait])), default=None)
    )


def _with_cuda(plan: Plan, facts: HostFacts, settings: Settings, memory: Memory, now: float) -> Plan:
    """CUDA's steps where nothing of the driver is left to do: a long pull must not stand before that."""
    build, driver = cuda.wanted(settings), wanted(facts.driver, settings).driver
    if build and (refusal := cuda.refusal(facts.cuda, build, driver)):
        return replace(plan, cuda_problem=refusal)
    steps = cuda.steps(facts.cuda, build, driver, settings) if build else ()
    if build is None or not steps:
        return plan
    attempt = backoff.find(memory, cuda.retry_key(cuda.reference(build, settings)))
    plan = replace(plan, cuda_problem=attempt.problem if attempt else None)
    phase, _ = _phase(facts, settings, plan)
    # Otherwise the driver may be there at any moment, or there is no GPU.
    if plan.steps or phase not in (Phase.READY, Phase.PENDING_REBOOT):
        return plan
    seconds = _wait(steps[0], facts, settings, memory, now)
    if seconds > 0 and plan.problem:
        return _looked_again(plan, seconds)
    if seconds > 0:
        # All that this host still waits for: a person is told when.
        return replace(plan, wait=seconds if plan.wait is None else min(seconds, plan.wait))
    return replace(plan, reason=f"'{build}' is wanted and not in force", steps=steps)


def _looked_again(plan: Plan, seconds: float) -> Plan:
    """Not `wait`, which is the driver's: the phase of a host with a problem is made of it."""
    return replace(plan, look=seconds if plan.look is None else min(seconds, plan.look))


def _fetch_plan(facts: HostFacts, settings: Settings, memory: Memory, now: float) -> Plan:
    """Bring the wanted build to disk, unless an earlier failure says: later."""
    image = reference(facts, settings)
    build = wanted(facts.driver, settings)
    reason = f"'{build}' is wanted and not on disk"
    steps = (PullImage(image, build), InstallTree(image, build))
    return _not_due(steps[0], facts, settings, memory, now, reason) or Plan(reason, steps)


def _bring_up_plan(facts: HostFacts, settings: Settings, memory: Memory, now: float, bring_up: Plan) -> Plan:
    unit = facts.unit(DRIVER_UNIT)
    active = unit is not None and unit.active == "active"
    if active and not bring_up.steps:
        return Plan(bring_up.reason, _start_steps(facts, settings, memory))
    if unit is not None and unit.job:
        return Plan(f"{DRIVER_UNIT} is starting")
    step: StartUnit | ReloadUnit
    if active:
        # Not a restart: that would stop the units that require it.
        step, reason = ReloadUnit(DRIVER_UNIT), f"{bring_up.reason}; missing: {bring_up.steps[0].describe()}"
    elif bring_up.steps:
        step, reason = StartUnit(DRIVER_UNIT), bring_up.reason
    else:
        step, reason = StartUnit(DRIVER_UNIT), f"{bring_up.reason}, {DRIVER_UNIT} is not active"
    return _not_due(step, facts, settings, memory, now, reason) or Plan(reason, (step,))


def _start_steps(facts: HostFacts, settings: Settings, memory: Memory) -> tuple[Step, ...]:
    return companions.start(facts, settings, memory.stopped)


def _gate_steps(facts: HostFacts, settings: Settings) -> tuple[Step, ...]:
    # A daemon that knows nothing of its host's wishes leaves the gates as they are.
    if not settings.configured or set(facts.gates) == set(settings.gates):
        return ()
    return (WriteGates(settings.gates),)


def _wait(step: Step, facts: HostFacts, settings: Settings, memory: Memory, now: float) -> float:
    """Seconds until `step` may be tried again after its last failure, 0 when it may be tried now."""
    key = retry_key(step, facts, settings)
    attempt = backoff.find(memory, key) if key else None
    if attempt is None:
        return 0.0
    return backoff.wait(
        attempt,
        now,
        initial=settings.daemon.retry_initial,
        maximum=settings.daemon.retry_maximum,
        seed=f"{facts.driver.boot_id}{key}",
    )


def _not_due(
    step: Step, facts: HostFacts, settings: Settings, memory: Memory, now: float, reason: str
) -> Plan | None:
    """A plan that waits, and for what, when the last failure of `step` is too fresh."""
    seconds = _wait(step, facts, settings, memory, now)
    if seconds <= 0:
        return None
    attempt = backoff.find(memory, retry_key(step, facts, settings) or "")
    return Plan(reason, problem=attempt.problem if attempt else None, wait=seconds)


def _with_holders(problem: Problem, facts: HostFacts) -> Problem:
    return change.with_holders(problem, facts) if problem.code in _AFTER_REBOOT else problem


def _phase(facts: HostFacts, settings: Settings, plan: Plan) -> tuple[Phase, str]:
    # Usable is usable, whichever driver it is.
    problem = plan.problem if plan.problem and plan.problem.code is not Code.DRIVER_FALLBACK else None
    build = wanted(facts.driver, settings)
    if problem and problem.code is Code.OTHER_OWNER:
        return Phase.STANDING_BACK, problem.sentence
    if problem and problem.code in _AFTER_REBOOT and plan.wait is None:
        return Phase.PENDING_REBOOT, problem.sentence
    if problem and (plan.wait is not None or problem.retry):
        return Phase.WAITING, problem.sentence
    if problem:
        return Phase.BLOCKED, problem.sentence
    if not facts.driver.gpus:
        return Phase.NO_GPU, "this host has no NVIDIA GPU"
    unit = facts.unit(DRIVER_UNIT)
    bring_up = activate(facts.driver, settings)
    # The unit is active also where a GPU has come since, and its driver is still to be fetched.
    if unit is not None and unit.active == "active" and not bring_up.steps and not bring_up.problem:
        return (
            Phase.READY,
            f"driver {build.driver} is in force on {facts.driver.release.name or build.os_version}",
        )
    return Phase.CONVERGING, plan.reason
