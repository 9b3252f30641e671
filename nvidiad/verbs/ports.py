# SPDX-License-Identifier: Apache-2.0
"""Ports: what the verbs need of the world, as protocols; app chooses what stands behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path, PurePosixPath

    from nvidiad.nouns.compatibility import Entry
    from nvidiad.nouns.facts import LinkerFacts, MountFacts
    from nvidiad.nouns.manifest import Manifest
    from nvidiad.nouns.model import (
        Build,
        Engine,
        Gpu,
        Holder,
        Kind,
        LoadedModule,
        Memory,
        ModuleFile,
        ModuleRules,
        Progress,
        Release,
        Tree,
        UnitState,
        UpdateStatus,
    )
    from nvidiad.nouns.surroundings import Surroundings as Around
    from nvidiad.nouns.upcoming import RebootFacts, StagedSystem
    from nvidiad.thought.cosign import Seal
    from nvidiad.thought.layers import Coming, Kept
    from nvidiad.thought.symbols import Imports, Known


class Match(Value):
    """A D-Bus signal to receive; empty fields match everything."""

    interface: str
    member: str
    sender: str
    path: str = ""
    first_argument: str = ""

    @property
    def rule(self) -> str:
        """The match rule, as dbus-daemon(1) takes it."""
        fields = {
            "sender": self.sender,
            "interface": self.interface,
            "member": self.member,
            "path": self.path,
            "arg0": self.first_argument,
        }
        return ",".join(["type='signal'", *(f"{key}='{value}'" for key, value in fields.items() if value)])


class Signal(Value):
    """A D-Bus signal that came in."""

    interface: str
    member: str
    body: tuple[object, ...]


class Log(Protocol):
    """What structlog's loggers are to this program."""

    def debug(self, event: str, **fields: object) -> object: ...
    def info(self, event: str, **fields: object) -> object: ...
    def warning(self, event: str, **fields: object) -> object: ...
    def error(self, event: str, **fields: object) -> object: ...


class Host(Protocol):
    """The operating system: what it is, not what it does."""

    def release(self) -> Release: ...
    def kernel(self) -> str: ...
    def boot_id(self) -> str: ...
    def machine(self) -> str: ...
    def lockdown(self) -> str: ...
    def module_rules(self) -> ModuleRules: ...
    def secure_boot(self) -> bool | None: ...
    def extensions(self) -> tuple[str, ...]: ...
    def uptime(self) -> float: ...


class Gpus(Protocol):
    def list(self) -> tuple[Gpu, ...]: ...


class Trees(Protocol):
    """The builds on disk below one install root; of drivers where no kind is given."""

    root: Path

    def list(self, kind: Kind = ...) -> tuple[Tree, ...]: ...
    def current(self, kind: Kind = ...) -> str | None: ...
    def select(self, tree: str) -> None: ...
    def manifest(self, tree: str) -> Manifest: ...
    def verify(self, tree: str, build: Build) -> None: ...
    def verify_file(self, tree: str, path: str) -> None: ...
    def install(self, source: Path, tell: Callable[[Progress], None]) -> Tree: ...
    def receive(
        self,
        coming: Coming,
        fetch: Callable[[Path], Mapping[str, Kept]],
        tell: Callable[[Progress], None],
    ) -> Tree: ...
    def remove(self, tree: str) -> None: ...


class Images(Protocol):
    """Who fetches images: a container engine, or nvidiad itself."""

    def resolve(self, reference: str) -> str: ...
    def pull(
        self, reference: str, digest: str, tell: Callable[[Progress], None], *, gentle: bool = ...
    ) -> None: ...
    def labels(self, reference: str, digest: str) -> dict[str, str]: ...
    def install(
        self,
        reference: str,
        digest: str,
        trees: Trees,
        tell: Callable[[Progress], None],
        *,
        gentle: bool = ...,
    ) -> None: ...
    def discard(self, reference: str, digest: str) -> None: ...


class ChosenImages(Images, Protocol):
    """The one of them that is right for this host."""

    def engine(self) -> Engine: ...


class Vouchers(Protocol):
    """The signatures of images, and the keys that may have made them."""

    @property
    def required(self) -> bool: ...
    def seals(self, reference: str, digest: str) -> Iterator[Seal]: ...
    def signer(self, signed: bytes, signature: bytes) -> str: ...


class CompatibilityLists(Protocol):
    """What those who build the images say of images that are not there."""

    def unbuildable(self, reference: str) -> Entry | None: ...


class Mounts(Protocol):
    def facts(self) -> MountFacts: ...
    def overlay(self, lower: str, target: str) -> None: ...
    def unmount(self, target: str) -> None: ...


class Linker(Protocol):
    def facts(self, directory: str, libraries: tuple[str, ...]) -> LinkerFacts: ...
    def configure(self, text: str | None) -> None: ...
    def refresh(self) -> None: ...


