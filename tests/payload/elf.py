# SPDX-License-Identifier: Apache-2.0
"""Writes the smallest ELF files that modinfo, ldconfig and dlopen take for real, without a compiler."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
_X86_64 = 62
_REL, _DYN = 1, 3
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_SHT_PROGBITS, _SHT_STRTAB = 1, 3
_DT_NULL, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 0, 4, 5, 6, 10, 11, 14


def module(modinfo: Iterable[tuple[str, str]], more: Mapping[str, bytes] | None = None) -> bytes:
    """A relocatable object of a .modinfo section and what is given: a module to read, not to load."""
    info = b"".join(f"{key}={value}\0".encode() for key, value in modinfo)
    content = {".modinfo": info, **(more or {})}
    names = b"\0" + b"".join(f"{name}\0".encode() for name in (*content, ".shstrtab"))
    body, sections = b"", [bytes(64)]
    for name, data in content.items():
        at = names.index(f"\0{name}\0".encode()) + 1
        sections.append(_section(at, _SHT_PROGBITS, 64 + len(body), len(data)))
        body += data + bytes(-len(data) % 8)
    names_at = 64 + len(body)
    sections_at = names_at + len(names) + (-(names_at + len(names)) % 8)
    sections.append(_section(names.index(b".shstrtab"), _SHT_STRTAB, names_at, len(names)))
    padding = bytes(sections_at - names_at - len(names))
    return _header(_REL, sections_at, len(sections)) + body + names + padding + b"".join(sections)


def library(soname: str, text: str) -> bytes:
    """A shared object with a SONAME and no symbols; `text` makes one driver's differ from another's."""
    strings = b"\0" + soname.encode() + b"\0" + text.encode() + b"\0"
    strings += bytes(-len(strings) % 8)
    symbols_at = 64 + 3 * 56
    hash_at = symbols_at + 24
    strings_at = hash_at + 16
    dynamic_at = strings_at + len(strings)
    dynamic = b"".join(
        struct.pack("<QQ", tag, value)
        for tag, value in (
            (_DT_SONAME, 1),
            (_DT_HASH, hash_at),
            (_DT_STRTAB, strings_at),
            (_DT_SYMTAB, symbols_at),
            (_DT_STRSZ, len(strings)),
            (_DT_SYMENT, 24),
            (_DT_NULL, 0),
        )
    )
    size = dynamic_at + len(dynamic)
    # Writable, because the dynamic linker of older glibc relocates the dynamic section in place.
    segments = (
        struct.pack("<IIQQQQQQ", _PT_LOAD, 6, 0, 0, 0, size, size, 4096),
        struct.pack("<IIQQQQQQ", _PT_DYNAMIC, 6, *[dynamic_at] * 3, len(dynamic), len(dynamic), 8),
        struct.pack("<IIQQQQQQ", _PT_GNU_STACK, 6, 0, 0, 0, 0, 0, 16),
    )
    header = _header(_DYN, 0, 0, segments=len(segments))
    return header + b"".join(segments) + bytes(24) + struct.pack("<IIII", 1, 1, 0, 0) + strings + dynamic


def modinfo(data: bytes) -> dict[str, str]:
    """The .modinfo section of a module; of a key that appears more than once, the first value."""
    table, size, count, names_index = struct.unpack_from("<Q10xHHH", data, 40)
    sections = [struct.unpack_from("<IIQQQQ", data, table + number * size) for number in range(count)]
    names_at = sections[names_index][4]
    for name, _, _, _, offset, length in sections:
        if data[names_at + name : names_at + name + 9] == b".modinfo\0":
            fields = data[offset : offset + length].rstrip(b"\0").split(b"\0")
            pairs = [field.decode().partition("=") for field in fields]
            return {key: value for key, _, value in reversed(pairs)}
    raise ValueError("there is no .modinfo section")


def is_static(data: bytes) -> bool:
    """Whether a program needs no dynamic linker."""
    at, size, count = struct.unpack_from("<Q14xHH", data, 32)
    return all(struct.unpack_from("<I", data, at + number * size)[0] != 3 for number in range(count))


def _header(kind: int, sections_at: int, sections: int, *, segments: int = 0) -> bytes:
    last = max(sections - 1, 0)
    return _IDENT + struct.pack(
        "<HHIQQQIHHHHHH",
        *(kind, _X86_64, 1, 0, 64 if segments else 0, sections_at, 0),
        *(64, 56 if segments else 0, segments, 64 if sections else 0, sections, last),
    )


def _section(name: int, kind: int, offset: int, size: int) -> bytes:
    return struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, 0, 0, 1, 0)
