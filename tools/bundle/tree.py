# SPDX-License-Identifier: Apache-2.0
"""The tree: all that runs on a host, in a directory that may lie anywhere and needs nothing beside it."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad import __version__
from tools import sbom
from tools.bundle import debian, parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

COMMANDS = {"nvidiad": "nvidiad.cli", "nvidiad-image": "nvidiad.image.cli"}
PYTHON = f"python{debian.PYTHON}"
LIBRARY = f"lib/{PYTHON}"
SITE = f"{LIBRARY}/site-packages"
RELEASE, SUMS = "share/nvidiad/release", "share/nvidiad/SHA256SUMS"
# Of Python's library: what nothing here imports, or what there is no library of here.
_UNUSED = (
    *("test", "idlelib", "tkinter", "turtledemo", "turtle.py", "ensurepip", "lib2to3", "venv", "pydoc_data"),
    *("pydoc.py", "_pyrepl", "curses", "dbm", "sqlite3", "config-*", "_sysconfigdata_*", "doctest.py"),
    *("pdb.py", "site-packages", "dist-packages", "sitecustomize.py", "LICENSE.txt"),
    *("lib-dynload/_test*", "lib-dynload/_ctypes_test*", "lib-dynload/_xx*", "lib-dynload/xx*"),
    *("lib-dynload/_curses*", "lib-dynload/_dbm*", "lib-dynload/_gdbm*", "lib-dynload/_sqlite3*"),
    *("lib-dynload/readline*", "lib-dynload/_uuid*"),
)
# Of the distributions: tests, and what one would compile against.
_NOT_RUN = ("*/tests/*", "*.h", "*.pxd", "*.pyx", "*.pxi", "*.c", "lxml/includes/*", "lxml/isoschematron/*")
_LOADED = ("libsystemd.so.0", "libudev.so.1", "libgcc_s.so.1")
"""By name, at run time: nothing that is linked tells of them."""


def base(root: Path, work: Path, tree: Path, epoch: int) -> None:
    """Everything but nvidiad: Python, the distributions, their libraries, compiled; the terms of each."""
    library = tree / LIBRARY
    shutil.copytree(root / f"usr/lib/{PYTHON}", library, ignore=_unused(root / f"usr/lib/{PYTHON}"))
    for wheel in parts.wheels(work):
        unpack(wheel, tree)
    (tree / "libexec").mkdir()
    shutil.copy(root / f"usr/bin/{PYTHON}", tree / "libexec/python3")
    launcher = parts.compile_launcher(root)
    linker = _libraries(root, tree)
    (tree / "bin").mkdir()
    (tree / "lib/start").mkdir()
    for command, module in COMMANDS.items():
        shutil.copy(launcher, tree / f"bin/{command}")
        (tree / f"libexec/{command}").symlink_to(f"../lib/{linker}")
        text = (parts.HERE / "start").read_text().replace("MODULE", module)
        (tree / f"lib/start/{command}").write_text(text)
    _papers(root, tree)
    compile_modules(tree, [library])
    _tidy(tree, epoch)


def complete(base_tree: Path, tree: Path, epoch: int) -> None:
    """The base with nvidiad of this checkout, its units, its pages, and what installs it."""
    shutil.copytree(base_tree, tree, symlinks=True)
    without = shutil.ignore_patterns("__pycache__")
    package = tree / SITE / "nvidiad"
    shutil.copytree(parts.CHECKOUT / "nvidiad", package, ignore=without)
    shutil.rmtree(package / "kubernetes")  # runs in a pod, and needs what is not in here
    compile_modules(tree, [package])
    share = tree / "share/nvidiad"
    shutil.copytree(parts.CHECKOUT / "units", share / "units", ignore=without)
    for name in ("driver", "transport"):
        shutil.copytree(parts.CHECKOUT / f"docker/{name}", share / f"docker/{name}")
    for name in ("install", "uninstall"):
        shutil.copy(parts.HERE / name, tree / name)
    for script, place in (("install-man.sh", "share/man"), ("install-completions.sh", "share")):
        if (parts.CHECKOUT / "tools" / script).is_file():
            debian.run([str(parts.CHECKOUT / "tools" / script), str(tree / place)])
    papers = tree / "share/doc/nvidiad"
    papers.mkdir(parents=True, exist_ok=True)
    shutil.copy(parts.CHECKOUT / "LICENSE", papers / "LICENSE")
    (papers / "nvidiad.cdx.json").write_text(sbom.bill({"SOURCE_DATE_EPOCH": str(epoch)}))
    seal(tree, __version__)
    _tidy(tree, epoch)


def seal(tree: Path, version: str) -> None:
    """Write down what this is, for which machine, and how every file of it must be, for the scripts."""
    (tree / RELEASE).unlink(missing_ok=True)
    (tree / SUMS).unlink(missing_ok=True)
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    lines = [f"{hashlib.sha256(one.read_bytes()).hexdigest()}  ./{one.relative_to(tree)}\n" for one in files]
    (tree / SUMS).write_text("".join(lines))
    build = hashlib.sha256((tree / SUMS).read_bytes()).hexdigest()[:12]
    words = {"VERSION": version, "BUILD": build, "ARCHITECTURE": debian.architecture()[0]}
    words["MACHINE"] = os.uname().machine
    (tree / RELEASE).write_text("".join(f"{key}={value}\n" for key, value in words.items()))


def release(tree: Path) -> tuple[str, str]:
    """Version and architecture of a tree."""
    fields = dict(line.split("=", 1) for line in (tree / RELEASE).read_text().splitlines())
    return fields["VERSION"], fields["ARCHITECTURE"]


def unpack(wheel: Path, tree: Path) -> None:
    """Install a wheel as it is: no scripts, and of its data nothing."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            inner = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", name)
            if (
                name.endswith("/")
                or ".data/" in inner
                or any(fnmatch.fnmatch(inner, one) for one in _NOT_RUN)
            ):
                continue
            target = tree / SITE / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))


