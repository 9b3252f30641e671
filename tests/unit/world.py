# SPDX-License-Identifier: Apache-2.0
"""A host in memory behind the ports: what is done to it is seen of it, and it can die at any effect."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.facts import LinkerFacts, MountFacts
from nvidiad.nouns.manifest import FileEntry, Manifest
from nvidiad.nouns.model import (
    Attempt,
    Build,
    Engine,
    EngineKind,
    Flavour,
    Gpu,
    Holder,
    Kind,
    Library,
    LoadedModule,
    Memory,
    ModuleFile,
    ModuleRules,
    Progress,
    Release,
    Signatures,
    Tree,
    UnitState,
    UpdateStatus,
    problem_of,
)
from nvidiad.nouns.surroundings import Surroundings
from nvidiad.nouns.upcoming import RebootFacts, StagedSystem
from nvidiad.nouns.value import replace
from nvidiad.thought import activation
from nvidiad.thought.symbols import Imports, Known
from nvidiad.verbs.bring_up import bring_up
from nvidiad.verbs.engine import DriverEngine
from nvidiad.verbs.observer import look_at_driver
from nvidiad.verbs.ports import DriverPorts, Ports
from nvidiad.verbs.reconcile import Reconciler
from tests.unit.facts import DRIVER, KERNEL, OS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvidiad.nouns.compatibility import Compatibility, Entry
    from nvidiad.nouns.plan import Status
    from nvidiad.thought.cosign import Seal
    from nvidiad.thought.layers import Coming
    from nvidiad.thought.settings import Settings

ROOT = Path("/opt")
CURRENT = "/opt/nvidia/current"
REPOSITORY = "registry.example/nvidia-driver"
PERSISTENCED, KUBELET, DRIVER_UNIT = "nvidia-persistenced.service", "kubelet.service", "nvidia.service"
CDI_UNIT = "nvidia-cdi.service"
BESIDE = (PERSISTENCED, CDI_UNIT, "nvidia-health.service")
NAMES = ("nvidia", "nvidia_modeset", "nvidia_uvm")
NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-uvm")


class Death(BaseException):
    """The process that acts is gone, or the whole host: no handler of the product may catch it."""


@dataclass(frozen=True)
class Image:
    """An image in a registry: what its labels say, and what its installer leaves."""

    build: Build
    labels: dict[str, str]
    module_kernel: str
    faulty: str = ""
    """Why the tree that it leaves is not what its manifest says."""
    exit_problem: Failure | None = None
    refused: bool = False
    """The kernel refuses its modules."""

    @property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(repr(self).encode()).hexdigest()


def manifest_of(build: Build) -> Manifest:
    entries = tuple(
        FileEntry(f"lib/modules/{build.kernel}/{name.replace('_', '-')}.ko", 0o644, 1, "0" * 64)
        for name in NAMES
    )
    return Manifest(
        driver=build.driver,
        flavour=Flavour.OPEN,
        product=build.product,
        architecture="x86_64",
        os_id="flatcar",
        os_version=build.os_version,
        kernel=build.kernel,
        vermagic=f"{build.kernel} SMP",
        compiler="cc",
        pci=(),
        entries=entries,
    )


def image_of(build: Build, **changes: Any) -> Image:
    labels = manifests.labels(manifest_of(build), "0" * 64)
    return replace(Image(build, labels, build.kernel), **changes)


def reference_of(build: Build) -> str:
    return f"{REPOSITORY}:{build}"


@dataclass
class Quiet:
    """A log that keeps what it is told, as (level, event, fields)."""

    lines: list[tuple[str, str, dict[str, object]]] = field(default_factory=list)

    def debug(self, event: str, **fields: object) -> None:
        self.lines.append(("debug", event, fields))

    def info(self, event: str, **fields: object) -> None:
        self.lines.append(("info", event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.lines.append(("warning", event, fields))

    def error(self, event: str, **fields: object) -> None:
        self.lines.append(("error", event, fields))

    def events(self, level: str) -> list[str]:
        return [event for each, event, _ in self.lines if each == level]


@dataclass
class Disk:
    """What a reboot keeps."""

    trees: dict[str, Tree] = field(default_factory=dict)
    module_kernels: dict[str, str] = field(default_factory=dict)
    faulty: dict[str, str] = field(default_factory=dict)
    refused: dict[str, bool] = field(default_factory=dict)
    """Whether the kernel refuses the modules of a tree."""
    unread: dict[str, Failure] = field(default_factory=dict)
    """Trees whose modules cannot be read, and why."""
    unsigned: set[str] = field(default_factory=set)
    """Trees whose modules are not signed."""
    announced: StagedSystem | None = None
    """What a file says of the next OS."""
    current: str | None = None
    linker: str | None = None
    cache: set[str] = field(default_factory=set)
    """Trees whose libraries the linker cache names."""
    pulled: dict[str, Image] = field(default_factory=dict)
    gates: tuple[str, ...] = (KUBELET,)
    memory: Memory = field(default_factory=Memory)
    trials: Memory = field(default_factory=Memory)


@dataclass
class Boot:
    """What a reboot loses."""

    loaded: dict[str, str] = field(default_factory=dict)
    overlay: str | None = None
    firmware: str = ""
    nodes: set[str] = field(default_factory=set)
    units: dict[str, UnitState] = field(default_factory=dict)
    activation: Memory = field(default_factory=Memory)
    update: UpdateStatus | None = None
    slot: StagedSystem | None = None
    lock: bool = False
    """The delay lock is taken."""
    limit: float = 5.0
    others: float = 5.0
    """What logind waits for delay locks, and would without nvidiad's file."""
    fixed: bool = False
    """Another file has the last word on what logind waits."""
    asked: bool = False
    """A reboot was asked for, and waits for the lock."""
    rebooted: bool = False
    """nvidiad asked for one itself."""
    held: set[str] = field(default_factory=set)
    """Modules that somebody holds."""


