"""`Websocket`: the object users hold, whatever carries the connection."""

from __future__ import annotations

import json
import sys
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import anyio
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint_if_cancelled
from wsproto.connection import ConnectionState

from ._bell import Bell
from ._front import Front
from ._loop import Waiter
from .codec import is_close_code, size_of
from .errors import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedLocally,
    ConnectionClosedOK,
    InvalidJSON,
    UnexpectedMessage,
)
from .events import BytesMessage, Event, Message, TextMessage
from .pace import Pace

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
    from types import TracebackType

    from wsproto.extensions import Extension

    from ._shared import Shared
    from .channel import Channel
    from .events import Address, Request, Response
    from .observation import Statistics

__all__ = ["MessageStream", "MessageWriter", "Websocket"]

#: What can be sent as one message or piece.
Data: TypeAlias = "str | bytes | bytearray | memoryview[Any]"

T = TypeVar("T")

# Pieces shorter than that are joined to longer ones, that many at a time.
_SHORT = 1024

# The class in common would have isinstance go the long way of abstract classes.
_MESSAGES: tuple[type[Message[Any]], ...] = (BytesMessage, TextMessage)

# They say how a connection ended and are not sent (RFC 6455 section 7.4.1).
_UNSENDABLE_CODES = (1005, 1006, 1015)


def check_close(code: int, reason: str) -> int:
    """Return the close code to send for the one given.

    Raises:
        ValueError: the code may not be sent, or the reason has over 123 bytes in UTF-8.
    """
    if code in _UNSENDABLE_CODES:
        code = 1000
    if not is_close_code(code):
        raise ValueError(
            f"expected a close code of RFC 6455, IANA's registry or 3000 to 4999, got {code}"
        )
    size = len(reason.encode())
    if size > 123:
        raise ValueError(f"expected a reason of at most 123 bytes in UTF-8, got {size}")
    return code


