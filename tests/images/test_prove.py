# SPDX-License-Identifier: Apache-2.0
"""Proofs of images in a real engine, with real kernels in QEMU: what fits is proven, every fault named."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.verbs.prove import Booting, Prover, fetched, prove
from nvidiad.image.world import tar
from nvidiad.image.world.contents import Contents
from nvidiad.image.world.kernel_files import KernelFiles
from nvidiad.image.world.qemu import Hardware, Qemu
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.value import replace
from nvidiad.world.trees import Trees
from tests.beds.common import cached, require, run_checked
from tests.images import realdriver
from tests.images.workshop import BASE
from tests.payload import builder, elf
from tests.payload.builder import Fault
from tests.payload.image import pack_image
from tests.vm import modules as standins
from tests.vm.kernels import Kernel, kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nvidiad.image.nouns.model import Check, Verdict
    from nvidiad.nouns.model import Build
    from tests.images.workshop import Workshop

DRIVER = "535.309.01"
RELEASE = ("flatcar", "3975.2.0")
# A kernel boots in two or three seconds here; a busy machine with one core may take twenty times that.
LIMIT = 120.0

C_MODULE = """\
#include <linux/module.h>
%s
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION("535.309.01");
"""
NEEDS_NOBODY_KNOWS = C_MODULE % (
    "int nobody_exports_this(void);\n"
    "static int __init begin(void) { return nobody_exports_this(); }\nmodule_init(begin);"
)
NEEDS_A_MODULE_OF_THE_KERNEL = C_MODULE % (
    "#include <linux/crc-itu-t.h>\nstatic u8 text[] = {1, 2};\n"
    "static int __init begin(void) { return crc_itu_t(0, text, 2) == 0; }\nmodule_init(begin);\n"
    "static void __exit end(void) {}\nmodule_exit(end);"
)
PANICS = C_MODULE % (
    'static int __init begin(void) { panic("the module of a test"); return 0; }\nmodule_init(begin);'
)


@pytest.fixture(scope="session", autouse=True)
def _machine() -> None:
    require("qemu-system-x86", "busybox-static")


@pytest.fixture
def made(workshop: Workshop) -> Iterator[list[str]]:
    """References that are removed when the test is over."""
    references: list[str] = []
    yield references
    for reference in references:
        workshop.engine.remove(reference)


def payload(path: Path, kernel: Kernel, **more: Path) -> Path:
    """A tree of stand-in modules compiled for a kernel, and of more modules."""
    found = {**standins.build(kernel, DRIVER), **{n.replace("_", "-"): file for n, file in more.items()}}
    return builder.payload(path, driver=DRIVER, release=RELEASE, kernel=kernel.release, modules=found)


def into_engine(workshop: Workshop, made: list[str], tree: Path, name: str) -> str:
    """The image of a tree, in the engine."""
    reference = f"prove/driver:{name}"
    archive = tree.parent / f"{name}.tar"
    archive.write_bytes(pack_image(tree, reference))
    workshop.engine.load(archive)
    archive.unlink()
    made.append(reference)
    return reference


def developer(workshop: Workshop, made: list[str], kernel: Kernel, path: Path) -> str:
    """What a developer image has of a kernel: itself, its modules and its symbols, in Debian's places."""
    reference = f"prove/developer:{kernel.release.replace('+', '-')}"
    headers = path / "usr/src" / f"linux-headers-{kernel.release}"
    headers.mkdir(parents=True)
    shutil.copy2(kernel.headers / "Module.symvers", headers)
    shutil.copytree(kernel.root / "lib/modules", path / "usr/lib/modules", symlinks=True)
    (path / "boot").mkdir()
    shutil.copy2(kernel.image, path / "boot")
    tar.pack(path, path.with_suffix(".tar"), 0)
    workshop.engine.import_tree(path.with_suffix(".tar"), reference, {})
    made.append(reference)
    return reference


