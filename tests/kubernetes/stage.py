# SPDX-License-Identifier: Apache-2.0
"""What a story is played with: the companion as a process, and nvidiad's own server that tells a status."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nvidiad.rim.server import Server, Snapshot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.kubernetes.apiserver import ApiServer

PROGRAM = Path(sys.executable).with_name("nvidiad-kubernetes")
NODE = "gpu-1"
PATIENCE = 60.0

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: here, user: companion}}}}]
clusters: [{{name: here, cluster: {{server: "{url}"}}}}]
users: [{{name: companion, user: {{token: companion-token}}}}]
"""


def wait_for(what: str, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for what is expected, not for a time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for: {what}"
        time.sleep(0.02)


class _Quiet:
    def debug(self, event: str, **fields: object) -> None: ...

    info = warning = error = debug


class Daemon:
    """nvidiad's socket, served by nvidiad's server; what the host is like is up to the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.questions = 0
        self.document: dict[str, object] = {"schema": 1, "phase": "ready", "summary": "driver 1 is in force"}
        self.say(go=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._server: Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        self._server = Server(self._read, lambda _: None, log=_Quiet(), version="1")
        self._run(self._server.start(self.path))

    def stop(self) -> None:
        if self._server:
            self._run(self._server.stop())
            self._server = None

    def say(self, *, go: bool, reason: str = "", until: float | None = None) -> None:
        self.document |= {"reboot": {"go": go, "reason": reason, "until": until, "held": not go}}

    def be(self, phase: str, summary: str) -> None:
        self.document |= {"phase": phase, "summary": summary}

    def _read(self) -> Snapshot:
        self.questions += 1
        return Snapshot(self.document)

    def _run(self, work: Awaitable[Any]) -> None:
        async def do() -> None:
            await work

        asyncio.run_coroutine_threadsafe(do(), self._loop).result(10)


class Companion:
    """The real program, and what it logs."""

    def __init__(
        self,
        api: ApiServer,
        socket: Path,
        place: Path,
        *more: str,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log: list[str] = []
        command = [str(PROGRAM), f"--socket={socket}", *more]
        # What this machine has of its own is not for the tests.
        own = {key: value for key, value in os.environ.items() if not key.startswith(("KUBE", "JOURNAL"))}
        if environment is None:
            config = place / "kubeconfig"
            config.write_text(KUBECONFIG.format(url=api.url))
            environment = {"KUBECONFIG": str(config), "NODE_NAME": NODE}
        self._process = subprocess.Popen(
            command, env=own | environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        self._reader = threading.Thread(target=self._listen)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr
        self._process.stderr.close()

    def _listen(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            self.log.append(line.rstrip("\n"))

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def said(self, words: str) -> int:
        """How many lines have these words."""
        return sum(words in line for line in list(self.log))

    def end(self) -> tuple[int, float]:
        """The exit status after a SIGTERM, and the seconds that it took."""
        begun = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE), time.monotonic() - begun
