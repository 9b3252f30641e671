# SPDX-License-Identifier: Apache-2.0
"""GPT: partitions from bytes, checked by their checksums, and which of them is the root."""

from __future__ import annotations

import struct
import zlib

import pytest

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.thought import gpt
from nvidiad.thought.gpt import Partition

SIZE = 64 << 20
LINUX = bytes.fromhex("af3dc60f838472478e793d69d8477de4")
ROOT = (9, "ROOT", 4096, 4096 + 20480 - 1)


def table(
    *entries: tuple[int, str, int, int],
    count: int = 128,
    entry_size: int = 128,
    header_size: int = 92,
    first_entry: int = 2,
) -> bytearray:
    """The beginning of a disk with these partitions (number, label, first and last block)."""
    content = bytearray(count * entry_size)
    for number, label, first, last in entries:
        name = label.encode("utf-16-le").ljust(72, b"\0")
        place = (number - 1) * entry_size
        content[place : place + 128] = struct.pack("<16s16sQQQ", LINUX, b"u" * 16, first, last, 0) + name
    fields = (1, SIZE // 512 - 1, 34, SIZE // 512 - 34, b"d" * 16, first_entry, count, entry_size)
    packed = struct.pack("<QQQQ16sQII", *fields) + struct.pack("<I", zlib.crc32(content))

    def header(checksum: int) -> bytes:
        return (b"EFI PART" + struct.pack("<IIII", 0x10000, header_size, checksum, 0) + packed).ljust(
            512, b"\0"
        )

    disk = bytearray(gpt.ENOUGH)
    disk[512:1024] = header(zlib.crc32(header(0)[:header_size]))
    begin = first_entry * 512
    disk[begin : begin + len(content)] = content[: len(disk) - begin]
    return disk


def test_reads_what_a_developer_container_has() -> None:
    found = gpt.partitions(bytes(table(ROOT)), SIZE, "disk.img")
    identity = "75757575-7575-7575-7575-757575757575"
    assert found == (Partition(9, "ROOT", 2 << 20, 10 << 20, 0, identity),)
    assert gpt.root(found, "disk.img").offset == 2097152


@pytest.mark.parametrize(
    ("entries", "number"),
    [
        pytest.param([(1, "EFI-SYSTEM", 2048, 4095), ROOT], 9, id="nine-by-number"),
        pytest.param([(1, "ROOT", 2048, 4095), (9, "", 4096, 8191)], 9, id="nine-before-the-label"),
        pytest.param([(1, "OEM", 2048, 4095), (2, "ROOT", 4096, 8191)], 2, id="the-label-without-nine"),
    ],
)
def test_the_root_is_number_nine_or_named_so(entries: list[tuple[int, str, int, int]], number: int) -> None:
    found = gpt.partitions(bytes(table(*entries)), SIZE, "disk.img")
    assert gpt.root(found, "disk.img").number == number


def test_a_partition_may_end_with_the_disk_and_no_later() -> None:
    disk = bytes(table(ROOT))
    end = (4096 + 20480) * 512
    assert gpt.partitions(disk, end, "disk.img")[0].size == 10 << 20
    with pytest.raises(Permanent, match=f"has {end - 1} bytes, but its partition 9 ends at {end}"):
        gpt.partitions(disk, end - 1, "disk.img")


def test_larger_entries_and_another_place_for_them() -> None:
    disk = table(ROOT, count=16, entry_size=256, first_entry=10)
    assert gpt.partitions(bytes(disk), SIZE, "disk.img")[0].number == 9


@pytest.mark.parametrize(
    ("entries", "there"),
    [
        pytest.param([], "none at all", id="empty-table"),
        pytest.param(
            [(1, "EFI-SYSTEM", 2048, 4095), (3, "", 4096, 8191)], "1 (EFI-SYSTEM), 3", id="other-partitions"
        ),
    ],
)
def test_no_root_says_what_there_is(entries: list[tuple[int, str, int, int]], there: str) -> None:
    found = gpt.partitions(bytes(table(*entries)), SIZE, "disk.img")
    with pytest.raises(Permanent) as caught:
        gpt.root(found, "disk.img")
    assert caught.value.code is Code.DISK_IMAGE_INVALID
    assert caught.value.sentence == f"'disk.img' has no partition 9 and none named ROOT: it has {there}"


def damaged(place: int) -> bytes:
    disk = table(ROOT)
    disk[place] ^= 0xFF
    return bytes(disk)


@pytest.mark.parametrize(
    ("start", "size", "fault"),
    [
        pytest.param(b"", 0, "has no GPT", id="empty"),
        pytest.param(bytes(gpt.ENOUGH), SIZE, "has no GPT", id="zeros"),
        pytest.param(bytes(table(ROOT)[:700]), 700, "has no GPT", id="cut-in-the-header"),
        pytest.param(
            bytes(table(ROOT)[:4096]), 4096, "ends within its GPT entries", id="cut-in-the-entries"
        ),
        pytest.param(damaged(512 + 40), SIZE, "the header's checksum is wrong", id="damaged-header"),
        pytest.param(
            damaged(1024 + 8 * 128 + 3), SIZE, "the checksum of its entries is wrong", id="damaged-entry"
        ),
        pytest.param(damaged(512 + 13), SIZE, "has a GPT header of", id="odd-header-size"),
        pytest.param(bytes(table(entry_size=64)), SIZE, "has GPT entries of 64 bytes", id="small-entries"),
        pytest.param(
            bytes(table(count=1 << 16)), SIZE, "or has more of them than", id="far-too-many-entries"
        ),
        pytest.param(bytes(table((9, "ROOT", 8, 7))), SIZE, "ends before it begins", id="negative"),
        pytest.param(
            bytes(table(ROOT)), 4 << 20, "but its partition 9 ends at 12582912", id="truncated-image"
        ),
    ],
)
def test_says_what_is_wrong(start: bytes, size: int, fault: str) -> None:
    with pytest.raises(Permanent) as caught:
        gpt.partitions(start, size, "disk.img")
    assert caught.value.code is Code.DISK_IMAGE_INVALID
    assert caught.value.sentence.startswith("'disk.img' ") and fault in caught.value.sentence
    assert caught.value.remedy
