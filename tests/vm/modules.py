# SPDX-License-Identifier: Apache-2.0
"""Builds the stand-in kernel modules (`modules/*.c`) against a bed kernel's real headers."""

from __future__ import annotations

import shutil
import sys
from enum import StrEnum
from pathlib import Path

from tests.beds.common import cached, require, run_checked
from tests.vm.kernels import Kernel, kernels

SOURCES = Path(__file__).parent / "modules"
NAMES = ("nvidia", "nvidia-uvm", "nvidia-modeset")


class Fault(StrEnum):
    """Why a driver does not come up, though it fits its kernel."""

    NONE = ""
    REFUSES = "REFUSES"
    """nvidia ends its start with an error."""
    PANICS = "PANICS"
    """nvidia takes the kernel down."""


def build(kernel: Kernel, driver_version: str, fault: Fault = Fault.NONE) -> dict[str, Path]:
    """The modules of one driver for one kernel, by name, as stripped .ko files in the cache."""
    sources = {path.name: path.read_text() for path in sorted(SOURCES.iterdir())}

    def compile_all(partial: Path) -> None:
        # Debian builds its kernels with gcc 12 and its headers insist on it; objtool of kbuild needs libelf.
        require("gcc-12", "make", "libelf-dev", "kmod", "binutils")
        shutil.copytree(SOURCES, partial / "source")
        # Type information for BPF would want pahole and the kernel's own, and nobody here reads it.
        flags = [
            "-j2",
            f"NV_VERSION={driver_version}",
            f"NV_FAULT={fault}",
            "CONFIG_DEBUG_INFO_BTF_MODULES=",
        ]
        make = ["make", "-s", "-C", str(kernel.headers), f"M={partial / 'source'}", *flags, "modules"]
        run_checked(make, f"modules for {kernel.release}")
        for name in NAMES:
            built = partial / "source" / f"{name}.ko"
            run_checked(["strip", "--strip-debug", "-o", str(partial / f"{name}.ko"), str(built)], "strip")
        shutil.rmtree(partial / "source")

    folder = cached("vm-modules", [kernel.release, driver_version, fault, sources], compile_all)
    return {name: folder / f"{name}.ko" for name in NAMES}


if __name__ == "__main__":
    for each in (kernels().a, kernels().b):
        for path in build(each, sys.argv[1] if len(sys.argv) > 1 else "535.309.01").values():
            print(each.release, path)
