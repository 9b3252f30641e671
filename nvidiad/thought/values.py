# SPDX-License-Identifier: Apache-2.0
"""Checks of configured values: each gives the value as settings have it, or a ValueError of one sentence."""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.model import Change, Exposure, Signatures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


_PLAIN = re.compile(r"[A-Za-z0-9._@=/-]{1,60}", re.ASCII)


def found(value: object) -> str:
    """What a value is, in words."""
    if value == "":
        return "an empty string"
    if isinstance(value, str):
        text = value if len(value) <= 60 else value[:57] + "..."
        return f"'{text}'" if text.isprintable() else repr(text)
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        # Python refuses to print an integer of thousands of digits
        return f"the number {value}" if abs(value) < 1e15 or value != value else "a very large number"
    if isinstance(value, list):
        return "an array" if value else "an empty array"
    return "a table" if isinstance(value, dict) else "a date or time"


def expected(what: str, value: object, hint: str = "") -> ValueError:
    """The fault of a value that is not what it should be."""
    return ValueError(f"expected {what}, found {found(value)}" + (f" ({hint})" if hint else ""))


def near(word: str, words: Sequence[str]) -> str:
    """The word that was probably meant, or nothing."""
    from difflib import get_close_matches  # noqa: PLC0415, RUF100  rarely needed, slow to import

    return next(iter(get_close_matches(word, words, n=1, cutoff=0.6)), "")


def string(value: object, what: str) -> str:
    """A string."""
    if isinstance(value, str):
        return value
    hint = "put it in quotes" if isinstance(value, int | float) and not isinstance(value, bool) else ""
    raise expected(what, value, hint)


def strings(value: object, what: str, item: Callable[[str], object]) -> tuple[str, ...]:
    """An array of strings; the ValueError has a sentence for each that `item` does not take."""
    if not isinstance(value, list):
        hint = f"write ['{value}']" if isinstance(value, str) and _PLAIN.fullmatch(value) else ""
        raise expected(what, value, hint)
    taken: list[str] = []
    faults: list[str] = []
    for one in value:
        try:
            if not isinstance(one, str):
                raise expected(what, one)
            item(one)
            if one in taken:
                raise ValueError(f"expected each entry once, found {found(one)} again")
            taken.append(one)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError(*faults)
    return tuple(taken)


def version(value: object) -> str:
    return _version(value, "a driver version such as '535.309.01'")


def cuda_version(value: object) -> str:
    return _version(value, "a CUDA version such as '12.4.1'")


def _version(value: object, what: str) -> str:
    text = string(value, what)
    # `current` is the name of the link beside the versions.
    if not naming.is_version(text) or text == naming.CURRENT:
        raise expected(what, value)
    return text


def product(value: object) -> str:
    what = "a word such as 'grid', or an empty string"
    text = string(value, what)
    if text and not naming.is_version(text):
        raise expected(what, value)
    return text


_MODULE = re.compile(r"[A-Za-z0-9_-]{1,55}", re.ASCII)


_MODULES = "an array of module names such as ['nvidia', 'nvidia-uvm']"


def module(name: str) -> None:
    if not _MODULE.fullmatch(name):
        raise expected(_MODULES, name, "no path and no '.ko'" if "." in name or "/" in name else "")


def modules(value: object) -> tuple[str, ...]:
    return strings(value, _MODULES, module)


def some_modules(value: object) -> tuple[str, ...]:
    if not (names := modules(value)):
        raise expected("at least one module", value)
    return names


_PARAMETER = re.compile(r"[A-Za-z0-9_-]+(=[^\x00-\x1f\x7f]*)?", re.ASCII)


def module_parameters(value: object) -> tuple[str, ...]:
    what = "an array of parameters such as ['NVreg_ModifyDeviceFiles=0']"

    def check(parameter: str) -> None:
        if not _PARAMETER.fullmatch(parameter):
            raise expected(what, parameter)

    return strings(value, what, check)


_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", re.ASCII)
_COMPONENT = re.compile(r"[a-z0-9]+((\.|__?|-+)[a-z0-9]+)*", re.ASCII)


