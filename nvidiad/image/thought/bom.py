# SPDX-License-Identifier: Apache-2.0
"""Bills of materials: of what an image consists and what made it, as CycloneDX 1.6 has it.

The same inputs give the same text: no clock and no chance is in it.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

from nvidiad import __version__
from nvidiad.image.nouns.model import SourceKind
from nvidiad.nouns.entries import FileEntry
from nvidiad.nouns.model import Flavour
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nvidiad.image.nouns.model import DriverSource
    from nvidiad.nouns.manifest import Manifest

Component = dict[str, object]
MEDIA_TYPE = "application/vnd.cyclonedx+json"
_VERSION = "1.6"
_PROPRIETARY = {"license": {"name": "NVIDIA Driver License Agreement"}}
_OPEN = {"expression": "MIT OR GPL-2.0-only"}
_MODULES = "lib/modules/"
# What is needed to make something and is not in it.
_EXCLUDED = "excluded"


class Made(Value):
    """With what an image was made, by names and digests of a container engine."""

    developer: str
    developer_id: str
    base: str
    base_id: str = ""
    """Empty where the engine has it under no name."""


def driver_image(reference: str, manifest: Manifest, digest: str, source: DriverSource, made: Made) -> str:
    """The bill of a driver's image: driver, modules, every file, and what it was built from and with.

    `digest` is the sha256 of the manifest's text. The image's own is not in it: a registry ties the two.
    """
    repository, _, tag = reference.rpartition(":")
    driver: Component = {
        "type": "device-driver",
        "bom-ref": "driver",
        "supplier": {"name": "NVIDIA Corporation"},
        "name": "nvidia-driver",
        "version": manifest.driver,
        "licenses": [_PROPRIETARY],
        "properties": _properties(
            flavour=str(manifest.flavour), product=manifest.product, pci=" ".join(manifest.pci)
        ),
    }
    modules: Component = {
        "type": "device-driver",
        "bom-ref": "modules",
        "name": f"nvidia-{manifest.flavour}-kernel-modules",
        "version": manifest.driver,
        "licenses": [_OPEN if manifest.flavour is Flavour.OPEN else _PROPRIETARY],
        "properties": _properties(kernel=manifest.kernel, vermagic=manifest.vermagic),
    }
    system: Component = {
        "type": "operating-system",
        "bom-ref": "os",
        "name": manifest.os_id,
        "version": manifest.os_version,
        "scope": _EXCLUDED,
        "properties": _properties(kernel=manifest.kernel, architecture=manifest.architecture),
    }
    compiler: Component = {
        "type": "application",
        "bom-ref": "compiler",
        "name": "compiler",
        "version": manifest.compiler,
        "scope": _EXCLUDED,
    }
    image: Component = {
        "type": "container",
        "bom-ref": "image",
        "name": repository.rpartition("/")[2],
        "version": tag,
        "properties": _properties(manifest=digest, architecture=manifest.architecture),
    }
    files = list(_files(manifest))
    inside = [str(file["bom-ref"]) for file in files]
    built = [ref for ref in inside if ref.startswith(f"file:{_MODULES}")]
    others = [ref for ref in inside if ref not in built]
    components = [
        driver,
        modules,
        *files,
        _container("base", made.base, made.base_id),
        _container("developer", made.developer, made.developer_id, scope=_EXCLUDED),
        system,
        compiler,
        _source(source),
    ]
    depends = {"image": ["base", "driver"], "driver": ["modules", *others], "modules": built}
    return render(image, components, depends)


def render(
    subject: Component, components: Sequence[Component], depends: Mapping[str, Sequence[str]], when: str = ""
) -> str:
    """The whole document; its serial number follows from what it says, `when` is RFC 3339's or nothing."""
    tool = {"type": "application", "name": "nvidiad", "version": __version__}
    said: dict[str, object] = {
        "bomFormat": "CycloneDX",
        "specVersion": _VERSION,
        "version": 1,
        "metadata": {
            **({"timestamp": when} if when else {}),
            "tools": {"components": [tool]},
            "component": subject,
        },
        "components": list(components),
        "dependencies": [{"ref": ref, "dependsOn": list(on)} for ref, on in depends.items()],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(said, sort_keys=True))
    return json.dumps({**said, "serialNumber": serial.urn}, indent=1, sort_keys=True) + "\n"


def _files(manifest: Manifest) -> Iterator[Component]:
    for entry in manifest.entries:
        if isinstance(entry, FileEntry):
            yield {
                "type": "file",
                "bom-ref": f"file:{entry.path}",
                "name": entry.path,
                "hashes": [_hash(entry.sha256)],
            }


def _container(ref: str, name: str, identity: str, scope: str = "required") -> Component:
    said = {"type": "container", "bom-ref": ref, "name": name, "scope": scope}
    return {**said, **({"properties": _properties(id=identity)} if identity else {})}


def _source(source: DriverSource) -> Component:
    """The package by its file's name: where it was fetched from may be nobody's business."""
    debian = source.kind is SourceKind.DEBIAN
    name = f"Debian's packages of '{source.location}'" if debian else source.location.rpartition("/")[2]
    said: Component = {"type": "file", "bom-ref": "source", "name": name, "version": source.version}
    said |= {"scope": _EXCLUDED, "properties": _properties(kind=str(source.kind))}
    return said | ({"hashes": [_hash(source.sha256)]} if source.sha256 else {})


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}


def _properties(**said: str) -> list[dict[str, str]]:
    return [{"name": f"io.nvidiad:{key}", "value": value} for key, value in said.items() if value]
