# SPDX-License-Identifier: Apache-2.0
"""What a release has of nvidiad itself, for a host of the bed: bundles, packages, and what names them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from tests.beds.bundle import tree
from tests.beds.common import CHECKOUT, run_checked
from tools import provision

if TYPE_CHECKING:
    from pathlib import Path

NEXT = "99.0.0"
"""The version after this one."""


def package(place: Path, version: str) -> Path:
    """The Debian package, as if it were of that version."""
    # A release compresses it.
    settings = {"DEB_VERSION": version, "DEB_COMPRESS": "none", "PATH": os.environ["PATH"]}
    made = run_checked([str(CHECKOUT / "tools/deb.sh"), str(tree()), str(place)], "tools/deb.sh", **settings)
    assert f"nvidiad_{version}_" in made
    return next(place.glob(f"nvidiad_{version}_*.deb"))


def bundle(place: Path, version: str) -> Path:
    """The bundle as a tar, as if it were of that version."""
    release = (tree() / "share/nvidiad/release").read_text()
    fields = dict(line.split("=", 1) for line in release.splitlines())
    name = f"nvidiad-{version}-{fields['ARCHITECTURE']}"
    top = place / name
    # Hard links: only what differs is another file.
    run_checked(["cp", "-al", str(tree()), str(top)], "cp")
    text = re.sub(r"^(VERSION)=.*$", rf"\1={version}", release, flags=re.MULTILINE)
    text = re.sub(r"^(BUILD)=.*$", rf"\1={version}", text, flags=re.MULTILINE)
    _replace(top / "share/nvidiad/release", text)
    sums = top / "share/nvidiad/SHA256SUMS"
    if sums.exists():
        digest = hashlib.sha256(text.encode()).hexdigest()
        line = r"^[0-9a-f]{64}(  (?:\./)?share/nvidiad/release)$"
        _replace(sums, re.sub(line, rf"{digest}\1", sums.read_text(), flags=re.MULTILINE))
    packed = place / f"{name}.tar.gz"
    subprocess.run(f"tar -c -C '{place}' '{name}' | gzip -1 >'{packed}'", shell=True, check=True)  # noqa: S602
    shutil.rmtree(top)
    return packed


def sums(place: Path) -> None:
    """SHA256SUMS of what lies there, with an extension of the bundle's version."""
    bundles = sorted(place.glob("*.tar.gz"))
    for packed in bundles:
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


def _replace(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)
