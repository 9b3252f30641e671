# SPDX-License-Identifier: Apache-2.0
"""Layers without an engine: archives within bounds, what several come to, and streams that break."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import tarfile
import threading
import time
import zlib
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from nvidiad.nouns.errors import Code, Failure
from nvidiad.thought import layers, refusals, tar
from nvidiad.thought.layers import Content, Folder, Hidden, Link, Odd, Same
from nvidiad.thought.tar import Sort
from nvidiad.world import downloads, unpacking
from nvidiad.world.downloads import Blob, Patience, Stream
from nvidiad.world.pace import Pace
from nvidiad.world.registry import Flow
from nvidiad.world.unpacking import Bounds, Layer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TREE = "opt/nvidia/535.309.01/3975.2.0"
LONG = "x" * 150
WHAT = "registry.example/nvidia-driver:1"


def archive(*members: tuple[str, Any], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of files (bytes) and of what else is said as the attributes of a member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
                continue
            for key, value in content.items():
                setattr(info, key, value)
            made.addfile(info)
    return out.getvalue()


LINK, HARD = {"type": tarfile.SYMTYPE}, {"type": tarfile.LNKTYPE}
FOLDER, DEVICE = {"type": tarfile.DIRTYPE}, {"type": tarfile.CHRTYPE}


def listed(data: bytes) -> list[tar.Member]:
    stream = Stream(iter([data]))
    return list(tar.members(stream.read, stream.skip))


# -- archives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_every_form_are_read_as_tarfile_reads_them(form: int) -> None:
    names = ["a", f"{'d' * 90}/{'e' * 90}"] if form == tarfile.USTAR_FORMAT else ["a", LONG, f"{LONG}/ü"]
    made = archive(
        *((name, b"c" * number) for number, name in enumerate(names, 510)),
        ("link", {**LINK, "linkname": "a"}),
        ("hard", {**HARD, "linkname": "a"}),
        ("folder/", FOLDER),
        ("null", DEVICE),
        form=form,
    )
    with tarfile.open(fileobj=io.BytesIO(made)) as known:
        wanted = [(each.name, each.size, each.linkname) for each in known]
    found = listed(made)
    assert [(each.name.rstrip("/"), each.size, each.target) for each in found] == wanted
    assert [each.sort for each in found][-4:] == [Sort.LINK, Sort.HARD_LINK, Sort.DIRECTORY, Sort.DEVICE]


def header(**fields: Any) -> bytes:
    info = tarfile.TarInfo("opt/nvidia/x")
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"no archive" * 60, "not octal"),
        (header()[:148] + b"0000001\0" + header()[156:], "damaged"),
        (header()[:100], "middle of a header"),
        (header(size=5) + b"abc", "middle of a member"),
        (header(type=b"x", size=1 << 21), "beyond all bounds"),
        (header(type=b"L", size=1 << 40), "beyond all bounds"),
        (header(size=1 << 60), "beyond all bounds"),
        (header(type=b"x", size=20) + b"99 path=evil\n".ljust(512, b"\0"), "damaged"),
        (header(type=b"x", size=15) + b"15 size=xxxxxx\n".ljust(512, b"\0") + header(), "no number"),
        (header(type=b"x", size=12) + b"12 path=evil", "middle of an extended header"),
        ((header(type=b"x", size=6) + b"6 a=b\n".ljust(512, b"\0")) * 65, "beyond all bounds"),
        (archive(("a", {**LINK, "linkname": "b" * 5000})), "a path is beyond all bounds"),
        (archive(("a" * 5000, b"")), "a path is beyond all bounds"),
    ],
)
def test_what_is_no_archive_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        listed(data)


def test_a_sparse_file_is_told_from_a_file() -> None:
    record = b"22 GNU.sparse.major=1\n"
    made = header(type=b"x", size=len(record)) + record.ljust(512, b"\0") + header() + bytes(1024)
    assert [each.sort for each in listed(made)] == [Sort.SPARSE]
    assert [each.sort for each in listed(header(type=b"S") + bytes(1024))] == [Sort.SPARSE]


def test_of_an_extended_header_only_what_is_needed_is_kept() -> None:
    made = archive(("etc/x", {"pax_headers": {"comment": "a" * 1000, "path": "b", "mtime": "1.5"}}))
    stream = Stream(iter([made]))
    archived = tar.members(stream.read, stream.skip)
    assert next(archived).name == "b"
    assert tar._records(b"19 comment=" + b"a" * 7 + b"\n" + b"10 path=b\n") == {"path": "b"}


# -- paths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (f"./{TREE}/bin/x", f"{TREE}/bin/x"),
        (f"/{TREE}//bin/./x", f"{TREE}/bin/x"),
        ("opt/cuda/12/x", "opt/cuda/12/x"),
        ("opt", "opt"),
        ("opt/nvidia/", "opt/nvidia"),
        ("opt/.wh.nvidia", "opt/.wh.nvidia"),
        (".wh.opt", ".wh.opt"),
        (".wh..wh..opq", ".wh..wh..opq"),
        ("opt/other/x", ""),
        ("optional", ""),
        ("etc/passwd", ""),
        (f"{TREE}/../../../../etc/passwd", ""),
        ("../opt/nvidia/x", ""),
    ],
)
def test_only_what_may_concern_a_tree_has_a_path(name: str, path: str) -> None:
    assert layers.path_of(name) == path


def test_a_path_beyond_all_bounds_is_refused() -> None:
    inside = f"{'a/' * 32}{'b' * 900}"
    assert layers.path_of(f"{TREE}/{inside}") == f"{TREE}/{inside}"
    for name in (f"{TREE}/a/{inside}", f"opt/nvidia/{'a' * 1500}"):
        with pytest.raises(ValueError, match="too long"):
            layers.path_of(name)


FILE, OTHER = Content("0-0", 1, "a"), Content("1-0", 2, "b")
MERGED: dict[str, tuple[list[layers.Listing], dict[str, object]]] = {
    "one over the other": ([[("opt/a", FILE)], [("opt/a", OTHER)]], {"opt/a": OTHER}),
    "a file over a folder": ([[("opt", Folder()), ("opt/a", FILE)], [("opt", OTHER)]], {"opt": OTHER}),
    "a link over a folder": ([[("opt/a/b", FILE)], [("opt/a", Link("x"))]], {"opt/a": Link("x")}),
    "a folder over a folder": (
        [[("opt", Folder()), ("opt/a", FILE)], [("opt", Folder())]],
        {"opt": Folder(), "opt/a": FILE},
    ),
    "gone": ([[("opt/a/b", FILE), ("opt/c", FILE)], [("opt/a", Hidden(inside=False))]], {"opt/c": FILE}),
    "gone, and there again": (
        [[("opt/a", FILE)], [("opt/a", OTHER), ("opt/a", Hidden(inside=False))]],
        {"opt/a": OTHER},
    ),
    "all of a folder gone": (
        [[("opt", Folder()), ("opt/a", FILE)], [("opt/b", OTHER), ("opt", Hidden(inside=True))]],
        {"opt": Folder(), "opt/b": OTHER},
    ),
    "all gone": ([[("opt/a", FILE)], [("", Hidden(inside=True))]], {}),
    "a hard link": ([[("opt/a", FILE)], [("opt/b", Same("opt/a"))]], {"opt/a": FILE, "opt/b": FILE}),
    "a hard link to nothing": ([[("opt/b", Same(""))]], {"opt/b": Odd("a hard link to what is not there")}),
}


@pytest.mark.parametrize("name", MERGED)
def test_what_layers_come_to(name: str) -> None:
    given, expected = MERGED[name]
    assert layers.merged(given) == expected


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        ((), "no tree"),
        (("opt/nvidia/1/manifest.json",), "no tree"),
        ((f"{TREE}/manifest.json", "opt/cuda/12/manifest.json"), "2 trees"),
    ],
)
def test_an_image_has_one_tree(paths: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        layers.tree_in(dict.fromkeys(paths, FILE))
    assert layers.tree_in({f"{TREE}/manifest.json": FILE, "opt/cuda/12/manifest.json": Link("x")}) == TREE


# -- streams -----------------------------------------------------------------------------------------


class Place:
    """A place that gives content as a test says: each answer is a status, what comes, and how it ends."""

    name = WHAT

    def __init__(self, content: bytes, *answers: tuple[int, int, Code | None]) -> None:
        self.content = content
        self.asked: list[str] = []
        self._answers = itertools.chain(answers, itertools.repeat((206, 1 << 30, None)))

    @contextmanager
    def flow(self, digest: str, part: str = "") -> Iterator[Flow]:
        self.asked.append(part)
        status, most, code = next(self._answers)
        first = int(part.removeprefix("bytes=").removesuffix("-") or 0) if status == 206 else 0
        at, end = first, first + most

        def read(count: int) -> bytes:
            nonlocal at
            piece = self.content[at : min(at + min(count, 1000), end)]
            at += len(piece)
            if not piece and code:
                raise refusals.failure(code, WHAT, "broken off")
            return piece

        yield Flow(status, {}, read)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def patience(seconds: float = 30, pace: Pace | None = None) -> Patience:
    return Patience(threading.Event(), time.monotonic() + seconds, seconds, pace)


def download(places: list[Any], content: bytes, size: int = 0, **more: Any) -> bytes:
    blob = Blob(digest(content), size or len(content), WHAT)
    return b"".join(downloads.pieces(places, blob, patience(**more), lambda _: None))


CONTENT = bytes(range(256)) * 40
CUT = Code.REGISTRY_UNREACHABLE


def test_what_is_cut_is_taken_up_where_it_ended() -> None:
    place = Place(CONTENT, (200, 3000, CUT), (206, 2500, None), (200, 6000, CUT))
    assert download([place], CONTENT) == CONTENT
    # The third answer knew nothing of parts, and what was known of it was left out.
    assert place.asked == ["", "bytes=3000-", "bytes=5500-", "bytes=6000-"]


def test_the_next_place_goes_on_where_another_ended() -> None:
    first, second = Place(CONTENT, (200, 3000, CUT)), Place(CONTENT)
    assert download([first, second], CONTENT) == CONTENT
    assert (first.asked, second.asked) == ([""], ["bytes=3000-"])
    for wrong in ((404, 10, None), (200, 100, Code.REGISTRY_STALLED), (403, 10, None)):
        assert download([Place(CONTENT, *[wrong] * 9), Place(CONTENT)], CONTENT) == CONTENT


def test_a_slow_mirror_leaves_its_registry_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that only the mirror moves on: a machine that is busy takes no time from the registry.
    clock = SimpleNamespace(now=time.monotonic())
    monkeypatch.setattr(downloads, "time", SimpleNamespace(monotonic=lambda: clock.now))

    class Slow(Place):
        @contextmanager
        def flow(self, digest: str, part: str = "") -> Iterator[Flow]:
            with super().flow(digest, part) as flow:

                def read(_: int) -> bytes:
                    clock.now += 0.1
                    return flow.read(10)

                yield Flow(flow.status, {}, read)

    mirror, registry = Slow(CONTENT), Place(CONTENT)
    assert download([mirror, registry], CONTENT, seconds=2) == CONTENT
    assert mirror.asked == [""] and len(registry.asked) == 1


def test_pauses_end_with_the_time_for_all_of_it() -> None:
    class Watched(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0)
            return False

    def pause(count: int, seconds: float) -> None:
        waited.clear()
        places: list[Any] = [Place(CONTENT, *[(200, 0, CUT)] * 64) for _ in range(count)]
        patient = Patience(Watched(), time.monotonic() + seconds, seconds)
        with pytest.raises(Failure):
            list(downloads.pieces(places, Blob(digest(CONTENT), 10, WHAT), patient, lambda _: None))
        assert waited

    waited: list[float] = []
    pause(5, 1000)
    assert max(waited) < 15
    pause(5, 1)
    assert max(waited) <= 1


@pytest.mark.parametrize(
    ("answers", "size", "code"),
    [
        ([(200, 0, CUT)] * 9, 0, Code.REGISTRY_UNREACHABLE),
        ([(500, 10, None)] * 9, 0, Code.REGISTRY_UNREACHABLE),
        ([(200, 100, Code.REGISTRY_STALLED)], 0, Code.REGISTRY_STALLED),
        ([(401, 10, None)], 0, Code.REGISTRY_AUTH),
        ([(404, 10, None)], 0, Code.IMAGE_CORRUPT),
        ([(200, 1 << 30, None)], len(CONTENT) - 1, Code.IMAGE_CORRUPT),
        ([(200, 1 << 30, None), (416, 0, None)], len(CONTENT) + 1, Code.IMAGE_CORRUPT),
    ],
)
def test_what_does_not_come_is_told_by_its_code(
    answers: list[tuple[int, int, Code | None]], size: int, code: Code
) -> None:
    with pytest.raises(Failure) as caught:
        download([Place(CONTENT, *answers)], CONTENT, size)
    assert caught.value.code is code
    assert WHAT in caught.value.sentence


def test_a_download_ends_at_its_limit_and_keeps_its_pace() -> None:
    with pytest.raises(Failure) as caught:
        download([Place(CONTENT)], CONTENT, seconds=-1)
    assert caught.value.code is Code.PULL_TIMEOUT
    began = time.monotonic()
    assert download([Place(CONTENT)], CONTENT, pace=Pace(20_000)) == CONTENT
    assert time.monotonic() - began > (len(CONTENT) - 6000) / 20_000


MEMBERS = gzip.compress(b"one") + gzip.compress(b"two") + bytes(512)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", b""),
        (b"ab", b"ab"),
        (CONTENT, CONTENT),
        (gzip.compress(CONTENT), CONTENT),
        (MEMBERS, b"onetwo"),
    ],
    ids=["nothing", "short", "plain", "compressed", "in members"],
)
@pytest.mark.parametrize("step", [1, 7, 4096])
def test_what_is_compressed_is_unpacked_however_it_is_cut(data: bytes, expected: bytes, step: int) -> None:
    cut = (data[at : at + step] for at in range(0, len(data), step))
    assert b"".join(downloads.inflated(cut)) == expected


def test_a_bomb_comes_in_pieces() -> None:
    bomb = gzip.compress(bytes(64 << 20), 9)
    largest = max(len(piece) for piece in downloads.inflated(iter([bomb])))
    assert largest <= 1 << 18


@pytest.mark.parametrize(
    "data",
    [gzip.compress(CONTENT)[:-9], gzip.compress(CONTENT)[:50], b"\x1f\x8bxxxxxxxxx"],
    # Not the bytes, which have the time in them: two processes must find the same tests.
    ids=["without its end", "half", "no compression"],
)
def test_damaged_compression_is_no_end(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"middle of|rror"):
        list(downloads.inflated(iter([data])))


def test_zstd_is_read_or_said_to_be_unreadable(tmp_path: Path) -> None:
    try:
        zstd = downloads._zstd()
    except downloads.Unreadable:
        assert failure_of(tmp_path, b"\x28\xb5\x2f\xfdxxxx").code is Code.IMAGE_FOREIGN
        return
    made = zstd.compress(archive((f"{TREE}/a", b"a")))
    assert unpacked(tmp_path, made)[f"{TREE}/a"]


# -- all together ------------------------------------------------------------------------------------


def unpacked(directory: Path, *given: bytes, bounds: Bounds | None = None, **more: Any) -> dict[str, Any]:
    class Many(Place):
        @contextmanager
        def flow(self, digest: str, part: str = "") -> Iterator[Flow]:
            self.content = known[digest]
            with Place(known[digest]).flow(digest, part) as flow:
                yield Flow(200, {}, flow.read)

    known = {digest(each): each for each in given} | more.pop("spoiled", {})
    wanted = [Layer(Blob(name, len(known[name]), WHAT)) for name in known]
    places: list[Any] = [Many(b"")]
    return unpacking.unpack(
        places, wanted, directory, bounds or Bounds(1 << 20, 100), patience(), lambda _: None
    )


def failure_of(directory: Path, *given: bytes, **more: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        unpacked(directory, *given, **more)
    assert WHAT in caught.value.sentence
    return caught.value


def test_files_land_under_numbers_and_nothing_else_is_written(tmp_path: Path) -> None:
    target = tmp_path / "landed"
    target.mkdir()
    base = archive(("bin/sh", b"sh"), (f"{TREE}/a", b"old"), (f"{TREE}/gone", b"x"))
    top = archive(
        (f"{TREE}/a", b"new"),
        (f"{TREE}/.wh.gone", b""),
        (f"{TREE}/link", {**LINK, "linkname": "/etc/passwd"}),
        (f"{TREE}/hard", {**HARD, "linkname": f"./{TREE}/a"}),
        (f"{TREE}/evil", {**HARD, "linkname": "../../etc/passwd"}),
        (f"{TREE}/null", DEVICE),
        ("../../escape", b"evil"),
        (f"/{TREE}/../../../../../{tmp_path}/escape", b"evil"),
    )
    found = unpacked(target, gzip.compress(base), top)
    assert [path.name for path in tmp_path.iterdir()] == ["landed"]
    item = found[f"{TREE}/a"]
    assert (target / item.name).read_bytes() == b"new"
    assert item.sha256 == hashlib.sha256(b"new").hexdigest()
    assert found[f"{TREE}/hard"] == item
    assert found[f"{TREE}/link"] == Link("/etc/passwd")
    assert isinstance(found[f"{TREE}/evil"], Odd) and isinstance(found[f"{TREE}/null"], Odd)
    assert set(found) == {f"{TREE}/{name}" for name in ("a", "hard", "link", "evil", "null")}


def test_what_is_not_what_its_digest_says_is_corrupt(tmp_path: Path) -> None:
    good = gzip.compress(archive((f"{TREE}/a", b"a")))
    other = gzip.compress(archive((f"{TREE}/a", b"b")))
    assert failure_of(tmp_path, spoiled={digest(good): other}).code is Code.IMAGE_CORRUPT
    more = good + gzip.compress(b"hidden behind the end")
    assert failure_of(tmp_path / "..", spoiled={digest(good): more}).code is Code.IMAGE_CORRUPT


def test_no_more_is_written_than_an_image_may_have(tmp_path: Path) -> None:
    made = archive((f"{TREE}/a", bytes(5000)), (f"{TREE}/b", bytes(6000)))
    told = failure_of(tmp_path, made, bounds=Bounds(10_000, 9))
    assert told.code is Code.MANIFEST_INVALID and "10000 bytes" in told.sentence
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000
    many = archive(*((f"{TREE}/f{number}", FOLDER) for number in range(20)))
    assert failure_of(tmp_path, many, bounds=Bounds(10_000, 9)).code is Code.MANIFEST_INVALID


def test_no_more_is_listed_than_memory_has_room_for(tmp_path: Path) -> None:
    flat = [(f"{TREE}/{'a/' * 20}{number}", FOLDER) for number in range(50)]
    deep = [(f"{TREE}/{number}/{'a/' * 20}b", FOLDER) for number in range(50)]
    bounds = Bounds(0, 100, 100_000)
    assert len(unpacked(tmp_path, archive(*flat), bounds=bounds)) == 50
    told = failure_of(tmp_path, archive(*deep), bounds=bounds)
    assert told.code is Code.MANIFEST_INVALID and "paths" in told.sentence
    # Text with one character beyond the BMP takes four bytes for each of it.
    for name, fits in (("x", True), ("\U0001f600", False)):
        wide = archive(*((f"{TREE}/{number}{name}{'x' * 200}", FOLDER) for number in range(50)))
        if fits:
            assert len(unpacked(tmp_path, wide, bounds=bounds)) == 50
        else:
            assert "paths" in failure_of(tmp_path, wide, bounds=bounds).sentence


@pytest.mark.parametrize("who", ["the caller", "another layer"])
def test_whoever_waits_for_bytes_is_let_go_when_it_is_over(tmp_path: Path, who: str) -> None:
    class Slow(Pace):
        def take(self, count: int) -> bool:
            if count < 1000:
                return waiting.wait(10)
            waiting.set()
            return super().take(count)

    class Many(Place):
        @contextmanager
        def flow(self, digest: str, part: str = "") -> Iterator[Flow]:
            with Place(known[digest]).flow(digest, part) as flow:
                yield Flow(200, {}, flow.read)

    def watch(_: int) -> None:
        if who == "the caller":
            raise KeyboardInterrupt

    waiting = threading.Event()
    layer = CONTENT if who == "the caller" else b"no archive" * 60
    known = {digest(each): each for each in (layer, CONTENT * 10)}
    wanted = [Layer(Blob(name, len(data), WHAT)) for name, data in known.items()]
    places: list[Any] = [Many(b"")]
    began = time.monotonic()
    with pytest.raises((KeyboardInterrupt, Failure)):
        unpacking.unpack(places, wanted, tmp_path, Bounds(1, 9), patience(pace=Slow(100)), watch)
    assert time.monotonic() - began < 9


def test_of_several_layers_the_one_that_failed_is_told(tmp_path: Path) -> None:
    good = [archive((f"{TREE}/{name}", bytes(200_000))) for name in "abcd"]
    told = failure_of(tmp_path, *good, zlib.compress(b"no archive") + bytes(600))
    assert told.code is Code.IMAGE_CORRUPT
