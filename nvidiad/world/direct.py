# SPDX-License-Identifier: Apache-2.0
"""Direct: images without a container engine, from a registry (or a file of one) straight into a tree."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Progress
from nvidiad.nouns.value import Value, replace
from nvidiad.thought import parcels, provision, refusals
from nvidiad.thought import pull as pulling
from nvidiad.world.downloads import Blob, Patience
from nvidiad.world.pace import Pace
from nvidiad.world.seen import place
from nvidiad.world.unpacking import Bounds, Layer, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nvidiad.thought.distribution import Document
    from nvidiad.thought.layers import Kept
    from nvidiad.thought.parcels import Parcel
    from nvidiad.verbs.ports import Trees
    from nvidiad.world.dockerd import Timeouts
    from nvidiad.world.places import Places

_CONFIG_AT_MOST = 4 << 20
_OF_CONTENT = (Code.IMAGE_CORRUPT, Code.IMAGE_FOREIGN, Code.MANIFEST_INVALID)
# Nobody waits for the bytes of an image whose bandwidth is limited for longer than that.
_LONGEST = 30 * 86400.0


class Source(Protocol):
    """Where images are: in registries, or in a file."""

    def name(self, reference: str) -> str:
        """The tag or digest that a reference asks for."""

    def open(self, reference: str, limits: float) -> Places:
        """The places of a reference; `limits` are the seconds that all requests may take."""


class Held(Value):
    """An image that was looked at: its parts, what its configuration says, and where it is had from."""

    parcel: Parcel
    labels: Mapping[str, str]
    contents: tuple[str, ...]
    tree: int
    """Bytes of the tree in it, 0 where it does not say."""
    files: int


class DirectImages:
    """The port `Images` where nvidiad itself fetches them."""

    def __init__(
        self,
        source: Source,
        timeouts: Timeouts,
        *,
        root: Path | None = None,
        bandwidth: int = 0,
    ) -> None:
        self._source = source
        self._timeouts = timeouts
        self._root = root
        self._bandwidth = bandwidth
        self._held: dict[str, Held] = {}

    def resolve(self, reference: str) -> str:
        """The digest that a reference names in its registry now."""
        name = self._source.name(reference)
        if pulling.DIGEST.fullmatch(name):
            return name
        with closing(self._source.open(reference, self._timeouts.total)) as places:
            digest = places.head(name)
        if digest is None:
            raise refusals.failure(Code.IMAGE_MISSING, reference)
        return digest

    def pull(
        self, reference: str, digest: str, tell: Callable[[Progress], None], *, gentle: bool = False
    ) -> None:
        """Look at this content: is it there, an image, with room for it? It comes when it is installed."""
        del gentle
        held = self._look(reference, digest)
        tell(Progress("pull-image", f"{len(held.parcel.layers)} layers", 0, held.parcel.size))
        if self._root is not None:
            kind = manifests.labelled(dict(held.labels)).kind
            bundle = Path(naming.bundle_root(PurePosixPath(self._root), kind))
            found = place(bundle, (0, held.tree or held.parcel.size, held.files))
            short = provision.shortage(reference, [found] if found else [])
            if short:
                raise short

    def labels(self, reference: str, digest: str) -> dict[str, str]:
        """The labels of an image."""
        return dict(self._look(reference, digest).labels)

    def install(
        self,
        reference: str,
        digest: str,
        trees: Trees,
        tell: Callable[[Progress], None],
        *,
        gentle: bool = False,
    ) -> None:
        """Fetch the layers of an image into a tree, each byte written once; nothing of the image is run."""
        held = self._look(reference, digest)
        coming = parcels.coming(reference, dict(held.labels), held.tree, held.files)
        total, pace = self._timeouts.total, None
        if gentle and self._bandwidth:
            pace = Pace(self._bandwidth)
            total = min(total + held.parcel.size / self._bandwidth, _LONGEST)
        stop = threading.Event()
        patience = Patience(stop, time.monotonic() + total, total, pace)

        def fetch(directory: Path) -> Mapping[str, Kept]:
            return self._fetch(reference, held, directory, patience, tell)

        try:
            trees.receive(coming, fetch, tell)
        except Failure as failure:
            if failure.code is Code.REGISTRY_STALLED and time.monotonic() > patience.deadline:
                raise refusals.overdue(reference, total) from None
            raise
        self._held.pop(digest, None)

    def discard(self, reference: str, digest: str) -> None:
        """Nothing is kept of an image but its tree."""

    def _look(self, reference: str, digest: str) -> Held:
        if (known := self._held.get(digest)) is not None:
            return known
        machine = os.uname().machine
        with closing(self._source.open(reference, self._timeouts.total)) as places:
            document = _manifest(places, digest, reference)
            if one := parcels.inner(document, machine, reference):
                document = _manifest(places, one, reference)
            parcel = parcels.parcel(document, reference)
            config = places.blob(parcel.config, _CONFIG_AT_MOST)
        contents = parcels.unpacked(config)
        held = Held(
            parcel,
            parcels.labels(config),
            contents if len(contents) == len(parcel.layers) else (),
            provision.tree_size(config),
            provision.tree_files(config),
        )
        # One image at a time is pulled and then installed.
        self._held = {digest: held}
        return held

    def _fetch(
        self,
        reference: str,
        held: Held,
        directory: Path,
        patience: Patience,
        tell: Callable[[Progress], None],
    ) -> Mapping[str, Kept]:
        layers = [
            Layer(Blob(digest, size, reference), held.contents[number] if held.contents else "")
            for number, (digest, size) in enumerate(held.parcel.layers)
        ]
        detail, size = f"fetching {len(layers)} layers", held.parcel.size
        bounds = Bounds(*parcels.bounds(held.tree, held.files, said=bool(held.tree)))

        def watch(done: int) -> None:
            tell(Progress("install-tree", detail, done, size))

        with closing(self._source.open(reference, patience.total)) as places:
            try:
                return unpack(places.places, layers, directory, bounds, patience, watch)
            except Failure as failure:
                if failure.code not in _OF_CONTENT or len(places.places) == 1:
                    raise
            # Some mirror has given something else, which nobody need have hashed to its end to refuse it:
            # then all of it from the registry itself.
            for left in directory.iterdir():
                left.unlink()
            pace = Pace(self._bandwidth) if patience.pace else None
            patience = replace(patience, stop=threading.Event(), pace=pace)
            return unpack(places.places[-1:], layers, directory, bounds, patience, watch)


def _manifest(places: Places, digest: str, reference: str) -> Document:
    """What has this digest, also where it comes from a file that is another one by now."""
    document = places.manifest(digest)
    if document.digest != digest:
        detail = f"what is there for {digest} has {document.digest}"
        raise refusals.failure(Code.IMAGE_CORRUPT, reference, detail)
    return document
