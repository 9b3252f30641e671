# SPDX-License-Identifier: Apache-2.0
"""A virtual machine of the bed: it boots a slot, is frozen and resumed, loses power, loses its card."""

from __future__ import annotations

import json
import shlex
import shutil
import struct
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.beds.common import run_checked
from tests.vm import qemu
from tests.vm.channel import Agent, MachineError, Monitor, Result
from tests.vm.disk import SLOT_PARTITIONS, disk
from tests.vm.qemu import Hardware

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from types import TracebackType

    from tests.vm.disk import Disk, Place

BOOT_TIMEOUT = 180.0  # some twelve times what a boot takes on an idle machine


@dataclass(frozen=True)
class Frozen:
    """A stopped machine's memory and disk; any number of machines can go on from it at once."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def memory(self) -> Path:
        return self.folder / "memory.zst"

    @property
    def facts(self) -> dict[str, object]:
        facts: dict[str, object] = json.loads((self.folder / "facts.json").read_text())
        return facts


class Machine:
    """One machine with a disk of its own; `slot` and `card` say how it runs, or ran last."""

    def __init__(
        self,
        work: Path,
        hardware: Hardware | None = None,
        frozen: Frozen | None = None,
        boot_disk: Disk | None = None,
    ) -> None:
        qemu.prepare()
        self.work = work
        self.hardware = hardware or Hardware()
        self.slot = "A"
        self.card = True
        self.boots = 0
        self.seconds = 0.0  # from power-on (or resume) until the machine was ready
        self._disk = boot_disk or disk()
        self._frozen = frozen
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: tempfile.TemporaryDirectory[str] | None = None
        work.mkdir(parents=True, exist_ok=True)
        self.overlay = work / "disk.qcow2"
        base, form = (frozen.disk, "qcow2") if frozen else (self._disk.image, "raw")
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", form, str(self.overlay)]
        run_checked(create, "qemu-img create")

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.power_cut()

    def boot(
        self, slot: str | None = None, *, card: bool | None = None, target: str | None = "multi-user.target"
    ) -> Machine:
        """Switch the machine on in a slot (or what the boot loader would take); wait for a unit, if any."""
        self.slot = slot or self.next_slot()
        self.card = self.card if card is None else card
        began = time.monotonic()
        self._power_on([])
        if target is not None:
            self._wait_for_agent(BOOT_TIMEOUT)
            self.wait_unit(target, BOOT_TIMEOUT)
        self.seconds = time.monotonic() - began
        return self

    def resume(self) -> Machine:
        """Go on where the frozen machine stopped."""
        if self._frozen is None:
            raise MachineError("this machine was not made from a frozen one")
        facts = self._frozen.facts
        self.slot, self.card = str(facts["slot"]), bool(facts["card"])
        began = time.monotonic()
        self._power_on(["-incoming", f"exec:zstd -dcq {self._frozen.memory}"])
        while self.monitor.command("query-status")["status"] == "inmigrate":
            self._check_alive()
            time.sleep(0.02)
        self.monitor.command("cont")
        self._wait_for_agent(60)
        self.run("hwclock -s -u", check=True)  # the guest's clock stood still
        self.seconds = time.monotonic() - began
        return self

    def freeze(self, folder: Path) -> Frozen:
        """Stop here for good, and keep memory and disk in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        frozen = Frozen(folder)
        self.run(
            "sync", check=True
        )  # else a power cut right after the resume would undo what was done before
        self.monitor.command("stop")
        self.monitor.command("migrate", uri=f"exec:zstd -1 -q -f -o {frozen.memory}")
        while (status := self.monitor.command("query-migrate").get("status")) not in ("completed", "failed"):
            time.sleep(0.05)
        if status != "completed":
            raise MachineError("the machine's memory could not be saved")
        self.monitor.command("quit")
        self._ended(60)
        shutil.copy(self.overlay, frozen.disk)
        facts = {"slot": self.slot, "card": self.card, "hardware": asdict(self.hardware)}
        (folder / "facts.json").write_text(json.dumps(facts) + "\n")
        return frozen

    def reboot(self, slot: str | None = None, command: str = "systemctl reboot") -> Machine:
        """Have the guest reboot by itself, and boot what the boot loader (or the caller) says."""
        self.start(command)
        if (reason := self.wait_end()) != "guest-reset":
            raise MachineError(f"the guest ended with {reason}, not with a reboot")
        return self.boot(slot)

    def wait_end(self, timeout: float = 120) -> str:
        """How the guest ended: guest-reset, guest-shutdown or guest-panic."""
        try:
            reason = str(self.monitor.event("SHUTDOWN", timeout)["reason"])
        except EOFError:
            raise MachineError(f"QEMU ended without a word\n{self._printed()}") from None
        self._ended(60)
        return reason

    def power_cut(self) -> None:
        """Kill QEMU; a later boot finds the disk as it was at this instant."""
        if self._process is not None:
            self._process.kill()
            self._ended(60)

    @property
    def running(self) -> bool:
        return self._process is not None

    def fill_slot(self, slot: str, image: Path) -> None:
        """Put an image into a slot while the machine is off, as whoever installs a host does."""
        if self.running:
            raise MachineError("a running guest would not see what is written under it")
        place, size = self._disk.place(slot), image.stat().st_size
        if size > place.size:
            raise MachineError(f"{image} has {size} bytes, the slot {place.size}")
        write = f"write -q -s {image} {place.offset} {size}"
        zero = f"write -q -z -u {place.offset} {place.size}"
        run_checked(["qemu-io", "-f", "qcow2", "-c", zero, "-c", write, str(self.overlay)], "qemu-io")

    def set_next_slot(self, slot: str) -> None:
        """What update_engine does at an update's end: the new slot gets the higher priority and a try."""
        other = "B" if slot == "A" else "A"
        for each, bits in ((slot, "49,52,56"), (other, "48,56")):
            # The kernel cannot re-read the table of a disk in use, and has no need to.
            number = SLOT_PARTITIONS[each]
            edit = f"sfdisk --no-reread --no-tell-kernel -q --part-attrs /dev/vda {number} GUID:{bits}"
            self.run(edit, check=True)
        self.run("sync", check=True)

    def next_slot(self) -> str:
        """What Container Linux's boot loader takes: the highest priority that is good or has tries left."""
        if self.running:
            raise MachineError("a running guest's partition table may not be on the disk yet")
        table = self.work / "table.bin"
        read = ["qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=512", "count=34"]
        run_checked([*read, f"if={self.overlay}", f"of={table}"], "reading the partition table")
        entries, best = table.read_bytes()[1024:], (-1, "A")
        for slot, number in SLOT_PARTITIONS.items():
            start = 128 * (number - 1) + 48
            (bits,) = struct.unpack("<Q", entries[start : start + 8])
            priority, tries, successful = bits >> 48 & 15, bits >> 52 & 15, bits >> 56 & 1
            if (successful or tries) and priority > best[0]:
                best = (priority, slot)
        return best[1]

    def plug(self) -> None:
        """Put the card in while the machine runs."""
        self.monitor.command("device_add", **qemu.CARD)
        self.card = True

    def unplug(self, timeout: float = 60) -> None:
        """Ask the guest to let the card go, as a hot-unplug does, and wait until it has."""
        self.monitor.command("device_del", id=qemu.CARD["id"])
        while self.monitor.event("DEVICE_DELETED", timeout).get("device") != qemu.CARD["id"]:
            pass
        self.card = False

    def run(
        self,
        command: str,
        timeout: float = 120,
        *,
        check: bool = False,
        environment: Sequence[str] = (),
        stdin: bytes | None = None,
    ) -> Result:
        """Run a shell command line in the guest as root; with `check`, a failure is an error here."""
        result = self.agent.run(command, timeout, environment=environment, stdin=stdin)
        if check and result.rc != 0:
            raise MachineError(f"{command!r} gave {result.rc}\n{result.out}{result.err}")
        return result

    def output(self, command: str, timeout: float = 120) -> str:
        """What a command that must succeed prints, without the last line end."""
        return self.run(command, timeout, check=True).out.rstrip("\n")

    def start(self, command: str) -> int:
        """Start a command and do not wait for it: its end may be the machine's."""
        return self.agent.start(command)

    def put(self, data: bytes, path: str, mode: str | None = None) -> None:
        self.agent.put(data, path)
        if mode:
            self.run(f"chmod {mode} {shlex.quote(path)}", check=True)

    def get(self, path: str) -> bytes:
        return self.agent.get(path)

    def attach(self, file: Path, part: Place | None = None) -> str:
        """Plug a file in as a read-only disk and give its device path: for a big payload, some 40 MB/s.

        Its size should be a multiple of 512 bytes; a tar file's is. With `part` it is that part of it."""
        window = {"offset": part.offset, "size": part.size} if part else {}
        self.monitor.command(
            "blockdev-add", **{"node-name": "payload", "driver": "raw", "read-only": True, **window},
            file={"driver": "file", "filename": str(file)},
        )  # fmt: skip
        where = {"driver": "virtio-blk-pci", "id": "payload", "bus": qemu.PAYLOAD_PORT}
        self.monitor.command("device_add", drive="payload", serial="payload", **where)
        device = "/dev/disk/by-id/virtio-payload"
        self.run(f"until [ -b {device} ]; do sleep 0.1; done", 30, check=True)
        return device

    def detach(self, timeout: float = 60) -> None:
        """Take the disk of `attach` out again."""
        self.monitor.command("device_del", id="payload")
        while self.monitor.event("DEVICE_DELETED", timeout).get("device") != "payload":
            pass
        self.monitor.command("blockdev-del", **{"node-name": "payload"})

    def wait_unit(self, unit: str, timeout: float = 120) -> None:
        """Until systemd in the guest calls a unit active."""
        self.wait_for(f"systemctl -q is-active {shlex.quote(unit)}", timeout)

    def wait_for(self, condition: str, timeout: float = 120) -> None:
        """Until a command in the guest succeeds; the loop runs there, where it costs least."""
        limit = max(1, int(timeout))
        # 0.5, 1, 1.5, then always 2 s: a question takes a fifth of a second of the CPU that others need.
        longer = "n=$((n < 4 ? n + 1 : 4)); sleep $((n / 2)).$((n % 2 * 5))"
        loop = f"n=0; until {condition}; do {longer}; done"
        result = self.run(f"timeout {limit} sh -c {shlex.quote(loop)}", timeout + 30)
        if result.rc != 0:
            raise MachineError(f"not within {limit} s in the guest: {condition}\n{result.out}{result.err}")

    def active_since(self, unit: str) -> float:
        """The guest's monotonic time in seconds at which a unit became active; 0 when it did not."""
        return self._moment(unit, "ActiveEnterTimestampMonotonic")

    def started(self, unit: str) -> float:
        """The guest's monotonic time in seconds at which a unit's start began; 0 when it did not."""
        return self._moment(unit, "InactiveExitTimestampMonotonic")

    def _moment(self, unit: str, name: str) -> float:
        return int(self.output(f"systemctl show -p {name} --value {unit}")) / 1e6

    def console(self) -> str:
        """What the latest boot printed on the serial console."""
        return self._console_log().read_text(errors="replace")

    def last_words(self) -> str:
        """For a failed test: the end of the console, of QEMU's complaints, and of the guest's journal."""
        journal = ""
        if self.running:
            try:
                shown = self.run("journalctl -b -n 100 --no-pager -o short-monotonic", 20)
                journal = f"--- journal\n{shown.out}"
            except (MachineError, OSError, EOFError) as error:
                journal = f"--- no journal: {error}"
        return f"{self._printed()}\n{journal}"

    def _power_on(self, more: Sequence[str]) -> None:
        if self.running:
            raise MachineError("the machine is on already")
        self.boots += 1
        # Not under `work`: a socket's path has less than 108 bytes, and pytest's directories are long.
        self._sockets = tempfile.TemporaryDirectory(prefix="bed-")
        sockets = Path(self._sockets.name)
        words = qemu.command_line(
            self.hardware, self._disk, self.slot, self.overlay, sockets, self._console_log(), card=self.card
        )
        self._process = qemu.spawn([*words, *more], self.work / "qemu.err")
        try:
            self.monitor = Monitor(sockets / "monitor")
            self.agent = Agent(sockets / "agent")
        except (OSError, EOFError) as error:
            self.power_cut()
            raise MachineError(f"QEMU did not start\n{self._printed()}") from error

    def _wait_for_agent(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        try:
            while not self.agent.sync(1):
                self._check_alive()
                if time.monotonic() > until:
                    raise MachineError(f"the guest agent is silent\n{self._printed()}")
        except (OSError, EOFError) as error:
            raise MachineError(f"QEMU went away\n{self._printed()}") from error

    def _check_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise MachineError(f"QEMU ended\n{self._printed()}")

    def _ended(self, timeout: float) -> None:
        if self._process is not None:
            self._process.wait(timeout)
            self._process = None
        for name in ("monitor", "agent"):
            if isinstance(channel := self.__dict__.pop(name, None), Monitor | Agent):
                channel.close()
        if self._sockets is not None:
            self._sockets.cleanup()
            self._sockets = None

    def _console_log(self) -> Path:
        return self.work / f"console-{self.boots}-{self.slot}.log"

    def _printed(self) -> str:
        logs = {"qemu": self.work / "qemu.err", "console": self._console_log()}
        return "\n".join(
            f"--- {name}\n{log.read_text(errors='replace')[-3000:]}"
            for name, log in logs.items()
            if log.exists()
        )
