# SPDX-License-Identifier: Apache-2.0
"""Downloads: small texts and large files over HTTP, resumed where they were cut, every wait with a limit."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import urllib3

from nvidiad import __version__
from nvidiad.nouns.errors import Code, Permanent, Transient
from nvidiad.nouns.model import Progress
from nvidiad.nouns.value import Value
from nvidiad.thought import refusals
from nvidiad.world import authorities, files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_STEP = "download"
_OK, _PARTIAL, _NOT_SATISFIABLE = 200, 206, 416
_ABSENT = (404, 410)
_BUSY = (429, 500, 502, 503, 504)
# A server that cuts a download gets another request; after this many that brought nothing it is given up.
_FRUITLESS = 3
_SMALL = 16 << 20
_PIECE = 1 << 18
_TOLD_EVERY = 4 << 20
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_REMEDY = "Try again: what came is kept where a cache is given. Look at the network, or name another mirror."


class Limits(Value):
    """Seconds: to connect, of silence, for one file; how often a connection or a busy server is retried."""

    connect: float = 10
    stall: float = 60
    total: float = 7200
    retries: int = 4
    pause: float = 0.5
    """Before the second retry; doubled for each one that follows."""


class Downloads:
    """Fetches URLs; proxies come from the environment, as for other programs."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._pools: dict[str, urllib3.PoolManager] = {}

    def text(self, url: str, accept: str = "") -> str | None:
        """The text at a URL, for which `accept` names a media type; None where the server has none.

        Raises:
            Transient: download-failed, where it cannot be had.
            Permanent: feed-invalid, where it is no text, or an endless one.
        """
        data = self.small(url, accept)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError:
            raise Permanent(Code.FEED_INVALID, f"'{url}' is not a text", "Name another mirror.") from None

    def small(self, url: str, accept: str = "") -> bytes | None:
        """Like `text`, of whatever bytes there are."""
        with self._answer(url, {"Accept": accept} if accept else {}) as response:
            if response.status in _ABSENT:
                return None
            if response.status != _OK:
                raise _refused(url, response)
            data = bytearray()
            deadline = time.monotonic() + self._limits.total
            try:
                for piece in self._pieces(url, response, deadline):
                    data += piece
                    if len(data) > _SMALL:
                        raise Permanent(Code.FEED_INVALID, f"'{url}' is larger than {_SMALL} bytes")
            except _Cut as cut:
                raise _failed(url, str(cut)) from None
            return bytes(data)

    def file(self, url: str, target: Path, tell: Callable[[Progress], None]) -> bool:
        """Let `target` be the file at a URL; False where the server says that there is none.

        What has the target's name already is taken as it is. A download that was cut is continued from
        `TARGET.partial`, also by a later call, as long as the server's file is the same: its ETag or date
        and its size are kept beside it.

        Raises:
            Transient: download-failed; what came is kept for the next call.
        """
        if target.exists():
            return True
        with files.explained(f"writing '{target}'", Code.DOWNLOAD_FAILED):
            files.make_directory(target.parent)
            part = _Part(target)
            deadline = time.monotonic() + self._limits.total
            fruitless = 0
            while not part.whole:
                had = part.size
                try:
                    if not self._continue(url, part, deadline, tell):
                        return False
                except _Cut as cut:
                    fruitless = 0 if part.size > had else fruitless + 1
                    if fruitless >= _FRUITLESS:
                        raise _failed(url, f"{cut}, {_FRUITLESS} times without a byte") from None
                    tell(Progress(_STEP, f"'{url}': {cut}, trying again", part.size, part.total))
            part.complete()
        return True

    def _continue(self, url: str, part: _Part, deadline: float, tell: Callable[[Progress], None]) -> bool:
        """One request for what is still missing; False where the server says that there is no such file."""
        with self._answer(url, part.conditions()) as response:
            if response.status in _ABSENT:
                part.forget()
                return False
            if response.status == _NOT_SATISFIABLE:
                part.forget()
                raise _Cut("the file is another one now")
            if response.status not in (_OK, _PARTIAL):
                raise _refused(url, response)
            part.begin(response)
            told = part.size
            tell(Progress(_STEP, url, part.size, part.total))
            with part.path.open("ab") as file:
                for piece in self._pieces(url, response, deadline):
                    file.write(piece)
                    part.size += len(piece)
                    if part.size - told >= _TOLD_EVERY:
                        told = part.size
                        tell(Progress(_STEP, url, part.size, part.total))
        # What it said of the length, urllib3 has compared with what came.
        part.ended, part.total = True, part.size
        tell(Progress(_STEP, url, part.size, part.total))
        return True

    @contextmanager
    def _answer(self, url: str, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        limits = self._limits
        own = {"User-Agent": f"nvidiad-image/{__version__}", "Accept-Encoding": "identity"}
        try:
            response = self._pool(url).request(
                "GET",
                url,
                headers=own | headers,
                timeout=urllib3.Timeout(connect=limits.connect, read=limits.stall),
                retries=urllib3.Retry(
                    total=limits.retries,
                    redirect=5,
                    status_forcelist=_BUSY,
                    backoff_factor=limits.pause,
                    backoff_max=30,
                    raise_on_status=False,
                    respect_retry_after_header=False,  # a server may ask for hours
                ),
                preload_content=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise _failed(url, self._why(error)) from None
        try:
            yield response
        finally:
            response.close()

    def _pieces(self, url: str, response: urllib3.BaseHTTPResponse, deadline: float) -> Iterator[bytes]:
        try:
            for piece in response.stream(_PIECE, decode_content=False):
                yield piece
                if time.monotonic() > deadline:
                    raise _failed(url, f"it took longer than {self._limits.total:g} s")
        except urllib3.exceptions.HTTPError as error:
            raise _Cut(self._why(error)) from None

    def _pool(self, url: str) -> urllib3.PoolManager:
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise _failed(url, str(error)) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _failed(url, "it is no URL of http or https")
        proxy = urllib.request.getproxies().get(parts.scheme, "")
        if proxy and urllib.request.proxy_bypass(parts.hostname):
            proxy = ""
        if proxy not in self._pools:
            self._pools[proxy] = (
                _through(proxy) if proxy else urllib3.PoolManager(ssl_context=authorities.context())
            )
        return self._pools[proxy]

    def _why(self, error: BaseException) -> str:
        seen: list[BaseException] = [error]
        for one in seen:
            if isinstance(
                one, (urllib3.exceptions.ReadTimeoutError, urllib3.exceptions.ConnectTimeoutError)
            ):
                return "no answer in time"
            if isinstance(one, urllib3.exceptions.IncompleteRead):
                return "the connection ended too early"
            seen += [part for part in one.args if isinstance(part, BaseException)]
        return refusals.root_cause(error)


def _through(proxy: str) -> urllib3.ProxyManager:
    who = urllib3.util.parse_url(proxy).auth
    headers = urllib3.make_headers(proxy_basic_auth=who) if who else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, ssl_context=authorities.context())


class _Cut(Exception):
    """A download ended before its end; what came is kept."""


class _Part:
    """What there is of a file that is being downloaded, and which file on the server it is a part of."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self.path = target.with_name(f"{target.name}.partial")
        self._notes = target.with_name(f"{target.name}.partial.json")
        self.size = 0
        self.total = 0
        """Bytes; 0 while it is not known."""
        self.ended = False
        """Whether the server has sent everything, whatever that is."""
        self._validator = ""
        with suppress(OSError, ValueError, KeyError, TypeError):
            notes = json.loads(self._notes.read_text())
            self._validator, self.total = str(notes["validator"]), int(notes["total"])
            self.size = self.path.stat().st_size
        if not self._validator or not self.total or self.size > self.total:
            self.forget()

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return self.ended or 0 < self.total == self.size

    def conditions(self) -> dict[str, str]:
        """Headers that ask for what is missing, or for everything if the file has changed meanwhile."""
        if not self.size or not self._validator:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self._validator}

    def begin(self, response: urllib3.BaseHTTPResponse) -> None:
        """Take note of what the server is about to send."""
        if response.status == _PARTIAL:
            match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or (int(match[1]), int(match[2])) != (self.size, self.total):
                self.forget()
                raise _Cut("the server sent another part than the one that was asked for")
            return
        self.forget()
        self.total = int(response.headers.get("Content-Length") or 0)
        tag = response.headers.get("ETag", "")
        # A weak tag says that the content means the same, not that its bytes are the same.
        self._validator = (
            response.headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag
        )
        self._notes.write_text(json.dumps({"validator": self._validator, "total": self.total}))

    def forget(self) -> None:
        """Begin anew."""
        self.size, self.total, self._validator = 0, 0, ""
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def complete(self) -> None:
        """Give the file its name."""
        self.path.rename(self._target)
        self._notes.unlink(missing_ok=True)


def _refused(url: str, response: urllib3.BaseHTTPResponse) -> Transient:
    return _failed(url, f"the server answered {response.status} {response.reason or ''}".rstrip())


def _failed(url: str, why: str) -> Transient:
    return Transient(Code.DOWNLOAD_FAILED, f"'{url}' cannot be downloaded: {why}", _REMEDY)
