# SPDX-License-Identifier: Apache-2.0
"""Assurance: before anything of an image is fetched, it is found out who vouches for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Failure
from nvidiad.thought import trust

if TYPE_CHECKING:
    from nvidiad.verbs.ports import Log, Vouchers


def assure(reference: str, digest: str, vouchers: Vouchers | None, log: Log) -> None:
    """Raise what speaks against this image; without vouchers nothing can.

    Where a signature is only preferred, that is a warning.
    """
    if vouchers is None:
        return
    try:
        key = trust.signer(reference, digest, vouchers.seals(reference, digest), vouchers.signer)
    except Failure as failure:
        if vouchers.required:
            raise
        code = str(failure.code)
        log.warning("nobody vouches for an image, proceeding anyway", what=failure.sentence, code=code)
        return
    log.info("signature verified", image=reference, digest=digest, key=key)
