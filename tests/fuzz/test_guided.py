# SPDX-License-Identifier: Apache-2.0
"""Every target again, guided by what its code reaches, for a bounded time each."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import pytest

from tests.fuzz.long import Run, guided
from tests.fuzz.table import TARGETS
from tests.fuzz.target import CORPUS
from tests.record import note

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SECONDS = os.environ.get("NVIDIAD_FUZZ_SECONDS", "")
# Counted where no time is given: libFuzzer counts whole seconds only, and there are many targets.
BOUNDS = (
    (f"-max_total_time={max(1, round(float(SECONDS)))}",) if SECONDS else ("-runs=2000", "-max_total_time=5")
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="there is no atheris for this Python"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    place = tmp_path_factory.mktemp("guided")
    return guided(TARGETS, place, "-seed=1", *BOUNDS, f"{CORPUS}/{{name}}")


@pytest.mark.parametrize("name", TARGETS)
def test_no_path_leads_to_a_crash(runs: Mapping[str, Run], name: str) -> None:
    run = runs[name]
    assert not run.crash, run.crash
    assert run.cases >= len(TARGETS[name].seeds())
    note("fuzz", f"{name}, guided", cases=run.cases, bytes=run.size, crashes=0)


def test_a_crash_is_seen(tmp_path: Path) -> None:
    """What would be the use of a fuzzer that cannot fail?"""
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "input").write_bytes(b"x")
    # A limit that nothing keeps: libFuzzer itself ends it then.
    run = guided(["http"], tmp_path, "-max_total_time=5", "-rss_limit_mb=1", str(bad))["http"]
    assert "out-of-memory" in run.crash
    assert guided(["nothing of this name"], tmp_path)["nothing of this name"].crash
