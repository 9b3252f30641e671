# SPDX-License-Identifier: Apache-2.0
"""The verbs of the units beside the driver's (`cdi`, `health`, `fabric`) with their adapters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.configuration import settings_in_force
from nvidiad.nouns.errors import Code, Failure, Permanent
from nvidiad.nouns.model import problem_of
from nvidiad.nouns.surroundings import Word
from nvidiad.nouns.value import replace
from nvidiad.thought import fabric as connecting
from nvidiad.thought.choice import loaded_tree
from nvidiad.verbs import surroundings as verbs
from nvidiad.world import files, process
from nvidiad.world.modules import Modules
from nvidiad.world.surroundings import CDI, FABRIC, HEALTH, SPECIFICATION, LinuxSurroundings
from nvidiad.world.trees import Trees

if TYPE_CHECKING:
    from nvidiad.nouns.model import Problem, Tree
    from nvidiad.thought.settings import Settings
    from nvidiad.verbs.ports import Log

MANAGER = "nv-fabricmanager"
PROGRAMS = ("usr/bin", "usr/sbin", "usr/local/bin", "opt/bin")
_TOPOLOGIES = "share/nvidia/nvswitch"
_OWN_CONFIGURATION = "etc/nvidiad/fabricmanager.cfg"
# It prints a line and ends.
_VERSION_SECONDS = 10.0
GIVEN_UP = 78
"""Of `fabric` (EX_CONFIG of sysexits.h): to try again would come to the same."""


def _in_force(settings: Settings, root: Path) -> tuple[Tree | None, Trees]:
    """The tree of the driver that is loaded and exposed, and all of them."""
    trees = Trees(root / settings.install.root.relative_to("/"))
    version = {module.name: module.version for module in Modules(root).loaded()}.get("nvidia")
    return loaded_tree(trees.list(), trees.current(), version), trees


def cdi(configuration: Path, root: Path, log: Log) -> int:
    """Describe the GPUs for containers; the exit status of nvidia-cdi.service."""
    from nvidiad.world.cdi import Specification

    here = LinuxSurroundings(root)
    before = here.word(CDI)
    if here.specification() != before.digest:
        before = Word()
    try:
        settings = settings_in_force(configuration, root, log)
        tree, trees = _in_force(settings, root)
        inventory = here.inventory(tree) if tree and settings.cdi.enabled else None
        entries = trees.manifest(tree.path).entries if tree and inventory else ()
        place = Specification(SPECIFICATION, root)
        rival = here.rival() if inventory else ""
        word = verbs.describe(inventory, entries, before, rival=rival, place=place, log=log)
    except Failure as failure:
        word = replace(before, problem=problem_of(failure))
    here.leave(CDI, word)
    # With one of ours on disk it is none that keeps anybody from a GPU.
    problem = word.problem if word and not word.digest else None
    return _told(problem, log)


def health(configuration: Path, root: Path, log: Log) -> int:
    """Ask NVML after the GPUs and leave word for the daemon; 1 where one of them is not in order."""
    from nvidiad.world.gpu import PciGpus
    from nvidiad.world.smi import NvidiaSmi

    here = LinuxSurroundings(root)
    settings = settings_in_force(configuration, root, log)
    tree, _ = _in_force(settings, root)
    word = verbs.ask(here.inventory(tree) if tree else None, PciGpus(root).list(), smi=NvidiaSmi())
    try:
        here.leave(HEALTH, word)
        if tree and here.managed_switches():
            here.leave(FABRIC, None if here.managed() else Word(problem=problem_of(unsupported())))
    except Failure as failure:
        log.warning("the daemon is not told, proceeding anyway", error=failure.sentence)
    if word is None:
        log.info("there is no driver in force that could be asked")
        return 0
    for gpu in word.gpus:
        if gpu.problem is None:
            log.info(f"the GPU at {gpu.address} is in order: {gpu.model} {gpu.uuid}".rstrip())
    return max((_told(problem, log) for problem in word.problems), default=0)


def unsupported() -> Failure:
    """NVSwitches of the fifth NVLink, which need a program that nvidiad does not start."""
    return Permanent(
        Code.FABRIC_UNSUPPORTED,
        "the host's NVSwitches are reached over InfiniBand (NVLink 5), and no fabric manager runs",
        "Install NVIDIA's nvlsm and nvidia-fabricmanager of the driver's version; nvidiad starts neither.",
    )


def fabric(configuration: Path, root: Path, log: Log) -> int:
    """Become the fabric manager of the driver in force, or say why not."""
    here = LinuxSurroundings(root)
    try:
        settings = settings_in_force(configuration, root, log)
        tree, _ = _in_force(settings, root)
        if tree is None:
            raise Permanent(Code.TREE_MISSING, "no driver is in force", "systemctl start nvidia.service")
        program = next(iter(managers(tree, root)), "")
        # By asking it, wherever it lies: an image may have been made with another one.
        version = told_version(program) if program else ""
        verbs.refuse_manager(program, version, tree.build.driver)
        topologies = Path(tree.path if program.startswith(f"{tree.path}/") else root / "usr", _TOPOLOGIES)
        place = _configured(topologies, root)
        here.leave(FABRIC, None)
    except Failure as failure:
        problem = problem_of(failure)
        here.leave(FABRIC, Word(problem=problem))
        _told(problem, log)
        return 1 if problem.retry else GIVEN_UP
    log.info("starting the fabric manager", program=program, version=version or tree.build.driver)
    return process.become([program, "-c", str(place)])


def managers(tree: Tree | None, root: Path) -> tuple[str, ...]:
    """The fabric managers that are there, the tree's own first."""
    places = [Path(tree.path) / "bin" / MANAGER] if tree else []
    places += [root / place / MANAGER for place in PROGRAMS]
    return tuple(str(path) for path in places if os.access(path, os.X_OK))


def told_version(program: str) -> str:
    """The driver version that a program says it is of; empty where it says none."""
    from nvidiad.thought import examination

    try:
        finished = process.run([program, "--version"], timeout=_VERSION_SECONDS)
    except Failure:
        return ""
    return examination.told_version(f"{finished.out} {finished.err}")


def _configured(topologies: Path, root: Path) -> Path:
    """The configuration that it is started with: the host's own, or the tree's, told where the tree is."""
    text = files.text(root / _OWN_CONFIGURATION) or files.text(topologies / "fabricmanager.cfg")
    place = root / connecting.RUNTIME.lstrip("/") / "fabricmanager.cfg"
    with files.explained(f"writing '{place}'", Code.UNIT_FAILED):
        files.make_directory(place.parent)
        files.atomic_write(place, connecting.configuration(text, str(topologies)))
    return place


def _told(problem: Problem | None, log: Log) -> int:
    if problem is None:
        return 0
    log.error(problem.sentence, code=str(problem.code), remedy=problem.remedy)
    return 1
