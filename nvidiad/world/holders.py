# SPDX-License-Identifier: Apache-2.0
"""Holders: the processes that keep an NVIDIA device open, and the unit, pod or container each belongs to."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from nvidiad.nouns.model import Holder
from nvidiad.thought import parse
from nvidiad.world import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_UUID = r"[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}"
# a static pod's UID is a digest without dashes
_POD = re.compile(rf"pod({_UUID}|[0-9a-f]{{32}})")
_CONTAINER = re.compile(r"(?:^|[-:])([0-9a-f]{64})(?:\.scope)?$")
_UNIT_ENDS = (".service", ".scope")
SHORT_ID = 12


def majors(root: Path) -> frozenset[int]:
    """The majors of the NVIDIA character devices that are served now."""
    try:
        text = (root / "proc/devices").read_text()
    except OSError:
        return frozenset()
    names = parse.devices(text)
    return frozenset(major for name, major in names.items() if name == "nvidia" or _is_nvidia(name))


def _is_nvidia(name: str) -> bool:
    return name.startswith("nvidia-") or name == "nvidiactl"


def scan(root: Path) -> tuple[Holder, ...]:
    """Who has an NVIDIA device open, by process id."""
    wanted = majors(root)
    if not wanted:
        return ()
    proc = root / "proc"
    pids = sorted(int(name) for path in proc.iterdir() if (name := path.name).isascii() and name.isdigit())
    return tuple(_holder(proc / str(pid), pid) for pid in pids if _holds(proc / str(pid), wanted))


def _holds(directory: Path, wanted: frozenset[int]) -> bool:
    return any(
        stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) in wanted
        for found in _open_devices(directory)
    )


def _open_devices(directory: Path) -> Iterator[os.stat_result]:
    # Processes come and go while they are looked at: what cannot be read is not there any more.
    try:
        with os.scandir(directory / "fd") as entries:
            for entry in entries:
                try:
                    # Only device nodes are asked for: stat of a file on a dead network mount never returns.
                    target = os.readlink(entry.path)  # noqa: PTH115  there may be 100,000 of them
                    if target.startswith("/dev/") or "/nvidia" in target:
                        yield entry.stat()
                except OSError:
                    continue
    except OSError:
        return


def _holder(directory: Path, pid: int) -> Holder:
    return Holder(pid, files.text(directory / "comm").strip(), owner(files.text(directory / "cgroup")))


def owner(cgroup: str) -> str:
    """The unit, pod or container that /proc/PID/cgroup names; empty where it names none."""
    paths: dict[str, str] = {}
    for line in cgroup.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths[controllers] = path
    # systemd's own hierarchy on cgroup v1, the only one on v2; one that nobody uses has all in its root
    known = (paths.get("name=systemd"), paths.get(""), *paths.values())
    path = next((path for path in known if path and path != "/"), "")
    parts = [part for part in path.split("/") if part]
    words: list[str] = []
    for part in reversed(parts):
        if match := _POD.search(part):
            # systemd's names cannot have the dashes of a UID
            words.append(f"pod {match[1].replace('_', '-')}")
            break
    if parts and (match := _CONTAINER.search(parts[-1])):
        words.append(f"container {match[1][:SHORT_ID]}")
    if words:
        return ", ".join(words)
    return next((part for part in reversed(parts) if part.endswith(_UNIT_ENDS)), "")
