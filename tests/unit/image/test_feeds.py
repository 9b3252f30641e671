# SPDX-License-Identifier: Apache-2.0
"""Feeds: every source's text as values, what is wrong with a text, and where the sources are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.nouns.model import Architecture, Family
from nvidiad.image.thought import feeds
from nvidiad.image.thought.feeds import Entry, LongTerm
from nvidiad.nouns.errors import Code, Permanent

if TYPE_CHECKING:
    from collections.abc import Callable

URL = "https://feed.test/file"
FLATCAR_TXT = """FLATCAR_BUILD=4593
FLATCAR_BRANCH=2
FLATCAR_PATCH=5
FLATCAR_VERSION=4593.2.5
FLATCAR_VERSION_ID=4593.2.5
FLATCAR_BUILD_ID=""
FLATCAR_SDK_VERSION=4593.0.0
"""
COREOS_TXT = """COREOS_BUILD=1632
COREOS_BRANCH=2
COREOS_PATCH=0
COREOS_VERSION=1632.2.0
COREOS_VERSION_ID=1632.2.0
COREOS_BUILD_ID=""
COREOS_SDK_VERSION=1590.0.0
"""


def entry(**changes: object) -> dict[str, object]:
    value: dict[str, object] = {
        "channel": "stable",
        "architectures": ["amd64", "arm64"],
        "release_date": "2026-08-20 10:11:12 +0000",
        "major_software": {"kernel": ["6.12.102"], "docker": ["28.0.4"], "systemd": ["257"]},
        "release_notes": "text",
    }
    return value | changes


@pytest.mark.parametrize(
    ("family", "text", "version"),
    [
        pytest.param(Family.FLATCAR, FLATCAR_TXT, "4593.2.5", id="flatcar"),
        pytest.param(Family.COREOS, COREOS_TXT, "1632.2.0", id="coreos"),
        pytest.param(Family.FLATCAR, 'FLATCAR_VERSION="4790.0.0"\n', "4790.0.0", id="quoted"),
        pytest.param(
            Family.FLATCAR, "FLATCAR_VERSION=4790.0.0+nightly-1\n", "4790.0.0+nightly-1", id="nightly"
        ),
    ],
)
def test_version_txt(family: Family, text: str, version: str) -> None:
    assert feeds.version_txt(text, family, URL) == version


def test_feed_newest_first_without_current() -> None:
    document = {
        "4593.2.9": entry(),
        "4593.2.10": entry(major_software={"kernel": ["6.12.103"]}),
        "current": entry(),
        "current-2024": entry(),
        "1.2.3": {"release_date": "2014-01-01"},
    }
    assert feeds.feed(json.dumps(document), URL) == (
        Entry("4593.2.10", ("amd64", "arm64"), "6.12.103", "2026-08-20"),
        Entry("4593.2.9", ("amd64", "arm64"), "6.12.102", "2026-08-20"),
        Entry("1.2.3", ("amd64",), "", "2014-01-01"),
    )


def test_lts_info_newest_first() -> None:
    text = "2605:2021:unsupported\n3033:2022:unsupported\n\n3510:2023:unsupported\n4081:2024:supported\n"
    found = feeds.lts_info(text, URL)
    assert found[0] == LongTerm("4081", "2024", supported=True)
    assert [one.year for one in found if not one.supported] == ["2023", "2022", "2021"]


def test_listing_takes_versions_only() -> None:
    names = ["4593.2.4/", "4593.2.10/", "current/", "current-2024/", "index.html", "4081.3.1"]
    text = json.dumps([{"Name": name, "IsDir": name.endswith("/")} for name in names])
    assert feeds.listing(text, URL) == ("4593.2.10", "4593.2.4", "4081.3.1")


@pytest.mark.parametrize(
    ("text", "kernel"),
    [
        pytest.param("sys-kernel/coreos-kernel-6.12.102::coreos-overlay\n", "6.12.102", id="plain"),
        pytest.param(
            "app-arch/xz-5\nsys-kernel/coreos-kernel-4.14.16-r1::coreos\n", "4.14.16", id="revised"
        ),
        pytest.param("sys-kernel/coreos-kernel-5.10.1\n", "5.10.1", id="without-repository"),
    ],
)
def test_package_kernel(text: str, kernel: str) -> None:
    assert feeds.package_kernel(text, URL) == kernel


def version_of(text: str) -> object:
    return feeds.version_txt(text, Family.FLATCAR, URL)


def packages(text: str) -> object:
    return feeds.package_kernel(text, URL)


@pytest.mark.parametrize(
    ("read", "text", "fault"),
    [
        pytest.param(version_of, "<html>", "has no FLATCAR_VERSION", id="version.txt-html"),
        pytest.param(version_of, COREOS_TXT, "has no FLATCAR_VERSION", id="version.txt-of-coreos"),
        pytest.param(version_of, "FLATCAR_VERSION=../etc\n", "which is no version", id="version.txt-path"),
        pytest.param(packages, "sys-kernel/coreos-modules-6.1\n", "lists no package", id="packages-none"),
        pytest.param(packages, "sys-kernel/coreos-kernel-x\n", "lists no package", id="packages-odd"),
        pytest.param(
            lambda t: feeds.lts_info(t, URL), "4081:24:supported", "'4081:24:supported'", id="lts-year"
        ),
        pytest.param(lambda t: feeds.lts_info(t, URL), "<html>", "'<html>'", id="lts-html"),
        pytest.param(lambda t: feeds.listing(t, URL), "{}", "not a JSON list", id="listing-object"),
        pytest.param(
            lambda t: feeds.listing(t, URL), "[1]", "not a JSON list of objects", id="listing-numbers"
        ),
        pytest.param(lambda t: feeds.listing(t, URL), '[{"x":1}]', "without a Name", id="listing-nameless"),
        pytest.param(lambda t: feeds.feed(t, URL), "{", "is not JSON", id="feed-cut"),
        pytest.param(lambda t: feeds.feed(t, URL), "[" * 100_000, "nested too deeply", id="feed-deep"),
        pytest.param(lambda t: feeds.feed(t, URL), "[]", "not a JSON object", id="feed-list"),
        pytest.param(lambda t: feeds.feed(t, URL), '{"a/b": {}}', "which is no version", id="feed-key"),
        pytest.param(
            lambda t: feeds.feed(t, URL), '{"1.2.3": 4}', "no object for '1.2.3'", id="feed-number"
        ),
        pytest.param(
            lambda t: feeds.feed(t, URL),
            json.dumps({"1.2.3": entry(architectures="amd64")}),
            "no list of architectures",
            id="feed-architectures",
        ),
        pytest.param(
            lambda t: feeds.feed(t, URL),
            json.dumps({"1.2.3": entry(major_software={"kernel": "6.1"})}),
            "no list of kernels",
            id="feed-kernel-text",
        ),
        pytest.param(
            lambda t: feeds.feed(t, URL),
            json.dumps({"1.2.3": entry(major_software={"kernel": ["six"]})}),
            "the kernel 'six'",
            id="feed-kernel-word",
        ),
    ],
)
def test_a_bad_text_names_its_url_and_fault(read: Callable[[str], object], text: str, fault: str) -> None:
    with pytest.raises(Permanent) as caught:
        read(text)
    assert caught.value.code is Code.FEED_INVALID
    assert caught.value.sentence.startswith(f"'{URL}' ") and fault in caught.value.sentence


OFFICIAL = feeds.OFFICIAL[Family.FLATCAR]
ARM = Architecture.ARM64


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        pytest.param(
            OFFICIAL.file("stable", Architecture.AMD64, "4593.2.5", "version.txt"),
            (
                "https://stable.release.flatcar-linux.net/amd64-usr/4593.2.5/version.txt",
                "https://bincache.flatcar-linux.net/images/amd64/4593.2.5/version.txt",
            ),
            id="a-release",
        ),
        pytest.param(
            OFFICIAL.file("alpha", ARM, "current", "version.txt"),
            ("https://alpha.release.flatcar-linux.net/arm64-usr/current/version.txt",),
            id="current-has-no-fallback",
        ),
        pytest.param(
            OFFICIAL.file("lts-2024", ARM, feeds.current("lts-2024"), "version.txt"),
            ("https://lts.release.flatcar-linux.net/arm64-usr/current-2024/version.txt",),
            id="a-year-is-no-host",
        ),
        pytest.param(
            (OFFICIAL.feed_of("lts-2024"), OFFICIAL.listing_of("lts-2024", ARM)),
            (
                "https://www.flatcar.org/releases-json/releases-lts-2024.json",
                "https://origin.release.flatcar-linux.net/lts/arm64-usr/",
            ),
            id="feed-and-list",
        ),
        pytest.param(
            feeds.OFFICIAL[Family.COREOS].file("stable", Architecture.AMD64, "1632.2.0", "version.txt"),
            ("https://stable.release.core-os.net/amd64-usr/1632.2.0/version.txt",),
            id="coreos",
        ),
        pytest.param(
            feeds.mirror("http://m.test/{x}/").file("beta", ARM, "1.1.0+a", "f"),
            ("http://m.test/{x}/beta/arm64-usr/1.1.0%2Ba/f",),
            id="a-mirror-with-odd-characters",
        ),
        pytest.param(
            (feeds.mirror("http://m.test").feed_of("lts-2024"), feeds.mirror("http://m.test").lts_info),
            ("http://m.test/releases-json/releases-lts-2024.json", "http://m.test/lts/lts-info"),
            id="a-mirror's-feed",
        ),
    ],
)
def test_where_the_sources_are(urls: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert urls == expected


@pytest.mark.parametrize(
    ("version", "channel"),
    [("4790.0.0", "alpha"), ("4757.1.0", "beta"), ("4593.2.5", "stable"), ("4081.3.10", "lts"), ("12", "")],
)
def test_a_version_tells_its_channel(version: str, channel: str) -> None:
    assert feeds.channel_of(version) == channel


def test_the_kernel_release_has_the_family_as_its_tail() -> None:
    assert feeds.kernel_release(Family.FLATCAR, "6.12.102") == "6.12.102-flatcar"
    assert feeds.kernel_release(Family.COREOS, "4.14.16") == "4.14.16-coreos"
    assert feeds.kernel_release(Family.FLATCAR, "") == ""
