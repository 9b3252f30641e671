# SPDX-License-Identifier: Apache-2.0
"""What fuzzing found: each crashed a parser once, or kept it busy for minutes."""

from __future__ import annotations

import json
import struct
import time
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.thought import elf
from nvidiad.nouns.manifest import LABEL
from nvidiad.thought import ldcache, parse
from tests.fuzz.table import TARGETS
from tests.fuzz.target import CORPUS, SECONDS, reader
from tests.unit import test_ldcache, test_manifest
from tests.unit.image.test_elf import INFO, relocatable

if TYPE_CHECKING:
    from collections.abc import Mapping

FULL = 1 << 16


def _many(begin: bytes, word: bytes, end: bytes = b"") -> bytes:
    """So many words that there is no more room."""
    return begin + word * ((FULL - len(begin) - len(end)) // len(word)) + end


def _said(value: object) -> bytes:
    return json.dumps(value).encode()


FOUND: Mapping[str, tuple[str, bytes]] = {
    "credentials nested without end": ("credentials", _many(b'{"auths":', b"[")),
    "credentials that are not ASCII": (
        "credentials",
        '{"auths": {"registry.example": {"auth": "\u00ebTpw"}}}'.encode(),
    ),
    "credentials with half a character": (
        "credentials",
        _said({"auths": {"registry.example": {"username": "\ud800", "password": "p"}}}),
    ),
    "an event nested without end": ("engine_events", _many(b'{"id":', b"[")),
    "an image whose labels are a number": ("engine_lists", _said([{"Labels": 1}])),
    "a challenge of one endless word": ("challenge", _many(b"Bearer ", b"a")),
    "an assignment with white space in it": ("os_release", _many(b"ID=a", b" ", b"b\n")),
    "a field of the kernel with white space in it": ("proc", _many(b"DeviceFileMode: 1", b"\t", b"1\n")),
    "a specification of empty lines": ("cdi_document", _many(b"{", b"\r\n")),
    "a time span of thousands of digits": ("logind", b"[Login]\nInhibitDelayMaxSec=" + b"9" * 5000),
    "a time span with a fraction without end": ("logind", b"1." + b"9" * 60000),
    "mounts on each other, the first one last": (
        "mountinfo",
        b"".join(b"%d %d 0:1 / /a rw - t s rw\n" % (n, n + 1) for n in range(2100)),
    ),
    "a release of thousands of digits": ("feed", _said([{"Name": "1.2." + "9" * 5000}])),
    "a release that climbs": ("feed", _said([{"Name": "1.2.3/../../../x"}])),
    "a kernel of thousands of digits": ("debian_archive", b"linux-headers-" + b"9" * 5000 + b"|1|a b/c\n"),
    "a long-term series of raised digits": ("feed", "\u00b2:2024:supported\n".encode()),
    "a mode of thousands of digits": ("proc", b"DeviceFileMode: " + b"9" * 5000 + b"\n"),
    "a manifest whose refusal is as long as it is": (
        "manifest",
        test_manifest.TEXT.replace('"535.309.01"', '"' + "\udcff" * 60000 + '"').encode(
            "utf-8", "surrogateescape"
        )[:FULL],
    ),
    "labels whose refusal is as long as they are": ("labels", _said({f"{LABEL}schema": "x" * 60000})),
    "a configuration of quotes that never end": (
        "configuration",
        b"a = '''\n" + b'\\"' * 7500 + b"\n'''\n",
    ),
    "an error of words that may begin something": (
        "engine_events",
        _said({"error": "zstd " * 13000}),
    ),
    "supported devices nested without end": ("driver_package", _many(b'{"chips":', b"[")),
    "a supported device that is below nothing": (
        "driver_package",
        _said({"chips": [{"devid": "-1", "features": 7}]}),
    ),
    "a signature that is not ASCII": (
        "signatures",
        (CORPUS / "signatures/seed-0").read_bytes().replace(b"c2ln", "\u00eb".encode()),
    ),
    "a status of thousands of digits": (
        "from_daemon",
        b"HTTP/1.1 " + b"9" * 5000 + b" OK\r\nContent-Length: 0\r\n\r\n",
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(name: str) -> None:
    target, data = FOUND[name]
    assert len(data) <= FULL
    TARGETS[target].attack(data)


def test_what_is_quadratic_shows_in_what_is_larger() -> None:
    """Of these a small input is only slow, and a whole one would take hours or all memory."""
    began = time.thread_time()
    assert len(parse.modinfo(b"a=\0" * 100_000)["a"]) == 100_000
    assert time.thread_time() - began < SECONDS


def test_names_that_end_where_others_do_are_no_longer_than_names_are() -> None:
    symbols = [("n" * 90_000, 1, 0)]
    with pytest.raises(ValueError, match="out of bounds"):
        elf.kernel_module(reader(relocatable({".modinfo": INFO}, symbols)), "nvidia.ko")
    whole = test_ldcache.new_cache((("libx.so", "/" * 90_000 + "libx.so"), *test_ldcache.ENTRIES))
    assert [path for _, path in ldcache.read(whole)] == [path.encode() for _, path in test_ldcache.ENTRIES]


def test_a_table_of_symbols_that_is_none() -> None:
    module = relocatable({".modinfo": INFO}, [("printk", 1, 0)])
    spoilt = module.replace(struct.pack("<QII", 48, 3, 0), struct.pack("<QII", 47, 3, 0))
    assert spoilt != module
    with pytest.raises(ValueError, match="no symbols"):
        elf.kernel_module(reader(spoilt), "nvidia.ko")
