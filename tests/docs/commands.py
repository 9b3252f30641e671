# SPDX-License-Identifier: Apache-2.0
"""The commands that the pages show, and a table of who runs each: a test, CI, or nobody and why."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tools import manual

CHECKOUT = Path(__file__).parents[2]
MANUALS = sorted((CHECKOUT / "man").glob("*.scd"))


@dataclass(frozen=True)
class Command:
    """One command of a page, as it is typed, and the output that is shown below it."""

    page: str
    line: int
    text: str
    output: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    def parts(self) -> list[list[str]]:
        """The programs of a pipeline or list with their arguments; what is redirected is left out."""
        split = shlex.shlex(self.text, posix=True, punctuation_chars="|&;<>")
        split.whitespace_split, split.commenters = True, ""
        found: list[list[str]] = [[]]
        skip = False
        for word in split:
            if set(word) <= set("|&;"):
                found.append([])
            elif set(word) <= set("<>"):
                skip = True
            elif skip:
                skip = False
            else:
                found[-1].append(word)
        return [part for part in found if part]


def on_page(page: str, text: str) -> list[Command]:
    """The commands in the blocks marked `console`: a line with a prompt, and those that it goes on to."""
    found: list[Command] = []
    inside, number, lines = False, 0, text.splitlines()
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.startswith("```"):
            inside = line == "```console"
        elif inside and line.startswith(("# ", "$ ")):
            at, typed = number, line[2:]
            while typed.endswith("\\") and number < len(lines):
                typed = typed[:-1].rstrip() + " " + lines[number].strip()
                number += 1
            found.append(Command(page, at, re.sub(r"\s+# .*$", "", typed)))
        elif inside and found:
            last = found.pop()
            found.append(Command(last.page, last.line, last.text, f"{last.output}{line}\n"))
    return found


def in_manual(page: str, text: str) -> list[Command]:
    """The commands among the examples of a manual page: what is bold there, line by line."""
    found = []
    examples = re.search(r"^# EXAMPLES?\n(.*?)(?=^# |\Z)", text, re.MULTILINE | re.DOTALL)
    if examples:
        first = text[: examples.start(1)].count("\n") + 1
        for number, line in enumerate(examples[1].splitlines(), first):
            if command := re.fullmatch(r"\t?\*(.*?)\*(?:\+\+)?", line):
                found.append(Command(page, number, manual.plain(command[1])))
    return found


def shown() -> list[Command]:
    """Every command of every page."""
    pages = [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md"), *CHECKOUT.glob("contrib/**/*.md")]
    pages += [CHECKOUT / "docker/README.md", CHECKOUT / "requirements/README.md"]
    found = []
    for path in sorted(pages):
        found += on_page(path.relative_to(CHECKOUT).as_posix(), path.read_text())
    for path in MANUALS:
        found += in_manual(path.relative_to(CHECKOUT).as_posix(), path.read_text())
    return found


class How(Enum):
    """What becomes of a command."""

    HOST = "run here, on a host that is a directory"
    PLAIN = "run here as it is"
    MAKE = "run here with --dry-run"
    TEST = "a test runs it: `where` has all of `words`"
    CI = "CI runs it"
    NOT = "nobody runs it: `where` says why"


@dataclass(frozen=True)
class Rule:
    """Commands of one kind, by a pattern of the whole command. The first rule that matches counts."""

    pattern: str
    how: How
    where: str = ""
    words: tuple[str, ...] = ()


NVIDIAD = r"(?:/opt/nvidiad/bin/|\.venv/bin/)?nvidiad"
RULES = (
    # -- run here
    Rule(rf"{NVIDIAD} (?:plan|check|list|gc --dry-run)(?: .*)?", How.HOST),
    Rule(rf"{NVIDIAD}(?:-image|-kubernetes)? (?:\w+ )?--(?:help|version)", How.PLAIN),
    Rule(rf"{NVIDIAD} explain(?: .*)?", How.PLAIN),
    Rule(r"promtool (?:check|test) .*", How.PLAIN),
    Rule(r"scdoc .*", How.PLAIN),
    Rule(r"make (?:demo|test)(?: .*)?", How.CI),
    Rule(r"make [a-z-]+(?: [A-Z_]+=\S+)*", How.MAKE),
    # -- a test runs it
    Rule(
        rf"{NVIDIAD} (?:status|reconcile|list)?(?: .*)?",
        How.TEST,
        "tests/host/test_road.py",
        ('nvidiad("status"',),
    ),
    Rule(rf"{NVIDIAD}", How.TEST, "tests/host/test_road.py", ('nvidiad("status"',)),
    Rule(rf"{NVIDIAD} reboot-check", How.TEST, "tests/host/test_staging.py", ("reboot-check",)),
    Rule(rf"until {NVIDIAD} status .*", How.TEST, "tests/host/test_road.py", ('nvidiad("status"',)),
    Rule(rf"{NVIDIAD} run .*", How.TEST, "units/systemd/system/nvidiad.service", ("nvidiad run",)),
    Rule(rf"{NVIDIAD} install .*", How.TEST, "tests/host/test_road.py", ('"install"',)),
    Rule(
        r"nvidiad-image (?:releases|developer|build|cuda|matrix|publish)\b.*",
        How.TEST,
        "tests/images/test_cli.py",
        ('"matrix"',),
    ),
    Rule(r"nvidiad-image prove .*", How.TEST, "tests/images/test_prove.py", ("prove",)),
    Rule(
        r"systemctl (?:start|enable --now|reload) nvidiad?(?:\.service)?",
        How.TEST,
        "tests/host/test_road.py",
        ('systemctl("start", "nvidiad.service")',),
    ),
    *(
        Rule(pattern, How.TEST, "tests/host/test_documented.py", (f'block("{title}")',))
        for title, pattern in (
            (
                "The driver is to be unloaded by hand",
                r"systemctl stop (?:nvidiad\.socket )?nvidiad?\.service",
            ),
            ("The kubelet does not start", r"systemctl list-dependencies kubelet\.service"),
            ("Programs do not find libcuda", r"ldconfig -p \| grep libcuda"),
            ("Uninstall", r"systemctl disable --now nvidiad\.socket .*"),
            ("Uninstall", r"rm (?:-[rf] )?/(?:opt/nvidiad|etc)/?.*"),
            ("Uninstall", r"systemctl daemon-reload && systemctl start kubelet"),
        )
    ),
    Rule(r"journalctl .*", How.TEST, "tests/host/road.py", ("journalctl",)),
    Rule(r"curl .*--unix-socket .*", How.TEST, "tests/host/test_socket.py", ('"curl"', '"--unix-socket"')),
    Rule(r"varlinkctl (?:introspect|call) .*", How.TEST, "tests/host/test_socket.py", ("varlink(",)),
    Rule(r"systemd-inhibit --list", How.TEST, "tests/host/ahead.py", ("locks",)),
    Rule(
        r"docker run --rm --privileged -v /:/rootfs .*",
        How.TEST,
        "tests/vm/test_bed.py",
        ("docker run --rm --privileged",),
    ),
    Rule(r"docker pull .*", How.TEST, "tests/host/test_images.py", ("docker", "pull")),
    Rule(r"docker push .*", How.TEST, "tests/vm/test_bed.py", ("docker push",)),
    Rule(r"python3 -m venv /opt/nvidiad && .*", How.TEST, "tests/beds/common.py", ("-m venv",)),
    Rule(
        r"(?:RELEASE_KEY=\S+ )?tools/release\.sh .*",
        How.TEST,
        "tests/unit/test_release.py",
        ("release(", "RELEASE_KEY"),
    ),
    Rule(
        r"ssh-keygen -Y verify .*|sha256sum --check .*",
        How.TEST,
        "tests/unit/test_release.py",
        ('"verify"', '"sha256sum"'),
    ),
    Rule(r"tools/prepare\.sh(?: .*)?", How.CI),
    Rule(r"(?:NVIDIAD_\w+=\S+ )*\.venv/bin/python -m (?:pytest|tests\.reliability) .*", How.CI),
    Rule(r"systemd-run --pipe --wait .*next-os", How.NOT, "the program is the reader's"),
    # -- neither
    # -- installing
    Rule(
        r"(?:tar -xzf nvidiad-.*|nvidiad-\S+/install|/opt/nvidiad/previous/install)",
        How.TEST,
        "tests/vm/test_bundle.py",
        ("-xzf", "/install"),
    ),
    Rule(r"/opt/nvidiad/current/uninstall", How.TEST, "tests/vm/test_bundle.py", ("current/uninstall",)),
    Rule(
        r"(?:mkdir -p /var/lib/extensions .*|cp nvidiad-\S+\.raw .*|rm /var/lib/extensions/.*)",
        How.TEST,
        "tests/vm/test_bundle.py",
        ("/var/lib/extensions/nvidiad.raw",),
    ),
    Rule(
        r"(?:systemd-sysext (?:merge|refresh)|systemctl (?:daemon-reload|restart nvidiad\.service|"
        r"(?:un)?mask --runtime (?:--now )?nvidiad\.socket nvidiad\.service))",
        How.TEST,
        "tests/vm/test_bundle.py",
        ("systemd-sysext merge", "systemd-sysext refresh", "systemctl daemon-reload"),
    ),
    Rule(
        r"(?:apt install \./nvidiad_.*|systemctl enable nvidiad\.service && systemctl restart .*)",
        How.TEST,
        "tests/host/test_deb.py",
        ('"-i"', "systemctl enable nvidiad.service && systemctl restart nvidiad.service"),
    ),
    Rule(r"butane --strict .*", How.NOT, "no package of it; a translator and Ignition itself stand in"),
    Rule(r"\./install\.sh .*", How.TEST, "tests/host/test_provision.py", ("install.sh",)),
    Rule(r"docker run .* nvidiad:\S+(?: \w+)?", How.TEST, "tests/host/test_provision.py", ("docker",)),
    Rule(
        r"(?:cp \S+\.tmpfiles\.conf .*|systemd-tmpfiles --create nvidia-smi\.conf)",
        How.TEST,
        "tests/unit/kubernetes/test_schemas.py",
        ("systemd-tmpfiles",),
    ),
    Rule(
        r"skopeo copy docker://\S+ oci-archive:.*", How.TEST, "tests/host/test_direct.py", ("oci-archive:",)
    ),
    Rule(
        r"python3 -m tools\.bundle --(?:stage|usr|source) ?.*",
        How.NOT,
        "steps of `make bundle`, which tests/beds/bundle.py and tests/bundle make of the same functions",
    ),
    Rule(r"\$EDITOR .*", How.NOT, "a person's choice"),
    Rule(r"git push .*", How.NOT, "the maintainer's, after all has been looked at"),
    Rule(r"(?:sed .* \| )?(?:kubectl|helm) .*", How.NOT, "needs a cluster"),
)


def rule_of(command: Command) -> Rule | None:
    """What becomes of a command; None for one that nobody has thought of."""
    return next((rule for rule in RULES if re.fullmatch(rule.pattern, command.text)), None)
