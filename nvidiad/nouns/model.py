# SPDX-License-Identifier: Apache-2.0
"""The model: of what a host consists, and the little that is remembered of it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from nvidiad.nouns.errors import Code, Failure


class Kind(StrEnum):
    """What a bundle brings: a driver, or CUDA's libraries and tools, which need no kernel of their own."""

    DRIVER = "driver"
    CUDA = "cuda"


class Flavour(StrEnum):
    """Which kernel modules a driver has: NVIDIA's open ones or the proprietary ones."""

    OPEN = "open"
    PROPRIETARY = "proprietary"


class Exposure(StrEnum):
    """How the driver's libraries come into the linker cache."""

    OVERLAY = "overlay"
    LDCONFIG = "ldconfig"
    AUTO = "auto"


class Signatures(StrEnum):
    """What becomes of an image that no configured key has signed."""

    REQUIRE = "require"
    PREFER = "prefer"
    """It is taken, and a warning is logged."""
    OFF = "off"
    """Nobody looks for signatures."""


class Change(StrEnum):
    """What to do about another driver version while the loaded one is in use."""

    REBOOT = "reboot"
    WAIT = "wait"
    DRAIN = "drain"


class EngineKind(StrEnum):
    """Who fetches images."""

    AUTO = "auto"
    DOCKER = "docker"
    REGISTRY = "registry"
    """nvidiad itself, straight from the registry."""


class Engine(Value):
    """Who fetches images on this host, and why it is that one."""

    kind: EngineKind
    reason: str


class Phase(StrEnum):
    """The state of the host as a person sees it; computed at every look, never stored."""

    READY = "ready"
    STANDING_BACK = "standing-back"
    NO_GPU = "no-gpu"
    CONVERGING = "converging"
    WAITING = "waiting"
    PENDING_REBOOT = "pending-reboot"
    BLOCKED = "blocked"


class Release(Value):
    """An OS version, as os-release names it (os-release(5): ID, VERSION_ID or VERSION)."""

    id: str
    version: str
    name: str = ""


class Build(Value):
    """A driver for one OS release, or one CUDA for all of them: the identity of an image and of a tree."""

    driver: str
    """The version of what it brings: the driver's, or CUDA's. The other fields of a CUDA are empty."""
    os_version: str
    kernel: str
    product: str = ""
    kind: Kind = Kind.DRIVER

    def __str__(self) -> str:
        if self.kind is Kind.CUDA:
            return f"CUDA {self.driver}"
        return f"{self.os_version}-{self.driver}" + (f"-{self.product}" if self.product else "")


class Gpu(Value):
    """An NVIDIA PCI function of class display, 3D or NVSwitch bridge."""

    address: str
    device: str
    """Vendor and device id, `10de:20b5`."""
    bound: str | None
    """The kernel driver bound to it, if any."""
    switch: bool = False
    """It is an NVSwitch, which no list of GPUs names."""


class ModuleRules(Value):
    """What the kernel demands of modules beside its lockdown level."""

    signed_only: bool = False
    """module.sig_enforce: no module without a good signature."""
    closed: bool = False
    """kernel.modules_disabled: none at all until the next boot."""
    secure_boot: bool | None = None
    """Whether the firmware says so; None where it was not asked, or there is no such firmware."""


class ModuleFile(Value):
    """A kernel module in a tree, as its .modinfo section describes it."""

    name: str
    path: str
    version: str
    vermagic: str
    depends: tuple[str, ...]
    signed: bool = False
    """It carries a signature; whether the kernel trusts the key, only the kernel knows."""

    @property
    def kernel(self) -> str:
        """The kernel release it was compiled for: the first word of its vermagic."""
        return self.vermagic.partition(" ")[0]


class Tree(Value):
    """A complete build on disk."""

    path: str
    build: Build
    flavour: Flavour | None
    """None for CUDA, which has no kernel modules."""
    libraries: tuple[str, ...] = ()
    """Names that the dynamic linker looks for: the entries `lib*.so.N` of lib64."""
    firmware: bool = False
    minimum_driver: str = ""
    """The oldest driver that a CUDA works with; empty for a driver."""
    identity: str = ""
    """Changes with whatever its manifest says: the same build made again is another tree."""
    size: int = 0
    """Bytes of its files."""
    installed: float = 0.0
    """When it was laid down, seconds since 1970."""
    architecture: str = ""
    os_id: str = ""
    pci: tuple[str, ...] = ()
    """The devices that its driver serves; empty where its manifest does not say."""
    strays: tuple[str, ...] = ()
    """Its libraries and firmware that are named after another driver version."""


class LoadedModule(Value):
    """A module in the kernel, from /sys/module/NAME."""

    name: str
    version: str | None
    references: int
    holders: tuple[str, ...] = ()


class Holder(Value):
    """A process that keeps an NVIDIA device open, and the unit or container it belongs to."""

    pid: int
    command: str
    unit: str


class Library(Value):
    """A driver library as a program gets it that knows nothing but its name."""

    name: str
    path: str
    """The path in the linker cache, mostly a symbolic link."""
    version: str
    """The driver version in the name of the real file: `libcuda.so.535.309.01`."""


class Problem(Value):
    """Why the host is not ready, in the words of errors.Failure."""

    code: Code
    sentence: str
    remedy: str = ""
    retry: bool = False


def problem_of(failure: Failure) -> Problem:
    """A failure as data."""
    return Problem(failure.code, failure.sentence, failure.remedy, failure.retry)


class UnitState(Value):
    """A unit as systemd sees it (org.freedesktop.systemd1); times in microseconds, 0 for never."""

    name: str
    load: str
    active: str
    sub: str
    result: str
    job: int
    wanted: bool
    """Something pulls it in at boot (WantedBy, RequiredBy or UpheldBy is not empty)."""
    active_enter: int
    inactive_enter: int
    active_since: int
    """Wall clock of active_enter, in microseconds since 1970."""
    changed: int = 0
    """When its state changed last; the end of a reload counts."""


class UpdateStatus(Value):
    """What update_engine says (GetStatus); `version` is empty where it names none."""

    operation: str
    version: str
    progress: float


class Progress(Value):
    """Where a long step stands."""

    step: str
    detail: str
    done: int = 0
    total: int = 0
    """Bytes, 0 where they are not known."""


class Attempt(Value):
    """The failed tries of one thing; with the last build known good, all that is remembered across boots."""

    reference: str
    count: int
    last: float
    """Wall clock of the last try, seconds since 1970."""
    problem: Problem


class Sighting(Value):
    """When something was first seen in this boot; `at` is the host's uptime in seconds."""

    what: str
    boot_id: str
    at: float


class Origin(Value):
    """From which image a tree was installed."""

    tree: str
    digest: str


class Memory(Value):
    """What survives a reboot: attempts, trees known good, and what was begun and must be ended."""

    attempts: tuple[Attempt, ...] = ()
    last_good: str = ""
    """The path of the tree that was last seen ready."""
    former_good: str = ""
    """The last such tree of another OS release: most likely the one in the other slot."""
    sightings: tuple[Sighting, ...] = ()
    """Since when an update is known, a reboot is wanted, units are stopped: what has a limit."""
    stopped: tuple[str, ...] = ()
    """Units that nvidiad stopped for a change of the driver, and is to start again."""
    origins: tuple[Origin, ...] = ()
