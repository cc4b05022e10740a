"""`WebsocketApp` in applications and under a server written for the tests."""

from __future__ import annotations

import gc
import re
import warnings
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import httpx_ws
import pytest
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint
from fastapi import FastAPI
from httpx_ws.transport import ASGIWebSocketTransport
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from asgi_bridge import AsgiRequest, WebsocketApp
from asyncwebsockets import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedLocally,
    ConnectionClosedOK,
    ConnectionState,
    Reject,
    Settings,
    UnsupportedOperation,
    Websocket,
    open_websocket,
)
from asyncwebsockets.events import AcceptConnection, TextMessage

from ..conftest import until
from .servers import ROOT, SERVERS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator

    from asyncwebsockets import Request

    from .servers import Fleet

pytestmark = pytest.mark.anyio

CONNECT = {"type": "websocket.connect"}
ACCEPT: dict[str, Any] = {"type": "websocket.accept", "subprotocol": None, "headers": []}
DENIAL: dict[str, Any] = {"websocket.http.response": {}}


def text(data: str) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": data}


def sent(data: str | bytes) -> dict[str, Any]:
    return {"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data}


def closed(code: int, reason: str = "") -> dict[str, Any]:
    return {"type": "websocket.close", "code": code, "reason": reason}


def disconnect(code: int, reason: str = "") -> dict[str, Any]:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


class Peer:
    """A server that gives an application what the test says, and keeps what it sends."""

    def __init__(self) -> None:
        self._to_app, self._app_reads = anyio.create_memory_object_stream[Any](1000)
        self._app_sends, self._from_app = anyio.create_memory_object_stream[Any](0)
        self.fails: type[Exception] | None = None
        self.given = 0
        self.done = anyio.Event()
        self.error: BaseException | None = None

    def put(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            self._to_app.send_nowait(message)

    async def take(self) -> Any:
        return await self._from_app.receive()

    async def receive(self) -> Any:
        message = await self._app_reads.receive()
        self.given += 1
        return message

    async def send(self, message: Any) -> None:
        if self.fails is not None:
            raise self.fails("gone")
        await self._app_sends.send(message)

    async def run(self, app: WebsocketApp, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self.receive, self.send)
        except Exception as exc:
            self.error = exc
        finally:
            self.done.set()

    def close(self) -> None:
        for stream in (self._to_app, self._app_reads, self._app_sends, self._from_app):
            stream.close()


@asynccontextmanager
async def run(
    handler: Callable[[Websocket], Awaitable[object]],
    filter: Callable[[Request], Awaitable[object]] | None = None,
    settings: Settings | None = None,
    accepted: bool = True,
    **scope: Any,
) -> AsyncGenerator[Peer, None]:
    """Run a handler; gives the server, the connection accepted."""
    peer = Peer()
    app = WebsocketApp(handler, filter, settings=settings)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.run, app, {"type": "websocket", "path": "/", **scope})
            peer.put(CONNECT)
            if accepted:
                assert await peer.take() == ACCEPT
            yield peer
            await peer.done.wait()
    finally:
        peer.close()


async def echo(ws: Websocket) -> None:
    async for event in ws:
        assert isinstance(event, TextMessage)
        await ws.send(event.data)


async def test_messages_and_a_close_of_the_peer() -> None:
    async with run(echo) as peer:
        peer.put(text("a"), text(""))
        assert await peer.take() == sent("a")
        assert await peer.take() == sent("")
        peer.put(disconnect(4000, "over"))
    assert peer.error is None


@pytest.mark.parametrize(
    ("message", "error", "code", "reason"),
    [
        (disconnect(1000, "over"), ConnectionClosedOK, 1000, "over"),
        (disconnect(1006), ConnectionClosedError, 1006, "the connection was lost"),
        ({"type": "websocket.disconnect", "code": None}, ConnectionClosedOK, 1005, ""),
    ],
)
async def test_the_end_in_receive(
    message: dict[str, Any], error: type[ConnectionClosed], code: int, reason: str
) -> None:
    async def handler(ws: Websocket) -> None:
        for _ in range(2):
            with pytest.raises(error) as caught:
                await ws.receive()
            assert (caught.value.code, caught.value.reason) == (code, reason)
        assert (ws.close_code, ws.close_reason) == (code, reason)
        assert ws.state is ConnectionState.CLOSED
        with pytest.raises(ConnectionClosedError):
            await ws.send("late")
        await ws.wait_closed()
        await ws.close()

    async with run(handler) as peer:
        peer.put(message)
    assert peer.error is None


async def test_what_came_before_the_end_is_received_before_it() -> None:
    received: list[object] = []

    async def handler(ws: Websocket) -> None:
        await ws.wait_closed()
        received.extend([event async for event in ws])

    async with run(handler) as peer:
        peer.put(text("a"), text("b"), disconnect(1000))
    assert received == [TextMessage("a"), TextMessage("b")]
    assert peer.error is None


async def test_read_ahead_is_bounded() -> None:
    first = anyio.Event()

    async def handler(ws: Websocket) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ws.wait_closed)
            await first.wait()
            texts = [text async for text in ws.iter_text()]
        assert texts == ["x" * 100] * 20

    # A message counts 128 at least.
    async with run(handler, settings=Settings(max_read_ahead=512)) as peer:
        peer.put(*[text("x" * 100)] * 20, disconnect(1000))
        await until(lambda: peer.given == 1 + 4)
        await anyio.wait_all_tasks_blocked()
        assert peer.given == 1 + 4
        first.set()
    assert peer.error is None


