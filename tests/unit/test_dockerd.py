# SPDX-License-Identifier: Apache-2.0
"""The engine's socket with something at its other end that no real engine would be for long."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.thought import pull as pulling
from nvidiad.world.images import DockerImages, Timeouts
from nvidiad.world.trees import Trees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nvidiad.nouns.model import Progress

REFERENCE = "reg.test/nv:1"
DIGEST = "sha256:" + "a" * 64
VERSION = {"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Version": "20.10.24"}


class Handler(BaseHTTPRequestHandler):
    """Answers as `Engine.answers` has it; whatever else is asked is not found."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[dict[str, Callable[[Handler], None]]]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        for end, answer in self.answers.items():
            if path.endswith(end):
                return answer(self)
        return self.say({"message": f"no such image: {path}"}, 404)

    do_POST = do_DELETE = do_GET

    def say(self, document: object, status: int = 200) -> None:
        self.text(json.dumps(document), status)

    def text(self, text: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def events(self, *events: object, end: bool = True) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events:
            self.chunk(event if isinstance(event, str) else json.dumps(event) + "\r\n")
        if end:
            self.wfile.write(b"0\r\n\r\n")

    def chunk(self, text: str) -> None:
        self.wfile.write(f"{len(text):x}\r\n{text}\r\n".encode())
        self.wfile.flush()

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *_: Any) -> None:
        return


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        return  # a client that hangs up is what some of these tests are about


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., DockerImages]]:
    """A function that puts an engine with these answers behind a socket, and DockerImages before it."""
    # How long a name server thinks about a registry that does not exist is not what is measured here.
    monkeypatch.setattr(DockerImages, "_beside", lambda *_: None)
    servers = []

    def make(
        answers: dict[str, Callable[[Handler], None]], stall: float = 2, total: float = 20
    ) -> DockerImages:
        path = tmp_path / "docker.sock"
        usual = {"/version": lambda h: h.say(VERSION), "/images/json": lambda h: h.say([])}
        handler = type("Answering", (Handler,), {"answers": {**usual, **answers}})
        server = Server(str(path), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return DockerImages(f"unix://{path}", None, Timeouts(1, stall, total))

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def quiet(_: Progress) -> None:
    return


def failed(action: Callable[[], object]) -> tuple[Failure, float]:
    begun = time.monotonic()
    with pytest.raises(Failure) as caught:
        action()
    return caught.value, time.monotonic() - begun


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda h: h.say({"ApiVersion": "1.24", "Version": "1.12.6"}), Code.ENGINE_TOO_OLD),
        (lambda h: h.text("<html>"), Code.ENGINE_UNREACHABLE),
        (lambda h: h.say({"ApiVersion": "x"}), Code.ENGINE_UNREACHABLE),
        (lambda h: h.say({"message": "starting"}, 503), Code.ENGINE_UNREACHABLE),
        (lambda h: h.wfile.write(b"220 smtp ready\r\n"), Code.ENGINE_UNREACHABLE),
    ],
    ids=["old", "html", "no version", "unwilling", "not http"],
)
def test_what_is_no_engine_of_today_is_told_apart(
    fake: Callable[..., DockerImages], answer: Callable[[Handler], None], code: Code
) -> None:
    failure, _ = failed(lambda: fake({"/version": answer}).resolve(REFERENCE))
    assert failure.code == code
    assert failure.remedy


@pytest.mark.parametrize(
    ("newest", "oldest", "spoken"),
    [("1.41", "1.12", "v1.41"), ("1.52", "1.44", "v1.45"), ("1.60", "1.50", "v1.50")],
)
def test_requests_carry_a_version_that_both_know(
    fake: Callable[..., DockerImages], newest: str, oldest: str, spoken: str
) -> None:
    asked = []

    def distribution(handler: Handler) -> None:
        asked.append((handler.path, handler.headers["X-Registry-Auth"]))
        handler.say({"Descriptor": {"digest": DIGEST}})

    version = {"ApiVersion": newest, "MinAPIVersion": oldest}
    images = fake({"/version": lambda h: h.say(version), "/distribution/reg.test/nv:1/json": distribution})
    assert images.resolve(REFERENCE) == DIGEST
    assert asked == [(f"/{spoken}/distribution/reg.test/nv:1/json", "e30=")]  # {}: nobody, not root


