# SPDX-License-Identifier: Apache-2.0
"""Proving an image: that it is what it says, and that its kernel takes every module of it."""

from __future__ import annotations

from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from nvidiad.image.nouns.model import Check, Verdict
from nvidiad.image.thought import boot as boots
from nvidiad.image.thought import elf, proof
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Failure, Permanent
from nvidiad.nouns.model import Build, Kind, Progress
from nvidiad.nouns.value import Value
from nvidiad.thought import symbols

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nvidiad.image.thought.boot import Console
    from nvidiad.image.thought.elf import KernelModule, Library
    from nvidiad.nouns.manifest import Manifest
    from nvidiad.nouns.model import Tree

STEP = "prove"
_ROOT = PurePosixPath("/opt")
"""Where the trees of an image are."""
# What makes an image bad, and no fault of the machine that proves it.
_OF_THE_IMAGE = frozenset(
    {
        *(Code.IMAGE_FOREIGN, Code.IMAGE_MISMATCH, Code.IMAGE_CORRUPT, Code.MANIFEST_INVALID),
        *(Code.TREE_INVALID, Code.TREE_MISSING),
    }
)


class Booting(StrEnum):
    """What becomes of the boot."""

    REQUIRED = "required"
    SKIPPED = "skipped"
    """Not done, and said so: such an image is not proven."""
    WAIVED = "waived"
    """Not done, and whoever asked takes the rest for proof enough."""


class Images(Protocol):
    """The container engine."""

    def labels(self, reference: str) -> Mapping[str, str]: ...
    def extract(self, reference: str, path: str, dest: Path) -> None: ...


class Kernel(Protocol):
    """A kernel, as its OS has it."""

    release: str

    def image(self) -> Path: ...
    def listing(self) -> str: ...
    def builtin(self) -> str: ...
    def symvers(self) -> str: ...
    def module(self, path: str) -> bytes: ...


class Trees(Protocol):
    """Trees below an install root."""

    def install(self, source: Path, tell: Callable[[Progress], None]) -> Tree: ...
    def manifest(self, tree: str) -> Manifest: ...


class Contents(Protocol):
    """The files of a tree."""

    def manifest_digest(self, tree: Path) -> str: ...
    def modules(self, tree: Path, manifest: Manifest) -> tuple[KernelModule, ...]: ...
    def libraries(self, tree: Path, manifest: Manifest) -> tuple[Library, ...]: ...
    def module_bytes(self, tree: Path, module: KernelModule) -> bytes: ...


class Machine(Protocol):
    """A virtual machine without a GPU."""

    def boot(self, kernel: Path, architecture: str, modules: Sequence[tuple[str, bytes]]) -> Console: ...


class Prover(Value):
    """What proving needs of the world."""

    images: Images
    kernel: Callable[[Build], Kernel]
    """The kernel to prove against; the one that the build names, unless another one is wanted."""
    trees: Callable[[Path], Trees]
    contents: Contents
    machine: Machine
    work: Path
    """An empty directory with room for the tree twice; who made it removes it."""
    clock: Callable[[], float]
    """Seconds, of a clock that only advances."""


def prove(
    reference: str,
    prover: Prover,
    *,
    expected: Build | None = None,
    booting: Booting = Booting.REQUIRED,
    tell: Callable[[Progress], None] = lambda _: None,
) -> Verdict:
    """Prove an image that the container engine has, and that it is the expected build where one is given.

    What is wrong with the image is a check that did not pass. A failure is raised for what keeps it from
    being looked at: the engine, QEMU, or the source of the kernel.
    """
    began = prover.clock()
    labels = prover.images.labels(reference)
    build = manifests.labelled(labels)
    checks: list[Check] = []
    kernel: Kernel | None = None
    with _of_the_image("labels", checks):
        manifests.check_labels(labels, expected or build)
    if not checks:
        with _of_the_image("content", checks):
            tree = _lay_down(reference, build, prover, tell)
            manifest = prover.trees(_root(prover)).manifest(str(tree))
            manifests.check_build("the manifest", manifest.build, build)
            checks.append(proof.labels_check(labels, manifest, prover.contents.manifest_digest(tree)))
            sentence = f"all {len(manifest.entries)} files are as the manifest lists them"
            checks.append(proof.passed("content", sentence))
        if checks[-1].passed and manifest.kind is Kind.DRIVER:
            kernel = prover.kernel(build)
            checks.extend(_driver_checks(tree, manifest, kernel, prover, booting, tell))
    release = kernel.release if kernel else ""
    return Verdict(reference, build, release, tuple(checks), prover.clock() - began)


