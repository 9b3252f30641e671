# SPDX-License-Identifier: Apache-2.0
"""The recipe: which images a registry should have, as one file says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.image.nouns.model import Architecture, Family
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from nvidiad.image.nouns.model import DriverSource

TAG = "{os}-{driver}{-product}"
KERNEL_TAG = "{kernel}-{driver}{-product}"
"""Where the OS version does not name the kernel: Debian."""


class OsWish(Value):
    """The releases of an OS for which there should be images."""

    family: Family
    channels: tuple[str, ...]
    """For Debian its suites."""
    architectures: tuple[Architecture, ...] = (Architecture.AMD64,)
    newest: int = 1
    """How many releases of each channel; of each kernel flavour, too, for Debian."""
    kernels: tuple[str, ...] = ()
    """Debian: these kernels, however new they are."""
    flavours: tuple[str, ...] = ()
    """Debian: the newest kernels of these flavours, `amd64` or `cloud-amd64`."""
    tag: str = TAG
    mirror: str = ""
    """Of the release feeds and files; empty for the official servers."""


class DriverWish(Value):
    """A driver, and the operating systems that should get it."""

    source: DriverSource
    families: tuple[Family, ...]


class Recipe(Value):
    """All of it."""

    repository: str
    systems: tuple[OsWish, ...]
    drivers: tuple[DriverWish, ...]
    developers: str = ""
    """In front of the names of developer images; empty for the engine's own."""
    base: str = ""
    """The image that the transport images are made from; empty for the builder's own choice."""
    connections: int = 8
    """That are open to the registry at most."""
    key: str = ""
    """The path of the private key that signs; empty for no signatures."""
