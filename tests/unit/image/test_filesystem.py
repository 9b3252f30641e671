# SPDX-License-Identifier: Apache-2.0
"""Disk images made by sfdisk and mke2fs, read back by debugfs; every way in which one can be wrong."""

from __future__ import annotations

import bz2
import hashlib
import os
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.world import filesystem
from nvidiad.nouns.errors import Code, Permanent
from tests.images.mirror import OFFSET, make_disk
from tests.unit.test_architecture import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvidiad.nouns.model import Progress

KERNEL = "6.6.60-flatcar"


def untold(_: Progress) -> None:
    """Nobody asks."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small root file system with everything that a file can be."""
    root = tmp_path / "tree"
    (root / "usr/lib/modules" / KERNEL / "build").mkdir(parents=True)
    (root / "usr/bin").mkdir()
    (root / "usr/lib/os-release").write_text("ID=flatcar\nVERSION_ID=4593.2.5\n")
    (root / "etc").symlink_to("usr/etc")
    (root / "usr/bin/gcc").write_text("#!/bin/sh\n")
    (root / "usr/bin/gcc").chmod(0o750)
    (root / "usr/bin/cc").symlink_to("gcc")
    (root / "usr/bin/c++").hardlink_to(root / "usr/bin/gcc")
    (root / 'a "b" c').mkdir()
    (root / 'a "b" c' / "ümlaut\n").write_text("odd\n")
    (root / "holes").write_bytes(b"")
    os.truncate(root / "holes", 3 << 20)
    os.utime(root / "usr/bin/gcc", (1577836800, 1577836800))
    return root


@pytest.fixture
def disk(tree: Path, tmp_path: Path) -> Path:
    raw = tmp_path / "disk.img"
    make_disk(tree, raw, 24)
    return raw


def test_a_tree_goes_through_disk_and_archive(disk: Path, tree: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tree / "usr/bin/gcc", 12, 34)
        make_disk(tree, disk, 24)
    out = tmp_path / 'out "of" it'
    partition = filesystem.unpack_root(disk, out, untold)
    assert (partition.number, partition.offset) == (9, OFFSET)
    gcc = (out / "usr/bin/gcc").stat()
    assert stat.S_IMODE(gcc.st_mode) == 0o750 and gcc.st_mtime == 1577836800
    assert (out / "usr/bin/cc").readlink().name == "gcc"
    assert (out / "usr/bin/c++").read_text() == "#!/bin/sh\n"
    assert (out / 'a "b" c' / "ümlaut\n").read_text() == "odd\n"
    assert (out / "holes").read_bytes() == bytes(3 << 20)
    assert not (out / "lost+found").exists()
    archive = tmp_path / "root.tar"
    filesystem.pack(out, archive, untold)
    with tarfile.open(archive) as tar:
        packed = {member.name: member for member in tar}
        content = tar.extractfile("usr/lib/os-release")
        assert content is not None and content.read().startswith(b"ID=flatcar")
    assert packed["usr/bin/gcc"].mode == 0o750 and packed["usr/bin/gcc"].mtime == 1577836800
    assert packed["usr/bin/cc"].issym() and packed["usr/bin/cc"].linkname == "gcc"
    assert packed["usr/bin"].isdir()
    if os.geteuid() == 0:
        assert (packed["usr/bin/gcc"].uid, packed["usr/bin/gcc"].gid) == (12, 34)


