# SPDX-License-Identifier: Apache-2.0
"""A host of the namespace bed whose driver is in force, for the parts that measure a live daemon."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.host import road

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.host.bed import Host

NVIDIAD = "/opt/nvidiad/bin/nvidiad"
PYTHON = "/opt/nvidiad/bin/python3"
# What pip writes for an entry point of console_scripts: that is what `make install` puts on a host.
_CONSOLE_SCRIPT = """\
#!/opt/nvidiad/bin/python3
# -*- coding: utf-8 -*-
import re
import sys
from nvidiad.cli import main
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    sys.exit(main())
"""
# The poll of a host that nobody configured otherwise.
POLL = 300


@contextmanager
def ready() -> Iterator[Host]:
    """A host that pulled, installed and activated a driver, and whose daemon has settled."""
    with road.booted() as host:
        road.install(host, road.configuration(daemon={"poll": POLL}))
        host.write(NVIDIAD, _CONSOLE_SCRIPT, 0o755)
        road.publish(host)
        host.systemctl("start", "nvidiad.service")
        road.wait_ready(host)
        yield host
