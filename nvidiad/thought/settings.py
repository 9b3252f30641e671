# SPDX-License-Identifier: Apache-2.0
"""The settings: all that can be configured, with the defaults that are right for most hosts."""

from __future__ import annotations

from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING

from nvidiad.nouns.model import Change, EngineKind, Exposure, Signatures
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

# nvidiad makes the device nodes, so the driver's own helper need not.
_BY_DEFAULT = MappingProxyType({"nvidia": ("NVreg_ModifyDeviceFiles=0",)})
_ROOT = PurePosixPath("/opt")
_SOCKET = PurePosixPath("/run/docker.sock")
UPDATE_ENGINE_UNIT = "update-engine.service"


class Driver(Value):
    version: str = ""
    product: str = ""
    modules: tuple[str, ...] = ("nvidia", "nvidia-uvm", "nvidia-modeset")
    host_modules: tuple[str, ...] = ("i2c_core", "ipmi_msghandler", "ipmi_devintf")
    parameters: Mapping[str, tuple[str, ...]] = _BY_DEFAULT
    """By the module's name in the kernel: `nvidia_uvm`, however it is written in the file."""
    attempts: int = 3
    """After so many activations that failed, the last driver known good returns."""
    change: Change = Change.REBOOT
    drain_timeout: float = 600.0


class Image(Value):
    repository: str = ""
    tag: str = "{os}-{driver}{-product}"
    auth_file: PurePosixPath | None = None
    connect_timeout: float = 10.0
    stall_timeout: float = 60.0
    total_timeout: float = 1800.0


class Trust(Value):
    """Who must vouch for an image before anything of it is fetched."""

    policy: Signatures | None = None
    """None: signatures are required as soon as there is a key."""
    keys: tuple[PurePosixPath, ...] = ()
    """PEM files of public keys; one of them is enough."""
    repository: str = ""
    """Where the signatures are; empty: beside the images."""
    pins: Mapping[str, str] = MappingProxyType({})
    """The one digest that an image of this name and tag may have."""

    @property
    def signatures(self) -> Signatures:
        return self.policy or (Signatures.REQUIRE if self.keys else Signatures.OFF)


class Cuda(Value):
    version: str = ""
    """Empty: no CUDA is kept."""
    repository: str = ""
    tag: str = "{version}"


class Cdi(Value):
    """The description of the GPUs for container engines."""

    enabled: bool = True


class Install(Value):
    root: PurePosixPath = _ROOT
    exposure: Exposure = Exposure.AUTO


class Units(Value):
    gated: tuple[str, ...] = ("kubelet.service",)
    hold: bool = True
    """Whether gated units wait for a driver (when-missing = "hold") or start without one."""


class Engine(Value):
    """Who fetches images."""

    socket: PurePosixPath = _SOCKET
    kind: EngineKind = EngineKind.AUTO
    mirrors: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """URLs by the name of a registry, for what nvidiad itself asks a registry for."""


class Stage(Value):
    """The driver of the next OS, fetched before the reboot."""

    enabled: bool = True
    spread: float = 300.0
    bandwidth: int = 0
    """Bytes a second, 0 for no limit."""
    next_file: PurePosixPath | None = None
    next_command: tuple[str, ...] = ()


class Reboot(Value):
    """What nvidiad does about reboots."""

    inhibit: bool = True
    maximum: float = 900.0
    """No reboot is held longer."""
    automatic: bool = False
    os_rollback: bool = False


class Retention(Value):
    """Which trees that nothing needs stay on disk all the same."""

    automatic: bool = True
    trees: int = 4
    """At most so many in all; those that something needs always stay."""
    bytes: int = 0
    """At most so many in all, 0 for no limit."""


class Kubernetes(Value):
    """What a cluster is told of this host, beside what it asks."""

    nfd_file: PurePosixPath | None = None


class Daemon(Value):
    poll: float = 300.0
    retry_initial: float = 15.0
    retry_maximum: float = 600.0


class Settings(Value):
    """All that can be configured; times in seconds."""

    driver: Driver = Driver()
    image: Image = Image()
    trust: Trust = Trust()
    cuda: Cuda = Cuda()
    cdi: Cdi = Cdi()
    install: Install = Install()
    units: Units = Units()
    stage: Stage = Stage()
    reboot: Reboot = Reboot()
    retention: Retention = Retention()
    engine: Engine = Engine()
    kubernetes: Kubernetes = Kubernetes()
    daemon: Daemon = Daemon()

    @property
    def gates(self) -> tuple[str, ...]:
        """The units that systemd starts only after the driver."""
        # Its good-boot mark makes the OS's update final: without it the boot loader goes back.
        return (*self.units.gated, *([UPDATE_ENGINE_UNIT] if self.reboot.os_rollback else []))

    @property
    def missing(self) -> tuple[str, ...]:
        """The required keys that nobody has set."""
        required = {"driver.version": self.driver.version, "image.repository": self.image.repository}
        return tuple(key for key, value in required.items() if not value)

    @property
    def configured(self) -> bool:
        """Whether nvidiad knows what is wanted of this host."""
        return not self.missing
