# SPDX-License-Identifier: Apache-2.0
"""Vouchers: the signatures of an image that its registry holds, and the keys that may have made them."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING, TypeVar

from nvidiad.nouns.errors import Code, Failure
from nvidiad.thought import cosign
from nvidiad.world.keys import PublicKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path, PurePosixPath

    from nvidiad.thought.cosign import Seal
    from nvidiad.world.downloads import Place
    from nvidiad.world.layouts import LocalStores
    from nvidiad.world.places import Registries
    from nvidiad.world.registry import Limits

T = TypeVar("T")

# Of one image; whoever may push there could lay down any number to be asked for.
_REFERRERS = 32


class Vouchers:
    """The port `Vouchers` over the registry's own API: no engine hands out what is no image."""

    def __init__(
        self,
        keys: Sequence[PurePosixPath],
        root: Path,
        *,
        required: bool,
        registries: Registries | LocalStores,
        limits: Limits,
        repository: str = "",
    ) -> None:
        self.required = required
        """Whether an image without a good signature is refused."""
        self._keys = PublicKeys(keys, root)
        self._registries = registries
        self._limits = limits
        self._repository = repository
        """Where signatures are, where that is not beside the image."""

    def signer(self, signed: bytes, signature: bytes) -> str:
        """The name of the configured key that made this signature, empty where none of them did."""
        return self._keys.signer(signed, signature)

    def seals(self, reference: str, digest: str) -> Iterator[Seal]:
        """The signatures of an image, one request after the other: mostly the first one is enough.

        Each place is asked: a mirror may have those of yesterday under the same tag.
        """
        self._keys.read()
        known: set[Seal] = set()
        with closing(self._registries.beside(reference, self._repository, self._limits)) as repository:
            *mirrors, registry = repository.places
            for mirror in mirrors:
                with suppress(Failure):  # the next one has it, or says itself why not
                    yield from _new(mirror, digest, known)
            yield from _new(registry, digest, known)


def _new(place: Place, digest: str, known: set[Seal]) -> Iterator[Seal]:
    """The signatures that one place has, but for those that are known."""
    for seal in _all(place, digest):
        if seal not in known:
            known.add(seal)
            yield seal


def _all(place: Place, digest: str) -> Iterator[Seal]:
    if place.head(cosign.tag(digest)) is not None:
        yield from _sealed(place, cosign.tag(digest))
    signing = [each for each, kind in place.referrers(digest) if cosign.may_seal(kind)]
    for each in signing[:_REFERRERS]:
        yield from _sealed(place, each)


def _sealed(repository: Place, name: str) -> Iterator[Seal]:
    """The signatures of one manifest; one that is damaged vouches for nothing, and hides no other."""
    document = _if_whole(repository.manifest, name)
    if document is None:
        return
    blobs = {}
    for digest in cosign.material(document):
        blob = _if_whole(lambda each: repository.blob(each, cosign.MAX_BYTES), digest)
        if blob is not None:
            blobs[digest] = blob
    yield from cosign.seals(document, blobs)


def _if_whole(fetch: Callable[[str], T], name: str) -> T | None:
    """What is fetched; None where it is not there, or not what its digest says."""
    try:
        return fetch(name)
    except Failure as failure:
        if failure.code in (Code.IMAGE_CORRUPT, Code.IMAGE_MISSING, Code.IMAGE_FOREIGN):
            return None
        raise
