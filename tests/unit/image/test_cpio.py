# SPDX-License-Identifier: Apache-2.0
"""The kernel's archive format: what cpio(1) reads in it, and that equal items give equal bytes."""

from __future__ import annotations

import shutil
import stat
import subprocess

import pytest

from nvidiad.image.thought import cpio

ITEMS = (
    cpio.directory("bin"),
    cpio.file("bin/tool", b"#!/bin/true\n", 0o755),
    cpio.file("empty", b""),
    *(cpio.file(f"odd{size}", b"x" * size) for size in range(1, 9)),
    cpio.CONSOLE,
)


def listed(data: bytes) -> list[tuple[str, int, bytes]]:
    """What an archive holds, read as the kernel's unpacker does (init/initramfs.c)."""
    found: list[tuple[str, int, bytes]] = []
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name_at = at + 110
        name = data[name_at : name_at + fields[11] - 1].decode()
        body_at = name_at + fields[11] + -(name_at + fields[11]) % 4
        at = body_at + fields[6] + -(body_at + fields[6]) % 4
        if name == "TRAILER!!!":
            assert at == len(data)
            return found
        found.append((name, fields[1], data[body_at : body_at + fields[6]]))


def test_every_item_is_in_the_archive_as_it_was_given() -> None:
    data = cpio.archive(ITEMS)
    assert listed(data) == [(item.name, item.mode, item.data) for item in ITEMS]
    assert data == cpio.archive(ITEMS)


def test_the_console_is_a_device_node() -> None:
    assert stat.S_ISCHR(cpio.CONSOLE.mode) and cpio.CONSOLE.device == (5, 1)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="there is no cpio")
def test_cpio_lists_it() -> None:
    done = subprocess.run(
        ["cpio", "--list", "--verbose", "--quiet"],
        input=cpio.archive(ITEMS),
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode().splitlines()
    assert [line.split()[-1] for line in lines] == [item.name for item in ITEMS]
    assert lines[1].startswith("-rwxr-xr-x") and lines[-1].startswith("crw-------")
