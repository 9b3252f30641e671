# SPDX-License-Identifier: Apache-2.0
"""logind: reboots that are asked for, the lock that delays them, and how long it waits for such locks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure, Transient
from nvidiad.nouns.upcoming import RebootFacts
from nvidiad.thought import inhibition
from nvidiad.world import files

if TYPE_CHECKING:
    from pathlib import Path

    from nvidiad.verbs.ports import Bus

NAME = "org.freedesktop.login1"
PATH = "/org/freedesktop/login1"
INTERFACE = f"{NAME}.Manager"
_OWNER = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner")
_SYSTEMD = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
WHO = "nvidiad"
# After kubelet's 99-kubelet.conf: the last one counts.
DROP_IN = "99-nvidiad.conf"
_HANGUP = 1


class Logind:
    """The `Shutdowns` port."""

    def __init__(self, bus: Bus, root: Path) -> None:
        self._bus = bus
        self._root = root
        self._lock: int | None = None

    def facts(self) -> RebootFacts | None:
        """How logind and our lock stand; None where nobody is logind, or it does not answer."""
        try:
            if not self._bus.call(*_OWNER, NAME):
                return None
            limit = int(self._bus.get(NAME, PATH, INTERFACE, "InhibitDelayMaxUSec", "t")) / 1e6
            preparing = bool(self._bus.get(NAME, PATH, INTERFACE, "PreparingForShutdown", "b"))
            held = self._lock is not None and self._is_listed()
        except Failure as failure:
            if failure.code is Code.BUS_LOST:
                raise
            return None
        return RebootFacts(held, limit, preparing, locksmith=self._locksmith())

    def raise_limit(self, seconds: float) -> None:
        """Let logind wait at least so long for delay locks, and never less than any other file says."""
        wanted = max(seconds, self._others())
        place = self._root / "etc/systemd/logind.conf.d" / DROP_IN
        try:
            files.make_directory(place.parent)
            files.atomic_write(place, inhibition.drop_in(wanted))
        except OSError as error:
            raise Transient(Code.LOGIND_REFUSED, f"cannot write '{place}': {error.strerror}") from error
        # As kubelet does it: on this signal logind reads its configuration again.
        self._bus.call(*_SYSTEMD, "KillUnit", "systemd-logind.service", "all", _HANGUP)

    def hold(self, why: str) -> None:
        """Take a delay lock. Never a block lock: refused, locksmith and FLUO wait for a week."""
        if self._lock is not None and self._is_listed():
            return
        self.release()
        try:
            self._lock = self._bus.descriptor(
                NAME, PATH, INTERFACE, "Inhibit", "shutdown", WHO, why, "delay"
            )
        except Failure as failure:
            if failure.code is Code.BUS_LOST:
                raise
            raise _refused("a delay lock", failure) from failure

    def release(self) -> None:
        """Give the lock back; where a reboot waited for it, it goes."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def reboot(self) -> None:
        """Ask for a reboot, as locksmith does."""
        try:
            self._bus.call(NAME, PATH, INTERFACE, "Reboot", False)  # noqa: FBT003 - "interactive"
        except Failure as failure:
            if failure.code is Code.BUS_LOST:
                raise
            raise _refused("the reboot", failure) from failure

    def _is_listed(self) -> bool:
        """A logind that was restarted may have forgotten the lock: look, do not remember."""
        found = self._bus.call(NAME, PATH, INTERFACE, "ListInhibitors")
        return any((entry[1], entry[5]) == (WHO, os.getpid()) for entry in found)

    def _others(self) -> float:
        """What logind's configuration says without our file, in seconds (logind.conf(5))."""
        texts = [_text(self._root / "etc/systemd/logind.conf")]
        fragments: dict[str, Path] = {}
        for place in ("usr/lib/systemd", "run/systemd", "etc/systemd"):
            for file in (self._root / place / "logind.conf.d").glob("*.conf"):
                fragments[file.name] = file
        texts += [_text(fragments[name]) for name in sorted(fragments) if name != DROP_IN]
        return inhibition.delay_limit(texts)

    def _locksmith(self) -> str:
        """The state that locksmithd writes down for whoever wants to know who reboots this host."""
        text = _text(self._root / "run/update-engine/coordinator.conf")
        return inhibition.locksmith(text)


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


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _refused(what: str, failure: Failure) -> Transient:
    return Transient(
        Code.LOGIND_REFUSED,
        f"logind refuses {what}: {failure.sentence}",
        "See why: journalctl -b -u systemd-logind; reboots are not held meanwhile.",
    )
