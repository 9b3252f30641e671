# SPDX-License-Identifier: Apache-2.0
"""The system bus through pystemd, and the room in which its traps stay.

pystemd 0.15 holds the GIL during a call (bounded here by SYSTEMD_BUS_TIMEOUT), aborts the process on a
second close, frees callbacks that it should keep, and reads getters of an empty message from a null
pointer. So: no callbacks at all (matches are made on the bus daemon, messages told apart by `is_signal`),
one close, and nothing is asked of a message that is not known to be a signal.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Code, Permanent, Transient
from nvidiad.verbs.ports import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nvidiad.verbs.ports import Match

CALL_SECONDS = 5
_DAEMON = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


class NameAbsent(Permanent):
    """Nobody owns the name that was called."""


class CallRefused(Permanent):
    """The other side answered with an error; `name` is its D-Bus name where pystemd tells it."""

    def __init__(self, sentence: str, name: str) -> None:
        super().__init__(Code.COMMAND_FAILED, sentence)
        self.name = name


class Connection:
    """One connection to the system bus: for calls, or for signals."""

    def __init__(self) -> None:
        # sd-bus reads it when it connects; its own default is 25 s, in which nothing else would run.
        os.environ.setdefault("SYSTEMD_BUS_TIMEOUT", f"{CALL_SECONDS}s")
        from pystemd import dbusexc, dbuslib

        self._errors = dbusexc
        self._matches: dict[tuple[str, str], None] = {}
        self._rules: set[str] = set()
        self._closed = False
        self._bus = dbuslib.DBus()
        try:
            self._bus.open()
        except dbusexc.DBusBaseError as error:
            self._closed = True
            raise Transient(Code.BUS_LOST, f"the system bus cannot be reached: {_words(error)}") from error

    def call(
        self, destination: str, path: str, interface: str, method: str, *arguments: str | bool | int
    ) -> Any:
        """Call a method with strings, booleans, int32; raises NameAbsent, CallRefused, BUS_LOST."""
        return self._guarded(
            f"{destination} {method}",
            lambda: self._message(destination, path, interface, method, arguments).body,
        )

    def descriptor(self, destination: str, path: str, interface: str, method: str, *arguments: str) -> int:
        """Call a method that answers with a descriptor: ours now, closed for programs that are started."""

        def ask() -> int:
            # The one in the message is closed with it.
            message = self._message(destination, path, interface, method, arguments)
            return fcntl.fcntl(int(message.body), fcntl.F_DUPFD_CLOEXEC, 3)

        return int(self._guarded(f"{destination} {method}", ask))

    def _message(
        self, destination: str, path: str, interface: str, method: str, arguments: Sequence[str | bool | int]
    ) -> Any:
        return self._bus.call_method(
            destination.encode(),
            path.encode(),
            interface.encode(),
            method.encode(),
            [_argument(argument) for argument in arguments],
        )

    def get(self, destination: str, path: str, interface: str, name: str, signature: str) -> Any:
        """A property."""
        return self._guarded(
            f"{destination} {name}",
            lambda: self._bus.get_property(
                destination.encode(), path.encode(), interface.encode(), name.encode(), signature.encode()
            ),
        )

    def add(self, *matches: Match) -> None:
        """Receive these signals from now on."""
        for match in matches:
            # The bus daemon counts every one, and has a limit for each connection.
            if match.rule not in self._rules:
                self.call(*_DAEMON, "AddMatch", match.rule)
                self._rules.add(match.rule)
            self._matches[match.interface, match.member] = None

    def drain(self) -> tuple[Signal, ...]:
        """All signals that have come in. An empty answer of pystemd does not mean an empty queue: ask on."""
        return tuple(self._signals())

    def _signals(self) -> Iterator[Signal]:
        empty = 0
        while empty < 3:
            message = self._guarded("process", self._bus.process)
            signal = self._recognise(message)
            if signal is None:
                empty += 1
            else:
                empty = 0
                yield signal

    def _recognise(self, message: Any) -> Signal | None:
        for interface, member in self._matches:
            if message.is_signal(interface.encode(), member.encode()):
                message.process_reply(False)  # noqa: FBT003 - pystemd takes it by position only
                body = _text(message.body)
                return Signal(interface, member, tuple(body) if isinstance(body, list) else (body,))
        return None

    def wait(self, seconds: float) -> tuple[Signal, ...]:
        """Signals, as soon as there are any, at the latest after `seconds`; lets other threads run."""
        end = time.monotonic() + seconds
        while not (signals := self.drain()):
            left = end - time.monotonic()
            if left <= 0:
                break
            select.select([self.fileno()], [], [], left)
        return signals

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        number = int(self._bus.get_fd())
        if number < 0:
            raise Transient(Code.BUS_LOST, "the connection to the system bus is gone")
        return number

    def close(self) -> None:
        """Close once, however often it is called."""
        if not self._closed:
            self._closed = True
            self._bus.close()

    def _guarded(self, what: str, do: Callable[[], Any]) -> Any:
        if self._closed:
            raise Transient(Code.BUS_LOST, "the connection to the system bus is closed")
        errors = self._errors
        try:
            return _text(do())
        except (errors.DBusServiceUnknownError, errors.DBusNameHasNoOwnerError) as error:
            raise NameAbsent(Code.COMMAND_FAILED, f"nobody answers on the bus: {what}") from error
        except (errors.DBusTimeoutError, errors.DBusTimedOutError, errors.DBusNoReplyError) as error:
            raise Transient(Code.BUS_LOST, f"no answer within {CALL_SECONDS} s: {what}") from error
        except errors.DBusDisconnectedError as error:
            raise Transient(Code.BUS_LOST, f"the system bus went away: {what}") from error
        except errors.DBusBaseError as error:
            if error.errno in _GONE:
                raise Transient(Code.BUS_LOST, f"the system bus went away: {what}") from error
            raise CallRefused(f"{what}: {_words(error)}", error.err_name or type(error).__name__) from error


# -ENOTCONN, -ECONNRESET, -EPIPE, -ESHUTDOWN: what sd-bus answers on a dead connection.
_GONE = frozenset({-107, -104, -32, -108})


def _argument(value: str | bool | int) -> tuple[int, object]:  # noqa: FBT001 - a value of the bus
    if isinstance(value, bool):
        return ord("b"), value
    if isinstance(value, int):
        return ord("i"), value
    return ord("s"), value.encode()


def _words(error: Any) -> str:
    message = error.err_message
    return message.decode(errors="replace") if isinstance(message, bytes) else str(message or error)


def _text(value: Any) -> Any:
    """pystemd's bytes as text, at any depth."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    if isinstance(value, dict):
        return {_text(key): _text(item) for key, item in value.items()}
    return value
