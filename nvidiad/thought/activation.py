# SPDX-License-Identifier: Apache-2.0
"""Activation: what is to be done until the driver on disk is in force, and how to undo it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Exposure, Problem
from nvidiad.nouns.plan import Plan
from nvidiad.nouns.steps import (
    CheckDriver,
    ConfigureLinker,
    LoadHostModules,
    LoadModule,
    MakeNodes,
    MountOverlay,
    RefreshLinkerCache,
    RemoveNodes,
    SelectTree,
    SetFirmwarePath,
    UnloadModule,
    UnmountOverlay,
)
from nvidiad.nouns.value import replace
from nvidiad.thought import parse, preflight
from nvidiad.thought.choice import core, given_away, in_use, target, tree_of, wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvidiad.nouns.facts import DriverFacts, LinkerFacts, MountFacts
    from nvidiad.nouns.model import Holder, ModuleFile, Tree
    from nvidiad.nouns.steps import Step
    from nvidiad.thought.settings import Settings

LIBRARIES = "/usr/lib64"
# Problems that leave the gated units nothing to wait for.
FREEING = frozenset({Code.OTHER_OWNER})
_HEADER = "# Written by nvidiad; see nvidiad(8).\n"


def choose_exposure(wish: Exposure, mounts: MountFacts) -> tuple[Exposure, str]:
    """How to expose the libraries, and why (host-interfaces: overlay nesting, split lib and lib64)."""
    if wish is not Exposure.AUTO:
        return wish, "configured"
    if not mounts.lib64_exists:
        return Exposure.LDCONFIG, f"there is no {LIBRARIES}"
    if mounts.usr_is_overlay:
        return Exposure.LDCONFIG, "/usr already is an overlay (system extensions are merged)"
    if not mounts.lib64_is_lib:
        return Exposure.LDCONFIG, "/usr/lib and /usr/lib64 are split"
    return Exposure.OVERLAY, "/usr/lib and /usr/lib64 are one directory"


def linker_directory(exposure: Exposure, settings: Settings) -> str:
    """The directory whose libraries the linker cache must name."""
    if exposure is Exposure.OVERLAY:
        return LIBRARIES
    return str(naming.current_path(settings.install.root) / "lib64")


def activate(facts: DriverFacts, settings: Settings) -> Plan:
    """The steps from the facts to a usable driver; no steps and no problem: it is, or there is no GPU."""
    if problem := _not_ours(facts, settings):
        return Plan("nvidiad is not to bring up a driver here", problem=problem)
    if not facts.gpus:
        return Plan("this host has no NVIDIA GPU")
    tree = target(facts, settings)
    if tree is None:
        return Plan("the wanted build is not on disk", problem=_missing(facts, settings))
    pending = _pending(facts, settings, tree)
    if problem := _unfit(facts, settings, tree):
        # A driver that waits for the reboot works until then; one that stands in must itself be whole.
        if core(facts) and pending and pending.code is not Code.TREE_MISSING:
            problem = pending
        return Plan(f"'{tree.build}' cannot be brought up", problem=problem)
    unload = _unload_steps(facts, tree)
    rest = replace(facts, loaded=()) if unload else facts
    steps = (*unload, *_exposure_steps(rest, settings, tree), *_module_steps(rest, settings, tree))
    if not steps:
        # With steps to do it is the check at their end that says so: they may be what mends it.
        clash = mismatch(loaded_version(facts), facts.linker)
        return Plan(f"'{tree.build}' is in force", problem=clash or pending)
    reason = f"'{tree.build}' is on disk but not in force"
    return Plan(reason, (*steps, _check(facts, settings, tree)), problem=pending)


def is_pending(plan: Plan, facts: DriverFacts, settings: Settings) -> bool:
    """Whether the plan's problem only says that the wanted driver has to wait, with another one in force."""
    tree = target(facts, settings)
    if plan.problem is None or tree is None or tree.build == wanted(facts, settings):
        return False
    if plan.problem.code not in (Code.TREE_MISSING, Code.DRIVER_MISMATCH):
        return False
    return bool(plan.steps) or (core(facts) is not None and _unfit(facts, settings, tree) is None)


def loaded_version(facts: DriverFacts) -> str | None:
    """The version of the loaded driver, None where none is loaded or it says none."""
    module = core(facts)
    return module.version if module else None


def mismatch(loaded: str | None, linker: LinkerFacts) -> Problem | None:
    """Why programs would meet NVML's "Driver/library version mismatch": another driver's library is first.

    The kernel module refuses whoever comes with a library of another version.
    """
    wrong = next((library for library in linker.first if loaded and library.version != loaded), None)
    if wrong is None:
        return None
    return Problem(
        Code.VERSION_MISMATCH,
        f"programs get '{wrong.name}' of driver {wrong.version} from '{wrong.path}', "
        f"but driver {loaded} is loaded",
        f"Remove what brings '{wrong.path}' (a package of the distribution, or another installer), "
        "then run ldconfig.",
    )


