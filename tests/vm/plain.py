# SPDX-License-Identifier: Apache-2.0
"""A guest as Container Linux is: no Python anywhere, neither in /usr nor on its root; one slot is enough."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.beds.common import cached, require, run_checked
from tests.vm import disk, guest, initrd, usr
from tests.vm.disk import Disk

_PYTHON = (
    "bin/python*",
    "bin/py3*",
    "lib/python*",
    "share/python*",
    "lib/*/libpython*",
    "lib/x86_64*/*/python*",
)


def build() -> Disk:
    """The disk; in the cache, as building it takes half a minute."""
    slot, debian = usr.slots()["A"], guest.tree()
    here = Path(__file__).parent
    sources = [here / name for name in ("plain.py", "disk.py", "guest.py", "initrd.py", "init.sh", "usr.py")]
    texts = [path.read_text() for path in [*sources, *sorted(guest.FILES.rglob("*"))] if path.is_file()]

    def make(partial: Path) -> None:
        require("busybox-static", "squashfs-tools", "e2fsprogs", "fdisk", "kmod")
        work = partial / "work"
        (work / "A").mkdir(parents=True)
        tree = usr.tree(work / "A", slot)
        for pattern in _PYTHON:
            for path in list(tree.glob(pattern)):
                run_checked(["rm", "-rf", str(path)], "leaving out Python")
        image = usr.pack(tree, work / "A.img", "squashfs")
        root, nothing = work / "root", work / "nothing"
        root.mkdir()
        nothing.mkdir()
        guest.populate(root, debian, nothing)
        shutil.rmtree(root / "opt/nvidiad")
        root_image = work / "root.img"
        with root_image.open("wb") as file:
            file.truncate(disk.ROOT_MIB * disk.MIB)
        options = ["-q", "-t", "ext4", "-m", "0", "-L", "ROOT", "-d", str(root)]
        run_checked(["mke2fs", *options, str(root_image)], "mke2fs")
        disk._assemble(partial / "disk.img", {"A": image}, root_image)
        shutil.copy(slot.kernel.image, partial / "vmlinuz-A")
        initrd.build(slot.kernel, Path("/bin/busybox"), partial / "initrd-A")
        shutil.rmtree(work)

    return Disk(cached("vm-plain", [slot.kernel.release, slot.os_release, debian.name, texts], make))
