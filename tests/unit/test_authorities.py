# SPDX-License-Identifier: Apache-2.0
"""Whom a host believes: its own list first, wherever it is, and the one that comes with nvidiad last."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from nvidiad.world import authorities

if TYPE_CHECKING:
    import pytest

BUNDLED = str(DEFAULT_CA_BUNDLE_PATH)


def test_what_the_environment_names_is_enough(tmp_path: Path) -> None:
    place = tmp_path / "here.pem"
    place.write_text("")
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        assert authorities.list_of_host({name: "/anything"}, None, 0, [str(place)]) == ""


def test_what_openssl_finds_is_enough(tmp_path: Path) -> None:
    assert authorities.list_of_host({}, None, 140, []) == ""
    (tmp_path / "a94d09e5.0").write_text("")
    assert authorities.list_of_host({}, str(tmp_path), 0, []) == ""


def test_else_the_list_of_another_os_then_the_one_that_comes_along(tmp_path: Path) -> None:
    places = [str(tmp_path / name) for name in ("first.pem", "second.pem")]
    for folder in (None, str(tmp_path), str(tmp_path / "gone")):
        assert authorities.list_of_host({}, folder, 0, places) == BUNDLED
    Path(places[1]).write_text("")
    assert authorities.list_of_host({}, None, 0, places) == places[1]
    Path(places[0]).write_text("")
    assert authorities.list_of_host({}, None, 0, places) == places[0]


def test_a_host_without_any_believes_what_comes_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a host whose own OpenSSL has its files elsewhere than the one that nvidiad brings."""
    nowhere = ssl.DefaultVerifyPaths("", "", "", "", "", "")
    monkeypatch.setattr(ssl, "create_default_context", lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nowhere)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    listed = authorities.list_of_host
    monkeypatch.setattr(authorities, "list_of_host", lambda one, two, three: listed(one, two, three, []))
    assert authorities.context().cert_store_stats()["x509_ca"] > 100
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "mine.pem"))
    assert authorities.context().cert_store_stats()["x509_ca"] == 0
