# SPDX-License-Identifier: Apache-2.0
"""The wire: Varlink messages and HTTP requests on one socket, as bytes in and values out."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from nvidiad.nouns.value import Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MESSAGE_LIMIT = 64 * 1024
"""No request of ours comes near; replies have no limit, they are ours."""
HEAD_LIMIT = 8 * 1024

SERVICE = "org.varlink.service"
INTERFACE = "io.nvidiad"

HTTP_METHOD = re.compile(r"[A-Z]{1,32}")
HTTP_TARGET = re.compile(r"/[!-~]*")
HTTP_VERSION = re.compile(r"HTTP/[0-9]\.[0-9]")

REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    505: "HTTP Version Not Supported",
}


class Protocol(StrEnum):
    """What a client speaks."""

    VARLINK = "varlink"
    HTTP = "http"


class Error(StrEnum):
    """The names of Varlink errors that we answer with."""

    INTERFACE_NOT_FOUND = f"{SERVICE}.InterfaceNotFound"
    METHOD_NOT_FOUND = f"{SERVICE}.MethodNotFound"
    METHOD_NOT_IMPLEMENTED = f"{SERVICE}.MethodNotImplemented"
    INVALID_PARAMETER = f"{SERVICE}.InvalidParameter"
    PERMISSION_DENIED = f"{SERVICE}.PermissionDenied"
    EXPECTED_MORE = f"{SERVICE}.ExpectedMore"
    NOT_AUTHORIZED = f"{INTERFACE}.NotAuthorized"
    INVALID_MESSAGE = f"{INTERFACE}.InvalidMessage"
    INTERNAL = f"{INTERFACE}.Internal"


class Refusal(Exception):
    """A request that is answered with a Varlink error."""

    def __init__(self, error: Error, **parameters: object) -> None:
        super().__init__(error)
        self.error = error
        self.parameters = parameters


class HttpRefusal(Exception):
    """A request that is answered with an HTTP status other than 200."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class Request(Value):
    """A Varlink call."""

    method: str
    parameters: Mapping[str, object] = MappingProxyType({})
    more: bool = False
    oneway: bool = False
    upgrade: bool = False

    @property
    def interface(self) -> str:
        return self.method.rpartition(".")[0]


class HttpRequest(Value):
    """An HTTP request, as far as we look at it; its headers mean nothing to us."""

    method: str
    path: str
    query: Mapping[str, str]


class Frames:
    """Cuts a stream into messages that end in NUL; holds no more than what was fed and not yet taken."""

    def __init__(self, limit: int = MESSAGE_LIMIT) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def take(self) -> bytes | None:
        """The next whole message without its NUL, None where there is none yet."""
        end = self._buffer.find(b"\0", self._searched)
        if (len(self._buffer) if end < 0 else end) > self._limit:
            raise Refusal(Error.INVALID_MESSAGE, reason=f"a message has at most {self._limit} bytes")

        if end < 0:
            # What was searched is not searched again: a message fed byte by byte stays linear.
            self._searched = len(self._buffer)
            return None

        message = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return message

    @property
    def pending(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._buffer)


def protocol(first: bytes) -> Protocol | None:
    """What the first byte of a connection announces; None is nothing that we speak."""
    if first[:1] == b"{":
        return Protocol.VARLINK
    if b"A" <= first[:1] <= b"Z":
        return Protocol.HTTP
    return None


