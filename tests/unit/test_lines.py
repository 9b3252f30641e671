# SPDX-License-Identifier: Apache-2.0
"""Lines over TLS, as registries are asked: cut in whatever the other end is at when the time is over."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.world.registry import Limits, Registry, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")


def drip_head(line: socket.socket) -> None:
    line.recv(65536)
    line.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        line.sendall(b"a")
        time.sleep(0.05)


def drip_body(line: socket.socket) -> None:
    line.recv(65536)
    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        line.sendall(b"a")
        time.sleep(0.05)


@contextmanager
def serving(top: Path, act: Callable[[socket.socket], None]) -> Iterator[str]:
    """A registry with a certificate of its own on this machine; its address."""
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{top}/key"]
    subprocess.run(
        ["openssl", "req", "-x509", *made, *names, "-out", f"{top}/crt"], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{top}/crt", f"{top}/key")
    listener = socket.create_server(("127.0.0.1", 0))
    name = f"localhost:{listener.getsockname()[1]}"
    (top / "certs.d" / name).mkdir(parents=True)
    shutil.copy(f"{top}/crt", top / "certs.d" / name / "ca.crt")

    def serve() -> None:
        with suppress(OSError):
            while True:
                line, _ = listener.accept()
                with suppress(OSError), context.wrap_socket(line, server_side=True) as secure:
                    act(secure)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield name
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def ask(name: str, top: Path, whole: float) -> Failure | int:
    """What comes of a request: a failure, or a status."""
    registry = Registry(
        name, None, Limits(5, 5, tries=1, whole=whole), insecure=False, authorities=top / "certs.d"
    )
    # On loopback a registry is asked without TLS, where nobody says otherwise.
    registry.base = f"https://{name}"
    with closing(registry):
        try:
            return registry.ask(Request("GET", f"{registry.base}/v2/", "it", "", {})).status
        except Failure as failure:
            return failure


@pytest.mark.parametrize("act", [drip_head, drip_body])
def test_what_comes_by_bytes_over_tls_is_cut(tmp_path: Path, act: Callable[[socket.socket], None]) -> None:
    with serving(tmp_path, act) as name:
        began = time.monotonic()
        found = ask(name, tmp_path, 0.5)
        assert isinstance(found, Failure)
        assert found.code is Code.REGISTRY_STALLED
        assert "not done within 0.5 s" in found.sentence
        assert time.monotonic() - began < 20


def test_what_is_connected_too_late_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def slow(*where: Any, **how: Any) -> Any:
        time.sleep(1)
        return look_up(*where, **how)

    with serving(tmp_path, drip_head) as name:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        told: list[Failure | int] = []
        asking = threading.Thread(target=lambda: told.append(ask(name, tmp_path, 0.5)), daemon=True)
        asking.start()
        asking.join(30)
        assert [isinstance(each, Failure) and each.code for each in told] == [Code.REGISTRY_STALLED]


def test_what_is_whole_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    def act(line: socket.socket) -> None:
        line.recv(65536)
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with serving(tmp_path, act) as name:
        assert ask(name, tmp_path, 60) == 200
        before = descriptors()
        for _ in range(5):
            assert ask(name, tmp_path, 60) == 200
        # The other end of the last line is this process's, too, and is closed when its thread gets to that.
        deadline = time.monotonic() + 20
        while (held := descriptors()) > before:
            assert time.monotonic() < deadline, held - before
            time.sleep(0.01)


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])
