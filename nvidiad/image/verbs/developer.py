# SPDX-License-Identifier: Apache-2.0
"""Developer: from a release of Flatcar or CoreOS to an image with its compiler and kernel build tree."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from nvidiad.image.nouns import developer as developers
from nvidiad.image.thought import digests, feeds
from nvidiad.nouns.errors import Code, Failure, Permanent
from nvidiad.nouns.model import Progress, Release
from nvidiad.nouns.value import Value, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from nvidiad.image.nouns.model import OsRelease

# Flatcar's builders sign each file, and the list of its hashes; older lists are signed in clear only.
_SIGNATURE, _DIGESTS, _CLEAR = ".sig", ".DIGESTS", ".asc"
_REMEDY = "Fetch it from another mirror, and do not use this one before you know why it differs."


class Downloads(Protocol):
    """Files over the network: `nvidiad.image.world.fetch.Downloads`."""

    def file(self, url: str, target: Path, tell: Callable[[Progress], None]) -> bool:
        """Let `target` be the file at a URL; False where the server has none."""


class Signature(Protocol):
    """A good signature; `expired` is when its key expired since (seconds since 1970), else 0."""

    @property
    def key(self) -> str:
        """The fingerprint of the key that made it."""

    @property
    def expired(self) -> int:
        """See above."""


class Trust(Protocol):
    """Keys that signatures are trusted of: `nvidiad.image.world.signatures.Keyring`."""

    def verify(self, signature: Path, signed: Path) -> Signature:
        """Check a detached signature; a Failure where it is not good."""

    def verify_clear(self, signed: Path, text: Path) -> Signature:
        """Check a file that holds its signature, and write what was signed to `text`."""


class Disks(Protocol):
    """Disk images and the trees in them: the module `nvidiad.image.world.filesystem`."""

    def workplace(self, parent: Path) -> AbstractContextManager[Path]:
        """A directory for large files, gone afterwards whatever happens."""

    def sha512(self, path: Path, tell: Callable[[Progress], None]) -> str:
        """The SHA512 of a file, in hexadecimal digits."""

    def decompress(self, packed: Path, image: Path, tell: Callable[[Progress], None]) -> None:
        """Write what a bzip2 file holds."""

    def unpack_root(self, image: Path, tree: Path, tell: Callable[[Progress], None]) -> object:
        """Write the files of the root partition below a new directory."""

    def os_release(self, tree: Path) -> Release:
        """What the tree's os-release says."""

    def kernels(self, tree: Path) -> tuple[str, ...]:
        """The kernel releases that modules can be built for in it."""

    def has_kernel(self, tree: Path, kernel: str) -> bool:
        """Whether the kernel itself is there."""

    def put_kernel(self, tree: Path, kernel: str, file: Path) -> None:
        """Put the kernel there."""

    def pack(self, tree: Path, archive: Path, tell: Callable[[Progress], None]) -> None:
        """Write a tar archive of it."""

    def remove(self, path: Path) -> None:
        """Remove a file or a tree."""


class Importer(Protocol):
    """The engine that gets the image: `nvidiad.image.world.engine.Engine`."""

    def has(self, reference: str) -> bool:
        """Whether it has an image of this name."""

    def labels(self, reference: str) -> Mapping[str, str]:
        """The labels of an image."""

    def import_tree(
        self, archive: Path, reference: str, labels: Mapping[str, str], tell: Callable[[Progress], None]
    ) -> None:
        """Make an image of a tar archive."""


class Developer(Value):
    """A developer image, and what there is to say of it."""

    reference: str
    release: OsRelease
    """With the kernel that is in the image."""
    made: bool
    """False where the image was there already."""
    notes: tuple[str, ...] = ()


