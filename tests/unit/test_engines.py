# SPDX-License-Identifier: Apache-2.0
"""Who fetches images, images in files, and where else a repository may be."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import socket
import tarfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest

from nvidiad import engines
from nvidiad.nouns import manifest as manifests
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import EngineKind, Kind
from nvidiad.nouns.value import replace
from nvidiad.thought import cosign, distribution, layouts, parcels, refusals
from nvidiad.thought.distribution import Document
from nvidiad.thought.layouts import Form, Kept
from nvidiad.thought.settings import Engine, Settings
from nvidiad.world import credentials
from nvidiad.world.direct import DirectImages, Held
from nvidiad.world.dockerd import Timeouts
from nvidiad.world.downloads import Patience
from nvidiad.world.keys import PublicKeys
from nvidiad.world.layouts import LocalStores
from nvidiad.world.pace import Pace
from nvidiad.world.places import Places, Registries
from nvidiad.world.registry import Flow, Limits
from nvidiad.world.trees import Trees
from nvidiad.world.vouchers import Vouchers
from tests.payload import builder, image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIGEST = "sha256:" + "1" * 64


# -- the choice --------------------------------------------------------------------------------------


def settings(path: Path, kind: EngineKind = EngineKind.AUTO) -> Settings:
    return replace(Settings(), engine=Engine(PurePosixPath(path), kind))


def test_docker_is_taken_where_its_socket_is_and_whether_or_not_it_answers(tmp_path: Path) -> None:
    place = tmp_path / "docker.sock"
    assert engines.engine(settings(place)).kind is EngineKind.REGISTRY
    place.touch()
    # A file is no engine.
    assert engines.engine(settings(place)).kind is EngineKind.REGISTRY
    place.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        listening.listen()
        assert engines.engine(settings(place)).kind is EngineKind.DOCKER
        assert engines.silence(settings(place)) == ""
    # One that has ended leaves its name.
    assert engines.engine(settings(place)).kind is EngineKind.DOCKER
    assert "refused" in engines.silence(settings(place))
    link = tmp_path / "link.sock"
    link.symlink_to(place)
    assert engines.engine(settings(link)).kind is EngineKind.DOCKER
    for kind in (EngineKind.DOCKER, EngineKind.REGISTRY):
        assert engines.engine(settings(tmp_path / "none", kind)).kind is kind


def test_the_engine_is_chosen_when_an_image_is_asked_for_and_then_stays(tmp_path: Path) -> None:
    place = tmp_path / "docker.sock"
    images = engines.ChosenImages(settings(place), tmp_path)
    with pytest.raises(Failure) as caught:
        images.resolve("127.0.0.1:1/nv:1")
    assert caught.value.code is Code.REGISTRY_UNREACHABLE
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
    # What was begun without an engine goes on without one.
    with pytest.raises(Failure) as caught:
        images.labels("127.0.0.1:1/nv:1", DIGEST)
    assert caught.value.code is Code.REGISTRY_UNREACHABLE
    with pytest.raises(Failure) as caught:
        images.resolve("127.0.0.1:1/nv:1")
    assert caught.value.code is Code.ENGINE_UNREACHABLE
    assert "engine.kind" in caught.value.remedy


# -- mirrors -----------------------------------------------------------------------------------------


def test_mirrors_come_first_by_the_path_of_the_repository() -> None:
    mirrors = {
        "registry.example": ("https://mirror.example/copy", "http://10.0.0.5:5000"),
        "docker.io": ("https://mirror.example",),
    }
    asked = Registries(None, mirrors)
    found = asked.open("registry.example/team/nv", Limits(whole=10))
    # A mirror that sends a byte at a time is cut while there is time left for the registry.
    opened: list[Any] = [*found.places]
    assert [place._registry._limits.whole for place in opened] == [5, 5, 10]
    assert [place.name for place in found.places] == [
        "mirror.example/copy/team/nv",
        "10.0.0.5:5000/team/nv",
        "registry.example/team/nv",
    ]
    assert found.name == "registry.example/team/nv"
    assert [place.name for place in asked.open("nv", Limits()).places] == ["mirror.example/library/nv", "nv"]
    assert len(asked.open("other.example/nv", Limits()).places) == 1


def test_a_mirror_whose_credentials_are_none_is_left_out(tmp_path: Path) -> None:
    auth = tmp_path / "auth.json"
    auth.write_text('{"credHelpers": {"mirror.example": "nowhere"}}')
    mirrors = {"registry.example": ("https://mirror.example", "https://other.example")}
    found = Registries(auth, mirrors).open("registry.example/nv", Limits())
    assert [place.name for place in found.places] == ["other.example/nv", "registry.example/nv"]
    with pytest.raises(Failure):
        Registries(auth, mirrors).open("mirror.example/nv", Limits())


class Asked:
    """A place that answers everything in one way."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.name = "place"
        self._answer = answer
        self.asked = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def answered(*_: object) -> Any:
            self.asked += 1
            return self._answer()

        return answered


