# SPDX-License-Identifier: Apache-2.0
"""Values: frozen records that share their methods, where `dataclasses` would compile six for each class."""

# A boot pays for that compiling before every kubelet start, some seventy times (docs/performance.md).

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, dataclass_transform

if TYPE_CHECKING:
    from dataclasses import replace as replace  # the type checker knows what it may change

_MISSING = object()


@dataclass_transform(frozen_default=True)
class _ValueType(type):
    """Makes slots of the annotated names, and defaults of what stands behind them."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> _ValueType:
        own = tuple(namespace.get("__annotations__", ()))
        defaults = {field: namespace.pop(field) for field in own if field in namespace}
        namespace |= {"__slots__": own, "__match_args__": own, "_defaults": defaults}
        return super().__new__(cls, name, bases, namespace)


class Value(metaclass=_ValueType):
    """A record that never changes: equal when its class and its fields are.

    A class of values names its fields by annotations, as a dataclass does, and nothing derives from it.
    """

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]  # what `replace` asks for
        __match_args__: ClassVar[tuple[str, ...]]
        _defaults: ClassVar[dict[str, object]]
    else:
        __slots__ = ()

    def __init__(self, *positional: object, **named: object) -> None:
        names = self.__match_args__
        values = dict(zip(names, positional, strict=False))
        if len(positional) > len(names) or not named.keys().isdisjoint(values):
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(names)}, each once")
        values |= named
        for name in names:
            value = values.pop(name, _MISSING)
            if value is _MISSING:
                try:
                    value = self._defaults[name]
                except KeyError:
                    raise TypeError(f"{type(self).__name__} needs a value for '{name}'") from None
            object.__setattr__(self, name, value)
        if values:
            raise TypeError(f"{type(self).__name__} has no field '{next(iter(values))}'")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is a value: '{name}' cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is a value: '{name}' cannot be removed")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value) or type(self) is not type(other):
            return NotImplemented
        return _fields(self) == _fields(other)

    def __hash__(self) -> int:
        return hash(_fields(self))

    def __repr__(self) -> str:
        names = self.__match_args__
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), _fields(self)


def _fields(value: Value) -> tuple[object, ...]:
    return tuple([getattr(value, name) for name in value.__match_args__])


if not TYPE_CHECKING:

    def replace(value: Value, **changes: object) -> Value:
        """The same value with other fields."""
        return type(value)(**dict(zip(type(value).__match_args__, _fields(value), strict=True)) | changes)
