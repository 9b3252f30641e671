# SPDX-License-Identifier: Apache-2.0
"""Update stories at random: whatever happens on the way, the right driver is active after every reboot."""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, note, seed
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.host import road
from tests.host.machine import RELEASE
from tests.payload import image

if TYPE_CHECKING:
    from tests.host.bed import Host
    from tests.payload.image import Image

pytestmark = pytest.mark.host

COUNT = int(os.environ.get("NVIDIAD_STORIES", "8"))
SHARDS = 2
SEED = int(os.environ.get("NVIDIAD_STORIES_SEED", str(random.SystemRandom().randrange(1 << 32))))
# What a boot may show, and the kernel of each.
RELEASES = (RELEASE, road.NEXT, ("4152.1.0", "6.6.60-flatcar"))
NEXT = "/run/nextos"
MAXIMUM = 9.0
# A boot, a look, and what a busy machine takes on top.
TOLERANCE = 25.0
LOGIND = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager"
REBOOT = f"busctl call {LOGIND} Reboot b false"
FAKE = (
    "busctl emit /com/coreos/update1 com.coreos.update1.Manager StatusUpdate xdssx "
    "0 0.0 UPDATE_STATUS_UPDATED_NEED_REBOOT 9999.9.9 0"
)


def tree(version: str) -> str:
    return f"/opt/nvidia/{road.DRIVER}/{version}"


