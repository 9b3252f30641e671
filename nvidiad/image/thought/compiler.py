# SPDX-License-Identifier: Apache-2.0
"""The compiler's words: which line of a build's output says why there is no module."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_LONGEST = 300
# In this order: what a compiler says of a line of source is the cause, what make says of it only the end.
_CAUSES = tuple(
    re.compile(pattern)
    for pattern in (
        r"^\S+:\d+(:\d+)?: (fatal )?error: .+",
        r"^ERROR: modpost: .+",
        r"^(\S*/)?(ld|ld\.bfd|objtool|cc1|as|gcc(-\d+)?): (error|fatal error|.*cannot|.*undefined).*",
        r"^\S+\.[chS]:\d+: (Error|undefined reference).+",
        r"^\S*Makefile\S*:\d+: \*\*\* .+",
        r"^make(\[\d+\])?: \*\*\* .+",
        r"^(compile|sh|bash|/bin/sh|/bin/bash): .+",
    )
)


_ACCIDENT = re.compile(
    r"Killed|signal terminated|out of memory|memory exhausted|[Cc]annot allocate memory|No space left"
    r"|internal compiler error|Error 1[23]\d\b"
)
# make and a shell only pass on that something ended.
_NO_WORD = re.compile(r"make(\[\d+\])?: |(compile|sh|bash|/bin/sh|/bin/bash): ")


def is_accident(line: str) -> bool:
    """Whether a line tells of a machine that had too little of something, or of a compiler that broke."""
    return _ACCIDENT.search(line) is not None


def is_refusal(cause: str) -> bool:
    """Whether a cause is a compiler's own word on the source, which it would say again."""
    return bool(cause) and not _NO_WORD.match(cause) and not is_accident(cause)


def first_error(lines: Iterable[str]) -> str:
    """The first line that tells of a cause, without the directories of its file; empty where none does."""
    found: dict[int, str] = {}
    for line in lines:
        text = line.strip()
        for rank, cause in enumerate(_CAUSES):
            if rank not in found and cause.match(text):
                found[rank] = text
    return _short(found[min(found)]) if found else ""


def _short(line: str) -> str:
    """`kernel-open/nvidia/nv-pci.c:1: error: …` is enough of `/src/kernel-open/nvidia/nv-pci.c:1: …`."""
    place, colon, rest = line.partition(":")
    if "/" in place:
        place = "/".join(place.split("/")[-2:])
    text = f"{place}{colon}{rest}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
