# SPDX-License-Identifier: Apache-2.0
"""What the refusals of a container engine, a registry and an installer mean: their words become failures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.thought.pull import Layers, clean, fetched, parse_reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nvidiad.nouns.model import Build

_AGAIN = "nvidiad tries again by itself"
_JOURNAL = f"look into the engine's journal: journalctl -u docker; {_AGAIN}"
_LONGEST = 240
_END = 2048
_SPEAKER = "nvidiad install: "

# ---------------------------------------------------------------------------------------------------
# The words are all there is: most causes come as status 500 or in the event stream.

_WORDS: tuple[tuple[str, Code], ...] = (
    (r"invalid reference format|invalid tag format|name must be lowercase", Code.CONFIG_INVALID),
    (r"no space left on device|disk quota exceeded", Code.DISK_FULL),
    # The engine's own parts lose each other when it is stopped or restarted.
    (
        r"send write: EOF|error reading from server|containerd\.sock|context canceled",
        Code.ENGINE_LOST,
    ),
    (r"read-only file system", Code.READ_ONLY),
    (
        (
            r"verification failed for digest|unexpected commit digest|failed size validation|digest mismatch"
            r"|content digest .* not found|unknown blob|could not fetch content descriptor|blob unknown"
            r"|gzip: invalid|invalid tar header|invalid checksum|zstd.*corrupt|flate: corrupt"
        ),
        Code.IMAGE_CORRUPT,
    ),
    (
        r"no matching manifest for|does not match the specified platform|no match for platform",
        Code.IMAGE_MISMATCH,
    ),
    (
        (
            r"unsupported media type|mediaType in manifest|no longer supported|unsupported schema"
            r"|encountered remote .*unable to pull|unsupported manifest"
        ),
        Code.IMAGE_FOREIGN,
    ),
    (
        r"x509:|tls: |certificate|server gave HTTP response to HTTPS client|first record does not look like",
        Code.REGISTRY_TLS,
    ),
    (
        (
            r"unauthorized|no basic auth|authentication required|authorization failed|access denied"
            r"|denied: |insufficient_scope|\b40[13]\b|failed to fetch (anonymous|oauth) token"
        ),
        Code.REGISTRY_AUTH,
    ),
    (r"manifest unknown|name unknown|not found|does not exist|\b404\b", Code.IMAGE_MISSING),
    (r"no such host|server misbehaving|name resolution|lookup .* on ", Code.REGISTRY_UNREACHABLE),
    (
        (
            r"connection refused|no route to host|network is unreachable|i/o timeout|proxyconnect"
            r"|while waiting for connection|connection reset|connection timed out"
        ),
        Code.REGISTRY_UNREACHABLE,
    ),
    (
        r"TLS handshake timeout|Client\.Timeout exceeded|deadline exceeded|timeout awaiting response",
        Code.REGISTRY_STALLED,
    ),
    (r"unexpected EOF|: EOF|broken pipe|server closed", Code.REGISTRY_UNREACHABLE),
    (r"\b50[0234]\b|Internal Server Error|Bad Gateway|Service Unavailable", Code.REGISTRY_UNREACHABLE),
)
_PATTERNS = tuple((re.compile(pattern, re.IGNORECASE), code) for pattern, code in _WORDS)

_MEANING: dict[Code, tuple[str, str]] = {
    Code.CONFIG_INVALID: (
        "'{reference}' is not an image reference",
        "correct image.repository or image.tag in the configuration",
    ),
    Code.DISK_FULL: (
        "the container engine has no space left for '{reference}'",
        "free space where the engine keeps its images: docker image prune --all",
    ),
    Code.READ_ONLY: (
        "the container engine cannot write '{reference}' to its disk, which is read-only",
        "make the engine's data directory writable",
    ),
    Code.IMAGE_CORRUPT: (
        "'{reference}' is damaged in the registry",
        "push the image again",
    ),
    Code.IMAGE_MISMATCH: (
        "'{reference}' has no image for this machine's architecture",
        "push an image for this architecture under the tag",
    ),
    Code.IMAGE_FOREIGN: (
        "'{reference}' is not a container image that this engine can use",
        "push an image in the Docker v2 or OCI format under this tag",
    ),
    Code.REGISTRY_TLS: (
        "the container engine gets no trusted connection to registry '{registry}' of '{reference}'",
        "put its authority into /etc/docker/certs.d/{registry}/ca.crt, or renew the registry's certificate",
    ),
    Code.REGISTRY_AUTH: (
        "registry '{registry}' refuses access to '{reference}'",
        "check the credentials for '{registry}' in image.auth-file, and that the repository exists",
    ),
    Code.IMAGE_MISSING: (
        "'{reference}' is not in the registry",
        "push the image; nvidiad looks for it again by itself",
    ),
    Code.REGISTRY_UNREACHABLE: (
        "registry '{registry}' of '{reference}' cannot be reached",
        f"check the network, the name and the registry; {_AGAIN}",
    ),
    Code.REGISTRY_STALLED: (
        "registry '{registry}' of '{reference}' does not answer",
        f"check the registry and the network to it; {_AGAIN}",
    ),
    Code.ENGINE_LOST: ("the container engine went away while it worked on '{reference}'", _JOURNAL),
    Code.PULL_FAILED: (
        "the container engine could not pull '{reference}'",
        _JOURNAL,
    ),
}
_STAYS = frozenset({Code.CONFIG_INVALID, Code.IMAGE_FOREIGN})
"""The rest may pass without this host being told: an image is pushed, a certificate renewed, space freed."""


def classify(status: int | None, text: str, reference: str) -> Failure:
    """The failure behind an engine's answer: its HTTP status (None in the event stream) and its words."""
    # A repository may be called anything, also "certificates": only the engine's own words count.
    text = _ends(text)
    words = re.sub(r"https?://[^\s\"]+", "", text.replace(reference, ""))
    for name in _names(reference):
        words = words.replace(name, "")
    code = next((code for pattern, code in _PATTERNS if pattern.search(words)), None)
    if code is None:
        by_status = {401: Code.REGISTRY_AUTH, 403: Code.REGISTRY_AUTH, 404: Code.IMAGE_MISSING}
        code = by_status.get(status or 0, Code.PULL_FAILED)
    return failure(code, reference, shorten(text))


