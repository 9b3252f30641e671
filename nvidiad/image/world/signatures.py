# SPDX-License-Identifier: Apache-2.0
"""Signatures: OpenPGP's detached ones, checked by gpgv against keys that somebody chose."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad.image.nouns.model import Family
from nvidiad.nouns.errors import Code, Failure, Permanent
from nvidiad.nouns.value import Value
from nvidiad.world import process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SECONDS = 300.0
_ARMOUR = re.compile(
    rb"-----BEGIN PGP (?P<what>[A-Z ]+)-----\r?\n(?P<headers>(?:[^\r\n]+: [^\r\n]*\r?\n)*)\r?\n"
    rb"(?P<text>[A-Za-z0-9+/=\s]+?)\s*\n=(?P<sum>[A-Za-z0-9+/]{4})\s*-----END PGP (?P=what)-----"
)
_STATUS = "[GNUPG:] "
_REMEDY = (
    "Do not use this file. If the key is a newer one of the same maker, fetch it over a way that you trust "
    "and name it with --key."
)


class Maker(Value):
    """Who signs the releases of an OS: a file in nvidiad/image/keys, if it is there, and what it must be."""

    file: str
    fingerprint: str
    """Of the primary key."""
    origin: str
    """The URL where the maker publishes the key."""


# [flatcar/flatcar-website static/security/image-signing-key; coreos/docs os/verify-images.md]
MAKERS = {
    Family.FLATCAR: Maker(
        "Flatcar_Image_Signing_Key.asc",
        "F88CFEDEFF29A5B4D9523864E25D9AED0593B34A",
        "https://www.flatcar.org/security/image-signing-key/Flatcar_Image_Signing_Key.asc",
    ),
    Family.COREOS: Maker(
        "CoreOS_Image_Signing_Key.asc",
        "04127D0BFABEC8871FFB2CCE50E0885593D2DCB4",
        "https://coreos.com/security/image-signing-key/CoreOS_Image_Signing_Key.asc",
    ),
}
_SHIPPED = Path(__file__).parents[1] / "keys"


class Signature(Value):
    """A signature that is good."""

    key: str
    """The fingerprint of the key that made it, and that of the primary key to which it belongs."""
    primary: str
    made: int
    """Seconds since 1970."""
    expired: int
    """When the key expired, after it had made this signature; 0 where it has not."""


class Keyring:
    """The keys that signatures are trusted of, from files, ASCII-armoured or not.

    Where `pinned` is not empty, a signature must be of one of these primary keys (fingerprints), whatever
    else the files hold.
    """

    def __init__(self, keys: Sequence[Path], pinned: frozenset[str] = frozenset()) -> None:
        self._keys = tuple(keys)
        self._pinned = pinned

    def verify(self, signature: Path, signed: Path) -> Signature:
        """Check a detached signature of a file.

        A signature that was made while its key was valid stays good when the key expires: releases stay
        published for years longer than the keys that signed them. One of a revoked key does not.

        Raises:
            Permanent: signature-invalid, with the key and the file.
        """
        return self._check(signed.name, str(signature), str(signed))

    def verify_clear(self, signed: Path, text: Path) -> Signature:
        """Like `verify`, of a file that holds its signature; what was signed is written to `text`."""
        text.unlink(missing_ok=True)
        return self._check(signed.name, "--output", str(text), str(signed))

    def _check(self, name: str, *words: str) -> Signature:
        with self._ring() as ring:
            argv = ["gpgv", "--status-fd", "1", "--keyring", str(ring), *words]
            finished = process.run(argv, timeout=_SECONDS)
        found = read_status(finished.out, name)
        if finished.returncode != 0:
            raise _invalid(name, f"gpgv says: {finished.said}")
        if self._pinned and found.primary not in self._pinned:
            raise _invalid(name, f"it is of the key {found.primary}, which is not its maker's")
        return found

    @contextmanager
    def _ring(self) -> Iterator[Path]:
        """gpgv wants its keys in one binary file, named by an absolute path."""
        with tempfile.TemporaryDirectory(prefix="nvidiad-keys-") as place:
            ring = Path(place) / "keys.gpg"
            ring.write_bytes(b"".join(map(_key, self._keys)))
            yield ring


def keyring(family: Family, chosen: Sequence[Path] = (), shipped: Path = _SHIPPED) -> Keyring:
    """The keys that releases of an OS are trusted of: those that somebody chose, else the maker's own.

    Raises:
        Permanent: signature-invalid, where none are chosen and the maker's are not shipped.
    """
    if chosen:
        return Keyring(chosen)
    maker = MAKERS.get(family)
    if maker is None or not (shipped / maker.file).is_file():
        sentence = f"there is no key to check the releases of {family} with"
        remedy = "Name a file with its maker's public keys: --key."
        if maker is not None:
            remedy = (
                f"Fetch '{maker.origin}', check its fingerprint {maker.fingerprint}, name it with --key."
            )
        raise Permanent(Code.SIGNATURE_INVALID, sentence, remedy)
    return Keyring([shipped / maker.file], frozenset({maker.fingerprint}))


def read_status(text: str, name: str) -> Signature:
    """What gpgv's status lines say of the signatures of the file `name` (GnuPG, doc/DETAILS).

    Raises:
        Permanent: signature-invalid, unless there is one at least and each of them is good.
    """
    good: Signature | None = None
    expiry = 0
    of_key = 0
    for line in text.splitlines():
        word, *rest = line.removeprefix(_STATUS).split(" ") if line.startswith(_STATUS) else ("",)
        match word:
            case "KEYEXPIRED":
                # gpgv tells of all expired keys of a ring; the one before SIG_ID is of the key in question.
                expiry = int(rest[0])
            case "KEY_CONSIDERED" | "NEWSIG":
                expiry = 0
            case "SIG_ID":
                of_key, expiry = expiry, 0
            case "BADSIG":
                raise _invalid(name, f"it is not what the key {rest[0]} signed")
            case "REVKEYSIG":
                raise _invalid(name, f"the key {rest[0]} has been revoked")
            case "EXPSIG":
                raise _invalid(name, f"the signature by the key {rest[0]} has expired")
            case "NO_PUBKEY":
                raise _invalid(name, f"it is by the key {rest[0]}, which is not among the trusted keys")
            case "ERRSIG":
                # The reason 9 is a missing key, of which NO_PUBKEY tells next.
                if len(rest) < 6 or rest[5] != "9":
                    raise _invalid(name, f"the signature by the key {rest[0]} cannot be checked")
            case "VALIDSIG":
                made = int(rest[2])
                good = Signature(rest[0], rest[9], made, of_key)
            case "EXPKEYSIG":
                if not of_key:
                    raise _invalid(name, f"the key {rest[0]} has expired")
    if good is None:
        raise _invalid(name, "there is no signature in it")
    if good.expired and good.made > good.expired:
        raise _invalid(name, f"the key {good.key} had expired before it made it")
    return good


def _key(path: Path) -> bytes:
    """The keys of a file without their armour."""
    try:
        data = path.read_bytes()
    except OSError as error:
        sentence = f"the key file '{path}' cannot be read: {error.strerror}"
        raise Permanent(Code.SIGNATURE_INVALID, sentence, "Name a file with public keys.") from error
    try:
        return dearmoured(data)
    except ValueError as error:
        sentence = f"the key file '{path}' {error}"
        remedy = "Export the key anew: gpg --armor --export."
        raise Permanent(Code.SIGNATURE_INVALID, sentence, remedy) from None


def dearmoured(data: bytes) -> bytes:
    """The bytes of public keys that may be ASCII-armoured (RFC 9580, section 6).

    Raises:
        ValueError: where there is no public key in them, or the checksum is wrong.
    """
    if b"-----BEGIN PGP" not in data:
        # A transferable public key begins with a packet of tag 6 in the old or the new format.
        if not data or ((data[0] & 0xC0 != 0xC0 or data[0] & 0x3F != 6) and data[0] & 0xFC != 0x98):
            raise ValueError("holds no OpenPGP public key")
        return data
    found = b""
    for block in _ARMOUR.finditer(data):
        if block["what"] != b"PUBLIC KEY BLOCK":
            raise ValueError(f"holds a PGP {block['what'].decode()}, which is no public key")
        try:
            part = base64.b64decode(b"".join(block["text"].split()), validate=True)
        except binascii.Error as error:
            raise ValueError(f"is damaged: {error}") from None
        if _crc24(part) != int.from_bytes(base64.b64decode(block["sum"])):
            raise ValueError("is damaged: the checksum of its armour is wrong")
        found += part
    if not found:
        raise ValueError("holds no complete PGP PUBLIC KEY BLOCK")
    return found


def _crc24(data: bytes) -> int:
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1864CFB
    return crc & 0xFFFFFF


def _invalid(name: str, why: str) -> Failure:
    return Permanent(Code.SIGNATURE_INVALID, f"the signature of '{name}' is not good: {why}", _REMEDY)
