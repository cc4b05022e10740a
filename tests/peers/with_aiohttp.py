"""aiohttp."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import WSMsgType, web

from .peer import HEADER, Closed, Data, End, Listening, Options, Peer, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_ENDS = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


class AiohttpEnd(End):
    def __init__(
        self,
        ws: aiohttp.ClientWebSocketResponse | web.WebSocketResponse,
        transport: Any,
        subprotocol: str | None,
        header: str | None,
        target: str | None = None,
    ) -> None:
        super().__init__(subprotocol, header, target)
        self.ws = ws
        self._transport = transport

    async def send(self, data: Data) -> None:
        if isinstance(data, str):
            await self.ws.send_str(data)
        else:
            await self.ws.send_bytes(data)

    async def receive(self) -> list[Data]:
        message = await self.ws.receive()
        assert message.type in (WSMsgType.TEXT, WSMsgType.BINARY), message
        return [message.data]

    async def close(self, code: int | None, reason: str) -> None:
        assert code is not None
        await self.ws.close(code=code, message=reason.encode())

    async def closed(self) -> Closed:
        while not self.ws.closed:
            message = await self.ws.receive()
            if message.type is WSMsgType.CLOSE:
                return Closed(message.data, message.extra)
            if message.type in _ENDS:
                break
        # The reason of the answer to its own Close is not shown.
        return Closed(self.ws.close_code, None)

    async def drop(self) -> None:
        self._transport.abort()


class Aiohttp(Peer):
    name = "aiohttp"
    # Its writer always sets FIN.
    sends_fragments = False
    # It takes pongs without a word, or leaves all pings to be answered by hand.
    sends_pings = False
    compresses = True
    # The body goes with the connection when the handshake fails.
    shows_refusal_body = False

    def echo(self, code: int, reason: str) -> Closed:
        # It closes with its default code, whatever came.
        return Closed(1000, "")

    def answered(self, role: str, code: int, reason: str) -> Closed:
        return Closed(code, None)

    def lost(self, role: str) -> Closed:
        return Closed(1006, None)

    @asynccontextmanager
    async def connect(self, url: str, options: Options) -> AsyncGenerator[End, None]:
        deflate = options.compression
        async with aiohttp.ClientSession() as session:
            try:
                ws = await session.ws_connect(
                    url,
                    protocols=options.subprotocols,
                    headers=dict(options.headers),
                    # It refuses a message of just that size already.
                    max_msg_size=options.max_size + 1,
                    # The only parameter it offers.
                    compress=deflate.server_max_window_bits if deflate else 0,
                    ssl=options.tls.client if options.tls else True,
                )
            except aiohttp.WSServerHandshakeError as exc:
                raise Refused(exc.status, list((exc.headers or {}).items())) from None
            async with ws:
                response = ws._response
                assert response.connection is not None
                transport = response.connection.transport
                yield AiohttpEnd(ws, transport, ws.protocol, response.headers.get(HEADER))

    @asynccontextmanager
    async def serve(self, options: Options) -> AsyncGenerator[Listening, None]:
        reject = options.reject
        connections: list[web.WebSocketResponse] = []

        async def handle(request: web.Request) -> web.StreamResponse:
            if reject is not None:
                headers = [(str(name), str(value)) for name, value in reject.headers]
                return web.Response(status=reject.status, headers=headers, body=reject.body)
            ws = web.WebSocketResponse(
                protocols=options.subprotocols,
                compress=options.compression is not None,
                max_msg_size=options.max_size + 1,
            )
            ws.headers.update(options.headers)
            await ws.prepare(request)
            end = AiohttpEnd(
                ws,
                request.transport,
                ws.ws_protocol,
                request.headers.get(HEADER),
                request.raw_path,
            )
            connections.append(ws)
            await listening.hold(end)
            return ws

        application = web.Application()
        application.router.add_get("/{path:.*}", handle)
        runner = web.AppRunner(application, shutdown_timeout=5)
        await runner.setup()
        try:
            tls = options.tls
            await web.TCPSite(
                runner, "127.0.0.1", 0, ssl_context=tls.server if tls else None
            ).start()
            listening = Listening(runner.addresses[0][1], tls)
            try:
                yield listening
            finally:
                # Once it cleans up, it reads no more, not even the answers to its Close.
                for ws in connections:
                    await ws.close()
                listening.over.set()
        finally:
            await runner.cleanup()
