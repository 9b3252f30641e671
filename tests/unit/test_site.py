# SPDX-License-Identifier: Apache-2.0
"""The site: every page is in it, every link leads somewhere, and a reader's browser asks nobody else."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from nvidiad.nouns.errors import Code
from tools import manual, site

CHECKOUT = Path(__file__).parents[2]
ZENSICAL = CHECKOUT / ".venv/site/bin/zensical"


class Page(HTMLParser):
    """Of a page: its names, what it links to, and what a browser loads for it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {key: value or "" for key, value in attrs}
        self.names |= {said[key] for key in ("id", "name") if said.get(key)}
        if tag == "a" and "href" in said:
            self.links.append(said["href"])
        elif tag == "link" and said.get("rel") not in ("canonical", "next", "prev", "alternate"):
            self.loads.append(said.get("href", ""))
        elif "src" in said:
            self.loads.append(said["src"])


# -- laid out ---------------------------------------------------------------------------------------------


def test_every_page_is_in_the_list() -> None:
    listed = [source for sources in site.nav().values() for source in sources]
    assert len(listed) == len(set(listed))
    wanted = {f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md")}
    wanted |= {f"man/{path.name}" for path in (CHECKOUT / "man").glob("*.scd")}
    wanted |= {path.name for path in CHECKOUT.glob("*.md")} - {"README.md"}
    assert wanted <= set(listed)
    assert len(set(site.places().values())) == len(site.places())


def test_links_are_those_of_the_site() -> None:
    assets: set[str] = set()
    page = (
        "[a](docs/status.md#problems) [b](https://x.example/) [c](contrib/images/recipe.toml) [d](man/)\n"
        "```console\n$ echo [e](docs/none.md)\n```\n[f](#here)\n"
    )
    assert site.rewritten(page, "README.md", assets) == (
        "[a](status.md#problems) [b](https://x.example/) [c](files/contrib/images/recipe.toml)"
        " [d](man/nvidiad.1.md)\n```console\n$ echo [e](docs/none.md)\n```\n[f](#here)\n"
    )
    assert assets == {"contrib/images/recipe.toml"}
    assert site.rewritten("[x](../README.md)", "docs/status.md", assets) == "[x](index.md)"
    assert site.rewritten("[x](../man/nvidiad.1.scd)", "docs/status.md", assets) == "[x](man/nvidiad.1.md)"


def test_a_link_that_the_site_cannot_have_is_told() -> None:
    with pytest.raises(ValueError, match=r"'docs/status.md' links to '../nowhere.md'"):
        site.rewritten("[x](../nowhere.md)", "docs/status.md", set())


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("*bold* and _name_", "**bold** and *name*"),
        ("one_word stays, and so does \\_this\\_", "one\\_word stays, and so does \\_this\\_"),
        ("a <b> [c] | d", "a \\<b\\> \\[c\\] \\| d"),
        ("*--json*=_pretty_|_short_", "**--json**=*pretty*\\|*short*"),
        ("_nvidiad_problem_, then", "*nvidiad\\_problem*, then"),
    ],
)
def test_markup_of_manual_pages(source: str, made: str) -> None:
    assert manual.inline(source) == made


def test_blocks_of_manual_pages() -> None:
    source = (
        "nvidiad(1)\n\n; said to nobody\n\n# NAME\n\nx - y\n\n*term* _ARG_\n\ttold\n\tmore\n\n\tsecond\n\n"
        "# EXAMPLES\n\nLook:\n\n\t*nvidiad plan*++\n*nvidiad*\n\nSee *nvidiad.toml*(5).\n"
    )
    assert manual.markdown(source, {"nvidiad.toml.5": "there.md"}) == (
        "# nvidiad(1)\n\n## Name\n\nx - y\n\n**term** *ARG*\n:   told\n    more\n\n    second\n\n"
        "## Examples\n\nLook:\n\n```text\nnvidiad plan\nnvidiad\n```\n\n"
        "See [**nvidiad.toml**(5)](there.md).\n"
    )
    headed = manual.markdown("n(7)\n\n*no-gpu*\n\tmeans\n\n\tcause\n", {}, headed=True)
    assert headed == "# n(7)\n\n### no-gpu\n\nmeans\n\ncause\n"


# -- built ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not ZENSICAL.exists():
        pytest.skip("Zensical is not installed: make site")
    build = tmp_path_factory.mktemp("site") / "build"
    site.lay_out(build)
    done = subprocess.run(
        [ZENSICAL, "build", "--clean", "--strict"], cwd=build, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    return build / "html"


@pytest.fixture(scope="module")
def pages(html: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in html.rglob("*.html")}


def test_every_link_of_the_site_leads_somewhere(html: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) >= 20
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for link in page.links:
            target, fragment = urldefrag(unquote(link))
            if re.match(r"[a-z]+:", target):
                continue
            there = (path.parent / target).resolve() if target else path
            there = there / "index.html" if there.is_dir() else there
            assert there.is_file(), f"{path.relative_to(html)} links to '{link}'"
            if fragment and there.suffix == ".html":
                assert fragment in pages[there].names, f"{path.relative_to(html)} links to '{link}'"


def test_a_browser_asks_nobody_else(html: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert page.loads, path
        for load in page.loads:
            assert not re.match(r"([a-z]+:)?//", load), f"{path.relative_to(html)} loads '{load}'"
    for sheet in html.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_every_code_can_be_linked_to(html: Path, pages: dict[Path, Page]) -> None:
    assert set(Code) <= pages[html / "man/nvidiad-codes.7/index.html"].names
