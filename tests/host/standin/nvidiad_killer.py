# SPDX-License-Identifier: Apache-2.0
"""Kills nvidiad in the middle of its work; a bed has it in the virtual environment, the product nothing.

/run/kill-at holds one wish as JSON:
  verb   the process that is meant: run, activate, deactivate, install
  step   the step's name, as in load-module
  nth    which step of that name in that process, from 1
  at     "before", "after", seconds after its begin, or "change N": just before the Nth time that it
         changes a file or starts a program
  power  do not die, but stand still: the test then cuts the power
The file goes before the process does, so that the next life is not killed again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

WISH = Path("/run/kill-at")
HIT = Path("/run/kill-hit")
# Audit events of CPython: raised before it is done.
CHANGES = frozenset(
    {
        *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.chown"),
        *("subprocess.Popen", "os.exec", "os.posix_spawn"),
    }
)


def strike(wish: dict[str, Any]) -> None:
    """The end of this process, or of the whole machine."""
    WISH.rename(HIT)
    os.kill(os.getpid(), signal.SIGSTOP if wish.get("power") else signal.SIGKILL)


class Killer:
    """Stands around every step of an engine."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.counts: dict[str, int] = {}
        self.thread = 0
        self.changes = 0
        self.wish: dict[str, Any] = {}

    def around(self, do: Callable[[], None], name: str) -> None:
        if self.thread:  # Engine.perform hands most steps on to DriverEngine.perform
            do()
            return
        nth = self.counts[name] = self.counts.get(name, 0) + 1
        wish = read_wish()
        if (wish.get("verb"), wish.get("step"), wish.get("nth")) != (self.verb, name, nth):
            wish = {}
        at = wish.get("at")
        if at == "before":
            strike(wish)
        elif isinstance(at, float):
            timer = threading.Timer(at, strike, [wish])
            timer.daemon = True
            timer.start()
        elif isinstance(at, str) and at.startswith("change "):
            self.wish, self.changes = wish, int(at.split()[1])
        self.thread = threading.get_ident()
        try:
            do()
        finally:
            self.thread = 0
            self.wish = {}
        if at == "after":
            strike(wish)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python is about to do something."""
        if not self.wish or threading.get_ident() != self.thread:
            return
        writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if writes or event in CHANGES:
            self.changes -= 1
            if self.changes == 0:
                wish, self.wish = self.wish, {}
                strike(wish)


def read_wish() -> dict[str, Any]:
    try:
        wish: dict[str, Any] = json.loads(WISH.read_text())
    except OSError:
        return {}
    return wish


def arm() -> None:
    """Called at the start of every Python of the environment."""
    words = sys.orig_argv[1:3]
    if len(words) < 2 or not words[0].endswith("/nvidiad"):
        return
    if words[1] not in ("run", "activate", "deactivate", "install"):
        return
    from nvidiad.nouns.steps import step_name
    from nvidiad.verbs import engine

    killer = Killer(words[1])

    def surround(original: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def perform(self: Any, step: Any) -> None:
            killer.around(lambda: original(self, step), step_name(step))

        return perform

    for kind in (engine.DriverEngine, engine.Engine):
        setattr(kind, "perform", surround(kind.perform))  # noqa: B010 - a type checker minds the other way
    sys.addaudithook(killer.hear)
