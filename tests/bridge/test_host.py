"""ASGI applications on our sockets and in process: what they see, send, and may not."""

from __future__ import annotations

import asyncio
import copy
import logging
import random
import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint
from fastapi import FastAPI
from fastapi import WebSocket as FastApiWebSocket
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

import asgi_bridge.host as host_module
from asgi_bridge import (
    ClientDisconnected,
    LifespanFailed,
    WebsocketApp,
    open_websocket_app,
    serve_app,
)
from asyncwebsockets import (
    ConnectionClosedOK,
    Deflate,
    Observation,
    Rejected,
    Server,
    Settings,
    Websocket,
    open_websocket,
    open_websocket_client,
)
from asyncwebsockets.events import Message

from ..conftest import until
from ..frames import REQUEST
from .wire import ACCEPT, in_memory

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def over_tcp(
    app: Any, path: str, headers: Any = None, subprotocols: Any = None, **options: Any
) -> AsyncGenerator[Websocket, None]:
    options.setdefault("lifespan", "off")
    async with anyio.create_task_group() as tasks:
        server: Server = await tasks.start(partial(serve_app, app, "127.0.0.1", 0, **options))
        error: BaseException | None = None
        try:
            async with open_websocket(
                f"ws://127.0.0.1:{server.port}{path}",
                headers,
                subprotocols,
                settings=options.get("settings"),
            ) as ws:
                yield ws
        except Exception as exc:
            # Raised outside the group, which would wrap it.
            error = exc
        await server.close()
    if error is not None:
        raise error


@asynccontextmanager
async def in_process(
    app: Any, path: str, headers: Any = None, subprotocols: Any = None, **options: Any
) -> AsyncGenerator[Websocket, None]:
    options.setdefault("lifespan", "off")
    async with open_websocket_app(
        app, path, headers, subprotocols, raise_app_exceptions=False, **options
    ) as ws:
        yield ws


Connect = Any


@pytest.fixture(params=[over_tcp, in_process], ids=["tcp", "process"])
def connect(request: pytest.FixtureRequest) -> Connect:
    return request.param


async def drained(ws: Websocket) -> tuple[list[str | bytes], int | None, str | None]:
    messages = [event.data async for event in ws if isinstance(event, Message)]
    return messages, ws.close_code, ws.close_reason


# Observing


async def test_the_end_is_told_of(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asyncwebsockets.connections")
    told: list[Any] = []

    class Told(Observation):
        def closed(self, record: Any) -> None:
            told.append(record)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        await send({"type": "websocket.send", "text": "hello"})
        await send({"type": "websocket.close", "code": 4000})

    settings = Settings(observer=lambda role, request: Told())
    async with connect(app, "/path", settings=settings) as ws:
        assert await drained(ws) == (["hello"], 4000, "")
    logged: list[Any] = caplog.records
    for records in (told, logged):
        found = {record.role: record for record in records}
        assert sorted(found) == ["client", "server"]
        assert {record.path for record in records} == {"/path"}
        assert (found["server"].closed_by, found["client"].closed_by) == ("local", "remote")
    assert {record.statistics.messages_sent for record in told} == {0, 1}


# The scope


@pytest.mark.parametrize(
    ("root_path", "path", "expected"),
    [
        ("", "/a%20b/%C3%A9%2Fz?q=%20", ("/a b/é/z", b"/a%20b/%C3%A9%2Fz", b"q=%20")),
        ("/app", "/x", ("/app/x", b"/app/x", b"")),
        # It only looks as if the proxy had left it there.
        ("/app", "/appx", ("/app/appx", b"/app/appx", b"")),
        ("/ä", "/x?", ("/ä/x", b"/%C3%A4/x", b"")),
    ],
)
async def test_the_path(connect: Connect, root_path: str, path: str, expected: Any) -> None:
    scopes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await send(ACCEPT)

    async with connect(app, path, root_path=root_path) as ws:
        await drained(ws)
    (scope,) = scopes
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == expected
    assert scope["root_path"] == root_path


async def test_the_scope_has_what_the_specification_says(connect: Connect) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await send(ACCEPT)

    headers = [("X-A", "1"), ("x-b", "2"), ("X-A", "3")]
    async with connect(app, "/", headers, ["a", "b"]) as ws:
        await drained(ws)
    (scope,) = scopes
    assert scope["type"] == "websocket"
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.5"}
    assert scope["http_version"] == "1.1"
    assert scope["scheme"] == "ws"
    assert scope["subprotocols"] == ["a", "b"]
    assert scope["extensions"] == {"websocket.http.response": {}}
    assert [pair for pair in scope["headers"] if pair[0].startswith(b"x-")] == [
        (b"x-a", b"1"),
        (b"x-b", b"2"),
        (b"x-a", b"3"),
    ]
    assert b"host" in dict(scope["headers"])
    assert "state" not in scope
    for side in ("client", "server"):
        if connect is over_tcp:
            host, port = scope[side]
            assert (host, type(port)) == ("127.0.0.1", int)
        else:
            assert scope[side] is None


@pytest.mark.parametrize("where", ["IPv4", "IPv6", "Unix"])
async def test_the_addresses_in_the_scope(where: str, tmp_path: Path) -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await send(ACCEPT)

    host = {"IPv4": "127.0.0.1", "IPv6": "::1"}.get(where)
    path = tmp_path / "socket"
    listen: dict[str, Any] = {"host": host, "port": 0} if host else {"uds": path}
    async with anyio.create_task_group() as tasks:
        server = await tasks.start(partial(serve_app, app, lifespan="off", **listen))
        stream: Any
        if host:
            stream = await anyio.connect_tcp(host, server.port)
            client = (host, stream.extra(SocketAttribute.local_port))
            expected: Any = (client, (host, server.port))
        else:
            stream = await anyio.connect_unix(path)
            expected = (None, (str(path), None))
        async with open_websocket_client(stream, "localhost", "/") as ws:
            assert await drained(ws) == ([], 1000, "")
        await server.close()
    (scope,) = scopes
    assert (scope["client"], scope["server"]) == expected


async def test_header_fields_and_subprotocols_over_several_lines() -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await send({**ACCEPT, "subprotocol": "c"})

    lines = (
        b"X-A: 1\r\nSec-WebSocket-Protocol: a,b\r\nx-B: 2\r\n"
        b"X-a: 3\r\nSec-WebSocket-Protocol:  c \r\n"
    )
    async with in_memory(app) as carrier_connect:
        stream = await carrier_connect()
        await stream.send(REQUEST[:-2] + lines + REQUEST[-2:])
        assert b"Sec-WebSocket-Protocol: c\r\n" in await stream.receive()
        await stream.aclose()
    (scope,) = scopes
    assert scope["subprotocols"] == ["a", "b", "c"]
    assert scope["headers"][-5:] == [
        (b"x-a", b"1"),
        (b"sec-websocket-protocol", b"a,b"),
        (b"x-b", b"2"),
        (b"x-a", b"3"),
        (b"sec-websocket-protocol", b"c"),
    ]


async def test_a_scope_is_one_connections_own() -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append({name: copy.copy(value) for name, value in scope.items()})
        for value in scope.values():
            if isinstance(value, list | dict):
                value.clear()
        scope.clear()
        await send({**ACCEPT, "subprotocol": "a"})

    async with over_tcp(app, "/", None, ["a"]) as ws:
        # What the application has thrown away is still what its connection was asked for.
        assert ws.subprotocol == "a"
        url = f"ws://127.0.0.1:{ws.request.host.rpartition(':')[2]}/"
        async with open_websocket(url, None, ["a"]) as second:
            assert second.subprotocol == "a"
    first, later = scopes
    for scope in scopes:
        del scope["client"]
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"sec-websocket-key"]
    assert first == later
    assert first["extensions"] == {"websocket.http.response": {}}


