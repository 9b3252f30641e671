# SPDX-License-Identifier: Apache-2.0
"""Back-off: bounds, spread and the clock, as properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Attempt, Memory, Problem
from nvidiad.thought import backoff

PROBLEM = Problem(Code.IMAGE_MISSING, "x")
SECONDS = st.floats(1, 1e5)


@given(st.integers(1, 10_000), SECONDS, SECONDS, st.text())
def test_a_delay_is_never_longer_than_the_maximum_and_never_nothing(
    count: int, initial: float, maximum: float, seed: str
) -> None:
    seconds = backoff.delay(count, initial=initial, maximum=maximum, seed=seed)
    assert 0 < seconds <= maximum


@given(st.integers(1, 10), st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_no_clock_makes_a_wait_longer_than_the_delay(count: int, last: float, now: float) -> None:
    attempt = Attempt("k", count, last, PROBLEM)
    assert 0 <= backoff.wait(attempt, now, initial=10, maximum=100, seed="s") <= 100


def test_a_fleet_spreads() -> None:
    delays = {backoff.delay(3, initial=10, maximum=600, seed=f"host{n}") for n in range(1000)}
    assert len(delays) > 950
    assert max(delays) - min(delays) > 18


def test_failures_are_counted_by_key_and_forgotten_by_success() -> None:
    memory = Memory()
    for last in (1.0, 2.0):
        memory = backoff.failed(memory, Attempt("a", 1, last, PROBLEM))
    memory = backoff.failed(memory, Attempt("b", 1, 3.0, PROBLEM))
    assert {a.reference: (a.count, a.last) for a in memory.attempts} == {"a": (2, 2.0), "b": (1, 3.0)}
    assert [a.reference for a in backoff.succeeded(memory, "a").attempts] == ["b"]
    assert {a.last for a in backoff.forgive(memory).attempts} == {0.0}
