# SPDX-License-Identifier: Apache-2.0
"""ELF files: imports, exports and CRCs of modules, names and needs of libraries, and what is refused."""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.thought import elf
from tests.payload import elf as payload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SYMTAB, STRTAB, PROGBITS = 2, 3, 1
GLOBAL, WEAK, LOCAL = 1, 2, 0
INFO = b"license=Dual MIT/GPL\0version=535.261.03\0firmware=nvidia/1/a.bin\0firmware=nvidia/1/b.bin\0"
INFO += b"depends=drm,video\0name=nvidia\0vermagic=6.1.0-50-amd64 SMP mod_unload \0"


def relocatable(sections: Mapping[str, bytes], symbols: Sequence[tuple[str, int, int]]) -> bytes:
    """An object file of these sections and symbols (name, binding, section; 0 is undefined)."""
    strings, table = b"\0", bytes(24)
    for name, binding, section in symbols:
        table += struct.pack("<IBBHQQ", len(strings), binding << 4, 0, section, 0, 0)
        strings += name.encode() + b"\0"
    contents = [(name, PROGBITS, data, 0) for name, data in sections.items()]
    count = len(contents)
    contents += [(".symtab", SYMTAB, table, count + 2), (".strtab", STRTAB, strings, 0)]
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in contents) + b".shstrtab\0"
    contents.append((".shstrtab", STRTAB, names, 0))
    body, headers = b"", bytes(64)
    for name, kind, data, link in contents:
        at = names.index(b"\0" + name.encode() + b"\0") + 1
        headers += struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, 64 + len(body), len(data), link, 0, 1, 0)
        body += data
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    numbers = (1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(contents) + 1, len(contents))
    return ident + struct.pack("<HHIQQQIHHHHHH", *numbers) + body + headers


def read(data: bytes) -> Callable[[int, int], bytes]:
    def at(offset: int, size: int) -> bytes:
        assert offset < 1 << 63  # beyond that, os.pread raises what nobody expects
        return data[offset : offset + size]

    return at


def version(crc: int, name: str) -> bytes:
    return struct.pack("<Q56s", crc, name.encode())


MODULE = relocatable(
    {
        ".modinfo": INFO,
        "__ksymtab_strings": b"nvidia_register\0nvidia_cards\0",
        "__versions": version(0x11223344, "module_layout") + version(0xFFFFFFFF, "_printk"),
        "__version_ext_crcs": struct.pack("<I", 7),
        "__version_ext_names": b"a_very_long_name\0",
    },
    [
        ("_printk", GLOBAL, 0),
        ("drm_open", GLOBAL, 0),
        ("maybe", WEAK, 0),
        ("local", LOCAL, 0),
        ("_GLOBAL_OFFSET_TABLE_", GLOBAL, 0),
        ("nvidia_register", GLOBAL, 1),
    ],
)


def test_a_module_is_read() -> None:
    module = elf.kernel_module(read(MODULE), "lib/modules/6.1.0-50-amd64/nvidia.ko")
    assert module.name == "nvidia" and module.gpl
    assert module.file.version == "535.261.03" and module.file.kernel == "6.1.0-50-amd64"
    assert module.file.depends == ("drm", "video")
    assert module.firmware == ("nvidia/1/a.bin", "nvidia/1/b.bin")
    assert module.undefined == {"_printk", "drm_open"}
    assert module.exports == {"nvidia_register", "nvidia_cards"}
    assert module.versions == {"module_layout": 0x11223344, "_printk": 0xFFFFFFFF, "a_very_long_name": 7}


def test_a_module_without_a_name_has_that_of_its_file() -> None:
    data = relocatable({".modinfo": b"vermagic=6.1 \0license=NVIDIA\0"}, [])
    module = elf.kernel_module(read(data), "lib/modules/6.1/nvidia-uvm.ko")
    assert module.name == "nvidia_uvm" and not module.gpl
    assert (module.undefined, module.exports, module.versions) == (frozenset(), frozenset(), {})


def test_a_library_is_read() -> None:
    found = elf.library(read(payload.library("libcuda.so.1", "text")), "lib64/libcuda.so.535.261.03")
    assert found == elf.Library("lib64/libcuda.so.535.261.03", "libcuda.so.1", ())


def test_programs_of_this_machine_are_read() -> None:
    program = Path(sys.executable).resolve().read_bytes()
    found = elf.library(read(program), "bin/python")
    assert found.interpreter and found.soname == ""
    assert any(name.startswith("libc.") for name in found.needed)


@pytest.mark.skipif(shutil.which("busybox") is None, reason="there is no BusyBox")
def test_a_static_program_needs_nothing() -> None:
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    if not payload.is_static(busybox):
        pytest.skip("this BusyBox is not static")
    assert elf.library(read(busybox), "bin/busybox") == elf.Library("bin/busybox", "", ())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", "ends early", id="empty"),
        pytest.param(b"#!/bin/sh\n" * 20, "not a little-endian ELF", id="script"),
        pytest.param(MODULE[:4] + b"\x01" + MODULE[5:], "64 bits", id="32-bit"),
        pytest.param(MODULE[:4] + b"\x02\x02" + MODULE[6:], "little-endian", id="big-endian"),
        pytest.param(MODULE[:200], "ends early", id="truncated"),
        pytest.param(payload.module([("license", "GPL")]), "no vermagic", id="no-vermagic"),
        pytest.param(payload.module([("vermagic", "6.1 ")]), "no symbols", id="no-symbols"),
        pytest.param(payload.library("libcuda.so.1", "x"), "no section table", id="library"),
    ],
)
def test_what_is_no_module_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        elf.kernel_module(read(data), "nvidia.ko")


def test_no_offset_leads_astray() -> None:
    """Every number of a header in turn is made huge: an error is said, nothing else happens."""
    library = payload.library("libcuda.so.1", "text")
    outcomes = set()
    for data, reader in ((MODULE, elf.kernel_module), (library, elf.library)):
        for at in range(16, len(data), 3):
            spoiled = data[:at] + b"\xff" * 4 + data[at + 4 :]
            try:
                reader(read(spoiled), "x")
            except ValueError as error:
                outcomes.add(str(error).partition(" at ")[0])
    assert outcomes >= {"the ELF file ends early", "the ELF file has a name out of bounds"}
