# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for FLUO: its operator's dance with labels and annotations, and its agent's side of it.

The operator's part follows pkg/operator/operator.go: reads and whole updates, tried again on a conflict, in
the order of its own loop. Its 30 seconds between two rounds are the caller's.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kubernetes.apiserver import ApiServer

PREFIX = "flatcar-linux-update.v1.flatcar-linux.net"
BEFORE, AFTER = f"{PREFIX}/before-reboot", f"{PREFIX}/after-reboot"
NEEDED, OK, PROGRESS = f"{PREFIX}/reboot-needed", f"{PREFIX}/reboot-ok", f"{PREFIX}/reboot-in-progress"
PAUSED = f"{PREFIX}/reboot-paused"

Json = dict[str, Any]


class Operator:
    """`update-operator --before-reboot-annotations= --after-reboot-annotations=`, one round at a time."""

    def __init__(self, api: ApiServer, before: list[str], after: list[str]) -> None:
        self._api = api
        self._before = before
        self._after = after

    def reconcile(self) -> None:
        for node in self._list():
            self._update(node["metadata"]["name"], self._clean)
        self._check(AFTER, self._after, "false")
        for node in self._list():
            notes = node["metadata"]["annotations"]
            rebooted = {OK: "true", NEEDED: "false", PROGRESS: "false"}
            if rebooted.items() <= notes.items() and node["metadata"]["labels"].get(AFTER) != "true":
                self._mark(node["metadata"]["name"], AFTER, self._after)
        self._check(BEFORE, self._before, "true")
        for node in self._list():
            if _wants(node["metadata"]["annotations"]) and not node["metadata"]["labels"].get(BEFORE):
                self._mark(node["metadata"]["name"], BEFORE, self._before)

    def _clean(self, metadata: Json) -> None:
        if BEFORE in metadata["labels"] and not _wants(metadata["annotations"]):
            del metadata["labels"][BEFORE]
            for name in self._before:
                metadata["annotations"].pop(name, None)

    def _check(self, label: str, names: list[str], ok: str) -> None:
        def end(metadata: Json) -> None:
            metadata["labels"].pop(label, None)
            for name in names:
                metadata["annotations"].pop(name, None)
            metadata["annotations"][OK] = ok

        for node in self._list():
            metadata = node["metadata"]
            confirmed = all(metadata["annotations"].get(name) == "true" for name in names)
            if metadata["labels"].get(label) == "true" and confirmed:
                self._update(metadata["name"], end)

    def _mark(self, node: str, label: str, names: list[str]) -> None:
        def ask(metadata: Json) -> None:
            for name in names:
                metadata["annotations"].pop(name, None)
            metadata["labels"][label] = "true"

        self._update(node, ask)

    def _list(self) -> list[Json]:
        return list(self._request("GET", "/api/v1/nodes")["items"])

    def _update(self, name: str, change: Callable[[Json], None]) -> None:
        """Read, change, write; again where somebody else was faster."""
        for _ in range(10):
            node = self._request("GET", f"/api/v1/nodes/{name}")
            before = json.dumps(node)
            change(node["metadata"])
            if json.dumps(node) == before:
                return
            try:
                self._request("PUT", f"/api/v1/nodes/{name}", node)
            except urllib.error.HTTPError as error:
                if error.code != 409:
                    raise
                continue
            return
        raise AssertionError(f"{name} has changed ten times")

    def _request(self, method: str, path: str, body: Json | None = None) -> Json:
        request = urllib.request.Request(  # noqa: S310 - its address is the stand-in's
            self._api.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Bearer operator-token", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            found: Json = json.load(answer)
            return found


def _wants(annotations: dict[str, str]) -> bool:
    """The operator's rebootableSelector."""
    return annotations.get(NEEDED) == "true" and all(
        annotations.get(name) != "true" for name in (PAUSED, OK, PROGRESS)
    )


class Agent:
    """`update-agent` on one node: what it writes when an update waits, and when it is back."""

    def __init__(self, api: ApiServer, node: str) -> None:
        self._api = api
        self._node = node

    def ask(self) -> None:
        self._api.edit(self._node, annotations={NEEDED: "true"})

    @property
    def permitted(self) -> bool:
        return self._api.annotations(self._node).get(OK) == "true"

    def reboot(self) -> None:
        assert self.permitted
        self._api.edit(self._node, annotations={PROGRESS: "true"})

    def come_back(self) -> None:
        self._api.edit(self._node, annotations={PROGRESS: "false", NEEDED: "false"})
