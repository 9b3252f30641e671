# SPDX-License-Identifier: Apache-2.0
"""A proof's boot: which modules are inserted and in which order, and what the console tells of each.

Without a GPU the real nvidia.ko answers ENODEV where it fits the kernel and ENOEXEC where it does not
(nvidia_init_module in NVIDIA's kernel-open/nvidia/nv.c).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nvidiad.image.nouns.model import Check
from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code
from nvidiad.nouns.value import Value
from nvidiad.thought import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nvidiad.image.thought.elf import KernelModule

FIRST = ("nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm", "nvidia_peermem")


class Insertion(Value):
    """What is inserted, in this order: modules of the kernel's own, then those of the image."""

    host: tuple[str, ...]
    """Paths as the kernel's listing of modules has them."""
    modules: tuple[KernelModule, ...]
    missing: tuple[tuple[str, str], ...]
    """A module, and what it depends on and neither the kernel nor the image has."""


class Console(Value):
    """What a machine said."""

    text: str
    ended: bool
    """It switched itself off within its limit."""
    seconds: float


class Outcome(Value):
    """What came of one insertion."""

    module: str
    status: int | None
    """Of insmod; None where the machine did not come back from it."""
    said: str
    log: tuple[str, ...]
    """The kernel's lines since, without their times."""

    def kernel_said(self, pattern: str) -> list[str]:
        """What the group of a pattern matches in the kernel's lines, once each."""
        return list(dict.fromkeys(match for line in self.log for match in re.findall(pattern, line)))


class Boot(Value):
    """A console that was read."""

    kernel: str
    """What `uname -r` said there; empty where the machine never got that far."""
    outcomes: tuple[Outcome, ...]
    complete: bool
    last: str
    """Why the kernel died, or the console's last lines, for a person."""

    def outcome(self, name: str) -> Outcome | None:
        """What came of a module."""
        return next((outcome for outcome in self.outcomes if outcome.module == name), None)


# ---------------------------------------------------------------------------------------------------
# What goes in


def file_module(path: str) -> str:
    """The kernel's name of a module file, compressed or not."""
    return naming.module_name(path.rpartition("/")[2].partition(".ko")[0])


def insertion(
    modules: Sequence[KernelModule],
    listing: str,
    builtin: str,
    depends: Callable[[str], tuple[str, ...]],
) -> Insertion:
    """The order of insertion, from the texts of modules.dep or modules.order, and of modules.builtin.

    `depends` tells what a module of the kernel depends on, by its path in the listing: modules.order
    does not say it, and only depmod writes modules.dep. Raises ValueError where modules of the image depend
    on each other in a circle.
    """
    by_name = {module.name: module for module in modules}
    names = [*(name for name in FIRST if name in by_name), *sorted(set(by_name) - set(FIRST))]
    order = parse.load_order([module.file for module in modules], names)
    paths = [line.partition(":")[0].strip() for line in listing.splitlines()]
    known = {file_module(path): path for path in paths if path}
    inside = {file_module(path) for path in builtin.split()}
    host: dict[str, None] = {}
    missing: list[tuple[str, str]] = []
    visited: set[str] = set()

    def visit(name: str, wanted_by: str) -> None:
        if name in visited or name in inside:
            return
        visited.add(name)
        path = known.get(name)
        if path is None:
            missing.append((wanted_by, name))
            return
        for needed in depends(path):
            visit(naming.module_name(needed), name)
        host[path] = None

    for file in order:
        for name in map(naming.module_name, file.depends):
            if name not in by_name:
                visit(name, naming.module_name(file.name))
    ours = tuple(by_name[naming.module_name(file.name)] for file in order)
    return Insertion(tuple(host), ours, tuple(missing))


# ---------------------------------------------------------------------------------------------------
# What comes out

_OURS = "@nvidiad "
_TIME = re.compile(r"^(<\d+>)?\[ *\d+\.\d+\] ?")
_CAUSE = re.compile(r"Kernel panic|BUG:|Oops|VFS: ")
_LAST_LINES = 4


def read_console(text: str) -> Boot:
    """What our init wrote on the console; the kernel's own lines there are of a kernel that died."""
    lines = text.replace("\r", "").splitlines()
    kernel, complete = "", False
    outcomes: list[Outcome] = []
    open_name = ""
    status: int | None = None
    said = ""
    log: list[str] = []

    def close() -> None:
        if open_name:
            outcomes.append(Outcome(open_name, status, said, tuple(log)))

    for line in lines:
        verb, _, rest = line.removeprefix(_OURS).partition(" ") if line.startswith(_OURS) else ("", "", "")
        match verb:
            case "kernel":
                kernel = rest.strip()
            case "insert":
                close()
                open_name, status, said, log = rest.strip(), None, "", []
            case "status":
                number, _, said = rest.partition(" ")
                status = int(number) if number.isdigit() else None
            case "log":
                log.append(_TIME.sub("", rest))
            case "end":
                complete = True
            case _:
                continue
    close()
    others = [_TIME.sub("", line.strip()) for line in lines if line.strip() and not line.startswith(_OURS)]
    # Behind a death's cause stand its registers and its stack.
    causes = [line for line in others if _CAUSE.search(line)]
    return Boot(kernel, tuple(outcomes), complete, "; ".join((causes or others)[-_LAST_LINES:])[-600:])


# ---------------------------------------------------------------------------------------------------
# What it means


