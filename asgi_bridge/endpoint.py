"""Handlers as an ASGI application: a connection of an ASGI server as a channel."""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import anyio
from anyio import TypedAttributeLookupError
from anyio.abc import SocketAttribute

from asyncwebsockets import (
    Channel,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionState,
    Reject,
    Response,
    Settings,
    UnsupportedOperation,
    Websocket,
)
from asyncwebsockets.codec import size_of
from asyncwebsockets.decision import decide
from asyncwebsockets.handshake import accept_headers, normalize_headers
from asyncwebsockets.pace import Pace

from .messages import (
    Disconnect,
    accept_message,
    close_message,
    denial_body_message,
    denial_start_message,
    read_received,
    send_message,
)
from .scope import AsgiRequest, request_from_scope, takes_denials

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncwebsockets import Request
    from asyncwebsockets.events import AcceptConnection, Event

    from .messages import AsgiMessage, Receive, Scope, Send

    Handler = Callable[[Websocket], Awaitable[object]]
    Filter = Callable[[Request], Awaitable[object]]

__all__ = ["AsgiChannel", "WebsocketApp"]

logger: logging.Logger = logging.getLogger("asyncwebsockets")

# What needs no conversion.
_PLAIN = (str, bytes)

# What a message costs of the read-ahead at least.
_MESSAGE_COST = 128

# The seconds a Close may take that is sent on cancellation: none but those of the scheduler.
_NO_WAIT = 0.1


