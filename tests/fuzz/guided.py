# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of one target: `python -m tests.fuzz.guided NAME COUNTS [OPTION…] CORPUS…`.

The options are libFuzzer's. How many inputs there were and of how many bytes is in the file COUNTS,
however it ends.
"""

from __future__ import annotations

import mmap
import struct
import sys
from pathlib import Path

import atheris

# Before anything of ours is imported: only what is imported here is watched.
with atheris.instrument_imports(include=["nvidiad", "tests.fuzz.of_daemon", "tests.fuzz.of_images"]):
    from tests.fuzz.table import TARGETS
from tests.fuzz.target import LONGEST

SLOWER = 4.0
"""What is watched takes longer; what is quadratic takes much longer than that."""
COUNTS = struct.Struct("<QQ")


def main() -> None:
    name, counts, *options = sys.argv[1:]
    target = TARGETS[name]
    Path(counts).write_bytes(bytes(COUNTS.size))
    with Path(counts).open("r+b") as file:
        counted = mmap.mmap(file.fileno(), COUNTS.size)
    cases = size = 0

    def once(data: bytes) -> None:
        nonlocal cases, size
        cases, size = cases + 1, size + len(data)
        counted[:] = COUNTS.pack(cases, size)
        target.attack(data, slower=SLOWER)

    atheris.Setup([f"fuzz-{name}", f"-max_len={LONGEST}", *options], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
