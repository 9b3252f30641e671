# SPDX-License-Identifier: Apache-2.0
"""The documentation: whole where it lists things, links that lead somewhere, manual pages that build."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nvidiad import beside, cli, explain, options
from nvidiad.image import cli as image_cli
from nvidiad.nouns.errors import Code
from nvidiad.nouns.model import Phase
from nvidiad.thought import codes, config
from nvidiad.thought.settings import Settings
from tools import codes as pages_of_codes
from tools import words

if TYPE_CHECKING:
    import argparse

CHECKOUT = Path(__file__).parents[2]
DOCS = CHECKOUT / "docs"
README = (CHECKOUT / "README.md").read_text()
ARCHITECTURE = (DOCS / "architecture.md").read_text()
COMMAND_MAN = (CHECKOUT / "man/nvidiad.1.scd").read_text()
IMAGE_MAN = (CHECKOUT / "man/nvidiad-image.1.scd").read_text()
DAEMON_MAN = (CHECKOUT / "man/nvidiad.service.8.scd").read_text()
CONFIG_MAN = (CHECKOUT / "man/nvidiad.toml.5.scd").read_text()
MANUALS = sorted((CHECKOUT / "man").glob("*.scd"))
# What is not the project's own is in a directory whose name begins with a dot, or made by a build.
MADE = {"build", "dist"}


def own_files() -> list[Path]:
    """Every file that is tracked, or that would be."""
    if shutil.which("git") and (CHECKOUT / ".git").exists():
        command = ["git", "-C", str(CHECKOUT), "-c", f"safe.directory={CHECKOUT}"]
        listed = subprocess.run(
            [*command, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            text=True,
            check=True,
        )
        return [path for name in listed.stdout.split("\0") if name and (path := CHECKOUT / name).is_file()]
    found = [path for path in CHECKOUT.rglob("*") if path.is_file()]
    return [path for path in found if not any(_is_made(part) for part in path.relative_to(CHECKOUT).parts)]


def _is_made(part: str) -> bool:
    return part in MADE or part == "__pycache__" or part.endswith(".egg-info") or part[0] == "."


def name(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix()


PAGES = sorted(path for path in own_files() if path.suffix == ".md")


def prose(text: str) -> str:
    """A page without its examples."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The names that headings can be linked by."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


# -- links ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{name(page)} links to '{target}'"
        if fragment:
            assert fragment in anchors(there.read_text()), f"{name(page)} links to '{target}'"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    tops = "|".join(["bench", "contrib", "docker", "docs", "man", "nvidiad", "tests", "tools", "units"])
    for path in re.findall(rf"`((?:{tops})/[\w./-]+)(?:::\w+)?`", prose(page.read_text())):
        assert (CHECKOUT / path).exists(), f"{name(page)} names '{path}'"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tests_that_are_named_exist(page: Path) -> None:
    for path, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
        tree = ast.parse((CHECKOUT / path).read_text())
        found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert test in found, f"{name(page)} names '{test}' of {path}"


def test_every_page_is_linked_from_the_readme_or_from_a_page_that_is() -> None:
    seen: set[Path] = set()
    waiting = [CHECKOUT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)#\s]+)", prose(page.read_text()))
        waiting += [(page.parent / link).resolve() for link in links if not re.match(r"[a-z]+:", link)]
    orphans = {page for page in PAGES if page.parent in (CHECKOUT, DOCS)} - seen
    assert not orphans, "link them from README.md, under More"


# -- what is listed is listed whole -----------------------------------------------------------------------


@pytest.mark.parametrize("code", Code)
def test_every_code_is_explained(code: Code) -> None:
    [said] = [each for each in explain.explanations() if each.code == code]
    for field in codes.FIELDS:
        words = getattr(said, field)
        assert len(words) > 10 and words == words.strip(), f"{code}: {field}"
        assert "|" not in words and "\n" not in words
        assert words.count("`") % 2 == 0, f"{code}: {field}"
    assert not said.meaning.endswith(".") and said.cause.endswith(".") and said.remedy.endswith((".", "?"))


def test_nothing_is_explained_that_is_not_there() -> None:
    told = [each.code for each in explain.explanations()]
    assert len(told) == len(set(told))
    assert set(told) == set(Code)
    short = README.split("\n| code |")[1].split("\n\n")[0]
    first_cells = " ".join(re.findall(r"^\| (.*?) \|", short, re.MULTILINE))
    assert set(re.findall(r"`([^`]+)`", first_cells)) <= set(told)


def test_the_pages_of_codes_are_the_ones_that_are_made() -> None:
    made = explain.explanations()
    assert pages_of_codes.MANUAL.read_text() == pages_of_codes.manual(made), "make man"
    page = pages_of_codes.STATUS.read_text()
    assert page == pages_of_codes.status(page, made), "make man"


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_is_in_the_readme(phase: Phase) -> None:
    assert f"| `{phase}` |" in README