class Websocket(Front):
    """An open WebSocket connection, of a client or a server.

    Iterate over it for its events; send with :meth:`send`; end it with :meth:`close`. Any
    number of tasks may send, one at a time may receive.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        # The pieces of a message whose end has not been received yet.
        self._pieces = _Pieces()
        # Whether the pieces still to come belong to a message that was left half read.
        self._skipping = False
        self._receiving = False
        self._idle = True
        limit = channel.settings.max_message_size
        self._limit = sys.maxsize if limit is None else limit
        # The task that has begun a fragmented message, its kind, and what rings at its end.
        self._owner: int | None = None
        self._fragments: type[TextMessage | BytesMessage] | None = None
        self._fragmenting = False
        self._released = Bell()
        channel.on_end = self._release

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.request.path} {self.state.name}>"

    # What it is

    @property
    def request(self) -> Request:
        """The opening handshake's request."""
        return self._channel.request

    @property
    def response(self) -> Response:
        """The server's answer to it, with status and header fields of the 101."""
        return self._channel.response

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol agreed on (RFC 6455 section 1.9), None for none."""
        return self._channel.subprotocol

    @property
    def extensions(self) -> Sequence[Extension]:
        """The extensions agreed on (RFC 6455 section 9)."""
        return self._channel.extensions

    @property
    def local_address(self) -> Address:
        """This side's address."""
        return self._channel.local_address

    @property
    def remote_address(self) -> Address:
        """The peer's address."""
        return self._channel.remote_address

    @property
    def raw_socket(self) -> socket.socket:
        """The socket below; for options, not to read, write or close.

        Raises:
            anyio.TypedAttributeLookupError: there is no socket below.
        """
        sock: socket.socket = self._channel.extra(SocketAttribute.raw_socket)
        return sock

    def extra(self, attribute: Any, default: object = ...) -> Any:
        """Return a typed attribute of the stream below, such as anyio's ``TLSAttribute``.

        Raises:
            anyio.TypedAttributeLookupError: there is none and no default was given.
        """
        return self._channel.extra(attribute, default)

    @property
    def state(self) -> ConnectionState:
        """Where the connection stands, OPEN, one of the CLOSING, or CLOSED."""
        return self._channel.state

    @property
    def close_code(self) -> int | None:
        """How the connection ended, None while it is open (RFC 6455 section 7.1.5).

        The code of the peer's Close, 1005 if that had none, 1006 if none came, or the code this
        side has failed the connection with.
        """
        return self._channel.close_code

    @property
    def close_reason(self) -> str | None:
        """The reason of the peer's Close, or what went wrong; None while it is open."""
        return self._channel.close_reason

    @property
    def latency(self) -> float | None:
        """The round trip in seconds of the last answered ping, None before the first."""
        return self._channel.latency

    @property
    def statistics(self) -> Statistics:
        """Bytes, messages and pings in each direction so far, and for how long it is open."""
        return self._channel.statistics

    # Receiving

    async def _receive_next(self) -> Event:
        try:
            return await self._receive()
        except ConnectionClosedOK:
            raise StopAsyncIteration from None
        except ConnectionClosedLocally:
            await self._channel.wait_closed()
            failure = self._channel.failure
            if failure is not None:
                raise self._error(failure.code, failure.reason) from None
            raise StopAsyncIteration from None

    async def receive(self) -> Event:
        """Return the next event: a whole message, a ping (already answered) or a pong.

        Raises:
            ConnectionClosedOK: a closing handshake has taken place.
            ConnectionClosedError: the connection was lost or failed; its code says how. A
                message over ``max_message_size`` fails it with 1009.
            ConnectionClosedLocally: this side has closed the connection.
            anyio.BusyResourceError: another task is receiving.
        """
        if self._idle:
            event = self._channel.begin_receive()
            if isinstance(event, Waiter):
                self._receiving, self._idle = True, False
                try:
                    event = await event
                finally:
                    self._receiving, self._idle = False, True
            if event is not None:
                return event
        return await self._receive()

    async def _receive(self) -> Event:
        self._begin_receiving()
        try:
            while True:
                event = await self._channel.receive()
                if not isinstance(event, _MESSAGES):
                    return event
                if self._skipping:
                    self._skipping = not event.message_finished
                    continue
                size = self._pieces.size + size_of(event.data)
                coming = 0 if event.frame_finished else self._channel.announced
                if size + coming > self._limit:
                    await self._refuse(size + coming)
                if event.message_finished and not self._pieces:
                    return event if event.frame_finished else type(event)(event.data)
                self._pieces.add(event.data, size)
                if event.message_finished:
                    pieces = self._pieces.take()
                    if isinstance(event, TextMessage):
                        return TextMessage("".join(pieces))
                    return BytesMessage(b"".join(pieces))
        finally:
            self._end_receiving()

    def _begin_receiving(self) -> None:
        """Let one task at a time receive."""
        if self._receiving:
            raise anyio.BusyResourceError("receiving from")
        self._receiving = True
        self._idle = False

    def _end_receiving(self) -> None:
        self._receiving = False
        self._idle = not (self._skipping or self._pieces)

    async def _refuse(self, size: int) -> None:
        self._pieces.take()
        reason = f"a message of {size} bytes or more, the limit is {self._limit}"
        await self._channel.fail(1009, reason)
        raise self._error(1009, reason)

    def _error(self, code: int, reason: str) -> ConnectionClosedError:
        return ConnectionClosedError(code, reason, self._channel)

    async def _receive_message(self) -> Message[Any]:
        while True:
            event = await self.receive()
            if isinstance(event, Message):
                return event

    async def receive_text(self) -> str:
        """Return the next message, which is to be text; pings and pongs are skipped.

        Raises:
            UnexpectedMessage: a binary message came.
            ConnectionClosed, anyio.BusyResourceError: as :meth:`receive`.
        """
        return expect_text(await self._receive_message(), self._channel)

    async def receive_bytes(self) -> bytes:
        """Return the next message, which is to be binary; pings and pongs are skipped.

        Raises:
            UnexpectedMessage: a text message came.
            ConnectionClosed, anyio.BusyResourceError: as :meth:`receive`.
        """
        return expect_bytes(await self._receive_message(), self._channel)

    async def receive_json(self) -> Any:
        """Return the next message, text or binary, parsed as JSON (RFC 8259).

        Raises:
            InvalidJSON: the message is not JSON, or nested too deeply for Python's parser.
            ConnectionClosed, anyio.BusyResourceError: as :meth:`receive`.
        """
        return expect_json(await self._receive_message(), self._channel)

    def iter_text(self) -> AsyncIterator[str]:
        """Iterate over the messages, each of which is to be text; ends as ``async for`` does.

        Raises:
            UnexpectedMessage: a binary message came.
            ConnectionClosedError, anyio.BusyResourceError: as :meth:`receive`.
        """
        return _Messages(self, expect_text)

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """Iterate over the messages, each of which is to be binary; ends as ``async for`` does.

        Raises:
            UnexpectedMessage: a text message came.
            ConnectionClosedError, anyio.BusyResourceError: as :meth:`receive`.
        """
        return _Messages(self, expect_bytes)

    @asynccontextmanager
    async def receive_stream(self) -> AsyncGenerator[MessageStream, None]:
        """Receive one message in bounded pieces, without a limit to its size.

        ``async with ws.receive_stream() as pieces: async for piece in pieces: ...``. What is
        left of the message when the block is left is dropped by the next call that receives.

        Raises:
            anyio.BusyResourceError: another task is receiving.
        """
        self._begin_receiving()
        stream = MessageStream(self)
        try:
            yield stream
        finally:
            stream.closed = True
            # What is left is no message.
            if stream.begun:
                self._skipping = not stream.finished
            self._end_receiving()

    async def next_piece(self, stream: MessageStream) -> str | bytes | None:
        """Return the next piece for a stream, None at the end of its message."""
        piece: str | bytes
        if self._pieces:
            # They were collected by a `receive` that was cancelled.
            stream.kept.extend(self._pieces.take())
        if stream.kept:
            piece = stream.kept.popleft()
            return piece
        while not stream.finished:
            try:
                event = await self._channel.receive()
            except ConnectionClosedOK as exc:
                if not stream.begun:
                    raise
                raise self._error(exc.code, "the connection ended before the message did") from None
            if not isinstance(event, Message):
                continue
            if self._skipping:
                self._skipping = not event.message_finished
            else:
                stream.finished = event.message_finished
                if event.data:
                    piece = event.data
                    return piece
        return None

    # Sending

    async def send(self, data: Data, final: bool = True) -> None:
        """Send a message, or with ``final=False`` a fragment of one (RFC 6455 section 5.4).

        Several tasks may send. The task that sent a fragment owns the message until it has
        sent the final one, and others wait. It waits while the peer does not read.

        Args:
            data: ``str`` for text; ``bytes``, ``bytearray`` or ``memoryview`` for binary.
            final: whether it ends the message.

        Raises:
            TypeError: the data is none of these, or of the other kind than the message begun.
            ValueError: the text cannot be expressed in UTF-8 (a lone surrogate).
            ConnectionClosedError: the connection is gone.
            ConnectionClosedLocally: this side has closed the connection.
        """
        if final and self._owner is None:
            rest = self._channel.begin_send(data)
            if rest is None:
                return
            if rest is not False:
                await rest
                return
        await self._send(data, final)

    async def _send(self, data: Data, final: bool) -> None:
        kind, payload = check_data(data)
        task = anyio.get_current_task().id
        begun = whole = False
        try:
            await Pace.current().step(len(payload))
            while self._owner not in (None, task) and self.state is ConnectionState.OPEN:
                await self._released.wait()
            if self._fragments is not None and self._fragments is not kind:
                raise TypeError(
                    f"expected more of the {_name(self._fragments)} message begun, "
                    f"got {_name(kind)} data"
                )
            begun = self._owner is not None
            # It, too, may have to wait before it is sent, and others might begin theirs meanwhile.
            whole = final and not begun
            self._owner, self._fragments = task, kind
            self._fragmenting = not whole
            await self._channel.send(payload, final)
        except ValueError:
            # Nothing was sent.
            if not begun:
                self._release()
            raise
        except anyio.get_cancelled_exc_class():
            if whole:
                self._release()
            elif self._owner == task:
                # It does not know which fragments are in the message, and others wait.
                await self._channel.abort(1011)
            raise
        if final:
            self._release()

    def push(self, message: Shared, limit: int, drop: bool) -> bool | None:
        """Send a message to many as `Channel.push` does; None in the middle of one in fragments."""
        return None if self._fragmenting else self._channel.push(message, limit, drop)

    async def fail(self, code: int, reason: str) -> None:
        """End the connection as broken: send Close with this code, and drop what comes.

        Receivers get `ConnectionClosedError`.

        Args:
            code: as in :meth:`close`.
            reason: as in :meth:`close`.

        Raises:
            ValueError: as in :meth:`close`.
        """
        await self._channel.fail(check_close(code, reason), reason)

    def _owns_message(self) -> bool:
        return self._owner is not None and self._owner == anyio.get_current_task().id

    def _release(self) -> None:
        """Let others send."""
        self._owner = self._fragments = None
        self._fragmenting = False
        self._released.ring()

    async def send_json(self, data: Any) -> None:
        """Send a value as JSON in a text message.

        Raises:
            TypeError, ValueError: the value has no JSON form (NaN and infinities have none).
            ConnectionClosed: as :meth:`send`.
        """
        await self.send(json.dumps(data, allow_nan=False, separators=(",", ":")))

    @asynccontextmanager
    async def message(self) -> AsyncGenerator[MessageWriter, None]:
        """Send one message in pieces: ``async with ws.message() as m: await m.send(piece)``.

        Other tasks that send wait until it is left. Left by an exception, the message cannot
        be finished, and so the connection is failed with 1011; before its first piece, nothing
        happens.

        Raises:
            ConnectionClosed: as :meth:`send`.
        """
        writer = MessageWriter(self)
        try:
            yield writer
            if writer.kind is not None:
                await self.send(writer.kind())
        except BaseException:
            if self._owns_message():
                await self._channel.abort(1011)
            raise

    async def ping(self, payload: bytes | str | None = None) -> float:
        """Send a ping, wait for its pong, and return the seconds between (RFC 6455 section 5.5.2).

        Args:
            payload: at most 125 bytes; random ones by default.

        Raises:
            ValueError: the payload is too long.
            ConnectionClosed: the connection has ended.
            UnsupportedOperation: the carrier has no pings.
        """
        if isinstance(payload, str):
            payload = payload.encode()
        if payload is not None and len(payload) > 125:
            raise ValueError(f"expected a ping payload of at most 125 bytes, got {len(payload)}")
        await Pace.current().step(0)
        return await self._channel.ping(payload)

    # Ending

    async def close(self, code: int = 1006, reason: str = "Connection closed") -> None:
        """Close the connection: closing handshake, then TCP (RFC 6455 section 7.1).

        Sends Close, drops what comes until the peer's Close, at most ``close_timeout`` seconds
        long. Calling it again is harmless. Cancelling it aborts the connection, even where that
        comes before it has begun.

        Args:
            code: 1005, 1006 and 1015 may not be sent and go out as 1000; so the default does.
            reason: at most 123 bytes in UTF-8.

        Raises:
            ValueError: the code is none that may be sent, or the reason is too long.
        """
        code = check_close(code, reason)
        try:
            await checkpoint_if_cancelled()
        except anyio.get_cancelled_exc_class():
            await self._channel.abort(1001)
            raise
        await self._channel.close(code, reason)

    async def abort(self, code: int | None = None) -> None:
        """End the connection at once, without a closing handshake.

        Args:
            code: of a Close that goes before, if that needs no waiting.

        Raises:
            ValueError: the code is none that may be sent.
        """
        await self._channel.abort(check_close(code, "") if code is not None else None)

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, for handlers that only send."""
        await self._channel.wait_closed()

    def is_end(self, exc: BaseException) -> bool:
        """Whether an exception, or every leaf of a group, only says that this connection ended."""
        return self._is_of_this(exc, ConnectionClosed)

    def is_peers_doing(self, exc: BaseException) -> bool:
        """Whether an exception, or every leaf of a group, only says what this peer did.

        That is, that the connection ended, or that a message came of another kind than was
        asked for.
        """
        return self._is_of_this(exc, ConnectionClosed, UnexpectedMessage)

    def _is_of_this(
        self, exc: BaseException, *kinds: type[ConnectionClosed | UnexpectedMessage]
    ) -> bool:
        if isinstance(exc, BaseExceptionGroup):
            return all(self._is_of_this(leaf, *kinds) for leaf in exc.exceptions)
        return isinstance(exc, kinds) and exc.source is self._channel

    async def __aenter__(self) -> Websocket:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the connection: 1000 without an exception, 1011 with one.

        An :class:`UnexpectedMessage` of this connection has a code and a reason of its own. With
        a cancellation, Close goes out only if that needs no waiting.
        """
        if exc is None:
            await self.close(1000, "")
        elif isinstance(exc, Exception):
            unexpected = _unexpected(exc) if self.is_peers_doing(exc) else None
            await self.close(*(unexpected.code, unexpected.reason) if unexpected else (1011, ""))
        else:
            await self._channel.abort(1001)


