# SPDX-License-Identifier: Apache-2.0
"""Layouts on disk: images in a directory or a file, read as if they lay in a registry."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.thought import distribution, layouts, parcels, tar
from nvidiad.thought.distribution import Document
from nvidiad.thought.layouts import Form
from nvidiad.thought.pull import DIGEST, clean
from nvidiad.thought.tar import Sort
from nvidiad.world.places import Places
from nvidiad.world.registry import AT_MOST, Flow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvidiad.thought.layouts import Kept
    from nvidiad.world.registry import Limits

_REFERRERS = 256
_MEMBERS = 100_000


class LocalStores:
    """What `Registries` is for images in files: who asks for one need not know."""

    def __init__(self, what: str, kept: Kept) -> None:
        self._what = what
        self._kept = kept

    def name(self, reference: str) -> str:
        """What is asked of the place: a tag or a digest."""
        del reference
        return self._kept.name

    def open(self, reference: str, limits: Limits | float) -> Places:
        """The one place that there is."""
        del reference, limits
        return Places([_opened(self._what, self._kept)])

    def beside(self, reference: str, elsewhere: str, limits: Limits) -> Places:
        """Where signatures are: in the same file, wherever else they may be."""
        del elsewhere
        return self.open(reference, limits)


def _opened(what: str, kept: Kept) -> Layout | DockerArchive:
    try:
        if kept.form is Form.LAYOUT:
            return Layout(what, _Folder(kept.path))
        archive = _Archive(kept.path, what)
    except OSError as error:
        why = f"'{kept.path}' cannot be read: {error.strerror}"
        raise Permanent(Code.IMAGE_MISSING, why, "Correct its path.") from None
    return Layout(what, archive) if kept.form is Form.ARCHIVE else DockerArchive(what, archive, kept.name)


# ---------------------------------------------------------------------------------------------------
# Files by name


class _Folder:
    """The files of a directory; links are not followed."""

    def __init__(self, path: str) -> None:
        self._path = path
        Path(path, layouts.INDEX).lstat()

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[int, int, int]]:
        """A descriptor, and where in it the content begins and how long it is."""
        fd = os.open(f"{self._path}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", name)
            yield fd, 0, found.st_size
        finally:
            os.close(fd)

    def close(self) -> None:
        """Nothing is held."""


class _Archive:
    """The members of a tar archive that can be read from anywhere."""

    def __init__(self, path: str, what: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._members: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            self._list(os.fstat(self._fd).st_size)
        except ValueError as error:
            self.close()
            raise layouts.damaged(what, f"it is no tar archive ({error})") from None
        except OSError:
            self.close()
            raise

    def _list(self, size: int) -> None:
        at = 0

        def read(count: int) -> bytes:
            nonlocal at
            data = os.pread(self._fd, count, at)
            at += len(data)
            return data

        def skip(count: int) -> None:
            nonlocal at
            at += count
            if at > size:
                raise ValueError("it ends in the middle of a member")

        for number, member in enumerate(tar.members(read, skip)):
            if number >= _MEMBERS:
                raise ValueError("it has too many members")
            name = os.path.normpath(member.name).lstrip("/")
            if member.sort is Sort.FILE:
                self._members[name] = (at, member.size)
            elif member.sort in (Sort.LINK, Sort.HARD_LINK):
                whole = member.sort is Sort.HARD_LINK
                self._links[name] = f"/{member.target}".removeprefix("//") if whole else member.target

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[int, int, int]]:
        """A descriptor, and where in it the content begins and how long it is."""
        found = self._members.get(layouts.target(self._links, os.path.normpath(name)).lstrip("/"))
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        yield self._fd, *found

    def close(self) -> None:
        """Let the file go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Store:
    """What layouts of both forms have in common."""

    def __init__(self, what: str, files: _Folder | _Archive) -> None:
        self.name = what
        self._files = files

    def close(self) -> None:
        """Let go."""
        self._files.close()

    def _read(self, name: str, limit: int) -> bytes:
        """A small file, whole."""
        try:
            with self._files.opened(name) as (fd, start, size):
                if size > limit:
                    raise layouts.damaged(self.name, f"'{name}' has more than {limit} bytes")
                return os.pread(fd, size, start)
        except OSError as error:
            raise layouts.damaged(self.name, f"'{name}' cannot be read: {error.strerror}") from None

    @contextmanager
    def _flow(self, name: str, part: str) -> Iterator[Flow]:
        first = int(part.removeprefix("bytes=").removesuffix("-") or 0)
        try:
            with self._files.opened(name) as (fd, start, size):
                at = start + first

                def read(count: int) -> bytes:
                    nonlocal at
                    try:
                        data = os.pread(fd, min(count, start + size - at), at)
                    except OSError as error:
                        raise layouts.damaged(self.name, f"'{name}': {error.strerror}") from None
                    at += len(data)
                    return data

                yield Flow(206 if part else 200, {}, read)
        except FileNotFoundError:
            yield Flow(404, {}, lambda _: b"")


