# SPDX-License-Identifier: Apache-2.0
"""(c) The daemon at rest: its memory, and how often it wakes up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.host import POLL, ready
from bench.report import Figure, Part
from tests.host import road

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.host.bed import Host

TITLE = "the daemon at rest, watchdog 60 s, poll 300 s, host bed"
MEGABYTES = 40.0
WATCHDOG = 60.0
# The daemon's jitter takes a tenth away at most.
SHORTEST_POLL = 0.9 * POLL
# The last events of a start come by within this time.
SETTLE = 20.0


def measure(seconds: float, say: Callable[[str], None]) -> Part:
    """Watch the daemon that pulled a driver, and then one that found the driver in force."""
    figures: list[Figure] = []
    notes: list[str] = []
    with ready() as host:
        for name in ("after a pull", "after a restart"):
            if figures:
                host.systemctl("restart", "nvidiad.service")
                road.wait_ready(host)
            time.sleep(SETTLE)
            say(f"(c) watching the daemon {name} for {seconds:.0f} s")
            pid = own_pid(host)
            before, began = switches(pid), time.monotonic()
            time.sleep(seconds)
            passed = time.monotonic() - began
            woken = wake_ups(before, switches(pid)) * 60 / passed
            memory = rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
            alone = undivided(Path(f"/proc/{pid}/smaps").read_text())
            figures += [
                Figure(f"memory (PSS, no other Python) {name}", "MB", (alone,), allowed=(MEGABYTES,)),
                Figure(f"wake-ups a minute {name}", "", (woken,), allowed=(answers(passed) * 60 / passed,)),
            ]
            notes.append(explain(name, memory, len(before)))
    return Part("c", TITLE, tuple(figures), tuple(notes))


def answers(seconds: float) -> int:
    """How often the watchdog is answered in that time at most: twice in each of its periods.

    The poll is not among them: the daemon looked when it started, and looks again after `POLL`. That look
    asks systemd and others one thing after the other, and sleeps until each has answered.
    """
    if seconds + SETTLE > SHORTEST_POLL:
        raise ValueError(f"watch for {SHORTEST_POLL - SETTLE:.0f} s at most: then comes a poll")
    return int(seconds // (WATCHDOG / 2)) + 1


def own_pid(host: Host) -> int:
    """The daemon's process number on this machine, whose /proc tells more than the host's."""
    inside = road.main_pid(host, "nvidiad.service")
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
            root = (status.parent / "root").stat()
        except OSError:
            continue
        fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        if fields.get("NSpid", "").split()[-1:] == [str(inside)] and len(fields["NSpid"].split()) > 1:
            here = host.path("/").stat()
            if (root.st_dev, root.st_ino) == (here.st_dev, here.st_ino):
                return int(status.parent.name)
    raise RuntimeError(f"process {inside} of the host is not in /proc")


def switches(pid: int) -> dict[str, int]:
    """How often each thread of a process went to sleep by itself, and so was woken."""
    return {
        status.parent.name: voluntary(status.read_text())
        for status in Path(f"/proc/{pid}/task").glob("*/status")
    }


def voluntary(text: str) -> int:
    """The voluntary context switches in the text of a /proc/PID/status."""
    return next(
        int(line.split()[1]) for line in text.splitlines() if line.startswith("voluntary_ctxt_switches:")
    )


def wake_ups(before: Mapping[str, int], after: Mapping[str, int]) -> int:
    """What came on, threads that are new included; those that ended meanwhile are not seen."""
    return sum(count - before.get(thread, 0) for thread, count in after.items())


def rollup(text: str) -> dict[str, float]:
    """The sizes in the text of a smaps_rollup, in MB of a million bytes."""
    sizes: dict[str, float] = {}
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            sizes[words[0].rstrip(":")] = int(words[1]) * 1024 / 1e6
    return sizes


def undivided(text: str) -> float:
    """The PSS in MB from the text of a smaps, as it would be were this the only Python on the machine.

    The bed's host has other Pythons, and so has whatever runs beside it: they share the interpreter's pages
    with the daemon, which on a host of its own has nobody to share them with.
    """
    kilobytes, own = 0, False
    for line in text.splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            own = len(words) > 5 and "python" in words[5]
        elif words[0] == ("Rss:" if own else "Pss:"):
            kilobytes += int(words[1])
    return kilobytes * 1024 / 1e6


def explain(name: str, memory: Mapping[str, float], threads: int) -> str:
    kinds = ", ".join(
        f"{key} {memory[key]:.1f}"
        for key in ("Pss", "Rss", "Pss_Anon", "Pss_File", "Private_Dirty")
        if key in memory
    )
    return f"{name}: MB: {kinds}; threads: {threads}"
