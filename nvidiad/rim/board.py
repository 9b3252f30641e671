# SPDX-License-Identifier: Apache-2.0
"""The board: what was last published and what has been counted; the server reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.rim.server import Snapshot
from nvidiad.thought import metrics
from nvidiad.thought.document import document

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvidiad.nouns.model import Memory, Progress
    from nvidiad.nouns.plan import Report, Status


class Board:
    """Lives in the loop's thread; statuses are immutable, so readers never see half of one."""

    def __init__(self, *, version: str, recall: Callable[[], Memory]) -> None:
        self._version = version
        self._recall = recall
        self._status: Status | None = None
        self._progress: Progress | None = None
        self._report: Report | None = None
        self._memory: Memory | None = None
        self._pulled = 0
        self._counters = metrics.Counters()
        self._changed: Callable[[], None] = lambda: None

    def listen(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever there is something new."""
        self._changed = changed

    def publish(self, status: Status | None, progress: Progress | None) -> None:
        """Put up a status and where the step under way stands."""
        if progress is not None and progress.step == "pull-image":
            self._pulled = progress.done
        if status is not None and status is not self._status:
            self._memory = self._recall()
            if self._status is None or status.looked != self._status.looked:
                self._counters = metrics.looked(self._counters)
            if status.report is not None and status.report is not self._report:
                self._report = status.report
                self._counters = metrics.pulled(metrics.acted(self._counters, status.report), self._pulled)
                self._pulled = 0
        self._status, self._progress = status, progress
        self._changed()

    def snapshot(self) -> Snapshot:
        """The document and the counters as they are now."""
        made = document(self._status, self._progress, version=self._version, memory=self._memory)
        return Snapshot(made, self._counters)
