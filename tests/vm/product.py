# SPDX-License-Identifier: Apache-2.0
"""Puts the checkout's nvidiad into a running guest, so that a change of it needs no new disk."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

from tests.beds.common import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.machine import Machine

_PACKAGES = "opt/nvidiad/lib/python3.11/site-packages"
_COMMAND = b"""#!/opt/nvidiad/bin/python3
import sys

from nvidiad.cli import main

sys.exit(main())
"""


def archive() -> bytes:
    """A compressed tar of what an installation adds to a host that has the virtual environment already."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        for path in sorted((CHECKOUT / "nvidiad").rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                _add(tar, f"{_PACKAGES}/{path.relative_to(CHECKOUT)}", path.read_bytes())
        _add(tar, "opt/nvidiad/bin/nvidiad", _COMMAND, 0o755)
        for path, name in _units():
            _add(tar, name, path.read_bytes())
    return out.getvalue()


def install(machine: Machine) -> None:
    """Install nvidiad in the guest, compiled (so that no test pays for it), neither enabled nor started."""
    machine.put(archive(), "/tmp/nvidiad.tar.gz")
    machine.run("tar -C / -xzf /tmp/nvidiad.tar.gz --no-same-owner && rm /tmp/nvidiad.tar.gz", check=True)
    machine.run(f"/opt/nvidiad/bin/python3 -m compileall -q /{_PACKAGES}/nvidiad", check=True)
    for program, folder in (("systemd-sysusers", "sysusers.d"), ("systemd-tmpfiles --create", "tmpfiles.d")):
        machine.run(
            f"! [ -e /etc/{folder}/nvidiad.conf ] || {program} /etc/{folder}/nvidiad.conf", check=True
        )
    machine.run("systemctl daemon-reload", check=True)


def _units() -> list[tuple[Path, str]]:
    """The files of units/, whose folders are /etc's on a host with a read-only /usr."""
    root = CHECKOUT / "units"
    return [(path, f"etc/{path.relative_to(root)}") for path in sorted(root.rglob("*")) if path.is_file()]


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))