def test_a_digest_that_is_none_is_refused(fake: Callable[..., DockerImages]) -> None:
    images = fake({"/nv:1/json": lambda h: h.say({"Descriptor": {"digest": "sha256:../../etc"}})})
    failure, _ = failed(lambda: images.resolve(REFERENCE))
    assert failure.code == Code.PULL_FAILED


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([{"status": "Pulling"}, {"errorDetail": {"message": "unknown blob"}}], Code.IMAGE_CORRUPT),
        ([{"status": "Pulling"}, {"error": "unknown blob"}], Code.IMAGE_CORRUPT),
        (['{"status": "Pul', 'ling"}\r\n{"error": "no space ', 'left on device"}\r\n'], Code.DISK_FULL),
        (['{"status": "half an event"'], Code.IMAGE_CORRUPT),
        (["[]\r\n7\r\nnull\r\n"], Code.IMAGE_CORRUPT),
        ([], Code.IMAGE_CORRUPT),
    ],
    ids=["errorDetail", "error", "in pieces", "half", "no events", "nothing"],
)
def test_a_stream_without_an_image_at_its_end_is_never_success(
    fake: Callable[..., DockerImages], events: list[object], code: Code
) -> None:
    images = fake({"/images/create": lambda h: h.events(*events)})
    failure, _ = failed(lambda: images.pull(REFERENCE, DIGEST, quiet))
    assert failure.code == code


def test_another_digest_than_the_wanted_is_never_success(fake: Callable[..., DockerImages]) -> None:
    pulled: list[str] = []

    def image(handler: Handler) -> None:
        if pulled:
            handler.say({"RepoDigests": [f"reg.test/nv@sha256:{'b' * 64}"]})
        else:
            handler.say({"message": "No such image: x"}, 404)

    def create(handler: Handler) -> None:
        pulled.append(handler.path)
        handler.events({"status": "Status: Downloaded newer image"})

    images = fake({f"%40{DIGEST}/json": image, "/images/create": create})
    failure, _ = failed(lambda: images.pull(REFERENCE, DIGEST, quiet))
    assert failure.code == Code.IMAGE_CORRUPT
    assert pulled == ["/v1.41/images/create?fromImage=reg.test%2Fnv&tag=sha256%3A" + "a" * 64]


def test_silence_ends_a_pull_though_the_connection_stays_open(fake: Callable[..., DockerImages]) -> None:
    done = threading.Event()

    def create(handler: Handler) -> None:
        handler.events(
            {"id": "a", "status": "Downloading", "progressDetail": {"current": 1, "total": 9}}, end=False
        )
        done.wait(20)

    answers: dict[str, Callable[[Handler], None]] = {
        "/images/create": create,
        "/_ping": lambda h: h.text("OK"),
    }
    failure, seconds = failed(lambda: fake(answers, stall=3).pull(REFERENCE, DIGEST, quiet))
    done.set()
    assert failure.code == Code.REGISTRY_STALLED
    assert 3 <= seconds < 20


def test_an_engine_that_repeats_itself_is_silent_too(fake: Callable[..., DockerImages]) -> None:
    def create(handler: Handler) -> None:
        handler.events(end=False)
        for _ in range(200):
            handler.chunk('{"id": "a", "status": "Extracting", "progressDetail": {"current": 5}}\r\n')
            time.sleep(0.05)

    failure, seconds = failed(
        lambda: fake({"/images/create": create}, stall=1).pull(REFERENCE, DIGEST, quiet)
    )
    assert failure.code == Code.PULL_TIMEOUT
    assert "unpacking" in failure.sentence
    assert 1 <= seconds < 20


def test_an_engine_that_is_silent_to_everybody_is_the_one_to_blame(
    fake: Callable[..., DockerImages],
) -> None:
    done = threading.Event()
    hang = {"/images/create": lambda _: done.wait(20), "/_ping": lambda _: done.wait(20)}
    failure, _ = failed(lambda: fake(hang, stall=0.5).pull(REFERENCE, DIGEST, quiet))
    done.set()
    assert failure.code == Code.ENGINE_LOST


