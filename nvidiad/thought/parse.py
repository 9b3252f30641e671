# SPDX-License-Identifier: Apache-2.0
"""Text and bytes of the kernel, the OS and the bus, read into values; nothing here opens a file.

Unless a function says otherwise it raises nothing: what it does not understand it leaves out.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.model import Flavour, Release, UpdateStatus
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nvidiad.nouns.model import ModuleFile

# ---------------------------------------------------------------------------------------------------
# The operating system

_ASSIGNMENT = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)=(.*)")


def _unquote(text: str) -> str | None:
    """The value of a shell assignment, None where the shell would not take it as one word."""
    out: list[str] = []
    quote = ""
    rest = iter(text)
    for char in rest:
        if quote:
            if char == quote:
                quote = ""
            elif char == "\\" and quote == '"':
                follower = next(rest, None)
                if follower is None:
                    return None
                out.append(follower if follower in '"\\$`' else "\\" + follower)
            else:
                out.append(char)
        elif char in "'\"":
            quote = char
        elif char == "\\":
            follower = next(rest, None)
            if follower is None:
                return None
            out.append(follower)
        elif char.isspace():
            return None
        else:
            out.append(char)
    return None if quote else "".join(out)


def assignments(text: str) -> dict[str, str]:
    """The variables of an os-release file (os-release(5)); the last assignment wins, as in a shell."""
    values: dict[str, str] = {}
    for line in text.split("\n"):
        match = _ASSIGNMENT.fullmatch(line)
        if match and (value := _unquote(match[2].rstrip())) is not None:
            values[match[1]] = value
    return values


def os_release(text: str) -> Release:
    """The OS version; it is empty where the file names none that may stand in a path."""
    values = assignments(text)
    version = ""
    for candidate in (values.get("VERSION_ID", ""), values.get("VERSION", "").partition(" ")[0]):
        if naming.is_version(candidate):
            version = candidate
            break
    name = values.get("PRETTY_NAME") or values.get("NAME") or ""
    return Release(id=values.get("ID") or "linux", version=version, name=name)


_BRACKETED = re.compile(r"\[([a-z]+)\]")


def lockdown(text: str) -> str:
    """The level in force in /sys/kernel/security/lockdown; without one the kernel has no lockdown."""
    match = _BRACKETED.search(text)
    return match[1] if match else "none"


def secure_boot(variable: bytes) -> bool | None:
    """The EFI variable SecureBoot as efivarfs gives it: four bytes of attributes, then one that counts."""
    return variable[4] == 1 if len(variable) == 5 else None


# ---------------------------------------------------------------------------------------------------
# The mount table


class Mount(Value):
    """A line of /proc/self/mountinfo; `options` are those of the file system, not of the mount."""

    point: str
    root: str
    type: str
    source: str
    options: tuple[str, ...]


class _Node(Value):
    number: str
    parent: str
    mount: Mount


_OCTAL = re.compile(r"\\([0-3][0-7][0-7])")


def _decode(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _option(raw: str) -> str:
    # Linux 6.5 and 6.6 print a colon in a lower directory as \072, all others as it was given to
    # mount: `\:`. Only the latter survives decoding, so bring both to that form.
    return _decode(raw.replace("\\072", "\\134:") if raw.startswith("lowerdir=") else raw)


def _node(line: str) -> _Node | None:
    left, separator, right = line.partition(" - ")
    before, after = left.split(" "), right.split(" ")
    if not separator or len(before) < 6 or len(after) < 3:
        return None
    # Commas in an option's value are escaped, so the list is split before it is decoded.
    options = tuple(_option(raw) for raw in after[2].split(",") if raw)
    mount = Mount(_decode(before[4]), _decode(before[3]), after[0], _decode(after[1]), options)
    return _Node(before[0], before[1], mount)


def _ancestors(point: str) -> Iterable[str]:
    """The directories above a mount point, `/` last."""
    while point not in ("", "/"):
        point = point.rpartition("/")[0] or "/"
        yield point


def mountinfo(text: str) -> tuple[Mount, ...]:
    """The mounts that a path can reach, each after the one it is mounted on.

    A mount below a directory on which something was mounted later is still in the table but no path
    leads to it: a system extension merged over /usr hides an overlay on /usr/lib64 in this way.
    """
    nodes = [node for node in map(_node, text.split("\n")) if node]
    by_number = {node.number: node for node in nodes}
    taken = {(node.parent, node.mount.point) for node in nodes}
    # How many mounts deep a mount is; -1 where no path leads to it.
    reach: dict[str, int] = {}

    for node in nodes:
        chain: dict[str, _Node] = {}
        here: _Node | None = node
        while here is not None and here.number not in reach and here.number not in chain:
            chain[here.number] = here
            here = by_number.get(here.parent)
        depth = reach.get(here.number, 0) if here else 0
        for link in reversed(chain.values()):
            hidden = any((link.parent, above) in taken for above in _ancestors(link.mount.point))
            depth = -1 if depth < 0 or hidden else depth + 1
            reach[link.number] = depth
    reachable = [node for node in nodes if reach[node.number] >= 0]
    reachable.sort(key=lambda node: reach[node.number])
    return tuple(node.mount for node in reachable)


def top(mounts: Iterable[Mount], point: str) -> Mount | None:
    """The mount that is seen at `point`: of several the last."""
    found = None
    for mount in mounts:
        if mount.point == point:
            found = mount
    return found


_SEPARATOR = re.compile(r"\\(.)|(:)", re.DOTALL)


def _split_colons(text: str) -> list[str]:
    parts, start = [""], 0
    for match in _SEPARATOR.finditer(text):
        parts[-1] += text[start : match.start()] + (match[1] or "")
        start = match.end()
        if match[2]:
            parts.append("")
    parts[-1] += text[start:]
    return parts


def lower_directories(mount: Mount) -> tuple[str, ...]:
    """The lower directories of an overlay, topmost first; none for any other file system."""
    if mount.type != "overlay":
        return ()
    directories: list[str] = []
    for option in mount.options:
        key, _, value = option.partition("=")
        if key == "lowerdir":
            directories += _split_colons(value)
        elif key == "lowerdir+":
            directories.append(value)
    return tuple(directory for directory in directories if directory)


# ---------------------------------------------------------------------------------------------------
# Kernel modules


def modinfo(section: bytes) -> dict[str, tuple[str, ...]]:
    """The fields of a .modinfo section, in order; a field such as `firmware` occurs more than once."""
    fields: dict[str, list[str]] = {}
    for entry in section.split(b"\0"):
        key, separator, value = entry.decode("utf-8", "replace").partition("=")
        if separator and key:
            fields.setdefault(key, []).append(value)
    return {key: tuple(found) for key, found in fields.items()}


_SECTIONS_MAXIMUM = 1 << 17
_SECTION_BYTES_MAXIMUM = 1 << 24
_FILE_BYTES_MAXIMUM = 1 << 40
_SHT_NOBITS = 8


def _exactly(read: Callable[[int, int], bytes], offset: int, size: int) -> bytes:
    data = read(offset, size) if offset < _FILE_BYTES_MAXIMUM else b""
    if len(data) != size:
        raise ValueError("the ELF file ends early")
    return data


def elf_section(read: Callable[[int, int], bytes], name: str) -> bytes | None:
    """A section of a little-endian ELF file, None where there is none of this name.

    `read(offset, size)` gives that many bytes of the file, fewer at its end. It is never asked for
    more than 16 MiB. Raises ValueError for anything that is not a well-formed ELF file.
    """
    ident = _exactly(read, 0, 16)
    if ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] != 1:
        raise ValueError("not a little-endian ELF file")
    if ident[4] == 2:
        header, entry = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ")
    else:
        header, entry = struct.Struct("<16sHHIIIIIHHHHHH"), struct.Struct("<IIIIIIIIII")
    fields = header.unpack(_exactly(read, 0, header.size))
    table, size, count, names = fields[6], fields[11], fields[12], fields[13]
    if table == 0:
        return None
    if size != entry.size:
        raise ValueError(f"the ELF file has section headers of {size} bytes, not {entry.size}")
    if count == 0 or names == 0xFFFF:
        # More sections than the header can count: the first section header says how many.
        first = entry.unpack(_exactly(read, table, size))
        count, names = count or first[5], first[6] if names == 0xFFFF else names
    if not 0 < count <= _SECTIONS_MAXIMUM or names >= count:
        raise ValueError("the ELF file's section table is out of bounds")
    headers = list(entry.iter_unpack(_exactly(read, table, count * size)))

    def content(header: tuple[int, ...]) -> bytes:
        if header[1] == _SHT_NOBITS or header[5] > _SECTION_BYTES_MAXIMUM:
            raise ValueError("the ELF file has a section without bytes or too large")
        return _exactly(read, header[4], header[5])

    wanted = name.encode() + b"\0"
    strings = content(headers[names])
    for section in headers:
        if strings[section[0] : section[0] + len(wanted)] == wanted:
            return content(section)
    return None


def lists_module(text: str, name: str) -> bool:
    """Whether modules.dep or modules.builtin has a module, whose file may have dashes in its name."""
    plain = "\n" + text.replace("-", "_")
    return any(f"{before}{naming.module_name(name)}.ko" in plain for before in "/\n")


def load_order(modules: Iterable[ModuleFile], wanted: Sequence[str]) -> tuple[ModuleFile, ...]:
    """The wanted modules in their order, each after those of the same tree that it depends on.

    Names that the tree does not have are left out: the host may have them. Raises ValueError for a
    cycle of dependencies.
    """
    known = {naming.module_name(module.name): module for module in modules}
    order: dict[str, ModuleFile] = {}
    open_names: list[str] = []

    def visit(name: str) -> None:
        module = known.get(name)
        if module is None or name in order:
            return
        if name in open_names:
            raise ValueError(f"modules depend on each other: {' -> '.join([*open_names, name])}")
        open_names.append(name)
        for dependency in module.depends:
            visit(naming.module_name(dependency))
        open_names.pop()
        order[name] = module

    for name in wanted:
        visit(naming.module_name(name))
    return tuple(order.values())


# ---------------------------------------------------------------------------------------------------
# The driver, once it is loaded

_DEVICE = re.compile(r"\s*([0-9]{1,9}) (.*)", re.ASCII)


def devices(text: str) -> dict[str, int]:
    """The majors of the character devices in /proc/devices, by their exact names."""
    majors: dict[str, int] = {}
    character = False
    for line in text.split("\n"):
        if line.endswith("devices:"):
            character = line.startswith("Character")
        elif character and (match := _DEVICE.fullmatch(line)):
            majors.setdefault(match[2], int(match[1]))
    return majors


_NVRM = re.compile(
    r"^NVRM version:.*? (?:(Open) )?Kernel Module(?: for \S+)? +(\d{1,9}\.\d{1,9}(?:\.\d{1,9})?)(?: |$)",
    re.ASCII | re.MULTILINE,
)


def driver_version(text: str) -> tuple[str, Flavour] | None:
    """The version and the flavour of the loaded driver, from /proc/driver/nvidia/version."""
    match = _NVRM.search(text)
    if match is None:
        return None
    return match[2], Flavour.OPEN if match[1] else Flavour.PROPRIETARY


_MINOR = re.compile(r"^Device Minor:[ \t]*([0-9]{1,7})[ \t]*$", re.ASCII | re.MULTILINE)


def gpu_minor(text: str) -> int | None:
    """The minor of a GPU's device node, from /proc/driver/nvidia/gpus/ADDRESS/information."""
    match = _MINOR.search(text)
    return int(match[1]) if match else None


# ---------------------------------------------------------------------------------------------------
# The bus


def update_status(fields: Sequence[object]) -> UpdateStatus:
    """GetStatus of update_engine: (last check, progress, operation, version, size); else ValueError.

    A version of nothing but zeros, or none that may stand in a path, means that it knows none.
    """
    if len(fields) != 5:
        raise ValueError(f"update_engine's status has {len(fields)} fields, not 5")
    _, progress, operation, version, _ = (
        field.decode("utf-8", "replace") if isinstance(field, bytes) else field for field in fields
    )
    if not (isinstance(progress, int | float) and isinstance(operation, str) and isinstance(version, str)):
        raise ValueError("update_engine's status is not of the type (x, d, s, s, x)")
    known = version if naming.is_version(version) and version.strip("0.") else ""
    # `not >` is also true of NaN, which would not survive JSON
    return UpdateStatus(operation, known, 0.0 if not progress > 0 else float(min(progress, 1.0)))
