# SPDX-License-Identifier: Apache-2.0
"""A conversation: one client of the socket, who it is and what it may take."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from nvidiad.nouns.value import Value
from nvidiad.thought import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHUNK = 16 * 1024
# asm-generic; Python names it from 3.14 on.
_SO_PEERGROUPS = 59
# What getsockopt takes at most: 256 groups. Who is in more is not recognised by group.
_GROUPS_ROOM = 1024
_CREDENTIALS = struct.Struct("iII")


class Gone(Exception):
    """The client left, said nothing for too long or did not read what it asked for. None of it is news."""


class Limits(Value):
    """What clients may take, in connections and seconds."""

    total: int = 256
    reserved: int = 16
    """Of the total, what is kept for root."""
    each: int = 32
    """Per user; root is not counted."""
    idle: float = 30.0
    """Until a request is complete, from the connection or the answer before it."""
    stall: float = 30.0
    """Until an answer is taken."""


class Peer(Value):
    """Who is at the other end, as the kernel says it."""

    pid: int
    uid: int
    groups: tuple[int, ...]


class Conversation(Value):
    """A client, its streams and its limits; each wait has an end."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    peer: Peer
    limits: Limits

    async def receive(self) -> bytes:
        """Some bytes; none at the end of the stream."""
        async with _within(self.limits.idle):
            return await self.reader.read(CHUNK)

    async def message(self, frames: wire.Frames) -> bytes | None:
        """The next whole message; None when the client is done, in the middle of one or not."""
        # One time-out for the whole: who sends a byte now and then is idle all the same.
        async with _within(self.limits.idle):
            while (message := frames.take()) is None:
                data = await self.reader.read(CHUNK)
                if not data:
                    return None
                frames.feed(data)
            return message

    async def head(self, first: bytes) -> bytes:
        """An HTTP request up to the empty line."""
        buffer = bytearray(first)
        async with _within(self.limits.idle):
            while (head := wire.http_head(buffer)) is None:
                data = await self.reader.read(CHUNK)
                if not data:
                    raise wire.HttpRefusal(400, "the request is not complete")
                buffer += data
            return head

    async def send(self, data: bytes) -> None:
        """Hand all of it to the kernel."""
        async with _within(self.limits.stall):
            self.writer.write(data)
            await self.writer.drain()

    async def wait_for_end(self, event: asyncio.Event) -> None:
        """Set the event when the client has gone or sent something."""
        with suppress(OSError):
            await self.reader.read(1)
        event.set()


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except OSError as error:
        # TimeoutError is one too.
        raise Gone from error


def identify(connection: socket.socket) -> Peer:
    """Who connected, with the groups they had then."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    groups = [gid]
    with suppress(OSError):
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_ROOM)
        groups += [group for (group,) in struct.iter_unpack("I", raw)]
    return Peer(pid, uid, tuple(groups))


def group_id(name: str) -> int | None:
    """The group's number now: it may be made while we run."""
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
