# SPDX-License-Identifier: Apache-2.0
"""Disk images: unpacked, their root file system read without loop device or mount, made a tar archive."""

from __future__ import annotations

import bz2
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import tarfile
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Progress
from nvidiad.thought import gpt, parse
from nvidiad.world import files, process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from nvidiad.nouns.model import Release

_PIECE = 1 << 16
_ZEROS = bytes(_PIECE)
_TOLD_EVERY = 64 << 20
# A file system of 6 GiB on a slow disk.
_DEBUGFS_SECONDS = 1800.0
_PREFIX = "nvidiad-developer-"
_LINKS_AT_MOST = 40
_MODULES = "usr/lib/modules"
# Where a kernel may be that was delivered with its modules: Flatcar's place, Debian's, and systemd's.
_KERNELS = ("usr/boot/vmlinuz-{}", "boot/vmlinuz-{}", "usr/lib/modules/{}/vmlinuz")
_REMEDY = "Fetch the disk image again, or from another mirror."


@contextmanager
def workplace(parent: Path) -> Iterator[Path]:
    """A directory for large files that is gone afterwards, also after a failure and after SIGTERM.

    What a killed process left there is removed by the next one: the lock on such a directory ends with its
    process.
    """
    with ended_by_sigterm():
        with files.explained(f"making a directory in '{parent}'", Code.DISK_IMAGE_INVALID):
            _sweep(parent)
            place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        held = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield place
        finally:
            files.remove_tree(place)
            os.close(held)


