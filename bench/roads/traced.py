# SPDX-License-Identifier: Apache-2.0
"""Runs `nvidiad activate` and says on standard error when its parts began, in microseconds of the monotonic clock."""

import time

began = time.monotonic_ns()

import sys  # noqa: E402

from nvidiad import app, cli  # noqa: E402
from nvidiad.thought import activation  # noqa: E402
from nvidiad.verbs import engine, observer  # noqa: E402
from nvidiad.world import journal  # noqa: E402

imported = time.monotonic_ns()
look, execute = observer.look_at_driver, engine.DriverEngine.execute
times = {"began": began, "imported": imported}


def looking(*arguments):  # type: ignore[no-untyped-def]
    times["look"] = time.monotonic_ns()
    facts = look(*arguments)
    times["looked"] = time.monotonic_ns()
    return facts


def executing(*arguments, **more):  # type: ignore[no-untyped-def]
    times["execute"] = time.monotonic_ns()
    report = execute(*arguments, **more)
    times["executed"] = time.monotonic_ns()
    return report


observer.look_at_driver, engine.DriverEngine.execute = looking, executing
sys.argv = ["nvidiad", "activate"]
status = cli.main()
print("bench", *(f"{name}={moment // 1000}" for name, moment in times.items()), file=sys.stderr)
sys.exit(status)
