# SPDX-License-Identifier: Apache-2.0
"""`make bench`: measure, and print one table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.report import Run, document, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.report import Part

LETTERS = ("a", "b", "c", "d", "e", "f", "g")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts that are asked for; targets that are missed are no failure, the figures say it."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="a|b|c|d|e|f|g", help="parts to measure (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample as JSON")
    parser.add_argument("--rounds", type=int, default=5, help="(a) fresh machines for each road")
    parser.add_argument("--again", type=int, default=2, help="(a) more times on each machine")
    parser.add_argument("--repeat", type=int, default=41, help="(b, f) runs of each command")
    parser.add_argument("--seconds", type=float, default=180, help="(c) how long the idle daemon is watched")
    parser.add_argument("--boots", type=int, default=5, help="(d) boots of each host")
    parser.add_argument("--nodes", type=int, default=1000, help="(e) nodes of a fleet")
    parser.add_argument("--fleets", type=int, default=3, help="(e) fleets")
    parser.add_argument("--compress", type=float, default=5, help="(e) seconds of a fleet in one of ours")
    parser.add_argument("--deliveries", type=int, default=3, help="(g) installations in each way")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(LETTERS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    parts = []
    for letter in options.parts or LETTERS:
        began = os.getloadavg()[0]
        part = _measure(letter, options)
        parts.append(replace(part, load=(began, os.getloadavg()[0])))
    run = Run(_machine(), tuple(parts))
    sys.stdout.write(table(run))
    if options.json:
        options.json.write_text(document(run) + "\n")
    return 0


def _measure(letter: str, options: argparse.Namespace) -> Part:
    # Each part has a bed of its own, which only it needs.
    match letter:
        case "a":
            from bench import activation

            return activation.measure(options.rounds, options.again, _say)
        case "b":
            from bench import status

            return status.measure(options.repeat)
        case "c":
            from bench import idle

            return idle.measure(options.seconds, _say)
        case "d":
            from bench import boots

            return boots.measure(options.boots, _say)
        case "f":
            from bench import bundle

            return bundle.measure(options.repeat, _say)
        case "g":
            from bench import delivery

            return delivery.measure(options.deliveries, _say)
        case _:
            from bench import fleet

            return fleet.measure(options.nodes, options.fleets, options.compress, _say)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _machine() -> dict[str, str]:
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    load = " ".join(f"{each:.2f}" for each in os.getloadavg())
    return {
        "processor": f"{processor}, {os.cpu_count()} CPUs",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": load,
    }


if __name__ == "__main__":
    sys.exit(main())
