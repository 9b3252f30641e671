# SPDX-License-Identifier: Apache-2.0
"""The bundle runs on a root file system that holds a static busybox and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from nvidiad import __version__
from tests.beds.common import run_checked
from tests.bundle.bare import Bare
from tools.bundle import pack
from tools.bundle import tree as trees

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.bundle.conftest import Bundles

# Everything that nvidiad imports at some time, and what is found only at run time: the libraries of ctypes.
_EVERYTHING = """
import asyncio, bz2, ctypes, hashlib, importlib, lzma, pkgutil, ssl, sys, tomllib, zlib
import docker, lxml.etree, psutil, pystemd.daemon, pystemd.journal, pystemd.systemd1, structlog, urllib3
import nvidiad
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives import hashes
for found in pkgutil.walk_packages(nvidiad.__path__, "nvidiad."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
key = ec.generate_private_key(ec.SECP256R1())
key.public_key().verify(key.sign(b"x", ec.ECDSA(hashes.SHA256())), b"x", ec.ECDSA(hashes.SHA256()))
from nvidiad.world import gpu
gpu.Monitor()
print(len(sys.modules), ssl.OPENSSL_VERSION)
with open("/proc/self/maps") as maps:
    print(*sorted({line.split()[5] for line in maps if len(line.split()) > 5 and line.split()[5][0] == "/"}))
"""
_CHILD = """
import os
from nvidiad.world import process
print(process.run(["/bin/busybox", "env"], timeout=10).out)
print("---", flush=True)
os.execv("/bin/busybox", ["busybox", "env"])
"""


@pytest.fixture(scope="module")
def host(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """One that unpacked the bundle; not even `sh` is there."""
    found = Bare(tmp_path_factory.mktemp("host") / "root", names=False)
    tree = found.root / "opt" / pack.name(bundles.tree)
    shutil.copytree(bundles.tree, tree, symlinks=True)
    # A third command, made as the others are, for code of a test.
    shutil.copy(tree / "bin/nvidiad", tree / "bin/probe")
    (tree / "libexec/probe").symlink_to((tree / "libexec/nvidiad").readlink())
    lines = (tree / "lib/start/nvidiad").read_text().splitlines()
    path = next(line for line in lines if line.startswith("sys.path"))
    (tree / "lib/start/probe").write_text(f"import sys\n{path}\nexec(sys.argv[1])\n")
    yield found
    found.remove()


@pytest.fixture(scope="module")
def place(bundles: Bundles) -> str:
    return f"/opt/{pack.name(bundles.tree)}"


def python(place: str, code: str) -> list[str]:
    """The command by which the launcher runs some code of a test."""
    return [f"{place}/bin/probe", code]


@pytest.mark.parametrize("proc", [True, False], ids=["proc", "no-proc"])
def test_version(host: Bare, place: str, proc: bool) -> None:  # noqa: FBT001
    assert host.output(f"{place}/bin/nvidiad", "--version", proc=proc) == f"nvidiad {__version__}\n"


def test_status_says_that_nobody_is_there(host: Bare, place: str) -> None:
    done = host.run(f"{place}/bin/nvidiad", "status")
    assert (done.returncode, done.stdout) == (3, "")
    assert "[not-running]" in done.stderr


def test_plan_of_a_host_below_another_directory(host: Bare, place: str, tmp_path: Path) -> None:
    other = host.root / "other"
    (other / "etc").mkdir(parents=True)
    (other / "proc").symlink_to("/proc")
    (other / "etc/os-release").write_text("ID=flatcar\nVERSION_ID=3975.2.0\n")
    (host.root / "etc/nvidiad.toml").write_text(
        '[driver]\nversion = "535.309.01"\n[image]\nrepository = "registry.example/nvidia-driver"\n'
    )
    words = ["plan", "--root=/other", "--config=/etc/nvidiad.toml"]
    assert host.output(f"{place}/bin/nvidiad", *words).startswith("no-gpu: ")


def test_everything_is_imported_from_the_bundle_alone(host: Bare, place: str) -> None:
    said, maps = host.output(*python(place, _EVERYTHING)).splitlines()
    assert "OpenSSL 3" in said
    assert all(path.startswith(f"{place}/") for path in maps.split()), maps
    assert "libsystemd.so.0" in maps and "libudev.so.1" in maps


def test_where_it_lies_does_not_matter(host: Bare, place: str) -> None:
    """By a link in another directory, under another name of the directory, and from inside of it."""
    (host.root / "bin/nvidiad").symlink_to(f"..{place}/bin/nvidiad")
    assert host.output("/bin/nvidiad", "--version") == f"nvidiad {__version__}\n"
    assert host.output("/bin/nvidiad", "--version", proc=False) == f"nvidiad {__version__}\n"
    moved = host.root / "opt/with a space"
    (host.root / place[1:]).rename(moved)
    try:
        assert host.output("/opt/with a space/bin/nvidiad", "--version") == f"nvidiad {__version__}\n"
    finally:
        moved.rename(host.root / place[1:])
        (host.root / "bin/nvidiad").unlink()


def test_children_inherit_no_path(host: Bare, place: str) -> None:
    """Programs of the host must find the host's libraries."""
    hostile = {
        "PATH": "/bin",
        "LD_LIBRARY_PATH": "/nowhere",
        "PYTHONHOME": "/nowhere",
        "PYTHONPATH": "/nowhere",
        "LANG": "xx_XX.UTF-8",
    }
    done = host.run(*python(place, _CHILD), environment=hostile)
    assert done.returncode == 0, done.stderr
    started, inherited = ("\n" + part for part in done.stdout.split("---\n"))
    # What nvidiad starts gets nothing of it; and Python and its linker add nothing to what was there.
    assert not re.search(r"\n(LD_|PYTHON|LC_ALL=xx)", started), started
    assert place not in started + inherited
    added = {line.split("=")[0] for line in inherited.split() if "=" in line} - hostile.keys()
    assert added <= {"LC_CTYPE", "PWD"}, added  # PWD is the shell's that started it
    assert host.run(f"{place}/bin/nvidiad", "--version", environment=hostile).returncode == 0


def test_a_launcher_without_its_tree_says_so(host: Bare, place: str) -> None:
    (host.root / "bin/lonely").write_bytes((host.root / place[1:] / "bin/nvidiad").read_bytes())
    (host.root / "bin/lonely").chmod(0o755)
    done = host.run("/bin/lonely", "status")
    assert done.returncode == 127
    assert done.stderr == "nvidiad: '/libexec/lonely' No such file or directory\n"


def test_nothing_of_it_is_dynamic_but_from_inside(bundles: Bundles) -> None:
    """Every library that anything links is in the tree: the host's would be of another C library."""
    linker = next((bundles.tree / "lib").glob("ld-linux-*"))
    dynamic = 0
    for file in trees.elf_files(bundles.tree):
        if file == linker or file.parent.name == "bin":  # the launcher links nothing
            continue
        words = [
            str(linker),
            "--inhibit-cache",
            "--library-path",
            str(bundles.tree / "lib"),
            "--list",
            str(file),
        ]
        for line in run_checked(words, file.name).splitlines():
            found = re.search(r"=> (\S+)", line)
            assert not found or found[1].startswith(str(bundles.tree)), f"{file}: {line}"
            dynamic += bool(found)
    assert dynamic > 50


def test_what_is_compiled_is_used_whatever_the_times_say(host: Bare, place: str) -> None:
    """No file that is copied has the time that it was compiled with; and nothing may be written."""
    code = "import nvidiad.nouns.model as m; print(m.__cached__, m.__spec__.loader.path)"
    cached = host.output(*python(place, code)).split()[0]
    data = (host.root / cached[1:]).read_bytes()
    assert int.from_bytes(data[4:8], "little") == 0b01  # by hash, and not compared
    before = {path for path in host.files() if path.endswith(".pyc")}
    host.output(f"{place}/bin/nvidiad", "list", "--root=/other")
    assert {path for path in host.files() if path.endswith(".pyc")} == before


def test_terms_and_origin_of_everything_are_there(bundles: Bundles) -> None:
    papers = bundles.tree / "share/doc"
    lines = (papers / "nvidiad/debian-packages.txt").read_text().splitlines()
    packages = {line.split()[0] for line in lines}
    assert packages >= {"libc6", "libssl3t64", "libsystemd0", "libudev1", "libpython3.13-stdlib", "musl"}
    for package in packages:
        assert len((papers / package / "copyright").read_text()) > 400, package
    bill = json.loads((papers / "nvidiad/nvidiad.cdx.json").read_text())
    shipped = {
        folder.name.split("-")[0].lower() for folder in (bundles.tree / trees.SITE).glob("*.dist-info")
    }
    listed = {part["name"].replace("-", "_") for part in bill["components"] if part["scope"] == "required"}
    assert shipped == listed
