"""websockets, and the module of picows that has the same interface."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import picows.websockets
import websockets.asyncio.client
import websockets.asyncio.server
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)

from .peer import HEADER, Closed, Data, End, Listening, Options, Peer, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence


class WebsocketsEnd(End):
    def __init__(self, ws: Any, lost: type[Exception]) -> None:
        client = isinstance(ws, (websockets.ClientConnection, picows.websockets.ClientConnection))
        came = ws.response if client else ws.request
        super().__init__(ws.subprotocol, came.headers.get(HEADER), ws.request.path)
        self.ws = ws
        self._lost = lost

    async def send(self, data: Data) -> None:
        await self.ws.send(data)

    async def send_fragments(self, pieces: Sequence[Data]) -> None:
        await self.ws.send(pieces)

    async def receive(self) -> list[Data]:
        return [fragment async for fragment in self.ws.recv_streaming()]

    async def ping(self, payload: bytes) -> None:
        await (await self.ws.ping(payload))

    async def close(self, code: int | None, reason: str) -> None:
        await self.ws.close(code, reason)

    async def closed(self) -> Closed:
        try:
            while True:
                await self.ws.recv()
        except self._lost:
            await self.ws.wait_closed()
        # picows has None for no reason.
        return Closed(self.ws.close_code, self.ws.close_reason or "")

    async def drop(self) -> None:
        self.ws.transport.abort()


class Websockets(Peer):
    name = "websockets"
    shows_fragments = True
    compresses = True
    wants_common_subprotocol = True

    # Two libraries have these, with the same interface.
    connection_closed: type[Exception] = websockets.ConnectionClosed
    invalid_status: type[Exception] = websockets.InvalidStatus
    client: Any = staticmethod(websockets.asyncio.client.connect)
    server: Any = staticmethod(websockets.asyncio.server.serve)

    @staticmethod
    def fields(headers: Any) -> list[tuple[str, str]]:
        """Return all fields, those of the same name as well."""
        return list(headers.raw_items())

    def _client_options(self, options: Options) -> dict[str, Any]:
        deflate = options.compression
        if deflate is None:
            return {"compression": None}
        offer = ClientPerMessageDeflateFactory(
            server_no_context_takeover=deflate.server_no_context_takeover,
            client_no_context_takeover=deflate.client_no_context_takeover,
            server_max_window_bits=_unless_15(deflate.server_max_window_bits),
            client_max_window_bits=_unless_15(deflate.client_max_window_bits) or True,
        )
        return {"compression": None, "extensions": [offer]}

    def _server_options(self, options: Options) -> dict[str, Any]:
        deflate = options.compression
        if deflate is None:
            return {"compression": None}
        answer = ServerPerMessageDeflateFactory(
            server_no_context_takeover=deflate.server_no_context_takeover,
            client_no_context_takeover=deflate.client_no_context_takeover,
            server_max_window_bits=_unless_15(deflate.server_max_window_bits),
            client_max_window_bits=_unless_15(deflate.client_max_window_bits),
        )
        return {"compression": None, "extensions": [answer]}

    @asynccontextmanager
    async def connect(self, url: str, options: Options) -> AsyncGenerator[End, None]:
        try:
            ws = await self.client(
                url,
                subprotocols=options.subprotocols or None,
                additional_headers=dict(options.headers),
                max_size=options.max_size,
                ssl=options.tls.client if options.tls else None,
                proxy=None,
                **self._client_options(options),
            )
        except self.invalid_status as exc:
            response: Any = exc.response  # type: ignore[attr-defined]
            body = bytes(response.body) if self.shows_refusal_body else None
            raise Refused(response.status_code, self.fields(response.headers), body) from None
        async with ws:
            yield WebsocketsEnd(ws, self.connection_closed)

    @asynccontextmanager
    async def serve(self, options: Options) -> AsyncGenerator[Listening, None]:
        reject = options.reject

        async def handle(ws: Any) -> None:
            await listening.hold(WebsocketsEnd(ws, self.connection_closed))

        def process_request(ws: Any, request: Any) -> Any:
            if reject is None:
                return None
            assert isinstance(reject.body, bytes)
            response = ws.respond(reject.status, reject.body.decode())
            for name, value in reject.headers:
                response.headers[name] = value
            return response

        def process_response(ws: Any, request: Any, response: Any) -> Any:
            for name, value in options.headers:
                response.headers[name] = value
            return response

        async with self.server(
            handle,
            "127.0.0.1",
            0,
            subprotocols=options.subprotocols or None,
            max_size=options.max_size,
            ssl=options.tls.server if options.tls else None,
            process_request=process_request,
            process_response=process_response,
            **self._server_options(options),
        ) as server:
            listening = Listening(server.sockets[0].getsockname()[1], options.tls)
            try:
                yield listening
            finally:
                listening.over.set()


class PicowsWebsockets(Websockets):
    name = "picows-websockets"
    # Its transport is out of reach.
    can_drop = False
    # The response's body is empty, whatever came.
    shows_refusal_body = False
    wants_common_subprotocol = False

    connection_closed = picows.websockets.ConnectionClosed
    invalid_status = picows.websockets.InvalidStatus
    client = staticmethod(picows.websockets.connect)
    server = staticmethod(picows.websockets.serve)

    @staticmethod
    def fields(headers: Any) -> list[tuple[str, str]]:
        return list(headers.items())

    def lost(self, role: str) -> Closed:
        # Not 1006 (RFC 6455 section 7.1.5), as websockets has it.
        return Closed(None, "")

    def _client_options(self, options: Options) -> dict[str, Any]:
        # It has no options for permessage-deflate.
        return {"compression": "deflate" if options.compression else None}

    _server_options = _client_options


def _unless_15(bits: int) -> int | None:
    return bits if bits < 15 else None
