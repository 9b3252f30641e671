# SPDX-License-Identifier: Apache-2.0
"""Debian: developer images of its kernels, and NVIDIA's driver from its packages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nvidiad.image.nouns import developer as developers
from nvidiad.image.thought import debian
from nvidiad.nouns.model import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from nvidiad.image.nouns.model import DriverSource, OsRelease
    from nvidiad.image.thought.debian import Offer
    from nvidiad.image.thought.package import Layout


class Archive(Protocol):
    """Debian's archive: `nvidiad.image.world.archive.Archive`."""

    def offers(self, packages: Sequence[str]) -> tuple[Offer, ...]: ...
    def depends(self, package: str) -> str: ...
    def unpack(self, package: Path, dest: Path) -> None: ...
    def download(
        self, packages: Sequence[str], dest: Path, tell: Callable[[Progress], None]
    ) -> tuple[Path, ...]: ...
    def tree(self, packages: Sequence[str], dest: Path, tell: Callable[[Progress], None]) -> None: ...


class Engine(Protocol):
    """What is asked of a container engine."""

    def has(self, reference: str) -> bool: ...
    def import_tree(
        self, archive: Path, reference: str, labels: Mapping[str, str], tell: Callable[[Progress], None]
    ) -> None: ...


class Workspace(Protocol):
    """Where files lie meanwhile."""

    def directory(self) -> AbstractContextManager[Path]: ...


def developer(
    release: OsRelease,
    archive: Archive,
    engine: Engine,
    workspace: Workspace,
    tell: Callable[[Progress], None],
    *,
    repository: str = "",
    again: bool = False,
) -> str:
    """Make the developer image of a Debian kernel, unless it is there; its reference.

    It has the compiler that made the kernel, the headers, the kernel and its modules. Raises source-invalid
    where the archive does not have that kernel's headers, download-failed where packages do not come.
    """
    reference = developers.reference(release, repository)
    if not again and engine.has(reference):
        tell(Progress("make-tree", f"'{reference}' is there already"))
        return reference
    depends = archive.depends(f"{debian.HEADERS}{release.kernel}")
    packages = debian.toolchain(depends, release.kernel)
    labels = developers.identity(release) | {
        developers.KERNEL: release.kernel,
        developers.SOURCE: release.source or release.channel,
    }
    with workspace.directory() as where:
        made = where / "developer.tar"
        archive.tree(packages, made, tell)
        engine.import_tree(made, reference, labels, tell)
    return reference


def driver(
    source: DriverSource,
    archive: Archive,
    arrange: Callable[[DriverSource, Path], Layout],
    workspace: Workspace,
    dest: Path,
    tell: Callable[[Progress], None],
) -> Layout:
    """Fetch and unpack the packages that make a driver; apt checks the archive's signatures.

    `arrange` gives the layout of what was unpacked (`nvidiad.image.world.driver.arrange_debian`). Raises
    source-invalid where the archive does not have this version.
    """
    wanted = debian.wanted(source.flavour, graphics=source.graphics)
    chosen = debian.choose(archive.offers(wanted), source.version, source.flavour, graphics=source.graphics)
    for offer in chosen.programs:
        if debian.upstream(offer.version) != source.version:
            tell(
                Progress("download-packages", f"{offer.package} is {offer.version}: Debian has no newer one")
            )
    for name in chosen.absent:
        tell(Progress("download-packages", f"{name} is not in the archive at {source.version}"))
    with workspace.directory() as where:
        names = [str(offer) for offer in (chosen.source, *chosen.programs)]
        for package in archive.download([*names, *debian.LINKED], where, tell):
            archive.unpack(package, dest)
    return arrange(source, dest)
