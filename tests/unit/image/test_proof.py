# SPDX-License-Identifier: Apache-2.0
"""What is proven of a tree by reading it: each fault is named, and a right tree passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvidiad.image.thought import proof
from nvidiad.image.thought.elf import KernelModule, Library
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.entries import Entry, FileEntry, LinkEntry
from nvidiad.nouns.errors import Code
from nvidiad.nouns.manifest import Manifest
from nvidiad.nouns.model import Flavour, ModuleFile
from nvidiad.nouns.value import replace
from nvidiad.thought import symbols

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nvidiad.image.nouns.model import Check

V, K = "535.261.03", "6.1.0-50-amd64"
VERMAGIC = f"{K} SMP preempt mod_unload modversions"
GSP = f"lib/firmware/nvidia/{V}/gsp_ga10x.bin"


def file(path: str) -> FileEntry:
    return FileEntry(path, 0o644, 1, "0" * 64)


LIBRARY = f"lib64/libcuda.so.{V}"
ENTRIES: tuple[Entry, ...] = (
    file("bin/nvidia-smi"),
    file(LIBRARY),
    LinkEntry("lib64/libcuda.so.1", f"libcuda.so.{V}"),
    LinkEntry("lib64/libcuda.so", "libcuda.so.1"),
    file(f"lib/modules/{K}/nvidia.ko"),
    file(f"lib/modules/{K}/nvidia-uvm.ko"),
    file(GSP),
)
MANIFEST = Manifest(
    V, Flavour.OPEN, "", "x86_64", "debian", K, K, VERMAGIC, "gcc 12", ("10de:20b5",), ENTRIES
)


def module(
    name: str = "nvidia",
    *,
    version: str = V,
    vermagic: str = f"{VERMAGIC} ",
    depends: str = "",
    license: str = "Dual MIT/GPL",  # noqa: A002
    firmware: str = "",
    undefined: str = "",
    exports: str = "",
    versions: Mapping[str, int] | None = None,
) -> KernelModule:
    path = f"lib/modules/{K}/{name.replace('_', '-')}.ko"
    return KernelModule(
        ModuleFile(name, path, version, vermagic, tuple(depends.split())),
        license,
        tuple(firmware.split()),
        frozenset(undefined.split()),
        frozenset(exports.split()),
        versions or {},
    )


NVIDIA = module(firmware=f"nvidia/{V}/gsp_ga10x.bin", undefined="_printk", exports="nvidia_register")
UVM = module("nvidia_uvm", depends="nvidia", undefined="_printk nvidia_register")


def wrong(check: Check, code: Code, words: str) -> None:
    assert not check.passed and check.code is code
    assert words in check.sentence


def test_labels_are_those_of_the_manifest() -> None:
    labels = {**manifests.labels(MANIFEST, "a" * 64), "org.other": "label"}
    assert proof.labels_check(labels, MANIFEST, "a" * 64).passed
    wrong(
        proof.labels_check(labels, MANIFEST, "b" * 64),
        Code.IMAGE_MISMATCH,
        f"label 'io.nvidiad.manifest' is '{'a' * 64}' and not '{'b' * 64}'",
    )
    wrong(
        proof.labels_check({**labels, "io.nvidiad.size": "1"}, MANIFEST, "a" * 64),
        Code.IMAGE_MISMATCH,
        "label 'io.nvidiad.size' is '1'",
    )
    # Made before there was this label.
    del labels["io.nvidiad.size"]
    assert proof.labels_check(labels, MANIFEST, "a" * 64).passed
    del labels["io.nvidiad.vermagic"]
    wrong(proof.labels_check(labels, MANIFEST, "a" * 64), Code.IMAGE_MISMATCH, "'io.nvidiad.vermagic' is ''")


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        pytest.param([UVM], f"no 'nvidia.ko' in 'lib/modules/{K}'", id="no-nvidia"),
        pytest.param(
            [replace(NVIDIA, file=replace(NVIDIA.file, version="550.163.01")), UVM],
            f"nvidia.ko' is of version '550.163.01' and not '{V}'",
            id="other-version",
        ),
        pytest.param(
            [NVIDIA, module("nvidia_uvm", vermagic="6.1.0-47-amd64 SMP ")],
            "nvidia-uvm.ko' was built for '6.1.0-47-amd64 SMP'",
            id="other-kernel",
        ),
        pytest.param(
            [module(vermagic=f"{K} SMP "), UVM], f"has vermagic '{K} SMP', not", id="other-vermagic"
        ),
        pytest.param(
            [module(license="NVIDIA"), UVM], "has license 'NVIDIA', the image is open", id="other-flavour"
        ),
        pytest.param([NVIDIA], "nvidia-uvm.ko' is not a module in", id="one-for-another-kernel"),
    ],
)
def test_modules_that_are_not_the_manifests(modules: list[KernelModule], words: str) -> None:
    assert proof.modules_check(MANIFEST, [NVIDIA, UVM]).passed
    wrong(proof.modules_check(MANIFEST, modules), Code.DRIVER_MISMATCH, words)


def test_compressed_modules_are_none() -> None:
    packed = replace(MANIFEST, entries=(*ENTRIES, file(f"lib/modules/{K}/nvidia-drm.ko.xz")))
    assert proof.module_paths(packed) == (f"lib/modules/{K}/nvidia.ko", f"lib/modules/{K}/nvidia-uvm.ko")
    wrong(
        proof.modules_check(packed, [NVIDIA, UVM]), Code.DRIVER_MISMATCH, "nvidia-drm.ko.xz' is not a module"
    )


def test_a_proprietary_driver_has_its_own_license() -> None:
    manifest = replace(MANIFEST, flavour=Flavour.PROPRIETARY)
    assert proof.modules_check(manifest, [module(license="NVIDIA"), UVM]).passed
    wrong(proof.modules_check(manifest, [NVIDIA, UVM]), Code.DRIVER_MISMATCH, "the image is proprietary")


def test_firmware_that_modules_name_is_there() -> None:
    assert proof.firmware_check(MANIFEST, [NVIDIA, UVM]).passed
    more = module(firmware=f"nvidia/{V}/gsp_ga10x.bin nvidia/{V}/gsp_tu10x.bin")
    found = proof.firmware_check(MANIFEST, [more])
    wrong(found, Code.TREE_INVALID, f"'lib/firmware/nvidia/{V}/gsp_tu10x.bin' is not there")


@pytest.mark.parametrize("flavour", Flavour)
def test_only_open_modules_cannot_do_without_gsp(flavour: Flavour) -> None:
    entries = tuple(entry for entry in ENTRIES if entry.path != GSP)
    manifest = replace(MANIFEST, flavour=flavour, entries=entries)
    check = proof.firmware_check(manifest, [module()])
    assert check.passed is (flavour is Flavour.PROPRIETARY)
    assert check.passed or "no GSP firmware" in check.sentence


CUDA = Library(LIBRARY, "libcuda.so.1", ("libc.so.6", "libm.so.6"))


@pytest.mark.parametrize(
    ("libraries", "entries", "words"),
    [
        pytest.param([], (), f"'lib64' has no library of driver {V}", id="none"),
        pytest.param([replace(CUDA, soname="")], (), f"'{LIBRARY}' has no SONAME", id="no-soname"),
        pytest.param(
            [replace(CUDA, soname="libcuda.so.2")],
            (),
            f"'{LIBRARY}' is looked for as 'lib64/libcuda.so.2' (SONAME), which is not there",
            id="no-link",
        ),
        pytest.param(
            [replace(CUDA, soname="libother.so.1")], (), "calls itself 'libother.so.1'", id="other-soname"
        ),
        pytest.param(
            [CUDA, Library("lib64/libcuda.so.550.163.01", "libcuda.so.1", ())],
            (file("lib64/libcuda.so.550.163.01"),),
            f"so.550.163.01' is looked for as 'lib64/libcuda.so.1' (SONAME), which is '{LIBRARY}'",
            id="link-of-another",
        ),
        pytest.param(
            [CUDA, Library("lib64/libnvidia-ml.so.550.163.01", "libnvidia-ml.so.550.163.01", ())],
            (file("lib64/libnvidia-ml.so.550.163.01"),),
            f"'lib64/libnvidia-ml.so.550.163.01' is of driver 550.163.01 and not {V}",
            id="other-driver",
        ),
        pytest.param(
            [replace(CUDA, needed=("libtirpc.so.3",))],
            (),
            f"'{LIBRARY}' needs 'libtirpc.so.3', which neither the tree nor a host has",
            id="needs-what-is-nowhere",
        ),
        pytest.param(
            [replace(CUDA, needed=("libtirpc.so.3",))],
            (file("lib/private/libtirpc.so.3"),),
            "needs 'libtirpc.so.3'",
            id="needs-what-only-programs-find",
        ),
    ],
)
def test_libraries_that_are_not_right(
    libraries: list[Library], entries: tuple[Entry, ...], words: str
) -> None:
    assert proof.libraries_check(MANIFEST, [CUDA]).passed
    manifest = replace(MANIFEST, entries=(*ENTRIES, *entries))
    wrong(proof.libraries_check(manifest, libraries), Code.TREE_INVALID, words)


def test_libraries_with_versions_of_their_own_and_programs_are_right() -> None:
    name = "libnvidia-egl-wayland"
    manifest = replace(
        MANIFEST,
        entries=(
            *ENTRIES,
            *(file(f"lib64/{name}.so.1.1.11"), LinkEntry(f"lib64/{name}.so.1", f"{name}.so.1.1.11")),
            *(file("lib/private/libtirpc.so.3"), file(f"lib64/libnvidia-tls.so.{V}")),
        ),
    )
    libraries = [
        CUDA,
        Library(f"lib64/{name}.so.1.1.11", f"{name}.so.1", ("libwayland-client.so.0", "libgbm.so.1")),
        Library(
            f"lib64/libnvidia-tls.so.{V}", f"libnvidia-tls.so.{V}", ("libcuda.so.1", "libcrypto.so.1.1")
        ),
        Library("lib/private/libtirpc.so.3", "libtirpc.so.3", ("libpthread.so.0",)),
        Library("bin/nvidia-persistenced", "", ("libtirpc.so.3", "ld-linux-x86-64.so.2"), interpreter=True),
    ]
    assert proof.libraries_check(manifest, libraries).passed
    assert set(proof.elf_paths(manifest)) >= {library.path for library in libraries} - {
        "bin/nvidia-persistenced"
    }


SYMVERS = """\
0x11111111\t_printk\tvmlinux\tEXPORT_SYMBOL\t
0x22222222\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t
0x33333333\tdrm_open\tdrivers/gpu/drm/drm\tEXPORT_SYMBOL\t
0x44444444\trcu_read_unlock_strict\tvmlinux\tEXPORT_SYMBOL_GPL\t
# a comment, and a line that is short
0x55555555\tshort
"""
KERNEL = symbols.symvers(SYMVERS)


def test_module_symvers_is_read() -> None:
    assert sorted(KERNEL) == ["_printk", "drm_open", "module_layout", "rcu_read_unlock_strict"]
    assert KERNEL["drm_open"] == symbols.Export(0x33333333, False)  # noqa: FBT003
    assert KERNEL["rcu_read_unlock_strict"].gpl


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        pytest.param(
            [module(undefined="_printk pci_gone a b c")],
            f"'nvidia' imports 'a', 'b', 'c' and 1 more, which kernel '{K}' does not export",
            id="nowhere",
        ),
        pytest.param([UVM], "'nvidia_uvm' imports 'nvidia_register'", id="exporter-not-in-the-image"),
        pytest.param(
            [module(undefined="rcu_read_unlock_strict", license="NVIDIA")],
            "(license 'NVIDIA') imports 'rcu_read_unlock_strict', which is for GPL modules only",
            id="gpl-only",
        ),
    ],
)
def test_symbols_that_are_not_there(modules: list[KernelModule], words: str) -> None:
    assert proof.symbols_check([NVIDIA, UVM], KERNEL, K).passed
    wrong(proof.symbols_check(modules, KERNEL, K), Code.SYMBOL_UNKNOWN, words)


def test_gpl_modules_may_use_what_is_for_them() -> None:
    assert proof.symbols_check([module(undefined="rcu_read_unlock_strict")], KERNEL, K).passed


def test_without_module_symvers_nothing_is_proven() -> None:
    wrong(proof.symbols_check([NVIDIA], {}, K), Code.PROOF_FAILED, f"no Module.symvers of kernel '{K}'")


def test_crcs_are_compared_where_the_kernel_has_them() -> None:
    right = module(versions={"_printk": 0x11111111, "module_layout": 0x22222222, "nvidia_cards": 9})
    assert "2 imports" in proof.versions_check([right], KERNEL, K).sentence
    other = module(versions={"_printk": 1, "module_layout": 2, "drm_open": 0x33333333})
    check = proof.versions_check([right, other], KERNEL, K)
    wrong(check, Code.VERMAGIC_MISMATCH, f"2 of 3 imports of 'nvidia' have other CRCs in kernel '{K}'")
    wrong(proof.versions_check([module()], KERNEL, K), Code.VERMAGIC_MISMATCH, "'nvidia' has no CRCs")
    without = {name: replace(export, crc=0) for name, export in KERNEL.items()}
    assert proof.versions_check([other], without, K).passed


def test_a_neighbours_modules_are_not_the_kernels() -> None:
    assert proof.release_check([NVIDIA, UVM], K, f"{VERMAGIC} ").passed
    check = proof.release_check([NVIDIA, UVM], "6.1.0-51-amd64", "6.1.0-51-amd64 SMP ")
    wrong(check, Code.VERMAGIC_MISMATCH, f"'nvidia', 'nvidia_uvm' were built for '{VERMAGIC}'")
    assert check.sentence.endswith("the modules of kernel '6.1.0-51-amd64' for '6.1.0-51-amd64 SMP'")


def test_missing_dependencies_are_named() -> None:
    assert proof.dependencies_check([], K).passed
    check = proof.dependencies_check([("nvidia", "ecc")], K)
    wrong(check, Code.SYMBOL_UNKNOWN, f"'nvidia' depends on 'ecc', which kernel '{K}' does not have")


def test_a_sentence_names_a_few_faults_and_counts_the_rest() -> None:
    check = proof.failed("x", Code.TREE_INVALID, ["one", "two", "three", "four", "five"])
    assert check.sentence == "one; two; three (and 2 more)"
