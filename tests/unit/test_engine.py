# SPDX-License-Identifier: Apache-2.0
"""The engine over a host in memory: each step does its one thing, and nothing follows a failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns import steps
from nvidiad.nouns.compatibility import Compatibility, Entry
from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.model import Build, Kind, ModuleFile
from nvidiad.nouns.plan import Plan, Report
from nvidiad.nouns.steps import (
    CheckDriver,
    ConfigureLinker,
    HoldReboot,
    InstallTree,
    LoadHostModules,
    LoadModule,
    MakeNodes,
    MountOverlay,
    PullImage,
    RaiseDelay,
    RebootHost,
    RefreshLinkerCache,
    ReleaseReboot,
    ReloadUnit,
    RemoveNodes,
    RemoveTree,
    RenewTree,
    SelectTree,
    SetFirmwarePath,
    StartUnit,
    StopUnit,
    UnloadModule,
    UnmountOverlay,
    WriteGates,
    step_name,
)
from nvidiad.nouns.value import replace
from nvidiad.verbs.engine import DriverEngine, Engine
from tests.unit import facts
from tests.unit.world import NODES, World, image_of, manifest_of, reference_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvidiad.nouns.model import Progress
    from nvidiad.nouns.steps import Step

BUILD = facts.BUILD
TREE = facts.TREE.path
REFERENCE = reference_of(BUILD)
MODULE = ModuleFile(
    "nvidia", f"{TREE}/lib/modules/{facts.KERNEL}/nvidia.ko", facts.DRIVER, f"{facts.KERNEL} SMP", ()
)
CHECK = CheckDriver(facts.DRIVER, "/opt/nvidia/current/lib64", ("libcuda.so.1",))
FETCH = (PullImage(REFERENCE, BUILD), InstallTree(REFERENCE, BUILD))


@pytest.fixture
def world() -> World:
    return World(facts.settings())


def run(world: World, *todo: Step, stopping: Callable[[], bool] = lambda: False) -> Report:
    told: list[Progress] = []
    engine = Engine(world.ports(), world.log, seconds=lambda: world.clock, tell=told.append)
    return engine.execute(Plan("a test wants it", todo), stopping=stopping)


# -- one step, one thing ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    step: Step
    effects: tuple[str, ...]


CASES = (
    Case(SelectTree(TREE, "/opt/nvidia/current"), (f"select {TREE}",)),
    Case(MountOverlay(f"{TREE}/lib64", "/usr/lib64"), (f"overlay {TREE}/lib64 /usr/lib64",)),
    Case(UnmountOverlay("/usr/lib64"), ("unmount /usr/lib64",)),
    Case(ConfigureLinker("text"), ("configure linker",)),
    Case(RefreshLinkerCache(), ("ldconfig",)),
    Case(SetFirmwarePath("/f"), ("firmware /f",)),
    Case(LoadHostModules(("drm",), ("i2c_core",)), ("modprobe drm i2c_core",)),
    Case(LoadModule(MODULE, ("a=1", "b=2"), TREE), ("insmod nvidia a=1 b=2",)),
    Case(UnloadModule("nvidia"), ("rmmod nvidia",)),
    Case(MakeNodes(), ("make nodes",)),
    Case(RemoveNodes(), ("remove nodes",)),
    Case(WriteGates(("a.service", "b.service")), ("gates a.service b.service",)),
    Case(StartUnit("kubelet.service", wait=False), ("start kubelet.service",)),
    Case(StopUnit("kubelet.service"), ("stop kubelet.service",)),
    Case(RemoveTree(TREE), (f"remove {TREE}",)),
    Case(RaiseDelay(60.0), ("limit 60",)),
    Case(HoldReboot("why"), ("hold",)),
    Case(ReleaseReboot("why"), ("release",)),
    Case(RebootHost(), ("reboot",)),
    Case(PullImage(REFERENCE, BUILD), (f"pull {image_of(BUILD).digest}",)),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: step_name(case.step))
def test_a_step_does_its_one_thing(world: World, case: Case) -> None:
    world.put_tree(BUILD)
    world.push()
    world.disk.gates = ()
    report = run(world, case.step)
    assert report.problem is None
    assert world.effects == list(case.effects)
    assert world.log.events("info") == ["done"]


def test_every_step_there_is_has_a_case() -> None:
    here = {type(case.step) for case in CASES}
    elsewhere = {CheckDriver, InstallTree, ReloadUnit, RenewTree}
    assert {step.__name__ for step in here | elsewhere} == {
        name
        for name, thing in vars(steps).items()
        if isinstance(thing, type) and hasattr(thing, "describe") and thing.__module__ == steps.__name__
    }


def test_the_driver_unit_is_started_and_reloaded(world: World) -> None:
    world.put_tree(BUILD)
    report = run(world, StartUnit("nvidia.service"))
    assert report.problem is None
    assert world.unit("nvidia.service").active == "active"
    world.volatile.nodes.clear()
    assert run(world, ReloadUnit("nvidia.service")).problem is None
    assert world.volatile.nodes == set(NODES)


# -- order, and the first failure -------------------------------------------------------------------


def test_steps_are_done_in_order_and_each_has_its_seconds(world: World) -> None:
    world.put_tree(BUILD)
    times = iter([10.0, 10.5, 20.0, 23.0])
    engine = DriverEngine(world.ports().driver, world.log, seconds=lambda: next(times))
    report = engine.execute(Plan("", (MakeNodes(), RefreshLinkerCache())))
    assert world.effects == ["make nodes", "ldconfig"]
    assert [result.seconds for result in report.results] == [0.5, 3.0]
    assert [fields["seconds"] for _, _, fields in world.log.lines] == [0.5, 3.0]
    assert [fields["step"] for _, _, fields in world.log.lines] == ["make-nodes", "refresh-linker-cache"]


def test_nothing_is_done_after_the_first_step_that_fails(world: World) -> None:
    world.refusal = Transient(Code.REGISTRY_STALLED, "no answer", "wait")
    report = run(world, MakeNodes(), PullImage(REFERENCE, BUILD), RefreshLinkerCache())
    assert world.effects == ["make nodes"]
    assert [result.problem is None for result in report.results] == [True, False]
    assert report.problem is not None
    assert (report.problem.code, report.problem.sentence, report.problem.remedy, report.problem.retry) == (
        Code.REGISTRY_STALLED,
        "no answer",
        "wait",
        True,
    )
    level, event, fields = world.log.lines[-1]
    assert (level, event, fields["code"], fields["step"]) == (
        "error",
        "failed",
        "registry-stalled",
        "pull-image",
    )
    assert "no answer" in str(fields["what"])


def test_no_step_is_begun_once_the_daemon_stops(world: World) -> None:
    asked = iter([False, True])
    report = run(world, MakeNodes(), RefreshLinkerCache(), stopping=lambda: next(asked))
    assert world.effects == ["make nodes"]
    assert len(report.results) == 1
    assert report.problem is None


def test_what_is_no_failure_is_not_taken_for_one(world: World) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    world.effect = lambda what, do: broken()  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        run(world, MakeNodes())


@pytest.mark.parametrize(
    "step",
    [*FETCH, WriteGates(()), StartUnit("x"), ReloadUnit("x")],
    ids=step_name,
)
def test_activation_refuses_what_it_has_no_ports_for(world: World, step: Step) -> None:
    engine = DriverEngine(world.ports().driver, world.log, seconds=lambda: 0.0)
    report = engine.execute(Plan("", (step,)))
    assert report.problem is not None
    assert report.problem.code is Code.INTERNAL
    assert world.effects == []


# -- installing: nothing of a bad image stays, and nothing but what was pulled is run ---------------


def test_an_image_is_pulled_and_its_tree_is_there(world: World) -> None:
    image = world.push()
    report = run(world, *FETCH)
    assert report.problem is None
    assert world.effects == [f"{what} {image.digest}" for what in ("pull", "install", "discard")]
    assert list(world.disk.trees) == [TREE]


def test_what_was_pulled_is_what_is_run_although_the_tag_moves_meanwhile(world: World) -> None:
    pulled = world.push()
    ports = world.ports()
    engine = Engine(ports, world.log, seconds=lambda: 0.0, tell=lambda _: None)
    engine.perform(FETCH[0])
    moved = world.push(exit_problem=Permanent(Code.MANIFEST_INVALID, "another image"))
    assert moved.digest != pulled.digest
    engine.perform(FETCH[1])
    assert world.effects == [f"{what} {pulled.digest}" for what in ("pull", "install", "discard")]


def test_a_tree_is_renewed_as_soon_as_its_tag_names_another_image(world: World) -> None:
    first = world.push(refused=True)
    world.put_tree(BUILD, identity=first.digest, refused=True)
    step = RenewTree(REFERENCE, BUILD, TREE, first.digest)
    report = run(world, step)
    assert report.problem is not None
    assert "still is the image" in report.problem.sentence
    assert world.effects == []
    mended = world.push()
    assert run(world, step).problem is None
    assert world.disk.trees[TREE].identity == mended.digest


def labels(**changes: str) -> dict[str, str]:
    right = manifests.labels(manifest_of(BUILD), "0" * 64)
    return right | {f"io.nvidiad.{key.replace('_', '.')}": value for key, value in changes.items()}


@pytest.mark.parametrize(
    ("found", "code", "word"),
    [
        ({}, Code.IMAGE_FOREIGN, "not a driver image"),
        ({"io.nvidiad.driver": facts.DRIVER}, Code.IMAGE_FOREIGN, "not a driver image"),
        (labels(schema="2"), Code.MANIFEST_INVALID, "'2'"),
        (labels(driver="999.1"), Code.IMAGE_MISMATCH, "driver '999.1'"),
        (labels(os_version="9999.9.9"), Code.IMAGE_MISMATCH, "OS version '9999.9.9'"),
        (labels(kernel="9.9.9"), Code.IMAGE_MISMATCH, "kernel '9.9.9'"),
        (labels(product="grid"), Code.IMAGE_MISMATCH, "product 'grid'"),
    ],
    ids=lambda value: str(value) if isinstance(value, Code) else "",
)
def test_the_labels_are_checked_before_the_installer_runs(
    world: World, found: dict[str, str], code: Code, word: str
) -> None:
    image = world.push(labels=found)
    report = run(world, *FETCH)
    assert report.problem is not None
    assert report.problem.code is code
    assert word in report.problem.sentence
    assert world.effects == [f"pull {image.digest}"], "its installer has run"
    assert world.disk.trees == {}


def test_a_tree_that_does_not_verify_is_removed(world: World) -> None:
    world.push(faulty="'lib64/libcuda.so.1' is missing")
    report = run(world, *FETCH)
    assert report.problem is not None
    assert report.problem.code is Code.TREE_INVALID
    assert world.disk.trees == {}
    assert world.effects[-1] == f"remove {TREE}"


def test_modules_of_another_kernel_than_the_image_says_are_removed_and_both_are_named(world: World) -> None:
    world.push(module_kernel="9.9.9-other")
    report = run(world, *FETCH)
    assert report.problem is not None
    assert report.problem.code is Code.VERMAGIC_MISMATCH
    assert "9.9.9-other SMP" in report.problem.sentence
    assert facts.KERNEL in report.problem.sentence
    assert world.disk.trees == {}


def test_labels_that_lie_are_found_out_by_the_tree(world: World) -> None:
    """The image says what is wanted; its installer lays down the tree of another kernel."""
    other = replace(BUILD, kernel="9.9.9-other")
    world.registry[REFERENCE] = replace(image_of(other), labels=labels())
    report = run(world, *FETCH)
    assert report.problem is not None
    assert report.problem.code is Code.IMAGE_MISMATCH
    assert world.disk.trees == {}


def test_an_installer_that_fails_leaves_nothing_to_verify(world: World) -> None:
    world.push(exit_problem=Transient(Code.DISK_FULL, "not enough room"))
    report = run(world, *FETCH)
    assert report.problem is not None
    assert report.problem.code is Code.DISK_FULL
    assert world.disk.trees == {}


def test_no_module_is_loaded_from_a_file_that_has_changed(world: World) -> None:
    world.put_tree(BUILD, faulty="a bit has flipped")
    report = run(world, LoadModule(MODULE, (), TREE))
    assert report.problem is not None
    assert report.problem.code is Code.TREE_INVALID
    assert world.effects == []


# -- the check at the end ---------------------------------------------------------------------------


def test_a_driver_in_force_passes_the_check(world: World) -> None:
    world.put_tree(BUILD)
    run(world, StartUnit("nvidia.service"))
    assert run(world, CHECK).problem is None


@pytest.mark.parametrize(
    ("loaded", "nodes", "cached", "code", "word"),
    [
        ({}, NODES, True, Code.DRIVER_MISMATCH, "None"),
        ({"nvidia": "470.1"}, NODES, True, Code.DRIVER_MISMATCH, "470.1"),
        ({"nvidia": facts.DRIVER}, NODES[1:], True, Code.EXPOSURE_FAILED, "/dev/nvidiactl"),
        ({"nvidia": facts.DRIVER}, NODES, False, Code.EXPOSURE_FAILED, "libcuda.so.1"),
    ],
)
def test_what_is_not_as_wanted_does_not_pass_the_check(
    world: World, loaded: dict[str, str], nodes: tuple[str, ...], *, cached: bool, code: Code, word: str
) -> None:
    world.disk.current = world.put_tree(BUILD)
    world.disk.cache = {TREE} if cached else set()
    world.volatile.loaded, world.volatile.nodes = loaded, set(nodes)
    problem = run(world, CHECK).problem
    assert problem is not None
    assert problem.code is code
    assert word in problem.sentence


def test_a_host_module_that_is_absent_is_passed_over_and_told(world: World) -> None:
    world.host_modules = set()
    assert run(world, LoadHostModules(("drm",), ("i2c_core",))).problem is None
    assert world.log.events("warning") == ["host module could not be loaded, trying the driver anyway"]
    assert world.log.events("debug") == ["optional host module is absent"]


# -- an image that nobody can build -----------------------------------------------------------------

ERROR = "nv-pci.c:165: error: too few arguments to function 'pci_resize_resource'"


def listed(state: str, **changes: str) -> Compatibility:
    release = ("flatcar", facts.OS, "stable", "x86_64", facts.KERNEL)
    entry = Entry(*release, facts.DRIVER, "open", "", str(BUILD), state, reason=ERROR)
    return Compatibility("2026-11-27T00:00:00Z", (replace(entry, **changes),))


@pytest.mark.parametrize(
    ("known", "code", "word"),
    [
        pytest.param(listed("unbuildable"), Code.IMAGE_UNBUILDABLE, ERROR, id="unbuildable"),
        pytest.param(listed("missing"), Code.IMAGE_MISSING, REFERENCE, id="not built yet"),
        pytest.param(
            listed("unbuildable", tag="other"), Code.IMAGE_MISSING, REFERENCE, id="another is unbuildable"
        ),
        pytest.param(
            listed("unbuildable", architecture="aarch64"),
            Code.IMAGE_MISSING,
            REFERENCE,
            id="unbuildable for another architecture",
        ),
        pytest.param(None, Code.IMAGE_MISSING, REFERENCE, id="no list"),
        pytest.param(
            Transient(Code.REGISTRY_AUTH, "no"), Code.IMAGE_MISSING, REFERENCE, id="a list that is refused"
        ),
    ],
)
def test_a_missing_image_says_why_where_the_list_knows(
    world: World, known: Compatibility | Failure | None, code: Code, word: str
) -> None:
    world.listed = known
    problem = run(world, *FETCH).problem
    assert problem is not None
    assert (problem.code, problem.retry) == (code, True)
    assert word in problem.sentence
    assert facts.OS in problem.sentence
    assert len(world.log.events("debug")) == isinstance(known, Failure)


def test_an_image_that_is_there_is_pulled_whatever_the_list_says(world: World) -> None:
    world.listed = listed("unbuildable")
    world.push()
    assert run(world, *FETCH).problem is None


def test_the_list_tells_nothing_of_cuda(world: World) -> None:
    world.listed = listed("unbuildable", tag="12.4.1")
    step = PullImage("registry.example/cuda:12.4.1", Build("12.4.1", "", "", kind=Kind.CUDA))
    problem = run(world, step).problem
    assert problem is not None
    assert problem.code is Code.IMAGE_MISSING