# ---------------------------------------------------------------------------------------------------
# Varlink


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def parse_message(message: bytes) -> dict[str, object]:
    """A message as a JSON object."""
    try:
        value = json.loads(message.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        # UnicodeDecodeError and JSONDecodeError are ValueErrors; thousands of '[' end in RecursionError.
        raise Refusal(Error.INVALID_MESSAGE, reason="a message is a JSON object") from error
    if not isinstance(value, dict):
        raise Refusal(Error.INVALID_MESSAGE, reason="a message is a JSON object")
    return value


def parse_request(message: bytes) -> Request:
    """A message as a call; unknown members are let pass, as the Varlink specification asks."""
    value = parse_message(message)
    method = read_string(value, "method")
    if "." not in method:
        raise Refusal(Error.INVALID_PARAMETER, parameter="method")
    return Request(
        method,
        read_object(value, "parameters"),
        more=read_flag(value, "more"),
        oneway=read_flag(value, "oneway"),
        upgrade=read_flag(value, "upgrade"),
    )


def read_string(values: Mapping[str, object], name: str) -> str:
    """A string that must be there."""
    value = values.get(name)
    if not isinstance(value, str):
        raise Refusal(Error.INVALID_PARAMETER, parameter=name)
    return value


def read_flag(values: Mapping[str, object], name: str) -> bool:
    """A boolean; absent and null are false."""
    value = values.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise Refusal(Error.INVALID_PARAMETER, parameter=name)
    return value


def read_object(values: Mapping[str, object], name: str) -> dict[str, object]:
    """An object; absent and null are an empty one."""
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refusal(Error.INVALID_PARAMETER, parameter=name)
    return value


def only(request: Request, *names: str) -> None:
    """Refuse parameters that the method does not have: a misspelt one must not be ignored."""
    for name in request.parameters:
        if name not in names:
            raise Refusal(Error.INVALID_PARAMETER, parameter=name)


def dump(value: object, *, pretty: bool = False) -> bytes:
    """A value as JSON text. Names read from the kernel may hold lone surrogates, which are no UTF-8."""
    text = json.dumps(
        value,
        ensure_ascii=False,
        allow_nan=False,
        indent=2 if pretty else None,
        separators=None if pretty else (",", ":"),
    )
    return text.encode("utf-8", "replace")


def call(method: str, parameters: Mapping[str, object] | None = None, *, more: bool = False) -> bytes:
    """A call as bytes."""
    message: dict[str, object] = {"method": method, "parameters": dict(parameters or {})}
    return dump(message | ({"more": True} if more else {})) + b"\0"


def reply(parameters: Mapping[str, object], *, continues: bool = False) -> bytes:
    """An answer as bytes."""
    message: dict[str, object] = {"parameters": dict(parameters)}
    return dump(message | ({"continues": True} if continues else {})) + b"\0"


def error_reply(refusal: Refusal) -> bytes:
    """A refusal as bytes."""
    return dump({"error": str(refusal.error), "parameters": refusal.parameters}) + b"\0"


# ---------------------------------------------------------------------------------------------------
# HTTP


def http_head(buffer: bytes | bytearray) -> bytes | None:
    """The request line and headers once they are complete; None until then."""
    found = re.search(rb"\r?\n\r?\n", buffer)
    if (len(buffer) if found is None else found.start()) > HEAD_LIMIT:
        raise HttpRefusal(431, f"a request has at most {HEAD_LIMIT} bytes")
    return None if found is None else bytes(buffer[: found.start()])


def parse_http(head: bytes) -> HttpRequest:
    """The request in a head; only the request line counts."""
    line = head.split(b"\n", 1)[0].rstrip(b"\r")
    words = line.decode("latin-1").split(" ")
    if len(words) != 3 or not HTTP_METHOD.fullmatch(words[0]) or not HTTP_VERSION.fullmatch(words[2]):
        raise HttpRefusal(400, "this is not an HTTP request")
    method, target, version = words
    if not version.startswith("HTTP/1."):
        raise HttpRefusal(505, "only HTTP/1.x is spoken here")
    if method != "GET":
        raise HttpRefusal(405, "only GET is answered here")
    if not HTTP_TARGET.fullmatch(target):
        raise HttpRefusal(400, "the target is not a path")

    path, _, query = target.partition("?")
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    return HttpRequest(method, path, {key: value for key, _, value in pairs})


def response(
    status: int,
    body: bytes,
    *,
    kind: str = "text/plain; charset=utf-8",
    headers: Iterable[tuple[str, str]] = (),
) -> bytes:
    """A whole HTTP answer, after which the connection is closed."""
    lines = [
        f"HTTP/1.1 {status} {REASONS[status]}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers),
        *(["Allow: GET"] if status == 405 else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body
