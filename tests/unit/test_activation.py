# SPDX-License-Identifier: Apache-2.0
"""Activation as a table of named cases: facts in, steps or a problem out."""

from __future__ import annotations

import pytest

from nvidiad.nouns.errors import Code
from nvidiad.nouns.facts import DriverFacts, LinkerFacts, MountFacts
from nvidiad.nouns.model import Exposure, Gpu, Holder, LoadedModule, Release
from nvidiad.nouns.steps import LoadHostModules, LoadModule, step_name
from nvidiad.nouns.value import replace
from nvidiad.thought import activation, choice
from tests.unit import facts as f

FULL = (
    "select-tree configure-linker refresh-linker-cache set-firmware-path load-host-modules "
    "load-module load-module load-module make-nodes check-driver"
)

STEPS = {
    "everything is in force": (f.driver(), ""),
    "the tree is on disk and nothing else": (f.installed(), FULL),
    "no GPU": (f.bare(gpus=()), ""),
    "current names another tree": (
        f.driver(current="/opt/nvidia/1.0/2.0"),
        "select-tree refresh-linker-cache check-driver",
    ),
    "killed after the symlink": (
        f.installed(current=f.TREE.path),
        FULL.removeprefix("select-tree "),
    ),
    "killed after nvidia.ko": (
        f.driver(loaded=f.LOADED[:1], nodes_missing=("/dev/nvidia0",)),
        "load-host-modules load-module load-module make-nodes check-driver",
    ),
    "killed before the nodes": (f.driver(nodes_missing=("/dev/nvidia-uvm",)), "make-nodes check-driver"),
    "a library is not in the cache": (
        f.driver(linker=LinkerFacts(f.LINKER_TEXT, ("libcuda.so.1",))),
        "refresh-linker-cache check-driver",
    ),
    "the linker configuration was edited": (
        f.driver(linker=LinkerFacts("/nonsense\n", ())),
        "configure-linker refresh-linker-cache check-driver",
    ),
    "someone else's firmware path is kept": (f.driver(firmware_path="/lib/firmware/mine"), ""),
    "the firmware path of another tree of ours": (
        f.driver(firmware_path="/opt/nvidia/1.0/2.0/lib/firmware"),
        "set-firmware-path check-driver",
    ),
    "an overlay of a former configuration": (
        f.driver(mounts=MountFacts((f"{f.TREE.path}/lib64",), usr_is_overlay=False, lib64_is_lib=False)),
        "unmount-overlay refresh-linker-cache check-driver",
    ),
    "CoreOS: one lib directory": (
        f.driver(mounts=MountFacts(None, usr_is_overlay=False, lib64_is_lib=True)),
        "mount-overlay configure-linker refresh-linker-cache check-driver",
    ),
    "the overlay is that of another tree": (
        f.driver(
            mounts=MountFacts(
                ("/opt/nvidia/1.0/2.0/lib64", "/usr/lib64"), usr_is_overlay=False, lib64_is_lib=True
            ),
            linker=LinkerFacts("# Written by nvidiad; see nvidiad(8).\n/usr/lib64\n", ()),
        ),
        "unmount-overlay mount-overlay refresh-linker-cache check-driver",
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps(name: str) -> None:
    facts, wanted = STEPS[name]
    plan = activation.activate(facts, f.settings())
    assert plan.problem is None
    assert " ".join(step_name(step) for step in plan.steps) == wanted


PROBLEMS = {
    "no tree": (f.bare(), Code.TREE_MISSING, f"{f.OS}-{f.DRIVER}"),
    "a tree for another kernel": (
        f.installed(kernel="6.6.0-other"),
        Code.VERMAGIC_MISMATCH,
        "'6.6.0-other'",
    ),
    "a module for another kernel": (
        f.installed(wanted_modules=(f.module("nvidia", kernel="5.1.0"), *f.MODULES[1:])),
        Code.VERMAGIC_MISMATCH,
        "vermagic '5.1.0 SMP preempt mod_unload', this host runs kernel '6.1.0-56-flatcar'",
    ),
    "a configured module is not in the tree": (
        f.installed(wanted_modules=f.MODULES[:2]),
        Code.TREE_INVALID,
        "no module 'nvidia-uvm'",
    ),
    "nouveau has the card": (
        f.installed(gpus=(Gpu("0000:01:00.0", "10de:20b5", "nouveau"),)),
        Code.MODULE_FOREIGN,
        "bound to 'nouveau'",
    ),
    "another driver is loaded": (
        f.driver(loaded=(LoadedModule("nvidia", "470.1", 1),), current="/opt/nvidia/470.1/3975.2.0"),
        Code.DRIVER_MISMATCH,
        "driver 470.1 is loaded, 535.309.01 is wanted",
    ),
    "locked down": (f.installed(lockdown="integrity"), Code.LOCKDOWN, "locked down (integrity)"),
    "an OS without a version": (f.bare(release=Release("debian", "")), Code.NOT_CONFIGURED, "no version"),
    "modules in a circle": (
        f.installed(wanted_modules=(f.module("nvidia", "nvidia_uvm"), f.MODULES[1], f.MODULES[2])),
        Code.TREE_INVALID,
        "depend on each other",
    ),
    "Flatcar's extension": (
        f.bare(extensions=("nvidia-drivers-570",)),
        Code.OTHER_OWNER,
        "'nvidia-drivers-570'",
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_come_before_any_step(name: str) -> None:
    facts, code, words = PROBLEMS[name]
    plan = activation.activate(facts, f.settings())
    assert plan.steps == ()
    assert plan.problem is not None
    assert plan.problem.code is code
    assert words in plan.problem.sentence


def test_signed_modules_may_be_tried_under_lockdown() -> None:
    signed = tuple(replace(module, signed=True) for module in f.MODULES)
    plan = activation.activate(f.installed(lockdown="integrity", wanted_modules=signed), f.settings())
    assert plan.problem is None


def test_nothing_configured() -> None:
    from nvidiad.thought import config

    plan = activation.activate(f.driver(), config.load([])[0])
    assert plan.problem is not None and plan.problem.code is Code.NOT_CONFIGURED
    assert "driver.version and image.repository" in plan.problem.sentence


def test_modules_are_loaded_dependencies_first_with_their_parameters() -> None:
    shuffled = (
        f.module("nvidia_uvm", "nvidia", "drm"),
        f.module("nvidia_modeset", "nvidia", "video"),
        f.module("nvidia"),
    )
    plan = activation.activate(
        f.installed(wanted_modules=shuffled),
        f.settings("[driver.parameters]\nnvidia-uvm = ['uvm_disable_hmm=1']"),
    )
    loads = [step for step in plan.steps if isinstance(step, LoadModule)]
    assert loads[0].module.name == "nvidia"
    assert {load.module.name: load.parameters for load in loads}["nvidia_uvm"] == ("uvm_disable_hmm=1",)
    host = next(step for step in plan.steps if isinstance(step, LoadHostModules))
    assert host.required == ("drm", "video")
    assert host.optional == ("i2c_core",)


SPLIT = MountFacts(None, usr_is_overlay=False, lib64_is_lib=False)
ONE = replace(SPLIT, lib64_is_lib=True)
EXPOSURES = {
    "as configured": (Exposure.OVERLAY, replace(SPLIT, usr_is_overlay=True), Exposure.OVERLAY),
    "CoreOS": (Exposure.AUTO, ONE, Exposure.OVERLAY),
    "split lib and lib64": (Exposure.AUTO, SPLIT, Exposure.LDCONFIG),
    "/usr is an overlay already": (Exposure.AUTO, replace(ONE, usr_is_overlay=True), Exposure.LDCONFIG),
    "no lib64": (Exposure.AUTO, replace(ONE, lib64_exists=False), Exposure.LDCONFIG),
}


@pytest.mark.parametrize("name", EXPOSURES)
def test_exposure(name: str) -> None:
    wish, mounts, wanted = EXPOSURES[name]
    way, reason = activation.choose_exposure(wish, mounts)
    assert way is wanted
    assert reason


def test_deactivation_undoes_everything_in_reverse() -> None:
    overlaid = f.driver(mounts=MountFacts(("/x",), usr_is_overlay=False, lib64_is_lib=True))
    plan = activation.deactivate(overlaid, f.settings())
    assert [step.describe() for step in plan.steps] == [
        "unload nvidia_modeset",
        "unload nvidia_uvm",
        "unload nvidia",
        "remove the device nodes",
        "clear the firmware path",
        "take the overlay off '/usr/lib64'",
        "remove the linker configuration",
        "refresh the linker cache",
    ]


def test_deactivation_leaves_a_driver_in_use_whole() -> None:
    plan = activation.deactivate(f.driver(), f.settings(), [Holder(41, "trainer", "pod 7")])
    assert plan.steps == ()
    assert plan.problem is not None
    assert plan.problem.code is Code.MODULE_IN_USE
    assert plan.problem.sentence == "module 'nvidia' is in use by trainer (pid 41, pod 7)"


def test_deactivation_leaves_a_driver_whole_that_another_module_needs() -> None:
    facts = f.driver()
    loaded = tuple(replace(module, holders=(*module.holders, "gdrdrv")) for module in facts.loaded)
    plan = activation.deactivate(replace(facts, loaded=loaded), f.settings())
    assert plan.steps == ()
    assert plan.problem is not None
    assert plan.problem.sentence == "module 'nvidia' is in use by module gdrdrv"


def test_deactivation_of_a_host_that_has_nothing() -> None:
    facts: DriverFacts = f.bare(linker=LinkerFacts(None, ()))
    assert activation.deactivate(facts, f.settings()).steps == ()


def test_the_kernel_takes_the_place_of_an_os_version_that_does_not_name_it() -> None:
    build = choice.configured(f.driver(), f.settings("[image]\ntag = '{kernel}-{driver}'"))
    assert build.os_version == f.KERNEL