def failure(code: Code, reference: str, detail: str = "") -> Failure:
    """The sentence and the remedy of a code, for this reference."""
    sentence, remedy = _MEANING[code]
    names = {"reference": clean(reference), "registry": _names(reference)[1]}
    text = sentence.format(**names) + (f" ({detail})" if detail else "")
    kind = Permanent if code in _STAYS else Transient
    return kind(code, text, remedy.format(**names))


def _ends(text: str) -> str:
    """Its beginning and its end: an engine passes on a registry's words, which may be endless."""
    return text if len(text) <= 2 * _END else f"{text[:_END]} {text[-_END:]}"


def _names(reference: str) -> tuple[str, str]:
    """The repository and the registry of a reference; an ill-formed one has none."""
    try:
        parts = parse_reference(reference)
    except Permanent:
        return "?", "?"
    return parts.repository, parts.registry


def shorten(text: str) -> str:
    """An engine's words without the wrapping that every layer of it adds."""
    line = clean(_ends(text))
    line = re.sub(
        r'^failed to resolve reference "[^"]*": |unexpected status from \w+ request to \S+: ', "", line
    )
    line = re.sub(r"^Error response from daemon: |^error pulling image configuration: ", "", line)
    line = re.sub(r'^.*?(Get|Head|Post) "?https?://[^"\s]*"?: ', "", line)
    line = re.sub(r"https?://\S*\?\S+", "(URL)", line)  # query strings may carry tokens
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


# ---------------------------------------------------------------------------------------------------
# The installer in the image

_EXITS: dict[int, tuple[Code, str, str, bool]] = {
    64: (
        Code.IMAGE_FAILED,
        "did not understand how it was called",
        "use a driver image for this nvidiad",
        False,
    ),
    65: (Code.MANIFEST_INVALID, "refuses its own image", "build and push the image again", False),
    73: (Code.IMAGE_FAILED, "could not write the tree", "look at the install root on this host", True),
    74: (
        Code.TREE_INVALID,
        "did not get the tree onto the disk as it is",
        "look at the disk of this host",
        True,
    ),
    75: (Code.INSTALL_BUSY, "found another installation at work", f"wait; {_AGAIN}", True),
    77: (Code.MODULE_IN_USE, "must not replace the tree of the loaded driver", "reboot the host", False),
    125: (Code.IMAGE_FAILED, "could not be started", _JOURNAL, True),
    126: (Code.IMAGE_FOREIGN, "cannot be executed here", "push a driver image for this architecture", False),
    127: (Code.IMAGE_FOREIGN, "is not in the image", "push a driver image under this tag", False),
    130: (Code.IMAGE_FAILED, "was interrupted", _AGAIN, True),
    137: (Code.IMAGE_FAILED, "was killed", f"look for what killed it: journalctl -k; {_AGAIN}", True),
    143: (Code.IMAGE_FAILED, "was stopped", _AGAIN, True),
}
_CANNOT_WRITE: tuple[tuple[str, Code, str, bool], ...] = (
    (r"no space|not enough room|quota", Code.DISK_FULL, "free space below the install root", True),
    (r"read-only file system", Code.READ_ONLY, "choose a writable install.root in the configuration", False),
    (r"someone else|not a tree of nvidiad", Code.OTHER_OWNER, "move away what is in its place", False),
)


