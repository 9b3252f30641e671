# SPDX-License-Identifier: Apache-2.0
"""The conversation with a Docker engine: a client for each operation, streams, a limit on every wait.

`import docker` is more than half of this program's import bill and stays inside the functions that talk.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Code
from nvidiad.nouns.value import Value
from nvidiad.thought import confinement, refusals
from nvidiad.thought import pull as pulling
from nvidiad.world import files

if TYPE_CHECKING:
    from collections.abc import Iterator

    import requests
    from _typeshed import SupportsRead
    from docker.errors import APIError

    from docker import APIClient
    from nvidiad.nouns.errors import Failure

_PING = 5
_REMOVAL = 30


class Timeouts(Value):
    """Seconds: to connect to the engine, of silence, and for one pull or one installation."""

    connect: float = 10
    stall: float = 60
    total: float = 1800


class Expired(Exception):
    """The total limit has passed."""


class Silent(Exception):
    """Nothing has come for the limit of silence."""


class Unstarted(Exception):
    """The engine would not make or start a container."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


class Dockerd:
    """An engine behind its socket; every operation opens a connection of its own."""

    def __init__(self, path: str, timeouts: Timeouts) -> None:
        self._socket = path.removeprefix("unix://")
        self.timeouts = timeouts

    @contextmanager
    def talk(self, reference: str) -> Iterator[Conversation]:
        """Talk about an image; whatever the engine says or fails to say within becomes a failure."""
        import requests
        import urllib3

        import docker

        self._knock()
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
                yield Conversation(self, api, reference)
            except docker.errors.APIError as error:
                raise refusals.classify(error.status_code, _said(error), reference) from None
            except lost as error:
                raise refusals.failure(Code.ENGINE_LOST, reference, self._why(error)) from None

    def _knock(self) -> None:
        """Connect and hang up: where nobody answers, the SDK leaks its socket and buries the reason."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(self.timeouts.connect)
            try:
                probe.connect(self._socket)
            except OSError as error:
                raise refusals.unreachable(self._socket, error.strerror or str(error)) from None

    def _client(self, version: str) -> APIClient:
        import docker

        client = docker.APIClient(f"unix://{self._socket}", version, math.ceil(self.timeouts.stall))
        client.trust_env = False  # a proxy or a .netrc is nothing for a socket on this host
        return client

    def _why(self, error: BaseException) -> str:
        if _is_silence(error):
            return f"no answer for {math.ceil(self.timeouts.stall)} s"
        return refusals.root_cause(error)


class Conversation:
    """What an engine is asked about one image while a connection lasts."""

    def __init__(self, dockerd: Dockerd, api: APIClient, reference: str) -> None:
        self._dockerd = dockerd
        self._api = api
        self._reference = reference

    def answers(self) -> bool:
        """Whether the engine itself is alive, whatever the operation under way is waiting for."""
        import requests

        try:
            self._api.get(f"{self._api.base_url}/_ping", timeout=min(self._dockerd.timeouts.stall, _PING))
        except requests.RequestException:
            return False
        return True

    @property
    def api(self) -> APIClient:
        """The SDK's client, for what is asked once and answered at once."""
        return self._api

    @contextmanager
    def post(
        self,
        path: str,
        params: dict[str, str | int],
        headers: dict[str, str],
        body: SupportsRead[bytes] | None = None,
    ) -> Iterator[Stream]:
        """Send a body, if there is one, and read the answer as it comes; Silent and Expired say why not."""
        with self._stream(path, params, headers, self._dockerd.timeouts, body) as stream:
            yield stream

    def about(self) -> dict[str, Any]:
        """What the engine says of itself; nothing where it says nothing."""
        import docker

        try:
            said: dict[str, Any] = self._api.info()
        except docker.errors.APIError:
            return {}
        return said

    # -- images ------------------------------------------------------------------------------------

    def remote_digest(self, auth: dict[str, str] | None) -> object:
        """The digest that the registry has for the reference."""
        import requests

        try:
            # An empty dictionary is "anonymous"; None would let the SDK look into root's own credentials.
            answer = self._api.inspect_distribution(self._reference, auth or {})  # type: ignore[no-untyped-call]
        except requests.ReadTimeout:
            raise Silent from None
        return answer.get("Descriptor", {}).get("digest")

    def image(self, pinned: str) -> dict[str, Any] | None:
        """What the engine knows of an image that it has."""
        import docker

        try:
            image: dict[str, Any] = self._api.inspect_image(pinned)  # type: ignore[no-untyped-call]
        except docker.errors.ImageNotFound:
            return None
        return image

    def labels(self, pinned: str) -> dict[str, str]:
        """The labels of an image that the engine has."""
        image = self.image(pinned)
        if image is None:
            raise refusals.gone(self._reference)
        labels = (image.get("Config") or {}).get("Labels") or {}
        return {str(key): str(value) for key, value in labels.items()}

    def images(self) -> list[dict[str, Any]]:
        """What the engine lists of the images that it has."""
        found: list[dict[str, Any]] = self._api.images()
        return found

    @contextmanager
    def pull(
        self, repository: str, digest: str, auth: dict[str, str] | None, limits: Timeouts
    ) -> Iterator[Stream]:
        """The events of a pull; when the stream is closed before its end, the engine gives the pull up."""
        from docker.auth import encode_header

        import docker

        # The digest goes where a tag would: with nothing there an engine pulls all tags of the repository.
        params: dict[str, str | int] = {"fromImage": repository, "tag": digest}
        headers = {"X-Registry-Auth": encode_header(auth).decode()} if auth else {}
        try:
            with self._stream("/images/create", params, headers, limits) as stream:
                yield stream
        except docker.errors.APIError as error:
            raise refusals.classify(error.status_code, _said(error), self._reference) from None

    # -- containers --------------------------------------------------------------------------------

    def container(self, name: str) -> dict[str, Any] | None:
        """What the engine knows of a container."""
        import docker

        try:
            found: dict[str, Any] = self._api.inspect_container(name)
        except docker.errors.NotFound:
            return None
        return found

    def create(
        self, pinned: str, name: str, environment: list[str], root: Path, *, gentle: bool = False
    ) -> str:
        """A container that has nothing of the host but the place of its trees, not started yet."""
        import docker

        api = self._api
        bundle = confinement.bundle(PurePosixPath(root), self.labels(pinned))
        # An installer follows a host's links as the host would; it is spared that.
        place = os.path.realpath(bundle)
        with files.explained(f"making '{place}'", Code.IMAGE_FAILED):
            files.make_directory(Path(place))
        config = confinement.host_config(place, bundle, self.about(), gentle=gentle)
        host = api.create_host_config(**config)
        with self._starting():
            try:
                # root's ~/.docker/config.json may name proxies, which an installer has no use for.
                made = api.create_container(
                    pinned, name=name, environment=environment, host_config=host, use_config_proxy=False
                )
            except docker.errors.ImageNotFound:
                raise refusals.gone(self._reference) from None
        return str(made["Id"])

    @contextmanager
    def follow(self, container: str, *, running: bool) -> Iterator[tuple[Iterator[str], Stream]]:
        """Start a container, unless it is running: the lines that it prints, and the stream with its end."""
        # An installer may be silent for as long as it takes.
        limits = Timeouts(self._dockerd.timeouts.connect, *[self._dockerd.timeouts.total] * 2)
        place = f"/containers/{container}"
        outcome: dict[str, str | int] = {"condition": "removed"}
        output: dict[str, str | int] = {"stream": 1, "stdout": 1, "stderr": 1, "logs": int(running)}
        # Both before the start, as `docker run` does it: soon after, the container may be removed.
        with (
            self._starting(),
            self._stream(f"{place}/wait", outcome, {}, limits) as end,
            self._stream(f"{place}/attach", output, {}, limits) as printed,
        ):
            if not running:
                self._api.start(container)
            yield printed.lines(), end

    def forget(self, pinned: str) -> None:
        """Drop the name of an image; without another name or a container it goes."""
        import docker

        try:
            self._api.remove_image(pinned, noprune=False)
        except docker.errors.ImageNotFound:
            return
        except docker.errors.APIError as error:
            if error.status_code != HTTPStatus.CONFLICT:
                raise refusals.classify(error.status_code, str(error.explanation), self._reference) from None

    def remove(self, container: str) -> None:
        """Remove a container, running or not; the engine may be at it already, or gone."""
        import requests

        import docker

        try:
            self._api.remove_container(container, force=True)
        except docker.errors.NotFound:
            return
        except requests.RequestException:
            # "removal is already in progress": its name is free when that has ended.
            with suppress(requests.RequestException):
                self._api.wait(container, timeout=_REMOVAL, condition="removed")

    @contextmanager
    def _starting(self) -> Iterator[None]:
        import docker

        try:
            yield
        except docker.errors.APIError as error:
            raise Unstarted(refusals.start_failure(_said(error), self._reference)) from None

    # -- streams -----------------------------------------------------------------------------------

    @contextmanager
    def _stream(
        self,
        path: str,
        params: dict[str, str | int],
        headers: dict[str, str],
        limits: Timeouts,
        body: SupportsRead[bytes] | None = None,
    ) -> Iterator[Stream]:
        """An answer read as it comes, within the total limit and with no longer silence than allowed."""
        import requests
        import urllib3

        import docker

        api = self._api
        url = f"{api.base_url}/v{api.api_version}{path}"
        timeout = (limits.connect, min(limits.stall, limits.total))
        begun = time.monotonic()
        stream: Stream | None = None
        try:
            response = api.post(url, data=body, params=params, headers=headers, stream=True, timeout=timeout)
            try:
                response.raise_for_status()
            except requests.HTTPError as error:
                docker.errors.create_api_error_from_http_exception(error)
            stream = Stream(response, begun + limits.total - time.monotonic())
            yield stream
            if stream.expired:
                raise Expired
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if stream is not None and stream.expired:  # what is cut looks like an engine that is lost
                raise Expired from None
            if _is_silence(error):
                raise Silent from None
            raise
        finally:
            if stream is not None:
                stream.close()


