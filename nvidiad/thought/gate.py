# SPDX-License-Identifier: Apache-2.0
"""The gate: whether a reboot may go, why not, and until when; no reboot is held for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.steps import HoldReboot, RaiseDelay, RebootHost, ReleaseReboot
from nvidiad.nouns.upcoming import StageState, Verdict
from nvidiad.nouns.value import replace
from nvidiad.thought import staging

if TYPE_CHECKING:
    from nvidiad.nouns.facts import HostFacts
    from nvidiad.nouns.model import Memory
    from nvidiad.nouns.steps import Step
    from nvidiad.nouns.upcoming import NextSystem, Stage
    from nvidiad.thought.settings import Settings

RETRY_KEY, LIMIT_KEY = "logind", "logind's limit"
REBOOT_KEY = "reboot the host"
_DONE = frozenset({StageState.PROVEN, StageState.STAGED})
# What a logind says that tells what was asked for, and that ends in another kernel.
_REBOOTS = frozenset({"", "reboot", "kexec"})
# A locksmithd in one of these states takes care of the reboot; nobody else should.
_COORDINATED = frozenset({"starting", "running", "reboot-planned", "rebooting"})
_WORDS = {
    StageState.UNKNOWN: "is not known yet",
    StageState.AWAITED: "is not on disk yet",
    StageState.FETCHING: "is being fetched",
    StageState.UNFIT: "does not fit its kernel",
}


def verdict(
    facts: HostFacts,
    settings: Settings,
    memory: Memory,
    now: float,
    found: NextSystem | None,
    stages: tuple[Stage, ...],
) -> Verdict:
    """Whether a reboot may go now. `now` is wall clock; what is held is held in uptime."""
    if found is None:
        return Verdict(go=True, reason="no other OS is about to be booted")
    said = _verdict(facts, settings, memory, now, found, stages)
    if not (settings.reboot.automatic and staging.was_in_vain(memory, facts, found)):
        return said
    why = f"{said.reason}; nvidiad has rebooted for it before, and another OS came up: it does not again"
    return replace(said, reason=why, in_vain=True)


def _verdict(
    facts: HostFacts,
    settings: Settings,
    memory: Memory,
    now: float,
    found: NextSystem,
    stages: tuple[Stage, ...],
) -> Verdict:
    name = found.version or found.kernel or "the next OS"
    if not stages:
        return Verdict(go=True, reason=f"no driver is to be staged for {name} on this host")
    # The first is that of the wanted driver: one that was given up is no reason to go.
    done = stages[0]
    if done.state in _DONE:
        proof = "and fits its kernel" if done.state is StageState.PROVEN else "(its kernel is not known yet)"
        return Verdict(go=True, reason=f"driver {done.build.driver} for {name} is on disk {proof}")
    why = f"driver {stages[0].build.driver} for {name} {_WORDS[stages[0].state]}"
    if problem := stages[0].problem:
        why += f": {problem.sentence}"
    if not found.staged:
        return Verdict(go=True, reason=f"{why}; a reboot now boots the OS that runs")
    asked = staging.reboot_since(memory, facts, found)
    left = settings.reboot.maximum - (facts.uptime - asked if asked is not None else 0.0)
    if left <= 0:
        held = f"{settings.reboot.maximum:g} s"
        return Verdict(go=True, reason=f"{why}; it was waited for as long as is configured ({held})")
    logind = facts.reboot
    if logind and settings.reboot.inhibit and logind.fixed and logind.limit < left:
        why += f"; logind itself waits for {logind.limit:g} s at most, as another file than nvidiad's says"
    return Verdict(go=False, reason=why, until=now + left)


def steps(
    facts: HostFacts,
    settings: Settings,
    found: NextSystem | None,
    stages: tuple[Stage, ...],
    said: Verdict,
) -> tuple[Step, ...]:
    """What makes logind hold reboots, or let them go, and what reboots a host that nobody else reboots."""
    logind = facts.reboot
    if logind is None:
        return ()
    hold = settings.reboot.inhibit and is_held(facts, found, stages, said)
    if logind.held and not hold:
        return (ReleaseReboot(said.reason),)
    due: list[Step] = [HoldReboot(said.reason)] if hold and not logind.held else []
    # Somebody else, kubelet for one, may ask for more since our file was written: it never lowers that.
    limit = max(settings.reboot.maximum if hold else 0.0, logind.others)
    # Where another file has the last word, logind waits as long as that says.
    if logind.limit < limit and not logind.fixed:
        due.append(RaiseDelay(limit))
    if due:
        return tuple(due)
    mine = settings.reboot.automatic and logind.locksmith not in _COORDINATED
    if mine and found and found.staged and said.go and not logind.preparing and not said.in_vain:
        return (RebootHost(),)
    return ()


def is_held(facts: HostFacts, found: NextSystem | None, stages: tuple[Stage, ...], said: Verdict) -> bool:
    """Whether the delay lock is to be taken.

    Already while the update only comes: who reboots as soon as it is there calls logind in the same moment
    in which this host hears of it. A shutdown that is asked for before that, or that is none into another
    OS, is let go at once.
    """
    if found is None or not stages or stages[0].state in _DONE:
        return False
    logind = facts.reboot
    if logind and logind.preparing and (said.go or logind.kind not in _REBOOTS):
        return False
    return not (found.staged and said.go)


def look_again(
    facts: HostFacts, memory: Memory, settings: Settings, found: NextSystem, stages: tuple[Stage, ...]
) -> float:
    """Seconds until the next look that something other than an event asks for."""
    due = [staging.POLL_SECONDS, *(stage.due for stage in stages if stage.due is not None)]
    asked = staging.reboot_since(memory, facts, found)
    if asked is not None:
        left = settings.reboot.maximum - (facts.uptime - asked)
        due += [left] if left > 0 else []
    return max(0.0, min(due))
