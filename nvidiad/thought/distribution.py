# SPDX-License-Identifier: Apache-2.0
"""The protocol of registries as values: where an image is, who asks, what a refusal means, artefacts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.value import Value
from nvidiad.thought.pull import DIGEST, DOCKER_HUB, clean
from nvidiad.thought.refusals import failure, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPTED = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX))
EMPTY = "application/vnd.oci.empty.v1+json"
_HUB_HOST = "registry-1.docker.io"


class Document(Value):
    """A manifest or an index as a registry holds it."""

    media_type: str
    body: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.body)

    def content(self) -> dict[str, Any]:
        """The object that it is; nothing where it is none."""
        return object_in(self.body)


class Descriptor(Value):
    """What a manifest says of a blob, or an index of a manifest."""

    media_type: str
    digest: str
    size: int
    annotations: tuple[tuple[str, str], ...] = ()
    architecture: str = ""
    """Of a manifest in an index, as registries call it: amd64, arm64."""
    artefact_type: str = ""
    """Of an artefact in an index of referrers."""

    def content(self) -> dict[str, object]:
        said: dict[str, object] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            said["annotations"] = dict(self.annotations)
        if self.architecture:
            said["platform"] = {"architecture": self.architecture, "os": "linux"}
        if self.artefact_type:
            said["artifactType"] = self.artefact_type
        return said


class Challenge(Value):
    """What a registry asks of those it does not know (WWW-Authenticate)."""

    scheme: str
    """`basic` or `bearer`; anything else nobody here can answer."""
    realm: str = ""
    service: str = ""


def digest_of(data: bytes) -> str:
    """The digest that names this content."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


# ---------------------------------------------------------------------------------------------------
# Where


def base_url(registry: str, *, insecure: bool) -> str:
    """Of a registry's API. Loopback is asked without TLS, as container engines do it."""
    host = _HUB_HOST if registry == DOCKER_HUB else registry
    return f"{'http' if insecure or is_loopback(host) else 'https'}://{host}"


def is_loopback(host: str) -> bool:
    """Whether a host, with or without its port, is this machine."""
    return re.fullmatch(r"(localhost|\[::1\]|127\.\d+\.\d+\.\d+)(:\d+)?", host) is not None


def path_of(repository: str, registry: str) -> str:
    """The repository's name within its registry; Docker Hub's own images are in a directory of theirs."""
    prefix = f"{registry}/"
    path = repository.removeprefix(prefix)
    return f"library/{path}" if registry == DOCKER_HUB and "/" not in path else path


# ---------------------------------------------------------------------------------------------------
# Who


# Each word is looked at once, and a quote that never ends is no reason to begin again: this header is
# written by whoever stands between us and a registry.
_PARAMETER = re.compile(r'(?<![A-Za-z])([A-Za-z]++)\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)(?:"|$)|([^\s,]++))')
_HEADER_AT_MOST = 8192


def challenge(header: str) -> Challenge:
    """The challenge that can be answered: a token rather than a password (RFC 9110, 11.6.1)."""
    found: list[Challenge] = []
    for part in re.split(r"(?:^|,)\s*(?=(?:[Bb]earer|[Bb]asic)\b)", header[:_HEADER_AT_MOST]):
        scheme, _, rest = part.strip().partition(" ")
        values = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(rest)}
        found.append(Challenge(scheme.lower(), values.get("realm", ""), values.get("service", "")))
    order = {"bearer": 0, "basic": 1}
    return min(found, key=lambda one: order.get(one.scheme, 2))


def basic(auth: Mapping[str, str]) -> str:
    """The value of an Authorization header."""
    pair = f"{auth.get('username', '')}:{auth.get('password', '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def token_in(body: bytes) -> str:
    """The token that a token server gave; empty where it gave none."""
    said = object_in(body)
    token = said.get("token") or said.get("access_token") or ""
    return token if isinstance(token, str) else ""


# ---------------------------------------------------------------------------------------------------
# Refusals


def refusal(status: int, body: bytes, reference: str, *, writing: bool) -> Failure:
    """The failure behind a status of 400 or more and the errors that came with it."""
    detail = _detail(status, body)
    if status == 401 or (status == 403 and not writing):
        return failure(Code.REGISTRY_AUTH, reference, detail)
    if status == 404 and not writing:
        return failure(Code.IMAGE_MISSING, reference)
    if status == 429 or status >= 500:
        return failure(Code.REGISTRY_UNREACHABLE, reference, detail)
    if writing:
        return Permanent(
            Code.PUSH_REFUSED,
            f"the registry takes no push to '{clean(reference)}' ({detail})",
            "Check that the registry is not read-only, and that repository and account may be pushed to.",
        )
    return failure(Code.REGISTRY_UNREACHABLE, reference, detail)


