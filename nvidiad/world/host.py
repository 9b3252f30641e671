# SPDX-License-Identifier: Apache-2.0
"""The operating system and the configuration as files tell of them; nothing here starts a program."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import ModuleRules
from nvidiad.thought import parse
from nvidiad.world import files

if TYPE_CHECKING:
    from pathlib import Path

    from nvidiad.nouns.model import Release

FOREIGN_EXTENSIONS = ("nvidia-drivers", "flatcar-nvidia-drivers")
"""How the names of system extensions begin that bring an NVIDIA driver of their own."""

SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_MARKER = ".systemd-sysext/extensions"
_RELEASE = "extension-release."
_FRAGMENT_MAXIMUM = 1 << 20


class LinuxHost:
    """The host whose files are below `root`: the real one, or the root of a test."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def release(self) -> Release:
        """os-release(5): /etc before /usr/lib, each read whole, never merged."""
        return parse.os_release(
            files.text(self.root / "etc/os-release") or files.text(self.root / "usr/lib/os-release")
        )

    def kernel(self) -> str:
        """The release of the running kernel: from /proc, as uname(2) may be told to lie to a program."""
        path = self.root / "proc/sys/kernel/osrelease"
        release = files.text(path).strip()
        if not release:
            raise Permanent(Code.INTERNAL, f"'{path}' does not say which kernel runs", "Is /proc mounted?")
        return release

    def boot_id(self) -> str:
        return files.text(self.root / "proc/sys/kernel/random/boot_id").strip()

    def uptime(self) -> float:
        """Seconds since the boot, suspended ones too (proc_uptime(5))."""
        words = files.text(self.root / "proc/uptime").split()
        return float(words[0]) if words else 0.0

    def machine(self) -> str:
        """As `uname -m` prints it."""
        return os.uname().machine

    def lockdown(self) -> str:
        return parse.lockdown(files.text(self.root / "sys/kernel/security/lockdown"))

    def module_rules(self) -> ModuleRules:
        """What the kernel demands of modules, without the firmware's part in it."""
        enforced = files.text(self.root / "sys/module/module/parameters/sig_enforce").strip()
        closed = files.text(self.root / "proc/sys/kernel/modules_disabled").strip()
        return ModuleRules(signed_only=enforced in ("Y", "1"), closed=closed == "1")

    def secure_boot(self) -> bool | None:
        """Whether the firmware booted with Secure Boot; None where it could not, or does not say."""
        try:
            return parse.secure_boot((self.root / SECURE_BOOT).read_bytes())
        except OSError:
            return None

    def extensions(self) -> tuple[str, ...]:
        """The merged system extensions that bring an NVIDIA driver.

        systemd-sysext leaves the names of what it merged in each hierarchy; and the release file that
        every extension must carry is visible in /usr exactly while it is merged. Either is proof: an
        extension may be merged by something else than systemd, or carry a file of another name.
        """
        names = {
            name.strip()
            for hierarchy in ("usr", "opt")
            for name in files.text(self.root / hierarchy / _MARKER).splitlines()
        }
        try:
            found = list((self.root / "usr/lib/extension-release.d").iterdir())
        except OSError:
            found = []
        names |= {file.name.removeprefix(_RELEASE) for file in found if file.name.startswith(_RELEASE)}
        return tuple(sorted(name for name in names if name.startswith(FOREIGN_EXTENSIONS)))


def config_fragments(path: Path) -> list[tuple[str, str]]:
    """The configuration file and the `conf.d/*.toml` beside it, by name: (file name, text) each.

    None of them needs to exist. A fragment that is a link to /dev/null is as good as none, and so is
    one whose name begins with a dot. Raises Failure for one that cannot be read.
    """
    directory = path.parent / "conf.d"
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise _unreadable(directory, error.strerror or str(error)) from error
    extra = [directory / name for name in names if name.endswith(".toml") and not name.startswith(".")]
    fragments = []
    for file in [path, *extra]:
        text = _fragment(file, required=file is not path)
        if text is not None:
            fragments.append((str(file), text))
    return fragments


def _fragment(file: Path, *, required: bool) -> str | None:
    try:
        if str(file.resolve()) == "/dev/null":
            return None
        if file.exists() and not file.is_file():
            # A pipe or a device would be read for ever.
            raise _unreadable(file, "it is not a regular file")
        with file.open("rb") as stream:
            data = stream.read(_FRAGMENT_MAXIMUM + 1)
    except FileNotFoundError as error:
        if required or file.is_symlink():
            raise _unreadable(file, "the link leads nowhere") from error
        return None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, from resolve()
        raise _unreadable(file, getattr(error, "strerror", None) or str(error)) from error
    if len(data) > _FRAGMENT_MAXIMUM:
        raise _unreadable(file, "it is larger than 1 MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _unreadable(file, f"line {line} is not UTF-8") from error


def _unreadable(file: Path, why: str) -> Permanent:
    return Permanent(
        Code.CONFIG_INVALID,
        f"Cannot read the configuration '{file}': {why}",
        "Correct the file, then run `systemctl reload nvidiad`",
    )
