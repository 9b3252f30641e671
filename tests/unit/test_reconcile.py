# SPDX-License-Identifier: Apache-2.0
"""Reconcile over a host in memory: it comes to the same end from everywhere, whoever dies on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.model import Attempt, Memory, Phase, Problem
from nvidiad.nouns.surroundings import GpuIdentity, Inventory, Surroundings, Word
from nvidiad.nouns.value import replace
from nvidiad.thought import backoff, cdi
from nvidiad.verbs.observer import observe
from tests.unit import facts
from tests.unit import world as worlds
from tests.unit.world import (
    CURRENT,
    DRIVER_UNIT,
    KUBELET,
    NODES,
    PERSISTENCED,
    Death,
    World,
    image_of,
    reference_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvidiad.nouns.plan import Status
    from nvidiad.verbs.reconcile import Reconciler

NEXT = ("4081.2.0", "6.6.54-flatcar")
OVER = Problem(Code.IMAGE_MISSING, "there was no such image", "", retry=True)
# Enough for every road of these tests; what takes longer does not come to an end.
LOOKS = 40


def make(more: str = "") -> World:
    return World(facts.settings(more))


def fresh(more: str = "") -> World:
    """A host at its first boot with the image in the registry; systemd has tried its units once."""
    world = make(more)
    world.push()
    world.boot()
    world.effects.clear()
    return world


def converge(world: World, daemon: Reconciler | None = None) -> Status:
    """Look as the daemon would: at once, and again whenever what failed is due."""
    daemon = daemon or world.reconciler()
    for _ in range(LOOKS):
        status = daemon.look(world.settings)
        if status.plan is None or status.plan.wait is None:
            return status
        world.clock += max(1.0, status.plan.wait)
    raise AssertionError(f"no end after {LOOKS} looks: {world.effects}")


def in_force(world: World, status: Status) -> None:
    assert status.phase is Phase.READY, status.summary
    assert world.volatile.loaded.keys() == {"nvidia", "nvidia_uvm", "nvidia_modeset"}
    assert world.volatile.nodes == set(NODES)
    assert [world.unit(name).active for name in (DRIVER_UNIT, PERSISTENCED, KUBELET)] == ["active"] * 3
    assert world.starts == [KUBELET]


# -- the road ---------------------------------------------------------------------------------------


def test_an_empty_host_comes_to_its_driver_in_one_look() -> None:
    world = fresh()
    daemon = world.reconciler()
    status = daemon.look(world.settings)
    in_force(world, status)
    digest = image_of(facts.BUILD).digest
    tree = facts.TREE.path
    parameters = "NVreg_ModifyDeviceFiles=0"
    assert [effect for effect in world.effects if effect != "remember"] == [
        f"pull {digest}",
        f"install {digest}",
        f"discard {digest}",
        "start nvidia.service",
        f"select {tree}",
        "configure linker",
        "ldconfig",
        f"firmware {tree}/lib/firmware",
        "modprobe i2c_core",
        f"insmod nvidia {parameters}",
        "insmod nvidia_uvm",
        "insmod nvidia_modeset",
        "make nodes",
        "start kubelet.service",
    ]


def test_a_host_that_is_in_order_is_left_alone() -> None:
    world = fresh()
    daemon = world.reconciler()
    daemon.look(world.settings)
    world.effects.clear()
    before = world.state()
    for each in (daemon, world.reconciler()):
        status = each.look(world.settings, forced=True)
        assert status.phase is Phase.READY
    assert world.effects == []
    assert world.state() == before


def test_a_reload_that_does_not_help_is_tried_again_later_and_told() -> None:
    world = fresh()
    daemon = world.reconciler()
    daemon.look(world.settings)
    inventory = Inventory(
        facts.DRIVER, facts.TREE.path, "", "x86_64", (GpuIdentity("0000:01:00.0", 0),), (), ()
    )
    # It goes by a file that says `enabled = false` by now, and the daemon does not know that yet.
    world.around = world.described = Surroundings(inventory)
    world.effects.clear()
    for _ in range(3):
        status = daemon.look(world.settings)
        assert status.phase is Phase.READY and status.plan is not None and status.plan.look
    assert world.effects.count("reload nvidia-cdi.service") == 1
    assert any("ended well" in warning for warning in status.warnings)
    # What helped is forgotten at once.
    world.described = Surroundings(inventory, Word(cdi.digest(inventory), digest="d"), "d")
    status = daemon.look(world.settings, forced=True)
    assert world.effects.count("reload nvidia-cdi.service") == 2
    assert (status.warnings, world.disk.memory.attempts) == ((), ())


def test_a_boot_with_the_tree_on_disk_needs_neither_registry_nor_engine() -> None:
    world = fresh()
    converge(world)
    world.refusal = Transient(Code.ENGINE_UNREACHABLE, "no engine")
    world.starts.clear()
    world.boot()
    world.effects.clear()
    in_force(world, world.reconciler().look(world.settings))
    assert not [effect for effect in world.effects if effect.startswith(("pull", "install", "insmod"))]


def test_a_gate_that_cannot_be_written_is_told_where_the_host_is_ready() -> None:
    world = fresh()
    world.disk.gates = ()
    refused = Permanent(Code.READ_ONLY, "writing drop-ins failed", "Mount it writable.")
    world.gateless = refused
    status = world.reconciler().look(world.settings)
    in_force(world, status)
    assert refused.sentence in status.warnings
    world.gateless = None
    assert world.reconciler().look(world.settings, forced=True).warnings == ()
    assert [*world.disk.gates] == [KUBELET]


def test_what_failed_beside_the_driver_is_over_when_somebody_else_has_done_it() -> None:
    world = fresh()
    world.disk.gates = ()
    world.gateless = Permanent(Code.READ_ONLY, "writing drop-ins failed", "Mount it writable.")
    assert world.reconciler().look(world.settings).warnings
    world.disk.gates = (KUBELET,)
    status = world.reconciler().look(world.settings)
    in_force(world, status)
    assert status.warnings == ()
    assert world.disk.memory.attempts == ()


def test_a_tree_that_could_not_be_removed_is_forgotten_once_it_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = fresh("[retention]\ntrees = 1\n")
    old = world.put_tree(replace(facts.BUILD, driver="470.1.1"))

    def busy(self: object, tree: str) -> None:
        raise Transient(Code.IMAGE_FAILED, f"removing '{tree}' failed")

    with monkeypatch.context() as patched:
        patched.setattr(worlds._Trees, "remove", busy)
        assert any(old in warning for warning in world.reconciler().look(world.settings).warnings)
    world.disk.trees.pop(old)
    status = world.reconciler().look(world.settings)
    in_force(world, status)
    assert status.warnings == ()


def test_another_os_gets_its_own_tree_and_the_old_one_stays() -> None:
    world = fresh()
    converge(world)
    world.boot(*NEXT)
    assert world.unit(KUBELET).active == "inactive"
    status = world.reconciler().look(world.settings)
    assert status.problem is not None and status.problem.code is Code.IMAGE_MISSING
    world.push()
    world.starts.clear()
    in_force(world, world.reconciler().look(world.settings, forced=True))
    assert len(world.disk.trees) == 2
    assert world.disk.memory.last_good == world.disk.current
    assert NEXT[0] in str(world.disk.current)


def test_every_status_on_the_way_is_published_and_the_last_is_returned() -> None:
    world = fresh()
    published: list[Status] = []
    daemon = world.reconciler()
    daemon._publish = published.append
    last = daemon.look(world.settings)
    assert published[0].phase is Phase.CONVERGING
    assert published[-1] is last
    assert [status.report is not None for status in published] == [False] + [True] * (len(published) - 1)


def test_who_is_told_that_a_driver_is_in_force_finds_it_remembered() -> None:
    """The document tells what is remembered as it is when a status is published."""
    world = fresh()
    converge(world)
    # As where somebody has mended by hand what failed.
    world.disk.memory = Memory(attempts=(Attempt(reference_of(world.wanted()), 1, 0.0, OVER),))
    found: list[tuple[Phase, Memory]] = []
    daemon = world.reconciler()
    daemon._publish = lambda status: found.append((status.phase, world.disk.memory))
    daemon.look(world.settings)
    phase, memory = found[-1]
    assert (phase, memory.last_good, memory.attempts) == (Phase.READY, world.disk.current, ())
    assert memory == world.disk.memory


def test_a_plan_that_does_not_come_to_an_end_is_given_up_and_told() -> None:
    world = fresh()
    converge(world)
    # Nothing that is done helps.
    world.volatile.nodes.clear()
    ports = world.ports()
    object.__setattr__(ports.units, "reload", lambda name, *, tell: world.effects.append(f"reload {name}"))
    daemon = world.reconciler()
    daemon._ports_for = lambda _: ports
    daemon.look(world.settings)
    assert world.effects.count(f"reload {DRIVER_UNIT}") == 10
    assert "the plan does not come to an end, looking again later" in world.log.events("warning")


def test_a_daemon_that_is_stopping_does_no_more_than_the_step_it_is_at() -> None:
    world = fresh()
    stops = False
    daemon = world.reconciler(stopping=lambda: stops)
    original = world.effect

    def effect(what: str, do: Callable[[], object]) -> None:
        nonlocal stops
        original(what, do)
        stops = stops or what.startswith("pull")

    world.effect = effect  # type: ignore[method-assign]
    daemon.look(world.settings)
    assert world.effects[-1].startswith("pull")
    assert world.disk.memory.attempts == ()


def test_what_fails_because_the_daemon_stops_is_not_remembered() -> None:
    world = fresh()
    stops = False

    def pull(_reference: str, _digest: str, _tell: object, *, gentle: bool) -> None:
        nonlocal stops
        stops = True
        raise Transient(Code.COMMAND_FAILED, "nvidiad is stopping")

    ports = world.ports()
    object.__setattr__(ports.images, "pull", pull)
    daemon = world.reconciler(stopping=lambda: stops)
    daemon._ports_for = lambda _: ports
    daemon.look(world.settings)
    assert stops
    assert world.disk.memory.attempts == ()


# -- what fails, what is remembered of it, and when it is forgiven ----------------------------------


FAILURES = (
    Transient(Code.REGISTRY_STALLED, "it does not answer"),
    Permanent(Code.CONFIG_INVALID, "no such reference"),
)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: str(failure.code))
def test_a_failure_is_remembered_counted_and_waited_out(failure: Failure) -> None:
    world = fresh()
    world.refusal = failure
    waits = []
    daemon = world.reconciler()
    for count in (1, 2, 3):
        status = daemon.look(world.settings)
        (attempt,) = world.disk.memory.attempts
        assert (attempt.reference, attempt.count) == (reference_of(facts.BUILD), count)
        assert status.phase is Phase.WAITING
        assert status.problem is not None and status.problem.code is failure.code
        assert status.plan is not None and status.plan.wait is not None
        assert status.next_try == world.clock + status.plan.wait
        waits.append(status.plan.wait)
        # Whoever wakes the daemon before that is told, and does not knock.
        effects = len(world.effects)
        world.clock += status.plan.wait / 2
        assert daemon.look(world.settings).phase is Phase.WAITING
        assert world.reconciler().look(world.settings).phase is Phase.WAITING
        assert len(world.effects) == effects
        assert world.disk.memory.attempts == (attempt,)
        world.clock = attempt.last + waits[-1] + 1
    assert waits[0] < waits[1] < waits[2]
    world.refusal = None
    in_force(world, daemon.look(world.settings))
    assert world.disk.memory.attempts == ()


def test_back_off_survives_a_reboot_of_the_host() -> None:
    world = fresh()
    world.refusal = FAILURES[0]
    world.reconciler().look(world.settings)
    world.refusal = None
    world.boot()
    world.effects.clear()
    status = world.reconciler().look(world.settings)
    assert status.phase is Phase.WAITING
    assert not [effect for effect in world.effects if effect.startswith("pull")]


def test_a_clock_that_is_set_back_holds_nothing() -> None:
    world = fresh()
    world.refusal = FAILURES[0]
    daemon = world.reconciler()
    daemon.look(world.settings)
    world.refusal = None
    world.clock -= 1_000_000
    in_force(world, daemon.look(world.settings))


def test_a_person_who_asks_makes_it_due_now() -> None:
    world = fresh()
    world.refusal = FAILURES[0]
    daemon = world.reconciler()
    daemon.look(world.settings)
    world.refusal = None
    in_force(world, daemon.look(world.settings, forced=True))


def test_asking_does_not_forgive_what_fails_again() -> None:
    world = fresh()
    world.refusal = FAILURES[0]
    daemon = world.reconciler()
    for count in (1, 2, 3):
        daemon.look(world.settings, forced=True)
        assert [attempt.count for attempt in world.disk.memory.attempts] == [count]


def test_an_image_that_cannot_be_installed_counts_though_it_was_pulled() -> None:
    world = fresh()
    world.push(faulty="'lib64/libcuda.so.1' is missing")
    daemon = world.reconciler()
    daemon.look(world.settings)
    world.clock += 1000
    status = daemon.look(world.settings)
    (attempt,) = world.disk.memory.attempts
    assert attempt.count == 2
    assert attempt.problem.code is Code.TREE_INVALID
    assert status.problem == attempt.problem
    assert world.disk.trees == {}
    world.push()
    in_force(world, converge(world, daemon))


def test_a_failed_activation_is_told_in_its_own_words() -> None:
    world = fresh()
    world.put_tree(facts.BUILD, faulty="a bit has flipped")
    status = world.reconciler().look(world.settings)
    assert status.problem is not None
    assert status.problem.code is Code.TREE_INVALID
    assert "a bit has flipped" in status.problem.sentence
    (attempt,) = world.disk.memory.attempts
    assert attempt.reference == f"activate {facts.BUILD}"
    assert world.unit(DRIVER_UNIT).active == "failed"
    assert world.unit(KUBELET).active == "inactive"


def test_the_same_news_is_logged_once() -> None:
    world = fresh()
    world.refusal = FAILURES[0]
    daemon = world.reconciler()
    for _ in range(5):
        daemon.look(world.settings)
    assert world.log.events("warning") == ["it does not answer"]


def test_the_tree_that_was_seen_ready_is_remembered() -> None:
    world = fresh()
    world.refusal = FAILURES[0]
    world.reconciler().look(world.settings)
    assert world.disk.memory.last_good == ""
    world.refusal = None
    converge(world)
    assert world.disk.memory.last_good == facts.TREE.path


# -- policy -----------------------------------------------------------------------------------------


def test_a_host_without_a_gpu_lets_everyone_go_and_fetches_nothing() -> None:
    world = make()
    world.push()
    world.gpus = False
    world.boot()
    status = converge(world)
    assert status.phase is Phase.NO_GPU
    assert world.unit(KUBELET).active == "active"
    assert world.disk.trees == {}
    world.gpus = True
    assert converge(world).phase is Phase.READY


def test_with_when_missing_start_the_kubelet_runs_and_the_driver_comes_later() -> None:
    world = fresh('[units]\nwhen-missing = "start"')
    assert world.unit(KUBELET).active == "active"
    world.refusal = FAILURES[0]
    status = world.reconciler().look(world.settings)
    assert status.phase is Phase.WAITING
    world.refusal = None
    assert converge(world).phase is Phase.READY
    assert world.starts == [KUBELET], "the kubelet was started again"


def test_another_driver_that_nothing_uses_is_swapped_at_once() -> None:
    world = fresh()
    converge(world)
    world.settings = facts.settings('[driver]\nversion = "550.1"')
    world.push()
    status = converge(world)
    in_force(world, status)
    assert world.volatile.loaded["nvidia"] == "550.1"
    assert world.effects.count("start kubelet.service") == 1


def test_another_driver_waits_for_the_reboot_with_its_tree_on_disk() -> None:
    world = fresh()
    converge(world)
    world.volatile.held = {"nvidia"}
    world.settings = facts.settings('[driver]\nversion = "550.1"')
    world.push()
    status = converge(world)
    assert status.phase is Phase.PENDING_REBOOT
    assert world.volatile.loaded["nvidia"] == facts.DRIVER
    assert world.disk.current == facts.TREE.path
    assert len(world.disk.trees) == 2
    world.starts.clear()
    world.boot()
    in_force(world, converge(world))
    assert world.volatile.loaded["nvidia"] == "550.1"


def test_gates_follow_the_configuration() -> None:
    world = fresh()
    converge(world)
    world.settings = facts.settings('[units]\ngated = ["slurmd.service"]')
    converge(world)
    assert world.disk.gates == ("slurmd.service",)
    assert world.unit(KUBELET).active == "active"


# -- whoever dies -----------------------------------------------------------------------------------

SPLIT = ""
OVERLAY = '[install]\nexposure = "overlay"'


def effects_of_the_road(more: str) -> int:
    world = fresh(more)
    converge(world)
    return len(world.effects)


def survive(world: World, look: Callable[[], object]) -> None:
    """Let it look, and whoever was to die, die: a new daemon, or another boot, takes up from there."""
    try:
        look()
    except Death:
        if world.dies == "host":
            world.boot()


@pytest.mark.parametrize("more", [SPLIT, OVERLAY], ids=["ldconfig", "overlay"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("dies", ["daemon", "activation", "host"])
def test_killed_at_any_effect_the_next_look_finishes_to_the_same_end(
    dies: str, more: str, *, after: bool
) -> None:
    undisturbed = fresh(more)
    converge(undisturbed)
    for number in range(effects_of_the_road(more)):
        world = fresh(more)
        world.dies, world.dies_at, world.dies_after = dies, number, after
        survive(world, lambda world=world: converge(world))  # type: ignore[misc]
        world.dies_at = None
        status = converge(world)
        assert status.phase is Phase.READY, (number, status.summary)
        assert world.state() == undisturbed.state(), number


@given(
    st.lists(
        st.tuples(st.sampled_from(["daemon", "activation", "host"]), st.integers(0, 25), st.booleans()),
        max_size=6,
    )
)
@profile(max_examples=150, deadline=None)
def test_however_often_it_is_killed_it_comes_to_the_same_end(deaths: list[tuple[str, int, bool]]) -> None:
    undisturbed = fresh()
    converge(undisturbed)
    world = fresh()
    for dies, number, after in deaths:
        world.dies, world.dies_at, world.dies_after = dies, number, after
        survive(world, lambda: converge(world))
    world.dies_at = None
    assert converge(world).phase is Phase.READY
    assert world.state() == undisturbed.state()


# -- whatever happens -------------------------------------------------------------------------------


def _forget_cache(world: World) -> None:
    world.disk.cache.clear()


def _lose_nodes(world: World) -> None:
    world.volatile.nodes.discard(NODES[1])


def _lose_current(world: World) -> None:
    world.disk.current = None


def _lose_overlay(world: World) -> None:
    world.volatile.overlay = None


def _lose_gates(world: World) -> None:
    world.disk.gates = ()


def _lose_trees(world: World) -> None:
    world.disk.trees.clear()
    world.disk.current = None


def _lose_memory(world: World) -> None:
    world.disk.memory = type(world.disk.memory)()


def _lose_engine(world: World) -> None:
    world.refusal = Transient(Code.ENGINE_UNREACHABLE, "no engine")


def _prune_engine(world: World) -> None:
    world.disk.pulled.clear()


def _mend_engine(world: World) -> None:
    world.refusal = None


def _empty_registry(world: World) -> None:
    world.registry.clear()


def _push_bad(world: World) -> None:
    world.push(module_kernel="9.9.9-other")


def _push_good(world: World) -> None:
    world.push()


def _other_os(world: World) -> None:
    world.boot(*(NEXT if world.release == facts.OS else (facts.OS, facts.KERNEL)))


def _other_driver(world: World) -> None:
    version = "550.1" if world.settings.driver.version == facts.DRIVER else facts.DRIVER
    world.settings = facts.settings(f'[driver]\nversion = "{version}"')


def _other_exposure(world: World) -> None:
    world.settings = replace(world.settings, install=facts.settings(OVERLAY).install)


def _stop_persistenced(world: World) -> None:
    world.set_unit(PERSISTENCED, "inactive")


def _stop_kubelet(world: World) -> None:
    world.set_unit(KUBELET, "inactive")


def _unplug(world: World) -> None:
    world.gpus = False


def _plug(world: World) -> None:
    world.gpus = True


def _reboot(world: World) -> None:
    world.boot()


def _clock_back(world: World) -> None:
    world.clock -= 100_000


EVENTS: tuple[Callable[[World], None], ...] = (
    *(_forget_cache, _lose_nodes, _lose_current, _lose_overlay, _lose_gates, _lose_trees, _lose_memory),
    *(_lose_engine, _prune_engine, _mend_engine, _empty_registry, _push_bad, _push_good, _other_os),
    *(
        _other_driver,
        _other_exposure,
        _stop_persistenced,
        _stop_kubelet,
        _unplug,
        _plug,
        _reboot,
        _clock_back,
    ),
)
_LOOK = st.tuples(st.booleans(), st.none() | st.integers(0, 20))
"""A look after the event (or not), and at which effect the daemon dies in it (or not)."""


@given(st.lists(st.tuples(st.sampled_from(EVENTS), _LOOK), max_size=12))
@profile(max_examples=300, deadline=None)
def test_whatever_happens_the_host_is_ready_once_everything_is_there_again(
    history: list[tuple[Callable[[World], None], tuple[bool, int | None]]],
) -> None:
    # The world itself watches that no kubelet starts early, that current names a tree and that what goes to
    # insmod fits the kernel.
    world = fresh()
    for happen, (looks, dies_at) in history:
        happen(world)
        if looks:
            world.dies, world.dies_at = "daemon", dies_at
            survive(world, lambda: world.reconciler().look(world.settings))
            world.dies_at = None
    world.gpus, world.refusal = True, None
    world.push()
    # Killed between a bad image's installer and the check after it, a tree stays that only a person removes.
    for path, tree in list(world.disk.trees.items()):
        if world.disk.module_kernels[path] != tree.build.kernel and path != world.disk.current:
            del world.disk.trees[path]
    world.boot()
    status = converge(world)
    assert status.phase is Phase.READY, status.summary
    assert world.unit(KUBELET).active == "active"
    wanted = world.wanted()
    assert world.volatile.loaded["nvidia"] == wanted.driver
    assert world.disk.trees[str(world.disk.current)].build == wanted
    assert world.disk.memory.last_good == world.disk.current
    assert not [a for a in world.disk.memory.attempts if not a.reference.startswith("start ")]
    # And then there is nothing left to do.
    world.effects.clear()
    assert world.reconciler().look(world.settings).phase is Phase.READY
    assert world.effects == []


def test_the_world_is_seen_through_the_ports_as_the_facts_of_the_planner_tests() -> None:
    """What these tests stand on: the host in memory looks as the hand-written facts do."""
    world = fresh()
    converge(world)
    seen = observe(world.ports(), world.settings)
    trees = tuple(replace(tree, identity="", installed=0.0) for tree in seen.driver.trees)
    assert (trees, seen.driver.current) == ((facts.TREE,), facts.TREE.path)
    assert seen.driver.linker == facts.driver().linker
    assert seen.driver.firmware_path == facts.driver().firmware_path
    assert seen.gates == (KUBELET,)
    assert CURRENT == "/opt/nvidia/current"
    assert backoff.find(world.disk.memory, reference_of(facts.BUILD)) is None
