# SPDX-License-Identifier: Apache-2.0
"""Layouts: images in files, as skopeo, podman and docker write them, and how a person names one of them."""

from __future__ import annotations

import json
import posixpath
from enum import StrEnum
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.value import Value
from nvidiad.thought import distribution
from nvidiad.thought.distribution import Descriptor, Document
from nvidiad.thought.pull import DIGEST, clean

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MANIFEST, INDEX = "manifest.json", "index.json"
_NAMES = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_HOPS = 8


class Form(StrEnum):
    """How an image is kept in files; the names are those of skopeo's transports."""

    LAYOUT = "oci-layout"
    ARCHIVE = "oci-archive"
    DOCKER = "docker-archive"


class Kept(Value):
    """An image that somebody names in a file or a directory."""

    form: Form
    path: str
    name: str
    """A tag, a name with a tag, or a digest; empty for the only one there is."""


def named(what: str) -> Kept | None:
    """`FORM:PATH[:NAME|@DIGEST]`; None for whatever is not in this form."""
    form, colon, rest = what.partition(":")
    if not colon or form not in tuple(Form):
        return None
    path, at, digest = rest.partition("@")
    name = digest
    if not at:
        path, _, name = rest.partition(":")
    elif not DIGEST.fullmatch(digest):
        raise _unknown(what, f"'{clean(digest)}' is no sha256 digest")
    if not path:
        raise _unknown(what, "it names no file")
    return Kept(Form(form), path, name)


def _unknown(what: str, why: str) -> Permanent:
    return Permanent(
        Code.IMAGE_MISSING,
        f"'{clean(what)}' names no image: {why}",
        "Write FORM:PATH, FORM:PATH:NAME or FORM:PATH@DIGEST; see nvidiad(1).",
    )


def damaged(what: str, why: str) -> Permanent:
    """The failure of a file that is not what it should be."""
    return Permanent(Code.IMAGE_CORRUPT, f"'{clean(what)}' cannot be used: {why}", "Copy the image again.")


def blob_path(digest: str) -> str:
    """Where a layout has content."""
    return f"blobs/{digest.replace(':', '/')}"


# ---------------------------------------------------------------------------------------------------
# OCI's form


def described(index: Document) -> tuple[dict[str, Any], ...]:
    """What an index names, as far as it has a digest."""
    listed = index.content().get("manifests")
    found = listed if isinstance(listed, list) else []
    return tuple(one for one in found if isinstance(one, dict) and DIGEST.fullmatch(str(one.get("digest"))))


def digest_in(index: Document, name: str, what: str) -> str | None:
    """The digest of the image of this name; without a name, of the only one that is no signature."""
    listed = described(index)
    if name:
        found = [one for one in listed if name in (one["digest"], *_names(one))]
    else:
        found = [one for one in listed if not any(is_signature(each) for each in _names(one))]
        if len({one["digest"] for one in found}) > 1:
            names = sorted({clean(each) for one in found for each in _names(one)} or {"(no names)"})
            raise _unknown(what, f"there are {len(found)} in it: {', '.join(names)[:200]}")
    return str(found[-1]["digest"]) if found else None


def _names(one: Mapping[str, Any]) -> list[str]:
    annotations = one.get("annotations")
    said = [annotations.get(key) for key in _NAMES] if isinstance(annotations, dict) else []
    whole = [each for each in said if isinstance(each, str)]
    # Some write the whole name, some the tag alone.
    return [*whole, *(each.rpartition(":")[2] for each in whole if ":" in each.rpartition("/")[2])]


def is_signature(tag: str) -> bool:
    """Whether cosign lays something down under this tag, and nobody an image."""
    return tag.startswith("sha256-")


# ---------------------------------------------------------------------------------------------------
# Docker's form


class Saved(Value):
    """An image in the form of `docker save`."""

    config: str
    """The name of a member of the archive."""
    layers: tuple[str, ...]


def saved(data: bytes, name: str, what: str) -> Saved:
    """The image of this name in a manifest.json of `docker save`; without a name, the only one."""
    try:
        listed = json.loads(data)
    except (ValueError, RecursionError):
        raise damaged(what, f"its '{MANIFEST}' is no JSON") from None
    found = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if name:
        found = [one for one in found if _plain(name) in map(_plain, _tags(one))]
    if not found:
        raise _unknown(what, "it is not in it" if name else "there is none in it")
    if len(found) > 1:
        names = sorted(clean(tag) for one in found for tag in _tags(one))
        raise _unknown(what, f"there are {len(found)} in it: {', '.join(names)[:200]}")
    config, layers = found[0].get("Config"), found[0].get("Layers")
    layers = layers if isinstance(layers, list) else [None]
    if not isinstance(config, str) or not all(isinstance(each, str) for each in layers):
        raise damaged(what, f"its '{MANIFEST}' names no configuration or no layers")
    return Saved(config, tuple(layers))


def _tags(one: Mapping[str, Any]) -> list[str]:
    tags = one.get("RepoTags")
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def _plain(name: str) -> str:
    """A name without what clients put before one of Docker Hub."""
    return name.removeprefix("docker.io/").removeprefix("library/")


def rewritten(config: bytes, layers: tuple[tuple[str, int], ...]) -> Document:
    """The manifest that an image of `docker save`, which has none, would have with its layers unpacked."""
    parts = tuple(Descriptor(_LAYER, digest, size) for digest, size in layers)
    return distribution.image(
        Descriptor(distribution.OCI_CONFIG, distribution.digest_of(config), len(config)), parts
    )


def target(links: Mapping[str, str], name: str) -> str:
    """The member that a name means in an archive where some are links to others; empty for a circle."""
    for _ in range(_HOPS):
        if name not in links:
            return name
        name = posixpath.normpath(posixpath.join(posixpath.dirname(name), links[name]))
    return ""
