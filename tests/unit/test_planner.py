# SPDX-License-Identifier: Apache-2.0
"""The planner as a table of named cases: what the daemon does on each kind of host, and how it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Attempt, Build, Holder, LoadedModule, Memory, Phase, Problem
from nvidiad.nouns.steps import StartUnit
from nvidiad.nouns.value import replace
from nvidiad.thought import planner
from tests.unit import facts as f

if TYPE_CHECKING:
    from nvidiad.nouns.facts import HostFacts
    from nvidiad.nouns.plan import Plan

NOW = 1000.0
MISSING = Problem(Code.IMAGE_MISSING, f"'{f.IMAGE}' is not in the registry", "push it", retry=True)


def tried(key: str, *, count: int = 1, last: float = NOW, problem: Problem = MISSING) -> Memory:
    return Memory((Attempt(key, count, last, problem),))


def decide(facts: HostFacts, more: str = "", memory: Memory | None = None) -> Plan:
    return planner.decide(facts, f.settings(more), memory or Memory(), NOW)


def steps(plan: Plan) -> list[str]:
    return [step.describe() for step in plan.steps]


PULL = [f"pull '{f.IMAGE}'", f"install '{f.BUILD}' from '{f.IMAGE}' and verify it"]
HOSTS = {
    "all is as it should be": (f.host(), Phase.READY, []),
    "first boot": (f.host(f.bare(), units=f.DOWN), Phase.CONVERGING, PULL),
    "the tree is there": (f.host(f.installed(), units=f.DOWN), Phase.CONVERGING, ["start nvidia.service"]),
    "loaded by hand, unit not active": (f.host(units=f.DOWN), Phase.CONVERGING, ["start nvidia.service"]),
    "something was taken away under us": (
        f.host(f.driver(nodes_missing=("/dev/nvidia0",))),
        Phase.CONVERGING,
        ["reload nvidia.service"],
    ),
    "persistence and kubelet were late": (
        f.host(units=(f.UNITS[0], *f.DOWN[1:])),
        Phase.READY,
        ["start nvidia-persistenced.service", "start kubelet.service"],
    ),
    "a kubelet that failed before the driver was up": (
        f.host(units=(*f.UNITS[:2], f.unit("kubelet.service", "failed", inactive_enter=99))),
        Phase.READY,
        ["start kubelet.service"],
    ),
    "a kubelet that a person stopped": (
        f.host(units=(*f.UNITS[:2], f.unit("kubelet.service", "inactive", inactive_enter=101))),
        Phase.READY,
        [],
    ),
    "a kubelet that nobody wants": (
        f.host(units=(*f.UNITS[:2], f.unit("kubelet.service", "inactive", wanted=False))),
        Phase.READY,
        [],
    ),
    "a kubelet that is not there": (
        f.host(units=(*f.UNITS[:2], f.unit("kubelet.service", "inactive", load="not-found"))),
        Phase.READY,
        [],
    ),
    "a kubelet whose start is under way": (
        f.host(units=(*f.UNITS[:2], f.unit("kubelet.service", "inactive", job=7))),
        Phase.READY,
        [],
    ),
    "the driver's unit is starting": (
        f.host(f.installed(), units=(f.unit("nvidia.service", "activating", job=7), *f.DOWN[1:])),
        Phase.CONVERGING,
        [],
    ),
    "no GPU": (f.host(f.bare(gpus=())), Phase.NO_GPU, []),
    "no GPU, units down": (f.host(f.bare(gpus=()), units=f.DOWN), Phase.NO_GPU, ["start nvidia.service"]),
    "no GPU, kubelet waits": (
        f.host(f.bare(gpus=()), units=(f.UNITS[0], *f.DOWN[1:])),
        Phase.NO_GPU,
        ["start kubelet.service"],
    ),
    "a gate is missing": (
        f.host(gates=()),
        Phase.READY,
        ["order kubelet.service after nvidia.service"],
    ),
    "Flatcar's extension has the GPU": (
        f.host(f.bare(extensions=("nvidia-drivers-570",)), units=f.DOWN),
        Phase.STANDING_BACK,
        ["start nvidia.service"],
    ),
}


@pytest.mark.parametrize("name", HOSTS)
def test_hosts(name: str) -> None:
    facts, phase, wanted = HOSTS[name]
    plan = decide(facts)
    assert steps(plan) == wanted
    assert plan.reason
    assert planner.assess(facts, f.settings(), plan, now=NOW).phase is phase


def test_an_image_that_is_missing_is_waited_for() -> None:
    facts = f.host(f.bare(), units=f.DOWN)
    plan = decide(facts, memory=tried(f.IMAGE))
    assert plan.steps == ()
    assert plan.problem == MISSING
    assert plan.wait is not None and 5 <= plan.wait <= 10
    status = planner.assess(facts, f.settings(), plan, now=NOW)
    assert status.phase is Phase.WAITING
    assert status.next_try == NOW + plan.wait


def test_it_is_tried_again_when_it_is_due() -> None:
    assert steps(decide(f.host(f.bare(), units=f.DOWN), memory=tried(f.IMAGE, last=NOW - 11))) == PULL


def test_a_clock_set_back_holds_nothing() -> None:
    memory = tried(f.IMAGE, last=NOW + 10_000_000)
    assert steps(decide(f.host(f.bare(), units=f.DOWN), memory=memory)) == PULL


def test_when_missing_start_lets_the_gated_units_go() -> None:
    more = "[units]\nwhen-missing = 'start'"
    assert steps(decide(f.host(f.bare(), units=f.DOWN), more)) == PULL
    assert steps(decide(f.host(f.bare(), units=f.DOWN), more, tried(f.IMAGE))) == ["start nvidia.service"]
    freed = f.host(f.bare(), units=(f.UNITS[0], *f.DOWN[1:]))
    assert steps(decide(freed, more, tried(f.IMAGE))) == ["start kubelet.service"]


def test_a_failed_activation_waits_with_its_own_words() -> None:
    told = Problem(Code.MODULE_REJECTED, "the kernel does not trust the key", "sign it")
    units = (f.unit("nvidia.service", "failed"), *f.DOWN[1:])
    facts = f.host(f.installed(), units=units, activation=told)
    plan = decide(facts, memory=tried(f"activate {f.BUILD}", problem=told))
    assert plan.steps == ()
    assert plan.problem == told


def test_another_driver_in_use_waits_for_the_reboot_and_names_who_uses_it() -> None:
    facts = f.host(
        f.driver(loaded=(LoadedModule("nvidia", "470.1", 3),), current="/opt/nvidia/470.1/3975.2.0"),
        holders=(Holder(42, "python3", "kubepods-pod1.slice"),),
    )
    plan = decide(facts)
    assert plan.steps == ()
    status = planner.assess(facts, f.settings(), plan, now=NOW)
    assert status.phase is Phase.PENDING_REBOOT
    assert "python3 (pid 42, kubepods-pod1.slice)" in status.summary


def test_the_other_drivers_tree_is_fetched_before_the_reboot() -> None:
    facts = f.host(f.driver(trees=(), wanted_modules=(), loaded=(LoadedModule("nvidia", "470.1", 3),)))
    assert steps(decide(facts)) == PULL


def test_a_gpu_that_came_while_the_unit_was_active_is_not_ready_before_its_driver_is_there() -> None:
    facts = f.host(f.bare(), units=(f.UNITS[0], f.DOWN[1], f.UNITS[2]))
    plan = decide(facts)
    assert steps(plan) == PULL
    assert planner.assess(facts, f.settings(), plan, now=NOW).phase is Phase.CONVERGING


def test_a_start_that_failed_does_not_stop_the_next_unit() -> None:
    facts = f.host(units=(f.UNITS[0], *f.DOWN[1:]))
    plan = decide(facts, memory=tried("start nvidia-persistenced.service"))
    assert plan.steps == (StartUnit("kubelet.service", wait=False),)


def test_several_gated_units_start_in_the_configured_order() -> None:
    more = "[units]\ngated = ['b.service', 'a.service']"
    down = (f.UNITS[0], f.UNITS[1], f.unit("b.service", "inactive"), f.unit("a.service", "inactive"))
    plan = decide(f.host(units=down, gates=("a.service", "b.service")), more)
    assert steps(plan) == ["start b.service", "start a.service"]


def test_ready_is_told_with_its_time() -> None:
    facts = f.host()
    status = planner.assess(facts, f.settings(), decide(facts), now=NOW)
    assert status.since == 1000.0


def test_warnings_name_units_that_failed() -> None:
    facts = f.host(units=(*f.UNITS[:2], f.unit("kubelet.service", "failed", inactive_enter=200)))
    status = planner.assess(facts, f.settings(), decide(facts), now=NOW)
    assert status.warnings == ("kubelet.service is failed",)


def test_the_plan_depends_on_nothing_but_its_arguments() -> None:
    facts = f.host(f.bare(), units=f.DOWN)
    assert decide(facts, memory=tried(f.IMAGE)) == decide(replace(facts), memory=tried(f.IMAGE))


def test_a_tree_whose_modules_do_not_fit_is_fetched_again_and_named_meanwhile() -> None:
    misfit = f.host(
        f.installed(wanted_modules=(f.module("nvidia", kernel="5.1.0"), *f.MODULES[1:])), units=f.DOWN
    )
    assert steps(decide(misfit)) == PULL
    waiting = decide(misfit, memory=tried(f.IMAGE))
    assert waiting.steps == ()
    assert waiting.problem is not None and waiting.problem.code is Code.VERMAGIC_MISMATCH
    assert planner.assess(misfit, f.settings(), waiting, now=NOW).phase is Phase.WAITING


def test_a_tree_that_could_not_be_removed_is_tried_again_without_an_event() -> None:
    old = replace(f.TREE, path="/opt/nvidia/470.1/2000.0.0", build=Build("470.1", "2000.0.0", "5.0"))
    facts = f.host(f.driver(trees=(f.TREE, old)))
    assert steps(decide(facts, "[retention]\ntrees = 1\n")) == [f"remove '{old.path}'"]
    plan = decide(facts, "[retention]\ntrees = 1\n", tried(f"remove {old.path}"))
    assert plan.steps == ()
    assert plan.wait is not None and plan.wait > 0
    assert planner.assess(facts, f.settings(), plan, now=NOW).phase is Phase.READY
