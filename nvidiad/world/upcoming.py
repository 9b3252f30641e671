# SPDX-License-Identifier: Apache-2.0
"""What comes next: what files, a command and the other slot's kernel say of the OS that is booted next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Transient
from nvidiad.nouns.upcoming import StagedSystem
from nvidiad.thought import kernel_image, parse
from nvidiad.world import files, process

if TYPE_CHECKING:
    from pathlib import Path, PurePosixPath

_SECONDS = 10.0
_LIMIT = 1 << 16


class NextSystems:
    """The port of the same name."""

    def __init__(self, root: Path, file: PurePosixPath | None, command: tuple[str, ...]) -> None:
        self._root = root
        self._file = file
        self._command = command

    def reboot_required(self) -> bool:
        """Whether somebody asks for a reboot as Debian does it; update_engine's postinst does, too."""
        return (self._root / "run/reboot-required").exists()

    def slot(self) -> StagedSystem | None:
        """The kernel of the other slot, by its boot image; None on hosts without slots.

        Raises NEXT_UNREADABLE.
        """
        letter = kernel_image.other_slot(_text(self._root / "proc/cmdline"))
        places = [self._root / f"boot/{name}/vmlinuz-{letter}" for name in ("coreos", "flatcar")]
        image = next((place for place in places if place.exists()), None)
        if not letter or image is None:
            return None
        try:
            with image.open("rb") as file:
                kernel = kernel_image.release(file.read(kernel_image.HEADER_BYTES))
        except (OSError, ValueError) as error:
            raise _unreadable(str(image), str(error)) from error
        return StagedSystem("", kernel, f"'{image}'")

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


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
