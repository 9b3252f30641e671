# SPDX-License-Identifier: Apache-2.0
"""Developer images: their names, and the labels that say which release's compiler and kernel they have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.model import Build

if TYPE_CHECKING:
    from nvidiad.image.nouns.model import OsRelease

LABEL = "io.nvidiad.developer."
KERNEL, SOURCE = f"{LABEL}kernel", f"{LABEL}source"


def reference(release: OsRelease, repository: str = "") -> str:
    """The name of a release's developer image; without a repository that of the engine's own."""
    tag = naming.image_tag("{os}", Build("", release.version, release.kernel))
    return f"{repository or f'{release.family}-developer'}:{tag}"


def identity(release: OsRelease) -> dict[str, str]:
    """The labels that an image must have to be taken for a release's; KERNEL and SOURCE come beside them."""
    return {
        f"{LABEL}os.id": str(release.family),
        f"{LABEL}os.version": release.version,
        f"{LABEL}architecture": str(release.architecture),
    }
