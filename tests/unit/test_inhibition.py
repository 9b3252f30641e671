# SPDX-License-Identifier: Apache-2.0
"""logind's configuration as systemd reads it, and what locksmithd says: tables of texts.

`tests/host/test_reboot_gate.py` lets a real logind read the same texts.
"""

from __future__ import annotations

import pytest

from nvidiad.thought import inhibition
from nvidiad.thought.inhibition import INFINITY, Others

LIMIT = "InhibitDelayMaxSec"
# What a real logind makes of each value; None where it keeps what it had.
SPANS: dict[str, float | None] = {
    "30": 30,
    "0": 0,
    "1min 30s": 90,
    "5min5": 305,
    "2 h": 7200,
    "1h30": 3630,
    "1 30": 31,
    "500ms": 0.5,
    ".5": 0.5,
    "+5": 5,
    "3 .5": 3.5,
    "7us": 7e-6,
    "5 \u00b5s": 5e-6,
    "5 \u03bcs": 5e-6,
    "1w": 604_800,
    "2M": 5_259_600,
    "1month": 2_629_800,
    "1y": 31_557_600,
    "infinity": INFINITY,
    "": None,
    "soon": None,
    "5 parsecs": None,
    "-0": None,
    "-5": None,
    "1.": None,
    "1.s": None,
    "1.5.5": None,
    "12.34.56": None,
    "1e3": None,
    "0x10": None,
    "1S": None,
    "1Min": None,
    "30 # half a minute": None,
    '"30"': None,
    "s": None,
    "infinity s": None,
    "9223372036854775807": None,
    "99999999999999999999": None,
}


@pytest.mark.parametrize("text", SPANS)
def test_time_spans(text: str) -> None:
    assert inhibition.span(text) == SPANS[text]


# The text of a fragment that is read after one that says 77 s, and the limit after it.
FILES: dict[str, tuple[str, float]] = {
    "plain": (f"[Login]\n{LIMIT}=9\n", 9),
    "no line feed at the end": (f"[Login]\n{LIMIT}=9", 9),
    "white space": (f"[Other]\nx=1\n [Login] \n  {LIMIT} = 9 \n", 9),
    "the last one counts": (f"[Login]\n{LIMIT}=8\n{LIMIT}=9\n", 9),
    "CRLF": (f"[Login]\r\n{LIMIT}=9\r\n", 9),
    "byte order mark": (f"\ufeff[Login]\n{LIMIT}=9\n", 9),
    "a line that is none": (f"[Login]\nnonsense\n{LIMIT}=9\n", 9),
    "joined lines": (f"[Login]\n{LIMIT}=1\\\n 5\n", 6),
    "a comment between joined lines": (f"[Login]\n{LIMIT}=\\\n# comment\n9\n", 9),
    "part of another line": (f"[Login]\nKillUserProcesses=no \\\n{LIMIT}=9\n", 77),
    "comment": (f"[Login]\n;{LIMIT}=9\n#{LIMIT}=9\n", 77),
    "outside of sections": (f"{LIMIT}=9\n", 77),
    "another section": (f"[Other]\n{LIMIT}=9\n", 77),
    "another case": (f"[login]\n{LIMIT}=9\n", 77),
    "another key": (f"[Login]\n{LIMIT}s=9\nxInhibitDelayMaxSec=9\n", 77),
    "not understood": (f"[Login]\n{LIMIT}=never\n", 77),
    "empty value": (f"[Login]\n{LIMIT}=\n", 77),
    "empty file": ("", 77),
}


@pytest.mark.parametrize("name", FILES)
def test_how_a_file_is_read(name: str) -> None:
    text, limit = FILES[name]
    fragments = {"10-first.conf": f"[Login]\n{LIMIT}=77\n", "50-file.conf": text}
    assert inhibition.others("", fragments) == Others(limit, fixed=False)


def says(value: str) -> str:
    return f"[Login]\n{LIMIT}={value}\n"


BROKEN = "[Login\n"
HOSTS: dict[str, tuple[str, dict[str, str], Others]] = {
    "nothing": ("", {}, Others(5, fixed=False)),
    "the main file": (says("20"), {}, Others(20, fixed=False)),
    "a fragment beats the main file": (says("20"), {"00-a.conf": says("10")}, Others(10, fixed=False)),
    "the last fragment counts": (
        "",
        {"99-kubelet.conf": says("30"), "50-site.conf": says("600")},
        Others(30, fixed=False),
    ),
    "ours does not count": (
        "",
        {"99-kubelet.conf": says("30"), inhibition.DROP_IN: says("900")},
        Others(30, fixed=False),
    ),
    "one after ours": ("", {"99-site.conf": says("60")}, Others(60, fixed=True)),
    "one after ours that says nothing": ("", {"zz.conf": says("")}, Others(5, fixed=False)),
    "nothing is read after a broken file": (
        "",
        {"10-a.conf": says("10"), "20-b.conf": says("20") + BROKEN + says("30"), "30-c.conf": says("40")},
        Others(20, fixed=True),
    ),
    "a broken file after ours": ("", {"10-a.conf": says("10"), "zz.conf": BROKEN}, Others(10, fixed=False)),
    "a broken main file": (BROKEN, {"10-a.conf": says("10")}, Others(5, fixed=True)),
}


@pytest.mark.parametrize("name", HOSTS)
def test_what_logind_does_without_our_file(name: str) -> None:
    main, fragments, found = HOSTS[name]
    assert inhibition.others(main, fragments) == found


@pytest.mark.parametrize("seconds", [0, 5, 0.2, 900, 31_557_600, INFINITY])
def test_logind_reads_what_is_written_for_it_and_waits_no_less(seconds: float) -> None:
    read = inhibition.others("", {"00-a.conf": inhibition.drop_in(seconds)})
    assert seconds <= read.limit < seconds + 1 or read.limit == seconds == INFINITY


def test_ours_comes_after_that_of_kubelet() -> None:
    assert inhibition.DROP_IN > "99-kubelet.conf"


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("NAME=locksmithd\nSTRATEGY=reboot\nSTATE=running", "running"),
        ("STATE=reboot-planned\nNAME=locksmithd\n", "reboot-planned"),
        ("NAME=locksmithd\n", ""),
        ("NAME=other\nSTATE=running\n", ""),
        ("", ""),
    ],
)
def test_locksmith_says_who_reboots(text: str, state: str) -> None:
    assert inhibition.locksmith(text) == state


LOCKS = """\
1: FLOCK  ADVISORY  WRITE 148 00:2e:272 0 EOF
1: -> FLOCK  ADVISORY  WRITE 149 00:2e:300 0 EOF
2: POSIX  ADVISORY  WRITE 150 00:2e:273 0 EOF
3: FLOCK  ADVISORY  WRITE 151 fe:0a:272 0 EOF
"""


@pytest.mark.parametrize(
    ("file", "locked"),
    [
        ((0, 46, 272), True),
        ((254, 10, 272), True),
        # Only waited for, of another kind, on another disk, of another file.
        ((0, 46, 300), False),
        ((0, 46, 273), False),
        ((0, 47, 272), False),
        ((0, 46, 27), False),
    ],
)
def test_whether_a_file_is_locked(file: tuple[int, int, int], locked: bool) -> None:  # noqa: FBT001
    assert inhibition.is_locked(LOCKS, *file) is locked
