# SPDX-License-Identifier: Apache-2.0
"""A registry that is not well: port 5002 of a host leads to its plain one, whose answers a test changes."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

from tests.host import road

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tests.host.bed import Host

PORT, REGISTRY = 5002, 5000
REPOSITORY = f"127.0.0.1:{PORT}/nvidia-driver"
_PIECE = 8 << 10


@dataclass(frozen=True)
class Answer:
    """What the real registry said to a request, and how that is sent on."""

    path: str
    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool = False
    """The connection ends after half of the body."""
    rate: int = 0
    """Bytes a second; 0 is as fast as it goes."""

    @property
    def is_blob(self) -> bool:
        return "/blobs/" in self.path

    @property
    def is_manifest(self) -> bool:
        return "/manifests/" in self.path


def refuse(status: int, code: str, **headers: str) -> Callable[[Answer], Answer]:
    """Every request is refused, in the words that the protocol has for it."""
    body = json.dumps({"errors": [{"code": code, "message": code.lower().replace("_", " ")}]}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    kind = {"Content-Type": "application/json"}
    return lambda answer: replace(answer, status=status, headers=kind | named, body=body)


def slow(rate: int) -> Callable[[Answer], Answer]:
    return lambda answer: replace(answer, rate=rate) if answer.is_blob else answer


def truncated(answer: Answer) -> Answer:
    return replace(answer, cut=True) if answer.is_blob else answer


def damaged(answer: Answer) -> Answer:
    """A layer is not what its digest says."""
    body = bytes(byte ^ 0x55 for byte in answer.body[:64]) + answer.body[64:]
    return replace(answer, body=body) if answer.is_blob else answer


def manifest(body: bytes, kind: str) -> Callable[[Answer], Answer]:
    """Whatever manifest is asked for, this comes, with the digest that it has."""
    own = {"Docker-Content-Digest": f"sha256:{hashlib.sha256(body).hexdigest()}", "Content-Type": kind}
    return lambda answer: (
        replace(answer, status=200, headers=own, body=body) if answer.is_manifest else answer
    )


@dataclass
class Liar:
    """The server; `change` is what it does to each answer."""

    host: Host
    change: Callable[[Answer], Answer] | None = None

    def __enter__(self) -> Self:
        up = threading.Event()

        def serve() -> str:
            # This thread is in the host's network, and so are those that it starts for requests.
            self._server = _Server(self)
            up.set()
            self._server.serve_forever(0.05)
            return ""

        self._thread = threading.Thread(target=lambda: road.within(self.host, serve), name="liar")
        self._thread.start()
        assert up.wait(10), "the liar did not come up"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def heal(self) -> None:
        self.change = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, liar: Liar) -> None:
        self.liar = liar
        super().__init__(("127.0.0.1", PORT), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up early is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        change, answer = self.server.liar.change, self._real()
        self._send(change(answer) if change else answer)

    do_HEAD = do_GET

    def _real(self) -> Answer:
        # Always with its body: a changed one has another length.
        line = http.client.HTTPConnection("127.0.0.1", REGISTRY, timeout=30)
        try:
            # An engine has a line for each kind of manifest that it takes.
            kinds = {name: ", ".join(self.headers.get_all(name, [])) for name in ("Accept", "Range")}
            passed = {name: value for name, value in kinds.items() if value}
            line.request("GET", self.path, headers=passed)
            got = line.getresponse()
            return Answer(self.path, got.status, dict(got.getheaders()), got.read())
        finally:
            line.close()

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in ("content-length", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        body = answer.body[: len(answer.body) // 2] if answer.cut else answer.body
        with suppress(OSError):
            self._pour(body, answer.rate)
        if answer.cut:
            self.close_connection = True

    def _pour(self, body: bytes, rate: int) -> None:
        pause = threading.Event()
        for at in range(0, len(body), _PIECE):
            self.wfile.write(body[at : at + _PIECE])
            # A cause that has ended is over at once.
            if rate and self.server.liar.change is not None:
                pause.wait(_PIECE / rate)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""
