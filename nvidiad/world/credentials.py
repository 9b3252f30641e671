# SPDX-License-Identifier: Apache-2.0
"""Credentials: who we are to a registry, as docker's config.json or the helper that it names says."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Code, Failure, Transient
from nvidiad.thought import pull as pulling
from nvidiad.world import process

if TYPE_CHECKING:
    from pathlib import Path

_SECONDS = 30.0
# How a helper gets to its cloud, and who it is there.
_PASSED = re.compile(
    r"(HTTPS?|NO)_PROXY|(https?|no)_proxy|SSL_CERT_(FILE|DIR)|(AWS|AZURE|GOOGLE)_[A-Z0-9_]+", re.ASCII
)
_PLACES = ("/usr/local/bin", "/opt/bin", *process.PATH.split(":"))


def credentials(auth_file: Path | None, registry: str) -> dict[str, str] | None:
    """What a docker config.json says of a registry; None where it says nothing, or where it is not there."""
    if auth_file is None:
        return None
    try:
        text = auth_file.read_text()
    except FileNotFoundError:
        return None  # the registry says whether it wants any
    except (OSError, UnicodeDecodeError) as error:
        raise pulling.bad_file(str(auth_file), str(error)) from None
    helper = pulling.helper(text, str(auth_file), registry)
    if helper:
        return _helped(helper, str(auth_file), registry)
    return pulling.credentials(text, str(auth_file), registry)


def _helped(helper: str, source: str, registry: str) -> dict[str, str] | None:
    """What a program says that speaks the protocol of docker-credential-helpers."""
    name = f"docker-credential-{helper}"
    program = next((path for each in _PLACES if os.access(path := f"{each}/{name}", os.X_OK)), "")
    if not program:
        raise pulling.bad_file(source, f"it names '{name}', which is in none of {', '.join(_PLACES)}")
    try:
        told = process.run(
            [program, "get"],
            timeout=_SECONDS,
            input=f"{pulling.server_name(registry)}\n",
            # Helpers of clouds keep what they know below a home directory.
            environment={"HOME": "/root"}
            | {name: value for name, value in os.environ.items() if _PASSED.fullmatch(name)},
        )
    except Failure as failure:
        raise _refused(name, registry, failure.sentence) from None
    if told.returncode:
        if pulling.NOT_FOUND in told.out + told.err:
            return None
        # Its output may hold a secret: only what it said of an error is told.
        raise _refused(name, registry, f"exit status {told.returncode}: {process.one_line(told.err)}")
    return pulling.helped(told.out, name, source, registry)


def _refused(name: str, registry: str, why: str) -> Failure:
    return Transient(
        Code.REGISTRY_AUTH,
        f"'{name}' gives no credentials for registry '{registry}' ({pulling.clean(why)})",
        f"Try it by hand: echo {pulling.server_name(registry)} | {name} get",
    )
