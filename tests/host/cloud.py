# SPDX-License-Identifier: Apache-2.0
"""Debian's cloud-init and the Python packages that it needs, as files: nothing is installed by that."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.beds.common import run_checked, unpacked

if TYPE_CHECKING:
    from pathlib import Path

LIBRARY = "usr/lib/python3/dist-packages"
_WITHOUT = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")


def files() -> Path:
    """A directory with their files, of the release of this machine."""
    options = [f"--no-{kind}" for kind in _WITHOUT]
    listed = run_checked(["apt-cache", "depends", "--recurse", *options, "cloud-init"], "apt-cache depends")
    names = set(re.findall(r"^((?:python3-|cloud-init)[\w.+-]*)$", listed, re.MULTILINE))
    return unpacked("cloud-init", *sorted(names - {"python3-minimal"}))
