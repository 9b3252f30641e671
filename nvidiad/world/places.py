# SPDX-License-Identifier: Apache-2.0
"""Places: where a repository is had from: its mirrors in their order, and then its registry itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from nvidiad.nouns import compatibility
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.value import Value, replace
from nvidiad.thought import distribution, refusals
from nvidiad.thought import pull as pulling
from nvidiad.world.credentials import credentials
from nvidiad.world.registry import AT_MOST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from nvidiad.nouns.compatibility import Entry
    from nvidiad.thought.distribution import Document
    from nvidiad.world.downloads import Place
    from nvidiad.world.registry import Limits

T = TypeVar("T")


class Places:
    """One repository in several places, of which the first that has something gives it.

    Nobody trusts a mirror more than its registry: content is known by its digest, a tag by its signature.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = tuple(places)

    @property
    def name(self) -> str:
        """As a person calls it."""
        return self.places[-1].name

    def head(self, reference: str) -> str | None:
        """The digest of what a tag or digest names; None where it names nothing anywhere."""
        return self._first(lambda place: place.head(reference))

    def manifest(self, reference: str) -> Document:
        """What a tag or digest names."""
        return self._found(lambda place: place.manifest(reference))

    def blob(self, digest: str, limit: int = AT_MOST) -> bytes:
        """Content of at most `limit` bytes."""
        return self._found(lambda place: place.blob(digest, limit))

    def referrers(self, digest: str) -> tuple[tuple[str, str], ...]:
        """What refers to a manifest."""
        return self._first(lambda place: place.referrers(digest) or None) or ()

    def close(self) -> None:
        """Hang up."""
        for place in self.places:
            place.close()

    def _first(self, ask: Callable[[Place], T | None]) -> T | None:
        for place in self.places[:-1]:
            try:
                if (found := ask(place)) is not None:
                    return found
            except Failure:
                continue  # the next one has it, or says itself why not
        return ask(self.places[-1])

    def _found(self, ask: Callable[[Place], T]) -> T:
        for place in self.places[:-1]:
            try:
                return ask(place)
            except Failure:
                continue
        return ask(self.places[-1])


class Registries(Value):
    """How registries are asked: with which credentials, and by which mirrors."""

    auth_file: Path | None
    mirrors: Mapping[str, Sequence[str]]
    """URLs by the name of a registry."""

    def beside(self, reference: str, elsewhere: str, limits: Limits) -> Places:
        """Where the signatures of an image are: in a repository of their own, or in the image's."""
        return self.open(elsewhere or pulling.parse_reference(reference).repository, limits)

    def open(self, repository: str, limits: Limits) -> Places:
        """A repository by its name with the registry; nothing is asked yet."""
        from nvidiad.world.repository import Repository

        registry = pulling.parse_reference(f"{repository}:tag").registry
        path = distribution.path_of(repository, registry)
        found: list[Place] = []
        # As in `Patience`: the registry has time left after the slowest of mirrors.
        half = replace(limits, whole=limits.whole / 2)
        for url in self.mirrors.get(registry, ()):
            scheme, _, place = url.partition("://")
            host = place.partition("/")[0]
            try:
                auth = credentials(self.auth_file, host)
            except Failure:
                continue  # what is wrong with the credentials of a mirror is no reason to ask nobody
            plain = scheme == "http"
            found.append(Repository(f"{place.rstrip('/')}/{path}", auth, limits=half, insecure=plain))
        return Places([*found, Repository(repository, credentials(self.auth_file, registry), limits=limits)])


class CompatibilityLists:
    """The compatibility lists beside the images that a host asks for."""

    def __init__(self, registries: Registries, limits: Limits, machine: str) -> None:
        self._registries = registries
        self._limits = limits
        self._machine = machine

    def unbuildable(self, reference: str) -> Entry | None:
        """What the list says of an image that cannot be built; None where it says nothing of the kind."""
        name = pulling.parse_reference(reference)
        repository = self._registries.open(name.repository, self._limits)
        try:
            listed = read_list(repository)
        finally:
            repository.close()
        return listed.unbuildable(name.tag, self._machine) if listed else None


def read_list(places: Place | Places) -> compatibility.Compatibility | None:
    """The compatibility list of a repository; None where it has none."""
    if places.head(compatibility.TAG) is None:
        return None
    source = f"{places.name}:{compatibility.TAG}"
    layers = distribution.layers_of(places.manifest(compatibility.TAG), compatibility.MEDIA_TYPE)
    if len(layers) != 1:
        detail = f"no artefact of type {compatibility.MEDIA_TYPE}"
        raise refusals.failure(Code.IMAGE_FOREIGN, source, detail)
    data = places.blob(layers[0], compatibility.MAX_BYTES)
    return compatibility.parse(data.decode(errors="replace"), source)