def existing(release: OsRelease, repository: str, engine: Importer) -> Developer | None:
    """The developer image that the engine has of a release; another one under its name is none."""
    reference = developers.reference(release, repository)
    if not engine.has(reference):
        return None
    labels = engine.labels(reference)
    if not labels.items() >= developers.identity(release).items():
        return None
    known = replace(release, kernel=labels.get(developers.KERNEL, release.kernel))
    return Developer(reference, known, made=False, notes=(f"'{reference}' is there already",))


def make_developer(
    release: OsRelease,
    repository: str,
    *,
    mirrors: feeds.Mirrors,
    downloads: Downloads,
    trust: Trust,
    disks: Disks,
    engine: Importer,
    temporary: Path,
    cache: Path | None = None,
    again: bool = False,
    tell: Callable[[Progress], None],
) -> Developer:
    """Let the engine have the developer image of a release.

    Everything that is downloaded is verified before it is used: the SHA512 of the signed list of hashes, and
    the file's own signature. Large files are below `temporary` and gone afterwards; only the downloads stay,
    verified or cut, where `cache` names a directory. An image that is there stays as it is, unless `again`.

    Raises:
        Permanent: release-unknown, digest-mismatch, signature-invalid, disk-image-invalid, feed-invalid.
        Transient: download-failed, disk-full, and what the engine says.
    """
    reference = developers.reference(release, repository)
    if not again and (there := existing(release, repository, engine)) is not None:
        return there
    with disks.workplace(temporary) as place:
        made = _Making(release, mirrors, downloads, trust, disks, cache or place, tell)
        name = feeds.disk_image(release.family)
        packed = made.fetch(name)
        disk, tree, archive = place / "disk.img", place / "root", place / "root.tar"
        disks.decompress(packed, disk, tell)
        if cache is None:
            disks.remove(packed)
        disks.unpack_root(disk, tree, tell)
        disks.remove(disk)
        release = made.identify(tree)
        made.complete(tree, release.kernel)
        disks.pack(tree, archive, tell)
        disks.remove(tree)
        labels = developers.identity(release) | {
            developers.KERNEL: release.kernel,
            developers.SOURCE: made.sources[name],
        }
        engine.import_tree(archive, reference, labels, tell)
    return Developer(reference, release, made=True, notes=tuple(dict.fromkeys(made.notes)))


