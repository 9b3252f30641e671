# SPDX-License-Identifier: Apache-2.0
"""The conversation with a Docker engine: a client for each operation, streams, a limit on every wait.

`import docker` is more than half of this program's import bill and stays inside the functions that talk.
"""

from __future__ import annotations

import json
import math
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code
from nvidiad.thought import pull as pulling
from nvidiad.thought import refusals

if TYPE_CHECKING:
    from collections.abc import Iterator

    import requests
    from docker.errors import APIError

    from docker import APIClient

_PING = 5


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect to the engine, of silence, and for one pull or one installation."""

    connect: float = 10
    stall: float = 60
    total: float = 1800


class Dockerd:
    """An engine behind its socket; every operation opens a connection of its own."""

    def __init__(self, socket: str, timeouts: Timeouts) -> None:
        self._socket = socket.removeprefix("unix://")
        self.timeouts = timeouts
        self.interrupted = False
        self._live: list[Stream] = []

    def interrupt(self) -> None:
        """Cut the streams of another thread, and all to come."""
        self.interrupted = True
        for stream in tuple(self._live):
            stream.cut()

    def answers(self, api: APIClient) -> bool:
        """Whether the engine itself is alive, whatever the operation under way is waiting for."""
        import requests

        try:
            api.get(f"{api.base_url}/_ping", timeout=min(self.timeouts.stall, _PING))
        except requests.RequestException:
            return False
        return True

    @contextmanager
    def talk(self, reference: str) -> Iterator[APIClient]:
        """A client of the engine; whatever the engine says or fails to say within becomes a failure."""
        import requests
        import urllib3

        import docker

        lost = (requests.RequestException, urllib3.exceptions.HTTPError)
        with ExitStack() as clients:
            try:
                api = clients.enter_context(self._client(refusals.dotted(refusals.NEWEST)))
                version = refusals.agree(api.version(api_version=False))
                if version != api.api_version:
                    api = clients.enter_context(self._client(version))
            except (*lost, docker.errors.DockerException, ValueError) as error:
                raise refusals.unreachable(self._socket, self._why(error)) from None
            try:
                yield api
            except docker.errors.APIError as error:
                raise refusals.classify(error.status_code, said(error), reference) from None
            except lost as error:
                raise refusals.failure(Code.ENGINE_LOST, reference, self._why(error)) from None

    def _why(self, error: BaseException) -> str:
        if is_silence(error):
            return f"no answer for {math.ceil(self.timeouts.stall)} s"
        return refusals.root_cause(error)

    def _client(self, version: str) -> APIClient:
        import docker

        client = docker.APIClient(f"unix://{self._socket}", version, math.ceil(self.timeouts.stall))
        client.trust_env = False  # a proxy or a .netrc is nothing for a socket on this host
        return client

    @contextmanager
    def stream(
        self,
        api: APIClient,
        path: str,
        params: dict[str, str | int],
        headers: dict[str, str],
        *,
        silence: float,
    ) -> Iterator[Stream]:
        """An answer read as it comes, within the total limit and with no pause longer than `silence`."""
        import requests
        import urllib3

        import docker

        limits = self.timeouts
        url = f"{api.base_url}/v{api.api_version}{path}"
        timeout = (limits.connect, min(silence, limits.total))
        begun = time.monotonic()
        stream: Stream | None = None
        try:
            response = api.post(url, params=params, headers=headers, stream=True, timeout=timeout)
            try:
                response.raise_for_status()
            except requests.HTTPError as error:
                docker.errors.create_api_error_from_http_exception(error)
            stream = Stream(response, begun + limits.total - time.monotonic())
            self._live.append(stream)
            if self.interrupted:
                stream.cut()
            yield stream
            self._check(stream)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            self._check(stream)
            if is_silence(error):
                raise Silent from None
            raise
        finally:
            if stream is not None:
                self._live.remove(stream)
                stream.close()

    def _check(self, stream: Stream | None) -> None:
        """A cut connection looks like a lost engine: say whose doing it was."""
        if self.interrupted:
            raise refusals.interrupted()
        if stream is not None and stream.expired:
            raise Expired


class Expired(Exception):
    """The total limit has passed."""


class Silent(Exception):
    """Nothing has come for the limit of silence."""


class Stream:
    """An open answer of the engine's, which a timer or another thread can cut."""

    def __init__(self, response: requests.Response, seconds: float) -> None:
        self._response = response
        self.expired = False
        self._timer = threading.Timer(max(0.0, seconds), self._expire)
        self._timer.daemon = True
        self._timer.start()

    def events(self) -> Iterator[dict[str, object]]:
        """The JSON objects of the answer, one a line."""
        for line in self._response.iter_lines():
            with suppress(ValueError):  # half a line: what comes after it says why
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    def lines(self) -> Iterator[str]:
        """What a container prints."""
        return pulling.printed(self._response.raw.read)

    def exit_status(self) -> int:
        """What the engine says of a container that has ended."""
        return int(self._response.json()["StatusCode"])

    def cut(self) -> None:
        # It may be at its end already, which is as good.
        with suppress(ValueError, RuntimeError, OSError):
            self._response.raw.shutdown()

    def close(self) -> None:
        self._timer.cancel()
        self._response.close()

    def _expire(self) -> None:
        self.expired = True
        self.cut()


def said(error: APIError) -> str:
    """What the engine answered, without what the SDK puts around it."""
    return str(error.explanation or error)


def is_silence(error: BaseException) -> bool:
    """Whether an error of the SDK's libraries is the limit of a wait."""
    import requests
    import urllib3

    kinds = (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError)
    return isinstance(error, kinds) or any(isinstance(part, kinds) for part in error.args)
