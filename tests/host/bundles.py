# SPDX-License-Identifier: Apache-2.0
"""What a release has of nvidiad itself, for a host of the bed: its private tree, and the package of it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from nvidiad import __version__
from tests.beds.common import CHECKOUT, host_venv, run_checked

if TYPE_CHECKING:
    from pathlib import Path

_LAUNCHER = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
PYTHONPATH=$here/../lib exec /usr/bin/python3 -B -m nvidiad "$@"
"""


def private_tree(suite: str, place: Path, version: str = __version__) -> Path:
    """A tree like the bundle's, of this checkout as if it were `version`."""
    library = next((host_venv(suite) / "lib").glob("python3*")) / "site-packages"
    shutil.copytree(library, place / "lib", symlinks=True)
    shutil.copytree(
        CHECKOUT / "nvidiad", place / "lib/nvidiad", ignore=shutil.ignore_patterns("__pycache__")
    )
    (place / "bin").mkdir()
    (place / "bin/nvidiad").write_text(_LAUNCHER)
    (place / "bin/nvidiad").chmod(0o755)
    package = place / "lib/nvidiad/__init__.py"
    package.write_text(package.read_text().replace(__version__, version))
    return place


def package(suite: str, place: Path, version: str = __version__) -> Path:
    """The Debian package of that version."""
    tree = private_tree(suite, place / f"tree-{version}", version)
    # A release compresses it.
    settings = {"DEB_VERSION": version, "DEB_COMPRESS": "none", "PATH": os.environ["PATH"]}
    run_checked([str(CHECKOUT / "tools/deb.sh"), str(tree), str(place)], "tools/deb.sh", **settings)
    shutil.rmtree(tree)
    return next(place.glob(f"nvidiad_{version}_*.deb"))
