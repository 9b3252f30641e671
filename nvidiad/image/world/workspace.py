# SPDX-License-Identifier: Apache-2.0
"""The workspace: a directory in which the tree of an image is laid, described and packed."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.image.world import compiled, tar
from nvidiad.nouns import naming
from nvidiad.nouns.entries import FileEntry, LinkEntry
from nvidiad.nouns.errors import Code
from nvidiad.world import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvidiad.image.thought.package import Layout
    from nvidiad.nouns.entries import Entry

EPOCH = 0
"""The time of every file in an image, in seconds since 1970: the same inputs give the same layer."""
# Where Debian's packages have libraries.
_LIBRARIES = ("usr/lib/*-linux-gnu*", "lib/*-linux-gnu*")


class Workspace:
    """Works on the files of an image that is being made, below a directory where one is given."""

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """A directory that goes with the block."""
        with (
            files.explained("working on an image", Code.BUILD_FAILED),
            tempfile.TemporaryDirectory(prefix="nvidiad-image-", dir=self._parent) as made,
        ):
            yield Path(made)

    def drop_empty(self, tree: Path) -> None:
        """Remove the directories that have no file and no link anywhere below them."""
        for top, _, _ in os.walk(tree, topdown=False):
            place = Path(top)
            if place != tree and not any(place.iterdir()):
                place.rmdir()

    def processors(self) -> int:
        """How many compilers may run at once."""
        return len(os.sched_getaffinity(0))

    def lay(self, layout: Layout, source: Path, tree: Path, advanced: Callable[[int], None]) -> None:
        """Copy the files of a package into a tree, with the modes and links of its layout."""
        for item in layout.items:
            target = tree / item.path
            files.make_directory(target.parent)
            files.copy_file(source / item.source, target, item.mode, advanced)
        for link in layout.links:
            path = tree / link.path
            files.make_directory(path.parent)
            path.symlink_to(link.target)

    def bundle(self, program: Path, source: Path, directory: str) -> tuple[str, ...]:
        """Put beside a program of Debian's what it is linked to, in a directory relative to its own.

        Its own, so that no directory of the linker's cache has libraries that are the system's.
        """
        places = [path for pattern in _LIBRARIES for path in sorted(source.glob(pattern))]
        names = compiled.bundle(program, places, program.parent / directory)
        if names:
            mode = stat.S_IMODE(program.stat().st_mode)
            compiled.look_beside(program, directory)
            program.chmod(mode)
        return names

    def take_modules(self, source: Path, dest: Path) -> tuple[str, ...]:
        """Move compiled modules into a tree; their names, sorted."""
        files.make_directory(dest)
        names = sorted(path.name for path in source.glob("*.ko"))
        for name in names:
            shutil.move(source / name, dest / name)
            (dest / name).chmod(0o644)
        return tuple(names)

    def sign(self, module: Path, key: Path, certificate: Path) -> None:
        """Sign a module."""
        compiled.sign(module, key, certificate)

    def entries(self, tree: Path) -> tuple[Entry, ...]:
        """What is in a tree, as its manifest lists it; the manifest itself is not."""
        found: list[Entry] = []
        for name, what in files.walk(tree):
            path = tree / name
            if stat.S_ISLNK(what.st_mode):
                found.append(LinkEntry(name, str(path.readlink())))
            elif stat.S_ISREG(what.st_mode) and name != naming.MANIFEST:
                mode = stat.S_IMODE(what.st_mode)
                found.append(FileEntry(name, mode, what.st_size, files.sha256(path)))
        return tuple(found)

    def read(self, path: Path) -> str:
        """A small text."""
        return files.read_small(path, 1 << 16).decode(errors="replace")

    def write(self, path: Path, text: str) -> None:
        """A small text, that everybody may read."""
        files.make_directory(path.parent)
        files.atomic_write(path, text)

    def copy(self, source: Path, dest: Path, *names: str) -> None:
        """Copy files as they are, or a directory with everything in it."""
        files.make_directory(dest)
        for name in names:
            shutil.copy(source / name, dest / name)
        if not names:
            shutil.copytree(source, dest, symlinks=True, dirs_exist_ok=True)

    def move(self, source: Path, dest: Path) -> None:
        """Give something another name."""
        files.make_directory(dest.parent)
        shutil.move(source, dest)

    def pack(self, directory: Path, archive: Path) -> int:
        """Pack everything below a directory, the same for the same content; its bytes."""
        return tar.pack(directory, archive, EPOCH)
