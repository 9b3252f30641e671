# SPDX-License-Identifier: Apache-2.0
"""Counting moments: how many a second, how many in the busiest one, when so many of all were there."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def most(moments: Sequence[float]) -> int:
    """How many there are in the busiest second, of those that begin at whole seconds."""
    return max(Counter(math.floor(moment) for moment in moments).values(), default=0)


def within(moments: Sequence[float], start: float, end: float) -> tuple[float, ...]:
    """Those from `start` on and before `end`."""
    return tuple(moment for moment in moments if start <= moment < end)


def mean(moments: Sequence[float], start: float, end: float) -> float:
    """How many a second there are from `start` on and before `end`."""
    return len(within(moments, start, end)) / (end - start)


def reached(moments: Sequence[float], count: int, share: float) -> float:
    """The moment at which this share of `count` was there; one moment for each that is."""
    needed = math.ceil(share * count)
    if not 0 < needed <= len(moments):
        raise ValueError(f"{len(moments)} of {count} are there, not {share:.0%}")
    return sorted(moments)[needed - 1]


def by_parts(moments: Sequence[float], end: float, parts: int = 10) -> tuple[float, ...]:
    """How many a second there are in each of so many equal parts of the time until `end`."""
    width = end / parts
    return tuple(mean(moments, part * width, (part + 1) * width) for part in range(parts))
