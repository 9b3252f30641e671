# SPDX-License-Identifier: Apache-2.0
"""The configuration: TOML fragments in, settings and every fault of every fragment out."""

from __future__ import annotations

import re
import tomllib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nvidiad.nouns import naming
from nvidiad.nouns.model import Signatures
from nvidiad.nouns.value import Value
from nvidiad.thought import engines, values
from nvidiad.thought.settings import (
    Cdi,
    Cuda,
    Daemon,
    Driver,
    Engine,
    Image,
    Install,
    Kubernetes,
    Reboot,
    Retention,
    Settings,
    Stage,
    Trust,
    Units,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Fault(Value):
    """Something in a fragment that cannot be as it is; `key` is empty for a fault of its syntax."""

    file: str
    key: str
    sentence: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        # a quoted key may hold anything
        key = self.key if self.key.isprintable() else repr(self.key)
        return ": ".join(part for part in (place, key, self.sentence) if part)


# ---------------------------------------------------------------------------------------------------
# Fragments

_KEYS: Mapping[str, Mapping[str, Callable[[object], object]]] = {
    "driver": {
        "version": values.version,
        "product": values.product,
        "modules": values.some_modules,
        "host-modules": values.modules,
        "attempts": values.count(1, 100),
        "change": values.change,
        "drain-timeout": values.seconds(1, 86400),
    },
    "image": {
        "repository": values.repository,
        "tag": values.tag,
        "auth-file": values.auth_file,
        "connect-timeout": values.seconds(1, 300),
        "stall-timeout": values.seconds(1, 3600),
        "total-timeout": values.seconds(10, 86400),
    },
    "trust": {
        "policy": values.signatures,
        "keys": values.keys,
        "repository": values.signatures_repository,
        "pins": values.pins,
    },
    "cuda": {
        "version": values.cuda_version,
        "repository": values.cuda_repository,
        "tag": values.cuda_tag,
    },
    "cdi": {"enabled": values.switch},
    "install": {"root": values.path, "exposure": values.exposure},
    "units": {"gated": values.gated, "when-missing": values.hold},
    "stage": {
        "enabled": values.switch,
        "spread": values.seconds(0, 86400),
        "bandwidth": values.size,
        "next-file": values.optional_path,
        "next-command": values.command,
    },
    "reboot": {
        "inhibit": values.switch,
        "maximum": values.seconds(1, 86400),
        "automatic": values.switch,
        "os-rollback": values.switch,
    },
    "retention": {
        "automatic": values.switch,
        "trees": values.count(1, 1000),
        "bytes": values.size,
    },
    "engine": {"kind": engines.kind, "socket": values.path, "mirrors": engines.mirrors},
    "kubernetes": {"nfd-file": values.feature_file},
    "daemon": {
        "poll": values.seconds(10, 86400),
        "retry-initial": values.seconds(1, 3600),
        "retry-maximum": values.seconds(1, 86400),
    },
}
_PARAMETERS = "driver.parameters"
# With none of a group nobody has configured it yet, which is no fault of a file.
_TOGETHER = (
    {"driver.version": "a driver version", "image.repository": "an image name"},
    {"cuda.version": "a CUDA version", "cuda.repository": "an image name"},
)

_WORD = r"""(?:[A-Za-z0-9_-]+|"[^"\\]*"|'[^']*')"""
_DOTTED = rf"{_WORD}(?:[ \t]*\.[ \t]*{_WORD})*"
_HEADER = re.compile(rf"[ \t]*\[\[?[ \t]*({_DOTTED})[ \t]*\]")
_KEY = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
# A quote that does not end on its line is no reason to begin again at each that follows it.
_OPAQUE = re.compile(r'"(?:\\.|[^"\\])*+(?:"|$)|\'[^\']*+(?:\'|$)|#.*')


def _dotted(text: str) -> str:
    return ".".join(word.strip("\"'") for word in re.findall(_WORD, text))


def lines_of_keys(text: str) -> dict[str, int]:
    """On which line each key and table is; tomllib does not say. Good enough for a message."""
    lines: dict[str, int] = {}
    table, depth, quoted = "", 0, False
    for number, line in enumerate(text.split("\n"), 1):
        fence = (line.count('"""') + line.count("'''")) % 2 == 1
        if not quoted and depth <= 0:
            depth = 0
            if header := _HEADER.match(line):
                table = _dotted(header[1])
                lines.setdefault(table, number)
                continue
            if key := _KEY.match(line):
                name = _dotted(key[1])
                lines.setdefault(f"{table}.{name}" if table else name, number)
        quoted ^= fence
        plain = _OPAQUE.sub("", line)
        depth += plain.count("[") - plain.count("]")
    return lines


_PLACE = re.compile(r" ?\(at (?:line (\d+), column (\d+)|end of document)\)$")


class _Reading:
    """What the fragments say, so far."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.values: dict[str, object] = {}
        self.parameters = dict(Driver().parameters)
        self.files: dict[str, tuple[str, int | None]] = {}
        """Where a key was last set, well or badly."""

    def fragment(self, file: str, text: str) -> None:
        try:
            document = tomllib.loads(text)
        except RecursionError:
            self.faults.append(Fault(file, "", "not TOML: nested too deeply"))
            return
        except ValueError as error:  # also: an integer of thousands of digits
            message = str(error)
            place = _PLACE.search(message)
            line, column = (int(place[1]), int(place[2])) if place and place[1] else (None, None)
            if place and line is None:  # "at end of document"
                line = text.rstrip().count("\n") + 1
            self.faults.append(Fault(file, "", "not TOML: " + _PLACE.sub("", message), line, column))
            return
        lines = lines_of_keys(text)

        def fault(key: str, sentence: str) -> None:
            near = key
            while near and near not in lines:
                near = near.rpartition(".")[0]
            self.faults.append(Fault(file, key, sentence, lines.get(near)))
            self.files[key] = (file, lines.get(near))

        for section, content in document.items():
            if section not in _KEYS:
                kind = "table" if isinstance(content, dict) else "key"
                fault(section, _unknown(kind, "", section, tuple(_KEYS)))
            elif not isinstance(content, dict):
                fault(section, f"expected a table: write [{section}] on a line of its own")
            else:
                self._section(section, content, fault)
                for name in content:
                    self.files[f"{section}.{name}"] = (file, lines.get(f"{section}.{name}"))

    def _section(self, section: str, content: dict[str, object], fault: Callable[[str, str], None]) -> None:
        checks = _KEYS[section]
        for name, value in content.items():
            key = f"{section}.{name}"
            if key == _PARAMETERS:
                self._parameters(value, fault)
            elif check := checks.get(name):
                try:
                    taken = check(value)
                    known = self.values.get(key)
                    if isinstance(taken, MappingProxyType) and isinstance(known, MappingProxyType):
                        taken = MappingProxyType({**known, **taken})
                    self.values[key] = taken
                except ValueError as error:
                    for sentence in error.args:
                        fault(key, sentence)
            else:
                extra = ("parameters",) if section == "driver" else ()
                fault(key, _unknown("key", section, name, (*checks, *extra)))

    def _parameters(self, value: object, fault: Callable[[str, str], None]) -> None:
        if not isinstance(value, dict):
            fault(_PARAMETERS, f"expected a table: write [{_PARAMETERS}] on a line of its own")
            return
        seen: set[str] = set()
        for name, parameters in value.items():
            module = naming.module_name(name)
            try:
                values.module(name)
                if module in seen:
                    raise ValueError(f"expected each module once, found '{name}' again")
                seen.add(module)
                self.parameters[module] = values.module_parameters(parameters)
            except ValueError as error:
                for sentence in error.args:
                    fault(f"{_PARAMETERS}.{name}", sentence)

    def across(self) -> None:
        """Find what only shows once all fragments are read."""
        minimum = self.values.get("daemon.retry-initial", Daemon().retry_initial)
        maximum = self.values.get("daemon.retry-maximum", Daemon().retry_maximum)
        if isinstance(minimum, float) and isinstance(maximum, float) and maximum < minimum:
            keys = ("daemon.retry-maximum", "daemon.retry-initial")
            key = next(key for key in keys if key in self.values)
            sentence = f"expected retry-maximum ({maximum:g}) to be no less than retry-initial ({minimum:g})"
            self.faults.append(Fault(self.files[key][0], key, sentence, self.files[key][1]))
            for key in keys:
                self.values.pop(key, None)
        policy = self.values.get("trust.policy")
        # One at fault is told by itself.
        unset = () if "trust.keys" not in self.files else None
        if policy not in (None, Signatures.OFF) and self.values.get("trust.keys", unset) == ():
            file, line = self.files["trust.policy"]
            sentence = f"expected at least one file, as trust.policy is '{policy}', found nothing"
            self.faults.append(Fault(file, "trust.keys", sentence, line))
        for group in _TOGETHER:
            given = [key for key in group if self.values.get(key)]
            for key, what in group.items():
                if given and key not in self.files:
                    fault = Fault(self.files[given[0]][0], key, f"expected {what}, found nothing")
                    self.faults.append(fault)

    def section(self, name: str) -> dict[str, Any]:
        prefix = f"{name}."
        return {
            key.removeprefix(prefix).replace("-", "_"): value
            for key, value in self.values.items()
            if key.startswith(prefix)
        }


def _unknown(kind: str, section: str, name: str, siblings: Sequence[str]) -> str:
    near = values.near(name, siblings)
    if near:
        near = f"{section}.{near}" if section else near
    else:
        # perhaps the right key in the wrong table
        near = next((f"{other}.{name}" for other, keys in _KEYS.items() if name in keys), "")
    return f"unknown {kind}" + (
        f" (did you mean {near}?)" if near else f" (there are {', '.join(siblings)})"
    )


def load(fragments: Sequence[tuple[str, str]]) -> tuple[Settings, tuple[Fault, ...]]:
    """The settings of fragments (file name, text), of which later ones override earlier ones.

    A value at fault is left out, so settings are always complete; whether to act on them is for the
    caller to decide. Tables are merged, arrays are replaced.
    """
    reading = _Reading()
    for file, text in fragments:
        reading.fragment(file, text)
    reading.across()
    units = reading.section("units")
    if "when_missing" in units:
        units["hold"] = units.pop("when_missing")
    settings = Settings(
        driver=Driver(**reading.section("driver"), parameters=MappingProxyType(reading.parameters)),
        image=Image(**reading.section("image")),
        trust=Trust(**reading.section("trust")),
        cuda=Cuda(**reading.section("cuda")),
        cdi=Cdi(**reading.section("cdi")),
        install=Install(**reading.section("install")),
        units=Units(**units),
        stage=Stage(**reading.section("stage")),
        reboot=Reboot(**reading.section("reboot")),
        retention=Retention(**reading.section("retention")),
        engine=Engine(**reading.section("engine")),
        kubernetes=Kubernetes(**reading.section("kubernetes")),
        daemon=Daemon(**reading.section("daemon")),
    )
    return settings, tuple(reading.faults)
