# SPDX-License-Identifier: Apache-2.0
"""The verb `check`: everything that can be wrong on a host, looked at with the daemon or without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad import app, beside, engines
from nvidiad.configuration import read_settings
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import EngineKind, Signatures
from nvidiad.nouns.value import replace
from nvidiad.thought import activation, choice, examination, preflight, refusals, surroundings
from nvidiad.thought import trust as trusting
from nvidiad.thought.choice import find_tree, wanted
from nvidiad.thought.preflight import failed, passed, skipped, warned
from nvidiad.thought.settings import Settings
from nvidiad.verbs import examine
from nvidiad.verbs.observer import look_at_driver
from nvidiad.world.kernels import Kernels
from nvidiad.world.surroundings import SPECIFICATION, LinuxSurroundings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from nvidiad.nouns.facts import DriverFacts
    from nvidiad.nouns.model import Tree
    from nvidiad.nouns.surroundings import Surroundings
    from nvidiad.thought.preflight import Check
    from nvidiad.verbs.ports import DriverPorts

_NOT_ALLOWED = os.strerror(13)


def checks(options: argparse.Namespace) -> Iterator[Check]:
    """Each in its turn; what this user cannot see is skipped."""
    told: list[Check] = []
    for each in _checks(options):
        same = next(
            (before for before in told if (before.code, before.sentence) == (each.code, each.sentence)), None
        )
        if same and each.code:
            # What keeps the driver from coming up has its own row already.
            sentence = f"it cannot come up as long as '{same.name}' is not in order"
            each = failed(each.name, each.code, sentence, f"See '{same.name}'.")
        told.append(each)
        yield each


def _checks(options: argparse.Namespace) -> Iterator[Check]:
    settings, configuration = _settings(options.config)
    yield configuration
    yield _daemon(options)
    if settings.configured:
        yield _trust(settings, options.root)
        yield _engine(settings, options)
    ports = app.driver_ports(settings, options.root)
    try:
        facts = look_at_driver(ports, settings)
    except PermissionError as error:
        yield skipped("host", f"this user cannot look at '{error.filename}'")
        return
    except Failure as failure:
        yield failed("host", failure.code, failure.sentence, failure.remedy)
        return
    facts = replace(facts, rules=replace(facts.rules, secure_boot=ports.host.secure_boot()))
    tree = find_tree(facts, settings) if settings.configured else None
    yield _gpus(facts)
    yield preflight.rivals(facts, tree)
    yield from _tree_checks(facts, settings, tree, ports, options.root)
    yield _signature(facts, settings, options.root)
    yield _fabric(facts, settings, tree, options.root)
    around = LinuxSurroundings(options.root).look(choice.in_force(facts))
    yield _described(around, settings)
    yield _nvml(facts, around, options.root)
    yield _space(facts, ports)
    if settings.configured:
        yield _driver(facts, settings)


# ---------------------------------------------------------------------------------------------------
# Who is asked


def _settings(path: Path) -> tuple[Settings, Check]:
    name = "configuration"
    try:
        settings = read_settings(path)
    except Failure as failure:
        if _NOT_ALLOWED in failure.sentence:
            return Settings(), skipped(name, failure.sentence)
        return Settings(), failed(name, failure.code, failure.sentence, failure.remedy)
    if not settings.configured:
        return settings, failed(
            name,
            Code.NOT_CONFIGURED,
            f"'{path}' does not say {' and '.join(settings.missing)}",
            "Set them, then: systemctl enable nvidiad.service && systemctl restart nvidiad.service.",
        )
    return settings, passed(name, f"driver {settings.driver.version} from '{settings.image.repository}'")


def _daemon(options: argparse.Namespace) -> Check:
    from nvidiad.rim import client

    name = "daemon"
    if str(options.root) != "/":
        return skipped(name, f"the host below '{options.root}' is looked at from outside")
    try:
        phase, _ = client.status(options.socket, colour=False)
    except Failure as failure:
        return warned(name, failure.code, failure.sentence, failure.remedy)
    return passed(name, f"nvidiad runs and says '{phase}'")


def _trust(settings: Settings, root: Path) -> Check:
    from nvidiad.world.keys import PublicKeys

    name, trust = "trust", settings.trust
    keys = PublicKeys(trust.keys, root)
    try:
        keys.read()
    except Failure as failure:
        if _NOT_ALLOWED in failure.sentence:
            return skipped(name, failure.sentence)
        return failed(name, failure.code, failure.sentence, failure.remedy)
    sources = (settings.image.repository, settings.cuda.repository)
    ours = {trusting.same_name(f"{each}:x")[:2] for each in sources if each}
    strange = next((pin for pin in trust.pins if trusting.same_name(pin)[:2] not in ours), None)
    if strange:
        return warned(
            name,
            Code.NOT_CONFIGURED,
            f"the pin of '{strange}' is for no image that this host takes",
            "Write it as 'image.repository' or 'cuda.repository' has it, or remove it from 'trust.pins'.",
        )
    if trust.signatures is Signatures.OFF:
        why = "no signatures are looked at: who may push to the registry decides what runs here"
        return skipped(name, why)
    must = "must" if trust.signatures is Signatures.REQUIRE else "need not"
    return passed(name, f"images {must} be signed by {' or '.join(keys.names)}")


def _engine(settings: Settings, options: argparse.Namespace) -> Check:
    """Who fetches images; whether the one that is there answers is told by connecting to it."""
    name, chosen = "engine", engines.engine(settings)
    if str(options.root) != "/":
        return skipped(name, f"the host below '{options.root}' is looked at from outside")
    if chosen.kind is not EngineKind.DOCKER:
        return passed(name, f"nvidiad itself fetches images: {chosen.reason}")
    why = engines.silence(settings)
    if why:
        failure = refusals.unreachable(str(settings.engine.socket), why)
        return warned(name, failure.code, failure.sentence, failure.remedy)
    return passed(name, f"Docker fetches images: {chosen.reason}")


# ---------------------------------------------------------------------------------------------------
# What is looked at


def _gpus(facts: DriverFacts) -> Check:
    if not facts.gpus:
        return passed("gpu", "this host has no NVIDIA GPU", Code.NO_GPU)
    words = [f"{gpu.device} at {gpu.address}, bound to {gpu.bound or 'nothing'}" for gpu in facts.gpus]
    return passed("gpu", "; ".join(words))


def _tree_checks(
    facts: DriverFacts, settings: Settings, tree: Tree | None, ports: DriverPorts, root: Path
) -> Iterator[Check]:
    if not settings.configured:
        yield skipped("tree", "nobody says which driver is wanted")
        return
    if tree is None:
        yield skipped("tree", f"there is no tree for '{wanted(facts, settings)}' here")
        return
    yield _files(tree, ports)
    kernels = Kernels(root)
    for check in preflight.fitness(facts, settings, tree):
        if check.name != "signature":
            yield check
        if check.name == "vermagic":
            modules = preflight.loading(facts.wanted_modules, settings.driver.modules)
            yield examine.symbols(kernels, modules, facts.kernel)
        if check.name == "dependencies":
            needed = preflight.outside(facts.wanted_modules, settings)
            yield examination.host_modules(needed, kernels.forbidden(needed))


def _files(tree: Tree, ports: DriverPorts) -> Check:
    try:
        ports.trees.verify(tree.path, tree.build)
    except Failure as failure:
        if _NOT_ALLOWED in failure.sentence:
            return skipped("tree", failure.sentence)
        return failed("tree", failure.code, failure.sentence, failure.remedy)
    return passed("tree", f"every file of '{tree.path}' is as its manifest says")


def _signature(facts: DriverFacts, settings: Settings, root: Path) -> Check:
    told = root / "sys/kernel/security/lockdown"
    if told.exists() and not os.access(told, os.R_OK):
        return skipped("signature", f"this user cannot read '{told}'")
    return preflight.signature(facts, settings)


def _fabric(facts: DriverFacts, settings: Settings, tree: Tree | None, root: Path) -> Check:
    around = LinuxSurroundings(root)
    if around.managed_switches() and not around.managed():
        missing = beside.unsupported()
        return warned(examination.FABRIC, missing.code, missing.sentence, missing.remedy)
    # The first is the one that would run. Programs of another host's disk are not started on this one.
    here = beside.managers(tree, root)[:1]
    managers = {path: beside.told_version(path) if str(root) == "/" else "" for path in here}
    return examination.fabric(facts.gpus, tree.build.driver if tree else settings.driver.version, managers)


def _described(around: Surroundings, settings: Settings) -> Check:
    name = "cdi"
    if not settings.cdi.enabled:
        return skipped(name, "'cdi.enabled' is false")
    if around.inventory is None:
        return skipped(name, "no driver is in force that could be described")
    if problem := around.cdi.problem:
        return warned(name, problem.code, problem.sentence, problem.remedy)
    if not surroundings.described(around, settings):
        remedy = "systemctl reload-or-restart nvidia-cdi.service; journalctl -u nvidia-cdi."
        return warned(
            name, Code.CDI_FAILED, f"'/{SPECIFICATION}' is not that of the driver in force", remedy
        )
    return passed(
        name, f"'/{SPECIFICATION}' describes {len(around.inventory.gpus)} GPUs of the driver in force"
    )


def _nvml(facts: DriverFacts, around: Surroundings, root: Path) -> Check:
    from nvidiad.verbs.surroundings import ask
    from nvidiad.world.smi import NvidiaSmi

    name = "nvml"
    if str(root) != "/":
        return skipped(name, f"the host below '{root}' is looked at from outside")
    word = ask(around.inventory, facts.gpus, smi=NvidiaSmi())
    if word is None:
        return skipped(name, "no driver is in force, or it has no nvidia-smi")
    if problems := word.problems:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        return failed(name, problems[0].code, problems[0].sentence + more, problems[0].remedy)
    return passed(name, "; ".join(f"{gpu.model} at {gpu.address}" for gpu in word.gpus) or "it has no GPU")


def _space(facts: DriverFacts, ports: DriverPorts) -> Check:
    root = ports.trees.root
    there = next((path for path in (root, *root.parents) if path.is_dir()), Path("/"))
    try:
        free = os.statvfs(there)
    except OSError as error:
        return skipped(examination.SPACE, f"what is free in '{there}' is not known: {error.strerror}")
    largest = max(facts.trees, key=lambda tree: tree.size, default=None)
    count = ports.trees.manifest(largest.path).count if largest else 0
    # 0 in all: a file system that makes inodes as they are needed.
    room = examination.Room(
        str(root), free.f_bavail * free.f_frsize, free.f_favail if free.f_files else None
    )
    return examination.space(room, largest.size if largest else 0, count)


def _driver(facts: DriverFacts, settings: Settings) -> Check:
    plan, name = activation.activate(facts, settings), "driver"
    if plan.problem:
        told = warned if plan.problem.code in activation.FREEING else failed
        return told(name, plan.problem.code, plan.problem.sentence, plan.problem.remedy)
    if plan.steps:
        return failed(
            name, "not-in-force", plan.reason, "systemctl start nvidia.service; journalctl -u nvidia."
        )
    return passed(name, plan.reason)