@pytest.mark.parametrize("error", [OSError, RuntimeError])
async def test_a_send_that_the_server_refuses_ends_sending_only(error: type[Exception]) -> None:
    async def handler(ws: Websocket) -> None:
        await ws.receive()
        for cause in (error, type(None)):
            with pytest.raises(ConnectionClosedError) as caught:
                await ws.send("late")
            assert (caught.value.code, caught.value.reason) == (1006, "the connection is gone")
            assert isinstance(caught.value.__cause__, cause)
        # The peer has sent that, and then closed.
        assert [event async for event in ws] == [TextMessage("b"), TextMessage("c")]
        assert (ws.close_code, ws.close_reason) == (1000, "over")
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.send("late")
        assert caught.value.code == 1000

    async with run(handler) as peer:
        peer.fails = error
        peer.put(text("a"), text("b"), text("c"), disconnect(1000, "over"))
    assert peer.error is None


async def test_a_handler_that_ends_with_a_refused_send_waits_for_the_servers_word() -> None:
    async def handler(ws: Websocket) -> None:
        await refuses.wait()
        try:
            await ws.send("late")
        finally:
            handlers.append(ws)

    refuses = anyio.Event()
    handlers: list[Websocket] = []
    async with run(handler) as peer:
        peer.fails = OSError
        refuses.set()
        await until(lambda: bool(handlers))
        peer.put(text("dropped"), disconnect(4000, "bye"))
    assert peer.error is None
    assert (handlers[0].close_code, handlers[0].close_reason) == (4000, "bye")


async def test_our_close_waits_for_the_server() -> None:
    async def handler(ws: Websocket) -> None:
        await ws.close(4002, "bye")
        assert (ws.close_code, ws.close_reason) == (4002, "answer")
        with pytest.raises(ConnectionClosedLocally):
            await ws.send("late")
        with pytest.raises(ConnectionClosedLocally):
            await ws.receive()

    async with run(handler) as peer:
        assert await peer.take() == closed(4002, "bye")
        peer.put(text("dropped"), disconnect(4002, "answer"))
    assert peer.error is None


async def test_two_tasks_may_close() -> None:
    async def handler(ws: Websocket) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ws.close, 4002, "bye")
            tasks.start_soon(ws.close, 4003, "bye")

    async with run(handler) as peer:
        assert await peer.take() in (closed(4002, "bye"), closed(4003, "bye"))
        peer.put(disconnect(4002))
    assert peer.error is None


async def test_a_server_that_does_not_report_the_end() -> None:
    async def handler(ws: Websocket) -> None:
        await ws.close(1000, "")
        assert ws.close_code == 1006
        assert "close_timeout" in (ws.close_reason or "")

    async with run(handler, settings=Settings(close_timeout=0.01)) as peer:
        assert await peer.take() == closed(1000)
    assert peer.error is None