def _unit(name: str) -> UnitState:
    return UnitState(
        name=name,
        load="loaded",
        active="inactive",
        sub="dead",
        result="success",
        job=0,
        wanted=True,
        active_enter=0,
        inactive_enter=0,
        active_since=0,
    )


class World:
    """The host, its registry and its clock. `effects` says what was done to it, in order."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.release, self.kernel = OS, KERNEL
        self.gpus = True
        self.split = True
        """/usr/lib and /usr/lib64 are two directories."""
        self.registry: dict[str, Image] = {}
        self.refusal: Failure | None = None
        """What the registry or the engine answers to everything."""
        self.signatures = Signatures.OFF
        self.seals: dict[str, tuple[Seal, ...]] = {}
        """By the digest that they lie beside; `good` is the signature of the configured key."""
        self.unsealed: Failure | None = None
        """Why the signatures cannot be read."""
        self.listed: Compatibility | Failure | None = None
        """The compatibility list in the registry, or why it cannot be read."""
        self.host_modules = {"i2c_core"}
        self.lockdown = "none"
        self.rules = ModuleRules()
        self.absent: tuple[str, ...] = ()
        """Modules that the driver's need, and that the OS has not."""
        self.needy: dict[str, str] = {}
        """The module that those of a tree need and the OS has not, by the tree's path."""
        self.device = "10de:20b5"
        self.pci: tuple[str, ...] = ()
        """The devices that the manifest of every tree names."""
        self.imports: dict[str, int] = {}
        """The CRCs that the modules of every tree were built with."""
        self.imports_of: dict[str, dict[str, int]] = {}
        """Those of one module, by the name of its file, where they are others."""
        self.known = Known({}, why="nobody looked")
        self.forgetful: Failure | None = None
        """Why the daemon's memory cannot be written."""
        self.gateless: Failure | None = None
        """Why no drop-in can be written."""
        self.unreadable: Failure | None = None
        """Why neither the other slot nor the modules of the next driver can be read."""
        self.unannounced: Failure | None = None
        """Why the file that names the next OS cannot be read."""
        self.unstartable: set[str] = set()
        """Units that systemd does not start."""
        self.around = Surroundings()
        self.described = Surroundings()
        """What a reload of nvidia-cdi.service leaves."""
        self.told_required = True
        """Who finishes an update leaves /run/reboot-required."""
        self.meanwhile: Callable[[], None] = lambda: None
        """What happens in the middle of a pull."""
        self.disk, self.volatile = Disk(), Boot()
        self.clock, self.ticks = 1_000_000.0, 0
        self.boots, self.powered_on = 1, self.clock
        self.effects: list[str] = []
        self.log = Quiet()
        self.dies_at: int | None = None
        self.dies = "daemon"
        """Who dies at that effect: the daemon, the activation that systemd runs, or the host."""
        self.dies_after = False
        self.starts: list[str] = []
        self.shadow: tuple[Library, ...] = ()
        """What programs get from somebody else than us."""
        self.published: list[Status] = []
        self.tell: Callable[[Progress], None] = lambda _: None
        """What the pull that is under way tells of itself."""
        self.deaf: Failure | None = None
        """Why logind does not answer."""
        self.slow = 0.0
        """Seconds that a unit takes to stop."""
        self.gently: list[bool] = []
        """For each pull, whether it left bandwidth to others."""
        self._in_activation = False

    # -- being killed

    def effect(self, what: str, do: Callable[[], object]) -> None:
        """Something is done to the host; here it can die, right before or right after."""
        who = "activation" if self._in_activation else "daemon"
        mine = self.dies in ("host", who)
        if mine and self.dies_at is not None:
            self.dies_at -= 1
            if self.dies_at < 0:
                self.dies_at = None
                if self.dies_after:
                    self.effects.append(what)
                    do()
                raise Death
        self.effects.append(what)
        do()
        assert self.disk.current is None or self.disk.current in self.disk.trees, "current names no tree"

    # -- what it is made of

    def ports(self) -> Ports:
        driver = DriverPorts(
            host=_Host(self),
            gpus=_Gpus(self),
            trees=_Trees(self),
            mounts=_Mounts(self),
            linker=_Linker(self),
            modules=_Modules(self),
            nodes=_Nodes(self),
            memories=_Memories(self, "memory"),
            trials=_Memories(self, "trials"),
        )
        return Ports(
            driver=driver,
            units=_Units(self),
            updates=_Updates(self),
            images=_Images(self),
            vouchers=_Vouchers(self) if self.signatures is not Signatures.OFF else None,
            lists=_Lists(self),
            next=_Next(self),
            shutdowns=_Shutdowns(self),
            kernels=_Kernels(self),
            surroundings=_Surroundings(self),
            activations=_Memories(self, "activation"),
        )

    def reconciler(self, *, stopping: Callable[[], bool] = lambda: False) -> Reconciler:
        """A daemon that has just been started."""
        ports = self.ports()

        def tell(_progress: Progress) -> None: ...

        return Reconciler(
            lambda _settings: ports,
            self.log,
            now=lambda: self.clock,
            seconds=lambda: self.clock,
            tell=tell,
            publish=self.published.append,
            stopping=stopping,
        )

    def wanted(self) -> Build:
        return Build(self.settings.driver.version, self.release, self.kernel, self.settings.driver.product)

    def push(self, build: Build | None = None, **changes: Any) -> Image:
        """An image comes into the registry, under its tag."""
        build = build or self.wanted()
        image = image_of(build, **changes)
        self.registry[reference_of(build)] = image
        return image

    def put_tree(
        self,
        build: Build,
        *,
        module_kernel: str = "",
        faulty: str = "",
        identity: str = "",
        refused: bool = False,
    ) -> str:
        path = str(naming.tree_path(PurePosixPath(ROOT), build))
        tree = Tree(path, build, Flavour.OPEN, ("libcuda.so.1",), firmware=True, identity=identity)
        self.disk.trees[path] = replace(tree, installed=self.clock, pci=self.pci)
        self.disk.refused[path] = refused
        self.disk.module_kernels[path] = module_kernel or build.kernel
        self.disk.faulty[path] = faulty
        return path

    # -- systemd

    def unit(self, name: str) -> UnitState:
        return self.volatile.units.setdefault(name, _unit(name))

    def set_unit(self, name: str, active: str, result: str = "success") -> None:
        self.ticks += 1
        before = self.unit(name)
        now = replace(before, active=active, result=result)
        if active == "active":
            now = replace(now, active_enter=self.ticks, active_since=self.ticks)
        elif before.active != active:
            now = replace(now, inactive_enter=self.ticks)
        self.volatile.units[name] = now
        if name == KUBELET and active == "active":
            self._witness()

    def _witness(self) -> None:
        """A gated unit starts: what must hold by then."""
        self.starts.append(KUBELET)
        if KUBELET not in self.disk.gates or not self.settings.units.hold or not self.gpus:
            return
        loaded = self.volatile.loaded.get("nvidia")
        assert loaded is not None, "the kubelet starts before the module is loaded"
        assert self.volatile.nodes == set(NODES), "the kubelet starts before the nodes are there"
        assert self.disk.current is not None
        assert self.disk.trees[self.disk.current].build.driver == loaded, "module and libraries differ"
        assert self.disk.current in self.disk.cache, "the linker does not know the libraries"

    def activate(self) -> Failure | None:
        """What ExecStart= of nvidia.service does, as app.activate does it."""
        ports = self.ports().driver
        self._in_activation = True
        try:
            facts = look_at_driver(ports, self.settings)
            plan = activation.activate(facts, self.settings)
            engine = DriverEngine(ports, self.log, seconds=lambda: self.clock)
            report = bring_up(
                plan, facts, self.settings, ports=ports, engine=engine, log=self.log, now=self.clock
            )
            waits = activation.is_pending(plan, facts, self.settings)
            problem = report.problem or (None if waits else plan.problem)
            told = (Attempt("activate", 1, self.clock, problem),) if problem else ()
            self.volatile.activation = Memory(told)
        except Death:
            if self.dies != "activation":
                raise
            # systemd notices that its process was killed.
            return Transient(Code.UNIT_FAILED, f"{DRIVER_UNIT} was killed")
        finally:
            self._in_activation = False
        freeing = problem is None or problem.code in (Code.NO_GPU, Code.OTHER_OWNER)
        if freeing or not self.settings.units.hold:
            return None
        return Transient(Code.UNIT_FAILED, f"the start of {DRIVER_UNIT} ended with 'failed'")

    def start_driver_unit(self) -> Failure | None:
        """A start job of nvidia.service, with what it pulls in and lets go."""
        if self.unit(DRIVER_UNIT).active == "active":
            return None
        failure = self.activate()
        self.set_unit(DRIVER_UNIT, "failed" if failure else "active", "exit-code" if failure else "success")
        if failure is None and self.gpus and self.volatile.loaded:
            for name in BESIDE:
                self.set_unit(name, "active")
        return failure

    def boot(self, release: str = "", kernel: str = "") -> None:
        """The host comes up, perhaps with another OS; systemd starts what is enabled, the daemon not yet."""
        self.release, self.kernel = release or self.release, kernel or self.kernel
        self.volatile = Boot()
        self.boots, self.powered_on = self.boots + 1, self.clock
        failure = self.start_driver_unit()
        if failure is None or KUBELET not in self.disk.gates:
            self.set_unit(KUBELET, "active")

    # -- what it looks like in the end

    def state(self) -> dict[str, object]:
        """Everything that must come out the same whatever happened on the way."""
        volatile, disk = self.volatile, self.disk
        return {
            "trees": sorted(disk.trees),
            "current": disk.current,
            "linker": disk.linker,
            "known": disk.current in disk.cache,
            "gates": disk.gates,
            # Where a tree came from is lost with a kill; then it is asked for once more.
            "memory": replace(disk.memory, origins=()),
            "loaded": dict(volatile.loaded),
            "overlay": volatile.overlay,
            "firmware": volatile.firmware,
            "nodes": set(volatile.nodes),
            "units": {name: unit.active for name, unit in sorted(volatile.units.items())},
        }


