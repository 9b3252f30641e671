# SPDX-License-Identifier: Apache-2.0
"""Feeds: what the servers of Flatcar and CoreOS say of their releases, read into values, and where it is."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from nvidiad.image.nouns.model import Architecture, Family
from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.value import Value
from nvidiad.thought import parse

if TYPE_CHECKING:
    from collections.abc import Iterable

CURRENT = "current"
LTS = "lts"
CHANNELS = ("stable", "beta", "alpha", LTS)
# Flatcar's convention, which CoreOS began: the second number of a version tells the channel.
_CHANNEL_NUMBERS = {"0": "alpha", "1": "beta", "2": "stable", "3": LTS}
_LTS_CHANNEL = re.compile(r"lts-(\d{4})")
_MAJOR, _YEAR = re.compile(r"[0-9]{1,9}"), re.compile(r"[0-9]{4}")
_CURRENT_KEY = re.compile(r"current(-\d{4})?")
_KERNEL_PACKAGE = re.compile(
    r"sys-kernel/coreos-kernel-([0-9]{1,9}(?:\.[0-9]{1,9}){1,5})(?:-r\d+)?(?=::|\s|$)", re.MULTILINE
)
_KERNEL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){1,5}")
_RELEASE = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_BZ2 = "developer_container.bin.bz2"


class Entry(Value):
    """A release in the JSON feed; the kernel is the plain version, empty where the feed names none."""

    version: str
    architectures: tuple[str, ...]
    kernel: str
    date: str


class LongTerm(Value):
    """A line of lts-info: a long-term series, the year that names it, and whether it is still served."""

    major: str
    year: str
    supported: bool


class Mirrors(Value):
    """Where the files of an OS are: templates with {channel}, {board}, {architecture}, {version} and {file}.

    {board} is `amd64-usr` or `arm64-usr`; {channel} is the host's (`lts`), and for the feed the one with the
    year (`lts-2024`). An empty template says that there is no such source.
    """

    files: str
    fallback: str = ""
    """Has the files of a release by its version, but no `current`."""
    feed: str = ""
    listing: str = ""
    """Answers with a list of JSON objects, each with the Name of a release's directory."""
    lts_info: str = ""

    def file(self, channel: str, architecture: Architecture, version: str, file: str) -> tuple[str, ...]:
        """The URLs of a file of a release, in the order in which they are to be tried."""
        templates = (self.files, self.fallback if not version.startswith(CURRENT) else "")
        return tuple(
            template.format(
                channel=host_channel(channel),
                board=board(architecture),
                architecture=architecture.value,
                version=quote(version),  # a server may take `+` for a space
                file=file,
            )
            for template in templates
            if template
        )

    def feed_of(self, channel: str) -> str:
        """The URL of a channel's JSON feed; empty where there is none."""
        return self.feed.format(channel=channel)

    def listing_of(self, channel: str, architecture: Architecture) -> str:
        """The URL of the list of a channel's releases; empty where there is none."""
        return self.listing.format(channel=host_channel(channel), board=board(architecture))


# [flatcar/scripts build_image; flatcar-website tools/release-scripts; coreos/docs os/kernel-modules.md]
OFFICIAL = {
    Family.FLATCAR: Mirrors(
        files="https://{channel}.release.flatcar-linux.net/{board}/{version}/{file}",
        fallback="https://bincache.flatcar-linux.net/images/{architecture}/{version}/{file}",
        feed="https://www.flatcar.org/releases-json/releases-{channel}.json",
        listing="https://origin.release.flatcar-linux.net/{channel}/{board}/",
        lts_info="https://lts.release.flatcar-linux.net/lts-info",
    ),
    # Ended in May 2020, and its servers were announced to go: kept for mirrors of it.
    Family.COREOS: Mirrors(files="https://{channel}.release.core-os.net/{board}/{version}/{file}"),
}


def mirror(base: str) -> Mirrors:
    """One server that has everything, in the layout of the official ones with the channel as a directory.

    BASE/<channel>/<board>/<version>/FILE, BASE/<channel>/<board>/ for the list, BASE/lts/lts-info and
    BASE/releases-json/releases-<channel>.json.
    """
    base = base.rstrip("/").replace("{", "{{").replace("}", "}}")
    return Mirrors(
        files=base + "/{channel}/{board}/{version}/{file}",
        feed=base + "/releases-json/releases-{channel}.json",
        listing=base + "/{channel}/{board}/",
        lts_info=f"{base}/lts/lts-info",
    )


def board(architecture: Architecture) -> str:
    """The architecture as paths on the servers have it."""
    return f"{architecture}-usr"


def host_channel(channel: str) -> str:
    """The channel as host names have it: without the year of a long-term one."""
    return LTS if _LTS_CHANNEL.fullmatch(channel) else channel


def lts_year(channel: str) -> str:
    """The year that a long-term channel names; empty for every other."""
    match = _LTS_CHANNEL.fullmatch(channel)
    return match[1] if match else ""


def current(channel: str) -> str:
    """The directory that stands for a channel's newest release."""
    year = lts_year(channel)
    return f"{CURRENT}-{year}" if year else CURRENT


def channel_of(version: str) -> str:
    """The channel that a version's second number tells (`.2.` is stable); empty where it tells none."""
    numbers = version.split(".")
    return _CHANNEL_NUMBERS.get(numbers[1], "") if len(numbers) >= 3 else ""


