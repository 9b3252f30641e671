# SPDX-License-Identifier: Apache-2.0
"""The linters are tests: ruff and mypy over everything, shellcheck over the scripts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SCRIPTS = sorted(
    str(path.relative_to(CHECKOUT))
    for pattern in (
        *(
            "tools/*.sh",
            "tools/bundle/*install",
            ".ci/run",
            "contrib/provision/*.sh",
            "packaging/debian/pre*",
        ),
        *("docker/*/install", "docker/*/compile", "docker/*/entry", "nvidiad/**/*.sh"),
    )
    for path in CHECKOUT.glob(pattern)
)


def check(*command: str) -> None:
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    check(sys.executable, "-m", "ruff", "check", ".")


def test_ruff_format() -> None:
    check(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_mypy() -> None:
    check(sys.executable, "-m", "mypy")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    assert SCRIPTS
    check("shellcheck", *SCRIPTS)
