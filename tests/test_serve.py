"""`serve`: listening, filters, limits, health checks, drain, and handlers that fail."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import random
import socket
import struct
import sys
import weakref
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import SocketAttribute, TaskGroup
from anyio.lowlevel import checkpoint
from wsproto.events import AcceptConnection, RejectConnection
from wsproto.extensions import PerMessageDeflate as WsprotoDeflate

from asyncwebsockets import (
    ConnectionClosed,
    ConnectionClosedOK,
    Deflate,
    HandshakeError,
    HandshakeTimeout,
    InvalidHandshake,
    Reject,
    Rejected,
    Request,
    Server,
    Settings,
    UnexpectedMessage,
    Websocket,
    create_websocket,
    create_websocket_server,
    open_websocket,
    open_websocket_client,
    open_websocket_server,
    origin_filter,
    serve,
)
from asyncwebsockets._loop import task_starter
from asyncwebsockets.events import TextMessage

from .conftest import cut, until
from .frames import REQUEST, frame
from .steps import Cut, at_each_step

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from .conftest import Pairs

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("codec")]


async def echo(ws: Websocket) -> None:
    async for event in ws:
        if isinstance(event, TextMessage):
            await ws.send(event.data)


@asynccontextmanager
async def serving(
    handler: Callable[[Websocket], Awaitable[object]] = echo, **kwargs: Any
) -> AsyncIterator[tuple[Server, str]]:
    """Run a server for the block; give it and its URL."""
    if not {"uds", "sockets"} & set(kwargs):
        kwargs = {"host": "127.0.0.1", "port": 0, **kwargs}
    async with anyio.create_task_group() as tg:

        async def run(task_status: Any) -> None:
            await serve(handler, task_status=task_status, **kwargs)

        server: Server = await tg.start(run)
        scheme = "wss" if "ssl" in kwargs else "ws"
        address = server.addresses[0]
        yield server, f"{scheme}://127.0.0.1:{address[1]}/" if address else ""
        await server.close(grace=5)


async def raw_request(url: str, data: bytes) -> bytes:
    """Send bytes and return everything that comes."""
    port = int(url.rpartition(":")[2].strip("/"))
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(data)
        answer = b""
        try:
            while True:
                answer += await stream.receive()
        except anyio.EndOfStream:
            return answer


async def test_tcp_and_tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with serving() as (server, url), open_websocket(url) as ws:
        await ws.send("é")
        assert await ws.receive_text() == "é"
        assert [w.remote_address for w in server.connections] == [ws.local_address]
        assert ws.remote_address == server.addresses[0]
    async with serving(ssl=server_tls) as (server, url):
        async with open_websocket(url, ssl=client_tls) as ws:
            await ws.send("é")
            assert await ws.receive_text() == "é"
            (served,) = server.connections
            assert served.request.secure


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with serving(uds=path) as (server, _):
        assert server.addresses == [str(path)]
        stream = await anyio.connect_unix(path)
        async with open_websocket_client(stream, "localhost", "/") as ws:
            await ws.send("x")
            assert await ws.receive_text() == "x"
    assert not path.exists()


async def test_ready_sockets() -> None:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [sock.getsockname() for sock in sockets]
    async with serving(sockets=sockets) as (server, _):
        assert server.addresses == addresses
        for _, port in addresses:
            async with open_websocket(f"ws://127.0.0.1:{port}") as ws:
                await ws.send("x")
                assert await ws.receive_text() == "x"
    assert all(sock.fileno() == -1 for sock in sockets)


async def test_where_to_listen_is_said_once() -> None:
    for kwargs in ({}, {"port": 0, "uds": "x"}, {"uds": "x", "sockets": []}):
        with pytest.raises(ValueError, match="exactly one of port, uds and sockets"):
            await serve(echo, **kwargs)
    with pytest.raises(ValueError, match="a port with the host"):
        await serve(echo, "127.0.0.1", uds="x")


async def test_an_address_in_use_is_an_os_error() -> None:
    async with serving() as (server, _):
        with pytest.raises(OSError):
            await serve(echo, "127.0.0.1", server.port)


# What a filter may say


def returns(result: object) -> Any:
    async def filter(request: Request) -> object:
        return result

    return filter


ACCEPTED: list[Any] = [
    (True, "one", {}),
    ("two", "two", {}),
    (AcceptConnection(), None, {}),
    (AcceptConnection(subprotocol="two"), "two", {}),
    (
        AcceptConnection(extra_headers=[(b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2")]),
        None,
        {"set-cookie": "a=1, b=2"},
    ),
]


@pytest.mark.parametrize(("result", "subprotocol", "headers"), ACCEPTED)
async def test_a_filter_accepts(
    result: object, subprotocol: str | None, headers: dict[str, str]
) -> None:
    async with serving(filter=returns(result)) as (_, url):
        async with open_websocket(url, subprotocols=["one", "two"]) as ws:
            assert ws.subprotocol == subprotocol
            for name, value in headers.items():
                assert ws.response.header(name) == value


async def pieces() -> AsyncIterator[bytes]:
    yield b"why "
    yield b""
    yield b"not"


REJECTED: list[Any] = [
    pytest.param(lambda: False, 403, {}, b"", id="False"),
    pytest.param(lambda: None, 403, {}, b"", id="None"),
    pytest.param(
        lambda: RejectConnection(status_code=401, headers=[(b"WWW-Authenticate", b"Basic")]),
        401,
        {b"WWW-Authenticate": b"Basic"},
        b"",
        id="RejectConnection",
    ),
    pytest.param(
        lambda: Reject(404, [("X-Why", "é")], b"\xff\x00"),
        404,
        {b"X-Why": b"\xe9", b"Content-Length": b"2"},
        b"\xff\x00",
        id="Reject",
    ),
    pytest.param(
        lambda: Reject(503, (), pieces()),
        503,
        {b"Transfer-Encoding": b"chunked"},
        b"why not",
        id="streamed",
    ),
    pytest.param(
        lambda: Reject(400, [("Content-Length", "7")], pieces()),
        400,
        {b"Content-Length": b"7"},
        b"why not",
        id="streamed with its length",
    ),
    pytest.param(lambda: Reject(204), 204, {}, b"", id="no content"),
]


@pytest.mark.parametrize(("result", "status", "headers", "body"), REJECTED)
async def test_a_filter_rejects(
    result: Callable[[], object],
    status: int,
    headers: dict[bytes, bytes],
    body: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def filter(request: Request) -> object:
        return result()

    async with serving(filter=filter) as (server, url):
        with pytest.raises(Rejected) as caught:
            async with open_websocket(url):
                pytest.fail("it was rejected")
        assert caught.value.status == status
        assert caught.value.body == body
        names = {name.lower(): value for name, value in caught.value.headers}
        for name, value in headers.items():
            assert names[name.lower()] == value
        assert b"date" in names
        assert names[b"connection"] == b"close"
        assert not server.connections
    assert not caplog.records


async def test_a_rejections_pieces_are_closed_when_the_client_leaves(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    closed = anyio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            await checkpoint()
            closed.set()

    async with anyio.create_task_group() as tg:

        async def leave() -> None:
            await near.send(REQUEST)
            await near.receive()
            await cut(near)

        tg.start_soon(leave)
        with pytest.raises(Rejected):
            await create_websocket_server(far, returns(Reject(200, (), endless())))
        assert closed.is_set()


@pytest.mark.parametrize("create", [True, False])
async def test_a_rejection_is_raised_where_the_filter_ran(pairs: Pairs, create: bool) -> None:
    near, far = await pairs.streams()

    async def ask() -> None:
        with pytest.raises(Rejected):
            async with open_websocket_client(near, "h", "/"):
                pytest.fail("it was rejected")

    async with anyio.create_task_group() as tg:
        tg.start_soon(ask)
        with pytest.raises(Rejected) as caught:
            if create:
                await create_websocket_server(far, returns(Reject(418, [("a", "b")], b"tea")))
            else:
                async with open_websocket_server(far, returns(Reject(418, [("a", "b")], b"tea"))):
                    pytest.fail("it was rejected")
    assert (caught.value.status, caught.value.headers) == (418, [(b"a", b"b")])
    assert caught.value.body == b"tea"


BROKEN: list[Any] = [
    pytest.param(returns("three"), ValueError, "offered subprotocols", id="subprotocol"),
    pytest.param(
        returns(AcceptConnection(subprotocol="three")), ValueError, "offered", id="another"
    ),
    pytest.param(returns(3), TypeError, "expected a filter to return", id="type"),
    pytest.param(
        returns(AcceptConnection(extra_headers=[(b"Sec-WebSocket-Protocol", b"x")])),
        ValueError,
        "belongs to the handshake",
        id="own header",
    ),
    pytest.param(
        returns(AcceptConnection(extra_headers=[(b"X", b"a\r\nY: b")])),
        ValueError,
        "control characters",
        id="injection",
    ),
    pytest.param(
        returns(Reject(403, [("X", "a\r\nY: b")])), ValueError, "control", id="injection in reject"
    ),
]


@pytest.mark.parametrize(("filter", "error", "match"), BROKEN)
async def test_a_filter_that_fails_answers_500(
    pairs: Pairs,
    filter: Any,
    error: type[Exception],
    match: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    near, far = await pairs.streams()

    async def ask() -> None:
        with pytest.raises(Rejected) as caught:
            async with open_websocket_client(near, "h", "/", subprotocols=["one"]):
                pytest.fail("the filter failed")
        assert caught.value.status == 500
        assert caught.value.body == b""

    async with anyio.create_task_group() as tg:
        tg.start_soon(ask)
        with pytest.raises(error, match=match):
            await create_websocket_server(far, filter)
    if pairs.kind != "tcp":
        return
    async with serving(filter=filter) as (_, url):
        for _ in range(2):
            with pytest.raises(Rejected):
                async with open_websocket(url, subprotocols=["one"]):
                    pytest.fail("the filter failed")
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


async def test_a_filters_exception_is_raised_as_it_is() -> None:
    from .conftest import memory_pair

    near, far = memory_pair()
    own = KeyError("own")

    async def filter(request: Request) -> bool:
        raise own

    await near.send(REQUEST)
    async with anyio.create_task_group() as tg:
        tg.start_soon(near.aclose)
        with pytest.raises(KeyError) as caught:
            await create_websocket_server(far, filter)
    assert caught.value is own


# As one raises that is a client itself, of another server.
ANOTHERS = [
    Rejected(404),
    InvalidHandshake("another's", 418),
    HandshakeTimeout("another's"),
    ConnectionResetError("another's"),
]


@pytest.mark.parametrize("error", ANOTHERS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["filter", "body", "on_http"])
async def test_an_exception_about_another_handshake_is_a_failure_as_any_other(
    error: Exception, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken_body() -> AsyncIterator[bytes]:
        yield b"so far"
        raise error

    async def broken(request: Request) -> Reject:
        if where == "body":
            return Reject(503, (), broken_body())
        raise error

    kwargs: dict[str, Any] = {"on_http" if where == "on_http" else "filter": broken}
    async with serving(**kwargs) as (_, url):
        request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" if where == "on_http" else REQUEST
        answer = await raw_request(url, request)
    assert answer.startswith(b"HTTP/1.1 503 " if where == "body" else b"HTTP/1.1 500 ")
    assert b"another's" not in answer
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_a_client_that_leaves_cancels_the_filter(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    await near.send(REQUEST)
    cancelled = False

    async def filter(request: Request) -> bool:
        nonlocal cancelled
        try:
            await cut(near)
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled = True
            raise
        return True

    with pytest.raises(HandshakeError, match="left while the filter ran"):
        await create_websocket_server(far, filter)
    assert cancelled


async def test_what_a_filter_gets() -> None:
    requests: list[Request] = []

    async def filter(request: Request) -> bool:
        requests.append(request)
        return True

    async with serving(filter=filter) as (server, url):
        async with open_websocket(
            f"{url}a%20b?q=%C3%A9&r",
            headers=[("X-A", "1"), ("x-b", "2"), ("X-A", "3"), ("Origin", "http://o")],
            subprotocols=["one", "two"],
            settings=Settings(compression=Deflate()),
        ) as ws:
            (request,) = requests
            assert request.target == "/a%20b?q=%C3%A9&r"
            assert (request.path, request.query) == ("/a%20b", "q=%C3%A9&r")
            assert request.method == "GET"
            assert request.http_version == "1.1"
            assert not request.secure
            assert [v for n, v in request.headers if n.lower() == b"x-a"] == [b"1", b"3"]
            assert (b"X-A", b"1") in request.headers
            assert request.header("x-a") == "1, 3"
            assert request.header("none") is None
            assert request.origin == "http://o"
            assert request.extra_headers == [
                (b"x-a", b"1"),
                (b"x-b", b"2"),
                (b"x-a", b"3"),
                (b"origin", b"http://o"),
            ]
            assert request.subprotocols == ["one", "two"]
            assert request.extensions == ["permessage-deflate; client_max_window_bits"]
            assert request.remote_address == ws.local_address
            assert request.local_address == server.addresses[0]
            assert request.host == url[5:-1]


async def test_extensions_of_the_filter_override_the_settings() -> None:
    filter = returns(AcceptConnection(extensions=[WsprotoDeflate(server_max_window_bits=10)]))
    async with serving(filter=filter) as (_, url):
        async with open_websocket(url, settings=Settings(compression=Deflate())) as ws:
            assert "server_max_window_bits=10" in (
                ws.response.header("sec-websocket-extensions") or ""
            )
            await ws.send("x" * 1000)
            assert await ws.receive_text() == "x" * 1000


async def test_the_origin_filter() -> None:
    async with serving(filter=origin_filter("https://good.example")) as (_, url):
        for origin in (
            "https://good.example",
            "https://good.example:443",
            url.replace("ws", "http", 1)[:-1],
            None,
        ):
            headers = {"Origin": origin} if origin else {}
            async with open_websocket(url, headers=headers):
                pass
        for origin in (
            "https://evil.example",
            "http://good.example",
            "null",
            "https://good.example.evil.example",
        ):
            with pytest.raises(Rejected) as caught:
                async with open_websocket(url, headers={"Origin": origin}):
                    pytest.fail("a foreign origin was accepted")
            assert caught.value.status == 403


# Plain HTTP


async def test_on_http_answers_health_checks() -> None:
    async def on_http(request: Request) -> Reject | None:
        return (
            Reject(200, [("Content-Type", "text/plain")], b"fine")
            if request.path == "/health"
            else None
        )

    async with serving(on_http=on_http) as (_, url):
        get = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = await raw_request(url, get % b"/health")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nfine")
        answer = await raw_request(url, b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Content-Length: 4\r\n" in answer
        assert answer.endswith(b"\r\n\r\n")
        assert (await raw_request(url, get % b"/")).startswith(b"HTTP/1.1 426 ")
        answer = await raw_request(url, b"GET /health HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        async with open_websocket(url) as ws:
            await ws.send("x")
            assert await ws.receive_text() == "x"


async def test_an_on_http_that_fails_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    async def on_http(request: Request) -> Reject:
        raise KeyError

    async with serving(on_http=on_http) as (_, url):
        answer = await raw_request(url, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 500 ")
    assert len(caplog.records) == 1


async def test_handshakes_that_come_to_nothing_are_reported() -> None:
    asked: list[Request] = []
    opened: list[Request] = []
    reported: list[tuple[Request | None, type[Exception]]] = []

    async def filter(request: Request) -> object:
        asked.append(request)
        if request.path == "/raises":
            raise KeyError
        if request.path == "/leaves":
            await anyio.sleep_forever()
        return request.path == "/"

    async def handler(ws: Websocket) -> None:
        opened.append(ws.request)

    def report(request: Request | None, error: Exception) -> None:
        reported.append((request, type(error)))

    async with serving(handler, filter=filter, on_handshake_error=report) as (_, url):
        async with open_websocket(url):
            pass
        for path in ("rejected", "raises"):
            with pytest.raises(Rejected):
                async with open_websocket(url + path):
                    pytest.fail("it was rejected")
        await raw_request(url, b"nonsense\r\n\r\n")
        async with anyio.create_task_group() as tg:

            async def leave() -> None:
                async with open_websocket(f"{url}leaves"):
                    pytest.fail("it was not accepted")

            tg.start_soon(leave)
            await until(lambda: len(asked) == 4)
            tg.cancel_scope.cancel()
        await until(lambda: len(reported) == 4)
    # The very objects that the filter got.
    assert [request is asked[0] for request in opened] == [True]
    assert [id(request) for request, _ in reported] == [
        id(request) for request in (asked[1], asked[2], None, asked[3])
    ]
    assert [error for _, error in reported] == [
        Rejected,
        KeyError,
        InvalidHandshake,
        HandshakeError,
    ]


# Handlers


async def test_a_handler_that_returns_closes_with_1000() -> None:
    async def handler(ws: Websocket) -> None:
        await ws.send("bye")

    async with serving(handler) as (_, url), open_websocket(url) as ws:
        assert [event.data async for event in ws if isinstance(event, TextMessage)] == ["bye"]
        assert ws.close_code == 1000


async def test_a_handler_that_fails_is_logged_once_and_closes_with_1011(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(ws: Websocket) -> None:
        raise KeyError("secret")

    async with serving(handler) as (_, url), open_websocket(url) as ws:
        with pytest.raises(ConnectionClosedOK) as caught:
            await ws.receive()
        assert (caught.value.code, caught.value.reason) == (1011, "")
        # The server goes on.
        async with open_websocket(url):
            pass
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert all(record.exc_info for record in caplog.records)


async def nested(ws: Websocket) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(ws.receive)
        tg.start_soon(ws.wait_closed)


async def plain(ws: Websocket) -> None:
    while True:
        await ws.receive()


async def pushing(ws: Websocket) -> None:
    while True:
        await ws.send("x" * 1000)
        await checkpoint()


@pytest.mark.parametrize("handler", [nested, plain, pushing])
@pytest.mark.parametrize("end", ["close", "abort"])
async def test_the_connections_own_end_is_a_normal_end_of_its_handler(
    handler: Any, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(handler) as (server, url), open_websocket(url) as ws:
        await (ws.close(4000) if end == "close" else ws.abort())
        await until(lambda: not (server.connections))
    assert not caplog.records


async def reading_text(ws: Websocket) -> None:
    async for _ in ws.iter_text():
        pass


async def reading_bytes(ws: Websocket) -> None:
    await ws.receive_bytes()


async def reading_json(ws: Websocket) -> None:
    await ws.receive_json()


async def reading_in_a_group(ws: Websocket) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(ws.wait_closed)
        tg.start_soon(reading_text, ws)


NO_TEXT = (1003, "expected a text message, a binary message came")


@pytest.mark.parametrize(
    ("handler", "sent", "end"),
    [
        (reading_text, b"x", NO_TEXT),
        (reading_in_a_group, b"x", NO_TEXT),
        (reading_bytes, "x", (1003, "expected a binary message, a text message came")),
        (reading_json, "{", (1007, "expected JSON")),
        (reading_json, b"\xff", (1007, "expected JSON")),
        pytest.param(reading_json, "[" * 100_000, (1007, "expected JSON"), id="nested deeply"),
    ],
)
async def test_a_peer_that_sends_what_no_handler_expects_is_told_so_and_not_logged(
    handler: Any, sent: str | bytes, end: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(handler) as (server, url), open_websocket(url) as ws:
        await ws.send(sent)
        with pytest.raises(ConnectionClosedOK) as caught:
            await ws.receive()
        assert (caught.value.code, caught.value.reason) == end
        await until(lambda: not server.connections)
    assert not caplog.records


async def test_large_messages_that_come_at_once_keep_to_themselves() -> None:
    async def handler(ws: Websocket) -> None:
        async for data in ws.iter_bytes():
            await ws.send(data)

    async with serving(handler) as (_, url), anyio.create_task_group() as tg:

        async def talk(number: int) -> None:
            source = random.Random(number)
            async with open_websocket(url) as ws:
                # They grow and shrink, so that buffers change hands.
                for size in (100_000, 3_000_000, 1_000_000, 300_000, 1_500_000):
                    data = source.randbytes(size + number)
                    tg.start_soon(ws.send, data)
                    assert await ws.receive_bytes() == data

        for number in range(8):
            tg.start_soon(talk, number)


async def test_a_server_that_sends_what_no_client_expects_is_told_so() -> None:
    ends = []

    async def handler(ws: Websocket) -> None:
        await ws.send(b"x")
        await ws.wait_closed()
        ends.append((ws.close_code, ws.close_reason))

    async with serving(handler) as (server, url):
        with pytest.raises(UnexpectedMessage) as caught:
            async with open_websocket(url) as ws:
                await ws.receive_text()
        assert caught.value.data == b"x"
        await until(lambda: not server.connections)
    assert ends == [NO_TEXT]


async def sending_after_its_end(ws: Websocket) -> None:
    await ws.close()
    await ws.send("x")


async def reading_another_kind(ws: Websocket) -> None:
    await ws.send("x")
    await ws.receive_bytes()


@pytest.mark.parametrize("use", [sending_after_its_end, reading_another_kind])
async def test_what_happens_to_another_connection_is_an_error(
    use: Callable[[Websocket], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as (_, upstream):

        async def proxy(ws: Websocket) -> None:
            async with open_websocket(upstream) as other:
                await use(other)

        async with serving(proxy) as (_, url), open_websocket(url) as ws:
            await ws.wait_closed()
            assert ws.close_code == 1011
    assert [record.levelname for record in caplog.records] == ["ERROR"]


# Limits


@pytest.mark.parametrize("tls", [False, True])
async def test_connections_beyond_the_limit_get_503(
    tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    kwargs: dict[str, Any] = {"ssl": server_tls} if tls else {}
    client: Any = {"ssl": client_tls} if tls else {}
    settings = Settings(max_connections=2)
    async with serving(settings=settings, **kwargs) as (server, url):
        async with open_websocket(url, **client), open_websocket(url, **client) as second:
            for _ in range(3):
                with pytest.raises(Rejected) as caught:
                    async with open_websocket(url, **client):
                        pytest.fail("there were too many")
                assert caught.value.status == 503
            await second.close()
            await until(lambda: not (len(server.connections) > 1))
            async with open_websocket(url, **client) as third:
                await third.send("x")
                assert await third.receive_text() == "x"


async def test_handshakes_beyond_the_limit_get_503() -> None:
    running = anyio.Event()
    go = anyio.Event()

    async def filter(request: Request) -> bool:
        running.set()
        await go.wait()
        return True

    async with serving(filter=filter, settings=Settings(max_handshakes=1)) as (_, url):
        async with anyio.create_task_group() as tg:

            async def first() -> None:
                async with open_websocket(url) as ws:
                    await ws.send("x")
                    assert await ws.receive_text() == "x"

            tg.start_soon(first)
            await running.wait()
            with pytest.raises(Rejected) as caught:
                async with open_websocket(url):
                    pytest.fail("there were too many")
            assert caught.value.status == 503
            go.set()
        async with open_websocket(url):
            pass


# Drain


async def drained(tg: TaskGroup, handler: Any, **kwargs: Any) -> tuple[Server, str, anyio.Event]:
    ended = anyio.Event()

    async def run(task_status: Any) -> None:
        await serve(handler, "127.0.0.1", 0, task_status=task_status, **kwargs)
        ended.set()

    server: Server = await tg.start(run)
    return server, f"ws://127.0.0.1:{server.addresses[0][1]}/", ended  # type: ignore[index]


async def test_a_drain_says_1012_and_lets_handlers_finish() -> None:
    finished = []

    async def handler(ws: Websocket) -> None:
        await echo(ws)
        await anyio.wait_all_tasks_blocked()
        finished.append(ws.close_code)

    async with anyio.create_task_group() as tg:
        server, url, ended = await drained(tg, handler)
        async with open_websocket(url) as ws:
            await until(lambda: bool(server.connections))
            await server.close(reason="restart")
            await ended.wait()
            assert finished == [1012]
            async for _ in ws:
                pytest.fail("nothing was sent")
            assert (ws.close_code, ws.close_reason) == (1012, "restart")
            with pytest.raises(OSError):
                async with open_websocket(url):
                    pytest.fail("it no longer listens")
        await server.close()


async def test_a_drain_answers_503_to_handshakes() -> None:
    running = anyio.Event()

    async def filter(request: Request) -> bool:
        running.set()
        await anyio.sleep_forever()
        return True

    async with anyio.create_task_group() as tg:
        server, url, ended = await drained(tg, echo, filter=filter)
        port = server.addresses[0][1]  # type: ignore[index]
        half = await anyio.connect_tcp("127.0.0.1", int(port))
        await half.send(REQUEST[:30])
        # As browsers open it ahead of need.
        spare = await anyio.connect_tcp("127.0.0.1", int(port))

        async def ask() -> None:
            with pytest.raises(Rejected) as caught:
                async with open_websocket(url):
                    pytest.fail("the server closes")
            assert caught.value.status == 503

        async def read() -> None:
            assert (await half.receive()).startswith(b"HTTP/1.1 503 ")
            await half.aclose()
            with pytest.raises(anyio.EndOfStream):
                await spare.receive()
            await spare.aclose()

        tg.start_soon(ask)
        await running.wait()
        tg.start_soon(read)
        await server.close()
        await ended.wait()


async def test_a_drain_cancels_handlers_after_its_grace() -> None:
    cancelled = []

    async def stubborn(ws: Websocket) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(True)
            raise

    async with anyio.create_task_group() as tg:
        server, url, ended = await drained(tg, stubborn)
        async with open_websocket(url) as ws:
            await until(lambda: bool(server.connections))
            await server.close(grace=0.01)
            await ended.wait()
            assert cancelled == [True]
            await ws.wait_closed()
            assert ws.close_code in (1012, 1001, 1006)


async def test_a_handler_may_close_the_server() -> None:
    async with anyio.create_task_group() as tg:

        async def handler(ws: Websocket) -> None:
            await ws.receive_text()
            tg.start_soon(server.close)
            await ws.wait_closed()

        server, url, ended = await drained(tg, handler)
        async with open_websocket(url) as ws:
            await ws.send("stop")
            await ended.wait()


async def test_a_handler_that_goes_on_after_a_cancellation_is_cancelled_again() -> None:
    cancelled = 0

    async def stubborn(ws: Websocket) -> None:
        nonlocal cancelled
        for _ in range(3):
            try:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(anyio.sleep_forever)
                    with anyio.CancelScope():
                        await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                cancelled += 1

    async with anyio.create_task_group() as tg:
        server, url, _ = await drained(tg, stubborn)
        async with open_websocket(url):
            await until(lambda: bool(server.connections))
            tg.cancel_scope.cancel()
    assert cancelled == 3
    assert not server.connections


class Alarm(BaseException):
    pass


async def test_what_is_no_exception_of_a_handler_ends_the_server_with_its_handlers() -> None:
    ended = []

    async def handler(ws: Websocket) -> None:
        try:
            if await ws.receive_text() == "end":
                raise Alarm
        finally:
            ended.append(ws)

    async with anyio.create_task_group() as clients:

        async def client(text: str) -> None:
            with suppress(ConnectionClosed, ConnectionError):
                async with open_websocket(url) as ws:
                    await ws.send(text)
                    await ws.receive()

        with pytest.raises(BaseExceptionGroup) as caught:
            async with anyio.create_task_group() as tg:
                server, url, _ = await drained(tg, handler)
                async with open_websocket(url):
                    clients.start_soon(client, "end")
                    await anyio.sleep_forever()
    assert caught.value.split(Alarm)[1] is None
    assert len(ended) == 2
    assert not server.connections


@pytest.mark.parametrize("use_uvloop", [False, True])
def test_an_event_loop_is_garbage_once_it_is_closed(use_uvloop: bool) -> None:
    async def main() -> weakref.ref[Any]:
        async with serving() as (_, url), open_websocket(url) as ws:
            await ws.send("x")
            assert await ws.receive_text() == "x"
        return weakref.ref(asyncio.get_running_loop())

    loop = anyio.run(main, backend_options={"use_uvloop": use_uvloop})
    gc.collect()
    assert loop() is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has eager tasks since Python 3.12")
def test_a_loop_may_begin_tasks_at_once() -> None:
    called = []

    async def call() -> None:
        called.append(True)

    async def main() -> None:
        if sys.version_info >= (3, 12):
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with anyio.create_task_group() as tg:
            task_starter(tg)(call)
            assert called
            tg.cancel_scope.cancel()
        async with serving() as (_, url), open_websocket(url) as ws:
            await ws.send("x")
            assert await ws.receive_text() == "x"

    asyncio.run(main())


async def test_cancelling_serve_cancels_the_handlers() -> None:
    cancelled = []

    async def handler(ws: Websocket) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(True)
            raise

    async with anyio.create_task_group() as outer:
        async with anyio.create_task_group() as tg:
            server, url, _ = await drained(tg, handler)

            async def client() -> None:
                async with open_websocket(url) as ws:
                    await ws.wait_closed()
                    assert ws.close_code == 1001

            outer.start_soon(client)
            await until(lambda: bool(server.connections))
            tg.cancel_scope.cancel()
        assert cancelled == [True]
        await server.close()


async def test_nothing_from_the_network_is_logged_above_debug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with serving() as (_, url):
        port = int(url.rpartition(":")[2].strip("/"))
        for data in (
            b"",
            b"\x16\x03\x01",
            b"nonsense\r\n\r\n",
            REQUEST[:-4],
            REQUEST,
            REQUEST + b"\xff\xff",
        ):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(data or b"\r\n")
                linger = stream.extra(SocketAttribute.raw_socket)
                linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(REQUEST + frame(1, b"\xff", masked=True))
            with pytest.raises(anyio.EndOfStream):
                while True:
                    await stream.receive()
    assert not caplog.records


async def test_a_client_that_connects_and_leaves_is_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with serving() as (server, _):
        for _ in range(3):
            async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
                await stream.send_eof()
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
    assert not caplog.records


@pytest.mark.parametrize("size", [1, 100_000])
async def test_a_reset_right_behind_bytes_is_seen(size: int) -> None:
    async with serving(settings=Settings(ping_interval=None)) as (server, _):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(REQUEST)
            await until(lambda: bool(server.connections))
            await anyio.wait_all_tasks_blocked()
            # Before the loop looks at either of them.
            sock.sendall(frame(2, bytes(size), masked=True)[:-1])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with anyio.fail_after(5):
            await until(lambda: not server.connections)


@pytest.mark.parametrize("where", ["handler", "filter", "on_http"])
async def test_a_cancellation_out_of_nowhere_costs_one_connection(
    where: str, caplog: pytest.LogCaptureFixture, anyio_backend_name: str
) -> None:
    if anyio_backend_name != "asyncio":
        # trio's cancellations always have a scope.
        return

    async def stray(*_: object) -> None:
        raise anyio.get_cancelled_exc_class()

    kwargs: dict[str, Any] = {} if where == "handler" else {where: stray}
    async with serving(stray if where == "handler" else echo, **kwargs) as (_, url):
        for _ in range(2):
            if where == "handler":
                async with open_websocket(url) as ws:
                    await ws.wait_closed()
                    assert ws.close_code == 1011
            elif where == "filter":
                with pytest.raises(Rejected) as caught:
                    await create_websocket(url)
                assert caught.value.status == 500
            else:
                answer = await raw_request(url, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 500 ")
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


async def test_a_socket_that_does_not_listen_is_a_value_error() -> None:
    with socket.socket() as sock, pytest.raises(ValueError, match="sockets that listen"):
        await serve(echo, sockets=[sock])


async def test_another_servers_socket_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with serving(uds=path):
        async with serving(uds=path):
            pass
        assert not path.exists()
    async with serving(uds=path) as (first, _):
        async with serving(uds=path):
            await first.close()
            stream = await anyio.connect_unix(path)
            await stream.aclose()


@pytest.mark.parametrize("where", ["uds", "sockets"])
async def test_cancelled_at_any_await_it_leaves_no_socket(tmp_path: Path, where: str) -> None:
    path = tmp_path / "socket"

    async def scenario(cut: Cut) -> None:
        ready = [socket.create_server(("127.0.0.1", 0)) for _ in range(2 * (where == "sockets"))]

        async def run() -> None:
            # As soon as it serves, it is enough.
            with anyio.CancelScope() as scope:
                status: Any = SimpleNamespace(started=lambda server: scope.cancel())
                if where == "uds":
                    await serve(echo, uds=path, task_status=status)
                else:
                    await serve(echo, sockets=ready, task_status=status)

        await cut.run(run)
        assert not path.exists()
        assert [sock.fileno() for sock in ready] == [-1] * len(ready)

    await at_each_step(scenario)


async def test_a_second_close_may_shorten_the_grace() -> None:
    async with anyio.create_task_group() as tg:

        async def stubborn(ws: Websocket) -> None:
            await anyio.sleep_forever()

        server, url, ended = await drained(tg, stubborn)
        async with open_websocket(url):
            await until(lambda: bool(server.connections))
            tg.start_soon(partial(server.close, grace=None))
            await anyio.wait_all_tasks_blocked()
            await server.close(grace=0)
            await ended.wait()


async def test_without_any_grace_1012_is_said_all_the_same() -> None:
    async with anyio.create_task_group() as tg:
        server, url, ended = await drained(tg, echo)
        async with open_websocket(url) as ws:
            await until(lambda: bool(server.connections))
            await server.close(grace=0)
            await ended.wait()
            await ws.wait_closed()
            assert ws.close_code == 1012


async def test_tls_keepalive_and_abort_while_a_task_reads(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(ssl=server_tls) as (server, url):
        async with open_websocket(url, ssl=client_tls) as ws:
            await until(lambda: bool(server.connections))
            (served,) = server.connections
            # As a keepalive that has run out does it, while the handler is in receive.
            await served._channel.fail(1011, "silent")
            await ws.wait_closed()
            assert ws.close_code == 1011
    assert not caplog.records


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNABORTED, errno.EINVAL])
async def test_a_failing_accept_does_not_end_the_server(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as (_, url):
        accept = socket.socket.accept
        failures = 3

        def failing(sock: socket.socket) -> Any:
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError(number, "injected")
            return accept(sock)

        monkeypatch.setattr(socket.socket, "accept", failing)
        for _ in range(2):
            async with open_websocket(url) as ws:
                await ws.send("x")
                assert await ws.receive_text() == "x"
        assert failures == 0