def overwrite(place: int, content: bytes) -> Callable[[Path], None]:
    def damage(disk: Path) -> None:
        with disk.open("r+b") as file:
            file.seek(place)
            file.write(content)

    return damage


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        pytest.param(lambda disk: disk.write_bytes(b"x" * 5000), "has no GPT", id="no-gpt"),
        pytest.param(lambda disk: os.truncate(disk, 4 << 20), "but its partition 9 ends at", id="truncated"),
        pytest.param(overwrite(OFFSET, b"\xa5" * (24 << 20)), "Bad magic number", id="garbage-for-ext4"),
        # Group descriptors and inode tables; the superblock stays.
        pytest.param(overwrite(OFFSET + 2048, b"\xa5" * (8 << 20)), "cannot be read: ", id="damaged-ext4"),
    ],
)
def test_a_disk_that_is_none(disk: Path, tmp_path: Path, damage: Callable[[Path], None], fault: str) -> None:
    damage(disk)
    with pytest.raises(Permanent) as caught:
        filesystem.unpack_root(disk, tmp_path / "out", untold)
    assert caught.value.code is Code.DISK_IMAGE_INVALID
    assert "'disk.img'" in caught.value.sentence and fault in caught.value.sentence


@pytest.mark.parametrize(("number", "label"), [(9, "ANY"), (2, "ROOT")])
def test_the_root_by_number_or_label(tree: Path, tmp_path: Path, number: int, label: str) -> None:
    raw = tmp_path / "disk.img"
    make_disk(tree, raw, 24, number=number, label=label)
    assert filesystem.unpack_root(raw, tmp_path / "out", untold).number == number


def test_a_missing_root(tree: Path, tmp_path: Path) -> None:
    raw = tmp_path / "disk.img"
    make_disk(tree, raw, 24, number=3, label="OEM")
    with pytest.raises(Permanent, match=r"has no partition 9 and none named ROOT: it has 3 \(OEM\)"):
        filesystem.unpack_root(raw, tmp_path / "out", untold)


# ---------------------------------------------------------------------------------------------------
# bzip2

PARTS = [b"begin" * 20_000, bytes(2 << 20), b"end"]


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(bz2.compress(b"".join(PARTS)), id="one-stream"),
        pytest.param(b"".join(map(bz2.compress, PARTS)), id="several-streams"),
    ],
)
def test_decompressed_with_holes(tmp_path: Path, packed: bytes) -> None:
    (tmp_path / "x.bz2").write_bytes(packed)
    filesystem.decompress(tmp_path / "x.bz2", tmp_path / "x", untold)
    assert (tmp_path / "x").read_bytes() == b"".join(PARTS)
    assert (tmp_path / "x").stat().st_blocks * 512 < 1 << 20


def test_a_disk_that_ends_with_zeros_keeps_its_size(tmp_path: Path) -> None:
    (tmp_path / "x.bz2").write_bytes(bz2.compress(b"x" + bytes(1_000_000)))
    filesystem.decompress(tmp_path / "x.bz2", tmp_path / "x", untold)
    assert (tmp_path / "x").stat().st_size == 1_000_001


GOOD = bz2.compress(hashlib.shake_128(b"1").digest(500_000))


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(b"", id="empty"),
        pytest.param(GOOD[:-100], id="truncated"),
        pytest.param(b"<html>" * 100, id="html"),
        pytest.param(GOOD[:1000] + b"?" * 100 + GOOD[1100:], id="damaged"),
        pytest.param(GOOD + b"and more", id="something-behind"),
    ],
)
def test_what_is_no_bzip2(tmp_path: Path, packed: bytes) -> None:
    (tmp_path / "x.bz2").write_bytes(packed)
    with pytest.raises(Permanent, match=r"'x\.bz2' cannot be decompressed: ") as caught:
        filesystem.decompress(tmp_path / "x.bz2", tmp_path / "x", untold)
    assert caught.value.code is Code.DISK_IMAGE_INVALID


