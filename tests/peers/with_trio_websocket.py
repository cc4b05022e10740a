"""trio-websocket."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio
import trio_websocket
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection

from .peer import HEADER, Closed, Data, End, Listening, Options, Peer, Refused

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

Headers = list[tuple[bytes, bytes]]


class TrioWebsocketEnd(End):
    def __init__(
        self, ws: WebSocketConnection, headers: Headers, stream: trio.abc.Stream | None = None
    ) -> None:
        came = {name.lower(): value.decode() for name, value in headers}
        super().__init__(ws.subprotocol, came.get(HEADER.lower().encode()), ws.path)
        self.ws = ws
        # A client's, which it leaves open once the server has begun the closing handshake:
        # `aclose` does nothing when there is a reason for the end already.
        self._stream = stream

    async def send(self, data: Data) -> None:
        await self.ws.send_message(data)

    async def receive(self) -> list[Data]:
        return [await self.ws.get_message()]

    async def ping(self, payload: bytes) -> None:
        await self.ws.ping(payload)

    async def close(self, code: int | None, reason: str) -> None:
        assert code is not None
        await self.ws.aclose(code, reason)

    async def closed(self) -> Closed:
        try:
            while True:
                await self.ws.get_message()
        except ConnectionClosed as exc:
            assert exc.reason is not None
            if self._stream is not None:
                await trio.aclose_forcefully(self._stream)
            return Closed(exc.reason.code, exc.reason.reason or "")

    async def drop(self) -> None:
        await trio.aclose_forcefully(self.ws._stream)


class TrioWebsocket(Peer):
    name = "trio-websocket"
    backend = "trio"
    # A message is one event of wsproto, with no way to say that it is not the last.
    sends_fragments = False

    @asynccontextmanager
    async def connect(self, url: str, options: Options) -> AsyncGenerator[End, None]:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        assert host is not None
        assert port is not None
        # `open_websocket_url` leaves the socket of a rejected connection open, and out of reach.
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
        if options.tls:
            stream = await trio.open_ssl_over_tcp_stream(
                host, port, ssl_context=options.tls.client, https_compatible=True
            )
        else:
            stream = await trio.open_tcp_stream(host, port)
        refused: ConnectionRejected | None = None
        try:
            async with trio.open_nursery() as nursery:
                ws = await trio_websocket.wrap_client_stream(
                    nursery,
                    stream,
                    parts.netloc,
                    url.removeprefix(f"{parts.scheme}://{parts.netloc}") or "/",
                    subprotocols=options.subprotocols,
                    extra_headers=_raw(options.headers),
                    max_message_size=options.max_size,
                )
                yield TrioWebsocketEnd(ws, list(ws.handshake_headers), stream)
                await ws.aclose()
        except BaseExceptionGroup as group:
            if not isinstance(group.exceptions[0], ConnectionRejected):
                raise
            refused = group.exceptions[0]
        finally:
            await trio.aclose_forcefully(stream)
        if refused is not None:
            headers = [(name.decode(), value.decode()) for name, value in refused.headers]
            raise Refused(refused.status_code, headers, refused.body)

    @asynccontextmanager
    async def serve(self, options: Options) -> AsyncGenerator[Listening, None]:
        reject = options.reject

        async def handle(request: trio_websocket.WebSocketRequest) -> None:
            if reject is not None:
                assert isinstance(reject.body, bytes)
                await request.reject(
                    reject.status, extra_headers=_raw(reject.headers), body=reject.body
                )
                return
            common = [
                name for name in request.proposed_subprotocols if name in options.subprotocols
            ]
            ws = await request.accept(
                subprotocol=common[0] if common else None, extra_headers=_raw(options.headers)
            )
            await listening.hold(TrioWebsocketEnd(ws, request.headers))

        async with trio.open_nursery() as nursery:
            server: trio_websocket.WebSocketServer = await nursery.start(
                partial(
                    trio_websocket.serve_websocket,
                    handle,
                    "127.0.0.1",
                    0,
                    options.tls.server if options.tls else None,
                    max_message_size=options.max_size,
                )
            )
            listening = Listening(server.port, options.tls)
            try:
                yield listening
            finally:
                listening.over.set()
                nursery.cancel_scope.cancel()


def _raw(headers: object) -> Headers:
    assert isinstance(headers, (list, tuple))
    return [(name.encode(), value.encode()) for name, value in headers]
