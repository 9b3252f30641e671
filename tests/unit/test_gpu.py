# SPDX-License-Identifier: Apache-2.0
"""GPUs in sysfs, and device events over a real netlink socket, an overflowing one among them."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Gpu
from nvidiad.world import gpu
from nvidiad.world.gpu import LOST, Monitor, PciGpus, describe
from tests.unit.trees import make_tree, needs_root

if TYPE_CHECKING:
    from collections.abc import Iterator

NETLINK_KOBJECT_UEVENT = 15
GROUP_UDEV = 2
PCI = Path("/sys/bus/pci/devices")


def device(
    address: str, vendor: str, number: str, kind: str, driver: str = ""
) -> dict[str, str | bytes | None]:
    """A PCI function in sysfs: a link into the tree of devices, as there."""
    real = f"sys/devices/pci0000:00/{address}"
    found: dict[str, str | bytes | None] = {
        f"{real}/vendor": f"{vendor}\n",
        f"{real}/device": f"{number}\n",
        f"{real}/class": f"{kind}\n",
        f"sys/bus/pci/devices/{address}": f"-> ../../../devices/pci0000:00/{address}",
    }
    if driver:
        found[f"{real}/driver"] = f"-> ../../../bus/pci/drivers/{driver}"
    return found


def test_list(tmp_path: Path) -> None:
    root = make_tree(
        tmp_path,
        device("0001:00:00.0", "0x10de", "0x20b5", "0x030200")
        | device("0000:65:00.0", "0x10de", "0x2330", "0x030200", "nvidia")
        | device("0000:04:00.0", "0x10de", "0x1b06", "0x030000", "nouveau")
        | device("0000:07:00.0", "0x10de", "0x1af1", "0x068000", "vfio-pci")
        | device("0000:04:00.1", "0x10de", "0x10ef", "0x040300", "snd_hda_intel")
        | device("0000:00:02.0", "0x8086", "0x5917", "0x030000", "i915"),
    )
    (root / "sys/bus/pci/devices/0000:09:00.0").symlink_to("gone")
    assert PciGpus(root).list() == (
        Gpu("0000:04:00.0", "10de:1b06", "nouveau"),
        Gpu("0000:07:00.0", "10de:1af1", "vfio-pci"),
        Gpu("0000:65:00.0", "10de:2330", "nvidia"),
        Gpu("0001:00:00.0", "10de:20b5", None),
    )


def test_host_without_pci(tmp_path: Path) -> None:
    assert PciGpus(tmp_path).list() == ()


@pytest.mark.parametrize(
    ("subsystem", "name", "properties", "concerns"),
    [
        ("pci", "0000:01:00.0", {"PCI_ID": "10DE:20B5"}, True),
        ("pci", "0000:01:00.0", {"PCI_ID": "10de:20b5"}, True),
        ("pci", "0000:01:00.0", {}, True),
        ("pci", "0000:02:00.0", {"PCI_ID": "8086:1533"}, False),
        ("module", "nvidia_uvm", {}, True),
        ("module", "nouveau", {}, True),
        ("module", "ext4", {}, False),
        ("net", "nvidia0", {}, False),
    ],
)
def test_describe(subsystem: str, name: str, properties: dict[str, str], concerns: bool) -> None:  # noqa: FBT001
    event = SimpleNamespace(subsystem=subsystem, sys_name=name, action="add", properties=properties)
    assert describe(event) == (f"{subsystem} {name} add" if concerns else "")


# -- events


def murmur2(data: bytes) -> int:
    """The hash by which libudev's filter in the kernel knows a subsystem."""
    multiplier, mask = 0x5BD1E995, 0xFFFFFFFF
    value, at = len(data), 0
    while len(data) - at >= 4:
        word = int.from_bytes(data[at : at + 4], "little") * multiplier & mask
        value = (value * multiplier ^ ((word ^ word >> 24) * multiplier)) & mask
        at += 4
    if at < len(data):
        value = ((value ^ int.from_bytes(data[at:], "little")) * multiplier) & mask
    value = ((value ^ value >> 13) * multiplier) & mask
    return value ^ value >> 15


def message(subsystem: str, path: str, **properties: str) -> bytes:
    """An event as udevd sends it to those who listen."""
    fields = {
        "ACTION": "add",
        "DEVPATH": path,
        "SUBSYSTEM": subsystem,
        "SEQNUM": "1",
        "USEC_INITIALIZED": "1",
    }
    body = b"".join(f"{key}={value}\0".encode() for key, value in (fields | properties).items())
    magic = struct.pack("!I", 0xFEEDCAFE)
    head = b"libudev\0" + magic + struct.pack("=III", 40, 40, len(body))
    return head + struct.pack("!IIII", murmur2(subsystem.encode()), 0, 0, 0) + body


