# SPDX-License-Identifier: Apache-2.0
"""Signatures by keys made with gpg, checked by the real gpgv: good, expired since, revoked, foreign, bad."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from nvidiad.image.nouns.model import Family
from nvidiad.image.world import signatures
from nvidiad.image.world.signatures import Keyring
from nvidiad.nouns.errors import Code, Permanent
from tests.images.mirror import Signer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and shutil.which("gpg") is None,
    reason="gpg is not installed, and only root can do that",
)
NOON_2020 = 1577880000


@pytest.fixture(scope="module")
def signer() -> Iterator[Signer]:
    made = Signer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def stranger() -> Iterator[Signer]:
    made = Signer()
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image.bz2"
    path.write_bytes(b"content\n")
    return path


def refused(keyring: Keyring, signature: Path, file: Path) -> str:
    with pytest.raises(Permanent) as caught:
        keyring.verify(signature, file)
    assert caught.value.code is Code.SIGNATURE_INVALID
    assert f"'{file.name}'" in caught.value.sentence
    assert caught.value.remedy
    return caught.value.sentence


def test_a_good_signature(signer: Signer, file: Path) -> None:
    found = Keyring([signer.key]).verify(signer.sign(file), file)
    assert (found.key, found.primary, found.expired) == (signer.subkey, signer.fingerprint, 0)


def test_keys_may_be_binary_and_in_several_files(
    signer: Signer, stranger: Signer, file: Path, tmp_path: Path
) -> None:
    binary = tmp_path / "key.gpg"
    binary.write_bytes(signatures.dearmoured(signer.key.read_bytes()))
    assert binary.read_bytes()[0] & 0x80
    assert Keyring([stranger.key, binary]).verify(signer.sign(file), file).primary == signer.fingerprint


def test_a_clear_signed_text(signer: Signer, file: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("stale")
    signed = signer.sign_clear(file)
    Keyring([signer.key]).verify_clear(signed, text)
    assert text.read_text() == "content\n"
    signed.write_text(signed.read_text().replace("content", "another"))
    with pytest.raises(Permanent, match=f"is not what the key {signer.subkey[-16:]} signed"):
        Keyring([signer.key]).verify_clear(signed, text)


def test_what_was_changed(signer: Signer, file: Path) -> None:
    signature = signer.sign(file)
    file.write_bytes(b"another\n")
    sentence = refused(Keyring([signer.key]), signature, file)
    assert sentence.endswith(f"it is not what the key {signer.subkey[-16:]} signed")


def test_a_key_that_is_not_trusted(signer: Signer, stranger: Signer, file: Path) -> None:
    sentence = refused(Keyring([signer.key]), stranger.sign(file), file)
    assert sentence.endswith(
        f"it is by the key {stranger.subkey[-16:]}, which is not among the trusted keys"
    )


def test_a_key_that_is_not_the_makers(signer: Signer, stranger: Signer, file: Path) -> None:
    keyring = Keyring([signer.key, stranger.key], frozenset({signer.fingerprint}))
    assert keyring.verify(signer.sign(file), file).primary == signer.fingerprint
    sentence = refused(keyring, stranger.sign(file), file)
    assert sentence.endswith(f"it is of the key {stranger.fingerprint}, which is not its maker's")


@pytest.mark.parametrize("content", [b"", b"no signature", b"\x00" * 300], ids=["empty", "text", "zeros"])
def test_what_is_no_signature(signer: Signer, file: Path, content: bytes) -> None:
    signature = file.with_name("image.bz2.sig")
    signature.write_bytes(content)
    assert "there is no signature in it" in refused(Keyring([signer.key]), signature, file)


def test_a_key_that_expired_since(file: Path) -> None:
    old = Signer(when="20200101T120000", days=365)
    try:
        signature = old.sign(file, when="20200601T000000")
        # A younger subkey that has expired, too: its date must not be taken for that of the key in question.
        old.gpg("--quick-add-key", old.fingerprint, "rsa2048", "sign", "1y", when="20220101T000000")
        old.export()
        found = Keyring([old.key]).verify(signature, file)
        assert found.key == old.subkey
        assert found.expired == NOON_2020 + 365 * 86400
        assert found.made < found.expired
    finally:
        old.close()


def test_a_key_that_was_revoked(file: Path) -> None:
    revoked = Signer()
    try:
        signature = revoked.sign(file)
        commands = "key 1\nrevkey\ny\n0\n\ny\nsave\n"
        revoked.gpg("--command-fd", "0", "--edit-key", revoked.fingerprint, say=commands)
        revoked.export()
        sentence = refused(Keyring([revoked.key]), signature, file)
        assert sentence.endswith(f"the key {revoked.subkey[-16:]} has been revoked")
    finally:
        revoked.close()


# ---------------------------------------------------------------------------------------------------
# The status lines alone

VALID = "VALIDSIG AAAA 2020-06-01 1590969600 0 4 0 1 10 00 BBBB"


def status(*lines: str) -> str:
    return "".join(f"[GNUPG:] {line}\n" for line in lines)


@pytest.mark.parametrize(
    ("lines", "expired"),
    [
        pytest.param(("NEWSIG", "KEY_CONSIDERED C 0", "SIG_ID x", "GOODSIG A name", VALID), 0, id="good"),
        pytest.param(
            (
                "NEWSIG",
                "KEYEXPIRED 9",
                "KEY_CONSIDERED C 0",
                "SIG_ID x",
                "KEYEXPIRED 9",
                "GOODSIG A n",
                VALID,
            ),
            0,
            id="another-key-expired",
        ),
        pytest.param(
            ("NEWSIG", "KEY_CONSIDERED C 0", "KEYEXPIRED 1600000000", "SIG_ID x", "EXPKEYSIG A name", VALID),
            1600000000,
            id="expired-since",
        ),
    ],
)
def test_status_of_good_ones(lines: tuple[str, ...], expired: int) -> None:
    found = signatures.read_status(status(*lines), "file")
    assert (found.key, found.primary, found.made, found.expired) == ("AAAA", "BBBB", 1590969600, expired)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        pytest.param((), "there is no signature in it", id="nothing"),
        pytest.param(
            ("KEY_CONSIDERED C 0", "KEYEXPIRED 1500000000", "SIG_ID x", "EXPKEYSIG A n", VALID),
            "the key AAAA had expired before it made it",
            id="made-by-an-expired-key",
        ),
        pytest.param(
            ("KEYEXPIRED 1600000000", "KEY_CONSIDERED C 0", "SIG_ID x", "EXPKEYSIG A n", VALID),
            "the key A has expired",
            id="expired-who-knows-when",
        ),
        pytest.param(
            ("SIG_ID x", "EXPSIG A n", VALID), "the signature by the key A has expired", id="expsig"
        ),
        pytest.param(("SIG_ID x", "REVKEYSIG A n", VALID), "the key A has been revoked", id="revoked"),
        pytest.param(("ERRSIG A 1 10 00 1 9 -", "NO_PUBKEY A"), "it is by the key A, which", id="unknown"),
        pytest.param(("ERRSIG A 99 2 00 1 4 -",), "by the key A cannot be checked", id="unknown-algorithm"),
        pytest.param(
            ("SIG_ID x", "GOODSIG A n", VALID, "NEWSIG", "BADSIG D n"),
            "not what the key D signed",
            id="one-of-two",
        ),
    ],
)
def test_status_of_others(lines: tuple[str, ...], why: str) -> None:
    with pytest.raises(Permanent, match=why):
        signatures.read_status(status(*lines), "file")


# ---------------------------------------------------------------------------------------------------
# Key files


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param(lambda text: text[:-60], "holds no complete PGP PUBLIC KEY BLOCK", id="cut"),
        pytest.param(
            lambda text: re.sub(r"\n(.)", lambda m: "\n" + ("B" if m[1] == "A" else "A"), text, count=4),
            "is damaged|holds no complete",
            id="changed",
        ),
        pytest.param(lambda text: "nothing", "holds no OpenPGP public key", id="text"),
        pytest.param(lambda text: "", "holds no OpenPGP public key", id="empty"),
        pytest.param(
            lambda text: text.replace("PUBLIC", "PRIVATE"), "holds a PGP PRIVATE KEY BLOCK", id="private"
        ),
    ],
)
def test_a_key_file_that_is_none(  # type: ignore[no-untyped-def]
    signer: Signer, file: Path, tmp_path: Path, change, fault: str
) -> None:
    key = tmp_path / "bad.asc"
    key.write_text(change(signer.key.read_text()))
    with pytest.raises(Permanent, match=fault) as caught:
        Keyring([key]).verify(signer.sign(file), file)
    assert f"'{key}'" in caught.value.sentence


def test_a_key_file_that_is_not_there(file: Path, tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="cannot be read: No such file or directory"):
        Keyring([tmp_path / "none.asc"]).verify(file, file)


def test_without_a_shipped_key_one_is_told_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(Permanent) as caught:
        signatures.keyring(Family.COREOS, shipped=tmp_path)
    assert "04127D0BFABEC8871FFB2CCE50E0885593D2DCB4" in caught.value.remedy
    assert "https://coreos.com/" in caught.value.remedy and "--key" in caught.value.remedy
    with pytest.raises(Permanent, match="no key to check the releases of debian"):
        signatures.keyring(Family.DEBIAN)


def test_a_shipped_key_must_be_the_makers(signer: Signer, file: Path, tmp_path: Path) -> None:
    maker = signatures.MAKERS[Family.FLATCAR]
    (tmp_path / maker.file).write_text(signer.key.read_text())
    signature = signer.sign(file)
    sentence = refused(signatures.keyring(Family.FLATCAR, shipped=tmp_path), signature, file)
    assert "which is not its maker's" in sentence
    # One that somebody chose may be whoever's it is.
    chosen = signatures.keyring(Family.FLATCAR, [signer.key])
    assert chosen.verify(signature, file).primary == signer.fingerprint
