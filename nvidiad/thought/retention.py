# SPDX-License-Identifier: Apache-2.0
"""Retention: which trees may go; what this host needs now, next, or after a rollback stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.thought import choice, staging

if TYPE_CHECKING:
    from nvidiad.nouns.facts import HostFacts
    from nvidiad.nouns.model import Memory, Tree
    from nvidiad.thought.settings import Settings


def expendable(facts: HostFacts, settings: Settings, memory: Memory) -> tuple[Tree, ...]:
    """The trees that nothing on this host needs, now or after a rollback; the oldest first."""
    needed = _needed(facts, settings, memory)
    free = [tree for tree in facts.driver.trees if tree.path not in needed]
    return tuple(sorted(free, key=lambda tree: (tree.installed, tree.path)))


def surplus(facts: HostFacts, settings: Settings, memory: Memory) -> tuple[Tree, ...]:
    """Those of the expendable trees that are more than the configuration lets lie around."""
    keep = settings.retention
    if not keep.automatic:
        return ()
    count = len(facts.driver.trees)
    size = sum(tree.size for tree in facts.driver.trees)
    gone: list[Tree] = []
    for tree in expendable(facts, settings, memory):
        if count <= keep.trees and (not keep.bytes or size <= keep.bytes):
            break
        gone.append(tree)
        count, size = count - 1, size - tree.size
    return tuple(gone)


def _needed(facts: HostFacts, settings: Settings, memory: Memory) -> set[str]:
    host = facts.driver
    loaded = choice.core(host)
    found = staging.next_system(facts, memory)
    # The other slot holds the release before this one, whose tree memory names, or the next one, which
    # update_engine or the slot itself names. Also what only may come: it is fetched once.
    coming = staging.builds(facts, settings, found) if found else ()
    staged = {tree.path for build in coming if (tree := staging.find_tree(facts, build))}
    drivers = {settings.driver.version, choice.wanted(host, settings).driver}
    release = choice.configured(host, settings).os_version
    return {
        *(path for path in (host.current, memory.last_good, memory.former_good) if path),
        *staged,
        *(
            tree.path
            for tree in host.trees
            if (tree.build.driver in drivers and tree.build.os_version == release)
            or (loaded and tree.build.driver == loaded.version and tree.build.kernel == host.kernel)
        ),
    }
