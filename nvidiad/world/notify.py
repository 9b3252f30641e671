# SPDX-License-Identifier: Apache-2.0
"""Notifications to the service manager (sd_notify(3)), its watchdog, and the descriptors it hands over."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
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


class Store:
    """The service manager's store of descriptors: what is there outlives us, and our next life has it."""

    def __init__(self, address: str) -> None:
        # An empty one: no service manager listens, as in a run by hand.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address

    def put(self, name: str, descriptor: int) -> None:
        # Not dropped when its other end goes away for a moment: whose it is says whether it is still good.
        self._send(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", descriptor)

    def remove(self, name: str) -> None:
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def _send(self, lines: str, *descriptors: int) -> None:
        if not self._address:
            return
        # Without it everything is as it was, but for a kill.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(self._address)
            socket.send_fds(notify, [lines.encode()], descriptors)


def inherited(environment: Mapping[str, str], pid: int) -> dict[str, int]:
    """The descriptors of sd_listen_fds(3) and of the store by name; none where they are not for us."""
    if environment.get("LISTEN_PID") != str(pid):
        return {}
    count = int(environment.get("LISTEN_FDS", "0"))
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    numbers = range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + count)
    for number in numbers:
        os.set_inheritable(number, False)  # noqa: FBT003 - by position only
    return {
        (names[index] if index < len(names) else str(index)): number for index, number in enumerate(numbers)
    }
