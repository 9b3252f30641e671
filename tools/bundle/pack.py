# SPDX-License-Identifier: Apache-2.0
"""Packing: the same tree gives the same bytes, as a tar for /opt and as an image for systemd-sysext."""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import TYPE_CHECKING

from tools.bundle import debian, layout
from tools.bundle import tree as trees

if TYPE_CHECKING:
    from pathlib import Path


def name(tree: Path) -> str:
    """What the files and the directory in the tar are called."""
    version, architecture = trees.release(tree)
    return f"nvidiad-{version}-{architecture}"


def tars(tree: Path, dist: Path, epoch: int, level: int = 19) -> list[Path]:
    """The tree below one directory, packed in two ways."""
    plain = dist / f"{name(tree)}.tar"
    command = ["tar", "--create", f"--file={plain}", "--sort=name", "--format=gnu", f"--mtime=@{epoch}"]
    command += ["--owner=0", "--group=0", "--numeric-owner", f"--directory={tree}"]
    debian.run([*command, rf"--transform=s,^\.,{name(tree)},S", "."])
    packed = [dist / f"{plain.name}.zst", dist / f"{plain.name}.gz"]
    debian.run(["zstd", "--quiet", "--force", f"-{level}", "--threads=2", str(plain), "-o", str(packed[0])])
    script = f'gzip --no-name -{min(level, 9)} <"$1" >"$2"'
    debian.run(["sh", "-c", script, "sh", str(plain), str(packed[1])])
    plain.unlink()
    return packed


def sysext(tree: Path, dist: Path, work: Path, epoch: int, level: int = 19) -> Path:
    """The tree below /usr with its units, as a file system."""
    root = work / "sysext"
    shutil.rmtree(root, ignore_errors=True)
    layout.sysext(tree, root)
    image = dist / f"{name(tree)}.raw"
    image.unlink(missing_ok=True)
    command = ["mksquashfs", str(root), str(image), "-quiet", "-no-progress", "-noappend", "-all-root"]
    command += ["-no-xattrs", "-reproducible", "-comp", "zstd", "-Xcompression-level", str(level)]
    command += ["-mkfs-time", str(epoch), "-all-time", str(epoch), "-processors", "2"]
    # It refuses to be told twice.
    told = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    debian.run(command, told)
    shutil.rmtree(root)
    return image


def sums(dist: Path, files: list[Path]) -> Path:
    """What sha256sum --check reads."""
    lines = [f"{hashlib.sha256(one.read_bytes()).hexdigest()}  {one.name}\n" for one in sorted(files)]
    target = dist / "SHA256SUMS"
    target.write_text("".join(lines))
    return target