class Modules(Protocol):
    """Kernel modules: those loaded and those in a tree."""

    def loaded(self) -> tuple[LoadedModule, ...]: ...
    def present(self, names: tuple[str, ...]) -> tuple[str, ...]: ...
    def unavailable(self, names: tuple[str, ...], kernel: str) -> tuple[str, ...]: ...
    def read(self, tree: str, kernel: str) -> tuple[ModuleFile, ...]: ...
    def load(self, module: ModuleFile, parameters: tuple[str, ...]) -> None: ...
    def load_from_host(self, names: tuple[str, ...]) -> tuple[str, ...]: ...
    def unload(self, name: str) -> None: ...
    def firmware_path(self) -> str: ...
    def set_firmware_path(self, path: str) -> None: ...
    def driver_version(self) -> str | None: ...
    def holders(self) -> tuple[Holder, ...]: ...


class Kernels(Protocol):
    """What the OS has of its kernels on disk."""

    def imports(self, paths: tuple[str, ...]) -> tuple[Imports, ...]: ...
    def symbols(self, kernel: str, wanted: frozenset[str]) -> Known: ...
    def forbidden(self, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]: ...


class Nodes(Protocol):
    """Device nodes in /dev and their links in /dev/char."""

    def missing(self) -> tuple[str, ...]: ...
    def make(self) -> None: ...
    def remove(self) -> None: ...


class Bus(Protocol):
    """A connection to the system bus."""

    def call(
        self, destination: str, path: str, interface: str, method: str, *arguments: str | bool | int
    ) -> Any: ...
    def descriptor(
        self, destination: str, path: str, interface: str, method: str, *arguments: str
    ) -> int: ...
    def get(self, destination: str, path: str, interface: str, name: str, signature: str) -> Any: ...
    def add(self, *matches: Match) -> None: ...
    def wait(self, seconds: float) -> tuple[Signal, ...]: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Units(Protocol):
    """systemd, over D-Bus."""

    def states(self, names: tuple[str, ...]) -> tuple[UnitState, ...]: ...
    def start(self, name: str, *, wait: bool, tell: Callable[[Progress], None]) -> None: ...
    def stop(self, name: str, *, tell: Callable[[Progress], None]) -> None: ...
    def reload(self, name: str, *, tell: Callable[[Progress], None]) -> None: ...
    def gates(self) -> tuple[str, ...]: ...
    def write_gates(self, names: tuple[str, ...]) -> None: ...


class Updates(Protocol):
    """update_engine, where there is one."""

    def status(self) -> UpdateStatus | None: ...


class NextSystems(Protocol):
    """What the disk and others say of the OS that the host boots next."""

    def reboot_required(self) -> bool: ...
    def slot(self) -> StagedSystem | None: ...
    def announced(self) -> StagedSystem | None: ...


class Shutdowns(Protocol):
    """logind: reboots that are asked for, and the lock that delays them."""

    def facts(self) -> RebootFacts | None: ...
    def raise_limit(self, seconds: float) -> None: ...
    def hold(self, why: str) -> None: ...
    def release(self) -> None: ...
    def reboot(self) -> None: ...


class FeatureFiles(Protocol):
    """What node-feature-discovery reads on this host."""

    def put(self, place: PurePosixPath, text: str | None) -> None: ...


class Surroundings(Protocol):
    """What stands beside a driver in force."""

    def look(self, tree: Tree | None) -> Around: ...


class Specification(Protocol):
    """The CDI specification, and NVIDIA's program that makes one."""

    def write(self, text: str) -> None: ...
    def remove(self) -> None: ...
    def generator(self) -> str: ...
    def generate(self, program: str, tree: str) -> str: ...
    def digest(self, text: str) -> str: ...


class Smi(Protocol):
    """NVIDIA's program that asks NVML."""

    @property
    def seconds(self) -> float: ...
    def ask(self, tree: str, arguments: tuple[str, ...]) -> tuple[int, str] | None: ...


class Memories(Protocol):
    """The file that survives reboots."""

    def read(self) -> Memory: ...
    def write(self, memory: Memory) -> None: ...


class DriverPorts(Value):
    """What activation needs: no bus, no engine, no network."""

    host: Host
    gpus: Gpus
    trees: Trees
    mounts: Mounts
    linker: Linker
    modules: Modules
    nodes: Nodes
    memories: Memories
    """What survives reboots; the daemon alone writes it."""
    trials: Memories
    """Activations that did not bring a tree up, across boots; activation alone writes it."""


class Ports(Value):
    """What the daemon needs on top."""

    driver: DriverPorts
    units: Units
    updates: Updates
    images: ChosenImages
    lists: CompatibilityLists
    next: NextSystems
    shutdowns: Shutdowns
    vouchers: Vouchers | None
    """None where nobody looks for signatures."""
    kernels: Kernels
    surroundings: Surroundings
    activations: Memories
    """What the last activation of this boot left to say, in /run."""
