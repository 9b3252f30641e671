# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.reliability [FILE …]`: take in what runs noted, and make the page anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.reliability import faults, page

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RECORD = Path(__file__).with_name("record.json")
PAGE = Path(__file__).parents[2] / "docs/reliability.md"


def read() -> list[dict[str, Any]]:
    """What is committed."""
    return list(json.loads(RECORD.read_text())) if RECORD.exists() else []


def merge(known: Iterable[dict[str, Any]], news: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The later of what has one name; without what is no row, or no proof of it, any more."""
    found = {(entry["section"], entry["name"]): entry for entry in (*known, *news)}
    return [found[name] for name in sorted(found) if _counts(found[name])]


def _counts(entry: dict[str, Any]) -> bool:
    if entry["section"] != "faults":
        return entry["section"] in page.TITLES
    return entry["row"] in {row.id for row in faults.proved(entry["test"])}


def main(arguments: Sequence[str]) -> int:
    news = [json.loads(line) for name in arguments for line in Path(name).read_text().splitlines()]
    record = merge(read(), news)
    RECORD.write_text("[\n" + ",\n".join(json.dumps(entry, sort_keys=True) for entry in record) + "\n]\n")
    PAGE.write_text(page.render(record))
    missing = {row.id for row in faults.ROWS} - {entry.get("row") for entry in record}
    for row in sorted(missing):
        sys.stdout.write(f"not proven yet: {row}\n")
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
