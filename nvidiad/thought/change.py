# SPDX-License-Identifier: Apache-2.0
"""A change of the driver in place: what is stopped for it, and for whom or for what it waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Change, Problem, Sighting
from nvidiad.nouns.plan import Plan
from nvidiad.nouns.steps import StartUnit, StopUnit
from nvidiad.nouns.value import replace
from nvidiad.thought import choice, staging
from nvidiad.thought.activation import named
from nvidiad.thought.companions import FABRIC_UNIT, PERSISTENCE_UNIT

if TYPE_CHECKING:
    from nvidiad.nouns.facts import HostFacts
    from nvidiad.nouns.model import Memory
    from nvidiad.nouns.steps import Step
    from nvidiad.thought.settings import Settings

# Nothing tells that a device was closed.
POLL_SECONDS = 5.0
_UP = ("active", "activating", "reloading")


def plan(facts: HostFacts, settings: Settings, memory: Memory, pending: Problem) -> Plan:
    """What to do while the loaded driver is in use and another one is wanted, which is on disk."""
    change = settings.driver.change
    reason = pending.sentence
    if change is Change.REBOOT or _is_over(facts, settings, memory):
        again = tuple(StartUnit(name, wait=False) for name in memory.stopped)
        return Plan(reason, again, problem=with_holders(pending, facts))
    mine = [
        FABRIC_UNIT,
        PERSISTENCE_UNIT,
        *(reversed(settings.units.gated) if change is Change.DRAIN else ()),
    ]
    strangers = tuple(holder for holder in facts.holders if holder.unit not in mine)
    problem = Problem(
        Code.MODULE_IN_USE,
        f"{pending.sentence}; it changes as soon as nothing uses it any more",
        "Stop what uses the GPU, or reboot.",
        retry=True,
    )
    problem = with_holders(problem, facts)
    # What is stopped for a change that others hold up would be stopped for nothing.
    if change is Change.WAIT and strangers:
        return Plan(reason, problem=problem, wait=POLL_SECONDS)
    due: list[Step] = [StopUnit(name) for name in reversed(mine) if _is_up(facts, name)]
    return Plan(reason, tuple(due), problem=problem, wait=None if due else POLL_SECONDS)


def notice(memory: Memory, facts: HostFacts, settings: Settings) -> Memory:
    """Memory without units that run again, and with the moment at which a drain began."""
    stopped = tuple(name for name in memory.stopped if not _is_up(facts, name))
    key, boot = _drain(facts, settings), facts.driver.boot_id
    # What was stopped in an earlier boot is started by this one.
    kept = tuple(s for s in memory.sightings if s.what == key or not s.what.startswith("drain "))
    known = any(s.what == key and s.boot_id == boot for s in kept)
    if stopped and not known:
        kept = (*kept, Sighting(key, boot, facts.uptime))
    return replace(memory, stopped=stopped, sightings=kept)


def intend(memory: Memory, steps: tuple[Step, ...]) -> Memory:
    """Memory with the units that these steps stop: whoever is killed in between still starts them again."""
    names = (step.name for step in steps if isinstance(step, StopUnit))
    return replace(memory, stopped=tuple(dict.fromkeys((*memory.stopped, *names))))


def _drain(facts: HostFacts, settings: Settings) -> str:
    return f"drain {choice.wanted(facts.driver, settings)}"


def _is_over(facts: HostFacts, settings: Settings, memory: Memory) -> bool:
    began = staging.since(memory, facts, _drain(facts, settings))
    return began is not None and facts.uptime - began >= settings.driver.drain_timeout


def _is_up(facts: HostFacts, name: str) -> bool:
    unit = facts.unit(name)
    return unit is not None and unit.active in _UP


def with_holders(problem: Problem, facts: HostFacts) -> Problem:
    """A problem with who is in the way."""
    if not facts.holders:
        return problem
    return replace(problem, sentence=f"{problem.sentence}; in use by {', '.join(named(facts.holders))}")
