# SPDX-License-Identifier: Apache-2.0
"""Kernels on disk: the symbols of one as its own modules have them, and what modprobe is told of these."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.thought import parse, symbols
from nvidiad.thought.symbols import Imports, Known
from nvidiad.world import files

if TYPE_CHECKING:
    from collections.abc import Callable

# Enough to meet what a driver imports; the rest of some thousand would add little.
MODULES_AT_MOST = 150
# The daemon may have 512 MB, and a module with its debugging symbols can have more.
BYTES_AT_MOST = 64 << 20
_MODPROBE = ("etc/modprobe.d", "run/modprobe.d", "usr/local/lib/modprobe.d", "usr/lib/modprobe.d")
_SYMVERS = ("symvers", "symvers.gz", "symvers.xz", "symvers.zst")
# Neighbours of a GPU's driver import what that does.
_NEAR = re.compile(r"/(drm|video|vfio|i2c|ipmi|iommu|dma-buf)/")
_REFUSES = re.compile(r"\s*install\s+(\S+)\s+(?:/usr)?/bin/(?:false|true)\b")


class Kernels:
    """The kernels of a host as files below `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def imports(self, paths: tuple[str, ...]) -> tuple[Imports, ...]:
        """What modules of a tree say of symbols, in the order of their paths."""
        return tuple(_imports(Path(path)) for path in paths)

    def symbols(self, kernel: str, wanted: frozenset[str]) -> Known:
        """The CRCs that a kernel gives these symbols, as far as its own files on disk tell."""
        folder = self._folder(kernel)
        if folder is None:
            return Known({}, why=f"the OS has no modules of kernel '{kernel}' on disk")
        own = _own(folder)
        if not own:
            return Known({}, why=f"'{folder}' has no modules of the OS's own")
        if (listed := self._symvers(kernel, folder)) is not None:
            path, text = listed
            crcs = {name: export.crc for name, export in symbols.symvers(text).items()}
            # Some exports have none; where nothing has, the kernel was built without MODVERSIONS.
            whole = any(crcs.values())
            return Known(crcs if whole else {}, source=f"'{path}'", whole=whole, vermagic=_vermagic(own))
        return _gathered(folder, own, wanted)

    def forbidden(self, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        """Those of these modules that modprobe is told not to load, each with the file that says so."""
        found: dict[str, str] = {}
        asked = {naming.module_name(name) for name in names}
        for place in _MODPROBE:
            for path in sorted((self.root / place).glob("*.conf")):
                for line in files.text(path).splitlines():
                    match = _REFUSES.match(line)
                    if match and naming.module_name(match[1]) in asked:
                        found.setdefault(naming.module_name(match[1]), str(path))
        return tuple(sorted(found.items()))

    def _folder(self, kernel: str) -> Path | None:
        places = (self.root / place / kernel for place in ("usr/lib/modules", "lib/modules"))
        return next((place for place in places if place.is_dir()), None)

    def _symvers(self, kernel: str, folder: Path) -> tuple[Path, str] | None:
        """The list that some OSes have beside their modules. That of headers may be of another build."""
        beside = [folder / name for name in _SYMVERS]
        boot = [self.root / "boot" / name.replace("symvers", f"symvers-{kernel}", 1) for name in _SYMVERS]
        for path in (*beside, *boot):
            if (data := _read(path)) is not None:
                return path, data.decode("utf-8", "replace")
        return None


def _own(folder: Path) -> list[Path]:
    """The modules that came with the kernel, those that are of most use first."""
    listing = files.text(folder / "modules.dep") or files.text(folder / "modules.order")
    names = [line.partition(":")[0].strip() for line in listing.splitlines()]
    own = [name for name in names if name.startswith("kernel/")]
    return [folder / name for name in sorted(own, key=lambda name: _NEAR.search(name) is None)]


def _gathered(folder: Path, own: list[Path], wanted: frozenset[str]) -> Known:
    crcs: dict[str, int] = {}
    vermagic, readable = "", 0
    for path in own:
        data = _read(path)
        if data is None:
            continue
        try:
            section = _sections(_reader(data))
            found = symbols.versions(section)
            vermagic = vermagic or parse.modinfo(section(".modinfo")).get("vermagic", ("",))[0]
        except ValueError:
            continue
        readable += 1
        crcs |= {name: crc for name, crc in found.items() if name in wanted and name not in crcs}
        if len(crcs) == len(wanted) or readable == MODULES_AT_MOST:
            break
    if not readable:
        kinds = ", ".join(sorted({path.suffix for path in own}))
        return Known({}, why=f"none of the modules in '{folder}' can be read here ({kinds})")
    return Known(crcs, source=f"{readable} modules in '{folder}'", vermagic=vermagic)


def _vermagic(own: list[Path]) -> str:
    """That of the first module that can be read."""
    for data in filter(None, map(_read, own[:8])):
        try:
            section = parse.elf_section(_reader(data), ".modinfo")
        except ValueError:
            continue
        return parse.modinfo(section or b"").get("vermagic", ("",))[0]
    return ""


def _imports(path: Path) -> Imports:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            section = _sections(lambda at, size: os.pread(descriptor, size, at))
            found = symbols.versions(section), symbols.exports(section)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        sentence = f"'{path}' cannot be read as a kernel module: {error}"
        raise Permanent(Code.TREE_INVALID, sentence, "Install the image again.") from error
    return Imports(naming.module_name(path.name), str(path), *found)


def _sections(read: Callable[[int, int], bytes]) -> Callable[[str], bytes]:
    return lambda name: parse.elf_section(read, name) or b""


def _reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda at, size: data[at : at + size]


def _read(path: Path) -> bytes | None:
    """A file, decompressed; None where there is none, or none that can be read here in little memory."""
    try:
        unpack, broken = _format(path.suffix)
        if path.stat().st_size > BYTES_AT_MOST:
            return None
        with unpack(path) as file:
            data = file.read(BYTES_AT_MOST + 1)
    except ImportError:
        return None
    except (OSError, EOFError, ValueError, broken):
        return None
    return data if len(data) <= BYTES_AT_MOST else None


def _format(suffix: str) -> tuple[Callable[[Path], BinaryIO], type[Exception]]:
    """How a file of this kind is opened, and what is raised where it is broken."""
    import gzip
    import lzma
    import zlib
    from importlib import import_module

    match suffix:
        case ".xz":
            return cast("Callable[[Path], BinaryIO]", lzma.open), lzma.LZMAError
        case ".gz":
            return cast("Callable[[Path], BinaryIO]", gzip.open), zlib.error
        case ".zst":
            # Python learns this format in 3.14.
            zstd = import_module("compression.zstd")
            return zstd.open, zstd.ZstdError
        case _:
            return lambda path: path.open("rb"), OSError
