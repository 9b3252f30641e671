# SPDX-License-Identifier: Apache-2.0
"""The wiring of engines: who fetches images is chosen anew whenever one is asked for."""

from __future__ import annotations

import errno
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns.model import Engine, EngineKind
from nvidiad.thought import engines
from nvidiad.thought import pull as pulling

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvidiad.nouns.model import Progress
    from nvidiad.thought.settings import Settings
    from nvidiad.verbs.ports import Images, Trees
    from nvidiad.world.direct import Source
    from nvidiad.world.dockerd import Timeouts
    from nvidiad.world.places import Places, Registries

# A registry that is busy is asked once more; then the back-off of the whole attempt is the better pause.
_TRIES = 2
_CONNECTIONS = 4


def auth_file(settings: Settings) -> Path | None:
    """Where the credentials for registries are."""
    return Path(settings.image.auth_file) if settings.image.auth_file else None


def registries(settings: Settings) -> Registries:
    """How registries are asked by nvidiad itself."""
    from nvidiad.world.places import Registries

    return Registries(auth_file(settings), settings.engine.mirrors)


def engine(settings: Settings) -> Engine:
    """Who fetches images on this host now. One look at a name: no connection, which would wake an engine."""
    path = str(settings.engine.socket)
    try:
        there = stat.S_ISSOCK(Path(path).stat().st_mode)
    except PermissionError:
        there = True
    except OSError:
        there = False
    return engines.choose(settings.engine.kind, path, there=there)


def silence(settings: Settings) -> str:
    """Why the engine does not answer that is there; empty where it does. This wakes it."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(settings.image.connect_timeout)
        try:
            probe.connect(str(settings.engine.socket))
        except OSError as error:
            return "" if error.errno == errno.EACCES else error.strerror or str(error)
    return ""


class ChosenImages:
    """The port `Images`: by the engine that was chosen when an image was asked for last."""

    def __init__(self, settings: Settings, root: Path, source: Source | None = None) -> None:
        self._settings = settings
        self._source = source
        """Where the images are that no engine is asked for."""
        self._root = root / settings.install.root.relative_to("/")
        self._made: dict[EngineKind, Images] = {}
        self._last: EngineKind | None = None

    def engine(self) -> Engine:
        """Who fetches images now, and why."""
        if self._source is not None:
            return Engine(EngineKind.REGISTRY, "the image is in a file")
        return engine(self._settings)

    def resolve(self, reference: str) -> str:
        """The digest that a reference names now; everything else about this image is by the same engine."""
        self._last = None
        return self._images().resolve(reference)

    def pull(
        self, reference: str, digest: str, tell: Callable[[Progress], None], *, gentle: bool = False
    ) -> None:
        self._images().pull(reference, digest, tell, gentle=gentle)

    def labels(self, reference: str, digest: str) -> dict[str, str]:
        return self._images().labels(reference, digest)

    def install(
        self,
        reference: str,
        digest: str,
        trees: Trees,
        tell: Callable[[Progress], None],
        *,
        gentle: bool = False,
    ) -> None:
        self._images().install(reference, digest, trees, tell, gentle=gentle)

    def discard(self, reference: str, digest: str) -> None:
        self._images().discard(reference, digest)

    def _images(self) -> Images:
        if self._last is None:
            self._last = self.engine().kind
        if self._last not in self._made:
            docker = self._last is EngineKind.DOCKER
            self._made[self._last] = self._docker() if docker else self._direct()
        return self._made[self._last]

    def _docker(self) -> Images:
        from nvidiad.world.images import DockerImages

        return DockerImages(
            f"unix://{self._settings.engine.socket}",
            auth_file(self._settings),
            _timeouts(self._settings),
            root=self._root,
            bandwidth=self._settings.stage.bandwidth,
        )

    def _direct(self) -> Images:
        from nvidiad.world.direct import DirectImages

        return DirectImages(
            self._source or _FromRegistries(self._settings),
            _timeouts(self._settings),
            root=self._root,
            bandwidth=self._settings.stage.bandwidth,
        )


def _timeouts(settings: Settings) -> Timeouts:
    from nvidiad.world.dockerd import Timeouts

    image = settings.image
    return Timeouts(image.connect_timeout, image.stall_timeout, image.total_timeout)


class _FromRegistries:
    """The source of images that is asked by default."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def name(self, reference: str) -> str:
        name = pulling.parse_reference(reference)
        return name.digest or name.tag or "latest"

    def open(self, reference: str, limits: float) -> Places:
        from nvidiad.world.registry import Limits

        image, repository = self._settings.image, pulling.parse_reference(reference).repository
        patience = Limits(image.connect_timeout, image.stall_timeout, _CONNECTIONS, _TRIES, limits)
        return registries(self._settings).open(repository, patience)
