# SPDX-License-Identifier: Apache-2.0
"""Holding a reboot, in a host in memory: for what waits, for as long as that may, and for nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns.errors import Code, Transient
from nvidiad.nouns.model import Build, Phase, Progress
from nvidiad.nouns.steps import step_name
from nvidiad.nouns.upcoming import RebootFacts, StagedSystem, StageState, Verdict
from nvidiad.nouns.value import replace
from nvidiad.thought import gate
from tests.unit import facts
from tests.unit.test_ahead import AT_ONCE, BUILD, COMING, DONE, KERNEL, NEXT, SLOT, go, in_force, look, stage
from tests.unit.world import World, image_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvidiad.nouns.plan import Status

FULL = Transient(Code.DISK_FULL, "No space left on device")
BRIEF = AT_ONCE + "[reboot]\nmaximum = 100\n"
BY_KERNEL = '[image]\ntag = "{kernel}-{driver}"\n'


def verdict(world: World) -> Verdict:
    status = look(world)
    assert status.plan is not None
    return status.plan.verdict


# -- what waits ------------------------------------------------------------------------------------------


def announced(world: World, kernel: str) -> None:
    """As Debian: the same OS version, with another kernel."""
    world.disk.announced = StagedSystem(facts.OS, kernel, "'/vmlinuz'")


def push_for(world: World, kernel: str) -> None:
    build = Build(facts.DRIVER, kernel, kernel)
    world.registry[f"registry.example/nvidia-driver:{kernel}-{facts.DRIVER}"] = image_of(build)


def by_kernel(more: str = BRIEF) -> World:
    world = World(facts.settings(more + BY_KERNEL))
    push_for(world, facts.KERNEL)
    assert look(world).phase is Phase.READY
    return world


def test_each_system_that_waits_for_the_reboot_is_held_as_long_as_any_other() -> None:
    world = by_kernel()
    push_for(world, "6.1.0-27-amd64")
    announced(world, "6.1.0-27-amd64")
    assert go(look(world))
    world.clock += 86400
    announced(world, "6.1.0-28-amd64")
    said = verdict(world)
    assert (said.go, said.until, world.volatile.lock) == (False, world.clock + 100, True)


def test_sources_that_contradict_each_other_hold_nothing_longer() -> None:
    world = by_kernel()
    for _ in range(3):
        for kernel in ("6.1.0-27-amd64", "6.1.0-28-amd64"):
            announced(world, kernel)
            look(world)
            world.clock += 20
    assert verdict(world).go
    assert not world.volatile.lock


def test_what_becomes_known_of_a_system_does_not_renew_its_hold() -> None:
    world = in_force(BRIEF)
    world.volatile.update = replace(DONE, version="")
    before = verdict(world)
    world.clock += 50
    world.volatile.slot = SLOT
    assert verdict(world).until == before.until
    world.volatile.update = DONE
    assert verdict(world).until == before.until


def test_one_bad_look_takes_nothing_back_of_what_the_slot_said() -> None:
    world = in_force()
    world.told_required = False
    world.registry[f"registry.example/nvidia-driver:{BUILD}"] = image_of(
        replace(BUILD, kernel="6.6.1-other")
    )
    world.volatile.update = COMING
    look(world)
    world.volatile.update, world.volatile.slot = DONE, SLOT
    assert stage(look(world)).state is StageState.UNFIT
    world.volatile.asked = True
    world.volatile.update = None
    assert not go(look(world))
    world.volatile.update, world.unreadable = DONE, Transient(Code.NEXT_UNREADABLE, "it cannot be read")
    status = look(world)
    assert (go(status), stage(status).state, world.volatile.lock) == (False, StageState.UNFIT, True)


def test_a_file_that_cannot_be_read_for_once_takes_nothing_back() -> None:
    world = in_force(BRIEF)
    world.disk.announced = SLOT
    first = verdict(world)
    assert not first.go
    for _ in range(3):
        world.clock += 20
        world.unannounced = Transient(Code.NEXT_UNREADABLE, "'/run/next-os' has no KERNEL=")
        assert not verdict(world).go
        world.unannounced = None
        assert verdict(world).until == first.until
    assert world.volatile.lock
    world.clock += 40
    assert verdict(world).go


def test_a_slot_that_cannot_be_read_costs_no_tree() -> None:
    world = by_kernel(AT_ONCE + "[retention]\ntrees = 1\n")
    push_for(world, KERNEL)
    world.volatile.update, world.volatile.slot = DONE, SLOT
    assert stage(look(world)).state is StageState.PROVEN
    world.unreadable = Transient(Code.NEXT_UNREADABLE, "it cannot be read")
    look(world)
    assert f"/opt/nvidia/{facts.DRIVER}/{KERNEL}" in world.disk.trees


def test_a_driver_whose_modules_cannot_be_read_is_not_proven() -> None:
    world = in_force()
    world.push(BUILD)
    world.volatile.update = COMING
    look(world)
    world.disk.announced = SLOT
    world.volatile.update = None
    world.unreadable = Transient(Code.TREE_INVALID, "'nvidia.ko' is no kernel module")
    status = look(world)
    problem = stage(status).problem
    assert problem is not None
    assert (stage(status).state, problem.code, go(status)) == (StageState.UNFIT, Code.TREE_INVALID, False)


def test_the_wanted_driver_is_what_a_reboot_waits_for_and_not_one_that_was_given_up() -> None:
    world = in_force(AT_ONCE + "[driver]\nattempts = 2")
    world.settings = facts.settings(AT_ONCE + '[driver]\nversion = "550.1"\nattempts = 2')
    world.push(refused=True)
    for _ in range(4):
        status = look(world)
        world.clock += 1000
    assert status.wanted.driver == facts.DRIVER
    world.push(replace(BUILD, driver="550.1"), refused=True)
    world.volatile.update, world.volatile.slot = DONE, SLOT
    assert not go(look(world))
    world.push(BUILD)
    world.clock += 1000
    status = look(world)
    assert go(status)
    assert (stage(status).state, stage(status).build) == (StageState.PROVEN, BUILD)
    world.boot(NEXT, KERNEL)
    for _ in range(4):
        world.clock += 1000
        look(world)
    assert world.volatile.loaded["nvidia"] == facts.DRIVER


# -- logind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logind", "go_now", "steps"),
    [
        (RebootFacts(held=True, limit=900.0, preparing=True, others=1200.0), True, "release-reboot"),
        (RebootFacts(held=False, limit=900.0, preparing=False, others=1200.0), True, "raise-delay"),
        (RebootFacts(held=False, limit=5.0, preparing=False), False, "hold-reboot raise-delay"),
        (RebootFacts(held=True, limit=5.0, preparing=False), False, "raise-delay"),
        (RebootFacts(held=True, limit=900.0, preparing=False), False, ""),
        (RebootFacts(held=False, limit=5.0, preparing=False, fixed=True), False, "hold-reboot"),
    ],
    ids=["released first", "others want more", "held first", "raised later", "held", "cannot be raised"],
)
def test_what_logind_is_asked_for(logind: RebootFacts, go_now: bool, steps: str) -> None:  # noqa: FBT001
    world = in_force()
    world.volatile.update, world.volatile.slot = DONE, SLOT
    if go_now:
        world.push(BUILD)
    status = look(world)
    assert status.plan is not None
    plan = status.plan
    host = replace(status.facts, reboot=logind)
    found = plan.stages[0].next
    due = gate.steps(host, world.settings, found, plan.stages, plan.verdict)
    assert " ".join(step_name(step) for step in due) == steps


def test_the_reason_says_when_logind_waits_for_less() -> None:
    world = in_force()
    world.volatile.update, world.volatile.slot = DONE, SLOT
    world.volatile.fixed = True
    said = verdict(world)
    assert "logind itself waits for 5 s at most" in said.reason
    assert world.volatile.lock


def test_a_shutdown_does_not_wait_for_a_pull_that_is_under_way() -> None:
    world = in_force()
    world.push(BUILD)
    world.volatile.update = COMING

    def shut_down() -> None:
        world.volatile.asked = True
        world.clock += 10

    world.meanwhile = shut_down
    look(world)
    order = [effect.partition(" ")[0] for effect in world.effects if effect != "remember"]
    assert order[:4] == ["hold", "limit", "release", "pull"]


def during(world: World, *happenings: Callable[[], None]) -> list[Status]:
    """What is published of a look in whose pull this happens, ten seconds apart."""

    def meanwhile() -> None:
        for happen in happenings:
            happen()
            world.clock += 10
            world.tell(Progress("pull-image", "1 of 2 layers"))

    world.meanwhile = meanwhile
    world.published.clear()
    look(world)
    return world.published


def test_an_update_that_begins_and_ends_during_another_pull_is_held_and_told() -> None:
    world = in_force(BRIEF)
    world.settings = facts.settings(BRIEF + '[driver]\nversion = "550.1"')
    world.push()

    def begin() -> None:
        world.volatile.update = COMING

    def finish() -> None:
        world.volatile.update, world.volatile.slot = DONE, SLOT

    published = during(world, begin, finish)
    order = [effect.partition(" ")[0] for effect in world.effects if effect != "remember"]
    assert order[:3] == ["hold", "limit", "pull"]
    said = [each.plan.verdict for each in published if each.plan]
    assert [(each.go, each.until) for each in said[:3]] == [
        (True, None),
        (True, None),
        (False, said[2].until),
    ]
    assert said[2].until is not None
    assert "550.1 for 4081.2.0 is being fetched" in said[2].reason


def test_a_file_that_cannot_be_read_during_a_pull_makes_no_hold_longer() -> None:
    world = in_force(BRIEF)
    world.push(BUILD)
    world.volatile.update, world.volatile.slot, world.volatile.asked = DONE, SLOT, True
    world.volatile.others = 1200.0

    def spoil() -> None:
        world.unannounced = Transient(Code.NEXT_UNREADABLE, "'/run/next-os' has no KERNEL=")

    published = during(world, spoil, *(lambda: None for _ in range(12)))
    order = [effect.partition(" ")[0] for effect in world.effects if effect != "remember"]
    assert order[:4] == ["hold", "limit", "release", "pull"]
    assert any(each.plan and "as long as is configured" in each.plan.verdict.reason for each in published)


def test_what_only_counts_down_is_no_news() -> None:
    world = in_force("[reboot]\nmaximum = 100\n[stage]\nspread = 300\n")
    world.settings = facts.settings('[driver]\nversion = "550.1"\n[stage]\nspread = 300\n')
    world.push()

    def begin() -> None:
        world.volatile.update = COMING

    published = during(world, begin, *(lambda: None for _ in range(8)))
    # Before the pull, the update and the lock; then after the pull, after the change, and in the end.
    assert len(published) <= 7


def test_a_logind_that_does_not_answer_during_a_pull_costs_no_pull() -> None:
    world = in_force()
    world.push(BUILD)
    world.volatile.update = COMING

    def away() -> None:
        world.deaf = Transient(Code.BUS_LOST, "no answer within 5 s")

    def back() -> None:
        world.deaf = None

    during(world, away, back)
    assert f"/opt/nvidia/{facts.DRIVER}/{NEXT}" in world.disk.trees
    assert not world.disk.memory.attempts


def test_an_update_that_becomes_ready_during_a_pull_keeps_its_hold() -> None:
    """Locksmith calls logind in the same moment, while the facts of the pull still say that it comes."""
    world = in_force()
    world.push(BUILD)
    world.volatile.update = COMING

    def finish() -> None:
        world.volatile.update, world.volatile.slot, world.volatile.asked = DONE, SLOT, True
        world.clock += 10

    world.meanwhile = finish
    look(world)
    order = [effect.partition(" ")[0] for effect in world.effects if effect != "remember"]
    assert order == ["hold", "limit", "pull", "install", "discard", "release"]


def test_what_is_seen_during_a_pull_counts_from_there() -> None:
    world = in_force(BRIEF)
    world.push(BUILD)
    world.volatile.update = COMING
    began = world.clock

    def finish() -> None:
        world.volatile.update, world.volatile.slot, world.volatile.asked = DONE, SLOT, True
        world.clock += 10

    world.meanwhile = finish
    world.registry.clear()
    world.push(BUILD, exit_problem=FULL)
    daemon = world.reconciler()
    said = daemon.look(world.settings).plan
    assert said is not None
    assert said.verdict.until == began + 10 + 100
    world.clock = began + 110
    said = daemon.look(world.settings).plan
    assert said is not None
    assert said.verdict.go


def test_a_pull_does_not_make_a_hold_longer_than_configured() -> None:
    world = in_force(BRIEF)
    world.push(BUILD)
    world.volatile.update, world.volatile.slot, world.volatile.asked = DONE, SLOT, True
    world.volatile.others = 1200.0

    def time_passes() -> None:
        world.clock += 101

    world.meanwhile = time_passes
    look(world)
    order = [effect.partition(" ")[0] for effect in world.effects if effect != "remember"]
    assert order[:4] == ["hold", "limit", "release", "pull"]


@pytest.mark.parametrize("asked", [False, True])
def test_what_somebody_waits_for_is_pulled_as_fast_as_it_comes(asked: bool) -> None:  # noqa: FBT001
    world = in_force()
    world.volatile.update, world.volatile.slot, world.volatile.asked = DONE, SLOT, asked
    world.push(BUILD)
    look(world)
    assert world.gently[1:] == [not asked]  # the first was for the OS that runs


# -- nvidiad's own reboot ----------------------------------------------------------------------------------


def test_nvidiad_reboots_once_for_a_system_that_does_not_come_up() -> None:
    """A boot loader that is pinned to the old kernel, and a file that goes on naming the new one."""
    world = in_force(AT_ONCE + "[reboot]\nautomatic = true\n")
    world.push(BUILD)
    world.disk.announced = SLOT
    reboots = 0
    for _ in range(4):
        said = verdict(world)
        reboots += world.volatile.rebooted
        world.boot()
        world.clock += 60
    assert reboots == 1
    assert "another OS came up" in said.reason
    # Another one is another matter.
    world.disk.announced = replace(SLOT, version="4152.1.0", kernel="6.6.60-flatcar")
    world.push(Build(facts.DRIVER, "4152.1.0", "6.6.60-flatcar"))
    look(world)
    assert world.volatile.rebooted


@pytest.mark.parametrize("named", [True, False])
def test_a_reboot_that_led_where_it_should_is_no_reason_against_the_next_one(named: bool) -> None:  # noqa: FBT001
    world = in_force(AT_ONCE + "[reboot]\nautomatic = true\nmaximum = 100\n")
    world.push(BUILD)
    world.volatile.update = DONE if named else replace(DONE, version="")
    look(world)
    world.clock += 101
    look(world)
    assert world.volatile.rebooted
    world.boot(NEXT, KERNEL)
    assert look(world).phase is Phase.READY
    later = Build(facts.DRIVER, "4152.1.0", "6.6.60-flatcar")
    world.push(later)
    world.volatile.update = replace(DONE, version=later.os_version)
    world.volatile.slot = StagedSystem(later.os_version, later.kernel, "the slot USR-A")
    assert "another OS" not in verdict(world).reason
    assert world.volatile.rebooted


def test_nvidiad_reboots_once_for_a_system_without_a_name() -> None:
    world = in_force(AT_ONCE + "[reboot]\nautomatic = true\nmaximum = 100\n")
    reboots = 0
    for _ in range(4):
        world.volatile.update = replace(DONE, version="")
        look(world)
        world.clock += 101
        look(world)
        reboots += world.volatile.rebooted
        world.boot()
        world.clock += 60
    assert reboots == 1


def test_nvidiad_does_not_reboot_where_it_cannot_remember_that() -> None:
    world = in_force(AT_ONCE + "[reboot]\nautomatic = true\n")
    world.push(BUILD)
    world.disk.announced = SLOT
    world.forgetful = FULL
    with pytest.raises(Transient, match="No space left"):
        look(world)
    assert not world.volatile.rebooted


# -- a disk that takes nothing ---------------------------------------------------------------------------


def test_a_memory_that_cannot_be_written_ends_no_look_and_no_hold_is_longer() -> None:
    world = in_force(BRIEF + "[retention]\ntrees = 1\n")
    old = world.put_tree(Build("470.1", "3510.0.0", "5.15.1"))
    world.forgetful = FULL
    world.volatile.update, world.volatile.slot = DONE, SLOT
    daemon = world.reconciler()
    status = daemon.look(world.settings)
    assert status.plan is not None
    assert (status.plan.verdict.go, world.volatile.lock) == (False, True)
    assert "No space left" in " ".join(status.warnings)
    assert world.log.events("warning").count("nothing is remembered, proceeding anyway") == 1
    world.clock += 101
    status = daemon.look(world.settings)
    assert status.plan is not None
    assert (status.plan.verdict.go, world.volatile.lock) == (True, False)
    # What makes room is done, too.
    assert old not in world.disk.trees
    world.forgetful = None
    assert daemon.look(world.settings).warnings == ()
    assert world.disk.memory.sightings
