# SPDX-License-Identifier: Apache-2.0
"""Slots: what the boot loader takes next by the partition table, and what lies there, on real loop devices.

The fixture's host has the marks of Container Linux below a folder: a disk with a real GPT, made by sfdisk,
the kernel's view of it in /sys, and a loop device for the slot that does not run. `tests/vm/test_slots.py`
reads the slots of a whole host.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.upcoming import StagedSystem
from nvidiad.thought import gpt, slots
from nvidiad.thought.gpt import Partition
from nvidiad.world import slots as world
from nvidiad.world.slots import Slots
from tests.unit.test_kernel_image import x86

if TYPE_CHECKING:
    from collections.abc import Iterator

UUID_A, UUID_B = "7130c94a-213a-4e5a-8e26-6cce9662f132", "e03dd35c-7c2d-4a47-b3fe-27f15780a57c"


def slot(label: str, priority: int, tries: int, successful: int) -> Partition:
    bits = priority << 48 | tries << 52 | successful << 56
    number = 3 if label == "USR-A" else 4
    return Partition(number, label, 0, 1, bits, UUID_A if label == "USR-A" else UUID_B)


A = slot("USR-A", 1, 0, 1)


@pytest.mark.parametrize(
    ("other", "found"),
    [
        pytest.param(slot("USR-B", 2, 1, 0), "USR-B", id="an update waits"),
        pytest.param(slot("USR-B", 2, 0, 1), "USR-B", id="somebody chose the other one by hand"),
        pytest.param(slot("USR-B", 0, 0, 0), None, id="never written"),
        pytest.param(slot("USR-B", 2, 0, 0), None, id="its try is used up"),
        pytest.param(slot("USR-B", 0, 0, 1), None, id="the one before this"),
        pytest.param(slot("USR-B", 0, 1, 0), None, id="a priority of zero is never booted"),
    ],
)
def test_what_the_boot_loader_takes_next(other: Partition, found: str | None) -> None:
    chosen = slots.next_slot((A, other, Partition(9, "ROOT", 0, 1)), A)
    assert (chosen.label if chosen else None) == found


@pytest.mark.parametrize(
    ("other", "found"),
    [
        pytest.param(slot("USR-B", 0, 1, 0), None, id="a priority of zero is never booted"),
        pytest.param(slot("USR-B", 1, 0, 1), "USR-B", id="a reboot now would go back"),
    ],
)
def test_in_the_first_minute_of_a_release_its_only_try_is_used_up(
    other: Partition, found: str | None
) -> None:
    chosen = slots.next_slot((slot("USR-A", 2, 0, 0), other), slot("USR-A", 2, 0, 0))
    assert (chosen.label if chosen else None) == found


@pytest.mark.parametrize(
    ("cmdline", "label"),
    [
        ("rootflags=rw mount.usr=PARTUUID=7130c94a-213a-4e5a-8e26-6cce9662f132 quiet", "USR-A"),
        ("BOOT_IMAGE=/flatcar/vmlinuz-b mount.usr=/dev/mapper/usr verity.usr=PARTUUID=" + UUID_B, "USR-B"),
        ("root=LABEL=ROOT usr=PARTLABEL=USR-B", "USR-B"),
        ("mount.usr=/dev/disk/by-partuuid/" + UUID_A.upper(), "USR-A"),
        ("root=/dev/sda1", None),
    ],
)
def test_which_slot_runs(cmdline: str, label: str | None) -> None:
    found = slots.running(cmdline, (A, slot("USR-B", 0, 0, 0)))
    assert (found.label if found else None) == label


@pytest.mark.parametrize(
    ("at", "mark", "first"),
    [
        pytest.param(1080, b"\x53\xef", "ext4,noload", id="ext2 to ext4"),
        pytest.param(65600, b"_BHRfS_M", "btrfs,rescue=nologreplay", id="btrfs"),
        pytest.param(0, b"hsqs", "squashfs,ro", id="squashfs"),
    ],
)
def test_a_slot_is_mounted_as_what_it_is(at: int, mark: bytes, first: str) -> None:
    assert slots.file_systems(b"\0" * at + mark + b"\0" * 99)[0] == first
    with pytest.raises(ValueError, match="no file system"):
        slots.file_systems(b"\0" * (at + 1) + mark)


# -- on disk -----------------------------------------------------------------------------------------

KERNEL, VERSION = "6.6.54-flatcar", "4081.3.0"
STAGED = StagedSystem(VERSION, KERNEL, "the slot USR-B")
_TOOLS = ("sfdisk", "losetup", "mke2fs", "mkfs.btrfs", "mksquashfs", "unshare", "mount")
_SFDISK = f"""label: gpt
3: start=2048, size=2048, name=USR-A, uuid={UUID_A}, attrs="GUID:48,56"
4: start=4096, size=2048, name=USR-B, uuid={UUID_B}, attrs="%s"
9: start=6144, size=2048, name=ROOT
"""
# Priority 2 and one try; the same without the try; priority 0.
NEXT, SPENT, NEVER = "GUID:49,52", "GUID:49", "GUID:52"


class Host:
    """A host of the fixture, whose slot A runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loops: list[str] = []
        self.write("proc/cmdline", f"BOOT_IMAGE=/flatcar/vmlinuz-a mount.usr=PARTUUID={UUID_A}\n")
        self.write("proc/sys/kernel/osrelease", "6.1.90-flatcar\n")
        self.write("usr/lib/os-release", "ID=flatcar\nVERSION_ID=3975.2.0\n")
        self.disk("vda", NEXT)

    def write(self, name: str, content: str | bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def disk(self, name: str, attributes: str) -> None:
        """A disk with both slots, and what the kernel says of it."""
        device = self.root / "dev" / name
        self.write(f"dev/{name}", b"")
        os.truncate(device, 8 << 20)
        table = _SFDISK % attributes
        subprocess.run(["sfdisk", "-q", device], input=table, text=True, check=True, capture_output=True)
        of_kernel = {"": {"size": f"{(8 << 20) // 512}\n", "uevent": f"DEVNAME={name}\nDEVTYPE=disk\n"}}
        for number, label in ((3, "USR-A"), (4, "USR-B"), (9, "ROOT")):
            event = f"DEVNAME={name}{number}\nDEVTYPE=partition\nPARTN={number}\nPARTNAME={label}\n"
            of_kernel[f"/{name}{number}"] = {"uevent": event}
        for place, files in of_kernel.items():
            for file, text in files.items():
                self.write(f"sys/devices/block/{name}{place}/{file}", text)
            link = self.root / "sys/class/block" / Path(f"{name}{place}").name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(self.root / f"sys/devices/block/{name}{place}")

    def verity(self, name: str) -> None:
        """/usr is on a device mapper's device over a partition, with a system extension over it."""
        self.write(f"sys/class/block/dm-0/slaves/{name}/x", "")
        (self.root / "dev/mapper").mkdir(exist_ok=True)
        (self.root / "dev/mapper/usr").symlink_to("../dm-0")
        self.write("proc/self/mountinfo", MOUNTINFO.read_bytes())

    def fill(self, image: Path) -> None:
        """The slot that does not run has this image."""
        loop = subprocess.run(
            ["losetup", "-f", "--show", image], text=True, capture_output=True, check=False
        )
        if loop.returncode != 0:
            pytest.skip(f"this machine has no loop device: {loop.stderr}")
        self.loops.append(loop.stdout.strip())
        device = self.root / "dev/vda4"
        device.unlink(missing_ok=True)
        device.symlink_to(self.loops[-1])

    def staged(self) -> StagedSystem | None:
        """What nvidiad finds, having left no mount behind."""
        table = Path("/proc/self/mountinfo")
        before = table.read_bytes()
        try:
            return Slots(self.root).staged()
        finally:
            assert table.read_bytes() == before

    def fault(self) -> str:
        with pytest.raises(Failure) as caught:
            self.staged()
        assert caught.value.code is Code.NEXT_UNREADABLE
        return caught.value.sentence


MOUNTINFO = Path(__file__).parents[1] / "data/mountinfo/flatcar-4593-sysext"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    host = Host(tmp_path / "host")
    yield host
    if (place := host.root / "run/nvidiad/slot").is_mount():
        # A test found that out and failed; the next one is not to stumble over it.
        subprocess.run(["umount", place], check=True)
    for loop in host.loops:
        subprocess.run(["losetup", "-d", loop], check=True)


def tree(folder: Path, *kernels: str, version: str = VERSION) -> Path:
    """What nvidiad reads of a /usr partition."""
    for kernel in kernels:
        (folder / "lib/modules" / kernel).mkdir(parents=True)
    (folder / "lib").mkdir(exist_ok=True, parents=True)
    (folder / "lib/os-release").write_text(f"ID=flatcar\nVERSION_ID={version}\n")
    return folder


def pack(files: Path, form: str = "squashfs") -> Path:
    """An image of a tree; ext2 and btrfs as slots have them, ext4 with a journal that was not played."""
    image = files.with_suffix(f".{form}")
    if form == "squashfs":
        making = ["mksquashfs", str(files), str(image), "-quiet", "-no-progress"]
    elif form == "btrfs":
        making = ["mkfs.btrfs", "-q", "--mixed", "--rootdir", str(files), str(image)]
    else:
        making = ["mke2fs", "-q", "-t", form, "-d", str(files), str(image)]
    if form != "squashfs":
        image.touch()
        os.truncate(image, 32 << 20)
    subprocess.run(making, check=True, capture_output=True)
    if form == "ext4":
        # The bit that says that the journal is to be played (EXT3_FEATURE_INCOMPAT_RECOVER).
        subprocess.run(
            ["debugfs", "-w", "-R", "feature needs_recovery", str(image)], check=True, capture_output=True
        )
    return image


@pytest.mark.parametrize("form", ["ext2", "ext4", "btrfs", "squashfs"])
def test_the_slot_that_is_next_is_read_whatever_it_is(host: Host, tmp_path: Path, form: str) -> None:
    image = pack(tree(tmp_path / "usr", KERNEL), form)
    before = image.read_bytes()
    host.fill(image)
    assert host.staged() == STAGED
    assert image.read_bytes() == before


@pytest.mark.parametrize("attributes", [SPENT, NEVER])
def test_a_slot_that_the_boot_loader_does_not_take_is_not_read(host: Host, attributes: str) -> None:
    host.disk("vda", attributes)
    assert host.staged() is None


def test_the_kernel_of_boot_must_agree_and_is_enough_alone(host: Host, tmp_path: Path) -> None:
    host.write("boot/flatcar/vmlinuz-b", x86(f"{KERNEL} #1".encode() + b"\0"))
    by_header = StagedSystem("", KERNEL, f"'{host.root}/boot/flatcar/vmlinuz-b'")
    assert host.staged() == by_header  # there is no device
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(1 << 20))
    host.fill(empty)
    assert host.staged() == by_header
    host.fill(pack(tree(tmp_path / "usr", KERNEL)))
    assert host.staged() == STAGED
    host.write("boot/flatcar/vmlinuz-b", x86(b"6.6.55-flatcar #1\0"))
    fault = host.fault()
    assert f"'{KERNEL}'" in fault and "'6.6.55-flatcar'" in fault and "/boot/flatcar/vmlinuz-b'" in fault