def deactivate(facts: DriverFacts, settings: Settings, holders: Sequence[Holder] = ()) -> Plan:
    """Undo exactly what activation did, in reverse; `current` and the trees stay.

    A driver in use is left whole: its first modules could go, and what uses it would be left with the rest.
    """
    if problem := _in_use(facts, holders):
        return Plan("the driver is to be taken down", problem=problem)
    steps: list[Step] = [UnloadModule(name) for name in unload_order(facts)]
    if facts.loaded:
        steps.append(RemoveNodes())
    if _is_ours(facts.firmware_path, settings):
        steps.append(SetFirmwarePath(""))
    if facts.mounts.overlay_lower is not None:
        steps.append(UnmountOverlay(LIBRARIES))
    if facts.linker.configuration is not None:
        steps += [ConfigureLinker(None), RefreshLinkerCache()]
    return Plan("the driver is taken down", tuple(steps))


def unload_order(facts: DriverFacts) -> tuple[str, ...]:
    """The loaded NVIDIA modules, each before those that it holds."""
    left = {module.name: set(module.holders) for module in facts.loaded}
    order: list[str] = []
    while left:
        free = sorted(name for name, holders in left.items() if not holders & left.keys())
        # Holders that form a cycle cannot be: the kernel would not have loaded them.
        order += free or sorted(left)
        left = {name: holders for name, holders in left.items() if name not in order}
    return tuple(order)


def _in_use(facts: DriverFacts, holders: Sequence[Holder]) -> Problem | None:
    ours = {module.name for module in facts.loaded}
    others = sorted({name for module in facts.loaded for name in module.holders} - ours)
    who = [*(f"module {name}" for name in others), *named(holders)]
    if not ours or not who:
        return None
    return Problem(
        Code.MODULE_IN_USE,
        f"module 'nvidia' is in use by {', '.join(who)}",
        "Stop what uses the GPU, or reboot.",
    )


def named(holders: Sequence[Holder]) -> tuple[str, ...]:
    """Processes in words; five of them, as a node may run hundreds."""
    return tuple(f"{h.command} (pid {h.pid}, {h.unit or 'no unit'})" for h in holders[:5])


def _not_ours(facts: DriverFacts, settings: Settings) -> Problem | None:
    if facts.extensions:
        return Problem(
            Code.OTHER_OWNER,
            f"the system extension '{facts.extensions[0]}' brings its own driver; nvidiad stands back",
            "Disable the extension if nvidiad is to keep the driver, or disable nvidiad.",
        )
    if owner := given_away(facts):
        return Problem(
            Code.OTHER_OWNER,
            f"every GPU of this host is bound to '{owner}', for guests; nvidiad stands back",
            "None is needed. Unbind a GPU from it if this host is to use it.",
        )
    if not settings.configured:
        return Problem(
            Code.NOT_CONFIGURED,
            f"the configuration does not say {' and '.join(settings.missing)}",
            "Set them in /etc/nvidiad/nvidiad.toml, then: systemctl reload nvidiad.",
        )
    release = wanted(facts, settings).os_version
    if not naming.is_version(release):
        return Problem(
            Code.NOT_CONFIGURED,
            f"os-release names no version that can stand in a path ('{release}')",
            "Let 'image.tag' name the kernel instead of the OS release: \"{kernel}-{driver}\".",
        )
    return None


def _missing(facts: DriverFacts, settings: Settings) -> Problem:
    build = wanted(facts, settings)
    for tree in facts.trees:
        if (tree.build.driver, tree.build.os_version) == (build.driver, build.os_version):
            return Problem(
                Code.VERMAGIC_MISMATCH,
                f"'{tree.path}' is for kernel '{tree.build.kernel}' (product '{tree.build.product}'), "
                f"this host runs kernel '{build.kernel}' (product '{build.product}')",
                "Remove the tree; nvidiad then fetches the image for this kernel.",
            )
    return Problem(Code.TREE_MISSING, f"there is no tree for '{build}' here", "Wait for the download.")


def _pending(facts: DriverFacts, settings: Settings, tree: Tree) -> Problem | None:
    """Why the wanted tree has to wait while `tree`, that of another driver, is kept in force."""
    build = wanted(facts, settings)
    if tree.build == build:
        return None
    if core(facts) and (useless := _without_libraries(facts, tree.build.driver)):
        return useless
    if tree_of(facts, build) is None:
        return Problem(
            Code.TREE_MISSING,
            f"'{build}' is not on disk yet, and driver {tree.build.driver} stays until it is",
            "Wait for the download.",
        )
    return Problem(
        Code.DRIVER_MISMATCH,
        f"driver {tree.build.driver} is loaded and in use, {build.driver} is wanted and on disk",
        "It changes at the next reboot.",
    )


