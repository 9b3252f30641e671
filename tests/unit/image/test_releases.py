# SPDX-License-Identifier: Apache-2.0
"""Releases from a real web server whose sources lag, are down, or hold something else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.nouns.model import Architecture, Family, OsRelease
from nvidiad.image.thought import feeds
from nvidiad.image.verbs.releases import Found, find_release, find_releases
from nvidiad.image.world.fetch import Downloads, Limits
from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from tests.images.webserver import Fault, Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from nvidiad.nouns.model import Progress

QUICK = Limits(connect=2, stall=0.5, total=20, retries=0, pause=0.01)
AMD64, ARM64 = Architecture.AMD64, Architecture.ARM64


class Site:
    """What the servers have; files are written as they are asked for."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.told: list[Progress] = []

    @property
    def feed(self) -> str:
        return f"{self.server.url}/releases-json/releases-stable.json"

    def write(self, path: str, text: str) -> None:
        place = self.server.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def release(
        self,
        version: str,
        *,
        channel: str = "stable",
        board: str = "amd64-usr",
        current: str = "current",
        kernel: str = "",
    ) -> None:
        """A release's directory, which is also `current`."""
        for name in filter(None, (version, current)):
            self.write(f"{channel}/{board}/{name}/version.txt", f"FLATCAR_VERSION={version}\n")
            packages = f"sys-kernel/coreos-kernel-{kernel}::coreos\n" if kernel else "app-arch/xz-5::x\n"
            self.write(f"{channel}/{board}/{name}/flatcar_production_image_packages.txt", packages)

    def feeds(self, channel: str, **kernels: str) -> None:
        """A channel's JSON feed; `_` stands for the points of a version."""
        document = {
            version.strip("v").replace("_", "."): {
                "architectures": ["amd64", "arm64"],
                "release_date": "2026-08-20 01:02:03 +0000",
                "major_software": {"kernel": [kernel] if kernel else []},
            }
            for version, kernel in kernels.items()
        }
        self.write(f"releases-json/releases-{channel}.json", json.dumps(document))

    def find(
        self,
        *channels: str,
        newest: int = 1,
        architectures: Sequence[Architecture] = (AMD64,),
        family: Family = Family.FLATCAR,
    ) -> Found:
        return find_releases(
            family,
            channels or ("stable",),
            architectures,
            newest=newest,
            mirrors=feeds.mirror(self.server.url),
            texts=Downloads(QUICK),
            tell=self.told.append,
        )

    def one(self, version: str, architecture: Architecture = AMD64, channel: str = "") -> Found:
        return find_release(
            Family.FLATCAR,
            version,
            architecture,
            channel=channel,
            mirrors=feeds.mirror(self.server.url),
            texts=Downloads(QUICK),
            tell=self.told.append,
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    server = Server(tmp_path).start()
    yield Site(server)
    server.stop()


def known(found: Found) -> list[tuple[str, str, str]]:
    return [(release.channel, release.version, release.kernel) for release in found.releases]


def test_the_newest_with_kernel_date_and_source(site: Site) -> None:
    site.release("4593.2.5")
    site.feeds("stable", v4593_2_5="6.12.102", v4593_2_4="6.12.95", v4459_2_4="6.12.66")
    found = site.find(newest=2)
    source = f"{site.server.url}/stable/amd64-usr/current/version.txt"
    assert found.releases == (
        OsRelease(Family.FLATCAR, "4593.2.5", "stable", AMD64, "6.12.102-flatcar", "2026-08-20", source),
        OsRelease(Family.FLATCAR, "4593.2.4", "stable", AMD64, "6.12.95-flatcar", "2026-08-20", site.feed),
    )
    assert found.notes == ()
    assert site.told[0].step == "read-feeds"


@pytest.mark.parametrize(("newest", "versions"), [(1, 1), (2, 2), (9, 3), (0, 3)])
def test_how_many(site: Site, newest: int, versions: int) -> None:
    site.release("4593.2.5")
    site.feeds("stable", v4593_2_5="6.12.102", v4593_2_4="6.12.95", v4459_2_4="6.12.66")
    assert len(site.find(newest=newest).releases) == versions


def test_channels_and_architectures(site: Site) -> None:
    site.release("4593.2.5")
    site.release("4593.2.5", board="arm64-usr")
    site.release("4757.1.0", channel="beta")
    site.feeds("stable", v4593_2_5="6.12.102")
    site.feeds("beta", v4757_1_0="6.12.95")
    found = site.find("stable", "beta", architectures=(AMD64, ARM64))
    assert [(one.version, one.architecture) for one in found.releases] == [
        ("4593.2.5", AMD64),
        ("4593.2.5", ARM64),
        ("4757.1.0", AMD64),
        ("4757.1.0", ARM64),
    ]
    # The feed alone knows of the last one.
    assert [note for note in found.notes if "beta (arm64)" in note and "may lag" in note]


def test_a_feed_that_lags(site: Site) -> None:
    site.release("4593.2.5", kernel="6.12.102")
    site.feeds("stable", v4593_2_4="6.12.95")
    found = site.find(newest=2)
    assert known(found) == [
        ("stable", "4593.2.5", "6.12.102-flatcar"),
        ("stable", "4593.2.4", "6.12.95-flatcar"),
    ]
    (note,) = found.notes
    where = "/stable/amd64-usr/4593.2.5/flatcar_production_image_packages.txt"
    assert (
        note
        == f"'{site.feed}' does not know '4593.2.5' yet: its kernel is known from '{site.server.url}{where}'"
    )


def test_a_kernel_that_no_source_tells(site: Site) -> None:
    site.release("4593.2.5")
    site.feeds("stable", v4593_2_4="6.12.95")
    found = site.find()
    assert known(found) == [("stable", "4593.2.5", "")]
    assert f"'{site.feed}' does not know '4593.2.5' yet: its kernel is unknown" in found.notes
    assert any("lists no package sys-kernel/coreos-kernel" in note for note in found.notes)


def test_a_mirror_that_lags(site: Site) -> None:
    site.release("4593.2.4")
    site.feeds("stable", v4593_2_5="6.12.102", v4593_2_4="6.12.95")
    found = site.find()
    assert known(found) == [("stable", "4593.2.5", "6.12.102-flatcar")]
    assert "still has '4593.2.4'" in found.notes[0] and "knows '4593.2.5' already" in found.notes[0]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param(Fault(status=500), "the server answered 500", id="down"),
        pytest.param(Fault(cut_after=9), "the connection ended too early", id="cut"),
    ],
)
def test_a_feed_that_is_down(site: Site, fault: Fault, said: str) -> None:
    for version, current in (("4593.2.4", ""), ("4593.2.5", "current")):
        site.release(version, kernel="6.12.102", current=current)
    site.feeds("stable", v4593_2_5="6.12.102")
    site.server.fail("releases-stable.json", fault)
    found = site.find(newest=2)
    assert [version for _, version, _ in known(found)] == ["4593.2.5", "4593.2.4"], "from the list"
    assert {kernel for _, _, kernel in known(found)} == {"6.12.102-flatcar"}
    assert len(found.notes) == 1 and said in found.notes[0] and site.feed in found.notes[0]