def fails() -> Any:
    raise refusals.failure(Code.REGISTRY_UNREACHABLE, "registry.example/nv:1")


def test_the_first_place_that_has_it_gives_it() -> None:
    def places(*answers: Callable[[], Any]) -> Any:
        return Places([Asked(answer) for answer in answers])

    assert places(fails, lambda: None, lambda: DIGEST).head("1") == DIGEST
    assert places(lambda: DIGEST, fails).head("1") == DIGEST
    assert places(fails, lambda: None).head("1") is None
    assert places(fails, lambda: b"x").blob(DIGEST) == b"x"
    assert places(lambda: (), lambda: (("a", "b"),)).referrers(DIGEST) == (("a", "b"),)
    for failing in (places(fails, fails), places(lambda: None, fails)):
        with pytest.raises(Failure):
            failing.head("1")


# -- images in files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "kept"),
    [
        ("oci-layout:/a/b", Kept(Form.LAYOUT, "/a/b", "")),
        ("oci-layout:./b:tag", Kept(Form.LAYOUT, "./b", "tag")),
        (f"oci-archive:b.tar@{DIGEST}", Kept(Form.ARCHIVE, "b.tar", DIGEST)),
        ("docker-archive:b.tar:name:tag", Kept(Form.DOCKER, "b.tar", "name:tag")),
        ("registry.example/nv:1", None),
        ("nv:1", None),
        ("/opt/tree", None),
    ],
)
def test_an_image_in_a_file_has_a_name_of_its_own(what: str, kept: Kept | None) -> None:
    assert layouts.named(what) == kept


@pytest.mark.parametrize("what", ["oci-layout:", "oci-layout::tag", "oci-archive:x@sha256:1"])
def test_a_name_that_names_nothing_is_refused(what: str) -> None:
    with pytest.raises(Failure) as caught:
        layouts.named(what)
    assert caught.value.code is Code.IMAGE_MISSING


def tree(folder: Path) -> Path:
    return builder.payload(
        folder, driver="535.309.01", release=("flatcar", "3975.2.0"), kernel="6.1.0-56-flatcar"
    )


def layout(folder: Path, *tags: str) -> image.Image:
    """An OCI layout with the image of a driver under these tags."""
    made = image.image(tree(folder / "made"))
    place = folder / "layout"
    (place / "blobs/sha256").mkdir(parents=True)
    for digest, data in {**made.blobs, made.digest: made.manifest}.items():
        (place / layouts.blob_path(digest)).write_bytes(data)
    kind = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": made.digest}
    named = [{**kind, "annotations": {"org.opencontainers.image.ref.name": tag}} for tag in tags]
    (place / "index.json").write_text(json.dumps({"manifests": named or [kind]}))
    return made


def installed(folder: Path, what: str) -> str:
    """The tree that comes of an image in a file."""
    kept = layouts.named(what)
    assert kept is not None
    images = DirectImages(LocalStores(what, kept), Timeouts(1, 5, 30))
    digest = images.resolve(what)
    images.pull(what, digest, lambda _: None)
    trees = Trees(folder / "opt")
    images.install(what, digest, trees, lambda _: None)
    (found,) = trees.list()
    trees.verify(found.path, manifests.labelled(images.labels(what, digest)))
    return digest


def test_every_form_comes_to_the_same_tree(tmp_path: Path) -> None:
    made = layout(tmp_path, "a", "sha256-1.sig", "registry.example/nv:b")
    place = tmp_path / "layout"
    for name in ("", ":a", ":b", ":registry.example/nv:b", f"@{made.digest}"):
        if name != ":registry.example/nv:b":
            assert installed(tmp_path, f"oci-layout:{place}{name}") == made.digest
    packed = tmp_path / "layout.tar"
    with tarfile.open(packed, "w") as archive:
        archive.add(place, ".")
    assert installed(tmp_path, f"oci-archive:{packed}:a") == made.digest
    saved = tmp_path / "saved.tar"
    saved.write_bytes(made.archive("nv:1"))
    for name in ("", ":nv:1", ":docker.io/library/nv:1"):
        assert installed(tmp_path, f"docker-archive:{saved}{name}") != made.digest


