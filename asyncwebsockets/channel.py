"""The channel under a `Websocket`: events both ways, over one wire."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import anyio
from wsproto.connection import ConnectionState

from ._bell import Bell
from ._lane import Lane
from ._loop import LoopBell, make_waiter
from ._observing import UNOBSERVED, report
from ._shared import kin_of
from ._supervisor import Supervised
from .codec import CodecError
from .errors import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedLocally,
    ConnectionClosedOK,
)
from .events import CloseConnection, Event, Ping, Pong
from .observation import Statistics
from .transport import IDLE_DRAIN, PushTransport, Sink, TransportLost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from wsproto.extensions import Extension

    from ._loop import Waiter
    from ._shared import Shared
    from ._supervisor import Supervisor
    from .codec import Codec
    from .events import Address, Request, Response
    from .observation import Observation
    from .settings import Settings
    from .transport import Transport

__all__ = ["Channel", "WireChannel"]

logger: logging.Logger = logging.getLogger("asyncwebsockets")

_OPEN = ConnectionState.OPEN

# Pings and pongs that are kept for a handler which does not receive; later ones are only
# answered. They do not count as read-ahead: a peer's keepalive would fill that of a handler
# which only sends.
_MAX_CONTROL_EVENTS = 32

# Pongs that wait to be written. Of more pings than that, the oldest stay unanswered
# (RFC 6455 section 5.5.3 allows to answer the latest only).
_MAX_PONGS = 64

# Runs of events decoded before others get a turn; control frames are runs of their own.
_MAX_BATCHES = 64

# The queue of a connection that idles: a deque without events takes 760 bytes.
_NOTHING: Any = ()

_NO_ANSWER = "the peer did not answer Close within close_timeout"

# The seconds a Close may take that is sent on cancellation: none but those of the scheduler.
_NO_WAIT = 0.1


class Channel(ABC):
    """What a `Websocket` needs of its carrier: events both ways, and how the connection ends.

    It does not join or split messages, and does not check what a user may send.

    Args:
        settings: the limits and options.
        request: the opening handshake's request.
        response: the server's answer to it.
        subprotocol, extensions: what was agreed on.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        request: Request,
        response: Response,
        subprotocol: str | None = None,
        extensions: Sequence[Extension] = (),
    ) -> None:
        #: The limits and options.
        self.settings = settings
        #: The opening handshake's request.
        self.request = request
        #: The server's answer to it.
        self.response = response
        #: The subprotocol agreed on.
        self.subprotocol = subprotocol
        #: The extensions agreed on.
        self.extensions: Sequence[Extension] = tuple(extensions)
        #: Called when the connection has ended or is no longer open for sending.
        self.on_end: Callable[[], None] = _nothing

        self._state = ConnectionState.OPEN
        self._code: int | None = None
        self._reason: str | None = None
        self._failure: ConnectionClosedError | None = None
        self._closed_locally = False
        self._opened_at = time.monotonic()
        # How long it was open, once it has ended.
        self._duration: float | None = None

    @abstractmethod
    async def receive(self) -> Event:
        """Return the next message, or a piece of one, or a ping or pong.

        One task at a time calls it. Cancelling it loses nothing.

        Raises:
            ConnectionClosed: there is no more; which one says how the connection ended.
        """

    def begin_receive(self) -> Event | Waiter | None:
        """Return a whole message, or what brings one or None; None if `receive` is to be called.

        A message has ``max_message_size`` bytes at most, and nobody else is to be given way to.
        """
        return None

    @property
    def announced(self) -> int:
        """The bytes that the frame of the piece last received is still to bring, if known."""
        return 0

    def begin_send(self, data: Any) -> Awaitable[None] | Literal[False] | None:
        """Send a message if that needs no waiting; return what to await for the rest.

        False if `send` is to be called: nothing was sent, and the data may be of any type.

        Raises:
            ValueError: text that cannot be expressed in UTF-8; nothing was sent.
        """
        return False

    @abstractmethod
    async def send(self, data: str | bytes, final: bool) -> None:
        """Send a message, or a piece of one that `final` ends; wait while the peer does not read.

        Where it was cancelled, the data may have been sent or not; never half of it, unless the
        connection is broken.

        Raises:
            ValueError: text that cannot be expressed in UTF-8; nothing was sent.
            ConnectionClosed: the connection has ended.
        """

    def push(self, message: Shared, limit: int, drop: bool) -> bool | None:
        """Send a whole message without waiting, or hold it while the peer does not read.

        No message may be under way. If more than `limit` bytes of messages would be held then,
        the oldest of them are left out if they may be dropped. Where the connection is not open,
        nothing happens.

        Returns:
            False if the message was neither sent nor held, since too much is held; None if it
            cannot be known whether the peer reads, and `send` is to be called.

        Raises:
            ValueError: text that cannot be expressed in UTF-8; nothing was sent.
        """
        return None

    @abstractmethod
    async def ping(self, payload: bytes | None) -> float:
        """Send a ping, wait for its pong, and return the seconds between.

        Raises:
            ConnectionClosed: the connection has ended.
            UnsupportedOperation: the carrier has no pings.
        """

    @property
    @abstractmethod
    def latency(self) -> float | None:
        """The seconds the last answered ping took, None before the first.

        Raises:
            UnsupportedOperation: the carrier has no pings.
        """

    @abstractmethod
    async def close(self, code: int, reason: str) -> None:
        """Do the closing handshake; harmless when it has been done. Cancelling it aborts."""

    @abstractmethod
    async def fail(self, code: int, reason: str) -> None:
        """End the connection as broken: Close with this code, then no more reading."""

    @abstractmethod
    async def abort(self, code: int | None = None) -> None:
        """End the connection at once; a Close with the code goes before if it need not wait."""

    @abstractmethod
    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""

    @abstractmethod
    def extra(self, attribute: Any, default: object = ...) -> Any:
        """Return a typed attribute of the carrier (anyio's ``extra``).

        Raises:
            anyio.TypedAttributeLookupError: there is none and no default was given.
        """

    @property
    def state(self) -> ConnectionState:
        """Where the connection stands."""
        return self._state

    @property
    def close_code(self) -> int | None:
        """The close code (RFC 6455 section 7.1.5), None while the connection is open."""
        return self._code

    @property
    def close_reason(self) -> str | None:
        """The close reason, None while the connection is open."""
        return self._reason

    @property
    def failure(self) -> ConnectionClosedError | None:
        """Why the connection ended without a closing handshake, None if it did not."""
        return self._failure

    @property
    @abstractmethod
    def counts(self) -> tuple[int, int, int, int, int, int]:
        """The bytes, messages and pings so far, each received and sent."""

    @property
    def statistics(self) -> Statistics:
        """What has come and gone so far."""
        age = time.monotonic() - self._opened_at
        duration = age if self._duration is None else self._duration
        return Statistics(*self.counts, opened_at=time.time() - age, duration=duration)

    @property
    def local_address(self) -> Address:
        """This side's address."""
        return self.request.local_address

    @property
    def remote_address(self) -> Address:
        """The peer's address."""
        return self.request.remote_address

    def _record(self, code: int, reason: str) -> None:
        """Note that the connection has ended without a closing handshake."""
        self._code, self._reason = code, reason
        self._failure = ConnectionClosedError(code, reason)

    def _ending(self) -> ConnectionClosed:
        """Return a new exception that says how the connection ended."""
        code = self._code if self._code is not None else 1006
        reason = self._reason or ""
        if self._closed_locally:
            return ConnectionClosedLocally(code, reason or "closed by this side", self)
        if self._failure is not None:
            return ConnectionClosedError(code, reason, self)
        return ConnectionClosedOK(code, reason, self)

    def _unsendable(self) -> ConnectionClosed:
        """Return a new exception for a user who sends on a connection that is not open."""
        if self._closed_locally:
            return self._ending()
        code = self._code if self._code is not None else 1006
        return ConnectionClosedError(code, self._reason or "", self)


