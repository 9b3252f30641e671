# SPDX-License-Identifier: Apache-2.0
"""Signals: what systemd, logind and update_engine say on the system bus, as reasons to look again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.verbs.ports import Match

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvidiad.verbs.ports import Bus, Signal

_SYSTEMD = "org.freedesktop.systemd1"
_MANAGER = f"{_SYSTEMD}.Manager"
_MANAGER_PATH = "/org/freedesktop/systemd1"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_UPDATE = "com.coreos.update1"
_DAEMON = "org.freedesktop.DBus"
_LOGIN = "org.freedesktop.login1"


class BusSignals:
    """A source of reasons: the listening connection to the bus.

    It makes calls only here, before the first wait: a call on a listening connection would pull signals into
    sd-bus' own queue, where no descriptor tells of them.
    """

    def __init__(self, bus: Bus, units: tuple[str, ...], unit_path: Callable[[str], str]) -> None:
        self._bus = bus
        self._units = units
        bus.call(_SYSTEMD, _MANAGER_PATH, _MANAGER, "Subscribe")
        bus.add(
            Match(_MANAGER, "JobRemoved", _SYSTEMD, _MANAGER_PATH),
            Match(f"{_UPDATE}.Manager", "StatusUpdate", _UPDATE, "/com/coreos/update1"),
            Match(_DAEMON, "NameOwnerChanged", _DAEMON, first_argument=_UPDATE),
            Match(_DAEMON, "NameOwnerChanged", _DAEMON, first_argument=_LOGIN),
            Match(f"{_LOGIN}.Manager", "PrepareForShutdown", _LOGIN, "/org/freedesktop/login1"),
            *(Match(_PROPERTIES, "PropertiesChanged", _SYSTEMD, unit_path(unit)) for unit in units),
        )

    def fileno(self) -> int:
        """Becomes readable with the next signal."""
        return self._bus.fileno()

    def drain(self) -> tuple[str, ...]:
        """Why to look again; raises BUS_LOST when the bus is gone."""
        return tuple(reason for signal in self._bus.wait(0) if (reason := self._reason(signal)))

    def close(self) -> None:
        self._bus.close()

    def _reason(self, signal: Signal) -> str:
        match signal.member:
            case "JobRemoved":
                # Every job of the host is told; ours are few.
                unit = str(signal.body[2]) if len(signal.body) > 2 else ""
                return f"job of {unit} ended" if unit in self._units else ""
            case "StatusUpdate":
                return "update_engine has news"
            case "PrepareForShutdown":
                return "a shutdown was asked for"
            case "NameOwnerChanged":
                return f"{signal.body[0] if signal.body else 'a name'} came or went"
            case _:
                return "a unit changed"
