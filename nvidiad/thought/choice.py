# SPDX-License-Identifier: Apache-2.0
"""The choice: which build this host should have, and which tree is to be in force now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Build, Problem

if TYPE_CHECKING:
    from nvidiad.nouns.facts import DriverFacts
    from nvidiad.nouns.model import Attempt, LoadedModule, Tree
    from nvidiad.thought.settings import Settings


def configured(facts: DriverFacts, settings: Settings) -> Build:
    """The build that the configuration asks for on this host.

    Where the tag's template does not name the OS release (hosts whose OS version does not name the kernel),
    the kernel release takes its place on disk too: two kernels of one such release are two builds.
    """
    release = facts.release.version if "{os}" in settings.image.tag else facts.kernel
    return Build(settings.driver.version, release, facts.kernel, settings.driver.product)


def wanted(facts: DriverFacts, settings: Settings) -> Build:
    """The build that this host should have: the configured one, or the one it falls back to."""
    tree = fallback(facts, settings)
    return tree.build if tree else configured(facts, settings)


def tree_of(facts: DriverFacts, build: Build) -> Tree | None:
    """A build on disk, if it is there for exactly this kernel."""
    return next((tree for tree in facts.trees if tree.build == build), None)


def find_tree(facts: DriverFacts, settings: Settings) -> Tree | None:
    """The wanted build on disk."""
    return tree_of(facts, wanted(facts, settings))


def in_force(facts: DriverFacts) -> Tree | None:
    """The tree that `current` names, where it is that of the loaded driver."""
    module = core(facts)
    return loaded_tree(facts.trees, facts.current, module.version if module else None)


def loaded_tree(trees: tuple[Tree, ...], current: str | None, version: str | None) -> Tree | None:
    """The current tree, where its driver is the one of that version in the kernel.

    A program in that tree is therefore of the loaded driver: the tree was verified file by file against a
    manifest of that driver.
    """
    tree = next((tree for tree in trees if tree.path == current), None)
    return tree if tree and version == tree.build.driver else None


# Drivers by which a host hands a device on to a guest.
GUESTS = frozenset({"vfio-pci", "nvgrace_gpu_vfio_pci", "pci-stub", "pciback", "xen-pciback"})


def given_away(facts: DriverFacts) -> str:
    """What has every GPU of this host for its guests; empty where one is left, or there is none."""
    owners = [gpu.bound for gpu in facts.gpus if not gpu.switch]
    return next((owner or "" for owner in owners if GUESTS.issuperset(owners)), "")


# ---------------------------------------------------------------------------------------------------
# Falling back

REFUSED = " refused: "
"""Between a tree and what it is refused for, where a refusal is remembered."""


def trial_key(tree: Tree) -> str:
    """What activations of a tree are counted under: another tree of the same build starts anew."""
    return f"{tree.build.driver}/{tree.build.os_version} {tree.identity}"


def refusal_key(tree: Tree, facts: DriverFacts, settings: Settings) -> str:
    """What a tree is remembered under that can never come up here, as things are here now."""
    rules = f"lockdown {facts.lockdown}{', sig_enforce' if facts.rules.signed_only else ''}"
    gpus = sorted({gpu.device for gpu in facts.gpus})
    return f"{trial_key(tree)}{REFUSED}{', '.join((rules, ' '.join(settings.driver.modules), *gpus))}"


def given_up(facts: DriverFacts, settings: Settings) -> Attempt | None:
    """The failed activations of the configured tree, once they are as many as the configuration allows."""
    tree = tree_of(facts, configured(facts, settings))
    return _exhausted(tree, facts, settings) if tree else None


def _exhausted(tree: Tree, facts: DriverFacts, settings: Settings) -> Attempt | None:
    counted, refused = trial_key(tree), refusal_key(tree, facts, settings)
    for trial in facts.trials:
        enough = trial.reference == counted and trial.count >= settings.driver.attempts
        if enough or trial.reference == refused:
            return trial
    return None


def fallback(facts: DriverFacts, settings: Settings) -> Tree | None:
    """The tree to return to when the configured one does not come up; None where there is no need, or none.

    That is the last one known good on this OS release and kernel, else one here of the driver that was last
    known good on another release.
    """
    return _known_good(facts, settings) if given_up(facts, settings) else None


def _others(facts: DriverFacts, settings: Settings) -> list[Tree]:
    """The trees of other drivers than the configured one for what runs here."""
    build = configured(facts, settings)
    return [
        tree
        for tree in facts.trees
        if tree.build.driver != build.driver
        # Where that one does not come up either, it is not the driver's fault.
        and _exhausted(tree, facts, settings) is None
        and (tree.build.os_version, tree.build.kernel, tree.build.product)
        == (build.os_version, build.kernel, build.product)
    ]


def _known_good(facts: DriverFacts, settings: Settings) -> Tree | None:
    here = _others(facts, settings)
    by_path = {tree.path: tree for tree in here}
    known = next((by_path[path] for path in facts.good if path in by_path), None)
    if known:
        return known
    drivers = map(driver_of, facts.good)
    return next((tree for driver in drivers for tree in here if tree.build.driver == driver), None)


def driver_of(path: str) -> str:
    """The driver of a tree, by its path: the tree itself may be gone."""
    return path.split("/")[-2] if path.count("/") > 1 else ""


def fallback_problem(facts: DriverFacts, settings: Settings) -> Problem | None:
    """Why another driver than the configured one is in force; None where it is not so."""
    trial, tree = given_up(facts, settings), fallback(facts, settings)
    if trial is None or tree is None:
        return None
    build = configured(facts, settings)
    refused = REFUSED in trial.reference
    what = "cannot come up" if refused else f"did not come up {trial.count} times"
    last = ":" if refused else "; the last time:"
    return Problem(
        Code.DRIVER_FALLBACK,
        f"driver {build.driver} {what}, driver {tree.build.driver} is back{last} {trial.problem.sentence}",
        "Publish another image under its tag (nvidiad takes it), or set another 'driver.version'.",
    )


# ---------------------------------------------------------------------------------------------------
# What is loaded


def core(facts: DriverFacts) -> LoadedModule | None:
    """The driver's first module, `nvidia`, as it is loaded."""
    return next((module for module in facts.loaded if module.name == "nvidia"), None)


def in_use(facts: DriverFacts) -> bool:
    """Whether anything but the driver's own modules holds one of them.

    A module's count of references has one for every module that needs it, and one for every open device.
    """
    ours = {module.name for module in facts.loaded}
    return any(
        module.references > len(module.holders) or not ours.issuperset(module.holders)
        for module in facts.loaded
    )


def target(facts: DriverFacts, settings: Settings) -> Tree | None:
    """The tree to be in force now: the wanted one, or another while that is not here or cannot come in."""
    tree, loaded = find_tree(facts, settings), core(facts)
    if tree is None:
        return _stand_in(facts, settings)
    if loaded is None or loaded.version == tree.build.driver or not in_use(facts):
        return tree
    kept = (
        other
        for other in facts.trees
        if other.build.driver == loaded.version
        and (other.build.os_version, other.build.kernel) == (tree.build.os_version, tree.build.kernel)
    )
    return next(kept, tree)


def _stand_in(facts: DriverFacts, settings: Settings) -> Tree | None:
    """What is as good as the wanted build until that is on disk: the loaded driver, or the last known good.

    A version that nobody has built yet, or an OS that goes back, takes no driver from a host that has one.
    """
    loaded = core(facts)
    if loaded is None:
        return _known_good(facts, settings)
    return next((t for t in _others(facts, settings) if t.build.driver == loaded.version), None)
