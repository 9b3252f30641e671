# SPDX-License-Identifier: Apache-2.0
"""CUDA: a toolkit as the tree of an image, with the oldest driver that it works with in its manifest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Protocol

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns import naming
from nvidiad.nouns.entries import FileEntry
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Progress
from nvidiad.nouns.value import replace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvidiad.image.nouns.model import Architecture
    from nvidiad.nouns.entries import Entry
    from nvidiad.nouns.manifest import Manifest

_SAYS = "version.json"
"""In NVIDIA's toolkits: what they are, of which version."""


class Files(Protocol):
    """Works on the files of a tree; the workspace is one."""

    def copy(self, source: Path, dest: Path, *names: str) -> None: ...
    def drop_empty(self, tree: Path) -> None: ...
    def entries(self, tree: Path) -> tuple[Entry, ...]: ...
    def read(self, path: Path) -> str: ...
    def write(self, path: Path, text: str) -> None: ...


def cuda_tree(
    toolkit: Path,
    version: str,
    minimum_driver: str,
    architecture: Architecture,
    root: Path,
    files: Files,
    tell: Callable[[Progress], None],
) -> tuple[Manifest, str]:
    """Lay the tree of a CUDA down below `root`, as the image has it; its manifest, as value and as text.

    `toolkit` is what others have at /usr/local/cuda-VERSION. Raises source-invalid where it is no toolkit or
    one of another version, and where a version cannot be one; manifest-invalid where a file or link of it
    cannot be in a tree (an absolute link, say).
    """
    if not naming.is_version(version) or version == naming.CURRENT:
        raise _refused(f"'{version}' is no CUDA version", "Give one such as 12.4.1.")
    if not naming.is_driver(minimum_driver):
        remedy = "Give one such as 525.60.13; CUDA's release notes have a table of them."
        raise _refused(f"'{minimum_driver}' is no driver version", remedy)
    _check_toolkit(toolkit, version, files)
    tree = root / "opt/cuda" / version
    tell(Progress("assemble", f"tree of CUDA {version}"))
    files.copy(toolkit, tree)
    # A manifest lists files and links: a directory without any would be none of its own.
    files.drop_empty(tree)
    entries = tuple(_with_plain_mode(tree, entry) for entry in files.entries(tree))
    made = manifests.cuda(version, minimum_driver, architecture.machine, entries)
    tell(Progress("assemble", "manifest", made.size, made.size))
    text = manifests.render(made)
    # What the daemon would refuse is refused here, where somebody can do something about it.
    manifests.parse(text)
    files.write(tree / naming.MANIFEST, text)
    return made, text


def _check_toolkit(toolkit: Path, version: str, files: Files) -> None:
    if not any((toolkit / part).is_dir() for part in ("lib64", "lib", "targets")):
        remedy = "Give the directory that has bin/nvcc and lib64."
        raise _refused(f"'{toolkit}' is no CUDA toolkit: it has neither lib64 nor targets", remedy)
    if (toolkit / naming.MANIFEST).exists():
        # It would be taken for the tree's own.
        raise _refused(
            f"'{toolkit}' has a '{naming.MANIFEST}' already", "Give the toolkit as NVIDIA ships it."
        )
    if not (toolkit / _SAYS).is_file():
        return
    try:
        found = json.loads(files.read(toolkit / _SAYS))["cuda"]["version"]
    except (ValueError, KeyError, TypeError):
        return  # an older form of it, or another toolkit's: then nothing says the opposite
    if found != version:
        remedy = "Give the version that it has, or another toolkit."
        raise _refused(f"'{toolkit}' is CUDA {found}, not {version}", remedy)


def _with_plain_mode(tree: Path, entry: Entry) -> Entry:
    """A file that everybody may read and its owner alone write, whoever unpacked it."""
    if not isinstance(entry, FileEntry):
        return entry
    mode = 0o755 if entry.mode & 0o111 else 0o644
    (tree / entry.path).chmod(mode)
    return replace(entry, mode=mode)


def _refused(sentence: str, remedy: str) -> Permanent:
    return Permanent(Code.SOURCE_INVALID, sentence, remedy)
