# SPDX-License-Identifier: Apache-2.0
"""The witness: looks at the host after a case of the matrix ran on it, and notes what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.beds.common import BedError
from tests.host import road
from tests.host.bed import Host
from tests.host.machine import CommandError
from tests.record import note
from tests.reliability import faults

if TYPE_CHECKING:
    import pytest


def note_case(item: pytest.Item, report: pytest.TestReport) -> None:
    """Note a case of every row that the test proves; hosts of the VM bed are verified by their tests."""
    rows = faults.proved(item.nodeid)
    if not rows:
        return
    host = _host(item) if report.passed else None
    found = _look(host) if host else {}
    for row in rows:
        note(
            "faults",
            f"{row.id} <- {item.nodeid}",
            row=row.id,
            test=item.nodeid,
            survived=report.passed,
            seconds=round(report.duration, 1),
            **found,
        )


def _look(host: Host) -> dict[str, int]:
    """The trees on disk, verified; nothing where the test has left no host that could be asked."""
    try:
        seen, loaded = road.survey(host), host.modules()
    except (BedError, CommandError, OSError):
        return {}
    # A driver in the kernel whose tree is not complete on disk has lost it.
    lost = bool(loaded) and seen["current"] not in seen["trees"]
    return {"trees": len(seen["trees"]), "half": len(seen["half"]), "lost": int(lost)}


def _host(item: pytest.Item) -> Host | None:
    """The host of the host bed that a test had, whatever it calls it."""
    waiting: list[object] = list(getattr(item, "funcargs", {}).values())
    for each in waiting[:]:
        # A victim or a bed has a host; who looks ahead has a victim.
        waiting += [getattr(each, name, None) for name in ("host", "victim")]
        waiting.append(getattr(getattr(each, "victim", None), "host", None))
    return next((each for each in waiting if isinstance(each, Host)), None)