def exit_failure(status: int, lines: Sequence[str], reference: str) -> Failure:
    """The failure behind an installer's exit status and the last lines it printed."""
    unknown = (Code.IMAGE_FAILED, f"ended with status {status}", "look at its last words", True)
    code, what, remedy, retry = _EXITS.get(status, unknown)
    words = _ends("\n".join(lines))
    if status == 73:
        found = (rule for rule in _CANNOT_WRITE if re.search(rule[0], words, re.IGNORECASE))
        _, code, remedy, retry = next(found, ("", code, remedy, retry))
    # Its own last word on stderr may arrive before the last line on stdout.
    own = [line.removeprefix(_SPEAKER) for line in lines if line.startswith(_SPEAKER)]
    last = next(reversed(own or lines), "")
    said = f": {shorten(last)}" if last else ""
    kind = Transient if retry else Permanent
    return kind(code, f"the installer of '{clean(reference)}' {what}{said}", remedy)


def start_failure(text: str, reference: str) -> Failure:
    """The failure behind the engine's refusal to make or start the installer's container."""
    text = _ends(text)
    for pattern, status in (
        (r"exec format error|exec: .*permission denied", 126),
        (r"no command specified|not found|no such file", 127),
    ):
        if re.search(pattern, text, re.IGNORECASE):
            return exit_failure(status, [text], reference)
    if re.search(r"no space left on device", text, re.IGNORECASE):
        return failure(Code.DISK_FULL, reference, shorten(text))
    return exit_failure(125, [text], reference)


# ---------------------------------------------------------------------------------------------------
# The engine itself

OLDEST = (1, 30)
"""Docker 17.06: the first engine that asks a registry for a digest and waits for a container's removal."""
NEWEST = (1, 45)


def agree(version: Mapping[str, object]) -> str:
    """The API version to speak with an engine that says what it can; ValueError for what is no version."""
    newest, oldest = _parts(version.get("ApiVersion")), _parts(version.get("MinAPIVersion"))
    if newest < OLDEST:
        sentence = (
            f"the container engine, version {version.get('Version', '?')}, speaks API {dotted(newest)} only"
        )
        remedy = f"install an engine with API {dotted(OLDEST)} or newer (Docker 17.06)"
        raise Permanent(Code.ENGINE_TOO_OLD, sentence, remedy)
    return dotted(max(min(newest, NEWEST), oldest))


def _parts(text: object) -> tuple[int, int]:
    major, _, minor = str(text or "0.0").partition(".")
    return int(major), int(minor or 0)


def dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def unreachable(socket: str, why: str) -> Failure:
    sentence = f"the container engine does not answer on '{socket}' ({why})"
    remedy = (
        "start it (systemctl start docker), or correct engine.socket in the configuration; "
        "with engine.kind = 'registry' nvidiad needs none"
    )
    return Transient(Code.ENGINE_UNREACHABLE, sentence, remedy)


def root_cause(error: BaseException) -> str:
    """The operating system's word for an error, which the SDK and its libraries wrap four times over."""
    seen: list[object] = [error]
    for item in seen:
        if isinstance(item, OSError) and item.strerror:
            return item.strerror
        if isinstance(item, BaseException):
            seen += [part for part in (*item.args, item.__context__) if isinstance(part, BaseException)]
    return shorten(str(error))


def stalled(layers: Layers, seconds: float, reference: str) -> Failure:
    """Nothing new for so long; what the engine was at tells whose silence it is."""
    if fetched(layers):
        sentence = f"the container engine has got no further in unpacking '{reference}' for {seconds:g} s"
        return Transient(Code.PULL_TIMEOUT, sentence, f"look at the disk of this host; {_AGAIN}")
    return failure(Code.REGISTRY_STALLED, reference, f"nothing new for {seconds:g} s")


def overdue(reference: str, seconds: float) -> Failure:
    sentence = f"'{reference}' was not pulled within {seconds:g} s"
    remedy = "look at the network to the registry, or raise image.total-timeout in the configuration"
    return Transient(Code.PULL_TIMEOUT, sentence, remedy)


def endless(reference: str, seconds: float) -> Failure:
    sentence = f"the installer of '{reference}' did not end within {seconds:g} s"
    remedy = "look at the disk of this host, or raise image.total-timeout in the configuration"
    return Transient(Code.IMAGE_FAILED, sentence, remedy)


def gone(reference: str) -> Failure:
    sentence = f"'{reference}' is no longer in the container engine"
    return Transient(Code.IMAGE_FAILED, sentence, "nvidiad pulls it again by itself")


def unbuildable(reference: str, build: Build, reason: str) -> Failure:
    """An image that is missing because nobody can build it; another try helps when somebody could."""
    why = f": {shorten(reason)}" if reason else ""
    what = f"driver {build.driver} cannot be built for {build.os_version}"
    sentence = f"{what}, so there is no '{clean(reference)}'"
    remedy = (
        f"choose a driver that supports kernel {build.kernel} (driver.version in the configuration), or "
        f"stay with an OS release that has one; {_AGAIN}"
    )
    return Transient(Code.IMAGE_UNBUILDABLE, sentence + why, remedy)
