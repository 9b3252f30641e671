# SPDX-License-Identifier: Apache-2.0
"""The release in a kernel's file: crafted headers, and the real kernels of a bed where there are some."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvidiad.nouns import naming
from nvidiad.thought import kernel_image
from tests.beds.common import cache_dir

if TYPE_CHECKING:
    from collections.abc import Callable

FLATCAR = "6.6.54-flatcar"
X86_TEXT = f"{FLATCAR} (core@localhost) #1 SMP PREEMPT_DYNAMIC\0".encode()
ARM64_TEXT = f"Linux version {FLATCAR} (build@pony) (gcc 13.3) #1 SMP\n\0".encode()
MIB = 1 << 20


def x86(text: bytes, *, at: int = 0x3000) -> bytes:
    """The beginning of an x86 boot image as the kernel's documentation describes it."""
    image = bytearray(at + 0x200 + len(text))
    image[0x202:0x206] = b"HdrS"
    image[0x20E:0x210] = at.to_bytes(2, "little")
    image[at + 0x200 :] = text
    return bytes(image)


def arm64(text: bytes, *, at: int = 0x8000) -> bytes:
    """An arm64 Image with this text in its read-only data."""
    header = b"MZ\x40\xfa" + struct.pack("<IQQQ", 0, 0, 32 * MIB, 10) + bytes(24) + b"ARM\x64"
    return header.ljust(at, b"\0") + text


def reader(image: bytes, asked: list[int] | None = None) -> Callable[[int, int], bytes]:
    def read(place: int, size: int) -> bytes:
        if asked is not None:
            asked.append(place + size)
        return image[place : place + size]

    return read


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(x86(X86_TEXT), id="x86"),
        pytest.param(x86(FLATCAR.encode() + b"\0"), id="x86, only the release"),
        pytest.param(x86(X86_TEXT, at=0xFFFF), id="x86, as far back as the field can say"),
        pytest.param(arm64(ARM64_TEXT), id="arm64"),
        pytest.param(arm64(b"Linux version %s (%s)\0" + ARM64_TEXT), id="arm64, a format before it"),
        *(
            pytest.param(arm64(ARM64_TEXT, at=MIB - before), id=f"arm64, {before} bytes before a border")
            for before in (1, 13, 15, 14 + len(FLATCAR), 14 + len(FLATCAR) + 2)
        ),
    ],
)
def test_a_boot_image_says_its_release(image: bytes) -> None:
    assert kernel_image.release(reader(image)) == FLATCAR


