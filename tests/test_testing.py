"""What users test with: the promises of a byte pipe, and streams that fail."""

from __future__ import annotations

import asyncio
import math
import selectors
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint
from trio.testing import MockClock

from asyncwebsockets import (
    ConnectionClosedError,
    HandshakeError,
    HandshakeTimeout,
    Settings,
    open_websocket_client,
    open_websocket_server,
)
from asyncwebsockets._tls import start_tls
from asyncwebsockets.testing import Faults, FaultyStream, MemoryStream, check_transport, memory_pair
from asyncwebsockets.transport import StreamTransport, TransportLost

from .conftest import BACKENDS

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from .conftest import Pairs

pytestmark = pytest.mark.anyio

# Time goes by at once, where all wait.
on_trios_clock = pytest.mark.parametrize("anyio_backend", ["trio-mock"], indirect=True)
on_no_clock = pytest.mark.parametrize("anyio_backend", ["asyncio-mock", "trio-mock"], indirect=True)


class JumpingSelector(selectors.SelectSelector):
    """It has waited at once."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select()
        ready = super().select(0)
        if not ready:
            self.time += max(timeout, 0)
        return ready


def jumping_loop() -> asyncio.SelectorEventLoop:
    selector = JumpingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.time  # type: ignore[method-assign]
    return loop


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "trio-mock":
        return ("trio", {"clock": MockClock(autojump_threshold=0)})
    if request.param == "asyncio-mock":
        return ("asyncio", {"loop_factory": jumping_loop})
    return request.param


# The promises


async def test_each_transport_keeps_its_promises(pairs: Pairs) -> None:
    await check_transport(pairs.streams)


async def test_a_pair_of_sockets_keeps_them() -> None:
    async def make() -> tuple[socket.socket, socket.socket]:
        return socket.socketpair()

    await check_transport(make)


async def test_a_pair_in_memory_keeps_them() -> None:
    async def make() -> tuple[MemoryStream, MemoryStream]:
        return memory_pair()

    await check_transport(make, capacity=200_000)


async def test_a_stream_of_single_bytes_keeps_them() -> None:
    await check_transport(single_bytes, capacity=2_000)


async def test_tls_on_a_few_bytes_at_a_time_keeps_them(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def make() -> Any:
        # Who is done first does not read what the other still sends of the handshake.
        ends = [StreamTransport(end) for end in await single_bytes(2_000, 11)]
        pipes: list[Any] = [None, None]

        async def wrap(index: int, context: ssl.SSLContext, **kwargs: Any) -> None:
            pipes[index] = await start_tls(ends[index], context, **kwargs)

        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: wrap(0, client_tls, hostname="localhost"))
            tg.start_soon(lambda: wrap(1, server_tls, server_side=True))
        return pipes[0], pipes[1]

    await check_transport(make, capacity=8_000)


async def single_bytes(size: int = 500, split: int = 1) -> tuple[FaultyStream, FaultyStream]:
    near, far = memory_pair(size)
    single = Faults(split=split)
    return FaultyStream(near, receiving=single), FaultyStream(far, receiving=single)


class Reorders(StreamTransport):
    def write(self, data: bytes) -> None:
        super().write(data)
        self._taken.reverse()


class Mixes(StreamTransport):
    async def drain(self) -> None:
        while self._taken:
            data = self._taken.pop()
            self._taken_total -= len(data)
            await self._stream.send(data[:100])
            if data[100:]:
                self.write(data[100:])
        self.clogged = False


class LosesWhatACancelledReceiveHad(StreamTransport):
    async def receive(self) -> bytes:
        data = await super().receive()
        await checkpoint()
        return data


class EndsWithNothing(StreamTransport):
    def write(self, data: bytes) -> None:
        if not data:
            self._outgoing.ended = True
            self._outgoing.changed.ring()
        super().write(data)

    @property
    def _outgoing(self) -> Any:
        return self._stream._outgoing  # type: ignore[union-attr]


class StealsFromOthers(StreamTransport):
    async def receive(self) -> bytes:
        if self._waiting:
            return b"another's"
        return await super().receive()


class SendsHalf(StreamTransport):
    def write(self, data: bytes) -> None:
        super().write(data[: max(len(data) // 2, 1)])


class KeepsAll(StreamTransport):
    """It takes whatever it is given and never waits."""

    async def drain(self) -> None:
        self._stream._outgoing.size = 1_000_000  # type: ignore[union-attr]
        await super().drain()


class HidesItsProgress(StreamTransport):
    @property
    def pieces_sent(self) -> int:
        return 0

    @pieces_sent.setter
    def pieces_sent(self, value: int) -> None:
        return


class GoesOnAfterHalfASend(StreamTransport):
    broken = False

    async def _send_taken(self) -> None:
        try:
            await super()._send_taken()
        except anyio.get_cancelled_exc_class():
            self._failure, self._sent_total = None, self._taken_total
            raise

    async def abort(self) -> None:
        if anyio.current_effective_deadline() != -math.inf:
            await super().abort()


class ProtectsNothing(StreamTransport):
    def protect(self) -> None:
        return


class ShieldsForEver(StreamTransport):
    def tend(self) -> bool:
        return self._shield is not None


class EndsBothDirections(StreamTransport):
    async def send_eof(self) -> bool:
        await self.drain()
        await self._stream.aclose()
        return True


class ForgetsWhatItTook(StreamTransport):
    async def aclose(self) -> None:
        self._taken.clear()
        self._sent_total = self._taken_total
        await super().aclose()


class RaisesWhenClosedTwice(StreamTransport):
    async def aclose(self) -> None:
        if self._closed:
            raise TransportLost("closed")
        await super().aclose()


class LeavesThemWaiting(StreamTransport):
    async def receive(self) -> bytes:
        with suppress(TransportLost):
            return await super().receive()
        await anyio.sleep_forever()
        return b""


class CannotAbortWhereAllIsCancelled(StreamTransport):
    async def abort(self) -> None:
        await checkpoint()
        await super().abort()


class SendsInVain(StreamTransport):
    async def drain(self) -> None:
        with suppress(TransportLost):
            await super().drain()


class RaisesAsItLikes(StreamTransport):
    def extra(self, attribute: Any, default: object = ...) -> Any:
        if default is ...:
            raise KeyError(attribute)
        return super().extra(attribute, default)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (Reorders, "What is joined in one turn"),
        (Mixes, "Any number of tasks may write"),
        (EndsWithNothing, "Writing nothing"),
        (LosesWhatACancelledReceiveHad, "Cancelling `receive` loses nothing"),
        (StealsFromOthers, "Both directions carry"),
        (SendsHalf, "What is written arrives"),
        (KeepsAll, "Where the peer does not read, `drain` waits"),
        (HidesItsProgress, "pieces_sent"),
        (GoesOnAfterHalfASend, "A cancelled `drain`"),
        (ProtectsNothing, "A protected pipe survives"),
        (ShieldsForEver, "A protected `drain`"),
        (EndsBothDirections, "Each direction ends on its own"),
        (ForgetsWhatItTook, "Closing is seen by the peer"),
        (RaisesWhenClosedTwice, "After closing"),
        (LeavesThemWaiting, "After closing.*: something waits that should not"),
        (CannotAbortWhereAllIsCancelled, "Aborting is done"),
        (SendsInVain, "a broken pipe sends on"),
        (RaisesAsItLikes, "An attribute"),
    ],
)
@on_no_clock
async def test_a_broken_promise_is_told(broken: type[StreamTransport], promise: str) -> None:
    async def make() -> tuple[StreamTransport, StreamTransport]:
        near, far = memory_pair(5_000)
        return broken(near), broken(far)

    with pytest.raises(AssertionError, match=promise):
        await check_transport(make, capacity=20_000)


# A pair in memory


async def test_a_pair_in_memory_is_bounded() -> None:
    near, far = memory_pair(3)
    async with anyio.create_task_group() as tg:
        tg.start_soon(near.send, b"12345")
        await anyio.wait_all_tasks_blocked()
        assert await far.receive() == b"123"
        assert await far.receive(1) == b"4"
        assert await far.receive() == b"5"
    with pytest.raises(ValueError, match="size of 1 byte"):
        memory_pair(0)


async def test_each_half_of_a_pair_ends_on_its_own() -> None:
    near, far = memory_pair()
    await near.send(b"last")
    await near.send_eof()
    with pytest.raises(anyio.ClosedResourceError):
        await near.send(b"more")
    assert await far.receive() == b"last"
    for _ in range(2):
        with pytest.raises(anyio.EndOfStream):
            await far.receive()
    await far.send(b"answer")
    assert await near.receive() == b"answer"


async def test_what_a_closed_end_does() -> None:
    near, far = memory_pair()
    async with anyio.create_task_group() as tg:

        async def receive() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await near.receive()

        tg.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await near.receive()
        await near.aclose()
    await near.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await near.send(b"x")
    with pytest.raises(anyio.BrokenResourceError):
        await far.send(b"x")
    with pytest.raises(anyio.EndOfStream):
        await far.receive()


async def test_a_reset_loses_what_was_not_read() -> None:
    near, far = memory_pair()
    await near.send(b"lost")
    near.reset()
    for use in (far.receive, lambda: far.send(b"x")):
        with pytest.raises(anyio.BrokenResourceError):
            await use()
    with pytest.raises(anyio.ClosedResourceError):
        await near.receive()


# Faults


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"delay": -1}, "delay of 0 seconds"),
        ({"split": 0}, "pieces of 1 byte"),
        ({"end_after": 1, "reset_after": 1}, "at most one of"),
        ({"silent_after": -1}, "cut after 0 bytes"),
    ],
)
def test_faults_that_make_no_sense(faults: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Faults(**faults)


async def test_pieces_are_split(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    faulty = FaultyStream(near, receiving=Faults(split=2))
    await far.send(b"12345")
    assert [await faulty.receive() for _ in range(3)] == [b"12", b"34", b"5"]
    faulty.sending = Faults(split=1)
    async with anyio.create_task_group() as tg:
        tg.start_soon(faulty.send, b"67")
        received = b""
        while len(received) < 2:
            received += await far.receive()
    assert received == b"67"
    await close_both(faulty, far)


@on_trios_clock
async def test_pieces_are_late() -> None:
    near, far = memory_pair()
    faulty = FaultyStream(near, receiving=Faults(delay=5), sending=Faults(delay=7, split=1))
    await far.send(b"x")
    began = anyio.current_time()
    with anyio.move_on_after(1):
        await faulty.receive()
    # What was cancelled has lost nothing.
    assert await faulty.receive() == b"x"
    assert anyio.current_time() - began == pytest.approx(6)
    await faulty.send(b"12")
    assert anyio.current_time() - began == pytest.approx(20)
    async with anyio.create_task_group() as tg:

        async def receive() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await faulty.receive()

        await far.send(b"y")
        tg.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        await faulty.aclose()


async def test_an_end_behind_some_bytes(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    faulty = FaultyStream(near, receiving=Faults(end_after=2))
    await far.send(b"123")
    assert await faulty.receive() == b"12"
    with pytest.raises(anyio.EndOfStream):
        await faulty.receive()
    faulty.sending = Faults(end_after=2)
    async with anyio.create_task_group() as tg:
        tg.start_soon(swallow, faulty.send, b"123")
        received = b""
        with suppress(anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            while True:
                received += await far.receive()
        await close_both(faulty, far)
    assert received == b"12"


async def test_a_reset_behind_some_bytes(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    faulty = FaultyStream(near, sending=Faults(reset_after=2))
    with pytest.raises(anyio.BrokenResourceError):
        await faulty.send(b"123")
    for use in (faulty.receive, lambda: faulty.send(b"x")):
        with pytest.raises(anyio.BrokenResourceError):
            await use()
    received = b""
    with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)) as caught:
        while True:
            received += await far.receive()
    assert b"12".startswith(received)
    if pairs.kind == "tcp":
        assert caught.type is anyio.BrokenResourceError
    await close_both(faulty, far)


async def test_silence_behind_some_bytes(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    silent = Faults(silent_after=2)
    faulty = FaultyStream(near, receiving=silent, sending=silent)
    await far.send(b"123")
    assert await faulty.receive() == b"12"
    async with anyio.create_task_group() as tg:
        told = []

        async def receive() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await faulty.receive()
            told.append(True)

        tg.start_soon(receive)
        await faulty.send(b"456")
        await faulty.send(b"7")
        await faulty.send_eof()
        assert await far.receive() == b"45"
        with anyio.move_on_after(0.02) as scope:
            await far.receive()
        assert scope.cancelled_caught
        assert not told
        await close_both(faulty, far)
    assert told


async def swallow(function: Callable[[bytes], Awaitable[None]], data: bytes) -> None:
    with suppress(anyio.BrokenResourceError):
        await function(data)


async def close_both(*streams: Any) -> None:
    for stream in streams:
        with suppress(anyio.BrokenResourceError, OSError, anyio.EndOfStream):
            await anyio.aclose_forcefully(stream)


# Connections on them


async def test_a_connection_on_single_bytes() -> None:
    near, far = await single_bytes()
    async with anyio.create_task_group() as tg:

        async def serve() -> None:
            async with open_websocket_server(far) as websocket:
                async for evt in websocket:
                    await websocket.send(evt.data)  # type: ignore[attr-defined]

        tg.start_soon(serve)
        async with open_websocket_client(near, "h", "/") as websocket:
            for message in ("", "grüße", "x" * 1000):
                await websocket.send(message)
                assert await websocket.receive_text() == message
        assert websocket.close_code == 1000


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("fault", ["end_after", "reset_after"])
async def test_a_connection_that_is_cut_in_a_frame(pairs: Pairs, fault: str, after: int) -> None:
    near, far = await pairs.streams()
    faulty = FaultyStream(near)
    async with anyio.create_task_group() as tg:
        seen: list[object] = []

        async def serve() -> None:
            async with open_websocket_server(far) as server:
                with pytest.raises(ConnectionClosedError) as caught:
                    seen.append(await server.receive())
                seen.append(caught.value.code)

        tg.start_soon(serve)
        async with open_websocket_client(faulty, "h", "/") as client:
            faulty.sending = Faults(**{fault: after})
            with suppress(ConnectionClosedError):
                await client.send("never whole")
            with pytest.raises(ConnectionClosedError) as caught:
                await client.receive()
            assert caught.value.code == client.close_code == 1006
    assert seen == [1006]


@pytest.mark.parametrize("after", [0, 20, 128])
async def test_a_handshake_that_is_cut(after: int) -> None:
    for fault in ("end_after", "reset_after"):
        near, far = memory_pair()
        faulty = FaultyStream(near, receiving=Faults(**{fault: after}))
        async with anyio.create_task_group() as tg:

            async def serve() -> None:
                with suppress(HandshakeError, ConnectionClosedError):
                    async with open_websocket_server(far) as server:  # noqa: B023
                        await server.receive()

            tg.start_soon(serve)
            with pytest.raises(HandshakeError):
                async with open_websocket_client(faulty, "h", "/"):
                    pytest.fail("the answer was cut")


async def test_a_silence_ends_for_who_waits_in_it(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    faulty = FaultyStream(near, receiving=Faults(silent_after=0))
    async with anyio.create_task_group() as tg:
        received = []

        async def receive() -> None:
            received.append(await faulty.receive())

        tg.start_soon(receive)
        await far.send(b"123")
        await anyio.wait_all_tasks_blocked()
        assert not received
        faulty.receiving = Faults()
    assert received == [b"123"]
    await close_both(faulty, far)


@on_trios_clock
async def test_a_peer_that_went_silent() -> None:
    near, far = memory_pair()
    faulty = FaultyStream(near)
    async with anyio.create_task_group() as tg:

        async def serve() -> None:
            async with open_websocket_server(far, settings=Settings(ping_interval=None)) as server:
                with suppress(ConnectionClosedError):
                    await server.receive()

        tg.start_soon(serve)
        async with open_websocket_client(faulty, "h", "/") as client:
            faulty.receiving = faulty.sending = Faults(silent_after=0)
            with pytest.raises(ConnectionClosedError) as caught:
                await client.receive()
            assert caught.value.code == 1011
            assert "keepalive" in caught.value.reason
    near, far = memory_pair()
    with pytest.raises(HandshakeTimeout):
        async with open_websocket_client(
            FaultyStream(near, sending=Faults(silent_after=0)), "h", "/"
        ):
            pytest.fail("nobody answers")


async def test_attributes_are_those_of_the_stream_below(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    faulty = FaultyStream(near)
    address = near.extra(SocketAttribute.remote_address, None)
    assert faulty.extra(SocketAttribute.remote_address, None) == address
    await close_both(faulty, far)
