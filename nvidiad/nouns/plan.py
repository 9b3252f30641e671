# SPDX-License-Identifier: Apache-2.0
"""The plan: what to do and why, what came of it, and the status that a person is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.upcoming import Verdict
from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from nvidiad.nouns.facts import HostFacts
    from nvidiad.nouns.model import Build, Exposure, Phase, Problem
    from nvidiad.nouns.steps import Step
    from nvidiad.nouns.upcoming import Stage


class Plan(Value):
    """What to do and why; without steps and without a problem the host is as it should be."""

    reason: str
    steps: tuple[Step, ...] = ()
    problem: Problem | None = None
    wait: float | None = None
    """Seconds until a step that is due later may be tried; None when nothing waits."""
    look: float | None = None
    """Seconds until the next look though nothing waits; None where no event can be missed."""
    cuda_problem: Problem | None = None
    """Why the wanted CUDA is not current; it holds nothing up."""
    stages: tuple[Stage, ...] = ()
    """The drivers of the next OS, the configured one first; empty where nothing comes next."""
    verdict: Verdict = Verdict(go=True, reason="no other OS is about to be booted")


class StepResult(Value):
    step: Step
    seconds: float
    problem: Problem | None = None


class Report(Value):
    """What came of a plan; it ends at the first step that failed."""

    plan: Plan
    results: tuple[StepResult, ...] = ()

    @property
    def problem(self) -> Problem | None:
        return next((r.problem for r in self.results if r.problem), None)


class CudaStatus(Value):
    """The CUDA that is configured, and why it is not current."""

    wanted: Build
    reference: str
    problem: Problem | None = None


class Status(Value):
    """What a person is told: see thought/render for the words and the JSON document."""

    phase: Phase
    summary: str
    since: float | None
    facts: HostFacts
    wanted: Build
    reference: str
    exposure: Exposure
    exposure_reason: str
    problem: Problem | None = None
    plan: Plan | None = None
    report: Report | None = None
    next_try: float | None = None
    """Wall clock of the next attempt, seconds since 1970."""
    looked: float = 0.0
    warnings: tuple[str, ...] = ()
    usable: bool = False
    """Programs can use the GPU: with the wanted driver, or with another one that is in force until then."""
    cuda: CudaStatus | None = None
    """None where no CUDA is configured."""
