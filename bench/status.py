# SPDX-License-Identifier: Apache-2.0
"""(b) The processor time of `nvidiad status` against `python3 -c pass`, beside a live daemon."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bench.host import NVIDIAD, PYTHON, ready
from bench.report import Figure, Part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.host.bed import Host

Samples = tuple[float, ...]

TITLE = "processor time (user + system) of a status, host bed"
FACTOR = 3.0
COMMANDS = {
    "python3 -c pass": (PYTHON, "-c", "pass"),
    "nvidiad status": (NVIDIAD, "status"),
    "nvidiad status --json=short": (NVIDIAD, "status", "--json=short"),
}
# Runs inside the host, so that nothing but the command itself is in its processor time; the commands take
# turns, so that load hits all alike.
_METER = """
import json, os, sys, time
commands, times = json.loads(sys.argv[1]), int(sys.argv[2])
null = os.open("/dev/null", os.O_RDWR)
actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
taken = [[] for _ in commands]
for number in range(times + 2):
    for place, command in enumerate(commands):
        began = time.monotonic()
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
        if status:
            sys.exit(f"{command} ended with {status}")
        if number > 1:
            taken[place].append((usage.ru_utime + usage.ru_stime, time.monotonic() - began))
print(json.dumps(taken))
"""


def measure(repeat: int) -> Part:
    """Run each command so many times, in turn."""
    with ready() as host:
        taken = {name: processor for name, (processor, _) in meter(host, COMMANDS, repeat).items()}
    base = taken["python3 -c pass"]
    allowed = tuple(FACTOR * each for each in base)
    figures = [
        Figure(name, "ms", samples, base, allowed) if samples is not base else Figure(name, "ms", samples)
        for name, samples in taken.items()
    ]
    return Part("b", TITLE, tuple(figures))


def meter(
    host: Host, commands: Mapping[str, Sequence[str]], repeat: int
) -> dict[str, tuple[Samples, Samples]]:
    """Milliseconds of each run of each command: of its processor time, and until its end."""
    words = json.dumps(list(commands.values()))
    done = host.run(PYTHON, "-c", _METER, words, str(repeat), timeout=600, check=True)
    lists: list[list[tuple[float, float]]] = json.loads(done.out)
    return {
        name: (tuple(1000 * each[0] for each in samples), tuple(1000 * each[1] for each in samples))
        for name, samples in zip(commands, lists, strict=True)
    }
