"""The byte pipe below a connection, and its adapter for anyio's streams."""

from __future__ import annotations

import contextlib
import socket
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import SocketAttribute, UNIXSocketStream
from anyio.streams.tls import TLSAttribute

from ._bell import Bell
from .pace import Pace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import ByteStream, ObjectStream

    from .events import Address

__all__ = ["PushTransport", "Sink", "StreamTransport", "Transport", "TransportLost"]

# How long a peer may be silent before a connection that cannot be half-closed is cut.
IDLE_DRAIN = 1.0

# The largest piece handed to a stream at once, so that progress on a slow link shows.
_MAX_PIECE = 256 * 1024


# What comes of asking a closed stream what it is: uvloop has no socket to ask any more.
_CLOSED = (OSError, ValueError, AttributeError)


class TransportLost(Exception):
    """The pipe is broken: nothing more can be sent or received."""


class Sink(ABC):
    """Where a pipe that reads by itself puts what has come."""

    __slots__ = ()

    @abstractmethod
    def data_received(self, data: bytes) -> None:
        """Take the next bytes, b"" at the end. Called by the loop, not by a task."""

    @abstractmethod
    def reading_failed(self, error: TransportLost) -> None:
        """Note that the pipe broke."""


class Transport(ABC):
    """A byte pipe with two ends that close on their own.

    `receive` is called by one task at a time; any number of tasks may write and drain.
    """

    __slots__ = ()

    @property
    def pace(self) -> Pace:
        """How often operations on it give way to others."""
        return Pace.current()

    @abstractmethod
    async def receive(self) -> bytes:
        """Return the next bytes, b"" at the end. Cancelling it loses nothing.

        Raises:
            TransportLost: the pipe broke or was closed on this side.
        """

    def receive_nowait(self) -> bytes:
        """Return bytes that are there already; b"" is to call `receive`, which may wait."""
        return b""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Take bytes to be sent, in order; what a broken pipe is given is dropped."""

    def write_behind(self, data: bytes) -> None:
        """Write, and wait for more that comes in the same turn of the loop, where that can be."""
        self.write(data)

    @property
    @abstractmethod
    def clogged(self) -> bool:
        """Whether `drain` is to be called before more is written."""

    @property
    @abstractmethod
    def pieces_sent(self) -> int:
        """Counts the pieces that went out, so that progress can be told from a stall."""

    @property
    @abstractmethod
    def unsent(self) -> bool:
        """Whether bytes were taken that are not sent yet."""

    @property
    @abstractmethod
    def broken(self) -> bool:
        """Whether nothing can be sent any more."""

    @abstractmethod
    async def drain(self) -> None:
        """Wait until what was taken before the call is sent.

        Raises:
            TransportLost: the pipe broke or was closed on this side.
        """

    def send_later(self, call_soon: Callable[[Callable[[], object]], None]) -> None:
        """Join what is written in one turn of the loop, with `call_soon` to send it after that."""
        return

    def protect(self) -> None:
        """Shield writes from cancellation, where one half way would break the pipe.

        From then on `tend` is to be called now and then, and `release` in the end.
        """
        return

    def tend(self) -> bool:
        """Lift the shield of a write that was under way at the last call; whether there is one."""
        return False

    def release(self) -> None:
        """Shield nothing any more."""
        return

    async def send(self, data: bytes) -> None:
        """Send all bytes.

        Raises:
            TransportLost: the pipe broke or was closed on this side.
        """
        self.write(data)
        await self.drain()

    @abstractmethod
    async def send_eof(self) -> bool:
        """End this side's sending, behind what was written; False if the pipe has no such end.

        Raises:
            TransportLost: the pipe broke or was closed on this side.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close the pipe, politely: what was written is sent, and TLS says that it ends.

        It may wait for the peer. It never raises but to cancel.
        """

    @abstractmethod
    async def abort(self) -> None:
        """Close the pipe at once, whatever is under way; it does not wait and never raises."""

    @property
    @abstractmethod
    def secure(self) -> bool:
        """Whether TLS is on it."""

    @property
    @abstractmethod
    def local_address(self) -> Address:
        """This side's address."""

    @property
    @abstractmethod
    def remote_address(self) -> Address:
        """The peer's address."""

    @abstractmethod
    def extra(self, attribute: Any, default: object = ...) -> Any:
        """Return a typed attribute of the stream below (anyio's ``extra``).

        Raises:
            anyio.TypedAttributeLookupError: there is none and no default was given.
        """


