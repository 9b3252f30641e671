# SPDX-License-Identifier: Apache-2.0
"""Unpacking: layers of an image, some at a time; what is of a tree lands in files with numbers for names.

No path of an archive is ever opened: where a file belongs is decided when all of them are there.
"""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.value import Value
from nvidiad.thought import layers, refusals, tar
from nvidiad.thought.layers import Content, Folder, Link, Odd, Same
from nvidiad.thought.tar import Sort
from nvidiad.world.downloads import Hashed, Stream, Unreadable, inflated, pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from nvidiad.thought.layers import Item, Kept, Listing
    from nvidiad.thought.tar import Member
    from nvidiad.world.downloads import Blob, Patience, Place

AT_A_TIME = 3
"""Layers, as container engines have it."""
_WRITTEN = 1 << 20
_TELL_EVERY = 0.25
_NAMES = 128 << 20
"""Bytes of memory for what all layers list: what comes has no digest yet that anybody has checked."""
_EACH = 512
"""Bytes of memory for an item or a directory, besides its path."""


class Bounds(Value):
    """What an image may write: bytes, and files, links and directories."""

    bytes: int
    items: int
    names: int = _NAMES
    """Bytes of memory."""


class Layer(Value):
    """A layer to be fetched; with a `content` that is the digest of what it is unpacked to."""

    blob: Blob
    content: str = ""


def unpack(
    places: Sequence[Place],
    wanted: Sequence[Layer],
    directory: Path,
    bounds: Bounds,
    patience: Patience,
    watch: Callable[[int], None],
) -> dict[str, Kept]:
    """What all layers come to; the content of each file lies in `directory` under the name that it says.

    `watch` is told the bytes that have come, some times a second and by the thread that called.

    Raises:
        Failure: of the registry; IMAGE_CORRUPT, where something has another digest or is no archive;
            MANIFEST_INVALID, where there is more than the image says.
        OSError: of the disk.
    """
    room, came = _Room(bounds), _Came()

    def one(number: int) -> Listing:
        try:
            return _layer(places, wanted[number], f"{directory}/{number}-", room, patience, came.add)
        except BaseException:
            patience.end()  # the others come to nothing
            raise

    with ThreadPoolExecutor(min(AT_A_TIME, len(wanted)) or 1, "layer") as pool:
        working = [pool.submit(one, number) for number in range(len(wanted))]
        try:
            while wait(working, _TELL_EVERY).not_done:
                watch(came.bytes)
            watch(came.bytes)
        except BaseException:
            # The pool is not left before all of them have ended.
            patience.end()
            for each in working:
                each.cancel()
            raise
        failed = [error for each in working if (error := each.exception()) is not None]
    if failed:
        # The one that is not a consequence of another.
        raise next((e for e in failed if not _given_up(e)), failed[0])
    return layers.merged(each.result() for each in working)


def _given_up(error: BaseException) -> bool:
    return isinstance(error, Failure) and error.code is Code.PULL_FAILED


class _Came:
    """The bytes of all layers that have come."""

    def __init__(self) -> None:
        self.bytes = 0
        self._held = threading.Lock()

    def add(self, count: int) -> None:
        with self._held:
            self.bytes += count


class _Room:
    """How much more may be written, by all layers together."""

    def __init__(self, bounds: Bounds) -> None:
        self._left = bounds
        self._bounds = bounds
        self._held = threading.Lock()

    def take(self, count: int, items: int, names: int = 0) -> None:
        with self._held:
            left = self._left
            self._left = left = Bounds(left.bytes - count, left.items - items, left.names - names)
            if left.bytes < 0 or left.items < 0:
                most = f"{self._bounds.bytes} bytes and {self._bounds.items} files"
                raise _TooMuch(f"there is more in it than the {most} that it may have by its labels")
            if left.names < 0:
                raise _TooMuch("its paths are more than any tree has")


class _TooMuch(ValueError):
    """More than an image may have."""


def _layer(
    places: Sequence[Place],
    wanted: Layer,
    prefix: str,
    room: _Room,
    patience: Patience,
    came: Callable[[int], None],
) -> Listing:
    blob = wanted.blob
    raw = Hashed(pieces(places, blob, patience, came))
    content = Hashed(inflated(raw))
    stream = Stream(content)
    try:
        listing = _listed(stream, prefix, room)
        # What follows the end of an archive is part of the layer as well.
        while stream.some(_WRITTEN):
            pass
        for _ in raw:
            pass
    except Unreadable as error:
        raise refusals.failure(Code.IMAGE_FOREIGN, blob.what, str(error)) from None
    except _TooMuch as error:
        raise layers.refused(blob.what, str(error)) from None
    except ValueError as error:
        raise refusals.failure(Code.IMAGE_CORRUPT, blob.what, f"layer {blob.digest}: {error}") from None
    for said, found in ((blob.digest, raw.digest), (wanted.content or content.digest, content.digest)):
        if said != found:
            raise refusals.failure(Code.IMAGE_CORRUPT, blob.what, f"layer {said} has digest {found}")
    return listing


def _listed(stream: Stream, prefix: str, room: _Room) -> Listing:
    listing: Listing = []
    around: set[str] = set()
    archive = tar.members(stream.read, stream.skip)
    try:
        member = next(archive)
        while True:
            taken = 0
            path = layers.path_of(member.name)
            if path:
                room.take(0, 1, _weight(path, around) + _length(member.target))
            if path and (hides := layers.hidden(path)):
                listing.append(hides)
            elif path:
                item, taken = _item(member, stream, f"{prefix}{len(listing)}", room)
                listing.append((path, item))
            member = archive.send(taken)
    except StopIteration:
        return listing


def _weight(path: str, around: set[str]) -> int:
    """The memory that a path takes; what it is in is added to `around`."""
    weight = _EACH + 4 * _length(path)  # it is listed, merged, and told apart by its tree
    parent = path.rpartition("/")[0]
    while parent and parent not in around:
        around.add(parent)
        weight += _EACH + _length(parent)
        parent = parent.rpartition("/")[0]
    return weight


def _length(text: str) -> int:
    """One wide character makes all of them wide."""
    return len(text) * (1 if text.isascii() else 4)


def _item(member: Member, stream: Stream, name: str, room: _Room) -> tuple[Item, int]:
    """What a member is, and how much of the stream it took."""
    match member.sort:
        case Sort.FILE:
            room.take(member.size, 0)
            return _written(stream, name, member.size), member.size
        case Sort.DIRECTORY:
            return Folder(), 0
        case Sort.LINK:
            return Link(member.target), 0
        case Sort.HARD_LINK:
            return Same(layers.path_of(member.target)), 0
        case other:
            return Odd(f"a {other}"), 0


def _written(stream: Stream, name: str, size: int) -> Content:
    digest, left = hashlib.sha256(), size
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb", buffering=0) as file:
        while left:
            part = stream.some(min(left, _WRITTEN))
            if not part:
                raise ValueError("it ends in the middle of a file")
            left -= len(part)
            digest.update(part)
            while part:
                part = part[file.write(part) :]
    return Content(os.path.basename(name), size, digest.hexdigest())  # noqa: PTH119
