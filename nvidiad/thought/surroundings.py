# SPDX-License-Identifier: Apache-2.0
"""The surroundings: what stands beside a driver in force, whether it is as it should be, and who says so."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Problem
from nvidiad.nouns.steps import ReloadUnit, StartUnit
from nvidiad.nouns.surroundings import GpuIdentity, GpuState, Word
from nvidiad.thought import cdi, health, parse
from nvidiad.thought.companions import CDI_UNIT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nvidiad.nouns.facts import HostFacts
    from nvidiad.nouns.steps import Step
    from nvidiad.nouns.surroundings import Surroundings
    from nvidiad.thought.settings import Settings

_MOVING = ("activating", "deactivating", "reloading")


# ---------------------------------------------------------------------------------------------------
# The GPUs, in the driver's words

_FIELD = re.compile(r"^(Model|GPU UUID):[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def identity(address: str, text: str, otherwise: int) -> GpuIdentity:
    """A GPU from /proc/driver/nvidia/gpus/ADDRESS/information; its minor is `otherwise` if it has none."""
    fields = dict(_FIELD.findall(text))
    minor, uuid = parse.gpu_minor(text), fields.get("GPU UUID", "")
    # It has question marks for a GPU that nobody has started yet.
    return GpuIdentity(
        address,
        otherwise if minor is None else minor,
        uuid if _UUID.fullmatch(uuid) else "",
        fields.get("Model", "")[:100],
    )


# ---------------------------------------------------------------------------------------------------
# Words


def encode(word: Word) -> str:
    """A word as it is left in /run."""
    document = {
        "of": word.of,
        "digest": word.digest,
        "problem": _encoded(word.problem),
        "gpus": [
            {"address": g.address, "uuid": g.uuid, "model": g.model, "problem": _encoded(g.problem)}
            for g in word.gpus
        ],
    }
    return json.dumps(document) + "\n"


def _encoded(problem: Problem | None) -> dict[str, object] | None:
    if problem is None:
        return None
    return {"code": str(problem.code), "sentence": problem.sentence, "remedy": problem.remedy}


def decode(text: str) -> Word:
    """The word in a file; ValueError for anything that `encode` does not write."""
    try:
        document = json.loads(text)
        gpus = document["gpus"]
        if not isinstance(gpus, list):
            raise TypeError("gpus is not a list")
        return Word(
            _string(document, "of"),
            _problem(document["problem"]),
            _string(document, "digest"),
            tuple(
                GpuState(
                    _string(gpu, "address"),
                    _string(gpu, "uuid"),
                    _string(gpu, "model"),
                    _problem(gpu["problem"]),
                )
                for gpu in gpus
            ),
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is not as nvidiad writes it: {error}") from None


def _string(document: Mapping[str, Any], key: str) -> str:
    value = document[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is not text")
    return value


def _problem(value: Any) -> Problem | None:
    if value is None:
        return None
    return Problem(Code(_string(value, "code")), _string(value, "sentence"), _string(value, "remedy"))


# ---------------------------------------------------------------------------------------------------
# What is to be done about them


def described(found: Surroundings, settings: Settings) -> bool:
    """The CDI specification that is there is the one that should be, and none where none should."""
    wanted = cdi.digest(found.inventory) if settings.cdi.enabled else ""
    if not wanted:
        # What somebody else wrote is theirs.
        return not found.ours
    if found.rival:
        # Ours gives way, or would have to.
        return False
    return found.cdi.of == wanted and found.ours


def steps(facts: HostFacts, settings: Settings) -> tuple[Step, ...]:
    """What puts the specification right; nothing of a driver that is in force waits for it."""
    unit = facts.unit(CDI_UNIT)
    if unit is None or unit.load != "loaded" or unit.job or unit.active in _MOVING:
        return ()
    if described(facts.surroundings, settings):
        return ()
    if unit.active == "active":
        return (ReloadUnit(CDI_UNIT),)
    # Somebody who stopped it meant it.
    return (StartUnit(CDI_UNIT),) if unit.active == "failed" else ()


def heard(found: Surroundings) -> Word:
    """What NVML said of the GPUs and the driver that are there now."""
    said = found.health
    return said if found.inventory and said.of == health.key(found.inventory) else Word()


def problems(facts: HostFacts, settings: Settings) -> tuple[Problem, ...]:
    """What is wrong beside a driver that is in force."""
    found = facts.surroundings
    if found.inventory is None:
        return ()
    said = (found.cdi.problem if settings.cdi.enabled else None, found.fabric.problem)
    return (*(problem for problem in said if problem), *heard(found).problems)


def warnings(facts: HostFacts, settings: Settings) -> tuple[str, ...]:
    """The same for a person: what is wrong, under which code, and what to do."""
    return tuple(
        " ".join(filter(None, (f"{each.sentence} [{each.code}].", each.remedy)))
        for each in problems(facts, settings)
    )
