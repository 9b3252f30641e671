# SPDX-License-Identifier: Apache-2.0
"""Libraries of another driver than the loaded module: seen in real linker caches, told before NVML does."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns.errors import Code
from nvidiad.nouns.facts import LinkerFacts
from nvidiad.nouns.model import Library, LoadedModule, Memory, Phase, Tree
from nvidiad.nouns.steps import CheckDriver, StartUnit
from nvidiad.nouns.value import replace
from nvidiad.thought import activation, planner
from nvidiad.thought.document import document
from nvidiad.thought.render import text
from nvidiad.verbs.engine import DriverEngine
from nvidiad.verbs.observer import look_at_driver
from nvidiad.world import process
from nvidiad.world.linker import Linker
from tests.payload import elf
from tests.unit import facts as f
from tests.unit.trees import make_tree
from tests.unit.world import World

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from nvidiad.nouns.facts import DriverFacts
    from nvidiad.nouns.model import Problem
    from nvidiad.nouns.plan import Plan, Status

OTHER = "535.261.03"
PACKAGE = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
OURS = Library("libnvidia-ml.so.1", "/opt/nvidia/current/lib64/libnvidia-ml.so.1", f.DRIVER)
THEIRS = Library("libnvidia-ml.so.1", PACKAGE, OTHER)
CUDA = Library("libcuda.so.1", "/usr/lib/x86_64-linux-gnu/libcuda.so.1", OTHER)
OLD_TREE = Tree(f"/opt/nvidia/{OTHER}/{f.OS}", replace(f.BUILD, driver=OTHER), f.TREE.flavour)
LOADED_OTHER = (LoadedModule("nvidia", OTHER, 3),)


def linker(*first: Library) -> LinkerFacts:
    return LinkerFacts(f.LINKER_TEXT, (), first)


def problem(facts: DriverFacts) -> Problem | None:
    return activation.activate(facts, f.settings()).problem


# ---------------------------------------------------------------------------------------------------
# What is decided

CASES = {
    "the tree's own libraries": (f.driver(linker=linker(OURS)), None, ""),
    "no libraries in the cache": (f.driver(linker=linker()), None, ""),
    "a distribution's libraries come first": (
        f.driver(linker=linker(THEIRS)),
        Code.VERSION_MISMATCH,
        f"'libnvidia-ml.so.1' of driver {OTHER} from '{PACKAGE}', but driver {f.DRIVER} is loaded",
    ),
    "only libcuda is another": (
        f.driver(linker=linker(OURS, CUDA)),
        Code.VERSION_MISMATCH,
        f"'{CUDA.path}'",
    ),
    "nothing is loaded yet: the check at the end looks": (f.installed(linker=linker(THEIRS)), None, ""),
    "a module without a version": (
        f.driver(loaded=(LoadedModule("nvidia", None, 1), *f.LOADED[1:]), linker=linker(THEIRS)),
        Code.DRIVER_MISMATCH,
        "driver None is loaded",
    ),
    "no GPU": (f.driver(gpus=(), linker=linker(THEIRS)), None, ""),
    # The normal way to another driver: everything is of the old one until the reboot.
    "another driver waits for the reboot": (
        f.driver(
            trees=(OLD_TREE, f.TREE), current=OLD_TREE.path, loaded=LOADED_OTHER, linker=linker(THEIRS, CUDA)
        ),
        Code.DRIVER_MISMATCH,
        f"driver {OTHER} is loaded and in use, {f.DRIVER} is wanted",
    ),
    "it waits, and current has gone ahead": (
        f.driver(trees=(OLD_TREE, f.TREE), loaded=LOADED_OTHER, linker=linker(OURS)),
        Code.VERSION_MISMATCH,
        f"'current' names '{f.TREE.path}' of driver {f.DRIVER}, but driver {OTHER} is loaded",
    ),
    "it waits, and the linker has another": (
        f.driver(trees=(OLD_TREE, f.TREE), current=OLD_TREE.path, loaded=LOADED_OTHER, linker=linker(OURS)),
        Code.VERSION_MISMATCH,
        f"of driver {f.DRIVER} from '{OURS.path}', but driver {OTHER} is loaded",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_told(name: str) -> None:
    facts, code, words = CASES[name]
    found = problem(facts)
    assert (found.code if found else None) is code
    assert found is None or words in found.sentence


def test_what_may_mend_it_is_done_first() -> None:
    stale = f.driver(linker=LinkerFacts(f.LINKER_TEXT, ("libcuda.so.1",), (THEIRS,)))
    plan = activation.activate(stale, f.settings())
    assert plan.problem is None
    assert plan.steps[0].describe() == "refresh the linker cache"


def seen(units: tuple[Any, ...] = f.UNITS, first: Library = THEIRS, more: str = "") -> tuple[Plan, Status]:
    facts, settings = f.host(f.driver(linker=linker(first)), units=units), f.settings(more)
    plan = planner.decide(facts, settings, Memory(), 1000.0)
    return plan, planner.assess(facts, settings, plan, now=1000.0)


def test_the_status_says_it_and_no_gated_unit_is_started() -> None:
    plan, status = seen((*f.UNITS[:2], f.DOWN[2]))
    assert plan.steps == ()
    assert status.phase is Phase.BLOCKED
    made = document(status, version="1")
    assert made["exposure"] == {
        "way": "ldconfig",
        "reason": "/usr/lib and /usr/lib64 are split",
        "missing": [],
        "first": [{"name": "libnvidia-ml.so.1", "path": PACKAGE, "version": OTHER}],
    }
    said = text(made, now=1000.0, colour=False)
    assert f"✗ blocked - programs get 'libnvidia-ml.so.1' of driver {OTHER} from '{PACKAGE}'" in said
    assert "Usable: no" in said
    assert "Problem: version-mismatch" in said
    assert f"To do: Remove what brings '{PACKAGE}'" in said
    # With the right one first the kubelet is started.
    assert seen((*f.UNITS[:2], f.DOWN[2]), OURS)[0].steps == (StartUnit("kubelet.service", wait=False),)


def test_where_the_configuration_lets_gated_units_go_they_go() -> None:
    plan, status = seen((*f.UNITS[:2], f.DOWN[2]), more="[units]\nwhen-missing = 'start'\n")
    assert status.problem is not None and status.problem.code is Code.VERSION_MISMATCH
    assert plan.steps == (StartUnit("kubelet.service", wait=False),)


@pytest.mark.parametrize(("first", "code"), [(OURS, None), (THEIRS, Code.VERSION_MISMATCH)])
def test_the_last_step_of_activation_looks(first: Library, code: Code | None) -> None:
    world = World(f.settings())
    world.put_tree(f.BUILD)
    ports = world.ports().driver
    plan = activation.activate(look_at_driver(ports, world.settings), world.settings)
    assert isinstance(plan.steps[-1], CheckDriver)

    class Shadowed:
        """The linker of this host, which has a library of this driver first."""

        def facts(self, directory: str, libraries: tuple[str, ...]) -> LinkerFacts:
            return replace(ports.linker.facts(directory, libraries), first=(first,))

        def configure(self, words: str | None) -> None:
            ports.linker.configure(words)

        def refresh(self) -> None:
            ports.linker.refresh()

    engine = DriverEngine(replace(ports, linker=Shadowed()), world.log, seconds=lambda: world.clock)
    report = engine.execute(plan)
    assert (report.problem.code if report.problem else None) is code
    # Everything else has been done: once the library is gone there is nothing left to do.
    assert len(report.results) == len(plan.steps)


# ---------------------------------------------------------------------------------------------------
# What is seen: real caches, made by the real ldconfig

needs_ldconfig = pytest.mark.skipif(
    shutil.which("ldconfig", path=process.PATH) is None or os.uname().machine != "x86_64",
    reason="no ldconfig on this machine, or one that passes over our x86_64 libraries",
)
DIRECTORY = "/opt/nvidia/current/lib64"
FOREIGN = f"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{OTHER}"


def library(soname: str) -> bytes:
    return elf.library(soname, "stand-in")


def host(root: Path, order: str, *other: str) -> Linker:
    """A host with our tree, libraries of others, and directories in an order."""
    ours = f"opt/nvidia/{f.DRIVER}/{f.OS}/lib64"
    files: dict[str, bytes | str | None] = {
        "etc/ld.so.conf": order,
        "opt/nvidia/current": f"-> {f.DRIVER}/{f.OS}",
    }
    for name in ("libcuda", "libnvidia-ml"):
        files[f"{ours}/{name}.so.{f.DRIVER}"] = library(f"{name}.so.1")
        files[f"{ours}/{name}.so.1"] = f"-> {name}.so.{f.DRIVER}"
    for path in other:
        soname = f"{path.rpartition('/')[2].partition('.so.')[0]}.so.1"
        files[path] = library(soname)
        files[f"{path.rpartition('/')[0]}/{soname}"] = f"-> {path.rpartition('/')[2]}"
    make_tree(root, files)
    linker = Linker(root)
    linker.refresh()
    return linker


@needs_ldconfig
@pytest.mark.parametrize(
    ("order", "version"),
    [
        pytest.param(f"{DIRECTORY}\n/usr/lib/x86_64-linux-gnu\n", f.DRIVER, id="ours first"),
        pytest.param(f"/usr/lib/x86_64-linux-gnu\n{DIRECTORY}\n", OTHER, id="the package first"),
    ],
)
def test_the_order_of_the_configuration_decides(tmp_path: Path, order: str, version: str) -> None:
    found = host(tmp_path, order, FOREIGN).facts(DIRECTORY, ("libcuda.so.1", "libnvidia-ml.so.1"))
    # Both directories are in the cache: nothing is missing, and yet programs may get the other one.
    assert found.missing == ()
    assert {library.name: library.version for library in found.first} == {
        "libnvidia-ml.so.1": version,
        "libcuda.so.1": f.DRIVER,
    }


@needs_ldconfig
def test_a_cache_that_names_what_is_gone_says_nothing(tmp_path: Path) -> None:
    linker = host(tmp_path, f"/usr/lib/x86_64-linux-gnu\n{DIRECTORY}\n", FOREIGN)
    shutil.rmtree(tmp_path / "usr")
    assert [library.name for library in linker.facts(DIRECTORY, ()).first] == ["libcuda.so.1"]


@needs_ldconfig
def test_a_forward_compatibility_package_is_meant_to_be_newer(tmp_path: Path) -> None:
    place = "usr/local/cuda-12.4/compat"
    linker = host(tmp_path, f"/{place}\n{DIRECTORY}\n", f"{place}/libcuda.so.550.54.15")
    assert [library.name for library in linker.facts(DIRECTORY, ()).first] == ["libnvidia-ml.so.1"]


def test_a_host_without_a_cache(tmp_path: Path) -> None:
    assert Linker(tmp_path).facts(DIRECTORY, ()).first == ()
