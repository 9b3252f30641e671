# SPDX-License-Identifier: Apache-2.0
"""Upload: an image of a container engine goes into a registry, by its digest and without a tag.

An engine pushes by tag: then hosts may pull what is not signed yet. Layers are compressed here, so that the
same layer has the same digest whichever engine built it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Protocol

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Progress
from nvidiad.thought import distribution
from nvidiad.thought.distribution import Descriptor
from nvidiad.world import files

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvidiad.thought.distribution import Document

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_LEVEL = 6
_PIECE = 1 << 20
_GZIP = b"\x1f\x8b"


class Registry(Protocol):
    """The repository that gets the image: `nvidiad.world.repository.Repository`."""

    def put_blob(self, data: bytes, media_type: str = ...) -> Descriptor: ...
    def put_file(self, file: BinaryIO, blob: Descriptor, tell: Callable[[Progress], None]) -> None: ...
    def put_manifest(self, document: Document, reference: str = ...) -> str: ...


def upload(
    save: Callable[[str, Path], None],
    image: str,
    registry: Registry,
    temporary: Path,
    tell: Callable[[Progress], None],
) -> str:
    """Put an image, which `save` writes as `docker save` does, into a registry; its digest there.

    Twice its size is needed below `temporary` for as long as this lasts. Raises IMAGE_CORRUPT where the
    archive is not what its own configuration says, and what the registry refuses.
    """
    temporary.mkdir(parents=True, exist_ok=True)
    with (
        files.explained(f"pushing '{image}'", Code.IMAGE_FAILED),
        tempfile.TemporaryDirectory(prefix="upload-", dir=temporary) as made,
    ):
        place = Path(made)
        tell(Progress("push-image", f"saving {image}"))
        save(image, place / "image.tar")
        try:
            return _send(place, image, registry, tell)
        except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
            raise _corrupt(image, str(error)) from None


def _send(place: Path, image: str, registry: Registry, tell: Callable[[Progress], None]) -> str:
    """What is in `image.tar` at a place, blob by blob, and the manifest at the end."""
    with tarfile.open(place / "image.tar") as archive:
        config, names = _contents(archive, image)
        expected = _diff_ids(config, len(names), image)
        layers = []
        for number, (name, diff_id) in enumerate(zip(names, expected, strict=True)):
            packed = place / f"layer{number}"
            layer = _pack(_member(archive, name, image), packed, diff_id, image, tell)
            with packed.open("rb") as file:
                registry.put_file(file, layer, tell)
            packed.unlink()
            layers.append(layer)
    described = registry.put_blob(config, distribution.OCI_CONFIG)
    return registry.put_manifest(distribution.image(described, tuple(layers)))


def _contents(archive: tarfile.TarFile, image: str) -> tuple[bytes, list[str]]:
    """The configuration and the names of the layers, as the archive's manifest.json has them."""
    try:
        (said,) = json.loads(_member(archive, "manifest.json", image).read())
        config, layers = str(said["Config"]), [str(name) for name in said["Layers"]]
    except (ValueError, KeyError, TypeError) as error:
        raise _corrupt(image, f"its manifest.json is none ({error})") from None
    return _member(archive, config, image).read(), layers


def _diff_ids(config: bytes, layers: int, image: str) -> list[str]:
    said: Any = json.loads(config)
    found = said.get("rootfs", {}).get("diff_ids") if isinstance(said, dict) else None
    if not isinstance(found, list) or len(found) != layers:
        raise _corrupt(image, "its configuration names other layers than it has")
    return [str(one) for one in found]


def _member(archive: tarfile.TarFile, name: str, image: str) -> IO[bytes]:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise _corrupt(image, f"it has no '{name}'")
    return file


def _pack(
    layer: IO[bytes], packed: Path, diff_id: str, image: str, tell: Callable[[Progress], None]
) -> Descriptor:
    """Compress a layer (some engines have it compressed already) and check what it is."""
    first = layer.read(len(_GZIP))
    layer.seek(0)
    plain: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=layer) if first == _GZIP else layer
    content, done = hashlib.sha256(), 0
    with packed.open("wb") as file, gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) as target:
        while piece := plain.read(_PIECE):
            content.update(piece)
            target.write(piece)
            done += len(piece)
            if done % (32 * _PIECE) == 0:
                tell(Progress("compress-layer", diff_id, done))
    if f"sha256:{content.hexdigest()}" != diff_id:
        raise _corrupt(image, f"a layer has {content.hexdigest()} instead of {diff_id}")
    with packed.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return Descriptor(_LAYER, f"sha256:{digest}", packed.stat().st_size)


def _corrupt(image: str, why: str) -> Permanent:
    return Permanent(
        Code.IMAGE_CORRUPT, f"what the engine saved of '{image}' is damaged: {why}", "Build it again."
    )
