# SPDX-License-Identifier: Apache-2.0
"""Debian's archive as it is today: kernels with headers, the driver's packages, and what is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvidiad.image.nouns.model import Architecture, Family
from nvidiad.image.thought import debian
from nvidiad.image.world.archive import Archive
from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Flavour
from tests.images.realdriver import DRIVER, KERNEL, SUITES, archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def packages() -> Iterator[Archive]:
    with archive() as made:
        yield made


def test_kernels_are_releases_of_their_suites(packages: Archive) -> None:
    found = {release.kernel: release for release in packages.kernels()}
    assert found[KERNEL].family is Family.DEBIAN and found[KERNEL].version == KERNEL
    assert {release.channel for release in found.values()} <= set(SUITES)
    assert all(kernel.endswith("amd64") for kernel in found) and len(found) > 5
    only = packages.kernels("bookworm-security")
    assert only and {release.channel for release in only} == {"bookworm-security"}
    assert packages.depends(f"linux-headers-{KERNEL}").startswith("linux-headers-")


def test_the_driver_is_there_at_its_version(packages: Archive) -> None:
    offers = packages.offers(debian.wanted(Flavour.OPEN, graphics=True))
    chosen = debian.choose(offers, DRIVER, Flavour.OPEN, graphics=True)
    assert debian.upstream(chosen.source.version) == DRIVER
    assert {"libcuda1", "nvidia-smi", "nvidia-persistenced"} <= {each.package for each in chosen.programs}


def test_what_is_not_there(packages: Archive, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no package 'linux-headers-9") as failed:
        packages.depends("linux-headers-9.9.9-1-amd64")
    assert failed.value.code is Code.SOURCE_INVALID
    assert packages.offers(["no-such-package"]) == ()
    with pytest.raises(Failure, match="no-such-package") as failed:
        packages.download(["no-such-package"], tmp_path, lambda _: None)
    assert failed.value.code is Code.DOWNLOAD_FAILED


def test_a_mirror_that_is_not_there(tmp_path: Path) -> None:
    sources = ["deb [trusted=yes] http://127.0.0.1:1/debian bookworm main"]
    nowhere = Archive(tmp_path / "apt", ("bookworm",), Architecture.AMD64, sources=sources)
    with pytest.raises(Failure, match=r"127\.0\.0\.1") as failed:
        nowhere.kernels()
    assert failed.value.code is Code.FEED_UNREACHABLE and failed.value.retry
