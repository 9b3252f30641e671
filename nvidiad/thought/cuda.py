# SPDX-License-Identifier: Apache-2.0
"""CUDA: what is to be done until the configured one is current; it comes last and holds nothing up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns import manifest, naming
from nvidiad.nouns.model import Build, Kind, problem_of
from nvidiad.nouns.steps import InstallTree, PullImage, SelectTree
from nvidiad.thought.trust import pinned

if TYPE_CHECKING:
    from nvidiad.nouns.facts import CudaFacts
    from nvidiad.nouns.model import Problem, Tree
    from nvidiad.nouns.steps import Step
    from nvidiad.thought.settings import Settings


def wanted(settings: Settings) -> Build | None:
    """The CUDA that this host should have, if any."""
    version = settings.cuda.version
    return Build(version, "", "", kind=Kind.CUDA) if version and settings.cuda.repository else None


def reference(build: Build, settings: Settings) -> str:
    """The image of the wanted CUDA."""
    return pinned(f"{settings.cuda.repository}:{naming.image_tag(settings.cuda.tag, build)}", settings)


def retry_key(image: str) -> str:
    """What a failure on the way from this image to `current` is remembered under."""
    return f"cuda {image}"


def refusal(facts: CudaFacts, build: Build, driver: str) -> Problem | None:
    """Why the wanted CUDA, which is on disk, is not to be current: the wanted driver is too old for it."""
    tree = _on_disk(facts, build)
    if tree is None or not driver or not naming.is_older(driver, tree.minimum_driver):
        return None
    return problem_of(manifest.too_old(build, tree.minimum_driver, driver))


def steps(facts: CudaFacts, build: Build, driver: str, settings: Settings) -> tuple[Step, ...]:
    """Fetch it where it is not on disk and let `current` name it; nothing where it does."""
    tree = _on_disk(facts, build)
    if tree and tree.path == facts.current:
        return ()
    image, root = reference(build, settings), settings.install.root
    place = tree.path if tree else str(naming.tree_path(root, build))
    fetch: tuple[Step, ...] = () if tree else (PullImage(image, build), InstallTree(image, build, driver))
    return (*fetch, SelectTree(place, str(naming.current_path(root, Kind.CUDA))))


def _on_disk(facts: CudaFacts, build: Build) -> Tree | None:
    return next((tree for tree in facts.trees if tree.build == build), None)


def warning(facts: CudaFacts, build: Build, problem: Problem) -> str:
    """What of CUDA's problem is told among the warnings."""
    tree = _on_disk(facts, build)
    # Current once, it stays so: pods have it mounted.
    told = tree is not None and tree.path == facts.current
    return problem.sentence if told else f"{build} is not in force: {problem.sentence}"


def expendable(facts: CudaFacts, build: Build | None) -> tuple[Tree, ...]:
    """The trees that are neither current nor wanted."""
    return tuple(tree for tree in facts.trees if tree.path != facts.current and tree.build != build)
