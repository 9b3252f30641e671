# SPDX-License-Identifier: Apache-2.0
"""Feature files: what node-feature-discovery reads on this host, each whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code
from nvidiad.world import files

if TYPE_CHECKING:
    from pathlib import PurePosixPath


class Features:
    """The files below a root."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def put(self, place: PurePosixPath, text: str | None) -> None:
        """Let a file say this, or not be there; one that is right is not touched (NFD sees changes)."""
        path = self._root / place.relative_to("/")
        remedy = "Name a place that can be written: kubernetes.nfd-file."
        with files.explained(f"labelling by '{path}'", Code.INTERNAL, remedy):
            if text is None:
                path.unlink(missing_ok=True)
            else:
                # What is written beside begins with a dot, and NFD does not read such a name.
                files.keep(path, text)
