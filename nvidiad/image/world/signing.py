# SPDX-License-Identifier: Apache-2.0
"""The signing key: a private key of the curve P-256, as cosign and skopeo verify it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Permanent

if TYPE_CHECKING:
    from pathlib import Path

_REMEDY = (
    "Make one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem; cosign "
    "import-key-pair takes it, too."
)


class SigningKey:
    """A private key in a PEM file (PKCS #8, or OpenSSL's own form)."""

    def __init__(self, path: Path, password: bytes | None = None) -> None:
        """Read the key; raises RECIPE_INVALID where it is none that can be used."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(path.read_bytes(), password or None)
        except OSError as error:
            raise _unusable(path, error.strerror or str(error)) from None
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise _unusable(path, str(error)) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise _unusable(path, "it is no key of the curve P-256")
        self._key = key

    def sign(self, data: bytes) -> bytes:
        """The ECDSA signature of the SHA-256 of `data`, in DER."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))

    def verifies(self, data: bytes, signature: bytes) -> bool:
        """Whether a signature of `data` was made with this key."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            self._key.public_key().verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    def public(self) -> str:
        """The public key, for those who verify."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        form = PublicFormat.SubjectPublicKeyInfo
        return self._key.public_key().public_bytes(Encoding.PEM, form).decode()


def _unusable(path: Path, why: str) -> Permanent:
    return Permanent(Code.RECIPE_INVALID, f"'{path}' cannot be used to sign: {why}", _REMEDY)
