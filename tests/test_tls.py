"""TLS on our own sockets, with anyio's on the other end."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint
from anyio.streams.tls import TLSAttribute, TLSStream

from asyncwebsockets import (
    ConnectionClosedError,
    HandshakeError,
    Websocket,
    open_websocket,
    open_websocket_server,
    serve,
)
from asyncwebsockets._tls import on_tls
from asyncwebsockets.transport import StreamTransport, TransportLost

from .conftest import cut, memory_pair
from .frames import REQUEST, frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


class Ended:
    """Serves one connection, and notes what it received and how it ended."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.error: ConnectionClosedError | None = None
        self.refused: list[Exception] = []
        self.over = anyio.Event()

    async def handle(self, ws: Websocket) -> None:
        try:
            async for data in ws.iter_bytes():
                self.received.append(data)
        except ConnectionClosedError as exc:
            self.error = exc
        finally:
            self.over.set()

    @asynccontextmanager
    async def on(self, context: ssl.SSLContext) -> AsyncIterator[int]:
        async with anyio.create_task_group() as tg:
            server = await tg.start(
                partial(
                    serve,
                    self.handle,
                    "127.0.0.1",
                    0,
                    ssl=context,
                    on_handshake_error=lambda request, error: self.refused.append(error),
                )
            )
            yield server.port
            tg.cancel_scope.cancel()


async def client(port: int, context: ssl.SSLContext) -> TLSStream:
    """Connect and ask for a WebSocket by hand."""
    stream = await TLSStream.wrap(
        await anyio.connect_tcp("127.0.0.1", port), hostname="localhost", ssl_context=context
    )
    await stream.send(REQUEST)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += await stream.receive()
    return stream


async def test_an_end_without_close_notify_is_told_from_one_with_it(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    cases = [(cut, "close_notify"), (TLSStream.aclose, "without a Close")]
    for leave, reason in cases:
        ended = Ended()
        async with ended.on(server_tls) as port:
            stream = await client(port, client_tls)
            await stream.send(frame(2, b"last", masked=True))
            await leave(stream)
            await ended.over.wait()
        assert ended.received == [b"last"]
        assert ended.error is not None
        assert ended.error.code == 1006
        assert reason in ended.error.reason


async def test_bytes_that_are_no_record_end_the_connection(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    ended = Ended()
    async with ended.on(server_tls) as port:
        stream = await client(port, client_tls)
        await stream.send(frame(2, b"last", masked=True))
        await stream.transport_stream.send(b"no record" * 10)
        await ended.over.wait()
        await cut(stream)
    assert ended.received == [b"last"]
    assert ended.error is not None
    assert ended.error.code == 1006
    assert "TLS failed" in ended.error.reason


async def test_the_server_learns_why_a_client_refuses_its_certificate(
    server_tls: ssl.SSLContext,
) -> None:
    ended = Ended()
    async with ended.on(server_tls) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            async with open_websocket(f"wss://localhost:{port}/"):
                pytest.fail("an unknown authority was trusted")
        while not ended.refused:
            await checkpoint()
    (error,) = ended.refused
    assert isinstance(error, HandshakeError)
    assert "unknown ca" in str(error)


async def test_many_records_and_parts_of_one(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    messages = [bytes([i]) * size for i, size in enumerate((1, 16_384, 16_385, 300_000, 3))]
    ended = Ended()
    async with (
        ended.on(server_tls) as port,
        open_websocket(f"wss://localhost:{port}/", ssl=client_tls) as ws,
    ):
        for message in messages:
            await ws.send(message)
        await ws.close()
        await ended.over.wait()
    assert ended.received == messages
    assert ended.error is None


async def test_what_came_before_a_stream_was_taken_over_is_not_lost(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        done = anyio.Event()

        async def serve_one(raw: Any) -> None:
            stream = await TLSStream.wrap(raw, server_side=True, ssl_context=server_tls)
            await asked.wait()
            for _ in range(10):
                # So that the stream has read ahead, where it does.
                await checkpoint()
            async with open_websocket_server(stream) as ws:
                assert await ws.receive_bytes() == b"early"
                assert ws.extra(TLSAttribute.server_side) is True
                assert ws.extra(TLSAttribute.tls_version) == "TLSv1.3"
                assert ws.extra(TLSAttribute.alpn_protocol) is None
                assert ws.extra(TLSAttribute.peer_certificate) is None
                assert ws.extra(SocketAttribute.remote_port) > 0
            done.set()

        asked = anyio.Event()
        async with anyio.create_task_group() as tg:
            tg.start_soon(listener.serve, serve_one)
            port = listener.extra(SocketAttribute.local_port)
            stream = await TLSStream.wrap(
                await anyio.connect_tcp("127.0.0.1", port),
                hostname="localhost",
                ssl_context=client_tls,
            )
            await stream.send(REQUEST + frame(2, b"early", masked=True))
            asked.set()
            await stream.receive()
            await cut(stream)
            await done.wait()
            tg.cancel_scope.cancel()


class Renegotiating:
    """What OpenSSL does while a peer renegotiates: nothing is written before something is read."""

    def __init__(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self.ready = False

    def read(self, size: int) -> bytes:
        data = self.incoming.read(size)
        if not data:
            raise ssl.SSLWantReadError
        self.ready = True
        return data

    def write(self, data: bytes) -> int:
        if not self.ready:
            raise ssl.SSLWantReadError
        # Never all of it.
        return self.outgoing.write(data[: max(1, len(data) // 2)])

    def pending(self) -> int:
        return 0


async def test_what_is_sent_in_a_renegotiation_waits_for_its_end() -> None:
    near, far = memory_pair()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls: Any = Renegotiating(incoming, outgoing)
    pipe = on_tls(StreamTransport(near), tls, incoming, outgoing)
    pipe.write(b"first")
    pipe.write(b"second")
    assert pipe.clogged
    assert pipe.unsent
    sent = b""
    async with anyio.create_task_group() as tg:
        tg.start_soon(pipe.drain)
        await anyio.wait_all_tasks_blocked()
        await far.send(b"its end")
        assert await pipe.receive() == b"its end"
        sent = await far.receive()
    assert sent == b"firstsecond"
    assert not pipe.clogged
    tls.ready = False
    pipe.write(b"third")
    async with anyio.create_task_group() as tg:

        async def drain() -> None:
            with pytest.raises(TransportLost, match="closed on this side"):
                await pipe.drain()

        tg.start_soon(drain)
        await anyio.wait_all_tasks_blocked()
        await pipe.abort()
    assert pipe.broken
