# SPDX-License-Identifier: Apache-2.0
"""The wiring: the one place where adapters are chosen."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.configuration import STATE, last_good_settings, read_and_keep, read_settings, settings_in_force
from nvidiad.nouns.errors import Code, Failure, Permanent
from nvidiad.nouns.model import Attempt, Memory, Problem, Signatures, problem_of
from nvidiad.nouns.value import replace
from nvidiad.verbs.ports import DriverPorts, Ports
from nvidiad.world.gpu import PciGpus
from nvidiad.world.host import LinuxHost
from nvidiad.world.linker import Linker
from nvidiad.world.memory import MemoryFile
from nvidiad.world.modules import Modules
from nvidiad.world.mounts import Mounts
from nvidiad.world.nodes import Nodes
from nvidiad.world.trees import Trees

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nvidiad.nouns.compatibility import Entry
    from nvidiad.nouns.model import Progress
    from nvidiad.nouns.plan import Status
    from nvidiad.rim.daemon import Source
    from nvidiad.thought.layouts import Kept
    from nvidiad.thought.settings import Settings
    from nvidiad.verbs.ports import Bus, Log, Vouchers
    from nvidiad.world.layouts import LocalStores
    from nvidiad.world.places import Registries

RUNTIME = Path("run/nvidiad")
# Seconds: of what is asked of a registry beside the image, which is small.
_BESIDE = 120.0


def driver_ports(settings: Settings, root: Path) -> DriverPorts:
    """The adapters that activation needs, for the host below `root`."""
    modules = Modules(root)
    return DriverPorts(
        host=LinuxHost(root),
        gpus=PciGpus(root),
        trees=Trees(root / settings.install.root.relative_to("/"), lambda: bool(modules.loaded())),
        mounts=Mounts(root),
        linker=Linker(root),
        modules=modules,
        nodes=Nodes(root),
        memories=memories(root),
        trials=MemoryFile(root / STATE / "trials.json"),
    )


def all_ports(settings: Settings, root: Path, bus: Bus | None) -> Ports:
    """All adapters; without a bus the units are unknown."""
    from nvidiad.engines import ChosenImages
    from nvidiad.world.kernels import Kernels
    from nvidiad.world.logind import Logind, NoShutdowns
    from nvidiad.world.notify import Store
    from nvidiad.world.slots import Slots
    from nvidiad.world.surroundings import LinuxSurroundings
    from nvidiad.world.units import NoUnits, SystemdUnits
    from nvidiad.world.upcoming import NextSystems
    from nvidiad.world.updates import NoUpdates, UpdateEngine

    stage = settings.stage
    return Ports(
        driver=driver_ports(settings, root),
        units=SystemdUnits(bus, configuration=root / "etc/systemd/system") if bus else NoUnits(),
        updates=UpdateEngine(bus) if bus else NoUpdates(),
        images=ChosenImages(settings, root),
        vouchers=_vouchers(settings, root),
        lists=_Lists(settings),
        next=NextSystems(root, Slots(root), stage.next_file, stage.next_command),
        shutdowns=Logind(bus, root, Store(os.environ.get("NOTIFY_SOCKET", ""))) if bus else NoShutdowns(),
        kernels=Kernels(root),
        surroundings=LinuxSurroundings(root),
        activations=activations(root),
    )


def _vouchers(
    settings: Settings, root: Path, source: Registries | LocalStores | None = None
) -> Vouchers | None:
    trust, image = settings.trust, settings.image
    if trust.signatures is Signatures.OFF:
        return None
    from nvidiad.engines import registries
    from nvidiad.world.registry import Limits
    from nvidiad.world.vouchers import Vouchers

    return Vouchers(
        trust.keys,
        root,
        required=trust.signatures is Signatures.REQUIRE,
        registries=source or registries(settings),
        limits=Limits(image.connect_timeout, image.stall_timeout, whole=_BESIDE),
        repository=trust.repository,
    )


def _from_file(ports: Ports, settings: Settings, root: Path, what: str, kept: Kept) -> Ports:
    """As for any image, but for where it and its signatures are: in a directory or a file."""
    from nvidiad.engines import ChosenImages
    from nvidiad.world.layouts import LocalStores

    source = LocalStores(what, kept)
    images = ChosenImages(settings, root, source)
    return replace(ports, images=images, vouchers=_vouchers(settings, root, source))


class _Lists:
    """Compatibility lists; what reads them is imported when an image is missing, and not before."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def unbuildable(self, reference: str) -> Entry | None:
        from nvidiad.engines import registries
        from nvidiad.world.places import CompatibilityLists
        from nvidiad.world.registry import Limits

        # Asked once per failed attempt, which has a back-off of its own.
        image = self._settings.image
        limits = Limits(image.connect_timeout, image.stall_timeout, tries=1, whole=_BESIDE)
        lists = CompatibilityLists(registries(self._settings), limits, os.uname().machine)
        return lists.unbuildable(reference)


