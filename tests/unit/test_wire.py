# SPDX-License-Identifier: Apache-2.0
"""The wire: framing, requests and refusals, for whatever bytes come."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvidiad.thought import wire

MESSAGES = st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\0", b"?")), max_size=8)


def drain(frames: wire.Frames) -> list[bytes]:
    taken = []
    while (message := frames.take()) is not None:
        taken.append(message)
    return taken


@given(MESSAGES, st.binary(max_size=20).map(lambda b: b.replace(b"\0", b"?")), st.data())
def test_frames_do_not_depend_on_how_the_stream_was_cut(
    messages: list[bytes], rest: bytes, data: st.DataObject
) -> None:
    stream = b"".join(message + b"\0" for message in messages) + rest
    frames, taken, at = wire.Frames(64), [], 0
    while at < len(stream):
        length = data.draw(st.integers(1, len(stream) - at))
        frames.feed(stream[at : at + length])
        taken += drain(frames)
        at += length
    assert taken == messages
    assert frames.pending == bool(rest)


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        ([b"x" * 10 + b"\0"], [b"x" * 10]),
        ([b"x" * 11], None),
        ([b"x" * 11 + b"\0"], None),
        ([b"x" * 6, b"x" * 6], None),
        ([b"a\0" * 50], [b"a"] * 50),
    ],
)
def test_frames_have_a_limit(pieces: list[bytes], whole: list[bytes] | None) -> None:
    frames = wire.Frames(10)

    def feed() -> list[bytes]:
        taken = []
        for piece in pieces:
            frames.feed(piece)
            taken += drain(frames)
        return taken

    if whole is not None:
        assert feed() == whole
        return
    with pytest.raises(wire.Refusal) as caught:
        feed()
    assert caught.value.error == wire.Error.INVALID_MESSAGE


def test_messages_before_an_oversize_one_are_taken() -> None:
    frames = wire.Frames(4)
    frames.feed(b"one\0" + b"x" * 9)
    assert frames.take() == b"one"
    with pytest.raises(wire.Refusal):
        frames.take()


@pytest.mark.parametrize(
    ("first", "spoken"),
    [
        (b"{", wire.Protocol.VARLINK),
        (b"GET / HTTP/1.1", wire.Protocol.HTTP),
        (b"POST", wire.Protocol.HTTP),
        (b"get", None),
        (b"\x16\x03\x01", None),
        (b"\0", None),
        (b" {", None),
        (b"", None),
    ],
)
def test_the_first_byte_decides(first: bytes, spoken: wire.Protocol | None) -> None:
    assert wire.protocol(first) is spoken


def test_request() -> None:
    message = wire.call("io.nvidiad.GetStatus", {"a": 1}, more=True)
    assert message.endswith(b"\0")
    request = wire.parse_request(message[:-1])
    assert request == wire.Request("io.nvidiad.GetStatus", {"a": 1}, more=True)
    assert request.interface == "io.nvidiad"
    assert wire.parse_request(b'{"method":"a.B","parameters":null,"more":null,"new":1}') == wire.Request(
        "a.B"
    )


INVALID = wire.Error.INVALID_MESSAGE
PARAMETER = wire.Error.INVALID_PARAMETER


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (b"", INVALID),
        (b"{", INVALID),
        (b"[]", INVALID),
        (b"null", INVALID),
        (b'{"method":"a.B"} x', INVALID),
        (b'{"method":"a.B\xff"}', INVALID),
        (b'{"method":NaN}', INVALID),
        (b'{"method":' + b"1" * 5000 + b"}", INVALID),
        (b"[" * 60000, INVALID),
        (b'{"a":' * 10000, INVALID),
        (b"{}", PARAMETER),
        (b'{"method":1}', PARAMETER),
        (b'{"method":"B"}', PARAMETER),
        (b'{"method":"a.B","parameters":[]}', PARAMETER),
        (b'{"method":"a.B","more":1}', PARAMETER),
        (b'{"method":"a.B","oneway":"yes"}', PARAMETER),
    ],
)
def test_what_is_no_request(message: bytes, error: wire.Error) -> None:
    with pytest.raises(wire.Refusal) as caught:
        wire.parse_request(message)
    assert caught.value.error == error
    json.loads(wire.error_reply(caught.value)[:-1])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_refusal(message: bytes) -> None:
    try:
        request = wire.parse_request(message)
    except wire.Refusal:
        return
    assert "." in request.method


def test_unknown_parameters_are_refused() -> None:
    wire.only(wire.Request("a.B", {"x": 1}), "x", "y")
    with pytest.raises(wire.Refusal) as caught:
        wire.only(wire.Request("a.B", {"z": 1}), "x", "y")
    assert caught.value.parameters == {"parameter": "z"}


def test_replies() -> None:
    assert wire.reply({"a": 1}) == b'{"parameters":{"a":1}}\0'
    assert wire.reply({}, continues=True) == b'{"parameters":{},"continues":true}\0'
    refusal = wire.Refusal(wire.Error.NOT_AUTHORIZED, uid=7)
    assert wire.error_reply(refusal) == b'{"error":"io.nvidiad.NotAuthorized","parameters":{"uid":7}}\0'


def test_json_is_utf8_whatever_names_hold() -> None:
    assert json.loads(wire.dump({"a": "ä\udc80"}).decode()) == {"a": "ä?"}
    with pytest.raises(ValueError, match="float"):
        wire.dump({"a": float("nan")})


# ---------------------------------------------------------------------------------------------------


def test_http_request() -> None:
    head = wire.http_head(b"GET /status?json=pretty&x HTTP/1.1\r\nHost: a\r\n\r\nrest")
    assert head == b"GET /status?json=pretty&x HTTP/1.1\r\nHost: a"
    request = wire.parse_http(head)
    assert (request.path, dict(request.query)) == ("/status", {"json": "pretty", "x": ""})
    assert wire.http_head(b"GET / HTTP/1.0\n\n") == b"GET / HTTP/1.0"
    assert wire.http_head(b"GET / HTTP/1.0\r\n") is None


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET", 400),
        (b"GET / ", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"G\xc3\x84T / HTTP/1.1", 400),
        (b"GET / HTTP/9", 400),
        (b"GET * HTTP/1.1", 400),
        (b"GET http://x/ HTTP/1.1", 400),
        (b"GET /\x01 HTTP/1.1", 400),
        (b"POST / HTTP/1.1", 405),
        (b"HEAD / HTTP/1.1", 405),
        (b"PRI * HTTP/2.0", 505),
    ],
)
def test_http_refusals(head: bytes, status: int) -> None:
    with pytest.raises(wire.HttpRefusal) as caught:
        wire.parse_http(head)
    assert caught.value.status == status
    assert wire.response(status, b"x").startswith(f"HTTP/1.1 {status} ".encode())


def test_http_head_has_a_limit() -> None:
    for data in (b"GET /" + b"x" * wire.HEAD_LIMIT, b"GET /" + b"x" * wire.HEAD_LIMIT + b"\r\n\r\n"):
        with pytest.raises(wire.HttpRefusal) as caught:
            wire.http_head(data)
        assert caught.value.status == 431


@given(st.binary(max_size=200))
def test_any_bytes_are_an_http_request_or_a_refusal(head: bytes) -> None:
    try:
        request = wire.parse_http(head)
    except wire.HttpRefusal:
        return
    assert request.path.startswith("/")


def test_http_response() -> None:
    answer = wire.response(405, b"no\n", headers=[("Nvidiad-Phase", "ready")])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b"no\n"
    assert b"Content-Length: 3" in head and b"Allow: GET" in head and b"Nvidiad-Phase: ready" in head
