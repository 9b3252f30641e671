# SPDX-License-Identifier: Apache-2.0
"""Downloads: content of a registry as it comes, resumed where it was cut, and unpacked on the way."""

from __future__ import annotations

import hashlib
import itertools
import time
import zlib
from typing import TYPE_CHECKING, Any, Protocol

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.value import Value
from nvidiad.thought import distribution, refusals

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from nvidiad.thought.distribution import Document
    from nvidiad.world.pace import Pace
    from nvidiad.world.registry import Flow

_PIECE = 64 << 10
_INFLATED = 256 << 10
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# In a row without a byte more; in all, so that nobody feeds us a byte a time for ever.
_IN_VAIN, _IN_ALL = 3, 64
_PAUSE = 0.2
_PARTIAL, _RANGE = 206, 416


class Place(Protocol):
    """Where content is had from by its digest: a registry, one of its mirrors, a directory."""

    @property
    def name(self) -> str: ...
    def head(self, reference: str) -> str | None: ...
    def manifest(self, reference: str) -> Document: ...
    def blob(self, digest: str, limit: int = ...) -> bytes: ...
    def flow(self, digest: str, part: str = ...) -> AbstractContextManager[Flow]: ...
    def referrers(self, digest: str) -> tuple[tuple[str, str], ...]: ...
    def close(self) -> None: ...


class Blob(Value):
    """What is downloaded, and what it is told as."""

    digest: str
    size: int
    what: str


class Patience(Value):
    """When a download ends though it has not come to its end."""

    stop: threading.Event
    """Another part of the same image has failed, or nobody wants it any more."""
    deadline: float
    total: float
    """Seconds; when half of them are over, nothing more comes from a place but the last one."""
    pace: Pace | None = None

    def until(self, *, last: bool) -> float:
        """When a place has to be done: the others leave the last one time for all of it."""
        return self.deadline if last else self.deadline - self.total / 2

    def end(self) -> None:
        """Whoever downloads is to give up, also while the pace makes it wait."""
        self.stop.set()
        if self.pace is not None:
            self.pace.end()


def pieces(
    places: Sequence[Place], blob: Blob, patience: Patience, came: Callable[[int], None]
) -> Iterator[bytes]:
    """The content, of which nobody has checked the digest yet; `came` is told of each piece.

    A connection that is cut is made again, at the next place, for what is missing.
    """
    done = vain = 0
    for tries, place in enumerate(itertools.cycle(places), 1):
        before, last = done, place is places[-1]
        if not last and time.monotonic() > patience.until(last=False):
            continue
        try:
            with place.flow(blob.digest, f"bytes={done}-" if done else "") as flow:
                for piece in _rest(flow, blob, done):
                    done += len(piece)
                    if done > blob.size:
                        detail = f"{blob.digest} is longer than its manifest says"
                        raise refusals.failure(Code.IMAGE_CORRUPT, blob.what, detail)
                    _go_on(blob, patience, len(piece))
                    came(len(piece))
                    yield piece
                    if done < blob.size and not last and time.monotonic() > patience.until(last=False):
                        detail = f"'{place.name}' is too slow"
                        raise refusals.failure(Code.REGISTRY_STALLED, blob.what, detail)
            if done == blob.size:
                return
            detail = f"the connection ended after {done} of {blob.size} bytes"
            raise refusals.failure(Code.REGISTRY_UNREACHABLE, blob.what, detail)
        except Failure as failure:
            vain = 0 if done > before else vain + 1
            elsewhere = len(places) > 1 and vain < len(places) and failure.code is not Code.PULL_TIMEOUT
            again = failure.code is Code.REGISTRY_UNREACHABLE and vain < _IN_VAIN * len(places)
            if not (elsewhere or again) or tries >= _IN_ALL:
                raise
            pause = min(_PAUSE * 2 ** min(vain, 6), patience.deadline - time.monotonic())
            patience.stop.wait(max(0, pause))
            _go_on(blob, patience, 0)