def memories(root: Path) -> MemoryFile:
    """What survives reboots."""
    return MemoryFile(root / STATE / "memory.json")


def activations(root: Path) -> MemoryFile:
    """What the last activation of this boot says to the daemon."""
    return MemoryFile(root / RUNTIME / "activation.json")


def connect() -> Bus:
    """The system bus."""
    from nvidiad.world.bus import Connection

    return Connection()


def activate(configuration: Path, root: Path, log: Log) -> int:
    """Bring the driver on disk into force; the exit status of nvidia.service."""
    from nvidiad.thought import activation
    from nvidiad.verbs.bring_up import bring_up
    from nvidiad.verbs.engine import DriverEngine
    from nvidiad.verbs.observer import look_at_driver

    hold, freed = True, False
    try:
        settings = settings_in_force(configuration, root, log)
        hold = settings.units.hold
        ports = driver_ports(settings, root)
        facts = look_at_driver(ports, settings)
        plan = activation.activate(facts, settings)
        log.info("plan", what=plan.reason, steps=len(plan.steps))
        # Only what was found before anything was done frees: a step that failed leaves half a driver.
        freed = plan.problem is not None and plan.problem.code in activation.FREEING
        engine = DriverEngine(ports, log, seconds=time.monotonic)
        report = bring_up(plan, facts, settings, ports=ports, engine=engine, log=log, now=time.time())
        # What waits for the boot, or for its tree, is no failure: another driver is in force until then.
        waits = activation.is_pending(plan, facts, settings)
        problem = report.problem or (None if waits else plan.problem)
    except Failure as failure:
        problem = problem_of(failure)
    _leave_word(root, None if freed else problem, log)
    if problem is None or freed:
        return 0
    log.error(problem.sentence, code=str(problem.code), remedy=problem.remedy)
    if not hold:
        log.warning("when-missing is 'start': the gated units start without a driver")
        return 0
    return 1


def _leave_word(root: Path, problem: Problem | None, log: Log) -> None:
    """Tell the daemon, which may not be running, why it failed."""
    attempts = (Attempt("activate", 1, time.time(), problem),) if problem else ()
    try:
        activations(root).write(Memory(attempts))
    except Failure as failure:
        log.warning("the daemon is not told, proceeding anyway", error=failure.sentence)


def deactivate(configuration: Path, root: Path, log: Log) -> int:
    """Take the driver down, unless the whole host is going down: then nothing is worth the time."""
    from nvidiad.thought.activation import deactivate as plan_deactivation
    from nvidiad.verbs.engine import DriverEngine
    from nvidiad.verbs.observer import look_at_driver

    if _host_is_stopping(root):
        log.info("the host is going down, the driver stays loaded")
        return 0
    settings = settings_in_force(configuration, root, log)
    ports = driver_ports(settings, root)
    plan = plan_deactivation(look_at_driver(ports, settings), settings, ports.modules.holders())
    report = DriverEngine(ports, log, seconds=time.monotonic).execute(plan)
    if plan.problem:
        log.error(plan.problem.sentence, code=str(plan.problem.code), remedy=plan.problem.remedy)
    if plan.problem or report.problem:
        return 1
    if settings.kubernetes.nfd_file:
        # A daemon that runs sees to that, too; one that was stopped first, to remove nvidiad, does not.
        from nvidiad.world.features import Features

        try:
            Features(root).put(settings.kubernetes.nfd_file, None)
        except Failure as failure:
            log.warning("the node keeps its labels, proceeding anyway", error=failure.sentence)
    return 0


def _host_is_stopping(root: Path) -> bool:
    """Asked through systemctl: talking to the bus ourselves costs an import of 40 ms at every stop."""
    from nvidiad.world import process

    if root != Path("/"):
        return False
    finished = process.run(["systemctl", "is-system-running"], timeout=10)
    return finished.out.strip() == "stopping"


def run_daemon(configuration: Path, root: Path) -> int:
    """`nvidiad run`."""
    import asyncio

    from nvidiad.world import journal

    log = journal.configure(os.environ)
    try:
        status = asyncio.run(_serve(configuration, root, log))
    except Failure as failure:
        log.error(failure.sentence, code=str(failure.code), remedy=failure.remedy)
        status = 1
    sys.stderr.flush()
    # The worker may be in a pull: every step survives a kill, so nothing is waited for.
    os._exit(status)