async def linger(transport: Transport, seconds: float | None) -> None:
    """Close a pipe so that the peer can still read what was sent (RFC 6455 section 7.1.1).

    Closing a socket with unread input makes the kernel send a reset, which may destroy
    what the peer has not read yet: so this side's half is closed first and the rest is read
    and dropped, for so many seconds at most.
    """
    try:
        with anyio.move_on_after(seconds):
            half_closed = await transport.send_eof()
            await drain(transport, None if half_closed else IDLE_DRAIN)
            await transport.aclose()
    except TransportLost:
        return
    finally:
        await transport.abort()


async def drain(transport: Transport, idle: float | None) -> None:
    """Read and drop until the end, or until nothing came for `idle` seconds."""
    with contextlib.suppress(TransportLost):
        data = b"..."
        while data:
            data = b""
            with anyio.move_on_after(idle):
                data = await transport.receive()


def read_on_demand(stream: object) -> None:
    """Have a stream read from its socket only while somebody receives.

    On asyncio and uvloop, anyio's streams read into an unbounded queue until the first time
    they find it empty: a peer that sends faster than it is read would fill the memory. From
    a pause on, each `receive` resumes and pauses the reading itself. anyio offers no public
    way to pause it, so where the stream is built otherwise, this does nothing.
    """
    while stream is not None:
        pause = getattr(getattr(stream, "_transport", None), "pause_reading", None)
        if pause is not None:
            with contextlib.suppress(RuntimeError):
                pause()
        stream = getattr(stream, "transport_stream", None)


class PushTransport(Transport):
    """A byte pipe that reads by itself, and may be asked to call back."""

    __slots__ = ()

    @abstractmethod
    def start(self, sink: Sink) -> None:
        """Hand to `sink` what comes from here on; `receive` is not called any more."""

    @abstractmethod
    def pause(self) -> None:
        """Hand nothing more to the sink until `resume` is called."""

    @abstractmethod
    def resume(self) -> None:
        """Go on with handing to the sink what comes."""

    @abstractmethod
    def cut(self) -> None:
        """Do what `abort` does, as a plain call."""

    @abstractmethod
    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function with the loop's next turn."""

    @abstractmethod
    def call_at(self, when: float, function: Callable[[], object]) -> Callable[[], object]:
        """Call a function at a time of ``anyio.current_time``; returns what prevents it."""


