# SPDX-License-Identifier: Apache-2.0
"""Seen: an image as its registry shows it to nvidiad itself, and whether there is room for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.value import Value
from nvidiad.thought import provision
from nvidiad.thought.provision import Place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nvidiad.thought.distribution import Document
    from nvidiad.thought.provision import Contents
    from nvidiad.world.repository import Repository


class Seen(Value):
    """An image as its registry shows it to nvidiad."""

    document: Document
    parts: Contents
    """Of the image for this machine, where `document` is an index of several."""
    tree: int
    """The bytes of the tree in it, 0 where it does not say."""
    files: int


def see(repository: Repository, digest: str) -> Seen:
    """Look at an image without fetching it."""
    document = repository.manifest(digest)
    inner = provision.manifest_for(document, os.uname().machine)
    parts = provision.contents(repository.manifest(inner) if inner else document)
    config = repository.blob(parts.config) if parts.config else b""
    return Seen(document, parts, provision.tree_size(config), provision.tree_files(config))


def store(about: Mapping[str, Any]) -> Path | None:
    """Where an engine that says this of itself keeps its images, as this host sees it.

    None where that place is none of the engine's: it sees other directories than we do, or keeps its images
    elsewhere.
    """
    root = Path(str(about.get("DockerRootDir", "")))
    ours = root.is_absolute() and (root / str(about.get("Driver", "?"))).is_dir()
    return root if ours else None


def place(path: Path, needed: tuple[int, int, int]) -> Place | None:
    """What is free where a directory is or will be; None where nobody can tell."""
    there = next((one for one in (path, *path.parents) if one.is_dir()), path)
    try:
        free = os.statvfs(there)
        inodes = free.f_favail if free.f_files else None
        return Place(str(path), there.stat().st_dev, free.f_bavail * free.f_frsize, *needed, inodes)
    except OSError:
        return None
