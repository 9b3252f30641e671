# SPDX-License-Identifier: Apache-2.0
"""The metrics: the document and a few counters in Prometheus' text exposition format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.model import Phase
from nvidiad.nouns.steps import step_name
from nvidiad.nouns.value import Value, replace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nvidiad.nouns.plan import Report

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class StepCount(Value):
    """How often a kind of step was taken, how often it failed, and how long it took in all."""

    taken: int = 0
    failed: int = 0
    seconds: float = 0.0


class Counters(Value):
    """What has happened since the daemon started; a restart sets them to zero, as Prometheus expects."""

    looks: int = 0
    pulled_bytes: int = 0
    steps: tuple[tuple[str, StepCount], ...] = ()
    """By name of the step, sorted."""


class Process(Value):
    """What nvidiad's own process holds."""

    resident: int
    """Bytes of memory."""
    descriptors: int
    threads: int


def looked(counters: Counters) -> Counters:
    """One look more."""
    return replace(counters, looks=counters.looks + 1)


def pulled(counters: Counters, count: int) -> Counters:
    """So many bytes of images more."""
    return replace(counters, pulled_bytes=counters.pulled_bytes + count)


def acted(counters: Counters, report: Report) -> Counters:
    """The steps of one report more."""
    steps = dict(counters.steps)
    for result in report.results:
        name = step_name(result.step)
        count = steps.get(name, StepCount())
        failed = count.failed + (result.problem is not None)
        steps[name] = StepCount(count.taken + 1, failed, count.seconds + result.seconds)
    return replace(counters, steps=tuple(sorted(steps.items())))


# ---------------------------------------------------------------------------------------------------
# A family is its name, type and help, and the samples: labels and value.

Sample = tuple["Mapping[str, object]", float]
Family = tuple[str, str, str, "list[Sample]"]


def exposition(document: Mapping[str, object], counters: Counters, process: Process | None = None) -> str:
    """The whole page. A family without samples is left out: no value is not zero."""
    lines: list[str] = []
    families = (*_states(document), *_events(document, counters), *_itself(process))
    for name, kind, help_text, samples in families:
        if not samples:
            continue
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{_labels(labels)} {_value(value)}" for labels, value in samples]
    return "\n".join([*lines, ""])


def _states(document: Mapping[str, object]) -> Iterator[Family]:
    driver, release, kernel = (_object(document.get(key)) for key in ("driver", "os", "kernel"))
    exposure, problem = _object(document.get("exposure")), _object(document.get("problem"))
    phase = document.get("phase")
    host = {"os": release.get("id"), "os_version": release.get("version"), "kernel": kernel.get("release")}
    info = {"version": document.get("version")} | host
    yield "nvidiad_info", "gauge", "The nvidiad that runs and the host it runs on.", [(info, 1)]
    yield "nvidiad_ready", "gauge", "Whether the wanted driver is in force.", [({}, phase == Phase.READY)]
    yield (
        "nvidiad_phase",
        "gauge",
        "The state of the host: 1 for the phase it is in, 0 for the others.",
        [({"phase": name}, phase == name) for name in Phase],
    )
    yield (
        "nvidiad_phase_since_timestamp_seconds",
        "gauge",
        "When the phase was entered, where that is known.",
        _some(document.get("since")),
    )
    gpus, beside = _objects(document.get("gpus")), _object(document.get("surroundings"))
    yield "nvidiad_gpus", "gauge", "NVIDIA GPUs on the PCI bus.", [({}, len(gpus))]
    asked = _object(beside.get("health")).get("asked") is True
    yield (
        "nvidiad_gpu_in_order",
        "gauge",
        "Whether NVML had nothing against a GPU when it was asked, after the driver came up.",
        [
            ({"address": gpu.get("address"), "uuid": gpu.get("uuid")}, not gpu.get("problem"))
            for gpu in gpus
            if asked
        ],
    )
    yield (
        "nvidiad_cdi_written",
        "gauge",
        "Whether the CDI specification of the driver in force is there.",
        [({}, _object(beside.get("cdi")).get("written") is True)] if beside else [],
    )
    labels = {key: driver.get(key) for key in ("wanted", "loaded", "product")}
    yield (
        "nvidiad_driver_info",
        "gauge",
        "The driver that is wanted and the one that is loaded.",
        [(labels | {"exposure": exposure.get("way")}, 1)] if driver else [],
    )
    trees = _objects(driver.get("installed"))
    yield "nvidiad_trees", "gauge", "Complete driver builds on disk.", [({}, len(trees))] if driver else []
    yield (
        "nvidiad_staged_trees",
        "gauge",
        "Driver builds on disk for the OS version that the host boots next.",
        [({}, sum(tree.get("staged") is True for tree in trees))] if driver else [],
    )
    stages = _objects(document.get("stages"))
    yield (
        "nvidiad_stage",
        "gauge",
        "How far the driver of the OS version that comes next is; nothing where none comes.",
        [({"driver": s.get("driver"), "os": s.get("version"), "state": s.get("state")}, 1) for s in stages],
    )
    reboot = _object(document.get("reboot"))
    yield (
        "nvidiad_reboot_may_go",
        "gauge",
        "Whether a reboot may go now.",
        [({}, reboot.get("go") is True)] if reboot else [],
    )
    yield (
        "nvidiad_reboot_held",
        "gauge",
        "Whether logind has a delay lock of nvidiad.",
        [({}, reboot.get("held") is True)] if reboot else [],
    )
    yield (
        "nvidiad_reboot_until_timestamp_seconds",
        "gauge",
        "At the latest then a reboot that is held goes.",
        _some(reboot.get("until")),
    )
    cuda = _object(document.get("cuda"))
    in_force = any(t.get("wanted") is t.get("current") is True for t in _objects(cuda.get("installed")))
    yield (
        "nvidiad_cuda_ready",
        "gauge",
        "Whether the CUDA that is configured is the current one.",
        [({"wanted": cuda.get("wanted")}, in_force)] if cuda else [],
    )
    yield (
        "nvidiad_problem",
        "gauge",
        "Why the host is not ready; nothing when there is no problem.",
        [({"code": problem.get("code")}, 1)] if problem else [],
    )
    yield (
        "nvidiad_unit_active",
        "gauge",
        "Whether systemd has the unit as active.",
        # A gated unit that this host has not got is not down.
        [
            ({"unit": unit.get("name")}, unit.get("active") == "active")
            for unit in _objects(document.get("units"))
            if unit.get("load") != "not-found"
        ],
    )