def compiled(kernel: Kernel, name: str, source: str) -> Path:
    """A module of one C file, for a kernel."""

    def build(partial: Path) -> None:
        require("gcc-12", "make", "libelf-dev", "kmod", "binutils")
        partial.mkdir()
        (partial / f"{name}.c").write_text(source)
        (partial / "Makefile").write_text(f"obj-m := {name}.o\n")
        flags = ["KBUILD_MODPOST_WARN=1", "CONFIG_DEBUG_INFO_BTF_MODULES="]
        make = ["make", "-s", "-C", str(kernel.headers), f"M={partial}", *flags, "modules"]
        run_checked(make, f"{name} for {kernel.release}")

    return cached("image-module", [kernel.release, name, source], build) / f"{name}.ko"


def prover(
    workshop: Workshop, work: Path, kernel: Kernel, *, limit: float = LIMIT, append: str = ""
) -> Prover:
    """All of the real world, with the kernel from a directory."""
    work.mkdir()

    def files(build: Build) -> KernelFiles:
        return KernelFiles(kernel.root, kernel.release)

    machine = Qemu(work, Hardware(limit=limit, append=append))
    return Prover(workshop.engine, files, Trees, Contents(), machine, work, time.monotonic)


def check(verdict: Verdict, name: str) -> Check:
    return next(check for check in verdict.checks if check.name == name)


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_an_image_is_proven_with_the_kernel_of_its_developer_image(
    workshop: Workshop, made: list[str], tmp_path: Path
) -> None:
    kernel = kernels().a
    reference = into_engine(workshop, made, payload(tmp_path / "p", kernel), "right")
    source = developer(workshop, made, kernel, tmp_path / "developer")
    whole = prover(workshop, tmp_path / "work", kernel)

    def files(build: Build) -> KernelFiles:
        def fetch(path: str, dest: Path) -> bool:
            return fetched(workshop.engine, source, path, dest)

        return KernelFiles(tmp_path / "work/kernel", build.kernel, fetch)

    verdict = prove(reference, replace(whole, kernel=files))
    assert verdict.proven, failed(verdict)
    assert verdict.kernel == verdict.build.kernel == kernel.release
    assert 0 < verdict.seconds < LIMIT
    assert "ENODEV" in check(verdict, "insert nvidia").sentence
    assert "imports from 'nvidia'" in check(verdict, "insert nvidia_uvm").sentence
    # Of 90 MB of modules only what was needed was fetched: here, one, for its vermagic.
    assert len(list((tmp_path / "work/kernel").rglob("*.ko"))) == 1
    assert workshop.docker("ps", "--all", "--quiet") == ""
    print(f"proven in {verdict.seconds:.1f} s")


@pytest.mark.parametrize("slot", ["A", "B"])
def test_an_image_of_another_kernel_is_not_proven_and_both_vermagics_are_named(
    workshop: Workshop, made: list[str], tmp_path: Path, slot: str
) -> None:
    here = kernels().slots[slot]
    other = kernels().slots["B" if slot == "A" else "A"]
    reference = into_engine(workshop, made, payload(tmp_path / "p", other), f"other-{slot.lower()}")
    verdict = prove(reference, prover(workshop, tmp_path / "work", here))
    assert not verdict.proven
    assert verdict.kernel == here.release != verdict.build.kernel
    assert {"versions", "vermagic", "insert nvidia", "insert nvidia_uvm"} <= set(failed(verdict))
    refused = check(verdict, "insert nvidia")
    assert refused.code is Code.VERMAGIC_MISMATCH and "ENOEXEC" in refused.sentence
    for kernel in (here, other):
        assert f"'{kernel.release} SMP preempt mod_unload modversions'" in refused.sentence
    assert check(verdict, "boot").passed


