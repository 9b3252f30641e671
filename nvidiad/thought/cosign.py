# SPDX-License-Identifier: Apache-2.0
"""Signatures as cosign lays them down: as a tag beside the image, or as a referrer of it."""

from __future__ import annotations

import base64
import binascii
import json
from itertools import islice
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.value import Value, replace
from nvidiad.thought import distribution
from nvidiad.thought.pull import DIGEST

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nvidiad.thought.distribution import Descriptor, Document

PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
"""Of what cosign 2 and skopeo sign (containers-signature(5))."""
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
"""Of what cosign 3 signs: a Sigstore bundle whose statement is in a DSSE envelope."""
MAX_BYTES = 128 << 10
"""Of one payload or bundle; those that tools make have a hundredth of it."""
_ANNOTATION = "dev.cosignproject.cosign/signature"
_KIND = "cosign container image signature"
_STATEMENT = "application/vnd.in-toto+json"
_APPROVAL = "https://sigstore.dev/cosign/sign/v1"
"""The one predicate that says: I stand for this image. An SBOM or a scan's report only describes it."""
_REFERRING = ("", BUNDLE, "application/vnd.dev.cosign.artifact.sig.v1+json", distribution.EMPTY)
_MOST = 64
"""Layers of a manifest, signatures of a bundle, and signatures in all that are looked at."""


class Seal(Value):
    """One signature, what it was made over, and the images that this vouches for."""

    signed: bytes
    signature: bytes
    digests: tuple[str, ...]
    """Nothing says that they are true, unless the signature is good."""


# ---------------------------------------------------------------------------------------------------
# Writing


def tag(digest: str) -> str:
    """The tag of the signatures of an image: `sha256-HEX.sig`."""
    return f"{digest.replace(':', '-')}.sig"


def payload(repository: str, digest: str) -> bytes:
    """What is signed: that this digest is an image of this repository (containers-signature(5))."""
    critical = {
        "identity": {"docker-reference": repository},
        "image": {"docker-manifest-digest": digest},
        "type": _KIND,
    }
    return json.dumps({"critical": critical, "optional": None}, separators=(",", ":")).encode()


def configuration(signed: bytes) -> bytes:
    """The configuration of the image that a signature pretends to be."""
    layers = {"type": "layers", "diff_ids": [distribution.digest_of(signed)]}
    said = {"architecture": "", "config": {}, "history": [{}], "os": "", "rootfs": layers}
    return json.dumps(said, separators=(",", ":")).encode()


def manifest(
    config: Descriptor, layer: Descriptor, signature: bytes, beside: Document | None = None
) -> Document:
    """The manifest with one signature more: that of a new key joins that of the old one."""
    annotation = ((_ANNOTATION, base64.b64encode(signature).decode()),)
    made = distribution.image(config, (replace(layer, annotations=annotation),))
    if beside is None:
        return made
    said = beside.content()
    return distribution.changed(beside, {**said, "layers": [*_layers(beside), *made.content()["layers"]]})


# ---------------------------------------------------------------------------------------------------
# Reading


def may_seal(kind: str) -> bool:
    """Whether a referrer of this type may hold signatures; cosign 2 lists its bundles with an empty one."""
    return kind in _REFERRING


def material(document: Document) -> tuple[str, ...]:
    """The digests of what a manifest's signatures were made over, as far as it is of a size to be read."""
    found = (layer["digest"] for layer in _layers(document) if _readable(layer))
    return tuple(dict.fromkeys(found))[:_MOST]


def seals(document: Document, blobs: Mapping[str, bytes]) -> Iterator[Seal]:
    """The signatures of a manifest, by the material that was fetched; what is none is left out.

    At most so many, and none twice: looking at one takes a millisecond, and who lays them down is anybody.
    """
    yield from islice(dict.fromkeys(_seals(document, blobs)), _MOST)


def _seals(document: Document, blobs: Mapping[str, bytes]) -> Iterator[Seal]:
    for layer in _layers(document)[:_MOST]:
        blob = blobs.get(str(layer.get("digest")))
        if blob is None:
            continue
        if layer.get("mediaType") == PAYLOAD:
            annotations = layer.get("annotations")
            said = annotations.get(_ANNOTATION) if isinstance(annotations, dict) else None
            signature = _decoded(said)
            if signature:
                yield Seal(blob, signature, _claimed(blob))
        elif layer.get("mediaType") == BUNDLE:
            yield from _enveloped(blob)


def _layers(document: Document) -> list[dict[str, Any]]:
    layers = document.content().get("layers")
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def _readable(layer: Mapping[str, object]) -> bool:
    digest, size = layer.get("digest"), layer.get("size")
    if layer.get("mediaType") not in (PAYLOAD, BUNDLE) or not isinstance(digest, str):
        return False
    return DIGEST.fullmatch(digest) is not None and isinstance(size, int) and 0 < size <= MAX_BYTES


def _claimed(signed: bytes) -> tuple[str, ...]:
    """The image that a payload is about (containers-signature(5))."""
    critical = _object(distribution.object_in(signed).get("critical"))
    digest = _object(critical.get("image")).get("docker-manifest-digest")
    return (digest,) if critical.get("type") == _KIND and isinstance(digest, str) else ()


def _enveloped(bundle: bytes) -> Iterator[Seal]:
    """The signatures of a bundle's DSSE envelope; each is over its pre-authentication encoding."""
    envelope = _object(distribution.object_in(bundle).get("dsseEnvelope"))
    kind, statement = envelope.get("payloadType"), _decoded(envelope.get("payload"))
    signatures = envelope.get("signatures")
    if kind != _STATEMENT or not statement or not isinstance(signatures, list):
        return
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(statement), statement)
    stated = _stated(statement)
    for each in signatures[:_MOST]:
        signature = _decoded(_object(each).get("sig"))
        if signature:
            yield Seal(signed, signature, stated)


def _stated(statement: bytes) -> tuple[str, ...]:
    """The images that an in-toto statement stands for."""
    said = distribution.object_in(statement)
    subjects = said.get("subject")
    if said.get("predicateType") != _APPROVAL or not isinstance(subjects, list):
        return ()
    digests = (_object(_object(subject).get("digest")).get("sha256") for subject in subjects)
    return tuple(f"sha256:{digest}" for digest in digests if isinstance(digest, str))


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _decoded(value: object) -> bytes:
    """What is in base64; nothing where it is none."""
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        return b""
