# SPDX-License-Identifier: Apache-2.0
"""What every test run has: an order, and a note of how each row of the fault matrix came out."""

from __future__ import annotations

import os
from itertools import chain
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Generator

_TESTS = Path(__file__).parent
# Below it, what boots, builds or waits; everything else takes milliseconds.
_SLOW = ("host", "images", "bundle", "kubernetes")

# A busy machine is no reason to fail: how long one example takes says nothing. The rest stays as it is here,
# on a machine of CI as hypothesis has it there.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes comes first, or one of two workers ends alone with it.

    A machine in QEMU keeps a processor busy and a host in namespaces mostly waits: beside each file of the
    one there are some of the other.
    """
    files = list(dict.fromkeys(item.path for item in items))
    machines = [file for file in files if _TESTS / "vm" in file.parents]
    slow = [file for file in files if any(_TESTS / name in file.parents for name in _SLOW)]
    each = ceil(len(slow) / max(1, len(machines)))
    pairs = ([file, *slow[at * each : (at + 1) * each]] for at, file in enumerate(machines))
    order = list(dict.fromkeys(chain(*pairs, slow, files)))
    items.sort(key=lambda item: order.index(item.path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call" and not report.skipped and os.environ.get("NVIDIAD_RECORD"):
        from tests.reliability import witness

        witness.note_case(item, report)
    return report
