# SPDX-License-Identifier: Apache-2.0
"""Linker: our file in ld.so.conf.d, and the cache that the dynamic linker reads instead of directories."""

from __future__ import annotations

import os
from pathlib import Path

from nvidiad.nouns.errors import Code
from nvidiad.nouns.facts import LinkerFacts
from nvidiad.nouns.model import Library
from nvidiad.thought import ldcache
from nvidiad.world import files, process

CONFIGURATION = "etc/ld.so.conf.d/nvidiad.conf"
CACHE = "etc/ld.so.cache"
# ldconfig reads the head of every library on the host; on a cold disk that takes its time.
TIMEOUT = 180.0
# The two that every program of the driver comes through; both refuse a module of another version.
CHECKED = ("libnvidia-ml.so.1", "libcuda.so.1")
# What CUDA's forward compatibility packages bring on purpose newer than the module, and their directory.
COMPATIBLE, COMPATIBILITY = "libcuda.so.1", "compat"
# One directory may have more than one name, and ldconfig keeps the first that it meets.
SYSTEM = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")


class Linker:
    """The dynamic linker's configuration and cache."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def facts(self, directory: str, libraries: tuple[str, ...]) -> LinkerFacts:
        """Our configuration, which of the libraries the cache does not have from `directory`, and what of a
        driver it has first.
        """
        try:
            configuration = (self.root / CONFIGURATION).read_text(encoding="utf-8", errors="replace")
        except OSError:
            configuration = None
        entries = self._entries()
        known = self._names(entries, directory) if libraries else frozenset()
        missing = tuple(name for name in libraries if name not in known)
        return LinkerFacts(
            configuration, self._without_aliases(directory, missing, known), self._first(entries)
        )

    def configure(self, text: str | None) -> None:
        """Write our file, or remove it; the cache does not change before refresh."""
        path = self.root / CONFIGURATION
        writable = f"Mount '{path.parent}' writable."
        with files.explained(f"writing '{path}'", Code.EXPOSURE_FAILED, writable):
            if text is None:
                path.unlink(missing_ok=True)
            else:
                files.make_directory(path.parent)
                files.atomic_write(path, text)

    def refresh(self) -> None:
        """Make the cache anew."""
        # -X: without it ldconfig makes links it misses in every directory, also in a tree that was verified.
        argv = ["ldconfig", "-X"]
        if self.root != Path("/"):
            argv += ["-r", str(self.root)]
        process.check(
            argv,
            timeout=TIMEOUT,
            code=Code.EXPOSURE_FAILED,
            remedy="Run 'ldconfig -v' and see what it minds.",
        )

    def _entries(self) -> tuple[ldcache.Entry, ...]:
        try:
            return ldcache.read((self.root / CACHE).read_bytes())
        except OSError:
            return ()

    def _names(self, entries: tuple[ldcache.Entry, ...], directory: str) -> frozenset[str]:
        names = ldcache.names(entries, directory)
        for alias in SYSTEM:
            if alias != directory and self._same(alias, directory):
                names |= ldcache.names(entries, alias)
        return names

    def _first(self, entries: tuple[ldcache.Entry, ...]) -> tuple[Library, ...]:
        """What a program gets for the checked libraries: the first of its ABI, wherever that is.

        One that is not there any more, or whose real file carries no driver version, says nothing.
        """
        found = []
        for name in CHECKED:
            path = ldcache.first(entries, name, os.uname().machine)
            if path is None or not (real := self._real(path)):
                continue
            version = ldcache.driver_version(real.name)
            if version is not None and not (name == COMPATIBLE and real.parent.name == COMPATIBILITY):
                found.append(Library(name, path, version))
        return tuple(found)

    def _real(self, path: str) -> Path | None:
        try:
            return (self.root / path.lstrip("/")).resolve(strict=True)
        except OSError:
            return None

    def _without_aliases(
        self, directory: str, missing: tuple[str, ...], known: frozenset[str]
    ) -> tuple[str, ...]:
        """Those of `missing` that are not a second name of a library in the cache.

        ldconfig takes a library by its SONAME only: a link of another name, such as the
        libnvidia-nvvm70.so.4 of real drivers, is never in the cache, and nothing looks for it there.
        """
        if not missing or not known:
            return missing
        cached = {self._identity(directory, name) for name in known} - {None}
        return tuple(name for name in missing if self._identity(directory, name) not in cached)

    def _identity(self, directory: str, name: str) -> tuple[int, int] | None:
        try:
            found = (self.root / directory.lstrip("/") / name).stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _same(self, one: str, other: str) -> bool:
        try:
            return (self.root / one.lstrip("/")).samefile(self.root / other.lstrip("/"))
        except OSError:
            return False
