# SPDX-License-Identifier: Apache-2.0
"""The container engine as a workshop: what is imported, built, read, saved and pushed there."""

from __future__ import annotations

import re
import tempfile
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.image.thought.compiler import first_error, is_accident, is_refusal
from nvidiad.image.world import tar
from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.model import Progress
from nvidiad.thought import refusals
from nvidiad.thought.pull import DIGEST, event_error, parse_reference
from nvidiad.world.dockerd import Dockerd, Expired, Silent, Timeouts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from _typeshed import SupportsRead

    from nvidiad.world.dockerd import Conversation

# A linker may say nothing for minutes, and a kernel's worth of modules takes an hour on a slow machine.
PATIENCE = Timeouts(connect=10, stall=900, total=14400)
_TAIL = 60
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PUSH_CODES = frozenset(
    {Code.REGISTRY_AUTH, Code.REGISTRY_UNREACHABLE, Code.REGISTRY_TLS, Code.REGISTRY_STALLED}
)


def _untold(_: Progress) -> None:
    """For who asks for no progress."""


class Engine:
    """A Docker engine behind its socket."""

    def __init__(self, socket: str = "/run/docker.sock", timeouts: Timeouts = PATIENCE) -> None:
        self._dockerd = Dockerd(socket, timeouts)

    # -- what is there -----------------------------------------------------------------------------

    def has(self, reference: str) -> bool:
        """Whether the engine has an image of this name."""
        with self._asked(reference, "looking for") as engine:
            return engine.image(reference) is not None

    def labels(self, reference: str) -> Mapping[str, str]:
        """The labels of an image."""
        labels = self._known(reference)["Config"].get("Labels") or {}
        return {str(key): str(value) for key, value in labels.items()}

    def image_id(self, reference: str) -> str:
        """The digest of an image's configuration, by which an engine names it."""
        return str(self._known(reference)["Id"])

    def layers(self, reference: str) -> tuple[str, ...]:
        """The digests of an image's layers, uncompressed, the base's first."""
        return tuple(self._known(reference)["RootFS"]["Layers"])

    def size(self, reference: str) -> int:
        """The bytes that an image takes in the engine, its base included."""
        return int(self._known(reference)["Size"])

    def _known(self, reference: str) -> dict[str, Any]:
        with self._asked(reference, "looking at") as engine:
            found = engine.image(reference)
        if found is None:
            sentence = f"the container engine has no image '{reference}'"
            raise Permanent(Code.IMAGE_MISSING, sentence, "Make or pull it first.")
        return found

    # -- what comes in -----------------------------------------------------------------------------

    def import_tree(
        self,
        archive: Path,
        reference: str,
        labels: Mapping[str, str],
        tell: Callable[[Progress], None] = _untold,
    ) -> None:
        """Make an image of one layer from a tar archive, compressed or not, as `docker import` does."""
        name = parse_reference(reference)
        params: dict[str, Any] = {"fromSrc": "-", "repo": name.repository, "tag": name.tag or "latest"}
        params["changes"] = [f"LABEL {key}={_quoted(value)}" for key, value in sorted(labels.items())]
        headers = {"Content-Type": "application/x-tar"}
        with archive.open("rb") as file, self._asked(reference, "importing") as engine:
            body = _Told(file, archive.stat().st_size, "import-image", reference, tell)
            with engine.post("/images/create", params, headers, body) as stream:
                for event in stream.events():
                    self._refuse(event, reference, "importing")

    def load(self, archive: Path, tell: Callable[[Progress], None] = _untold) -> None:
        """Take in what `save` wrote, under the names that it has there."""
        what = archive.name
        with archive.open("rb") as file, self._asked(what, "loading") as engine:
            body = _Told(file, archive.stat().st_size, "load-image", what, tell)
            headers = {"Content-Type": "application/x-tar"}
            with engine.post("/images/load", {"quiet": 1}, headers, body) as stream:
                for event in stream.events():
                    self._refuse(event, what, "loading")

    def tag(self, reference: str, other: str) -> None:
        """Give an image another name."""
        name = parse_reference(other)
        with self._asked(reference, "naming") as engine:
            engine.api.tag(reference, name.repository, name.tag or "latest", force=True)

    # -- what is made ------------------------------------------------------------------------------

    def build(
        self,
        context: Path,
        reference: str,
        *,
        arguments: Mapping[str, str],
        target: str = "",
        fresh: bool = False,
        what: str = "",
        say: Callable[[str], None],
    ) -> None:
        """Build an image as the Dockerfile of a directory says, without network and without pulling.

        `say` is told every line; `fresh` uses nothing of earlier builds. The failure says that `what` (or
        the reference) cannot be built, with the compiler's first error; the end of the output is its note.
        """
        import json

        params: dict[str, str | int] = {
            "t": reference,
            "dockerfile": "Dockerfile",
            "networkmode": "none",
            "buildargs": json.dumps(dict(arguments), sort_keys=True),
            "target": target,
            "rm": 1,
            "forcerm": 1,
            "version": 1,
        }
        if fresh:
            params["nocache"] = 1
        output = _Output(say)
        with tempfile.NamedTemporaryFile(prefix="nvidiad-context-", dir=context.parent) as packed:
            size = tar.pack(context, Path(packed.name), 0)
            with Path(packed.name).open("rb") as file, self._asked(reference, "building") as engine:
                body = _Told(file, size, "build-image", reference, _untold)
                with engine.post("/build", params, {"Content-Type": "application/x-tar"}, body) as stream:
                    for event in stream.events():
                        output.take(event.get("stream"))
                        if (error := event_error(event)) is not None:
                            raise self._build_failure(reference, what, error, output)

    def _build_failure(self, reference: str, what: str, error: str, output: _Output) -> Failure:
        output.flush()
        said = output.cause()
        cause = said or refusals.shorten(error)
        if "no space left on device" in f"{cause} {error} {' '.join(output.tail)}".lower():
            return refusals.failure(Code.DISK_FULL, reference, cause)
        name = what or f"'{reference}'"
        sentence = f"{name} cannot be built: {cause}"
        remedy = (
            "Choose a driver that this kernel can be built with; the end of the build's output says more."
        )
        # A compiler that was killed, or had no memory, may come to another end the next time.
        kind = Permanent if is_refusal(said) and not output.accident else Transient
        failure = kind(Code.BUILD_FAILED, sentence, remedy)
        failure.add_note("\n".join(output.tail))
        return failure

    # -- what goes out -----------------------------------------------------------------------------

    def extract(self, reference: str, path: str, dest: Path) -> None:
        """Write what an image has at `path` (a directory's content, or one file) into a directory.

        No container is started for it; but of the root directory an engine also gives what it adds to every
        container (`/.dockerenv`, `/dev`, `/etc/hosts`).
        """
        top = path.rstrip("/").rpartition("/")[2]

        def below(name: str) -> str | None:
            """An archive of a directory begins with the directory's own name."""
            return name.removeprefix(f"{top}/") if name != top else None

        with self._asked(reference, f"reading '{path}' of") as engine:
            made = engine.api.create_container(reference, command="none", use_config_proxy=False)
            try:
                pieces, found = engine.api.get_archive(made["Id"], path, chunk_size=1 << 20)
                is_directory = bool(int(found["mode"]) >> 31 & 1)  # the bit by which Go marks one
                what = f"{reference}:{path}"
                wanted = below if is_directory else str
                tar.unpack(_Joined(pieces), dest, what, wanted=wanted, code=Code.IMAGE_CORRUPT)
            finally:
                engine.remove(str(made["Id"]))

    def save(self, reference: str, dest: Path) -> None:
        """Write an image with its name into an archive that `docker load` takes."""
        with self._asked(reference, "saving") as engine, dest.open("wb") as file:
            for piece in engine.api.get_image(reference, chunk_size=1 << 20):
                file.write(piece)

    def push(
        self, reference: str, auth: dict[str, str] | None, tell: Callable[[Progress], None] = _untold
    ) -> str:
        """Push an image to its registry; the digest that it has there."""
        from docker.auth import encode_header

        name = parse_reference(reference)
        headers = {"X-Registry-Auth": encode_header(auth or {}).decode()}
        layers: dict[str, tuple[int, int]] = {}
        digest = ""
        with self._asked(reference, "pushing", Code.PUSH_REFUSED) as engine:
            path = f"/images/{name.repository}/push"
            with engine.post(path, {"tag": name.tag or "latest"}, headers) as stream:
                for event in stream.events():
                    if (error := event_error(event)) is not None:
                        raise _push_failure(None, error, reference)
                    digest = _pushed(event) or digest
                    _advance(layers, event)
                    done, total = (
                        (sum(part) for part in zip(*layers.values(), strict=True)) if layers else (0, 0)
                    )
                    tell(Progress("push-image", f"{len(layers)} layers", done, total))
        if not DIGEST.fullmatch(digest):
            sentence = f"the container engine named no digest after pushing '{reference}'"
            raise Transient(Code.PUSH_REFUSED, sentence, "Push it again.")
        return digest

    def remove(self, reference: str) -> None:
        """Remove an image, unless it is gone."""
        import docker

        with self._asked(reference, "removing") as engine:
            try:
                engine.api.remove_image(reference, force=True)
            except docker.errors.ImageNotFound:
                return

    def prune(self, label: str) -> None:
        """Remove the images without a name that have this label (`KEY=VALUE`): what earlier stages left."""
        with self._asked(label, "removing what is left of") as engine:
            engine.api.prune_images({"dangling": ["true"], "label": [label]})  # type: ignore[no-untyped-call]

    # -- failures ----------------------------------------------------------------------------------

    @contextmanager
    def _asked(self, reference: str, doing: str, code: Code = Code.IMAGE_FAILED) -> Iterator[Conversation]:
        """Talk about an image; what the engine says against it becomes a failure that names the deed."""
        import docker

        try:
            with self._dockerd.talk(reference) as engine:
                try:
                    yield engine
                except docker.errors.APIError as error:
                    words = str(error.explanation or error)
                    if code is Code.PUSH_REFUSED:
                        raise _push_failure(error.status_code, words, reference) from None
                    raise self._failure(reference, doing, words) from None
        except (Expired, Silent) as error:
            limits = self._dockerd.timeouts
            seconds = limits.total if isinstance(error, Expired) else limits.stall
            why = "did not end within" if isinstance(error, Expired) else "said nothing for"
            sentence = f"{doing} '{reference}': the container engine {why} {seconds:g} s"
            raise Transient(
                Code.ENGINE_LOST, sentence, "Look into its journal: journalctl -u docker."
            ) from None

    def _refuse(self, event: Mapping[str, object], reference: str, doing: str) -> None:
        if (error := event_error(event)) is not None:
            raise self._failure(reference, doing, error)

    def _failure(self, reference: str, doing: str, words: str) -> Failure:
        if "no space left on device" in words.lower():
            return refusals.failure(Code.DISK_FULL, reference, refusals.shorten(words))
        sentence = f"{doing} '{reference}' failed: {refusals.shorten(words)}"
        return Transient(
            Code.IMAGE_FAILED, sentence, "Look into the engine's journal: journalctl -u docker."
        )


