# SPDX-License-Identifier: Apache-2.0
"""CDI: the specification by which container engines give GPUs to containers, made from a driver's tree."""

# Without NVIDIA's toolkit there is no program that an engine could run in a container, so there are no
# hooks: no linker cache is refreshed, no link is made. Each library is therefore mounted under the name by
# which programs look for it, in the directories in which glibc looks without a cache. LD_LIBRARY_PATH would
# do it with one mount, and would replace the one that an image sets.

from __future__ import annotations

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from nvidiad.nouns.entries import FileEntry, LinkEntry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nvidiad.nouns.entries import Entry
    from nvidiad.nouns.surroundings import Inventory

KIND = "nvidia.com/gpu"
Document = dict[str, object]

# Fedora and its kin look in the first, Debian and its kin in the second.
_DIRECTORIES = {
    "x86_64": ("/usr/lib64", "/usr/lib/x86_64-linux-gnu"),
    "aarch64": ("/usr/lib64", "/usr/lib/aarch64-linux-gnu"),
}
# What asks and shares a GPU. What loads modules, makes nodes or keeps the driver open is the host's affair.
_PROGRAMS = ("nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server")
_LIBRARY = re.compile(r"lib64/(lib[^/]+\.so\.[^/]+)")
_SONAME = re.compile(r"lib[^/]+\.so\.[0-9]+")
# What some programs open that were not linked to it.
_PLAIN = ("lib64/libcuda.so",)
_FIRMWARE = re.compile(r"lib/firmware/nvidia/[^/]+/gsp[^/]*\.bin")
_FILE = ("ro", "nosuid", "nodev", "bind")
_SOCKET = (*_FILE, "noexec")
# Links of a tree are short chains; its manifest refuses those that lead out of it.
_HOPS = 8


def specification(inventory: Inventory, entries: Sequence[Entry]) -> Document | None:
    """The whole document; None without a GPU, which no engine would take."""
    if not inventory.gpus:
        return None
    devices: list[Document] = []
    for index, gpu in enumerate(inventory.gpus):
        edits = {"deviceNodes": [{"path": f"/dev/nvidia{gpu.minor}"}]}
        devices += [{"name": name, "containerEdits": edits} for name in (str(index), gpu.uuid) if name]
    every = [{"path": f"/dev/nvidia{gpu.minor}"} for gpu in inventory.gpus]
    devices.append({"name": "all", "containerEdits": {"deviceNodes": every}})
    common: Document = {
        # NVIDIA's own container runtime then does not do it a second time.
        "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "deviceNodes": [{"path": node} for node in inventory.nodes],
        "mounts": [*_mounts(inventory, entries)],
    }
    made: Document = {
        "cdiVersion": "",
        "kind": KIND,
        "devices": devices,
        "containerEdits": {key: value for key, value in common.items() if value},
    }
    return made | {"cdiVersion": minimum_version(made)}


def text(document: Mapping[str, object]) -> str:
    """JSON, which is YAML too: the file is called as NVIDIA's own generator calls it."""
    return json.dumps(document, indent=1) + "\n"


def digest(inventory: Inventory | None) -> str:
    """Changes with whatever the specification depends on; empty where there is nothing to describe."""
    if inventory is None or not inventory.gpus:
        return ""
    return hashlib.sha256(repr(inventory).encode()).hexdigest()[:32]


def minimum_version(document: Mapping[str, object]) -> str:
    """The oldest version of CDI that has all of the fields: engines refuse what is newer than they are."""
    version = "0.3.0"
    for edits in _edits(document):
        if any("type" in mount for mount in _objects(edits.get("mounts"))):
            version = max(version, "0.4.0")
        if any("hostPath" in node for node in _objects(edits.get("deviceNodes"))):
            version = max(version, "0.5.0")
        if {"intelRdt", "additionalGids"} & edits.keys():
            version = max(version, "0.7.0")
    for device in _objects(document.get("devices")):
        if not str(device.get("name", ""))[:1].isalpha():
            version = max(version, "0.5.0")
        if "annotations" in device:
            version = max(version, "0.6.0")
    return max(version, "0.6.0") if "annotations" in document else version


# ---------------------------------------------------------------------------------------------------
# What another generator wrote

_KEYS: Mapping[str, frozenset[str]] = {
    "the specification": frozenset({"cdiVersion", "kind", "annotations", "devices", "containerEdits"}),
    "a device": frozenset({"name", "annotations", "containerEdits"}),
    "containerEdits": frozenset(
        {*("env", "deviceNodes", "mounts", "hooks"), *("additionalGids", "intelRdt", "netDevices")}
    ),
}


