"""The byte pipe on a raw socket, on asyncio, uvloop and trio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from anyio import TypedAttributeLookupError
from anyio.abc import ByteStream, ObjectStream, SocketAttribute, SocketStream, UNIXSocketStream
from anyio.streams.tls import TLSStream

from ._bell import Bell
from ._loop import make_waiter, running_asyncio, trio_waits
from ._pipe import MAX_JOINED, READ_SIZE, Pipe
from ._readers import readers_of
from ._tls import on_tls
from .pace import Pace
from .transport import PushTransport, StreamTransport, Transport, TransportLost, as_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._loop import Waiter
    from ._readers import Readers
    from .events import Address
    from .transport import Sink

    Opener = Callable[[socket.socket, bytes, Address], "SocketTransport"]

__all__ = ["Sock", "SocketTransport", "make_transport", "open_transport", "socket_opener"]

#: What may be handed to `open_websocket_client`, `create_websocket_server` and their kin.
Sock: TypeAlias = "ByteStream | ObjectStream[bytes] | socket.socket"

# What a socket answers that has nothing, or takes nothing, at the moment.
_NOT_NOW = (BlockingIOError, InterruptedError)

# Buffers one call may send (POSIX grants 1024 on Linux).
_MAX_BUFFERS = 512


class SocketTransport(Pipe, Transport):
    """The pipe on a raw socket.

    The first write of a loop's turn goes out at once, unless it is said that more will come, and
    those that follow in the same turn are joined to one call. What the socket does not take is
    kept, in order: a cancellation never leaves half a write.

    Args:
        pace: how often operations on it give way to others.
        sock: connected; owned by the pipe from here on.
        early: bytes that were read from it already.
        remote: the peer's address, None to ask the socket.
    """

    __slots__ = (
        "_closed",
        "_inbox",
        "_local",
        "_remote",
    )

    def __init__(self, pace: Pace, sock: socket.socket, early: bytes, remote: Address) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._pace = pace
        self._sink = None
        self._in_turn = False
        self._inbox: list[bytes] = [early] if early else []
        self._failure = None
        self._closed = False
        # A list, for an empty deque takes as much as all the rest.
        self._backlog = []
        self._written = 0
        self._sent = 0
        self.pieces_sent = 0
        self._blocked = False
        self.clogged = False
        self._joins = False
        self._turn = -1
        self._local: Address = None
        self._remote = remote
        try:
            self._local = as_address(sock.getsockname())
            if remote is None:
                self._remote = as_address(sock.getpeername())
            # Other sockets than TCP's refuse.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            # It may be gone, too, which shows when it is read.
            return

    @property
    def pace(self) -> Pace:
        """How often operations on it give way to others."""
        return self._pace

    # Sending

    def _keep_unsent(self, data: bytes | memoryview, error: OSError | None) -> None:
        """Keep what the socket has not taken, or note that it is broken."""
        if error is not None and not isinstance(error, _NOT_NOW):
            self._break(error)
            return
        self._backlog.append(data)
        self._block()

    def _try_send(self, data: bytes | memoryview) -> int:
        """Return how many bytes went out; all of them if the pipe is broken."""
        try:
            sent = self._sock.send(data)
        except _NOT_NOW:
            return 0
        except OSError as exc:
            self._break(exc)
            return len(data)
        self._sent += sent
        self.pieces_sent += 1
        return sent

    def flush(self) -> None:
        """Send what was joined, as far as the socket takes it."""
        self._turn = -1
        while self._backlog and self._failure is None:
            if len(self._backlog) > 1:
                if self._written - self._sent <= MAX_JOINED:
                    self._backlog = [b"".join(self._backlog)]
                else:
                    # One call for many buffers, without copying them.
                    self._send_many()
                    if self._blocked:
                        return
                    continue
            data = self._backlog[0]
            sent = self._try_send(data)
            if sent < len(data):
                self._backlog[0] = memoryview(data)[sent:]
                self._block()
                return
            if self._backlog:
                del self._backlog[0]

    def _send_many(self) -> None:
        buffers = self._backlog[:_MAX_BUFFERS]
        try:
            sent = self._sock.sendmsg(buffers)
        except _NOT_NOW:
            self._block()
            return
        except OSError as exc:
            self._break(exc)
            return
        self._sent += sent
        self.pieces_sent += 1
        for count, buffer in enumerate(buffers):
            if sent < len(buffer):
                self._backlog[: count + 1] = [memoryview(buffer)[sent:]]
                self._block()
                return
            sent -= len(buffer)
        del self._backlog[: len(buffers)]

    @property
    def unsent(self) -> bool:
        """Whether bytes were taken that are not sent yet."""
        return bool(self._backlog)

    @property
    def broken(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._failure is not None

    async def drain(self) -> None:
        """Wait until what was taken before the call is sent."""
        mark = self._written
        if not self._blocked:
            self.flush()
        while self._sent < mark and self._failure is None:
            await self._wait_for_room()
        if self._failure is not None:
            raise TransportLost(self._failure)

    async def send(self, data: bytes) -> None:
        """Send all bytes."""
        self.write(data)
        # What is broken is clogged.
        if self.clogged or self._backlog:
            await self.drain()

    def _break(self, exc: BaseException) -> None:
        self._fail(f"the connection broke: {exc}")

    def _fail(self, why: str) -> None:
        """Note that the pipe is of no use any more."""
        if self._failure is None:
            self._failure = why
        self._backlog.clear()
        self._blocked = False
        self.clogged = True

    def _block(self) -> None:
        """Note that the socket takes no more for now."""
        self._blocked = self.clogged = True

    def _unblock(self) -> None:
        """Send on."""
        self._blocked = False
        self.clogged = self._failure is not None
        self.flush()

    @abstractmethod
    async def _wait_for_room(self) -> None:
        """Wait until the socket may take more, and send on."""

    # Ending

    async def send_eof(self) -> bool:
        """End this side's sending."""
        await self.drain()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self._break(exc)
            raise TransportLost(str(self._failure)) from exc
        return True

    async def aclose(self) -> None:
        """Close the socket, once what was written is sent."""
        with contextlib.suppress(TransportLost):
            await self.drain()
        self.cut()

    async def abort(self) -> None:
        """Close the socket at once."""
        self.cut()

    def cut(self) -> None:
        """Close the socket at once."""
        if not self._closed:
            self._closed = True
            if self._backlog and not self._blocked:
                # It would be out already, had it not been joined.
                self.flush()
            self._fail("the connection was closed on this side")
            self._let_go()
            self._sock.close()

    @abstractmethod
    def _let_go(self) -> None:
        """Forget the socket, which is about to be closed; whoever waits for it is told."""

    # What it is

    @property
    def secure(self) -> bool:
        """False: there is no TLS."""
        return False

    @property
    def local_address(self) -> Address:
        """This side's address."""
        return self._local

    @property
    def remote_address(self) -> Address:
        """The peer's address."""
        return self._remote

    def extra(self, attribute: Any, default: object = ...) -> Any:
        """Return one of anyio's attributes of sockets."""
        sock = self._sock
        if attribute is SocketAttribute.raw_socket:
            return sock
        if attribute is SocketAttribute.family:
            return sock.family
        found: Any = None
        if attribute is SocketAttribute.local_address:
            found = self._local
        elif attribute is SocketAttribute.remote_address:
            found = self._remote
        elif attribute is SocketAttribute.local_port and isinstance(self._local, tuple):
            found = self._local[1]
        elif attribute is SocketAttribute.remote_port and isinstance(self._remote, tuple):
            found = self._remote[1]
        if found is not None:
            return found
        if default is ...:
            raise TypedAttributeLookupError("Attribute not found")
        return default


