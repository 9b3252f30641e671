# SPDX-License-Identifier: Apache-2.0
"""A crowd of nodes: each decides by nvidiad's own code when it asks, and asks a real registry."""

from __future__ import annotations

import heapq
import os
import queue
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Attempt, Memory, UpdateStatus, problem_of
from nvidiad.nouns.steps import PullImage
from nvidiad.nouns.upcoming import NextFacts
from nvidiad.thought import backoff, distribution, planner, provision, refusals, staging
from nvidiad.world.places import CompatibilityLists, Registries
from nvidiad.world.repository import Limits, Repository
from tests.unit import facts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from nvidiad.nouns.facts import HostFacts
    from nvidiad.nouns.upcoming import Stage
    from nvidiad.thought.settings import Settings
    from tests.images.shelf import Shelf

NEXT = "4081.2.0"
PATH = "fleet/nvidia-driver"
# As dockerd and the compatibility list ask: once.
LIMITS = Limits(connect=10, read=60, connections=1, tries=1)
LAYERS, LAYER_BYTES = 3, 64 << 10
# Requests of one try: the tag, the manifest, its configuration and layers; the tag, and the list's tag.
THERE, MISSING = 3 + LAYERS, 2
_LIMIT = 1800.0
# A timer is late, never early.
_TICK = 0.001


@dataclass(frozen=True)
class Scenario:
    """What happens to a fleet; times in its seconds since it heard of the update."""

    name: str
    settings: Settings
    factor: float
    """So many of the fleet's seconds pass in one of this machine's."""
    published: float = 0.0
    down: tuple[float, float] | None = None


@dataclass
class Outcome:
    """What a fleet asked and got, in its seconds since it heard of the update."""

    answered: list[float] = field(default_factory=list)
    """When each request was sent that the registry answered, with content or with 404."""
    missing: list[float] = field(default_factory=list)
    """Those of them that were answered with 404."""
    failed: list[float] = field(default_factory=list)
    """Requests without an answer."""
    done: list[float] = field(default_factory=list)
    """When each node had the image."""
    waits: list[float] = field(default_factory=list)
    """How long each node was at it when it got the image, in seconds of this machine."""
    late: list[float] = field(default_factory=list)
    """How much after its time each try began, in seconds of this machine: the bench's own debt."""
    offered: float = 0.0
    """From when on the image could be had."""
    logged: int = 0
    """Requests that the registry itself wrote down."""


class Clock:
    """The fleet's seconds."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._begun = time.monotonic()

    def now(self) -> float:
        return (time.monotonic() - self._begun) * self._factor

    def real(self, seconds: float) -> float:
        """How long that many of the fleet's seconds take."""
        return seconds / self._factor


class Node:
    """A node's decisions, by nvidiad's own pure code, and its requests, by nvidiad's own client."""

    def __init__(self, boot_id: str, settings: Settings) -> None:
        self._boot_id = boot_id
        self._settings = settings
        self._memory = Memory()
        self.reference = ""

    def look(self, now: float) -> float:
        """Seconds until it asks the registry."""
        host = self._host(now)
        self._memory = staging.notice(self._memory, host)
        stage = self._stage(host, now)
        self.reference = stage.reference
        # As the daemon's timer: what is not due now is so in a second at the earliest.
        return 0.0 if stage.due is None else max(1.0, stage.due)

    def missed(self, failure: Failure, now: float) -> None:
        """Count a failed try, as the daemon does."""
        host = self._host(now)
        step = PullImage(self.reference, self._stage(host, now).build)
        key = planner.retry_key(step, host, self._settings)
        self._memory = backoff.failed(self._memory, Attempt(key or "", 1, now, problem_of(failure)))

    def fetch(self, asked: Callable[[], Note]) -> None:
        """All requests of one try: what the tag names, the manifest, the configuration, every layer.

        A host has its engine ask for the same, which begins with a ping and asks for some of it twice.
        """
        name, _, tag = self.reference.rpartition(":")
        repository = Repository(name, limits=LIMITS)
        try:
            with asked() as note:
                digest = repository.head(tag)
                note.missing = digest is None
            if digest is None:
                # Why it is not there may stand in the compatibility list, which this repository has not.
                with asked() as note:
                    note.missing = True
                    lists = CompatibilityLists(Registries(None, {}), LIMITS, os.uname().machine)
                    lists.unbuildable(self.reference)
                raise refusals.failure(Code.IMAGE_MISSING, self.reference)
            with asked():
                document = repository.manifest(digest)
            for blob in provision.contents(document).blobs:
                with asked():
                    repository.blob(blob)
        finally:
            repository.close()

    def _stage(self, host: HostFacts, now: float) -> Stage:
        found = staging.next_system(host, self._memory)
        return staging.stages(host, self._settings, self._memory, now, found)[0]

    def _host(self, now: float) -> HostFacts:
        coming = UpdateStatus("UPDATE_STATUS_UPDATE_AVAILABLE", NEXT, 0.0)
        return facts.host(facts.driver(boot_id=self._boot_id), next=NextFacts(update=coming), uptime=now)


class Note:
    """One request while it is under way."""

    def __init__(self, outcome: Outcome, clock: Clock) -> None:
        self._outcome = outcome
        self._at = clock.now()
        self.missing = False

    def __enter__(self) -> Note:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # list.append is atomic, and nobody reads before all have ended.
        (self._outcome.failed if kind else self._outcome.answered).append(self._at)
        if self.missing and not kind:
            self._outcome.missing.append(self._at)


