# SPDX-License-Identifier: Apache-2.0
"""The fabric manager's configuration: NVIDIA's own, with what must be another where it lies in a tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

RUNTIME = "/run/nvidia-fabricmanager"


def configuration(text: str, topologies: str) -> str:
    """The text for a manager whose topologies are in this directory; what else it says stays."""
    ours: Mapping[str, str] = {
        "DAEMONIZE": "1",
        "TOPOLOGY_FILE_PATH": topologies,
        "DATABASE_PATH": topologies,
        # By default in /tmp, which is the service's own and goes with it.
        "STATE_FILE_NAME": f"{RUNTIME}/fabricmanager.state",
    }
    kept = [line for line in text.splitlines() if line.partition("=")[0].strip() not in ours]
    return "\n".join([*kept, *(f"{key}={value}" for key, value in ours.items()), ""])
