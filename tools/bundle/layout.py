# SPDX-License-Identifier: Apache-2.0
"""Layouts: where the files of a tree lie in /usr, in an extension or in a distribution's package."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from tools.bundle import debian
from tools.bundle import tree as trees

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "/usr/lib/nvidiad"
SYSTEM = "usr/lib/systemd/system"
_NAME = "nvidiad"


def usr(tree: Path, root: Path, prefix: str = PREFIX) -> None:
    """The tree at `prefix` below `root`, its commands in /usr/bin, and units/ where a distribution has it.

    The configuration is left in share/nvidiad/units/nvidiad: neither /usr nor this function is its owner.
    """
    place = root / prefix.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(tree, place, symlinks=True)
    for script in ("install", "uninstall"):
        (place / script).unlink()
    for kind in ("man", "bash-completion", "zsh", "fish"):
        if (place / "share" / kind).is_dir():
            shutil.move(place / "share" / kind, root / "usr/share" / kind)
    (root / "usr/bin").mkdir(parents=True, exist_ok=True)
    for command in trees.COMMANDS:
        (root / "usr/bin" / command).symlink_to(f"{'../' * 2}{(prefix + '/bin/' + command).lstrip('/')}")
    units = tree / "share/nvidiad/units"
    for path in sorted(units.rglob("*")):
        inner = path.relative_to(units)
        if path.is_file() and inner.parts[0] != "nvidiad":
            target = root / "usr/lib" / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path.read_text().replace("/opt/nvidiad/", f"{prefix}/"))


def sysext(tree: Path, root: Path) -> None:
    """A system extension for any OS: its units are enabled as its maker would have them."""
    usr(tree, root)
    enable(root)
    # Extensions are merged when the start of multi-user.target has been planned already: what it wants since
    # then is not started, but what it upholds is.
    target = root / SYSTEM / "multi-user.target.d/10-nvidiad.conf"
    target.parent.mkdir()
    target.write_text("[Unit]\nUpholds=nvidiad.service\n")
    release = root / f"usr/lib/extension-release.d/extension-release.{_NAME}"
    release.parent.mkdir()
    machine = debian.architecture()[0]
    release.write_text(f"ID=_any\nARCHITECTURE={machine}\nEXTENSION_RELOAD_MANAGER=1\n")
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def enable(root: Path) -> None:
    """Links below /usr for what the preset enables, as `systemctl enable` makes them below /etc."""
    for preset in sorted((root / "usr/lib/systemd/system-preset").glob("*nvidiad*.preset")):
        for line in preset.read_text().splitlines():
            match line.split():
                case ["enable", unit]:
                    _enable(root / SYSTEM, unit)


def _enable(folder: Path, unit: str) -> None:
    installed: dict[str, str] = {}
    section = ""
    for line in (folder / unit).read_text().splitlines():
        key, _, value = line.partition("=")
        section = line if line.startswith("[") else section
        if section == "[Install]" and value:
            installed[key] = f"{installed.get(key, '')} {value}"
    for key, kind in (("WantedBy", "wants"), ("RequiredBy", "requires")):
        for target in installed.get(key, "").split():
            link = folder / f"{target}.{kind}" / unit
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(f"../{unit}")
    for alias in installed.get("Alias", "").split():
        (folder / alias).symlink_to(unit)
