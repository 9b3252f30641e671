# SPDX-License-Identifier: Apache-2.0
"""Laying down: the directory that becomes a tree gets its files, copied from another one or as they came."""

from __future__ import annotations

import errno
import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns import naming
from nvidiad.nouns.entries import FileEntry, LinkEntry
from nvidiad.nouns.errors import Permanent
from nvidiad.nouns.model import Progress
from nvidiad.thought import layers
from nvidiad.thought.layers import Content
from nvidiad.world import files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from nvidiad.nouns.manifest import Manifest
    from nvidiad.thought.layers import Coming, Kept

STEP = "install-tree"
BLOCK = 4096


def copy(
    source: Path, partial: Path, text: str, manifest: Manifest, tell: Callable[[Progress], None]
) -> None:
    """Everything that a manifest names, from another directory."""
    counted = counter(f"copying to '{partial}'", manifest.size, tell)
    _directories(partial, manifest)
    for entry in manifest.entries:
        if isinstance(entry, LinkEntry):
            (partial / entry.path).symlink_to(entry.target)
        else:
            files.copy_file(source / entry.path, partial / entry.path, entry.mode, counted)
    files.atomic_write(partial / naming.MANIFEST, text)


def give_names(
    landed: Path, partial: Path, text: str, manifest: Manifest, items: Mapping[str, object]
) -> None:
    """Everything that a manifest names, from files that have numbers: each is what its entry says."""
    _directories(partial, manifest)
    named: dict[str, Path] = {}
    for entry in manifest.entries:
        path, item = partial / entry.path, items.get(entry.path)
        if isinstance(entry, LinkEntry):
            path.symlink_to(entry.target)
        elif isinstance(item, Content):
            if item.name in named:
                # It was a hard link in its image.
                os.link(named[item.name], path, follow_symlinks=False)
            else:
                (landed / item.name).rename(path)
                named[item.name] = path
            path.chmod(entry.mode)
        else:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    files.atomic_write(partial / naming.MANIFEST, text)


def counter(detail: str, total: int, tell: Callable[[Progress], None]) -> Callable[[int], None]:
    """What tells how far a step is, from the bytes of each piece."""
    done = 0

    def advanced(count: int) -> None:
        nonlocal done
        done += count
        tell(Progress(STEP, detail, done, total))

    return advanced


def _directories(partial: Path, manifest: Manifest) -> None:
    for directory in sorted(manifest.directories()):
        files.make_directory(partial / directory)


def received(
    landed: Path, found: Mapping[str, Kept], coming: Coming
) -> tuple[str, Manifest, Mapping[str, Kept]]:
    """The manifest of what came, as text and as values, and its items, which are as it says."""
    try:
        place = layers.tree_in(found)
    except ValueError as error:
        raise layers.refused(coming.image, str(error)) from None
    items = layers.below(found, place)
    try:
        text = files.read_small(landed / layers.manifest_name(items), manifests.MAX_CHARACTERS).decode()
        manifest = manifests.parse(text)
    except UnicodeDecodeError:
        raise layers.refused(coming.image, "its manifest is not UTF-8") from None
    except Permanent as failure:
        raise layers.refused(coming.image, failure.sentence) from None
    own = str(naming.tree_path(PurePosixPath("/", layers.TOP), manifest.build))
    if own != f"/{place}":
        raise layers.refused(coming.image, f"its manifest is for '{own}', but it is in '/{place}'")
    manifests.check_build(f"the manifest of '{coming.image}'", manifest.build, coming.build)
    if faults := list(layers.faults(items, manifest)):
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        why = f"the tree in it is not what its manifest says: {faults[0]}{more}"
        raise layers.refused(coming.image, why)
    return text, manifest, items


def needed(manifest: Manifest) -> int:
    """The bytes that a tree takes."""
    sizes = [entry.size for entry in manifest.entries if isinstance(entry, FileEntry)]
    return sum(-(-size // BLOCK) for size in [*sizes, BLOCK]) * BLOCK + len(manifest.directories()) * BLOCK
