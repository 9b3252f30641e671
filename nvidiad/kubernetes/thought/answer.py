# SPDX-License-Identifier: Apache-2.0
"""The answer: which annotations a node should have, from its labels and from what nvidiad says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from nvidiad.kubernetes.nouns.node import Said
from nvidiad.nouns.model import Phase
from nvidiad.thought.document import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nvidiad.kubernetes.nouns.node import Node

# The labels by which FLUO's operator asks. It deletes the annotations that it waits for in the same update
# that sets the label, and removes both in the update that ends the waiting.
FLUO = "flatcar-linux-update.v1.flatcar-linux.net"
BEFORE_REBOOT = f"{FLUO}/before-reboot"
AFTER_REBOOT = f"{FLUO}/after-reboot"
# The annotations that are the answer. The prefix is that of the Varlink interface and of the images' labels.
# Kubernetes wants a DNS subdomain in form only; as a domain this one can belong to nobody.
DRIVER_STAGED = "io.nvidiad/driver-staged"
DRIVER_READY = "io.nvidiad/driver-ready"
REASON = "io.nvidiad/reboot-reason"
"""For people: why the answer is not there yet."""
NOT_READY = "io.nvidiad/driver-not-ready"
"""The taint that a kubelet registers its node with, and that goes as soon as the driver works."""

TRUE = "true"
# Reasons hold the words of others, a registry's or a kernel's.
_REASON_LIMIT = 500
_IN_ORDER = frozenset({Phase.READY, Phase.NO_GPU, Phase.STANDING_BACK})
_NONE = "this node has no nvidiad"
NO_NVIDIAD = Said(go=True, ready=True, reason=_NONE, summary=_NONE)
"""What is said where there is nobody to ask, and nothing to wait for."""


class NoAnswer(ValueError):
    """What came says nothing of a reboot; the text is the end of a sentence that begins with nvidiad."""


def read(body: bytes, now: float) -> Said:
    """The status document (docs/status.md), at a moment in seconds since 1970."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoAnswer("tells a status that is not JSON") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise NoAnswer(f"tells a status that is none of schema {SCHEMA}, the one that is known here")
    reboot = document.get("reboot")
    if not isinstance(reboot, dict):
        raise NoAnswer("has not looked at this host yet")
    until = reboot.get("until")
    # A daemon that hangs holds no reboot for ever: at `until` it goes, said or not.
    over = isinstance(until, int | float) and now >= until
    return Said(
        go=reboot.get("go") is True or over,
        # Another driver may be in force until the wanted one is there: then pods can run.
        ready=document.get("phase") in _IN_ORDER or document.get("usable") is True,
        reason=str(reboot.get("reason", "")),
        summary=str(document.get("summary", "")),
    )


def is_asked(node: Node) -> bool:
    """Whether a coordinator waits for an answer on this node."""
    return _asks(node, BEFORE_REBOOT) or _asks(node, AFTER_REBOOT)


def is_tainted(node: Node) -> bool:
    """Whether the node still has the taint of one whose driver is not there."""
    return any(taint.get("key") == NOT_READY for taint in node.taints)


def taints(node: Node, said: Said | None) -> tuple[Mapping[str, object], ...] | None:
    """The taints that the node is to have instead of those that it has; None where they are right.

    Ours is taken off and never put on: that a driver fails later keeps no pods away that need none.
    """
    if said is None or not said.ready or not is_tainted(node):
        return None
    return tuple(taint for taint in node.taints if taint.get("key") != NOT_READY)


def changes(node: Node, said: Said | None) -> dict[str, str | None]:
    """The annotations to set, and those to remove (None), so that the node says what nvidiad says.

    `said` is None where nvidiad was not asked, or did not answer. Then nothing is confirmed, and what was
    confirmed before stays: a daemon that restarts takes back no word.
    """
    wanted: dict[str, str | None] = {DRIVER_STAGED: None, DRIVER_READY: None, REASON: None}
    if is_asked(node):
        if said is None:
            return {}
        before, after = _asks(node, BEFORE_REBOOT), _asks(node, AFTER_REBOOT)
        wanted[DRIVER_STAGED] = TRUE if before and said.go else None
        wanted[DRIVER_READY] = TRUE if after and said.ready else None
        if before and not said.go:
            wanted[REASON] = said.reason[:_REASON_LIMIT]
        elif after and not said.ready:
            wanted[REASON] = said.summary[:_REASON_LIMIT]
    return {key: value for key, value in wanted.items() if node.annotations.get(key) != value}


def _asks(node: Node, label: str) -> bool:
    return node.labels.get(label) == TRUE
