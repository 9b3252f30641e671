# SPDX-License-Identifier: Apache-2.0
"""The dynamic linker's cache: as ldconfig writes it, as nobody should, and which library it gives first."""

from __future__ import annotations

import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvidiad.thought import ldcache

if TYPE_CHECKING:
    from pathlib import Path

X86_64, I386, AARCH64 = 0x0303, 0x0003, 0x0A03

ENTRIES = (
    ("libcuda.so.1", "/opt/nvidia/current/lib64/libcuda.so.1"),
    ("libnvidia-ml.so.1", "/opt/nvidia/current/lib64/libnvidia-ml.so.1"),
    ("libc.so.6", "/usr/lib64/libc.so.6"),
    ("libdeep.so.1", "/opt/nvidia/current/lib64/sub/libdeep.so.1"),
    ("libother.so.1", "/opt/nvidia/current/lib64x/libother.so.1"),
)


def new_cache(entries: tuple[tuple[str, str], ...] = ENTRIES, flags: tuple[int, ...] = ()) -> bytes:
    strings = b""
    packed = b""
    start = 48 + 24 * len(entries)
    for index, (key, path) in enumerate(entries):
        abi = flags[index] if flags else X86_64
        value = start + len(strings)
        # as glibc 2.33 and later do: the key is the end of its path
        packed += struct.pack("<iIIIQ", abi, value + len(path) - len(key), value, 0, 0)
        strings += path.encode() + b"\0"
    header = b"glibc-ld.so.cache1.1" + struct.pack(
        "<IIBBBBIIII", len(entries), len(strings), 2, 0, 0, 0, 0, 0, 0, 0
    )
    return header + packed + strings


def old_cache(entries: tuple[tuple[str, str], ...] = ENTRIES, behind: bytes = b"") -> bytes:
    strings = b""
    packed = b""
    for key, path in entries:
        packed += struct.pack("<iII", 3, len(strings), len(strings) + len(key) + 1)
        strings += key.encode() + b"\0" + path.encode() + b"\0"
    return b"ld.so-1.7.0\0" + struct.pack("<I", len(entries)) + packed + (behind or strings)


@pytest.mark.parametrize(
    "cache",
    [
        pytest.param(new_cache(), id="new"),
        pytest.param(old_cache(), id="old"),
        pytest.param(old_cache(behind=b"\0" * 4 + new_cache()), id="both"),
    ],
)
def test_names(cache: bytes) -> None:
    names = {"libcuda.so.1", "libnvidia-ml.so.1"}
    assert ldcache.names(ldcache.read(cache), "/opt/nvidia/current/lib64") == names
    assert ldcache.names(ldcache.read(cache), "/opt/nvidia/current/lib64/") == names
    assert ldcache.names(ldcache.read(cache), "/usr/lib64") == {"libc.so.6"}
    # a path that only begins inside another one is none
    assert ldcache.names(ldcache.read(cache), "/current/lib64") == frozenset()
    assert ldcache.names(ldcache.read(cache), "/lib64") == frozenset()


@pytest.mark.skipif(not all(map(shutil.which, ("gcc", "ldconfig"))), reason="needs gcc and ldconfig")
def test_names_of_a_cache_that_ldconfig_made(tmp_path: Path) -> None:
    for directory in ("lib64", "opt/lib64"):
        (tmp_path / directory).mkdir(parents=True)
        argv = ["gcc", "-shared", "-nostdlib", "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null"]
        subprocess.run([*argv, "-o", str(tmp_path / directory / "libcuda.so.535.309.01")], check=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ld.so.conf").write_text("/lib64\n/opt/lib64\n")
    program = shutil.which("ldconfig") or ""
    subprocess.run([program, "-r", str(tmp_path)], check=True)
    cache = (tmp_path / "etc/ld.so.cache").read_bytes()
    assert ldcache.names(ldcache.read(cache), "/opt/lib64") == {"libcuda.so.1"}
    assert ldcache.names(ldcache.read(cache), "/lib64") == {"libcuda.so.1"}
    assert ldcache.names(ldcache.read(cache), "/64") == frozenset()


@given(st.sampled_from([new_cache(), old_cache()]), st.data())
def test_damaged_cache(cache: bytes, draw: st.DataObject) -> None:
    content = bytearray(cache)
    for _ in range(draw.draw(st.integers(0, 6))):
        content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    ldcache.names(ldcache.read(bytes(content[: draw.draw(st.integers(0, len(content)))])), "/usr/lib64")


@given(st.binary(), st.text())
def test_names_takes_anything(cache: bytes, directory: str) -> None:
    for prefix in (b"", b"ld.so-1.7.0\0", b"glibc-ld.so.cache1.1"):
        ldcache.names(ldcache.read(prefix + cache), directory)


OURS, THEIRS = "/opt/nvidia/current/lib64/libcuda.so.1", "/usr/lib/x86_64-linux-gnu/libcuda.so.1"
BOTH = (("libcuda.so.1", THEIRS), ("libcuda.so.1", OURS))


@pytest.mark.parametrize(
    ("cache", "machine", "path"),
    [
        pytest.param(new_cache(BOTH), "x86_64", THEIRS, id="the first one"),
        pytest.param(new_cache(BOTH[::-1]), "x86_64", OURS, id="the first one, the other way round"),
        pytest.param(new_cache(BOTH, (I386, X86_64)), "x86_64", OURS, id="not the 32-bit one"),
        pytest.param(new_cache(BOTH, (AARCH64, X86_64)), "x86_64", OURS, id="not another machine's"),
        pytest.param(new_cache(BOTH, (0x0803, X86_64)), "x86_64", OURS, id="not that of x32"),
        pytest.param(new_cache(BOTH, (X86_64, AARCH64)), "aarch64", OURS, id="on an ARM host"),
        pytest.param(new_cache(BOTH, (AARCH64, X86_64)), "riscv64", THEIRS, id="on an unknown machine"),
        pytest.param(new_cache((("x", "/lib/xlibcuda.so.1"),)), "x86_64", None, id="another name"),
        pytest.param(old_cache(BOTH), "riscv64", THEIRS, id="the old format"),
        pytest.param(b"", "x86_64", None, id="no cache"),
    ],
)
def test_which_one_a_program_gets(cache: bytes, machine: str, path: str | None) -> None:
    assert ldcache.first(ldcache.read(cache), "libcuda.so.1", machine) == path


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("libcuda.so.535.309.01", "535.309.01"),
        ("libcuda.so.390.77", "390.77"),
        ("libnvidia-ml.so.1", None),
        ("libcuda.so", None),
        ("libnvrtc.so.12.2.140", "12.2.140"),
        ("libcuda.so.535.309.01.bak", None),
        ("libcuda.so.535", None),
    ],
)
def test_the_version_in_a_name(name: str, version: str | None) -> None:
    assert ldcache.driver_version(name) == version
