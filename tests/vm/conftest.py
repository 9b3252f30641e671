# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the VM bed: one frozen host per session, one clone of it per test."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.vm import product, road, states
from tests.vm.kernels import Kernels, kernels
from tests.vm.machine import Frozen, Machine

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_FAILED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing() -> str:
    if platform.machine() != "x86_64":
        return "the VM bed is for x86_64"
    if os.geteuid() != 0:
        return "the VM bed needs root: its disk has root's files"
    return ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether a test failed, for its fixture to say what the guest knows about it."""
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


@pytest.fixture(scope="session", name="bed_kernels")
def _bed_kernels() -> Kernels:
    """The kernels of the slots, and A's neighbour."""
    return kernels()


@pytest.fixture(scope="session", name="states_folder")
def _states_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all workers of a test run have in common."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "vm-states"


@pytest.fixture(scope="session")
def host(states_folder: Path) -> Iterator[Frozen]:
    """A frozen host in slot A: card, Docker Engine and registry are up, nvidiad is there and never ran."""
    with states.shared(states_folder / "host", states.with_docker(), product.install) as frozen:
        yield frozen


@pytest.fixture
def vm(host: Frozen, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A clone of the frozen host for one test."""
    with Machine(tmp_path / "vm", frozen=host) as machine:
        yield machine.resume()
        if request.node.stash.get(_FAILED, False):
            print(machine.last_words())
    shutil.rmtree(tmp_path / "vm")


@pytest.fixture(scope="session")
def driven_host(
    host: Frozen, bed_kernels: Kernels, states_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Frozen]:
    """The frozen host a while later: nvidiad has brought its driver into force, and the kubelet runs."""

    def drive(machine: Machine) -> None:
        tree = road.payload(tmp_path_factory.mktemp("driven"), "A", bed_kernels.a)
        road.bring_into_force(machine, tree)

    with states.shared(states_folder / "driven", host, drive) as frozen:
        yield frozen


@pytest.fixture
def driven(driven_host: Frozen, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A clone of the host with its driver in force."""
    with Machine(tmp_path / "driven", frozen=driven_host) as machine:
        yield machine.resume()
        if request.node.stash.get(_FAILED, False):
            print(machine.last_words())
    shutil.rmtree(tmp_path / "driven")
