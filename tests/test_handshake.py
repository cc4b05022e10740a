"""The handshake without I/O: any bytes, in any pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncwebsockets import (
    HandshakeError,
    InvalidHandshake,
    Reject,
    Request,
    Response,
    check_origin,
    origin_filter,
)
from asyncwebsockets._grammar import is_token, parse_extension, split_list
from asyncwebsockets.decision import decide
from asyncwebsockets.events import AcceptConnection, RejectConnection
from asyncwebsockets.handshake import ClientHandshake, ServerHandshake, normalize_headers

from .frames import REQUEST, accept_for, response_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence


def feed(handshake: Any, data: bytes, cuts: Sequence[int] = ()) -> Any:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in zip(edges, edges[1:], strict=False):
        if start == end:
            continue
        result = handshake.receive_data(data[start:end])
        if result is not None:
            return result, data[end:]
    return None, b""


@given(cuts=st.lists(st.integers(0, 400), max_size=20), behind=st.binary(max_size=50))
def test_a_request_in_any_pieces(cuts: list[int], behind: bytes) -> None:
    handshake = ServerHandshake(max_size=1000)
    request, unread = feed(handshake, REQUEST + behind, cuts)
    assert isinstance(request, Request)
    assert handshake.upgrade
    assert request.target == "/path?q=1"
    assert request.host == "example.com"
    assert handshake.trailing_data + unread == behind
    data, response, agreed = handshake.accept(AcceptConnection(), [])
    assert data == response_for(REQUEST).replace(b"HTTP/1.1 101 Switching Protocols", data[:32])
    assert response.status == 101
    assert agreed == []


@given(cuts=st.lists(st.integers(0, 400), max_size=20), behind=st.binary(max_size=50))
def test_a_response_in_any_pieces(cuts: list[int], behind: bytes) -> None:
    handshake = ClientHandshake(host="h", target="/")
    response, unread = feed(handshake, response_for(handshake.request_data) + behind, cuts)
    assert response.status == 101
    assert handshake.trailing_data + unread == behind


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes_are_a_request_or_an_invalid_one(data: bytes, cuts: list[int]) -> None:
    handshake = ServerHandshake(max_size=200)
    try:
        result, _ = feed(handshake, data, cuts)
    except InvalidHandshake as exc:
        assert exc.status in (400, 405, 426, 431, 501)
        assert handshake.reject(Reject(exc.status, exc.headers)).startswith(b"HTTP/1.1 ")
    else:
        assert result is None or isinstance(result, Request)


LINES = st.lists(
    st.sampled_from(
        [
            "Host: h",
            "Upgrade: websocket",
            "Upgrade: h2c",
            "Connection: Upgrade",
            "Connection: close",
            "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Version: 8",
            "Sec-WebSocket-Protocol: a, b",
            "Sec-WebSocket-Protocol: é",
            "Sec-WebSocket-Extensions: permessage-deflate; x",
            'Sec-WebSocket-Extensions: x; a="b,c"',
            "Content-Length: 0",
            "Content-Length: 5",
            "Transfer-Encoding: chunked",
            " folded",
            "",
        ]
    ),
    max_size=12,
)


@given(lines=LINES, method=st.sampled_from(["GET", "POST", "HEAD", "OPTIONS"]))
def test_any_fields_are_a_request_or_an_invalid_one(lines: list[str], method: str) -> None:
    data = "\r\n".join([f"{method} / HTTP/1.1", *lines, "", ""]).encode()
    handshake = ServerHandshake(max_size=10_000)
    try:
        request = handshake.receive_data(data)
    except InvalidHandshake as exc:
        assert exc.status in (400, 405, 426)
        return
    if request is not None and handshake.upgrade:
        # What is accepted has all that RFC 6455 section 4.2.1 asks for.
        fields = [name.lower() for name, _ in request.headers]
        assert fields.count(b"sec-websocket-key") == fields.count(b"sec-websocket-version") == 1
        assert b"host" in fields
        assert method == "GET"
        handshake.accept(AcceptConnection(), [])


def outcome(*pieces: bytes) -> object:
    handshake = ServerHandshake(max_size=500)
    try:
        results = [handshake.receive_data(piece) for piece in pieces]
    except InvalidHandshake as exc:
        return exc.status, exc.headers
    return results[-1], handshake.upgrade, handshake.trailing_data


@given(
    lines=LINES,
    start=st.sampled_from(
        ["GET / HTTP/1.1", "HEAD / HTTP/1.1", "GET /\xe9 HTTP/1.1", "GET  / HTTP/1.1"]
    ),
    end=st.sampled_from(["\r\n", "\n"]),
)
@example(lines=["Host: h", "X:\ta \t b\xff ", "Y:"], start="GET / HTTP/1.1", end="\r\n")
@example(lines=["Host: h", "X : a"], start="GET / HTTP/1.1", end="\r\n")
@example(lines=["Host: h", "X: a\x01"], start="GET / HTTP/1.1", end="\r\n")
@example(lines=["Host: h", "X: a\x00"], start="GET / HTTP/1.1", end="\r\n")
@example(lines=["Host: h", "X: a\x7f"], start="GET / HTTP/1.1", end="\r\n")
@example(lines=["Host: h", "X: a\rY: b"], start="GET / HTTP/1.1", end="\r\n")
@example(lines=["Host: h", f"X: {'x' * 500}"], start="GET / HTTP/1.1", end="\r\n")
def test_a_request_in_one_piece_is_read_as_in_two(lines: list[str], start: str, end: str) -> None:
    data = end.join([start, *lines, "", ""]).encode("latin-1")
    assert outcome(data) == outcome(data[:1], data[1:])


@given(
    at=st.integers(0, len(REQUEST)),
    skip=st.integers(0, 3),
    new=st.binary(max_size=3),
    behind=st.binary(max_size=3),
)
def test_a_request_with_a_fault_in_one_piece_is_read_as_in_two(
    at: int, skip: int, new: bytes, behind: bytes
) -> None:
    data = REQUEST[:at] + new + REQUEST[at + skip :] + behind
    assert outcome(data) == outcome(data[:1], data[1:])


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes_are_a_response_or_an_invalid_one(data: bytes, cuts: list[int]) -> None:
    handshake = ClientHandshake(host="h", target="/", max_size=200)
    try:
        result, _ = feed(handshake, data, cuts)
        result = result or handshake.receive_data(b"")
    except InvalidHandshake:
        return
    except HandshakeError as exc:
        assert "without a response" in str(exc)
        return
    assert isinstance(result, Response)
    assert result.status != 101


def test_the_example_of_the_rfc() -> None:
    # RFC 6455 section 1.3.
    assert accept_for("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    request = REQUEST.replace(
        REQUEST.split(b"Key: ")[1].split(b"\r")[0], b"dGhlIHNhbXBsZSBub25jZQ=="
    )
    handshake = ServerHandshake(max_size=None)
    assert handshake.receive_data(request)
    data, _, _ = handshake.accept(AcceptConnection(), [])
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in data


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        ("http://other.example/a?b", "other.example", "/a?b"),
        ("ws://other.example:81", "other.example:81", "/"),
        ("/a?u=http://x", "example.com", "/a?u=http://x"),
        ("/to/http://x/y", "example.com", "/to/http://x/y"),
        ("//x/http://y", "example.com", "//x/http://y"),
        ("http://[::1]:80?q", "[::1]:80", "/?q"),
    ],
)
def test_the_absolute_form_of_a_target(target: str, host: str, expected: str) -> None:
    handshake = ServerHandshake(max_size=None)
    request = handshake.receive_data(REQUEST.replace(b"/path?q=1", target.encode()))
    assert request is not None
    assert (request.host, request.target) == (host, expected)


@pytest.mark.parametrize(
    "target", ["http://", "http://?x", "http://u:p@h/", "http://[/", "foo://h/", "/a#b", "*"]
)
def test_a_bad_target_is_an_invalid_handshake(target: str) -> None:
    with pytest.raises(InvalidHandshake, match="expected a path") as caught:
        ServerHandshake(max_size=None).receive_data(REQUEST.replace(b"/path?q=1", target.encode()))
    assert caught.value.status == 400


HOSTS = [
    # A target of which Host says nothing has no authority (RFC 9112 section 3.2).
    "",
    *("h", "example.com", "example.com.", "EXAMPLE.com:80", "a_b-c~d", "xn--bcher-kva.example"),
    *("127.0.0.1", "127.0.0.1:8765", "h:", "h:65536", "%e2%98%83", "a%2Fb:1", "!$&'()*+,;="),
    *("[::]", "[::1]:8080", "[::1]:", "[2001:db8::A:1]", "[1:2:3:4:5:6:7:8]", "[::ffff:1.2.3.4]"),
]
NO_HOSTS = [
    *("a b", "a\tb", "a, b", "a/b", "/", "a?b", "a#b", "a\\b", "u@h", "http://h", '"h"', "<h>"),
    *(
        ":",
        ":80",
        "h:80:80",
        "h:http",
        "h:-1",
        "h: 80",
        "h:8\xb2",
        "%",
        "%2",
        "%zz",
        "\xe9",
        "h\x80",
    ),
    *("::1", "[", "]", "[]", "[::1", "::1]", "[::1]80", "[h]", "[1.2.3.4]", "[::1%25lo]", "x[::1]"),
    *("[:::]", "[1:2:3:4:5:6:7:8:9]", "[::1::2]", "[::12345]", "[::1.2.3.400]", "[v1.a]", "{}"),
]


@pytest.mark.parametrize("cuts", [[], [100]], ids=["plain", "by h11"])
@pytest.mark.parametrize("target", [b"/path?q=1", b"ws://other.example/"], ids=["path", "absolute"])
def test_the_host_is_one(target: bytes, cuts: list[int]) -> None:
    def fed(host: str) -> Any:
        data = REQUEST.replace(b"/path?q=1", target).replace(
            b"Host: example.com", b"Host:%s" % host.encode("latin-1")
        )
        return feed(ServerHandshake(max_size=None), data, cuts)

    for host in HOSTS:
        request, _ = fed(host)
        # That of an absolute target overrides it, and does not make up for a bad one.
        assert request.host == (host if target.startswith(b"/") else "other.example")
    for host in NO_HOSTS:
        with pytest.raises(InvalidHandshake, match="expected a host") as caught:
            fed(host)
        assert caught.value.status == 400


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_bad_host_of_plain_http_is_400(method: str) -> None:
    with pytest.raises(InvalidHandshake, match="expected a host") as caught:
        ServerHandshake(max_size=None).receive_data(
            f"{method} / HTTP/1.1\r\nHost: /\r\n\r\n".encode()
        )
    assert caught.value.status == 400


def test_the_host_of_an_absolute_target_is_one() -> None:
    for host in ("a b", "a%2", "[::1::2]", "h\\"):
        target = f"ws://{host}/".encode().replace(b" ", b'"')
        with pytest.raises(InvalidHandshake, match="expected a host"):
            ServerHandshake(max_size=None).receive_data(REQUEST.replace(b"/path?q=1", target))


@given(host=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12))
def test_any_text_is_a_host_or_none(host: str) -> None:
    def read(data: bytes) -> Any:
        request = ServerHandshake(max_size=None).receive_data(data)
        assert request is not None
        return request.host

    data = REQUEST.replace(b"Host: example.com", f"Host: {host}".encode())
    try:
        assert read(data) == host
    except InvalidHandshake:
        return
    # What fits can stand in a URL.
    if host:
        assert urlsplit(f"//{host}/").netloc == host
        assert read(REQUEST.replace(b"/path", f"ws://{host}/path".encode())) == host


def test_a_client_that_sends_nothing_gets_no_answer() -> None:
    with pytest.raises(HandshakeError, match="left without a request") as caught:
        ServerHandshake(max_size=None).receive_data(b"")
    assert not isinstance(caught.value, InvalidHandshake)


def test_a_101_of_an_older_http_is_refused() -> None:
    handshake = ClientHandshake(host="h", target="/")
    response = response_for(handshake.request_data).replace(b"HTTP/1.1", b"HTTP/1.0")
    with pytest.raises(InvalidHandshake, match="HTTP/1.1"):
        handshake.receive_data(response)


@pytest.mark.parametrize("text", ['"' * 60_000, '"\\' * 30_000, "," * 60_000, 'a"' * 30_000])
def test_a_list_of_any_quotes_is_split_in_linear_time(text: str) -> None:
    class Counting(str):
        """Counts how often it is read from."""

        reads = 0

        def __iter__(self) -> Iterator[str]:
            for char in super().__iter__():
                Counting.reads += 1
                yield char

    assert "".join(split_list(text)).replace(",", "") == text.replace(",", "")
    split_list(Counting(text))
    assert Counting.reads <= len(text)


def test_subprotocols_and_extensions_over_several_lines() -> None:
    handshake = ServerHandshake(max_size=None)
    request = handshake.receive_data(
        REQUEST[:-2]
        + b"Sec-WebSocket-Protocol: a,b ,, c\r\nsec-websocket-protocol: d\r\n"
        + b'Sec-WebSocket-Extensions: x; a="1,2", y\r\nSec-WebSocket-Extensions: z\r\n\r\n'.replace(
            b"1,2", b"12"
        )
    )
    assert request is not None
    assert request.subprotocols == ["a", "b", "c", "d"]
    assert request.extensions == ['x; a="12"', "y", "z"]


def test_masks_and_keys_differ() -> None:
    keys = {
        ClientHandshake(host="h", target="/").request.header("sec-websocket-key") for _ in range(50)
    }
    assert len(keys) == 50


def test_the_size_of_a_request_is_limited_in_one_piece_too() -> None:
    handshake = ServerHandshake(max_size=len(REQUEST) - 1)
    with pytest.raises(InvalidHandshake) as caught:
        handshake.receive_data(REQUEST)
    assert caught.value.status == 431
    assert ServerHandshake(max_size=len(REQUEST)).receive_data(REQUEST + b"behind") is not None


@pytest.mark.parametrize(
    ("name", "items"),
    [
        # Five fields are there already.
        (None, 251),
        ("Sec-WebSocket-Extensions", 256),
        ("Sec-WebSocket-Protocol", 256),
    ],
)
def test_more_items_than_anybody_needs_are_431(name: str | None, items: int) -> None:
    def fed(count: int, cuts: Sequence[int]) -> Any:
        texts = [f"a{number}" for number in range(count)]
        extra = f"{name}: {','.join(texts)}\r\n" if name else "a: b\r\n" * count
        return feed(ServerHandshake(max_size=None), REQUEST[:-2] + extra.encode() + b"\r\n", cuts)

    for cuts in ([], [100]):
        request, _ = fed(items, cuts)
        assert isinstance(request, Request)
        with pytest.raises(InvalidHandshake) as caught:
            fed(items + 1, cuts)
        assert caught.value.status == 431


def test_a_body_that_is_not_as_long_as_it_says() -> None:
    handshake = ServerHandshake(max_size=None)
    handshake.receive_data(REQUEST)
    for headers in ([("Content-Length", "3")], [("Transfer-Encoding", "chunked")]):
        with pytest.raises(ValueError, match="a Content-Length of 2"):
            handshake.reject(Reject(400, headers, b"no"))

    async def body() -> AsyncIterator[bytes]:
        yield b"four"

    handshake.reject(Reject(400, [("Content-Length", "3")], body()))
    with pytest.raises(ValueError, match="cannot be sent"):
        handshake.reject_body(b"four")
    with pytest.raises(ValueError, match="200 to 599"):
        Reject(101)
    with pytest.raises(ValueError, match="no body with status 204"):
        Reject(204, body=b"x")
    with pytest.raises(TypeError, match="expected a body of bytes"):
        Reject(403, body=5)  # type: ignore[arg-type]


def test_normalize_headers() -> None:
    assert normalize_headers(None) == []
    assert normalize_headers({"A": " b\t"}) == [(b"A", b"b")]
    with pytest.raises(TypeError):
        normalize_headers([("a", None)])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("text", "items"),
    [("", []), ("a", ["a"]), (" a , ,b", ["a", "b"]), ('a="x,y",b', ['a="x,y"', "b"])],
)
def test_split_list(text: str, items: list[str]) -> None:
    assert split_list(text) == items


@given(st.text())
def test_parse_extension_takes_any_text(text: str) -> None:
    try:
        name, parameters = parse_extension(text)
    except ValueError:
        return
    assert is_token(name)
    assert all(is_token(key) for key, _ in parameters)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a", ("a", [])),
        ("a; b; c=d", ("a", [("b", None), ("c", "d")])),
        ('a ;b = "c\\d"', ("a", [("b", "cd")])),
    ],
)
def test_parse_extension(text: str, parsed: Any) -> None:
    assert parse_extension(text) == parsed


@pytest.mark.parametrize("text", ["", "a=b", "a;", "a; b=", 'a; b="c d"', "a b", "a; b c"])
def test_parse_extension_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        parse_extension(text)


REQUESTED = Request(host="h", target="/", subprotocols=["a", "b"])


@pytest.mark.parametrize(
    ("result", "decision"),
    [
        (True, AcceptConnection(subprotocol="a")),
        ("b", AcceptConnection(subprotocol="b")),
        (AcceptConnection(), AcceptConnection()),
        (False, Reject(403)),
        (None, Reject(403)),
        (RejectConnection(401, [(b"a", b"b")]), Reject(401, [(b"a", b"b")])),
        (Reject(404), Reject(404)),
    ],
)
def test_decide(result: object, decision: object) -> None:
    assert decide(result, REQUESTED) == decision


@pytest.mark.parametrize("result", [1, 0, b"a", [], object()])
def test_decide_refuses_other_types(result: object) -> None:
    with pytest.raises(TypeError, match="expected a filter to return"):
        decide(result, REQUESTED)


@pytest.mark.parametrize("result", ["c", AcceptConnection(subprotocol="c")])
def test_decide_refuses_what_was_not_offered(result: object) -> None:
    with pytest.raises(ValueError, match="offered subprotocols"):
        decide(result, REQUESTED)


@pytest.mark.parametrize(
    ("origin", "host", "secure", "allowed"),
    [
        ("http://h", "h", False, True),
        ("http://h:80", "h", False, True),
        ("HTTP://H", "h", False, True),
        ("https://h", "h", False, False),
        ("https://h", "h:443", True, True),
        ("http://h:81", "h:81", False, True),
        ("http://[::1]:81", "[::1]:81", False, True),
        ("http://x", "h", False, False),
        ("https://good.example", "h", False, True),
        ("https://good.example:444", "h", False, False),
        ("null", "h", False, False),
        ("http://h/path", "h", False, False),
        ("http://user@h", "h", False, False),
        ("http://h:port", "h", False, False),
        ("ws://h", "h", False, False),
        ("", "h", False, False),
    ],
)
def test_check_origin(origin: str, host: str, secure: bool, allowed: bool) -> None:
    request = Request(host=host, target="/", headers=[(b"Origin", origin.encode())], secure=secure)
    assert check_origin(request, ["https://good.example"]) is allowed


def test_check_origin_without_one_or_with_two() -> None:
    request = Request(host="h", target="/")
    assert check_origin(request)
    assert not check_origin(request, missing=False)
    twice = Request(host="h", target="/", headers=[(b"origin", b"http://h")] * 2)
    assert not check_origin(twice)
    own = Request(host="h", target="/", headers=[(b"origin", b"http://h")])
    assert check_origin(own)
    assert not check_origin(own, same_origin=False)
    for bad in ("example.com", "https://example.com/", "*"):
        with pytest.raises(ValueError, match="expected an origin"):
            check_origin(own, [bad])
        with pytest.raises(ValueError, match="expected an origin"):
            origin_filter(bad)