class AsgiChannel(Channel):
    """A channel over an ASGI server's connection that has been accepted.

    The server owns the frames: messages come and go whole, there are no pings, and a closing
    handshake is the server's own.

    One task at a time calls `receive` of the server, whichever needs something first; those
    that wait for what it brings are told after each message.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        settings: Settings,
        request: AsgiRequest,
        response: Response,
        subprotocol: str | None = None,
    ) -> None:
        super().__init__(
            settings=settings, request=request, response=response, subprotocol=subprotocol
        )
        self._receive_message = receive
        self._send_message = send
        # Messages and their sizes.
        self._queue: deque[tuple[Event, int]] = deque()
        self._queued = 0
        self._reading = False
        # There only while a task waits for it.
        self._turn: anyio.Event | None = None
        self._ended = False
        self._finishing = False
        self._finished = anyio.Event()
        # It need not give way to others: what sends has done so as often as is due.
        self._sending = anyio.Lock(fast_acquire=True)
        # The pieces of a message that is sent in several.
        self._pieces: list[Any] = []
        self._pieces_size = 0
        self._pace = Pace.current()
        # What `counts` returns, but for pings.
        self._bytes_received = self._bytes_sent = 0
        self._messages_received = self._messages_sent = 0

    # Receiving

    async def receive(self) -> Event:
        """Return the next message."""
        if self._pace.due(self._queue[0][1] if self._queue else 0):
            await self._pace.give_way()
        while not self._queue:
            if self._ended or self._closed_locally:
                raise self._ending()
            await self._read()
        event, size = self._queue.popleft()
        full = self._full
        self._queued -= max(size, _MESSAGE_COST)
        if full and not self._full:
            self._announce_turn()
        return event

    @property
    def _full(self) -> bool:
        limit = self.settings.max_read_ahead
        return limit is not None and self._queued >= limit and not self._closed_locally

    async def _read(self) -> None:
        """Read a message, or wait until another task has, or there is room for one."""
        if self._reading or self._full:
            self._turn = self._turn or anyio.Event()
            await self._turn.wait()
            return
        self._reading = True
        try:
            self.take(await self._receive_message())
        finally:
            self._reading = False
            self._announce_turn()

    def take(self, message: AsgiMessage) -> None:
        """Handle a message from the server."""
        if self._ended:
            return
        event = read_received(message)
        if isinstance(event, Disconnect):
            self._disconnected(event)
        elif not self._closed_locally:
            size = size_of(event.data)
            self._messages_received += 1
            self._bytes_received += size
            self._queue.append((event, size))
            self._queued += max(size, _MESSAGE_COST)

    def _announce_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.set()

    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""
        while not self._ended:
            await self._read()

    # Sending

    def begin_send(self, data: Any) -> Awaitable[None] | Literal[False] | None:
        """Return what sends a message, if nothing is in its way but the server."""
        if type(data) not in _PLAIN or self._state is not ConnectionState.OPEN or self._pieces:
            return False
        # Text that is none is found out here.
        size = size_of(data)
        return False if self._pace.due(size) else self._send_whole(data, size)

    async def send(self, data: str | bytes, final: bool) -> None:
        """Send a message; pieces of one are joined and sent with the last."""
        if self._state is not ConnectionState.OPEN:
            raise self._unsendable()
        # The frames are the server's, which would find out too late.
        size = size_of(data)
        if not final or self._pieces:
            self._check_joined(self._pieces_size + size)
            self._pieces.append(data)
            self._pieces_size += size
            if not final:
                return
            data = data[:0].join(self._pieces)
            self._drop_pieces()
            size = size_of(data)
        await self._send_whole(data, size)

    def _check_joined(self, size: int) -> None:
        limit = self.settings.max_message_size
        if limit is not None and size > limit:
            raise ValueError(
                "expected a fragmented message of at most max_message_size="
                f"{limit} bytes, as an ASGI server sends it whole, got {size}"
            )

    async def _send_whole(self, data: str | bytes, size: int) -> None:
        async with self._sending:
            if self._state is not ConnectionState.OPEN:
                raise self._unsendable()
            try:
                await self._send_message(send_message(data))
            except (OSError, RuntimeError) as exc:
                # The specification has OSError; some raise RuntimeError for the same. What the peer
                # has sent before, and how it has ended, the server has still to say.
                if self._state is ConnectionState.OPEN:
                    self._state = ConnectionState.REMOTE_CLOSING
                    self._drop_pieces()
                    self.on_end()
                raise self._unsendable() from exc
        self._messages_sent += 1
        self._bytes_sent += size

    def _unsendable(self) -> ConnectionClosed:
        if self._state is ConnectionState.REMOTE_CLOSING:
            return ConnectionClosedError(1006, "the connection is gone", self)
        return super()._unsendable()

    async def ping(self, payload: bytes | None) -> float:
        """Raise UnsupportedOperation: pings are the server's."""
        raise UnsupportedOperation("an ASGI server sends its pings itself")

    @property
    def latency(self) -> float | None:
        """Raises UnsupportedOperation: pings are the server's."""
        raise UnsupportedOperation("an ASGI server sends its pings itself")

    @property
    def counts(self) -> tuple[int, int, int, int, int, int]:
        """The bytes of messages and the messages so far, and no pings: those are the server's."""
        return (
            self._bytes_received,
            self._bytes_sent,
            self._messages_received,
            self._messages_sent,
            0,
            0,
        )

    # Ending

    async def close(self, code: int, reason: str) -> None:
        """Have the server close the connection, and wait until it has."""
        opened = self._state is ConnectionState.OPEN
        self._closed_locally = True
        if opened:
            self._state = ConnectionState.LOCAL_CLOSING
        self._drop_queue()
        self._announce_turn()
        self.on_end()
        if self._finishing:
            await self._finished.wait()
            return
        self._finishing = True
        try:
            with anyio.move_on_after(self.settings.close_timeout):
                if opened:
                    await self._send_close(code, reason)
                await self.wait_closed()
            self._lost("the server did not say within close_timeout how the connection ended")
        finally:
            self._lost("aborted by this side")
            self._finished.set()

    async def _send_close(self, code: int, reason: str) -> None:
        async with self._sending:
            if self._ended:
                return
            try:
                await self._send_message(close_message(code, reason))
            except (OSError, RuntimeError):
                self._lost("the connection is gone")

    async def fail(self, code: int, reason: str) -> None:
        """End the connection as broken: Close with this code, then no more reading."""
        if self._ended:
            return
        opened = self._state is ConnectionState.OPEN
        self._drop_queue()
        self._state = ConnectionState.LOCAL_CLOSING
        with anyio.move_on_after(self.settings.close_timeout):
            if opened:
                await self._send_close(code, reason)
        self._record(code, reason)
        self._end()

    async def abort(self, code: int | None = None) -> None:
        """Have the server close the connection, and wait for nothing.

        There is no way to have it cut: without a code, Close has 1011.
        """
        opened = self._state is ConnectionState.OPEN
        self._closed_locally = True
        self._drop_queue()
        if opened and not self._sending.locked():
            self._state = ConnectionState.LOCAL_CLOSING
            with anyio.move_on_after(_NO_WAIT, shield=True):
                await self._send_close(code if code is not None else 1011, "")
        self._lost("aborted by this side")

    def _disconnected(self, event: Disconnect) -> None:
        if event.code == 1006:
            self._lost(event.reason or "the connection was lost")
            return
        self._code, self._reason = event.code, event.reason
        self._end()

    def _lost(self, reason: str) -> None:
        """Note that the connection has ended without a Close (RFC 6455 section 7.1.5)."""
        if not self._ended:
            self._record(1006, reason)
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._duration = self.statistics.duration
        self._state = ConnectionState.CLOSED
        self._drop_pieces()
        self._announce_turn()
        self.on_end()

    def _drop_queue(self) -> None:
        self._queue.clear()
        self._queued = 0

    def _drop_pieces(self) -> None:
        self._pieces.clear()
        self._pieces_size = 0

    # What it is

    def extra(self, attribute: Any, default: object = ...) -> Any:
        """Return the addresses as anyio's attributes; there is no stream to ask for more."""
        known = {
            SocketAttribute.local_address: self.local_address,
            SocketAttribute.remote_address: self.remote_address,
        }
        if known.get(attribute) is not None:
            return known[attribute]
        if default is not ...:
            return default
        if attribute is SocketAttribute.raw_socket:
            raise UnsupportedOperation("an ASGI server keeps its sockets to itself")
        raise TypedAttributeLookupError("an ASGI server tells no more than the scope has")


