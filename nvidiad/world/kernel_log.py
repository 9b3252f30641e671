# SPDX-License-Identifier: Apache-2.0
"""The kernel's log: what it said from a moment on about the driver; a host without it loses nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The longest record that the kernel hands out, and how much of the log is worth a sentence.
RECORD = 8192
RECORDS_AT_MOST = 10_000
LINES_AT_MOST = 4
_RELEVANT = re.compile(r"NVRM|nvidia|module|lockdown|firmware", re.IGNORECASE)
# Said at every load of a driver from outside the kernel: true, and no reason for anything.
_NOISE = re.compile(r"taint|module license|Nvlink Core", re.IGNORECASE)


class News:
    """What the kernel logs after this was made."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def about(self, name: str) -> str:
        """The last relevant lines, joined by `; `."""
        lines = [
            line
            for line in self._lines()
            if (_RELEVANT.search(line) or name in line) and not _NOISE.search(line)
        ]
        return "; ".join(dict.fromkeys(lines[-LINES_AT_MOST:]))

    def _lines(self) -> Iterator[str]:
        if self._descriptor is None:
            return
        for _ in range(RECORDS_AT_MOST):
            try:
                record = os.read(self._descriptor, RECORD)
            except OSError as error:
                if error.errno == errno.EPIPE:
                    continue  # records were overwritten before they were read; the rest follows
                return
            if not record:
                return
            # `priority,sequence,time,flags;text` and, on further lines, keys for programs
            for line in record.decode("utf-8", "replace").splitlines():
                head, separator, text = line.partition(";")
                if separator and head[:1].isdigit() and not line.startswith(" "):
                    yield text.strip()


@contextlib.contextmanager
def since_now(root: Path) -> Iterator[News]:
    """The log from here on."""
    descriptor = None
    with contextlib.suppress(OSError):
        descriptor = os.open(root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(descriptor, 0, os.SEEK_END)
    try:
        yield News(descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)
