# SPDX-License-Identifier: Apache-2.0
"""logind: reboots that are asked for, the lock that delays them, and how long it waits for such locks."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from nvidiad.nouns.errors import Code, Failure, Transient
from nvidiad.nouns.upcoming import RebootFacts
from nvidiad.thought import inhibition
from nvidiad.world import files

if TYPE_CHECKING:
    from pathlib import Path

    from nvidiad.thought.inhibition import Others
    from nvidiad.verbs.ports import Bus

NAME = "org.freedesktop.login1"
PATH = "/org/freedesktop/login1"
INTERFACE = f"{NAME}.Manager"
_OWNER = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner")
_SYSTEMD = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
WHO = "nvidiad"
LOCK = "delay-lock"
"""The lock's name where it outlives this process."""
_HANGUP = 1
# logind reads its configuration after the signal, in its own time.
_READ_SECONDS = 5.0
_ASK_SECONDS = 0.05
# The most important one first; the last is for a /lib that is not part of /usr.
_PLACES = ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd", "lib/systemd")


class Keeper(Protocol):
    """Where a descriptor outlives this process: with the service manager."""

    def put(self, name: str, descriptor: int) -> None: ...
    def remove(self, name: str) -> None: ...


class Logind:
    """The `Shutdowns` port."""

    # Of the process, as logind sees it: this object is made anew with every configuration, and a lock that
    # nobody knows of any more would hold the reboot to the end.
    _lock: ClassVar[int | None] = None

    def __init__(self, bus: Bus, root: Path, keeper: Keeper | None = None) -> None:
        self._bus = bus
        self._root = root
        self._keeper = keeper

    @classmethod
    def adopt(cls, lock: int) -> None:
        """Go on with the lock of an earlier life, which was killed and took no waiting reboot with it."""
        cls._lock = lock

    def facts(self) -> RebootFacts | None:
        """How logind and our lock stand; None where nobody is logind, or it does not answer.

        The owner is asked for first, which starts nothing: any other call would start a logind.
        """
        try:
            if not self._bus.call(*_OWNER, NAME):
                return None
            limit = self._limit()
            preparing = bool(self._get("PreparingForShutdown", "b"))
            held = Logind._lock is not None and self._is_listed()
        except Failure as failure:
            if failure.code is Code.BUS_LOST:
                raise
            return None
        others = self._others()
        return RebootFacts(
            held,
            limit,
            preparing,
            kind=self._kind() if preparing else "",
            locksmith=self._locksmith(),
            others=others.limit,
            fixed=others.fixed,
        )

    def raise_limit(self, seconds: float) -> None:
        """Let logind wait at least so long for delay locks, and never less than without our file.

        Where that file is not the last to speak nothing is done: somebody has decided.
        """
        others = self._others()
        if others.fixed:
            return
        wanted = max(seconds, others.limit)
        place = self._root / "etc/systemd/logind.conf.d" / inhibition.DROP_IN
        try:
            files.make_directory(place.parent)
            files.atomic_write(place, inhibition.drop_in(wanted))
        except OSError as error:
            raise Transient(Code.LOGIND_REFUSED, f"cannot write '{place}': {error.strerror}") from error
        try:
            # As kubelet does it: on this signal logind reads its configuration again.
            self._bus.call(*_SYSTEMD, "KillUnit", "systemd-logind.service", "all", _HANGUP)
            self._await_limit(wanted)
        except Failure as failure:
            raise _refused("a longer wait for delay locks", failure) from failure

    def hold(self, why: str) -> None:
        """Take a delay lock. Never a block lock: refused, locksmith and FLUO wait for a week."""
        try:
            if Logind._lock is not None and self._is_listed():
                return
            taken = self._bus.descriptor(NAME, PATH, INTERFACE, "Inhibit", "shutdown", WHO, why, "delay")
        except Failure as failure:
            raise _refused("a delay lock, reboots are not held", failure) from failure
        self.release()
        Logind._lock = taken
        if self._keeper:
            self._keeper.put(LOCK, taken)

    def release(self) -> None:
        """Give the lock back; where a reboot waited for it, it goes."""
        if Logind._lock is not None:
            lock, Logind._lock = Logind._lock, None
            if self._keeper:
                self._keeper.remove(LOCK)
            os.close(lock)

    def reboot(self) -> None:
        """Ask for a reboot, as locksmith does."""
        try:
            self._bus.call(NAME, PATH, INTERFACE, "Reboot", False)  # noqa: FBT003 - "interactive"
        except Failure as failure:
            raise _refused("the reboot", failure) from failure

    def _get(self, name: str, signature: str) -> Any:
        return self._bus.get(NAME, PATH, INTERFACE, name, signature)

    def _limit(self) -> float:
        return int(self._get("InhibitDelayMaxUSec", "t")) / 1e6

    def _await_limit(self, wanted: float) -> None:
        end = time.monotonic() + _READ_SECONDS
        while (limit := self._limit()) < wanted:
            if time.monotonic() >= end:
                raise Transient(Code.LOGIND_REFUSED, f"it still waits for {limit:g} s, not for {wanted:g} s")
            # Nothing tells of it. To wait on the bus would take away what others wait for there.
            time.sleep(_ASK_SECONDS)

    def _kind(self) -> str:
        """What was asked for, where this logind tells."""
        try:
            told = self._get("PreparingForShutdownWithMetadata", "a{sv}")
        except Failure as failure:
            if failure.code is Code.BUS_LOST:
                raise
            return ""
        return str(told.get("type", "")) if isinstance(told, dict) else ""

    def _is_listed(self) -> bool:
        """Whether logind knows of our lock: look, do not remember. An earlier life had another pid."""
        found = self._bus.call(NAME, PATH, INTERFACE, "ListInhibitors")
        return any((what, who) == ("shutdown", WHO) for what, who, *_ in found)

    def _others(self) -> Others:
        fragments: dict[str, str] = {}
        for place in reversed(_PLACES):
            for file in (self._root / place / "logind.conf.d").glob("[!.]*.conf"):
                fragments[file.name] = _text(file) or ""
        mains = (_text(self._root / place / "logind.conf") for place in _PLACES)
        return inhibition.others(next((text for text in mains if text is not None), ""), fragments)

    def _locksmith(self) -> str:
        """The state that locksmithd writes down for whoever wants to know who reboots this host.

        Its lock on the file says whether it is alive. That is looked up, not tried: a locksmithd that starts
        in the same moment would give up.
        """
        place = self._root / "run/update-engine/coordinator.conf"
        try:
            with place.open(errors="replace") as file:
                text, status = file.read(), os.fstat(file.fileno())
        except OSError:
            return ""
        locks = _text(self._root / "proc/locks") or ""
        device = (os.major(status.st_dev), os.minor(status.st_dev))
        return inhibition.locksmith(text) if inhibition.is_locked(locks, *device, status.st_ino) else ""


class NoShutdowns:
    """The `Shutdowns` port of a host without the bus."""

    def facts(self) -> RebootFacts | None:
        return None

    def raise_limit(self, seconds: float) -> None:
        raise Transient(Code.BUS_LOST, "logind cannot be asked without the system bus")

    def hold(self, why: str) -> None:
        raise Transient(Code.BUS_LOST, "logind cannot be asked without the system bus")

    def release(self) -> None: ...

    def reboot(self) -> None:
        raise Transient(Code.BUS_LOST, "logind cannot be asked without the system bus")


def _text(file: Path) -> str | None:
    """The text of a file, empty where it cannot be read; None where there is none."""
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def _refused(what: str, failure: Failure) -> Failure:
    if failure.code is Code.BUS_LOST:
        return failure
    remedy = "See why: journalctl -b -u systemd-logind"
    return Transient(Code.LOGIND_REFUSED, f"logind refuses {what}: {failure.sentence}", remedy)
