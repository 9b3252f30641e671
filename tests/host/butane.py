# SPDX-License-Identifier: Apache-2.0
"""Butane (stand-in) and Ignition (Debian's own): from the YAML of a user to what is on a disk.

There is no package of Butane to test with. This one knows those keys of the Flatcar variant 1.0.0 that we
use, refuses every other, and writes what Butane writes for them: a configuration of Ignition 3.3.0.
"""

from __future__ import annotations

import json
import urllib.parse
from typing import TYPE_CHECKING, Any

import yaml

from tests.beds.common import unpacked

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = {("flatcar", "1.0.0"): "3.3.0"}
_UNIT = {"name": str, "enabled": bool, "mask": bool, "contents": str, "dropins": list}
_KEYS: dict[str, dict[str, type]] = {
    "": {"variant": str, "version": str, "storage": dict, "systemd": dict},
    "storage": {"files": list, "directories": list, "links": list},
    "files": {"path": str, "overwrite": bool, "mode": int, "contents": dict},
    "contents": {"source": str, "inline": str, "verification": dict},
    "verification": {"hash": str},
    "directories": {"path": str, "mode": int},
    "links": {"path": str, "target": str, "hard": bool, "overwrite": bool},
    "systemd": {"units": list},
    "units": _UNIT,
    "dropins": {"name": str, "contents": str},
}


def ignition_program() -> Path:
    return unpacked("ignition", "ignition") / "usr/lib/dracut/modules.d/30ignition/ignition"


def validator() -> Path:
    return unpacked("ignition", "ignition") / "usr/bin/ignition-validate"


def translated(text: str) -> str:
    """The configuration of Ignition; a ValueError for what Butane would not take."""
    config = yaml.safe_load(text)
    _check(config, "")
    spec = VERSIONS.get((config.pop("variant", ""), config.pop("version", "")))
    if spec is None:
        raise ValueError("no such variant and version")
    for file in config.get("storage", {}).get("files", ()):
        contents = file.get("contents", {})
        if "inline" in contents:
            contents["source"] = "data:," + urllib.parse.quote(contents.pop("inline"))
        elif "source" not in contents or "verification" not in contents:
            raise ValueError(f"'{file['path']}' comes from somewhere without a hash")
    return json.dumps({"ignition": {"version": spec}, **config})


def _check(value: Any, where: str) -> None:
    known = _KEYS[where]
    for key, inner in value.items():
        if key not in known:
            raise ValueError(f"'{key}' is no key of '{where or 'the configuration'}'")
        if not isinstance(inner, known[key]):
            raise ValueError(f"'{key}' of '{where or 'the configuration'}' must be of another type")
        if key in _KEYS and isinstance(inner, dict):
            _check(inner, key)
        if key in _KEYS and isinstance(inner, list):
            for one in inner:
                _check(one, key)
    if where in ("files", "directories", "links") and not str(value.get("path", "")).startswith("/"):
        raise ValueError(f"'{where}' needs an absolute path")