# -- the ports --------------------------------------------------------------------------------------


class _Part:
    def __init__(self, world: World) -> None:
        self.world = world


class _Host(_Part):
    def release(self) -> Release:
        return Release("flatcar", self.world.release)

    def kernel(self) -> str:
        return self.world.kernel

    def boot_id(self) -> str:
        return f"boot-{self.world.boots}"

    def machine(self) -> str:
        return "x86_64"

    def lockdown(self) -> str:
        return self.world.lockdown

    def module_rules(self) -> ModuleRules:
        return self.world.rules

    def secure_boot(self) -> bool | None:
        return None

    def extensions(self) -> tuple[str, ...]:
        return ()

    def uptime(self) -> float:
        return self.world.clock - self.world.powered_on


class _Gpus(_Part):
    def list(self) -> tuple[Gpu, ...]:
        bound = "nvidia" if "nvidia" in self.world.volatile.loaded else None
        return (Gpu("0000:01:00.0", self.world.device, bound),) if self.world.gpus else ()


class _Trees(_Part):
    root = ROOT

    def list(self, kind: Kind = Kind.DRIVER) -> tuple[Tree, ...]:
        return tuple(self.world.disk.trees[path] for path in sorted(self.world.disk.trees))

    def current(self, kind: Kind = Kind.DRIVER) -> str | None:
        return self.world.disk.current

    def select(self, tree: str) -> None:
        assert tree in self.world.disk.trees
        self.world.effect(f"select {tree}", lambda: setattr(self.world.disk, "current", tree))

    def manifest(self, tree: str) -> Manifest:
        return manifest_of(self.world.disk.trees[tree].build)

    def verify(self, tree: str, build: Build) -> None:
        found = self.world.disk.trees.get(tree)
        if found is None:
            raise Permanent(Code.TREE_MISSING, f"'{tree}' is not a tree")
        manifests.check_build(f"the manifest of '{tree}'", found.build, build)
        if self.world.disk.faulty[tree]:
            raise Permanent(Code.TREE_INVALID, f"'{tree}': {self.world.disk.faulty[tree]}")

    def verify_file(self, tree: str, path: str) -> None:
        if self.world.disk.faulty[tree]:
            raise Permanent(Code.TREE_INVALID, f"'{tree}/{path}': {self.world.disk.faulty[tree]}")

    def install(self, source: Path, tell: Callable[[Progress], None]) -> Tree:
        raise NotImplementedError

    def receive(self, coming: Coming, fetch: object, tell: Callable[[Progress], None]) -> Tree:
        raise NotImplementedError

    def remove(self, tree: str) -> None:
        if tree == self.world.disk.current:
            raise Permanent(Code.INTERNAL, f"'{tree}' is current")
        if tree not in self.world.disk.trees:
            raise Permanent(Code.TREE_MISSING, f"'{tree}' is not a tree")
        self.world.effect(f"remove {tree}", lambda: self.world.disk.trees.pop(tree))


