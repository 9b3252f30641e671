# SPDX-License-Identifier: Apache-2.0
"""GPUs: NVIDIA's functions on the PCI bus as sysfs lists them, and the events that say: look again."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Gpu

VENDOR = "0x10de"
# the same, as events have it
VENDOR_ID = "10DE"
# VGA controller, 3D controller, and the bridge that an NVSwitch is: what nvidia.ko binds to.
SWITCH = "0x0680"
CLASSES = ("0x0300", "0x0302", SWITCH)
RECEIVE_BUFFER = 1 << 20
# More are left for the next time the file descriptor is ready, so that a storm does not keep the loop.
EVENTS_AT_MOST = 1000
LOST = "events were lost"
UNREAD = "an event came that cannot be read"


class PciGpus:
    """The GPUs of a host, whether a driver has them or not."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def list(self) -> tuple[Gpu, ...]:
        """NVIDIA's GPUs and NVSwitches, by address."""
        return list_gpus(self.root)


def list_gpus(root: Path) -> tuple[Gpu, ...]:
    """NVIDIA's GPUs and NVSwitches, by address; a device that goes away meanwhile is not one."""
    try:
        devices = sorted((root / "sys/bus/pci/devices").iterdir())
    except OSError:
        return ()
    found: list[Gpu] = []
    for device in devices:
        with contextlib.suppress(OSError):
            gpu = _gpu(device)
            if gpu is not None:
                found.append(gpu)
    return tuple(found)


def _gpu(device: Path) -> Gpu | None:
    if (device / "vendor").read_text().strip() != VENDOR:
        return None
    kind = (device / "class").read_text()
    if not kind.startswith(CLASSES):
        return None
    number = (device / "device").read_text().strip().removeprefix("0x")
    try:
        bound = (device / "driver").readlink().name
    except OSError:
        bound = None
    return Gpu(device.name, f"10de:{number}", bound, switch=kind.startswith(SWITCH))


class Monitor:
    """Device events for the event loop: a file descriptor to wait for and a drain that never blocks.

    An event means: look again. What it says is for the log only.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        # Without udevd nobody sends processed events; the kernel's own come in any case.
        self.source = "udev" if (root / "run/udev/control").exists() else "kernel"
        try:
            self._monitor = _open(self.source)
        except (ImportError, OSError) as error:
            raise Permanent(
                Code.INTERNAL, f"cannot listen to device events: {error}", "Install pyudev and libudev.so.1."
            ) from error

    def fileno(self) -> int:
        """The descriptor that is readable when there are events."""
        return int(self._monitor.fileno())

    def drain(self) -> tuple[str, ...]:
        """Take what has come; a short line for each event that concerns the driver."""
        found: list[str] = []
        for _ in range(EVENTS_AT_MOST):
            try:
                device = self._monitor.poll(0)
            except OSError:
                # The kernel had no room for all of them. pyudev does not read the socket while it is in
                # error, and it stays in error until somebody asks for the error: without this the
                # loop would find it ready for ever.
                self._clear_error()
                if LOST not in found:
                    found.append(LOST)
                continue
            except (ValueError, OverflowError):
                # libudev knows no such action, or misses a field: it may concern us all the same.
                if UNREAD not in found:
                    found.append(UNREAD)
                continue
            # A Device is a Mapping and one without properties is false: compare with None.
            if device is None:
                break
            if text := describe(device):
                found.append(text)
        return tuple(found)

    def close(self) -> None:
        """Stop listening; libudev closes its socket when the object goes."""
        self._monitor = None

    def _clear_error(self) -> None:
        import socket

        with socket.socket(fileno=os.dup(self.fileno())) as same:
            same.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def describe(device: Any) -> str:
    """One line for an event, empty for one that does not concern the driver."""
    name = str(device.sys_name)
    if device.subsystem == "module":
        concerns = name.startswith(("nvidia", "nouveau"))
    else:
        # A removed device has no files any more: its properties came with the event.
        identity = device.properties.get("PCI_ID")
        concerns = device.subsystem == "pci" and (
            identity is None or identity.upper().startswith(f"{VENDOR_ID}:")
        )
    return f"{device.subsystem} {name} {device.action}" if concerns else ""


def _open(source: str) -> Any:
    # Imported here: activation and the command line list GPUs without events, and this is 20 ms.
    import pyudev
    from pyudev._ctypeslib import utils

    # ctypes asks `ldconfig -p` for the library's file name, a program that some hosts lack and that
    # runs for every Context. The name is the same everywhere.
    find_library = utils.find_library
    utils.find_library = lambda name: "libudev.so.1" if name == "udev" else find_library(name)
    try:
        context = pyudev.Context()
    finally:
        utils.find_library = find_library
    monitor = pyudev.Monitor.from_netlink(context, source)
    monitor.filter_by("pci")
    monitor.filter_by("module")
    with contextlib.suppress(OSError):
        # needs CAP_NET_ADMIN
        monitor.set_receive_buffer_size(RECEIVE_BUFFER)
    monitor.start()
    return monitor