def test_modules_of_a_neighbour_are_taken_by_the_kernel_and_not_proven(
    workshop: Workshop, made: list[str], tmp_path: Path
) -> None:
    """A kernel with MODVERSIONS takes them where no CRC differs; nvidiad would not."""
    neighbour = kernels().neighbour
    if neighbour is None:
        pytest.skip("there is no neighbour of this kernel")
    reference = into_engine(workshop, made, payload(tmp_path / "p", neighbour), "neighbour")
    verdict = prove(reference, prover(workshop, tmp_path / "work", kernels().a))
    assert failed(verdict) == ["vermagic"]
    assert neighbour.release in check(verdict, "vermagic").sentence


@pytest.mark.parametrize(
    ("fault", "name", "code", "words"),
    [
        (Fault.WRONG_HASH, "content", Code.TREE_INVALID, "'lib64/libcuda.so.535.309.01' has sha256"),
        (Fault.MISSING_FILE, "content", Code.TREE_INVALID, "'lib64/libcuda.so.535.309.01' is missing"),
        (Fault.EXTRA_FILE, "content", Code.TREE_INVALID, "'lib64/libextra.so.1' is not in the manifest"),
        (Fault.LEAVES_TREE, "content", Code.MANIFEST_INVALID, "../../../../etc/profile.d/evil.sh"),
        (Fault.WRONG_KERNEL, "content", Code.IMAGE_MISMATCH, "kernel '9.9.9-other' instead of"),
        (Fault.WRONG_DRIVER, "content", Code.IMAGE_MISMATCH, "driver '999.99.99' instead of"),
        (Fault.NO_MANIFEST, "content", Code.TREE_MISSING, "manifest.json' cannot be read"),
        (Fault.BROKEN_MANIFEST, "content", Code.MANIFEST_INVALID, "it is not JSON"),
        (Fault.NOT_A_DRIVER, "content", Code.TREE_MISSING, "nothing at '/opt/nvidia/535.309.01/3975.2.0'"),
    ],
    ids=str,
)
def test_a_spoiled_image_is_named_and_nothing_is_booted(
    workshop: Workshop,
    made: list[str],
    tmp_path: Path,
    fault: Fault,
    name: str,
    code: Code,
    words: str,
) -> None:
    tree = payload(tmp_path / "p", kernels().a)
    labels = builder.image_labels(tree)
    builder.spoil(tree, fault)
    reference = f"prove/driver:{fault}"
    archive = tmp_path / "image.tar"
    archive.write_bytes(pack_image(tree, reference, labels=labels))
    workshop.engine.load(archive)
    made.append(reference)
    verdict = prove(reference, prover(workshop, tmp_path / "work", kernels().a))
    assert failed(verdict) == [name] and verdict.checks[-1].code is code
    assert words in verdict.checks[-1].sentence
    assert not (tmp_path / "work/console.log").exists()


def _no_firmware(tree: Path) -> None:
    shutil.rmtree(tree / "lib/firmware")


def _wrong_soname(tree: Path) -> None:
    library = tree / f"lib64/libcuda.so.{DRIVER}"
    library.write_bytes(elf.library("libcuda.so.2", "spoiled"))


def _no_module(tree: Path) -> None:
    next(tree.glob("lib/modules/*/nvidia-uvm.ko")).write_text(
        "not a module, and long enough for a header: " * 9
    )


def _other_version(tree: Path) -> None:
    (tree / "lib64/libnvidia-fatbinaryloader.so.470.1.1").write_bytes(
        elf.library("libnvidia-fatbinaryloader.so.470.1.1", "spoiled")
    )


