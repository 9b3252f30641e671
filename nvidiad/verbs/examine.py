# SPDX-License-Identifier: Apache-2.0
"""Examining: what takes too long for a boot is looked at when a tree is installed, or somebody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.errors import Failure, Permanent
from nvidiad.nouns.model import Flavour, Tree
from nvidiad.thought import examination, preflight
from nvidiad.thought.preflight import failed, skipped
from nvidiad.verbs.observer import known_good

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from nvidiad.nouns.model import Build, ModuleFile
    from nvidiad.thought.preflight import Check
    from nvidiad.verbs.ports import DriverPorts, Kernels, Ports


def refuse_image(ports: Ports, labels: Mapping[str, str], build: Build) -> None:
    """Refuse an image whose labels say that its driver serves no GPU of this host: nothing of it is run."""
    flavour = labels.get(f"{manifests.LABEL}flavour", "")
    said = Flavour(flavour) if flavour in tuple(Flavour) else None
    image = Tree("", build, said, pci=manifests.devices(labels))
    _refuse([_served(ports.driver, image)])


def refuse_tree(ports: Ports, path: str, build: Build, wanted: Sequence[str] = ()) -> None:
    """Refuse a tree that was just laid down and cannot come up here.

    `wanted` are the modules that are to be loaded; where nobody says, all of the tree's are looked at.
    """
    tree = next((tree for tree in ports.driver.trees.list() if tree.path == path), None)
    if tree is not None:
        _refuse(_tree_checks(ports, tree, build, wanted))


def _tree_checks(ports: Ports, tree: Tree, build: Build, wanted: Sequence[str]) -> Iterator[Check]:
    driver = ports.driver
    yield preflight.identity(tree, driver.host.machine())
    yield _served(driver, tree)
    modules = driver.modules.read(tree.path, build.kernel)
    yield preflight.versions(modules, tree)
    if not _is_of_another_os(build, driver):
        yield symbols(ports.kernels, preflight.loading(modules, wanted) if wanted else modules, build.kernel)


def _is_of_another_os(build: Build, driver: DriverPorts) -> bool:
    """Whether the kernel's modules on disk are those of another build, whatever its release is called.

    An OS that is replaced as a whole brings its kernel with it; one in place has both kernels on disk.
    """
    running, kernel = driver.host.release().version, driver.host.kernel()
    return build.os_version not in (running, kernel) and build.kernel == kernel


def _served(driver: DriverPorts, tree: Tree) -> Check:
    loaded = {module.name: module.version for module in driver.modules.loaded()}
    good = preflight.seen_ready(tree, known_good(driver.memories.read()), driver.trees.list())
    return preflight.served(driver.gpus.list(), tree, loaded=loaded.get("nvidia"), good=good)


def symbols(kernels: Kernels, modules: tuple[ModuleFile, ...], kernel: str) -> Check:
    """Whether a kernel as it is on disk has the symbols that these modules were built with."""
    if not modules:
        return skipped(examination.SYMBOLS, "no module could be read")
    try:
        imports = kernels.imports(tuple(module.path for module in modules))
    except Failure as failure:
        return failed(examination.SYMBOLS, failure.code, failure.sentence, failure.remedy)
    wanted = frozenset(name for each in imports for name in each.versions)
    return examination.symbols(modules, imports, kernels.symbols(kernel, wanted), kernel)


def _refuse(checks: Iterable[Check]) -> None:
    if problem := preflight.refusal(checks):
        raise Permanent(problem.code, problem.sentence, problem.remedy)
