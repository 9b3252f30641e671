# SPDX-License-Identifier: Apache-2.0
"""The dynamic linker's cache as values: which libraries it has from where, and which a program gets."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Entry = tuple[int, bytes]
"""Its flags and its path, in the order in which the dynamic linker meets them."""

_OLD_MAGIC = b"ld.so-1.7.0"
_NEW_MAGIC = b"glibc-ld.so.cache1.1"
# The ABI in an entry's flags (glibc, sysdeps/generic/ldconfig.h): a program takes no library of another one.
_ABI = 0xFF00
_ABIS = {"x86_64": 0x0300, "aarch64": 0x0A00}
# As NVIDIA names the real files of a driver, and nobody else does: libcuda.so.535.309.01.
# PATH_MAX: strings share their ends, so a small cache could have endless ones.
_LONGEST = 4096
_VERSION = re.compile(r"\.so\.([0-9]{2,}(?:\.[0-9]+){1,2})")


def read(cache: bytes) -> tuple[Entry, ...]:
    """The entries of an ld.so.cache: the old format, the new one, or the new one behind the old one.

    What cannot be understood is left out; nothing is raised.
    """
    return tuple(_entries(cache))


def _entries(cache: bytes) -> Iterable[Entry]:
    start = cache.find(_NEW_MAGIC)
    if start >= 0:
        # magic (20), count, length of the strings, flags, extensions, 3 unused; offsets from `start`
        count_at, entries, size, base = start + 20, start + 48, 24, start
    elif cache.startswith(_OLD_MAGIC):
        # magic (11, padded to 12), count; offsets from behind the entries
        count_at, entries, size, base = 12, 16, 12, -1
    else:
        return
    if len(cache) < entries:
        return
    (count,) = struct.unpack_from("<I", cache, count_at)
    count = min(count, (len(cache) - entries) // size)
    base = entries + count * size if base < 0 else base
    for index in range(count):
        # flags, key, value: the value is the path. glibc lets strings share their ends, so a path may
        # begin inside another one: only the offsets tell where.
        flags, _, value = struct.unpack_from("<III", cache, entries + index * size)
        end = cache.find(b"\0", base + value, base + value + _LONGEST)
        if base + value < len(cache) and end >= 0:
            yield flags, cache[base + value : end]


def names(entries: Iterable[Entry], directory: str) -> frozenset[str]:
    """The file names that the cache has from exactly this directory."""
    prefix = directory.rstrip("/").encode("utf-8", "surrogateescape") + b"/"
    return frozenset(
        path[len(prefix) :].decode("utf-8", "surrogateescape")
        for _, path in entries
        if path.startswith(prefix) and b"/" not in path[len(prefix) :]
    )


def first(entries: Iterable[Entry], name: str, machine: str) -> str | None:
    """The path that a program of this machine (`uname -m`) gets for a library, None where it gets none.

    The dynamic linker takes the first entry of its own ABI; on machines whose ABI is not known here the
    first one is given.
    """
    last = b"/" + name.encode("utf-8", "surrogateescape")
    wanted = _ABIS.get(machine)
    for flags, path in entries:
        if path.endswith(last) and (wanted is None or flags & _ABI == wanted):
            return path.decode("utf-8", "surrogateescape")
    return None


def driver_version(file_name: str) -> str | None:
    """The driver version in the name of a library's real file, None where it has none."""
    match = _VERSION.search(file_name)
    return match[1] if match and match.end() == len(file_name) else None