async def _serve(configuration: Path, root: Path, log: Log) -> int:
    import random
    import socket
    from functools import partial

    from nvidiad import __version__
    from nvidiad.rim.board import Board
    from nvidiad.rim.daemon import Daemon, Surroundings
    from nvidiad.rim.server import Server
    from nvidiad.thought import render
    from nvidiad.verbs.label import Labeller
    from nvidiad.verbs.reconcile import Reconciler
    from nvidiad.world import itself
    from nvidiad.world.features import Features
    from nvidiad.world.logind import LOCK, Logind
    from nvidiad.world.notify import ServiceManager, inherited

    bus = connect()
    handed = inherited(os.environ, os.getpid())
    if LOCK in handed:
        Logind.adopt(handed[LOCK])
    cache: dict[str, tuple[Settings, Ports]] = {}

    def ports_for(settings: Settings) -> Ports:
        """The adapters, made anew when the configuration has changed."""
        known = cache.get("last")
        if known is None or known[0] != settings:
            known = cache["last"] = (settings, all_ports(settings, root, bus))
        return known[1]

    labeller = Labeller(Features(root), log)

    def labelled(publish: Callable[[Status], None], status: Status) -> None:
        """On the worker, which may wait for a disk."""
        labeller.label(cache["last"][0].kubernetes.nfd_file, status)
        publish(status)

    board = Board(version=__version__, recall=memories(root).read)
    daemon = Daemon(
        Surroundings(
            log=log,
            manager=ServiceManager(),
            publisher=board,
            read_settings=lambda: read_and_keep(configuration, root, log),
            last_good=lambda before: last_good_settings(configuration, root, before),
            make_looker=lambda publish, tell, stopping: Reconciler(
                ports_for,
                log,
                now=time.time,
                seconds=time.monotonic,
                tell=tell,
                publish=partial(labelled, publish),
                stopping=stopping,
            ),
            open_sources=lambda settings: _open_sources(settings, root),
            status_line=render.status_line,
            jitter=random.random,
            microseconds=lambda: time.monotonic_ns() // 1000,
        )
    )
    server = Server(
        board.snapshot,
        lambda reason: daemon.poke(reason, forced=True),
        log=log,
        version=__version__,
        process=itself.process,
    )
    board.listen(server.changed)
    listening = socket.socket(fileno=handed["varlink"]) if "varlink" in handed else None
    try:
        await server.start(listening or root / RUNTIME / "io.nvidiad")
    except OSError as error:
        raise Permanent(Code.INTERNAL, f"cannot serve on the socket: {error}") from error
    try:
        return await daemon.run()
    finally:
        await server.stop()


def _open_sources(settings: Settings, root: Path) -> Sequence[Source]:
    from nvidiad.thought.companions import watched
    from nvidiad.world import surroundings
    from nvidiad.world.bus import Connection
    from nvidiad.world.filewatch import FileWatch
    from nvidiad.world.gpu import Monitor
    from nvidiad.world.mountwatch import MountWatch
    from nvidiad.world.signals import BusSignals
    from nvidiad.world.units import unit_path
    from nvidiad.world.upcoming import told_by

    return (
        BusSignals(Connection(), watched(settings), unit_path),
        Monitor(),
        MountWatch(),
        FileWatch(*told_by(root, settings.stage.next_file), *surroundings.told_by(root)),
    )


def install(what: str, configuration: Path, root: Path, log: Log, tell: Callable[[Progress], None]) -> str:
    """Do by hand what the daemon does: a tree from an image or from a directory; the path of the tree."""
    from pathlib import PurePosixPath

    from nvidiad.nouns import naming
    from nvidiad.nouns.manifest import labelled
    from nvidiad.nouns.plan import Plan
    from nvidiad.nouns.steps import InstallTree
    from nvidiad.thought import layouts
    from nvidiad.thought.trust import pinned
    from nvidiad.verbs.engine import Engine

    settings = read_settings(configuration)
    if what.startswith((".", "/")):
        return driver_ports(settings, root).trees.install(Path(what), tell).path
    ports = all_ports(settings, root, None)
    local = layouts.named(what)
    if local is not None:
        ports = _from_file(ports, settings, root, what, local)
    engine = Engine(ports, log, seconds=time.monotonic, tell=tell, modules=settings.driver.modules)
    what = what if local else pinned(what, settings)
    build = labelled(ports.images.labels(what, engine.fetch(what)))
    plan = Plan(f"'{what}' is to be installed", (InstallTree(what, build),))
    report = engine.execute(plan)
    if report.problem:
        raise Permanent(report.problem.code, report.problem.sentence, report.problem.remedy)
    return str(naming.tree_path(PurePosixPath(ports.driver.trees.root), build))