def disk_image(family: Family) -> str:
    """The file with the disk image of a developer container."""
    return f"{family}_{_BZ2}"


def kernel_image(family: Family) -> str:
    """The file with the kernel of a release."""
    return f"{family}_production_image.vmlinuz"


def package_list(family: Family) -> str:
    """The file that lists the packages of a release."""
    return f"{family}_production_image_packages.txt"


def kernel_release(family: Family, kernel: str) -> str:
    """What `uname -r` prints where the kernel's plain version is `kernel`.

    A revised source package adds a tail (`-r1`) that no feed tells; the developer image has the truth.
    """
    return f"{kernel}-{family}" if kernel else ""


def version_key(version: str) -> tuple[int, ...]:
    """Orders versions by their numbers, so that 4593.2.10 comes after 4593.2.9."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def newest_first(versions: Iterable[str]) -> tuple[str, ...]:
    """Each version once, the newest first."""
    return tuple(sorted(set(versions), key=version_key, reverse=True))


def version_txt(text: str, family: Family, url: str) -> str:
    """The version in a `version.txt`, which is assignments as a shell reads them.

    Raises:
        Permanent: feed-invalid, where it names no version.
    """
    key = f"{family.upper()}_VERSION"
    version = parse.assignments(text).get(key, "")
    if not version:
        raise invalid(url, f"has no {key}")
    if not naming.is_version(version):
        raise invalid(url, f"has {key}={version!r}, which is no version")
    return version


def package_kernel(text: str, url: str) -> str:
    """The plain kernel version in a list of packages (`category/package-version[-rN]::repository`).

    Raises:
        Permanent: feed-invalid, where no kernel is listed.
    """
    match = _KERNEL_PACKAGE.search(text)
    if match is None:
        raise invalid(url, "lists no package sys-kernel/coreos-kernel")
    return match[1]


def lts_info(text: str, url: str) -> tuple[LongTerm, ...]:
    """The long-term series, newest first, from lines `MAJOR:YEAR:supported|unsupported`.

    Raises:
        Permanent: feed-invalid, with the line that is none.
    """
    series = []
    for line in filter(None, map(str.strip, text.splitlines())):
        words = line.split(":")
        if len(words) != 3 or not _MAJOR.fullmatch(words[0]) or not _YEAR.fullmatch(words[1]):
            raise invalid(url, f"has the line '{line[:80]}', which is not MAJOR:YEAR:supported")
        series.append(LongTerm(words[0], words[1], words[2] == "supported"))
    return tuple(sorted(series, key=lambda one: one.year, reverse=True))


def listing(text: str, url: str) -> tuple[str, ...]:
    """The releases in a directory listing, newest first; names that are no version are left out.

    Raises:
        Permanent: feed-invalid, where it is not a JSON list of objects with a Name.
    """
    entries = _json(text, url)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise invalid(url, "is not a JSON list of objects")
    names = [entry.get("Name", entry.get("name")) for entry in entries]
    if not all(isinstance(name, str) for name in names):
        raise invalid(url, "has an object without a Name")
    versions = [name.rstrip("/") for name in names]
    return newest_first(
        version for version in versions if _RELEASE.match(version) and naming.is_version(version)
    )


def feed(text: str, url: str) -> tuple[Entry, ...]:
    """The releases in a JSON feed, newest first: one object keyed by version, beside `current`.

    Raises:
        Permanent: feed-invalid, with what is wrong and where.
    """
    document = _json(text, url)
    if not isinstance(document, dict):
        raise invalid(url, "is not a JSON object keyed by version")
    entries = {
        version: _entry(version, value, url)
        for version, value in document.items()
        if not _CURRENT_KEY.fullmatch(version)
    }
    return tuple(entries[version] for version in newest_first(entries))


def _entry(version: str, value: object, url: str) -> Entry:
    if not naming.is_version(version):
        raise invalid(url, f"has the key {version[:80]!r}, which is no version")
    if not isinstance(value, dict):
        raise invalid(url, f"has no object for '{version}'")
    # The oldest entries name no architecture: then there was but one.
    architectures = value.get("architectures") or [Architecture.AMD64.value]
    if not isinstance(architectures, list) or not all(isinstance(one, str) for one in architectures):
        raise invalid(url, f"has no list of architectures for '{version}'")
    software = value.get("major_software") or {}
    kernels = software.get("kernel") if isinstance(software, dict) else None
    if kernels is None:
        kernels = []
    if not isinstance(software, dict) or not isinstance(kernels, list):
        raise invalid(url, f"has no list of kernels in major_software for '{version}'")
    kernel = str(kernels[0]) if kernels else ""
    if kernel and not _KERNEL.fullmatch(kernel):
        raise invalid(url, f"has the kernel {kernel[:80]!r} for '{version}'")
    date = _DATE.match(str(value.get("release_date", "")))
    return Entry(version, tuple(architectures), kernel, date[0] if date else "")


def _json(text: str, url: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise invalid(url, f"is not JSON: {error}") from None
    except RecursionError:
        raise invalid(url, "is nested too deeply") from None


def invalid(url: str, fault: str) -> Permanent:
    """The failure of a source that answers with something else than it should."""
    remedy = "Open it in a browser: a proxy or a login page may stand in its place. Try another mirror."
    return Permanent(Code.FEED_INVALID, f"'{url}' {fault}", remedy)
