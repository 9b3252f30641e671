# SPDX-License-Identifier: Apache-2.0
"""Pace: so many bytes a second, for all who ask together."""

from __future__ import annotations

import threading
import time

_BURST = 0.25
"""Seconds for which the limit may be saved up."""
_LARGEST, _SMALLEST = 64 << 10, 4 << 10


class Pace:
    """So many bytes a second for all who ask together; whoever waits is let go at the end."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._changed = threading.Condition()
        self._free = time.monotonic()
        self._over = False

    @property
    def piece(self) -> int:
        """How much to ask for at a time: ten times a second, but not by the byte."""
        return max(_SMALLEST, min(_LARGEST, self._rate // 10))

    def take(self, count: int) -> bool:
        """Wait until so many bytes may go; False where it is all over."""
        with self._changed:
            self._free = until = max(self._free, time.monotonic() - _BURST) + count / self._rate
            while not self._over and (seconds := until - time.monotonic()) > 0:
                self._changed.wait(seconds)
            return not self._over

    def end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
