# SPDX-License-Identifier: Apache-2.0
"""The commands of the pages: what can be run here is run, the others are known, none names what is not."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvidiad import options as daemon
from nvidiad.image import cli as image
from nvidiad.kubernetes.cli import parser as companion
from nvidiad.thought import render
from tests.docs import commands
from tests.docs.commands import How
from tests.payload import builder
from tests.unit import facts as f
from tests.unit.trees import make_tree
from tools import words

if TYPE_CHECKING:
    import argparse

    from tests.docs.commands import Command

CHECKOUT = Path(__file__).parents[2]
COMMANDS = commands.shown()
PARSERS: dict[str, argparse.ArgumentParser] = {
    "nvidiad": daemon.parser(),
    "nvidiad-image": image.parser(),
    "nvidiad-kubernetes": companion({}),
}
CONFIGURATION = f'[driver]\nversion = "{f.DRIVER}"\n[image]\nrepository = "registry.example/nvidia-driver"\n'


def of(*kinds: How) -> pytest.MarkDecorator:
    found = [c for c in COMMANDS if (rule := commands.rule_of(c)) and rule.how in kinds]
    return pytest.mark.parametrize("command", found, ids=lambda command: f"{command.page}:{command.line}")


# -- all of them ------------------------------------------------------------------------------------------


def test_there_are_commands_of_every_kind() -> None:
    assert len(COMMANDS) > 60
    found = {rule.how for command in COMMANDS if (rule := commands.rule_of(command))}
    assert found >= {How.HOST, How.PLAIN, How.MAKE, How.TEST, How.CI, How.NOT}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}:{command.line}")
def test_somebody_has_thought_of_every_command(command: Command) -> None:
    rule = commands.rule_of(command)
    assert rule, f"{command}\nSay in tests/docs/commands.py, RULES, who runs it, or why nobody does."
    if rule.how is How.TEST:
        text = (CHECKOUT / rule.where).read_text()
        assert [word for word in rule.words if word not in text] == [], (
            f"{rule.where} does not run {command}"
        )
    if rule.how is How.NOT:
        assert len(rule.where) > 10


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}:{command.line}")
def test_a_shell_could_read_it(command: Command) -> None:
    done = subprocess.run(["bash", "-n", "-c", command.text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), command


def test_no_rule_is_for_nothing() -> None:
    """But for programs of our own, of which a page may show any verb at any time."""
    used = {rule for command in COMMANDS if (rule := commands.rule_of(command))}
    idle = [rule.pattern for rule in commands.RULES if rule not in used and rule.how is How.NOT]
    assert idle == []


def test_a_command_that_nobody_has_thought_of_is_seen() -> None:
    [command] = commands.on_page(
        "p.md", "# x\n```console\n# frobnicate --all  # why\nout\n```\n$ not this\n"
    )
    assert (command.line, command.text, command.output) == (3, "frobnicate --all", "out\n")
    assert commands.rule_of(command) is None


def test_lines_that_go_on_are_one_command() -> None:
    [command] = commands.on_page("p.md", "```console\n$ a \\\n    b | c >d && e\n```\n")
    assert command.text == "a b | c >d && e"
    assert command.parts() == [["a", "b"], ["c"], ["e"]]


# -- what they name ---------------------------------------------------------------------------------------


def refused(arguments: list[str], parser: argparse.ArgumentParser) -> str:
    """Why the parser does not take them, or nothing."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            parser.parse_args(arguments)
        except SystemExit as end:
            return said.getvalue() if end.code else ""
    return ""


def ours(command: Command) -> list[tuple[str, list[str]]]:
    """Our own programs in it, with their arguments."""
    found = [(Path(part[0]).name, part[1:]) for part in command.parts() if part]
    found += [(Path(part[1]).name, part[2:]) for part in command.parts() if part[0] in ("until", "exec")]
    return [(name, arguments) for name, arguments in found if name in PARSERS]


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if ours(c)], ids=lambda command: f"{command.page}:{command.line}"
)
def test_our_programs_take_what_is_shown(command: Command) -> None:
    for name, arguments in ours(command):
        given = arguments or (["status"] if name == "nvidiad" else [])
        assert refused(given, PARSERS[name]) == "", command


