# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.soak`: thousands of looks, and the figures of them."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import TYPE_CHECKING

from tests.host import road
from tests.record import note
from tests.soak.figures import GROWTH, faults, growth, slope
from tests.soak.run import soak

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.soak.run import Soaked


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, print every sample and a summary; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--looks", type=int, default=5000, help="of one process, past its warm-up")
    parser.add_argument("--warm-up", type=int, default=1000, metavar="LOOKS", help="before that")
    parser.add_argument("--each", type=int, default=20, help="looks between two events")
    parser.add_argument("--lives", type=int, default=8, help="of other processes after that, each ended")
    parser.add_argument(
        "--growth", type=int, default=GROWTH, metavar="KIB", help="of memory that is allowed"
    )
    options = parser.parse_args(arguments)
    with road.booted() as host:
        done = soak(
            host,
            looks=options.looks,
            each=options.each,
            lives=options.lives,
            warm_up=options.warm_up,
            say=_say,
        )
    found = faults(done.samples, options.growth) + done.left + strangers(done)
    tell(done)
    _say("".join(f"NOT flat: {fault}\n" for fault in found) or "flat")
    return bool(found)


def strangers(done: Soaked) -> list[str]:
    """What a process after a reboot, a kill and the like holds that the long-lived one does not."""
    known, threads = Counter(done.samples[0].descriptors), max(s.threads for s in done.samples)
    return [
        f"after '{end}' {dict(more)} and {life.threads} threads"
        for end, life in zip(done.ends, done.lives, strict=True)
        if (more := Counter(life.descriptors) - known) or life.threads > threads
    ]


def tell(done: Soaked, name: str = "soak") -> dict[str, object]:
    """The figures, noted for the page on reliability."""
    first, last = done.samples[0], done.samples[-1]
    looks = last.looks - first.looks
    figures: dict[str, object] = {
        "looks": looks,
        "all_looks": done.told["looks"],
        "seconds": round(done.seconds),
        "pulls": done.told["pulls"],
        "faults": done.told["faults"],
        "reboots": sum(end in ("reboot", "power cut") for end in done.ends),
        "lives": len(done.lives) + 1,
        "rss_kib_start": first.rss,
        "rss_kib_end": last.rss,
        "rss_kib_most": max(s.rss for s in done.samples),
        "growth_kib": growth(done.samples),
        "bytes_a_look": round(slope(done.samples) * 1024, 1),
        "pss_kib_end": last.pss,
        "anonymous_kib_start": first.anonymous,
        "anonymous_kib_end": last.anonymous,
        "fds_start": len(first.descriptors),
        "fds_end": len(last.descriptors),
        "fds_most": max(len(s.descriptors) for s in done.samples),
        "threads_start": first.threads,
        "threads_end": last.threads,
    }
    note("soak", name, **figures)
    _say("".join(f"{key:20} {value}\n" for key, value in figures.items()))
    return figures


def _say(text: str) -> None:
    print(text.rstrip("\n"), flush=True)


if __name__ == "__main__":
    sys.exit(main())
