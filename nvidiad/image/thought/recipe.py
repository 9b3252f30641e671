# SPDX-License-Identifier: Apache-2.0
"""The recipe's text: TOML in, the recipe and every fault of it out."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from nvidiad.image.nouns.model import Architecture, DriverSource, Family, SourceKind
from nvidiad.image.nouns.recipe import KERNEL_TAG, TAG, DriverWish, OsWish, Recipe
from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.model import Flavour
from nvidiad.thought import config, values
from nvidiad.thought.config import Fault
from nvidiad.thought.pull import parse_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Check = Callable[[object], object]

# ---------------------------------------------------------------------------------------------------
# Values


def _words(known: Sequence[str]) -> Callable[[object], tuple[str, ...]]:
    """An array of at least one of these words."""

    def check(value: object) -> tuple[str, ...]:
        return _array(value, f"an array of words such as ['{known[0]}']", values.choice(*known))

    return check


def _array(value: object, what: str, item: Callable[[str], object]) -> tuple[str, ...]:
    found = values.strings(value, what, item)
    if not found:
        raise values.expected(what, value)
    return found


_CHANNEL = re.compile(r"stable|beta|alpha|edge|lts(-\d{4})?")
_CHANNELS = "an array of channels such as ['stable', 'lts-2024']"
_SUITE = re.compile(r"[a-z][a-z0-9-]{1,40}")
_SUITES = "an array of suites such as ['bookworm', 'bookworm-security']"
_FLAVOUR = re.compile(r"[a-z][a-z0-9-]{1,30}")
_FLAVOURS = "an array of kernel flavours such as ['amd64', 'cloud-amd64']"
_KERNELS = "an array of kernel releases such as ['6.1.0-50-amd64']"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"https?://[^\s/]+\S*")


def _matching(what: str, pattern: re.Pattern[str]) -> Check:
    def item(text: str) -> None:
        if not pattern.fullmatch(text):
            raise values.expected(what, text)

    return lambda value: _array(value, what, item)


def _text(what: str, pattern: re.Pattern[str]) -> Check:
    def check(value: object) -> str:
        text = values.string(value, what)
        if not pattern.fullmatch(text):
            raise values.expected(what, value)
        return text

    return check


def _count(minimum: int, maximum: int) -> Check:
    def check(value: object) -> int:
        what = f"a whole number from {minimum} to {maximum}"
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise values.expected(what, value)
        return value

    return check


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise values.expected("true or false", value, "without quotes" if isinstance(value, str) else "")
    return value


def _image(value: object) -> str:
    what = "an image such as 'alpine:3.20'"
    text = values.string(value, what)
    try:
        parse_reference(text)
    except Permanent:
        raise values.expected(what, value) from None
    return text


_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]{1,1024}")

_TOP: Mapping[str, Check] = {
    "repository": values.repository,
    "developers": values.repository,
    "base": _image,
    "connections": _count(1, 64),
}
_OS: Mapping[str, Check] = {
    "family": lambda value: Family(values.choice(*Family)(value)),
    "channels": _matching(_CHANNELS, _CHANNEL),
    "suites": _matching(_SUITES, _SUITE),
    "architectures": lambda value: tuple(map(Architecture, _words(tuple(Architecture))(value))),
    "newest": _count(1, 100),
    "kernels": _matching(_KERNELS, naming.VERSION),
    "flavours": _matching(_FLAVOURS, _FLAVOUR),
    "tag": values.tag,
    "mirror": _text("a URL such as 'https://mirror.example/flatcar'", _URL),
}
_DRIVER: Mapping[str, Check] = {
    "version": values.version,
    "flavour": lambda value: Flavour(values.choice(*Flavour)(value)),
    "product": values.product,
    "source": lambda value: SourceKind(values.choice(*SourceKind)(value)),
    "location": _text("a URL or a path of the package, or a suite of Debian's", _PRINTABLE),
    "sha256": _text("a sha256 of 64 digits from 0 to f", _SHA256),
    "graphics": _boolean,
    "fabric-manager": _text("a URL or a path of the fabric manager's archive", _PRINTABLE),
    "fabric-manager-sha256": _text("a sha256 of 64 digits from 0 to f", _SHA256),
    "families": lambda value: tuple(map(Family, _words(tuple(Family))(value))),
}
_SIGN: Mapping[str, Check] = {"key": _text("the path of a private key", _PRINTABLE)}
_TABLES = ("os", "driver", "sign")


# ---------------------------------------------------------------------------------------------------
# Reading


_ARRAY = re.compile(r"^[ \t]*\[\[[ \t]*(\w+)[ \t]*\]\]", re.MULTILINE)
_AT = re.compile(r" ?\(at (?:line (\d+), column (\d+)|end of document)\)$")


def _lines(text: str) -> dict[str, int]:
    """On which line each key is; the second `[[os]]` is `os.2` there."""
    counts: dict[str, int] = {}

    def numbered(header: re.Match[str]) -> str:
        counts[header[1]] = counts.get(header[1], 0) + 1
        return f"[{header[1]}.{counts[header[1]]}]"

    return config.lines_of_keys(_ARRAY.sub(numbered, text))


class _Reading:
    """What a file says, so far; keys are numbered as a person counts: `os.2.channels`."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._where = _lines(text)
        self.faults: list[Fault] = []

    def fault(self, key: str, sentence: str) -> None:
        near = key
        while near and near not in self._where:
            near = near.rpartition(".")[0]
        self.faults.append(Fault(self._file, key, sentence, self._where.get(near)))

    def table(self, place: str, content: object, checks: Mapping[str, Check]) -> dict[str, Any]:
        """The values of a table that are as they should be."""
        if not isinstance(content, dict):
            self.fault(place, f"expected a table, found {values.found(content)}")
            return {}
        found: dict[str, Any] = {}
        for name, value in content.items():
            key = f"{place}.{name}" if place else name
            if not place and name in _TABLES:
                continue
            if name not in checks:
                known = (*checks, *(() if place else _TABLES))
                near = values.near(name, known)
                hint = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
                self.fault(key, f"unknown key ({hint})")
                continue
            try:
                found[name] = checks[name](value)
            except ValueError as error:
                for sentence in error.args:
                    self.fault(key, sentence)
                found[name] = None
        return found

    def tables(
        self, name: str, content: object, checks: Mapping[str, Check]
    ) -> list[tuple[str, dict[str, Any]]]:
        """The values of an array of tables, with the place of each."""
        if content is None:
            self.fault(name, f"expected at least one [[{name}]], found nothing")
            return []
        if not isinstance(content, list):
            self.fault(name, f"expected an array of tables: write [[{name}]] on a line of its own")
            return []
        places = [f"{name}.{number}" for number in range(1, len(content) + 1)]
        return [(place, self.table(place, one, checks)) for place, one in zip(places, content, strict=True)]

    def wanted(self, place: str, found: Mapping[str, Any], *names: str) -> bool:
        """Whether all these keys are there and well; those that are missing are a fault."""
        for name in names:
            if name not in found:
                self.fault(f"{place}.{name}" if place else name, "expected a value, found nothing")
        return all(found.get(name) is not None for name in names)

    def unwanted(self, place: str, found: Mapping[str, Any], why: str, *names: str) -> None:
        for name in names:
            if name in found:
                self.fault(f"{place}.{name}", f"expected nothing: {why}")


