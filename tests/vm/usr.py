# SPDX-License-Identifier: Apache-2.0
"""The /usr of a slot: a tree, and an image of it in each form that slots have in the field."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.beds.common import cached, require, run_checked
from tests.vm import guest, initrd
from tests.vm.kernels import Kernel, kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

RELEASES = {"A": "3975.2.0", "B": "4081.2.0"}
FORMS = ("squashfs", "ext4", "btrfs")
_MIB = 1 << 20
# The last byte of ext2's features without which a file system may only be read: where every bit is set, no
# kernel mounts it writable. CoreOS and Flatcar do so, as one write would break the partition's hash tree.
_READ_ONLY_FEATURES = 1024 + 0x64 + 3
# All that is big and only the container engine needs.
_ENGINE = ("bin/docker*", "bin/containerd*", "bin/ctr", "sbin/docker*", "sbin/runc")


@dataclass(frozen=True)
class Slot:
    """What one of the two slots boots."""

    kernel: Kernel
    os_release: str


def slots() -> dict[str, Slot]:
    """The two releases of the bed's Container Linux, with Debian's small kernels."""
    return {slot: Slot(kernel, os_release(slot)) for slot, kernel in kernels().slots.items()}


def os_release(slot: str) -> str:
    """The os-release of a slot's release."""
    version = RELEASES[slot]
    return (
        'NAME="Flatcar Container Linux by Kinvolk"\nID=flatcar\nID_LIKE=coreos\n'
        f"VERSION={version}\nVERSION_ID={version}\nBUILD_ID=bed\n"
        f'PRETTY_NAME="nvidiad bed {version} (slot {slot})"\nFLATCAR_BOARD="amd64-usr"\n'
    )


def tree(work: Path, slot: Slot, leave_out: Sequence[str] = ()) -> Path:
    """Debian's /usr with a slot's kernel modules and OS version, as `work`/usr."""
    usr = work / "usr"
    run_checked(["cp", "-al", str(guest.tree() / "usr"), str(usr)], "linking /usr")
    initrd.copy_modules(slot.kernel, work)
    (work / "lib/modules").rename(usr / "lib/modules")
    (usr / "lib/os-release").unlink()  # a hard link into the cached tree: replaced, never written
    (usr / "lib/os-release").write_text(slot.os_release)
    (usr / "share/coreos").mkdir()
    (usr / "share/coreos/update.conf").write_text("GROUP=stable\n")
    for pattern in leave_out:
        for path in usr.glob(pattern):
            path.unlink()
    return usr


def pack(usr: Path, image: Path, form: str) -> Path:
    """Make a file system of this form with the files of a tree; nothing is mounted for it."""
    size = sum(path.lstat().st_size + 4096 for path in usr.rglob("*"))
    if form == "squashfs":
        require("squashfs-tools")
        packing = ["-comp", "zstd", "-Xcompression-level", "6", "-processors", "2"]
        run_checked(["mksquashfs", str(usr), str(image), "-quiet", "-no-progress", *packing], form)
        return image
    with image.open("wb") as file:
        file.truncate((size * 5 // 4 // _MIB + 128) * _MIB)
    if form == "btrfs":
        require("btrfs-progs")
        mixed = ["-q", "--mixed", "-m", "single", "-d", "single"]
        run_checked(["mkfs.btrfs", *mixed, "--rootdir", str(usr), "--shrink", str(image)], form)
    else:
        require("e2fsprogs")
        # ext2, which the kernel's ext4 reads: so it was made, and so it has no sum over the byte set below.
        run_checked(["mke2fs", "-q", "-t", "ext2", "-m", "0", "-d", str(usr), str(image)], form)
        with image.open("r+b") as file:
            file.seek(_READ_ONLY_FEATURES)
            file.write(b"\xff")
    return image


def without_engine(name: str, form: str) -> Path:
    """The image of one of the bed's slots in a form, without the container engine; kept in the cache."""
    slot, debian = slots()[name], guest.tree()

    def make(partial: Path) -> None:
        work = partial.with_name(f"{partial.name}.work")
        work.mkdir()
        try:
            pack(tree(work, slot, _ENGINE), partial, form)
        finally:
            shutil.rmtree(work)

    inputs = [debian.name, slot.kernel.release, slot.os_release, form, Path(__file__).read_text()]
    return cached("vm-usr", [*inputs, initrd.WANTED], make)
