# SPDX-License-Identifier: Apache-2.0
"""The journal: records as journald reads them from a real datagram socket, and lines as people read them."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from nvidiad.world import journal
from nvidiad.world.journal import JournalSink, PlainLog

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from nvidiad.verbs.ports import Log

SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class Journald:
    """A journald that listens on a path and reads records as the native protocol has them."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(5)

    def receive(self) -> dict[str, str]:
        """The next record, out of a sealed memory file where it came as one."""
        data, ancillary, _, _ = self._socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        if not data:
            ((level, kind, rights),) = ancillary
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            (descriptor,) = array.array("i", rights)
            try:
                # journald takes no memory file that its sender could still change.
                assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == SEALED
                data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            finally:
                os.close(descriptor)
        return decode(data)

    def empty(self) -> bool:
        self._socket.settimeout(0)
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(5)
        return False

    def close(self) -> None:
        self._socket.close()


def decode(data: bytes) -> dict[str, str]:
    """A record of the native protocol; each field but once."""
    fields: dict[str, str] = {}
    while data:
        head, _, rest = data.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if equals:
            data = rest
        else:
            (size,) = struct.unpack_from("<Q", rest)
            value, data = rest[8 : 8 + size], rest[8 + size :]
            assert data[:1] == b"\n"
            data = data[1:]
        assert name.decode() not in fields
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    made = Journald(tmp_path / "socket")
    yield made
    made.close()


@pytest.fixture
def sink(journald: Journald) -> Iterator[JournalSink]:
    """A sink to that journald; those of the product live as long as their process."""
    made = JournalSink(journald.path)
    yield made
    made._socket.close()


# -- records ----------------------------------------------------------------------------------------


def test_an_event_is_a_record_with_fields_of_its_own(journald: Journald, sink: JournalSink) -> None:
    sink({"event": "done", "what": "load nvidia", "level": "info", "step": "load-module", "seconds": 0.5})
    assert journald.receive() == {
        "MESSAGE": "done: load nvidia",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "nvidiad",
        "NVIDIAD_STEP": "load-module",
        "NVIDIAD_SECONDS": "0.5",
    }


@pytest.mark.parametrize(
    ("level", "priority"),
    [("debug", "7"), ("info", "6"), ("warning", "4"), ("error", "3"), ("strange", "6")],
)
def test_a_level_is_a_priority_of_syslog(
    journald: Journald, sink: JournalSink, level: str, priority: str
) -> None:
    sink({"event": "x", "level": level})
    assert journald.receive()["PRIORITY"] == priority


def test_no_text_can_make_a_field_of_its_own(journald: Journald, sink: JournalSink) -> None:
    evil = "it failed\nPRIORITY=0\n_UID=0\nMESSAGE=all is well"
    sink({"event": evil, "level": "error", "remedy": evil})
    record = journald.receive()
    assert record["MESSAGE"] == record["NVIDIAD_REMEDY"] == evil
    assert record["PRIORITY"] == "3"
    assert "_UID" not in record


def test_a_traceback_follows_the_message(journald: Journald, sink: JournalSink) -> None:
    sink({"event": "internal error", "level": "error", "exception": "Traceback:\n  line"})
    record = journald.receive()
    assert record["MESSAGE"] == "internal error\nTraceback:\n  line"
    assert "NVIDIAD_EXCEPTION" not in record


@given(st.text(), st.dictionaries(st.sampled_from(["code", "step", "error", "seconds"]), st.text()))
def test_whatever_is_said_comes_out_as_it_went_in(event: str, fields: dict[str, str]) -> None:
    record = decode(journal.journal_record({"event": event, "level": "info", **fields}))
    assert record["MESSAGE"] == event
    for key, value in fields.items():
        assert record[f"NVIDIAD_{key.upper()}"] == value


def test_what_is_no_utf8_is_said_all_the_same(journald: Journald, sink: JournalSink) -> None:
    sink({"event": "file \udcff", "level": "info"})
    assert journald.receive()["MESSAGE"] == "file ?"


