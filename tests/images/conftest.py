# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the image tests: one workshop for each test process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.images.workshop import Workshop

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def workshop() -> Iterator[Workshop]:
    """A real Docker engine and a real registry of this test process."""
    made = Workshop().open()
    yield made
    made.close()
