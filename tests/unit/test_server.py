# SPDX-License-Identifier: Apache-2.0
"""The server and the client, over real sockets: conversations, refusals, limits and bad manners."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.rim import client, conversation, server
from nvidiad.rim.conversation import Limits
from nvidiad.thought import wire
from nvidiad.thought.metrics import Counters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

ROOT = Path(client.__file__).parents[2]
TREE = {
    "path": "/opt/nvidia/535.1/3975.2.0",
    "driver": "535.1",
    "os": "3975.2.0",
    "kernel": "6.6.1",
    "product": "",
    "flavour": "open",
    "current": True,
    "wanted": True,
    "staged": False,
    "loaded": True,
}


class Quiet:
    """A log that keeps what is worse than debug."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def debug(self, event: str, **fields: object) -> None: ...

    def info(self, event: str, **fields: object) -> None:
        self.lines.append(event)

    warning = error = info


class Fixture:
    """A server on a path, its loop in a thread, so that plain sockets can talk to it."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self.path = path
        self.log = Quiet()
        self.document: dict[str, object] = {
            "schema": 1,
            "phase": "ready",
            "summary": "driver 535.1 is in force",
            "driver": {"wanted": "535.1", "loaded": "535.1", "installed": [TREE]},
        }
        self.asked: list[str] = []
        self.unhandled: list[dict[str, Any]] = []
        self.reading: Callable[[], server.Snapshot] = lambda: server.Snapshot(
            self.document, Counters(looks=3)
        )
        self.server = server.Server(
            lambda: self.reading(),
            self.asked.append,
            log=self.log,
            version="1.2",
            now=lambda: 0.0,
            limits=limits,
        )
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self.unhandled.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.listener: socket.socket | None = None

    def run(self, work: Awaitable[Any]) -> Any:
        async def do() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result(60)

    def publish(self, **news: object) -> None:
        self.document = self.document | news
        self._loop.call_soon_threadsafe(self.server.changed)

    def clients(self) -> int:
        return len(self.server._clients)

    def close(self) -> None:
        self.run(self.server.stop())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        assert self.unhandled == []

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(str(self.path))
        return connection

    def say(self, data: bytes, *, half_close: bool = True) -> bytes:
        """All that comes back until the server closes."""
        with self.connect() as connection:
            # The server may close in the middle of what it refuses.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
            return everything(connection)

    def varlink(self, *calls: bytes) -> list[dict[str, Any]]:
        return messages(self.say(b"".join(calls)))


def everything(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            answer += data
    return answer


def messages(data: bytes) -> list[dict[str, Any]]:
    assert not data or data.endswith(b"\0")
    return [json.loads(message) for message in data.split(b"\0")[:-1]]


def read_message(connection: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\0"):
        got = connection.recv(1)
        assert got, f"closed after {data!r}"
        data += got
    value: dict[str, Any] = json.loads(data[:-1])
    return value


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come to pass")


def start(path: Path, limits: Limits | None = None) -> Fixture:
    fixture = Fixture(path, limits)
    fixture.run(fixture.server.start(path))
    return fixture


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everyone may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def served(public: Path) -> Iterator[Fixture]:
    fixture = start(public / "io.nvidiad")
    yield fixture
    fixture.close()


# ---------------------------------------------------------------------------------------------------
# Varlink


def test_info(served: Fixture) -> None:
    (answer,) = served.varlink(wire.call("org.varlink.service.GetInfo"))
    assert answer["parameters"]["version"] == "1.2"
    assert answer["parameters"]["interfaces"] == ["org.varlink.service", "io.nvidiad"]


@pytest.mark.parametrize("interface", server.INTERFACES)
def test_every_interface_has_a_description(served: Fixture, interface: str) -> None:
    call = wire.call("org.varlink.service.GetInterfaceDescription", {"interface": interface})
    (answer,) = served.varlink(call)
    assert f"interface {interface}\n" in answer["parameters"]["description"]


def test_every_documented_method_answers(served: Fixture) -> None:
    for interface in server.INTERFACES:
        for line in server.description(interface).splitlines():
            if line.startswith("method "):
                method = line.removeprefix("method ").partition("(")[0]
                (answer,) = served.varlink(wire.call(f"{interface}.{method}"))
                assert answer.get("error") in (None, wire.Error.INVALID_PARAMETER), line


def test_status_list_and_metrics(served: Fixture) -> None:
    calls = [wire.call(f"io.nvidiad.{name}") for name in ("GetStatus", "List", "GetMetrics")]
    status, trees, page = (answer["parameters"] for answer in served.varlink(*calls))
    assert status["status"] == served.document
    assert trees["trees"] == [TREE]
    assert "nvidiad_looks_total 3\n" in page["metrics"]


@pytest.mark.parametrize(
    ("message", "error", "parameters"),
    [
        (wire.call("io.nvidiad.Nothing"), "MethodNotFound", {"method": "io.nvidiad.Nothing"}),
        (wire.call("com.example.Nothing"), "InterfaceNotFound", {"interface": "com.example"}),
        (wire.call("io.nvidiad.GetStatus", {"verbose": True}), "InvalidParameter", {"parameter": "verbose"}),
        (wire.call("io.nvidiad.GetStatus", {"x": 1}, more=True), "InvalidParameter", {"parameter": "x"}),
        (
            wire.call("org.varlink.service.GetInterfaceDescription", {"interface": "../../etc/passwd"}),
            "InterfaceNotFound",
            {"interface": "../../etc/passwd"},
        ),
        (
            wire.call("org.varlink.service.GetInterfaceDescription"),
            "InvalidParameter",
            {"parameter": "interface"},
        ),
        (
            b'{"method":"io.nvidiad.List","upgrade":true}\0',
            "MethodNotImplemented",
            {"method": "io.nvidiad.List"},
        ),
    ],
)
def test_refusals(served: Fixture, message: bytes, error: str, parameters: dict[str, object]) -> None:
    (answer,) = served.varlink(message)
    assert answer == {"error": f"org.varlink.service.{error}", "parameters": parameters}


def test_a_refusal_does_not_end_the_conversation(served: Fixture) -> None:
    first, second = served.varlink(wire.call("io.nvidiad.Nothing"), wire.call("io.nvidiad.GetStatus"))
    assert "error" in first and "parameters" in second


def test_oneway_is_not_answered(served: Fixture) -> None:
    oneway = b'{"method":"io.nvidiad.Nothing","oneway":true}\0'
    (answer,) = served.varlink(oneway, wire.call("org.varlink.service.GetInfo"))
    assert answer["parameters"]["product"] == "nvidiad"


def test_followers_hear_of_every_change(served: Fixture) -> None:
    with served.connect() as connection:
        connection.sendall(wire.call("io.nvidiad.GetStatus", more=True))
        first = read_message(connection)
        assert first["continues"] is True and first["parameters"]["status"]["phase"] == "ready"
        served.publish()
        served.publish(phase="converging")
        assert read_message(connection)["parameters"]["status"]["phase"] == "converging"
        served.publish(phase="blocked")
        assert read_message(connection)["parameters"]["status"]["phase"] == "blocked"
    eventually(lambda: served.clients() == 0)
    assert not served.server._followers


def test_a_follower_that_says_more_is_let_go(served: Fixture) -> None:
    follow = wire.call("io.nvidiad.GetStatus", more=True)
    with served.connect() as connection:
        connection.sendall(follow)
        read_message(connection)
        connection.sendall(follow)
        assert everything(connection) == b""
    (answer,) = served.varlink(follow, follow)
    assert answer["error"] == wire.Error.INVALID_MESSAGE


# ---------------------------------------------------------------------------------------------------
# Who may act


def as_user(
    served: Fixture, code: str, *, user: int, groups: tuple[int, ...] = (), imports: str = "_socket"
) -> str:
    """Run client code as someone else; the package is read from where this process has it."""
    if os.getuid() != 0:
        pytest.skip("needs root to become someone else")
    # As root until Python and the client are loaded: nobody else may read root's interpreter and checkout.
    become = f"import os\nos.setgroups({list(groups)})\nos.setgid({user})\nos.setuid({user})"
    load = f"import sys, {imports}\nsys.path.insert(0, {str(ROOT)!r})\nfrom nvidiad.rim import client"
    body = f"{load}\n{become}\n{code}"
    result = subprocess.run(
        [sys.executable, "-c", body, str(served.path)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd="/",
    )
    return result.stdout + result.stderr


RAW = """
import _socket as s, time
c = s.socket(s.AF_UNIX); c.settimeout(10); c.connect(sys.argv[1])
c.send(b'{"method":"io.nvidiad.Reconcile"}\\0')
print(c.recv(9999).rstrip(b'\\0').decode())
"""


def test_root_may_act(served: Fixture) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root")
    assert client.call(str(served.path), "io.nvidiad.Reconcile") == {}
    assert served.asked == [f"asked by uid 0, pid {os.getpid()}"]


def test_others_may_read_and_not_act(served: Fixture) -> None:
    assert '"error":"io.nvidiad.NotAuthorized","parameters":{"uid":1234}' in as_user(served, RAW, user=1234)
    assert served.asked == []
    read = "print(client.status(sys.argv[1])[0])"
    assert as_user(served, read, user=1234) == "ready\n"


def test_the_group_may_act(served: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    # The group need not exist where the tests run; which of the numbers it has is all that is pretended.
    monkeypatch.setattr(server, "group_id", lambda name: 4321 if name == "nvidiad" else None)
    assert "NotAuthorized" in as_user(served, RAW, user=1234, groups=(1, 2))
    assert served.asked == []
    assert '{"parameters":{}}' in as_user(served, RAW, user=1234, groups=(1, 4321))
    assert served.asked and served.asked[0].startswith("asked by uid 1234")


def test_a_directory_that_answers_slowly_keeps_nobody_from_reading(
    served: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group may be in a directory service; a user's other clients do not wait for that."""
    asked, go_on = threading.Event(), threading.Event()

    def slow(_name: str) -> None:
        asked.set()
        assert go_on.wait(30)

    monkeypatch.setattr(server, "group_id", slow)
    both = (
        "import _socket as s\n"
        "a = s.socket(s.AF_UNIX); a.connect(sys.argv[1])\n"
        'a.send(b\'{"method":"io.nvidiad.Reconcile"}\\0\' * 3)\n'
        "b = s.socket(s.AF_UNIX); b.settimeout(20); b.connect(sys.argv[1])\n"
        'b.send(b\'{"method":"io.nvidiad.GetStatus"}\\0\')\n'
        "print(b.recv(100))\n"
    )
    try:
        assert "parameters" in as_user(served, both, user=1234)
        # In a thread of the server's, which may come to it after the answer to the other client.
        assert asked.wait(20)
    finally:
        go_on.set()


