# SPDX-License-Identifier: Apache-2.0
"""The registry client against a real registry: what goes in comes out, and every refusal has its code."""

from __future__ import annotations

import http.server
import io
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.thought import distribution
from nvidiad.thought.distribution import Descriptor, Document
from nvidiad.world import registry
from nvidiad.world.repository import Limits, Repository
from tests.images.shelf import (
    PASSWORD,
    USER,
    Counting,
    Shelf,
    TokenServer,
    certificate,
    free_port,
    password,
    sha256,
    shelf,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nvidiad.nouns.model import Progress

NAME = "team/nvidia-driver"
NOWHERE = "sha256:" + "0" * 64
KNOWN = {"username": USER, "password": PASSWORD}
QUICK = Limits(connect=2, read=2, connections=4, tries=2)
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with shelf(tmp_path_factory.mktemp("plain")) as made:
        yield made


@pytest.fixture
def repository(plain: Shelf) -> Iterator[Repository]:
    made = Repository(f"{plain.address}/{NAME}", limits=QUICK)
    yield made
    made.close()


def put_image(repository: Repository, tag: str = "", salt: str = "") -> Document:
    """A small image of one layer."""
    config = repository.put_blob(
        f'{{"salt": "{salt}"}}'.encode(), "application/vnd.oci.image.config.v1+json"
    )
    layer = repository.put_blob(f"layer {salt}".encode(), LAYER)
    made = distribution.image(config, (layer,))
    assert repository.put_manifest(made, tag) == made.digest
    return made


def failure_of(do: Callable[[], object]) -> Failure:
    with pytest.raises(Failure) as caught:
        do()
    return caught.value


# -- what goes in comes out --------------------------------------------------------------------------


def test_an_image_is_there_by_digest_before_it_is_by_tag(repository: Repository) -> None:
    made = put_image(repository, salt="one")
    assert repository.head(made.digest) == made.digest
    assert repository.head("one") is None
    assert repository.manifest(made.digest) == made
    repository.put_manifest(made, "one")
    assert repository.head("one") == made.digest
    assert "one" in repository.tags()


def test_what_is_not_there(repository: Repository) -> None:
    assert repository.head("nothing") is None
    assert repository.has_blob(NOWHERE) is False
    assert Repository(f"{repository.name}-other", limits=QUICK).tags() == ()
    missing = failure_of(lambda: repository.manifest("nothing"))
    assert (missing.code, missing.retry) == (Code.IMAGE_MISSING, True)
    assert f"'{repository.name}:nothing'" in missing.sentence


def test_all_tags_come_however_many_pages_they_take(repository: Repository) -> None:
    made = put_image(repository, salt="tags")
    names = {f"tag-{number:04}" for number in range(1100)}
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: repository.put_manifest(made, name), names))
    assert names <= set(repository.tags())


@pytest.mark.parametrize("size", [0, 1, 100, (16 << 20) + 1, 40 << 20])
def test_files_go_in_by_pieces_and_come_out_whole(repository: Repository, size: int) -> None:
    data = os.urandom(min(size, 1 << 20)) * max(1, size >> 20)
    data = data[:size].ljust(size, b".")
    blob = Descriptor(LAYER, sha256(data), len(data))
    told: list[Progress] = []
    repository.put_file(io.BytesIO(data), blob, told.append)
    assert repository.blob(blob.digest, limit=64 << 20) == data
    assert [one.done for one in told] == sorted({one.done for one in told})
    assert (told[-1].done, told[-1].total) == (size, size)
    told.clear()
    repository.put_file(io.BytesIO(data), blob, told.append)
    assert told == []


