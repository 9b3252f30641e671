# SPDX-License-Identifier: Apache-2.0
"""Engines: who fetches images on this host, and what may be configured about it."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING

from nvidiad.nouns.model import Engine, EngineKind
from nvidiad.thought import values

if TYPE_CHECKING:
    from collections.abc import Mapping

_PORT = r"(?::\d{1,5})?"
_HOST = (
    rf"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+{_PORT}|[A-Za-z0-9-]+:\d{{1,5}}|localhost"
    rf"|\[[0-9a-fA-F:]+\]{_PORT})"
)
_REGISTRY = re.compile(_HOST, re.ASCII)
_MIRROR = re.compile(rf"https?://{_HOST}(?:/[a-z0-9._-]+)*/?", re.ASCII)


def choose(kind: EngineKind, socket: str, *, there: bool) -> Engine:
    """Who fetches images, where `there` says whether the socket of an engine is.

    Not whether somebody answers: an engine that is there and broken is told, and nothing takes its place.
    It may be the only one that knows a proxy, and it may be about to come back.
    """
    if kind is not EngineKind.AUTO:
        return Engine(kind, "as engine.kind says")
    if there:
        return Engine(EngineKind.DOCKER, f"its socket '{socket}' is there")
    return Engine(EngineKind.REGISTRY, f"there is no engine: no socket '{socket}'")


def kind(value: object) -> EngineKind:
    """The value of engine.kind."""
    return EngineKind(values.choice(*EngineKind)(value))


def mirrors(value: object) -> Mapping[str, tuple[str, ...]]:
    """URLs of mirrors by the name of a registry; the ValueError has a sentence for each fault."""
    what = "a table such as {'registry.example' = ['https://mirror.example']}"
    if not isinstance(value, dict):
        raise values.expected(what, value)
    taken: dict[str, tuple[str, ...]] = {}
    faults: list[str] = []
    for registry, urls in value.items():
        try:
            if not _REGISTRY.fullmatch(registry):
                raise values.expected("the name of a registry such as 'registry.example:5000'", registry)
            taken[registry] = values.strings(
                urls, "an array of URLs such as ['https://mirror.example']", _mirror
            )
        except ValueError as error:
            faults += [str(each) for each in error.args]
    if faults:
        raise ValueError(*faults)
    return MappingProxyType(taken)


def _mirror(url: str) -> None:
    if not _MIRROR.fullmatch(url):
        hint = "with https://, or http:// where it has no TLS" if "://" not in url else ""
        raise values.expected("a URL such as 'https://mirror.example'", url, hint)
