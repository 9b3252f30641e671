# SPDX-License-Identifier: Apache-2.0
"""Looking ahead, in a host in memory: the next OS's driver is proven before the reboot may go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns.errors import Code, Transient
from nvidiad.nouns.model import Build, Phase, UpdateStatus
from nvidiad.nouns.upcoming import StagedSystem, StageState
from nvidiad.nouns.value import replace
from nvidiad.thought.staging import NEED_REBOOT
from tests.unit import facts
from tests.unit.world import KUBELET, World

if TYPE_CHECKING:
    from nvidiad.nouns.plan import Status
    from nvidiad.nouns.upcoming import Stage

NEXT, KERNEL = "4081.2.0", "6.6.54-flatcar"
BUILD = Build(facts.DRIVER, NEXT, KERNEL)
TREE = f"/opt/nvidia/{facts.DRIVER}/{NEXT}"
SLOT = StagedSystem(NEXT, KERNEL, "the slot USR-B")
COMING = UpdateStatus("UPDATE_STATUS_UPDATE_AVAILABLE", NEXT, 0.0)
DONE = UpdateStatus(NEED_REBOOT, NEXT, 0.0)
AT_ONCE = "[stage]\nspread = 0\n"


def in_force(more: str = AT_ONCE) -> World:
    world = World(facts.settings(more))
    world.push()
    assert look(world).phase is Phase.READY
    world.effects.clear()
    return world


def look(world: World) -> Status:
    return world.reconciler().look(world.settings)


def stage(status: Status) -> Stage:
    assert status.plan is not None
    return status.plan.stages[0]


def go(status: Status) -> bool:
    assert status.plan is not None
    return status.plan.verdict.go


def test_the_driver_is_staged_as_soon_as_the_version_is_known_and_proven_before_the_reboot() -> None:
    world = in_force()
    world.push(BUILD)
    world.volatile.update = COMING
    status = look(world)
    assert (stage(status).state, stage(status).tree) == (StageState.STAGED, TREE)
    assert status.phase is Phase.READY
    # The lock was taken before anything was fetched, and is not needed any more.
    order = [effect.partition(" ")[0] for effect in world.effects if effect != "remember"]
    assert order == ["hold", "limit", "pull", "install", "discard", "release"]
    world.volatile.update, world.volatile.slot = DONE, SLOT
    status = look(world)
    assert stage(status).state is StageState.PROVEN
    assert go(status)
    world.boot(NEXT, KERNEL)
    world.refusal = Transient(Code.REGISTRY_UNREACHABLE, "no network")
    assert look(world).phase is Phase.READY
    assert world.disk.current == TREE
    # The OS goes back, and its tree is still there.
    world.boot(facts.OS, facts.KERNEL)
    assert look(world).phase is Phase.READY
    assert world.disk.current == facts.TREE.path


def test_a_slot_of_which_only_the_kernel_is_known_has_the_name_that_was_heard_before() -> None:
    world = in_force()
    world.push(BUILD)
    world.volatile.update = COMING
    look(world)
    # A slot that cannot be mounted, and an update_engine that was restarted.
    world.volatile.update = UpdateStatus(NEED_REBOOT, "", 0.0)
    world.volatile.slot = StagedSystem("", KERNEL, "'/boot/flatcar/vmlinuz-b'")
    status = look(world)
    assert (stage(status).state, stage(status).next.version) == (StageState.PROVEN, NEXT)
    assert go(status)


def test_a_reboot_is_held_until_the_driver_is_there_and_no_longer_than_configured() -> None:
    world = in_force(AT_ONCE + "[reboot]\nmaximum = 100")
    world.volatile.update, world.volatile.slot = DONE, SLOT
    status = look(world)
    assert stage(status).state is StageState.AWAITED
    assert status.plan is not None
    assert not status.plan.verdict.go
    assert status.plan.verdict.until == world.clock + 100
    assert "is not in the registry" in status.plan.verdict.reason
    assert (world.volatile.lock, world.volatile.limit) == (True, 100)
    world.clock += 60
    # Neither a restart of nvidiad nor a moment without update_engine makes it longer.
    world.volatile.update = None
    assert not go(look(world))
    world.volatile.update = DONE
    world.clock += 39
    assert not go(look(world))
    world.clock += 1
    status = look(world)
    assert go(status)
    assert not world.volatile.lock
    assert status.plan is not None
    assert "as long as is configured" in status.plan.verdict.reason


def test_a_tree_for_another_kernel_is_not_proven_and_replaced_by_a_mended_image() -> None:
    world = in_force()
    world.push(replace(BUILD, kernel="6.6.1-other"))
    world.registry[f"registry.example/nvidia-driver:{NEXT}-{facts.DRIVER}"] = world.push(
        replace(BUILD, kernel="6.6.1-other")
    )
    world.volatile.update = COMING
    assert stage(look(world)).state is StageState.STAGED
    world.volatile.update, world.volatile.slot = DONE, SLOT
    status = look(world)
    assert stage(status).state is StageState.UNFIT
    assert not go(status)
    world.push(BUILD)
    world.clock += 1000
    status = look(world)
    assert stage(status).state is StageState.PROVEN


@pytest.mark.parametrize(
    ("update", "slot", "version"),
    [
        (None, None, None),
        (UpdateStatus("UPDATE_STATUS_IDLE", "", 0.0), None, None),
        (UpdateStatus("UPDATE_STATUS_DOWNLOADING", NEXT, 0.5), None, NEXT),
        (UpdateStatus(NEED_REBOOT, "", 0.0), SLOT, NEXT),
        (UpdateStatus(NEED_REBOOT, "", 0.0), None, ""),
        (UpdateStatus(NEED_REBOOT, NEXT, 0.0), StagedSystem("", KERNEL, "'/boot/vmlinuz-b'"), NEXT),
        (UpdateStatus(NEED_REBOOT, facts.OS, 0.0), StagedSystem(facts.OS, facts.KERNEL, "the slot"), None),
    ],
)
def test_what_comes_next(
    update: UpdateStatus | None, slot: StagedSystem | None, version: str | None
) -> None:
    world = in_force()
    world.volatile.update, world.volatile.slot = update, slot
    status = look(world)
    assert status.plan is not None
    found = status.plan.stages
    assert (found[0].next.version if found else None) == version


def test_after_a_restart_of_update_engine_its_version_is_still_known() -> None:
    world = in_force()
    world.push(BUILD)
    world.volatile.update = DONE
    assert stage(look(world)).state is StageState.STAGED
    world.volatile.update = replace(DONE, version="")
    assert stage(look(world)).next.version == NEXT


def test_a_fleet_is_spread_and_an_asked_reboot_cuts_it_short() -> None:
    world = in_force("[stage]\nspread = 1000\n")
    world.push(BUILD)
    world.volatile.update = COMING
    status = look(world)
    assert stage(status).state is StageState.AWAITED
    due = stage(status).due
    assert due is not None
    assert 0 < due <= 1000
    assert status.plan is not None
    assert status.plan.look is not None
    assert status.plan.look <= due
    world.volatile.update, world.volatile.slot, world.volatile.asked = DONE, SLOT, True
    assert stage(look(world)).state is StageState.PROVEN


def test_an_update_that_is_reset_is_forgotten() -> None:
    world = in_force()
    world.volatile.update, world.volatile.slot = DONE, SLOT
    look(world)
    assert "hold" in world.effects
    world.volatile.update, world.volatile.slot = UpdateStatus("UPDATE_STATUS_IDLE", "", 0.0), None
    assert go(look(world))
    assert world.effects[-1] in ("release", "remember")
    assert world.disk.memory.sightings == ()


def test_what_update_engine_said_holds_while_it_is_away_and_no_longer_than_configured() -> None:
    world = in_force(AT_ONCE + "[reboot]\nmaximum = 100")
    for told, waits in ((COMING, False), (DONE, True)):
        world.volatile.update = told
        look(world)
        world.effects.clear()
        world.volatile.update = None
        status = look(world)
        assert world.volatile.lock
        assert stage(status).next.version == NEXT
        assert go(status) is not waits
        assert "release" not in world.effects
    world.clock += 100
    assert go(look(world))
    assert not world.volatile.lock
    # It is back, and has nothing.
    world.volatile.update = UpdateStatus("UPDATE_STATUS_IDLE", "", 0.0)
    status = look(world)
    assert status.plan is not None
    assert status.plan.stages == ()
    assert world.disk.memory.sightings == ()


def test_the_hold_of_an_update_that_was_taken_back_does_not_shorten_that_of_the_next_one() -> None:
    world = in_force(AT_ONCE + "[reboot]\nmaximum = 100")
    # No update_engine: a file says what comes.
    world.volatile.slot = SLOT
    assert not go(look(world))
    world.clock += 100
    assert go(look(world))
    world.volatile.slot = None
    assert go(look(world))
    world.volatile.slot = SLOT
    assert not go(look(world))


def test_nvidiad_reboots_by_itself_where_it_is_asked_to() -> None:
    world = in_force(AT_ONCE + "[reboot]\nautomatic = true")
    world.volatile.update, world.volatile.slot = DONE, SLOT
    look(world)
    assert not world.volatile.rebooted
    world.push(BUILD)
    world.clock += 1000
    look(world)
    assert world.volatile.rebooted


# -- a driver that does not come up ------------------------------------------------------------------


def test_a_driver_that_does_not_come_up_gives_way_to_the_last_known_good_and_comes_again() -> None:
    world = in_force("[driver]\nattempts = 2")
    world.settings = facts.settings('[driver]\nversion = "550.1"\nattempts = 2')
    world.push(refused=True)
    for _ in range(4):
        status = look(world)
        world.clock += 1000
    assert status.phase is Phase.READY
    assert status.problem is not None
    assert status.problem.code is Code.DRIVER_FALLBACK
    assert world.volatile.loaded["nvidia"] == facts.DRIVER
    # Across boots, and without a registry.
    world.refusal = Transient(Code.REGISTRY_UNREACHABLE, "no network")
    world.boot()
    assert world.volatile.loaded["nvidia"] == facts.DRIVER
    world.refusal = None
    world.push()
    for _ in range(3):
        world.clock += 1000
        status = look(world)
    assert (status.phase, status.problem) == (Phase.READY, None)
    assert world.volatile.loaded["nvidia"] == "550.1"


def test_where_no_driver_comes_up_it_is_no_drivers_fault_and_the_configured_one_is_tried_on() -> None:
    world = in_force("[driver]\nattempts = 2")
    world.settings = facts.settings('[driver]\nversion = "550.1"\nattempts = 2')
    world.push(refused=True)
    world.disk.refused[facts.TREE.path] = True
    for _ in range(8):
        status = look(world)
        world.clock += 1000
    assert status.wanted.driver == "550.1"
    # Whatever it was is over.
    world.disk.refused = dict.fromkeys(world.disk.refused, False)
    for _ in range(3):
        status = look(world)
        world.clock += 1000
    assert (status.phase, status.problem) == (Phase.READY, None)
    assert world.volatile.loaded["nvidia"] == "550.1"
    assert world.disk.trials.attempts[0].reference.startswith(facts.DRIVER)


# -- another driver in place -------------------------------------------------------------------------


def test_policy_wait_changes_as_soon_as_nothing_uses_it() -> None:
    world = in_force()
    world.volatile.held = {"nvidia"}
    world.settings = facts.settings('[driver]\nversion = "550.1"\nchange = "wait"')
    world.push()
    status = look(world)
    assert status.phase is Phase.WAITING
    assert status.problem is not None
    assert "train (pid 7, job.service)" in status.problem.sentence
    assert world.volatile.loaded["nvidia"] == facts.DRIVER
    world.volatile.held = set()
    assert look(world).phase is Phase.READY
    assert world.volatile.loaded["nvidia"] == "550.1"


def test_policy_drain_stops_the_gated_units_and_starts_them_again_whoever_is_killed() -> None:
    world = in_force()
    world.volatile.held = {"nvidia"}
    world.settings = facts.settings('[driver]\nversion = "550.1"\nchange = "drain"')
    world.push()
    assert look(world).phase is Phase.WAITING
    assert world.unit(KUBELET).active == "inactive"
    assert KUBELET in world.disk.memory.stopped
    world.volatile.held = set()
    assert look(world).phase is Phase.READY
    assert world.volatile.loaded["nvidia"] == "550.1"
    assert world.unit(KUBELET).active == "active"
    assert look(world).plan is not None
    assert world.disk.memory.stopped == ()


def test_a_unit_that_takes_long_to_stop_is_started_again_after_the_change() -> None:
    world = in_force()
    world.volatile.held = {"nvidia"}
    world.settings = facts.settings('[driver]\nversion = "550.1"\nchange = "drain"\ndrain-timeout = 100')
    world.push()
    world.slow = 3.0
    assert look(world).phase is Phase.WAITING
    assert world.unit(KUBELET).active == "inactive"
    assert KUBELET in world.disk.memory.stopped
    world.volatile.held = set()
    assert look(world).phase is Phase.READY
    assert world.unit(KUBELET).active == "active"


def test_a_drain_that_takes_too_long_ends_and_the_change_waits_for_the_boot() -> None:
    world = in_force()
    world.volatile.held = {"nvidia"}
    world.settings = facts.settings('[driver]\nversion = "550.1"\nchange = "drain"\ndrain-timeout = 100')
    world.push()
    look(world)
    world.clock += 101
    status = look(world)
    assert status.phase is Phase.PENDING_REBOOT
    assert world.unit(KUBELET).active == "active"


def test_what_others_want_of_logind_is_never_lowered_by_a_file_that_stays() -> None:
    world = in_force()
    world.volatile.others = 1200.0
    look(world)
    assert world.volatile.limit == 1200
    assert "hold" not in world.effects