# ---------------------------------------------------------------------------------------------------
# Both forms


class Layout(_Store):
    """OCI's image layout, in a directory or in an archive."""

    def __init__(self, what: str, files: _Folder | _Archive) -> None:
        super().__init__(what, files)
        self._index = Document(distribution.OCI_INDEX, self._read(layouts.INDEX, AT_MOST))

    def head(self, reference: str) -> str | None:
        """The digest of what a tag or digest names; without any, of the only image."""
        found = layouts.digest_in(self._index, reference, self.name)
        if found is None and not layouts.is_signature(reference):
            raise self._missing(reference)
        return found

    def manifest(self, reference: str) -> Document:
        """What a tag or digest names."""
        digest = reference if DIGEST.fullmatch(reference) else self.head(reference)
        if digest is None:
            raise self._missing(reference)
        body = self.blob(digest)
        kinds = [one.get("mediaType") for one in layouts.described(self._index) if one["digest"] == digest]
        kind = distribution.object_in(body).get("mediaType") or next(iter(kinds), None)
        return Document(kind if isinstance(kind, str) else distribution.OCI_MANIFEST, body)

    def _missing(self, name: str) -> Permanent:
        what = f"no image '{clean(name)}'" if name else "no image"
        return Permanent(Code.IMAGE_MISSING, f"there is {what} in '{self.name}'", "Copy it there.")

    def blob(self, digest: str, limit: int = AT_MOST) -> bytes:
        """Content of at most `limit` bytes."""
        body = self._read(layouts.blob_path(digest), limit)
        if (found := distribution.digest_of(body)) != digest:
            raise layouts.damaged(self.name, f"what is there for {digest} has {found}")
        return body

    @contextmanager
    def flow(self, digest: str, part: str = "") -> Iterator[Flow]:
        """Content as it comes, or what follows a number of bytes."""
        with self._flow(layouts.blob_path(digest), part) as flow:
            yield flow

    def referrers(self, digest: str) -> tuple[tuple[str, str], ...]:
        """What the index names and says of itself that it refers to a manifest."""
        found: list[tuple[str, str]] = []
        for one in layouts.described(self._index)[:_REFERRERS]:
            said = self.manifest(one["digest"]).content()
            subject = said.get("subject")
            if isinstance(subject, dict) and subject.get("digest") == digest:
                found.append((one["digest"], str(said.get("artifactType") or "")))
        return tuple(found)


class DockerArchive(_Store):
    """What `docker save` writes; it knows no digest of an image, so nobody can have signed it."""

    def __init__(self, what: str, files: _Archive, name: str) -> None:
        super().__init__(what, files)
        saved = layouts.saved(self._read(layouts.MANIFEST, AT_MOST), name, what)
        self._config = self._read(saved.config, AT_MOST)
        contents = parcels.unpacked(self._config)
        if len(contents) != len(saved.layers):
            raise layouts.damaged(what, "its configuration does not name each of its layers")
        digests = [_own(layer) or content for layer, content in zip(saved.layers, contents, strict=True)]
        self._names = dict(zip(digests, saved.layers, strict=True))
        sizes = [(digest, self._size(self._names[digest])) for digest in digests]
        self._manifest = layouts.rewritten(self._config, tuple(sizes))

    def _size(self, name: str) -> int:
        try:
            with self._files.opened(name) as (_, _, size):
                return size
        except OSError as error:
            raise layouts.damaged(self.name, f"'{name}' cannot be read: {error.strerror}") from None

    def head(self, reference: str) -> str | None:
        """The digest that is computed of the image, whatever it is called there; it has no other names."""
        return None if layouts.is_signature(reference) else self._manifest.digest

    def manifest(self, reference: str) -> Document:
        """The manifest that it would have."""
        del reference
        return self._manifest

    def blob(self, digest: str, limit: int = AT_MOST) -> bytes:
        """Its configuration."""
        if distribution.digest_of(self._config) != digest or len(self._config) > limit:
            raise layouts.damaged(self.name, f"it has no {digest}")
        return self._config

    @contextmanager
    def flow(self, digest: str, part: str = "") -> Iterator[Flow]:
        """A layer."""
        with self._flow(self._names.get(digest, ""), part) as flow:
            yield flow

    def referrers(self, digest: str) -> tuple[tuple[str, str], ...]:
        """Nothing refers to it."""
        del digest
        return ()


def _own(name: str) -> str:
    """The digest by which an archive calls a layer, which may be compressed then; else empty."""
    digest = name.removeprefix("blobs/").replace("/", ":")
    return digest if name.startswith("blobs/") and DIGEST.fullmatch(digest) else ""
