# SPDX-License-Identifier: Apache-2.0
"""The document: a status as one JSON document, described field by field in docs/status.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.steps import step_name
from nvidiad.thought.surroundings import heard

if TYPE_CHECKING:
    from nvidiad.nouns.facts import CudaFacts
    from nvidiad.nouns.model import Gpu, Memory, Problem, Progress, Tree, UnitState
    from nvidiad.nouns.plan import CudaStatus, Plan, Report, Status
    from nvidiad.nouns.steps import Step
    from nvidiad.nouns.surroundings import Surroundings
    from nvidiad.nouns.upcoming import Stage

SCHEMA = 1

Document = dict[str, object]


def document(
    status: Status | None,
    progress: Progress | None = None,
    *,
    version: str,
    memory: Memory | None = None,
) -> Document:
    """What docs/status.md describes; without a status the first look has not come to its end."""
    made: Document = {
        "schema": SCHEMA,
        "version": version,
        "phase": "converging",
        "summary": "the first look at this host is under way",
        "usable": False,
        "since": None,
        "looked": None,
        "next_try": None,
        "problem": None,
        "os": None,
        "kernel": None,
        "gpus": [],
        "driver": None,
        "cuda": None,
        "surroundings": None,
        "exposure": None,
        "engine": None,
        "units": [],
        "update": None,
        "stages": [],
        "reboot": None,
        "plan": None,
        "report": None,
        "progress": _progress(progress),
        "attempts": [],
        "warnings": [],
    }
    if memory is not None:
        made["attempts"] = [
            {"what": a.reference, "count": a.count, "last": a.last, "problem": _problem(a.problem)}
            for a in memory.attempts
        ]
    return made if status is None else made | _observed(status, memory)


def _observed(status: Status, memory: Memory | None) -> Document:
    facts = status.facts
    host = facts.driver
    update = facts.next.update
    return {
        "phase": str(status.phase),
        "summary": status.summary,
        "usable": status.usable,
        "since": status.since,
        "looked": status.looked,
        "next_try": status.next_try,
        "problem": _problem(status.problem),
        "os": {"id": host.release.id, "version": host.release.version, "name": host.release.name},
        "kernel": {"release": host.kernel, "lockdown": host.lockdown, "boot_id": host.boot_id},
        "gpus": [_gpu(gpu, facts.surroundings) for gpu in host.gpus],
        "driver": _driver(status, memory),
        "cuda": status.cuda and _cuda(status.cuda, facts.cuda),
        "surroundings": _surroundings(facts.surroundings),
        "exposure": {
            "way": str(status.exposure),
            "reason": status.exposure_reason,
            "missing": list(host.linker.missing),
            "first": [{"name": f.name, "path": f.path, "version": f.version} for f in host.linker.first],
        },
        "engine": facts.engine and {"kind": str(facts.engine.kind), "reason": facts.engine.reason},
        "units": [_unit(unit, gated=unit.name in facts.gates) for unit in facts.units],
        "update": update
        and {"operation": update.operation, "version": update.version, "progress": update.progress},
        "stages": [_stage(stage) for stage in status.plan.stages] if status.plan else [],
        "reboot": status.plan and _verdict(status),
        "plan": _plan(status.plan),
        "report": _report(status.report),
        "warnings": list(status.warnings),
    }


def _driver(status: Status, memory: Memory | None) -> Document:
    host = status.facts.driver
    core = next((module for module in host.loaded if module.name == "nvidia"), None)
    return {
        "wanted": status.wanted.driver,
        "product": status.wanted.product,
        "image": status.reference,
        "loaded": core.version if core else None,
        "modules": [
            {"name": m.name, "version": m.version, "references": m.references, "holders": list(m.holders)}
            for m in host.loaded
        ],
        "current": host.current,
        "installed": [_tree(tree, status, core.version if core else None) for tree in host.trees],
        "last_good": memory.last_good or None if memory else None,
        "nodes_missing": list(host.nodes_missing),
        "holders": [{"pid": h.pid, "command": h.command, "unit": h.unit} for h in status.facts.holders],
        "extensions": list(host.extensions),
    }


def _gpu(gpu: Gpu, around: Surroundings) -> Document:
    known = (
        next((g for g in around.inventory.gpus if g.address == gpu.address), None)
        if around.inventory
        else None
    )
    state = next((g for g in heard(around).gpus if g.address == gpu.address), None)
    return {
        "address": gpu.address,
        "device": gpu.device,
        "bound": gpu.bound,
        "model": (known and known.model) or (state and state.model) or None,
        "uuid": (known and known.uuid) or (state and state.uuid) or None,
        "problem": _problem(state.problem) if state else None,
    }


def _surroundings(around: Surroundings) -> Document | None:
    """What stands beside the driver; nothing where none is in force."""
    if around.inventory is None:
        return None
    nvml = heard(around)
    return {
        "cdi": {"written": around.ours, "problem": _problem(around.cdi.problem)},
        "fabric": {"problem": _problem(around.fabric.problem)},
        "health": {"asked": bool(nvml.of), "problem": _problem(nvml.problem)},
    }


def _cuda(cuda: CudaStatus, facts: CudaFacts) -> Document:
    return {
        "wanted": cuda.wanted.driver,
        "image": cuda.reference,
        "current": facts.current,
        "installed": [
            {
                "path": tree.path,
                "version": tree.build.driver,
                "current": tree.path == facts.current,
                "wanted": tree.build == cuda.wanted,
            }
            for tree in facts.trees
        ],
        "problem": _problem(cuda.problem),
    }


def _tree(tree: Tree, status: Status, loaded: str | None) -> Document:
    host = status.facts.driver
    build = tree.build
    staged = {stage.tree for stage in status.plan.stages} if status.plan else set()
    return {
        "path": tree.path,
        "driver": build.driver,
        "os": build.os_version,
        "kernel": build.kernel,
        "product": build.product,
        "flavour": str(tree.flavour),
        "current": tree.path == host.current,
        "wanted": build == status.wanted,
        "staged": tree.path in staged,
        "loaded": build.driver == loaded and build.kernel == host.kernel,
    }


def _unit(unit: UnitState, *, gated: bool) -> Document:
    return {
        "name": unit.name,
        "load": unit.load,
        "active": unit.active,
        "sub": unit.sub,
        "result": unit.result,
        "since": unit.active_since / 1e6 if unit.active_since else None,
        "wanted": unit.wanted,
        "gated": gated,
    }


def _problem(problem: Problem | None) -> Document | None:
    if problem is None:
        return None
    return {
        "code": str(problem.code),
        "sentence": problem.sentence,
        "remedy": problem.remedy,
        "retry": problem.retry,
    }


def _stage(stage: Stage) -> Document:
    return {
        "state": str(stage.state),
        "version": stage.next.version,
        "kernel": stage.next.kernel,
        "source": stage.next.source,
        "staged": stage.next.staged,
        "driver": stage.build.driver,
        "image": stage.reference,
        "tree": stage.tree or None,
        "problem": _problem(stage.problem),
        "due": stage.due,
    }


def _verdict(status: Status) -> Document | None:
    if status.plan is None:
        return None
    said, logind = status.plan.verdict, status.facts.reboot
    held = logind is not None and logind.held
    return {"go": said.go, "reason": said.reason, "until": said.until, "held": held}


def _step(step: Step) -> Document:
    return {"step": step_name(step), "description": step.describe()}


def _plan(plan: Plan | None) -> Document | None:
    if plan is None:
        return None
    return {
        "reason": plan.reason,
        "steps": [_step(step) for step in plan.steps],
        "problem": _problem(plan.problem),
        "wait": plan.wait,
    }


def _report(report: Report | None) -> Document | None:
    if report is None:
        return None
    return {
        "reason": report.plan.reason,
        "steps": [
            _step(r.step) | {"seconds": round(r.seconds, 3), "problem": _problem(r.problem)}
            for r in report.results
        ],
        "problem": _problem(report.problem),
    }


def _progress(progress: Progress | None) -> Document | None:
    if progress is None:
        return None
    return {
        "step": progress.step,
        "detail": progress.detail,
        "done": progress.done,
        "total": progress.total,
    }