def test_a_host_that_once_was_coreos_has_its_kernels_where_they_were(host: Host) -> None:
    host.write("boot/flatcar/vmlinuz-b", x86(b"5.0.0-stale #1\0"))
    host.write("boot/coreos/vmlinuz-b", x86(f"{KERNEL} #1".encode() + b"\0"))
    assert host.staged() == StagedSystem("", KERNEL, f"'{host.root}/boot/coreos/vmlinuz-b'")
    # That of the other slot tells it, too: where this one is written to, it is not there yet.
    (host.root / "boot/coreos/vmlinuz-b").rename(host.root / "boot/coreos/vmlinuz-a")
    assert "USR-B" in host.fault()


@pytest.mark.parametrize(
    ("kernels", "version", "fault"),
    [
        ((), VERSION, "it has the kernels none and"),
        ((KERNEL, "6.6.55-flatcar"), VERSION, f"it has the kernels {KERNEL}, 6.6.55-flatcar and"),
        ((KERNEL,), "", "the OS version ''"),
        (("6..1",), VERSION, "it has the kernels 6..1 and"),
    ],
)
def test_a_slot_that_does_not_say_what_it_is(
    host: Host, tmp_path: Path, kernels: tuple[str, ...], version: str, fault: str
) -> None:
    host.fill(pack(tree(tmp_path / "usr", *kernels, version=version)))
    assert fault in host.fault()


