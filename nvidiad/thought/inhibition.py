# SPDX-License-Identifier: Apache-2.0
"""Inhibition: what logind's configuration says of delay locks, and what locksmithd says of the reboot."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nvidiad.thought import parse

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_SECONDS = 5.0
_KEY = re.compile(r"^[ \t]*InhibitDelayMaxSec[ \t]*=[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)[ \t]*([a-z]*)")
# systemd.time(7)
_UNITS = {
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec"), 1e-3),
    **dict.fromkeys(("us", "usec"), 1e-6),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}


def span(text: str) -> float | None:
    """A time span of systemd in seconds; None for what it is not."""
    rest = _SPAN.sub("", text.strip())
    parts = _SPAN.findall(text)
    if rest.strip() or not parts or any(unit not in _UNITS for _, unit in parts):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def delay_limit(texts: Iterable[str]) -> float:
    """The seconds that logind waits for delay locks by these files, of which the last one counts."""
    limit = DEFAULT_SECONDS
    for text in texts:
        for value in _KEY.findall(text):
            found = span(value)
            if found is not None:
                limit = found
            elif not value:
                limit = DEFAULT_SECONDS
    return limit


def drop_in(seconds: float) -> str:
    """Our file for logind."""
    return (
        "# Written by nvidiad: a reboot may wait for the driver of the next OS; see nvidiad(8).\n"
        f"[Login]\nInhibitDelayMaxSec={seconds:.0f}\n"
    )


def locksmith(text: str) -> str:
    """The state in locksmithd's coordinator.conf; empty where another one coordinates, or nobody."""
    values = parse.assignments(text)
    return values.get("STATE", "") if values.get("NAME") == "locksmithd" else ""
