# SPDX-License-Identifier: Apache-2.0
"""The gateway between an engine and a registry; here the registry is a stand-in that does as a test says."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pytest

from nvidiad.nouns.errors import Code
from nvidiad.thought import distribution
from nvidiad.thought.distribution import Descriptor
from nvidiad.world.gateway import Gateway
from nvidiad.world.pace import Pace
from nvidiad.world.registry import Limits
from nvidiad.world.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import Message

LAYER = bytes(range(256)) * 4096
"""A megabyte."""
CONFIG = b'{"config": {}}'
FAST = 1 << 40


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


MANIFEST = distribution.image(
    Descriptor("config", digest_of(CONFIG), len(CONFIG)),
    (Descriptor("layer", digest_of(LAYER), len(LAYER)),),
)
INDEX = distribution.index((Descriptor(MANIFEST.media_type, MANIFEST.digest, len(MANIFEST.body)),))
STRANGER = b"another image's"


class Upstream(BaseHTTPRequestHandler):
    """A registry with one repository; it wants a password and redirects layers as many do."""

    protocol_version = "HTTP/1.1"
    spoil: Callable[[Upstream, bytes], bytes | None] = staticmethod(lambda _, body: body)
    asked: list[str]
    content: ClassVar[dict[str, bytes]] = {
        **{f"/v2/nv/manifests/{one.digest}": one.body for one in (MANIFEST, INDEX)},
        **{f"/v2/nv/blobs/{digest_of(one)}": one for one in (CONFIG, STRANGER)},
        "/store/layer": LAYER,
    }

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        if self.path.startswith("/v2/") and self.headers.get("Authorization") != "Basic dXNlcjpzZWNyZXQ=":
            self.answer(401, b"{}", {"WWW-Authenticate": 'Basic realm="bed"'})
        elif self.path == f"/v2/nv/blobs/{digest_of(LAYER)}":
            self.answer(307, b"", {"Location": "/store/layer"})
        elif (body := self.content.get(self.path)) is None:
            self.answer(404, b"{}", {})
        elif (part := self.headers.get("Range", "")).startswith("bytes="):
            first = int(part.removeprefix("bytes=").partition("-")[0])
            whole = f"bytes {first}-{len(body) - 1}/{len(body)}"
            self.answer(206, body[first:], {"Content-Range": whole})
        else:
            kind = distribution.OCI_INDEX if INDEX.digest in self.path else distribution.OCI_MANIFEST
            self.answer(200, body, {"Content-Type": kind})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        left = self.spoil(self, body)
        self.close_connection = left is None
        self.wfile.write(left or b"")

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def gateway(
    document: distribution.Document = MANIFEST,
    rate: int = FAST,
    spoil: Callable[[Upstream, bytes], bytes | None] | None = None,
) -> Iterator[tuple[Gateway, list[str]]]:
    asked: list[str] = []
    members: dict[str, Any] = {"asked": asked} | ({"spoil": staticmethod(spoil)} if spoil else {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Spoiled", (Upstream,), members))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    auth = {"username": "user", "password": "secret"}
    name = f"127.0.0.1:{server.server_port}/nv"
    repository = Repository(name, auth, limits=Limits(10, 20, 4, tries=1))
    try:
        with Gateway(repository, document, rate) as opened:
            yield opened, asked
    finally:
        repository.close()
        server.shutdown()
        server.server_close()


class Reply(NamedTuple):
    status: int
    headers: Message
    body: bytes


def connect(opened: Gateway) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection(opened.name.partition("/")[0], timeout=10))


def ask(opened: Gateway, path: str, method: str = "GET", part: str = "") -> Reply:
    with connect(opened) as connection:
        connection.request(method, path, headers={"Range": part} if part else {})
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())


def below(opened: Gateway, path: str) -> str:
    return f"/v2/{opened.name.partition('/')[2]}{path}"


def test_strangers_take_neither_descriptors_nor_the_place_of_the_engine_for_long() -> None:
    others = threading.enumerate()
    with gateway() as (opened, _), ExitStack() as strangers:
        address = ("127.0.0.1", int(opened.name.partition("/")[0].partition(":")[2]))
        for _number in range(100):
            strangers.enter_context(closing(socket.create_connection(address, timeout=10)))
        deadline = time.monotonic() + 20
        mine = [t for t in threading.enumerate() if "process_request" in t.name and t not in others]
        assert len(mine) <= 32
        while True:
            with suppress(OSError, http.client.HTTPException):
                assert ask(opened, below(opened, f"/blobs/{digest_of(CONFIG)}")).body == CONFIG
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)


LAYER_PATH = f"/blobs/{digest_of(LAYER)}"


def test_an_image_comes_through_whole() -> None:
    with gateway(INDEX) as (opened, _):
        assert ask(opened, "/v2/").status == 200
        for document in (INDEX, MANIFEST):
            for method in ("HEAD", "GET"):
                answer = ask(opened, below(opened, f"/manifests/{document.digest}"), method)
                assert answer.status == 200
                assert answer.headers["Docker-Content-Digest"] == document.digest
                assert answer.headers["Content-Type"] == document.media_type
                assert answer.headers["Content-Length"] == str(len(document.body))
                assert answer.body == (document.body if method == "GET" else b"")
        assert ask(opened, below(opened, f"/blobs/{digest_of(CONFIG)}")).body == CONFIG
        answer = ask(opened, below(opened, LAYER_PATH), "HEAD")
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(LAYER)))
        assert ask(opened, below(opened, LAYER_PATH)).body == LAYER
        assert opened.served == len(CONFIG) + len(LAYER)
        assert opened.problem is None


def test_a_part_is_asked_for_and_given() -> None:
    with gateway() as (opened, asked):
        answer = ask(opened, below(opened, LAYER_PATH), part="bytes=1000000-")
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes 1000000-{len(LAYER) - 1}/{len(LAYER)}"
        assert answer.body == LAYER[1_000_000:]
    assert asked[-1] == "GET /store/layer bytes=1000000-"


def test_nothing_else_is_served() -> None:
    with gateway() as (opened, asked):
        own = below(opened, "")
        for path in (
            f"{own}/blobs/{digest_of(STRANGER)}",
            f"{own}/manifests/{INDEX.digest}",
            f"{own}/manifests/1",
            f"{own}/tags/list",
            f"/v2/nv{LAYER_PATH}",
            f"/v2/nvidiad-gentle/{'0' * 32}{LAYER_PATH}",
            f"{own}/../{own}{LAYER_PATH}",
            "/",
        ):
            assert ask(opened, path).status == 404, path
        assert ask(opened, f"{own}{LAYER_PATH}", "POST").status == 501
    assert asked == []


def test_a_tls_client_is_told_to_go_on_without() -> None:
    """In the words that engines know: HTTP/ must come first."""
    with gateway() as (opened, _):
        host, _, port = opened.name.partition("/")[0].partition(":")
        with socket.create_connection((host, int(port)), 5) as client:
            client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500)
            assert client.recv(100).startswith(b"HTTP/1.0 400")


def cut(handler: Upstream, body: bytes) -> bytes | None:
    if body is not LAYER:
        return body
    handler.wfile.write(body[: len(body) // 2])
    return None


def test_what_breaks_off_upstream_breaks_off_here() -> None:
    with gateway(spoil=cut) as (opened, _):
        with pytest.raises(http.client.IncompleteRead):
            ask(opened, below(opened, LAYER_PATH))
        assert opened.problem is not None and opened.problem.code is Code.REGISTRY_UNREACHABLE
        assert "nv@sha256:" in opened.problem.sentence


def test_a_registry_that_is_gone_is_an_error_of_the_gateway() -> None:
    repository = Repository("127.0.0.1:1/nv", limits=Limits(1, 1, 4, tries=1))
    with Gateway(repository, MANIFEST, FAST) as opened:
        assert ask(opened, below(opened, LAYER_PATH)).status == 502
        assert opened.problem is not None and opened.problem.code is Code.REGISTRY_UNREACHABLE
        assert opened.served == 0
        # What was read before needs no registry.
        assert ask(opened, below(opened, f"/manifests/{MANIFEST.digest}")).body == MANIFEST.body


def test_all_connections_together_keep_to_the_rate() -> None:
    rate = len(LAYER)
    with gateway(rate=rate) as (opened, _):
        begun, read = time.monotonic(), []
        threads = [
            threading.Thread(target=lambda: read.append(ask(opened, below(opened, LAYER_PATH)).body))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - begun
    assert read == [LAYER] * 3
    assert 2.2 < seconds < 15


def test_nobody_waits_for_the_rate_after_the_end() -> None:
    ended: list[BaseException] = []
    sending = threading.Event()

    def read(opened: Gateway) -> None:
        with connect(opened) as connection:
            connection.request("GET", below(opened, LAYER_PATH))
            answer = connection.getresponse()
            sending.set()
            try:
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                ended.append(error)

    with gateway(rate=1000) as (opened, _):
        port = int(opened.name.partition("/")[0].partition(":")[2])
        reader = threading.Thread(target=read, args=[opened])
        reader.start()
        assert sending.wait(20)
        begun = time.monotonic()
    reader.join(20)
    assert ended and time.monotonic() - begun < 20
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)


def test_an_idle_connection_is_cut_at_the_end() -> None:
    with ExitStack() as clients:
        with gateway() as (opened, _):
            connection = clients.enter_context(connect(opened))
            connection.request("GET", "/v2/")
            assert json.loads(connection.getresponse().read()) == {}
        assert connection.sock.recv(1) == b""


def test_a_pause_saves_up_no_more_than_a_moment() -> None:
    paces = [Pace(100_000) for _ in range(3)]
    assert all(pace.take(1) for pace in paces)
    threading.Event().wait(1)
    saved, whole = [], []
    for pace in paces:
        begun = time.monotonic()
        assert pace.take(25_000)  # a quarter of a second
        saved.append(time.monotonic() - begun)
        assert pace.take(30_000)
        whole.append(time.monotonic() - begun)
        pace.end()
        assert not pace.take(1_000_000)
    # The best of three: a machine that is busy makes anybody wait.
    assert min(saved) < 0.2
    assert min(whole) > 0.25


@pytest.mark.parametrize(("rate", "piece"), [(1, 4 << 10), (100_000, 10_000), (FAST, 64 << 10)])
def test_pieces_are_neither_tiny_nor_large(rate: int, piece: int) -> None:
    assert Pace(rate).piece == piece
