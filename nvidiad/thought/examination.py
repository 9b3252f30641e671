# SPDX-License-Identifier: Apache-2.0
"""Examination: the checks that read many files or start programs, and how all of them are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code
from nvidiad.nouns.value import Value
from nvidiad.thought.preflight import State, failed, listed, passed, skipped, warned
from nvidiad.thought.render import clean, size
from nvidiad.thought.symbols import different

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nvidiad.nouns.model import Gpu, ModuleFile
    from nvidiad.thought.preflight import Check
    from nvidiad.thought.symbols import Imports, Known

SYMBOLS, FABRIC, SPACE, HOST_MODULES = "symbols", "fabric-manager", "space", "modprobe"
# A driver's image without graphics, once as it is pulled and once as its tree.
BYTES_FLOOR = 1 << 30
INODES_FLOOR = 2000


# ---------------------------------------------------------------------------------------------------
# Symbols


def symbols(modules: Sequence[ModuleFile], imports: Sequence[Imports], known: Known, kernel: str) -> Check:
    """The kernel offers what the modules import, with the CRCs that they were compiled with.

    A difference under the same release means another build of it: the kernel would refuse the module.
    """
    if known.why:
        return skipped(SYMBOLS, known.why)
    theirs = known.vermagic.strip()
    other = next((module for module in modules if theirs and module.vermagic.strip() != theirs), None)
    if other is not None:
        return failed(
            SYMBOLS,
            Code.VERMAGIC_MISMATCH,
            f"'{other.path}' was built for '{other.vermagic.strip()}', "
            f"the modules of kernel '{kernel}' for '{theirs}'",
            "Publish an image that is built with this kernel's own configuration.",
        )
    if not any(each.versions for each in imports):
        return skipped(SYMBOLS, "the modules say no CRCs: they were built without MODVERSIONS")
    offered = {name for each in imports for name in each.exports}
    compared, unknown = 0, None
    for each in imports:
        mine = {name: crc for name, crc in each.versions.items() if name not in offered}
        compared += sum(name in known.crcs for name in mine)
        if wrong := different(mine, known.crcs):
            named = listed([f"'{name}'" for name in wrong])
            return failed(
                SYMBOLS,
                Code.SYMBOL_MISMATCH,
                f"'{each.path}' was built for another build of kernel '{kernel}': {len(wrong)} of its "
                f"{len(each.versions)} imports have other CRCs here ({named})",
                "Publish an image that is built for this very kernel.",
            )
        if known.whole and (missing := sorted(name for name in mine if name not in known.crcs)):
            unknown = unknown or (each.path, listed([f"'{name}'" for name in missing]))
    if unknown:
        # Another module may bring them, one that did not come with the kernel: insmod tells.
        return warned(
            SYMBOLS,
            Code.SYMBOL_UNKNOWN,
            f"'{unknown[0]}' imports {unknown[1]}, which kernel '{kernel}' does not export",
            "Where insmod refuses it, publish an image that is built for this very kernel.",
        )
    if not compared:
        return skipped(SYMBOLS, f"{known.source} have none of the symbols that the modules import")
    return passed(SYMBOLS, f"{compared} imports have the CRCs that {known.source} have")


def host_modules(needed: Sequence[str], forbidden: Sequence[tuple[str, str]]) -> Check:
    """modprobe may load what the driver's modules need."""
    if not needed:
        return skipped(HOST_MODULES, "the driver's modules need none of the kernel's")
    if forbidden:
        name, path = forbidden[0]
        return warned(
            HOST_MODULES,
            Code.DEPENDENCY_MISSING,
            f"'{path}' forbids modprobe to load '{name}', which the driver's modules need",
            f"Take that line out of '{path}', or load '{name}' before nvidia.service.",
        )
    return passed(HOST_MODULES, f"modprobe may load {', '.join(needed)}")


# ---------------------------------------------------------------------------------------------------
# The fabric manager


def fabric(gpus: Sequence[Gpu], driver: str, managers: Mapping[str, str]) -> Check:
    """Where there are NVSwitches, a fabric manager of the driver's very version is there.

    `managers` are those that were found, by their path, each with the version that it says; empty where it
    says none.
    """
    switches = [gpu.address for gpu in gpus if gpu.switch]
    for path, version in managers.items():
        if driver and version and version != driver:
            return failed(
                FABRIC,
                Code.FABRIC_MISMATCH,
                f"'{path}' is of version {version}, and refuses driver {driver}",
                f"Install the fabric manager of version {driver}.",
            )
    if not switches:
        return skipped(FABRIC, "this host has no NVSwitch")
    if not managers:
        return failed(
            FABRIC,
            Code.FABRIC_MISSING,
            f"the host has {len(switches)} NVSwitches, and neither tree nor host has a fabric manager",
            f"Publish an image that brings it, or install that of version {driver}.",
        )
    path, version = next(iter(managers.items()))
    return passed(FABRIC, f"'{path}' is {f'of version {version}' if version else 'there'}")


