# SPDX-License-Identifier: Apache-2.0
"""Registries that are not what they seem: who is told who we are, and who may keep us waiting."""

from __future__ import annotations

import json
import threading
import time
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.thought import distribution
from nvidiad.thought.distribution import Document
from nvidiad.thought.pull import parse_reference
from nvidiad.world import images
from nvidiad.world.images import DockerImages, Timeouts
from nvidiad.world.registry import Limits
from nvidiad.world.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIGEST = "sha256:" + "a" * 64
AUTH = {"username": "user", "password": "secret"}


class Handler(BaseHTTPRequestHandler):
    """Answers as its test says, and keeps what it was sent."""

    seen: ClassVar[list[tuple[str, str | None]]]
    act: ClassVar[Callable[[Handler], None]]

    def do_GET(self) -> None:
        self.seen.append((self.path.partition("?")[0], self.headers.get("Authorization")))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        type(self).act(self)

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def serving(act: Callable[[Handler], None]) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    seen: list[tuple[str, str | None]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Acting", (Handler,), {"seen": seen, "act": act}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("way", ["whole", "in pieces"])
def test_a_storage_that_asks_who_we_are_is_not_told(way: str) -> None:
    def store(handler: Handler) -> None:
        here = f"http://{handler.headers['Host']}/token"
        handler.answer(401, WWW_Authenticate=f'Bearer realm="{here}",service="s"')

    with serving(store) as (storage, told):

        def redirect(handler: Handler) -> None:
            handler.answer(307, Location=f"http://{storage}/bucket/blob")

        with (
            serving(redirect) as (registry, asked),
            closing(Repository(f"{registry}/nv", AUTH, limits=Limits(1, 2, tries=1))) as repository,
        ):
            if way == "whole":
                with pytest.raises(Failure):
                    repository.blob(DIGEST)
            else:
                with repository.flow(DIGEST) as flow:
                    assert flow.status == 401
        assert told == [("/bucket/blob", None)]
        assert len(asked) == 1


def test_a_token_that_can_stand_in_no_header_is_a_failure_with_words() -> None:
    def act(handler: Handler) -> None:
        if handler.path.startswith("/token"):
            handler.answer(200, json.dumps({"token": "a\nb"}).encode())
        else:
            here = f"http://{handler.headers['Host']}/token"
            handler.answer(401, WWW_Authenticate=f'Bearer realm="{here}",service="s"')

    with (
        serving(act) as (registry, _),
        closing(Repository(f"{registry}/nv", AUTH, limits=Limits(1, 2, tries=1))) as repository,
        pytest.raises(Failure),
    ):
        repository.blob(DIGEST)


def test_what_is_asked_beside_the_engine_takes_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that sends a byte now and then is never silent."""
    monkeypatch.setattr(images, "_BESIDE_ALL", 2)
    over = threading.Event()

    def drip(handler: Handler) -> None:
        handler.send_response_only(200)
        handler.end_headers()
        while not over.wait(0.1):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return

    with serving(drip) as (registry, seen):
        began = time.monotonic()
        adapter = DockerImages("unix:///nowhere", None, Timeouts(1, 2, 20))
        assert adapter._beside(parse_reference(f"{registry}/nv:1"), DIGEST, None) is None
        assert 1.9 < time.monotonic() - began < 20
        assert seen
        # Who still waits there is enough: with every attempt it would be one more.
        began = time.monotonic()
        assert adapter._beside(parse_reference(f"{registry}/nv:1"), DIGEST, None) is None
        assert time.monotonic() - began < 1.5
        assert len(beside()) == 1
        over.set()
        for thread in beside():
            thread.join(10)
        assert beside() == []


def beside() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "beside"]


@pytest.mark.parametrize("lists", [True, False], ids=["lists referrers", "lists none"])
def test_a_registry_that_lists_referrers_gets_no_tag_for_them(lists: bool) -> None:  # noqa: FBT001
    """OCI distribution 1.1: it says so when it takes one."""
    subject = Document(distribution.OCI_MANIFEST, b"{}")
    kept: list[str] = []

    def act(handler: Handler) -> None:
        if handler.command == "HEAD":
            there = "/blobs/" in handler.path
            handler.send_response_only(200 if there else 404)
            handler.end_headers()
            return
        assert handler.command == "PUT"
        kept.append(handler.path.rpartition("/")[2])
        said = {"OCI_Subject": subject.digest} if lists and ":" in kept[-1] else {}
        handler.answer(201, b"", **said)

    with (
        serving(act) as (registry, _),
        closing(Repository(f"{registry}/nv", limits=Limits(1, 2, tries=1))) as repository,
    ):
        digest = repository.put_referrer(subject, "application/vnd.test+json", b"{}")
    assert kept == [digest, *([] if lists else [distribution.referrers_tag(subject.digest)])]


def endless_body(handler: Handler) -> None:
    handler.send_response_only(200)
    handler.send_header("Content-Length", str(4 << 20))
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def endless_beginning(handler: Handler) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def endless_trailer(handler: Handler) -> None:
    handler.send_response_only(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"2\r\n{}\r\n0\r\n")
    while True:
        handler.wfile.write(b"x: y\r\n" * 1000)


@pytest.mark.parametrize("act", [endless_body, endless_beginning, endless_trailer])
def test_an_answer_that_never_ends_is_cut(act: Callable[[Handler], None]) -> None:
    def until_gone(handler: Handler) -> None:
        with suppress(OSError):
            act(handler)

    with serving(until_gone) as (registry, _):
        limits = Limits(5, 5, tries=1, whole=0.5)
        began = time.monotonic()
        with closing(Repository(f"{registry}/nv", limits=limits)) as asked, pytest.raises(Failure) as caught:
            asked.manifest(DIGEST)
        assert caught.value.code is Code.REGISTRY_STALLED
        assert "not done within 0.5 s" in caught.value.sentence
        assert time.monotonic() - began < 20


def test_a_registry_that_is_done_in_time_is_not_cut() -> None:
    def act(handler: Handler) -> None:
        handler.answer(200, b"{}", Docker_Content_Digest=distribution.digest_of(b"{}"))

    with serving(act) as (registry, _):
        with closing(Repository(f"{registry}/nv", limits=Limits(5, 5, whole=60))) as asked:
            assert asked.manifest("tag").body == b"{}"
        timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
        for timer in timers:
            timer.join(5)
        assert not any(timer.is_alive() for timer in timers), "it still waits to cut what is over"


def test_a_refresh_token_is_not_sent_on_to_another_host() -> None:
    with serving(lambda handler: handler.answer(200, b'{"token": "t"}')) as (thief, stolen):

        def act(handler: Handler) -> None:
            if handler.path.startswith("/token"):
                handler.answer(307, Location=f"http://{thief}/steal")
            else:
                realm = f'Bearer realm="http://{handler.headers["Host"]}/token",service="r"'
                handler.answer(401, WWW_Authenticate=realm)

        with serving(act) as (registry, seen):
            asked = Repository(f"{registry}/nv", {"identitytoken": "secret"}, limits=Limits(5, 5))
            with closing(asked), pytest.raises(Failure) as caught:
                asked.head("tag")
            assert caught.value.code is Code.REGISTRY_AUTH
            assert [path for path, _ in seen] == ["/v2/nv/manifests/tag", "/token"]
        assert stolen == []


def test_referrers_are_read_to_their_last_page_with_their_types() -> None:
    def act(handler: Handler) -> None:
        second = "page=2" in handler.path
        one = {"digest": "sha256:" + ("2" if second else "1") * 64, "artifactType": "x" if second else 3}
        body = json.dumps({"manifests": [one, {"digest": "sha256:short"}, 7]}).encode()
        here = handler.path.partition("?")[0]
        more = {} if second else {"Link": f'<{here}?page=2>; rel="next"'}
        handler.answer(200, body, **more)

    with serving(act) as (registry, _), closing(Repository(f"{registry}/nv", limits=Limits(5, 5))) as asked:
        assert asked.referrers(DIGEST) == (("sha256:" + "1" * 64, ""), ("sha256:" + "2" * 64, "x"))


def test_referrers_that_never_end_are_not_read_for_ever() -> None:
    def act(handler: Handler) -> None:
        handler.answer(200, b"{}", Link=f'<{handler.path}>; rel="next"')

    with serving(act) as (registry, seen):
        with closing(Repository(f"{registry}/nv", limits=Limits(5, 5))) as asked:
            assert asked.referrers(DIGEST) == ()
        assert len(seen) == 8
