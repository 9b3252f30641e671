# SPDX-License-Identifier: Apache-2.0
"""One soak: rounds of events and looks in one life of the daemon, and lives that end in every way."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.host import ahead, road
from tests.host.line import Line
from tests.soak.events import Events, settle
from tests.soak.figures import Sample, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.host.bed import Host

    Event = Callable[[Events], None]

# After two rounds everything has been imported, and every event has come once at least. Memory takes longer:
# what Python and glibc keep grows to the most that was ever wanted at one time.
WARM_UP = 2


@dataclass
class Soaked:
    """What a soak has to show."""

    samples: list[Sample] = field(default_factory=list)
    """Of one life, one a round, past its warm-up."""
    lives: list[Sample] = field(default_factory=list)
    """Of others, one each, after the same events."""
    ends: list[str] = field(default_factory=list)
    """How each of these ended."""
    told: Counter[str] = field(default_factory=Counter)
    """How often what happened."""
    seconds: float = 0.0
    left: list[str] = field(default_factory=list)
    """What was left behind that should not be there."""


def soak(
    host: Host,
    *,
    looks: int,
    each: int,
    lives: int,
    warm_up: int = 0,
    events: Sequence[Event] = Events.ALL,
    say: Callable[[str], None],
) -> Soaked:
    """So many looks past a warm-up, with `each` between two events; then other lives of two rounds each."""
    soaked, began = Soaked(), time.monotonic()
    settle(host)
    with Line(host) as line:
        life = _Life(host, line, each, events, soaked, began)
        while len(soaked.samples) < 4 or soaked.samples[-1].looks - soaked.samples[0].looks < looks:
            found = life.round()
            if life.rounds >= WARM_UP and found.looks >= warm_up:
                soaked.samples.append(found)
            say(json.dumps(found.line()))
    soaked.left += leftovers(host)
    ends: tuple[tuple[str, Callable[[], object]], ...] = (
        ("reboot", host.reboot),
        ("power cut", host.power_cut),
        ("killed", lambda: host.kill("nvidiad.service")),
    )
    for number in range(lives):
        name, end = ends[number % len(ends)]
        pid = road.main_pid(host, "nvidiad.service")
        boots = host.boots
        end()
        host.wait(
            lambda boots=boots, pid=pid: (
                host.boots > boots  # type: ignore[misc]
                or road.main_pid(host, "nvidiad.service") not in (0, pid)
            ),
            "nvidiad is another process",
        )
        road.wait_ready(host)
        soaked.ends.append(name)
        with Line(host) as line:
            life = _Life(host, line, 1, events, soaked, began)
            for _ in range(WARM_UP):
                found = life.round()
        soaked.lives.append(found)
        say(json.dumps({"ended": name} | found.line()))
        soaked.left += leftovers(host)
    soaked.seconds = time.monotonic() - began
    return soaked


class _Life:
    """One process."""

    def __init__(
        self, host: Host, line: Line, each: int, events: Sequence[Event], soaked: Soaked, began: float
    ) -> None:
        self._events = Events(host, line)
        self._each, self._todo, self._soaked, self._began = each, events, soaked, began
        self.rounds = 0

    def round(self) -> Sample:
        """Every event once, looks between them, and what the process holds when nobody asks any more."""
        done = self._events
        pulls, faults, looks = done.pulls, done.faults, done.looks()
        done.follow()
        for event in self._todo:
            event(done)
            self._soaked.told[getattr(event, "__name__", "?")] += 1
            for _ in range(self._each):
                done.poke()
            done.listen()
            done.ask()
        done.hang_up()
        self.rounds += 1
        now = done.looks()
        told = {"pulls": done.pulls - pulls, "faults": done.faults - faults, "looks": now - looks}
        self._soaked.told.update(told)
        return sample(done.pid, now, time.monotonic() - self._began)


def leftovers(host: Host) -> list[str]:
    """What a host in order does not have: processes, containers, images, half a tree, bugs in its log."""
    left = []
    if ahead.locks(host):
        left.append("a delay lock")
    found = {
        "processes": "systemctl show --value -p ControlGroup nvidiad.service"
        " | xargs -I{} tail -n +2 /sys/fs/cgroup{}/cgroup.procs",
        "containers": "docker ps -aq",
        "images": "docker images -q",
        "half a tree": "find /opt/nvidia -maxdepth 3 -name '*.partial*'",
        "something in /run/nvidiad": "ls -A /run/nvidiad"
        " | grep -vxE 'io.nvidiad|(activation|cdi|health).json|lock'",
        "bugs": "journalctl -b -u nvidiad.service NVIDIAD_CODE=internal-error -o cat --no-pager",
    }
    for what, command in found.items():
        said = host.run("bash", "-c", command).out.split("\n")[:-1]
        if said:
            left.append(f"{what}: {' '.join(said)[:300]}")
    return left
