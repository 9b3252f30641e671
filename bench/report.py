# SPDX-License-Identifier: Apache-2.0
"""Figures, what they are compared with, and how they are printed."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Figure:
    """One thing measured several times; `base` and `allowed` were measured in the same rounds."""

    name: str
    unit: str
    samples: tuple[float, ...]
    base: tuple[float, ...] = ()
    """What the ratio is to."""
    allowed: tuple[float, ...] = ()
    """What the target would have been in each round, or one number for all."""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The middle half of the samples; all of them where there are few."""
        if len(self.samples) < 4:
            return min(self.samples), max(self.samples)
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high

    @property
    def ratio(self) -> float | None:
        return ratio(self.samples, self.base) if self.base else None

    @property
    def used(self) -> float | None:
        """How much of what is allowed was taken: above 1 the target is missed."""
        return ratio(self.samples, self.allowed) if self.allowed else None


@dataclass(frozen=True)
class Part:
    """One part of the bench: its figures, and where the time or the memory went."""

    letter: str
    title: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    load: tuple[float, float] = (0.0, 0.0)
    """The machine's load average when the part began and when it ended."""


@dataclass(frozen=True)
class Run:
    """All parts of one run, and the machine that they ran on."""

    machine: Mapping[str, str]
    parts: tuple[Part, ...] = field(default=())


def ratio(samples: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios of the rounds, so that load which comes and goes hits both sides of each.

    Where there are not as many of both it is the ratio of the medians.
    """
    if len(samples) == len(base):
        return statistics.median(one / other for one, other in zip(samples, base, strict=True))
    return statistics.median(samples) / statistics.median(base)


def table(run: Run) -> str:
    """The whole run for a person."""
    lines = [f"{key}: {value}" for key, value in run.machine.items()]
    heads = ("", "median", "middle half", "n", "ratio", "allowed", "target")
    for part in run.parts:
        began, ended = part.load
        lines += ["", f"({part.letter}) {part.title}  [load average {began:.1f} to {ended:.1f}]"]
        rows = [heads, *(_row(figure) for figure in part.figures)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        for row in rows:
            cells = (
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  " + "  ".join(cells).rstrip())
        lines += [f"  {note}" for note in part.notes]
    return "\n".join(lines) + "\n"


def _row(figure: Figure) -> tuple[str, ...]:
    low, high = figure.spread
    used, against = figure.used, figure.ratio
    return (
        figure.name,
        f"{figure.median:.4g} {figure.unit}",
        f"{low:.4g} - {high:.4g}",
        str(len(figure.samples)),
        "" if against is None else f"{against:.2f}",
        "" if used is None else f"{statistics.median(figure.allowed):.4g} {figure.unit}",
        "" if used is None else "met" if used <= 1 else f"missed ({used:.2f})",
    )


def document(run: Run) -> str:
    """The whole run for a program, every sample included."""
    return json.dumps({"machine": dict(run.machine), "parts": [_part(part) for part in run.parts]}, indent=1)


def _part(part: Part) -> dict[str, object]:
    figures = [
        {
            "name": figure.name,
            "unit": figure.unit,
            "median": figure.median,
            "spread": list(figure.spread),
            "ratio": figure.ratio,
            "allowed": statistics.median(figure.allowed) if figure.allowed else None,
            "used": figure.used,
            "samples": list(figure.samples),
        }
        for figure in part.figures
    ]
    return {
        "part": part.letter,
        "title": part.title,
        "load": list(part.load),
        "figures": figures,
        "notes": list(part.notes),
    }