def test_what_is_in_a_file_is_refused_by_name(tmp_path: Path) -> None:
    made = layout(tmp_path, "a", "b")
    place = tmp_path / "layout"
    other = json.loads((place / "index.json").read_text())
    other["manifests"][1]["digest"] = DIGEST
    (place / "index.json").write_text(json.dumps(other))
    cases = {
        f"oci-layout:{place}": (Code.IMAGE_MISSING, "2 in it: a, b"),
        f"oci-layout:{place}:c": (Code.IMAGE_MISSING, "no image 'c'"),
        f"oci-layout:{place}:b": (Code.IMAGE_CORRUPT, "No such file"),
        f"oci-layout:{tmp_path}": (Code.IMAGE_MISSING, "No such file"),
        f"oci-archive:{place}/index.json": (Code.IMAGE_CORRUPT, "no tar archive"),
        f"docker-archive:{place}": (Code.IMAGE_MISSING, "not a regular file"),
    }
    for what, (code, says) in cases.items():
        with pytest.raises(Failure) as caught:
            installed(tmp_path, what)
        assert caught.value.code is code, caught.value
        assert says in str(caught.value)
    # Links lead nowhere: not to a file of the host's either.
    blob = place / layouts.blob_path(made.digest)
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failure) as caught:
        installed(tmp_path, f"oci-layout:{place}:a")
    assert caught.value.code is Code.IMAGE_CORRUPT


def test_an_archive_of_docker_is_known_by_what_its_layers_unpack_to(tmp_path: Path) -> None:
    made = layout(tmp_path)
    whole = made.archive("nv:1")
    at = whole.rindex(b"stand-in for NVIDIA")
    saved = tmp_path / "saved.tar"
    saved.write_bytes(whole[:at] + b"S" + whole[at + 1 :])
    with pytest.raises(Failure) as caught:
        installed(tmp_path, f"docker-archive:{saved}")
    assert caught.value.code is Code.IMAGE_CORRUPT
    # Layers may be links to each other, as older versions write them.
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(whole)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            content = old.extractfile(member)
            if member.name == "layer1.tar":
                link = tarfile.TarInfo("layer1.tar")
                link.type, link.linkname = tarfile.SYMTYPE, "deep/../deep/real.tar"
                new.addfile(link)
                member.name = "deep/real.tar"
            new.addfile(member, content)
    saved.write_bytes(out.getvalue())
    installed(tmp_path, f"docker-archive:{saved}")


# -- the parts of an image ---------------------------------------------------------------------------

CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 5}


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({}, Code.PULL_FAILED),
        ({"config": CONFIG}, Code.PULL_FAILED),
        ({"config": CONFIG, "layers": [{**LAYER, "size": "5"}]}, Code.PULL_FAILED),
        ({"config": CONFIG, "layers": [{**LAYER, "digest": "sha256:1"}]}, Code.PULL_FAILED),
        ({"config": {**CONFIG, "digest": 5}, "layers": []}, Code.PULL_FAILED),
        ({"config": CONFIG, "layers": [{**LAYER, "mediaType": "text/html"}]}, Code.IMAGE_FOREIGN),
        ({"config": CONFIG, "layers": [5]}, Code.IMAGE_FOREIGN),
        ({"config": CONFIG, "layers": [LAYER] * 200}, Code.IMAGE_FOREIGN),
        ({"config": {**CONFIG, "mediaType": "application/x"}, "layers": []}, Code.IMAGE_FOREIGN),
    ],
)
def test_what_is_no_image_is_told_apart(said: dict[str, object], code: Code) -> None:
    with pytest.raises(Failure) as caught:
        parcels.parcel(Document("application/json", json.dumps(said).encode()), "r.example/nv:1")
    assert caught.value.code is code


def test_a_file_that_has_become_another_is_not_the_image_that_was_asked_for(tmp_path: Path) -> None:
    saved = tmp_path / "saved.tar"
    what = f"docker-archive:{saved}"
    images = DirectImages(LocalStores(what, Kept(Form.DOCKER, str(saved), "")), Timeouts(1, 5, 30))
    saved.write_bytes(image.image(tree(tmp_path / "made")).archive("nv:1"))
    digest = images.resolve(what)
    saved.write_bytes(image.image(builder.cuda_payload(tmp_path / "other", "12.4.1")).archive("nv:1"))
    with pytest.raises(Failure) as caught:
        images.labels(what, digest)
    assert caught.value.code is Code.IMAGE_CORRUPT


