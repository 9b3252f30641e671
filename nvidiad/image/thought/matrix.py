# SPDX-License-Identifier: Apache-2.0
"""The matrix: which images should be, where each lies, which tags name them, and what is told of them."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from nvidiad.image.nouns.model import Architecture, Cell, Family, OsRelease, Standing, State
from nvidiad.image.thought.feeds import LTS, lts_year, version_key
from nvidiad.nouns import naming
from nvidiad.nouns.compatibility import MAX_REASON, Compatibility, Entry
from nvidiad.nouns.model import Build
from nvidiad.nouns.value import Value
from nvidiad.thought import render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from nvidiad.image.nouns.model import DriverSource
    from nvidiad.image.nouns.recipe import OsWish, Recipe

_CHANNEL_TAG = "{os}-{driver}{-product}"
# `6.1.0-50-cloud-amd64`, `6.12.95+deb13-amd64`: numbers, and what is left is the flavour.
_KERNEL = re.compile(r"\d[^-]*(-[0-9a-z.~]*\d[0-9a-z.~]*)?-(?P<flavour>[a-z][a-z0-9-]*)")


class Pointer(Value):
    """A tag that names images of other tags: a channel's newest, or one image for each architecture."""

    tag: str
    cells: tuple[Cell, ...]
    """One for each architecture."""
    waits: bool
    """Whether it stays as it is until each of these is there, or is known as unbuildable."""


# ---------------------------------------------------------------------------------------------------
# What should be


def cells(recipe: Recipe, releases: Sequence[OsRelease]) -> tuple[Cell, ...]:
    """The images that should be: every driver for every release that the recipe wants.

    A release that is in two channels is two cells of one tag.
    """
    found = (
        Cell(
            release,
            wish.source,
            naming.image_tag(system.tag, _build(release, wish.source)),
            shared=len(system.architectures) > 1,
        )
        for system in recipe.systems
        for release in _chosen(system, releases)
        for wish in recipe.drivers
        if system.family in wish.families
    )
    return tuple(dict.fromkeys(found))


def unmet(recipe: Recipe, releases: Sequence[OsRelease]) -> tuple[str, ...]:
    """What the recipe wants and no release is known for, each as a sentence."""
    sentences = []
    for system in recipe.systems:
        chosen = _chosen(system, releases)
        for channel in system.channels:
            for architecture in system.architectures:
                if not any(_in(one, channel) and one.architecture is architecture for one in chosen):
                    where = f"{system.family} '{channel}' ({architecture})"
                    wanted = "none of the wanted kernels is" if system.kernels else "no release is"
                    sentences.append(f"{wanted} known of {where}")
        known = {release.kernel for release in chosen}
        for kernel in system.kernels:
            if kernel not in known:
                sentences.append(f"{system.family} has no kernel '{kernel}' with headers")
    return tuple(dict.fromkeys(sentences))


def _chosen(system: OsWish, releases: Sequence[OsRelease]) -> tuple[OsRelease, ...]:
    """The releases that a wish means, in the order of its channels, the newest first."""
    groups: dict[tuple[str, str, str], list[OsRelease]] = {}
    for channel in system.channels:
        for release in releases:
            if release.family is not system.family or not _in(release, channel):
                continue
            flavour = _flavour(release)
            unwanted = (system.kernels and release.kernel not in system.kernels) or (
                system.flavours and flavour not in system.flavours
            )
            if release.architecture in system.architectures and not unwanted:
                groups.setdefault((release.channel, release.architecture, flavour), []).append(release)
    found: list[OsRelease] = []
    for group in groups.values():
        # More than one source may tell of a release.
        once = {release.version: release for release in reversed(group)}
        ordered = sorted(once.values(), key=lambda one: version_key(one.version), reverse=True)
        found += ordered if system.kernels else ordered[: system.newest]
    return tuple(found)


