# SPDX-License-Identifier: Apache-2.0
"""The compatibility list: for which OS releases a driver image is there, and for which none can be built."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = 1
MEDIA_TYPE = "application/vnd.nvidiad.compatibility.v1+json"
TAG = "compatibility"
"""Under which the list lies in the repository of the images that it tells of."""
UNBUILDABLE = "unbuildable"
MAX_BYTES = 32 << 20
MAX_REASON = 600
"""A host prints a reason in one sentence: no compiler's whole output belongs there."""


class Entry(Value):
    """One image that should exist, and what was known of it when the list was written; all are text."""

    os_id: str
    os_version: str
    channel: str
    architecture: str
    kernel: str
    driver: str
    flavour: str
    product: str
    tag: str
    """The tag that a host asks for."""
    state: str
    """published, missing, unbuildable."""
    digest: str = ""
    reason: str = ""
    """Why it cannot be built."""
    inputs: str = ""
    """Which inputs cannot be built: other ones are tried again."""


_FIELDS = Entry.__match_args__


class Compatibility(Value):
    """The list."""

    generated: str = ""
    """When its entries changed last, as RFC 3339 has it; empty for a list that was never written."""
    entries: tuple[Entry, ...] = ()

    def unbuildable(self, tag: str, architecture: str) -> Entry | None:
        """The entry that says that no image can be built for those who ask for this tag."""
        return next(
            (
                entry
                for entry in self.entries
                if (entry.tag, entry.architecture, entry.state) == (tag, architecture, UNBUILDABLE)
            ),
            None,
        )


def render(compatibility: Compatibility) -> str:
    """The list as JSON, one entry a line; fields that are empty are left out."""
    lines = [
        json.dumps({name: value for name in _FIELDS if (value := getattr(entry, name))})
        for entry in compatibility.entries
    ]
    head = f'{{"schema": {SCHEMA}, "generated": {json.dumps(compatibility.generated)}, "cells": ['
    return head + "".join(f"\n {line}," for line in lines).removesuffix(",") + "\n]}\n"


def parse(text: str, source: str) -> Compatibility:
    """Read a list; fields that are not known are left out, for the next nvidiad may write more of them.

    Raises MANIFEST_INVALID with `source` in its sentence.
    """
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refused(source, f"it is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise _refused(source, "it is not an object")
    if document.get("schema") != SCHEMA:
        raise _refused(source, f"schema {document.get('schema')!r} is unknown, this nvidiad knows {SCHEMA}")
    cells = document.get("cells")
    generated = document.get("generated")
    if not isinstance(cells, list) or not isinstance(generated, str):
        raise _refused(source, "it has no 'generated' or no 'cells'")
    return Compatibility(generated, tuple(_entry(cell, number, source) for number, cell in enumerate(cells)))


def _entry(cell: object, number: int, source: str) -> Entry:
    if not isinstance(cell, dict):
        raise _refused(source, f"cell {number} is not an object")
    found: Mapping[str, object] = {name: cell.get(name, "") for name in _FIELDS}
    for name, value in found.items():
        if not isinstance(value, str):
            raise _refused(source, f"'{name}' of cell {number} is not a text")
    for name in ("os_version", "architecture", "driver", "tag", "state"):
        if not found[name]:
            raise _refused(source, f"cell {number} has no '{name}'")
    return Entry(**{name: str(value) for name, value in found.items()})


def _refused(source: str, why: str) -> Permanent:
    remedy = "Publish again: nvidiad-image publish writes the list anew."
    return Permanent(Code.MANIFEST_INVALID, f"'{source}' is not a compatibility list: {why}", remedy)
