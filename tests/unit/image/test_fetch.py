# SPDX-License-Identifier: Apache-2.0
"""Downloads from a real server on loopback: resumed, retried, limited, and never more than what came."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.world.fetch import Downloads, Limits
from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from tests.images.webserver import Fault, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nvidiad.nouns.model import Progress

CONTENT = hashlib.shake_128(b"7").digest(3 << 20)
QUICK = Limits(connect=2, stall=0.5, total=20, retries=2, pause=0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    root = tmp_path / "www"
    root.mkdir()
    (root / "file.bin").write_bytes(CONTENT)
    (root / "text").write_text("Grüße\n")
    (root / "folder").mkdir()
    served = Server(root).start()
    yield served
    served.stop()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "store" / "file.bin"


class Told:
    """Keeps the progress that was told."""

    def __init__(self) -> None:
        self.all: list[Progress] = []

    def __call__(self, progress: Progress) -> None:
        self.all.append(progress)


def left(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_whole_file(server: Server, target: Path) -> None:
    told = Told()
    assert Downloads(QUICK).file(f"{server.url}/file.bin", target, told)
    assert target.read_bytes() == CONTENT
    assert left(target) == ["file.bin"]
    assert (told.all[-1].done, told.all[-1].total) == (len(CONTENT), len(CONTENT))
    # What is there is not asked for again.
    assert Downloads(QUICK).file(f"{server.url}/file.bin", target, told)
    assert len(server.asked) == 1


@pytest.mark.parametrize(("etags", "ranges"), [(True, True), (True, False), (False, False)])
def test_a_cut_download_comes_whole(server: Server, target: Path, *, etags: bool, ranges: bool) -> None:
    server.etags, server.ranges = etags, ranges
    server.fail("file.bin", Fault(cut_after=1 << 20, times=2))
    told = Told()
    assert Downloads(QUICK).file(f"{server.url}/file.bin", target, told)
    assert target.read_bytes() == CONTENT
    assert any("trying again" in progress.detail for progress in told.all)
    if etags and ranges:
        assert [one.range for one in server.asked] == ["", f"bytes={1 << 20}-", f"bytes={2 << 20}-"]


def test_a_later_run_continues_where_the_first_was_cut(server: Server, target: Path) -> None:
    server.fail("file.bin", Fault(cut_after=1 << 20, times=1))
    server.faults["/file.bin"] = Fault(cut_after=0)
    with pytest.raises(Transient) as caught:
        Downloads(QUICK).file(f"{server.url}/file.bin", target, Told())
    assert caught.value.code is Code.DOWNLOAD_FAILED
    assert caught.value.sentence.endswith("the connection ended too early, 3 times without a byte")
    assert left(target) == ["file.bin.partial", "file.bin.partial.json"]
    assert target.with_name("file.bin.partial").stat().st_size == 1 << 20
    server.faults.clear()
    server.asked.clear()
    assert Downloads(QUICK).file(f"{server.url}/file.bin", target, Told())
    assert target.read_bytes() == CONTENT
    assert [one.range for one in server.asked] == [f"bytes={1 << 20}-"]


@pytest.mark.parametrize("size", [3 << 20, 1 << 18], ids=["as-long", "shorter-than-the-part"])
def test_a_file_that_changed_meanwhile_begins_anew(server: Server, target: Path, size: int) -> None:
    server.faults["/file.bin"] = Fault(cut_after=1 << 20, times=1)
    changed = hashlib.shake_128(b"8").digest(size)

    def tell(progress: Progress) -> None:
        if "trying again" in progress.detail:
            (server.root / "file.bin").write_bytes(changed)

    assert Downloads(QUICK).file(f"{server.url}/file.bin", target, tell)
    assert target.read_bytes() == changed


def test_a_whole_part_needs_no_server(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("file.bin.partial").write_bytes(CONTENT)
    notes = {"validator": '"x"', "total": len(CONTENT)}
    target.with_name("file.bin.partial.json").write_text(json.dumps(notes))
    assert Downloads(QUICK).file(f"{server.url}/file.bin", target, Told())
    assert target.read_bytes() == CONTENT
    assert server.asked == []


@pytest.mark.parametrize("notes", ["", "{", "[]", '{"validator": "", "total": 9}', '{"total": 1}'])
def test_a_part_of_unknown_origin_is_not_continued(server: Server, target: Path, notes: str) -> None:
    target.parent.mkdir()
    target.with_name("file.bin.partial").write_bytes(b"something else")
    if notes:
        target.with_name("file.bin.partial.json").write_text(notes)
    assert Downloads(QUICK).file(f"{server.url}/file.bin", target, Told())
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(CONTENT).digest()
    assert server.asked[0].range == ""


def test_what_is_not_there_is_no_failure(server: Server, target: Path) -> None:
    assert not Downloads(QUICK).file(f"{server.url}/nothing", target, Told())
    assert Downloads(QUICK).text(f"{server.url}/nothing") is None
    assert left(target) == []


def test_an_empty_file(server: Server, target: Path) -> None:
    (server.root / "empty").write_bytes(b"")
    assert Downloads(QUICK).file(f"{server.url}/empty", target, Told())
    assert target.read_bytes() == b""


def test_a_text_and_what_is_accepted(server: Server) -> None:
    downloads = Downloads(QUICK)
    assert downloads.text(f"{server.url}/text") == "Grüße\n"
    assert json.loads(downloads.text(f"{server.url}/", "application/json") or "")[0]["Name"] == "file.bin"


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.fail("/text", Fault(status=503, times=2))
    assert Downloads(QUICK).text(f"{server.url}/text") == "Grüße\n"
    assert [one.status for one in server.asked] == [503, 503, 200]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        pytest.param(Fault(status=503), "the server answered 503 Service Unavailable", id="always-busy"),
        pytest.param(Fault(status=403), "the server answered 403 Forbidden", id="refused"),
        pytest.param(Fault(cut_after=3), "the connection ended too early", id="cut"),
        pytest.param(Fault(silent_after=3), "no answer in time", id="silent"),
    ],
)
def test_a_text_that_cannot_be_had(server: Server, fault: Fault, why: str) -> None:
    server.fail("/text", fault)
    with pytest.raises(Transient) as caught:
        Downloads(QUICK).text(f"{server.url}/text")
    assert caught.value.code is Code.DOWNLOAD_FAILED
    assert caught.value.sentence == f"'{server.url}/text' cannot be downloaded: {why}"


def test_a_file_that_falls_silent_is_continued(server: Server, target: Path) -> None:
    server.fail("file.bin", Fault(silent_after=1 << 20, times=1))
    told = Told()
    assert Downloads(QUICK).file(f"{server.url}/file.bin", target, told)
    assert target.read_bytes() == CONTENT
    assert any("no answer in time, trying again" in progress.detail for progress in told.all)


def test_the_limit_for_one_file(server: Server, target: Path) -> None:
    with pytest.raises(Transient, match="it took longer than 0 s"):
        Downloads(Limits(total=0)).file(f"{server.url}/file.bin", target, Told())


def test_nobody_listens(server: Server, target: Path) -> None:
    url = server.url
    server.stop()
    with pytest.raises(Transient, match="Connection refused"):
        Downloads(QUICK).file(f"{url}/file.bin", target, Told())


@pytest.mark.parametrize("url", ["gopher://x/y", "http://[::bad/", "nothing"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(Failure) as caught:
        Downloads(QUICK).text(url)
    assert caught.value.code is Code.DOWNLOAD_FAILED
    assert caught.value.sentence.startswith(f"'{url}' cannot be downloaded: ")


def test_what_is_no_text(server: Server) -> None:
    with pytest.raises(Permanent, match="is not a text"):
        Downloads(QUICK).text(f"{server.url}/file.bin")


def test_a_proxy_of_the_environment(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert Downloads(QUICK).text("http://far.away.test/text") == "Grüße\n"
    assert server.asked[0].path == "http://far.away.test/text"
    assert Downloads(QUICK).text(f"{server.url}/text") == "Grüße\n"
    assert server.asked[1].path == "/text"