class _Images(_Part):
    def engine(self) -> Engine:
        return Engine(EngineKind.DOCKER, "its socket '/run/docker.sock' is there")

    def _ask(self) -> None:
        if self.world.refusal is not None:
            raise self.world.refusal

    def resolve(self, reference: str) -> str:
        self._ask()
        if "@" in reference:
            return reference.partition("@")[2]
        if reference not in self.world.registry:
            raise Transient(Code.IMAGE_MISSING, f"'{reference}' is not in the registry")
        return self.world.registry[reference].digest

    def pull(
        self, reference: str, digest: str, tell: Callable[[Progress], None], *, gentle: bool = False
    ) -> None:
        self._ask()
        self.world.gently.append(gentle)
        self.world.tell = tell
        self.world.meanwhile()
        tell(Progress("pull-image", "1 of 1 layers", 1, 1))
        image = next((i for i in self.world.registry.values() if i.digest == digest), None)
        if image is None:
            raise Transient(Code.IMAGE_MISSING, f"'{reference}' has moved")
        self.world.effect(f"pull {digest}", lambda: self.world.disk.pulled.update({digest: image}))

    def labels(self, reference: str, digest: str) -> dict[str, str]:
        return self._pulled(reference, digest).labels

    def discard(self, reference: str, digest: str) -> None:
        self.world.effect(f"discard {digest}", lambda: self.world.disk.pulled.pop(digest, None))

    def install(
        self,
        reference: str,
        digest: str,
        trees: object,
        tell: Callable[[Progress], None],
        *,
        gentle: bool = False,
    ) -> None:
        image = self._pulled(reference, digest)
        if image.exit_problem:
            raise image.exit_problem

        def lay_down() -> None:
            self.world.put_tree(
                image.build,
                module_kernel=image.module_kernel,
                faulty=image.faulty,
                identity=digest,
                refused=image.refused,
            )

        self.world.effect(f"install {digest}", lay_down)

    def _pulled(self, reference: str, digest: str) -> Image:
        if digest not in self.world.disk.pulled:
            raise Transient(Code.IMAGE_FAILED, f"'{reference}' is no longer in the engine")
        return self.world.disk.pulled[digest]