class Udevd:
    """A sender of events."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT)

    def send(self, subsystem: str, path: str, **properties: str) -> None:
        # the kernel tells the sender that a receiver had no room: not a matter for udevd
        with contextlib.suppress(OSError):
            self.socket.sendto(message(subsystem, path, **properties), (0, GROUP_UDEV))


@pytest.fixture
def udevd() -> Iterator[Udevd]:
    pytest.importorskip("pyudev")
    sender = Udevd()
    with sender.socket:
        yield sender


def as_udev_runs(root: Path) -> Path:
    return make_tree(root, {"run/udev/control": ""})


def ready(monitor: Monitor, seconds: float = 2.0) -> bool:
    return bool(select.select([monitor.fileno()], [], [], seconds)[0])


@needs_root
def test_events_that_concern_the_driver(tmp_path: Path, udevd: Udevd) -> None:
    monitor = Monitor(as_udev_runs(tmp_path))
    assert monitor.source == "udev"
    assert monitor.drain() == ()
    udevd.send("pci", "/devices/pci0000:00/0000:00:05.0", PCI_ID="10DE:20B5")
    udevd.send("pci", "/devices/pci0000:00/0000:00:06.0", PCI_ID="8086:1533")
    udevd.send("module", "/module/nvidia_uvm")
    udevd.send("module", "/module/ext4")
    udevd.send("pci", "/devices/pci0000:00/0000:00:05.0", PCI_ID="10DE:20B5", ACTION="remove")
    assert ready(monitor)
    assert monitor.drain() == ("pci 0000:00:05.0 add", "module nvidia_uvm add", "pci 0000:00:05.0 remove")
    assert not ready(monitor, 0.05)


@needs_root
def test_other_subsystems_do_not_wake_the_daemon(tmp_path: Path, udevd: Udevd) -> None:
    monitor = Monitor(as_udev_runs(tmp_path))
    for number in range(50):
        udevd.send("net", f"/devices/virtual/net/veth{number}")
    assert not ready(monitor, 0.1)


@needs_root
def test_overflow_is_said_and_survived(
    tmp_path: Path, udevd: Udevd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "RECEIVE_BUFFER", 4096)
    monitor = Monitor(as_udev_runs(tmp_path))
    for _ in range(2000):
        udevd.send("pci", "/devices/pci0000:00/0000:00:05.0", PCI_ID="10DE:20B5")
    assert ready(monitor)
    seen = monitor.drain()
    assert LOST in seen
    assert "pci 0000:00:05.0 add" in seen
    # neither in error for ever, nor deaf
    assert not ready(monitor, 0.05)
    began, woken = time.process_time(), 0
    while ready(monitor, 0.1):
        woken += 1
        monitor.drain()
    assert (woken, time.process_time() - began < 0.1) == (0, True)
    udevd.send("module", "/module/nvidia")
    assert ready(monitor)
    assert monitor.drain() == ("module nvidia add",)


@needs_root
def test_an_event_that_cannot_be_understood_is_one_that_was_lost(tmp_path: Path, udevd: Udevd) -> None:
    monitor = Monitor(as_udev_runs(tmp_path))
    udevd.send("module", "/module/nvidia")
    # To pyudev that is an invalid argument, and no error of the operating system.
    udevd.send("pci", "/devices/pci0000:00/0000:00:05.0", ACTION="nonsense")
    udevd.send("module", "/module/nvidia_uvm")
    assert ready(monitor)
    assert monitor.drain() == ("module nvidia add", LOST, "module nvidia_uvm add")
    assert not ready(monitor, 0.05)


@needs_root
def test_a_storm_is_taken_in_parts(tmp_path: Path, udevd: Udevd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "EVENTS_AT_MOST", 3)
    monitor = Monitor(as_udev_runs(tmp_path))
    for number in range(5):
        udevd.send("module", f"/module/nvidia_{number}")
    assert ready(monitor)
    assert len(monitor.drain()) == 3
    assert ready(monitor)
    assert len(monitor.drain()) == 2


@needs_root
def test_events_of_the_kernel_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyudev")
    device = next((path for path in sorted(PCI.glob("*")) if _may_be_resent(path)), None)
    if device is None:
        pytest.skip("no PCI device whose event could be sent again")
    monitor = Monitor(tmp_path)
    assert monitor.source == "kernel"
    (device / "uevent").write_text("change\n")
    assert ready(monitor)
    assert monitor.drain() == ()
    monkeypatch.setattr(gpu, "VENDOR_ID", (device / "vendor").read_text().strip().removeprefix("0x").upper())
    (device / "uevent").write_text("change\n")
    assert ready(monitor)
    assert monitor.drain() == (f"pci {device.name} change",)
    assert not ready(monitor, 0.05)


def _may_be_resent(device: Path) -> bool:
    return os.access(device / "uevent", os.W_OK) and (device / "vendor").read_text().strip() != "0x10de"


@needs_root
def test_no_ldconfig_is_needed(tmp_path: Path, udevd: Udevd, monkeypatch: pytest.MonkeyPatch) -> None:
    del udevd
    from pyudev._ctypeslib import utils

    asked: list[str] = []
    monkeypatch.setattr(utils, "find_library", asked.append)
    Monitor(tmp_path).close()
    assert "udev" not in asked


def test_no_libudev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyudev", None)
    with pytest.raises(Failure, match="cannot listen to device events") as caught:
        Monitor(tmp_path)
    assert caught.value.code is Code.INTERNAL


@needs_root
def test_close_gives_the_descriptor_back(tmp_path: Path, udevd: Udevd) -> None:
    del udevd
    gc.collect()
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(3):
        Monitor(tmp_path).close()
    gc.collect()
    assert len([*Path("/proc/self/fd").iterdir()]) == before
