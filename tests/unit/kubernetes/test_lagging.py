# SPDX-License-Identifier: Apache-2.0
"""The companion where its watch lags: what it knows of the node comes of its own requests."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from nvidiad.kubernetes.nouns.node import Conflict, Node
from nvidiad.kubernetes.rim.companion import Companion, Pace
from nvidiad.kubernetes.thought.answer import BEFORE_REBOOT, DRIVER_STAGED, NO_NVIDIAD
from tests.unit.world import Quiet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from nvidiad.kubernetes.nouns.node import Said

LIMIT = 60


class Lagging:
    """A node that waits to be rebooted, and a watch that has told nothing of it yet."""

    def __init__(self) -> None:
        self.version = 1
        self.notes: dict[str, str] = {}
        self.patched: list[str] = []

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Lagging]:
        yield self

    async def follow(self, tell: Callable[[Node | None], None]) -> None:
        del tell
        await asyncio.sleep(LIMIT)

    async def get(self) -> Node:
        return Node(str(self.version), {BEFORE_REBOOT: "true"}, dict(self.notes))

    async def change(
        self,
        version: str,
        annotations: Mapping[str, str | None],
        taints: tuple[Mapping[str, object], ...] | None,
    ) -> Node:
        assert taints is None
        if not self.patched:
            # Somebody else is faster, once.
            self.version += 1
        self.patched.append(version)
        if version != str(self.version):
            raise Conflict("it has been modified")
        self.notes |= {key: value for key, value in annotations.items() if value is not None}
        self.version += 1
        return await self.get()


def test_what_was_written_after_a_conflict_is_not_written_again() -> None:
    node = Lagging()
    questions = 0

    async def play() -> None:
        enough = asyncio.Event()

        async def ask() -> Said:
            nonlocal questions
            questions += 1
            if questions >= 5:
                enough.set()
            return NO_NVIDIAD

        companion = asyncio.create_task(Companion("gpu-1", node, ask, Quiet(), Pace(poll=0.001)).run())
        async with asyncio.timeout(LIMIT):
            await enough.wait()
        companion.cancel()
        with suppress(asyncio.CancelledError):
            await companion

    asyncio.run(play())
    assert node.notes == {DRIVER_STAGED: "true"}
    assert node.patched == ["1", "2"]
