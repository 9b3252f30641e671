# SPDX-License-Identifier: Apache-2.0
"""Symbols: what a kernel module imports with which CRC, and whether a kernel offers just that."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Content = Callable[[str], bytes]
    """The bytes of a section of the module by its name; none where it has no such section."""

# struct modversion_info of include/linux/module.h: a CRC and a name, 64 bytes in all.
_VERSION = struct.Struct("<Q56s")


class Export(Value):
    """A symbol that a kernel, or a module of it, offers."""

    crc: int
    """0 where the kernel was built without MODVERSIONS."""
    gpl: bool
    """For GPL modules only."""


class Imports(Value):
    """What a module says of symbols."""

    module: str
    path: str
    versions: Mapping[str, int]
    """The CRC that each of its imports had where it was compiled; empty without MODVERSIONS."""
    exports: frozenset[str] = frozenset()


class Known(Value):
    """What is known of the symbols of a kernel as it is on disk."""

    crcs: Mapping[str, int]
    source: str = ""
    """Where that stands, for a person."""
    whole: bool = False
    """No other symbol is exported."""
    vermagic: str = ""
    """That of the kernel's own modules."""
    why: str = ""
    """Why nothing is known."""


def versions(content: Content) -> dict[str, int]:
    """The CRC of each import of a module."""
    return dict(_versions(content))


def _versions(content: Content) -> Iterator[tuple[str, int]]:
    plain = content("__versions")
    for crc, name in _VERSION.iter_unpack(plain[: len(plain) - len(plain) % _VERSION.size]):
        yield name.partition(b"\0")[0].decode("ascii", "replace"), crc & 0xFFFFFFFF
    # CONFIG_EXTENDED_MODVERSIONS (Linux 6.14), for names that do not fit.
    crcs, names = content("__version_ext_crcs"), content("__version_ext_names").split(b"\0")
    for (crc,), name in zip(
        struct.iter_unpack("<I", crcs[: len(crcs) - len(crcs) % 4]), names, strict=False
    ):
        yield name.decode("ascii", "replace"), crc


def exports(content: Content) -> frozenset[str]:
    """The names of what a module offers to others."""
    names = content("__ksymtab_strings").split(b"\0")
    return frozenset(each.decode("ascii", "replace") for each in names if each)


def symvers(text: str) -> dict[str, Export]:
    """The exports in a Module.symvers: CRC, symbol, module, kind and namespace (Documentation/kbuild)."""
    found: dict[str, Export] = {}
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) >= 4 and fields[0].startswith("0x"):
            found[fields[1]] = Export(int(fields[0], 16), fields[3].endswith("_GPL"))
    return found


def different(mine: Mapping[str, int], theirs: Mapping[str, int]) -> tuple[str, ...]:
    """The imports whose CRC is another one there, `module_layout` first: it stands for the whole kernel."""
    found = (name for name, crc in mine.items() if name in theirs and theirs[name] != crc)
    return tuple(sorted(found, key=lambda name: (name != "module_layout", name)))