class _Vouchers(_Part):
    @property
    def required(self) -> bool:
        return self.world.signatures is Signatures.REQUIRE

    def seals(self, reference: str, digest: str) -> Iterator[Seal]:
        if self.world.unsealed is not None:
            raise self.world.unsealed
        yield from self.world.seals.get(digest, ())

    def signer(self, signed: bytes, signature: bytes) -> str:
        return "images.pem" if signature == b"good" else ""


class _Lists(_Part):
    def unbuildable(self, reference: str) -> Entry | None:
        listed = self.world.listed
        if isinstance(listed, Failure):
            raise listed
        return listed.unbuildable(reference.rpartition(":")[2], "x86_64") if listed else None


class _Mounts(_Part):
    def facts(self) -> MountFacts:
        lower = self.world.volatile.overlay
        return MountFacts(
            (lower,) if lower else None, usr_is_overlay=False, lib64_is_lib=not self.world.split
        )

    def overlay(self, lower: str, target: str) -> None:
        self.world.effect(
            f"overlay {lower} {target}", lambda: setattr(self.world.volatile, "overlay", lower)
        )

    def unmount(self, target: str) -> None:
        self.world.effect(f"unmount {target}", lambda: setattr(self.world.volatile, "overlay", None))


class _Linker(_Part):
    def facts(self, directory: str, libraries: tuple[str, ...]) -> LinkerFacts:
        disk = self.world.disk
        return LinkerFacts(disk.linker, () if disk.current in disk.cache else libraries, self.world.shadow)

    def configure(self, text: str | None) -> None:
        self.world.effect("configure linker", lambda: setattr(self.world.disk, "linker", text))

    def refresh(self) -> None:
        disk = self.world.disk
        found = {disk.current} if disk.linker and disk.current else set()
        self.world.effect("ldconfig", lambda: setattr(disk, "cache", found))


