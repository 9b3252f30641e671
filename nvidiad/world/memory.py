# SPDX-License-Identifier: Apache-2.0
"""The one file that survives reboots: failed attempts and the last tree known good."""

from __future__ import annotations

import contextlib
import errno
import json
import math
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.model import Attempt, Memory, Origin, Problem, Sighting
from nvidiad.world import files

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 1
_BYTES_MAXIMUM = 1 << 20


def encode(memory: Memory) -> bytes:
    """The file of a memory."""
    document = {
        "schema": SCHEMA,
        "last-good": memory.last_good,
        "former-good": memory.former_good,
        "sightings": [{"what": s.what, "boot": s.boot_id, "at": s.at} for s in memory.sightings],
        "stopped": list(memory.stopped),
        "origins": [{"tree": o.tree, "digest": o.digest} for o in memory.origins],
        "attempts": [
            {
                "reference": attempt.reference,
                "count": attempt.count,
                "last": attempt.last,
                "problem": {
                    "code": attempt.problem.code.value,
                    "sentence": attempt.problem.sentence,
                    "remedy": attempt.problem.remedy,
                    "retry": attempt.problem.retry,
                },
            }
            for attempt in memory.attempts
        ],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def decode(data: bytes) -> Memory:
    """The memory of a file; raises ValueError for anything that `encode` does not write."""
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    try:
        if _typed(document, "schema", int) != SCHEMA:
            raise ValueError(f"its schema is {document['schema']}, not {SCHEMA}")
        attempts = _typed(document, "attempts", list)
        return Memory(
            tuple(_attempt(item) for item in attempts),
            _typed(document, "last-good", str),
            _typed(document, "former-good", str),
            # An earlier nvidiad did not write the rest.
            tuple(_sighting(item) for item in _typed({"sightings": []} | document, "sightings", list)),
            tuple(_word(name) for name in _typed({"stopped": []} | document, "stopped", list)),
            tuple(
                Origin(_typed(item, "tree", str), _typed(item, "digest", str))
                for item in _typed({"origins": []} | document, "origins", list)
            ),
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"it is not as nvidiad writes it: {error}") from error


def _typed(document: Any, key: str, kind: type[Any]) -> Any:
    value = document[key]
    # bool is an int to Python, not to us
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise TypeError(f"{key} is not of type {kind.__name__}")
    return value


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name is not text")
    return value


def _time(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{name} is not a time")
    return float(value)


def _sighting(item: Any) -> Sighting:
    return Sighting(_typed(item, "what", str), _typed(item, "boot", str), _time(item["at"], "at"))


def _attempt(item: Any) -> Attempt:
    problem = _typed(item, "problem", dict)
    last = _time(item["last"], "last")
    count = _typed(item, "count", int)
    if count < 0:
        raise TypeError("count is negative")
    return Attempt(
        reference=_typed(item, "reference", str),
        count=count,
        last=last,
        problem=Problem(
            code=Code(_typed(problem, "code", str)),
            sentence=_typed(problem, "sentence", str),
            remedy=_typed(problem, "remedy", str),
            retry=_typed(problem, "retry", bool),
        ),
    )


class MemoryFile:
    """A memory in a JSON file; losing it costs at most one early attempt, so it never stops a start."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def bad(self) -> Path:
        """Where a file that cannot be understood is put aside, for whoever wants to look at it."""
        return self.path.with_name(self.path.name + ".bad")

    def read(self) -> Memory:
        try:
            with self.path.open("rb") as file:
                data = file.read(_BYTES_MAXIMUM + 1)
        except OSError:
            return Memory()
        try:
            if len(data) > _BYTES_MAXIMUM:
                raise ValueError("it is too large")
            return decode(data)
        except ValueError:
            # If it cannot be put aside either, the next write replaces it.
            with contextlib.suppress(OSError):
                self.path.replace(self.bad)
            return Memory()

    def write(self, memory: Memory) -> None:
        """Replace the file as a whole: after a power cut there is the old one or the new one."""
        try:
            files.make_directory(self.path.parent)
            files.atomic_write(self.path, encode(memory))
        except OSError as error:
            raise _failure(self.path, error) from error


def _failure(path: Path, error: OSError) -> Failure:
    sentence = f"Cannot write '{path}': {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Transient(Code.DISK_FULL, sentence, "Free some space")
    if error.errno == errno.EROFS:
        return Permanent(Code.READ_ONLY, sentence, "Make the directory writable")
    return Permanent(Code.INTERNAL, sentence)
