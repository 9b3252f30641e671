# SPDX-License-Identifier: Apache-2.0
"""Update stories at random: whatever happens on the way, the right driver is active after every reboot."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
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

from tests.beds.common import BedError
from tests.host import ahead, road
from tests.host.machine import RELEASE, CommandError
from tests.payload import image

if TYPE_CHECKING:
    from tests.host.bed import Host
    from tests.payload.image import Image

pytestmark = pytest.mark.host

COUNT = int(os.environ.get("NVIDIAD_STORIES", "4"))
SHARDS = 2
SEED = int(os.environ.get("NVIDIAD_STORIES_SEED", str(random.SystemRandom().randrange(1 << 32))))
# What a boot may show, and the kernel of each.
RELEASES = (RELEASE, road.NEXT, ("4152.1.0", "6.6.60-flatcar"))
OTHER_KERNEL = "6.0.0-other"
MAXIMUM = 15.0
# A look, and what a busy machine takes on top.
LATE = 8.0
# What a killed updater, a registry that comes back or a failed pull leave to be waited for.
CALM = 6.0
HOPES = (None, "good", "good", "wrong")
OPERATIONS = ("DOWNLOADING", "FINALIZING", "VERIFYING")
FAULTS = ("repeat", "empty", "restart", "fake", "frozen", "mute", "away", "nameless", "refused")
# Where the daemon or an activation dies; see standin/nvidiad_killer.py.
STEPS = (
    "pull-image",
    "install-tree",
    "renew-tree",
    "raise-delay",
    "hold-reboot",
    "release-reboot",
    "remove-tree",
)
ACTIVATION = ("select-tree", "configure-linker", "refresh-linker-cache", "load-module", "make-nodes")
MOMENTS = ("before", "after", 0.05, 0.2, 0.5, "change 1", "change 2")
MEANWHILE = ("publish", "registry goes", "registry comes", "registry hangs", "engine restarts", *FAULTS)

_VERIFY = """
from pathlib import Path
from nvidiad.nouns.errors import Failure
from nvidiad.world.trees import Trees
trees = Trees(Path("/opt"))
for place in Path("/opt/nvidia").glob("*/[0-9]*"):
    try:
        trees.verify(str(place), trees.manifest(str(place)).build)
    except Failure:
        # What nothing needs any more is removed meanwhile, and has no name from the first moment on.
        if place.exists():
            raise