def _unexpected(exc: BaseException) -> UnexpectedMessage | None:
    """Return an exception, or the first leaf of a group, that says what should not have come."""
    if isinstance(exc, BaseExceptionGroup):
        return next(filter(None, map(_unexpected, exc.exceptions)), None)
    return exc if isinstance(exc, UnexpectedMessage) else None


class _Messages(Generic[T]):
    """The messages of one kind. Unlike a generator, it needs no end where its loop is left."""

    def __init__(self, websocket: Websocket, expect: Callable[[Message[Any], object], T]) -> None:
        self._websocket = websocket
        self._expect: Callable[[Message[Any], object], T] = expect

    def __aiter__(self) -> _Messages[T]:
        return self

    async def __anext__(self) -> T:
        while True:
            event = await self._websocket.__anext__()
            if isinstance(event, Message):
                return self._expect(event, self._websocket._channel)


class _Pieces:
    """Collects a message that comes in pieces, however small, in little more than its size."""

    __slots__ = ("_long", "_short", "size")

    def __init__(self) -> None:
        self._long: list[Any] = []
        self._short: list[Any] = []
        #: The bytes of the message so far.
        self.size: int = 0

    def __bool__(self) -> bool:
        return bool(self._long or self._short)

    def add(self, piece: str | bytes, size: int) -> None:
        """Take the next piece; `size` is that of the message with it."""
        self.size = size
        if piece:
            self._short.append(piece)
            # An object each for pieces of a few bytes would take many times their size.
            if len(piece) >= _SHORT or len(self._short) >= _SHORT:
                self._long.append(piece[:0].join(self._short))
                self._short.clear()

    def take(self) -> list[Any]:
        """Take out all pieces, and start anew."""
        pieces = [*self._long, *self._short]
        self._long.clear()
        self._short.clear()
        self.size = 0
        return pieces


