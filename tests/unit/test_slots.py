# SPDX-License-Identifier: Apache-2.0
"""What comes next: slots and their attributes, kernel images, announcements, and logind's configuration."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.upcoming import StagedSystem
from nvidiad.thought import inhibition, kernel_image, slots
from nvidiad.thought.gpt import Partition
from nvidiad.world.slots import Slots
from nvidiad.world.upcoming import NextSystems

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


def boot_image(text: bytes, *, at: int = 0x3000) -> bytes:
    """The beginning of an x86 boot image as the kernel's documentation describes it."""
    image = bytearray(at + 0x200 + len(text))
    image[0x202:0x206] = b"HdrS"
    image[0x20E:0x210] = at.to_bytes(2, "little")
    image[at + 0x200 :] = text
    return bytes(image)


def test_a_boot_image_says_its_release() -> None:
    assert kernel_image.release(boot_image(b"6.6.54-flatcar (core@x) #1 SMP\0")) == "6.6.54-flatcar"


@pytest.mark.parametrize(
    "image",
    [b"", b"\0" * 4096, boot_image(b"\0"), boot_image(b"x" * 9)[:0x3205], boot_image(b"6.1", at=0)],
)
def test_what_is_no_boot_image_says_nothing(image: bytes) -> None:
    with pytest.raises(ValueError, match="kernel"):
        kernel_image.release(image)


def test_without_slots_the_boot_image_of_the_other_letter_is_read(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text("BOOT_IMAGE=/flatcar/vmlinuz-a quiet\n")
    assert Slots(tmp_path).staged() is None
    (tmp_path / "boot/flatcar").mkdir(parents=True)
    (tmp_path / "boot/flatcar/vmlinuz-b").write_bytes(boot_image(b"6.6.54-flatcar #1\0"))
    found = Slots(tmp_path).staged()
    assert found == StagedSystem("", "6.6.54-flatcar", f"'{tmp_path}/boot/flatcar/vmlinuz-b'")


# -- announcements -----------------------------------------------------------------------------------


def announced(root: Path, text: str | None, command: tuple[str, ...] = ()) -> StagedSystem | None:
    if text is not None:
        (root / "next").write_text(text)
    return NextSystems(root, Slots(root), PurePosixPath("/next"), command).announced()


def test_a_file_or_a_command_names_what_comes_next(tmp_path: Path) -> None:
    assert announced(tmp_path, None) is None
    assert announced(tmp_path, "") is None
    found = announced(tmp_path, 'VERSION_ID="12.9"\nKERNEL=6.1.0-56-amd64\n')
    assert found == StagedSystem("12.9", "6.1.0-56-amd64", f"'{tmp_path}/next'")
    told = announced(tmp_path, "", ("/bin/echo", "KERNEL=6.1.0-57-amd64"))
    assert told == StagedSystem("", "6.1.0-57-amd64", "'/bin/echo KERNEL=6.1.0-57-amd64'")


@pytest.mark.parametrize("text", ["nonsense", "VERSION_ID=../../etc", "KERNEL='a b'"])
def test_a_bad_announcement_names_its_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(Failure, match="/next'") as caught:
        announced(tmp_path, text)
    assert caught.value.code is Code.NEXT_UNREADABLE


def test_a_command_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="/bin/false") as caught:
        announced(tmp_path, None, ("/bin/false",))
    assert caught.value.code is Code.NEXT_UNREADABLE


# -- logind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("1min 30s", 90),
        ("2 h", 7200),
        ("500ms", 0.5),
        ("", None),
        ("soon", None),
        ("5 parsecs", None),
    ],
)
def test_time_spans(text: str, seconds: float | None) -> None:
    assert inhibition.span(text) == seconds


@pytest.mark.parametrize(
    ("texts", "seconds"),
    [
        ((), 5),
        (("[Login]\n#InhibitDelayMaxSec=60\n",), 5),
        (("[Login]\nInhibitDelayMaxSec=60\n", "[Login]\nInhibitDelayMaxSec=2min\n"), 120),
        (("[Login]\nInhibitDelayMaxSec=60\n", "[Login]\nInhibitDelayMaxSec=\n"), 5),
        (("[Login]\nInhibitDelayMaxSec=60\n", "[Login]\nInhibitDelayMaxSec=never\n"), 60),
    ],
)
def test_how_long_logind_waits_by_its_files(texts: tuple[str, ...], seconds: float) -> None:
    assert inhibition.delay_limit(texts) == seconds


def test_locksmith_says_who_reboots() -> None:
    assert inhibition.locksmith("NAME=locksmithd\nSTRATEGY=reboot\nSTATE=running\n") == "running"
    assert inhibition.locksmith("NAME=other\nSTATE=running\n") == ""
