# SPDX-License-Identifier: Apache-2.0
"""The surroundings of a driver in force: what it says of its GPUs, and what the programs beside it left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from nvidiad.nouns.model import Problem


class GpuIdentity(Value):
    """A GPU as the driver tells it in /proc."""

    address: str
    minor: int
    """Of its device node."""
    uuid: str = ""
    """Empty until the GPU was started once in this boot."""
    model: str = ""


class Inventory(Value):
    """All that a CDI specification is made from, but for the names of the tree's files."""

    driver: str
    tree: str
    identity: str
    """Of the tree: the same path may hold another build."""
    architecture: str
    gpus: tuple[GpuIdentity, ...]
    nodes: tuple[str, ...]
    """Device nodes that every container needs which uses a GPU."""
    sockets: tuple[str, ...]
    """Of the programs beside the driver, as far as they run."""


class GpuState(Value):
    """A GPU as NVML tells it."""

    address: str
    uuid: str
    model: str
    problem: Problem | None = None


class Word(Value):
    """What a program beside the driver left in /run, for whoever looks next."""

    of: str = ""
    """What it was made for; empty where nobody left a word."""
    problem: Problem | None = None
    digest: str = ""
    """The SHA-256 of the file that it wrote."""
    gpus: tuple[GpuState, ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with all of it, and then with each GPU."""
        said = (self.problem, *(gpu.problem for gpu in self.gpus))
        return tuple(problem for problem in said if problem)


class Surroundings(Value):
    """What stands around the driver in force; empty where none is."""

    inventory: Inventory | None = None
    cdi: Word = Word()
    specification: str = ""
    """The SHA-256 of the CDI specification that is there; empty where there is none."""
    rival: str = ""
    """Another file that describes the same devices; empty where there is none."""
    health: Word = Word()
    fabric: Word = Word()

    @property
    def ours(self) -> bool:
        """Whether the CDI specification that is there is the one that nvidiad wrote last."""
        return bool(self.cdi.digest) and self.specification == self.cdi.digest