class WebsocketApp:
    """An ASGI application that runs ``handler(websocket)`` for each WebSocket connection.

    For Starlette's ``Mount`` and ``WebSocketRoute``, for FastAPI's ``mount``, or for an ASGI
    server as it is. Handler and filter are those of :func:`asyncwebsockets.serve`; the request
    they see is an :class:`AsgiRequest`, the part of the path that belongs to the mount taken
    off.

    What the filter rejects is answered by a denial response where the server has that
    extension, else the server answers 403. The connection is closed with 1000 when the handler
    returns and with 1011 when it raises; the exception goes on to the server, which logs it.
    The connection's own ``ConnectionClosed`` is its normal end; its ``UnexpectedMessage`` closes
    it with 1003, or 1007 for what is not JSON, and does not go on.

    The server owns the frames: it sends the pings, joins the fragments and does the closing
    handshake, so the settings for these are its own. Fragments that the handler sends are
    joined, up to ``max_message_size``; ``ping``, ``latency`` and ``raw_socket`` raise
    :class:`UnsupportedOperation`.

    Args:
        handler: an async function that gets the :class:`Websocket`.
        filter: as in :func:`asyncwebsockets.open_websocket_server`.
        settings: of these, ``open_timeout`` (for the filter), ``close_timeout``,
            ``max_message_size``, ``max_read_ahead`` and ``max_handshake_size`` apply.
    """

    def __init__(
        self, handler: Handler, filter: Filter | None = None, *, settings: Settings | None = None
    ) -> None:
        self._handler = handler
        self._filter = filter
        self._settings = settings or Settings()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one connection.

        Raises:
            ValueError: the scope is of another type than websocket, http or lifespan.
        """
        match scope["type"]:
            case "websocket":
                await self._serve(scope, receive, send)
            case "http":
                await _upgrade_required(send)
            case "lifespan":
                await _live(receive, send)
            case other:
                raise ValueError(
                    f"expected a scope of type websocket, http or lifespan, got {other!r}"
                )

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        if message["type"] != "websocket.connect":
            logger.debug("the client left before its request was looked at")
            return
        request = request_from_scope(scope)
        early: list[AsgiMessage] = []
        decision = await self._decide(request, receive, early)
        if decision is None:
            logger.debug("the client left while the filter ran")
            return
        try:
            if isinstance(decision, Reject):
                logger.debug("the filter rejected a connection with %d", decision.status)
                await _reject(decision, scope, partial(_answer, send))
                return
            headers = _check_accept(decision)
            await _answer(send, accept_message(decision, headers))
        except _ClientLeft as exc:
            logger.debug("the client left before it was answered: %s", exc)
            return
        channel = AsgiChannel(
            receive,
            send,
            settings=self._settings,
            request=request,
            response=Response(101, headers),
            subprotocol=decision.subprotocol,
        )
        for message in early:
            channel.take(message)
        websocket = Websocket(channel)
        try:
            async with websocket:
                await self._handler(websocket)
        except Exception as exc:
            if not websocket.is_peers_doing(exc):
                raise
            logger.debug("the handler of %r was ended by its peer: %s", websocket, exc)

    async def _decide(
        self, request: AsgiRequest, receive: Receive, early: list[AsgiMessage]
    ) -> AcceptConnection | Reject | None:
        """Ask the filter; None if the client has left meanwhile."""
        if self._filter is None:
            return decide(True, request)
        result: object = None
        error: Exception | None = None
        left = answered = False

        async def watch() -> None:
            nonlocal left
            room = self._settings.max_handshake_size
            while room is None or room > 0:
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    left = True
                    task_group.cancel_scope.cancel()
                    return
                # Some servers hand on what the client sends before it is accepted.
                early.append(message)
                if room is not None:
                    room -= max(len(message.get("bytes") or message.get("text") or ()), 1)

        with anyio.move_on_after(self._settings.open_timeout):
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(watch)
                try:
                    result = await self._filter(request)
                    answered = True
                except Exception as exc:
                    # Raised outside the group, which would wrap it.
                    error = exc
                task_group.cancel_scope.cancel()
        if error is not None:
            raise error
        if answered:
            return decide(result, request)
        return None if left else Reject(503)


class _ClientLeft(Exception):
    """The server refused an answer; the user's code may raise an OSError of its own."""


