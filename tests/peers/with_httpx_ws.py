"""httpx-ws, which is a client only."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
import wsproto.events
from httpx_ws import (
    AsyncWebSocketSession,
    WebSocketDisconnect,
    WebSocketNetworkError,
    WebSocketUpgradeError,
    aconnect_ws,
)

from .peer import HEADER, Closed, Data, End, Options, Peer, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence


class HttpxWsEnd(End):
    def __init__(self, ws: AsyncWebSocketSession) -> None:
        assert ws.response is not None
        super().__init__(ws.subprotocol, ws.response.headers.get(HEADER))
        self.ws = ws

    async def send(self, data: Data) -> None:
        if isinstance(data, str):
            await self.ws.send_text(data)
        else:
            await self.ws.send_bytes(data)

    async def send_fragments(self, pieces: Sequence[Data]) -> None:
        for index, piece in enumerate(pieces):
            last = index == len(pieces) - 1
            if isinstance(piece, str):
                await self.ws.send(wsproto.events.TextMessage(piece, message_finished=last))
            else:
                await self.ws.send(wsproto.events.BytesMessage(piece, message_finished=last))

    async def receive(self) -> list[Data]:
        event = await self.ws.receive()
        assert isinstance(event, wsproto.events.Message)
        return [event.data if isinstance(event.data, str) else bytes(event.data)]

    async def ping(self, payload: bytes) -> None:
        await (await self.ws.ping(payload)).wait()

    async def close(self, code: int | None, reason: str) -> None:
        assert code is not None
        await self.ws.close(code, reason)

    async def closed(self) -> Closed:
        try:
            while True:
                await self.ws.receive()
        except WebSocketDisconnect as exc:
            # A Close is answered when the session is left.
            await self.ws.close()
            return Closed(exc.code, exc.reason)
        except WebSocketNetworkError:
            return Closed(None, None)

    async def drop(self) -> None:
        await self.ws.stream.aclose()


class HttpxWs(Peer):
    name = "httpx-ws"
    roles = ("client",)
    # There is no limit to what it joins.
    limits_size = False
    # It closes the response before it raises, without having read the body.
    shows_refusal_body = False

    def echo(self, code: int, reason: str) -> Closed:
        # It closes with its default code, whatever came.
        return Closed(1000, "")

    def answered(self, role: str, code: int, reason: str) -> Closed:
        # It closes TCP right behind its Close.
        return Closed(None, None)

    def lost(self, role: str) -> Closed:
        return Closed(None, None)

    @asynccontextmanager
    async def connect(self, url: str, options: Options) -> AsyncGenerator[End, None]:
        tls = options.tls.client if options.tls else False
        async with httpx.AsyncClient(verify=tls, trust_env=False) as client:
            try:
                ws: AsyncWebSocketSession
                async with aconnect_ws(
                    url,
                    client,
                    subprotocols=list(options.subprotocols) or None,
                    headers=dict(options.headers),
                ) as ws:
                    yield HttpxWsEnd(ws)
            except WebSocketUpgradeError as exc:
                response = exc.response
                raise Refused(response.status_code, list(response.headers.multi_items())) from None