def _unload_steps(facts: DriverFacts, tree: Tree) -> tuple[Step, ...]:
    """Take another driver out of the kernel that nothing uses, before this one comes in."""
    if not _other(facts, tree):
        return ()
    return (*(UnloadModule(name) for name in unload_order(facts)), RemoveNodes())


def _other(facts: DriverFacts, tree: Tree) -> bool:
    module = core(facts)
    return module is not None and module.version != tree.build.driver


def _unfit(facts: DriverFacts, settings: Settings, tree: Tree) -> Problem | None:
    """Why a tree must not be brought up on this host as it is now."""
    if rival := preflight.rivals(facts, tree).problem:
        return rival
    if _other(facts, tree) and in_use(facts):
        other, driver = loaded_version(facts), tree.build.driver
        # Usable until the reboot, unless its libraries have gone already.
        return _without_libraries(facts, other) or Problem(
            Code.DRIVER_MISMATCH,
            f"driver {other} is loaded, {driver} is wanted",
            "It changes at the next reboot.",
        )
    return preflight.refusal(preflight.fitness(facts, settings, tree))


def _without_libraries(facts: DriverFacts, loaded: str | None) -> Problem | None:
    """Why a loaded driver that waits for the reboot is of no use until then."""
    current = next((tree for tree in facts.trees if tree.path == facts.current), None)
    if loaded and current and current.build.driver != loaded:
        return Problem(
            Code.VERSION_MISMATCH,
            f"'current' names '{current.path}' of driver {current.build.driver}, "
            f"but driver {loaded} is loaded",
            "Reboot; until then no program that is started anew can use the GPU.",
        )
    return mismatch(loaded, facts.linker)


def _exposure_steps(facts: DriverFacts, settings: Settings, tree: Tree) -> tuple[Step, ...]:
    exposure, _ = choose_exposure(settings.install.exposure, facts.mounts)
    steps: list[Step] = []
    if facts.current != tree.path:
        steps.append(SelectTree(tree.path, str(naming.current_path(settings.install.root))))
    # The real path, not `current`: a mounted overlay does not follow the link, and the mount table then says
    # which tree is exposed.
    lower = f"{tree.path}/lib64"
    mounted = facts.mounts.overlay_lower
    if mounted is not None and (exposure is not Exposure.OVERLAY or lower not in mounted):
        steps.append(UnmountOverlay(LIBRARIES))
        mounted = None
    if exposure is Exposure.OVERLAY and mounted is None:
        steps.append(MountOverlay(lower, LIBRARIES))
    text = f"{_HEADER}{linker_directory(exposure, settings)}\n"
    if facts.linker.configuration != text:
        steps.append(ConfigureLinker(text))
    if steps or facts.linker.missing:
        steps.append(RefreshLinkerCache())
    return tuple(steps)


def _module_steps(facts: DriverFacts, settings: Settings, tree: Tree) -> tuple[Step, ...]:
    steps: list[Step] = []
    firmware = f"{tree.path}/lib/firmware"
    # Someone else's path is kept: it is one value for the whole kernel.
    free = not facts.firmware_path or _is_ours(facts.firmware_path, settings)
    if tree.firmware and free and facts.firmware_path != firmware:
        steps.append(SetFirmwarePath(firmware))
    loaded = {module.name for module in facts.loaded}
    due = [module for module in _load_order(facts, settings) if module.name not in loaded]
    if due:
        inside = {module.name for module in facts.wanted_modules}
        needed = {name for module in due for name in module.depends if name not in inside}
        optional = tuple(n for n in settings.driver.host_modules if n not in needed)
        if needed or optional:
            steps.append(LoadHostModules(tuple(sorted(needed)), optional))
    for module in due:
        parameters = settings.driver.parameters.get(module.name, ())
        steps.append(LoadModule(module, tuple(parameters), tree.path))
    if due or facts.nodes_missing:
        steps.append(MakeNodes())
    return tuple(steps)


def _load_order(facts: DriverFacts, settings: Settings) -> tuple[ModuleFile, ...]:
    """The configured modules and what they need of the tree, dependencies first; ValueError for a circle."""
    names = [naming.module_name(name) for name in settings.driver.modules]
    return parse.load_order(facts.wanted_modules, names)


def _check(facts: DriverFacts, settings: Settings, tree: Tree) -> CheckDriver:
    exposure, _ = choose_exposure(settings.install.exposure, facts.mounts)
    return CheckDriver(tree.build.driver, linker_directory(exposure, settings), tree.libraries)


def _is_ours(path: str, settings: Settings) -> bool:
    return path.startswith(f"{naming.bundle_root(settings.install.root)}/")
