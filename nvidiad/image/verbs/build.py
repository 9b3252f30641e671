# SPDX-License-Identifier: Apache-2.0
"""Build: compile a driver in its release's developer image and pack it as an image that installs itself."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Protocol

from nvidiad.image.nouns import developer as developers
from nvidiad.image.nouns.model import Family
from nvidiad.image.thought import bom
from nvidiad.image.verbs import assemble as assembling
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Build, Progress
from nvidiad.nouns.value import Value, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from nvidiad.image.nouns.model import DriverSource, OsRelease
    from nvidiad.image.thought.package import Layout
    from nvidiad.image.verbs.assemble import Modules
    from nvidiad.nouns.manifest import Manifest

_STAGE = "io.nvidiad.stage"
_TRANSPORT = "transport.tar"


class Options(Value):
    """How an image is built."""

    reference: str
    """The image's name: repository and tag."""
    dockerfiles: Path
    """The directory that has `driver/` and `transport/`."""
    base: str = "alpine:3.20"
    """The image under the installer; docker/README.md says what it must have."""
    developer: str = ""
    """The developer image; empty is `FAMILY-developer:RELEASE`."""
    jobs: int = 0
    """How many compilers run at once; 0 is one for each processor."""
    exclude: tuple[str, ...] = ()
    """Modules that are not built."""
    key: Path | None = None
    certificate: Path | None = None
    """A private key and its certificate as PEM files: with them the modules are signed."""
    fresh: bool = False
    """Whether nothing of earlier builds is used."""
    keep: bool = False
    """Whether the image with the compiled modules stays in the engine."""


class Built(Value):
    """An image that was made."""

    reference: str
    build: Build
    image_id: str
    layer: str
    """The digest of the layer with the tree, uncompressed: the same for the same inputs."""
    manifest: str
    """The sha256 of its manifest."""
    compiler: str
    modules: tuple[str, ...]
    tree_bytes: int
    image_bytes: int
    compile_seconds: float
    seconds: float
    absent: tuple[str, ...] = ()
    """What a driver usually has, and this package has not."""
    bill: str = ""
    """Its bill of materials."""


class Engine(Protocol):
    """What building asks of a container engine."""

    def has(self, reference: str) -> bool: ...
    def labels(self, reference: str) -> Mapping[str, str]: ...
    def layers(self, reference: str) -> tuple[str, ...]: ...
    def image_id(self, reference: str) -> str: ...
    def size(self, reference: str) -> int: ...
    def extract(self, reference: str, path: str, dest: Path) -> None: ...
    def remove(self, reference: str) -> None: ...
    def prune(self, label: str) -> None: ...
    def build(
        self,
        context: Path,
        reference: str,
        *,
        arguments: Mapping[str, str],
        target: str = "",
        fresh: bool = False,
        what: str = "",
        say: Callable[[str], None],
    ) -> None: ...


class Workspace(assembling.Files, Protocol):
    """The files of what is being made."""

    def directory(self) -> AbstractContextManager[Path]: ...
    def processors(self) -> int: ...
    def read(self, path: Path) -> str: ...
    def copy(self, source: Path, dest: Path, *names: str) -> None: ...
    def move(self, source: Path, dest: Path) -> None: ...
    def pack(self, directory: Path, archive: Path) -> int: ...


def build(
    release: OsRelease,
    driver: DriverSource,
    options: Options,
    engine: Engine,
    workspace: Workspace,
    modules: Modules,
    unpack: Callable[[DriverSource, Path, Callable[[Progress], None]], Layout],
    clock: Callable[[], float],
    tell: Callable[[Progress], None],
) -> Built:
    """Make the image of a driver for a release.

    `unpack` gives the driver's package unpacked in a directory, checked, with its layout; `clock` the
    seconds since any time. Raises build-failed with the compiler's first error, image-missing where there
    is no developer image, source-invalid or digest-mismatch where the package is not what it should be.
    """
    begun = clock()
    developer = options.developer or developers.reference(release)
    release = known_kernel(release, developer, engine)
    with workspace.directory() as where:
        source, compiled = where / "source", where / "compiled"
        source.mkdir()
        layout = unpack(driver, source, tell)
        compile_begun = clock()
        _compile(release, driver, developer, layout, where, options, engine, workspace, tell)
        compile_seconds = clock() - compile_begun
        compiler = workspace.read(compiled / "compiler").strip()
        names = tuple(sorted(path.name for path in compiled.glob("*.ko")))
        manifest, text = assembling.assemble(
            *(
                release,
                driver,
                layout,
                source,
                compiled,
                compiler,
                where / "image",
                workspace,
                modules,
                tell,
            ),
            key=options.key,
            certificate=options.certificate,
        )
        digest = pack(manifest, text, where, options, engine, workspace, tell)
    base = engine.image_id(options.base) if engine.has(options.base) else ""
    made = bom.Made(developer, engine.image_id(developer), options.base, base)
    return Built(
        reference=options.reference,
        build=manifest.build,
        image_id=engine.image_id(options.reference),
        layer=engine.layers(options.reference)[-1],
        manifest=digest,
        compiler=compiler,
        modules=names,
        tree_bytes=manifest.size,
        image_bytes=engine.size(options.reference),
        compile_seconds=compile_seconds,
        seconds=clock() - begun,
        absent=layout.absent,
        bill=bom.driver_image(options.reference, manifest, digest, driver, made),
    )


