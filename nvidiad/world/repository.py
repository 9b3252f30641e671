# SPDX-License-Identifier: Apache-2.0
"""A repository of a registry, without a container engine: what is in it, and what is put into it.

The protocol is the OCI distribution specification's.
"""

from __future__ import annotations

import urllib.parse
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Progress
from nvidiad.thought import distribution, refusals
from nvidiad.thought import pull as pulling
from nvidiad.thought.distribution import Descriptor, Document
from nvidiad.world.registry import AT_MOST, AUTHORITIES, Answer, Limits, Registry, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from nvidiad.world.registry import Flow

__all__ = ["Limits", "Repository"]

_PIECE = 16 << 20
# How registries say that they know nothing of referrers.
_NO_API = (400, 404, 405, 501)
_PAGES = 8
_BYTES = {"Content-Type": "application/octet-stream"}


class Repository:
    """A repository, by its name with the registry: `registry.example/nvidia-driver`."""

    def __init__(
        self,
        name: str,
        auth: Mapping[str, str] | None = None,
        *,
        limits: Limits | None = None,
        insecure: bool = False,
        authorities: Path = AUTHORITIES,
    ) -> None:
        self.name = name
        host = pulling.parse_reference(f"{name}:tag").registry
        self._path = distribution.path_of(name, host)
        self._registry = Registry(host, auth, limits or Limits(), insecure=insecure, authorities=authorities)

    def close(self) -> None:
        """Hang up."""
        self._registry.close()

    # -- manifests -----------------------------------------------------------------------------------

    def head(self, reference: str) -> str | None:
        """The digest of what a tag or digest names; None where it names nothing. Nothing is downloaded."""
        answer = self._find("HEAD", f"/manifests/{reference}", reference)
        if answer is None:
            return None
        digest = answer.headers.get("docker-content-digest", "")
        return digest if pulling.DIGEST.fullmatch(digest) else self.manifest(reference).digest

    def manifest(self, reference: str) -> Document:
        """What a tag or digest names; raises IMAGE_MISSING, or IMAGE_CORRUPT where it has another digest."""
        answer = self._find("GET", f"/manifests/{reference}", reference)
        if answer is None:
            raise refusals.failure(Code.IMAGE_MISSING, self._told(reference))
        document = Document(answer.headers.get("content-type", distribution.OCI_MANIFEST), answer.body)
        self._same(reference if ":" in reference else _named(answer, document), document.digest, reference)
        return document

    def referrers(self, digest: str) -> tuple[tuple[str, str], ...]:
        """What refers to a manifest, by the API of OCI 1.1 or its fallback tag: digests and types."""
        found: list[tuple[str, str]] = []
        place = f"/referrers/{digest}"
        headers = {"Accept": distribution.OCI_INDEX}
        for _ in range(_PAGES):
            answer = self._registry.ask(self._request("GET", place, digest, headers))
            if answer.status in _NO_API and not found:
                # Whoever puts a referrer there keeps an index of them under a tag then.
                kept = self._find("GET", f"/manifests/{distribution.referrers_tag(digest)}", digest)
                return () if kept is None else distribution.referrers_in(kept.body)
            found += distribution.referrers_in(self._accepted(answer, digest, writing=False).body)
            place = _next_page(answer)
            if not place:
                break
        return tuple(found)

    def put_manifest(self, document: Document, reference: str = "") -> str:
        """Give a manifest a tag, or lay it down under its digest only; the digest."""
        name = reference or document.digest
        kind = {"Content-Type": document.media_type}
        answer = self._write("PUT", f"/manifests/{name}", name, kind, document.body)
        self._same(_named(answer, document), document.digest, name)
        return document.digest

    def tags(self) -> tuple[str, ...]:
        """Every tag; none where there is no such repository."""
        found: list[str] = []
        place = "/tags/list?n=1000"
        while place:
            answer = self._find("GET", place, "tags")
            if answer is None:
                break
            listed = Document("", answer.body).content().get("tags")
            found += [tag for tag in listed if isinstance(tag, str)] if isinstance(listed, list) else []
            place = _next_page(answer)
        return tuple(dict.fromkeys(found))

    # -- blobs ---------------------------------------------------------------------------------------

    def has_blob(self, digest: str) -> bool:
        """Whether the repository holds this content."""
        return self._find("HEAD", f"/blobs/{digest}", digest) is not None

    def blob(self, digest: str, limit: int = AT_MOST) -> bytes:
        """Content of at most `limit` bytes; raises IMAGE_CORRUPT where it is other content."""
        answer = self._find("GET", f"/blobs/{digest}", digest, limit)
        if answer is None:
            raise refusals.failure(Code.IMAGE_CORRUPT, self._told(digest), "its content is not there")
        self._same(digest, distribution.digest_of(answer.body), digest)
        return answer.body

    @contextmanager
    def flow(self, digest: str, part: str = "") -> Iterator[Flow]:
        """Content as it comes, or a part of it (`bytes=100-`); nobody has checked its digest."""
        headers = {"Range": part} if part else {}
        with self._registry.flow(self._request("GET", f"/blobs/{digest}", digest, headers)) as flow:
            yield flow

    def put_blob(self, data: bytes, media_type: str = "application/octet-stream") -> Descriptor:
        """Lay content down, unless it is there."""
        digest = distribution.digest_of(data)
        if not self.has_blob(digest):
            self._finish(self._begin(digest, ""), digest, data)
        return Descriptor(media_type, digest, len(data))

    def put_file(
        self, file: BinaryIO, blob: Descriptor, tell: Callable[[Progress], None], source: str = ""
    ) -> None:
        """Lay a file down in pieces, unless it is there or can be had from the repository `source`."""
        if self.has_blob(blob.digest):
            return
        for last in (False, True):
            place = self._begin(blob.digest, source)
            # A piece whose answer was lost may have come: only a new upload is sure to be whole.
            if not place or self._pieces(place, file, blob, tell):
                return
            if last:
                raise refusals.failure(
                    Code.REGISTRY_UNREACHABLE, self._told(blob.digest), "the upload broke off twice"
                )

    def check_push(self) -> None:
        """Raise what a push would fail with, before anything is made that is to be pushed."""
        place = self._begin("", "")
        # Some registries have no way to give an upload up; it expires.
        self._registry.ask(self._request("DELETE", place, "", writing=True))

    def _begin(self, digest: str, source: str) -> str:
        """Where to upload to; empty where the registry took the content from `source`."""
        query = {"mount": digest, "from": distribution.path_of(source, self._registry.name)}
        more = "?" + urllib.parse.urlencode(query) if source else ""
        answer = self._write("POST", f"/blobs/uploads/{more}", digest, {}, b"", source)
        return "" if answer.status == 201 else self._next(answer, digest)

    def _pieces(
        self, place: str, file: BinaryIO, blob: Descriptor, tell: Callable[[Progress], None]
    ) -> bool:
        """Whether all pieces were taken in their order."""
        file.seek(0)
        done = 0
        while blob.size - done > _PIECE:
            piece = file.read(_PIECE)
            headers = {**_BYTES, "Content-Range": f"{done}-{done + len(piece) - 1}"}
            answer = self._registry.ask(
                self._request("PATCH", place, blob.digest, headers, piece, writing=True)
            )
            if answer.status == 416:
                return False
            place = self._next(self._accepted(answer, blob.digest), blob.digest)
            done += len(piece)
            tell(Progress("push-image", blob.digest, done, blob.size))
        self._finish(place, blob.digest, file.read())
        tell(Progress("push-image", blob.digest, blob.size, blob.size))
        return True

    def _finish(self, place: str, digest: str, data: bytes) -> None:
        place += ("&" if "?" in place else "?") + urllib.parse.urlencode({"digest": digest})
        self._write("PUT", place, digest, _BYTES, data)

    def _next(self, answer: Answer, what: str) -> str:
        if place := answer.headers.get("location"):
            return place
        detail = "it takes an upload and does not say where"
        raise refusals.failure(Code.REGISTRY_UNREACHABLE, self._told(what), detail)

    # -- artefacts -----------------------------------------------------------------------------------

    def artefact(self, tag: str, media_type: str, limit: int = AT_MOST) -> bytes | None:
        """What lies under a tag as an artefact of this type; None where the tag is not there."""
        if self.head(tag) is None:
            return None
        layers = distribution.layers_of(self.manifest(tag), media_type)
        if len(layers) != 1:
            raise refusals.failure(Code.IMAGE_FOREIGN, self._told(tag), f"no artefact of type {media_type}")
        return self.blob(layers[0], limit)

    def put_artefact(
        self, tag: str, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None
    ) -> str:
        """Lay data down under a tag as an artefact of this type; the digest of its manifest."""
        config = self.put_blob(b"{}", distribution.EMPTY)
        layer = self.put_blob(data, media_type)
        made = distribution.artefact(media_type, layer, config, annotations or {})
        return self.put_manifest(made, tag)

    def put_referrer(self, subject: Document, media_type: str, data: bytes) -> str:
        """Lay data down as an artefact of this type that says something of `subject`; its digest.

        A registry that lists no referrers (OCI distribution 1.1) gets an index of them under a tag.
        """
        config = self.put_blob(b"{}", distribution.EMPTY)
        layer = self.put_blob(data, media_type)
        of = Descriptor(subject.media_type, subject.digest, len(subject.body))
        made = distribution.artefact(media_type, layer, config, {}, of)
        kind = {"Content-Type": made.media_type}
        answer = self._write("PUT", f"/manifests/{made.digest}", made.digest, kind, made.body)
        self._same(_named(answer, made), made.digest, made.digest)
        # So says a registry that lists referrers by itself.
        if not answer.headers.get("oci-subject"):
            self._list_referrer(subject.digest, made, media_type)
        return made.digest

    def _list_referrer(self, subject: str, made: Document, media_type: str) -> None:
        tag = distribution.referrers_tag(subject)
        listed = self.manifest(tag) if self.head(tag) is not None else None
        referrer = Descriptor(made.media_type, made.digest, len(made.body), artefact_type=media_type)
        try:
            index = distribution.with_referrer(listed, referrer)
        except ValueError:
            detail = "what lies there is no index of referrers"
            raise refusals.failure(Code.IMAGE_FOREIGN, self._told(tag), detail) from None
        if index is not None:
            self.put_manifest(index, tag)

    # -- requests ------------------------------------------------------------------------------------

    def _find(self, method: str, place: str, what: str, limit: int = AT_MOST) -> Answer | None:
        """What is there; None where nothing is."""
        answer = self._registry.ask(
            self._request(method, place, what, {"Accept": distribution.ACCEPTED}, limit=limit)
        )
        return None if answer.status == 404 else self._accepted(answer, what, writing=False)

    def _write(
        self, method: str, place: str, what: str, headers: Mapping[str, str], body: bytes, source: str = ""
    ) -> Answer:
        return self._accepted(
            self._registry.ask(
                self._request(method, place, what, headers, body, writing=True, source=source)
            ),
            what,
        )

    def _request(
        self,
        method: str,
        place: str,
        what: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        writing: bool = False,
        source: str = "",
        limit: int = AT_MOST,
    ) -> Request:
        # A registry gives places as paths or as URLs, sometimes on another host.
        url = urllib.parse.urljoin(f"{self._registry.base}/", place)
        if place.startswith("/") and not place.startswith("/v2/"):
            url = f"{self._registry.base}/v2/{self._path}{place}"
        scope = f"repository:{self._path}:{'pull,push' if writing else 'pull'}"
        if source:
            scope += f" repository:{distribution.path_of(source, self._registry.name)}:pull"
        return Request(method, url, self._told(what), scope, headers or {}, body, writing, limit)

    def _accepted(self, answer: Answer, what: str, *, writing: bool = True) -> Answer:
        if answer.status >= 400:
            raise distribution.refusal(answer.status, answer.body, self._told(what), writing=writing)
        return answer

    def _same(self, wanted: str, found: str, what: str) -> None:
        if wanted != found:
            raise refusals.failure(Code.IMAGE_CORRUPT, self._told(what), f"its content has {found}")

    def _told(self, what: str) -> str:
        """A reference, for a person."""
        return f"{self.name}{'@' if ':' in what else ':'}{what}" if what else self.name


def _next_page(answer: Answer) -> str:
    """Where a list goes on (RFC 8288); empty at its end."""
    link = answer.headers.get("link", "")
    return link[link.find("<") + 1 : link.find(">")] if 'rel="next"' in link else ""


def _named(answer: Answer, document: Document) -> str:
    """The digest that a registry names; few name none."""
    return answer.headers.get("docker-content-digest") or document.digest
