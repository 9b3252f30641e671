# SPDX-License-Identifier: Apache-2.0
"""Which driver is in force while the configured one is not on disk, or will never come up."""

from __future__ import annotations

import pytest

from nvidiad.nouns.errors import Code, Transient
from nvidiad.nouns.model import Build, Library, Phase
from nvidiad.nouns.value import replace
from nvidiad.thought import render
from nvidiad.thought.document import document
from tests.unit import facts
from tests.unit.test_ahead import AT_ONCE, BUILD, DONE, KERNEL, NEXT, SLOT, in_force, look
from tests.unit.world import DRIVER_UNIT, KUBELET, NODES, PERSISTENCED, World

OTHER = "550.1"
GONE = Transient(Code.REGISTRY_UNREACHABLE, "no network")


def want_other(world: World, more: str = "") -> None:
    world.settings = facts.settings(f'{AT_ONCE}[driver]\nversion = "{OTHER}"\n{more}')


def text(world: World) -> str:
    made = document(look(world), version="0", memory=world.disk.memory)
    return render.text(made, now=world.clock, colour=False)


def is_up(world: World, driver: str) -> bool:
    units = (world.unit(DRIVER_UNIT).active, world.unit(KUBELET).active)
    return world.volatile.loaded.get("nvidia") == driver and units == ("active", "active")


@pytest.mark.parametrize("held", [set[str](), {"nvidia"}], ids=["unused", "in use"])
def test_a_version_that_is_not_there_takes_no_driver_from_a_host(held: set[str]) -> None:
    world = in_force()
    want_other(world)
    world.volatile.held = held
    status = look(world)
    assert status.problem is not None
    assert (status.phase, status.problem.code) == (Phase.WAITING, Code.IMAGE_MISSING)
    assert is_up(world, facts.DRIVER)
    world.boot()
    look(world)
    assert is_up(world, facts.DRIVER)
    assert world.disk.current == facts.TREE.path
    # Once it is there it comes in, here where nothing is in its way.
    world.push()
    world.clock += 1000
    assert look(world).phase is Phase.READY
    assert is_up(world, OTHER)


def test_the_status_says_that_another_driver_works_meanwhile() -> None:
    world = in_force()
    want_other(world)
    said = text(world)
    assert f"Usable: with driver {facts.DRIVER} until {OTHER} takes its place\n" in said
    # Not where it does not.
    world.disk.trees.clear()
    world.disk.current = None
    world.boot()
    said = text(world)
    assert "Usable: no\n" in said


def test_what_is_missing_of_the_driver_that_stands_in_is_mended() -> None:
    world = in_force()
    want_other(world)
    look(world)
    world.volatile.nodes.clear()
    world.clock += 1000
    look(world)
    assert world.volatile.nodes == set(NODES)


@pytest.mark.parametrize("why", ["shadowed", "not cached", "a module is missing"])
def test_a_stand_in_that_is_not_whole_is_not_usable(why: str) -> None:
    world = in_force()
    want_other(world)
    assert look(world).usable
    if why == "shadowed":
        world.shadow = (Library("libnvidia-ml.so.1", "/usr/lib/libnvidia-ml.so.560.1", "560.1"),)
    elif why == "not cached":
        world.disk.cache.clear()
        world.volatile.held = {"nvidia"}
    else:
        del world.volatile.loaded["nvidia_uvm"]
        world.disk.refused[facts.TREE.path] = True
    world.unstartable.add(DRIVER_UNIT)
    assert not look(world).usable


def test_the_driver_that_stands_in_is_staged_for_the_next_os_too() -> None:
    world = in_force()
    want_other(world, "[reboot]\nmaximum = 100\n")
    world.push(BUILD)
    world.volatile.update, world.volatile.slot = DONE, SLOT
    status = look(world)
    assert status.plan is not None
    assert [stage.build.driver for stage in status.plan.stages] == [OTHER, facts.DRIVER]
    # It is the wanted one for which the reboot waits.
    assert not status.plan.verdict.go
    world.clock += 101
    look(world)
    world.boot(NEXT, KERNEL)
    assert is_up(world, facts.DRIVER)


def test_a_unit_that_cannot_start_late_does_not_hide_that_the_reboot_is_due() -> None:
    world = in_force()
    want_other(world)
    world.volatile.held = {"nvidia"}
    world.push()
    world.unstartable.add(PERSISTENCED)
    world.set_unit(PERSISTENCED, "inactive")
    world.set_unit(DRIVER_UNIT, "active")
    for _ in range(4):
        assert look(world).phase is Phase.PENDING_REBOOT
        world.clock += 60


def test_a_driver_in_use_is_no_fault_of_its_unit() -> None:
    world = in_force()
    want_other(world)
    world.volatile.held = {"nvidia"}
    world.push()
    assert look(world).phase is Phase.PENDING_REBOOT
    # Somebody stopped it, and what waits for it.
    world.set_unit(DRIVER_UNIT, "inactive")
    world.set_unit(KUBELET, "inactive")
    for _ in range(2):
        status = look(world)
    assert (status.phase, status.usable) == (Phase.PENDING_REBOOT, True)
    assert is_up(world, facts.DRIVER)


def test_a_unit_that_does_not_start_beside_the_stand_in_stops_no_download() -> None:
    world = in_force()
    want_other(world)
    world.boot()
    world.set_unit(PERSISTENCED, "inactive")
    world.set_unit(DRIVER_UNIT, "active")
    world.unstartable.add(PERSISTENCED)
    world.push()
    for _ in range(20):
        world.clock += 60
        look(world)
    assert f"/opt/nvidia/{OTHER}/{facts.OS}" in world.disk.trees
    assert world.volatile.loaded["nvidia"] == OTHER