# Handshakes


async def test_accept_with_everything(connect: Connect) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == {"type": "websocket.connect"}
        headers = [(b"x-a", b"1"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        await send({**ACCEPT, "subprotocol": "b", "headers": headers, "unknown": 1})

    async with connect(app, "/", None, ["a", "b"]) as ws:
        assert ws.subprotocol == "b"
        assert ws.response.header("set-cookie") == "a=1, b=2"
        assert await drained(ws) == ([], 1000, "")


async def test_close_before_accept_is_403(connect: Connect) -> None:
    after: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.close", "code": 4000})
        with pytest.raises(ClientDisconnected):
            await send(ACCEPT)
        await receive()
        after.extend([await receive(), await receive()])

    with pytest.raises(Rejected) as caught:
        async with connect(app, "/"):
            pytest.fail("it was rejected")
    assert caught.value.status == 403
    gone = {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    assert after == [gone, gone]


@pytest.mark.parametrize(
    ("status", "headers", "bodies", "body"),
    [
        (401, [(b"x-why", b"because"), (b"x-why", b"\xff")], [b"no\xff"], b"no\xff"),
        (503, [], [b"a", b"", b"b"], b"ab"),
        (404, [], [b""], b""),
        (204, [], [b""], b""),
        (204, [(b"content-length", b"0")], [b"", b""], b""),
        (304, [(b"content-length", b"2")], [b"", b""], b""),
        (400, [(b"content-length", b"2")], [b"no"], b"no"),
        (400, [(b"content-length", b"2")], [b"n", b"o"], b"no"),
        # How the body is framed is the server's business.
        (400, [(b"Transfer-Encoding", b"gzip")], [b"no"], b"no"),
        (400, [(b"transfer-encoding", b"chunked")], [b"n", b"o"], b"no"),
    ],
)
async def test_a_denial_response(
    connect: Connect, status: int, headers: Any, bodies: list[bytes], body: bytes
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        with pytest.raises(RuntimeError, match=r"response\.body .* got websocket.accept"):
            await send(ACCEPT)
        for number, piece in enumerate(bodies, 1):
            await send(
                {
                    "type": "websocket.http.response.body",
                    "body": piece,
                    "more_body": number < len(bodies),
                }
            )
        with pytest.raises(ClientDisconnected):
            await send(ACCEPT)

    with pytest.raises(Rejected) as caught:
        async with connect(app, "/"):
            pytest.fail("it was rejected")
    assert caught.value.status == status
    assert caught.value.body == body
    own = [pair for pair in caught.value.headers if pair[0].lower() == b"x-why"]
    assert own == [pair for pair in headers if pair[0] == b"x-why"]
    lengths = [value for name, value in caught.value.headers if name.lower() == b"content-length"]
    assert len(lengths) <= 1


async def test_a_denial_whose_length_is_not_what_it_says(connect: Connect) -> None:
    def start(*sizes: bytes) -> dict[str, Any]:
        headers = [(b"content-length", size) for size in sizes]
        return {"type": "websocket.http.response.start", "status": 400, "headers": headers}

    def piece(body: bytes, more_body: bool) -> dict[str, Any]:
        return {"type": "websocket.http.response.body", "body": body, "more_body": more_body}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for sizes in ([b"2", b"2"], [b"two"], [b"-2"], [b""]):
            with pytest.raises(ValueError, match="expected one Content-Length, in bytes, got"):
                await send(start(*sizes))
        await send(start(b"4"))
        for body, got in ((b"abc", 3), (b"abcde", 5), (b"", 0)):
            with pytest.raises(ValueError, match=f"expected a body of 4 bytes, .* got {got}"):
                await send(piece(body, more_body=False))
        await send(piece(b"ab", more_body=True))
        with pytest.raises(ValueError, match=r"expected a body of 4 bytes, .* got 5"):
            await send(piece(b"cde", more_body=True))
        with pytest.raises(ValueError, match=r"expected a body of 4 bytes, .* got 3"):
            await send(piece(b"c", more_body=False))
        # It can still be put right.
        await send(piece(b"cd", more_body=False))

    with pytest.raises(Rejected) as caught:
        async with connect(app, "/"):
            pytest.fail("it was rejected")
    assert (caught.value.status, caught.value.body) == (400, b"abcd")


@pytest.mark.parametrize("status", [204, 304])
async def test_a_denial_that_has_no_body(connect: Connect, status: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": status})
        for more_body in (False, True):
            message = {"body": b"x", "more_body": more_body}
            with pytest.raises(ValueError, match=f"no body with status {status}, got b'x'"):
                await send({"type": "websocket.http.response.body", **message})
        # It can still be put right.
        await send({"type": "websocket.http.response.body"})

    with pytest.raises(Rejected) as caught:
        async with connect(app, "/"):
            pytest.fail("it was rejected")
    assert (caught.value.status, caught.value.body) == (status, b"")


async def test_an_application_whose_own_client_is_rejected_is_500(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise Rejected(404)

    with pytest.raises(Rejected) as caught:
        async with over_tcp(app, "/"):
            pytest.fail("it was rejected")
    assert caught.value.status == 500
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is Rejected


@pytest.mark.parametrize("denies", [False, True])
@pytest.mark.parametrize("raises", [False, True])
async def test_an_application_that_does_not_answer_is_500(
    connect: Connect, denies: bool, raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if denies:
            await send({"type": "websocket.http.response.start", "status": 401})
        if raises:
            raise LookupError("the application's own")

    with pytest.raises(Rejected) as caught:
        async with connect(app, "/"):
            pytest.fail("it was rejected")
    assert caught.value.status == 500
    assert b"own" not in caught.value.body
    if connect is over_tcp:
        (record,) = caplog.records
        assert record.getMessage().endswith("the client got status 500")
        assert record.exc_info is not None
        assert record.exc_info[0] is (LookupError if raises else RuntimeError)


async def test_a_failure_after_a_rejection_is_logged(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.close"})
        raise LookupError("the application's own")

    with pytest.raises(Rejected):
        async with connect(app, "/"):
            pytest.fail("it was rejected")
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is LookupError


async def test_a_body_that_breaks_off_is_cut(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 401})
        await send({"type": "websocket.http.response.body", "body": b"a", "more_body": True})
        raise LookupError("the application's own")

    with pytest.raises(Rejected) as caught:
        async with connect(app, "/"):
            pytest.fail("it was rejected")
    assert (caught.value.status, caught.value.body) == (401, b"a")
    if connect is over_tcp:
        (record,) = caplog.records
        assert record.getMessage().endswith("the client got a part of an answer")
        assert record.exc_info is not None
        assert record.exc_info[0] is LookupError


async def test_a_client_that_leaves_before_it_is_accepted() -> None:
    seen: list[Any] = []
    begun, ended = anyio.Event(), anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        begun.set()
        seen.append(await receive())
        with pytest.raises(ClientDisconnected):
            await send(ACCEPT)
        ended.set()

    async with anyio.create_task_group() as tasks:
        server = await tasks.start(partial(serve_app, app, "127.0.0.1", 0, lifespan="off"))

        async def leave() -> None:
            async with open_websocket(f"ws://127.0.0.1:{server.port}/"):
                pytest.fail("it was not accepted")

        async with anyio.create_task_group() as clients:
            clients.start_soon(leave)
            await begun.wait()
            clients.cancel_scope.cancel()
        await ended.wait()
        await server.close()
    assert seen == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]


# Messages


async def test_text_and_bytes(connect: Connect) -> None:
    received: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        while (message := await receive())["type"] != "websocket.disconnect":
            received.append((message["text"], message["bytes"]))
            await send({**message, "type": "websocket.send"})
        received.append(message)
        assert await receive() == await receive() == message
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "text": "late"})

    settings = Settings(compression=Deflate(threshold=0))
    async with connect(app, "/", settings=settings) as ws:
        for data in ("größer", "", b"\x00\xff", b""):
            await ws.send(data)
            event = await ws.receive()
            assert isinstance(event, Message)
            assert event.data == data
        await ws.send("frag", final=False)
        await ws.ping()
        await ws.send("ment")
        assert await ws.receive_text() == "fragment"
        await ws.close(4000, "over")
    assert received == [
        ("größer", None),
        ("", None),
        (None, b"\x00\xff"),
        (None, b""),
        ("fragment", None),
        {"type": "websocket.disconnect", "code": 4000, "reason": "over"},
    ]


@pytest.mark.parametrize(
    ("message", "error", "says"),
    [
        ({"type": "nope"}, ValueError, "one of type 'nope'"),
        ({}, ValueError, "'type', got {}"),
        (None, TypeError, "a dict, got None"),
        ({"type": "websocket.send"}, ValueError, "neither"),
        ({"type": "websocket.send", "text": None, "bytes": None}, ValueError, "neither"),
        ({"type": "websocket.send", "text": "a", "bytes": b"a"}, ValueError, "both"),
        ({"type": "websocket.send", "text": b"a"}, TypeError, "'text' .* str, got b'a'"),
        ({"type": "websocket.send", "bytes": "a"}, TypeError, "'bytes' .* got 'a'"),
        ({"type": "websocket.close", "code": 1005}, ValueError, "got 1005"),
        ({"type": "websocket.close", "code": 1006}, ValueError, "got 1006"),
        ({"type": "websocket.close", "code": 999}, ValueError, "got 999"),
        ({"type": "websocket.close", "code": "1000"}, TypeError, "'code'"),
        ({"type": "websocket.close", "reason": b"a"}, TypeError, "'reason'"),
        ({"type": "websocket.accept"}, RuntimeError, "got websocket.accept"),
        ({"type": "websocket.http.response.start", "status": 401}, RuntimeError, "response.start"),
        ({"type": "websocket.http.response.body"}, RuntimeError, "response.body"),
    ],
)
async def test_what_an_application_may_not_send(
    connect: Connect, message: Any, error: type[Exception], says: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        with pytest.raises(error, match=says):
            await send(message)
        await send({"type": "websocket.send", "text": "usable"})

    async with connect(app, "/") as ws:
        assert await drained(ws) == (["usable"], 1000, "")


@pytest.mark.parametrize(
    ("message", "error", "says"),
    [
        ({**ACCEPT, "subprotocol": "c"}, ValueError, r"offered subprotocols \['a'\], got 'c'"),
        ({**ACCEPT, "subprotocol": 5}, TypeError, "'subprotocol'"),
        ({**ACCEPT, "headers": [(b"Sec-WebSocket-Protocol", b"a")]}, ValueError, "handshake"),
        ({**ACCEPT, "headers": [(b"a", b"b\r\nc: d")]}, ValueError, "control"),
        ({**ACCEPT, "headers": [("a", "b")]}, TypeError, "pairs of bytes, got .'a', 'b'"),
        ({**ACCEPT, "headers": [(b"a", b"b", b"c")]}, TypeError, "pairs of bytes, got"),
        ({**ACCEPT, "headers": {b"ab": b"c"}}, TypeError, "pairs of bytes, got b'ab'"),
        ({**ACCEPT, "headers": 5}, TypeError, "pairs of bytes, got 5"),
        ({"type": "websocket.send", "text": "a"}, RuntimeError, "got websocket.send"),
        ({"type": "websocket.http.response.start", "status": 101}, ValueError, "got 101"),
        ({"type": "websocket.http.response.start"}, ValueError, "'status', got {'type'"),
        (
            {"type": "websocket.http.response.body", "more_body": "no"},
            TypeError,
            "'more_body' .* bool, got 'no'",
        ),
        ({"type": "websocket.http.response.body"}, RuntimeError, "response.body"),
    ],
)
async def test_what_it_may_not_send_before_it_has_accepted(
    connect: Connect, message: Any, error: type[Exception], says: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(error, match=says):
            await send(message)
        await send(ACCEPT)
        await send({"type": "websocket.send", "text": "usable"})

    async with connect(app, "/", None, ["a"]) as ws:
        assert ws.subprotocol is None
        assert await drained(ws) == (["usable"], 1000, "")


# The end


async def test_the_applications_close(connect: Connect) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await send({"type": "websocket.close", "code": 4002, "reason": "é" * 62})
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "text": "late"})
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.close"})
        seen.extend([await receive(), await receive()])

    async with connect(app, "/") as ws:
        # 124 bytes do not go into a Close.
        assert await drained(ws) == ([], 4002, "é" * 61)
    assert [message["code"] for message in seen] == [4002, 4002]


async def test_a_crash_is_1011(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        raise LookupError("the application's own")

    async with connect(app, "/") as ws:
        assert await drained(ws) == ([], 1011, "")
    # In process, it was asked not to be told.
    logged = [record.exc_info for record in caplog.records]
    assert [info and info[0] for info in logged] == [LookupError][: int(connect is over_tcp)]


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_send_too_late_is_no_failure(
    connect: Connect, grouped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        while (await receive())["type"] != "websocket.disconnect":
            pass
        message = {"type": "websocket.send", "text": "late"}
        if not grouped:
            await send(message)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, message)
            tasks.start_soon(send, message)

    async with connect(app, "/") as ws:
        await ws.close(1000, "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_failed_connection_has_its_code(connect: Connect) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        seen.append(await receive())

    async with connect(app, "/", settings=Settings(max_message_size=10)) as ws:
        await ws.send("x" * 11)
        with pytest.raises(ConnectionClosedOK) as caught:
            await ws.receive()
        assert caught.value.code == 1009
    assert seen[0]["code"] == 1009


# Flow


@pytest.mark.no_cover
async def test_receive_may_be_cancelled_at_any_time(connect: Connect) -> None:
    received: list[str] = []
    cancelled = 0
    rounds = random.Random(10_000)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal cancelled
        await receive()
        await send(ACCEPT)
        async with anyio.create_task_group() as tasks:
            while len(received) < 5_000:
                with anyio.CancelScope() as given_up:
                    tasks.start_soon(give_up, given_up, rounds.randrange(6))
                    received.append((await receive())["text"])
                cancelled += given_up.cancelled_caught

    async def give_up(scope: anyio.CancelScope, rounds: int) -> None:
        for _ in range(rounds):
            await checkpoint()
        scope.cancel()

    def due() -> bool:
        return cancelled >= 2 * sent

    sent = 0
    async with connect(app, "/") as ws:
        while sent < 5_000:
            await until(due)
            await ws.send(str(sent))
            sent += 1
        assert await drained(ws) == ([], 1000, "")
    assert cancelled >= 9_998
    assert received == [str(number) for number in range(5_000)]


async def test_several_tasks_may_receive(connect: Connect) -> None:
    received: list[str] = []
    ends: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)

        async def take() -> None:
            while (message := await receive())["type"] == "websocket.receive":
                received.append(message["text"])
            ends.append(message["code"])

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(take)

    async with connect(app, "/") as ws:
        for number in range(100):
            await ws.send(str(number))
        await ws.close(4000, "over")
    assert sorted(received, key=int) == [str(number) for number in range(100)]
    assert ends == [4000] * 5


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_receive_that_is_being_cancelled_does_not_keep_another(connect: Connect) -> None:
    cancelled = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        task = asyncio.ensure_future(receive())
        for _ in range(10):
            await checkpoint()
        # It is not waited for, as is common.
        task.cancel()
        cancelled.set()
        await send({**await receive(), "type": "websocket.send"})

    async with connect(app, "/") as ws:
        await cancelled.wait()
        await ws.send("hello")
        assert await ws.receive_text() == "hello"


async def test_many_senders_do_not_tear_each_others_messages(connect: Connect) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)

        async def send_many(number: int) -> None:
            for turn in range(10):
                size = rounds.randrange(100_000)
                message = f"{number} {turn} {'x' * size}"
                if turn % 2:
                    await send({"type": "websocket.send", "text": message})
                else:
                    await send({"type": "websocket.send", "bytes": message.encode()})

        rounds = random.Random(50)
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(send_many, number)

    async with connect(app, "/") as ws:
        messages, code, _ = await drained(ws)
        assert code == 1000
    turns: dict[int, list[int]] = {number: [] for number in range(50)}
    for message in messages:
        text = message if isinstance(message, str) else message.decode()
        number, turn, padding = text.split(" ")
        assert set(padding) <= {"x"}
        assert isinstance(message, str) is bool(int(turn) % 2)
        turns[int(number)].append(int(turn))
    assert turns == {number: list(range(10)) for number in range(50)}


async def test_both_directions_at_once(connect: Connect) -> None:
    # 50 MiB each way; neither side reads before it sends.
    size, count = 2**21, 25

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)

        async def push() -> None:
            for number in range(count):
                await send({"type": "websocket.send", "bytes": bytes([number]) * size})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push)
            for number in range(count):
                assert (await receive())["bytes"] == bytes([number]) * size

    async def push(ws: Websocket) -> None:
        for number in range(count):
            await ws.send(bytes([number]) * size)

    async with connect(app, "/") as ws:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push, ws)
            for number in range(count):
                assert await ws.receive_bytes() == bytes([number]) * size
        assert await drained(ws) == ([], 1000, "")


async def test_a_reader_that_does_not_read_blocks_the_sender() -> None:
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send(ACCEPT)
        while True:
            await send({"type": "websocket.send", "bytes": bytes(2**16)})
            sent += 1

    settings = Settings(max_read_ahead=2**16)
    async with open_websocket_app(
        app, "/", lifespan="off", settings=settings, raise_app_exceptions=False
    ) as ws:
        await anyio.wait_all_tasks_blocked()
        assert sent < 10
        for _ in range(20):
            await ws.receive_bytes()


# Lifespan and the server's end


def living(events: list[Any], **answers: dict[str, Any]) -> Any:
    """Return an application that notes what happens, with its answers to the lifespan."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            events.append(scope["asgi"])
            scope["state"]["shared"] = []
            for phase in ("startup", "shutdown"):
                message = await receive()
                events.append(message["type"])
                await send(answers.get(phase, {"type": f"lifespan.{phase}.complete"}))
            return
        await send(ACCEPT)
        events.append(dict(scope["state"]))
        scope["state"]["own"] = True
        scope["state"]["shared"].append(len(events))
        while (message := await receive())["type"] != "websocket.disconnect":
            pass
        events.append(message["code"])

    return app


async def test_the_order_of_a_servers_life() -> None:
    events: list[Any] = []
    async with anyio.create_task_group() as tasks:
        server = await tasks.start(partial(serve_app, living(events), "127.0.0.1", 0))
        assert events == [{"version": "3.0", "spec_version": "2.0"}, "lifespan.startup"]
        for _ in range(2):
            async with open_websocket(f"ws://127.0.0.1:{server.port}/") as ws:
                pass
        async with open_websocket(f"ws://127.0.0.1:{server.port}/") as ws:
            await until(lambda: len(events) == 7)
            await server.close()
            assert (await drained(ws))[1:] == (1012, "")
    assert events[2:] == [
        # A copy for each connection, of the same values.
        {"shared": [3, 5, 7]},
        1000,
        {"shared": [3, 5, 7]},
        1000,
        {"shared": [3, 5, 7]},
        1012,
        "lifespan.shutdown",
    ]


async def test_in_process_there_is_a_lifespan_too() -> None:
    events: list[Any] = []
    async with open_websocket_app(living(events), "/"):
        pass
    assert events[1:] == ["lifespan.startup", {"shared": [3]}, 1000, "lifespan.shutdown"]


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
async def test_a_lifespan_that_fails(phase: str) -> None:
    answer = {"type": f"lifespan.{phase}.failed", "message": "no database"}
    with pytest.raises(LifespanFailed, match="no database"):
        async with open_websocket_app(living([], **{phase: answer}), "/"):
            assert phase == "shutdown"


async def test_a_shutdown_that_raises() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send(ACCEPT)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise LookupError("the lifespan's own")

    with pytest.raises(LookupError, match="own"):
        async with open_websocket_app(app, "/"):
            pass


async def test_a_lifespan_that_ends_once_it_has_started() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({**ACCEPT, "headers": [(b"x-state", b"1")] if "state" in scope else []})
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})

    # There is nobody to be told of the end.
    async with open_websocket_app(app, "/", lifespan="on") as ws:
        assert ws.response.header("x-state") == "1"


async def test_a_lifespan_that_says_so_when_it_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()
        except BaseException:
            # As Starlette does.
            await send({"type": "lifespan.shutdown.failed", "message": ""})
            said.set()
            raise

    async with anyio.create_task_group() as tasks:
        await tasks.start(partial(serve_app, app, "127.0.0.1", 0))
        tasks.cancel_scope.cancel()
    assert said.is_set()
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


async def test_a_lifespan_ends_where_the_block_fails() -> None:
    events: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        async with open_websocket_app(living(events), "/"):
            raise ZeroDivisionError
    assert events[1:] == ["lifespan.startup", {"shared": [3]}, 1011, "lifespan.shutdown"]


async def test_a_lifespan_ends_where_the_handshake_fails() -> None:
    events: list[Any] = []
    with pytest.raises(ValueError, match="path"):
        async with open_websocket_app(living(events), "no path"):
            pytest.fail("it was not opened")
    assert events[1:] == ["lifespan.startup", "lifespan.shutdown"]


async def test_a_lifespan_ends_where_nothing_can_be_listened_on() -> None:
    events: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(OSError):
        await serve_app(living(events), "127.0.0.1", sock.getsockname()[1])
    assert events[1:] == ["lifespan.startup", "lifespan.shutdown"]


async def test_a_shutdown_that_fails_after_the_block(caplog: pytest.LogCaptureFixture) -> None:
    answer = {"type": "lifespan.shutdown.failed", "message": "no database"}
    with pytest.raises(ZeroDivisionError):
        async with open_websocket_app(living([], shutdown=answer), "/"):
            raise ZeroDivisionError
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is LifespanFailed


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
async def test_a_lifespan_that_crashes_when_nobody_asks_is_logged(
    phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({**ACCEPT, "headers": [(b"x-state", b"1")] if "state" in scope else []})
            return
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"].endswith(phase):
                raise LookupError("the lifespan's own")

    async with open_websocket_app(app, "/") as ws:
        assert ws.response.header("x-state") == "1"
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is LookupError


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
async def test_a_lifespan_that_fails_is_told_once(
    phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send(ACCEPT)
            return
        while not (message := await receive())["type"].endswith(phase):
            await send({"type": f"{message['type']}.complete"})
        # As Starlette does.
        await send({"type": f"lifespan.{phase}.failed", "message": "no database"})
        raise LookupError("the lifespan's own")

    with pytest.raises(LifespanFailed, match="no database"):
        async with open_websocket_app(app, "/"):
            assert phase == "shutdown"
    assert not caplog.records


async def test_a_framework_whose_startup_fails() -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        raise LookupError("no database")
        yield

    with pytest.raises(LifespanFailed, match="LookupError: no database"):
        await serve_app(Starlette(lifespan=lifespan), "127.0.0.1", 0)


async def test_what_has_no_connection_ends_before_the_lifespan_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_module, "_LAST_MOMENT", 0.1)
    events: list[Any] = []
    lives = living(events)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lives(scope, receive, send)
            return
        events.append("begun")
        try:
            await anyio.sleep_forever()
        finally:
            events.append("cancelled")

    async with anyio.create_task_group() as tasks:
        server = await tasks.start(partial(serve_app, app, "127.0.0.1", 0))

        async def wait_for_an_answer() -> None:
            with pytest.raises(Rejected) as caught:
                async with open_websocket(f"ws://127.0.0.1:{server.port}/"):
                    pytest.fail("it was not accepted")
            assert caught.value.status == 503

        tasks.start_soon(wait_for_an_answer)
        await until(lambda: "begun" in events)
        await server.close()
    assert events[1:] == ["lifespan.startup", "begun", "cancelled", "lifespan.shutdown"]


async def without_lifespan(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "websocket":
        raise LookupError(scope["type"])
    assert "state" not in scope
    await send(ACCEPT)


async def test_an_application_without_a_lifespan() -> None:
    async with open_websocket_app(without_lifespan, "/") as ws:
        assert await drained(ws) == ([], 1000, "")
    with pytest.raises(LookupError):
        async with open_websocket_app(without_lifespan, "/", lifespan="on"):
            pytest.fail("it has none")


async def test_an_application_that_ignores_its_lifespan() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send(ACCEPT)

    async with open_websocket_app(app, "/") as ws:
        assert await drained(ws) == ([], 1000, "")


async def test_an_unknown_answer_to_the_lifespan() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for message in ({"type": "lifespan.nope"}, {}, {"type": "websocket.accept"}):
            with pytest.raises(ValueError, match=r"expected one of lifespan.startup.complete, "):
                await send(message)
        with pytest.raises(TypeError, match="a dict, got None"):
            await send(None)
        # It would look as if it had started.
        with pytest.raises(ValueError, match=r"answer to lifespan.startup, got '.*shutdown.comp"):
            await send({"type": "lifespan.shutdown.complete"})
        await send({"type": "lifespan.startup.failed"})

    with pytest.raises(LifespanFailed, match="startup has failed"):
        async with open_websocket_app(app, "/"):
            pytest.fail("it has not started")


async def test_a_stuck_application_is_cancelled() -> None:
    cancelled = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        try:
            await anyio.sleep_forever()
        except BaseException:
            cancelled.set()
            raise

    async with anyio.create_task_group() as tasks:
        server = await tasks.start(partial(serve_app, app, "127.0.0.1", 0, lifespan="off"))
        async with open_websocket(f"ws://127.0.0.1:{server.port}/") as ws:
            await server.close(grace=0)
            assert (await drained(ws))[1] == 1012
    assert cancelled.is_set()


async def test_a_crash_does_not_touch_another_connection() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        message = await receive()
        if message.get("text") == "crash":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                raise LookupError
        await send({"type": "websocket.send", "text": "alive"})

    async with anyio.create_task_group() as tasks:
        server = await tasks.start(partial(serve_app, app, "127.0.0.1", 0, lifespan="off"))
        url = f"ws://127.0.0.1:{server.port}/"
        async with open_websocket(url) as first, open_websocket(url) as second:
            await first.send("crash")
            assert (await drained(first))[1] == 1011
            await second.send("hello")
            assert await second.receive_text() == "alive"
        await server.close()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("accepts", [False, True])
async def test_a_stray_cancellation_is_the_crash_of_one_connection(
    accepts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/alive" or accepts:
            await send(ACCEPT)
        if scope["path"] == "/alive":
            await receive()
            await send({"type": "websocket.send", "text": "alive"})
        else:
            await cancelled()

    async with anyio.create_task_group() as tasks:
        server = await tasks.start(partial(serve_app, app, "127.0.0.1", 0, lifespan="off"))
        url = f"ws://127.0.0.1:{server.port}"
        async with open_websocket(f"{url}/alive") as alive:
            if accepts:
                async with open_websocket(f"{url}/stray") as ws:
                    assert (await drained(ws))[1] == 1011
            else:
                with pytest.raises(Rejected) as caught:
                    async with open_websocket(f"{url}/stray"):
                        pytest.fail("it was rejected")
                assert caught.value.status == 500
            await alive.send("hello")
            assert await alive.receive_text() == "alive"
        await server.close()
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is RuntimeError


async def cancelled() -> None:
    """Await what is cancelled, so that this is raised here."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_stray_cancellation_in_the_lifespan() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await cancelled()
        await send(ACCEPT)

    async with open_websocket_app(app, "/") as ws:
        assert await drained(ws) == ([], 1000, "")
    with pytest.raises(RuntimeError, match="cancellation"):
        await serve_app(app, "127.0.0.1", 0, lifespan="on")


async def test_what_the_application_raised_is_raised_in_process() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/accepted":
            await send(ACCEPT)
        raise LookupError("the application's own")

    with pytest.raises(LookupError, match="own"):
        async with open_websocket_app(app, "/accepted", lifespan="off") as ws:
            assert (await drained(ws))[1] == 1011
    with pytest.raises(LookupError, match="own") as caught:
        async with open_websocket_app(app, "/", lifespan="off"):
            pytest.fail("it was rejected")
    assert isinstance(caught.value.__cause__, Rejected)


@pytest.mark.parametrize("denies", [False, True])
async def test_what_it_raised_after_a_rejection_is_raised_in_process(denies: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if denies:
            await send({"type": "websocket.http.response.start", "status": 401})
            await send({"type": "websocket.http.response.body"})
        else:
            await send({"type": "websocket.close"})
        raise LookupError("the application's own")

    with pytest.raises(LookupError, match="own") as caught:
        async with open_websocket_app(app, "/", lifespan="off"):
            pytest.fail("it was rejected")
    assert isinstance(caught.value.__cause__, Rejected)


async def test_an_application_whose_own_client_is_rejected_raises_that_in_process() -> None:
    own = Rejected(404)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise own

    with pytest.raises(Rejected) as caught:
        async with open_websocket_app(app, "/", lifespan="off"):
            pytest.fail("it was rejected")
    assert caught.value is own
    assert isinstance(caught.value.__cause__, Rejected)
    assert caught.value.__cause__.status == 500


@pytest.mark.parametrize("raises", [False, True])
async def test_an_exception_of_the_block_comes_out_as_it_is(
    raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        await receive()
        await receive()
        if raises:
            raise LookupError("because of that")

    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError) as caught:
        async with open_websocket_app(app, "/", lifespan="off"):
            raise error
    assert caught.value is error
    logged = [record.exc_info for record in caplog.records]
    assert [info and info[0] for info in logged] == [LookupError][: int(raises)]


async def test_options_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="root path"):
        await serve_app(without_lifespan, "127.0.0.1", 0, root_path="app/")
    with pytest.raises(ValueError, match="lifespan"):
        await serve_app(without_lifespan, "127.0.0.1", 0, lifespan="maybe")  # type: ignore[arg-type]


# Applications


async def echo(websocket: WebSocket) -> None:
    await websocket.accept(subprotocol=next(iter(websocket.scope["subprotocols"]), None))
    try:
        while True:
            await websocket.send_text(f"{websocket.url.path} {await websocket.receive_text()}")
    except WebSocketDisconnect as exc:
        assert (exc.code, exc.reason) == (4000, "over")


async def members(websocket: WebSocket) -> None:
    raise HTTPException(401, "members only")


starlette_app = Starlette(
    routes=[
        WebSocketRoute("/echo", echo),
        WebSocketRoute("/members", members),
        Mount("/mounted", routes=[WebSocketRoute("/echo", echo)]),
    ]
)
fastapi_app = FastAPI()


@fastapi_app.websocket("/echo")
async def fastapi_echo(websocket: FastApiWebSocket) -> None:
    await echo(websocket)


@fastapi_app.websocket("/members")
async def fastapi_members(websocket: FastApiWebSocket) -> None:
    await members(websocket)


fastapi_app.mount("/mounted", starlette_app)

APPLICATIONS = [
    pytest.param(starlette_app, "/mounted/echo", id="starlette"),
    pytest.param(fastapi_app, "/mounted/echo", id="fastapi"),
]


@pytest.mark.parametrize(("app", "mounted"), APPLICATIONS)
async def test_an_application_of_a_framework(connect: Connect, app: Any, mounted: str) -> None:
    for path in ("/echo", mounted):
        async with connect(app, path, None, ["a"], lifespan="on") as ws:
            assert ws.subprotocol == "a"
            await ws.send("hello")
            assert await ws.receive_text() == f"{path} hello"
            await ws.close(4000, "over")


@pytest.mark.parametrize(("app", "mounted"), APPLICATIONS)
async def test_a_rejection_of_a_framework(connect: Connect, app: Any, mounted: str) -> None:
    with pytest.raises(Rejected) as caught:
        async with connect(app, "/members"):
            pytest.fail("it was rejected")
    assert caught.value.status == 401
    assert b"members only" in caught.value.body
    with pytest.raises(Rejected) as caught:
        async with connect(app, "/nowhere"):
            pytest.fail("it was rejected")
    assert caught.value.status == 403


async def test_our_own_handler_in_process(connect: Connect) -> None:
    async def handler(ws: Websocket) -> None:
        async for text in ws.iter_text():
            await ws.send(text)

    async with connect(WebsocketApp(handler), "/", lifespan="on") as ws:
        await ws.send("hello")
        assert await ws.receive_text() == "hello"