def _rest(flow: Flow, blob: Blob, done: int) -> Iterator[bytes]:
    """What comes after the bytes that are there, also from who knows nothing of parts."""
    if flow.status in (404, _RANGE):
        detail = "its content is not there" if flow.status == 404 else f"{blob.digest} is shorter than said"
        raise refusals.failure(Code.IMAGE_CORRUPT, blob.what, detail)
    if flow.status >= 400:
        body = flow.read(_PIECE)
        raise distribution.refusal(flow.status, body, blob.what, writing=False)
    known = 0 if flow.status == _PARTIAL else done
    while piece := flow.read(_PIECE):
        if known < len(piece):
            yield piece[known:]
        known = max(0, known - len(piece))


def _go_on(blob: Blob, patience: Patience, count: int) -> None:
    if patience.stop.is_set() or (patience.pace and count and not patience.pace.take(count)):
        raise refusals.failure(Code.PULL_FAILED, blob.what, "given up")
    if time.monotonic() > patience.deadline:
        raise refusals.overdue(blob.what, patience.total)


class Hashed:
    """An iterator that hashes what goes by."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source = source
        self._hash = hashlib.sha256()

    def __iter__(self) -> Hashed:
        return self

    def __next__(self) -> bytes:
        piece = next(self._source)
        self._hash.update(piece)
        return piece

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class Unreadable(ValueError):
    """Compressed in a way that cannot be read here."""


def inflated(source: Iterator[bytes]) -> Iterator[bytes]:
    """What was compressed with gzip or zstd, or not at all; ValueError for what is damaged."""
    head = b""
    for piece in source:
        head += piece
        if len(head) >= len(_ZSTD):
            break
    if head.startswith(_GZIP):
        yield from _unzipped(head, source)
    elif head.startswith(_ZSTD):
        yield from _unpressed(head, source)
    else:
        yield head
        yield from source


def _unzipped(head: bytes, source: Iterator[bytes]) -> Iterator[bytes]:
    member = zlib.decompressobj(31)
    try:
        for piece in itertools.chain((head,), source):
            data = piece
            while data:
                if member.eof:
                    # Another member, or what fills a block.
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    member = zlib.decompressobj(31)
                if out := member.decompress(data, _INFLATED):
                    yield out
                data = member.unused_data if member.eof else member.unconsumed_tail
        while not member.eof and (out := member.decompress(member.unconsumed_tail, _INFLATED)):
            yield out
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not member.eof:
        raise ValueError("it ends in the middle of compressed data")


def _unpressed(head: bytes, source: Iterator[bytes]) -> Iterator[bytes]:
    zstd = _zstd()
    frame = zstd.ZstdDecompressor()
    try:
        for piece in itertools.chain((head,), source):
            data = piece
            while data or not (frame.eof or frame.needs_input):
                if frame.eof:
                    frame = zstd.ZstdDecompressor()
                if out := frame.decompress(data, _INFLATED):
                    yield out
                data = frame.unused_data if frame.eof else b""
                if frame.needs_input and not data:
                    break
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from None
    if not frame.eof:
        raise ValueError("it ends in the middle of compressed data")


def _zstd() -> Any:
    """Python has it since 3.14; before that, as a package that need not be there."""
    import importlib

    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise Unreadable("its layers are compressed with zstd, and this nvidiad's Python cannot read that")


class Stream:
    """Pieces of any size, read by the byte."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source = source
        self._held = memoryview(b"")

    def some(self, most: int) -> memoryview:
        """At least one byte and at most so many; none at the end."""
        while not self._held:
            piece = next(self._source, None)
            if piece is None:
                return self._held
            self._held = memoryview(piece)
        taken, self._held = self._held[:most], self._held[most:]
        return taken

    def read(self, count: int) -> bytes:
        """Exactly so many bytes; fewer at the end."""
        out = bytearray()
        while len(out) < count and (part := self.some(count - len(out))):
            out += part
        return bytes(out)

    def skip(self, count: int) -> None:
        """Leave out so many bytes; ValueError where there are not as many."""
        while count:
            part = self.some(count)
            if not part:
                raise ValueError("it ends in the middle of a member")
            count -= len(part)
