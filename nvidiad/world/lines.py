# SPDX-License-Identifier: Apache-2.0
"""Lines: the connections to a registry, which are cut when the time for all of its requests is over."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any

_OVER = "there is no more time for it"


class Lines:
    """The connections of a registry, which are cut when the time for all of its requests is over.

    No limit on a read does that: bytes that keep coming, be it in endless headers, reset every one of them.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lines: list[socket.socket] = []
        """A duplicate of each: TLS takes the descriptor out of the object that was connected."""
        self._timer: threading.Timer | None = None
        self._held = threading.Lock()
        self.cut = False

    def watch(self, pool: Any) -> None:
        """Know every connection that this pool opens from now on."""
        if not self._seconds:
            return
        pool.pool_classes_by_scheme = {
            scheme: self._watched(kind) for scheme, kind in pool.pool_classes_by_scheme.items()
        }
        self._timer = threading.Timer(self._seconds, self._over)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._held:
            for each in self._lines:
                each.close()
            self._lines.clear()

    def _over(self) -> None:
        with self._held:
            self.cut = True
            for each in self._lines:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _opened(self, line: socket.socket) -> None:
        with self._held:
            # The time may have ended while a name was looked up, or while it was connected.
            if self.cut:
                line.close()
                raise OSError(_OVER)
            self._lines.append(line.dup())

    def _watched(self, kind: Any) -> Any:
        lines = self

        class Line(kind.ConnectionCls):  # type: ignore[misc]
            def _new_conn(self) -> socket.socket:
                if lines.cut:
                    raise OSError(_OVER)
                opened: socket.socket = super()._new_conn()
                lines._opened(opened)
                return opened

        return type(kind.__name__, (kind,), {"ConnectionCls": Line})
