# SPDX-License-Identifier: Apache-2.0
"""Inspection: what is wrong with a directory that should be a tree, each fault as the end of a sentence."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.entries import FileEntry, LinkEntry
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.world import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nvidiad.nouns.entries import Entry
    from nvidiad.nouns.manifest import Manifest


def faults(root: Path, manifest: Manifest, advanced: Callable[[int], None]) -> Iterator[str]:
    wrong = False
    for fault in shape_faults(root, manifest, modes=True):
        wrong = True
        yield fault
    # Reading what already has the wrong size or type would say less and take longer.
    for entry in () if wrong else manifest.entries:
        yield from entry_faults(root, entry, advanced)


def shape_faults(root: Path, manifest: Manifest, *, modes: bool) -> Iterator[str]:
    entries = {entry.path: entry for entry in manifest.entries}
    directories = manifest.directories()
    seen: set[str] = {naming.MANIFEST}
    if modes and (wrong := _others(root.lstat())):
        yield f"its directory {wrong}"
    # Of a foreign directory only its own name is said.
    for path, found in files.walk(root, directories.__contains__):
        entry = entries.get(path)
        seen.add(path)
        if entry is not None:
            yield from _stat_faults(entry, found, modes=modes)
        elif path in directories:
            if not stat.S_ISDIR(found.st_mode):
                yield f"'{path}' is not a directory"
            elif modes and (wrong := _others(found)):
                yield f"directory '{path}' {wrong}"
        elif path == naming.MANIFEST:
            if not stat.S_ISREG(found.st_mode):
                yield f"'{path}' is not a file"
            elif modes and (wrong := _others(found)):
                yield f"'{path}' {wrong}"
        else:
            yield f"{path!r} is not in the manifest"
    for path in entries:
        if path not in seen:
            yield f"'{path}' is missing"


def _others(found: os.stat_result) -> str:
    """What is wrong where somebody else may write: who can change a tree can change what the kernel runs."""
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to uid {found.st_uid}"
    return "may be written by others" if found.st_mode & 0o022 else ""


def _stat_faults(entry: Entry, found: os.stat_result, *, modes: bool) -> Iterator[str]:
    if isinstance(entry, LinkEntry):
        if not stat.S_ISLNK(found.st_mode):
            yield f"'{entry.path}' is not a symbolic link"
    elif not stat.S_ISREG(found.st_mode):
        yield f"'{entry.path}' is not a file"
    elif found.st_size != entry.size:
        yield f"'{entry.path}' has {found.st_size} bytes instead of {entry.size}"
    elif modes and stat.S_IMODE(found.st_mode) != entry.mode:
        yield f"'{entry.path}' has mode {stat.S_IMODE(found.st_mode):04o} instead of {entry.mode:04o}"
    elif modes and (wrong := _others(found)):
        yield f"'{entry.path}' {wrong}"


def entry_faults(root: Path, entry: Entry, advanced: Callable[[int], None]) -> Iterator[str]:
    path = root / entry.path
    try:
        wrong = list(_stat_faults(entry, path.lstat(), modes=True))
        if wrong:
            yield wrong[0]
        elif isinstance(entry, FileEntry):
            digest = files.sha256(path, advanced)
            if digest != entry.sha256:
                yield f"'{entry.path}' has sha256 {digest} instead of {entry.sha256}"
        elif (target := os.readlink(path)) != entry.target:  # noqa: PTH115 (a Path would drop './')
            yield f"'{entry.path}' names {target!r} instead of '{entry.target}'"
    except (FileNotFoundError, NotADirectoryError):
        yield f"'{entry.path}' is missing"
    except OSError as exc:
        yield f"'{entry.path}' cannot be read: {exc.strerror}"


def refuse_faults(tree: str, faults: list[str]) -> None:
    if faults:
        raise invalid(tree, faults)


def invalid(tree: str, faults: list[str]) -> Permanent:
    more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
    return Permanent(
        Code.TREE_INVALID,
        f"the tree '{tree}' is not what its manifest says: {faults[0]}{more}",
        "Install it again; if that does not help, build the image again.",
    )
