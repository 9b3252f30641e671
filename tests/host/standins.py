# SPDX-License-Identifier: Apache-2.0
"""The stand-ins of the host bed: their programs compiled, and module files for the stand-in kmod."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from tests.beds.common import cached, require, run_checked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOURCES = Path(__file__).parent / "standin"


def programs() -> Path:
    """A directory with `kmod` (static) and `uname.so`, compiled once."""

    def build(partial: Path) -> None:
        require("gcc", "libc6-dev")
        partial.mkdir()
        warn = ["-O2", "-Wall", "-Wextra", "-Wno-format-truncation"]
        run_checked(
            ["gcc", *warn, "-static", "-o", f"{partial}/kmod", f"{SOURCES}/kmod.c"], "compiling kmod.c"
        )
        shared = ["-shared", "-fPIC", "-o", f"{partial}/uname.so", f"{SOURCES}/uname.c"]
        run_checked(["gcc", *warn, *shared], "compiling uname.c")

    return cached("standins", [(SOURCES / name).read_text() for name in ("kmod.c", "uname.c")], build)


def module_file(
    name: str,
    *,
    kernel: str,
    version: str = "",
    depends: Sequence[str] = (),
    open_flavour: bool = True,
    fields: Mapping[str, str] | None = None,
) -> bytes:
    """An ELF file with the `.modinfo` of a kernel module and nothing else: what the stand-in kmod loads."""
    info = {
        "license": "Dual MIT/GPL" if open_flavour else "NVIDIA",
        "version": version,
        "srcversion": "0123456789ABCDEF0123456",
        "depends": ",".join(depends),
        "retpoline": "Y",
        "name": name.replace("-", "_"),
        "vermagic": f"{kernel} SMP preempt mod_unload modversions ",
        **(fields or {}),
    }
    modinfo = b"".join(
        f"{key}={value}\0".encode() for key, value in info.items() if value or key == "depends"
    )
    names = b"\0.modinfo\0.shstrtab\0"
    start = 64 + len(modinfo) + len(names)
    padding = -start % 8
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, start + padding, 0, 64, 0, 0, 64, 3, 2)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, 64, len(modinfo), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, 64 + len(modinfo), len(names), 0, 0, 1, 0)
    return identity + header + modinfo + names + bytes(padding) + sections
