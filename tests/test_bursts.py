"""Many messages that come with one read, and the answers, which go out together."""

from __future__ import annotations

import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncwebsockets import ConnectionClosedError, Settings, Websocket, open_websocket_server
from asyncwebsockets.events import Message, TextMessage

from .conftest import cut
from .frames import REQUEST, close_payload, frame, parse_frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .conftest import Pairs, Stream

pytestmark = pytest.mark.usefixtures("codec")

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
FIN = 0x80
UNLIMITED = Settings(max_message_size=None)


class RawClient:
    """The client's end of a connection, in frames."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.read = b""

    async def begin(self) -> None:
        await self.stream.send(REQUEST)
        while b"\r\n\r\n" not in self.read:
            self.read += await self.stream.receive()
        self.read = self.read.partition(b"\r\n\r\n")[2]

    async def burst(self, *frames: tuple[int, bytes]) -> None:
        await self.stream.send(b"".join(frame(kind, data, masked=True) for kind, data in frames))

    async def next_frame(self) -> tuple[int, bytes]:
        while len(self.read) < 2 or len(self.read) < _size(self.read):
            self.read += await self.stream.receive()
        first, payload, self.read = parse_frame(self.read)
        return first & 0x0F, payload


def _size(data: bytes) -> int:
    """Return how many bytes the first frame is, a server's; more than there are if not all is."""
    length = data[1]
    if length < 126:
        return 2 + length
    extended = 2 if length == 126 else 8
    return 2 + extended + int.from_bytes(data[2 : 2 + extended], "big")


async def echo(ws: Websocket) -> None:
    async for event in ws:
        if isinstance(event, Message):
            await ws.send(event.data)


async def with_server(
    pairs: Pairs,
    handler: Callable[[Websocket], Awaitable[None]],
    use: Callable[[RawClient], Awaitable[None]],
    errors: list[BaseException],
    *,
    narrow: bool = False,
) -> None:
    near, far = await pairs.streams()
    if narrow:
        # So that there is soon no more room.
        for end, option in ((near, socket.SO_RCVBUF), (far, socket.SO_SNDBUF)):
            end.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, option, 16_384)

    async def serve() -> None:
        try:
            async with open_websocket_server(far, settings=UNLIMITED) as ws:
                await handler(ws)
        except Exception as exc:
            errors.append(exc)

    async with anyio.create_task_group() as tg:
        tg.start_soon(serve)
        client = RawClient(near)
        await client.begin()
        try:
            await use(client)
        finally:
            await cut(near)


