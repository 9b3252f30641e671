# SPDX-License-Identifier: Apache-2.0
"""The parsers of what comes without a container engine: layers, their archives, images in files."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Failure
from nvidiad.thought import distribution, layers, layouts, parcels, pull
from nvidiad.thought.distribution import Document
from nvidiad.thought.layers import Content, Hidden, Same
from nvidiad.thought.layouts import Form
from nvidiad.world import unpacking
from nvidiad.world.downloads import Blob, Patience
from nvidiad.world.layouts import LocalStores
from nvidiad.world.registry import Flow
from tests.fuzz.target import plain, targets, text, values

if TYPE_CHECKING:
    from collections.abc import Iterator

# Nothing of it need survive, and there is a lot of it.
_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
REFERENCE = "registry.example/nvidia-driver:3975.2.0-535.309.01"


class Given:
    """A place that has one layer, whatever it is asked for."""

    name = REFERENCE

    def __init__(self, data: bytes) -> None:
        self._data = data

    @contextmanager
    def flow(self, digest: str, part: str = "") -> Iterator[Flow]:
        at = 0

        def read(count: int) -> bytes:
            nonlocal at
            at += count
            return self._data[at - count : at]

        yield Flow(200, {}, read)


def layer(data: bytes) -> None:
    """A layer lands in files of our own names and nowhere else, or it is refused."""
    blob = Blob(distribution.digest_of(data), len(data), REFERENCE)
    patience = Patience(threading.Event(), time.monotonic() + 60, 60)
    with tempfile.TemporaryDirectory(dir=_MEMORY) as made:
        inside = Path(made, "inside")
        inside.mkdir()
        try:
            found = unpacking.unpack(
                [Given(data)],  # type: ignore[list-item]
                [unpacking.Layer(blob)],
                inside,
                unpacking.Bounds(1 << 20, 500),
                patience,
                lambda _: None,
            )
        finally:
            assert [path.name for path in Path(made).iterdir()] == ["inside"]
            there = {path.name: path.stat().st_size for path in inside.iterdir()}
            assert sum(there.values()) <= 1 << 20 and len(there) <= 500
        for path, item in found.items():
            assert path.split("/")[0] == layers.TOP and ".." not in path.split("/")
            if isinstance(item, Content):
                assert there[item.name] == item.size


def merged_layers(data: bytes) -> None:
    """Members of two layers, one a line: whatever they hide and name, what comes of it is a set of paths."""
    listings: list[layers.Listing] = [[], []]
    for number, line in enumerate(text(data).splitlines()[:2000]):
        kind, _, name = line.partition(" ")
        path = layers.path_of(name)
        if not path:
            continue
        hides = layers.hidden(path)
        item: layers.Item = Same(layers.path_of(kind)) if "/" in kind else Content(str(number), 1, "")
        listings[number % 2].append(hides or (path, layers.Folder() if kind == "d" else item))
    found = layers.merged(listings)
    for path, item in found.items():
        assert not isinstance(item, Hidden | Same)
        assert path and not path.startswith("/")
    if found:
        layers.below(found, layers.tree_in(found))


def image_parts(data: bytes) -> None:
    """A manifest or a configuration is that of an image, or it is refused in words."""
    document = Document(distribution.OCI_MANIFEST, data)
    said = parcels.labels(data)
    parcels.unpacked(data)
    parcels.coming(REFERENCE, said or {"io.nvidiad.driver": "1", "io.nvidiad.os.version": "1"}, 1, 1)
    if not parcels.inner(document, "x86_64", REFERENCE):
        assert parcels.parcel(document, REFERENCE).size >= 0


def image_in_a_file(data: bytes) -> None:
    """An archive, or the index of a layout, in each of the forms, with a name and without one."""
    refusals: list[Failure] = []
    asked = ((Form.LAYOUT, "a:1"), (Form.LAYOUT, ""), (Form.ARCHIVE, ""), (Form.DOCKER, ""))
    with tempfile.TemporaryDirectory(dir=_MEMORY) as made:
        Path(made, "index.json").write_bytes(data)
        for form, name in asked:
            path = made if form is Form.LAYOUT else f"{made}/index.json"
            try:
                with closing(LocalStores(REFERENCE, layouts.Kept(form, path, name)).open("", 1)) as places:
                    digest = places.head(name)
                    with suppress(Failure):
                        places.manifest(digest or name)
                        places.referrers(digest or name)
            except Failure as failure:
                plain(failure.sentence)
                refusals.append(failure)
    if len(refusals) == len(asked):
        raise refusals[0]


def image_name(data: bytes) -> None:
    """What a person may type for an image in a file."""
    kept = layouts.named(text(data))
    assert kept is None or kept.path


def credential_helper(data: bytes) -> None:
    """What a credential helper says, and the file that names it."""
    pull.helper(text(data), "auth.json", "registry.example")
    if isinstance(values(data), dict):
        found = pull.helped(text(data), "docker-credential-x", "auth.json", "registry.example")
        json.dumps(found).encode()


TARGETS = targets(
    (layer, (Failure,)),
    (merged_layers, (ValueError,)),
    (image_parts, (Failure,)),
    (image_in_a_file, (Failure,)),
    (image_name, (Failure,)),
    (credential_helper, (Failure,)),
)
