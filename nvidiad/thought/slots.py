# SPDX-License-Identifier: Apache-2.0
"""Slots: the two partitions of an OS that updates itself; which one runs, and which one is booted next."""

# The attributes are those of ChromeOS' disk format, which CoreOS and Flatcar took over.

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvidiad.thought.gpt import Partition

LABELS = ("USR-A", "USR-B")
HEADER_BYTES = 1 << 17
# Where a file system's mark is, what it is, and as what it is mounted so that not a byte of it changes. An
# ext2 is read as ext4, but not while somebody (update_engine's own postinst) has it mounted as what it is.
_FILE_SYSTEMS = (
    (65600, b"_BHRfS_M", ("btrfs,rescue=nologreplay",)),
    (0, b"hsqs", ("squashfs,ro",)),
    (1080, b"\x53\xef", ("ext4,noload", "ext2,ro")),
)
_USR = re.compile(
    r"(?:^|\s)(?:mount\.usr|usr|verity\.usr)="
    r"(?:PART(LABEL|UUID)=|/dev/disk/by-part(label|uuid)/)(\S+)"
)


def running(cmdline: str, found: Sequence[Partition]) -> Partition | None:
    """The slot that the kernel's command line names; None where it names none of these."""
    for label, path, name in _USR.findall(cmdline):
        by_label = (label or path).lower() == "label"
        for partition in found:
            if (partition.label if by_label else partition.identity) == (name if by_label else name.lower()):
                return partition
    return None


def next_slot(found: Sequence[Partition], now: Partition) -> Partition | None:
    """The slot that the boot loader takes next, where that is another one than the running one.

    It takes the highest priority of those that were booted successfully or have a try left.
    """
    bootable = [slot for slot in found if slot.label in LABELS and (_successful(slot) or _tries(slot))]
    best = max(bootable, key=_priority, default=None)
    return best if best is not None and best.number != now.number and _priority(best) else None


def file_systems(start: bytes) -> tuple[str, ...]:
    """As what a slot with these first bytes can be mounted, as "type,options"; ValueError for all others.

    A wrong try is an error in the kernel's log each time, and loads a module that nobody needs.
    """
    for place, mark, kinds in _FILE_SYSTEMS:
        if start[place : place + len(mark)] == mark:
            return kinds
    raise ValueError("it has no file system that an OS keeps its /usr in")


def _priority(slot: Partition) -> int:
    return slot.attributes >> 48 & 0xF


def _tries(slot: Partition) -> int:
    return slot.attributes >> 52 & 0xF


def _successful(slot: Partition) -> int:
    return slot.attributes >> 56 & 1
