# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the VM bed: one frozen host per session, one clone of it per test."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.vm import product, states
from tests.vm.kernels import Kernels, kernels
from tests.vm.machine import Frozen, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session", name="bed_kernels")
def _bed_kernels() -> Kernels:
    """The kernels of the slots, and A's neighbour."""
    return kernels()


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frozen]:
    """A frozen host in slot A: card, Docker Engine and registry are up, nvidiad is there and never ran."""
    folder = tmp_path_factory.mktemp("host")
    base = states.with_docker()
    with Machine(folder / "work", frozen=base) as machine:
        machine.resume()
        product.install(machine)
        frozen = machine.freeze(folder / "frozen")
    yield frozen
    shutil.rmtree(folder)  # pytest would keep three sessions of 150 MB each


@pytest.fixture
def vm(host: Frozen, tmp_path: Path) -> Iterator[Machine]:
    """A clone of the frozen host for one test."""
    with Machine(tmp_path / "vm", frozen=host) as machine:
        yield machine.resume()
        print(machine.console()[-3000:])  # pytest shows it where the test failed
    shutil.rmtree(tmp_path / "vm")