def test_a_stand_in_that_is_half_loaded_lets_nobody_go() -> None:
    world = in_force()
    want_other(world)
    world.volatile.units.clear()
    world.volatile.nodes.clear()
    world.volatile.loaded = {"nvidia": facts.DRIVER}
    want_other(world, 'modules = ["nvidia", "nvidia-peermem"]\n')
    look(world)
    assert world.unit(DRIVER_UNIT).active != "active"
    assert world.unit(KUBELET).active != "active"


def test_a_driver_staged_for_the_next_os_stands_in_there_too() -> None:
    world = in_force()
    world.push(BUILD)
    world.volatile.update, world.volatile.slot = DONE, SLOT
    look(world)
    want_other(world)
    world.refusal = GONE
    world.boot(NEXT, KERNEL)
    assert is_up(world, facts.DRIVER)


def test_an_os_that_goes_back_finds_the_driver_it_had_though_another_is_configured_since() -> None:
    world = in_force()
    world.push(BUILD)
    world.volatile.update, world.volatile.slot = DONE, SLOT
    look(world)
    world.boot(NEXT, KERNEL)
    look(world)
    want_other(world)
    world.push()
    assert look(world).phase is Phase.READY
    assert is_up(world, OTHER)
    world.refusal = GONE
    world.boot(facts.OS, facts.KERNEL)
    assert is_up(world, facts.DRIVER)
    assert world.disk.current == facts.TREE.path
    status = look(world)
    assert status.phase is Phase.WAITING
    assert is_up(world, facts.DRIVER)


def test_a_host_that_never_had_a_driver_takes_no_other_than_the_wanted_one() -> None:
    world = World(facts.settings())
    world.put_tree(Build(OTHER, facts.OS, facts.KERNEL))
    world.boot()
    look(world)
    assert world.volatile.loaded == {}
    assert world.unit(KUBELET).active != "active"


def locked_down(world: World) -> None:
    """Secure Boot, and only the driver that was there before is signed."""
    world.lockdown = "integrity"
    world.disk.unsigned.add(f"/opt/nvidia/{OTHER}/{facts.OS}")


def fallen_back(world: World) -> bool:
    world.clock += 1000
    status = look(world)
    assert status.problem is not None
    return status.problem.code is Code.DRIVER_FALLBACK and is_up(world, facts.DRIVER)


def test_a_driver_that_this_kernel_never_takes_gives_way_at_the_first_boot() -> None:
    world = in_force()
    want_other(world)
    world.volatile.held = {"nvidia"}
    world.push()
    assert look(world).phase is Phase.PENDING_REBOOT
    locked_down(world)
    world.boot()
    assert fallen_back(world)
    assert "cannot come up" in str(look(world).problem)
    world.boot()
    assert is_up(world, facts.DRIVER)
    # Secure Boot is turned off.
    world.lockdown = "none"
    world.boot()
    assert look(world).phase is Phase.READY
    assert is_up(world, OTHER)


def test_a_signed_image_of_it_is_taken() -> None:
    world = in_force()
    want_other(world)
    world.volatile.held = {"nvidia"}
    world.push()
    look(world)
    locked_down(world)
    world.boot()
    assert fallen_back(world)
    world.disk.unsigned.clear()
    world.push(labels={**world.push().labels, "mended": "yes"})
    for _ in range(3):
        world.clock += 1000
        status = look(world)
    assert (status.phase, status.problem) == (Phase.READY, None)
    assert is_up(world, OTHER)


def test_a_configured_module_that_a_driver_has_not_is_forgiven_with_the_configuration() -> None:
    world = in_force()
    want_other(world, 'modules = ["nvidia", "nvidia-peermem"]\n')
    world.volatile.held = {"nvidia"}
    world.push()
    look(world)
    world.boot()
    # The one that was good has no such module either.
    assert world.volatile.loaded == {}
    want_other(world)
    world.clock += 1000
    assert look(world).phase is Phase.READY
    assert is_up(world, OTHER)


@pytest.mark.parametrize("why", ["once unreadable", "once refused"])
def test_what_once_failed_and_came_up_since_is_no_refusal(why: str) -> None:
    world = in_force()
    world.volatile.units.clear()
    if why == "once unreadable":
        world.disk.unread[facts.TREE.path] = Transient(Code.TREE_INVALID, "'nvidia.ko' cannot be read")
    else:
        world.lockdown = "integrity"
        world.disk.unsigned.add(facts.TREE.path)
    world.boot()
    assert world.volatile.loaded == {}
    world.disk.unread.clear()
    world.disk.unsigned.clear()
    world.clock += 1000
    assert look(world).phase is Phase.READY
    # It is as good as ever.
    want_other(world)
    look(world)
    world.boot()
    assert is_up(world, facts.DRIVER)


def test_a_stand_in_that_cannot_come_up_is_told_and_the_wanted_one_still_fetched() -> None:
    world = in_force()
    world.disk.unsigned.add(facts.TREE.path)
    want_other(world)
    world.lockdown = "integrity"
    world.boot()
    assert world.volatile.loaded == {}
    assert world.volatile.activation.attempts[0].problem.code is Code.LOCKDOWN
    world.push(replace(Build(OTHER, facts.OS, facts.KERNEL)))
    world.clock += 1000
    assert look(world).phase is Phase.READY
    assert is_up(world, OTHER)
