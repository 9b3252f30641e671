# SPDX-License-Identifier: Apache-2.0
"""Authorities: the certificates by which a server is believed; each OS has the list in another place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

# Where hosts keep it. A bundled OpenSSL looks in the place of the OS that it was built for.
PLACES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Container Linux, Flatcar, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora and its kin
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine
)


def context() -> ssl.SSLContext:
    """What checks a server's certificate, with the authorities that this host believes.

    In this order: what SSL_CERT_FILE and SSL_CERT_DIR name, where OpenSSL looks by itself, where other
    systems have theirs, and the list that comes with nvidiad.
    """
    import ssl  # only who asks a registry needs it

    made = ssl.create_default_context()
    found = list_of_host(
        os.environ, ssl.get_default_verify_paths().capath, made.cert_store_stats()["x509_ca"]
    )
    if found:
        made.load_verify_locations(found)
    return made


def list_of_host(
    environment: Mapping[str, str], folder: str | None, known: int, places: Sequence[str] = PLACES
) -> str:
    """The file to take besides what OpenSSL has found by itself; empty where that is enough."""
    if environment.get("SSL_CERT_FILE") or environment.get("SSL_CERT_DIR") or known:
        return ""
    # Certificates in a folder are loaded when one is asked for, and have names such as 'a94d09e5.0'.
    if folder and any(Path(folder).glob("????????.[0-9]")):
        return ""
    for place in places:
        if Path(place).is_file():
            return place
    from requests.utils import DEFAULT_CA_BUNDLE_PATH  # not needed on most hosts

    return str(DEFAULT_CA_BUNDLE_PATH)