class _Making:
    """The making of one developer image, and what was remarkable about it."""

    def __init__(
        self,
        release: OsRelease,
        mirrors: feeds.Mirrors,
        downloads: Downloads,
        trust: Trust,
        disks: Disks,
        store: Path,
        tell: Callable[[Progress], None],
    ) -> None:
        self._release = release
        self._mirrors = mirrors
        self._downloads = downloads
        self._trust = trust
        self._disks = disks
        folder = f"{release.family}-{release.version}-{release.architecture}"
        self._store = store / folder
        self._tell = tell
        self.sources: dict[str, str] = {}
        """The URLs that the files came from."""
        self.notes: list[str] = []

    def fetch(self, name: str) -> Path:
        """A file of the release, from the first mirror that has it, verified.

        Raises:
            Permanent: release-unknown, where no mirror has the file and its signature.
        """
        found = self.look_for(name)
        if found is None:
            release = self._release
            urls = self._urls(name)
            sentence = f"no server has '{name}' of {release} with its signature: {', '.join(urls)}"
            remedy = "'nvidiad-image releases' shows what there is; a mirror may have kept what was removed."
            raise Permanent(Code.RELEASE_UNKNOWN, sentence, remedy)
        return found

    def look_for(self, name: str) -> Path | None:
        """Like `fetch`, and None where no mirror has the file."""
        failures = []
        for url in self._urls(name):
            try:
                # Small files first: what cannot be verified need not be downloaded.
                if not self._get(url, _SIGNATURE):
                    continue
                hashed = self._hash(url, name)
                if not self._get(url):
                    continue
                self._verify(url, name, hashed)
            except Failure as failure:
                if failure.code is not Code.DOWNLOAD_FAILED:
                    self._discard(name)  # what is wrong does not stay in a cache
                    raise
                failures.append(failure)
                continue
            self.sources[name] = url
            return self._store / name
        if failures:
            raise failures[0]
        return None

    def identify(self, tree: Path) -> OsRelease:
        """The release with the kernel that its tree is for.

        Raises:
            Permanent: disk-image-invalid, where the tree is of another release or has not just one kernel.
        """
        release = self._release
        said = self._disks.os_release(tree)
        # os-release's VERSION_ID leaves out what a nightly's version ends with.
        if (said.id, said.version) != (release.family.value, release.version.partition("+")[0]):
            raise self._wrong(f"is of '{said.id} {said.version}'")
        kernels = self._disks.kernels(tree)
        if len(kernels) != 1:
            raise self._wrong(
                f"has the build trees of {len(kernels)} kernels in /usr/lib/modules, not of one"
            )
        if release.kernel and release.kernel != kernels[0]:
            self.notes.append(f"the feed says kernel '{release.kernel}', but {release} has '{kernels[0]}'")
        return replace(release, kernel=kernels[0])

    def complete(self, tree: Path, kernel: str) -> None:
        """Put the kernel beside its modules, for `prove` to boot, unless it is there."""
        if self._disks.has_kernel(tree, kernel):
            return
        name = feeds.kernel_image(self._release.family)
        file = self.look_for(name)
        if file is None:
            self.notes.append(f"no server has '{name}': 'prove' has no kernel to boot for {self._release}")
            return
        self._disks.put_kernel(tree, kernel, file)

    def _urls(self, name: str) -> tuple[str, ...]:
        release = self._release
        return self._mirrors.file(release.channel, release.architecture, release.version, name)

    def _get(self, url: str, suffix: str = "") -> bool:
        name = url.rpartition("/")[2] + suffix
        return self._downloads.file(url + suffix, self._store / name, self._tell)

    def _hash(self, url: str, name: str) -> str:
        """The SHA512 that the file must have, from a signed list; empty where there is no list."""
        listed = self._store / (name + _DIGESTS)
        if self._get(url, _DIGESTS) and self._get(url, _DIGESTS + _SIGNATURE):
            self._trusted(lambda: self._trust.verify(_beside(listed, _SIGNATURE), listed), listed)
            return digests.sha512(listed.read_text(errors="replace"), name, url + _DIGESTS)
        if self._get(url, _DIGESTS + _CLEAR):
            clear = _beside(listed, _CLEAR)
            self._trusted(lambda: self._trust.verify_clear(clear, listed), clear)
            return digests.sha512(listed.read_text(errors="replace"), name, url + _DIGESTS + _CLEAR)
        self.notes.append(f"'{url}' has no signed list of hashes: only its own signature was checked")
        return ""

    def _verify(self, url: str, name: str, hashed: str) -> None:
        """Check a file's hash, unless it is not known, and its signature."""
        file = self._store / name
        if hashed and (found := self._disks.sha512(file, self._tell)) != hashed:
            sentence = f"'{url}' has the SHA512 {found}, but its maker says {hashed}"
            raise Permanent(Code.DIGEST_MISMATCH, sentence, _REMEDY)
        self._tell(Progress("verify", name))
        self._trusted(lambda: self._trust.verify(_beside(file, _SIGNATURE), file), file)

    def _trusted(self, check: Callable[[], Signature], file: Path) -> None:
        signature = check()
        if signature.expired:
            day = datetime.fromtimestamp(signature.expired, UTC).date()
            self.notes.append(
                f"the key {signature.key} has expired on {day}; its signature of '{file.name}' is older"
            )

    def _discard(self, name: str) -> None:
        for suffix in ("", _SIGNATURE, _DIGESTS, _DIGESTS + _SIGNATURE, _DIGESTS + _CLEAR):
            self._disks.remove(self._store / (name + suffix))

    def _wrong(self, fault: str) -> Permanent:
        return Permanent(Code.DISK_IMAGE_INVALID, f"the disk image of {self._release} {fault}", _REMEDY)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