class _Told:
    """A file that a request sends, and that tells how far it is."""

    def __init__(
        self, file: SupportsRead[bytes], size: int, step: str, detail: str, tell: Callable[[Progress], None]
    ) -> None:
        self._file, self._size, self._step, self._detail, self._tell = file, size, step, detail, tell
        self._done = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read(1 << 16):
            yield piece

    def read(self, size: int = -1, /) -> bytes:
        piece = self._file.read(size)
        before, self._done = self._done, self._done + len(piece)
        if before >> 23 != self._done >> 23 or not piece:  # every 8 MiB, and at the end
            self._tell(Progress(self._step, self._detail, self._done, self._size))
        return piece


class _Joined:
    """The pieces of an answer as the file that tarfile wants."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = 1 << 20, /) -> bytes:
        parts = [self._rest]
        have = len(self._rest)
        while have < size and (piece := next(self._pieces, b"")):
            parts.append(piece)
            have += len(piece)
        joined = b"".join(parts)
        self._rest = joined[size:]
        return joined[:size]


class _Output:
    """What a build prints: told line by line, its end kept, its first error remembered."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._pending = ""
        self._suspects: list[str] = []
        self.accident = False
        self.tail: deque[str] = deque(maxlen=_TAIL)

    def take(self, text: object) -> None:
        if not isinstance(text, str):
            return
        # The engine colours what came on standard error.
        plain = _COLOUR.sub("", self._pending + text).replace("\r", "\n")
        *lines, self._pending = plain.split("\n")
        for line in lines:
            self._line(line)

    def flush(self) -> None:
        self._line(self._pending)
        self._pending = ""

    def cause(self) -> str:
        return first_error(self._suspects)

    def _line(self, line: str) -> None:
        if line.strip():
            self.tail.append(line.rstrip())
            self.accident = self.accident or is_accident(line)
            if first_error([line]):
                self._suspects.append(line)
            self._say(line.rstrip())


