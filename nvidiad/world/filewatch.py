# SPDX-License-Identifier: Apache-2.0
"""Changes of the few files that tell of a coming reboot, which nobody says on the bus (inotify(7))."""

from __future__ import annotations

import os
import struct
from fnmatch import fnmatch
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
# A link is only created, and a file that is written in pieces is worth a look once it is closed.
_NEWS = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_OVERFLOW = 0x4000
_EVENT = struct.Struct("iIII")
# More than one event with the longest name needs; the kernel gives whole events only.
_BYTES = 1 << 16


class FileWatch:
    """A source of reasons: the files with these names, the last component of which may be a pattern.

    Their directories are watched, as the files come and go. One that is not there is not watched; the daemon
    looks again after a while in any case, and so it does on a host that has no inotify instance left, of
    which every user has 128 and a kubelet may need many.
    """

    def __init__(self, *files: Path) -> None:
        import ctypes  # pyudev, which the daemon has anyway, needs it too

        self._files: dict[int, list[Path]] = {}
        libc = ctypes.CDLL(None)
        self._inotify: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._inotify < 0:
            self._inotify = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return
        for file in files:
            watch = libc.inotify_add_watch(self._inotify, os.fsencode(file.parent), _NEWS)
            if watch >= 0:
                self._files.setdefault(watch, []).append(file)

    def fileno(self) -> int:
        """Becomes readable when something changes in one of the directories."""
        return self._inotify

    def drain(self) -> tuple[str, ...]:
        """The files that changed, each as a reason."""
        found: dict[str, None] = {}
        while data := self._read():
            place = 0
            while place < len(data):
                watch, kind, _, size = _EVENT.unpack_from(data, place)
                place += _EVENT.size + size
                name = os.fsdecode(data[place - size : place].rstrip(b"\0"))
                if kind & _OVERFLOW:
                    found["files changed faster than they were looked at"] = None
                for file in self._files.get(watch, ()):
                    if fnmatch(name, file.name):
                        found[f"'{file.with_name(name)}' changed"] = None
        return tuple(found)

    def close(self) -> None:
        os.close(self._inotify)

    def _read(self) -> bytes:
        try:
            return os.read(self._inotify, _BYTES)
        except BlockingIOError:
            return b""
