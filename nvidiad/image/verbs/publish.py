# SPDX-License-Identifier: Apache-2.0
"""Publish: what should be and is not is built, proven, pushed, signed and named, and the list is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nvidiad.image.nouns.model import Architecture, Standing, State
from nvidiad.image.nouns.publication import Outcome, Published
from nvidiad.image.thought import bom, matrix
from nvidiad.image.verbs.survey import Survey, survey
from nvidiad.nouns import compatibility
from nvidiad.nouns.compatibility import Compatibility
from nvidiad.nouns.errors import Code, Failure, Transient
from nvidiad.nouns.model import Problem, Progress, problem_of
from nvidiad.nouns.value import Value, replace
from nvidiad.thought import cosign, distribution
from nvidiad.thought.distribution import Descriptor, Document

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nvidiad.image.nouns.model import Cell, OsRelease, Verdict
    from nvidiad.image.nouns.recipe import Recipe

    Tell = Callable[[Progress], None]

_STEP = "publish"
# Between what was to be built and the compiler's first error, in the words of whoever builds.
_CANNOT = "cannot be built: "


class Registry(Protocol):
    """The repository of the images: `nvidiad.world.repository.Repository`."""

    name: str

    def head(self, reference: str) -> str | None: ...
    def manifest(self, reference: str) -> Document: ...
    def put_manifest(self, document: Document, reference: str = ...) -> str: ...
    def blob(self, digest: str, limit: int = ...) -> bytes: ...
    def put_blob(self, data: bytes, media_type: str = ...) -> Descriptor: ...
    def check_push(self) -> None: ...
    def artefact(self, tag: str, media_type: str, limit: int = ...) -> bytes | None: ...
    def put_artefact(
        self, tag: str, media_type: str, data: bytes, annotations: Mapping[str, str] | None = ...
    ) -> str: ...
    def put_referrer(self, subject: Document, media_type: str, data: bytes) -> str: ...


class Workshop(Protocol):
    """What makes images; each raises a Failure."""

    def developer(self, release: OsRelease, tell: Tell) -> tuple[str, OsRelease]:
        """The developer image of a release, and the release with the kernel that is in it."""

    def build(self, cell: Cell, developer: str, tell: Tell) -> str:
        """The name of the image that was built.

        Where the compiler refuses the driver: BUILD_FAILED, permanent, `… cannot be built: THE ERROR`.
        """

    def prove(self, cell: Cell, image: str, developer: str, tell: Tell) -> Verdict:
        """What a proof of the image found."""

    def push(self, image: str, tell: Tell) -> str:
        """Lay the image down in the registry under its digest, without a tag; the digest."""

    def bill(self, image: str) -> str:
        """The bill of materials of an image that was built here; empty where there is none."""

    def discard(self, image: str) -> None:
        """Remove an image that was built."""


class Signer(Protocol):
    """A key: `nvidiad.image.world.signing.SigningKey`."""

    def sign(self, data: bytes) -> bytes: ...
    def verifies(self, data: bytes, signature: bytes) -> bool: ...


class Wishes(Value):
    """What the caller wants other than usual."""

    prove: bool = True
    retry_unbuildable: bool = False
    """Build what could not be built from the very same inputs, too."""
    sign_present: bool = False
    """Sign also what was there before, whoever has pushed it."""
    architectures: tuple[Architecture, ...] = tuple(Architecture)
    """What can be built here; the rest is left to runs on other machines."""


def publish(
    recipe: Recipe,
    releases: Sequence[OsRelease],
    *,
    registry: Registry,
    workshop: Workshop,
    signer: Signer | None = None,
    wishes: Wishes | None = None,
    now: Callable[[], str],
    tell: Tell,
) -> Published:
    """Bring the registry to what the recipe wants.

    A tag is the last thing that a registry gets of an image, after its content, its bill of materials and
    its signature. `now` gives the time as RFC 3339 has it. One cell that fails stops no other.

    Raises:
        Failure: where the registry cannot be read at all, or refuses every push; then nothing was built.
    """
    found = survey(recipe, releases, registry, tell)
    run = _Run(found, registry, workshop, signer, wishes or Wishes(), now, tell)
    run.build()
    run.sign()
    run.point()
    run.list()
    return run.result()


class _Run:
    """One run, and what it has done so far."""

    def __init__(
        self,
        found: Survey,
        registry: Registry,
        workshop: Workshop,
        signer: Signer | None,
        wishes: Wishes,
        now: Callable[[], str],
        tell: Tell,
    ) -> None:
        self._registry = registry
        self._workshop = workshop
        self._signer = signer
        self._wishes = wishes
        self._now = now
        self._tell = tell
        self._places = found.places
        self._standings = {standing.cell: standing for standing in found.standings}
        self._list = found.listed
        self._written = False
        self._developers: dict[OsRelease, tuple[str, OsRelease] | Failure] = {}
        self._outcomes: list[Outcome] = []
        self._moved: list[str] = []
        self._signed: list[str] = []
        self._problems: list[Problem] = []
        self._notes = list(found.notes)

    def result(self) -> Published:
        open_ = (State.MISSING, State.UNKNOWN)
        left = any(one.state in open_ for cell, one in self._standings.items() if self._mine(cell))
        return Published(
            not left and not self._problems,
            tuple(self._standings.values()),
            tuple(self._outcomes),
            tuple(self._moved),
            tuple(self._signed),
            self._list,
            self._written,
            tuple(self._problems),
            tuple(self._notes),
        )

    # -- images --------------------------------------------------------------------------------------

    def build(self) -> None:
        """Build what is missing; nothing where the registry takes no push."""
        todo = [State.MISSING, *([State.UNBUILDABLE] if self._wishes.retry_unbuildable else [])]
        wanted = [cell for cell, one in self._standings.items() if one.state in todo and self._mine(cell)]
        once = list(matrix.once(wanted, self._places.__getitem__))
        if once:
            self._registry.check_push()
        for number, cell in enumerate(once):
            self._tell(Progress(_STEP, cell.tag, number, len(once)))
            try:
                digest = self._make(cell)
            except Failure as failure:
                self._failed(cell, failure)
                continue
            self._note(cell, State.PUBLISHED, digest=digest)
            self._outcomes.append(Outcome(self._standings[cell].cell, State.PUBLISHED, digest))

    def _mine(self, cell: Cell) -> bool:
        return cell.release.architecture in self._wishes.architectures

    def _make(self, cell: Cell) -> str:
        """The digest of the cell's image, which is in the registry then."""
        developer, release = self._developer(cell.release)
        # The developer image knows the kernel better than a feed.
        exact = replace(cell, release=release)
        image = self._workshop.build(exact, developer, self._tell)
        try:
            if self._wishes.prove:
                _accept(self._workshop.prove(exact, image, developer, self._tell), image)
            digest = self._workshop.push(image, self._tell)
            document = self._registry.manifest(digest)
            # An image is worth something without its bill, and is no trouble to those who pull it.
            self._try(lambda: self._describe(document, self._workshop.bill(image)))
            self._sign(digest)
            self._registry.put_manifest(document, self._places[cell])
        finally:
            self._discard(image)
        return digest

    def _describe(self, document: Document, bill: str) -> None:
        if bill:
            self._tell(Progress("describe-image", document.digest))
            self._registry.put_referrer(document, bom.MEDIA_TYPE, bill.encode())

    def _developer(self, release: OsRelease) -> tuple[str, OsRelease]:
        """A release's developer image; one that cannot be had is not tried again for every driver."""
        if release not in self._developers:
            try:
                self._developers[release] = self._workshop.developer(release, self._tell)
            except Failure as failure:
                self._developers[release] = failure
        made = self._developers[release]
        if isinstance(made, Failure):
            raise made
        return made

    def _discard(self, image: str) -> None:
        try:
            self._workshop.discard(image)
        except Failure as failure:
            self._notes.append(f"'{image}' stays in the container engine: {failure.sentence}")

    def _failed(self, cell: Cell, failure: Failure) -> None:
        problem = problem_of(failure)
        # Only a compiler's refusal says something of the driver: a build can also end for want of memory.
        refused = failure.code is Code.BUILD_FAILED and not failure.retry
        reason = failure.sentence.partition(_CANNOT)[2] if refused else ""
        state = State.UNBUILDABLE if reason else State.MISSING
        if state is State.UNBUILDABLE:
            self._note(cell, state, reason=reason)
            # What took a compiler's time to find out is kept, whatever becomes of this run.
            self.list()
        log = "\n".join(getattr(failure, "__notes__", ()))
        self._outcomes.append(Outcome(self._standings[cell].cell, state, problem=problem, log=log))

    def _note(self, cell: Cell, state: State, *, digest: str = "", reason: str = "") -> None:
        """What is now known of all cells that share this one's image."""
        made = self._developers.get(cell.release)
        kernel = made[1].kernel if isinstance(made, tuple) else cell.release.kernel
        for known in self._standings:
            if self._places[known] == self._places[cell]:
                exact = replace(known, release=replace(known.release, kernel=kernel))
                self._standings[known] = Standing(exact, state, digest, reason)

    # -- names and signatures ------------------------------------------------------------------------

    def sign(self) -> None:
        """Sign what was published before there was a key, where that is wanted."""
        if self._signer is None or not self._wishes.sign_present:
            return
        published = (one.digest for one in self._standings.values() if one.state is State.PUBLISHED)
        for digest in dict.fromkeys(published):
            self._try(lambda digest=digest: self._sign(digest))  # type: ignore[misc]

    def _sign(self, digest: str) -> None:
        if self._signer is None or self._vouched(digest):
            return
        self._tell(Progress("sign-image", digest))
        payload = cosign.payload(self._registry.name, digest)
        layer = self._registry.put_blob(payload, cosign.PAYLOAD)
        config = self._registry.put_blob(cosign.configuration(payload), distribution.OCI_CONFIG)
        # A new key's signature joins that of the old one: hosts learn of keys at their own pace.
        made = cosign.manifest(config, layer, self._signer.sign(payload), self._signatures(digest))
        self._registry.put_manifest(made, cosign.tag(digest))
        self._signed.append(digest)

    def _vouched(self, digest: str) -> bool:
        """Whether an image has a signature of this key, from this run or an earlier one."""
        if self._signer is None or digest in self._signed:
            return self._signer is not None
        found = self._signatures(digest)
        if found is None:
            return False
        blobs = {each: self._registry.blob(each, cosign.MAX_BYTES) for each in cosign.material(found)}
        return any(
            digest in seal.digests and self._signer.verifies(seal.signed, seal.signature)
            for seal in cosign.seals(found, blobs)
        )

    def _signatures(self, digest: str) -> Document | None:
        tag = cosign.tag(digest)
        return None if self._registry.head(tag) is None else self._registry.manifest(tag)

    def point(self) -> None:
        """Let the tags of channels and of several architectures name what is there now."""
        for pointer in matrix.pointers(tuple(self._standings)):
            self._try(lambda pointer=pointer: self._move(pointer))  # type: ignore[misc]

    def _move(self, pointer: matrix.Pointer) -> None:
        named = matrix.targets(pointer, self._standings)
        there = self._registry.head(pointer.tag)
        if not named or (len(named) == 1 and there == named[0].digest):
            return
        if len(named) == 1:
            document = self._registry.manifest(named[0].digest)
        else:
            document = distribution.index(tuple(self._described(one) for one in named))
            if there == document.digest:
                # Hosts resolve the tag to the index: a new key has to sign that, too.
                if self._wishes.sign_present:
                    self._sign(there)
                return
            self._registry.put_manifest(document)
        # A name lends no signature to what nobody with this key has signed.
        if self._wishes.sign_present or all(self._vouched(one.digest) for one in named):
            self._sign(document.digest)
        elif there is not None and self._vouched(there):
            self._notes.append(
                f"'{pointer.tag}' stays with what is signed: not all of what it is to name is "
                "(--sign-present signs it)"
            )
            return
        self._registry.put_manifest(document, pointer.tag)
        self._moved.append(pointer.tag)

    def _described(self, standing: Standing) -> Descriptor:
        document = self._registry.manifest(standing.digest)
        architecture = str(standing.cell.release.architecture)
        return Descriptor(
            document.media_type, document.digest, len(document.body), architecture=architecture
        )

    # -- the list ------------------------------------------------------------------------------------

    def list(self) -> None:
        """Write the list, where it tells something new."""
        entries = matrix.entries(self._standings.values(), self._list)
        if entries == self._list.entries:
            return
        made = Compatibility(self._now(), entries)
        title = {"org.opencontainers.image.title": "compatibility.json"}
        text = compatibility.render(made).encode()

        def write() -> None:
            self._registry.put_artefact(compatibility.TAG, compatibility.MEDIA_TYPE, text, title)
            self._list, self._written = made, True

        self._try(write)

    def _try(self, do: Callable[[], None]) -> None:
        """Note what went wrong, once, and go on: the rest is worth something without it."""
        try:
            do()
        except Failure as failure:
            if (problem := problem_of(failure)) not in self._problems:
                self._problems.append(problem)


def _accept(verdict: Verdict, image: str) -> None:
    """Refuse what was not proven, in the words of the first check that failed."""
    if verdict.proven:
        return
    failed = next((check for check in verdict.checks if not check.passed), None)
    why = f"{failed.name}: {failed.sentence}" if failed else "nothing was checked"
    raise Transient(
        Code.PROOF_FAILED,
        f"'{image}' is not proven to fit and is not published ({why})",
        f"See what 'nvidiad-image prove {image}' says.",
    )
