# SPDX-License-Identifier: Apache-2.0
"""A host whose image cannot be built: nvidiad says so, and why, and takes the image when there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nvidiad.nouns import compatibility
from nvidiad.nouns.compatibility import Compatibility, Entry
from nvidiad.nouns.value import replace
from nvidiad.world.repository import Repository
from tests.host import registry, road
from tests.host.machine import RELEASE

if TYPE_CHECKING:
    from tests.host.bed import Host

ERROR = "nvidia/nv-pci.c:165: error: too few arguments to function 'pci_resize_resource'"
IMAGE = f"{road.REPOSITORY}:{road.tag()}"
BROKEN = Entry(
    *("flatcar", RELEASE[0], "stable", "x86_64", RELEASE[1], road.DRIVER, "open", "", road.tag()),
    compatibility.UNBUILDABLE,
    reason=ERROR,
)


def tell(host: Host, *entries: Entry, data: str = "") -> str:
    """Write the compatibility list into the host's plain registry; the digest of its manifest."""
    text = data or compatibility.render(Compatibility("2026-11-27T01:02:03Z", entries))

    def put() -> str:
        repository = Repository(road.REPOSITORY)
        try:
            return repository.put_artefact(compatibility.TAG, compatibility.MEDIA_TYPE, text.encode())
        finally:
            repository.close()

    return road.within(host, put)


def test_a_host_whose_image_cannot_be_built_says_why_and_takes_one_that_comes(host: Host) -> None:
    tell(host, BROKEN)
    road.install(host)
    host.systemctl("start", "nvidiad.service")
    document = road.wait_phase(host, "waiting", code="image-unbuildable")
    problem = document["problem"]
    what = f"driver {road.DRIVER} cannot be built for {RELEASE[0]}, so there is no '{IMAGE}'"
    assert problem["sentence"] == f"{what}: {ERROR}"
    assert f"choose a driver that supports kernel {RELEASE[1]}" in problem["remedy"]
    # It is held, counted and tried again as an image that is only missing.
    assert problem["retry"] is True
    assert document["next_try"] is not None
    assert [a["problem"]["code"] for a in document["attempts"]] == ["image-unbuildable"]
    assert host.state("kubelet.service") != "active"

    def told() -> bool:
        shown = host.nvidiad("status")
        assert shown.rc == 4
        return "Problem: image-unbuildable" in shown.out and ERROR in shown.out

    # Not at every instant: a try under way is told as what it is.
    host.wait(lambda: road.metric(host, "nvidiad_problem", code="image-unbuildable") == 1, "it is counted")
    host.wait(told, "the text names it")
    road.wait_status(host, lambda d: d["attempts"] and d["attempts"][0]["count"] >= 2, "it is tried again")
    road.publish(host)
    road.wait_ready(host)
    road.assert_never_early(host, starts=1)


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param((), id="an empty list"),
        pytest.param((replace(BROKEN, state="missing"),), id="not built yet"),
        pytest.param((replace(BROKEN, architecture="aarch64"),), id="another architecture"),
        pytest.param((replace(BROKEN, tag=road.tag(driver=road.OTHER_DRIVER)),), id="another driver"),
        pytest.param(None, id="no list that can be read"),
    ],
)
def test_what_the_list_does_not_say_stays_missing(host: Host, entries: tuple[Entry, ...] | None) -> None:
    tell(host, *entries) if entries is not None else tell(host, data="[]")
    road.install(host)
    host.systemctl("start", "nvidiad.service")
    document = road.wait_phase(host, "waiting", code="image-missing")
    assert document["problem"]["sentence"].startswith(f"'{IMAGE}' is not in the registry")


@pytest.mark.parametrize("host", [{"registries": ("plain", "auth")}], indirect=True)
def test_the_list_is_read_with_the_credentials_of_the_image(host: Host) -> None:
    # Three registries, one storage: what was written without a password is read with one.
    tell(host, BROKEN)
    guarded = f"{registry.ADDRESSES['auth']}/nvidia-driver"
    auth = '{"auths": {"%s": {"username": "%s", "password": "%s"}}}'
    host.write("/etc/bed/auth.json", auth % (registry.ADDRESSES["auth"], registry.USER, registry.PASSWORD))
    image = {"repository": guarded, "auth-file": "/etc/bed/auth.json"}
    road.install(host, road.configuration(image=image))
    host.systemctl("start", "nvidiad.service")
    document = road.wait_phase(host, "waiting", code="image-unbuildable")
    assert f"'{guarded}:{road.tag()}'" in document["problem"]["sentence"]
