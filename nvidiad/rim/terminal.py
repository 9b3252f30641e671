# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: one line that is drawn again on a terminal, one line per step elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

from nvidiad.thought.render import clean, size

if TYPE_CHECKING:
    from nvidiad.nouns.model import Progress


class ProgressLine:
    """Draws on `stream`; the rate is that of the step so far."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._step = ""
        self._began = 0.0
        self._width = 0

    def show(self, progress: Progress) -> None:
        """Show where a step stands."""
        now = time.monotonic()
        if progress.step != self._step:
            self.end()
            self._step, self._began = progress.step, now
            if not self._live:
                self._stream.write(f"{progress.step}: {clean(progress.detail)}\n")
                self._stream.flush()
        if not self._live:
            return
        amount = ""
        if progress.total:
            rate = progress.done / max(now - self._began, 0.1)
            share = 100 * progress.done // progress.total
            amount = f" {size(progress.done)} of {size(progress.total)} ({share}%, {size(rate)}/s)"
        text = f"{progress.step}: {clean(progress.detail)}{amount}"
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def end(self) -> None:
        """Leave the line as it is and go on below it."""
        if self._live and self._width:
            self._stream.write("\n")
            self._width = 0
