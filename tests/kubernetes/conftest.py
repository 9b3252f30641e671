# SPDX-License-Identifier: Apache-2.0
"""One node, its nvidiad, and an API server that keeps an eye on what the companion sets."""

from __future__ import annotations

import socket as network
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvidiad.kubernetes.thought.answer import DRIVER_READY, DRIVER_STAGED
from tests.kubernetes.apiserver import ApiServer
from tests.kubernetes.fluo import AFTER, BEFORE
from tests.kubernetes.stage import NODE, Companion, Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kubernetes.apiserver import Json


@pytest.fixture
def socket() -> Iterator[Path]:
    """In a place of its own: pytest's are too deep for a socket."""
    with tempfile.TemporaryDirectory(prefix="nvidiad-") as place:
        yield Path(place) / "io.nvidiad"


@pytest.fixture
def daemon(socket: Path) -> Iterator[Daemon]:
    with Daemon(socket) as daemon:
        yield daemon


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as api:
        api.checks.append(unasked)
        api.add(NODE)
        yield api
        assert api.offences == []


@pytest.fixture
def companion(api: ApiServer, socket: Path, tmp_path: Path) -> Iterator[Companion]:
    with Companion(api, socket, tmp_path) as companion:
        yield companion


def unasked(before: Json, after: Json) -> str:
    """An annotation that is set where the label that asks for it is not there."""
    for label, name in ((BEFORE, DRIVER_STAGED), (AFTER, DRIVER_READY)):
        if after["metadata"]["annotations"].get(name) != before["metadata"]["annotations"].get(name):
            asked = before["metadata"]["labels"].get(label) == "true"
            if after["metadata"]["annotations"].get(name) is not None and not asked:
                return f"{name} without {label}"
    return ""


@pytest.fixture
def silent(socket: Path) -> Iterator[Callable[[], bool]]:
    """Somebody listens on nvidiad's socket and never answers; says whether somebody came."""
    came = threading.Event()
    held = []
    with network.socket(network.AF_UNIX) as listener:
        listener.bind(str(socket))
        listener.listen()
        listener.settimeout(0.1)
        ended = threading.Event()

        def accept() -> None:
            while not ended.is_set():
                with suppress(TimeoutError):
                    held.append(listener.accept()[0])
                    came.set()

        thread = threading.Thread(target=accept)
        thread.start()
        yield came.is_set
        ended.set()
        thread.join()
        for connection in held:
            connection.close()
