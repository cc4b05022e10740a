"""For tests: byte streams that fail as networks do, and what a byte pipe has to keep.

Hand a :class:`FaultyStream` to `open_websocket_client`, `open_websocket_server`, or any other
code on anyio, to see what it does when the network is slow, silent, or cut in the middle of a
frame. :func:`memory_pair` connects two ends without a network. :func:`check_transport` holds a
stream or :class:`Transport` of your own to the promises this library builds on.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from anyio import ResourceGuard
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint

from ._bell import Bell
from ._sockets import Sock, make_transport
from .transport import PushTransport, Sink, Transport, TransportLost

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from anyio.abc import ObjectStream

__all__ = ["Faults", "FaultyStream", "MemoryStream", "check_transport", "memory_pair"]

_CUT = "expected at most one of end_after, reset_after and silent_after"


@dataclass(frozen=True)
class Faults:
    """What goes wrong in one direction of a :class:`FaultyStream`.

    Attributes:
        delay: seconds that each piece is late.
        split: bytes a piece has at most; 1 for a byte at a time.
        end_after: bytes behind which the direction ends, as after a clean close by something
            in between.
        reset_after: bytes behind which the connection is reset, in both directions.
        silent_after: bytes behind which nothing arrives any more, and no end either: a cable
            that was pulled.

    Raises:
        ValueError: more than one of the last three, or a number that makes no sense.
    """

    delay: float = 0
    split: int | None = None
    end_after: int | None = None
    reset_after: int | None = None
    silent_after: int | None = None

    def __post_init__(self) -> None:
        if self.delay < 0:
            raise ValueError(f"expected a delay of 0 seconds or more, got {self.delay}")
        if self.split is not None and self.split < 1:
            raise ValueError(f"expected to split into pieces of 1 byte or more, got {self.split}")
        cuts = [n for n in (self.end_after, self.reset_after, self.silent_after) if n is not None]
        if len(cuts) > 1:
            raise ValueError(f"{_CUT}, got {len(cuts)}")
        if cuts and cuts[0] < 0:
            raise ValueError(f"expected to cut after 0 bytes or more, got {cuts[0]}")

    @property
    def cut_after(self) -> int | None:
        """The bytes behind which the direction is cut, None if it is not."""
        for after in (self.end_after, self.reset_after, self.silent_after):
            if after is not None:
                return after
        return None


class _Direction:
    """The faults of one direction, and how many bytes have passed under them."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.passed = 0
        # Whether the cut was made.
        self.cut = False

    def allowed(self, size: int) -> int:
        """Return how many of so many bytes may pass as the next piece; 0 where it is cut."""
        faults = self.faults
        if faults.split is not None:
            size = min(size, faults.split)
        if faults.cut_after is not None:
            size = min(size, faults.cut_after - self.passed)
        return size