class Stories(RuleBasedStateMachine):
    """One host of flesh and blood; what the story knows of it is in the attributes below."""

    host: ClassVar[Host]
    images: ClassVar[dict[tuple[str, str], Image]] = {}
    told: ClassVar[Counter[str]] = Counter()
    """How often what happened, over all stories."""

    def __init__(self) -> None:
        super().__init__()
        self.told["stories"] += 1
        self.running = self.before = RELEASE
        self.next: tuple[str, str] | None = None
        """What the updater offers."""
        self.finished = False
        self.published: dict[str, str] = {}
        """By version: good, or wrong."""
        self.registry = True

    # -- how a story begins

    @initialize()
    def begin(self) -> None:
        """A host whose driver is in force; nothing of an earlier story is left."""
        host = self.host
        host.kmod_busy()
        host.update_engine("IDLE")
        host.run(f"rm -f {NEXT} /run/reboot-required", check=True)
        host.engine_thaw()
        road.strip(host)
        release = host.read("/etc/os-release")
        self.running = next(r for r in RELEASES if f"VERSION_ID={r[0]}" in release.replace('"', ""))
        self.before = self.running
        host.update(*self.running)
        road.put_tree(host, *self.running)
        host.systemctl("start", "nvidiad.socket", "nvidiad.service")
        host.systemctl("start", "--no-block", "kubelet.service")
        road.wait_ready(host)
        note(f"{self.running[0]} runs")

    # -- the updater

    @precondition(lambda self: self.next is None)
    @rule(step=st.sampled_from((1, 2)), announced=st.booleans())
    def offer(self, step: int, announced: bool) -> None:  # noqa: FBT001
        self.next = RELEASES[(RELEASES.index(self.running) + step) % len(RELEASES)]
        self.finished = False
        self.host.update_engine("UPDATE_AVAILABLE", self.next[0], signalled=announced)

    @precondition(lambda self: self.next is not None and not self.finished)
    @rule(operation=st.sampled_from(("DOWNLOADING", "FINALIZING", "VERIFYING")))
    def proceed(self, operation: str) -> None:
        assert self.next
        self.host.update_engine(operation, self.next[0], progress=0.5)

    @precondition(lambda self: self.next is not None and not self.finished)
    @rule(slot=st.booleans(), version=st.booleans())
    def finish(self, slot: bool, version: bool) -> None:  # noqa: FBT001
        """The update is on disk; the disk, update_engine or both say which it is."""
        assert self.next
        host = self.host
        if slot or not version:
            host.write(NEXT, f"VERSION_ID={self.next[0]}\nKERNEL={self.next[1]}\n")
        host.update(*self.next)
        host.update_engine("UPDATED_NEED_REBOOT", self.next[0] if version else "0.0.0")
        self.finished = True

    @precondition(lambda self: self.finished)
    @rule()
    def reset(self) -> None:
        """ResetStatus: without a signal, as the real one."""
        host = self.host
        host.run(f"rm -f {NEXT}", check=True)
        host.update(*self.running)
        host.update_engine("IDLE", signalled=False)
        self.next, self.finished = None, False

    @precondition(lambda self: self.finished)
    @rule(fault=st.sampled_from(("repeat", "empty", "restart", "fake", "frozen", "away")))
    def fault(self, fault: str) -> None:
        """What update_engine does on bad days, and what others do in its name."""
        self.told[f"fault: {fault}"] += 1
        assert self.next
        host = self.host
        match fault:
            case "repeat":
                host.update_engine("UPDATED_NEED_REBOOT", self.next[0])
            case "empty":
                host.update_engine("UPDATED_NEED_REBOOT", "")
            case "restart":
                host.systemctl("restart", "update-engine.service")
                host.update_engine("UPDATED_NEED_REBOOT", "0.0.0")
            case "fake":
                host.run(FAKE, check=True)
            case "frozen":
                host.kill("update-engine.service", 19)
                host.nvidiad("reconcile")
                host.kill("update-engine.service", 18)
            case "away":
                host.systemctl("stop", "update-engine.service")
                host.nvidiad("reconcile")
                host.systemctl("start", "update-engine.service")
                host.update_engine("UPDATED_NEED_REBOOT", self.next[0])

    # -- those who build images, and what is in between

    @precondition(lambda self: self.next is not None and self.registry)
    @rule(kind=st.sampled_from(("good", "good", "wrong")))
    def publish(self, kind: str) -> None:
        assert self.next
        version, kernel = self.next
        packed = self.image(version, kernel if kind == "good" else "6.0.0-other")
        road.within(
            self.host, lambda: packed.push("http://127.0.0.1:5000", "nvidia-driver", road.tag(version))
        )
        self.published[version] = kind

    @precondition(lambda self: self.next is not None and self.registry)
    @rule()
    def registry_goes(self) -> None:
        self.host.registry_stop()
        self.registry = False

    @precondition(lambda self: self.next is not None and not self.registry)
    @rule()
    def registry_comes(self) -> None:
        self.host.registry_start()
        self.registry = True

    @precondition(lambda self: self.next is not None)
    @rule()
    def nvidiad_is_killed(self) -> None:
        self.host.kill("nvidiad.service")

    @precondition(lambda self: self.next is not None)
    @rule()
    def engine_restarts(self) -> None:
        self.host.engine_restart()

    # -- reboots

    @precondition(lambda self: self.finished)
    @rule()
    def locksmith_reboots(self) -> None:
        """As soon as the update is there; the lock of nvidiad makes it wait for the driver, or its time."""
        assert self.next
        host, version = self.host, self.next[0]
        hopeless = not self.registry or self.published.get(version) != "good"
        road.wait_status(host, lambda said: said["stages"], "nvidiad knows of it")
        before, asked = host.boots, time.monotonic()
        host.run(REBOOT)
        host.wait_up(after=before, timeout=MAXIMUM + 60)
        held = time.monotonic() - asked
        assert held < MAXIMUM + TOLERANCE, f"the reboot was held for {held:.1f} s"
        note(f"held for {held:.1f} s, hopeless: {hopeless}")
        self.told["held to the maximum" if held > MAXIMUM else "let go in time"] += 1
        self.arrive(self.next)
        if not hopeless:
            assert host.exists(f"{tree(version)}/manifest.json"), "its image was there, its tree is not"
        self.look_after_the_boot()

    @precondition(lambda self: self.next is not None)
    @rule()
    def power_goes(self) -> None:
        self.host.power_cut()
        self.arrive(self.next if self.finished and self.next else self.running)
        self.look_after_the_boot()

    @precondition(lambda self: self.before != self.running)
    @rule()
    def os_goes_back(self) -> None:
        """The boot loader takes the slot from before the update."""
        host = self.host
        host.update(*self.before)
        host.reboot()
        assert host.exists(f"{tree(self.before[0])}/manifest.json"), "the tree of the other slot is gone"
        self.arrive(self.before)
        self.look_after_the_boot()

    # -- what must hold

    def arrive(self, release: tuple[str, str]) -> None:
        """The host is up again, and its registry is not."""
        self.told["reboots"] += 1
        if release != self.running:
            self.before, self.running = self.running, release
        self.next, self.finished, self.registry = None, False, False

    def look_after_the_boot(self) -> None:
        """Without a registry: ready where the tree is whole, and else the kubelet is held for a reason."""
        host = self.host
        place = tree(self.running[0])
        fits = host.exists(f"{place}/manifest.json")
        if fits:
            said = json.loads(host.read(f"{place}/manifest.json"))
            fits = said["kernel"] == self.running[1]
        self.told["offline and ready" if fits else "held for want of a driver"] += 1
        if not fits:
            road.wait_status(
                host, lambda said: said["problem"] and said["phase"] in ("waiting", "blocked"), "it waits"
            )
            assert host.state("kubelet.service") != "active"
            self.recover()
        document = road.wait_ready(host)
        assert document["os"]["version"] == self.running[0]
        assert document["driver"]["current"] == place
        assert document["stages"] == []
        assert not document["reboot"]["held"]
        road.assert_never_early(host)
        checked = host.nvidiad("check")
        assert checked.rc == 0, checked.out

    def recover(self) -> None:
        """Somebody publishes what was missing."""
        host, (version, kernel) = self.host, self.running
        self.registry_comes()
        packed = self.image(version, kernel)
        road.within(host, lambda: packed.push("http://127.0.0.1:5000", "nvidia-driver", road.tag(version)))
        self.published[version] = "good"
        host.nvidiad("reconcile")
        road.wait_ready(host)

    def image(self, version: str, kernel: str) -> Image:
        """Image once: only its push belongs to the story."""
        if (version, kernel) not in self.images:
            with tempfile.TemporaryDirectory() as made:
                self.images[version, kernel] = image.image(road.payload(Path(made), version, kernel))
        return self.images[version, kernel]


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_the_right_driver_is_active_after_every_reboot(shard: int) -> None:
    """`NVIDIAD_STORIES=200` tells that many, `NVIDIAD_STORIES_SEED` the same ones again."""
    number = SEED + shard
    count = max(1, COUNT // SHARDS)
    print(f"{count} stories of seed {number}")
    with road.booted(registries=()) as host:
        config = road.configuration(
            stage={"spread": 0, "next-file": NEXT},
            reboot={"maximum": MAXIMUM},
            retention={"trees": 2},
            image={"stall-timeout": 2, "connect-timeout": 2},
        )
        road.install(host, config)
        host.write("/etc/systemd/system/nvidiad.service.d/bed.conf", "[Service]\nRestartSec=100ms\n")
        host.systemctl("daemon-reload")
        Stories.host = host
        told = profile(
            max_examples=count,
            stateful_step_count=10,
            deadline=None,
            database=None,
            print_blob=True,
            verbosity=Verbosity.normal,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        machine = seed(number)(Stories)
        run_state_machine_as_test(machine, settings=told)
        print(", ".join(f"{what}: {count}" for what, count in sorted(Stories.told.items())))