def test_a_blob_of_another_repository_is_not_sent_again(plain: Shelf, repository: Repository) -> None:
    data = os.urandom(5000)
    blob = repository.put_blob(data)
    other = Repository(f"{plain.address}/team/other", limits=QUICK)
    assert not other.has_blob(blob.digest)

    class Unread(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            raise AssertionError("it was sent")

    other.put_file(Unread(), blob, lambda _: None, source=repository.name)
    assert other.blob(blob.digest) == data


def test_a_wrong_digest_is_not_taken(repository: Repository) -> None:
    blob = Descriptor(LAYER, NOWHERE, 3)
    refused = failure_of(lambda: repository.put_file(io.BytesIO(b"abc"), blob, lambda _: None))
    assert refused.code is Code.PUSH_REFUSED
    assert "digest" in refused.sentence.lower()
    assert not repository.has_blob(NOWHERE)


def test_artefacts(repository: Repository) -> None:
    kind = "application/vnd.test.v1+json"
    assert repository.artefact("list", kind) is None
    digest = repository.put_artefact("list", kind, b'{"a": 1}', {"org.opencontainers.image.title": "list"})
    assert repository.head("list") == digest
    assert repository.artefact("list", kind) == b'{"a": 1}'
    assert repository.manifest("list").content()["artifactType"] == kind
    assert failure_of(lambda: repository.artefact("list", "other")).code is Code.IMAGE_FOREIGN
    assert failure_of(lambda: repository.artefact("list", kind, limit=7)).code is Code.IMAGE_FOREIGN


def test_referrers_are_listed_under_a_tag_where_the_registry_lists_none(repository: Repository) -> None:
    """Debian's registry knows no referrers API: whoever looks for them reads that index."""
    subject = put_image(repository, salt="referred to")
    kinds = ("application/vnd.test.a+json", "application/vnd.test.b+json")
    digests = [repository.put_referrer(subject, kind, kind.encode()) for kind in kinds]
    tag = subject.digest.replace(":", "-")
    listed = repository.manifest(tag)
    assert listed.media_type == distribution.OCI_INDEX
    found = listed.content()["manifests"]
    assert [(one["digest"], one["artifactType"]) for one in found] == list(zip(digests, kinds, strict=True))
    for one, kind in zip(found, kinds, strict=True):
        document = repository.manifest(one["digest"])
        assert len(document.body) == one["size"] and document.media_type == one["mediaType"]
        said = document.content()
        assert said["subject"]["digest"] == subject.digest and said["subject"]["size"] == len(subject.body)
        assert said["artifactType"] == kind
        assert repository.blob(said["layers"][0]["digest"]) == kind.encode()
    # The same once more is no news.
    assert repository.put_referrer(subject, kinds[0], kinds[0].encode()) == digests[0]
    assert repository.head(tag) == listed.digest


def test_a_tag_of_referrers_that_is_something_else_is_left_alone(repository: Repository) -> None:
    subject = put_image(repository, salt="squatted")
    squatter = put_image(repository, subject.digest.replace(":", "-"), salt="squatter")
    refused = failure_of(lambda: repository.put_referrer(subject, "application/vnd.test+json", b"{}"))
    assert refused.code is Code.IMAGE_FOREIGN
    assert repository.head(subject.digest.replace(":", "-")) == squatter.digest


def test_an_index_names_the_images_of_two_architectures(repository: Repository) -> None:
    made = [put_image(repository, salt=name) for name in ("amd64", "arm64")]
    entries = tuple(
        Descriptor(one.media_type, one.digest, len(one.body), architecture=name)
        for one, name in zip(made, ("amd64", "arm64"), strict=True)
    )
    index = distribution.index(entries)
    repository.put_manifest(index, "both")
    assert repository.head("both") == index.digest
    assert repository.manifest("both").media_type == distribution.OCI_INDEX


# -- damage ------------------------------------------------------------------------------------------


def test_what_was_damaged_in_the_registry_is_refused(plain: Shelf, repository: Repository) -> None:
    blob = repository.put_blob(os.urandom(100)).digest
    made = put_image(repository, "damaged", salt="damaged")
    for digest in (blob, made.digest):
        name = digest.removeprefix("sha256:")
        data = plain.top / f"storage/docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data"
        data.write_bytes(data.read_bytes()[::-1])
    assert failure_of(lambda: repository.blob(blob)).code is Code.IMAGE_CORRUPT
    damaged = failure_of(lambda: repository.manifest(made.digest))
    # The registry itself finds it out, or we do.
    assert damaged.code in (Code.IMAGE_CORRUPT, Code.REGISTRY_UNREACHABLE)


# -- who we are --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "auth", [None, {}, {"username": USER, "password": "wrong"}], ids=["nothing", "empty", "wrong"]
)
def test_a_password_is_wanted(tmp_path: Path, auth: dict[str, str] | None) -> None:
    with shelf(tmp_path, **password(tmp_path)) as locked:
        refused = failure_of(lambda: Repository(f"{locked.address}/{NAME}", auth, limits=QUICK).head("x"))
        assert (refused.code, refused.retry) == (Code.REGISTRY_AUTH, True)
        assert f"'{locked.address}'" in refused.sentence
        pushed = failure_of(lambda: Repository(f"{locked.address}/{NAME}", auth, limits=QUICK).check_push())
        assert pushed.code is Code.REGISTRY_AUTH
        known = Repository(f"{locked.address}/{NAME}", KNOWN, limits=QUICK)
        assert known.head(put_image(known, "x").digest)
        # Asked once who we are, it is told by itself from then on.
        before = len(locked.requests())
        assert [known.head("x") is None for _ in range(10)] == [False] * 10
        assert len(locked.requests()) == before + 10


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenServer]:
    made = TokenServer(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("auth", [KNOWN, {"identitytoken": PASSWORD}], ids=["password", "refresh token"])
def test_tokens_are_asked_for_once_for_each_scope(
    tmp_path: Path, tokens: TokenServer, auth: dict[str, str]
) -> None:
    with shelf(tmp_path, **tokens.configuration()) as locked:
        known = Repository(f"{locked.address}/{NAME}", auth, limits=Limits(connections=8))
        made = put_image(known, "x")
        scopes = [query["scope"] for query in tokens.asked]
        assert scopes == [[f"repository:{NAME}:pull"], [f"repository:{NAME}:pull,push"]]
        # Of eight that are asked at once who they are, one gets the token for all.
        fresh = Repository(f"{locked.address}/{NAME}", auth, limits=Limits(connections=8))
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(fresh.head, ["x"] * 40))
        assert found == [made.digest] * 40
        assert len(tokens.asked) == 3
        assert all(query["service"] == ["shelf"] for query in tokens.asked)
        # A mount needs a second scope.
        other = Repository(f"{locked.address}/team/other", auth, limits=QUICK)
        (layer,) = distribution.layers_of(made, LAYER)
        blob = Descriptor(LAYER, layer, len(known.blob(layer)))
        other.put_file(io.BytesIO(), blob, lambda _: None, source=known.name)
        assert tokens.asked[-1]["scope"] == ["repository:team/other:pull,push", f"repository:{NAME}:pull"]