def _is_registry(text: str) -> bool:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host = text
    elif not (port.isascii() and port.isdecimal() and int(port[:6]) < 65536):
        return False
    if host.startswith("["):
        return re.fullmatch(r"\[[0-9A-Fa-f:.]+\]", host) is not None
    return all(_LABEL.fullmatch(label) for label in host.split("."))


def repository(value: object) -> str:
    return _repository(value, "an image name such as 'registry.example/nvidia-driver'", "image.tag")


def signatures_repository(value: object) -> str:
    return (
        ""
        if value == ""
        else _repository(value, "an image name such as 'registry.example/signatures'", "the digest's")
    )


def cuda_repository(value: object) -> str:
    return _repository(value, "an image name such as 'registry.example/cuda'", "cuda.tag")


def _repository(value: object, what: str, tag_key: str) -> str:
    text = string(value, what)
    if "://" in text:
        raise expected(what, value, "without a scheme")
    if "@" in text:
        raise expected(what, value, "without a digest: nvidiad asks the registry for it")
    first, slash, rest = text.partition("/")
    registry = bool(slash) and (
        "." in first or ":" in first or first == "localhost" or first.lower() != first
    )
    components = (rest if registry else text).split("/")
    if ":" in components[-1]:
        raise expected(what, value, f"without a tag: that is {tag_key}")
    if len(text) > 255 or (registry and not _is_registry(first)):
        raise expected(what, value)
    if not all(_COMPONENT.fullmatch(component) for component in components):
        raise expected(what, value, "in lower case" if text != text.lower() else "")
    return text


_FIELDS = ("{os}", "{driver}", "{kernel}", "{product}", "{-product}")
_CUDA_FIELDS = ("{version}",)
_FIELD = re.compile(r"\{[^{}]*\}")


def tag(value: object) -> str:
    return _tag(value, "a tag with fields such as '{os}-{driver}{-product}'", _FIELDS)


def cuda_tag(value: object) -> str:
    return _tag(value, "a tag with a field such as '{version}'", _CUDA_FIELDS)


def _tag(value: object, what: str, fields: Sequence[str]) -> str:
    text = string(value, what)
    for name in _FIELD.findall(text):
        if name not in fields:
            meant = near(name, fields)
            hint = f"did you mean {meant}?" if meant else f"there are {', '.join(fields)}"
            raise expected(what, name, hint)
    # A field that is known may begin a tag; each stands for something of at least one character.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", _FIELD.sub("f", text), re.ASCII):
        raise expected(what, value)
    return text


_PATH = re.compile(r"/[A-Za-z0-9._+@/-]*", re.ASCII)


def path(value: object) -> PurePosixPath:
    what = "an absolute path"
    text = string(value, what)
    if text.startswith("unix:"):
        raise expected(what, value, "without 'unix:'")
    if not text.startswith("/") or ".." in text.split("/") or len(text) > 1024:
        raise expected(what, value)
    if not _PATH.fullmatch(text):
        # The linker's configuration and overlay's options give other characters a meaning of their own.
        raise expected("a path of letters, digits and ._+@-", value)
    return PurePosixPath("/" + text.lstrip("/"))


def auth_file(value: object) -> PurePosixPath | None:
    return None if value == "" else path(value)