class _Modules(_Part):
    def loaded(self) -> tuple[LoadedModule, ...]:
        loaded = self.world.volatile.loaded
        others = tuple(sorted(name for name in loaded if name != "nvidia"))
        return tuple(
            LoadedModule(
                name,
                loaded[name],
                (len(others) if name == "nvidia" else 0) + (name in self.world.volatile.held),
                others if name == "nvidia" else (),
            )
            for name in sorted(loaded)
        )

    def present(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return ()

    def unavailable(self, names: tuple[str, ...], kernel: str) -> tuple[str, ...]:
        return self.world.absent or tuple(name for name in names if name in self.world.needy.values())

    def read(self, tree: str, kernel: str) -> tuple[ModuleFile, ...]:
        build = self.world.disk.trees[tree].build
        if tree in self.world.disk.unread:
            raise self.world.disk.unread[tree]
        if self.world.unreadable and build.os_version != self.world.release:
            raise self.world.unreadable
        if build.kernel != kernel:
            return ()
        vermagic = f"{self.world.disk.module_kernels[tree]} SMP"
        needed = (self.world.needy[tree],) if tree in self.world.needy else ()
        return tuple(
            ModuleFile(
                name,
                f"{tree}/lib/modules/{kernel}/{name.replace('_', '-')}.ko",
                build.driver,
                vermagic,
                (() if name == "nvidia" else ("nvidia",)) + needed,
                signed=tree not in self.world.disk.unsigned,
            )
            for name in NAMES
        )

    def load(self, module: ModuleFile, parameters: tuple[str, ...]) -> None:
        assert module.kernel == self.world.kernel, "a module of another kernel goes to insmod"
        assert not set(module.depends) - self.world.volatile.loaded.keys()
        if self.world.disk.refused[module.path.partition("/lib/modules")[0]]:
            raise Transient(Code.MODULE_REFUSED, f"'{module.path}' refused")
        what = " ".join(("insmod", module.name, *parameters))
        self.world.effect(what, lambda: self.world.volatile.loaded.setdefault(module.name, module.version))

    def load_from_host(self, names: tuple[str, ...]) -> tuple[str, ...]:
        self.world.effect(f"modprobe {' '.join(names)}", lambda: None)
        return tuple(name for name in names if name not in self.world.host_modules)

    def unload(self, name: str) -> None:
        if name in self.world.volatile.held:
            raise Transient(Code.MODULE_IN_USE, f"module '{name}' is in use")
        self.world.effect(f"rmmod {name}", lambda: self.world.volatile.loaded.pop(name, None))

    def firmware_path(self) -> str:
        return self.world.volatile.firmware

    def set_firmware_path(self, path: str) -> None:
        self.world.effect(f"firmware {path}", lambda: setattr(self.world.volatile, "firmware", path))

    def driver_version(self) -> str | None:
        return self.world.volatile.loaded.get("nvidia")

    def holders(self) -> tuple[Holder, ...]:
        return (Holder(7, "train", "job.service"),) if self.world.volatile.held else ()


class _Kernels(_Part):
    def imports(self, paths: tuple[str, ...]) -> tuple[Imports, ...]:
        return tuple(
            Imports(name, path, self.world.imports_of.get(name, self.world.imports))
            for path in paths
            if (name := path.rpartition("/")[2]) and self.world.imports
        )

    def symbols(self, kernel: str, wanted: frozenset[str]) -> Known:
        return self.world.known

    def forbidden(self, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        return ()


class _Nodes(_Part):
    def missing(self) -> tuple[str, ...]:
        if "nvidia" not in self.world.volatile.loaded:
            return ()
        return tuple(sorted(set(NODES) - self.world.volatile.nodes))

    def make(self) -> None:
        self.world.effect("make nodes", lambda: self.world.volatile.nodes.update(NODES))

    def remove(self) -> None:
        self.world.effect("remove nodes", lambda: self.world.volatile.nodes.clear())


class _Units(_Part):
    def states(self, names: tuple[str, ...]) -> tuple[UnitState, ...]:
        return tuple(self.world.unit(name) for name in names)

    def start(self, name: str, *, wait: bool, tell: Callable[[Progress], None]) -> None:
        world = self.world
        failures: list[Failure] = []

        def do() -> None:
            failure = world.start_driver_unit() if name == DRIVER_UNIT else None
            if name in world.unstartable:
                failure = Transient(Code.UNIT_FAILED, f"the start of {name} ended with 'dependency'")
            if failure:
                failures.append(failure)
            elif name != DRIVER_UNIT:
                world.set_unit(name, "active")

        world.effect(f"start {name}", do)
        if failures:
            raise failures[0]

    def stop(self, name: str, *, tell: Callable[[Progress], None]) -> None:
        self.world.clock += self.world.slow
        tell(Progress("stop-unit", f"{name} is stopping"))
        self.world.effect(f"stop {name}", lambda: self.world.set_unit(name, "inactive"))

    def reload(self, name: str, *, tell: Callable[[Progress], None]) -> None:
        assert name in (DRIVER_UNIT, CDI_UNIT)
        failures: list[Failure] = []

        def do() -> None:
            if name in self.world.unstartable:
                failures.append(Transient(Code.UNIT_FAILED, f"the reload of {name} failed"))
            elif name == CDI_UNIT:
                self.world.around = self.world.described
            elif failure := self.world.activate():
                failures.append(failure)

        self.world.effect(f"reload {name}", do)
        if failures:
            raise failures[0]

    def gates(self) -> tuple[str, ...]:
        return self.world.disk.gates

    def write_gates(self, names: tuple[str, ...]) -> None:
        if self.world.gateless:
            raise self.world.gateless
        self.world.effect(f"gates {' '.join(names)}", lambda: setattr(self.world.disk, "gates", names))


class _Updates(_Part):
    def status(self) -> UpdateStatus | None:
        return self.world.volatile.update


class _Next(_Part):
    def reboot_required(self) -> bool:
        return self.world.told_required and self.world.volatile.slot is not None

    def slot(self) -> StagedSystem | None:
        if self.world.unreadable:
            raise self.world.unreadable
        return self.world.volatile.slot

    def announced(self) -> StagedSystem | None:
        if self.world.unannounced:
            raise self.world.unannounced
        return self.world.disk.announced


class _Shutdowns(_Part):
    def facts(self) -> RebootFacts | None:
        now = self.world.volatile
        if self.world.deaf:
            raise self.world.deaf
        return RebootFacts(now.lock, now.limit, now.asked, others=now.others, fixed=now.fixed)

    def raise_limit(self, seconds: float) -> None:
        self.world.effect(f"limit {seconds:g}", lambda: setattr(self.world.volatile, "limit", seconds))

    def hold(self, why: str) -> None:
        self.world.effect("hold", lambda: setattr(self.world.volatile, "lock", True))

    def release(self) -> None:
        self.world.effect("release", lambda: setattr(self.world.volatile, "lock", False))

    def reboot(self) -> None:
        self.world.effect("reboot", lambda: setattr(self.world.volatile, "rebooted", True))


class _Surroundings(_Part):
    def look(self, tree: Tree | None) -> Surroundings:
        return self.world.around


class _Memories(_Part):
    """One of the files that remember; activation's own ones are no effects of the daemon."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world)
        self.name = name

    def _place(self) -> Disk | Boot:
        return self.world.volatile if self.name == "activation" else self.world.disk

    def read(self) -> Memory:
        found: Memory = getattr(self._place(), self.name)
        return found

    def write(self, memory: Memory) -> None:
        assert self.name != "activation", "only activation writes there"
        if self.name == "trials":
            self.world.disk.trials = memory
            return
        if self.world.forgetful:
            raise self.world.forgetful
        self.world.effect("remember", lambda: setattr(self.world.disk, "memory", memory))


def failed_activation(world: World, failure: Failure) -> None:
    """As if the last activation of this boot had failed."""
    world.volatile.activation = Memory((Attempt("activate", 1, world.clock, problem_of(failure)),))


__all__ = ["DRIVER", "KERNEL", "OS", "Death", "Image", "Quiet", "World"]
