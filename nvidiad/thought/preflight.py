# SPDX-License-Identifier: Apache-2.0
"""Preflight: whether a tree fits this host, told before anything of it is exposed or loaded."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Problem
from nvidiad.nouns.value import Value
from nvidiad.thought import choice, devices, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nvidiad.nouns.facts import DriverFacts
    from nvidiad.nouns.model import Gpu, ModuleFile, Tree
    from nvidiad.thought.settings import Settings

# Drivers that keep a GPU from ours. vfio-pci is not among them: a card given to a guest is meant to be.
RIVALS = ("nouveau", "nova", "nova_core", "nova_drm")
SAID = 3
"""How many faults of a kind a sentence names."""


class State(StrEnum):
    """What came of a check."""

    PASSED = "ok"
    WARNING = "warning"
    """Wrong, and the driver can be used all the same."""
    FAILED = "failed"
    SKIPPED = "skipped"


class Check(Value):
    """One thing that was looked at."""

    name: str
    state: State
    sentence: str
    """What was found; of a skipped one, why nothing was looked at."""
    code: str = ""
    """The stable code of what is wrong; `no-gpu`, where that is in order."""
    remedy: str = ""

    @property
    def problem(self) -> Problem | None:
        """What stands against the driver, None where nothing does."""
        if self.state is not State.FAILED:
            return None
        return Problem(Code(self.code), self.sentence, self.remedy)


def passed(name: str, sentence: str, code: str = "") -> Check:
    return Check(name, State.PASSED, sentence, code)


def failed(name: str, code: str, sentence: str, remedy: str = "") -> Check:
    return Check(name, State.FAILED, sentence, code, remedy)


def warned(name: str, code: str, sentence: str, remedy: str = "") -> Check:
    return Check(name, State.WARNING, sentence, code, remedy)


def skipped(name: str, why: str) -> Check:
    return Check(name, State.SKIPPED, why)


def refusal(checks: Iterable[Check]) -> Problem | None:
    """The first thing that stands against the driver."""
    return next((problem for check in checks if (problem := check.problem)), None)


def listed(words: Sequence[str], more: str = "more") -> str:
    """A few of them, and how many more there are."""
    rest = len(words) - SAID
    return ", ".join(words[:SAID]) + (f" and {rest} {more}" if rest > 0 else "")


# ---------------------------------------------------------------------------------------------------
# The whole list, in the order in which it is told


def fitness(facts: DriverFacts, settings: Settings, tree: Tree) -> Iterator[Check]:
    """Everything that is known of a tree on this host without reading more than activation does."""
    yield identity(tree, facts.machine, facts.release.id)
    yield _served(facts, tree)
    yield content(facts, settings, tree)
    yield vermagic(facts)
    yield versions(facts.wanted_modules, tree)
    yield dependencies(facts, settings)
    yield signature(facts, settings)


def warnings(facts: DriverFacts, tree: Tree | None) -> tuple[str, ...]:
    """What a person should know of a host whose driver can be used."""
    if tree is None or not facts.gpus:
        return ()
    checks = (rivals(facts, tree), _served(facts, tree))
    return tuple(check.sentence for check in checks if check.state is State.WARNING)


def _served(facts: DriverFacts, tree: Tree) -> Check:
    module, good = choice.core(facts), seen_ready(tree, facts.good, facts.trees)
    return served(facts.gpus, tree, loaded=module.version if module else None, good=good)


# ---------------------------------------------------------------------------------------------------
# Who has the GPU


def rivals(facts: DriverFacts, tree: Tree | None) -> Check:
    """No other driver has a GPU that this one is for."""
    name = "rivals"
    held = [gpu for gpu in _meant(facts.gpus, tree) if gpu.bound in RIVALS]
    if held:
        gpu = held[0]
        return failed(
            name,
            Code.MODULE_FOREIGN,
            f"the GPU at {gpu.address} is bound to '{gpu.bound}'",
            f"Blacklist '{gpu.bound}' (nvidiad installs a modprobe.d file that does) and reboot.",
        )
    if facts.rivals:
        return warned(
            name,
            Code.MODULE_FOREIGN,
            f"'{facts.rivals[0]}' is loaded and may take a GPU that comes",
            f"Blacklist '{facts.rivals[0]}' and reboot.",
        )
    guests = [gpu.address for gpu in facts.gpus if gpu.bound in choice.GUESTS]
    if guests:
        return passed(
            name, f"{listed(guests)} {'is' if len(guests) == 1 else 'are'} for guests, the others free"
        )
    return passed(name, "no other driver has a GPU")


# ---------------------------------------------------------------------------------------------------
# Which GPUs a driver serves


def served(gpus: Sequence[Gpu], tree: Tree, *, loaded: str | None = None, good: bool = False) -> Check:
    """The driver may be for at least one of the host's GPUs, those of guests and NVSwitches aside.

    Only what is certain of a generation of GPUs is held against a driver: a list may lack what the driver
    serves, and insmod tells. A GPU that the same driver has already is served, whatever a list says; and a
    driver that was seen ready here is tried again.
    """
    name = "served"
    ours = _ours(gpus)
    if not ours:
        return skipped(name, "there is no GPU to serve")
    reasons = {
        gpu: reason
        for gpu in ours
        if not (gpu.bound == "nvidia" and loaded == tree.build.driver)
        and (reason := devices.unserved(gpu.device, tree.build.driver, tree.flavour, tree.pci))
    }
    if not reasons:
        if not tree.pci:
            return skipped(name, "the manifest does not say which devices the driver serves")
        kinds = listed(list(dict.fromkeys(gpu.device for gpu in ours)))
        return passed(name, f"driver {tree.build.driver} ({tree.flavour}) serves {kinds}")
    hopeless = [gpu for gpu in reasons if _hopeless(tree, gpu)]
    gpu = next(iter(hopeless or reasons))
    code, why, remedy = reasons[gpu]
    sentence = f"the GPU at {gpu.address} ({gpu.device}) {why}"
    if len(hopeless) < len(ours) or good:
        return warned(name, code, sentence, remedy)
    others = len(ours) - 1
    sentence += f", like {others} more" if others else ""
    return failed(name, code, sentence, remedy)


def seen_ready(tree: Tree, good: Sequence[str], trees: Sequence[Tree]) -> bool:
    """Whether this driver, in this flavour, was ready on this host, on whichever release of the OS."""
    others = {each.path for each in trees if tree.flavour not in (None, each.flavour)}
    return any(choice.driver_of(path) == tree.build.driver and path not in others for path in good)


def _ours(gpus: Sequence[Gpu]) -> list[Gpu]:
    """Without NVSwitches and those of guests."""
    return [gpu for gpu in gpus if not gpu.switch and gpu.bound not in choice.GUESTS]


def _hopeless(tree: Tree, gpu: Gpu) -> bool:
    return devices.hopeless(gpu.device, tree.build.driver, tree.flavour, tree.pci) is not None


def _meant(gpus: Sequence[Gpu], tree: Tree | None) -> Sequence[Gpu]:
    """The GPUs that a tree is for: those on its list, or where none is all that it may serve."""
    if tree is None:
        return gpus
    possible = [gpu for gpu in _ours(gpus) if not _hopeless(tree, gpu)]
    return [gpu for gpu in possible if gpu.device in tree.pci] or possible


# ---------------------------------------------------------------------------------------------------
# What the tree is


def identity(tree: Tree, machine: str, os_id: str = "") -> Check:
    """The tree is for this machine and this OS."""
    name = "identity"
    if tree.architecture and machine and tree.architecture != machine:
        return failed(
            name,
            Code.IMAGE_MISMATCH,
            f"'{tree.path}' is for '{tree.architecture}', this host is '{machine}'",
            f"Publish an image for '{machine}' under this tag.",
        )
    if tree.os_id and os_id and tree.os_id != os_id:
        return warned(
            name,
            Code.IMAGE_MISMATCH,
            f"'{tree.path}' was made for the OS '{tree.os_id}', this host runs '{os_id}'",
            "See that the image is for this host's kernel: two OSes may call theirs alike.",
        )
    build = tree.build
    product = f", product '{build.product}'" if build.product else ""
    return passed(name, f"driver {build.driver} for '{build.os_version}', kernel '{build.kernel}'{product}")


def content(facts: DriverFacts, settings: Settings, tree: Tree) -> Check:
    """The modules that the configuration names can be read."""
    name = "modules"
    if facts.tree_problem:
        wrong = facts.tree_problem
        return failed(name, wrong.code, wrong.sentence, wrong.remedy)
    present = {module.name for module in facts.wanted_modules}
    for each in settings.driver.modules:
        if naming.module_name(each) not in present:
            return failed(
                name,
                Code.TREE_INVALID,
                f"the tree for '{tree.build}' has no module '{each}'",
                "Remove it from 'driver.modules', or publish an image that has it.",
            )
    return passed(name, f"{', '.join(settings.driver.modules)} can be read")


def vermagic(facts: DriverFacts) -> Check:
    """Every module was compiled for the kernel that runs: with MODVERSIONS a neighbour's may load."""
    name = "vermagic"
    for module in facts.wanted_modules:
        if module.kernel != facts.kernel:
            return failed(
                name,
                Code.VERMAGIC_MISMATCH,
                f"'{module.path}' has vermagic '{module.vermagic}', this host runs kernel '{facts.kernel}'",
                "Publish an image that is built for this kernel.",
            )
    if not facts.wanted_modules:
        return skipped(name, "no module could be read")
    return passed(name, f"{len(facts.wanted_modules)} modules are for kernel '{facts.kernel}'")


