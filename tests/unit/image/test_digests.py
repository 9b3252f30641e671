# SPDX-License-Identifier: Apache-2.0
"""DIGESTS: the SHA512 of the right file from the right section, or what is wrong with the text."""

from __future__ import annotations

import pytest

from nvidiad.image.thought import digests
from nvidiad.nouns.errors import Code, Permanent

NAME = "flatcar_developer_container.bin.bz2"
URL = "https://mirror.test/DIGESTS"
GOOD = "0123456789abcdef" * 8
OTHER = "f" * 128


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            f"# MD5 HASH\n{'0' * 32}  {NAME}\n# SHA1 HASH\n"
            f"{'1' * 40}  {NAME}\n# SHA512 HASH\n{GOOD}  {NAME}\n",
            id="as-flatcar-writes-it",
        ),
        pytest.param(f"# SHA512 HASH\n{OTHER}  other.bz2\n{GOOD}  {NAME}\n", id="several-files"),
        pytest.param(f"# SHA512 HASH\n{GOOD.upper()} *{NAME}\n", id="binary-mark-and-capitals"),
        pytest.param(f"# SHA512 HASH\n{GOOD}  /srv/build/{NAME}\n", id="with-a-path"),
        pytest.param(f"# SHA512 HASH\r\n{GOOD}  {NAME}\r\n", id="dos-lines"),
        pytest.param(f"# SHA512 HASH\n{GOOD}  {NAME}\n{GOOD}  {NAME}\n", id="twice-the-same"),
    ],
)
def test_finds_the_sha512(text: str) -> None:
    assert digests.sha512(text, NAME, URL) == GOOD


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param("", "has no SHA512 for", id="empty"),
        pytest.param("<html>login</html>", "has no SHA512 for", id="a-login-page"),
        pytest.param(f"# SHA512 HASH\n{GOOD}  {NAME}.sig\n", "has no SHA512 for", id="of-another-file"),
        pytest.param(f"{GOOD}  {NAME}\n", "has no SHA512 for", id="without-heading"),
        pytest.param(f"# SHA256 HASH\n{GOOD[:64]}  {NAME}\n", "has no SHA512 for", id="another-kind"),
        pytest.param(
            f"# SHA512 HASH\n{GOOD[:-2]}  {NAME}\n", "has a SHA512 of 126 digits for", id="too-short"
        ),
        pytest.param(
            f"# SHA512 HASH\n{GOOD}  {NAME}\n{OTHER}  {NAME}\n",
            "has more than one SHA512 for",
            id="two-that-differ",
        ),
    ],
)
def test_says_what_is_wrong(text: str, fault: str) -> None:
    with pytest.raises(Permanent) as caught:
        digests.sha512(text, NAME, URL)
    assert caught.value.code is Code.FEED_INVALID
    assert caught.value.sentence == f"'{URL}' {fault} '{NAME}'"