async def _answer(send: Send, message: AsgiMessage) -> None:
    try:
        await send(message)
    except OSError as exc:
        raise _ClientLeft(str(exc)) from exc


def _check_accept(accept: AcceptConnection) -> list[tuple[bytes, bytes]]:
    if accept.extensions:
        raise UnsupportedOperation("an ASGI server negotiates the extensions itself")
    return accept_headers(accept)


async def _reject(reject: Reject, scope: Scope, send: Send) -> None:
    if not takes_denials(scope):
        await send(close_message())
        return
    headers = normalize_headers(reject.headers)
    names = {name.lower() for name, _ in headers}
    body = reject.body
    if (
        isinstance(body, bytes)
        and not names & {b"content-length", b"transfer-encoding"}
        and reject.status not in (204, 304)
    ):
        headers.append((b"content-length", str(len(body)).encode("ascii")))
    await send(denial_start_message(reject.status, headers))
    if not isinstance(body, bytes):
        async with reject.pieces() as pieces:
            async for piece in pieces:
                await send(denial_body_message(piece, more_body=True))
        body = b""
    await send(denial_body_message(body, more_body=False))


async def _upgrade_required(send: Send) -> None:
    body = b"expected a WebSocket handshake\n"
    headers = [
        (b"upgrade", b"websocket"),
        (b"sec-websocket-version", b"13"),
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode("ascii")),
    ]
    await send({"type": "http.response.start", "status": 426, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _live(receive: Receive, send: Send) -> None:
    """Take part in a lifespan in which there is nothing to do."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