def sha512(path: Path, tell: Callable[[Progress], None]) -> str:
    """The SHA512 of a file as hexadecimal digits."""
    digest = hashlib.sha512()
    total, done, told = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while piece := file.read(files.CHUNK):
            digest.update(piece)
            done += len(piece)
            if done - told >= _TOLD_EVERY:
                told = done
                tell(Progress("hash", path.name, done, total))
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Remove a file or a tree; nothing there is well, too."""
    files.remove_tree(path)


def decompress(packed: Path, image: Path, tell: Callable[[Progress], None]) -> None:
    """Write what a bzip2 file holds; blocks of zeros become holes.

    Raises:
        Permanent: disk-image-invalid, where the file is no bzip2 or ends too early.
    """
    total, told = packed.stat().st_size, 0
    with (
        files.explained(f"writing '{image}'", Code.DISK_IMAGE_INVALID),
        packed.open("rb") as raw,
        image.open("wb") as target,
    ):
        tell(Progress("decompress", packed.name, 0, total))
        for piece in _decompressed(raw.read, packed.name):
            if piece == _ZEROS[: len(piece)]:
                target.seek(len(piece), os.SEEK_CUR)
            else:
                target.write(piece)
            if target.tell() - told >= _TOLD_EVERY:
                told = target.tell()
                tell(Progress("decompress", packed.name, raw.tell(), total))
        target.truncate()


def unpack_root(image: Path, tree: Path, tell: Callable[[Progress], None]) -> gpt.Partition:
    """Write the files of a disk image's root partition below a directory that is not there yet.

    Modes, owners (where we are root), the times of files and symbolic links stay as they are. Hard links
    become files of their own; set-user-ID bits, and what is neither file, directory nor link, are lost:
    nothing that a compiler needs.

    Raises:
        Permanent: disk-image-invalid, with what is wrong with the partition table or the file system.
    """
    size = image.stat().st_size
    with image.open("rb") as file:
        found = gpt.partitions(file.read(gpt.ENOUGH), size, image.name)
    partition = gpt.root(found, image.name)
    tell(Progress("unpack-root", f"partition {partition}, {partition.size} bytes"))
    tree.mkdir()
    # debugfs reads a request as a shell would, and the name of an image up to its first question mark.
    place = '"' + str(tree).replace('"', '""') + '"'
    argv = ["debugfs", "-R", f"rdump / {place}", f"{image}?offset={partition.offset}"]
    finished = process.run(argv, timeout=_DEBUGFS_SECONDS)
    faults = [line for line in finished.err.splitlines() if _is_fault(line)]
    if finished.returncode != 0 or faults or not (tree / "lost+found").is_dir():
        said = (faults or finished.err.splitlines() or ["debugfs found nothing in it"])[0].strip()
        sentence = f"the root file system of '{image.name}' (partition {partition}) cannot be read: {said}"
        raise Permanent(Code.DISK_IMAGE_INVALID, sentence, _REMEDY)
    (tree / "lost+found").rmdir()
    return partition


def os_release(tree: Path) -> Release:
    """What a tree's os-release says.

    Raises:
        Permanent: disk-image-invalid, where there is none.
    """
    for path in ("usr/lib/os-release", "etc/os-release"):
        place = inside(tree, path)
        if place.is_file():
            return parse.os_release(place.read_text(errors="replace"))
    raise Permanent(Code.DISK_IMAGE_INVALID, "the root file system has no os-release", _REMEDY)


def kernels(tree: Path) -> tuple[str, ...]:
    """The kernel releases for which a tree has what modules are built with."""
    modules = inside(tree, _MODULES)
    if not modules.is_dir():
        return ()
    releases = sorted(entry.name for entry in modules.iterdir())
    return tuple(one for one in releases if inside(tree, f"{_MODULES}/{one}/build").is_dir())


def has_kernel(tree: Path, kernel: str) -> bool:
    """Whether the kernel itself is in the tree, at one of the places where `prove` looks for it."""
    return any(inside(tree, place.format(kernel)).is_file() for place in _KERNELS)


def put_kernel(tree: Path, kernel: str, file: Path) -> None:
    """Put a copy of a kernel into the tree."""
    place = inside(tree, _KERNELS[0].format(kernel))
    files.make_directory(place.parent)
    shutil.copyfile(file, place)
    place.chmod(0o644)


def pack(tree: Path, archive: Path, tell: Callable[[Progress], None]) -> None:
    """Write everything below a directory into a tar archive, with its owners and times."""
    done = told = 0
    with (
        files.explained(f"writing '{archive}'", Code.DISK_IMAGE_INVALID),
        tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, found in files.walk(tree):
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
            if os.geteuid() == 0:  # else everything is ours, which says nothing
                info.uid, info.gid = found.st_uid, found.st_gid
            if stat.S_ISREG(found.st_mode):
                info.size = found.st_size
                with (tree / name).open("rb") as content:
                    tar.addfile(info, content)
                done += info.size
                if done - told >= _TOLD_EVERY:
                    told = done
                    tell(Progress("pack", archive.name, done))
            elif stat.S_ISDIR(found.st_mode):
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            elif stat.S_ISLNK(found.st_mode):
                info.type, info.linkname = tarfile.SYMTYPE, str((tree / name).readlink())
                tar.addfile(info)


def inside(tree: Path, path: str) -> Path:
    """Where a path of the tree leads if the tree is the root directory; no link leads out of it.

    Raises:
        Permanent: disk-image-invalid, where links go in a circle.
    """
    rest = [part for part in path.split("/") if part]
    reached: list[str] = []
    links = 0
    while rest:
        part = rest.pop(0)
        if part == ".":
            continue
        if part == "..":
            del reached[-1:]
            continue
        place = tree.joinpath(*reached, part)
        if not place.is_symlink():
            reached.append(part)
            continue
        links += 1
        if links > _LINKS_AT_MOST:
            raise Permanent(Code.DISK_IMAGE_INVALID, f"'{path}' is a circle of links in the image", _REMEDY)
        target = str(place.readlink())
        if target.startswith("/"):
            reached.clear()
        rest = [part for part in target.split("/") if part] + rest
    return tree.joinpath(*reached)


def _decompressed(read: Callable[[int], bytes], name: str) -> Iterator[bytes]:
    """Pieces of equal length but for the last; lbzip2 and pbzip2 write many streams into one file."""
    decompressor = bz2.BZ2Decompressor()
    held = bytearray()
    fed = b""
    try:
        while True:
            if decompressor.eof:
                fed = decompressor.unused_data
                decompressor = bz2.BZ2Decompressor()
                fed = fed or read(_PIECE)
                if not fed:
                    break
            elif decompressor.needs_input:
                fed = read(_PIECE)
                if not fed:
                    raise EOFError("it ends too early")
            held += decompressor.decompress(fed, _PIECE)
            fed = b""
            while len(held) >= _PIECE:
                yield bytes(held[:_PIECE])
                del held[:_PIECE]
    except (OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        sentence = f"'{name}' cannot be decompressed: {error}"
        raise Permanent(Code.DISK_IMAGE_INVALID, sentence, _REMEDY) from None
    if held:
        yield bytes(held)


def _is_fault(line: str) -> bool:
    """Whether debugfs complains; its first line is its version, and only root may give files away."""
    if not line.strip() or line.startswith("debugfs 1."):
        return False
    return os.geteuid() == 0 or "while changing ownership" not in line


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as an exception, so that it cleans up; a handler that there is stays."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _sweep(parent: Path) -> None:
    """Remove the workplaces of processes that are no more."""
    for place in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another process may be at it, or it is not ours
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    files.remove_tree(place)
            finally:
                os.close(fd)
