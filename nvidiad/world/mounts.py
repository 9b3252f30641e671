# SPDX-License-Identifier: Apache-2.0
"""Mounts: what the mount table says of /usr, and the overlay that lays the driver over /usr/lib64."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.facts import MountFacts
from nvidiad.thought import parse
from nvidiad.world import kernel_log, process

if TYPE_CHECKING:
    from nvidiad.world.process import Finished

SOURCE = "nvidia"
LIB64 = "/usr/lib64"
TIMEOUT = 60.0
# overlayfs takes no more than two layers of overlays, and nobody stacks ours: a loop that ends.
STACK_AT_MOST = 8
# Characters that mean something in the options of an overlay mount.
SPECIAL = frozenset(":,\\\n\0")
REMEDY = "Look at 'dmesg' and /proc/self/mountinfo; install.exposure = \"ldconfig\" needs no mount."


class Mounts:
    """The mount table of the namespace this process is in."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def facts(self) -> MountFacts:
        """What exposure depends on."""
        table = self._table()
        lib64 = self._under(LIB64)
        usr = parse.top(table, "/usr")
        return MountFacts(
            overlay_lower=self._ours(table, self._canonical(LIB64)),
            usr_is_overlay=usr is not None and usr.type == "overlay",
            lib64_is_lib=_same(lib64, self._under("/usr/lib")),
            lib64_exists=lib64.is_dir(),
        )

    def overlay(self, lower: str, target: str) -> None:
        """Lay `lower` over `target`, read-only; one of ours that is there with another lower is replaced."""
        for path in (lower, target):
            if SPECIAL & set(path) or not path.startswith("/"):
                raise Permanent(
                    Code.EXPOSURE_FAILED,
                    f"'{path}' cannot be part of an overlay: it must be absolute, without ':', ',' and '\\'",
                    "Choose another install.root.",
                )
        there = self._ours(self._table(), self._canonical(target))
        if there is not None:
            if there[:1] == (lower,):
                return
            # A second overlay on top would have the old driver's libraries below the new one's.
            self.unmount(target)
        options = f"ro,lowerdir={lower}:{target}"
        # mount's own words for every fault are "wrong fs type, bad option, bad superblock"
        with kernel_log.since_now(self.root) as news:
            finished = process.run(
                ["mount", "-t", "overlay", SOURCE, "-o", options, target], timeout=TIMEOUT
            )
            if finished.returncode != 0:
                raise _failure(finished, news.about("overlay"))

    def unmount(self, target: str) -> None:
        """Take our overlay off `target`; nothing when there is none, and never anything else."""
        canonical = self._canonical(target)
        for _ in range(STACK_AT_MOST):
            if self._ours(self._table(), canonical) is None:
                return
            finished = process.run(["umount", target], timeout=TIMEOUT)
            if finished.returncode != 0 and "busy" in finished.err:
                # Those who have a library open keep it; everyone else sees the change at once.
                finished = process.run(["umount", "-l", target], timeout=TIMEOUT)
            if finished.returncode != 0 and self._ours(self._table(), canonical) is not None:
                raise _failure(finished)
        raise Transient(Code.EXPOSURE_FAILED, f"the overlay on '{target}' comes back", REMEDY)

    def _table(self) -> tuple[parse.Mount, ...]:
        path = self._under("/proc/self/mountinfo")
        try:
            return parse.mountinfo(path.read_text(encoding="utf-8", errors="surrogateescape"))
        except OSError as error:
            raise Transient(
                Code.INTERNAL, f"cannot read '{path}': {error.strerror}", "Mount /proc."
            ) from error

    def _ours(self, table: tuple[parse.Mount, ...], target: str) -> tuple[str, ...] | None:
        """The lower directories of our overlay, None where that is not what one sees at `target`."""
        mount = parse.top(table, target)
        if mount is None or mount.type != "overlay" or mount.source != SOURCE:
            return None
        return parse.lower_directories(mount)

    def _under(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _canonical(self, path: str) -> str:
        """`path` as the mount table names it: without symlinks."""
        real = os.path.realpath(self._under(path))
        top = os.path.realpath(self.root)
        inside = real.removeprefix(top).lstrip("/") if real.startswith(top) else path.lstrip("/")
        return f"/{inside}"


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _failure(finished: Finished, words: str = "") -> Failure:
    said = f"; the kernel says: {words}" if words else ""
    return Transient(Code.EXPOSURE_FAILED, process.failed(finished) + said, REMEDY)
