# SPDX-License-Identifier: Apache-2.0
"""(a) From the start of nvidia.service to the kubelet's release, in the VM bed, by different roads."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.report import Figure, Part
from tests.vm import product, registry, road, states
from tests.vm.disk import RELEASES
from tests.vm.kernels import kernels
from tests.vm.machine import Frozen, Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TITLE = "seconds from nvidia.service's start to the kubelet's release, tree on disk, VM bed"
ROADS = Path(__file__).parent / "roads"
THERE = "/run/bench"
TREE = f"/opt/nvidia/{road.DRIVER}/{RELEASES['A']}"
IMAGE = f"{registry.ADDRESS}/{road.REPOSITORY}:{RELEASES['A']}-{road.DRIVER}"
PYTHON = "/opt/nvidiad/bin/python3"
# Each of an exposure: what the host looks like before, what the floor does.
CASES = {
    "overlay": ("overlay", "later", "overlay"),
    "ldconfig": ("ldconfig", "first", "ldconfig"),
    "ldconfig, cache right": ("ldconfig", "later", "cached"),
}
FLOOR_FACTOR = 1.5
LOADED = """
for module in nvidia nvidia_uvm nvidia_modeset; do
  grep -q "^live" /sys/module/$module/initstate || exit 1
done
ldconfig -p | grep -q libcuda.so.1 || exit 2
"""
NODES = "ls /dev/nvidiactl /dev/nvidia0 /dev/nvidia-modeset /dev/nvidia-uvm /dev/nvidia-uvm-tools"


@dataclass(frozen=True)
class Road:
    """A way to bring the driver up: what nvidia.service runs, on which configuration, from which state."""

    name: str
    command: str
    exposure: str = "ldconfig"
    before: str = "first"
    proof: str = f"{LOADED}\n{NODES}"
    """What must succeed afterwards."""


@dataclass(frozen=True)
class Trip:
    """What taking a road cost once."""

    seconds: float
    """From the start of nvidia.service to the kubelet's, on the guest's clock."""
    work: float
    """Processor seconds of the emulator around that: what else this machine does is not in them."""


@dataclass
class Measured:
    """What one road cost: right after a resume (nothing translated yet), and again on the same machine."""

    first: list[Trip] = field(default_factory=list)
    again: list[Trip] = field(default_factory=list)


def roads() -> Iterator[Road]:
    """All roads of one round; every ratio is between roads of the same round."""
    for name, (exposure, before, floor) in CASES.items():
        yield Road(f"nvidiad, {name}", f"{road.NVIDIAD} activate", exposure, before)
        yield Road(f"floor, {name}", f"/bin/sh {THERE}/floor.sh {floor} {TREE}", exposure, before)
    # The stand-in nvidia-smi makes no nodes, which NVIDIA's does.
    yield Road("ancestor", f"/bin/sh {THERE}/ancestor.sh {IMAGE} {TREE}", proof=LOADED)
    yield Road("python3 -c pass", f"{PYTHON} -c pass", proof="true")
    yield Road("true", "/bin/true", proof="true")


def measure(rounds: int, again: int, say: Callable[[str], None]) -> Part:
    """Measure every road once a round, each in a fresh clone of one frozen host."""
    with tempfile.TemporaryDirectory(prefix="nvidiad-bench-", dir="/var/tmp") as made:
        folder = Path(made)
        frozen = prepare(folder)
        measured = {each.name: Measured() for each in roads()}
        parts: list[Mapping[str, float]] = []
        for number in range(rounds):
            for each in roads():
                with Machine(folder / "clone", frozen=frozen) as machine:
                    first, *rest = travel(machine.resume(), each, 1 + again)
                shutil.rmtree(folder / "clone")
                measured[each.name].first.append(first)
                measured[each.name].again += [middle(rest)] if rest else []
                say(f"(a) round {number + 1}/{rounds}: {each.name}: {shown([first, *rest])}")
            with Machine(folder / "clone", frozen=frozen) as machine:
                parts.append(breakdown(machine.resume()))
            shutil.rmtree(folder / "clone")
    return Part("a", TITLE, tuple(figures(measured)), tuple(explain(parts)))


def shown(trips: list[Trip]) -> str:
    return ", then ".join(f"{each.seconds:.2f} s (work {each.work:.2f} s)" for each in trips)


def middle(trips: list[Trip]) -> Trip:
    return Trip(
        statistics.median(each.seconds for each in trips), statistics.median(each.work for each in trips)
    )


def prepare(folder: Path) -> Frozen:
    """A host in slot A with nvidiad, the tree on disk, the image in the engine, and no driver in force."""
    with Machine(folder / "work", frozen=states.with_docker()) as machine:
        machine.resume()
        product.install(machine)
        road.configure(machine)
        tree = road.payload(folder / "payload", "A", kernels().a)
        road.publish(machine, [tree])
        machine.run(f"docker pull -q {IMAGE}", 180, check=True)
        road.install(machine, tree)
        machine.run(f"mkdir -p {THERE} /etc/systemd/system/nvidia.service.d", check=True)
        for path in sorted(ROADS.iterdir()):
            machine.put(path.read_bytes(), f"{THERE}/{path.name}")
        machine.run(f"ln -sfn {TREE} /opt/nvidia/current", check=True)
        # Each road once, so that none waits for the disk; and the driver's modules come and go once.
        for each in roads():
            travel(machine, each, 1)
        machine.run(f"rm -rf /tmp/*; sh {THERE}/reset.sh first", check=True)
        return machine.freeze(folder / "frozen")


def travel(machine: Machine, each: Road, times: int) -> list[Trip]:
    """Take a road so many times."""
    set_out(machine, each)
    taken = []
    for _ in range(times):
        taken.append(arrive(machine, each))
        machine.run("systemctl stop kubelet nvidia", check=True)
    return taken


def arrive(machine: Machine, each: Road) -> Trip:
    """Start the kubelet with nothing in force; the seconds are those that the guest's systemd noted."""
    machine.run(f"sh {THERE}/reset.sh {each.before}", check=True)
    worked = emulated(machine)
    machine.run("systemctl start kubelet", 300, check=True)
    worked = emulated(machine) - worked
    machine.run(each.proof, check=True)
    start = moment(machine, "nvidia.service", "InactiveExitTimestampMonotonic")
    end = moment(machine, "kubelet.service", "ActiveEnterTimestampMonotonic")
    return Trip((end - start) / 1e6, worked)


