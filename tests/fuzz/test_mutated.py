# SPDX-License-Identifier: Apache-2.0
"""Every target: the stored corpus, and what hypothesis makes of it, for a bounded time each."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.table import TARGETS
from tests.fuzz.target import CORPUS, LONGEST, WORK
from tests.record import note

if TYPE_CHECKING:
    from pathlib import Path

    from hypothesis.strategies import DrawFn

SECONDS = float(os.environ.get("NVIDIAD_FUZZ_SECONDS", "0.5"))
SEED = int(os.environ.get("NVIDIAD_FUZZ_SEED", "20261129"))
# What parsers trip over: quotes and brackets that never end, numbers that are too long, names that climb.
WORDS = (
    *(b"[", b"{", b'{"a":', b'"', b"\\", b'\\"', b"'", b"]", b"}", b",", b":", b"=", b" ", b"\n", b"\r\n"),
    *(
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xe2\x80\xae",
        b"../",
        b"/",
        b".",
        b"0",
        b"9",
        b"1.",
        b"-1",
        b"1e999",
    ),
    *(
        b"a",
        b"a.",
        b"a=",
        b"a=\0",
        b"a\\\n",
        b"NaN",
        b"true",
        b"null",
        b"\\ud800",
        b"%s",
        b"http://",
        b"@",
        b"|",
    ),
    *(b"a::", b"\x1b[", b"\x7fELF", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(8)),
)


class Input(NamedTuple):
    """What is said; hypothesis shows it, and need not show all."""

    data: bytes

    def __repr__(self) -> str:
        return f"{len(self.data)} bytes {self.data[:200]!r}"


@st.composite
def mutated(draw: DrawFn, seeds: list[bytes]) -> Input:
    """One of the corpus with a few changes; or a word that is repeated until there is no more room."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 16)))
        match draw(st.sampled_from(("change", "word", "cut", "swell", "splice", "double"))):
            case "change":
                data = data[:at] + draw(st.binary(max_size=8)) + data[end:]
            case "word":
                data = data[:at] + draw(st.sampled_from(WORDS)) + data[end:]
            case "cut":
                data = data[:at] if draw(st.booleans()) else data[at:]
            case "swell":
                word = draw(st.sampled_from(WORDS))
                room = max(0, LONGEST - len(data)) // draw(st.sampled_from((1, 2, 100)))
                data = data[:at] + word * (room // len(word)) + data[at:]
            case "splice":
                other = draw(st.sampled_from(seeds))
                data = data[:at] + other[draw(st.integers(0, len(other))) :]
            case _:
                data = data[:at] + data[at:end] * 2 + data[end:]
    return Input(data[:LONGEST])


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_that_is_said_is_more_than_refused(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    assert seeds, f"put what it takes into {CORPUS / name}"
    assert any(_is_taken(name, each) for each in seeds), "no seed gets further than a refusal"
    cases = size = 0
    crash: Exception | None = None
    began = time.monotonic()

    def attack(data: bytes) -> None:
        nonlocal cases, size, crash
        cases, size = cases + 1, size + len(data)
        try:
            target.attack(data)
        except Exception as error:
            crash = error
            error.add_note(f"The input is in '{_keep(name, data)}'.")
            raise

    for data in (b"", *seeds):
        attack(data)

    @seed(SEED)
    @settings(
        max_examples=1_000_000 if SECONDS > 10 else 2000,
        deadline=None,
        database=None,
        # Not made smaller: what takes a second each would take an hour.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(seeds))
    def fuzz(given: Input) -> None:
        if crash is None and time.monotonic() - began > SECONDS:
            raise _Over
        # After a crash hypothesis looks for others, and what takes long takes long each time.
        if crash is not None and time.monotonic() - began > 10 * SECONDS:
            raise crash
        attack(given.data)

    with suppress(_Over):
        fuzz()
    seconds = round(time.monotonic() - began, 2)
    note("fuzz", f"{name}, mutated", cases=cases, bytes=size, crashes=0, seconds=seconds)


class _Over(BaseException):
    """The time is over."""


def _keep(name: str, data: bytes) -> Path:
    """Where an input that crashed is to be found."""
    place = WORK / name
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"crash-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def _is_taken(name: str, data: bytes) -> bool:
    try:
        TARGETS[name].run(data)
    except TARGETS[name].refusals:
        return False
    return True
