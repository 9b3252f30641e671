# SPDX-License-Identifier: Apache-2.0
"""Kills nvidiad in the middle of its work; a bed has it in nvidiad's virtual environment, and the product knows nothing of it.

/run/kill-at holds one wish as JSON:
  verb   the process that is meant: run, activate, deactivate, install
  step   the step's name, as in load-module
  nth    which step of that name in that process, from 1
  at     "before", "after", seconds after its begin, or "change N": just before the Nth change that it makes to files or
         the Nth program that it starts
  power  do not die, but stand still: the test then cuts the power
The file goes before the process does, so that the next life is not killed again.  /run/kill-trace, where it exists, gets
the changes that each step makes, one a line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

WISH = "/run/kill-at"
HIT = "/run/kill-hit"
TRACE = "/run/kill-trace"
CHANGES = {
    *(
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.symlink",
        "os.link",
        "os.chmod",
        "os.chown",
        "os.truncate",
    ),
    *("subprocess.Popen", "os.exec", "os.posix_spawn", "shutil.rmtree"),
}


def strike(wish: dict[str, object]) -> None:
    """The end of this process, or of the whole machine."""
    os.rename(WISH, HIT)
    os.kill(os.getpid(), signal.SIGSTOP if wish.get("power") else signal.SIGKILL)


class Killer:
    """Stands around every step of an engine."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.counts: dict[str, int] = {}
        self.step = ""
        self.thread = 0
        self.changes = 0
        self.last = 0
        self.wish: dict[str, object] = {}

    def around(self, engine: object, perform: object, step: object, name: str) -> None:
        if self.step:  # Engine.perform hands most steps to DriverEngine.perform
            return perform(engine, step)  # type: ignore[operator]
        nth = self.counts[name] = self.counts.get(name, 0) + 1
        wish = read_wish()
        if (wish.get("verb"), wish.get("step"), wish.get("nth", 1)) != (self.verb, name, nth):
            wish = {}
        at = wish.get("at")
        if at == "before":
            strike(wish)
        elif isinstance(at, (int, float)):
            timer = threading.Timer(at, strike, [wish])
            timer.daemon = True
            timer.start()
        elif isinstance(at, str) and at.startswith("change "):
            self.last = int(at.split()[1])
            self.wish = wish
        self.changes = 0
        self.thread = threading.get_ident()
        self.step = name
        try:
            perform(engine, step)  # type: ignore[operator]
        finally:
            self.step = ""
            self.wish = {}
        if at == "after":
            strike(wish)
        return None

    def hear(self, event: str, arguments: tuple[object, ...]) -> None:
        """An audit event: Python is about to do something."""
        if not self.step or threading.get_ident() != self.thread:
            return
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if not writes and event not in CHANGES:
            return
        self.changes += 1
        if self.wish and self.changes == self.last:
            wish, self.wish = self.wish, {}
            self.step = ""
            strike(wish)
        elif not self.wish and os.path.exists(TRACE):
            step, self.step = self.step, ""
            with open(TRACE, "a") as trace:
                trace.write(
                    f"{self.verb} {step} {self.counts[step]} {self.changes} {event} {arguments[:1]}\n"
                )
            self.step = step


def read_wish() -> dict[str, object]:
    try:
        with open(WISH) as file:
            return json.load(file)
    except OSError:
        return {}


def arm() -> None:
    """Called at the start of every Python of the environment."""
    words = sys.orig_argv[2:]
    if len(words) < 1 or not sys.orig_argv[1].endswith("/nvidiad"):
        return
    if words[0] not in ("run", "activate", "deactivate", "install"):
        return
    from nvidiad.nouns.steps import step_name
    from nvidiad.verbs import engine

    killer = Killer(words[0])
    for kind in (engine.DriverEngine, engine.Engine):

        def perform(self: object, step: object, original: object = kind.perform) -> None:
            killer.around(self, original, step, step_name(step))  # type: ignore[arg-type]

        kind.perform = perform  # type: ignore[method-assign,assignment]
    sys.addaudithook(killer.hear)