def read(said: str) -> Document:
    """The document that a generator printed; ValueError for one that no engine would take."""
    try:
        document = json.loads(said)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(document, dict):
        raise ValueError("it is not an object")
    _known("the specification", document)
    if document.get("kind") != KIND:
        raise ValueError(f"its kind is not '{KIND}'")
    version = document.get("cdiVersion")
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}", version):
        raise ValueError("it has no cdiVersion")
    devices = document.get("devices")
    if not isinstance(devices, list) or not devices:
        raise ValueError("it has no devices")
    names: set[str] = set()
    for device in devices:
        name = device.get("name") if isinstance(device, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?", name):
            raise ValueError("a device has no name")
        if name in names:
            raise ValueError(f"it has the device '{name}' twice")
        names.add(name)
        _known("a device", device)
    for edits in _edits(document):
        _known("containerEdits", edits)
    return document


def _known(where: str, found: Mapping[str, object]) -> None:
    if unknown := sorted(found.keys() - _KEYS[where]):
        raise ValueError(f"{where} has the unknown field {unknown[0]!r:.80}")


def hooks(document: Mapping[str, object]) -> tuple[str, ...]:
    """The programs that engines run for each container."""
    every = (hook for edits in _edits(document) for hook in _objects(edits.get("hooks")))
    return tuple(dict.fromkeys(str(hook.get("path", "")) for hook in every))


def claims(said: str) -> bool:
    """Whether a file in another generator's words, JSON or YAML, describes devices of our kind."""
    # No \s after ^: it would cross lines, from each of them anew.
    kind = rf"(?:^[ \t]*|[{{,]\s*)[\"']?kind[\"']?\s*:\s*[\"']?{re.escape(KIND)}(?:[\"',\s}}]|\Z)"
    return re.search(kind, said, re.M) is not None


# ---------------------------------------------------------------------------------------------------
# Files


def _mounts(inventory: Inventory, entries: Sequence[Entry]) -> Iterator[Document]:
    known = {entry.path: entry for entry in entries}
    for directory in _DIRECTORIES.get(inventory.architecture, _DIRECTORIES["x86_64"]):
        for name, path in sorted(_libraries(known).items()):
            yield _mount(f"{inventory.tree}/{path}", f"{directory}/{name}", _FILE)
    for program in _PROGRAMS:
        if f"bin/{program}" in known:
            yield _mount(f"{inventory.tree}/bin/{program}", f"/usr/bin/{program}", _FILE)
    for path in sorted(filter(_FIRMWARE.fullmatch, known)):
        yield _mount(f"{inventory.tree}/{path}", f"/{path}", _FILE)
    for socket in inventory.sockets:
        yield _mount(socket, socket, _SOCKET)


def _mount(source: str, target: str, options: Sequence[str]) -> Document:
    return {"hostPath": source, "containerPath": target, "options": list(options)}


def _libraries(known: Mapping[str, Entry]) -> dict[str, str]:
    """The files of the tree by the names under which programs look for them."""
    found: dict[str, str] = {}
    for path in known:
        name = path.removeprefix("lib64/")
        looked_for = _SONAME.fullmatch(name) and _LIBRARY.fullmatch(path)
        if (looked_for or path in _PLAIN) and (file := _real(path, known)):
            found[name] = file
    reached = set(found.values())
    # Those that their siblings name by the driver's version: nobody has a shorter name for them.
    for path, entry in known.items():
        if isinstance(entry, FileEntry) and _LIBRARY.fullmatch(path) and path not in reached:
            found[path.removeprefix("lib64/")] = path
    return found


def _real(path: str, known: Mapping[str, Entry]) -> str:
    """The file that a path of the tree comes to; empty where it comes to none."""
    for _ in range(_HOPS):
        entry = known.get(path)
        if not isinstance(entry, LinkEntry):
            return path if entry else ""
        path = _joined(PurePosixPath(path).parent, entry.target)
    return ""


def _joined(folder: PurePosixPath, target: str) -> str:
    parts: list[str] = []
    for part in (folder / target).parts:
        if part == "..":
            parts = parts[:-1]
        else:
            parts.append(part)
    return "/".join(parts)


# ---------------------------------------------------------------------------------------------------


def _edits(document: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    for holder in (document, *_objects(document.get("devices"))):
        edits = holder.get("containerEdits", {})
        if not isinstance(edits, dict):
            raise ValueError("containerEdits is not an object")
        yield edits


def _objects(value: object) -> list[dict[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