class MessageStream:
    """The pieces of one message, as they come: ``str`` or ``bytes``, each bounded."""

    def __init__(self, websocket: Websocket) -> None:
        self._websocket = websocket
        #: The first pieces, where those have been received already.
        self.kept: deque[Any] = deque()
        #: Whether a piece was handed out.
        self.begun: bool = False
        #: Whether the message's last piece has come.
        self.finished: bool = False
        #: Whether the block around it was left.
        self.closed: bool = False

    def __aiter__(self) -> MessageStream:
        return self

    async def __anext__(self) -> str | bytes:
        if self.closed:
            raise anyio.ClosedResourceError
        piece = await self._websocket.next_piece(self)
        if piece is None:
            raise StopAsyncIteration
        self.begun = True
        return piece


class MessageWriter:
    """Sends one message in pieces."""

    def __init__(self, websocket: Websocket) -> None:
        self._websocket = websocket
        self.kind: type[str] | type[bytes] | None = None

    async def send(self, data: Data) -> None:
        """Send a piece of the message.

        Raises:
            TypeError: the data is of the other kind than the pieces before.
            ConnectionClosed: as :meth:`Websocket.send`.
        """
        await self._websocket.send(data, final=False)
        self.kind = str if isinstance(data, str) else bytes


def check_data(data: Data) -> tuple[type[TextMessage | BytesMessage], Any]:
    if isinstance(data, str):
        return TextMessage, data
    if isinstance(data, bytes):
        return BytesMessage, data
    if isinstance(data, (bytearray, memoryview)):
        return BytesMessage, bytes(data)
    raise TypeError(
        f"expected str, bytes, bytearray or memoryview to send, got {type(data).__name__}"
    )


def _name(kind: type[TextMessage | BytesMessage]) -> str:
    return "text" if kind is TextMessage else "binary"


def expect_text(event: Message[Any], source: object) -> str:
    """Return a message's text; `source` is what the connection is carried by."""
    if not isinstance(event, TextMessage):
        raise UnexpectedMessage("text", bytes(event.data), source)
    return event.data


def expect_bytes(event: Message[Any], source: object) -> bytes:
    """Return a binary message's data; `source` is what the connection is carried by."""
    if not isinstance(event, BytesMessage):
        raise UnexpectedMessage("binary", event.data, source)
    return bytes(event.data)


def expect_json(event: Message[Any], source: object) -> Any:
    """Return a message, text or binary, parsed as JSON."""
    try:
        return json.loads(event.data)
    except (ValueError, RecursionError) as exc:
        raise InvalidJSON(event.data, source) from exc
