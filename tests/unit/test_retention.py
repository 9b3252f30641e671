# SPDX-License-Identifier: Apache-2.0
"""Retention: what must never be removed is never among what may go."""

from __future__ import annotations

import pytest

from nvidiad.nouns.model import Build, Memory, Tree, UpdateStatus
from nvidiad.nouns.value import replace
from nvidiad.thought.retention import expendable
from tests.unit import facts as f


def tree(driver: str, os_version: str, kernel: str = "5.0") -> Tree:
    path = f"/opt/nvidia/{driver}/{os_version}"
    return replace(f.TREE, path=path, build=Build(driver, os_version, kernel))


OLD = tree("470.1", "2000.0.0")
NEXT = tree(f.DRIVER, "4081.2.0")
OTHER_OS = tree(f.DRIVER, "3000.0.0")
SAME_DRIVER_LOADED = tree(f.DRIVER, "alias", f.KERNEL)

CASES = {
    "only what nothing needs": ((f.TREE, OLD, OTHER_OS), None, Memory(), {OLD.path, OTHER_OS.path}),
    "the last good one stays": ((f.TREE, OLD), None, Memory(last_good=OLD.path), set()),
    "the other slot's stays": ((f.TREE, OLD), None, Memory(former_good=OLD.path), set()),
    "the next release's stays": ((f.TREE, NEXT), UpdateStatus("X", "4081.2.0", 0), Memory(), set()),
    "without an update it may go": ((f.TREE, NEXT), None, Memory(), {NEXT.path}),
    "the loaded one stays": ((f.TREE, SAME_DRIVER_LOADED), None, Memory(), set()),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    trees, update, memory, gone = CASES[name]
    facts = f.driver(trees=trees)
    assert {t.path for t in expendable(facts, f.BUILD, update=update, memory=memory)} == gone
