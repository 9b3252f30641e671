# SPDX-License-Identifier: Apache-2.0
"""Assemble: from a package, its layout and compiled modules to a tree with its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nvidiad.image.nouns.model import SourceKind
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.manifest import Manifest
from nvidiad.nouns.model import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvidiad.image.nouns.model import DriverSource, OsRelease
    from nvidiad.image.thought.package import Layout
    from nvidiad.nouns.entries import Entry
    from nvidiad.nouns.model import ModuleFile

PERSISTENCED = "bin/nvidia-persistenced"
PRIVATE = "../lib/nvidia-persistenced"
"""Where the persistence daemon of Debian's has its libraries, seen from its own directory."""


class Modules(Protocol):
    """Reads compiled modules."""

    def read(self, tree: str, kernel: str) -> tuple[ModuleFile, ...]: ...


class Files(Protocol):
    """Works on the files of a tree."""

    def lay(self, layout: Layout, source: Path, tree: Path, advanced: Callable[[int], None]) -> None: ...
    def bundle(self, program: Path, source: Path, directory: str) -> tuple[str, ...]: ...
    def take_modules(self, source: Path, dest: Path) -> tuple[str, ...]: ...
    def sign(self, module: Path, key: Path, certificate: Path) -> None: ...
    def entries(self, tree: Path) -> tuple[Entry, ...]: ...
    def write(self, path: Path, text: str) -> None: ...


def assemble(
    release: OsRelease,
    driver: DriverSource,
    layout: Layout,
    source: Path,
    compiled: Path,
    compiler: str,
    root: Path,
    files: Files,
    modules: Modules,
    tell: Callable[[Progress], None],
    *,
    key: Path | None = None,
    certificate: Path | None = None,
) -> tuple[Manifest, str]:
    """Lay the tree of a build down below `root`, as the image has it; its manifest, as value and as text.

    `source` is the unpacked package, `compiled` has the modules, `compiler` says what made them. Modules
    are signed where a key is given. Raises build-failed where the modules are not those of the release.
    """
    tree = root / "opt/nvidia" / driver.version / release.version
    done = 0

    def advanced(size: int) -> None:
        nonlocal done
        done += size
        tell(Progress("assemble", f"tree of driver {driver.version}", done))

    files.lay(layout, source, tree, advanced)
    if driver.kind is SourceKind.DEBIAN and any(item.path == PERSISTENCED for item in layout.items):
        files.bundle(tree / PERSISTENCED, source, PRIVATE)
    folder = tree / "lib/modules" / release.kernel
    names = files.take_modules(compiled, folder)
    found = modules.read(str(tree), release.kernel)
    vermagic = check_modules(found, release, driver)
    if key is not None and certificate is not None:
        for name in names:
            tell(Progress("sign-modules", name))
            files.sign(folder / name, key, certificate)
    tell(Progress("assemble", "manifest"))
    made = Manifest(
        driver=driver.version,
        flavour=driver.flavour,
        product=driver.product,
        architecture=release.architecture.machine,
        os_id=str(release.family),
        os_version=release.version,
        kernel=release.kernel,
        vermagic=vermagic,
        compiler=compiler,
        pci=layout.pci,
        entries=files.entries(tree),
    )
    text = manifests.render(made)
    # What the daemon would refuse is refused here, where somebody can do something about it.
    manifests.parse(text)
    files.write(tree / naming.MANIFEST, text)
    return made, text


def check_modules(found: tuple[ModuleFile, ...], release: OsRelease, driver: DriverSource) -> str:
    """The vermagic of the driver's modules, which are all for this kernel and of this version."""
    by_name = {module.name: module for module in found}
    if "nvidia" not in by_name:
        raise _wrong(release, driver, "no nvidia.ko came of it")
    for module in found:
        if module.kernel != release.kernel:
            raise _wrong(release, driver, f"'{Path(module.path).name}' is for kernel '{module.kernel}'")
        if module.version and module.version != driver.version:
            raise _wrong(release, driver, f"'{Path(module.path).name}' is of version '{module.version}'")
    return by_name["nvidia"].vermagic


def _wrong(release: OsRelease, driver: DriverSource, why: str) -> Permanent:
    return Permanent(
        Code.BUILD_FAILED,
        f"driver '{driver.version}' was built for {release}, kernel '{release.kernel}', but {why}",
        "Check that the developer image and the driver's package are the ones that are meant.",
    )
