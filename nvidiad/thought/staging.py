# SPDX-License-Identifier: Apache-2.0
"""Staging: which OS comes next, and what is to be done until its driver is on disk and fits its kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Build, Problem, Sighting
from nvidiad.nouns.steps import InstallTree, PullImage, RenewTree
from nvidiad.nouns.upcoming import NextSystem, Stage, StageState
from nvidiad.nouns.value import replace
from nvidiad.thought import backoff, choice
from nvidiad.thought.trust import pinned

if TYPE_CHECKING:
    from nvidiad.nouns.facts import HostFacts
    from nvidiad.nouns.model import Memory, Tree
    from nvidiad.nouns.steps import Step
    from nvidiad.thought.settings import Settings

NEED_REBOOT = "UPDATE_STATUS_UPDATED_NEED_REBOOT"
# Before these nothing is offered; an error ends in IDLE again.
_COMING = frozenset(
    f"UPDATE_STATUS_{name}" for name in ("UPDATE_AVAILABLE", "DOWNLOADING", "VERIFYING", "FINALIZING")
)
# ResetStatus is silent, and so is a bootloader's table: while something comes the host is looked at often.
POLL_SECONDS = 60.0
_UPDATE, _KERNEL, _REBOOT, _TOLD = "update ", "kernel ", "reboot ", "told by update_engine"
_REBOOTED = "rebooted "
_NAMELESS, _FROM = "-", " from "


def next_system(facts: HostFacts, memory: Memory) -> NextSystem | None:
    """The OS that is booted next, where it is another one than that which runs; the disk knows best."""
    known = facts.next
    operation = known.update.operation if known.update else ""
    version = known.update.version if known.update else ""
    found: NextSystem | None = None
    if known.slot is not None:
        slot = known.slot
        # By its boot image alone it has no name; what was heard before goes with it, if the kernel fits.
        told = slot.version or version or _last_seen(facts, memory)
        found = NextSystem(told, slot.kernel, slot.source, staged=True)
    elif operation in _COMING and version:
        found = NextSystem(version, "", "update_engine", staged=False)
    elif known.announced is not None:
        said = known.announced
        found = NextSystem(said.version or version, said.kernel, said.source, staged=True)
    elif operation == NEED_REBOOT:
        # After a restart update_engine knows no version; what it said before holds until the reboot.
        told = version or _last_seen(facts, memory)
        found = NextSystem(told, "", "update_engine", staged=True)
    elif known.update is None and since(memory, facts, _TOLD) is not None:
        # It restarts, hangs or refuses us: what it said holds until it says something else.
        staged = bool(_seen(memory, facts, _REBOOT))
        found = NextSystem(_last_seen(facts, memory), "", "update_engine", staged=staged)
    elif known.problem and (seen := _seen(memory, facts, _REBOOT)):
        # One look at which a file or a command cannot be read takes nothing back, either.
        kernel, _, told = seen[-1].what.removeprefix(_REBOOT).partition(" ")
        found = NextSystem(told, "" if kernel == _NAMELESS else kernel, "what was read before", staged=True)
    if found and found.staged and not found.kernel:
        # One look at which the slot cannot be read takes nothing back of what it said.
        found = replace(found, kernel=_kernel_seen(facts, memory, found.version))
    return found if found and _is_other(found, facts) else None


def _is_other(found: NextSystem, facts: HostFacts) -> bool:
    running = facts.driver
    if found.version and found.version != running.release.version:
        return True
    if found.kernel:
        return found.kernel != running.kernel
    return not found.version


def _seen(memory: Memory, facts: HostFacts, kind: str) -> tuple[Sighting, ...]:
    """What was seen of a kind in this boot, the latest last."""
    boot = facts.driver.boot_id
    return tuple(s for s in memory.sightings if s.boot_id == boot and s.what.startswith(kind))


def _last_seen(facts: HostFacts, memory: Memory) -> str:
    seen = _seen(memory, facts, _UPDATE)
    return seen[-1].what.removeprefix(_UPDATE) if seen else ""


def _kernel_seen(facts: HostFacts, memory: Memory, version: str) -> str:
    known = (s.what.removeprefix(_KERNEL).partition(" ") for s in _seen(memory, facts, _KERNEL))
    return next((kernel for kernel, _, of in known if of == version), "")


# ---------------------------------------------------------------------------------------------------
# Since when


def notice(memory: Memory, facts: HostFacts) -> Memory:
    """Memory with what is seen for the first time in this boot, without what is over.

    Everything that has a limit counts from here, in the host's uptime: no clock that somebody sets, and no
    restart of nvidiad, makes it longer.
    """
    found, boot = next_system(facts, memory), facts.driver.boot_id
    wanted = [f"{_UPDATE}{found.version}"] if found and found.version else []
    wanted += [f"{_KERNEL}{found.kernel} {found.version}"] if found and found.staged and found.kernel else []
    update = facts.next.update
    operation = update.operation if update else ""
    wanted += [_TOLD] if operation in _COMING or operation == NEED_REBOOT else []
    # An update_engine that is away for a moment takes nothing back.
    passing = (_UPDATE, _KERNEL) if update is None else (_UPDATE, _KERNEL, _TOLD)
    kept: list[Sighting] = []
    for sighting in memory.sightings:
        if sighting.what.startswith(_REBOOTED):
            # Over once another system runs than the one that was to be left.
            if sighting.boot_id == boot or sighting.what.endswith(_left(facts)):
                kept.append(sighting)
        elif sighting.boot_id == boot and sighting.what.startswith(_REBOOT):
            # What waits for the reboot is another system each time: none of them waits twice as long.
            if found and found.staged:
                kept.append(_filled(sighting, found))
        elif sighting.boot_id == boot and (sighting.what in wanted or not sighting.what.startswith(passing)):
            kept.append(sighting)
    if found and found.staged and not any(_is_of(s, _REBOOT, found) for s in kept):
        wanted.append(_name(_REBOOT, found))
    known = {sighting.what for sighting in kept}
    new = (Sighting(what, boot, facts.uptime) for what in wanted if what not in known)
    return replace(memory, sightings=(*kept, *new))


def since(memory: Memory, facts: HostFacts, what: str) -> float | None:
    """The uptime at which something was first seen in this boot, in seconds."""
    boot = facts.driver.boot_id
    return next((s.at for s in memory.sightings if (s.what, s.boot_id) == (what, boot)), None)


def reboot_since(memory: Memory, facts: HostFacts, found: NextSystem) -> float | None:
    """Since when this system waits for the reboot, as uptime in seconds."""
    return next((s.at for s in _seen(memory, facts, _REBOOT) if _is_of(s, _REBOOT, found)), None)


def intend_reboot(memory: Memory, facts: HostFacts, found: NextSystem) -> Memory:
    """Memory with a reboot of ours into that system, before it is begun."""
    others = tuple(s for s in memory.sightings if not s.what.startswith(_REBOOTED))
    mine = Sighting(f"{_name(_REBOOTED, found)}{_left(facts)}", facts.driver.boot_id, facts.uptime)
    return replace(memory, sightings=(*others, mine))


def was_in_vain(memory: Memory, facts: HostFacts, found: NextSystem) -> bool:
    """Whether an earlier boot was ended for that system, and this one is not of it."""
    boot = facts.driver.boot_id
    return any(s.boot_id != boot and _is_of(s, _REBOOTED, found) for s in memory.sightings)


def _left(facts: HostFacts) -> str:
    """The system that runs, as the one that a reboot leaves."""
    return f"{_FROM}{facts.driver.kernel} {facts.driver.release.version}"


def _name(kind: str, found: NextSystem) -> str:
    return f"{kind}{found.kernel or _NAMELESS} {found.version}"


def _is_of(sighting: Sighting, kind: str, found: NextSystem) -> bool:
    """Whether a sighting is that of a system, as far as either is known."""
    if not sighting.what.startswith(kind):
        return False
    kernel, _, version = sighting.what.removeprefix(kind).partition(_FROM)[0].partition(" ")
    one_kernel = _NAMELESS in (kernel, found.kernel or _NAMELESS) or kernel == found.kernel
    return one_kernel and (not version or not found.version or version == found.version)


def _filled(sighting: Sighting, found: NextSystem) -> Sighting:
    """A sighting with what is known by now of the system that it is of."""
    if not _is_of(sighting, _REBOOT, found):
        return sighting
    kernel, _, version = sighting.what.removeprefix(_REBOOT).partition(" ")
    named = replace(found, kernel=found.kernel or kernel, version=found.version or version)
    return replace(sighting, what=_name(_REBOOT, named))


# ---------------------------------------------------------------------------------------------------
# The drivers of the next OS


def builds(facts: HostFacts, settings: Settings, found: NextSystem) -> tuple[Build, ...]:
    """What should be on disk for it: the wanted driver first, which may be the one that it fell back to.

    Then the configured one, and the one that is in force while the wanted one is not there.
    """
    release = found.version if "{os}" in settings.image.tag else found.kernel
    if not release:
        return ()
    host = facts.driver
    drivers = [choice.wanted(host, settings).driver, settings.driver.version]
    # What stands in here until the wanted one is built can do so there.
    if choice.find_tree(host, settings) is None and (tree := choice.target(host, settings)):
        drivers.append(tree.build.driver)
    product = settings.driver.product
    return tuple(Build(driver, release, found.kernel, product) for driver in dict.fromkeys(drivers))


def reference(build: Build, settings: Settings) -> str:
    """The image of a build."""
    return pinned(f"{settings.image.repository}:{naming.image_tag(settings.image.tag, build)}", settings)


def find_tree(facts: HostFacts, build: Build) -> Tree | None:
    """A build's tree, whatever kernel it says that it is for: there is one place for it on disk."""
    place = (build.driver, build.os_version, build.product)
    return next(
        (
            tree
            for tree in facts.driver.trees
            if (tree.build.driver, tree.build.os_version, tree.build.product) == place
        ),
        None,
    )


