# SPDX-License-Identifier: Apache-2.0
"""Machines booted once and frozen, from which tests go on in two seconds."""

from __future__ import annotations

import fcntl
import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tests.beds.common import cached, locked
from tests.vm import qemu
from tests.vm.disk import disk
from tests.vm.machine import Frozen, Machine
from tests.vm.qemu import Hardware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.vm.disk import Disk

# As on Container Linux, a later boot starts the engine when somebody first connects to it.
_SERVICES = "systemctl enable -q docker.socket docker-registry && systemctl start docker docker-registry"
# Read once before the freeze, so that no test waits for the disk to decompress Python and Docker's tools.
_WARM = (
    "/opt/nvidiad/bin/python3 -c 'import asyncio, docker, pystemd, pyudev, structlog'",
    "docker version",
    "modinfo overlay; lsmod; ldconfig -p; udevadm --version; sfdisk -v; mount",
    "curl -s http://127.0.0.1:5000/v2/",
)


def with_docker(
    hardware: Hardware | None = None, boot_disk: Disk | None = None, *, card: bool = True
) -> Frozen:
    """Slot A, a Docker Engine and a registry running, and no nvidiad; kept in the cache."""
    hardware = hardware or Hardware()
    booted = boot_disk or disk()
    key = [qemu.prepare(), booted.folder.name, asdict(hardware), _SERVICES, _WARM]
    nowhere = Path("/")
    words = qemu.command_line(hardware, booted, "A", nowhere, nowhere, nowhere, card=card)
    key.append([word for word in words if not word.startswith("/")])

    def make(partial: Path) -> None:
        with Machine(partial / "work", hardware, boot_disk=booted) as machine:
            machine.boot("A", card=card)
            machine.run(_SERVICES, 180, check=True)
            for command in _WARM:
                machine.run(command)
            machine.freeze(partial)
        for path in (partial / "work").iterdir():
            path.unlink()
        (partial / "work").rmdir()

    return Frozen(cached("vm-frozen", key, make))


@contextmanager
def shared(folder: Path, base: Frozen, prepare: Callable[[Machine], object]) -> Iterator[Frozen]:
    """A state that `prepare` leads to from `base`; a test run's first worker makes it for all."""
    folder.mkdir(parents=True, exist_ok=True)
    frozen = Frozen(folder / "frozen")
    with (folder / "users").open("w") as users:
        with locked("maker", folder):
            if not frozen.folder.exists():
                with Machine(folder / "work", frozen=base) as machine:
                    machine.resume()
                    prepare(machine)
                    machine.freeze(folder / "making").folder.rename(frozen.folder)
            fcntl.flock(users, fcntl.LOCK_SH)
        yield frozen
        # The last one to go removes it: pytest would keep three runs of 150 MB each.
        with suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
