# SPDX-License-Identifier: Apache-2.0
"""The client: asks the daemon over its socket, with as few imports as it can."""

from __future__ import annotations

# Not `socket`, `typing`, `json` or `nvidiad.nouns`: each costs a good part of what `python3 -c pass` does,
# and `nvidiad status` is asked for by people in a hurry and by probes every few seconds.
import _socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nvidiad.nouns.errors import Failure

SOCKET = "/run/nvidiad/io.nvidiad"
# systemd may have to start the daemon first.
TIMEOUT = 15.0
_CHUNK = 65536
# Nothing that the daemon says comes near; a stranger at the other end must not fill our memory.
_LIMIT = 16 * 1024 * 1024
_CLOSED = "it closed the connection, as it does where one user has too many"


def fetch(path: str, resource: str, *, timeout: float = TIMEOUT) -> tuple[int, bytes]:
    """A resource over HTTP: its status code and body."""
    code, _, body = _get(path, resource, timeout)
    return code, body


def status(path: str, *, colour: bool = False, timeout: float = TIMEOUT) -> tuple[str, bytes]:
    """The phase and the text for a person: no JSON is parsed for it."""
    code, head, body = _get(path, "/status.txt?colour=yes" if colour else "/status.txt", timeout)
    if code != 200:
        raise _strange(path, body.decode("utf-8", "replace").strip())
    return _header(head, b"nvidiad-phase").decode("ascii", "replace"), body


def status_json(path: str, *, pretty: bool = False, timeout: float = TIMEOUT) -> tuple[str, bytes]:
    """The phase and the document as JSON text."""
    code, head, body = _get(path, "/status?json=pretty" if pretty else "/status", timeout)
    if code != 200:
        raise _strange(path, body.decode("utf-8", "replace").strip())
    return _header(head, b"nvidiad-phase").decode("ascii", "replace"), body


def reboot(path: str, *, timeout: float = TIMEOUT) -> tuple[bool, str, float | None] | None:
    """Whether a reboot may go, why, and until when (seconds since 1970) it is held at the most.

    None before the daemon's first look has ended.
    """
    import json

    _, body = status_json(path, timeout=timeout)
    document = json.loads(body)
    said = document.get("reboot") if isinstance(document, dict) else None
    if not isinstance(said, dict):
        return None
    until = said.get("until")
    limit = float(until) if isinstance(until, int | float) else None
    return said.get("go") is True, str(said.get("reason", "")), limit


def call(
    path: str,
    method: str,
    parameters: Mapping[str, object] | None = None,
    *,
    timeout: float = TIMEOUT,
) -> dict[str, object]:
    """A Varlink call: the parameters of its answer."""
    return next(_converse(path, method, parameters, more=False, timeout=timeout, patience=timeout))


def follow(path: str, method: str, *, timeout: float = TIMEOUT) -> Iterator[dict[str, object]]:
    """A Varlink call with `more`: an answer at every change, until the daemon ends it."""
    return _converse(path, method, None, more=True, timeout=timeout, patience=None)


def _converse(
    path: str,
    method: str,
    parameters: Mapping[str, object] | None,
    *,
    more: bool,
    timeout: float,
    patience: float | None,
) -> Iterator[dict[str, object]]:
    from nvidiad.thought import wire

    connection = _connect(path, timeout)
    try:
        connection.sendall(wire.call(method, parameters, more=more))
        frames = wire.Frames(_LIMIT)
        while True:
            message = frames.take()
            if message is not None:
                answer = wire.parse_message(message)
                if "error" in answer:
                    raise _refused(method, str(answer["error"]), wire.read_object(answer, "parameters"))
                yield wire.read_object(answer, "parameters")
                connection.settimeout(patience)
                if not wire.read_flag(answer, "continues"):
                    return
                continue
            data = connection.recv(_CHUNK)
            if not data:
                raise _strange(path, _CLOSED)
            frames.feed(data)
    except OSError as error:
        raise _unreachable(path, error) from error
    except wire.Refusal as error:
        raise _strange(path, str(error.parameters.get("reason", error))) from error
    finally:
        connection.close()


def _get(path: str, resource: str, timeout: float) -> tuple[int, bytes, bytes]:
    connection = _connect(path, timeout)
    try:
        connection.sendall(f"GET {resource} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = bytearray()
        while data := connection.recv(_CHUNK):
            answer += data
            if len(answer) > _LIMIT:
                raise _strange(path, "its answer has no end")
    except OSError as error:
        raise _unreachable(path, error) from error
    finally:
        connection.close()
    return parse(path, bytes(answer))


def parse(path: str, answer: bytes) -> tuple[int, bytes, bytes]:
    """The status code, the head and the body of a whole HTTP answer."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    is_code = len(words) > 1 and len(words[1]) == 3 and words[1].isdigit()
    whole = separator and is_code and _header(head, b"content-length")
    if not whole or whole != b"%d" % len(body):
        raise _strange(path, _CLOSED if not answer else "it closed the connection in the middle of one")
    return int(words[1]), head, body


def _header(head: bytes, wanted: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == wanted:
            return value.strip()
    return b""


def _connect(path: str, timeout: float) -> _socket.socket:
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        # In a crowd it is the kernel that waits for a place in the queue: a socket with one of Python's time
        # limits does not block, and is refused at once.
        seconds, rest = divmod(int(timeout * 1_000_000), 1_000_000)
        limit = seconds.to_bytes(8, "little") + rest.to_bytes(8, "little")
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, limit)
        connection.connect(path)
        connection.settimeout(timeout)
    except OSError as error:
        connection.close()
        raise _unreachable(path, error) from error
    return connection


def _unreachable(path: str, error: OSError) -> Failure:
    from nvidiad.nouns.errors import Code, Permanent, Transient

    start = "Start it: systemctl start nvidiad.socket nvidiad.service."
    journal = "See why: systemctl status nvidiad.service; journalctl -u nvidiad.service."
    match error:
        case FileNotFoundError() | ConnectionRefusedError() | NotADirectoryError():
            return Transient(Code.NOT_RUNNING, f"nvidiad is not running: nobody listens on '{path}'", start)
        case PermissionError():
            return Permanent(Code.NOT_AUTHORIZED, f"'{path}' may not be opened: {error.strerror}")
        case ConnectionResetError() | BrokenPipeError():
            return _strange(path, _CLOSED)
        case TimeoutError() | BlockingIOError():
            return Transient(Code.NOT_RUNNING, f"nvidiad does not answer on '{path}'", journal)
        case _:
            return Transient(Code.NOT_RUNNING, f"nvidiad does not answer on '{path}': {error}", journal)


def _strange(path: str, what: str) -> Failure:
    from nvidiad.nouns.errors import Code, Transient

    remedy = "See why: journalctl -u nvidiad.service."
    return Transient(Code.NOT_RUNNING, f"nvidiad gave no answer on '{path}': {what}", remedy)


def _refused(method: str, error: str, parameters: Mapping[str, object]) -> Failure:
    from nvidiad.nouns.errors import Code, Permanent

    if error == "io.nvidiad.NotAuthorized":
        return Permanent(
            Code.NOT_AUTHORIZED,
            f"uid {parameters.get('uid')} may read and not act",
            "Ask as root, or become a member of the group 'nvidiad'.",
        )
    reason = parameters.get("reason") or ", ".join(f"{key} {value}" for key, value in parameters.items())
    why = f" ({reason})" if reason else ""
    return Permanent(Code.INTERNAL, f"nvidiad refused '{method}': {error}{why}")