def emulated(machine: Machine) -> float:
    """The processor seconds that the machine's QEMU has used."""
    if machine._process is None:
        raise RuntimeError("the machine is off")
    stat = Path(f"/proc/{machine._process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def moment(machine: Machine, unit: str, name: str) -> int:
    """A time of a unit, in microseconds of the guest's monotonic clock."""
    return int(machine.output(f"systemctl show -P {name} {unit}"))


def set_out(machine: Machine, each: Road) -> None:
    """Let nvidia.service go this road, and its stop do nothing: reset.sh is the same for all."""
    more = f'[install]\nexposure = "{each.exposure}"\n'
    machine.put(more.encode(), "/etc/nvidiad/conf.d/50-test.toml")
    text = f"[Service]\nExecStart=\nExecStart={each.command}\nExecStop=\n"
    machine.put(text.encode(), "/etc/systemd/system/nvidia.service.d/50-bench.conf")
    machine.run("systemctl daemon-reload", check=True)


def breakdown(machine: Machine) -> dict[str, float]:
    """Where nvidiad's time goes: seconds of each part of one activation with ldconfig from a first state."""
    traced = Road("traced", f"{PYTHON} {THERE}/traced.py")
    set_out(machine, traced)
    arrive(machine, traced)
    unit, main, ended = (
        moment(machine, "nvidia.service", name)
        for name in (
            "InactiveExitTimestampMonotonic",
            "ExecMainStartTimestampMonotonic",
            "ExecMainExitTimestampMonotonic",
        )
    )
    kubelet = moment(machine, "kubelet.service", "ActiveEnterTimestampMonotonic")
    entries = [json.loads(line) for line in machine.output(journal_command()).splitlines()]
    told = next(str(entry["MESSAGE"]) for entry in entries if str(entry["MESSAGE"]).startswith("bench "))
    at = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", told)}
    spans = {
        "systemd starts it": (unit, main),
        "interpreter": (main, at["began"]),
        "imports": (at["began"], at["imported"]),
        "configuration": (at["imported"], at["look"]),
        "look": (at["look"], at["looked"]),
        "plan": (at["looked"], at["execute"]),
        "steps": (at["execute"], at["executed"]),
        "end": (at["executed"], ended),
        "systemd releases the kubelet": (ended, kubelet),
    }
    parts = {name: (end - start) / 1e6 for name, (start, end) in spans.items()}
    for entry in entries:
        if "NVIDIAD_SECONDS" in entry:
            what = re.sub(r"^done: ", "", str(entry["MESSAGE"]))
            parts[f"  {what}"] = float(entry["NVIDIAD_SECONDS"])
    return parts


def journal_command() -> str:
    return shlex.join(["journalctl", "-b", "-o", "json", "--no-pager", "-u", "nvidia.service", "-n", "20"])


def figures(measured: Mapping[str, Measured]) -> Iterator[Figure]:
    """Roads beside their floors, by the guest's clock and by the emulator's work."""
    for when, mark in (("first", ""), ("again", ", again")):
        trips: dict[str, list[Trip]] = {name: getattr(each, when) for name, each in measured.items()}
        if not all(trips.values()):
            continue
        seconds = {name: tuple(each.seconds for each in taken) for name, taken in trips.items()}
        yield from compare(seconds, less(seconds["python3 -c pass"], seconds["true"]), mark)
        # All that goes with the start of any unit, the question how far it is included, is in `true` too.
        idle = tuple(each.work for each in trips["true"])
        work = {
            name: less(tuple(each.work for each in taken), idle)
            for name, taken in trips.items()
            if name != "true"
        }
        yield from compare(work, work["python3 -c pass"], f", work{mark}")


def less(ones: Sequence[float], others: Sequence[float]) -> tuple[float, ...]:
    # A clock's tick apart: nothing is divided by zero.
    return tuple(max(0.01, one - other) for one, other in zip(ones, others, strict=True))


def compare(taken: Mapping[str, tuple[float, ...]], start: tuple[float, ...], mark: str) -> Iterator[Figure]:
    """The figures of one way to measure; `start` is what starting Python alone took."""
    yield Figure(f"Python's start{mark}", "s", start)
    for name in CASES:
        floor, ours = taken[f"floor, {name}"], taken[f"nvidiad, {name}"]
        allowed = tuple(FLOOR_FACTOR * f + s for f, s in zip(floor, start, strict=True))
        yield Figure(f"floor, {name}{mark}", "s", floor)
        yield Figure(f"nvidiad, {name}{mark}", "s", ours, floor, allowed)
    ours, ancestor = taken["nvidiad, overlay"], taken["ancestor"]
    yield Figure(f"ancestor, overlay{mark}", "s", ancestor, taken["floor, overlay"])
    yield Figure(f"nvidiad against the ancestor, overlay{mark}", "s", ours, ancestor)


def explain(parts: list[Mapping[str, float]]) -> Iterator[str]:
    """The breakdown, in the order of time."""
    yield "where nvidiad's seconds go (ldconfig, first after a resume, traced in clones of their own):"
    for name in parts[0]:
        values = [part[name] for part in parts if name in part]
        yield f"  {statistics.median(values):6.3f}  {name}"
