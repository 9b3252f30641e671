# SPDX-License-Identifier: Apache-2.0
"""One bundle for all tests here, and hosts that have nothing but a busybox."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.beds import bundle
from tests.bundle.bare import Bare

if TYPE_CHECKING:
    from collections.abc import Iterator


class Bundles:
    """The checkout's bundle and a later version of it, as trees and packed; made when asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def tree(self) -> Path:
        return bundle.tree(self._folder)

    @cached_property
    def later(self) -> Path:
        return bundle.later(self.tree, self._folder)

    @cached_property
    def dist(self) -> Path:
        bundle.packed(self.tree, self._folder / "dist")
        return self._folder / "dist"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = bundle.missing()
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Built once a process."""
    return Bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bare]:
    """A root directory with a static busybox under all its names, and nothing else."""
    host = Bare(tmp_path / "bare")
    yield host
    host.remove()
