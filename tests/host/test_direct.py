# SPDX-License-Identifier: Apache-2.0
"""A host without a container engine: nvidiad itself fetches images, and all ends as it does with one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.host import road
from tests.host.aftermath import assert_healed, begin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

DIRECT = {"engine": {"kind": "registry"}}


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    """A host whose engine is not there: neither program nor socket answers anybody."""
    with road.booted(docker=False) as host:
        road.install(host, road.configuration())
        road.publish(host)
        yield host


@pytest.fixture
def cold(shared: Host) -> Host:
    road.rewind(shared, trees=False)
    return shared


def test_a_host_without_an_engine_gets_its_driver(cold: Host) -> None:
    host = cold
    assert not host.exists("/run/docker.sock")
    begin(host)
    assert_healed(host)
    document = road.status(host)
    assert document["engine"] == {
        "kind": "registry",
        "reason": "there is no engine: no socket '/run/docker.sock'",
    }
    assert "Fetched by: registry (there is no engine" in host.nvidiad("status").out
    checked = host.nvidiad("check", "--json=short").out
    assert "nvidiad itself fetches images" in checked
    helper = f"/opt/nvidia/{road.DRIVER}/3975.2.0/bin/nvidia-modprobe"
    assert host.path(helper).stat().st_mode & 0o7777 == 0o4755
