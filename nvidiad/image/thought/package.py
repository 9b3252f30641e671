# SPDX-License-Identifier: Apache-2.0
"""A driver's package: which files go into a tree and where, by NVIDIA's `.manifest` or by their names."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NoReturn

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Flavour
from nvidiad.nouns.value import Value, replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LINK = "_SYMLINK"
_COMPUTE_TYPES = frozenset({"CUDA", "CUDA_LIB", "UTILITY_LIB", "OPENCL", "OPENCL_LIB"})
_GRAPHICS_TYPES = frozenset(
    {
        *("OPENGL_LIB", "GLX_CLIENT_LIB", "EGL_CLIENT_LIB", "TLS_LIB", "NVCUVID_LIB", "ENCODEAPI_LIB"),
        *("NVIFR_LIB", "OPENGL_DATA", "VDPAU_LIB", "OPTICALFLOW_LIB", "GLX_CLIENT", "EGL_CLIENT", "OPENGL"),
        *("NVCUVID", "ENCODEAPI", "VDPAU"),
    }
)
# A library has the same type in a driver of ten years ago and today only by luck, but the same name.
_COMPUTE = (
    *("libcuda", "libcudadebugger", "libnvidia-ml", "libnvidia-cfg", "libnvidia-ptxjitcompiler"),
    *("libnvidia-nvvm", "libnvidia-nvvm70", "libnvidia-gpucomp", "libnvidia-opencl", "libnvidia-allocator"),
    *("libnvidia-pkcs11", "libnvidia-pkcs11-openssl3", "libnvidia-tileiras", "libnvidia-sandboxutils"),
    *("libnvidia-api", "libnvidia-compiler", "libnvidia-fatbinaryloader", "libnvidia-nscq"),
)
_GRAPHICS = (
    *("libnvcuvid", "libnvidia-encode", "libnvidia-opticalflow", "libvdpau_nvidia", "libnvidia-glcore"),
    *("libnvidia-eglcore", "libnvidia-glsi", "libnvidia-tls", "libnvidia-glvkspirv", "libnvidia-rtcore"),
    *("libnvidia-fbc", "libnvidia-ngx", "libnvidia-present", "libnvidia-vksc-core", "libnvidia-ifr"),
    *("libGLX_nvidia", "libEGL_nvidia", "libGLESv1_CM_nvidia", "libGLESv2_nvidia", "libnvoptix"),
)
_PROGRAMS = frozenset(
    {
        *("nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-modprobe", "nvidia-imex"),
        *("nvidia-cuda-mps-control", "nvidia-cuda-mps-server", "nvidia-imex-ctl", "nv-fabricmanager"),
    }
)
_OF_PROGRAMS = frozenset({"", "bin", "sbin", "current"})
"""Directories that have them: the top of NVIDIA's package, and those of Debian's."""
_SETUID = "nvidia-modprobe"
_FIRST_FILE = 8
"""Lines of a `.manifest` before its files."""
_OPEN_FROM = 0x1E00
"""The first device with a GSP, which the open modules need: Turing."""


class Item(Value):
    """A file of a package and where it goes."""

    source: str
    """Below the directory where the package is unpacked."""
    path: str
    """Below the tree."""
    mode: int


class Link(Value):
    """A symbolic link of the tree."""

    path: str
    target: str


class Layout(Value):
    """What of a package goes into a tree."""

    items: tuple[Item, ...]
    links: tuple[Link, ...]
    kernel: str
    """The directory of the kernel modules' sources, below the directory where the package is unpacked."""
    pci: tuple[str, ...] = ()
    """Devices that the driver serves, `10de:20b5`."""
    absent: tuple[str, ...] = ()
    """What a driver usually has, and this package has not."""


# ---------------------------------------------------------------------------------------------------
# By NVIDIA's own list


