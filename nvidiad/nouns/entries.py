# SPDX-License-Identifier: Apache-2.0
"""Entries: the files and links of a tree, what each of them may be, and how a refusal is worded."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn, cast

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SETUID = "bin/nvidia-modprobe"
"""The one program that NVIDIA's package installs with the set-user-ID bit."""

MAX_ENTRIES = 100_000
MAX_DEPTH = 32
"""Directories around a file: each has a path, and those of a manifest of deep ones would fill any memory."""
MAX_LENGTH = 1024
"""Characters of a path."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MODE = re.compile(r"0[0-7]{3}")
# A shell reads manifests too: no quote, no backslash, nothing that a terminal or a locale takes for more.
_PATH = re.compile(rf"[ !#-\[\]-~]{{1,{MAX_LENGTH}}}")

_FILE_FIELDS = ("path", "type", "mode", "size", "sha256")
_LINK_FIELDS = ("path", "type", "target")


class FileEntry(Value):
    """A regular file of a tree."""

    path: str
    mode: int
    size: int
    sha256: str


class LinkEntry(Value):
    """A symbolic link of a tree; it never leads out of it."""

    path: str
    target: str


Entry = FileEntry | LinkEntry


# ---------------------------------------------------------------------------------------------------
# Reading: each of these names what it refuses.


def refuse(reason: str, cause: BaseException | None = None) -> NoReturn:
    """Refuse the whole manifest."""
    raise Permanent(
        Code.MANIFEST_INVALID,
        f"the manifest is refused: {reason}",
        "Build the image again; the tree that is in force stays as it is.",
    ) from cause


def fields_of(value: object, where: str, fields: Sequence[str] | None) -> dict[str, object]:
    """An object with exactly these fields, or with any."""
    if not isinstance(value, dict):
        refuse(f"{where} is not an object")
    found = cast("dict[str, object]", value)
    if fields is not None:
        for name in fields:
            if name not in found:
                refuse(f"field '{name}' of {where} is missing")
        # A new field needs a new schema number: who ignores an unknown one verifies less than he was told.
        for name in found:
            if name not in fields:
                refuse(f"field {name!r} of {where} is unknown")
    return found


def text_of(found: Mapping[str, object], name: str, where: str) -> str:
    """A field that is a string."""
    value = found[name]
    if not isinstance(value, str):
        refuse(f"field '{name}' of {where} is not a string")
    return value


def array_of(value: object, where: str) -> list[object]:
    """An array of anything."""
    if not isinstance(value, list):
        refuse(f"{where} is not an array")
    return cast("list[object]", value)


def read_entries(value: object) -> tuple[Entry, ...]:
    """What `files` lists, where no entry is in the way of another."""
    listed = array_of(value, "'files'")
    if not listed:
        refuse("'files' is empty")
    if len(listed) > MAX_ENTRIES:
        refuse(f"'files' has more than {MAX_ENTRIES} entries")
    entries = tuple(_entry(each, number) for number, each in enumerate(listed, start=1))
    paths: set[str] = set()
    for entry in entries:
        if entry.path in paths:
            refuse(f"path '{entry.path}' appears twice")
        paths.add(entry.path)
    for entry in entries:
        for parent in parents(entry.path):
            if parent in paths:
                refuse(f"path '{entry.path}' is below '{parent}', which is no directory")
    return entries


def _entry(value: object, number: int) -> Entry:
    where = f"entry {number}"
    found = fields_of(value, where, None)
    path = found.get("path")
    if not isinstance(path, str):
        refuse(f"field 'path' of {where} is missing or not a string")
    _check_path(path, where)
    match found.get("type"):
        case "file":
            return _file(fields_of(value, f"'{path}'", _FILE_FIELDS), path)
        case "link":
            found = fields_of(value, f"'{path}'", _LINK_FIELDS)
            target = text_of(found, "target", f"'{path}'")
            _check_target(path, target)
            return LinkEntry(path, target)
        case other:
            refuse(f"type {other!r} of '{path}' is neither 'file' nor 'link'")


def _file(found: Mapping[str, object], path: str) -> FileEntry:
    mode = text_of(found, "mode", f"'{path}'")
    allowed = _MODE.fullmatch(mode) is not None or (mode == "4755" and path == SETUID)
    if not allowed or int(mode, 8) & 0o022:
        refuse(f"mode {mode!r} of '{path}' is not an octal mode such as 0755 that only its owner may write")
    size = found["size"]
    # bool is an int to Python.
    if type(size) is not int or not 0 <= size < 1 << 50:
        refuse(f"size {size!r} of '{path}' is not a number of bytes")
    sha256 = text_of(found, "sha256", f"'{path}'")
    if _DIGEST.fullmatch(sha256) is None:
        refuse(f"sha256 {sha256[:80]!r} of '{path}' is not 64 lower-case hexadecimal digits")
    return FileEntry(path, int(mode, 8), size, sha256)


def _check_path(path: str, where: str) -> None:
    if _PATH.fullmatch(path) is None:
        refuse(f"path {path[:80]!r} of {where} has characters that are not allowed, or too many")
    if path.startswith("/"):
        refuse(f"path '{path}' of {where} is absolute")
    for component in path.split("/"):
        if component in ("", ".", "..") or len(component) > 255:
            refuse(f"path '{path}' of {where} has a component {component[:80]!r}")
    if path.count("/") > MAX_DEPTH:
        refuse(f"path '{path[:80]}' of {where} is deeper than {MAX_DEPTH} directories")
    if path.split("/")[0] == naming.MANIFEST:
        refuse(f"path '{path}' of {where} is the manifest's own")


def _check_target(path: str, target: str) -> None:
    """A target stays in the tree: it climbs first, through real directories only, and then descends."""
    if _PATH.fullmatch(target) is None:
        refuse(f"target {target[:80]!r} of '{path}' has characters that are not allowed, or too many")
    if target.startswith("/"):
        refuse(f"target '{target}' of '{path}' is absolute")
    depth = path.count("/")
    descended = False
    for component in target.split("/"):
        if component == "":
            refuse(f"target '{target}' of '{path}' has an empty component")
        elif component == "..":
            # After a descent through another link, `..` would be the parent of what that link names.
            if descended:
                refuse(f"target '{target}' of '{path}' climbs after it descended")
            depth -= 1
            if depth < 0:
                refuse(f"target '{target}' of '{path}' leaves the tree")
        elif component != ".":
            descended = True


def parents(path: str) -> list[str]:
    """The directories that a path goes through."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


# ---------------------------------------------------------------------------------------------------
# Writing.


def quoted(text: str) -> str:
    """A string as JSON has it."""
    return json.dumps(text)


def entry_line(entry: Entry) -> str:
    """An entry as a line of a manifest."""
    if isinstance(entry, LinkEntry):
        return f'{{"path": {quoted(entry.path)}, "type": "link", "target": {quoted(entry.target)}}}'
    return (
        f'{{"path": {quoted(entry.path)}, "type": "file", "mode": "{entry.mode:04o}",'
        f' "size": {entry.size}, "sha256": "{entry.sha256}"}}'
    )