"""


class Stories(RuleBasedStateMachine):
    """One host of flesh and blood; what the story knows of it is in the attributes below."""

    host: ClassVar[Host]
    images: ClassVar[dict[tuple[str, str], Image]] = {}
    told: ClassVar[Counter[str]] = Counter()
    """How often what happened, over all stories."""

    def __init__(self) -> None:
        super().__init__()
        self.running = self.before = RELEASE
        self.next: tuple[str, str] | None = None
        """What the updater offers."""
        self.finished: float | None = None
        """Since when it is on disk, by the clock on the wall."""
        self.named = False
        """Whether anything tells the kernel of what is on disk."""
        self.published: dict[str, str] = {}
        """By version: good, or wrong."""
        self.once_good: set[str] = set()
        """Versions whose good image may still be on its way to the disk, whatever was published since."""
        self.registry = "up"
        self.stirred = 0.0
        """When something last happened that takes time to get over."""
        self.gpu = True
        self.locksmith = False

    # -- how a story begins and ends

    @initialize(
        gpu=st.sampled_from((True,) * 9 + (False,)),
        locksmith=st.booleans(),
        step=st.sampled_from((1, 2)),
        hope=st.sampled_from(HOPES),
    )
    def begin(self, gpu: bool, locksmith: bool, step: int, hope: str | None) -> None:  # noqa: FBT001
        """A host whose driver is in force is offered an update; nothing of an earlier story is left."""
        self.told["stories"] += 1
        host = self.host
        self.gpu = gpu
        self.clean()
        release = host.read("/etc/os-release")
        self.running = next(r for r in RELEASES if f"VERSION_ID={r[0]}" in release.replace('"', ""))
        self.before = self.running
        host.update(*self.running)
        road.put_tree(host, *self.running)
        host.systemctl("start", "nvidiad.socket", "nvidiad.service")
        host.systemctl("start", "--no-block", "kubelet.service")
        self.wait_usable()
        note(f"{self.running[0]} runs")
        if locksmith:
            self.locksmith_starts()
        self.next = RELEASES[(RELEASES.index(self.running) + step) % len(RELEASES)]
        if hope:
            self.publish(hope)
        host.update_engine("UPDATE_AVAILABLE", self.next[0])

    def clean(self) -> None:
        host = self.host
        host.systemctl("stop", "locksmithd.service")
        host.kmod_busy()
        ahead.refuse(host, everybody=False)
        host.engine_thaw()
        left = f"{ahead.NEXT} /run/reboot-required /run/update_engine_autoupdate_completed /run/kill-*"
        host.run(f"rm -f {left} {ahead.COORDINATOR} /etc/tmpfiles.d/ambush.conf", check=True)
        host.systemctl("restart", "update-engine.service")
        host.run("systemctl kill --signal=CONT registry@5000.service")  # where it runs
        road.strip(host)
        there = bool((host.dir / "gpus").read_text())
        if self.gpu != there:
            (host.gpu_add if self.gpu else host.gpu_remove)()

    def teardown(self) -> None:
        """No story ends before its last update is booted."""
        if sys.exc_info()[0] is None and self.next is not None:
            self.registry_thaws()
            if self.finished is None:
                self.finish(slot=True, version=True, meanwhile=[])
            if self.next is not None:
                self.locksmith_starts()

    # -- the updater

    @precondition(lambda self: self.next is None)
    @rule(step=st.sampled_from((1, 2)), announced=st.booleans())
    def offer(self, step: int, announced: bool) -> None:  # noqa: FBT001
        self.next = RELEASES[(RELEASES.index(self.running) + step) % len(RELEASES)]
        self.host.update_engine("UPDATE_AVAILABLE", self.next[0], signalled=announced)
        if not announced:
            # A download takes longer than it takes until the next look, which the poll would bring.
            self.host.nvidiad("reconcile")

    @precondition(lambda self: self.next is not None and self.finished is None)
    @rule(operation=st.sampled_from(OPERATIONS))
    def proceed(self, operation: str) -> None:
        assert self.next
        self.host.update_engine(operation, self.next[0], progress=0.5)

    @precondition(lambda self: self.next is not None and self.finished is None)
    @rule(
        slot=st.booleans(),
        version=st.booleans(),
        meanwhile=st.lists(st.sampled_from(MEANWHILE), max_size=2),
    )
    def finish(self, slot: bool, version: bool, meanwhile: list[str]) -> None:  # noqa: FBT001
        """The update is on disk, and one that waits for that reboots at once."""
        assert self.next
        host = self.host
        self.wait_known()
        self.named = slot
        if slot:
            host.write(ahead.NEXT, f"VERSION_ID={self.next[0]}\nKERNEL={self.next[1]}\n")
        host.update(*self.next)
        host.run("touch /run/reboot-required", check=True)
        before, self.finished = host.boots, time.time()
        host.update_engine("UPDATED_NEED_REBOOT", self.next[0] if version else "0.0.0")
        if self.locksmith:
            self.ride(before, self.next, meanwhile)

    @precondition(lambda self: self.finished is not None)
    @rule()
    def reset(self) -> None:
        """ResetStatus: without a signal, as the real one."""
        host = self.host
        host.run(f"rm -f {ahead.NEXT} /run/reboot-required", check=True)
        host.update(*self.running)
        host.run(f"busctl call {ahead.ENGINE} ResetStatus", check=True)
        self.next = self.finished = None
        document = ahead.look(host)
        assert document["stages"] == []
        ahead.wait_held(host, held=False)

    @precondition(lambda self: self.next is not None)
    @rule(what=st.sampled_from(FAULTS))
    def fault(self, what: str) -> None:
        """What update_engine does on bad days, and what others do in its name."""
        if what == "fake" and self.locksmith:
            # Locksmith believes it, and nvidiad knows that it reboots into the OS that runs.
            before, place = self.host.boots, ahead.COORDINATOR
            # Started a moment ago, it may not be on the bus yet.
            self.host.wait(
                lambda: self.host.exists(place) and "STATE=running" in self.host.read(place),
                "locksmith listens",
            )
            self.host.run(ahead.FAKE)
            self.ride(before, self.running, [])
            return
        self.spoil(what)

    def spoil(self, what: str) -> None:
        self.told[f"fault: {what}"] += 1
        assert self.next
        host = self.host
        self.stirred = time.monotonic()
        match what:
            case "repeat" if self.finished:
                for _ in range(3):
                    host.update_engine("UPDATED_NEED_REBOOT", self.next[0])
            case "empty" if self.finished:
                host.update_engine("UPDATED_NEED_REBOOT", "")
            case "restart":
                host.systemctl("restart", "update-engine.service")
            case "fake":
                host.run(ahead.FAKE, check=True)
            case "frozen":
                host.kill("update-engine.service", signal.SIGSTOP)
                host.nvidiad("reconcile")
                host.kill("update-engine.service", signal.SIGCONT)
            case "mute":
                ahead.spoil(host, "mute")
                host.nvidiad("reconcile")
                ahead.spoil(host, "speak")
            case "away":
                host.systemctl("stop", "update-engine.service")
                host.nvidiad("reconcile")
                host.systemctl("start", "update-engine.service")
            case "nameless":
                ahead.spoil(host, "leave")
                host.nvidiad("reconcile")
                ahead.spoil(host, "return")
            case "refused":
                ahead.refuse(host)
                host.nvidiad("reconcile")
                ahead.refuse(host, everybody=False)
        if not self.finished:
            # What was not on disk it begins again, and while it downloads it says so again and again.
            host.update_engine("UPDATE_AVAILABLE", self.next[0])

    # -- those who build images, and what is in between

    @precondition(lambda self: self.next is not None and self.registry == "up")
    @rule(kind=st.sampled_from(("good", "good", "wrong")))
    def publish(self, kind: str) -> None:
        assert self.next
        version, kernel = self.next
        packed = self.image(version, kernel if kind == "good" else OTHER_KERNEL)
        road.within(
            self.host, lambda: packed.push("http://127.0.0.1:5000", "nvidia-driver", road.tag(version))
        )
        self.published[version] = kind
        self.once_good |= {version} if kind == "good" else set()
        self.stirred = time.monotonic()

    @precondition(lambda self: self.registry != "down")
    @rule()
    def registry_goes(self) -> None:
        self.host.registry_kill()
        self.registry, self.stirred = "down", time.monotonic()

    @precondition(lambda self: self.registry == "up")
    @rule()
    def registry_hangs(self) -> None:
        self.host.registry_freeze()
        self.registry, self.stirred = "hung", time.monotonic()

    @precondition(lambda self: self.registry == "down")
    @rule()
    def registry_comes(self) -> None:
        self.host.registry_start()
        self.registry, self.stirred = "up", time.monotonic()

    @precondition(lambda self: self.registry == "hung")
    @rule()
    def registry_thaws(self) -> None:
        if self.registry == "hung":
            self.host.registry_thaw()
            self.registry, self.stirred = "up", time.monotonic()

    @rule()
    def engine_restarts(self) -> None:
        self.host.engine_restart()
        self.stirred = time.monotonic()

    # -- deaths

    @rule()
    def nvidiad_is_killed(self) -> None:
        self.host.kill("nvidiad.service")
        self.stirred = time.monotonic()

    @rule(step=st.sampled_from(STEPS), at=st.sampled_from(MOMENTS))
    def nvidiad_will_be_killed(self, step: str, at: str | float) -> None:
        """As soon as it comes to this step."""
        self.arm("run", step, at)

    @precondition(lambda self: self.gpu)
    @rule(step=st.sampled_from(ACTIVATION), at=st.sampled_from(("before", "after", "change 1")))
    def activation_will_be_killed(self, step: str, at: str) -> None:
        """In the next boot."""
        host = self.host
        host.write("/etc/bed/ambush", json.dumps(wish("activate", step, at)))
        host.write("/etc/tmpfiles.d/ambush.conf", "C /run/kill-at - - - - /etc/bed/ambush\n")

    @precondition(lambda self: self.next is not None and self.registry == "up" and self.gpu)
    @rule(step=st.sampled_from(STEPS[:2]), at=st.sampled_from(MOMENTS))
    def power_goes_while_staging(self, step: str, at: str | float) -> None:
        host = self.host
        self.arm("run", step, at, power=True)
        self.publish("good")
        host.nvidiad("reconcile")
        with suppress(CommandError):
            host.wait(lambda: host.exists("/run/kill-hit"), "nvidiad comes to that step", 3)
            self.told[f"power cut in {step}"] += 1
        self.power_goes()

    def arm(self, verb: str, step: str, at: str | float, *, power: bool = False) -> None:
        host = self.host
        host.write("/run/kill-at.tmp", json.dumps(wish(verb, step, at, power=power)))
        host.path("/run/kill-at.tmp").rename(host.path("/run/kill-at"))

    # -- reboots

    @precondition(lambda self: self.next is not None and not self.locksmith)
    @rule(meanwhile=st.lists(st.sampled_from(MEANWHILE), max_size=2))
    def locksmith_comes(self, meanwhile: list[str]) -> None:
        """Where an update waits already, it reboots at once."""
        self.locksmith_starts(meanwhile)

    def locksmith_starts(self, meanwhile: list[str] | None = None) -> None:
        if self.finished is not None:
            self.wait_known()
        before = self.host.boots
        self.host.run("systemctl start locksmithd.service")
        self.locksmith = True
        if self.next is not None and self.finished is not None:
            self.ride(before, self.next, meanwhile or [])

    def ride(self, before: int, to: tuple[str, str], meanwhile: list[str]) -> None:
        """Somebody asked for the reboot: it comes with the driver, or when it was waited for long enough."""
        host = self.host
        there = to == self.running or not self.gpu or self.fits(to)
        calm = not meanwhile and time.monotonic() - self.stirred > CALM
        hope = self.registry == "up" and self.published.get(to[0]) == "good"
        doomed = not there and not meanwhile and self.hopeless(to)
        for what in meanwhile:
            self.happen(what, before)
        host.wait_up(after=before, timeout=MAXIMUM + 60)
        held = ahead.held_for(host)
        # From then on it could be asked for, and from then on it is counted.
        waited = ahead.asked_at(host) - self.finished if self.finished is not None else MAXIMUM
        note(f"held for {held:.1f} s, {waited:.1f} s after the update: {there=} {calm=} {hope=} {doomed=}")
        assert held <= MAXIMUM + LATE
        if there:
            assert held < LATE, "it was held for nothing"
        if doomed:
            self.told["held to the maximum"] += 1
            assert held > MAXIMUM - waited - 0.5, "nobody published it, and it was not waited for"
        elif held > 1:
            self.told["held until the driver was there"] += 1
        self.arrive(to)
        if hope and calm and not there:
            assert self.fits(to), "its image was there, its tree is not"
        self.look_after_the_boot()

    def hopeless(self, to: tuple[str, str]) -> bool:
        """Whether nothing that this story has done so far can bring the driver, or what is taken for it."""
        if to[0] in self.once_good:
            return False
        kind = self.published.get(to[0])
        # Of an update that is known by its version only the image tells the kernel.
        return kind is None or (kind == "wrong" and self.named and not self.on_disk(to))

    def happen(self, what: str, before: int) -> None:
        """Something while the reboot is on its way, if it is not too late for that."""
        # Whether the host has gone meanwhile, or goes in this moment, nobody can know.
        with suppress(CommandError, BedError, OSError, RuntimeError):
            if self.host.boots != before:
                return
            match what:
                case "publish":
                    if self.registry == "up":
                        self.publish("good")
                case "registry goes":
                    self.registry_goes()
                case "registry hangs":
                    self.registry_hangs()
                case "registry comes":
                    self.registry_thaws()
                    self.registry_comes()
                case "engine restarts":
                    self.engine_restarts()
                case _:
                    self.spoil(what)

    @precondition(lambda self: self.next is not None)
    @rule()
    def power_goes(self) -> None:
        self.host.power_cut()
        self.arrive(self.next if self.finished is not None and self.next else self.running)
        self.look_after_the_boot()

    @precondition(lambda self: self.before != self.running)
    @rule()
    def os_goes_back(self) -> None:
        """The boot loader takes the slot from before the update."""
        host = self.host
        host.update(*self.before)
        host.reboot(timeout=MAXIMUM + 60)
        self.told["OS rollbacks"] += 1
        assert not self.gpu or self.fits(self.before), "the tree of the other slot is gone"
        self.arrive(self.before)
        self.look_after_the_boot()

    # -- what must hold

    def wait_known(self) -> None:
        """An update is known long before it is on disk, and the reboot held unless its driver is there."""

        def holds(document: dict[str, object]) -> bool:
            stages, reboot = document["stages"], document["reboot"] or {}
            assert isinstance(stages, list)
            assert isinstance(reboot, dict)
            done = any(stage["state"] in ("staged", "proven") for stage in stages)
            over = self.finished is not None and bool(reboot.get("go"))
            return not self.gpu or bool(stages and (done or over or reboot.get("held")))

        road.wait_status(self.host, holds, "nvidiad knows of the update, and holds the reboot for it")

    def wait_usable(self) -> dict[str, object]:
        if self.gpu:
            return road.wait_ready(self.host)
        document = road.wait_phase(self.host, "no-gpu")
        road.wait_units(self.host, "kubelet.service")
        return document

    def arrive(self, release: tuple[str, str]) -> None:
        """The host is up again, and its registry is not."""
        self.told["reboots"] += 1
        if release != self.running:
            self.before, self.running = self.running, release
        self.next = self.finished = None
        self.registry, self.named, self.locksmith, self.stirred = "down", False, False, 0.0
        self.host.update(*self.running)
        self.host.run("rm -f /etc/tmpfiles.d/ambush.conf", check=True)
        ahead.refuse(self.host, everybody=False)

    def on_disk(self, release: tuple[str, str]) -> bool:
        return self.host.exists(f"{ahead.tree(release[0])}/manifest.json")

    def fits(self, release: tuple[str, str]) -> bool:
        """Whether its tree is on disk, and for its kernel."""
        if not self.on_disk(release):
            return False
        said = json.loads(self.host.read(f"{ahead.tree(release[0])}/manifest.json"))
        return bool(said["kernel"] == release[1])

    def look_after_the_boot(self) -> None:
        """Without a registry: ready where the tree is whole, and else the kubelet is held for a reason."""
        host = self.host
        host.run("/opt/nvidiad/bin/python3", "-c", _VERIFY, check=True)
        if not self.gpu:
            self.wait_usable()
            return
        fits = self.fits(self.running)
        self.told["offline and ready" if fits else "without a driver after the boot"] += 1
        if not fits:
            road.wait_status(
                host, lambda said: said["problem"] and said["phase"] in ("waiting", "blocked"), "it waits"
            )
            assert host.state("kubelet.service") != "active"
            self.recover()
        document = road.wait_ready(host)
        assert document["os"]["version"] == self.running[0]
        assert document["driver"]["current"] == ahead.tree(self.running[0])
        assert document["stages"] == []
        assert not document["reboot"]["held"]
        assert ahead.locks(host) == []
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


def wish(verb: str, step: str, at: str | float, *, power: bool = False) -> dict[str, object]:
    """What the killer is to do."""
    return {"verb": verb, "step": step, "nth": 1, "at": at, "power": power}


@pytest.mark.timeout(14400)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_the_right_driver_is_active_after_every_reboot(shard: int) -> None:
    """`NVIDIAD_STORIES=200` tells so many, `NVIDIAD_STORIES_SEED` the same ones again; `-rP` shows both."""
    number = SEED + shard
    count = max(1, COUNT // SHARDS)
    print(f"{count} stories of seed {number}: NVIDIAD_STORIES={COUNT} NVIDIAD_STORIES_SEED={SEED}")
    with road.booted(registries=()) as host:
        config = ahead.configuration(MAXIMUM, retention={"trees": 2})
        road.install(host, config)
        ahead.prepare(host)
        road.killable(host)
        Stories.host = host
        told = profile(
            max_examples=count,
            stateful_step_count=8,
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
