# SPDX-License-Identifier: Apache-2.0
"""Images: what is asked of the container engine, and what it is asked to run.

The SDK's own pull hides errors of the event stream (and then hands out an older image of the same tag) and
knows no time limit, so the events are read here.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Progress
from nvidiad.nouns.value import replace
from nvidiad.thought import provision, refusals
from nvidiad.thought import pull as pulling
from nvidiad.world import files
from nvidiad.world.credentials import credentials
from nvidiad.world.dockerd import Dockerd, Expired, Silent, Timeouts, Unstarted
from nvidiad.world.seen import place, see, store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvidiad.thought.pull import Reference
    from nvidiad.verbs.ports import Trees
    from nvidiad.world.dockerd import Conversation
    from nvidiad.world.gateway import Gateway
    from nvidiad.world.seen import Seen

__all__ = ["DockerImages", "Timeouts"]

ROOT = "/opt"
"""The install root that an image's installer takes by itself."""
# Where an engine that keeps its images in containerd has them.
_CONTAINERD = "/var/lib/containerd"
_TELL_EVERY = 0.25
_LAST_LINES = 20
# Seconds: what is asked beside the engine must not cost much where only that has a way to the registry.
_BESIDE, _BESIDE_ALL = 3, 10
# An engine opens three connections for the layers of an image, and tells of each after half a megabyte.
_CONNECTIONS = 8
_UNTOLD = 2 << 20
# No pull takes a month, and a timer has its own limit.
_LONGEST = 30 * 86400.0
# What has nothing to do with the registry, whatever that did on the way: an engine gets over much of it.
_OF_ENGINE = frozenset({Code.ENGINE_LOST, Code.DISK_FULL, Code.READ_ONLY, Code.PULL_TIMEOUT})