@pytest.mark.parametrize(
    ("spoil", "name", "words"),
    [
        pytest.param(_no_firmware, "firmware", "there is no GSP firmware", id="firmware"),
        pytest.param(
            _wrong_soname, "libraries", "'lib64/libcuda.so.2' (SONAME), which is not there", id="soname"
        ),
        pytest.param(
            _no_module, "content", "nvidia-uvm.ko' cannot be used: not a little-endian", id="module"
        ),
        pytest.param(_other_version, "libraries", "is of driver 470.1.1 and not 535.309.01", id="version"),
    ],
)
def test_a_tree_that_is_as_listed_and_yet_wrong(
    workshop: Workshop,
    made: list[str],
    tmp_path: Path,
    spoil: Callable[[Path], None],
    name: str,
    words: str,
) -> None:
    tree = payload(tmp_path / "p", kernels().a)
    spoil(tree)
    manifest = manifests.parse((tree / "manifest.json").read_text())
    builder.write_manifest(tree, manifests.render(replace(manifest, entries=builder.entries(tree))))
    reference = into_engine(workshop, made, tree, f"wrong-{name}")
    verdict = prove(reference, prover(workshop, tmp_path / "work", kernels().a), booting=Booting.WAIVED)
    assert failed(verdict) == [name]
    assert any(words in each.sentence for each in verdict.checks if not each.passed)


def test_an_import_that_nobody_exports_is_named_by_the_symbols_and_by_the_boot(
    workshop: Workshop, made: list[str], tmp_path: Path
) -> None:
    kernel = kernels().a
    extra = compiled(kernel, "nvidia-peermem", NEEDS_NOBODY_KNOWS)
    reference = into_engine(workshop, made, payload(tmp_path / "p", kernel, nvidia_peermem=extra), "unknown")
    verdict = prove(reference, prover(workshop, tmp_path / "work", kernel))
    assert set(failed(verdict)) == {"symbols", "insert nvidia_peermem"}
    for name in failed(verdict):
        assert check(verdict, name).code is Code.SYMBOL_UNKNOWN
        assert "'nvidia_peermem' imports 'nobody_exports_this'" in check(verdict, name).sentence


@pytest.mark.parametrize("slot", ["A", "B"])
def test_modules_of_the_kernel_that_are_needed_are_inserted_before(
    workshop: Workshop, made: list[str], tmp_path: Path, slot: str
) -> None:
    """In slot B they are compressed with xz, and nobody has run depmod."""
    kernel = kernels().slots[slot]
    extra = compiled(kernel, "nvidia-peermem", NEEDS_A_MODULE_OF_THE_KERNEL)
    tree = payload(tmp_path / "p", kernel, nvidia_peermem=extra)
    reference = into_engine(workshop, made, tree, f"needs-{slot.lower()}")
    whole = prover(workshop, tmp_path / "work", kernel)
    if slot == "B":
        shutil.copytree(kernel.root, tmp_path / "root", symlinks=True)
        (tmp_path / "root/lib/modules" / kernel.release / "modules.dep").unlink()
        files = KernelFiles(tmp_path / "root", kernel.release)
        whole = replace(whole, kernel=lambda _: files)
    verdict = prove(reference, whole)
    assert verdict.proven, failed(verdict)
    assert "was loaded by kernel" in check(verdict, "insert nvidia_peermem").sentence
    assert "@nvidiad insert crc_itu_t" in (tmp_path / "work/console.log").read_text()


def test_what_a_kernel_lacks_is_named(workshop: Workshop, made: list[str], tmp_path: Path) -> None:
    kernel = kernels().a
    extra = compiled(kernel, "nvidia-peermem", NEEDS_A_MODULE_OF_THE_KERNEL)
    reference = into_engine(workshop, made, payload(tmp_path / "p", kernel, nvidia_peermem=extra), "lacks")
    less = tmp_path / "less"
    shutil.copytree(kernel.root / "lib", less / "lib", symlinks=True)
    shutil.copytree(kernel.root / "boot", less / "boot")
    listing = less / "lib/modules" / kernel.release / "modules.dep"
    lines = listing.read_text().splitlines(keepends=True)
    listing.write_text("".join(line for line in lines if "crc-itu-t" not in line))
    files = KernelFiles(less, kernel.release)
    whole = replace(prover(workshop, tmp_path / "work", kernel), kernel=lambda _: files)
    verdict = prove(reference, whole)
    # There are no headers in this source either.
    assert set(failed(verdict)) == {"symbols", "dependencies", "insert nvidia_peermem"}
    assert "'nvidia_peermem' depends on 'crc_itu_t'" in check(verdict, "dependencies").sentence
    assert "no Module.symvers" in check(verdict, "symbols").sentence
    assert "imports 'crc_itu_t'" in check(verdict, "insert nvidia_peermem").sentence


