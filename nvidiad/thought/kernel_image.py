# SPDX-License-Identifier: Apache-2.0
"""Kernel images: the release that a kernel's file says it is, and which file is that of the other slot."""

# Documentation/arch/x86/boot.rst of the kernel: the header at 0x1F1, kernel_version at 0x20E.

from __future__ import annotations

import re

HEADER_BYTES = 1 << 16
_MAGIC, _MAGIC_AT, _VERSION_AT = b"HdrS", 0x202, 0x20E
_WORD = re.compile(rb"[0-9][0-9A-Za-z._+~-]{0,63}(?=[ \0])")
_SLOT = re.compile(r"(?:^|\s)BOOT_IMAGE=\S*/vmlinuz-([ab])(?=\s|$)")


def release(start: bytes) -> str:
    """The kernel release in an x86 boot image, of which these are the first bytes; ValueError for others."""
    if start[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        raise ValueError("it is no x86 kernel image")
    place = int.from_bytes(start[_VERSION_AT : _VERSION_AT + 2], "little")
    found = _WORD.match(start, place + 0x200) if place else None
    if found is None:
        raise ValueError("its header names no kernel release")
    return found[0].decode()


def other_slot(cmdline: str) -> str:
    """The letter of the slot that does not run, by the kernel's command line; empty where there are none."""
    found = _SLOT.search(cmdline)
    return {"a": "b", "b": "a"}[found[1]] if found else ""
