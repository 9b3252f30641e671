# SPDX-License-Identifier: Apache-2.0
"""The fault matrix: whole over steps and faults, each row proven by a run, and the page made of that."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.reliability import faults, page
from tests.reliability.__main__ import PAGE, merge, read

CHECKOUT = Path(__file__).parents[2]
RECORD = read()
STATUS = (CHECKOUT / "docs/status.md").read_text()


@pytest.mark.parametrize("step", faults.STEPS)
@pytest.mark.parametrize("fault", faults.FAULTS)
def test_every_step_has_every_fault_or_a_reason_why_not(step: str, fault: str) -> None:
    rows = [row for row in faults.BY_STEP if (row.subject, row.fault) == (step, fault)]
    reasons = [never for never in faults.NEVER if step in never.steps and fault in never.faults]
    assert len(rows) + len(reasons) == 1, (rows, reasons)


def test_rows_have_names_of_their_own() -> None:
    names = [row.id for row in faults.ROWS]
    assert len(set(names)) == len(names)


def test_proofs_are_tests_that_there_are() -> None:
    for proof in {proof for row in faults.ROWS for proof in row.proofs}:
        tree = ast.parse((CHECKOUT / proof.path).read_text())
        assert proof.test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, proof


@pytest.mark.parametrize("row", faults.ROWS, ids=lambda row: row.id)
def test_every_row_is_proven_by_a_run_that_survived(row: faults.Row) -> None:
    cases = [entry for entry in RECORD if entry.get("row") == row.id]
    assert cases, (
        f"run its tests with NVIDIAD_RECORD=FILE, then: python -m tests.reliability FILE; {row.proofs}"
    )
    assert all(case["survived"] for case in cases)
    assert all(case.get("half", 0) == case.get("lost", 0) == 0 for case in cases)


@pytest.mark.parametrize("code", sorted({code for row in faults.ROWS for code in row.codes}))
def test_every_code_of_the_matrix_is_documented_with_its_remedy(code: str) -> None:
    (line,) = [line for line in STATUS.splitlines() if line.startswith(f"| `{code}` |")]
    assert len(line.split(" | ")[2].strip(" |")) > 10


def test_the_record_holds_nothing_that_counts_no_more() -> None:
    assert merge(RECORD, []) == RECORD


def test_the_page_is_what_the_record_gives() -> None:
    assert PAGE.read_text() == page.render(RECORD), "make it anew: python -m tests.reliability"
