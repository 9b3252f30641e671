# SPDX-License-Identifier: Apache-2.0
"""The line between a host's engine and its registry, which a test lets fail in the middle of a download."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.host.road import configuration

if TYPE_CHECKING:
    from types import TracebackType

    from tests.host.bed import Host

PORT, REGISTRY = 5001, 5000
REPOSITORY = f"127.0.0.1:{PORT}/nvidia-driver"
_NEW_NET = 0x40000000  # CLONE_NEWNET of setns(2)
_CHUNK = 16 * 1024


class Line:
    """Port 5001 of the host leads to its plain registry; what comes from there can end or hang."""

    def __init__(self, host: Host) -> None:
        self._net = Path(f"/proc/{host._init()}/ns/net")
        self._left: int | None = None
        self._hangs = False
        self._ready = threading.Event()
        self._broken = threading.Event()
        self._thread = threading.Thread(target=self._work, name="line")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10), "the line did not come up"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def fail(self, after: int, *, hangs: bool = False) -> None:
        """From now on no more than so many bytes come from the registry: then a reset, or silence."""
        self._broken.clear()
        self._hangs = hangs
        self._left = after

    def heal(self) -> None:
        """From now on whoever connects gets through; what hung is reset."""
        self._left = None
        self._loop.call_soon_threadsafe(self._healed.set)

    def wait_broken(self, seconds: float = 30) -> None:
        """Wait until something was in the middle of coming when the line failed."""
        assert self._broken.wait(seconds), "nothing came over the line"

    def _work(self) -> None:
        with self._net.open() as net:
            # setns(2) moves one thread, and with it all connections of the loop that it runs.
            if ctypes.CDLL(None, use_errno=True).setns(net.fileno(), _NEW_NET):
                return
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end, self._healed = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", PORT)
        self._ready.set()
        await self._end.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        try:
            answers, upstream = await asyncio.open_connection("127.0.0.1", REGISTRY)
            there = asyncio.create_task(self._pump(reader, upstream, limited=False))
            try:
                await self._pump(answers, writer, limited=True)
            finally:
                there.cancel()
        except OSError:
            pass  # either end may go at any time
        finally:
            writer.transport.abort()
            if upstream is not None:
                upstream.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, limited: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                if limited and self._left is not None:
                    data, self._left = data[: self._left], self._left - min(self._left, len(data))
                sink.write(data)
                await sink.drain()
                if limited and self._left == 0:
                    self._broken.set()
                    if self._hangs:
                        self._healed.clear()
                        await self._healed.wait()
                    return


def over_the_line(stall: int = 2, pause: int | None = None) -> str:
    """A configuration whose registry is at the other end of the line, and the pause before each next try."""
    daemon = {"retry-initial": pause, "retry-maximum": pause} if pause else {}
    return configuration(image={"repository": REPOSITORY, "stall-timeout": stall}, daemon=daemon)
