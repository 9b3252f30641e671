# SPDX-License-Identifier: Apache-2.0
"""The model of image making: releases of an OS, drivers as they come, cells of the matrix, verdicts."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from nvidiad.nouns.model import Build, Flavour
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from nvidiad.nouns.errors import Code


class Family(StrEnum):
    """Operating systems whose releases are known; the value is os-release's ID."""

    FLATCAR = "flatcar"
    COREOS = "coreos"
    DEBIAN = "debian"


class Architecture(StrEnum):
    """A machine's architecture as OS vendors call it."""

    AMD64 = "amd64"
    ARM64 = "arm64"

    @property
    def machine(self) -> str:
        """As `uname -m`, manifests and NVIDIA call it."""
        return "x86_64" if self is Architecture.AMD64 else "aarch64"


class OsRelease(Value):
    """One OS release of one architecture.

    A Debian release does not name its kernel: there the kernel release takes the version's place, in tags
    and trees too (`{kernel}-{driver}`), and the channel is the suite that has the kernel.
    """

    family: Family
    version: str
    channel: str
    """stable, beta, alpha, lts, lts-2024; the suite for Debian."""
    architecture: Architecture
    kernel: str = ""
    """What `uname -r` prints there; empty while no source tells."""
    date: str = ""
    """Of its release, `YYYY-MM-DD`; empty where it is not known."""
    source: str = ""
    """The URL or file that told of it."""

    def __str__(self) -> str:
        return f"{self.family} {self.version} ({self.architecture})"


class SourceKind(StrEnum):
    """In which form a driver comes."""

    RUN = "run"
    """NVIDIA's self-extracting `.run` package."""
    REDIST = "redist"
    """NVIDIA's redistributable archive (`nvidia_driver-linux-x86_64-VERSION-archive.tar.xz`)."""
    DEBIAN = "debian"
    """Debian's packages of the driver, from contrib and non-free."""


class DriverSource(Value):
    """A driver and where it comes from."""

    version: str
    flavour: Flavour
    kind: SourceKind
    product: str = ""
    location: str = ""
    """A URL or a path of the package; for Debian the suite whose packages are meant."""
    sha256: str = ""
    """Of the package; empty for Debian, whose archive is signed."""
    graphics: bool = False
    """Whether the graphics libraries go into the tree beside those of compute and utility."""
    fabric_manager: str = ""
    """A URL or a path of the fabric manager's archive, for hosts with NVSwitches; empty for none."""
    fabric_manager_sha256: str = ""

    def __str__(self) -> str:
        return f"{self.version} ({self.flavour})"


class Cell(Value):
    """One image that should exist: a driver for a release."""

    release: OsRelease
    driver: DriverSource
    tag: str
    shared: bool = False
    """Whether the tag is to name the images of several architectures, whichever of them are known today."""

    @property
    def build(self) -> Build:
        """The build that the image is to hold; its kernel is what the release's source tells."""
        release = self.release
        return Build(self.driver.version, release.version, release.kernel, self.driver.product)


class State(StrEnum):
    """What is known of a cell's image."""

    PUBLISHED = "published"
    MISSING = "missing"
    UNBUILDABLE = "unbuildable"
    UNKNOWN = "unknown"
    """The registry did not answer for it."""


class Standing(Value):
    """A cell and what is known of its image."""

    cell: Cell
    state: State
    digest: str = ""
    reason: str = ""
    """Why it cannot be built (the compiler's first error), or why nothing is known."""


class Check(Value):
    """One thing that a proof looked at."""

    name: str
    passed: bool
    sentence: str
    code: Code | None = None
    """The stable code of what failed."""


class Verdict(Value):
    """What a proof found."""

    image: str
    build: Build
    kernel: str
    """The kernel that was booted."""
    checks: tuple[Check, ...]
    seconds: float = 0.0

    @property
    def proven(self) -> bool:
        """Whether every check passed, and there was one."""
        return bool(self.checks) and all(check.passed for check in self.checks)
