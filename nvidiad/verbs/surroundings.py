# SPDX-License-Identifier: Apache-2.0
"""What is done beside a driver in force: GPUs are described for containers, asked after, and connected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure, Permanent
from nvidiad.nouns.model import Problem, problem_of
from nvidiad.nouns.surroundings import Word
from nvidiad.nouns.value import replace
from nvidiad.thought import cdi, health

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvidiad.nouns.entries import Entry
    from nvidiad.nouns.model import Gpu
    from nvidiad.nouns.surroundings import Inventory
    from nvidiad.verbs.ports import Log, Smi, Specification

# The unit gives up on what trying again would not change.
_THEN = "then: systemctl start nvidia-fabricmanager"


def describe(
    inventory: Inventory | None,
    entries: Sequence[Entry],
    before: Word,
    *,
    rival: str = "",
    place: Specification,
    log: Log,
) -> Word | None:
    """Let the CDI specification be that of the driver in force; None where there is nothing to describe.

    `before` is the word of the last time, if what is there is still of that time: what somebody else wrote
    is removed by nobody. `rival` is another file that describes the same devices: engines then give those
    of neither to a container.
    """
    document = cdi.specification(inventory, entries) if inventory else None
    if inventory is None or document is None:
        if before.digest:
            place.remove()
            log.info("the CDI specification is removed: there is no GPU to describe")
        return None
    word = Word(of=cdi.digest(inventory))
    if rival:
        if before.digest:
            place.remove()
        sentence = f"'{rival}' describes devices of '{cdi.KIND}', too"
        remedy = "Remove one of the two, or set 'cdi.enabled' to false."
        return replace(word, problem=Problem(Code.CDI_FAILED, sentence, remedy, retry=True))
    text = cdi.text(document)
    try:
        if program := place.generator():
            text, by = place.generate(program, inventory.tree), program
        else:
            by = "nvidiad"
    except Failure as failure:
        # Ours has no hooks, and is better than none.
        log.warning("NVIDIA's toolkit fails, writing the CDI specification without it", why=failure.sentence)
        word, by = replace(word, problem=problem_of(failure)), "nvidiad"
    try:
        place.write(text)
    except Failure as failure:
        return replace(before, problem=problem_of(failure))
    log.info("the GPUs are described for containers", by=by, gpus=len(inventory.gpus))
    return replace(word, digest=place.digest(text))


def ask(inventory: Inventory | None, gpus: Sequence[Gpu], *, smi: Smi) -> Word | None:
    """What NVML says of the GPUs; None where no driver is in force, or it has no nvidia-smi."""
    if inventory is None:
        return None
    of = health.key(inventory)
    try:
        recovery = True
        said = smi.ask(inventory.tree, health.query(recovery=True))
        if said and health.knows_less(*said):
            recovery = False
            said = smi.ask(inventory.tree, health.query(recovery=False))
    except Failure as failure:
        late = "did not end" in failure.sentence
        return Word(of=of, problem=health.hung(smi.seconds) if late else _unasked(failure))
    if said is None:
        return None
    word = health.read(*said, recovery=recovery, gpus=gpus, loaded=inventory.driver)
    return replace(word, of=of)


def _unasked(failure: Failure) -> Problem:
    return Problem(Code.NVML_FAILED, failure.sentence, failure.remedy)


def refuse_manager(path: str, version: str, loaded: str) -> None:
    """Refuse a fabric manager that the loaded driver would refuse. One that says no version is tried."""
    if not path:
        raise Permanent(
            Code.FABRIC_MISSING,
            "the host has NVSwitches, and neither tree nor host has a fabric manager",
            f"Publish an image that brings it, or install that of version {loaded}; {_THEN}",
        )
    if version and version != loaded:
        raise Permanent(
            Code.FABRIC_MISMATCH,
            f"'{path}' is of version {version}, and driver {loaded} is loaded",
            f"Publish an image with the fabric manager of version {loaded}; {_THEN}",
        )
