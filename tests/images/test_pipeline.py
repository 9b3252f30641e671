# SPDX-License-Identifier: Apache-2.0
"""The whole pipeline: from a mirror's releases to images in a registry that are proven and listed."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from nvidiad.image import app
from nvidiad.image.nouns.model import Family, State
from nvidiad.image.nouns.recipe import KERNEL_TAG, DriverWish, OsWish, Recipe
from nvidiad.image.shop import Making, Shop
from nvidiad.image.thought import bom, matrix
from nvidiad.image.verbs.publish import Wishes, publish
from nvidiad.image.verbs.survey import survey
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.entries import FileEntry
from nvidiad.nouns.errors import Code
from nvidiad.nouns.value import replace
from nvidiad.thought import distribution
from nvidiad.world.places import read_list
from nvidiad.world.repository import Repository
from tests.images import realdriver, smalldriver
from tests.images.mirror import BZ2, Mirror, full_disk, small_disk
from tests.images.shelf import Shelf, shelf
from tests.images.workshop import BASE
from tests.vm.kernels import Kernel, kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nvidiad.image.nouns.model import Cell, OsRelease
    from nvidiad.image.nouns.publication import Published
    from nvidiad.nouns.model import Progress
    from tests.images.workshop import Workshop

    Tell = Callable[[Progress], None]

VERSION, NEXT = "4593.2.5", "4593.2.6"
DRIVER = smalldriver.VERSION


def quiet(_progress: Progress) -> None:
    """Nobody looks."""


@pytest.fixture
def shelved(tmp_path: Path) -> Iterator[Shelf]:
    (tmp_path / "shelf").mkdir()
    with shelf(tmp_path / "shelf") as made:
        yield made


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    with Mirror(tmp_path / "mirror") as made:
        yield made


def kernel() -> Kernel:
    return kernels().a


def shop(workshop: Workshop, tmp_path: Path, mirror: Mirror | None = None) -> Shop:
    (tmp_path / "scratch").mkdir(exist_ok=True)
    made = Shop(str(workshop.socket), tmp_path / "scratch")
    return replace(made, mirror=mirror.url, keys=(mirror.key,)) if mirror else made


def publish_all(where: Shop, recipe: Path) -> Published:
    """What `nvidiad-image publish` does."""
    read = app.read_recipe(recipe)
    known = app.wanted_releases(where, read, quiet)
    return app.publish_all(where, read, known, Wishes(), Making(), quiet)


def check_bill(registry: Repository, digest: str, manifest: Path) -> None:
    """What lies beside an image is a valid bill of what a host got of it."""
    (listed,) = registry.manifest(distribution.referrers_tag(digest)).content()["manifests"]
    (layer,) = distribution.layers_of(registry.manifest(listed["digest"]), bom.MEDIA_TYPE)
    text = registry.blob(layer).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = {one["bom-ref"]: one for one in json.loads(text)["components"]}
    installed = manifests.parse(manifest.read_text())
    wanted = {f"file:{e.path}": e.sha256 for e in installed.entries if isinstance(e, FileEntry)}
    assert {
        ref: one["hashes"][0]["content"] for ref, one in found.items() if ref.startswith("file:")
    } == wanted
    assert found["driver"]["version"] == DRIVER and found["compiler"]["version"] == installed.compiler
    assert "io.nvidiad:id" in json.dumps(found["developer"]) and "io.nvidiad:id" in json.dumps(found["base"])


# -- Flatcar, from a mirror on loopback ----------------------------------------------------------------


def test_a_release_of_a_mirror_becomes_a_proven_image_and_one_that_is_wrong_nothing(
    workshop: Workshop, mirror: Mirror, shelved: Shelf, tmp_path: Path
) -> None:
    disk = full_disk(VERSION, kernel())
    # The feed says the plain version; the true one is in the developer image.
    mirror.add_release("stable", VERSION, disk=disk, vmlinuz=kernel().image, kernel="6.1.0")
    package = smalldriver.run_package(tmp_path)
    driver = smalldriver.source(package)
    repository = f"{shelved.address}/nvidia-driver"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'repository = "{repository}"\nbase = "{BASE}"\n'
        '[[os]]\nfamily = "flatcar"\nchannels = ["stable"]\nnewest = 2\n'
        f'[[driver]]\nversion = "{DRIVER}"\nflavour = "open"\nsource = "run"\n'
        f'location = "{package.name}"\nsha256 = "{driver.sha256}"\n'
    )
    where = shop(workshop, tmp_path, mirror)
    begun = time.monotonic()
    found = publish_all(where, recipe)
    print(f"published in {time.monotonic() - begun:.0f} s")
    (outcome,) = found.outcomes
    assert outcome.problem is None, outcome.problem.sentence
    registry = Repository(repository)
    tag = f"{VERSION}-{DRIVER}"
    assert registry.head(tag) == registry.head(f"stable-{DRIVER}") == outcome.digest
    listed = read_list(registry)
    assert listed is not None
    assert [(e.tag, e.state, e.kernel) for e in listed.entries] == [(tag, "published", kernel().release)]
    assert not workshop.engine.has(f"{repository}:{tag}")
    assert not list((tmp_path / "scratch").iterdir())
    # What a host gets installs itself.
    root = tmp_path / "host"
    root.mkdir()
    pulled = f"{repository}:{tag}"
    workshop.docker("pull", pulled)
    run = ("run", "--rm", "--privileged", "--network=none", "-v", f"{root}:/rootfs", pulled)
    assert f"installed: '/opt/nvidia/{DRIVER}/{VERSION}'" in workshop.docker(*run)
    workshop.engine.remove(pulled)
    check_bill(registry, outcome.digest, root / f"opt/nvidia/{DRIVER}/{VERSION}/manifest.json")
    # Nothing new: nothing is done, and only asked.
    before = len(shelved.requests())
    begun = time.monotonic()
    again = publish_all(where, recipe)
    assert (again.outcomes, again.moved, again.listed, again.complete) == ((), (), False, True)
    assert time.monotonic() - begun < 60
    assert all(request.startswith(("HEAD", "GET")) for request in shelved.requests()[before:])
    # The next release is signed by somebody else: it stays missing, and the channel as it is.
    place = mirror.add_release("stable", NEXT, disk=small_disk(tmp_path, NEXT), kernel="6.6.60")
    (place / BZ2).write_bytes((place / BZ2).read_bytes() + b"x")
    found = publish_all(where, recipe)
    assert [(o.cell.release.version, o.problem and o.problem.code) for o in found.outcomes] == [
        (NEXT, Code.DIGEST_MISMATCH)
    ]
    assert registry.head(f"{NEXT}-{DRIVER}") is None
    assert registry.head(f"stable-{DRIVER}") == outcome.digest
    assert not found.complete
    registry.close()


# -- Debian, with the real driver ----------------------------------------------------------------------


class _Cached(app._Workshop):
    """The real pieces, with what other tests have downloaded and compiled already."""

    def __init__(self, workshop: Workshop, *more: Any) -> None:
        super().__init__(*more)
        self._workshop = workshop

    def developer(self, release: OsRelease, _tell: Tell) -> tuple[str, OsRelease]:
        return realdriver.developer_image(self._workshop, release.kernel), release

    def build(self, cell: Cell, _developer: str, _tell: Tell) -> str:
        reference = f"{self._recipe.repository}:{cell.tag}"
        if cell.release.kernel == realdriver.KERNEL:
            self._workshop.engine.tag(realdriver.real_image(self._workshop), reference)
            return reference
        return realdriver.make(self._workshop, cell.release.kernel, reference).reference


def test_the_real_driver_is_published_for_one_kernel_and_known_as_unbuildable_for_another(
    workshop: Workshop, shelved: Shelf, tmp_path: Path
) -> None:
    repository = f"{shelved.address}/nvidia-driver"
    made = Recipe(
        repository,
        (
            OsWish(
                *(Family.DEBIAN, ("bookworm",)),
                kernels=(realdriver.KERNEL, realdriver.BROKEN),
                tag=KERNEL_TAG,
            ),
        ),
        (DriverWish(realdriver.SOURCE, (Family.DEBIAN,)),),
    )
    releases = (realdriver.release(), realdriver.release(realdriver.BROKEN))
    registry = Repository(repository)
    where = shop(workshop, tmp_path)

    def run() -> Published:
        return publish(
            made,
            releases,
            registry=registry,
            workshop=_Cached(workshop, where, made, registry, Making()),
            now=lambda: "2026-11-27T01:02:03Z",
            tell=quiet,
        )

    begun = time.monotonic()
    found = run()
    print(f"published in {time.monotonic() - begun:.0f} s")
    states = {
        o.cell.release.kernel: (o.state, o.problem.sentence if o.problem else "") for o in found.outcomes
    }
    assert states[realdriver.KERNEL] == (State.PUBLISHED, ""), states[realdriver.KERNEL][1]
    state, sentence = states[realdriver.BROKEN]
    assert state is State.UNBUILDABLE
    newer = f"debian {realdriver.BROKEN} (amd64), kernel {realdriver.BROKEN},"
    assert sentence.startswith(f"driver {realdriver.DRIVER} (open) for {newer}")
    assert "nvidiad-modules" not in workshop.docker("images")
    listed = read_list(registry)
    assert listed is not None
    entry = listed.unbuildable(f"{realdriver.BROKEN}-{realdriver.DRIVER}", "x86_64")
    assert entry is not None
    assert "nv-pci.c" in entry.reason and "pci_resize_resource" in entry.reason
    shown = matrix.table(survey(made, releases, registry, quiet).standings)
    assert f"{realdriver.BROKEN}-{realdriver.DRIVER} is unbuildable: {entry.reason}" in shown
    tag = f"{realdriver.KERNEL}-{realdriver.DRIVER}"
    manifest = registry.manifest(tag).content()
    print(f"compressed: {sum(layer['size'] for layer in manifest['layers']) / 1e6:.0f} MB")
    # What cannot be built for the newest leaves the suite without a name of its own.
    assert registry.head(f"bookworm-{realdriver.DRIVER}") is None
    begun = time.monotonic()
    again = run()
    assert (again.outcomes, again.listed, again.complete) == ((), False, True)
    assert time.monotonic() - begun < 60
    registry.close()
