# SPDX-License-Identifier: Apache-2.0
"""Parcels: the parts of an image, as far as they can be unpacked without a container engine."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Transient
from nvidiad.nouns.value import Value
from nvidiad.thought import distribution, provision, refusals
from nvidiad.thought.layers import Coming, refused
from nvidiad.thought.pull import DIGEST, clean

if TYPE_CHECKING:
    from nvidiad.nouns.errors import Failure
    from nvidiad.thought.distribution import Document

_LAYER = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.v1\.tar(?:\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.diff\.tar(?:\.gzip|\.zstd)?)"
)
_CONFIGS = (distribution.OCI_CONFIG, "application/vnd.docker.container.image.v1+json")
_INDEXES = (distribution.OCI_INDEX, distribution.DOCKER_INDEX)
_MOST_LAYERS = 128
# Beside what its labels say an image may have its manifest, and a little that is then refused by name.
_BESIDE = manifests.MAX_CHARACTERS + (1 << 20)
_MOST = 64 << 30
"""Bytes of an image that does not say how many it has: no driver and no CUDA has as many."""
_MOST_ITEMS = 200_000


class Parcel(Value):
    """An image, as its manifest names its parts; sizes in bytes."""

    digest: str
    config: str
    layers: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        """What is fetched."""
        return sum(size for _, size in self.layers)


def inner(document: Document, machine: str, reference: str) -> str:
    """The manifest for this machine in what a reference names; empty where that is no index."""
    said = document.content()
    if said.get("mediaType", document.media_type) not in _INDEXES and "manifests" not in said:
        return ""
    found = provision.manifest_for(document, machine)
    if not found:
        raise refusals.failure(Code.IMAGE_MISMATCH, reference, f"its index has none for {machine}")
    return found


def parcel(document: Document, reference: str) -> Parcel:
    """The parts of an image; raises PULL_FAILED or IMAGE_FOREIGN for what is no image, or none for us."""
    said = document.content()
    config, layers = said.get("config"), said.get("layers")
    if not isinstance(config, dict) or not isinstance(layers, list):
        raise _no_image(reference, "what the registry gives for it is no manifest of an image")
    if config.get("mediaType") not in _CONFIGS:
        detail = f"its configuration is of type {clean(str(config.get('mediaType')))[:80]}"
        raise refusals.failure(Code.IMAGE_FOREIGN, reference, detail)
    if len(layers) > _MOST_LAYERS:
        raise refusals.failure(Code.IMAGE_FOREIGN, reference, f"it has {len(layers)} layers")
    parts: list[tuple[str, int]] = []
    for layer in layers:
        kind, digest, size = (
            (layer.get(key) for key in ("mediaType", "digest", "size"))
            if isinstance(layer, dict)
            else [""] * 3
        )
        if not isinstance(kind, str) or not _LAYER.fullmatch(kind):
            detail = f"one of its layers is of type {clean(str(kind))[:80]}"
            raise refusals.failure(Code.IMAGE_FOREIGN, reference, detail)
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
            raise _no_image(reference, "its manifest names a layer without digest or size")
        parts.append((digest, size))
    named = config.get("digest")
    if not isinstance(named, str) or not DIGEST.fullmatch(named):
        raise _no_image(reference, "its manifest names a configuration without a digest")
    return Parcel(document.digest, named, tuple(parts))


def _no_image(reference: str, why: str) -> Failure:
    # It may be the answer of whoever stands between us and the registry, such as a page to log in.
    sentence = f"'{clean(reference)}' cannot be pulled: {why}"
    remedy = "look at what the registry answers; nvidiad tries again by itself"
    return Transient(Code.PULL_FAILED, sentence, remedy)


def labels(config: bytes) -> dict[str, str]:
    """The labels in an image's configuration."""
    try:
        found = json.loads(config)["config"].get("Labels") or {}
        return {str(key): value for key, value in found.items() if isinstance(value, str)}
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}


def unpacked(config: bytes) -> tuple[str, ...]:
    """The digests of the layers when they are unpacked, the lowest first; none where it does not say."""
    try:
        found = json.loads(config)["rootfs"]["diff_ids"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return ()
    good = isinstance(found, list) and all(isinstance(one, str) and DIGEST.fullmatch(one) for one in found)
    return tuple(found) if good else ()


def coming(reference: str, said: dict[str, str], size: int, count: int) -> Coming:
    """The tree that an image of these labels brings."""
    build = manifests.labelled(said)
    for version in (build.driver, *([build.os_version] if build.os_version else [])):
        # They become parts of a path.
        if not naming.is_version(version) or version == naming.CURRENT:
            raise refused(reference, f"its labels name {clean(version[:80])!r}, which is no version")
    digest = said.get(f"{manifests.LABEL}manifest", "")
    return Coming(reference, build, size, count, digest)


def bounds(size: int, count: int, *, said: bool) -> tuple[int, int]:
    """How many bytes and how many members of its layers an image may have that says so much of its tree."""
    return (size + _BESIDE, 2 * count + 64) if said else (_MOST, _MOST_ITEMS)
