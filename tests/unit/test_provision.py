# SPDX-License-Identifier: Apache-2.0
"""What an image consists of, the room that it takes, and which images an engine may forget."""

from __future__ import annotations

import json

import pytest

from nvidiad.nouns.errors import Code
from nvidiad.thought import distribution, provision
from nvidiad.thought.distribution import Descriptor, Document
from nvidiad.thought.provision import Held, Place

A, B, C, D = (f"sha256:{letter * 64}" for letter in "abcd")
REPOSITORY = "reg.test/nv"
LEFT = f"127.0.0.1:41131/nvidiad-gentle/00ff@{B}"


def manifest(*layers: tuple[str, int]) -> Document:
    described = tuple(Descriptor("layer", digest, size) for digest, size in layers)
    return distribution.image(Descriptor("config", C, 7), described)


def test_an_image_is_its_layers_and_its_configuration() -> None:
    found = provision.contents(manifest((A, 100), (B, 20), (A, 100)))
    assert (found.config, found.layers, found.manifests) == (C, ((A, 100), (B, 20)), ())
    assert found.compressed == 120  # a layer that comes twice is fetched once
    assert found.blobs == {A: 100, B: 20, C: 7}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "7",
        '{"layers": 5, "manifests": {}, "config": []}',
        '{"layers": [5, {"digest": "sha256:../../etc", "size": 1}, {"size": 2}], "config": {"digest": 4}}',
    ],
)
def test_what_is_no_manifest_has_nothing(body: str) -> None:
    assert provision.contents(Document("", body.encode())) == provision.Contents()


@pytest.mark.parametrize("size", ["-5", '"5"', "null", "true", "1.5"])
def test_a_size_that_is_none_counts_nothing(size: str) -> None:
    body = f'{{"layers": [{{"digest": "{A}", "size": {size}}}]}}'
    assert provision.contents(Document("", body.encode())).compressed == 0


def test_an_index_has_one_image_for_this_machine() -> None:
    index = distribution.index(
        (Descriptor("m", A, 1, architecture="amd64"), Descriptor("m", B, 1, architecture="arm64"))
    )
    assert provision.contents(index).manifests == (A, B)
    assert provision.manifest_for(index, "x86_64") == A
    assert provision.manifest_for(index, "aarch64") == B
    assert provision.manifest_for(index, "riscv64") == ""
    assert provision.manifest_for(manifest((A, 1)), "x86_64") == ""


@pytest.mark.parametrize(
    ("labels", "size"),
    [
        ({"io.nvidiad.size": "257000000"}, 257_000_000),
        ({"io.nvidiad.size": ""}, 0),  # an image made by hand
        ({"io.nvidiad.size": "-1"}, 0),
        ({"io.nvidiad.size": "9" * 16}, 0),
        ({"io.nvidiad.size": 5}, 0),
        ({}, 0),  # an image of old
        (None, 0),
        (5, 0),
    ],
)
def test_the_size_of_a_tree_stands_in_a_label(labels: object, size: int) -> None:
    assert provision.tree_size(json.dumps({"config": {"Labels": labels}}).encode()) == size


def test_the_number_of_files_stands_in_a_label_too() -> None:
    config = {"config": {"Labels": {"io.nvidiad.files": "61"}}}
    assert provision.tree_files(json.dumps(config).encode()) == 61
    assert provision.tree_files(b"{}") == provision.INODES


@pytest.mark.parametrize("config", [b"", b"{}", b"[]", b'{"config": []}', b"\xff", b"[" * 100_000])
def test_a_configuration_that_is_none_says_nothing(config: bytes) -> None:
    assert provision.tree_size(config) == 0


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ((Place("/d", 1, 100, 100, 60),), ""),
        ((Place("/d", 1, 99, 100, 60),), "needs 100 bytes in '/d', 99 are free"),
        ((Place("/d", 1, 100, 90, 60), Place("/opt", 2, 100, 0, 60)), ""),
        ((Place("/d", 1, 120, 100, 60), Place("/opt", 1, 120, 0, 60)), ""),
        (
            (Place("/d", 1, 100, 90, 60), Place("/opt", 1, 100, 0, 60)),
            "120 bytes in '/d' and '/opt', 100 are",
        ),
        ((Place("/d", 1, 100, 60, 60), Place("/opt", 2, 10, 0, 60)), "60 bytes in '/opt', 10 are free"),
        ((), ""),
        ((Place("/d", 1, 100, 100, 60, 9, 9),), ""),
        ((Place("/d", 1, 100, 100, 60, 9, 8),), "needs 9 inodes in '/d', 8 are free"),
        ((Place("/d", 1, 200, 90, 60, 9, 17), Place("/opt", 1, 200, 0, 60, 9, 17)), "18 inodes in '/d' and"),
        ((Place("/d", 1, 100, 100, 60, 9, None),), ""),
    ],
    ids=[
        "fits",
        "not",
        "two disks",
        "one disk in turn",
        "one disk for both",
        "the second disk",
        "nobody knows",
        "as many inodes as there are",
        "one inode too few",
        "one disk for both, and too few inodes",
        "a file system without a number of inodes",
    ],
)
def test_room(places: tuple[Place, ...], says: str) -> None:
    short = provision.shortage("reg.test/nv:1", places)
    assert (short is not None) is bool(says)
    if short is not None:
        assert short.code is Code.DISK_FULL and short.retry
        assert says in short.sentence and "'reg.test/nv:1'" in short.sentence


