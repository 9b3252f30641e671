# SPDX-License-Identifier: Apache-2.0
"""(e) A fleet that hears of an update at one moment, against one real registry: request rate and spread."""

from __future__ import annotations

import math
import resource
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench.crowd import PATH, THERE, Scenario, crowd, play, rehearse
from bench.report import Figure, Part
from bench.tally import by_parts, mean, most, reached, within
from nvidiad.nouns.value import replace
from nvidiad.thought.settings import Driver, Image, Settings, Stage
from tests.images.shelf import shelf
from tests.unit import facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.crowd import Outcome

TITLE = "nodes that hear of an update at one moment, one docker-registry"
# What a spread fleet may ask in its busiest second, as a multiple of what an even one would ask.
FACTOR = 3.0
GRACE = 30.0
LATE, DOWN = 1200.0, (60.0, 360.0)
HERD, SPREAD, MISSING, AWAY = "no spread", "spread", "image late", "registry down"
# Fleets whose decisions are played through without a registry.
_REHEARSED = {HERD: 1, SPREAD: 100, MISSING: 5, AWAY: 5}


def measure(count: int, fleets: int, factor: float, say: Callable[[str], None]) -> Part:
    """Two scenarios with as many fleets as asked for, in turn; the slow ones with the first fleet only."""
    # Every node has a connection of its own, and both ends of it are here.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    played: dict[str, list[Outcome]] = {}
    notes: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="nvidiad-fleet-", dir="/var/tmp") as made,
        shelf(Path(made), log={"level": "error"}) as registry,
    ):
        for seed in range(1, fleets + 1):
            for scenario in scenarios(registry.address, factor):
                if seed > 1 and (scenario.published or scenario.down):
                    continue
                say(f"(e) fleet {seed}/{fleets} of {count}: {scenario.name}")
                outcome = play(scenario, crowd(count, seed, scenario.settings), registry)
                played.setdefault(scenario.name, []).append(outcome)
                notes += explain(scenario, seed, outcome)
    rows = (*figures("planned", plan(count), count), *figures("measured", played, count))
    return Part("e", f"{count} {TITLE}", rows, tuple(notes))


def scenarios(address: str, factor: float) -> tuple[Scenario, ...]:
    """What is played: without the spread there is nothing to wait for, so that herd runs in real time."""
    wanted = settings(address)
    at_once = replace(wanted, stage=replace(wanted.stage, spread=0.0))
    return (
        Scenario(HERD, at_once, 1.0),
        Scenario(SPREAD, wanted, factor),
        Scenario(MISSING, wanted, factor, published=LATE),
        Scenario(AWAY, wanted, factor, down=DOWN),
    )


def settings(address: str) -> Settings:
    """What every node is configured with: where the images are, and nothing else."""
    return Settings(driver=Driver(version=facts.DRIVER), image=Image(repository=f"{address}/{PATH}"))


def plan(count: int) -> dict[str, list[Outcome]]:
    """What fleets decide where every answer comes at once: the spread itself, without a machine."""
    return {
        scenario.name: [
            rehearse(scenario, crowd(count, seed, scenario.settings))
            for seed in range(1, _REHEARSED[scenario.name] + 1)
        ]
        for scenario in scenarios("r.test", 1.0)
    }


def figures(kind: str, fleets: Mapping[str, Sequence[Outcome]], count: int) -> Iterator[Figure]:
    """What came out, in the fleets' seconds; the ratio is to requests that are spread evenly."""
    spread, retry = Stage().spread, Settings().daemon.retry_maximum
    even = THERE * count / spread
    limits = {SPREAD: spread + GRACE, MISSING: retry + GRACE}
    for name, outcomes in fleets.items():
        busiest = busy(outcomes)
        allowed = (FACTOR * even,) if name == SPREAD else ()
        yield Figure(f"{kind}: {name}: requests in the busiest second", "1/s", busiest, (even,), allowed)
        if name == SPREAD:
            none = busy(fleets[HERD])[: len(busiest)]
            yield Figure(f"{kind}: {name}: the same, against no spread", "1/s", busiest[: len(none)], none)
        if name == MISSING:
            rates = tuple(mean(outcome.missing, LATE / 2, LATE) for outcome in outcomes)
            yield Figure(
                f"{kind}: {name}: requests for it, {LATE / 2:g} to {LATE:g} s", "1/s", rates, (even,)
            )
        for share in (0.5, 0.99, 1.0):
            moments = tuple(reached(each.done, count, share) - each.offered for each in outcomes)
            limit = (limits[name],) if share == 1 and name in limits else ()
            yield Figure(f"{kind}: {name}: {share:.0%} of the nodes have it", "s", moments, allowed=limit)
        failed = tuple(float(len(outcome.failed)) for outcome in outcomes)
        yield Figure(f"{kind}: {name}: requests without an answer", "", failed)


def busy(outcomes: Sequence[Outcome]) -> tuple[float, ...]:
    """Requests in the busiest second since the image can be had, of each fleet."""
    return tuple(float(most(within(each.answered, each.offered, math.inf))) for each in outcomes)


def explain(scenario: Scenario, seed: int, outcome: Outcome) -> Iterator[str]:
    """The spread of one fleet's requests, and what this machine did to it."""
    end = max(outcome.done)
    rates = " ".join(f"{rate:.3g}" for rate in by_parts(outcome.answered, end))
    yield (
        f"{scenario.name}, fleet {seed}, {scenario.factor:g} of its seconds in one of ours: "
        f"{len(outcome.answered)} requests, {len(outcome.missing)} of them for what is not there; "
        f"{outcome.logged} in the registry's log"
    )
    yield f"  a second, by tenths of {end:.0f} s: {rates}"
    yield (
        f"  in our seconds: a node's requests took {median(outcome.waits):.2g}, "
        f"{max(outcome.waits):.2g} at most, and began {max(outcome.late):.2g} late at most"
    )
