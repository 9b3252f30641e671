# SPDX-License-Identifier: Apache-2.0
"""The page on reliability, made of the table and of what runs noted; no figure comes from elsewhere."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tests.reliability import faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.reliability.faults import Row

    Record = dict[str, Any]

_FEW = 4
TITLES = {"fuzz": "Fuzzing", "soak": "Soak"}
SAID = {
    "fuzz": "Inputs from outside, at random and by mutation; anything but a value or a failure is a crash.",
    "soak": "A daemon that runs for long, or is asked for much, and what it used meanwhile.",
}
_INTRO = """\
# Reliability

What can go wrong, what nvidiad says of it, what it holds meanwhile, and how it comes back. Made by
`python -m tests.reliability` from the table in `tests/reliability/faults.py` and from what runs of its
tests noted (`tests/reliability/record.json`); nothing here is written by hand. Every line is proven by
tests in which the fault is real: on a host with systemd, a container engine and a registry, or on a virtual
machine that loses its power. In each of them

* no gated unit starts without the driver,
* a tree is complete and verified, or it is not there,
* the driver in force, and what uses it, is not touched,
* and when the cause has ended, the host comes to its end without help, where nothing else is said.

"""
_STEPS = """\
## Every step

*Killed* is SIGKILL before, in or after the step. *Power* is the power cut in it, with all that was not
synced, in a virtual machine, and the death of PID 1 in the host bed. The next life finishes the job, to the
same end as an undisturbed one; the figures are cases. *Full*, *read-only* and *dead* is the disk that the
step writes to (ENOSPC, EROFS, EIO), with the code that status names; the step is tried again at the pace of
the back-off.

"""
_PARTIES = """
## Every party

