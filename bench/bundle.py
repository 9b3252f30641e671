# SPDX-License-Identifier: Apache-2.0
"""(f) The bundle: its size, what a `status` by its own Python takes, and the daemon at rest by it."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench import idle, status
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
    taken = status.meter(host, _COMMANDS, repeat)
    figures = []
    for kind, place in (("processor time", 0), ("until the end", 1)):
        for name, samples in taken.items():
            base = taken["python3 -c pass"][place] if name != "python3 -c pass" else ()
            is_target = kind == "processor time" and "bundle" in name
            allowed = (MILLISECONDS,) if is_target else ()
            figures.append(Figure(f"{name}, {kind}", "ms", samples[place], base, allowed))
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
