# SPDX-License-Identifier: Apache-2.0
"""The manifest: what a tree is for and every file in it, as text, as values and as an image's labels."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn, cast

from nvidiad.nouns import naming
from nvidiad.nouns.entries import (
    SETUID,
    Entry,
    FileEntry,
    LinkEntry,
    array_of,
    entry_line,
    fields_of,
    parents,
    quoted,
    read_entries,
    refuse,
    text_of,
)
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Build, Flavour, Kind
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SETUID", "Entry", "FileEntry", "LinkEntry", "Manifest"]

SCHEMA = 1
LABEL = "io.nvidiad."
SIZE = f"{LABEL}size"
"""The bytes of a tree's files, as its image says it before anything is pulled."""
FILES = f"{LABEL}files"
"""How many files, links and directories a tree is."""
PCI = f"{LABEL}pci"
"""The devices that a driver serves; those of NVIDIA without the vendor's id."""
LATER = frozenset({SIZE, FILES, PCI})
"""Labels that came later than the others: an image without one only says less."""
MAX_CHARACTERS = 16 << 20

_ARCHITECTURE = re.compile(r"[0-9a-z_]{1,32}")
_OS_ID = re.compile(r"[0-9a-z][0-9a-z._-]{0,63}")
_NVIDIA = "10de:"
_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
# A driver's libraries and firmware have its version in their names. Some libraries in NVIDIA's package have
# versions of their own (libnvidia-egl-wayland.so.1.1.11), which do not look like a driver's.
_NAMED = re.compile(
    rf"lib64/(?:.+/)?lib[^/]+\.so\.({naming.BRANCHED.pattern})|lib/firmware/nvidia/({naming.BRANCHED.pattern})/.+"
)
_FIELDS = (
    *("schema", "driver", "flavour", "product", "architecture", "os"),
    *("kernel", "vermagic", "compiler", "pci", "files"),
)
_CUDA_FIELDS = ("schema", "kind", "version", "minimum-driver", "architecture", "files")


class Manifest(Value):
    """The identity of a build and everything that its tree consists of; `cuda` makes one of CUDA."""

    driver: str
    flavour: Flavour | None
    product: str
    architecture: str
    os_id: str
    os_version: str
    kernel: str
    vermagic: str
    compiler: str
    pci: tuple[str, ...]
    entries: tuple[Entry, ...]
    kind: Kind = Kind.DRIVER
    minimum_driver: str = ""
    """The oldest driver that a CUDA works with; empty for a driver."""

    @property
    def build(self) -> Build:
        """The build that the tree is."""
        return Build(self.driver, self.os_version, self.kernel, self.product, self.kind)

    @property
    def size(self) -> int:
        """The bytes in its files."""
        return sum(entry.size for entry in self.entries if isinstance(entry, FileEntry))

    @property
    def count(self) -> int:
        """The files, links and directories that it is, with its own directory and the manifest."""
        return len(self.entries) + len(self.directories()) + 2

    @property
    def strays(self) -> tuple[str, ...]:
        """Libraries and firmware that are named after another driver version than its own."""
        named = ((entry.path, _NAMED.fullmatch(entry.path)) for entry in self.entries)
        return tuple(path for path, match in named if match and (match[1] or match[2]) != self.driver)

    def entry(self, path: str) -> Entry | None:
        """The entry of that path, None where there is none."""
        return next((entry for entry in self.entries if entry.path == path), None)

    def directories(self) -> frozenset[str]:
        """Every directory that the entries are in, without the tree itself."""
        return frozenset(parent for entry in self.entries for parent in parents(entry.path))


def cuda(version: str, minimum_driver: str, architecture: str, entries: tuple[Entry, ...]) -> Manifest:
    """The manifest of a CUDA tree, which fits every OS version, kernel and GPU, and no older driver."""
    nothing = ("", "", "", "", "")
    return Manifest(version, None, "", architecture, *nothing, (), entries, Kind.CUDA, minimum_driver)