SIZES = st.sampled_from([0, 1, 125, 126, 300, 4_000, 65_535, 65_536, 70_000])
MESSAGES = st.one_of(
    st.tuples(st.just(BINARY), SIZES.map(lambda size: bytes(size))),
    st.tuples(st.just(TEXT), SIZES.map(lambda size: b"x" * size)),
    st.tuples(st.just(TEXT), SIZES.map(lambda size: "é".encode() * (size // 2))),
    st.tuples(st.just(PING), st.binary(max_size=125)),
)


@pytest.fixture
def backend(anyio_backend: Any) -> Any:
    """Hypothesis and anyio's plugin do not go together: each example is a run of its own."""
    return anyio_backend


@pytest.mark.parametrize("pairs", ["tcp", "tls"], indirect=True)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(bursts=st.lists(st.lists(MESSAGES, min_size=1, max_size=40), min_size=1, max_size=3))
def test_each_is_answered_in_its_turn(
    pairs: Pairs, backend: Any, bursts: list[list[tuple[int, bytes]]]
) -> None:
    errors: list[BaseException] = []

    async def use(client: RawClient) -> None:
        for burst in bursts:
            # Both directions at once: nobody reads while one burst is on its way.
            async with anyio.create_task_group() as tg:
                tg.start_soon(client.burst, *burst)
                came = [await client.next_frame() for _ in burst]
            assert [item for item in came if item[0] != PONG] == [
                item for item in burst if item[0] != PING
            ]
            assert [data for kind, data in came if kind == PONG] == [
                data for kind, data in burst if kind == PING
            ]

    name, options = backend
    anyio.run(with_server, pairs, echo, use, errors, backend=name, backend_options=options)
    assert [error for error in errors if not isinstance(error, ConnectionClosedError)] == []


@pytest.mark.anyio
@pytest.mark.parametrize("pairs", ["tcp", "tls", "stream"], indirect=True)
async def test_who_does_not_read_gets_all_of_it_later(pairs: Pairs) -> None:
    messages = [(TEXT, b"%06d" % number * 100) for number in range(64)]
    done: list[int] = []

    async def count(ws: Websocket) -> None:
        async for event in ws:
            assert isinstance(event, TextMessage)
            await ws.send(event.data)
            done.append(1)

    async def use(client: RawClient) -> None:
        sent = 0
        async with anyio.create_task_group() as tg:
            while len(done) == sent:
                # Until the server, which is not read from, waits in the midst of a burst.
                tg.start_soon(client.burst, *messages)
                sent += len(messages)
                await anyio.wait_all_tasks_blocked()
            assert len(done) < sent
            for number in range(sent):
                assert await client.next_frame() == messages[number % 64]

    await with_server(pairs, count, use, [], narrow=True)


@pytest.mark.anyio
async def test_a_close_goes_behind_the_answers(pairs: Pairs) -> None:
    async def handler(ws: Websocket) -> None:
        for _ in range(20):
            event = await ws.receive()
            assert isinstance(event, TextMessage)
            await ws.send(event.data)
        await ws.close(4000, "enough")

    async def use(client: RawClient) -> None:
        messages = [(TEXT, b"%d" % number) for number in range(30)]
        await client.burst(*messages)
        assert [await client.next_frame() for _ in range(20)] == messages[:20]
        assert await client.next_frame() == (CLOSE, close_payload(4000, "enough"))
        await client.burst((CLOSE, close_payload(4000)))

    errors: list[BaseException] = []
    await with_server(pairs, handler, use, errors)
    assert errors == []


@pytest.mark.anyio
async def test_what_was_answered_before_an_exception_goes_out(pairs: Pairs) -> None:
    async def handler(ws: Websocket) -> None:
        for _ in range(20):
            await ws.send(await ws.receive_text())
        raise LookupError("the handler's own")

    async def use(client: RawClient) -> None:
        messages = [(TEXT, b"%d" % number) for number in range(30)]
        await client.burst(*messages)
        assert [await client.next_frame() for _ in range(20)] == messages[:20]
        kind, payload = await client.next_frame()
        assert (kind, payload[:2]) == (CLOSE, close_payload(1011))

    errors: list[BaseException] = []
    await with_server(pairs, handler, use, errors)
    assert [type(error) for error in errors] == [LookupError]


@pytest.mark.anyio
async def test_a_handler_that_waits_for_others_keeps_the_order(pairs: Pairs) -> None:
    async def handler(ws: Websocket) -> None:
        async with anyio.create_task_group() as tg:
            for number in range(60):
                text = await ws.receive_text()
                if number % 3 == 0:
                    await checkpoint()
                if number % 7 == 0:
                    tg.start_soon(ws.ping)
                await ws.send(text)
            tg.cancel_scope.cancel()

    async def use(client: RawClient) -> None:
        messages = [(TEXT, b"%d" % number) for number in range(60)]
        await client.burst(*messages)
        came: list[tuple[int, bytes]] = []
        while len(came) < 60:
            item = await client.next_frame()
            if item[0] != PING:
                came.append(item)
        assert came == messages

    await with_server(pairs, handler, use, [])


@pytest.mark.anyio
@pytest.mark.parametrize("pairs", ["tcp"], indirect=True)
async def test_a_peer_that_resets_in_the_midst_of_a_burst(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    raw: socket.socket = near.extra(SocketAttribute.raw_socket)

    async with anyio.create_task_group() as tg:

        async def serve() -> None:
            with pytest.raises(ConnectionClosedError) as caught:
                async with open_websocket_server(far, settings=UNLIMITED) as ws:
                    number = 0
                    while True:
                        await ws.send(await ws.receive_text())
                        number += 1
                        if number == 10:
                            # With what was sent unread behind it, that is a reset.
                            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                            await cut(near)
            assert caught.value.code == 1006

        tg.start_soon(serve)
        client = RawClient(near)
        await client.begin()
        await client.burst(*[(TEXT, b"x" * 100)] * 64)


def test_loops_in_several_threads_do_not_mix_what_they_join(codec: Any) -> None:
    async def use(client: RawClient, letter: bytes) -> None:
        messages = [(TEXT, letter * (50 + number)) for number in range(64)]
        for _ in range(30):
            await client.burst(*messages)
            assert [await client.next_frame() for _ in messages] == messages

    async def main(letter: bytes) -> None:
        near, far = socket.socketpair()
        async with anyio.create_task_group() as tg:

            async def serve() -> None:
                with pytest.raises(ConnectionClosedError):
                    async with open_websocket_server(far) as ws:
                        await echo(ws)
                        await ws.receive()

            tg.start_soon(serve)
            async with await SocketStream.from_socket(near) as stream:
                client = RawClient(stream)
                await client.begin()
                await use(client, letter)

    failures: list[BaseException] = []

    def run(letter: bytes) -> None:
        try:
            anyio.run(main, letter)
        except BaseException as exc:
            failures.append(exc)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run, args=(letter,)) for letter in (b"a", b"b", b"c")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