def _in(release: OsRelease, channel: str) -> bool:
    """`lts` means every long-term series."""
    return release.channel == channel or (channel == LTS and bool(lts_year(release.channel)))


def _flavour(release: OsRelease) -> str:
    if release.family is not Family.DEBIAN:
        return ""
    matched = _KERNEL.fullmatch(release.kernel)
    return matched["flavour"] if matched else ""


def _build(release: OsRelease, driver: DriverSource) -> Build:
    return Build(driver.version, release.version, release.kernel, driver.product)


# ---------------------------------------------------------------------------------------------------
# Where it lies


def places(wanted: Sequence[Cell]) -> dict[Cell, str]:
    """The tag under which each cell's own image lies.

    That is the tag that hosts ask for, unless it has to name the images of several architectures.
    """
    architectures: dict[str, set[Architecture]] = {}
    for cell in wanted:
        architectures.setdefault(cell.tag, set()).add(cell.release.architecture)
    return {
        cell: f"{cell.tag}-{cell.release.architecture}"
        if cell.shared or len(architectures[cell.tag]) > 1
        else cell.tag
        for cell in wanted
    }


def pointers(wanted: Sequence[Cell]) -> tuple[Pointer, ...]:
    """The tags that name images which lie under other tags, too."""
    own = places(wanted)
    shared: dict[str, dict[Architecture, Cell]] = {}
    newest: dict[str, dict[Architecture, Cell]] = {}
    for cell in wanted:
        if own[cell] != cell.tag:
            shared.setdefault(cell.tag, {}).setdefault(cell.release.architecture, cell)
        build = Build(cell.driver.version, cell.release.channel, "", cell.driver.product)
        named = newest.setdefault(naming.image_tag(_CHANNEL_TAG, build), {})
        known = named.get(cell.release.architecture)
        if known is None or _rank(cell) > _rank(known):
            named[cell.release.architecture] = cell
    made = [Pointer(tag, tuple(named.values()), waits=False) for tag, named in shared.items()]
    return (*made, *(Pointer(tag, tuple(named.values()), waits=True) for tag, named in newest.items()))


def _rank(cell: Cell) -> tuple[tuple[int, ...], int]:
    """Of two flavours of the newest kernel, the plain one (`amd64`) stands for the suite."""
    return version_key(cell.release.version), -len(cell.release.version)


def targets(pointer: Pointer, standings: Mapping[Cell, Standing]) -> tuple[Standing, ...]:
    """The published images that a tag should name now; none where it is to stay as it is."""
    known = [standings[cell] for cell in pointer.cells]
    open_ = (State.UNKNOWN, State.MISSING) if pointer.waits else (State.UNKNOWN,)
    if any(one.state in open_ for one in known):
        return ()
    return tuple(one for one in known if one.state is State.PUBLISHED)


# ---------------------------------------------------------------------------------------------------
# What is known of it


def inputs(cell: Cell) -> str:
    """What a driver is made of, in twelve digits: other inputs may be buildable."""
    source = cell.driver
    made = [source.version, source.flavour, source.kind, source.sha256 or source.location, source.graphics]
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:12]


def known_unbuildable(cell: Cell, listed: Compatibility) -> Entry | None:
    """What the list says of a cell that could not be built from these very inputs."""
    entry = listed.unbuildable(cell.tag, cell.release.architecture.machine)
    return entry if entry and entry.inputs == inputs(cell) else None


def entries(standings: Iterable[Standing], before: Compatibility) -> tuple[Entry, ...]:
    """The entries of the list after a run, in an order that depends on nothing but them.

    What is no longer wanted stays listed where an image is there or cannot be: hosts may have that release
    for a long time yet.
    """
    former: dict[tuple[str, str], Entry] = {}
    for entry in before.entries:
        former.setdefault((entry.tag, entry.architecture), entry)
    found: list[Entry] = []
    seen: set[tuple[str, str]] = set()
    for standing in standings:
        key = (standing.cell.tag, standing.cell.release.architecture.machine)
        seen.add(key)
        if standing.state is State.UNKNOWN:
            found += [former[key]] if key in former else []
        else:
            found.append(_entry(standing, former.get(key)))
    gone = (State.PUBLISHED, State.UNBUILDABLE)
    found += [entry for key, entry in former.items() if key not in seen and entry.state in gone]
    return tuple(sorted(dict.fromkeys(found), key=_order))


