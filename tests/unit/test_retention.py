# SPDX-License-Identifier: Apache-2.0
"""Retention: what must never be removed is never among what may go."""

from __future__ import annotations

import pytest

from nvidiad.nouns.model import Build, Memory, Tree, UpdateStatus
from nvidiad.nouns.upcoming import NextFacts
from nvidiad.nouns.value import replace
from nvidiad.thought.retention import expendable, surplus
from nvidiad.thought.staging import NEED_REBOOT
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
    "the next release's stays": ((f.TREE, NEXT), UpdateStatus(NEED_REBOOT, "4081.2.0", 0), Memory(), set()),
    "without an update it may go": ((f.TREE, NEXT), None, Memory(), {NEXT.path}),
    "the loaded one stays": ((f.TREE, SAME_DRIVER_LOADED), None, Memory(), set()),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    trees, update, memory, gone = CASES[name]
    facts = f.host(f.driver(trees=trees), next=NextFacts(update))
    assert {t.path for t in expendable(facts, f.settings(), memory)} == gone


def test_the_oldest_go_until_count_and_bytes_are_as_configured() -> None:
    trees = tuple(replace(tree("470.1", f"{n}.0.0"), installed=float(n), size=100) for n in (3, 1, 2))
    facts = f.host(f.driver(trees=(replace(f.TREE, size=100), *trees)))

    def gone(more: str) -> list[str]:
        found = surplus(facts, f.settings(f"[retention]\n{more}"), Memory())
        return [each.build.os_version for each in found]

    assert gone("") == []
    assert gone("trees = 3") == ["1.0.0"]
    assert gone("trees = 1") == ["1.0.0", "2.0.0", "3.0.0"]
    assert gone("trees = 1\nautomatic = false") == []
    assert gone("bytes = '1 kB'") == []
    assert surplus(replace(facts, driver=replace(facts.driver, trees=tuple(
        replace(each, size=500) for each in facts.driver.trees))), f.settings("[retention]\nbytes = '1 kB'"),
        Memory()) == (replace(trees[1], size=500), replace(trees[2], size=500))  # fmt: skip
