# SPDX-License-Identifier: Apache-2.0
"""A publication: what one run of `publish` did, and how things stand after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from nvidiad.image.nouns.model import Cell, Standing, State
    from nvidiad.nouns.compatibility import Compatibility
    from nvidiad.nouns.model import Problem


class Outcome(Value):
    """What came of one cell that was to be built."""

    cell: Cell
    state: State
    digest: str = ""
    problem: Problem | None = None
    log: str = ""
    """The end of what the compiler printed, where it did not come to its end."""


class Published(Value):
    """What a run did, and how things stand after it."""

    complete: bool
    """Whether all that can be is published, of this run's architectures, and nothing went wrong."""
    standings: tuple[Standing, ...]
    outcomes: tuple[Outcome, ...]
    moved: tuple[str, ...]
    """Tags that name something else now: those of channels, and those of several architectures."""
    signed: tuple[str, ...]
    """Digests that got a signature."""
    compatibility: Compatibility
    listed: bool
    """Whether the list in the registry was written."""
    problems: tuple[Problem, ...]
    """What went wrong apart from single cells."""
    notes: tuple[str, ...] = ()
