# SPDX-License-Identifier: Apache-2.0
"""Small fakes for tests of the world: a root file system, and programs that say what they are told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mount, mknod, netlink")


def make_tree(root: Path, content: Mapping[str, str | bytes | None]) -> Path:
    """Files by their path: text or bytes; `None` is a directory, text that begins with `-> ` a symlink."""
    for name, what in content.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            path.mkdir(exist_ok=True)
        elif isinstance(what, bytes):
            path.write_bytes(what)
        elif what.startswith("-> "):
            path.symlink_to(what[3:])
        else:
            path.write_text(what)
    return root


def fake_program(directory: Path, name: str, script: str) -> Path:
    """A shell script that logs its arguments to `<name>.calls` beside it and goes on with `script`."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>"{path}.calls"\n{script}\n')
    path.chmod(0o755)
    return path


def calls(program: Path) -> list[str]:
    """The argument lists a fake program was called with."""
    log = Path(f"{program}.calls")
    return log.read_text().splitlines() if log.exists() else []