def versions(modules: Sequence[ModuleFile], tree: Tree) -> Check:
    """Modules, libraries and firmware are of one driver, as far as they say so."""
    name, driver = "versions", tree.build.driver
    others = [
        f"'{module.path}' is of driver {module.version}"
        for module in modules
        if module.version != driver and naming.BRANCHED.fullmatch(module.version)
    ]
    others += [f"'{tree.path}/{stray}' is of another one" for stray in tree.strays]
    if others:
        return failed(
            name,
            Code.TREE_INVALID,
            f"the tree for driver {driver} is a mixture: {listed(others)}",
            "Publish an image that is made from one driver package.",
        )
    firmware = ", firmware" if tree.firmware else ""
    return passed(name, f"modules, libraries{firmware} are of driver {driver}")


# ---------------------------------------------------------------------------------------------------
# What the kernel says to it


def loading(modules: Sequence[ModuleFile], wanted: Sequence[str]) -> tuple[ModuleFile, ...]:
    """Those of a tree's modules that are to be loaded; none where they depend on each other."""
    try:
        return parse.load_order(modules, wanted)
    except ValueError:
        return ()


def outside(modules: Sequence[ModuleFile], settings: Settings) -> tuple[str, ...]:
    """The modules of the OS that those to be loaded depend on."""
    inside = {naming.module_name(module.name) for module in modules}
    order = loading(modules, settings.driver.modules)
    needed = (naming.module_name(name) for module in order for name in module.depends)
    return tuple(sorted({name for name in needed if name not in inside}))


