# SPDX-License-Identifier: Apache-2.0
"""Kernel images: the release that a kernel's file says it is, and which of several files is booted next."""

# x86: Documentation/arch/x86/boot.rst of the kernel, the header at 0x1F1 and kernel_version at 0x20E.
# arm64: Documentation/arch/arm64/booting.rst; its header names no release, but the text that the kernel
# greets with is in every image that is not compressed.

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nvidiad.nouns import naming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_X86_AT, _X86, _VERSION_AT, _VERSION_FROM = 0x202, b"HdrS", 0x20E, 0x200
_ARM64_AT, _ARM64 = 0x38, b"ARM\x64"
_HEADER_BYTES = 0x210
# What uname(2) can hold: 64 bytes, and then the end of the word.
_WORD = re.compile(rb"[0-9][0-9A-Za-z._+~-]{0,63}(?=[ \0])")
_WORD_BYTES = 65
_BANNER = re.compile(rb"Linux version ([0-9][0-9A-Za-z._+~-]{0,63}) \(")
_BANNER_BYTES = 14 + _WORD_BYTES + 1
# The greeting is in the read-only data of the kernel itself, before an initrd that is built in.
_SCANNED = 1 << 27
_PIECE = 1 << 20
_SLOT = re.compile(r"(?:^|\s)BOOT_IMAGE=\S*/vmlinuz-([ab])(?=\s|$)")
_PARTS = re.compile(r"([^0-9]*)([0-9]*)")


def release(read: Callable[[int, int], bytes]) -> str:
    """The kernel release in a boot image; ValueError for a file that is none, or does not name it.

    `read(offset, size)` gives that many bytes of the file, fewer at its end. It is asked for less than 1 KiB
    of an x86 image, and for at most 128 MiB, piece by piece, of an arm64 one.
    """
    header = read(0, _HEADER_BYTES)
    if header[_X86_AT : _X86_AT + 4] == _X86:
        place = int.from_bytes(header[_VERSION_AT : _VERSION_AT + 2], "little")
        found = _WORD.match(read(place + _VERSION_FROM, _WORD_BYTES)) if place else None
        if found is None:
            raise ValueError("its header names no kernel release")
        return _checked(found[0])
    if header[_ARM64_AT : _ARM64_AT + 4] == _ARM64:
        return _greeting(read)
    raise ValueError("it is no kernel image of x86, and no uncompressed one of arm64")


def _greeting(read: Callable[[int, int], bytes]) -> str:
    rest = b""
    for place in range(0, _SCANNED, _PIECE):
        piece = read(place, _PIECE)
        if found := _BANNER.search(rest + piece):
            return _checked(found[1])
        if len(piece) < _PIECE:
            break
        rest = piece[-_BANNER_BYTES:]
    raise ValueError("nothing in it says 'Linux version' with a kernel release")


def _checked(word: bytes) -> str:
    name = word.decode()
    if not naming.is_version(name):
        raise ValueError(f"the kernel release '{name}' in it may not stand in a path")
    return name


def other_slot(cmdline: str) -> str:
    """The letter of the slot that does not run, by the kernel's command line; empty where there are none."""
    found = _SLOT.search(cmdline)
    return {"a": "b", "b": "a"}[found[1]] if found else ""


def newest(releases: Iterable[str]) -> str:
    """The highest kernel release in the order of dpkg and of GRUB's menu; empty where there is none."""
    return max(releases, key=_order, default="")


def _order(version: str) -> tuple[object, ...]:
    # deb-version(7): text and numbers by turns; `~` is before even the end, and letters are before the rest.
    parts = _PARTS.findall(version)
    return tuple(((*map(_weight, text), 0), int(number or 0)) for text, number in parts)


def _weight(char: str) -> int:
    return -1 if char == "~" else ord(char) if char.isalpha() else ord(char) + 256
