# SPDX-License-Identifier: Apache-2.0
"""What comes next: what the other slot, a file, a command or /boot says of the OS that is booted next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Transient
from nvidiad.nouns.upcoming import StagedSystem
from nvidiad.thought import kernel_image, parse
from nvidiad.thought.settings import UPDATE_ENGINE_UNIT
from nvidiad.world import files, process

if TYPE_CHECKING:
    from pathlib import Path, PurePosixPath

_SECONDS = 10.0
_LIMIT = 1 << 16
_KERNEL = "vmlinuz-"
# Debian has the first (kernel-img.conf(5)), Ubuntu the second; where there is one it is what is booted.
_LINKS = ("vmlinuz", "boot/vmlinuz")
_UNITS = ("etc/systemd/system", "usr/lib/systemd/system")


# Somebody's word that a reboot is due, and what a boot loader takes: the last component may be a pattern.
_TELLING = (
    "run/reboot-required",
    "vmlinuz",
    "boot/vmlinuz*",
    "boot/coreos/vmlinuz-*",
    "boot/flatcar/vmlinuz-*",
)


def told_by(root: Path, file: PurePosixPath | None) -> tuple[Path, ...]:
    """The files whose change may be news of what comes next, the configured one among them."""
    told = [*_TELLING, str(file.relative_to("/"))] if file else _TELLING
    return tuple(root / each for each in told)


class Disk(Protocol):
    """What knows the slots: world/slots."""

    def present(self) -> bool: ...
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
        """What the configured file or command says, without either what /boot says; None without news.

        Raises NEXT_UNREADABLE.
        """
        if self._file is None and not self._command:
            return self._in_boot()
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
            if len(finished.out) > _LIMIT:
                # Half of it could end in half of a version.
                raise _unreadable(source, f"it prints more than {_LIMIT} characters")
            if finished.out.strip():
                return _read(finished.out, source)
        return None

    def _in_boot(self) -> StagedSystem | None:
        """The kernel that Debian and its kin boot next, where it is another one than the running one.

        Who has slots, or an update_engine, boots otherwise. And so does a host whose running kernel is not
        in /boot: a virtual machine that gets it from outside, or one with a boot loader of its own.
        """
        if self._slots.present() or self._has_update_engine():
            return None
        running = files.text(self._root / "proc/sys/kernel/osrelease").strip()
        kernels = self._kernels()
        if running not in kernels:
            return None
        source, following = self._linked(kernels)
        if not following:
            following = kernel_image.newest(kernels)
            source = self._root / "boot" / f"{_KERNEL}{following}"
        if following == running:
            return None
        etc, usr = files.text(self._root / "etc/os-release"), files.text(self._root / "usr/lib/os-release")
        return StagedSystem(parse.os_release(etc or usr).version, following, f"'{source}'")

    def _kernels(self) -> frozenset[str]:
        """The kernels in /boot that have modules; what rescues or tests memory has none."""
        names = [path.name.removeprefix(_KERNEL) for path in (self._root / "boot").glob(f"{_KERNEL}*")]
        modules = self._root / "lib/modules"
        return frozenset(name for name in names if naming.is_version(name) and (modules / name).is_dir())

    def _linked(self, kernels: frozenset[str]) -> tuple[Path | None, str]:
        """The link that says which kernel is booted, and which one that is; empty where there is none."""
        for name in _LINKS:
            link = self._root / name
            try:
                kernel = link.readlink().name.removeprefix(_KERNEL)
            except OSError:
                continue
            if kernel in kernels:
                return link, kernel
        return None, ""

    def _has_update_engine(self) -> bool:
        return any((self._root / folder / UPDATE_ENGINE_UNIT).exists() for folder in _UNITS)


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
