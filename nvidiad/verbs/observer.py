# SPDX-License-Identifier: Apache-2.0
"""The observer: one look at the host, from ports to facts; nothing is remembered between two looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Failure
from nvidiad.nouns.facts import CudaFacts, DriverFacts, HostFacts, LinkerFacts
from nvidiad.nouns.model import Kind, ModuleFile, problem_of
from nvidiad.nouns.upcoming import NextFacts
from nvidiad.nouns.value import replace
from nvidiad.thought import activation, choice, companions, cuda, preflight, staging

if TYPE_CHECKING:
    from nvidiad.nouns.model import Memory, Problem
    from nvidiad.thought.settings import Settings
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
        trials=ports.trials.read().attempts,
        good=known_good(ports.memories.read()),
        machine=ports.host.machine(),
        rules=ports.host.module_rules(),
        rivals=ports.modules.present(preflight.RIVALS),
    )
    if facts.rules.signed_only or facts.lockdown != "none":
        # Only then it has something to explain: firmware is slow to answer.
        facts = replace(facts, rules=replace(facts.rules, secure_boot=ports.host.secure_boot()))
    tree = choice.target(facts, settings)
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
    absent = ports.modules.unavailable(preflight.outside(modules, settings), kernel)
    return replace(facts, wanted_modules=modules, tree_problem=problem, absent=absent)


def last_activation(memories: Memories) -> Problem | None:
    """Why the last activation of this boot failed; None when it did not."""
    return next((attempt.problem for attempt in memories.read().attempts), None)


def known_good(memory: Memory) -> tuple[str, ...]:
    """The trees that were seen ready, the latest first."""
    return tuple(path for path in (memory.last_good, memory.former_good) if path)


def observe(ports: Ports, settings: Settings, memory: Memory | None = None) -> HostFacts:
    """Everything the daemon decides on; `memory` is what it could not write down, if so."""
    driver = look_at_driver(ports.driver, settings)
    core, tree = choice.core(driver), choice.find_tree(driver, settings)
    version = tree.build.driver if tree else settings.driver.version
    in_the_way = core is not None and core.version != version
    facts = HostFacts(
        driver=driver,
        units=ports.units.states(companions.watched(settings, driver.gpus)),
        gates=ports.units.gates(),
        activation=last_activation(ports.activations),
        # A scan of all processes: only when someone must be told who is in the way.
        holders=ports.driver.modules.holders() if in_the_way else (),
        cuda=look_at_cuda(ports.driver) if cuda.wanted(settings) else CudaFacts(),
        reboot=ports.shutdowns.facts(),
        engine=ports.images.engine(),
        uptime=ports.driver.host.uptime(),
        surroundings=ports.surroundings.look(choice.in_force(driver)),
    )
    remembered = ports.driver.memories.read() if memory is None else memory
    return replace(facts, next=look_ahead(ports, settings, facts, remembered))


def look_ahead(ports: Ports, settings: Settings, facts: HostFacts, memory: Memory) -> NextFacts:
    """What is known of the OS that comes next."""
    update, required = ports.updates.status(), ports.next.reboot_required()
    known = NextFacts(update, required)
    try:
        # Before that the other slot is half written.
        if required or (update and update.operation == staging.NEED_REBOOT):
            known = replace(known, slot=ports.next.slot())
        known = replace(known, announced=ports.next.announced())
    except Failure as failure:
        known = replace(known, problem=problem_of(failure))
    facts = replace(facts, next=known)
    found = staging.next_system(facts, memory)
    if found is None or not found.kernel:
        return known
    trees = (staging.find_tree(facts, build) for build in staging.builds(facts, settings, found))
    modules: list[ModuleFile] = []
    unread: list[tuple[str, Problem]] = []
    for tree in trees:
        try:
            modules += ports.driver.modules.read(tree.path, tree.build.kernel) if tree else ()
        except Failure as failure:
            unread += [(tree.path, problem_of(failure))] if tree else []
    return replace(known, modules=tuple(modules), unread=tuple(unread))


def look_at_cuda(ports: DriverPorts) -> CudaFacts:
    """The CUDA trees on disk."""
    return CudaFacts(ports.trees.list(Kind.CUDA), ports.trees.current(Kind.CUDA))