"""


def render(record: Sequence[Record]) -> str:
    """The whole page."""
    cases = _by_row(record)
    parts = [
        _INTRO,
        _counts(record),
        _STEPS,
        _steps(cases),
        _PARTIES,
        _parties(cases),
        _codes(),
        _known(),
        *(_section(name, record) for name in TITLES),
    ]
    return "".join(parts).rstrip("\n") + "\n"


def _by_row(record: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for entry in record:
        if entry["section"] == "faults":
            found[entry["row"]].append(entry)
    return found


def _counts(record: Sequence[Record]) -> str:
    entries = [entry for entry in record if entry["section"] == "faults"]
    cases = {entry["test"]: entry for entry in entries}.values()
    rows = [
        ("faults (a step or a party, and what goes wrong)", len(faults.ROWS)),
        ("cases run", len(cases)),
        ("survived", sum(case["survived"] for case in cases)),
        ("trees verified file by file after a case", sum(case.get("trees", 0) for case in cases)),
        ("half trees among them", sum(case.get("half", 0) for case in cases)),
        ("drivers in force that lost their tree", sum(case.get("lost", 0) for case in cases)),
        ("faults seen not to heal without a person, see below", len(faults.KNOWN)),
        *((f"{unit} fuzzed", _sum(record, "fuzz", unit)) for unit in ("cases", "bytes")),
        ("crashes while fuzzing", _sum(record, "fuzz", "crashes")),
    ]
    told = [(what, count) for what, count in rows if count is not None]
    return _table(("counted", "number"), [(what, f"{count}") for what, count in told]) + "\n"


def _sum(record: Iterable[Record], section: str, key: str) -> int | None:
    found = [entry[key] for entry in record if entry["section"] == section and key in entry]
    return sum(found) if found else None


# -- steps -----------------------------------------------------------------------------------------


def _steps(cases: dict[str, list[Record]]) -> str:
    rows = {(row.subject, row.fault): row for row in faults.BY_STEP}
    reasons: list[str] = []

    def cell(step: str, fault: str) -> str:
        row = rows.get((step, fault))
        if row is None:
            why = next(n.why for n in faults.NEVER if step in n.steps and fault in n.faults)
            if why not in reasons:
                reasons.append(why)
            return f"({reasons.index(why) + 1})"
        count = len(cases[row.id])
        if fault in (faults.KILL, faults.POWER):
            return f"{count}"
        return ", ".join(f"`{code}`" for code in row.codes) or "no problem"

    lines = [
        (f"`{step}`", *(cell(step, fault) for fault in faults.FAULTS), rows[step, faults.KILL].held)
        for step in faults.STEPS
    ]
    table = _table(("step", "killed", "power", "full", "read-only", "dead", "meanwhile"), lines)
    notes = "".join(f"{number}. {why}\n" for number, why in enumerate(reasons, 1))
    tests = sorted({_file(case) for row in faults.BY_STEP for case in cases[row.id]})
    proven = ", ".join(f"`{test}`" for test in tests)
    return f"{table}\n{notes}\n{textwrap.fill(f'Proven by {proven}.', 120, break_on_hyphens=False)}\n"


def _file(case: Record) -> str:
    return str(case["test"]).partition("::")[0]


# -- parties ---------------------------------------------------------------------------------------


def _parties(cases: dict[str, list[Record]]) -> str:
    lines = []
    for subject, rows in groupby(faults.BY_PARTY, lambda row: row.subject):
        for number, row in enumerate(rows):
            lines.append(("" if number else f"**{subject}**", *_party(row, cases[row.id])))
    titles = ("who", "what", "status says", "held meanwhile", "heals", "cases", "proven by")
    return _table(titles, lines)


def _party(row: Row, cases: Sequence[Record]) -> tuple[str, ...]:
    codes = ", ".join(f"`{code}`" for code in row.codes) or "no problem"
    tests = sorted({_file(case) for case in cases})
    return row.fault, codes, row.held, row.heals, f"{len(cases)}", ", ".join(f"`{test}`" for test in tests)


def _codes() -> str:
    codes = sorted({str(code) for row in faults.ROWS for code in row.codes})
    listed = ", ".join(f"`{code}`" for code in codes)
    text = f"What each code asks for stands in [status.md](status.md#problems): {listed}."
    return f"\n{textwrap.fill(text, 110, break_on_hyphens=False)}\n"


def _known() -> str:
    told = [f"* `{step}`, {fault}: {why}" for (step, fault), why in faults.KNOWN.items()]
    lines = "".join(textwrap.fill(text, 110, subsequent_indent="  ") + "\n" for text in told)
    return f"\n## What does not heal\n\n{lines}" if lines else ""


# -- what others noted -----------------------------------------------------------------------------


def _section(name: str, record: Iterable[Record]) -> str:
    """A table of whatever the tests of this section noted; nothing where they noted nothing."""
    entries = sorted((e for e in record if e["section"] == name), key=lambda entry: str(entry["name"]))
    if not entries:
        return ""
    if name == "fuzz":
        entries = _by_kind(entries)
    keys = list(dict.fromkeys(key for entry in entries for key in entry if key not in ("section", "name")))
    lines = [(str(entry["name"]), *(_value(entry.get(key, "")) for key in keys)) for entry in entries]
    if len(lines) < _FEW:
        # Figures of one run read better below each other.
        titles, lines = (
            ("what", *(line[0] for line in lines)),
            [(key, *(line[place] for line in lines)) for place, key in enumerate(keys, 1)],
        )
    else:
        titles = ("what", *keys)
    return f"\n## {TITLES[name]}\n\n{SAID[name]}\n\n{_table(titles, lines)}"


def _by_kind(entries: Sequence[Record]) -> list[Record]:
    """What was done to each target, summed up for all of them: `TARGET, KIND` are the names."""
    kinds = sorted({str(entry["name"]).rpartition(", ")[2] for entry in entries})
    summed = []
    for kind in kinds:
        mine = [entry for entry in entries if str(entry["name"]).endswith(f", {kind}")]
        figures = {key: _sum(mine, "fuzz", key) for key in ("cases", "bytes", "crashes")}
        summed.append({"section": "fuzz", "name": kind, "parsers": len(mine), **figures})
    return summed


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [titles, ["---"] * len(titles), *lines]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)