def dependencies(facts: DriverFacts, settings: Settings) -> Check:
    """What the modules depend on is in the tree, in the kernel, or among its modules."""
    name = "dependencies"
    try:
        parse.load_order(facts.wanted_modules, settings.driver.modules)
    except ValueError as error:
        return failed(
            name,
            Code.TREE_INVALID,
            f"the modules of the tree depend on each other: {error}",
            "Publish another image.",
        )
    if facts.absent:
        words = listed([f"'{each}'" for each in facts.absent])
        return failed(
            name,
            Code.DEPENDENCY_MISSING,
            f"the driver's modules need {words}, which kernel '{facts.kernel}' does not have",
            "Install the OS's package with the rest of its modules, or publish an image whose modules do "
            "without.",
        )
    needed = outside(facts.wanted_modules, settings)
    if not needed:
        return passed(name, "the modules need none of the kernel's")
    return passed(name, f"kernel '{facts.kernel}' has {', '.join(needed)}")


def signature(facts: DriverFacts, settings: Settings) -> Check:
    """The kernel takes the modules as they are signed; whether it trusts the key, only it knows."""
    name, rules = "signature", facts.rules
    loaded = {module.name for module in facts.loaded}
    # A tree may have modules that nobody asks for; a driver in force is not to be blocked by these.
    wanted = loading(facts.wanted_modules, settings.driver.modules)
    due = [module for module in wanted if module.name not in loaded]
    if rules.closed and due:
        return failed(
            name,
            Code.LOCKDOWN,
            f"the kernel takes no more modules (kernel.modules_disabled), and '{due[0].name}' is not loaded",
            "Reboot; take what sets kernel.modules_disabled away, or order it after nvidia.service.",
        )
    by = enforced(facts)
    unsigned = next((module for module in due if not module.signed), None)
    if by and unsigned:
        return failed(
            name,
            Code.LOCKDOWN,
            f"{by} and '{unsigned.path}' is not signed",
            "Sign the modules with a key that this kernel trusts"
            + (
                ", or take module.sig_enforce from the kernel's command line."
                if rules.signed_only and facts.lockdown == "none"
                else ", or turn Secure Boot off."
            ),
        )
    if not by:
        boot = {True: ", though Secure Boot is on", False: ", Secure Boot is off", None: ""}
        return passed(name, f"the kernel takes modules without a signature{boot[rules.secure_boot]}")
    if not facts.wanted_modules:
        return passed(name, f"{by}: the driver's modules have to be signed")
    if not due:
        return passed(name, f"{by}, and the modules are loaded")
    return passed(name, f"{by}, and the modules are signed; whether it trusts the key, insmod tells")


def enforced(facts: DriverFacts) -> str:
    """That the kernel takes only signed modules, and by what; empty where it takes others, too."""
    if facts.lockdown != "none":
        boot = ", Secure Boot is on" if facts.rules.secure_boot else ""
        return f"the kernel is locked down ({facts.lockdown}{boot})"
    return "the kernel takes signed modules only (module.sig_enforce)" if facts.rules.signed_only else ""