KEYS = [*((table, key) for table, keys in config._KEYS.items() for key in keys), ("driver", "parameters")]


@pytest.mark.parametrize(("table", "key"), KEYS, ids=".".join)
def test_every_key_is_documented(table: str, key: str) -> None:
    section = re.split(r"^### ", (DOCS / "configuration.md").read_text(), flags=re.MULTILINE)
    assert any(text.startswith(f"`[{table}]`") and f"| `{key}` |" in text for text in section)
    manual = re.split(r"^# ", CONFIG_MAN, flags=re.MULTILINE)
    words = f"*[{table}.{key}]*" if key == "parameters" else f"*{key}=*"
    assert any(text.startswith(f"[{table}]\n") and words in text for text in manual)


def test_the_manual_page_knows_no_other_key() -> None:
    found = set()
    for text in re.split(r"^# ", CONFIG_MAN, flags=re.MULTILINE):
        if header := re.match(r"\[([a-z]+)\]\n", text):
            found |= {(header[1], key) for key in re.findall(r"\*([a-z-]+)=\*", text)}
    assert found == set(KEYS) - {("driver", "parameters")}


def test_the_defaults_in_the_manual_page_are_those_of_the_settings() -> None:
    settings = Settings()
    for value in (
        settings.image.tag,
        settings.install.root,
        settings.engine.socket,
        settings.install.exposure,
        *settings.units.gated,
        *settings.driver.modules,
        *settings.driver.host_modules,
    ):
        assert f'"{value}"' in CONFIG_MAN
    daemon, image = settings.daemon, settings.image
    for numbers in (
        (daemon.poll,),
        (daemon.retry_initial, daemon.retry_maximum),
        (image.connect_timeout, image.stall_timeout, image.total_timeout),
    ):
        assert f"default {', '.join(f'_{number:g}_' for number in numbers)})" in CONFIG_MAN


@pytest.mark.parametrize(
    ("made", "page"),
    [(options.parser(), COMMAND_MAN), (image_cli.parser(), IMAGE_MAN)],
    ids=["nvidiad", "image"],
)
def test_every_verb_and_option_is_in_the_manual_page(made: argparse.ArgumentParser, page: str) -> None:
    verbs = words.verbs(made)
    assert len(verbs) >= 7
    for verb in verbs:
        assert re.search(rf"^\*{verb.name}\*", page, re.MULTILINE), f"the page does not explain {verb.name}"
        for option in verb.options:
            assert re.search(rf"\*{option.name}\b", page), (
                f"the page does not explain {option.name} of {verb.name}"
            )


def test_every_exit_status_is_in_the_manual_page() -> None:
    section = COMMAND_MAN.split("# EXIT STATUS")[1].split("\n# ")[0]
    told = {int(number) for number in re.findall(r"^\*(\d+)\*$", section, re.MULTILINE)}
    of_verbs = {cli.OK, cli.FAILED, cli.USAGE, cli.NOT_RUNNING, cli.NOT_READY, cli.WAIT}
    assert told == {*of_verbs, beside.GIVEN_UP}


def test_every_unit_is_in_the_manual_page() -> None:
    units = CHECKOUT / "units/systemd/system"
    for path in units.rglob("*"):
        if path.is_file():
            assert f"*{path.relative_to(units).as_posix()}*" in DAEMON_MAN


def test_every_room_is_on_the_architecture_page() -> None:
    told = set(re.findall(r"^\| `(nvidiad/\S+\.py)` \| ", ARCHITECTURE, re.MULTILINE))
    there = {name(p) for p in (CHECKOUT / "nvidiad").rglob("*.py") if p.name != "__init__.py"}
    assert told == there