def test_a_token_that_has_expired_is_replaced(tmp_path: Path, tokens: TokenServer) -> None:
    with shelf(tmp_path, **tokens.configuration()) as locked:
        known = Repository(f"{locked.address}/{NAME}", KNOWN, limits=QUICK)
        tokens.seconds = -90  # the registry's clock may be a minute off
        assert failure_of(lambda: known.head("x")).code is Code.REGISTRY_AUTH
        tokens.seconds = 300
        assert known.head("x") is None


def test_a_token_server_that_refuses_or_grants_nothing(tmp_path: Path, tokens: TokenServer) -> None:
    with shelf(tmp_path, **tokens.configuration()) as locked:
        name = f"{locked.address}/{NAME}"
        stranger = failure_of(lambda: Repository(name, limits=QUICK).head("x"))
        assert stranger.code is Code.REGISTRY_AUTH
        assert "token server answered with status 401" in stranger.sentence
        tokens.grants = False
        refused = failure_of(lambda: Repository(name, KNOWN, limits=QUICK).check_push())
        assert refused.code is Code.REGISTRY_AUTH


# -- TLS ---------------------------------------------------------------------------------------------


def test_a_registry_with_tls_is_trusted_by_its_authority_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = certificate(tmp_path)
    # "localhost" alone is loopback, asked without TLS; this name leads there as well.
    monkeypatch.setattr(distribution, "is_loopback", lambda _host: False)
    with shelf(tmp_path, **settings) as guarded:
        name = f"localhost:{guarded.port}/{NAME}"
        trusted = tmp_path / f"certs.d/localhost:{guarded.port}"
        trusted.mkdir(parents=True)
        authorities = tmp_path / "certs.d"
        refused = failure_of(lambda: Repository(name, limits=QUICK, authorities=authorities).head("x"))
        assert (refused.code, refused.retry) == (Code.REGISTRY_TLS, True)
        shutil.copy(tmp_path / "ca.crt", trusted / "ca.crt")
        known = Repository(name, limits=QUICK, authorities=authorities)
        made = put_image(known, "x")
        assert known.head("x") == made.digest
        (trusted / "ca.crt").write_text("nothing\n")
        broken = failure_of(lambda: Repository(name, limits=QUICK, authorities=authorities).head("x"))
        assert broken.code is Code.REGISTRY_TLS
        elsewhere = failure_of(
            lambda: Repository(
                f"127.0.0.1:{guarded.port}/{NAME}", limits=QUICK, authorities=authorities
            ).head("x")
        )
        assert elsewhere.code is Code.REGISTRY_TLS


