# SPDX-License-Identifier: Apache-2.0
"""QEMU: boots a kernel with an initrd that inserts modules, and gives what its console said."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.image.thought import cpio, elf
from nvidiad.image.thought.boot import Console
from nvidiad.nouns.errors import Code, Permanent, Transient
from nvidiad.nouns.value import Value
from nvidiad.world import process

if TYPE_CHECKING:
    from collections.abc import Sequence

INIT = Path(__file__).with_name("prove-init.sh")
_HOME = "nvidiad"
"""Everything of ours in the initrd: some kernels have an initramfs of their own, over which this is laid."""

# What is left out of a kernel's start: mitigations, self tests, probing for hardware that is not there. Only
# what says that the kernel dies may interrupt the lines of our init.
_KERNEL_WORDS = (
    "quiet loglevel=1 panic=-1 mitigations=off nopti tsc=reliable no_timer_check random.trust_cpu=on nokaslr"
    " no5lvl audit=0 apparmor=0 selinux=0 rcupdate.rcu_expedited=1 cryptomgr.notests"
)
_MIB = 1 << 20
# For a kernel and nothing else. A module is there four times while it is inserted: in the initrd, unpacked,
# as insmod reads it, and as the kernel lays it out.
_MEMORY = 512
_SPARE = 30.0


class Hardware(Value):
    """What the machine is."""

    accelerator: str = "tcg"
    """QEMU's word: `tcg` emulates and works everywhere, `kvm` needs /dev/kvm."""
    limit: float = 300.0
    """Seconds from power-on to power-off."""
    append: str = ""
    """More words for the kernel's command line."""


def command_line(
    hardware: Hardware, architecture: str, kernel: Path, initrd: Path, console: Path, size: int
) -> list[str]:
    """The words that start the machine; `size` is the bytes of the initrd.

    No disk, no network, no screen. Raises for an architecture for which no machine is known here.
    """
    if architecture != "x86_64":
        raise Permanent(
            Code.PROOF_FAILED,
            f"no virtual machine is known here for the architecture '{architecture}'",
            "Prove the image without a boot (--skip-boot), and on such a machine.",
        )
    memory = _MEMORY + 4 * -(-size // _MIB)
    # One virtual CPU: with two, TCG of QEMU 7.2 crashed one early boot in 22 (a text_poke race).
    emulated = hardware.accelerator.partition(",")[0] == "tcg"
    accelerator = "tcg,thread=single,tb-size=256" if hardware.accelerator == "tcg" else hardware.accelerator
    model = "max,la57=off,-avx,-avx2" if emulated else "host"
    words = ["qemu-system-x86_64", "-accel", accelerator, "-cpu", model, "-smp", "1", "-m", str(memory)]
    words += ["-M", "q35,hpet=off,smbus=off,sata=off,usb=off,vmport=off", "-nodefaults", "-no-user-config"]
    words += ["-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"]
    words += ["-serial", f"file:{console}", "-kernel", str(kernel), "-initrd", str(initrd)]
    line = f"console=ttyS0 rdinit=/{_HOME}/init {_KERNEL_WORDS} {hardware.append}"
    return [*words, "-append", line.strip()]


def initrd(busybox: bytes, init: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """The archive that the machine starts from: BusyBox, our init, and the modules in their order."""
    listed = "".join(f"{name}\n" for name, _ in modules)
    items = [cpio.directory(_HOME), cpio.directory(f"{_HOME}/modules"), cpio.directory("dev"), cpio.CONSOLE]
    items.append(cpio.file(f"{_HOME}/busybox", busybox, 0o755))
    items.append(cpio.file(f"{_HOME}/init", init, 0o755))
    items.append(cpio.file(f"{_HOME}/list", listed.encode()))
    items += [cpio.file(f"{_HOME}/modules/{name}.ko", data) for name, data in modules]
    return cpio.archive(items)


def static_busybox(program: str = "busybox") -> bytes:
    """This machine's BusyBox; a failure where it has none that runs without libraries."""
    found = shutil.which(program, path=process.PATH)
    data = Path(found).read_bytes() if found else b""
    try:
        library = elf.library(lambda offset, size: data[offset : offset + size], program) if found else None
    except ValueError:
        library = None
    if library is None or library.interpreter or library.needed:
        raise Permanent(
            Code.COMMAND_FAILED,
            f"there is no static '{program}' in {process.PATH}",
            "Install BusyBox without libraries (Debian: busybox-static).",
        )
    return data


class Qemu:
    """Machines that are there for one boot each."""

    def __init__(self, work: Path, hardware: Hardware | None = None) -> None:
        self._work = work
        self.hardware = hardware or Hardware()

    def boot(self, kernel: Path, architecture: str, modules: Sequence[tuple[str, bytes]]) -> Console:
        """Boot a kernel and insert these modules (name without `.ko`, content) one after the other.

        A machine that is not off within the limit is killed: what it said until then is given. Raises where
        QEMU or BusyBox is missing, or QEMU does not start.
        """
        archive, console = self._work / "initrd.cpio", self._work / "console.log"
        data = initrd(static_busybox(), INIT.read_bytes(), modules)
        archive.write_bytes(data)
        console.unlink(missing_ok=True)
        words = command_line(self.hardware, architecture, kernel, archive, console, len(data))
        limit = self.hardware.limit
        # The limit of whoever is left when this program is killed.
        words = ["timeout", "--signal=KILL", f"{limit + _SPARE:g}", *words]
        began, ended = time.monotonic(), True
        try:
            finished = process.run(words, timeout=limit)
        except Transient:
            ended = False
        else:
            if finished.returncode != 0:
                remedy = "Install QEMU (Debian: qemu-system-x86), or choose another accelerator."
                raise Permanent(Code.COMMAND_FAILED, process.failed(finished), remedy)
        finally:
            archive.unlink(missing_ok=True)
        text = console.read_text(errors="replace") if console.exists() else ""
        return Console(text, ended, time.monotonic() - began)