def test_the_longest_release_that_a_kernel_can_have() -> None:
    longest = "6." + "x" * 62
    assert kernel_image.release(reader(x86(longest.encode() + b"\0"))) == longest
    tail = f"Linux version {longest} (x)".encode()
    for before in range(1, len(tail)):
        assert kernel_image.release(reader(arm64(tail, at=MIB - before))) == longest
    with pytest.raises(ValueError, match="no kernel release"):
        kernel_image.release(reader(x86(longest.encode() + b"y\0")))


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        pytest.param(b"", "no kernel image", id="empty"),
        pytest.param(bytes(4096), "no kernel image", id="zeros"),
        pytest.param(b"\x1f\x8b\x08" + ARM64_TEXT, "no kernel image", id="compressed"),
        pytest.param(x86(b"\0"), "names no kernel release", id="x86, no text"),
        pytest.param(x86(b"vmlinuz\0"), "names no kernel release", id="x86, another text"),
        pytest.param(
            x86(X86_TEXT)[:0x20E] + bytes(2) + X86_TEXT,
            "names no kernel release",
            id="x86, the field is zero",
        ),
        pytest.param(x86(X86_TEXT)[:0x3208], "names no kernel release", id="x86, cut within the release"),
        pytest.param(arm64(b""), "'Linux version'", id="arm64, no text"),
        pytest.param(arm64(ARM64_TEXT)[:-40], "'Linux version'", id="arm64, cut within the text"),
    ],
)
def test_what_is_no_boot_image_says_nothing(image: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        kernel_image.release(reader(image))


def test_no_file_is_read_further_than_it_is_promised() -> None:
    asked: list[int] = []
    assert kernel_image.release(reader(x86(X86_TEXT).ljust(8 * MIB), asked)) == FLATCAR
    assert max(asked) < 0x3000 + 1024
    piece = bytes(MIB)

    def endless(place: int, size: int) -> bytes:
        asked.append(place + size)
        return arm64(b"")[:size] if place == 0 and size < MIB else piece[:size]

    with pytest.raises(ValueError, match="'Linux version'"):
        kernel_image.release(endless)
    assert max(asked) == 128 * MIB


@given(st.sampled_from((0x202, 0x38)), st.integers(0, 600), st.binary(max_size=600))
def test_any_other_file_is_refused_and_no_release_is_given_that_cannot_be_a_path(
    at: int, field: int, rest: bytes
) -> None:
    image = bytearray(0x210)
    image[0x202:0x206], image[0x20E:0x210] = b"HdrS", field.to_bytes(2, "little")
    if at == 0x38:
        image[0x202:0x206], image[0x38:0x3C] = bytes(4), b"ARM\x64"
        rest = b"Linux version " + rest
    try:
        found = kernel_image.release(reader(bytes(image) + rest))
    except ValueError:
        return
    assert naming.is_version(found)


@pytest.mark.parametrize("image", [x86(b"6..1 #1\0"), arm64(b"Linux version 6..1 (x)")])
def test_a_release_that_may_not_stand_in_a_path_is_refused(image: bytes) -> None:
    with pytest.raises(ValueError, match=r"'6\.\.1'"):
        kernel_image.release(reader(image))


def test_real_kernels_of_a_bed() -> None:
    """Kernels that a bed has in its cache, by their Debian names."""
    images = sorted(cache_dir().glob("vm-kernels/*/boot/vmlinuz-*"))
    if not images:
        pytest.skip("no bed has fetched a kernel yet")
    for image in images:
        data = image.read_bytes()
        assert kernel_image.release(reader(data)) == image.name.removeprefix("vmlinuz-")


@pytest.mark.parametrize(
    ("cmdline", "letter"),
    [
        ("BOOT_IMAGE=/flatcar/vmlinuz-a mount.usr=PARTUUID=7130c94a", "b"),
        ("quiet BOOT_IMAGE=(hd0,gpt1)/coreos/vmlinuz-b", "a"),
        ("BOOT_IMAGE=/boot/vmlinuz-6.1.0-56-amd64 root=/dev/vda1", ""),
        ("BOOT_IMAGE=/flatcar/vmlinuz-ab", ""),
        ("", ""),
    ],
)
def test_the_letter_of_the_slot_that_does_not_run(cmdline: str, letter: str) -> None:
    assert kernel_image.other_slot(cmdline) == letter


# Each list in ascending order; `sort -V`, dpkg and GRUB agree on them.
ORDERS = {
    "numbers, not text": ["6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-56-amd64"],
    "another series": ["5.10.0-30-amd64", "6.1.0-9-amd64", "6.12.117+deb12-amd64"],
    "a backport": ["6.12.9~bpo12-amd64", "6.12.9-amd64"],
    "a candidate": ["6.1~rc1", "6.1", "6.1.1"],
    "Ubuntu": ["6.8.0-31-generic", "6.8.0-101-generic", "6.11.0-8-generic"],
    "zeros in front": ["6.1.0-08", "6.1.0-9"],
}


@pytest.mark.parametrize("case", ORDERS)
def test_the_newest_kernel_is_that_of_the_highest_version(case: str) -> None:
    ascending = ORDERS[case]
    for place in range(1, len(ascending) + 1):
        some = ascending[:place]
        assert kernel_image.newest(some) == kernel_image.newest(reversed(some)) == some[-1]


def test_no_kernel_is_the_newest_of_none() -> None:
    assert kernel_image.newest(()) == ""
