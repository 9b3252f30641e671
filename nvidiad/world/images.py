# SPDX-License-Identifier: Apache-2.0
"""Images: the container engine behind its socket, with a limit on every wait.

The SDK's own pull hides errors of the event stream (and then hands out an older image of the same tag) and
knows no time limit, so the stream is read here.  `import docker` is more than half of this program's import
bill and stays inside the functions that talk to the engine.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Progress
from nvidiad.thought import pull as pulling
from nvidiad.thought import refusals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import requests
    from docker.errors import APIError

    from docker import APIClient

ROOT = "/opt"
"""The install root that an image's installer takes by itself."""
_TELL_EVERY = 0.25
_LAST_LINES = 20
_REMOVAL = 30


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect to the engine, of silence, and for one pull or one installation."""

    connect: float = 10
    stall: float = 60
    total: float = 1800


class DockerImages:
    """The port `Images` over Docker Engine's API; every operation opens a connection of its own."""

    def __init__(self, socket: str, auth_file: Path | None, timeouts: Timeouts | None = None) -> None:
        self._socket = socket.removeprefix("unix://")
        self._auth_file = auth_file
        self._timeouts = timeouts or Timeouts()
        self._live: list[_Stream] = []
        self._interrupted = False

    def resolve(self, reference: str) -> str:
        """The digest that a reference names in its registry now."""
        name = pulling.parse_reference(reference)
        if name.digest:
            return name.digest
        import requests

        auth = self._credentials(name.registry)
        with self._talk(reference) as api:
            try:
                answer = api.inspect_distribution(reference, auth_config=auth or {})  # type: ignore[no-untyped-call]
            except requests.ReadTimeout:
                raise refusals.stalled({}, self._timeouts.stall, reference) from None
        digest = answer.get("Descriptor", {}).get("digest")
        if not isinstance(digest, str) or not pulling.DIGEST.fullmatch(digest):
            raise refusals.failure(Code.PULL_FAILED, reference, "the engine named no digest")
        return digest

    def pull(self, reference: str, digest: str, tell: Callable[[Progress], None]) -> None:
        """Fetch this content by its digest: by tag, a failed pull would leave an older image to be found."""
        name = pulling.parse_reference(reference)
        auth = self._credentials(name.registry)
        with self._talk(reference) as api:
            if _image(api, name.pinned(digest)) is not None:
                tell(Progress("pull-image", "already pulled"))
                return
            self._fetch(api, reference, name.repository, digest, auth, tell)
            image = _image(api, name.pinned(digest))
        digests = (image or {}).get("RepoDigests") or []
        if not any(held.endswith(f"@{digest}") for held in digests):
            raise refusals.failure(Code.IMAGE_CORRUPT, reference, f"after the pull {digest} is not there")

    def labels(self, reference: str, digest: str) -> dict[str, str]:
        """The labels of a pulled image."""
        with self._talk(reference) as api:
            image = _image(api, pulling.parse_reference(reference).pinned(digest))
        if image is None:
            raise refusals.gone(reference)
        return {str(key): str(value) for key, value in (image["Config"].get("Labels") or {}).items()}

    def install(self, reference: str, digest: str, root: Path, tell: Callable[[Progress], None]) -> None:
        """`docker run --rm --privileged -v /:/rootfs IMAGE`, by digest, and wait until it has ended."""
        pinned = pulling.parse_reference(reference).pinned(digest)
        environment = [] if str(root) == ROOT else [f"NVIDIAD_ROOT={root}"]
        # The name is the lock: whoever is killed here leaves a container that the next one finds by it.
        name = f"nvidiad-install-{digest.removeprefix('sha256:')[:12]}"
        with self._talk(reference) as api:
            running = self._adopt(api, name, environment)
            container = running or self._create(api, name, pinned, environment, reference)
            lines: deque[str] = deque(maxlen=_LAST_LINES)
            try:
                status = self._follow(api, container, bool(running), reference, lines, tell)
            finally:
                if not self._interrupted:
                    _remove(api, container)
        if status != 0:
            raise refusals.exit_failure(status, list(lines), reference)

    def interrupt(self) -> None:
        """End another thread's wait for good: a pull is cancelled, an installer is left to be adopted."""
        self._interrupted = True
        for stream in tuple(self._live):
            stream.cut()

    # -- pulling -----------------------------------------------------------------------------------

    def _fetch(
        self,
        api: APIClient,
        reference: str,
        repository: str,
        digest: str,
        auth: dict[str, str] | None,
        tell: Callable[[Progress], None],
    ) -> None:
        from docker.auth import encode_header

        limits = self._timeouts
        # The digest goes where a tag would: with nothing there an engine pulls all tags of the repository.
        params: dict[str, str | int] = {"fromImage": repository, "tag": digest}
        headers = {"X-Registry-Auth": encode_header(auth).decode()} if auth else {}
        layers: pulling.Layers = {}
        changed, told = time.monotonic(), -math.inf
        try:
            with self._stream(api, "/images/create", params, headers, silence=limits.stall) as stream:
                for event in stream.events():
                    error = pulling.event_error(event)
                    if error is not None:
                        raise refusals.classify(None, error, reference)
                    now = time.monotonic()
                    after = pulling.advance(layers, event)
                    if after is not layers:
                        layers, changed = after, now
                    elif now - changed > limits.stall:
                        raise refusals.stalled(layers, limits.stall, reference)
                    if now - told >= _TELL_EVERY:
                        tell(pulling.progress(layers))
                        told = now
        except _Expired:
            raise refusals.overdue(reference, limits.total) from None
        except _Silent:
            raise refusals.stalled(layers, limits.stall, reference) from None
        tell(pulling.progress(layers))

    # -- installing --------------------------------------------------------------------------------

    def _adopt(self, api: APIClient, name: str, environment: list[str]) -> str | None:
        """The running installer of this digest that a killed nvidiad left behind; a dead one is removed."""
        import docker

        try:
            found = api.inspect_container(name)
        except docker.errors.NotFound:
            return None
        roots = [e for e in found["Config"].get("Env") or [] if e.startswith("NVIDIAD_ROOT=")]
        if found["State"].get("Running") and roots == environment:
            return str(found["Id"])
        _remove(api, found["Id"])
        return None

    def _create(self, api: APIClient, name: str, pinned: str, environment: list[str], reference: str) -> str:
        import docker

        host = api.create_host_config(privileged=True, binds=["/:/rootfs"], auto_remove=True)
        try:
            made = api.create_container(
                pinned, name=name, host_config=host, environment=environment, use_config_proxy=False
            )
        except docker.errors.ImageNotFound:
            raise refusals.gone(reference) from None
        except docker.errors.APIError as error:
            raise refusals.start_failure(_said(error), reference) from None
        return str(made["Id"])

    def _follow(
        self,
        api: APIClient,
        container: str,
        running: bool,  # noqa: FBT001  (private, and called once)
        reference: str,
        lines: deque[str],
        tell: Callable[[Progress], None],
    ) -> int:
        """Start the container unless it is running, show what it prints, and return its exit status."""
        import docker

        limit = self._timeouts.total
        outcome: dict[str, str | int] = {"condition": "removed"}
        streams: dict[str, str | int] = {"stream": 1, "stdout": 1, "stderr": 1, "logs": int(running)}
        try:
            # Both before the start, as `docker run` does it: soon after, the container may be removed.
            with (
                self._stream(api, f"/containers/{container}/wait", outcome, {}, silence=limit) as end,
                self._stream(api, f"/containers/{container}/attach", streams, {}, silence=limit) as output,
            ):
                if not running:
                    api.start(container)
                for line in output.lines():
                    lines.append(line)
                    tell(Progress("install-tree", line))
                return end.exit_status()
        except docker.errors.APIError as error:
            raise refusals.start_failure(_said(error), reference) from None
        except (_Expired, _Silent):
            raise refusals.endless(reference, limit) from None

    # -- the engine --------------------------------------------------------------------------------

    @contextmanager
    def _talk(self, reference: str) -> Iterator[APIClient]:
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
                raise refusals.unreachable(self._socket, refusals.root_cause(error)) from None
            try:
                yield api
            except docker.errors.APIError as error:
                raise refusals.classify(error.status_code, _said(error), reference) from None
            except lost as error:
                raise refusals.lost(reference, refusals.root_cause(error)) from None

    def _client(self, version: str) -> APIClient:
        import docker

        client = docker.APIClient(f"unix://{self._socket}", version, math.ceil(self._timeouts.stall))
        client.trust_env = False  # a proxy or a .netrc is nothing for a socket on this host
        return client

    @contextmanager
    def _stream(
        self,
        api: APIClient,
        path: str,
        params: dict[str, str | int],
        headers: dict[str, str],
        *,
        silence: float,
    ) -> Iterator[_Stream]:
        """An answer read as it comes, within the total limit and with no pause longer than `silence`."""
        import requests
        import urllib3

        import docker

        limits = self._timeouts
        url = f"{api.base_url}/v{api.api_version}{path}"
        timeout = (limits.connect, min(silence, limits.total))
        begun = time.monotonic()
        stream: _Stream | None = None
        try:
            response = api.post(url, params=params, headers=headers, stream=True, timeout=timeout)
            try:
                response.raise_for_status()
            except requests.HTTPError as error:
                docker.errors.create_api_error_from_http_exception(error)
            stream = _Stream(response, begun + limits.total - time.monotonic())
            self._live.append(stream)
            if self._interrupted:
                stream.cut()
            yield stream
            self._check(stream)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            self._check(stream)
            if _is_silence(error):
                raise _Silent from None
            raise
        finally:
            if stream is not None:
                self._live.remove(stream)
                stream.close()

    def _check(self, stream: _Stream | None) -> None:
        """A cut connection looks like a lost engine: say whose doing it was."""
        if self._interrupted:
            raise refusals.interrupted()
        if stream is not None and stream.expired:
            raise _Expired

    def _credentials(self, registry: str) -> dict[str, str] | None:
        if self._auth_file is None:
            return None
        try:
            text = self._auth_file.read_text()
        except FileNotFoundError:
            return None  # the registry says whether it wants any
        except (OSError, UnicodeDecodeError) as error:
            raise pulling.bad_file(str(self._auth_file), str(error)) from None
        return pulling.credentials(text, str(self._auth_file), registry)


class _Expired(Exception):
    """The total limit has passed."""


class _Silent(Exception):
    """Nothing has come for the limit of silence."""


class _Stream:
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


def _image(api: APIClient, pinned: str) -> dict[str, Any] | None:
    import docker

    try:
        image: dict[str, Any] = api.inspect_image(pinned)  # type: ignore[no-untyped-call]
    except docker.errors.ImageNotFound:
        return None
    return image


def _remove(api: APIClient, container: str) -> None:
    """Remove a container, running or not; the engine may be at it already, or gone."""
    import requests

    import docker

    try:
        api.remove_container(container, force=True)
    except docker.errors.NotFound:
        return
    except requests.RequestException:
        # "removal is already in progress": its name is free when that has ended.
        with suppress(requests.RequestException):
            api.wait(container, timeout=_REMOVAL, condition="removed")


def _said(error: APIError) -> str:
    return str(error.explanation or error)


def _is_silence(error: BaseException) -> bool:
    import requests
    import urllib3

    kinds = (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError)
    return isinstance(error, kinds) or any(isinstance(part, kinds) for part in error.args)
