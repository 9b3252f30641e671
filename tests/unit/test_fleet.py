# SPDX-License-Identifier: Apache-2.0
"""The fleet of `make bench`: its arithmetic, and what its nodes decide; tests/images has the registry."""

from __future__ import annotations

from dataclasses import replace as changed

import pytest

from bench.crowd import MISSING, THERE, Node, Scenario, crowd, rehearse, turns
from bench.fleet import settings
from bench.tally import by_parts, mean, most, reached, within
from nvidiad.nouns.value import replace
from nvidiad.thought.settings import Settings

WANTED = settings("registry.example")
AT_ONCE = replace(WANTED, stage=replace(WANTED.stage, spread=0.0))
DAEMON = Settings().daemon


@pytest.mark.parametrize(
    ("moments", "busiest"),
    [
        ((), 0),
        ((0.0, 0.99, 1.0), 2),
        # Half a second apart, and yet of two seconds: a second begins where the clock says so.
        ((0.6, 1.4), 1),
        ((5.2, 0.1, 5.9, 5.0), 3),
    ],
)
def test_the_busiest_second_is_one_of_the_clock(moments: tuple[float, ...], busiest: int) -> None:
    assert most(moments) == busiest


@pytest.mark.parametrize(
    ("share", "moment"), [(0.01, 1.0), (0.25, 1.0), (0.26, 2.0), (0.5, 2.0), (0.99, 8.0), (1.0, 8.0)]
)
def test_a_share_is_reached_with_the_last_of_those_it_needs(share: float, moment: float) -> None:
    assert reached((8.0, 1.0, 4.0, 2.0), 4, share) == moment


def test_a_share_that_never_came_is_no_figure() -> None:
    with pytest.raises(ValueError, match="2 of 4 are there, not 75%"):
        reached((1.0, 2.0), 4, 0.75)


def test_a_part_of_the_time_has_its_begin_and_not_its_end() -> None:
    moments = (0.0, 1.0, 1.5, 2.0, 9.0)
    assert within(moments, 1.0, 2.0) == (1.0, 1.5)
    assert mean(moments, 1.0, 3.0) == 1.5
    assert by_parts(moments, 4.0, 2) == (1.5, 0.5)


# -- what is decided ---------------------------------------------------------------------------------------


def test_without_a_spread_all_ask_at_once_and_with_it_over_all_of_its_time() -> None:
    assert set(turns(crowd(50, 1, AT_ONCE))) == {0.0}
    spread = turns(crowd(1000, 1, WANTED))
    assert max(spread) <= WANTED.stage.spread
    # Evenly: no tenth of the time has half of its share more or less.
    assert all(0.5 < 10 * tenth * 30 / 1000 < 1.5 for tenth in by_parts(spread, 300.0))


def test_a_fleet_of_the_same_seed_decides_the_same() -> None:
    assert turns(crowd(20, 7, WANTED)) == turns(crowd(20, 7, WANTED))
    assert turns(crowd(20, 7, WANTED)) != turns(crowd(20, 8, WANTED))


def test_what_is_there_is_asked_for_once() -> None:
    outcome = rehearse(Scenario("", WANTED, 1.0), crowd(100, 1, WANTED))
    assert len(outcome.answered) == 100 * THERE
    assert len(outcome.done) == 100
    assert not outcome.missing
    assert not outcome.failed


def test_an_image_that_comes_late_is_found_within_the_longest_pause() -> None:
    scenario = Scenario("", WANTED, 1.0, published=2000.0)
    outcome = rehearse(scenario, crowd(100, 1, WANTED))
    assert outcome.offered == 2000.0
    assert min(outcome.done) > 2000.0
    assert max(outcome.done) <= 2000.0 + DAEMON.retry_maximum + 1
    # Once the pauses have their length, a node asks once in three quarters of the longest.
    expected = 100 * MISSING / (0.75 * DAEMON.retry_maximum)
    assert mean(outcome.missing, 1000.0, 2000.0) == pytest.approx(expected, rel=0.1)


def test_a_herd_that_is_turned_away_comes_back_one_by_one() -> None:
    scenario = Scenario("", AT_ONCE, 1.0, published=2000.0)
    outcome = rehearse(scenario, crowd(100, 1, AT_ONCE))
    assert most(outcome.missing) == 100 * MISSING
    assert most(within(outcome.missing, 1.0, 60.0)) <= 30 * MISSING
    assert most(within(outcome.missing, 600.0, 2000.0)) <= 5 * MISSING


def test_a_registry_that_is_down_costs_those_whose_turn_it_was() -> None:
    scenario = Scenario("", WANTED, 1.0, down=(60.0, 360.0))
    outcome = rehearse(scenario, crowd(100, 1, WANTED))
    assert len(outcome.done) == 100
    assert all(60.0 <= moment < 360.0 for moment in outcome.failed)
    assert not within(outcome.done, 60.0, 360.0)
    assert max(outcome.done) <= 360.0 + DAEMON.retry_maximum
    never = rehearse(changed(scenario, down=None), crowd(100, 1, WANTED))
    assert not never.failed


def test_a_node_waits_a_second_at_least_where_it_waits() -> None:
    node = Node("b", WANTED)
    first = node.look(0.0)
    assert first > 1.0
    assert node.look(first - 0.2) == 1.0
    assert node.look(first + 0.001) == 0.0
