# SPDX-License-Identifier: Apache-2.0
"""The schema of CDI specifications, written from its text: an unknown field anywhere is refused."""

from __future__ import annotations

from typing import Any

import jsonschema  # type: ignore[import-untyped]

_NAME = r"^[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?$"
_PATH = {"type": "string", "pattern": "^/[^\\0]+$"}
_STRINGS = {"type": "array", "items": {"type": "string"}}


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_EDITS = _object(
    (),
    env={"type": "array", "items": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*=.*$"}},
    deviceNodes={
        "type": "array",
        "items": _object(
            ("path",),
            path=_PATH,
            hostPath=_PATH,
            type={"enum": ["b", "c", "u", "p"]},
            major={"type": "integer"},
            minor={"type": "integer"},
            fileMode={"type": "integer"},
            permissions={"type": "string", "pattern": "^[rwm]+$"},
            uid={"type": "integer"},
            gid={"type": "integer"},
        ),
    },
    mounts={
        "type": "array",
        "items": _object(
            ("hostPath", "containerPath"),
            hostPath=_PATH,
            containerPath=_PATH,
            type={"type": "string"},
            options=_STRINGS,
        ),
    },
    hooks={
        "type": "array",
        "items": _object(
            ("hookName", "path"),
            hookName={
                "enum": [
                    *("prestart", "createRuntime", "createContainer", "startContainer"),
                    *("poststart", "poststop"),
                ]
            },
            path=_PATH,
            args=_STRINGS,
            env=_STRINGS,
            timeout={"type": "integer"},
        ),
    },
    additionalGids={"type": "array", "items": {"type": "integer", "minimum": 0}},
    intelRdt={"type": "object"},
    netDevices={"type": "array"},
)
_ANNOTATIONS = {"type": "object", "additionalProperties": {"type": "string"}}
SCHEMA = _object(
    ("cdiVersion", "kind", "devices"),
    cdiVersion={"enum": ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"]},
    kind={"type": "string", "pattern": "^[A-Za-z0-9.-]+/[A-Za-z0-9_.-]+$"},
    annotations=_ANNOTATIONS,
    devices={
        "type": "array",
        "minItems": 1,
        "items": _object(
            ("name", "containerEdits"),
            name={"type": "string", "pattern": _NAME},
            annotations=_ANNOTATIONS,
            containerEdits=_EDITS,
        ),
    },
    containerEdits=_EDITS,
)


def validate(document: object) -> None:
    """Raise jsonschema.ValidationError for what no engine would take."""
    jsonschema.validate(document, SCHEMA)
