# SPDX-License-Identifier: Apache-2.0
"""The other slot, read while this one runs: by its file system in every form, by its kernel's boot image."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.vm import product, updater, usr
from tests.vm.disk import RELEASES, disk
from tests.vm.machine import Machine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.kernels import Kernels

pytestmark = pytest.mark.vm

KERNEL = "6.6.54-flatcar"
VERSION = "4081.3.0"
THERE = [VERSION, KERNEL, "the slot USR-B"]
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
    """What nvidiad finds, having left no mount behind and not a byte of the slot changed."""
    look = f"cat /proc/self/mountinfo; head -c 4M {updater.device('B')} | md5sum"
    vm.put(STAGED.encode(), "/tmp/staged.py")
    before = vm.output(look)
    found: object = json.loads(vm.output("/opt/nvidiad/bin/python3 /tmp/staged.py"))
    assert vm.output(look) == before, "a mount is left behind, or the slot was written to"
    return found


def tree(folder: Path, kernel: str = KERNEL) -> Path:
    """What nvidiad reads of a /usr partition."""
    (folder / "lib/modules" / kernel).mkdir(parents=True)
    (folder / "lib/os-release").write_text(f"ID=flatcar\nVERSION={VERSION}\nVERSION_ID={VERSION}\n")
    return folder


def test_nothing_is_next_until_the_boot_loader_takes_it(vm: Machine, bed_kernels: Kernels) -> None:
    assert staged(vm) is None
    vm.set_next_slot("B")
    kernel = bed_kernels.slots["B"].release
    assert staged(vm) == [RELEASES["B"], kernel, "the slot USR-B"]
    # Its kernel's boot image agrees, and is enough where the slot cannot be read.
    updater.write_kernel(vm, "B")
    assert staged(vm) == [RELEASES["B"], kernel, "the slot USR-B"]
    updater.blank(vm, "B")
    assert staged(vm) == ["", kernel, "'/boot/flatcar/vmlinuz-b'"]
    vm.run("rm /boot/flatcar/vmlinuz-b", check=True)
    assert str(staged(vm)).startswith("next-unreadable: what comes next cannot be read from the slot USR-B")
    vm.set_next_slot("A")
    assert staged(vm) is None


def test_every_form_of_a_slot_is_read(vm: Machine, tmp_path: Path) -> None:
    files = tree(tmp_path / "usr")
    vm.set_next_slot("B")
    for form in usr.FORMS:
        updater.write_slot(vm, "B", usr.pack(files, tmp_path / f"{form}.img", form))
        assert staged(vm) == THERE, form
        # update_engine mounts it for its postinst, and says that a reboot is needed before it unmounts it.
        vm.run(f"mkdir -p /tmp/au && mount -o ro {updater.device('B')} /tmp/au", check=True)
        assert vm.output("findmnt -no FSTYPE /tmp/au") in (form, "ext2"), form
        assert staged(vm) == THERE, f"{form}, mounted elsewhere"
        vm.run("umount /tmp/au", check=True)


def test_the_image_that_runs_lies_in_the_other_slot_too(tmp_path: Path, bed_kernels: Kernels) -> None:
    """A btrfs of one id cannot be mounted twice; it is what runs, and it is not mistaken for another one."""
    running = usr.without_engine("A", "btrfs")
    with Machine(tmp_path / "vm") as vm:
        vm.fill_slot("A", running)
        vm.boot("A", card=False)
        product.install(vm)
        assert vm.output("findmnt -no SOURCE,FSTYPE /usr").split() == ["/dev/vda3", "btrfs"]
        updater.write_slot(vm, "B", running)
        vm.set_next_slot("B")
        refused = vm.run(f"mount -t btrfs -o ro {updater.device('B')} /mnt")
        assert refused.rc != 0 and "File exists" in refused.err, refused
        source = "the slot USR-B (the same file system as the running one)"
        assert staged(vm) == [RELEASES["A"], bed_kernels.a.release, source]
        # Another image of the same form is another one, beside a /usr of that form, too.
        updater.write_slot(vm, "B", usr.pack(tree(tmp_path / "usr"), tmp_path / "other.img", "btrfs"))
        assert staged(vm) == THERE


def test_a_slot_and_a_boot_image_that_differ_are_both_named(vm: Machine, tmp_path: Path) -> None:
    updater.write_slot(vm, "B", usr.pack(tree(tmp_path / "usr"), tmp_path / "usr.img", "squashfs"))
    updater.write_kernel(vm, "B", disk().kernel("A"))
    vm.set_next_slot("B")
    said = str(staged(vm))
    assert said.startswith("next-unreadable: ")
    assert KERNEL in said and "vmlinuz-b" in said
