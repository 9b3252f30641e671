# SPDX-License-Identifier: Apache-2.0
"""The verb `explain`: what is asked for is printed, and what is not there is answered by what was meant."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nvidiad import cli, explain
from nvidiad.nouns.errors import Code
from nvidiad.thought import codes


@pytest.mark.parametrize(
    "word",
    [
        "image-missing",
        "[image-missing]",
        "nvidiad: 'r/nvidia-driver:1' is not in the registry [image-missing]",
        "IMAGE_MISSING",
        "image-missing.",
    ],
)
def test_a_code_is_explained_as_it_is_copied(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", word]) == cli.OK
    told = capsys.readouterr().out
    assert told.startswith("image-missing - the registry has no image of this name\n")
    assert "   Says: 'IMAGE' is not in the registry\n" in told
    assert "\n  Cause: " in told and "\n  To do: Push the image" in told
    assert "`" not in told


def test_without_a_code_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain"]) == cli.OK
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert {row[0] for row in rows} == set(Code)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("image-mising", " (did you mean 'image-missing'?)"),
        ("lock-down", " (did you mean 'lockdown'?)"),
        ("x", ""),
    ],
)
def test_no_such_code(word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "lockdown", word]) == cli.USAGE
    told = capsys.readouterr()
    assert told.out.startswith("lockdown - ")
    assert told.err == f"nvidiad: there is no code '{word}'{meant}\n"


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--json=short", "no-gpu"]) == cli.OK
    [row] = json.loads(capsys.readouterr().out)
    assert list(row) == ["code", *codes.FIELDS]
    assert row["code"] == "no-gpu" and row["meaning"].startswith("the host has no NVIDIA GPU")


def test_lines_fit_the_terminal() -> None:
    for each in explain.explanations():
        assert max(map(len, codes.text(each, 100).splitlines()[1:])) <= 100
        assert codes.text(each, 100).splitlines()[1].startswith("   Says: ")


def test_status_and_activation_read_no_explanations() -> None:
    """What every boot and every probe runs must not pay for it."""

    for module in ("nvidiad.rim.client", "nvidiad.app"):
        script = f"import {module}, sys; sys.exit('nvidiad.thought.codes' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
