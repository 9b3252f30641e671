# SPDX-License-Identifier: Apache-2.0
"""The gateway: one image of a registry, served to the engine of this host no faster than is configured.

An engine knows no limit for one pull. So it pulls from here, over loopback, which engines ask without TLS;
what comes it checks by digest as it does everywhere.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Failure
from nvidiad.thought import provision
from nvidiad.world.pace import Pace

if TYPE_CHECKING:
    from nvidiad.thought.distribution import Document
    from nvidiad.world.registry import Flow
    from nvidiad.world.repository import Repository

_LARGEST = 64 << 10
_IDLE = 60
# Anybody on this host may connect: how long without the name, and how many at most. An engine needs four.
_STRANGER, _CONNECTIONS = 5, 32
_PLACE = re.compile(r"/(manifests|blobs)/(sha256:[0-9a-f]{64})")
_PASSED = ("content-length", "content-range", "content-type", "accept-ranges")
_REFUSED = 400
_TLS_HANDSHAKE = b"\x16"


class Gateway:
    """Open within a `with` block; nobody who does not know the name gets anything."""

    def __init__(self, repository: Repository, document: Document, rate: int) -> None:
        self.repository = repository
        self.pace = Pace(rate)
        self.served = 0
        """Bytes of the image that the engine was sent."""
        self.problem: Failure | None = None
        """Why the registry gave less than was asked for."""
        self._documents: dict[str, Document] = {}
        self._manifests = {document.digest}
        self._blobs: dict[str, int] = {}
        self._known = threading.Lock()
        self._learn(document)
        # Anybody on this host may connect: the name is what they cannot know.
        self.path = f"{provision.GATEWAY}/{secrets.token_hex(16)}"
        self._server = _Server(self)

    @property
    def name(self) -> str:
        """The repository as the engine calls it."""
        return f"127.0.0.1:{self._server.server_port}/{self.path}"

    def __enter__(self) -> Gateway:
        threading.Thread(target=self._server.serve_forever, name="gateway", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.pace.end()
        self._server.shutdown()
        self._server.server_close()
        self._server.cut()

    def document(self, digest: str) -> Document | None:
        """A manifest of this image, None where it is not of this image; it is what its digest says."""
        with self._known:
            if digest not in self._manifests:
                return None
            found = self._documents.get(digest)
        if found is None:
            found = self.repository.manifest(digest)
            self._learn(found)
        return found

    def size(self, digest: str) -> int | None:
        """The bytes of a blob of this image, None where it is not of this image."""
        with self._known:
            return self._blobs.get(digest)

    def sent(self, count: int) -> None:
        with self._known:
            self.served += count

    def _learn(self, document: Document) -> None:
        parts = provision.contents(document)
        with self._known:
            self._documents[document.digest] = document
            self._manifests |= set(parts.manifests)
            self._blobs |= parts.blobs


class _Server(ThreadingHTTPServer):
    """A server that knows its connections, to cut them: an engine keeps them open for a while."""

    daemon_threads = True

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        # That of HTTPServer asks the resolver for the name of this host.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._connections) >= _CONNECTIONS:
            self.shutdown_request(request)
            return
        self._connections.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().close_request(request)

    def cut(self) -> None:
        for connection in tuple(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """An engine that hangs up has its reasons, which it tells in its own words."""


class _Handler(BaseHTTPRequestHandler):
    """What of a registry's protocol a pull by digest needs."""

    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _STRANGER

    def handle(self) -> None:
        if self.connection.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE:
            # Engines try TLS first; these words tell them to go on without.
            self.connection.recv(_LARGEST)
            self.connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            return
        super().handle()

    def do_GET(self) -> None:
        gateway = self.server.gateway
        prefix = f"/v2/{gateway.path}"
        if self.path.rstrip("/") == "/v2":
            self._say(200, {})
            return
        place = _PLACE.fullmatch(self.path.removeprefix(prefix)) if self.path.startswith(prefix) else None
        if place:
            self.connection.settimeout(_IDLE)
        try:
            if place is None:
                self._say(404, {"errors": [{"code": "NAME_UNKNOWN"}]})
            elif place[1] == "manifests":
                self._manifest(place[2])
            else:
                self._blob(place[2])
        except Failure as failure:
            gateway.problem = failure
            self._say(502, {"errors": [{"code": "UNKNOWN", "message": failure.sentence}]})

    do_HEAD = do_GET

    def _manifest(self, digest: str) -> None:
        document = self.server.gateway.document(digest)
        if document is None:
            self._say(404, {"errors": [{"code": "MANIFEST_UNKNOWN"}]})
            return
        kind = {"Content-Type": document.media_type, "Docker-Content-Digest": digest}
        self._begin(200, {**kind, "Content-Length": str(len(document.body))})
        if self.command != "HEAD":
            self.wfile.write(document.body)

    def _blob(self, digest: str) -> None:
        gateway = self.server.gateway
        size = gateway.size(digest)
        if size is None:
            self._say(404, {"errors": [{"code": "BLOB_UNKNOWN"}]})
        elif self.command == "HEAD":
            self._begin(200, {"Content-Length": str(size), "Accept-Ranges": "bytes"})
        else:
            with gateway.repository.flow(digest, self.headers.get("Range", "")) as flow:
                passed = {name: flow.headers[name] for name in _PASSED if name in flow.headers}
                # Without its length nothing but the end of the connection is the end of the answer.
                self.close_connection = "content-length" not in passed
                self._begin(flow.status, passed)
                try:
                    self._pour(flow)
                except Failure as failure:
                    # Too late for another status: the engine sees that something is missing.
                    gateway.problem = failure
                    self.close_connection = True

    def _pour(self, flow: Flow) -> None:
        gateway = self.server.gateway
        while piece := flow.read(gateway.pace.piece):
            if not gateway.pace.take(len(piece)):
                self.close_connection = True
                return
            gateway.sent(len(piece) if flow.status < _REFUSED else 0)
            self.wfile.write(piece)

    def _say(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self._begin(status, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody wants to read these."""
