# SPDX-License-Identifier: Apache-2.0
"""Names: of a build as an image tag and as a tree on disk."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nvidiad.nouns.model import Kind

if TYPE_CHECKING:
    from pathlib import PurePosixPath

    from nvidiad.nouns.model import Build

# Versions become path components and parts of a tag: nothing else may be in them.
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+~-]{0,63}")
DRIVER = re.compile(r"[0-9]{1,5}(?:\.[0-9]{1,5}){1,3}")
# What can be told from other versions by its looks alone: every branch since 2010 has three digits.
BRANCHED = re.compile(r"[0-9]{3,5}\.[0-9]{1,5}(?:\.[0-9]{1,5})?")
MANIFEST = "manifest.json"
CURRENT = "current"
_BUNDLES = {Kind.DRIVER: "nvidia", Kind.CUDA: "cuda"}
PARTIAL = ".partial"


def is_version(text: str) -> bool:
    """Whether `text` may stand in a path and in a tag."""
    return VERSION.fullmatch(text) is not None and ".." not in text


def is_driver(text: str) -> bool:
    """Whether `text` is a driver version as NVIDIA writes them: two to four numbers (`535.309.01`)."""
    return DRIVER.fullmatch(text) is not None


def is_older(driver: str, other: str) -> bool:
    """Whether a driver version is an older one than another; compared number by number, never as text.

    A number that one of them lacks counts as 0, and what follows a field's number is not looked at.
    """
    one, two = _numbers(driver), _numbers(other)
    length = max(len(one), len(two))
    return one + (0,) * (length - len(one)) < two + (0,) * (length - len(two))


def _numbers(version: str) -> tuple[int, ...]:
    found = (re.match("[0-9]+", field) for field in version.split("."))
    return tuple(int(match[0]) if match else 0 for match in found)


def image_tag(template: str, build: Build) -> str:
    """The tag of a build's image; `+` and `~` are not allowed in a tag and become `-`.

    A driver's template knows {os}, {driver}, {kernel}, {product} and {-product} (with its dash, or nothing),
    that of CUDA {version}.
    """
    product = f"-{build.product}" if build.product else ""
    tag = template.replace("{-product}", product)
    for key, value in (
        ("os", build.os_version),
        ("driver", build.driver),
        ("version", build.driver),
        ("kernel", build.kernel),
        ("product", build.product),
    ):
        tag = tag.replace("{" + key + "}", value)
    return re.sub(r"[^0-9A-Za-z_.-]", "-", tag)


def bundle_root(root: PurePosixPath, kind: Kind = Kind.DRIVER) -> PurePosixPath:
    """Where all trees of a kind are, below the install root."""
    return root / _BUNDLES[kind]


def tree_path(root: PurePosixPath, build: Build) -> PurePosixPath:
    """Where a build's tree is on disk, below the install root (`/opt`)."""
    # One CUDA serves all OS versions: an empty name adds no component.
    return bundle_root(root, build.kind) / build.driver / build.os_version


def current_path(root: PurePosixPath, kind: Kind = Kind.DRIVER) -> PurePosixPath:
    """The symlink that names the tree in force."""
    return bundle_root(root, kind) / CURRENT


def partial_path(tree: PurePosixPath) -> PurePosixPath:
    """Where a tree is laid down before it is renamed into place."""
    return tree.with_name(f".{tree.name}{PARTIAL}")


def module_name(file_name: str) -> str:
    """`nvidia-uvm.ko` or `nvidia-uvm` as the kernel names it: `nvidia_uvm`."""
    return file_name.removesuffix(".ko").replace("-", "_")
