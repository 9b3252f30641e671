# SPDX-License-Identifier: Apache-2.0
"""Contents: the modules and libraries of a tree on disk, as their own headers tell them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from nvidiad.image.thought import elf, proof
from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.world import files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvidiad.image.thought.elf import KernelModule, Library, Read
    from nvidiad.nouns.manifest import Manifest

_Read = TypeVar("_Read")


class Contents:
    """What is in the files of a tree."""

    def manifest_digest(self, tree: Path) -> str:
        """The sha256 of the manifest's text, as an image's label has it."""
        with files.explained(f"reading the manifest in '{tree}'", Code.TREE_INVALID):
            return files.sha256(tree / naming.MANIFEST)

    def modules(self, tree: Path, manifest: Manifest) -> tuple[KernelModule, ...]:
        """The modules for the manifest's kernel, by name; what cannot be read as one is a failure."""
        found = [_read(tree, path, elf.kernel_module) for path in proof.module_paths(manifest)]
        return tuple(sorted(found, key=lambda module: module.name))

    def libraries(self, tree: Path, manifest: Manifest) -> tuple[Library, ...]:
        """The shared objects and the programs that are linked to some; scripts and data are left out."""
        found: list[Library] = []
        for path in proof.elf_paths(manifest):
            with files.explained(f"reading '{path}'", Code.TREE_INVALID), (tree / path).open("rb") as file:
                is_elf = file.read(len(elf.MAGIC)) == elf.MAGIC
            if is_elf:
                found.append(_read(tree, path, elf.library))
        return tuple(found)

    def module_bytes(self, tree: Path, module: KernelModule) -> bytes:
        """The whole file of a module."""
        with files.explained(f"reading '{module.file.path}'", Code.TREE_INVALID):
            return (tree / module.file.path).read_bytes()


def _read(tree: Path, path: str, as_what: Callable[[Read, str], _Read]) -> _Read:
    with files.explained(f"reading '{path}'", Code.TREE_INVALID), (tree / path).open("rb") as file:
        descriptor = file.fileno()
        try:
            return as_what(lambda offset, size: os.pread(descriptor, size, offset), path)
        except ValueError as error:
            raise Permanent(
                Code.TREE_INVALID, f"'{path}' cannot be used: {error}", "Build the image again."
            ) from error