class Stream:
    """An open answer of the engine's, which is cut at the total limit."""

    def __init__(self, response: requests.Response, seconds: float) -> None:
        self._response = response
        self.expired = False
        self._timer = threading.Timer(max(0.0, seconds), self._expire)
        self._timer.daemon = True
        self._timer.start()

    def events(self) -> Iterator[dict[str, object]]:
        """The JSON objects of the answer, one a line."""
        for line in self._response.iter_lines():
            if (event := pulling.event(line)) is not None:
                yield event

    def lines(self) -> Iterator[str]:
        """What a container prints."""
        return pulling.printed(self._response.raw.read)

    def exit_status(self) -> int:
        """What the engine says of a container that has ended."""
        return int(self._response.json()["StatusCode"])

    def close(self) -> None:
        self._timer.cancel()
        self._response.close()

    def _expire(self) -> None:
        self.expired = True
        with suppress(ValueError, RuntimeError, OSError):  # it may be at its end already, which is as good
            self._response.raw.shutdown()


def _said(error: APIError) -> str:
    """What the engine answered, without what the SDK puts around it."""
    return str(error.explanation or error)


def _is_silence(error: BaseException) -> bool:
    """Whether an error of the SDK's libraries is the limit of a wait."""
    import requests
    import urllib3

    kinds = (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError)
    return isinstance(error, kinds) or any(isinstance(part, kinds) for part in error.args)