def untrusted(registry: str, reference: str, why: str) -> Failure:
    """No connection whose other end is known to be the registry."""
    return Transient(
        Code.REGISTRY_TLS,
        f"there is no trusted connection to registry '{registry}' of '{clean(reference)}' ({why})",
        f"Put its authority into /etc/docker/certs.d/{registry}/ca.crt, or renew its certificate.",
    )


def _detail(status: int, body: bytes) -> str:
    """What a registry says of an error, in one line; a proxy in front of it may say anything."""
    errors = object_in(body).get("errors")
    said = []
    for error in errors if isinstance(errors, list) else []:
        if isinstance(error, dict):
            words = (error.get("code"), error.get("message"))
            said.append(": ".join(clean(word) for word in words if isinstance(word, str) and word))
    return shorten("; ".join([f"status {status}", *said]))


# ---------------------------------------------------------------------------------------------------
# Artefacts


def artefact(
    media_type: str,
    layer: Descriptor,
    config: Descriptor,
    annotations: Mapping[str, str],
    subject: Descriptor | None = None,
) -> Document:
    """The manifest of something that is no container image but lies in a registry as one.

    With a subject it says something of that: it is one of its referrers.
    """
    said: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": media_type,
        "config": config.content(),
        "layers": [layer.content()],
        **({"subject": subject.content()} if subject else {}),
    }
    return _document(OCI_MANIFEST, said | ({"annotations": dict(annotations)} if annotations else {}))


def referrers_tag(digest: str) -> str:
    """The tag of the index of referrers, in a registry that lists none by itself (OCI distribution 1.1)."""
    return digest.replace(":", "-")


def with_referrer(listed: Document | None, referrer: Descriptor) -> Document | None:
    """That index with one more, None where it has it; raises ValueError where what lies there is none."""
    known: list[object] = []
    if listed is not None:
        content = listed.content()
        found = content.get("manifests")
        if not isinstance(found, list):
            raise ValueError("no index")
        known = found
        if any(isinstance(one, dict) and one.get("digest") == referrer.digest for one in known):
            return None
    said = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*known, referrer.content()]}
    return _document(OCI_INDEX, said)


def image(config: Descriptor, layers: tuple[Descriptor, ...]) -> Document:
    """The manifest of a container image."""
    said = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.content()}
    return _document(OCI_MANIFEST, said | {"layers": [layer.content() for layer in layers]})


def index(manifests: tuple[Descriptor, ...]) -> Document:
    """One name for the images of several architectures."""
    listed = [manifest.content() for manifest in manifests]
    return _document(OCI_INDEX, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed})


def referrers_in(body: bytes) -> tuple[tuple[str, str], ...]:
    """The digests in an index of referrers, each with the type of artefact that it is, if that is said."""
    listed = object_in(body).get("manifests")
    found = []
    for one in listed if isinstance(listed, list) else []:
        said = one if isinstance(one, dict) else {}
        digest, kind = said.get("digest"), said.get("artifactType")
        if isinstance(digest, str) and DIGEST.fullmatch(digest):
            found.append((digest, kind if isinstance(kind, str) else ""))
    return tuple(found)


def layers_of(document: Document, media_type: str) -> tuple[str, ...]:
    """The digests of a manifest's layers of one type."""
    found = []
    listed = document.content().get("layers")
    for layer in listed if isinstance(listed, list) else []:
        if isinstance(layer, dict) and layer.get("mediaType") == media_type:
            digest = layer.get("digest")
            if isinstance(digest, str) and DIGEST.fullmatch(digest):
                found.append(digest)
    return tuple(found)


def _document(media_type: str, said: Mapping[str, object]) -> Document:
    return Document(media_type, json.dumps(said, indent=1).encode())


def changed(document: Document, said: Mapping[str, object]) -> Document:
    """A manifest of the same type that says this."""
    return _document(document.media_type, said)


def object_in(body: bytes) -> dict[str, Any]:
    """The JSON object that this is; nothing where it is none."""
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