async def test_an_exception_of_the_handler_goes_on_to_the_server() -> None:
    async def handler(ws: Websocket) -> None:
        raise LookupError("the handler's own")

    async with run(handler) as peer:
        assert await peer.take() == closed(1011)
        peer.put(disconnect(1011))
    assert isinstance(peer.error, LookupError)


async def test_a_message_of_the_wrong_kind_is_the_peers_doing() -> None:
    async def handler(ws: Websocket) -> None:
        await ws.receive_bytes()

    async with run(handler) as peer:
        peer.put(text("a"))
        assert await peer.take() == closed(1003, "expected a binary message, a text message came")
        peer.put(disconnect(1003))
    assert peer.error is None


async def test_the_end_in_a_group_is_the_normal_end() -> None:
    async def handler(ws: Websocket) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ws.receive)

    async with run(handler) as peer:
        peer.put(disconnect(1006))
    assert peer.error is None


async def test_a_cancelled_handler_says_so() -> None:
    peer = Peer()
    app = WebsocketApp(echo)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.run, app, {"type": "websocket", "path": "/"})
        peer.put(CONNECT)
        await peer.take()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            assert await peer.take() == closed(1001)
    peer.close()


async def test_a_message_over_the_limit_is_1009() -> None:
    async def handler(ws: Websocket) -> None:
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.code == ws.close_code == 1009

    async with run(handler, settings=Settings(max_message_size=10)) as peer:
        peer.put(text("x" * 11), text("more"))
        message = await peer.take()
        assert message["code"] == 1009
    assert peer.error is None


async def test_fragments_are_joined() -> None:
    async def handler(ws: Websocket) -> None:
        await ws.send("a", final=False)
        await ws.send("", final=False)
        await ws.send("b")
        await ws.send(bytearray(b"a"), final=False)
        await ws.send(memoryview(b"b"))
        async with ws.message() as message:
            await message.send(b"c")

    async with run(handler) as peer:
        assert [await peer.take() for _ in range(3)] == [sent("ab"), sent(b"ab"), sent(b"c")]
        assert await peer.take() == closed(1000)
        peer.put(disconnect(1000))
    assert peer.error is None


async def test_messages_are_counted_and_so_is_time() -> None:
    seen: list[Websocket] = []

    async def handler(ws: Websocket) -> None:
        seen.append(ws)
        await ws.send("é", final=False)
        await ws.send("a")
        await echo(ws)

    async with run(handler) as peer:
        assert await peer.take() == sent("éa")
        peer.put(text("ab"))
        assert await peer.take() == sent("ab")
        peer.put(disconnect(1000))
    (ws,) = seen
    found = ws.statistics
    # Of messages, without frames: those are the server's.
    assert (found.messages_received, found.bytes_received) == (1, 2)
    assert (found.messages_sent, found.bytes_sent) == (2, 3 + 2)
    assert (found.pings_received, found.pings_sent) == (0, 0)
    assert ws.statistics.duration == found.duration > 0


async def test_joined_fragments_are_bounded() -> None:
    async def handler(ws: Websocket) -> None:
        await ws.send("x" * 8, final=False)
        with pytest.raises(ValueError, match="max_message_size=10 bytes, .* got 11"):
            await ws.send("yyy")
        await ws.send("yy")
        # A whole message is what its sender has already.
        await ws.send("z" * 11)

    async with run(handler, settings=Settings(max_message_size=10)) as peer:
        assert await peer.take() == sent("x" * 8 + "yy")
        assert await peer.take() == sent("z" * 11)
        assert await peer.take() == closed(1000)
        peer.put(disconnect(1000))
    assert peer.error is None


async def test_concurrent_sends_go_one_by_one() -> None:
    async def handler(ws: Websocket) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(ws.send, str(number))

    async with run(handler) as peer:
        messages = [await peer.take() for _ in range(20)]
        assert sorted(int(message["text"]) for message in messages) == list(range(20))
        assert await peer.take() == closed(1000)
        peer.put(disconnect(1000))
    assert peer.error is None


async def test_a_message_in_pieces_is_one_piece() -> None:
    async def handler(ws: Websocket) -> None:
        async with ws.receive_stream() as pieces:
            assert [piece async for piece in pieces] == ["whole"]
        assert await ws.receive_text() == "next"

    async with run(handler) as peer:
        peer.put(text("whole"), text("next"))
        assert await peer.take() == closed(1000)
        peer.put(disconnect(1000))
    assert peer.error is None


