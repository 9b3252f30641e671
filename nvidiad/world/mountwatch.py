# SPDX-License-Identifier: Apache-2.0
"""Changes of the mount table that concern /usr: a sysext refresh may take our overlay away."""

from __future__ import annotations

import os
import select
from pathlib import Path

_TABLE = Path("/proc/self/mountinfo")


class MountWatch:
    """A source of reasons: the kernel raises POLLPRI on the mount table at every change (proc(5))."""

    def __init__(self, table: Path = _TABLE) -> None:
        self._table = os.open(table, os.O_RDONLY | os.O_CLOEXEC)
        # The table is always readable; only an epoll set of its own turns "changed" into "readable".
        self._poll = select.epoll()
        self._poll.register(self._table, select.EPOLLPRI | select.EPOLLERR)
        self._last = self._concerned()

    def fileno(self) -> int:
        """Becomes readable when the table changes."""
        return self._poll.fileno()

    def drain(self) -> tuple[str, ...]:
        """A reason, when a mount at or below /usr came or went: pods mount all day long."""
        self._poll.poll(0)
        concerned = self._concerned()
        if concerned == self._last:
            return ()
        self._last = concerned
        return ("mounts below /usr changed",)

    def close(self) -> None:
        self._poll.close()
        os.close(self._table)

    def _concerned(self) -> tuple[bytes, ...]:
        os.lseek(self._table, 0, os.SEEK_SET)
        text = b""
        while part := os.read(self._table, 1 << 16):
            text += part
        # Field 5 is the mount point; the ids in fields 1 and 2 tell a new mount from the old one.
        return tuple(line for line in text.splitlines() if line.split(b" ", 5)[4].startswith(b"/usr"))