def read(file: str, text: str) -> tuple[Recipe | None, tuple[Fault, ...]]:
    """The recipe that a text is, or all that is wrong with it."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        at = _AT.search(str(error))
        line, column = (int(at[1]), int(at[2])) if at and at[1] else (None, None)
        return None, (Fault(file, "", "not TOML: " + _AT.sub("", str(error)), line, column),)
    reading = _Reading(file, text)
    top = reading.table("", document, _TOP)
    reading.wanted("", top, "repository")
    systems = [_system(reading, *one) for one in reading.tables("os", document.get("os"), _OS)]
    drivers = [_driver(reading, *one) for one in reading.tables("driver", document.get("driver"), _DRIVER)]
    sign = reading.table("sign", document["sign"], _SIGN) if "sign" in document else {}
    if "sign" in document:
        reading.wanted("sign", sign, "key")
    whole = [system for system in systems if system], [driver for driver in drivers if driver]
    if not reading.faults:
        _across(reading, *whole)
    if reading.faults:
        return None, tuple(reading.faults)
    return Recipe(**top, systems=tuple(whole[0]), drivers=tuple(whole[1]), **sign), ()


def load(file: str, text: str) -> Recipe:
    """The recipe that a text is; raises RECIPE_INVALID with every fault of it."""
    recipe, faults = read(file, text)
    if recipe is None:
        told = "; ".join(str(fault) for fault in faults)
        remedy = f"Correct it; docs/images.md describes each key (faults found: {len(faults)})."
        raise Permanent(Code.RECIPE_INVALID, told, remedy)
    return recipe


def _system(reading: _Reading, place: str, found: dict[str, Any]) -> OsWish | None:
    if not reading.wanted(place, found, "family"):
        return None
    family = found["family"]
    if family is Family.DEBIAN:
        reading.unwanted(place, found, "Debian has suites", "channels", "mirror")
        complete = reading.wanted(place, found, "suites")
        if ("kernels" in found) == ("flavours" in found):
            reading.fault(place, "expected kernels or flavours, and one of them only")
    else:
        reading.unwanted(
            place, found, f"only Debian's kernels have a choice, not those of {family}", "suites", "kernels"
        )
        reading.unwanted(place, found, f"{family} has one kernel for each release", "flavours")
        complete = reading.wanted(place, found, "channels")
    if not complete or None in found.values():
        return None
    given = {name: value for name, value in found.items() if name not in ("channels", "suites")}
    given.setdefault("tag", KERNEL_TAG if family is Family.DEBIAN else TAG)
    return OsWish(channels=found.get("channels") or found.get("suites") or (), **given)


def _driver(reading: _Reading, place: str, found: dict[str, Any]) -> DriverWish | None:
    complete = reading.wanted(place, found, "version", "flavour", "source", "location")
    if found.get("source") is SourceKind.DEBIAN:
        reading.unwanted(place, found, "Debian's archive is signed", "sha256")
        reading.unwanted(place, found, "Debian has none", "fabric-manager", "fabric-manager-sha256")
    elif found.get("source"):
        complete = reading.wanted(place, found, "sha256") and complete
    if found.get("fabric-manager"):
        complete = reading.wanted(place, found, "fabric-manager-sha256") and complete
    if not complete or None in found.values():
        return None
    kind, families = found.pop("source"), found.pop("families", tuple(Family))
    given = {key.replace("-", "_"): value for key, value in found.items()}
    return DriverWish(DriverSource(kind=kind, **given), families)


def _across(reading: _Reading, systems: Sequence[OsWish], drivers: Sequence[DriverWish]) -> None:
    """Find what only shows when all is read: names that would mean two things."""
    for number, wish in enumerate(drivers, 1):
        source = wish.source
        for other in drivers[: number - 1]:
            same = (other.source.version, other.source.product) == (source.version, source.product)
            if same and set(other.families) & set(wish.families):
                hint = "give one a product, which goes into the tag"
                reading.fault(
                    f"driver.{number}", f"expected each driver once, found {source.version} again ({hint})"
                )
        if not any(system.family in wish.families for system in systems):
            reading.fault(f"driver.{number}.families", "expected a family that an [[os]] has")
    for number, system in enumerate(systems, 1):
        products = {wish.source.product for wish in drivers if system.family in wish.families}
        needed = [("{os} or {kernel}", ("{os}", "{kernel}")), ("{driver}", ("{driver}",))]
        needed += [("{-product}", ("{-product}", "{product}"))] if len(products) > 1 else []
        for what, fields in needed:
            if not any(field in system.tag for field in fields):
                reading.fault(f"os.{number}.tag", f"expected {what} in the tag, found '{system.tag}'")
        for earlier in systems[: number - 1]:
            shared = sorted(set(earlier.channels) & set(system.channels))
            if shared and earlier.family is not system.family:
                hint = f"its tag {shared[0]}-DRIVER can name one only; use a repository for each"
                reading.fault(
                    f"os.{number}.channels",
                    f"expected channels of one family, found '{shared[0]}' of {earlier.family} too ({hint})",
                )