async def test_a_send_that_waits_for_another_ends_with_the_connection() -> None:
    ends: list[str] = []
    closed_now = anyio.Event()

    async def handler(ws: Websocket) -> None:
        async def send(data: str) -> None:
            try:
                await ws.send(data)
            except ConnectionClosedError:
                ends.append(data)

        async with anyio.create_task_group() as tasks:
            for data in ("first", "second", "third"):
                tasks.start_soon(send, data)
            await ws.wait_closed()
            closed_now.set()

    async with run(handler) as peer:
        await anyio.wait_all_tasks_blocked()
        # What the server says after the end is of no connection.
        peer.put(disconnect(1001), text("late"))
        await closed_now.wait()
        # The first is with the server already, whichever it is.
        went = (await peer.take())["text"]
    assert peer.error is None
    assert sorted([went, *ends]) == ["first", "second", "third"]


@pytest.mark.parametrize("error", [OSError, RuntimeError])
async def test_a_close_that_the_server_refuses_is_the_end(error: type[Exception]) -> None:
    async def handler(ws: Websocket) -> None:
        await ws.receive()
        await ws.close(4000, "over")
        assert (ws.close_code, ws.close_reason) == (1006, "the connection is gone")

    async with run(handler) as peer:
        peer.fails = error
        peer.put(text("go on"))
    assert peer.error is None


async def test_an_abort_does_not_wait_for_a_send() -> None:
    async def handler(ws: Websocket) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ws.send, "first")
            await ws.receive()
            await ws.abort()
            assert ws.close_code == 1006

    async with run(handler) as peer:
        await anyio.wait_all_tasks_blocked()
        peer.put(text("go on"))
        await anyio.wait_all_tasks_blocked()
        # There is no Close behind it.
        assert await peer.take() == sent("first")
    assert peer.error is None


async def test_a_close_that_waits_for_a_send_is_not_sent_behind_the_end() -> None:
    closing = anyio.Event()

    async def handler(ws: Websocket) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ws.wait_closed)
            tasks.start_soon(ws.send, "first")
            await closing.wait()
            tasks.start_soon(ws.close, 4000, "over")
        assert ws.close_code == 1001

    async with run(handler) as peer:
        await anyio.wait_all_tasks_blocked()
        closing.set()
        await anyio.wait_all_tasks_blocked()
        peer.put(disconnect(1001))
        await anyio.wait_all_tasks_blocked()
        assert await peer.take() == sent("first")
    assert peer.error is None


async def test_a_lone_surrogate_is_refused() -> None:
    async def handler(ws: Websocket) -> None:
        with pytest.raises(ValueError, match="surrogates"):
            await ws.send("\ud800")

    async with run(handler) as peer:
        assert await peer.take() == closed(1000)
        peer.put(disconnect(1000))
    assert peer.error is None


async def test_what_only_a_socket_has() -> None:
    async def handler(ws: Websocket) -> None:
        with pytest.raises(UnsupportedOperation, match="pings"):
            await ws.ping()
        with pytest.raises(UnsupportedOperation, match="pings"):
            _ = ws.latency
        with pytest.raises(UnsupportedOperation, match="sockets"):
            _ = ws.raw_socket
        with pytest.raises(anyio.TypedAttributeLookupError):
            ws.extra(SocketAttribute.family)
        assert ws.extra(SocketAttribute.family, 5) == 5
        assert ws.extra(SocketAttribute.remote_address) == ("127.0.0.1", 1)
        assert ws.local_address is None
        assert ws.response.status == 101

    async with run(handler, client=["127.0.0.1", 1]) as peer:
        assert await peer.take() == closed(1000)
        peer.put(disconnect(1000))
    assert peer.error is None


async def test_abort_is_a_close_with_1011() -> None:
    async def handler(ws: Websocket) -> None:
        await ws.abort()
        assert ws.close_code == 1006
        with pytest.raises(ConnectionClosedLocally):
            await ws.send("late")

    async with run(handler) as peer:
        assert await peer.take() == closed(1011)
    assert peer.error is None


# The filter


async def never(ws: Websocket) -> None:
    pytest.fail("it was not accepted")


