# SPDX-License-Identifier: Apache-2.0
"""How tests of faults begin, and what must hold when the cause has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.host import road

if TYPE_CHECKING:
    from tests.host.bed import Host

KUBELET = "kubelet.service"
GATE = f"/etc/systemd/system/{KUBELET}.d/10-nvidia.conf"
# After the end of the cause: the longest pause of the back-off, a look, and what a busy machine takes.
HEALED = road.PATIENCE


def begin(host: Host, config: str | None = None, *, kubelet: bool = True) -> None:
    """Start nvidiad and, as a boot does, the kubelet; from nothing, nvidiad starts that when it is gated."""
    place, text = "/etc/nvidiad/nvidiad.toml", road.configuration() if config is None else config
    # Where nothing can be written, it has been before.
    if host.read(place) != text:
        host.write(place, text)
    host.systemctl("start", "--no-block", "nvidiad.socket", "nvidiad.service")
    if kubelet and host.exists(GATE):
        # Where the driver's unit is masked, that fails at once.
        host.systemctl("start", "--no-block", KUBELET, check=False)


def assert_held(host: Host) -> None:
    """The kubelet waits, and has not started before."""
    assert host.state(KUBELET) != "active"
    assert road.witnessed(host) == []


def assert_healed(host: Host, starts: int = 1) -> None:
    """Without help the driver came into force, before the kubelet; no tree is half, and none is lost."""
    road.wait_ready(host, HEALED)
    road.assert_never_early(host, starts=starts)
    assert host.nvidiad("check").rc == 0
    road.assert_nothing_half(host)


def stage_tree(host: Host) -> None:
    """The tree, as its image's installer lays it down, is on disk, and nothing is in force."""
    if not host.exists(f"/opt/nvidia/{road.DRIVER}"):
        road.rewind(host, trees=False)
        begin(host)
        road.wait_ready(host)
    road.rewind(host, trees=True)
