# SPDX-License-Identifier: Apache-2.0
"""Runs `nvidiad activate` and says when its parts began, in microseconds of the monotonic clock."""

from __future__ import annotations

import time

began = time.monotonic_ns()

import sys  # noqa: E402

from nvidiad import app, cli  # noqa: E402, F401
from nvidiad.thought import activation  # noqa: E402, F401
from nvidiad.verbs import engine, observer  # noqa: E402
from nvidiad.world import journal  # noqa: E402, F401

imported = time.monotonic_ns()

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvidiad.nouns.facts import DriverFacts
    from nvidiad.nouns.plan import Plan, Report
    from nvidiad.thought.settings import Settings
    from nvidiad.verbs.ports import DriverPorts

times = {"began": began, "imported": imported}
look = observer.look_at_driver


def timed_look(ports: DriverPorts, settings: Settings) -> DriverFacts:
    times["look"] = time.monotonic_ns()
    facts = look(ports, settings)
    times["looked"] = time.monotonic_ns()
    return facts


class TimedEngine(engine.DriverEngine):
    def execute(self, plan: Plan, **more: object) -> Report:
        times["execute"] = time.monotonic_ns()
        report = super().execute(plan)
        times["executed"] = time.monotonic_ns()
        return report


observer.look_at_driver = timed_look
engine.DriverEngine = TimedEngine  # type: ignore[misc]
sys.argv = ["nvidiad", "activate"]
status = cli.main()
moments = " ".join(f"{name}={moment // 1000}" for name, moment in times.items())
sys.stderr.write(f"bench {moments}\n")
sys.exit(status)
