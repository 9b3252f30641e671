# SPDX-License-Identifier: Apache-2.0
"""The facts: everything that one look finds on a host; nothing of it is decided here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.model import ModuleRules
from nvidiad.nouns.surroundings import Surroundings
from nvidiad.nouns.upcoming import NextFacts
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from nvidiad.nouns.model import (
        Attempt,
        Engine,
        Gpu,
        Holder,
        Library,
        LoadedModule,
        ModuleFile,
        Problem,
        Release,
        Tree,
        UnitState,
    )
    from nvidiad.nouns.upcoming import RebootFacts


class LinkerFacts(Value):
    """What the dynamic linker knows of the driver."""

    configuration: str | None
    """The text of our ld.so.conf.d file, None where there is none."""
    missing: tuple[str, ...]
    """Libraries of the wanted tree that the cache does not name."""
    first: tuple[Library, ...] = ()
    """The libraries that must be of the loaded module's version, as far as the cache has them."""


class MountFacts(Value):
    """The part of the mount table that exposure depends on."""

    overlay_lower: tuple[str, ...] | None
    """The lower directories of the overlay on /usr/lib64, None where there is no overlay of ours."""
    usr_is_overlay: bool
    lib64_is_lib: bool
    """/usr/lib and /usr/lib64 are one directory (CoreOS, Flatcar before 3185)."""
    lib64_exists: bool = True


class DriverFacts(Value):
    """Everything about the host that activation depends on."""

    release: Release
    kernel: str
    boot_id: str
    lockdown: str
    """The lockdown level of the kernel: none, integrity or confidentiality."""
    extensions: tuple[str, ...]
    """Active system extensions that bring an NVIDIA driver of their own."""
    gpus: tuple[Gpu, ...]
    trees: tuple[Tree, ...]
    current: str | None
    wanted_modules: tuple[ModuleFile, ...]
    """The modules of the wanted tree; empty while the tree is not there."""
    loaded: tuple[LoadedModule, ...]
    mounts: MountFacts
    linker: LinkerFacts
    firmware_path: str
    nodes_missing: tuple[str, ...]
    """Device nodes that the loaded modules serve and that are not in /dev as they should be."""
    tree_problem: Problem | None = None
    """Why the modules of the wanted tree cannot be read."""
    trials: tuple[Attempt, ...] = ()
    """Activations that did not bring a tree up, by the tree's identity; they are counted across boots."""
    good: tuple[str, ...] = ()
    """Paths of trees that were seen ready, the latest first."""
    machine: str = ""
    """As `uname -m` prints it."""
    rules: ModuleRules = ModuleRules()
    absent: tuple[str, ...] = ()
    """Modules that the driver's need, and that this kernel neither has nor could load."""
    rivals: tuple[str, ...] = ()
    """Loaded drivers that want the GPU for themselves, whether they have it or not."""


class CudaFacts(Value):
    """The CUDA trees on disk and the one that is current."""

    trees: tuple[Tree, ...] = ()
    current: str | None = None


class HostFacts(Value):
    """One look at the host."""

    driver: DriverFacts
    units: tuple[UnitState, ...]
    gates: tuple[str, ...]
    """Units that have our drop-in."""
    activation: Problem | None = None
    """Why the last activation failed, as it left it in /run."""
    holders: tuple[Holder, ...] = ()
    cuda: CudaFacts = CudaFacts()
    """Not looked at where no CUDA is configured."""
    next: NextFacts = NextFacts()
    reboot: RebootFacts | None = None
    """None where there is no logind."""
    engine: Engine | None = None
    """Who fetches images, and why that one; None where nobody asked."""
    uptime: float = 0.0
    """Seconds since the host booted, suspended ones too: no clock that somebody sets."""
    surroundings: Surroundings = Surroundings()

    def unit(self, name: str) -> UnitState | None:
        """The state of a unit, None where it was not looked at."""
        return next((unit for unit in self.units if unit.name == name), None)
