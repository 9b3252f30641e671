# SPDX-License-Identifier: Apache-2.0
"""Completions: whole, as they are made from the parsers, and as real shells take them."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvidiad import options as daemon
from nvidiad.image import cli as image
from nvidiad.nouns.errors import Code
from tools import completions, words

if TYPE_CHECKING:
    import argparse

CHECKOUT = Path(__file__).parents[2]
DIRECTORY = CHECKOUT / "completions"
PARSERS = {"nvidiad": daemon.parser(), "nvidiad-image": image.parser()}
FILES = ("{}.bash", "_{}", "{}.fish")


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


def test_the_completions_are_the_ones_that_are_made() -> None:
    made = completions.made()
    assert {path.name for path in DIRECTORY.iterdir()} == set(made)
    for name, text in made.items():
        assert (DIRECTORY / name).read_text() == text, "make completions"


@pytest.mark.parametrize("pattern", FILES)
@pytest.mark.parametrize("name", PARSERS)
def test_every_verb_and_option_is_there(name: str, pattern: str) -> None:
    """By the parser's own choices, not by what the maker of completions reads off it."""
    text = (DIRECTORY / pattern.format(name)).read_text()
    for verb, option in told(PARSERS[name]):
        assert re.search(rf"(?<![\w-]){verb}(?![\w-])", text), verb
        found = f"-l {option[2:]} " if pattern.endswith("fish") else option
        assert found in text, f"{verb} {option}"


def told(parser: argparse.ArgumentParser) -> set[tuple[str, str]]:
    """Verbs and options as the help of the program itself tells them."""
    found = set()
    for verb in words.verbs(parser):
        page = io.StringIO()
        with pytest.raises(SystemExit), contextlib.redirect_stdout(page):
            parser.parse_args([verb.name, "--help"])
        options = re.findall(r"^  (?:-h, )?(--[a-z0-9-]+)", page.getvalue(), re.MULTILINE)
        assert options
        found |= {(verb.name, option) for option in options}
    return found


@needs("bash")
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        (
            "nvidiad ",
            [
                "status",
                "plan",
                "reconcile",
                "list",
                "check",
                "explain",
                "install",
                "gc",
                "reboot-check",
                "run",
            ],
        ),
        ("nvidiad rec", ["reconcile"]),
        ("nvidiad --js", ["--json="]),
        ("nvidiad status --", ["--help", "--json=", "--config=", "--root="]),
        ("nvidiad --json=", ["pretty", "short", "off"]),
        ("nvidiad --json=s", ["short"]),
        ("nvidiad plan --json s", ["short"]),
        ("nvidiad gc --d", ["--dry-run"]),
        ("nvidiad status --d", []),
        ("nvidiad explain image-m", ["image-missing", "image-mismatch"]),
        ("nvidiad explain image-missing registry-a", ["registry-auth"]),
        ("nvidiad --config=li", []),
        ("nvidiad-image p", ["prove", "publish"]),
        ("nvidiad-image --v", ["--version"]),
        ("nvidiad-image build --flavour=", ["open", "proprietary"]),
        ("nvidiad-image releases --architecture=ar", ["arm64"]),
        ("nvidiad-image build --driver=x", []),
        ("nvidiad-image matrix contrib/images/re", ["contrib/images/recipe.toml"]),
        ("nvidiad-image cuda contrib/im", ["contrib/images"]),
        ("nvidiad-image build --sbom=contrib/images/re", ["contrib/images/recipe.toml"]),
    ],
)
def test_bash_completes(line: str, replies: list[str]) -> None:
    assert bash(line)[: len(replies) or None] == replies


@needs("bash")
def test_bash_completes_where_an_equals_sign_cuts_no_words() -> None:
    assert bash("nvidiad plan --json=s", breaks=" \t\n") == ["--json=short"]