async def test_an_accept_with_everything() -> None:
    async def accept(request: Request) -> object:
        return AcceptConnection(subprotocol="b", extra_headers=[(b"X-A", b"1"), (b"X-a", b"2")])

    async def handler(ws: Websocket) -> None:
        assert ws.subprotocol == "b"
        assert ws.response.header("x-a") == "1, 2"

    async with run(handler, accept, accepted=False, subprotocols=["a", "b"]) as peer:
        assert await peer.take() == {
            "type": "websocket.accept",
            "subprotocol": "b",
            "headers": [(b"x-a", b"1"), (b"x-a", b"2")],
        }
        assert await peer.take() == closed(1000)
        peer.put(disconnect(1000))
    assert peer.error is None


@pytest.mark.parametrize(
    ("decision", "error"),
    [
        ("unoffered", ValueError),
        (AcceptConnection(extra_headers=[(b"Sec-WebSocket-Protocol", b"a")]), ValueError),
        (AcceptConnection(extra_headers=[(b"a", b"b\r\nc: d")]), ValueError),
        (AcceptConnection(extensions=["anything"]), UnsupportedOperation),  # type: ignore[list-item]
        (5, TypeError),
    ],
)
async def test_what_a_filter_may_not_say(decision: object, error: type[Exception]) -> None:
    async def accept(request: Request) -> object:
        return decision

    async with run(never, accept, accepted=False) as peer:
        pass
    assert isinstance(peer.error, error)


async def test_a_filter_that_raises() -> None:
    async def broken(request: Request) -> object:
        raise LookupError

    async with run(never, broken, accepted=False) as peer:
        pass
    assert isinstance(peer.error, LookupError)


async def pieces() -> AsyncIterator[bytes]:
    yield b"a"
    yield b"b"


@pytest.mark.parametrize(
    ("decision", "start", "bodies"),
    [
        (lambda: False, (403, [(b"content-length", b"0")]), [b""]),
        (
            lambda: Reject(404, [("X-A", "1")], b"no"),
            (404, [(b"x-a", b"1"), (b"content-length", b"2")]),
            [b"no"],
        ),
        (lambda: Reject(503, (), pieces()), (503, []), [b"a", b"b", b""]),
        (lambda: Reject(204), (204, []), [b""]),
        (
            lambda: Reject(400, [("Content-Length", "2")], b"no"),
            (400, [(b"content-length", b"2")]),
            [b"no"],
        ),
    ],
)
async def test_a_rejection(decision: Any, start: Any, bodies: list[bytes]) -> None:
    async def reject(request: Request) -> object:
        return decision()

    async with run(never, reject, accepted=False, extensions=DENIAL) as peer:
        status, headers = start
        assert await peer.take() == {
            "type": "websocket.http.response.start",
            "status": status,
            "headers": headers,
        }
        for number, body in enumerate(bodies, 1):
            assert await peer.take() == {
                "type": "websocket.http.response.body",
                "body": body,
                "more_body": number < len(bodies),
            }
    assert peer.error is None


async def test_a_body_that_fails() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise FileNotFoundError

    async def reject(request: Request) -> object:
        return Reject(503, (), broken())

    async with run(never, reject, accepted=False, extensions=DENIAL) as peer:
        assert (await peer.take())["status"] == 503
        assert (await peer.take())["body"] == b"a"
    assert isinstance(peer.error, FileNotFoundError)


async def test_a_rejection_where_the_server_has_no_denials() -> None:
    async def reject(request: Request) -> object:
        return Reject(404, (), b"no")

    async with run(never, reject, accepted=False) as peer:
        assert await peer.take() == closed(1000)
    assert peer.error is None


async def test_a_client_that_leaves_cancels_the_filter() -> None:
    begun = anyio.Event()

    async def slow(request: Request) -> object:
        begun.set()
        await anyio.sleep_forever()
        return True

    async with run(never, slow, accepted=False) as peer:
        await begun.wait()
        peer.put(disconnect(1006))
    assert peer.error is None


async def test_a_filter_that_takes_too_long_is_503() -> None:
    async def slow(request: Request) -> object:
        await anyio.sleep_forever()
        return True

    settings = Settings(open_timeout=0.01)
    async with run(never, slow, settings, accepted=False, extensions=DENIAL) as peer:
        assert (await peer.take())["status"] == 503
        await peer.take()
    assert peer.error is None