# ---------------------------------------------------------------------------------------------------
# The disk


class Room(Value):
    """What is free in a file system."""

    directory: str
    bytes: int
    inodes: int | None
    """None where the file system makes them as they are needed."""


def space(room: Room, largest: int, files: int) -> Check:
    """There is room for one more tree, as large as the largest that is here."""
    needed, inodes = max(BYTES_FLOOR, 2 * largest), max(INODES_FLOOR, 2 * files)
    where = f"'{room.directory}'"
    remedy = "Make room there, or set install.root to another place."
    if room.inodes is not None and room.inodes < inodes:
        return warned(
            SPACE,
            Code.DISK_FULL,
            f"{where} has {room.inodes} free inodes, fewer than {inodes}: another tree may not fit",
            remedy,
        )
    if room.bytes < needed:
        return warned(
            SPACE,
            Code.DISK_FULL,
            f"{where} has {size(room.bytes)} free, less than {size(needed)}: another tree may not fit",
            remedy,
        )
    count = "" if room.inodes is None else f" and {room.inodes} inodes"
    return passed(SPACE, f"{where} has {size(room.bytes)}{count} free")


# ---------------------------------------------------------------------------------------------------
# For a person

_MARKS = {State.PASSED: "●", State.WARNING: "!", State.FAILED: "✗", State.SKIPPED: "○"}
_COLOURS = {State.PASSED: "32", State.WARNING: "33", State.FAILED: "31", State.SKIPPED: "2"}


def word(check: Check) -> str:
    """What stands in the column of codes."""
    return check.code or check.state


def row(check: Check) -> dict[str, str]:
    """A check as JSON has it."""
    return {
        "check": check.name,
        "code": word(check),
        "state": str(check.state),
        "text": check.sentence,
        "remedy": check.remedy,
    }


def listing(checks: Sequence[Check], *, width: int = 0, colour: bool = False) -> str:
    """A row for each check, and below one that did not pass what to do; a summary ends it.

    `width` is that of the terminal, 0 where nothing is to be wrapped.
    """
    names = max((len(check.name) for check in checks), default=0)
    codes = max((len(word(check)) for check in checks), default=0)
    indent = " " * (names + codes + 6)
    wrap = _wrapper(width - len(indent) - 2)
    lines: list[str] = []
    for check in checks:
        paint = f"\x1b[{_COLOURS[check.state]}m{_MARKS[check.state]}\x1b[0m"
        mark = paint if colour else _MARKS[check.state]
        head = f"{mark} {check.name:{names}}  {word(check):{codes}}  "
        first, *rest = wrap(clean(check.sentence))
        lines += [head + first, *(indent + line for line in rest)]
        if check.remedy:
            first, *rest = wrap(f"→ {clean(check.remedy)}")
            lines += [indent + first, *(f"{indent}  {line}" for line in rest)]
    lines.append(summary(checks))
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _wrapper(width: int) -> Callable[[str], list[str]]:
    if width < 30:
        return lambda text: [text]
    import textwrap

    return lambda text: textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def summary(checks: Sequence[Check]) -> str:
    """How many came to what."""
    counts = {state: sum(check.state is state for check in checks) for state in State}
    words = [f"{counts[State.PASSED]} in order"]
    words += [f"{counts[State.FAILED]} failed"] if counts[State.FAILED] else []
    if counts[State.WARNING]:
        words.append(f"{counts[State.WARNING]} warning{'s' if counts[State.WARNING] > 1 else ''}")
    words += [f"{counts[State.SKIPPED]} skipped"] if counts[State.SKIPPED] else []
    return f"{len(checks)} checks: {', '.join(words)}"


def in_order(checks: Sequence[Check]) -> bool:
    """Whether nothing failed; warnings and what was skipped are no failure."""
    return all(check.state is not State.FAILED for check in checks)


def told_version(text: str) -> str:
    """The driver version in what a program says of itself; empty where there is none."""
    words = (word.strip(":,()") for word in text.split())
    return next((each for each in words if naming.BRANCHED.fullmatch(each)), "")
