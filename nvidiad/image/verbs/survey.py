# SPDX-License-Identifier: Apache-2.0
"""Survey: what the registry has of what should be, by many requests at a time and without a download."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from nvidiad.image.nouns.model import Cell, Standing, State
from nvidiad.image.thought import matrix
from nvidiad.nouns import compatibility
from nvidiad.nouns.compatibility import Compatibility
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Progress
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nvidiad.image.nouns.model import OsRelease
    from nvidiad.image.nouns.recipe import Recipe

_STEP = "ask-registry"
_EVERY = 50
# What one request fails of, the next thousand would fail of, too.
_ALL = frozenset({Code.REGISTRY_UNREACHABLE, Code.REGISTRY_STALLED, Code.REGISTRY_TLS, Code.REGISTRY_AUTH})


class Asked(Protocol):
    """The repository of the images: `nvidiad.world.repository.Repository`."""

    name: str

    def head(self, reference: str) -> str | None: ...
    def artefact(self, tag: str, media_type: str, limit: int = ...) -> bytes | None: ...


class Survey(Value):
    """What should be and what is."""

    standings: tuple[Standing, ...]
    places: Mapping[Cell, str]
    """The tag under which each cell's image lies."""
    listed: Compatibility
    """The compatibility list as it is; an empty one where there is none."""
    notes: tuple[str, ...]
    """What is wanted and unknown, and what is wrong with the list."""


def survey(
    recipe: Recipe, releases: Sequence[OsRelease], registry: Asked, tell: Callable[[Progress], None]
) -> Survey:
    """How things stand with every cell of the recipe, by at most `recipe.connections` requests at a time.

    Cells that the registry does not answer for are unknown, with the reason; no failure is raised for them.
    """
    wanted = matrix.cells(recipe, releases)
    places = matrix.places(wanted)
    digests = _heads(tuple(dict.fromkeys(places.values())), registry, recipe.connections, tell)
    notes = list(matrix.unmet(recipe, releases))
    listed = Compatibility()
    if any(not isinstance(answer, Failure) for answer in digests.values()):
        try:
            listed = read_list(registry)
        except Failure as failure:
            # Written anew it forgets what cannot be built; one that nobody can read has done that already.
            if failure.code not in (Code.MANIFEST_INVALID, Code.IMAGE_FOREIGN):
                raise
            notes.append(f"{failure.sentence}; it will be written anew")
    standings = tuple(_standing(cell, digests[places[cell]], listed) for cell in wanted)
    return Survey(standings, places, listed, tuple(notes))


def read_list(registry: Asked) -> Compatibility:
    """The compatibility list of a repository; an empty one where there is none."""
    data = registry.artefact(compatibility.TAG, compatibility.MEDIA_TYPE, compatibility.MAX_BYTES)
    if data is None:
        return Compatibility()
    return compatibility.parse(data.decode(errors="replace"), f"{registry.name}:{compatibility.TAG}")


def _heads(
    tags: Sequence[str], registry: Asked, connections: int, tell: Callable[[Progress], None]
) -> dict[str, str | Failure | None]:
    """The digest of each tag, None where it is missing, or why that is not known."""
    hopeless: list[Failure] = []

    def ask(tag: str) -> str | Failure | None:
        if hopeless:
            return hopeless[0]
        try:
            return registry.head(tag)
        except Failure as failure:
            if failure.code in _ALL:
                hopeless.append(failure)
            return failure

    found: dict[str, str | Failure | None] = {}
    with ThreadPoolExecutor(connections) as threads:
        for number, (tag, answer) in enumerate(zip(tags, threads.map(ask, tags), strict=True), 1):
            found[tag] = answer
            if number % _EVERY == 0 or number == len(tags):
                tell(Progress(_STEP, f"{number} of {len(tags)} tags"))
    return found


def _standing(cell: Cell, answer: str | Failure | None, listed: Compatibility) -> Standing:
    if isinstance(answer, Failure):
        return Standing(cell, State.UNKNOWN, reason=answer.sentence)
    if answer is not None:
        return Standing(cell, State.PUBLISHED, answer)
    entry = matrix.known_unbuildable(cell, listed)
    if entry is not None:
        return Standing(cell, State.UNBUILDABLE, reason=entry.reason)
    return Standing(cell, State.MISSING)
