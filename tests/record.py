# SPDX-License-Identifier: Apache-2.0
"""What tests measured and counted, noted for the page on reliability: one JSON line each.

Nothing is noted unless NVIDIAD_RECORD names a file; several test processes may share it.
"""

from __future__ import annotations

import json
import os


def note(section: str, name: str, **values: object) -> None:
    """Add one line; `section` and `name` say whose it is, a later line with both replaces an earlier one."""
    path = os.environ.get("NVIDIAD_RECORD")
    if not path:
        return
    text = json.dumps({"section": section, "name": name, **values}, sort_keys=True) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # One write, so that lines of several processes do not mix.
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