def _entry(standing: Standing, before: Entry | None) -> Entry:
    cell, release = standing.cell, standing.cell.release
    # A developer image knows its kernel better than a feed: what was found when it was made stays.
    made = before is not None and (before.state, before.digest) == (standing.state, standing.digest)
    return Entry(
        os_id=str(release.family),
        os_version=release.version,
        channel=release.channel,
        architecture=release.architecture.machine,
        kernel=before.kernel if before and made and before.kernel else release.kernel,
        driver=cell.driver.version,
        flavour=str(cell.driver.flavour),
        product=cell.driver.product,
        tag=cell.tag,
        state=str(standing.state),
        digest=standing.digest,
        reason=_short(standing.reason),
        inputs=inputs(cell) if standing.state is State.UNBUILDABLE else "",
    )


def _order(entry: Entry) -> tuple[object, ...]:
    newest_first = tuple(-number for number in version_key(entry.os_version))
    return (
        entry.os_id,
        newest_first,
        entry.channel,
        entry.architecture,
        entry.driver,
        entry.product,
        entry.tag,
    )


def _short(reason: str) -> str:
    line = render.clean(reason)
    return line if len(line) <= MAX_REASON else line[: MAX_REASON - 1] + "…"


# ---------------------------------------------------------------------------------------------------
# What is told of it

_HEADER = ("OS", "CHANNEL", "ARCH", "KERNEL", "TAG", "STATE")


def table(standings: Sequence[Standing]) -> str:
    """For a person: a line for each cell, why some are not there, and how many there are of each state."""
    rows = [
        (
            f"{one.cell.release.family} {one.cell.release.version}",
            one.cell.release.channel,
            one.cell.release.architecture,
            one.cell.release.kernel,
            one.cell.tag,
            one.state,
        )
        for one in standings
    ]
    reasons = dict.fromkeys(
        f"{one.cell.tag} is {one.state}: {_short(one.reason)}\n" for one in standings if one.reason
    )
    counted = ", ".join(f"{number} {state}" for state, number in counts(standings).items() if number)
    parts = (render.table(rows, _HEADER), "".join(reasons), f"{counted or 'nothing is wanted'}\n")
    return "\n".join(part for part in parts if part)


def counts(standings: Iterable[Standing]) -> dict[str, int]:
    """How many cells are in each state."""
    states = [standing.state for standing in standings]
    return {str(state): states.count(state) for state in State}


def document(repository: str, standings: Sequence[Standing], notes: Sequence[str]) -> dict[str, object]:
    """For a program."""
    return {
        "schema": 1,
        "repository": repository,
        "counts": counts(standings),
        "cells": [_cell(standing) for standing in standings],
        "notes": list(notes),
    }


def _cell(standing: Standing) -> dict[str, object]:
    release, driver = standing.cell.release, standing.cell.driver
    return {
        "os": {"id": str(release.family), "version": release.version, "date": release.date},
        "channel": release.channel,
        "architecture": str(release.architecture),
        "kernel": release.kernel,
        "driver": driver.version,
        "flavour": str(driver.flavour),
        "product": driver.product,
        "tag": standing.cell.tag,
        "state": str(standing.state),
        "digest": standing.digest,
        "reason": standing.reason,
    }


def once(wanted: Iterable[Cell], place: Callable[[Cell], str]) -> Iterator[Cell]:
    """Of the cells that share an image, the first."""
    seen: set[str] = set()
    for cell in wanted:
        if place(cell) not in seen:
            seen.add(place(cell))
            yield cell