class StreamTransport(Transport):
    """The pipe over any anyio byte stream.

    Args:
        stream: it is owned by the pipe from here on.
    """

    pieces_sent: int = 0
    # Nothing is sent without `drain`.
    clogged: bool = False

    def __init__(self, stream: ByteStream | ObjectStream[bytes]) -> None:
        read_on_demand(stream)
        self._pace = Pace.current()
        self._stream = stream
        self._closed = False
        self._taken: list[bytes] = []
        # Bytes taken and bytes sent, so that a task knows when its own are out.
        self._taken_total = 0
        self._sent_total = 0
        self._sending = False
        self._failure: str | None = None
        self._progress = Bell()
        self._protected = False
        self._shield: anyio.CancelScope | None = None
        self._slow: anyio.CancelScope | None = None
        raw = self._ask(SocketAttribute.raw_socket)
        if raw is not None and raw.fileno() < 0:
            # Waiting for its socket would fail in ways of each event loop's own.
            self._closed = True
        # Closing an in-memory stream does not wake the task that waits in it.
        self._wakes = raw is not None
        self._waiting: set[anyio.CancelScope] = set()
        # On asyncio, cancelling anyio's own wait on a Unix socket may set a future twice.
        self._wait_first = raw if isinstance(stream, UNIXSocketStream) else None
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def _call(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Call the stream, its errors mapped."""
        if self._closed:
            raise self._closed_here()
        try:
            if self._wakes:
                return await function(*args)
            with anyio.CancelScope() as scope:
                self._waiting.add(scope)
                try:
                    return await function(*args)
                finally:
                    self._waiting.discard(scope)
        except anyio.EndOfStream:
            return b""
        except anyio.ClosedResourceError:
            raise self._closed_here() from None
        except (anyio.BrokenResourceError, OSError) as exc:
            # ssl.SSLError is an OSError.
            raise TransportLost(_describe(exc)) from exc
        raise self._closed_here()

    def _closed_here(self) -> TransportLost:
        """Return what to raise once the stream was closed, which a broken send may have led to."""
        return TransportLost(self._failure or "the connection was closed on this side")

    async def receive(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        data = await self._call(self._receive)
        self._pace.reset()
        assert isinstance(data, bytes)
        return data

    async def _receive(self) -> bytes:
        if self._wait_first is not None:
            await anyio.wait_readable(self._wait_first)
        return await self._stream.receive()

    def write(self, data: bytes) -> None:
        """Take bytes to be sent with the next `drain`."""
        self._taken.append(data)
        self._taken_total += len(data)
        self.clogged = True

    @property
    def unsent(self) -> bool:
        """Whether bytes were taken that are not sent yet."""
        return self._sent_total < self._taken_total

    @property
    def broken(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closed or self._failure is not None

    async def drain(self) -> None:
        """Send what was taken before the call, unless another task does."""
        mark = self._taken_total
        while self._sent_total < mark:
            if self._failure is not None:
                raise TransportLost(self._failure)
            if self._sending:
                await self._progress.wait()
            else:
                await self._send_taken()

    async def _send_taken(self) -> None:
        data = self._taken[0] if len(self._taken) == 1 else b"".join(self._taken)
        self._taken.clear()
        self._sending = True
        try:
            with anyio.CancelScope(shield=self._protected) as self._shield:
                for start in range(0, len(data), _MAX_PIECE):
                    await self._call(self._stream.send, data[start : start + _MAX_PIECE])
                    self.pieces_sent += 1
            self._sent_total += len(data)
            self.clogged = self._sent_total < self._taken_total
        except TransportLost as exc:
            self._failure = str(exc)
            raise
        except BaseException:
            # It is not known how much went out, so nothing could follow.
            self._failure = "a send was cancelled half way"
            await self.abort()
            raise
        finally:
            self._shield = None
            self._sending = False
            self._progress.ring()

    def protect(self) -> None:
        """Shield each send from cancellation, which would leave the pipe with half of it."""
        self._protected = True

    def tend(self) -> bool:
        """Lift the shield of a send that was under way at the last call."""
        shield = self._shield
        if shield is not None and shield is self._slow:
            shield.shield = False
        self._slow = shield
        return shield is not None and shield.shield

    def release(self) -> None:
        """Shield nothing any more."""
        self._protected = False
        if self._shield is not None:
            self._shield.shield = False

    async def send_eof(self) -> bool:
        """End this side's sending; False on TLS."""
        await self.drain()
        try:
            await self._call(self._stream.send_eof)
        except NotImplementedError:
            return False
        except RuntimeError as exc:
            # uvloop's word for a connection that was reset.
            raise TransportLost(_describe(exc)) from exc
        return True

    async def aclose(self) -> None:
        """Close the pipe, once what was written is sent, with TLS's close_notify."""
        if not self._sending:
            # Where another task is at it, the peer may not read: closing ends that.
            with contextlib.suppress(TransportLost):
                await self.drain()
        if self._closed:
            return
        try:
            self._notify_closing()
            # TLS wants to read in its closing, which another task may be at.
            with contextlib.suppress(
                anyio.BrokenResourceError, anyio.BusyResourceError, anyio.EndOfStream, OSError
            ):
                await self._stream.aclose()
        finally:
            self._mark_closed()

    async def abort(self) -> None:
        """Close the pipe at once."""
        if self._closed:
            return
        self._mark_closed()
        self._notify_closing()
        with (
            anyio.CancelScope(shield=True),
            contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream, OSError),
        ):
            await anyio.aclose_forcefully(self._stream)

    def _notify_closing(self) -> None:
        if self._wait_first is not None:
            anyio.notify_closing(self._wait_first)

    def _mark_closed(self) -> None:
        self._closed = True
        for scope in self._waiting:
            scope.cancel()

    @property
    def secure(self) -> bool:
        """Whether the stream, or the one below it, is a TLS stream."""
        return self._ask(TLSAttribute.ssl_object) is not None

    @property
    def local_address(self) -> Address:
        """This side's address, None where the stream has none or is closed."""
        return as_address(self._ask(SocketAttribute.local_address))

    @property
    def remote_address(self) -> Address:
        """The peer's address, None where the stream has none or is closed."""
        return as_address(self._ask(SocketAttribute.remote_address))

    def _ask(self, attribute: Any) -> Any:
        """Return an attribute of the stream, None where it has none or is closed."""
        try:
            return self._stream.extra(attribute, None)
        except _CLOSED:
            return None

    def extra(self, attribute: Any, default: object = ...) -> Any:
        """Return a typed attribute of the stream."""
        return (
            self._stream.extra(attribute)
            if default is ...
            else self._stream.extra(attribute, default)
        )


def _describe(exc: BaseException) -> str:
    cause = exc.__cause__ or exc
    return f"the connection broke: {str(cause) or type(cause).__name__}"


# A server's own address is the same on each of its connections.
@lru_cache(maxsize=64)
def as_address(value: Any) -> Address:
    """Return what a socket says of its address as an `Address`."""
    if isinstance(value, tuple):
        # IPv6 addresses have a flow label and a scope behind host and port.
        return (str(value[0]), int(value[1]))
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    # A Unix socket without a name has an empty one.
    return value if isinstance(value, str) and value else None