def stages(
    facts: HostFacts, settings: Settings, memory: Memory, now: float, found: NextSystem | None
) -> tuple[Stage, ...]:
    """How far each driver of the next OS is; nothing where none is to be staged."""
    host = facts.driver
    if found is None or not (settings.stage.enabled and settings.configured and host.gpus):
        return ()
    if host.extensions or choice.given_away(host):
        return ()
    wanted = builds(facts, settings, found)
    if not wanted:
        return (_unknown(facts, settings, found),)
    if "{os}" in settings.image.tag and found.version == host.release.version:
        return (_unnamed(wanted[0], settings, found),)
    return tuple(_stage(build, facts, settings, memory, now, found) for build in wanted)


def _unknown(facts: HostFacts, settings: Settings, found: NextSystem) -> Stage:
    build = Build(settings.driver.version, "", "", settings.driver.product)
    problem = facts.next.problem
    if problem is None and found.staged:
        problem = Problem(
            Code.NEXT_UNKNOWN,
            f"an update waits for the reboot, and {found.source} does not say which OS it is",
            "Tell it with 'stage.next-file' or 'stage.next-command'.",
            retry=True,
        )
    return Stage(StageState.UNKNOWN, found, build, "", problem=problem)


def _unnamed(build: Build, settings: Settings, found: NextSystem) -> Stage:
    problem = Problem(
        Code.NEXT_UNKNOWN,
        f"kernel '{found.kernel}' comes for the same OS version '{found.version}', "
        "and a tag of OS version and driver names one image for both",
        "Let 'image.tag' name the kernel: \"{kernel}-{driver}\".",
    )
    return Stage(StageState.UNKNOWN, found, build, reference(build, settings), problem=problem)


