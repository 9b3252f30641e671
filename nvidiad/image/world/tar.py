# SPDX-License-Identifier: Apache-2.0
"""Tar archives: read without trust in them, and written so that equal trees give equal bytes."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.world.files import walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import SupportsRead

_CHUNK = 1 << 20
_DEEPEST, _LONGEST = 64, 255
_MOST = 64 << 30
"""Bytes of all files: no driver and no CUDA has as many."""
# Of an archive that is at odds with itself: a file below a file, a directory in its place, a circle.
_AT_ODDS = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOENT)


def unpack(
    stream: SupportsRead[bytes],
    dest: Path,
    what: str,
    *,
    wanted: Callable[[str], str | None] = lambda name: name,
    code: Code = Code.SOURCE_INVALID,
) -> int:
    """Write the files, directories and relative links of an archive below a directory; the bytes written.

    `wanted` gives the name under which a member is to lie, or None to leave it out. An absolute name is one
    below `dest`, as tar has it; a member that would lie outside is refused with `code`. What is no file,
    directory or link is left out, and so is a link that leads outside: it names something of a machine that
    is not this one. Owners are not kept; of the modes, only whether a file can be executed.

    tarfile's own filters say the same, but not every Python 3.11 has them.
    """
    dest.mkdir(parents=True, exist_ok=True)
    written = 0
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|*") as archive:
            for member in archive:
                name = wanted(member.name.removeprefix("./").removeprefix("/"))
                if name is None or name in ("", "."):
                    continue
                written += _place(archive, member, dest, name, what, code)
                if written > _MOST:
                    raise _refused(what, name, "and with it more bytes than anything needs", code)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise Permanent(code, f"'{what}' is not a whole tar archive: {error}", "Fetch it again.") from None
    return written


def _refused(what: str, name: str, why: str, code: Code) -> Permanent:
    return Permanent(code, f"'{what}' holds {name[:80]!r}, {why}", "Do not use this file.")


def _place(
    archive: tarfile.TarFile, member: tarfile.TarInfo, dest: Path, name: str, what: str, code: Code
) -> int:
    parts = name.rstrip("/").split("/")
    if len(parts) > _DEEPEST or any(len(os.fsencode(part)) > _LONGEST for part in parts):
        raise _refused(what, name, "whose name is too long", code)
    if member.sparse is not None:
        # A few bytes of it can be more than a disk holds.
        raise _refused(what, name, "which is a sparse file", code)
    try:
        return _laid(archive, member, dest, name, what, code)
    except OSError as error:
        if error.errno not in _AT_ODDS:
            raise
        raise _refused(what, name, f"which has no place in it: {error.strerror}", code) from None


def _laid(
    archive: tarfile.TarFile, member: tarfile.TarInfo, dest: Path, name: str, what: str, code: Code
) -> int:
    parts = name.rstrip("/").split("/")
    path = dest.joinpath(*parts)
    if ".." in parts or not _inside(path.parent, dest):
        raise _refused(what, name, "which lies outside of it", code)
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        target = member.linkname
        if target and not target.startswith("/") and _inside(path.parent / target, dest):
            path.unlink(missing_ok=True)
            path.symlink_to(target)
        return 0
    if member.islnk():
        # In an archive a hard link names a member that came before it.
        source = dest / member.linkname.removeprefix("./")
        if _inside(source, dest) and source.is_file() and not (path.exists() and path.samefile(source)):
            path.unlink(missing_ok=True)
            shutil.copy2(source, path)
        return 0
    content = archive.extractfile(member) if member.isreg() else None
    if content is None:
        return 0
    path.unlink(missing_ok=True)
    with content, path.open("wb") as file:
        shutil.copyfileobj(content, file, _CHUNK)
    path.chmod(0o755 if member.mode & 0o111 else 0o644)
    os.utime(path, (member.mtime, member.mtime))
    return member.size


def _inside(path: Path, top: Path) -> bool:
    """Whether a path is below a directory, with every link on the way followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(top))


def pack(source: Path, dest: Path, epoch: int, *, advanced: Callable[[int], None] | None = None) -> int:
    """Write everything below a directory into an archive that depends on nothing else; its bytes.

    Names are sorted, owners are root, every time is `epoch` (seconds since 1970), modes stay.
    """
    with dest.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, found in walk(source):
            path = source / name
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = stat.S_IMODE(found.st_mode), epoch
            info.uname = info.gname = "root"
            if stat.S_ISREG(found.st_mode):
                info.size = found.st_size
                with path.open("rb") as content:
                    archive.addfile(info, content)
                if advanced is not None:
                    advanced(found.st_size)
                continue
            if not (stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode)):
                continue  # no image needs a device or a socket that lay here
            info.type = tarfile.DIRTYPE
            if stat.S_ISLNK(found.st_mode):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
            archive.addfile(info)
    return dest.stat().st_size
