# SPDX-License-Identifier: Apache-2.0
"""The judgement of a soak; what it judges takes a real host."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from tests.soak import figures
from tests.soak.figures import Sample
from tests.unit.rest import at_rest

if TYPE_CHECKING:
    from collections.abc import Callable

HELD = ("/dev/null", "anon_inode:[eventpoll]", "socket:", "socket:")


def series(rss: Callable[[int], float], *, ends: dict[int, Sample] | None = None) -> list[Sample]:
    """Seventeen samples over 5,000 looks."""
    made = [
        Sample(650 + round(number * 312.5), number * 30.0, round(rss(number)), 0, 0, 2, HELD)
        for number in range(17)
    ]
    for number, one in (ends or {}).items():
        made[number] = one
    return made


def held(number: int, *descriptors: str, threads: int = 2) -> dict[int, Sample]:
    return {number: Sample(650 + round(number * 312.5), 0, 45000, 0, 0, threads, descriptors)}


NEW = (*HELD, "socket:")


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        pytest.param(series(lambda _: 45000), [], id="flat"),
        pytest.param(series(lambda n: 45000 + n % 3 * 900), [], id="up and down"),
        pytest.param(series(lambda n: 45000 + n * 100), [], id="1.6 MB"),
        pytest.param(series(lambda n: 45000 + n * 150), ["memory grew"], id="2.4 MB"),
        pytest.param(series(lambda n: 45000 + (n > 8) * 2500), ["memory grew"], id="a step"),
        pytest.param(series(lambda n: 45000 + (n == 16) * 9000), [], id="one sample that is off"),
        pytest.param(series(lambda n: 45000 - n * 150), [], id="less and less"),
        pytest.param(
            series(lambda _: 45000, ends=held(15, *NEW) | held(16, *NEW)), ["new descriptors"], id="a socket"
        ),
        pytest.param(series(lambda _: 45000, ends=held(16, *NEW)), [], id="a socket on its way out"),
        pytest.param(
            series(lambda _: 45000, ends=held(15, *HELD, threads=3) | held(16, *HELD, threads=4)),
            ["3 threads"],
            id="a thread",
        ),
    ],
)
def test_what_is_flat(samples: list[Sample], words: list[str]) -> None:
    found = figures.faults(samples)
    assert len(found) == len(words), found
    for fault, word in zip(found, words, strict=True):
        assert word in fault


def test_a_sample_of_a_real_process() -> None:
    before = at_rest(lambda: figures.sample(os.getpid(), 1, 0.0))
    assert before.rss > before.anonymous > 0
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    reader, writer = os.pipe()
    try:
        after = figures.sample(os.getpid(), 2, 0.0)
    finally:
        ended.set()
        thread.join()
        os.close(reader)
        os.close(writer)
    assert after.threads == before.threads + 1
    assert [name for name in after.descriptors if name == "pipe:"] == [
        *(name for name in before.descriptors if name == "pipe:"),
        *("pipe:", "pipe:"),
    ]
