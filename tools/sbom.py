# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.sbom`: the bill of materials of nvidiad and all that it ships (CycloneDX).

The same checkout gives the same text; with SOURCE_DATE_EPOCH it has that time in it, and otherwise none.
"""

from __future__ import annotations

import configparser
import datetime
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nvidiad import __version__
from nvidiad.image.thought import bom
from tools import locks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.locks import Locked

CHECKOUT = Path(__file__).parents[1]


def bill(environment: Mapping[str, str]) -> str:
    """The document."""
    runtime, build = (
        list(locks.read(CHECKOUT / f"requirements/{name}.txt")) for name in ("runtime", "build")
    )
    nvidiad: bom.Component = {
        "type": "application",
        "bom-ref": "nvidiad",
        "name": "nvidiad",
        "version": __version__,
        "purl": f"pkg:pypi/nvidiad@{__version__}",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    direct = {normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in requirements()}
    needs = [_ref(one) for one in runtime if normal(one.name) in direct]
    parts = [_component(one, "required") for one in runtime] + [_component(one, "excluded") for one in build]
    epoch = environment.get("SOURCE_DATE_EPOCH", "")
    when = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC).isoformat() if epoch else ""
    return bom.render(nvidiad, parts, {"nvidiad": needs}, when)


def requirements() -> list[str]:
    """What setup.cfg says that nvidiad needs."""
    parser = configparser.ConfigParser()
    parser.read(CHECKOUT / "setup.cfg")
    lines = parser.get("options", "install_requires").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def normal(name: str) -> str:
    """A name as an index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _ref(locked: Locked) -> str:
    return f"pkg:pypi/{normal(locked.name)}@{locked.version}"


def _component(locked: Locked, scope: str) -> bom.Component:
    """With the digests of all files of which one is taken, by machine and Python."""
    return {
        "type": "library",
        "bom-ref": _ref(locked),
        "name": locked.name,
        "version": locked.version,
        "purl": _ref(locked),
        "scope": scope,
        "hashes": [{"alg": "SHA-256", "content": sha256} for sha256 in locked.sha256],
    }


if __name__ == "__main__":
    sys.stdout.write(bill(os.environ))
