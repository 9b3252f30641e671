# SPDX-License-Identifier: Apache-2.0
"""The companion: watches this host's node, and answers there while a coordinator of reboots waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn, Protocol

from nvidiad.kubernetes.nouns.node import Conflict
from nvidiad.kubernetes.thought import answer
from nvidiad.nouns.errors import Code, Failure, Transient
from nvidiad.nouns.value import Value
from nvidiad.thought import backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from nvidiad.kubernetes.nouns.node import Node, Said
    from nvidiad.verbs.ports import Log

_TRIES = 5
"""How often a node that changes under our hands is looked at again before that is a failure."""


class NodeObject(Protocol):
    """The node object, for as long as a connection stands."""

    async def follow(self, tell: Callable[[Node | None], None]) -> None: ...
    async def get(self) -> Node: ...
    async def change(
        self,
        version: str,
        annotations: Mapping[str, str | None],
        taints: tuple[Mapping[str, object], ...] | None,
    ) -> Node: ...


class Cluster(Protocol):
    """Where the node object is."""

    def connect(self) -> AbstractAsyncContextManager[NodeObject]: ...


class Pace(Value):
    """How often something is done, in seconds."""

    poll: float = 5.0
    """Between two questions to nvidiad, while a coordinator waits; FLUO's operator looks every 30 s."""
    initial: float = 1.0
    """After the first failure, and between two watches."""
    maximum: float = 60.0
    steady: float = 30.0
    """A watch that stood for so long has not failed, however it ended."""


class Companion:
    """Remembers nothing that counts: each connection begins with the node as it is."""

    def __init__(
        self,
        name: str,
        cluster: Cluster,
        ask: Callable[[], Awaitable[Said]],
        log: Log,
        pace: Pace | None = None,
    ) -> None:
        self._name = name
        self._cluster = cluster
        self._ask = ask
        self._log = log
        self._pace = pace or Pace()
        self._node: Node | None = None
        self._watched = False
        """The watch of this connection has said something."""
        self._news = asyncio.Event()
        self._told: dict[str, str] = {}

    async def run(self) -> NoReturn:
        """One connection after the other, with back-off where they do not last."""
        clock = asyncio.get_running_loop().time
        short = 0
        while True:
            begun = clock()
            try:
                async with self._cluster.connect() as node:
                    await self._attend(node)
            except Failure as failure:
                self._complain("cluster", failure)
            short = 0 if clock() - begun >= self._pace.steady else short + 1
            pace = self._pace
            pause = backoff.delay(max(short, 1), initial=pace.initial, maximum=pace.maximum, seed=self._name)
            await asyncio.sleep(pause)

    async def _attend(self, node: NodeObject) -> None:
        """Answer for as long as the watch stands."""
        # A watch of a node that does not exist is silent; the question for it is not.
        self._node = await node.get()
        self._watched = False
        following = asyncio.create_task(node.follow(self._see), name="watch")
        following.add_done_callback(lambda _: self._news.set())
        try:
            while not following.done():
                self._news.clear()
                await self._answer(node)
                if not following.done():
                    await self._wait()
            following.result()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    def _see(self, node: Node | None) -> None:
        self._node, self._watched = node, True
        self._news.set()

    async def _wait(self) -> None:
        """Until the node changes, the watch ends, or nvidiad is to be asked again."""
        waiting = self._node is not None and _is_waiting(self._node)
        try:
            # Without a question the watch is the limit, which has one of its own.
            async with asyncio.timeout(self._pace.poll if waiting else None):
                await self._news.wait()
        except TimeoutError:
            return

    async def _answer(self, node: NodeObject) -> None:
        """Bring annotations and taints up to date, on a version of the node for which they are right."""
        known = self._node
        for _ in range(_TRIES):
            if known is None:
                return
            said = await self._hear() if _is_waiting(known) else None
            changes, taints = answer.changes(known, said), answer.taints(known, said)
            if not changes and taints is None:
                self._at_peace()
                return
            told = self._node
            try:
                changed = await node.change(known.version, changes, taints)
            except Conflict:
                known = await node.get()
                continue
            self._at_peace()
            self._tell(changes, said)
            if taints is not None and said is not None:
                self._log.info(
                    "taint taken off", what=answer.NOT_READY, node=self._name, reason=said.summary
                )
            if self._node is told:
                # All that the watch had told before is older, or this had been a conflict.
                self._node = changed
            return
        what = f"node '{self._name}' changed {_TRIES} times while it was to be answered"
        raise Transient(Code.API_UNREACHABLE, what, "See who changes it: kubectl get node NAME --watch.")

    async def _hear(self) -> Said | None:
        try:
            said = await self._ask()
        except Failure as failure:
            self._complain("nvidiad", failure)
            return None
        self._settle("nvidiad", "nvidiad answers")
        return said

    # -----------------------------------------------------------------------------------------------
    # What is logged: every change of the node, and every trouble once

    def _tell(self, changes: Mapping[str, str | None], said: Said | None) -> None:
        for key, value in changes.items():
            if key == answer.REASON:
                if value is not None:
                    self._log.info("the coordinator has to wait", node=self._name, reason=value)
                continue
            why = "" if said is None else said.reason if key == answer.DRIVER_STAGED else said.summary
            event = "confirmed" if value else "no longer confirmed"
            self._log.info(event, what=key, node=self._name, reason=why)

    def _complain(self, about: str, failure: Failure) -> None:
        if self._told.get(about) == failure.sentence:
            return
        self._told[about] = failure.sentence
        code, remedy = str(failure.code), failure.remedy
        self._log.warning(f"{failure.sentence}, trying again", code=code, remedy=remedy, node=self._name)

    def _at_peace(self) -> None:
        # Reading, watching and, where it was due, writing went well: one of them alone says little.
        if self._watched:
            self._settle("cluster", "the API server answers")

    def _settle(self, about: str, event: str) -> None:
        if self._told.pop(about, None) is not None:
            self._log.info(event, node=self._name)


def _is_waiting(node: Node) -> bool:
    """Whether somebody waits for what nvidiad says of this node: a coordinator, or the scheduler."""
    return answer.is_asked(node) or answer.is_tainted(node)
