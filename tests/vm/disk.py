# SPDX-License-Identifier: Apache-2.0
"""Builds the bed's disk: two read-only /usr slots with different kernels and OS versions, one writable root.

Needs root for file ownership, and no loop device, mount or running QEMU."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.beds.common import CHECKOUT, cached, host_venv, require, run_checked
from tests.vm import guest, initrd, usr

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.vm.usr import Slot

RELEASES = usr.RELEASES
# Sparse: what a test does not write is not there. A slot has room for an image that is not compressed.
USR_MIB, ROOT_MIB = 1024, 4096
MIB = 1 << 20

_USR_TYPE = "5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6"  # Container Linux's own type and partition ids
_ROOT_TYPE = "3884DD41-8582-4404-B9A8-E9B84F2DF50E"
USR_IDS = {"A": "7130C94A-213A-4E5A-8E26-6CCE9662F132", "B": "E03DD35C-7C2D-4A47-B3FE-27F15780A57C"}
SLOT_PARTITIONS = {"A": 3, "B": 4}
_ROOT_PARTITION = 9


@dataclass(frozen=True)
class Place:
    """A part of a disk, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class Disk:
    """A disk in the cache, with the kernel and initrd of each slot beside it."""

    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "disk.img"

    def kernel(self, slot: str) -> Path:
        return self.folder / f"vmlinuz-{slot}"

    def initrd(self, slot: str) -> Path:
        return self.folder / f"initrd-{slot}"

    def place(self, slot: str) -> Place:
        """Where a slot's partition is."""
        position = tuple(SLOT_PARTITIONS).index(slot)
        return Place((1 + position * USR_MIB) * MIB, USR_MIB * MIB)


@cache
def disk() -> Disk:
    """The bed's disk: Container Linux with Debian's small kernels."""
    return build(usr.slots())


def build(slots: Mapping[str, Slot]) -> Disk:
    """A disk with these two slots, built when any of its inputs is new."""
    debian, venv = guest.tree(), host_venv(guest.SUITE)
    here = Path(__file__).parent
    sources = [here / name for name in ("disk.py", "guest.py", "initrd.py", "init.sh", "usr.py")]
    sources += [CHECKOUT / "nvidiad/image/thought/cpio.py"]
    sources += sorted(path for path in guest.FILES.rglob("*") if path.is_file())
    texts = {str(path.relative_to(CHECKOUT)): path.read_text() for path in sources}

    def make(partial: Path) -> None:
        require("busybox-static", "squashfs-tools", "e2fsprogs", "fdisk", "kmod")
        partial.mkdir()
        _build(partial, debian, venv, slots)

    booted = {name: [slot.kernel.release, slot.os_release] for name, slot in slots.items()}
    inputs = [booted, debian.name, venv.name, texts]
    return Disk(cached("vm-disk", inputs, make))


def _build(out: Path, debian: Path, venv: Path, slots: Mapping[str, Slot]) -> None:
    work = out / "work"
    work.mkdir()
    images = {}
    for name, slot in slots.items():
        (work / name).mkdir()
        images[name] = usr.pack(usr.tree(work / name, slot), work / f"{name}.img", "squashfs")
    root = work / "root"
    root.mkdir()
    guest.populate(root, debian, venv)
    root_image = work / "root.img"
    with root_image.open("wb") as file:
        file.truncate(ROOT_MIB * MIB)
    # A small journal: power cuts are part of the tests, and Container Linux's root has one too.
    options = ["-J", "size=8", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-m", "0", "-L", "ROOT"]
    run_checked(["mke2fs", "-q", "-t", "ext4", *options, "-d", str(root), str(root_image)], "mke2fs")
    _assemble(out / "disk.img", images, root_image)
    for name, slot in slots.items():
        shutil.copy(slot.kernel.image, out / f"vmlinuz-{name}")
        initrd.build(slot.kernel, Path("/bin/busybox"), out / f"initrd-{name}")
    shutil.rmtree(work)


def _assemble(image: Path, slots: dict[str, Path], root: Path) -> None:
    lines, start, places = ["label: gpt"], 1, []
    for slot, part in slots.items():
        # As on a freshly installed host: A has priority 1 and is good, B is not bootable yet.
        attributes = ', attrs="GUID:48,56"' if slot == "A" else ""
        ids = f"type={_USR_TYPE}, uuid={USR_IDS[slot]}, name=USR-{slot}{attributes}"
        lines.append(f"{SLOT_PARTITIONS[slot]}: start={start}MiB, size={USR_MIB}MiB, {ids}")
        places.append((part, start))
        start += USR_MIB
    lines.append(f"{_ROOT_PARTITION}: start={start}MiB, size={ROOT_MIB}MiB, type={_ROOT_TYPE}, name=ROOT")
    places.append((root, start))
    with image.open("wb") as file:
        file.truncate((start + ROOT_MIB + 1) * MIB)
    table = "\n".join(lines)
    run_checked(["sh", "-c", f"sfdisk -q {image} <<'END'\n{table}\nEND"], "sfdisk")
    for part, at in places:
        how = ["bs=1M", f"seek={at}", "conv=notrunc,sparse", "status=none"]
        run_checked(["dd", f"if={part}", f"of={image}", *how], "dd")


if __name__ == "__main__":
    print(disk().folder)
