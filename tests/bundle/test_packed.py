# SPDX-License-Identifier: Apache-2.0
"""What is packed: the same bytes each time, nothing below opt/, and units that come up by themselves."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from nvidiad import __version__
from tests.beds import bundle
from tests.beds.common import CHECKOUT, run_checked
from tools.bundle import layout, pack
from tools.bundle import tree as trees

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bundle.conftest import Bundles

UNITS = CHECKOUT / "units"


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


def test_packed_again_it_is_the_same(bundles: Bundles, tmp_path: Path) -> None:
    """From the checkout on, in another directory, by somebody with another umask and at another time."""
    before = os.umask(0o077)
    try:
        tree = bundle.tree(tmp_path)
        for path in tree.rglob("*.toml"):
            os.utime(path)
        bundle.packed(tree, tmp_path / "dist")
    finally:
        os.umask(before)
    assert digests(tmp_path / "dist") == digests(bundles.dist)


@pytest.mark.skipif(
    os.environ.get("NVIDIAD_FAULTS") != "all", reason="builds everything once more: a minute"
)
def test_built_again_it_is_the_same(tmp_path: Path) -> None:
    command = ["python3", "-m", "tools.bundle", "--base", "--work", str(tmp_path / "work")]
    run_checked(["env", "-C", str(CHECKOUT), *command], "tools.bundle", SOURCE_DATE_EPOCH=str(bundle.EPOCH))
    files = [
        {str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*") if path.is_file()}
        for base in (tmp_path / "work/base", bundle.base())
    ]
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []


def test_the_archive_has_one_directory_and_nobody_s_name(bundles: Bundles) -> None:
    with tarfile.open(next(bundles.dist.glob("*.tar.gz"))) as tar:
        entries = tar.getmembers()
    names = [entry.name for entry in entries]
    assert {name.split("/")[0] for name in names} == {pack.name(bundles.tree)}
    assert names == sorted(names, key=lambda name: name.split("/"))
    assert {(entry.uid, entry.gid, entry.uname, entry.mtime) for entry in entries} == {
        (0, 0, "", bundle.EPOCH)
    }
    assert {oct(entry.mode) for entry in entries if not entry.issym()} == {"0o644", "0o755"}


def test_checksums_are_those_of_the_files(bundles: Bundles, tmp_path: Path) -> None:
    files = [path for path in bundles.dist.iterdir() if path.suffix in (".zst", ".gz", ".raw")]
    pack.sums(bundles.dist, files)
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=bundles.dist, capture_output=True, text=True, check=True
    )
    assert done.stdout.count(": OK") == 3
    (bundles.dist / "SHA256SUMS").unlink()


@pytest.fixture(scope="module")
def extension(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the .raw."""
    place = tmp_path_factory.mktemp("raw") / "root"
    run_checked(
        ["unsquashfs", "-quiet", "-no-progress", "-d", str(place), str(next(bundles.dist.glob("*.raw")))],
        "raw",
    )
    return place


def test_an_extension_brings_usr_and_nothing_else(extension: Path) -> None:
    assert [path.name for path in extension.iterdir()] == ["usr"]
    release = (extension / "usr/lib/extension-release.d/extension-release.nvidiad").read_text()
    machine = {"x86_64": "x86-64", "aarch64": "arm64"}[os.uname().machine]
    assert release == f"ID=_any\nARCHITECTURE={machine}\nEXTENSION_RELOAD_MANAGER=1\n"
    shown = subprocess.run(
        [extension / "usr/bin/nvidiad", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"nvidiad {__version__}\n"
    for script in ("install", "uninstall"):
        assert not (extension / "usr/lib/nvidiad" / script).exists()


def test_everything_of_units_is_in_an_extension(extension: Path) -> None:
    """With its own path in the commands; the configuration is a sample."""
    for path in UNITS.rglob("*"):
        inner = path.relative_to(UNITS)
        if path.is_file() and inner.parts[0] != "nvidiad":
            text = (extension / "usr/lib" / inner).read_text()
            assert text == path.read_text().replace("/opt/nvidiad/", f"{layout.PREFIX}/")
    assert (extension / "usr/lib/nvidiad/share/nvidiad/units/nvidiad/nvidiad.toml").is_file()


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="there is no systemctl on this machine")
def test_an_extension_enables_what_systemctl_would(extension: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc/systemd").mkdir(parents=True)
    shutil.copytree(UNITS / "systemd/system", root / "etc/systemd/system")
    preset = (UNITS / "systemd/system-preset/50-nvidiad.preset").read_text()
    units = [line.split()[1] for line in preset.splitlines() if line.startswith("enable ")]
    run_checked(["systemctl", f"--root={root}", "enable", *units], "systemctl enable")

    def links(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink()}

    place = extension / layout.SYSTEM
    assert links(place) == links(root / "etc/systemd/system")
    assert all(path.resolve().is_file() for path in place.rglob("*") if path.is_symlink())
    assert (place / "multi-user.target.d/10-nvidiad.conf").read_text() == "[Unit]\nUpholds=nvidiad.service\n"


def test_two_versions_differ_in_little(bundles: Bundles) -> None:
    """What another test takes for a later version is one, and only that."""
    one, other = (dict(_lines(tree)) for tree in (bundles.tree, bundles.later))
    changed = {name for name in one if one[name] != other[name]}
    assert {name.rpartition("/")[2].partition(".")[0] for name in changed} == {"__init__"}


def _lines(tree: Path) -> list[tuple[str, str]]:
    return [(name, digest) for digest, name in map(str.split, (tree / trees.SUMS).read_text().splitlines())]
