# SPDX-License-Identifier: Apache-2.0
"""What a release has of nvidiad itself, for a host of the bed: bundles, packages, and what names them."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shlex
import shutil
import tempfile
from pathlib import Path

from nvidiad import __version__
from tests.beds import bundle as bed
from tests.beds.common import CHECKOUT, run_checked
from tools import provision

NEXT = bed.LATER
"""The version after this one."""


@functools.cache
def tree(version: str = __version__) -> Path:
    """The tree of this checkout, or the same as the next version; nobody may write there."""
    folder = Path(tempfile.mkdtemp(prefix="nvidiad-tree-", dir="/var/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return bed.tree(folder) if version == __version__ else bed.later(tree(), folder, version)


def package(place: Path, version: str) -> Path:
    """The Debian package of that version."""
    # A release compresses it.
    settings = {"DEB_VERSION": version, "DEB_COMPRESS": "none", "PATH": os.environ["PATH"]}
    command = [str(CHECKOUT / "tools/deb.sh"), str(tree(version)), str(place)]
    made = run_checked(command, "tools/deb.sh", **settings)
    assert f"nvidiad_{version}_" in made
    return next(place.glob(f"nvidiad_{version}_*.deb"))


def bundle(place: Path, version: str) -> Path:
    """The bundle of that version as a tar."""
    release = (tree(version) / "share/nvidiad/release").read_text()
    fields = dict(line.split("=", 1) for line in release.splitlines())
    name = f"nvidiad-{version}-{fields['ARCHITECTURE']}"
    packed = place / f"{name}.tar.gz"
    # As `make bundle` names things, and faster.
    tar = ["tar", "-c", "-C", str(tree(version)), rf"--transform=s,^\.,{name},S", "."]
    run_checked(["sh", "-c", f"{shlex.join(tar)} | gzip -1 >{shlex.quote(str(packed))}"], "tar")
    return packed


def sums(place: Path) -> None:
    """SHA256SUMS of what lies there, with an extension of the bundle's version."""
    for packed in place.glob("*.tar.gz"):
        image = packed.with_name(packed.name.replace(".tar.gz", ".raw"))
        image.write_bytes(b"a system extension")
    files = [path for path in sorted(place.iterdir()) if path.name.startswith("nvidiad") and path.is_file()]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (place / "SHA256SUMS").write_text("".join(lines))


def rendered(place: Path, url: str, repository: str, *, debian: bool = True) -> Path:
    """contrib/provision for the release that lies there, or for one that says it has a package, too."""
    if not debian:
        with (place / "SHA256SUMS").open("a") as file:
            file.write(f"{'0' * 64}  nvidiad_0_amd64.deb\n")
    target = place / "provision"
    shutil.rmtree(target, ignore_errors=True)
    assert provision.main([str(place), str(target), f"--url={url}", f"--repository={repository}"]) == 0
    return target
