# SPDX-License-Identifier: Apache-2.0
"""Guided fuzzing, target after target: `python -m tests.fuzz.guided PLACE NAME,… [OPTION…] CORPUS…`.

The options are libFuzzer's; {name} in them is the target's. Of each there is left in PLACE/NAME: `said`,
`counts` (inputs and their bytes), `corpus` (what reached something new), and what crashed it; the exit
status is that of the worst.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from pathlib import Path

import atheris

# Before anything of ours is imported: only what is imported here is watched.
with atheris.instrument_imports(include=["nvidiad", "tests.fuzz.of_daemon", "tests.fuzz.of_images"]):
    from tests.fuzz.table import TARGETS
from tests.fuzz.target import LONGEST, Target

SLOWER = 4.0
"""What is watched takes longer; what is quadratic takes much longer than that."""
COUNTS = struct.Struct("<QQ")


def fuzz(target: Target, place: Path, options: list[str]) -> None:
    """Fuzz it in this process, which ends with it."""
    counts = place / "counts"
    counts.write_bytes(bytes(COUNTS.size))
    with counts.open("r+b") as file:
        counted = mmap.mmap(file.fileno(), COUNTS.size)
    cases = size = 0

    def once(data: bytes) -> None:
        nonlocal cases, size
        cases, size = cases + 1, size + len(data)
        counted[:] = COUNTS.pack(cases, size)
        target.attack(data, slower=SLOWER)

    # The first directory is where it writes what it found.
    (place / "corpus").mkdir(exist_ok=True)
    own = [str(place / "corpus"), *(option.replace("{name}", target.name) for option in options)]
    atheris.Setup([target.name, f"-max_len={LONGEST}", f"-artifact_prefix={place}/", *own], once)
    atheris.Fuzz()


def main() -> int:
    where, names, *options = sys.argv[1:]
    worst = 0
    for name in names.split(","):
        place = Path(where) / name
        place.mkdir(parents=True, exist_ok=True)
        child = os.fork()
        if child == 0:
            with (place / "said").open("wb") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            fuzz(TARGETS[name], place, options)
            os._exit(0)
        worst = max(worst, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    return worst


if __name__ == "__main__":
    sys.exit(main())
