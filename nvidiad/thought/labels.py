# SPDX-License-Identifier: Apache-2.0
"""Labels: what a cluster is told of this host's driver, as a feature file of node-feature-discovery."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.model import Phase
from nvidiad.thought.choice import core

if TYPE_CHECKING:
    from nvidiad.nouns.plan import Status

# The prefix is that of the Varlink interface and of the images' labels. NFD adds none of its own to it.
READY = "io.nvidiad/ready"
DRIVER = "io.nvidiad/driver"
MAJOR = "io.nvidiad/driver-major"
_HEADER = "# Written by nvidiad (kubernetes.nfd-file); not there where no driver can be used.\n"


def stands(status: Status) -> bool:
    """Whether what was said before stays for now: something is put right beside a driver that is loaded.

    A label that goes for a second takes the device plugin off the node.
    """
    facts = status.facts.driver
    return status.phase is Phase.CONVERGING and bool(facts.gpus) and core(facts) is not None


def text(status: Status) -> str | None:
    """The feature file, None where there is to be none: labels say what is, and nothing of what is not."""
    facts = status.facts.driver
    module = core(facts)
    if not (status.usable and facts.gpus and module and module.version):
        return None
    # Another driver than the wanted one, too, where that is in force until the wanted one comes.
    labels = {READY: "true", DRIVER: module.version, MAJOR: module.version.partition(".")[0]}
    return _HEADER + "".join(f"{name}={value}\n" for name, value in labels.items())
