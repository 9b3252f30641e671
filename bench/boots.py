# SPDX-License-Identifier: Apache-2.0
"""(d) From the kernel's start to the kubelet's, VM bed: the first boot after an update, and a later one."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.activation import emulated, journal_command
from bench.report import Figure, Part
from tests.vm import demo, product, road, states, updater
from tests.vm.kernels import kernels
from tests.vm.machine import Frozen, Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TITLE = "seconds from the kernel's start to the kubelet's, without a network, VM bed"
STAGED, THERE = "staged by an update", "always there"
FACTOR = 1.2


@dataclass(frozen=True)
class Boot:
    """What one boot took."""

    seconds: float
    """From the kernel's start to the kubelet's, on the guest's clock."""
    activation: float
    """Of that, from the start of nvidia.service on."""
    work: float
    """Processor seconds of the emulator until the kubelet was seen to run."""
    steps: Mapping[str, float]
    """What each step of the activation took."""


def measure(rounds: int, say: Callable[[str], None]) -> Part:
    """Boot a clone of each of the two hosts once a round, in turn."""
    with tempfile.TemporaryDirectory(prefix="nvidiad-bench-", dir="/var/tmp") as made:
        folder = Path(made)
        hosts = prepare(folder)
        taken: dict[str, list[Boot]] = {name: [] for name in hosts}
        for number in range(rounds):
            # Whoever is first in a round finds what this machine has just done before.
            for name in sorted(hosts, reverse=number % 2 == 1):
                with Machine(folder / "clone", frozen=hosts[name]) as machine:
                    boot = arrive(machine)
                shutil.rmtree(folder / "clone")
                taken[name].append(boot)
                say(f"(d) round {number + 1}/{rounds}: {name}: {boot.seconds:.2f} s, work {boot.work:.2f} s")
    return Part("d", TITLE, tuple(figures(taken)), tuple(explain(taken)))


def prepare(folder: Path) -> Mapping[str, Frozen]:
    """Two hosts that are off and boot slot B: one for the first time after its update, one once more."""
    with Machine(folder / "work", frozen=states.with_docker()) as machine:
        machine.resume()
        product.install(machine)
        road.bring_into_force(machine, road.payload(folder / "payload", "A", kernels().a))
        updater.install(machine)
        machine.put(b"[stage]\nspread = 0\n", "/etc/nvidiad/conf.d/50-ahead.toml")
        machine.run("systemctl reload nvidiad", check=True)
        road.publish(machine, [road.payload(folder / "payload", "B", kernels().b)])
        updater.update(machine)
        road.wait_stage(machine, "proven")
        updater.go_offline(machine)
        hosts = {STAGED: off(machine, folder / "staged")}
        machine.boot("B")
        road.wait_phase(machine, "ready")
        demo.check(machine, "B")
        return hosts | {THERE: off(machine, folder / "there")}


def off(machine: Machine, folder: Path) -> Frozen:
    """Shut the machine down for a reboot, and keep its disk."""
    machine.start(updater.REBOOT)
    machine.wait_end()
    folder.mkdir()
    shutil.copy(machine.overlay, folder / "disk.qcow2")
    return Frozen(folder)


def arrive(machine: Machine) -> Boot:
    """Boot, and wait for the kubelet."""
    machine.boot("B", target="kubelet.service")
    worked = emulated(machine)
    road.wait_phase(machine, "ready")
    demo.check(machine, "B")
    kubelet = machine.active_since("kubelet")
    return Boot(kubelet, kubelet - machine.started("nvidia"), worked, steps(machine))


def steps(machine: Machine) -> dict[str, float]:
    """The seconds of each step of the activation, as it told the journal."""
    entries = [json.loads(line) for line in machine.output(journal_command()).splitlines()]
    return {
        re.sub(r"^done: ", "", str(entry["MESSAGE"])): float(entry["NVIDIAD_SECONDS"])
        for entry in entries
        if "NVIDIAD_SECONDS" in entry
    }


def figures(taken: Mapping[str, Sequence[Boot]]) -> Iterator[Figure]:
    """The staged tree beside the one that was always there."""
    for mark, key, factor in (
        ("", "seconds", FACTOR),
        (", work", "work", FACTOR),
        # Where the difference is; there is no target for it alone.
        (", from nvidia.service's start", "activation", None),
    ):
        there, staged = (tuple(getattr(boot, key) for boot in taken[name]) for name in (THERE, STAGED))
        yield Figure(f"{THERE}{mark}", "s", there)
        allowed = tuple(factor * each for each in there) if factor else ()
        yield Figure(f"{STAGED}{mark}", "s", staged, there, allowed)


def explain(taken: Mapping[str, Sequence[Boot]]) -> Iterator[str]:
    """The steps of the activations of both hosts, in the order of time."""
    for name, boots in taken.items():
        yield f"the steps of activation, {name}:"
        for step in boots[0].steps:
            seconds = statistics.median(boot.steps[step] for boot in boots if step in boot.steps)
            yield f"  {seconds:6.3f}  {step}"