def python(tree: Path, arguments: Sequence[str], **options: str) -> list[str]:
    """The command line that starts the Python of a tree on the machine it lies on."""
    linker = next((tree / "lib").glob("ld-linux-*"))
    words = [
        str(linker),
        "--inhibit-cache",
        "--library-path",
        str(tree / "lib"),
        str(tree / "libexec/python3"),
    ]
    return [*words, "-ISB", *arguments]


def compile_modules(tree: Path, folders: Sequence[Path]) -> None:
    """Compile beforehand: where the bundle lies nothing may be written, and times of files mean nothing."""
    how = ["-q", "--invalidation-mode=unchecked-hash", "-s", str(tree), "-p", "/", "-x", r"/lib/start/"]
    for folder in folders:
        command = python(tree, ["-m", "compileall", *how, str(folder)])
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"})


def elf_files(tree: Path) -> Iterator[Path]:
    """Programs and libraries."""
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def _unused(library: Path) -> Callable[[str, list[str]], list[str]]:
    def choose(folder: str, names: list[str]) -> list[str]:
        inner = Path(folder).relative_to(library)
        patterns = ("__pycache__", "*/__pycache__", *_UNUSED)
        return [name for name in names if any(fnmatch.fnmatch(str(inner / name), one) for one in patterns)]

    return choose


def _libraries(root: Path, tree: Path) -> str:
    """Copy what is linked, and what that needs, under the names it is asked for by; the linker's name."""
    place = root / "usr/lib" / debian.architecture()[1]
    linker = next(place.glob("ld-linux-*")).name
    shared = root / "build/tree"
    shutil.copytree(tree, shared, symlinks=True)
    files = [str(path.relative_to(root)) for path in elf_files(shared)]
    wanted = {linker, *_LOADED}
    for name in [*files, *(f"{place.relative_to(root)}/{one}" for one in _LOADED)]:
        listed = debian.inside(root, [f"/{place.relative_to(root)}/{linker}", "--list", f"/{name}"])
        if "not found" in listed:
            raise SystemExit(f"'{name}' needs what is not there:\n{listed}")
        wanted |= {Path(found).name for found in re.findall(r"=> (/usr/lib/\S+|/lib/\S+) \(", listed)}
    for name in sorted(wanted):
        shutil.copy((place / name).resolve(), tree / "lib" / name)
    return linker


def _papers(root: Path, tree: Path) -> None:
    """The terms of everything of Debian that is in the tree, and from which packages exactly it is."""
    places = (f"usr/lib/{debian.architecture()[1]}", f"usr/lib/{PYTHON}", "usr/bin")
    shipped = {path.name for path in (tree / "lib").iterdir() if path.is_file()}
    shipped |= {(root / places[0] / name).resolve().name for name in shipped}
    lines = []
    for package in debian.packages(root):
        names = {Path(one).name for one in package.files if one.startswith("/usr/lib/")}
        is_shipped = names & shipped or package.name in ("libpython3.13-minimal", "libpython3.13-stdlib")
        if is_shipped or package.name in ("python3.13-minimal", "musl"):
            paper = root / f"usr/share/doc/{package.name}/copyright"
            target = tree / f"share/doc/{package.name}/copyright"
            target.parent.mkdir(parents=True)
            shutil.copy(paper.resolve() if paper.exists() else paper, target)
            lines.append(f"{package.name} {package.version} sha256:{package.sha256}\n")
    folder = tree / "share/doc/nvidiad"
    folder.mkdir(parents=True)
    (folder / "debian-packages.txt").write_text("".join(lines))


def _tidy(tree: Path, epoch: int) -> None:
    """One mode and one time for everything of a kind: neither umask nor clock of this machine is shipped."""
    programs = {f"bin/{name}" for name in COMMANDS} | {"install", "uninstall", "libexec/python3"}
    for path in [tree, *tree.rglob("*")]:
        if path.is_symlink():
            continue
        name = str(path.relative_to(tree))
        executable = path.is_dir() or name in programs or name.startswith("lib/ld-linux-")
        path.chmod(0o755 if executable else 0o644)
    for path in [*tree.rglob("*"), tree]:
        os.utime(path, (epoch, epoch), follow_symlinks=False)