def test_a_missing_group_is_none() -> None:
    assert conversation.group_id("no-such-group") is None
    assert conversation.group_id("root") == 0


# ---------------------------------------------------------------------------------------------------
# HTTP


def get(served: Fixture, target: str) -> tuple[str, str]:
    head, _, body = served.say(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).partition(b"\r\n\r\n")
    return head.decode(), body.decode()


def test_pages(served: Fixture) -> None:
    head, body = get(served, "/status")
    assert "200 OK" in head and "application/json" in head and "Nvidiad-Phase: ready" in head
    assert json.loads(body) == served.document
    assert get(served, "/status?json=pretty")[1].count("\n") > 10
    head, body = get(served, "/status.txt")
    assert "text/plain" in head and body.startswith("● ready - driver 535.1 is in force\n")
    assert "\x1b[" in get(served, "/status.txt?colour=yes")[1]
    head, body = get(served, "/metrics")
    assert "version=0.0.4" in head and "nvidiad_ready 1\n" in body
    assert "GET /status" in get(served, "/")[1]


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /nothing HTTP/1.1", "404 Not Found"),
        ("GET /../status HTTP/1.1", "404 Not Found"),
        ("POST /status HTTP/1.1", "405 Method Not Allowed"),
        ("DELETE /status HTTP/1.0", "405 Method Not Allowed"),
        ("NONSENSE", "400 Bad Request"),
        ("GET /status HTTP/3.0", "505 HTTP Version Not Supported"),
    ],
)
def test_http_refusals(served: Fixture, request_line: str, status: str) -> None:
    answer = served.say(f"{request_line}\r\n\r\n".encode())
    assert answer.startswith(f"HTTP/1.1 {status}\r\n".encode())


