# SPDX-License-Identifier: Apache-2.0
"""The server: tells everyone how the host is, over Varlink and HTTP on one socket, and lets few act."""

from __future__ import annotations

import asyncio
import socket
import stat
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.value import Value
from nvidiad.rim.conversation import CHUNK, Conversation, Gone, Limits, group_id, identify
from nvidiad.thought import metrics, render, wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from nvidiad.rim.conversation import Peer
    from nvidiad.verbs.ports import Log

GROUP = "nvidiad"
_AT_ONCE = 8
INTERFACES = (wire.SERVICE, wire.INTERFACE)

HELP = """nvidiad keeps the right NVIDIA driver on this host.

GET /status        the status as JSON (?json=pretty for people)
GET /status.txt    the status as text
GET /metrics       metrics for Prometheus

The same socket speaks Varlink: varlinkctl introspect SOCKET io.nvidiad
"""


class Snapshot(Value):
    """What there is to tell now: the document (thought/document) and the counters (thought/metrics)."""

    document: dict[str, object]
    counters: metrics.Counters = metrics.Counters()


class Server:
    """Answers from `read`; `act` is called with the reason when someone who may asks for a look."""

    def __init__(
        self,
        read: Callable[[], Snapshot],
        act: Callable[[str], None],
        *,
        log: Log,
        version: str,
        now: Callable[[], float] = time.time,
        process: Callable[[], metrics.Process | None] = lambda: None,
        limits: Limits | None = None,
    ) -> None:
        self._read = read
        self._act = act
        self._log = log
        self._version = version
        self._now = now
        self._process = process
        self._limits = limits or Limits()
        self._listener: socket.socket | None = None
        self._own: tuple[Path, int] | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._clients: dict[asyncio.Task[None], int] = {}
        """The connections with their uid."""
        self._turns: dict[int, asyncio.Lock] = {}
        """Of the users who are connected."""
        self._followers: set[asyncio.Event] = set()

    async def start(self, where: socket.socket | Path) -> None:
        """Serve on a socket that listens already, or on one made at this path."""
        if isinstance(where, socket.socket):
            self._listener = where
        else:
            self._listener = listen(where)
            self._own = (where, where.stat().st_ino)
        self._listener.settimeout(0)
        self._await_clients(self._listener)

    async def stop(self) -> None:
        """End all conversations; a socket that systemd made stays where it is."""
        if self._pause:
            self._pause.cancel()
        if self._listener:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        if self._own:
            path, inode = self._own
            with suppress(OSError):
                # Another nvidiad may have put its own there since.
                if path.stat().st_ino == inode:
                    path.unlink()

    def changed(self) -> None:
        """There is something new to tell; call it in the loop's thread."""
        for event in self._followers:
            event.set()

    # -----------------------------------------------------------------------------------------------
    # Connections

    def _await_clients(self, listener: socket.socket) -> None:
        # Not loop.sock_accept(): it does not yield while someone waits, and loses a client when cancelled.
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        # Several: in a crowd, who is refused costs next to nothing, and those behind wait for each of them.
        for _ in range(_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                # Out of descriptors or memory: the connection stays in the queue, so do not spin on it.
                self._log.warning("cannot accept a client, trying again in 1 s", error=str(error))
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                self._pause = loop.call_later(1, self._await_clients, listener)
                return
            connection.settimeout(0)
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        try:
            peer = identify(connection)
        except OSError:
            connection.close()
            return
        limits = self._limits
        mine = sum(uid == peer.uid for uid in self._clients.values())
        room = limits.total if peer.uid == 0 else limits.total - limits.reserved
        if len(self._clients) >= room or (peer.uid != 0 and mine >= limits.each):
            self._log.debug("client refused, there are too many", uid=peer.uid, pid=peer.pid)
            connection.close()
            return
        task = asyncio.create_task(self._serve(connection, peer), name="client")
        self._clients[task] = peer.uid
        task.add_done_callback(lambda done: self._forget(done, connection))

    def _forget(self, task: asyncio.Task[None], connection: socket.socket) -> None:
        uid = self._clients.pop(task)
        if uid not in self._clients.values():
            self._turns.pop(uid, None)
        # Mostly done already by the transport; not so where the task was cancelled before its first line.
        connection.close()

    @asynccontextmanager
    async def _turn(self, uid: int) -> AsyncIterator[None]:
        """One answer of each user at a time, and then whatever else waits.

        Requests that were sent at once would otherwise be answered at once, before anybody else is heard.
        """
        async with self._turns.setdefault(uid, asyncio.Lock()):
            yield
            await asyncio.sleep(0)

    async def _serve(self, connection: socket.socket, peer: Peer) -> None:
        """One connection from its first byte to its end, whatever comes."""
        try:
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=CHUNK)
        except OSError:
            return
        # Zero: drain() then waits until the kernel has taken all, and no answer is made before that.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            await self._converse(Conversation(reader, writer, peer, self._limits))
        except Gone:
            pass
        finally:
            writer.transport.abort()

    async def _converse(self, client: Conversation) -> None:
        first = await client.receive()
        sorry = "nvidiad failed, its journal has the details"
        match wire.protocol(first):
            case wire.Protocol.VARLINK:
                talk, excuse = (
                    self._varlink,
                    wire.error_reply(wire.Refusal(wire.Error.INTERNAL, reason=sorry)),
                )
            case wire.Protocol.HTTP:
                talk, excuse = self._http, wire.response(500, f"{sorry}\n".encode())
            case None:
                return
        try:
            await talk(client, first)
        except Gone:
            raise
        except Exception as error:
            # A fault of ours must neither stop the daemon nor leave the client without an answer.
            self._log.error(
                "a client's request failed", error=repr(error), uid=client.peer.uid, exc_info=True
            )
            await client.send(excuse)

    # -----------------------------------------------------------------------------------------------
    # HTTP

    async def _http(self, client: Conversation, first: bytes) -> None:
        try:
            request = wire.parse_http(await client.head(first))
            async with self._turn(client.peer.uid):
                answer = self._page(request)
        except wire.HttpRefusal as refusal:
            answer = wire.response(refusal.status, f"{refusal.sentence}\n".encode())
        await client.send(answer)

    def _page(self, request: wire.HttpRequest) -> bytes:
        snapshot = self._read()
        document = snapshot.document
        headers = [("Nvidiad-Phase", str(document.get("phase")))]
        match request.path:
            case "/status":
                body = wire.dump(document, pretty=request.query.get("json") == "pretty") + b"\n"
                return wire.response(200, body, kind="application/json", headers=headers)
            case "/status.txt":
                colour = request.query.get("colour") == "yes"
                words = render.text(document, now=self._now(), colour=colour)
                return wire.response(200, words.encode("utf-8", "replace"), headers=headers)
            case "/metrics":
                page = metrics.exposition(document, snapshot.counters, self._process())
                return wire.response(200, page.encode("utf-8", "replace"), kind=metrics.CONTENT_TYPE)
            case "/":
                return wire.response(200, HELP.encode())
            case _:
                raise wire.HttpRefusal(404, "there is /status, /status.txt and /metrics")

    # -----------------------------------------------------------------------------------------------
    # Varlink

    async def _varlink(self, client: Conversation, first: bytes) -> None:
        frames = wire.Frames()
        frames.feed(first)
        try:
            while (message := await client.message(frames)) is not None:
                request = wire.parse_request(message)
                if request.more and request.method == f"{wire.INTERFACE}.GetStatus":
                    wire.only(request)
                    if frames.pending:
                        raise wire.Refusal(wire.Error.INVALID_MESSAGE, reason="nothing may follow 'more'")
                    await self._follow(client)
                    return
                # Who is asked whether somebody may act can be slow, and is asked outside of anybody's turn.
                refused = await self._refused(request, client.peer)
                async with self._turn(client.peer.uid):
                    answer = refused or self._answer(request, client.peer)
                if not request.oneway:
                    await client.send(answer)
        except wire.Refusal as refusal:
            # What is no proper call leaves unclear where the next one begins.
            await client.send(wire.error_reply(refusal))

    async def _refused(self, request: wire.Request, peer: Peer) -> bytes:
        """Why this client may not do what it asks for; empty where it may."""
        if request.method != f"{wire.INTERFACE}.Reconcile":
            return b""
        try:
            await self._authorize(peer)
        except wire.Refusal as refusal:
            return wire.error_reply(refusal)
        return b""

    def _answer(self, request: wire.Request, peer: Peer) -> bytes:
        try:
            return wire.reply(self._call(request, peer))
        except wire.Refusal as refusal:
            return wire.error_reply(refusal)

    def _call(self, request: wire.Request, peer: Peer) -> dict[str, object]:
        if request.upgrade:
            raise wire.Refusal(wire.Error.METHOD_NOT_IMPLEMENTED, method=request.method)
        wire.only(request, *(["interface"] if request.method.endswith(".GetInterfaceDescription") else []))
        match request.method:
            case "org.varlink.service.GetInfo":
                return {
                    "vendor": "nvidiad",
                    "product": "nvidiad",
                    "version": self._version,
                    "url": "",
                    "interfaces": list(INTERFACES),
                }
            case "org.varlink.service.GetInterfaceDescription":
                return {"description": description(wire.read_string(request.parameters, "interface"))}
            case "io.nvidiad.GetStatus":
                return {"status": self._read().document}
            case "io.nvidiad.List":
                driver = self._read().document.get("driver")
                return {"trees": driver.get("installed", []) if isinstance(driver, dict) else []}
            case "io.nvidiad.GetMetrics":
                snapshot = self._read()
                page = metrics.exposition(snapshot.document, snapshot.counters, self._process())
                return {"metrics": page}
            case "io.nvidiad.Reconcile":
                self._act(f"asked by uid {peer.uid}, pid {peer.pid}")
                return {}
        if request.interface in INTERFACES:
            raise wire.Refusal(wire.Error.METHOD_NOT_FOUND, method=request.method)
        raise wire.Refusal(wire.Error.INTERFACE_NOT_FOUND, interface=request.interface)

    async def _authorize(self, peer: Peer) -> None:
        if peer.uid == 0:
            return
        # In a thread: where the group is not local, a directory service is asked, and it may be slow.
        group = await asyncio.to_thread(group_id, GROUP)
        if group is None or group not in peer.groups:
            # Not louder: everyone may ask, and nobody may fill the journal.
            self._log.debug("client may not act", uid=peer.uid, pid=peer.pid)
            raise wire.Refusal(wire.Error.NOT_AUTHORIZED, uid=peer.uid)

    async def _follow(self, client: Conversation) -> None:
        """Send the status at every change until the client goes, or says anything more."""
        event = asyncio.Event()
        self._followers.add(event)
        watching = asyncio.create_task(client.wait_for_end(event), name="follower")
        told = b""
        try:
            while not watching.done():
                event.clear()
                answer = wire.reply({"status": self._read().document}, continues=True)
                if answer != told:
                    told = answer
                    await client.send(answer)
                if not watching.done():
                    await event.wait()
        finally:
            self._followers.discard(event)
            watching.cancel()


def description(interface: str) -> str:
    """An interface in Varlink's definition language."""
    from importlib import resources

    if interface not in INTERFACES:
        raise wire.Refusal(wire.Error.INTERFACE_NOT_FOUND, interface=interface)
    return resources.files("nvidiad.rim").joinpath(f"{interface}.varlink").read_text("utf-8")


def listen(path: Path) -> socket.socket:
    """A socket at the path that everyone may connect to; one that a dead daemon left is replaced."""
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise Permanent(Code.INTERNAL, f"'{path}' is there and is no socket", "Remove it.")
        if _answers(path):
            raise Permanent(Code.INTERNAL, f"another nvidiad serves '{path}'", "Stop it first.")
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        # Before listen(): until then everyone is refused alike.
        path.chmod(0o666)
        # As systemd does it; the kernel has a limit of its own.
        listener.listen(4096)
    except OSError as error:
        listener.close()
        raise Permanent(Code.INTERNAL, f"cannot listen on '{path}': {error.strerror}") from error
    return listener


def _answers(path: Path) -> bool:
    """Whether someone listens; a queue that is full (EAGAIN) has someone at its end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True
