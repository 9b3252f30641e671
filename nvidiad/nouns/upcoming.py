# SPDX-License-Identifier: Apache-2.0
"""What comes next: the OS that the host boots next, its driver, and whether the reboot may go."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from nvidiad.nouns.model import Build, ModuleFile, Problem, UpdateStatus


class StagedSystem(Value):
    """An OS on this host's disk that the next boot takes, or one that somebody names as such."""

    version: str
    """The OS version; empty where the source does not tell."""
    kernel: str
    """The kernel release; empty where the source does not tell."""
    source: str
    """Where it was read, as the end of a sentence: `the slot USR-B`, `'/boot/flatcar/vmlinuz-b'`."""


class NextFacts(Value):
    """Everything that is known of what comes next, by source; nothing of it is decided here."""

    update: UpdateStatus | None = None
    """What update_engine says."""
    reboot_required: bool = False
    """Somebody left /run/reboot-required."""
    slot: StagedSystem | None = None
    """What the disk says; looked at only where a finished update waits for the reboot."""
    announced: StagedSystem | None = None
    """What the configured file or command, or a kernel in /boot, says."""
    problem: Problem | None = None
    """Why a source could not be read."""
    modules: tuple[ModuleFile, ...] = ()
    """The modules of the next system's trees, where its kernel is known and they are on disk."""
    unread: tuple[tuple[str, Problem], ...] = ()
    """Those of the trees whose modules cannot be read, and why."""


class RebootFacts(Value):
    """What logind says of a reboot, and how our delay lock stands."""

    held: bool
    """Our delay lock is taken."""
    limit: float
    """The seconds that logind waits for delay locks (InhibitDelayMaxUSec)."""
    preparing: bool
    """A shutdown was asked for and waits for delay locks."""
    kind: str = ""
    """What was asked for (reboot, poweroff, ...), where this logind tells."""
    locksmith: str = ""
    """The state of locksmithd, where it is alive and coordinates reboots: running, reboot-planned, ..."""
    others: float = 0.0
    """The seconds that logind would wait by its configuration without our file."""
    fixed: bool = False
    """Our file cannot change that: another one is read after it, and has the last word."""


class NextSystem(Value):
    """The OS that the host boots next, as decided from all sources."""

    version: str
    kernel: str
    """Empty until the staged system has been read."""
    source: str
    staged: bool
    """It is completely on disk and the next boot takes it; before that it only may come."""


class StageState(StrEnum):
    """How far the driver of the next OS is."""

    UNKNOWN = "unknown"
    """Something comes, and neither its version nor its kernel is known."""
    AWAITED = "awaited"
    """It is not due yet: spread over the fleet, or after a failure."""
    FETCHING = "fetching"
    STAGED = "staged"
    """On disk and verified; the staged kernel is not known yet."""
    PROVEN = "proven"
    """On disk, and its modules are for the kernel that boots next."""
    UNFIT = "unfit"
    """On disk, and not for the kernel that boots next."""


class Stage(Value):
    """The driver of the next OS."""

    state: StageState
    next: NextSystem
    build: Build
    """Its kernel is empty where it is not known yet."""
    reference: str
    tree: str = ""
    problem: Problem | None = None
    due: float | None = None
    """Seconds until it is looked for."""


class Verdict(Value):
    """Whether a reboot may go now, and why."""

    go: bool
    reason: str
    until: float | None = None
    """Wall clock, seconds since 1970: at the latest then it goes. None where nothing is held."""
    in_vain: bool = False
    """nvidiad has rebooted for this system before, and another one came up: it does not do so again."""
