# SPDX-License-Identifier: Apache-2.0
"""The configuration of a host: read from its files, and what is in force while these are at fault."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure, Permanent
from nvidiad.nouns.value import replace
from nvidiad.thought import config
from nvidiad.thought.settings import Settings
from nvidiad.world.host import config_fragments
from nvidiad.world.last_good import LastGood

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvidiad.verbs.ports import Log

FILE = Path("/etc/nvidiad/nvidiad.toml")
STATE = Path("var/lib/nvidiad")


def read_settings(path: Path) -> Settings:
    """The configuration; raises CONFIG_INVALID with every fault of every file."""
    return _settings_of(config_fragments(path))


def _settings_of(fragments: Sequence[tuple[str, str]]) -> Settings:
    settings, faults = config.load(fragments)
    if faults:
        raise Permanent(
            Code.CONFIG_INVALID,
            "; ".join(str(fault) for fault in faults),
            f"Correct it, then: systemctl reload nvidiad (faults found: {len(faults)}).",
        )
    return settings


def last_good_settings(path: Path, root: Path, before: Settings | None = None) -> Settings:
    """What is in force while the files have faults: the settings `before`, or those that were read last.

    But for whom to trust: what the files say of that counts, as far as it is without a fault. Nothing is
    configured where nothing was ever read.
    """
    try:
        found = before if before and before.configured else _settings_of(_last_good(root).read())
        now, faults = config.load(config_fragments(path))
    except Failure:
        return before or Settings()
    # After a fault of its syntax nobody knows what a file would have said.
    doubtful = any(not fault.key or fault.key.startswith("trust") for fault in faults)
    return found if doubtful or not found.configured else replace(found, trust=now.trust)


def read_and_keep(path: Path, root: Path, log: Log) -> Settings:
    """The configuration, of which a copy is kept for a boot at which it is at fault."""
    fragments = config_fragments(path)
    settings = _settings_of(fragments)
    if settings.configured:
        try:
            _last_good(root).write(fragments)
        except Failure as failure:
            log.warning("no copy of the configuration is kept, proceeding anyway", error=failure.sentence)
    return settings


def settings_in_force(path: Path, root: Path, log: Log) -> Settings:
    """The configuration, or the last good one where it is at fault; raises CONFIG_INVALID without one."""
    try:
        return read_settings(path)
    except Failure as failure:
        settings = last_good_settings(path, root)
        if not settings.configured:
            raise
        log.warning("the last good configuration is used", code=str(failure.code), error=failure.sentence)
        return settings


def _last_good(root: Path) -> LastGood:
    return LastGood(root / STATE / "configuration.json")
