# SPDX-License-Identifier: Apache-2.0
"""Provision: of what an image consists in its registry, how much room it takes, and which images may go."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Code, Transient
from nvidiad.nouns.manifest import FILES, LABEL, SIZE
from nvidiad.nouns.value import Value
from nvidiad.thought.pull import DIGEST, clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nvidiad.nouns.errors import Failure
    from nvidiad.thought.distribution import Document

GATEWAY = "nvidiad-gentle"
"""The first part of the name below which a gateway of ours serves an image."""
_OURS = re.compile(rf"127\.0\.0\.1:[0-9]+/{GATEWAY}/[0-9a-f]+@{DIGEST.pattern}")
# More than any layer has; and it stays a number of seconds, whatever it is divided by.
_NO_IMAGE = 10**15
# A driver's tree is some hundred files, its image a base of a few hundred more.
INODES = 1000
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


# ---------------------------------------------------------------------------------------------------
# In its registry


class Contents(Value):
    """What a manifest or an index names."""

    manifests: tuple[str, ...] = ()
    config: str = ""
    config_size: int = 0
    layers: tuple[tuple[str, int], ...] = ()
    """Digests and the bytes that are fetched."""

    @property
    def blobs(self) -> dict[str, int]:
        """Everything that is no manifest, with its bytes."""
        return {**dict(self.layers), **({self.config: self.config_size} if self.config else {})}

    @property
    def compressed(self) -> int:
        """The bytes of all layers, as they are fetched."""
        return sum(size for _, size in self.layers)


def contents(document: Document) -> Contents:
    """What a manifest or an index names; what is not in the form of either is left out."""
    said = document.content()
    config = said.get("config")
    layers = [(digest, _size(one)) for one in _list(said, "layers") if (digest := _digest(one))]
    return Contents(
        manifests=tuple(digest for one in _list(said, "manifests") if (digest := _digest(one))),
        config=_digest(config),
        config_size=_size(config),
        layers=tuple(dict(layers).items()),
    )


def manifest_for(document: Document, machine: str) -> str:
    """The manifest in an index that is for this machine (`uname -m`); empty where there is none."""
    wanted = _ARCHITECTURES.get(machine, machine)
    for one in _list(document.content(), "manifests"):
        platform = one.get("platform") if isinstance(one, dict) else None
        if isinstance(platform, dict) and (platform.get("os"), platform.get("architecture")) == (
            "linux",
            wanted,
        ):
            return _digest(one)
    return ""


def tree_size(config: bytes) -> int:
    """The bytes of the tree in an image, as its configuration's label says; 0 where it says nothing."""
    return _said(config, SIZE)


def tree_files(config: bytes) -> int:
    """How many inodes that tree takes; what is enough for most where its image does not say."""
    return _said(config, FILES) or INODES


def _said(config: bytes, label: str) -> int:
    try:
        said = json.loads(config)["config"]["Labels"].get(label, "")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return 0
    return int(said) if isinstance(said, str) and re.fullmatch(r"[0-9]{1,15}", said) else 0


def _list(said: dict[str, Any], name: str) -> list[Any]:
    found = said.get(name)
    return found if isinstance(found, list) else []


def _digest(said: object) -> str:
    digest = said.get("digest") if isinstance(said, dict) else None
    return digest if isinstance(digest, str) and DIGEST.fullmatch(digest) else ""


def _size(said: object) -> int:
    size = said.get("size") if isinstance(said, dict) else None
    return size if type(size) is int and 0 < size < _NO_IMAGE else 0


# ---------------------------------------------------------------------------------------------------
# On the disk


class Place(Value):
    """A directory that an image or its tree needs room in."""

    directory: str
    device: int
    """Two directories of one file system share what is free there."""
    free: int
    pulling: int
    """What is needed there while the image is pulled."""
    installing: int
    """What is needed there while its tree is installed."""
    files: int = 0
    """How many inodes are needed there."""
    inodes: int | None = None
    """How many are free; None where the file system makes them as they are needed."""


def engine_needs(compressed: int, tree: int) -> tuple[int, int]:
    """What an engine takes while it pulls, when layers lie there until they are unpacked, and after that.

    Of an image that does not say how large its tree is, the least is known: unpacking makes nothing smaller.
    """
    unpacked = max(compressed, tree)
    return compressed + unpacked, unpacked


def shortage(reference: str, places: Sequence[Place]) -> Failure | None:
    """Why there is no room for an image; None where there is."""
    for device in dict.fromkeys(place.device for place in places):
        here = [place for place in places if place.device == device]
        needed = max(sum(place.pulling for place in here), sum(place.installing for place in here))
        free = min(place.free for place in here)
        files, inodes = sum(place.files for place in here), here[0].inodes
        where = " and ".join(f"'{place.directory}'" for place in here)
        if inodes is not None and files > inodes:
            return Transient(
                Code.DISK_FULL,
                f"'{clean(reference)}' needs {files} inodes in {where}, {inodes} are free there",
                "Remove small files there (see 'df -i'; try 'docker system prune'), or use another disk.",
            )
        if needed > free:
            return Transient(
                Code.DISK_FULL,
                f"'{clean(reference)}' needs {needed} bytes in {where}, {free} are free there",
                "Make room there (try 'docker system prune') or use a larger disk.",
            )
    return None


# ---------------------------------------------------------------------------------------------------
# In the engine


class Held(Value):
    """An image in the engine: its names with a tag, those with a digest, and whether it has our labels."""

    tags: tuple[str, ...]
    digests: tuple[str, ...]
    ours: bool


def held(listed: Iterable[Any]) -> tuple[Held, ...]:
    """What an engine lists."""

    def names(value: object, *, digests: bool) -> tuple[str, ...]:
        found = value if isinstance(value, list) else []
        # Engines of old write `<none>` where there is no name; with containerd's store there are names by
        # digest among the tags.
        return tuple(
            name
            for name in found
            if isinstance(name, str) and "<none>" not in name and ("@" in name) is digests
        )

    return tuple(
        Held(
            names(one.get("RepoTags"), digests=False),
            names(one.get("RepoDigests"), digests=True),
            isinstance(labels := one.get("Labels"), dict) and f"{LABEL}schema" in labels,
        )
        for one in listed
        if isinstance(one, dict)
    )


def expendable(images: Sequence[Held], repository: str, digest: str) -> tuple[str, ...]:
    """The names that the engine may forget once the tree of this digest is complete.

    These are the image itself, others of its repository that a killed nvidiad pulled, and what gateways
    left. An image that somebody gave a tag is theirs.
    """
    here = _familiar(repository)
    gone: list[str] = []
    for image in images:
        for name in image.digests:
            of, _, content = _familiar(name).partition("@")
            same = of == here and (content == digest or image.ours)
            if _OURS.fullmatch(name) or (same and not image.tags):
                gone.append(name)
    return tuple(gone)


def _familiar(name: str) -> str:
    """A name as engines list it: without the registry and folder that they take where none is named."""
    for prefix in ("index.docker.io/", "docker.io/"):
        if name.startswith(prefix):
            return name.removeprefix(prefix).removeprefix("library/")
    return name


def begun(images: Sequence[Held], digest: str) -> str:
    """The repository of a gateway that is gone but gave all of an image; empty where there is none."""
    names = (name for image in images for name in image.digests)
    return next(
        (name.partition("@")[0] for name in names if _OURS.fullmatch(name) and name.endswith(f"@{digest}")),
        "",
    )
