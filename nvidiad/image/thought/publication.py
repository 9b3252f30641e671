# SPDX-License-Identifier: Apache-2.0
"""What is told of a run of `publish`: to a person and to a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.image.nouns.model import State
from nvidiad.image.thought import matrix
from nvidiad.thought import render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvidiad.image.nouns.publication import Outcome, Published
    from nvidiad.nouns.model import Problem


def text(published: Published) -> str:
    """A line for everything that was done or went wrong, and how things stand."""
    return "".join(f"{render.clean(line)}\n" for line in _lines(published))


def _lines(published: Published) -> Iterator[str]:
    yield from published.notes
    for outcome in published.outcomes:
        yield _outcome(outcome)
    for tag in published.moved:
        yield f"{tag}: names another image now"
    for digest in published.signed:
        yield f"{digest}: signed"
    if published.listed:
        yield f"the compatibility list was written: {len(published.compatibility.entries)} entries"
    for problem in published.problems:
        yield f"{problem.code}: {problem.sentence}"
    counted = ", ".join(f"{n} {state}" for state, n in matrix.counts(published.standings).items() if n)
    yield counted or "nothing is wanted"


def _outcome(outcome: Outcome) -> str:
    tag, problem = outcome.cell.tag, outcome.problem
    if problem is None:
        return f"{tag}: published as {outcome.digest}"
    what = "cannot be built" if outcome.state is State.UNBUILDABLE else "failed"
    return f"{tag}: {what} ({problem.code}: {problem.sentence})"


def document(repository: str, published: Published) -> dict[str, object]:
    """As the matrix tells of cells, with what was done in this run."""
    done = {
        "outcomes": [
            {
                "tag": outcome.cell.tag,
                "architecture": str(outcome.cell.release.architecture),
                "state": str(outcome.state),
                "digest": outcome.digest,
                "problem": outcome.problem and _problem(outcome.problem),
                "log": outcome.log.splitlines(),
            }
            for outcome in published.outcomes
        ],
        "moved": list(published.moved),
        "signed": list(published.signed),
        "listed": published.listed,
        "problems": [_problem(problem) for problem in published.problems],
        "complete": published.complete,
    }
    return matrix.document(repository, published.standings, published.notes) | done


def _problem(problem: Problem) -> dict[str, object]:
    return {
        "code": str(problem.code),
        "sentence": problem.sentence,
        "remedy": problem.remedy,
        "retry": problem.retry,
    }