@pytest.mark.parametrize(("tree", "needed"), [(0, (200, 100)), (50, (200, 100)), (300, (400, 300))])
def test_an_engine_holds_a_layer_twice_for_a_while(tree: int, needed: tuple[int, int]) -> None:
    assert provision.engine_needs(100, tree) == needed


PINNED, OTHER = f"{REPOSITORY}@{A}", f"{REPOSITORY}@{B}"


@pytest.mark.parametrize(
    ("image", "gone"),
    [
        (Held((), (PINNED,), ours=True), (PINNED,)),
        (Held((), (PINNED,), ours=False), (PINNED,)),
        (Held(("reg.test/nv:1",), (PINNED,), ours=True), ()),
        (Held(("mine:1",), (PINNED,), ours=True), ()),
        (Held((), (f"mirror.test/nv@{A}", PINNED), ours=True), (PINNED,)),
        (Held((), (OTHER,), ours=True), (OTHER,)),
        (Held((), (OTHER,), ours=False), ()),
        (Held(("mine:1",), (OTHER,), ours=True), ()),
        (Held((), (f"reg.test/nv/more@{B}",), ours=True), ()),
        (Held((), (f"reg.test/nv2@{B}",), ours=True), ()),
        (Held((), (LEFT,), ours=False), (LEFT,)),
        (Held(("mine:1",), (LEFT, OTHER), ours=True), (LEFT,)),
        (Held((), (f"127.0.0.1:5000/nvidiad-gentle/x/00ff@{B}",), ours=True), ()),
        (Held((), (f"reg.test/nvidiad-gentle/00ff@{B}",), ours=True), ()),
        (Held((), (), ours=True), ()),
    ],
    ids=[
        *("itself", "itself without labels", "with a tag", "with another tag", "with another name"),
        *("a leftover", "somebody's", "a leftover with a tag", "of a repository below", "of a neighbour"),
        *("of a gateway", "of a gateway with a tag", "not of a gateway", "nor this", "without a name"),
    ],
)
def test_what_an_engine_may_forget(image: Held, gone: tuple[str, ...]) -> None:
    assert provision.expendable((image,), REPOSITORY, A) == gone


@pytest.mark.parametrize(
    ("configured", "listed"),
    [
        ("docker.io/acme/nv", "acme/nv"),
        ("index.docker.io/acme/nv", "acme/nv"),
        ("docker.io/library/nv", "nv"),
        ("acme/nv", "docker.io/acme/nv"),
    ],
)
def test_an_engine_has_shorter_names_for_one_registry(configured: str, listed: str) -> None:
    image = Held((), (f"{listed}@{A}",), ours=True)
    assert provision.expendable((image,), configured, A) == (f"{listed}@{A}",)


def test_what_engines_list() -> None:
    listed = [
        # 20.10
        {"RepoTags": ["<none>:<none>"], "RepoDigests": [PINNED], "Labels": {"io.nvidiad.schema": "1"}},
        {"RepoTags": ["mine:1"], "RepoDigests": ["<none>@<none>"], "Labels": None},
        # with containerd's store
        {"RepoTags": [OTHER, "mine:2"], "RepoDigests": [OTHER], "Labels": {}},
        {"RepoTags": None},
        5,
    ]
    assert provision.held(listed) == (
        Held((), (PINNED,), ours=True),
        Held(("mine:1",), (), ours=False),
        Held(("mine:2",), (OTHER,), ours=False),
        Held((), (), ours=False),
    )


def test_what_a_gateway_brought_is_found_again() -> None:
    images = (Held((), (PINNED,), ours=True), Held((), (OTHER, LEFT), ours=True))
    assert provision.begun(images, B) == LEFT.partition("@")[0]
    assert provision.begun(images, A) == ""