def test_a_registry_without_tls_where_tls_is_wanted(plain: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "is_loopback", lambda _host: False)
    name = f"{plain.address}/{NAME}"
    assert failure_of(lambda: Repository(name, limits=QUICK).head("x")).code is Code.REGISTRY_TLS
    assert Repository(name, limits=QUICK, insecure=True).head("nothing") is None


# -- a registry that is away, or busy, or takes nothing ----------------------------------------------


def test_nobody_listens() -> None:
    name = f"127.0.0.1:{free_port()}/{NAME}"
    away = failure_of(lambda: Repository(name, limits=QUICK).head("x"))
    assert (away.code, away.retry) == (Code.REGISTRY_UNREACHABLE, True)
    assert "Connection refused" in away.sentence


def test_a_name_that_nobody_knows() -> None:
    away = failure_of(lambda: Repository(f"registry.invalid/{NAME}", limits=QUICK).head("x"))
    assert away.code is Code.REGISTRY_UNREACHABLE
    assert "'registry.invalid'" in away.sentence


def test_a_registry_that_takes_nothing(tmp_path: Path) -> None:
    with shelf(tmp_path) as closed:
        known = Repository(f"{closed.address}/{NAME}", limits=QUICK)
        made = put_image(known, "x")
        known.check_push()
        closed.start(readonly=True)
        refused = failure_of(known.check_push)
        assert (refused.code, refused.retry) == (Code.PUSH_REFUSED, False)
        assert "status 405" in refused.sentence
        assert known.head("x") == made.digest


@contextmanager
def busy(answers: list[tuple[int, dict[str, str]]]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers one after the other, and then what a registry says of a tag."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            asked.append(self.path)
            status, headers = answers.pop(0) if answers else (200, {"Docker-Content-Digest": NOWHERE})
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Nobody reads it."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}/{NAME}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("answers", "requests"),
    [
        pytest.param([(429, {"Retry-After": "0"})], 2, id="too many requests"),
        pytest.param([(503, {})], 2, id="away for a moment"),
        pytest.param([(429, {"Retry-After": "0"}), (502, {}), (504, {})], 4, id="three times"),
    ],
)
def test_a_busy_registry_is_asked_again(answers: list[tuple[int, dict[str, str]]], requests: int) -> None:
    with busy(answers) as (name, asked):
        assert Repository(name, limits=Limits()).head("x") == NOWHERE
        assert len(asked) == requests


def test_a_registry_that_stays_busy_is_given_up() -> None:
    with busy([(429, {"Retry-After": "0"})] * 50) as (name, asked):
        given_up = failure_of(lambda: Repository(name, limits=Limits(tries=3)).head("x"))
        assert given_up.code is Code.REGISTRY_UNREACHABLE
        assert "status 429" in given_up.sentence
        assert len(asked) == 3


def test_a_registry_that_does_not_answer(plain: Shelf) -> None:
    import signal

    child = plain._child
    assert child is not None
    repository = Repository(f"{plain.address}/{NAME}", limits=Limits(connect=2, read=1, tries=1))
    child.send_signal(signal.SIGSTOP)
    try:
        silent = failure_of(lambda: repository.head("x"))
    finally:
        child.send_signal(signal.SIGCONT)
    assert silent.code is Code.REGISTRY_STALLED
    assert "no answer for 1 s" in silent.sentence


def test_credentials_are_not_sent_where_the_network_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made = registry.Registry("registry.example", KNOWN, QUICK, insecure=False)
    asked = registry.Request("GET", "https://registry.example/v2/", "x", "repository:x:pull", {})
    header = {"www-authenticate": 'Bearer realm="http://elsewhere.example/token",service="s"'}
    answers = [registry.Answer(401, header, b"")]
    monkeypatch.setattr(made, "_send", lambda *_: answers.pop(0))
    refused = failure_of(lambda: made.ask(asked))
    assert refused.code is Code.REGISTRY_AUTH
    assert "http://elsewhere.example/token" in refused.sentence
    assert not answers


# -- connections -------------------------------------------------------------------------------------


def test_no_more_connections_than_configured(plain: Shelf) -> None:
    counting = Counting(plain.port)
    repository = Repository(f"{counting.address}/{NAME}", limits=Limits(connections=3))
    put_image(repository, "many")
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(repository.head, ["many", "nothing"] * 200))
    assert found.count(None) == 200
    assert counting.most == 3
    assert counting.opened == 3
    counting.close()
