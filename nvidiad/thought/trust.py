# SPDX-License-Identifier: Apache-2.0
"""Trust: which image a tag may name, and whether the signatures of an image are enough to run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.thought.distribution import path_of
from nvidiad.thought.pull import DOCKER_HUB, HUB_NAMES, clean, parse_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nvidiad.thought.cosign import Seal
    from nvidiad.thought.settings import Settings


def pinned(reference: str, settings: Settings) -> str:
    """An image reference with the digest that the configuration pins it to, if it pins it.

    Raises:
        Failure: IMAGE_MISMATCH, where the reference has another digest already.
    """
    name, _, given = reference.partition("@")
    wanted = same_name(name)
    digest = next((pin for each, pin in settings.trust.pins.items() if same_name(each) == wanted), "")
    if given and digest and given != digest:
        raise Permanent(
            Code.IMAGE_MISMATCH,
            f"'{clean(name)}' is pinned to {digest}, and '{clean(given)}' is asked for",
            "Correct or remove the pin in 'trust.pins'.",
        )
    return f"{name}@{digest}" if digest else reference


def same_name(name: str) -> tuple[str, str, str]:
    """An image's registry, path and tag, however they are written."""
    parts = parse_reference(name)
    path = parts.repository.removeprefix(f"{parts.registry}/")
    registry = parts.registry.lower()
    registry = DOCKER_HUB if registry in HUB_NAMES else registry
    return registry, path_of(path, registry), parts.tag or "latest"


def signer(
    reference: str, digest: str, seals: Iterable[Seal], signed_by: Callable[[bytes, bytes], str]
) -> str:
    """The key that vouches for an image; `signed_by` gives the name of the key that made a signature, or "".

    Raises:
        Failure: SIGNATURE_MISSING, where there is no signature at all; SIGNATURE_UNTRUSTED, where none of
            them is a configured key's over this very image.
    """
    strangers, others = 0, set[str]()
    for seal in seals:
        if not seal.digests:
            continue  # such as an SBOM, which may be signed and stands for nothing
        key = signed_by(seal.signed, seal.signature)
        if key and digest in seal.digests:
            return key
        if key:
            others |= set(seal.digests)
        else:
            strangers += 1
    raise _refusal(reference, digest, strangers, others)


def _refusal(reference: str, digest: str, strangers: int, others: set[str]) -> Failure:
    image = f"'{clean(reference)}' ({digest})"
    if others or strangers:
        why = []
        if others:
            named = clean(", ".join(sorted(others))) if len(others) == 1 else f"{len(others)} other images"
            why.append(f"what a configured key has signed there is {named}")
        if strangers:
            why.append(f"{strangers} of its signatures are by no configured key or damaged")
        return Transient(
            Code.SIGNATURE_UNTRUSTED,
            f"no signature of {image} can be trusted: {', and '.join(why)}",
            "Find out who published it; sign it with a key of 'trust.keys', or add its key there.",
        )
    return Transient(
        Code.SIGNATURE_MISSING,
        f"{image} is not signed",
        "Sign it (nvidiad-image publish with [sign] in its recipe, or cosign sign --key KEY), or let the "
        "tag name an image that is.",
    )