def test_labels_cannot_name_a_place_outside(tmp_path: Path) -> None:
    for version in ("../../etc", "", "a/b", "current"):
        said = {"io.nvidiad.driver": version, "io.nvidiad.os.version": "3975.2.0"}
        with pytest.raises(Failure) as caught:
            parcels.coming("r.example/nv:1", said, 1, 1)
        assert caught.value.code is Code.MANIFEST_INVALID


def test_a_driver_that_is_loaded_is_not_replaced_and_the_same_one_is_there_already(tmp_path: Path) -> None:
    made = layout(tmp_path)
    what = f"oci-layout:{tmp_path}/layout"
    digest = installed(tmp_path, what)
    images = DirectImages(LocalStores(what, Kept(Form.LAYOUT, f"{tmp_path}/layout", "")), Timeouts(1, 5, 30))
    trees = Trees(tmp_path / "opt", lambda: True)
    (found,) = trees.list()
    trees.select(found.path)
    told: list[str] = []
    (tmp_path / "layout" / layouts.blob_path(_layer(made))).unlink()
    images.install(what, digest, trees, lambda progress: told.append(progress.detail))
    assert told == [f"'{found.path}' is there already"]
    Path(found.path, "bin/nvidia-smi").write_text("changed")
    with pytest.raises(Failure) as caught:
        images.install(what, digest, trees, lambda _: None)
    assert caught.value.code is Code.MODULE_IN_USE


def _layer(made: image.Image) -> str:
    assert gzip.decompress(made.layers[-1])
    return f"sha256:{hashlib.sha256(made.layers[-1]).hexdigest()}"


def test_cuda_comes_in_the_same_way(tmp_path: Path) -> None:
    made = image.image(builder.cuda_payload(tmp_path / "made", "12.4.1"))
    saved = tmp_path / "saved.tar"
    saved.write_bytes(made.archive("cuda:1"))
    what = f"docker-archive:{saved}"
    images = DirectImages(LocalStores(what, Kept(Form.DOCKER, str(saved), "")), Timeouts(1, 5, 30))
    trees = Trees(tmp_path / "opt")
    images.install(what, images.resolve(what), trees, lambda _: None)
    (found,) = trees.list(Kind.CUDA)
    assert found.path == f"{tmp_path}/opt/cuda/12.4.1"
    trees.verify(found.path, found.build)


