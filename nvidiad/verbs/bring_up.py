# SPDX-License-Identifier: Apache-2.0
"""Bringing up: one activation, counted before it begins: a driver that takes the host down counts too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Attempt, Memory, Problem
from nvidiad.nouns.steps import CheckDriver, LoadModule, MakeNodes
from nvidiad.thought import backoff, choice

if TYPE_CHECKING:
    from nvidiad.nouns.facts import DriverFacts
    from nvidiad.nouns.plan import Plan, Report
    from nvidiad.thought.settings import Settings
    from nvidiad.verbs.engine import DriverEngine
    from nvidiad.verbs.ports import DriverPorts, Log

# What is wrong with a tree on this kernel before anything is loaded.
_FOR_GOOD = frozenset(
    {
        *(Code.LOCKDOWN, Code.TREE_INVALID, Code.VERMAGIC_MISMATCH),
        *(Code.IMAGE_MISMATCH, Code.GPU_UNSUPPORTED, Code.FLAVOUR_WRONG),
    }
)
_ENDLESS = Problem(Code.INTERNAL, "the activation was cut off (the host went down, or it was killed)")


def bring_up(
    plan: Plan,
    facts: DriverFacts,
    settings: Settings,
    *,
    ports: DriverPorts,
    engine: DriverEngine,
    log: Log,
    now: float,
) -> Report:
    """Do the plan. `now` is wall clock, in seconds since 1970."""
    tree = choice.target(facts, settings)
    before = _known(ports.trials.read(), facts)
    if tree and plan.problem and _is_refused(plan, facts):
        # No module is tried, and none would come in however often: another driver may.
        key = choice.refusal_key(tree, facts, settings)
        _write(ports, backoff.failed(before, Attempt(key, 1, now, plan.problem)), log)
    if tree and plan.problem and _is_missed(plan, facts):
        # Tried like one that insmod refuses: it may be there the next time, and where it never is, the last
        # driver known good returns.
        _write(ports, backoff.failed(before, Attempt(choice.trial_key(tree), 1, now, plan.problem)), log)
    if tree is None or not any(isinstance(step, LoadModule) for step in plan.steps):
        return engine.execute(plan)
    key = choice.trial_key(tree)
    begun = backoff.failed(before, Attempt(key, 1, now, _ENDLESS))
    _write(ports, begun, log)
    report = engine.execute(plan)
    failed = next((result for result in report.results if result.problem), None)
    if failed is None:
        before = backoff.succeeded(before, choice.refusal_key(tree, facts, settings))
        _write(ports, backoff.succeeded(before, key), log)
    elif isinstance(failed.step, LoadModule | MakeNodes | CheckDriver) and failed.problem:
        _write(ports, backoff.failed(before, Attempt(key, 1, now, failed.problem)), log)
    else:
        # Not the driver's fault: another one would meet the same.
        _write(ports, before, log)
    return report


def _is_refused(plan: Plan, facts: DriverFacts) -> bool:
    # What cannot be read may be readable the next time, and a kernel that takes nothing any more boots anew.
    begun = facts.loaded or plan.steps or facts.tree_problem or facts.rules.closed
    return not begun and plan.problem is not None and plan.problem.code in _FOR_GOOD


def _is_missed(plan: Plan, facts: DriverFacts) -> bool:
    begun = facts.loaded or plan.steps
    return not begun and plan.problem is not None and plan.problem.code is Code.DEPENDENCY_MISSING


def _known(trials: Memory, facts: DriverFacts) -> Memory:
    """Without those of trees that are gone."""
    here = {choice.trial_key(tree) for tree in facts.trees}
    kept = (each for each in trials.attempts if each.reference.partition(choice.REFUSED)[0] in here)
    return Memory(tuple(kept))


def _write(ports: DriverPorts, trials: Memory, log: Log) -> None:
    try:
        ports.trials.write(trials)
    except Failure as failure:
        log.warning("the activation is not counted, proceeding anyway", error=failure.sentence)