@pytest.mark.parametrize(
    ("append", "code", "words"),
    [
        pytest.param(
            "module.sig_enforce=1", Code.MODULE_REJECTED, "unsigned module is rejected", id="signed"
        ),
        pytest.param(
            "lockdown=integrity", Code.LOCKDOWN, "is locked down and refuses 'nvidia'", id="lockdown"
        ),
    ],
)
def test_a_kernel_that_wants_signatures_refuses_by_name(
    workshop: Workshop, made: list[str], tmp_path: Path, append: str, code: Code, words: str
) -> None:
    reference = into_engine(workshop, made, payload(tmp_path / "p", kernels().a), "unsigned")
    verdict = prove(reference, prover(workshop, tmp_path / "work", kernels().a, append=append))
    assert failed(verdict) == ["insert nvidia", "insert nvidia_uvm", "insert nvidia_modeset"]
    assert check(verdict, "insert nvidia").code is code and words in check(verdict, "insert nvidia").sentence


@pytest.mark.parametrize(
    ("limit", "append", "words"),
    [
        pytest.param(0.5, "", "was killed after", id="too-slow"),
        pytest.param(LIMIT, "rdinit=/nowhere", "Kernel panic", id="panic"),
    ],
)
def test_a_kernel_that_does_not_come_up(
    workshop: Workshop, made: list[str], tmp_path: Path, limit: float, append: str, words: str
) -> None:
    reference = into_engine(workshop, made, payload(tmp_path / "p", kernels().a), "down")
    whole = prover(workshop, tmp_path / "work", kernels().a, limit=limit, append=append)
    verdict = prove(reference, whole)
    assert failed(verdict) == ["boot"]
    assert check(verdict, "boot").code is Code.PROOF_FAILED and words in check(verdict, "boot").sentence


def test_a_module_that_takes_the_kernel_down_is_named(
    workshop: Workshop, made: list[str], tmp_path: Path
) -> None:
    kernel = kernels().a
    extra = compiled(kernel, "nvidia-peermem", PANICS)
    reference = into_engine(workshop, made, payload(tmp_path / "p", kernel, nvidia_peermem=extra), "panics")
    verdict = prove(reference, prover(workshop, tmp_path / "work", kernel))
    assert failed(verdict) == ["boot", "insert nvidia_peermem"]
    assert "went down while 'nvidia_peermem' was inserted" in check(verdict, "boot").sentence
    assert "the module of a test" in check(verdict, "boot").sentence


@pytest.mark.parametrize(
    ("booting", "proven"), [(Booting.SKIPPED, False), (Booting.WAIVED, True)], ids=["skipped", "waived"]
)
def test_without_a_boot_it_is_said_and_proven_only_when_that_was_waived(
    workshop: Workshop,
    made: list[str],
    tmp_path: Path,
    booting: Booting,
    proven: bool,  # noqa: FBT001
) -> None:
    reference = into_engine(workshop, made, payload(tmp_path / "p", kernels().a), "unbooted")
    verdict = prove(reference, prover(workshop, tmp_path / "work", kernels().a), booting=booting)
    assert verdict.proven is proven
    assert "no kernel was booted" in check(verdict, "boot").sentence
    assert not (tmp_path / "work/console.log").exists()


def test_an_image_that_is_none_of_ours_is_foreign(workshop: Workshop, tmp_path: Path) -> None:
    verdict = prove(BASE, prover(workshop, tmp_path / "work", kernels().a))
    assert [each.code for each in verdict.checks] == [Code.IMAGE_FOREIGN] and not verdict.proven