def test_the_total_limit_cuts_a_pull_that_gets_on(fake: Callable[..., DockerImages]) -> None:
    told: list[Progress] = []

    def create(handler: Handler) -> None:
        handler.events(end=False)
        for current in range(1, 400):
            detail = {"current": current, "total": 1000}
            handler.chunk(
                json.dumps({"id": "a", "status": "Downloading", "progressDetail": detail}) + "\r\n"
            )
            time.sleep(0.02)

    images = fake({"/images/create": create}, total=4)
    failure, seconds = failed(lambda: images.pull(REFERENCE, DIGEST, told.append))
    assert failure.code == Code.PULL_TIMEOUT
    assert " 4 s" in failure.sentence
    assert 3.9 < seconds < 20
    assert 2 <= len(told) <= 18  # four a second, whatever the engine says
    assert told[-1].total == 1000


def test_an_installer_that_ends_while_it_is_adopted_is_run_anew(
    fake: Callable[..., DockerImages], tmp_path: Path
) -> None:
    """How it ended is gone with it, and one whose tree is there already has nothing to do."""
    pinned = pulling.parse_reference(REFERENCE).pinned(DIGEST)
    root = tmp_path / "opt"
    config = {"Image": pinned, "Env": [f"NVIDIAD_ROOT={root}"]}
    asked: list[str] = []

    def old(handler: Handler) -> None:
        asked.append(handler.path.rpartition("/")[2].partition("?")[0])
        handler.say({"message": "No such container: old"}, 404)

    def create(handler: Handler) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        asked.append("create")
        handler.say({"Id": "new"}, 201)

    def start(handler: Handler) -> None:
        asked.append("start")
        handler.text("", 204)

    answers: dict[str, Callable[[Handler], None]] = {
        f"/nvidiad-install-{'a' * 12}/json": lambda h: h.say(
            {"Id": "old", "Config": config, "State": {"Running": True}}
        ),
        "/containers/old/wait": old,
        "/containers/old": old,
        f"%40{DIGEST}/json": lambda h: h.say({"Config": {}}),
        "/info": lambda h: h.say({}),
        "/containers/create": create,
        "/containers/new/wait": lambda h: h.say({"StatusCode": 0}),
        "/containers/new/attach": lambda h: h.text(""),
        "/containers/new/start": start,
        "/containers/new": lambda h: h.text("", 204),
    }
    fake(answers).install(REFERENCE, DIGEST, Trees(root), quiet)
    assert asked == ["wait", "old", "create", "start"]


def hang_up(handler: Handler) -> None:
    handler.events({"status": "Pulling"}, end=False)
    handler.connection.shutdown(socket.SHUT_RDWR)


def test_a_connection_that_breaks_off_is_a_lost_engine(fake: Callable[..., DockerImages]) -> None:
    images = fake({"/images/create": lambda h: hang_up(h)})
    failure, _ = failed(lambda: images.pull(REFERENCE, DIGEST, quiet))
    assert failure.code == Code.ENGINE_LOST


def test_a_socket_that_is_not_there_is_named(tmp_path: Path) -> None:
    images = DockerImages(str(tmp_path / "none.sock"), None)
    failure, _ = failed(lambda: images.labels(REFERENCE, DIGEST))
    assert failure.code == Code.ENGINE_UNREACHABLE
    assert "none.sock" in failure.sentence and "No such file" in failure.sentence


def test_credentials_that_cannot_be_read_are_a_fault_of_the_configuration(tmp_path: Path) -> None:
    images = DockerImages(str(tmp_path / "none.sock"), tmp_path)  # a directory
    failure, _ = failed(lambda: images.resolve(REFERENCE))
    assert failure.code == Code.CONFIG_INVALID
    assert str(tmp_path) in failure.sentence


def test_reading_an_image_reference_imports_nothing_heavy() -> None:
    code = "import sys, nvidiad.world.images; print({'docker', 'requests', 'urllib3'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
