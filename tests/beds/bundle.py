# SPDX-License-Identifier: Apache-2.0
"""The bundle for tests: its slow part from the cache, nvidiad as the checkout has it, a later version."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from tests.beds.common import CHECKOUT, BedError, cached, require, run_checked
from tools.bundle import pack
from tools.bundle import tree as trees

if TYPE_CHECKING:
    from pathlib import Path

EPOCH = 1_700_000_000
LATER = "99.1.0"
# Of zstd: a test is in a hurry.
LEVEL = 1
_FOLDER = CHECKOUT / "tools/bundle"
_BASE = ("debian.py", "parts.py", "tree.py", "launcher.c", "start")


def missing() -> str:
    """Why no bundle can be built on this machine; empty where one can."""
    if os.geteuid() != 0:
        return "building a bundle needs root: it is cut from a Debian root"
    return (
        "" if shutil.which("dpkg-deb") else "a bundle is made of Debian's packages; this machine has no dpkg"
    )


def base() -> Path:
    """Python, libraries and distributions, kept until one of their inputs is new."""
    inputs = [(_FOLDER / name).read_text() for name in _BASE]
    inputs += [(CHECKOUT / f"requirements/{name}.txt").read_text() for name in ("build", "runtime")]

    def build(partial: Path) -> None:
        if reason := missing():
            raise BedError(reason)
        require("mmdebstrap", "debian-archive-keyring", "libsystemd-dev", "pkg-config", "python3-venv")
        work = partial.with_name(f"{partial.name}.work")
        shutil.rmtree(work, ignore_errors=True)
        try:
            # A process of its own: what it says when it fails is for whoever builds a bundle.
            command = [sys.executable, "-m", "tools.bundle", "--base", "--work", str(work)]
            run_checked(["env", "-C", str(CHECKOUT), *command], "tools.bundle", SOURCE_DATE_EPOCH=str(EPOCH))
            (work / "base").rename(partial)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    return cached("bundle-base", [*inputs, os.uname().machine], build)


def tree(folder: Path) -> Path:
    """A complete tree of the checkout, as `folder`/tree."""
    require("zstd", "squashfs-tools")
    trees.complete(base(), folder / "tree", EPOCH)
    return folder / "tree"


def later(one: Path, folder: Path, version: str = LATER) -> Path:
    """The same nvidiad under a later version, as `folder`/VERSION: what an upgrade brings."""
    other = folder / version
    shutil.copytree(one, other, symlinks=True)
    package = other / trees.SITE / "nvidiad"
    text = (package / "__init__.py").read_text()
    before, _ = trees.release(one)
    (package / "__init__.py").write_text(text.replace(f'"{before}"', f'"{version}"'))
    trees.compile_modules(other, [package / "__init__.py"])
    trees.seal(other, version)
    return other


def packed(one: Path, dist: Path) -> tuple[Path, Path]:
    """A tree as a .tar.gz and as a .raw."""
    dist.mkdir(exist_ok=True)
    files = pack.tars(one, dist, EPOCH, LEVEL)
    return files[1], pack.sysext(one, dist, dist / "work", EPOCH, LEVEL)