def test_a_feed_of_something_else(site: Site) -> None:
    site.release("4593.2.5", kernel="6.12.102")
    site.write("releases-json/releases-stable.json", "<html>sign in</html>")
    found = site.find()
    assert known(found) == [("stable", "4593.2.5", "6.12.102-flatcar")]
    assert found.notes[0].startswith(f"'{site.feed}' is not JSON: ")


def test_a_server_that_is_down_with_a_feed_that_is_not(site: Site) -> None:
    site.feeds("stable", v4593_2_5="6.12.102")
    site.server.fail("version.txt", Fault(status=500))
    found = site.find()
    assert known(found) == [("stable", "4593.2.5", "6.12.102-flatcar")]
    assert any("known from" in note and "may lag" in note for note in found.notes)


def test_one_channel_of_two_is_down(site: Site) -> None:
    site.release("4593.2.5")
    site.feeds("stable", v4593_2_5="6.12.102")
    found = site.find("stable", "edge")
    assert [channel for channel, _, _ in known(found)] == ["stable"]
    assert "no source knows a release of edge (amd64)" in found.notes


# -- long-term --------------------------------------------------------------------------------------


def test_lts_is_every_series_that_is_served(site: Site) -> None:
    site.write("lts/lts-info", "3510:2023:unsupported\n3033:2022:supported\n4081:2024:supported\n")
    site.release("4081.3.10", channel="lts", current="current-2024")
    site.release("3033.3.18", channel="lts", current="current-2022")
    site.feeds("lts-2024", v4081_3_10="6.6.150")
    site.feeds("lts-2022", v3033_3_18="5.10.1")
    found = site.find("lts")
    assert known(found) == [
        ("lts-2024", "4081.3.10", "6.6.150-flatcar"),
        ("lts-2022", "3033.3.18", "5.10.1-flatcar"),
    ]
    assert found.notes == ("lts-2023 (3510) is no longer served with updates: left out",)


