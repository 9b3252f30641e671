# SPDX-License-Identifier: Apache-2.0
"""Pulling as values: image references, credentials, the progress of layers."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Progress
from nvidiad.nouns.value import Value, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DOCKER_HUB = "docker.io"
HUB_NAMES = ("index.docker.io", "registry-1.docker.io")
"""What else it is called."""
_PIECE = 4096
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


# ---------------------------------------------------------------------------------------------------
# References


class Reference(Value):
    """`REGISTRY/PATH:TAG@DIGEST` in its parts; `repository` is what stands before the tag, as written."""

    registry: str
    repository: str
    tag: str
    digest: str

    def pinned(self, digest: str) -> str:
        """The reference by which exactly this content is meant, whatever the tag names by now."""
        return f"{self.repository}@{digest}"


def parse_reference(text: str) -> Reference:
    """The parts of an image reference; only what the engine's own rules leave open is judged here."""
    name, at, digest = text.partition("@")
    if at and not DIGEST.fullmatch(digest):
        raise _malformed(text, f"'{digest}' is not a sha256 digest")
    head, slash, tail = name.rpartition("/")
    path, _, tag = tail.partition(":")
    first, more, _ = name.partition("/")
    # A name of Docker Hub has no capitals: then it is a host's, as engines take it.
    marks = "." in first or ":" in first or first.lower() != first
    is_registry = bool(more) and (first == "localhost" or marks)
    if not path or re.search(r"\s|://", text):
        raise _malformed(text, "expected REGISTRY/PATH:TAG")
    return Reference(first if is_registry else DOCKER_HUB, head + slash + path, tag, digest)


def clean(text: str) -> str:
    """One line, nothing in it that a terminal obeys."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _malformed(text: str, why: str) -> Permanent:
    remedy = "correct image.repository or image.tag in the configuration"
    return Permanent(Code.CONFIG_INVALID, f"'{clean(text)}' is not an image reference: {why}", remedy)


# ---------------------------------------------------------------------------------------------------
# Credentials


NOT_FOUND = "credentials not found"
"""What a credential helper says of a registry that it knows nothing of."""
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _auths(text: str, source: str, registry: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A docker config.json, and its entry for a registry."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad_file(source, f"it is not JSON ({error})") from None
    if not isinstance(document, dict) or not isinstance(document.get("auths", {}), dict):
        raise bad_file(source, 'expected an object with "auths"')
    entry = next((e for key, e in document.get("auths", {}).items() if _host(key) == _host(registry)), None)
    if entry is not None and not isinstance(entry, dict):
        raise bad_file(source, f"the entry for '{registry}' is not an object")
    return document, entry or {}


def helper(text: str, source: str, registry: str) -> str:
    """The credential helper that a docker config.json names for a registry, where it has nothing itself."""
    document, entry = _auths(text, source, registry)
    helpers = document.get("credHelpers")
    named = helpers.items() if isinstance(helpers, dict) else ()
    found = (
        next((each for key, each in named if _host(key) == _host(registry)), None)
        or document.get("credsStore")
        or ""
    )
    if entry or not found:
        return ""
    # It becomes a part of a program's name.
    if not isinstance(found, str) or not _HELPER.fullmatch(found):
        raise bad_file(source, f"the credential helper for '{registry}' is no name")
    return found


def helped(text: str, name: str, source: str, registry: str) -> dict[str, str]:
    """What a credential helper said, as the engine wants it."""
    try:
        said = json.loads(text)
        user, secret = said["Username"], said["Secret"]
        f"{user}{secret}".encode()
    except (ValueError, RecursionError, LookupError, TypeError):
        user = secret = None
    if not isinstance(user, str) or not isinstance(secret, str):
        raise bad_file(source, f"'{name}' did not answer with Username and Secret")
    if user == "<token>":
        return {"identitytoken": secret, "serveraddress": registry}
    return {"username": user, "password": secret, "serveraddress": registry}


def server_name(registry: str) -> str:
    """A registry as clients call it to a credential helper."""
    return "https://index.docker.io/v1/" if registry == DOCKER_HUB else registry


def credentials(text: str, source: str, registry: str) -> dict[str, str] | None:
    """What a docker config.json holds for a registry, as the engine wants it; None if it holds nothing."""
    _, entry = _auths(text, source, registry)
    if not entry:
        return None
    fields = {key: value for key, value in entry.items() if isinstance(value, str)}
    try:
        "".join(fields.values()).encode()
    except UnicodeEncodeError:  # JSON can say half a character, and nobody can be told it
        raise bad_file(source, f"the entry for '{registry}' is not Unicode text") from None
    for token in ("identitytoken", "registrytoken"):
        if fields.get(token):
            return {token: fields[token], "serveraddress": registry}
    user, password = fields.get("username", ""), fields.get("password", "")
    if fields.get("auth"):
        user, password = _decode(fields["auth"], source, registry)
    if not user:
        raise bad_file(source, f"the entry for '{registry}' has neither auth nor username and password")
    return {"username": user, "password": password, "serveraddress": registry}


def _decode(auth: str, source: str, registry: str) -> tuple[str, str]:
    try:
        user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except ValueError:  # not base64, not ASCII, not UTF-8
        colon = ""
    if not colon:
        raise bad_file(source, f"auth of '{registry}' is not base64 of USER:PASSWORD")
    return user, password.strip("\0")


def _host(key: str) -> str:
    """Clients of old wrote URLs (`https://index.docker.io/v1/`) where today a host name stands."""
    host = re.sub(r"^https?://", "", key).partition("/")[0]
    return DOCKER_HUB if host in HUB_NAMES else host


def bad_file(source: str, why: str) -> Permanent:
    remedy = "write it as docker's config.json, or remove image.auth-file from the configuration"
    return Permanent(Code.CONFIG_INVALID, f"'{source}' cannot be used for credentials: {why}", remedy)


# ---------------------------------------------------------------------------------------------------
# Progress

_DONE = frozenset({"Pull complete", "Already exists"})
_FETCHED = frozenset({"Verifying Checksum", "Download complete"})
_LAYER = frozenset({"Pulling fs layer", "Waiting", "Downloading", "Extracting"}) | _DONE | _FETCHED


class Layer(Value):
    """One layer of a pull, as far as the engine has told."""

    status: str
    current: int = 0
    """Bytes downloaded."""
    total: int = 0
    """Bytes to download, 0 while that is not known."""
    unpacked: int = 0

    @property
    def fetched(self) -> bool:
        return self.status in _FETCHED or self.status in _DONE or self.status == "Extracting"


Layers = dict[str, Layer]


def event(line: bytes) -> dict[str, object] | None:
    """What one line of the engine's stream tells; None for half a line: what comes after it says why."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def advance(layers: Layers, event: Mapping[str, object]) -> Layers:
    """The layers after an event of the engine's; the very same object where the event tells nothing new.

    The containerd image store repeats itself ten times a second whether bytes come or not, so a pull
    lives by what changes and not by what is said.
    """
    name, status = event.get("id"), event.get("status")
    if not isinstance(name, str) or not isinstance(status, str):
        return layers
    if name not in layers and status not in _LAYER:
        return layers  # "Pulling from nvidia-driver" carries the tag as its id
    layer = layers.get(name, Layer(""))
    detail = event.get("progressDetail")
    current = _number(detail, "current")
    total = _number(detail, "total")
    after = replace(layer, status=status)
    if status == "Downloading":
        after = replace(after, current=current, total=max(total, layer.total))
    elif status == "Extracting":
        after = replace(after, current=layer.total, unpacked=current)
    elif status in _FETCHED or status in _DONE:
        after = replace(after, current=layer.total)
    return layers if after == layer else {**layers, name: after}


