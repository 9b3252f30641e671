# SPDX-License-Identifier: Apache-2.0
"""Manual pages as Markdown: the part of scdoc(5) that ours use, for the pages of the site."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|])")
_REFERENCE = re.compile(r"\*\*(nvidia[\w.-]*)\*\*\((\d)\)")


@dataclass
class _Writer:
    """Lines so far, and whether what is indented belongs to a term."""

    lines: list[str] = field(default_factory=list)
    in_list: bool = False
    headed: bool = False
    """Terms become headings, which can be linked to."""


def inline(text: str) -> str:
    """`*bold*` and `_underlined_` as Markdown has them; everything else literally."""
    made, bold, underlined, at = [], False, False, 0
    while at < len(text):
        char = text[at]
        around = text[at - 1 : at] + text[at + 1 : at + 2]
        if char == "\\" and at + 1 < len(text):
            at += 1
            made.append(_SPECIAL.sub(r"\\\1", text[at]))
        elif char == "*":
            bold = not bold
            made.append("**")
        elif char == "_" and not (len(around) == 2 and around.isalnum()):
            underlined = not underlined
            made.append("*")
        else:
            made.append(_SPECIAL.sub(r"\\\1", char))
        at += 1
    return "".join(made)


def plain(text: str) -> str:
    """Without markup, for what is typed."""
    return re.sub(r"\\(.)|(?<!\w)_|_(?!\w)|\*", lambda found: found[1] or "", text)


def _block(lines: list[str], out: _Writer) -> None:
    tabbed = [line.startswith("\t") for line in lines]
    if all(tabbed):
        stripped = [line[1:] for line in lines]
        if out.in_list:
            out.lines += [("" if out.headed else "    ") + inline(line) for line in stripped] + [""]
        else:
            out.lines += ["```text", *(plain(line.removesuffix("++")) for line in stripped), "```", ""]
    elif any(tabbed):
        first = tabbed.index(True)
        out.lines += [inline(" ".join(lines[:first]))]
        out.in_list = True
        told = [inline(line[1:] if line.startswith("\t") else line) for line in lines[first:]]
        if out.headed:
            out.lines[-1] = f"### {out.lines[-1].replace('*', '')}"
            out.lines += ["", *told, ""]
        else:
            out.lines += [f":   {told[0]}", *(f"    {line}" for line in told[1:]), ""]
    else:
        out.in_list = False
        out.lines += [
            inline(line.removesuffix("++")) + ("  " if line.endswith("++") else "") for line in lines
        ]
        out.lines.append("")


def markdown(source: str, pages: dict[str, str], *, headed: bool = False) -> str:
    """A page of man/ as Markdown; `pages` has the link of each page that may be referred to."""
    heading, _, text = source.partition("\n")
    out = _Writer([f"# {inline(heading)}", ""], headed=headed)
    waiting: list[str] = []
    literal = False
    for line in [*text.splitlines(), ""]:
        if line.strip() == "```":
            literal = not literal
            out.lines += ["```text" if literal else "```", *([] if literal else [""])]
        elif literal:
            out.lines.append(line)
        elif line.startswith("; "):
            continue
        elif line.startswith("#"):
            marks, _, words = line.partition(" ")
            out.in_list = False
            title = words.capitalize().replace("Nvidiad", "nvidiad") if words.isupper() else words
            out.lines += [f"#{marks} {inline(title)}", ""]
        elif line.strip():
            # An example is a block of its own even where no empty line is in front of it.
            if line.startswith("\t*") and waiting and waiting[-1].endswith("++"):
                line = "\t" + line.strip()
            waiting.append(line)
        elif waiting:
            if waiting[0].startswith("\t"):
                waiting = [each if each.startswith("\t") else f"\t{each}" for each in waiting]
            _block(waiting, out)
            waiting = []

    def link(found: re.Match[str]) -> str:
        target = pages.get(f"{found[1]}.{found[2]}")
        return f"[{found[0]}]({target})" if target else found[0]

    return _REFERENCE.sub(link, "\n".join(out.lines))
