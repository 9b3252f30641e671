# SPDX-License-Identifier: Apache-2.0
"""The site: README, docs/ and the manual pages, laid out for Zensical below build/site by `make site`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

from tools import manual

CHECKOUT = Path(__file__).parents[1]
BUILD = CHECKOUT / "build/site"
STYLE = CHECKOUT / "tools/site.css"
# The list of pages; one of docs/ that is not named here comes last in `Using it`.
NAV: dict[str, tuple[str, ...]] = {
    "Using it": (
        *("docs/install.md", "docs/configuration.md", "docs/status.md", "docs/kubernetes.md"),
        *("docs/troubleshooting.md", "docs/migration.md"),
    ),
    "Images": ("docs/images.md",),
    "Manual pages": (),
    "How it holds": ("docs/performance.md", "docs/reliability.md", "SECURITY.md"),
    "Working on it": (
        *("docs/architecture.md", "HACKING.md", "CONTRIBUTING.md", "docs/releasing.md"),
        *("requirements/README.md", "docker/README.md", "NEWS.md"),
    ),
}
# Where the heading is not what one looks for.
TITLES = {
    "docs/status.md": "Status and codes",
    "docs/images.md": "Making images",
    "docker/README.md": "Sources of images",
    "requirements/README.md": "Locks",
}
MANUALS = ("nvidiad.1", "nvidiad.service.8", "nvidiad.toml.5", "nvidiad-codes.7", "nvidiad-image.1")
FEATURES = (
    *("navigation.sections", "navigation.top", "navigation.footer"),
    *("content.code.copy", "search.highlight", "toc.follow"),
)
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def manuals() -> dict[str, str]:
    """The pages of man/, by name, and where they are in the site."""
    found = {path.stem for path in (CHECKOUT / "man").glob("*.scd")}
    return {name: f"man/{name}.md" for name in (*MANUALS, *sorted(found - set(MANUALS))) if name in found}


def nav() -> dict[str, tuple[str, ...]]:
    """The list of pages: sections and their sources, those that are there."""
    named = {source for sources in NAV.values() for source in sources}
    others = sorted(f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md"))
    made = {
        section: tuple(source for source in sources if (CHECKOUT / source).exists())
        for section, sources in NAV.items()
    }
    made["Using it"] += tuple(source for source in others if source not in named)
    made["Manual pages"] = tuple(f"man/{name}.scd" for name in manuals())
    return made


def places() -> dict[str, str]:
    """Where each source is in the site."""
    found = {"README.md": "index.md"}
    for sources in nav().values():
        for source in sources:
            path = PurePosixPath(source)
            if path.suffix == ".scd":
                found[source] = f"man/{path.stem}.md"
            elif path.name == "README.md":
                found[source] = f"{path.parent.name}.md"
            else:
                found[source] = path.name.lower()
    return found


def relative(target: str, page: str) -> str:
    """A link from one page of the site to another file of it."""
    return os.path.relpath(target, str(PurePosixPath(page).parent))


def rewritten(text: str, source: str, assets: set[str]) -> str:
    """A page with its links as the site has them; files that are no pages are added to `assets`."""
    there = places()
    page = there[source]

    def link(found: re.Match[str]) -> str:
        target, hash_, fragment = found[1].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return found[1]
        inside = os.path.normpath(PurePosixPath(source).parent / target)
        if inside in there:
            return relative(there[inside], page) + hash_ + fragment
        if inside == "man":
            return relative("man/nvidiad.1.md", page)
        if not (CHECKOUT / inside).is_file():
            raise ValueError(f"'{source}' links to '{found[1]}', which the site cannot have")
        assets.add(inside)
        return relative(f"files/{inside}", page)

    parts = _FENCED.split(text)
    return "".join(part if at % 2 else _LINK.sub(link, part) for at, part in enumerate(parts))


def _title(source: str) -> str:
    if source in TITLES:
        return TITLES[source]
    if source.endswith(".scd"):
        stem, _, section = PurePosixPath(source).stem.rpartition(".")
        return f"{stem}({section})"
    heading = re.search(r"^# (.+)$", (CHECKOUT / source).read_text(), re.MULTILINE)
    return heading[1] if heading else source


def config(site_url: str) -> str:
    """zensical.toml: no fonts and no scripts from elsewhere."""
    there = places()
    lines = [
        "[project]",
        'site_name = "nvidiad"',
        'site_description = "Keeps the right NVIDIA driver on Linux hosts that update themselves"',
        *([f'site_url = "{site_url}"'] if site_url else []),
        'copyright = "Apache-2.0"',
        'docs_dir = "pages"',
        'site_dir = "html"',
        'extra_css = ["files/site.css"]',
        "nav = [",
        '  { "Home" = "index.md" },',
    ]
    for section, sources in nav().items():
        rows = ", ".join(f'{{ "{_title(source)}" = "{there[source]}" }}' for source in sources)
        lines.append(f'  {{ "{section}" = [{rows}] }},')
    lines += [
        "]",
        "[project.theme]",
        "font = false",
        f"features = {json.dumps(FEATURES)}",
    ]
    for scheme, media, icon, name in (
        ("default", "light", "lucide/sun", "Switch to the dark page"),
        ("slate", "dark", "lucide/moon", "Switch to the light page"),
    ):
        lines += [
            "[[project.theme.palette]]",
            f'media = "(prefers-color-scheme: {media})"',
            f'scheme = "{scheme}"',
            'primary = "black"',
            'accent = "green"',
            f'toggle.icon = "{icon}"',
            f'toggle.name = "{name}"',
        ]
    lines += [
        "[project.markdown_extensions]",
        "admonition = {}",
        "attr_list = {}",
        "def_list = {}",
        "tables = {}",
        "toc.permalink = true",
        "pymdownx.superfences = {}",
        "pymdownx.highlight.anchor_linenums = false",
    ]
    return "\n".join(lines) + "\n"


def lay_out(build: Path, site_url: str = "") -> None:
    """Everything that Zensical needs, below `build`."""
    shutil.rmtree(build, ignore_errors=True)
    pages = build / "pages"
    assets: set[str] = set()
    names = manuals()
    for source, place in places().items():
        text = (CHECKOUT / source).read_text()
        if source.endswith(".scd"):
            links = {name: relative(target, place) for name, target in names.items()}
            made = manual.markdown(text, links, headed=source.endswith(".7.scd"))
        else:
            made = rewritten(text, source, assets)
        (pages / place).parent.mkdir(parents=True, exist_ok=True)
        (pages / place).write_text(made)
    for inside in assets:
        (pages / "files" / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKOUT / inside, pages / "files" / inside)
    (pages / "files").mkdir(exist_ok=True)
    shutil.copyfile(STYLE, pages / "files/site.css")
    (build / "zensical.toml").write_text(config(site_url))


def main(given: list[str]) -> int:
    """Lay the site out and build it with the program that is named."""
    [program] = given
    lay_out(BUILD, os.environ.get("SITE_URL", ""))
    done = subprocess.run([program, "build", "--clean", "--strict"], cwd=BUILD, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
