# SPDX-License-Identifier: Apache-2.0
"""Inhibition: what logind's configuration says of delay locks, and what locksmithd says of the reboot."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from nvidiad.nouns.value import Value
from nvidiad.thought import parse

if TYPE_CHECKING:
    from collections.abc import Mapping

# After kubelet's 99-kubelet.conf: the last file counts.
DROP_IN = "99-nvidiad.conf"
DEFAULT_SECONDS = 5.0
_NEVER = 2**64 - 1
INFINITY = _NEVER / 1e6
"""The seconds that systemd means by `infinity`."""

_SECOND = 1_000_000
# systemd.time(7); a month is a twelfth of a year of 365.25 days.
_UNITS = {
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), _SECOND),
    **dict.fromkeys(("ms", "msec"), 1000),
    **dict.fromkeys(("us", "usec", "\u00b5s", "\u03bcs"), 1),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60 * _SECOND),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600 * _SECOND),
    **dict.fromkeys(("d", "day", "days"), 86400 * _SECOND),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400 * _SECOND),
    **dict.fromkeys(("M", "month", "months"), 2_629_800 * _SECOND),
    **dict.fromkeys(("y", "year", "years"), 31_557_600 * _SECOND),
}
_DIGITS = 19
"""Those of 2**63; behind the point fewer mean a microsecond of a year."""
_PART = re.compile(r"\+?([0-9]*)(?:\.([0-9]+))?([ \t]*)([A-Za-z\u00b5\u03bc]*)[ \t]*")


class Others(Value):
    """What logind does without our file, by its other ones."""

    limit: float
    """The seconds that it waits for delay locks."""
    fixed: bool
    """It stays like that whatever ours says, because ours is not the last to speak."""


def span(text: str) -> float | None:
    """A time span of systemd in seconds (systemd.time(7)); None for what systemd takes for none."""
    rest = text.strip(" \t")
    if rest == "infinity":
        return INFINITY
    total, at = 0, 0
    while at < len(rest):
        part = _PART.match(rest, at)
        whole, fraction, space, unit = part.groups("") if part else ("", "", "", "")
        sound = part is not None and whole + fraction and unit in _UNITS
        whole = whole.lstrip("0") or "0"
        # Of thousands of digits Python makes no number.
        if part is None or not sound or len(whole) > _DIGITS or int(whole) >= 2**63:
            return None
        at = part.end()
        if not space and not unit and at < len(rest):
            return None
        total += int(whole) * _UNITS[unit]
        total += sum(
            int(digit) * (_UNITS[unit] // 10**place) for place, digit in enumerate(fraction[:_DIGITS], 1)
        )
    return total / _SECOND if rest and total < _NEVER else None


def others(main: str, fragments: Mapping[str, str]) -> Others:
    """From the main file's text, and from those of all fragments by name (logind.conf(5))."""
    limit, fixed = DEFAULT_SECONDS, False
    for name, text in (("", main), *sorted(fragments.items())):
        if name == DROP_IN:
            continue
        values, sound = _values(text)
        for found in map(span, values):
            # What systemd does not understand it leaves out, even where that is nothing.
            if found is not None:
                limit, fixed = found, name > DROP_IN
        if not sound:
            # systemd reads nothing after such a line, and no other file.
            return Others(limit, fixed or name < DROP_IN)
    return Others(limit, fixed)


def drop_in(seconds: float) -> str:
    """Our file for logind."""
    return (
        "# Written by nvidiad: a reboot may wait for the driver of the next OS; see nvidiad(8).\n"
        "# It stays when no reboot is held: kubelet asks for a longer wait at its start only.\n"
        f"[Login]\nInhibitDelayMaxSec={'infinity' if seconds >= INFINITY else math.ceil(seconds)}\n"
    )


def locksmith(text: str) -> str:
    """The state in locksmithd's coordinator.conf; empty where another one coordinates, or nobody."""
    values = parse.assignments(text)
    return values.get("STATE", "") if values.get("NAME") == "locksmithd" else ""


def is_locked(locks: str, major: int, minor: int, inode: int) -> bool:
    """Whether somebody has a lock of flock(2) on this file, by the text of /proc/locks (proc_locks(5))."""
    file = f"{major:02x}:{minor:02x}:{inode}"
    return any(words[1:2] == ["FLOCK"] and file in words for words in map(str.split, locks.split("\n")))


def _values(text: str) -> tuple[list[str], bool]:
    """What a file says of the limit, and whether systemd reads it to its end (systemd.syntax(7))."""
    found: list[str] = []
    section = ""
    for line in _lines(text):
        if line.startswith("["):
            if not line.endswith("]"):
                return found, False
            section = line
            continue
        key, _, value = line.partition("=")
        if section == "[Login]" and key.rstrip() == "InhibitDelayMaxSec":
            found.append(value.strip())
    return found, True


def _lines(text: str) -> list[str]:
    """Lines without comments and white space around; a backslash at the end joins two of them."""
    lines, joined = [], ""
    for raw in re.split(r"[\r\n\0]", text.removeprefix("\ufeff")):
        line = raw.lstrip(" \t")
        if line.startswith(("#", ";")):
            continue
        joined += line
        if (len(joined) - len(joined.rstrip("\\"))) % 2:
            joined = joined[:-1] + " "
            continue
        lines.append(joined.strip(" \t"))
        joined = ""
    return [*lines, joined.strip(" \t")]
