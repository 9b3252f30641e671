# SPDX-License-Identifier: Apache-2.0
"""Preflight as tables of named cases: facts in, a check out; and what activation makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.entries import FileEntry
from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Build, Flavour, Gpu, Kind, Memory, ModuleRules, Phase, Problem, Release
from nvidiad.nouns.upcoming import NextSystem
from nvidiad.nouns.value import replace
from nvidiad.thought import activation, choice, planner, preflight, staging
from nvidiad.thought.preflight import State
from tests.unit import facts as f
from tests.unit.world import KUBELET, World, manifest_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvidiad.nouns.facts import DriverFacts
    from nvidiad.nouns.model import Tree
    from nvidiad.thought.preflight import Check

OPEN, PROPRIETARY = Flavour.OPEN, Flavour.PROPRIETARY
A100, H100, GH200, B200, V100, K80, C2050 = "20b5", "2330", "2342", "2901", "1db6", "102d", "06d1"


def tree(driver: str = f.DRIVER, flavour: Flavour = OPEN, pci: Sequence[str] = (), **changes: Any) -> Tree:
    build = replace(f.BUILD, driver=driver)
    made = replace(f.TREE, build=build, flavour=flavour, pci=tuple(f"10de:{each}" for each in pci))
    return replace(made, **changes)


def gpus(*devices: str, bound: str | None = None) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(f"0000:0{number}:00.0", f"10de:{device}", bound) for number, device in enumerate(devices, 1)
    )


# -- which GPUs a driver serves

SWITCH = Gpu("0000:07:00.0", "10de:1af1", None, switch=True)
SERVED = {
    "it is on the list": (gpus(A100), tree(pci=[A100, H100]), State.PASSED, "", "serves 10de:20b5"),
    "all are on the list": (gpus(A100, H100, A100), tree(pci=[A100, H100]), State.PASSED, "", "10de:2330"),
    "no list, and nothing speaks against it": (gpus(A100), tree(), State.SKIPPED, "", "does not say"),
    "no GPU": ((), tree(pci=[A100]), State.SKIPPED, "", "no GPU"),
    "an NVSwitch is on no list": ((SWITCH,), tree(pci=[A100]), State.SKIPPED, "", "no GPU"),
    "an NVSwitch beside a GPU": ((*gpus(A100), SWITCH), tree(pci=[A100]), State.PASSED, "", "10de:20b5"),
    "a guest's is not ours to serve": (
        (*gpus(A100), *gpus(V100, bound="vfio-pci")),
        tree(pci=[A100]),
        State.PASSED,
        "",
        "10de:20b5",
    ),
    "not on the list, and no more is known: insmod tells": (
        gpus(B200),
        tree(pci=[A100, H100]),
        State.WARNING,
        "gpu-unsupported",
        "(10de:2901) may not be served by driver 535.309.01 (open): it is none of the devices that",
    ),
    "none of three is on the list": (
        gpus(B200, B200, B200),
        tree(pci=[A100]),
        State.WARNING,
        "gpu-unsupported",
        "the GPU at 0000:01:00.0 (10de:2901)",
    ),
    "none of three can be served": (
        gpus(V100, V100, V100),
        tree(pci=[A100]),
        State.FAILED,
        "flavour-wrong",
        "535.309.01 here are the open ones, like 2 more",
    ),
    "one cannot be served, the other is not on the list": (
        gpus(B200, V100),
        tree(pci=[A100]),
        State.WARNING,
        "flavour-wrong",
        "the GPU at 0000:02:00.0 (10de:1db6) needs the proprietary modules",
    ),
    "one of two is served": (
        gpus(A100, B200),
        tree(pci=[A100]),
        State.WARNING,
        "gpu-unsupported",
        "the GPU at 0000:02:00.0 (10de:2901)",
    ),
    "Volta, and a driver after its last branch": (
        gpus(V100),
        tree("590.48.01", PROPRIETARY, [A100]),
        State.FAILED,
        "gpu-unsupported",
        "is not served by driver 590.48.01: 580 is the last branch for it",
    ),
    "Volta, the same without a list": (
        gpus(V100),
        tree("590.48.01"),
        State.FAILED,
        "gpu-unsupported",
        "580 is the last branch",
    ),
    "Kepler": (gpus(K80), tree("535.1"), State.FAILED, "gpu-unsupported", "470 is the last branch"),
    "Kepler with its own branch": (gpus(K80), tree("470.256.02", PROPRIETARY), State.SKIPPED, "", "not say"),
    "Fermi": (gpus(C2050), tree("470.256.02"), State.FAILED, "gpu-unsupported", "390 is the last branch"),
    "Volta and open modules": (
        gpus(V100),
        tree(pci=[A100]),
        State.FAILED,
        "flavour-wrong",
        "needs the proprietary modules, and those of driver 535.309.01 here are the open ones",
    ),
    "Volta and open modules without a list": (
        gpus(V100),
        tree(),
        State.FAILED,
        "flavour-wrong",
        "open ones",
    ),
    "Volta and proprietary modules": (
        gpus(V100),
        tree("580.95.05", PROPRIETARY, [V100]),
        State.PASSED,
        "",
        "(proprietary) serves 10de:1db6",
    ),
    "Blackwell and proprietary modules": (
        gpus(B200),
        tree("570.86.15", PROPRIETARY, [A100]),
        State.FAILED,
        "flavour-wrong",
        "needs the open modules, and those of driver 570.86.15 here are the proprietary ones",
    ),
    "Grace Hopper and proprietary modules": (
        gpus(GH200),
        tree(flavour=PROPRIETARY),
        State.FAILED,
        "flavour-wrong",
        "needs the open modules",
    ),
    "Blackwell and open modules": (gpus(B200), tree("570.86.15", OPEN, [B200]), State.PASSED, "", B200),
    "Hopper takes either": (gpus(H100), tree(flavour=PROPRIETARY), State.SKIPPED, "", "does not say"),
    "a list is right about what it names": (gpus(V100), tree(pci=[V100]), State.PASSED, "", V100),
}


@pytest.mark.parametrize("name", SERVED)
def test_gpus_that_a_driver_serves(name: str) -> None:
    devices, on_disk, state, code, words = SERVED[name]
    check = preflight.served(devices, on_disk)
    assert (check.state, check.code) == (state, code), check.sentence
    assert words in check.sentence
    assert bool(check.remedy) is bool(code)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("Volta, and a driver after its last branch", "branch 580, with the proprietary modules"),
        ("Kepler", "branch 470."),
        ("Volta and open modules", "the image of driver 535.309.01 with the proprietary flavour"),
        ("Blackwell and proprietary modules", "the image of driver 570.86.15 with the open flavour"),
        ("not on the list, and no more is known: insmod tells", "a newer one for a new GPU"),
    ],
)
def test_the_remedy_names_what_serves_the_gpu(case: str, words: str) -> None:
    assert words in preflight.served(SERVED[case][0], SERVED[case][1]).remedy


def test_what_drives_a_gpu_serves_it_whatever_its_list_says() -> None:
    bound, on_disk = gpus(V100, bound="nvidia"), tree(pci=[A100])
    assert preflight.served(bound, on_disk, loaded=f.DRIVER).state is not State.FAILED
    # Another driver has it.
    assert preflight.served(bound, on_disk, loaded="570.86.15").state is State.FAILED
    assert preflight.served(gpus(V100), on_disk, loaded=f.DRIVER).state is State.FAILED


HERE = f"/opt/nvidia/{f.DRIVER}/{f.OS}"
SEEN_READY: dict[str, tuple[tuple[str, ...], tuple[Tree, ...], Flavour | None, bool]] = {
    "this tree": ((HERE,), (tree(path=HERE),), OPEN, True),
    "this driver on the OS before": ((f"/opt/nvidia/{f.DRIVER}/3900.0.0",), (), OPEN, True),
    "this driver before the last one": (
        ("/opt/nvidia/550.1/1", f"/opt/nvidia/{f.DRIVER}/1"),
        (),
        OPEN,
        True,
    ),
    "another driver": ((f"/opt/nvidia/550.1/{f.OS}",), (), OPEN, False),
    "this driver in the other flavour": ((HERE,), (tree(path=HERE),), PROPRIETARY, False),
    "an image that does not say its flavour": ((HERE,), (tree(path=HERE),), None, True),
    "nothing": ((), (tree(path=HERE),), OPEN, False),
    "what is no path of a tree": ((f.DRIVER,), (), OPEN, False),
}


@pytest.mark.parametrize("name", SEEN_READY)
def test_a_driver_that_was_seen_ready_here_is_tried_again(name: str) -> None:
    good, trees, flavour, ready = SEEN_READY[name]
    on_disk = replace(tree(), flavour=flavour)
    assert preflight.seen_ready(on_disk, good, trees) is ready
    check = preflight.served(gpus(V100), tree(), good=ready)
    assert (check.state, check.code) == (State.WARNING if ready else State.FAILED, "flavour-wrong")


def test_a_driver_known_good_is_exempt_by_activation_and_by_the_status_alike() -> None:
    good = (f"/opt/nvidia/{f.DRIVER}/3900.0.0",)
    facts = f.installed(gpus=gpus(V100), good=good)
    assert activation.activate(facts, f.settings()).problem is None
    assert [words.partition(" (")[0] for words in preflight.warnings(facts, f.TREE)] == [
        "the GPU at 0000:01:00.0"
    ]
    other = activation.activate(replace(facts, good=("/opt/nvidia/550.1/3900.0.0",)), f.settings()).problem
    assert other is not None and other.code is Code.FLAVOUR_WRONG


# -- one function, one table each


def check_of(checks: Sequence[Check] | Any, name: str) -> Check:
    return next(check for check in checks if check.name == name)


def changed(number: int, **changes: Any) -> tuple[Any, ...]:
    modules = list(f.MODULES)
    modules[number] = replace(modules[number], **changes)
    return tuple(modules)


SIGNED = tuple(replace(module, signed=True) for module in f.MODULES)
UNASKED = f.module("nvidia_drm", "nvidia_modeset")
ENFORCED, CLOSED = ModuleRules(signed_only=True), ModuleRules(closed=True)
CASES: dict[str, tuple[str, DriverFacts, Tree, State, str, str]] = {
    "everything fits: identity": (
        *("identity", f.installed(), f.TREE, State.PASSED, ""),
        f"driver {f.DRIVER} for '{f.OS}', kernel '{f.KERNEL}'",
    ),
    "a tree of another machine": (
        *("identity", f.installed(machine="x86_64"), tree(architecture="aarch64"), State.FAILED),
        *("image-mismatch", "is for 'aarch64', this host is 'x86_64'"),
    ),
    "a tree of this machine": (
        *("identity", f.installed(machine="x86_64"), tree(architecture="x86_64"), State.PASSED),
        *("", f.KERNEL),
    ),
    "a tree for another OS": (
        *("identity", f.installed(), tree(os_id="debian"), State.WARNING, "image-mismatch"),
        "made for the OS 'debian', this host runs 'flatcar'",
    ),
    "everything fits: modules": (
        *("modules", f.installed(), f.TREE, State.PASSED, ""),
        "nvidia, nvidia-uvm, nvidia-modeset can be read",
    ),
    "a configured module is missing": (
        *("modules", f.installed(wanted_modules=f.MODULES[:2]), f.TREE, State.FAILED, "tree-invalid"),
        "no module 'nvidia-uvm'",
    ),
    "modules that cannot be read": (
        "modules",
        f.installed(
            wanted_modules=(), tree_problem=Problem(Code.TREE_INVALID, "'x.ko' is broken", "Again.")
        ),
        *(f.TREE, State.FAILED, "tree-invalid", "'x.ko' is broken"),
    ),
    "everything fits: vermagic": (
        *("vermagic", f.installed(), f.TREE, State.PASSED, ""),
        f"3 modules are for kernel '{f.KERNEL}'",
    ),
    "a module of another kernel": (
        *("vermagic", f.installed(kernel="6.6.0"), f.TREE, State.FAILED, "vermagic-mismatch"),
        "this host runs kernel '6.6.0'",
    ),
    "no module was read": (
        *("vermagic", f.installed(wanted_modules=()), f.TREE, State.SKIPPED, ""),
        "no module could be read",
    ),
    "everything is of one driver": (
        *("versions", f.installed(), f.TREE, State.PASSED, ""),
        f"modules, libraries, firmware are of driver {f.DRIVER}",
    ),
    "a module of another driver": (
        *("versions", f.installed(wanted_modules=changed(1, version="535.261.03")), f.TREE),
        *(State.FAILED, "tree-invalid", "nvidia-modeset.ko' is of driver 535.261.03"),
    ),
    "a module with a version of its own": (
        *("versions", f.installed(wanted_modules=changed(1, version="2.4")), f.TREE, State.PASSED, ""),
        f.DRIVER,
    ),
    "a module without a version": (
        *("versions", f.installed(wanted_modules=changed(1, version="")), f.TREE, State.PASSED, ""),
        f.DRIVER,
    ),
    "a library of another driver": (
        *("versions", f.installed(), tree(strays=("lib64/libcuda.so.535.261.03",)), State.FAILED),
        *("tree-invalid", "a mixture: "),
    ),
    "no module needs the kernel's": (
        *("dependencies", f.installed(), f.TREE, State.PASSED, ""),
        "need none of the kernel's",
    ),
    "the kernel has what they need": (
        "dependencies",
        f.installed(wanted_modules=(f.module("nvidia", "drm"), *f.MODULES[1:])),
        *(f.TREE, State.PASSED, "", "has drm"),
    ),
    "the kernel has not what they need": (
        "dependencies",
        f.installed(wanted_modules=(f.module("nvidia", "drm"), *f.MODULES[1:]), absent=("drm",)),
        *(f.TREE, State.FAILED, "dependency-missing", "need 'drm', which kernel"),
    ),
    "modules in a circle": (
        "dependencies",
        f.installed(wanted_modules=(f.module("nvidia", "nvidia_uvm"), *f.MODULES[1:])),
        *(f.TREE, State.FAILED, "tree-invalid", "depend on each other"),
    ),
    "a kernel that takes all": (
        *("signature", f.installed(), f.TREE, State.PASSED, ""),
        "takes modules without a signature",
    ),
    "Secure Boot without lockdown": (
        *("signature", f.installed(rules=ModuleRules(secure_boot=True)), f.TREE, State.PASSED, ""),
        "though Secure Boot is on",
    ),
    "locked down": (
        *("signature", f.installed(lockdown="integrity"), f.TREE, State.FAILED, "lockdown"),
        "the kernel is locked down (integrity) and",
    ),
    "locked down by Secure Boot": (
        "signature",
        f.installed(lockdown="integrity", rules=ModuleRules(secure_boot=True)),
        *(f.TREE, State.FAILED, "lockdown", "locked down (integrity, Secure Boot is on) and"),
    ),
    "locked down, and the modules are signed": (
        *("signature", f.installed(lockdown="integrity", wanted_modules=SIGNED), f.TREE, State.PASSED, ""),
        "the modules are signed",
    ),
    "locked down, and the modules are in": (
        *("signature", f.driver(lockdown="integrity"), f.TREE, State.PASSED, ""),
        "the modules are loaded",
    ),
    "sig_enforce": (
        *("signature", f.installed(rules=ENFORCED), f.TREE, State.FAILED, "lockdown"),
        "takes signed modules only (module.sig_enforce) and",
    ),
    "sig_enforce, and the modules are signed": (
        *("signature", f.installed(rules=ENFORCED, wanted_modules=SIGNED), f.TREE, State.PASSED, ""),
        "the modules are signed",
    ),
    "no more modules": (
        *("signature", f.installed(rules=CLOSED, wanted_modules=SIGNED), f.TREE, State.FAILED, "lockdown"),
        "takes no more modules (kernel.modules_disabled)",
    ),
    "sig_enforce, and what is not signed is not asked for": (
        "signature",
        f.installed(rules=ENFORCED, wanted_modules=(*SIGNED, UNASKED)),
        *(f.TREE, State.PASSED, "", "the modules are signed"),
    ),
    "no more modules, and the one that is left is not asked for": (
        *("signature", f.driver(rules=CLOSED, wanted_modules=(*f.MODULES, UNASKED)), f.TREE, State.PASSED),
        *("", "takes modules without"),
    ),
    "no more modules, and none is due": (
        *("signature", f.driver(rules=CLOSED), f.TREE, State.PASSED, ""),
        "takes modules without",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fitness(name: str) -> None:
    check, facts, on_disk, state, code, words = CASES[name]
    found = check_of(preflight.fitness(facts, f.settings(), on_disk), check)
    assert (found.state, found.code) == (state, code), found.sentence
    assert words in found.sentence
    assert bool(found.remedy) is bool(code)


REFUSED = [name for name, case in CASES.items() if case[3] is State.FAILED]


@pytest.mark.parametrize("name", REFUSED)
def test_activation_refuses_what_preflight_refuses_before_any_step(name: str) -> None:
    _, facts, on_disk, _, code, words = CASES[name]
    plan = activation.activate(replace(facts, trees=(on_disk,)), f.settings())
    assert plan.steps == ()
    assert plan.problem is not None and plan.problem.code == code
    assert words.partition(" and")[0] in plan.problem.sentence


def test_activation_refuses_a_gpu_that_is_not_served_before_any_step() -> None:
    facts = f.installed(trees=(tree(pci=[H100]),), gpus=gpus(V100))
    plan = activation.activate(facts, f.settings())
    assert (plan.steps, plan.problem and plan.problem.code) == ((), Code.FLAVOUR_WRONG)
    assert activation.activate(f.installed(trees=(tree(pci=[A100]),)), f.settings()).problem is None
    unlisted = activation.activate(f.installed(trees=(tree(pci=[H100]),)), f.settings())
    assert unlisted.problem is None and unlisted.steps


def test_preflight_of_a_host_in_order_has_nothing_to_say() -> None:
    checks = list(preflight.fitness(f.driver(machine="x86_64"), f.settings(), f.TREE))
    assert [check.name for check in checks] == [
        *("identity", "served", "modules", "vermagic", "versions", "dependencies", "signature")
    ]
    assert {check.state for check in checks} <= {State.PASSED, State.SKIPPED}
    assert preflight.refusal(checks) is None
    assert preflight.warnings(f.driver(), f.TREE) == ()


# -- who has the GPU

RIVALS = {
    "nobody": (f.installed(), f.TREE, State.PASSED, "no other driver"),
    "nouveau": (
        f.installed(gpus=gpus(A100, bound="nouveau")),
        f.TREE,
        State.FAILED,
        "0000:01:00.0 is bound to 'nouveau'",
    ),
    "nova": (f.installed(gpus=gpus(A100, bound="nova_core")), f.TREE, State.FAILED, "'nova_core'"),
    "nouveau has a display card that this driver would not serve": (
        f.installed(gpus=(*gpus(A100), *gpus(K80, bound="nouveau"))),
        tree(pci=[A100]),
        State.PASSED,
        "no other driver",
    ),
    "nouveau has one that is not on the list, and another is": (
        f.installed(gpus=(*gpus(A100), Gpu("0000:09:00.0", "10de:2330", "nouveau"))),
        tree(pci=[A100]),
        State.PASSED,
        "no other driver",
    ),
    "nouveau has the only one, which is not on the list": (
        f.installed(gpus=(*gpus(A100, bound="vfio-pci"), Gpu("0000:09:00.0", "10de:2330", "nouveau"))),
        tree(pci=[A100]),
        State.FAILED,
        "0000:09:00.0 is bound to 'nouveau'",
    ),
    "nouveau is loaded and has none": (f.installed(rivals=("nouveau",)), f.TREE, State.WARNING, "may take"),
    "a guest has one of two": (
        f.installed(gpus=(*gpus(A100), Gpu("0000:09:00.0", "10de:20b5", "vfio-pci"))),
        f.TREE,
        State.PASSED,
        "0000:09:00.0 is for guests, the others free",
    ),
}


@pytest.mark.parametrize("rules", [CLOSED, ENFORCED], ids=["modules_disabled", "sig_enforce"])
def test_a_driver_in_force_stays_usable_when_the_kernel_is_closed_after_boot(rules: ModuleRules) -> None:
    facts = f.host(f.driver(rules=rules, wanted_modules=(*f.MODULES, UNASKED)))
    plan = planner.decide(facts, f.settings(), Memory(), 0.0)
    status = planner.assess(facts, f.settings(), plan, now=0.0)
    assert (status.phase, status.usable) == (Phase.READY, True), status.summary
    # A lost node is made again.
    lost = replace(facts.driver, nodes_missing=("/dev/nvidia0",))
    mended = activation.activate(lost, f.settings())
    assert mended.problem is None
    assert mended.steps[0].describe() == "make the device nodes"


@pytest.mark.parametrize("name", RIVALS)
def test_rivals(name: str) -> None:
    facts, on_disk, state, words = RIVALS[name]
    check = preflight.rivals(facts, on_disk)
    assert check.state is state
    assert words in check.sentence
    problem = activation.activate(replace(facts, trees=(on_disk,)), f.settings()).problem
    assert (problem is not None) is (state is State.FAILED)


@pytest.mark.parametrize("owner", ["vfio-pci", "nvgrace_gpu_vfio_pci"])
def test_a_host_that_gives_all_its_gpus_to_guests_is_left_alone_and_says_so(owner: str) -> None:
    facts = f.host(f.installed(gpus=(*gpus(A100, A100, bound=owner), SWITCH)), units=f.DOWN)
    plan = planner.decide(facts, f.settings(), Memory(), 0.0)
    status = planner.assess(facts, f.settings(), plan, now=0.0)
    assert status.phase is Phase.STANDING_BACK
    assert status.summary == f"every GPU of this host is bound to '{owner}', for guests; nvidiad stands back"
    # The gated units have nothing to wait for.
    assert [step.describe() for step in plan.steps] == [f"start {f.DOWN[0].name}"]
    coming = NextSystem("4081.2.0", "6.6.54-flatcar", "update_engine", staged=True)
    assert staging.stages(facts, f.settings(), Memory(), 0.0, coming) == ()
    assert staging.stages(f.host(f.installed()), f.settings(), Memory(), 0.0, coming) != ()


def test_one_gpu_that_comes_back_from_a_guest_is_enough() -> None:
    facts = f.installed(gpus=(*gpus(A100, bound="vfio-pci"), Gpu("0000:09:00.0", "10de:20b5", None)))
    assert choice.given_away(facts) == ""
    assert activation.activate(facts, f.settings()).problem is None
    assert choice.given_away(f.installed(gpus=())) == ""


def test_what_can_be_lived_with_is_a_warning_of_the_status() -> None:
    mixed = tree(pci=[A100])
    bound = (Gpu("0000:01:00.0", "10de:20b5", "nvidia"), Gpu("0000:02:00.0", f"10de:{B200}", None))
    facts = f.host(f.driver(gpus=bound, trees=(mixed,), rivals=("nouveau",)))
    plan = planner.decide(facts, f.settings(), Memory(), 0.0)
    status = planner.assess(facts, f.settings(), plan, now=0.0)
    assert status.phase is Phase.READY
    assert [warning.partition(" (")[0] for warning in status.warnings] == [
        "'nouveau' is loaded and may take a GPU that comes",
        "the GPU at 0000:02:00.0",
    ]


# -- over boots


def test_a_driver_that_no_longer_serves_the_gpu_gives_way_to_the_one_that_did() -> None:
    world = World(f.settings())
    world.device = f"10de:{V100}"
    old, new = world.wanted(), replace(world.wanted(), driver="590.48.01")
    for build in (old, new):
        path = world.put_tree(build)
        world.disk.trees[path] = replace(world.disk.trees[path], flavour=PROPRIETARY)
    world.boot()
    assert world.reconciler().look(world.settings).phase is Phase.READY
    world.settings = f.settings('[driver]\nversion = "590.48.01"\n')
    world.boot()
    before = list(world.effects)
    status = world.reconciler().look(world.settings)
    assert "insmod nvidia" not in world.effects[len(before) :]
    assert world.volatile.loaded["nvidia"] == f.DRIVER
    assert status.problem is not None and status.problem.code is Code.DRIVER_FALLBACK
    assert "580 is the last branch for it" in status.problem.sentence
    assert world.unit(KUBELET).active == "active"
    # Another card comes, which it serves.
    world.device = "10de:20b5"
    world.boot()
    assert world.reconciler().look(world.settings).phase is Phase.READY
    assert world.volatile.loaded["nvidia"] == "590.48.01"


def test_a_gpu_that_works_and_is_on_no_list_keeps_its_driver_over_the_boot_into_the_next_os() -> None:
    world = World(f.settings())
    world.pci = (f"10de:{H100}",)
    world.put_tree(world.wanted())
    world.boot()
    assert world.reconciler().look(world.settings).phase is Phase.READY
    path = world.put_tree(replace(world.wanted(), os_version="4081.2.0", kernel="6.6.54-flatcar"))
    world.boot("4081.2.0", "6.6.54-flatcar")
    assert world.reconciler().look(world.settings).phase is Phase.READY
    assert world.disk.current == path


PASSING: dict[str, tuple[dict[str, Any], dict[str, Any], Code, int]] = {
    "a module of the OS is missing": ({"absent": ("drm",)}, {"absent": ()}, Code.DEPENDENCY_MISSING, 1),
    "the kernel takes no more modules": ({"rules": CLOSED}, {"rules": ModuleRules()}, Code.LOCKDOWN, 0),
}
"""What is wrong, what mends it, its code, and how many trials of the tree are counted by then."""


@pytest.mark.parametrize("name", PASSING)
def test_what_may_be_over_with_the_next_boot_is_no_refusal_for_good(name: str) -> None:
    wrong, mended, code, counted = PASSING[name]
    world = World(f.settings())
    path = world.put_tree(world.wanted())
    on_disk = world.disk.trees[path]
    for key, value in wrong.items():
        setattr(world, key, value)
    world.boot()
    assert (world.disk.current, world.disk.linker) == (None, None), "something is exposed"
    assert [attempt.problem.code for attempt in world.volatile.activation.attempts] == [code]
    trials = [(attempt.reference, attempt.count) for attempt in world.disk.trials.attempts]
    assert trials == [(choice.trial_key(on_disk), counted)] * bool(counted), "another driver takes its place"
    for key, value in mended.items():
        setattr(world, key, value)
    world.boot()
    assert world.reconciler().look(world.settings).phase is Phase.READY
    assert world.disk.current == path
    assert world.disk.trials.attempts == (), "success does not forget"


def test_a_driver_that_needs_what_this_os_has_not_gives_way_to_the_one_that_does_not() -> None:
    world = World(f.settings())
    old, new = world.wanted(), replace(world.wanted(), driver="575.57.08")
    world.put_tree(old)
    world.boot()
    assert world.reconciler().look(world.settings).phase is Phase.READY
    path = world.put_tree(new)
    world.needy[path] = "drm_ttm_helper"
    world.settings = f.settings('[driver]\nversion = "575.57.08"\n')
    before = list(world.effects)
    for _ in range(world.settings.driver.attempts):
        world.boot()
        for _ in range(3):
            status = world.reconciler().look(world.settings)
            world.clock += 4000
    assert world.volatile.loaded["nvidia"] == f.DRIVER
    assert status.problem is not None and status.problem.code is Code.DRIVER_FALLBACK
    assert "need 'drm_ttm_helper', which kernel" in status.problem.sentence
    assert world.unit(KUBELET).active == "active"
    assert f"select {path}" not in world.effects[len(before) :]


# -- what a tree and an image say


def named(*paths: str) -> manifests.Manifest:
    entries = tuple(FileEntry(path, 0o644, 1, "0" * 64) for path in paths)
    return replace(manifest_of(Build(f.DRIVER, f.OS, f.KERNEL)), entries=entries)


STRAYS = {
    "libraries and firmware of its own": (
        (f"lib64/libcuda.so.{f.DRIVER}", f"lib/firmware/nvidia/{f.DRIVER}/gsp_ga10x.bin"),
        (),
    ),
    "a library of another driver": (
        (f"lib64/libcuda.so.{f.DRIVER}", "lib64/libnvidia-ml.so.535.261.03"),
        ("lib64/libnvidia-ml.so.535.261.03",),
    ),
    "one below lib64": (
        ("lib64/vdpau/libvdpau_nvidia.so.550.1",),
        ("lib64/vdpau/libvdpau_nvidia.so.550.1",),
    ),
    "firmware of another driver": (
        ("lib/firmware/nvidia/535.261.03/gsp_ga10x.bin",),
        ("lib/firmware/nvidia/535.261.03/gsp_ga10x.bin",),
    ),
    "versions of their own": (("lib64/libnvidia-egl-wayland.so.1.1.11", "lib64/libnvidia-nscq.so.2"), ()),
    "names without one": (("lib64/libcuda.so.1", "lib64/libcuda.so", "bin/nvidia-smi"), ()),
}


@pytest.mark.parametrize("name", STRAYS)
def test_files_that_are_named_after_another_driver(name: str) -> None:
    paths, strays = STRAYS[name]
    assert named(*paths).strays == strays


def test_an_image_says_which_devices_it_serves_and_how_many_files_it_is() -> None:
    manifest = replace(named("lib64/a", "lib64/b", "share/doc/c"), pci=("10de:20b5", "1234:0001"))
    labels = manifests.labels(manifest, "0" * 64)
    assert labels[manifests.PCI] == "20b5 1234:0001"
    assert manifests.devices(labels) == manifest.pci
    # Three files, lib64, share, share/doc, the tree's own directory and its manifest.
    assert labels[manifests.FILES] == "8"
    assert manifests.devices({}) == ()


LABELLED = {
    "nothing": ("", ()),
    "NVIDIA's without the vendor": ("20b5 10de:2330 1234:0001", ("10de:20b5", "10de:2330", "1234:0001")),
    "in capitals": ("20B5 10DE:1DB6", ("10de:20b5", "10de:1db6")),
    "nonsense among them says nothing": ("20b5 nonsense ../x 10de:2330", ()),
}


@pytest.mark.parametrize("name", LABELLED)
def test_devices_in_a_label(name: str) -> None:
    label, devices = LABELLED[name]
    assert manifests.devices({manifests.PCI: label}) == devices


def test_cuda_is_for_every_gpu() -> None:
    labels = manifests.labels(manifests.cuda("12.4.1", "525.60.13", "x86_64", ()), "0" * 64)
    assert manifests.PCI not in labels
    assert labels[f"{manifests.LABEL}kind"] == Kind.CUDA


def test_a_host_whose_os_is_known_by_no_name() -> None:
    facts = f.installed(release=Release("", f.OS))
    assert preflight.identity(tree(os_id="flatcar"), facts.machine, facts.release.id).state is State.PASSED