def test_a_slot_without_any_file_system_is_named(host: Host, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    host.fill(image)
    assert "read from the slot USR-B: it has no file system" in host.fault()


def test_a_damaged_file_system_is_told_in_the_words_of_mount(host: Host, tmp_path: Path) -> None:
    image = pack(tree(tmp_path / "usr", KERNEL))
    with image.open("r+b") as file:
        file.seek(8)
        file.write(b"\xff" * 80)
    host.fill(image)
    assert "squashfs: mount: " in host.fault()


def test_a_slot_that_never_answers_is_left_in_time(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "_SECONDS", 0.5)
    files = tree(tmp_path / "usr", KERNEL)
    (files / "lib/os-release").unlink()
    os.mkfifo(files / "lib/os-release")
    host.fill(pack(files))
    assert "did not end within 0.5 s" in host.fault()
    # Whoever has it mounted would keep the loop device.
    subprocess.run(["losetup", "-d", host.loops.pop()], check=True)
    assert not any(Path(loop).exists() for loop in Path("/sys/block").glob("loop*/loop/backing_file")
                   if loop.read_text().strip() == str(files.with_suffix(".squashfs")))  # fmt: skip


def test_the_slot_that_runs_is_known_by_its_mount(host: Host, tmp_path: Path) -> None:
    """Below a verity device and a system extension, as Flatcar has it; a second disk has the same ids."""
    host.write("proc/cmdline", "root=LABEL=ROOT mount.usr=/dev/mapper/usr\n")
    host.fill(pack(tree(tmp_path / "usr", KERNEL)))
    assert host.staged() is None, "nothing says yet which slot runs"
    host.verity("vda3")
    assert host.staged() == STAGED
    host.disk("sda", NEVER)
    assert host.staged() == STAGED
    host.disk("sda", NEXT)
    host.disk("vda", NEVER)
    assert host.staged() is None


def test_a_damaged_table_names_its_disk(host: Host) -> None:
    with (host.root / "dev/vda").open("r+b") as file:
        file.seek(1024 + 3 * 128 + 50)
        file.write(b"\xff")
    assert f"read from '{host.root}/dev/vda': " in host.fault()


def test_a_host_has_slots_or_has_none(host: Host, tmp_path: Path) -> None:
    assert Slots(host.root).present()
    assert not Slots(tmp_path).present()


def test_the_attributes_are_those_that_sfdisk_writes(host: Host) -> None:
    found = gpt.partitions((host.root / "dev/vda").read_bytes(), 8 << 20, "vda")
    assert [(p.number, p.label, p.attributes) for p in found] == [
        (3, "USR-A", 1 << 48 | 1 << 56),
        (4, "USR-B", 1 << 49 | 1 << 52),
        (9, "ROOT", 0),
    ]
    assert [p.identity for p in found[:2]] == [UUID_A, UUID_B]


def test_without_slots_the_boot_image_of_the_other_letter_is_read(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text("BOOT_IMAGE=/flatcar/vmlinuz-a quiet\n")
    assert Slots(tmp_path).staged() is None
    (tmp_path / "boot/flatcar").mkdir(parents=True)
    (tmp_path / "boot/flatcar/vmlinuz-b").write_bytes(x86(b"6.6.54-flatcar #1\0"))
    found = Slots(tmp_path).staged()
    assert found == StagedSystem("", "6.6.54-flatcar", f"'{tmp_path}/boot/flatcar/vmlinuz-b'")