@contextmanager
def _of_the_image(name: str, checks: list[Check]) -> Iterator[None]:
    """Let what the world finds wrong with the image be a check that failed."""
    try:
        yield
    except Failure as failure:
        if failure.code not in _OF_THE_IMAGE:
            raise
        checks.append(Check(name, passed=False, sentence=failure.sentence, code=failure.code))


def _root(prover: Prover) -> Path:
    return prover.work / "opt"


def _lay_down(reference: str, build: Build, prover: Prover, tell: Callable[[Progress], None]) -> Path:
    """Install the image's tree below the working directory, as a host would, and with the same refusals."""
    place = str(naming.tree_path(_ROOT, build))
    source = prover.work / "image"
    tell(Progress(STEP, f"reading '{place}' of '{reference}'"))
    if not fetched(prover.images, reference, place, source):
        sentence = f"the image has nothing at '{place}', where its labels say that its tree is"
        raise Permanent(Code.TREE_MISSING, sentence, "Build the image again.")
    return Path(prover.trees(_root(prover)).install(source, tell).path)


def _driver_checks(
    tree: Path,
    manifest: Manifest,
    kernel: Kernel,
    prover: Prover,
    booting: Booting,
    tell: Callable[[Progress], None],
) -> Iterator[Check]:
    tell(Progress(STEP, f"reading the modules and libraries of {manifest.build}"))
    unreadable: list[Check] = []
    with _of_the_image("content", unreadable):
        modules = prover.contents.modules(tree, manifest)
        libraries = prover.contents.libraries(tree, manifest)
    if unreadable:
        yield from unreadable
        return
    yield proof.modules_check(manifest, modules)
    yield proof.libraries_check(manifest, libraries)
    yield proof.firmware_check(manifest, modules)
    release = kernel.release
    tell(Progress(STEP, f"comparing the modules with kernel '{release}'"))
    exports = symbols.symvers(kernel.symvers())
    yield proof.symbols_check(modules, exports, release)
    yield proof.versions_check(modules, exports, release)
    own = _OwnModules(kernel)
    try:
        inserting = boots.insertion(modules, own.listing, kernel.builtin(), own.depends)
    except ValueError as error:
        yield proof.failed("dependencies", Code.TREE_INVALID, [str(error)])
        return
    yield proof.dependencies_check(inserting.missing, release)
    vermagic = own.vermagic()
    host = [(boots.file_module(path), own.content(path)) for path in inserting.host]
    yield proof.release_check(modules, release, vermagic)
    if booting is not Booting.REQUIRED:
        yield _unbooted(booting)
        return
    tell(
        Progress(STEP, f"booting kernel '{release}' with {len(host)} modules of its own and {len(modules)}")
    )
    ours = [(module.name, prover.contents.module_bytes(tree, module)) for module in inserting.modules]
    console = prover.machine.boot(kernel.image(), manifest.architecture, [*host, *ours])
    boot = boots.read_console(console.text)
    yield boots.boot_check(boot, console, release)
    if boot.kernel == release:
        yield from boots.insert_checks(boot, inserting, release, vermagic)


class _OwnModules:
    """The kernel's own modules, each read once: an engine hands out every file in a container of its own."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._read: dict[str, tuple[bytes, KernelModule]] = {}
        self.listing = kernel.listing()

    def content(self, path: str) -> bytes:
        return self._module(path)[0]

    def depends(self, path: str) -> tuple[str, ...]:
        return self._module(path)[1].file.depends

    def vermagic(self) -> str:
        """That of one that was needed anyway, or of the first there is."""
        first = self.listing.partition("\n")[0].partition(":")[0].strip()
        return self._module(next(iter(self._read), first))[1].file.vermagic

    def _module(self, path: str) -> tuple[bytes, KernelModule]:
        if path not in self._read:
            data = self._kernel.module(path)
            try:
                module = elf.kernel_module(lambda offset, size: data[offset : offset + size], path)
            except ValueError as error:
                sentence = f"module '{path}' of kernel '{self._kernel.release}' cannot be read: {error}"
                remedy = "Make the source of the kernel again."
                raise Permanent(Code.SOURCE_INVALID, sentence, remedy) from error
            self._read[path] = (data, module)
        return self._read[path]


def _unbooted(booting: Booting) -> Check:
    waived = booting is Booting.WAIVED
    sentence = "no kernel was booted, as it was asked for" + (
        "" if waived else ": so nothing proves the image"
    )
    return Check("boot", waived, sentence, None if waived else Code.PROOF_FAILED)


def fetched(images: Images, reference: str, path: str, dest: Path) -> bool:
    """Write what an image has at a path into a directory; False where it has nothing there."""
    try:
        images.extract(reference, path, dest)
    except Failure as failure:
        # The engine's words are all there is (moby: "Could not find the file /x in container ...").
        if "could not find the file" in failure.sentence.lower():
            return False
        raise
    return True
