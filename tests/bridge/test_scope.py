"""What a scope says of a request."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_bridge.messages import Disconnect, clip, close_message, read_received
from asgi_bridge.scope import request_from_scope, takes_denials
from asyncwebsockets import Request
from asyncwebsockets.events import BytesMessage, TextMessage


def scope(**more: Any) -> dict[str, Any]:
    return {"type": "websocket", "path": "/", "headers": [], "query_string": b"", **more}


def test_a_whole_scope() -> None:
    headers = [
        [b"host", b"example.com:8000"],
        [b"x-a", b"1"],
        [b"Origin", b"https://example.com"],
        [b"x-a", b"2"],
        [b"sec-websocket-protocol", b"one, two"],
        [b"sec-websocket-protocol", b"three,"],
        [b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits"],
        [b"cookie", b"c"],
    ]
    given_scope = scope(
        scheme="wss",
        http_version="1.1",
        path="/a b/é/z",
        raw_path=b"/a%20b/%C3%A9%2Fz",
        query_string=b"q=%20&r",
        headers=headers,
        client=["127.0.0.1", 1234],
        server=["127.0.0.1", 80],
        subprotocols=["one", "two"],
    )
    request = request_from_scope(given_scope)
    assert isinstance(request, Request)
    assert request.target == "/a%20b/%C3%A9%2Fz?q=%20&r"
    assert (request.path, request.query) == ("/a%20b/%C3%A9%2Fz", "q=%20&r")
    assert request.host == "example.com:8000"
    assert request.header("X-A") == "1, 2"
    assert request.origin == "https://example.com"
    assert request.headers == [tuple(pair) for pair in headers]
    assert request.extra_headers == [
        (b"x-a", b"1"),
        (b"origin", b"https://example.com"),
        (b"x-a", b"2"),
        (b"cookie", b"c"),
    ]
    assert request.subprotocols == ["one", "two", "three"]
    assert request.extensions == ["permessage-deflate; client_max_window_bits"]
    assert request.remote_address == ("127.0.0.1", 1234)
    assert request.local_address == ("127.0.0.1", 80)
    assert request.secure
    assert (request.method, request.http_version) == ("GET", "1.1")
    assert request.scope is given_scope
    assert "x-a" in repr(request)
    assert "given_scope" not in repr(request)


def test_a_scope_with_the_least() -> None:
    request = request_from_scope({"type": "websocket", "path": "/"})
    assert request.target == "/"
    assert not request.headers
    assert not request.subprotocols
    assert not request.extensions
    assert request.remote_address is None
    assert request.local_address is None
    assert not request.secure
    assert request.http_version == "1.1"
    assert request.host == "localhost"


@pytest.mark.parametrize(
    ("more", "attribute", "value"),
    [
        ({"server": ("::1", "8000")}, "local_address", ("::1", 8000)),
        ({"server": ("::1", 8000)}, "host", "[::1]:8000"),
        ({"server": ("127.0.0.1", 8000)}, "host", "127.0.0.1:8000"),
        ({"server": ["/run/socket", None]}, "local_address", "/run/socket"),
        ({"client": None}, "remote_address", None),
        ({"client": ("", None)}, "remote_address", None),
        ({"client": ("", "0")}, "remote_address", None),
        ({"server": ("/run/socket", "0")}, "local_address", "/run/socket"),
        ({"server": ("/run/socket", "0")}, "host", "localhost"),
        ({"scheme": "https"}, "secure", True),
        ({"scheme": "ws"}, "secure", False),
        ({"http_version": "2"}, "method", "CONNECT"),
        ({"subprotocols": [" a ", "", "b"]}, "subprotocols", ["a", "b"]),
        ({"path": "", "raw_path": b""}, "target", "/"),
        ({"path": "/a", "raw_path": b"/a?q=1", "query_string": b"q=1"}, "target", "/a?q=1"),
        ({"path": "/a b"}, "target", "/a%20b"),
        # Middleware that changes the path need not know of the raw one.
        ({"path": "/new", "raw_path": b"/old"}, "target", "/new"),
    ],
)
def test_what_servers_write_in_their_own_way(
    more: dict[str, Any], attribute: str, value: object
) -> None:
    assert getattr(request_from_scope(scope(**more)), attribute) == value


@pytest.mark.parametrize(
    ("root_path", "path", "raw_path", "target"),
    [
        ("", "/a", b"/a", "/a"),
        ("/app", "/app/a", b"/app/a", "/a"),
        ("/app/", "/app/a", b"/app/a", "/a"),
        ("/app", "/app", b"/app", "/"),
        ("/app", "/app/", b"/app/", "/"),
        # It only looks as if it were below.
        ("/app", "/appx", b"/appx", "/appx"),
        # The server has not put it in front.
        ("/app", "/a", b"/a", "/a"),
        ("/app", "/app/a", None, "/a"),
        ("/ä ö", "/ä ö/ü", b"/%C3%A4%20%C3%B6/%C3%BC", "/%C3%BC"),
        ("/a/b", "/a/b/c", b"/a%2Fb/c", "/c"),
        ("/app", "/app//a", b"/app//a", "//a"),
        ("/app", "/app/a", b"/app%2Fa", "/a"),
        ("/app", "/app/", b"/app%2f", "/"),
        ("/app/", "/app//a", b"/app%2F/a", "/a"),
    ],
)
def test_the_mounts_part_of_the_path_is_taken_off(
    root_path: str, path: str, raw_path: bytes | None, target: str
) -> None:
    request = request_from_scope(scope(root_path=root_path, path=path, raw_path=raw_path))
    assert request.target == target


SEGMENTS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), max_size=4)


@given(SEGMENTS, SEGMENTS)
def test_any_path_below_any_root(root: list[str], rest: list[str]) -> None:
    raw_root = "".join(f"/{quote(segment, safe='')}" for segment in root)
    raw_rest = "".join(f"/{quote(segment, safe='')}" for segment in rest) or "/"
    request = request_from_scope(
        scope(
            root_path=unquote(raw_root),
            path=unquote(raw_root + raw_rest),
            raw_path=(raw_root + raw_rest).encode(),
        )
    )
    assert request.path == raw_rest


def test_granians_denials_are_not_trusted() -> None:
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    assert takes_denials(scope(extensions=extensions, server=("127.0.0.1", 80)))
    assert takes_denials(scope(extensions=extensions))
    assert not takes_denials(scope(extensions=extensions, server=("127.0.0.1", "80")))
    assert not takes_denials(scope(extensions={}))
    assert not takes_denials(scope())


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ({"text": "a"}, TextMessage("a")),
        ({"text": ""}, TextMessage("")),
        ({"text": "", "bytes": None}, TextMessage("")),
        ({"bytes": b""}, BytesMessage(b"")),
        ({"bytes": bytearray(b"a"), "text": None}, BytesMessage(b"a")),
    ],
)
def test_messages_received(message: dict[str, Any], event: object) -> None:
    assert read_received({"type": "websocket.receive", **message}) == event


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ({"code": 4001, "reason": "over"}, Disconnect(4001, "over")),
        ({"code": None, "reason": None}, Disconnect(1005, "")),
        ({}, Disconnect(1005, "")),
    ],
)
def test_the_end(message: dict[str, Any], event: object) -> None:
    assert read_received({"type": "websocket.disconnect", **message}) == event


@pytest.mark.parametrize(
    "message", [{"type": "websocket.receive"}, {"type": "websocket.connect"}, {"type": "other"}]
)
def test_what_no_server_may_send(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_received(message)


@given(st.text(st.characters(codec="utf-8")))
def test_a_reason_is_cut_at_a_character(reason: str) -> None:
    cut = close_message(1000, reason)["reason"]
    assert len(cut.encode()) <= 123
    assert reason.startswith(cut)
    if len(reason.encode()) <= 123:
        assert cut == reason
    else:
        assert len(cut.encode()) > 123 - 4


def test_a_reason_of_exactly_123_bytes_is_kept() -> None:
    assert clip("x" * 123) == "x" * 123
    assert clip("x" * 122 + "é") == "x" * 122