def seconds(minimum: float, maximum: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        what = f"a number of seconds from {minimum:g} to {maximum:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = "without quotes" if isinstance(value, str) and re.fullmatch(r"[0-9.]+", value) else ""
            raise expected(what, value, hint)
        if (isinstance(value, float) and math.isnan(value)) or not minimum <= value <= maximum:
            raise expected(what, value)
        return float(value)

    return check


def choice(*words: str) -> Callable[[object], str]:
    """A check for one of these words."""

    def check(value: object) -> str:
        what = " or ".join(f"'{word}'" for word in words)
        text = string(value, what)
        if text not in words:
            meant = near(text, words)
            raise expected(what, value, f"did you mean '{meant}'?" if meant else "")
        return text

    return check


def exposure(value: object) -> Exposure:
    return Exposure(choice(*Exposure)(value))


def change(value: object) -> Change:
    return Change(choice(*Change)(value))


def switch(value: object) -> bool:
    if not isinstance(value, bool):
        hint = "without quotes" if value in ("true", "false") else ""
        raise expected("true or false", value, hint)
    return value


def count(minimum: int, maximum: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise expected(f"a whole number from {minimum} to {maximum}", value)
        return value

    return check


_SIZE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?(kB|MB|GB|TB)", re.ASCII)
_UNITS_OF_SIZE = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def size(value: object) -> int:
    """Bytes: `"20 MB"`, or 0 for no limit."""
    if value == 0 and not isinstance(value, bool):
        return 0
    what = "a size such as '20 MB', or 0 for none"
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None or not float(match[1]):
        raise expected(what, value)
    return int(float(match[1]) * _UNITS_OF_SIZE[match[2]])


def signatures(value: object) -> Signatures:
    return Signatures(choice(*Signatures)(value))


def keys(value: object) -> tuple[PurePosixPath, ...]:
    what = "an array of files such as ['/etc/nvidiad/keys/images.pem']"
    return tuple(PurePosixPath(each) for each in strings(value, what, path))


_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


def pins(value: object) -> Mapping[str, str]:
    """Digests by the name and tag of an image; the ValueError has a sentence for each fault."""
    what = "a table such as {'registry.example/nvidia-driver:4593.2.5-570.86.15' = 'sha256:…'}"
    if not isinstance(value, dict):
        raise expected(what, value)
    faults: list[str] = []
    for name, digest in value.items():
        image, colon, label = name.rpartition(":")
        try:
            if not colon or "/" in label:
                raise expected("an image name with its tag", name)
            _repository(
                image, "an image name with a tag such as 'registry.example/nvidia-driver:1.2'", "its own"
            )
            _tag(label, "a tag", ())
            if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
                raise expected(
                    f"a digest such as 'sha256:…' with 64 hexadecimal digits for '{name}'", digest
                )
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError(*faults)
    return MappingProxyType(dict(value))


def optional_path(value: object) -> PurePosixPath | None:
    return None if value == "" else path(value)


def feature_file(value: object) -> PurePosixPath | None:
    place = optional_path(value)
    if place is not None and (place.name.startswith(".") or len(place.parts) < 3):
        # node-feature-discovery does not read such a name, and nobody would say so.
        raise expected("a file in a directory, whose name does not begin with a dot", value)
    return place


def command(value: object) -> tuple[str, ...]:
    what = "an array of a program's absolute path and its arguments"
    if not isinstance(value, list) or not all(isinstance(word, str) and "\0" not in word for word in value):
        raise expected(what, value)
    if value and not value[0].startswith("/"):
        raise expected(what, value[0])
    return tuple(value)


def hold(value: object) -> bool:
    return choice("hold", "start")(value) == "hold"


_KINDS = ("service", "target", "socket", "timer", "path", "mount", "automount", "swap", "slice", "scope")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,200}", re.ASCII)
_OWN = (
    *("nvidia.service", "nvidiad.service", "nvidiad.socket", "nvidia-persistenced.service"),
    *("nvidia-fabricmanager.service", "nvidia-cdi.service", "nvidia-health.service"),
)
# nvidiad needs these to get a driver: made to wait for one, they would wait for ever.
_NEEDED = (
    *("basic.target", "sysinit.target", "local-fs.target", "network.target", "network-online.target"),
    *("docker.service", "docker.socket", "containerd.service", "dbus.service", "dbus.socket"),
    *("dbus-broker.service", "systemd-sysext.service"),
)


_UNITS = "an array of unit names such as ['kubelet.service']"


def _gate(name: str) -> None:
    stem, _, kind = name.rpartition(".")
    if not _UNIT.fullmatch(name) or not stem or kind not in _KINDS[:-2]:
        plain = _UNIT.fullmatch(name) and kind not in _KINDS
        raise expected(_UNITS, name, f"did you mean '{name}.service'?" if plain else "")
    if stem.endswith("@"):
        raise expected(_UNITS, name, "a template: name its instances")
    if name in _OWN or name in _NEEDED:
        why = "brings it" if name in _OWN else "nvidiad needs"
        raise ValueError(f"expected units that wait for the driver, found '{name}', which {why}")


def gated(value: object) -> tuple[str, ...]:
    return strings(value, _UNITS, _gate)
