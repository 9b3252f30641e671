# SPDX-License-Identifier: Apache-2.0
"""ELF files: what a kernel module takes and offers, and which libraries a library wants beside it.

Little-endian files of 64 bits only, which is what the kernels and drivers of every supported machine are.
Every function raises ValueError for what is not one, or ends early.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.model import ModuleFile
from nvidiad.nouns.value import Value
from nvidiad.thought import parse, symbols

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Read = Callable[[int, int], bytes]
    """`read(offset, size)` gives that many bytes of the file, fewer at its end."""

MAGIC = b"\x7fELF"

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNAMIC = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_NULL = 1, 5, 10, 14, 0
_SHT_SYMTAB, _SHT_NOBITS = 2, 8
_GLOBAL, _WEAK = 1, 2
_LARGEST, _FARTHEST = 1 << 28, 1 << 40
# The kernel knows none of more than 512 (KSYM_NAME_LEN).
_LONGEST_NAME = 1024
# The linker's own, which the kernel passes over (kernel/module/main.c, simplify_symbols).
_PASSED_OVER = frozenset({"_GLOBAL_OFFSET_TABLE_"})
# include/linux/license.h: who may use what is exported to GPL modules only.
_GPL = frozenset(
    {"GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"}
)


class Library(Value):
    """A shared object, or a program that is linked to some."""

    path: str
    """In its tree."""
    soname: str
    """Empty for a program."""
    needed: tuple[str, ...]
    interpreter: bool = False
    """It is a program that a dynamic linker starts."""


class KernelModule(Value):
    """A kernel module as its file tells it."""

    file: ModuleFile
    license: str
    firmware: tuple[str, ...]
    """The files that it may ask for, below a firmware directory."""
    undefined: frozenset[str]
    """The symbols that it must find elsewhere."""
    exports: frozenset[str]
    versions: Mapping[str, int]
    """The CRC that each of its imports had where it was compiled; empty without MODVERSIONS."""

    @property
    def name(self) -> str:
        """As the kernel has it: `nvidia_uvm`."""
        return self.file.name

    @property
    def gpl(self) -> bool:
        """Whether it may use symbols that are exported to GPL modules only."""
        return self.license in _GPL


class _Section(Value):
    name: str
    kind: int
    offset: int
    size: int
    link: int


def library(read: Read, path: str) -> Library:
    """A shared object or a dynamic program."""
    header = _header(read)
    table, size, count = header[5], header[9], header[10]
    if count and size != _SEGMENT.size:
        raise ValueError(f"the ELF file has program headers of {size} bytes")
    segments = list(_SEGMENT.iter_unpack(_exactly(read, table, size * count)))
    dynamic = next((segment for segment in segments if segment[0] == _PT_DYNAMIC), None)
    interpreter = any(segment[0] == _PT_INTERP for segment in segments)
    if dynamic is None:
        return Library(path, "", (), interpreter)
    entries: list[tuple[int, int]] = []
    content = _exactly(read, dynamic[2], dynamic[5] - dynamic[5] % _DYNAMIC.size)
    for tag, value in _DYNAMIC.iter_unpack(content):
        if tag == _DT_NULL:
            break
        entries.append((tag, value))
    known = dict(entries)
    strings = _exactly(read, _place(segments, known.get(_DT_STRTAB, 0)), known.get(_DT_STRSZ, 0))
    soname = _text(strings, known[_DT_SONAME]) if _DT_SONAME in known else ""
    needed = tuple(_text(strings, value) for tag, value in entries if tag == _DT_NEEDED)
    return Library(path, soname, needed, interpreter)


def _place(segments: list[tuple[int, ...]], address: int) -> int:
    """Where in the file lies what is loaded at an address."""
    for kind, _, offset, start, _, size, *_ in segments:
        if kind == _PT_LOAD and start <= address < start + size:
            return offset + address - start
    raise ValueError(f"the ELF file has nothing at address {address:#x}")


def kernel_module(read: Read, path: str) -> KernelModule:
    """A kernel module; one without a vermagic is none."""
    sections = _sections(read)

    def content(name: str) -> bytes:
        found = next((section for section in sections if section.name == name), None)
        return _exactly(read, found.offset, found.size) if found and found.kind != _SHT_NOBITS else b""

    info = parse.modinfo(content(".modinfo"))

    def first(key: str) -> str:
        return info.get(key, ("",))[0]

    if not first("vermagic"):
        raise ValueError("not a kernel module: it has no vermagic")
    name = first("name") or naming.module_name(path.rpartition("/")[2])
    depends = tuple(each for each in first("depends").split(",") if each)
    return KernelModule(
        file=ModuleFile(name, path, first("version"), first("vermagic"), depends),
        license=first("license"),
        firmware=info.get("firmware", ()),
        undefined=frozenset(_undefined(read, sections)),
        exports=symbols.exports(content),
        versions=symbols.versions(content),
    )


def _undefined(read: Read, sections: list[_Section]) -> Iterator[str]:
    """The names of what is not defined in the file and must be: a weak symbol may stay without a value."""
    table = next((section for section in sections if section.kind == _SHT_SYMTAB), None)
    if table is None or table.link >= len(sections) or table.size % _SYMBOL.size:
        raise ValueError("not a kernel module: it has no symbols")
    strings = _exactly(read, sections[table.link].offset, sections[table.link].size)
    for name, info, _, section, _, _ in _SYMBOL.iter_unpack(_exactly(read, table.offset, table.size)):
        if section == 0 and info >> 4 == _GLOBAL and name:
            text = _text(strings, name)
            if text not in _PASSED_OVER:
                yield text


def _sections(read: Read) -> list[_Section]:
    header = _header(read)
    table, size, count, names = header[6], header[11], header[12], header[13]
    if size != _SECTION.size or names >= count:
        raise ValueError("the ELF file has no section table that can be read")
    found = list(_SECTION.iter_unpack(_exactly(read, table, size * count)))
    strings = _exactly(read, found[names][4], found[names][5])
    return [_Section(_text(strings, each[0]), each[1], each[4], each[5], each[6]) for each in found]


def _header(read: Read) -> tuple[int, ...]:
    data = _exactly(read, 0, _HEADER.size)
    if data[:4] != MAGIC or data[4:6] != b"\x02\x01":
        raise ValueError("not a little-endian ELF file of 64 bits")
    return _HEADER.unpack(data)


def _exactly(read: Read, offset: int, size: int) -> bytes:
    data = read(offset, size) if size <= _LARGEST and offset < _FARTHEST else b""
    if len(data) != size:
        raise ValueError("the ELF file ends early")
    return data


def _text(strings: bytes, offset: int) -> str:
    # Names may share their ends: without a limit, a small file has large ones without end.
    end = strings.find(b"\0", offset, offset + _LONGEST_NAME + 1)
    if offset >= len(strings) or end < 0:
        raise ValueError("the ELF file has a name out of bounds")
    return strings[offset:end].decode("utf-8", "replace")