def from_manifest(text: str, driver: str, flavour: Flavour, *, graphics: bool, pci: str = "") -> Layout:
    """The layout that a `.run` package's `.manifest` gives; `pci` is the text of its supported-gpus.json.

    What has an unknown type is left out: a newer package lists more than this program knows.
    Raises source-invalid where it is no such list, or that of another version.
    """
    lines = text.splitlines()
    if len(lines) <= _FIRST_FILE:
        _refuse(driver, "its '.manifest' has no files")
    if (version := lines[1].strip()) != driver:
        _refuse(driver, f"its '.manifest' says that it is version '{version}'")
    listed: dict[str, str] = {}
    for line in lines[_FIRST_FILE:]:
        words = line.split()
        if len(words) < 3 or "COMPAT32" in words:
            continue
        source, _, kind, *rest = words
        source = source.removeprefix("./")
        if source.startswith("32/"):
            continue
        if source.startswith("/") or ".." in source.split("/"):
            _refuse(driver, f"its '.manifest' names '{source}', which lies outside of it")
        if _listed(source, kind, graphics=graphics):
            # The modes of a package are those of its makers' disk: the tree has its own.
            listed[source] = _target(rest) if kind.endswith(_LINK) else ""
    return _layout(listed, driver, flavour, supported(pci, flavour) if pci else ())


def _listed(source: str, kind: str, *, graphics: bool) -> bool:
    """Whether something of this name and type goes into the tree."""
    base = kind.removesuffix(_LINK)
    if base in _COMPUTE_TYPES or (graphics and base in _GRAPHICS_TYPES):
        return True
    # The loaders of GLVND and OpenCL are in neither list: they are the system's and the containers' own.
    return _placed(source, "", graphics=graphics) is not None


def _target(words: list[str]) -> str:
    """Where a link leads: the word that is neither architecture, nor path, nor group."""
    named = [w for w in words if w != "NATIVE" and not w.startswith(("/", "MODULE:", "INHERIT_PATH_DEPTH"))]
    return named[-1] if named else ""


# ---------------------------------------------------------------------------------------------------
# By the names


def from_names(
    names: Mapping[str, str], driver: str, flavour: Flavour, *, graphics: bool, pci: tuple[str, ...] = ()
) -> Layout:
    """The layout of files by their names: paths and what they link to, or nothing for a file.

    For packages that bring no list: Debian's, and NVIDIA's redistributable archive.
    """
    listed = {path: target for path, target in names.items() if _placed(path, driver, graphics=graphics)}
    return _layout(listed, driver, flavour, pci)


def extended(layout: Layout, names: Mapping[str, str], driver: str) -> Layout:
    """A layout with the files of another package of the same version: the fabric manager, IMEX, NSCQ."""
    there = {item.path for item in layout.items}
    places = {
        name: _placed(name, driver, graphics=False) for name, target in sorted(names.items()) if not target
    }
    more = {
        path: Item(name, path, _mode(path)) for name, path in places.items() if path and path not in there
    }
    links = {link.path: link for link in layout.links}
    for name, target in sorted(names.items()):
        path = _placed(name, driver, graphics=False)
        if target and path and path not in more:
            links.setdefault(path, Link(path, PurePosixPath(target).name))
    items = {item.path: item for item in layout.items} | more
    whole = tuple(link for link in links.values() if _leads(link, items, links))
    return replace(layout, items=tuple(items.values()), links=whole)


def device_ids(text: str, flavour: Flavour) -> tuple[str, ...]:
    """Debian's list of supported devices (`10DE1E37`, one a line), as far as the flavour serves them."""
    found = [
        line.strip().lower() for line in text.splitlines() if re.fullmatch(r"[0-9A-Fa-f]{8}", line.strip())
    ]
    return _served(((each[:4], int(each[4:], 16)) for each in found), flavour)


def supported(text: str, flavour: Flavour) -> tuple[str, ...]:
    """The devices of NVIDIA's supported-gpus.json that a driver of this flavour serves, sorted.

    One with a `legacybranch` is served by that older branch only; the open modules serve what has the
    feature `kernelopen`.
    """
    try:
        chips = json.loads(text)["chips"]
        rows = [(int(chip["devid"], 16), "legacybranch" in chip, chip.get("features", ())) for chip in chips]
        if not all(
            0 <= device <= 0xFFFF and isinstance(features, list | tuple) for device, _, features in rows
        ):
            raise ValueError("a chip has no device id, or no list of features")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Permanent(
            Code.SOURCE_INVALID, f"'supported-gpus.json' cannot be read: {error}", "Fetch the package again."
        ) from None
    served = {
        f"10de:{device:04x}"
        for device, legacy, features in rows
        if not legacy and (flavour is not Flavour.OPEN or "kernelopen" in features)
    }
    return tuple(sorted(served))