def test_what_nobody_waits_for_keeps_its_bandwidth(tmp_path: Path) -> None:
    made = layout(tmp_path)
    what = f"oci-layout:{tmp_path}/layout"
    stores = LocalStores(what, Kept(Form.LAYOUT, f"{tmp_path}/layout", ""))
    fetched = sum(map(len, made.layers))
    images = DirectImages(stores, Timeouts(1, 5, 2), bandwidth=fetched // 3)
    began = time.monotonic()
    # Longer than the limit for all of it, to which the bandwidth adds.
    images.install(what, made.digest, Trees(tmp_path / "opt"), lambda _: None, gentle=True)
    assert 2 < time.monotonic() - began < 10


def test_a_signature_of_yesterday_on_a_mirror_hides_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Signed:
        name = "place"

        def __init__(self, *signatures: bytes) -> None:
            self.signed = bool(signatures)
            self.payload = cosign.payload("r.example/nv", DIGEST)
            said = [
                {
                    "mediaType": cosign.PAYLOAD,
                    "digest": distribution.digest_of(self.payload),
                    "size": len(self.payload),
                    "annotations": {"dev.cosignproject.cosign/signature": base64.b64encode(each).decode()},
                }
                for each in signatures
            ]
            self.document = Document(distribution.OCI_MANIFEST, json.dumps({"layers": said}).encode())

        def head(self, reference: str) -> str | None:
            if not self.signed:
                fails()
            return self.document.digest if reference == cosign.tag(DIGEST) else None

        def manifest(self, _: str) -> Document:
            return self.document

        def blob(self, *_: object) -> bytes:
            return self.payload

        def referrers(self, _: str) -> tuple[tuple[str, str], ...]:
            return ()

        def close(self) -> None:
            pass

    def found(*places: Any) -> list[bytes]:
        monkeypatch.setattr(PublicKeys, "read", lambda _: None)
        monkeypatch.setattr(Registries, "beside", lambda *_: Places(places))
        asked = Registries(None, {})
        vouchers = Vouchers((), Path("/"), required=True, registries=asked, limits=Limits())
        return [seal.signature for seal in vouchers.seals("r.example/nv:1", DIGEST)]

    assert found(Signed(b"old"), Signed(b"old", b"new")) == [b"old", b"new"]
    assert found(Signed(), Signed(b"new")) == [b"new"]
    with pytest.raises(Failure):
        found(Signed(b"old"), Signed())


@pytest.mark.parametrize("name", ["too much", "unreadable", "no archive"])
def test_what_a_mirror_gives_is_no_fault_of_the_image(tmp_path: Path, name: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for number in range(200):
            made.addfile(tarfile.TarInfo(f"opt/nvidia/535.1/1.0/{number}"))
    wrong = {
        "too much": gzip.compress(out.getvalue()),
        "unreadable": b"\x28\xb5\x2f\xfd" + bytes(100),
        "no archive": b"<html>" * 300,
    }[name]
    right = gzip.compress(bytes(1024)) + bytes(2000)
    digest = f"sha256:{hashlib.sha256(right).hexdigest()}"

    class Has:
        name = "place"

        def __init__(self, content: bytes) -> None:
            self.content = content
            self.asked = 0

        @contextmanager
        def flow(self, *_: str) -> Iterator[Flow]:
            self.asked += 1
            yield Flow(200, {}, io.BytesIO(self.content).read)

        def close(self) -> None:
            pass

    class Source:
        def open(self, *_: Any) -> Any:
            return Places([mirror, registry])  # type: ignore[list-item]

    mirror, registry = Has(wrong), Has(right)
    held = Held(parcels.Parcel(DIGEST, DIGEST, ((digest, len(right)),)), {}, (), 1000, 10)
    images = DirectImages(Source(), Timeouts(1, 5, 30), bandwidth=1 << 20)  # type: ignore[arg-type]
    patience = Patience(threading.Event(), time.monotonic() + 30, 30, Pace(1 << 20))
    assert images._fetch("r.example/nv:1", held, tmp_path, patience, lambda _: None) == {}
    assert (mirror.asked, registry.asked) == (1, 1)


# -- credential helpers ------------------------------------------------------------------------------

HELPERS = {
    "found": ('echo \'{"Username": "user", "Secret": "pw"}\'', "pw"),
    "unknown": ("echo credentials not found in native keychain; exit 1", None),
    "failed": ("echo it is locked >&2; echo hush; exit 1", "it is locked"),
    "killed": ("kill -9 $$", "exit status -9"),
}


@pytest.mark.parametrize("name", HELPERS)
def test_what_a_helper_does_is_taken_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(credentials, "_PLACES", (str(tmp_path),))
    does, expected = HELPERS[name]
    program = tmp_path / "docker-credential-bed"
    program.write_text(
        f"#!/bin/sh\nread -r server\n[ $server = r.example ] && [ $HOME = /root ] || exit 9\n{does}\n"
    )
    program.chmod(0o755)
    auth = tmp_path / "auth.json"
    auth.write_text('{"credsStore": "bed"}')
    if name in ("failed", "killed"):
        with pytest.raises(Failure) as caught:
            credentials.credentials(auth, "r.example")
        assert caught.value.code is Code.REGISTRY_AUTH
        assert str(expected) in caught.value.sentence and "'r.example'" in caught.value.sentence
        assert "hush" not in caught.value.sentence
        return
    found = credentials.credentials(auth, "r.example")
    assert (found and found["password"]) == expected


def test_a_helper_gets_the_way_to_its_cloud_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "_PLACES", (str(tmp_path),))
    passed = {"HTTPS_PROXY": "a", "no_proxy": "b", "SSL_CERT_FILE": "c", "AWS_REGION": "d"}
    for name, value in (passed | {"LD_LIBRARY_PATH": "x", "PYTHONPATH": "y", "XAWS_REGION": "z"}).items():
        monkeypatch.setenv(name, value)
    program, auth = tmp_path / "docker-credential-bed", tmp_path / "auth.json"
    program.write_text(
        f"#!/bin/sh\nenv >{tmp_path}/told\necho credentials not found in native keychain; exit 1"
    )
    program.chmod(0o755)
    auth.write_text('{"credsStore": "bed"}')
    assert credentials.credentials(auth, "r.example") is None
    told = dict(line.split("=", 1) for line in (tmp_path / "told").read_text().splitlines())
    assert passed.items() <= told.items() and told["HOME"] == "/root"
    assert not told.keys() & {"LD_LIBRARY_PATH", "PYTHONPATH", "XAWS_REGION"}


def test_a_helper_that_is_not_there_is_a_fault_of_the_file(tmp_path: Path) -> None:
    auth = tmp_path / "auth.json"
    auth.write_text('{"credHelpers": {"r.example": "nowhere"}}')
    with pytest.raises(Failure) as caught:
        credentials.credentials(auth, "r.example")
    assert caught.value.code is Code.CONFIG_INVALID
    assert "docker-credential-nowhere" in caught.value.sentence
