# SPDX-License-Identifier: Apache-2.0
"""The OS updates itself: the other slot, its kernel and the table are written as update_engine does it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from tests.beds.common import CHECKOUT
from tests.vm.disk import RELEASES, disk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.machine import Machine

# The host bed's: a program that owns the bus name and is in whatever state its pipe says.
_STAND_IN = CHECKOUT / "tests/host/standin"
_PROGRAM = "/opt/bed/update_engine.py"
_PIPE = "/run/update-engine.pipe"
_POLICY = "com.coreos.update1.conf"
_UNIT = f"""\
[Unit]
Description=Update Engine (stand-in)

[Service]
Type=dbus
BusName=com.coreos.update1
ExecStart=/usr/bin/python3 {_PROGRAM}
Restart=always

[Install]
WantedBy=multi-user.target
"""
LOGIND = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
REBOOT = f"busctl call {LOGIND} Reboot b false"
"""How locksmithd reboots a host."""


def install(vm: Machine) -> None:
    """Give the host an update_engine, with its own policy on the system bus; it starts at every boot."""
    vm.run("mkdir -p /opt/bed /etc/dbus-1/system.d", check=True)
    vm.put((_STAND_IN / "update_engine.py").read_bytes(), _PROGRAM)
    vm.put((_STAND_IN / _POLICY).read_bytes(), f"/etc/dbus-1/system.d/{_POLICY}")
    vm.put(_UNIT.encode(), "/etc/systemd/system/update-engine.service")
    write_kernel(vm, "A")
    vm.run("systemctl reload dbus && systemctl daemon-reload", check=True)
    vm.run("systemctl enable -q --now update-engine", check=True)


def tell(vm: Machine, operation: str, version: str = "0.0.0", progress: float = 0.0) -> None:
    """Put update_engine in a state, which it says on the bus."""
    line = shlex.quote(f"UPDATE_STATUS_{operation} {version} {progress} 0 1")
    vm.run(f"echo {line} >{_PIPE}", check=True)


def offer(vm: Machine, slot: str = "B") -> None:
    """There is a new release: the one that the bed's disk has in this slot."""
    tell(vm, "CHECKING_FOR_UPDATE")
    tell(vm, "UPDATE_AVAILABLE", RELEASES[slot])


def download(vm: Machine, slot: str = "B") -> None:
    """The release that the bed's disk has in a slot is written over that slot."""
    tell(vm, "DOWNLOADING", RELEASES[slot], 0.1)
    write_slot(vm, slot)
    tell(vm, "DOWNLOADING", RELEASES[slot], 0.9)


def write_slot(vm: Machine, slot: str, image: Path | None = None) -> None:
    """Overwrite all of a slot that does not run, with an image or with what the bed's disk has there."""
    blank(vm, slot)
    made, target = disk(), device(slot)
    source = vm.attach(image) if image else vm.attach(made.image, made.place(slot))
    # Holes stay holes: what they would be written over is zero already.
    copy = f"dd if={source} of={target} bs=1M conv=sparse,fsync status=none"
    vm.run(f"{copy} && blockdev --flushbufs {target}", 300, check=True)
    vm.detach()


def blank(vm: Machine, slot: str) -> None:
    """A slot with nothing in it, as on a host before its first update."""
    vm.run(f"blkdiscard -z {device(slot)} && blockdev --flushbufs {device(slot)}", check=True)


def device(slot: str) -> str:
    """The partition of a slot, by the name that Container Linux has for it."""
    return f"/dev/disk/by-partlabel/USR-{slot}"


def write_kernel(vm: Machine, slot: str, kernel: Path | None = None) -> None:
    """Put a slot's kernel, or another one, where the boot loader looks for it."""
    kernel = kernel or disk().kernel(slot)
    place, size = f"/boot/flatcar/vmlinuz-{slot.lower()}", kernel.stat().st_size
    write = f"head -c {size} {vm.attach(kernel)} >{place}.new && sync {place}.new && mv {place}.new {place}"
    vm.run(f"mkdir -p /boot/flatcar && {write} && sync /boot/flatcar", check=True)
    vm.detach()


def finalize(vm: Machine, slot: str = "B") -> None:
    """The end of an update in update_engine's order: the kernel, the table, the file, and then the word."""
    tell(vm, "FINALIZING", RELEASES[slot])
    write_kernel(vm, slot)
    vm.set_next_slot(slot)
    vm.run("touch /run/reboot-required", check=True)
    tell(vm, "UPDATED_NEED_REBOOT", RELEASES[slot])


def update(vm: Machine, slot: str = "B") -> None:
    """A whole update."""
    offer(vm, slot)
    download(vm, slot)
    finalize(vm, slot)


def go_offline(vm: Machine) -> None:
    """No registry and no container engine any more, at the next boot neither."""
    stop = "systemctl disable -q --now docker.socket docker docker-registry"
    vm.run(f"{stop} && ! systemctl -q is-active docker docker-registry docker.socket", 180, check=True)