def test_an_image_under_the_wrong_tag_is_a_mismatch(
    workshop: Workshop, made: list[str], tmp_path: Path
) -> None:
    tree = payload(tmp_path / "p", kernels().a)
    reference = into_engine(workshop, made, tree, "mistaken")
    wanted = manifests.parse((tree / "manifest.json").read_text()).build
    verdict = prove(
        reference,
        prover(workshop, tmp_path / "work", kernels().a),
        expected=replace(wanted, os_version="4081.2.0"),
    )
    assert failed(verdict) == ["labels"] and verdict.checks[0].code is Code.IMAGE_MISMATCH
    assert "OS version '3975.2.0' instead of '4081.2.0'" in verdict.checks[0].sentence


def test_an_image_of_cuda_is_proven_without_a_kernel(
    workshop: Workshop, made: list[str], tmp_path: Path
) -> None:
    tree = builder.cuda_payload(tmp_path / "p", "12.4.1")
    reference = into_engine(workshop, made, tree, "cuda")
    verdict = prove(reference, prover(workshop, tmp_path / "work", kernels().a))
    assert verdict.proven and verdict.kernel == ""
    assert [each.name for each in verdict.checks] == ["labels", "content"]


def test_a_source_without_a_kernel_and_an_image_that_is_not_there_are_failures(
    workshop: Workshop, made: list[str], tmp_path: Path
) -> None:
    reference = into_engine(workshop, made, payload(tmp_path / "p", kernels().a), "no-source")
    empty = KernelFiles(tmp_path, kernels().a.release)
    whole = prover(workshop, tmp_path / "work", kernels().a)
    with pytest.raises(Permanent, match=r"has no 'modules\.dep' in 'lib/modules/") as caught:
        prove(reference, replace(whole, kernel=lambda _: empty))
    assert caught.value.code is Code.SOURCE_INVALID
    with pytest.raises(Permanent, match="no image 'prove/driver:nowhere'"):
        prove("prove/driver:nowhere", whole)


def test_the_real_driver_is_proven_on_its_kernel(workshop: Workshop, tmp_path: Path) -> None:
    """NVIDIA's open modules, which need modules of Debian's kernel (drm, video, …) before them."""
    reference = realdriver.real_image(workshop)
    source = realdriver.developer_image(workshop)
    whole = prover(workshop, tmp_path / "work", kernels().a)

    def files(build: Build) -> KernelFiles:
        def fetch(path: str, dest: Path) -> bool:
            return fetched(workshop.engine, source, path, dest)

        return KernelFiles(tmp_path / "work/kernel", build.kernel, fetch)

    verdict = prove(reference, replace(whole, kernel=files))
    console = (tmp_path / "work/console.log").read_text()
    assert verdict.proven, [check(verdict, name) for name in failed(verdict)]
    assert verdict.kernel == realdriver.KERNEL
    assert "found no GPU (ENODEV)" in check(verdict, "insert nvidia").sentence
    assert "NVRM: No NVIDIA GPU found." in console
    assert console.index("insert drm\n") < console.index("insert nvidia\n")
    print(f"the real driver was proven in {verdict.seconds:.1f} s")


def test_the_real_driver_is_not_proven_on_another_kernel(workshop: Workshop, tmp_path: Path) -> None:
    reference = realdriver.real_image(workshop)
    other = kernels().a
    verdict = prove(reference, prover(workshop, tmp_path / "work", other))
    assert not verdict.proven
    refused = check(verdict, "insert nvidia")
    assert refused.code is Code.VERMAGIC_MISMATCH and "(ENOEXEC)" in refused.sentence
    for release in (other.release, realdriver.KERNEL):
        assert f"'{release} SMP preempt mod_unload modversions'" in refused.sentence
    print(refused.sentence)
