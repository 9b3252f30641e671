# SPDX-License-Identifier: Apache-2.0
"""Nodes: the driver's device nodes, which no kernel and no udev makes, and their links in /dev/char."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure, Transient
from nvidiad.nouns.value import Value
from nvidiad.thought import parse
from nvidiad.world import files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CONTROL_MINOR = 255
MODESET_MINOR = 254
SWITCH_CONTROL_MINOR = 255
# The names of the first major have changed with the driver's branches: 550, 535.
FRONTENDS = ("nvidia", "nvidiactl", "nvidia-frontend")
CAPS = "nvidia-caps"
_OURS = re.compile(r"nvidia([0-9]+|ctl|-modeset|-uvm|-uvm-tools|-nvlink|-nvswitch(ctl|[0-9]+)|-vgpuctl)")
_OURS_BELOW = {
    CAPS: re.compile(r"nvidia-cap[0-9]+"),
    "nvidia-caps-imex-channels": re.compile(r"channel[0-9]+"),
}
_LINK = re.compile(r"[0-9]+:[0-9]+")
_DIGITS = 10
"""Those of a number of 32 bits."""
_FIELD = re.compile(r"^([A-Za-z \t]+):(.*)$", re.MULTILINE)


class Access(Value):
    """Who may open a node."""

    mode: int = 0o666
    uid: int = 0
    gid: int = 0


class Node(Value):
    """A device node as it should be; `name` is its path below /dev."""

    name: str
    major: int
    minor: int
    access: Access = Access()

    @property
    def path(self) -> str:
        return f"/dev/{self.name}"

    @property
    def link(self) -> str:
        """Where runc looks the device up when it writes a container's device rules."""
        return f"/dev/char/{self.major}:{self.minor}"

    @property
    def link_target(self) -> str:
        return f"../{self.name}"


def desired(
    majors: Mapping[str, int],
    gpus: Sequence[int],
    *,
    access: Access = Access(),
    modeset: bool = False,
    caps: Mapping[int, Access] | None = None,
    switches: int = 0,
) -> tuple[Node, ...]:
    """The nodes for the majors in /proc/devices, the GPUs' minors and the capabilities that there are."""
    nodes: list[Node] = []
    frontend = next((majors[name] for name in FRONTENDS if name in majors), None)
    if frontend is not None:
        nodes.append(Node("nvidiactl", frontend, CONTROL_MINOR, access))
        nodes += [Node(f"nvidia{minor}", frontend, minor, access) for minor in sorted(set(gpus))]
        if modeset:
            nodes.append(Node("nvidia-modeset", frontend, MODESET_MINOR, access))
    if (uvm := majors.get("nvidia-uvm")) is not None:
        # nvidia-uvm has no parameters for its nodes
        nodes += [Node("nvidia-uvm", uvm, 0), Node("nvidia-uvm-tools", uvm, 1)]
    if (major := majors.get(CAPS)) is not None:
        nodes += [
            Node(f"{CAPS}/nvidia-cap{minor}", major, minor, allowed)
            for minor, allowed in sorted((caps or {}).items())
        ]
    if (nvlink := majors.get("nvidia-nvlink")) is not None:
        nodes.append(Node("nvidia-nvlink", nvlink, 0))
    if (switch := majors.get("nvidia-nvswitch")) is not None and switches:
        nodes.append(Node("nvidia-nvswitchctl", switch, SWITCH_CONTROL_MINOR))
        # the kernel gives them out from 0 and names them nowhere
        nodes += [Node(f"nvidia-nvswitch{minor}", switch, minor) for minor in range(switches)]
    return tuple(nodes)


