# SPDX-License-Identifier: Apache-2.0
"""What is not Debian's: the locked distributions, fetched by pip, compiled without a network."""

from __future__ import annotations

import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bundle import debian

if TYPE_CHECKING:
    from collections.abc import Sequence

CHECKOUT = Path(__file__).parents[2]
HERE = Path(__file__).parent
# Come as source, because nobody publishes them compiled.
SOURCES = ("pystemd",)
_CFLAGS = "-O2 -g0 -ffile-prefix-map=/build=."


def fetch(work: Path) -> None:
    """Every distribution that the locks name, hashes compared, as wheels or as source."""
    # pip asks the source for its metadata, and so needs what it is built with.
    run_venv = work / "venv"
    debian.run([sys.executable, "-m", "venv", str(run_venv)])
    pip = [str(run_venv / "bin/pip"), "-qq", "--disable-pip-version-check"]
    locked = ["--no-deps", "--require-hashes"]
    build, runtime = (str(CHECKOUT / f"requirements/{name}.txt") for name in ("build", "runtime"))
    debian.run([*pip, "install", *locked, "--requirement", build])
    fetching = [*pip, "download", *locked, "--only-binary=:all:", f"--python-version={debian.PYTHON}"]
    debian.run([*fetching, "--requirement", build, "--dest", str(work / "tools")])
    fetching += [f"--no-binary={','.join(SOURCES)}", "--no-build-isolation"]
    debian.run([*fetching, "--requirement", runtime, "--dest", str(work / "parts")])


def compile_sources(root: Path, work: Path, epoch: int) -> None:
    """Build in the root what came as source; the wheels come to the others."""
    place = root / "build"
    for wheel in sorted((work / "tools").iterdir()):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place / "environment")  # noqa: S202 - the lock has its hash
    for source in sorted((work / "parts").glob("*.tar.gz")):
        with tarfile.open(source) as archive:
            archive.extractall(place / "sources", filter="data")
        source.unlink()
        build = f"cd /build/sources/{source.name.removesuffix('.tar.gz')} && exec python{debian.PYTHON} -c"
        build += " \"from setuptools import build_meta; build_meta.build_wheel('/build/wheels')\" 2>&1"
        debian.inside(
            root,
            ["/bin/sh", "-c", build],
            CC="gcc",
            CFLAGS=_CFLAGS,
            PYTHONPATH="/build/environment",
            SOURCE_DATE_EPOCH=str(epoch),
        )
    for wheel in (place / "wheels").iterdir():
        shutil.move(wheel, work / "parts" / wheel.name)


def compile_launcher(root: Path) -> Path:
    """The one program of the bundle that the host's kernel starts."""
    shutil.copy(HERE / "launcher.c", root / "build/launcher.c")
    flags = ["-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror"]
    # Not glibc: it is for static programs neither small nor free of the host's files.
    debian.inside(root, ["musl-gcc", *flags, "-o", "/build/launcher", "/build/launcher.c"])
    return root / "build/launcher"


def wheels(work: Path) -> Sequence[Path]:
    """All that is installed into the bundle, nvidiad itself excepted."""
    return sorted((work / "parts").glob("*.whl"))