def _stage(
    build: Build, facts: HostFacts, settings: Settings, memory: Memory, now: float, found: NextSystem
) -> Stage:
    image, tree = reference(build, settings), find_tree(facts, build)
    if tree is None:
        attempt = backoff.find(memory, image)
        due = max(_spread(facts, settings, memory, found), _pause(image, facts, settings, memory, now))
        state = StageState.AWAITED if due > 0 else StageState.FETCHING
        problem = attempt.problem if attempt else None
        return Stage(state, found, build, image, problem=problem, due=due if due > 0 else None)
    if not found.kernel:
        return Stage(StageState.STAGED, found, build, image, tree.path, facts.next.problem)
    again = _pause(f"again {image}", facts, settings, memory, now) or None
    if unread := next((problem for path, problem in facts.next.unread if path == tree.path), None):
        return Stage(StageState.UNFIT, found, build, image, tree.path, unread, again)
    modules = [module for module in facts.next.modules if module.path.startswith(f"{tree.path}/")]
    wrong = next((module.vermagic for module in modules if module.kernel != found.kernel), None)
    if modules and tree.build.kernel == found.kernel and wrong is None:
        return Stage(StageState.PROVEN, found, build, image, tree.path)
    problem = Problem(
        Code.VERMAGIC_MISMATCH,
        f"'{tree.path}' is for kernel '{wrong or tree.build.kernel}', "
        f"{found.source} has kernel '{found.kernel}'",
        "Publish an image that is built for the kernel of this release; nvidiad then takes it.",
        retry=True,
    )
    return Stage(StageState.UNFIT, found, build, image, tree.path, problem, again)


