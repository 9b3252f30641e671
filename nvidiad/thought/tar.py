# SPDX-License-Identifier: Apache-2.0
"""Tar archives as they come: what each header says, within bounds, and nothing believed that it says.

tarfile of the standard library reads an extended header of any size into memory.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING

from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

BLOCK = 512
_HEADER_AT_MOST = 1 << 20
"""Bytes of an extended header: attributes of a file may be in it, of 64 KiB each."""
_EXTENDED_AT_MOST = 64
"""Extended headers before one member."""
_PATH_AT_MOST = 4096
"""Characters of a name or of a target: the kernel takes no more bytes."""
_SIZE_AT_MOST = 1 << 50
_REGULAR = (b"0", b"\0", b"7")
_SPARSE = "GNU.sparse"
_KEPT = (b"path", b"linkpath", b"size")
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


class Sort(StrEnum):
    """What a member is."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "symbolic link"
    HARD_LINK = "hard link"
    SPARSE = "sparse file"
    DEVICE = "device"
    FIFO = "FIFO"
    OTHER = "member of an unknown type"


_SORTS = {
    b"1": Sort.HARD_LINK,
    b"2": Sort.LINK,
    b"3": Sort.DEVICE,
    b"4": Sort.DEVICE,
    b"5": Sort.DIRECTORY,
    b"6": Sort.FIFO,
    b"S": Sort.SPARSE,
}


class Member(Value):
    """One member of an archive, before its content."""

    name: str
    sort: Sort
    size: int = 0
    """The bytes that follow it."""
    target: str = ""
    """Of a link."""


def members(
    read: Callable[[int], bytes], skip: Callable[[int], None]
) -> Generator[Member, int | None, None]:
    """The members of an archive; `read` gives exactly as many bytes as asked for, fewer at the end.

    Whoever takes a member may read up to `size` bytes of its content before he asks for the next one, if he
    says how many: the generator is sent that number, and skips what is left.

    Raises:
        ValueError: it is not an archive, or not a whole one.
    """
    extended: dict[str, str] = {}
    count = 0
    while True:
        block = read(BLOCK)
        # Two empty blocks are the end; one, or the end of the file, is by many writers.
        if len(block) in (0, BLOCK) and not block.strip(b"\0"):
            return
        if len(block) != BLOCK:
            raise ValueError("it ends in the middle of a header")
        _check_sum(block)
        kind, size = block[156:157], _number(block[124:136])
        if kind in (b"x", b"g", b"L", b"K"):
            count += 1
            if size > _HEADER_AT_MOST or count > _EXTENDED_AT_MOST:
                raise ValueError("it has extended headers beyond all bounds")
            data = _padded(read, size)
            # A global one says what is the same for all: nothing that is of interest here.
            if kind == b"x":
                extended |= _records(data)
            elif kind != b"g":
                extended["path" if kind == b"L" else "linkpath"] = _text(data)
            continue
        member = _member(block, kind, size, extended)
        extended, count = {}, 0
        taken = yield member
        rest = member.size - (taken or 0)
        skip(rest + -member.size % BLOCK)


def _member(block: bytes, kind: bytes, size: int, extended: dict[str, str]) -> Member:
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    name = extended.get("path", f"{prefix}/{name}" if prefix else name)
    target = extended.get("linkpath", _text(block[157:257]))
    if max(len(name), len(target)) > _PATH_AT_MOST:
        raise ValueError("a path is beyond all bounds")
    if "size" in extended:
        if not _NUMBER.fullmatch(extended["size"]):
            raise ValueError("a size is no number")
        size = int(extended["size"])
    if size > _SIZE_AT_MOST:
        raise ValueError("a size is beyond all bounds")
    sort = Sort.FILE if kind in _REGULAR else _SORTS.get(kind, Sort.OTHER)
    if sort is Sort.FILE and name.endswith("/"):
        sort = Sort.DIRECTORY  # so it is in archives from before POSIX
    if sort is Sort.FILE and _SPARSE in extended:
        sort = Sort.SPARSE
    # What has no content may say a size all the same; that of a hard link may be the file's.
    has_content = sort in (Sort.FILE, Sort.SPARSE, Sort.OTHER)
    return Member(name, sort, size if has_content else 0, target)


def _check_sum(block: bytes) -> None:
    said = _number(block[148:156])
    # Some writers of old added the bytes as signed ones.
    others = block[:148] + b" " * 8 + block[156:]
    signed = sum(others) - 256 * sum(byte > 127 for byte in others)
    if said not in (sum(others), signed):
        raise ValueError("a header is damaged")


def _number(field: bytes) -> int:
    """Octal digits, or GNU's form for what is larger."""
    if field[0] in (0x80, 0xFF):
        number = int.from_bytes(field[1:], "big")
        if number > _SIZE_AT_MOST or field[0] == 0xFF:
            raise ValueError("a number is beyond all bounds")
        return number
    digits = field.split(b"\0", 1)[0].strip()
    if not digits:
        return 0
    if not re.fullmatch(rb"[0-7]{1,12}", digits):
        raise ValueError("a number is not octal")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _padded(read: Callable[[int], bytes], size: int) -> bytes:
    data = read(size + -size % BLOCK)
    if len(data) != size + -size % BLOCK:
        raise ValueError("it ends in the middle of an extended header")
    return data[:size]


def _records(data: bytes) -> dict[str, str]:
    """The records of an extended header (POSIX.1-2001): `LENGTH KEY=VALUE` and a line feed each.

    Only what is of interest here is kept: the rest could fill any memory.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(data) and data[at] != 0:
        space = data.find(b" ", at, at + 20)
        length = int(data[at:space]) if space > at and data[at:space].isdigit() else 0
        record = data[at : at + length]
        if len(record) != length or not record.endswith(b"\n"):
            raise ValueError("an extended header is damaged")
        key, equals, value = record[space - at + 1 : -1].partition(b"=")
        if not equals:
            raise ValueError("an extended header is damaged")
        if key in _KEPT:
            found[key.decode()] = _text(value)
        elif key.startswith(_SPARSE.encode()):
            found[_SPARSE] = ""
        at += length
    return found
