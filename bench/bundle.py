# SPDX-License-Identifier: Apache-2.0
"""(f) The bundle: its size, what a `status` by its own Python takes, and the daemon at rest by it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench import idle
from bench.host import NVIDIAD, PYTHON, ready
from bench.report import Figure, Part
from tests.beds import bundle
from tests.host import road
from tools.bundle import pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host.bed import Host

TITLE = "the bundle, host bed"
MILLISECONDS = 50.0
MEGABYTES = 40.0
_PLACE = "/opt/bundle"
_BUNDLED = f"{_PLACE}/bin/nvidiad"
_COMMANDS = {
    "python3 -c pass": (PYTHON, "-c", "pass"),
    "nvidiad status, virtual environment": (NVIDIAD, "status"),
    "nvidiad status, bundle": (_BUNDLED, "status"),
}
_LEVEL = 19  # as released
# As in part (b), and with the time until the end.
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


def measure(repeat: int, say: Callable[[str], None]) -> Part:
    """Build and pack it, then run it beside an installation in a virtual environment."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        say("(f) packing as for a release")
        tree = bundle.tree(folder)
        figures = sizes(tree, folder)
        with ready() as host:
            shutil.copytree(tree, host.path(_PLACE), symlinks=True)
            figures += starts(host, repeat)
            say(f"(f) watching the daemon of the bundle for {idle.SETTLE:.0f} s")
            figures.append(memory(host))
    return Part("f", TITLE, tuple(figures))


def sizes(tree: Path, folder: Path) -> list[Figure]:
    """Of what is downloaded, and of what lies on a host."""
    (folder / "dist").mkdir()
    files = pack.tars(tree, folder / "dist", bundle.EPOCH, _LEVEL)
    files.append(pack.sysext(tree, folder / "dist", folder, bundle.EPOCH, _LEVEL))
    disk = sum(path.lstat().st_blocks * 512 for path in tree.rglob("*"))
    packed = [(f".{file.name.split('.', 3)[-1]}", file.stat().st_size) for file in files]
    return [Figure(name, "MB", (size / 1e6,)) for name, size in [*packed, ("unpacked", disk)]]


def starts(host: Host, repeat: int) -> list[Figure]:
    """Processor time and seconds of each command, in turn."""
    commands = json.dumps(list(_COMMANDS.values()))
    done = host.run(PYTHON, "-c", _METER, commands, str(repeat), timeout=600, check=True)
    lists: list[list[tuple[float, float]]] = json.loads(done.out)
    figures = []
    for kind, place in (("processor time", 0), ("until the end", 1)):
        for name, samples in zip(_COMMANDS, lists, strict=True):
            taken = tuple(1000 * each[place] for each in samples)
            base = tuple(1000 * each[place] for each in lists[0]) if name != "python3 -c pass" else ()
            is_target = kind == "processor time" and "bundle" in name
            allowed = (MILLISECONDS,) if is_target else ()
            figures.append(Figure(f"{name}, {kind}", "ms", taken, base, allowed))
    return figures


def memory(host: Host) -> Figure:
    """PSS of the daemon some seconds after its start; nobody else maps the files of the bundle."""
    drop_in = f"[Service]\nExecStart=\nExecStart={_BUNDLED} run\n"
    host.write("/etc/systemd/system/nvidiad.service.d/50-bundle.conf", drop_in)
    host.systemctl("daemon-reload")
    host.systemctl("restart", "nvidiad.service")
    road.wait_ready(host)
    time.sleep(idle.SETTLE)
    pid = idle.own_pid(host)
    sizes = idle.rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return Figure("memory (PSS) of the daemon after a restart", "MB", (sizes["Pss"],), allowed=(MEGABYTES,))
