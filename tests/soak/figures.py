# SPDX-License-Identifier: Apache-2.0
"""What one process holds, sample by sample, and whether it holds more at the end than at the beginning."""

from __future__ import annotations

import contextlib
import re
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

# Resident memory of a whole process may grow by less than this, in KiB.
GROWTH = 2048
_PART = 5
"""A fifth of the samples makes up the beginning, another the end: one sample alone may be an outlier."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the kernel says that a process holds, after so many looks; memory in KiB."""

    looks: int
    seconds: float
    rss: int
    anonymous: int
    pss: int
    threads: int
    descriptors: tuple[str, ...]
    """By what they are: of sockets, pipes and the like the kind, not the number."""

    def line(self) -> dict[str, Any]:
        """For a file of JSON lines."""
        shown = {name: getattr(self, name) for name in self.__slots__ if name != "descriptors"}
        return shown | {"descriptors": dict(Counter(self.descriptors))}


def sample(pid: int, looks: int, seconds: float) -> Sample:
    """One sample of a process of this machine."""
    place = Path(f"/proc/{pid}")
    sizes = {
        match[1]: int(match[2])
        for match in re.finditer(r"^(\w+): +(\d+) kB$", (place / "smaps_rollup").read_text(), re.MULTILINE)
    }
    held = []
    for descriptor in (place / "fd").iterdir():
        # What is closed while it is looked at is not held.
        with contextlib.suppress(FileNotFoundError):
            held.append(re.sub(r"\[\d+\]|\d{3,}", "", str(descriptor.readlink())))
    threads = len(list((place / "task").iterdir()))
    memory = (sizes["Rss"], sizes["Anonymous"], sizes["Pss"])
    return Sample(looks, round(seconds, 1), *memory, threads, tuple(sorted(held)))


def growth(samples: Sequence[Sample]) -> int:
    """By how many KiB the resident memory grew: the median of the last fifth less that of the first."""
    part = max(1, len(samples) // _PART)
    first, last = samples[:part], samples[-part:]
    return round(statistics.median(s.rss for s in last) - statistics.median(s.rss for s in first))


def slope(samples: Sequence[Sample]) -> float:
    """KiB of resident memory a look, by the straight line that fits all samples best."""
    return statistics.linear_regression([s.looks for s in samples], [s.rss for s in samples]).slope


def faults(samples: Sequence[Sample], allowed: int = GROWTH) -> list[str]:
    """What a process holds at the end and did not at the beginning; the samples are past its warm-up."""
    found = []
    looks = samples[-1].looks - samples[0].looks
    grown = growth(samples)
    if grown >= allowed:
        found.append(f"memory grew by {grown} KiB over {looks} looks, less than {allowed} is allowed")
    # What is on its way out in one sample is gone in the next: two are looked at, at either end.
    (a, b), (y, z) = samples[:2], samples[-2:]
    more = (Counter(y.descriptors) & Counter(z.descriptors)) - (
        Counter(a.descriptors) | Counter(b.descriptors)
    )
    if more:
        found.append(f"new descriptors after {looks} looks: {dict(more)}")
    before, after = max(a.threads, b.threads), min(y.threads, z.threads)
    if after > before:
        found.append(f"{after} threads after {looks} looks, {before} before")
    return found
