# SPDX-License-Identifier: Apache-2.0
"""The compatibility list: written and read again, and refused by name where it is none."""

from __future__ import annotations

import json

import pytest

from nvidiad.nouns.compatibility import Compatibility, Entry, parse, render
from nvidiad.nouns.errors import Code, Permanent
from nvidiad.nouns.value import replace

ENTRY = Entry(
    "flatcar",
    "4593.2.5",
    "stable",
    "x86_64",
    "6.12.102-flatcar",
    "535.309.01",
    "open",
    "",
    "4593.2.5-535.309.01",
    "published",
    "sha256:" + "a" * 64,
)
BROKEN = replace(
    ENTRY, tag="4081.3.10-535.309.01", state="unbuildable", digest="", reason='it\'s "so"', inputs="0f"
)
LIST = Compatibility("2026-11-27T01:02:03Z", (ENTRY, BROKEN))


@pytest.mark.parametrize("made", [LIST, Compatibility("2026-11-27T01:02:03Z"), Compatibility()])
def test_what_is_written_is_read(made: Compatibility) -> None:
    assert parse(render(made), "a list") == made


def test_its_text_is_one_line_for_each_cell() -> None:
    lines = render(LIST).splitlines()
    assert lines[0] == '{"schema": 1, "generated": "2026-11-27T01:02:03Z", "cells": ['
    assert len(lines) == 4
    assert json.loads(lines[1].rstrip(","))["os_version"] == "4593.2.5"
    assert "reason" not in lines[1]


def test_fields_that_a_later_nvidiad_writes_are_left_out() -> None:
    document = json.loads(render(LIST))
    document["signed-by"] = "me"
    document["cells"][0]["size"] = 5
    assert parse(json.dumps(document), "a list") == LIST


@pytest.mark.parametrize(
    ("tag", "architecture", "found"),
    [
        pytest.param(BROKEN.tag, "x86_64", BROKEN, id="unbuildable"),
        pytest.param(BROKEN.tag, "aarch64", None, id="another architecture"),
        pytest.param(ENTRY.tag, "x86_64", None, id="published"),
        pytest.param("other", "x86_64", None, id="unknown"),
    ],
)
def test_what_cannot_be_built(tag: str, architecture: str, found: Entry | None) -> None:
    assert LIST.unbuildable(tag, architecture) == found


def changed(**fields: object) -> str:
    document = json.loads(render(LIST))
    document["cells"][1] |= fields
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        pytest.param("{", "not JSON", id="no JSON"),
        pytest.param("[" * 100_000, "not JSON", id="too deep"),
        pytest.param("[]", "not an object", id="no object"),
        pytest.param(
            '{"schema": 2, "generated": "", "cells": []}', "schema 2 is unknown", id="another schema"
        ),
        pytest.param('{"schema": 1, "generated": ""}', "'cells'", id="no cells"),
        pytest.param('{"schema": 1, "cells": []}', "'generated'", id="no date"),
        pytest.param(
            '{"schema": 1, "generated": "", "cells": [1]}', "cell 0 is not an object", id="a number"
        ),
        pytest.param(changed(tag=""), "cell 1 has no 'tag'", id="no tag"),
        pytest.param(changed(reason=5), "'reason' of cell 1", id="a reason that is a number"),
    ],
)
def test_what_is_none_is_refused(text: str, word: str) -> None:
    with pytest.raises(Permanent) as caught:
        parse(text, "registry.example/nvidia-driver:compatibility")
    assert caught.value.code is Code.MANIFEST_INVALID
    assert "'registry.example/nvidia-driver:compatibility'" in caught.value.sentence
    assert word in caught.value.sentence
