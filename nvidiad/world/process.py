# SPDX-License-Identifier: Apache-2.0
"""Starts programs: the only place that does, each with a clean environment and a time limit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from typing import TYPE_CHECKING, NoReturn

from nvidiad.nouns.errors import Code, Permanent, Transient
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# A program that is started by a daemon's bundled Python must not see that Python's search paths.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
LOCALE = "C.UTF-8"
# How long a killed program may take to be gone; one that waits in the kernel for a device never goes.
GRACE = 2.0
SAID_AT_MOST = 1000
_TAIL = 12


class Finished(Value):
    """A program that came to its end."""

    argv: tuple[str, ...]
    returncode: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """What the program told a person, on one line."""
        return one_line(self.err or self.out)


def one_line(text: str) -> str:
    """The lines of `text` joined by `; `, shortened."""
    joined = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    return joined if len(joined) <= SAID_AT_MOST else joined[:SAID_AT_MOST] + "…"


def quoted(argv: Sequence[str]) -> str:
    """The command line as one would type it."""
    import shlex

    return shlex.join(argv)


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    input: str | None = None,  # noqa: A002
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a program to its end; a Failure when it is not there or does not end in time.

    What `environment` says comes on top of what every program gets.
    """
    child = _start(argv, input, environment=environment)
    try:
        out, err = child.communicate(input, timeout)
    except subprocess.TimeoutExpired as error:
        gone = _kill(child)
        raise Transient(
            Code.COMMAND_FAILED,
            f"'{quoted(argv)}' did not end within {timeout:g} s"
            + ("" if gone else f", nor after SIGKILL: process {child.pid} waits in the kernel"),
            "" if gone else "See the kernel log; only a reboot ends such a process.",
        ) from error
    except BaseException:
        _kill(child)
        raise
    return Finished(tuple(argv), child.returncode, out, err)


def check(
    argv: Sequence[str],
    *,
    timeout: float,
    input: str | None = None,  # noqa: A002
    code: Code = Code.COMMAND_FAILED,
    remedy: str = "",
) -> Finished:
    """Like run, and a program that did not exit with 0 is a Failure too."""
    finished = run(argv, timeout=timeout, input=input)
    if finished.returncode != 0:
        raise Transient(code, failed(finished), remedy)
    return finished


def follow(
    argv: Sequence[str],
    *,
    timeout: float,
    say: Callable[[str], None],
    code: Code = Code.COMMAND_FAILED,
    remedy: str = "",
) -> None:
    """Like check, for a program that takes long: `say` is told each line of its output as it comes."""
    tail: deque[str] = deque(maxlen=_TAIL)
    child = _start(argv, None, stderr=subprocess.STDOUT)
    timer = threading.Timer(timeout, _kill_group, [child])
    timer.daemon = True
    timer.start()
    try:
        for line in child.stdout or ():
            if text := line.rstrip():
                tail.append(text)
                say(text)
        returncode = child.wait(timeout + GRACE)
    except BaseException:
        _kill(child)
        raise
    finally:
        late = not timer.is_alive()
        timer.cancel()
        if child.stdout is not None:
            child.stdout.close()
    if late:
        raise Transient(Code.COMMAND_FAILED, f"'{quoted(argv)}' did not end within {timeout:g} s")
    if returncode != 0:
        finished = Finished(tuple(argv), returncode, "\n".join(tail), "")
        raise Transient(code, failed(finished), remedy)


def failed(finished: Finished) -> str:
    """The sentence for a program that failed: its command line and what it said."""
    end = (
        f"exited with {finished.returncode}"
        if finished.returncode >= 0
        else f"was killed by signal {-finished.returncode}"
    )
    return f"'{quoted(finished.argv)}' {end}" + (f": {finished.said}" if finished.said else "")


def become(argv: Sequence[str]) -> NoReturn:
    """Let a program take the place of this process, with the environment that every program gets."""
    try:
        os.execve(argv[0], list(argv), {"PATH": PATH, "LC_ALL": LOCALE})  # noqa: S606
    except OSError as error:
        raise Permanent(Code.COMMAND_FAILED, f"cannot start '{quoted(argv)}': {error.strerror}") from error


def _start(
    argv: Sequence[str],
    input: str | None,  # noqa: A002
    stderr: int = subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            errors="replace",
            env={"PATH": PATH, "LC_ALL": LOCALE, **(environment or {})},
            cwd="/",
            umask=0o022,
            start_new_session=True,
        )
    except OSError as error:
        raise Permanent(
            Code.COMMAND_FAILED,
            f"cannot start '{quoted(argv)}': {error.strerror}",
            f"Install '{argv[0]}' in one of {PATH}.",
        ) from error


def _kill_group(child: subprocess.Popen[str]) -> None:
    # The group lives as long as any member, so children that the program left behind go too.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _kill(child: subprocess.Popen[str]) -> bool:
    """Kill the program and all it started; whether it is gone."""
    _kill_group(child)
    try:
        child.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired:
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()
        return False
    return True
