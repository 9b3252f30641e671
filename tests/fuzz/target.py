# SPDX-License-Identifier: Apache-2.0
"""A target: a parser that is given bytes, what it may refuse them with, and what it may take for them.

To add one, write a function of bytes, put it into `TARGETS` of one of the modules beside this one, and at
least one file that the parser takes into corpus/NAME/. Both drivers, `make fuzz` and CI then know it.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

CORPUS = Path(__file__).parent / "corpus"
WORK = Path(__file__).parents[2] / ".fuzz"
"""What long runs keep, and inputs that crashed, each below the name of its target."""
LONGEST = 1 << 16
"""Bytes of an input. What is read of the network, of a file or of an image has limits of its own."""
LONGEST_SENTENCE = 5000
SECONDS = 1.0
"""Of the processor, for one input: more, and whoever can send it can stop nvidiad."""
KILOBYTES = 64 * 1024
"""Of memory, for one input."""


class Greedy(Exception):
    """A parser took more than an input is worth."""


@dataclass(frozen=True)
class Target:
    """A parser under attack."""

    name: str
    run: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = ()
    """What its docstring says that it raises; everything else is a crash."""

    longest: int = LONGEST
    """Bytes of an input that it is given."""

    def seeds(self) -> list[bytes]:
        """The stored corpus, in an order that is always the same."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())]

    def attack(self, data: bytes, *, slower: float = 1.0) -> None:
        """Run it on one input; raises whatever it may not raise, or Greedy.

        `slower` is by how much it is slowed down by those who watch it.
        """
        data = data[: self.longest]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.thread_time()
        try:
            self.run(data)
        except self.refusals as refusal:
            told = refusal.sentence + refusal.remedy if isinstance(refusal, Failure) else ""
        else:
            told = ""
        seconds = time.thread_time() - began
        if seconds > SECONDS * slower:
            raise Greedy(f"{self.name} took {seconds:.1f} s for {len(data)} bytes")
        if len(told) > LONGEST_SENTENCE:
            # A person reads it, the journal keeps it, and every client is sent it.
            raise Greedy(f"{self.name} refuses {len(data)} bytes in {len(told)} characters")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
        if grown > KILOBYTES:
            raise Greedy(f"{self.name} took {grown} kB of memory for {len(data)} bytes")


# tomllib is quadratic in the dots of a key, and these are files of whoever runs us.
_LONGEST = {"configuration": 1 << 14, "recipe": 1 << 14}


def targets(*rows: tuple[Callable[[bytes], object], tuple[type[Exception], ...]]) -> tuple[Target, ...]:
    """Targets named as their functions are."""
    names = ((run.__name__.removeprefix("a_"), run, refusals) for run, refusals in rows)
    return tuple(Target(name, run, refusals, _LONGEST.get(name, LONGEST)) for name, run, refusals in names)


def plain(*texts: str) -> None:
    """What a person is told is text."""
    assert all(isinstance(text, str) for text in texts)


def text(data: bytes) -> str:
    """Bytes as a file that nobody checked is read."""
    return data.decode("utf-8", "surrogateescape")


def reader(data: bytes) -> Callable[[int, int], bytes]:
    """A file of these bytes, read piece by piece."""

    def read(offset: int, size: int) -> bytes:
        assert offset >= 0 and size >= 0
        return data[offset : offset + size]

    return read


def values(data: bytes) -> Any:
    """Any value, written as JSON; None for what is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
