# SPDX-License-Identifier: Apache-2.0
"""GPT: the partition table at the beginning of a disk image, from bytes to partitions."""

# UEFI specification 2.10, section 5.3: the header is in block 1, all numbers are little-endian.

from __future__ import annotations

import struct
import uuid
import zlib
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK = 512
# Bytes from the beginning of a disk that hold a table of the usual 128 entries, and a much larger one.
ENOUGH = 1 << 18

_SIGNATURE = b"EFI PART"
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_LARGEST_HEADER = BLOCK
_UNUSED = bytes(16)
ROOT_NUMBER = 9
ROOT_LABEL = "ROOT"


class Partition(Value):
    """One partition: where it begins and how long it is, in bytes."""

    number: int
    label: str
    offset: int
    size: int
    attributes: int = 0
    """The 64 bits of its entry; those from 48 on mean what its type says."""
    identity: str = ""
    """Its own GUID, as PARTUUID= has it: in lower case."""

    def __str__(self) -> str:
        return f"{self.number}" + (f" ({self.label})" if self.label else "")


def partitions(start: bytes, size: int, name: str) -> tuple[Partition, ...]:
    """The partitions of the disk image `name` of `size` bytes, whose first bytes are `start`.

    Both checksums are checked. The table's copy at the end of a disk is not asked for: an image whose first
    table is damaged was not published so.

    Raises:
        Permanent: disk-image-invalid, with what is wrong with the table.
    """
    header = start[BLOCK : 2 * BLOCK]
    if len(header) < BLOCK or not header.startswith(_SIGNATURE):
        raise _invalid(name, "has no GPT (no 'EFI PART' in its second block)")
    fields = _HEADER.unpack_from(header)
    _, _, length, checksum, _, _, _, _, _, _, entries_block, count, entry_size, entries_checksum = fields
    if not _HEADER.size <= length <= _LARGEST_HEADER:
        raise _invalid(name, f"has a GPT header of {length} bytes")
    if zlib.crc32(header[:16] + bytes(4) + header[20:length]) != checksum:
        raise _invalid(name, "has a damaged GPT: the header's checksum is wrong")
    if entry_size < _ENTRY.size or entry_size % 8:
        raise _invalid(name, f"has GPT entries of {entry_size} bytes")
    begin = entries_block * BLOCK
    table = start[begin : begin + count * entry_size]
    if len(table) < count * entry_size:
        raise _invalid(name, f"ends within its GPT entries, or has more of them than {ENOUGH} bytes hold")
    if zlib.crc32(table) != entries_checksum:
        raise _invalid(name, "has a damaged GPT: the checksum of its entries is wrong")
    return tuple(
        _partition(number, table[place : place + entry_size], size, name)
        for number, place in enumerate(range(0, len(table), entry_size), 1)
        if table[place : place + 16] != _UNUSED
    )


def root(found: Sequence[Partition], name: str) -> Partition:
    """The partition with the root file system: number 9, as all releases have it; else the one named ROOT.

    Raises:
        Permanent: disk-image-invalid, with the partitions that there are.
    """
    for partition in found:
        if partition.number == ROOT_NUMBER:
            return partition
    for partition in found:
        if partition.label == ROOT_LABEL:
            return partition
    there = ", ".join(map(str, found)) or "none at all"
    raise _invalid(name, f"has no partition {ROOT_NUMBER} and none named {ROOT_LABEL}: it has {there}")


def _partition(number: int, entry: bytes, size: int, name: str) -> Partition:
    _, unique, first, last, attributes, label = _ENTRY.unpack_from(entry)
    if last < first:
        raise _invalid(name, f"has a partition {number} that ends before it begins")
    if (last + 1) * BLOCK > size:
        raise _invalid(name, f"has {size} bytes, but its partition {number} ends at {(last + 1) * BLOCK}")
    text = label.decode("utf-16-le", "replace").partition("\0")[0]
    identity = str(uuid.UUID(bytes_le=unique))
    return Partition(number, text, first * BLOCK, (last + 1 - first) * BLOCK, attributes, identity)


def _invalid(name: str, fault: str) -> Permanent:
    remedy = "Check that the file is a developer container's disk image; fetch it again from another mirror."
    return Permanent(Code.DISK_IMAGE_INVALID, f"'{name}' {fault}", remedy)
