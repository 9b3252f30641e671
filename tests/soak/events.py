# SPDX-License-Identifier: Apache-2.0
"""What the daemon lives through: everything that makes it look, fetch, fail and get over it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.idle import own_pid
from nvidiad.rim import client
from nvidiad.thought import wire
from tests.host import ahead, line, road
from tests.host.machine import RELEASE
from tests.payload import image

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host.bed import Host
    from tests.host.line import Line
    from tests.payload.image import Image

# What the updater offers, one after the other.
VERSIONS = (road.NEXT, ("4152.1.0", "6.6.60-flatcar"), ("4230.2.0", "6.6.65-flatcar"))
WRONG_KERNEL = "6.0.0-other"
ABSENT = "999.99.01"
# Bytes that come from the registry before a line breaks: more than manifests, less than any image.
_MIDDLE = 6_000
FOLLOWERS = 6
_TREES = "/opt/nvidia/*/"
# Beside other tests a registry is silent for a second where nobody has cut its line.
_CONFIGURATION = ahead.configuration(
    image={"repository": line.REPOSITORY, "stall-timeout": 5, "connect-timeout": 1},
    retention={"trees": 2},
)


def settle(host: Host) -> None:
    """nvidiad on a host that is up, with its driver in force."""
    road.install(host, _CONFIGURATION)
    road.put_tree(host)
    host.systemctl("start", "nvidiad.service")
    road.wait_ready(host)


class Events:
    """What happens to one daemon; each method leaves a host that is ready and waits for nothing."""

    def __init__(self, host: Host, way: Line) -> None:
        self.host = host
        self.line = way
        self.pid = own_pid(host)
        self.pulls = self.faults = 0
        self._pokes = 0
        self._images: dict[tuple[str, str, int], Image] = {}
        self._followers: list[socket.socket] = []

    # -- one look

    def looks(self) -> int:
        return int(road.metric(self.host, "nvidiad_looks_total") or 0)

    def poke(self) -> None:
        """Give a reason to look, another one each time, and wait for the look."""
        ways = (self._reconcile, self._signal, self._updater, self._file, self._reconcile, self._device)
        before = self.looks()
        way = ways[self._pokes % len(ways)]
        way()
        self._pokes += 1
        self.host.wait(lambda: self.looks() > before, f"nvidiad looks after {way.__name__.strip('_')}", 30)

    def _reconcile(self) -> None:
        client.call(str(self.host.path(road.SOCKET)), "io.nvidiad.Reconcile")

    def _signal(self) -> None:
        os.kill(self.pid, signal.SIGHUP)

    def _updater(self) -> None:
        self.host.tell_updater(f"UPDATE_STATUS_CHECKING_FOR_UPDATE 0.0.0 0.{self._pokes % 9} 0 1")

    def _file(self) -> None:
        self.host.write("/run/reboot-required", "")
        self.host.path("/run/reboot-required").unlink()

    def _device(self) -> None:
        self.host.uevent("change", "/devices/pci0000:00/0000:01:00.0")

    # -- those who ask

    def ask(self) -> None:
        """Everything that can be asked, once, and what is no question at all."""
        for resource in ("/status", "/status.txt", "/metrics"):
            road.fetch(self.host, resource)
        for method in ("GetStatus", "List", "GetMetrics"):
            client.call(str(self.host.path(road.SOCKET)), f"io.nvidiad.{method}")
        for bytes_ in (b"", b"\x00", b"GET /", b'{"method": 1}\0', b"GET /nothing HTTP/1.1\r\n\r\n"):
            with self._connected() as rude:
                rude.sendall(bytes_)

    def follow(self) -> None:
        """Some who want to hear of every change; half of them never listen to what they are told."""
        for _ in range(FOLLOWERS):
            follower = self._connected()
            follower.sendall(wire.call("io.nvidiad.GetStatus", None, more=True))
            self._followers.append(follower)

    def listen(self) -> None:
        for follower in self._followers[::2]:
            follower.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while follower.recv(1 << 16):
                    pass

    def hang_up(self) -> None:
        """Nobody follows any more, and nvidiad has noticed."""
        for follower in self._followers:
            follower.close()
        self._followers = []
        self.poke()

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(10)
        connection.connect(str(self.host.path(road.SOCKET)))
        return connection

    # -- updates, whose driver is fetched and staged

    def update(
        self,
        spoil: Callable[[], None] | None = None,
        mend: Callable[[], None] | None = None,
        seen: Callable[[], object] | None = None,
    ) -> None:
        """An update is offered, its driver fetched and proven, and then it is taken back.

        What is spoiled before is mended once it was seen, by nvidiad itself if nothing else is said.
        """
        host = self.host
        version, kernel = VERSIONS[self.pulls % len(VERSIONS)]
        host.run("bash", "-c", f"rm -rf {_TREES}{version}", check=True)
        self.publish(version, kernel, self.pulls)
        if spoil:
            spoil()
        host.update_engine("UPDATE_AVAILABLE", version)
        if spoil:
            self.faults += 1
            (seen or self._wait_problem)()
            self.ask()
        if mend:
            mend()
            self._reconcile()
        ahead.wait_stage(host, "staged")
        ahead.finish(host, version, kernel)
        ahead.wait_stage(host, "proven")
        self.pulls += 1
        self._take_back()

    def wrong_image(self) -> None:
        """The image is for another kernel, as turns out when the slot is known; a better one follows."""
        host = self.host
        version, kernel = VERSIONS[self.pulls % len(VERSIONS)]
        host.run("bash", "-c", f"rm -rf {_TREES}{version}", check=True)
        self.publish(version, WRONG_KERNEL, self.pulls)
        host.update_engine("UPDATE_AVAILABLE", version)
        ahead.wait_stage(host, "staged")
        ahead.finish(host, version, kernel)
        ahead.wait_stage(host, "unfit")
        self.publish(version, kernel, self.pulls)
        self._reconcile()
        ahead.wait_stage(host, "proven")
        self.pulls += 2
        self.faults += 1
        self._take_back()

    def _take_back(self) -> None:
        host = self.host
        host.run(f"rm -f {ahead.NEXT}", check=True)
        host.update(*RELEASE)
        host.run(f"busctl call {ahead.ENGINE} ResetStatus", check=True)
        self._reconcile()
        road.wait_status(host, lambda said: not said["stages"], "no update comes any more")
        ahead.wait_held(host, held=False)

    def publish(self, version: str, kernel: str, turn: int) -> None:
        """Every other image of a version has other content."""
        key = (version, kernel, turn // len(VERSIONS) % 2)
        if key not in self._images:
            with tempfile.TemporaryDirectory() as made:
                tree = road.payload(Path(made), version, kernel, bulk=8192 + key[2] * 4096)
                self._images[key] = image.image(tree)
        made_image = self._images[key]
        road.within(
            self.host, lambda: made_image.push("http://127.0.0.1:5000", "nvidia-driver", road.tag(version))
        )

    def _wait_problem(self) -> None:
        road.wait_status(
            self.host,
            lambda said: ahead.stage(said).get("problem"),
            "it says what is wrong",
            2 * road.PATIENCE,
        )

    # -- faults

    def registry_is_away(self) -> None:
        self.update(self.host.registry_kill, self.host.registry_start)

    def registry_hangs(self) -> None:
        self.update(self.host.registry_freeze, self.host.registry_thaw)

    def line_breaks(self) -> None:
        """And is mended at once: an engine tries again for a minute by itself before it gives up."""
        self.update(lambda: self.line.fail(_MIDDLE), self.line.heal, self.line.wait_broken)

    def engine_is_away(self) -> None:
        self.update(self.host.engine_stop, self.host.engine_start)

    def engine_restarts(self) -> None:
        self.host.engine_restart()
        self.faults += 1
        self.poke()

    def driver_is_not_built(self) -> None:
        """Somebody configures a driver of which there is no image, and thinks better of it."""
        road.configure(self.host, _CONFIGURATION.replace(road.DRIVER, ABSENT))
        road.wait_status(self.host, lambda said: said["problem"], "there is no such image")
        road.configure(self.host, _CONFIGURATION)
        self.faults += 1
        road.wait_ready(self.host)

    def configuration_is_wrong(self) -> None:
        road.configure(self.host, "[driver]\nversion = 5\n")
        road.wait_status(self.host, lambda said: said["warnings"], "it says that it cannot be used")
        road.configure(self.host, _CONFIGURATION)
        self.faults += 1
        road.wait_ready(self.host)

    def updater_fails(self) -> None:
        host = self.host
        for bad, good in (("mute", "speak"), ("leave", "return")):
            ahead.spoil(host, bad)
            self._reconcile()
            ahead.spoil(host, good)
            self.faults += 1
            self.poke()
        host.systemctl("restart", "update-engine.service")
        self.poke()

    def systemd_reloads(self) -> None:
        self.host.systemctl("daemon-reload")
        self.poke()

    def kubelet_restarts(self) -> None:
        self.host.systemctl("restart", "kubelet.service")
        road.wait_ready(self.host)

    ALL = (
        update,
        registry_is_away,
        engine_restarts,
        line_breaks,
        systemd_reloads,
        registry_hangs,
        kubelet_restarts,
        wrong_image,
        driver_is_not_built,
        engine_is_away,
        updater_fails,
        configuration_is_wrong,
    )
