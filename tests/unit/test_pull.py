# SPDX-License-Identifier: Apache-2.0
"""Pulling: references, credentials, the progress of layers, and the words of real engines and registries."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest

from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.thought import refusals
from nvidiad.thought.pull import (
    Layers,
    advance,
    credentials,
    event_error,
    fetched,
    helped,
    helper,
    parse_reference,
    printed,
    progress,
)

DIGEST = "sha256:" + "0" * 64
REFERENCE = "reg.test:5443/team/nvidia-driver:3975.2.0-535.309.01"
PINNED = f"reg.test:5443/team/nvidia-driver@{DIGEST}"
URL = "https://reg.test:5443/v2/"
OLD, NEW, STORE = "20.10.24", "26.1.5", "26.1.5 with the containerd image store"
REFUSED = "connect: connection refused"
REPORTED = "in reports of others, not collected here"
MANIFEST = f"{URL}team/nvidia-driver/manifests/{DIGEST}"
DOES_NOT_RESOLVE = f'failed to resolve reference "{PINNED}": '


# -- references ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("nvidia", "docker.io", "nvidia", "", ""),
        ("team/nvidia:1", "docker.io", "team/nvidia", "1", ""),
        ("localhost/nvidia:1", "localhost", "localhost/nvidia", "1", ""),
        ("reg.test/a/b/c:1.0-2", "reg.test", "reg.test/a/b/c", "1.0-2", ""),
        ("127.0.0.1:5000/nv", "127.0.0.1:5000", "127.0.0.1:5000/nv", "", ""),
        ("[::1]:5000/nv:1", "[::1]:5000", "[::1]:5000/nv", "1", ""),
        (f"reg:5000/nv:1@{DIGEST}", "reg:5000", "reg:5000/nv", "1", DIGEST),
    ],
)
def test_a_reference_falls_into_its_parts(
    text: str, registry: str, repository: str, tag: str, digest: str
) -> None:
    parts = parse_reference(text)
    assert (parts.registry, parts.repository, parts.tag, parts.digest) == (registry, repository, tag, digest)
    assert parts.pinned(DIGEST) == f"{repository}@{DIGEST}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "reg.test/",
        "reg.test/:1",
        "https://reg.test/nv:1",
        "a b",
        "nv@sha256:abc",
        "nv@",
        "nv@latest",
    ],
)
def test_what_is_no_reference_is_refused_by_name(text: str) -> None:
    with pytest.raises(Permanent) as caught:
        parse_reference(text)
    assert caught.value.code == Code.CONFIG_INVALID
    assert text in caught.value.sentence


# -- credentials --------------------------------------------------------------------------------------


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("entries", "registry", "expected"),
    [
        ({"reg.test:5444": {"auth": encoded("user:a:b")}}, "reg.test:5444", ("user", "a:b")),
        ({"https://reg.test:5444/v2/": {"auth": encoded("user:pw")}}, "reg.test:5444", ("user", "pw")),
        ({"https://index.docker.io/v1/": {"auth": encoded("user:pw")}}, "docker.io", ("user", "pw")),
        ({"reg.test": {"username": "user", "password": "pw"}}, "reg.test", ("user", "pw")),
        ({"reg.test": {"username": "user", "password": "pw"}}, "reg.test:5444", None),
        ({"reg.test": {}}, "reg.test", None),
        ({}, "reg.test", None),
    ],
)
def test_credentials_are_found_by_registry(
    entries: dict[str, object], registry: str, expected: tuple[str, str] | None
) -> None:
    found = credentials(json.dumps({"auths": entries}), "/etc/auth.json", registry)
    if expected is None:
        assert found is None
    else:
        assert found == {"username": expected[0], "password": expected[1], "serveraddress": registry}


def test_a_token_stands_for_itself() -> None:
    text = json.dumps({"auths": {"reg.test": {"auth": encoded("user:"), "identitytoken": "t"}}})
    assert credentials(text, "f", "reg.test") == {"identitytoken": "t", "serveraddress": "reg.test"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", '"auths"'),
        ('{"auths": []}', '"auths"'),
        ('{"auths": {"reg.test": "x"}}', "not an object"),
        ('{"auths": {"reg.test": {"auth": "%%"}}}', "base64"),
        (json.dumps({"auths": {"reg.test": {"auth": encoded("nocolon")}}}), "base64 of USER:PASSWORD"),
        ('{"auths": {"reg.test": {"email": "x"}}}', "neither"),
    ],
)
def test_a_bad_credentials_file_is_refused_by_name_and_without_its_secrets(text: str, says: str) -> None:
    with pytest.raises(Permanent) as caught:
        credentials(text, "/etc/nvidiad/auth.json", "reg.test")
    assert caught.value.code == Code.CONFIG_INVALID
    assert says in caught.value.sentence
    assert "/etc/nvidiad/auth.json" in caught.value.sentence
    assert "nocolon" not in caught.value.sentence


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"auths": {"reg.test": {}}}', ""),
        ('{"credsStore": "pass", "auths": {"reg.test": {}}}', "pass"),
        ('{"credsStore": "pass"}', "pass"),
        ('{"credsStore": "pass", "credHelpers": {"https://reg.test/v1/": "ecr-login"}}', "ecr-login"),
        ('{"credHelpers": {"reg.test:5444": "ecr-login"}}', ""),
        ('{"credHelpers": {"reg.test": "ecr-login"}, "auths": {"reg.test": {"auth": "eA=="}}}', ""),
        ('{"credHelpers": []}', ""),
    ],
)
def test_a_helper_is_asked_where_the_file_has_nothing_itself(text: str, expected: str) -> None:
    assert helper(text, "f", "reg.test") == expected


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "", 5, "-x"])
def test_a_helper_is_the_end_of_a_programs_name(name: object) -> None:
    text = json.dumps({"credHelpers": {"reg.test": name}, "credsStore": name or "../x"})
    with pytest.raises(Permanent) as caught:
        helper(text, "/etc/nvidiad/auth.json", "reg.test")
    assert caught.value.code == Code.CONFIG_INVALID


def test_what_a_helper_says_is_taken_and_never_shown() -> None:
    said = json.dumps({"ServerURL": "reg.test", "Username": "user", "Secret": "pw"})
    assert helped(said, "h", "f", "reg.test") == {
        "username": "user",
        "password": "pw",
        "serveraddress": "reg.test",
    }
    token = json.dumps({"Username": "<token>", "Secret": "t"})
    assert helped(token, "h", "f", "reg.test") == {"identitytoken": "t", "serveraddress": "reg.test"}
    for bad in ("", "[]", '{"Username": "user", "Secret": 5}', '{"Secret": "hush"}'):
        with pytest.raises(Permanent) as caught:
            helped(bad, "docker-credential-x", "/etc/nvidiad/auth.json", "reg.test")
        assert "docker-credential-x" in caught.value.sentence
        assert "hush" not in caught.value.sentence


# -- progress -----------------------------------------------------------------------------------------


def told(name: str, status: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    detail = {"current": current, "total": total} if total else {}
    return {"id": name, "status": status, "progressDetail": detail}


def after(*events: dict[str, Any]) -> Layers:
    layers: Layers = {}
    for event in events:
        layers = advance(layers, event)
    return layers


def test_bytes_are_counted_layer_by_layer() -> None:
    layers = after(
        {"id": "3975.2.0-535", "status": "Pulling from team/nvidia-driver"},
        told("a", "Pulling fs layer"),
        told("b", "Pulling fs layer"),
        told("c", "Already exists"),
        told("a", "Downloading", 10, 100),
    )
    assert (progress(layers).done, progress(layers).total) == (10, 0)  # b's size is not known yet
    assert progress(layers).detail == "1 of 3 layers"
    layers = advance(layers, told("b", "Downloading", 50, 200))
    assert (progress(layers).done, progress(layers).total) == (60, 300)
    for event in (
        told("a", "Verifying Checksum"),
        told("a", "Download complete"),
        told("b", "Download complete"),
    ):
        layers = advance(layers, event)
    assert (progress(layers).done, progress(layers).total) == (300, 300)
    assert fetched(layers)
    layers = advance(layers, told("a", "Extracting", 30, 100))
    assert (progress(layers).done, progress(layers).detail) == (300, "1 of 3 layers, unpacking")
    layers = after(*[told(name, "Pull complete") for name in "abc"])
    assert progress(layers).detail == "3 of 3 layers"


def test_a_small_layer_never_says_its_size() -> None:
    layers = after(
        told("a", "Pulling fs layer"), told("b", "Downloading", 1, 9), told("a", "Download complete")
    )
    assert (progress(layers).done, progress(layers).total) == (1, 9)


def test_a_download_that_starts_over_counts_down() -> None:
    layers = after(
        told("a", "Downloading", 80, 100),
        told("a", "Retrying in 5 seconds"),
        told("a", "Downloading", 2, 100),
    )
    assert (progress(layers).done, progress(layers).total) == (2, 100)


@pytest.mark.parametrize(
    "event",
    [
        told("a", "Downloading", 10, 100),  # the containerd image store repeats itself ten times a second
        {"status": "Status: Image is up to date"},
        {"status": "Digest: sha256:00"},
        {"id": "1", "status": "Pulling from team/nvidia-driver"},
        {"id": 7, "status": "Downloading"},
        {"id": "a"},
        {},
    ],
)
def test_an_event_that_tells_nothing_new_leaves_the_very_same_object(event: dict[str, Any]) -> None:
    layers = after(told("a", "Downloading", 10, 100))
    assert advance(layers, event) is layers


@pytest.mark.parametrize(
    "event",
    [
        told("a", "Downloading", 11, 100),
        told("a", "Retrying in 4 seconds"),
        told("a", "Extracting", 11, 100),
        told("b", "Waiting"),
    ],
)
def test_an_event_that_tells_something_new_is_a_sign_of_life(event: dict[str, Any]) -> None:
    layers = after(told("a", "Downloading", 10, 100))
    assert advance(layers, event) is not layers


@pytest.mark.parametrize(
    "detail",
    [None, "x", [], {"current": "1", "total": None}, {"current": -5, "total": -1}, {"current": 1.5}],
)
def test_odd_details_count_nothing(detail: object) -> None:
    layers = advance({}, {"id": "a", "status": "Downloading", "progressDetail": detail})
    assert (progress(layers).done, progress(layers).total) == (0, 0)


def test_nothing_is_nothing() -> None:
    assert (progress({}).done, progress({}).total) == (0, 0)
    assert not fetched({})


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"status": "Downloading"}, None),
        ({"errorDetail": {"message": "unknown blob"}, "error": "unknown blob"}, "unknown blob"),
        ({"errorDetail": {"message": "new engines send only this"}}, "new engines send only this"),
        ({"error": "old engines sent only this"}, "old engines sent only this"),
        ({"errorDetail": {}}, "the engine gave no reason"),
        ({"errorDetail": {}, "error": "here"}, "here"),
    ],
)
def test_an_error_in_the_stream_is_seen_in_either_field(event: dict[str, Any], error: str | None) -> None:
    assert event_error(event) == error


# -- what a container prints --------------------------------------------------------------------------


def frame(text: bytes, stream: int = 1) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(text).to_bytes(4, "big") + text


def lines(data: bytes) -> list[str]:
    return list(printed(io.BytesIO(data).read))


def test_lines_are_put_together_across_frames() -> None:
    assert lines(frame(b"one\ntw") + frame(b"o\n", 2) + frame(b"\n\nthree")) == ["one", "two", "three"]
    assert lines(frame(b"10%\r20%\r\n")) == ["10%", "20%"]
    assert lines(frame(b"\x1b[31mred\x07\xff\n")) == ["[31mred �"]


def test_half_a_frame_gives_what_came() -> None:
    assert lines(frame(b"one\ntwo")[:-2]) == ["one", "t"]
    assert lines(frame(b"one\n") + b"\x01\0\0") == ["one"]
    assert lines(b"") == []


def test_a_line_without_an_end_is_cut_into_pieces() -> None:
    text = lines(frame(b"x" * 100_000))
    assert "".join(text) == "x" * 100_000
    assert max(map(len, text)) <= 8192


# -- the words of engines: collected from the one named, shortened where they repeat themselves -----------

TEXTS: list[tuple[str, int | None, str, Code]] = [
    (NEW, 404, "manifest unknown: manifest unknown", Code.IMAGE_MISSING),
    (NEW, 404, f"manifest for {PINNED} not found: manifest unknown: manifest unknown", Code.IMAGE_MISSING),
    (STORE, 404, f"{DOES_NOT_RESOLVE}{PINNED}: not found", Code.IMAGE_MISSING),
    (
        NEW,
        500,
        f'Get "{URL}": dial tcp 10.99.0.1:5443: connect: connection refused',
        Code.REGISTRY_UNREACHABLE,
    ),
    (
        STORE,
        500,
        f'{DOES_NOT_RESOLVE}failed to do request: Head "{MANIFEST}": dial tcp 10.99.0.1:5443: {REFUSED}',
        Code.REGISTRY_UNREACHABLE,
    ),
    (
        OLD,
        500,
        f'Get "{URL}": dial tcp: lookup reg.test on 10.0.0.1:53: network is unreachable',
        Code.REGISTRY_UNREACHABLE,
    ),
    (REPORTED, 500, f'Get "{URL}": dial tcp: lookup reg.test: no such host', Code.REGISTRY_UNREACHABLE),
    (REPORTED, 500, f'Get "{URL}": dial tcp 10.200.0.1:5443: i/o timeout', Code.REGISTRY_UNREACHABLE),
    (NEW, 500, f'Get "{URL}": net/http: TLS handshake timeout', Code.REGISTRY_STALLED),
    (
        REPORTED,
        500,
        f'Get "{URL}": net/http: request canceled while waiting for connection (Client.Timeout exceeded)',
        Code.REGISTRY_UNREACHABLE,
    ),
    (
        REPORTED,
        500,
        f'Get "{URL}": net/http: request canceled (Client.Timeout exceeded while awaiting headers)',
        Code.REGISTRY_STALLED,
    ),
    (OLD, 500, f'Get "{URL}": x509: certificate signed by unknown authority', Code.REGISTRY_TLS),
    (
        NEW,
        500,
        f'Get "{URL}": tls: failed to verify certificate: x509: certificate signed',
        Code.REGISTRY_TLS,
    ),
    (NEW, 500, f'Get "{URL}": tls: first record does not look like a TLS handshake', Code.REGISTRY_TLS),
    (REPORTED, 500, f'Get "{URL}": http: server gave HTTP response to HTTPS client', Code.REGISTRY_TLS),
    (NEW, 500, f'Head "{URL}team/nvidia-driver/manifests/1": no basic auth credentials', Code.REGISTRY_AUTH),
    (NEW, 401, "unauthorized: authentication required", Code.REGISTRY_AUTH),
    (OLD, 500, "unauthorized: authentication required", Code.REGISTRY_AUTH),
    (
        STORE,
        500,
        f"{DOES_NOT_RESOLVE}pull access denied, repository does not exist: no basic auth credentials",
        Code.REGISTRY_AUTH,
    ),
    (
        STORE,
        500,
        f"{DOES_NOT_RESOLVE}unexpected status from HEAD request to {MANIFEST}: 401 Unauthorized",
        Code.REGISTRY_AUTH,
    ),
    (
        REPORTED,
        404,
        "pull access denied for team/x, repository does not exist or may require 'docker login': denied: x",
        Code.REGISTRY_AUTH,
    ),
    (NEW, None, "dial tcp 10.99.0.1:5443: connect: connection refused", Code.REGISTRY_UNREACHABLE),
    (STORE, None, "failed to read expected number of bytes: unexpected EOF", Code.REGISTRY_UNREACHABLE),
    (STORE, None, "failed to copy: failed to send write: EOF: unknown", Code.ENGINE_LOST),
    (NEW, None, f"filesystem layer verification failed for digest {DIGEST}", Code.IMAGE_CORRUPT),
    (STORE, None, f"unexpected commit digest {DIGEST}, expected {DIGEST}", Code.IMAGE_CORRUPT),
    (NEW, None, "unknown blob", Code.IMAGE_CORRUPT),
    (
        STORE,
        None,
        f"could not fetch content descriptor {DIGEST} (x) from remote: not found",
        Code.IMAGE_CORRUPT,
    ),
    (NEW, None, "write /var/lib/docker/tmp/GetImageBlob1942333038: no space left on device", Code.DISK_FULL),
    (
        STORE,
        None,
        "failed to copy: failed to send write: write /var/lib/x: no space left on device: unknown",
        Code.DISK_FULL,
    ),
    (
        REPORTED,
        None,
        "failed to register layer: write /opt/nvidia/x: no space left on device",
        Code.DISK_FULL,
    ),
    (NEW, 400, "invalid reference format: repository name (NV) must be lowercase", Code.CONFIG_INVALID),
    (
        OLD,
        400,
        f"no such image: reg/NV@{DIGEST}: invalid reference format: repository name must be lowercase",
        Code.CONFIG_INVALID,
    ),
    (NEW, 400, "invalid tag format", Code.CONFIG_INVALID),
    (
        REPORTED,
        404,
        "no matching manifest for linux/amd64 in the manifest list entries",
        Code.IMAGE_MISMATCH,
    ),
    (REPORTED, 429, "toomanyrequests: You have reached your pull rate limit", Code.PULL_FAILED),
    (REPORTED, None, "unexpected HTTP status: 503 Service Unavailable", Code.REGISTRY_UNREACHABLE),
    (REPORTED, 403, "something", Code.REGISTRY_AUTH),
    (REPORTED, 404, "something", Code.IMAGE_MISSING),
    (REPORTED, 500, "something that nobody has seen yet", Code.PULL_FAILED),
    (REPORTED, None, "", Code.PULL_FAILED),
]


@pytest.mark.parametrize(("engine", "status", "text", "code"), TEXTS)
def test_the_words_of_engines_become_codes(engine: str, status: int | None, text: str, code: Code) -> None:
    failure = refusals.classify(status, text, REFERENCE)
    assert failure.code == code, engine
    assert REFERENCE in failure.sentence
    assert failure.remedy
    assert "\n" not in failure.sentence and len(failure.sentence) < 500
    if code in (Code.REGISTRY_TLS, Code.REGISTRY_AUTH, Code.REGISTRY_UNREACHABLE, Code.REGISTRY_STALLED):
        assert "'reg.test:5443'" in failure.sentence
    assert isinstance(failure, Permanent if code == Code.CONFIG_INVALID else Transient)


def test_a_missing_image_is_an_ordinary_state() -> None:
    failure = refusals.classify(404, "manifest unknown: manifest unknown", REFERENCE)
    assert failure.retry
    assert "by itself" in failure.remedy


@pytest.mark.parametrize("name", ["certificates", "denied", "x509", "401", "unauthorized", "no-such-host"])
def test_the_name_of_a_repository_is_not_taken_for_a_cause(name: str) -> None:
    reference = f"{name}.test:5000/{name}/nv:1"
    for text in (
        f"manifest for {name}.test:5000/{name}/nv@{DIGEST} not found: manifest unknown: manifest unknown",
        f"manifest for {reference} not found: manifest unknown: manifest unknown",
    ):
        assert refusals.classify(404, text, reference).code == Code.IMAGE_MISSING
    refused = (
        f'Get "https://{name}.test:5000/v2/{name}/nv": dial tcp 10.0.0.1:5000: connect: connection refused'
    )
    assert refusals.classify(500, refused, reference).code == Code.REGISTRY_UNREACHABLE


def test_what_a_registry_says_cannot_command_a_terminal_or_tell_a_token() -> None:
    text = "bad\x1b[2J\n\tthing at https://reg.test/blob?token=SECRET " + "x" * 1000
    failure = refusals.classify(500, text, "reg.test/nv\x1b:1")
    assert failure.sentence.isprintable()
    assert "SECRET" not in failure.sentence
    assert len(failure.sentence) < 400


# -- the installer ------------------------------------------------------------------------------------

START = "failed to create shim task: OCI runtime create failed: runc create failed: "


@pytest.mark.parametrize(
    ("status", "last", "code", "retry"),
    [
        (64, "nothing is mounted at /rootfs", Code.IMAGE_FAILED, False),
        (65, "the manifest is refused: line 3: malformed", Code.MANIFEST_INVALID, False),
        (73, "'/opt' has not enough room: 9 bytes are needed, 5 are free", Code.DISK_FULL, True),
        (73, "copying failed: cp: write error: No space left on device", Code.DISK_FULL, True),
        (73, "cannot write on the host: mkdir: Read-only file system", Code.READ_ONLY, False),
        (73, "'/opt/nvidia/1' is not a directory and belongs to someone else", Code.OTHER_OWNER, False),
        (
            73,
            "'/opt/nvidia/1/2' is there and is not a tree of nvidiad: it stays untouched",
            Code.OTHER_OWNER,
            False,
        ),
        (73, "something else", Code.IMAGE_FAILED, True),
        (74, "what was written does not verify, although the image is good", Code.TREE_INVALID, True),
        (75, "another installation holds '/opt/nvidia/.lock'", Code.INSTALL_BUSY, True),
        (77, "'/opt/nvidia/1/2' is the tree of the loaded driver", Code.MODULE_IN_USE, False),
        (137, "verifying", Code.IMAGE_FAILED, True),
        (1, "sh: x: not found", Code.IMAGE_FAILED, True),
    ],
)
def test_the_installers_exit_status_becomes_a_code(
    status: int, last: str, code: Code, *, retry: bool
) -> None:
    failure = refusals.exit_failure(status, ["copying", f"nvidiad install: {last}"], REFERENCE)
    assert (failure.code, failure.retry) == (code, retry)
    assert REFERENCE in failure.sentence
    assert failure.sentence.endswith(f": {last}")
    assert failure.remedy


def test_the_installers_own_word_counts_wherever_it_arrived() -> None:
    failure = refusals.exit_failure(9, ["copying", "nvidiad install: odd", "verifying"], REFERENCE)
    assert failure.sentence == f"the installer of '{REFERENCE}' ended with status 9: odd"
    failure = refusals.exit_failure(9, ["copying", "odd"], REFERENCE)
    assert failure.sentence.endswith(": odd")


def test_an_installer_that_said_nothing_is_quoted_with_nothing() -> None:
    failure = refusals.exit_failure(3, [], REFERENCE)
    assert failure.sentence == f"the installer of '{REFERENCE}' ended with status 3"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no command specified", Code.IMAGE_FOREIGN),
        ("No command specified", Code.IMAGE_FOREIGN),
        (f'{START}exec: "/install": stat /install: no such file or directory: unknown', Code.IMAGE_FOREIGN),
        (f'{START}exec: "/install": permission denied: unknown', Code.IMAGE_FOREIGN),
        (f"{START}exec /install: exec format error", Code.IMAGE_FOREIGN),
        ("mkdir /var/lib/docker/overlay2/x: no space left on device", Code.DISK_FULL),
        (f"{START}unable to apply caps: operation not permitted: unknown", Code.IMAGE_FAILED),
        ("privileged mode is incompatible with user namespaces.", Code.IMAGE_FAILED),
    ],
)
def test_a_container_that_does_not_start_says_whose_fault_it_is(text: str, code: Code) -> None:
    failure = refusals.start_failure(text, REFERENCE)
    assert failure.code == code
    assert REFERENCE in failure.sentence


# -- the engine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("newest", "oldest", "spoken"),
    [
        ("1.30", "1.12", "1.30"),
        ("1.41", "1.12", "1.41"),  # Debian 12
        ("1.45", "1.24", "1.45"),  # Debian 13
        ("1.52", "1.44", "1.45"),  # Docker 29
        ("1.60", "1.50", "1.50"),
    ],
)
def test_the_version_spoken_is_one_that_both_know(newest: str, oldest: str, spoken: str) -> None:
    assert refusals.agree({"ApiVersion": newest, "MinAPIVersion": oldest}) == spoken


@pytest.mark.parametrize(
    "version", [{"ApiVersion": "1.24", "Version": "1.12.6"}, {"ApiVersion": "1.29"}, {}]
)
def test_an_engine_too_old_is_said_so(version: dict[str, object]) -> None:
    with pytest.raises(Permanent) as caught:
        refusals.agree(version)
    assert caught.value.code == Code.ENGINE_TOO_OLD


def test_what_is_no_version_is_an_error_of_value() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        refusals.agree({"ApiVersion": "1.x"})


def test_the_operating_systems_word_is_dug_out() -> None:
    inner = FileNotFoundError(2, "No such file or directory")
    assert refusals.root_cause(RuntimeError("Connection aborted.", inner)) == "No such file or directory"
    assert refusals.root_cause(RuntimeError(RuntimeError(inner))) == "No such file or directory"
    assert refusals.root_cause(RuntimeError("plain")) == "plain"


def test_silence_is_blamed_on_whoever_was_at_work() -> None:
    downloading = after(told("a", "Downloading", 1, 9))
    unpacking = after(told("a", "Downloading", 9, 9), told("a", "Extracting", 1, 9))
    cases: list[tuple[Layers, Code]] = [
        ({}, Code.REGISTRY_STALLED),
        (downloading, Code.REGISTRY_STALLED),
        (unpacking, Code.PULL_TIMEOUT),
    ]
    for layers, code in cases:
        failure: Failure = refusals.stalled(layers, 60, REFERENCE)
        assert (failure.code, failure.retry) == (code, True)
        assert "60 s" in failure.sentence
