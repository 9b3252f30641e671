# SPDX-License-Identifier: Apache-2.0
"""Descriptors that outlive a process: what systemd is told, and what the next life finds."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nvidiad.world.notify import Store, inherited


def test_a_descriptor_goes_to_the_service_manager_with_its_name_and_is_taken_back(tmp_path: Path) -> None:
    address = tmp_path / "notify"
    reading, writing = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        store = Store(str(address))
        store.put("delay-lock", writing)
        said, (kept,), _, _ = socket.recv_fds(manager, 4096, 1)
        assert said.decode().splitlines() == ["FDSTORE=1", "FDPOLL=0", "FDNAME=delay-lock"]
        os.close(writing)
        os.write(kept, b"x")
        assert os.read(reading, 1) == b"x"
        store.remove("delay-lock")
        assert manager.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=delay-lock"
    for descriptor in (reading, kept):
        os.close(descriptor)


@pytest.mark.parametrize("address", ["", "/nowhere/at/all"])
def test_without_a_service_manager_nothing_is_kept_and_nothing_fails(address: str) -> None:
    reading, writing = os.pipe()
    Store(address).put("delay-lock", writing)
    Store(address).remove("delay-lock")
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, {}),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "varlink"}, {}),
        ({"LISTEN_PID": "8", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "varlink"}, {"varlink": 0}),
        (
            {"LISTEN_PID": "8", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "varlink:delay-lock"},
            {"varlink": 0, "delay-lock": 1},
        ),
        ({"LISTEN_PID": "8", "LISTEN_FDS": "2"}, {"": 0, "1": 1}),
    ],
)
def test_what_was_handed_over_is_found_by_name_and_not_handed_on(
    environment: dict[str, str], found: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Those that sd_listen_fds(3) means are in use by the tests.
    first, held = 900, [900, 901]
    with Path("/dev/null").open() as null:
        for number in held:
            os.dup2(null.fileno(), number)
    monkeypatch.setattr("nvidiad.world.notify._FIRST_DESCRIPTOR", first)
    try:
        assert inherited(environment, 8) == {name: first + index for name, index in found.items()}
        assert [os.get_inheritable(number) for number in held] == [
            index not in found.values() for index in range(2)
        ]
    finally:
        for number in held:
            os.close(number)
