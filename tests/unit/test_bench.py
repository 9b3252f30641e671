# SPDX-License-Identifier: Apache-2.0
"""The arithmetic and the print of `make bench`; what it measures takes real beds."""

from __future__ import annotations

import json

import pytest

from bench.idle import answers, rollup, undivided, voluntary, wake_ups
from bench.report import Figure, Part, Run, document, ratio, table

ROLLUP = """\
55c0 ---p 00000000 00:00 0    [rollup]
Rss:               45000 kB
Pss:               34000 kB
Pss_Anon:          28000 kB
Private_Dirty:     28000 kB
"""
SMAPS = """\
00400000-0041f000 r--p 00000000 00:2a 1186   /usr/bin/python3.11
Rss:                3000 kB
Pss:                 500 kB
VmFlags: rd mr mw me sd
014a9000-01d4c000 rw-p 00000000 00:00 0      [heap]
Rss:                 900 kB
Pss:                 900 kB
7f1c0000-7f1d0000 r-xp 00000000 00:2a 1187   /usr/lib/x86_64-linux-gnu/libc.so.6
Rss:                1500 kB
Pss:                 100 kB
"""
STATUS = """\
Name:\tnvidiad
voluntary_ctxt_switches:\t417
nonvoluntary_ctxt_switches:\t12
"""


def test_ratio_is_taken_round_by_round() -> None:
    # The load of the second round hits both sides of it.
    assert ratio((2.0, 20.0, 4.0), (1.0, 10.0, 2.0)) == 2.0


def test_ratio_of_unequal_numbers_is_that_of_the_medians() -> None:
    assert ratio((2.0, 6.0, 4.0), (2.0,)) == 2.0


def test_spread_is_the_middle_half() -> None:
    assert Figure("x", "s", (1.0, 2.0, 3.0, 4.0, 100.0)).spread == (2.0, 4.0)
    assert Figure("x", "s", (5.0, 1.0)).spread == (1.0, 5.0)
    assert Figure("x", "s", (7.0,)).spread == (7.0, 7.0)


@pytest.mark.parametrize(
    ("samples", "told"), [((3.0, 3.0), "met"), ((2.0, 2.0), "met"), ((4.5, 4.5), "missed (1.50)")]
)
def test_target_is_met_up_to_what_is_allowed(samples: tuple[float, ...], told: str) -> None:
    figure = Figure("nvidiad", "s", samples, (1.0, 1.0), (3.0, 3.0))
    assert _cells(figure)[-1] == told


def test_table_has_a_line_for_each_figure() -> None:
    figures = (
        Figure("floor", "s", (1.0, 1.5, 2.0)),
        Figure("nvidiad", "s", (2.0, 3.0, 4.0), (1.0, 1.5, 2.0)),
    )
    text = table(Run({"kernel": "6.1"}, (Part("a", "seconds", figures, ("a note",), (0.5, 2.0)),)))
    assert text.splitlines() == [
        "kernel: 6.1",
        "",
        "(a) seconds  [load average 0.5 to 2.0]",
        "           median  middle half  n  ratio  allowed  target",
        "  floor     1.5 s        1 - 2  3",
        "  nvidiad     3 s        2 - 4  3   2.00",
        "  a note",
    ]


def test_document_holds_every_sample() -> None:
    figure = Figure("memory", "MB", (30.0, 50.0), allowed=(40.0,))
    told = json.loads(document(Run({"kernel": "6.1"}, (Part("c", "rest", (figure,)),))))
    assert told["parts"][0]["figures"] == [
        {
            "name": "memory",
            "unit": "MB",
            "median": 40.0,
            "spread": [30.0, 50.0],
            "ratio": None,
            "allowed": 40.0,
            "used": 1.0,
            "samples": [30.0, 50.0],
        }
    ]


def test_memory_is_read_in_megabytes() -> None:
    assert rollup(ROLLUP) == pytest.approx(
        {"Rss": 46.08, "Pss": 34.816, "Pss_Anon": 28.672, "Private_Dirty": 28.672}
    )


def test_memory_is_that_of_the_only_python() -> None:
    assert undivided(SMAPS) == pytest.approx((3000 + 900 + 100) * 1.024e-3)


def test_wake_ups_are_those_since_then_of_all_threads() -> None:
    assert voluntary(STATUS) == 417
    assert wake_ups({"1": 400, "2": 5}, {"1": 417, "3": 2}) == 19


def _cells(figure: Figure) -> list[str]:
    """The cells of a figure's line in the table."""
    line = table(Run({}, (Part("a", "", (figure,)),))).splitlines()[-1]
    return [cell.strip() for cell in line.split("  ") if cell]


def test_the_watchdog_is_answered_every_half_minute() -> None:
    assert answers(180) == 7
    with pytest.raises(ValueError, match="250 s at most"):
        answers(260)
