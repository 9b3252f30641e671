# SPDX-License-Identifier: Apache-2.0
"""Units: systemd's manager over D-Bus (org.freedesktop.systemd1(5)), and the drop-ins that gate units."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.model import Progress, UnitState
from nvidiad.verbs.ports import Match
from nvidiad.world.files import atomic_write, explained, make_directory, text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvidiad.verbs.ports import Bus

SYSTEMD = "org.freedesktop.systemd1"
MANAGER = f"{SYSTEMD}.Manager"
MANAGER_PATH = "/org/freedesktop/systemd1"
_UNIT, _SERVICE = f"{SYSTEMD}.Unit", f"{SYSTEMD}.Service"
_PROPERTIES = "org.freedesktop.DBus.Properties"
DROP_IN = "10-nvidia.conf"
GATE = """\
# Written by nvidiad: this unit waits until the NVIDIA driver is in force; see nvidiad(8).
[Unit]
Requires=nvidia.service
After=nvidia.service nvidia-persistenced.service nvidia-fabricmanager.service nvidia-cdi.service
"""
# What earlier versions wrote: taken back where the unit is gated no more.
_FORMER = """\
# Written by nvidiad: this unit waits until the NVIDIA driver is in force; see nvidiad(8).
[Unit]
Requires=nvidia.service
After=nvidia.service nvidia-persistenced.service
"""
# nvidia.service bounds its own start (TimeoutStartSec=); this is for a manager that never answers.
_JOB_SECONDS = 900
_TELL_SECONDS = 1.0


def unit_path(name: str) -> str:
    """The object path of a unit: every byte but letters and digits becomes _xx (sd_bus_path_encode(3))."""
    encoded = "".join(
        chr(byte)
        if (chr(byte).isascii() and chr(byte).isalpha()) or (index and chr(byte).isdigit())
        else f"_{byte:02x}"
        for index, byte in enumerate(name.encode())
    )
    return f"{MANAGER_PATH}/unit/{encoded}"


class SystemdUnits:
    """The `Units` port."""

    def __init__(self, bus: Bus, *, configuration: Path) -> None:
        """`configuration` is /etc/systemd/system."""
        self._bus = bus
        self._configuration = configuration
        self._subscribed = False

    def states(self, names: tuple[str, ...]) -> tuple[UnitState, ...]:
        """What systemd knows of these units; one that does not exist has load 'not-found'."""
        return tuple(self._state(name) for name in names)

    def start(self, name: str, *, wait: bool, tell: Callable[[Progress], None]) -> None:
        """Start a unit; with `wait`, until the job has ended. Raises UNIT_FAILED, UNIT_MASKED."""
        # One that failed too often while the driver was late has used up its starts: systemd refuses it.
        with contextlib.suppress(Permanent):
            self._bus.call(SYSTEMD, MANAGER_PATH, MANAGER, "ResetFailedUnit", name)
        self._run_job("StartUnit", name, wait=wait, tell=tell)

    def stop(self, name: str, *, tell: Callable[[Progress], None]) -> None:
        """Stop a unit and wait until it is down. Raises UNIT_FAILED."""
        self._run_job("StopUnit", name, wait=True, tell=tell)

    def reload(self, name: str, *, tell: Callable[[Progress], None]) -> None:
        """Let a running unit do its ExecReload= and wait for its end."""
        self._run_job("ReloadUnit", name, wait=True, tell=tell)

    def gates(self) -> tuple[str, ...]:
        """Units that have our drop-in, as we would write it."""
        return self._having(GATE)

    def _having(self, *texts: str) -> tuple[str, ...]:
        files = sorted(self._configuration.glob(f"*.d/{DROP_IN}"))
        return tuple(file.parent.name.removesuffix(".d") for file in files if text(file) in texts)

    def write_gates(self, names: tuple[str, ...]) -> None:
        """Gate exactly these units: a drop-in each, none elsewhere, and let systemd read them.

        No unit is started or stopped by that.
        """
        writable = f"Mount '{self._configuration}' writable."
        with explained(f"writing drop-ins below '{self._configuration}'", Code.UNIT_FAILED, writable):
            for name in self._having(GATE, _FORMER):
                if name not in names:
                    place = self._configuration / f"{name}.d"
                    (place / DROP_IN).unlink()
                    # Others may have drop-ins for this unit, too.
                    with contextlib.suppress(OSError):
                        place.rmdir()
            for name in names:
                directory = self._configuration / f"{name}.d"
                make_directory(directory)
                atomic_write(directory / DROP_IN, GATE, mode=0o644)
        self._bus.call(SYSTEMD, MANAGER_PATH, MANAGER, "Reload")

    def _state(self, name: str) -> UnitState:
        # All at once: they belong to one moment, and systemd reads a unit that is down, and that nobody else
        # asks for, from disk for every call. Asking for its path loads it.
        path = unit_path(name)
        told: dict[str, Any] = self._bus.call(SYSTEMD, path, _PROPERTIES, "GetAll", _UNIT)
        changed = int(told["StateChangeTimestampMonotonic"])
        return UnitState(
            name=name,
            load=told["LoadState"],
            active=told["ActiveState"],
            sub=told["SubState"],
            result=self._result(name, path, changed),
            job=int(told["Job"][0]),
            # UpheldBy came with systemd 249: a host with an older one has nothing there to say.
            wanted=any(told.get(by) for by in ("WantedBy", "RequiredBy", "UpheldBy")),
            active_enter=int(told["ActiveEnterTimestampMonotonic"]),
            # A start that a condition skipped leaves the unit where it was: for us it went down then.
            inactive_enter=max(
                int(told["InactiveEnterTimestampMonotonic"]),
                0 if told["ConditionResult"] else int(told["ConditionTimestampMonotonic"]),
            ),
            active_since=int(told["ActiveEnterTimestamp"]),
            changed=changed,
        )

    def _result(self, name: str, path: str, changed: int) -> str:
        if not name.endswith(".service"):
            return ""
        # What never did anything in this boot has not failed.
        return str(self._bus.get(SYSTEMD, path, _SERVICE, "Result", "s")) if changed else "success"

    def _run_job(self, method: str, name: str, *, wait: bool, tell: Callable[[Progress], None]) -> None:
        if not self._subscribed:
            # Before the first job: its end is told to subscribers only.
            self._bus.add(Match(MANAGER, "JobRemoved", SYSTEMD, MANAGER_PATH))
            try:
                self._bus.call(SYSTEMD, MANAGER_PATH, MANAGER, "Subscribe")
            except Permanent as refusal:
                # The connection outlives this object, which is made anew with every configuration.
                if "already subscribed" not in refusal.sentence:
                    raise
            self._subscribed = True
        self._bus.wait(0)
        verb = method.removesuffix("Unit").lower()
        try:
            job = self._bus.call(SYSTEMD, MANAGER_PATH, MANAGER, method, name, "replace")
        except Failure as failure:
            raise _refused(verb, name, failure) from failure
        if wait:
            result = self._wait_for(job, verb, name, tell)
            if result != "done":
                raise Transient(
                    Code.UNIT_FAILED,
                    f"the {verb} of {name} ended with '{result}'",
                    f"Read why: journalctl -b -u {name}",
                )

    def _wait_for(self, job: str, verb: str, name: str, tell: Callable[[Progress], None]) -> str:
        end = time.monotonic() + _JOB_SECONDS
        while time.monotonic() < end:
            for signal in self._bus.wait(_TELL_SECONDS):
                if signal.member == "JobRemoved" and signal.body[1] == job:
                    return str(signal.body[3])
            tell(Progress(f"{verb}-unit", f"waiting for {name}"))
        raise Transient(Code.UNIT_FAILED, f"the {verb} of {name} did not end within {_JOB_SECONDS} s")


class NoUnits:
    """The `Units` port where systemd is not to be asked: nothing is known, nothing can be started."""

    def states(self, names: tuple[str, ...]) -> tuple[UnitState, ...]:
        return ()

    def start(self, name: str, *, wait: bool, tell: Callable[[Progress], None]) -> None:
        raise Transient(Code.BUS_LOST, f"{name} cannot be started without the system bus")

    def stop(self, name: str, *, tell: Callable[[Progress], None]) -> None:
        raise Transient(Code.BUS_LOST, f"{name} cannot be stopped without the system bus")

    def reload(self, name: str, *, tell: Callable[[Progress], None]) -> None:
        raise Transient(Code.BUS_LOST, f"{name} cannot be reloaded without the system bus")

    def gates(self) -> tuple[str, ...]:
        return ()

    def write_gates(self, names: tuple[str, ...]) -> None:
        raise Transient(Code.BUS_LOST, "systemd cannot be told of drop-ins without the system bus")


def _refused(verb: str, name: str, failure: Failure) -> Failure:
    if "masked" in failure.sentence:
        return Permanent(Code.UNIT_MASKED, f"{name} is masked", f"systemctl unmask {name}")
    if failure.code is Code.BUS_LOST:
        return failure
    return Transient(
        Code.UNIT_FAILED,
        f"systemd refuses the {verb} of {name}: {failure.sentence}",
        f"systemctl status {name}",
    )
