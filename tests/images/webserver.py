# SPDX-License-Identifier: Apache-2.0
"""A web server on loopback that serves a directory as release servers do, and fails where it is told to."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pathlib import Path

_RANGE = re.compile(r"bytes=(\d+)-")
_PIECE = 1 << 16


@dataclass
class Fault:
    """What goes wrong with a path: a status, or a connection that is cut or silent after so many bytes.

    `times` counts down; a fault of -1 times stays.
    """

    status: int = 0
    cut_after: int = -1
    silent_after: int = -1
    times: int = -1


@dataclass
class Asked:
    """A request that came."""

    path: str
    range: str
    status: int


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, server: Server) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server = server

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up early is what the tests are about."""


@dataclass
class Server:
    """Serves `root` with ETags, byte ranges and directory lists in JSON."""

    root: Path
    faults: dict[str, Fault] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    etags: bool = True
    ranges: bool = True
    _listener: _Listener | None = None
    closing: threading.Event = field(default_factory=threading.Event)

    def start(self) -> Self:
        self._listener = _Listener(self)
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """End it; from then on nobody listens at its address."""
        self.closing.set()
        if self._listener is not None:
            self._listener.shutdown()
            self._listener.server_close()

    @property
    def url(self) -> str:
        assert self._listener is not None, "not started"
        return f"http://127.0.0.1:{self._listener.server_address[1]}"

    def fail(self, path: str, fault: Fault) -> None:
        """Let every path that ends so fail."""
        self.faults[path] = fault

    def fault_of(self, path: str) -> Fault | None:
        for suffix, fault in self.faults.items():
            if path.endswith(suffix) and fault.times != 0:
                fault.times -= 1 if fault.times > 0 else 0
                return fault
        return None

    def paths(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [one.path for one in self.asked]


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        served = self.server.server
        path = unquote(urlsplit(self.path).path)
        fault = served.fault_of(path)
        place = served.root / path.lstrip("/")
        if fault is not None and fault.status:
            self._say(fault.status, b"this is broken\n")
        elif ".." in path or not place.exists():
            self._say(404, b"no such file\n")
        elif place.is_dir():
            names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in place.iterdir())
            listed = json.dumps([{"Name": name, "Size": 0} for name in names]).encode()
            json_wanted = "json" in self.headers.get("Accept", "")
            self._say(200, listed if json_wanted else "".join(f"<a>{name}</a>" for name in names).encode())
        else:
            self._file(place, fault)

    def _file(self, place: Path, fault: Fault | None) -> None:
        served = self.server.server
        size = place.stat().st_size
        identity = f"{place.resolve()}{size}{place.stat().st_mtime_ns}".encode()
        tag = f'"{hashlib.sha256(identity).hexdigest()[:16]}"'
        begin, status = 0, 200
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted and served.ranges and self.headers.get("If-Range", tag) == tag:
            begin, status = int(wanted[1]), 206
            if begin >= size:
                self._say(416, b"")
                return
        self._began(status)
        self.send_header("Content-Length", str(size - begin))
        if served.etags:
            self.send_header("ETag", tag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.end_headers()
        limit = size - begin
        if fault is not None:
            limit = min(limit, max(fault.cut_after, fault.silent_after))
        with place.open("rb") as file:
            file.seek(begin)
            while limit and (piece := file.read(min(_PIECE, limit))):
                self.wfile.write(piece)
                limit -= len(piece)
        if fault is not None:
            self.close_connection = True
            if fault.silent_after >= 0:
                served.closing.wait(60)
            self.connection.shutdown(socket.SHUT_RDWR)

    def _say(self, status: int, body: bytes) -> None:
        self._began(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _began(self, status: int) -> None:
        self.server.server.asked.append(Asked(unquote(self.path), self.headers.get("Range", ""), status))
        self.send_response(status)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """The tests look at `asked`."""
