# SPDX-License-Identifier: Apache-2.0
"""The companions: the units beside the driver's, in which order they start, and when one of them is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.steps import StartUnit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvidiad.nouns.facts import HostFacts
    from nvidiad.nouns.model import Gpu, UnitState
    from nvidiad.nouns.steps import Step
    from nvidiad.thought.settings import Settings

DRIVER_UNIT = "nvidia.service"
PERSISTENCE_UNIT = "nvidia-persistenced.service"
FABRIC_UNIT = "nvidia-fabricmanager.service"
CDI_UNIT = "nvidia-cdi.service"
HEALTH_UNIT = "nvidia-health.service"


def watched(settings: Settings, gpus: Sequence[Gpu] | None = None) -> tuple[str, ...]:
    """The units whose state is part of the facts, in the order in which they start.

    Without NVSwitches among the GPUs (where these are known) the fabric manager is none of them.
    """
    switched = gpus is None or any(gpu.switch for gpu in gpus)
    fabric = (FABRIC_UNIT,) if switched else ()
    names = (DRIVER_UNIT, PERSISTENCE_UNIT, *fabric, CDI_UNIT, HEALTH_UNIT, *settings.gates)
    return tuple(dict.fromkeys(names))


def start(facts: HostFacts, settings: Settings, stopped: tuple[str, ...]) -> tuple[Step, ...]:
    """Start what is due: the driver's unit, what stands beside it, then the gated units.

    `stopped` are those that nvidiad stopped itself.
    """
    driver = facts.unit(DRIVER_UNIT)
    if driver is None or driver.job:
        return ()
    if driver.active != "active":
        return (StartUnit(DRIVER_UNIT),)
    beside = (PERSISTENCE_UNIT, FABRIC_UNIT, CDI_UNIT) if facts.driver.gpus and facts.driver.loaded else ()
    steps = [StartUnit(name) for name in beside if _is_due(facts.unit(name), driver, stopped)]
    # A GPU that hangs would keep whoever waits for the word on it.
    last = (*settings.gates, *((HEALTH_UNIT,) if beside else ()))
    steps += [StartUnit(name, wait=False) for name in last if _is_due(facts.unit(name), driver, stopped)]
    return tuple(steps)


def _is_due(unit: UnitState | None, driver: UnitState, stopped: tuple[str, ...]) -> bool:
    """Whether a unit should run and does not only because the driver was late, or was changed.

    Someone who stops it later means it: then it went down after the driver came up.
    """
    if unit is None:
        return False
    down = unit.active in ("inactive", "failed") and not unit.job
    # Its ExecCondition= found no GPU or no driver; a reload of the driver's unit has brought it since.
    # And what failed with the driver that was there before may do well with this one.
    again = unit.active == "failed" and unit.name in (PERSISTENCE_UNIT, FABRIC_UNIT, HEALTH_UNIT)
    late = driver.changed if unit.result == "exec-condition" or again else driver.active_enter
    ours = unit.inactive_enter <= late or unit.name in stopped
    return unit.load == "loaded" and unit.wanted and down and ours
