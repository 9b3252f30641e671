# SPDX-License-Identifier: Apache-2.0
"""The manifest: what a tree is for and every file in it, as text, as values and as an image's labels."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, cast

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Build, Flavour

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA = 1
LABEL = "io.nvidiad."
SETUID = "bin/nvidia-modprobe"
"""The one program that NVIDIA's package installs with the set-user-ID bit."""

MAX_CHARACTERS = 16 << 20
MAX_ENTRIES = 100_000

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MODE = re.compile(r"0[0-7]{3}")
_ARCHITECTURE = re.compile(r"[0-9a-z_]{1,32}")
_OS_ID = re.compile(r"[0-9a-z][0-9a-z._-]{0,63}")
_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
# A shell reads manifests too: no quote, no backslash, nothing that a terminal or a locale takes for more.
_PATH = re.compile(r"[ !#-\[\]-~]{1,1024}")

_FIELDS = (
    *("schema", "driver", "flavour", "product", "architecture", "os"),
    *("kernel", "vermagic", "compiler", "pci", "files"),
)
_FILE_FIELDS = ("path", "type", "mode", "size", "sha256")
_LINK_FIELDS = ("path", "type", "target")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A regular file of a tree."""

    path: str
    mode: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LinkEntry:
    """A symbolic link of a tree; it never leads out of it."""

    path: str
    target: str


Entry = FileEntry | LinkEntry


@dataclass(frozen=True, slots=True)
class Manifest:
    """The identity of a build and everything that its tree consists of."""

    driver: str
    flavour: Flavour
    product: str
    architecture: str
    os_id: str
    os_version: str
    kernel: str
    vermagic: str
    compiler: str
    pci: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def build(self) -> Build:
        """The build that the tree is."""
        return Build(self.driver, self.os_version, self.kernel, self.product)

    @property
    def size(self) -> int:
        """The bytes in its files."""
        return sum(entry.size for entry in self.entries if isinstance(entry, FileEntry))

    def entry(self, path: str) -> Entry | None:
        """The entry of that path, None where there is none."""
        return next((entry for entry in self.entries if entry.path == path), None)

    def directories(self) -> frozenset[str]:
        """Every directory that the entries are in, without the tree itself."""
        return frozenset(parent for entry in self.entries for parent in _parents(entry.path))


def parse(text: str) -> Manifest:
    """Read a manifest and refuse, by name, whatever is not exactly what a tree may have."""
    if len(text) > MAX_CHARACTERS:
        _refuse(f"it has more than {MAX_CHARACTERS} characters")
    try:
        document: object = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        _refuse(f"it is not JSON: {exc}", exc)
    top = _object(document, "the document", None)
    # Said before anything else: the other fields of an unknown schema mean nothing here.
    schema = top.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        _refuse(f"schema {schema!r} is unknown, this nvidiad knows {SCHEMA}")
    top = _object(document, "the document", _FIELDS)
    os = _object(top["os"], "'os'", ("id", "version"))
    product = _string(top, "product", "the document")
    flavour = _string(top, "flavour", "the document")
    if flavour not in tuple(Flavour):
        _refuse(f"flavour '{flavour}' is neither of {', '.join(Flavour)}")
    return Manifest(
        driver=_version(top, "driver"),
        flavour=Flavour(flavour),
        product=_version(top, "product") if product else "",
        architecture=_matching(top, "architecture", _ARCHITECTURE, "an architecture"),
        os_id=_matching(os, "id", _OS_ID, "an OS id", "'os'"),
        os_version=_version(os, "version", "'os'"),
        kernel=_version(top, "kernel"),
        vermagic=_printable(top, "vermagic"),
        compiler=_printable(top, "compiler"),
        pci=_pci(top["pci"]),
        entries=_entries(top["files"]),
    )


def render(manifest: Manifest) -> str:
    """The text of a manifest: one entry a line, so that a shell can read it."""
    head = (
        f'{{"schema": {SCHEMA}, "driver": {_quote(manifest.driver)}, "flavour": {_quote(manifest.flavour)},'
        f' "product": {_quote(manifest.product)}, "architecture": {_quote(manifest.architecture)},\n'
        f' "os": {{"id": {_quote(manifest.os_id)}, "version": {_quote(manifest.os_version)}}},'
        f' "kernel": {_quote(manifest.kernel)},\n'
        f' "vermagic": {_quote(manifest.vermagic)}, "compiler": {_quote(manifest.compiler)},'
        f' "pci": {json.dumps(list(manifest.pci))},\n'
        ' "files": [\n'
    )
    return head + ",\n".join(_line(entry) for entry in manifest.entries) + "\n]}\n"


def labels(manifest: Manifest, sha256: str) -> dict[str, str]:
    """The labels of an image that brings this manifest, whose text has this digest."""
    return {
        f"{LABEL}schema": str(SCHEMA),
        f"{LABEL}driver": manifest.driver,
        f"{LABEL}flavour": str(manifest.flavour),
        f"{LABEL}product": manifest.product,
        f"{LABEL}os.id": manifest.os_id,
        f"{LABEL}os.version": manifest.os_version,
        f"{LABEL}kernel": manifest.kernel,
        f"{LABEL}vermagic": manifest.vermagic,
        f"{LABEL}manifest": sha256,
    }


def check_labels(labels: Mapping[str, str], build: Build) -> None:
    """Refuse an image that is no driver image, or that is one for something else than `build`."""
    schema = labels.get(f"{LABEL}schema")
    if schema is None:
        raise Permanent(
            Code.IMAGE_FOREIGN,
            f"the image for {build} is not a driver image: it has no label '{LABEL}schema'",
            "Check image.repository and image.tag in the configuration, and what was pushed under this tag.",
        )
    if schema != str(SCHEMA):
        _refuse(f"the image's schema '{schema}' is unknown, this nvidiad knows {SCHEMA}")
    found = Build(*(labels.get(LABEL + key, "") for key in ("driver", "os.version", "kernel", "product")))
    check_build("the image's labels", found, build)


def check_build(what: str, found: Build, wanted: Build) -> None:
    """Refuse a build that is not the wanted one, naming everything that differs."""
    pairs = (
        ("driver", found.driver, wanted.driver),
        ("OS version", found.os_version, wanted.os_version),
        ("kernel", found.kernel, wanted.kernel),
        ("product", found.product, wanted.product),
    )
    different = [f"{name} '{is_}' instead of '{should}'" for name, is_, should in pairs if is_ != should]
    if different:
        raise Permanent(
            Code.IMAGE_MISMATCH,
            f"{what} name {', '.join(different)}",
            f"Build the image for {wanted} (kernel {wanted.kernel}) again and push it under its own tag.",
        )


# ---------------------------------------------------------------------------------------------------
# Reading: each of these names what it refuses.


def _refuse(reason: str, cause: BaseException | None = None) -> NoReturn:
    raise Permanent(
        Code.MANIFEST_INVALID,
        f"the manifest is refused: {reason}",
        "Build the image again; the tree that is in force stays as it is.",
    ) from cause


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Two readers may each take another one of two equal keys.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _object(value: object, where: str, fields: Sequence[str] | None) -> dict[str, object]:
    if not isinstance(value, dict):
        _refuse(f"{where} is not an object")
    found = cast("dict[str, object]", value)
    if fields is not None:
        for name in fields:
            if name not in found:
                _refuse(f"field '{name}' of {where} is missing")
        # A new field needs a new schema number: who ignores an unknown one verifies less than he was told.
        for name in found:
            if name not in fields:
                _refuse(f"field {name!r} of {where} is unknown")
    return found


def _string(found: Mapping[str, object], name: str, where: str) -> str:
    value = found[name]
    if not isinstance(value, str):
        _refuse(f"field '{name}' of {where} is not a string")
    return value


def _version(found: Mapping[str, object], name: str, where: str = "the document") -> str:
    value = _string(found, name, where)
    if not naming.is_version(value):
        _refuse(f"field '{name}' of {where} is no version: {value!r}")
    return value


def _matching(
    found: Mapping[str, object], name: str, pattern: re.Pattern[str], what: str, where: str = "the document"
) -> str:
    value = _string(found, name, where)
    if pattern.fullmatch(value) is None:
        _refuse(f"field '{name}' of {where} is not {what}: {value!r}")
    return value


def _printable(found: Mapping[str, object], name: str) -> str:
    value = _string(found, name, "the document")
    if not value.isprintable() or len(value) > 512:
        _refuse(f"field '{name}' of the document is not a short printable text: {value[:80]!r}")
    return value


def _array(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        _refuse(f"{where} is not an array")
    return cast("list[object]", value)


def _pci(value: object) -> tuple[str, ...]:
    ids = _array(value, "'pci'")
    for each in ids:
        if not isinstance(each, str) or _PCI.fullmatch(each) is None:
            _refuse(f"'pci' holds {each!r}, which is no PCI id such as 10de:20b5")
    return tuple(cast("list[str]", ids))


def _entries(value: object) -> tuple[Entry, ...]:
    listed = _array(value, "'files'")
    if not listed:
        _refuse("'files' is empty")
    if len(listed) > MAX_ENTRIES:
        _refuse(f"'files' has more than {MAX_ENTRIES} entries")
    entries = tuple(_entry(each, number) for number, each in enumerate(listed, start=1))
    paths: set[str] = set()
    for entry in entries:
        if entry.path in paths:
            _refuse(f"path '{entry.path}' appears twice")
        paths.add(entry.path)
    for entry in entries:
        for parent in _parents(entry.path):
            if parent in paths:
                _refuse(f"path '{entry.path}' is below '{parent}', which is no directory")
    return entries


def _entry(value: object, number: int) -> Entry:
    where = f"entry {number}"
    found = _object(value, where, None)
    path = found.get("path")
    if not isinstance(path, str):
        _refuse(f"field 'path' of {where} is missing or not a string")
    _check_path(path, where)
    match found.get("type"):
        case "file":
            return _file(_object(value, f"'{path}'", _FILE_FIELDS), path)
        case "link":
            found = _object(value, f"'{path}'", _LINK_FIELDS)
            target = _string(found, "target", f"'{path}'")
            _check_target(path, target)
            return LinkEntry(path, target)
        case other:
            _refuse(f"type {other!r} of '{path}' is neither 'file' nor 'link'")


def _file(found: Mapping[str, object], path: str) -> FileEntry:
    mode = _string(found, "mode", f"'{path}'")
    allowed = _MODE.fullmatch(mode) is not None or (mode == "4755" and path == SETUID)
    if not allowed or int(mode, 8) & 0o022:
        _refuse(f"mode {mode!r} of '{path}' is not an octal mode such as 0755 that only its owner may write")
    size = found["size"]
    # bool is an int to Python.
    if type(size) is not int or not 0 <= size < 1 << 50:
        _refuse(f"size {size!r} of '{path}' is not a number of bytes")
    sha256 = _string(found, "sha256", f"'{path}'")
    if _DIGEST.fullmatch(sha256) is None:
        _refuse(f"sha256 {sha256[:80]!r} of '{path}' is not 64 lower-case hexadecimal digits")
    return FileEntry(path, int(mode, 8), size, sha256)


def _check_path(path: str, where: str) -> None:
    if _PATH.fullmatch(path) is None:
        _refuse(f"path {path[:80]!r} of {where} has characters that are not allowed, or too many")
    if path.startswith("/"):
        _refuse(f"path '{path}' of {where} is absolute")
    for component in path.split("/"):
        if component in ("", ".", "..") or len(component) > 255:
            _refuse(f"path '{path}' of {where} has a component {component[:80]!r}")
    if path.split("/")[0] == naming.MANIFEST:
        _refuse(f"path '{path}' of {where} is the manifest's own")


def _check_target(path: str, target: str) -> None:
    """A target stays in the tree: it climbs first, through real directories only, and then descends."""
    if _PATH.fullmatch(target) is None:
        _refuse(f"target {target[:80]!r} of '{path}' has characters that are not allowed, or too many")
    if target.startswith("/"):
        _refuse(f"target '{target}' of '{path}' is absolute")
    depth = path.count("/")
    descended = False
    for component in target.split("/"):
        if component == "":
            _refuse(f"target '{target}' of '{path}' has an empty component")
        elif component == "..":
            # After a descent through another link, `..` would be the parent of what that link names.
            if descended:
                _refuse(f"target '{target}' of '{path}' climbs after it descended")
            depth -= 1
            if depth < 0:
                _refuse(f"target '{target}' of '{path}' leaves the tree")
        elif component != ".":
            descended = True


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


# ---------------------------------------------------------------------------------------------------
# Writing.


def _quote(text: str) -> str:
    return json.dumps(text)


def _line(entry: Entry) -> str:
    if isinstance(entry, LinkEntry):
        return f'{{"path": {_quote(entry.path)}, "type": "link", "target": {_quote(entry.target)}}}'
    return (
        f'{{"path": {_quote(entry.path)}, "type": "file", "mode": "{entry.mode:04o}",'
        f' "size": {entry.size}, "sha256": "{entry.sha256}"}}'
    )