def test_one_year_without_a_feed_takes_its_own_releases_from_the_list(site: Site) -> None:
    site.write("lts/lts-info", "3510:2023:unsupported\n4081:2024:supported\n")
    site.release("4081.3.10", channel="lts", current="current-2024", kernel="6.6.150")
    site.release("3510.3.6", channel="lts", current="current-2023", kernel="5.15.1")
    found = site.find("lts-2023", newest=5)
    assert known(found) == [("lts-2023", "3510.3.6", "5.15.1-flatcar")]


def test_lts_without_lts_info(site: Site) -> None:
    site.release("4081.3.10", channel="lts")
    site.feeds("lts", v4081_3_10="6.6.150")
    assert known(site.find("lts")) == [("lts", "4081.3.10", "6.6.150-flatcar")]


# -- CoreOS -----------------------------------------------------------------------------------------


def test_coreos_has_no_feed(site: Site) -> None:
    site.write("stable/amd64-usr/current/version.txt", "COREOS_VERSION=2512.3.0\n")
    packages = "sys-kernel/coreos-kernel-4.19.124::coreos\n"
    site.write("stable/amd64-usr/2512.3.0/coreos_production_image_packages.txt", packages)
    found = site.find(family=Family.COREOS)
    assert known(found) == [("stable", "2512.3.0", "4.19.124-coreos")]
    assert found.notes == ()


# -- nothing ----------------------------------------------------------------------------------------


def test_everything_is_down(site: Site) -> None:
    site.server.fail("", Fault(status=502))
    with pytest.raises(Transient) as caught:
        site.find("stable", "beta")
    assert caught.value.code is Code.FEED_UNREACHABLE
    assert caught.value.sentence.startswith("nothing is known of the releases of flatcar: ")
    assert "the server answered 502" in caught.value.sentence
    assert "mirror" in caught.value.remedy


def test_everything_is_something_else(site: Site) -> None:
    site.write("stable/amd64-usr/current/version.txt", "<html>")
    site.write("releases-json/releases-stable.json", "<html>")
    with pytest.raises(Permanent) as caught:
        site.find()
    assert caught.value.code is Code.FEED_INVALID
    assert site.feed in caught.value.sentence


def test_a_mirror_that_has_nothing(site: Site) -> None:
    with pytest.raises(Permanent) as caught:
        site.find()
    assert caught.value.code is Code.RELEASE_UNKNOWN
    assert caught.value.sentence == "the servers of flatcar have no release in stable for amd64"


# -- one release ------------------------------------------------------------------------------------


def test_one_by_its_version(site: Site) -> None:
    site.release("4593.2.4", current="")
    site.feeds("stable", v4593_2_4="6.12.95")
    found = site.one("4593.2.4")
    assert known(found) == [("stable", "4593.2.4", "6.12.95-flatcar")]
    assert found.releases[0].source.endswith("/4593.2.4/version.txt")


def test_one_by_its_channel(site: Site) -> None:
    site.release("4593.2.5")
    site.feeds("stable", v4593_2_5="6.12.102")
    assert known(site.one("stable")) == [("stable", "4593.2.5", "6.12.102-flatcar")]


@pytest.mark.parametrize(
    ("version", "code", "why"),
    [
        pytest.param("4593.2.9", Code.RELEASE_UNKNOWN, "have no release '4593.2.9'", id="unknown"),
        pytest.param("bookworm", Code.RELEASE_UNKNOWN, "does not tell its channel", id="no-version"),
        pytest.param(
            "4593.2.7", Code.FEED_INVALID, "is of '4593.2.8', not of '4593.2.7'", id="another-inside"
        ),
    ],
)
def test_one_that_is_not_there(site: Site, version: str, code: Code, why: str) -> None:
    site.write("stable/amd64-usr/4593.2.7/version.txt", "FLATCAR_VERSION=4593.2.8\n")
    with pytest.raises(Failure, match=why) as caught:
        site.one(version)
    assert caught.value.code is code
