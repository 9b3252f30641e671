# SPDX-License-Identifier: Apache-2.0
"""The wiring of the companion: the one place where its adapters are chosen."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, NoReturn

from nvidiad.kubernetes.rim.companion import Companion
from nvidiad.kubernetes.thought import answer
from nvidiad.kubernetes.world.cluster import Cluster
from nvidiad.nouns.errors import Code, Transient
from nvidiad.rim import client

if TYPE_CHECKING:
    from pathlib import Path

    from nvidiad.kubernetes.nouns.node import Said
    from nvidiad.verbs.ports import Log

# For nvidiad's answer; it may be started for it, and a coordinator waits for minutes anyway.
_ASK_SECONDS = 10.0


def run(node: str, cluster: Cluster, socket: str | None, log: Log) -> NoReturn:
    """Answer until the process is told to end, which it does at once: nothing is left half done."""
    # Process 1 of a container ends at no signal that it does not handle.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))

    async def ask() -> Said:
        return answer.NO_NVIDIAD if socket is None else await asyncio.to_thread(_ask, socket)

    log.info("answering for a node", what=node, server=cluster.check(), socket=socket or "none")
    asyncio.run(Companion(node, cluster, ask, log).run())


def cluster(node: str, kubeconfig: Path | None, account: Path) -> Cluster:
    """The cluster that this node belongs to."""
    return Cluster(node, kubeconfig, account)


def _ask(socket: str) -> Said:
    _, body = client.status_json(socket, timeout=_ASK_SECONDS)
    try:
        return answer.read(body, time.time())
    except answer.NoAnswer as error:
        raise Transient(Code.NOT_RUNNING, f"nvidiad on '{socket}' {error}") from error
