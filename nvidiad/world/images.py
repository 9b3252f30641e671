# SPDX-License-Identifier: Apache-2.0
"""Images: what is asked of the container engine, and what it is asked to run.

The SDK's own pull hides errors of the event stream (and then hands out an older image of the same tag) and
knows no time limit, so the events are read here.
"""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Progress
from nvidiad.thought import pull as pulling
from nvidiad.thought import refusals
from nvidiad.world.dockerd import Dockerd, Expired, Silent, Timeouts, said

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from docker import APIClient

__all__ = ["DockerImages", "Timeouts"]

ROOT = "/opt"
"""The install root that an image's installer takes by itself."""
_TELL_EVERY = 0.25
_LAST_LINES = 20
_REMOVAL = 30


class DockerImages:
    """The port `Images` over Docker Engine's API; every operation opens a connection of its own."""

    def __init__(self, socket: str, auth_file: Path | None, timeouts: Timeouts | None = None) -> None:
        self._engine = Dockerd(socket, timeouts or Timeouts())
        self._auth_file = auth_file

    def resolve(self, reference: str) -> str:
        """The digest that a reference names in its registry now."""
        name = pulling.parse_reference(reference)
        if name.digest:
            return name.digest
        import requests

        auth = self._credentials(name.registry)
        with self._engine.talk(reference) as api:
            try:
                answer = api.inspect_distribution(reference, auth_config=auth or {})  # type: ignore[no-untyped-call]
            except requests.ReadTimeout:
                raise self._silence(api, {}, reference) from None
        digest = answer.get("Descriptor", {}).get("digest")
        if not isinstance(digest, str) or not pulling.DIGEST.fullmatch(digest):
            raise refusals.failure(Code.PULL_FAILED, reference, "the engine named no digest")
        return digest

    def pull(self, reference: str, digest: str, tell: Callable[[Progress], None]) -> None:
        """Fetch this content by its digest: by tag, a failed pull would leave an older image to be found."""
        name = pulling.parse_reference(reference)
        auth = self._credentials(name.registry)
        with self._engine.talk(reference) as api:
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
        with self._engine.talk(reference) as api:
            image = _image(api, pulling.parse_reference(reference).pinned(digest))
        if image is None:
            raise refusals.gone(reference)
        return {
            str(key): str(value) for key, value in ((image.get("Config") or {}).get("Labels") or {}).items()
        }

    def install(self, reference: str, digest: str, root: Path, tell: Callable[[Progress], None]) -> None:
        """`docker run --rm --privileged -v /:/rootfs IMAGE`, by digest, and wait until it has ended."""
        pinned = pulling.parse_reference(reference).pinned(digest)
        environment = [] if str(root) == ROOT else [f"NVIDIAD_ROOT={root}"]
        # The name is the lock: whoever is killed here leaves a container that the next one finds by it.
        name = f"nvidiad-install-{digest.removeprefix('sha256:')[:12]}"
        with self._engine.talk(reference) as api:
            running = self._adopt(api, name, environment)
            container = running or self._create(api, name, pinned, environment, reference)
            lines: deque[str] = deque(maxlen=_LAST_LINES)
            try:
                status = self._follow(api, container, bool(running), reference, lines, tell)
            finally:
                if not self._engine.interrupted:
                    _remove(api, container)
        if status != 0:
            raise refusals.exit_failure(status, list(lines), reference)

    def interrupt(self) -> None:
        """End another thread's wait for good: a pull is cancelled, an installer is left to be adopted."""
        self._engine.interrupt()

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

        limits = self._engine.timeouts
        # The digest goes where a tag would: with nothing there an engine pulls all tags of the repository.
        params: dict[str, str | int] = {"fromImage": repository, "tag": digest}
        headers = {"X-Registry-Auth": encode_header(auth).decode()} if auth else {}
        layers: pulling.Layers = {}
        changed, told = time.monotonic(), -math.inf
        try:
            with self._engine.stream(api, "/images/create", params, headers, silence=limits.stall) as stream:
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
                    if layers and now - told >= _TELL_EVERY:
                        tell(pulling.progress(layers))
                        told = now
        except Expired:
            raise refusals.overdue(reference, limits.total) from None
        except Silent:
            raise self._silence(api, layers, reference) from None
        tell(replace(pulling.progress(layers), detail=f"{len(layers)} layers"))

    def _silence(self, api: APIClient, layers: pulling.Layers, reference: str) -> Failure:
        """Whose it is: an engine that still answers has been waiting for the registry, or for its disk."""
        seconds = self._engine.timeouts.stall
        if not self._engine.answers(api):
            return refusals.failure(Code.ENGINE_LOST, reference, f"silent for {seconds:g} s")
        return refusals.stalled(layers, seconds, reference)

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
            raise refusals.start_failure(said(error), reference) from None
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

        limit = self._engine.timeouts.total
        outcome: dict[str, str | int] = {"condition": "removed"}
        streams: dict[str, str | int] = {"stream": 1, "stdout": 1, "stderr": 1, "logs": int(running)}
        try:
            # Both before the start, as `docker run` does it: soon after, the container may be removed.
            with (
                self._engine.stream(api, f"/containers/{container}/wait", outcome, {}, silence=limit) as end,
                self._engine.stream(
                    api, f"/containers/{container}/attach", streams, {}, silence=limit
                ) as output,
            ):
                if not running:
                    api.start(container)
                for line in output.lines():
                    lines.append(line)
                    tell(Progress("install-tree", line))
                return end.exit_status()
        except docker.errors.APIError as error:
            raise refusals.start_failure(said(error), reference) from None
        except (Expired, Silent):
            raise refusals.endless(reference, limit) from None

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
