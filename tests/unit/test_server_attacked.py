# SPDX-License-Identifier: Apache-2.0
"""The server under attack: crowds, those who never read, those who never end; and what others notice."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns.errors import Failure
from nvidiad.rim import client, server
from nvidiad.rim.conversation import Limits
from nvidiad.thought import wire
from tests.record import note
from tests.unit.test_server import (
    RAW,
    TREE,
    Fixture,
    as_user,
    eventually,
    public,
    read_message,
    served,
    start,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["public", "served"]

RECONCILE = wire.call("io.nvidiad.Reconcile")
# What others wait for an answer at most: a busy machine is not the fault of a client.
SECONDS = 10.0
# So many connections of one user at once, which ask without end and read nothing.
PIPELINE = """
import _socket as s
held = []
for _ in range(32):
    c = s.socket(s.AF_UNIX); c.connect(sys.argv[1]); c.setblocking(False); held.append(c)
end, data, gone = time.monotonic() + 2, CALLS * 500, 0
print("here", flush=True)
while held and time.monotonic() < end:
    for c in select.select([], held, [], 0.1)[1]:
        try:
            c.send(data)
        except BlockingIOError:
            pass
        except OSError:
            held.remove(c); gone += 1
print("sent", gone)
"""
# So many clients at once who ask for something, and how many were answered.
CROWD = """
async def ask(path):
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return "refused"
    try:
        writer.write(b"GET /status HTTP/1.1\\r\\n\\r\\n")
        await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 60)
        whole = answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"}\\n")
        return "answered" if whole else "closed" if not answer else "half"
    except OSError:
        return "closed"
    finally:
        writer.close()
async def crowd(path, count):
    said = await asyncio.gather(*(ask(path) for _ in range(count)))
    print(*(said.count(what) for what in ("answered", "closed", "refused", "half")))
asyncio.run(crowd(sys.argv[1], 1000))
"""
CHURN = """
import _socket as s
for number in range(10000):
    c = s.socket(s.AF_UNIX); c.settimeout(30); c.connect(sys.argv[1])
    try:
        if number % 4 == 0:
            c.sendall(b'{"method":"io.nvid')
        elif number % 4 == 1:
            c.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n"); c.recv(99999)
        elif number % 4 == 2:
            c.shutdown(s.SHUT_WR)
    except OSError:
        pass
    c.close()
print("done")
"""


def slowest(served: Fixture, until: Callable[[], bool]) -> float:
    """How long the longest answer took while something went on."""
    longest = 0.0
    while not until():
        began = time.monotonic()
        assert client.fetch(str(served.path), "/status", timeout=30)[0] == 200
        longest = max(longest, time.monotonic() - began)
        threading.Event().wait(0.01)
    return longest


def attacked(served: Fixture, code: str) -> tuple[float, str]:
    """What another user's program said, and the slowest answer that others got meanwhile."""
    said: list[str] = []
    attacker = threading.Thread(
        target=lambda: said.append(
            as_user(served, code, user=1234, imports="_socket, asyncio, select, time")
        )
    )
    attacker.start()
    longest = slowest(served, lambda: not attacker.is_alive())
    attacker.join()
    return longest, said[0]


