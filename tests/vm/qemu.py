# SPDX-License-Identifier: Apache-2.0
"""The QEMU that the bed runs: its command line, the card preloaded into it, and its end with its test."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.beds.common import cached, require, run_checked
from tests.vm.disk import USR_IDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.vm.disk import Disk

PROGRAM = "qemu-system-x86_64"
CARD_PORT = "card0"  # root ports: the card's, and one for payload disks that come and go
PAYLOAD_PORT = "payload0"
CARD = {"driver": "fake-nvidia", "id": "card", "bus": CARD_PORT}
# What is left out of a kernel's start under emulation: mitigations, self tests, hardware that is not there.
_QUIET = (
    "quiet loglevel=4 systemd.show_status=0 mitigations=off nopti tsc=reliable no_timer_check "
    "random.trust_cpu=on net.ifnames=0 audit=0 apparmor=0 nokaslr no5lvl rcupdate.rcu_expedited=1 "
    "cryptomgr.notests"
)


@dataclass(frozen=True)
class Hardware:
    """What a machine is made of; a frozen machine resumes only on equal hardware."""

    memory: int = 1024
    accelerator: str = field(default_factory=lambda: os.environ.get("NVIDIAD_VM_ACCEL", "tcg"))
    # What the guest can reach: HOST:PORT there -> the address that socat connects it to here.
    network: Mapping[str, str] = field(default_factory=dict)
    append: str = ""  # more words for the kernel's command line


@cache
def prepare() -> str:
    """Install QEMU where it is missing, and say its version."""
    require("qemu-system-x86", "qemu-utils", "zstd", "socat")
    return run_checked([PROGRAM, "--version"], "qemu").splitlines()[0]


@cache
def card_library() -> Path:
    """The library that teaches a stock QEMU the emulated NVIDIA card."""
    source = Path(__file__).with_name("fakegpu.c")

    def make(partial: Path) -> None:
        require("gcc", "libc6-dev")
        run_checked(["gcc", "-shared", "-fPIC", "-O1", "-o", str(partial), str(source)], "the emulated card")

    return cached("vm-fakegpu", source.read_text(), make)


def command_line(
    hardware: Hardware, disk: Disk, slot: str, overlay: Path, sockets: Path, console: Path, *, card: bool
) -> list[str]:
    """The words that start a machine in a slot."""
    if hardware.accelerator == "tcg":
        # One virtual CPU: with two, TCG of QEMU 7.2 crashed one early boot in 22 (a text_poke race).
        accelerator, model = "tcg,thread=single,tb-size=256", "max,la57=off,-avx,-avx2"
    else:
        accelerator, model = hardware.accelerator, "host"
    # As Container Linux's boot loader writes it, without verity.
    booted = f"BOOT_IMAGE=/flatcar/vmlinuz-{slot.lower()} mount.usr=PARTUUID={USR_IDS[slot].lower()}"
    partitions = f"{booted} rootflags=rw mount.usrflags=ro root=LABEL=ROOT"
    kernel_line = f"{partitions} console=ttyS0 panic=-1 {_QUIET} {hardware.append}"

    def chardev(name: str, more: str = "") -> list[str]:
        return ["-chardev", f"socket,id={name},path={sockets}/{name},server=on,wait=off{more}"]

    def port(name: str, number: int) -> list[str]:
        # Address space is kept for a card that comes later: its BARs need some 300 MB.
        room = "mem-reserve=64M,pref64-reserve=512M"
        return ["-device", f"pcie-root-port,id={name},chassis={number},slot={number},{room}"]

    words = [PROGRAM, "-accel", accelerator, "-cpu", model, "-smp", "1", "-m", str(hardware.memory)]
    words += ["-M", "q35,hpet=off,smbus=off,sata=off,usb=off,vmport=off", "-nodefaults", "-display", "none"]
    words += ["-no-reboot", "-rtc", "base=utc,clock=host"]
    words += [*chardev("console", f",logfile={console}"), "-serial", "chardev:console"]
    words += [*chardev("monitor"), "-mon", "chardev=monitor,mode=control"]
    # Unsafe only if *this* machine dies: a killed QEMU loses what the guest had not flushed, no more.
    words += ["-drive", f"if=none,id=disk,file={overlay},format=qcow2,cache=unsafe,discard=unmap"]
    words += ["-device", "virtio-blk-pci,drive=disk,serial=bed"]
    words += ["-device", "virtio-serial-pci", *chardev("agent")]
    words += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
    words += ["-device", "virtio-rng-pci"]
    words += [*port(CARD_PORT, 1), *port(PAYLOAD_PORT, 2)]
    words += ["-kernel", str(disk.kernel(slot)), "-initrd", str(disk.initrd(slot)), "-append", kernel_line]
    if hardware.network:
        pairs = hardware.network.items()
        forwards = "".join(f",guestfwd=tcp:{there}-cmd:socat - {here}" for there, here in pairs)
        words += ["-netdev", f"user,id=net0,restrict=on{forwards}"]
        words += ["-device", "virtio-net-pci,netdev=net0,romfile="]
    if card:
        words += ["-device", ",".join([CARD["driver"], *(f"{key}={CARD[key]}" for key in ("id", "bus"))])]
    return words


def spawn(words: Sequence[str], errors: Path) -> subprocess.Popen[bytes]:
    """Start QEMU so that it dies with the thread that started it: a crashed test leaves none behind."""
    with errors.open("ab") as sink:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *words],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**os.environ, "LD_PRELOAD": str(card_library())},
        )