INLINE = re.compile(r"`(nvidiad(?:-image|-kubernetes)?)((?: [^`\s]+)+)`")


@pytest.mark.parametrize(
    "page", sorted({*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md")}), ids=lambda p: p.name
)
def test_verbs_and_options_that_are_named_are_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for name, rest in INLINE.findall(text):
        parser, given = PARSERS[name], rest.split()
        if name == "nvidiad-kubernetes":
            known = {option.name for option in words.options(parser)}
        else:
            verbs = {verb.name: verb for verb in words.verbs(parser)}
            if given[0].startswith("-"):
                known = {
                    o.name
                    for o in (*words.options(parser), *verbs.get("status", verbs[next(iter(verbs))]).options)
                }
            else:
                assert given[0] in verbs, f"{page.name} names `{name}{rest}`"
                known = {option.name for option in verbs[given[0]].options}
        for word in given:
            if word.startswith("--"):
                assert word.partition("=")[0].partition("[")[0] in known, f"{page.name} names `{name}{rest}`"


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if c.output.startswith(("●", "↻", "○", "✗")) and "status" in c.text],
    ids=lambda command: f"{command.page}:{command.line}",
)
def test_the_status_that_is_shown_has_lines_that_there_are(command: Command) -> None:
    there = set(re.findall(r'"([A-Z][A-Za-z ]+)"', Path(render.__file__).read_text()))
    shown = re.findall(r"^ +([A-Z][A-Za-z ]+): ", command.output, re.MULTILINE)
    assert shown
    assert set(shown) <= there


# -- run here ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host with a tree on disk, and nothing of it in force."""
    root = tmp_path_factory.mktemp("docs") / "host"
    builder.payload(root, driver=f.DRIVER, release=("flatcar", f.OS), kernel=f.KERNEL)
    gpu = "sys/bus/pci/devices/0000:01:00.0"
    return make_tree(
        root,
        {
            "etc/nvidiad/nvidiad.toml": CONFIGURATION,
            "etc/os-release": f"ID=flatcar\nVERSION_ID={f.OS}\n",
            "proc/sys/kernel/osrelease": f"{f.KERNEL}\n",
            "proc/self/mountinfo": "",
            f"{gpu}/vendor": "0x10de\n",
            f"{gpu}/device": "0x20b5\n",
            f"{gpu}/class": "0x030200\n",
            "usr/lib64": None,
        },
    )


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with our programs as this Python has them, to put first in PATH."""
    made = tmp_path_factory.mktemp("bin")
    for name, module in (
        ("nvidiad", "nvidiad.cli"),
        ("nvidiad-image", "nvidiad.image.cli"),
        ("nvidiad-kubernetes", "nvidiad.kubernetes.cli"),
    ):
        path = made / name
        path.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
        path.chmod(0o755)
    return made


def run(command: str, programs: Path, cwd: Path = CHECKOUT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@of(How.HOST)
def test_it_looks_at_a_host(command: Command, host: Path, programs: Path) -> None:
    [(name, arguments)] = ours(command)
    verb, *rest = arguments
    kept = [word for word in rest if not word.startswith(("--root", "--config"))]
    line = " ".join([name, verb, f"--root={host}", f"--config={host}/etc/nvidiad/nvidiad.toml", *kept])
    done = run(line, programs)
    # What is on disk only is not in force, which `check` has to say.
    assert done.returncode == (1 if verb == "check" else 0), done.stderr
    assert done.stderr == ""
    assert f.OS in done.stdout or verb == "gc"


@of(How.PLAIN)
def test_it_runs(command: Command, programs: Path) -> None:
    program = command.parts()[0][0]
    if program in ("promtool", "scdoc") and not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    done = run(
        command.text, programs, CHECKOUT / "contrib/prometheus" if program == "promtool" else CHECKOUT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(command.output)


@of(How.MAKE)
def test_make_knows_it(command: Command, programs: Path) -> None:
    done = run(command.text.replace("make ", "make --dry-run ", 1), programs)
    assert done.returncode == 0, done.stderr


def test_ci_runs_what_the_readme_says() -> None:
    assert (CHECKOUT / ".ci/run").read_text().splitlines()[-1] == "exec make test"
