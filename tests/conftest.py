# SPDX-License-Identifier: Apache-2.0
"""What every test run has: a test that proves a row of the fault matrix notes how it came out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call" and not report.skipped and os.environ.get("NVIDIAD_RECORD"):
        from tests.reliability import witness

        witness.note_case(item, report)
    return report
