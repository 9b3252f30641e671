# SPDX-License-Identifier: Apache-2.0
"""Places of a host that cannot be written: full, read-only, or on a disk that died; by real file systems."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

_SIZE = 48 << 20
# A file system of its own at the place, with everything that was there; `--move` is not for shared mounts.
_SAME = "cp -ax {place}/. /run/broken/"
_TAKE_PLACE = "mount --bind /run/broken {place} && umount -l /run/broken"
# EXT4_IOC_SHUTDOWN with NOLOGFLUSH: from now on every operation is answered as by a disk that is gone.
_DIE = """
import fcntl, os, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY), 0x8004587D, b"\\x02\\0\\0\\0")
"""


class Fault(StrEnum):
    """What a write is answered with, by the kernel's name."""

    FULL = "ENOSPC"
    READ_ONLY = "EROFS"
    DEAD = "EIO"


@contextmanager
def broken(host: Host, place: str, fault: Fault) -> Iterator[None]:
    """Until the block ends nothing can be written in a directory, nor read where its disk is dead."""
    host.run(f"mkdir -p {place} /run/broken", check=True)
    with _disk(host) if fault is Fault.DEAD else _nothing() as device:
        _break(host, place, fault, device)
        try:
            yield
        finally:
            host.run("umount", "-l", place, check=True)


def _break(host: Host, place: str, fault: Fault, device: str) -> None:
    same = _SAME.format(place=place)
    match fault:
        case Fault.FULL:
            # No inode is left; what is there can be written over and removed.
            room = f"nr_inodes=$(($(find {place} -xdev | wc -l) + 8))"
            fill = "i=0; while true 2>/dev/null >/run/broken/.full.$i; do i=$((i + 1)); done"
            host.run(
                f"mount -t tmpfs -o mode=755,{room} full /run/broken && {same} && {{ {fill}; }}", check=True
            )
        case Fault.READ_ONLY:
            host.run(f"mount --bind {place} {place} && mount -o remount,bind,ro {place}", check=True)
            return
        case Fault.DEAD:
            host.run(f"mount {device} /run/broken && {same}", check=True)
            host.run("/usr/bin/python3", "-c", _DIE, "/run/broken", check=True)
    host.run(_TAKE_PLACE.format(place=place), check=True)


@contextmanager
def _nothing() -> Iterator[str]:
    yield ""


@contextmanager
def _disk(host: Host) -> Iterator[str]:
    """A disk with an empty file system, by its name in the host."""
    image = host.dir / "broken.img"
    with image.open("wb") as file:
        file.truncate(_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    made = subprocess.run(
        ["losetup", "-f", "--show", str(image)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"this machine has no loop device to make a dead disk of: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        host.run(f"mknod /dev/broken b 7 {Path(device).name.removeprefix('loop')}", check=True)
        yield "/dev/broken"
    finally:
        host.run("rm", "-f", "/dev/broken")
        subprocess.run(["losetup", "-d", device], check=True)
        image.unlink()