def minors(informations: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """The minors of GPUs from (address, text of `information`); where a driver names none, by address."""
    found = []
    for index, (_, text) in enumerate(sorted(informations)):
        minor = parse.gpu_minor(text)
        found.append(index if minor is None else minor)
    return tuple(found)


def access_of(text: str, default: Access) -> Access:
    """DeviceFileMode, UID and GID of /proc/driver/nvidia/params or of a capability; the mode is decimal."""
    fields = {key.rstrip(" \t"): value.strip(" \t") for key, value in _FIELD.findall(text)}

    def number(key: str, otherwise: int) -> int:
        value = fields.get(key, "")
        return int(value) if value.isascii() and value.isdigit() and len(value) <= _DIGITS else otherwise

    return Access(
        number("DeviceFileMode", default.mode) & 0o777,
        number("DeviceFileUID", default.uid),
        number("DeviceFileGID", default.gid),
    )


class Nodes:
    """The device nodes of a host."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def missing(self) -> tuple[str, ...]:
        """The paths, of nodes and of links, that are not as the loaded modules need them."""
        found: list[str] = []
        for node in self.desired():
            if not self._is_right(node):
                found.append(node.path)
            if self._link_of(node.link) != node.link_target:
                found.append(node.link)
        return tuple(found)

    def make(self) -> None:
        """Make what is missing, put right what is wrong, and drop links that name another device."""
        nodes = self.desired()
        if not nodes:
            return
        for node in nodes:
            try:
                self._make(node)
            except OSError as error:
                raise _failure("make", node.path, error) from error
        self._drop_links({node.link for node in nodes}, stale_only=True)

    def remove(self) -> None:
        """Remove the driver's nodes and the links to them, whoever made them."""
        self._drop_links(set(), stale_only=False)
        for path in self._ours():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _failure("remove", str(path), error) from error
        for name in _OURS_BELOW:
            with contextlib.suppress(OSError):
                (self.root / "dev" / name).rmdir()

    # -- what should be

    def desired(self) -> tuple[Node, ...]:
        """The nodes that the loaded modules serve."""
        majors = parse.devices(self._read("proc/devices"))
        return desired(
            majors,
            minors([(path.name, self._read(path / "information")) for path in self._below("nvidia/gpus")]),
            access=access_of(self._read("proc/driver/nvidia/params"), Access()),
            modeset=self._read("sys/module/nvidia_modeset/initstate").strip() == "live",
            caps=self._caps() if CAPS in majors else None,
            switches=len(self._below("nvidia-nvswitch/devices")),
        )

    def _caps(self) -> dict[int, Access]:
        """The capabilities that exist now; the *-minors files also list those that may exist one day."""
        found: dict[int, Access] = {}
        for path in (self.root / "proc/driver/nvidia/capabilities").rglob("*"):
            if path.is_file():
                text = self._read(path)
                if match := re.search(r"^DeviceFileMinor:[ \t]*([0-9]+)", text, re.MULTILINE):
                    found[int(match[1])] = access_of(text, Access(mode=0o400))
        return found

    def _below(self, directory: str) -> list[Path]:
        try:
            return sorted((self.root / "proc/driver" / directory).iterdir())
        except OSError:
            return []

    def _read(self, path: str | Path) -> str:
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    # -- what is

    def _under(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _is_right(self, node: Node) -> bool:
        try:
            found = self._under(node.path).lstat()
        except OSError:
            return False
        return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(node.major, node.minor)

    def _link_of(self, path: str) -> str | None:
        try:
            return str(self._under(path).readlink())
        except OSError:
            return None

    def _ours(self) -> Iterator[Path]:
        dev = self.root / "dev"
        for directory, pattern in ((dev, _OURS), *((dev / name, p) for name, p in _OURS_BELOW.items())):
            try:
                paths = sorted(directory.iterdir())
            except OSError:
                continue
            for path in paths:
                if pattern.fullmatch(path.name) and stat.S_ISCHR(path.lstat().st_mode):
                    yield path

    # -- changing it

    def _make(self, node: Node) -> None:
        path = self._under(node.path)
        files.make_directory(path.parent)
        access = node.access
        if self._is_right(node):
            found = path.lstat()
            if (found.st_uid, found.st_gid) != (access.uid, access.gid):
                os.chown(path, access.uid, access.gid)
            if stat.S_IMODE(found.st_mode) != access.mode:
                path.chmod(access.mode)
        else:
            # Made beside and renamed: nobody ever finds a node with the wrong device or the wrong mode.
            beside = path.with_name(f".{path.name}.nvidiad")
            beside.unlink(missing_ok=True)
            os.mknod(beside, stat.S_IFCHR, os.makedev(node.major, node.minor))
            os.chown(beside, access.uid, access.gid)
            beside.chmod(access.mode)  # mknod's mode is subject to the umask
            beside.replace(path)
        if self._link_of(node.link) != node.link_target:
            link = self._under(node.link)
            files.make_directory(link.parent)
            beside = link.with_name(f".{link.name}.nvidiad")
            beside.unlink(missing_ok=True)
            beside.symlink_to(node.link_target)
            beside.replace(link)

    def _drop_links(self, keep: set[str], *, stale_only: bool) -> None:
        """Remove links to the driver's nodes; with `stale_only` those whose node is not that device."""
        directory = self.root / "dev/char"
        try:
            names = sorted(path.name for path in directory.iterdir())
        except OSError:
            return
        for name in names:
            target = self._link_of(f"/dev/char/{name}") or ""
            if not _LINK.fullmatch(name) or not _names_ours(target) or f"/dev/char/{name}" in keep:
                continue
            if stale_only and self._device_of(target) == name:
                continue
            with contextlib.suppress(OSError):
                (directory / name).unlink()

    def _device_of(self, target: str) -> str:
        """The `major:minor` of the node that a link in /dev/char names."""
        try:
            found = (self.root / "dev/char" / target).lstat()
        except OSError:
            return ""
        return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" if stat.S_ISCHR(found.st_mode) else ""


def _names_ours(target: str) -> bool:
    directory, _, name = target.removeprefix("../").rpartition("/")
    pattern = _OURS_BELOW.get(directory) if directory else _OURS
    return target.startswith("../") and pattern is not None and pattern.fullmatch(name) is not None


def _failure(verb: str, path: str, error: OSError) -> Failure:
    return Transient(
        Code.EXPOSURE_FAILED,
        f"cannot {verb} '{path}': {error.strerror}",
        "nvidiad must run as root, with a /dev that can be written.",
    )