def parse(text: str) -> Manifest:
    """Read a manifest and refuse, by name, whatever is not exactly what a tree may have."""
    if len(text) > MAX_CHARACTERS:
        refuse(f"it has more than {MAX_CHARACTERS} characters")
    try:
        document: object = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        refuse(f"it is not JSON: {exc}", exc)
    top = fields_of(document, "the document", None)
    # Said before anything else: the other fields of an unknown schema mean nothing here.
    schema = top.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        refuse(f"schema {schema!r} is unknown, this nvidiad knows {SCHEMA}")
    if "kind" in top:
        return _parse_cuda(fields_of(document, "the document", _CUDA_FIELDS))
    top = fields_of(document, "the document", _FIELDS)
    os = fields_of(top["os"], "'os'", ("id", "version"))
    product = text_of(top, "product", "the document")
    flavour = text_of(top, "flavour", "the document")
    if flavour not in tuple(Flavour):
        refuse(f"flavour '{flavour}' is neither of {', '.join(Flavour)}")
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
        entries=read_entries(top["files"]),
    )


def _parse_cuda(top: Mapping[str, object]) -> Manifest:
    if (kind := text_of(top, "kind", "the document")) != Kind.CUDA:
        refuse(f"kind {kind[:80]!r} is unknown, this nvidiad knows '{Kind.CUDA}' and, without one, drivers")
    version = _version(top, "version")
    if version == naming.CURRENT:
        refuse(f"version '{version}' is the name of the link to the tree in force")
    minimum = _matching(top, "minimum-driver", naming.DRIVER, "a driver version")
    architecture = _matching(top, "architecture", _ARCHITECTURE, "an architecture")
    return cuda(version, minimum, architecture, read_entries(top["files"]))


def render(manifest: Manifest) -> str:
    """The text of a manifest: one entry a line, so that a shell can read it."""
    head = _cuda_head(manifest) if manifest.kind is Kind.CUDA else _driver_head(manifest)
    return head + ' "files": [\n' + ",\n".join(entry_line(entry) for entry in manifest.entries) + "\n]}\n"


def _cuda_head(manifest: Manifest) -> str:
    return (
        f'{{"schema": {SCHEMA}, "kind": "{manifest.kind}", "version": {quoted(manifest.driver)},'
        f' "minimum-driver": {quoted(manifest.minimum_driver)},'
        f' "architecture": {quoted(manifest.architecture)},\n'
    )


def _driver_head(manifest: Manifest) -> str:
    return (
        f'{{"schema": {SCHEMA}, "driver": {quoted(manifest.driver)},'
        f' "flavour": {quoted(manifest.flavour or "")},'
        f' "product": {quoted(manifest.product)}, "architecture": {quoted(manifest.architecture)},\n'
        f' "os": {{"id": {quoted(manifest.os_id)}, "version": {quoted(manifest.os_version)}}},'
        f' "kernel": {quoted(manifest.kernel)},\n'
        f' "vermagic": {quoted(manifest.vermagic)}, "compiler": {quoted(manifest.compiler)},'
        f' "pci": {json.dumps(list(manifest.pci))},\n'
    )


def labels(manifest: Manifest, sha256: str) -> dict[str, str]:
    """The labels of an image that brings this manifest, whose text has this digest."""
    if manifest.kind is Kind.CUDA:
        return {
            f"{LABEL}schema": str(SCHEMA),
            f"{LABEL}kind": str(manifest.kind),
            f"{LABEL}version": manifest.driver,
            f"{LABEL}minimum-driver": manifest.minimum_driver,
            f"{LABEL}manifest": sha256,
            SIZE: str(manifest.size),
            FILES: str(manifest.count),
        }
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
        SIZE: str(manifest.size),
        FILES: str(manifest.count),
        PCI: " ".join(device.removeprefix(_NVIDIA) for device in manifest.pci),
    }


def labelled(labels: Mapping[str, str]) -> Build:
    """The build that an image's labels name; one without a kind is a driver's."""
    if labels.get(f"{LABEL}kind") == Kind.CUDA:
        return Build(labels.get(f"{LABEL}version", ""), "", "", kind=Kind.CUDA)
    driver, release, kernel, product = (
        labels.get(LABEL + key, "") for key in ("driver", "os.version", "kernel", "product")
    )
    return Build(driver, release, kernel, product)


