# SPDX-License-Identifier: Apache-2.0
"""The locks below requirements/, as values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HASH = re.compile(r"--hash=(\w+):([0-9a-f]+)")
_PINNED = re.compile(r"([A-Za-z0-9._-]+)==(\S+?)(?:\s*;\s*(.+))?")


@dataclass(frozen=True)
class Locked:
    """One distribution, and the SHA-256 of every file that may be taken for it."""

    name: str
    version: str
    marker: str
    sha256: tuple[str, ...]


def read(path: Path) -> Iterator[Locked]:
    """What a lock holds; raises ValueError for a line that leaves anything open."""
    text = re.sub(r"\\\n", " ", path.read_text())
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        words, *hashes = re.split(r"\s+(?=--hash=)", line.strip())
        pinned = _PINNED.fullmatch(words)
        found = [_HASH.fullmatch(one.strip()) for one in hashes]
        digests = [one[2] for one in found if one and one[1] == "sha256" and len(one[2]) == 64]
        if not pinned or not digests or len(digests) != len(hashes):
            raise ValueError(f"'{path}' does not say exactly what is taken: {words[:100]}")
        yield Locked(pinned[1], pinned[2], pinned[3] or "", tuple(sorted(digests)))