def test_curl(served: Fixture) -> None:
    curl = shutil.which("curl")
    if not curl:
        pytest.skip("needs curl")
    command = [curl, "-sS", "--fail", "--unix-socket", str(served.path), "http://localhost/status"]
    assert (
        json.loads(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)["schema"]
        == 1
    )


def test_varlinkctl(served: Fixture) -> None:
    varlinkctl = shutil.which("varlinkctl")
    if not varlinkctl:
        pytest.skip("needs varlinkctl")

    def run(*arguments: str) -> str:
        command = [varlinkctl, *arguments]
        return subprocess.run(command, capture_output=True, check=True, text=True, timeout=30).stdout

    address = str(served.path)
    assert "io.nvidiad" in run("info", address)
    assert "method GetStatus()" in run("introspect", address, "io.nvidiad")
    assert (
        json.loads(run("call", "--json=short", address, "io.nvidiad.GetStatus", "{}"))["status"]["schema"]
        == 1
    )


# ---------------------------------------------------------------------------------------------------
# Bad manners


GARBAGE = [
    b"\x16\x03\x01\x02\x00" + bytes(range(256)),
    b"\0",
    b"hello\n",
    b"{",
    b"{}\0",
    b"{" * 70000,
    b"{" + b"x" * 5000 + b"\0",
    b'{"method":"io.nvidiad.GetStatus"',
    b'{"method":"io.nvidiad.GetStatus"}\0{"half',
    b'{"method":"\xff"}\0',
    b'{"method":"io.nvidiad.\\ud800"}\0',
    b'{"method":"a.b","parameters":' + b"[" * 30000 + b"\0",
    b"GET",
    b"GET / HTTP/1.1\r\nHost:",
    b"GET /" + b"x" * 20000,
    b"ZZZ\r\n\r\n",
    b"",
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_refused_or_dropped(served: Fixture, data: bytes) -> None:
    answer = served.say(data)
    assert answer[:1] in (b"", b"{", b"H")
    assert client.fetch(str(served.path), "/status")[0] == 200
    eventually(lambda: served.clients() == 0)
    assert served.log.lines == []


def test_garbage_with_a_sudden_end(served: Fixture) -> None:
    for data in GARBAGE:
        connection = served.connect()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(data)
        connection.close()
    eventually(lambda: served.clients() == 0)
    assert client.fetch(str(served.path), "/status")[0] == 200
    assert served.log.lines == []


def test_an_oversize_message_is_answered_and_ends_it(served: Fixture) -> None:
    answer = served.varlink(b'{"method":"' + b"x" * wire.MESSAGE_LIMIT + b'"}\0')
    assert [a["error"] for a in answer] == [wire.Error.INVALID_MESSAGE]


def test_the_idle_and_the_slow_are_dropped(tmp_path: Path) -> None:
    served = start(tmp_path / "socket", Limits(idle=1.0))
    follower = served.connect()
    follower.sendall(wire.call("io.nvidiad.GetStatus", more=True))
    read_message(follower)
    said = (b"", b'{"method"', b"GET / HTTP/1.1\r\n", wire.call("org.varlink.service.GetInfo"))
    with ThreadPoolExecutor(len(said)) as threads:
        answers = threads.map(lambda data: served.say(data, half_close=False), said)
        assert [len(messages(answer)) for answer in answers] == [0, 0, 0, 1]
    # A byte now and then does not keep it either.
    with served.connect() as slow, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(100):
            slow.send(b"{")
            threading.Event().wait(0.02)
        raise AssertionError("was not dropped")
    # Who follows may be silent.
    served.publish(phase="blocked")
    assert read_message(follower)["parameters"]["status"]["phase"] == "blocked"
    follower.close()
    served.close()


def test_who_does_not_read_is_dropped_and_disturbs_nobody(tmp_path: Path) -> None:
    # Also the limit of each answer to those who do read.
    served = start(tmp_path / "socket", Limits(stall=2.0))
    served.document["big"] = "x" * 2_000_000
    greedy, silent = served.connect(), served.connect()
    eventually(lambda: served.clients() == 2)
    with contextlib.suppress(BlockingIOError, TimeoutError, BrokenPipeError, ConnectionResetError):
        greedy.settimeout(0.2)
        greedy.sendall(wire.call("io.nvidiad.GetStatus") * 20000)
    silent.sendall(wire.call("io.nvidiad.GetStatus", more=True))
    for _ in range(20):
        assert client.fetch(str(served.path), "/status")[0] == 200
        served.publish(summary="again")
    eventually(lambda: served.clients() == 0)
    assert len(everything(greedy)) < 4_000_000
    greedy.close()
    silent.close()
    served.close()
    assert served.log.lines == []


def test_there_is_room_for_so_many(tmp_path: Path) -> None:
    served = start(tmp_path / "socket", Limits(total=8, reserved=2, each=4))
    held = [served.connect() for _ in range(8)]
    eventually(lambda: served.clients() == 8 if os.getuid() == 0 else served.clients() == 4)
    with served.connect() as late:
        assert everything(late) == b""
    for connection in held:
        connection.close()
    eventually(lambda: served.clients() == 0)
    assert client.fetch(str(served.path), "/")[0] == 200
    served.close()


CROWD = """
import _socket as s
def ask():
    c = s.socket(s.AF_UNIX); c.settimeout(10); c.connect(sys.argv[1])
    try:
        c.send(b'{"method":"org.varlink.service.GetInfo"}\\0')
        return c, bool(c.recv(9999))
    except OSError:
        return c, False
print(sum(ok for _, ok in [ask() for _ in range(12)]))
"""


def test_each_user_has_a_share_and_root_has_room_left(public: Path) -> None:
    served = start(public / "socket", Limits(total=8, reserved=2, each=4))
    try:
        assert as_user(served, CROWD, user=1234) == "4\n"
        assert client.fetch(str(served.path), "/")[0] == 200
    finally:
        served.close()


def test_a_fault_of_ours_ends_one_conversation(served: Fixture) -> None:
    def fail() -> server.Snapshot:
        raise ZeroDivisionError("a bug")

    good, served.reading = served.reading, fail
    assert served.say(b"GET /status HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 500 ")
    for more in (False, True):
        (answer,) = served.varlink(wire.call("io.nvidiad.GetStatus", more=more))
        assert answer["error"] == wire.Error.INTERNAL
    served.reading = good
    assert client.fetch(str(served.path), "/status")[0] == 200
    assert served.log.lines == ["a client's request failed"] * 3


# ---------------------------------------------------------------------------------------------------
# The socket itself


def test_a_path_is_made_for_everyone_and_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "run" / "io.nvidiad"
    served = start(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert sorted(path.parent.iterdir()) == [path]
    served.close()
    assert list(path.parent.iterdir()) == []


def test_what_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "io.nvidiad"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    served = start(path)
    assert client.fetch(str(path), "/")[0] == 200
    with pytest.raises(Failure, match="another nvidiad"):
        server.listen(path)
    served.close()


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "io.nvidiad"
    path.write_text("mine")
    with pytest.raises(Failure, match="is no socket"):
        server.listen(path)
    assert path.read_text() == "mine"


def test_an_activated_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "io.nvidiad"
    listener = server.listen(path)
    kept = listener.dup()
    fixture = Fixture(path)
    fixture.run(fixture.server.start(listener))
    assert client.fetch(str(path), "/")[0] == 200
    fixture.close()
    assert path.exists()
    # A client that comes while the daemon restarts is answered by the next one.
    with fixture.connect() as early:
        early.sendall(wire.call("org.varlink.service.GetInfo"))
        again = Fixture(path)
        again.run(again.server.start(kept))
        assert read_message(early)["parameters"]["product"] == "nvidiad"
    again.close()


def test_stop_ends_all_conversations(served: Fixture) -> None:
    follower, idle = served.connect(), served.connect()
    follower.sendall(wire.call("io.nvidiad.GetStatus", more=True))
    read_message(follower)
    served.run(served.server.stop())
    assert everything(follower) == everything(idle) == b""
    follower.close()
    idle.close()


# ---------------------------------------------------------------------------------------------------
# The client


def test_client_reads_status(served: Fixture) -> None:
    path = str(served.path)
    phase, text = client.status(path)
    assert phase == "ready" and text.decode().startswith("● ready")
    phase, text = client.status_json(path, pretty=True)
    assert phase == "ready" and json.loads(text) == served.document
    assert client.fetch(path, "/nothing")[0] == 404
    assert client.call(path, "io.nvidiad.GetStatus")["status"] == served.document


def test_client_follows(served: Fixture) -> None:
    changes = client.follow(str(served.path), "io.nvidiad.GetStatus")
    assert next(changes)["status"] == served.document
    served.publish(phase="waiting")
    assert next(changes)["status"] == served.document
    changes.close()  # type: ignore[attr-defined]


def test_client_raises_what_the_daemon_refuses(served: Fixture) -> None:
    with pytest.raises(Failure, match="MethodNotFound") as caught:
        client.call(str(served.path), "io.nvidiad.Nothing")
    assert caught.value.code is Code.INTERNAL


def test_client_says_when_nobody_answers(tmp_path: Path) -> None:
    path = tmp_path / "io.nvidiad"
    with pytest.raises(Failure, match="not running") as caught:
        client.status(str(path))
    assert caught.value.code is Code.NOT_RUNNING and "systemctl start" in caught.value.remedy
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        with pytest.raises(Failure, match="not running"):
            client.status(str(path))
        other.listen()
        with pytest.raises(Failure, match="does not answer"):
            client.status(str(path), timeout=0.1)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"nonsense\r\n\r\n",
        b"[]\0",
        b"{",
    ],
)
def test_client_is_not_confused_by_strangers(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "io.nvidiad"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                connection.recv(9999)
                connection.sendall(answer)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        for ask in (
            lambda: client.status(str(path)),
            lambda: client.call(str(path), "io.nvidiad.GetStatus"),
        ):
            with pytest.raises(Failure) as caught:
                ask()
            assert caught.value.code is Code.NOT_RUNNING
        thread.join()


def test_client_imports_next_to_nothing() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules);"
        "import nvidiad.rim.client; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == ["__future__", "_socket", "nvidiad", "nvidiad.rim", "nvidiad.rim.client"]
