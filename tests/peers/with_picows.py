"""picows itself: frames and nothing more, the rest is its user's."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import picows
from picows import WSFrame, WSListener, WSMsgType, WSTransport

from .peer import HEADER, Closed, Data, End, Listening, Options, Peer, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence


class Listener(WSListener):
    """Collects what comes, and answers a Close as the documentation of picows does."""

    def __init__(self) -> None:
        self.came = anyio.Event()
        self.messages: list[list[Data]] = []
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []
        self.over = False
        self._pieces: list[bytes] = []
        self._kind = WSMsgType.BINARY

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        payload = frame.get_payload_as_bytes()
        if frame.msg_type == WSMsgType.PING:
            self.pings.append(payload)
            transport.send_pong(payload)
        elif frame.msg_type == WSMsgType.PONG:
            self.pongs.append(payload)
        elif frame.msg_type == WSMsgType.CLOSE:
            if not transport.is_close_frame_sent:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            self._on_data(frame, payload)
        self._announce()

    def _on_data(self, frame: WSFrame, payload: bytes) -> None:
        if frame.msg_type != WSMsgType.CONTINUATION:
            self._kind = frame.msg_type
            self._pieces = []
        self._pieces.append(payload)
        if frame.fin:
            text = self._kind == WSMsgType.TEXT
            self.messages.append([p.decode() if text else p for p in self._pieces])

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.over = True
        self._announce()

    def _announce(self) -> None:
        came, self.came = self.came, anyio.Event()
        came.set()


class PicowsEnd(End):
    def __init__(self, transport: WSTransport, listener: Listener, client: bool) -> None:
        came = transport.response if client else transport.request
        super().__init__(
            transport.response.headers.get("Sec-WebSocket-Protocol"),
            came.headers.get(HEADER),
            transport.request.path.decode(),
        )
        self.transport = transport
        self.listener = listener
        self.pings = listener.pings

    async def send(self, data: Data) -> None:
        await self.send_fragments([data])

    async def send_fragments(self, pieces: Sequence[Data]) -> None:
        for index, piece in enumerate(pieces):
            kind = WSMsgType.TEXT if isinstance(piece, str) else WSMsgType.BINARY
            self.transport.send(
                kind if index == 0 else WSMsgType.CONTINUATION,
                piece,
                fin=index == len(pieces) - 1,
            )

    async def receive(self) -> list[Data]:
        while not self.listener.messages:
            assert not self.listener.over
            await self.listener.came.wait()
        return self.listener.messages.pop(0)

    async def ping(self, payload: bytes) -> None:
        self.transport.send_ping(payload)
        while payload not in self.listener.pongs:
            await self.listener.came.wait()

    async def close(self, code: int | None, reason: str) -> None:
        assert code is not None
        # Its enumeration has no codes of applications, but any number will do.
        self.transport.send_close(code, reason.encode())  # type: ignore[arg-type]
        await self.transport.wait_disconnected()

    async def closed(self) -> Closed:
        await self._disconnected()
        # None if there was none, whatever its annotation says.
        handshake: Any = self.transport.close_handshake
        if handshake is None or handshake.recv is None:
            return Closed(None, None)
        return Closed(int(handshake.recv.code), handshake.recv.reason or "")

    async def disconnect(self) -> None:
        self.transport.disconnect()
        await self._disconnected()

    async def _disconnected(self) -> None:
        # It raises what a client has failed the connection for.
        with suppress(picows.WSProtocolError):
            await self.transport.wait_disconnected()

    async def drop(self) -> None:
        self.transport.underlying_transport.abort()


class Picows(Peer):
    name = "picows"
    shows_fragments = True
    shows_pings = True
    undoes_chunks = False

    def lost(self, role: str) -> Closed:
        return Closed(None, None)

    @asynccontextmanager
    async def connect(self, url: str, options: Options) -> AsyncGenerator[End, None]:
        headers = list(options.headers)
        if options.subprotocols:
            headers.append(("Sec-WebSocket-Protocol", ", ".join(options.subprotocols)))
        try:
            transport, listener = await picows.ws_connect(
                Listener,
                url,
                ssl_context=options.tls.client if options.tls else None,
                enable_auto_pong=False,
                max_frame_size=options.max_size,
                extra_headers=headers,
            )
        except picows.WSInvalidStatusError as exc:
            assert exc.response is not None
            raise Refused(
                exc.response.status.value, list(exc.response.headers.items()), exc.raw_body
            ) from None
        assert isinstance(listener, Listener)
        end = PicowsEnd(transport, listener, client=True)
        try:
            yield end
        finally:
            await end.disconnect()

    @asynccontextmanager
    async def serve(self, options: Options) -> AsyncGenerator[Listening, None]:
        reject = options.reject
        ends: list[PicowsEnd] = []
        async with anyio.create_task_group() as tasks:

            class ServerListener(Listener):
                def on_ws_connected(self, transport: WSTransport) -> None:
                    ends.append(PicowsEnd(transport, self, client=False))
                    tasks.start_soon(listening.hold, ends[0])

            def accept(
                request: picows.WSUpgradeRequest,
            ) -> picows.WSUpgradeResponseWithListener:
                if reject is not None:
                    assert isinstance(reject.body, bytes)
                    fields = [(str(name), str(value)) for name, value in reject.headers]
                    refusal = picows.WSUpgradeResponse.create_error_response(
                        reject.status, reject.body, fields
                    )
                    return picows.WSUpgradeResponseWithListener(refusal, None)
                headers = list(options.headers)
                offered = request.headers.get("Sec-WebSocket-Protocol", "")
                for subprotocol in offered.split(","):
                    if subprotocol.strip() in options.subprotocols:
                        headers.append(("Sec-WebSocket-Protocol", subprotocol.strip()))
                        break
                response = picows.WSUpgradeResponse.create_101_response(headers)
                return picows.WSUpgradeResponseWithListener(response, ServerListener())

            server = await picows.ws_create_server(
                accept,
                "127.0.0.1",
                0,
                ssl=options.tls.server if options.tls else None,
                enable_auto_pong=False,
                max_frame_size=options.max_size,
            )
            listening = Listening(server.sockets[0].getsockname()[1], options.tls)
            try:
                yield listening
            finally:
                listening.over.set()
                for end in ends:
                    await end.disconnect()
                server.close()
                await server.wait_closed()
