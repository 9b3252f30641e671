# SPDX-License-Identifier: Apache-2.0
"""The host bed as fixtures: `host` is a fresh host for one test, `host_factory` makes several."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.beds.common import SUITES
from tests.host.bed import Host

_count = itertools.count(1)
_SUITE = os.environ.get("NVIDIAD_BED_SUITE", "bookworm")

HostFactory = Callable[..., Host]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    reason = _missing()
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.host)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing() -> str:
    if os.geteuid() != 0:
        return "the host bed needs root: it makes namespaces and mounts"
    for program in ("unshare", "nsenter", "setpriv", "findmnt"):
        if shutil.which(program) is None:
            return f"the host bed needs {program} of util-linux"
    return ""


def _sweep_stale() -> None:
    """Remove the disks that a test run left when it was killed; its hosts died with it."""
    for left in Path("/var/tmp").glob("nvidiad-host-*-*"):
        pid = left.name.split("-")[2]
        if not Path("/proc", pid).exists():
            for number in left.iterdir():
                # down() of a host that is not up removes what is left of it: cgroups and the disk.
                Host(f"{pid}-{number.name}", _SUITE, number).down()
            shutil.rmtree(left, ignore_errors=True)


@pytest.fixture
def suite(request: pytest.FixtureRequest) -> str:
    """The Debian release of the host; parametrise it indirectly, or set NVIDIAD_BED_SUITE."""
    wanted: str = getattr(request, "param", _SUITE)
    assert wanted in SUITES
    return wanted


@pytest.fixture
def host_factory(suite: str) -> Iterator[HostFactory]:
    """A function that gives a host which is not up yet; all are removed at the end."""
    made: list[Host] = []
    _sweep_stale()
    # Not under pytest's temporary directories: those are kept, and a host's disk is large.
    base = Path(tempfile.mkdtemp(prefix=f"nvidiad-host-{os.getpid()}-", dir="/var/tmp"))

    def make(suite: str = suite) -> Host:
        number = next(_count)
        host = Host(f"{os.getpid()}-{number}", suite, base / str(number))
        made.append(host)
        return host

    try:
        yield make
    finally:
        for host in made:
            host.down()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def host(request: pytest.FixtureRequest, host_factory: HostFactory) -> Host:
    """A host that is up; parametrised indirectly with the arguments for Host.up, as in {"gpu": False}."""
    return host_factory().up(**getattr(request, "param", {}))