class FaultyStream(ByteStream):
    """A byte stream on another one, with a network's faults.

    ``FaultyStream(stream, receiving=Faults(split=1), sending=Faults(reset_after=1000))``

    Faults may be set at any time, by assigning to `receiving` or `sending`; bytes count from
    there. So ``stream.sending = Faults(reset_after=3)`` after the handshake resets the
    connection in the middle of the next frame, and ``stream.receiving = Faults()`` ends a silence.

    TLS cannot end one direction only: there ``end_after`` cuts both. To have TLS itself see the
    faults, wrap the stream below it.

    A reset is one for this side (``BrokenResourceError``) and, over TCP without TLS and over
    :class:`MemoryStream`, for the peer; on other streams the peer sees them closed.

    Args:
        stream: it is owned from here on.
        receiving: the faults of what comes.
        sending: the faults of what goes out.
    """

    def __init__(
        self,
        stream: ByteStream | ObjectStream[bytes],
        *,
        receiving: Faults | None = None,
        sending: Faults | None = None,
    ) -> None:
        self._stream = stream
        self._receiving = _Direction(receiving or Faults())
        self._sending = _Direction(sending or Faults())
        # What was received and not handed on: a cancellation loses nothing.
        self._received = b""
        self._receive_guard = ResourceGuard("receiving from")
        self._send_guard = ResourceGuard("sending to")
        # Set when nothing is to be waited for any more.
        self._over = anyio.Event()
        # Rung then, and when what is received has other faults.
        self._changed = Bell()
        self._closed = False
        self._reset = False

    @property
    def receiving(self) -> Faults:
        """The faults of what comes from now on."""
        return self._receiving.faults

    @receiving.setter
    def receiving(self, faults: Faults) -> None:
        self._receiving = _Direction(faults)
        self._changed.ring()

    @property
    def sending(self) -> Faults:
        """The faults of what goes out from now on."""
        return self._sending.faults

    @sending.setter
    def sending(self, faults: Faults) -> None:
        self._sending = _Direction(faults)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return the next bytes, as late and as few as the faults say.

        Raises:
            anyio.EndOfStream: the peer has ended its sending, or ``end_after`` was reached.
            anyio.BrokenResourceError: the connection is broken, or ``reset_after`` was reached.
            anyio.ClosedResourceError: it was closed on this side.
            anyio.BusyResourceError: another task is receiving.
        """
        if max_bytes < 1:
            raise ValueError(f"expected max_bytes of 1 or more, got {max_bytes}")
        with self._receive_guard:
            await checkpoint()
            self._check()
            await self._cut()
            if not self._received:
                self._received = await self._stream.receive()
            await self._delay(self._receiving.faults)
            # The faults may have been set while it waited.
            await self._cut()
            size = self._receiving.allowed(min(max_bytes, len(self._received)))
            data, self._received = self._received[:size], self._received[size:]
            self._receiving.passed += size
            return data

    async def send(self, item: bytes) -> None:
        """Send bytes, as late, in such pieces and so far as the faults say.

        Raises:
            anyio.BrokenResourceError: the connection is broken, or ``reset_after`` or
                ``end_after`` was reached.
            anyio.ClosedResourceError: it was closed on this side.
            anyio.BusyResourceError: another task is sending.
        """
        with self._send_guard:
            await checkpoint()
            self._check()
            left = memoryview(item)
            while left:
                await self._delay(self._sending.faults)
                if await self._stop_sending(self._sending):
                    return
                size = self._sending.allowed(len(left))
                await self._stream.send(bytes(left[:size]))
                self._sending.passed += size
                left = left[size:]
            # Not only when more is sent: the peer may wait for the cut.
            if item:
                await self._stop_sending(self._sending, finished=True)

    async def send_eof(self) -> None:
        """End this side's sending; where it has gone silent, nobody is told."""
        await checkpoint()
        self._check()
        direction = self._sending
        if not (self._silent(direction) or direction.cut):
            await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the stream, and the one below; whoever waits in it is told."""
        self._closed = True
        self._over.set()
        self._changed.ring()
        await self._stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Those of the stream below."""
        return self._stream.extra_attributes

    def _check(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._reset:
            raise _connection_reset()

    async def _delay(self, faults: Faults) -> None:
        if faults.delay:
            with anyio.move_on_after(faults.delay):
                await self._over.wait()
            self._check()

    def _silent(self, direction: _Direction) -> bool:
        after = direction.faults.silent_after
        return after is not None and direction.passed >= after

    async def _cut(self) -> None:
        """Do what the faults say where so many bytes have been received."""
        while self._silent(self._receiving):
            await self._changed.wait()
            self._check()
        faults = self._receiving.faults
        if faults.cut_after is None or self._receiving.passed < faults.cut_after:
            return
        if faults.reset_after is not None:
            await self._reset_now()
        raise anyio.EndOfStream

    async def _stop_sending(self, direction: _Direction, *, finished: bool = False) -> bool:
        """Do the same for what is sent; whether what is left is to be dropped."""
        faults = direction.faults
        if faults.cut_after is None or direction.passed < faults.cut_after:
            return False
        if faults.silent_after is not None:
            return True
        if faults.reset_after is not None:
            await self._reset_now()
        if not direction.cut:
            direction.cut = True
            try:
                await self._stream.send_eof()
            except NotImplementedError:
                # TLS would wait for the peer.
                await _cut_off(self._stream)
        if finished:
            return True
        raise anyio.BrokenResourceError from BrokenPipeError(
            errno.EPIPE, "the connection was ended in between"
        )

    async def _reset_now(self) -> None:
        self._reset = True
        self._over.set()
        self._changed.ring()
        await reset(self._stream)
        raise _connection_reset()


def _connection_reset() -> anyio.BrokenResourceError:
    error = anyio.BrokenResourceError()
    error.__cause__ = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    return error


async def reset(stream: ByteStream | ObjectStream[bytes]) -> None:
    """Close a stream so that its peer sees a reset, where that can be."""
    if isinstance(stream, MemoryStream):
        stream.reset()
        return
    raw = stream.extra(SocketAttribute.raw_socket, None)
    if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
        # A linger of no seconds makes the close a reset.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await _cut_off(stream)


async def _cut_off(stream: ByteStream | ObjectStream[bytes]) -> None:
    with suppress(anyio.BrokenResourceError, OSError):
        await anyio.aclose_forcefully(stream)


# A pair in memory


class _Half:
    """One direction of a pair in memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.buffer: bytearray = bytearray()
        # Whether its writer has ended it, whether its reader is gone, and whether it was reset.
        self.ended = self.unread = self.was_reset = False
        self.changed: Bell = Bell()


class MemoryStream(ByteStream):
    """One end of :func:`memory_pair`: a stream as on TCP, without a network."""

    def __init__(self, incoming: _Half, outgoing: _Half) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False
        self._receive_guard = ResourceGuard("receiving from")
        self._send_guard = ResourceGuard("sending to")

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return the next bytes, waiting for them.

        Raises:
            anyio.EndOfStream: the peer has ended its sending, or closed.
            anyio.BrokenResourceError: the connection was reset.
            anyio.ClosedResourceError: it was closed on this side.
            anyio.BusyResourceError: another task is receiving.
        """
        if max_bytes < 1:
            raise ValueError(f"expected max_bytes of 1 or more, got {max_bytes}")
        half = self._incoming
        with self._receive_guard:
            await checkpoint()
            while True:
                self._check(half)
                if half.buffer:
                    data = bytes(half.buffer[:max_bytes])
                    del half.buffer[:max_bytes]
                    half.changed.ring()
                    return data
                if half.ended:
                    raise anyio.EndOfStream
                await half.changed.wait()

    async def send(self, item: bytes) -> None:
        """Send bytes; wait while the peer has not read what fills the pair.

        Raises:
            anyio.BrokenResourceError: the peer has closed, or the connection was reset.
            anyio.ClosedResourceError: it was closed, or its sending ended, on this side.
            anyio.BusyResourceError: another task is sending.
        """
        half = self._outgoing
        with self._send_guard:
            await checkpoint()
            left = memoryview(item)
            while True:
                self._check(half)
                if half.ended:
                    raise anyio.ClosedResourceError
                if half.unread:
                    raise anyio.BrokenResourceError from BrokenPipeError(
                        errno.EPIPE, os.strerror(errno.EPIPE)
                    )
                room = half.size - len(half.buffer)
                if room > 0 and left:
                    half.buffer += left[:room]
                    left = left[room:]
                    half.changed.ring()
                if not left:
                    return
                await half.changed.wait()

    async def send_eof(self) -> None:
        """End this side's sending; receiving goes on."""
        await checkpoint()
        self._check(self._outgoing)
        self._outgoing.ended = True
        self._outgoing.changed.ring()

    async def aclose(self) -> None:
        """Close this end: the peer reads what was sent, and then the end."""
        self._close()
        await checkpoint()

    def reset(self) -> None:
        """Close this end as a crash would: what was not read yet is lost, for both."""
        for half in (self._incoming, self._outgoing):
            half.was_reset = True
            half.buffer.clear()
        self._close()

    def _close(self) -> None:
        self._closed = True
        self._outgoing.ended = self._incoming.unread = True
        self._incoming.changed.ring()
        self._outgoing.changed.ring()

    def _check(self, half: _Half) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if half.was_reset:
            raise _connection_reset()


def memory_pair(size: int = 65536) -> tuple[MemoryStream, MemoryStream]:
    """Return two ends of a connection in memory.

    Each end can be closed, and its sending ended, on its own; a task that waits in one is told
    when it is closed.

    Args:
        size: bytes that may be on their way in each direction; whoever sends more waits.
    """
    if size < 1:
        raise ValueError(f"expected a size of 1 byte or more, got {size}")
    there, back = _Half(size), _Half(size)
    return MemoryStream(back, there), MemoryStream(there, back)


# What a byte pipe promises

#: An end that is to be checked: a transport, or what `open_websocket_client` can be handed.
End: TypeAlias = "Transport | Sock"
Maker: TypeAlias = "Callable[[], Awaitable[tuple[End, End]]]"
Pair: TypeAlias = "tuple[Transport, Transport]"


async def check_transport(make: Maker, *, capacity: int = 16 * 1024 * 1024) -> None:
    """Check that byte pipes keep what :class:`Transport` promises.

    ``await check_transport(make)`` in a test, where ``await make()`` returns the two ends of a
    new connection. Each promise is checked in both directions, on a pair of its own, with
    pieces of any size, a byte at a time, and clogged.

    Args:
        make: returns two :class:`Transport`, or two streams or sockets: of those, the transport
            that this library would use on them is checked.
        capacity: bytes that are more than the two ends and what is between them can hold.

    Raises:
        AssertionError: a promise is broken; it says which.
    """
    for check in _CHECKS:
        for swapped in (False, True):
            pair: list[Transport] = []
            try:
                with anyio.fail_after(_PATIENCE):
                    for end in await make():
                        if not isinstance(end, Transport):
                            end = await make_transport(end)
                        pair.append(end)
                    near, far = reversed(pair) if swapped else pair
                    await check((near, far), capacity)
            except TimeoutError:
                raise AssertionError(
                    f"{_promise(check)}: something waits that should not"
                ) from None
            except Exception as exc:
                raise AssertionError(f"{_promise(check)}: {_first(exc)}") from exc
            finally:
                for transport in pair:
                    await transport.abort()


# How long a check may hang; it decides nothing else.
_PATIENCE = 20


def _first(exc: BaseException) -> str:
    """Say what has happened, whatever groups it is in."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return str(exc) if isinstance(exc, AssertionError) else repr(exc)


def _promise(check: Callable[..., object]) -> str:
    return (check.__doc__ or "").partition("\n")[0].rstrip(".")


def _expect(condition: object, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


async def _read(pipe: Transport, size: int) -> bytes:
    """Return so many bytes, or fewer if it ends before."""
    data = bytearray()
    while len(data) < size:
        piece = await pipe.receive()
        if not piece:
            break
        data += piece
    return bytes(data)


async def _read_to_end(pipe: Transport) -> bytes:
    """Return all that comes before the end, or before the pipe breaks."""
    data = bytearray()
    with suppress(TransportLost):
        while piece := await pipe.receive():
            data += piece
    return bytes(data)


async def _is_lost(function: Callable[[], Awaitable[object]]) -> bool:
    try:
        await function()
    except TransportLost:
        return True
    return False


async def _settle() -> None:
    """Let the other tasks run until they wait, as far as that takes no time."""
    for _ in range(_TURNS):
        await checkpoint()


# More than it takes a task to get from one of its waits to the next.
_TURNS = 20


def _pattern(size: int) -> bytes:
    """Return bytes that show where one is missing or out of place."""
    return (_NUMBERS * (size // len(_NUMBERS) + 1))[:size]


# Of odd length, so that no buffer's size is a multiple of it.
_NUMBERS = b"".join(struct.pack("!H", number) for number in range(32_767)) + b"!"


class _Clogged:
    """A pipe that was given more than it can hold, and a task that waits for it to be sent."""

    def __init__(self, pipe: Transport, capacity: int) -> None:
        self._pipe = pipe
        self.data: bytes = _pattern(capacity)
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.ended: anyio.Event = anyio.Event()
        self.error: BaseException | None = None
        pipe.write(self.data)

    async def drain(self) -> None:
        try:
            with self.scope:
                await self._pipe.drain()
        except TransportLost as exc:
            self.error = exc
        finally:
            self.ended.set()


async def _check_order(pair: Pair, capacity: int) -> None:
    """What is written arrives, in order and whole, whatever the pieces."""
    a, b = pair
    sizes = (1, 2, 100, 16_384, 16_385, 70_000, 3)
    pieces = [_pattern(min(size, capacity)) for size in sizes]

    async def send() -> None:
        for piece in pieces:
            await a.send(piece)
        for number, piece in enumerate(pieces):
            (a.write_behind if number % 2 else a.write)(piece)
            if a.clogged:
                await a.drain()
        await a.drain()

    async with anyio.create_task_group() as tg:
        tg.start_soon(send)
        expected = b"".join(pieces) * 2
        _expect(await _read(b, len(expected)) == expected, "what was sent came otherwise")


async def _check_single_bytes(pair: Pair, capacity: int) -> None:
    """A byte at a time arrives as well as any other pieces."""
    a, b = pair
    data = _pattern(300)
    async with anyio.create_task_group() as tg:

        async def send() -> None:
            for byte in data:
                await a.send(bytes([byte]))

        tg.start_soon(send)
        _expect(await _read(b, len(data)) == data, "bytes came otherwise")


async def _check_nothing(pair: Pair, capacity: int) -> None:
    """Writing nothing is not the end."""
    a, b = pair
    await a.send(b"")
    await a.send(b"x")
    _expect(await b.receive() == b"x", "expected what was sent behind nothing")


async def _check_both_ways(pair: Pair, capacity: int) -> None:
    """Both directions carry at the same time."""
    data = _pattern(min(capacity, 1_000_000))

    async def exchange(near: Transport, far: Transport) -> None:
        async with anyio.create_task_group() as tg:
            tg.start_soon(near.send, data)
            _expect(await _read(far, len(data)) == data, "what was sent came otherwise")

    async with anyio.create_task_group() as tg:
        tg.start_soon(exchange, *pair)
        tg.start_soon(exchange, *pair[::-1])


async def _check_many_writers(pair: Pair, capacity: int) -> None:
    """Any number of tasks may write and drain; what one writes stays in one piece."""
    a, b = pair
    writers = 8
    size = min(capacity // writers, 30_000)

    async with anyio.create_task_group() as tg:
        for number in range(writers):
            tg.start_soon(a.send, bytes([number]) * size)
        data = await _read(b, size * writers)
    found = sorted(data[start : start + size] for start in range(0, len(data), size))
    _expect(found == [bytes([n]) * size for n in range(writers)], "pieces were mixed or lost")


async def _check_cancelled_receive(pair: Pair, capacity: int) -> None:
    """Cancelling `receive` loses nothing, at whatever moment it comes."""
    a, b = pair
    received = bytearray()

    async def receive(scope: anyio.CancelScope) -> None:
        with scope:
            received.extend(await b.receive())

    data = _pattern(400)
    for index, byte in enumerate(data):
        scope = anyio.CancelScope()
        async with anyio.create_task_group() as tg:
            if index % 4 == 0:
                # Before it begins.
                scope.cancel()
            tg.start_soon(receive, scope)
            if index % 4 != 1:
                await checkpoint()
            await a.send(bytes([byte]))
            if index % 4 == 3:
                await checkpoint()
            # In the turn in which the data arrives, or close to it.
            scope.cancel()
        if index % 8 == 7:
            # No more than that needs to fit in.
            received += await _read(b, index + 1 - len(received))
    _expect(received == data, "bytes were lost, or came twice")


async def _check_second_receiver(pair: Pair, capacity: int) -> None:
    """A second task in `receive` waits or is told an error, and takes nothing from the first."""
    a, b = pair
    box = [b"", b""]
    scope = anyio.CancelScope()

    async def receive(index: int) -> None:
        box[index] = await b.receive()

    async def disturb() -> None:
        with scope, suppress(Exception):
            await receive(1)

    async with anyio.create_task_group() as tg:
        tg.start_soon(receive, 0)
        await _settle()
        tg.start_soon(disturb)
        await _settle()
        scope.cancel()
        await a.send(b"x")
    _expect(box == [b"x", b""], f"the two received {box}")


async def _check_clogged(pair: Pair, capacity: int) -> None:
    """Where the peer does not read, `drain` waits, and goes on as soon as it reads."""
    a, b = pair
    async with anyio.create_task_group() as tg:
        clogged = _Clogged(a, capacity)
        _expect(a.clogged, "it is not clogged by more than it can hold")
        tg.start_soon(clogged.drain)
        await _settle()
        _expect(not clogged.ended.is_set(), "drain did not wait")
        _expect(a.unsent, "all is sent before the peer has read")
        _expect(not a.broken, "it is broken by more than it can hold")
        before = a.pieces_sent
        _expect(await _read(b, capacity) == clogged.data, "what was kept came otherwise")
        await clogged.ended.wait()
    _expect(not a.unsent, "something is unsent after all has come")
    _expect(not a.clogged, "it is clogged still")
    _expect(a.pieces_sent > before, "pieces_sent does not show the progress")
    await a.send(b"next")
    _expect(await _read(b, 4) == b"next", "what came behind is another thing")


async def _check_cancelled_drain(pair: Pair, capacity: int) -> None:
    """A cancelled `drain` leaves all that was written to be sent, or the pipe broken."""
    a, b = pair
    async with anyio.create_task_group() as tg:
        clogged = _Clogged(a, capacity)
        tg.start_soon(clogged.drain)
        await _settle()
        clogged.scope.cancel()
        await clogged.ended.wait()
        if a.broken:
            _expect(await _is_lost(lambda: a.send(b"more")), "a broken pipe sends on")
            await a.abort()
            data = await _read_to_end(b)
            _expect(clogged.data.startswith(data), "what came is not what was sent first")
            return
        tg.start_soon(a.send, b"more")
        data = await _read(b, capacity + 4)
        _expect(data == clogged.data + b"more", "the pipe went on with something missing")


async def _check_protected(pair: Pair, capacity: int) -> None:
    """A protected pipe survives the cancellation of a `drain`."""
    a, b = pair
    a.protect()
    async with anyio.create_task_group() as tg:
        clogged = _Clogged(a, capacity)
        tg.start_soon(clogged.drain)
        await _settle()
        a.tend()
        clogged.scope.cancel()
        await _settle()
        tg.start_soon(a.send, b"more")
        data = await _read(b, capacity + 4)
        _expect(data == clogged.data + b"more", "something is missing")
    a.release()


async def _check_tended(pair: Pair, capacity: int) -> None:
    """A protected `drain` that is cancelled ends once `tend` has seen it twice."""
    a, _ = pair
    a.protect()
    async with anyio.create_task_group() as tg:
        clogged = _Clogged(a, capacity)
        tg.start_soon(clogged.drain)
        await _settle()
        clogged.scope.cancel()
        a.tend()
        shielded = a.tend()
        # Nothing else could end it.
        a.release()
        _expect(not shielded, "a shield is left after two looks")
        await clogged.ended.wait()


async def _check_end_of_sending(pair: Pair, capacity: int) -> None:
    """Each direction ends on its own, behind all that was written, if it can end at all."""
    a, b = pair
    a.write(b"la")
    await a.drain()
    a.write(b"st")
    if await a.send_eof():
        _expect(await _read(b, 5) == b"last", "the end came otherwise than behind the last bytes")
        _expect(await b.receive() == b"", "the end does not come again")
    else:
        await a.drain()
        _expect(await _read(b, 4) == b"last", "what was written did not come")
    await b.send(b"answer")
    _expect(await _read(a, 6) == b"answer", "the other direction does not carry on")


async def _check_close(pair: Pair, capacity: int) -> None:
    """Closing is seen by the peer as an end behind all that was written."""
    a, b = pair
    data = _pattern(1000)
    async with anyio.create_task_group() as tg:
        a.write(data)
        tg.start_soon(a.aclose)
        _expect(await _read(b, len(data) + 1) == data, "the end came elsewhere")
        _expect(await b.receive() == b"", "the end does not come again")
        tg.start_soon(b.aclose)


async def _check_use_after_close(pair: Pair, capacity: int) -> None:
    """After closing, nothing is sent or received, and closing again is harmless."""
    a, b = pair
    closings: list[Callable[[], Awaitable[None]]] = [a.aclose, a.abort, a.aclose, a.abort]

    async def answer() -> None:
        await _read_to_end(b)
        await b.aclose()

    async with anyio.create_task_group() as tg:
        tg.start_soon(answer)
        for close in closings:
            await close()
            _expect(a.broken, "a closed pipe is not called broken")
            a.write(b"dropped")
            _expect(await _is_lost(a.receive), "receive did not raise TransportLost")
            _expect(await _is_lost(lambda: a.send(b"x")), "send did not raise TransportLost")
            a.extra(SocketAttribute.raw_socket, None)
            for address in (a.local_address, a.remote_address):
                _expect(address is None or isinstance(address, (str, tuple)), "no address")
            _expect(a.secure in (True, False), "it no longer says whether it is secure")


async def _check_wakes(pair: Pair, capacity: int, *, abort: bool) -> None:
    a, _ = pair
    lost = []
    async with anyio.create_task_group() as tg:

        async def receive() -> None:
            lost.append(await _is_lost(a.receive))

        tg.start_soon(receive)
        clogged = _Clogged(a, capacity) if abort else None
        if clogged is not None:
            tg.start_soon(clogged.drain)
        await _settle()
        await (a.abort() if abort else a.aclose())
    _expect(lost == [True], "receive ended without TransportLost")
    _expect(clogged is None or clogged.error is not None, "drain ended without TransportLost")


async def _check_abort_wakes(pair: Pair, capacity: int) -> None:
    """Aborting wakes who waits, in `receive` and in `drain`, with TransportLost."""
    await _check_wakes(pair, capacity, abort=True)


async def _check_close_wakes(pair: Pair, capacity: int) -> None:
    """Closing wakes who waits in `receive`, with TransportLost."""
    await _check_wakes(pair, capacity, abort=False)


async def _check_cancelled_abort(pair: Pair, capacity: int) -> None:
    """Aborting is done where all is cancelled, too, and is seen by the peer."""
    a, b = pair
    done = False
    with anyio.CancelScope() as scope:
        scope.cancel()
        await a.abort()
        done = True
    _expect(done, "it was cancelled")
    _expect(await _read_to_end(b) == b"", "something else came")


async def _check_lost_peer(pair: Pair, capacity: int) -> None:
    """A peer that is gone ends `receive`, breaks `send`, and is then written to in vain."""
    a, b = pair
    await b.abort()
    _expect(await _read_to_end(a) == b"", "something came from nowhere")
    sent = 0
    with suppress(TransportLost):
        while sent < capacity:
            await a.send(bytes(4096))
            sent += 4096
    _expect(sent < capacity, "it sends on and on")
    _expect(a.broken, "it is not called broken")
    a.write(b"dropped")
    _expect(await _is_lost(a.drain), "drain did not raise TransportLost")


async def _check_joined(pair: Pair, capacity: int) -> None:
    """What is joined in one turn of the loop is sent at its end."""
    a, b = pair
    async with anyio.create_task_group() as tg:

        def call_soon(function: Callable[[], object]) -> None:
            async def call() -> None:
                function()

            tg.start_soon(call)

        a.send_later(call_soon)
        data = [b"%d" % number for number in range(20)]
        for piece in data:
            a.write(piece)
        if a.clogged:
            await a.drain()
        whole = b"".join(data)
        _expect(await _read(b, len(whole)) == whole, "it came otherwise")


async def _check_attributes(pair: Pair, capacity: int) -> None:
    """An attribute that there is not is told as anyio tells it."""
    unknown = object()
    for end in pair:
        _expect(end.extra(unknown, 7) == 7, "the default was not returned")
        try:
            end.extra(unknown)
        except anyio.TypedAttributeLookupError:
            continue
        _expect(False, "expected TypedAttributeLookupError without a default")


class _Heard(Sink):
    """What a pipe that reads by itself has handed over."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ends = self.failures = 0
        self.changed: Bell = Bell()

    def data_received(self, data: bytes) -> None:
        _expect(not (self.ends or self.failures), "something came behind the end")
        self.data += data
        self.ends += not data
        self.changed.ring()

    def reading_failed(self, error: TransportLost) -> None:
        self.failures += 1
        self.changed.ring()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.changed.wait()


async def _check_pushed(pair: Pair, capacity: int) -> None:
    """A pipe that reads by itself hands on all of it, in order, and nothing while it is paused."""
    a, b = pair
    if not isinstance(b, PushTransport):
        return
    heard = _Heard()
    await a.send(b"early")
    b.start(heard)
    b.resume()
    await heard.until(lambda: heard.data == b"early")
    b.pause()
    heard.data.clear()
    await a.send(b"paused")
    turns: list[int] = []
    for turn in range(3):
        b.call_soon(lambda turn=turn: turns.append(turn))  # type: ignore[misc]
    await _settle()
    _expect(not heard.data, "something was handed over while it was paused")
    _expect(turns == [0, 1, 2], "call_soon did not call in order")
    b.resume()
    await heard.until(lambda: heard.data == b"paused")
    async with anyio.create_task_group() as tg:
        tg.start_soon(a.aclose)
        await heard.until(lambda: bool(heard.ends or heard.failures))
        await b.aclose()
    _expect((heard.ends, heard.failures) == (1, 0), "expected one end")


async def _check_timers(pair: Pair, capacity: int) -> None:
    """A pipe that reads by itself calls at the time asked for, unless that is taken back."""
    called: list[str] = []
    rang = anyio.Event()
    a, _ = pair
    if not isinstance(a, PushTransport):
        return
    now = anyio.current_time()
    a.call_at(now, lambda: called.append("taken back"))()
    a.call_at(now, lambda: called.append("first"))
    a.call_at(now + 0.01, rang.set)
    await rang.wait()
    _expect(called == ["first"], f"called were {called}")


_CHECKS: list[Callable[[Pair, int], Awaitable[None]]] = [
    _check_order,
    _check_single_bytes,
    _check_nothing,
    _check_both_ways,
    _check_many_writers,
    _check_cancelled_receive,
    _check_second_receiver,
    _check_clogged,
    _check_cancelled_drain,
    _check_protected,
    _check_tended,
    _check_end_of_sending,
    _check_close,
    _check_use_after_close,
    _check_abort_wakes,
    _check_close_wakes,
    _check_cancelled_abort,
    _check_lost_peer,
    _check_joined,
    _check_attributes,
    _check_pushed,
    _check_timers,
]
