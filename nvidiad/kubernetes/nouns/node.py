# SPDX-License-Identifier: Apache-2.0
"""A node as the cluster knows it, and what nvidiad says of the host that it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping


class Node(Value):
    """What a coordinator of reboots and the companion tell each other on the node object."""

    version: str
    """Its resourceVersion: another one after every change, whoever made it."""
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    taints: tuple[Mapping[str, object], ...] = ()
    """As they are on the node: what is not ours goes back unchanged."""


class Said(Value):
    """What nvidiad says of this host."""

    go: bool
    """A reboot may go."""
    ready: bool
    """Nothing is missing that this host should have."""
    reason: str
    """Why a reboot may go, or not."""
    summary: str
    """How the host is, in one sentence."""


class Conflict(Exception):
    """The node has changed since it was looked at; look again."""
