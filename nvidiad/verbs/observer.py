# SPDX-License-Identifier: Apache-2.0
"""The observer: one look at the host, from ports to facts; nothing is remembered between two looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Failure
from nvidiad.nouns.model import CudaFacts, DriverFacts, HostFacts, Kind, LinkerFacts, ModuleFile, problem_of
from nvidiad.nouns.value import replace
from nvidiad.thought import activation, cuda, planner

if TYPE_CHECKING:
    from nvidiad.nouns.model import Problem
    from nvidiad.thought.config import Settings
    from nvidiad.verbs.ports import DriverPorts, Memories, Ports


def look_at_driver(ports: DriverPorts, settings: Settings) -> DriverFacts:
    """What activation depends on; needs no bus, no engine and no network."""
    release, kernel = ports.host.release(), ports.host.kernel()
    mounts = ports.mounts.facts()
    trees = ports.trees.list()
    exposure, _ = activation.choose_exposure(settings.install.exposure, mounts)
    facts = DriverFacts(
        release=release,
        kernel=kernel,
        boot_id=ports.host.boot_id(),
        lockdown=ports.host.lockdown(),
        extensions=ports.host.extensions(),
        gpus=ports.gpus.list(),
        trees=trees,
        current=ports.trees.current(),
        wanted_modules=(),
        loaded=ports.modules.loaded(),
        mounts=mounts,
        linker=LinkerFacts(None, ()),
        firmware_path=ports.modules.firmware_path(),
        nodes_missing=ports.nodes.missing(),
    )
    tree = activation.find_tree(facts, settings)
    directory = activation.linker_directory(exposure, settings)
    facts = replace(facts, linker=ports.linker.facts(directory, tree.libraries if tree else ()))
    if tree is None:
        return facts
    # The rest can only be looked at where the wanted tree is.
    problem: Problem | None = None
    modules: tuple[ModuleFile, ...] = ()
    try:
        modules = ports.modules.read(tree.path, kernel)
    except Failure as failure:
        problem = problem_of(failure)
    return replace(facts, wanted_modules=modules, tree_problem=problem)


def last_activation(memories: Memories) -> Problem | None:
    """Why the last activation of this boot failed; None when it did not."""
    return next((attempt.problem for attempt in memories.read().attempts), None)


def observe(ports: Ports, settings: Settings) -> HostFacts:
    """Everything the daemon decides on."""
    driver = look_at_driver(ports.driver, settings)
    in_the_way = any(m.name == "nvidia" and m.version != settings.driver.version for m in driver.loaded)
    return HostFacts(
        driver=driver,
        units=ports.units.states(planner.watched_units(settings)),
        gates=ports.units.gates(),
        update=ports.updates.status(),
        activation=last_activation(ports.activations),
        # A scan of all processes: only when someone must be told who is in the way.
        holders=ports.driver.modules.holders() if in_the_way else (),
        cuda=look_at_cuda(ports.driver) if cuda.wanted(settings) else CudaFacts(),
    )


def look_at_cuda(ports: DriverPorts) -> CudaFacts:
    """The CUDA trees on disk."""
    return CudaFacts(ports.trees.list(Kind.CUDA), ports.trees.current(Kind.CUDA))
