# SPDX-License-Identifier: Apache-2.0
"""The real driver: NVIDIA's open modules from Debian's source package, compiled for a real Debian kernel."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.image.nouns import developer as developers
from nvidiad.image.nouns.model import Architecture, DriverSource, Family, OsRelease, SourceKind
from nvidiad.image.verbs import build as building
from nvidiad.image.verbs import debian
from nvidiad.image.verbs.build import Built, Options
from nvidiad.image.world.archive import Archive
from nvidiad.image.world.driver import arrange_debian
from nvidiad.image.world.engine import Engine
from nvidiad.image.world.workspace import Workspace
from nvidiad.nouns.model import Flavour
from nvidiad.world.files import walk
from nvidiad.world.modules import Modules
from tests.beds.common import CHECKOUT, cache_dir, cached, require
from tests.images.workshop import BASE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nvidiad.image.thought.package import Layout
    from nvidiad.nouns.model import Progress
    from tests.images.workshop import Workshop

DRIVER = "535.261.03"
KERNEL = "6.1.0-50-amd64"
BROKEN = "6.1.0-56-amd64"
"""A later point release of the same series, whose pci_resize_resource() these sources do not know."""
SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
REFERENCE = f"workshop/nvidia-driver:{KERNEL}-{DRIVER}"
SOURCE = DriverSource(DRIVER, Flavour.OPEN, SourceKind.DEBIAN, location="bookworm")
_PACKAGES = ("mmdebstrap", "debian-archive-keyring", "dpkg", "patchelf")
# What of the product the image depends on; tests of other parts must not compile it again.
_CODE = (
    *(
        "nvidiad/image/thought/package.py",
        "nvidiad/image/thought/debian.py",
        "nvidiad/image/verbs/assemble.py",
    ),
    *("nvidiad/image/verbs/build.py", "nvidiad/image/verbs/debian.py"),
    *("nvidiad/image/world/compiled.py", "nvidiad/image/world/driver.py", "nvidiad/image/world/tar.py"),
    *("nvidiad/image/world/workspace.py", "nvidiad/nouns/manifest.py", "nvidiad/nouns/entries.py"),
    *("docker/driver/Dockerfile", "docker/driver/compile", "docker/transport/Dockerfile"),
    "docker/transport/install",
)


COMPILING = {name: (CHECKOUT / "docker/driver" / name).read_text() for name in ("Dockerfile", "compile")}


def release(kernel: str = KERNEL) -> OsRelease:
    """A Debian kernel as a release."""
    return OsRelease(Family.DEBIAN, kernel, "bookworm", Architecture.AMD64, kernel)


@contextmanager
def archive() -> Iterator[Archive]:
    """Debian's archive; its lists are fetched anew, and go again, as other test runs may be at it."""
    require(*_PACKAGES)
    with tempfile.TemporaryDirectory(prefix="nvidiad-apt-", dir="/var/tmp") as where:
        yield Archive(Path(where), SUITES, Architecture.AMD64)


def developer_image(workshop: Workshop, kernel: str = KERNEL) -> str:
    """The developer image of a kernel in a workshop's engine, made once and kept in the cache."""
    reference = developers.reference(release(kernel))
    if workshop.engine.has(reference):
        return reference

    def build(partial: Path) -> None:
        with archive() as packages:
            debian.developer(release(kernel), packages, workshop.engine, Workspace(), _silent)
        workshop.engine.save(reference, partial)

    code = _digest_of("nvidiad/image/world/archive.py", "nvidiad/image/thought/debian.py")
    kept = cached("developer-image", [kernel, SUITES, code], build)
    if not workshop.engine.has(reference):
        workshop.engine.load(kept)
    return reference


def unpacked() -> Path:
    """The unpacked packages of the real driver, as they are when their layout is made."""

    def build(partial: Path) -> None:
        partial.mkdir()
        with archive() as packages:
            debian.driver(SOURCE, packages, arrange_debian, Workspace(), partial, _silent)

    code = _digest_of(*_CODE[:2], "nvidiad/image/verbs/debian.py")
    return cached("driver-packages", [DRIVER, SUITES, code], build)


