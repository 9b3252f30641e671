# SPDX-License-Identifier: Apache-2.0
"""Retention: which trees may go; the loaded, current, last good and those of both OS slots stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nvidiad.nouns.model import Build, DriverFacts, Memory, Tree, UpdateStatus


def expendable(
    facts: DriverFacts, wanted: Build, *, update: UpdateStatus | None, memory: Memory
) -> tuple[Tree, ...]:
    """The trees that nothing on this host needs, now or after a rollback."""
    return tuple(tree for tree in facts.trees if not _needed(tree, facts, wanted, update, memory))


def _needed(
    tree: Tree, facts: DriverFacts, wanted: Build, update: UpdateStatus | None, memory: Memory
) -> bool:
    build = tree.build
    loaded = any(m.name == "nvidia" and m.version == build.driver for m in facts.loaded)
    # The other slot holds the release before this one, whose tree memory names, or the next one, which
    # update_engine names.
    slots = {facts.release.version, wanted.os_version, update.version if update else ""}
    return (
        tree.path in (facts.current, memory.last_good, memory.former_good)
        or (loaded and build.kernel == facts.kernel)
        or (build.driver == wanted.driver and build.os_version in slots)
    )
