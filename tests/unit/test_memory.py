# SPDX-License-Identifier: Apache-2.0
"""What survives a reboot: written as a whole or not at all, and never a reason not to start."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvidiad.nouns.errors import Code, Failure
from nvidiad.nouns.model import Attempt, Memory, Problem
from nvidiad.world import memory
from nvidiad.world.memory import MemoryFile

REFERENCE = "registry.example/nvidia-driver:4593.2.5-535.309.01"
PROBLEM = Problem(Code.IMAGE_MISSING, "There is no such image", "Push it", retry=True)
FULL = Memory((Attempt(REFERENCE, 3, 1700000000.25, PROBLEM),), "/opt/nvidia/535.309.01/4593.2.5")


@pytest.fixture
def file(tmp_path: Path) -> MemoryFile:
    return MemoryFile(tmp_path / "var/lib/nvidiad/memory.json")


def test_memory_comes_back(file: MemoryFile) -> None:
    assert file.read() == Memory()
    file.write(FULL)
    assert file.read() == FULL
    file.write(Memory())
    assert file.read() == Memory()
    assert [path.name for path in file.path.parent.iterdir()] == ["memory.json"]


@given(
    st.builds(
        Memory,
        st.lists(
            st.builds(
                Attempt,
                st.text(st.characters(codec="utf-8")),
                st.integers(0, 1 << 40),
                st.floats(allow_nan=False, allow_infinity=False),
                st.builds(Problem, st.sampled_from(Code), st.text(), st.text(), st.booleans()),
            ),
            max_size=3,
        ).map(tuple),
        st.text(),
    )
)
def test_any_memory_comes_back(value: Memory) -> None:
    assert memory.decode(memory.encode(value)) == value


def edited(**changes: Any) -> bytes:
    document = json.loads(memory.encode(FULL))
    for path, value in changes.items():
        inner = document
        *parents, last = path.split("__")
        for parent in parents:
            inner = inner[int(parent) if parent.isdecimal() else parent]
        inner[last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(memory.encode(FULL)[:-20], id="cut"),
        pytest.param(bytes(4096), id="zeros, as after a power cut"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"\xff\xfe", id="not UTF-8"),
        pytest.param(b"[" * 200_000, id="deep"),
        pytest.param(b" " * (1 << 20) + b" ", id="huge"),
        pytest.param(edited(schema=2), id="of a later nvidiad"),
        pytest.param(edited(schema=True), id="schema that is no number"),
        pytest.param(edited(attempts={}), id="attempts that are no list"),
        pytest.param(edited(attempts=[3]), id="attempt that is no table"),
        pytest.param(edited(attempts__0__count=-1), id="negative count"),
        pytest.param(edited(attempts__0__count="1"), id="count that is no number"),
        pytest.param(edited(attempts__0__last=float("nan")), id="time that is no number"),
        pytest.param(edited(attempts__0__last=10**400), id="time without end"),
        pytest.param(edited(attempts__0__problem__code="no-such-code"), id="unknown code"),
        pytest.param(edited(attempts__0__problem__retry=1), id="retry that is no boolean"),
        pytest.param(json.dumps({"schema": 1}).encode(), id="keys missing"),
    ],
)
def test_what_cannot_be_understood_is_put_aside(file: MemoryFile, content: bytes) -> None:
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(content)
    assert file.read() == Memory()
    assert file.bad.read_bytes() == content
    assert not file.path.exists()
    file.write(FULL)
    assert file.read() == FULL


@given(
    st.one_of(
        st.binary(), st.recursive(st.none() | st.integers(), st.lists).map(lambda v: json.dumps(v).encode())
    )
)
def test_decode_takes_anything(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  whatever it says
        memory.decode(data)


def test_what_cannot_be_opened_or_moved_is_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MemoryFile(tmp_path).read() == Memory()
    path = tmp_path / "memory.json"
    path.write_text("x")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "replace", refuse)
    assert MemoryFile(path).read() == Memory()
    assert path.read_text() == "x"


@pytest.mark.parametrize(
    ("number", "code", "retry"),
    [
        (errno.ENOSPC, Code.DISK_FULL, True),
        (errno.EDQUOT, Code.DISK_FULL, True),
        (errno.EROFS, Code.READ_ONLY, False),
        (errno.EIO, Code.INTERNAL, False),
    ],
)
def test_write_that_fails_leaves_the_old_memory(
    file: MemoryFile,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: Code,
    retry: bool,  # noqa: FBT001
) -> None:
    file.write(FULL)

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(Failure, match=r"Cannot write '.*memory\.json': ") as caught:
            file.write(Memory())
    assert (caught.value.code, caught.value.retry) == (code, retry)
    assert file.read() == FULL
    assert [path.name for path in file.path.parent.iterdir()] == ["memory.json"]
