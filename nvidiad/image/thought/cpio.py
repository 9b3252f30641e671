# SPDX-License-Identifier: Apache-2.0
"""The kernel's archive format ("newc", Documentation/driver-api/early-userspace/buffer-format.rst).

Made here because cpio(1) packs no device node without root.
"""

from __future__ import annotations

import io
import stat
from typing import TYPE_CHECKING

from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Iterable


class Item(Value):
    """A file, directory or device node of an archive."""

    name: str
    """Relative; the directories above it are items of their own, before it."""
    mode: int
    """With the bits of its type, as stat(2) has them."""
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


CONSOLE = Item("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
"""What the kernel opens for its first process."""


def directory(name: str) -> Item:
    """A directory that everybody may enter."""
    return Item(name, stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, mode: int = 0o644) -> Item:
    """A regular file."""
    return Item(name, stat.S_IFREG | mode, data)


def archive(items: Iterable[Item]) -> bytes:
    """An archive of these items; equal items give equal bytes. Owners are root, times are 0."""
    out = io.BytesIO()
    for number, item in enumerate((*items, Item("TRAILER!!!", 0)), 1):
        name = item.name.encode() + b"\0"
        # inode, mode, uid, gid, links, time, size, the archive's device, the node's, length of name, check
        inode = number if item.mode else 0
        fields = (inode, item.mode, 0, 0, 1, 0, len(item.data), 0, 0, *item.device, len(name), 0)
        out.write(b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name)
        out.write(b"\0" * (-out.tell() % 4))
        out.write(item.data)
        out.write(b"\0" * (-out.tell() % 4))
    return out.getvalue()
