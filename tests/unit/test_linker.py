# SPDX-License-Identifier: Apache-2.0
"""Linker: our configuration file and real caches, made by the real ldconfig below a root of its own."""

from __future__ import annotations

import shutil
import struct
from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.facts import LinkerFacts
from nvidiad.world import process
from nvidiad.world.linker import Linker
from tests.unit.trees import calls, fake_program, make_tree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

needs_ldconfig = pytest.mark.skipif(
    shutil.which("ldconfig", path=process.PATH) is None, reason="no ldconfig on this machine"
)
CONFIGURATION = "etc/ld.so.conf.d/nvidiad.conf"
DIRECTORY = "/opt/nvidia/current/lib64"
MACHINE_X86_64 = 62


def library(soname: str) -> bytes:
    """A shared library as far as ldconfig looks: its ELF header, where it is loaded, and its SONAME."""
    strings = b"\0" + soname.encode() + b"\0"
    headers = 64 + 2 * 56
    at = headers + 4 * 16
    entries: Sequence[tuple[int, int]] = ((14, 1), (5, at), (10, len(strings)), (0, 0))
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    size = at + len(strings)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        *(3, MACHINE_X86_64, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0),
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, size, size, 4096)
    link = struct.pack("<IIQQQQQQ", 2, 4, headers, headers, headers, len(dynamic), len(dynamic), 8)
    return header + load + link + dynamic + strings


def driver(root: Path, version: str = "535.309.01") -> Path:
    """A root with a tree, `current`, and a linker configuration that includes ours."""
    lib64 = f"opt/nvidia/{version}/3975.2.0/lib64"
    return make_tree(
        root,
        {
            "etc/ld.so.conf": "include /etc/ld.so.conf.d/*.conf\n",
            "etc/ld.so.conf.d/z.conf": "# nothing\n",
            f"{lib64}/libcuda.so.{version}": library("libcuda.so.1"),
            f"{lib64}/libcuda.so.1": f"-> libcuda.so.{version}",
            f"{lib64}/libnvidia-nvvm.so.{version}": library("libnvidia-nvvm.so.4"),
            f"{lib64}/libnvidia-nvvm.so.4": f"-> libnvidia-nvvm.so.{version}",
            f"{lib64}/libnvidia-nvvm70.so.4": "-> libnvidia-nvvm.so.4",
            "opt/nvidia/current": f"-> {version}/3975.2.0",
        },
    )


LIBRARIES = ("libcuda.so.1", "libnvidia-nvvm.so.4", "libnvidia-nvvm70.so.4")


def test_facts_of_a_host_without_driver(tmp_path: Path) -> None:
    linker = Linker(tmp_path)
    assert linker.facts(DIRECTORY, LIBRARIES) == LinkerFacts(None, LIBRARIES)
    assert linker.facts(DIRECTORY, ()) == LinkerFacts(None, ())


def test_configure(tmp_path: Path) -> None:
    linker = Linker(tmp_path)
    linker.configure(None)
    linker.configure(f"{DIRECTORY}\n")
    assert (tmp_path / CONFIGURATION).read_text() == f"{DIRECTORY}\n"
    assert linker.facts(DIRECTORY, ()).configuration == f"{DIRECTORY}\n"
    assert [path.name for path in (tmp_path / CONFIGURATION).parent.iterdir()] == ["nvidiad.conf"]
    linker.configure(None)
    assert linker.facts(DIRECTORY, ()).configuration is None


def test_configure_that_cannot(tmp_path: Path) -> None:
    make_tree(tmp_path, {CONFIGURATION: None})
    with pytest.raises(Failure, match=r"nvidiad\.conf' failed: Is a directory") as caught:
        Linker(tmp_path).configure("text")
    assert caught.value.code is Code.EXPOSURE_FAILED


@needs_ldconfig
def test_real_cache_through_current(tmp_path: Path) -> None:
    linker = Linker(driver(tmp_path))
    linker.configure(f"{DIRECTORY}\n")
    linker.refresh()
    assert linker.facts(DIRECTORY, (*LIBRARIES, "libnvidia-ml.so.1")).missing == ("libnvidia-ml.so.1",)
    # the cache names `current`, so it stays right when current names another tree
    assert linker.facts("/opt/nvidia/535.309.01/3975.2.0/lib64", LIBRARIES).missing == LIBRARIES
    linker.configure(None)
    linker.refresh()
    assert linker.facts(DIRECTORY, LIBRARIES).missing == LIBRARIES


@needs_ldconfig
def test_refresh_leaves_a_verified_tree_as_it_is(tmp_path: Path) -> None:
    lib64 = driver(tmp_path) / "opt/nvidia/current/lib64"
    (lib64 / "libcuda.so.1").unlink()
    before = sorted(path.name for path in lib64.iterdir())
    linker = Linker(tmp_path)
    linker.configure(f"{DIRECTORY}\n")
    linker.refresh()
    assert sorted(path.name for path in lib64.iterdir()) == before


@needs_ldconfig
def test_directory_that_ldconfig_knows_by_another_name(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "etc/ld.so.conf": "/lib64\n",
            "usr/lib64/libcuda.so.1": library("libcuda.so.1"),
            "lib64": "-> usr/lib64",
        },
    )
    linker = Linker(tmp_path)
    linker.refresh()
    assert linker.facts("/usr/lib64", ("libcuda.so.1", "libc.so.6")).missing == ("libc.so.6",)
    assert linker.facts("/usr/lib", ("libcuda.so.1",)).missing == ("libcuda.so.1",)


@needs_ldconfig
def test_refresh_that_fails(tmp_path: Path) -> None:
    make_tree(tmp_path, {"etc/ld.so.conf": "", "etc/ld.so.cache~": None})
    with pytest.raises(Failure, match=r"'ldconfig -X -r .*exited with 1: .*cache") as caught:
        Linker(tmp_path).refresh()
    assert caught.value.code is Code.EXPOSURE_FAILED


def test_refresh_of_the_real_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ldconfig = fake_program(tmp_path, "ldconfig", "")
    monkeypatch.setattr(process, "PATH", str(tmp_path))
    Linker().refresh()
    assert calls(ldconfig) == ["-X"]
