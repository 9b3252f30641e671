# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the API server: nodes over HTTP on loopback, with the faults of a real one when told to.

It knows what the companion and FLUO's operator may do, and nothing else: a request that is not among that is
refused and kept as an offence. Versions, conflicts and watches are as Kubernetes documents them.
"""

from __future__ import annotations

import copy
import json
import queue
import re
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Json = dict[str, Any]

COMPANION, OPERATOR = "companion", "operator"
# As contrib/kubernetes/companion.yaml and FLUO's own cluster role have it.
ROLES = {COMPANION: {"get", "watch", "patch"}, OPERATOR: {"get", "list", "update"}}
MERGE = ("application/merge-patch+json", "application/strategic-merge-patch+json")
REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired"}
# k8s.io/apimachinery: IsQualifiedName, a name of its own or one below a DNS subdomain.
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
QUALIFIED = re.compile(rf"({_LABEL}(\.{_LABEL})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")
_NODE = re.compile(r"/api/v1/nodes/([a-z0-9.-]+)")
_END, _CUT = object(), object()


@dataclass
class Fault:
    """What a verb meets instead of an answer, `times` times."""

    verb: str
    status: int = 0
    """0: nothing is answered."""
    times: int = 1
    kind: str = "json"
    """`json` as the API server answers, `html` as a proxy does, `bare` without content type, `empty`: {}."""
    hold: bool = False
    """Where nothing is answered: keep the connection open."""


@dataclass
class Asked:
    """A request that came."""

    who: str
    verb: str
    status: int
    at: float
    body: Json = field(default_factory=dict)


class Refused(Exception):
    """An answer that is no object."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(eq=False)
