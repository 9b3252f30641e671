# SPDX-License-Identifier: Apache-2.0
"""The protocol of registries as values: where a repository is, what is asked of us, what a refusal means."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns.errors import Code
from nvidiad.thought import cosign, distribution
from nvidiad.thought.distribution import Challenge, Descriptor, Document
from nvidiad.world import credentials

if TYPE_CHECKING:
    from pathlib import Path

REFERENCE = "registry.example/nvidia-driver:1"


@pytest.mark.parametrize(
    ("host", "insecure", "url"),
    [
        ("registry.example", False, "https://registry.example"),
        ("registry.example:5000", False, "https://registry.example:5000"),
        ("registry.example:5000", True, "http://registry.example:5000"),
        ("docker.io", False, "https://registry-1.docker.io"),
        ("localhost:5000", False, "http://localhost:5000"),
        ("127.0.0.1", False, "http://127.0.0.1"),
        ("127.8.0.1:80", False, "http://127.8.0.1:80"),
        ("[::1]:5000", False, "http://[::1]:5000"),
        ("127.0.0.1.example", False, "https://127.0.0.1.example"),
        ("localhost.example:5000", False, "https://localhost.example:5000"),
    ],
)
def test_where_a_registry_is(host: str, insecure: bool, url: str) -> None:  # noqa: FBT001
    assert distribution.base_url(host, insecure=insecure) == url


@pytest.mark.parametrize(
    ("repository", "host", "path"),
    [
        ("registry.example/team/nvidia-driver", "registry.example", "team/nvidia-driver"),
        ("nvidia-driver", "docker.io", "library/nvidia-driver"),
        ("me/nvidia-driver", "docker.io", "me/nvidia-driver"),
        ("docker.io/me/nvidia-driver", "docker.io", "me/nvidia-driver"),
    ],
)
def test_the_name_within_a_registry(repository: str, host: str, path: str) -> None:
    assert distribution.path_of(repository, host) == path


BEARER = 'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a,b:pull"'


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        pytest.param(
            BEARER, Challenge("bearer", "https://auth.example/token", "registry.example"), id="token"
        ),
        pytest.param('Basic realm="a \\"b\\""', Challenge("basic", 'a \\"b\\"'), id="password"),
        pytest.param(
            f'Basic realm="x", {BEARER}',
            Challenge("bearer", "https://auth.example/token", "registry.example"),
            id="both",
        ),
        pytest.param("bearer realm=x", Challenge("bearer", "x"), id="no quotes"),
        pytest.param("Negotiate", Challenge("negotiate"), id="what nobody here can"),
        pytest.param("", Challenge(""), id="nothing"),
    ],
)
def test_what_is_asked_of_us(header: str, asked: Challenge) -> None:
    assert distribution.challenge(header) == asked


@pytest.mark.parametrize(
    ("body", "token"),
    [(b'{"token": "t"}', "t"), (b'{"access_token": "t"}', "t"), (b'{"token": 1}', ""), (b"<html>", "")],
)
def test_tokens(body: bytes, token: str) -> None:
    assert distribution.token_in(body) == token


SAID = json.dumps({"errors": [{"code": "DENIED", "message": "requested access is denied\x1b[31m"}]}).encode()


@pytest.mark.parametrize(
    ("status", "writing", "code"),
    [
        (401, False, Code.REGISTRY_AUTH),
        (401, True, Code.REGISTRY_AUTH),
        (403, False, Code.REGISTRY_AUTH),
        (403, True, Code.PUSH_REFUSED),
        (404, False, Code.IMAGE_MISSING),
        (404, True, Code.PUSH_REFUSED),
        (405, True, Code.PUSH_REFUSED),
        (413, True, Code.PUSH_REFUSED),
        (418, False, Code.REGISTRY_UNREACHABLE),
        (429, False, Code.REGISTRY_UNREACHABLE),
        (429, True, Code.REGISTRY_UNREACHABLE),
        (500, True, Code.REGISTRY_UNREACHABLE),
    ],
)
def test_refusals(status: int, writing: bool, code: Code) -> None:  # noqa: FBT001
    refused = distribution.refusal(status, SAID, REFERENCE, writing=writing)
    assert refused.code is code
    assert f"'{REFERENCE}'" in refused.sentence
    assert refused.remedy
    assert refused.sentence.isprintable()
    if code is not Code.IMAGE_MISSING:
        assert f"status {status}; DENIED: requested access is denied" in refused.sentence


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"errors": 1}', b'{"errors": [1]}', b"[" * 100_000]
)
def test_a_refusal_may_say_anything(body: bytes) -> None:
    assert "(status 503)" in distribution.refusal(503, body, REFERENCE, writing=False).sentence


def test_layers_of_an_artefact() -> None:
    digest = "sha256:" + "a" * 64
    layer, config = Descriptor("a/b", digest, 1), Descriptor(distribution.EMPTY, digest, 2)
    made = distribution.artefact("a/b", layer, config, {"k": "v"})
    assert distribution.layers_of(made, "a/b") == (digest,)
    assert distribution.layers_of(made, "a/c") == ()
    assert made.content()["annotations"] == {"k": "v"}
    for body in (b"", b'{"layers": 1}', b'{"layers": [{"mediaType": "a/b", "digest": "../x"}]}'):
        assert distribution.layers_of(Document("", body), "a/b") == ()


def test_a_signature_is_beside_its_image() -> None:
    digest = "sha256:" + "a" * 64
    assert cosign.tag(digest) == f"sha256-{'a' * 64}.sig"
    payload = cosign.payload("registry.example/nvidia-driver", digest)
    critical = json.loads(payload)["critical"]
    assert critical["image"] == {"docker-manifest-digest": digest}
    assert critical["identity"] == {"docker-reference": "registry.example/nvidia-driver"}
    assert distribution.digest_of(payload) in cosign.configuration(payload).decode()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, None),
        ('{"auths": {}}', None),
        ('{"auths": {"registry.example": {"username": "u", "password": "p"}}}', ("u", "p")),
    ],
)
def test_credentials_come_from_dockers_file(
    tmp_path: Path, text: str | None, found: tuple[str, str] | None
) -> None:
    place = tmp_path / "config.json"
    if text is not None:
        place.write_text(text)
    made = credentials.credentials(place, "registry.example")
    assert (made and (made["username"], made["password"])) == found
    assert credentials.credentials(None, "registry.example") is None
