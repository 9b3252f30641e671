# SPDX-License-Identifier: Apache-2.0
"""The other slot, read while this one runs: by its file system in every form, by its kernel's boot image."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from tests.beds.common import require, run_checked
from tests.vm.disk import RELEASES, SLOT_PARTITIONS, disk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.kernels import Kernels
    from tests.vm.machine import Machine

pytestmark = pytest.mark.vm

KERNEL = "6.6.54-flatcar"
VERSION = "4081.3.0"
DEVICE = f"/dev/vda{SLOT_PARTITIONS['B']}"
STAGED = """
from pathlib import Path
import json
from nvidiad.nouns.errors import Failure
from nvidiad.world.slots import Slots
try:
    found = Slots(Path("/")).staged()
    print(json.dumps(found and [found.version, found.kernel, found.source]))
except Failure as failure:
    print(json.dumps(f"{failure.code}: {failure.sentence}"))
"""


def staged(vm: Machine) -> object:
    vm.put(STAGED.encode(), "/tmp/staged.py")
    mounts = vm.output("cat /proc/self/mountinfo")
    found: object = json.loads(vm.output("/opt/nvidiad/bin/python3 /tmp/staged.py"))
    assert vm.output("cat /proc/self/mountinfo") == mounts, "a mount is left behind"
    return found


def tree(folder: Path, kernel: str = KERNEL) -> Path:
    """What nvidiad reads of a /usr partition."""
    (folder / "lib/modules" / kernel).mkdir(parents=True)
    (folder / "lib/os-release").write_text(f"ID=flatcar\nVERSION={VERSION}\nVERSION_ID={VERSION}\n")
    return folder


def write(vm: Machine, image: Path) -> None:
    """Over the inactive slot, as update_engine writes it."""
    vm.put(gzip.compress(image.read_bytes(), 1), "/tmp/usr.gz")
    vm.run(f"zcat /tmp/usr.gz | dd of={DEVICE} bs=1M conv=notrunc status=none && sync", check=True)


def test_nothing_is_next_until_the_boot_loader_takes_it(vm: Machine, bed_kernels: Kernels) -> None:
    assert staged(vm) is None
    vm.set_next_slot("B")
    kernel = bed_kernels.slots["B"].release
    assert staged(vm) == [RELEASES["B"], kernel, "the slot USR-B"]
    # Its kernel's boot image agrees, and is enough where the slot cannot be read.
    vm.run("mkdir -p /boot/flatcar", check=True)
    vm.put(disk().kernel("B").read_bytes(), "/boot/flatcar/vmlinuz-b")
    assert staged(vm) == [RELEASES["B"], kernel, "the slot USR-B"]
    vm.run(f"dd if=/dev/zero of={DEVICE} bs=1M count=2 conv=notrunc status=none && sync", check=True)
    assert staged(vm) == ["", kernel, "'/boot/flatcar/vmlinuz-b'"]
    # Half written: two kernels, and neither is believed.
    vm.set_next_slot("A")
    assert staged(vm) is None


@pytest.mark.parametrize("kind", ["ext4", "btrfs", "squashfs"])
def test_every_file_system_of_a_slot_is_read(vm: Machine, tmp_path: Path, kind: str) -> None:
    usr, image = tree(tmp_path / "usr"), tmp_path / "usr.img"
    if kind == "squashfs":
        run_checked(["mksquashfs", str(usr), str(image), "-quiet", "-no-progress"], "mksquashfs")
    else:
        with image.open("wb") as file:
            file.truncate((8 if kind == "ext4" else 120) << 20)
        if kind == "btrfs":
            require("btrfs-progs")
            made = ["mkfs.btrfs", "-q", "--rootdir", str(usr), str(image)]
        else:
            made = ["mke2fs", "-q", "-t", "ext4", "-d", str(usr), str(image)]
        run_checked(made, made[0])
        if vm.run(f"modprobe {kind}").rc != 0:
            pytest.skip(f"the kernel of the bed has no {kind}")
    write(vm, image)
    vm.set_next_slot("B")
    assert staged(vm) == [VERSION, KERNEL, "the slot USR-B"]


def test_a_slot_and_a_boot_image_that_differ_are_both_named(vm: Machine, tmp_path: Path) -> None:
    image = tmp_path / "usr.img"
    run_checked(["mksquashfs", str(tree(tmp_path / "usr")), str(image), "-quiet"], "mksquashfs")
    write(vm, image)
    vm.run("mkdir -p /boot/flatcar", check=True)
    vm.put(disk().kernel("A").read_bytes(), "/boot/flatcar/vmlinuz-b")
    vm.set_next_slot("B")
    said = str(staged(vm))
    assert said.startswith("next-unreadable: ")
    assert KERNEL in said and "vmlinuz-b" in said