def test_sha512(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert filesystem.sha512(tmp_path / "x", untold) == hashlib.sha512(b"abc").hexdigest()


# ---------------------------------------------------------------------------------------------------
# What is in a tree


def test_what_a_tree_is(tree: Path) -> None:
    found = filesystem.os_release(tree)
    assert (found.id, found.version) == ("flatcar", "4593.2.5")
    (tree / "usr/lib/modules/extra").mkdir()
    assert filesystem.kernels(tree) == (KERNEL,)


def test_a_tree_without_os_release_and_modules(tmp_path: Path) -> None:
    assert filesystem.kernels(tmp_path) == ()
    with pytest.raises(Permanent, match="has no os-release"):
        filesystem.os_release(tmp_path)


@pytest.mark.parametrize("place", ["usr/boot/vmlinuz-K", "boot/vmlinuz-K", "usr/lib/modules/K/vmlinuz"])
def test_where_a_kernel_may_be(tmp_path: Path, place: str) -> None:
    assert not filesystem.has_kernel(tmp_path, "K")
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_bytes(b"")
    assert filesystem.has_kernel(tmp_path, "K")


def test_a_kernel_is_put_where_it_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"MZ")
    tree = tmp_path / "tree"
    tree.mkdir()
    filesystem.put_kernel(tree, "K", tmp_path / "kernel")
    assert filesystem.has_kernel(tree, "K")
    assert (tmp_path / "kernel").exists(), "it may be in somebody's cache"


@pytest.mark.parametrize(
    ("links", "path", "expected"),
    [
        pytest.param({}, "usr/lib/x", "usr/lib/x", id="no-link"),
        pytest.param({"lib": "usr/lib64"}, "lib/x", "usr/lib64/x", id="relative"),
        pytest.param({"a/lib": "/usr/lib64"}, "a/lib/x", "usr/lib64/x", id="absolute-is-of-the-tree"),
        pytest.param({"lib": "../../../etc"}, "lib/passwd", "etc/passwd", id="not-above-the-tree"),
        pytest.param({"a": "b", "b": "/c/../d"}, "a/./x", "d/x", id="several"),
    ],
)
def test_links_stay_inside(tmp_path: Path, links: dict[str, str], path: str, expected: str) -> None:
    for link, target in links.items():
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to(target)
    assert filesystem.inside(tmp_path, path) == tmp_path / expected


def test_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(Permanent, match="circle of links"):
        filesystem.inside(tmp_path, "a/x")


# ---------------------------------------------------------------------------------------------------
# The workplace


def test_a_workplace_is_gone_after_a_failure(tmp_path: Path) -> None:
    def work() -> None:
        with filesystem.workplace(tmp_path) as place:
            (place / "large").write_bytes(b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert list(tmp_path.iterdir()) == []


def test_a_workplace_without_room_says_where(tmp_path: Path) -> None:
    with (
        pytest.raises(Exception, match="making a directory in") as caught,
        filesystem.workplace(tmp_path / "no"),
    ):
        pass
    assert getattr(caught.value, "code", None) is Code.DISK_IMAGE_INVALID


SCRIPT = """
import sys, pathlib, signal
from nvidiad.image.world import filesystem
with filesystem.workplace(pathlib.Path(sys.argv[1])) as place:
    (place / "large").write_bytes(b"x")
    print("there", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize(
    ("number", "left"), [(signal.SIGTERM, 0), (signal.SIGKILL, 1)], ids=["sigterm", "sigkill"]
)
def test_a_workplace_after_a_signal(tmp_path: Path, number: signal.Signals, left: int) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PACKAGE.parent) as child:
        assert child.stdout is not None and child.stdout.readline() == b"there\n"
        # A running one's place is not swept away.
        with filesystem.workplace(tmp_path):
            assert len(list(tmp_path.iterdir())) == 2
        child.send_signal(number)
        assert child.wait(20) == (143 if number is signal.SIGTERM else -signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == left
    with filesystem.workplace(tmp_path) as place:
        assert list(tmp_path.iterdir()) == [place]


def test_a_workplace_outside_the_main_thread(tmp_path: Path) -> None:
    seen: list[bool] = []

    def work() -> None:
        with filesystem.workplace(tmp_path) as place:
            seen.append(place.is_dir())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert seen == [True]
