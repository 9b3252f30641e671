# SPDX-License-Identifier: Apache-2.0
"""A bare host: a root directory with a static busybox, in which commands run."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

from tests.beds.common import require, run_checked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENVIRONMENT = {"PATH": "/bin:/opt/nvidiad/bin", "HOME": "/"}
_SECONDS = 60


class Bare:
    """The root and what runs in it."""

    def __init__(self, root: Path, *, names: bool = True) -> None:
        require("busybox-static")
        self.root = root
        for folder in ("bin", "dev", "opt", "tmp", "proc", "etc"):
            (root / folder).mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "bin/busybox")
        os.mknod(root / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        if names:
            run_checked(["chroot", str(root), "/bin/busybox", "--install", "-s", "/bin"], "busybox")

    def run(
        self, *command: str, proc: bool = True, environment: Mapping[str, str] = ENVIRONMENT
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the root, with /proc of its own processes; its end, whatever that is."""
        mount = 'mount -t proc proc "$1/proc"; ' if proc else ""
        isolated = [
            "unshare",
            "--mount",
            "--propagation=private",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
        ]
        words = [*isolated, f'{mount}exec /usr/sbin/chroot "$@"', "sh", str(self.root), *command]
        return subprocess.run(
            words, env=dict(environment), capture_output=True, text=True, timeout=_SECONDS, check=False
        )

    def output(self, *command: str, proc: bool = True) -> str:
        """What a command that must succeed prints."""
        done = self.run(*command, proc=proc)
        assert done.returncode == 0, f"{command} gave {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def unpack(self, archive: Path, place: str = "/opt") -> None:
        """Unpack a .tar.gz with what the host has."""
        shutil.copy(archive, self.root / "tmp/bundle.tar.gz")
        self.output("/bin/busybox", "tar", "-xzf", "/tmp/bundle.tar.gz", "-C", place)

    def files(self) -> dict[str, str]:
        """Every path, with what a link names."""
        return {
            str(path.relative_to(self.root)): str(path.readlink()) if path.is_symlink() else ""
            for path in self.root.rglob("*")
        }

    def remove(self) -> None:
        """Take it off the disk."""
        shutil.rmtree(self.root, ignore_errors=True)
