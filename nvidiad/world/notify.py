# SPDX-License-Identifier: Apache-2.0
"""Notifications to the service manager (sd_notify(3)), its watchdog, and the sockets that it hands over."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_FIRST_DESCRIPTOR = 3


class ServiceManager:
    """Tells systemd how the service is; does nothing where no service manager listens."""

    def __init__(self) -> None:
        # Importing it costs the whole package: only the daemon does.
        from pystemd import daemon

        self._daemon = daemon

    def ready(self, status: str) -> None:
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        self._send(_status(status))

    def reloading(self, monotonic_microseconds: int) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={monotonic_microseconds}")

    def stopping(self) -> None:
        self._send("STOPPING=1", _status("stopping"))

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def watchdog_seconds(self) -> float | None:
        """How often systemd wants a sign of life, None when it wants none."""
        microseconds = int(self._daemon.watchdog_enabled(False))  # noqa: FBT003 - by position only
        return microseconds / 1e6 if microseconds > 0 else None

    def _send(self, *lines: str) -> None:
        # A negative answer means that nobody listens (a run by hand), which is as good.
        self._daemon.notify(False, *lines)  # noqa: FBT003 - by position only


def _status(text: str) -> str:
    """A newline would begin another assignment."""
    return "STATUS=" + " ".join(text.split())


def inherited_sockets(environment: Mapping[str, str], pid: int) -> dict[str, socket.socket]:
    """The sockets of sd_listen_fds(3), by their FileDescriptorName=; empty when there are none for us."""
    if environment.get("LISTEN_PID") != str(pid):
        return {}
    count = int(environment.get("LISTEN_FDS", "0"))
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    return {
        (names[index] if index < len(names) else str(index)): socket.socket(fileno=_FIRST_DESCRIPTOR + index)
        for index in range(count)
    }