def boot_check(boot: Boot, console: Console, release: str) -> Check:
    """Whether the right kernel came up, took every module in hand, and switched itself off."""
    took = f"{console.seconds:.0f} s"
    if not boot.kernel:
        end = f"ended after {took}" if console.ended else f"was killed after {took}"
        words = f"; its last words: {boot.last}" if boot.last else "; its console stayed empty"
        return _failed(
            "boot", f"kernel '{release}' did not start its first process in QEMU and {end}{words}"
        )
    if boot.kernel != release:
        return _failed("boot", f"what booted calls itself '{boot.kernel}' and not '{release}'")
    if not boot.complete:
        where = boot.outcomes[-1].module if boot.outcomes else "nothing"
        end = "went down" if console.ended else f"did not come back within {took}"
        words = f"; its last words: {boot.last}" if boot.last else ""
        return _failed("boot", f"kernel '{release}' {end} while '{where}' was inserted{words}")
    sentence = f"kernel '{release}' booted in QEMU and was off after {took}"
    return Check("boot", passed=True, sentence=sentence)


def insert_checks(boot: Boot, insertion: Insertion, release: str, kernel_vermagic: str) -> tuple[Check, ...]:
    """A check for each module of the image; `kernel_vermagic` is that of the kernel's own modules."""
    live = {outcome.module for outcome in boot.outcomes if outcome.status == 0}
    host = {file_module(path) for path in insertion.host}
    refused = [outcome for outcome in boot.outcomes if outcome.module in host and outcome.status != 0]
    aside = "".join(f"; of the kernel's own modules '{each.module}' said: {each.said}" for each in refused)
    checks: list[Check] = []
    for module in insertion.modules:
        name = f"insert {module.name}"
        outcome = boot.outcome(module.name)
        if outcome is None or outcome.status is None:
            what = "did not come back from" if outcome else "never came to"
            checks.append(_failed(name, f"the machine {what} the insertion of '{module.name}'"))
            continue
        others = [other for other in insertion.modules if other.name not in live | {module.name}]
        waiting = {symbol: other.name for other in others for symbol in other.exports}
        code, sentence = judge(outcome, module, release, kernel_vermagic, waiting)
        checks.append(Check(name, code is None, sentence + aside if code else sentence, code))
    return tuple(checks)


def judge(
    outcome: Outcome, module: KernelModule, release: str, kernel_vermagic: str, waiting: Mapping[str, str]
) -> tuple[Code | None, str]:
    """What the outcome of an insertion proves: a code where the module does not fit, and a sentence.

    `waiting` has the exports of those modules of the image that are not in the kernel for want of a GPU, and
    by which of them.
    """
    name, said = module.name, outcome.said.lower()
    if outcome.status == 0:
        return None, f"'{name}' was loaded by kernel '{release}'"
    if "no such device" in said:
        return None, f"'{name}' fits kernel '{release}': it was started there and found no GPU (ENODEV)"
    if "invalid argument" in said and outcome.kernel_said(r"(without IB peer memory)"):
        return None, f"'{name}' fits kernel '{release}': it was started there and found no peer memory"
    disagreeing = outcome.kernel_said(r"disagrees about version of symbol (\S+)")
    if "invalid module format" in said or "exec format error" in said or disagreeing:
        mine, theirs = module.file.vermagic.strip(), kernel_vermagic.strip()
        sentence = f"'{name}' does not fit kernel '{release}' (ENOEXEC): it was built for '{mine}'"
        sentence += f", that kernel's own modules for '{theirs}'"
        return Code.VERMAGIC_MISMATCH, sentence + _kernel_says(outcome)
    if "unknown symbol" in said:
        return _unknown_symbols(outcome, module, release, waiting)
    if re.search(r"key was rejected|key not available|key has expired|key has been revoked", said):
        sentence = f"kernel '{release}' takes only modules signed with a key it knows and refuses '{name}'"
        return Code.MODULE_REJECTED, sentence + _kernel_says(outcome)
    if "operation not permitted" in said:
        sentence = f"kernel '{release}' is locked down and refuses '{name}'"
        return Code.LOCKDOWN, sentence + _kernel_says(outcome)
    words = outcome.said.rpartition("': ")[2] or f"status {outcome.status}"
    sentence = f"'{name}' was refused by kernel '{release}': {words}"
    return Code.MODULE_REFUSED, sentence + _kernel_says(outcome)


def _unknown_symbols(
    outcome: Outcome, module: KernelModule, release: str, waiting: Mapping[str, str]
) -> tuple[Code | None, str]:
    unknown = outcome.kernel_said(r"[Uu]nknown symbol (\S+)")
    strange = [symbol for symbol in unknown if symbol not in waiting]
    if unknown and not strange:
        others = ", ".join(f"'{name}'" for name in sorted({waiting[symbol] for symbol in unknown}))
        sentence = (
            f"'{module.name}' got as far as its imports from {others}, not loaded without a GPU (ENOENT)"
        )
        return None, sentence + ": that they are there is proven by the symbols"
    named = ", ".join(f"'{symbol}'" for symbol in strange[:5]) or "symbols that the kernel did not name"
    more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
    sentence = f"'{module.name}' imports {named}{more}, which kernel '{release}' does not have (ENOENT)"
    return Code.SYMBOL_UNKNOWN, sentence


_RELEVANT = re.compile(r"NVRM|nvidia|module|lockdown|firmware|BUG|Oops", re.IGNORECASE)
# Said at every load of a module from outside the kernel, and no reason for anything.
_NOISE = re.compile(r"taint|module license", re.IGNORECASE)


def _kernel_says(outcome: Outcome) -> str:
    lines = [
        line
        for line in dict.fromkeys(outcome.log)
        if (_RELEVANT.search(line) or outcome.module in line) and not _NOISE.search(line)
    ]
    return f"; the kernel says: {'; '.join(lines[:3])}" if lines else ""


def _failed(name: str, sentence: str) -> Check:
    return Check(name, passed=False, sentence=sentence, code=Code.PROOF_FAILED)