# ---------------------------------------------------------------------------------------------------
# One fleet in one scenario


def crowd(count: int, seed: int, settings: Settings) -> list[Node]:
    """So many nodes; what is drawn for each is all that tells it from the others."""
    drawn = random.Random(seed)  # noqa: S311 - nothing is secret here, and it must come out the same again
    return [Node(str(uuid.UUID(int=drawn.getrandbits(128), version=4)), settings) for _ in range(count)]


def turns(nodes: Sequence[Node]) -> list[float]:
    """When each node asks first, with the clock at the moment at which all hear of the update."""
    return [node.look(0.0) for node in nodes]


def play(scenario: Scenario, nodes: Sequence[Node], registry: Shelf) -> Outcome:
    """Let a fleet live through a scenario until every node has the image."""
    # All decide before the clock starts: what a thousand looks cost on this machine is no part of it.
    waiting = turns(nodes)
    prepare(scenario, registry)
    logged, deadline = len(registry.requests()), time.monotonic() + _LIMIT
    outcome, clock = Outcome(), Clock(scenario.factor)
    happening = happenings(scenario, registry, outcome, clock)

    def turn(number: int) -> float | None:
        """When this node asks again; None where it has the image."""
        node, began = nodes[number], clock.now()
        # As the daemon does: what was due is decided once more when its time has come.
        if early := node.look(began):
            return began + early
        try:
            node.fetch(lambda: Note(outcome, clock))
        except Failure as failure:
            now = clock.now()
            node.missed(failure, now)
            return now + node.look(now)
        now = clock.now()
        outcome.done.append(now)
        outcome.waits.append(clock.real(now - began))
        return None

    def end(number: int, future: Future[float | None]) -> None:
        ended.put((number, future))

    # What happens to the registry has the numbers below zero.
    due = [(seconds, number) for number, seconds in enumerate(waiting)]
    due += [(seconds, -1 - place) for place, (seconds, _) in enumerate(happening)]
    left, ended = len(due), queue.SimpleQueue[tuple[int, "Future[float | None]"]]()
    heapq.heapify(due)
    with ThreadPoolExecutor(max_workers=left) as pool:
        while left:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{scenario.name}: {len(outcome.done)} of {len(nodes)} nodes are served")
            while due and due[0][0] <= clock.now():
                seconds, number = heapq.heappop(due)
                outcome.late.append(clock.real(clock.now() - seconds))
                future = pool.submit(turn, number) if number >= 0 else pool.submit(happening[-1 - number][1])
                future.add_done_callback(partial(end, number))
            pause = clock.real(due[0][0] - clock.now()) if due else 1.0
            try:
                number, future = ended.get(timeout=min(1.0, max(0.0, pause)))
            except queue.Empty:
                continue
            again = future.result()
            if again is None:
                left -= 1
            else:
                heapq.heappush(due, (again, number))
    outcome.logged = len(registry.requests()) - logged
    return outcome


def rehearse(scenario: Scenario, nodes: Sequence[Node]) -> Outcome:
    """The same in no time with a registry that answers at once: what is decided, without this machine."""
    gone, back = scenario.down or (0.0, 0.0)
    outcome = Outcome(offered=max(scenario.published, back))
    due = [(seconds, number) for number, seconds in enumerate(turns(nodes))]
    heapq.heapify(due)
    while due:
        now, number = heapq.heappop(due)
        node = nodes[number]
        if early := node.look(now):
            heapq.heappush(due, (now + early + _TICK, number))
            continue
        if gone <= now < back:
            outcome.failed.append(now)
            node.missed(refusals.failure(Code.REGISTRY_UNREACHABLE, node.reference), now)
        elif now < scenario.published:
            outcome.answered += [now] * MISSING
            outcome.missing += [now] * MISSING
            node.missed(refusals.failure(Code.IMAGE_MISSING, node.reference), now)
        else:
            outcome.answered += [now] * THERE
            outcome.done.append(now)
            continue
        heapq.heappush(due, (now + node.look(now) + _TICK, number))
    return outcome


def prepare(scenario: Scenario, registry: Shelf) -> None:
    """A registry that has just begun, with the image where it is there from the start."""
    registry.forget()
    if not scenario.published:
        publish(registry)


def happenings(
    scenario: Scenario, registry: Shelf, outcome: Outcome, clock: Clock
) -> list[tuple[float, Callable[[], None]]]:
    """What else is to come, and when."""

    def appear() -> None:
        publish(registry)
        outcome.offered = clock.now()

    def come_back() -> None:
        registry.start()
        outcome.offered = clock.now()

    coming: list[tuple[float, Callable[[], None]]] = []
    if scenario.published:
        coming.append((scenario.published, appear))
    if scenario.down:
        coming += [(scenario.down[0], registry.stop), (scenario.down[1], come_back)]
    return coming


def publish(registry: Shelf) -> None:
    """Push the image that the fleet waits for."""
    repository = Repository(f"{registry.address}/{PATH}", limits=LIMITS)
    try:
        config = repository.put_blob(b"{}", "application/vnd.oci.image.config.v1+json")
        layers = tuple(
            repository.put_blob(random.Random(number).randbytes(LAYER_BYTES), "application/octet-stream")  # noqa: S311
            for number in range(LAYERS)
        )
        repository.put_manifest(distribution.image(config, layers), f"{NEXT}-{facts.DRIVER}")
    finally:
        repository.close()
