# SPDX-License-Identifier: Apache-2.0
"""Images: what is asked of the container engine, and what it is asked to run.

The SDK's own pull hides errors of the event stream (and then hands out an older image of the same tag) and
knows no time limit, so the events are read here.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Progress
from nvidiad.nouns.value import replace
from nvidiad.thought import pull as pulling
from nvidiad.thought import refusals
from nvidiad.world.dockerd import Dockerd, Expired, Silent, Timeouts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nvidiad.world.dockerd import Conversation

__all__ = ["DockerImages", "Timeouts"]

ROOT = "/opt"
"""The install root that an image's installer takes by itself."""
_TELL_EVERY = 0.25
_LAST_LINES = 20


class DockerImages:
    """The port `Images` over Docker Engine's API."""

    def __init__(self, socket: str, auth_file: Path | None, timeouts: Timeouts | None = None) -> None:
        self._engine = Dockerd(socket, timeouts or Timeouts())
        self._auth_file = auth_file

    def resolve(self, reference: str) -> str:
        """The digest that a reference names in its registry now."""
        name = pulling.parse_reference(reference)
        if name.digest:
            return name.digest
        auth = self._credentials(name.registry)
        with self._engine.talk(reference) as engine:
            try:
                digest = engine.remote_digest(auth)
            except Silent:
                raise self._silence(engine, {}, reference) from None
        if not isinstance(digest, str) or not pulling.DIGEST.fullmatch(digest):
            raise refusals.failure(Code.PULL_FAILED, reference, "the engine named no digest")
        return digest

    def pull(
        self, reference: str, digest: str, tell: Callable[[Progress], None], *, gentle: bool = False
    ) -> None:
        """Fetch this content by its digest: by tag, a failed pull would leave an older image to be found."""
        name = pulling.parse_reference(reference)
        pinned = name.pinned(digest)
        with self._engine.talk(reference) as engine:
            if engine.image(pinned) is not None:
                tell(Progress("pull-image", "already pulled"))
                return
            auth = self._credentials(name.registry)
            self._fetch(engine, reference, name.repository, digest, auth, tell)
            image = engine.image(pinned)
        digests = (image or {}).get("RepoDigests") or []
        if not any(held.endswith(f"@{digest}") for held in digests):
            raise refusals.failure(Code.IMAGE_CORRUPT, reference, f"after the pull {digest} is not there")

    def labels(self, reference: str, digest: str) -> dict[str, str]:
        """The labels of a pulled image."""
        with self._engine.talk(reference) as engine:
            image = engine.image(pulling.parse_reference(reference).pinned(digest))
        if image is None:
            raise refusals.gone(reference)
        labels = (image.get("Config") or {}).get("Labels") or {}
        return {str(key): str(value) for key, value in labels.items()}

    def discard(self, reference: str, digest: str) -> None:
        """Let the engine forget an image whose tree is complete; one in use or with other names stays."""
        with self._engine.talk(reference) as engine:
            engine.forget(pulling.parse_reference(reference).pinned(digest))

    def install(
        self,
        reference: str,
        digest: str,
        root: Path,
        tell: Callable[[Progress], None],
        *,
        gentle: bool = False,
    ) -> None:
        """`docker run --rm --privileged -v /:/rootfs IMAGE`, by digest, and wait until it has ended.

        A gentle one gets little of a busy host.
        """
        pinned = pulling.parse_reference(reference).pinned(digest)
        environment = [] if str(root) == ROOT else [f"NVIDIAD_ROOT={root}"]
        # The name is the lock: whoever is killed here leaves a container that the next one finds by it.
        name = f"nvidiad-install-{digest.removeprefix('sha256:')[:12]}"
        lines: deque[str] = deque(maxlen=_LAST_LINES)
        with self._engine.talk(reference) as engine:
            adopted = _adopt(engine, name, environment)
            container = adopted or engine.create(pinned, name, environment, gentle=gentle)
            try:
                with engine.follow(container, running=adopted is not None) as (printed, end):
                    for line in printed:
                        lines.append(line)
                        tell(Progress("install-tree", line))
                    status = end.exit_status()
            except (Expired, Silent):
                raise refusals.endless(reference, self._engine.timeouts.total) from None
            finally:
                engine.remove(container)
        if status != 0:
            raise refusals.exit_failure(status, list(lines), reference)

    def _fetch(
        self,
        engine: Conversation,
        reference: str,
        repository: str,
        digest: str,
        auth: dict[str, str] | None,
        tell: Callable[[Progress], None],
    ) -> None:
        limits = self._engine.timeouts
        layers: pulling.Layers = {}
        changed, told = time.monotonic(), -math.inf
        try:
            with engine.pull(repository, digest, auth) as stream:
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
            raise self._silence(engine, layers, reference) from None
        tell(replace(pulling.progress(layers), detail=f"{len(layers)} layers"))

    def _silence(self, engine: Conversation, layers: pulling.Layers, reference: str) -> Failure:
        """Whose it is: an engine that still answers has been waiting for the registry, or for its disk."""
        seconds = self._engine.timeouts.stall
        if not engine.answers():
            return refusals.failure(Code.ENGINE_LOST, reference, f"silent for {seconds:g} s")
        return refusals.stalled(layers, seconds, reference)

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


def _adopt(engine: Conversation, name: str, environment: list[str]) -> str | None:
    """The running installer of this digest that a killed nvidiad left behind; a dead one is removed."""
    found = engine.container(name)
    if found is None:
        return None
    roots = [e for e in found["Config"].get("Env") or [] if e.startswith("NVIDIAD_ROOT=")]
    if found["State"].get("Running") and roots == environment:
        return str(found["Id"])
    engine.remove(str(found["Id"]))
    return None