def memory() -> int:
    """Resident kilobytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to be several users")


# ---------------------------------------------------------------------------------------------------
# Who takes much


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("calls that want no answer", b'{"method":"io.nvidiad.GetMetrics","oneway":true}\0'),
        ("calls whose answers are not read", b'{"method":"io.nvidiad.GetStatus"}\0'),
        ("calls that are refused", b'{"method":"io.nvidiad.Nothing"}\0'),
        ("calls for what only others may", b'{"method":"io.nvidiad.Reconcile"}\0'),
    ],
)
def test_who_asks_without_end_is_one_of_many(served: Fixture, name: str, calls: bytes) -> None:
    served.document["driver"] = {"wanted": "535.1", "loaded": "535.1", "installed": [TREE] * 20}
    before = memory()
    longest, said = attacked(served, PIPELINE.replace("CALLS", repr(calls)))
    assert said.startswith("here\nsent "), said
    grown = memory() - before
    note("socket", f"pipelines: {name}", connections=32, slowest_ms=round(longest * 1000), grown_kb=grown)
    assert longest < SECONDS
    assert grown < 32 * 1024
    assert served.asked == []
    assert served.log.lines == []


def test_a_thousand_clients_at_once(public: Path) -> None:
    served = start(public / "socket")
    try:
        before = memory(), descriptors()
        longest, said = attacked(served, CROWD)
        answered, closed, refused, half = map(int, said.split())
        eventually(lambda: served.clients() == 0)
        grown = memory() - before[0]
        note(
            "socket",
            "a thousand clients of one user at once",
            answered=answered,
            closed=closed,
            slowest_ms=round(longest * 1000),
            grown_kb=grown,
        )
        assert answered + closed == 1000, said
        assert answered >= Limits().each
        assert (refused, half) == (0, 0)
        assert longest < SECONDS
        assert grown < 32 * 1024
        assert descriptors() <= before[1] + 1
    finally:
        served.close()


def test_ten_thousand_come_and_go(served: Fixture) -> None:
    client.fetch(str(served.path), "/")
    before, began = (memory(), descriptors()), time.monotonic()
    longest, said = attacked(served, CHURN)
    assert said == "done\n"
    seconds = time.monotonic() - began
    eventually(lambda: served.clients() == 0)
    assert served.server._turns == {}
    grown = memory() - before[0]
    note(
        "socket",
        "ten thousand connections one after the other",
        seconds=round(seconds, 1),
        slowest_ms=round(longest * 1000),
        grown_kb=grown,
    )
    assert descriptors() <= before[1] + 1
    assert grown < 16 * 1024
    assert longest < SECONDS
    assert served.log.lines == []


def test_followers_who_never_read_while_much_changes(public: Path) -> None:
    # Long enough that all of them follow before the first is dropped, less than is waited for that below.
    served = start(public / "socket", Limits(stall=4.0))
    try:
        served.document["big"] = "x" * 300_000
        held = [served.connect() for _ in range(30)]
        for connection in held:
            connection.sendall(wire.call("io.nvidiad.GetStatus", more=True))
        eventually(lambda: len(served.server._followers) == 30)
        before, longest = memory(), 0.0
        for number in range(100):
            served.publish(summary=f"change {number}")
            longest = max(longest, slowest(served, iter([False, True]).__next__))
        grown = memory() - before
        note(
            "socket",
            "followers who never read",
            followers=30,
            slowest_ms=round(longest * 1000),
            grown_kb=grown,
        )
        # Each may have one answer on its way, however many changes there were.
        assert grown < 32 * 1024
        assert longest < SECONDS
        eventually(lambda: served.clients() == 0)
        for connection in held:
            connection.close()
        assert served.log.lines == []
    finally:
        served.close()


@pytest.mark.parametrize(
    ("name", "begin", "more"),
    [
        ("a message without end", b"{", b"x" * 4096),
        ("a head without end", b"GET / HTTP/1.1\r\n", b"X-Line: x\r\n" * 256),
        ("a head of one line", b"GET /", b"x" * 4096),
        (
            "a body of which a gigabyte is announced",
            b"GET / HTTP/1.1\r\nContent-Length: 1073741824\r\n\r\n",
            b"x" * 4096,
        ),
    ],
)
def test_what_never_ends_is_cut_off(served: Fixture, name: str, begin: bytes, more: bytes) -> None:
    before, taken = memory(), len(begin)
    with served.connect() as connection:
        connection.sendall(begin)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while taken < 4 << 20:
                taken += connection.send(more)
    assert taken < 4 << 20, name
    assert memory() - before < 8 * 1024
    assert client.fetch(str(served.path), "/status")[0] == 200


def test_a_hundred_who_speak_byte_by_byte_are_dropped(public: Path) -> None:
    # Long enough that all of them have come before the first is dropped.
    served = start(public / "socket", Limits(idle=4.0))
    try:
        held = []
        for _ in range(100):
            connection = served.connect()
            connection.sendall(b"G")
            held.append(connection)
        eventually(lambda: served.clients() == 100)
        began = time.monotonic()
        while served.clients() and time.monotonic() - began < 30:
            for connection in held:
                with contextlib.suppress(OSError):
                    connection.send(b"E")
            assert slowest(served, iter([False, True]).__next__) < SECONDS
        assert served.clients() == 0
        for connection in held:
            connection.close()
    finally:
        served.close()


def test_the_client_waits_for_its_turn_in_a_crowd(public: Path) -> None:
    path = str(public / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as early:
        listener.bind(path)
        listener.listen(0)
        early.connect(path)
        with pytest.raises(Failure, match="does not answer"):
            client.status(path, timeout=0.2)
        answers: list[tuple[int, bytes]] = []
        late = threading.Thread(target=lambda: answers.append(client.fetch(path, "/", timeout=30)))
        late.start()
        listener.accept()[0].close()
        connection, _ = listener.accept()
        with connection:
            connection.recv(9999)
            connection.sendall(wire.response(200, b"at last\n"))
        late.join()
        assert answers == [(200, b"at last\n")]


def test_who_is_one_too_many_is_told_by_the_client(public: Path) -> None:
    served = start(public / "socket", Limits(total=2, reserved=0, each=2))
    try:
        held = [served.connect() for _ in range(2)]
        eventually(lambda: served.clients() == 2)
        for ask in (client.status, lambda path: client.call(path, "io.nvidiad.GetStatus")):
            with pytest.raises(Failure, match="closed the connection, as it does where one user has"):
                ask(str(served.path))
        for connection in held:
            connection.close()
    finally:
        served.close()


# ---------------------------------------------------------------------------------------------------
# Who may act


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a GET", b"GET /reconcile HTTP/1.1\r\n\r\n"),
        ("a GET with a query", b"GET /status?method=io.nvidiad.Reconcile HTTP/1.1\r\n\r\n"),
        (
            "a form of another site",
            b"POST / HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.example\r\n\r\n" + RECONCILE,
        ),
        ("a call in a POST", b"POST / HTTP/1.1\r\nContent-Length: 33\r\n\r\n" + RECONCILE),
        ("a call behind a GET", b"GET / HTTP/1.1\r\n\r\n" + RECONCILE),
        ("a call behind a GET of 1.0", b"GET / HTTP/1.0\n\n" + RECONCILE),
        ("a call behind a head that is none", b"X\r\n\r\n" + RECONCILE),
        ("an upgrade", b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: varlink\r\n\r\n" + RECONCILE),
        ("a request of a proxy", b"GET http://localhost/ HTTP/1.1\r\n\r\n" + RECONCILE),
        ("a call behind a call that follows", wire.call("io.nvidiad.GetStatus", more=True) + RECONCILE),
        ("a call behind what is none", b'{"method":1}\0' + RECONCILE),
        ("a call behind white space", b"\n" + RECONCILE),
    ],
)
def test_nothing_but_a_call_acts(served: Fixture, name: str, data: bytes) -> None:
    """Even for root: a browser, a proxy or a redirect can make requests, and no such one does anything."""
    answer = served.say(data)
    assert served.asked == [], name
    assert b"Access-Control" not in answer
    assert answer.count(b"HTTP/1.1 ") <= 1


def test_root_of_a_user_namespace_is_who_made_it(served: Fixture) -> None:
    unshare = shutil.which("unshare")
    become = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "--"]
    # Nobody else may read root's own interpreter.
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    command = [*become, str(unshare), "--map-root-user", "--user", python, "-I", "-c"]
    if unshare is None or subprocess.run([*command, ""], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make user namespaces, or read this Python")
    done = subprocess.run(
        [*command, f"import sys\n{RAW}", str(served.path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert '"error":"io.nvidiad.NotAuthorized","parameters":{"uid":1234}' in done.stdout, done.stderr
    assert served.asked == []


def test_who_connected_is_who_acts(served: Fixture) -> None:
    """As the kernel has it: a connection that root passes on is root's, and one of others stays theirs."""
    with served.connect() as mine:
        code = "import os, socket; os.setgid(1234); os.setuid(1234)\n"
        code += f"socket.socket(fileno={mine.fileno()}).send({RECONCILE!r})"
        subprocess.run([sys.executable, "-c", code], pass_fds=[mine.fileno()], check=True, timeout=30)
        assert read_message(mine) == {"parameters": {}}
    assert served.asked == [f"asked by uid 0, pid {os.getpid()}"]


