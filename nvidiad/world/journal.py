# SPDX-License-Identifier: Apache-2.0
"""The journal: structlog's events as native journal fields under systemd, as readable lines elsewhere."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from nvidiad.verbs.ports import Log

SOCKET = "/run/systemd/journal/socket"
# syslog(3) priorities by structlog's level names.
PRIORITIES = {
    "debug": 7,
    "info": 6,
    "notice": 5,
    "warning": 4,
    "warn": 4,
    "error": 3,
    "exception": 3,
    "critical": 2,
}
_OWN = ("event", "what", "level", "exception")


def journal_record(fields: Mapping[str, object]) -> bytes:
    """An event in the journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
    level = str(fields.get("level", "info"))
    message = sentence(fields)
    if fields.get("exception"):
        message = f"{message}\n{fields['exception']}"
    record = [
        _field("MESSAGE", message),
        _field("PRIORITY", str(PRIORITIES.get(level, 6))),
        _field("SYSLOG_IDENTIFIER", "nvidiad"),
    ]
    for key, value in fields.items():
        if key not in _OWN:
            record.append(_field(f"NVIDIAD_{key.upper()}", str(value)))
    return b"".join(record)


def sentence(fields: Mapping[str, object]) -> str:
    """An event and what it is about: `done: load nvidia`."""
    return ": ".join(str(fields[key]) for key in ("event", "what") if fields.get(key))


def _field(name: str, text: str) -> bytes:
    value = text.encode(errors="replace")
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


def line(fields: Mapping[str, object], *, clock: str = "") -> str:
    """An event as one readable line, with its fields behind the sentence."""
    level = str(fields.get("level", "info"))
    mark = "" if level in ("info", "notice") else f"{level}: "
    rest = " ".join(f"{key}={value}" for key, value in fields.items() if key not in _OWN and value != "")
    text = f"{clock}{mark}{sentence(fields)}" + (f"  ({rest})" if rest else "")
    return f"{text}\n{fields['exception']}" if fields.get("exception") else text


class JournalSink:
    """Sends records to journald and never blocks; what a flood drops is counted and told with the next."""

    def __init__(self, path: str = SOCKET) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._path = path
        self._dropped = 0

    def __call__(self, fields: Mapping[str, object]) -> None:
        more = {"dropped": self._dropped} if self._dropped else {}
        try:
            self._send(journal_record({**fields, **more}))
            self._dropped = 0
        except OSError:
            self._dropped += 1

    def _send(self, record: bytes) -> None:
        try:
            self._socket.sendto(record, self._path)
        except OSError as error:
            if error.errno != 90:  # EMSGSIZE: the record goes as a sealed memory file instead
                raise
            descriptor = os.memfd_create("nvidiad-journal", os.MFD_ALLOW_SEALING)
            try:
                os.write(descriptor, record)
                import fcntl

                seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
                self._socket.sendmsg([b""], rights, 0, self._path)
            finally:
                os.close(descriptor)


def line_sink(fields: Mapping[str, object]) -> None:
    """Readable lines on standard error, with the time of day on a terminal."""
    clock = time.strftime("%H:%M:%S ") if sys.stderr.isatty() else ""
    sys.stderr.write(line(fields, clock=clock) + "\n")
    sys.stderr.flush()


def choose_sink(environment: Mapping[str, str]) -> Callable[[Mapping[str, object]], None]:
    """The journal where standard error is connected to it (JOURNAL_STREAM, systemd.exec(5))."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(2)
    except OSError:
        return line_sink
    if (device, inode) == (str(status.st_dev), str(status.st_ino)):
        return JournalSink()
    return line_sink


def threshold(environment: Mapping[str, str]) -> int:
    """The least important priority that is logged, from $SYSTEMD_LOG_LEVEL (a name or a number)."""
    wish = environment.get("SYSTEMD_LOG_LEVEL", "info")
    if wish.isdigit():
        return int(wish)
    names = {**PRIORITIES, "err": 3, "crit": 2, "alert": 1, "emerg": 0}
    return names.get(wish, 6)


class PlainLog:
    """The same events without structlog, for activation: its import costs more than the whole work."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._sink = choose_sink(environment)
        self._threshold = threshold(environment)

    def _log(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        if PRIORITIES[level] <= self._threshold:
            self._sink({"event": event, "level": level, **fields})

    def debug(self, event: str, **fields: object) -> None:
        self._log("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._log("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._log("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._log("error", event, fields)


def configure(environment: Mapping[str, str]) -> Log:
    """Set structlog up for this process and give its logger."""
    import structlog

    sink = choose_sink(environment)

    def send(_logger: object, _method: str, event: MutableMapping[str, object]) -> str:
        sink(event)
        raise structlog.DropEvent

    # structlog counts upwards in tens (logging's levels), syslog downwards.
    levels = {7: 10, 6: 20, 5: 30, 4: 30, 3: 40}
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            send,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(levels.get(threshold(environment), 50)),
        cache_logger_on_first_use=True,
    )
    log: Log = structlog.get_logger()
    return log