class DockerImages:
    """The port `Images` over Docker Engine's API."""

    def __init__(
        self,
        socket: str,
        auth_file: Path | None,
        timeouts: Timeouts | None = None,
        *,
        root: Path | None = None,
        bandwidth: int = 0,
    ) -> None:
        self._engine = Dockerd(socket, timeouts or Timeouts())
        self._auth_file = auth_file
        self._root = root
        """Where trees are installed: there must be room for them, too, before anything is fetched."""
        self._bandwidth = bandwidth
        """Bytes a second for what nobody waits for, 0 for no limit."""

    def resolve(self, reference: str) -> str:
        """The digest that a reference names in its registry now."""
        name = pulling.parse_reference(reference)
        if name.digest:
            return name.digest
        auth = credentials(self._auth_file, name.registry)
        with self._engine.talk(reference) as engine:
            try:
                digest = engine.remote_digest(auth)
            except Silent:
                raise self._silence(engine, {}, reference, self._engine.timeouts.stall) from None
        if not isinstance(digest, str) or not pulling.DIGEST.fullmatch(digest):
            raise refusals.failure(Code.PULL_FAILED, reference, "the engine named no digest")
        return digest

    def pull(
        self, reference: str, digest: str, tell: Callable[[Progress], None], *, gentle: bool = False
    ) -> None:
        """Fetch this content by its digest: by tag, a failed pull would leave an older image to be found.

        A gentle one leaves bandwidth to others, where that can be done.
        """
        name = pulling.parse_reference(reference)
        pinned = name.pinned(digest)
        with self._engine.talk(reference) as engine:
            if engine.image(pinned) is not None:
                tell(Progress("pull-image", "already pulled"))
                return
            auth = credentials(self._auth_file, name.registry)
            # A gentle pull that ended too early may have left all that is heavy under a name of its own.
            left = provision.begun(provision.held(engine.images()), digest)
            if not left:
                seen = self._beside(name, digest, auth)
                if seen is not None:
                    self._make_room(engine, reference, name, seen)
                if gentle and self._bandwidth:
                    left = self._trickle(engine, reference, seen, auth, tell)
            # After that, what is asked for is but the real name.
            self._fetch(engine, reference, name.repository, digest, auth, _untold if left else tell)
            if left:
                with suppress(Failure):  # it goes with the image itself, at the latest
                    engine.forget(f"{left}@{digest}")
            image = engine.image(pinned)
            # An engine syncs nothing of its store. Without power in the next half minute, it would come up
            # with layers that are empty files, and could not even pull them again.
            for directory in (str(engine.about().get("DockerRootDir") or "/var/lib/docker"), _CONTAINERD):
                files.sync_file_system(Path(directory))
        digests = (image or {}).get("RepoDigests") or []
        if not any(held.endswith(f"@{digest}") for held in digests):
            raise refusals.failure(Code.IMAGE_CORRUPT, reference, f"after the pull {digest} is not there")

    def labels(self, reference: str, digest: str) -> dict[str, str]:
        """The labels of a pulled image."""
        with self._engine.talk(reference) as engine:
            return engine.labels(pulling.parse_reference(reference).pinned(digest))

    def discard(self, reference: str, digest: str) -> None:
        """Let the engine forget an image whose tree is complete, and those that a killed nvidiad left.

        One that a container uses or that somebody gave a tag stays.
        """
        name = pulling.parse_reference(reference)
        with self._engine.talk(reference) as engine:
            held = provision.held(engine.images())
            for each in provision.expendable(held, name.repository, digest):
                engine.forget(each)

    def install(
        self,
        reference: str,
        digest: str,
        trees: Trees,
        tell: Callable[[Progress], None],
        *,
        gentle: bool = False,
    ) -> None:
        """What `docker run --rm --privileged -v /:/rootfs IMAGE` does, with far less, by digest; to its end.

        A gentle one gets little of a busy host.
        """
        pinned, root = pulling.parse_reference(reference).pinned(digest), trees.root
        environment = [] if str(root) == ROOT else [f"NVIDIAD_ROOT={root}"]
        # The name is the lock: whoever is killed here leaves a container that the next one finds by it.
        name = f"nvidiad-install-{digest.removeprefix('sha256:')[:12]}"
        lines: deque[str] = deque(maxlen=_LAST_LINES)
        with self._engine.talk(reference) as engine:
            adopted = _adopt(engine, name, pinned, environment)

            def run(container: str, *, running: bool) -> int:
                try:
                    with engine.follow(container, running=running) as (printed, end):
                        for line in printed:
                            lines.append(line)
                            tell(Progress("install-tree", line))
                        return end.exit_status()
                except (Expired, Silent):
                    raise refusals.endless(reference, self._engine.timeouts.total) from None
                finally:
                    engine.remove(container)

            def anew(*, gentle: bool) -> int:
                created = engine.create(pinned, name, environment, root, gentle=gentle)
                return run(created, running=False)

            try:
                status = run(adopted, running=True) if adopted else anew(gentle=gentle)
            except Unstarted as refused:
                if not (adopted or gentle):
                    raise refused.failure from None
                # An adopted one has ended since it was found, and how is gone with it: then another, which
                # has nothing to do where all is done. Otherwise it is a kernel that cannot weigh what the
                # engine believes it can (no io.weight): then without.
                try:
                    status = anew(gentle=gentle and adopted is not None)
                except Unstarted as again:
                    raise again.failure from None
        if status != 0:
            raise refusals.exit_failure(status, list(lines), reference)

    # -- beside the engine -------------------------------------------------------------------------

    def _beside(self, name: Reference, digest: str, auth: dict[str, str] | None) -> Seen | None:
        """The image as nvidiad itself sees it in its registry.

        None where only the engine can ask, by a mirror, a proxy or an authority of its own, and where the
        answer takes too long: a name may have many addresses, and a server may send a byte at a time.
        """
        found: list[Seen] = []

        def ask() -> None:
            limits = Limits(_BESIDE, _BESIDE, tries=1)
            with suppress(Failure), closing(Repository(name.repository, auth, limits=limits)) as repository:
                found.append(see(repository, digest))

        from nvidiad.world.registry import Limits
        from nvidiad.world.repository import Repository

        # It keeps whoever asks for as long as it sends: one thread of ours, not one more with every attempt.
        if any(thread.name == "beside" for thread in threading.enumerate()):
            return None
        asking = threading.Thread(target=ask, name="beside", daemon=True)
        asking.start()
        asking.join(_BESIDE_ALL)
        return found[0] if found else None

    def _make_room(self, engine: Conversation, reference: str, name: Reference, seen: Seen) -> None:
        """Refuse an image that the disk has no room for, also without what a killed nvidiad left there."""
        short = self._shortage(engine, reference, seen)
        if short:
            for each in provision.expendable(
                provision.held(engine.images()), name.repository, seen.document.digest
            ):
                engine.forget(each)
            short = self._shortage(engine, reference, seen)
        if short:
            raise short

    def _shortage(self, engine: Conversation, reference: str, seen: Seen) -> Failure | None:
        """What is missing, as far as anybody knows what is needed and where."""
        wanted: dict[Path, tuple[int, int, int]] = {}
        if (root := store(engine.about())) is not None:
            wanted[root] = *provision.engine_needs(seen.parts.compressed, seen.tree), seen.files
        if self._root is not None and seen.tree:
            wanted[self._root] = 0, seen.tree, seen.files
        places = [found for path, needed in wanted.items() if (found := place(path, needed))]
        return provision.shortage(reference, places)

    def _trickle(
        self,
        engine: Conversation,
        reference: str,
        seen: Seen | None,
        auth: dict[str, str] | None,
        tell: Callable[[Progress], None],
    ) -> str:
        """Have the engine fetch the image from a gateway; the repository that it is named by after that.

        Empty where that cannot be: bandwidth is no reason to do without a driver.
        """
        why = "nvidiad itself does not get at the registry"
        if seen is not None:
            try:
                with self._gateway(reference, seen, auth) as gateway:
                    why = self._through(gateway, engine, reference, seen, tell)
                    if not why:
                        return gateway.name
            except (OSError, RuntimeError) as error:
                why = f"nothing can be served to the engine ({error})"
        tell(Progress("pull-image", f"without a bandwidth limit: {why}; proceeding anyway"))
        return ""

    @contextmanager
    def _gateway(self, reference: str, seen: Seen, auth: dict[str, str] | None) -> Iterator[Gateway]:
        from nvidiad.world.gateway import Gateway
        from nvidiad.world.registry import Limits
        from nvidiad.world.repository import Repository

        patience = self._engine.timeouts
        limits = Limits(patience.connect, patience.stall, _CONNECTIONS, tries=1)
        repository = pulling.parse_reference(reference).repository
        with (
            closing(Repository(repository, auth, limits=limits)) as asked,
            Gateway(asked, seen.document, self._bandwidth) as gateway,
        ):
            yield gateway

    def _through(
        self,
        gateway: Gateway,
        engine: Conversation,
        reference: str,
        seen: Seen,
        tell: Callable[[Progress], None],
    ) -> str:
        """Pull from the gateway; why the engine does not, where it is the way that is missing."""
        patience, rate = self._engine.timeouts, self._bandwidth
        limits = Timeouts(
            patience.connect,
            patience.stall + _UNTOLD / rate,
            min(patience.total + seen.parts.compressed / rate, _LONGEST),
        )
        try:
            self._fetch(engine, reference, gateway.name, seen.document.digest, None, tell, limits)
        except Failure as failure:
            if failure.code in _OF_ENGINE:
                raise
            if gateway.served or failure.code is Code.IMAGE_CORRUPT:
                raise gateway.problem or failure from None
            return failure.sentence
        return ""

    # -- the engine --------------------------------------------------------------------------------

    def _fetch(
        self,
        engine: Conversation,
        reference: str,
        repository: str,
        digest: str,
        auth: dict[str, str] | None,
        tell: Callable[[Progress], None],
        limits: Timeouts | None = None,
    ) -> None:
        limits = limits or self._engine.timeouts
        layers: pulling.Layers = {}
        changed, told = time.monotonic(), -math.inf
        try:
            with engine.pull(repository, digest, auth, limits) as stream:
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
            raise self._silence(engine, layers, reference, limits.stall) from None
        tell(replace(pulling.progress(layers), detail=f"{len(layers)} layers"))

    def _silence(
        self, engine: Conversation, layers: pulling.Layers, reference: str, seconds: float
    ) -> Failure:
        """Whose it is: an engine that still answers has been waiting for the registry, or for its disk."""
        if not engine.answers():
            return refusals.failure(Code.ENGINE_LOST, reference, f"silent for {seconds:g} s")
        return refusals.stalled(layers, seconds, reference)


def _adopt(engine: Conversation, name: str, pinned: str, environment: list[str]) -> str | None:
    """The running installer of this digest that a killed nvidiad left behind; a dead one is removed."""
    found = engine.container(name)
    if found is None:
        return None
    roots = [e for e in found["Config"].get("Env") or [] if e.startswith("NVIDIAD_ROOT=")]
    ours = roots == environment and found["Config"].get("Image") == pinned
    if found["State"].get("Running") and ours:
        return str(found["Id"])
    engine.remove(str(found["Id"]))
    return None


def _untold(_: Progress) -> None:
    """For what is no news."""
