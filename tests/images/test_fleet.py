# SPDX-License-Identifier: Apache-2.0
"""The fleet of `make bench`, small and short, against a real registry: all are served, all is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.crowd import THERE, Outcome, Scenario, crowd, play
from bench.fleet import AWAY, HERD, MISSING, SPREAD, settings
from nvidiad.nouns.value import replace
from nvidiad.thought.settings import Daemon
from tests.images.shelf import Shelf, shelf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvidiad.thought.settings import Settings

NODES = 20


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with shelf(tmp_path_factory.mktemp("fleet")) as made:
        yield made


def wanted(registry: Shelf, spread: float) -> Settings:
    base = settings(registry.address)
    daemon = Daemon(retry_initial=5.0, retry_maximum=20.0)
    return replace(base, stage=replace(base.stage, spread=spread), daemon=daemon)


def run(scenario: Scenario, registry: Shelf) -> Outcome:
    outcome = play(scenario, crowd(NODES, 1, scenario.settings), registry)
    assert len(outcome.done) == NODES
    assert len(outcome.answered) - len(outcome.missing) >= NODES * THERE
    return outcome


def test_a_herd_is_served_and_every_request_is_counted(registry: Shelf) -> None:
    outcome = run(Scenario(HERD, wanted(registry, 0.0), 1.0), registry)
    assert outcome.logged == len(outcome.answered) == NODES * THERE
    assert not outcome.failed


def test_a_spread_fleet_asks_over_the_time_of_its_spread(registry: Shelf) -> None:
    outcome = run(Scenario(SPREAD, wanted(registry, 60.0), 20.0), registry)
    assert outcome.logged == len(outcome.answered) == NODES * THERE
    assert max(outcome.answered) - min(outcome.answered) > 30.0


def test_nodes_are_told_that_the_image_is_not_there_until_it_is(registry: Shelf) -> None:
    outcome = run(Scenario(MISSING, wanted(registry, 5.0), 20.0, published=40.0), registry)
    assert len(outcome.missing) > 2 * NODES
    assert min(outcome.done) > 40.0
    assert not outcome.failed


def test_nodes_without_a_registry_try_again_until_it_is_back(registry: Shelf) -> None:
    outcome = run(Scenario(AWAY, wanted(registry, 40.0), 20.0, down=(10.0, 60.0)), registry)
    assert outcome.failed
    assert not outcome.missing
    assert outcome.offered >= 60.0
