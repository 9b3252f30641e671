# SPDX-License-Identifier: Apache-2.0
"""Layers: what those of an image come to, which tree is in it, and whether it is as its manifest says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.entries import MAX_DEPTH, MAX_LENGTH, FileEntry
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.value import Value
from nvidiad.thought.pull import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nvidiad.nouns.manifest import Manifest
    from nvidiad.nouns.model import Build

TOP = "opt"
_TREES = ("opt/nvidia", "opt/cuda")
_PLACE = re.compile(rf"(opt/nvidia/[^/]+/[^/]+|opt/cuda/[^/]+)/{re.escape(naming.MANIFEST)}")
_GONE, _OPAQUE = ".wh.", ".wh..wh..opq"
# Of a path in a manifest, and of the place of the tree before it.
_DEEPEST, _LONGEST = MAX_DEPTH + 1 + 4, MAX_LENGTH + 150


class Content(Value):
    """A file of a layer, as it was written while it came."""

    name: str
    """Of the file in which its content lies."""
    size: int
    sha256: str


class Link(Value):
    """A symbolic link."""

    target: str


class Folder(Value):
    """A directory."""


class Odd(Value):
    """What no tree may have."""

    what: str


class Same(Value):
    """A hard link: the content of another path of the image."""

    path: str


class Hidden(Value):
    """What is below it in lower layers is gone, and it itself too, where not `inside`."""

    inside: bool


class Coming(Value):
    """A tree that is about to come, as its image is labelled."""

    image: str
    """For a person."""
    build: Build
    size: int
    count: int
    """Files, links and directories."""
    manifest: str
    """The SHA-256 of its manifest's text, empty where nobody says it."""


Kept = Content | Link | Folder | Odd
Item = Kept | Same | Hidden
Listing = list[tuple[str, Item]]


def path_of(name: str) -> str:
    """The path of a member below the root of its image, where it may concern a tree; else empty.

    Raises:
        ValueError: a path that is longer or deeper than any in a tree.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    path = "/".join(parts)
    if ".." in parts:
        # Whoever packs an image has no use for that.
        return ""
    above = path in (TOP, *_TREES) or path in (f"{_GONE}{TOP}", f"{TOP}/{_OPAQUE}", _OPAQUE)
    below = any(path.startswith(f"{tree}/") for tree in _TREES)
    hides = path.startswith(f"{TOP}/{_GONE}") and path.count("/") == 1
    if below and (len(parts) > _DEEPEST or len(path) > _LONGEST):
        raise ValueError(f"its path {clean(path[:80])!r}… is too long")
    return path if above or below or hides else ""


def hidden(path: str) -> tuple[str, Hidden] | None:
    """What a member hides of lower layers, where it is one that does so (OCI image layers, whiteouts)."""
    parent, slash, name = path.rpartition("/")
    if name == _OPAQUE:
        return parent, Hidden(inside=True)
    if name.startswith(_GONE):
        return parent + slash + name.removeprefix(_GONE), Hidden(inside=False)
    return None


class _Node:
    """A path of an image: what it is, and what is below it."""

    __slots__ = ("below", "item")

    def __init__(self) -> None:
        self.item: Kept | None = None
        self.below: dict[str, _Node] = {}


def merged(layers: Iterable[Listing]) -> dict[str, Kept]:
    """What the layers of an image come to, the lowest first."""
    root = _Node()
    for layer in layers:
        # Of lower layers only: order within a layer says nothing.
        for path, item in layer:
            if isinstance(item, Hidden) and (node := _find(root, path)):
                node.below = {}
                node.item = node.item if item.inside else None
        for path, item in layer:
            if not isinstance(item, Hidden):
                _put(root, path, item)
    return dict(_flat(root))


def _find(root: _Node, path: str) -> _Node | None:
    node: _Node | None = root
    for part in path.split("/") if path else ():
        node = node.below.get(part) if node else None
    return node


def _put(root: _Node, path: str, item: Content | Link | Folder | Odd | Same) -> None:
    if isinstance(item, Same):
        source = _find(root, item.path)
        item = (source and source.item) or Odd("a hard link to what is not there")
    node = root
    for part in path.split("/"):
        node = node.below.setdefault(part, _Node())
    if not isinstance(item, Folder):
        node.below = {}
    node.item = item


def _flat(root: _Node) -> Iterator[tuple[str, Kept]]:
    # No recursion: it is as deep as an archive likes.
    waiting = [("", root)]
    while waiting:
        prefix, node = waiting.pop()
        for name, below in node.below.items():
            if below.item is not None:
                yield prefix + name, below.item
            waiting.append((f"{prefix}{name}/", below))


def tree_in(found: Mapping[str, object]) -> str:
    """The path of the one tree in an image; ValueError says why there is none."""
    places = [match[1] for path, item in found.items() if (match := _place(path, item))]
    if not places:
        raise ValueError(
            "it has no tree: no /opt/nvidia/DRIVER/OS-VERSION/manifest.json, nor one in /opt/cuda/VERSION"
        )
    if len(places) > 1:
        raise ValueError(f"it has {len(places)} trees instead of one")
    return places[0]


def _place(path: str, item: object) -> re.Match[str] | None:
    return _PLACE.fullmatch(path) if isinstance(item, Content) else None


def below(found: Mapping[str, Kept], place: str) -> dict[str, Kept]:
    """What is below a path, by the path from there."""
    prefix = f"{place}/"
    return {path.removeprefix(prefix): item for path, item in found.items() if path.startswith(prefix)}


def manifest_name(items: Mapping[str, Kept]) -> str:
    """The file in which the manifest of a tree lies."""
    item = items.get(naming.MANIFEST)
    return item.name if isinstance(item, Content) else ""


def faults(items: Mapping[str, object], manifest: Manifest) -> Iterator[str]:
    """What of a tree is not as its manifest says, each as the end of a sentence."""
    entries = {entry.path: entry for entry in manifest.entries}
    directories = manifest.directories()
    for path, item in sorted(items.items()):
        entry = entries.get(path)
        if entry is None:
            if path in directories:
                if not isinstance(item, Folder):
                    yield f"'{path}' is not a directory"
            elif path != naming.MANIFEST:
                yield f"{clean(path)!r} is not in the manifest"
        elif isinstance(entry, FileEntry):
            yield from _file_faults(entry, item)
        elif not isinstance(item, Link):
            yield f"'{path}' is not a symbolic link"
        elif item.target != entry.target:
            yield f"'{path}' names {clean(item.target)!r} instead of '{entry.target}'"
    for path in entries:
        if path not in items:
            yield f"'{path}' is missing"


def _file_faults(entry: FileEntry, item: object) -> Iterator[str]:
    if not isinstance(item, Content):
        yield f"'{entry.path}' is not a file"
    elif item.size != entry.size:
        yield f"'{entry.path}' has {item.size} bytes instead of {entry.size}"
    elif item.sha256 != entry.sha256:
        yield f"'{entry.path}' has sha256 {item.sha256} instead of {entry.sha256}"


def refused(reference: str, why: str) -> Permanent:
    """The failure of an image whose tree is not what it should be, as its own installer would say it."""
    return Permanent(
        Code.MANIFEST_INVALID,
        f"the image '{clean(reference)}' is refused: {why}",
        "build and push the image again",
    )
