# SPDX-License-Identifier: Apache-2.0
"""Slots on disk: which OS and which kernel the other one holds, read without leaving a mount behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure, Transient
from nvidiad.nouns.upcoming import StagedSystem
from nvidiad.thought import gpt, kernel_image, parse, slots
from nvidiad.world import files, process

if TYPE_CHECKING:
    from pathlib import Path

_SECONDS = 30.0
_PLACE = "run/nvidiad/slot"
_SAME = "the same file system as the running one"
# In a mount namespace of its own: it ends with the process, and the mount with it, whatever happens. noload
# and nologreplay: not a byte of the partition may change. Two slots with one image have one btrfs id, and
# the second one cannot be mounted beside the first.
_SCRIPT = """
for kind in ext4:,noload btrfs:,rescue=nologreplay squashfs:; do
  said=$(LC_ALL=C mount -t "${kind%%:*}" -o "ro,nosuid,nodev,noexec${kind#*:}" "$1" "$2" 2>&1) && break
  case $said in *"File exists"*|*"already mounted"*) echo same; exit 0 ;; esac
  all="$all${kind%%:*}: $said; "
  kind=
done
[ -n "$kind" ] || { echo "$all" >&2; exit 1; }
echo mounted
ls "$2/lib/modules"
echo --
head -c 65536 "$2/lib/os-release"
"""


class Slots:
    """The slots of the host below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def staged(self) -> StagedSystem | None:
        """The OS in the slot that is booted next; None without slots, or where the running one is next.

        Raises NEXT_UNREADABLE.
        """
        disk, devices = self._disk()
        cmdline = _text(self._root / "proc/cmdline")
        if disk is None:
            letter = kernel_image.other_slot(cmdline)
            image, kernel = self._by_header(letter) if letter else (None, "")
            return StagedSystem("", kernel, f"'{image}'") if kernel else None
        found = self._table(disk)
        now = slots.running(cmdline, found)
        following = slots.next_slot(found, now) if now else None
        if following is None:
            return None
        image, kernel = self._by_header(following.label[-1].lower())
        name = f"the slot {following.label}"
        try:
            read = self._by_mount(devices[following.label], name)
        except Failure:
            if kernel:
                return StagedSystem("", kernel, f"'{image}'")
            raise
        if kernel and read.kernel != kernel:
            raise _unreadable(name, f"it has modules of '{read.kernel}', and '{image}' is '{kernel}'")
        return read

    def _disk(self) -> tuple[Path | None, dict[str, Path]]:
        """The disk with the slots, and the device of each by its label."""
        found: dict[str, Path] = {}
        disk: Path | None = None
        for event in sorted((self._root / "sys/class/block").glob("*/uevent")):
            label = parse.assignments(_text(event)).get("PARTNAME", "")
            if label in slots.LABELS:
                found[label] = self._root / "dev" / event.parent.name
                disk = self._root / "dev" / event.parent.resolve().parent.name
        return disk, found

    def _table(self, disk: Path) -> tuple[gpt.Partition, ...]:
        blocks = _text(self._root / f"sys/class/block/{disk.name}/size").strip()
        try:
            with disk.open("rb") as file:
                start = file.read(gpt.ENOUGH)
            return gpt.partitions(start, int(blocks) * gpt.BLOCK, str(disk))
        except (OSError, ValueError, Failure) as error:
            raise _unreadable(f"'{disk}'", str(error)) from error

    def _by_header(self, letter: str) -> tuple[Path | None, str]:
        """The kernel image of a slot and the release in its header; nothing where it cannot be read."""
        for name in ("coreos", "flatcar"):
            image = self._root / f"boot/{name}/vmlinuz-{letter}"
            try:
                with image.open("rb") as file:
                    return image, kernel_image.release(file.read(kernel_image.HEADER_BYTES))
            except (OSError, ValueError):
                # The slot itself says more; without both it is told that the slot cannot be read.
                continue
        return None, ""

    def _by_mount(self, device: Path, name: str) -> StagedSystem:
        place = self._root / _PLACE
        files.make_directory(place)
        shell = ["sh", "-c", _SCRIPT, "sh", str(device), str(place)]
        command = ["unshare", "--mount", "--propagation", "private", *shell]
        finished = process.run(command, timeout=_SECONDS)
        if finished.returncode != 0:
            raise _unreadable(name, finished.said)
        outcome, _, rest = finished.out.partition("\n")
        if outcome == "same":
            names = [path.name for path in (self._root / "usr/lib/modules").iterdir()]
            return _system(names, _text(self._root / "usr/lib/os-release"), f"{name} ({_SAME})")
        modules, _, release = rest.partition("--\n")
        return _system(modules.split(), release, name)


def _system(kernels: list[str], release: str, name: str) -> StagedSystem:
    version = parse.os_release(release).version
    if len(kernels) != 1 or not version:
        found = ", ".join(kernels) or "none"
        raise _unreadable(name, f"it has the kernels {found} and the OS version '{version}'")
    return StagedSystem(version, kernels[0], name)


def _unreadable(source: str, why: str) -> Transient:
    return Transient(
        Code.NEXT_UNREADABLE,
        f"what comes next cannot be read from {source}: {why}",
        "A reboot is held for it no longer than 'reboot.maximum'; see the kernel log.",
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
