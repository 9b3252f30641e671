# SPDX-License-Identifier: Apache-2.0
"""update_engine: the status of the OS updater of CoreOS and Flatcar (com.coreos.update1.Manager)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Failure
from nvidiad.thought import parse

if TYPE_CHECKING:
    from nvidiad.nouns.model import UpdateStatus
    from nvidiad.verbs.ports import Bus

NAME = "com.coreos.update1"
PATH = "/com/coreos/update1"
INTERFACE = "com.coreos.update1.Manager"
_OWNER = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner")


class UpdateEngine:
    """The `Updates` port."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def status(self) -> UpdateStatus | None:
        """What GetStatus says; None where there is no update_engine or it does not answer.

        The owner is asked for first: a failed call costs pystemd a kilobyte for ever, and most hosts have no
        update_engine.
        """
        try:
            if not self._bus.call(*_OWNER, NAME):
                return None
            return parse.update_status(self._bus.call(NAME, PATH, INTERFACE, "GetStatus"))
        except (Failure, ValueError):
            # An updater that is restarting, refuses us or talks nonsense is no reason to neglect the driver.
            return None


class NoUpdates:
    """The `Updates` port of a host without the bus."""

    def status(self) -> UpdateStatus | None:
        return None