def unpack(source: DriverSource, dest: Path, tell: Callable[[Progress], None]) -> Layout:
    """The port of `build`, out of the cache."""
    del tell
    shutil.copytree(unpacked(), dest, symlinks=True, dirs_exist_ok=True)
    return arrange_debian(source, dest)


def make(workshop: Workshop, kernel: str, reference: str, **more: object) -> Built:
    """Build the real driver for a kernel, now."""
    require(*_PACKAGES)
    options = Options(
        reference,
        CHECKOUT / "docker",
        base=BASE,
        developer=developer_image(workshop, kernel),
        **more,  # type: ignore[arg-type]
    )
    return building.build(
        release(kernel),
        SOURCE,
        options,
        KeptModules(workshop) if kernel == KERNEL and not options.fresh else workshop.engine,
        Workspace(),
        Modules(),
        unpack,
        time.monotonic,
        _tell,
    )


class KeptModules(Engine):
    """The workshop's engine, but the real modules are compiled once for as long as the cache lives.

    They depend on their sources, the kernel and the directory docker/driver; what packs them may change.
    """

    def __init__(self, workshop: Workshop) -> None:
        super().__init__(str(workshop.socket))

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
    ) -> None:
        """Stage one from the cache, everything else as it is."""
        if target != "modules":
            super().build(context, reference, arguments=arguments, say=say)
            return

        def build(partial: Path) -> None:
            begun = time.monotonic()
            super(KeptModules, self).build(
                *(context, reference), arguments=arguments, target=target, fresh=fresh, what=what, say=say
            )
            partial.mkdir()
            (partial / "seconds").write_text(f"{time.monotonic() - begun:.1f}\n")
            self.save(reference, partial / "image.tar")
            (partial / "reference").write_text(reference)

        sources = [(name, found.st_size) for name, found in walk(context / "source")]
        inputs = [sources, arguments["KERNEL"], arguments.get("EXCLUDE", ""), COMPILING]
        kept = cached("real-modules", inputs, build)
        say(f"compiled in {(kept / 'seconds').read_text().strip()} s, once")
        if not self.has(reference):
            self.load(kept / "image.tar")
            self.tag((kept / "reference").read_text(), reference)


def real_archive(workshop: Workshop) -> Path:
    """A directory in the cache with `image.tar` (for `docker load`) and `built.json`: what building said."""

    def build(partial: Path) -> None:
        made = make(workshop, KERNEL, REFERENCE)
        partial.mkdir()
        workshop.engine.save(REFERENCE, partial / "image.tar")
        facts = {name: getattr(made, name) for name in Built.__match_args__ if name != "build"}
        # These may have been compiled earlier.
        facts["compile_seconds"] = _compile_seconds()
        (partial / "built.json").write_text(json.dumps(facts, indent=1) + "\n")

    return cached("real-image", [DRIVER, KERNEL, SUITES, _digest_of(*_CODE)], build)


def real_image(workshop: Workshop) -> str:
    """The image of the real driver for the real kernel in a workshop's engine, built once and cached."""
    if not workshop.engine.has(REFERENCE):
        kept = real_archive(workshop)
        if not workshop.engine.has(REFERENCE):
            workshop.engine.load(kept / "image.tar")
    return REFERENCE


def _compile_seconds() -> float:
    """What compiling the real modules took, the last time that it was done."""
    kept = max(cache_dir().glob("real-modules-*/seconds"), key=lambda path: path.stat().st_mtime)
    return float(kept.read_text())


def _digest_of(*names: str) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update((CHECKOUT / name).read_bytes())
    return digest.hexdigest()


def _silent(_: Progress) -> None:
    """Nobody looks at a test's progress."""


def _tell(progress: Progress) -> None:
    """NVIDIAD_BUILD_LOG names a file that gets what the compilers say."""
    if path := os.environ.get("NVIDIAD_BUILD_LOG"):
        with Path(path).open("a") as log:
            log.write(f"{time.strftime('%X')} {progress.step} {progress.detail}\n")