class _Watch:
    name: str
    events: queue.Queue[object] = field(default_factory=queue.Queue)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, api: ApiServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up early is what the tests are about."""


class ApiServer:
    """Nodes, who may do what with them, and what was done."""

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        self.tokens = {"companion-token": COMPANION, "operator-token": OPERATOR}
        self.asked: list[Asked] = []
        self.offences: list[str] = []
        self.faults: list[Fault] = []
        self.before_patch: list[Callable[[], None]] = []
        """Called one after the other, each right before a patch is applied."""
        self.checks: list[Callable[[Json, Json], str]] = []
        """Called with a node before and after a patch; what one returns is an offence."""
        self.end_watches_at_once = False
        self._nodes: dict[str, Json] = {}
        self._version = 100
        self._watches: list[_Watch] = []
        self._stopped = threading.Event()
        self._lock = threading.RLock()
        self._listener = _Listener(self)
        self._scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._listener.socket = context.wrap_socket(self._listener.socket, server_side=True)
            self._scheme = "https"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.end_watches()
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()

    @property
    def port(self) -> int:
        return int(self._listener.server_address[1])

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    # -----------------------------------------------------------------------------------------------
    # What a test sees and does

    def node(self, name: str) -> Json:
        with self._lock:
            return copy.deepcopy(self._nodes[name])

    def labels(self, name: str) -> dict[str, str]:
        return dict(self.node(name)["metadata"]["labels"])

    def annotations(self, name: str) -> dict[str, str]:
        return dict(self.node(name)["metadata"]["annotations"])

    def count(self, verb: str, who: str = COMPANION) -> int:
        return len(self.of(verb, who))

    def of(self, verb: str, who: str = COMPANION) -> list[Asked]:
        return [one for one in list(self.asked) if (one.verb, one.who) == (verb, who)]

    def taints(self, name: str) -> list[Json]:
        return list(self.node(name)["spec"].get("taints", []))

    def taint(self, name: str, *taints: Json) -> None:
        """What a kubelet registers its node with, or somebody else adds."""
        with self._lock:
            self._nodes[name]["spec"].setdefault("taints", []).extend(taints)
            self._changed(name, "MODIFIED")

    def add(self, name: str) -> None:
        """A node as a kubelet registers it."""
        with self._lock:
            metadata = {"name": name, "labels": {"kubernetes.io/hostname": name}, "annotations": {}}
            status = {"conditions": [{"type": "Ready", "status": "True"}]}
            node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {}, "status": status}
            self._nodes[name] = node
            self._changed(name, "ADDED")

    def remove(self, name: str) -> None:
        with self._lock:
            self._changed(name, "DELETED")
            del self._nodes[name]

    def edit(
        self,
        name: str,
        labels: dict[str, str | None] | None = None,
        annotations: dict[str, str | None] | None = None,
    ) -> None:
        """What somebody else does to a node; without a label or annotation, a heartbeat of its kubelet."""
        with self._lock:
            metadata = self._nodes[name]["metadata"]
            _merge(metadata["labels"], labels or {})
            _merge(metadata["annotations"], annotations or {})
            self._changed(name, "MODIFIED")

    def fail(self, verb: str, status: int = 0, **more: Any) -> None:
        with self._lock:
            self.faults.append(Fault(verb, status, **more))

    def end_watches(self) -> None:
        """As a server does whose time-out is over."""
        self._to_all(_END)

    def cut_watches(self) -> None:
        """As a network does."""
        self._to_all(_CUT)

    def say(self, line: bytes) -> None:
        """Anything, on every watch."""
        self._to_all(line)

    def expire(self) -> None:
        """What the versions of the watches refer to is forgotten."""
        status = _status(410, f"too old resource version: 1 ({self._version})")
        self.say(_line({"type": "ERROR", "object": status}))
        self.end_watches()

    def bookmark(self) -> None:
        """A version, and nothing else of the node."""
        metadata = {"resourceVersion": str(self._version), "creationTimestamp": None}
        node = {"kind": "Node", "apiVersion": "v1", "metadata": metadata}
        self.say(_line({"type": "BOOKMARK", "object": node}))

    @property
    def watches(self) -> int:
        with self._lock:
            return len(self._watches)

    # -----------------------------------------------------------------------------------------------
    # What requests do

    def fault(self, verb: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.verb == verb:
                    fault.times -= 1
                    if not fault.times:
                        self.faults.remove(fault)
                    return fault
        return None

    def wait_until_stopped(self) -> None:
        self._stopped.wait(60)

    def offend(self, what: str) -> None:
        with self._lock:
            self.offences.append(what)

    def get(self, name: str) -> Json:
        with self._lock:
            if name not in self._nodes:
                raise Refused(404, f'nodes "{name}" not found')
            return self.node(name)

    def list(self) -> Json:
        with self._lock:
            metadata = {"resourceVersion": str(self._version)}
            nodes = [self.node(name) for name in self._nodes]
            return {"apiVersion": "v1", "kind": "NodeList", "metadata": metadata, "items": nodes}

    def update(self, name: str, node: Json) -> Json:
        with self._lock:
            self._expect(name, node["metadata"].get("resourceVersion"))
            self._nodes[name] = node
            self._changed(name, "MODIFIED")
            return self.node(name)

    def patch(self, name: str, patch: Json) -> Json:
        """A merge patch, of which a companion may touch annotations and taints, with a version only."""
        metadata: Json = patch.get("metadata", {})
        taints: list[Json] | None = patch.get("spec", {}).get("taints")
        if set(patch) - {"spec"} != {"metadata"} or ("spec" in patch and set(patch["spec"]) != {"taints"}):
            self.offend(f"a patch of more than metadata and taints: {patch}")
        if set(metadata) - {"annotations"} != {"resourceVersion"} or metadata.get("annotations") == {}:
            self.offend(f"a patch of other metadata than annotations with a version: {patch}")
        noted: Json = metadata.get("annotations", {})
        for hook in self.before_patch[:1]:
            self.before_patch.remove(hook)
            hook()
        with self._lock:
            before = self.get(name)
            self._expect(name, metadata.get("resourceVersion"))
            for key, value in noted.items():
                if not QUALIFIED.fullmatch(key) or not isinstance(value, str | None):
                    raise Refused(422, f"metadata.annotations: Invalid value: {key!r}")
            _merge(self._nodes[name]["metadata"]["annotations"], noted)
            if taints is not None:
                # A list without a key, which a patch of either kind replaces whole.
                self._nodes[name]["spec"]["taints"] = taints
            if self.node(name) != before:
                self._changed(name, "MODIFIED")
            else:
                self.offend(f"a patch that changes nothing: {patch}")
            after = self.node(name)
            self.offences += [offence for check in self.checks if (offence := check(before, after))]
            return after

    def watch(self, name: str) -> _Watch:
        """Begins with the node as it is, as for the versions "" and "0"."""
        with self._lock:
            made = _Watch(name)
            if name in self._nodes:
                made.events.put(_line({"type": "ADDED", "object": self.node(name)}))
            if self.end_watches_at_once:
                made.events.put(_END)
            self._watches.append(made)
            return made

    def unwatch(self, watch: _Watch) -> None:
        with self._lock:
            self._watches.remove(watch)

    def _expect(self, name: str, version: object) -> None:
        if version != self.get(name)["metadata"]["resourceVersion"]:
            raise Refused(409, f'Operation cannot be fulfilled on nodes "{name}": it has been modified')

    def _changed(self, name: str, kind: str) -> None:
        self._version += 1
        self._nodes[name]["metadata"]["resourceVersion"] = str(self._version)
        line = _line({"type": kind, "object": self._nodes[name]})
        for watch in self._watches:
            if watch.name == name:
                watch.events.put(line)

    def _to_all(self, event: object) -> None:
        with self._lock:
            for watch in self._watches:
                watch.events.put(event)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: _Listener

    def log_message(self, *_: object) -> None:
        """Nothing: what counts is in `asked`."""

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        one = _NODE.fullmatch(urlsplit(self.path).path)
        if one and not query:
            self._serve("get", lambda api, _: api.get(one[1]))
        elif urlsplit(self.path).path == "/api/v1/nodes" and query.get("watch") == ["true"]:
            self._watch(query)
        elif self.path == "/api/v1/nodes":
            self._serve("list", lambda api, _: api.list())
        else:
            self._strange()

    def do_PUT(self) -> None:
        if one := _NODE.fullmatch(self.path):
            self._serve("update", lambda api, body: api.update(one[1], body))
        else:
            self._strange()

    def do_PATCH(self) -> None:
        path = urlsplit(self.path)
        one = _NODE.fullmatch(path.path)
        if not one or path.query != "fieldManager=nvidiad-kubernetes":
            self._strange()
            return
        kind = self.headers.get("Content-Type", "")

        def do(api: ApiServer, body: Json) -> Json:
            if kind not in MERGE:
                api.offend(f"a patch as '{kind}'")
                raise Refused(415, "the body of the request was in an unknown format")
            return api.patch(one[1], body)

        self._serve("patch", do)

    def do_POST(self) -> None:
        self._strange()

    do_DELETE = do_HEAD = do_OPTIONS = do_POST

    def _strange(self) -> None:
        self.server.api.offend(f"{self.command} {self.path}")
        self.close_connection = True
        self._answer(404, _status(404, "the server could not find the requested resource"))

    def _who(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.server.api.tokens.get(token, "")

    def _admit(self, verb: str, body: Json) -> str | None:
        """Who may do that; None where it is answered already."""
        api, who = self.server.api, self._who()
        asked = Asked(who, verb, 0, time.monotonic(), body)
        fault = api.fault(verb)
        if fault is not None:
            asked.status = fault.status
        elif not who:
            asked.status = 401
        elif verb not in ROLES[who]:
            api.offend(f"{who} may not {verb}")
            asked.status = 403
        if fault is not None and not fault.status:
            api.asked.append(asked)
            if fault.hold:
                api.wait_until_stopped()
            self.close_connection = True
            return None
        if asked.status:
            self._answer(
                asked.status, _status(asked.status, "as a test asks for"), fault.kind if fault else "json"
            )
            api.asked.append(asked)
            return None
        return who

    def _serve(self, verb: str, do: Callable[[ApiServer, Json], Json]) -> None:
        length = int(self.headers.get("Content-Length", 0))
        data = self.rfile.read(length)
        if len(data) < length:
            # Who asked was killed in the middle of it.
            self.close_connection = True
            return
        body: Json = json.loads(data or b"{}")
        who = self._admit(verb, body)
        if who is None:
            return
        api, status = self.server.api, 200
        asked_at = time.monotonic()
        try:
            answer = do(api, body)
        except Refused as refused:
            status, answer = refused.status, _status(refused.status, refused.message)
        api.asked.append(Asked(who, verb, status, asked_at, body))
        self._answer(status, answer)

    def _watch(self, query: dict[str, list[str]]) -> None:
        api = self.server.api
        known = {"watch", "fieldSelector", "timeoutSeconds", "resourceVersion"}
        selector = re.fullmatch(r"metadata\.name=([a-z0-9.-]+)", query.get("fieldSelector", [""])[0])
        seconds = query.get("timeoutSeconds", [""])[0]
        if not set(query) <= known or not selector or not seconds.isdigit():
            self._strange()
            return
        if query.get("resourceVersion", ["0"]) != ["0"]:
            api.offend(f"a watch that begins at a version of one object: {query}")
        who = self._admit("watch", {})
        if who is None:
            return
        api.asked.append(Asked(who, "watch", 200, time.monotonic()))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        watch = api.watch(selector[1])
        self.close_connection = True
        end = time.monotonic() + int(seconds)
        try:
            while (left := end - time.monotonic()) > 0:
                try:
                    event = watch.events.get(timeout=left)
                except queue.Empty:
                    break
                if event is _CUT:
                    return
                if event is _END:
                    break
                assert isinstance(event, bytes)
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.write(b"0\r\n\r\n")
        finally:
            api.unwatch(watch)

    def _answer(self, status: int, answer: Json, kind: str = "json") -> None:
        body = {"json": json.dumps(answer).encode(), "empty": b"{}"}.get(kind, b"<h1>no</h1>")
        self.send_response(status)
        if kind != "bare":
            self.send_header("Content-Type", "text/html" if kind == "html" else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _merge(values: dict[str, str], changes: dict[str, str | None]) -> None:
    for key, value in changes.items():
        if value is None:
            values.pop(key, None)
        else:
            values[key] = value


def _line(event: Json) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _status(code: int, message: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": REASONS.get(code, "InternalError"),
        "code": code,
    }
