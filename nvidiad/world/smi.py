# SPDX-License-Identifier: Apache-2.0
"""nvidia-smi: NVIDIA's own program asks NVML, as a child with a time limit, and never this process."""

# NVML keeps the device open for as long as its process lives, which would hold the driver in the kernel; it
# would come into a Python with a C library of its own; and what hangs with a GPU would be this process.

from __future__ import annotations

import os
from pathlib import Path

from nvidiad.world import process

# A GPU that nobody keeps open is started for the question: some ten seconds on a host with eight.
_SECONDS = 60.0


class NvidiaSmi:
    """The `Smi` port."""

    seconds = _SECONDS

    def ask(self, tree: str, arguments: tuple[str, ...]) -> tuple[int, str] | None:
        """The exit status of the tree's nvidia-smi and all that it said; None where the tree has none.

        Raises a Failure when it did not end. It gets the libraries that every program gets: those of the
        linker's cache.
        """
        program = Path(tree) / "bin/nvidia-smi"
        if not os.access(program, os.X_OK):
            return None
        finished = process.run([str(program), *arguments], timeout=self.seconds)
        return finished.returncode, f"{finished.out}\n{finished.err}"
