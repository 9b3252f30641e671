# SPDX-License-Identifier: Apache-2.0
"""Facts to plan with: a host on which the driver is in force, for each case to spoil."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nvidiad.nouns.facts import DriverFacts, HostFacts, LinkerFacts, MountFacts
from nvidiad.nouns.model import Build, Flavour, Gpu, LoadedModule, ModuleFile, Release, Tree, UnitState
from nvidiad.nouns.value import replace
from nvidiad.thought import config

if TYPE_CHECKING:
    from nvidiad.thought.settings import Settings

DRIVER = "535.309.01"
OS = "3975.2.0"
KERNEL = "6.1.0-56-flatcar"
BUILD = Build(DRIVER, OS, KERNEL)
TREE = Tree(f"/opt/nvidia/{DRIVER}/{OS}", BUILD, Flavour.OPEN, ("libcuda.so.1",), firmware=True)
IMAGE = f"registry.example/nvidia-driver:{OS}-{DRIVER}"
LINKER_TEXT = "# Written by nvidiad; see nvidiad(8).\n/opt/nvidia/current/lib64\n"

_CONFIGURATION = f"""
[driver]
version = "{DRIVER}"
host-modules = ["i2c_core"]
[image]
repository = "registry.example/nvidia-driver"
[daemon]
retry-initial = 10
retry-maximum = 100
"""


def settings(more: str = "") -> Settings:
    """The settings of the tests, with another fragment on top."""
    made, faults = config.load([("base.toml", _CONFIGURATION), ("more.toml", more)])
    assert not faults
    return made


def module(name: str, *depends: str, kernel: str = KERNEL, signed: bool = False) -> ModuleFile:
    path = f"{TREE.path}/lib/modules/{kernel}/{name.replace('_', '-')}.ko"
    return ModuleFile(name, path, DRIVER, f"{kernel} SMP preempt mod_unload", depends, signed)


MODULES = (module("nvidia"), module("nvidia_modeset", "nvidia"), module("nvidia_uvm", "nvidia"))
LOADED = (
    LoadedModule("nvidia", DRIVER, 2, ("nvidia_modeset", "nvidia_uvm")),
    LoadedModule("nvidia_modeset", DRIVER, 0),
    LoadedModule("nvidia_uvm", DRIVER, 0),
)


def driver(**changes: Any) -> DriverFacts:
    """A host whose driver is in force."""
    facts = DriverFacts(
        release=Release("flatcar", OS),
        kernel=KERNEL,
        boot_id="b",
        lockdown="none",
        extensions=(),
        gpus=(Gpu("0000:01:00.0", "10de:20b5", "nvidia"),),
        trees=(TREE,),
        current=TREE.path,
        wanted_modules=MODULES,
        loaded=LOADED,
        mounts=MountFacts(None, usr_is_overlay=False, lib64_is_lib=False),
        linker=LinkerFacts(LINKER_TEXT, ()),
        firmware_path=f"{TREE.path}/lib/firmware",
        nodes_missing=(),
    )
    return replace(facts, **changes)


def unit(name: str, active: str = "active", **changes: Any) -> UnitState:
    made = UnitState(
        name=name,
        load="loaded",
        active=active,
        sub="",
        result="success",
        job=0,
        wanted=True,
        active_enter=100 if active == "active" else 0,
        inactive_enter=0,
        active_since=1_000_000_000,
    )
    return replace(made, **changes)


UNITS = (unit("nvidia.service"), unit("nvidia-persistenced.service"), unit("kubelet.service"))


def host(facts: DriverFacts | None = None, **changes: Any) -> HostFacts:
    """A host that is in order."""
    made = HostFacts(driver=facts or driver(), units=UNITS, gates=("kubelet.service",))
    return replace(made, **changes)


def bare(**changes: Any) -> DriverFacts:
    """The same host at its first boot: nothing of nvidiad is there."""
    return driver(
        **{
            "gpus": (Gpu("0000:01:00.0", "10de:20b5", None),),
            "trees": (),
            "current": None,
            "wanted_modules": (),
            "loaded": (),
            "linker": LinkerFacts(None, ("libcuda.so.1",)),
            "firmware_path": "",
            **changes,
        }
    )


def installed(**changes: Any) -> DriverFacts:
    """The same host with the tree on disk and nothing brought up."""
    return bare(**{"trees": (TREE,), "wanted_modules": MODULES, **changes})


DOWN = (
    unit("nvidia.service", "inactive"),
    unit("nvidia-persistenced.service", "inactive"),
    unit("kubelet.service", "inactive"),
)