class AsyncioSocket(SocketTransport, PushTransport):
    """The pipe on asyncio and uvloop: the loop itself reads, and sends what is left."""

    __slots__ = (
        "_arrived",
        "_descriptor",
        "_eof",
        "_flush_handle",
        "_readers",
        "_loop",
        "_reading",
        "_room",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        readers: Readers,
        pace: Pace,
        sock: socket.socket,
        early: bytes,
        remote: Address,
    ) -> None:
        super().__init__(pace, sock, early, remote)
        self._joins = True
        self._loop = loop
        self._readers = readers
        self._descriptor = sock.fileno()
        self._reading = False
        self._eof = False
        # Resumes the task in `receive`, and those in `drain`.
        self._arrived: Waiter | None = None
        self._room = Bell()
        self._flush_handle: asyncio.Handle | None = None

    def _receive_failed(self, error: OSError) -> None:
        if isinstance(error, _NOT_NOW):
            return
        self.pause()
        self._break(error)
        if self._sink is None:
            self._tell()
        else:
            self._sink.reading_failed(TransportLost(str(self._failure)))

    def _receive_otherwise(self, data: bytes) -> None:
        """Take the end, or what has come for `receive`."""
        self._eof = not data
        if self._eof or self._inbox:
            # Nobody may be reading: no more than this is read ahead.
            self.pause()
        if self._sink is not None:
            self._sink.data_received(data)
            return
        if data:
            self._inbox.append(data)
        self._tell()

    def _tell(self) -> None:
        self._pace.reset()
        if self._arrived is not None:
            self._arrived.resume()

    def _receive_now(self) -> bool:
        """Take what is there for `receive`; whether that was anything, be it the end."""
        try:
            data = self._sock.recv(READ_SIZE)
        except _NOT_NOW:
            return False
        except OSError as exc:
            self._break(exc)
            return True
        self._eof = not data
        if data:
            self._inbox.append(data)
        return True

    def receive_nowait(self) -> bytes:
        """Return bytes that are there already, b"" for none; the end is left to `receive`."""
        if self._inbox or (not self._eof and self._failure is None and self._receive_now()):
            return self._inbox.pop(0) if self._inbox else b""
        return b""

    async def receive(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        while True:
            if self._pace.due(0):
                await self._pace.give_way()
            if self._inbox:
                return self._inbox.pop(0)
            if self._failure is not None:
                raise TransportLost(self._failure)
            if self._eof:
                return b""
            if self._receive_now():
                # It was there already, as most requests are; and uvloop does not tell of an end
                # behind bytes that it has told of.
                continue
            self.resume()
            if self._arrived is None:
                self._arrived = make_waiter()
            await self._arrived

    def start(self, sink: Sink) -> None:
        """Hand to `sink` what comes from here on."""
        self._sink = sink
        self._arrived = None
        while self._inbox:
            sink.data_received(self._inbox.pop(0))
        if self._failure is not None:
            sink.reading_failed(TransportLost(self._failure))
        elif self._eof:
            sink.data_received(b"")

    def pause(self) -> None:
        """Read nothing more for now."""
        if self._reading:
            self._reading = False
            self._readers.pause(self._descriptor)

    def resume(self) -> None:
        """Read on."""
        if not (self._reading or self._eof or self._failure is not None):
            self._reading = True
            self._readers.resume(self._descriptor, self.on_readable)

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function with the loop's next turn."""
        self._loop.call_soon(function)

    def call_at(self, when: float, function: Callable[[], object]) -> Callable[[], object]:
        """Call a function at a time of the loop; returns what prevents it."""
        return self._loop.call_at(when, function).cancel

    def _flush_later(self) -> None:
        if self._flush_handle is None:
            self._flush_handle = self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._flush_handle = None
        if not self._blocked:
            self.flush()

    def _block(self) -> None:
        super()._block()
        self._loop.add_writer(self._sock, self._on_writable)

    def _on_writable(self) -> None:
        self._unblock()
        if not self._blocked:
            self._loop.remove_writer(self._sock)
        self._room.ring()

    async def _wait_for_room(self) -> None:
        await self._room.wait()

    def _fail(self, why: str) -> None:
        if self._blocked:
            self._loop.remove_writer(self._sock)
        super()._fail(why)
        self._room.ring()

    def _let_go(self) -> None:
        self._reading = False
        self._readers.forget(self._descriptor)
        self._sink = None
        if self._arrived is not None:
            self._arrived.wake()


class TrioSocket(SocketTransport):
    """The pipe on trio: the task that wants something waits for the socket."""

    __slots__ = (
        "_call_soon",
        "_ready",
        "_room",
        "_wait_readable",
        "_wait_writable",
    )

    def __init__(self, pace: Pace, sock: socket.socket, early: bytes, remote: Address) -> None:
        super().__init__(pace, sock, early, remote)
        # Whether a read may find something without waiting.
        self._ready = True
        self._call_soon: Callable[[Callable[[], object]], None] | None = None
        self._wait_readable, self._wait_writable = trio_waits()
        # Set while a task waits for room, for others that do.
        self._room: anyio.Event | None = None

    def _receive_now(self) -> bytes | None:
        """Return what is there, b"" at the end; None for nothing, or where it is broken."""
        if not self._ready:
            return None
        try:
            data = self._sock.recv(READ_SIZE)
        except _NOT_NOW:
            self._ready = False
            return None
        except OSError as exc:
            self._break(exc)
            return None
        # A whole buffer may not have been all, and an end comes again.
        self._ready = len(data) in (0, READ_SIZE)
        return data

    def receive_nowait(self) -> bytes:
        """Return bytes that are there already, b"" for none; the end is left to `receive`."""
        if self._inbox:
            return self._inbox.pop(0)
        return self._receive_now() or b"" if self._failure is None else b""

    async def receive(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        while True:
            if self._pace.due(0):
                await self._pace.give_way()
            if self._inbox:
                return self._inbox.pop(0)
            if self._failure is not None:
                raise TransportLost(self._failure)
            data = self._receive_now()
            if data is not None:
                return data
            if self._failure is not None:
                continue
            if self._backlog and not self._blocked:
                # What was joined goes out before its task waits for the answer.
                self.flush()
            self._turn = -1
            await self._wait(self._wait_readable)
            self._ready = True

    async def _wait(self, wait: Callable[[socket.socket], Any]) -> None:
        try:
            await wait(self._sock)
        except Exception as exc:
            # trio's own word for a socket that was closed meanwhile.
            raise TransportLost(self._failure or f"the connection broke: {exc}") from None
        self._pace.reset()

    def send_later(self, call_soon: Callable[[Callable[[], object]], None]) -> None:
        """Join what is written in one turn of the loop, with `call_soon` to send it after that."""
        self._call_soon = call_soon
        self._joins = True

    def _flush_later(self) -> None:
        assert self._call_soon is not None
        self._call_soon(self._end_turn)

    def _end_turn(self) -> None:
        if not self._blocked:
            self.flush()

    async def _wait_for_room(self) -> None:
        if self._room is not None:
            await self._room.wait()
            return
        self._room = anyio.Event()
        try:
            await self._wait(self._wait_writable)
            self._unblock()
        finally:
            room, self._room = self._room, None
            room.set()

    def _let_go(self) -> None:
        anyio.notify_closing(self._sock)


async def make_transport(sock: Sock) -> Transport:
    """Return the pipe for what a user handed in: the one place where it is chosen.

    Raises:
        TypeError: it is not a byte stream or a stream socket without TLS.
        ValueError: the socket is not connected.
        anyio.BusyResourceError: a task is reading from it or writing to it.
    """
    if isinstance(sock, ssl.SSLSocket):
        raise TypeError(
            "expected a socket without TLS, got an SSLSocket: wrap the stream in "
            "anyio.streams.tls.TLSStream instead"
        )
    if isinstance(sock, socket.socket):
        if sock.type != socket.SOCK_STREAM:
            raise TypeError(f"expected a stream socket, got one of type {sock.type!r}")
        try:
            sock.getpeername()
        except OSError as exc:
            raise ValueError(f"expected a connected socket, got {sock}") from exc
        return await open_transport(sock)
    if isinstance(sock, (ByteStream, ObjectStream)):
        return _take_over(sock) or StreamTransport(sock)
    raise TypeError(f"expected an anyio byte stream or a socket, got {sock!r}")


async def open_transport(sock: socket.socket) -> Transport:
    """Return the pipe on a connected socket."""
    opened = socket_opener()
    if opened is None:
        sock.setblocking(False)
        return StreamTransport(await _as_stream(sock))
    return opened(sock, b"", None)


async def _as_stream(sock: socket.socket) -> SocketStream | UNIXSocketStream:
    """Return anyio's stream on a connected socket."""
    if sock.family == getattr(socket, "AF_UNIX", None):
        return await UNIXSocketStream.from_socket(sock)
    return await SocketStream.from_socket(sock)


def socket_opener() -> Opener | None:
    """Return what makes a pipe of a connected socket; None if the loop cannot wait for one.

    It gets the socket, what was read from it, and the peer's address, None to ask the socket.
    What there is to be asked of the event loop has been asked then.
    """
    pace = Pace.current()
    if not running_asyncio():
        return partial(TrioSocket, pace)
    loop = asyncio.get_running_loop()
    # Windows' proactor loop has no readers.
    if type(loop).add_reader is asyncio.AbstractEventLoop.add_reader:
        return None
    return partial(AsyncioSocket, loop, readers_of(loop), pace)


def _take_over(found: object) -> Transport | None:
    """Return the pipe on a stream's socket, with what the stream has read; None if it cannot be.

    anyio has no public way to get at that, so where a stream is built otherwise than expected,
    it is used as it is.
    """
    if isinstance(found, TLSStream):
        return _take_over_tls(found)
    if not isinstance(found, (SocketStream, UNIXSocketStream)):
        return None
    stream: Any = found
    try:
        if stream._receive_guard._guarded or stream._send_guard._guarded:
            raise anyio.BusyResourceError("using")
        transport = getattr(stream, "_transport", None)
        early = b""
        if transport is not None:
            protocol = stream._protocol
            if transport.is_closing() or protocol.exception or transport.get_write_buffer_size():
                return None
            early = b"".join(protocol.read_queue)
        raw = stream.extra(SocketAttribute.raw_socket)
        if raw.fileno() < 0:
            return None
        # Its own descriptor, for the stream's is about to be closed.
        sock = socket.socket(fileno=os.dup(raw.fileno()))
    except (AttributeError, OSError):
        return None
    opened = socket_opener()
    if opened is None:
        sock.close()
        return None
    taken = opened(sock, early, None)
    if transport is not None:
        protocol.read_queue.clear()
        transport.abort()
    else:
        getattr(stream, "_trio_socket", raw).close()
    stream._closed = stream._closing = True
    return taken


def _take_over_tls(stream: Any) -> Transport | None:
    try:
        inside = stream._ssl_object, stream._read_bio, stream._write_bio
    except AttributeError:
        return None
    pipe = _take_over(stream.transport_stream)
    return None if pipe is None else on_tls(pipe, *inside)
