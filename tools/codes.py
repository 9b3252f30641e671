# SPDX-License-Identifier: Apache-2.0
"""The pages made of nvidiad/codes.toml, for `make man`: nvidiad-codes(7) and the table of docs/status.md."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad import explain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nvidiad.thought.codes import Explanation

CHECKOUT = Path(__file__).parents[1]
MANUAL = CHECKOUT / "man/nvidiad-codes.7.scd"
STATUS = CHECKOUT / "docs/status.md"
_HEAD = """\
nvidiad-codes(7)

; Written by tools/codes.py from nvidiad/codes.toml: make man.

# NAME

nvidiad-codes - what each code of nvidiad means, where it comes from, and what to do

# DESCRIPTION

Whatever is wrong has a code that is never renamed. It stands in brackets behind the sentence on a terminal,
in the field _NVIDIAD_CODE_ of a record in the journal, in _problem.code_ of the status document, in the
label _code_ of the metric _nvidiad_problem_, and in the second column of *nvidiad check*. *nvidiad
explain* CODE prints what is here.

Of each code there is what it means, a sentence that it comes with, the usual causes, and what to do.
"""
_TAIL = """\
# SEE ALSO

*nvidiad*(1), *nvidiad.service*(8), *nvidiad-image*(1)
"""
_TABLE = re.compile(r"(?<=\n)\| code \| sentence, for example \| remedy \|\n(?:\|.*\n)+")


def _literal(text: str) -> str:
    return re.sub(r"([\\*_<])", r"\\\1", text.replace("…", "..."))


def _marked(text: str) -> str:
    """Backticks become bold; nothing else of it is markup."""
    parts = text.split("`")
    return "".join(f"*{_literal(part)}*" if at % 2 else _literal(part) for at, part in enumerate(parts))


def _paragraph(text: str) -> str:
    made = textwrap.fill(text, 115, break_long_words=False, break_on_hyphens=False)
    # What begins a line must not look like markup or a request.
    return "\n".join("\t" + re.sub(r"^([.'#|\[\]-])", r"\\\1", line) for line in made.splitlines())


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")


def _entries(explanations: Sequence[Explanation]) -> Iterator[str]:
    title = ""
    for each in explanations:
        if each.group.title != title:
            title = each.group.title
            yield f"# {title.upper()}\n"
            if each.group.note:
                yield f"{_marked(_sentence(each.group.note))}\n"
        yield f"*{each.code}*\n{_paragraph(_marked(_sentence(each.meaning)))}\n"
        yield _paragraph(f"Says: {_marked(each.example)}") + "\n"
        yield _paragraph(f"Cause: {_marked(each.cause)}") + "\n"
        yield _paragraph(f"To do: {_marked(each.remedy)}") + "\n"


def manual(explanations: Sequence[Explanation]) -> str:
    """nvidiad-codes(7)."""
    return "\n".join([_HEAD, *_entries(explanations), _TAIL])


def table(explanations: Sequence[Explanation]) -> str:
    """The table of codes in docs/status.md."""
    lines = ["| code | sentence, for example | remedy |", "|---|---|---|"]
    title = ""
    for each in explanations:
        if each.group.title != title:
            title, page = each.group.title, each.group.page
            link = f" ([{page.partition('#')[0]}]({page}))" if page else ""
            note = f" ({each.group.note})" if each.group.note else ""
            lines.append(f"| **{title}**{link}{note} | | |")
        lines.append(f"| `{each.code}` | {each.example} | {each.remedy} |")
    return "\n".join(lines) + "\n"


def status(page: str, explanations: Sequence[Explanation]) -> str:
    """docs/status.md with the table as it should be."""
    made, count = _TABLE.subn(lambda _: table(explanations), page)
    if count != 1:
        raise ValueError("docs/status.md has no table of codes")
    return made


def main() -> int:
    explanations = explain.explanations()
    MANUAL.write_text(manual(explanations))
    STATUS.write_text(status(STATUS.read_text(), explanations))
    return 0


if __name__ == "__main__":
    sys.exit(main())
