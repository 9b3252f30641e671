# SPDX-License-Identifier: Apache-2.0
"""Keys: the public keys that images must be signed with, and which of them made a signature.

`cryptography` is imported where a signature is looked at: a daemon that fetches nothing never needs it.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from nvidiad.nouns.errors import Code, Failure, Transient

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path, PurePosixPath

_PEM = re.compile(rb"^-----BEGIN PUBLIC KEY-----\n[^-]+\n-----END PUBLIC KEY-----$", re.MULTILINE)
_MAX_BYTES = 64 << 10
_WEAKEST_RSA = 2048
_REMEDY = (
    "Put the public key there that belongs to the key that signs the images (openssl pkey -in KEY -pubout, "
    "or cosign public-key --key KEY)."
)


class PublicKeys:
    """The keys in PEM files, read anew each time: a rotation needs no restart.

    A file that cannot be used is a failure and not one key less: nobody would learn of it.
    """

    def __init__(self, files: Sequence[PurePosixPath], root: Path) -> None:
        self._files = tuple(root / file.relative_to("/") for file in files)
        self._keys: list[tuple[str, Any]] = []

    def read(self) -> None:
        """Read all files; raises KEY_UNUSABLE."""
        self._keys = [key for file in self._files for key in _keys_in(file)]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the keys that were read last: the file, and the beginning of the key's hash."""
        return tuple(name for name, _ in self._keys)

    def signer(self, signed: bytes, signature: bytes) -> str:
        """The name of the key that made this signature, empty where none of them did."""
        return next((name for name, key in self._keys if _made(key, signed, signature)), "")


def _keys_in(file: Path) -> list[tuple[str, Any]]:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise _unusable(file, "the Python package 'cryptography' is not installed") from None
    try:
        with file.open("rb") as opened:
            text = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _unusable(file, error.strerror or str(error)) from None
    if len(text) > _MAX_BYTES:
        raise _unusable(file, f"it is larger than {_MAX_BYTES} bytes")
    keys = []
    for block in _PEM.findall(text.replace(b"\r\n", b"\n")):
        try:
            key = load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise _unusable(file, str(error)) from None
        if why := _weakness(key):
            raise _unusable(file, why)
        keys.append((f"{file.name} (SHA-256 {_fingerprint(key)})", key))
    if keys and len(keys) != text.count(b"-----BEGIN"):
        raise _unusable(file, "it holds something else than public keys in PEM, too")
    if not keys:
        private = b"PRIVATE KEY" in text
        raise _unusable(file, "it holds a private key" if private else "it holds no public key in PEM")
    return keys


def _fingerprint(key: Any) -> str:
    """The beginning of the hash of a key, as `openssl pkey -pubin -outform DER | sha256sum` gives it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    form = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(form).hexdigest()[:16]


def _weakness(key: Any) -> str:
    """Why a key is not to be relied on; empty where nothing speaks against it."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPublicKey):
        weak = key.key_size < _WEAKEST_RSA
        return f"an RSA key of {key.key_size} bits is too weak" if weak else ""
    if isinstance(key, ec.EllipticCurvePublicKey):
        known = isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1)
        return "" if known else f"keys of the curve {key.curve.name} are not used to sign images"
    return (
        "" if isinstance(key, ed25519.Ed25519PublicKey) else "keys of its kind are not used to sign images"
    )


def _made(key: Any, signed: bytes, signature: bytes) -> bool:
    """Whether a key made a signature; tools hash with SHA-256, or with what fits the curve."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding

    def verify(algorithm: hashes.HashAlgorithm) -> bool:
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, signed, ec.ECDSA(algorithm))
            elif isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, signed)
            else:
                key.verify(signature, signed, padding.PKCS1v15(), algorithm)
        except InvalidSignature:
            return False
        return True

    return any(verify(algorithm) for algorithm in (hashes.SHA256(), hashes.SHA384(), hashes.SHA512()))


def _unusable(file: Path, why: str) -> Failure:
    return Transient(
        Code.KEY_UNUSABLE, f"'{file}' of trust.keys cannot be used to verify images: {why}", _REMEDY
    )
