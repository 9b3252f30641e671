# SPDX-License-Identifier: Apache-2.0
"""What docs/troubleshooting.md tells a person to type, typed on a host: outputs and the end are as told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.docs import commands
from tests.host import road
from tests.host.bed import NVIDIAD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.docs.commands import Command
    from tests.host.bed import Host

pytestmark = pytest.mark.host
PAGE = "docs/troubleshooting.md"
KUBELET = "kubelet.service"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with road.in_force() as made:
        yield made


def block(title: str) -> list[Command]:
    """The commands below a heading, in their order."""
    text = (commands.CHECKOUT / PAGE).read_text()
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = commands.on_page(PAGE, section)
    assert found, title
    return found


def test_where_programs_find_libcuda(host: Host) -> None:
    [look] = block("Programs do not find libcuda")
    assert host.run(look.text, check=True).out == look.output.rstrip("\n").lstrip(" ") + "\n"


def test_what_the_kubelet_waits_for(host: Host) -> None:
    [look] = block("The kubelet does not start")
    told = host.run(f"{look.text} --no-pager", check=True).out
    # It is up here, so its circle is full.
    assert told.replace("●", "○").startswith(look.output)


def test_the_driver_is_unloaded_and_comes_back(host: Host) -> None:
    for each in block("The driver is to be unloaded by hand"):
        host.run(each.text, check=True)
    assert host.modules() == []
    assert host.state(KUBELET) == "inactive"
    [ask] = block("nvidiad does not answer")
    told = host.run(ask.text.replace("nvidiad ", f"{NVIDIAD} ", 1))
    assert (told.rc, told.out + told.err) == (3, ask.output)
    host.run("systemctl start nvidiad.socket nvidiad.service", check=True)
    road.wait_ready(host)
    road.wait_units(host, KUBELET)


def test_nvidiad_is_taken_off_and_the_kubelet_is_free(host: Host) -> None:
    for each in block("Uninstall"):
        # A mount point here, which only its contents can leave.
        done = host.run("bash", "-c", each.text.replace("/opt/nvidiad ", "/opt/nvidiad/* "))
        assert done.rc == 0, (each.text, done)
    left = host.run(
        "find /etc /usr/lib/systemd /run/systemd/system -name '*nvidia*' ! -path '/etc/nvidiad*'", check=True
    )
    assert left.out == ""
    assert host.run("systemctl list-unit-files --no-legend '*nvidia*'").out == ""
    road.wait_units(host, KUBELET)
    # What was configured, and the trees, are the user's.
    assert host.exists("/etc/nvidiad/nvidiad.toml")
    assert host.exists(f"/opt/nvidia/{road.DRIVER}")
