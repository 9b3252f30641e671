# SPDX-License-Identifier: Apache-2.0
"""Files: write beside, sync, rename; remove without following links; lock, copy, hash; say what failed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Permanent, Transient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO

CHUNK = 1 << 20

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def suppress_oserror(*errnos: int) -> Iterator[None]:
    """Go on after these errors of the operating system, and only these."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in errnos:
            raise


ELSEWHERE = "Set install.root to a place on this host that can be written."


@contextmanager
def explained(what: str, code: Code, writable: str = ELSEWHERE) -> Iterator[None]:
    """Give an error of the operating system a sentence and a code: `code`, unless it has one of its own.

    `writable` is the remedy for a file system that is read-only.
    """
    try:
        yield
    except OSError as exc:
        sentence = f"{what} failed: {exc.strerror}" + (f" ('{exc.filename}')" if exc.filename else "")
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(sentence) from exc
        if exc.errno == errno.EROFS:
            raise Permanent(Code.READ_ONLY, sentence, writable) from exc
        raise Transient(code, sentence, "Look at 'dmesg' for errors of the disk.") from exc


def disk_full(sentence: str) -> Transient:
    """The failure that says so."""
    return Transient(Code.DISK_FULL, sentence, "Make room (try 'docker system prune') or use a larger disk.")


def atomic_write(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Let `path` have this content: after a crash it has the old or the new one, whole."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.unlink(missing_ok=True)
    data = content.encode() if isinstance(content, str) else content
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def keep(path: Path, content: str) -> None:
    """Let a file have this text, whole or not at all; one that has it is not touched: a change is news."""
    if text(path) != content:
        make_directory(path.parent)
        atomic_write(path, content)


def replace_symlink(link: Path, target: str) -> None:
    """Let `link` name `target`: there is no instant without the link."""
    beside = link.with_name(f".{link.name}.tmp")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    try:
        beside.rename(link)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    fsync_directory(link.parent)


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, that everybody may enter whatever our umask is."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir()
    path.chmod(0o755)
    fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Write the names in a directory to disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(path: Path) -> None:
    """Write everything below a directory to disk, the directory itself last."""
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            fsync_tree(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    fsync_directory(path)


def sync_file_system(path: Path) -> None:
    """Write the file system of a directory to disk (syncfs(2)); what is not there has nothing to lose."""
    import ctypes  # no activation comes here

    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        ctypes.CDLL(None, use_errno=True).syncfs(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove whatever `path` is, without following a link; nothing there is well, too."""
    with suppress_oserror(errno.ENOENT):
        if stat.S_ISDIR(path.lstat().st_mode):
            # Only here: it costs an activation, which removes no tree, as much as ten of our own modules.
            import shutil

            # Works on file descriptors: a link put in our way meanwhile is removed, not followed.
            shutil.rmtree(path)
        else:
            path.unlink()


def walk(path: Path, enter: Callable[[str], bool] = lambda _: True) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below a directory, by its relative path, with what it is itself: links are not followed.

    `enter` says of a directory, by its path, whether to look into it.
    """
    # No recursion, and nothing open meanwhile: directories may be deeper than Python and descriptors reach.
    levels = [("", _listed(path))]
    while levels:
        prefix, entries = levels[-1]
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            name = prefix + entry.name
            yield name, found
            if stat.S_ISDIR(found.st_mode) and enter(name):
                levels.append((f"{name}/", _listed(entry.path)))
                break
        else:
            levels.pop()


def _listed(path: str | Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


def text(path: Path) -> str:
    """What a file says; one that is not there or cannot be read says nothing."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def read_small(path: Path, limit: int) -> bytes:
    """The content of a regular file that is not larger than `limit`; a link is refused."""
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
        return file.read(limit)


def sha256(path: Path, advanced: Callable[[int], None] | None = None) -> str:
    """The digest of a regular file; `advanced` is told the bytes of each piece that was read."""
    digest = hashlib.sha256()
    with _open_regular(path) as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
            if advanced is not None:
                advanced(len(piece))
    return digest.hexdigest()


def copy_file(source: Path, target: Path, mode: int, advanced: Callable[[int], None]) -> None:
    """Copy a regular file to a name that is not there yet; `advanced` is told the bytes of each piece."""
    with _open_regular(source) as reader:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb", buffering=0) as writer:
            while piece := reader.read(CHUNK):
                rest = memoryview(piece)
                while rest:
                    rest = rest[writer.write(rest) :]
                advanced(len(piece))
            # After the last write, which would take a set-user-ID bit away again.
            os.fchmod(writer.fileno(), mode)


def exchange(first: Path, second: Path) -> bool:
    """Let two names change what they name at one instant; False where the file system cannot do that."""
    import ctypes  # no activation comes here either

    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(error, os.strerror(error), os.fspath(first), None, os.fspath(second))


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock while the block runs, if it is free: the block is told whether it has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        held = False
        with suppress_oserror(errno.EWOULDBLOCK):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        yield held
    finally:
        os.close(fd)


@contextmanager
def _open_regular(path: Path) -> Iterator[FileIO]:
    # Not blocking: to open a FIFO that somebody put there would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        yield file
