# SPDX-License-Identifier: Apache-2.0
"""The matrix against a real registry: a thousand cells in seconds, by no more connections than wanted."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.nouns.model import Architecture, DriverSource, Family, OsRelease, SourceKind, State
from nvidiad.image.nouns.recipe import DriverWish, OsWish, Recipe
from nvidiad.image.thought import matrix
from nvidiad.image.verbs.survey import survey
from nvidiad.nouns import compatibility
from nvidiad.nouns.compatibility import Compatibility
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Flavour, Progress
from nvidiad.thought import distribution
from nvidiad.world.repository import Limits, Repository
from tests.images.shelf import Counting, Shelf, free_port, password, shelf

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONNECTIONS = 6
VERSIONS = 250
RELEASES = tuple(
    OsRelease(Family.FLATCAR, f"4593.2.{number}", "stable", Architecture.AMD64, f"6.12.{number}-flatcar")
    for number in range(VERSIONS)
)
DRIVERS = tuple(
    DriverWish(
        DriverSource(version, Flavour.OPEN, SourceKind.RUN, "", "https://x.invalid/a", "a" * 64),
        tuple(Family),
    )
    for version in ("535.309.01", "550.144.03", "570.86.15", "580.65.06")
)


def recipe(address: str, newest: int = VERSIONS) -> Recipe:
    wish = OsWish(Family.FLATCAR, ("stable",), newest=newest)
    return Recipe(f"{address}/nvidia-driver", (wish,), DRIVERS, connections=CONNECTIONS)


def quiet(_progress: Progress) -> None:
    """Nobody looks."""


def repository(address: str) -> Repository:
    return Repository(f"{address}/nvidia-driver", limits=Limits(connections=CONNECTIONS))


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """A registry with the images of every other release."""
    with shelf(tmp_path_factory.mktemp("shelf")) as made:
        target = repository(made.address)
        config, layer = target.put_blob(b"{}", distribution.EMPTY), target.put_blob(b"layer", "a/b")
        image = distribution.image(config, (layer,))
        tags = [cell.tag for cell in matrix.cells(recipe(made.address), RELEASES[::2])]
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            list(threads.map(lambda tag: target.put_manifest(image, tag), tags))
        yield made


def test_a_thousand_cells_take_seconds_and_few_connections(stocked: Shelf) -> None:
    counting = Counting(stocked.port)
    asked = len(stocked.requests())
    told: list[Progress] = []
    begun = time.monotonic()
    found = survey(recipe(counting.address), RELEASES, repository(counting.address), told.append)
    seconds = time.monotonic() - begun
    print(f"{len(found.standings)} cells in {seconds:.2f} s")
    assert len(found.standings) == 1000
    assert matrix.counts(found.standings) == {
        "published": 500,
        "missing": 500,
        "unbuildable": 0,
        "unknown": 0,
    }
    assert seconds < 60
    assert counting.most == CONNECTIONS
    requests = stocked.requests()[asked:]
    # Nothing is downloaded: a HEAD for each tag, one for the list.
    assert {request.partition(" ")[0] for request in requests} == {"HEAD"}
    assert len(requests) == 1001
    assert told[-1].detail == "1000 of 1000 tags"
    counting.close()


def test_the_list_tells_what_cannot_be_built(stocked: Shelf) -> None:
    target = repository(stocked.address)
    made = recipe(stocked.address, newest=2)
    (first, *_, last) = survey(made, RELEASES, target, quiet).standings
    assert (first.cell.release.version, first.state) == ("4593.2.249", State.MISSING)
    assert (last.cell.release.version, last.state) == ("4593.2.248", State.PUBLISHED)
    reason = "nv-pci.c:165: error: too few arguments"
    known = [s.__class__(s.cell, State.UNBUILDABLE, reason=reason) for s in (first, last)]
    listed = Compatibility("2026-11-27T00:00:00Z", matrix.entries(known, Compatibility()))
    text = compatibility.render(listed).encode()
    target.put_artefact(compatibility.TAG, compatibility.MEDIA_TYPE, text)
    found = survey(made, RELEASES, target, quiet)
    assert found.listed == listed
    # What is there is there, whatever the list says.
    assert [(s.state, s.reason) for s in found.standings if s.cell in (first.cell, last.cell)] == [
        (State.UNBUILDABLE, reason),
        (State.PUBLISHED, ""),
    ]
    assert f"{first.cell.tag} is unbuildable: {reason}" in matrix.table(found.standings)


def test_a_list_that_nobody_can_read_is_told_and_is_none(stocked: Shelf) -> None:
    target = repository(stocked.address)
    target.put_artefact(compatibility.TAG, compatibility.MEDIA_TYPE, b"{")
    found = survey(recipe(stocked.address, newest=1), RELEASES, target, quiet)
    assert found.listed == Compatibility()
    assert any("not a compatibility list" in note for note in found.notes)
    assert all(standing.state is State.MISSING for standing in found.standings)


def test_a_registry_that_is_away_makes_all_unknown_at_once() -> None:
    target = repository(f"127.0.0.1:{free_port()}")
    begun = time.monotonic()
    found = survey(recipe(target.name.partition("/")[0]), RELEASES, target, quiet)
    assert time.monotonic() - begun < 60
    assert {standing.state for standing in found.standings} == {State.UNKNOWN}
    assert "Connection refused" in found.standings[-1].reason


def test_a_registry_that_wants_a_password_makes_all_unknown(tmp_path: Path) -> None:
    with shelf(tmp_path, **password(tmp_path)) as locked:
        found = survey(recipe(locked.address, newest=1), RELEASES, repository(locked.address), quiet)
        assert {standing.state for standing in found.standings} == {State.UNKNOWN}
        assert len(locked.requests()) <= 2 * CONNECTIONS + 1


def test_a_list_that_the_registry_loses_midway_is_a_failure(stocked: Shelf) -> None:
    class Cut(Repository):
        def artefact(self, tag: str, media_type: str, limit: int = 0) -> bytes | None:
            stocked.stop()
            return super().artefact(tag, media_type, limit)

    target = Cut(f"{stocked.address}/nvidia-driver", limits=Limits(connections=2, tries=1))
    try:
        with pytest.raises(Failure) as caught:
            survey(recipe(stocked.address, newest=1), RELEASES, target, quiet)
    finally:
        stocked.start()
    assert caught.value.code is Code.REGISTRY_UNREACHABLE