def _served(ids: Iterable[tuple[str, int]], flavour: Flavour) -> tuple[str, ...]:
    first = _OPEN_FROM if flavour is Flavour.OPEN else 0
    return tuple(sorted({f"{vendor}:{device:04x}" for vendor, device in ids if device >= first}))


# ---------------------------------------------------------------------------------------------------
# Where each goes


def _placed(source: str, driver: str, *, graphics: bool) -> str | None:
    """The place of a file in the tree by its name; None for what does not go into it."""
    path = PurePosixPath(source)
    name = path.name
    if name in _PROGRAMS:
        # Not what a distribution calls by their names: init scripts, completions, overrides of its checks.
        return f"bin/{name}" if path.parent.name in _OF_PROGRAMS else None
    if ".so" in name:
        stem = name.partition(".so")[0]
        known = stem in _COMPUTE or (graphics and (stem in _GRAPHICS or stem == "nvidia-drm_gbm"))
        return f"lib64/{name}" if known else None
    if name.endswith(".bin") and (name.startswith("gsp") or "firmware" in path.parts):
        return f"lib/firmware/nvidia/{driver}/{name}"
    if name == "supported-gpus.json":
        return f"share/{name}"
    if name == "nvidia.icd":
        return f"share/OpenCL/vendors/{name}"
    if name == "LICENSE" and len(path.parts) == 1:
        return "share/doc/LICENSE"
    if name == "copyright" and "doc" in path.parts:
        return f"share/doc/{path.parent.name}/copyright"
    if "nvswitch" in path.parts:
        return f"share/nvidia/nvswitch/{name}"
    if graphics and name == "nvoptix.bin":
        return f"share/nvidia/{name}"
    return None


def _layout(listed: Mapping[str, str], driver: str, flavour: Flavour, pci: tuple[str, ...]) -> Layout:
    items: dict[str, Item] = {}
    links: dict[str, Link] = {}
    for source, target in sorted(listed.items()):
        name = PurePosixPath(source).name
        path = _placed(source, driver, graphics=True) or f"lib64/{name}"
        if target:
            # Links in a package are between neighbours, whatever directory its maker thought of.
            links[path] = Link(path, PurePosixPath(target).name)
        else:
            items[path] = Item(source, path, _mode(path))
    whole = {path: link for path, link in links.items() if path not in items and _leads(link, items, links)}
    required = (f"lib64/libcuda.so.{driver}", f"lib64/libnvidia-ml.so.{driver}", "bin/nvidia-smi")
    for path in required:
        if path not in items:
            _refuse(driver, f"it has no '{PurePosixPath(path).name}'")
    usual = ("bin/nvidia-persistenced", "bin/nvidia-modprobe", f"lib/firmware/nvidia/{driver}/gsp_ga10x.bin")
    absent = tuple(PurePosixPath(path).name for path in usual if path not in items)
    kernel = "kernel-open" if flavour is Flavour.OPEN else "kernel"
    return Layout(tuple(items.values()), tuple(whole.values()), kernel, pci, absent)


def _leads(link: Link, items: Mapping[str, Item], links: Mapping[str, Link]) -> bool:
    """Whether a link leads to a file, over others if need be."""
    beside = PurePosixPath(link.path).parent
    for _ in range(4):
        path = str(beside / link.target)
        if path in items:
            return True
        if path not in links:
            return False
        link = links[path]
    return False


def _mode(path: str) -> int:
    if path == f"bin/{_SETUID}":
        return 0o4755
    return 0o755 if path.startswith(("bin/", "lib64/")) else 0o644


def _refuse(driver: str, why: str) -> NoReturn:
    raise Permanent(
        Code.SOURCE_INVALID,
        f"this is not the package of driver '{driver}': {why}",
        "Check version and location of the driver in the recipe.",
    )
