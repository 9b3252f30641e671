# SPDX-License-Identifier: Apache-2.0
"""nvidiad itself, as the kernel sees its process: memory, descriptors, threads."""

from __future__ import annotations

import os
from pathlib import Path

from nvidiad.thought.metrics import Process

_SELF = Path("/proc/self")


def process() -> Process | None:
    """What this process holds now; None where /proc does not say."""
    try:
        pages = int((_SELF / "statm").read_text().split()[1])
        # Without the descriptor that lists them.
        descriptors = len(os.listdir(_SELF / "fd")) - 1  # noqa: PTH208 # it has no use for paths
        threads = len(os.listdir(_SELF / "task"))  # noqa: PTH208
    except (OSError, ValueError, IndexError):
        return None
    return Process(pages * os.sysconf("SC_PAGE_SIZE"), descriptors, threads)
