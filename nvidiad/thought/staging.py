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

if TYPE_CHECKING:
    from nvidiad.nouns.model import HostFacts, Memory, Tree
    from nvidiad.nouns.steps import Step
    from nvidiad.thought.settings import Settings

NEED_REBOOT = "UPDATE_STATUS_UPDATED_NEED_REBOOT"
# Before these nothing is offered; an error ends in IDLE again.
_COMING = frozenset(
    f"UPDATE_STATUS_{name}" for name in ("UPDATE_AVAILABLE", "DOWNLOADING", "VERIFYING", "FINALIZING")
)
# ResetStatus is silent, and so is a bootloader's table: while something comes the host is looked at often.
POLL_SECONDS = 60.0
_UPDATE, _REBOOT, _TOLD = "update ", "reboot", "told by update_engine"


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
        staged = reboot_since(memory, facts) is not None
        found = NextSystem(_last_seen(facts, memory), "", "update_engine", staged=staged)
    return found if found and _is_other(found, facts) else None


def _is_other(found: NextSystem, facts: HostFacts) -> bool:
    running = facts.driver
    if found.version and found.version != running.release.version:
        return True
    if found.kernel:
        return found.kernel != running.kernel
    return not found.version


def _last_seen(facts: HostFacts, memory: Memory) -> str:
    boot = facts.driver.boot_id
    seen = [s.what for s in memory.sightings if s.boot_id == boot and s.what.startswith(_UPDATE)]
    return seen[-1].removeprefix(_UPDATE) if seen else ""


# ---------------------------------------------------------------------------------------------------
# Since when


def notice(memory: Memory, facts: HostFacts) -> Memory:
    """Memory with what is seen for the first time in this boot, without what is over.

    Everything that has a limit counts from here, in the host's uptime: no clock that somebody sets, and no
    restart of nvidiad, makes it longer.
    """
    found = next_system(facts, memory)
    wanted = [f"{_UPDATE}{found.version}"] if found and found.version else []
    wanted += [_REBOOT] if found and found.staged else []
    update = facts.next.update
    operation = update.operation if update else ""
    wanted += [_TOLD] if operation in _COMING or operation == NEED_REBOOT else []
    # An update_engine that is away for a moment takes nothing back.
    lasting = (_UPDATE, _REBOOT) if update is None else (_UPDATE, _REBOOT, _TOLD)
    kept = tuple(
        sighting
        for sighting in memory.sightings
        if sighting.boot_id == facts.driver.boot_id
        and (sighting.what in wanted or not sighting.what.startswith(lasting))
    )
    known = {sighting.what for sighting in kept}
    new = tuple(Sighting(what, facts.driver.boot_id, facts.uptime) for what in wanted if what not in known)
    return replace(memory, sightings=(*kept, *new))


def since(memory: Memory, facts: HostFacts, what: str) -> float | None:
    """The uptime at which something was first seen in this boot, in seconds."""
    boot = facts.driver.boot_id
    return next((s.at for s in memory.sightings if (s.what, s.boot_id) == (what, boot)), None)


def reboot_since(memory: Memory, facts: HostFacts) -> float | None:
    """Since when an update waits for the reboot, as uptime in seconds."""
    return since(memory, facts, _REBOOT)


# ---------------------------------------------------------------------------------------------------
# The drivers of the next OS


def builds(facts: HostFacts, settings: Settings, found: NextSystem) -> tuple[Build, ...]:
    """What should be on disk for it: the configured driver, and the one that this host fell back to."""
    release = found.version if "{os}" in settings.image.tag else found.kernel
    if not release:
        return ()
    drivers = dict.fromkeys(
        (settings.driver.version, choice.wanted(facts.driver, settings).driver), settings.driver.product
    )
    return tuple(Build(driver, release, found.kernel, product) for driver, product in drivers.items())


def reference(build: Build, settings: Settings) -> str:
    """The image of a build."""
    return f"{settings.image.repository}:{naming.image_tag(settings.image.tag, build)}"


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
    if host.extensions:
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
    wrong = next((m.vermagic for m in facts.next.modules if m.path.startswith(f"{tree.path}/")
                  and m.kernel != found.kernel), None)  # fmt: skip
    if tree.build.kernel == found.kernel and wrong is None:
        return Stage(StageState.PROVEN, found, build, image, tree.path)
    problem = Problem(
        Code.VERMAGIC_MISMATCH,
        f"'{tree.path}' is for kernel '{wrong or tree.build.kernel}', "
        f"{found.source} has kernel '{found.kernel}'",
        "Publish an image that is built for the kernel of this release; nvidiad then takes it.",
        retry=True,
    )
    due = _pause(f"again {image}", facts, settings, memory, now)
    return Stage(StageState.UNFIT, found, build, image, tree.path, problem, due if due > 0 else None)


def steps(stage: Stage, memory: Memory) -> tuple[Step, ...]:
    """What brings a stage further now."""
    if stage.due is not None:
        return ()
    if stage.state is StageState.FETCHING:
        return (
            PullImage(stage.reference, stage.build, gentle=True),
            InstallTree(stage.reference, stage.build, gentle=True),
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
    asked = reboot_since(memory, facts) if found.staged else None
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