class _PingWaiter:
    """A ping of ours that was not answered yet."""

    __slots__ = ("answered_after", "payload", "sent_at")

    def __init__(self, payload: bytes, sent_at: float) -> None:
        self.payload = payload
        self.sent_at = sent_at
        self.answered_after: float | None = None


class WireChannel(Lane, Channel, Supervised, Sink):
    """A channel over one codec and one transport.

    One task at a time reads from the transport, whichever needs something first: `receive`,
    `ping`, `close`, or the supervisor while nobody does. It answers pings, notes the peer's
    Close and queues the rest; tasks that wait for what it reads are told after each turn. When
    it leaves, one of them takes its place.

    Frames are written to the transport whole, in order; who sends waits while it is clogged.

    Args:
        transport, codec: what it is built on.
        role: which side this is; the server closes TCP first (RFC 6455 section 7.1.1).
        settings: the limits.
        trailing_data: the bytes the peer sent behind its handshake.
        supervisor: reads and keeps time in the background; without one, that is done only
            within the calls on the channel.
        observation: is told of the end.
    """

    __slots__ = (
        "_attending",
        "_broken",
        "_closed_by",
        "_closed_locally",
        "_code",
        "_control_events",
        "_deadline",
        "_decoding_soon",
        "_draining",
        "_duration",
        "_ended",
        "_eof",
        "_failure",
        "_finished",
        "_finishing",
        "_flush_spawned",
        "_forget_timer",
        "_given_up",
        "_keepalive_ping",
        "_kin",
        "_late_size",
        "_latency",
        "_lingers",
        "_most_queued",
        "_next_ping",
        "_observation",
        "_opened_at",
        "_pieces_sent",
        "_pings",
        "_push",
        "_queued",
        "_reading",
        "_reason",
        "_role",
        "_silent_since",
        "_stalled",
        "_supervisor",
        "_turn",
        "_violation_seen",
        "_waiting",
        "extensions",
        "on_end",
        "request",
        "response",
        "settings",
        "subprotocol",
    )

    on_end: Callable[[], None]

    def __init__(
        self,
        transport: Transport,
        codec: Codec,
        role: Literal["client", "server"],
        *,
        settings: Settings,
        request: Request,
        response: Response,
        subprotocol: str | None = None,
        extensions: Sequence[Extension] = (),
        trailing_data: bytes = b"",
        supervisor: Supervisor | None = None,
        observation: Observation = UNOBSERVED,
    ) -> None:
        super().__init__(
            settings=settings,
            request=request,
            response=response,
            subprotocol=subprotocol,
            extensions=extensions,
        )
        self._transport = transport
        self._codec = codec
        self._role = role
        self._supervisor = supervisor
        self._observation = observation
        # Who has ended it, if that was neither a broken line nor nobody yet.
        self._closed_by: Literal["local", "remote"] | None = None

        # Nothing that comes is for the user any more.
        self._ended = False
        # Whether the finishing has begun, and whether it is done.
        self._finishing = False
        self._finished = False
        # Whether a failed connection waits for the peer to see why.
        self._lingers = True

        # Events and their costs.
        self._queue: deque[tuple[Event, int]] = _NOTHING
        self._queued = 0
        self._most_queued = (
            sys.maxsize if settings.max_read_ahead is None else settings.max_read_ahead
        )
        self._control_events = 0
        self._undecoded = bool(trailing_data)
        if trailing_data:
            codec.receive_data(trailing_data)
        self._taken = False
        self._whole = False
        # Whether `_decode_later` is about to be called.
        self._decoding_soon = False
        limit = settings.max_message_size
        self._limit = sys.maxsize if limit is None else limit
        self._violation = None
        self._violation_seen = False
        self._reading = False
        self._eof = False
        self._waiting = 0
        push = isinstance(transport, PushTransport)
        self._turn: Bell | LoopBell = LoopBell() if push else Bell()
        self._attending: anyio.CancelScope | None = None
        self._pace = transport.pace

        # What waits for a clogged pipe, with the bytes of messages, and the sum of those.
        self._late: list[tuple[Pong | Shared, int]] = []
        self._late_size = 0
        self._kin = kin_of(role, self.extensions)
        # Tasks that wait until what was written is sent.
        self._draining = 0
        self._flush_spawned = False
        self._broken = False

        self._pings: list[_PingWaiter] = []
        # The payloads of pings whose callers were cancelled: their pongs are no events either.
        self._given_up: list[bytes] = []
        self._latency: float | None = None

        # Keepalive: signs of life since the last look, and the first ping without one after it.
        self._heard = False
        self._stalled = False
        self._pieces_sent = 0
        self._silent_since: float | None = None
        self._keepalive_ping: _PingWaiter | None = None
        self._next_ping = 0.0
        self._deadline: float | None = None
        if settings.ping_interval is not None:
            self._next_ping = self._deadline = anyio.current_time() + settings.ping_interval
        if supervisor is not None:
            if supervisor.running:
                transport.protect()
                transport.send_later(supervisor.call_soon)
            supervisor.add(self, self._deadline)

        # A pipe that reads by itself, and the task that receives from this one.
        self._push: PushTransport | None = None
        self._receiver: Waiter | None = None
        self._forget_timer: Callable[[], object] | None = None
        if isinstance(transport, PushTransport):
            self._push, self._reading = transport, True
            self._receiver = make_waiter()
            if supervisor is None:
                self._set_timer()
            transport.start(self)
            if self._undecoded:
                self._decode_on()
            else:
                transport.resume()

    @property
    def latency(self) -> float | None:
        """The seconds the last answered ping took, None before the first."""
        return self._latency

    @property
    def counts(self) -> tuple[int, int, int, int, int, int]:
        """The bytes, messages and pings so far, each received and sent."""
        return self._codec.counts

    def extra(self, attribute: Any, default: object = ...) -> Any:
        """Return a typed attribute of the stream."""
        return self._transport.extra(attribute, default)

    # Receiving

    async def receive(self) -> Event:
        """Return the next message, or a piece of one, or a ping or pong."""
        if self._whole:
            # What has come of a message that was to be taken whole.
            self._whole = False
            if self._push is not None:
                self._decode_on()
        if not self._queue and self._violation is not None:
            self._fail_for_violation()
        if self._queue or self._closed_locally:
            if self._pace.due(self._queue[0][1] if self._queue else 0):
                await self._pace.give_way()
        elif self._receiver is not None:
            if self._undecoded and self._pace.due(0):
                await self._pace.give_way()
            while not (self._queue or self._ended or self._closed_locally):
                event: Event | None = None
                if self._undecoded and self._violation is None:
                    event = self._codec.next_message(self._limit)
                if event is not None:
                    self._taken = True
                    self._undecoded = self._codec.pending(self._limit)
                else:
                    event = await self._receiver
                if event is not None:
                    return event
        else:
            await self._read_until(self._receivable)
        if self._queue:
            return self._pop()
        if self._supervisor is None and not self._closed_locally:
            await self._finish()
        raise self._ending()

    def _receivable(self) -> bool:
        return bool(self._queue) or self._ended or self._closed_locally

    def _take_queued(self) -> Event | None:
        event: Any
        event, cost = self._queue[0]
        if (
            # A ping or pong costs nothing.
            not cost
            or cost > self._limit
            or not event.message_finished
            or not event.frame_finished
            or self._pace.due(cost)
        ):
            return None
        return self._pop()

    def _pop(self) -> Event:
        event, cost = self._queue.popleft()
        if not cost:
            self._control_events -= 1
            return event
        queued = self._queued
        self._queued = queued - cost
        if queued >= self._most_queued > self._queued:
            self._stalled = True
            if self._push is not None:
                self._decode_on()
            else:
                # Tasks that wait for something else may read on.
                self._announce_turn()
                if self._supervisor is not None:
                    self._supervisor.look_soon()
        return event

    @property
    def announced(self) -> int:
        """The bytes that the frame of the piece last received is still to bring, if known."""
        return 0 if self._queue else self._codec.announced

    @property
    def _full(self) -> bool:
        return self._queued >= self._most_queued

    # Reading

    async def _read_until(self, ready: Callable[[], bool]) -> None:
        """Wait for something that reading brings; read, unless another task does."""
        while not ready():
            if self._violation is not None and self._supervisor is None:
                self._fail_for_violation()
            elif self._reading or self._stuck:
                self._waiting += 1
                try:
                    await self._turn.wait()
                finally:
                    self._waiting -= 1
                if self._push is not None and self._supervisor is None:
                    await self._after_reading()
            else:
                await self._read_turn()

    @property
    def _stuck(self) -> bool:
        """Whether there is nothing that could be read now."""
        if self._ended:
            return self._eof
        return self._eof or self._violation is not None or (self._full and not self._closed_locally)

    async def _read_turn(self) -> None:
        """Read once, handle what came, and tell those who wait."""
        self._reading = True
        try:
            if self._ended:
                await self._discard()
            elif self._undecoded:
                await self._pace.step(0)
                self._decode()
            else:
                data = await self._receive_bytes()
                if data is not None:
                    self._heard = True
                    if data:
                        self._codec.receive_data(data)
                        self._decode()
                    else:
                        self._lost("the peer ended the connection without a Close")
        except Exception:
            # An extension of the user's, for one, may raise anything.
            self._fail(1011, "internal error")
            raise
        finally:
            self._reading = False
            self._announce_turn()
            if self._supervisor is not None:
                self._supervisor.look_soon()
        if self._supervisor is None:
            await self._after_reading()

    def _read(self, data: bytes | None) -> None:
        """Handle what a pipe has read by itself; None if the codec has it already."""
        if self._ended:
            self._eof = self._eof or not data
        elif data == b"":
            self._lost("the peer ended the connection without a Close")
        else:
            self._decode_on(data)
        self._announce_reading()

    def _reading_broke(self, error: Exception) -> None:
        """End the connection for what was raised while a lane read."""
        self._fail_for(error)
        self._regulate()
        self._announce_reading()

    def reading_failed(self, error: TransportLost) -> None:
        """Note that a pipe which reads by itself broke."""
        self._eof = True
        self._lost(str(error))
        self._announce_reading()

    def _decode_on(self, data: bytes | None = None) -> None:
        """Decode what a pipe has read by itself, and have it read on if there is room."""
        assert self._push is not None
        if self._undecoded or not self._ended:
            try:
                if data is not None:
                    self._codec.receive_data(data)
                self._decode()
            except Exception as exc:
                # An extension of the user's, for one, may raise anything.
                self._fail_for(exc)
        self._regulate()
        if not self._undecoded:
            return
        if self._violation is not None and self._supervisor is not None:
            self._supervisor.look_soon()
        elif not (self._ended or self._stuck):
            self._decode_soon()

    def _fail_for(self, error: Exception) -> None:
        """End the connection for what nobody awaits."""
        logger.error("internal error behind %r", self.request, exc_info=error)
        self._fail(1011, "internal error")

    def _decode_soon(self) -> None:
        """Have the rest decoded with the loop's next turn, unless its receiver does it."""
        if not self._decoding_soon and self._push is not None:
            self._decoding_soon = True
            self._taken = False
            self._push.call_soon(self._decode_later)

    def _decode_later(self) -> None:
        self._decoding_soon = False
        if not self._undecoded:
            return
        if self._taken and self._state is _OPEN:
            # Its receiver only gives way to others.
            self._decode_soon()
            return
        self._decode_on()
        self._announce_reading()

    def _regulate(self) -> None:
        """Have a pipe that reads by itself do that only while there is room."""
        if self._push is not None:
            # Where all was decoded, there is room.
            if self._eof if self._ended else self._undecoded:
                self._push.pause()
            else:
                self._push.resume()

    def _set_timer(self) -> None:
        if self._deadline is not None and self._push is not None:
            self._forget_timer = self._push.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._deadline = self.on_deadline(anyio.current_time())
        self._set_timer()

    async def _receive_bytes(self) -> bytes | None:
        """Return bytes from the transport, None if it is time for a keepalive first."""
        try:
            if self._supervisor is not None or self._deadline is None:
                return await self._transport.receive()
            data = None
            now = anyio.current_time()
            if now >= self._deadline:
                # Nobody has read since then: the silence was ours.
                self._stalled = True
                self._deadline = self.on_deadline(now)
                return None
            with anyio.CancelScope(deadline=self._deadline):
                data = await self._transport.receive()
            if data is None:
                self._deadline = self.on_deadline(anyio.current_time())
            return data
        except TransportLost as exc:
            self._eof = True
            self._lost(str(exc))
            return None

    async def _discard(self) -> None:
        try:
            data = await self._transport.receive()
        except TransportLost:
            data = b""
        self._heard = True
        self._eof = not data

    async def _after_reading(self) -> None:
        """Do what a supervisor would do in the background."""
        if self._ended and not (self._closed_locally or self._finishing or self._queue):
            await self._finish()
        elif self._transport.clogged and not self._draining:
            # A peer that does not read is given no more time than a silent one.
            with anyio.move_on_after(self.settings.ping_timeout) as scope:
                await self._flush_quietly()
            if scope.cancelled_caught and self._failure is not None:
                self._record(1011, "keepalive: the peer does not read")

    def _announce_turn(self) -> None:
        """Tell those who wait that there may be something for them."""
        self._turn.ring()
        if self._receiver is not None:
            self._receiver.wake()

    def _announce_reading(self) -> None:
        """Tell the same from a callback of the loop, and have who receives go on at once."""
        if self._receiver is not None and self._receivable():
            self._receiver.resume()
        if self._waiting:
            self._turn.ring()

    def _decode(self) -> None:
        """Turn what was read into events, as far as there is room for them, for a while."""
        self._undecoded = True
        if self._violation is not None:
            # What is behind a broken rule is not for anybody.
            return
        for _ in range(_MAX_BATCHES):
            room = self._most_queued - self._queued
            if self._ended or room <= 0:
                return
            try:
                events, cost = self._codec.next_events(room)
            except CodecError as exc:
                self._violation = exc
                if not self._queue:
                    self._fail_for_violation()
                return
            if not events:
                self._undecoded = False
                return
            if not cost:
                self._on_control(events[0][0])
            elif not self._closed_locally:
                self._enqueue(events)
                self._queued += cost

    def _enqueue(self, events: list[tuple[Event, int]]) -> None:
        if self._queue is _NOTHING:
            self._queue = deque(events)
        else:
            self._queue.extend(events)

    def _on_control(self, event: Event) -> None:
        if isinstance(event, CloseConnection):
            self._on_close(event)
            return
        if isinstance(event, Ping):
            if self._state is _OPEN:
                if self._transport.clogged:
                    self._hold_pong(Pong(event.payload))
                else:
                    self._write_frame(Pong(event.payload))
                self._flush_soon()
        elif isinstance(event, Pong) and self._on_pong(event):
            return
        if not self._closed_locally and self._control_events < _MAX_CONTROL_EVENTS:
            self._control_events += 1
            self._enqueue([(event, 0)])

    def _on_close(self, event: CloseConnection) -> None:
        self._code, self._reason = int(event.code), event.reason or ""
        if self._state is _OPEN:
            # The echo has the code that came (RFC 6455 section 5.5.1), and no reason of ours.
            self._state = ConnectionState.REMOTE_CLOSING
            self._write_frame(event)
        else:
            self._state = ConnectionState.CLOSED
        self._end()

    def _end(self) -> None:
        """Note that the connection has no more for the user, and have it finished."""
        self._ended = True
        if self._state is ConnectionState.REMOTE_CLOSING:
            self._closed_by = "remote"
        elif self._state is not ConnectionState.CLOSED or self._closed_locally:
            self._closed_by = "local"
        if self._closed_locally:
            self._drop_queue()
        self._regulate()
        self._announce_turn()
        self.on_end()
        if self._supervisor is not None and not self._closed_locally:
            if self._push is not None:
                # After the handler, which often ends with the connection and finishes it: what
                # steps it needs a turn of the loop, and its task another.
                self._push.call_soon(self._finish_later)
            else:
                self._supervisor.spawn(self._finish)

    def _lost(self, reason: str) -> None:
        """Note that the connection has ended without a Close (RFC 6455 section 7.1.5)."""
        self._eof = self._broken = True
        if self._ended:
            return
        self._state = ConnectionState.CLOSED
        self._record(1006, reason)
        self._end()

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection: the last that is sent is a Close (RFC 6455 section 7.1.7)."""
        if self._ended:
            return
        if self._state is _OPEN:
            self._write_frame(CloseConnection(code, _clip(reason)))
            self._state = ConnectionState.LOCAL_CLOSING
        self._record(code, reason)
        self._end()

    def _fail_for_violation(self) -> None:
        assert self._violation is not None
        violation, self._violation = self._violation, None
        self._fail(violation.code, violation.reason)

    # Sending

    async def send(self, data: str | bytes, final: bool) -> None:
        """Send a message or a piece of one; wait while the peer does not read."""
        while self._transport.clogged and self._state is _OPEN:
            # Before it is taken, so that cancelled sends do not pile up.
            await self._drain()
        if self._state is not _OPEN:
            raise self._unsendable()
        self._write_late()
        if final:
            self._write_message(data)
        else:
            self._transport.write(self._codec.encode_message(data, False))
        if self._transport.clogged:
            await self._drain()

    def _write_frame(self, event: Event) -> None:
        self._write(self._codec.encode(event))

    def _write(self, data: bytes) -> None:
        self._write_late()
        self._transport.write(data)

    def _write_late(self) -> None:
        """Write what was held back. Before anything else: a Close is the last frame."""
        if not self._late:
            return
        late, self._late = self._late, []
        self._late_size = 0
        for entry, _ in late:
            if isinstance(entry, Pong):
                frame = self._codec.encode(entry)
            else:
                frame = entry.frame(self._codec, self._kin)
            self._transport.write(frame)

    def _hold_pong(self, pong: Pong) -> None:
        """Have a pong sent later; of too many, the oldest is left out."""
        pongs = [entry for entry in self._late if isinstance(entry[0], Pong)]
        if len(pongs) >= _MAX_PONGS:
            self._late.remove(pongs[0])
        self._late.append((pong, 0))

    def push(self, message: Shared, limit: int, drop: bool) -> bool | None:
        """Send a whole message without waiting, or hold it while the peer does not read."""
        if self._supervisor is None:
            # Nobody would send what is held.
            return None
        if self._state is not _OPEN:
            return True
        if not self._transport.clogged:
            self._write(message.frame(self._codec, self._kin))
            self._flush_soon()
            return True
        while self._late_size + message.size > limit:
            if not drop:
                return False
            if not self._drop_late():
                return True
        self._late.append((message, message.size))
        self._late_size += message.size
        self._flush_soon()
        return True

    def _drop_late(self) -> bool:
        """Leave out the oldest message that waits; whether there was one."""
        for index, (entry, size) in enumerate(self._late):
            if not isinstance(entry, Pong):
                del self._late[index]
                self._late_size -= size
                return True
        return False

    async def _drain(self) -> None:
        """Wait until everything is sent that was written by now."""
        if self._broken:
            raise self._unsendable()
        if self._supervisor is not None:
            self._supervisor.look_soon()
        self._draining += 1
        try:
            await self._transport.drain()
            if self._supervisor is None and self._draining == 1 and self._transport.unsent:
                # What came meanwhile may have nobody else to send it: pongs, or the frames of
                # a task that was cancelled.
                await self._transport.drain()
        except TransportLost as exc:
            self._lost(str(exc))
            raise self._unsendable() from None
        except BaseException:
            if self._transport.broken:
                self._lost("a send was cancelled half way")
            raise
        finally:
            self._draining -= 1
            if not self._transport.clogged:
                self._write_late()
            self._flush_soon()

    def _flush_soon(self) -> None:
        """Have what was written sent without waiting for it, where there is a supervisor."""
        if (
            self._supervisor is not None
            and self._transport.clogged
            and not (self._flush_spawned or self._draining or self._broken or self._ended)
        ):
            self._flush_spawned = True
            self._supervisor.spawn(self._flush_quietly)

    async def _flush_quietly(self) -> None:
        self._flush_spawned = False
        if self._transport.unsent:
            with suppress(ConnectionClosed):
                await self._drain()

    # Ping and pong

    async def ping(self, payload: bytes | None) -> float:
        """Send a ping, wait for its pong, and return the seconds between."""
        if self._state is not _OPEN:
            raise self._unsendable()
        waiter = self._queue_ping(payload)
        try:
            if self._transport.clogged and not self._draining:
                # Otherwise it goes out with what is sent next, and reading must not wait.
                await self._drain()
            await self._read_until(lambda: waiter.answered_after is not None or self._ended)
        finally:
            self._give_up(waiter)
        if waiter.answered_after is None:
            raise self._ending()
        return waiter.answered_after

    def _queue_ping(self, payload: bytes | None) -> _PingWaiter:
        waiter = _PingWaiter(
            secrets.token_bytes(8) if payload is None else payload, anyio.current_time()
        )
        self._write_frame(Ping(waiter.payload))
        self._pings.append(waiter)
        return waiter

    def _give_up(self, waiter: _PingWaiter) -> None:
        """Wait no more for a pong; where it comes late it is no event either."""
        if waiter in self._pings:
            self._pings.remove(waiter)
            _keep(self._given_up, waiter.payload)

    def _on_pong(self, event: Pong) -> bool:
        """Match a pong to our pings; whether it answers one.

        A pong also stands for the pings before the one it answers (RFC 6455 section 5.5.3).
        """
        for index, waiter in enumerate(self._pings):
            if waiter.payload == event.payload:
                now = anyio.current_time()
                for answered in self._pings[: index + 1]:
                    answered.answered_after = now - answered.sent_at
                self._latency = waiter.answered_after
                del self._pings[: index + 1]
                return True
        if event.payload in self._given_up:
            self._given_up.remove(event.payload)
            return True
        return False

    # Under supervision

    @property
    def _unattended(self) -> bool:
        """Whether there is something to be read and nobody who reads."""
        return not (self._reading or self._stuck or self._ended)

    async def _attend(self) -> None:
        """Read until somebody else wants to, or nothing more can be read."""
        with anyio.CancelScope() as self._attending:
            while self._unattended and not self._waiting:
                await self._read_turn()

    def tend(self) -> bool:
        """Read if nobody does, and let a write that takes long be cancelled."""
        if self._unattended and self._supervisor is not None:
            self._supervisor.spawn(self._attend)
        shielded = self._transport.tend()
        if self._violation is not None and self._violation_seen:
            self._fail_for_violation()
        self._violation_seen = self._violation is not None
        return self._violation_seen or shielded

    def release(self) -> None:
        """Shield no write any more."""
        self._transport.release()

    def on_deadline(self, now: float) -> float | None:
        """Send a keepalive ping, or drop a peer that was silent after the last ones."""
        if not self._queue:
            self._queue = _NOTHING
        interval, timeout = self.settings.ping_interval, self.settings.ping_timeout
        if interval is None or self._state is not _OPEN:
            return None
        # A long message that goes out slowly is a sign of life, too.
        if self._heard or (
            self._transport.unsent and self._transport.pieces_sent != self._pieces_sent
        ):
            self._silent_since = None
        elif self._silent_since is not None and (self._full or self._stalled):
            # Nothing was read meanwhile: the silence was ours, and the clock starts anew.
            self._silent_since = now
        self._heard = self._stalled = False
        self._pieces_sent = self._transport.pieces_sent
        if (
            self._silent_since is not None
            and timeout is not None
            and now >= self._silent_since + timeout
        ):
            self._lingers = False
            self._fail(1011, f"keepalive: the peer was silent for ping_timeout={timeout:g} s")
            return None
        if now >= self._next_ping:
            ping = self._keepalive_ping
            if ping is not None and timeout is None and not self._transport.clogged:
                # Nobody judges the peer by it; what is between the two is to see traffic.
                self._give_up(ping)
            if ping not in self._pings:
                self._keepalive_ping = self._queue_ping(None)
                self._flush_soon()
            if self._silent_since is None:
                self._silent_since = now
            self._next_ping = now + interval
        if self._silent_since is None or timeout is None:
            return self._next_ping
        return min(self._next_ping, self._silent_since + timeout)

    # Closing

    async def close(self, code: int, reason: str) -> None:
        """Do the closing handshake (RFC 6455 section 7.1.2), then close TCP."""
        self._closed_locally = True
        if self._violation is not None:
            self._fail_for_violation()
        if self._state is _OPEN:
            self._state = ConnectionState.LOCAL_CLOSING
            self._write_frame(CloseConnection(code, reason))
        self._drop_queue()
        self._announce_turn()
        self.on_end()
        await self._finish()

    async def fail(self, code: int, reason: str) -> None:
        """End the connection as broken: Close with this code, then no more reading."""
        self._drop_queue()
        self._fail(code, reason)
        if self._supervisor is None:
            await self._finish()

    async def abort(self, code: int | None = None) -> None:
        """End the connection at once; a Close goes before if it need not wait."""
        sendable = self._state is _OPEN and not self._transport.clogged
        self._closed_locally = True
        if code is not None and sendable:
            self._state = ConnectionState.LOCAL_CLOSING
            self._write_frame(CloseConnection(code, ""))
            await self._flush_at_once()
            if not self._ended:
                self._record(code, "aborted by this side")
                self._end()
        self._drop_queue()
        self._lost("aborted by this side")
        await self._transport.abort()
        if not self._finishing:
            self._finishing = True
            await self._conclude()

    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""
        await self._read_until(lambda: self._ended)

    def _drop_queue(self) -> None:
        self._queue = _NOTHING
        self._queued = self._control_events = 0
        self._regulate()
        if self._undecoded:
            # There was no room for it, and its reader is gone.
            self._decode_soon()

    async def _finish(self) -> None:
        """Write what is queued, wait for the peer's Close if it is owed, then close TCP."""
        if self._finishing:
            # Where it is done, too, others get their turns.
            await self._pace.step(0)
            while not self._finished:
                await self._turn.wait()
            return
        self._finishing = True
        timeout = self.settings.close_timeout
        try:
            if self._push is None:
                with anyio.move_on_after(timeout):
                    await self._finish_in_order()
                if not self._ended:
                    self._lost(_NO_ANSWER)
                return
            forget: Callable[[], object] = _nothing
            if timeout is not None:
                # At a quarter of the cost of a scope.
                forget = self._push.call_at(anyio.current_time() + timeout, self._out_of_time)
            try:
                await self._finish_in_order()
            finally:
                forget()
        finally:
            await self._conclude()

    async def _finish_in_order(self) -> None:
        if self._lingers:
            await self._flush_quietly()
        else:
            await self._flush_at_once()
        await self._read_until(lambda: self._ended)
        self._state = ConnectionState.CLOSED
        with suppress(TransportLost):
            await self._close_transport()

    def _out_of_time(self) -> None:
        """Cut the pipe: whatever the finishing waits for ends with that."""
        assert self._push is not None
        self._lost(_NO_ANSWER)
        self._push.cut()
        self._announce_turn()

    def _finish_later(self) -> None:
        assert self._push is not None
        if not self._finishing:
            self._push.call_soon(self._finish_unless_begun)

    def _finish_unless_begun(self) -> None:
        assert self._supervisor is not None
        if not self._finishing and self._supervisor.running:
            self._supervisor.spawn(self._finish)

    async def _flush_at_once(self) -> None:
        """Have what was written sent, if that needs no waiting."""
        if self._transport.unsent and not self._draining:
            self._transport.release()
            with (
                anyio.CancelScope(deadline=anyio.current_time() + _NO_WAIT, shield=True),
                suppress(ConnectionClosed),
            ):
                await self._drain()

    async def _close_transport(self) -> None:
        """Close TCP in the order of RFC 6455 section 7.1.1: the server first.

        Whoever closes first half-closes and reads to the end: unread input would turn the
        closing into a reset, which may destroy our Close before the peer has read it.
        """
        failed = self._failure is not None
        if failed and not self._lingers:
            # Who takes nothing is not waited for, nor is who sends to it left waiting.
            await self._transport.abort()
            return
        if not self._eof:
            if self._role == "client" and not failed:
                await self._read_until(self._at_eof)
            elif await self._transport.send_eof():
                await self._read_until(self._at_eof)
            elif failed:
                await self._drain_until_idle()
        await self._transport.aclose()

    async def _drain_until_idle(self) -> None:
        self._heard = True
        while self._heard and not self._eof:
            self._heard = False
            with anyio.move_on_after(IDLE_DRAIN):
                await self._read_until(lambda: self._heard or self._eof)

    def _at_eof(self) -> bool:
        return self._eof

    async def _conclude(self) -> None:
        """Let go of everything."""
        self._lost("aborted by this side")
        self._state = ConnectionState.CLOSED
        self._duration = time.monotonic() - self._opened_at
        report(self, self._role, self._closed_by, self._failure is None, self._observation)
        await self._transport.abort()
        if self._forget_timer is not None:
            self._forget_timer()
        if self._attending is not None:
            self._attending.cancel()
        if self._supervisor is not None:
            self._supervisor.remove(self)
        self._finished = True
        self._announce_turn()
        # What refers to each other in a circle would wait for the garbage collector.
        self.on_end = _nothing


def _nothing() -> None:
    return


def _keep(payloads: list[bytes], payload: bytes) -> None:
    """Append to a list of which only the latest matter."""
    payloads.append(payload)
    del payloads[:-_MAX_PONGS]


def _clip(reason: str) -> str:
    """Cut a reason to what a Close frame can hold, at a character's boundary."""
    return reason.encode()[:123].decode(errors="ignore")
