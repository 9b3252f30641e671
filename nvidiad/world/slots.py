# SPDX-License-Identifier: Apache-2.0
"""Slots on disk: which OS and which kernel the other one holds, read without leaving a mount behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Failure, Transient
from nvidiad.nouns.upcoming import StagedSystem
from nvidiad.thought import gpt, kernel_image, parse, slots
from nvidiad.world import files, process

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

_SECONDS = 30.0
_PLACE = "run/nvidiad/slot"
_SAME = "the same file system as the running one"
_APART = ("unshare", "--mount", "--propagation", "private")
# In a mount namespace of its own: it ends with the process, and the mount with it, whatever happens. Two
# slots with one image have one btrfs id, and the second one cannot be mounted beside the first.
_SCRIPT = """
export LC_ALL=C
device=$1 place=$2
shift 2
for kind; do
  type=${kind%%,*} options=ro,nosuid,nodev,noexec,${kind#*,}
  said=$(mount -t "$type" -o "$options" "$device" "$place" 2>&1) && break
  case $type:$said in btrfs:*"File exists"*) echo same; exit 0 ;; esac
  all="$all$type: $said; "
  kind=
done
[ -n "$kind" ] || { echo "$all" >&2; exit 1; }
echo mounted
ls "$place/lib/modules" | head -c 65536
echo --
head -c 65536 "$place/lib/os-release"
"""


class Slots:
    """The slots of the host below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def present(self) -> bool:
        """Whether the OS of this host is one of two slots."""
        return bool(self._disks() or kernel_image.other_slot(self._cmdline()))

    def staged(self) -> StagedSystem | None:
        """The OS in the slot that is booted next; None without slots, or where the running one is next.

        Raises NEXT_UNREADABLE.
        """
        disks = self._disks()
        if not disks:
            letter = kernel_image.other_slot(self._cmdline())
            image, kernel = self._by_header(letter) if letter else (None, "")
            return StagedSystem("", kernel, f"'{image}'") if kernel else None
        disk, found, now = self._running(disks)
        following = slots.next_slot(found, now) if now else None
        if following is None:
            return None
        image, kernel = self._by_header(following.label[-1].lower())
        name = f"the slot {following.label}"
        try:
            read = self._by_mount(disks[disk].get(following.label), name)
        except Failure:
            if kernel:
                return StagedSystem("", kernel, f"'{image}'")
            raise
        if kernel and read.kernel != kernel:
            raise _unreadable(name, f"it has modules of '{read.kernel}', and '{image}' is '{kernel}'")
        return read

    def _cmdline(self) -> str:
        return files.text(self._root / "proc/cmdline")

    def _disks(self) -> dict[Path, dict[str, Path]]:
        """The disks with slots, and the device of each slot by its label."""
        found: dict[Path, dict[str, Path]] = {}
        for event in sorted((self._root / "sys/class/block").glob("*/uevent")):
            label = parse.assignments(files.text(event)).get("PARTNAME", "")
            if label in slots.LABELS:
                disk = self._root / "dev" / event.parent.resolve().parent.name
                found.setdefault(disk, {})[label] = self._root / "dev" / event.parent.name
        return found

    def _running(
        self, disks: dict[Path, dict[str, Path]]
    ) -> tuple[Path, tuple[gpt.Partition, ...], gpt.Partition | None]:
        """The disk that the OS runs from, its partitions, and the slot that runs."""
        mounted = self._mounted()
        for disk, devices in disks.items():
            for label, device in devices.items():
                if device.name in mounted:
                    table = self._table(disk)
                    return disk, table, next((slot for slot in table if slot.label == label), None)
        # All installations have the same PARTUUIDs: they do not tell one disk from another.
        disk = next(iter(disks))
        table = self._table(disk)
        return disk, table, slots.running(self._cmdline(), table)

    def _mounted(self) -> set[str]:
        """The block devices that /usr is on: what is mounted there, and what lies below a verity device."""
        mounts = parse.mountinfo(files.text(self._root / "proc/self/mountinfo"))
        # A system extension lies over it as an overlay, which has no device.
        sources = [m.source for m in mounts if m.point == "/usr" and m.source.startswith("/dev/")]
        todo = [(self._root / source[1:]).resolve().name for source in sources]
        found: set[str] = set()
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += [path.name for path in (self._root / f"sys/class/block/{name}/slaves").glob("*")]
        return found

    def _table(self, disk: Path) -> tuple[gpt.Partition, ...]:
        blocks = files.text(self._root / f"sys/class/block/{disk.name}/size").strip()
        try:
            with disk.open("rb") as file:
                start = file.read(gpt.ENOUGH)
            return gpt.partitions(start, int(blocks) * gpt.BLOCK, str(disk))
        except (OSError, ValueError, Failure) as error:
            raise _unreadable(f"'{disk}'", str(error)) from error

    def _by_header(self, letter: str) -> tuple[Path | None, str]:
        """The kernel image of a slot and the release that it names; nothing where it cannot be read."""
        boot = self._root / "boot"
        # As update_engine's postinst: the first folder, if a host that once was CoreOS has one.
        came_from_coreos = any((boot / f"coreos/vmlinuz-{slot}").exists() for slot in "ab")
        image = boot / ("coreos" if came_from_coreos else "flatcar") / f"vmlinuz-{letter}"
        try:
            with image.open("rb", buffering=0) as file:
                return image, kernel_image.release(lambda place, size: _piece(file, place, size))
        except (OSError, ValueError):
            # The slot itself says more; without both it is told that the slot cannot be read.
            return None, ""

    def _by_mount(self, device: Path | None, name: str) -> StagedSystem:
        if device is None:
            raise _unreadable(name, "it is in the partition table, but the kernel has no device for it")
        place = self._root / _PLACE
        try:
            files.make_directory(place)
            with device.open("rb") as file:
                kinds = slots.file_systems(file.read(slots.HEADER_BYTES))
            shell = ["sh", "-c", _SCRIPT, "sh", str(device), str(place), *kinds]
            finished = process.run([*_APART, *shell], timeout=_SECONDS)
        except (OSError, ValueError, Failure) as error:
            raise _unreadable(name, str(error)) from error
        if finished.returncode != 0:
            raise _unreadable(name, finished.said)
        outcome, _, rest = finished.out.partition("\n")
        if outcome == "same":
            kernel = files.text(self._root / "proc/sys/kernel/osrelease").strip()
            return _system([kernel], files.text(self._root / "usr/lib/os-release"), f"{name} ({_SAME})")
        modules, _, release = rest.partition("--\n")
        return _system(modules.split(), release, name)


def _system(kernels: list[str], release: str, name: str) -> StagedSystem:
    version = parse.os_release(release).version
    if len(kernels) != 1 or not naming.is_version(kernels[0]) or not version:
        found = ", ".join(kernels) or "none"
        raise _unreadable(name, f"it has the kernels {found} and the OS version '{version}'")
    return StagedSystem(version, kernels[0], name)


def _unreadable(source: str, why: str) -> Transient:
    return Transient(
        Code.NEXT_UNREADABLE,
        f"what comes next cannot be read from {source}: {why}",
        "A reboot is held for it no longer than 'reboot.maximum'; see the kernel log.",
    )


def _piece(file: FileIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)
