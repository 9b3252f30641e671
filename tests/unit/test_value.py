# SPDX-License-Identifier: Apache-2.0
"""Values behave as the frozen dataclasses that they look like."""

from __future__ import annotations

import copy

import pytest

from nvidiad.nouns.value import Value, replace


class Point(Value):
    x: int
    y: int = 0
    """The second one."""

    @property
    def sum(self) -> int:
        return self.x + self.y


class Vector(Value):
    x: int
    y: int = 0


@pytest.mark.parametrize("point", [Point(1, 2), Point(1, y=2), Point(y=2, x=1), replace(Point(5, 2), x=1)])
def test_however_it_is_made(point: Point) -> None:
    assert (point.x, point.y, point.sum) == (1, 2, 3)
    assert point == Point(1, 2)
    assert hash(point) == hash(Point(1, 2))
    assert repr(point) == "Point(x=1, y=2)"


def test_equal_only_within_its_class() -> None:
    assert Point(1) == Point(1, 0)
    assert Point(1) != Point(2)
    assert Point(1) != Vector(1)
    assert Point(1) != (1, 0)


def test_patterns_take_it_apart() -> None:
    match Point(1, 2):
        case Point(1, y):
            assert y == 2
        case _:
            pytest.fail("it did not match")


@pytest.mark.parametrize(
    ("positional", "named", "said"),
    [
        ((), {}, "Point needs a value for 'x'"),
        ((), {"y": 1}, "Point needs a value for 'x'"),
        ((1, 2, 3), {}, "Point has the fields x, y, each once"),
        ((1,), {"x": 1}, "Point has the fields x, y, each once"),
        ((1,), {"z": 1}, "Point has no field 'z'"),
    ],
)
def test_refuses(positional: tuple[int, ...], named: dict[str, int], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Point(*positional, **named)


def test_never_changes() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match="'x' cannot be changed"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="'y' cannot be removed"):
        del point.y
    with pytest.raises(AttributeError):
        point.z = 3
    assert not hasattr(point, "__dict__")


def test_can_be_copied() -> None:
    assert copy.deepcopy(Point(1, 2)) == Point(1, 2)
    assert copy.copy(Point(1, 2)) == Point(1, 2)