def devices(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The devices that an image says its driver serves; none where it does not say, or says nonsense."""
    words = labels.get(PCI, "").lower().split()
    found = tuple(each if ":" in each else f"{_NVIDIA}{each}" for each in words)
    # Half a list would deny the other half of the devices.
    return found if all(map(_PCI.fullmatch, found)) else ()


def check_labels(labels: Mapping[str, str], build: Build) -> None:
    """Refuse an image that is none of nvidiad's, or that is one for something else than `build`."""
    schema = labels.get(f"{LABEL}schema")
    if schema is None:
        raise Permanent(
            Code.IMAGE_FOREIGN,
            f"the image for {build} is not a {build.kind} image: it has no label '{LABEL}schema'",
            "Check repository and tag in the configuration, and what was pushed under this tag.",
        )
    if schema != str(SCHEMA):
        refuse(f"the image's schema '{schema}' is unknown, this nvidiad knows {SCHEMA}")
    check_build("the image's labels", labelled(labels), build)


def check_driver(labels: Mapping[str, str], build: Build, driver: str) -> None:
    """Refuse an image of a CUDA that this driver is too old for; one that does not say is taken."""
    minimum = labels.get(f"{LABEL}minimum-driver", "")
    if build.kind is Kind.CUDA and driver and minimum and naming.is_older(driver, minimum):
        raise too_old(build, minimum, driver)


def too_old(build: Build, minimum: str, driver: str) -> Permanent:
    """That a driver is older than what a CUDA needs."""
    return Permanent(
        Code.DRIVER_TOO_OLD,
        f"{build} needs driver {minimum} or a newer one, {driver} is wanted",
        f"Set 'driver.version' to {minimum} or newer, or 'cuda.version' to an older one.",
    )


def check_build(what: str, found: Build, wanted: Build) -> None:
    """Refuse a build that is not the wanted one, naming everything that differs."""
    pairs = (
        ("kind", found.kind, wanted.kind),
        ("driver" if wanted.kind is Kind.DRIVER else "version", found.driver, wanted.driver),
        ("OS version", found.os_version, wanted.os_version),
        ("kernel", found.kernel, wanted.kernel),
        ("product", found.product, wanted.product),
    )
    different = [f"{name} '{is_}' instead of '{should}'" for name, is_, should in pairs if is_ != should]
    if different:
        kernel = f" (kernel {wanted.kernel})" if wanted.kernel else ""
        raise Permanent(
            Code.IMAGE_MISMATCH,
            f"{what} name {', '.join(different)}",
            f"Build the image for {wanted}{kernel} again and push it under its own tag.",
        )


# ---------------------------------------------------------------------------------------------------
# Reading: each of these names what it refuses.


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Two readers may each take another one of two equal keys.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _version(found: Mapping[str, object], name: str, where: str = "the document") -> str:
    value = text_of(found, name, where)
    if not naming.is_version(value):
        refuse(f"field '{name}' of {where} is no version: {value!r}")
    return value


def _matching(
    found: Mapping[str, object], name: str, pattern: re.Pattern[str], what: str, where: str = "the document"
) -> str:
    value = text_of(found, name, where)
    if pattern.fullmatch(value) is None:
        refuse(f"field '{name}' of {where} is not {what}: {value!r}")
    return value


def _printable(found: Mapping[str, object], name: str) -> str:
    value = text_of(found, name, "the document")
    if not value.isprintable() or len(value) > 512:
        refuse(f"field '{name}' of the document is not a short printable text: {value[:80]!r}")
    return value


def _pci(value: object) -> tuple[str, ...]:
    ids = array_of(value, "'pci'")
    for each in ids:
        if not isinstance(each, str) or _PCI.fullmatch(each) is None:
            refuse(f"'pci' holds {each!r}, which is no PCI id such as 10de:20b5")
    return tuple(cast("list[str]", ids))
