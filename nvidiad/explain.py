# SPDX-License-Identifier: Apache-2.0
"""The verb `explain`: what a code means, where it comes from and what to do; it looks at no host."""

from __future__ import annotations

import json
from importlib import resources

from nvidiad.thought import codes


def explanations() -> tuple[codes.Explanation, ...]:
    """Of every code."""
    return codes.read((resources.files("nvidiad") / "codes.toml").read_text(encoding="utf-8"))


def find(words: list[str]) -> tuple[list[codes.Explanation], list[str]]:
    """What is asked for (all, where nothing is), and a sentence for each word that is no code."""
    known = {each.code: each for each in explanations()}
    found, faults = [], []
    for word in words or known:
        code = codes.asked(word)
        if code in known:
            found.append(known[code])
            continue
        meant = codes.nearest(code, known)
        faults.append(f"there is no code '{word}'" + (f" (did you mean '{meant}'?)" if meant else ""))
    return found, faults


def answer(words: list[str], style: str, width: int) -> tuple[str, list[str]]:
    """What is printed, and the faults of the question."""
    found, faults = find(words)
    if style != "off":
        told = [{key: getattr(each, key) for key in ("code", *codes.FIELDS)} for each in found]
        return json.dumps(told, indent=2 if style == "pretty" else None) + "\n", faults
    if not words:
        return codes.listing(found), faults
    return "\n".join(codes.text(each, width) for each in found), faults
