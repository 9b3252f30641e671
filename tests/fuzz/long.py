# SPDX-License-Identifier: Apache-2.0
"""A long run: fuzzes each target for some time, and makes what it found part of the stored corpus.

`python -m tests.fuzz.long SECONDS [NAME…]`; what crashed is in .fuzz/NAME/.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.table import TARGETS
from tests.fuzz.target import CORPUS, WORK

CHECKOUT = Path(__file__).parents[2]
STORED = 16 << 10
"""Bytes of a target's corpus beyond its seeds."""


@dataclass(frozen=True)
class Run:
    """What one run did."""

    cases: int
    size: int
    crash: str
    """The end of what was said where an input crashed it; empty where none did."""


def guided(name: str, place: Path, *options: str) -> Run:
    """Run the guided fuzzer of a target; it leaves inputs that crash it at `place`."""
    counts = place / "counts"
    command = [sys.executable, "-m", "tests.fuzz.guided", name, str(counts)]
    limits = ["-rss_limit_mb=2048", "-timeout=30", f"-artifact_prefix={place}/"]
    done = subprocess.run(
        [*command, *limits, *options],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    data = counts.read_bytes() if counts.exists() else bytes(16)
    cases, size = struct.unpack("<QQ", data)
    said = done.stdout + done.stderr
    return Run(cases, size, "" if done.returncode == 0 else said[-3000:])


def keep(name: str, found: Path) -> None:
    """Add the smallest of the inputs that reach something new to the stored corpus."""
    stored = CORPUS / name
    with tempfile.TemporaryDirectory(dir=WORK) as made:
        merged = Path(made) / "merged"
        merged.mkdir()
        seeds = Path(made) / "seeds"
        seeds.mkdir()
        for path in stored.glob("seed-*"):
            (merged / path.name).write_bytes(path.read_bytes())
        rest = [path for path in stored.iterdir() if not path.name.startswith("seed-")]
        guided(name, Path(made), "-merge=1", str(merged), str(stored), str(found))
        for path in rest:
            path.unlink()
        room = STORED
        for path in sorted(merged.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
            size = path.stat().st_size
            if not path.name.startswith("seed-") and 0 < size <= room:
                room -= size
                (stored / path.name[:12]).write_bytes(path.read_bytes())


def main() -> int:
    seconds, *names = sys.argv[1:]
    crashed = 0
    for name in names or TARGETS:
        place = WORK / name
        (place / "corpus").mkdir(parents=True, exist_ok=True)
        run = guided(name, place, f"-max_total_time={seconds}", str(place / "corpus"), str(CORPUS / name))
        print(
            f"{name}: {run.cases} inputs, {run.size} bytes" + (", CRASHED" if run.crash else ""), flush=True
        )
        if run.crash:
            crashed += 1
            print(run.crash, flush=True)
        keep(name, place / "corpus")
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