async def test_what_came_while_the_filter_ran_is_received() -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    async def slow(request: Request) -> object:
        begun.set()
        await go_on.wait()
        return True

    async def handler(ws: Websocket) -> None:
        assert await ws.receive_text() == "early"
        assert await ws.receive_text() == "later"

    async with run(handler, slow, accepted=False) as peer:
        await begun.wait()
        peer.put(text("early"))
        await until(lambda: peer.given == 2)
        go_on.set()
        assert await peer.take() == ACCEPT
        peer.put(text("later"))
        assert await peer.take() == closed(1000)
        peer.put(disconnect(1000))
    assert peer.error is None


async def test_early_messages_are_bounded() -> None:
    go_on = anyio.Event()

    async def slow(request: Request) -> object:
        await go_on.wait()
        return True

    settings = Settings(max_handshake_size=100)
    async with run(echo, slow, settings, accepted=False) as peer:
        peer.put(*[text("x" * 60)] * 10, disconnect(1000))
        await until(lambda: peer.given == 3)
        await anyio.wait_all_tasks_blocked()
        assert peer.given == 3
        go_on.set()
        assert await peer.take() == ACCEPT
        for _ in range(10):
            assert await peer.take() == sent("x" * 60)
    assert peer.error is None


async def test_early_messages_without_a_bound() -> None:
    go_on = anyio.Event()

    async def slow(request: Request) -> object:
        await go_on.wait()
        return True

    async with run(echo, slow, Settings(max_handshake_size=None), accepted=False) as peer:
        peer.put(*[text("x" * 100_000)] * 10)
        await until(lambda: peer.given == 11)
        go_on.set()
        assert await peer.take() == ACCEPT
        for _ in range(10):
            assert await peer.take() == sent("x" * 100_000)
        peer.put(disconnect(1000))
    assert peer.error is None


async def test_a_client_that_left_at_once() -> None:
    peer = Peer()
    peer.put(disconnect(1006))
    await peer.run(WebsocketApp(never), {"type": "websocket", "path": "/"})
    assert peer.error is None
    peer.close()


@pytest.mark.parametrize("decision", [True, False])
async def test_a_client_that_leaves_before_the_answer(decision: bool) -> None:
    async def decide(request: Request) -> object:
        return decision

    peer = Peer()
    peer.fails = OSError
    peer.put(CONNECT)
    await peer.run(WebsocketApp(never, decide), {"type": "websocket", "path": "/"})
    assert peer.error is None
    peer.close()


# Other scopes


async def test_http_is_426() -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(WebsocketApp(never)), base_url="http://localhost"
    ) as client:
        response = await client.get("/")
    assert response.status_code == 426
    assert response.headers["upgrade"] == "websocket"
    assert response.headers["sec-websocket-version"] == "13"


async def test_lifespan() -> None:
    peer = Peer()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.run, WebsocketApp(never), {"type": "lifespan"})
        for phase in ("startup", "shutdown"):
            peer.put({"type": f"lifespan.{phase}"})
            assert await peer.take() == {"type": f"lifespan.{phase}.complete"}
    assert peer.error is None
    peer.close()


async def test_another_scope() -> None:
    peer = Peer()
    await peer.run(WebsocketApp(never), {"type": "other"})
    assert isinstance(peer.error, ValueError)
    peer.close()


# Applications


async def describe(ws: Websocket) -> None:
    assert isinstance(ws.request, AsgiRequest)
    params = ws.request.scope.get("path_params", {})
    await ws.send_json([ws.request.target, params.get("name")])
    with suppress(ConnectionClosed):
        await ws.receive()


def page(request: object) -> None:
    raise AssertionError


endpoint = WebsocketApp(describe)
MOUNTED = Starlette(
    routes=[
        Route("/page", page),
        WebSocketRoute("/route/{name}", endpoint),
        Mount("/mount", endpoint),
        Mount("/outer", routes=[Mount("/inner", endpoint)]),
        Mount("/named/{name}", endpoint),
    ],
    middleware=[Middleware(CORSMiddleware, allow_origins=["*"])],
)
fast = FastAPI()
fast.mount("/mount", endpoint)
fast.router.routes.append(WebSocketRoute("/route/{name}", endpoint))
sub = FastAPI()
sub.mount("/inner", endpoint)
fast.mount("/outer", sub)

