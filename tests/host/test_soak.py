# SPDX-License-Identifier: Apache-2.0
"""A short soak: some hundred looks of one daemon with pulls and faults leave nothing behind.

`make soak` has thousands of looks, and other lives of the daemon after them.
"""

from __future__ import annotations

from tests.host import road
from tests.soak.__main__ import tell
from tests.soak.events import Events
from tests.soak.figures import faults
from tests.soak.run import soak

# Kibibytes. Memory takes a thousand looks to find its size: only what is large shows before that.
ALLOWED = 4096
EVENTS = (Events.update, Events.line_breaks, Events.updater_fails, Events.systemd_reloads)


def test_some_hundred_looks_leave_nothing_behind() -> None:
    with road.booted() as host:
        done = soak(host, looks=200, each=8, lives=0, events=EVENTS, say=print)
        figures = tell(done, "short soak")
    assert faults(done.samples, ALLOWED) + done.left == []
    looks, pulls = figures["looks"], figures["pulls"]
    assert isinstance(looks, int) and looks >= 200
    assert isinstance(pulls, int) and pulls >= 2 * len(done.samples)