def progress(layers: Layers) -> Progress:
    """Where a pull stands, for a person."""
    done = sum(layer.current for layer in layers.values())
    known = all(layer.total or layer.fetched for layer in layers.values())
    total = sum(layer.total for layer in layers.values()) if known else 0
    complete = sum(layer.status in _DONE for layer in layers.values())
    detail = f"{complete} of {len(layers)} layers"
    if layers and complete < len(layers) and fetched(layers):
        detail += ", unpacking"
    return Progress("pull-image", detail, done, total)


def fetched(layers: Layers) -> bool:
    """Whether all that the engine named has come over the network; what is left is the engine's own work."""
    return bool(layers) and all(layer.fetched for layer in layers.values())


def _number(detail: object, key: str) -> int:
    value = detail.get(key) if isinstance(detail, dict) else None
    return value if isinstance(value, int) and value > 0 else 0


def event_error(event: Mapping[str, object]) -> str | None:
    """The error that an event carries; `errorDetail` is the field that stays, `error` the one that was."""
    detail = event.get("errorDetail")
    if isinstance(detail, dict):
        message = detail.get("message") or event.get("error")
        return str(message or "the engine gave no reason")
    error = event.get("error")
    return None if error is None else str(error)


# ---------------------------------------------------------------------------------------------------
# What a container prints


def printed(read: Callable[[int], bytes]) -> Iterator[str]:
    """The lines in an engine's stream of frames: eight bytes (a stream number, a length), then text.

    An overlong line comes in pieces: what prints is a container that anybody may have built.
    """
    pending = b""
    while len(header := read(8)) == 8:
        left = int.from_bytes(header[4:], "big")
        while left and (data := read(min(left, _PIECE))):
            left -= len(data)
            *whole, pending = (pending + data).replace(b"\r", b"\n").split(b"\n")
            if len(pending) > _PIECE:
                whole, pending = [*whole, pending], b""
            yield from _texts(whole)
    yield from _texts([pending])


def _texts(lines: list[bytes]) -> Iterator[str]:
    for line in lines:
        text = clean(line.decode(errors="replace"))
        if text:
            yield text
