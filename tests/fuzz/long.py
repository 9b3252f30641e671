# SPDX-License-Identifier: Apache-2.0
"""A long run: fuzzes each target for some time, and makes what it found part of the stored corpus.

`python -m tests.fuzz.long SECONDS [NAME…]`; what crashed is in .fuzz/NAME/.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.table import TARGETS
from tests.fuzz.target import CORPUS, WORK
from tests.record import note

if TYPE_CHECKING:
    from collections.abc import Iterable

CHECKOUT = Path(__file__).parents[2]
STORED, FILES = 6 << 10, 16
"""Bytes and files of a target's corpus beyond its seeds."""


@dataclass(frozen=True)
class Run:
    """What one run did."""

    cases: int
    size: int
    crash: str
    """The end of what was said where an input crashed it; empty where none did."""


def guided(names: Iterable[str], place: Path, *options: str) -> dict[str, Run]:
    """Run the guided fuzzer; it leaves inputs that crash a target below `place`."""
    command = [sys.executable, "-m", "tests.fuzz.guided", str(place), ",".join(names)]
    limits = ["-rss_limit_mb=2048", "-timeout=30"]
    done = subprocess.run(
        [*command, *limits, *options],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return {name: _run(place / name, done.stderr) for name in names}


def _run(place: Path, otherwise: str) -> Run:
    if not (place / "said").exists():
        return Run(0, 0, otherwise[-3000:])
    said = (place / "said").read_text(errors="replace")
    counts = place / "counts"
    cases, size = struct.unpack("<QQ", counts.read_bytes()) if counts.exists() else (0, 0)
    # Its last word when nothing was wrong; a crash ends it in the middle.
    whole = "\nDone " in said
    return Run(cases, size, "" if whole else said[-3000:])


def keep(name: str, found: Path) -> None:
    """Make some of the inputs that reached something new, small ones and larger ones, the stored corpus."""
    stored = CORPUS / name
    before = [path for path in stored.iterdir() if not path.name.startswith("seed-")]
    candidates = {path.name[:12]: path.read_bytes() for path in (*before, *found.iterdir())}
    small = sorted((data, key) for key, data in candidates.items() if 0 < len(data) <= STORED // 8)
    small.sort(key=lambda one: len(one[0]))
    for path in before:
        path.unlink()
    room = STORED
    for data, key in small[:: max(1, len(small) // FILES)]:
        if len(data) <= room:
            room -= len(data)
            (stored / key).write_bytes(data)


def main() -> int:
    seconds, *names = sys.argv[1:]
    crashed = 0
    for name in names or TARGETS:
        run = guided([name], WORK, f"-max_total_time={seconds}", str(CORPUS / name))[name]
        print(
            f"{name}: {run.cases} inputs, {run.size} bytes" + (", CRASHED" if run.crash else ""), flush=True
        )
        note("fuzz", f"{name}, for long", cases=run.cases, bytes=run.size, crashes=int(bool(run.crash)))
        if run.crash:
            crashed += 1
            print(run.crash, flush=True)
        keep(name, WORK / name / "corpus")
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