@pytest.mark.parametrize("size", [1 << 19, 1 << 22])
def test_a_record_that_is_too_large_for_a_datagram_goes_as_a_sealed_file(
    journald: Journald, sink: JournalSink, size: int
) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    sink({"event": "x" * size, "level": "warning", "code": "internal"})
    record = journald.receive()
    assert record["MESSAGE"] == "x" * size
    assert (record["PRIORITY"], record["NVIDIAD_CODE"]) == ("4", "internal")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_flood_does_not_block_and_what_was_lost_is_counted(journald: Journald, sink: JournalSink) -> None:
    sent = 0
    while not sink._dropped and sent < 100_000:
        sink({"event": f"event {sent}", "level": "info"})
        sent += 1
    sink({"event": "lost too", "level": "info"})
    for number in range(sent - 1):
        assert journald.receive()["MESSAGE"] == f"event {number}"
    assert journald.empty()
    sink({"event": "at last", "level": "info"})
    record = journald.receive()
    assert (record["MESSAGE"], record["NVIDIAD_DROPPED"]) == ("at last", "2")
    sink({"event": "and on", "level": "info"})
    assert "NVIDIAD_DROPPED" not in journald.receive()


def test_without_a_journald_nothing_is_raised_and_it_may_come_back(tmp_path: Path) -> None:
    sink = JournalSink(str(tmp_path / "socket"))
    sink({"event": "nobody hears this", "level": "error"})
    journald = Journald(tmp_path / "socket")
    try:
        sink({"event": "here I am", "level": "info"})
        assert journald.receive()["NVIDIAD_DROPPED"] == "1"
    finally:
        journald.close()
        sink._socket.close()


# -- lines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"event": "plan", "what": "x is wanted", "level": "info"}, "plan: x is wanted"),
        (
            {"event": "done", "level": "info", "step": "pull-image", "seconds": 1.5},
            "done  (step=pull-image seconds=1.5)",
        ),
        (
            {"event": "it failed", "level": "error", "code": "image-missing"},
            "error: it failed  (code=image-missing)",
        ),
        ({"event": "odd", "level": "warning", "remedy": ""}, "warning: odd"),
        ({"event": "bug", "level": "error", "exception": "Traceback:\n  x"}, "error: bug\nTraceback:\n  x"),
    ],
)
def test_an_event_as_a_line(fields: Mapping[str, object], line: str) -> None:
    assert journal.line(fields) == line
    assert journal.line(fields, clock="12:00:00 ") == f"12:00:00 {line}"


def test_lines_go_to_standard_error_when_that_is_not_the_journal(capfd: pytest.CaptureFixture[str]) -> None:
    PlainLog({}).info("done", what="it", step="x")
    PlainLog({"JOURNAL_STREAM": "1:1"}).error("failed")
    assert capfd.readouterr().err == "done: it  (step=x)\nerror: failed\n"


def test_the_journal_is_taken_where_standard_error_is_connected_to_it() -> None:
    here = os.fstat(2)
    stream = f"{here.st_dev}:{here.st_ino}"
    sink = journal.choose_sink({"JOURNAL_STREAM": stream})
    assert isinstance(sink, JournalSink)
    sink._socket.close()
    for other in ("", "nonsense", f"{here.st_dev}:{here.st_ino + 1}", f"{here.st_dev + 1}:{here.st_ino}"):
        assert journal.choose_sink({"JOURNAL_STREAM": other}) is journal.line_sink


# -- what is let through ----------------------------------------------------------------------------


@pytest.fixture(params=["plain", "structlog"])
def make(request: pytest.FixtureRequest) -> Iterator[type[PlainLog] | object]:
    yield PlainLog if request.param == "plain" else journal.configure
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("wish", "heard"),
    [
        (None, "info warning error"),
        ("debug", "debug info warning error"),
        ("7", "debug info warning error"),
        ("notice", "warning error"),
        ("warning", "warning error"),
        ("4", "warning error"),
        ("err", "error"),
        ("error", "error"),
        ("crit", ""),
        ("0", ""),
        ("emerg", ""),
        ("nonsense", "info warning error"),
    ],
)
def test_the_level_that_systemd_asks_for(
    make: object, wish: str | None, heard: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert callable(make)
    log: Log = make({} if wish is None else {"SYSTEMD_LOG_LEVEL": wish})
    log.debug("1", code="debug")
    log.info("2", code="info")
    log.warning("3", code="warning")
    log.error("4", code="error")
    said = [line.rpartition("code=")[2].rstrip(")") for line in capfd.readouterr().err.splitlines()]
    assert " ".join(said) == heard


def test_structlog_tells_an_exception_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    log = journal.configure({})
    try:
        raise ZeroDivisionError("a bug")
    except ZeroDivisionError as error:
        log.error("internal error", error=repr(error), exc_info=True)  # noqa: G201 - as the daemon does
    finally:
        structlog.reset_defaults()
    said = capfd.readouterr().err
    assert said.startswith("error: internal error  (error=ZeroDivisionError('a bug'))\nTraceback")
    assert "a bug" in said.splitlines()[-1]
