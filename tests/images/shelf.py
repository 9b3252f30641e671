# SPDX-License-Identifier: Apache-2.0
"""Real registries on loopback: plain, read-only, behind a password, behind TLS, behind a token server."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.beds.common import BedError, require, run_checked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USER, PASSWORD = "user", "secret"
_SECONDS = 60


class Shelf:
    """A docker-registry of its own below `top`; the address and the storage stay over restarts."""

    def __init__(self, top: Path, **more: Any) -> None:
        require("docker-registry", "openssl", "apache2-utils")
        self.top = top
        self.more = more
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, *, readonly: bool = False) -> None:
        """Start it; it dies with the test process."""
        self.stop()
        maintenance: dict[str, Any] = {"uploadpurging": {"enabled": False}}
        if readonly:
            maintenance["readonly"] = {"enabled": True}
        storage = {"filesystem": {"rootdirectory": str(self.top / "storage")}, "delete": {"enabled": True}}
        settings: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": storage | {"maintenance": maintenance},
            "http": {"addr": self.address},
        }
        for key, value in self.more.items():
            settings[key] = {**settings[key], **value} if key in settings else value
        configuration = self.top / "registry.yml"
        configuration.write_text(json.dumps(settings))  # YAML holds JSON
        with (self.top / "registry.log").open("ab") as log:
            self._child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "/usr/bin/docker-registry", "serve", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            )
        deadline = time.monotonic() + _SECONDS
        while not _listens(self.port):
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise BedError(f"docker-registry did not come up:\n{self.log()[-3000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGKILL)
            self._child.wait()
            self._child = None

    def log(self) -> str:
        return (self.top / "registry.log").read_text(errors="replace")

    def requests(self) -> list[str]:
        """Method and path of every request that it has answered."""
        found = []
        for line in self.log().splitlines():
            # The access log has Apache's form, the program's own lines have another.
            if '] "' in line and line.partition('] "')[2].split(" ")[0].isupper():
                found.append(" ".join(line.partition('] "')[2].split(" ")[:2]))
        return found

    def forget(self) -> None:
        """Lose everything that was ever pushed."""
        self.stop()
        shutil.rmtree(self.top / "storage", ignore_errors=True)
        self.start()


@contextmanager
def shelf(top: Path, **more: Any) -> Iterator[Shelf]:
    """A registry for as long as the block lasts; `more` is merged into its configuration."""
    made = Shelf(top, **more)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def password(top: Path) -> dict[str, Any]:
    """The configuration of a registry that wants USER and PASSWORD."""
    run_checked(["htpasswd", "-Bbc", str(top / "htpasswd"), USER, PASSWORD], "htpasswd")
    return {"auth": {"htpasswd": {"realm": "shelf", "path": str(top / "htpasswd")}}}


def certificate(top: Path, name: str = "localhost") -> dict[str, Any]:
    """The configuration of a registry with TLS; its authority is `ca.crt` below `top`."""
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    authority = ["-x509", "-days", "30", "-subj", "/CN=shelf", "-keyout", f"{top}/ca.key"]
    run_checked([*new, *authority, "-out", f"{top}/ca.crt"], "openssl req -x509")
    server = ["-subj", f"/CN={name}", "-keyout", f"{top}/server.key", "-out", f"{top}/server.csr"]
    run_checked([*new, *server], "openssl req")
    (top / "names").write_text(f"subjectAltName=DNS:{name}\n")
    sign = ["openssl", "x509", "-req", "-days", "30", "-CAcreateserial", "-extfile", f"{top}/names"]
    sign += ["-CA", f"{top}/ca.crt", "-CAkey", f"{top}/ca.key", "-in", f"{top}/server.csr"]
    run_checked([*sign, "-out", f"{top}/server.crt"], "openssl x509")
    return {"http": {"tls": {"certificate": f"{top}/server.crt", "key": f"{top}/server.key"}}}


# -- tokens ----------------------------------------------------------------------------------------


class TokenServer:
    """Gives tokens for a registry, as Docker's token protocol has it; `asked` is what it was asked for."""

    def __init__(self, top: Path) -> None:
        key = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        key += ["-days", "30", "-subj", "/CN=tokens", "-keyout", f"{top}/token.key"]
        run_checked([*key, "-out", f"{top}/token.crt"], "openssl req -x509")
        self.top = top
        self.asked: list[dict[str, list[str]]] = []
        self.seconds = 300
        self.grants = True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                expected = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                self._answer(query, self.headers.get("Authorization") == f"Basic {expected}")

            def do_POST(self) -> None:
                form = self.rfile.read(int(self.headers["Content-Length"])).decode()
                query = urllib.parse.parse_qs(form)
                self._answer(query, query.get("refresh_token") == [PASSWORD])

            def _answer(self, query: dict[str, list[str]], known: bool) -> None:  # noqa: FBT001
                outer.asked.append(query)
                body = json.dumps({"token": outer.token(query)} if known else {"details": "no"}).encode()
                self.send_response(200 if known else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
                """Nobody reads it."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def configuration(self) -> dict[str, Any]:
        token = {"realm": f"{self.address}/token", "service": "shelf", "issuer": "tokens"}
        return {"auth": {"token": {**token, "rootcertbundle": f"{self.top}/token.crt"}}}

    def token(self, query: dict[str, list[str]]) -> str:
        """A signed JWT that grants what was asked for."""
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, utils

        pem = (self.top / "token.key").read_bytes()
        certificate = "".join((self.top / "token.crt").read_text().splitlines()[1:-1])
        now = int(time.time())
        access = []
        for scope in query.get("scope", []) if self.grants else []:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        header = {"typ": "JWT", "alg": "ES256", "x5c": [certificate]}
        times = {"iat": now - 60, "nbf": now - 60, "exp": now + self.seconds, "jti": os.urandom(8).hex()}
        claims = {"iss": "tokens", "sub": USER, "aud": "shelf", "access": access, **times}
        signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# -- in front of a registry ------------------------------------------------------------------------


class Counting:
    """A TCP proxy in front of a registry, which knows the most connections it ever had at one time."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.most = self.opened = self._now = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._now += 1
                self.opened += 1
                self.most = max(self.most, self._now)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()
        with self._lock:
            self._now -= 1


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