def known_kernel(release: OsRelease, developer: str, engine: Engine) -> OsRelease:
    """The release with the kernel that its developer image has, which no feed needs to tell."""
    if not engine.has(developer):
        raise Permanent(
            Code.IMAGE_MISSING,
            f"the developer image '{developer}' of {release} is not in the container engine",
            f"Make it: nvidiad-image developer {release.version}",
        )
    labels = engine.labels(developer)
    kernel = labels.get(developers.KERNEL, "")
    # A feed does not tell the revision that a kernel of Flatcar's may end with (-r1): the image does.
    exact = release.family is Family.DEBIAN
    if exact and release.kernel and kernel and kernel != release.kernel:
        raise Permanent(
            Code.IMAGE_MISMATCH,
            f"the developer image '{developer}' has kernel '{kernel}', but {release} has '{release.kernel}'",
            "Remove the image and make it again.",
        )
    if not (kernel or release.kernel):
        raise Permanent(
            Code.RELEASE_UNKNOWN,
            f"neither the developer image '{developer}' nor a feed says which kernel {release} has",
            f"Give the image a label '{developers.KERNEL}'.",
        )
    return replace(release, kernel=kernel or release.kernel)


def _compile(
    release: OsRelease,
    driver: DriverSource,
    developer: str,
    layout: Layout,
    where: Path,
    options: Options,
    engine: Engine,
    workspace: Workspace,
    tell: Callable[[Progress], None],
) -> None:
    """Stage one: the modules, in `compiled` with what the compiler calls itself."""
    context = where / "modules"
    kernel = where / "source" / layout.kernel
    if not kernel.is_dir():
        raise Permanent(
            Code.SOURCE_INVALID,
            f"the package of driver '{driver}' has no sources of its {driver.flavour} modules",
            "Choose the other flavour, or another version.",
        )
    workspace.copy(options.dockerfiles / "driver", context, "Dockerfile", "compile")
    workspace.move(kernel, context / "source")
    stage = re.sub(r"[^0-9a-z_.-]", "-", options.reference.rpartition(":")[2].lower()) or "stage"
    reference = f"nvidiad-modules:{stage}"
    jobs = options.jobs or workspace.processors()
    arguments = {"DEVELOPER": developer, "KERNEL": release.kernel, "JOBS": str(jobs), "STAGE": stage}
    arguments["EXCLUDE"] = " ".join(options.exclude)

    def say(line: str) -> None:
        tell(Progress("compile-modules", line))

    what = f"driver {driver} for {release}, kernel {release.kernel},"
    try:
        how = {"target": "modules", "what": what}
        engine.build(context, reference, arguments=arguments, fresh=options.fresh, say=say, **how)
        engine.extract(reference, "/out", where / "compiled")
    finally:
        if not options.keep:
            engine.remove(reference)
            engine.prune(f"{_STAGE}={stage}")


def pack(
    manifest: Manifest,
    text: str,
    where: Path,
    options: Options,
    engine: Engine,
    workspace: Workspace,
    tell: Callable[[Progress], None],
) -> str:
    """Stage two: the image of the tree in `image`; the digest of its manifest."""
    context, root = where / "transport", where / "image"
    workspace.copy(options.dockerfiles / "transport", context, "Dockerfile")
    workspace.copy(options.dockerfiles / "transport", root, "install")
    (root / "install").chmod(0o755)
    tell(Progress("pack-image", _TRANSPORT))
    workspace.pack(root, context / _TRANSPORT)
    digest = hashlib.sha256(text.encode()).hexdigest()
    arguments = transport_arguments(manifests.labels(manifest, digest)) | {"BASE": options.base}

    def say(line: str) -> None:
        tell(Progress("pack-image", line))

    engine.build(context, options.reference, arguments=arguments, say=say)
    return digest


def transport_arguments(labels: Mapping[str, str]) -> dict[str, str]:
    """The arguments by which docker/transport/Dockerfile sets these labels: OS_ID sets io.nvidiad.os.id."""
    return {
        re.sub(r"[.-]", "_", key.removeprefix(manifests.LABEL)).upper(): value
        for key, value in sorted(labels.items())
    }