def _events(document: Mapping[str, object], counters: Counters) -> Iterator[Family]:
    progress = _object(document.get("progress"))
    attempts = [_number(attempt.get("count")) or 0 for attempt in _objects(document.get("attempts"))]
    yield (
        "nvidiad_last_look_timestamp_seconds",
        "gauge",
        "When the host was last looked at.",
        _some(document.get("looked")),
    )
    yield (
        "nvidiad_next_try_timestamp_seconds",
        "gauge",
        "When what failed is tried again.",
        _some(document.get("next_try")),
    )
    yield (
        "nvidiad_failed_attempts",
        "gauge",
        "Failed attempts that are remembered, until they succeed.",
        [({}, sum(attempts))],
    )
    yield (
        "nvidiad_progress_bytes",
        "gauge",
        "What is done of the long step that is under way.",
        [({"step": progress.get("step")}, _number(progress.get("done")) or 0)] if progress else [],
    )
    yield (
        "nvidiad_progress_size_bytes",
        "gauge",
        "The whole of the long step that is under way, 0 where it is not known.",
        [({"step": progress.get("step")}, _number(progress.get("total")) or 0)] if progress else [],
    )
    yield "nvidiad_looks_total", "counter", "Looks at the host.", [({}, counters.looks)]
    yield "nvidiad_pulled_bytes_total", "counter", "Bytes of images fetched.", [({}, counters.pulled_bytes)]
    steps = counters.steps
    yield (
        "nvidiad_steps_total",
        "counter",
        "Steps taken.",
        [({"step": name}, count.taken) for name, count in steps],
    )
    yield (
        "nvidiad_step_failures_total",
        "counter",
        "Steps that failed.",
        [({"step": name}, count.failed) for name, count in steps],
    )
    yield (
        "nvidiad_step_seconds_total",
        "counter",
        "Time spent in steps.",
        [({"step": name}, count.seconds) for name, count in steps],
    )


def _itself(process: Process | None) -> Iterator[Family]:
    """By the names that every exporter has for them."""
    if process is None:
        return
    resident, help_text = float(process.resident), "Resident memory of nvidiad."
    yield "process_resident_memory_bytes", "gauge", help_text, [({}, resident)]
    yield "process_open_fds", "gauge", "Open file descriptors of nvidiad.", [({}, process.descriptors)]
    yield "process_num_threads", "gauge", "Threads of nvidiad.", [({}, process.threads)]


def _some(value: object) -> list[Sample]:
    number = _number(value)
    return [] if number is None else [({}, number)]


def _labels(labels: Mapping[str, object]) -> str:
    pairs = [f'{key}="{_escape("" if value is None else str(value))}"' for key, value in labels.items()]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _value(value: float) -> str:
    # Whole numbers as such, so that a time is not told in exponents.
    return str(int(value)) if value == int(value) else repr(round(value, 6))


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[dict[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
