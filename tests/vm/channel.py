# SPDX-License-Identifier: Apache-2.0
"""The two conversations with a virtual machine: QMP with QEMU itself, and the guest agent inside."""

from __future__ import annotations

import base64
import itertools
import json
import select
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ENVIRONMENT = ("PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8")
_CHUNK = 1 << 20
_SENTINEL = b"\xff"  # tells the agent's parser to forget whatever half message came before


class MachineError(RuntimeError):
    """The machine, or a command in it, did not do what the test takes for granted."""


@dataclass(frozen=True)
class Result:
    """What became of a command in the guest."""

    rc: int
    out: str
    err: str
    seconds: float


class Channel:
    """Lines of JSON over a Unix socket that QEMU listens on."""

    def __init__(self, path: Path, patience: float = 20) -> None:
        until = time.monotonic() + patience
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                self.socket.close()
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        self._buffer = b""

    def close(self) -> None:
        self.socket.close()

    def send(self, message: dict[str, Any], prefix: bytes = b"") -> None:
        self.socket.sendall(prefix + json.dumps(message).encode() + b"\n")

    def receive(self, timeout: float) -> dict[str, Any]:
        until = time.monotonic() + timeout
        while True:
            while b"\n" not in self._buffer:
                left = until - time.monotonic()
                if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                    raise TimeoutError("no answer")
                data = self.socket.recv(1 << 16)
                if not data:
                    raise EOFError("the channel was closed")
                self._buffer += data
            line, self._buffer = self._buffer.split(b"\n", 1)
            if text := line.strip(_SENTINEL + b"\r "):
                message: dict[str, Any] = json.loads(text)
                return message


class Monitor:
    """QMP: commands to QEMU, and its events."""

    def __init__(self, path: Path) -> None:
        self._channel = Channel(path)
        self._events: list[dict[str, Any]] = []
        self._channel.receive(20)
        self.command("qmp_capabilities")

    def close(self) -> None:
        self._channel.close()

    def command(self, name: str, **arguments: object) -> Any:
        self._channel.send({"execute": name, "arguments": arguments})
        while True:
            message = self._channel.receive(300)
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise MachineError(f"{name}: {message['error']['desc']}")
            elif "return" in message:
                return message["return"]
            # The greeting may come behind an event that was taken for it.

    def event(self, name: str, timeout: float) -> dict[str, Any]:
        """The data of the next event of this name; EOFError when QEMU ends before it comes."""
        until = time.monotonic() + timeout
        while True:
            for position, message in enumerate(self._events):
                if message["event"] == name:
                    del self._events[position]
                    data: dict[str, Any] = message.get("data", {})
                    return data
            self._events.append(self._channel.receive(max(0.0, until - time.monotonic())))


class Agent:
    """qemu-guest-agent: runs commands and moves files, with no network and no password."""

    _numbers = itertools.count(int(time.time()) % 100_000 * 1000)

    def __init__(self, path: Path) -> None:
        self._channel = Channel(path)
        self._in_step = False

    def close(self) -> None:
        self._channel.close()

    def sync(self, timeout: float) -> bool:
        """Whether the agent answers; whatever it still had to say to earlier questions is thrown away."""
        number = next(self._numbers)
        self._channel.send({"execute": "guest-sync", "arguments": {"id": number}}, _SENTINEL)
        until = time.monotonic() + timeout
        try:
            while self._channel.receive(max(0.0, until - time.monotonic())).get("return") != number:
                pass
        except (TimeoutError, ValueError):
            return False
        self._in_step = True
        return True

    def call(self, name: str, timeout: float = 60, **arguments: object) -> Any:
        if not self._in_step and not self.sync(timeout):
            raise MachineError("the guest agent is silent")
        # Until the answer is here: a later call must not take a late answer for its own.
        self._in_step = False
        self._channel.send({"execute": name, "arguments": arguments} if arguments else {"execute": name})
        answer = self._channel.receive(timeout)
        self._in_step = True
        if "error" in answer:
            raise MachineError(f"{name}: {answer['error']['desc']}")
        return answer["return"]

    def start(
        self,
        command: str,
        *,
        environment: Sequence[str] = (),
        stdin: bytes | None = None,
        capture: bool = False,
    ) -> int:
        """Start a shell command line in the guest and give its process number."""
        arguments: dict[str, Any] = {"path": "/bin/sh", "arg": ["-c", command]}
        arguments |= {"env": [*ENVIRONMENT, *environment], "capture-output": capture}
        if stdin is not None:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        pid: int = self.call("guest-exec", **arguments)["pid"]
        return pid

    def run(
        self,
        command: str,
        timeout: float = 120,
        *,
        environment: Sequence[str] = (),
        stdin: bytes | None = None,
    ) -> Result:
        """Run a shell command line in the guest as root and wait for it."""
        began = time.monotonic()
        pid = self.start(command, environment=environment, stdin=stdin, capture=True)
        pause = 0.02
        while not (status := self.call("guest-exec-status", pid=pid))["exited"]:
            if time.monotonic() - began > timeout:
                raise TimeoutError(f"{command!r} still runs in the guest after {timeout} s")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.3)  # each question costs the emulated CPU some 10 ms

        def text(key: str) -> str:
            return base64.b64decode(status.get(key, "")).decode(errors="replace")

        rc = status.get("exitcode", 128 + status.get("signal", 0))
        return Result(rc, text("out-data"), text("err-data"), time.monotonic() - began)

    def put(self, data: bytes, path: str) -> None:
        handle = self.call("guest-file-open", path=path, mode="wb")
        for start in range(0, len(data), _CHUNK):
            piece = base64.b64encode(data[start : start + _CHUNK]).decode()
            self.call("guest-file-write", timeout=120, **{"handle": handle, "buf-b64": piece})
        self.call("guest-file-close", handle=handle)

    def get(self, path: str) -> bytes:
        handle = self.call("guest-file-open", path=path, mode="rb")
        pieces, ended = [], False
        while not ended:
            read = self.call("guest-file-read", timeout=120, handle=handle, count=_CHUNK)
            pieces.append(base64.b64decode(read["buf-b64"]))
            ended = read["eof"]
        self.call("guest-file-close", handle=handle)
        return b"".join(pieces)