PATHS = [
    ("/route/a%20b?q=1", "/route/a%20b?q=1", "a b"),
    ("/mount/", "/", None),
    ("/mount/x/y?q=1", "/x/y?q=1", None),
    ("/outer/inner/%C3%A9", "/%C3%A9", None),
]


@pytest.mark.parametrize("app", [MOUNTED, fast], ids=["starlette", "fastapi"])
@pytest.mark.parametrize(("path", "target", "name"), PATHS)
@pytest.mark.parametrize("anyio_backend_name", ["asyncio", "trio"])
def test_mounted_with_starlettes_client(
    app: Any, path: str, target: str, name: str | None, anyio_backend_name: str
) -> None:
    client = TestClient(app, backend=anyio_backend_name)  # type: ignore[arg-type]
    with client.websocket_connect(path) as ws:
        assert ws.receive_json() == [target, name]


def test_a_close_with_starlettes_client() -> None:
    async def handler(ws: Websocket) -> None:
        await ws.close(4002, "bye")

    with TestClient(WebsocketApp(handler)).websocket_connect("/") as ws:
        with pytest.raises(WebSocketDisconnect) as caught:
            ws.receive_text()
        assert (caught.value.code, caught.value.reason) == (4002, "bye")


@pytest.fixture
def httpx_ws_litter() -> Iterator[None]:
    """Have what httpx-ws leaves open collected here; it warns about that."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.usefixtures("httpx_ws_litter")
@pytest.mark.parametrize("app", [MOUNTED, fast], ids=["starlette", "fastapi"])
# It takes no path in which something is percent-encoded.
@pytest.mark.parametrize(
    ("path", "target", "name"),
    [("/route/a?q=1", "/route/a?q=1", "a"), *PATHS[1:3]],
)
async def test_mounted_with_httpx_ws(app: Any, path: str, target: str, name: str | None) -> None:
    ws: httpx_ws.AsyncWebSocketSession
    async with (
        httpx.AsyncClient(transport=ASGIWebSocketTransport(app)) as client,
        httpx_ws.aconnect_ws(f"http://localhost{path}", client) as ws,
    ):
        assert await ws.receive_json() == [target, name]


@pytest.mark.usefixtures("httpx_ws_litter")
async def test_subprotocols_with_httpx_ws() -> None:
    async def handler(ws: Websocket) -> None:
        await echo(ws)

    ws: httpx_ws.AsyncWebSocketSession
    async with (
        httpx.AsyncClient(transport=ASGIWebSocketTransport(WebsocketApp(handler))) as client,
        httpx_ws.aconnect_ws("http://localhost/", client, subprotocols=["a", "b"]) as ws,
    ):
        assert ws.subprotocol == "a"
        await ws.send_text("hello")
        assert await ws.receive_text() == "hello"
        await checkpoint()


# What the documentation and the examples show


def documented() -> list[str]:
    """Return the page's blocks of code."""
    page = (ROOT / "docs" / "asgi.md").read_text()
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def run_block(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, "asgi.md", "exec"), names)
    return names


def test_the_page_about_asgi() -> None:
    client = TestClient(run_block(documented()[0])["app"])
    with client.websocket_connect("/echo/") as ws:
        ws.send_text("hello")
        assert ws.receive_text() == "hello"
    with pytest.raises(WebSocketDenialResponse) as caught:
        client.websocket_connect("/members/a").__enter__()
    assert caught.value.status_code == 403
    with client.websocket_connect("/members/a", headers={"Cookie": "a=1"}) as ws:
        ws.send_text("hello")
        assert ws.receive_text() == "hello"


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_the_mounted_example(fleet: Fleet) -> None:
    port = fleet.port(SERVERS[0], "examples.mounted:app")
    async with open_websocket(f"ws://127.0.0.1:{port}/echo/there") as ws:
        await ws.send("hello")
        assert await ws.receive_text() == "/there: hello"
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.get(f"http://127.0.0.1:{port}/")
    assert "WebSocket" in response.text
