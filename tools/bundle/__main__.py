# SPDX-License-Identifier: Apache-2.0
"""`python3 -m tools.bundle`: build the bundle, as `make bundle` does.

Needs root on Debian 12 or 13, and nothing that is not in Python's own library.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bundle import debian, layout, pack, parts
from tools.bundle import tree as trees

if TYPE_CHECKING:
    from collections.abc import Sequence

_1980 = 315532800  # before it no zip can be dated


def epoch() -> int:
    """The one time of everything: as told, else that of the commit."""
    told = os.environ.get("SOURCE_DATE_EPOCH")
    if told:
        return int(told)
    asked = ["git", "-C", str(parts.CHECKOUT), "log", "-1", "--format=%ct"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else _1980


def stage(work: Path, when: int, sources: Sequence[str] = ()) -> Path:
    """Build the tree in `work` from nothing."""
    shutil.rmtree(work, ignore_errors=True)
    base(work, when, sources)
    trees.complete(work / "base", work / "tree", when)
    return work / "tree"


def base(work: Path, when: int, sources: Sequence[str] = ()) -> Path:
    """Build what of the tree does not change with nvidiad, as `work`/base."""
    work.mkdir(parents=True, exist_ok=True)
    root = work / "root"
    try:
        debian.make(root, sources)
        (root / "build").mkdir()
        parts.fetch(work)
        parts.compile_sources(root, work, when)
        trees.base(root, work, work / "base", when)
    finally:
        for name in ("root", "venv", "tools", "parts"):
            shutil.rmtree(work / name, ignore_errors=True)
    return work / "base"


def main(arguments: list[str]) -> int:
    """Build; the exit status."""
    parser = argparse.ArgumentParser(prog="tools.bundle", description=__doc__)
    parser.add_argument("--work", type=Path, default=parts.CHECKOUT / "build/bundle", metavar="DIRECTORY")
    parser.add_argument("--dist", type=Path, default=parts.CHECKOUT / "dist", metavar="DIRECTORY")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="LINE",
        help="a line of sources.list; all of them, if any",
    )
    parser.add_argument("--base", action="store_true", help="only what does not change with nvidiad")
    parser.add_argument("--stage", action="store_true", help="only the tree, in --work")
    parser.add_argument("--level", type=int, default=19, help="of zstd")
    parser.add_argument(
        "--usr", type=Path, metavar="DIRECTORY", help="lay the staged tree below DIRECTORY/usr, and end"
    )
    options = parser.parse_args(arguments)
    work = options.work.resolve()
    if options.usr:
        layout.usr(work / "tree", options.usr)
        return 0
    when = epoch()
    if options.base:
        base(work, when, options.source)
        return 0
    tree = stage(work, when, options.source)
    if options.stage:
        sys.stdout.write(f"{tree}\n")
        return 0
    options.dist.mkdir(parents=True, exist_ok=True)
    files = pack.tars(tree, options.dist, when, options.level)
    files.append(pack.sysext(tree, options.dist, work, when, options.level))
    pack.sums(options.dist, files)
    for file in files:
        sys.stdout.write(f"{file.stat().st_size / 1e6:7.1f} MB  {file}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