def steps(stage: Stage, facts: HostFacts, memory: Memory) -> tuple[Step, ...]:
    """What brings a stage further now: gently, unless somebody waits for the reboot."""
    if stage.due is not None:
        return ()
    if stage.state is StageState.FETCHING:
        gentle = not (facts.reboot and facts.reboot.preparing)
        return (
            PullImage(stage.reference, stage.build, gentle=gentle),
            InstallTree(stage.reference, stage.build, gentle=gentle),
        )
    if stage.state is StageState.UNFIT:
        return (RenewTree(stage.reference, stage.build, stage.tree, origin(memory, stage.tree)),)
    return ()


def origin(memory: Memory, tree: str) -> str:
    """The digest of the image that a tree was installed from; empty where nobody remembers."""
    return next((known.digest for known in memory.origins if known.tree == tree), "")


def _spread(facts: HostFacts, settings: Settings, memory: Memory, found: NextSystem) -> float:
    """Seconds until this host's turn: a fleet that hears of an update at once does not ask at once.

    Somebody who waits for the reboot does not wait for that: an asked one cuts it short, and once the update
    is on disk it takes at most a third of the time for which a reboot may be held.
    """
    if facts.reboot and facts.reboot.preparing:
        return 0.0
    share = backoff.lot(f"{facts.driver.boot_id}{found.version}")
    seen = since(memory, facts, f"{_UPDATE}{found.version}")
    due = (facts.uptime if seen is None else seen) + settings.stage.spread * share
    asked = reboot_since(memory, facts, found) if found.staged else None
    if asked is not None:
        due = min(due, asked + settings.reboot.maximum / 3 * share)
    return max(0.0, due - facts.uptime)


def _pause(key: str, facts: HostFacts, settings: Settings, memory: Memory, now: float) -> float:
    """Seconds until a failed try is due again; with a reboot that waits, its first pause is its longest."""
    attempt = backoff.find(memory, key)
    if attempt is None:
        return 0.0
    hurry = facts.reboot is not None and facts.reboot.preparing
    return backoff.wait(
        attempt,
        now,
        initial=settings.daemon.retry_initial,
        maximum=settings.daemon.retry_initial if hurry else settings.daemon.retry_maximum,
        seed=f"{facts.driver.boot_id}{key}",
    )
