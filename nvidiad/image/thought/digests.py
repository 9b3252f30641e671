# SPDX-License-Identifier: Apache-2.0
"""DIGESTS: the hashes that Flatcar and CoreOS publish beside each file, read from their text."""

from __future__ import annotations

import re

from nvidiad.nouns.errors import Code, Permanent

_HEADING = re.compile(r"# *([A-Z0-9]+) HASH")
_LINE = re.compile(r"([0-9A-Fa-f]+)[ \t]+\*?(\S.*)")
# Hexadecimal digits of each hash; a line of another length is not one.
_DIGITS = {"MD5": 32, "SHA1": 40, "SHA256": 64, "SHA512": 128}
_STRONG = "SHA512"


def sha512(text: str, name: str, url: str) -> str:
    """The SHA512 of the file `name` as lower-case hexadecimal digits.

    The text has a section for each kind of hash, headed `# SHA512 HASH`; a line is the hash, white space and
    the file's name (flatcar/scripts, `make_digests`). MD5 and SHA1 are read over: they prove nothing today.

    Raises:
        Permanent: feed-invalid, where the text at `url` has no such line, a wrong one or two that differ.
    """
    found: set[str] = set()
    kind = ""
    for line in text.splitlines():
        if heading := _HEADING.match(line):
            kind = heading[1]
        elif kind == _STRONG and (parts := _LINE.match(line)) and parts[2].rpartition("/")[2] == name:
            found.add(parts[1].lower())
    if not found:
        raise _invalid(url, f"has no SHA512 for '{name}'")
    if len(found) > 1:
        raise _invalid(url, f"has more than one SHA512 for '{name}'")
    digest = found.pop()
    if len(digest) != _DIGITS[_STRONG]:
        raise _invalid(url, f"has a SHA512 of {len(digest)} digits for '{name}'")
    return digest


def _invalid(url: str, fault: str) -> Permanent:
    return Permanent(Code.FEED_INVALID, f"'{url}' {fault}", "Look at the file; try another mirror.")
