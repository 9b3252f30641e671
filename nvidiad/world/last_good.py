# SPDX-License-Identifier: Apache-2.0
"""The last good configuration: a copy for the boot at which the files in /etc are at fault.

A slip of an editor, or half a rollout, would otherwise take the GPU from a node at its next reboot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure
from nvidiad.world import files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_BYTES_MAXIMUM = 16 << 20


class LastGood:
    """Fragments (file name, text) in one JSON file; the daemon alone writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[tuple[str, str]]:
        """What was written last; nothing where nothing was, or where it cannot be understood."""
        import json  # an activation needs it only at such a boot

        try:
            found = json.loads(files.read_small(self._path, _BYTES_MAXIMUM))
        except (OSError, ValueError, RecursionError, Failure):
            return []
        if not isinstance(found, list) or not all(_is_fragment(each) for each in found):
            return []
        return [(name, text) for name, text in found]

    def write(self, fragments: Sequence[tuple[str, str]]) -> None:
        """Replace it as a whole, unless it says the same already."""
        import json

        if self.read() == list(fragments):
            return
        with files.explained(f"Cannot write '{self._path}'", Code.INTERNAL):
            files.make_directory(self._path.parent)
            files.atomic_write(self._path, json.dumps(list(fragments), indent=1) + "\n", 0o600)


def _is_fragment(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)
