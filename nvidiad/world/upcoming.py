# SPDX-License-Identifier: Apache-2.0
"""What comes next: what the other slot, a file or a command says of the OS that is booted next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Transient
from nvidiad.nouns.upcoming import StagedSystem
from nvidiad.thought import parse
from nvidiad.world import files, process

if TYPE_CHECKING:
    from pathlib import Path, PurePosixPath

_SECONDS = 10.0
_LIMIT = 1 << 16


class Disk(Protocol):
    """What knows the slots: world/slots."""

    def staged(self) -> StagedSystem | None: ...


class NextSystems:
    """The port of the same name."""

    def __init__(
        self, root: Path, slots: Disk, file: PurePosixPath | None, command: tuple[str, ...]
    ) -> None:
        self._root = root
        self._slots = slots
        self._file = file
        self._command = command

    def reboot_required(self) -> bool:
        """Whether somebody asks for a reboot as Debian does it; update_engine's postinst does, too."""
        return (self._root / "run/reboot-required").exists()

    def slot(self) -> StagedSystem | None:
        """The OS in the slot that is booted next; None on hosts without slots.

        Raises NEXT_UNREADABLE.
        """
        return self._slots.staged()

    def announced(self) -> StagedSystem | None:
        """What the configured file or command says; None where neither is configured, or has news.

        Raises NEXT_UNREADABLE.
        """
        if self._file is not None:
            place = self._root / self._file.relative_to("/")
            try:
                text = files.read_small(place, _LIMIT).decode()
            except FileNotFoundError:
                text = ""
            except (OSError, UnicodeDecodeError) as error:
                raise _unreadable(str(place), str(error)) from error
            if text.strip():
                return _read(text, f"'{place}'")
        if self._command:
            finished = process.run(self._command, timeout=_SECONDS)
            source = f"'{process.quoted(self._command)}'"
            if finished.returncode != 0:
                raise _unreadable(source, finished.said)
            if finished.out.strip():
                return _read(finished.out[:_LIMIT], source)
        return None


def _read(text: str, source: str) -> StagedSystem:
    values = parse.assignments(text)
    version, kernel = values.get("VERSION_ID", ""), values.get("KERNEL", "")
    for name, value in (("VERSION_ID", version), ("KERNEL", kernel)):
        if value and not naming.is_version(value):
            raise _unreadable(source, f"{name} is '{value}'")
    if not version and not kernel:
        raise _unreadable(source, "it has neither VERSION_ID= nor KERNEL=")
    return StagedSystem(version, kernel, source)


def _unreadable(source: str, why: str) -> Transient:
    return Transient(
        Code.NEXT_UNREADABLE,
        f"what comes next cannot be read from {source}: {why}",
        "Correct it; a reboot is held for it no longer than 'reboot.maximum'.",
    )