def bash(line: str, breaks: str = " \t\n=") -> list[str]:
    """What bash's function leaves in COMPREPLY, for words cut as readline cuts them."""
    parts = re.findall(r"=|[^\s=]+", line) if "=" in breaks else line.split()
    if line.endswith((" ", "=")) and (line.endswith(" ") or "=" not in breaks):
        parts.append("")
    program = parts[0]
    script = f"""
        source completions/{program}.bash
        COMP_WORDS=({shlex.join(parts)}) COMP_CWORD={len(parts) - 1}
        COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}
        [[ $(complete -p {program}) =~ -F\\ ([^ ]+) ]]
        "${{BASH_REMATCH[1]}}" {shlex.join([program, parts[-1], parts[-2]])}
        [[ ${{#COMPREPLY[@]}} == 0 ]] || printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-uc", script],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@needs("fish")
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("nvidiad re", ["reboot-check", "reconcile"]),
        ("nvidiad --js", ["--json"]),
        ("nvidiad plan --json=", ["--json=off", "--json=pretty", "--json=short"]),
        ("nvidiad explain image-m", ["image-mismatch", "image-missing"]),
        ("nvidiad gc --d", ["--dry-run"]),
        ("nvidiad plan --d", []),
        ("nvidiad-image build --flavour=o", ["--flavour=open"]),
        ("nvidiad-image matrix contrib/images/re", ["contrib/images/recipe.toml"]),
    ],
)
def test_fish_completes(line: str, replies: list[str]) -> None:
    script = f"source completions/{line.split()[0]}.fish; complete -C {shlex.quote(line)}"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(row.split("\t")[0] for row in done.stdout.splitlines()) == replies


@needs("zsh")
@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("nvidiad expl", "nvidiad explain "),
        ("nvidiad explain image-mism", "nvidiad explain image-mismatch"),
        ("nvidiad gc --d", "nvidiad gc --dry-run"),
        ("nvidiad-image build --flavour=prop", "nvidiad-image build --flavour=proprietary"),
    ],
)
def test_zsh_completes(typed: str, becomes: str, tmp_path: Path) -> None:
    assert becomes in zsh(typed, tmp_path)


def zsh(typed: str, home: Path) -> str:
    """What stands on the line of a real zsh when tab was pressed; zsh completes on a terminal only."""
    (home / ".zshrc").write_text(
        f"PS1='ready> '\nfpath=({DIRECTORY} $fpath)\nautoload -Uz compinit\ncompinit -u -d {home}/dump\n"
        'unsetopt zle_bracketed_paste\nshow() { print -r -- "<$BUFFER>" >$HOME/line }\nzle -N show\n'
        "bindkey '^I' complete-word\nbindkey '^T' show\n"
    )
    terminal, inner = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    shell = subprocess.Popen(
        ["setsid", "--ctty", "zsh", "-i"], stdin=inner, stdout=inner, stderr=inner, env=environment
    )
    os.close(inner)
    try:
        until(terminal, "ready> ")
        os.write(terminal, f"{typed}\t\x14".encode())
        line, end = home / "line", time.monotonic() + 60
        while not (line.exists() and line.read_text().endswith(">\n")):
            assert time.monotonic() < end, "zsh does not answer"
            drain(terminal)
        return line.read_text()
    finally:
        shell.kill()
        shell.wait()
        os.close(terminal)


def until(terminal: int, words: str) -> None:
    seen, end = "", time.monotonic() + 60
    while words not in seen:
        assert time.monotonic() < end, seen
        seen += drain(terminal)


def drain(terminal: int) -> str:
    """What has come; waits for it a moment."""
    ready, _, _ = select.select([terminal], [], [], 0.05)
    return os.read(terminal, 4096).decode(errors="replace") if ready else ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_read_the_files(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    pattern = {"bash": "*.bash", "zsh": "_*", "fish": "*.fish"}[shell]
    for path in DIRECTORY.glob(pattern):
        done = subprocess.run([shell, "-n", path], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_completions_are_installed_where_shells_look(tmp_path: Path) -> None:
    subprocess.run([CHECKOUT / "tools/install-completions.sh", "."], cwd=tmp_path, check=True)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        "bash-completion/completions/nvidiad",
        "bash-completion/completions/nvidiad-image",
        "zsh/site-functions/_nvidiad",
        "zsh/site-functions/_nvidiad-image",
        "fish/vendor_completions.d/nvidiad.fish",
        "fish/vendor_completions.d/nvidiad-image.fish",
    }


def test_explain_completes_every_code() -> None:
    text = (DIRECTORY / "nvidiad.bash").read_text()
    assert set(Code) <= set(text.split("explain) takes='")[1].split("'")[0].split())
