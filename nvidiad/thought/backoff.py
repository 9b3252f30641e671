# SPDX-License-Identifier: Apache-2.0
"""Back-off: when to try again; attempts are counted across boots, the jitter comes from who and what."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from nvidiad.nouns.value import replace

if TYPE_CHECKING:
    from nvidiad.nouns.model import Attempt, Memory


def delay(count: int, *, initial: float, maximum: float, seed: str) -> float:
    """Seconds after the `count`th failure (from 1): doubling, capped, and spread over its upper half.

    The spread depends on `seed` (host and image) only, so that a fleet does not knock at one moment while
    one host still gives the same answer at every look.
    """
    ceiling = min(maximum, initial * 2.0 ** min(count - 1, 32))
    return ceiling * (0.5 + lot(f"{seed}:{count}") / 2)


def lot(seed: str) -> float:
    """A number from 0 on and below 1 that says nothing but whose it is, and is the same at every look.

    Not a checksum: with CRC, hosts that came together once come together after every pause.
    """
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:6]) / 2**48


def wait(attempt: Attempt, now: float, *, initial: float, maximum: float, seed: str) -> float:
    """Seconds until the attempt may be repeated, 0 when it is due.

    A clock that was set back must not hold anything: a try in the future does not say how long ago it was.
    """
    if attempt.last > now:
        return 0.0
    pause = delay(attempt.count, initial=initial, maximum=maximum, seed=seed)
    return max(0.0, attempt.last + pause - now)


def find(memory: Memory, key: str) -> Attempt | None:
    """The failed attempts of one thing, if there are any."""
    return next((attempt for attempt in memory.attempts if attempt.reference == key), None)


def failed(memory: Memory, attempt: Attempt) -> Memory:
    """Memory with one more failure of `attempt.reference`; the count in `attempt` is ignored."""
    before = find(memory, attempt.reference)
    others = tuple(a for a in memory.attempts if a.reference != attempt.reference)
    counted = replace(attempt, count=before.count + 1 if before else 1)
    return replace(memory, attempts=(*others, counted))


def succeeded(memory: Memory, key: str) -> Memory:
    """Memory without failures of `key`."""
    return replace(memory, attempts=tuple(a for a in memory.attempts if a.reference != key))


def forgive(memory: Memory) -> Memory:
    """Everything is due now, as a person asked for; the counts go on."""
    return replace(memory, attempts=tuple(replace(a, last=0.0) for a in memory.attempts))