def test_the_readmes_two_commands_are_there() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert re.search(rf"^# make {target}\b", README, re.MULTILINE)
    for page in PAGES:
        for target in re.findall(r"\bmake ([a-z]+)\b(?=`|\s+#| [A-Z]+=)", page.read_text()):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{name(page)}: make {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_configurations_that_are_shown_are_valid(page: Path) -> None:
    required = '[driver]\nversion = "1"\n[image]\nrepository = "r"\n'
    for example in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        assert config.load([("required", required), (name(page), example)])[1] == ()


def test_the_gate_that_is_shown_is_the_one_that_is_shipped() -> None:
    shown = re.search(r"^```ini\n(.*?)^```", (DOCS / "kubernetes.md").read_text(), re.MULTILINE | re.DOTALL)
    assert shown
    assert (
        (CHECKOUT / "units/systemd/system/kubelet.service.d/10-nvidia.conf").read_text().endswith(shown[1])
    )


def test_the_readme_is_short_and_the_pages_fit() -> None:
    assert len(README.splitlines()) <= 250
    for page in (CHECKOUT / "README.md", CHECKOUT / "HACKING.md", CHECKOUT / "NEWS.md", *DOCS.glob("*.md")):
        for number, line in enumerate(prose(page.read_text()).splitlines(), 1):
            # The words of a table or behind a link cannot be broken.
            assert len(line) <= 120 or line.startswith("|") or "](" in line, f"{name(page)}:{number}"


# -- manual pages -----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("scdoc") is None, reason="scdoc is not installed")
@pytest.mark.parametrize("source", MANUALS, ids=lambda path: path.stem)
def test_manual_pages_build(source: Path, tmp_path: Path) -> None:
    made = subprocess.run(["scdoc"], input=source.read_bytes(), capture_output=True, check=False)
    assert (made.returncode, made.stderr) == (0, b"")
    stem, _, section = source.stem.rpartition(".")
    assert f'.TH "{stem}" "{section}"'.encode() in made.stdout
    if shutil.which("groff"):
        page = subprocess.run(
            ["groff", "-man", "-t", "-ww", "-z"], input=made.stdout, capture_output=True, check=False
        )
        assert page.stderr == b""


@pytest.mark.parametrize("source", MANUALS, ids=lambda path: path.stem)
def test_manual_pages_say_what_they_are_about(source: Path) -> None:
    text = source.read_text()
    assert text.startswith(source.stem[::-1].replace(".", "(", 1)[::-1] + ")\n")
    assert re.search(r"\n# NAME\n\n\S+ - \S", text)
    assert text.count("\n```\n") % 2 == 0
    for line in text.splitlines():
        assert len(line) <= 140


def manuals(text: str) -> set[str]:
    """Pages of ours that a text points to, as they are called on disk."""
    found = re.findall(r"\b(nvidia[\w.-]*)\*?\((\d)\)", text)
    return {f"{stem}.{section}" for stem, section in found}


def test_manual_pages_that_are_pointed_to_are_installed() -> None:
    script = (CHECKOUT / "tools/install-man.sh").read_text()
    aliases = re.search(r"^for name in (.*); do$", script, re.MULTILINE)
    assert aliases
    there = {path.stem for path in MANUALS} | set(aliases[1].split())
    assert {
        "nvidiad.1",
        "nvidiad-image.1",
        "nvidiad.service.8",
        "nvidiad.toml.5",
        "nvidiad-codes.7",
    } <= there
    kinds = (".md", ".scd", ".py", ".service", ".socket", ".conf", ".sh")
    pointing = [path for path in own_files() if path.suffix in kinds]
    for path in pointing:
        # NVIDIA's own pages are not ours.
        assert manuals(path.read_text()) - {"nvidia-smi.1", "nvidia-persistenced.1"} <= there, name(path)


def test_units_point_to_manual_pages() -> None:
    for path in (CHECKOUT / "units").rglob("*.service"):
        assert re.search(r"^Documentation=man:nvidiad[\w.]*\(8\)", path.read_text(), re.MULTILINE), name(
            path
        )


@pytest.mark.skipif(shutil.which("scdoc") is None, reason="scdoc is not installed")
def test_manual_pages_are_installed_with_their_other_names(tmp_path: Path) -> None:
    # From where one is, not from where the script is.
    subprocess.run([CHECKOUT / "tools/install-man.sh", "."], cwd=tmp_path, check=True)
    assert (tmp_path / "man8/nvidiad.8").read_text() == ".so man8/nvidiad.service.8\n"
    assert {path.name for path in tmp_path.rglob("*.*")} >= {path.stem for path in MANUALS}


# -- nothing of the place where it is made ----------------------------------------------------------------

# In pieces, so that this file is not among those that name them.
REGISTRIES = (
    *(("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("npmjs", "com")),
    *(("crates", "io"), ("rubygems", "org"), ("deb.debian", "org"), ("proxy.golang", "org")),
)
PLACES = tuple(
    start + end
    for start, end in (
        (r"(?<![\w.}/-])/wo", r"rk\b"),
        (r"\.\./sha", r"red\b"),
        (r"/tmp/(ve", r"nv|brief|slice)"),
        (r"(?<![\w}])/ho", r"me/\w"),
    )
)
LEAKS = "|".join([*PLACES, *(rf"\b{re.escape('.'.join(host))}\b" for host in REGISTRIES)])


def test_no_file_names_this_machine_or_a_package_registry() -> None:
    pattern = re.compile(LEAKS.encode())
    found = []
    for path in own_files():
        data = path.read_bytes()
        if b"\0" not in data[:4096] and (match := pattern.search(data)):
            found.append(f"{name(path)}: {match[0]!r}")
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "see /" + "work/main",
        "in ../" + "shared/design.md",
        "https://py" + "pi.org/simple",
        "https://files.python" + "hosted.org/",
        "http://deb." + "debian.org/debian",
        "/" + "home/me",
    ],
)
def test_the_rule_sees_such_a_name(text: str) -> None:
    assert re.search(LEAKS, text)


@pytest.mark.parametrize("text", ["workdir=/x/work", "{scratch}/work", "docker.io/library/alpine", "a/work"])
def test_the_rule_lets_the_rest_be(text: str) -> None:
    assert not re.search(LEAKS, text)
