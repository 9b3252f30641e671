# SPDX-License-Identifier: Apache-2.0
"""The codes explained: what each means, where it comes from and what to do, as values and as text."""

from __future__ import annotations

import difflib
import textwrap
import tomllib
from typing import TYPE_CHECKING

from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FIELDS = ("meaning", "example", "cause", "remedy")


class Group(Value):
    """Codes that belong together, the page of docs/ that is about them, and what holds for all of them."""

    title: str
    page: str = ""
    note: str = ""


class Explanation(Value):
    """One code. Backticks are around what is typed or written literally."""

    code: str
    meaning: str
    example: str
    """A sentence that comes with it."""
    cause: str
    remedy: str
    group: Group


def read(text: str) -> tuple[Explanation, ...]:
    """The explanations in nvidiad/codes.toml, in its order."""
    found = []
    for table in tomllib.loads(text).values():
        group = Group(table.pop("title"), table.pop("page", ""), table.pop("note", ""))
        found += [Explanation(code=code, group=group, **said) for code, said in table.items()]
    return tuple(found)


def asked(word: str) -> str:
    """The code in what somebody has copied: as it is, or in the brackets in which it is printed."""
    return word.rpartition("[")[2].rstrip("].").strip().lower().replace("_", "-")


def nearest(word: str, codes: Iterable[str]) -> str:
    """The code that was probably meant, or nothing."""
    return next(iter(difflib.get_close_matches(word, list(codes), n=1)), "")


def plain(text: str) -> str:
    """Without markup: names stand in single quotes, as in the sentences."""
    return text.replace("`", "'")


def text(explanation: Explanation, width: int = 80) -> str:
    """One explanation for a terminal."""
    lines = [f"{explanation.code} - {plain(explanation.meaning)}"]
    for label, said in (
        ("Says", explanation.example),
        ("Cause", explanation.cause),
        ("To do", explanation.remedy),
    ):
        lines.append(
            textwrap.fill(
                plain(said),
                width,
                initial_indent=f"{label:>7}: ",
                subsequent_indent=" " * 9,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return "\n".join(lines) + "\n"


def listing(explanations: Sequence[Explanation]) -> str:
    """All codes with their meanings, by group."""
    lines: list[str] = []
    width = max(len(each.code) for each in explanations)
    title = ""
    for each in explanations:
        if each.group.title != title:
            title = each.group.title
            lines += [*([""] if lines else []), f"{title}:"]
        lines.append(f"  {each.code:{width}}  {plain(each.meaning)}")
    return "\n".join(lines) + "\n"
