# SPDX-License-Identifier: Apache-2.0
"""A kernel as files below a directory: its image, modules and Module.symvers, wherever an OS has them."""

from __future__ import annotations

import gzip
import lzma
import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.world import files, process

if TYPE_CHECKING:
    from collections.abc import Callable

_ZSTD_TIMEOUT = 120.0
_LINKS_AT_MOST = 40
_COMPRESSED = (".xz", ".zst", ".gz")
_REMEDY = "Make the source of the kernel again, or name another one."


class KernelFiles:
    """One kernel release below `root`; what is not there yet, `fetch` may bring to the same place there."""

    def __init__(self, root: Path, release: str, fetch: Callable[[str, Path], bool] | None = None) -> None:
        self.root = root
        self.release = release
        self._fetch = fetch
        """Writes the file at a path of the source into a directory; False where the source has none."""

    def image(self) -> Path:
        """The kernel itself, as a boot loader takes it."""
        k = self.release
        found = self._find(
            *(f"usr/boot/vmlinuz-{k}", f"boot/vmlinuz-{k}", f"usr/lib/modules/{k}/vmlinuz"),
            *(f"lib/modules/{k}/vmlinuz",),
        )
        if found is None:
            raise self._missing(f"'vmlinuz-{k}'", "Give one that has (--kernel-root), or --skip-boot.")
        return found

    def listing(self) -> str:
        """The text of modules.dep, or of modules.order where nobody has run depmod (Debian's packages)."""
        found = self._module_file("modules.dep", "modules.order")
        if found is None:
            raise self._missing(f"'modules.dep' in 'lib/modules/{self.release}'")
        return self._text(found)

    def builtin(self) -> str:
        """The text of modules.builtin; empty where there is none."""
        found = self._module_file("modules.builtin")
        return self._text(found) if found else ""

    def symvers(self) -> str:
        """The text of Module.symvers; empty where there is none."""
        k = self.release
        headers = f"usr/src/linux-headers-{k}/Module.symvers"
        found = self._module_file("build/Module.symvers", "source/Module.symvers") or self._find(headers)
        return self._text(found) if found else ""

    def module(self, path: str) -> bytes:
        """A module by its path in the listing, decompressed; modules.order names none as compressed."""
        found = self._module_file(path, *(path + suffix for suffix in _COMPRESSED))
        if found is None:
            raise self._missing(f"'{path}'")
        try:
            return _decompressed(found)
        except (OSError, EOFError, lzma.LZMAError) as error:
            sentence = f"'{found}' cannot be read: {error}"
            raise Permanent(Code.SOURCE_INVALID, sentence, _REMEDY) from error

    def _module_file(self, *names: str) -> Path | None:
        folders = (f"usr/lib/modules/{self.release}", f"lib/modules/{self.release}")
        return self._find(*(f"{folder}/{name}" for name in names for folder in folders))

    def _find(self, *paths: str) -> Path | None:
        for path in paths:
            if (found := inside(self.root, path)) is not None:
                return found
        for path in paths if self._fetch else ():
            if ".." in path.split("/"):
                continue  # it would be written beside our directory
            # Where the way to it has links, they are the source's to follow.
            target = self.root / path
            if self._fetch is not None and self._fetch(f"/{path}", target.parent) and target.is_file():
                return target
        return None

    def _text(self, path: Path) -> str:
        with files.explained(f"reading '{path}'", Code.SOURCE_INVALID):
            return path.read_text(errors="replace")

    def _missing(self, what: str, remedy: str = "") -> Permanent:
        sentence = f"the source of kernel '{self.release}' has no {what}"
        return Permanent(Code.SOURCE_INVALID, sentence, remedy or _REMEDY)


def inside(root: Path, path: str) -> Path | None:
    """The file at a path below `root`, whose links lead to places below it; None where there is none.

    Debian's /lib/modules/K/build names /usr/src/linux-headers-K, which here is not this machine's.
    """
    rest = list(PurePosixPath(path).parts)
    here: list[str] = []
    for _ in range(_LINKS_AT_MOST * 10):
        if not rest:
            found = root.joinpath(*here)
            return found if found.is_file() else None
        part = rest.pop(0)
        if part == "..":
            here = here[:-1]
        elif part not in ("/", "."):
            step = root.joinpath(*here, part)
            if step.is_symlink():
                target = PurePosixPath(os.readlink(step))  # noqa: PTH115
                here = [] if target.is_absolute() else here
                rest = [*target.parts, *rest]
            else:
                here.append(part)
    return None


def _decompressed(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".zst":
        # Python learns this format in 3.14 only.
        with tempfile.TemporaryDirectory(prefix="nvidiad-module-") as folder:
            plain = Path(folder) / "module.ko"
            process.check(
                ["zstd", "--quiet", "--decompress", "-o", str(plain), str(path.absolute())],
                timeout=_ZSTD_TIMEOUT,
                code=Code.SOURCE_INVALID,
                remedy="Install zstd.",
            )
            return plain.read_bytes()
    return path.read_bytes()
