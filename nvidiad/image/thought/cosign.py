# SPDX-License-Identifier: Apache-2.0
"""Signatures as cosign lays them down: a tag beside the image, whose one layer is what was signed."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

from nvidiad.nouns.value import replace
from nvidiad.thought import distribution

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvidiad.thought.distribution import Descriptor, Document

PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
_ANNOTATION = "dev.cosignproject.cosign/signature"


def tag(digest: str) -> str:
    """The tag of the signatures of an image: `sha256-HEX.sig`."""
    return f"{digest.replace(':', '-')}.sig"


def payload(repository: str, digest: str) -> bytes:
    """What is signed: that this digest is an image of this repository (containers-signature(5))."""
    critical = {
        "identity": {"docker-reference": repository},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    }
    return json.dumps({"critical": critical, "optional": None}, separators=(",", ":")).encode()


def configuration(signed: bytes) -> bytes:
    """The configuration of the image that a signature pretends to be."""
    layers = {"type": "layers", "diff_ids": [distribution.digest_of(signed)]}
    said = {"architecture": "", "config": {}, "history": [{}], "os": "", "rootfs": layers}
    return json.dumps(said, separators=(",", ":")).encode()


def manifest(config: Descriptor, layer: Descriptor, signature: bytes) -> Document:
    """The manifest with one signature."""
    annotation = ((_ANNOTATION, base64.b64encode(signature).decode()),)
    return distribution.image(config, (replace(layer, annotations=annotation),))


def signatures(document: Document, signed: bytes) -> Iterator[bytes]:
    """The signatures of exactly this payload that a manifest has; what is none is left out."""
    layers = document.content().get("layers")
    for layer in layers if isinstance(layers, list) else ():
        if not isinstance(layer, dict) or layer.get("digest") != distribution.digest_of(signed):
            continue
        annotations = layer.get("annotations")
        said = annotations.get(_ANNOTATION) if isinstance(annotations, dict) else None
        try:
            yield base64.b64decode(str(said), validate=True)
        except ValueError:  # not base64, or not even ASCII
            continue
