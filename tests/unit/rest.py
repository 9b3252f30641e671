# SPDX-License-Identifier: Apache-2.0
"""A test process at rest: threads and descriptors of earlier tests may still be on their way out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable


class Held(Protocol):
    """What a process holds."""

    @property
    def descriptors(self) -> object: ...
    @property
    def threads(self) -> object: ...


H = TypeVar("H", bound=Held)


def at_rest(ask: Callable[[], H]) -> H:
    """What this process holds as soon as two questions in a row have the same answer."""
    deadline = time.monotonic() + 20
    last = ask()
    while True:
        time.sleep(0.02)
        now = ask()
        if (now.descriptors, now.threads) == (last.descriptors, last.threads):
            return now
        assert time.monotonic() < deadline
        last = now
