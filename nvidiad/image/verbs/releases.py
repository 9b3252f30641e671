# SPDX-License-Identifier: Apache-2.0
"""Releases: which there are of an OS, with the kernel of each, and from where that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from nvidiad.image.nouns.model import Architecture, Family, OsRelease
from nvidiad.image.thought import feeds
from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.model import Progress
from nvidiad.nouns.value import Value, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_JSON = "application/json"
_STEP = "read-feeds"

T = TypeVar("T")


class Texts(Protocol):
    """What can be read over the network: `nvidiad.image.world.fetch.Downloads`."""

    def text(self, url: str, accept: str = "") -> str | None:
        """The text at a URL; None where the server says that there is none; a Failure where it fails."""


class Found(Value):
    """Releases, the newest of each channel first, and sentences about sources that lag or do not answer."""

    releases: tuple[OsRelease, ...]
    notes: tuple[str, ...]
    failed: bool = False
    """Whether an OS that was wanted could not be asked at all."""


def find_releases(
    family: Family,
    channels: Sequence[str],
    architectures: Sequence[Architecture],
    *,
    newest: int,
    mirrors: feeds.Mirrors,
    texts: Texts,
    tell: Callable[[Progress], None],
) -> Found:
    """The `newest` releases of each channel and architecture; all that are known where it is 0.

    `lts` stands for all long-term series that are still served, `lts-2024` for one. What the servers have is
    asked of `version.txt` and, where the JSON feed is down, of their directory listing; the kernels come
    from the feed, else from a release's list of packages.

    Raises:
        Transient: feed-unreachable, where no source of any channel answered.
        Permanent: feed-invalid, where none could be read; release-unknown, where none has anything.
    """
    survey = _Survey(family, mirrors, texts, tell)
    releases: list[OsRelease] = []
    for channel in survey.years(channels):
        for architecture in architectures:
            releases += survey.channel(channel, architecture, newest)
    if not releases:
        if survey.failures:
            raise _hopeless(family, survey.failures)
        raise _unknown(family, f"release in {', '.join(channels)}", ", ".join(architectures))
    return Found(tuple(releases), tuple(dict.fromkeys(survey.notes)))


def find_release(
    family: Family,
    version: str,
    architecture: Architecture,
    *,
    channel: str = "",
    mirrors: feeds.Mirrors,
    texts: Texts,
    tell: Callable[[Progress], None],
) -> Found:
    """One release by its version, or a channel's newest where the version is the name of a channel.

    Where no channel is named, the version's second number tells it.

    Raises:
        Transient: feed-unreachable, where no server answered.
        Permanent: release-unknown, where the servers do not have it; feed-invalid.
    """
    survey = _Survey(family, mirrors, texts, tell)
    if version in feeds.CHANNELS or feeds.lts_year(version):
        newest = find_releases(
            family, [version], [architecture], newest=1, mirrors=mirrors, texts=texts, tell=tell
        )
        return replace(newest, releases=newest.releases[:1])
    channel = channel or feeds.channel_of(version)
    if not channel:
        sentence = f"'{version}' does not tell its channel"
        raise Permanent(Code.RELEASE_UNKNOWN, sentence, f"Name it: one of {', '.join(feeds.CHANNELS)}.")
    known = survey.release(channel, architecture, version)
    if known is None:
        if survey.failures:
            raise _hopeless(family, survey.failures)
        raise _unknown(family, f"release '{version}' in the channel '{channel}'", architecture)
    return Found((known,), tuple(survey.notes))


class _Survey:
    """What was asked and answered so far."""

    def __init__(
        self,
        family: Family,
        mirrors: feeds.Mirrors,
        texts: Texts,
        tell: Callable[[Progress], None],
    ) -> None:
        self._family = family
        self._mirrors = mirrors
        self._texts = texts
        self._tell = tell
        self._entries: dict[str, tuple[feeds.Entry, ...] | None] = {}
        self.notes: list[str] = []
        self.failures: list[Failure] = []

    def years(self, channels: Sequence[str]) -> tuple[str, ...]:
        """The channels, with each long-term series that is still served in the place of `lts`."""
        expanded: list[str] = []
        for channel in channels:
            expanded += self._series() if channel == feeds.LTS else [channel]
        return tuple(dict.fromkeys(expanded))

    def channel(self, channel: str, architecture: Architecture, newest: int) -> list[OsRelease]:
        """The newest releases of a channel; none where no source answers."""
        served = self._served(channel, architecture)
        entries = self._feed(channel)
        if entries is None:
            versions = {served[0]} if served else set()
            if newest != 1 or not served:
                versions |= set(self._listed(channel, architecture))
        else:
            versions = {entry.version for entry in entries if architecture in entry.architectures}
            self._compare(channel, architecture, served, feeds.newest_first(versions))
            versions |= {served[0]} if served else set()
        if not versions:
            self.notes.append(f"no source knows a release of {channel} ({architecture})")
        found = []
        for version in feeds.newest_first(versions)[: newest or None]:
            source = served[1] if served and version == served[0] else ""
            found.append(self._known(channel, architecture, version, source))
        return found

    def _compare(
        self, channel: str, architecture: Architecture, served: tuple[str, str] | None, fed: Sequence[str]
    ) -> None:
        """Note where servers and feed differ in what is the newest."""
        feed = self._mirrors.feed_of(channel)
        if not fed:
            return
        if served is None:
            self.notes.append(
                f"no server tells the newest release of {channel} ({architecture}): '{fed[0]}' is known from"
                f" '{feed}' only, which may lag"
            )
        elif served[0] in fed and served[0] != fed[0]:
            self.notes.append(
                f"'{served[1]}' still has '{served[0]}', but '{feed}' knows '{fed[0]}' already"
            )

    def release(self, channel: str, architecture: Architecture, version: str) -> OsRelease | None:
        """One release, if a server or the feed has it."""
        text, source = self._first(self._mirrors.file(channel, architecture, version, "version.txt"))
        if text:
            said = self._readable(lambda: feeds.version_txt(text, self._family, source))
            if said is None:
                return None
            if said != version:
                self.failures.append(feeds.invalid(source, f"is of '{said}', not of '{version}'"))
                return None
        elif self._entry(channel, architecture, version) is None:
            return None
        return self._known(channel, architecture, version, source if text else "")

    def _known(self, channel: str, architecture: Architecture, version: str, source: str) -> OsRelease:
        """A release with what the feed, or else its list of packages, says of it."""
        entry = self._entry(channel, architecture, version)
        release = OsRelease(self._family, version, channel, architecture, source=source)
        feed = self._mirrors.feed_of(channel)
        if entry is not None:
            release = replace(release, date=entry.date, source=source or feed)
            if entry.kernel:
                kernel = feeds.kernel_release(self._family, entry.kernel)
                return replace(release, kernel=kernel)
        kernel, where = self._package_kernel(channel, architecture, version)
        if feed and self._entries.get(channel) is not None:
            lag = "does not know" if entry is None else "names no kernel of"
            told = f"its kernel is known from '{where}'" if kernel else "its kernel is unknown"
            self.notes.append(f"'{feed}' {lag} '{version}' yet: {told}")
        elif not kernel:
            self.notes.append(f"no source tells the kernel of '{version}' ({architecture})")
        return replace(
            release,
            kernel=feeds.kernel_release(self._family, kernel),
            source=release.source or where or self._mirrors.listing_of(channel, architecture),
        )

    def _entry(self, channel: str, architecture: Architecture, version: str) -> feeds.Entry | None:
        for entry in self._feed(channel) or ():
            if entry.version == version and architecture in entry.architectures:
                return entry
        return None

    # -- the sources -------------------------------------------------------------------------------

    def _served(self, channel: str, architecture: Architecture) -> tuple[str, str] | None:
        """The version that a channel's `current` has, and the URL that says so."""
        urls = self._mirrors.file(channel, architecture, feeds.current(channel), "version.txt")
        text, url = self._first(urls)
        if not text:
            return None
        version = self._readable(lambda: feeds.version_txt(text, self._family, url))
        return (version, url) if version else None

    def _feed(self, channel: str) -> tuple[feeds.Entry, ...] | None:
        """A channel's JSON feed, read once; None where there is none, or none that can be read."""
        url = self._mirrors.feed_of(channel)
        if channel not in self._entries:
            text, _ = self._first([url] if url else [])
            self._entries[channel] = self._readable(lambda: feeds.feed(text, url)) if text else None
        return self._entries[channel]

    def _listed(self, channel: str, architecture: Architecture) -> tuple[str, ...]:
        url = self._mirrors.listing_of(channel, architecture)
        text, _ = self._first([url] if url else [], accept=_JSON)
        year = feeds.lts_year(channel)
        majors = {one.major for one in self._long_terms() if one.year == year} if year else set()
        listed = (self._readable(lambda: feeds.listing(text, url)) if text else None) or ()
        return tuple(version for version in listed if not year or version.partition(".")[0] in majors)

    def _package_kernel(self, channel: str, architecture: Architecture, version: str) -> tuple[str, str]:
        """The kernel that a release's list of packages has, and that list's URL."""
        file = feeds.package_list(self._family)
        text, url = self._first(self._mirrors.file(channel, architecture, version, file))
        kernel = self._readable(lambda: feeds.package_kernel(text, url)) if text else None
        return kernel or "", url

    def _series(self) -> list[str]:
        """The long-term series that are still served, as channels; plain `lts` where none is known."""
        if not self._mirrors.lts_info:
            return [feeds.LTS]
        known = self._long_terms()
        for one in known:
            if not one.supported:
                self.notes.append(f"lts-{one.year} ({one.major}) is no longer served with updates: left out")
        return [f"lts-{one.year}" for one in known if one.supported] or [feeds.LTS]

    def _long_terms(self) -> tuple[feeds.LongTerm, ...]:
        url = self._mirrors.lts_info
        text, _ = self._first([url] if url else [])
        return (self._readable(lambda: feeds.lts_info(text, url)) if text else None) or ()

    def _first(self, urls: Sequence[str], accept: str = "") -> tuple[str, str]:
        """The first text that one of the URLs has, and that URL; empty where none has one."""
        for url in urls:
            self._tell(Progress(_STEP, url))
            try:
                text = self._texts.text(url, accept)
            except Failure as failure:
                self._note(failure)
                continue
            if text is not None:
                return text, url
        return "", ""

    def _readable(self, read: Callable[[], T]) -> T | None:
        """What a source says; one that cannot be read is noted, and others are asked."""
        try:
            return read()
        except Failure as failure:
            self._note(failure)
            return None

    def _note(self, failure: Failure) -> None:
        self.failures.append(failure)
        self.notes.append(failure.sentence)


def _hopeless(family: Family, failures: Sequence[Failure]) -> Failure:
    """The one failure for several sources of which none could be used."""
    said = "; ".join(dict.fromkeys(failure.sentence for failure in failures))
    sentence = f"nothing is known of the releases of {family}: {said}"
    if all(failure.code is Code.FEED_INVALID for failure in failures):
        return Permanent(Code.FEED_INVALID, sentence, failures[0].remedy)
    remedy = "Look at the network and the proxy, or name a mirror that can be reached."
    return Transient(Code.FEED_UNREACHABLE, sentence, remedy)


def _unknown(family: Family, what: str, architecture: str) -> Permanent:
    sentence = f"the servers of {family} have no {what} for {architecture}"
    remedy = "'nvidiad-image releases' shows what there is; a mirror may have kept what was removed."
    return Permanent(Code.RELEASE_UNKNOWN, sentence, remedy)