def _push_failure(status: int | None, words: str, reference: str) -> Failure:
    found = refusals.classify(status, words, reference)
    if found.code in _PUSH_CODES:
        return found
    registry = parse_reference(reference).registry
    sentence = f"registry '{registry}' did not take '{reference}': {refusals.shorten(words)}"
    return Transient(Code.PUSH_REFUSED, sentence, f"Ask who runs '{registry}'; nothing of it was published.")


def _pushed(event: Mapping[str, object]) -> str:
    told = event.get("aux")
    digest = told.get("Digest") if isinstance(told, dict) else None
    return digest if isinstance(digest, str) else ""


def _advance(layers: dict[str, tuple[int, int]], event: Mapping[str, object]) -> None:
    """Note what an event says of a layer: the bytes that were sent, and all of them."""
    name, status, detail = event.get("id"), event.get("status"), event.get("progressDetail")
    if not isinstance(name, str) or not isinstance(status, str):
        return
    done, total = layers.get(name, (0, 0))
    if isinstance(detail, dict) and isinstance(detail.get("current"), int):
        done, total = detail["current"], max(total, int(detail.get("total") or detail["current"]))
    if status in ("Pushed", "Layer already exists"):
        done = total
    layers[name] = (done, total)


def _quoted(value: str) -> str:
    """A value as a Dockerfile's LABEL has it."""
    return '"' + "".join(f"\\{c}" if c in '"\\$' else c for c in value) + '"'
