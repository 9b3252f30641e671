# SPDX-License-Identifier: Apache-2.0
"""The wiring of the matrix: recipe, releases, registry and shop are put together here."""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.image.nouns.model import Architecture, Family, SourceKind
from nvidiad.image.shop import URLS, Against, Making, Shop, build, find, make_developer, proof
from nvidiad.image.thought import recipe
from nvidiad.image.verbs import publish, releases, survey
from nvidiad.image.world.upload import upload
from nvidiad.nouns.errors import Code, Failure, Permanent
from nvidiad.nouns.value import replace
from nvidiad.thought import pull
from nvidiad.world.credentials import credentials
from nvidiad.world.registry import Limits
from nvidiad.world.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvidiad.image.nouns.model import Cell, DriverSource, OsRelease, Verdict
    from nvidiad.image.nouns.publication import Published
    from nvidiad.image.nouns.recipe import OsWish, Recipe
    from nvidiad.nouns.model import Progress

    Tell = Callable[[Progress], None]


def read_recipe(path: Path) -> Recipe:
    """A recipe; what it names relative to itself is found from anywhere."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise Permanent(Code.RECIPE_INVALID, f"'{path}' cannot be read: {why}", "Name a recipe.") from None
    read = recipe.load(str(path), text)
    drivers = tuple(replace(wish, source=_beside(path, wish.source)) for wish in read.drivers)
    return replace(read, drivers=drivers, key=str(path.parent / read.key) if read.key else "")


def _beside(recipe_file: Path, source: DriverSource) -> DriverSource:
    """The driver with its files where they are for whoever reads the recipe from elsewhere."""

    def found(location: str) -> str:
        return location if not location or location.startswith(URLS) else str(recipe_file.parent / location)

    if source.kind is SourceKind.DEBIAN:
        return source
    return replace(source, location=found(source.location), fabric_manager=found(source.fabric_manager))


def wanted_releases(shop: Shop, read: Recipe, tell: Tell) -> releases.Found:
    """What the recipe's systems have; one system that cannot be asked does not stop the others."""
    found: list[OsRelease] = []
    notes: list[str] = []
    failures: list[Failure] = []
    for system in read.systems:
        try:
            known = _system(shop, system, tell)
        except Failure as failure:
            failures.append(failure)
            notes.append(failure.sentence)
            continue
        found += known.releases
        notes += known.notes
    if failures and not found:
        raise failures[0]
    return releases.Found(tuple(dict.fromkeys(found)), tuple(dict.fromkeys(notes)), failed=bool(failures))


def _system(shop: Shop, system: OsWish, tell: Tell) -> releases.Found:
    at = replace(shop, mirror=system.mirror) if system.mirror else shop
    newest = 0 if system.family is Family.DEBIAN else system.newest  # the matrix chooses among kernels
    return find(at, system.family, system.channels, system.architectures, newest, tell)


@contextmanager
def repository(shop: Shop, read: Recipe) -> Iterator[Repository]:
    """The recipe's repository."""
    host = pull.parse_reference(f"{read.repository}:tag").registry
    opened = Repository(
        read.repository,
        credentials(shop.auth_file, host),
        limits=Limits(connections=read.connections),
        insecure=shop.insecure,
    )
    try:
        yield opened
    finally:
        opened.close()


def look(shop: Shop, read: Recipe, known: releases.Found, tell: Tell) -> survey.Survey:
    """How things stand in the registry."""
    with repository(shop, read) as registry:
        found = survey.survey(read, known.releases, registry, tell)
    return replace(found, notes=(*known.notes, *found.notes))


def publish_all(
    shop: Shop, read: Recipe, known: releases.Found, wishes: publish.Wishes, making: Making, tell: Tell
) -> Published:
    """Bring the registry to what the recipe wants."""
    from nvidiad.image.world.signing import SigningKey

    signer = SigningKey(Path(read.key)) if read.key else None
    made = replace(making, base=read.base, developers=read.developers)
    with repository(shop, read) as registry:
        done = publish.publish(
            read,
            known.releases,
            registry=registry,
            workshop=_Workshop(shop, read, registry, made),
            signer=signer,
            wishes=wishes,
            now=lambda: datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            tell=tell,
        )
    return replace(done, notes=(*known.notes, *done.notes))


class _Workshop:
    """What publishing makes images with."""

    def __init__(self, shop: Shop, read: Recipe, registry: Repository, making: Making) -> None:
        self._shop, self._recipe, self._registry, self._making = shop, read, registry, making
        self._bills: dict[str, str] = {}

    def developer(self, release: OsRelease, tell: Tell) -> tuple[str, OsRelease]:
        shop = self._shop
        for system in self._recipe.systems:
            if system.mirror and system.family is release.family:
                shop = replace(shop, mirror=system.mirror)
        made = make_developer(shop, release, self._making.developers, again=False, tell=tell)
        return made.reference, made.release

    def build(self, cell: Cell, developer: str, tell: Tell) -> str:
        del developer  # its name follows from the release
        reference = f"{self._recipe.repository}:{cell.tag}"
        built = build(self._shop, cell.release, cell.driver, reference, self._making, tell)
        self._bills[built.reference] = built.bill
        return built.reference

    def prove(self, cell: Cell, image: str, developer: str, tell: Tell) -> Verdict:
        return proof(self._shop, image, Against(developer), expected=cell.build, tell=tell)

    def push(self, image: str, tell: Tell) -> str:
        return upload(self._shop.engine.save, image, self._registry, self._shop.temporary, tell)

    def bill(self, image: str) -> str:
        return self._bills.get(image, "")

    def discard(self, image: str) -> None:
        self._bills.pop(image, None)
        self._shop.engine.remove(image)


def this_machine() -> Architecture:
    """What this machine compiles for and boots: images of others are left to runs on other machines."""
    machine = os.uname().machine
    return next((known for known in Architecture if known.machine == machine), Architecture.AMD64)