def test_who_is_dead_is_who_it_was(served: Fixture) -> None:
    """The process that connected may be gone, and its number another's: it decides nothing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        code = (
            "import array, os, socket, sys\n"
            "os.setgroups([]); os.setgid(1234); os.setuid(1234)\n"
            "made = socket.socket(socket.AF_UNIX); made.connect(sys.argv[1])\n"
            f"socket.send_fds(socket.socket(fileno={theirs.fileno()}), [b'x'], [made.fileno()])\n"
        )
        subprocess.run(
            [sys.executable, "-c", code, str(served.path)],
            pass_fds=[theirs.fileno()],
            check=True,
            timeout=30,
        )
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
        with socket.socket(fileno=descriptor) as connection:
            connection.settimeout(10)
            connection.sendall(RECONCILE)
            assert read_message(connection)["error"] == wire.Error.NOT_AUTHORIZED
    assert served.asked == []


def test_the_group_is_one_of_all_that_a_process_has(
    served: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "group_id", lambda _: 4321)
    assert "NotAuthorized" in as_user(served, RAW, user=65534, groups=(65534,))
    assert '{"parameters":{}}' in as_user(served, RAW, user=65534, groups=(*range(5000, 5200), 4321))
    # More than the kernel is asked for: who has so many is known by the first of them only, and refused.
    assert "NotAuthorized" in as_user(served, RAW, user=65534, groups=(*range(5000, 5300), 4321))
    assert len(served.asked) == 1
